"""What people read: a table for the terminal, files for programs, and a self-contained HTML page.

Files hold fractions; the terminal and the page show percent.
"""

from __future__ import annotations

import io
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from art_logits._extras import require
from art_logits._files import write_atomically
from art_logits.analysis import (
    ClasswiseReport,
    LogitReport,
    Statistics,
    classwise_report,
    logit_report,
    summarize,
)
from art_logits.diagnostics import find_warnings
from art_logits.records import ModelName, Records

if TYPE_CHECKING:
    import jinja2
    import markupsafe
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
else:
    jinja2 = require("jinja2", extra="evaluate")
    markupsafe = require("markupsafe", extra="evaluate")
    matplotlib = require("matplotlib", extra="evaluate")
    Figure = require("matplotlib.figure", extra="evaluate").Figure
    Rectangle = require("matplotlib.patches", extra="evaluate").Rectangle

__all__ = ["format_class_table", "format_warnings", "render", "render_template", "write_outputs"]

# Drawn in these and replaced by the page's own CSS variables, so that one drawing serves both themes.
_INK, _CLEAN, _ROBUST = "#010203", "#010204", "#010205"
_THEME = {_INK: "currentColor", _CLEAN: "var(--clean)", _ROBUST: "var(--robust)"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    # Class names are data: "$x$" is no formula.
    "text.parse_math": False,
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_MAX_BARS = 40
_MAX_CELLS = 20
_MAX_TERMINAL_ROWS = 50
_BINS = 40
_SMALL_SUPPORT = 10

_LABELS = {
    "max_logit": ("max logit", "Largest logit"),
    "logit_gap": ("logit gap", "Largest minus second largest logit"),
    "margin": ("margin", "Logit of the label minus the best other one; negative where the model is wrong"),
    "confidence": ("confidence", "Probability of the prediction"),
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
    shown = _worst_first(report.robust, _MAX_TERMINAL_ROWS)
    heads = ["class", "n", "clean", *(_middle(name, 15) for name in report.attacks)]
    heads += ["all attacks", "95 %"]
    rows = [[_middle(_printable(name), 14), *cells] for name, cells in _class_cells(report, shown)]
    total = ["overall", *_overall_cells(report)]
    lines = _aligned([heads, *rows, total])
    body = [
        f"{line}  worst" if index == report.worst_index else line
        for index, line in zip(shown, lines[1:-1], strict=True)
    ]
    rule = "-" * _width(lines[0])
    hidden = len(report.class_names) - len(shown)
    more = [f"({hidden} more robust classes are not shown)"] if hidden else []
    return "\n".join([lines[0], rule, *body, *more, rule, lines[-1]])


def format_warnings(records: Records) -> str:
    """The warnings of :func:`art_logits.diagnostics.find_warnings` for the terminal, one a line.

    Args:
        records: of an evaluation.

    Returns:
        The lines; empty if there is no warning.
    """
    return "\n".join(f"warning: {_printable(warning.message)}" for warning in find_warnings(records))


def _worst_first(values: NDArray[np.float64], limit: int) -> list[int]:
    """Indices to show: all in their order, or, of more than ``limit``, the smallest values from the worst."""
    if len(values) <= limit:
        return list(range(len(values)))
    # NaN sorts last: classes without samples are the first to go.
    return [int(index) for index in np.argsort(values, kind="stable")[:limit]]


def _class_cells(report: ClasswiseReport, shown: Iterable[int]) -> Iterable[tuple[str, list[str]]]:
    for i in shown:
        cells = [str(report.support[i]), _percent(report.clean[i])]
        cells += [_percent(values[i]) for values in report.attacks.values()]
        cells += [_percent(report.robust[i]), _interval(report.robust_low[i], report.robust_high[i])]
        yield report.class_names[i], cells


def _overall_cells(report: ClasswiseReport) -> list[str]:
    cells = [str(report.support.sum()), _percent(report.clean_accuracy)]
    cells += [_percent(value) for value in report.attack_accuracies.values()]
    return [*cells, _percent(report.robust_accuracy), _interval(*report.robust_interval)]


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f}%"


def _interval(low: float, high: float) -> str:
    return "-" if np.isnan(low) else f"{100 * low:.1f}-{100 * high:.1f}%"


def _printable(text: str) -> str:
    """``text`` without control characters: a class name must not steer the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _width(text: str) -> int:
    """Columns that ``text`` takes in a terminal: East Asian wide characters take two."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def _middle(text: str, limit: int) -> str:
    """``text`` in at most ``limit`` columns: what distinguishes long names is often at their end."""
    if _width(text) <= limit:
        return text
    head, tail = text, ""
    while _width(head) > limit // 2:
        head = head[:-1]
    for character in reversed(text):
        if _width(head + tail + character) >= limit:
            break
        tail = character + tail
    return f"{head}…{tail}"


def _aligned(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines of one width: the first column to the left, the others to the right."""
    widths = [max(_width(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [_line(row, widths) for row in rows]


def _line(cells: list[str], widths: list[int]) -> str:
    padded = [
        cell + " " * (width - _width(cell)) if column == 0 else " " * (width - _width(cell)) + cell
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded)


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
        logit_figures=[_logit_figure(logit, quantity) for quantity in _LABELS],
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
    robust, interval = _percent(classes.robust_accuracy), _interval(*classes.robust_interval)
    attacks = "every attack" if len(classes.attacks) != 1 else next(iter(classes.attacks))
    sentences = [
        f"{_name(records, 'model')} is right on {_percent(classes.clean_accuracy)} of {len(records)} "
        f"samples of {_name(records, 'data')}, and on {robust} (95 % interval {interval}) "
        f"also under {attacks}.",
        f"The worst class is {worst.name} with {_percent(worst.robust_accuracy)}, "
        f"{100 * classes.disparity:.1f} points below the best.",
    ]
    if reference is not None:
        sentences.append(
            f"The reference {_name(records, 'reference')}: {_percent(reference.clean_accuracy)} clean, "
            f"{_percent(reference.robust_accuracy)} under attack."
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
    return warnings + [warning.message for warning in find_warnings(records)]


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
            row.cells.extend([_percent(clean), _percent(robust)])
        total.cells.extend([_percent(reference.clean_accuracy), _percent(reference.robust_accuracy)])
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
    return [_percent(report.attack_accuracies[attack]), *(f"{value:.1f}" for value in passes)]


def _logit_table(logit: LogitReport) -> dict[str, Any]:
    heads = ["quantity", "model", "condition", "mean", "std", "5 %", "median", "95 %"]
    rows = [
        _Row(label, [model, condition, *_numbers(quantities[quantity])])
        for quantity, (label, _) in _LABELS.items()
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
    shown = _worst_first(classes.robust, _MAX_BARS)
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "classes"}):
        figure = Figure(figsize=(5.2, 0.8 + 0.26 * len(shown)), layout="constrained")
        _draw_classes(figure.subplots(), classes, np.array(shown))
        worst = classes.worst_class
        svg = _svg(
            figure,
            f"Bars of clean and robust accuracy for {len(shown)} classes; the worst is {worst.name} "
            f"with {_percent(worst.robust_accuracy)}",
        )
    which = "" if len(shown) == len(classes.class_names) else f"The {len(shown)} worst classes. "
    return _Picture(
        svg,
        f"{which}Wide pale bar: clean accuracy. Narrow bar: robust accuracy under all attacks, with its 95 % "
        "interval. Dashed: robust accuracy over all classes.",
    )


def _draw_classes(axes: Axes, classes: ClasswiseReport, shown: NDArray[np.int64]) -> None:
    rows = np.arange(len(shown))
    robust = 100 * classes.robust[shown]
    whiskers = np.stack([robust - 100 * classes.robust_low[shown], 100 * classes.robust_high[shown] - robust])
    axes.barh(rows, 100 * classes.clean[shown], height=0.8, color=_CLEAN, alpha=0.45)
    axes.barh(rows, robust, height=0.45, color=_ROBUST)
    # Rounding can leave a whisker of -1e-15, which matplotlib refuses.
    axes.errorbar(robust, rows, xerr=whiskers.clip(min=0), fmt="none", ecolor=_INK, elinewidth=1.2, capsize=3)
    axes.axvline(100 * classes.robust_accuracy, color=_INK, linewidth=1, linestyle="--", alpha=0.7)
    axes.set_yticks(rows, [_middle(_printable(classes.class_names[index]), 24) for index in shown])
    axes.set(xlim=(0, 100), ylim=(len(shown) - 0.4, -0.6), xlabel="accuracy (%)")
    axes.tick_params(axis="y", length=0)


def _unevenness(classes: ClasswiseReport) -> str:
    return (
        f"Worst class {_percent(classes.worst_class.robust_accuracy)} (95 % interval "
        f"{_interval(*classes.worst_interval)}), worst 10 % of the classes {_percent(classes.tail_10)}, "
        f"worst 20 % {_percent(classes.tail_20)}; standard deviation over the classes divided by their mean "
        f"{_number(classes.nsd)}, Gini {_number(classes.gini)}."
    )


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"


def _confusion_figure(classes: ClasswiseReport) -> _Picture:
    """Who is taken for whom: the worst classes, those of one group side by side."""
    groups = classes.groups()
    worst = _worst_first(classes.robust, _MAX_CELLS)
    shown = np.array(sorted((i for i in worst if groups[i] >= 0), key=lambda i: (groups[i], i)))
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "confusion"}):
        size = 1.6 + 0.32 * len(shown)
        figure = Figure(figsize=(size + 0.3, size), layout="constrained")
        _draw_confusion(figure.subplots(), classes, shown, groups)
        svg = _svg(
            figure,
            f"Heat map of {len(shown)} classes, by label and adversarial prediction; "
            f"{len(set(groups[shown].tolist()))} groups of classes that are taken for each other",
        )
    which = "" if len(worst) == len(classes.class_names) else f"The {len(worst)} worst classes. "
    return _Picture(
        svg,
        f"{which}Rows: label. Columns: prediction under the attack that turns the sample. Share of the row "
        "in percent, the stronger the colour the larger; orange off the diagonal. Lines part groups of "
        "classes that are taken for each other (clustering of the errors).",
    )


def _draw_confusion(
    axes: Axes, classes: ClasswiseReport, shown: NDArray[np.int64], groups: NDArray[np.int64]
) -> None:
    shares = classes.transitions[np.ix_(shown, shown)]
    for (row, column), share in np.ndenumerate(shares):
        # Patches instead of an image: they take the page's colours, and 400 of them are small.
        if share > 0:
            colour = _CLEAN if row == column else _ROBUST
            corner, strength = (column - 0.5, row - 0.5), float(share) ** 0.5
            axes.add_patch(Rectangle(corner, 1, 1, facecolor=colour, linewidth=0, alpha=strength))
        if share >= 0.005:
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7)
    for edge in np.flatnonzero(np.diff(groups[shown])) + 0.5:
        axes.axhline(edge, color=_INK, linewidth=0.8)
        axes.axvline(edge, color=_INK, linewidth=0.8)
    names = [_middle(_printable(classes.class_names[index]), 14) for index in shown]
    axes.set_xticks(range(len(shown)), names, rotation=90)
    axes.set_yticks(range(len(shown)), names)
    axes.tick_params(length=0)
    axes.set(xlim=(-0.5, len(shown) - 0.5), ylim=(len(shown) - 0.5, -0.5), aspect="equal")


def _key(logit: LogitReport) -> list[dict[str, Any]]:
    return [
        {"label": f"{model}, {condition}", "colour": colour, "dashed": model == "reference"}
        for model in logit.samples
        for condition, colour in (("clean", "clean"), ("adversarial", "robust"))
    ]


def _logit_figure(logit: LogitReport, quantity: str) -> _Picture:
    label, meaning = _LABELS[quantity]
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": quantity}):
        figure = Figure(figsize=(4.4, 2.7), layout="constrained")
        _draw_histograms(figure.subplots(), logit, quantity)
        svg = _svg(figure, f"Histogram of the {label}: {_medians(logit, quantity)}")
    return _Picture(svg, f"{meaning}.")


def _draw_histograms(axes: Axes, logit: LogitReport, quantity: str) -> None:
    series = {
        (model, condition): quantities[quantity]
        for model, conditions in logit.samples.items()
        for condition, quantities in conditions.items()
        if len(quantities[quantity])
    }
    edges = _edges(series.values())
    for (model, condition), values in series.items():
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), bins=edges)
        colour = _CLEAN if condition == "clean" else _ROBUST
        share = 100 * counts / len(values)
        if model == "model":
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.45)
            axes.stairs(share, edges, color=colour, linewidth=1.2)
        else:
            axes.stairs(share, edges, color=colour, linewidth=1.4, linestyle="--")
    if quantity == "margin":
        axes.axvline(0, color=_INK, linewidth=0.8, alpha=0.6)
    axes.set(xlabel=_LABELS[quantity][0], ylabel="samples (%)")


def _edges(series: Iterable[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Bins that all series share, wide enough for 99 % of each."""
    ends = np.array([np.quantile(values.astype(np.float64), (0.005, 0.995)) for values in series])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, _BINS + 1)


def _medians(logit: LogitReport, quantity: str) -> str:
    return ", ".join(
        f"median {quantities[quantity].q50:.3g} for {model} {condition}"
        for model, conditions in logit.statistics().items()
        for condition, quantities in conditions.items()
    )


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
