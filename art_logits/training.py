"""Adversarial training through the project's own attack loop.

It made the bundled models and those under ``benchmarks/models``; the inner maximisation is
:class:`art_logits.TemperaturePGD`, so whatever strengthens or speeds up the attack does so here.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from . import _checks
from ._files import locked, replacing
from .attack import TemperaturePGD
from .data import Data, as_data
from .prepare import evaluating
from .types import Model

logger = logging.getLogger(__name__)

Method: TypeAlias = Literal["pgd-at", "trades", "standard"]
Augment: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "model.safetensors"
HISTORY = "history.json"


@dataclass(frozen=True)
class Recipe:
    """How a model was trained: every argument of :func:`fit` that shapes the result."""

    model: str
    data: str
    method: Method
    attack: TemperaturePGD
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    beta: float
    ema: float | None
    augment: str
    precision: str
    seed: int

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON holds it; what a resumed run must agree with."""
        return {**self.__dict__, "attack": self.attack.config()}


@dataclass
class History:
    """One row per epoch: epoch, lr, loss, seconds and, with validation data, clean and robust accuracy.

    ``zero_gradients`` is the share of the samples whose loss had no gradient at some step of the inner
    attack; where it grows, the network is dying: lower ``lr``.

    Attributes:
        rows: the epochs, oldest first. Accuracies are fractions, of the averaged weights if there are any.
    """

    rows: list[dict[str, float]] = field(default_factory=list)

    def to_frame(self) -> Any:
        """The rows as a pandas DataFrame (needs the extra ``evaluate``)."""
        from ._extras import require

        return require("pandas", extra="evaluate").DataFrame(self.rows)


def crop_flip(inputs: Tensor, rng: torch.Generator, *, padding: int = 4) -> Tensor:
    """Shift each image by up to ``padding`` pixels into a black border and mirror half of them.

    Args:
        inputs: ``(N, channels, height, width)``.
        rng: source of randomness; the global state is not used.
        padding: largest shift.
    """
    count, _, height, width = inputs.shape
    padded = F.pad(inputs, [padding] * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1, 1, 1), generator=rng)
    rows = top + torch.arange(height).view(1, 1, -1, 1)
    columns = torch.arange(width).view(1, 1, 1, -1).expand(count, 1, 1, width)
    mirrored = torch.rand((count, 1, 1, 1), generator=rng) < 0.5
    columns = left + torch.where(mirrored, columns.flip(-1), columns)
    sample = torch.arange(count).view(-1, 1, 1, 1)
    channel = torch.arange(inputs.shape[1]).view(1, -1, 1, 1)
    return padded[sample, channel, rows, columns]


def _shift(inputs: Tensor, rng: torch.Generator) -> Tensor:
    """Shift by up to two pixels, never mirror: digits are not symmetric."""
    count, _, height, width = inputs.shape
    padded = F.pad(inputs, [2] * 4)
    top, left = torch.randint(0, 5, (2, count), generator=rng).tolist()
    return torch.stack(
        [padded[i, :, t : t + height, s : s + width] for i, (t, s) in enumerate(zip(top, left, strict=True))]
    )


AUGMENTATIONS: dict[str, Augment] = {
    "none": lambda inputs, rng: inputs,
    "crop-flip": crop_flip,
    "shift": _shift,
}


