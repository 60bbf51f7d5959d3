"""The distillation benchmarks: their arithmetic by hand, and both scripts once, on a few digits."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
CELLS = [
    {"group": "baseline", "name": "as it is", "teacher": "AT", "objective": "kd", "transform": []},
    {
        "group": "order",
        "name": "reversed",
        "teacher": "AT",
        "objective": "kd",
        "transform": ["order:how=reversed"],
    },
    {"group": "other", "name": "rslad", "teacher": "AT", "objective": "rslad"},
    {"group": "other", "name": "PGD-AT", "method": "pgd-at"},
]
CONFIG: dict[str, Any] = {
    "data": "digits",
    "student": "art_logits.models:DigitsNet",
    "n_train": 40,
    "n_test": 20,
    "norm": "Linf",
    "eps": "0.1",
    "teachers": {"AT": {"model": "digits-at"}},
    "training": {"batch_size": 20, "ema": None, "precision": "float32"},
    "inner_steps": 2,
    "seeds": [0, 1],
    "attacks": ["pgd:steps=2", "temperature-pgd:steps=2"],
    "passes": 6,
    "notes": ["what was found"],
    "cells": CELLS,
}


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of both scripts; scripts are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("student_cells")
    for script in FOLDER.glob("*.py"):
        sys.modules.pop(script.stem, None)


def study(cells: Any, folder: Path, **changed: Any) -> Any:
    path = folder / "config.json"
    path.write_text(json.dumps({**CONFIG, **changed}))
    return cells.Study.read(path, folder)


def test_equal_passes(cells: Any, tmp_path: Path) -> None:
    """Two steps of the attack, and one pass for each image that the loss sees; kd perturbs nothing."""
    of = study(cells, tmp_path, passes=12)
    assert [of.epochs(cell) for cell in CELLS] == [12, 12, 3, 4]


def test_a_teacher_is_asked_once_for_all_cells(cells: Any, tmp_path: Path) -> None:
    of = study(cells, tmp_path)
    assert of.logits("AT") is of.logits("AT")
    inputs, labels = of.train.batch(slice(None))
    np.testing.assert_allclose(of.logits("AT"), of.teacher("AT")(inputs).detach(), atol=1e-5)
    assert (of.logits("AT").argmax(dim=1) == labels).float().mean() > 0.9


def test_cells_run_once_and_the_table_is_theirs(
    cells: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study(cells, tmp_path)
    folders = ["--cells", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["x", "--config", str(tmp_path / "config.json"), *folders])
    cells.main("What this is.", "logit_manipulation", "as it is")
    rows = pd.read_csv(tmp_path / "out" / "config.csv")
    assert len(rows) == 2 * 4 + 1
    text = (tmp_path / "out" / "config.md").read_text()
    assert "What this is." in text
    assert "- what was found" in text
    assert (tmp_path / "out" / "config.png").exists()

    by_hand = rows[rows["cell"] == "reversed"]["temperature-pgd:steps=2"].to_numpy()
    by_hand = 100 * (by_hand - rows[rows["cell"] == "as it is"]["temperature-pgd:steps=2"].to_numpy())
    # t of one degree of freedom at 95 %.
    half = 12.7062 * by_hand.std(ddof=1) / np.sqrt(2)
    assert f"| {by_hand.mean():+.1f} ± {half:.1f} |" in next(
        line for line in text.splitlines() if "| reversed |" in line
    )

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(cells, "train_cell", fail)
    cells.main("What this is.", "logit_manipulation", "as it is")
    assert (tmp_path / "out" / "config.md").read_text() == text
    # Other test images judge the same students, and other training makes others.
    study(cells, tmp_path, n_test=10, seeds=[0])
    cells.main("What this is.", "logit_manipulation", "as it is")
    assert (tmp_path / "out" / "config.md").read_text() != text
    study(cells, tmp_path, n_train=20)
    with pytest.raises(AssertionError, match="trained again"):
        cells.main("What this is.", "logit_manipulation", "as it is")


def test_the_interval_is_student_s(cells: Any) -> None:
    mean, half = cells.interval([1.0, 2.0, 6.0])
    assert mean == pytest.approx(3.0)
    assert half == pytest.approx(4.30265 * np.sqrt(7.0) / np.sqrt(3))
    assert np.isnan(cells.interval([1.0])[1])
    assert cells.percent(72.06, float("nan")) == "72.1"


@pytest.mark.parametrize(
    "path", sorted(FOLDER.glob("configs/logit_manipulation-*.json")), ids=lambda p: p.stem
)
def test_every_config_has_the_controls(cells: Any, path: Path) -> None:
    config = json.loads(path.read_text())
    assert len(config["seeds"]) >= 3
    found = {cell["name"]: cell for cell in config["cells"]}
    assert {"standard teacher", "label smoothing, equal confidence", "labels", "PGD-AT, equal passes"} <= set(
        found
    )
    assert next(iter(found)) == "teacher as it is"
    for cell in config["cells"]:
        cells.parse_transforms(cell.get("transform", []))
        assert cell.get("teacher", "AT") in config["teachers"]
