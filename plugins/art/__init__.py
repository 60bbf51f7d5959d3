"""Adapter to the Adversarial Robustness Toolbox (ART): its evasion attack and a trainer, in one import."""

from __future__ import annotations

from art_logits._extras import require

require("art.attacks", extra="art")

from .distillation import DistillationTrainer  # noqa: E402 (the message above comes first)
from .evasion import TemperaturePGD  # noqa: E402

__all__ = ["DistillationTrainer", "TemperaturePGD"]
