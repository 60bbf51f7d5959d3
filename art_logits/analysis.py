"""What the records say: pure functions of :class:`~art_logits.records.Records`.

Definitions used throughout:

- The *robust accuracy* under an attack is the share of samples that are right without it and withstand it;
  the robust accuracy as such is that under every attack. Both are shares of all samples.
- An attack's *success rate* is the share of the samples that are right without it which it turns.
- The *strongest* attack on a sample is the one that leaves it the smallest label margin (of several, the
  first); *adversarial* logits are those under it.
- The *adversarial prediction* of a sample is that under the attack that turns it (of several, the one that
  leaves it the smallest margin); of a sample that is wrong without an attack, its clean prediction. So the
  diagonal of the class confusion is the robust accuracy.
- Values are fractions. A class without samples has NaN for every one of them, and a support of 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from art_logits import _checks
from art_logits._extras import require
from art_logits._provenance import name_of
from art_logits.diagnostics import find_warnings
from art_logits.functional import classwise, logits
from art_logits.functional.groups import class_groups
from art_logits.functional.ranks import RankCorrelation, rank_correlation
from art_logits.records import ModelName, Records
from art_logits.tables import Tabular

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
else:
    pd = require("pandas", extra="evaluate")

__all__ = [
    "LOGIT_QUANTITIES",
    "AttackGain",
    "ClasswiseReport",
    "Comparison",
    "LogitReport",
    "Samples",
    "Statistics",
    "StrengthCurve",
    "WorstClass",
    "adversarial_predictions",
    "classwise_report",
    "compare",
    "logit_report",
    "strongest_attack",
    "summarize",
]

Floats = NDArray[np.float64]

LOGIT_QUANTITIES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "max_logit": lambda z, y: logits.max_logit(z),
        "logit_gap": lambda z, y: logits.logit_gap(z),
        "margin": logits.label_margin,
        "confidence": lambda z, y: logits.confidence(z),
        "entropy": lambda z, y: logits.entropy(z),
    }
)
"""Per-sample quantities of a logit report, each ``(N, C), (N,) -> (N,)``."""

_SUMMARY_QUANTITIES = ("max_logit", "logit_gap", "margin", "confidence")


class WorstClass(NamedTuple):
    """The class with the lowest robust accuracy under every attack; the first of several.

    Attributes:
        name: its name.
        robust_accuracy: in ``[0, 1]``.
    """

    name: str
    robust_accuracy: float


class AttackGain(NamedTuple):
    """What an attack gains over the weakest one, class by class.

    Attributes:
        attack: its name.
        baseline: the weakest attack: that with the highest robust accuracy, the first of several.
        gain: ``(C,)``, robust accuracy under the baseline minus that under the attack; NaN for a class
            without samples.
        vulnerability: rank correlation over the classes of the gain with ``1 - (a + b) / 2`` of the two
            accuracies. The mean of both, because a difference is correlated with either of its own terms
            by chance already (Oldham 1962).
    """

    attack: str
    baseline: str
    gain: Floats
    vulnerability: RankCorrelation


class StrengthCurve(NamedTuple):
    """How fast an attack turns samples.

    Attributes:
        forwards: ``(K,)`` int64, ascending from 0: forward passes that the attack has spent on a sample.
        standing: ``(K,)``, share of all samples that are right and not turned after so many passes; from the
            clean accuracy down to the robust accuracy. Where an attack takes all steps on every sample, all
            of them fall at its end.
    """

    forwards: NDArray[np.int64]
    standing: Floats


@dataclass(frozen=True, eq=False)
class ClasswiseReport(Tabular):
    """Accuracy of one model class by class; arrays are ``(C,)``, fractions, NaN for a class without samples.

    Attributes:
        class_names: ``C`` names.
        support: samples per class.
        clean: accuracy without an attack.
        attacks: robust accuracy under each attack.
        robust: robust accuracy under every attack.
        robust_low: lower end of its 95 % Wilson interval.
        robust_high: upper end.
        success_rates: per attack, the share of the right samples that it turns; NaN where none is right.
        confusion: ``(C, C)`` int64, samples by label (row) and adversarial prediction (column).
        worst_interval: 95 % interval of the worst class's robust accuracy, which knows that it is a minimum
            (:func:`~art_logits.functional.classwise.worst_class_interval`).
        clean_accuracy: over all samples.
        robust_accuracy: over all samples, under every attack.
        robust_interval: its 95 % Wilson interval.
        attack_accuracies: robust accuracy under each attack, over all samples.
        strength: robust accuracy under each attack against the passes that it has spent.
        reference: the same for the reference model on the same samples, where there is one.
    """

    class_names: tuple[str, ...]
    support: NDArray[np.int64]
    clean: Floats
    attacks: Mapping[str, Floats]
    robust: Floats
    robust_low: Floats
    robust_high: Floats
    success_rates: Mapping[str, Floats]
    confusion: NDArray[np.int64]
    worst_interval: tuple[float, float]
    clean_accuracy: float
    robust_accuracy: float
    robust_interval: tuple[float, float]
    attack_accuracies: Mapping[str, float]
    strength: Mapping[str, StrengthCurve]
    reference: ClasswiseReport | None = None

    @property
    def worst_class(self) -> WorstClass:
        """The class with the lowest robust accuracy under every attack; the first of several."""
        index = self.worst_index
        return WorstClass(self.class_names[index], float(self.robust[index]))

    @property
    def worst_index(self) -> int:
        """Index of :attr:`worst_class`."""
        index = classwise.worst_class(self.robust)
        # Records have at least one row, so at least one class has samples.
        return 0 if index is None else index

    @property
    def disparity(self) -> float:
        """Robust accuracy of the best class minus that of the worst."""
        return classwise.disparity(self.robust)

    @property
    def tail_10(self) -> float:
        """Mean robust accuracy of the worst 10 % of the classes, rounded up to whole classes."""
        return classwise.tail(self.robust, 0.1)

    @property
    def tail_20(self) -> float:
        """Mean robust accuracy of the worst 20 % of the classes, rounded up to whole classes."""
        return classwise.tail(self.robust, 0.2)

    @property
    def nsd(self) -> float:
        """Standard deviation of the robust accuracy over the classes, divided by its mean."""
        return classwise.nsd(self.robust)

    @property
    def gini(self) -> float:
        """Gini coefficient of the robust accuracy over the classes: 0 where all are equal."""
        return classwise.gini(self.robust)

    @property
    def transitions(self) -> Floats:
        """``(C, C)``: :attr:`confusion` as shares of each row; the diagonal is the robust accuracy."""
        return classwise.row_shares(self.confusion)

    def groups(self, max_groups: int = 20) -> NDArray[np.int64]:
        """Classes that are taken for each other; see :func:`~art_logits.functional.groups.class_groups`.

        Args:
            max_groups: the most groups, at least 2.

        Returns:
            ``(C,)`` numbers of groups from 0; -1 for a class without samples.

        Raises:
            ValueError: ``max_groups`` is below 2.
        """
        return class_groups(self.confusion, max_groups=max_groups)

    def gains(self) -> list[AttackGain]:
        """What each stronger attack gains over the weakest one, and on which classes.

        Returns:
            One entry per attack but the weakest, from weak to strong; empty for fewer than two attacks.
        """
        accuracy = self.attack_accuracies
        order = sorted(accuracy, key=lambda name: accuracy[name], reverse=True)
        return [_gain(self.attacks, order[0], name) for name in order[1:]]

    def consistency(self) -> pd.DataFrame:
        """Do the attacks agree on which classes are weak?

        Returns:
            One row per pair of attacks: ``a, b``, then the fields of
            :class:`~art_logits.functional.ranks.RankCorrelation` between their robust accuracies per class.
        """
        names = list(self.attacks)
        rows = [
            {"a": a, "b": b, **rank_correlation(self.attacks[a], self.attacks[b])._asdict()}
            for index, a in enumerate(names)
            for b in names[index + 1 :]
        ]
        frame: pd.DataFrame = pd.DataFrame(rows, columns=["a", "b", *RankCorrelation._fields])
        return frame

    def plot_classes(self, ax: Axes | None = None, **options: Any) -> Axes:
        """Bars of clean and robust accuracy per class; see :func:`art_logits.figures.plot_classes`."""
        from art_logits import figures

        return figures.plot_classes(self, ax, **options)

    def plot_transitions(self, ax: Axes | None = None, **options: Any) -> Axes:
        """Heat map of who is taken for whom; see :func:`art_logits.figures.plot_transitions`."""
        from art_logits import figures

        return figures.plot_transitions(self, ax, **options)

    def plot_strength(self, ax: Axes | None = None, **options: Any) -> Axes:
        """Robust accuracy against passes; see :func:`art_logits.figures.plot_strength`."""
        from art_logits import figures

        return figures.plot_strength(self, ax, **options)

    def to_frame(self) -> pd.DataFrame:
        """One row per class.

        Returns:
            Columns ``class, support, clean_accuracy``, per attack ``<name>.robust_accuracy`` and
            ``<name>.success_rate``, then ``robust_accuracy, robust_low, robust_high``; the same but the
            first two prefixed ``reference.`` where there is a reference.
        """
        columns: dict[str, Any] = {"class": list(self.class_names), "support": self.support}
        columns |= self._columns("")
        if self.reference is not None:
            columns |= self.reference._columns("reference.")
        frame: pd.DataFrame = pd.DataFrame(columns)
        return frame

    def _columns(self, prefix: str) -> dict[str, Any]:
        columns: dict[str, Any] = {f"{prefix}clean_accuracy": self.clean}
        for name in self.attacks:
            columns[f"{prefix}{name}.robust_accuracy"] = self.attacks[name]
            columns[f"{prefix}{name}.success_rate"] = self.success_rates[name]
        columns[f"{prefix}robust_accuracy"] = self.robust
        columns[f"{prefix}robust_low"] = self.robust_low
        columns[f"{prefix}robust_high"] = self.robust_high
        return columns


def _gain(attacks: Mapping[str, Floats], baseline: str, attack: str) -> AttackGain:
    weak, strong = attacks[baseline], attacks[attack]
    gain = weak - strong
    return AttackGain(attack, baseline, gain, rank_correlation(gain, 1 - (weak + strong) / 2))


class Statistics(NamedTuple):
    """Summary of one quantity over all samples.

    Attributes:
        mean: arithmetic mean.
        std: standard deviation of the population (divided by N).
        q05: 5 % quantile, interpolated linearly between samples.
        q50: median.
        q95: 95 % quantile.
    """

    mean: float
    std: float
    q05: float
    q50: float
    q95: float

    @classmethod
    def of(cls, values: NDArray[Any]) -> Statistics:
        """Summarize values.

        Args:
            values: ``(N,)``; all fields are NaN where ``N`` is 0.

        Returns:
            The summary, computed in float64.

        >>> Statistics.of(np.array([0.0, 1.0, 2.0]))
        Statistics(mean=1.0, std=0.816496580927726, q05=0.1, q50=1.0, q95=1.9)
        """
        if not len(values):
            return cls(*[float("nan")] * len(cls._fields))
        array = values.astype(np.float64)
        return cls(float(array.mean()), float(array.std()), *np.quantile(array, (0.05, 0.5, 0.95)).tolist())


Samples = Mapping[str, Mapping[str, Mapping[str, NDArray[np.float32]]]]


@dataclass(frozen=True, eq=False)
class LogitReport(Tabular):
    """Quantities of the logits, sample by sample and summarized.

    Attributes:
        samples: ``samples[model][condition][quantity]`` is ``(N,)``; models ``model`` and, where there is
            one, ``reference``; conditions ``clean`` and ``adversarial`` (under the strongest attack on the
            sample; without rows where no attack ran); quantities those of :data:`LOGIT_QUANTITIES`.
        labels: ``(N,)`` int64.
        class_names: ``C`` names.
    """

    samples: Samples
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]

    def statistics(self) -> dict[str, dict[str, dict[str, Statistics]]]:
        """Mean, spread and quantiles of every quantity.

        Returns:
            ``[model][condition][quantity]``, as :attr:`samples`.
        """
        return {
            model: {
                condition: {quantity: Statistics.of(values) for quantity, values in quantities.items()}
                for condition, quantities in conditions.items()
            }
            for model, conditions in self.samples.items()
        }

    def histogram(self, quantity: str, *, bins: int = 40) -> pd.DataFrame:
        """Counts of one quantity in bins that all models and conditions share.

        Args:
            quantity: one of :data:`LOGIT_QUANTITIES`.
            bins: their number, at least 1. They cover the middle 99 % of every model and condition; what
                lies outside is counted in the outermost ones.

        Returns:
            Columns ``model, condition, low, high, count``; bins in ascending order.

        Raises:
            ValueError: there is no such quantity, or ``bins`` is below 1.
        """
        _checks.choice("quantity", quantity, LOGIT_QUANTITIES)
        _checks.integer("bins", bins, at_least=1)
        series = {
            (model, condition): quantities[quantity].astype(np.float64)
            for model, conditions in self.samples.items()
            for condition, quantities in conditions.items()
            if len(quantities[quantity])
        }
        edges = _edges(list(series.values()), bins)
        frames = []
        for (model, condition), values in series.items():
            counts, _ = np.histogram(values.clip(edges[0], edges[-1]), bins=edges)
            ends = {"low": edges[:-1], "high": edges[1:], "count": counts}
            frames.append(pd.DataFrame({"model": model, "condition": condition, **ends}))
        frame: pd.DataFrame = pd.concat(frames, ignore_index=True)
        return frame

    def sample_frame(self) -> pd.DataFrame:
        """One row per sample: what a scatter plot of the quantities needs.

        Returns:
            Column ``class``, then ``<model>.<condition>.<quantity>``, in the order of the records.
        """
        columns: dict[str, Any] = {"class": np.array(self.class_names, dtype=object)[self.labels]}
        for model, conditions in self.samples.items():
            for condition, quantities in conditions.items():
                for quantity, values in quantities.items():
                    if len(values):
                        columns[f"{model}.{condition}.{quantity}"] = values
        frame: pd.DataFrame = pd.DataFrame(columns)
        return frame

    def plot_histograms(self, quantity: str = "max_logit", ax: Axes | None = None, **options: Any) -> Axes:
        """Histograms of a quantity; see :func:`art_logits.figures.plot_histograms`."""
        # Figures stand on reports: imported here, not at load time, to keep imports pointing downward.
        from art_logits import figures

        return figures.plot_histograms(self, quantity, ax, **options)

    def plot_confidence(self, condition: str = "clean", ax: Axes | None = None, **options: Any) -> Axes:
        """Model against reference, sample by sample; see :func:`art_logits.figures.plot_confidence`."""
        from art_logits import figures

        return figures.plot_confidence(self, condition, ax, **options)

    def to_frame(self) -> pd.DataFrame:
        """One row per model, condition and quantity.

        Returns:
            Columns ``model, condition, quantity, mean, std, q05, q50, q95``.
        """
        rows = [
            {"model": model, "condition": condition, "quantity": quantity, **statistics._asdict()}
            for model, conditions in self.statistics().items()
            for condition, quantities in conditions.items()
            for quantity, statistics in quantities.items()
        ]
        frame: pd.DataFrame = pd.DataFrame(rows)
        return frame


def _edges(series: list[Floats], bins: int) -> Floats:
    """Bins that all series share, wide enough for 99 % of each."""
    ends = np.array([np.quantile(values, (0.005, 0.995)) for values in series])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)


@dataclass(frozen=True, eq=False)
class Comparison(Tabular):
    """Two evaluations on the samples that they share; arrays are ``(C,)``.

    Attributes:
        class_names: ``C`` names.
        support: shared samples per class.
        robust_a: robust accuracy of the first, per class.
        robust_b: of the second.
        difference_low: lower end of the 95 % interval of :attr:`difference`, per class
            (:func:`~art_logits.functional.classwise.paired_difference_interval`).
        difference_high: upper end.
        only_a: samples that are robust in the first only, per class.
        only_b: in the second only.
        p_values: exact McNemar test per class, not corrected; NaN for a class without samples.
        p_holm: the same after Holm's correction over the classes.
        overall: the same over all classes: ``support, robust_a, robust_b, difference, difference_low,
            difference_high, only_a, only_b, p_value``.
        ranks: rank correlation of the classes' robust accuracies: are the same classes weak in both?
    """

    class_names: tuple[str, ...]
    support: NDArray[np.int64]
    robust_a: Floats
    robust_b: Floats
    difference_low: Floats
    difference_high: Floats
    only_a: NDArray[np.int64]
    only_b: NDArray[np.int64]
    p_values: Floats
    p_holm: Floats
    overall: Mapping[str, float]
    ranks: RankCorrelation

    @property
    def difference(self) -> Floats:
        """``robust_b - robust_a``: positive where the second is the more robust."""
        return self.robust_b - self.robust_a

    def plot_changes(self, ax: Axes | None = None, **options: Any) -> Axes:
        """Robust accuracy of every class in both; see :func:`art_logits.figures.plot_changes`."""
        from art_logits import figures

        return figures.plot_changes(self, ax, **options)

    def to_frame(self) -> pd.DataFrame:
        """One row per class.

        Returns:
            Columns ``class, support, robust_a, robust_b, difference, difference_low, difference_high, only_a,
            only_b, p_value, p_holm``.
        """
        frame: pd.DataFrame = pd.DataFrame(
            {
                "class": list(self.class_names),
                "support": self.support,
                "robust_a": self.robust_a,
                "robust_b": self.robust_b,
                "difference": self.difference,
                "difference_low": self.difference_low,
                "difference_high": self.difference_high,
                "only_a": self.only_a,
                "only_b": self.only_b,
                "p_value": self.p_values,
                "p_holm": self.p_holm,
            }
        )
        return frame


def classwise_report(records: Records) -> ClasswiseReport:
    """Which classes fail.

    Args:
        records: of an evaluation.

    Returns:
        Accuracies per class and overall, for the model and, where there is one, for the reference.
    """
    reference = _classwise(records, "reference", None) if records.has_reference else None
    return _classwise(records, "model", reference)


def _classwise(records: Records, model: ModelName, reference: ClasswiseReport | None) -> ClasswiseReport:
    labels, num_classes = records.column("label"), records.num_classes
    clean = classwise.class_counts(records.correct(model), labels, num_classes)
    robust = classwise.class_counts(records.robust(model), labels, num_classes)
    attacks = {
        name: classwise.class_counts(records.survives(name, model), labels, num_classes)
        for name in records.attacks
    }
    low, high = classwise.wilson_interval(robust.hits, robust.support)
    overall = classwise.wilson_interval(robust.hits.sum(), len(records))
    return ClasswiseReport(
        class_names=tuple(records.class_names),
        support=clean.support,
        clean=classwise.ratio(*clean),
        attacks={name: classwise.ratio(*counts) for name, counts in attacks.items()},
        robust=classwise.ratio(*robust),
        robust_low=low,
        robust_high=high,
        success_rates={
            name: classwise.ratio(clean.hits - counts.hits, clean.hits) for name, counts in attacks.items()
        },
        confusion=classwise.confusion(labels, adversarial_predictions(records, model), num_classes),
        worst_interval=classwise.worst_class_interval(robust.hits, robust.support),
        clean_accuracy=float(clean.hits.sum() / len(records)),
        robust_accuracy=float(robust.hits.sum() / len(records)),
        robust_interval=(float(overall[0]), float(overall[1])),
        attack_accuracies={name: float(counts.hits.sum() / len(records)) for name, counts in attacks.items()},
        strength={name: _strength(records, model, name) for name in records.attacks},
        reference=reference,
    )


def _strength(records: Records, model: ModelName, attack: str) -> StrengthCurve:
    right, survives = records.correct(model), records.survives(attack, model)
    spent = records.column(f"{records.prefix(model)}{attack}.forwards").astype(np.int64)
    fallen, counts = np.unique(spent[right & ~survives], return_counts=True)
    forwards = np.r_[0, fallen, max(1, spent.max())]
    standing = (right.sum() - np.r_[0, np.cumsum(counts), counts.sum()]) / len(records)
    return StrengthCurve(forwards, standing)


def logit_report(records: Records) -> LogitReport:
    """What the logits look like, clean and under the strongest attack on each sample.

    Args:
        records: of an evaluation.

    Returns:
        Quantities per sample, from which the report derives its statistics. Logits are read block by block;
        nothing of the size of the logits is made.
    """
    models: list[ModelName] = ["model", "reference"] if records.has_reference else ["model"]
    samples: Samples = {model: _model_samples(records, model) for model in models}
    return LogitReport(samples, records.column("label"), tuple(records.class_names))


def strongest_attack(records: Records, model: ModelName = "model") -> NDArray[np.int64]:
    """The attack that leaves each sample the smallest label margin; the first of several.

    Args:
        records: of an evaluation with at least one attack.
        model: ``"model"`` or ``"reference"``.

    Returns:
        ``(N,)``, indices into ``records.attacks``.

    Raises:
        ValueError: there is no attack, or no such model.
    """
    if not records.attacks:
        raise ValueError("records: expected at least one attack, got none; evaluate with attacks=...")
    return _strongest(_margins(records, model))


def adversarial_predictions(records: Records, model: ModelName = "model") -> NDArray[np.int64]:
    """For what each sample is taken in the end.

    Args:
        records: of an evaluation.
        model: ``"model"`` or ``"reference"``.

    Returns:
        ``(N,)``: the clean prediction where that is wrong or where there is no attack; else the prediction
        under the attack that turns the sample, of several the one that leaves it the smallest margin; else
        the label.

    Raises:
        ValueError: there is no such model.
    """
    prefix = records.prefix(model)
    clean: NDArray[np.int64] = records.column(f"{prefix}clean_prediction")
    if not records.attacks:
        return clean
    # Success first: of two margins of exactly 0 only one may have cost the prediction.
    margins = [
        np.where(records.survives(name, model), np.float32(np.inf), margin)
        for name, margin in zip(records.attacks, _margins(records, model), strict=True)
    ]
    predictions = np.stack([records.column(f"{prefix}{name}.prediction") for name in records.attacks])
    attacked = np.take_along_axis(predictions, _strongest(margins)[np.newaxis], axis=0)[0]
    return np.where(records.correct(model), attacked, clean)


def _margins(records: Records, model: ModelName) -> list[NDArray[np.float32]]:
    """The label margin of every sample under each attack, ``(N,)`` each."""
    prefix, margins = records.prefix(model), []
    for name in records.attacks:
        margin = np.empty(len(records), dtype=np.float32)
        for rows, block, labels in _blocks(records, f"{prefix}{name}.logits"):
            margin[rows] = logits.label_margin(block, labels).numpy()
        margins.append(margin)
    return margins


def _strongest(margins: list[NDArray[np.float32]]) -> NDArray[np.int64]:
    strongest: NDArray[np.int64] = np.argmin(np.stack(margins), axis=0)
    return strongest


def _model_samples(records: Records, model: ModelName) -> dict[str, dict[str, NDArray[np.float32]]]:
    prefix = records.prefix(model)
    clean = _quantities(records, f"{prefix}clean_logits")
    attacked = [_quantities(records, f"{prefix}{name}.logits") for name in records.attacks]
    if not attacked:
        empty = np.empty(0, dtype=np.float32)
        return {"clean": clean, "adversarial": dict.fromkeys(clean, empty)}
    chosen = _strongest([quantities["margin"] for quantities in attacked])[np.newaxis]
    adversarial = {
        quantity: np.take_along_axis(np.stack([each[quantity] for each in attacked]), chosen, axis=0)[0]
        for quantity in clean
    }
    return {"clean": clean, "adversarial": adversarial}


def _quantities(records: Records, column: str) -> dict[str, NDArray[np.float32]]:
    """Every quantity of :data:`LOGIT_QUANTITIES` of one logit column, ``(N,)`` each."""
    result = {name: np.empty(len(records), dtype=np.float32) for name in LOGIT_QUANTITIES}
    for rows, block, labels in _blocks(records, column):
        for name, quantity in LOGIT_QUANTITIES.items():
            result[name][rows] = quantity(block, labels).numpy()
    return result


def _blocks(records: Records, column: str) -> Iterator[tuple[slice, Tensor, Tensor]]:
    for rows, (values, labels) in records.blocks(column, "label"):
        # Copies: columns are read-only views of Arrow's memory, which torch does not know.
        yield rows, torch.from_numpy(values.copy()), torch.from_numpy(labels.copy())


def compare(a: Records, b: Records) -> Comparison:
    """Compare two evaluations sample by sample, on the samples that they share.

    Args:
        a: the first, such as the baseline.
        b: the second.

    Returns:
        Robust accuracies under every attack, their difference (``b - a``) with its interval, discordant
        samples and exact McNemar tests, per class (Holm-corrected) and overall.

    Raises:
        ValueError: the data differ (hash, classes, or labels of shared samples), no sample is shared, or a
            sample id occurs twice.
    """
    _check_same_data(a, b)
    _, rows_a, rows_b = np.intersect1d(
        a.column("sample_id"), b.column("sample_id"), assume_unique=True, return_indices=True
    )
    if not len(rows_a):
        raise ValueError("b: expected samples (sample_id) that a has too, got none; evaluate the same data")
    labels = a.column("label")[rows_a]
    if np.any(labels != b.column("label")[rows_b]):
        raise ValueError("b: expected the labels of a on shared samples, got others; evaluate the same data")
    return _comparison(a, labels, a.robust()[rows_a], b.robust()[rows_b])


def _check_same_data(a: Records, b: Records) -> None:
    hashes = [records.data_hash for records in (a, b)]
    if None not in hashes and hashes[0] != hashes[1]:
        names = f"a: {name_of(a, 'data')}, b: {name_of(b, 'data')}"
        raise ValueError(
            f"b: expected the data of a ({hashes[0]}), got {hashes[1]}; evaluate the same data ({names})"
        )
    if a.class_names != b.class_names:
        raise ValueError(
            f"b: expected the {a.num_classes} classes of a, in their order, got {b.num_classes} others"
        )
    for name, records in (("a", a), ("b", b)):
        if len(np.unique(records.column("sample_id"))) != len(records):
            raise ValueError(f"{name}: expected every sample_id once, got some twice; give unique sample_ids")


def _comparison(
    records: Records, labels: NDArray[np.int64], in_a: NDArray[np.bool_], in_b: NDArray[np.bool_]
) -> Comparison:
    counts_a, support = classwise.class_counts(in_a, labels, records.num_classes)
    counts_b, _ = classwise.class_counts(in_b, labels, records.num_classes)
    only_a, _ = classwise.class_counts(in_a & ~in_b, labels, records.num_classes)
    only_b, _ = classwise.class_counts(in_b & ~in_a, labels, records.num_classes)
    p_values = np.array(
        [
            classwise.mcnemar(int(x), int(y)) if n else np.nan
            for x, y, n in zip(only_a, only_b, support, strict=True)
        ]
    )
    total_a, total_b = int(only_a.sum()), int(only_b.sum())
    robust_a, robust_b = classwise.ratio(counts_a, support), classwise.ratio(counts_b, support)
    low, high = classwise.paired_difference_interval(only_a, only_b, support)
    total_low, total_high = classwise.paired_difference_interval(total_a, total_b, len(labels))
    return Comparison(
        class_names=tuple(records.class_names),
        support=support,
        robust_a=robust_a,
        robust_b=robust_b,
        difference_low=low,
        difference_high=high,
        only_a=only_a,
        only_b=only_b,
        p_values=p_values,
        p_holm=classwise.holm(p_values),
        overall={
            "support": len(labels),
            "robust_a": float(in_a.mean()),
            "robust_b": float(in_b.mean()),
            "difference": float(in_b.mean() - in_a.mean()),
            "difference_low": float(total_low),
            "difference_high": float(total_high),
            "only_a": total_a,
            "only_b": total_b,
            "p_value": classwise.mcnemar(total_a, total_b),
        },
        ranks=rank_correlation(robust_a, robust_b),
    )


def summarize(
    records: Records, *, classes: ClasswiseReport | None = None, logit: LogitReport | None = None
) -> dict[str, Any]:
    """The content of ``summary.json``.

    Args:
        records: of an evaluation.
        classes: its class-wise report, where it is at hand already.
        logit: its logit report, where it is at hand already.

    Returns:
        A value for strict JSON (NaN is None): ``n``, ``clean_accuracy``, ``robust_accuracy``,
        ``attacks.<name>.{robust_accuracy, forwards, backwards}`` (the passes of the attack over all samples
        of the model), ``worst_class.{name, robust_accuracy}``, ``worst_class_interval.{low, high}``,
        ``disparity``, ``tail_10``, ``tail_20``, ``nsd``, ``gini``,
        ``logits.{model, reference}.{clean, adversarial}.{max_logit, logit_gap, margin, confidence}`` with
        ``{mean, std, q05, q50, q95}`` each (``std`` of the population, quantiles interpolated linearly),
        ``warnings`` (:func:`art_logits.diagnostics.find_warnings`),
        and, where there is a reference, under ``reference`` its own ``clean_accuracy`` to ``gini``.
    """
    classes = classes or classwise_report(records)
    logit = logit or logit_report(records)
    summary: dict[str, Any] = {"n": len(records), **_headline(records, classes, "model")}
    if classes.reference is not None:
        summary["reference"] = _headline(records, classes.reference, "reference")
    summary["logits"] = {
        model: {
            condition: {name: quantities[name]._asdict() for name in _SUMMARY_QUANTITIES}
            for condition, quantities in conditions.items()
        }
        for model, conditions in logit.statistics().items()
    }
    summary["warnings"] = [dataclasses.asdict(warning) for warning in find_warnings(records)]
    plain: dict[str, Any] = _without_nan(summary)
    return plain


def _headline(records: Records, classes: ClasswiseReport, model: ModelName) -> dict[str, Any]:
    prefix = records.prefix(model)
    return {
        "clean_accuracy": classes.clean_accuracy,
        "robust_accuracy": classes.robust_accuracy,
        "attacks": {
            name: {
                "robust_accuracy": accuracy,
                "forwards": int(records.column(f"{prefix}{name}.forwards").sum(dtype=np.int64)),
                "backwards": int(records.column(f"{prefix}{name}.backwards").sum(dtype=np.int64)),
            }
            for name, accuracy in classes.attack_accuracies.items()
        },
        "worst_class": classes.worst_class._asdict(),
        "worst_class_interval": dict(zip(("low", "high"), classes.worst_interval, strict=True)),
        "disparity": classes.disparity,
        "tail_10": classes.tail_10,
        "tail_20": classes.tail_20,
        "nsd": classes.nsd,
        "gini": classes.gini,
    }


def _without_nan(value: Any) -> Any:
    """NaN and infinities as None: strict JSON has no word for them."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value
