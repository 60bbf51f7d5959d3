from __future__ import annotations

import math

import pytest
import torch

from art_logits.steps import resolve


def test_cosine_goes_from_two_eps_towards_zero() -> None:
    sizes = resolve("cosine", 4)
    assert sizes.relative
    assert sizes.lengths.tolist() == pytest.approx([1 + math.cos(math.pi * t / 4) for t in range(4)])
    assert sizes.lengths[0].item() == 2.0


def test_linear_goes_from_two_eps_towards_zero() -> None:
    sizes = resolve("linear", 4)
    assert sizes.relative
    assert sizes.lengths.tolist() == [2.0, 1.5, 1.0, 0.5]


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_schedules_fall_strictly_and_stay_positive(name: str) -> None:
    lengths = resolve(name, 50).lengths
    assert bool((lengths.diff() < 0).all())
    assert bool((lengths > 0).all())


def test_a_number_is_in_the_unit_of_the_inputs() -> None:
    sizes = resolve(0.125, 3)
    assert not sizes.relative
    assert sizes.lengths.tolist() == [0.125] * 3


def test_a_callable_is_asked_for_every_step() -> None:
    calls: list[tuple[int, int]] = []

    def halving(step: int, steps: int) -> float:
        calls.append((step, steps))
        return 0.5**step

    assert resolve(halving, 3).lengths.tolist() == [1.0, 0.5, 0.25]
    assert calls == [(0, 3), (1, 3), (2, 3)]


def test_lengths_follow_each_sample_s_step_and_eps() -> None:
    step = torch.tensor([0, 3, 1])
    eps = torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64).view(3, 1, 1)
    relative = resolve("linear", 4).at(step, eps)
    assert relative.shape == eps.shape
    torch.testing.assert_close(relative.flatten(), torch.tensor([0.2, 0.5, 3.0], dtype=torch.float64))
    fixed = resolve(lambda t, n: t + 1.0, 4).at(step, eps)
    assert fixed.shape == eps.shape
    assert fixed.flatten().tolist() == [1.0, 4.0, 2.0]
    assert fixed.dtype == eps.dtype


@pytest.mark.parametrize("value", ["cosine", "linear", 0.1, lambda t, n: 1.0])
def test_no_steps_no_lengths(value: object) -> None:
    assert resolve(value, 0).lengths.shape == (0,)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0.0, ValueError, "step_size must be a finite number > 0, got 0.0"),
        (-0.1, ValueError, "step_size must be a finite number > 0"),
        (None, TypeError, "step_size must be a number, got None"),
        ("exponential", ValueError, "step_size must be one of cosine, linear, got 'exponential'"),
        (lambda t, n: 1.0 - t, ValueError, "step_size must be a finite number > 0, got 0.0"),
        (lambda t, n: "long", TypeError, "step_size must be a number, got 'long'"),
    ],
)
def test_refused_step_sizes(value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve(value, 3)
