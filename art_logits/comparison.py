"""Several runs on the same data side by side: a table for the terminal, CSV, and a self-contained page.

The first run is the baseline; each of the others is compared with it, sample by sample. Runs may differ in
the model, in the attacks, or in both: what is compared is the robust accuracy under all attacks of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from art_logits import figures
from art_logits._extras import require
from art_logits._files import write_atomically
from art_logits._page import COLOURS, Picture, Row, Table, draw, fill, folded
from art_logits._provenance import name_of, provenance, threat
from art_logits._text import aligned, middle, percent, points, points_span, printable, span
from art_logits.analysis import Comparison, compare
from art_logits.records import Records

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = require("pandas", extra="evaluate")

__all__ = [
    "compare_all",
    "comparison_frame",
    "comparison_warnings",
    "format_comparison",
    "render_comparison",
    "write_changes",
    "write_comparison",
]

_MAX_TERMINAL_ROWS = 50
_LEVEL = 0.05
_HEADS = ["class", "n", "baseline", "this run", "difference", "95 %"]
_PAGE_HEADS = ["class", "samples", "baseline", "this run", "difference (points)", "95 % interval (points)"]
_HEADS += (_TESTS := ["only baseline", "only this", "p", "p (Holm)"])
_PAGE_HEADS += _TESTS


def compare_all(runs: Mapping[str, Records]) -> dict[str, Comparison]:
    """Compare every run with the first one.

    Args:
        runs: at least two, by name.

    Returns:
        One comparison per run but the first; ``a`` is the first, ``b`` the run.

    Raises:
        ValueError: fewer than two runs, or runs on different data; the message names them.
    """
    if len(runs) < 2:
        raise ValueError(f"runs: expected at least two to compare, got {len(runs)}")
    (first, baseline), *others = runs.items()
    result = {}
    for name, records in others:
        try:
            result[name] = compare(baseline, records)
        except ValueError as error:
            raise ValueError(f"cannot compare {first} (a) with {name} (b): {error}") from error
    return result


def comparison_frame(comparisons: Mapping[str, Comparison]) -> pd.DataFrame:
    """All comparisons in one table.

    Args:
        comparisons: of :func:`compare_all`.

    Returns:
        Column ``run``, then those of :meth:`~art_logits.analysis.Comparison.to_frame`; one row per run and
        class, and one per run with an empty ``class`` for all samples.
    """
    frames = []
    for name, comparison in comparisons.items():
        overall = pd.DataFrame([{"class": "", **comparison.overall}])
        frame = pd.concat([comparison.to_frame(), overall], ignore_index=True)
        frame.insert(0, "run", name)
        frames.append(frame)
    result: pd.DataFrame = pd.concat(frames, ignore_index=True)
    return result


def format_comparison(comparisons: Mapping[str, Comparison], baseline: str) -> str:
    """The comparisons as plain-text tables for the terminal, in percent and percentage points.

    Args:
        comparisons: of :func:`compare_all`.
        baseline: name of the first run.

    Returns:
        Per run its name, a line per class, one for all samples and one on the ranks of the classes. Of more
        than 50 classes the 50 that changed most are shown.
    """
    return "\n\n".join(_text(name, comparison, baseline) for name, comparison in comparisons.items())


def render_comparison(runs: Mapping[str, Records]) -> str:
    """The comparison as one HTML page without external resources.

    Args:
        runs: at least two, by name; the first is the baseline.

    Returns:
        The page; all names are escaped.

    Raises:
        ValueError: as :func:`compare_all`.
    """
    return _page(runs, compare_all(runs))


def write_comparison(runs: Mapping[str, Records], out: Path) -> dict[str, Comparison]:
    """Write ``comparison.csv`` and ``comparison.html``.

    Args:
        runs: at least two, by name; the first is the baseline.
        out: folder, made where it is missing; files of these names in it are replaced, each atomically.

    Returns:
        The comparisons.

    Raises:
        ValueError: as :func:`compare_all`; nothing is written then.
    """
    comparisons = compare_all(runs)
    page, table = _page(runs, comparisons), comparison_frame(comparisons).to_csv(index=False)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "comparison.csv", table.encode())
    write_atomically(out / "comparison.html", page.encode())
    return comparisons


def comparison_warnings(runs: Mapping[str, Records]) -> list[str]:
    """What must be known before trusting a comparison.

    Args:
        runs: by name.

    Returns:
        Sentences: whether the attacks of the runs may change the inputs by unequal amounts, and whether some
        run lacks samples that another has.
    """
    allowed = {name: threat(records) for name, records in runs.items() if threat(records)}
    sizes = {name: len(records) for name, records in runs.items()}
    found = []
    if len(set(allowed.values())) > 1:
        each = "; ".join(f"{name}: {text}" for name, text in allowed.items())
        found.append(
            f"The runs have different threat models, so differences are not the models' alone ({each})."
        )
    if len(set(sizes.values())) > 1:
        each = ", ".join(f"{name}: {count}" for name, count in sizes.items())
        found.append(f"The runs have different numbers of samples; only shared ones are compared ({each}).")
    return found


def write_changes(comparisons: Mapping[str, Comparison], out: Path) -> list[Path]:
    """Draw what changed from class to class, as PNG and SVG files for papers.

    Args:
        comparisons: of :func:`compare_all`.
        out: folder, made where it is missing; files of the same names in it are replaced, each atomically.

    Returns:
        The files: ``changes-1`` of the first run after the baseline, ``changes-2`` of the next; of many
        classes those that changed most.
    """
    drawings = [
        figures.Drawing(
            f"changes-{number}", figures.bars_size(len(shown)), partial(each.plot_changes, shown=shown)
        )
        for number, each in enumerate(comparisons.values(), start=1)
        for shown in [_most_changed(each, figures.MAX_BARS)]
    ]
    return [path for drawing in drawings for path in figures.write(drawing, out)]


def _text(name: str, comparison: Comparison, baseline: str) -> str:
    shown = _most_changed(comparison, _MAX_TERMINAL_ROWS)
    rows = [[middle(printable(row.name), 14), *row.cells] for row in _rows(comparison)]
    lines = aligned([_HEADS, *(rows[index] for index in shown), ["overall", *_overall(comparison)]])
    hidden = len(rows) - len(shown)
    more = [f"({hidden} classes that changed less are not shown)"] if hidden else []
    rule = "-" * max(map(len, lines))
    head = f"{printable(name)} against {printable(baseline)}"
    return "\n".join([head, lines[0], rule, *lines[1:-1], *more, rule, lines[-1], _ranks(comparison)])


def _most_changed(comparison: Comparison, limit: int) -> list[int]:
    """Indices of the classes: all in their order, or, of more than ``limit``, the largest changes first."""
    change: NDArray[np.float64] = -np.abs(comparison.difference)
    if len(change) <= limit:
        return list(range(len(change)))
    return [int(index) for index in np.argsort(change, kind="stable")[:limit]]


def _rows(comparison: Comparison) -> list[Row]:
    columns = comparison.to_frame().itertuples(index=False)
    return [
        Row(str(name), _cells(*values), "changed" if values[-1] < _LEVEL else "")  # NaN is not below
        for name, *values in columns
    ]


def _overall(comparison: Comparison) -> list[str]:
    return [*_cells(*comparison.overall.values(), np.nan)[:-1], ""]


def _cells(*values: Any) -> list[str]:
    support, first, second, difference, low, high, only_first, only_second, p, holm = values
    change = [percent(first), percent(second), points(difference), points_span(low, high)]
    return [str(int(support)), *change, str(int(only_first)), str(int(only_second)), _p(p), _p(holm)]


def _p(value: float) -> str:
    return "-" if np.isnan(value) else "<0.0001" if value < 1e-4 else f"{value:.4f}"


def _ranks(comparison: Comparison) -> str:
    ranks = comparison.ranks
    if np.isnan(ranks.spearman):
        return "rank correlation of the classes: not defined"
    values = {
        "Spearman": (ranks.spearman, ranks.spearman_low, ranks.spearman_high),
        "Kendall": (ranks.kendall, ranks.kendall_low, ranks.kendall_high),
    }
    words = [
        f"{name} {value:.2f}" + ("" if np.isnan(low) else f", 95 % {span(low, high)}")
        for name, (value, low, high) in values.items()
    ]
    return f"rank correlation of the classes: {'; '.join(words)}"


def _sentence(name: str, comparison: Comparison, baseline: str) -> str:
    overall = comparison.overall
    interval = points_span(overall["difference_low"], overall["difference_high"])
    return (
        f"{name} is robust on {percent(overall['robust_b'])} of {overall['support']} shared samples, "
        f"{baseline} on {percent(overall['robust_a'])}: {points(overall['difference'])} points "
        f"(95 % interval {interval}, McNemar p {_p(overall['p_value'])})."
    )


def _changed(comparison: Comparison) -> str:
    """Which classes changed, in words."""
    changed = np.flatnonzero(comparison.p_holm < _LEVEL)
    worst = [int(np.nanargmin(robust)) for robust in (comparison.robust_a, comparison.robust_b)]
    names, values = comparison.class_names, (comparison.robust_a, comparison.robust_b)
    words = [f"{names[index]} with {percent(each[index])}" for index, each in zip(worst, values, strict=True)]
    return (
        f"Classes that changed after Holm's correction: {len(changed)}. "
        f"Worst class: {words[0]} in the baseline, {words[1]} in this run."
    )


def _figure(index: int, comparison: Comparison) -> Picture:
    shown = _most_changed(comparison, figures.MAX_BARS)
    which = "" if len(shown) == len(comparison.class_names) else f"The {len(shown)} largest changes. "
    return draw(
        f"changes-{index}",
        figures.bars_size(len(shown)),
        lambda ax: figures.plot_changes(comparison, ax, shown=shown, palette=COLOURS),
        f"Robust accuracy of {len(shown)} classes in both runs, "
        f"{points(comparison.overall['difference'])} points over all classes",
        f"{which}Robust accuracy under all attacks. Blue: baseline. Orange: this run; filled where the class "
        "changed at 5 % after Holm's correction.",
    )


def _table(comparison: Comparison) -> Table:
    overall = Row("overall", _overall(comparison))
    table = Table("Classes", _PAGE_HEADS, _rows(comparison), overall)
    about = f"The 15 largest losses and the 5 largest gains of {len(table.rows)} classes; all of them below."
    return folded(table, comparison.difference.tolist(), about)


def _page(runs: Mapping[str, Records], comparisons: Mapping[str, Comparison]) -> str:
    baseline = next(iter(runs))
    sections = [
        {
            "name": name,
            "sentence": _sentence(name, comparison, baseline),
            "changed": _changed(comparison),
            "figure": _figure(index, comparison),
            "table": _table(comparison),
            "ranks": f"R{_ranks(comparison)[1:]}.",
        }
        for index, (name, comparison) in enumerate(comparisons.items())
    ]
    made = [
        {"name": name, "origin": _origin(records), "entries": provenance(records)}
        for name, records in runs.items()
    ]
    overview = Table("Runs", _RUN_HEADS, [_run_row(name, records) for name, records in runs.items()])
    return fill(
        "comparison.html.j2",
        title=f"Comparison with {baseline}",
        overview=overview,
        cautions=comparison_warnings(runs),
        sections=sections,
        made=made,
    )


_RUN_HEADS = ["run", "model", "attacks", "samples", "clean", "robust", "threat model"]


def _run_row(name: str, records: Records) -> Row:
    attacks = ", ".join(records.attacks) or "none"
    accuracies = [percent(float(outcome.mean())) for outcome in (records.correct(), records.robust())]
    return Row(
        name, [name_of(records, "model"), attacks, str(len(records)), *accuracies, threat(records) or "-"]
    )


def _origin(records: Records) -> str:
    identity = records.manifest.get("identity") or {}
    model = (identity.get("model") or {}).get("name") or "unnamed model"
    command = records.manifest.get("command") or "made from Python"
    return f"{model}; attacks {', '.join(records.attacks) or 'none'}; {len(records)} samples; {command}"
