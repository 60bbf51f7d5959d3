from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from art_logits import TemperaturePGD, training_loop
from art_logits.data import as_data
from art_logits.training import CHECKPOINT, HISTORY, WEIGHTS, History, crop_flip, fit

Pair = tuple[Tensor, Tensor]


def blobs(count: int = 96, seed: int = 0) -> Pair:
    """Two Gaussian blobs as images ``(count, 1, 4, 4)``, far enough apart to survive eps 0.05."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    centers = torch.where(labels == 0, 0.35, 0.65).view(-1, 1, 1, 1)
    return (centers + 0.1 * torch.randn(count, 1, 4, 4, generator=rng)).clamp(0, 1), labels


def network(seed: int = 0, *, norm: bool = True) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        middle = nn.BatchNorm1d(8) if norm else nn.Identity()
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), middle, nn.ReLU(), nn.Linear(8, 2))


ATTACK = TemperaturePGD(eps=0.05, steps=2, step_size=0.04, temperature=1.0)
QUICK: dict[str, Any] = {
    "attack": ATTACK,
    "batch_size": 32,
    "lr": 0.05,
    "precision": "float32",
    "epochs": 3,
    "ema": None,
}


class Exploding(nn.Module):
    """Logits become NaN in training mode after so many training passes."""

    def __init__(self, model: nn.Module, passes: int) -> None:
        super().__init__()
        self.model, self.passes = model, passes

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs)
        self.passes -= self.training
        return logits if self.passes >= 0 or not self.training else logits * float("nan")


def train(
    data: Pair | None = None, *, model: nn.Module | None = None, **options: Any
) -> tuple[nn.Module, History]:
    model = network() if model is None else model
    history = fit(model, blobs() if data is None else data, **{**QUICK, **options})
    return model, history


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(first: nn.Module | dict[str, Tensor], second: nn.Module | dict[str, Tensor]) -> None:
    one = weights(first) if isinstance(first, nn.Module) else first
    other = weights(second) if isinstance(second, nn.Module) else second
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def without_time(history: History) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history.rows]


# What training does -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pgd-at", "trades", "standard"])
@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_loss_falls_and_the_accuracies_rise(method: Any, ema: float | None) -> None:
    model, history = train(method=method, ema=ema, epochs=10, validation=blobs(64, seed=1))
    first, last = history.rows[0], history.rows[-1]
    assert [row["epoch"] for row in history.rows] == list(range(1, 11))
    assert last["loss"] < 0.7 * first["loss"]
    assert last["clean_accuracy"] >= 0.95
    assert last["robust_accuracy"] >= 0.8
    assert last["robust_accuracy"] <= last["clean_accuracy"]
    assert not any(module.training for module in model.modules())
    x, labels = blobs(64, seed=1)
    assert float((model(x).argmax(dim=1) == labels).float().mean()) == pytest.approx(last["clean_accuracy"])


def test_adversarial_training_is_more_robust_than_standard_training() -> None:
    """One pixel separates the classes perfectly but not robustly, the others robustly but not perfectly."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    x = torch.where(labels == 0, 0.4, 0.6).view(-1, 1, 1, 1) + 0.1 * torch.randn(200, 1, 4, 4, generator=rng)
    x[:, 0, 0, 0] = torch.where(labels == 0, 0.45, 0.55)
    x = x.clamp(0, 1)
    attack = TemperaturePGD(eps=0.08, steps=3, step_size=0.04, temperature=1.0)
    robust = {}
    for method in ("standard", "pgd-at"):
        model, _ = train((x, labels), method=method, attack=attack, epochs=15)
        robust[method] = float((~attack(model, x, labels).success).float().mean())
    assert robust["pgd-at"] >= robust["standard"]
    assert robust["pgd-at"] > 0.6


def test_the_average_trails_the_weights() -> None:
    plain, _ = train(ema=None)
    slow, _ = train(ema=0.95)
    start = weights(network())
    for name, end in weights(plain).items():
        if end.is_floating_point() and "running" not in name:
            travelled = (end - start[name]).norm()
            assert 0 < float((weights(slow)[name] - start[name]).norm()) < float(travelled), name


def test_the_average_of_a_single_step_is_the_step() -> None:
    """The first update of the average copies the weights."""
    once: dict[str, Any] = {"epochs": 1, "batch_size": 96}
    assert_same_weights(train(ema=0.9, **once)[0], train(ema=None, **once)[0])


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("method", ["pgd-at", "trades", "standard"])
def test_training_is_reproducible_and_watching_it_changes_nothing(method: Any, ema: float | None) -> None:
    """Validation must not train: batch norm, for one, would learn from held-out data."""
    watched, seen = train(method=method, ema=ema, validation=blobs(64, seed=1))
    alone, unseen = train(method=method, ema=ema)
    assert_same_weights(watched, alone)
    losses = [[row["loss"] for row in history.rows] for history in (seen, unseen)]
    assert losses[0] == losses[1]
    assert "clean_accuracy" not in unseen.rows[0]


