from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from warnings import warn

import pytest
import torch
from torch import Tensor, nn

import art_logits
from art_logits import pgd
from art_logits import prepare as prepare_function
from art_logits.counting import Counted
from art_logits.folding import Pair, fold
from art_logits.prepare import (
    Cast,
    Prepared,
    choose_precision,
    evaluating,
    full_float32,
    gradient_model,
    original_of,
    prepare,
    rows_per_pass,
)

#: ``import art_logits.prepare`` would give the function of that name.
MODULE = __import__("sys").modules["art_logits.prepare"]


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


# Preparing --------------------------------------------------------------------------------------------


def logits_and_gradient(model: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
    x = inputs.clone().requires_grad_()
    logits = model(x)
    return logits.detach(), torch.autograd.grad(logits[:, 0].sum(), x)[0]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model counts as large enough to be prepared by an attack."""
    monkeypatch.setattr(MODULE, "_WORTHWHILE", 0)


def test_prepare_is_exported_as_a_function_although_its_module_has_its_name() -> None:
    assert art_logits.prepare is prepare_function is prepare


def test_a_prepared_model_has_the_logits_and_gradients_of_the_original(net: nn.Module, images: Any) -> None:
    x = images(20)
    fast = prepare(net)
    assert fast.pairs == [Pair("0", "1")]
    for found, expected in zip(logits_and_gradient(fast, x), logits_and_gradient(net, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert original_of(fast) is net
    assert original_of(net) is net


def test_a_prepared_model_is_in_eval_mode_and_leaves_its_original_as_it_is(images: Any) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Flatten(), nn.Linear(144, 3)
    )
    model.train()[1].eval()
    before = flags(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = images(4)
    found = prepare(model)(x)
    assert flags(model) == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(found, model.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16"])
def test_casts_are_close_and_give_float32(net: nn.Module, images: Any, precision: str) -> None:
    x = images(50)
    logits, gradient = logits_and_gradient(prepare(net, precision=precision), x)
    exact, exact_gradient = logits_and_gradient(net, x)
    assert logits.dtype == gradient.dtype == torch.float32
    assert 0 < float((logits - exact).abs().max()) < 0.05 * float(exact.abs().max())
    agreement = nn.functional.cosine_similarity(gradient.flatten(1), exact_gradient.flatten(1))
    assert float(agreement.min()) > 0.9
    assert float(agreement.mean()) > 0.99


def test_folded_weights_are_rounded_once_and_not_in_every_pass(net: nn.Module, images: Any) -> None:
    """Bit by bit what autocast computes, without its casts."""
    x = images(20)
    fast = prepare(net, precision="bfloat16")
    with evaluating(net):
        snapshot = fast.snapshot(x)
        names = {f"model.{pair.convolution}" for pair in fast.pairs}
        found = {name: module for name, module in snapshot.named_modules() if name in names}
        assert {weight.dtype for module in found.values() for weight in module.parameters()} == {
            torch.bfloat16
        }
        autocast = Cast(fold(net, fast.pairs), "bfloat16")
        for mine, expected in zip(
            logits_and_gradient(snapshot, x), logits_and_gradient(autocast, x), strict=True
        ):
            assert torch.equal(mine, expected)
    assert {weight.dtype for weight in net.parameters()} == {torch.float32}


def test_float64_models_stay_float64(images: Any) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 2)).double()
    fast = prepare(model, precision="bfloat16")
    x = images(3, dtype=torch.float64)
    assert fast(x).dtype == torch.float64
    torch.testing.assert_close(fast(x), model.eval()(x), rtol=1e-12, atol=1e-12)


def test_switches(net: nn.Module, images: Any) -> None:
    x = images(3)
    seen: list[bool] = []
    spy = Cast(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), channels_last=True)
    assert prepare(net, fuse=False).pairs == []
    assert torch.equal(prepare(net, fuse=False, channels_last=False)(x), net(x))

    class Layout(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(inputs.is_contiguous(memory_format=torch.channels_last))
            return self.conv(inputs).mean(dim=(2, 3))

    colour = torch.rand(2, 3, 8, 8)
    prepare(Layout())(colour)
    prepare(Layout(), channels_last=False)(colour)
    assert seen == [True, False]
    assert spy(x).shape == (3, 2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "float8"}, ValueError, "precision must be one of float32, bfloat16, float16, got"),
        ({"precision": "float16"}, ValueError, "precision 'float16' needs a model on a GPU"),
        ({"cuda_graphs": True}, ValueError, "cuda_graphs needs a model on a GPU"),
    ],
)
def test_wrong_arguments(
    net: nn.Module, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prepare(net, **options)


def test_only_modules_can_be_prepared() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        prepare(lambda x: x)  # type: ignore[arg-type]


# Falling back -----------------------------------------------------------------------------------------


def test_hooks_switch_folding_off_and_that_is_said_once(
    net: nn.Module, images: Any, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[nn.Module] = []
    net[1].register_forward_hook(lambda module, inputs, output: seen.append(module))
    x = images(3)
    with caplog.at_level(logging.WARNING, logger="art_logits"):
        for _ in range(2):
            fast = prepare(net)
            torch.testing.assert_close(fast(x), net(x), rtol=1e-5, atol=1e-5)
            assert fast.pairs == []
    assert warnings(caplog) == ["Sequential: batch norms are not folded: the model has hooks"]
    assert set(seen) == {net[1]}


def test_a_hook_that_comes_later_is_noticed(net: nn.Module, images: Any) -> None:
    x, fast, seen = images(3), prepare(net), []
    fast(x)
    net[1].register_forward_hook(lambda module, inputs, output: seen.append(module))
    fast(x)
    assert seen == [net[1]]


class Switched(nn.Module):
    """The graph depends on an attribute: what was true when it was traced is not any more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.twice = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), False

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        return ((self.bn(z) + z) if self.twice else self.bn(z)).mean(dim=(2, 3))


