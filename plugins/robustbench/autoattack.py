"""AutoAttack (Croce & Hein, ICML 2020, arXiv 2003.01690) for the core, and for RobustBench.

The attack itself is someone else's: the module ``autoattack`` where it is installed, else ``pyautoattack``,
its twin on PyPI, through an adapter that has the constructor and the methods of ``autoattack.AutoAttack``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from art_logits import _checks
from art_logits._extras import require
from art_logits.attack import AttackResult, TemperaturePGD
from art_logits.balls import BALLS
from art_logits.counting import Counted, spread
from art_logits.functional.logits import label_margin
from art_logits.prepare import evaluating
from art_logits.types import Bounds, Model, Norm

__all__ = ["AutoAttack", "host_class"]

logger = logging.getLogger(__name__)

VERSIONS = ("standard", "plus", "rand", "custom")
ATTACKS = ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t")
#: The DLR loss looks at the three largest logits, its targeted variant at the four largest.
_CLASSES_NEEDED = {"apgd-dlr": 3, "apgd-t": 4}
_BOUNDS = Bounds(0.0, 1.0)
_HALVINGS = 30


@dataclass(frozen=True, kw_only=True)
class AutoAttack:
    """AutoAttack as an attack for :func:`art_logits.evaluate`: ``(model, inputs, labels)`` to a result.

    What it reports as broken is what AutoAttack broke, recomputed. For the samples that it leaves standing
    AutoAttack hands back the clean image, whose logits say nothing about an attack. Here they come with the
    best iterate of a :class:`~art_logits.attack.TemperaturePGD` of 20 steps in the same ball instead. Should
    that one break a sample, its perturbation is halved until the prediction is right again: the success is
    not AutoAttack's. The passes that this takes, ``20 + 2`` forward and 20 backward per such sample, are not
    among the attack's own, which ``forwards`` and ``backwards`` count.

    Samples are attacked together, and AutoAttack draws for the batch: other than with this project's own
    attack, a sample's result depends on ``batch_size`` and on its neighbours. Both belong to the config. No
    global random state is changed. With fewer than ten classes the targeted attacks take every other class
    as their target, where AutoAttack itself would fail.

    Args:
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``.
        eps: radius of the ball, in the unit of the inputs, > 0.
        version: ``"standard"`` (APGD-CE, targeted APGD, targeted FAB, Square), ``"plus"``, ``"rand"``, or
            ``"custom"``, which runs ``attacks_to_run``.
        attacks_to_run: of a custom version, from ``apgd-ce``, ``apgd-dlr``, ``apgd-t``, ``fab``, ``fab-t``
            and ``square``, each with the parameters of the standard version. Implies ``"custom"``.
        seed: of AutoAttack's random numbers, >= 0.
        batch_size: samples attacked together.
        log_path: file to which AutoAttack's progress is appended.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range, or ``attacks_to_run`` that does not fit the version.

    >>> AutoAttack(eps=8 / 255, attacks_to_run=["apgd-ce"]).version
    'custom'
    """

    norm: Norm = "Linf"
    eps: float = 8 / 255
    version: str = "standard"
    attacks_to_run: Sequence[str] | None = None
    seed: int = 0
    batch_size: int = 128
    log_path: str | Path | None = None

    #: :func:`art_logits.evaluate` hands over whole parts: the batches are made here.
    takes_parts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _checks.choice("norm", self.norm, BALLS)
        _checks.choice("version", self.version, VERSIONS)
        chosen = self._chosen()
        checked = {
            "eps": _checks.number("eps", self.eps, above=0.0),
            "seed": _checks.integer("seed", self.seed, at_least=0),
            "batch_size": _checks.integer("batch_size", self.batch_size, at_least=1),
            "attacks_to_run": chosen,
            "version": "custom" if chosen else self.version,
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def _chosen(self) -> tuple[str, ...] | None:
        if self.attacks_to_run is None:
            if self.version == "custom":
                raise ValueError(
                    f"attacks_to_run must name attacks of {', '.join(ATTACKS)} for a custom version"
                )
            return None
        if isinstance(self.attacks_to_run, str):
            raise TypeError(f"attacks_to_run must be a list of names, got the string {self.attacks_to_run!r}")
        if self.version not in ("standard", "custom"):
            raise ValueError(
                f"attacks_to_run must not be given with version {self.version!r}, which has its own"
            )
        if not self.attacks_to_run:
            raise ValueError("attacks_to_run must name at least one attack, got none")
        return tuple(_checks.choice("attacks_to_run", name, ATTACKS) for name in self.attacks_to_run)

    def config(self) -> dict[str, Any]:
        """What decides the result, as JSON can hold it: all arguments but the log file, and the package."""
        config = {key: value for key, value in asdict(self).items() if key != "log_path"}
        if self.attacks_to_run is not None:
            config["attacks_to_run"] = list(self.attacks_to_run)
        package = host_class().__module__.partition(".")[0]
        return {**config, "package": "pyautoattack" if package == "art_logits" else package}

    def __call__(
        self,
        model: Model,
        inputs: Tensor,
        labels: Tensor,
        sample_ids: Tensor | np.ndarray[Any, Any] | list[int] | None = None,
        *,
        batch_size: int | None = None,
    ) -> AttackResult:
        """Attack a batch; the model comes back exactly as it was.

        Args:
            model: maps inputs to logits ``(N, C)``. It is held in eval mode meanwhile.
            inputs: ``(N, C, H, W)``, floating point, in [0, 1]: AutoAttack knows no other bounds.
            labels: ``(N,)``, true classes.
            sample_ids: ``(N,)`` integers that key the random starts of the iterates for standing samples.
            batch_size: samples in one pass outside AutoAttack; default this attack's own ``batch_size``.

        Returns:
            The result; of its passes those that AutoAttack spent, shared evenly among the samples.

        Raises:
            TypeError: inputs, labels or the model's output are of the wrong type.
            ValueError: they have the wrong shape or range, or there are too few classes for an attack.
        """
        inputs = _checks.inputs(inputs, _BOUNDS, remedy="undo the normalisation and put it inside the model")
        labels = _checks.labels("labels", labels, len(inputs), inputs.device)
        size = self.batch_size if batch_size is None else batch_size
        with torch.inference_mode(False), evaluating(model), _global_state_kept(inputs.device):
            clean = _logits(model, inputs, size)
            _checks.in_range("labels", labels, clean.shape[1])
            counted = Counted(model)
            points = self._points(counted, inputs, labels, clean.shape[1])
            standing = (_logits(model, points, size).argmax(dim=1) == labels).nonzero().squeeze(1)
            if len(standing):
                ids = None if sample_ids is None else np.asarray(torch.as_tensor(sample_ids).cpu())
                rows = None if ids is None else ids[standing.cpu().numpy()]
                points[standing] = self._iterates(model, inputs[standing], labels[standing], rows, size)
            return _result(points, _logits(model, points, size), clean, labels, counted)

    def _points(self, model: Counted, inputs: Tensor, labels: Tensor, classes: int) -> Tensor:
        """What AutoAttack makes of the inputs: for a sample that it does not break, the clean one."""
        dtype = inputs.dtype

        def predict(x: Tensor) -> Tensor:
            if x.requires_grad:
                # AutoAttack views its gradients, which a channels_last model does not lay out for that.
                x = x.view_as(x)
                x.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
            return model(x.to(dtype))  # type: ignore[no-any-return]

        # AutoAttack computes in float32, whatever the model.
        version = "standard" if self.attacks_to_run else self.version
        adversary = host_class()(
            predict,
            norm=self.norm,
            eps=self.eps,
            seed=self.seed,
            verbose=False,
            version=version,
            device=inputs.device,
            log_path=self.log_path,
        )
        if self.attacks_to_run:
            adversary.attacks_to_run = list(self.attacks_to_run)
        _check_classes(adversary.attacks_to_run, classes)
        for attack in (adversary.apgd_targeted, adversary.fab):
            attack.n_target_classes = min(attack.n_target_classes, classes - 1)
        floats = inputs.float().contiguous()
        found = adversary.run_standard_evaluation(floats, labels, bs=self.batch_size)
        moved = (found != floats).flatten(1).any(dim=1)
        points = inputs.clone()
        points[moved] = found[moved].detach().to(dtype)
        return points

    def _iterates(
        self, model: Model, inputs: Tensor, labels: Tensor, ids: np.ndarray[Any, Any] | None, size: int
    ) -> Tensor:
        """Points of the ball, as bad for the model as Temperature-PGD finds them, that it gets right."""
        options: dict[str, Any] = {"eps": self.eps, "norm": self.norm, "seed": self.seed}
        attack = TemperaturePGD(**options, stop_on_success=False, precision="float32")
        points = attack(model, inputs, labels, ids, batch_size=size).adv_inputs
        for _ in range(_HALVINGS):
            broken = _logits(model, points, size).argmax(dim=1) != labels
            if not bool(broken.any()):
                break
            points[broken] = (inputs[broken] + points[broken]) / 2
        return points


def _check_classes(attacks: Sequence[str], classes: int) -> None:
    for attack in attacks:
        needed = _CLASSES_NEEDED.get(attack, 2)
        if classes < needed:
            raise ValueError(
                f"attacks_to_run must not hold {attack!r} for a model of {classes} classes: its loss needs "
                f"{needed}; choose from apgd-ce, fab, fab-t and square"
            )


def _logits(model: Model, inputs: Tensor, size: int) -> Tensor:
    with torch.no_grad():
        return torch.cat([_checks.logits(model(part), len(part)) for part in torch.split(inputs, size)])


def _result(points: Tensor, logits: Tensor, clean: Tensor, labels: Tensor, counted: Counted) -> AttackResult:
    count, device = len(labels), labels.device
    right = clean.argmax(dim=1) == labels
    result = AttackResult(
        adv_inputs=points,
        logits=logits,
        success=logits.argmax(dim=1) != labels,
        margin=-label_margin(logits, labels),
        restart=torch.where(right, 0, -1),
        forwards=spread(counted.forwards, count).to(device),
        backwards=spread(counted.backwards, count).to(device),
    )
    result.zero_gradients = torch.zeros(count, dtype=torch.int64, device=device)
    return result


@contextmanager
def _global_state_kept(device: torch.device) -> Iterator[None]:
    """AutoAttack seeds torch's generators, and ends the trace of a debugger or of a coverage run."""
    trace = sys.gettrace()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            sys.settrace(trace)


