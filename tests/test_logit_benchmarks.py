"""Logit distributions and the size of a report: their arithmetic by hand, and each script once, small."""

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
from scipy import stats

from art_logits.records import Records

FOLDER = Path(__file__).parents[1] / "benchmarks"
CASE = {
    "name": "digits",
    "data": "digits",
    "model": {"factory": "DigitsNet"},
    "n_train": 64,
    "n_test": 40,
    "eps": "0.1",
    "pgd-at": {"steps": 1, "step_size": "0.1", "epochs": 1, "batch_size": 32, "ema": None},
    "standard": {"epochs": 1, "batch_size": 32, "ema": None},
    "augment": "none",
    "precision": "float32",
}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a script of the benchmarks; it is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for script in FOLDER.glob("*.py"):
        sys.modules.pop(script.stem, None)


def confidences(count: int = 200) -> dict[tuple[str, int], Any]:
    """Two models of each training: alike within it, unrelated between them."""
    rng = np.random.default_rng(0)
    values = {}
    for method in ("pgd-at", "standard"):
        base = rng.normal(size=count)
        for seed in range(2):
            values[method, seed] = base + 0.3 * rng.normal(size=count)
    return values


def test_agreement_within_and_between_trainings(load: Any) -> None:
    script, values = load("logit_distributions"), confidences()
    found = {pair.models: pair for pair in script.pairs(values)}
    assert len(found) == 6
    within = found["standard 0, standard 1"]
    assert within.kind == "within standard"
    rho = stats.spearmanr(values["standard", 0], values["standard", 1]).statistic
    assert within.spearman == pytest.approx(rho)
    kinds = [pair.kind for pair in found.values()]
    assert sorted(kinds) == ["between"] * 4 + ["within pgd-at", "within standard"]

    difference, low, high = script.excess(values)
    mean = {
        kind: np.mean([pair.spearman for pair in found.values() if pair.kind.startswith(kind)])
        for kind in ("within", "between")
    }
    assert difference == pytest.approx(mean["within"] - mean["between"])
    assert 0 < low < difference < high


def test_log_odds_are_those_of_the_confidence_and_do_not_saturate(load: Any, make_table: Any) -> None:
    logits = [[1, 0, 0], [0, 60, 1], [70, 0, 0]]
    odds = load("logit_distributions").log_odds(Records(make_table([0, 1, 2], logits, {})), "model")
    confidence = np.exp(1) / (np.exp(1) + 2)
    assert odds[0] == pytest.approx(np.log(confidence / (1 - confidence)))
    assert odds[2] > odds[1] > 50


def test_logit_distributions_run_and_continue(load: Any, tmp_path: Path, monkeypatch: Any) -> None:
    script = load("logit_distributions")
    monkeypatch.setattr(script, "RESAMPLES", 20)
    config = tmp_path / "config.json"
    config.write_text(json.dumps([CASE]))
    folders = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(
        sys, "argv", ["x", "--config", str(config), "--seeds", "2", "--threads", "1", *folders]
    )
    script.main()
    sizes = pd.read_csv(tmp_path / "out" / "logit_distributions.csv")
    assert len(sizes) == 2 * 2 * 5  # seeds, conditions, quantities
    assert (sizes["at"] - sizes["standard"]).to_numpy() == pytest.approx(sizes["difference"], abs=1e-6)
    assert len(pd.read_csv(tmp_path / "out" / "logit_distributions-pairs.csv")) == 6
    text = (tmp_path / "out" / "logit_distributions.md").read_text()
    assert "| digits | 40 |" in text
    assert (tmp_path / "out" / "logit_distributions-digits.svg").exists()
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.safetensors")}
    assert len(trained) == 4
    script.main()
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    assert (tmp_path / "out" / "logit_distributions.md").read_text() == text


def test_report_scale_runs(load: Any, tmp_path: Path, monkeypatch: Any) -> None:
    script = load("report_scale")
    folders = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["x", "--samples", "600", "--classes", "12", "--reference", *folders])
    script.main()
    row = pd.read_csv(tmp_path / "out" / "report_scale.csv").iloc[0]
    assert (row["samples"], row["classes"], row["reference"]) == (600, 12, "yes")
    assert row["wall (s)"] > 0
    records = Records.load(tmp_path / "work" / "600x12-reference")
    assert len(records) == 600
    for name in records.attacks:
        predictions = records.column(f"{name}.logits").argmax(axis=1)
        assert (predictions == records.column(f"{name}.prediction")).all()
        assert 0 < records.survives(name).mean() < records.correct().mean()
    assert "| 600 | 12 |" in (tmp_path / "out" / "report_scale.md").read_text()
