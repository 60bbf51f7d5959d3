from __future__ import annotations

import numpy as np
import pytest
import torch

from art_logits import _checks
from art_logits.types import Bounds

UNIT = Bounds(0.0, 1.0)
CPU = torch.device("cpu")


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int64(3), float("nan")])
def test_real_numbers_are_numbers(value: object) -> None:
    assert _checks.is_number(value)


@pytest.mark.parametrize("value", [True, np.True_, "1", None, 1j, [1.0], torch.tensor(1.0)])
def test_other_things_are_no_numbers(value: object) -> None:
    assert not _checks.is_number(value)


def test_number_returns_a_python_float() -> None:
    result = _checks.number("eps", np.float32(0.25))
    assert type(result) is float
    assert result == 0.25


@pytest.mark.parametrize("value", ["0.1", None, True, torch.tensor(0.1)])
def test_number_refuses_other_types(value: object) -> None:
    with pytest.raises(TypeError, match=r"^eps must be a number, got .* of type"):
        _checks.number("eps", value)


@pytest.mark.parametrize(
    ("value", "limits", "message"),
    [
        (float("nan"), {}, r"eps must be a finite number, got nan"),
        (float("inf"), {"at_least": 0.0}, r"eps must be a finite number >= 0, got inf"),
        (0.0, {"above": 0.0}, r"eps must be a finite number > 0, got 0.0"),
        (-1e-9, {"at_least": 0.0}, r"eps must be a finite number >= 0, got -1e-09"),
    ],
)
def test_number_refuses_what_is_outside_the_limits(
    value: float, limits: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _checks.number("eps", value, **limits)


def test_level_is_a_coverage() -> None:
    assert _checks.level(0.95) == 0.95
    for value in (0, 1, -0.1, float("nan")):
        with pytest.raises(ValueError, match=f"level: expected a coverage between 0 and 1, got {value}"):
            _checks.level(value)


def test_number_accepts_the_closed_limit() -> None:
    assert _checks.number("eps", 0, at_least=0.0) == 0.0


@pytest.mark.parametrize("value", [3, np.int32(3)])
def test_integer(value: object) -> None:
    result = _checks.integer("steps", value, at_least=3)
    assert type(result) is int
    assert result == 3


@pytest.mark.parametrize("value", [3.0, "3", True, np.True_, None])
def test_integer_refuses_other_types(value: object) -> None:
    with pytest.raises(TypeError, match="steps must be an integer, got"):
        _checks.integer("steps", value, at_least=0)


def test_integer_refuses_small_ones() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        _checks.integer("steps", 0, at_least=1)


def test_boolean() -> None:
    assert _checks.boolean("targeted", np.True_) is True
    with pytest.raises(TypeError, match="targeted must be True or False, got 1 of type int"):
        _checks.boolean("targeted", 1)


def test_choice_names_the_options_and_the_nearest() -> None:
    assert _checks.choice("norm", "L2", ("Linf", "L2")) == "L2"
    with pytest.raises(ValueError, match=r"norm must be one of Linf, L2, got 'inf' \(did you mean Linf"):
        _checks.choice("norm", "inf", ("Linf", "L2"))
    with pytest.raises(ValueError, match=r"norm must be one of Linf, L2, got None$"):
        _checks.choice("norm", None, ("Linf", "L2"))


def test_bounds() -> None:
    assert _checks.bounds([0, np.float64(1)]) == Bounds(0.0, 1.0)
    lower, upper = torch.zeros(3), torch.ones(3)
    checked = _checks.bounds((lower, upper))
    assert checked.lower is lower
    assert checked.upper is upper


@pytest.mark.parametrize("value", [1.0, (0.0,), (0.0, 0.5, 1.0), "01", None])
def test_bounds_must_be_a_pair(value: object) -> None:
    with pytest.raises(TypeError, match=r"bounds must be a pair \(lower, upper\)"):
        _checks.bounds(value)


@pytest.mark.parametrize("value", [(0.0, "1"), (0.0, torch.ones(1)), (None, None)])
def test_bounds_must_be_numbers_or_tensors(value: object) -> None:
    with pytest.raises(TypeError, match="bounds must be two numbers or two tensors"):
        _checks.bounds(value)


@pytest.mark.parametrize("value", [(1.0, 0.0), (0.5, 0.5), (float("nan"), 1.0)])
def test_bounds_must_be_ordered(value: object) -> None:
    with pytest.raises(ValueError, match="bounds must have lower < upper, got"):
        _checks.bounds(value)


def test_tensor_bounds_must_be_ordered_everywhere() -> None:
    with pytest.raises(ValueError, match="bounds must have lower < upper in every element"):
        _checks.bounds((torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])))


