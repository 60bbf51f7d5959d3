"""The benchmark of strength: its tables by hand, and one of its cells on a few digits."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
CASE = {"name": "by hand", "norm": "Linf", "eps": "0.2", "n": 8}


@pytest.fixture
def strength(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("strength")
    for script in FOLDER.glob("*.py"):
        sys.modules.pop(script.stem, None)


@pytest.fixture
def table(strength: Any) -> pd.DataFrame:
    """AutoAttack leaves 1, 2, 3; the default also 4 and 5, for a 50th of the passes; strong 2, 3, 4."""

    def cell(attack: str, left: list[int], passes: int) -> dict[str, Any]:
        spent = {"forwards": passes // 2, "backwards": passes - passes // 2}
        return {
            "case": {"attack": attack},
            "clean": 7,
            "left": left,
            **spent,
            "seconds": 1.0,
            "precision": "float32",
        }

    cells = [
        cell("AutoAttack", [1, 2, 3], 1000),
        cell("temperature-pgd", [1, 2, 3, 4, 5], 20),
        cell("strong", [2, 3, 4], 100),
        cell("strong:passes=1700", [2, 3], 400),
        cell("margin, cosine, 20 steps", [1, 2, 3, 4, 5, 6], 20),
    ]
    return pd.DataFrame(strength.rows_of(CASE, cells))


def test_attacks_are_set_against_autoattack(strength: Any, table: pd.DataFrame) -> None:
    default = table.set_index("attack").loc["temperature-pgd"]
    assert default["points above AutoAttack"] == pytest.approx(25.0)
    assert default["share of its passes"] == pytest.approx(0.02)
    assert default["McNemar p"] == pytest.approx(0.5)  # two of two
    assert default["precision"] == "float32"
    (row,) = strength.headline(table).to_dict("records")
    assert row["AutoAttack"] == 3
    assert row["temperature-pgd: misses / gains"] == "2 / 0"
    assert row["strong"] == "3 (+0.00 points)"
    assert row["strong: misses / gains"] == "1 / 1"


def test_what_ours_misses_is_named_by_sample(strength: Any, table: pd.DataFrame) -> None:
    rows = strength.missed(table)
    assert rows["attack"].tolist() == ["temperature-pgd", "strong"]
    assert rows["only AutoAttack breaks"].tolist() == ["4 5", "4"]
    assert rows["AutoAttack leaves, it breaks"].tolist() == ["", "1"]
    assert rows["share of its passes"].tolist() == ["2.00 %", "10.00 %"]
    without = pd.DataFrame(strength.rows_of(CASE, [{**CELL, "case": {"attack": "strong"}}]))
    assert strength.missed(without).empty


CELL: dict[str, Any] = {"clean": 7, "left": [1], "forwards": 1, "backwards": 1, "seconds": 1.0}


def test_a_cell_says_what_is_left_and_in_which_precision(strength: Any, tmp_path: Path) -> None:
    case = {"name": "digits", "model": "digits-at", "data": "digits", "norm": "Linf", "eps": "0.2", "n": 10}
    device = torch.device("cpu")
    cell = strength.measure(case, "temperature-pgd:steps=2,precision=bfloat16", tmp_path, device)
    assert cell["precision"] == "bfloat16"
    assert 0 < len(cell["left"]) <= cell["clean"] <= 10
    host = pytest.importorskip("torchattacks")
    assert host
    assert strength.measure(case, "torchattacks PGD, 5 steps", tmp_path, device)["precision"] is None