class Inquisitive(nn.Module):
    """Asks its batch norm for something that only a batch norm has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).mean(dim=(2, 3)) * (1 + self.bn.eps)


def test_a_fold_that_does_not_agree_is_given_up_and_that_is_said_once(
    images: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = Switched().eval(), images(6)
    model.bn.running_mean.fill_(3)
    assert len(prepare(model).pairs) == 1
    model.twice = True
    with caplog.at_level(logging.WARNING, logger="art_logits"):
        for _ in range(2):
            fast = prepare(model, channels_last=False)
            assert torch.equal(fast(x), model(x))
            assert torch.equal(fast(x), model(x))
    assert warnings(caplog) == ["Switched: batch norms are not folded: its logits differ from the original's"]


def test_a_model_that_fails_without_its_batch_norm_is_not_folded(
    images: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = Inquisitive().eval(), images(6)
    with caplog.at_level(logging.WARNING, logger="art_logits"):
        assert torch.equal(prepare(model, channels_last=False)(x), model(x))
    assert "object has no attribute 'eps'" in warnings(caplog)[0]


def test_a_model_whose_passes_change_its_attributes_is_not_copied(net: nn.Module, images: Any) -> None:
    counted, x = Counted(net), images(6)
    fast = prepare(counted, channels_last=False)
    fast(x)
    fast(x)
    # Four rows were compared, once.
    assert counted.forwards == 4 + 6 + 6


def test_models_that_cannot_be_copied_are_attacked_as_they_are(
    net: nn.Module, images: Any, caplog: pytest.LogCaptureFixture
) -> None:
    scripted = torch.jit.ScriptModule()
    net.add_module("scripted", scripted)
    net.forward = lambda x: nn.Sequential(*list(net)[:7])(x)
    with caplog.at_level(logging.WARNING, logger="art_logits"):
        assert torch.equal(prepare(net, channels_last=False)(images(3)), net(images(3)))
    assert "a TorchScript module can't be copied" in warnings(caplog)[0]


def test_what_cannot_be_folded_is_counted_once(images: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten()).eval()
    with caplog.at_level(logging.INFO, logger="art_logits"):
        for _ in range(2):
            prepare(model)(images(2))
    assert [record.getMessage() for record in caplog.records] == [
        "Sequential: 1 of 2 batch norms can be folded into the convolution before them"
    ]


# Weights change ---------------------------------------------------------------------------------------


def by_optimizer(model: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(x)[:, 0].sum().backward()
    optimizer.step()


def by_state_dict(model: nn.Module, x: Tensor) -> None:
    model.load_state_dict({name: 1.5 * tensor for name, tensor in model.state_dict().items()})


def by_data(model: nn.Module, x: Tensor) -> None:
    model[0].weight.data.mul_(-1)  # bumps no version


def by_other_data(model: nn.Module, x: Tensor) -> None:
    model[3].weight.data = 2 * model[3].weight.data


def by_data_of_a_norm(model: nn.Module, x: Tensor) -> None:
    model[1].weight.data[0] = 5.0


def by_statistics(model: nn.Module, x: Tensor) -> None:
    model[1].train()(torch.rand(8, 8, 6, 6))
    model[1].eval()


def by_new_parameter(model: nn.Module, x: Tensor) -> None:
    model[3].weight = nn.Parameter(torch.ones_like(model[3].weight))


def by_new_module(model: nn.Module, x: Tensor) -> None:
    model[1] = nn.BatchNorm2d(8).eval()


CHANGES = [
    by_optimizer,
    by_state_dict,
    by_data,
    by_other_data,
    by_data_of_a_norm,
    by_statistics,
    by_new_parameter,
    by_new_module,
]


@pytest.mark.parametrize("compile", [False, "eager"])
@pytest.mark.parametrize("change", CHANGES)
def test_10_a_prepared_model_follows_every_change_of_its_original(
    net: nn.Module, images: Any, change: Any, compile: Any
) -> None:
    x = images(5)
    fast = prepare(net, compile=compile)
    before = fast(x)
    change(net, x)
    net.zero_grad()
    now = fast(x)
    assert float((now - before).abs().max()) > 0.01
    torch.testing.assert_close(now, net(x), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("change", CHANGES)
def test_10_an_attack_never_takes_gradients_from_the_weights_of_before(
    net: nn.Module, images: Any, predict: Any, change: Any
) -> None:
    import copy

    # "auto" is a probe of each, which a busy machine can decide either way.
    x, options = images(20), {"eps": 0.03, "steps": 3, "precision": "float32"}
    pgd(net, x, predict(net, x), **options)
    change(net, x)
    net.zero_grad()
    labels = predict(net, x)
    after = pgd(net, x, labels, **options)
    fresh = pgd(copy.deepcopy(net), x, labels, **options)
    for one, other in zip(after, fresh, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("compile", [False, "eager"])
@pytest.mark.parametrize("change", [by_data, by_statistics])
def test_10_rounded_weights_follow_too(net: nn.Module, images: Any, change: Any, compile: Any) -> None:
    x = images(5)
    fast = prepare(net, precision="bfloat16", compile=compile)
    fast(x)
    change(net, x)
    assert torch.equal(fast(x), prepare(net, precision="bfloat16")(x))


# Compiling --------------------------------------------------------------------------------------------


def test_compiled_models_compute_the_same(net: nn.Module, images: Any) -> None:
    x = images(6)
    fast = prepare(net, compile="eager")
    for _ in range(2):
        for found, expected in zip(logits_and_gradient(fast, x), logits_and_gradient(net, x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_compiled_runs_without(
    net: nn.Module, images: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: nn.Module, **options: Any) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            raise RuntimeError("no compiler here")

        assert options == {}
        return run

    monkeypatch.setattr(torch, "compile", broken)
    fast = prepare(net, compile=True)
    with caplog.at_level(logging.WARNING, logger="art_logits"):
        for _ in range(2):
            torch.testing.assert_close(fast(images(3)), net(images(3)), rtol=1e-4, atol=1e-4)
    assert warnings(caplog) == ["Cast: the model is not compiled: no compiler here"]


class _Replayed(torch.autograd.Function):
    """What a recorded graph does: every pass writes into the same tensors, backward ones too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, memory: Any) -> Tensor:
        ctx.memory = memory
        memory.x.data.copy_(x)
        with torch.enable_grad():
            memory.made = memory.run(memory.x)
        memory.logits.copy_(memory.made.detach())
        return memory.logits.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = torch.autograd.grad(ctx.memory.made, ctx.memory.x, grad)
        ctx.memory.slope.copy_(slope)
        return ctx.memory.slope.detach(), None