def test_epsilons() -> None:
    assert _checks.epsilons(1) == 1.0
    per_sample = torch.tensor([0.0, 0.5], requires_grad=True)
    checked = _checks.epsilons(per_sample)
    assert isinstance(checked, torch.Tensor)
    assert not checked.requires_grad
    with pytest.raises(TypeError, match=r"eps must be a floating-point tensor, got torch.int64"):
        _checks.epsilons(torch.tensor([1]))
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="eps must be finite and >= 0 for every sample"):
            _checks.epsilons(torch.tensor([0.1, bad]))
    with pytest.raises(ValueError, match="eps must be a finite number >= 0"):
        _checks.epsilons(-0.1)


def test_inputs_are_detached_and_otherwise_unchanged() -> None:
    value = torch.tensor([[0.0, 1.0]], requires_grad=True)
    checked = _checks.inputs(value, UNIT)
    assert not checked.requires_grad
    assert torch.equal(checked, value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[0.5]], r"inputs must be a torch.Tensor \(N, ...\), got list"),
        (np.zeros((1, 2), dtype=np.float32), r"got ndarray"),
        (torch.zeros(1, 2, dtype=torch.uint8), r"inputs must be floating point, got torch.uint8: scale"),
    ],
)
def test_inputs_of_other_types(value: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        _checks.inputs(value, UNIT)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3), r"inputs must be a non-empty batch \(N, ...\), got shape \(3,\)"),
        (torch.zeros(0, 3), r"got shape \(0, 3\)"),
        (torch.tensor([[float("nan")]]), "inputs must not contain NaN"),
        (
            torch.tensor([[-0.5, 1.5]]),
            r"inputs must lie within bounds \[0, 1\], got values in \[-0.5, 1.5\]: undo",
        ),
        (torch.tensor([[0.5, 1.0001]]), "inputs must lie within bounds"),
        (torch.tensor([[float("inf"), 0.0]]), "inputs must lie within bounds"),
    ],
)
def test_inputs_out_of_place(value: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _checks.inputs(value, UNIT)


def test_inputs_within_bounds_per_element() -> None:
    limits = Bounds(torch.tensor([0.0, -2.0]), torch.tensor([1.0, -1.0]))
    _checks.inputs(torch.tensor([[0.5, -1.5]]), limits)
    with pytest.raises(ValueError, match=r"inputs must lie within bounds \[-2, 1\]"):
        _checks.inputs(torch.tensor([[0.5, 0.5]]), limits)


def test_labels() -> None:
    for value in (torch.tensor([1, 2], dtype=torch.int32), np.array([1, 2]), [1, 2]):
        checked = _checks.labels("labels", value, 2, CPU)
        assert checked.dtype == torch.int64
        assert checked.tolist() == [1, 2]


@pytest.mark.parametrize("value", [[1.0, 2.0], [True, False], [1j, 2j]])
def test_labels_must_be_integers(value: object) -> None:
    with pytest.raises(TypeError, match="targets must be integer class indices, got torch"):
        _checks.labels("targets", value, 2, CPU)


@pytest.mark.parametrize("value", [None, "cat", [[1], [2, 3]]])
def test_labels_must_be_indices_at_all(value: object) -> None:
    with pytest.raises(TypeError, match="labels must be integer class indices, got"):
        _checks.labels("labels", value, 2, CPU)


@pytest.mark.parametrize("value", [[1], [[1], [2]], 1])
def test_labels_must_be_one_per_input(value: object) -> None:
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\), one per input, got"):
        _checks.labels("labels", value, 2, CPU)


def test_in_range() -> None:
    value = torch.tensor([0, 2])
    assert _checks.in_range("labels", value, 3) is value
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), the model's classes, got 0 to 2"):
        _checks.in_range("labels", value, 2)
    with pytest.raises(ValueError, match="got -1 to 2"):
        _checks.in_range("labels", torch.tensor([-1, 2]), 3)


def test_sample_ids() -> None:
    for value in ([5, -7], torch.tensor([5, -7]), np.array([5, -7], dtype=np.int32)):
        checked = _checks.sample_ids(value, 2)
        assert checked.dtype == np.int64
        assert checked.tolist() == [5, -7]
    with pytest.raises(TypeError, match="sample_ids must be integers, got float64"):
        _checks.sample_ids([0.5, 1.5], 2)
    with pytest.raises(TypeError, match="sample_ids must be integers, got bool"):
        _checks.sample_ids([True, False], 2)
    with pytest.raises(ValueError, match=r"sample_ids must have shape \(2,\), one per input, got \(3,\)"):
        _checks.sample_ids([1, 2, 3], 2)


