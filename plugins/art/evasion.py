"""Temperature-PGD as an ART evasion attack."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.config import ART_NUMPY_DTYPE
from art.estimators.estimator import BaseEstimator, LossGradientsMixin
from art.summary_writer import SummaryWriter, SummaryWriterDefault
from art.utils import to_categorical
from scipy.stats import truncnorm
from torch import Tensor
from tqdm.auto import tqdm

from art_logits import _checks
from art_logits import attack as core
from art_logits.prepare import Precision
from art_logits.types import Bounds, Loss, Model, Norm, Temperature

from .estimators import check, logits_of, predicted_classes, untouched

logger = logging.getLogger(__name__)

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

_NORMS: Mapping[object, Norm] = MappingProxyType({np.inf: "Linf", "inf": "Linf", 1: "L1", 2: "L2"})
_FLAGS = ("targeted", "random_eps", "verbose", "stop_on_success")
# Bounds what lies on the device at a time, and still leaves few batches that are not full.
_BATCHES_AT_ONCE = 64


class TemperaturePGD(EvasionAttack):  # type: ignore[misc]
    """Projected gradient ascent on a loss of the logits divided by a temperature, for ART.

    It takes the place of ``art.attacks.evasion.ProjectedGradientDescent``: the same arguments in the same
    order, then the attack's own. With ``temperature=1.0, keep="last"`` it returns what ART's does.

    Where it differs, on purpose:

    * Success is judged by the label, also between restarts; ART's restarts compare with the clean
      prediction. The best iterate of all restarts is returned (``keep="best"``).
    * In L2 and L1 it projects onto the ball (exactly, in L1) and then clips; ART rescales. In L1 a step
      moves several coordinates.
    * Random starts depend on the seed and the sample alone, so results do not change with ``batch_size``
      or the order of the samples.
    * The classifier's network comes back as it was: train/eval flags, ``requires_grad``, ``.grad``.
    * ``set_params`` validates before it changes anything.
    * The loss is this attack's, whatever loss the classifier was built with; outputs count as logits.

    Args:
        estimator: a ``PyTorchClassifier``, or one in the table of
            :mod:`art_logits.plugins.art.estimators`.
        norm: ``np.inf``, ``"inf"``, 1 or 2.
        eps: radius of the ball, in the unit of ``x``, >= 0; a number, or an array that broadcasts to ``x``
            (with a finite norm: one value per sample).
        eps_step: length of a step, > 0; a number or array as ``eps``, of the same shape.
        decay: momentum's share of the past, >= 0; absent for none.
        max_iter: steps of each run, >= 0.
        targeted: whether ``y`` are the classes to reach.
        num_random_init: runs from random points of the ball; 0 for one run from ``x``.
        batch_size: samples in one pass of the model.
        random_eps: draw a factor for ``eps`` and ``eps_step`` at each call: half of a standard normal
            variable truncated to [0, 2] (for arrays one factor per element), as ART does.
        summary_writer: ``True``, a folder, or an ART ``SummaryWriter``, to follow loss and gradients in
            TensorBoard; with ``num_random_init`` up to 1.
        verbose: show a progress bar.
        temperature: a number > 0, ``"gap"``, one number per step, or a policy
            ``(logits (N, C), step) -> (N,)``; see :class:`art_logits.TemperaturePGD`.
        loss: ``"cross_entropy"``, ``"margin"``, ``"dlr"``, ``"probability_margin"``, or a callable
            ``(logits (N, C), labels (N,)) -> (N,)``.
        stop_on_success: a sample leaves as soon as it succeeds. Faster; adversarial training and transfer
            want the strongest example instead, the default.
        keep: ``"best"`` returns the best iterate of each sample, ``"last"`` the last.
        seed: of all that is random. Absent, each call draws one integer from numpy's global generator.
        precision: of a torch network's gradients: ``"float32"``, bit by bit those of the network;
            ``"bfloat16"``, also with batch norms folded; or ``"auto"``, the faster one by a short probe.
            Success is float32's in any case.

    Raises:
        EstimatorError: an estimator without loss gradients (a ``TypeError``).
        TypeError: an estimator that can't be attacked, with the reason; an argument of the wrong type.
        ValueError: an argument out of range; a flag that is not a bool; ``summary_writer`` with
            ``num_random_init > 1``.
    """

    attack_params: ClassVar[list[str]] = [
        *EvasionAttack.attack_params,
        "norm",
        "eps",
        "eps_step",
        "decay",
        "max_iter",
        "targeted",
        "num_random_init",
        "batch_size",
        "random_eps",
        "summary_writer",
        "verbose",
        "temperature",
        "loss",
        "stop_on_success",
        "keep",
        "seed",
        "precision",
    ]
    _estimator_requirements = (BaseEstimator, LossGradientsMixin)

    def __init__(
        self,
        estimator: Any,
        norm: float | str = np.inf,
        eps: float | Array = 0.3,
        eps_step: float | Array = 0.1,
        decay: float | None = None,
        max_iter: int = 100,
        targeted: bool = False,
        num_random_init: int = 0,
        batch_size: int = 32,
        random_eps: bool = False,
        summary_writer: bool | str | SummaryWriter = False,
        verbose: bool = True,
        temperature: float | str | list[float] | tuple[float, ...] | Temperature = "gap",
        loss: str | Loss = "cross_entropy",
        stop_on_success: bool = False,
        keep: Literal["best", "last"] = "best",
        seed: int | None = None,
        precision: Precision = "float32",
    ) -> None:
        # The writer is made once all is checked: making one creates a folder.
        super().__init__(estimator=estimator, summary_writer=False)
        check(estimator)
        parameters = {
            "norm": norm,
            "eps": eps,
            "eps_step": eps_step,
            "decay": decay,
            "max_iter": max_iter,
            "targeted": targeted,
            "num_random_init": num_random_init,
            "batch_size": batch_size,
            "random_eps": random_eps,
            "summary_writer": summary_writer,
            "verbose": verbose,
            "temperature": temperature,
            "loss": loss,
            "stop_on_success": stop_on_success,
            "keep": keep,
            "seed": seed,
            "precision": precision,
        }
        _check(parameters)
        self._adopt(parameters)

    def set_params(self, **kwargs: Any) -> None:
        """Change parameters; nothing changes unless all are valid together.

        Args:
            **kwargs: any of the constructor's arguments but ``estimator``.

        Raises:
            TypeError: as the constructor.
            ValueError: an unknown parameter, or as the constructor.
        """
        for name in kwargs:
            if name not in self.attack_params:
                known = _checks.nearest(name, self.attack_params)
                raise ValueError(f'The attribute "{name}" cannot be set for this attack{known}.')
        _check({**self._parameters(), **kwargs})
        self._adopt(kwargs)

    def generate(self, x: Array, y: Array | None = None, **kwargs: Any) -> Array:
        """Attack ``x``.

        Args:
            x: ``(N, ...)``, numbers within the estimator's ``clip_values``; they are cast to float32.
                uint8 is refused unless ``clip_values`` span 0 to 255, and so is what lies outside them by
                more than rounding (ART clips it at the end).
            y: labels, or targets if ``targeted``: class indices ``(N,)`` or ``(N, 1)``, or one-hot
                ``(N, C)`` (of probability labels the largest counts). Absent, the estimator's predictions
                on ``x`` are used, unless ``targeted``.
            **kwargs: ``mask``, bool or floats >= 0 that broadcast to ``x``: where it is 0, ``x`` stays as
                it is. Other keywords are ignored, as ART's attacks do.

        Returns:
            Adversarial examples ``(N, ...)``, float32, a new array.

        Raises:
            TypeError: ``x`` or ``y`` of the wrong type, or as the constructor.
            ValueError: values outside ``clip_values``, a ``mask`` of the wrong type, shapes that do not
                match, labels out of range, no ``y`` for a targeted attack.
        """
        self._check_params()
        inputs = _within(as_inputs(np.asarray(x), self.estimator.clip_values), self._bounds("cpu"))
        if not len(inputs):
            return inputs.numpy()
        moving = _moving(kwargs.get("mask"), inputs)
        with untouched(self.estimator):
            model, device = logits_of(self.estimator)
            goals = torch.from_numpy(self._goals(inputs, y))
            attack = _config(self._parameters(), self._seed(), inputs, self._bounds(device))
            adversarial = self._attack(attack, (model, device), inputs, goals, moving)
        if self.summary_writer is not None:
            self.summary_writer.reset()
        return adversarial

    def _attack(
        self,
        attack: core.TemperaturePGD,
        target: tuple[Model, torch.device],
        inputs: Tensor,
        goals: Tensor,
        mask: Tensor | None,
    ) -> Array:
        """Run the attack on part after part of the inputs; a summary writer sees one batch at a time."""
        model, device = target
        size = self.batch_size * (1 if self.summary_writer is not None else _BATCHES_AT_ONCE)
        result, hits = np.empty(inputs.shape, dtype=ART_NUMPY_DTYPE), 0
        reported = logger.isEnabledFor(logging.INFO)
        total = len(inputs) * attack.steps * attack.restarts
        with tqdm(
            total=total, desc="Temperature-PGD", unit="step", leave=False, disable=not self.verbose
        ) as bar:
            for part, begin in enumerate(range(0, len(inputs), size)):
                rows = slice(begin, begin + size)
                labels = goals[rows].to(device)
                found = replace(attack, eps=_cut(attack.eps, rows), step_size=_cut(attack.step_size, rows))(
                    model,
                    inputs[rows].to(device),
                    labels,
                    targets=labels if attack.targeted else None,
                    mask=None if mask is None else mask[rows],
                    batch_size=self.batch_size,
                    observer=self._observer(bar, part, inputs[rows], goals[rows]),
                    judge=reported,
                )
                result[rows] = found.adv_inputs.cpu().numpy()
                hits += int(found.success.sum())
        if reported:
            logger.info("Success rate of attack: %.2f%%", 100 * hits / len(inputs))
        return result

    def _observer(
        self, bar: tqdm[Any], batch: int, inputs: Tensor, goals: Tensor
    ) -> Callable[[core.Step], None] | None:
        """What follows the steps of one part: the progress bar, and the summary writer if there is one."""
        if self.summary_writer is None:
            return (lambda step: _advance(bar, step)) if self.verbose else None
        # A sample that has left stays in the log as it was: ART's writer counts rows.
        points, gradients = inputs.numpy().copy(), np.zeros(inputs.shape, dtype=ART_NUMPY_DTYPE)

        def log(step: core.Step) -> None:
            _advance(bar, step)
            rows = step.rows.cpu().numpy()
            points[rows], gradients[rows] = step.inputs.cpu().numpy(), step.gradient.cpu().numpy()
            self.summary_writer.update(
                batch_id=batch,
                global_step=int(step.step[0]),
                grad=gradients.copy(),
                patch=None,
                estimator=self.estimator,
                x=points.copy(),
                y=to_categorical(goals.numpy(), self.estimator.nb_classes),
                targeted=self.targeted,
            )

        return log

    def _goals(self, inputs: Tensor, y: Array | None) -> Array:
        """Class indices ``(N,)``: the labels, the targets, or the estimator's predictions."""
        if y is None:
            if self.targeted:
                raise ValueError("y must be given, one target class per input, because targeted=True")
            y = predicted_classes(self.estimator, inputs.numpy(), self.batch_size)
        return class_indices(np.asarray(y), self.estimator.nb_classes)

    def _bounds(self, device: torch.device | str) -> Bounds:
        if self.estimator.clip_values is None:
            return Bounds(-np.inf, np.inf)
        lower, upper = self.estimator.clip_values
        if np.ndim(lower) == 0:
            return Bounds(float(lower), float(upper))
        lower, upper = (
            torch.as_tensor(limit, dtype=torch.float32, device=device) for limit in (lower, upper)
        )
        return Bounds(lower, upper)

    def _seed(self) -> int:
        return drawn_seed() if self.seed is None else int(self.seed)

    def _parameters(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.attack_params}
        return {**values, "summary_writer": self._summary_writer_arg}

    def _adopt(self, parameters: dict[str, Any]) -> None:
        for name, value in parameters.items():
            if name == "summary_writer":
                self._summary_writer_arg, self._summary_writer = value, _writer(value)
            else:
                setattr(self, name, value)

    def _check_params(self) -> None:
        _check(self._parameters())


