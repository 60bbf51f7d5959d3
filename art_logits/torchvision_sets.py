"""Public data sets by name, read and if asked downloaded by torchvision."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor

from ._extras import require
from .image_sets import Fit, ImageSet, image_files, to_float

__all__ = ["TORCHVISION_SETS", "Arrays", "read_torchvision"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_DIGITS = tuple(str(digit) for digit in range(10))
_STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


class Arrays(NamedTuple):
    """A set whose images torchvision holds as one array of bytes."""

    x: Array  # (N, H, W), (N, H, W, 3) or (N, 3, H, W), uint8
    y: Array  # (N,) integers
    class_names: Sequence[str]


def read_torchvision(name: str, split: str, data_dir: Path, *, download: bool, fit: Fit) -> Arrays | ImageSet:
    """A set by its name.

    Args:
        name: one of :data:`TORCHVISION_SETS`.
        split: ``"test"`` (of ImageNet, the validation images) or ``"train"``.
        data_dir: folder of the files, in the layout that torchvision makes.
        download: whether to download them first, where they are missing.
        fit: how images are resized.

    Returns:
        Arrays of bytes in memory; of ImageNet, and of anything that is resized, images decoded on demand.

    Raises:
        FileNotFoundError: if files are missing or do not have the set's checksums.
        ValueError: if they cannot be read, or ImageNet should be downloaded.
        OSError: if a download fails.
    """
    request = _Request(name, split, data_dir, download)
    if name == "imagenet":
        return _imagenet(request, fit)
    arrays = _ARRAYS[name](request)
    return arrays if fit.size is None else _resized(arrays, fit, f"data {name!r}")


class _Request(NamedTuple):
    """What was asked for."""

    name: str
    split: str
    folder: Path
    download: bool

    def read(self, kind: str, **options: Any) -> Any:
        """An instance of torchvision's class of that name, with its errors told in our words."""
        dataset = getattr(require("torchvision.datasets", extra="evaluate"), kind)
        if self.download:
            options["download"] = True
        try:
            return dataset(str(self.folder), **options)
        except (URLError, RuntimeError, FileNotFoundError) as error:
            if self.download:
                raise OSError(
                    f"data {self.name!r} could not be downloaded to {str(self.folder)!r}: {error}"
                ) from error
            raise FileNotFoundError(self._absent(error)) from error
        except _UNREADABLE as error:
            reason = str(error).strip() or type(error).__name__
            raise ValueError(
                f"data {self.name!r} in {str(self.folder)!r} cannot be read "
                f"({type(error).__name__}: {reason}): remove its files there and get them again"
            ) from error

    def _absent(self, error: Exception) -> str:
        """What to do about files that are not there."""
        remedy = (
            "put ILSVRC2012_devkit_t12.tar.gz and ILSVRC2012_img_val.tar (or _train.tar) there, which "
            "--download cannot fetch"
            if self.name == "imagenet"
            else "or let it be downloaded there (--download)"
        )
        return (
            f"data {self.name!r} is not complete in the folder {str(self.folder)!r}: give the folder that "
            f"has it (data_dir, on the command line --data-dir), {remedy} [torchvision: {error}]"
        )


#: What torchvision's readers raise on files that are truncated or something else.
_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AssertionError,
    EOFError,
    pickle.UnpicklingError,
)


def _mnist(request: _Request) -> Arrays:
    data = request.read("MNIST", train=request.split == "train")
    return Arrays(data.data.numpy(), data.targets.numpy(), _DIGITS)


def _cifar(request: _Request) -> Arrays:
    data = request.read(request.name.upper(), train=request.split == "train")
    return Arrays(data.data, np.asarray(data.targets), data.classes)


def _svhn(request: _Request) -> Arrays:
    data = request.read("SVHN", split=request.split)
    return Arrays(data.data, data.labels, _DIGITS)


def _stl10(request: _Request) -> Arrays:
    data = request.read("STL10", split=request.split)
    return Arrays(data.data, data.labels, _STL10)


def _imagenet(request: _Request, fit: Fit) -> ImageSet:
    """ImageNet's images where they lie; torchvision unpacks the archives on first use."""
    if request.download:
        raise ValueError(
            "download cannot get imagenet: it needs an account at image-net.org; put its archives into the "
            "folder that data_dir names (on the command line --data-dir)"
        )
    data = request.read("ImageNet", split="train" if request.split == "train" else "val")
    paths = [Path(path) for path, _ in data.samples]
    first_names = Counter(names[0] for names in data.classes)
    return image_files(
        lambda position: paths[position].read_bytes(),
        [f"{path.parent.name}/{path.name}" for path in paths],
        data.targets,
        # "crane" is a bird and a machine.
        [
            names[0] if first_names[names[0]] == 1 else f"{names[0]} ({wnid})"
            for names, wnid in zip(data.classes, data.wnids, strict=True)
        ],
        where="data 'imagenet'",
        fit=fit,
    )


def _resized(arrays: Arrays, fit: Fit, where: str) -> ImageSet:
    """Images of an array, resized as image files are."""
    image_module = require("PIL.Image", extra="evaluate")
    first = arrays.x.ndim == 4 and arrays.x.shape[1] == 3
    images = arrays.x.transpose(0, 2, 3, 1) if first else arrays.x

    def pixels(position: int) -> Array:
        try:
            return np.array(fit(image_module.fromarray(np.ascontiguousarray(images[position]))))
        except ValueError as error:
            raise ValueError(f"{where}: image {position}: {error}") from error

    def source(positions: Tensor) -> Tensor:
        return to_float(np.stack([pixels(position) for position in positions.tolist()]))

    return ImageSet(source, torch.from_numpy(arrays.y.astype(np.int64)), arrays.class_names, images.ndim == 3)


_ARRAYS: dict[str, Callable[[_Request], Arrays]] = {
    "mnist": _mnist,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "svhn": _svhn,
    "stl10": _stl10,
}
#: The names that ``--data`` takes.
TORCHVISION_SETS = (*_ARRAYS, "imagenet")
