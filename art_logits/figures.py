"""Figures: pure functions of reports that draw into matplotlib axes and return them.

Without ``ax`` a function makes a figure of its own through pyplot, as users of notebooks expect; with it, it
draws there and leaves the rest of the figure alone. Axes show percent. Class and attack names are drawn as
they are: no name is taken for a formula.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from art_logits._extras import require
from art_logits._files import write_atomically
from art_logits._text import middle, printable

if TYPE_CHECKING:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.text import Text
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    from art_logits.analysis import ClasswiseReport, Comparison, LogitReport
    from art_logits.records import Records
else:
    matplotlib = require("matplotlib", extra="evaluate")
    Figure = require("matplotlib.figure", extra="evaluate").Figure
    Rectangle = require("matplotlib.patches", extra="evaluate").Rectangle
    NullFormatter = require("matplotlib.ticker", extra="evaluate").NullFormatter
    StrMethodFormatter = require("matplotlib.ticker", extra="evaluate").StrMethodFormatter

__all__ = [
    "MAX_BARS",
    "MAX_CELLS",
    "MAX_POINTS",
    "PALETTE",
    "PANEL",
    "QUANTITY_LABELS",
    "SQUARE",
    "Drawing",
    "Palette",
    "add_key",
    "bars_size",
    "matrix_classes",
    "matrix_size",
    "plot_changes",
    "plot_classes",
    "plot_confidence",
    "plot_histograms",
    "plot_strength",
    "plot_transitions",
    "save",
    "style",
    "unequal_passes",
    "worst_first",
    "write",
    "write_figures",
]

MAX_BARS = 40
"""Classes in a bar chart; of more, the worst."""
MAX_CELLS = 20
"""Classes in a heat map; of more, the worst and those that they are taken for."""
MAX_POINTS = 2000
"""Samples in a scatter plot; of more, this many at equal distances in the records."""
_BINS = 40
_MANY_TIMES = 5
_KEY_ROW = 0.18  # inches
PANEL = (4.4, 2.7)
"""Width and height in inches of a histogram or a curve."""
SQUARE = (3.6, 3.6)
"""Width and height in inches of a scatter plot."""

QUANTITY_LABELS = {
    "max_logit": "max logit",
    "logit_gap": "logit gap",
    "margin": "margin",
    "confidence": "confidence",
    "entropy": "entropy (nats)",
}
"""Axis labels of the quantities of a logit report."""


class Palette(NamedTuple):
    """Colours of a figure; lines and text take matplotlib's ``text.color``.

    Attributes:
        clean: what happens without an attack.
        robust: what happens under attack.
    """

    clean: str = "#56b4e9"
    robust: str = "#d55e00"


PALETTE = Palette()
"""Two colours of Okabe and Ito, told apart with every kind of colour blindness."""


@contextmanager
def style(ink: str = "black", **options: Any) -> Iterator[None]:
    """The look of all our figures, without a change to matplotlib's own settings.

    Args:
        ink: colour of text, axes and lines.
        **options: further ``rcParams``, with ``_`` for ``.``, such as ``svg_hashsalt``.

    Yields:
        Nothing; figures made inside have the look.
    """
    settings: dict[Any, Any] = {
        # Class names are data: "$x$" is no formula.
        "text.parse_math": False,
        "font.size": 9,
        "text.color": ink,
        "axes.edgecolor": ink,
        "axes.labelcolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **{name.replace("_", ".", 1): value for name, value in options.items()},
    }
    with matplotlib.rc_context(settings):
        yield


def worst_first(values: NDArray[np.float64], limit: int) -> list[int]:
    """Indices to show: all in their order, or, of more than ``limit``, the smallest values from the worst.

    Args:
        values: ``(C,)``; NaN counts as the largest, so classes without samples are the first to go.
        limit: the most indices.

    Returns:
        At most ``limit`` indices.

    >>> worst_first(np.array([0.5, np.nan, 0.1]), 2)
    [2, 0]
    """
    if len(values) <= limit:
        return list(range(len(values)))
    return [int(index) for index in np.argsort(values, kind="stable")[:limit]]


def bars_size(count: int) -> tuple[float, float]:
    """Width and height in inches of a bar chart of ``count`` classes."""
    return 5.2, 0.8 + 0.26 * count


def matrix_size(count: int) -> tuple[float, float]:
    """Width and height in inches of a heat map of ``count`` classes."""
    return 1.9 + 0.32 * count, 1.6 + 0.32 * count


def plot_classes(
    report: ClasswiseReport, ax: Axes | None = None, *, limit: int = MAX_BARS, palette: Palette = PALETTE
) -> Axes:
    """Bars of clean and robust accuracy per class.

    Wide pale bar: clean accuracy. Narrow bar: robust accuracy under all attacks, with its 95 % Wilson
    interval. Dashed line: robust accuracy over all classes.

    Args:
        report: of :func:`~art_logits.analysis.classwise_report`.
        ax: where to draw; a new figure if None.
        limit: the most classes; of more, the worst are drawn, from the worst.
        palette: colours.

    Returns:
        The axes.
    """
    shown = np.array(worst_first(report.robust, limit))
    ax = _axes(ax, bars_size(len(shown)))
    ink, rows = _ink(), np.arange(len(shown))
    robust = 100 * report.robust[shown]
    whiskers = np.stack([robust - 100 * report.robust_low[shown], 100 * report.robust_high[shown] - robust])
    ax.barh(rows, 100 * report.clean[shown], height=0.8, color=palette.clean, alpha=0.45)
    ax.barh(rows, robust, height=0.45, color=palette.robust)
    # Rounding can leave a whisker of -1e-15, which matplotlib refuses.
    ax.errorbar(robust, rows, xerr=whiskers.clip(min=0), fmt="none", ecolor=ink, elinewidth=1.2, capsize=3)
    ax.axvline(100 * report.robust_accuracy, color=ink, linewidth=1, linestyle="--", alpha=0.7)
    ax.set_yticks(rows, _names(report.class_names, shown, 24))
    ax.set(xlim=(0, 100), ylim=(len(shown) - 0.4, -0.6), xlabel="accuracy (%)")
    ax.tick_params(axis="y", length=0)
    _literal(ax.get_yticklabels())
    return ax


def matrix_classes(report: ClasswiseReport, limit: int = MAX_CELLS) -> tuple[list[int], NDArray[np.int64]]:
    """Rows and columns of :func:`plot_transitions`, the classes of one group side by side.

    Of more than ``limit`` classes the worst, each with the class that it is most often taken for: the worst
    alone are rarely taken for each other.

    Args:
        report: of :func:`~art_logits.analysis.classwise_report`.
        limit: the most classes.

    Returns:
        Indices of the classes that are drawn (those without samples are not), and the groups ``(C,)`` of all.
    """
    groups = report.groups()
    present = np.flatnonzero(groups >= 0)
    chosen = present if len(present) <= limit else _worst_with_targets(report, present, limit)
    return sorted((int(index) for index in chosen), key=lambda index: (groups[index], index)), groups


def _worst_with_targets(report: ClasswiseReport, present: NDArray[np.int64], limit: int) -> Iterable[int]:
    """The worst classes that have samples, each followed by the one that it is most often taken for."""
    errors = report.confusion[np.ix_(present, present)]
    errors = errors - np.diag(np.diag(errors))
    chosen: dict[int, None] = {}
    for row in np.argsort(report.robust[present], kind="stable"):
        target = int(errors[row].argmax())
        for index in (int(row), target) if errors[row, target] else (int(row),):
            if len(chosen) < limit:
                chosen[int(present[index])] = None
    return chosen


def plot_transitions(
    report: ClasswiseReport, ax: Axes | None = None, *, limit: int = MAX_CELLS, palette: Palette = PALETTE
) -> Axes:
    """Heat map of who is taken for whom.

    Rows: label. Columns: prediction under the attack that turns the sample. Numbers: share of the row in
    percent, the stronger the colour the larger. Lines part groups of classes that are taken for each other.

    Args:
        report: of :func:`~art_logits.analysis.classwise_report`.
        ax: where to draw; a new figure if None.
        limit: the most classes; of more, the worst are drawn, with those that they are taken for.
        palette: colours, of the diagonal and of the errors.

    Returns:
        The axes.
    """
    shown, groups = matrix_classes(report, limit)
    ax = _axes(ax, matrix_size(len(shown)))
    shares = report.transitions[np.ix_(shown, shown)]
    for (row, column), share in np.ndenumerate(shares):
        _draw_cell(ax, row, column, float(share), palette.clean if row == column else palette.robust)
    for edge in np.flatnonzero(np.diff(groups[shown])) + 0.5:
        ax.axhline(edge, color=_ink(), linewidth=0.8)
        ax.axvline(edge, color=_ink(), linewidth=0.8)
    names = _names(report.class_names, shown, 14)
    ax.set_xticks(range(len(shown)), names, rotation=90)
    ax.set_yticks(range(len(shown)), names)
    ax.tick_params(length=0)
    ax.set(
        xlim=(-0.5, len(shown) - 0.5),
        ylim=(len(shown) - 0.5, -0.5),
        aspect="equal",
        xlabel="taken for",
        ylabel="label",
    )
    _literal([*ax.get_xticklabels(), *ax.get_yticklabels()])
    return ax


def _draw_cell(ax: Axes, row: int, column: int, share: float, colour: str) -> None:
    # Patches instead of an image: they scale, a page can give them its own colours, and 400 are small.
    if share > 0:
        corner = (column - 0.5, row - 0.5)
        ax.add_patch(Rectangle(corner, 1, 1, facecolor=colour, linewidth=0, alpha=share**0.5))
    if share >= 0.005:
        ax.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7)


def plot_histograms(
    report: LogitReport,
    quantity: str = "max_logit",
    ax: Axes | None = None,
    *,
    bins: int = _BINS,
    palette: Palette = PALETTE,
) -> Axes:
    """Histograms of one quantity of the logits, clean and adversarial, of the model and its reference.

    The outermost 0.5 % of the values at either end are gathered in the outermost bars. Filled: model.
    Dashed: reference.

    Args:
        report: of :func:`~art_logits.analysis.logit_report`.
        quantity: one of :data:`~art_logits.analysis.LOGIT_QUANTITIES`.
        ax: where to draw; a new figure if None.
        bins: their number; see :meth:`~art_logits.analysis.LogitReport.histogram`.
        palette: colours, of clean and of adversarial values.

    Returns:
        The axes.

    Raises:
        ValueError: there is no such quantity.
    """
    histogram = report.histogram(quantity, bins=bins)
    ax = _axes(ax, PANEL)
    for (model, condition), rows in histogram.groupby(["model", "condition"], sort=False):
        _draw_histogram(
            ax,
            100 * rows["count"].to_numpy() / rows["count"].sum(),
            np.append(rows["low"], rows["high"].iloc[-1]),
            palette.clean if condition == "clean" else palette.robust,
            f"{model}, {condition}",
        )
    if quantity == "margin":
        ax.axvline(0, color=_ink(), linewidth=0.8, alpha=0.6)
    ax.set(xlabel=QUANTITY_LABELS[quantity], ylabel="samples (%)")
    return ax


def _draw_histogram(
    ax: Axes, shares: NDArray[np.float64], edges: NDArray[np.float64], colour: str, label: str
) -> None:
    if label.startswith("model"):
        ax.stairs(shares, edges, fill=True, color=colour, alpha=0.45)
        ax.stairs(shares, edges, color=colour, linewidth=1.2, label=label)
    else:
        ax.stairs(shares, edges, color=colour, linewidth=1.4, linestyle="--", label=label)


def plot_confidence(
    report: LogitReport,
    condition: str = "clean",
    ax: Axes | None = None,
    *,
    limit: int = MAX_POINTS,
    palette: Palette = PALETTE,
) -> Axes:
    """Scatter of the confidences of model and reference, one point per sample.

    Points of the colour of attacks: samples that the model loses under attack, or has wrong without one.

    Args:
        report: of :func:`~art_logits.analysis.logit_report`, with a reference.
        condition: ``"clean"`` or ``"adversarial"`` (of each model under its own strongest attack).
        ax: where to draw; a new figure if None.
        limit: the most points; of more samples, this many at equal distances in the records.
        palette: colours.

    Returns:
        The axes.

    Raises:
        ValueError: there is no reference, or no such condition with samples.
    """
    if "reference" not in report.samples:
        raise ValueError("report: expected one with a reference, got none; evaluate with reference=...")
    model = report.samples["model"]
    if condition not in model or not len(model[condition]["confidence"]):
        known = ", ".join(name for name, values in model.items() if len(values["confidence"]))
        raise ValueError(f"condition: expected one with samples ({known}), got {condition!r}")
    first, second = (report.samples[name][condition]["confidence"] for name in ("model", "reference"))
    fallen = _fallen(model)
    rows = np.linspace(0, len(first) - 1, min(limit, len(first))).astype(np.int64)
    ax = _axes(ax, SQUARE)
    for chosen, colour, label in (
        (rows[~fallen[rows]], palette.clean, "stands"),
        (rows[fallen[rows]], palette.robust, "falls"),
    ):
        # edgecolors "none": 2000 outlines double the size of the file.
        ax.scatter(
            100 * second[chosen],
            100 * first[chosen],
            s=9,
            alpha=0.65,
            color=colour,
            edgecolors="none",
            label=label,
        )
    ax.plot([0, 100], [0, 100], color=_ink(), linewidth=0.8, linestyle="--", alpha=0.6)
    ax.set(
        xlim=(0, 101),
        ylim=(0, 101),
        aspect="equal",
        xlabel="confidence of the reference (%)",
        ylabel="confidence of the model (%)",
    )
    return ax


def _fallen(conditions: Mapping[str, Mapping[str, NDArray[np.float32]]]) -> NDArray[np.bool_]:
    """Samples that are wrong without an attack or under the strongest one, ``(N,)``."""
    wrong = [values["margin"] < 0 for values in conditions.values() if len(values["margin"])]
    fallen: NDArray[np.bool_] = np.any(wrong, axis=0)
    return fallen


def plot_strength(
    report: ClasswiseReport,
    ax: Axes | None = None,
    *,
    logarithmic: bool | None = None,
    palette: Palette = PALETTE,
) -> Axes:
    """Robust accuracy against the passes spent: one falling line per attack.

    A line starts at the clean accuracy and falls where the attack's forward passes turned samples; the sooner
    and the deeper, the stronger. An attack that takes all of its steps on every sample has one step at its
    end. Dashed line: robust accuracy under all attacks together.

    Args:
        report: of :func:`~art_logits.analysis.classwise_report`.
        ax: where to draw; a new figure if None.
        logarithmic: whether the passes have a logarithmic scale, from 1; if None, where one attack spends
            five times the passes of another or more (:func:`unequal_passes`).
        palette: the last attack has the colour ``robust``, the others ``clean``, told apart by their dashes:
            an attack looks the same for every model.

    Returns:
        The axes.
    """
    ax = _axes(ax, PANEL)
    last = max((float(curve.forwards[-1]) for curve in report.strength.values()), default=0.0)
    for rank, (name, curve) in enumerate(report.strength.items()):
        newest = rank == len(report.strength) - 1
        ax.plot(
            [*curve.forwards, last],
            100 * np.append(curve.standing, curve.standing[-1]),
            drawstyle="steps-post",
            color=palette.robust if newest else palette.clean,
            linestyle="-" if newest else _DASHES[rank % len(_DASHES)],
            label=middle(printable(name), 32),
        )
    ax.axhline(100 * report.robust_accuracy, color=_ink(), linewidth=1, linestyle="--", alpha=0.7)
    ax.set(xlabel="forward passes per sample", ylabel="still right (%)", ylim=(0, None))
    if unequal_passes(report) if logarithmic is None else logarithmic:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlim(left=1)
    else:
        ax.set_xlim(left=0)
    return ax


def unequal_passes(report: ClasswiseReport) -> bool:
    """Whether one attack spends five times the passes of another or more.

    Next to one with thousands of passes another with twenty is no more than a line at the edge.
    """
    ends = [int(curve.forwards[-1]) for curve in report.strength.values()]
    return bool(ends) and max(ends) >= _MANY_TIMES * min(ends)


def add_key(ax: Axes) -> None:
    """Name the lines of axes that have a figure of constrained layout to themselves.

    The key lies above the axes, where it hides nothing, and the figure grows by its height.

    Args:
        ax: with labelled lines or points.
    """
    figure: Any = ax.figure
    key = figure.legend(loc="outside upper left", frameon=False, fontsize="small", ncols=2)
    rows = -(-len(key.get_texts()) // 2)
    figure.set_size_inches(figure.get_figwidth(), figure.get_figheight() + _KEY_ROW * rows)
    _literal(key.get_texts())


def plot_changes(
    comparison: Comparison,
    ax: Axes | None = None,
    *,
    shown: Sequence[int] | None = None,
    palette: Palette = PALETTE,
) -> Axes:
    """Robust accuracy of every class in two evaluations, joined by a line.

    Args:
        comparison: of :func:`~art_logits.analysis.compare`.
        ax: where to draw; a new figure if None.
        shown: indices of the classes, from the top; all if None.
        palette: ``clean`` for the first evaluation, ``robust`` for the second, filled where a class
            changed at 5 % after Holm's correction.

    Returns:
        The axes.
    """
    chosen = np.arange(len(comparison.class_names)) if shown is None else np.array(shown)
    ax = _axes(ax, bars_size(len(chosen)))
    rows = np.arange(len(chosen))
    first, second = 100 * comparison.robust_a[chosen], 100 * comparison.robust_b[chosen]
    changed = comparison.p_holm[chosen] < 0.05
    ax.hlines(rows, first, second, color=_ink(), linewidth=1.5, alpha=0.5)
    ax.scatter(first, rows, s=36, color=palette.clean, zorder=3)
    faces = np.where(changed, palette.robust, "none")
    ax.scatter(second, rows, s=36, facecolors=faces, edgecolors=palette.robust, linewidths=1.5, zorder=3)
    ax.set_yticks(rows, _names(comparison.class_names, chosen, 24))
    ax.set(xlim=(-2, 102), ylim=(len(chosen) - 0.4, -0.6), xlabel="robust accuracy (%)")
    ax.tick_params(axis="y", length=0)
    _literal(ax.get_yticklabels())
    return ax


_DASHES: tuple[Any, ...] = ("-", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


class Drawing(NamedTuple):
    """A figure to be written.

    Attributes:
        name: of its files, without suffix.
        size: width and height in inches.
        draw: draws into axes and returns them.
        key: whether its lines need a key.
    """

    name: str
    size: tuple[float, float]
    draw: Callable[[Axes], Axes]
    key: bool = False


def write_figures(records: Records, out: Path) -> list[Path]:
    """Draw everything that the records show, as PNG and SVG files for papers.

    Args:
        records: of an evaluation.
        out: folder, made where it is missing; files of the same names in it are replaced, each atomically.

    Returns:
        The files: ``classes``, ``transitions`` and ``strength``, those of the reference prefixed
        ``reference-``, one ``histogram-<quantity>`` per quantity of the logits, ``confidence-clean`` and
        ``confidence-adversarial``; those that need attacks or a reference where there are any.
    """
    classes, logit = records.classwise(), records.logits()
    drawings = [*_class_drawings("", classes), *_logit_drawings(logit)]
    if classes.reference is not None:
        drawings += _class_drawings("reference-", classes.reference)
    return [path for drawing in drawings for path in write(drawing, out)]


def _class_drawings(prefix: str, report: ClasswiseReport) -> Iterator[Drawing]:
    bars, cells = len(worst_first(report.robust, MAX_BARS)), len(matrix_classes(report)[0])
    yield Drawing(f"{prefix}classes", bars_size(bars), report.plot_classes)
    yield Drawing(f"{prefix}transitions", matrix_size(cells), report.plot_transitions)
    if report.attacks:
        yield Drawing(f"{prefix}strength", PANEL, report.plot_strength, True)


def _logit_drawings(report: LogitReport) -> Iterator[Drawing]:
    for quantity in QUANTITY_LABELS:
        yield Drawing(f"histogram-{quantity}", PANEL, partial(report.plot_histograms, quantity), True)
    if "reference" in report.samples:
        for condition, quantities in report.samples["model"].items():
            if len(quantities["confidence"]):
                yield Drawing(
                    f"confidence-{condition}", SQUARE, partial(report.plot_confidence, condition), True
                )


def write(drawing: Drawing, out: Path) -> list[Path]:
    """Draw a figure and :func:`save` it.

    Args:
        drawing: what to draw.
        out: folder, made where it is missing.

    Returns:
        The files.
    """
    out.mkdir(parents=True, exist_ok=True)
    with style():
        figure = Figure(figsize=drawing.size, layout="constrained")
        ax = drawing.draw(figure.subplots())
        if drawing.key:
            add_key(ax)
        return save(figure, out / drawing.name)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG (200 dpi) and as SVG, for papers; the same figure gives the same bytes.

    Text in the SVG is drawn as paths, so that it looks the same where a font is missing.

    Args:
        figure: what to write.
        stem: path without a suffix; ``.png`` and ``.svg`` are added.

    Returns:
        Both paths; older files of these names are replaced, each atomically.
    """
    written = []
    # Without a salt the ids in an SVG are random, and without the Nones both files hold date and version.
    with matplotlib.rc_context({"svg.hashsalt": stem.name, "svg.fonttype": "path"}):
        for suffix, nothing in ((".png", ["Software"]), (".svg", ["Date", "Creator"])):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix[1:], dpi=200, metadata=dict.fromkeys(nothing))
            path = stem.with_name(stem.name + suffix)
            write_atomically(path, buffer.getvalue())
            written.append(path)
    return written


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    if ax is not None:
        return ax
    # Only here, because pyplot keeps every figure until it is closed.
    pyplot = require("matplotlib.pyplot", extra="evaluate")
    _, new = pyplot.subplots(figsize=size, layout="constrained")
    made: Axes = new
    return made


def _ink() -> Any:
    return matplotlib.rcParams["text.color"]


def _names(class_names: tuple[str, ...], shown: Iterable[int], limit: int) -> list[str]:
    return [middle(printable(class_names[index]), limit) for index in shown]


def _literal(texts: Iterable[Text]) -> None:
    """Names are data: no formulas, no TeX, whatever matplotlib is set to."""
    for text in texts:
        text.set_parse_math(False)
        text.set_usetex(False)
