"""Files that appear whole or not at all, and folders that one process at a time writes to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import FileLock

LOCK = ".lock"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to a temporary name beside ``path``, flush it to the disk and rename it.

    Args:
        path: the file; an existing one is replaced.

    Yields:
        The temporary name to write to.

    Raises:
        OSError: the folder is missing, is not writable, or the disk is full; the old file is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            # Without it a power cut can leave the new name on an empty file.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all.

    Args:
        path: the file; an existing one is replaced.
        data: its content.

    Raises:
        OSError: as :func:`replacing` raises.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


class FolderLock:
    """Keeps other processes from writing to a folder, until it is released or this process ends.

    The lock is the operating system's, on the file ``.lock`` in the folder: a crash leaves the file, and
    nobody locked out.

    Args:
        folder: an existing folder.

    Raises:
        BlockingIOError: another process holds the folder.
        OSError: the folder is not writable.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     lock = FolderLock(Path(name))
    ...     lock.release()
    """

    _lock: FileLock

    def __init__(self, folder: Path) -> None:
        # Comes with torch; imported here, where it is needed, because the attack never is in this need.
        import filelock

        lock = filelock.FileLock(folder / LOCK)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout as error:
            raise BlockingIOError(
                f"out: another process is writing to {folder}; wait until it has finished, or choose another "
                "--out"
            ) from error
        self._path, self._lock = folder / LOCK, lock

    def release(self) -> None:
        """Let others write; a second call does nothing."""
        if self._lock.is_locked:
            # While it is still held: whoever opened the file in the meantime sees that it has no name left.
            with suppress(OSError):  # Windows keeps the name of an open file
                self._path.unlink()
            self._lock.release()


@contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Hold a folder's :class:`FolderLock`; None, for nothing to write, locks nothing."""
    lock = None if folder is None else FolderLock(folder)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
