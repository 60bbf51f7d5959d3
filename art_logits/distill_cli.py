"""``art-logits distill``: one cell of a distillation experiment from the command line."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, cast

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

typer = require("typer", extra="evaluate")


def distill(
    out: TrainingOut,
    teacher: Annotated[str, typer.Option(help="Model spec of the teacher, as for evaluate.")] = "digits-at",
    teacher_checkpoint: Annotated[
        Path | None, typer.Option(help="The teacher's weights: .safetensors or a torch state dict.")
    ] = None,
    student: Annotated[
        str, typer.Option(help="The student's architecture, as <module or FILE.py>:<factory>.")
    ] = "art_logits.models:DigitsNet",
    data: TrainingData = "digits",
    validation: Validation = None,
    data_dir: DataDir = None,
    download: Download = False,
    resize: Resize = None,
    crop: Crop = None,
    n_validation: NValidation = 512,
    objective: Annotated[str, typer.Option(help="kd (clean images only), ard, rslad, iad or adaad.")] = "kd",
    temperature: Annotated[
        float | None, typer.Option(help="Of the distillation.", show_default="the objective's published one")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="The objective's weight.", show_default="its published one")
    ] = None,
    transform: Annotated[
        list[str] | None,
        typer.Option(
            help="What to do to the teacher's logits, NAME[:key=value,...], repeatable, in turn: "
            "scale:factor=0.5, max-logit, logit-gap, confidence:how=cap,value=0.9, permute-confidences, "
            "order:how=reversed, noisy-order:correlation=0.5, keep-top:k=1, flatten, smooth-labels."
        ),
    ] = None,
    norm: Norm = "Linf",
    eps: Eps = None,
    steps: Steps = 5,
    step_size: StepSize = None,
    epochs: Epochs = 30,
    batch_size: BatchSize = 128,
    lr: LearningRate = 0.1,
    weight_decay: WeightDecay = 5e-4,
    ema: Ema = None,
    augment: Augment = "none",
    precision: TrainingPrecision = "auto",
    device: Device = "auto",
    seed: TrainingSeed = 0,
    resume: ResumeTraining = False,
) -> None:
    """Distil a teacher into a new student, which evaluate takes as --model STUDENT --checkpoint OUT/....

    Norm, eps, steps and step size are those of the inner attack of ard, rslad, iad and adaad; after each
    epoch, validation measures under twice its steps.
    """
    from .distill import distill as run
    from .evaluation import resolve_device
    from .models import load_model
    from .training_cli import average_decay, inner_attack, load_splits, new_model, say_result, shape_of
    from .transform_specs import parse_transforms

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    manipulation = parse_transforms(transform or [])
    options = DataOptions(data_dir=data_dir, download=download, resize=resize, crop=crop)
    training_data, held_out = load_splits(data, validation, n_validation, seed, options)
    source = load_model(teacher, checkpoint=teacher_checkpoint, **shape_of(training_data))
    net, where = new_model(student, seed, training_data), resolve_device(device)
    typer.echo(
        f"distilling {teacher} into {student} by {objective} on {training_data.name} (n={len(training_data)})"
        + "".join(f", {spec}" for spec in transform or [])
    )
    history = run(
        net,
        source,
        training_data,
        objective=objective,
        temperature=temperature,
        alpha=alpha,
        attack=inner_attack(training_data, norm, eps, steps, step_size),
        transform=manipulation,
        validation=held_out,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
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
