"""RobustBench's data: the clean test images of a data set, and their corrupted versions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from art_logits import _checks
from art_logits.data import Data, load_data
from art_logits.types import Model

from ._host import robustbench

__all__ = ["Corrupted", "clean_images", "corruptions"]

SEVERITIES = 5

_BATCH = 256
_IMAGENET_CLASSES = 1000
#: RobustBench's usual radii, by data set and norm.
DEFAULT_EPS = {
    "cifar10": {"Linf": 8 / 255, "L2": 0.5},
    "cifar100": {"Linf": 8 / 255, "L2": 0.5},
    "imagenet": {"Linf": 4 / 255, "L2": 3.0},
}


def clean_images(
    dataset: str,
    threat_model: str,
    *,
    n_examples: int | None,
    data_dir: str | Path,
    model_name: str | None,
    preprocessing: str | Callable[[Any], Tensor] | None,
) -> Data:
    """The first test images of a data set, as RobustBench takes them.

    Args:
        dataset: ``"cifar10"``, ``"cifar100"`` or ``"imagenet"``.
        threat_model: RobustBench's; ImageNet's preprocessing may depend on it.
        n_examples: how many; None for all.
        data_dir: folder of the data. What is missing of CIFAR is downloaded; of ImageNet it holds
            ``val/<class>/*.JPEG``, of which RobustBench takes 5000.
        model_name: whose preprocessing ImageNet's images get.
        preprocessing: RobustBench's name of one, or a callable from a PIL image to ``(3, H, W)``.

    Returns:
        The data, with the positions in RobustBench's order as ids.

    Raises:
        ValueError: more images than there are, or a preprocessing that is missing or unknown.
        FileNotFoundError: ImageNet's images are missing.
        OSError: a download failed.
    """
    transform = _preprocessing(dataset, threat_model, model_name, preprocessing)
    if dataset == "imagenet":
        data = _imagenet(Path(data_dir), transform)
    elif preprocessing is None:
        data = _cifar(dataset, data_dir)
    else:
        inputs, labels = robustbench("data").load_clean_dataset(
            _enum("BenchmarkDataset", dataset), None, str(data_dir), transform
        )
        data = Data(lambda rows: inputs[rows], labels, name=dataset, default_eps=DEFAULT_EPS[dataset])
    if n_examples is None:
        return data
    if _checks.integer("n_examples", n_examples, at_least=1) > len(data):
        raise ValueError(f"n_examples must be at most {len(data)}, the images of {dataset}, got {n_examples}")
    return data.subset(n_examples, "first")


def _enum(kind: str, value: str) -> Any:
    return getattr(robustbench("model_zoo.enums"), kind)(value)


def _preprocessing(dataset: str, threat_model: str, model_name: str | None, given: Any) -> Any:
    if isinstance(given, str):
        _checks.choice("preprocessing", given, [name for name in robustbench("data").PREPROCESSINGS if name])
    enums = _enum("BenchmarkDataset", dataset), _enum("ThreatModel", threat_model)
    try:
        return robustbench("data").get_preprocessing(*enums, model_name, given)
    except Exception as error:  # RobustBench raises just that
        raise ValueError(
            f"preprocessing must be given for {dataset} unless model_name is one of the zoo, got model_name "
            f"{model_name!r}: one of {', '.join(filter(None, robustbench('data').PREPROCESSINGS))}"
        ) from error


def _cifar(dataset: str, data_dir: str | Path) -> Data:
    try:
        return load_data(dataset, data_dir=data_dir)
    except FileNotFoundError:
        return load_data(dataset, data_dir=data_dir, download=True)


def _imagenet(data_dir: Path, transform: Any) -> Data:
    folder = _folder(data_dir / "val", transform)
    return Data(
        _source(folder),
        torch.tensor(folder.targets),
        name="imagenet",
        class_names=folder.classes,
        default_eps=DEFAULT_EPS["imagenet"],
    )


def _folder(path: Path, transform: Any) -> Any:
    """RobustBench's 5000 images of ImageNet in a folder of all of them, decoded on demand."""
    try:
        folder = robustbench("loaders").CustomImageFolder(path, transform)
    except (FileNotFoundError, KeyError) as error:
        raise FileNotFoundError(
            f"data_dir: expected ImageNet's images as <class>/*.JPEG in {str(path)!r}, all classes ({error})"
        ) from error
    if len(folder.classes) != _IMAGENET_CLASSES:
        # RobustBench counts the folders for its labels, and three classes have none of its images.
        raise ValueError(
            f"data_dir: expected folders of all {_IMAGENET_CLASSES} classes in {str(path)!r}, got "
            f"{len(folder.classes)}: their order gives the labels"
        )
    return folder


def _source(folder: Any) -> Callable[[Tensor], Tensor]:
    return lambda positions: torch.stack([folder[position][0] for position in positions.tolist()])


# ----------------------------------------------------------------------------------------------------------
# Corruptions


@dataclass(frozen=True)
class Corrupted:
    """Corrupted images in the place of an attack's: the same samples, found by their ids.

    Args:
        corruption: its name, such as ``"fog"``.
        severity: from 1 to 5.
        source: ids ``(N,)`` to images ``(N, 3, H, W)`` in [0, 1].
        digest: what tells these images from others.
    """

    corruption: str
    severity: int
    source: Callable[[Tensor], Tensor]
    digest: str

    takes_parts: ClassVar[bool] = True

    def config(self) -> dict[str, Any]:
        """What decides the result."""
        return {"corruption": self.corruption, "severity": self.severity, "sha256": self.digest}

    def __call__(
        self,
        model: Model,
        inputs: Tensor,
        labels: Tensor,
        sample_ids: Tensor,
        *,
        batch_size: int | None = None,
    ) -> Tensor:
        """The corrupted images of these samples; the model is not asked."""
        return self.source(torch.as_tensor(sample_ids)).to(inputs)


def corruptions(dataset: str, threat_model: str, data: Data, data_dir: str | Path) -> dict[str, Corrupted]:
    """The corrupted versions of the first images of a data set, by ``<corruption>-<severity>``.

    Args:
        dataset: ``"cifar10"``, ``"cifar100"`` or ``"imagenet"``.
        threat_model: ``"corruptions"``, or for ImageNet also ``"corruptions_3d"``.
        data: the clean images.
        data_dir: folder that holds ``CIFAR-10-C/*.npy``, ``CIFAR-100-C/*.npy``,
            ``ImageNet-C/<corruption>/<severity>/<class>/*`` or ``ImageNet-3DCC/...``. What is missing of
            CIFAR-C is downloaded by RobustBench's own code.

    Returns:
        One entry per corruption and severity.

    Raises:
        ValueError: the data set has no such corruptions, or files that are not of its layout.
        FileNotFoundError: files are missing.
        OSError: the download failed.
    """
    host, key = robustbench("data"), (_enum("BenchmarkDataset", dataset), _enum("ThreatModel", threat_model))
    names = host.CORRUPTIONS_DICT[key[0]].get(key[1])
    if names is None:
        raise ValueError(
            f"threat_model must not be {threat_model} for {dataset}: RobustBench has no such images"
        )
    root = Path(data_dir) / host.CORRUPTIONS_DIR_NAMES[key[0]][key[1]]
    build = _imagenet_c if dataset == "imagenet" else _cifar_c
    if dataset != "imagenet":
        _provide_cifar_c(root, host.ZENODO_CORRUPTIONS_LINKS[key[0]])
        _check_labels(root / "labels.npy", data)
    return {
        f"{name}-{severity}": build(root, name, severity, data)
        for name in names
        for severity in range(1, SEVERITIES + 1)
    }


def _provide_cifar_c(root: Path, link: tuple[str, set[str]]) -> None:
    if root.exists():
        return
    try:
        robustbench("data").zenodo_download(*link, save_dir=root.parent)
    except Exception as error:  # its own error, those of requests, and of what it makes of their answers
        raise OSError(
            f"{root.name} could not be downloaded to {str(root.parent)!r} ({type(error).__name__}: {error}): "
            f"unpack {', '.join(link[1])} of https://zenodo.org/records/{link[0]} there, or give the folder "
            "that has it (corruptions_data_dir)"
        ) from error


def _array(path: Path) -> np.ndarray[Any, Any]:
    """An array that stays in its file."""
    if not path.is_file():
        raise FileNotFoundError(f"corruptions_data_dir: there is no file {str(path)!r}")
    try:
        array: np.ndarray[Any, Any] = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read ({error}): it is truncated or no .npy file; get it again"
        ) from error
    return array


def _check_labels(path: Path, data: Data) -> None:
    labels = _array(path)
    ids = data.ids.numpy()
    if labels.ndim != 1 or len(labels) <= ids.max() or (labels[ids] != data.labels.numpy()).any():
        raise ValueError(f"{str(path)!r} must hold the labels of the {len(data)} clean images, got others")


def _cifar_c(root: Path, name: str, severity: int, data: Data) -> Corrupted:
    path = root / f"{name}.npy"
    images = _array(path)
    total, ids = len(images) // SEVERITIES, data.ids.numpy()
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or ids.max() >= total:
        raise ValueError(
            f"{str(path)!r} must hold {SEVERITIES} times at least {ids.max() + 1} images (32, 32, 3) of "
            f"bytes, got {images.dtype} of shape {images.shape}"
        )
    first = (severity - 1) * total

    def source(positions: Tensor) -> Tensor:
        pixels = torch.from_numpy(images[first + positions.numpy()])
        return pixels.permute(0, 3, 1, 2).float() / 255

    digest = hashlib.sha256()
    for start in range(0, len(ids), _BATCH):
        digest.update(images[first + ids[start : start + _BATCH]].tobytes())
    return Corrupted(name, severity, source, digest.hexdigest())


def _imagenet_c(root: Path, name: str, severity: int, data: Data) -> Corrupted:
    """Resized only, as RobustBench does; the files are told by their names and sizes, not decoded for it."""
    path = root / name / str(severity)
    folder = _folder(path, robustbench("data").PREPROCESSINGS["Res224"])
    digest = hashlib.sha256()
    for position in data.ids.tolist():
        file = Path(folder.samples[position][0])
        if not file.is_file():
            raise FileNotFoundError(f"corruptions_data_dir: there is no file {str(file)!r}")
        digest.update(f"{file.relative_to(path)}:{file.stat().st_size}".encode())
    return Corrupted(name, severity, _source(folder), digest.hexdigest())
