"""RobustBench's models by spec, through the core's ``load_model`` and the command."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from art_logits.cli import main
from art_logits.models import load_model, model_hash

if importlib.util.find_spec("robustbench") is None:
    pytest.skip("needs robustbench", allow_module_level=True)

from art_logits.plugins.robustbench import build_model, register, unregister

SPEC = "robustbench:cifar10/Linf/small"


class Small(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(192, 3))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A registered model, whose weights lie where RobustBench looks for them."""
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Small()
    path = tmp_path / "models/cifar10/Linf/small.pt"
    path.parent.mkdir(parents=True)
    torch.save(model.state_dict(), path)
    register("small", Small)
    yield model
    unregister("small")


def test_a_zoo_model_by_spec(small: nn.Module, tmp_path: Path) -> None:
    assert model_hash(load_model(SPEC)) == model_hash(small)
    (tmp_path / "models").rename(tmp_path / "elsewhere")
    assert model_hash(load_model(SPEC, model_dir=tmp_path / "elsewhere")) == model_hash(small)
    with pytest.raises(FileNotFoundError, match="weights of the registered model cifar10/Linf/small"):
        load_model(SPEC)


def test_a_checkpoint_takes_the_place_of_the_zoos_weights(small: nn.Module, tmp_path: Path) -> None:
    with torch.no_grad():
        small[1].bias += 1
    torch.save({"state_dict": small.state_dict()}, tmp_path / "own.pt")
    assert model_hash(load_model(SPEC, checkpoint=tmp_path / "own.pt")) == model_hash(small)


def test_the_architecture_of_a_zoo_model_touches_no_network() -> None:
    assert type(build_model("Wong2020Fast")).__name__ == "Wong2020FastNet"
    ensemble = "Diffenderfer2021Winning_LRR_CARD_Deck"
    with pytest.raises(ValueError, match="is an ensemble: it has no single checkpoint"):
        build_model(ensemble, threat_model="corruptions")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("robustbench:Wong2020Fast", "must be robustbench:DATASET/THREAT_MODEL/NAME, such as"),
        ("robustbench:cifar10/Linf/", "must be robustbench:DATASET/THREAT_MODEL/NAME"),
        ("robustbench:cifar10/Linf/Wong2020Fst", r"'robustbench:cifar10.*did you mean Wong2020Fast"),
        ("robustbench:cifar11/Linf/Wong2020Fast", r"did you mean cifar10"),
        ("robustbench:cifar10/Lnf/Wong2020Fast", r"did you mean Linf"),
        (
            "robustbnch:cifar10/Linf/Wong2020Fast",
            r"raised .* \(did you mean robustbench",
        ),
    ],
)
def test_bad_specs(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(spec)
    with pytest.raises(ValueError, match="mean and std are for models of a factory"):
        load_model(SPEC, mean=[0.5], std=[0.5])


def test_the_command_takes_a_zoo_model(small: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    np.savez("set.npz", x=rng.random((9, 3, 8, 8)), y=np.arange(9) % 3)
    arguments = ["--data", "set.npz", "--attack", "pgd:steps=1", "--out", "run", "--model-dir", "models"]
    assert main(["evaluate", "--model", SPEC, *arguments]) == 0
    assert f"model     {SPEC}" in capsys.readouterr().out
