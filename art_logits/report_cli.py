"""``art-logits report`` and ``art-logits compare``: everything again from the records alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ._extras import require
from ._text import printable
from .cli_options import Figures

if TYPE_CHECKING:
    import typer
else:
    typer = require("typer", extra="evaluate")

COMPARISON = Path("art-logits-runs/comparison")


def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write to.", show_default="DIR")] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Also of a run that was interrupted, as far as it got.")
    ] = False,
    figures: Figures = False,
) -> None:
    """Make the tables and the report of a run again; needs neither model, nor data, nor GPU."""
    from .figures import write_figures
    from .records import Records
    from .report import format_class_table, format_warnings, write_outputs

    records = Records.load(directory, partial=partial, lazy=True)
    folder = out or directory
    folder.mkdir(parents=True, exist_ok=True)
    classes = write_outputs(records, folder)
    if figures:
        write_figures(records, folder / "figures")
    typer.echo(format_class_table(records, classes=classes))
    warnings = format_warnings(records)
    if warnings:
        typer.echo(warnings)
    typer.echo(f"report: {folder / 'report.html'}")


def compare(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of runs; the first is the baseline.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for comparison.csv and comparison.html.")] = COMPARISON,
    figures: Figures = False,
) -> None:
    """Compare runs on the same data with the first one, class by class and sample by sample."""
    from .comparison import comparison_warnings, format_comparison, write_changes, write_comparison
    from .records import Records

    names = [str(directory) for directory in directories]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"directories: expected every run once, got {', '.join(twice)} twice")
    runs = {name: Records.load(name, lazy=True) for name in names}
    comparisons = write_comparison(runs, out)
    if figures:
        write_changes(comparisons, out / "figures")
    typer.echo(format_comparison(comparisons, names[0]))
    for warning in comparison_warnings(runs):
        typer.echo(f"warning: {printable(warning)}")
    typer.echo(f"comparison: {out / 'comparison.html'}")