def replaying(run: Callable[[Tensor], Tensor], samples: tuple[Tensor], pool: Any) -> Any:
    """In place of ``torch.cuda.make_graphed_callables``, which needs a GPU."""
    (sample,) = samples
    with torch.no_grad():
        logits = run(sample)
    memory = SimpleNamespace(run=run, x=sample, logits=logits.clone(), slope=torch.zeros_like(sample))
    return lambda x: _Replayed.apply(x, memory)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stands in for CUDA graphs, and notes for how many rows one was recorded."""
    rows: list[int] = []

    def record(run: Any, samples: Any, pool: Any = None) -> Any:
        rows.append(len(samples[0]))
        return replaying(run, samples, pool)

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(MODULE, "_can_be_recorded", lambda x: len(x) <= 6)
    return rows


def recorded(net: nn.Module, **options: Any) -> Prepared:
    """A model prepared with CUDA graphs, which :func:`prepare` refuses without a GPU."""
    return Prepared(net, "float32", fuse=True, channels_last=True, cuda_graphs=True, **options)


def test_passes_are_recorded_once_per_shape_and_nothing_is_overwritten(
    net: nn.Module, images: Any, graphs: list[int]
) -> None:
    x, fast = images(9), recorded(net)
    halves = [logits_and_gradient(fast, x[rows]) for rows in (slice(0, 4), slice(4, 8), slice(3, 9))]
    for rows, found in zip((slice(0, 4), slice(4, 8), slice(3, 9)), halves, strict=True):
        for mine, expected in zip(found, logits_and_gradient(net, x[rows]), strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        first, second = fast(x[:4]), fast(x[4:8])
    assert not torch.equal(first, second)
    assert graphs == [4, 6, 4]  # without gradients it is another graph
    logits_and_gradient(fast, x)
    assert graphs == [4, 6, 4]  # too many rows


def test_what_was_recorded_sees_later_weights(net: nn.Module, images: Any, graphs: list[int]) -> None:
    x, fast = images(4), recorded(net)
    before = fast(x)
    by_optimizer(net, x)
    net.zero_grad()
    assert not torch.allclose(fast(x), before, atol=1e-3)
    torch.testing.assert_close(fast(x), net(x), rtol=1e-4, atol=1e-4)
    assert graphs == [4]


def test_what_cannot_be_recorded_runs_without(
    net: nn.Module, images: Any, graphs: Any, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", broken)
    fast = recorded(net)
    with caplog.at_level(logging.WARNING, logger="art_logits"):
        for _ in range(2):
            torch.testing.assert_close(fast(images(3)), net(images(3)), rtol=1e-4, atol=1e-4)
    assert warnings(caplog) == ["Cast: no CUDA graphs: operation not permitted when stream is capturing"]


def test_what_torch_says_while_it_records_is_not_passed_on(
    net: nn.Module, images: Any, graphs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch 2.11 does, of its own warm-up; anything else is the user's to know."""
    record = torch.cuda.make_graphed_callables
    said = ["The AccumulateGrad node's stream does not match the stream of the node", "something else"]

    def chatty(*args: Any, **options: Any) -> Any:
        for text in said:
            warn(text, stacklevel=1)
        return record(*args, **options)

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", chatty)
    with pytest.warns(UserWarning, match="something else") as heard:
        logits_and_gradient(recorded(net), images(4))
    assert [str(warning.message) for warning in heard] == said[1:]


