"""Attacks by name: ``pgd``, ``temperature-pgd:steps=50``, ``autoattack``, ``torchattacks:PGD``.

Those of hosts are made by the plugins, which are imported when a spec asks for one.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, NamedTuple

from . import _checks
from .attack import TemperaturePGD
from .balls import BALLS
from .cascade import Cascade, quick, strong

__all__ = [
    "ATTACKS",
    "AUTOATTACK",
    "HOSTS",
    "Threat",
    "free_name",
    "parse_attack",
    "parse_attacks",
    "parse_number",
    "read_boolean",
    "read_integer",
    "read_options",
    "split_options",
    "unknown_option",
]

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


def read_integer(text: str) -> int:
    """Read an integer.

    Raises:
        ValueError: if the text is none.
    """
    if not re.fullmatch(r"[+-]?\d+", text):
        raise ValueError(f"expected an integer, got {text!r}")
    return int(text)


def read_boolean(text: str) -> bool:
    """Read ``true`` or ``false``, in upper or lower case.

    Raises:
        ValueError: if the text is neither.
    """
    if text.lower() not in {"true", "false"}:
        raise ValueError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


def _number_or_word(text: str) -> float | str:
    return text if text.isidentifier() else parse_number(text)


# Every field of TemperaturePGD but `bounds`, which belongs to the data, and `targeted`, which needs targets.
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "eps": parse_number,
    "norm": str,
    "steps": read_integer,
    "step_size": _number_or_word,
    "temperature": _number_or_word,
    "loss": str,
    "restarts": read_integer,
    "redraw": parse_number,
    "random_start": read_boolean,
    "stop_on_success": read_boolean,
    "keep": str,
    "seed": read_integer,
    "momentum": parse_number,
    "start_radius": parse_number,
    "precision": str,
    "fuse": read_boolean,
}

# What AutoAttack can be told beside norm, eps and seed.
_AUTOATTACK_OPTIONS: dict[str, Callable[[str], Any]] = {"version": str, "batch_size": read_integer}

# What every attack can be told.
_THREAT = {key: _OPTIONS[key] for key in ("norm", "eps", "seed")}

_CASCADE_OPTIONS: dict[str, Callable[[str], Any]] = {
    **_THREAT,
    **{key: _OPTIONS[key] for key in ("precision", "fuse")},
}
_STRONG_OPTIONS: dict[str, Callable[[str], Any]] = {**_CASCADE_OPTIONS, "passes": read_integer}


def _pgd(**options: Any) -> TemperaturePGD:
    """The field's PGD-20: plain cross-entropy and steps of eps / 4, which is 2/255 at 8/255."""
    # At eps 0 every step is projected back, but its size must be positive.
    field: dict[str, Any] = {"temperature": 1.0, "steps": 20, "step_size": options["eps"] / 4 or 1.0}
    return TemperaturePGD(**{**field, **options})


def _temperature_pgd(**options: Any) -> TemperaturePGD | Cascade:
    """:func:`~art_logits.cascade.quick`; with options that describe one attack, that attack."""
    if options.keys() <= {*_CASCADE_OPTIONS, "bounds"}:
        return quick(**options)
    return TemperaturePGD(**options)


class Preset(NamedTuple):
    """One of our attacks by name.

    Attributes:
        make: from ``eps``, ``norm``, ``bounds``, ``seed`` and options, the attack.
        options: what a spec can say of it, to what reads it.
    """

    make: Callable[..., TemperaturePGD | Cascade]
    options: dict[str, Callable[[str], Any]]


ATTACKS: dict[str, Preset] = {
    "pgd": Preset(_pgd, _OPTIONS),
    "temperature-pgd": Preset(_temperature_pgd, _OPTIONS),
    "strong": Preset(strong, _STRONG_OPTIONS),
}
"""Our own attacks by their names."""


AUTOATTACK: dict[str, dict[str, Any]] = {
    "autoattack": {},
    **{
        part: {"attacks_to_run": [part]}
        for part in ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
    },
}
"""AutoAttack and its parts by name, to arguments of ``art_logits.plugins.robustbench.AutoAttack``."""

HOSTS: dict[str, str] = {
    "torchattacks": "art_logits.plugins.torchattacks_specs",
    "art": "art_logits.plugins.art.specs",
}
"""Prefix of the attacks of each host, to the module that makes them."""


class Threat(NamedTuple):
    """What every attack is told by the evaluation, where its spec does not say otherwise.

    Attributes:
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``.
        eps: radius, in the unit of the inputs.
        bounds: limits of the inputs.
        seed: of everything random.
    """

    norm: str
    eps: float
    bounds: tuple[float, float]
    seed: int


