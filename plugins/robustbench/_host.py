"""Import RobustBench as it comes from PyPI, where ``import robustbench`` alone fails twice.

It imports ``pkg_resources``, which current versions of setuptools do not have, for one function; and
``autoattack``, which PyPI does not have. While it is imported, and only then, stand-ins take the places of
those that are missing: nobody else ever finds them in ``sys.modules``.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from types import ModuleType
from typing import Any

from art_logits._extras import require

from .autoattack import host_class, is_installed

__all__ = ["robustbench"]

_LOCK = threading.Lock()
#: Imported before the stand-ins are in place: these and what they import must see the world as it is.
_FIRST = ("timm", "torchvision.transforms", "gdown", "requests", "pandas")


def robustbench(module: str) -> Any:
    """A module of RobustBench, such as ``"utils"`` or ``"model_zoo.models"``.

    Raises:
        ImportError: RobustBench is not installed, or neither AutoAttack nor its twin is.
    """
    with _LOCK:
        if "robustbench" not in sys.modules:
            for name in _FIRST:
                require(name, extra="robustbench")
            with _stand_ins():
                require("robustbench", extra="robustbench")
    return importlib.import_module(f"robustbench.{module}")


def _pkg_resources() -> ModuleType:
    """The one function of ``pkg_resources`` that RobustBench uses."""

    def resource_filename(module: str, resource: str) -> str:
        return str(resources.files(module.rpartition(".")[0]) / resource)

    stand_in: Any = ModuleType("pkg_resources")
    stand_in.resource_filename = resource_filename
    return stand_in  # type: ignore[no-any-return]


def _autoattack() -> ModuleType:
    stand_in: Any = ModuleType("autoattack")
    stand_in.AutoAttack = host_class()
    return stand_in  # type: ignore[no-any-return]


def _autoattack_state() -> ModuleType:
    stand_in: Any = ModuleType("autoattack.state")
    stand_in.EvaluationState = require("pyautoattack.state", extra="robustbench").EvaluationState
    return stand_in  # type: ignore[no-any-return]


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Put stand-ins into ``sys.modules`` for what is missing, and take them out again."""
    builders: dict[str, Callable[[], ModuleType]] = {}
    # A pkg_resources that is there but not yet imported warns that it is deprecated.
    if "pkg_resources" not in sys.modules:
        builders["pkg_resources"] = _pkg_resources
    if not is_installed("autoattack"):
        builders |= {"autoattack": _autoattack, "autoattack.state": _autoattack_state}
    built = {name: build() for name, build in builders.items()}
    sys.modules.update(built)
    try:
        yield
    finally:
        for name, module in built.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
