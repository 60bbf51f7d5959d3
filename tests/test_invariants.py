"""One test or more for each invariant of the attack; the number in a name is the invariant's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from art_logits import AttackResult, TemperaturePGD, pgd
from art_logits.starts import sample_hashes

Images = Callable[..., Tensor]


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """``max_{j != y} z_j - z_y``, written anew."""
    own = logits[torch.arange(len(labels)), labels]
    return logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1) - own


def assert_same(first: AttackResult, second: AttackResult) -> None:
    for name, one, other in zip(first._fields, first, second, strict=True):
        assert torch.equal(one, other), name
    assert torch.equal(first.zero_gradients, second.zero_gradients)


def rows(result: AttackResult, index: Tensor) -> AttackResult:
    part = AttackResult(*(tensor[index] for tensor in result))
    part.zero_gradients = result.zero_gradients[index]
    return part


# 1 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_1_keep_best_returns_the_best_iterate(
    curved: nn.Module, images: Images, predict: Any, record: Any, norm: str, random_start: bool
) -> None:
    x = images(40, dtype=torch.float64)
    labels = predict(curved, x)
    watched = record(curved)
    eps = {"Linf": 0.03, "L2": 0.2, "L1": 1.0}[norm]
    result = pgd(
        watched,
        x,
        labels,
        norm=norm,
        eps=eps,
        steps=5,
        step_size=3 * eps,
        random_start=random_start,
        stop_on_success=False,
    )
    # One batch and nobody leaves: pass k holds iterate k of every sample, after the clean pass.
    iterates = watched.calls[1 if random_start else 2 :]
    reached = torch.stack([margins(logits, labels) for _, _, logits in iterates])
    best = reached.max(dim=0)
    assert torch.equal(result.margin, best.values)
    points = torch.stack([points for _, points, _ in iterates])
    assert torch.equal(result.adv_inputs, points[best.indices, torch.arange(40)])
    failed = ~result.success
    assert int(failed.sum()) > 3
    # The last iterate would have been another one.
    assert int((best.indices[failed] != len(iterates) - 1).sum()) > 0


@pytest.mark.parametrize("stop_on_success", [True, False])
def test_1_a_failed_attack_never_returns_the_clean_input(stop_on_success: bool) -> None:
    """Also where the clean input is more adversarial than every iterate: a peak that steps overshoot."""

    def peak(x: Tensor) -> Tensor:
        return torch.cat([1 + (x - 0.5).abs(), torch.zeros_like(x)], dim=1)

    x = torch.tensor([[0.5001]], dtype=torch.float64)
    result = pgd(
        peak,
        x,
        torch.tensor([0]),
        eps=0.2,
        steps=3,
        step_size=lambda t, n: 0.1 / (t + 1),
        random_start=False,
        stop_on_success=stop_on_success,
    )
    assert not bool(result.success)
    assert float((result.adv_inputs - x).abs()) > 0.01
    assert float(result.margin) < float(margins(peak(x), torch.tensor([0])))
    assert int(result.restart) == 0


@pytest.mark.parametrize("stop_on_success", [True, False])
def test_1_keep_last_returns_the_last_iterate(
    curved: nn.Module, images: Images, predict: Any, record: Any, stop_on_success: bool
) -> None:
    x = images(20, dtype=torch.float64)
    labels = predict(curved, x)
    watched = record(curved)
    result = pgd(
        watched, x, labels, eps=0.03, steps=5, step_size=0.09, stop_on_success=stop_on_success, keep="last"
    )
    _, last, logits = watched.calls[-1]
    survived = ~result.success if stop_on_success else torch.ones(20, dtype=torch.bool)
    assert 0 < int((~result.success).sum()) < 20
    # With early stopping the final pass holds exactly those who were not solved before it.
    final = margins(logits, labels) if not stop_on_success else None
    if final is not None:
        assert torch.equal(result.adv_inputs, last)
        assert torch.equal(result.margin, final)
    else:
        for point in result.adv_inputs[survived]:
            assert bool((last == point).flatten(1).all(dim=1).any())


# 2 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.01, 100.0, "gap"])
@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("stop_on_success", [True, False])
def test_2_logits_belong_to_the_adversarial_inputs_at_temperature_one(
    curved: nn.Module, images: Images, temperature: Any, keep: Any, stop_on_success: bool
) -> None:
    x, labels = images(20, dtype=torch.float64), torch.arange(20) % 3
    result = pgd(
        curved,
        x,
        labels,
        eps=0.03,
        steps=5,
        temperature=temperature,
        keep=keep,
        stop_on_success=stop_on_success,
        restarts=2,
    )
    logits = curved(result.adv_inputs).detach()
    assert torch.equal(result.logits, logits)
    assert torch.equal(result.margin, margins(logits, labels))
    assert torch.equal(result.success, logits.argmax(dim=1) != labels)


# 3 ----------------------------------------------------------------------------------------------------


def test_3_restarts_are_chosen_by_the_margin_and_not_by_the_loss(
    make_exact: Any, images: Images, predict: Any, record: Any
) -> None:
    model = make_exact(6, 64, quadratic=2.0)
    x = images(60, dtype=torch.float64)
    labels = predict(model, x)
    watched = record(model)
    attack = TemperaturePGD(eps=0.03, steps=2, step_size=0.06, restarts=4, stop_on_success=False, keep="last")
    result = attack(watched, x, labels)
    finals = torch.stack([logits for graph, _, logits in watched.calls if not graph])
    assert len(finals) == 4  # one last iterate per restart, for everyone
    reached = torch.stack([margins(logits, labels) for logits in finals])
    assert torch.equal(result.margin, reached.max(dim=0).values)
    assert torch.equal(result.restart, reached.argmax(dim=0))
    assert len(result.restart.unique()) == 4
    # Losses at each sample's own temperature would have chosen differently for some.
    gaps = finals.topk(2, dim=2).values.diff(dim=2).abs()
    losses = torch.stack(
        [
            nn.functional.cross_entropy(z / t, labels, reduction="none")
            for z, t in zip(finals, gaps, strict=True)
        ]
    )
    assert int((losses.argmax(dim=0) != result.restart).sum()) > 0


def test_3_success_goes_before_the_margin(images: Images) -> None:
    """A tie goes to the smaller class index: margin 0, and a success, which no other margin may displace."""

    def model(x: Tensor) -> Tensor:
        return torch.cat([x, x], dim=1)

    x = torch.tensor([[0.5], [0.5]])
    result = pgd(model, x, torch.tensor([0, 1]), eps=0.1, restarts=3, stop_on_success=False)
    assert result.success.tolist() == [False, True]
    assert result.margin.tolist() == [0.0, 0.0]


# 4 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("batch_size", [1, 2, 7, None])
@pytest.mark.parametrize("options", [{}, {"stop_on_success": False, "keep": "last"}, {"temperature": 0.3}])
def test_4_results_depend_on_neither_batch_size_nor_order(
    curved: nn.Module, images: Images, norm: str, batch_size: int | None, options: dict[str, Any]
) -> None:
    x, labels = images(23, dtype=torch.float64), torch.arange(23) % 3
    ids = torch.arange(23) * 17 - 100
    eps = {"Linf": 0.02, "L2": 0.1, "L1": 0.5}[norm]
    attack = TemperaturePGD(norm=norm, eps=eps, steps=4, restarts=3, **options)
    whole = attack(curved, x, labels, ids)
    assert 0 < int(whole.success.sum()) < 23
    order = torch.randperm(23, generator=torch.Generator().manual_seed(5))
    moved = attack(curved, x[order], labels[order], ids[order], batch_size=batch_size)
    assert_same(moved, rows(whole, order))


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_4_results_do_not_depend_on_neighbours(
    curved: nn.Module, images: Images, batch_size: int | None
) -> None:
    x, labels, ids = images(20, dtype=torch.float64), torch.arange(20) % 3, torch.arange(20)
    attack = TemperaturePGD(eps=0.02, steps=4, restarts=2)
    whole = attack(curved, x, labels, ids)
    for part in (torch.tensor([3]), torch.tensor([19, 0, 3, 7]), torch.arange(5, 15)):
        alone = attack(curved, x[part], labels[part], ids[part], batch_size=batch_size)
        assert_same(alone, rows(whole, part))


@pytest.mark.parametrize("batch_size", [3, 64])
def test_4_float32_networks_move_within_the_stated_tolerance(
    net: nn.Module, images: Images, predict: Any, batch_size: int
) -> None:
    x = images(500)
    labels = predict(net, x)
    attack = TemperaturePGD(eps=0.03, steps=5)
    whole, parts = attack(net, x, labels), attack(net, x, labels, batch_size=batch_size)
    assert 0.2 < float(whole.success.float().mean()) < 0.9
    assert float((whole.success != parts.success).float().mean()) <= 0.002
    close = ((whole.logits - parts.logits).abs() <= 1e-6 + 1e-6 * whole.logits.abs()).all(dim=1)
    assert float(close.float().mean()) >= 0.95


# 5 ----------------------------------------------------------------------------------------------------


def test_5_a_wrong_sample_is_a_success_from_the_start(
    curved: nn.Module, images: Images, predict: Any
) -> None:
    x = images(10, dtype=torch.float64)
    labels = (predict(curved, x) + 1) % 3
    result = pgd(curved, x, labels)
    assert bool(result.success.all())
    assert result.restart.tolist() == [-1] * 10
    assert torch.equal(result.adv_inputs, x)
    assert result.backwards.tolist() == [0] * 10


def test_5_correcting_a_wrong_sample_is_no_success() -> None:
    """One step overshoots from the wrong side into the right one: another prediction, and a failed attack."""

    def valley(x: Tensor) -> Tensor:
        return torch.cat([(x - 0.5) * (x - 0.7), torch.zeros_like(x)], dim=1)

    x, label = torch.tensor([[0.55]], dtype=torch.float64), torch.tensor([0])
    assert int(valley(x).argmax()) == 1
    options: dict[str, Any] = {
        "eps": 0.4,
        "steps": 1,
        "step_size": 0.3,
        "random_start": False,
        "stop_on_success": False,
    }
    last = pgd(valley, x, label, keep="last", **options)
    assert int(valley(last.adv_inputs).argmax()) == 0
    assert not bool(last.success)
    # The clean input is wrong, and stays the best that is known.
    best = pgd(valley, x, label, keep="best", **options)
    assert bool(best.success)
    assert torch.equal(best.adv_inputs, x)
    assert int(best.restart) == -1


# 6 ----------------------------------------------------------------------------------------------------


class Failing(nn.Module):
    """Raises in its third pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.passes = model, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes += 1
        if self.passes == 3:
            raise RuntimeError("out of luck")
        logits: Tensor = self.model(inputs)
        return logits


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        "training": [(name, module.training) for name, module in model.named_modules()],
        "requires_grad": [(name, p.requires_grad) for name, p in model.named_parameters()],
        "grad": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "state": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
        "hooks": [list(module._forward_hooks) for module in model.modules()],
        "tensors": [id(p) for p in model.parameters()],
    }


