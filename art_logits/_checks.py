"""Validation of arguments and tensors. Every check names the argument, what was expected and what came."""

from __future__ import annotations

import difflib
import math
import numbers
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from .types import Bounds


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a real number; numpy scalars are, booleans are not."""
    return isinstance(value, numbers.Real | np.number) and not isinstance(value, bool | np.bool_)


def kind_of(value: object) -> str:
    """What came, for a message: a tensor's dtype, or the type."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> float:
    """Return ``value`` as a finite float within the limits.

    Raises:
        TypeError: not a real number.
        ValueError: NaN, infinite, or outside the limits.
    """
    if not is_number(value):
        raise TypeError(f"{name} must be a number, got {reprlib.repr(value)} of type {type(value).__name__}")
    result = float(value)
    limits = [(" >", above), (" >=", at_least), (" and <=", at_most)]
    limit = "".join(f"{sign} {bound:g}" for sign, bound in limits if bound is not None)
    below = (above is not None and result <= above) or (at_least is not None and result < at_least)
    if not math.isfinite(result) or below or (at_most is not None and result > at_most):
        raise ValueError(f"{name} must be a finite number{limit}, got {value!r}")
    return result


def integer(name: str, value: object, *, at_least: int) -> int:
    """Return ``value`` as an int >= ``at_least``.

    Raises:
        TypeError: not an integer (booleans and floats are refused, also ``20.0``).
        ValueError: too small.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value!r}")
    return int(value)


def level(value: float) -> float:
    """Return the coverage of an interval, in ``(0, 1)``.

    Raises:
        ValueError: it is not.
    """
    if not 0 < value < 1:
        raise ValueError(f"level: expected a coverage between 0 and 1, got {value}")
    return value


def boolean(name: str, value: object) -> bool:
    """Return ``value`` if it is a bool.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r} of type {type(value).__name__}")
    return bool(value)


def choice(name: str, value: object, options: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``options``.

    Raises:
        ValueError: it is not; the message lists the options and the nearest of them.
    """
    known = list(options)
    if isinstance(value, str) and value in known:
        return value
    raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}{nearest(value, known)}")


def nearest(value: object, known: Iterable[str]) -> str:
    """`` (did you mean …?)`` with the names most like ``value``, or nothing."""
    matches = difflib.get_close_matches(str(value), list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(matches)}?)" if matches else ""


def bounds(value: object) -> Bounds:
    """Return ``value`` as :class:`Bounds`: two numbers, or two tensors, lower below upper.

    Raises:
        TypeError: not a pair.
        ValueError: NaN, or lower not below upper.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise TypeError(f"bounds must be a pair (lower, upper) such as (0.0, 1.0), got {value!r}")
    lower, upper = value
    if is_number(lower) and is_number(upper):
        lower, upper = float(lower), float(upper)
        if not lower < upper:
            raise ValueError(f"bounds must have lower < upper, got ({lower!r}, {upper!r})")
        return Bounds(lower, upper)
    if not (isinstance(lower, Tensor) and isinstance(upper, Tensor)):
        raise TypeError(f"bounds must be two numbers or two tensors, got {value!r}")
    if not bool((lower < upper).all()):
        raise ValueError("bounds must have lower < upper in every element")
    return Bounds(lower, upper)


def epsilons(value: object) -> float | Tensor:
    """Return ``eps``: a number >= 0, or a floating tensor of them (one per sample).

    Raises:
        TypeError: neither a number nor a floating tensor.
        ValueError: negative or not finite.
    """
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"eps must be a floating-point tensor, got {value.dtype}")
        if not bool((value.isfinite() & (value >= 0)).all()):
            raise ValueError("eps must be finite and >= 0 for every sample")
        return value.detach()
    return number("eps", value, at_least=0.0)


def step_lengths(value: Tensor, *, name: str = "step_size") -> Tensor:
    """Return step sizes as a floating tensor of lengths > 0 (one per sample, or per element).

    Raises:
        TypeError: not floating point.
        ValueError: not positive, or not finite.
    """
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")
    if not bool((value.isfinite() & (value > 0)).all()):
        raise ValueError(f"{name} must be finite and > 0 for every sample")
    return value.detach()


