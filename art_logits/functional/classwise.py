"""Outcomes class by class: accuracy, intervals, worst class, disparity, confusion, paired tests.

Every function is pure and takes arrays or tensors. A class without samples has no accuracy: it is NaN, with
its support of 0 beside it, and neither the worst class nor the disparity counts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from art_logits import _checks
from art_logits._extras import require

if TYPE_CHECKING:
    from scipy import optimize, stats
    from torchmetrics.functional import classification
else:
    optimize = require("scipy.optimize", extra="evaluate")
    stats = require("scipy.stats", extra="evaluate")
    classification = require("torchmetrics.functional.classification", extra="evaluate")

Floats = NDArray[np.float64]


class ClassCounts(NamedTuple):
    """Per class, how many samples there are and how many of them count as right.

    Attributes:
        hits: ``(C,)`` int64, right ones.
        support: ``(C,)`` int64, all.
    """

    hits: NDArray[np.int64]
    support: NDArray[np.int64]


def class_counts(hits: ArrayLike | Tensor, labels: ArrayLike | Tensor, num_classes: int) -> ClassCounts:
    """Count the samples of every class and those among them that count as right.

    Args:
        hits: ``(N,)`` bool, whether a sample counts as right (correct, or robust).
        labels: ``(N,)``, integers in ``[0, C)``.
        num_classes: ``C``, at least 2.

    Returns:
        Both counts per class.

    Raises:
        ValueError: ``hits`` is not boolean, the lengths differ, a label is outside ``[0, C)``, or ``C < 2``.

    >>> class_counts([True, False, True], [0, 0, 2], num_classes=3)
    ClassCounts(hits=array([1, 0, 1]), support=array([2, 0, 1]))
    """
    hit, total = class_count_tensors(_tensor(hits), _labels("labels", labels, num_classes), num_classes)
    return ClassCounts(hits=hit.numpy(), support=total.numpy())


def class_count_tensors(hits: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """:func:`class_counts` of tensors, on their device.

    Args:
        hits: ``(N,)`` bool, whether a sample counts as right.
        labels: ``(N,)``, integers in ``[0, C)``.
        num_classes: ``C``, at least 2.

    Returns:
        Right samples and all samples per class, ``(C,)`` int64 each.

    Raises:
        ValueError: as :func:`class_counts`.

    >>> class_count_tensors(torch.tensor([True, False, True]), torch.tensor([0, 0, 2]), num_classes=3)
    (tensor([1, 0, 1]), tensor([2, 0, 1]))
    """
    target = _label_tensor("labels", labels, num_classes)
    if hits.dtype != torch.bool or hits.shape != target.shape:
        raise ValueError(
            f"hits: expected {len(target)} booleans, one per label, "
            f"got {hits.dtype} of shape {tuple(hits.shape)}"
        )
    if not len(target):
        # torchmetrics cannot reshape nothing.
        return target.new_zeros(num_classes), target.new_zeros(num_classes)
    # A miss counts as "another class"; which one does not matter to the hits of the label's class.
    predictions = torch.where(hits, target, (target + 1) % num_classes)
    scores = classification.multiclass_stat_scores(
        predictions, target, num_classes, average=None, validate_args=False
    )
    return scores[:, 0], scores[:, 4]


def class_accuracy(hits: ArrayLike | Tensor, labels: ArrayLike | Tensor, num_classes: int) -> Floats:
    """Share of right samples in every class.

    Args:
        hits: ``(N,)`` bool, whether a sample counts as right (correct, or robust).
        labels: ``(N,)``, integers in ``[0, C)``.
        num_classes: ``C``, at least 2.

    Returns:
        ``(C,)`` in ``[0, 1]``; NaN for a class without samples.

    Raises:
        ValueError: as :func:`class_counts`.

    >>> class_accuracy([True, False, True], [0, 0, 2], num_classes=3)
    array([0.5, nan, 1. ])
    """
    return ratio(*class_counts(hits, labels, num_classes))


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> Floats:
    """Elementwise quotient, NaN (without a warning) where the denominator is 0.

    Args:
        numerator: ``(...)``.
        denominator: ``(...)``, of a shape that broadcasts.

    Returns:
        ``(...)`` float64.

    >>> ratio([1, 0], [2, 0])
    array([0.5, nan])
    """
    top, bottom = np.broadcast_arrays(
        np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    )
    quotient: Floats = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)
    return quotient


def wilson_interval(hits: ArrayLike, support: ArrayLike, *, level: float = 0.95) -> tuple[Floats, Floats]:
    """Wilson score interval of a proportion (Wilson 1927), elementwise, by scipy.

    Unlike the normal approximation it stays in ``[0, 1]`` and has a width at 0 and 1.

    Args:
        hits: ``(...)``, whole numbers from 0 to ``support``.
        support: ``(...)``, numbers of samples.
        level: coverage, in ``(0, 1)``.

    Returns:
        Lower and upper ends, ``(...)`` each, in ``[0, 1]``; NaN where the support is 0.

    Raises:
        ValueError: ``level`` is outside ``(0, 1)``, or ``hits`` outside ``[0, support]`` or not whole.

    >>> low, high = wilson_interval(5, 10)
    >>> round(float(low), 3), round(float(high), 3)
    (0.237, 0.763)
    """
    count, total = np.broadcast_arrays(*_check_counts(hits, support, level))
    # scipy takes one proportion at a time, with a test that costs 0.3 ms; of many classes few differ.
    pairs, where = np.unique(np.stack([count.ravel(), total.ravel()], axis=1), axis=0, return_inverse=True)
    ends = np.array([_wilson(int(k), int(n), level) for k, n in pairs]).reshape(-1, 2)[where.ravel()]
    return ends[:, 0].reshape(count.shape), ends[:, 1].reshape(count.shape)


def _wilson(count: int, total: int, level: float) -> tuple[float, float]:
    if not total:
        return float("nan"), float("nan")
    interval = stats.binomtest(count, total).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def worst_class(values: ArrayLike) -> int | None:
    """Index of the smallest value, the first of several.

    Args:
        values: ``(C,)``, such as robust accuracies; NaN for a class without samples.

    Returns:
        The index, or None where all are NaN.

    >>> worst_class([0.5, float("nan"), 0.2, 0.2])
    2
    """
    array = np.asarray(values, dtype=np.float64)
    return None if np.isnan(array).all() else int(np.nanargmin(array))


def disparity(values: ArrayLike) -> float:
    """Best minus worst value.

    Args:
        values: ``(C,)``, such as robust accuracies; NaN for a class without samples.

    Returns:
        The difference, never negative; NaN where all are NaN.

    >>> disparity([0.5, float("nan"), 0.25])
    0.25
    """
    array = np.asarray(values, dtype=np.float64)
    return float("nan") if np.isnan(array).all() else float(np.nanmax(array) - np.nanmin(array))


def tail(values: ArrayLike, share: float) -> float:
    """Mean of the lowest values: the worst 10 % of the classes, say.

    Args:
        values: ``(C,)``, such as robust accuracies; NaN for a class without samples, which does not count.
        share: part of the classes, in ``(0, 1]``; rounded up to whole classes, so at least one.

    Returns:
        The mean; NaN where all are NaN.

    Raises:
        ValueError: ``share`` is outside ``(0, 1]``.

    >>> tail([0.9, 0.1, 0.5, float("nan"), 0.3], 0.5)
    0.2
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: expected a part of the classes above 0 and at most 1, got {share}")
    present = np.sort(_present(values))
    if not len(present):
        return float("nan")
    # Rounded first: 0.07 * 100 is a little more than 7.
    return float(present[: int(np.ceil(round(share * len(present), 9)))].mean())


