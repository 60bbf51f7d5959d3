"""Schedules of the attack: step sizes, and the radius of a ball that shrinks."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import _checks


class StepSizes(NamedTuple):
    """Step lengths of a whole run.

    Attributes:
        lengths: ``(steps,)``, float64.
        relative: whether they are multiples of eps, or of the lengths that the caller holds as a tensor
            (else: in the unit of the inputs).
    """

    lengths: Tensor
    relative: bool

    def at(self, step: Tensor, unit: Tensor) -> Tensor:
        """Length of each sample's step, shaped like ``unit``.

        Args:
            step: ``(N,)``, each sample's own step, counted from 0.
            unit: ``(N, 1, ...)`` (or any shape with N rows): eps, or the tensor ``step_size``.
        """
        shape = (-1, *[1] * (unit.ndim - 1))
        lengths = self.lengths.to(unit)[step].view(shape)
        return lengths * unit if self.relative else lengths.expand_as(unit)


def resolve(step_size: object, steps: int, *, name: str = "step_size") -> StepSizes:
    """Tabulate the argument ``step_size`` of the attack.

    Args:
        step_size: a number > 0, the length of every step in the unit of the inputs; ``"cosine"``,
            ``eps * (1 + cos(pi * t / steps))``, from 2 eps towards 0; ``"linear"``,
            ``2 * eps * (1 - t / steps)``; a callable ``(step, steps) -> length`` in the unit of
            the inputs; or a tensor of one length > 0 per sample or per element, of which every step
            is the multiple 1.
        steps: number of steps.
        name: what the argument is called in messages; the hosts have names of their own.

    Raises:
        TypeError: none of these, or a tensor of integers.
        ValueError: not positive, or an unknown name.

    >>> resolve("linear", 4).lengths.tolist()
    [2.0, 1.5, 1.0, 0.5]
    """
    if isinstance(step_size, str):
        _checks.choice(name, step_size, ("cosine", "linear"))
        phase = torch.arange(steps, dtype=torch.float64) / max(steps, 1)
        decay = 1 + torch.cos(math.pi * phase) if step_size == "cosine" else 2 * (1 - phase)
        return StepSizes(decay, relative=True)
    if isinstance(step_size, Tensor):
        _checks.step_lengths(step_size, name=name)
        return StepSizes(torch.ones(steps, dtype=torch.float64), relative=True)
    if callable(step_size):
        values = [_checks.number(name, step_size(t, steps), above=0.0) for t in range(steps)]
    else:
        values = [_checks.number(name, step_size, above=0.0)] * steps
    return StepSizes(torch.tensor(values, dtype=torch.float64), relative=False)


def settled_at(start_radius: float, steps: int) -> int:
    """The step from which on the ball has its own radius: 0, or two thirds of the steps where it shrinks."""
    return 0 if start_radius == 1 else -(-2 * steps // 3)


def radii(start_radius: float, steps: int) -> Tensor:
    """Radius of the ball around each point of a run, in units of eps, ``(steps + 1,)`` float64.

    It falls from ``start_radius`` to 1 in equal steps, and stays there.

    >>> radii(3.0, 3).tolist()
    [3.0, 2.0, 1.0, 1.0]
    """
    last = settled_at(start_radius, steps)
    phase = torch.ones(steps + 1, dtype=torch.float64)
    phase[:last] = torch.arange(last, dtype=torch.float64) / last
    return start_radius + (1 - start_radius) * phase
