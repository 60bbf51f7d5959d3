"""Every script in examples/ runs, and says something."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
# Which host each script needs; a script that is not listed needs none.
HOSTS = {"art_drop_in": "art", "distillation": "art", "torchattacks_drop_in": "torchattacks"}


def test_there_is_one_per_host() -> None:
    assert set(HOSTS) <= {script.stem for script in EXAMPLES}


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_runs(script: Path, tmp_path: Path) -> None:
    if script.stem in HOSTS:
        pytest.importorskip(HOSTS[script.stem])
    # Seconds each; the limit ends one that hangs, and leaves room for a busy machine.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
