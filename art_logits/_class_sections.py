"""What the page says about classes and attacks: figures and tables of a class-wise report."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from art_logits import figures
from art_logits._page import COLOURS, Picture, Row, Table, draw, folded, some
from art_logits._text import interval, middle, percent, points, printable, span
from art_logits.analysis import AttackGain, ClasswiseReport
from art_logits.functional.classwise import ratio, wilson_interval
from art_logits.functional.ranks import RankCorrelation, rank_correlation
from art_logits.records import ModelName, Records

_MAX_ERRORS = 15


def class_section(classes: ClasswiseReport) -> dict[str, Any]:
    """How right every class is, without and under attack."""
    return {"figure": _bars(classes), "table": class_table(classes), "unevenness": _unevenness(classes)}


def class_cells(report: ClasswiseReport, index: int) -> list[str]:
    """Support, clean accuracy, robust accuracy under each attack and under all, and its interval."""
    cells = [str(report.support[index]), percent(report.clean[index])]
    cells += [percent(values[index]) for values in report.attacks.values()]
    return [
        *cells,
        percent(report.robust[index]),
        interval(report.robust_low[index], report.robust_high[index]),
    ]


def overall_cells(report: ClasswiseReport) -> list[str]:
    """The same as :func:`class_cells` over all classes."""
    cells = [str(report.support.sum()), percent(report.clean_accuracy)]
    cells += [percent(value) for value in report.attack_accuracies.values()]
    return [*cells, percent(report.robust_accuracy), interval(*report.robust_interval)]


def class_table(classes: ClasswiseReport) -> Table:
    """The classes with everything that is known of their accuracy."""
    heads = ["class", "samples", "clean", *classes.attacks, "all attacks", "95 % interval", "success rate"]
    turned = 1 - ratio(classes.robust, classes.clean)
    rows = [
        Row(name, [*class_cells(classes, index), percent(turned[index])], _mark(classes, index))
        for index, name in enumerate(classes.class_names)
    ]
    overall = 1 - float(ratio(classes.robust_accuracy, classes.clean_accuracy))
    total = Row("overall", [*overall_cells(classes), percent(overall)])
    reference = classes.reference
    if reference is not None:
        heads += ["reference clean", "reference all attacks"]
        for row, clean, robust in zip(rows, reference.clean, reference.robust, strict=True):
            row.cells.extend([percent(clean), percent(robust)])
        total.cells.extend([percent(reference.clean_accuracy), percent(reference.robust_accuracy)])
    return _folded_classes(Table("Classes", heads, rows, total), classes.robust, "worst", "best")


def _mark(classes: ClasswiseReport, index: int) -> str:
    return "worst" if index == classes.worst_index and len(classes.class_names) > 1 else ""


def _folded_classes(table: Table, values: NDArray[np.float64], least: str, most: str) -> Table:
    """A table with one row per class, folded where there are many."""
    about = f"The 15 {least} and the 5 {most} of {len(values)} classes; all of them below."
    return folded(table, values.tolist(), about)


def _bars(classes: ClasswiseReport) -> Picture:
    shown = figures.worst_first(classes.robust, figures.MAX_BARS)
    worst = classes.worst_class
    which = "" if len(shown) == len(classes.class_names) else f"The {len(shown)} worst classes. "
    return draw(
        "classes",
        figures.bars_size(len(shown)),
        lambda ax: figures.plot_classes(classes, ax, palette=COLOURS),
        f"Bars of clean and robust accuracy for {len(shown)} classes; the worst is {worst.name} "
        f"with {percent(worst.robust_accuracy)}",
        f"{which}Wide pale bar: clean accuracy. Narrow bar: robust accuracy under all attacks, with its 95 % "
        "interval. Dashed: robust accuracy over all classes.",
    )


def _unevenness(classes: ClasswiseReport) -> str:
    return (
        f"Worst class {percent(classes.worst_class.robust_accuracy)} (95 % interval "
        f"{interval(*classes.worst_interval)}), worst 10 % of the classes {percent(classes.tail_10)}, "
        f"worst 20 % {percent(classes.tail_20)}; standard deviation over the classes divided by their mean "
        f"{_number(classes.nsd)}, Gini {_number(classes.gini)}."
    )


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"


# ---- who is taken for whom -------------------------------------------------------------------------------


def transition_section(classes: ClasswiseReport) -> dict[str, Any]:
    """Who is taken for whom, and which classes form groups."""
    shown, groups = figures.matrix_classes(classes)
    few = len(shown) == np.count_nonzero(classes.support)
    which = "" if few else "The worst classes, each with the one that it is most often taken for. "
    picture = draw(
        "confusion",
        figures.matrix_size(len(shown)),
        lambda ax: figures.plot_transitions(classes, ax, palette=COLOURS),
        f"Heat map of {len(shown)} classes, by label and adversarial prediction; "
        f"{len(set(groups[shown].tolist()))} groups of classes that are taken for each other",
        f"{which}Rows: label. Columns: prediction under the attack that turns the sample. Share of the row "
        "in percent, the stronger the colour the larger; orange off the diagonal. Lines part groups of "
        "classes that are taken for each other (clustering of the errors).",
    )
    return {"figure": picture, "groups": _groups(classes, groups), "errors": _errors(classes)}


def _groups(classes: ClasswiseReport, groups: NDArray[np.int64]) -> list[str]:
    """The members of every group, the largest group first; nothing where there is only one."""
    members = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]
    if len(members) < 2:
        return []
    members.sort(key=len, reverse=True)
    return [some([classes.class_names[index] for index in group], limit=12) for group in members]


def _errors(classes: ClasswiseReport) -> Table | None:
    """The most frequent errors; nothing where there are none."""
    counts = classes.confusion - np.diag(np.diag(classes.confusion))
    order = np.argsort(-counts, axis=None, kind="stable")[:_MAX_ERRORS]
    pairs = [divmod(int(index), len(counts)) for index in order]
    rows = [
        Row(
            classes.class_names[source],
            [classes.class_names[target], str(counts[source, target]), percent(shares)],
        )
        for source, target in pairs
        if counts[source, target]
        for shares in [classes.transitions[source, target]]
    ]
    heads = ["label", "taken for", "samples", "share of the label's"]
    return Table("Most frequent errors", heads, rows) if rows else None


# ---- attacks ---------------------------------------------------------------------------------------------


def attack_section(records: Records, classes: ClasswiseReport) -> dict[str, Any]:
    """What the attacks cost, how fast they turn samples, and what the stronger ones gain."""
    return {
        "table": _attack_table(records, classes),
        "curves": _curves(classes),
        "gains": _gain_summary(classes),
        "gains_by_class": _gain_table(classes),
        "consistency": _consistency(classes),
    }


def _reports(classes: ClasswiseReport) -> list[tuple[ModelName, ClasswiseReport]]:
    reports: list[tuple[ModelName, ClasswiseReport]] = [("model", classes)]
    if classes.reference is not None:
        reports.append(("reference", classes.reference))
    return reports


def _attack_table(records: Records, classes: ClasswiseReport) -> Table:
    heads = ["attack", "on", "robust", "95 % interval", "success rate", "forward passes", "backward passes"]
    rows = [
        Row(attack, [model, *_attack_cells(records, report, model, attack)])
        for model, report in _reports(classes)
        for attack in records.attacks
    ]
    return Table("Attacks", heads, rows)


def _attack_cells(records: Records, report: ClasswiseReport, model: ModelName, attack: str) -> list[str]:
    prefix, robust = records.prefix(model), report.attack_accuracies[attack]
    low, high = wilson_interval(round(robust * len(records)), len(records))
    success = 1 - float(ratio(robust, report.clean_accuracy))
    passes = [records.column(f"{prefix}{attack}.{kind}").mean() for kind in ("forwards", "backwards")]
    return [
        percent(robust),
        interval(float(low), float(high)),
        percent(success),
        *(f"{value:.1f}" for value in passes),
    ]


def _curves(classes: ClasswiseReport) -> list[Picture]:
    """A figure per model, all of the same scale."""
    reports = [(model, report) for model, report in _reports(classes) if report.attacks]
    logarithmic = any(figures.unequal_passes(report) for _, report in reports)
    return [_curve(report, model, logarithmic) for model, report in reports]


def _curve(report: ClasswiseReport, model: str, logarithmic: bool) -> Picture:
    ends = ", ".join(f"{percent(value)} under {name}" for name, value in report.attack_accuracies.items())

    def plot(ax: Any) -> None:
        figures.plot_strength(report, ax, logarithmic=logarithmic, palette=COLOURS)
        figures.add_key(ax)

    return draw(
        f"strength-{model}",
        figures.PANEL,
        plot,
        f"Curves of the {model}'s robust accuracy against passes: from {percent(report.clean_accuracy)} "
        f"without an attack to {ends}",
        f"The {model}.",
    )


def _gain_summary(classes: ClasswiseReport) -> Table | None:
    """What every stronger attack gains over the weakest one, and whether it gains on weak classes."""
    gains = classes.gains()
    rows = [Row(gain.attack, _gain_cells(classes, gain)) for gain in gains]
    heads = ["attack", "over", "gain (points)", *_RANK_HEADS]
    return Table("What stronger attacks gain", heads, rows) if rows else None


_RANK_HEADS = ("Spearman", "95 % interval", "Kendall", "95 % interval of Kendall")


def _gain_cells(classes: ClasswiseReport, gain: AttackGain) -> list[str]:
    accuracy = classes.attack_accuracies
    total = points(accuracy[gain.baseline] - accuracy[gain.attack])
    return [gain.baseline, total, *rank_cells(gain.vulnerability)]


def rank_cells(ranks: RankCorrelation) -> list[str]:
    """Both correlations with their intervals."""
    return [
        _number(ranks.spearman),
        span(ranks.spearman_low, ranks.spearman_high),
        _number(ranks.kendall),
        span(ranks.kendall_low, ranks.kendall_high),
    ]


def _gain_table(classes: ClasswiseReport) -> Table | None:
    gains = classes.gains()
    if not gains:
        return None
    weakest = classes.attacks[gains[0].baseline]
    rows = [
        Row(name, [percent(weakest[index]), *(points(gain.gain[index]) for gain in gains)])
        for index, name in enumerate(classes.class_names)
    ]
    heads = ["class", f"robust under {gains[0].baseline}", *(f"gain of {gain.attack}" for gain in gains)]
    table = Table("Gains by class, in points", heads, rows)
    return _folded_classes(table, -gains[-1].gain, "largest gains", "smallest")


def _consistency(classes: ClasswiseReport) -> Table | None:
    """Whether attacks, and model and reference, agree on which classes are weak."""
    frame = classes.consistency().drop(columns=["n"])
    rows = [
        Row(f"{first} and {second}", rank_cells(RankCorrelation(0, *ranks)))
        for first, second, *ranks in frame.itertuples(index=False)
    ]
    if classes.reference is not None:
        ranks = rank_correlation(classes.robust, classes.reference.robust)
        rows.append(Row("model and reference", rank_cells(ranks)))
    return Table("Rank correlation of the classes", ["between", *_RANK_HEADS], rows) if rows else None


# ---- diagnostics -----------------------------------------------------------------------------------------


def diagnostics_table(records: Records) -> Table | None:
    """What went on inside the attacks, as far as it decides whether to trust them."""
    models: list[ModelName] = ["model", "reference"] if records.has_reference else ["model"]
    rows = [
        Row(attack, [model, *_diagnostic_cells(records, attack, model)])
        for model in models
        for attack in records.attacks
    ]
    heads = ["attack", "on", "zero gradients", "largest distance", "lost in 8 bits"]
    heads += ["turned by it alone", "turns back"]
    return Table("Diagnostics of the attacks", heads, rows) if rows else None


def _diagnostic_cells(records: Records, attack: str, model: ModelName) -> list[str]:
    prefix = f"{records.prefix(model)}{attack}"
    others = records.correct(model)
    for name in records.attacks:
        if name != attack:
            others = others & records.survives(name, model)
    alone = int((others & ~records.survives(attack, model)).sum())
    right_by_attack = ~records.correct(model) & ~records.column(f"{prefix}.success")
    return [
        str(int((records.column(f"{prefix}.zero_gradients") > 0).sum())),
        f"{float(records.column(f'{prefix}.distance').max()):.6g}",
        _lost_in_rounding(records, prefix),
        str(alone),
        str(int(right_by_attack.sum())),
    ]


def _lost_in_rounding(records: Records, prefix: str) -> str:
    """Successes that are none any more once the inputs are rounded to 8 bits; older records do not know."""
    if f"{prefix}.success_8bit" not in records.columns:
        return "-"
    lost = records.column(f"{prefix}.success") & ~records.column(f"{prefix}.success_8bit")
    return str(int(lost.sum()))


def class_name(records: Records, index: int, limit: int = 40) -> str:
    """The name of a class, short enough for a caption."""
    return middle(printable(records.class_names[index]), limit)