def test_an_attack_through_recorded_passes(net: nn.Module, images: Any, graphs: list[int]) -> None:
    x, labels = images(12), torch.arange(12) % 5
    options: dict[str, Any] = {"eps": 0.02, "steps": 4}
    found = art_logits.pgd(recorded(net), x, labels, **options, batch_size=6)
    plain = art_logits.pgd(prepare(net), x, labels, **options)
    torch.testing.assert_close(found.adv_inputs, plain.adv_inputs)
    assert torch.equal(found.success, plain.success)
    assert graphs


def test_a_variant_differs_in_what_was_asked_and_is_made_once(net: nn.Module) -> None:
    fast = prepare(net, precision="bfloat16", compile="eager")
    assert fast.variant("bfloat16", fuse=True) is fast
    exact = fast.variant("float32", fuse=False)
    assert exact.config() == {**fast.config(), "precision": "float32", "fuse": False}
    assert fast.variant("float32", fuse=False) is exact
    assert exact.variant("float32", fuse=True) is exact  # what was switched off stays off


# What an attack takes its gradients from --------------------------------------------------------------


def test_small_models_functions_and_float64_are_not_prepared(
    net: nn.Module, images: Any, linear: nn.Module
) -> None:
    x = images(4)
    assert gradient_model(net, x, "float32", fuse=True) is None
    assert gradient_model(lambda z: net(z), x, "bfloat16", fuse=True) is None
    assert gradient_model(linear, x, "bfloat16", fuse=True) is None
    assert gradient_model(net, x.double(), "bfloat16", fuse=True) is None
    small = gradient_model(net, x, "bfloat16", fuse=True)
    assert isinstance(small, Cast)
    assert small.model is net