@contextmanager
def random_states_untouched() -> Iterator[None]:
    import random

    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    yield
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    assert after[:2] == before[:2]
    assert torch.equal(after[2], before[2])


@pytest.fixture
def mixed(net: nn.Sequential) -> nn.Sequential:
    """A net in training mode but for its batch norm, some weights frozen, some gradients there, a hook."""
    net.add_module("dropout", nn.Dropout(0.5))
    net.train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net(torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))).sum().backward()
    net[6].bias.grad = None
    net[2].register_forward_hook(lambda module, inputs, output: None)
    return net


@pytest.mark.parametrize("training", ["mixed", "all", "none"])
def test_6_the_model_comes_back_as_it_was(mixed: nn.Sequential, images: Images, training: str) -> None:
    if training != "mixed":
        mixed.train(training == "all")
    before = snapshot(mixed)
    with random_states_untouched():
        pgd(mixed, images(6), torch.arange(6) % 5, eps=0.05, restarts=2, steps=3)
    assert snapshot(mixed) == before


def test_6_the_model_comes_back_after_an_exception(mixed: nn.Sequential, images: Images) -> None:
    before = snapshot(mixed)
    with random_states_untouched(), pytest.raises(RuntimeError, match="out of luck"):
        pgd(Failing(mixed), images(6), torch.arange(6) % 5, stop_on_success=False)
    assert snapshot(mixed) == before


