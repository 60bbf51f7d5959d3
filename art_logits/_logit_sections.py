"""What the page says about logits, confidence and pictures: figures and tables of a logit report."""

from __future__ import annotations

from typing import Any

import numpy as np

from art_logits import figures
from art_logits._class_sections import class_name, rank_cells
from art_logits._page import COLOURS, FOLD, Picture, Row, Table, draw, folded, png_uri
from art_logits._text import percent, significant, span
from art_logits.album import KINDS
from art_logits.analysis import LogitReport, Statistics
from art_logits.functional.ranks import RankCorrelation
from art_logits.logit_analysis import (
    class_statistics,
    confidence_correlation,
    fall_intervals,
    fall_predictors,
    reference_differences,
    wrong_class_agreement,
)
from art_logits.records import ModelName, Records

_MEANINGS = {
    "max_logit": "Largest logit",
    "logit_gap": "Largest minus second largest logit",
    "margin": "Logit of the label minus the best other one; negative where the model is wrong",
    "confidence": "Probability of the prediction",
    "entropy": "Entropy of the probabilities, in nats",
}


def logit_section(records: Records, logit: LogitReport) -> dict[str, Any]:
    """How the logits are distributed, and how the model's differ from the reference's."""
    return {
        "key": _key(logit),
        "figures": [_histograms(logit, quantity) for quantity in _MEANINGS],
        "table": _statistics_table(logit),
        "by_class": _class_table(records, logit),
        "differences": _difference_table(records, logit) if records.has_reference else None,
        "differences_by_class": _class_differences(records, logit),
    }


def _key(logit: LogitReport) -> list[dict[str, Any]]:
    return [
        {"label": f"{model}, {condition}", "colour": colour, "dashed": model == "reference"}
        for model, conditions in logit.samples.items()
        for condition, colour in (("clean", "clean"), ("adversarial", "robust"))
        if len(conditions[condition]["margin"])
    ]


def _histograms(logit: LogitReport, quantity: str) -> Picture:
    return draw(
        quantity,
        figures.PANEL,
        lambda ax: figures.plot_histograms(logit, quantity, ax, palette=COLOURS),
        f"Histogram of the {figures.QUANTITY_LABELS[quantity]}: {_medians(logit, quantity)}",
        f"{_MEANINGS[quantity]}.",
    )


def _medians(logit: LogitReport, quantity: str) -> str:
    return ", ".join(
        f"median {quantities[quantity].q50:.3g} for {model} {condition}"
        for model, conditions in logit.statistics().items()
        for condition, quantities in conditions.items()
    )


def _statistics_table(logit: LogitReport) -> Table:
    heads = ["quantity", "model", "condition", "mean", "std", "5 % quantile", "median", "95 % quantile"]
    rows = [
        Row(label, [model, condition, *_numbers(quantities[quantity])])
        for quantity, label in figures.QUANTITY_LABELS.items()
        for model, conditions in logit.statistics().items()
        for condition, quantities in conditions.items()
    ]
    return Table("Quantiles of the logits", heads, rows)


def _numbers(values: Statistics) -> list[str]:
    return [significant(value) for value in values]


def _class_table(records: Records, logit: LogitReport) -> Table:
    """Means of the model's quantities by class, clean and adversarial side by side."""
    means = class_statistics(records, logit=logit).set_index(["quantity", "condition"])["mean"]
    columns = {
        f"{label}, {condition}": means.loc[(quantity, condition)].to_numpy()
        for quantity, label in figures.QUANTITY_LABELS.items()
        for condition in means.index.get_level_values("condition").unique()
    }
    rows = [
        Row(name, [significant(values[index]) for values in columns.values()])
        for index, name in enumerate(records.class_names)
    ]
    margins = next(values for head, values in columns.items() if head.startswith("margin"))
    about = f"The 15 smallest and the 5 largest mean margins of {len(rows)} classes; all of them below."
    return folded(Table("Means by class", ["class", *columns], rows), margins.tolist(), about)


