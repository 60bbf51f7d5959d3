from __future__ import annotations

import copy
import functools
import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from art_logits import AttackResult, TemperaturePGD, pgd
from art_logits.attack import Step
from art_logits.balls import BALLS, get_ball
from art_logits.steps import radii, settled_at

WIDE = (-1e3, 1e3)
DUAL_ORDER = {"Linf": 1, "L2": 2, "L1": float("inf")}


@pytest.fixture
def binary(make_exact: Any) -> nn.Module:
    """Two classes, 20 inputs, linear: every optimum has a closed form."""
    model: nn.Module = make_exact(2, 20, seed=3)
    return model


def direction(model: Any, labels: Tensor) -> Tensor:
    """Gradient of ``z_other - z_label``, ``(N, 20)``."""
    weight: Tensor = model.weight.detach()
    return weight[1 - labels] - weight[labels]


def vectors(count: int, seed: int = 0) -> Tensor:
    return torch.rand((count, 20), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Closed-form optima -----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("options", [{}, {"random_start": False, "temperature": 1.0, "step_size": "linear"}])
def test_linear_optimum_is_the_margin_plus_eps_times_the_dual_norm(
    binary: nn.Module, norm: str, targeted: bool, options: dict[str, Any]
) -> None:
    x, eps = vectors(12), 0.7
    labels = torch.arange(12) % 2
    clean = binary(x).detach()
    result = pgd(
        binary,
        x,
        labels,
        targets=1 - labels if targeted else None,
        targeted=targeted,
        norm=norm,
        eps=eps,
        bounds=WIDE,
        stop_on_success=False,
        **options,
    )
    rows = torch.arange(12)
    best = clean[rows, 1 - labels] - clean[rows, labels]
    best += eps * torch.linalg.vector_norm(direction(binary, labels), DUAL_ORDER[norm], dim=1)
    torch.testing.assert_close(result.margin, best, rtol=1e-5, atol=1e-5)
    assert torch.equal(result.success, result.margin > 0)


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr", "probability_margin"])
@pytest.mark.parametrize("temperature", [1.0, "gap", 0.25])
def test_linear_linf_optimum_within_active_bounds(binary: nn.Module, loss: str, temperature: Any) -> None:
    """Every coordinate goes as far along its sign as the ball and the bounds allow."""
    # Margins reach 7.5: at 37 T (float64) a difference of probabilities has nothing left but its rounding.
    x, eps, labels = vectors(12), 0.3, torch.arange(12) % 2
    result = pgd(
        binary, x, labels, eps=eps, loss=loss, temperature=temperature, stop_on_success=False, steps=20
    )
    optimum = (x + eps * direction(binary, labels).sign()).clamp(0, 1)
    assert int((optimum % 1 == 0).sum()) > 20  # bounds do matter here
    torch.testing.assert_close(result.adv_inputs, optimum, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_no_random_point_of_ball_and_bounds_beats_the_attack(binary: nn.Module, norm: str) -> None:
    x, eps, labels = vectors(6), 0.8, torch.arange(6) % 2
    result = pgd(binary, x, labels, norm=norm, eps=eps, stop_on_success=False, steps=100)
    assert int((torch.minimum(result.adv_inputs, 1 - result.adv_inputs) < 1e-3).sum()) > 0
    generator, ball = np.random.default_rng(0), get_ball(norm)
    towards = direction(binary, labels)
    for _ in range(500):
        points = torch.from_numpy(np.stack([ball.sample(generator, 20) for _ in x])).double()
        # Random points are far from optimal; pull them towards the gradient to make them worthy rivals.
        points = ball.project(points * eps + generator.random() * towards, torch.full((6, 1), eps).double())
        rival = (x + points).clamp(0, 1)
        logits = binary(rival).detach()
        rows = torch.arange(6)
        assert bool((logits[rows, 1 - labels] - logits[rows, labels] <= result.margin + 1e-3).all())


@pytest.mark.parametrize(("steps", "share"), [(20, 0.99), (100, 0.999)])
def test_l1_within_bounds_against_the_optimum(binary: nn.Module, steps: int, share: float) -> None:
    """The largest coordinates of the gradient, each to its bound, until the radius is used up."""
    x, eps, labels = vectors(6), 0.8, torch.arange(6) % 2
    towards, best = direction(binary, labels), x.clone()
    for row in range(6):
        left = eps
        for place in towards[row].abs().argsort(descending=True).tolist():
            up = bool(towards[row, place] > 0)
            move = min(left, float(1 - x[row, place] if up else x[row, place]))
            best[row, place] += move if up else -move
            left -= move
    logits, rows = binary(best).detach(), torch.arange(6)
    optimum = logits[rows, 1 - labels] - logits[rows, labels]
    result = pgd(binary, x, labels, norm="L1", eps=eps, stop_on_success=False, steps=steps)
    assert bool((result.margin <= optimum + 1e-9).all())
    assert bool((result.margin - result.clean_margin >= share * (optimum - result.clean_margin)).all())


@given(
    norm=st.sampled_from(["Linf", "L2", "L1"]),
    eps=st.floats(0, 2),
    steps=st.integers(0, 6),
    restarts=st.integers(1, 2),
    random_start=st.booleans(),
    stop_on_success=st.booleans(),
    keep=st.sampled_from(["best", "last"]),
    step_size=st.sampled_from(["cosine", "linear", 0.3]),
    loss=st.sampled_from(["cross_entropy", "margin", "dlr", "probability_margin"]),
    batch_size=st.sampled_from([None, 3]),
)
def test_results_lie_in_ball_and_bounds_and_describe_themselves(
    make_exact: Any, norm: str, eps: float, batch_size: int | None, **options: Any
) -> None:
    model = make_exact(3, 64, quadratic=2.0)
    x = torch.rand((8, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.arange(8) % 3
    result = pgd(model, x, labels, norm=norm, eps=eps, batch_size=batch_size, **options)
    assert bool((get_ball(norm).norm(result.adv_inputs - x) <= eps + 1e-9).all())
    assert 0 <= float(result.adv_inputs.min()) <= float(result.adv_inputs.max()) <= 1
    logits = model(result.adv_inputs).detach()
    assert torch.equal(result.logits, logits)
    assert torch.equal(result.success, logits.argmax(dim=1) != labels)
    rows = torch.arange(8)
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    torch.testing.assert_close(result.margin, others - logits[rows, labels])
    assert bool((result.restart >= -1).all())
    assert bool((result.restart < options["restarts"]).all())


# Identities and per-sample radii ----------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("nothing", [{"eps": 0.0}, {"steps": 0}])
def test_no_radius_or_no_steps_is_the_identity(
    net: nn.Module, images: Any, nothing: dict[str, Any], keep: str
) -> None:
    x, labels = images(6), torch.arange(6) % 5
    result = pgd(net, x, labels, random_start=False, keep=keep, **nothing)
    assert torch.equal(result.adv_inputs, x)
    torch.testing.assert_close(result.logits, net(x).detach())


def test_eps_zero_is_the_identity_with_random_starts_too(net: nn.Module, images: Any) -> None:
    x = images(4)
    result = pgd(net, x, torch.arange(4), eps=0.0, restarts=2, stop_on_success=False)
    assert torch.equal(result.adv_inputs, x)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_eps_per_sample(linear: nn.Module, images: Any, predict: Any, norm: str) -> None:
    x = images(5, dtype=torch.float64)
    eps = torch.tensor([0.0, 0.01, 0.02, 0.05, 0.1])
    result = pgd(linear, x, predict(linear, x), norm=norm, eps=eps, stop_on_success=False)
    found = get_ball(norm).norm(result.adv_inputs - x)
    torch.testing.assert_close(found, eps.double(), rtol=1e-6, atol=1e-9)
    for i in range(5):  # as if each had been attacked alone with its own radius
        alone = pgd(
            linear,
            x[[i]],
            predict(linear, x[[i]]),
            norm=norm,
            eps=float(eps[i]),
            stop_on_success=False,
        )
        assert torch.equal(alone.adv_inputs, result.adv_inputs[[i]])


def test_bounds_per_element(linear: nn.Module, images: Any, predict: Any) -> None:
    x = images(3, dtype=torch.float64)
    lower, upper = x.amin(dim=0) - 0.01, x.amax(dim=0) + 0.01
    result = pgd(linear, x, predict(linear, x), eps=0.5, bounds=(lower, upper), stop_on_success=False)
    assert bool(((result.adv_inputs >= lower) & (result.adv_inputs <= upper)).all())
    touched = (result.adv_inputs == lower) | (result.adv_inputs == upper)
    assert int(touched.sum()) > 50


def test_eps_per_element(linear: nn.Module, images: Any, predict: Any) -> None:
    x = images(3, dtype=torch.float64)
    labels = predict(linear, x)
    eps = images(3, seed=8, dtype=torch.float64) * 0.05
    result = pgd(linear, x, labels, eps=eps, bounds=WIDE, stop_on_success=False)
    moved = (result.adv_inputs - x).abs()
    assert bool((moved <= eps + 1e-12).all())
    # A linear model's optimum is a corner of the box; cosine steps end there.
    assert float(((moved - eps).abs() < 1e-9).double().mean()) > 0.9
    same = pgd(linear, x, labels, eps=torch.full_like(x, 0.03), stop_on_success=False)
    assert torch.equal(same.adv_inputs, pgd(linear, x, labels, eps=0.03, stop_on_success=False).adv_inputs)


def test_step_sizes_per_sample_and_per_element(linear: nn.Module, images: Any, predict: Any) -> None:
    x = images(4, dtype=torch.float64)
    labels = predict(linear, x)
    options: dict[str, Any] = {
        "eps": 1.0,
        "bounds": WIDE,
        "steps": 1,
        "random_start": False,
        "stop_on_success": False,
    }
    per_sample = torch.tensor([0.01, 0.02, 0.03, 0.04], dtype=torch.float64)
    moved = (pgd(linear, x, labels, step_size=per_sample, **options).adv_inputs - x).abs()
    torch.testing.assert_close(moved, per_sample.view(4, 1, 1, 1).expand_as(moved))
    per_element = 0.01 + 0.1 * images(4, seed=9, dtype=torch.float64)
    moved = (pgd(linear, x, labels, step_size=per_element, **options).adv_inputs - x).abs()
    torch.testing.assert_close(moved, per_element)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_masked_elements_stay(
    curved: nn.Module, images: Any, predict: Any, norm: str, batch_size: int | None
) -> None:
    x = images(8, dtype=torch.float64)
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :4] = True
    result = pgd(
        curved,
        x,
        predict(curved, x),
        norm=norm,
        eps=0.2,
        mask=mask,
        restarts=2,
        stop_on_success=False,
        batch_size=batch_size,
    )
    moved = result.adv_inputs != x
    assert not bool(moved[:, :, 4:].any())
    assert bool(moved[:, :, :4].flatten(1).any(dim=1).all())
    per_sample = mask.expand_as(x).clone()
    per_sample[0] = False
    some = pgd(curved, x, predict(curved, x), norm=norm, eps=0.2, mask=per_sample, stop_on_success=False)
    assert torch.equal(some.adv_inputs[0], x[0])
    assert not torch.equal(some.adv_inputs[1], x[1])


def test_a_mask_of_ones_changes_nothing(curved: nn.Module, images: Any) -> None:
    x, labels = images(6, dtype=torch.float64), torch.arange(6) % 3
    for ones in (torch.ones_like(x), torch.ones(8, 8, dtype=torch.bool)):
        masked = pgd(curved, x, labels, eps=0.02, mask=ones)
        assert torch.equal(masked.adv_inputs, pgd(curved, x, labels, eps=0.02).adv_inputs)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_momentum_is_mi_fgsm(curved: nn.Module, images: Any, predict: Any, batch_size: int | None) -> None:
    """Against Dong et al.'s own formula, with samples that leave and others that take their place."""
    x = images(10, dtype=torch.float64)
    labels = predict(curved, x)
    adv, velocity = x.clone(), torch.zeros_like(x)
    for _ in range(6):
        adv.requires_grad_()
        loss = nn.functional.cross_entropy(curved(adv), labels, reduction="sum")
        (grad,) = torch.autograd.grad(loss, adv)
        velocity = 0.9 * velocity + grad / grad.abs().sum(dim=(1, 2, 3), keepdim=True)
        adv = (x + (adv.detach() + 0.02 * velocity.sign() - x).clamp(-0.05, 0.05)).clamp(0, 1)
    options: dict[str, Any] = {
        "eps": 0.05,
        "steps": 6,
        "step_size": 0.02,
        "temperature": 1.0,
        "random_start": False,
        "stop_on_success": False,
        "keep": "last",
        "batch_size": batch_size,
    }
    found = pgd(curved, x, labels, momentum=0.9, **options)
    torch.testing.assert_close(found.adv_inputs, adv, rtol=0, atol=1e-12)
    assert not torch.equal(pgd(curved, x, labels, **options).adv_inputs, found.adv_inputs)


@pytest.mark.parametrize("batch_size", [1, 7, None])
def test_momentum_belongs_to_the_sample(curved: nn.Module, images: Any, batch_size: int | None) -> None:
    x, labels = images(20, dtype=torch.float64), torch.arange(20) % 3
    attack = TemperaturePGD(eps=0.02, steps=4, restarts=2, momentum=0.75)
    whole = attack(curved, x, labels)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    moved = attack(curved, x[order], labels[order], batch_size=batch_size)
    assert torch.equal(moved.adv_inputs, whole.adv_inputs[order])
    assert torch.equal(moved.backwards, whole.backwards[order])


def test_observers_see_every_gradient_step(curved: nn.Module, images: Any, predict: Any) -> None:
    x = images(12, dtype=torch.float64)
    labels = predict(curved, x)
    seen: list[Any] = []
    attack = TemperaturePGD(eps=0.02, steps=4, restarts=2)
    watched = attack(curved, x, labels, batch_size=5, observer=seen.append)
    unwatched = attack(curved, x, labels, batch_size=5)
    assert torch.equal(watched.adv_inputs, unwatched.adv_inputs)
    rows = torch.cat([step.rows for step in seen])
    assert torch.equal(torch.bincount(rows, minlength=12), watched.backwards)
    for step in seen:
        assert torch.equal(step.logits, curved(step.inputs).detach())
        assert step.gradient.shape == step.inputs.shape
    keys = [
        key
        for step in seen
        for key in zip(step.rows.tolist(), step.restart.tolist(), step.step.tolist(), strict=True)
    ]
    assert len(set(keys)) == len(keys)
    assert {step for _, _, step in keys} == {0, 1, 2, 3}


# Temperatures, step sizes, losses ---------------------------------------------------------------------


def test_a_schedule_is_one_temperature_per_step(curved: nn.Module, images: Any, predict: Any) -> None:
    x = images(6, dtype=torch.float64)
    labels = predict(curved, x)
    seen: list[tuple[int, type]] = []

    def policy(logits: Tensor, step: int) -> Tensor:
        assert not logits.requires_grad
        seen.append((step, type(step)))
        return logits.new_full((len(logits),), 0.5 + step)

    options: dict[str, Any] = {"eps": 0.1, "steps": 4, "stop_on_success": False, "keep": "last"}
    by_policy = pgd(curved, x, labels, temperature=policy, **options)
    assert seen == [(t, int) for t in range(4)]
    for schedule in ([0.5, 1.5, 2.5, 3.5], (0.5, 1.5, 2.5, 3.5)):
        assert torch.equal(pgd(curved, x, labels, temperature=schedule, **options)[0], by_policy[0])
    constant = pgd(curved, x, labels, temperature=0.5, **options)
    assert not torch.equal(constant.adv_inputs, by_policy.adv_inputs)


def test_a_gap_written_as_a_policy_is_the_gap(net: nn.Module, images: Any, predict: Any) -> None:
    x = images(16)
    labels = predict(net, x)

    def own(logits: Tensor, step: int) -> Tensor:
        top = logits.topk(2).values
        return top[:, 0] - top[:, 1]

    assert torch.equal(pgd(net, x, labels, temperature=own)[0], pgd(net, x, labels)[0])
    assert torch.equal(pgd(net, x, labels, temperature="auto")[0], pgd(net, x, labels)[0])


def test_step_sizes_of_a_callable(linear: nn.Module, images: Any, predict: Any) -> None:
    """Without a ball or bounds in the way, the distance is the sum of the steps."""
    x = images(3, dtype=torch.float64)
    result = pgd(
        linear,
        x,
        predict(linear, x),
        eps=100.0,
        bounds=WIDE,
        steps=3,
        step_size=lambda t, n: (t + 1) / n,
        temperature=100.0,
        random_start=False,
        stop_on_success=False,
        keep="last",
        loss="margin",
    )
    assert float((result.adv_inputs - x).abs().max()) == pytest.approx(2.0)


def test_a_loss_of_one_s_own(curved: nn.Module, images: Any, predict: Any) -> None:
    x = images(8, dtype=torch.float64)
    labels = predict(curved, x)

    def own(logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels, reduction="none")

    assert torch.equal(pgd(curved, x, labels, loss=own)[0], pgd(curved, x, labels)[0])


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda z, y: z.sum(), ValueError, r"loss must return one value per sample, shape \(4,\), got \(\)"),
        (lambda z, y: z, ValueError, r"shape \(4,\), got \(4, 5\): do not reduce over the batch"),
        (lambda z, y: 0.0, TypeError, r"loss must return a tensor \(N,\), got float"),
    ],
)
def test_losses_of_the_wrong_shape(
    net: nn.Module, images: Any, loss: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pgd(net, images(4), torch.arange(4), loss=loss, stop_on_success=False)


@pytest.mark.parametrize("exponent", range(-8, 9))
def test_scaling_the_logits_by_a_power_of_two_changes_no_bit(
    net: nn.Module, images: Any, predict: Any, exponent: int
) -> None:
    x = images(24)
    labels = predict(net, x)
    plain = pgd(net, x, labels, eps=0.03, temperature="gap", steps=8)
    scaled = pgd(lambda z: net(z) * 2.0**exponent, x, labels, eps=0.03, temperature="gap", steps=8)
    assert torch.equal(scaled.adv_inputs, plain.adv_inputs)
    assert torch.equal(scaled.logits, plain.logits * 2.0**exponent)
    assert torch.equal(scaled.success, plain.success)
    assert torch.equal(scaled.backwards, plain.backwards)
    assert 0 < int(plain.success.sum()) < 24


def test_a_fixed_temperature_is_not_blind_to_the_scale(net: nn.Module, images: Any, predict: Any) -> None:
    """The test above could not fail if no attack noticed the scale."""
    x = images(24)
    labels = predict(net, x)
    options: dict[str, Any] = {"eps": 0.03, "temperature": 1.0, "steps": 8, "stop_on_success": False}
    plain = pgd(net, x, labels, **options)
    scaled = pgd(lambda z: net(z) * 8, x, labels, **options)
    assert not torch.equal(scaled.adv_inputs, plain.adv_inputs)


# Passes of the model ----------------------------------------------------------------------------------


def lost_half(logits: Tensor, labels: Tensor) -> Tensor:
    """A loss without a gradient where the first logit is the larger of the first two."""
    value = nn.functional.cross_entropy(logits, labels, reduction="none")
    return torch.where(logits[:, 0] > logits[:, 1], value.detach() + 0 * value, value)


@pytest.mark.parametrize("stop_on_success", [False, True])
@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize(
    "options",
    [{}, {"restarts": 3}, {"steps": 0, "restarts": 2}, {"loss": lost_half}, {"random_start": False}],
)
def test_counted_passes_are_the_passes_of_the_model(
    linear: nn.Module,
    images: Any,
    record: Any,
    batch_size: int | None,
    options: dict[str, Any],
    keep: str,
    stop_on_success: bool,
) -> None:
    counted = record(linear)
    labels = torch.arange(10) % 3
    asked = {"eps": 0.02, "steps": 4, "keep": keep, "stop_on_success": stop_on_success, **options}
    result = pgd(counted, images(10, dtype=torch.float64), labels, batch_size=batch_size, **asked)
    backwards = sum(counted.backward_rows)
    assert int(result.backwards.sum()) == backwards
    # A pass with a gradient is a forward pass too.
    assert int(result.forwards.sum()) == sum(counted.rows)
    if asked.get("loss") is lost_half:
        assert 0 < int(result.zero_gradients.sum()) < backwards
    if not stop_on_success and "loss" not in options:
        restarts, steps = options.get("restarts", 1), options.get("steps", 4)
        assert result.backwards.tolist() == [restarts * steps] * 10
        clean = int(keep == "best")
        assert result.forwards.tolist() == [restarts * (steps + 1) + clean] * 10


@pytest.mark.parametrize(
    ("options", "spared"),
    [
        ({"keep": "last", "stop_on_success": False}, 1),
        ({"keep": "last", "stop_on_success": False, "restarts": 2}, 0),
        ({"keep": "last", "stop_on_success": True}, 0),
        ({"keep": "last", "stop_on_success": False, "steps": 0}, 0),
        ({"keep": "best", "stop_on_success": False}, 0),
    ],
)
def test_a_last_iterate_that_nobody_asks_about_is_not_judged(
    linear: nn.Module, images: Any, options: dict[str, Any], spared: int
) -> None:
    x, labels = images(10, dtype=torch.float64), torch.arange(10) % 3
    attack = TemperaturePGD(**{"eps": 0.05, "steps": 4, "random_start": True, **options})
    full = attack(linear, x, labels, batch_size=4)
    plain = attack(linear, x, labels, batch_size=4, judge=False)
    assert torch.equal(plain.adv_inputs, full.adv_inputs)
    assert not torch.equal(plain.adv_inputs, x)
    assert (full.forwards - plain.forwards).tolist() == [spared] * 10
    assert torch.equal(plain.restart, full.restart)
    if spared:
        assert full.success.any()
        assert not plain.success.any()
        assert plain.logits.isnan().all()
        assert torch.equal(plain.margin, torch.full_like(plain.margin, -torch.inf))
    else:
        assert torch.equal(plain.logits, full.logits)
        assert torch.equal(plain.success, full.success)


@pytest.mark.parametrize(
    "options", [{}, {"restarts": 2, "loss": "margin"}, {"keep": "last"}, {"targeted": True}]
)
def test_known_clean_logits_spare_their_pass(
    linear: nn.Module, images: Any, predict: Any, options: dict[str, Any]
) -> None:
    x = images(12, dtype=torch.float64)
    labels = predict(linear, x)
    labels[:3] += 1  # clean successes
    labels %= 3
    attack = TemperaturePGD(**{"eps": 0.02, "steps": 4, **options})
    targets = (labels + 1) % 3 if attack.targeted else None
    asked = attack(linear, x, labels, targets=targets, batch_size=5)
    told = attack(linear, x, labels, targets=targets, batch_size=5, clean_logits=linear(x))
    for name in ("adv_inputs", "logits", "success", "margin", "restart", "backwards"):
        assert torch.equal(getattr(asked, name), getattr(told, name)), name
    assert torch.equal(asked.clean_margin, told.clean_margin)
    assert (asked.forwards - told.forwards).tolist() == [1] * 12
    assert not told.logits.requires_grad


def test_known_clean_logits_of_another_precision(linear: nn.Module, images: Any, predict: Any) -> None:
    x = images(12, dtype=torch.float64)
    labels = predict(linear, x)
    attack = TemperaturePGD(eps=0.02, steps=4)
    asked, told = attack(linear, x, labels), attack(linear, x, labels, clean_logits=linear(x).float())
    assert told.logits.dtype == torch.float64
    assert torch.equal(asked.success, told.success)
    torch.testing.assert_close(asked.margin, told.margin)


def test_bad_clean_logits(linear: nn.Module, images: Any) -> None:
    x, labels = images(3, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    attack = TemperaturePGD(eps=0.02, steps=1)
    with pytest.raises(ValueError, match=r"clean_logits must have shape \(3, C\), C >= 2, got \(2, 3\)"):
        attack(linear, x, labels, clean_logits=linear(x[:2]))
    with pytest.raises(ValueError, match="must return finite logits, got NaN for a clean input"):
        attack(linear, x, labels, clean_logits=torch.full((3, 3), torch.nan, dtype=torch.float64))


def test_solved_samples_cost_one_forward_pass(linear: nn.Module, images: Any, predict: Any) -> None:
    x = images(6, dtype=torch.float64)
    labels = (predict(linear, x) + torch.tensor([0, 1, 0, 1, 0, 1])) % 3
    result = pgd(linear, x, labels, eps=0.01)
    solved = result.restart == -1
    assert solved.tolist() == [False, True] * 3
    assert result.forwards[solved].tolist() == [1] * 3
    assert result.backwards[solved].tolist() == [0] * 3
    assert torch.equal(result.adv_inputs[solved], x[solved])


@pytest.mark.parametrize("batch_size", [5, 16])
@pytest.mark.parametrize("restarts", [1, 3])
def test_freed_slots_are_refilled_and_no_pass_is_larger_than_the_batch(
    curved: nn.Module, images: Any, predict: Any, record: Any, batch_size: int, restarts: int
) -> None:
    x = images(300, dtype=torch.float64)
    labels = predict(curved, x)
    counted = record(curved)
    result = pgd(counted, x, labels, eps=0.02, steps=10, batch_size=batch_size, restarts=restarts)
    assert 0.2 < float(result.success.double().mean()) < 0.8  # samples do leave at different times
    assert max(counted.rows) <= batch_size
    rows = counted.backward_rows
    if restarts == 1:
        # All samples enter before the queue is empty; from then on the batch can only shrink.
        full = rows[: len(rows) - 10]
        assert sum(full) / (len(full) * batch_size) >= 0.95


# Targets, ids, entry points ---------------------------------------------------------------------------


def test_targeted_success_is_reaching_the_target(curved: nn.Module, images: Any, predict: Any) -> None:
    x = images(30, dtype=torch.float64)
    labels = predict(curved, x)
    targets = (labels + 1) % 3
    result = pgd(curved, x, labels, targets=targets, targeted=True, eps=0.05)
    found = curved(result.adv_inputs).argmax(dim=1)
    assert torch.equal(result.success, found == targets)
    assert 0.3 < float(result.success.double().mean()) < 1
    logits = result.logits
    others = logits.scatter(1, targets[:, None], -torch.inf).amax(dim=1)
    torch.testing.assert_close(result.margin, logits[torch.arange(30), targets] - others)


def test_a_sample_that_already_is_its_target_is_solved(curved: nn.Module, images: Any, predict: Any) -> None:
    x = images(4, dtype=torch.float64)
    targets = predict(curved, x)
    result = pgd(curved, x, (targets + 1) % 3, targets=targets, targeted=True)
    assert result.restart.tolist() == [-1] * 4
    assert torch.equal(result.adv_inputs, x)


def test_pgd_is_the_class_in_one_call(net: nn.Module, images: Any) -> None:
    x, labels = images(5), torch.arange(5)
    attack = TemperaturePGD(eps=0.03, steps=3, seed=4)
    called = attack(net, x, labels, [4, 3, 2, 1, 0])
    again = pgd(net, x, labels, sample_ids=torch.tensor([4, 3, 2, 1, 0]), eps=0.03, steps=3, seed=4)
    for first, second in zip(called, again, strict=True):
        assert torch.equal(first, second)
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_iter'"):
        pgd(net, x, labels, max_iter=10)


def test_seeds_and_ids_change_the_random_start(net: nn.Module, images: Any, predict: Any) -> None:
    x = images(4)
    labels = predict(net, x)

    def start(seed: int, ids: list[int]) -> Tensor:
        options: dict[str, Any] = {"steps": 0, "eps": 0.1, "stop_on_success": False, "keep": "last"}
        return pgd(net, x, labels, seed=seed, sample_ids=ids, **options).adv_inputs

    base = start(0, [1, 2, 3, 4])
    assert torch.equal(start(0, [1, 2, 3, 4]), base)
    assert bool((start(1, [1, 2, 3, 4]) != base).flatten(1).any(dim=1).all())
    changed = start(0, [1, 2, 3, 5])
    assert torch.equal(changed[:3], base[:3])
    assert not torch.equal(changed[3], base[3])


def test_inputs_and_labels_are_never_written_to(net: nn.Module, images: Any) -> None:
    x, labels = images(6), torch.arange(6) % 5
    before = x.clone(), labels.clone()
    result = pgd(net, x, labels, eps=0.1, restarts=2)
    result.adv_inputs.zero_()
    assert torch.equal(x, before[0])
    assert torch.equal(labels, before[1])


def test_results_are_tuples_of_seven_with_the_zero_gradients_beside(net: nn.Module, images: Any) -> None:
    result = pgd(net, images(3), torch.arange(3))
    assert isinstance(result, AttackResult)
    assert result._fields == (
        "adv_inputs",
        "logits",
        "success",
        "margin",
        "restart",
        "forwards",
        "backwards",
    )
    adv_inputs, logits, *_ = result
    assert adv_inputs is result.adv_inputs
    assert logits.shape == (3, 5)
    for other in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        assert torch.equal(other.zero_gradients, result.zero_gradients)
        assert torch.equal(other.adv_inputs, result.adv_inputs)
    assert not any(tensor.requires_grad for tensor in result)


def test_half_precision_models_give_single_precision_logits(net: nn.Module, images: Any) -> None:
    result = pgd(lambda x: net(x).bfloat16(), images(3), torch.arange(3))
    assert result.logits.dtype == torch.float32


# Restarts near the best point --------------------------------------------------------------------------


class Rugged(nn.Module):
    """Each element has a low and a high hill within the ball, and all must be on their high one."""

    def forward(self, x: Tensor) -> Tensor:
        delta = 10 * (x.flatten(1) - 0.5)
        hills = torch.maximum(1 - (delta - 0.5).abs() / 0.5, 0.5 - (delta + 0.5).abs())
        other = hills.mean(dim=1, keepdim=True) - 0.95
        return torch.cat([torch.zeros_like(other), other], dim=1)


def test_restarts_near_the_best_point_climb_where_fresh_ones_draw_lots() -> None:
    """Of 16 elements a random start brings half to the high hill, and 15 of them must be there."""
    x, labels, ids = (
        torch.full((12, 16), 0.5, dtype=torch.float64),
        torch.zeros(12, dtype=int),
        torch.arange(12),
    )
    options: dict[str, Any] = {"eps": 0.1, "steps": 10, "temperature": 1.0, "restarts": 150}
    options["step_size"] = lambda step, steps: 0.02 * (1 - step / steps)
    fresh = TemperaturePGD(**options)(Rugged(), x, labels, ids)
    near = TemperaturePGD(redraw=0.1, **options)(Rugged(), x, labels, ids)
    assert int(fresh.success.sum()) <= 2
    assert int(near.success.sum()) >= 10


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_restart_redraws_a_share_of_the_best_point(
    curved: nn.Module, images: Any, norm: str, keep: str
) -> None:
    x, labels = images(30, dtype=torch.float64), torch.arange(30) % 3
    eps = {"Linf": 0.02, "L2": 0.2, "L1": 1.0}[norm]
    options: dict[str, Any] = {"eps": eps, "norm": norm, "steps": 2, "stop_on_success": False, "keep": keep}
    ids = torch.arange(30)
    first = TemperaturePGD(**options)(curved, x, labels, ids)
    starts: dict[tuple[int, int], Tensor] = {}

    def note(step: Step) -> None:
        for row, restart, number, point in zip(step.rows, step.restart, step.step, step.inputs, strict=True):
            if number == 0:
                starts[int(row), int(restart)] = point

    mask = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    mask[..., :2] = 0
    for weights in (None, mask):
        starts.clear()
        attack = TemperaturePGD(restarts=3, redraw=0.25, **options)
        attack(curved, x, labels, ids, mask=weights, observer=note)
        assert len(starts) == 90
        inside = torch.stack([starts[row, 1] for row in range(30)])
        assert float(BALLS[norm].norm(inside - x).max()) <= eps * (1 + 1e-9)
        if weights is not None:
            assert torch.equal(inside[..., :2], x[..., :2])
        elif norm == "Linf":  # elsewhere the projection moves them all
            kept = (inside == first.adv_inputs).double().mean()
            assert 0.70 < float(kept) < 0.80
    whole = TemperaturePGD(restarts=3, redraw=1.0, **options)(curved, x, labels, ids)
    plain = TemperaturePGD(restarts=3, **options)(curved, x, labels, ids)
    assert torch.equal(whole.adv_inputs, plain.adv_inputs)


@pytest.mark.parametrize("share", [0, 1.5, -0.1])
def test_a_share_is_above_zero_and_at_most_one(share: float) -> None:
    with pytest.raises(ValueError, match=r"redraw must be a finite number > 0 and <= 1, got"):
        TemperaturePGD(redraw=share)


# Given starts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("random_start", [True, False])
def test_the_first_run_begins_where_it_is_told_to(
    curved: nn.Module, images: Any, norm: str, random_start: bool
) -> None:
    """At the nearest point of the ball; elements that must not change do not, and restarts begin anew."""
    x, labels = images(20, dtype=torch.float64), torch.arange(20) % 3
    eps = {"Linf": 0.02, "L2": 0.2, "L1": 1.0}[norm]
    starts = images(20, dtype=torch.float64, seed=5) * 1.4 - 0.2
    mask = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    mask[..., 0] = 0
    seen: list[Step] = []
    attack = TemperaturePGD(
        eps=eps, norm=norm, steps=1, restarts=2, random_start=random_start, stop_on_success=False
    )
    attack(curved, x, labels, starts=starts, mask=mask, observer=seen.append)
    begun = {
        (int(row), int(restart)): point
        for step in seen
        for row, restart, point in zip(step.rows, step.restart, step.inputs, strict=True)
    }
    radius = torch.full((20, 1, 1, 1), eps, dtype=torch.float64)
    delta = BALLS[norm].project((starts - x).masked_fill(mask == 0, 0), radius)
    expected = (x + delta).clamp(0, 1)
    for row in range(20):
        torch.testing.assert_close(begun[row, 0], expected[row], rtol=0, atol=1e-12)
        assert not torch.equal(begun[row, 1], begun[row, 0])


@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_given_start_that_succeeds_is_a_success(
    curved: nn.Module, images: Any, predict: Any, random_start: bool, steps: int
) -> None:
    x = images(40, dtype=torch.float64)
    labels = predict(curved, x)
    found = pgd(curved, x, labels, eps=0.02)
    fallen = found.success
    assert 5 < int(fallen.sum()) < 40
    options: dict[str, Any] = {"eps": 0.02, "steps": steps, "random_start": random_start, "step_size": 1e-9}
    again = TemperaturePGD(**options)(curved, x, labels, starts=found.adv_inputs)
    assert torch.equal(again.success, fallen)
    assert torch.equal(again.adv_inputs[fallen], found.adv_inputs[fallen])
    assert bool((again.margin >= found.margin).all())


def test_starts_must_be_points_of_the_inputs_kind(linear: nn.Module, images: Any) -> None:
    x, labels = images(3), torch.arange(3)
    attack = TemperaturePGD(eps=0.1, steps=1)
    with pytest.raises(
        ValueError, match=r"starts must have the inputs' shape \(3, 1, 8, 8\), got \(2, 1, 8, 8\)"
    ):
        attack(linear, x, labels, starts=x[:2])
    with pytest.raises(ValueError, match="starts must be finite, got NaN or infinity"):
        attack(linear, x, labels, starts=x * float("nan"))
    with pytest.raises(TypeError, match="starts must be a floating-point tensor, got list"):
        attack(linear, x, labels, starts=x.tolist())


# The config -------------------------------------------------------------------------------------------


def test_defaults_are_the_documented_ones() -> None:
    assert TemperaturePGD().config() == {
        "eps": 8 / 255,
        "norm": "Linf",
        "steps": 20,
        "step_size": "cosine",
        "temperature": "gap",
        "loss": "cross_entropy",
        "restarts": 1,
        "redraw": 1.0,
        "random_start": True,
        "targeted": False,
        "bounds": [0.0, 1.0],
        "stop_on_success": True,
        "keep": "best",
        "seed": 0,
        "momentum": 0.0,
        "start_radius": 1.0,
        "precision": "auto",
        "fuse": True,
    }


def schedule(step: int, steps: int) -> float:
    return 0.1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"eps": torch.tensor([0.1, 0.2])},
        {"eps": np.float32(0.1), "steps": np.int64(3), "seed": np.int64(7)},
        {"temperature": np.float32(0.5), "step_size": np.float64(0.1)},
        {"steps": 2, "temperature": [np.float32(0.5), 1]},
        {"steps": 2, "temperature": (0.5, 1.0)},
        {"bounds": (torch.zeros(2), torch.ones(2))},
        {"loss": lost_half, "step_size": schedule, "temperature": lambda z, t: z[:, 0].exp()},
        {"random_start": np.True_},
    ],
)
def test_configs_are_json_hashable_and_equal_to_their_copies(options: dict[str, Any]) -> None:
    attack, again = TemperaturePGD(**options), TemperaturePGD(**options)
    config = attack.config()
    assert json.loads(json.dumps(config)) == json.loads(json.dumps(again.config()))
    assert attack == again
    assert hash(attack) == hash(again)
    assert set(config) == set(TemperaturePGD.__dataclass_fields__)


