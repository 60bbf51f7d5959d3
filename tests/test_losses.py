from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from art_logits.losses import LOSSES, cross_entropy, dlr, get_loss, margin, probability_margin

Batch = tuple[Tensor, Tensor]


@st.composite
def batches(draw: st.DrawFn, min_classes: int = 2) -> Batch:
    """Float64 logits ``(N, C)`` and labels ``(N,)``."""
    count, classes = draw(st.integers(1, 5)), draw(st.integers(min_classes, 6))
    values = st.floats(-50, 50, allow_nan=False, width=32)
    logits = draw(arrays(np.float64, (count, classes), elements=values))
    labels = draw(arrays(np.int64, count, elements=st.integers(0, classes - 1)))
    return torch.from_numpy(logits), torch.from_numpy(labels)


def numpy_margin(z: np.ndarray, y: int) -> float:
    return float(max(value for j, value in enumerate(z) if j != y) - z[y])


def numpy_dlr(z: np.ndarray, y: int) -> float:
    ordered = np.sort(z)
    return numpy_margin(z, y) / float(ordered[-1] - ordered[-3] + 1e-12)


def numpy_cross_entropy(z: np.ndarray, y: int) -> float:
    top = z.max()
    return float(top + np.log(np.exp(z - top).sum()) - z[y])


def numpy_probability_margin(z: np.ndarray, y: int) -> float:
    p = np.exp(z - z.max())
    return numpy_margin(p / p.sum(), y)


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        (cross_entropy, numpy_cross_entropy),
        (margin, numpy_margin),
        (dlr, numpy_dlr),
        (probability_margin, numpy_probability_margin),
    ],
)
@given(batch=batches(min_classes=3))
def test_losses_agree_with_numpy(
    loss: Callable[[Tensor, Tensor], Tensor], reference: Callable[[np.ndarray, int], float], batch: Batch
) -> None:
    logits, labels = batch
    expected = [reference(z, y) for z, y in zip(logits.numpy(), labels.tolist(), strict=True)]
    np.testing.assert_allclose(loss(logits, labels).numpy(), expected, rtol=1e-9, atol=1e-9)


@given(batches())
def test_cross_entropy_is_torch_s(batch: Batch) -> None:
    expected = torch.nn.CrossEntropyLoss(reduction="none")(*batch)
    assert torch.equal(cross_entropy(*batch), expected)


@given(batches(), st.sampled_from(sorted(LOSSES)))
def test_each_row_has_its_own_loss(batch: Batch, name: str) -> None:
    logits, labels = batch
    whole = LOSSES[name](logits, labels)
    alone = torch.cat([LOSSES[name](logits[[i]], labels[[i]]) for i in range(len(labels))])
    assert whole.shape == labels.shape
    assert torch.equal(whole, alone)


@given(batches(), st.sampled_from(sorted(LOSSES)))
def test_more_logit_for_the_label_is_never_more_adversarial(batch: Batch, name: str) -> None:
    logits, labels = batch
    if logits.shape[1] == 2:
        assume(name != "dlr")  # constant up to its sign: see below
    raised = logits.scatter_add(1, labels[:, None], torch.full((len(labels), 1), 0.5, dtype=logits.dtype))
    assert bool((LOSSES[name](raised, labels) <= LOSSES[name](logits, labels) + 1e-9).all())


@given(batches(), st.sampled_from(["margin", "dlr", "probability_margin"]))
def test_margins_are_positive_exactly_where_another_class_wins(batch: Batch, name: str) -> None:
    logits, labels = batch
    top = logits.topk(2).values
    assume(bool((top[:, 0] - top[:, 1] > 1e-3).all()))
    assume(bool((logits.softmax(1).topk(2).values.diff(dim=1).abs() > 1e-12).all()))
    wrong = logits.argmax(dim=1) != labels
    assert torch.equal(LOSSES[name](logits, labels) > 0, wrong)


@given(batches(min_classes=3), st.floats(0.05, 20))
def test_cross_entropy_gradient_with_temperature_has_its_closed_form(
    batch: Batch, temperature: float
) -> None:
    """(1 - p_y) / T * sum_{j != y} q_j (e_j - e_y), with q_j the softmax over the wrong classes."""
    logits, labels = batch[0].clamp(-8, 8), batch[1]
    z = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(cross_entropy(z / temperature, labels).sum(), z)
    classes = logits.shape[1]
    for row, y in enumerate(labels.tolist()):
        p_y = (logits[row] / temperature).softmax(0)[y]
        wrong = [j for j in range(classes) if j != y]
        q = (logits[row, wrong] / temperature).softmax(0)
        expected = torch.zeros(classes, dtype=logits.dtype)
        expected[wrong] = q
        expected[y] = -q.sum()
        torch.testing.assert_close(found[row], expected * (1 - p_y) / temperature, rtol=1e-6, atol=1e-12)


