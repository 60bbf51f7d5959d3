"""Random starts that depend on (seed, sample id, restart) alone.

Not on the batch, its order, the device or any global random state: each start has a counter-based
generator of its own (numpy's Philox, Salmon et al. 2011), keyed by the three numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .balls import LinfBall, NormBall

# Philox4x64-10: its multipliers, and what is added to the key after each round.
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
_LOW = 2**32 - 1

_LARGE = 2**20  # bytes, below which threads are not worth their start


def generator(seed: int, sample_id: int, restart: int) -> np.random.Generator:
    """The random generator of one start. Negative ids are as good as any other."""
    return np.random.Generator(np.random.Philox(_seeds(seed, sample_id, restart)))


def _seeds(*keys: int) -> np.random.SeedSequence:
    # Words of fixed width: SeedSequence writes numbers one after the other, each as long as it needs.
    words = np.array([int(key) % 2**64 for key in keys], dtype="<u8")
    return np.random.SeedSequence(words.view("<u4"))


def random_points(
    ball: NormBall, like: Tensor, *, seed: int, sample_ids: Iterable[int], restarts: Iterable[int]
) -> Tensor:
    """Points drawn uniformly from the unit ball, one per sample, shaped as ``like`` ``(N, ...)``.

    They are the same numbers on every device.
    """
    size = like[0].numel() if len(like) else 0
    if like.is_cuda and isinstance(ball, LinfBall):
        # Drawn one by one on the CPU, they would take longer than a small net's whole attack does on a GPU.
        seeds = [_seeds(seed, *pair) for pair in zip(sample_ids, restarts, strict=True)]
        return (2 * uniform_numbers(seeds, size, like.device) - 1).to(like).view_as(like)
    points = [
        ball.sample(generator(seed, sample_id, restart), size)
        for sample_id, restart in zip(sample_ids, restarts, strict=True)
    ]
    if not points:
        return torch.zeros_like(like)
    return torch.from_numpy(np.stack(points)).to(like).view_as(like)


def random_choices(
    share: float, like: Tensor, *, seed: int, sample_ids: Iterable[int], restarts: Iterable[int]
) -> Tensor:
    """Which elements of each sample are among a share of them, each by its own draw; bool, as ``like``.

    Independent of the points that :func:`random_points` draws for the same keys.
    """
    # One word more than a point has.
    seeds = [_seeds(seed, *pair, 1) for pair in zip(sample_ids, restarts, strict=True)]
    size = like[0].numel() if len(like) else 0
    return (uniform_numbers(seeds, size, like.device) < share).view_as(like)


def uniform_numbers(
    seeds: Sequence[np.random.SeedSequence], count: int, device: torch.device | str = "cpu"
) -> Tensor:
    """What ``Generator(Philox(s)).random(count, dtype=float32)`` is for each seed, computed on a device.

    Philox needs no state but a counter, so all numbers of all seeds are computed at once. Integers are
    torch's of 64 bits, which wrap around as the unsigned ones do that the generator is defined on.

    Args:
        seeds: N of them.
        count: numbers per seed.
        device: where to compute them.

    Returns:
        ``(N, count)`` float32 in [0, 1), bit for bit numpy's.

    >>> seed = np.random.SeedSequence(5)
    >>> numbers = np.random.Generator(np.random.Philox(seed)).random(3, dtype=np.float32)
    >>> bool((uniform_numbers([seed], 3)[0].numpy() == numbers).all())
    True
    """
    blocks = -(-count // 8)  # a block of the counter makes four words of two numbers each
    state = np.array([seed.generate_state(2, np.uint64) for seed in seeds], dtype=np.uint64).reshape(-1, 2)
    keys = torch.from_numpy(state.view(np.int64)).to(device)
    key = [keys[:, :1], keys[:, 1:]]
    nothing = torch.zeros(len(keys), blocks, dtype=torch.int64, device=device)
    words = [nothing + torch.arange(1, blocks + 1, device=device), nothing, nothing, nothing]
    for number in range(_ROUNDS):
        if number:
            key = [part + _signed(step) for part, step in zip(key, _WEYL, strict=True)]
        high0, low0 = _product(_MULTIPLIERS[0], words[0])
        high1, low1 = _product(_MULTIPLIERS[1], words[2])
        words = [high1 ^ words[1] ^ key[0], low1, high0 ^ words[3] ^ key[1], low0]
    wide = torch.stack(words, dim=2)
    halves = torch.stack([wide & _LOW, (wide >> 32) & _LOW], dim=3).flatten(1)[:, :count]
    return (halves >> 8).float() * 2.0**-24


def _signed(word: int) -> int:
    """An unsigned number of 64 bits as the signed one with the same bits."""
    return word - 2**64 if word >= 2**63 else word


def _product(factor: int, words: Tensor) -> tuple[Tensor, Tensor]:
    """The upper and the lower 64 bits of a product of unsigned numbers of 64 bits, from products of 32."""
    high, low = words >> 32 & _LOW, words & _LOW
    factor_high, factor_low = factor >> 32, factor & _LOW
    middle = (low * factor_low >> 32 & _LOW) + high * factor_low
    other = (middle & _LOW) + low * factor_high
    return high * factor_high + (middle >> 32 & _LOW) + (other >> 32 & _LOW), words * _signed(factor)


def sample_hashes(inputs: Tensor, labels: Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Ids for samples that have none: a hash of each sample's bytes (in float32) and its label, ``(N,)``.

    The same image with the same label has the same id in every batch, order and run.

    >>> x = torch.zeros(2, 4)
    >>> a, b = sample_hashes(x, torch.tensor([0, 1]))
    >>> bool(a == b), bool(a == sample_hashes(x[:1], torch.tensor([0]))[0])
    (False, True)
    """
    rows = inputs.detach().to("cpu", torch.float32).contiguous().numpy()
    known = labels.cpu().numpy()
    if len(known) != len(rows):
        raise ValueError(f"labels must have shape ({len(rows)},), one per input, got {len(known)}")
    threads = torch.get_num_threads() if rows.nbytes > _LARGE else 1
    if threads == 1:
        return _hashed(rows, known)
    with ThreadPoolExecutor(threads) as pool:  # hashing lets other threads work
        parts = pool.map(_hashed, np.array_split(rows, threads), np.array_split(known, threads))
        return np.concatenate(list(parts))


def _hashed(rows: Any, labels: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    ids = np.empty(len(rows), dtype=np.int64)
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        salt = int(label).to_bytes(8, "little", signed=True)
        digest = hashlib.blake2b(row, digest_size=8, salt=salt).digest()
        ids[i] = int.from_bytes(digest, "little", signed=True)
    return ids