def test_configs_name_callables() -> None:
    config = TemperaturePGD(loss=lost_half, step_size=schedule).config()
    assert config["loss"] == "lost_half"
    assert config["step_size"] == "schedule"


@pytest.mark.parametrize(
    "change",
    [
        {"eps": 0.2},
        {"eps": torch.tensor([0.1])},
        {"norm": "L2"},
        {"steps": 3},
        {"seed": 1},
        {"loss": "dlr"},
        {"bounds": (0.0, 2.0)},
        {"keep": "last"},
        {"temperature": 1.0},
    ],
)
def test_different_configs_differ(change: dict[str, Any]) -> None:
    attack = TemperaturePGD(eps=0.1)
    other = TemperaturePGD(**{"eps": 0.1, **change})
    assert attack != other
    assert attack != "TemperaturePGD"
    assert len({attack, other, TemperaturePGD(eps=0.1)}) == 2


def test_callables_of_one_name_are_not_one_callable() -> None:
    losses: list[Callable[..., Tensor]] = [lambda z, y, k=k: z[:, k] for k in range(2)]
    assert TemperaturePGD(loss=losses[0]) != TemperaturePGD(loss=losses[1])
    assert TemperaturePGD(loss=losses[0]) == TemperaturePGD(loss=losses[0])