@pytest.mark.usefixtures("large")
def test_large_models_are_folded_where_that_helps(net: nn.Module, images: Any) -> None:
    x = images(4)
    folded = gradient_model(net, x, "float32", fuse=True)
    assert isinstance(folded, Cast)
    assert folded.model is not net
    assert gradient_model(net, x, "float32", fuse=False) is None
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    assert gradient_model(flat, x, "float32", fuse=True) is None


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Replaces the probe's clock: ``timed(float32=..., bfloat16=...)``, in seconds; returns who was timed."""
    real = MODULE._time_passes

    def replace(*, finite: bool = True, wrong: bool = False, **seconds: float) -> list[str]:
        calls: list[str] = []

        def passes(net: Cast, inputs: Tensor) -> tuple[float, Tensor, bool]:
            name = "float32" if net.dtype is None else "bfloat16"
            calls.append(name)
            logits = real(net, inputs)[1]
            if wrong and name == "bfloat16":
                logits = logits.roll(1, dims=1)
            return seconds[name], logits, finite or name == "float32"

        monkeypatch.setattr(MODULE, "_time_passes", passes)
        return calls

    return replace


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(
    ("clock", "expected"),
    [
        ({"float32": 3.0, "bfloat16": 1.0}, "bfloat16"),
        ({"float32": 1.1, "bfloat16": 1.0}, "float32"),
        ({"float32": 1.0, "bfloat16": 3.0}, "float32"),
        ({"float32": 3.0, "bfloat16": 1.0, "finite": False}, "float32"),
        ({"float32": 3.0, "bfloat16": 1.0, "wrong": True}, "float32"),
    ],
)
def test_auto_takes_bfloat16_where_it_is_faster_finite_and_right(
    net: nn.Module, images: Any, timed: Any, clock: dict[str, Any], expected: str
) -> None:
    calls = timed(**clock)
    assert choose_precision(net, images(32)) == expected
    assert choose_precision(net, images(2, seed=3)) == expected
    assert calls == ["float32", "bfloat16"]  # once per model


