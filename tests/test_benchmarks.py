"""The timing benchmarks: their arithmetic by hand, and each script once, on a few digits."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
HOSTS = {"speed": ("torchattacks", "art", "foolbox"), "scaling": ("torchattacks",)}


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    for host in HOSTS.get(name, ()):
        pytest.importorskip(host)
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module(name)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Modules of scripts go by short names, which nothing else should find."""
    yield
    for script in FOLDER.glob("*.py"):
        sys.modules.pop(script.stem, None)


@pytest.mark.parametrize("script", sorted(HOSTS))
def test_runs(script: str, tmp_path: Path) -> None:
    for host in HOSTS[script]:
        pytest.importorskip(host)
    command = [sys.executable, "-W", "ignore", str(FOLDER / f"{script}.py"), "--quick", "--threads", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs" / "benchmarks"
    config = json.loads((FOLDER / "configs" / f"{script}-quick.json").read_text())
    names = [case["name"] for kind in config.values() for case in kind]
    assert {path.stem for path in (out / script).glob("*.json")} == set(names)
    text = (out / f"{script}.md").read_text()
    assert all(f"## {name}" in text for name in (case["name"] for case in config["cases"]))
    assert set(pd.read_csv(out / f"{script}.csv").iloc[:, 0]) == {case["name"] for case in config["cases"]}
    assert "</svg>" in (out / f"{script}.svg").read_text()
    assert str(tmp_path) not in text


def test_every_config_names_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    speed, scaling = load("speed", monkeypatch), load("scaling", monkeypatch)
    for path in FOLDER.glob("configs/speed*.json"):
        for case in json.loads(path.read_text())["cases"]:
            assert set(case["attacks"]) <= set(speed.CONTENDERS), (path.name, case["name"])
            assert speed.BASELINE in case["attacks"]
    for path in FOLDER.glob("configs/scaling*.json"):
        assert {case["kind"] for case in json.loads(path.read_text())["cases"]} <= set(scaling.MEASURES)


def cell(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any]]:
    """Two rounds by hand: ten images, 100 gradients and 20 forward passes of ours in 2 and then 3 seconds."""
    speed = load("speed", monkeypatch)
    ours = {"attack": "ours, float32", "forwards": 120, "backwards": 100, "robust": 4}
    host = {"attack": "torchattacks", "forwards": 200, "backwards": 200, "robust": 5}
    rows = [
        {**ours, "round": 0, "seconds": 2.0},
        {**host, "round": 0, "seconds": 8.0},
        {**host, "round": 1, "seconds": 18.0},
        {**ours, "round": 1, "seconds": 3.0},
    ]
    bare = [
        {"round": 1, "float32": 0.02, "forward": 0.05},
        {"round": 0, "float32": 0.015, "forward": 0.025},
    ]
    case = {"name": "by hand", "n": 10, "attacks": ["torchattacks", "ours, float32"]}
    return speed, {"case": case, "rows": rows, "bare": bare}


def test_a_ratio_is_taken_within_its_round(monkeypatch: pytest.MonkeyPatch) -> None:
    speed, by_hand = cell(monkeypatch)
    host, ours = speed.summary(by_hand).to_dict("records")
    assert host["x torchattacks"] == "1.00 (1.00 to 1.00)"
    assert ours["x torchattacks"] == "5.00 (4.00 to 6.00)"  # 8 / 2 and 18 / 3; of the medians it were 5.2
    assert ours["seconds"] == "2.50 (2.00 to 3.00)"
    assert ours["passes per image, forward + backward"] == "12.0 + 10.0"


def test_the_limit_is_the_bare_cost_of_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    speed, by_hand = cell(monkeypatch)
    host, ours = speed.summary(by_hand).to_dict("records")
    # 100 x 0.015 + 20 x 0.025 = 2 seconds, then 100 x 0.02 + 20 x 0.05 = 3.
    assert ours["time / limit"] == "1.00 (1.00 to 1.00)"
    assert host["time / limit"] == ""