def inputs(
    value: object,
    limits: Bounds,
    *,
    remedy: str = "undo the normalisation and put it inside the model, or pass bounds=",
) -> Tensor:
    """Return inputs ``(N, ...)``: a non-empty floating tensor within ``limits``.

    ``remedy`` ends the message about values outside the limits: a host has its own ways to set these right.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: no samples, NaN, or values outside the limits.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"inputs must be a torch.Tensor (N, ...), got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(
            f"inputs must be floating point, got {value.dtype}: scale to the bounds, e.g. x / 255"
        )
    if value.ndim < 2 or value.numel() == 0:
        raise ValueError(f"inputs must be a non-empty batch (N, ...), got shape {tuple(value.shape)}")
    smallest, largest = value.detach().aminmax()  # a NaN is both
    if bool(smallest.isnan()):
        raise ValueError("inputs must not contain NaN")
    low, high = (torch.as_tensor(limit, dtype=value.dtype, device=value.device) for limit in limits)
    # Masks of all elements, which whole data sets come here for, only where the limits ask for them.
    one_for_all = low.ndim == high.ndim == 0
    outside = (smallest < low) | (largest > high) if one_for_all else (value < low) | (value > high)
    if bool(outside.any()):
        span = f"[{float(low.min()):g}, {float(high.max()):g}]"
        found = f"[{float(smallest):g}, {float(largest):g}]"
        raise ValueError(f"inputs must lie within bounds {span}, got values in {found}: {remedy}")
    return value.detach()


def within_a_hair(value: Tensor, limits: Bounds) -> Tensor:
    """Return inputs with what rounding put outside the limits put back, and all else as it is.

    A hair is 1e-5 of the distance between the limits, or eight roundings of a coarser type: what is further
    out is an error, for :func:`inputs`.
    """
    if value.numel() == 0:
        return value
    low, high = (torch.as_tensor(limit, dtype=value.dtype, device=value.device) for limit in limits)
    smallest, largest = value.aminmax()
    if bool(low.max() <= smallest) and bool(largest <= high.min()):
        return value
    inside = value.clamp(low, high)
    hair = (high - low) * max(1e-5, 8 * torch.finfo(value.dtype).eps)
    return torch.where((value - inside).abs() <= hair, inside, value)


def labels(name: str, value: object, count: int, device: torch.device) -> Tensor:
    """Return class indices ``(N,)`` as int64 on ``device``; their range is checked by :func:`in_range`.

    Raises:
        TypeError: not integers.
        ValueError: not one per input.
    """
    try:
        result = torch.as_tensor(value, device=device)
    except (TypeError, ValueError, RuntimeError) as error:  # torch's own text does not name the argument
        raise TypeError(f"{name} must be integer class indices, got {value!r}") from error
    if result.is_floating_point() or result.is_complex() or result.dtype == torch.bool:
        raise TypeError(f"{name} must be integer class indices, got {result.dtype}")
    if result.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), one per input, got {tuple(result.shape)}")
    return result.to(torch.int64)


def in_range(name: str, value: Tensor, classes: int) -> Tensor:
    """Return class indices if they all lie in ``[0, classes)``.

    Raises:
        ValueError: one does not.
    """
    low, high = int(value.min()), int(value.max())
    if low < 0 or high >= classes:
        raise ValueError(f"{name} must lie in [0, {classes}), the model's classes, got {low} to {high}")
    return value


def sample_ids(value: object, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return sample ids ``(N,)`` as int64 on the CPU.

    Raises:
        TypeError: not integers.
        ValueError: not one per input.
    """
    result = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if result.dtype.kind not in "iu":
        raise TypeError(f"sample_ids must be integers, got {result.dtype}")
    if result.shape != (count,):
        raise ValueError(f"sample_ids must have shape ({count},), one per input, got {result.shape}")
    return result.astype(np.int64)


