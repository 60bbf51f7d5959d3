"""Adapter to RobustBench: its model zoo, its benchmark and AutoAttack, with what lies behind the one number.

Importing this package imports none of it: RobustBench itself, and timm with it, come with the first model.
"""

from __future__ import annotations

from importlib.util import find_spec

from art_logits._extras import require

if find_spec("robustbench") is None:
    require("robustbench", extra="robustbench")

from .autoattack import AutoAttack
from .benchmarking import BenchmarkResult, benchmark
from .evaluators import ClasswiseEvaluator, LogitEvaluator
from .model_zoo import build_model, load_model, register, unregister, zoo

__all__ = [
    "AutoAttack",
    "BenchmarkResult",
    "ClasswiseEvaluator",
    "LogitEvaluator",
    "benchmark",
    "build_model",
    "load_model",
    "register",
    "unregister",
    "zoo",
]
