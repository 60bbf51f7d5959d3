"""``art-logits evaluate``: the evaluation from the command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ._extras import require
from .cli_options import Crop, DataDir, DataOptions, Device, Download, Eps, Figures, Norm, Resize

if TYPE_CHECKING:
    import typer
    from torch import nn

    from .data import Data
    from .records import Records
else:
    typer = require("typer", extra="evaluate")

DEFAULT_MODEL, DEFAULT_REFERENCE, DEFAULT_DATA = "digits-at", "digits-standard", "digits"
DEFAULT_ATTACKS = ("pgd", "temperature-pgd")
RUNS = Path("art-logits-runs")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during an evaluation; its text says how to go on."""


def evaluate(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            help="Bundled name (digits-at, digits-standard), torchvision:NAME, timm:NAME, "
            "robustbench:DATASET/THREAT_MODEL/NAME, FILE.py:factory or package.module:factory.",
            show_default=DEFAULT_MODEL,
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The model's weights: .safetensors or a torch state dict.")
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(help="Mean of the training images, e.g. 0.49,0.48,0.45, for a factory's model."),
    ] = None,
    std: Annotated[str | None, typer.Option(help="Their standard deviation, per channel.")] = None,
    model_dir: Annotated[
        Path | None, typer.Option(help="Folder of RobustBench's checkpoints.", show_default="models")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Second model to compare with, attacked in its own right.",
            show_default=f"{DEFAULT_REFERENCE} beside the default model, else none",
        ),
    ] = None,
    reference_checkpoint: Annotated[Path | None, typer.Option(help="The reference's weights.")] = None,
    reference_mean: Annotated[str | None, typer.Option(help="As --mean, of the reference.")] = None,
    reference_std: Annotated[str | None, typer.Option(help="As --std, of the reference.")] = None,
    data: Annotated[
        str,
        typer.Option(
            help="digits; mnist, cifar10, cifar100, svhn, stl10, imagenet; a folder or .zip of images, one "
            "folder per class; FILE.npz with x and y."
        ),
    ] = DEFAULT_DATA,
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
    data_dir: DataDir = None,
    download: Download = False,
    resize: Resize = None,
    crop: Crop = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME[:key=value,...], repeatable: pgd:steps=50, temperature-pgd, strong, "
            "autoattack, apgd-ce, torchattacks:CLASS, art:CLASS.",
            show_default="pgd and temperature-pgd",
        ),
    ] = None,
    norm: Norm = "Linf",
    eps: Eps = None,
    n_examples: Annotated[int | None, typer.Option(help="Samples to attack.", show_default="all")] = None,
    sampling: Annotated[
        str, typer.Option(help="How to draw them: balanced (over classes, by the seed) or first.")
    ] = "balanced",
    batch_size: Annotated[
        str, typer.Option(help="Samples in one pass, or auto; no result depends on it.")
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(help="Of the gradients: auto, float32 or bfloat16. Success is always float32's."),
    ] = "auto",
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Of random starts and of the balanced draw.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for records, tables and report.", show_default=f"{RUNS}/DATA-MODEL"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the same run in --out.")] = False,
    figures: Figures = False,
) -> None:
    """Attack a model and say which classes fail.

    Without options: the bundled adversarially trained digits model, against the standard one. Writes
    records/*.parquet, manifest.json, summary.json, classwise.csv, logits.csv and report.html.
    """
    from .evaluation import evaluate as run
    from .evaluation import resolve_device
    from .presets import parse_attacks, parse_number

    where = resolve_device(device)
    files: DataOptions = {"data_dir": data_dir, "download": download, "resize": resize, "crop": crop}
    samples = _load_data(data, split, n_examples, sampling, seed, files)
    radius = _radius(samples, norm) if eps is None else parse_number(eps)
    attacks = parse_attacks(
        attack or DEFAULT_ATTACKS, norm=norm, eps=radius, bounds=samples.bounds, seed=seed
    )
    subject, other = _load_models(
        samples,
        data,
        _Wanted("", model, checkpoint, mean, std, model_dir),
        _Wanted("reference-", reference, reference_checkpoint, reference_mean, reference_std, model_dir),
    )
    folder = out or _default_folder(samples.name, subject.name, resume=resume)
    _announce(
        model=subject.name,
        reference=other.name if other else "none",
        data=f"{samples.name}, {split} split, n={len(samples)}",
        threat=f"{norm}, eps {eps or f'{radius:g} (the default for this data and norm)'}",
        attacks=", ".join(attacks),
        device=where,
        out=folder,
    )
    try:
        records = run(
            subject.model,
            samples,
            attacks=attacks,
            reference=other.model if other else None,
            bounds=samples.bounds,
            batch_size=_batch_size(batch_size),
            precision=precision,
            device=where,
            out=folder,
            resume=resume,
            seed=seed,
            progress=True,
            norm=norm,
            model_name=subject.name,
            reference_name=other.name if other else None,
            command=_command(context),
        )
    except KeyboardInterrupt as error:
        raise Interrupted(_how_to_go_on(folder)) from error
    _conclude(records, folder, figures=figures)


def _batch_size(text: str) -> int | str:
    """A number, or ``"auto"``."""
    from .presets import read_integer

    try:
        return text if text == "auto" else read_integer(text)
    except ValueError as error:
        raise ValueError(f"--batch-size: {error} (or auto)") from error


@dataclass(frozen=True)
class _Named:
    """A model, and how it was asked for."""

    name: str
    model: nn.Module


