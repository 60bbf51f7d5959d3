from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from art_logits.cli import main
from art_logits.data import load_data
from art_logits.models import DigitsNet, load_model
from art_logits.pretrained import Pretrained
from art_logits.training_cli import average_decay, new_model

QUICK = ["--epochs", "1", "--batch-size", "8", "--n-validation", "6", "--precision", "float32"]
MADE = ["--data", "digits", "--model", "art_logits.models:DigitsNet", "--eps", "0.2", "--epochs", "20"]
MADE += ["--batch-size", "64", "--ema", "0.99", "--precision", "float32", "--seed", "0"]


@pytest.fixture
def npz(tmp_path: Path) -> str:
    """Training and test images of the digits net's size, in one file."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 24), ("test", 12)):
        arrays[f"x_{split}"] = rng.random((count, 8, 8), dtype=np.float32)
        arrays[f"y_{split}"] = np.arange(count) % 3
    path = tmp_path / "small.npz"
    np.savez(path, **arrays)
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["train", *arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.mark.parametrize("method", ["pgd-at", "trades", "standard"])
def test_train_writes_weights_that_evaluate_reads(
    capsys: pytest.CaptureFixture[str], npz: str, tmp_path: Path, method: str
) -> None:
    code, out, _ = run(capsys, "--data", npz, "--method", method, "--out", str(tmp_path / "run"), *QUICK)
    assert code == 0
    assert f"by {method} on small (n=24)" in out
    assert "on 6 held-out samples" in out
    net = load_model("art_logits.models:DigitsNet", checkpoint=tmp_path / "run" / "model.safetensors")
    assert net(torch.zeros(1, 1, 8, 8)).isfinite().all()


def test_training_on_a_zip_of_images_is_training_on_its_arrays(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from PIL import Image

    rng, arrays = np.random.default_rng(0), {}
    with zipfile.ZipFile(tmp_path / "small.zip", "w") as archive:
        for split, count in (("train", 16), ("test", 8)):
            arrays[f"x_{split}"] = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
            arrays[f"y_{split}"] = np.arange(count) // (count // 2)
            for i in range(count):
                file = io.BytesIO()
                Image.fromarray(arrays[f"x_{split}"][i]).save(file, "png")
                archive.writestr(f"small/{split}/{'ab'[2 * i // count]}/{i:02}.png", file.getvalue())
    np.savez(tmp_path / "small.npz", **arrays)
    weights = []
    for kind in ("zip", "npz"):
        out = tmp_path / kind
        code, shown, _ = run(capsys, "--data", str(tmp_path / f"small.{kind}"), "--out", str(out), *QUICK)
        assert code == 0
        assert "on small (n=16)" in shown
        weights.append(load_file(out / "model.safetensors"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])


def test_torchvision_options_are_for_torchvision_data(
    capsys: pytest.CaptureFixture[str], npz: str, tmp_path: Path
) -> None:
    options = ["--data", "mnist", "--validation", npz, "--data-dir", str(tmp_path), "--out", str(tmp_path)]
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 8), ("t10k", 4)):
        header = struct.pack(">iiii", 0x803, count, 8, 8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + bytes(64 * count))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(
            struct.pack(">ii", 0x801, count) + bytes(range(count))
        )
    code, shown, err = run(capsys, *options, *QUICK)
    assert (code, err.count("error")) == (0, 0)
    assert "on mnist (n=8)" in shown
    code, _, err = run(capsys, "--data", npz, "--download", "--out", str(tmp_path), *QUICK)
    assert code == 2
    assert "download is for mnist" in err


def test_options_reach_the_recipe(capsys: pytest.CaptureFixture[str], npz: str, tmp_path: Path) -> None:
    options = ["--norm", "L2", "--eps", "1/2", "--steps", "2", "--step-size", "1/8", "--temperature", "gap"]
    options += ["--lr", "0.02", "--ema", "0", "--augment", "shift", "--seed", "3"]
    code, _, _ = run(capsys, "--data", npz, "--validation", npz, "--out", str(tmp_path), *QUICK, *options)
    assert code == 0
    recipe = json.loads((tmp_path / "history.json").read_text())["recipe"]
    attack = {key: recipe["attack"][key] for key in ("norm", "eps", "steps", "step_size", "temperature")}
    assert attack == {"norm": "L2", "eps": 0.5, "steps": 2, "step_size": 0.125, "temperature": "gap"}
    assert (recipe["lr"], recipe["ema"], recipe["augment"], recipe["seed"]) == (0.02, None, "shift", 3)


def test_the_average_forgets_the_first_weights_within_the_run() -> None:
    data = load_data("digits", split="train")
    assert average_decay(None, data, 30, 128) == pytest.approx(1 - 10 / 330)
    assert average_decay(None, data, 1000, 128) == 0.995
    assert average_decay(None, data, 1, 200) is None  # 7 steps have nothing to average
    assert average_decay(0.0, data, 30, 128) is None
    assert average_decay(0.9, data, 30, 128) == 0.9


@pytest.mark.parametrize("command", ["train", "distill", "evaluate", "report"])
def test_help_tells_the_defaults_that_are_no_values(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    wanted = {
        "train": ["eps / 2", "0.995, less where the steps are few"],
        "distill": ["the objective's published one", "by data and norm"],
        "evaluate": ["pgd and temperature-pgd", "digits-at", "art-logits-runs/DATA-MODEL"],
        "report": ["DIR"],
    }
    assert all(f"[default: ({default})]" in shown for default in wanted[command])


def test_the_seed_decides_the_initial_weights(
    capsys: pytest.CaptureFixture[str], npz: str, tmp_path: Path
) -> None:
    before = torch.get_rng_state()
    weights = []
    for run_of, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        run(capsys, "--data", npz, "--out", str(tmp_path / run_of), "--seed", seed, *QUICK)
        weights.append(load_file(tmp_path / run_of / "model.safetensors")["classifier.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "pgd"], "method must be one of pgd-at, trades, standard, got 'pgd'"),
        (["--model", "art_logits.models:DigitNet"], "did you mean DigitsNet"),
        (["--eps", "much"], "expected a number such as 0.1 or 8/255, got 'much'"),
        (["--norm", "Linv"], "norm must be one of Linf, L2, L1, got 'Linv'"),
        (["--device", "abacus"], "device must be auto, cpu or a GPU"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    capsys: pytest.CaptureFixture[str], npz: str, tmp_path: Path, options: list[str], message: str
) -> None:
    code, _, err = run(capsys, "--data", npz, "--out", str(tmp_path / "run"), *QUICK, *options)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.fixture
def colour(tmp_path: Path) -> str:
    """Colour images of three classes, in one file."""
    rng, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 8), ("test", 6)):
        arrays[f"x_{split}"] = rng.random((count, 8, 8, 3), dtype=np.float32)
        arrays[f"y_{split}"] = np.arange(count) % 3
    path = tmp_path / "colour.npz"
    np.savez(path, **arrays)
    return str(path)


NET = "torchvision:shufflenet_v2_x0_5"


def test_a_network_of_a_library_has_the_data_s_classes(
    capsys: pytest.CaptureFixture[str], colour: str, tmp_path: Path
) -> None:
    pytest.importorskip("torchvision")
    out = tmp_path / "student"
    chosen = ["--data", colour, "--model", f"{NET}:weights=none", "--method", "standard", *QUICK]
    assert run(capsys, *chosen, "--steps", "1", "--out", str(out))[0] == 0
    assert load_file(out / "model.safetensors")["fc.weight"].shape[0] == 3
    evaluated = [
        "--data",
        colour,
        "--model",
        f"{NET}:num_classes=3",
        "--attack",
        "pgd:steps=1",
        "--eps",
        "0.1",
    ]
    evaluated += ["--checkpoint", str(out / "model.safetensors"), "--out", str(tmp_path / "report")]
    assert main(["evaluate", *evaluated]) == 0
    data = load_data(colour, split="train")
    first, again, other = (new_model(f"{NET}:weights=none", seed, data).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["network.fc.weight"], other["network.fc.weight"])


def test_a_network_of_a_library_that_does_not_fit_is_refused(
    colour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchvision")
    data = load_data(colour, split="train")
    # As it comes with the library's own weights, which would be downloaded.
    layers = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000)
    whole = Pretrained(nn.Sequential(*layers), [0.5] * 3, [0.2] * 3, native_size=224)
    monkeypatch.setattr("art_logits.models.load_pretrained", lambda *_, **__: whole)
    with pytest.raises(ValueError, match=r"has 1000 outputs, and colour has 3 classes: add weights=none"):
        new_model(NET, 0, data)
    assert new_model(f"{NET}:num_classes=1000", 0, data) is whole
    whole.network.insert(0, nn.Conv2d(3, 3, 9))
    with pytest.raises(ValueError, match=r"cannot take the inputs of colour, \(3, 8, 8\): .*[Kk]ernel size"):
        new_model(NET, 0, data)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [("digits-at", "pgd-at"), ("digits-standard", "standard")])
def test_the_bundled_models_can_be_made_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, method: str
) -> None:
    """By the command in the README. Another processor rounds otherwise, so decisions are compared."""
    code, _, _ = run(capsys, *MADE, "--method", method, "--out", str(tmp_path))
    assert code == 0
    again = load_model("art_logits.models:DigitsNet", checkpoint=tmp_path / "model.safetensors")
    inputs, labels = next(load_data("digits").batches(1000))
    bundled = load_model(name)
    assert isinstance(bundled, DigitsNet)
    with torch.no_grad():
        ours, theirs = again(inputs).argmax(dim=1), bundled(inputs).argmax(dim=1)
    assert (ours == theirs).float().mean() >= 0.98
    assert abs((ours == labels).float().mean() - (theirs == labels).float().mean()) <= 0.01
