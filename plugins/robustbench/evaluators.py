"""Class-wise and logit reports of a model, or of a model of the zoo, in two lines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from art_logits import _checks
from art_logits.analysis import ClasswiseReport, LogitReport, classwise_report, logit_report
from art_logits.balls import BALLS
from art_logits.evaluation import evaluate
from art_logits.records import Records
from art_logits.types import Model

from .images import DEFAULT_EPS
from .model_zoo import dataset_name, load_model, threat_model_name

__all__ = ["ClasswiseEvaluator", "LogitEvaluator"]

Report = TypeVar("Report")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class _Evaluator(ABC, Generic[Report]):
    """A model, how it is attacked, and the report that is made of it."""

    def __init__(
        self,
        model: Model,
        *,
        norm: str = "Linf",
        eps: float = 8 / 255,
        attacks: Any = None,
        class_names: Sequence[str] | None = None,
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        reference: Model | None = None,
    ) -> None:
        if not callable(model):
            raise TypeError(f"model must be callable, images to logits, got {type(model).__name__}")
        self.model, self.reference = model, reference
        self.norm = _checks.choice("norm", norm, BALLS)
        self.eps = _checks.number("eps", eps, at_least=0.0)
        self.attacks = "temperature-pgd" if attacks is None else attacks
        self.class_names = class_names
        if batch_size is not None:
            batch_size = _checks.integer("batch_size", batch_size, at_least=1)
        self.batch_size = batch_size
        self.device = device
        self.model_name: str | None = None
        self._records: Records | None = None

    @classmethod
    def from_zoo(
        cls,
        model_name: str,
        *,
        dataset: Any = "cifar10",
        threat_model: Any = "Linf",
        model_dir: str | Path = "./models",
        **options: Any,
    ) -> Self:
        """An evaluator of a model of RobustBench's zoo, in the norm and with the radius of its threat model.

        Args:
            model_name: its name in the zoo.
            dataset: ``"cifar10"``, ``"cifar100"`` or ``"imagenet"``.
            threat_model: ``"Linf"``, ``"L2"`` or ``"corruptions"`` (attacked in Linf).
            model_dir: folder of the weights.
            **options: of the class; default ``norm`` and ``eps`` are RobustBench's for the threat model. A
                ``reference`` may be the name of a second model of the same place in the zoo.

        Returns:
            The evaluator.

        Raises:
            ValueError: as :func:`~art_logits.plugins.robustbench.load_model` raises.
            FileNotFoundError: likewise.
            OSError: likewise.
        """
        place = {"dataset": dataset, "threat_model": threat_model, "model_dir": model_dir}
        data, threat = dataset_name(dataset), threat_model_name(threat_model)
        norm = options.setdefault("norm", threat if threat in DEFAULT_EPS[data] else "Linf")
        if norm in DEFAULT_EPS[data]:
            options.setdefault("eps", DEFAULT_EPS[data][norm])
        elif "eps" not in options:
            raise ValueError(f"eps must be given for the norm {norm}: RobustBench has no radius for it")
        if isinstance(options.get("reference"), str):
            options["reference"] = load_model(options["reference"], **place)
        evaluator = cls(load_model(model_name, **place), **options)
        evaluator.model_name = model_name
        if data == "cifar10" and evaluator.class_names is None:
            evaluator.class_names = _CIFAR10
        return evaluator

    @property
    def records(self) -> Records:
        """One row per sample of the last evaluation.

        Raises:
            ValueError: there was none.
        """
        if self._records is None:
            raise ValueError("records: nothing was evaluated yet; call evaluate(inputs, labels) first")
        return self._records

    def evaluate(
        self,
        inputs: Tensor | np.ndarray[Any, Any],
        labels: Tensor | np.ndarray[Any, Any] | Sequence[int],
        *,
        out: str | Path | None = None,
        resume: bool = False,
    ) -> Report:
        """Attack the model, and the reference if there is one, on labelled images.

        Args:
            inputs: ``(N, C, H, W)`` in [0, 1].
            labels: ``(N,)`` integers.
            out: folder for the records; default none.
            resume: continue the same evaluation in ``out``.

        Returns:
            The report; the records behind it are in :attr:`records`.

        Raises:
            ValueError: as :func:`art_logits.evaluate` raises.
            TypeError: likewise.
            FileExistsError: likewise.
        """
        self._records = evaluate(
            self.model,
            (inputs, labels if isinstance(labels, Tensor) else np.asarray(labels)),
            attacks=self.attacks,
            reference=self.reference,
            norm=self.norm,
            eps=self.eps,
            class_names=self.class_names,
            batch_size=self.batch_size,
            device=self.device,
            out=out,
            resume=resume,
            model_name=self.model_name,
        )
        return self._report(self._records)

    @abstractmethod
    def _report(self, records: Records) -> Report:
        """What is made of the records."""


class ClasswiseEvaluator(_Evaluator[ClasswiseReport]):
    """Which classes of a model fail.

    Args:
        model: images in [0, 1] to logits ``(N, C)``.
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``.
        eps: radius, in the unit of the images, >= 0.
        attacks: what :func:`art_logits.evaluate` takes; default Temperature-PGD. AutoAttack is
            ``AutoAttack(norm=norm, eps=eps)``, at many times the cost.
        class_names: ``C`` names; default ``"0"`` to ``"C-1"``.
        batch_size: samples in one pass of the model; default what suits the device and its memory.
        device: where to run; default where the model is.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range.

    >>> from art_logits.data import load_data
    >>> from art_logits.models import load_model
    >>> evaluator = ClasswiseEvaluator(load_model("digits-at"), eps=0.1)
    >>> report = evaluator.evaluate(*load_data("digits").subset(20).batch(slice(None)))
    >>> report.support.tolist()
    [2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    """

    def __init__(
        self,
        model: Model,
        *,
        norm: str = "Linf",
        eps: float = 8 / 255,
        attacks: Any = None,
        class_names: Sequence[str] | None = None,
        batch_size: int | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(
            model,
            norm=norm,
            eps=eps,
            attacks=attacks,
            class_names=class_names,
            batch_size=batch_size,
            device=device,
        )

    def _report(self, records: Records) -> ClasswiseReport:
        return classwise_report(records)


class LogitEvaluator(_Evaluator[LogitReport]):
    """What the logits of a model look like, clean and under attack, beside those of a reference.

    Args:
        model: images in [0, 1] to logits ``(N, C)``.
        reference: a second model of the same classes, such as the standard one, attacked in its own right.
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``.
        eps: radius, in the unit of the images, >= 0.
        attacks: what :func:`art_logits.evaluate` takes; default Temperature-PGD.
        batch_size: samples in one pass of the model; default what suits the device and its memory.
        device: where to run; default where the model is.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        model: Model,
        *,
        reference: Model | None = None,
        norm: str = "Linf",
        eps: float = 8 / 255,
        attacks: Any = None,
        batch_size: int | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(
            model,
            reference=reference,
            norm=norm,
            eps=eps,
            attacks=attacks,
            batch_size=batch_size,
            device=device,
        )

    def _report(self, records: Records) -> LogitReport:
        return logit_report(records)
