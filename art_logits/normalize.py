"""Normalisation inside the model, so that an attack sees pixels and eps keeps their unit."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["Normalize"]


class Normalize(nn.Module):
    """``(inputs - mean) / std`` per channel, inside the model, so that an attack sees pixels.

    Args:
        mean: one value per channel.
        std: one positive value per channel.

    Raises:
        ValueError: if the two differ in length, or a standard deviation is not positive.

    >>> Normalize((0.5,), (0.25,))(torch.ones(1, 1, 1, 1)).item()
    2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Iterable[float], std: Iterable[float]) -> None:
        super().__init__()
        mean, std = tuple(mean), tuple(std)
        if len(mean) != len(std):
            raise ValueError(f"mean and std must have one value per channel, got {len(mean)} and {len(std)}")
        if any(value <= 0 for value in std):
            raise ValueError(f"std must be positive, got {std}")
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise ``(N, channels, height, width)``.

        Raises:
            ValueError: for another number of channels: gray images would broadcast to colour unnoticed.
        """
        if inputs.ndim != 4 or inputs.shape[1] != self.mean.shape[1]:
            raise ValueError(
                f"inputs must have shape (N, {self.mean.shape[1]}, H, W) for this model, "
                f"got {tuple(inputs.shape)}"
            )
        return (inputs - self.mean) / self.std

    def extra_repr(self) -> str:
        """Mean and standard deviation, for the model's repr."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"
