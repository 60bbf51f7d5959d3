"""Random starts that depend on (seed, sample id, restart) alone.

Not on the batch, its order, the device or any global random state: each start has a counter-based
generator of its own (numpy's Philox, Salmon et al. 2011), keyed by the three numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .balls import LinfBall, NormBall

# Philox4x64-10: its multipliers, and what is added to the key after each round.
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
_LOW = 2**32 - 1

_LARGE = 2**18  # elements that are hashed at a time, for the caches of a CPU

Ids: TypeAlias = "Sequence[int] | np.ndarray[Any, np.dtype[np.int64]]"
Keys: TypeAlias = "np.ndarray[Any, np.dtype[np.uint64]]"


def generator(seed: int, sample_id: int, restart: int) -> np.random.Generator:
    """The random generator of one start. Negative ids are as good as any other."""
    # Words of fixed width: SeedSequence writes numbers one after the other, each as long as it needs.
    words = np.array([int(key) % 2**64 for key in (seed, sample_id, restart)], dtype="<u8")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words.view("<u4"))))


def philox_keys(seed: int, sample_ids: Ids, restarts: Ids, *more: int) -> Keys:
    """The keys of many generators, ``(N, 2)``, in a fraction of the time that making these takes.

    They are those of :func:`generator`, which leaves them to :class:`numpy.random.SeedSequence` (O'Neill
    2015); its steps are taken here for all starts at once.

    Args:
        seed: of all.
        sample_ids: N of them.
        restarts: N of them.
        more: further words of 64 bits, for draws that have nothing to do with the others'.

    Raises:
        ValueError: not one restart per sample id.

    >>> words = np.array([7, 5, 2], dtype="<u8").view("<u4")
    >>> numpys = np.random.SeedSequence(words).generate_state(2, np.uint64)
    >>> bool((philox_keys(7, [5], [2]) == numpys).all())
    True
    """
    own = np.stack([np.asarray(column, dtype=np.int64) for column in (sample_ids, restarts)]).view(np.uint64)
    common = [np.full(own.shape[1], int(word) % 2**64, dtype=np.uint64) for word in (seed, *more)]
    columns = [common[0], *own, *common[1:]]
    words = [half.astype(np.uint32) for column in columns for half in (column & _LOW, column >> 32)]

    hashed = _hash(0x43B0D7E5, 0x931E8875)
    pool = [hashed(word) for word in words[:4]]
    for source in range(4):
        for target in range(4):
            if target != source:
                pool[target] = _mixed(pool[target], hashed(pool[source]))
    for word in words[4:]:
        pool = [_mixed(part, hashed(word)) for part in pool]
    hashed = _hash(0x8B51F9DD, 0x58F38DED)
    low0, high0, low1, high1 = (hashed(part).astype(np.uint64) for part in pool)
    return np.stack([low0 | high0 << 32, low1 | high1 << 32], axis=1)


def _hash(constant: int, factor: int) -> Callable[[Any], Any]:
    """SeedSequence's hash of words of 32 bits, which is another one at each call."""

    def hashed(words: Any) -> Any:
        nonlocal constant
        words = words ^ np.uint32(constant)
        constant = constant * factor % 2**32
        words = words * np.uint32(constant)
        return words ^ words >> np.uint32(16)

    return hashed


def _mixed(ours: Any, theirs: Any) -> Any:
    words = np.uint32(0xCA01F9DD) * ours - np.uint32(0x4973F715) * theirs
    return words ^ words >> np.uint32(16)


def _generators(keys: Keys) -> Iterator[np.random.Generator]:
    """The generator of each key; it is one, which is set anew, and of no use once the next one is there."""
    bits = np.random.Philox(0)
    state: Any = bits.state
    for key in keys:
        state["state"]["key"] = key
        bits.state = state
        yield np.random.Generator(bits)


