"""Model against reference, and which logits give a fall away: pure functions of the records.

All return pandas DataFrames. Conditions are those of :func:`~art_logits.analysis.logit_report`: ``clean``,
and ``adversarial`` under the strongest attack on each sample (of each model its own).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from art_logits import _checks
from art_logits._extras import require
from art_logits.analysis import LogitReport, Samples, logit_report
from art_logits.functional.classwise import ratio
from art_logits.functional.ranks import RankCorrelation, auroc_interval, rank_correlation
from art_logits.records import ModelName, Records

if TYPE_CHECKING:
    import pandas as pd
    from scipy import stats
    from sklearn import metrics
else:
    pd = require("pandas", extra="evaluate")
    stats = require("scipy.stats", extra="evaluate")
    metrics = require("sklearn.metrics", extra="evaluate")

__all__ = [
    "class_statistics",
    "confidence_correlation",
    "fall_intervals",
    "fall_predictors",
    "reference_differences",
    "wrong_class_agreement",
]

Floats = NDArray[np.float64]

_RESAMPLES = 1000


def reference_differences(
    records: Records,
    *,
    level: float = 0.95,
    seed: int = 0,
    by_class: bool = False,
    logit: LogitReport | None = None,
) -> pd.DataFrame:
    """Mean difference between model and reference on the same samples, with a paired bootstrap interval.

    Args:
        records: of an evaluation with a reference.
        level: coverage, in ``(0, 1)``.
        seed: of the 1000 resamples; the interval is their percentiles.
        by_class: every class for itself instead of all samples together.
        logit: of :func:`~art_logits.analysis.logit_report` of these records, where it is at hand already.

    Returns:
        Columns ``condition, quantity, difference, low, high``: model minus reference, in the quantity's unit;
        before them ``class`` and ``n`` by class. The ends are NaN for a single sample, and all three for a
        class without samples.

    Raises:
        ValueError: there is no reference, or ``level`` is outside ``(0, 1)``.
    """
    _checks.level(level)
    samples = _with_reference(records, logit).samples
    if not by_class:
        return _differences(samples, slice(None), level, seed)
    labels, frames = records.column("label"), []
    for index, name in enumerate(records.class_names):
        rows = np.flatnonzero(labels == index)
        frame = _differences(samples, rows, level, seed)
        frame.insert(0, "class", name)
        frame.insert(1, "n", len(rows))
        frames.append(frame)
    together: pd.DataFrame = pd.concat(frames, ignore_index=True)
    return together


def _differences(samples: Samples, rows: slice | NDArray[np.int64], level: float, seed: int) -> pd.DataFrame:
    """Differences between the models on some samples; all quantities of a condition are resampled at once."""
    frames = []
    for condition, quantities in samples["model"].items():
        if len(next(iter(quantities.values()))):
            reference = samples["reference"][condition]
            change = np.stack(
                [
                    values[rows].astype(np.float64) - reference[name][rows]
                    for name, values in quantities.items()
                ]
            )
            low, high = _mean_intervals(change, level, seed)
            mean = ratio(change.sum(axis=1), change.shape[1])
            columns = {"condition": condition, "quantity": list(quantities)}
            frames.append(pd.DataFrame({**columns, "difference": mean, "low": low, "high": high}))
    frame: pd.DataFrame = pd.concat(frames, ignore_index=True)
    return frame


def confidence_correlation(records: Records, *, logit: LogitReport | None = None) -> pd.DataFrame:
    """Are model and reference confident on the same samples?

    Args:
        records: of an evaluation with a reference.
        logit: of :func:`~art_logits.analysis.logit_report` of these records, where it is at hand already.

    Returns:
        One row per condition that has samples: ``condition``, then the fields of
        :class:`~art_logits.functional.ranks.RankCorrelation` between the two models' confidences.

    Raises:
        ValueError: there is no reference.
    """
    samples = _with_reference(records, logit).samples
    rows = [
        {
            "condition": condition,
            **rank_correlation(
                quantities["confidence"], samples["reference"][condition]["confidence"]
            )._asdict(),
        }
        for condition, quantities in samples["model"].items()
        if len(quantities["confidence"])
    ]
    frame: pd.DataFrame = pd.DataFrame(rows, columns=["condition", *RankCorrelation._fields])
    return frame


def wrong_class_agreement(
    records: Records, *, bins: int = 4, logit: LogitReport | None = None
) -> pd.DataFrame:
    """Do model and reference order the wrong classes of a clean sample alike?

    Per sample, Spearman's rho between the two models' logits of the ``C - 1`` classes other than the label.

    Args:
        records: of an evaluation with a reference.
        bins: groups of samples of equal size by the model's confidence, from low to high.
        logit: of :func:`~art_logits.analysis.logit_report` of these records, where it is at hand already.

    Returns:
        Columns ``confidence_low, confidence_high, n, agreement``: the mean rho of all samples first, then of
        every group. ``n`` counts samples with a rho: it needs three classes, and logits that differ.

    Raises:
        ValueError: there is no reference, or ``bins`` is below 1.
    """
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, got {bins}")
    confidence = _with_reference(records, logit).samples["model"]["clean"]["confidence"]
    agreement = _agreement(records)
    groups = np.array_split(np.argsort(confidence, kind="stable"), bins)
    rows = [
        (float(confidence[each].min()), float(confidence[each].max()), *_mean(agreement[each]))
        for each in [np.arange(len(confidence)), *groups]
        if len(each)
    ]
    columns = ["confidence_low", "confidence_high", "n", "agreement"]
    frame: pd.DataFrame = pd.DataFrame(rows, columns=columns)
    return frame


def fall_predictors(
    records: Records, model: ModelName = "model", *, by_class: bool = True, logit: LogitReport | None = None
) -> pd.DataFrame:
    """Which clean logit statistic tells whether an attack will turn a sample?

    Args:
        records: of an evaluation.
        model: ``"model"`` or ``"reference"``.
        by_class: also every class for itself.
        logit: of :func:`~art_logits.analysis.logit_report` of these records, where it is at hand already.

    Returns:
        One row for all classes (an empty ``class``) and, by class, one per class: ``class``, ``n`` (samples
        that are right without an attack), ``falls`` (those of them that some attack turns), and per quantity
        of :data:`~art_logits.analysis.LOGIT_QUANTITIES` the AUROC of standing: the probability that a sample
        which withstands all attacks has the larger value than one which does not. Above 0.5 large values
        protect, below 0.5 (entropy) they give the fall away; NaN where all stand or all fall.

    Raises:
        ValueError: there is no such model.
    """
    records.prefix(model)  # refuses a model that is not there
    values = (logit or logit_report(records)).samples[model]["clean"]
    right, stands = records.correct(model), records.robust(model)
    labels = records.column("label")
    rows = [_predictor_row("", right, stands, values)]
    for index, name in enumerate(records.class_names if by_class else []):
        rows.append(_predictor_row(name, right & (labels == index), stands, values))
    frame: pd.DataFrame = pd.DataFrame(rows)
    return frame


def fall_intervals(
    records: Records, model: ModelName = "model", *, level: float = 0.95, logit: LogitReport | None = None
) -> pd.DataFrame:
    """The AUROCs of :func:`fall_predictors` over all classes, with their intervals.

    Args:
        records: of an evaluation.
        model: ``"model"`` or ``"reference"``.
        level: coverage, in ``(0, 1)``.
        logit: of :func:`~art_logits.analysis.logit_report` of these records, where it is at hand already.

    Returns:
        One row per quantity of :data:`~art_logits.analysis.LOGIT_QUANTITIES`: columns ``quantity, auroc, low,
        high`` (:func:`~art_logits.functional.ranks.auroc_interval`); NaN where all stand or all fall.

    Raises:
        ValueError: there is no such model, or ``level`` is outside ``(0, 1)``.
    """
    records.prefix(model)  # refuses a model that is not there
    values = (logit or logit_report(records)).samples[model]["clean"]
    right, stands = records.correct(model), records.robust(model)
    scores = _predictor_row("", right, stands, values)
    rows = [
        (quantity, scores[quantity], *auroc_interval(array[right], stands[right], level=level))
        for quantity, array in values.items()
    ]
    frame: pd.DataFrame = pd.DataFrame(rows, columns=["quantity", "auroc", "low", "high"])
    return frame


def class_statistics(
    records: Records, model: ModelName = "model", *, logit: LogitReport | None = None
) -> pd.DataFrame:
    """What the logits look like, class by class.

    Args:
        records: of an evaluation.
        model: ``"model"`` or ``"reference"``.
        logit: of :func:`~art_logits.analysis.logit_report` of these records, where it is at hand already.

    Returns:
        One row per condition that has samples, quantity of :data:`~art_logits.analysis.LOGIT_QUANTITIES`, and
        class: columns ``class, condition, quantity, n, mean, q05, q50, q95`` (quantiles interpolated
        linearly); NaN for a class without samples.

    Raises:
        ValueError: there is no such model.
    """
    records.prefix(model)  # refuses a model that is not there
    samples = (logit or logit_report(records)).samples[model]
    labels, names = records.column("label"), records.class_names
    frames = []
    for condition, quantities in samples.items():
        for quantity, values in quantities.items():
            if len(values):
                groups = pd.Series(values.astype(np.float64)).groupby(labels)
                columns = {
                    "n": groups.count(),
                    "mean": groups.mean(),
                    **{name: groups.quantile(q) for name, q in (("q05", 0.05), ("q50", 0.5), ("q95", 0.95))},
                }
                frame = pd.DataFrame(columns).reindex(range(len(names)))
                frame["n"] = frame["n"].fillna(0).astype(np.int64)
                head = {"class": names, "condition": condition, "quantity": quantity}
                frames.append(pd.concat([pd.DataFrame(head), frame], axis=1))
    result: pd.DataFrame = pd.concat(frames, ignore_index=True)
    return result


def _with_reference(records: Records, logit: LogitReport | None) -> LogitReport:
    records.prefix("reference")  # refuses records without one
    return logit or logit_report(records)


def _mean_intervals(values: Floats, level: float, seed: int) -> tuple[Floats, Floats]:
    """Percentile bootstrap of the mean of every row of ``(Q, N)``, with the same resamples for all rows."""
    rows, count = values.shape
    if count < 2:
        return np.full(rows, np.nan), np.full(rows, np.nan)
    # In batches: all resamples of 50,000 samples at once would take 2 GB.
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=max(1, 4_000_000 // values.size),
        axis=1,
        confidence_level=level,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return interval.low, interval.high


def _agreement(records: Records) -> Floats:
    """Spearman's rho over the wrong classes, ``(N,)``; NaN where it is not defined."""
    result = np.empty(len(records))
    blocks = records.blocks("clean_logits", "reference.clean_logits", "label")
    for rows, (first, second, labels) in blocks:
        result[rows] = _row_spearman(_wrong(first, labels), _wrong(second, labels))
    return result


