"""Adversarial training through the project's own attack loop.

It made the bundled models and those under ``benchmarks/models``; the inner maximisation is
:class:`art_logits.TemperaturePGD`, so whatever strengthens or speeds up the attack does so here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor, nn

from . import _checks
from .attack import TemperaturePGD
from .prepare import Precision, evaluating
from .training_loop import (
    CHECKPOINT,
    HISTORY,
    WEIGHTS,
    Batch,
    DataSource,
    History,
    LoopRecipe,
    TrainingRun,
    crop_flip,
    kl_divergence,
    pick_precision,
    settle_place,
    training_attack,
)

__all__ = ["CHECKPOINT", "HISTORY", "WEIGHTS", "History", "Method", "Recipe", "crop_flip", "fit"]

Method: TypeAlias = Literal["pgd-at", "trades", "standard"]


@dataclass(frozen=True, kw_only=True)
class Recipe(LoopRecipe):
    """How a model was trained: every argument of :func:`fit` that shapes the result."""

    model: str
    data: str
    method: Method
    attack: TemperaturePGD
    beta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.number("beta", self.beta, at_least=0.0)

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON holds it; what a resumed run must agree with."""
        return {**super().to_json(), "attack": self.attack.config()}


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
    precision: Precision = "auto",
    device: str | torch.device | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = False,
    accelerator: Any = None,
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
        accelerator: an ``accelerate.Accelerator`` that joins several processes, ``batch_size`` being that of
            all of them together; found by itself under ``accelerate launch`` and ``torchrun``.

    Returns:
        One row per epoch.

    Raises:
        ValueError: an argument out of its range, or a checkpoint made by another recipe.
        FloatingPointError: the loss became NaN or infinite; the last epoch's checkpoint is kept.
        FileExistsError: ``out`` already holds a training run and ``resume`` is not set.
        BlockingIOError: another process is training into ``out``.
    """
    place = settle_place(model, data, validation, accelerator=accelerator, device=device, out=out)
    train = place.data
    recipe = Recipe(
        model=type(model).__qualname__,
        data=train.fingerprint(),
        method=method,
        attack=_inner_attack(method, attack, train),
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        beta=beta,
        ema=ema,
        augment=augment,
        precision=pick_precision(precision, model, train, place.device, place.folder if resume else None),
        seed=seed,
    )
    run = TrainingRun(
        model,
        recipe,
        DataSource(train, recipe.batch_size, recipe.augment),
        partial(_batch_loss, recipe),
        attack=recipe.attack,
        device=place.device,
        out=place.folder,
        team=place.team,
    )
    return run.run(place.validation, resume=resume, progress=progress)


def _inner_attack(method: str, attack: TemperaturePGD | None, data: Any) -> TemperaturePGD:
    _checks.choice("method", method, ("pgd-at", "trades", "standard"))
    attack = training_attack(attack, data)
    # The inner KL of TRADES compares with the clean probabilities, which are those at T = 1.
    return replace(attack, temperature=1.0) if method == "trades" else attack


def _batch_loss(recipe: Recipe, run: TrainingRun, batch: Batch) -> Tensor:
    """What the method minimises, of each sample ``(n,)``."""
    if recipe.method == "standard":
        return F.cross_entropy(run.net(batch.inputs), batch.labels, reduction="none")
    perturbed = _perturb(recipe, run, batch)
    if recipe.method == "pgd-at":
        return F.cross_entropy(run.net(perturbed), batch.labels, reduction="none")
    # One pass over both, so that batch norm sees clean and perturbed images alike.
    clean, moved = run.net(torch.cat([batch.inputs, perturbed])).chunk(2)
    return F.cross_entropy(clean, batch.labels, reduction="none") + recipe.beta * kl_divergence(clean, moved)


def _perturb(recipe: Recipe, run: TrainingRun, batch: Batch) -> Tensor:
    """The inner maximisation, from a start that differs from epoch to epoch."""
    attack = replace(recipe.attack, seed=batch.seed)
    if recipe.method == "trades":
        with torch.no_grad(), evaluating(run.bare):
            clean = run.bare(batch.inputs)
        # Nobody leaves the batch before its end (stop_on_success=False), so row i stays sample i.
        attack = replace(attack, loss=lambda z, y: kl_divergence(clean, z))
    result = attack(run.bare, batch.inputs, batch.labels, batch.ids, judge=False)
    run.lost += int((result.zero_gradients > 0).sum())
    return result.adv_inputs