def mask(value: object, like: Tensor) -> Tensor:
    """Return a mask expanded to the inputs' shape, in their dtype and on their device.

    Raises:
        TypeError: not a tensor of booleans or floating-point numbers.
        ValueError: negative weights, or a shape that does not broadcast to the inputs.
    """
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.dtype == torch.bool):
        raise TypeError(f"mask must be a tensor of booleans or floating-point weights, got {kind_of(value)}")
    weights = value.to(like)
    if not bool((weights >= 0).all()):
        raise ValueError("mask must hold weights >= 0 only")
    try:
        return weights.expand_as(like)
    except RuntimeError:
        raise ValueError(
            f"mask must broadcast to the inputs' shape {tuple(like.shape)}, got {tuple(value.shape)}"
        ) from None


def logits(value: object, count: int) -> Tensor:
    """Return a model's output if it is logits ``(N, C)`` with ``C >= 2``.

    Half-precision logits come back in float32: everything that follows is computed there.

    Raises:
        TypeError: not a floating tensor (a model that returns a tuple, say).
        ValueError: another shape.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"model must return a tensor of logits (N, C), got {type(value).__name__}: "
            "wrap it in a module whose forward returns the logits alone"
        )
    if not value.is_floating_point():
        raise TypeError(f"model must return floating-point logits, got {value.dtype}")
    if value.ndim != 2 or value.shape[0] != count or value.shape[1] < 2:
        raise ValueError(f"model must return logits ({count}, C) with C >= 2, got shape {tuple(value.shape)}")
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def starts(value: object, like: Tensor) -> Tensor:
    """Return starting points in the inputs' shape, in their dtype and on their device.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: another shape, or values that are not finite.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"starts must be a floating-point tensor, got {kind_of(value)}")
    if value.shape != like.shape:
        raise ValueError(f"starts must have the inputs' shape {tuple(like.shape)}, got {tuple(value.shape)}")
    if not bool(value.isfinite().all()):
        raise ValueError("starts must be finite, got NaN or infinity")
    return value.detach().to(like)


def clean_logits(value: Tensor, count: int) -> Tensor:
    """Return logits ``(N, C)``, ``C >= 2``, that a caller knows of ``count`` inputs.

    Raises:
        ValueError: another shape.
    """
    if value.ndim != 2 or len(value) != count or value.shape[1] < 2:
        raise ValueError(f"clean_logits must have shape ({count}, C), C >= 2, got {tuple(value.shape)}")
    return value


def teacher_logits(value: object) -> Tensor:
    """Return a teacher's logits ``(N, C)``, ``C >= 2``, finite.

    Half-precision logits come back in float32.

    Raises:
        TypeError: not a floating-point tensor or array.
        ValueError: another shape, or values that are not finite.
    """
    if isinstance(value, np.ndarray):
        value = torch.as_tensor(value)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(
            f"teacher's logits must be a floating-point tensor or array (N, C), got {kind_of(value)}"
        )
    if value.ndim != 2 or len(value) == 0 or value.shape[1] < 2:
        raise ValueError(
            f"teacher's logits must have shape (N, C) with N >= 1 and C >= 2, got {tuple(value.shape)}"
        )
    if not bool(value.isfinite().all()):
        raise ValueError("teacher's logits must be finite, got NaN or infinity")
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def not_probabilities(logits: Tensor, whose: str = "teacher") -> Tensor:
    """Return the logits ``(N, C)`` of a whole set, unless every row of them is one of probabilities.

    Args:
        logits: the set's.
        whose: the model, for the message.

    Raises:
        ValueError: every row holds numbers >= 0 whose sum is 1.
    """
    if bool((logits >= 0).all()) and bool(((logits.sum(dim=1) - 1).abs() < 1e-3).all()):
        raise ValueError(
            f"{whose}'s logits must be logits, got probabilities (rows of numbers >= 0 with sum 1): give the "
            "outputs before the softmax, or the logarithm of the probabilities"
        )
    return logits


def per_sample(name: str, value: object, count: int) -> Tensor:
    """Return what a user's callable gave for ``count`` samples, if it is a tensor ``(N,)``.

    Raises:
        TypeError: not a tensor.
        ValueError: another shape.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must return a tensor (N,), got {type(value).__name__}")
    if value.shape != (count,):
        raise ValueError(
            f"{name} must return one value per sample, shape ({count},), got {tuple(value.shape)}: "
            "do not reduce over the batch"
        )
    return value
