from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from art_logits.balls import BALLS
from art_logits.starts import (
    generator,
    philox_keys,
    random_choices,
    random_points,
    sample_hashes,
    uniform_numbers,
)

big = st.integers(-(2**63), 2**63 - 1)


@given(st.integers(0, 2**64 - 1), big, st.integers(0, 100))
def test_a_start_is_keyed_by_seed_id_and_restart(seed: int, sample_id: int, restart: int) -> None:
    first = generator(seed, sample_id, restart).random(4)
    np.testing.assert_array_equal(generator(seed, sample_id, restart).random(4), first)
    for other in (
        generator((seed + 1) % 2**64, sample_id, restart),
        generator(seed, sample_id ^ 1, restart),
        generator(seed, sample_id, restart + 1),
    ):
        assert (other.random(4) != first).any()


def test_keys_do_not_run_into_each_other() -> None:
    """(1, 2, 3) in another order, or with its words shifted, is another key."""
    keys = [(1, 2, 3), (3, 2, 1), (2, 1, 3), (0, 1, 2), (1, 0, 2), (1, 2, 0), (1, -2, 3)]
    # Each number takes 64 bits, whether it needs them or not.
    keys += [(1, 2 << 32, 0), (1 << 32, 2, 0), (1, 0, 2 << 32)]
    drawn = {generator(*key).random() for key in keys}
    assert len(drawn) == len(keys)


def points(**changes: Any) -> torch.Tensor:
    settings: dict[str, Any] = {"seed": 3, "sample_ids": [5, -6, 7], "restarts": [0, 0, 1]}
    settings |= changes
    return random_points(BALLS["L2"], torch.zeros(len(settings["sample_ids"]), 2, 3), **settings)


def test_points_depend_on_neither_order_nor_neighbours() -> None:
    together = points()
    assert torch.equal(points(sample_ids=[7, 5, -6], restarts=[1, 0, 0]), together[[2, 0, 1]])
    assert torch.equal(points(sample_ids=[-6], restarts=[0]), together[[1]])


def test_points_change_with_the_seed_and_the_restart() -> None:
    assert not torch.equal(points(seed=4), points())
    assert bool((points(restarts=[1, 1, 2]) != points()).flatten(1).any(dim=1).all())


def test_points_have_the_shape_and_precision_of_their_model() -> None:
    like = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    drawn = random_points(BALLS["Linf"], like, seed=0, sample_ids=[1, 2], restarts=[0, 0])
    assert drawn.shape == like.shape
    assert drawn.dtype == like.dtype


def test_no_samples_no_points() -> None:
    drawn = random_points(BALLS["L1"], torch.zeros(0, 4), seed=0, sample_ids=[], restarts=[])
    assert drawn.shape == (0, 4)


def test_ids_and_restarts_must_match() -> None:
    with pytest.raises(ValueError, match="same shape"):
        random_points(BALLS["L2"], torch.zeros(2, 4), seed=0, sample_ids=[1, 2], restarts=[0])


def test_no_global_random_state() -> None:
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    points()
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_hashes_go_by_bytes_and_label() -> None:
    rng = torch.Generator().manual_seed(0)
    inputs = torch.rand(20, 1, 4, 4, generator=rng)
    labels = torch.arange(20) % 3
    ids = sample_hashes(inputs, labels)
    assert ids.dtype == np.int64
    assert len(set(ids.tolist())) == 20
    order = torch.randperm(20, generator=rng)
    np.testing.assert_array_equal(sample_hashes(inputs[order], labels[order]), ids[order.numpy()])
    np.testing.assert_array_equal(sample_hashes(inputs[3:4], labels[3:4]), ids[3:4])
    assert (sample_hashes(inputs, labels + 1) != ids).all()
    touched = inputs.clone()
    touched[:, 0, 0, 0] += 1e-3
    assert (sample_hashes(touched, labels) != ids).all()


def test_hashes_see_through_memory_layout_and_precision() -> None:
    inputs = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, -1])
    ids = sample_hashes(inputs, labels)
    np.testing.assert_array_equal(sample_hashes(inputs.to(memory_format=torch.channels_last), labels), ids)
    np.testing.assert_array_equal(sample_hashes(inputs.double(), labels), ids)


