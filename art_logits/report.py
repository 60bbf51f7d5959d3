"""What people read: a table for the terminal, files for programs, and a self-contained HTML page.

Files hold fractions; the terminal and the page show percent.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from art_logits import figures
from art_logits._class_sections import (
    attack_section,
    class_cells,
    class_section,
    diagnostics_table,
    overall_cells,
    transition_section,
)
from art_logits._files import write_atomically
from art_logits._logit_sections import confidence_section, fall_section, logit_section, picture_section
from art_logits._page import fill, some
from art_logits._provenance import name_of, provenance, threat
from art_logits._text import aligned, interval, middle, percent, printable, width
from art_logits.analysis import ClasswiseReport, LogitReport, classwise_report, logit_report, summarize
from art_logits.diagnostics import find_warnings
from art_logits.functional.classwise import wilson_interval
from art_logits.records import Records

__all__ = ["format_class_table", "format_warnings", "render", "write_outputs"]

_MAX_TERMINAL_ROWS = 50
_SMALL_SUPPORT = 10
_MAX_NAMED = 3


def write_outputs(records: Records, out: Path) -> ClasswiseReport:
    """Write ``summary.json``, ``classwise.csv``, ``logits.csv`` and ``report.html``.

    Args:
        records: of an evaluation.
        out: an existing folder; files of these names in it are replaced, each atomically.

    Returns:
        The class-wise report that was written, for what else is said of it.

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
    return classes


def render(records: Records) -> str:
    """The report as one HTML page without external resources.

    Args:
        records: of an evaluation.

    Returns:
        The page; names of classes, models, data and attacks are escaped.
    """
    return _render(records, classwise_report(records), logit_report(records))


def format_class_table(records: Records, *, classes: ClasswiseReport | None = None) -> str:
    """The classes as a plain-text table for the terminal, in percent.

    Args:
        records: of an evaluation.
        classes: its class-wise report, where it is at hand already.

    Returns:
        One line per class (class, support, clean accuracy, robust accuracy under each attack and under all
        attacks, 95 % interval of the last), the worst class marked, and a line for all samples at the end.
        At most 100 columns wide for up to two attacks. Of more than 50 classes the 50 worst are shown.
    """
    report = classes or classwise_report(records)
    shown = figures.worst_first(report.robust, _MAX_TERMINAL_ROWS)
    heads = ["class", "n", "clean", *(middle(name, 15) for name in report.attacks)]
    heads += ["all attacks", "95 %"]
    rows = [
        [middle(printable(report.class_names[index]), 14), *class_cells(report, index)] for index in shown
    ]
    total = ["overall", *overall_cells(report)]
    lines = aligned([heads, *rows, total])
    body = [
        f"{line}  worst" if index == report.worst_index else line
        for index, line in zip(shown, lines[1:-1], strict=True)
    ]
    rule = "-" * width(lines[0])
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
    return "\n".join(f"warning: {printable(warning.message)}" for warning in find_warnings(records))


def _render(records: Records, classes: ClasswiseReport, logit: LogitReport) -> str:
    return fill(
        "report.html.j2",
        title=f"{name_of(records, 'model')} on {name_of(records, 'data')}",
        headline=_headline(records, classes),
        more=_more(records, classes),
        tiles=_tiles(classes),
        warnings=_warnings(records, classes),
        classes=class_section(classes),
        transitions=transition_section(classes),
        attacks=attack_section(records, classes),
        logits=logit_section(records, logit),
        confidence=confidence_section(records, logit),
        falls=fall_section(records, logit),
        pictures=picture_section(records, logit),
        diagnostics=diagnostics_table(records),
        provenance=provenance(records),
    )


def _headline(records: Records, classes: ClasswiseReport) -> str:
    """One sentence that can be repeated, with its interval."""
    right = (
        f"{name_of(records, 'model')} is right on {percent(classes.clean_accuracy)} of {len(records)} "
        f"samples of {name_of(records, 'data')}"
    )
    if not classes.attacks:
        return f"{right} (95 % interval {interval(*classes.robust_interval)}); no attack ran."
    return (
        f"{right}, and on {percent(classes.robust_accuracy)} "
        f"(95 % interval {interval(*classes.robust_interval)}) also under {_attacks(records)}."
    )


def _attacks(records: Records) -> str:
    """The attacks, where they are few, and what they may do: without that a robust accuracy says nothing."""
    *others, last = records.attacks
    names = f"{', '.join(others)} and {last}" if others else last
    if len(others) >= _MAX_NAMED:
        names = f"all of {len(records.attacks)} attacks"
    allowed = threat(records)
    return f"{names} ({allowed})" if allowed else names


def _more(records: Records, classes: ClasswiseReport) -> str:
    """What else belongs to the result: the worst class and the reference."""
    worst, reference = classes.worst_class, classes.reference
    sentences = []
    if np.count_nonzero(classes.support) > 1:
        sentences.append(
            f"The worst class is {worst.name} with {percent(worst.robust_accuracy)}, "
            f"{100 * classes.disparity:.1f} points below the best."
        )
    if reference is not None:
        sentences.append(
            f"{_reference_name(records)}: {percent(reference.clean_accuracy)} clean, "
            f"{percent(reference.robust_accuracy)} under attack."
        )
    return " ".join(sentences)


def _reference_name(records: Records) -> str:
    name = name_of(records, "reference")
    return "The reference" if name == "reference" else f"The reference {name}"


def _tiles(classes: ClasswiseReport) -> list[dict[str, str]]:
    """The few numbers that are looked for first."""
    reference, worst = classes.reference, classes.worst_class
    beside = ["", ""]
    if reference is not None:
        values = (reference.clean_accuracy, reference.robust_accuracy)
        beside = [f"reference {percent(value)}" for value in values]
    count = int(classes.support.sum())
    clean = wilson_interval(round(classes.clean_accuracy * count), count)
    tiles = [
        (
            "Clean accuracy",
            percent(classes.clean_accuracy),
            f"95 % interval {interval(*map(float, clean))}",
            beside[0],
        ),
        (
            "Robust accuracy",
            percent(classes.robust_accuracy),
            f"95 % interval {interval(*classes.robust_interval)}",
            beside[1],
        ),
        (
            f"Worst class: {worst.name}",
            percent(worst.robust_accuracy),
            f"95 % interval {interval(*classes.worst_interval)}",
            "",
        ),
        (
            "Best minus worst class",
            f"{100 * classes.disparity:.1f} points",
            f"worst 10 % of the classes: {percent(classes.tail_10)}",
            "",
        ),
    ]
    return [
        {"label": label, "value": value, "interval": note, "reference": other}
        for label, value, note, other in tiles
    ]


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
        warnings.append(f"Without samples, hence without values: {some(absent)}.")
    few = [name for name, n in supports if 0 < n < _SMALL_SUPPORT]
    if few:
        warnings.append(f"Fewer than {_SMALL_SUPPORT} samples, hence wide intervals: {some(few)}.")
    return warnings + [warning.message for warning in find_warnings(records)]