def random_points(ball: NormBall, like: Tensor, *, seed: int, sample_ids: Ids, restarts: Ids) -> Tensor:
    """Points drawn uniformly from the unit ball, one per sample, shaped as ``like`` ``(N, ...)``.

    They are the same numbers on every device.
    """
    size = like[0].numel() if len(like) else 0
    keys = philox_keys(seed, sample_ids, restarts)
    if like.is_cuda and isinstance(ball, LinfBall):
        # Drawn one by one on the CPU, they would take longer than a small net's whole attack does on a GPU.
        return (2 * uniform_numbers(keys, size, like.device) - 1).to(like).view_as(like)
    if not len(keys):
        return torch.zeros_like(like)
    points = [ball.sample(rng, size) for rng in _generators(keys)]
    return torch.from_numpy(np.stack(points)).to(like).view_as(like)


def random_choices(share: float, like: Tensor, *, seed: int, sample_ids: Ids, restarts: Ids) -> Tensor:
    """Which elements of each sample are among a share of them, each by its own draw; bool, as ``like``.

    Independent of the points that :func:`random_points` draws for the same keys.
    """
    # One word more than a point has.
    keys = philox_keys(seed, sample_ids, restarts, 1)
    size = like[0].numel() if len(like) else 0
    return (uniform_numbers(keys, size, like.device) < share).view_as(like)


def uniform_numbers(keys: Keys, count: int, device: torch.device | str = "cpu") -> Tensor:
    """What ``Generator(Philox(key=k)).random(count, dtype=float32)`` is for each key, computed on a device.

    Philox needs no state but a counter, so all numbers of all keys are computed at once. Integers are
    torch's of 64 bits, which wrap around as the unsigned ones do that the generator is defined on.

    Args:
        keys: ``(N, 2)``, from :func:`philox_keys`.
        count: numbers per key.
        device: where to compute them.

    Returns:
        ``(N, count)`` float32 in [0, 1), bit for bit numpy's.

    >>> key = np.array([5, 6], dtype=np.uint64)
    >>> numbers = np.random.Generator(np.random.Philox(key=key)).random(3, dtype=np.float32)
    >>> bool((uniform_numbers(key[None], 3)[0].numpy() == numbers).all())
    True
    """
    blocks = -(-count // 8)  # a block of the counter makes four words of two numbers each
    halves = torch.from_numpy(keys.view(np.int64)).to(device)
    key = [halves[:, :1], halves[:, 1:]]
    nothing = torch.zeros(len(keys), blocks, dtype=torch.int64, device=device)
    words = [nothing + torch.arange(1, blocks + 1, device=device), nothing, nothing, nothing]
    for number in range(_ROUNDS):
        if number:
            key = [part + _signed(step) for part, step in zip(key, _WEYL, strict=True)]
        high0, low0 = _product(_MULTIPLIERS[0], words[0])
        high1, low1 = _product(_MULTIPLIERS[1], words[2])
        words = [high1 ^ words[1] ^ key[0], low1, high0 ^ words[3] ^ key[1], low0]
    wide = torch.stack(words, dim=2)
    numbers = torch.stack([wide & _LOW, (wide >> 32) & _LOW], dim=3).flatten(1)[:, :count]
    return (numbers >> 8).float() * 2.0**-24


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
    if len(labels) != len(inputs):
        raise ValueError(f"labels must have shape ({len(inputs)},), one per input, got {len(labels)}")
    # The sum of all words, each times an odd number of its own, modulo 2^64: what differs in one word differs
    # in its hash, and of others by chance few do not. It is the same on a GPU, which keeps the pixels.
    size = inputs[0].numel() if len(inputs) else 0
    factors = torch.from_numpy(_scrambled(np.arange(size + 1)) | 1).to(inputs.device)
    sums = labels.to(factors) * factors[0]
    rows = max(1, _LARGE // max(size, 1))
    for start in range(0, len(inputs), rows):
        part = inputs[start : start + rows].detach().float().reshape(-1, size).contiguous()
        sums[start : start + rows] += (part.view(torch.int32).long() * factors[1:]).sum(dim=1)
    return _scrambled(sums.cpu().numpy())


def _scrambled(words: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Other words of 64 bits, one for each, without a pattern (the end of SplitMix64, Steele et al. 2014)."""
    bits = words.astype(np.int64).view(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ bits >> np.uint64(shift)) * np.uint64(factor)
    scrambled: np.ndarray[Any, np.dtype[np.int64]] = (bits ^ bits >> np.uint64(31)).view(np.int64)
    return scrambled