def test_a_low_temperature_turns_cross_entropy_into_the_margin() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.5, -1.0]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([2])
    (ce,) = torch.autograd.grad(cross_entropy(logits / 0.01, labels).sum(), logits)
    (cw,) = torch.autograd.grad(margin(logits, labels).sum(), logits)
    torch.testing.assert_close(ce / ce.abs().max(), cw, rtol=0, atol=1e-12)


@given(batches(), st.floats(0.01, 100), st.sampled_from(["margin", "dlr"]))
@settings(max_examples=100)
def test_margin_and_dlr_keep_their_direction_at_any_temperature(
    batch: Batch, temperature: float, name: str
) -> None:
    logits, labels = batch
    directions = []
    for scale in (1.0, temperature):
        z = logits.clone().requires_grad_()
        (grad,) = torch.autograd.grad(LOSSES[name](z / scale, labels).sum(), z)
        directions.append(torch.nn.functional.normalize(grad, dim=1))
    # Ties are broken by rounding, and the ratio's constant 1e-12 must play no part.
    clear = (logits.sort(dim=1).values.diff(dim=1) > 1e-3).all(dim=1)
    torch.testing.assert_close(directions[0][clear], directions[1][clear], rtol=1e-5, atol=1e-7)


@given(batches(min_classes=3), st.floats(0.01, 100), st.floats(-10, 10))
def test_dlr_ignores_shift_and_scale(batch: Batch, scale: float, shift: float) -> None:
    logits, labels = batch
    assume(bool((logits.topk(3).values[:, 0] - logits.topk(3).values[:, 2] > 1e-3).all()))
    torch.testing.assert_close(dlr(logits * scale + shift, labels), dlr(logits, labels), rtol=1e-5, atol=1e-6)


def test_dlr_with_two_classes_keeps_the_margin_s_gradient_and_ignores_scale() -> None:
    for scale in (1.0, 1000.0):
        logits = (scale * torch.tensor([[2.0, 0.5], [0.5, 2.0]])).requires_grad_()
        value = dlr(logits, torch.tensor([0, 0]))
        torch.testing.assert_close(value, torch.tensor([-1.0, 1.0]))
        (grad,) = torch.autograd.grad(value.sum(), logits)
        torch.testing.assert_close(grad * scale, torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]) / 1.5)


@pytest.mark.parametrize("classes", [3, 5])
def test_dlr_of_the_third_class_keeps_the_margin_s_gradient(classes: int) -> None:
    """The ratio is 1 whatever the logits are; its own gradient would be rounding noise."""
    rng = torch.Generator().manual_seed(classes)
    logits = torch.randn(50, classes, generator=rng).requires_grad_()
    labels = logits.topk(3).indices[:, 2]
    value = dlr(logits, labels)
    torch.testing.assert_close(value, torch.ones(50))
    (found,) = torch.autograd.grad(value.sum(), logits)
    scale = logits.amax(dim=1) - logits.gather(1, labels[:, None]).squeeze(1)
    (expected,) = torch.autograd.grad((margin(logits, labels) / scale.detach()).sum(), logits)
    torch.testing.assert_close(found, expected)


def test_dlr_is_finite_where_all_logits_are_equal() -> None:
    for classes in (2, 3, 10):
        logits = torch.ones(1, classes, requires_grad=True)
        value = dlr(logits, torch.tensor([0]))
        (grad,) = torch.autograd.grad(value.sum(), logits)
        assert value.item() == 0
        assert bool(grad.isfinite().all())


def test_dlr_with_three_classes_by_hand() -> None:
    # -(z_y - max other) / (z_(1) - z_(3)): -(3 - 2) / (3 - 1) and -(1 - 3) / (3 - 1)
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    torch.testing.assert_close(dlr(logits, torch.tensor([1, 0])), torch.tensor([-0.5, 1.0]))


@given(batches())
def test_probability_margin_stays_between_minus_one_and_one(batch: Batch) -> None:
    assert bool((probability_margin(*batch).abs() <= 1).all())


def test_get_loss() -> None:
    assert get_loss("dlr") is dlr

    def own(logits: Tensor, labels: Tensor) -> Tensor:
        return logits[:, 0]

    assert get_loss(own) is own
    with pytest.raises(ValueError, match=r"loss must be one of cross_entropy, .*did you mean margin"):
        get_loss("margn")
