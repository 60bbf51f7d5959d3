from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from art_logits.temperature import gap, is_custom, resolve, scaled_gap

LOGITS = torch.tensor([[4.0, 1.0, 0.0], [0.0, 5.0, 4.5], [-1.0, -2.0, -4.0]])
STEPS = torch.tensor([0, 2, 1])

logit_rows = arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(2, 6)),
    elements=st.floats(-100, 100, width=32).map(lambda v: v if abs(v) > 1e-3 else 0.0),
)


@given(logit_rows)
def test_gap_is_the_difference_of_the_two_largest_logits(rows: np.ndarray) -> None:
    logits = torch.from_numpy(rows)
    ordered = np.sort(rows, axis=1)
    expected = ordered[:, -1] - ordered[:, -2]
    spread = ordered[:, -1] - ordered[:, 0]
    found = gap(logits).numpy()
    clear = expected > spread * 2.0**-20
    np.testing.assert_array_equal(found[clear], expected[clear])
    assert (found > 0).all()
    assert np.isfinite(found).all()


def test_a_scaled_gap_weights_the_wrong_classes_between_margin_and_mean() -> None:
    logits = torch.tensor([[4.0, 3.0, 0.0]], dtype=torch.float64)
    np.testing.assert_allclose(scaled_gap(logits, scale=0.25), [0.25])
    shares = {}
    for scale in (0.01, 1.0, 100.0):
        tempered = logits / scaled_gap(logits, 3, scale=scale)[:, None]
        shares[scale] = float(tempered[:, 1:].softmax(dim=1)[0, 0])
    assert shares[0.01] == pytest.approx(1.0)
    assert shares[1.0] == pytest.approx(1 / (1 + np.exp(-3)))
    assert shares[100.0] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scaled_gap_needs_a_positive_scale(scale: float) -> None:
    with pytest.raises(ValueError, match="scale must be"):
        scaled_gap(LOGITS, scale=scale)


@given(logit_rows, st.integers(-40, 40))
def test_dividing_by_the_gap_forgets_powers_of_two_bit_for_bit(rows: np.ndarray, exponent: int) -> None:
    logits = torch.from_numpy(rows)
    scaled = logits * 2.0**exponent
    tempered, expected = scaled / gap(scaled)[:, None], logits / gap(logits)[:, None]
    # Equal logits have no scale to divide by; whatever they are, their softmax is the same.
    flat = logits.amax(dim=1) == logits.amin(dim=1)
    assert torch.equal(tempered[~flat], expected[~flat])
    assert torch.equal(tempered.log_softmax(dim=1), expected.log_softmax(dim=1))


def test_gap_guard_is_relative_to_the_range() -> None:
    tied = torch.tensor([[3.0, 3.0, 1.0], [3000.0, 3000.0, 1000.0]], dtype=torch.float64)
    torch.testing.assert_close(gap(tied), torch.tensor([2.0, 2000.0], dtype=torch.float64) * 2.0**-20)


def test_gap_of_equal_logits_is_one() -> None:
    assert gap(torch.full((2, 3), 7.0)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", ["gap", "auto"])
def test_named_policies_are_the_gap(name: str) -> None:
    assert torch.equal(resolve(name, 3)(LOGITS, STEPS), gap(LOGITS))


@pytest.mark.parametrize("value", [0.5, 2, np.float32(0.25)])
def test_a_number_is_the_same_for_all(value: float) -> None:
    found = resolve(value, 3)(LOGITS, STEPS)
    assert found.tolist() == [float(value)] * 3
    assert found.dtype == LOGITS.dtype


@pytest.mark.parametrize("schedule", [[1.0, 0.5, 0.25], (1.0, 0.5, 0.25)])
def test_a_schedule_goes_by_each_sample_s_own_step(schedule: object) -> None:
    assert resolve(schedule, 3)(LOGITS, STEPS).tolist() == [1.0, 0.25, 0.5]


def test_a_policy_is_called_once_per_step_with_the_samples_at_that_step() -> None:
    calls: list[tuple[int, list[float]]] = []

    def policy(logits: Tensor, step: int) -> Tensor:
        calls.append((step, logits[:, 0].tolist()))
        return logits[:, 0].abs() + 1 + step

    found = resolve(policy, 3)(LOGITS[[0, 1, 2, 0]], torch.tensor([1, 0, 1, 0]))
    assert sorted(calls) == [(0, [0.0, 4.0]), (1, [4.0, -1.0])]
    assert all(type(step) is int for step, _ in calls)
    assert found.tolist() == [6.0, 1.0, 3.0, 5.0]


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (lambda z, t: 1.0, TypeError, r"temperature must return a tensor \(N,\), got float"),
        (lambda z, t: z.amax(), ValueError, r"temperature must return one value per sample, shape \(3,\)"),
        (lambda z, t: 0 * z[:, 0], ValueError, "temperature must be finite and > 0 for every sample"),
        (lambda z, t: z[:, 0] / 0, ValueError, "temperature must be finite and > 0 for every sample"),
    ],
)
def test_policies_that_answer_wrongly(answer: object, error: type[Exception], message: str) -> None:
    policy = resolve(answer, 3)
    with pytest.raises(error, match=message):
        policy(LOGITS, torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0.0, ValueError, "temperature must be a finite number > 0, got 0.0"),
        (-1, ValueError, "temperature must be a finite number > 0"),
        (float("inf"), ValueError, "temperature must be a finite number > 0"),
        (None, TypeError, "temperature must be a number, got None"),
        (True, TypeError, "temperature must be a number, got True"),
        ("margin", ValueError, "temperature must be one of gap, auto, got 'margin'"),
        ([1.0, 2.0], ValueError, "temperature, as a schedule, must have one value per step, 3, got 2"),
        ([1.0, 2.0, 0.0], ValueError, "temperature must be a finite number > 0, got 0.0"),
        ([1.0, 2.0, "3"], TypeError, "temperature must be a number, got '3'"),
    ],
)
def test_refused_temperatures(value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve(value, 3)


def test_the_gap_policies_are_no_functions_of_the_user() -> None:
    """They look at each sample's logits alone, and are called once for all steps."""
    calls = []

    def own(logits: Tensor, step: int) -> Tensor:
        calls.append(step)
        return gap(logits)

    halved = partial(scaled_gap, scale=0.5)
    for policy in (gap, halved, "gap", 1.0, [1.0, 2.0]):
        assert not is_custom(policy)
    for policy in (own, lambda logits, step: gap(logits), partial(own), partial(scaled_gap, 0, scale=0.5)):
        assert is_custom(policy)
    logits, step = torch.tensor([[4.0, 1.0, 0.0], [5.0, 4.0, 0.0]]), torch.tensor([0, 1])
    assert resolve(halved, 2)(logits, step).tolist() == [1.5, 0.5]
    assert resolve(gap, 2)(logits, step).tolist() == [3.0, 1.0]
    assert resolve(own, 2)(logits, step).tolist() == [3.0, 1.0]
    assert calls == [0, 1]
