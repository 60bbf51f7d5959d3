"""Metrics for training loops: torchmetrics' classes over the pure functions of ``art_logits.functional``.

Each holds sums and counts only, so batches, processes (DDP) and :meth:`~torchmetrics.Metric.merge_state` give
what all samples at once give, and the classes work in Lightning and in a ``MetricCollection``. They take
``preds`` and ``target`` as torchmetrics does; ``preds`` are logits, never probabilities. For whole
evaluations, with intervals, see :func:`art_logits.classwise_report` and :func:`art_logits.logit_report`.

A robust sample is right under every attack given and, where ``clean_preds`` is given, without one too, which
is the definition of the reports. A class without samples is NaN and counts neither as the worst nor in a tail
(torchmetrics' own classes give it 0).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from art_logits import _checks
from art_logits._extras import require
from art_logits.functional import classwise, logits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torchmetrics import Metric
else:
    Metric = require("torchmetrics", extra="evaluate").Metric

__all__ = [
    "AttackSuccessRate",
    "ClasswiseRobustAccuracy",
    "Confidence",
    "Entropy",
    "LogitGap",
    "Margin",
    "MaxLogit",
    "RobustAccuracy",
    "RobustAccuracyDisparity",
    "TailRobustAccuracy",
    "WorstClassRobustAccuracy",
]


class _Metric(Metric):
    """What all metrics share: none has a gradient, and a batch's value needs the batch alone."""

    is_differentiable = False
    higher_is_better: bool | None = None
    full_state_update = False

    def plot(self, val: Any = None, ax: Axes | None = None) -> Any:
        """Draw a value, several in a row, or what :meth:`compute` gives, as torchmetrics' own classes do.

        Args:
            val: of a call or of ``compute``, or several; None for ``compute``.
            ax: where to draw; a new figure if None.

        Returns:
            The figure and its axes.
        """
        return self._plot(val, ax)


class ClasswiseRobustAccuracy(_Metric):
    """Robust accuracy of every class.

    Args:
        num_classes: ``C``, at least 2.
        **kwargs: of :class:`torchmetrics.Metric`.

    Attributes:
        hits: ``(C,)`` int64, robust samples so far.
        support: ``(C,)`` int64, all samples so far.

    >>> metric = ClasswiseRobustAccuracy(num_classes=3)
    >>> target = torch.tensor([0, 0, 1])
    >>> adversarial = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    >>> metric(adversarial, target)
    tensor([0.5000, 1.0000,    nan])
    """

    higher_is_better = True
    plot_lower_bound, plot_upper_bound = 0.0, 1.0
    hits: Tensor
    support: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = _checks.integer("num_classes", num_classes, at_least=2)
        for name in ("hits", "support"):
            zeros = torch.zeros(num_classes, dtype=torch.int64)
            self.add_state(name, default=zeros, dist_reduce_fx="sum")

    def update(
        self, preds: Tensor | Sequence[Tensor], target: Tensor, clean_preds: Tensor | None = None
    ) -> None:
        """Add a batch.

        Args:
            preds: logits ``(N, C)`` or classes ``(N,)`` under attack; or several, one per attack.
            target: labels ``(N,)``, integers in ``[0, C)``.
            clean_preds: logits or classes without an attack; None counts every sample as right there.

        Raises:
            TypeError: labels or classes that are not integers.
            ValueError: shapes that do not fit, or labels outside ``[0, C)``.
        """
        robust = _robust(preds, target, clean_preds, self.num_classes)
        hits, support = classwise.class_count_tensors(robust, target, self.num_classes)
        self.hits += hits
        self.support += support

    def compute(self) -> Tensor:
        """``(C,)`` in ``[0, 1]``; NaN for a class without samples."""
        return self.hits / self.support


class WorstClassRobustAccuracy(ClasswiseRobustAccuracy):
    """Robust accuracy of the worst class that has samples; arguments and updates as for all classes.

    >>> metric = WorstClassRobustAccuracy(num_classes=3)
    >>> metric(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
    tensor(0.5000)
    """

    def compute(self) -> Tensor:
        """Scalar in ``[0, 1]``; NaN without samples."""
        accuracy = super().compute()
        # All NaN without samples, and then it does not matter which one is taken.
        return accuracy[classwise.worst_class(accuracy.cpu()) or 0]


