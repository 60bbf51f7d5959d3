"""What a GPU changes: nothing but the time. Runs where there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from art_logits import TemperaturePGD, evaluate, prepare
from art_logits._batches import Batches, OutOfMemoryError, fitting_batch_size
from art_logits.balls import BALLS
from art_logits.cascade import quick
from art_logits.data import load_data
from art_logits.fusing import Fused
from art_logits.models import load_model
from art_logits.prepare import choose_precision, evaluating, full_float32
from art_logits.starts import random_choices, random_points, sample_hashes

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def net() -> nn.Module:
    """A convolutional net with batch norms that is large enough to be prepared."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 10))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    return model.eval().cuda()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(1)).cuda()


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    return load_data("digits").subset(100, seed=0).batch(slice(None))


def labels_of(net: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return net(images).argmax(dim=1)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_random_starts_are_those_of_the_cpu(norm: str) -> None:
    like = torch.zeros(5, 3, 7, 5)
    keys = {"seed": 3, "sample_ids": [1, -2, 3, 2**62, 5], "restarts": [0, 1, 2, 3, 4]}
    on_gpu = random_points(BALLS[norm], like.cuda(), **keys)
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), random_points(BALLS[norm], like, **keys))
    assert torch.equal(random_choices(0.3, like.cuda(), **keys).cpu(), random_choices(0.3, like, **keys))


def test_ids_of_samples_are_those_of_the_cpu(images: Tensor) -> None:
    labels = torch.arange(len(images))
    on_cpu = sample_hashes(images.cpu(), labels)
    np.testing.assert_array_equal(sample_hashes(images, labels.cuda()), on_cpu)
    np.testing.assert_array_equal(
        sample_hashes(images.contiguous(memory_format=torch.channels_last), labels), on_cpu
    )


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "auto"])
def test_an_attack_finds_what_it_finds_on_a_cpu(
    norm: str, precision: str, digits: tuple[Tensor, Tensor]
) -> None:
    robust = load_model("digits-at")
    eps = {"Linf": 0.2, "L2": 0.8, "L1": 4.0}[norm]
    attack = TemperaturePGD(eps=eps, norm=norm, steps=10, precision=precision)
    on_cpu = attack(robust, *digits)
    found = attack(robust.cuda(), digits[0].cuda(), digits[1].cuda())
    assert all(column.is_cuda for column in found)
    assert int((found.success.cpu() != on_cpu.success).sum()) <= 0.02 * len(digits[0]) + 1
    distance = BALLS[norm].norm((found.adv_inputs - digits[0].cuda()).double())
    assert float(distance.max()) <= eps * (1 + 1e-4) + 1e-6
    with torch.no_grad(), full_float32():
        torch.testing.assert_close(found.logits, robust(found.adv_inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_batches_and_slots_change_little(net: nn.Module, images: Tensor, precision: str) -> None:
    """Kernels differ with the number of rows; what is found is the same up to rounding."""
    attack = TemperaturePGD(eps=0.01, steps=5, precision=precision)
    labels = labels_of(net, images)
    whole, parts = (attack(net, images, labels, batch_size=size) for size in (40, 7))
    assert int((whole.success != parts.success).sum()) <= 1


def test_one_copy_of_a_sample_is_attacked_as_another(net: nn.Module, images: Tensor) -> None:
    double = torch.cat([images[:5]] * 2)
    result = TemperaturePGD(eps=0.01, steps=5)(net, double, labels_of(net, double))
    torch.testing.assert_close(result.adv_inputs[:5], result.adv_inputs[5:], rtol=0, atol=0.02)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "bfloat16"},
        {"precision": "float16"},
        {"precision": "bfloat16", "channels_last": False},
        {"precision": "bfloat16", "compile": True},
        {"precision": "bfloat16", "cuda_graphs": True},
    ],
    ids=str,
)
def test_a_prepared_model_computes_the_same(
    net: nn.Module, images: Tensor, options: dict[str, object]
) -> None:
    fast = prepare(net, **options)
    assert len(fast.pairs) == 3

    def gradient(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        logits = model(x)
        (grad,) = torch.autograd.grad(logits[:, 0].sum(), x)
        return logits.detach().clone(), grad.clone()

    tolerance = 0.05 if "precision" in options else 1e-2
    for count in (40, 40, 9):  # a graph is recorded, replayed, and recorded for another shape
        with evaluating(net):
            expected, slope = gradient(net, images[:count])
        found, same_slope = gradient(fast, images[:count])
        assert found.dtype == torch.float32
        assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())
        cosine = nn.functional.cosine_similarity(slope.flatten(1), same_slope.flatten(1))
        assert float(cosine.min()) > 0.98


