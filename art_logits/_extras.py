"""Import what only an extra installs, and say which one when it is missing."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType


def require(module: str, *, extra: str) -> ModuleType:
    """Import ``module``, or say which extra of art-logits brings it.

    Args:
        module: dotted name of the module, such as ``"pyarrow.parquet"``.
        extra: the extra of art-logits that installs it, such as ``"evaluate"``.

    Returns:
        The imported module (the submodule itself, not its package).

    Raises:
        ImportError: the distribution of ``module`` is not installed. An installed one that fails while it
            is imported raises its own error, which says more.

    >>> require("json", extra="evaluate").dumps({})
    '{}'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        message = f'{_caller()} needs {package}, which is not installed: pip install "art-logits[{extra}]"'
        raise ImportError(message, name=package) from error


def _caller() -> str:
    """Name of the module that called :func:`require`, for the message."""
    name = sys._getframe(2).f_globals.get("__name__", "art_logits")
    return str(name)
