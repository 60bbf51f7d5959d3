"""Attacks of a host by spec, ``torchattacks:PGD:steps=50``: what the hosts have in common.

A host's attack is a class that takes a model and keywords. From the class's own signature follow the
options that a spec may give, and the names under which the host wants norm and radius. Imports no host.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from art_logits import _checks
from art_logits.balls import get_ball
from art_logits.presets import Threat, parse_number, read_boolean, read_integer, unknown_option
from art_logits.starts import sample_hashes
from art_logits.types import Model

__all__ = ["HostAttack", "Signature", "Unused", "class_names", "seeded", "try_out"]

# Decided by the evaluation: it has no targets, wants no output, and knows the model and its classes.
_TAKEN = frozenset({"self", "model", "classifier", "estimator", "targeted", "verbose", "summary_writer"})
_RADII = ("eps", "max_epsilon")
_STEPS = ("alpha", "eps_step")


class Signature:
    """The keywords of a host's attack class.

    Args:
        kind: the class; the first parameter of its constructor is the model.
        numbers: names whose default is an integer though the host takes any number.

    >>> class Attack:
    ...     def __init__(self, model, eps=0.3, alpha=0.1, steps=10): ...
    >>> sorted(Signature(Attack).options), Signature(Attack).radius
    (['alpha', 'eps', 'steps'], 'eps')
    """

    def __init__(self, kind: type, *, numbers: frozenset[str] = frozenset()) -> None:
        parameters = list(inspect.signature(kind.__init__).parameters.values())[2:]  # type: ignore[misc]
        self.all = {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        self.options = {name: p for name, p in self.all.items() if name not in _TAKEN}
        self.radius = next((name for name in _RADII if name in self.options), None)
        self._numbers = numbers

    def read(self, options: Mapping[str, str], spec: str) -> dict[str, Any]:
        """The options of a spec as values, each of the kind of its default.

        Raises:
            ValueError: for an option that the class does not have (naming the nearest), or whose value is
                none of its kind.
        """
        values: dict[str, Any] = {}
        for name, text in options.items():
            if name not in self.options:
                raise ValueError(unknown_option(spec, name, ["norm", "eps", "seed", *self.options]))
            try:
                values[name] = self._value(self.options[name], text)
            except ValueError as error:
                raise ValueError(f"attack {spec!r}: option {name!r}: {error}") from error
        return values

    def _value(self, parameter: inspect.Parameter, text: str) -> Any:
        default = parameter.default
        if isinstance(default, bool):
            return read_boolean(text)
        if isinstance(default, int) and not self._takes_numbers(parameter):
            return read_integer(text)
        if isinstance(default, int | float):
            return parse_number(text)
        return text if isinstance(default, str) else _guess(text)

    def _takes_numbers(self, parameter: inspect.Parameter) -> bool:
        return parameter.name in self._numbers or "float" in str(parameter.annotation)

    def check_complete(self, arguments: Mapping[str, Any], spec: str) -> None:
        """Refuse a class that needs what was not given.

        Raises:
            ValueError: naming the options.
        """
        missing = [name for name, p in self.options.items() if p.default is p.empty and name not in arguments]
        if missing:
            raise ValueError(
                f"attack {spec!r} needs the options {', '.join(missing)}: give them as {missing[0]}=VALUE; "
                "objects that no text can name need the attack in Python, as (model, inputs, labels)"
            )

    def scaled_step(self, arguments: Mapping[str, Any], eps: float) -> dict[str, float]:
        """The step size that a spec leaves open, in the host's own proportion to the radius.

        The host's default belongs to the host's radius: 10 steps of 2/255 do not reach 0.3.
        """
        for name in _STEPS:
            if name in self.options and name not in arguments and self.radius is not None:
                ratio = self.options[name].default / self.options[self.radius].default
                return {name: ratio * eps}
        return {}


def _guess(text: str) -> Any:
    """The value of an option whose default does not say its kind: a truth value, a number, else text."""
    for read in (read_boolean, read_integer, parse_number):
        with contextlib.suppress(ValueError):
            return read(text)
    return text


@dataclass(frozen=True)
class HostAttack:
    """A host's attack as a callable ``(model, inputs, labels)``, for :func:`art_logits.evaluate`.

    The host's random numbers are drawn from the seed and the batch, so that a run can be repeated, and no
    global random state is changed. Unlike our own attack's, its result may depend on the batch.

    Args:
        spec: how it was asked for, for messages.
        kind: the host's class.
        threat: norm, radius, bounds and seed.
        arguments: keywords for the class.
        projected: whether the class knows no radius. What it returns outside the ball is then projected onto
            the ball: an attack that looks for a small perturbation counts if it is small enough.
    """

    spec: str
    kind: type
    threat: Threat
    arguments: Mapping[str, Any] = field(default_factory=dict)
    projected: bool = False

    @property
    def norm(self) -> str:
        """The norm, in which the evaluation checks the ball."""
        return self.threat.norm

    @property
    def eps(self) -> float:
        """The radius, which the evaluation checks."""
        return self.threat.eps

    def config(self) -> dict[str, Any]:
        """Everything that decides the result, as JSON can hold it."""
        return {
            "callable": f"{self.kind.__module__}.{self.kind.__qualname__}",
            "norm": self.norm,
            "eps": self.eps,
            "seed": self.threat.seed,
            "projected": self.projected,
            "arguments": {name: _plain(value) for name, value in self.arguments.items()},
        }

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor) -> Tensor:
        """Attack a batch.

        Args:
            model: maps inputs to logits ``(N, C)``.
            inputs: ``(N, ...)`` in the bounds.
            labels: ``(N,)``.

        Returns:
            Adversarial inputs ``(N, ...)``.

        Raises:
            ValueError: the host raised, or returned something else than perturbed inputs.
        """
        module = model if isinstance(model, nn.Module) else _Module(model)
        with seeded(self.threat.seed, inputs, labels), contextlib.redirect_stdout(io.StringIO()):
            adversarial = self._perturb(module, inputs, labels)
        if not self.projected:
            return adversarial
        low, high = self.threat.bounds
        ball = get_ball(self.norm)
        eps = inputs.new_full((len(inputs), *[1] * (inputs.ndim - 1)), self.eps)
        return (inputs + ball.project(adversarial - inputs, eps)).clamp(low, high)

    def _perturb(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """What the host returns, as a tensor like the inputs."""
        try:
            result = self.run(model, inputs, labels)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a host's attack may fail in any way
            raise _failure(self.spec, error) from error
        if not isinstance(result, Tensor | np.ndarray) or tuple(result.shape) != tuple(inputs.shape):
            raise ValueError(
                f"attack {self.spec!r} must return perturbed inputs of shape {tuple(inputs.shape)}, got "
                f"{_describe(result)}: it cannot be evaluated sample by sample"
            )
        return torch.as_tensor(result).detach().to(inputs)

    def run(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Any:
        """Call the host.

        Args:
            model: the model.
            inputs: ``(N, ...)``.
            labels: ``(N,)``.

        Returns:
            What the host returns.
        """
        raise NotImplementedError


def try_out(build: Callable[[], object], spec: str) -> None:
    """Build an attack once on a model of no consequence, before anything is loaded or written.

    Raises:
        ValueError: the host refused the arguments.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            build()
    except Exception as error:  # a host may refuse in any way
        raise _failure(spec, error) from error