def test_trades_adds_beta_times_the_divergence() -> None:
    """The loss of a first step is linear in beta, with the clean cross-entropy at beta = 0."""

    def loss(beta: float, **options: Any) -> float:
        _, history = train(method="trades", beta=beta, epochs=1, batch_size=96, **options)
        return history.rows[0]["loss"]

    clean, divergence = loss(0.0), loss(1.0) - loss(0.0)
    assert divergence > 1e-4
    assert loss(6.0) == pytest.approx(clean + 6 * divergence, rel=1e-4)
    # Nothing diverges in a ball of radius 0: batch norm sees each image twice, as the standard pass once.
    still = TemperaturePGD(eps=0.0, steps=1, step_size=0.01, temperature=1.0)
    _, standard = train(method="standard", epochs=1, batch_size=96)
    assert loss(6.0, attack=still) == pytest.approx(standard.rows[0]["loss"], rel=1e-5)


def test_random_starts_differ_from_epoch_to_epoch() -> None:
    """With no steps at all, what the model trains on is the random start."""
    seen: list[Tensor] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = network(norm=False)

        def forward(self, inputs: Tensor) -> Tensor:
            if self.training:
                seen.append(inputs.detach().flatten(1))
            logits: Tensor = self.model(inputs)
            return logits

    levels = torch.tensor([0.2, 0.4, 0.6, 0.8])
    data = (levels.view(-1, 1, 1, 1).expand(4, 1, 4, 4).clone(), torch.tensor([0, 0, 1, 1]))
    train(data, model=Watched(), attack=TemperaturePGD(eps=0.05, steps=0), epochs=2, batch_size=4)
    # The order differs between epochs; brightness tells the samples apart.
    noise = [x[x.mean(dim=1).argsort()] - levels[:, None] for x in seen]
    assert len(noise) == 2
    assert all(0.01 < float(each.abs().amax()) <= 0.05 + 1e-6 for each in noise)
    assert bool(((noise[0] - noise[1]).abs().amax(dim=1) > 0.01).all())


def test_the_seed_matters() -> None:
    first, second = (weights(train(seed=seed)[0])["1.weight"] for seed in (0, 1))
    assert not torch.equal(first, second)


def test_no_global_random_state() -> None:
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    train(augment="crop-flip", validation=blobs(32, seed=1))
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize("augment", ["none", "shift", "crop-flip"])
def test_augmentations_train(augment: str) -> None:
    _, history = train(augment=augment)
    assert np.isfinite(history.rows[-1]["loss"])


@pytest.mark.parametrize("samples", [33, 32, 1 + 32 * 3])
@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_any_number_of_batches(samples: int, epochs: int) -> None:
    """Batches of nearly equal size: none of a single sample, which batch norm would refuse."""
    _, history = train(blobs(samples), epochs=epochs, method="standard")
    assert len(history.rows) == epochs


def test_bfloat16_and_auto_precision() -> None:
    for precision in ("bfloat16", "auto"):
        model, history = train(precision=precision, epochs=1)
        assert np.isfinite(history.rows[0]["loss"])
        assert all(p.dtype == torch.float32 for p in model.parameters())


def test_without_an_attack_the_data_s_eps_is_used(tmp_path: Path) -> None:
    train(attack=None, out=tmp_path, epochs=1)
    attack = json.loads((tmp_path / HISTORY).read_text())["recipe"]["attack"]
    eps = as_data(blobs()).default_eps["Linf"]
    assert attack["eps"] == eps
    assert attack["step_size"] == eps / 2
    assert attack["stop_on_success"] is False
    assert attack["keep"] == "last"


def test_a_temperature_schedule_is_stretched_for_validation() -> None:
    attack = TemperaturePGD(eps=0.05, steps=2, step_size=0.04, temperature=(1.0, 0.5))
    _, history = train(attack=attack, validation=blobs(32, seed=1), epochs=1)
    assert 0 <= history.rows[0]["robust_accuracy"] <= 1


def test_history_as_a_frame() -> None:
    frame = train(epochs=2)[1].to_frame()
    assert len(frame) == 2
    assert {"epoch", "lr", "loss", "zero_gradients", "seconds"} <= set(frame.columns)