def _fixed(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _difference_table(records: Records, logit: LogitReport) -> Table:
    frame = reference_differences(records, logit=logit)
    rows = [
        Row(figures.QUANTITY_LABELS[quantity], [condition, significant(difference, "+"), _ends(low, high)])
        for condition, quantity, difference, low, high in frame.itertuples(index=False)
    ]
    return Table("Model minus reference", ["quantity", "condition", "mean difference", "95 % interval"], rows)


def _class_differences(records: Records, logit: LogitReport) -> Table | None:
    """The same class by class; nothing without a reference, or where the bootstraps would take too long."""
    if not records.has_reference or records.num_classes > FOLD:
        return None
    frame = reference_differences(records, by_class=True, logit=logit)
    frame["cell"] = [
        "-" if np.isnan(difference) else f"{significant(difference, '+')} ({_ends(low, high)})"
        for difference, low, high in frame[["difference", "low", "high"]].itertuples(index=False)
    ]
    # By position: two classes may have one name.
    frame["row"] = np.arange(len(frame)) // (len(frame) // records.num_classes)
    cells = frame.pivot(index="row", columns=["quantity", "condition"], values="cell")
    order = [
        (quantity, condition)
        for quantity in figures.QUANTITY_LABELS
        for condition in frame["condition"].unique()
    ]
    rows = [
        Row(name, values)
        for name, values in zip(records.class_names, cells[order].to_numpy().tolist(), strict=True)
    ]
    heads = [f"{figures.QUANTITY_LABELS[quantity]}, {condition}" for quantity, condition in order]
    return Table("Model minus reference by class", ["class", *heads], rows)


def _ends(low: float, high: float) -> str:
    return "-" if np.isnan(low) else f"{significant(low)} to {significant(high)}"


# ---- model against reference, sample by sample -----------------------------------------------------------


def confidence_section(records: Records, logit: LogitReport) -> dict[str, Any] | None:
    """Whether model and reference are sure of the same samples; nothing without a reference."""
    if not records.has_reference:
        return None
    frame = confidence_correlation(records, logit=logit).drop(columns=["n"])
    ranks = {condition: RankCorrelation(0, *values) for condition, *values in frame.itertuples(index=False)}
    return {
        "figures": [_scatter(logit, condition, each.spearman) for condition, each in ranks.items()],
        "correlation": Table(
            "Rank correlation of the confidences",
            ["condition", "Spearman", "95 % interval", "Kendall", "95 % interval of Kendall"],
            [Row(condition, rank_cells(each)) for condition, each in ranks.items()],
        ),
        "agreement": _agreement_table(records, logit),
    }


def _scatter(logit: LogitReport, condition: str, spearman: float) -> Picture:
    def plot(ax: Any) -> None:
        figures.plot_confidence(logit, condition, ax, palette=COLOURS)
        figures.add_key(ax)

    count = len(logit.samples["model"][condition]["confidence"])
    shown = f"{figures.MAX_POINTS} of {count} samples. " if count > figures.MAX_POINTS else ""
    own = " (each model under its own strongest attack)" if condition == "adversarial" else ""
    return draw(
        f"confidence-{condition}",
        figures.SQUARE,
        plot,
        f"Scatter of the {condition} confidences of model and reference: Spearman {span(spearman, spearman)}",
        f"{condition.capitalize()}{own}. {shown}Below the dashed line the reference is the surer one. Falls: "
        "the model is wrong without an attack or under one.",
    )


def _agreement_table(records: Records, logit: LogitReport) -> Table:
    frame = wrong_class_agreement(records, logit=logit)
    names = ["all samples", *(f"quarter {index}" for index in range(1, len(frame)))]
    rows = [
        Row(name, [f"{percent(low)} to {percent(high)}", str(count), _fixed(agreement)])
        for name, (low, high, count, agreement) in zip(names, frame.itertuples(index=False), strict=True)
    ]
    return Table(
        "Agreement on the order of the wrong classes",
        ["samples", "confidence of the model", "samples with an order", "mean Spearman"],
        rows,
    )


# ---- what gives a fall away ------------------------------------------------------------------------------


def fall_section(records: Records, logit: LogitReport) -> dict[str, Any] | None:
    """Which clean quantity tells what an attack will turn; nothing where no attack ran."""
    if not records.attacks:
        return None
    models: list[ModelName] = ["model", "reference"] if records.has_reference else ["model"]
    frames = {
        model: fall_predictors(records, model, by_class=model == "model", logit=logit) for model in models
    }
    labels = figures.QUANTITY_LABELS
    intervals = [fall_intervals(records, model, logit=logit) for model in models]
    overall = [
        Row(label, [cell for frame in intervals for cell in _auroc_cells(frame.loc[index])])
        for index, label in enumerate(labels.values())
    ]
    heads = [head for model in models for head in (model, f"95 % interval of the {model}")]
    frame = frames["model"].iloc[1:]
    rows = [
        Row(str(name), [str(n), str(falls), *map(_fixed, values)])
        for name, n, falls, *values in frame.itertuples(index=False)
    ]
    by_class = Table("AUROC by class", ["class", "right", "of them turned", *labels.values()], rows)
    margins = frame["margin"].to_numpy(dtype=float)
    about = f"The 15 lowest and the 5 highest AUROC of the margin of {len(rows)} classes; all of them below."
    return {
        "overall": Table("AUROC over all classes", ["quantity", *heads], overall),
        "counts": [_fall_counts(model, frame.iloc[0]) for model, frame in frames.items()],
        "by_class": folded(by_class, margins.tolist(), about),
    }


def _auroc_cells(row: Any) -> list[str]:
    return [_fixed(row["auroc"]), "-" if np.isnan(row["low"]) else f"{row['low']:.3f} to {row['high']:.3f}"]


def _fall_counts(model: str, row: Any) -> str:
    return f"The {model}: {row['falls']} of {row['n']} samples fall."


# ---- pictures --------------------------------------------------------------------------------------------


def picture_section(records: Records, logit: LogitReport) -> list[dict[str, Any]]:
    """The thumbnails by what they are shown for, with what the models say of them."""
    rows_of = {int(identity): row for row, identity in enumerate(records.column("sample_id"))}
    groups: list[dict[str, Any]] = []
    thumbnails = [
        thumbnail
        for thumbnail in records.thumbnails.to_pylist()
        if thumbnail["sample_id"] in rows_of and thumbnail["attack"] in records.attacks
    ]
    for kind, title in KINDS.items():
        chosen = sorted(
            (each for each in thumbnails if each["kind"] == kind), key=lambda each: -each["score"]
        )
        samples = [_sample(records, logit, each, rows_of[each["sample_id"]]) for each in chosen]
        if samples:
            groups.append({"title": title, "samples": samples})
    return groups


def _sample(records: Records, logit: LogitReport, thumbnail: dict[str, Any], row: int) -> dict[str, Any]:
    attack = thumbnail["attack"]
    label = class_name(records, int(records.column("label")[row]))
    clean = _said(records, "clean_prediction", logit, "model", "clean", row)
    attacked = _said(records, f"{attack}.prediction", logit, "model", "adversarial", row)
    lines = [("clean", clean), (attack, attacked)]
    if records.has_reference:
        lines.append(
            ("reference", _said(records, "reference.clean_prediction", logit, "reference", "clean", row))
        )
    largest = thumbnail["largest_difference"]
    scale = f"largest change {largest:.3g}"
    return {
        "label": label,
        "lines": [{"who": who, "what": what} for who, what in lines],
        "pictures": [
            {"name": "clean", "uri": png_uri(thumbnail["clean"]), "alt": f"{label}: taken for {clean}"},
            {
                "name": "adversarial",
                "uri": png_uri(thumbnail["adversarial"]),
                "alt": f"{label} under {attack}: taken for {attacked}",
            },
            {
                "name": "difference",
                "uri": png_uri(thumbnail["difference"]),
                "alt": f"Difference of the two, amplified; {scale}",
            },
        ],
        "note": f"sample {thumbnail['sample_id']}, {scale}",
    }


def _said(records: Records, column: str, logit: LogitReport, model: str, condition: str, row: int) -> str:
    """A prediction and its probability."""
    prediction = class_name(records, int(records.column(column)[row]))
    return f"{prediction} {percent(float(logit.samples[model][condition]['confidence'][row]))}"
