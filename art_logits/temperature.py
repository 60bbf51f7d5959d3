"""Temperature policies: how the attack scales the logits before the loss, ``loss(z / T)``.

A temperature shapes the loss only; what the attack reports is always measured at T = 1.

The fixed temperature is paper A's (Tian et al., KDD 2021, arXiv 2105.14240). The per-sample gap is the
scale of MIFPE (Yu & Xu, "Efficient loss function by minimizing the detrimental effect of floating-point
errors on gradient-based attacks", Neural Networks 2023): dividing by the detached gap between the two
largest logits keeps the cross-entropy away from the range in which float32 rounds its gradient to zero,
whatever the scale of a model's logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from . import _checks
from .functional.logits import logit_gap
from .types import Temperature

# Powers of two, so that multiplying logits by a power of two multiplies the guard exactly.
_SMALLEST_GAP = 2.0**-20


def gap(logits: Tensor, step: int = 0) -> Tensor:
    """The logit gap ``z_(1) - z_(2)`` of each sample, the default temperature.

    The guard against a zero gap is relative, ``2**-20`` of the sample's logit range, so that
    multiplying the logits by a power of two changes nothing in ``z / T``, bit for bit. Where all logits
    of a sample are equal, T is 1: any temperature gives the same softmax.

    Args:
        logits: ``(N, C)``, ``C >= 2``.
        step: ignored.

    Returns:
        ``(N,)``, > 0.

    >>> gap(torch.tensor([[4.0, 1.0, 0.0], [2.0, 2.0, 2.0]]))
    tensor([3., 1.])
    """
    spread = logits.amax(dim=1) - logits.amin(dim=1)
    guarded = torch.maximum(logit_gap(logits), spread * _SMALLEST_GAP)
    return torch.where(guarded > 0, guarded, torch.ones_like(guarded))


def scaled_gap(logits: Tensor, step: int = 0, *, scale: float) -> Tensor:
    """A multiple of :func:`gap`: below 1 nearer the margin, above 1 more weight on all wrong classes.

    As scale-invariant as the gap itself. Give it to an attack as ``partial(scaled_gap, scale=0.5)``.

    Args:
        logits: ``(N, C)``, ``C >= 2``.
        step: ignored.
        scale: > 0.

    Returns:
        ``(N,)``, > 0.

    Raises:
        ValueError: a scale that is not positive.

    >>> scaled_gap(torch.tensor([[4.0, 1.0, 0.0]]), scale=0.5)
    tensor([1.5000])
    """
    return gap(logits) * _checks.number("scale", scale, above=0.0)


#: A policy as the loop calls it: detached logits ``(N, C)``, each sample's own step ``(N,)`` -> ``(N,)``.
Resolved = Callable[[Tensor, Tensor], Tensor]


def resolve(temperature: object, steps: int) -> Resolved:
    """Turn the argument ``temperature`` of the attack into the function that its loop calls.

    Args:
        temperature: a number > 0; ``"gap"`` or its alias ``"auto"``; a sequence of ``steps`` numbers
            > 0 (a schedule: one per step); or a policy ``(logits (N, C), step) -> (N,)``, > 0.
        steps: number of steps of the attack.

    Raises:
        TypeError: none of these.
        ValueError: not positive, wrong length, or an unknown name.
    """
    if isinstance(temperature, str):
        _checks.choice("temperature", temperature, ("gap", "auto"))
        temperature = gap
    if (stepless := _stepless(temperature)) is not None:
        return lambda logits, step: stepless(logits)
    if callable(temperature):
        return _policy(temperature)
    if isinstance(temperature, Sequence):
        if len(temperature) != steps:
            raise ValueError(
                f"temperature, as a schedule, must have one value per step, {steps}, got {len(temperature)}"
            )
        return _schedule([_checks.number("temperature", t, above=0.0) for t in temperature])
    constant = _checks.number("temperature", temperature, above=0.0)
    return lambda logits, step: logits.new_full((len(logits),), constant)


def _stepless(temperature: object) -> Callable[[Tensor], Tensor] | None:
    """One of the policies of this module, which look at each sample's logits alone; else None."""
    if temperature is gap:
        return gap
    if isinstance(temperature, partial) and temperature.func is scaled_gap and not temperature.args:
        return temperature
    return None


def is_custom(temperature: object) -> bool:
    """Whether a function of the user's decides, which may look at all samples that it is given."""
    return callable(temperature) and _stepless(temperature) is None


def _schedule(values: Sequence[float]) -> Resolved:
    # The final iterate is only evaluated, so a step beyond the last never asks for a temperature.
    return lambda logits, step: logits.new_tensor(values)[step]


def _policy(policy: Temperature) -> Resolved:
    """Call a user's policy once per distinct step: samples in one batch may stand at different steps."""

    def resolved(logits: Tensor, step: Tensor) -> Tensor:
        result = logits.new_empty(len(logits))
        for value in set(step.tolist()):
            rows = step == value
            answer = policy(logits[rows], value)
            result[rows] = _checks.per_sample("temperature", answer, int(rows.sum())).to(result)
        if not bool((result.isfinite() & (result > 0)).all()):
            raise ValueError(
                "temperature must be finite and > 0 for every sample; the policy returned others"
            )
        return result

    return resolved
