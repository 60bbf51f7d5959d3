"""``art-logits train``: adversarial training from the command line."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, cast

import torch

from . import _checks
from ._extras import require
from .cli_options import (
    Augment,
    BatchSize,
    Crop,
    DataDir,
    DataOptions,
    Device,
    Download,
    Ema,
    Epochs,
    Eps,
    LearningRate,
    Norm,
    NValidation,
    Resize,
    ResumeTraining,
    Steps,
    StepSize,
    TrainingData,
    TrainingOut,
    TrainingPrecision,
    TrainingSeed,
    Validation,
    WeightDecay,
)

if TYPE_CHECKING:
    from torch import nn

    from .attack import TemperaturePGD
    from .data import Data
    from .training_loop import History

typer = require("typer", extra="evaluate")


def train(
    out: TrainingOut,
    model: Annotated[
        str, typer.Option(help="Architecture, as <module or FILE.py>:<factory>.")
    ] = "art_logits.models:DigitsNet",
    data: TrainingData = "digits",
    validation: Validation = None,
    data_dir: DataDir = None,
    download: Download = False,
    resize: Resize = None,
    crop: Crop = None,
    n_validation: NValidation = 512,
    method: Annotated[str, typer.Option(help="pgd-at, trades or standard.")] = "pgd-at",
    norm: Norm = "Linf",
    eps: Eps = None,
    steps: Steps = 5,
    step_size: StepSize = None,
    temperature: Annotated[str, typer.Option(help="Temperature of the inner attack, or gap.")] = "1",
    epochs: Epochs = 30,
    batch_size: BatchSize = 128,
    lr: LearningRate = 0.1,
    weight_decay: WeightDecay = 5e-4,
    beta: Annotated[float, typer.Option(help="Weight of the KL in TRADES.")] = 6.0,
    ema: Ema = None,
    augment: Augment = "none",
    precision: TrainingPrecision = "auto",
    device: Device = "auto",
    seed: TrainingSeed = 0,
    resume: ResumeTraining = False,
) -> None:
    """Train a classifier, adversarially or not, and keep its averaged weights as safetensors."""
    from .evaluation import resolve_device
    from .training import fit

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = DataOptions(data_dir=data_dir, download=download, resize=resize, crop=crop)
    training_data, held_out = load_splits(data, validation, n_validation, seed, options)
    attack = inner_attack(training_data, norm, eps, steps, step_size, temperature)
    net, where = new_model(model, seed, training_data), resolve_device(device)
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
        ema=average_decay(ema, training_data, epochs, batch_size),
        augment=augment,
        precision=cast(Any, precision),
        device=where,
        seed=seed,
        out=out,
        resume=resume,
        progress=True,
    )
    say_result(history, held_out, out)


def load_splits(
    data: str, validation: str | None, n_validation: int, seed: int, options: DataOptions
) -> tuple[Data, Data]:
    """The training data, and a class-balanced subset of those to measure on after each epoch."""
    from .data import load_data
    from .torchvision_sets import TORCHVISION_SETS

    training_data = load_data(data, split="train", **options)
    # Validation data of another kind has no use for torchvision's options.
    if (validation or data) not in TORCHVISION_SETS:
        options = {**options, "data_dir": None, "download": False}
    held_out = load_data(validation or data, split="test", **options)
    if len(held_out) > n_validation:
        held_out = held_out.subset(n_validation, seed=seed)
    return training_data, held_out


def inner_attack(
    data: Data, norm: str, eps: str | None, steps: int, step_size: str | None, temperature: str = "1"
) -> TemperaturePGD:
    """The attack of the training, from its options; the radius is the data's where there is none."""
    from .attack import TemperaturePGD
    from .presets import parse_number

    _checks.choice("norm", norm, data.default_eps)
    radius = data.default_eps[norm] if eps is None else parse_number(eps)
    return TemperaturePGD(
        eps=radius,
        norm=cast(Any, norm),
        steps=steps,
        step_size=radius / 2 if step_size is None else parse_number(step_size),
        temperature=cast(Any, temperature) if temperature in ("gap", "auto") else parse_number(temperature),
        bounds=data.bounds,
    )


def average_decay(ema: float | None, data: Data, epochs: int, batch_size: int) -> float | None:
    """The decay of the weight average; by default one that forgets the first weights within the run.

    0.995 remembers some 1000 steps, of which small data have fewer: after 330, a fifth of the average would
    still be the untrained weights.
    """
    if ema is not None:
        return ema or None
    steps = max(1, epochs) * -(-len(data) // max(1, batch_size))
    return min(0.995, 1 - 10 / steps) if steps > 10 else None


def new_model(spec: str, seed: int, data: Data) -> nn.Module:
    """A model for the data's classes and channels that only its spec and the seed decide.

    Raises:
        ValueError: a library's network that has other outputs than the data has classes, because its weights
            are given, or that cannot take the data's inputs.
    """
    from .models import load_model
    from .pretrained import Pretrained

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = load_model(spec, seed=seed, **shape_of(data))
    if isinstance(model, Pretrained):
        _check_outputs(spec, model, data)
    return model


class DataShape(TypedDict):
    """What a model must know of the data: numbers of classes and of channels."""

    num_classes: int
    in_channels: int


def shape_of(data: Data) -> DataShape:
    """The numbers of classes and of channels, as arguments of ``load_model``."""
    inputs, _ = data.batch([0])
    classes = int(data.labels.max()) + 1 if data.class_names is None else len(data.class_names)
    return {"num_classes": classes, "in_channels": inputs.shape[1]}


def _check_outputs(spec: str, model: nn.Module, data: Data) -> None:
    """Refuse a library's network that does not fit the data, before anything is trained."""
    inputs, _ = data.batch([0])
    try:
        with torch.no_grad():
            outputs = model(inputs).shape[1]
    except RuntimeError as error:
        raise ValueError(
            f"model {spec!r} cannot take the inputs of {data.name}, {tuple(inputs.shape[1:])}: "
            f"{' '.join(str(error).split())}"
        ) from error
    classes = shape_of(data)["num_classes"]
    if outputs != classes and "num_classes=" not in spec:
        raise ValueError(
            f"model {spec!r} has {outputs} outputs, and {data.name} has {classes} classes: add weights=none "
            "to train it from random weights, with as many outputs as classes"
        )


def say_result(history: History, held_out: Data, out: Path) -> None:
    """The last epoch's accuracies, and where the weights are."""
    from .training_loop import WEIGHTS

    last = history.rows[-1]
    typer.echo(
        f"clean accuracy {last['clean_accuracy']:.1%}, robust accuracy {last['robust_accuracy']:.1%} "
        f"(worst class {last['worst_class_accuracy']:.1%}) on {len(held_out)} held-out samples; "
        f"weights: {out / WEIGHTS}"
    )
