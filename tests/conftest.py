"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several processes of several threads each would wait for one another.
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)

# The same examples on every machine, and no deadlines on a busy one.
settings.register_profile("art-logits", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("art-logits")


def _logit_array(values: Any, num_classes: int) -> Any:
    import pyarrow as pa

    flat = np.ascontiguousarray(values, dtype=np.float32).ravel()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), num_classes)


def _columns(prefix: str, labels: Any, clean: Any, attacked: dict[str, Any]) -> dict[str, Any]:
    """Columns of one model, from its clean logits and its logits under each attack."""
    n, num_classes = clean.shape
    columns: dict[str, Any] = {
        f"{prefix}clean_prediction": clean.argmax(axis=1),
        f"{prefix}clean_logits": _logit_array(clean, num_classes),
    }
    for name, logits in attacked.items():
        prediction = logits.argmax(axis=1)
        columns |= {
            f"{prefix}{name}.prediction": prediction,
            f"{prefix}{name}.success": prediction != labels,
            f"{prefix}{name}.distance": np.full(n, 0.1),
            f"{prefix}{name}.logits": _logit_array(logits, num_classes),
            f"{prefix}{name}.forwards": np.full(n, 21),
            f"{prefix}{name}.backwards": np.full(n, 20),
            f"{prefix}{name}.zero_gradients": np.zeros(n),
            f"{prefix}{name}.success_8bit": prediction != labels,
        }
    return columns


@pytest.fixture(scope="session")
def make_table() -> Callable[..., Any]:
    """Builds a table of records from labels and logits; predictions and success follow from these."""

    def make(
        labels: Sequence[int],
        clean: Any,
        attacked: dict[str, Any],
        *,
        reference: tuple[Any, dict[str, Any]] | None = None,
        sample_ids: Sequence[int] | None = None,
    ) -> Any:
        import pyarrow as pa

        from art_logits.records import records_schema

        target, clean = np.asarray(labels), np.asarray(clean, dtype=np.float32)
        ids = np.arange(len(target)) if sample_ids is None else np.asarray(sample_ids)
        columns: dict[str, Any] = {"sample_id": ids, "label": target}
        columns |= _columns("", target, clean, {k: np.asarray(v) for k, v in attacked.items()})
        if reference is not None:
            logits = {k: np.asarray(v) for k, v in reference[1].items()}
            columns |= _columns("reference.", target, np.asarray(reference[0]), logits)
        schema = records_schema(list(attacked), clean.shape[1], reference=reference is not None)
        arrays = [
            columns[field.name]
            if isinstance(columns[field.name], pa.Array)
            else pa.array(columns[field.name]).cast(field.type)
            for field in schema
        ]
        return pa.Table.from_arrays(arrays, schema=schema)

    return make


@pytest.fixture(scope="session")
def random_table(make_table: Callable[..., Any]) -> Callable[..., Any]:
    """Builds a table of records from random logits; the attacks are not always worse than no attack."""

    def make(
        n: int = 20, num_classes: int = 3, *, seed: int = 0, reference: bool = False, **options: Any
    ) -> Any:
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, num_classes, n)

        def model() -> tuple[Any, dict[str, Any]]:
            clean = rng.normal(size=(n, num_classes))
            clean[np.arange(n), labels] += 2
            return clean, {name: clean + rng.normal(size=clean.shape) for name in ("pgd", "tpgd")}

        clean, attacked = model()
        return make_table(labels, clean, attacked, reference=model() if reference else None, **options)

    return make


@pytest.fixture(scope="session")
def thumbnails() -> Callable[..., Any]:
    """Builds thumbnails of samples, each for every kind; larger scores first unless they are given."""

    def make(kinds: Sequence[str], sample_ids: Sequence[int], scores: Sequence[float] | None = None) -> Any:
        import pyarrow as pa

        from art_logits.album import png
        from art_logits.records import thumbnails_schema

        picture = png(torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)))
        rows = [
            {
                **{"kind": kind, "score": score, "sample_id": identity, "attack": "pgd"},
                **dict.fromkeys(("clean", "adversarial", "difference"), picture),
                "largest_difference": 0.1,
            }
            for kind in kinds
            for identity, score in zip(sample_ids, scores or range(len(sample_ids), 0, -1), strict=True)
        ]
        return pa.Table.from_pylist(rows, schema=thumbnails_schema())

    return make


@pytest.fixture(scope="session")
def make_manifest() -> Callable[..., dict[str, Any]]:
    """Builds a manifest; keywords replace entries of its identity."""

    def make(**identity: Any) -> dict[str, Any]:
        return {
            "format": 1,
            "identity": {
                "model": {"name": "net", "hash": "aa"},
                "reference": None,
                "data": {"name": "digits", "hash": "dd"},
                "attacks": {"pgd": {"steps": 20, "eps": 0.1}, "tpgd": {"steps": 20}},
                "bounds": [0.0, 1.0],
                "seed": 0,
                "part_size": 8,
                **identity,
            },
            "versions": {"torch": "2.0"},
            "command": "art-logits evaluate",
            "complete": True,
        }

    return make


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


