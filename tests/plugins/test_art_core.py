"""What the core's attack has for the adapter: lengths per element, and an observer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from art_logits import TemperaturePGD, pgd
from art_logits.attack import Step
from art_logits.steps import resolve


@pytest.fixture
def problem() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(5, 3).double(), torch.rand(4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0])


OPTIONS: dict[str, Any] = {"steps": 3, "random_start": False, "stop_on_success": False}


def test_one_eps_and_one_step_per_element(problem: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = problem
    eps = torch.linspace(0.01, 0.2, 20, dtype=torch.float64).view(4, 5)
    # Three steps of a third reach the surface wherever the gradient's sign stays, as on a linear net.
    found = pgd(net, x, y, eps=eps, step_size=eps / 3, bounds=(-9.0, 9.0), loss="margin", **OPTIONS)
    delta = (found.adv_inputs - x).abs()
    assert bool((delta <= eps + 1e-12).all())
    assert float(((delta - eps).abs() < 1e-9).double().mean()) > 0.5


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_one_step_length_per_sample_is_that_of_each_alone(
    norm: Any, problem: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = problem
    lengths = torch.tensor([0.01, 0.02, 0.03, 0.04], dtype=torch.float64)
    together = pgd(net, x, y, eps=1.0, norm=norm, step_size=lengths, **OPTIONS).adv_inputs
    for i, length in enumerate(lengths.tolist()):
        alone = pgd(
            net, x[i : i + 1], y[i : i + 1], eps=1.0, norm=norm, step_size=length, **OPTIONS
        ).adv_inputs
        torch.testing.assert_close(together[i : i + 1], alone)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"step_size": torch.ones(4, dtype=torch.int64)},
            TypeError,
            "step_size must be a floating-point tensor",
        ),
        ({"step_size": torch.zeros(4)}, ValueError, "step_size must be finite and > 0 for every sample"),
        (
            {"step_size": torch.ones(3)},
            ValueError,
            r"step_size must be a number or have shape \(4,\), got \(3,\)",
        ),
        ({"eps": torch.ones(5, 4)}, ValueError, r"eps must .* got \(5, 4\); in Linf also \(4, 5\)"),
        ({"eps": torch.ones(4, 5), "norm": "L2"}, ValueError, r"eps must .* shape \(4,\), got \(4, 5\)$"),
    ],
)
def test_refused_tensors(
    options: Any, error: type[Exception], message: str, problem: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = problem
    with pytest.raises(error, match=message):
        pgd(net, x, y, **options)


def test_a_tensor_is_the_unit_of_every_step() -> None:
    sizes = resolve(torch.tensor([0.5, 2.0]), 3)
    assert sizes.relative
    assert sizes.at(torch.tensor([0, 2]), torch.tensor([[0.5], [2.0]])).tolist() == [[0.5], [2.0]]


@pytest.mark.parametrize("stop_on_success", [False, True])
def test_the_observer_sees_each_sample_s_own_steps(
    stop_on_success: bool, problem: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = problem
    seen: list[Step] = []
    attack = TemperaturePGD(eps=0.1, steps=4, restarts=2, stop_on_success=stop_on_success)
    watched = attack(net, x, y, batch_size=3, observer=seen.append)
    unwatched = attack(net, x, y, batch_size=3)
    assert torch.equal(watched.adv_inputs, unwatched.adv_inputs)
    steps = [
        (row, restart, step)
        for one in seen
        for row, restart, step in zip(one.rows.tolist(), one.restart.tolist(), one.step.tolist(), strict=True)
    ]
    assert len(steps) == len(set(steps)) == int(watched.backwards.sum())
    if not stop_on_success:
        assert set(steps) == {
            (row, restart, step) for row in range(4) for restart in range(2) for step in range(4)
        }
    for one in seen:
        torch.testing.assert_close(one.logits, net(one.inputs).detach())
        assert one.gradient.shape == one.inputs.shape
        assert bool(((one.inputs - x[one.rows]).abs() <= 0.1 + 1e-12).all())


def test_momentum_is_of_the_elements_that_move(problem: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = problem
    # What is masked out must not weigh in: the same attack as on a net that never sees those elements.
    mask = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])

    class Blind(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            held = torch.where(mask.bool(), z, z.detach())
            return net(held).sin()  # type: ignore[no-any-return]

    class Seeing(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return net(z).sin()  # type: ignore[no-any-return]

    options = {**OPTIONS, "eps": 0.5, "steps": 6, "momentum": 0.9, "norm": "L2", "keep": "last"}
    blind = pgd(Blind(), x, y, mask=mask, **options)
    seeing = pgd(Seeing(), x, y, mask=mask, **options)
    assert torch.equal(blind.adv_inputs, seeing.adv_inputs)
    assert not torch.equal(seeing.adv_inputs, x)