def nsd(values: ArrayLike) -> float:
    """Normalized standard deviation over the classes: that of the population, divided by the mean.

    Args:
        values: ``(C,)``, not negative, such as robust accuracies; NaN for a class without samples.

    Returns:
        ``std / mean``, 0 where all classes are equal; NaN where the mean is 0 or all are NaN.

    >>> nsd([0.25, 0.75, float("nan")])
    0.5
    """
    present = _present(values)
    return float(stats.variation(present)) if present.any() else float("nan")


def gini(values: ArrayLike) -> float:
    """Gini coefficient over the classes, ``sum_ij |v_i - v_j| / (2 K^2 mean)`` of ``K`` values.

    Args:
        values: ``(C,)``, not negative, such as robust accuracies; NaN for a class without samples.

    Returns:
        From 0 (all classes equal) to ``1 - 1 / K`` (one class has everything); NaN where the mean is 0 or
        all are NaN.

    Raises:
        ValueError: a value is negative.

    >>> gini([0.0, 0.0, 1.0, 0.0, float("nan")])
    0.75
    """
    present = np.sort(_present(values))
    if np.any(present < 0):
        raise ValueError(f"values: expected none below 0, got {present[0]}")
    if not present.any():
        return float("nan")
    # Sorted, value i (from 1) is added i - 1 times and subtracted K - i times in the sum over pairs.
    count = len(present)
    factors = 2 * np.arange(1, count + 1) - count - 1
    return float((factors * present).sum() / (count * present.sum()))