def test_repr_tells_the_settings() -> None:
    text = repr(TemperaturePGD(eps=0.1, norm="L2", temperature=0.5))
    assert text.startswith("TemperaturePGD(eps=0.1, norm='L2', steps=20")
    assert "temperature=0.5" in text


def test_configs_are_frozen_and_keyword_only() -> None:
    with pytest.raises(AttributeError, match="cannot assign to field 'eps'"):
        TemperaturePGD().eps = 0.5  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional argument"):
        TemperaturePGD(0.1)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eps": -0.1}, ValueError, "eps must be a finite number >= 0"),
        ({"eps": "8/255"}, TypeError, "eps must be a number, got '8/255'"),
        ({"eps": torch.tensor([1])}, TypeError, "eps must be a floating-point tensor"),
        ({"norm": "inf"}, ValueError, r"norm must be one of .* \(did you mean Linf\?\)"),
        ({"steps": 1.0}, TypeError, "steps must be an integer"),
        ({"steps": -1}, ValueError, "steps must be at least 0"),
        ({"step_size": 0}, ValueError, "step_size must be a finite number > 0"),
        ({"temperature": 0}, ValueError, "temperature must be a finite number > 0"),
        ({"temperature": [1.0]}, ValueError, "temperature, as a schedule, must have one value per step, 20"),
        ({"loss": "ce"}, ValueError, "loss must be one of cross_entropy"),
        ({"restarts": 0}, ValueError, "restarts must be at least 1"),
        ({"random_start": 1}, TypeError, "random_start must be True or False"),
        ({"targeted": None}, TypeError, "targeted must be True or False"),
        ({"stop_on_success": "no"}, TypeError, "stop_on_success must be True or False"),
        ({"bounds": 1.0}, TypeError, "bounds must be a pair"),
        ({"bounds": (1.0, 0.0)}, ValueError, "bounds must have lower < upper"),
        ({"keep": "first"}, ValueError, "keep must be one of best, last, got 'first'"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"seed": None}, TypeError, "seed must be an integer"),
        ({"momentum": -0.1}, ValueError, "momentum must be a finite number >= 0"),
        ({"step_size": torch.tensor([1])}, TypeError, "step_size must be a floating-point tensor"),
        ({"step_size": torch.tensor([0.0])}, ValueError, "step_size must be finite and > 0"),
    ],
)
def test_refused_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TemperaturePGD(**options)


