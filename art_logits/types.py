"""Type aliases shared by all modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor

#: Anything that maps inputs ``(N, ...)`` to logits ``(N, C)``; usually an ``nn.Module``.
Model: TypeAlias = Callable[[Tensor], Tensor]
#: Logits ``(N, C)`` and labels ``(N,)`` to one value per sample ``(N,)``; larger is more adversarial.
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
#: Detached logits ``(N, C)`` and the step, counted from 0, to one temperature per sample ``(N,)``, > 0.
Temperature: TypeAlias = Callable[[Tensor, int], Tensor]
#: The step, counted from 0, and the number of steps to a step length, in the unit of the inputs.
StepSize: TypeAlias = Callable[[int, int], float]

Norm: TypeAlias = Literal["Linf", "L2", "L1"]


class Bounds(NamedTuple):
    """Range of valid inputs: two numbers, or two tensors that broadcast to one input."""

    lower: float | Tensor
    upper: float | Tensor
