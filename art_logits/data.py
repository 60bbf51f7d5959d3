"""Data by name, file or object: labels up front, pixels per batch.

An evaluation needs every label at once (to draw a balanced subset) but only a few images at a time.
:class:`Data` therefore holds labels and ids, and asks its source for the pixels of one batch.
"""

from __future__ import annotations

import hashlib
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from . import _checks
from ._extras import require
from .image_sets import Fit, ImageSet, read_folder, read_zip
from .npz import read_array
from .torchvision_sets import TORCHVISION_SETS, Arrays, read_torchvision

__all__ = ["Data", "as_data", "load_data"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
#: Positions ``(B,)`` in the source, on the CPU, to the inputs ``(B, ...)`` of these samples, floating point.
Source: TypeAlias = Callable[[Tensor], Tensor]

# Radii that mean something on the data: 8/255 says nothing on digits, and is no L2 radius.
_EPS_DIGITS: Mapping[str, float] = {"Linf": 0.1, "L2": 0.5, "L1": 2.0}
_EPS_GRAY: Mapping[str, float] = {"Linf": 0.3, "L2": 2.0, "L1": 10.0}
_EPS_COLOUR: Mapping[str, float] = {"Linf": 8 / 255, "L2": 0.5, "L1": 12.0}
_EPS_IMAGENET: Mapping[str, float] = {"Linf": 4 / 255, "L2": 3.0, "L1": 60.0}

_JPEG = (
    "The images are small JPEG files. If they were made from a published set, as a zip of CIFAR-10 in JPEG "
    "is, they are not that set: the compression changes the pixels, and numbers on them do not compare with "
    "published tables of the original."
)

SAMPLINGS = ("balanced", "first")
_SPLITS = ("test", "train")
_CHUNK = 1024  # samples read at once where all of the data is read
_DECODED = 64  # samples decoded at once: 39 MB at 224x224 in colour


class Data:
    """Labelled samples: labels and ids in memory, inputs on demand.

    Args:
        source: positions ``(B,)`` int64 to inputs ``(B, ...)`` floating point, within ``bounds``.
        labels: ``(N,)`` integers >= 0.
        name: shown to people and stored with results.
        ids: ``(N,)`` distinct integers that stay with the samples in any subset; default ``0 .. N-1``.
        class_names: one per class; None if the number of classes is not known.
        default_eps: radius per norm (``"Linf"``, ``"L2"``, ``"L1"``), in pixel units.
        bounds: lower and upper limit of the inputs.
        positions: ``(N,)`` what to ask the source for; default ``0 .. N-1``.
        notes: what a reader of results on these data must know, by a short code.
        checked: whether all that the source can give is known to be as it must; else each batch is looked at.

    Raises:
        TypeError: labels or ids that are not integers.
        ValueError: no samples, lengths that differ, ids that repeat, labels outside the class names.

    >>> pixels = torch.rand(4, 1, 8, 8)
    >>> data = Data(lambda positions: pixels[positions], torch.tensor([0, 1, 0, 1]), name="four")
    >>> sorted(data.subset(2).labels.tolist()), data.batch([3])[0].shape
    ([0, 1], torch.Size([1, 1, 8, 8]))
    """

    def __init__(
        self,
        source: Source,
        labels: Tensor,
        *,
        name: str,
        ids: Tensor | None = None,
        class_names: Sequence[str] | None = None,
        default_eps: Mapping[str, float] = _EPS_COLOUR,
        bounds: tuple[float, float] = (0.0, 1.0),
        positions: Tensor | None = None,
        notes: Mapping[str, str] | None = None,
        checked: bool = False,
    ) -> None:
        self.name = name
        self.notes = dict(notes or {})
        self.class_names = tuple(str(name) for name in class_names) if class_names is not None else None
        self.labels = _labels(labels, self.class_names)
        count = len(self.labels)
        self.ids = torch.arange(count) if ids is None else torch.from_numpy(_checks.sample_ids(ids, count))
        if len(np.unique(self.ids.numpy())) != count:
            raise ValueError("sample_ids must be distinct, got repeated ones")
        self.default_eps = dict(default_eps)
        self._limits = _checks.bounds(bounds)
        self.bounds = (float(bounds[0]), float(bounds[1]))
        self._source, self._checked = source, checked
        self._positions = torch.arange(count) if positions is None else positions

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        classes = "?" if self.class_names is None else len(self.class_names)
        return f"Data({self.name!r}, n={len(self)}, classes={classes})"

    def batch(self, indices: Sequence[int] | slice | Tensor | Array) -> tuple[Tensor, Tensor]:
        """Inputs and labels of some samples.

        Args:
            indices: ``(B,)`` indices into this data (not ids), or a slice.

        Returns:
            Inputs ``(B, ...)`` float32 (float64 where the source has it), and labels ``(B,)`` int64.

        Raises:
            ValueError: if the source gives NaN, or values outside the bounds.
            TypeError: if it gives no floating-point tensor.
        """
        chosen = (
            indices if isinstance(indices, slice | Tensor) else torch.as_tensor(indices, dtype=torch.int64)
        )
        inputs = self._source(self._positions[chosen])
        if not self._checked:
            inputs = _checks.inputs(inputs, self._limits)
        return inputs if inputs.dtype == torch.float64 else inputs.float(), self.labels[chosen]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of all samples in order, at most ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.batch(slice(start, start + size))

    def subset(self, n: int, sampling: str = "balanced", seed: int = 0) -> Data:
        """A part of the data that depends on labels, ids and seed only: the same for every model.

        ``balanced`` takes as equally many samples of each class as there are, in an order fixed by the
        seed and the ids, without repetition: a smaller subset is part of a larger one. ``first`` takes the
        first ``n``, as RobustBench does. Either way the order of the samples stays.

        Args:
            n: number of samples, at most ``len(self)``.
            sampling: ``"balanced"`` or ``"first"``.
            seed: of the balanced draw.

        Returns:
            The smaller data, with the ids of its samples.

        Raises:
            TypeError: if ``n`` is not an integer.
            ValueError: if ``n`` is below 1 or above ``len(self)``, or for an unknown sampling.
        """
        _checks.integer("n", n, at_least=1)
        _checks.choice("sampling", sampling, SAMPLINGS)
        if n > len(self):
            raise ValueError(f"n must be at most {len(self)}, the samples of {self.name}, got {n}")
        kept = np.arange(n) if sampling == "first" else self._balanced(n, seed)
        index = torch.from_numpy(kept)
        return self._like(labels=self.labels[index], ids=self.ids[index], positions=self._positions[index])

    def _balanced(self, n: int, seed: int) -> Array:
        """Indices of a class-balanced subset, ascending."""
        keys = np.array([_draw_key(seed, i) for i in self.ids.tolist()], dtype=np.uint64)
        labels = self.labels.numpy()
        rank = np.empty(len(self), dtype=np.int64)  # of each sample within its class, in the drawn order
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            rank[members[np.argsort(keys[members], kind="stable")]] = np.arange(len(members))
        return np.sort(np.lexsort((keys, rank))[:n])

    def with_ids(self, ids: Tensor | Array | Sequence[int]) -> Data:
        """The same samples under other ids, ``(N,)`` distinct integers."""
        return self._like(ids=torch.from_numpy(_checks.sample_ids(ids, len(self))))

    def in_memory(self) -> Data:
        """The same samples, read once: image files are else decoded again in each pass over the data."""
        inputs, _ = self.batch(slice(None))
        return self._like(source=lambda positions: inputs[positions], positions=None, checked=True)

    def _like(self, **changed: Any) -> Data:
        """These data but for some arguments."""
        kept = {
            "source": self._source,
            "labels": self.labels,
            "name": self.name,
            "ids": self.ids,
            "class_names": self.class_names,
            "default_eps": self.default_eps,
            "bounds": self.bounds,
            "positions": self._positions,
            "notes": self.notes,
            "checked": self._checked,
        }
        return Data(**{**kept, **changed})

    def fingerprint(self) -> str:
        """sha256, in hex, of ids, labels, shape and pixels: reads all of the data, and so checks it too."""
        digest = hashlib.sha256()
        digest.update(self.ids.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        for number, (inputs, _) in enumerate(self.batches(_DECODED)):
            if number % (_CHUNK // _DECODED) == 0:
                digest.update(f"{inputs.dtype}{tuple(inputs.shape[1:])}".encode())
            digest.update(inputs.contiguous().numpy().tobytes())
        return digest.hexdigest()


def _draw_key(seed: int, sample_id: int) -> int:
    """A pseudo-random number of (seed, id): no generator whose stream a new library version might change."""
    digest = hashlib.blake2b(f"{seed}:{sample_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _labels(labels: object, class_names: Sequence[str] | None) -> Tensor:
    """Labels as ``(N,)`` int64, N > 0, within the class names if there are any."""
    tensor = torch.as_tensor(labels)
    if tensor.ndim == 2 and tensor.shape[1] == 1:  # as Keras stores CIFAR-10
        tensor = tensor.squeeze(1)
    if tensor.ndim != 1:
        raise ValueError(
            f"labels must have shape (N,), got {tuple(tensor.shape)}: of one-hot labels take argmax(axis=1)"
        )
    if len(tensor) == 0:
        raise ValueError("data must hold at least one sample, got none")
    tensor = _checks.labels("labels", tensor, len(tensor), torch.device("cpu"))
    low, high = int(tensor.min()), int(tensor.max())
    if low < 0:
        raise ValueError(f"labels must be >= 0, got {low}")
    if class_names is not None and high >= len(class_names):
        raise ValueError(f"labels must lie in [0, {len(class_names)}), one per class name, got {high}")
    return tensor


# ----------------------------------------------------------------------------------------------------------
# Arrays


def _array_source(array: Array, name: str) -> tuple[Source, int]:
    """Source over an image array ``(N,H,W)``, ``(N,H,W,C)`` or ``(N,C,H,W)``, and its number of channels.

    uint8 stays uint8 in memory; a batch of it is divided by 255.
    """
    if array.ndim not in (3, 4):
        raise ValueError(
            f"{name} must have shape (N,H,W), (N,H,W,C) or (N,C,H,W), got {array.shape}: "
            "reshape flat images first"
        )
    _check_pixels(array, name)
    last = array.ndim == 4 and _channels_last(array.shape, name)
    channels = 1 if array.ndim == 3 else int(array.shape[3 if last else 1])

    def source(positions: Tensor) -> Tensor:
        pixels = torch.from_numpy(array[positions.numpy()])
        pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        if pixels.ndim == 3:
            return pixels.unsqueeze(1)
        return pixels.permute(0, 3, 1, 2).contiguous() if last else pixels

    return source, channels


def _channels_last(shape: tuple[int, ...], name: str) -> bool:
    """Whether the channels of a 4-dimensional array stand last; by the sizes, which must tell."""
    first, last = shape[1] in (1, 3, 4), shape[3] in (1, 3, 4)
    if first == last:
        problem = "both could be" if first else "neither can be"
        raise ValueError(
            f"{name} of shape {shape} must have its 1, 3 or 4 channels at position 1 or 3, and {problem}: "
            "save it as (N,C,H,W) with H and W other than 1, 3 and 4"
        )
    return last


def _check_pixels(array: Array, name: str) -> None:
    """Refuse pixels that are not uint8 or floats in [0, 1]."""
    if array.dtype == np.uint8:
        return
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must be uint8 or floats in [0, 1], got {array.dtype}")
    for start in range(0, len(array), _CHUNK):
        chunk = array[start : start + _CHUNK]
        if np.isnan(chunk).any():
            raise ValueError(f"{name} must not contain NaN")
        if chunk.size and (chunk.min() < 0 or chunk.max() > 1):
            raise ValueError(
                f"{name} must be floats in [0, 1] or uint8, got [{chunk.min():g}, {chunk.max():g}]: "
                "undo the normalisation and put it inside the model"
            )


def _image_data(name: str, x: Array, y: Array, class_names: Sequence[str] | None = None) -> Data:
    """Data over arrays of images and labels, checked against each other."""
    if y.dtype.kind not in "iu":
        raise TypeError(f"labels must be integer class indices, got {y.dtype}")
    if len(x) != len(y):
        raise ValueError(f"inputs and labels must have the same length, got {len(x)} and {len(y)}")
    source, channels = _array_source(x, "inputs")
    eps = _EPS_GRAY if channels == 1 else _EPS_COLOUR
    labels = torch.from_numpy(y.astype(np.int64))
    return Data(source, labels, name=name, class_names=class_names, default_eps=eps)


# ----------------------------------------------------------------------------------------------------------
# Specs


def load_data(
    spec: str | Path,
    *,
    split: str = "test",
    data_dir: str | Path | None = None,
    download: bool = False,
    resize: int | None = None,
    crop: int | None = None,
) -> Data:
    """Load the data that a spec names.

    Specs:
        ``digits``: scikit-learn's 8x8 digits in ``[0, 1]``, ``(N, 1, 8, 8)``, in a fixed stratified split
        of 1297 for training and 500 for the test.
        ``mnist``, ``cifar10``, ``cifar100``, ``svhn``, ``stl10``, ``imagenet``: through torchvision, from
        ``data_dir``.
        ``FOLDER`` or ``FILE.zip``: image files in ImageFolder layout, ``<class>/*`` or ``<split>/<class>/*``
        (the test split may be called ``val``), decoded batch by batch. Classes are in alphabetical order.
        ``FILE.npz``: ``x`` (``(N,H,W)``, ``(N,H,W,C)`` or ``(N,C,H,W)``, uint8 or floats in ``[0, 1]``) and
        ``y`` ``(N,)``, with optional ``class_names``; or Keras' ``x_train, y_train, x_test, y_test``, of
        which ``split`` chooses. Pixels that ``numpy.savez`` wrote stay in the file; those of
        ``savez_compressed`` are read into memory. A file or folder without splits holds one, whichever is
        asked for.

    Args:
        spec: what to load.
        split: ``"test"`` or ``"train"``.
        data_dir: where torchvision's files lie, or go to; default ``data``.
        download: let torchvision download what is missing.
        resize: scale the shorter side of image files, or of torchvision's images, to this many pixels and
            cut the middle square.
        crop: cut the middle ``crop x crop`` pixels, after resizing.

    Returns:
        The data. Ids are the positions in the split; of image files, in the order of class and path.

    Raises:
        FileNotFoundError: if the file or folder is not there.
        ValueError: for an unknown spec or split, a file that cannot be read as such data, or an option that
            the data does not take.
        TypeError: for labels or pixels of a wrong type.

    >>> load_data("digits")
    Data('digits', n=500, classes=10)
    """
    _checks.choice("split", split, _SPLITS)
    fit, name = Fit(resize, crop), str(spec)
    if name in TORCHVISION_SETS:
        return _torchvision(name, split, Path(data_dir or "data"), download, fit)
    if download or data_dir is not None:
        option = "download" if download else "data_dir"
        raise ValueError(f"{option} is for {', '.join(TORCHVISION_SETS)}, not for data {name!r}")
    path = Path(spec)
    # Path("") is the working directory.
    if name and name not in _NAMED and path.is_dir():
        return _image_files(path.resolve().name, read_folder(path, split, fit))
    if name in _NAMED:
        _unresized(name, fit)
        return _NAMED[name](split)
    return _file(name, path, split, fit)


def _file(name: str, path: Path, split: str, fit: Fit) -> Data:
    """The data of a file, by its suffix."""
    loader = _BY_SUFFIX.get(path.suffix.lower())
    if loader is None and path.name != name and not path.exists():  # a path, not a name
        raise FileNotFoundError(f"data: there is no folder {name!r}")
    if loader is None:
        known = [*_NAMED, *TORCHVISION_SETS]
        raise ValueError(
            f"data must be one of {', '.join(known)}, an existing folder of images, or a file ending in "
            f"{', '.join(_BY_SUFFIX)}, got {name!r}{_checks.nearest(name, known)}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"data: there is no file {name!r}")
    return loader(path, split, fit)


def _unresized(name: str, fit: Fit) -> None:
    """Refuse to resize what is no set of images in bytes."""
    if fit.size is not None:
        raise ValueError(f"resize and crop are for image files and torchvision's sets, not for data {name!r}")


def _zip(path: Path, split: str, fit: Fit) -> Data:
    """The images in a zipped folder."""
    return _image_files(path.stem, read_zip(path, split, fit))


def _image_files(name: str, images: ImageSet, default_eps: Mapping[str, float] | None = None) -> Data:
    """Data over image files."""
    return Data(
        images.source,
        images.labels,
        name=name,
        class_names=images.class_names,
        default_eps=default_eps or (_EPS_GRAY if images.gray else _EPS_COLOUR),
        notes={"jpeg": _JPEG} if images.small_jpegs else None,
    )


def _torchvision(name: str, split: str, data_dir: Path, download: bool, fit: Fit) -> Data:
    """A set of torchvision's: arrays, or image files."""
    content = read_torchvision(name, split, data_dir, download=download, fit=fit)
    if isinstance(content, Arrays):
        return _image_data(name, content.x, content.y, content.class_names)
    return _image_files(name, content, _EPS_IMAGENET if name == "imagenet" else None)


def _digits(split: str) -> Data:
    """The held-out or the training split of scikit-learn's digits."""
    datasets = require("sklearn.datasets", extra="evaluate")
    selection = require("sklearn.model_selection", extra="evaluate")
    x, y = datasets.load_digits(return_X_y=True)
    parts = selection.train_test_split(np.arange(len(y)), test_size=500, stratify=y, random_state=0)
    index = np.sort(parts[0] if split == "train" else parts[1])
    images = (x[index] / 16).astype(np.float32).reshape(-1, 8, 8)
    source, _ = _array_source(images, "digits")
    labels = torch.from_numpy(y[index].astype(np.int64))
    names = [str(digit) for digit in range(10)]
    return Data(source, labels, name="digits", class_names=names, default_eps=_EPS_DIGITS)


def _npz(path: Path, split: str, fit: Fit) -> Data:
    """Arrays of an ``.npz`` file, read as data only: pickled objects are refused."""
    _unresized(str(path), fit)
    archive = _guarded(path, lambda: np.load(path, allow_pickle=False))
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError(f"data file {str(path)!r} is no .npz archive: save it with numpy.savez")
    with archive:
        x_key, y_key = _npz_keys(archive.files, path, split)
        x, y = _guarded(path, lambda: (read_array(archive, path, x_key), archive[y_key]))
        names = _guarded(path, lambda: archive["class_names"].tolist()) if "class_names" in archive else None
    return _image_data(path.stem, x, y, names)


def _npz_keys(keys: Sequence[str], path: Path, split: str) -> tuple[str, str]:
    """Under which keys the images and the labels lie."""
    for pair in (("x", "y"), (f"x_{split}", f"y_{split}")):
        if set(pair) <= set(keys):
            return pair
    raise ValueError(
        f"data file {str(path)!r} must hold 'x' and 'y', or 'x_{split}' and 'y_{split}', "
        f"got {', '.join(map(repr, keys)) or 'nothing'}"
    )


#: What reading an archive raises on damage; RuntimeError also on encryption and unknown compression.
_ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    SyntaxError,
    RuntimeError,
    pickle.UnpicklingError,
)


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    """Read from an archive, or say what is wrong with the file."""
    try:
        return read()
    except _ARCHIVE_ERRORS as error:
        if "pickle" in str(error):
            raise ValueError(
                f"data file {str(path)!r} holds pickled Python objects, which could run code: save x and y "
                "as plain arrays, and class_names as an array of strings (not dtype=object)"
            ) from error
        reason = str(error).strip() or type(error).__name__
        raise ValueError(
            f"data file {str(path)!r} is no complete .npz archive ({reason}): it is truncated or in another "
            "format"
        ) from error


_NAMED: dict[str, Callable[[str], Data]] = {"digits": _digits}
_BY_SUFFIX: dict[str, Callable[[Path, str, Fit], Data]] = {".npz": _npz, ".zip": _zip}


# ----------------------------------------------------------------------------------------------------------
# Objects


def as_data(data: object, *, bounds: tuple[float, float] = (0.0, 1.0)) -> Data:
    """Data from what people have at hand.

    Args:
        data: a :class:`Data`; a pair ``(inputs, labels)`` of tensors or arrays, ``(N, ...)`` in the bounds
            (or uint8, divided by 255) and ``(N,)`` integers; a map-style ``torch.utils.data.Dataset`` of
            ``(input, label)``; or a ``DataLoader``, of which the dataset is read in order.
        bounds: limits of the inputs.

    Returns:
        The data. Ids are the positions in a dataset; of a pair they are hashes of each sample's bytes and
        label, so that they do not depend on the order.

    Raises:
        TypeError: for anything else, and for inputs or labels of a wrong type.
        ValueError: for lengths that differ, no samples, NaN, or inputs outside the bounds.

    >>> as_data((torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 2])))
    Data('arrays', n=3, classes=?)
    """
    if isinstance(data, Data):
        return data
    if isinstance(data, tuple | list) and len(data) == 2 and all(map(_is_array, data)):
        return _pair_data(data[0], data[1], bounds)
    if isinstance(data, torch.utils.data.DataLoader):
        data = data.dataset
    if (
        hasattr(data, "__getitem__")
        and hasattr(data, "__len__")
        and not isinstance(data, tuple | list | Tensor)
    ):
        return _dataset_data(data, bounds)
    raise TypeError(
        "data must be a Data, a pair (inputs, labels) of tensors or arrays, a map-style Dataset of "
        f"(input, label) or a DataLoader over one, got {type(data).__name__}"
    )


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _pair_data(inputs: Tensor | Array, labels: Tensor | Array, bounds: tuple[float, float]) -> Data:
    """Data over two arrays, any shape of sample."""
    pixels = torch.as_tensor(inputs).detach().cpu()
    targets = torch.as_tensor(labels).detach().cpu()
    if pixels.dtype == torch.uint8 and tuple(bounds) == (0.0, 1.0):
        pixels = pixels.float() / 255
    pixels = _checks.inputs(pixels, _checks.bounds(bounds))
    if len(pixels) != len(targets):
        raise ValueError(f"inputs and labels must have the same length, got {len(pixels)} and {len(targets)}")
    targets = _labels(targets, None)
    gray = pixels.ndim == 4 and pixels.shape[1] == 1
    return Data(
        lambda positions: pixels[positions],
        targets,
        name="arrays",
        ids=_distinct_hashes(pixels, targets),
        default_eps=_EPS_GRAY if gray else _EPS_COLOUR,
        bounds=bounds,
        checked=True,
    )


def _distinct_hashes(inputs: Tensor, labels: Tensor) -> Tensor:
    """One id per sample from its bytes and label; the copies of a repeated sample are counted through."""
    from .starts import sample_hashes

    ids = sample_hashes(inputs, labels)
    seen: dict[int, int] = {}
    for i, first in enumerate(ids.tolist()):
        copies = seen.get(first, 0)
        seen[first] = copies + 1
        if copies:
            # Copies are alike, so which of them gets which id changes nothing.
            digest = hashlib.blake2b(f"{first}:{copies}".encode(), digest_size=8).digest()
            ids[i] = int.from_bytes(digest, "little", signed=True)
    return torch.from_numpy(ids)


def _dataset_data(dataset: Any, bounds: tuple[float, float]) -> Data:
    """Data over a map-style dataset, which is read once for its labels."""

    def sample(index: int) -> tuple[Tensor, int]:
        item = dataset[index]
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise TypeError(f"data must give (input, label) per sample, got {type(item).__name__} at {index}")
        pixels, label = item[0], item[1]
        if not _is_array(pixels):
            raise TypeError(
                f"data must give inputs as tensors or arrays, got {type(pixels).__name__} at {index}: "
                "add a transform such as torchvision.transforms.ToTensor()"
            )
        return torch.as_tensor(pixels), _scalar_label(label, index)

    def source(positions: Tensor) -> Tensor:
        return torch.stack([sample(index)[0] for index in positions.tolist()])

    if len(dataset) == 0:
        raise ValueError("data must hold at least one sample, got none")
    first, _ = sample(0)
    gray = first.ndim == 3 and first.shape[0] == 1
    return Data(
        source,
        torch.tensor([sample(index)[1] for index in range(len(dataset))]),
        name=type(dataset).__name__,
        class_names=getattr(dataset, "classes", None),
        default_eps=_EPS_GRAY if gray else _EPS_COLOUR,
        bounds=bounds,
    )


def _scalar_label(label: object, index: int) -> int:
    """A label of a dataset as int: an integer, or a 0-dimensional integer tensor or array."""
    array = np.asarray(label)
    if array.ndim != 0 or array.dtype.kind not in "iu":
        raise TypeError(f"data must give integer labels, got {label!r} at {index}")
    return int(array)
