"""Several runs on the same data side by side: a table for the terminal, CSV, and a self-contained page.

The first run is the baseline; each of the others is compared with it, sample by sample. Runs may differ in
the model, in the attacks, or in both: what is compared is the robust accuracy under all attacks of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from art_logits._extras import require
from art_logits._files import write_atomically
from art_logits._text import aligned, middle, percent, printable
from art_logits.analysis import Comparison, compare
from art_logits.records import Records
from art_logits.report import _Row, render_template

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = require("pandas", extra="evaluate")

__all__ = ["compare_all", "comparison_frame", "format_comparison", "render_comparison", "write_comparison"]

_MAX_TERMINAL_ROWS = 50
_HEADS = ["class", "n", "baseline", "this run", "difference", "only baseline", "only this", "p", "p (Holm)"]


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


def _rows(comparison: Comparison) -> list[_Row]:
    columns = comparison.to_frame().itertuples(index=False)
    return [
        _Row(str(name), _cells(*values), worst=bool(values[-1] < 0.05))  # NaN is not below
        for name, *values in columns
    ]


def _overall(comparison: Comparison) -> list[str]:
    return [*_cells(*comparison.overall.values(), np.nan)[:-1], ""]


def _cells(*values: Any) -> list[str]:
    support, first, second, difference, only_first, only_second, p, holm = values
    change = "-" if np.isnan(difference) else f"{100 * difference:+.1f}"
    counts = [str(int(only_first)), str(int(only_second))]
    return [str(int(support)), percent(first), percent(second), change, *counts, _p(p), _p(holm)]


def _p(value: float) -> str:
    return "-" if np.isnan(value) else "<0.0001" if value < 1e-4 else f"{value:.4f}"


def _ranks(comparison: Comparison) -> str:
    ranks = comparison.ranks
    if np.isnan(ranks.spearman):
        return "rank correlation of the classes: not defined"
    interval = (
        ""
        if np.isnan(ranks.spearman_low)
        else f", 95 % {ranks.spearman_low:.2f} to {ranks.spearman_high:.2f}"
    )
    rho, tau = f"Spearman {ranks.spearman:.2f}{interval}", f"Kendall {ranks.kendall:.2f}"
    return f"rank correlation of the classes: {rho}; {tau}"


def _sentence(name: str, comparison: Comparison, baseline: str) -> str:
    overall, changed = comparison.overall, int((comparison.p_holm < 0.05).sum())
    return (
        f"{name} is robust on {percent(overall['robust_b'])} of {overall['support']} shared samples, "
        f"{baseline} on {percent(overall['robust_a'])}: {100 * overall['difference']:+.1f} points "
        f"(McNemar p {_p(overall['p_value'])}). Classes that changed after Holm's correction: {changed}."
    )


def _page(runs: Mapping[str, Records], comparisons: Mapping[str, Comparison]) -> str:
    baseline = next(iter(runs))
    sections = [
        {
            "name": name,
            "sentence": _sentence(name, comparison, baseline),
            "rows": _rows(comparison),
            "overall": _overall(comparison),
            "ranks": _ranks(comparison),
        }
        for name, comparison in comparisons.items()
    ]
    made = [{"name": name, "entries": _origin(records)} for name, records in runs.items()]
    return render_template(
        "comparison.html.j2", baseline=baseline, heads=_HEADS, sections=sections, made=made
    )


def _origin(records: Records) -> str:
    identity = records.manifest.get("identity") or {}
    model = (identity.get("model") or {}).get("name") or "unnamed model"
    command = records.manifest.get("command") or "made from Python"
    return f"{model}; attacks {', '.join(records.attacks) or 'none'}; {len(records)} samples; {command}"
