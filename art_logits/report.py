"""What people read: a table for the terminal, files for programs, and a self-contained HTML page.

Files hold fractions; the terminal and the page show percent.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from art_logits import figures
from art_logits._extras import require
from art_logits._files import write_atomically
from art_logits._text import aligned, interval, middle, percent, printable, width
from art_logits.analysis import (
    ClasswiseReport,
    LogitReport,
    Statistics,
    classwise_report,
    logit_report,
    summarize,
)
from art_logits.records import ModelName, Records

if TYPE_CHECKING:
    import jinja2
    import markupsafe
    from matplotlib.figure import Figure
else:
    jinja2 = require("jinja2", extra="evaluate")
    markupsafe = require("markupsafe", extra="evaluate")
    Figure = require("matplotlib.figure", extra="evaluate").Figure

__all__ = ["format_class_table", "render", "render_template", "write_outputs"]

# Drawn in these and replaced by the page's own CSS variables, so that one drawing serves both themes.
_INK, _COLOURS = "#010203", figures.Palette(clean="#010204", robust="#010205")
_THEME = {_INK: "currentColor", _COLOURS.clean: "var(--clean)", _COLOURS.robust: "var(--robust)"}
_MAX_TERMINAL_ROWS = 50
_SMALL_SUPPORT = 10

_MEANINGS = {
    "max_logit": "Largest logit",
    "logit_gap": "Largest minus second largest logit",
    "margin": "Logit of the label minus the best other one; negative where the model is wrong",
    "confidence": "Probability of the prediction",
    "entropy": "Entropy of the probabilities, in nats",
}


@dataclass(frozen=True)
class _Picture:
    svg: markupsafe.Markup
    caption: str


class _Row(NamedTuple):
    name: str
    cells: list[str]
    worst: bool = False


def write_outputs(records: Records, out: Path) -> None:
    """Write ``summary.json``, ``classwise.csv``, ``logits.csv`` and ``report.html``.

    Args:
        records: of an evaluation.
        out: an existing folder; files of these names in it are replaced, each atomically.

    Raises:
        FileNotFoundError: ``out`` is not a folder.
    """
    if not Path(out).is_dir():
        raise FileNotFoundError(f"out: expected an existing folder, got {out}; create it first")
    out = Path(out)
    classes, logit = classwise_report(records), logit_report(records)
    summary = summarize(records, classes=classes, logit=logit)
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(out / "summary.json", text.encode())
    classes.to_csv(out / "classwise.csv")
    logit.to_csv(out / "logits.csv")
    write_atomically(out / "report.html", _render(records, classes, logit).encode())


def render(records: Records) -> str:
    """The report as one HTML page without external resources.

    Args:
        records: of an evaluation.

    Returns:
        The page; names of classes, models, data and attacks are escaped.
    """
    return _render(records, classwise_report(records), logit_report(records))


def format_class_table(records: Records) -> str:
    """The classes as a plain-text table for the terminal, in percent.

    Args:
        records: of an evaluation.

    Returns:
        One line per class (class, support, clean accuracy, robust accuracy under each attack and under all
        attacks, 95 % interval of the last), the worst class marked, and a line for all samples at the end.
        At most 100 columns wide for up to two attacks. Of more than 50 classes the 50 worst are shown.
    """
    report = classwise_report(records)
    shown = figures.worst_first(report.robust, _MAX_TERMINAL_ROWS)
    heads = ["class", "n", "clean", *(middle(name, 15) for name in report.attacks)]
    heads += ["all attacks", "95 %"]
    rows = [[middle(printable(name), 14), *cells] for name, cells in _class_cells(report, shown)]
    total = ["overall", *_overall_cells(report)]
    lines = aligned([heads, *rows, total])
    body = [
        f"{line}  worst" if index == report.worst_index else line
        for index, line in zip(shown, lines[1:-1], strict=True)
    ]
    rule = "-" * width(lines[0])
    hidden = len(report.class_names) - len(shown)
    more = [f"({hidden} more robust classes are not shown)"] if hidden else []
    return "\n".join([lines[0], rule, *body, *more, rule, lines[-1]])


def _class_cells(report: ClasswiseReport, shown: Iterable[int]) -> Iterable[tuple[str, list[str]]]:
    for i in shown:
        cells = [str(report.support[i]), percent(report.clean[i])]
        cells += [percent(values[i]) for values in report.attacks.values()]
        cells += [percent(report.robust[i]), interval(report.robust_low[i], report.robust_high[i])]
        yield report.class_names[i], cells


def _overall_cells(report: ClasswiseReport) -> list[str]:
    cells = [str(report.support.sum()), percent(report.clean_accuracy)]
    cells += [percent(value) for value in report.attack_accuracies.values()]
    return [*cells, percent(report.robust_accuracy), interval(*report.robust_interval)]


def _render(records: Records, classes: ClasswiseReport, logit: LogitReport) -> str:
    return render_template(
        "report.html.j2",
        title=f"{_name(records, 'model')} on {_name(records, 'data')}",
        headline=_headline(records, classes),
        warnings=_warnings(records, classes),
        class_figure=_class_figure(classes),
        class_table=_class_table(classes),
        unevenness=_unevenness(classes),
        confusion_figure=_confusion_figure(classes),
        attack_table=_attack_table(records, classes),
        key=_key(logit),
        logit_figures=[_logit_figure(logit, quantity) for quantity in _MEANINGS],
        logit_table=_logit_table(logit),
        provenance=_provenance(records),
    )


def render_template(name: str, **values: Any) -> str:
    """Fill a template of the package; text is escaped.

    Args:
        name: file in ``art_logits/templates``.
        values: what the template needs; one that is missing is an error.

    Returns:
        The filled page.
    """
    folder = resources.files("art_logits").joinpath("templates")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda file: folder.joinpath(file).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    page: str = environment.get_template(name).render(**values)
    return page


def _identity(records: Records) -> dict[str, Any]:
    identity: dict[str, Any] = records.manifest.get("identity") or {}
    return identity


def _name(records: Records, what: str) -> str:
    entry = _identity(records).get(what)
    return str((entry or {}).get("name") or what)


def _headline(records: Records, classes: ClasswiseReport) -> str:
    worst, reference = classes.worst_class, classes.reference
    attacks = "every attack" if len(classes.attacks) != 1 else next(iter(classes.attacks))
    sentences = [
        f"{_name(records, 'model')} is right on {percent(classes.clean_accuracy)} of {len(records)} "
        f"samples of {_name(records, 'data')}, and on {percent(classes.robust_accuracy)} "
        f"(95 % interval {interval(*classes.robust_interval)}) also under {attacks}.",
        f"The worst class is {worst.name} with {percent(worst.robust_accuracy)}, "
        f"{100 * classes.disparity:.1f} points below the best.",
    ]
    if reference is not None:
        sentences.append(
            f"The reference {_name(records, 'reference')}: {percent(reference.clean_accuracy)} clean, "
            f"{percent(reference.robust_accuracy)} under attack."
        )
    return " ".join(sentences)


def _warnings(records: Records, classes: ClasswiseReport) -> list[str]:
    """What a reader must know before trusting the numbers."""
    warnings = []
    if records.manifest and not records.manifest.get("complete", True):
        warnings.append("The run is not complete: these are the samples that it finished.")
    if not records.attacks:
        warnings.append("No attack ran: robust accuracy equals clean accuracy.")
    supports = list(zip(classes.class_names, classes.support, strict=True))
    absent = [name for name, n in supports if n == 0]
    if absent:
        warnings.append(f"Without samples, hence without values: {_some(absent)}.")
    few = [name for name, n in supports if 0 < n < _SMALL_SUPPORT]
    if few:
        warnings.append(f"Fewer than {_SMALL_SUPPORT} samples, hence wide intervals: {_some(few)}.")
    return warnings + [warning for name in records.attacks for warning in _gradient_warnings(records, name)]


def _gradient_warnings(records: Records, attack: str) -> Iterable[str]:
    affected = int((records.column(f"{attack}.zero_gradients") > 0).sum())
    if affected:
        yield (
            f"{attack} met gradients that were zero or not finite on {affected} of {len(records)} samples "
            "and used the margin's there; a model that hides its gradients can look more robust than it is."
        )


def _some(names: list[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _class_table(classes: ClasswiseReport) -> dict[str, Any]:
    heads = ["class", "samples", "clean", *classes.attacks, "all attacks", "95 % interval"]
    rows = [
        _Row(name, cells, worst=index == classes.worst_index)
        for index, (name, cells) in enumerate(_class_cells(classes, range(len(classes.class_names))))
    ]
    total = _Row("overall", _overall_cells(classes))
    reference = classes.reference
    if reference is not None:
        heads += ["reference clean", "reference all attacks"]
        for row, clean, robust in zip(rows, reference.clean, reference.robust, strict=True):
            row.cells.extend([percent(clean), percent(robust)])
        total.cells.extend([percent(reference.clean_accuracy), percent(reference.robust_accuracy)])
    return {"heads": heads, "rows": rows, "total": total}


def _attack_table(records: Records, classes: ClasswiseReport) -> dict[str, Any]:
    heads = ["attack", "robust", "forward", "backward"]
    reports: list[tuple[ModelName, ClasswiseReport]] = [("model", classes)]
    if classes.reference is not None:
        heads += ["reference robust", "reference forward", "reference backward"]
        reports.append(("reference", classes.reference))
    rows = [
        _Row(
            attack,
            [cell for model, report in reports for cell in _attack_cells(records, report, model, attack)],
        )
        for attack in records.attacks
    ]
    return {"heads": heads, "rows": rows}


def _attack_cells(records: Records, report: ClasswiseReport, model: ModelName, attack: str) -> list[str]:
    prefix = records.prefix(model)
    passes = [records.column(f"{prefix}{attack}.{kind}").mean() for kind in ("forwards", "backwards")]
    return [percent(report.attack_accuracies[attack]), *(f"{value:.1f}" for value in passes)]


def _logit_table(logit: LogitReport) -> dict[str, Any]:
    heads = ["quantity", "model", "condition", "mean", "std", "5 %", "median", "95 %"]
    rows = [
        _Row(label, [model, condition, *_numbers(quantities[quantity])])
        for quantity, label in figures.QUANTITY_LABELS.items()
        for model, conditions in logit.statistics().items()
        for condition, quantities in conditions.items()
    ]
    return {"heads": heads, "rows": rows}


def _numbers(statistics: Statistics) -> list[str]:
    return ["-" if np.isnan(value) else f"{value:.3g}" for value in statistics]


def _provenance(records: Records) -> list[dict[str, Any]]:
    manifest, identity = records.manifest, _identity(records)
    entries: list[tuple[str, str, bool]] = []
    if manifest.get("command"):
        entries.append(("Command", str(manifest["command"]), True))
    for what in ("model", "reference", "data"):
        if identity.get(what):
            entries.append((what.capitalize(), _pairs(identity[what]), False))
    for name, config in (identity.get("attacks") or {}).items():
        entries.append((f"Attack {name}", _pairs(config), False))
    for what in ("bounds", "seed"):
        if what in identity:
            entries.append((what.capitalize(), str(identity[what]), False))
    for model, passes in (manifest.get("passes") or {}).items():
        entries.append((f"All passes, {model}", _pairs(passes), False))
    if manifest.get("versions"):
        entries.append(("Versions", _pairs(manifest["versions"]), False))
    return [{"term": term, "text": text, "code": code} for term, text, code in entries]


def _pairs(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)


def _class_figure(classes: ClasswiseReport) -> _Picture:
    shown = figures.worst_first(classes.robust, figures.MAX_BARS)
    with _drawing("classes", figures.bars_size(len(shown))) as figure:
        figures.plot_classes(classes, figure.subplots(), palette=_COLOURS)
        worst = classes.worst_class
        svg = _svg(
            figure,
            f"Bars of clean and robust accuracy for {len(shown)} classes; the worst is {worst.name} "
            f"with {percent(worst.robust_accuracy)}",
        )
    which = "" if len(shown) == len(classes.class_names) else f"The {len(shown)} worst classes. "
    return _Picture(
        svg,
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


def _confusion_figure(classes: ClasswiseReport) -> _Picture:
    """Who is taken for whom: the worst classes, those of one group side by side."""
    shown, groups = figures.matrix_classes(classes)
    with _drawing("confusion", figures.matrix_size(len(shown))) as figure:
        figures.plot_transitions(classes, figure.subplots(), palette=_COLOURS)
        svg = _svg(
            figure,
            f"Heat map of {len(shown)} classes, by label and adversarial prediction; "
            f"{len(set(groups[shown].tolist()))} groups of classes that are taken for each other",
        )
    few = len(classes.class_names) <= figures.MAX_CELLS
    which = "" if few else f"The {figures.MAX_CELLS} worst classes. "
    return _Picture(
        svg,
        f"{which}Rows: label. Columns: prediction under the attack that turns the sample. Share of the row "
        "in percent, the stronger the colour the larger; orange off the diagonal. Lines part groups of "
        "classes that are taken for each other (clustering of the errors).",
    )


def _key(logit: LogitReport) -> list[dict[str, Any]]:
    return [
        {"label": f"{model}, {condition}", "colour": colour, "dashed": model == "reference"}
        for model in logit.samples
        for condition, colour in (("clean", "clean"), ("adversarial", "robust"))
    ]


def _logit_figure(logit: LogitReport, quantity: str) -> _Picture:
    with _drawing(quantity, figures.PANEL) as figure:
        figures.plot_histograms(logit, quantity, figure.subplots(), palette=_COLOURS)
        svg = _svg(
            figure, f"Histogram of the {figures.QUANTITY_LABELS[quantity]}: {_medians(logit, quantity)}"
        )
    return _Picture(svg, f"{_MEANINGS[quantity]}.")


def _medians(logit: LogitReport, quantity: str) -> str:
    return ", ".join(
        f"median {quantities[quantity].q50:.3g} for {model} {condition}"
        for model, conditions in logit.statistics().items()
        for condition, quantities in conditions.items()
    )


@contextmanager
def _drawing(name: str, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure in the colours that :func:`_svg` replaces; the name makes its ids unique in the page."""
    with figures.style(_INK, svg_fonttype="none", svg_hashsalt=name):
        yield Figure(figsize=size, layout="constrained")


def _svg(figure: Figure, description: str) -> markupsafe.Markup:
    """The figure as inline SVG in the page's colours, with a description for screen readers."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    for sentinel, colour in _THEME.items():
        svg = svg.replace(sentinel, colour)
    # Inline, an SVG needs no prolog, no namespaces and no fixed size; ids of groups would occur twice.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :])
    view = re.search(r'viewBox="[^"]*"', svg)
    body = svg[svg.index(">") + 1 :]
    head = markupsafe.Markup('<svg role="img" aria-label="{}" {}>').format(
        description, markupsafe.Markup(view.group() if view else "")
    )
    return head + markupsafe.Markup(body)