class Residual(nn.Module):
    """A convolution and a residual block, whose ReLUs a GPU computes with their convolutions."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.bn(self.stem(x)))
        z = nn.functional.relu(self.bn1(self.conv1(x)))
        z = nn.functional.relu(x + self.bn2(self.conv2(z)))
        out: Tensor = self.head(z.mean(dim=(2, 3)))
        return out


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rows", [1, 40, 300])
def test_relus_are_computed_with_their_convolutions(precision: str, rows: int) -> None:
    torch.manual_seed(0)
    model = Residual().eval().cuda()
    x = torch.rand(rows, 3, 32, 32, generator=torch.Generator().manual_seed(1)).cuda()

    def gradient(net: nn.Module) -> tuple[Tensor, Tensor]:
        points = x.clone().requires_grad_()
        logits = net(points)
        (grad,) = torch.autograd.grad(logits[:, 0].sum(), points)
        return logits.detach(), grad.flatten(1)

    with evaluating(model):
        fast = prepare(model, precision=precision).snapshot(x)
        found, slope = gradient(fast)
        with full_float32():
            expected, same_slope = gradient(model)
    fused = [module for module in fast.modules() if isinstance(module, Fused)]
    assert len(fused) == 3
    assert all(module.one_kernel for module in fused)  # False from the first failure on
    tolerance = {"float32": 2e-3, "bfloat16": 0.03, "float16": 4e-3}[precision]
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())
    assert float(nn.functional.cosine_similarity(slope, same_slope).min()) > 0.98


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_clean_inputs_are_judged_by_the_original_where_it_matters(
    net: nn.Module, images: Tensor, precision: str
) -> None:
    labels = labels_of(net, images)
    labels[::5] += 1
    labels %= 10
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        found = TemperaturePGD(eps=0.02, steps=10, precision=precision)(net, images, labels)
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
    with torch.no_grad(), full_float32():
        wrong = net(images).argmax(dim=1) != labels
        assert torch.equal(net(found.adv_inputs).argmax(dim=1) != labels, found.success)
    assert torch.equal(found.restart < 0, wrong)
    known = wrong | ~found.success
    assert torch.equal(~found.clean_margin.isnan(), known)
    assert 8 <= int(known.sum()) < 40


@pytest.mark.parametrize("make", [TemperaturePGD, quick])
def test_an_attack_through_cuda_graphs(net: nn.Module, images: Tensor, make: Callable[..., Any]) -> None:
    """Replayed passes give what others do; each number of rows is recorded once."""
    labels, attack = labels_of(net, images), make(eps=0.02)
    graphed = prepare(net, precision="bfloat16", cuda_graphs=True)
    plain = attack(prepare(net, precision="bfloat16"), images, labels)
    for _ in range(2):
        found = attack(graphed, images, labels)
        assert int((found.success != plain.success).sum()) <= 3
        with torch.no_grad(), full_float32():
            assert torch.equal(net(found.adv_inputs).argmax(dim=1) != labels, found.success)
    with evaluating(net):
        recorded = graphed.snapshot(images).recorded
    assert recorded is not None  # None from the first failure on
    assert recorded
    assert {shape[0] for shape, *_ in recorded} <= {8, 16, 32, 40}


def test_tensor_float_32_is_not_float32(net: nn.Module, images: Tensor) -> None:
    exact = net.double()(images.double()).float()
    net.float()
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        with torch.no_grad():
            rough = net(images)
            with full_float32():
                fine = net(images)
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (True, True)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed
    assert float((fine - exact).abs().max()) < 1e-5 * float(exact.abs().max())
    if torch.cuda.get_device_capability() >= (8, 0):
        assert float((rough - exact).abs().max()) > 10 * float((fine - exact).abs().max())


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0), reason="needs TF32"
)
def test_gradients_in_float32_are_the_user_s_tensor_float_32(net: nn.Module, images: Tensor) -> None:
    """What torch computes convolutions in unless told otherwise: the hosts' gradients are those, too."""
    labels, seen = labels_of(net, images), []
    attack = TemperaturePGD(
        eps=0.01, steps=1, temperature=1.0, random_start=False, precision="float32", fuse=False
    )

    def gradient() -> Tensor:
        x = images.clone().requires_grad_()
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(net(x), labels, reduction="sum"), x)
        return grad

    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        found = attack(net, images, labels, observer=lambda step: seen.append(step.gradient.clone()))
        rounded = gradient()
        with full_float32():
            exact = gradient()
            logits = net(found.adv_inputs).detach()
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
    assert len(seen[0]) == len(images)
    assert float((seen[0] - rounded).abs().max()) < 0.1 * float((exact - rounded).abs().max())
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-4)