def fit(
    model: nn.Module,
    data: Any,
    *,
    method: Method = "pgd-at",
    attack: TemperaturePGD | None = None,
    validation: Any = None,
    epochs: int = 30,
    batch_size: int = 128,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    beta: float = 6.0,
    ema: float | None = 0.995,
    augment: str = "none",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    device: str | torch.device | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = False,
) -> History:
    """Train ``model`` in place; it ends in eval mode, with the averaged weights if ``ema`` is set.

    ``"pgd-at"`` minimises the cross-entropy of adversarial examples (Madry et al. 2018), ``"trades"``
    the clean cross-entropy plus ``beta`` times ``KL(p(x) || p(x'))`` (Zhang et al. 2019), whose inner
    maximisation ascends that KL, ``"standard"`` the clean cross-entropy. SGD with Nesterov momentum
    and a one-cycle learning rate.

    Args:
        model: maps ``(N, channels, height, width)`` in the data's bounds to logits ``(N, C)``.
        data: anything :func:`art_logits.data.as_data` takes, such as ``(inputs, labels)``.
        method: ``"pgd-at"``, ``"trades"`` or ``"standard"``.
        attack: the inner maximisation; by default 5 steps of eps / 2 at T = 1 in Linf, at the data's
            default eps. TRADES replaces its loss and its temperature.
        validation: data for the clean and robust accuracy after each epoch; the robust one is under
            ``attack`` with twice its steps.
        epochs: passes over the data.
        batch_size: samples per optimiser step.
        lr: largest learning rate.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD.
        beta: weight of the KL in TRADES.
        ema: decay of the exponential moving average of the weights per step, in (0, 1), or None.
        augment: ``"none"``, ``"shift"`` (by up to 2 pixels) or ``"crop-flip"`` (CIFAR's usual one).
        precision: of the passes; ``"auto"`` takes bfloat16 where a short probe finds it faster.
            Weights, losses and the optimiser stay in float32.
        device: where to train; by default where the model is.
        seed: of order, augmentation and random starts. The model's own initialisation is the caller's.
        out: folder for ``checkpoint.pt`` (each epoch), ``model.safetensors`` and ``history.json``.
        resume: continue from the checkpoint in ``out``.
        progress: show a progress bar.

    Returns:
        One row per epoch.

    Raises:
        ValueError: an argument out of its range, or a checkpoint made by another recipe.
        FloatingPointError: the loss became NaN or infinite; the last epoch's checkpoint is kept.
        FileExistsError: ``out`` already holds a training run and ``resume`` is not set.
        BlockingIOError: another process is training into ``out``.
    """
    train, held_out = as_data(data), None if validation is None else as_data(validation)
    device = next(model.parameters()).device if device is None else torch.device(device)
    model.to(device)
    folder = None if out is None else Path(out)
    if precision == "auto" and resume and folder is not None and (folder / CHECKPOINT).exists():
        # A probe may decide otherwise today.
        precision = torch.load(folder / CHECKPOINT, weights_only=True)["recipe"]["precision"]
    recipe = Recipe(
        model=type(model).__qualname__,
        data=train.fingerprint(),
        method=method,
        attack=_inner_attack(method, attack, train),
        epochs=_checks.integer("epochs", epochs, at_least=1),
        batch_size=_checks.integer("batch_size", batch_size, at_least=1),
        lr=_checks.number("lr", lr, above=0.0),
        momentum=0.0 if momentum == 0 else _fraction("momentum", momentum),
        weight_decay=_checks.number("weight_decay", weight_decay, at_least=0.0),
        beta=_checks.number("beta", beta, at_least=0.0),
        ema=None if ema is None else _fraction("ema", ema),
        augment=_checks.choice("augment", augment, AUGMENTATIONS),
        precision=_pick_precision(precision, model, train, device),
        seed=_checks.integer("seed", seed, at_least=0),
    )
    run = _Run(model, recipe, train, device, folder)
    run.prepare_folder(resume=resume)
    with locked(folder):
        while run.epoch < recipe.epochs:
            run.train_epoch(progress=progress)
            run.validate(held_out)
            run.save()
        run.finish()
    return run.history


def _fraction(name: str, value: float) -> float:
    if not 0 < _checks.number(name, value) < 1:
        raise ValueError(f"{name} must lie in (0, 1), got {value!r}")
    return float(value)


def _inner_attack(method: str, attack: TemperaturePGD | None, data: Data) -> TemperaturePGD:
    _checks.choice("method", method, ("pgd-at", "trades", "standard"))
    if attack is None:
        eps = data.default_eps["Linf"]
        attack = TemperaturePGD(eps=eps, steps=5, step_size=eps / 2, temperature=1.0, bounds=data.bounds)
    if attack.targeted:
        raise ValueError("attack must be untargeted: training has no target classes")
    if method == "trades":
        # Its inner KL compares with the clean probabilities, which are those at T = 1.
        attack = replace(attack, temperature=1.0)
    # Training wants the strongest example of every sample, also of those that are already wrong.
    return replace(attack, stop_on_success=False, keep="last")


def _pick_precision(precision: str, model: nn.Module, data: Data, device: torch.device) -> str:
    _checks.choice("precision", precision, ("auto", "float32", "bfloat16"))
    if precision != "auto":
        return precision
    inputs = data.batch(slice(0, 64))[0].to(device)
    seconds = {name: _time_passes(_Cast(model, name), inputs) for name in ("float32", "bfloat16")}
    return min(seconds, key=lambda name: seconds[name])


