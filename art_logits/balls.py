"""Norm balls: exact projection, steepest ascent, random points, norms.

All methods work on batches ``(N, ...)``, each sample apart. ``eps`` is a tensor that broadcasts to the
perturbations, ``(N, 1, ...)``; the Linf ball also takes one eps per element.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from . import _checks

Sample: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"


class NormBall(Protocol):
    """What the attack asks of a norm."""

    #: Whether a step moves each coordinate by itself, so that one stuck at a bound costs the others nothing.
    separable: bool

    def project(self, delta: Tensor, eps: Tensor) -> Tensor:
        """Nearest point (in the Euclidean sense) of the ball of radius ``eps``."""

    def steepest(self, grad: Tensor) -> Tensor:
        """Step of norm at most 1 along which ``grad`` ascends; zero where ``grad`` is zero."""

    def step(self, grad: Tensor, length: Tensor, room: Tensor) -> Tensor:
        """Step of norm at most ``length`` along which ``grad`` ascends.

        ``room`` says how far each coordinate can go before it meets a bound. A ball whose coordinates are
        separable does not ask.
        """

    def norm(self, delta: Tensor) -> Tensor:
        """Norm of each perturbation, ``(N,)``."""

    def sample(self, rng: np.random.Generator, size: int) -> Sample:
        """A point drawn uniformly from the unit ball, ``(size,)``."""


def _column(values: Tensor, like: Tensor) -> Tensor:
    """``(N,)`` -> ``(N, 1, ...)``, to broadcast over ``like``."""
    return values.view(-1, *[1] * (like.ndim - 1))


class LinfBall:
    """``max_i |delta_i| <= eps``."""

    separable = True

    def project(self, delta: Tensor, eps: Tensor) -> Tensor:
        """Clip every coordinate to ``[-eps, eps]``."""
        # What clamp does with tensors, in a third of the time.
        return torch.maximum(torch.minimum(delta, eps), -eps)

    def steepest(self, grad: Tensor) -> Tensor:
        """The gradient's sign."""
        return grad.sign()

    def step(self, grad: Tensor, length: Tensor, room: Tensor) -> Tensor:
        """As far in every coordinate; in place, for allocating a tensor costs more than filling it."""
        return self.steepest(grad).mul_(length)

    def norm(self, delta: Tensor) -> Tensor:
        """Largest absolute coordinate."""
        return delta.flatten(1).abs().amax(dim=1)

    def sample(self, rng: np.random.Generator, size: int) -> Sample:
        """Independent uniform coordinates."""
        point: Sample = 2 * rng.random(size, dtype=np.float32) - 1
        return point


class L2Ball:
    """``sqrt(sum_i delta_i^2) <= eps``."""

    separable = False

    def project(self, delta: Tensor, eps: Tensor) -> Tensor:
        """Scale down what lies outside."""
        norm = _column(self.norm(delta), delta)
        return torch.where(norm > eps, delta * (eps / norm), delta)

    def steepest(self, grad: Tensor) -> Tensor:
        """The gradient at unit length."""
        # Dividing by the largest element first keeps tiny gradients from underflowing when squared.
        largest = _column(grad.flatten(1).abs().amax(dim=1), grad)
        scaled = torch.where(largest > 0, grad / largest, torch.zeros_like(grad))
        return scaled / _column(self.norm(scaled), grad).clamp_min(1)

    def step(self, grad: Tensor, length: Tensor, room: Tensor) -> Tensor:
        """Along the gradient, but for coordinates stuck at a bound, which would waste their part."""
        return self.steepest(grad.masked_fill(room <= 0, 0)).mul_(length)

    def norm(self, delta: Tensor) -> Tensor:
        """Euclidean length."""
        length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return length

    def sample(self, rng: np.random.Generator, size: int) -> Sample:
        """A normal direction at radius ``U^(1/size)``."""
        direction = rng.standard_normal(size, dtype=np.float32)
        radius = rng.random(dtype=np.float32) ** (1 / size)
        point: Sample = direction * np.float32(radius / max(float(np.linalg.norm(direction)), 1e-30))
        return point


