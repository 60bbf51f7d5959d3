"""Evasion attacks of ART by spec: ``art:ProjectedGradientDescent:max_iter=50``.

>>> from art_logits.presets import parse_attack
>>> name, attack = parse_attack("art:FastGradientMethod", norm="L2", eps=0.5)
>>> name, attack.norm, attack.arguments["norm"]
('art:FastGradientMethod', 'L2', 2)
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from art.attacks import EvasionAttack, evasion
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_logits.presets import Threat

from .._host_attacks import HostAttack, Signature, Unused, class_names, try_out
from .estimators import untouched

__all__ = ["ArtAttack", "attack_from_spec"]

_NORMS = {"Linf": np.inf, "L2": 2, "L1": 1}
# Their eps is a radius of something else: of a transport distance, of a step.
_OTHER_RADIUS = ("Wasserstein", "VirtualAdversarialMethod")
# They take one sample at a time.
_SINGLE = ("SimBA", "ShadowAttack")
# Its labels are targets: given the true ones, it would find everything robust.
_TARGETED = ("TargetedUniversalPerturbation",)
_OTHER_KINDS = ("poisoning", "extraction", "inference.membership_inference", "inference.model_inversion")


class ArtAttack(HostAttack):
    """An evasion attack class of ART."""

    def run(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Any:
        """Wrap the model in a ``PyTorchClassifier`` and generate."""
        classes = int(model(inputs[:1]).shape[1])
        classifier = PyTorchClassifier(
            model=_InPrecision(model, inputs.dtype),
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(inputs.shape[1:]),
            nb_classes=classes,
            clip_values=tuple(float(bound) for bound in self.threat.bounds),
            device_type="gpu" if inputs.is_cuda else "cpu",
        )
        # Some of the attacks know no class indices.
        images, targets = inputs.cpu().numpy(), nn.functional.one_hot(labels.cpu(), classes).float().numpy()
        single = self.kind.__name__ in _SINGLE
        arguments = dict(self.arguments)
        if "batch_size" in Signature(self.kind).options:
            arguments.setdefault("batch_size", 1 if single else len(inputs))
        size = 1 if single else len(inputs)
        with untouched(classifier):
            attack = self.kind(classifier, **arguments)
            parts = [
                attack.generate(images[i : i + size], y=targets[i : i + size])
                for i in range(0, len(inputs), size)
            ]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]


class _InPrecision(nn.Module):
    """The model for inputs of any precision: some attacks compute in double."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs.to(self.dtype))
        return logits


def attack_from_spec(name: str, options: Mapping[str, str], *, threat: Threat, spec: str) -> HostAttack:
    """The attack that a spec names.

    Norm and radius go to the class's own ``norm`` and ``eps``; a step size that the spec leaves open keeps
    the host's own proportion to the radius. Classes without ``eps`` (CarliniL2Method, HopSkipJump) look for a
    small perturbation: it is projected onto the ball. Attacks are untargeted and see the true labels.

    Args:
        name: name of the class in ``art.attacks.evasion``.
        options: further keywords of it, as text.
        threat: norm, radius, bounds and seed.
        spec: the whole spec, for messages.

    Returns:
        The attack.

    Raises:
        ValueError: for an unknown class or option (naming the nearest), one that is no evasion attack on
            classifiers, a value that the class refuses, or a norm that it does not know.
    """
    kind = _class(name, spec)
    signature = Signature(kind)
    arguments = signature.read(options, spec)
    known = name not in _OTHER_RADIUS
    if "norm" in signature.options and known:
        arguments["norm"] = _NORMS[threat.norm]
    elif signature.radius is not None and known and threat.norm != "Linf":
        raise ValueError(f"attack {spec!r} is one in Linf, not in {threat.norm}: add norm=Linf,eps=VALUE")
    bounded = signature.radius is not None and known
    if bounded:
        arguments |= {"eps": threat.eps, **signature.scaled_step(arguments, threat.eps)}
    signature.check_complete(arguments, spec)
    fixed = {"targeted": False, "verbose": False}
    arguments |= {key: value for key, value in fixed.items() if key in signature.all}
    try_out(lambda: kind(_unused_classifier(), **arguments), spec)
    return ArtAttack(spec, kind, threat, arguments, projected=not bounded)


def _class(name: str, spec: str) -> type:
    """An evasion attack that takes a ``PyTorchClassifier``."""
    kinds = {
        key: value
        for key, value in vars(evasion).items()
        if inspect.isclass(value) and issubclass(value, EvasionAttack) and value is not EvasionAttack
    }
    if name not in kinds:
        _refuse_other_kinds(name, spec)
        raise ValueError(class_names({k: v for k, v in kinds.items() if _served(v)}, name, "ART", spec))
    if name in _TARGETED:
        raise ValueError(f"attack {spec!r} must be untargeted: an evaluation has no targets")
    if not _served(kinds[name]):
        raise ValueError(
            f"attack {spec!r} is not for image classifiers in PyTorch: ART's {name} asks for "
            f"{_asks(kinds[name])}"
        )
    return kinds[name]


def _refuse_other_kinds(name: str, spec: str) -> None:
    for package in _OTHER_KINDS:
        if hasattr(importlib.import_module(f"art.attacks.{package}"), name):
            kind = package.rpartition(".")[2].replace("_", " ")
            raise ValueError(
                f"attack {spec!r} must be an evasion attack, which perturbs inputs; ART's {name} is one of "
                f"{kind}"
            )


def _requirements(kind: Any) -> list[tuple[type, ...]]:
    wanted = kind._estimator_requirements or ()
    return [item if isinstance(item, tuple) else (item,) for item in wanted]


def _served(kind: type) -> bool:
    return all(any(issubclass(PyTorchClassifier, one) for one in item) for item in _requirements(kind))


def _asks(kind: type) -> str:
    missing = (
        item for item in _requirements(kind) if not any(issubclass(PyTorchClassifier, one) for one in item)
    )
    return ", ".join(" or ".join(one.__name__ for one in item) for item in missing)


def _unused_classifier() -> PyTorchClassifier:
    """For colour images of two classes."""
    return PyTorchClassifier(
        model=Unused(),
        loss=nn.CrossEntropyLoss(),
        input_shape=(3, 32, 32),
        nb_classes=2,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
