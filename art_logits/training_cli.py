"""``art-logits train``: adversarial training from the command line."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, cast

import torch

from . import _checks
from ._extras import require
from .cli_options import Crop, DataDir, Device, Download, Eps, Norm, Resize

typer = require("typer", extra="evaluate")


def train(
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, weights and history.")],
    model: Annotated[
        str, typer.Option(help="Architecture, as <module or FILE.py>:<factory>.")
    ] = "art_logits.models:DigitsNet",
    data: Annotated[str, typer.Option(help="Data spec, as for evaluate; the train split.")] = "digits",
    validation: Annotated[
        str | None, typer.Option(help="Data spec to measure after each epoch. [default: --data's test split]")
    ] = None,
    data_dir: DataDir = None,
    download: Download = False,
    resize: Resize = None,
    crop: Crop = None,
    n_validation: Annotated[int, typer.Option(help="Class-balanced subset of the validation data.")] = 512,
    method: Annotated[str, typer.Option(help="pgd-at, trades or standard.")] = "pgd-at",
    norm: Norm = "Linf",
    eps: Eps = None,
    steps: Annotated[int, typer.Option(help="Steps of the inner attack.")] = 5,
    step_size: Annotated[str | None, typer.Option(help="Their length. [default: eps / 2]")] = None,
    temperature: Annotated[str, typer.Option(help="Temperature of the inner attack, or gap.")] = "1",
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 30,
    batch_size: Annotated[int, typer.Option(help="Samples per optimiser step.")] = 128,
    lr: Annotated[float, typer.Option(help="Largest learning rate of the one-cycle schedule.")] = 0.1,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of SGD.")] = 5e-4,
    beta: Annotated[float, typer.Option(help="Weight of the KL in TRADES.")] = 6.0,
    ema: Annotated[float, typer.Option(help="Decay of the weight average per step; 0 for none.")] = 0.995,
    augment: Annotated[str, typer.Option(help="none, shift or crop-flip.")] = "none",
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Of initialisation, order, augmentation, random starts.")] = 0,
    resume: Annotated[bool, typer.Option(help="Continue from the checkpoint in --out.")] = False,
) -> None:
    """Train a classifier, adversarially or not, and keep its averaged weights as safetensors."""
    from .attack import TemperaturePGD
    from .data import load_data
    from .evaluation import resolve_device
    from .models import load_model
    from .presets import parse_number
    from .torchvision_sets import TORCHVISION_SETS
    from .training import WEIGHTS, fit

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    training_data = load_data(
        data, split="train", data_dir=data_dir, download=download, resize=resize, crop=crop
    )
    # Validation data of another kind has no use for torchvision's options.
    public = (validation or data) in TORCHVISION_SETS
    held_out = load_data(
        validation or data,
        split="test",
        data_dir=data_dir if public else None,
        download=download and public,
        resize=resize,
        crop=crop,
    )
    if len(held_out) > n_validation:
        held_out = held_out.subset(n_validation, seed=seed)
    _checks.choice("norm", norm, training_data.default_eps)
    radius = training_data.default_eps[norm] if eps is None else parse_number(eps)
    attack = TemperaturePGD(
        eps=radius,
        norm=cast(Any, norm),
        steps=steps,
        step_size=radius / 2 if step_size is None else parse_number(step_size),
        temperature=cast(Any, temperature) if temperature in ("gap", "auto") else parse_number(temperature),
        bounds=training_data.bounds,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = load_model(model)
    where = resolve_device(device)
    typer.echo(f"training {model} by {method} on {training_data.name} (n={len(training_data)}), {attack}")
    history = fit(
        net,
        training_data,
        method=cast(Any, method),
        attack=attack,
        validation=held_out,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        beta=beta,
        ema=ema or None,
        augment=augment,
        precision=cast(Any, precision),
        device=where,
        seed=seed,
        out=out,
        resume=resume,
        progress=True,
    )
    last = history.rows[-1]
    typer.echo(
        f"clean accuracy {last['clean_accuracy']:.1%}, robust accuracy {last['robust_accuracy']:.1%} "
        f"on {len(held_out)} held-out samples; weights: {out / WEIGHTS}"
    )