def worst_class_interval(hits: ArrayLike, support: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the smallest of several proportions, such as the worst class's accuracy.

    The smallest *observed* proportion lies below the smallest true one on average, because the unluckiest of
    several classes is chosen: an interval of that class alone does not know it, and percentiles of a
    bootstrapped minimum repeat the bias instead of removing it. Here the bootstrap is inverted. With ``m``
    the observed minimum, and classes resampled as independent binomials of their observed proportions, all
    raised to at least ``t``, the upper end is the ``t`` at which a resampled minimum of ``m`` or less has
    the probability ``(1 - level) / 2``; the minimum's distribution is a product over classes, so nothing is
    drawn. The lower end is the smallest of the classes' Clopper-Pearson bounds, which needs no correction:
    it holds whenever that of the one truly worst class does. With a single class both ends are those of the
    Clopper-Pearson interval.

    Args:
        hits: ``(C,)``, from 0 to ``support``.
        support: ``(C,)``, numbers of samples; classes without any do not count.
        level: coverage, in ``(0, 1)``.

    Returns:
        Lower and upper end, in ``[0, 1]``; NaN where no class has samples.

    Raises:
        ValueError: ``level`` is outside ``(0, 1)``, or ``hits`` outside ``[0, support]``.

    >>> low, high = worst_class_interval([5, 9, 0], [10, 10, 0])
    >>> round(low, 3), round(high, 3)
    (0.187, 0.816)
    """
    count, total = _check_counts(hits, support, level)
    count, total = count[total > 0], total[total > 0]
    if not len(total):
        return float("nan"), float("nan")
    shares, rest = count / total, (1 - level) / 2
    lowest = float(shares.min())
    low = 0.0 if lowest == 0 else float(stats.beta.ppf(rest, count, total - count + 1).min())
    return low, _highest_minimum(shares, total, rest)


def _highest_minimum(shares: Floats, total: Floats, rest: float) -> float:
    """The ``t`` at which classes of at least ``t`` reach the observed minimum with probability ``rest``."""
    lowest = float(shares.min())
    # The most hits of each class that do not lie above the minimum, in spite of rounding.
    most = np.floor(lowest * total + 1e-9)

    def excess(t: float) -> float:
        return 1 - float(stats.binom.sf(most, total, np.maximum(shares, t)).prod()) - rest

    # At t = lowest the worst class alone is not above it with a probability of a half or more.
    return 1.0 if lowest == 1 else float(optimize.brentq(excess, lowest, 1.0, xtol=1e-9))


def _present(values: ArrayLike) -> Floats:
    """The values of classes that have samples."""
    array = np.asarray(values, dtype=np.float64)
    return array[~np.isnan(array)]


def _check_counts(hits: ArrayLike, support: ArrayLike, level: float) -> tuple[Floats, Floats]:
    _checks.level(level)
    count, total = np.asarray(hits, dtype=np.float64), np.asarray(support, dtype=np.float64)
    if np.any(count != np.floor(count)) or np.any(total != np.floor(total)):
        raise ValueError("hits, support: expected whole numbers of samples, got fractions")
    if np.any(count < 0) or np.any(count > total):
        raise ValueError("hits: expected counts from 0 to support, got some outside")
    return count, total


def row_shares(matrix: ArrayLike) -> Floats:
    """A matrix of counts with every row divided by its sum.

    Args:
        matrix: ``(C, C)``, such as that of :func:`confusion`.

    Returns:
        ``(C, C)``; rows sum to 1, those of a class without samples are NaN.

    >>> row_shares([[1, 3], [0, 0]])
    array([[0.25, 0.75],
           [ nan,  nan]])
    """
    counts = np.asarray(matrix, dtype=np.float64)
    return ratio(counts, counts.sum(axis=1, keepdims=True))


def confusion(
    sources: ArrayLike | Tensor, predictions: ArrayLike | Tensor, num_classes: int
) -> NDArray[np.int64]:
    """Count who is taken for whom.

    Args:
        sources: ``(N,)``, integers in ``[0, C)``: the labels, or the clean predictions.
        predictions: ``(N,)``, integers in ``[0, C)``: the predictions under the attack.
        num_classes: ``C``, at least 2.

    Returns:
        ``(C, C)``: row source, column prediction.

    Raises:
        ValueError: the lengths differ, an index is outside ``[0, C)``, or ``C < 2``.

    >>> confusion([0, 0, 1], [0, 1, 1], num_classes=2)
    array([[1, 1],
           [0, 1]])
    """
    rows = _labels("sources", sources, num_classes)
    columns = _labels("predictions", predictions, num_classes)
    if rows.shape != columns.shape:
        raise ValueError(f"predictions: expected {len(rows)}, one per source, got {len(columns)}")
    matrix: NDArray[np.int64] = classification.multiclass_confusion_matrix(
        columns, rows, num_classes, validate_args=False
    ).numpy()
    return matrix


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact McNemar test: are two models right equally often, on the same samples?

    Args:
        only_a: samples that only the first gets right.
        only_b: samples that only the second gets right.

    Returns:
        The p value, in ``(0, 1]``; 1 where they never disagree.

    >>> mcnemar(0, 5)
    0.0625
    """
    disagreements = only_a + only_b
    if disagreements == 0:
        return 1.0
    return float(stats.binomtest(only_a, disagreements, 0.5).pvalue)


def paired_difference_interval(
    only_a: ArrayLike, only_b: ArrayLike, support: ArrayLike, *, level: float = 0.95
) -> tuple[Floats, Floats]:
    """Interval of the difference of two proportions of the same samples, elementwise.

    Wald's interval with one sample added to each kind of disagreement (Bonett and Price 2012): with
    ``a = (only_a + 1) / (n + 2)`` and ``b = (only_b + 1) / (n + 2)`` its ends are
    ``b - a -+ z sqrt((a + b - (b - a)^2) / (n + 2))``. Fagerland, Lydersen and Laake (2014) recommend it for
    small and large samples; it has a width where the two never disagree, which a bootstrap has not.

    Args:
        only_a: ``(...)``, samples that only the first gets right.
        only_b: ``(...)``, samples that only the second gets right.
        support: ``(...)``, all samples, ``n``.
        level: coverage, in ``(0, 1)``.

    Returns:
        Lower and upper ends of the second proportion minus the first, ``(...)`` each, in ``[-1, 1]``; NaN
        where the support is 0.

    Raises:
        ValueError: ``level`` is outside ``(0, 1)``, a count is negative, or there are more disagreements
            than samples.

    >>> low, high = paired_difference_interval(7, 1, 21)
    >>> round(float(low), 3), round(float(high), 3)
    (-0.508, -0.013)
    """
    _checks.level(level)
    first, second, n = (np.asarray(values, dtype=np.float64) for values in (only_a, only_b, support))
    if np.any(first < 0) or np.any(second < 0) or np.any(first + second > n):
        raise ValueError("only_a, only_b: expected counts from 0 that sum to at most support, got others")
    size = np.where(n > 0, n + 2, np.nan)
    a, b = (first + 1) / size, (second + 1) / size
    spread = stats.norm.ppf((1 + level) / 2) * np.sqrt((a + b - (b - a) ** 2) / size)
    return (b - a - spread).clip(min=-1), (b - a + spread).clip(max=1)


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down correction of several tests (controls the family-wise error; Holm 1979).

    Args:
        p_values: ``(K,)`` in ``[0, 1]``; NaN for a test that was not made, which does not count.

    Returns:
        ``(K,)`` adjusted p values in ``[0, 1]``, NaN where they were.

    >>> holm([0.01, 0.04, float("nan")])
    array([0.02, 0.04,  nan])
    """
    array = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(array, kind="stable")[: int((~np.isnan(array)).sum())]
    factors = np.arange(len(order), 0, -1)
    adjusted = np.full(array.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(array[order] * factors), 1.0)
    return adjusted


def _tensor(values: ArrayLike | Tensor) -> Tensor:
    # A copy, because arrays read from records are read-only, which torch does not know.
    return values.detach().cpu() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def _labels(name: str, values: ArrayLike | Tensor, num_classes: int) -> Tensor:
    """Integers in ``[0, C)`` as ``(N,)`` int64, on the CPU."""
    return _label_tensor(name, _tensor(values), num_classes)


def _label_tensor(name: str, tensor: Tensor, num_classes: int) -> Tensor:
    """Integers in ``[0, C)`` as ``(N,)`` int64."""
    if num_classes < 2:
        raise ValueError(f"num_classes: expected at least 2, got {num_classes}")
    if tensor.numel() == 0:
        return torch.empty(0, dtype=torch.int64, device=tensor.device)
    whole: Any = not tensor.is_floating_point() and tensor.dtype != torch.bool
    if not whole or tensor.ndim != 1:
        raise ValueError(
            f"{name}: expected integers of shape (N,), got {tensor.dtype} of {tuple(tensor.shape)}"
        )
    if tensor.min() < 0 or tensor.max() >= num_classes:
        raise ValueError(
            f"{name}: expected integers in [0, {num_classes}), got {int(tensor.min())} to {int(tensor.max())}"
        )
    return tensor.long()