def _failure(spec: str, error: Exception) -> ValueError:
    """A host's exception in our words, on one line."""
    text = " ".join(str(error).split())
    return ValueError(f"attack {spec!r} failed in its host: {type(error).__name__}: {text}")


class _Module(nn.Module):
    """A plain callable as the module that the hosts ask for."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs)


def _describe(result: object) -> str:
    shape = getattr(result, "shape", None)
    return type(result).__name__ if shape is None else f"{type(result).__name__} of shape {tuple(shape)}"


def _plain(value: Any) -> Any:
    """JSON has no infinity."""
    return value if not isinstance(value, float) or np.isfinite(value) else str(value)


@contextlib.contextmanager
def seeded(seed: int, inputs: Tensor, labels: Tensor) -> Iterator[None]:
    """Seed every global generator by (seed, batch), and give all of them back as they were.

    Args:
        seed: of the run.
        inputs: ``(N, ...)``, the batch.
        labels: ``(N,)``.

    Yields:
        With the generators of torch, numpy and Python seeded.
    """
    digest = hashlib.blake2b(str(seed).encode(), digest_size=4)
    digest.update(sample_hashes(inputs, labels).tobytes())
    number = int.from_bytes(digest.digest(), "little")
    ours, theirs = np.random.get_state(), random.getstate()  # noqa: NPY002 (the hosts draw from it)
    devices = [inputs.device] if inputs.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(number)
        np.random.seed(number)  # noqa: NPY002
        random.seed(number)
        try:
            yield
        finally:
            np.random.set_state(ours)  # noqa: NPY002
            random.setstate(theirs)


class Unused(nn.Module):
    """The model of no consequence on which :func:`try_out` builds attacks."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(1, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(N, 2)`` of inputs ``(N, ...)``."""
        logits: Tensor = self.body(inputs.flatten(1)[:, :1])
        return logits


def class_names(known: Mapping[str, type], name: str, host: str, spec: str) -> str:
    """The message for a class that a host does not have."""
    return (
        f"attack {spec!r}: {host} has no attack class {name!r}{_checks.nearest(name, known)}; it has "
        f"{', '.join(sorted(known))}"
    )
