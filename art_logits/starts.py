"""Random starts that depend on (seed, sample id, restart) alone.

Not on the batch, its order, the device or any global random state: each start has a counter-based
generator of its own (numpy's Philox, Salmon et al. 2011), keyed by the three numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .balls import NormBall


def generator(seed: int, sample_id: int, restart: int) -> np.random.Generator:
    """The random generator of one start. Negative ids are as good as any other."""
    # Words of fixed width: SeedSequence writes numbers one after the other, each as long as it needs.
    keys = np.array([int(key) % 2**64 for key in (seed, sample_id, restart)], dtype="<u8")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(keys.view("<u4"))))


def random_points(
    ball: NormBall, like: Tensor, *, seed: int, sample_ids: Iterable[int], restarts: Iterable[int]
) -> Tensor:
    """Points drawn uniformly from the unit ball, one per sample, shaped as ``like`` ``(N, ...)``."""
    size = like[0].numel() if len(like) else 0
    points = [
        ball.sample(generator(seed, sample_id, restart), size)
        for sample_id, restart in zip(sample_ids, restarts, strict=True)
    ]
    if not points:
        return torch.zeros_like(like)
    return torch.from_numpy(np.stack(points)).to(like).view_as(like)


def sample_hashes(inputs: Tensor, labels: Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Ids for samples that have none: a hash of each sample's bytes (in float32) and its label, ``(N,)``.

    The same image with the same label has the same id in every batch, order and run.

    >>> x = torch.zeros(2, 4)
    >>> a, b = sample_hashes(x, torch.tensor([0, 1]))
    >>> bool(a == b), bool(a == sample_hashes(x[:1], torch.tensor([0]))[0])
    (False, True)
    """
    rows = inputs.detach().to("cpu", torch.float32).contiguous().numpy()
    ids = np.empty(len(rows), dtype=np.int64)
    for i, (row, label) in enumerate(zip(rows, labels.tolist(), strict=True)):
        digest = hashlib.blake2b(
            row.tobytes(), digest_size=8, salt=int(label).to_bytes(8, "little", signed=True)
        )
        ids[i] = int.from_bytes(digest.digest(), "little", signed=True)
    return ids