def _check(parameters: Mapping[str, Any]) -> None:
    """Validate all parameters; those that the core knows under the same name are left to the core."""
    for name in _FLAGS:
        _flag(name, parameters[name])
    for name, least in (("max_iter", 0), ("num_random_init", 0), ("batch_size", 1)):
        _checks.integer(name, parameters[name], at_least=least)
    if parameters["decay"] is not None:
        _checks.number("decay", parameters["decay"], at_least=0.0)
    writer = parameters["summary_writer"]
    if not isinstance(writer, bool | str | SummaryWriter):
        raise ValueError(f"summary_writer must be a bool, a folder or a SummaryWriter, got {writer!r}")
    if writer and parameters["num_random_init"] > 1:
        raise ValueError("summary_writer does not work with num_random_init > 1: use 0 or 1, or False")
    _check_sizes(parameters["eps"], parameters["eps_step"])
    _config(parameters, 0 if parameters["seed"] is None else parameters["seed"])


def _flag(name: str, value: object) -> None:
    try:
        _checks.boolean(name, value)
    except TypeError as error:
        raise ValueError(str(error)) from None  # ART's type for it


def _check_sizes(eps: object, eps_step: object) -> None:
    if isinstance(eps, np.ndarray) and isinstance(eps_step, np.ndarray):
        _checks.epsilons(_tensor(eps))
        if not (eps_step > 0).all():
            raise ValueError("eps_step must be > 0 in every element")
        if eps.shape != eps_step.shape:
            raise ValueError(
                f"eps and eps_step must have the same shape, got {eps.shape} and {eps_step.shape}"
            )
    elif isinstance(eps, np.ndarray) or isinstance(eps_step, np.ndarray):
        raise TypeError("eps and eps_step must be both numbers or both arrays, got one of each")
    elif not (_checks.is_number(eps) and _checks.is_number(eps_step)):
        raise TypeError(
            f"eps and eps_step must be numbers or numpy arrays, got {type(eps).__name__} and "
            f"{type(eps_step).__name__}"
        )
    else:
        _checks.number("eps", eps, at_least=0.0)
        _checks.number("eps_step", eps_step, above=0.0)


