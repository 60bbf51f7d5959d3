from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from art_logits.cli import main
from art_logits.records import Records

OUTPUTS = ["summary.json", "classwise.csv", "logits.csv", "report.html"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def save(random_table, make_manifest):
    """Saves a run of 60 samples in a folder; keywords replace entries of its identity."""

    def make(folder, *, seed=0, **identity):
        Records(random_table(60, 3, seed=seed, reference=True), make_manifest(**identity)).save(folder)

    return make


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_report_makes_all_outputs_from_the_records_alone(capsys, save):
    save("run")
    code, out, _ = run(capsys, "report", "run")
    assert code == 0
    assert "overall" in out
    assert f"report: {Path('run/report.html')}" in out
    first = {name: Path("run", name).read_bytes() for name in OUTPUTS}
    for name in OUTPUTS:
        Path("run", name).unlink()
    assert run(capsys, "report", "run", "--out", "else/where")[0] == 0
    assert {name: Path("else/where", name).read_bytes() for name in OUTPUTS} == first
    assert not Path("run/report.html").exists()


def test_figures_come_when_asked_for(capsys, save):
    save("run")
    assert run(capsys, "report", "run")[0] == 0
    assert not Path("run/figures").exists()
    assert run(capsys, "report", "run", "--figures", "--out", "else")[0] == 0
    assert Path("else/figures/classes.svg").exists()
    assert Path("else/figures/histogram-entropy.png").exists()


def test_figures_of_a_comparison_come_when_asked_for(capsys, save):
    save("a")
    save("b", model={"name": "other", "hash": "cc"})
    assert run(capsys, "compare", "a", "b", "--out", "here", "--figures")[0] == 0
    assert {path.name for path in Path("here/figures").iterdir()} == {"changes-1.png", "changes-1.svg"}


def test_a_comparison_of_different_radii_is_warned_of(capsys, save):
    save("a", attacks={"pgd": {"norm": "Linf", "eps": 0.1}})
    save("b", attacks={"pgd": {"norm": "Linf", "eps": 0.2}})
    code, out, _ = run(capsys, "compare", "a", "b", "--out", "here")
    assert code == 0
    assert "warning: The runs have different threat models" in out
    assert "(a: Linf, eps 0.1; b: Linf, eps 0.2)" in out


def test_report_of_an_interrupted_run_must_be_asked_for(capsys, save):
    save("run")
    manifest = Path("run/manifest.json")
    manifest.write_text(manifest.read_text().replace('"complete": true', '"complete": false'))
    code, _, err = run(capsys, "report", "run")
    assert code == 2
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert run(capsys, "report", "run", "--partial")[0] == 0
    assert "The run is not complete" in Path("run/report.html").read_text()


def test_compare_writes_table_csv_and_page(capsys, save):
    save("a")
    save("b", model={"name": "other", "hash": "cc"})
    code, out, _ = run(capsys, "compare", "a", "b")
    assert code == 0
    assert "b against a" in out
    folder = Path("art-logits-runs/comparison")
    assert f"comparison: {folder / 'comparison.html'}" in out
    assert len(pd.read_csv(folder / "comparison.csv")) == 4
    assert run(capsys, "compare", "a", "b", "--out", "here")[0] == 0
    assert (Path("here") / "comparison.html").read_bytes() == (folder / "comparison.html").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "none"], "none"),
        (["compare", "a"], "runs: expected at least two to compare, got 1"),
        (["compare", "a", "a"], "directories: expected every run once, got a twice"),
        (["compare", "a", "none"], "none"),
        (["compare", "a", "other"], "cannot compare a (a) with other (b): b: expected the data of a"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line_and_leaves_nothing(capsys, save, arguments, message):
    save("a")
    save("other", data={"name": "digits", "hash": "ee"})
    before = sorted(Path().rglob("*"))
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1
    assert sorted(Path().rglob("*")) == before


def test_help_names_the_commands(capsys):
    out = run(capsys, "--help")[1]
    assert "report" in out
    assert "compare" in out