def a_batch() -> dict[str, Any]:
    return {
        "model": lambda x: x.flatten(1)[:, :3] * 10,
        "inputs": torch.full((2, 1, 2, 2), 0.5),
        "labels": torch.tensor([0, 1]),
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inputs": np.zeros((2, 4))}, TypeError, "inputs must be a torch.Tensor"),
        ({"inputs": torch.full((2, 4), 2.0)}, ValueError, r"inputs must lie within bounds \[0, 1\]"),
        ({"labels": torch.tensor([0.0, 1.0])}, TypeError, "labels must be integer class indices"),
        ({"labels": torch.tensor([0])}, ValueError, r"labels must have shape \(2,\)"),
        ({"labels": torch.tensor([0, 3])}, ValueError, r"labels must lie in \[0, 3\)"),
        ({"labels": torch.tensor([-1, 0])}, ValueError, r"labels must lie in \[0, 3\)"),
        ({"sample_ids": [1]}, ValueError, r"sample_ids must have shape \(2,\)"),
        ({"sample_ids": [0.5, 1.0]}, TypeError, "sample_ids must be integers"),
        ({"targets": torch.tensor([0, 1])}, ValueError, "targets were given to an untargeted attack"),
        ({"targeted": True}, ValueError, "targets must be given, one class per input"),
        (
            {"targeted": True, "targets": torch.tensor([0, 3])},
            ValueError,
            r"targets must lie in \[0, 3\)",
        ),
        ({"targeted": True, "targets": torch.tensor([0])}, ValueError, r"targets must have shape \(2,\)"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an integer"),
        ({"eps": torch.tensor([0.1])}, ValueError, r"eps must be a number or have shape \(2,\), got \(1,\)"),
        ({"eps": torch.full((2, 1, 1, 1), 0.1)}, ValueError, "eps must be a number or have shape"),
        (
            {"eps": torch.full((2, 1, 2, 2), 0.1), "norm": "L2"},
            ValueError,
            r"shape \(2,\), got \(2, 1, 2, 2\)",
        ),
        ({"step_size": torch.tensor([0.1])}, ValueError, r"step_size must be a number or have shape \(2,\)"),
        ({"mask": torch.ones(3)}, ValueError, r"mask must broadcast to the inputs' shape \(2, 1, 2, 2\)"),
        ({"model": lambda x: (x,)}, TypeError, "model must return a tensor of logits"),
        ({"model": lambda x: x.flatten(1)[:, 0]}, ValueError, r"model must return logits \(2, C\)"),
        ({"model": lambda x: x.flatten(1) / 0 * 0}, ValueError, "model must return finite logits, got NaN"),
        (
            {"temperature": lambda z, t: -z[:, 0]},
            ValueError,
            "temperature must be finite and > 0 for every sample",
        ),
    ],
)
def test_refused_batches(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pgd(**{**a_batch(), "stop_on_success": False, **change})


@pytest.mark.parametrize("keep", ["best", "last"])
def test_labels_are_checked_with_the_first_logits_whichever_they_are(keep: str) -> None:
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\), the model's classes, got 0 to 7"):
        pgd(**{**a_batch(), "labels": [0, 7]}, stop_on_success=False, keep=keep)


