"""Arrays of an ``.npz`` file that stay in the file: memory does not grow with the data."""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

__all__ = ["read_array"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_BLOCK = 1 << 20
_LOCAL_HEADER = 30  # bytes of a zip member's own header before its name
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_array(archive: Any, path: Path, key: str) -> Array:
    """One array of an opened ``.npz``, read from the file where it is needed.

    What ``numpy.savez`` writes is mapped into memory, read-only, after its checksum was compared. A
    compressed array (``numpy.savez_compressed``) is read into memory.

    Args:
        archive: the ``NpzFile``, opened without pickle.
        path: the file it was opened from.
        key: name of the array.

    Returns:
        The array.

    Raises:
        zipfile.BadZipFile: if the checksum differs.
        ValueError: if the member holds no array, or pickled objects.
    """
    info = _member(archive, key)
    mapped = None if info is None else _mapped(archive.zip, path, info)
    return np.asarray(archive[key] if mapped is None else mapped)


def _member(archive: Any, key: str) -> zipfile.ZipInfo | None:
    """The stored member that holds an array; None for a compressed one."""
    name = f"{key}.npy"
    if name not in archive.zip.namelist():
        return None
    info: zipfile.ZipInfo = archive.zip.getinfo(name)
    return info if info.compress_type == zipfile.ZIP_STORED else None


def _mapped(archive: zipfile.ZipFile, path: Path, info: zipfile.ZipInfo) -> Array | None:
    """The array where it lies in the file; None if it is one that numpy has to read, or refuse, itself."""
    with archive.open(info.filename) as member:
        read_header = _HEADERS.get(np.lib.format.read_magic(member))
        if read_header is None:
            return None
        shape, fortran, dtype = read_header(member)
        start = member.tell()
        while member.read(_BLOCK):  # to its end, where the checksum is compared
            pass
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or size == 0 or start + size != info.file_size:
        return None
    with path.open("rb") as file:
        file.seek(info.header_offset + _LOCAL_HEADER - 4)
        start += info.header_offset + _LOCAL_HEADER + sum(struct.unpack("<HH", file.read(4)))
    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")
