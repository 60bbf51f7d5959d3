from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchvision.models import resnet18

from art_logits import fusing, prepare
from art_logits.folding import find_pairs, fold
from art_logits.fusing import Fused, find_rewritings, rewrite
from art_logits.prepare import evaluating

MODULE = __import__("sys").modules["art_logits.prepare"]


@pytest.fixture
def one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's kernel, computed as cuDNN says that it computes: what is tested is its gradient."""
    monkeypatch.setattr(fusing, "_in_one", fusing._as_many)
    monkeypatch.setattr(fusing, "_as_many", fusing._OneKernel.apply)


class Convolutions(nn.Module):
    """Two convolutions with batch norms, and a shortcut for others to join."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, **options), nn.BatchNorm2d(4)
        self.shortcut = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.relu = nn.ReLU(inplace=True)

    def first(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x))

    def second(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(x))


class Residual(Convolutions):
    def forward(self, x: Tensor) -> Tensor:
        out = self.second(self.relu(self.first(x)))
        out += self.shortcut(x)
        return self.relu(out)


class Reversed(Convolutions):
    """The convolution comes second in the sum."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.second(F.relu(self.first(x), inplace=True)))


class Strided(Convolutions):
    def __init__(self) -> None:
        super().__init__(stride=2, dilation=2, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu_()).relu()


class Mutating(Convolutions):
    """The sum is made in a tensor that is looked at again, which its graph does not show."""

    def forward(self, x: Tensor) -> Tensor:
        way = self.shortcut(x)
        before = way
        way += self.second(self.first(x))
        return F.relu(way) + before


class Forked(Convolutions):
    """Outputs of convolutions, and of their sum, that others take, too."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        total = self.second(z) + self.shortcut(x)
        return F.relu(z) + F.relu(total) + total


class Otherwise(Convolutions):
    """Activations and sums that are others than those known, and padding that is no number of zeros."""

    def __init__(self) -> None:
        super().__init__(padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu6(self.first(x))
        return F.relu(self.second(z)) + F.relu(1 + self.shortcut[1](self.shortcut[0](x)))


class Noting(Convolutions):
    """Notes its features where others may look for them."""

    def forward(self, x: Tensor) -> Tensor:
        self.features = F.relu(self.first(x))
        return F.relu(self.second(self.features))


class Choosing(Convolutions):
    """Control flow by the data in the model, none in its block."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Residual()

    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().sum()) < 0:
            x = -x
        return F.relu(self.first(x)) + self.block(x)


CASES: list[tuple[type[nn.Module], list[int]]] = [
    (Residual, [2]),
    (Reversed, [2]),
    (Strided, [2]),
    (Forked, []),
    (Otherwise, []),
    (Noting, []),
    (Choosing, [2]),
]


def outcome(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    out = model(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return out.detach(), torch.autograd.grad((out * weights).sum(), x)[0]


@pytest.mark.usefixtures("one_kernel")
@pytest.mark.parametrize(("kind", "counts"), CASES)
def test_what_follows_a_convolution_is_computed_with_it(
    lively: Any, kind: type[nn.Module], counts: list[int]
) -> None:
    model = lively(kind()).double()
    x = torch.rand(5, 3, 9, 9, dtype=torch.float64)
    with evaluating(model):
        pairs = find_pairs(model)
        folded = fold(model, pairs)
        found = find_rewritings(folded, pairs)
        assert [len(rewriting.layers) for rewriting in found] == counts
        rewrite(folded, found)
        for mine, theirs in zip(outcome(folded, x), outcome(model, x), strict=True):
            torch.testing.assert_close(mine, theirs)
    assert not any(isinstance(module, Fused) for module in model.modules())


def test_a_forward_replaced_on_the_instance_stays(lively: Any) -> None:
    model = lively(Residual())
    folded = fold(model, pairs := find_pairs(model))
    assert len(find_rewritings(folded, pairs)) == 1
    folded.forward = lambda x: x
    assert find_rewritings(folded, pairs) == []


@pytest.mark.usefixtures("one_kernel")
def test_resnet18(lively: Any) -> None:
    model = lively(resnet18(num_classes=10)).double()
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    with evaluating(model):
        pairs = find_pairs(model)
        folded = fold(model, pairs)
        found = find_rewritings(folded, pairs)
        # Of its 20 convolutions all but the three on the shortcuts.
        assert sum(len(rewriting.layers) for rewriting in found) == len(pairs) - 3 == 17
        rewrite(folded, found)
        for mine, theirs in zip(outcome(folded, x), outcome(model, x), strict=True):
            torch.testing.assert_close(mine, theirs)
        # The same rewritings serve another fold, of other weights.
        lively(model, seed=5)
        again = fold(model, pairs)
        rewrite(again, found)
        torch.testing.assert_close(again(x), model(x))


def test_both_inputs_have_their_gradients_in_their_own_precision() -> None:
    layer = Fused(nn.Conv2d(3, 4, 3, padding=1).requires_grad_(False).double())
    x, other = torch.rand(2, 3, 5, 5, requires_grad=True), torch.randn(2, 4, 5, 5, requires_grad=True)
    out = layer(x, other)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, F.relu(layer.convolution(x.double()) + other))
    for gradient in torch.autograd.grad(out.sum(), (x, other)):
        assert gradient.dtype == torch.float32


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "_has_one_kernel", lambda inputs: True)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("options", [{}, {"precision": "bfloat16"}])
def test_a_prepared_model_is_rewritten_and_follows_its_weights(
    lively: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    model = lively(nn.Sequential(Residual(), nn.Flatten(), nn.Linear(4 * 81, 10)))
    x = torch.rand(6, 3, 9, 9)
    calls: list[int] = []

    def noted(*inputs: Any) -> Tensor:
        calls.append(len(inputs[0]))
        return as_many(*inputs)

    as_many = fusing._as_many
    monkeypatch.setattr(fusing, "_as_many", noted)
    fast = prepare(model, **options)
    tolerance = 0.03 if options else 1e-4
    torch.testing.assert_close(fast(x), model(x), rtol=tolerance, atol=tolerance)
    # Compared with the original on four samples, once.
    assert calls == [4, 4, 6, 6]
    lively(model, seed=5)
    model.requires_grad_(False)[0].conv1.weight.mul_(1.5)
    torch.testing.assert_close(fast(x), model(x), rtol=tolerance, atol=tolerance)
    assert calls == [4, 4, 6, 6, 6, 6]
    assert not any(isinstance(module, Fused) for module in model.modules())


@pytest.mark.usefixtures("on_gpu")
def test_settings_decide_whether_a_graph_is_still_the_model_s(lively: Any) -> None:
    class Switched(Residual):
        sharp = False

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (2.0 if self.sharp else 1.0)

    model = lively(nn.Sequential(Switched(), nn.Flatten(), nn.Linear(4 * 81, 10)))
    x = torch.rand(6, 3, 9, 9)
    fast = prepare(model)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    model[0].sharp = True
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("on_gpu")
def test_a_rewritten_model_that_differs_is_not_used(lively: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = lively(nn.Sequential(Mutating(), nn.Flatten(), nn.Linear(4 * 81, 10)))
    x = torch.rand(6, 3, 9, 9)
    fast = prepare(model)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    assert [record.getMessage() for record in caplog.records] == [
        "Sequential: convolutions are not fused with ReLUs: its logits differ from the original's"
    ]
    assert fast.fuse
    assert len(fast.pairs) == 3