class L1Ball:
    """``sum_i |delta_i| <= eps``.

    Args:
        density: share of the coordinates that one step moves at least, in (0, 1]. Steepest ascent in L1 is a
            single coordinate, which progresses so slowly that it flatters a model's robustness; a sparse
            step of several (SLIDE, Tramer & Boneh 2019, arXiv 1904.13000) does not.
    """

    separable = False

    def __init__(self, density: float = 0.01) -> None:
        self.density = density

    def project(self, delta: Tensor, eps: Tensor) -> Tensor:
        """Soft-threshold at the level that gives the norm eps (Duchi et al., ICML 2008), O(d log d)."""
        flat = delta.flatten(1).abs()
        radius = eps.flatten(1)
        ordered = flat.sort(dim=1, descending=True).values
        rank = torch.arange(1, flat.shape[1] + 1, device=flat.device, dtype=flat.dtype)
        level = (ordered.cumsum(dim=1) - radius) / rank
        # The level of the last coordinate that stays above its own level; the first one always does.
        last = (ordered > level).sum(dim=1, keepdim=True).clamp_min(1) - 1
        threshold = level.gather(1, last).clamp_min(0)
        shrunk = ((flat - threshold).clamp_min(0)).view_as(delta) * delta.sign()
        inside = _column(flat.sum(dim=1), delta) <= eps
        return torch.where(inside, delta, shrunk)

    def steepest(self, grad: Tensor) -> Tensor:
        """Equal steps along the largest ``density`` of the gradient's coordinates."""
        flat = grad.flatten(1)
        count = max(1, round(self.density * flat.shape[1]))
        index = flat.abs().topk(count, dim=1).indices
        signs = flat.gather(1, index).sign()
        signs = signs / signs.abs().sum(dim=1, keepdim=True).clamp_min(1)
        return torch.zeros_like(flat).scatter(1, index, signs).view_as(grad)

    def step(self, grad: Tensor, length: Tensor, room: Tensor) -> Tensor:
        """The largest of the gradient's coordinates, each as far as its bound, until the length is used up.

        No step of that length within the bounds ascends faster, but for ``density``, by which none gets more
        than its share. Equal steps in a fixed number of coordinates leave what meets a bound unused.
        """
        flat, length = grad.flatten(1), length.flatten(1)
        count = max(1, round(self.density * flat.shape[1]))
        order = flat.abs().argsort(dim=1, descending=True, stable=True)
        most = torch.minimum(room.flatten(1), length / count).gather(1, order)
        left = (length - most.cumsum(dim=1) + most).clamp_min(0)
        moves = torch.minimum(most, left) * flat.sign().gather(1, order)
        return torch.zeros_like(flat).scatter(1, order, moves).view_as(grad)

    def norm(self, delta: Tensor) -> Tensor:
        """Sum of absolute coordinates."""
        return delta.flatten(1).abs().sum(dim=1)

    def sample(self, rng: np.random.Generator, size: int) -> Sample:
        """Normalised exponentials with random signs; the extra one is the distance to the surface."""
        spacings = rng.standard_exponential(size + 1, dtype=np.float32)
        signs = rng.integers(0, 2, size, dtype=np.int8).astype(np.float32) * 2 - 1
        point: Sample = signs * (spacings[:-1] / spacings.sum())
        return point


BALLS: dict[str, NormBall] = {"Linf": LinfBall(), "L2": L2Ball(), "L1": L1Ball()}


def get_ball(norm: object) -> NormBall:
    """Return the ball of a norm: ``"Linf"``, ``"L2"`` or ``"L1"``.

    Raises:
        ValueError: another name.
    """
    return BALLS[_checks.choice("norm", norm, BALLS)]
