from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from art_logits.folding import Pair, find_pairs, fold, has_hooks, refold, replicate


class Block(nn.Module):
    """Two convolutions around a shortcut, all by attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.shortcut = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(z)) + self.shortcut(x))


class Wrapped(nn.Module):
    """The convolution in one module, its batch norm in the next."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.stem(x))


class Branching(nn.Module):
    """Control flow by the data around a block that has none."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.conv, self.bn = Block(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        return self.bn(self.conv(x)) if x.mean() > 100 else self.conv(x)


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * grads[0]


class Custom(nn.Module):
    """Autograd of its own, and a block."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return _Double.apply(self.block(x) if len(x) else x)


BLOCK = [("conv1", "bn1"), ("conv2", "bn2"), ("shortcut.0", "shortcut.1")]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), [("0", "1")]),
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4, affine=False)), [("0", "1")]),
        (Block, BLOCK),
        (Wrapped, [("stem.0", "norm")]),
        (Branching, [(f"block.{conv}", f"block.{norm}") for conv, norm in BLOCK]),
        (Custom, [(f"block.{conv}", f"block.{norm}") for conv, norm in BLOCK]),
    ],
)
def test_pairs_are_read_from_the_graph_and_folding_keeps_the_function(
    lively: Any, make: Callable[[], nn.Module], expected: list[tuple[str, str]]
) -> None:
    model = lively(make())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pairs = find_pairs(model)
    assert sorted(pairs) == sorted(Pair(*names) for names in expected)
    x = torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    folded = fold(model, pairs)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)
    assert not any(isinstance(folded.get_submodule(pair.norm), nn.BatchNorm2d) for pair in pairs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(isinstance(model.get_submodule(pair.norm), nn.BatchNorm2d) for pair in pairs)


@pytest.mark.parametrize("dimensions", [1, 3])
def test_other_dimensions_fold_too(lively: Any, dimensions: int) -> None:
    kinds = {1: (nn.Conv1d, nn.BatchNorm1d), 3: (nn.Conv3d, nn.BatchNorm3d)}[dimensions]
    model = lively(nn.Sequential(kinds[0](2, 3, 2), kinds[1](3)))
    x = torch.rand(2, 2, *[4] * dimensions)
    torch.testing.assert_close(fold(model, find_pairs(model))(x), model(x), rtol=1e-4, atol=1e-5)


def test_weights_are_folded_in_float64(lively: Any) -> None:
    """A variance near zero: the scale's rounding, not the product's, decides what is left of the digits."""
    model = lively(nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)))
    conv, bn = model[0], model[1]
    found = fold(model, [Pair("0", "1")]).get_submodule("0").weight
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    assert torch.equal(found, (conv.weight.double() * scale.view(-1, 1, 1, 1)).float())


class TwiceUsed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        return self.bn(z) + z


class OneNormTwice(TwiceUsed):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.bn(x)))


class OneConvolutionTwice(TwiceUsed):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.conv(x)))


class WeightReadElsewhere(TwiceUsed):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) * self.conv.weight.sum()


class ExtraArgument(TwiceUsed):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(F.relu(self.conv(x)))


class Own(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).abs()


def tied() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1))
    model[2].weight = model[0].weight
    return model


def same_module_twice() -> nn.Module:
    conv = nn.Conv2d(2, 2, 1)
    return nn.Sequential(conv, nn.BatchNorm2d(2), conv)


def replaced_forward() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    model[0].forward = lambda x: nn.Conv2d.forward(model[0], x).abs()
    return model


def parametrized() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Conv2d(2, 2, 1)), nn.BatchNorm2d(2))


@pytest.mark.parametrize(
    "make",
    [
        TwiceUsed,
        OneNormTwice,
        OneConvolutionTwice,
        WeightReadElsewhere,
        ExtraArgument,
        tied,
        same_module_twice,
        replaced_forward,
        parametrized,
        lambda: nn.Sequential(Own(2, 2, 1), nn.BatchNorm2d(2)),
        lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)),
        lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.SyncBatchNorm(2)),
        lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
        lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(8, 2)),
    ],
)
def test_what_folding_would_break_is_left_alone(lively: Any, make: Callable[[], nn.Module]) -> None:
    assert find_pairs(lively(make())) == []


def test_tracing_leaves_no_trace_in_the_model() -> None:
    class Noting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.seen, self.calls = Block(), [], 0

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x)
            self.calls += 1
            return self.body(x)

    model = Noting().eval()
    assert len(find_pairs(model)) == 3
    assert model.seen == []
    assert model.calls == 0


def test_hooks_are_found_wherever_they_are() -> None:
    model = Block()
    assert not has_hooks(model)
    hooks = [
        model.bn2.register_forward_hook,
        model.shortcut.register_forward_pre_hook,
        model.conv1.register_full_backward_hook,
        model.register_full_backward_pre_hook,
        nn.modules.module.register_module_forward_hook,
    ]
    for register in hooks:
        handle = register(lambda *args: None)
        assert has_hooks(model), register
        handle.remove()
    assert not has_hooks(model)


def test_replicas_share_weights_and_attributes_but_not_the_tree() -> None:
    model = Block().train()
    model.notes = []
    twin = replicate(model)
    assert not any(module.training for module in twin.modules())
    assert all(module.training for module in model.modules())
    assert not any(weight.requires_grad for weight in twin.parameters())
    assert all(weight.requires_grad for weight in model.parameters())
    assert twin.notes is model.notes
    assert replicate(model, containers=True).notes is not model.notes
    with torch.no_grad():
        model.conv1.weight.add_(1)
    assert torch.equal(twin.conv1.weight, model.conv1.weight)
    twin.conv1 = nn.Identity()
    assert isinstance(model.conv1, nn.Conv2d)


def test_replicas_keep_what_is_shared_shared() -> None:
    model = tied()
    model.add_module("again", model[1])
    twin = replicate(model)
    assert twin[0].weight is twin[2].weight
    assert twin.again is twin[1]


def test_compiled_code_has_no_tree_to_copy() -> None:
    scripted = torch.jit.ScriptModule()
    with pytest.raises(TypeError, match="TorchScript module can't be copied"):
        replicate(nn.Sequential(scripted))


def test_refolding_writes_the_weights_of_today_in_place(lively: Any) -> None:
    model = lively(Block())
    pairs = find_pairs(model)
    twin = fold(model, pairs)
    kept = twin.conv1.weight
    lively(model, seed=5)
    refold(twin, model, pairs)
    x = torch.rand(2, 2, 5, 5)
    torch.testing.assert_close(twin(x), model(x), rtol=1e-4, atol=1e-4)
    assert twin.conv1.weight is kept