@pytest.mark.usefixtures("large")
def test_a_device_without_bfloat16_is_told_from_a_broken_model(
    net: nn.Module, images: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = MODULE._time_passes

    def passes(model: Cast, inputs: Tensor) -> Any:
        if model.dtype is not None:
            raise RuntimeError("not implemented for 'BFloat16'")
        return real(model, inputs)

    monkeypatch.setattr(MODULE, "_time_passes", passes)
    with caplog.at_level(logging.WARNING, logger="art_logits"):
        assert choose_precision(net, images(32)) == "float32"
    assert warnings(caplog) == ["Sequential: no bfloat16: not implemented for 'BFloat16'"]
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        choose_precision(net, torch.rand(20, 1, 9, 9))


def test_auto_costs_nothing_where_nothing_can_be_saved(
    net: nn.Module, images: Any, linear: nn.Module, timed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = timed(float32=3.0, bfloat16=1.0)
    assert choose_precision(net, images(32)) == "float32"  # too small
    monkeypatch.setattr(MODULE, "_WORTHWHILE", 0)
    assert choose_precision(lambda x: net(x), images(32)) == "float32"
    assert choose_precision(linear, images(32, dtype=torch.float64)) == "float32"
    assert choose_precision(net, images(15)) == "float32"  # too few
    assert calls == []
    assert choose_precision(net, images(16)) == "bfloat16"


@pytest.mark.usefixtures("large")
def test_a_probe_that_does_not_fit_is_made_with_half_the_rows(
    net: nn.Module, images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []

    def passes(model: nn.Module, inputs: Tensor) -> tuple[float, Tensor, bool]:
        rows.append(len(inputs))
        if len(inputs) > limit:
            raise torch.OutOfMemoryError("tried to allocate 1 GiB")
        return len(rows), inputs.flatten(1), True

    monkeypatch.setattr(MODULE, "_time_passes", passes)
    limit = 40
    assert MODULE._probe(net, images(16), True, 128) == "float32"
    assert rows == [128, 64, 32, 32]
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        MODULE._probe(net, images(16), True, 16)


def test_the_probe_itself(net: nn.Module, images: Any) -> None:
    before = flags(net.train())
    assert choose_precision(net, images(16)) in ("float32", "bfloat16")
    assert flags(net) == before


# How many samples at a time ---------------------------------------------------------------------------


class Wide(nn.Module):
    """Of each sample 60 numbers in, 42 after the convolution, 240 after the product, 10 out."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(3, 7, 3), nn.Linear(42, 240)

    def forward(self, inputs: Tensor) -> Tensor:
        weight = self.linear.weight * torch.ones(240, 42)  # large, and no sample's
        return torch.nn.functional.linear(self.convolution(inputs).flatten(1), weight)[:, :10]


@pytest.mark.usefixtures("large")
def test_a_pass_on_a_cpu_is_as_large_as_its_largest_tensor_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Counted(Wide())
    x = torch.rand(5, 3, 4, 5)
    with evaluating(net):
        assert rows_per_pass(net, x) == MODULE._LARGEST // (4 * 240)
        assert rows_per_pass(net, x, dtype=torch.bfloat16) == MODULE._LARGEST // (2 * 240)
        assert rows_per_pass(net, x.double()) == MODULE._LARGEST // (8 * 240)
        monkeypatch.setattr(MODULE, "_LARGEST", 100 * 4 * 240 + 1)
        assert rows_per_pass(net, x[:1]) == 100
        monkeypatch.setattr(MODULE, "_LARGEST", 1)
        assert rows_per_pass(net, x) == 16
    assert net.forwards == 2  # two samples, once


def test_passes_of_small_models_and_functions_are_not_cut(net: nn.Module, images: Any) -> None:
    counted = Counted(net)
    assert rows_per_pass(counted, images(4)) is None
    assert rows_per_pass(lambda x: net(x), torch.rand(4, 3, 500, 500)) is None
    assert counted.forwards == 0


# Float32 ----------------------------------------------------------------------------------------------


def test_full_float32_is_full_and_restores_what_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)

    def settings() -> tuple[str, bool, bool]:
        return (
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.allow_tf32,
            torch.is_autocast_enabled("cpu"),
        )

    before = settings()
    try:
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.allow_tf32 = True
        with torch.autocast("cpu", torch.bfloat16):
            outer = settings()
            with full_float32():
                assert settings() == ("highest", False, False)
                assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
            assert settings() == outer
            with pytest.raises(RuntimeError, match="midway"), full_float32():
                raise RuntimeError("midway")
            assert settings() == outer == ("medium", True, True)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each setting needs a process of its own")
def test_full_float32_with_any_of_torchs_switches() -> None:
    """Some combinations make torch refuse to tell what was set: none may fail, or stay changed."""
    done = subprocess.run([sys.executable, "-c", SWITCHES], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr


SWITCHES = """
import os
import torch
from art_logits.prepare import full_float32

b = torch.backends
SETTINGS = [
    "pass",
    "torch.set_float32_matmul_precision('high')",
    "torch.set_float32_matmul_precision('high'); b.cuda.matmul.allow_tf32 = False",
    "b.cuda.matmul.allow_tf32 = True",
    "b.cuda.matmul.fp32_precision = 'tf32'",
    "b.fp32_precision = 'tf32'",
    "b.fp32_precision = 'ieee'",
    "b.mkldnn.fp32_precision = 'bf16'",
]
OPERATORS = [b.mkldnn.matmul, b.mkldnn.conv, b.mkldnn.rnn, b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn]


def told(getter):
    try:
        return getter()
    except RuntimeError:
        return "refused"


def precisions(owners):
    return [getattr(owner, "fp32_precision", "none") for owner in owners]  # torch < 2.9 has none


def state():
    old = [torch.get_float32_matmul_precision, lambda: b.cudnn.allow_tf32, lambda: b.cuda.matmul.allow_tf32]
    return precisions([b, b.cudnn, b.mkldnn, *OPERATORS]), [told(getter) for getter in old]


def check(setting, on_gpu):
    torch.cuda.is_initialized = lambda: on_gpu
    exec(setting)
    before = state()
    with full_float32():
        inside = precisions(OPERATORS if on_gpu else OPERATORS[:3])
        torch.rand(4, 4) @ torch.rand(4, 4)
    assert set(inside) <= {"ieee", "none"}, inside
    assert state() == before, (before, state())


for setting in SETTINGS:
    if "fp32_precision" in setting and not hasattr(b, "fp32_precision"):
        continue
    for on_gpu in (False, True):
        child = os.fork()
        if not child:
            check(setting, on_gpu)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, (setting, on_gpu)
"""