def _norm(norm: object) -> Norm:
    try:
        return _NORMS[norm]
    except (KeyError, TypeError):
        raise ValueError(
            f'norm must be np.inf, "inf", 1 or 2 (no other p is supported), got {norm!r}'
        ) from None


def _config(
    parameters: Mapping[str, Any],
    seed: int,
    inputs: Tensor | None = None,
    bounds: Bounds | None = None,
) -> core.TemperaturePGD:
    """The core attack of these parameters, for these inputs; without any, to have its arguments checked."""
    eps, step_size = parameters["eps"], parameters["eps_step"]
    if parameters["random_eps"]:
        factor = _random_factor(seed, np.shape(eps))
        eps, step_size = eps * factor, step_size * factor
    if inputs is not None:
        eps, step_size = _fitted("eps", eps, inputs), _fitted("eps_step", step_size, inputs)
    elif isinstance(eps, np.ndarray):
        eps, step_size = _tensor(eps), _tensor(step_size)
    # Without a step ART takes no random start either: the attack is the identity.
    inits = parameters["num_random_init"] if parameters["max_iter"] else 0
    return core.TemperaturePGD(
        eps=eps,
        norm=_norm(parameters["norm"]),
        steps=parameters["max_iter"],
        step_size=step_size,
        temperature=parameters["temperature"],
        loss=parameters["loss"],
        restarts=max(1, inits),
        random_start=inits > 0,
        targeted=parameters["targeted"],
        bounds=(0.0, 1.0) if bounds is None else bounds,
        stop_on_success=parameters["stop_on_success"],
        keep=parameters["keep"],
        seed=seed,
        momentum=parameters["decay"] or 0.0,
        precision=parameters["precision"],
        fuse=parameters["precision"] != "float32",
    )