def test_step_lengths() -> None:
    value = torch.tensor([0.1, 0.2], requires_grad=True)
    assert not _checks.step_lengths(value).requires_grad
    with pytest.raises(TypeError, match=r"step_size must be a floating-point tensor, got torch.int64"):
        _checks.step_lengths(torch.tensor([1]))
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="step_size must be finite and > 0 for every sample"):
            _checks.step_lengths(torch.tensor([0.1, bad]))


def test_mask() -> None:
    like = torch.zeros(2, 1, 3, dtype=torch.float64)
    weights = _checks.mask(torch.tensor([True, False, True]), like)
    assert weights.dtype == like.dtype
    assert weights.tolist() == [[[1.0, 0.0, 1.0]]] * 2
    assert _checks.mask(torch.full((2, 1, 1), 0.5), like).shape == like.shape


@pytest.mark.parametrize("value", [torch.ones(3, dtype=torch.int64), [1.0], np.ones(3)])
def test_mask_of_other_types(value: object) -> None:
    with pytest.raises(TypeError, match="mask must be a tensor of booleans or floating-point weights, got"):
        _checks.mask(value, torch.zeros(2, 3))


def test_mask_of_other_values_or_shapes() -> None:
    for bad in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="mask must hold weights >= 0 only"):
            _checks.mask(torch.tensor([0.5, bad, 1.0]), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"mask must broadcast to the inputs' shape \(2, 3\), got \(4,\)"):
        _checks.mask(torch.ones(4), torch.zeros(2, 3))


def test_logits_come_back_in_single_or_double_precision() -> None:
    for given, expected in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert _checks.logits(torch.zeros(2, 3, dtype=given), 2).dtype == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((torch.zeros(2, 3),), r"model must return a tensor of logits \(N, C\), got tuple: wrap it"),
        (torch.zeros(2, 3, dtype=torch.int64), "model must return floating-point logits, got torch.int64"),
    ],
)
def test_logits_of_other_types(value: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        _checks.logits(value, 2)


@pytest.mark.parametrize("shape", [(2,), (3, 3), (2, 1), (2, 3, 1)])
def test_logits_of_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"model must return logits \(2, C\) with C >= 2, got shape"):
        _checks.logits(torch.zeros(shape), 2)


def test_per_sample() -> None:
    value = torch.zeros(2)
    assert _checks.per_sample("loss", value, 2) is value
    with pytest.raises(TypeError, match=r"loss must return a tensor \(N,\), got float"):
        _checks.per_sample("loss", 0.5, 2)
    for shape in ((), (1,), (2, 1)):
        with pytest.raises(ValueError, match=r"loss must return one value per sample, shape \(2,\), got"):
            _checks.per_sample("loss", torch.zeros(shape), 2)


def test_what_is_out_by_a_hair_is_put_back_and_all_else_stays() -> None:
    inside = torch.tensor([[0.0, 0.5, 1.0]])
    assert _checks.within_a_hair(inside, UNIT) is inside
    found = _checks.within_a_hair(torch.tensor([[-1e-6, 0.5, 1 + 1e-6]]), UNIT)
    assert torch.equal(found, inside)
    far = torch.tensor([[-1e-4, torch.nan, 1.5]])
    assert torch.equal(_checks.within_a_hair(far, UNIT).nan_to_num(7.0), far.nan_to_num(7.0))
    # The unit is the distance between the limits, element by element.
    limits = Bounds(torch.zeros(3), torch.tensor([1.0, 255.0, 1.0]))
    found = _checks.within_a_hair(torch.tensor([[0.5, 255.001, 1.001]]), limits)
    assert torch.equal(found, torch.tensor([[0.5, 255.0, 1.001]]))
    free = Bounds(-float("inf"), float("inf"))
    assert torch.equal(_checks.within_a_hair(far[:, :1], free), far[:, :1])
    assert _checks.within_a_hair(inside[:0], UNIT).shape == (0, 3)


def test_probabilities_say_whose() -> None:
    probabilities = torch.full((4, 2), 0.5)
    for whose in ("teacher", "student"):
        with pytest.raises(ValueError, match=f"{whose}'s logits must be logits, got probabilities"):
            _checks.not_probabilities(probabilities, whose)
    assert _checks.not_probabilities(probabilities.log()) is not None
