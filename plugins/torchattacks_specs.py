"""Attacks of torchattacks by spec: ``torchattacks:PGDL2:steps=50,eps=0.5``.

>>> from art_logits.presets import parse_attack
>>> name, attack = parse_attack("torchattacks:BIM:steps=5", norm="Linf", eps=0.1)
>>> name, attack.norm, attack.arguments["alpha"]
('torchattacks:BIM:steps=5', 'Linf', 0.025)
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from art_logits._extras import require
from art_logits.presets import Threat

from ._host_attacks import HostAttack, Signature, Unused, class_names, try_out

__all__ = ["TorchattacksAttack", "attack_from_spec"]

# The host does not declare types; these have an integer for default and take any number.
_NUMBERS = frozenset({"c", "kappa", "scale", "nsig", "lam"})


class TorchattacksAttack(HostAttack):
    """An attack class of torchattacks."""

    def run(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Any:
        """Build the attack on the model and call it."""
        arguments = dict(self.arguments)
        if "n_classes" in Signature(self.kind).options:
            arguments.setdefault("n_classes", model(inputs[:1]).shape[1])
        attack = self.kind(model, **arguments)
        attack.set_device(inputs.device)
        return attack(inputs, labels)


def attack_from_spec(name: str, options: Mapping[str, str], *, threat: Threat, spec: str) -> HostAttack:
    """The attack that a spec names.

    The radius is the class's ``eps``; a step size that the spec leaves open keeps the host's own proportion
    to it. Classes without ``eps`` (CW, DeepFool) look for a small perturbation: it is projected onto the
    ball. Classes with ``n_classes`` are told the model's.

    Args:
        name: name of the class.
        options: further keywords of it, as text.
        threat: norm, radius, bounds and seed.
        spec: the whole spec, for messages.

    Returns:
        The attack.

    Raises:
        ImportError: torchattacks is not installed.
        ValueError: for an unknown class or option (naming the nearest), a value that the class refuses,
            a norm that is not the class's, or bounds other than [0, 1].
    """
    kinds = _classes()
    if name not in kinds:
        raise ValueError(class_names(kinds, name, "torchattacks", spec))
    if tuple(threat.bounds) != (0.0, 1.0):
        raise ValueError(f"attack {spec!r} needs inputs in [0, 1], got bounds {tuple(threat.bounds)}")
    kind = kinds[name]
    signature = Signature(kind, numbers=_NUMBERS)
    arguments = signature.read(options, spec)
    signature.check_complete(arguments, spec)
    if "seed" in signature.options:
        arguments["seed"] = threat.seed
    if signature.radius is not None:
        arguments |= {signature.radius: threat.eps, **signature.scaled_step(arguments, threat.eps)}
        arguments |= _norm_argument(signature, name, threat.norm, spec)
    try_out(lambda: kind(Unused(), **arguments), spec)
    return TorchattacksAttack(spec, kind, threat, arguments, projected=signature.radius is None)


def _classes() -> dict[str, type]:
    """The host's attacks on one model; those on other attacks or on training data are none of a spec's."""
    host = require("torchattacks", extra="torchattacks")
    base = require("torchattacks.attack", extra="torchattacks").Attack
    own = {name: getattr(host, name) for name in host.__all__}
    return {
        name: kind
        for name, kind in own.items()
        if inspect.isclass(kind) and issubclass(kind, base) and name not in ("MultiAttack", "LGV")
    }


def _norm_argument(signature: Signature, name: str, norm: str, spec: str) -> dict[str, str]:
    """The class's ``norm``, or a check that its only norm is the one that is asked for."""
    if "norm" in signature.options:
        return {"norm": norm}
    own = "L2" if name.endswith("L2") else "Linf"
    if norm != own:
        twin = name.removesuffix("L2") if own == "L2" else f"{name}L2"
        found = twin in _classes() and {own, norm} == {"Linf", "L2"}
        remedy = f"take torchattacks:{twin}" if found else "take another attack"
        raise ValueError(
            f"attack {spec!r} is one in {own}, not in {norm}: {remedy}, or add norm={own},eps=VALUE"
        )
    return {}