def _wrong(block: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits ``(N, C)`` without the label's, ``(N, C - 1)``."""
    keep = np.arange(block.shape[1])[np.newaxis] != labels[:, np.newaxis]
    wrong: NDArray[np.float32] = block[keep].reshape(len(block), -1)
    return wrong


def _row_spearman(a: NDArray[np.float32], b: NDArray[np.float32]) -> Floats:
    """Spearman's rho of every row: Pearson's correlation of the average ranks."""
    first, second = (stats.rankdata(each, axis=1) for each in (a, b))
    if first.shape[1] < 2:
        return np.full(len(first), np.nan)
    with warnings.catch_warnings():
        # Of a row without an order, whose rho is NaN.
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        rho: Floats = stats.pearsonr(first, second, axis=1).statistic
    return rho


def _mean(values: Floats) -> tuple[int, float]:
    known = values[~np.isnan(values)]
    return len(known), float(known.mean()) if len(known) else float("nan")


def _predictor_row(
    name: str, right: NDArray[np.bool_], stands: NDArray[np.bool_], values: Any
) -> dict[str, Any]:
    outcome = stands[right]
    table = np.stack([array[right] for array in values.values()], axis=1).astype(np.float64)
    scores = _auroc(table, outcome)
    counts = {"class": name, "n": len(outcome), "falls": int((~outcome).sum())}
    return {**counts, **dict(zip(values, scores.tolist(), strict=True))}


def _auroc(values: Floats, stands: NDArray[np.bool_]) -> Floats:
    """AUROC of every column of ``(N, Q)``, ``(Q,)``; NaN where all stand or all fall."""
    if stands.all() or not stands.any():
        return np.full(values.shape[1], np.nan)
    # All columns in one call, which checks its arguments once: of 1000 classes that halves the time.
    outcomes = np.broadcast_to(stands[:, np.newaxis], values.shape)
    scores: Floats = np.atleast_1d(metrics.roc_auc_score(outcomes, values, average=None))
    return scores
