from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from art_logits import evaluate_cli, evaluation
from art_logits.cli import main
from art_logits.records import Records

NET = """
from torch import nn

def net(num_classes, in_channels=1):
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))
"""

QUICK = ["--n-examples", "20", "--attack", "pgd:steps=2"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def npz(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    y = np.arange(30) % 3
    np.savez(tmp_path / "set.npz", x=rng.random((30, 8, 8)), y=y, class_names=["ant", "bee", "cat"])
    return "set.npz"


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(NET)
    from torch import nn

    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).state_dict(), tmp_path / "weights.pt")
    return "nets.py:net"


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_the_main_job_on_its_default(capsys):
    code, out, err = run(capsys, "evaluate", "--n-examples", "60")
    assert code == 0
    folder = Path("art-logits-runs/digits-digits-at")
    names = {path.name for path in folder.iterdir()}
    assert names >= {"records", "manifest.json", "summary.json", "classwise.csv", "logits.csv", "report.html"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["command"] == "art-logits evaluate --n-examples 60"
    assert manifest["identity"]["model"]["name"] == "digits-at"
    assert manifest["identity"]["reference"]["name"] == "digits-standard"
    assert list(manifest["identity"]["attacks"]) == ["pgd", "temperature-pgd"]
    assert manifest["identity"]["attacks"]["pgd"]["eps"] == 0.1
    assert "eps 0.1 (the default for this data and norm)" in out
    assert f"report: {folder / 'report.html'}" in out
    assert "worst class" in out
    assert "240/240" in err
    records = Records.load(folder)
    assert records.table["label"].to_numpy().tolist().count(3) == 6
    # The adversarially trained model withstands what the standard one does not.
    assert records.robust().mean() > records.robust("reference").mean() + 0.3


def test_own_data_and_model(capsys, npz, net):
    code, out, _ = run(
        capsys,
        *["evaluate", "--model", net, "--checkpoint", "weights.pt", "--data", npz, "--norm", "L2"],
        *["--attack", "pgd:steps=2", "--attack", "temperature-pgd:steps=2", "--eps", "8/255"],
        *["--n-examples", "7", "--sampling", "first", "--batch-size", "3", "--device", "cpu", "--seed", "3"],
        *["--out", "mine"],
    )
    assert code == 0
    assert "ant" in out
    assert "reference none" in out
    identity = Records.load("mine").manifest["identity"]
    assert (identity["seed"], identity["norm"], identity["data"]["n"]) == (3, "L2", 7)
    assert identity["model"]["name"] == "nets.py:net (weights.pt)"
    assert identity["attacks"]["pgd:steps=2"]["eps"] == 8 / 255
    assert Records.load("mine").table["sample_id"].to_pylist() == list(range(7))
    code, _, _ = run(capsys, "evaluate", "--model", net, "--data", npz, *QUICK)
    assert code == 0
    assert Path("art-logits-runs/set-nets-net/report.html").exists()
    code, _, _ = run(capsys, "evaluate", "--model", net, "--checkpoint", "weights.pt", "--data", npz, *QUICK)
    assert code == 0
    assert Path("art-logits-runs/set-nets-net-weights-pt/report.html").exists()


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    """A zip of images of unequal size in three classes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for i in range(12):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8 + i, 10), dtype=np.uint8)).save(file, "png")
            archive.writestr(f"pictures/test/{['ant', 'bee', 'cat'][i % 3]}/{i}.png", file.getvalue())
    return "pictures.zip"


def test_a_zip_of_images(capsys, pictures, net):
    arguments = ["evaluate", "--model", net, "--data", pictures, "--attack", "pgd:steps=2", "--out", "mine"]
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "say by resize and crop (on the command line --resize N, --crop N)" in err
    assert not Path("mine").exists()
    code, out, _ = run(capsys, *arguments, "--resize", "9", "--crop", "8")
    assert code == 0
    assert "pictures, test split, n=12" in out
    assert "bee" in out
    assert "eps 0.3 (the default" in out


def test_a_set_that_is_not_there(capsys, net):
    code, _, err = run(capsys, "evaluate", "--model", net, "--data", "cifar10", "--data-dir", "sets")
    assert code == 2
    assert err.startswith("error: data 'cifar10' is not complete in the folder 'sets'")
    assert "--data-dir" in err
    assert "--download" in err
    assert {path.name for path in Path().iterdir()} == {"nets.py", "weights.pt"}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--download"], "download is for mnist"),
        (["--data-dir", "."], "data_dir is for mnist"),
        (["--resize", "8"], "resize and crop are for image files and torchvision's sets, not for data"),
    ],
)
@pytest.mark.parametrize("data", ["digits", "npz"])
def test_options_that_the_data_does_not_take(capsys, npz, net, data, option, message):
    arguments = ["--model", net, "--data", npz if data == "npz" else data, *option]
    code, _, err = run(capsys, "evaluate", *arguments)
    assert code == 2
    assert err.startswith(f"error: {message}")


def test_the_default_folder_is_numbered_and_a_given_one_is_not(capsys):
    for number in ("", "-2", "-3"):
        assert run(capsys, "evaluate", *QUICK)[0] == 0
        assert Path(f"art-logits-runs/digits-digits-at{number}/summary.json").exists()
    code, _, err = run(capsys, "evaluate", *QUICK, "--out", "art-logits-runs/digits-digits-at")
    assert code == 2
    assert "holds another run" in err
    assert run(capsys, "evaluate", *QUICK, "--resume")[0] == 0
    assert not Path("art-logits-runs/digits-digits-at-4").exists()


def test_one_attack_twice_has_two_names(capsys):
    twice = ["--attack", "pgd:steps=1", "--attack", "pgd:steps=1", "--n-examples", "10", "--out", "run"]
    code, out, _ = run(capsys, "evaluate", *twice)
    assert code == 0
    assert "pgd:steps=1, pgd:steps=1-2" in out
    assert Records.load("run").attacks == ["pgd:steps=1", "pgd:steps=1-2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "digits-ta"], "did you mean digits-at"),
        (["--model", "none.py:net"], "there is no file 'none.py'"),
        (["--checkpoint", "none.pt"], "checkpoint: there is no file 'none.pt'"),
        (["--data", "none.npz"], "there is no file 'none.npz'"),
        (["--data", "set.npz"], "--model must be given with --data set.npz"),
        (["--model", "digits-at", "--data", "set.npz"], "class_names must name the model's 10 classes"),
        (["--model", "art_logits.models:resnet_cifar"], "inputs must have shape (N, 3, H, W) for this model"),
        (["--model", "digits-at", "--reference-checkpoint", "weights.pt"], "needs --reference"),
        (["--model", "digits-at", "--reference-mean", "0.5"], "--reference-mean needs --reference"),
        (["--model", "digits-at", "--mean", "0.5"], "mean and std must be given together"),
        (["--model", "digits-at", "--mean", "0.5", "--std", "0.5"], "'digits-at' has its own"),
        (["--model", "digits-at", "--mean", "a,b"], "--mean must be one number per channel"),
        (["--model", "torchvision:resnet17"], "did you mean resnet"),
        (["--attack", "pdg"], "did you mean pgd"),
        (["--eps", "big"], "expected a number such as 0.1 or 8/255, got 'big'"),
        (["--eps", "-1"], "eps must be a finite number >= 0"),
        (["--norm", "L3"], "norm must be one of"),
        (["--split", "valid"], "split must be one of"),
        (["--sampling", "odd"], "sampling must be one of"),
        (["--n-examples", "501"], "--n-examples must be at most the 500 samples of digits in its test split"),
        (["--n-examples", "0"], "--n-examples must be at least 1, got 0"),
        (["--batch-size", "0"], "batch_size must be at least 1"),
        (["--device", "abacus"], "device must be auto"),
        (["--seed", "-1"], "seed must be at least 0"),
        (["--out", "set.npz"], "is a file"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line_and_leaves_nothing(capsys, npz, net, arguments, message):
    before = sorted(Path().rglob("*"))
    code, _, err = run(capsys, "evaluate", *arguments)
    assert code == 2
    lines = err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert message in lines[-1]
    assert "Traceback" not in err
    after = [path for path in sorted(Path().rglob("*")) if "__pycache__" not in path.parts]
    assert after == before


def test_usage_errors_exit_2(capsys):
    assert run(capsys, "evaluate", "--no-such-flag")[0] == 2
    assert run(capsys, "evaluate", "--seed", "x")[0] == 2
    assert run(capsys, "nothing")[0] == 2


def test_help_and_version(capsys):
    code, out, _ = run(capsys, "evaluate", "--help")
    assert code == 0
    flags = [
        "model",
        "checkpoint",
        "reference",
        "reference-checkpoint",
        "data",
        "split",
        "attack",
        "norm",
        "eps",
    ]
    flags += ["n-examples", "sampling", "batch-size", "device", "seed", "out", "resume"]
    for flag in flags:
        assert f"--{flag}" in out
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert "train" in out
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert out.startswith("art-logits ")


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "_part_size", lambda *arguments: 16)
    attack_part, parts = evaluation._evaluate_part, []

    def interrupted(*args):
        parts.append(args)
        if len(parts) == 2:
            raise KeyboardInterrupt
        return attack_part(*args)

    monkeypatch.setattr(evaluation, "_evaluate_part", interrupted)
    code, _, err = run(capsys, "evaluate", *QUICK)
    assert code == 130
    last = err.strip().splitlines()[-1]
    assert "interrupted" in last
    assert "--resume --out art-logits-runs/digits-digits-at" in last
    assert "Traceback" not in err
    code, _, err = run(capsys, "evaluate", *QUICK, "--resume")
    assert code == 0
    assert len(parts) == 3
    assert len(Records.load("art-logits-runs/digits-digits-at")) == 20


def test_ctrl_c_before_anything_is_written(capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "evaluate", interrupted)
    code, _, err = run(capsys, "evaluate", *QUICK)
    assert code == 130
    assert "nothing was written" in err
    monkeypatch.setattr(evaluate_cli, "_load_data", interrupted)
    assert run(capsys, "evaluate")[0] == 130


def test_too_little_memory_is_one_line(capsys, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(evaluation, "evaluate", full)
    code, _, err = run(capsys, "evaluate", *QUICK)
    assert code == 2
    assert err.strip() == "error: out of memory: try a smaller --batch-size"


def test_too_little_memory_for_one_sample_is_not_for_smaller_batches(capsys, monkeypatch):
    class Cramped(torch.nn.Module):
        def forward(self, inputs):
            if len(inputs) != 2:  # what the evaluation tries first
                raise torch.OutOfMemoryError("tried to allocate 1 TiB")
            return inputs.flatten(1)[:, :10]

    monkeypatch.setattr(evaluate_cli, "_load_model", lambda *args: evaluate_cli._Named("net", Cramped()))
    code, _, err = run(capsys, "evaluate", *QUICK)
    assert code == 2
    last = err.strip().splitlines()[-1]
    assert "out of memory with a single sample in the batch" in last
    assert "--batch-size" not in last


def test_precision_and_batch_size(capsys):
    for number, arguments in enumerate(
        (["--precision", "bfloat16"], ["--precision", "auto", "--batch-size", "auto"], ["--batch-size", "7"])
    ):
        assert run(capsys, "evaluate", *QUICK, "--out", f"run-{number}", *arguments)[0] == 0
        attacks = Records.load(f"run-{number}").manifest["identity"]["attacks"]
        expected = "float32" if number else "bfloat16"
        assert {attack["precision"] for attack in attacks.values()} == {expected}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "float8"], "precision must be one of auto, float32, bfloat16"),
        (["--batch-size", "many"], "batch-size: expected an integer, got 'many'"),
        (["--batch-size", "0"], "batch_size must be at least 1"),
    ],
)
def test_wrong_precision_and_batch_size(capsys, arguments, message):
    code, _, err = run(capsys, "evaluate", *QUICK, *arguments)
    assert code == 2
    assert message in err


def test_missing_typer_says_what_to_install(capsys, monkeypatch):
    for name in [key for key in sys.modules if key.partition(".")[0] == "typer"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "typer", None)
    code, _, err = run(capsys, "evaluate")
    assert code == 2
    assert err.startswith("error: ")
    assert 'pip install "art-logits[evaluate]"' in err


@pytest.mark.parametrize("arguments", [["--version"], ["evaluate", "--split", "valid"]])
def test_python_m(arguments):
    result = subprocess.run(
        [sys.executable, "-m", "art_logits", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    if arguments == ["--version"]:
        assert result.returncode == 0
        assert result.stdout.startswith("art-logits ")
    else:
        assert result.returncode == 2
        assert result.stderr.startswith("error: split must be one of")