def numpys(*words: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(np.array([word % 2**64 for word in words], dtype="<u8").view("<u4"))


@given(st.integers(0, 2**64 - 1), st.lists(st.tuples(big, big), max_size=4), st.lists(big, max_size=2))
def test_keys_are_numpys(seed: int, pairs: list[tuple[int, int]], more: list[int]) -> None:
    """All at once they are what numpy makes of each, bit for bit."""
    ids, restarts = ([pair[side] for pair in pairs] for side in (0, 1))
    keys = philox_keys(seed, ids, restarts, *more)
    assert keys.shape == (len(pairs), 2)
    for key, pair in zip(keys, pairs, strict=True):
        np.testing.assert_array_equal(key, numpys(seed, *pair, *more).generate_state(2, np.uint64))


@pytest.mark.parametrize("norm", BALLS)
def test_points_are_those_of_each_starts_own_generator(norm: str) -> None:
    """One generator serves all, whatever it has drawn and kept before."""
    like = torch.zeros(5, 7)  # an odd number leaves half a word behind
    ids, restarts = np.array([3, -4, 2**62, 0, 3]), np.array([0, 0, 7, 1, 1])
    drawn = random_points(BALLS[norm], like, seed=9, sample_ids=ids, restarts=restarts)
    for row, sample_id, restart in zip(drawn, ids, restarts, strict=True):
        alone = BALLS[norm].sample(generator(9, int(sample_id), int(restart)), 7)
        np.testing.assert_array_equal(row.numpy(), alone)


@given(st.lists(st.tuples(*[st.integers(0, 2**64 - 1)] * 2), max_size=3), st.integers(0, 70))
def test_uniform_numbers_are_numpys(pairs: list[tuple[int, int]], count: int) -> None:
    """What a GPU draws: numpy's generator is the reference, bit for bit."""
    keys = np.array(pairs, dtype=np.uint64).reshape(-1, 2)
    drawn = uniform_numbers(keys, count)
    assert drawn.shape == (len(keys), count)
    assert drawn.dtype == torch.float32
    for row, key in zip(drawn, keys, strict=True):
        reference = np.random.Generator(np.random.Philox(key=key)).random(count, dtype=np.float32)
        np.testing.assert_array_equal(row.numpy(), reference)


def test_choices_are_a_share_and_keyed_as_points_are() -> None:
    like = torch.zeros(6, 40, 25)
    keys: dict[str, Any] = {"seed": 3, "sample_ids": [1, 2, 3, -4, 2**62, 1], "restarts": [1, 1, 1, 1, 1, 2]}
    chosen = random_choices(0.3, like, **keys)
    assert chosen.shape == like.shape
    assert chosen.dtype == torch.bool
    # 1000 draws each: the standard deviation of the share is 0.0145.
    assert bool(((chosen.flatten(1).double().mean(dim=1) - 0.3).abs() < 0.06).all())
    assert len({tuple(row.tolist()) for row in chosen.flatten(1)}) == 6
    one = random_choices(0.3, like[:1], seed=3, sample_ids=[2**62], restarts=[1])
    assert torch.equal(one[0], chosen[4])
    assert bool(random_choices(1.0, like, **keys).all())
    # Which elements are chosen says nothing about what is drawn for them.
    points = random_points(BALLS["Linf"], like, **keys)
    assert abs(float(points[chosen].mean() - points[~chosen].mean())) < 0.06


def test_hashes_of_parts_and_of_many() -> None:
    """Of 700 images that differ in a few pixels, no two have the same hash, whoever is hashed with them."""
    inputs = torch.zeros(700, 3, 25, 25)  # more than are hashed at a time
    labels = torch.zeros(700, dtype=torch.int64)
    for row, image in enumerate(inputs.flatten(1)):
        image[row] = 1
        image[row + 1 :: 700] = 1 if row % 2 else 0
    ids = sample_hashes(inputs, labels)
    assert len(set(ids.tolist())) == 700
    np.testing.assert_array_equal(sample_hashes(inputs[300:400], labels[300:400]), ids[300:400])


def test_hashes_are_even() -> None:
    """Each of the 64 bits is set in half of the hashes, of images that hardly differ."""
    inputs = torch.eye(2000)[:, :1999]
    ids = sample_hashes(inputs, torch.zeros(2000, dtype=torch.int64))
    share = ((ids[:, None] >> np.arange(64)) & 1).mean(axis=0)
    assert (abs(share - 0.5) < 0.06).all()  # the standard deviation is 0.011


def test_one_label_per_input() -> None:
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\), one per input, got 3"):
        sample_hashes(torch.zeros(2, 4), torch.zeros(3, dtype=torch.int64))
