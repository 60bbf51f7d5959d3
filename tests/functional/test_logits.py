import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special, stats

from art_logits.functional import logits as f

LOGITS = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, -1.0], [-4.0, -2.0, -8.0]], dtype=torch.float64)
LABELS = torch.tensor([1, 2, 0])

values = st.floats(-50, 50, width=64)
matrices = arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(2, 7)), elements=values)


def test_max_logit_by_hand():
    assert f.max_logit(LOGITS).tolist() == [3.0, 5.0, -2.0]


def test_logit_gap_by_hand_is_zero_for_a_tie():
    assert f.logit_gap(LOGITS).tolist() == [1.0, 0.0, 2.0]


def test_label_margin_by_hand():
    assert f.label_margin(LOGITS, LABELS).tolist() == [1.0, -6.0, -2.0]


def test_label_margin_leaves_its_argument_alone():
    logits = LOGITS.clone()
    f.label_margin(logits, LABELS)
    assert torch.equal(logits, LOGITS)


@given(matrices)
def test_confidence_and_entropy_match_scipy(array):
    logits = torch.from_numpy(array)
    probabilities = special.softmax(array, axis=1)
    assert f.confidence(logits).numpy() == pytest.approx(probabilities.max(axis=1))
    assert f.entropy(logits).numpy() == pytest.approx(stats.entropy(probabilities, axis=1), abs=1e-9)


@given(matrices)
def test_gap_is_the_margin_of_the_prediction(array):
    logits = torch.from_numpy(array)
    assert torch.equal(f.logit_gap(logits), f.label_margin(logits, logits.argmax(dim=1)))


@given(matrices, st.data())
def test_margin_is_positive_only_where_the_prediction_is_the_label(array, data):
    logits = torch.from_numpy(array)
    labels = torch.tensor([data.draw(st.integers(0, array.shape[1] - 1)) for _ in array])
    margin = f.label_margin(logits, labels)
    assert torch.all(logits.argmax(dim=1)[margin > 0] == labels[margin > 0])
    assert torch.all(margin.abs()[margin > 0] == f.logit_gap(logits)[margin > 0])
    assert torch.all(margin[logits.argmax(dim=1) != labels] <= 0)


@given(matrices, st.integers(-20, 20))
def test_shift_moves_the_max_logit_only(array, shift):
    logits, shifted = torch.from_numpy(array), torch.from_numpy(array) + shift
    assert f.max_logit(shifted).numpy() == pytest.approx(f.max_logit(logits).numpy() + shift)
    for quantity in (f.logit_gap, f.confidence, f.entropy):
        assert quantity(shifted).numpy() == pytest.approx(quantity(logits).numpy(), abs=1e-9)


def test_a_class_that_is_ruled_out_has_no_part_in_the_entropy():
    assert f.entropy(torch.tensor([[0.0, 0.0, -torch.inf]])).item() == pytest.approx(np.log(2))


def test_entropy_of_certainty_is_zero_and_finite():
    assert f.entropy(torch.tensor([[0.0, 1e4]])).item() == 0.0