def test_epochs_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="art_logits.training_loop"):
        train(epochs=2)
    messages = [r.getMessage() for r in caplog.records if r.name == "art_logits.training_loop"]
    assert len(messages) == 2
    assert "epoch 1" in messages[0]


# Folders, checkpoints, resuming -----------------------------------------------------------------------


class Interrupted(nn.Module):
    """A model that stops its training after so many passes, as a user with Ctrl-C does."""

    def __init__(self, model: nn.Module, passes: int) -> None:
        super().__init__()
        self.model, self.passes = model, passes

    def forward(self, inputs: Tensor) -> Tensor:
        if self.passes == 0:
            raise KeyboardInterrupt
        self.passes -= 1
        logits: Tensor = self.model(inputs)
        return logits


@pytest.mark.parametrize("method", ["pgd-at", "trades"])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_resuming_is_as_if_never_interrupted(tmp_path: Path, method: Any, ema: float | None) -> None:
    options: dict[str, Any] = {"method": method, "ema": ema, "validation": blobs(32, seed=1)}
    options |= {"augment": "shift", "epochs": 4}
    whole, history = train(model=Interrupted(network(), -1), **options)
    with pytest.raises(KeyboardInterrupt):
        train(model=Interrupted(network(), 45), out=tmp_path, **options)
    done = torch.load(tmp_path / CHECKPOINT, weights_only=True)["epoch"]
    assert 0 < done < 4
    assert not (tmp_path / WEIGHTS).exists()
    # Another initialisation: everything comes from the checkpoint.
    resumed, rest = train(model=Interrupted(network(7), -1), out=tmp_path, resume=True, **options)
    assert_same_weights(resumed, whole)
    assert without_time(rest) == without_time(history)


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    trained, history = train(out=tmp_path, ema=0.9)
    again, read = train(model=network(7), out=tmp_path, ema=0.9, resume=True)
    assert_same_weights(again, trained)
    assert read.rows == history.rows
    assert not any(module.training for module in again.modules())


def test_what_lies_in_the_folder(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    out = tmp_path / "new" / "run"
    model, history = train(out=out, ema=0.9)
    assert sorted(path.name for path in out.iterdir()) == sorted([CHECKPOINT, HISTORY, WEIGHTS])
    assert_same_weights(load_file(out / WEIGHTS), model)
    report = json.loads((out / HISTORY).read_text())
    assert report["epochs"] == history.rows
    assert report["recipe"]["method"] == "pgd-at"
    assert report["recipe"]["attack"]["eps"] == 0.05


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    train(out=tmp_path, epochs=1)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(FileExistsError, match=r"out already holds a training run .*pass resume=True"):
        train(out=tmp_path, epochs=1)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.06}, r"another recipe, so it cannot be resumed: lr: 0.05 there, 0.06 now"),
        ({"method": "trades"}, r"method: 'pgd-at' there, 'trades' now"),
        ({"attack": TemperaturePGD(eps=0.06)}, "attack: "),
        ({"data": blobs(seed=9)}, r"data: '\w+' there, '\w+' now"),
        ({"model": Exploding(network(), passes=99)}, r"model: 'Sequential' there, 'Exploding' now"),
        ({"ema": 0.9, "seed": 3}, r"ema: None there, 0.9 now; seed: 0 there, 3 now"),
    ],
)
def test_a_run_of_another_recipe_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    train(out=tmp_path, epochs=1)
    with pytest.raises(ValueError, match=message):
        train(out=tmp_path, epochs=1, resume=True, **change)


def test_resuming_where_nothing_is_begins(tmp_path: Path) -> None:
    _, history = train(out=tmp_path / "new", epochs=1, resume=True)
    assert len(history.rows) == 1


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        FloatingPointError,
        match=r"the loss became nan in epoch 2, batch 1: lower the learning rate; .* checkpoint is kept",
    ):
        train(model=Exploding(network(), passes=4), out=tmp_path)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert state["epoch"] == 1
    assert all(bool(tensor.isfinite().all()) for tensor in state["model"].values())
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


def test_weights_that_are_not_finite_stop_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    step = torch.optim.SGD.step

    def break_the_last(self: torch.optim.SGD, *args: Any) -> None:
        step(self, *args)
        if all(group["lr"] < 0.01 for group in self.param_groups):
            next(iter(self.param_groups[0]["params"])).data.fill_(torch.nan)

    # One batch an epoch: no further loss shows what the last step did.
    monkeypatch.setattr(torch.optim.SGD, "step", break_the_last)
    with pytest.raises(FloatingPointError, match="weights became NaN or infinite at the end of epoch 1"):
        train(out=tmp_path, epochs=1, batch_size=96, lr=0.009)
    assert list(tmp_path.iterdir()) == []


