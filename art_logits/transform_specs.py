"""Transforms of teacher logits by name: ``flatten``, ``order:how=reversed``, ``keep-top:k=2``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from typing import Any

from . import _checks
from .presets import parse_number, read_integer, read_options, split_options
from .transforms import TRANSFORMS, Compose, Transform

__all__ = ["parse_transform", "parse_transforms"]

_READERS: dict[str, Callable[[str], Any]] = {
    "factor": parse_number,
    "value": parse_number,
    "correlation": parse_number,
    "confidence": parse_number,
    "k": read_integer,
    "seed": read_integer,
    "how": str,
    "within": str,
    "around": str,
}


def parse_transform(spec: str) -> Transform:
    """Read a transform spec, ``NAME[:key=value,...]``.

    Args:
        spec: a name of :data:`~art_logits.transforms.TRANSFORMS`, and the arguments of its class.

    Returns:
        The transform.

    Raises:
        ValueError: for an unknown name or key (naming the nearest), a key that is missing or given twice, or
            a value of a wrong kind or out of range.

    >>> parse_transform("confidence:how=cap,value=0.9")
    Confidence(how='cap', value=0.9)
    """
    name, colon, text = "".join(spec.split()).partition(":")
    if name not in TRANSFORMS:
        near = _checks.nearest(name, TRANSFORMS)
        raise ValueError(f"transform must be one of {', '.join(TRANSFORMS)}, got {spec!r}{near}")
    make = TRANSFORMS[name]
    known = {field.name: _READERS[field.name] for field in fields(make)}
    options = read_options(split_options(text, spec, "transform") if colon else {}, known, spec, "transform")
    try:
        return make(**options)
    except TypeError as error:  # of a dataclass, about the arguments that are missing
        raise ValueError(f"transform {spec!r}: give {_missing(make, options)} too") from error
    except ValueError as error:
        raise ValueError(f"transform {spec!r}: {error}") from error


def parse_transforms(specs: Iterable[str]) -> Compose:
    """Read several specs, which are applied in turn; none is the identity.

    Raises:
        ValueError: as :func:`parse_transform` raises.
    """
    return Compose(*map(parse_transform, specs))


def _missing(make: type[Transform], given: Iterable[str]) -> str:
    """The arguments that a class must have and was not given, as a spec writes them."""
    absent = [name for name in _required(make) if name not in given]
    return ", ".join(f"{name}=..." for name in absent)


def _required(make: type[Transform]) -> list[str]:
    return [field.name for field in fields(make) if field.default is MISSING]