class ExactModel(nn.Module):
    """A float64 model, linear or quadratic, whose result for a sample cannot depend on the batch.

    Elementwise products and row sums only: matrix products choose their kernels by the batch size.
    """

    def __init__(self, classes: int, size: int, *, seed: int = 0, quadratic: float = 0.0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        weight, curve = torch.randn(2, classes, size, generator=rng, dtype=torch.float64)
        self.weight, self.curve = nn.Parameter(weight), nn.Parameter(quadratic * curve)
        # Boundaries pass through the middle of the unit cube, so that small steps change predictions.
        self.bias = nn.Parameter(-(0.5 * self.weight + 0.25 * self.curve).detach().sum(dim=1))

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs.flatten(1).double()
        rows = zip(self.weight, self.curve, self.bias, strict=True)
        return torch.stack([(x * w + x * x * c).sum(dim=1) + b for w, c, b in rows], dim=1)


class Recorder(nn.Module):
    """Wraps a model and notes each pass: whether it builds a graph, its inputs, its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.calls: list[tuple[bool, Tensor, Tensor]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs)
        self.calls.append((torch.is_grad_enabled(), inputs.detach().clone(), logits.detach().clone()))
        return logits

    @property
    def rows(self) -> list[int]:
        return [len(x) for _, x, _ in self.calls]

    @property
    def backward_rows(self) -> list[int]:
        return [len(x) for graph, x, _ in self.calls if graph]


def _convnet(seed: int = 0, classes: int = 5) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(72, classes),
        )
        net[1].running_mean.uniform_(-0.1, 0.1)
        net[1].running_var.uniform_(0.05, 0.2)
    net.eval()
    with torch.no_grad():
        # Centred and spread out, so that every class is predicted somewhere.
        net[-1].bias -= net(_images(256, seed=99)).mean(dim=0)
        net[-1].weight *= 10
        net[-1].bias *= 10
    return net


def _images(count: int, *, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand((count, 1, 8, 8), generator=rng, dtype=dtype)


def _predict(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        labels: Tensor = model(inputs).argmax(dim=1)
    return labels


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Helpers come as fixtures: in pytest's importlib mode a test cannot import its conftest.


@pytest.fixture(scope="session")
def images() -> Callable[..., Tensor]:
    """``images(count, seed=, dtype=)``: uniform images ``(count, 1, 8, 8)``."""
    return _images


@pytest.fixture(scope="session")
def predict() -> Callable[[nn.Module, Tensor], Tensor]:
    """``predict(model, inputs)``: predicted classes ``(N,)``."""
    return _predict


@pytest.fixture(scope="session")
def make_exact() -> type[ExactModel]:
    return ExactModel


@pytest.fixture(scope="session")
def record() -> type[Recorder]:
    return Recorder


@pytest.fixture
def net() -> nn.Sequential:
    """A small float32 network for ``(N, 1, 8, 8)`` with batch norm and five classes, in eval mode."""
    return _convnet()


@pytest.fixture
def linear() -> ExactModel:
    """Three classes, 8 x 8 pixels, float64."""
    return ExactModel(3, 64)


@pytest.fixture
def curved() -> ExactModel:
    """As ``linear``, with logits quadratic in the pixels: steps can overshoot."""
    return ExactModel(3, 64, quadratic=2.0)


@pytest.fixture(scope="session")
def distilled() -> nn.Module:
    """A student distilled at temperature 20 (Papernot et al. 2016) and used at 1: enormous logits."""

    from art_logits.data import load_data

    def train(target: Tensor | None) -> nn.Module:
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        goal: Tensor = labels if target is None else target
        for _ in range(300):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images) / 20, goal).backward()
            optimizer.step()
        return net.eval()

    with torch.random.fork_rng():
        torch.manual_seed(0)
        data = load_data("digits", split="train")
        images, labels = data.batch(slice(0, len(data)))
        return train((train(None)(images) / 20).softmax(dim=1).detach())


@pytest.fixture(scope="session")
def lively() -> Callable[..., nn.Module]:
    """``lively(model, seed=0)``: its batch norms get values that a wrong fold would not survive."""

    def made_lively(model: nn.Module, seed: int = 0) -> nn.Module:
        rng = torch.Generator().manual_seed(seed)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
                module.running_mean.copy_(torch.randn(module.num_features, generator=rng))
                module.running_var.copy_(0.1 + torch.rand(module.num_features, generator=rng))
                if module.affine:
                    module.weight.data.copy_(0.5 + torch.rand(module.num_features, generator=rng))
                    module.bias.data.copy_(torch.randn(module.num_features, generator=rng))
        return model.eval()

    return made_lively
