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


def threat(records: Records) -> str:
    """Norm and radius of the attacks, such as ``"Linf, eps 8/255"``; nothing where the manifest has none.

    Attacks with different ones are listed one after the other.
    """
    configs = (_identity(records).get("attacks") or {}).values()
    stages = [stage for config in configs for stage in _stages(config)]
    known = dict.fromkeys(
        f"{stage['norm']}, eps {_radius(stage['eps'])}"
        for stage in stages
        if stage.get("norm") and isinstance(stage.get("eps"), (int, float))
    )
    return "; ".join(known)


def _stages(config: Any) -> list[Mapping[str, Any]]:
    """An attack's config, or those of the attacks that it consists of."""
    if not isinstance(config, Mapping):
        return []
    return [each for each in config.get("stages", [config]) if isinstance(each, Mapping)]


def _radius(eps: float) -> str:
    """A radius as the field writes it: of pixels in [0, 1] as a fraction of 255.

    >>> _radius(8 / 255), _radius(0.2), _radius(0.03)
    ('8/255', '0.2', '0.03')
    """
    text, levels = f"{eps:g}", 255 * eps
    short = len(text) < 6  # 0.2 is 51/255, but nobody calls it that
    return text if short or abs(levels - round(levels)) > 1e-6 else f"{round(levels)}/255"


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
