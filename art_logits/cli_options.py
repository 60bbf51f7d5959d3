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
    Path | None, typer.Option(help="Folder of torchvision's files. [default: data]")
]
Download: TypeAlias = Annotated[bool, typer.Option("--download", help="Let torchvision download them.")]
Resize: TypeAlias = Annotated[
    int | None, typer.Option(help="Scale images' shorter side to this and cut the middle square.")
]
Crop: TypeAlias = Annotated[int | None, typer.Option(help="Cut the middle N x N pixels, after --resize.")]
Norm: TypeAlias = Annotated[str, typer.Option(help="Linf, L2 or L1.")]
Eps: TypeAlias = Annotated[
    str | None, typer.Option(help="Radius in pixel units, e.g. 8/255. [default: by data and norm]")
]
Device: TypeAlias = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]

Figures: TypeAlias = Annotated[
    bool, typer.Option("--figures", help="Also write each figure as PNG and SVG, to the folder's figures/.")
]


class DataOptions(TypedDict):
    """The options of ``load_data`` beside spec and split."""

    data_dir: Path | None
    download: bool
    resize: int | None
    crop: int | None
