from __future__ import annotations

import os
import subprocess
import sys

import pytest

from art_logits import _files as module
from art_logits._files import LOCK, FolderLock, locked, replacing, write_atomically


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def interrupted(*_):
        raise KeyboardInterrupt

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(module.os, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                write_atomically(path, b"new")
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["file"]


def test_a_temporary_name_stands_beside_the_file_until_it_is_whole(tmp_path):
    with replacing(tmp_path / "file") as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("new")
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_a_lock_keeps_others_out_and_leaves_nothing(tmp_path):
    with locked(tmp_path):
        with pytest.raises(BlockingIOError, match="out: another process is writing to"):
            FolderLock(tmp_path)
        # The failed attempt did not break the lock.
        with pytest.raises(BlockingIOError), locked(tmp_path):
            pass
    lock = FolderLock(tmp_path)
    lock.release()
    lock.release()
    assert os.listdir(tmp_path) == []
    with locked(None):
        pass


def test_a_crash_releases_the_lock(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from art_logits._files import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1])); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=120, check=False)
    assert done.returncode == 9
    assert os.listdir(tmp_path) == [LOCK]
    with locked(tmp_path):
        pass
