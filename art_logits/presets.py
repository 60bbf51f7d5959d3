"""Attacks by name: ``pgd``, ``temperature-pgd:steps=50,restarts=2``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Iterable
from typing import Any

from . import _checks
from .attack import TemperaturePGD

__all__ = ["ATTACKS", "free_name", "parse_attack", "parse_attacks", "parse_number"]

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?(/\d+\.?\d*)?")


def parse_number(text: str) -> float:
    """Read a number, also written as a fraction.

    Args:
        text: such as ``"0.1"``, ``"1e-2"`` or ``"8/255"``.

    Returns:
        The number, finite.

    Raises:
        ValueError: if the text is no such number, or divides by zero.

    >>> parse_number("8/255") == 8 / 255, parse_number("0.1")
    (True, 0.1)
    """
    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError(f"expected a number such as 0.1 or 8/255, got {text!r}")
    top, _, bottom = text.partition("/")
    if bottom and float(bottom) == 0:
        raise ValueError(f"expected a number such as 0.1 or 8/255, got {text!r}, which divides by zero")
    value = float(top) / float(bottom) if bottom else float(top)
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number such as 0.1 or 8/255, got {text!r}")
    return value


def _integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d+", text):
        raise ValueError(f"expected an integer, got {text!r}")
    return int(text)


def _boolean(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


def _number_or_word(text: str) -> float | str:
    return text if text.isidentifier() else parse_number(text)


# Every field of TemperaturePGD but `bounds`, which belongs to the data, and `targeted`, which needs targets.
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "eps": parse_number,
    "norm": str,
    "steps": _integer,
    "step_size": _number_or_word,
    "temperature": _number_or_word,
    "loss": str,
    "restarts": _integer,
    "random_start": _boolean,
    "stop_on_success": _boolean,
    "keep": str,
    "seed": _integer,
    "momentum": parse_number,
}


def _pgd_options(eps: float) -> dict[str, Any]:
    """The field's PGD-20: plain cross-entropy and steps of eps / 4, which is 2/255 at 8/255."""
    # At eps 0 every step is projected back, but its size must be positive.
    return {"temperature": 1.0, "steps": 20, "step_size": eps / 4 or 1.0}


def _temperature_pgd_options(eps: float) -> dict[str, Any]:
    """What :class:`TemperaturePGD` does by default: the gap temperature and a cosine step."""
    return {}


ATTACKS: dict[str, Callable[[float], dict[str, Any]]] = {
    "pgd": _pgd_options,
    "temperature-pgd": _temperature_pgd_options,
}
"""Name of each preset, to its arguments of :class:`TemperaturePGD` at a radius."""


def parse_attack(
    spec: str, *, norm: str, eps: float, bounds: tuple[float, float] = (0.0, 1.0), seed: int = 0
) -> tuple[str, TemperaturePGD]:
    """Read an attack spec, ``NAME[:key=value,...]``.

    Names: ``pgd``, the field's PGD-20 (cross-entropy, step eps / 4, random start), and ``temperature-pgd``,
    the defaults of :class:`TemperaturePGD`. Like every attack here, both stop a sample at its first success
    and otherwise keep the best iterate. Keys: the fields of :class:`TemperaturePGD` except ``bounds`` and
    ``targeted``; values are numbers (also ``8/255``), words, or ``true`` and ``false``.

    The name for results is the spec itself without spaces, and with ``_`` for each ``.``, because a dot
    separates an attack from its columns in the records: ``pgd:eps=0.1`` is called ``pgd:eps=0_1``.

    Args:
        spec: the attack.
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``, where the spec says none.
        eps: radius, where the spec says none.
        bounds: limits of the inputs.
        seed: of the random starts, where the spec says none.

    Returns:
        The name for results, and the attack.

    Raises:
        ValueError: for an unknown name or key (naming the nearest), a value of a wrong kind, a key given
            twice, or a norm given without its eps.
        TypeError: as :class:`TemperaturePGD` raises.

    >>> name, attack = parse_attack("pgd:steps=50,eps=4/255", norm="Linf", eps=8 / 255)
    >>> name, attack.steps, attack.eps == 4 / 255, attack.step_size == 1 / 255
    ('pgd:steps=50,eps=4/255', 50, True, True)
    """
    compact = "".join(spec.split())
    preset, colon, text = compact.partition(":")
    if preset not in ATTACKS:
        near = _checks.nearest(preset, ATTACKS)
        raise ValueError(f"attack must be one of {', '.join(ATTACKS)}, got {spec!r}{near}")
    options = _parse_options(text, spec) if colon else {}
    if options.get("norm", norm) != norm and "eps" not in options:
        raise ValueError(f"attack {spec!r} changes the norm and must give its eps too: norm=...,eps=...")
    options = {"norm": norm, "eps": eps, "seed": seed, **options}
    arguments = {**ATTACKS[preset](options["eps"]), "bounds": bounds, **options}
    try:
        attack = TemperaturePGD(**arguments)
    except (TypeError, ValueError) as error:
        raise type(error)(f"attack {spec!r}: {error}") from error
    return compact.replace(".", "_"), attack


def parse_attacks(
    specs: Iterable[str], *, norm: str, eps: float, bounds: tuple[float, float] = (0.0, 1.0), seed: int = 0
) -> dict[str, TemperaturePGD]:
    """Read several specs, see :func:`parse_attack`.

    Returns:
        Attacks by their names for results, in the order given; of two with one name the second gets a number.

    Raises:
        ValueError: if there are none, or as :func:`parse_attack` raises.
        TypeError: as :func:`parse_attack` raises.
    """
    attacks: dict[str, TemperaturePGD] = {}
    for spec in specs:
        name, attack = parse_attack(spec, norm=norm, eps=eps, bounds=bounds, seed=seed)
        attacks[free_name(name, attacks)] = attack
    if not attacks:
        raise ValueError("attacks must name at least one attack, got none")
    return attacks


def free_name(name: str, taken: Container[str]) -> str:
    """The name, or where it is taken with the first free number from 2.

    >>> free_name("pgd", {"pgd", "pgd-2"})
    'pgd-3'
    """
    number, free = 2, name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free


def _parse_options(text: str, spec: str) -> dict[str, Any]:
    """The ``key=value`` pairs of a spec, each read as its field demands."""
    options: dict[str, Any] = {}
    for pair in text.split(","):
        key, equals, value = pair.partition("=")
        if not equals or not value:
            raise ValueError(f"attack {spec!r}: expected key=value after the colon, got {pair!r}")
        if key not in _OPTIONS:
            near = _checks.nearest(key, _OPTIONS)
            known = ", ".join(_OPTIONS)
            raise ValueError(f"attack {spec!r}: the option must be one of {known}, got {key!r}{near}")
        if key in options:
            raise ValueError(f"attack {spec!r}: the option {key!r} was given twice")
        try:
            options[key] = _OPTIONS[key](value)
        except ValueError as error:
            raise ValueError(f"attack {spec!r}: option {key!r}: {error}") from error
    return options