def _random_factor(seed: int, shape: tuple[int, ...]) -> Any:
    """Half of a standard normal variable truncated to [0, 2], in (0, 1]."""
    factor = truncnorm.rvs(0, 2, size=shape or None, random_state=np.random.default_rng(seed)) / 2
    return np.maximum(factor, np.finfo(np.float32).tiny)


def _fitted(name: str, value: float | Array, inputs: Tensor) -> float | Tensor:
    """``value`` as the core takes it: a number, one per sample, or (in Linf) one per element."""
    if not isinstance(value, np.ndarray):
        return float(value)
    try:
        full = np.broadcast_to(value, inputs.shape)
    except ValueError:
        raise ValueError(
            f"{name} must broadcast to the shape of x, {tuple(inputs.shape)}, got {value.shape}"
        ) from None
    flat = full.reshape(len(full), -1)
    return _tensor(flat[:, 0] if bool((flat == flat[:, :1]).all()) else full)


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=ART_NUMPY_DTYPE))


def _cut(value: Any, rows: slice) -> Any:
    return value[rows] if isinstance(value, Tensor) else value


def drawn_seed() -> int:
    """An integer of numpy's global generator: ART's users seed it, and expect another one at each call."""
    return int(np.random.randint(2**31 - 1))  # noqa: NPY002