def test_6_the_model_is_in_eval_mode_meanwhile(mixed: nn.Sequential, images: Images) -> None:
    seen: set[bool] = set()
    mixed[2].register_forward_hook(lambda module, inputs, output: seen.add(module.training))
    x, labels = images(6), torch.arange(6) % 5
    attacked = pgd(mixed, x, labels, steps=3)
    assert seen == {False}
    assert_same(attacked, pgd(mixed.eval(), x, labels, steps=3))


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_6_the_caller_s_gradient_mode_does_not_matter(
    net: nn.Module, images: Images, guard: Callable[[], Any]
) -> None:
    labels, eps = torch.arange(6) % 5, torch.linspace(0.01, 0.06, 6)
    expected = pgd(net, images(6), labels, eps=eps, steps=3)
    with guard():
        found = pgd(net, images(6), labels.clone(), eps=eps.clone(), steps=3)
        assert torch.is_grad_enabled() is False
    assert_same(found, expected)
    assert not any(tensor.is_inference() for tensor in found)


# 7 ----------------------------------------------------------------------------------------------------


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("art_logits")]


def test_7_saturated_cross_entropy_falls_back_to_the_margin(
    net: nn.Module, images: Images, predict: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def saturated(x: Tensor) -> Tensor:
        logits: Tensor = net(x)
        return logits * 1e4

    x = images(12)
    labels = predict(net, x)
    options: dict[str, Any] = {"eps": 0.02, "steps": 3, "random_start": False}
    with caplog.at_level(logging.INFO, logger="art_logits"):
        result = pgd(saturated, x, labels, temperature=1.0, **options)
        assert bool((result.zero_gradients > 0).all())
        assert any("zero or non-finite gradient of the loss on 12 of 12" in text for text in logged(caplog))
        caplog.clear()
        by_margin = pgd(saturated, x, labels, loss="margin", **options)
        assert int(by_margin.zero_gradients.sum()) == 0
        by_gap = pgd(saturated, x, labels, temperature="gap", **options)
        assert int(by_gap.zero_gradients.sum()) == 0
        assert logged(caplog) == []
    assert torch.equal(result.adv_inputs, by_margin.adv_inputs)
    # The two extra passes of each fallback are counted.
    assert torch.equal(result.backwards, by_margin.backwards + result.zero_gradients)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_7_non_finite_gradients_fall_back_to_the_margin(
    net: nn.Module, images: Images, predict: Any, poison: float
) -> None:
    """The loss is poisoned for even labels only; the others keep its own gradient."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        value = nn.functional.cross_entropy(logits, labels, reduction="none")
        return value * torch.where(labels % 2 == 0, poison, 1.0)

    x = images(12)
    labels = predict(net, x)
    even = labels % 2 == 0
    assert 0 < int(even.sum()) < 12
    options: dict[str, Any] = {"eps": 0.02, "steps": 3, "stop_on_success": False, "temperature": 1.0}
    result = pgd(net, x, labels, loss=loss, **options)
    assert torch.equal(result.zero_gradients, 3 * even.long())
    assert bool(result.adv_inputs.isfinite().all())
    by_margin = pgd(net, x, labels, loss="margin", **options)
    by_entropy = pgd(net, x, labels, **options)
    torch.testing.assert_close(result.logits[even], by_margin.logits[even], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result.logits[~even], by_entropy.logits[~even], rtol=1e-4, atol=1e-4)


def test_7_a_constant_model_is_survived(images: Images) -> None:
    """Not even the margin has a gradient: the start stays where it is."""

    def constant(x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] * 0 + torch.tensor([1.0, 0.0, 0.0])

    x = images(3)
    result = pgd(constant, x, torch.zeros(3, dtype=torch.int64), eps=0.1, steps=2, random_start=False)
    assert torch.equal(result.adv_inputs, x)
    assert result.zero_gradients.tolist() == [2, 2, 2]
    assert not bool(result.success.any())


# 8 ----------------------------------------------------------------------------------------------------


def reference_pgd(
    model: nn.Module, x: Tensor, classes: Tensor, eps: float, step: float, steps: int, *, targeted: bool
) -> Tensor:
    """Madry's PGD in ten lines, with the mean-reduced loss of the host toolkits."""
    sign = -1 if targeted else 1
    adv = x.clone()
    for _ in range(steps):
        adv.requires_grad_()
        loss = sign * nn.functional.cross_entropy(model(adv), classes)
        (grad,) = torch.autograd.grad(loss, adv)
        adv = adv.detach() + step * grad.sign()
        adv = (x + (adv - x).clamp(-eps, eps)).clamp(0, 1).detach()
    return adv


def plain_pgd(
    model: nn.Module, x: Tensor, labels: Tensor, *, targets: Tensor | None = None, steps: int = 10
) -> AttackResult:
    return pgd(
        model,
        x,
        labels,
        targets=targets,
        targeted=targets is not None,
        eps=8 / 255,
        step_size=2 / 255,
        steps=steps,
        temperature=1.0,
        random_start=False,
        stop_on_success=False,
        keep="last",
    )


@pytest.mark.parametrize("targeted", [False, True])
def test_8_plain_settings_are_plain_pgd(
    curved: nn.Module, net: nn.Module, images: Images, predict: Any, targeted: bool
) -> None:
    x = images(60, dtype=torch.float64)
    labels = predict(curved, x)
    classes = (labels + 1) % 3 if targeted else labels
    expected = reference_pgd(curved, x, classes, 8 / 255, 2 / 255, 10, targeted=targeted)
    found = plain_pgd(curved, x, labels, targets=classes if targeted else None)
    assert torch.equal(found.adv_inputs, expected)

    x = images(200)
    labels = predict(net, x)
    classes = (labels + 1) % 5 if targeted else labels
    expected = reference_pgd(net, x, classes, 8 / 255, 2 / 255, 10, targeted=targeted)
    found = plain_pgd(net, x, labels, targets=classes if targeted else None)
    assert_same_attack(net, found, expected, classes, targeted=targeted)


def assert_same_attack(
    net: nn.Module, found: AttackResult, expected: Tensor, classes: Tensor, *, targeted: bool
) -> None:
    close = ((found.adv_inputs - expected).abs().flatten(1) <= 1e-6).all(dim=1)
    assert float(close.float().mean()) >= 0.99
    hit = net(expected).argmax(dim=1) == classes
    success = hit if targeted else ~hit
    assert torch.equal(found.success, success)
    assert 0 < int(success.sum()) < len(classes)


@pytest.mark.parametrize("targeted", [False, True])
def test_8_plain_settings_equal_torchattacks(
    net: nn.Module, images: Images, predict: Any, targeted: bool
) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    x = images(100)
    labels = predict(net, x)
    classes = (labels + 1) % 5 if targeted else labels
    host = torchattacks.PGD(net, eps=8 / 255, alpha=2 / 255, steps=10, random_start=False)
    if targeted:
        host.set_mode_targeted_by_label(quiet=True)
    expected = host(x, classes)
    found = plain_pgd(net, x, labels, targets=classes if targeted else None)
    assert_same_attack(net, found, expected, classes, targeted=targeted)


@pytest.mark.parametrize("targeted", [False, True])
def test_8_plain_settings_equal_art(net: nn.Module, images: Images, predict: Any, targeted: bool) -> None:
    evasion = pytest.importorskip("art.attacks.evasion")
    estimators = pytest.importorskip("art.estimators.classification")
    x = images(100)
    labels = predict(net, x)
    classes = (labels + 1) % 5 if targeted else labels
    classifier = estimators.PyTorchClassifier(
        net, nn.CrossEntropyLoss(), (1, 8, 8), 5, clip_values=(0.0, 1.0), device_type="cpu"
    )
    host = evasion.ProjectedGradientDescent(
        classifier,
        eps=8 / 255,
        eps_step=2 / 255,
        max_iter=10,
        targeted=targeted,
        verbose=False,
        batch_size=100,
    )
    expected = torch.from_numpy(host.generate(x.numpy(), classes.numpy()))
    found = plain_pgd(net, x, labels, targets=classes if targeted else None)
    assert_same_attack(net, found, expected, classes, targeted=targeted)


# 9 ----------------------------------------------------------------------------------------------------


def test_9_without_ids_samples_are_keyed_by_their_bytes_and_label(
    curved: nn.Module, images: Images, predict: Any
) -> None:
    x = images(12, dtype=torch.float64)
    labels = predict(curved, x)
    attack = TemperaturePGD(eps=0.02, steps=2)
    anonymous = attack(curved, x, labels)
    assert_same(attack(curved, x, labels, sample_hashes(x, labels)), anonymous)
    order = torch.arange(11, -1, -1)
    assert_same(attack(curved, x[order], labels[order]), rows(anonymous, order))
    assert_same(attack(curved, x[4:5], labels[4:5]), rows(anonymous, torch.tensor([4])))


def test_9_another_label_is_another_key(curved: nn.Module, images: Images) -> None:
    x = images(1, dtype=torch.float64).expand(2, 1, 8, 8)
    options: dict[str, Any] = {"eps": 0.1, "steps": 0, "stop_on_success": False, "keep": "last"}
    starts = pgd(curved, x, torch.tensor([0, 1]), **options).adv_inputs
    assert not torch.equal(starts[0], starts[1])
    again = pgd(curved, x, torch.tensor([1, 1]), **options).adv_inputs
    assert torch.equal(again[0], again[1])
    assert torch.equal(again[1], starts[1])