def _load_data(
    spec: str, split: str, n_examples: int | None, sampling: str, seed: int, options: DataOptions
) -> Data:
    """The data, or the part of it that was asked for."""
    from . import _checks
    from .data import SAMPLINGS, load_data

    _checks.choice("sampling", sampling, SAMPLINGS)
    if n_examples is not None:
        _checks.integer("--n-examples", n_examples, at_least=1)
    data = load_data(spec, split=split, **options)
    if n_examples is None:
        return data
    if n_examples > len(data):
        has = f"the {len(data)} samples of {data.name} in its {split} split"
        raise ValueError(f"--n-examples must be at most {has}, got {n_examples}")
    return data.subset(n_examples, sampling, seed)


def _radius(data: Data, norm: str) -> float:
    """The data's default eps for a norm."""
    from . import _checks

    return data.default_eps[_checks.choice("norm", norm, data.default_eps)]


@dataclass(frozen=True)
class _Wanted:
    """The options of a model; their names begin with the prefix."""

    prefix: str
    spec: str | None
    checkpoint: Path | None
    mean: str | None
    std: str | None
    model_dir: Path | None

    def check_alone(self) -> None:
        """Refuse options of a model that is not there."""
        given = {"checkpoint": self.checkpoint, "mean": self.mean, "std": self.std}
        for name, value in given.items():
            if value is not None:
                needed = f"--{self.prefix.rstrip('-')}, the architecture that it belongs to"
                raise ValueError(f"--{self.prefix}{name} needs {needed}")


def _load_models(
    data: Data, data_spec: str, model: _Wanted, reference: _Wanted
) -> tuple[_Named, _Named | None]:
    """The model, and the reference if there is one."""
    if model.spec is None:
        if data_spec != DEFAULT_DATA:
            fits = f"the default {DEFAULT_MODEL} is for {DEFAULT_DATA}"
            raise ValueError(f"--model must be given with --data {data_spec}: {fits}")
        model = replace(model, spec=DEFAULT_MODEL)
        reference = replace(reference, spec=reference.spec or DEFAULT_REFERENCE)
    if reference.spec is None:
        reference.check_alone()
        return _load_model(model, data), None
    return _load_model(model, data), _load_model(reference, data)


def _load_model(wanted: _Wanted, data: Data) -> _Named:
    """A model; a factory may ask for the data's number of classes and channels."""
    from .models import load_model

    inputs, _ = data.batch([0])
    classes = None if data.class_names is None else len(data.class_names)
    spec = str(wanted.spec)
    model = load_model(
        spec,
        checkpoint=wanted.checkpoint,
        num_classes=classes,
        in_channels=inputs.shape[1],
        mean=_numbers(f"--{wanted.prefix}mean", wanted.mean),
        std=_numbers(f"--{wanted.prefix}std", wanted.std),
        model_dir=wanted.model_dir,
    )
    # The same architecture with other weights is another model: a model and its reference, say.
    return _Named(spec if wanted.checkpoint is None else f"{spec} ({wanted.checkpoint.name})", model)


def _numbers(option: str, text: str | None) -> list[float] | None:
    """Numbers between commas."""
    from .presets import parse_number

    if text is None:
        return None
    try:
        return [parse_number(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(
            f"{option} must be one number per channel, such as 0.49,0.48,0.45: {error}"
        ) from error


def _default_folder(data: str, model: str, *, resume: bool) -> Path:
    """``art-logits-runs/DATA-MODEL``; where it holds a run, numbered from 2, or the last one to resume."""
    location, colon, factory = model.rpartition(":")
    short = f"{Path(location).stem}-{factory}" if colon else model
    base = RUNS / re.sub(r"[^A-Za-z0-9_-]+", "-", f"{data}-{short}").strip("-")
    number, folder, last = 1, base, base
    while folder.exists() and (folder.is_file() or any(folder.iterdir())):
        number, last = number + 1, folder
        folder = base.with_name(f"{base.name}-{number}")
    return last if resume else folder


def _announce(**lines: object) -> None:
    """Say what is going to be run."""
    for key, value in lines.items():
        typer.echo(f"{key:<10}{value}")


def _command(context: typer.Context) -> str | None:
    """The command line, for the manifest."""
    arguments: Sequence[str] | None = context.obj
    return None if arguments is None else shlex.join(["art-logits", *arguments])


def _how_to_go_on(folder: Path) -> str:
    if not (folder / "manifest.json").exists():
        return "interrupted before the first part; nothing was written"
    options = shlex.join(["--resume", "--out", str(folder)])
    return f"interrupted; finished parts are kept: repeat the command with {options}"


def _conclude(records: Records, folder: Path, *, figures: bool) -> None:
    """Write the outputs; show the class table, one line, and where the report lies."""
    from .figures import write_figures
    from .report import format_class_table, format_warnings, write_outputs

    report = write_outputs(records, folder)
    if figures:
        write_figures(records, folder / "figures")
    passes = records.manifest["passes"]["model"]
    typer.echo(format_class_table(records, classes=report))
    typer.echo(
        f"clean accuracy {report.clean_accuracy:.1%}, robust accuracy {report.robust_accuracy:.1%}; "
        f"worst class {report.worst_class.name} at {report.worst_class.robust_accuracy:.1%}, "
        f"disparity {report.disparity:.1%}; "
        f"{passes['forwards']} forward and {passes['backwards']} backward passes"
    )
    warnings = format_warnings(records)
    if warnings:
        typer.echo(warnings)
    typer.echo(f"report: {folder / 'report.html'}")