def test_a_line_is_fitted_exactly_and_a_square_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = load("scaling", monkeypatch).fit
    line = fit([1, 2, 3, 4], [5, 7, 9, 11])
    assert line["slope"] == pytest.approx(2)
    assert line["intercept"] == pytest.approx(3)
    assert line["r2"] == pytest.approx(1)
    assert line["residual"] == pytest.approx(0, abs=1e-12)
    square = fit([1, 2, 3], [1, 4, 9])
    assert square["exponent"] == pytest.approx(2)
    assert square["slope"] == pytest.approx(4)
    # The fitted times are 2/3, 14/3 and 26/3.
    assert square["residual"] == pytest.approx(0.5)
    assert square["r2"] == pytest.approx(48 / 49)


def test_memory_is_compared_at_the_same_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    scaling = load("scaling", monkeypatch)
    peaks = [("torchattacks", 8, 30), ("torchattacks", 16, 40), ("float32", 8, 28), ("evaluate", 16, 43)]
    rows = [
        {"attack": name, "size": size, "before": 10**7, "peak": peak * 10**6} for name, size, peak in peaks
    ]
    table = scaling.memory_table({"rows": rows})
    assert table["peak, MB"].tolist() == [20, 30, 18, 33]
    assert table["above torchattacks, MB"].tolist() == ["", "", "-2.0", "+3.0"]


def test_a_cell_is_measured_once_for_a_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cells = load("measuring", monkeypatch).Cells(tmp_path / "cells")
    calls = []

    def measure() -> dict[str, Any]:
        calls.append(len(calls))
        return {"value": len(calls)}

    first, changed = {"name": "a", "n": 1}, {"name": "a", "n": 2}
    assert cells.measured(first, measure)
    assert not cells.measured(first, measure)
    assert [found["value"] for found in cells.all(["missing", "a"])] == [1]
    cells.measured(changed, measure)
    assert [found["value"] for found in cells.all(["a"])] == [2]
    cells.measured(changed, measure, again=True)
    assert len(calls) == 3


def test_an_interrupted_case_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cells = load("measuring", monkeypatch).Cells(tmp_path / "cells")

    def measure() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cells.measured({"name": "a"}, measure)
    assert cells.all(["a"]) == []


def test_an_attack_that_leaves_its_ball_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    speed = load("speed", monkeypatch)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    inputs = torch.full((3, 1, 2, 2), 0.5)
    setting = speed.Setting(net, inputs, torch.zeros(3, dtype=torch.int64), "Linf", 0.1, 2)
    clean = torch.tensor([True, False, True])
    found = speed.judge(setting, speed.Found(inputs + 0.1), clean)
    assert found["distance"] == pytest.approx(0.1)
    assert found["robust"] == int((speed.right(setting, inputs + 0.1) & clean).sum())
    with pytest.raises(RuntimeError, match=r"left its ball of 0\.1"):
        speed.judge(setting, speed.Found(inputs + 0.11), clean)


def test_the_table_goes_to_its_place_in_a_readme(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    speed = load("speed", monkeypatch)
    table, readme = tmp_path / "table.md", tmp_path / "README.md"
    table.write_text("| new |\n")
    text = "above\n\n<!-- benchmarks/results/speed-readme.md -->\n{}<!-- end -->\n\nbelow\n"
    readme.write_text(text.format("| old |\n"))
    speed.copy_table(table, readme)
    assert readme.read_text() == text.format("| new |\n")
    readme.write_text("no place\n")
    with pytest.raises(ValueError, match=r"README\.md does not"):
        speed.copy_table(table, readme)
    assert readme.read_text() == "no place\n"


def test_the_readme_shows_the_table_on_record() -> None:
    table = FOLDER / "results" / "speed-readme.md"
    if not table.exists():
        pytest.skip("no run is on record")
    assert table.read_text() in (FOLDER.parent / "README.md").read_text()
