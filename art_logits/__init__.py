"""Class-wise robustness, logit distributions and Temperature-PGD for PyTorch classifiers.

The attack is imported at once and needs torch alone. ``evaluate``, ``Records`` and the reports are
imported on first use and need ``pip install "art-logits[evaluate]"``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .attack import AttackResult, TemperaturePGD, pgd

# The function takes the name of its module, which the line above has imported.
from .prepare import prepare

if TYPE_CHECKING:
    from .analysis import ClasswiseReport, Comparison, LogitReport, classwise_report, compare, logit_report
    from .evaluation import evaluate
    from .records import Records

_LAZY = {
    "evaluate": "evaluation",
    "Records": "records",
    "ClasswiseReport": "analysis",
    "Comparison": "analysis",
    "LogitReport": "analysis",
    "classwise_report": "analysis",
    "compare": "analysis",
    "logit_report": "analysis",
}

__all__ = [
    "AttackResult",
    "ClasswiseReport",
    "Comparison",
    "LogitReport",
    "Records",
    "TemperaturePGD",
    "__version__",
    "classwise_report",
    "compare",
    "evaluate",
    "logit_report",
    "pgd",
    "prepare",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
