"""Options that several commands share: each is declared once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias, TypedDict

from ._extras import require

if TYPE_CHECKING:
    import typer
else:
    typer = require("typer", extra="evaluate")

DataDir: TypeAlias = Annotated[
    Path | None, typer.Option(help="Folder of torchvision's files.", show_default="data")
]
Download: TypeAlias = Annotated[bool, typer.Option("--download", help="Let torchvision download them.")]
Resize: TypeAlias = Annotated[
    int | None, typer.Option(help="Scale images' shorter side to this and cut the middle square.")
]
Crop: TypeAlias = Annotated[int | None, typer.Option(help="Cut the middle N x N pixels, after --resize.")]
Norm: TypeAlias = Annotated[str, typer.Option(help="Linf, L2 or L1.")]
Eps: TypeAlias = Annotated[
    str | None, typer.Option(help="Radius in pixel units, e.g. 8/255.", show_default="by data and norm")
]
Device: TypeAlias = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]

Figures: TypeAlias = Annotated[
    bool, typer.Option("--figures", help="Also write each figure as PNG and SVG, to the folder's figures/.")
]
# Of the commands that train.
TrainingData: TypeAlias = Annotated[str, typer.Option(help="Data spec, as for evaluate; the train split.")]
Validation: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Data spec to measure after each epoch.", show_default="--data's test split"),
]
NValidation: TypeAlias = Annotated[int, typer.Option(help="Class-balanced subset of the validation data.")]
TrainingOut: TypeAlias = Annotated[Path, typer.Option(help="Folder for checkpoint, weights and history.")]
Steps: TypeAlias = Annotated[int, typer.Option(help="Steps of the inner attack.")]
StepSize: TypeAlias = Annotated[str | None, typer.Option(help="Their length.", show_default="eps / 2")]
Epochs: TypeAlias = Annotated[int, typer.Option(help="Passes over the data.")]
BatchSize: TypeAlias = Annotated[int, typer.Option(help="Samples per optimiser step.")]
LearningRate: TypeAlias = Annotated[
    float, typer.Option(help="Largest learning rate of the one-cycle schedule.")
]
WeightDecay: TypeAlias = Annotated[float, typer.Option(help="Weight decay of SGD.")]
Ema: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help="Decay of the weight average per step; 0 for none.",
        show_default="0.995, less where the steps are few",
    ),
]
Augment: TypeAlias = Annotated[str, typer.Option(help="none, shift or crop-flip.")]
TrainingPrecision: TypeAlias = Annotated[str, typer.Option(help="auto, float32 or bfloat16.")]
TrainingSeed: TypeAlias = Annotated[
    int, typer.Option(help="Of initialisation, order, augmentation, random starts.")
]
ResumeTraining: TypeAlias = Annotated[bool, typer.Option(help="Continue from the checkpoint in --out.")]


class DataOptions(TypedDict):
    """The options of ``load_data`` beside spec and split."""

    data_dir: Path | None
    download: bool
    resize: int | None
    crop: int | None
