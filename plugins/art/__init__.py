"""Adapter to the Adversarial Robustness Toolbox (ART): its evasion attack, in one import."""

from __future__ import annotations

from art_logits._extras import require

require("art.attacks", extra="art")

from .evasion import TemperaturePGD  # noqa: E402 (the message above comes first)

__all__ = ["TemperaturePGD"]