def parse_attack(
    spec: str, *, norm: str, eps: float, bounds: tuple[float, float] = (0.0, 1.0), seed: int = 0
) -> tuple[str, Callable[..., Any]]:
    """Read an attack spec, ``NAME[:key=value,...]``.

    Names:
        ``pgd``, the field's PGD-20 (cross-entropy, step eps / 4, random start). Like every attack here, it
        stops a sample at its first success and otherwise keeps the best iterate. Keys: the fields of
        :class:`TemperaturePGD` except ``bounds`` and ``targeted``.
        ``temperature-pgd``, ten steps for all samples and more for those that come near
        (:func:`~art_logits.cascade.quick`); with keys that describe a single attack (all of ``pgd``'s but
        ``norm``, ``eps``, ``seed``, ``precision`` and ``fuse``), such as ``temperature-pgd:steps=50``, that
        :class:`TemperaturePGD`, with its own defaults for the rest.
        ``strong``, more of these in turn on the samples that still stand
        (:func:`~art_logits.cascade.strong`). Keys: its arguments, except ``bounds``.
        ``autoattack``, AutoAttack's standard version, and its parts ``apgd-ce``, ``apgd-dlr``, ``apgd-t``,
        ``fab``, ``fab-t``, ``square``. Keys: ``norm``, ``eps``, ``seed``, ``batch_size``, and ``version`` of
        ``autoattack``.
        ``torchattacks:CLASS`` and ``art:CLASS``, attacks of these hosts. Keys: ``norm``, ``eps``, ``seed``
        and the class's own, such as ``torchattacks:PGD:steps=50,random_start=false``.

    Values are numbers (also ``8/255``), words, or ``true`` and ``false``. The name for results is the spec
    itself without spaces, and with ``_`` for each ``.``, because a dot separates an attack from its columns
    in the records: ``pgd:eps=0.1`` is called ``pgd:eps=0_1``.

    Args:
        spec: the attack.
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``, where the spec says none.
        eps: radius, where the spec says none.
        bounds: limits of the inputs.
        seed: of the random starts, where the spec says none.

    Returns:
        The name for results, and the attack: a :class:`TemperaturePGD`, a :class:`Cascade`, or a callable
        ``(model, inputs, labels)`` with ``norm``, ``eps`` and ``config()``.

    Raises:
        ImportError: the host is not installed; the message says how to install it.
        ValueError: for an unknown name or key (naming the nearest), a value of a wrong kind, a key given
            twice, or a norm given without its eps.
        TypeError: as :class:`TemperaturePGD` raises.

    >>> name, attack = parse_attack("pgd:steps=50,eps=4/255", norm="Linf", eps=8 / 255)
    >>> name, attack.steps, attack.eps == 4 / 255, attack.step_size == 1 / 255
    ('pgd:steps=50,eps=4/255', 50, True, True)
    """
    compact = "".join(spec.split())
    head, colon, text = compact.partition(":")
    make = _maker(head, spec)
    kind = ""
    if head in HOSTS:
        kind, colon, text = text.partition(":")
        if not kind:
            raise ValueError(f"attack {spec!r}: name the class too, as {head}:CLASS")
    options = split_options(text, spec) if colon else {}
    if options.get("norm", norm) != norm and "eps" not in options:
        raise ValueError(f"attack {spec!r} changes the norm and must give its eps too: norm=...,eps=...")
    attack = make(kind or head, options, Threat(norm, eps, bounds, seed), spec)
    return compact.replace(".", "_"), attack


#: Class or preset, options as text, threat, spec -> the attack.
_Maker = Callable[[str, dict[str, str], Threat, str], Callable[..., Any]]


def _maker(head: str, spec: str) -> _Maker:
    """What makes the attacks of a name, or of a host."""
    if head in ATTACKS:
        return _own
    if head in AUTOATTACK:
        return _autoattack
    if head in HOSTS:
        return lambda kind, options, threat, spec: _of_host(head, kind, options, threat, spec)
    known = [*ATTACKS, *AUTOATTACK]
    hosts = ", ".join(f"{host}:CLASS" for host in HOSTS)
    near = _checks.nearest(head, [*known, *HOSTS])
    raise ValueError(f"attack must be one of {', '.join(known)}, {hosts}, got {spec!r}{near}")


def _own(name: str, texts: dict[str, str], threat: Threat, spec: str) -> TemperaturePGD | Cascade:
    """One of our presets."""
    preset = ATTACKS[name]
    given = read_options(texts, preset.options, spec)
    options = {"norm": threat.norm, "eps": threat.eps, "seed": threat.seed, "bounds": threat.bounds, **given}
    try:
        return preset.make(**options)
    except (TypeError, ValueError) as error:
        raise type(error)(f"attack {spec!r}: {error}") from error


