from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from art_logits.cli import main
from art_logits.data import load_data
from art_logits.distill import distill
from art_logits.models import DigitsNet, load_model
from art_logits.transforms import Compose, OrderIncorrect, Scale

QUICK = ["--epochs", "1", "--batch-size", "16", "--n-validation", "10", "--precision", "float32"]


@pytest.fixture
def npz(tmp_path: Path) -> str:
    """A few digits with their labels, of all classes, in one file."""
    arrays = {}
    for split, count in (("train", 40), ("test", 20)):
        x, y = load_data("digits", split=split).subset(count).batch(slice(0, count))
        arrays[f"x_{split}"], arrays[f"y_{split}"] = x.squeeze(1).numpy(), y.numpy()
    path = tmp_path / "small.npz"
    np.savez(path, **arrays)
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main([*arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_a_student_that_evaluate_reads(capsys: pytest.CaptureFixture[str], npz: str, tmp_path: Path) -> None:
    out = tmp_path / "student"
    specs = ["scale:factor=0.5", "order:how=reversed"]
    chosen = ["--data", npz, "--out", str(out), "--temperature", "4", "--ema", "0.5", "--seed", "3"]
    code, shown, _ = run(
        capsys, "distill", *chosen, *(part for spec in specs for part in ("--transform", spec)), *QUICK
    )
    assert code == 0
    assert "distilling digits-at into art_logits.models:DigitsNet by kd on small (n=40)" in shown
    assert ", scale:factor=0.5, order:how=reversed" in shown
    assert "worst class" in shown
    # The command is the function.
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = DigitsNet()
    transform = Compose(Scale(factor=0.5), OrderIncorrect(how="reversed"))
    distill(
        net,
        load_model("digits-at"),
        load_data(npz, split="train"),
        temperature=4.0,
        transform=transform,
        ema=0.5,
        seed=3,
        epochs=1,
        batch_size=16,
        precision="float32",
    )
    student = load_model("art_logits.models:DigitsNet", checkpoint=out / "model.safetensors")
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], tensor)
    recipe = json.loads((out / "history.json").read_text())["recipe"]
    assert [part["transform"] for part in recipe["distillation"]["transform"]] == ["Scale", "OrderIncorrect"]
    code, shown, _ = run(
        capsys,
        "evaluate",
        *("--model", "art_logits.models:DigitsNet", "--checkpoint", str(out / "model.safetensors")),
        *("--data", npz, "--out", str(tmp_path / "report"), "--attack", "pgd:steps=1", "--eps", "0.1"),
    )
    assert code == 0


def test_a_perturbing_objective_and_resume(
    capsys: pytest.CaptureFixture[str], npz: str, tmp_path: Path
) -> None:
    chosen = [
        "--data",
        npz,
        "--objective",
        "rslad",
        "--eps",
        "0.05",
        "--steps",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    assert run(capsys, "distill", *chosen, *QUICK)[0] == 0
    code, _, err = run(capsys, "distill", *chosen, *QUICK)
    assert code == 2
    assert "already holds a training run" in err
    assert run(capsys, "distill", *chosen, *QUICK, "--resume")[0] == 0
    attack = json.loads((tmp_path / "out" / "history.json").read_text())["recipe"]["distillation"]["attack"]
    assert attack["eps"] == 0.05
    assert attack["steps"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objective", "kl"], "objective must be one of kd, ard, rslad, iad, adaad, got 'kl'"),
        (["--transform", "flaten"], "transform must be one of scale,"),
        (["--temperature", "0"], "temperature must be a finite number > 0"),
        (["--alpha", "2"], "alpha must lie in [0, 1]"),
        (["--teacher", "digits-ta"], "model: expected one of digits-at"),
        (["--norm", "L2", "--eps", "8/255"], "is 8/255, a radius for Linf, and its norm is L2"),
        (
            ["--transform", "permute-confidences", "--augment", "shift"],
            "cannot follow inputs that are augmented",
        ),
        (["--lr", "1e30"], "the loss became nan"),
    ],
)
def test_errors_are_one_line(
    capsys: pytest.CaptureFixture[str], npz: str, tmp_path: Path, arguments: list[str], message: str
) -> None:
    code, _, err = run(capsys, "distill", "--data", npz, "--out", str(tmp_path / "out"), *QUICK, *arguments)
    assert code == 2
    assert message in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err
