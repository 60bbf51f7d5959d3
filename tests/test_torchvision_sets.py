"""Loaders of public sets, each on files in the set's own format that are made here. No network."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision import datasets

from art_logits.data import load_data

COUNT = {"train": 6, "test": 4}


def images(split: str, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(len(split))
    return rng.integers(0, 256, (COUNT[split], *shape), dtype=np.uint8)


def labels(split: str) -> list[int]:
    return [(3 * i + len(split)) % 10 for i in range(COUNT[split])]


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# Each maker writes both splits in the set's format, enters their checksums where torchvision compares these,
# and returns the images as (N, C, H, W) or (N, H, W) of the split asked for.


def mnist(root: Path, monkeypatch) -> dict[str, np.ndarray]:
    made = {split: images(split, 28, 28) for split in COUNT}
    for split, prefix in {"train": "train", "test": "t10k"}.items():
        raw = root / "MNIST" / "raw"
        header = struct.pack(">iiii", 0x803, COUNT[split], 28, 28)
        write(raw / f"{prefix}-images-idx3-ubyte", header + made[split].tobytes())
        write(
            raw / f"{prefix}-labels-idx1-ubyte",
            struct.pack(">ii", 0x801, COUNT[split]) + bytes(labels(split)),
        )
    return {split: array[:, None] for split, array in made.items()}


def cifar(root: Path, monkeypatch, *, fine: bool) -> dict[str, np.ndarray]:
    made = {split: images(split, 3, 32, 32) for split in COUNT}
    kind = datasets.CIFAR100 if fine else datasets.CIFAR10
    key = "fine_labels" if fine else "labels"
    names = [f"class {i}" for i in range(100 if fine else 10)]
    folder = root / kind.base_folder

    def batch(name: str, split: str) -> list[str]:
        content = {"data": made[split].reshape(COUNT[split], -1), key: labels(split)}
        return [name, md5(write(folder / name, pickle.dumps(content)))]

    meta_key = "fine_label_names" if fine else "label_names"
    meta = write(folder / kind.meta["filename"], pickle.dumps({meta_key: names}))
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(meta)})
    monkeypatch.setattr(kind, "train_list", [batch("train" if fine else "data_batch_1", "train")])
    monkeypatch.setattr(kind, "test_list", [batch("test" if fine else "test_batch", "test")])
    return made


def cifar10(root: Path, monkeypatch) -> dict[str, np.ndarray]:
    return cifar(root, monkeypatch, fine=False)


def cifar100(root: Path, monkeypatch) -> dict[str, np.ndarray]:
    return cifar(root, monkeypatch, fine=True)


def svhn(root: Path, monkeypatch) -> dict[str, np.ndarray]:
    made, entries = {split: images(split, 3, 32, 32) for split in COUNT}, {}
    for split in COUNT:
        path = write(root / f"{split}_32x32.mat", b"")
        stored = [label or 10 for label in labels(split)]  # the format writes the digit 0 as 10
        scipy.io.savemat(
            path, {"X": made[split].transpose(2, 3, 1, 0), "y": np.array(stored, np.uint8)[:, None]}
        )
        entries[split] = ["http://localhost", path.name, md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", entries)
    return made


def stl10(root: Path, monkeypatch) -> dict[str, np.ndarray]:
    made = {split: images(split, 3, 96, 96) for split in COUNT}
    folder, lists = root / datasets.STL10.base_folder, {}
    for split in COUNT:
        # Columns first, and classes counted from 1.
        x = write(folder / f"{split}_X.bin", made[split].transpose(0, 1, 3, 2).tobytes())
        y = write(folder / f"{split}_y.bin", bytes(label + 1 for label in labels(split)))
        lists[split] = [[path.name, md5(path)] for path in (x, y)]
    monkeypatch.setattr(datasets.STL10, "train_list", lists["train"])
    monkeypatch.setattr(datasets.STL10, "test_list", lists["test"])
    return made


MAKERS = {"mnist": mnist, "cifar10": cifar10, "cifar100": cifar100, "svhn": svhn, "stl10": stl10}
SETS = pytest.mark.parametrize("name", list(MAKERS))


@SETS
@pytest.mark.parametrize("split", ["test", "train"])
def test_pixels_labels_names_and_radii(name, split, tmp_path, monkeypatch):
    expected = MAKERS[name](tmp_path, monkeypatch)[split]
    data = load_data(name, split=split, data_dir=tmp_path)
    assert data.name == name
    assert data.labels.tolist() == labels(split)
    assert data.ids.tolist() == list(range(COUNT[split]))
    inputs, _ = data.batch([2, 0])
    assert inputs.dtype == torch.float32
    assert np.array_equal(inputs.numpy(), expected[[2, 0]].astype(np.float32) / 255)
    assert data.default_eps["Linf"] == (0.3 if name == "mnist" else 8 / 255)
    assert data.class_names is not None
    assert len(data.class_names) == (100 if name == "cifar100" else 10)
    start = {"mnist": "0", "svhn": "0", "stl10": "airplane"}.get(name, "class 0")
    assert data.class_names[0] == start


@SETS
def test_they_are_resized_when_asked(name, tmp_path, monkeypatch):
    expected = MAKERS[name](tmp_path, monkeypatch)["test"]
    channels = expected.shape[1]
    data = load_data(name, data_dir=tmp_path, crop=20)
    size = expected.shape[-1]
    low = (size - 20) // 2
    middle = expected[:, :, low : low + 20, low : low + 20]
    assert np.array_equal(data.batch(slice(None))[0].numpy(), middle.astype(np.float32) / 255)
    assert data.labels.tolist() == labels("test")
    assert load_data(name, data_dir=tmp_path, resize=40, crop=36).batch([0])[0].shape == (1, channels, 36, 36)
    with pytest.raises(ValueError, match=rf"data '{name}': image 0: it is {size}x{size}, smaller than crop"):
        load_data(name, data_dir=tmp_path, crop=100).batch([0])


@pytest.mark.parametrize("name", [*MAKERS, "imagenet"])
def test_missing_files_say_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError,
        match=rf"data '{name}' is not complete in the folder 'data': .* --data-dir\), .*--download",
    ):
        load_data(name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "stl10"])
def test_a_wrong_checksum_is_not_read(name, tmp_path, monkeypatch):
    """Before anything is unpickled."""
    MAKERS[name](tmp_path, monkeypatch)
    for path in tmp_path.rglob("*test*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FileNotFoundError, match=f"data '{name}' is not complete"):
        load_data(name, data_dir=tmp_path)


def test_files_of_another_format_are_named(tmp_path, monkeypatch):
    mnist(tmp_path, monkeypatch)
    write(tmp_path / "MNIST/raw/t10k-images-idx3-ubyte", b"<html>" * 40)
    with pytest.raises(ValueError, match=r"data 'mnist' in .* cannot be read \(.*: remove its files there"):
        load_data("mnist", data_dir=tmp_path)


def test_download_is_torchvisions(tmp_path, monkeypatch):
    made: list[dict[str, np.ndarray]] = []
    monkeypatch.setattr(datasets.MNIST, "download", lambda self: made.append(mnist(Path(self.root), None)))
    data = load_data("mnist", data_dir=tmp_path / "new", download=True)
    assert np.array_equal(data.batch([1])[0].numpy() * 255, made[0]["test"][[1]])


def test_a_download_that_fails_is_told_as_such(tmp_path, monkeypatch):
    def offline(self):
        raise URLError("no route to host")

    monkeypatch.setattr(datasets.CIFAR10, "download", offline)
    with pytest.raises(OSError, match=r"data 'cifar10' could not be downloaded .*no route to host"):
        load_data("cifar10", data_dir=tmp_path, download=True)


# ----------------------------------------------------------------------------------------------------------
# ImageNet

WNIDS = {
    "n02012849": ("crane",),
    "n03126707": ("crane", "derrick"),
    "n01440764": ("tench", "Tinca tinca"),
}
SIZES = [(300, 400), (500, 375), (256, 256)]


def jpeg(seed: int, shape: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)).save(
        file, "jpeg"
    )
    return file.getvalue()


@pytest.fixture
def imagenet(tmp_path) -> Path:
    """The folder after torchvision has unpacked the archives."""
    torch.save((WNIDS, list(WNIDS)), tmp_path / "meta.bin")
    for split in ("val", "train"):
        for i, wnid in enumerate(WNIDS):
            write(tmp_path / split / wnid / f"ILSVRC2012_{i}.JPEG", jpeg(i, SIZES[i]))
    return tmp_path


def test_imagenet(imagenet):
    data = load_data("imagenet", data_dir=imagenet, resize=256, crop=224)
    assert data.class_names == ("tench", "crane (n02012849)", "crane (n03126707)")
    assert data.labels.tolist() == [0, 1, 2]
    assert data.default_eps == {"Linf": 4 / 255, "L2": 3.0, "L1": 60.0}
    inputs, _ = data.batch(slice(None))
    assert inputs.shape == (3, 3, 224, 224)
    # The third of the ids above is the first class; its image is 256x256 and only cut.
    whole = np.asarray(Image.open(io.BytesIO(jpeg(2, SIZES[2]))))
    assert np.array_equal(inputs[0].numpy() * 255, whole[16:240, 16:240].transpose(2, 0, 1))
    assert len(load_data("imagenet", split="train", data_dir=imagenet)) == 3


def test_imagenet_is_resized_only_when_asked(imagenet):
    with pytest.raises(
        ValueError,
        match=r"image 'n02012849/ILSVRC2012_0.JPEG' has 300x400 pixels and 'n01440764/ILSVRC2012_2.JPEG' has",
    ):
        load_data("imagenet", data_dir=imagenet).batch(slice(None))


def test_imagenet_from_its_archives(tmp_path, monkeypatch):
    """The devkit and the tar of validation images, as they come from image-net.org."""
    synsets = np.zeros(3, [(name, object) for name in ("id", "wnid", "words", "gloss", "num_children")])
    for i, (wnid, words) in enumerate(WNIDS.items()):
        synsets[i] = (i + 1, wnid, ", ".join(words), "", 0)
    mat = io.BytesIO()
    scipy.io.savemat(mat, {"synsets": synsets})
    devkit, val = tmp_path / "ILSVRC2012_devkit_t12.tar.gz", tmp_path / "ILSVRC2012_img_val.tar"

    def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))

    with gzip.open(devkit, "wb") as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        add(archive, "ILSVRC2012_devkit_t12/data/meta.mat", mat.getvalue())
        add(archive, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", b"3\n1\n")
    with tarfile.open(val, "w") as archive:
        add(archive, "ILSVRC2012_val_00000001.JPEG", jpeg(0, (40, 50)))
        add(archive, "ILSVRC2012_val_00000002.JPEG", jpeg(1, (40, 50)))
    meta = {"devkit": (devkit.name, md5(devkit)), "val": (val.name, md5(val))}
    monkeypatch.setattr(datasets.imagenet, "ARCHIVE_META", meta)
    data = load_data("imagenet", data_dir=tmp_path)
    assert data.class_names == ("tench", "crane")
    assert data.labels.tolist() == [0, 1]
    assert np.array_equal(
        data.batch([0])[0][0].numpy() * 255,
        np.asarray(Image.open(io.BytesIO(jpeg(0, (40, 50))))).transpose(2, 0, 1),
    )


def test_imagenet_cannot_be_downloaded(imagenet):
    with pytest.raises(ValueError, match="download cannot get imagenet: it needs an account"):
        load_data("imagenet", data_dir=imagenet, download=True)