def test_the_probe_decides_once(net: nn.Module, images: Tensor) -> None:
    chosen = choose_precision(net, images)
    assert chosen in ("float32", "bfloat16")
    assert choose_precision(net, images) == chosen


def test_a_batch_that_fits_the_memory(net: nn.Module, images: Tensor) -> None:
    assert fitting_batch_size(net, images[:2], most=64) == 64
    assert 1 <= fitting_batch_size(net, images[:2], most=10**9) <= 2048


def test_out_of_memory_halves_the_batch(net: nn.Module, images: Tensor) -> None:
    class Greedy(nn.Module):
        """Asks for more memory than there is, from 20 samples on."""

        def forward(self, x: Tensor) -> Tensor:
            if len(x) >= 20:
                x.new_empty(2**50)
            logits: Tensor = net(x)
            return logits

    batches = Batches(40)
    attack = TemperaturePGD(eps=0.01, steps=3, precision="float32", fuse=False)
    labels = labels_of(net, images)
    result = attack(Greedy(), images, labels, batch_size=batches)
    assert batches.size == 10
    assert int((result.success != attack(net, images, labels).success).sum()) <= 1
    with pytest.raises(OutOfMemoryError, match="single sample"):
        attack(lambda x: x.new_empty(2**50), images, labels)


def test_an_evaluation(digits: tuple[Tensor, Tensor]) -> None:
    robust = load_model("digits-at")
    on_cpu = evaluate(robust, digits, attacks=["temperature-pgd"], norm="Linf", eps=0.2, device="cpu")
    records = evaluate(robust, digits, attacks=["temperature-pgd"], norm="Linf", eps=0.2, device="cuda")
    assert next(robust.parameters()).device.type == "cpu"
    np.testing.assert_array_equal(records.correct(), on_cpu.correct())
    assert int((records.robust() != on_cpu.robust()).sum()) <= 0.02 * len(digits[0]) + 1


def test_a_cascade(net: nn.Module, images: Tensor) -> None:
    labels = labels_of(net, images)
    attack = quick(eps=0.004)
    result = attack(net, images, labels)
    assert bool((result.backwards >= result.success.logical_not()).all())
    with torch.no_grad(), full_float32():
        assert torch.equal(net(result.adv_inputs).argmax(dim=1) != labels, result.success)
