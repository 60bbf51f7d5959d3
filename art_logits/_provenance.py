"""What a page says about how its records came about: names, command, versions, hashes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from art_logits.records import Records


def _identity(records: Records) -> dict[str, Any]:
    identity: dict[str, Any] = records.manifest.get("identity") or {}
    return identity


def name_of(records: Records, what: str) -> str:
    """The name of the model, the reference or the data; that word itself where the manifest has none."""
    entry = _identity(records).get(what)
    return str((entry or {}).get("name") or what)


def provenance(records: Records) -> list[dict[str, Any]]:
    """Everything that is needed to make a run again, as terms and texts; ``code`` marks a command."""
    manifest, identity = records.manifest, _identity(records)
    entries: list[tuple[str, str, bool]] = []
    if manifest.get("command"):
        entries.append(("Command", str(manifest["command"]), True))
    entries.append(("This page", "art-logits report DIR", True))
    for what in ("model", "reference", "data"):
        if identity.get(what):
            entries.append((what.capitalize(), _pairs(identity[what]), False))
    for name, config in (identity.get("attacks") or {}).items():
        entries.append((f"Attack {name}", _pairs(config), False))
    for what in ("bounds", "seed"):
        if what in identity:
            entries.append((what.capitalize(), str(identity[what]), False))
    for model, passes in (manifest.get("passes") or {}).items():
        entries.append((f"All passes, {model}", _pairs(passes), False))
    if manifest.get("versions"):
        entries.append(("Versions", _pairs(manifest["versions"]), False))
    return [{"term": term, "text": text, "code": code} for term, text, code in entries]


def _pairs(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
