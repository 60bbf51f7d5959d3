"""The benchmark script on a few digits: two models, one missing, one broken; and once more."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from art_logits import Records

FOLDER = Path(__file__).parents[2] / "benchmarks"

if find_spec("robustbench") is None or not FOLDER.exists():
    pytest.skip("needs robustbench and a clone", allow_module_level=True)

from art_logits.plugins.robustbench import unregister  # noqa: E402 (needs the host)

NAMES = ["digits-at", "digits-standard", "digits-broken"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location("leaderboard", FOLDER / "leaderboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("losses", None)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A config of three models of our own, the last with the wrong weights, and one of the zoo."""
    weights = FOLDER.parent / "art_logits" / "weights"
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "broken.pt")
    files = [
        weights / "digits-at.safetensors",
        weights / "digits-standard.safetensors",
        tmp_path / "broken.pt",
    ]
    models = [
        {"name": name, "factory": "art_logits.models:DigitsNet", "checkpoint": str(file)}
        for name, file in zip(NAMES, files, strict=True)
    ]
    config = {"dataset": "cifar10", "threat_model": "Linf", "eps": "0.2", "models": [*models, "Wong2020Fast"]}
    config["note"] = "Digits in place of CIFAR-10."
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = f"--config {tmp_path}/config.json --data digits --n-examples 20 --out {tmp_path}/out --device cpu"
    return [*words.split(), "--model-dir", str(tmp_path), "--attacks-to-run", "apgd-ce"]


def run(script: Any, arguments: list[str]) -> None:
    try:
        script.main(arguments)
    finally:
        for name in NAMES:
            unregister(name)


def test_tables_of_what_is_there(script: Any, arguments: list[str], tmp_path: Path) -> None:
    run(script, arguments)
    out = tmp_path / "out"
    table = pd.read_csv(out / "leaderboard.csv")
    # Best first, both attacks, every class.
    assert table["model"].unique().tolist() == ["digits-at", "digits-standard"]
    assert table["attack"].unique().tolist() == ["apgd-ce", "temperature-pgd"]
    assert len(table) == 2 * 2 * 10
    for (model, attack), rows in table.groupby(["model", "attack"]):
        records = Records.load(out / str(model))
        assert rows["robust"].sum() == records.survives(str(attack)).sum()
        assert rows["clean"].sum() == records.correct().sum()
        assert rows["n"].tolist() == [2] * 10
        assert (rows["low"] <= rows["robust"] / rows["n"]).all()
    text = (out / "leaderboard.md").read_text()
    assert "| digits-at | DigitsNet |" in text
    assert "- Wong2020Fast: weights missing" in text
    assert "\nDigits in place of CIFAR-10.\n" in text
    assert "- digits-broken: checkpoint" in text
    assert "does not fit DigitsNet" in text
    assert "## By class under apgd-ce" in text
    assert "python benchmarks/leaderboard.py --config" in text

    finished = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert finished
    run(script, arguments)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} == finished
    assert (out / "leaderboard.md").read_text() == text


def test_numbers_that_are_not_there(script: Any) -> None:
    assert script.percent(0.1234) == "12.3"
    assert script.percent(float("nan")) == "-"
