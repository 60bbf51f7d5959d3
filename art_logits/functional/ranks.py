"""Ranks with intervals: do two measurements order alike, and does one of them tell two groups apart?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from art_logits import _checks
from art_logits._extras import require

if TYPE_CHECKING:
    from scipy import special, stats
else:
    special = require("scipy.special", extra="evaluate")
    stats = require("scipy.stats", extra="evaluate")


class RankCorrelation(NamedTuple):
    """Two rank correlations of the same pairs, with their intervals.

    Attributes:
        n: pairs without a NaN.
        spearman: Spearman's rho, in ``[-1, 1]``; NaN for fewer than two pairs or a constant side.
        spearman_low: lower end of its interval; NaN for fewer than four pairs.
        spearman_high: upper end.
        kendall: Kendall's tau-b, in ``[-1, 1]``; NaN as rho.
        kendall_low: lower end of its interval; NaN for fewer than five pairs.
        kendall_high: upper end.
    """

    n: int
    spearman: float
    spearman_low: float
    spearman_high: float
    kendall: float
    kendall_low: float
    kendall_high: float


def rank_correlation(a: ArrayLike, b: ArrayLike, *, level: float = 0.95) -> RankCorrelation:
    """Spearman's rho and Kendall's tau-b, with intervals on Fisher's scale.

    The intervals are ``tanh(atanh(r) -+ z s)`` with ``s^2 = (1 + rho^2 / 2) / (n - 3)`` for rho (Bonett and
    Wright 2000) and ``s^2 = 0.437 / (n - 4)`` for tau (Fieller, Hartley and Pearson 1957). A correlation of
    exactly 1 or -1 has an interval without width.

    Args:
        a: ``(K,)``, such as the robust accuracy of each class under one attack.
        b: ``(K,)``, the same under another; a pair with a NaN on either side does not count.
        level: coverage, in ``(0, 1)``.

    Returns:
        Both correlations and their intervals.

    Raises:
        ValueError: the lengths differ, or ``level`` is outside ``(0, 1)``.

    >>> rank_correlation([1, 2, 3], [10, 30, 20])[:2]
    (3, 0.5)
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.ndim != 1 or left.shape != right.shape:
        raise ValueError(
            f"b: expected one value per value of a, of shape {left.shape}, got shape {right.shape}"
        )
    _checks.level(level)
    both = ~(np.isnan(left) | np.isnan(right))
    left, right = left[both], right[both]
    n = len(left)
    if n < 2 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return RankCorrelation(n, *[float("nan")] * 6)
    # Rounding can leave 1 + 2e-16, whose atanh is NaN.
    rho = float(np.clip(stats.spearmanr(left, right).statistic, -1, 1))
    tau = float(np.clip(stats.kendalltau(left, right).statistic, -1, 1))
    z = float(stats.norm.ppf((1 + level) / 2))
    return RankCorrelation(
        n, rho, *_fisher(rho, z, 1 + rho**2 / 2, n - 3), tau, *_fisher(tau, z, 0.437, n - 4)
    )


def _fisher(r: float, z: float, variance: float, freedom: int) -> tuple[float, float]:
    if freedom <= 0:
        return float("nan"), float("nan")
    if abs(r) > 1 - 1e-12:  # exactly 1, but for rounding
        return r, r
    spread = z * np.sqrt(variance / freedom)
    return float(np.tanh(np.arctanh(r) - spread)), float(np.tanh(np.arctanh(r) + spread))


