"""Work in parts that fit the memory: where one does not, it is halved and the work goes on."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Samples under way on a CPU: enough for full passes of most nets; how many go through the model at once is
# another question (:func:`art_logits.prepare.rows_per_pass`).
_CPU_BATCH = 128
# On a GPU: on an H100 a pass over more takes as much longer, for a small convolutional net as for ResNet-18,
# and the more are under way, the sooner none wait to take the place of those that leave.
_GPU_BATCH = 2048
# Of the free memory; the rest is for what the attack holds, and for the allocator's gaps.
_SHARE = 0.6

#: What torch raises where a device has no memory left; its home moved from ``torch.cuda``.
OutOfMemoryError: type[RuntimeError] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)


class Batches:
    """Runs a function on part after part of a batch, never more than ``size`` rows at a time.

    Args:
        size: rows in one part, >= 1. It is halved wherever a part does not fit the memory, and stays so.

    >>> Batches(2).run(lambda rows: rows, 5)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def run(
        self, function: Callable[[slice], T], count: int, *, at_most: int | Callable[[int], int] | None = None
    ) -> list[T]:
        """What ``function`` returns for each part of ``range(count)``, in order.

        ``at_most`` is a smaller size for this run alone, or a function that tells how many of so many rows
        the next part takes, at least 1.

        A part that does not fit is given again, as smaller ones: ``function`` must change nothing before
        its work is done.

        Raises:
            torch.OutOfMemoryError: a single row does not fit.
        """
        results: list[T] = []
        start = 0
        while start < count:
            size = min(self.size, count - start)
            if at_most is not None:
                size = min(size, at_most(size) if callable(at_most) else at_most)
            part = slice(start, start + size)
            done, result = self._attempt(function, part)
            if done:
                results.append(result[0])
                start = part.stop
        return results

    def _attempt(self, function: Callable[[slice], T], part: slice) -> tuple[bool, list[T]]:
        try:
            return True, [function(part)]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if part.stop - part.start == 1:
                raise OutOfMemoryError(
                    "out of memory with a single sample in the batch: free memory, or use a device that has "
                    f"more ({str(error).splitlines()[0]})"
                ) from error
        # Only here, past the handler, have the traceback and what its frames held been let go.
        self.size = (part.stop - part.start) // 2
        logger.warning("out of memory: going on with a batch size of %d", self.size)
        gc.collect()
        if torch.cuda.is_available():  # pragma: no cover - needs a GPU
            torch.cuda.empty_cache()
        return False, []


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that there is no memory left, on a GPU or on the CPU."""
    return isinstance(error, OutOfMemoryError) or "can't allocate memory" in str(error)


def fitting_batch_size(model: Callable[[Tensor], Tensor], inputs: Tensor, *, most: int) -> int:
    """A batch size that suits the device: 128 on a CPU; on a GPU 2048, or what fits the free memory.

    Args:
        model: maps inputs ``(N, ...)`` to logits ``(N, C)``.
        inputs: two samples, on the model's device; on a GPU they go forward and backward once.
        most: the largest that is of any use.

    Returns:
        A power of two, or ``most``; >= 1.
    """
    if not inputs.is_cuda:
        return min(_CPU_BATCH, most)
    return _fitting(*_memory(model, inputs), min(most, _GPU_BATCH))  # pragma: no cover - needs a GPU


def _memory(model: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[int, int]:  # pragma: no cover
    """Bytes that are free, and bytes that one sample takes, on a GPU."""
    device = inputs.device
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with torch.enable_grad():
        probe = inputs.clone().requires_grad_()
        torch.autograd.grad(model(probe).sum(), probe)
    taken = torch.cuda.max_memory_allocated(device) - held
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - held
    return free, taken // len(inputs)


def _fitting(free: int, per_sample: int, most: int) -> int:
    """The largest power of two whose samples fit a share of the memory, at most ``most``.

    >>> _fitting(free=2**30, per_sample=2**20, most=512), _fitting(free=0, per_sample=1, most=512)
    (512, 1)
    >>> _fitting(free=2**30, per_sample=3 * 2**20, most=512)
    128
    """
    fit = int(_SHARE * free) // max(per_sample, 1)
    return min(most, 1 << max(fit.bit_length() - 1, 0))