def _time_passes(model: nn.Module, inputs: Tensor) -> float:
    """Best of three forward and backward passes, in seconds, after one that warms up."""
    times = []
    with evaluating(model):
        for _ in range(4):
            began = time.perf_counter()
            probe = inputs.clone().requires_grad_()
            torch.autograd.grad(model(probe).sum(), probe)[0].sum().item()
            times.append(time.perf_counter() - began)
    return min(times[1:])


class _Cast(nn.Module):
    """The model under autocast, with float32 logits, in the memory layout that convolutions like."""

    def __init__(self, model: nn.Module, precision: str) -> None:
        super().__init__()
        self.model, self.enabled = model, precision == "bfloat16"

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.enabled):
            logits: Tensor = self.model(inputs)
        return logits.float()


class _Run:
    """State of one training run: model, average, optimiser, schedule, history."""

    def __init__(
        self, model: nn.Module, recipe: Recipe, data: Data, device: torch.device, out: Path | None
    ) -> None:
        self.model, self.recipe, self.data, self.device, self.out = model, recipe, data, device, out
        self.history, self.epoch, self.lost = History(), 0, 0
        self.net = _Cast(model, recipe.precision)
        self.average = _average(model, recipe.ema)
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
        )
        self.batches = -(-len(data) // recipe.batch_size)
        total = recipe.epochs * self.batches
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            max_lr=recipe.lr,
            total_steps=total,
            # The scheduler divides by the length of its warm-up less one step: a quarter of 4 is no length.
            pct_start=0.25 if total != 4 else 0.5,
            cycle_momentum=False,
        )

    @property
    def averaged(self) -> nn.Module:
        """The model whose accuracy counts: the average where there is one."""
        return self.model if self.average is None else self.average.module

    def prepare_folder(self, *, resume: bool) -> None:
        if self.out is None:
            return
        path = self.out / CHECKPOINT
        if path.exists() and not resume:
            raise FileExistsError(
                f"out already holds a training run ({path}): give another folder, or pass resume=True"
            )
        if path.exists():
            self._restore(torch.load(path, map_location=self.device, weights_only=True))
        self.out.mkdir(parents=True, exist_ok=True)

    def _restore(self, state: dict[str, Any]) -> None:
        there, here = state["recipe"], json.loads(json.dumps(self.recipe.to_json()))
        differing = [
            f"{key}: {there.get(key)!r} there, {here[key]!r} now"
            for key in here
            if here[key] != there.get(key)
        ]
        if differing:
            raise ValueError(
                f"out holds a run of another recipe, so it cannot be resumed: {'; '.join(differing)}"
            )
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.history.rows, self.epoch = state["history"], state["epoch"]

    def save(self) -> None:
        if self.out is None:
            return
        state = {
            "recipe": json.loads(json.dumps(self.recipe.to_json())),
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": self.history.rows,
            "epoch": self.epoch,
        }
        with replacing(self.out / CHECKPOINT) as path:
            torch.save(state, path)

    def train_epoch(self, *, progress: bool) -> None:
        began, total, self.lost = time.perf_counter(), 0.0, 0
        rng = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.epoch)
        chunks = torch.randperm(len(self.data), generator=rng).tensor_split(self.batches)
        label = f"epoch {self.epoch + 1}/{self.recipe.epochs}"
        for number, chunk in enumerate(tqdm(chunks, desc=label, disable=not progress, leave=False)):
            loss = self._step(chunk, rng)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss became {loss} in epoch {self.epoch + 1}, batch {number}: lower lr; "
                    "the last epoch's checkpoint is kept"
                )
            total += loss * len(chunk)
        if not all(bool(weight.isfinite().all()) for weight in self.model.parameters()):
            raise FloatingPointError(
                f"weights became NaN or infinite at the end of epoch {self.epoch + 1}: lower lr; "
                "the last epoch's checkpoint is kept"
            )
        self.epoch += 1
        self.history.rows.append(
            {
                "epoch": self.epoch,
                "lr": float(self.schedule.get_last_lr()[0]),
                "loss": total / len(self.data),
                "zero_gradients": self.lost / len(self.data),
                "seconds": time.perf_counter() - began,
            }
        )

    def _step(self, chunk: Tensor, rng: torch.Generator) -> float:
        inputs, labels = self.data.batch(chunk)
        inputs = AUGMENTATIONS[self.recipe.augment](inputs, rng).to(self.device)
        labels = labels.to(self.device)
        self.model.eval()
        perturbed = self._perturb(inputs, labels, self.data.ids[chunk])
        self.model.train()
        loss = self._loss(inputs, perturbed, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return float(loss.detach())

    def _perturb(self, inputs: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        """The inner maximisation, from a start that differs from epoch to epoch."""
        if self.recipe.method == "standard":
            return inputs
        attack = replace(self.recipe.attack, seed=self.recipe.seed * 1_000_003 + self.epoch)
        if self.recipe.method == "trades":
            with torch.no_grad():
                clean = self.net(inputs).log_softmax(dim=1)
            # Nobody leaves the batch before its end (stop_on_success=False), so row i stays sample i.
            attack = replace(attack, loss=lambda z, y: _kl(clean, z))
        result = attack(self.net, inputs, labels, ids)
        self.lost += int((result.zero_gradients > 0).sum())
        return result.adv_inputs

    def _loss(self, inputs: Tensor, perturbed: Tensor, labels: Tensor) -> Tensor:
        if self.recipe.method != "trades":
            return F.cross_entropy(self.net(perturbed), labels)
        # One pass over both, so that batch norm sees clean and perturbed images alike.
        clean, moved = self.net(torch.cat([inputs, perturbed])).chunk(2)
        robust = _kl(clean.log_softmax(dim=1), moved).mean()
        return F.cross_entropy(clean, labels) + self.recipe.beta * robust

    def validate(self, data: Data | None) -> None:
        row = self.history.rows[-1]
        if data is not None:
            attack = _doubled(self.recipe.attack)
            net = _Cast(self.averaged, self.recipe.precision)
            row["clean_accuracy"], row["robust_accuracy"] = _accuracies(net, data, attack, self.device)
        logger.info("%s", ", ".join(f"{key} {value:.4g}" for key, value in row.items()))

    def finish(self) -> None:
        if self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
        self.model.eval()
        if self.out is None:
            return
        from ._extras import require

        save_file = require("safetensors.torch", extra="evaluate").save_file
        with replacing(self.out / WEIGHTS) as path:
            save_file({name: t.contiguous() for name, t in self.model.state_dict().items()}, path)
        with replacing(self.out / HISTORY) as path:
            path.write_text(
                json.dumps({"recipe": self.recipe.to_json(), "epochs": self.history.rows}, indent=1)
            )


def _doubled(attack: TemperaturePGD) -> TemperaturePGD:
    """The attack with twice its steps; a schedule of temperatures holds each of its values for two."""
    temperature = attack.temperature
    if isinstance(temperature, list | tuple):
        temperature = [value for value in temperature for _ in range(2)]
    return replace(attack, steps=2 * attack.steps, temperature=temperature, stop_on_success=True)


def _average(model: nn.Module, decay: float | None) -> AveragedModel | None:
    if decay is None:
        return None
    # Batch norm's statistics are averaged too: those of today's weights do not fit averaged ones.
    rule = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(model, multi_avg_fn=rule, use_buffers=True)
    return average.eval()


def _kl(log_p: Tensor, logits: Tensor) -> Tensor:
    """``KL(p || softmax(logits))`` per sample, ``(N,)``."""
    return F.kl_div(logits.log_softmax(dim=1), log_p, reduction="none", log_target=True).sum(dim=1)


def _accuracies(
    model: Model, data: Data, attack: TemperaturePGD, device: torch.device
) -> tuple[float, float]:
    """Clean and robust accuracy, as fractions."""
    clean = robust = 0
    for chunk in torch.split(torch.arange(len(data)), 256):
        inputs, labels = (tensor.to(device) for tensor in data.batch(chunk))
        # The attack sees to its own eval mode; without it batch norm would learn from held-out data.
        with torch.no_grad(), evaluating(model):
            clean += int((model(inputs).argmax(dim=1) == labels).sum())
        robust += int((~attack(model, inputs, labels, data.ids[chunk]).success).sum())
    return clean / len(data), robust / len(data)