def as_inputs(x: Array, clip_values: Any) -> Tensor:
    """``x`` as a new float32 tensor.

    Raises:
        TypeError: not numbers.
        ValueError: bytes where the estimator's ``clip_values`` span others.
    """
    if x.dtype.kind not in "biuf":
        raise TypeError(f"x must hold numbers, got {x.dtype}")
    if x.dtype == np.uint8 and not _spans_bytes(clip_values):
        raise ValueError(
            "x of type uint8 holds pixels from 0 to 255, which the estimator's clip_values do not span: "
            "scale x to the clip_values, or build the estimator with clip_values=(0, 255)"
        )
    return _tensor(x)


def _within(inputs: Tensor, bounds: Bounds) -> Tensor:
    """Inputs within the bounds, where rounding put some outside by a hair."""
    inputs = _checks.within_a_hair(inputs, bounds)
    remedy = (
        "give x as predict takes it, with the normalisation in the estimator's preprocessing=, or an "
        "estimator whose clip_values span x"
    )
    return _checks.inputs(inputs, bounds, remedy=remedy) if len(inputs) else inputs


def _moving(mask: Array | None, inputs: Tensor) -> Tensor | None:
    """Which elements move: ART's attacks move all whose weight is not zero, by a full step."""
    if mask is None:
        return None
    try:
        return _checks.mask(torch.as_tensor(mask), inputs) != 0
    except TypeError as error:
        raise ValueError(str(error)) from None  # ART's type for it


def class_indices(y: Array, classes: int) -> Array:
    """Labels in any of ART's formats as class indices ``(N,)``.

    Raises:
        TypeError: not numbers.
        ValueError: another number of columns than classes, or fractions.
    """
    if y.dtype.kind not in "biuf":
        raise TypeError(f"y must hold class indices (N,) or one-hot labels (N, C), got {y.dtype}")
    if y.ndim == 2 and y.shape[1] > 1:
        if y.shape[1] != classes:
            raise ValueError(f"y must have one column per class, {classes}, got shape {y.shape}")
        indices: Array = np.argmax(y, axis=1)
        return indices
    given = y[:, 0] if y.ndim == 2 else y
    indices = given.astype(np.int64)
    if not np.array_equal(indices, given):
        raise ValueError("y must hold class indices (N,) or one-hot labels (N, C), got fractions")
    return indices


def _spans_bytes(clip_values: Any) -> bool:
    return clip_values is not None and np.max(clip_values[0]) <= 0 and np.min(clip_values[1]) >= 255


def _writer(argument: bool | str | SummaryWriter) -> SummaryWriter | None:
    if isinstance(argument, SummaryWriter):
        return argument
    return SummaryWriterDefault(argument) if argument else None


def _advance(bar: tqdm[Any], step: core.Step) -> None:
    bar.update(len(step.rows))
