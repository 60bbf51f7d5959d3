"""What an installation leaves in site-packages, plain and editable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("art_logits", "plugins", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain installation of a copy of the sources (building leaves files beside them)."""
    pytest.importorskip("setuptools", reason="building the package needs setuptools in this environment")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation")
    run(*pip, "--target", str(target), str(source), cwd=source)
    return target


def test_plain_install_has_everything(installed: Path) -> None:
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} <= {"art_logits", "bin"}
    assert not (installed / "plugins").exists()
    assert (installed / "art_logits" / "py.typed").exists()
    assert (installed / "art_logits" / "plugins" / "__init__.py").exists()
    assert (installed / "art_logits" / "weights" / "digits-at.safetensors").stat().st_size < 200_000


def test_plain_install_runs(installed: Path, tmp_path: Path) -> None:
    command = "import art_logits.plugins, art_logits; print(art_logits.__file__)"
    # -P would be Python 3.11: from an empty folder nothing but the installation can answer.
    shown = run(sys.executable, "-c", command, cwd=tmp_path, PYTHONPATH=str(installed))
    assert Path(shown.strip()).is_relative_to(installed)


def test_plain_install_evaluates(installed: Path, tmp_path: Path) -> None:
    command = (
        sys.executable,
        "-m",
        "art_logits",
        "evaluate",
        "--n-examples",
        "20",
        "--attack",
        "pgd:steps=2",
    )
    shown = run(*command, "--out", "run", cwd=tmp_path, PYTHONPATH=str(installed))
    assert "worst class" in shown
    assert (tmp_path / "run" / "report.html").exists()


def test_editable_install_runs_in_the_root() -> None:
    command = "import art_logits.plugins as p; print(p.__file__)"
    shown = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, (
        f"in the root of a clone only an editable install finds the plugins: {shown.stderr}"
    )
    assert Path(shown.stdout.strip()).parent.name == "plugins"
