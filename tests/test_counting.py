from __future__ import annotations

import pytest
import torch
from torch import nn

from art_logits.counting import Counted, spread


def test_samples_are_counted_in_both_directions():
    counted = Counted(nn.Linear(4, 3))
    with torch.no_grad():
        counted(torch.zeros(5, 4))
    inputs = torch.zeros(2, 4, requires_grad=True)
    counted(inputs).sum().backward()
    assert (counted.forwards, counted.backwards) == (7, 2)


def test_a_model_that_returns_no_tensor_is_passed_on():
    assert Counted(lambda x: (x,))(torch.zeros(2, 4))[0].shape == (2, 4)


def test_counted_model_has_the_attributes_of_the_model():
    assert Counted(nn.Linear(4, 3)).out_features == 3
    with pytest.raises(AttributeError, match="nothing"):
        Counted(nn.Linear(4, 3)).nothing  # noqa: B018


def test_uneven_passes_keep_their_sum():
    assert spread(7, 3).tolist() == [3, 2, 2]