def _autoattack(name: str, texts: dict[str, str], threat: Threat, spec: str) -> Callable[..., Any]:
    """AutoAttack or a part of it."""
    threat = _threat(texts, threat, spec)
    known = dict(_AUTOATTACK_OPTIONS)
    if AUTOATTACK[name]:
        del known["version"]  # a part is a version of its own
    options = read_options(texts, known, spec)
    if tuple(threat.bounds) != (0.0, 1.0):
        raise ValueError(f"attack {spec!r} needs inputs in [0, 1], got bounds {tuple(threat.bounds)}")
    plugin = importlib.import_module("art_logits.plugins.robustbench")
    arguments = {**AUTOATTACK[name], **options}
    try:
        attack: Callable[..., Any] = plugin.AutoAttack(
            norm=threat.norm, eps=threat.eps, seed=threat.seed, **arguments
        )
    except (TypeError, ValueError) as error:
        raise type(error)(f"attack {spec!r}: {error}") from error
    return attack


def _of_host(host: str, kind: str, texts: dict[str, str], threat: Threat, spec: str) -> Callable[..., Any]:
    """An attack class of a host."""
    threat = _threat(texts, threat, spec)
    plugin = importlib.import_module(HOSTS[host])
    attack: Callable[..., Any] = plugin.attack_from_spec(kind, texts, threat=threat, spec=spec)
    return attack


def _threat(texts: dict[str, str], default: Threat, spec: str) -> Threat:
    """Norm, radius and seed of a spec, which are taken out of its options."""
    texts_of_threat = {key: texts.pop(key) for key in _THREAT if key in texts}
    given = read_options(texts_of_threat, _THREAT, spec)
    threat = default._replace(**given)
    try:
        _checks.choice("norm", threat.norm, BALLS)
        _checks.number("eps", threat.eps, at_least=0.0)
        _checks.integer("seed", threat.seed, at_least=0)
    except ValueError as error:
        raise ValueError(f"attack {spec!r}: {error}") from error
    return threat


def parse_attacks(
    specs: Iterable[str], *, norm: str, eps: float, bounds: tuple[float, float] = (0.0, 1.0), seed: int = 0
) -> dict[str, Callable[..., Any]]:
    """Read several specs, see :func:`parse_attack`.

    Returns:
        Attacks by their names for results, in the order given; of two with one name the second gets a number.

    Raises:
        ValueError: if there are none, or as :func:`parse_attack` raises.
        TypeError: as :func:`parse_attack` raises.
    """
    attacks: dict[str, Callable[..., Any]] = {}
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


def split_options(text: str, spec: str, what: str = "attack") -> dict[str, str]:
    """The ``key=value`` pairs of a spec.

    Args:
        text: the pairs, between commas.
        spec: the whole spec, for messages.
        what: what the spec names.

    Returns:
        Values as text, in the order given.

    Raises:
        ValueError: for anything that is no such pair, and for a key given twice.

    >>> split_options("steps=50,eps=0.1", "pgd:steps=50,eps=0.1")
    {'steps': '50', 'eps': '0.1'}
    """
    options: dict[str, str] = {}
    for pair in text.split(","):
        key, equals, value = pair.partition("=")
        if not equals or not value:
            raise ValueError(f"{what} {spec!r}: expected key=value after the colon, got {pair!r}")
        if key in options:
            raise ValueError(f"{what} {spec!r}: the option {key!r} was given twice")
        options[key] = value
    return options


def read_options(
    texts: Mapping[str, str], known: Mapping[str, Callable[[str], Any]], spec: str, what: str = "attack"
) -> dict[str, Any]:
    """Options as their fields demand.

    Args:
        texts: options as text.
        known: every option there is, to what reads it.
        spec: the whole spec, for messages.
        what: what the spec names.

    Returns:
        The values.

    Raises:
        ValueError: for an unknown option (naming the nearest), or a value that cannot be read.
    """
    options: dict[str, Any] = {}
    for key, text in texts.items():
        if key not in known:
            raise ValueError(unknown_option(spec, key, known, what))
        try:
            options[key] = known[key](text)
        except ValueError as error:
            raise ValueError(f"{what} {spec!r}: option {key!r}: {error}") from error
    return options


def unknown_option(spec: str, key: str, known: Iterable[str], what: str = "attack") -> str:
    """The message for an option that an attack or a model does not have, naming the nearest ones."""
    known = list(known)
    near = _checks.nearest(key, known)
    return f"{what} {spec!r}: the option must be one of {', '.join(known)}, got {key!r}{near}"
