"""Sets of image files: folders in ImageFolder layout, also inside a zip, decoded batch by batch.

Only paths and labels stay in memory. Nothing is ever extracted: a zip's members are read where they are.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from . import _checks
from ._extras import require

__all__ = ["Fit", "ImageSet", "image_files", "read_folder", "read_zip"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Parts: TypeAlias = tuple[str, ...]
#: Gives the bytes of the image at a position.
Reader: TypeAlias = Callable[[int], bytes]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
#: Folder names that stand for a split; of several, the first that is there.
SPLIT_FOLDERS = {"test": ("test", "val", "valid", "validation"), "train": ("train", "training")}
_SPLIT_NAMES = frozenset(name for names in SPLIT_FOLDERS.values() for name in names)
_SMALL = 96  # STL-10's size, the largest of the published sets that are not JPEG files
_GRAY_MODES = ("1", "L", "LA", "La")
_COLOUR_MODES = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV")


@dataclass(frozen=True)
class Fit:
    """How images are brought to one size; by default not at all.

    Args:
        resize: scale the shorter side to this many pixels (bilinear, antialiased, as torchvision does), then
            cut the middle ``crop x crop`` (default ``resize x resize``).
        crop: cut the middle ``crop x crop`` pixels.

    Raises:
        TypeError: if one is no integer.
        ValueError: if one is below 1, or ``crop`` is larger than ``resize``.

    >>> Fit(resize=256, crop=224).size
    224
    """

    resize: int | None = None
    crop: int | None = None

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if value is not None:
                _checks.integer(name, value, at_least=1)
        if self.resize is not None and self.crop is not None and self.crop > self.resize:
            raise ValueError(f"crop must be at most resize, {self.resize}, got {self.crop}")

    @property
    def size(self) -> int | None:
        """Height and width of the outcome; None if images stay as they are."""
        return self.resize if self.crop is None else self.crop

    def __call__(self, image: Any) -> Any:
        """The PIL image in its new size.

        Raises:
            ValueError: if the image is smaller than the crop.
        """
        if self.size is None:
            return image
        functional = require("torchvision.transforms.functional", extra="evaluate")
        if self.resize is not None:
            image = functional.resize(image, self.resize)
        if min(image.size) < self.size:
            width, height = image.size
            raise ValueError(
                f"it is {height}x{width}, smaller than crop={self.size}: enlarge it with resize={self.size}"
            )
        return functional.center_crop(image, self.size)


@dataclass(frozen=True)
class ImageSet:
    """Labelled images, decoded on demand.

    Args:
        source: positions ``(B,)`` to images ``(B, C, H, W)``, float32 in ``[0, 1]``.
        labels: ``(N,)`` int64.
        class_names: one per class.
        gray: whether the images have one channel instead of three.
        small_jpegs: whether they are JPEG files of at most 96 pixels. Published sets of that size are arrays
            or PNG files; photographs, and ImageNet's images, are larger.
    """

    source: Callable[[Tensor], Tensor]
    labels: Tensor
    class_names: Sequence[str]
    gray: bool
    small_jpegs: bool = False


# ----------------------------------------------------------------------------------------------------------
# Folders and zips


def read_folder(path: Path, split: str, fit: Fit | None = None) -> ImageSet:
    """The images of a folder ``<class>/*`` or ``<split>/<class>/*``.

    Args:
        path: the folder.
        split: ``"test"`` or ``"train"``; a folder without split folders holds one split,
            whichever is asked for.
        fit: how images are brought to one size.

    Returns:
        The images in the order of their class and path.

    Raises:
        ValueError: for a folder without images or without classes, a missing split, an image that cannot
            be read.
    """
    where = f"data folder {str(path)!r}"
    files, folders = [], []
    for top, below, names in os.walk(path, followlinks=True):
        base = Path(top).relative_to(path).parts
        below[:] = [name for name in below if not _hidden((name,))]
        folders += [(*base, name) for name in below]
        files += [(*base, name) for name in names]
    kept, labels, classes = _layout(files, folders, split, where)
    names = ["/".join(parts) for parts in kept]

    def read(position: int) -> bytes:
        return path.joinpath(*kept[position]).read_bytes()

    return image_files(read, names, labels, classes, where=where, fit=fit)


def read_zip(path: Path, split: str, fit: Fit | None = None) -> ImageSet:
    """The images of a folder inside a ``.zip``, whose layout is that of :func:`read_folder`.

    A single folder around everything (``cifar10/test/cat/0.jpg``) is looked through. Members are read one
    by one, and nothing is extracted.

    Raises:
        ValueError: as :func:`read_folder`, and for a file that is no zip, or one with members that leave
            its folder (absolute paths, ``..``).
    """
    where = f"data file {str(path)!r}"
    try:
        # Stays open as long as the data lives; reads of several threads take turns.
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError) as error:
        raise ValueError(
            f"{where} is no complete .zip archive ({error}): it is truncated or in another format"
        ) from error
    members: dict[Parts, zipfile.ZipInfo] = {}
    folders: list[Parts] = []
    for info in archive.infolist():
        parts = _member_parts(info.filename, where)
        if info.is_dir():
            folders.append(parts)
        elif parts:
            members[parts] = info
    kept, labels, classes = _layout(members, folders, split, where)
    chosen = [members[parts] for parts in kept]
    names = [info.filename for info in chosen]
    return image_files(lambda i: archive.read(chosen[i]), names, labels, classes, where=where, fit=fit)


def _member_parts(name: str, where: str) -> Parts:
    """A zip member's path, if it stays in the folder."""
    plain = name.replace("\\", "/")
    parts = tuple(part for part in plain.split("/") if part not in ("", "."))
    if plain.startswith("/") or ".." in parts or (parts and parts[0].endswith(":")):
        raise ValueError(
            f"{where} holds the member {name!r}, which leaves the archive's folder: "
            "zip the folder again with relative paths"
        )
    return parts


def _hidden(parts: Parts) -> bool:
    """Whether a path is a system's bookkeeping, such as ``.DS_Store`` or macOS' ``__MACOSX``."""
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _layout(
    files: Iterable[Parts], folders: Iterable[Parts], split: str, where: str
) -> tuple[list[Parts], list[int], list[str]]:
    """Paths, labels and class names of one split.

    Classes are the folders' names in alphabetical order over all splits, so that a label means the same in
    every split.
    """
    images = [parts for parts in files if parts[-1].lower().endswith(SUFFIXES) and not _hidden(parts)]
    if not images:
        raise ValueError(f"{where} holds no images ({', '.join(SUFFIXES)})")
    wrapped = _wrapped(images)
    loose = next((parts for parts in images if len(parts) - wrapped < 2), None)
    if loose is not None:
        raise ValueError(
            f"{where} must hold one folder per class, and {'/'.join(loose)!r} lies in none of them: "
            "the layout is <class>/<image> or <split>/<class>/<image>"
        )
    depth, start = _split_depth(images, wrapped, split, where)
    classes = sorted({parts[depth] for parts in images})
    around = images[0][:wrapped]
    for parts in folders:
        inside = parts[:wrapped] == around and len(parts) > depth and not _hidden(parts)
        if inside and (start is None or parts[wrapped] in _SPLIT_NAMES) and parts[depth] not in classes:
            # Left out in silence, it would move the labels of all classes behind it.
            raise ValueError(
                f"{where} has no image in its folder {'/'.join(parts)!r}: is it a class? Remove it or fill it"
            )
    index = {name: i for i, name in enumerate(classes)}
    kept = sorted((parts for parts in images if start in (None, parts[wrapped])), key=lambda p: p[depth:])
    return kept, [index[parts[depth]] for parts in kept], classes


def _wrapped(images: Sequence[Parts]) -> int:
    """How many folders lie around all images without being a split or a class."""
    wrapped = 0
    while (
        len({parts[wrapped] for parts in images}) == 1
        and images[0][wrapped] not in _SPLIT_NAMES
        and all(len(parts) - wrapped >= 3 for parts in images)
    ):
        wrapped += 1
    return wrapped


def _split_depth(images: Sequence[Parts], wrapped: int, split: str, where: str) -> tuple[int, str | None]:
    """Position of the class in the paths, and the split's folder; None where there are no split folders."""
    tops = {parts[wrapped] for parts in images}
    found = tops & _SPLIT_NAMES
    # A class may be called "train": a folder of images is a class, one of folders a split.
    if not found or any(len(parts) - wrapped < 3 for parts in images if parts[wrapped] in found):
        return wrapped, None
    if tops != found:
        raise ValueError(
            f"{where} must hold either split folders or class folders, got both: "
            f"{', '.join(sorted(found))} beside {', '.join(sorted(tops - found))}"
        )
    start = next((name for name in SPLIT_FOLDERS[split] if name in found), None)
    if start is None:
        raise ValueError(f"{where} has no {split} split, only {', '.join(sorted(found))}: choose it by split")
    return wrapped + 1, start


# ----------------------------------------------------------------------------------------------------------
# Images


def image_files(
    read: Reader,
    names: Sequence[str],
    labels: Sequence[int],
    class_names: Sequence[str],
    *,
    where: str,
    fit: Fit | None = None,
) -> ImageSet:
    """A set over encoded images.

    It has one channel if the first image of every class is gray, else three. Transparency is dropped.

    Args:
        read: position to the file's bytes.
        names: ``(N,)`` names of the images, for messages.
        labels: ``(N,)`` class indices.
        class_names: one per class.
        where: what holds the images, for messages.
        fit: how images are brought to one size; without, all must have the size of the first.

    Raises:
        ValueError: if an image at hand cannot be read; from the source also for images of unequal size and
            for colour images among gray ones.
    """
    image_module = require("PIL.Image", extra="evaluate")
    size = fit or Fit()

    def open_image(position: int) -> Any:
        return _open(image_module, lambda: read(position), f"{where}: image {names[position]!r}")

    _, firsts = np.unique(np.asarray(labels), return_index=True)
    first = open_image(int(firsts[0]))
    gray = first.mode in _GRAY_MODES and all(open_image(int(i)).mode in _GRAY_MODES for i in firsts[1:])
    jpegs = first.format == "JPEG" and max(first.size) <= _SMALL
    expected: list[tuple[int, ...]] = []

    def pixels(position: int) -> Array:
        image = open_image(position)
        label = f"{where}: image {names[position]!r}"
        if gray and image.mode not in _GRAY_MODES:
            raise ValueError(f"{label} is in colour and others are gray: convert them to one kind")
        array = _fitted(image, size, "L" if gray else "RGB", label)
        if not expected:
            expected.append(array.shape if position == 0 else pixels(0).shape)
        if array.shape != expected[0]:
            (height, width), (other_height, other_width) = array.shape[:2], expected[0][:2]
            raise ValueError(
                f"{label} has {height}x{width} pixels and {names[0]!r} has {other_height}x{other_width}: "
                "say by resize and crop (on the command line --resize N, --crop N) how to make them equal"
            )
        return array

    def source(positions: Tensor) -> Tensor:
        return to_float(np.stack([pixels(position) for position in positions.tolist()]))

    return ImageSet(source, torch.tensor(labels, dtype=torch.int64), class_names, gray, jpegs)


def to_float(pixels: Array) -> Tensor:
    """uint8 images ``(B, H, W)`` or ``(B, H, W, C)`` as float32 ``(B, C, H, W)`` in ``[0, 1]``."""
    images = torch.from_numpy(pixels).float() / 255
    return images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()


def _open(image_module: ModuleType, read: Callable[[], bytes], label: str) -> Any:
    """A PIL image whose header is read and whose pixels are not, yet."""
    try:
        image = image_module.open(io.BytesIO(read()))
    except image_module.UnidentifiedImageError as error:  # its own text names a BytesIO
        raise ValueError(f"{label} cannot be read (no known image format): replace or remove it") from error
    except _read_errors(image_module) as error:
        raise _unreadable(label, error) from error
    if image.mode not in _GRAY_MODES + _COLOUR_MODES:
        raise ValueError(f"{label} must have 8 bits per channel, got mode {image.mode}: convert it first")
    return image


def _fitted(image: Any, fit: Fit, mode: str, label: str) -> Array:
    """An image's pixels in a mode and size, ``(H, W)`` or ``(H, W, 3)`` uint8."""
    errors = _read_errors(require("PIL.Image", extra="evaluate"))
    try:
        image = image.convert(mode)  # decodes it
    except errors as error:
        raise _unreadable(label, error) from error
    try:
        return np.array(fit(image), dtype=np.uint8)
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from error


def _read_errors(image_module: ModuleType) -> tuple[type[Exception], ...]:
    """What reading and decoding raise on images that are damaged, encrypted or made to hurt."""
    return (
        OSError,
        EOFError,
        ValueError,
        SyntaxError,
        RuntimeError,
        struct.error,
        zlib.error,
        zipfile.BadZipFile,
        image_module.DecompressionBombError,
    )


def _unreadable(label: str, error: Exception) -> ValueError:
    reason = str(error).strip() or type(error).__name__
    return ValueError(f"{label} cannot be read ({reason}): replace or remove it")