# ----------------------------------------------------------------------------------------------------------
# The host


def is_installed(module: str) -> bool:
    """Whether a top-level module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def host_class() -> Any:
    """``autoattack.AutoAttack`` where it is installed, else a class with its interface over pyautoattack.

    Raises:
        ImportError: neither is installed.
    """
    if is_installed("autoattack"):
        return importlib.import_module("autoattack").AutoAttack
    return _adapter()


@functools.cache
def _adapter() -> Any:
    base: Any = require("pyautoattack", extra="robustbench").AutoAttack

    class PyAutoAttack(base):  # type: ignore[misc]
        """pyautoattack's AutoAttack behind the interface of ``autoattack.AutoAttack``."""

        def __init__(
            self,
            model: Any,
            norm: str = "Linf",
            eps: float = 0.3,
            seed: int | None = None,
            verbose: bool = True,
            attacks_to_run: Sequence[str] = (),
            version: str = "standard",
            is_tf_model: bool = False,
            device: str | torch.device = "cuda",
            log_path: str | Path | None = None,
        ) -> None:
            if is_tf_model:
                raise ValueError("is_tf_model must be False: pyautoattack attacks PyTorch models only")
            options = {"norm": norm, "eps": eps, "seed": seed, "version": version, "device": device}
            super().__init__(model, attacks=list(attacks_to_run) or None, **options)
            if self.attacks_to_run is None:
                self.attacks_to_run: list[str] = []
            self.verbose, self.log_path = verbose, log_path

        def set_version(self, version: str = "standard") -> None:
            """Set the attacks and parameters of a version."""
            self._set_version(version)

        def run_standard_evaluation(
            self,
            x_orig: Tensor,
            y_orig: Tensor,
            bs: int = 250,
            return_labels: bool = False,
            state_path: Path | None = None,
        ) -> Any:
            """Adversarial inputs, the clean ones for robust samples, and on request predictions."""
            if state_path is not None:
                raise ValueError(
                    "state_path must be None: pyautoattack cannot read its states again; "
                    "art_logits.plugins.robustbench.benchmark(..., aa_state_path=FOLDER) resumes"
                )
            with _logged_to(self.logger, self.log_path):
                found = super().run_standard_evaluation(x_orig, y_orig, batch_size=bs)
            return found if return_labels else found[0]

        def run_standard_evaluation_individual(
            self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
        ) -> dict[str, Any]:
            """The same by each attack on its own, by their names."""
            attacks, found = self.attacks_to_run, {}
            try:
                for attack in attacks:
                    self.attacks_to_run = [attack]
                    found[attack] = self.run_standard_evaluation(x_orig, y_orig, bs, return_labels)
            finally:
                self.attacks_to_run = attacks
            return found

    return PyAutoAttack


@contextmanager
def _logged_to(log: logging.Logger, path: str | Path | None) -> Iterator[None]:
    """Append a logger's messages to a file, whatever its level is meanwhile."""
    if path is None:
        yield
        return
    with ExitStack() as stack:
        handler = logging.FileHandler(path, encoding="utf-8")
        stack.callback(handler.close)
        stack.callback(log.setLevel, log.level)
        stack.callback(log.removeHandler, handler)
        log.addHandler(handler)
        log.setLevel(logging.DEBUG)
        yield
