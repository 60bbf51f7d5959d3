"""Count what an attack asks of a model: the host's own numbers, where there are any, need not be believed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .types import Model

__all__ = ["Counted", "spread"]


class Counted(nn.Module):
    """The model as someone else's attack sees it: counts the samples that go forward and backward.

    Args:
        model: maps inputs ``(N, ...)`` to logits ``(N, C)``.

    Attributes:
        forwards: samples that went forward.
        backwards: samples whose logits received a gradient.

    >>> counted = Counted(nn.Linear(4, 2))
    >>> counted(torch.zeros(3, 4)).sum().backward()
    >>> counted.forwards, counted.backwards
    (3, 3)
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.forwards = 0
        self.backwards = 0

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(N, C)`` of the model."""
        logits = self.model(inputs)
        self.forwards += len(inputs)
        if isinstance(logits, Tensor) and logits.requires_grad:
            logits.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return logits

    def _count_backward(self, grad: Tensor) -> None:
        self.backwards += len(grad)


def spread(total: int, count: int) -> Tensor:
    """Share a batch's passes among its samples, so that the sum stays right.

    Args:
        total: passes of the batch.
        count: samples in it, >= 1.

    Returns:
        ``(count,)`` int64.

    >>> spread(7, 3)
    tensor([3, 2, 2])
    """
    shares = torch.full((count,), total // count)
    shares[: total % count] += 1
    return shares
