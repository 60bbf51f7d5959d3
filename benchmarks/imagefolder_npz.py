"""Turn a zipped image folder, ``NAME/{train,test}/<class>/*``, into the .npz that ``--data`` takes.

    python benchmarks/imagefolder_npz.py cifar10-jpeg.zip cifar10.npz

All images must have the same size. Classes are numbered in alphabetical order.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image


def read_split(archive: zipfile.ZipFile, split: str, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """All images of one split, ``(N, H, W, 3)`` uint8, and their labels ``(N,)``."""
    images, labels = [], []
    for name in sorted(archive.namelist()):
        parts = PurePosixPath(name).parts
        if len(parts) == 4 and parts[1] == split:
            images.append(np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")))
            labels.append(classes.index(parts[2]))
    return np.stack(images), np.array(labels, dtype=np.int64)


def main() -> None:
    """Read the zip, write the npz."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zip", type=Path)
    parser.add_argument("npz", type=Path)
    arguments = parser.parse_args()
    with zipfile.ZipFile(arguments.zip) as archive:
        classes = sorted({p[2] for p in (PurePosixPath(n).parts for n in archive.namelist()) if len(p) == 4})
        arrays = {"class_names": np.array(classes)}
        for split in ("train", "test"):
            arrays[f"x_{split}"], arrays[f"y_{split}"] = read_split(archive, split, classes)
    np.savez(arguments.npz, **arrays)
    print(
        f"{arguments.npz}: {len(arrays['y_train'])} train, {len(arrays['y_test'])} test, {', '.join(classes)}"
    )


if __name__ == "__main__":
    main()
