"""The command ``art-logits``, also as ``python -m art_logits``.

What a user can get wrong ends in one line on stderr and exit code 2; Ctrl-C in one line and 130.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ._extras import require

if TYPE_CHECKING:
    import typer

__all__ = ["build_app", "main"]

USER_ERROR, INTERRUPTED = 2, 130

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; default those of the process.

    Returns:
        The exit code: 0, 2 for a user's error, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        app = build_app()
        app(args=arguments, prog_name="art-logits", obj=arguments)
    except ImportError as error:
        return _fail(error)
    except SystemExit as end:  # how Typer ends, whatever happened
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0  # pragma: no cover - Typer ends by SystemExit


def build_app() -> typer.Typer:
    """The Typer app with its commands.

    Raises:
        ImportError: if the extra ``evaluate`` is not installed; the message says how to install it.
    """
    require("typer", extra="evaluate")
    import typer

    from .distill_cli import distill
    from .evaluate_cli import evaluate
    from .report_cli import compare, report
    from .training_cli import train

    app = typer.Typer(
        help="Class-wise robustness, logit distributions and Temperature-PGD.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_version_option())
    app.command("evaluate")(_one_line_errors(evaluate))
    app.command("report")(_one_line_errors(report))
    app.command("compare")(_one_line_errors(compare))
    app.command("train")(_one_line_errors(train))
    app.command("distill")(_one_line_errors(distill))
    return app


def _version_option() -> Callable[..., None]:
    """The options of ``art-logits`` itself."""
    import typer

    def show(value: bool) -> None:
        if value:
            from ._version import __version__

            typer.echo(f"art-logits {__version__}")
            raise typer.Exit

    option = typer.Option(False, "--version", help="Show the version and exit.", callback=show, is_eager=True)

    def callback(version: bool = option) -> None:
        pass

    return callback


def _one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn a command's errors that a user can cause into one line and an exit code."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        import torch
        import typer

        try:
            command(*args, **kwargs)
        except KeyboardInterrupt as interruption:
            print(f"\n{str(interruption) or 'interrupted'}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except torch.OutOfMemoryError as error:
            # Our own loops halve their batches; an attack of a host may take a whole one.
            remedy = "" if "a single sample" in str(error) else ": try a smaller --batch-size"
            raise typer.Exit(_fail(f"{error}{remedy}")) from error
        except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
            raise typer.Exit(_fail(error)) from error

    return wrapper


def _fail(error: object) -> int:
    """Print an error as one line; the traceback goes to the log."""
    logger.debug("the command failed", exc_info=True)
    message = " ".join(str(error).split()) or type(error).__name__
    print(f"error: {message}", file=sys.stderr)
    return USER_ERROR