def auroc_interval(values: ArrayLike, positive: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of an AUROC, by the variance of DeLong, DeLong and Clarke-Pearson (1988).

    With ``a`` the AUROC, the interval is ``a -+ z s`` on the scale of ``log(a / (1 - a))``, which keeps it in
    ``(0, 1)``. ``s^2`` is the sum over both groups of the variance of their placements, the shares of the
    other group that each value exceeds, divided by the size of the group.

    Args:
        values: ``(N,)``.
        positive: ``(N,)`` bool, the group whose values are expected to be the larger ones.
        level: coverage, in ``(0, 1)``.

    Returns:
        Lower and upper end; NaN where a group has fewer than two values, or where the AUROC is 0 or 1, of
        which the variance is not known.

    Raises:
        ValueError: the lengths differ, ``positive`` is not boolean, or ``level`` is outside ``(0, 1)``.

    >>> low, high = auroc_interval([1, 2, 3, 4, 5, 6], [False, False, True, False, True, True])
    >>> round(low, 3), round(high, 3)
    (0.261, 0.995)
    """
    array, group = np.asarray(values, dtype=np.float64), np.asarray(positive)
    if group.dtype != np.bool_ or group.shape != array.shape or array.ndim != 1:
        raise ValueError(
            f"positive: expected one boolean per value, {array.shape}, got {group.dtype} of {group.shape}"
        )
    _checks.level(level)
    above, below = array[group], array[~group]
    if min(len(above), len(below)) < 2:
        return float("nan"), float("nan")
    ranks = stats.rankdata(array)
    placements = (
        (ranks[group] - stats.rankdata(above)) / len(below),
        1 - (ranks[~group] - stats.rankdata(below)) / len(above),
    )
    area = float(placements[0].mean())
    variance = sum(float(each.var(ddof=1)) / len(each) for each in placements)
    if variance == 0 or not 0 < area < 1:
        return float("nan"), float("nan")
    centre, spread = special.logit(area), np.sqrt(variance) / (area * (1 - area))
    z = stats.norm.ppf((1 + level) / 2)
    return float(special.expit(centre - z * spread)), float(special.expit(centre + z * spread))


class Overlap(NamedTuple):
    """How much of the largest and of the smallest values two measurements share.

    Attributes:
        n: samples.
        size: samples in each part.
        top: share of the ``size`` largest values of one that are among those of the other, in ``[0, 1]``;
            ``size / n`` on average by chance.
        bottom: the same of the smallest.
        top_p: probability of so large a share or a larger one by chance (one-sided hypergeometric test).
        bottom_p: the same of the smallest.
    """

    n: int
    size: int
    top: float
    bottom: float
    top_p: float
    bottom_p: float


def extreme_overlap(a: ArrayLike, b: ArrayLike, *, share: float = 0.1) -> Overlap:
    """Do two measurements agree on the samples with the largest and with the smallest values?

    Args:
        a: ``(N,)``, such as the confidences of one model; of equal values the first count as smaller.
        b: ``(N,)``, the same of another.
        share: part of the samples at either end, in ``(0, 0.5]``; rounded down to whole samples, at least
            one.

    Returns:
        The shared parts and their p values.

    Raises:
        ValueError: the lengths differ, there are fewer than two samples or NaN among them, or ``share`` is
            outside ``(0, 0.5]``.

    >>> extreme_overlap([1, 2, 3, 4], [1, 3, 2, 4], share=0.5)[:4]
    (4, 2, 0.5, 0.5)
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.ndim != 1 or left.shape != right.shape or len(left) < 2:
        raise ValueError(
            f"b: expected two values or more, one per value of a, got {right.shape} for {left.shape}"
        )
    if np.isnan(left).any() or np.isnan(right).any():
        raise ValueError("a, b: expected values without NaN, got some")
    if not 0 < share <= 0.5:
        raise ValueError(f"share: expected a part of the samples above 0 and at most 0.5, got {share}")
    n = len(left)
    size = max(1, int(share * n))
    first, second = (np.argsort(values, kind="stable") for values in (left, right))
    bottom = len(np.intersect1d(first[:size], second[:size]))
    top = len(np.intersect1d(first[-size:], second[-size:]))
    chance = [float(stats.hypergeom.sf(shared - 1, n, size, size)) for shared in (top, bottom)]
    return Overlap(n, size, top / size, bottom / size, *chance)