@given(st.integers(0, 2**31), st.sampled_from(["Linf", "L2", "L1"]))
@settings(max_examples=15)
def test_more_steps_of_restarts_never_make_a_worse_result(make_exact: Any, seed: int, norm: str) -> None:
    model = make_exact(3, 64, quadratic=2.0)
    x = torch.rand((6, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels = model(x).argmax(dim=1)
    eps = {"Linf": 0.02, "L2": 0.1, "L1": 0.5}[norm]
    options: dict[str, Any] = {"norm": norm, "eps": eps, "steps": 4, "stop_on_success": False, "seed": seed}
    few, many = (pgd(model, x, labels, restarts=n, **options) for n in (1, 3))
    assert bool((many.margin >= few.margin).all())
    assert bool((many.success >= few.success).all())


# Models that break down -------------------------------------------------------------------------------


def test_an_iterate_with_nan_logits_is_no_success() -> None:
    """A model that breaks down off the data: its argmax says another class, and that means nothing."""

    def brittle(x: Tensor) -> Tensor:
        logits = torch.stack([-x.sum(dim=1), x.sum(dim=1)], dim=1)
        return logits + torch.where(x.sum(dim=1) < 2.95, torch.nan, 0.0).unsqueeze(1)

    x = torch.ones(2, 3)
    # argmax takes the first NaN for the largest logit: class 0, which is not the label.
    labels = torch.ones(2, dtype=torch.int64)
    result = pgd(brittle, x, labels, eps=0.5, steps=3, random_start=False)
    assert not result.success.any()
    assert not result.margin.isnan().any()


def test_config_describes_partials_and_instances_without_their_address() -> None:
    class Half:
        def __call__(self, logits: Tensor, step: int) -> Tensor:
            return torch.full((len(logits),), 0.5)

    def weighted(logits: Tensor, labels: Tensor, *, weight: float) -> Tensor:
        return weight * logits.sum(dim=1)

    loss = functools.partial(weighted, weight=2.0)
    config = TemperaturePGD(temperature=Half(), loss=loss).config()
    assert config["temperature"].endswith("Half")
    assert config["loss"]["keywords"] == {"weight": 2.0}
    assert config["loss"]["function"].endswith("weighted")
    json.dumps(config)


# Balls that shrink ------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("stop_on_success", [True, False])
@pytest.mark.parametrize("steps", [0, 1, 4, 9])
def test_what_is_found_outside_the_ball_does_not_count(
    linear: nn.Module, images: Any, predict: Any, norm: str, keep: str, stop_on_success: bool, steps: int
) -> None:
    """Every point of the larger ball's rim succeeds; results come from the ball itself."""
    x = images(40, dtype=torch.float64) * 0.4 + 0.3
    labels = predict(linear, x)
    eps = {"Linf": 0.002, "L2": 0.02, "L1": 0.1}[norm]
    options: dict[str, Any] = {"norm": norm, "steps": steps, "keep": keep, "stop_on_success": stop_on_success}
    seen: list[Step] = []
    attack = TemperaturePGD(eps=eps, start_radius=40.0, **options)
    result = attack(linear, x, labels, observer=seen.append)
    assert float(BALLS[norm].norm(result.adv_inputs - x).max()) <= eps * (1 + 1e-9)
    logits = linear(result.adv_inputs).detach()
    assert torch.equal(result.logits, logits)
    assert torch.equal(result.success, logits.argmax(dim=1) != labels)
    settled = -(-2 * steps // 3)
    assert (result.backwards >= min(settled, steps)).all()
    for step in seen:
        inside = BALLS[norm].norm(step.inputs - x[step.rows]) <= eps * (1 + 1e-9)
        assert bool(inside[step.step >= settled].all())
        assert not bool(inside[step.step == 0].any()) or steps == 0


def test_a_ball_of_its_own_radius_is_the_plain_attack(curved: nn.Module, images: Any, predict: Any) -> None:
    x = images(20, dtype=torch.float64)
    labels = predict(curved, x)
    plain, same = pgd(curved, x, labels, eps=0.02), pgd(curved, x, labels, eps=0.02, start_radius=1.0)
    for one, other in zip(plain, same, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(plain.adv_inputs, pgd(curved, x, labels, eps=0.02, start_radius=1.5).adv_inputs)


def test_a_shrinking_ball_needs_a_radius_of_at_least_one() -> None:
    with pytest.raises(ValueError, match=r"start_radius must be .*1.*, got 0\.5"):
        TemperaturePGD(start_radius=0.5)


@given(start=st.floats(1.0, 50.0), steps=st.integers(0, 60))
def test_radii_fall_to_one_within_two_thirds(start: float, steps: int) -> None:
    found = radii(start, steps)
    assert len(found) == steps + 1
    assert (found.diff() <= 1e-12).all()
    settled = settled_at(start, steps)
    assert (found[settled:] - 1).abs().max() < 1e-9
    assert settled == (0 if start == 1 else math.ceil(2 * steps / 3))
    if settled:
        assert float(found[0]) == pytest.approx(start)