class TailRobustAccuracy(ClasswiseRobustAccuracy):
    """Mean robust accuracy of the worst classes, 10 % of them by default; updates as for all classes.

    Args:
        num_classes: ``C``, at least 2.
        share: part of the classes that have samples, in ``(0, 1]``, rounded up to whole classes.
        **kwargs: of :class:`torchmetrics.Metric`.

    >>> metric = TailRobustAccuracy(num_classes=4, share=0.5)
    >>> metric(torch.tensor([0, 1, 1, 2, 3]), torch.tensor([0, 0, 1, 2, 2]))
    tensor(0.5000)
    """

    def __init__(self, num_classes: int, share: float = 0.1, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        self.share = _checks.number("share", share, above=0.0)
        if share > 1:
            raise ValueError(f"share must be a part of the classes, at most 1, got {share!r}")

    def compute(self) -> Tensor:
        """Scalar in ``[0, 1]``; NaN without samples."""
        return _scalar(classwise.tail(super().compute().cpu(), self.share), self.hits)


class RobustAccuracyDisparity(ClasswiseRobustAccuracy):
    """Robust accuracy of the best class minus that of the worst; arguments and updates as for all classes.

    >>> metric = RobustAccuracyDisparity(num_classes=3)
    >>> metric(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
    tensor(0.5000)
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """Scalar in ``[0, 1]``; NaN without samples."""
        return _scalar(classwise.disparity(super().compute().cpu()), self.hits)


class RobustAccuracy(_Metric):
    """Robust accuracy over all samples.

    Args:
        **kwargs: of :class:`torchmetrics.Metric`.

    >>> metric = RobustAccuracy()
    >>> metric(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 1]))
    tensor(0.7500)
    """

    higher_is_better = True
    plot_lower_bound, plot_upper_bound = 0.0, 1.0
    hits: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("hits", "total"):
            self.add_state(name, default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self, preds: Tensor | Sequence[Tensor], target: Tensor, clean_preds: Tensor | None = None
    ) -> None:
        """Add a batch; see :meth:`ClasswiseRobustAccuracy.update`."""
        self.hits += _robust(preds, target, clean_preds).sum()
        self.total += target.numel()

    def compute(self) -> Tensor:
        """Scalar in ``[0, 1]``; NaN without samples."""
        return self.hits / self.total


class AttackSuccessRate(_Metric):
    """Share of the samples that are right without an attack which the attacks turn.

    Args:
        **kwargs: of :class:`torchmetrics.Metric`.

    >>> metric = AttackSuccessRate()
    >>> target = torch.tensor([0, 0, 1, 1])
    >>> metric(torch.tensor([0, 1, 0, 0]), target, clean_preds=torch.tensor([0, 0, 1, 0]))
    tensor(0.6667)
    """

    higher_is_better = False
    plot_lower_bound, plot_upper_bound = 0.0, 1.0
    turned: Tensor
    right: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("turned", "right"):
            self.add_state(name, default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor | Sequence[Tensor], target: Tensor, clean_preds: Tensor) -> None:
        """Add a batch; see :meth:`ClasswiseRobustAccuracy.update`."""
        right = _right("clean_preds", clean_preds, target)
        self.turned += (right & ~_robust(preds, target, None)).sum()
        self.right += right.sum()

    def compute(self) -> Tensor:
        """Scalar in ``[0, 1]``; NaN where no sample was right."""
        return self.turned / self.right


class _LogitMean(_Metric):
    """Mean of a quantity of the logits, over all samples or by class.

    Args:
        num_classes: ``C`` for one mean per class; None for one over all samples.
        **kwargs: of :class:`torchmetrics.Metric`.
    """

    total: Tensor
    count: Tensor

    def __init__(self, num_classes: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_classes is not None:
            _checks.integer("num_classes", num_classes, at_least=2)
        self.num_classes = num_classes
        shape = () if num_classes is None else (num_classes,)
        self.add_state("total", default=torch.zeros(shape), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            preds: logits ``(N, C)``, clean or under attack; not probabilities.
            target: labels ``(N,)``; needed for means by class (and for the margin).

        Raises:
            TypeError: ``preds`` are not floating-point logits, or labels not integers.
            ValueError: shapes that do not fit, labels that are missing or outside ``[0, C)``.
        """
        z = _logits("preds", preds, self.num_classes)
        labels = None if target is None else _target(target, len(z), z.shape[1])
        values = self._values(z, labels).to(self.total)
        if self.num_classes is None:
            self.total += values.sum()
            self.count += len(values)
        else:
            classes = _given(labels, "means by class")
            self.total.index_add_(0, classes, values)
            self.count += torch.bincount(classes, minlength=self.num_classes)

    @abstractmethod
    def _values(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """The quantity of every sample, ``(N,)``."""

    def compute(self) -> Tensor:
        """Scalar, or ``(C,)`` by class; NaN without samples."""
        return self.total / self.count


class MaxLogit(_LogitMean):
    """Mean of the largest logit.

    Args:
        num_classes: ``C`` for one mean per class; None for one over all samples.
        **kwargs: of :class:`torchmetrics.Metric`.

    >>> MaxLogit()(torch.tensor([[1.0, 3.0], [2.0, 0.0]]))
    tensor(2.5000)
    """

    def _values(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return logits.max_logit(z)


class LogitGap(_LogitMean):
    """Mean gap between the two largest logits.

    Args:
        num_classes: ``C`` for one mean per class; None for one over all samples.
        **kwargs: of :class:`torchmetrics.Metric`.

    >>> LogitGap(num_classes=3)(torch.tensor([[1.0, 3.0, 2.0], [2.0, 0.0, 0.0]]), torch.tensor([1, 0]))
    tensor([2., 1., nan])
    """

    def _values(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return logits.logit_gap(z)


class Margin(_LogitMean):
    """Mean of the label's logit minus the best other one; needs labels.

    Args:
        num_classes: ``C`` for one mean per class; None for one over all samples.
        **kwargs: of :class:`torchmetrics.Metric`.

    >>> Margin()(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([2]))
    tensor(-1.)
    """

    higher_is_better = True

    def _values(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return logits.label_margin(z, _given(labels, "the margin"))


class Confidence(_LogitMean):
    """Mean probability of the prediction.

    Args:
        num_classes: ``C`` for one mean per class; None for one over all samples.
        **kwargs: of :class:`torchmetrics.Metric`.

    >>> Confidence()(torch.zeros(2, 4))
    tensor(0.2500)
    """

    def _values(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return logits.confidence(z)


class Entropy(_LogitMean):
    """Mean entropy of the probabilities, in nats.

    Args:
        num_classes: ``C`` for one mean per class; None for one over all samples.
        **kwargs: of :class:`torchmetrics.Metric`.

    >>> Entropy()(torch.zeros(2, 2))
    tensor(0.6931)
    """

    def _values(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return logits.entropy(z)


def _robust(
    preds: Tensor | Sequence[Tensor],
    target: Tensor,
    clean_preds: Tensor | None,
    num_classes: int | None = None,
) -> Tensor:
    """Which samples are right under every attack and, where it is given, without one, ``(N,)`` bool."""
    attacked = [preds] if isinstance(preds, Tensor) else list(preds)
    if not attacked:
        raise ValueError("preds: expected those of at least one attack, got an empty sequence")
    right = [_right("preds", each, target, num_classes) for each in attacked]
    if clean_preds is not None:
        right.append(_right("clean_preds", clean_preds, target, num_classes))
    return torch.stack(right).all(dim=0)


def _right(name: str, preds: Tensor, target: Tensor, num_classes: int | None = None) -> Tensor:
    """Where classes, or the largest of logits, are the labels, ``(N,)`` bool."""
    if preds.ndim == 2:
        preds = _logits(name, preds, num_classes).argmax(dim=1)
    classes = _checks.labels(name, preds, len(preds), preds.device)
    return classes == _checks.labels("target", target, len(preds), preds.device)


def _logits(name: str, value: Tensor, num_classes: int | None) -> Tensor:
    checked = _checks.logits(value, len(value))
    if num_classes is not None and checked.shape[1] != num_classes:
        raise ValueError(f"{name}: expected logits of {num_classes} classes, got {checked.shape[1]}")
    return checked.detach()


def _target(value: Tensor, count: int, classes: int) -> Tensor:
    labels = _checks.labels("target", value, count, value.device)
    return labels if count == 0 else _checks.in_range("target", labels, classes)


def _given(labels: Tensor | None, what: str) -> Tensor:
    if labels is None:
        raise ValueError(f"target: expected labels (N,) for {what}, got None")
    return labels


def _scalar(value: float, like: Tensor) -> Tensor:
    return torch.tensor(value, device=like.device)
