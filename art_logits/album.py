"""Small pictures of the samples that a report shows: clean, adversarial, and what lies between them.

They are chosen part by part while a run is evaluated, when the images are at hand, and kept with the records
(:func:`~art_logits.records.thumbnails_schema`), so that a report needs no data. The choice depends on the
logits alone: not on the batch size, and not on an interruption.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from art_logits._extras import require
from art_logits.functional.logits import confidence, label_margin
from art_logits.records import THUMBNAILS_PER_KIND, thumbnails_schema

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image
else:
    pa = require("pyarrow", extra="evaluate")
    Image = require("PIL.Image", extra="evaluate")

__all__ = ["KINDS", "THUMBNAIL_SIZE", "Album", "png"]

KINDS = {
    "above_reference": "More confident than the reference: the largest differences",
    "below_reference": "Less confident than the reference: the largest differences",
    "confident_falls": "Sure without an attack, turned by one",
    "unsure_falls": "Unsure already without an attack, turned by one",
    "confident_errors": "Turned by an attack, and surest of the wrong class",
    "unsure_stands": "Unsure, yet no attack turns them",
}
"""What a sample is shown for, and how a report calls it."""

THUMBNAIL_SIZE = 80
"""Longest side of a thumbnail, in pixels; smaller images keep their size."""


class Album:
    """The thumbnails of one part, collected while the part is evaluated.

    Args:
        inputs: ``(N, C, H, W)`` with one or three channels; of inputs of another shape the album is empty.
        labels: ``(N,)``.
        sample_ids: ``(N,)``.
        bounds: limits of the inputs: black and white.

    >>> album = Album(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]), torch.arange(4), (0.0, 1.0))
    >>> right, wrong = 5 * torch.eye(2)[[0, 1, 0, 1]], 3 * torch.eye(2)[[1, 1, 0, 1]]
    >>> album.add_clean(right)
    >>> album.add_attack("pgd", wrong, torch.rand(4, 1, 8, 8))
    >>> table = album.table()
    >>> table["kind"].to_pylist()[:2], table["sample_id"].to_pylist()[:2]
    (['confident_falls', 'unsure_falls'], [0, 0])
    """

    def __init__(
        self, inputs: Tensor, labels: Tensor, sample_ids: Tensor, bounds: tuple[float, float]
    ) -> None:
        self._shows = inputs.ndim == 4 and inputs.shape[1] in (1, 3)
        self._bounds, self._labels, self._ids = bounds, labels, sample_ids
        self._images = self._shrunk(inputs)
        self._clean: Tensor | None = None
        self._reference: Tensor | None = None
        self._attacks: dict[str, tuple[Tensor, Tensor]] = {}

    def add_clean(self, logits: Tensor, *, reference: bool = False) -> None:
        """Take the logits ``(N, C)`` of the samples as they are.

        Args:
            logits: of the model, or of the reference.
            reference: whose they are.
        """
        if reference:
            self._reference = logits
        else:
            self._clean = logits

    def add_attack(self, name: str, logits: Tensor, adv_inputs: Tensor) -> None:
        """Take what an attack made of the samples; only thumbnails of it are kept.

        Args:
            name: the attack's.
            logits: ``(N, C)``, of the model on ``adv_inputs``.
            adv_inputs: of the shape of the inputs.
        """
        self._attacks[name] = (logits, self._shrunk(adv_inputs))

    def table(self) -> pa.Table:
        """The thumbnails, at most :data:`~art_logits.records.THUMBNAILS_PER_KIND` of every kind.

        Returns:
            A table of :func:`~art_logits.records.thumbnails_schema`; without rows where the inputs are no
            images, or where no logits were given.
        """
        rows: list[dict[str, Any]] = []
        if self._shows and self._clean is not None and self._attacks:
            logits = torch.stack([attacked for attacked, _ in self._attacks.values()])
            strongest = self._strongest(logits)
            adversarial = logits[strongest, torch.arange(len(self._labels))]
            for kind, scores in self._scores(self._clean, adversarial).items():
                # Stable: of equal scores the first, as when the parts are brought together.
                order = scores.nan_to_num(-torch.inf).argsort(descending=True, stable=True)
                chosen = [i for i in order[:THUMBNAILS_PER_KIND].tolist() if not scores[i].isnan()]
                rows += [self._row(kind, float(scores[i]), i, int(strongest[i])) for i in chosen]
        return pa.Table.from_pylist(rows, schema=thumbnails_schema())

    def _strongest(self, logits: Tensor) -> Tensor:
        """The attack ``(N,)`` that leaves each sample the smallest margin, of logits ``(A, N, C)``."""
        margins = torch.stack([label_margin(attacked, self._labels) for attacked in logits])
        turned = logits.argmax(dim=2) != self._labels
        # Of two margins of exactly 0 only one may have cost the prediction.
        return torch.where(turned, margins, margins.clamp(min=torch.finfo(margins.dtype).tiny)).argmin(dim=0)

    def _scores(self, clean: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
        """How well each sample stands for each kind, ``(N,)``; NaN where it is not of that kind."""
        sure, right = confidence(clean), clean.argmax(dim=1) == self._labels
        falls = right & (adversarial.argmax(dim=1) != self._labels)
        nothing = torch.full_like(sure, torch.nan)
        scores = {
            "confident_falls": torch.where(falls, sure, nothing),
            "unsure_falls": torch.where(falls, -sure, nothing),
            "confident_errors": torch.where(falls, confidence(adversarial), nothing),
            "unsure_stands": torch.where(right & ~falls, -sure, nothing),
        }
        if self._reference is not None:
            surer = sure - confidence(self._reference)
            scores["above_reference"] = torch.where(surer > 0, surer, nothing)
            scores["below_reference"] = torch.where(surer < 0, -surer, nothing)
        return scores

    def _row(self, kind: str, score: float, index: int, attack: int) -> dict[str, Any]:
        lower, upper = self._bounds
        name, (_, attacked) = list(self._attacks.items())[attack]
        clean, adversarial = self._images[index], attacked[index]
        difference = adversarial - clean
        largest = float(difference.abs().max())
        return {
            "kind": kind,
            "score": score,
            "sample_id": int(self._ids[index]),
            "attack": name,
            "clean": png((clean - lower) / (upper - lower)),
            "adversarial": png((adversarial - lower) / (upper - lower)),
            # Grey where nothing changed; a perturbation of 8/255 would be invisible as it is.
            "difference": png(0.5 + difference / (2 * largest) if largest else 0.5 + difference),
            "largest_difference": largest,
        }

    def _shrunk(self, inputs: Tensor) -> Tensor:
        """The images in the size of thumbnails: whole parts of large images would not fit in memory."""
        if not self._shows:
            return inputs[:0]
        images = inputs.detach().float().cpu()
        scale = THUMBNAIL_SIZE / max(images.shape[2:])
        if scale >= 1:
            return images
        size = [max(1, round(side * scale)) for side in images.shape[2:]]
        return torch.nn.functional.interpolate(images, size=size, mode="area")


def png(image: Tensor) -> bytes:
    """An image as an 8-bit PNG file.

    Args:
        image: ``(C, H, W)`` with one or three channels; clipped to ``[0, 1]``.

    Returns:
        The content of the file.

    >>> png(torch.zeros(1, 2, 2))[1:4]
    b'PNG'
    """
    pixels = (255 * image.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()
