from __future__ import annotations

import pytest
import torch
from torch import nn

from art_logits.prepare import evaluating


def mixed() -> nn.Sequential:
    """Modules in both modes, parameters with and without gradients."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)).train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    return model


def flags(model: nn.Module) -> tuple[list[bool], list[bool]]:
    return [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]


def test_models_are_in_eval_mode_without_parameter_gradients_inside() -> None:
    model = mixed()
    before = flags(model)
    with evaluating(model):
        modes, grads = flags(model)
        assert not any(modes)
        assert not any(grads)
    assert flags(model) == before


def test_flags_come_back_after_an_exception() -> None:
    model = mixed()
    before = flags(model)
    with pytest.raises(RuntimeError, match="midway"), evaluating(model):
        raise RuntimeError("midway")
    assert flags(model) == before


def test_several_models_some_shared_some_no_modules() -> None:
    first, second = mixed(), nn.Linear(2, 2)
    both = nn.Sequential(first, second)
    before = flags(both)
    with evaluating(first, both, lambda x: x):
        assert not any(flags(both)[0])
    assert flags(both) == before


def test_nesting_restores_layer_by_layer() -> None:
    model = mixed()
    before = flags(model)
    with evaluating(model):
        with evaluating(model):
            pass
        assert not any(flags(model)[0])
        assert not any(flags(model)[1])
    assert flags(model) == before


def test_gradients_and_statistics_are_left_alone() -> None:
    model = mixed()
    model(torch.rand(8, 4)).sum().backward()
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    statistics = {name: b.clone() for name, b in model.named_buffers()}
    with evaluating(model):
        model(torch.rand(8, 4))
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert (parameter.grad is None) == (grad is None)
        if grad is not None:
            assert torch.equal(parameter.grad, grad)
    assert all(torch.equal(b, statistics[name]) for name, b in model.named_buffers())