def test_auto_precision_is_that_of_the_run_that_is_resumed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train(out=tmp_path, epochs=1, precision="bfloat16")
    monkeypatch.setattr(training_loop, "choose_precision", lambda model, inputs, fuse: "float32")
    train(out=tmp_path, epochs=1, precision="auto", resume=True)
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["recipe"]["precision"] == "bfloat16"


def test_trades_measures_its_divergence_at_temperature_one(tmp_path: Path) -> None:
    attack = TemperaturePGD(eps=0.05, steps=2, step_size=0.02, temperature="gap")
    train(method="trades", attack=attack, epochs=1, out=tmp_path)
    assert json.loads((tmp_path / HISTORY).read_text())["recipe"]["attack"]["temperature"] == 1.0


# Refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "trade"}, ValueError, r"method must be one of pgd-at, trades, standard, .*mean trades"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1"),
        ({"epochs": 1.5}, TypeError, "epochs must be an integer"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"lr": 0}, ValueError, "lr must be a finite number > 0"),
        ({"momentum": -0.1}, ValueError, r"momentum must lie in \(0, 1\), got -0.1"),
        ({"momentum": 1.0}, ValueError, r"momentum must lie in \(0, 1\), got 1.0"),
        ({"weight_decay": -1}, ValueError, "weight_decay must be a finite number >= 0"),
        ({"beta": float("nan")}, ValueError, "beta must be a finite number >= 0"),
        ({"ema": 1.0}, ValueError, r"ema must lie in \(0, 1\), got 1.0"),
        ({"ema": 0}, ValueError, r"ema must lie in \(0, 1\), got 0"),
        ({"augment": "flip"}, ValueError, "augment must be one of none, crop-flip, shift"),
        ({"precision": "float16"}, ValueError, "precision must be one of auto, float32, bfloat16"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"attack": TemperaturePGD(targeted=True)}, ValueError, "attack must be untargeted"),
    ],
)
def test_refused_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = network()
    before = weights(model)
    with pytest.raises(error, match=message):
        train(model=model, **options)
    assert_same_weights(model, before)


# Augmentations ----------------------------------------------------------------------------------------


def shifted(image: Tensor, padding: int, *, mirrors: bool) -> Iterator[Tensor]:
    """Every image that a crop may give, ``(channels, height, width)``."""
    height, width = image.shape[-2:]
    padded = nn.functional.pad(image, [padding] * 4)
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            window = padded[:, top : top + height, left : left + width]
            yield window
            if mirrors:
                yield window.flip(-1)


def shift(inputs: Tensor, rng: torch.Generator) -> Tensor:
    from art_logits.training_loop import AUGMENTATIONS

    return AUGMENTATIONS["shift"](inputs, rng)


@pytest.mark.parametrize(
    ("augment", "padding", "mirrors"), [(crop_flip, 4, True), (shift, 2, False)], ids=["crop-flip", "shift"]
)
@given(seed=st.integers(0, 2**31), shape=st.tuples(st.integers(1, 3), st.integers(3, 6), st.integers(3, 6)))
@settings(max_examples=15)
def test_augmented_images_are_windows_of_the_padded_image(
    augment: Callable[[Tensor, torch.Generator], Tensor],
    padding: int,
    mirrors: bool,
    seed: int,
    shape: tuple[int, int, int],
) -> None:
    inputs = torch.rand(4, *shape, generator=torch.Generator().manual_seed(seed))
    before = inputs.clone()
    found = augment(inputs, torch.Generator().manual_seed(seed))
    assert found.shape == inputs.shape
    assert torch.equal(inputs, before)
    assert torch.equal(augment(inputs, torch.Generator().manual_seed(seed)), found)
    for image, result in zip(inputs, found, strict=True):
        assert any(torch.equal(result, window) for window in shifted(image, padding, mirrors=mirrors))


def test_crops_use_all_shifts_and_mirror_about_half() -> None:
    """A single white pixel tells where each image went; a second one beside it, whether it was mirrored."""
    inputs = torch.zeros(3000, 1, 9, 9)
    inputs[:, 0, 4, 4], inputs[:, 0, 4, 5] = 1.0, 0.5
    found = crop_flip(inputs, torch.Generator().manual_seed(0), padding=2)
    places = (found == 1).nonzero()
    assert len(places) == 3000
    assert {(row, column) for _, _, row, column in places.tolist()} == {
        (row, column) for row in range(2, 7) for column in range(2, 7)
    }
    right = torch.roll(found, -1, dims=3)[tuple(places.T)] == 0.5
    assert 0.45 < float(right.float().mean()) < 0.55
