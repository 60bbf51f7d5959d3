"""What a user gets wrong, case by case: one line that names it, exit code 2, no traceback, no file."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from art_logits import records
from art_logits.cli import main
from art_logits.models import DigitsNet

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.body = nn.Linear(64, num_classes)
    def forward(self, x):
        return self.body(x.flatten(1))

class Pair(Net):
    def forward(self, x):
        return super().forward(x), x

class Flat(Net):
    def forward(self, x):
        return super().forward(x).sum(dim=1)

class Broken(Net):
    def forward(self, x):
        return super().forward(x) * float("nan")

class Detached(Net):
    def forward(self, x):
        return super().forward(x.detach())

class Guarded(Net):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)

class Failing(Net):
    def forward(self, x):
        assert x.shape[2] == 32, "Input height (8) doesn't match model (32)."
"""
MINE = ["--model", "nets.py:Net"]


class Code:
    """What unpickling must never do."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a file ran code')",)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)


def images(count: int = 12, shape: tuple[int, ...] = (8, 8)) -> np.ndarray:
    return np.random.default_rng(0).random((count, *shape)).astype(np.float32)


def labels(count: int = 12) -> np.ndarray:
    return np.arange(count) % 10


def npz(x: object, y: object, **more: object) -> list[str]:
    np.savez("set.npz", x=x, y=y, **more)
    return [*MINE, "--data", "set.npz"]


def with_pixel(value: float) -> np.ndarray:
    x = images()
    x[3, 2, 1] = value
    return x


def zipped(*members: str) -> list[str]:
    with zipfile.ZipFile("set.zip", "w") as archive:
        for name in members:
            archive.writestr(name, b"")
    return [*MINE, "--data", "set.zip"]


def checkpoint(content: object) -> list[str]:
    if isinstance(content, bytes):
        Path("weights.pt").write_bytes(content)
    else:
        torch.save(content, "weights.pt")
    return ["--checkpoint", "weights.pt"]


def whole() -> bytes:
    torch.save(DigitsNet().state_dict(), "whole.pt")
    return Path("whole.pt").read_bytes()


HTML = (
    b"<!DOCTYPE html><html><head><title>Quota exceeded</title></head><body>" + b"." * 120 + b"</body></html>"
)

# Each line of what may be wrong: arguments, made when the test runs, and what the message says.
LINES = {
    "labels out of range": (
        lambda: npz(images(), labels() + 3),
        "labels must lie in [0, 10), the model's classes, got 3 to 12",
    ),
    "negative labels": (lambda: npz(images(), labels() - 1), "labels must be >= 0, got -1"),
    "float labels": (
        lambda: npz(images(), labels().astype(np.float32)),
        "labels must be integer class indices, got float32",
    ),
    "one label too few": (
        lambda: npz(images(), labels(11)),
        "inputs and labels must have the same length, got 12 and 11",
    ),
    "empty data": (lambda: npz(images(0), labels(0)), "data must hold at least one sample, got none"),
    "NaN pixels": (lambda: npz(with_pixel(np.nan), labels()), "inputs must not contain NaN"),
    "pixels above 1": (
        lambda: npz(with_pixel(1.5), labels()),
        "inputs must be floats in [0, 1] or uint8, got [",
    ),
    "pixels below 0": (lambda: npz(with_pixel(-2.0), labels()), "undo the normalisation and put it inside"),
    "wrong channel count": (
        lambda: [*npz(images(shape=(8, 8, 3)), labels()), "--model", "digits-at"],
        "inputs must have shape (N, 1, H, W) for this model, got (2, 3, 8, 8)",
    ),
    "eps < 0": (lambda: ["--eps", "-0.1"], "eps must be a finite number >= 0, got -0.1"),
    "eps < 0 in a spec": (lambda: ["--attack", "pgd:eps=-1"], "attack 'pgd:eps=-1': eps must be"),
    "eps < 0 in a host's spec": (lambda: ["--attack", "torchattacks:PGD:eps=-1"], "eps must be a finite"),
    "temperature 0": (
        lambda: ["--attack", "temperature-pgd:temperature=0"],
        "temperature must be a finite number > 0, got 0.0",
    ),
    "temperature < 0": (
        lambda: ["--attack", "pgd:temperature=-1"],
        "temperature must be a finite number > 0",
    ),
    "steps no int": (
        lambda: ["--attack", "pgd:steps=2.5"],
        "attack 'pgd:steps=2.5': option 'steps': expected an integer, got '2.5'",
    ),
    "steps of a host no int": (
        lambda: ["--attack", "art:DeepFool:max_iter=x"],
        "expected an integer, got 'x'",
    ),
    "unknown class": (lambda: ["--model", "nets.py:Nett"], "has no factory 'Nett' (did you mean Net?)"),
    "unknown class of a host": (
        lambda: ["--attack", "torchattacks:PGDD"],
        "torchattacks has no attack class 'PGDD' (did you mean PGD",
    ),
    "unknown model": (lambda: ["--model", "digits-att"], "got 'digits-att' (did you mean digits-at or"),
    "unknown model of a library": (lambda: ["--model", "torchvision:resnet81"], "(did you mean resnet"),
    "unknown data set": (lambda: [*MINE, "--data", "cifar11"], "got 'cifar11' (did you mean cifar10"),
    "unknown attack": (lambda: ["--attack", "pgdd"], "got 'pgdd' (did you mean pgd"),
    "unknown option of an attack": (lambda: ["--attack", "pgd:setps=3"], "got 'setps' (did you mean steps"),
    "unknown norm": (lambda: ["--norm", "Linff"], "got 'Linff' (did you mean Linf?)"),
    "a model that returns a tuple": (
        lambda: ["--model", "nets.py:Pair"],
        "model must return a tensor of logits (N, C), got tuple",
    ),
    "a model of a wrong shape": (
        lambda: ["--model", "nets.py:Flat"],
        "model must return logits (2, C) with C >= 2, got shape (2,)",
    ),
    "a model that returns NaN": (
        lambda: ["--model", "nets.py:Broken"],
        "model must return finite logits, got NaN or infinity",
    ),
    "a model without gradients": (
        lambda: ["--model", "nets.py:Detached"],
        "model: expected logits that can be differentiated by the inputs, got some without gradients; take "
        "torch.no_grad() and detach() out of its forward pass, or attack it without gradients",
    ),
    "a model under no_grad": (
        lambda: ["--model", "nets.py:Guarded", "--precision", "float32"],
        "got some without gradients",
    ),
    "a reference without gradients": (
        lambda: [*MINE, "--reference", "nets.py:Guarded"],
        "reference: expected logits that can be differentiated by the inputs",
    ),
    "a model without gradients and a host's attack": (
        lambda: ["--model", "nets.py:Guarded", "--attack", "torchattacks:FGSM"],
        "got some without gradients",
    ),
    "a model that fails": (
        lambda: ["--model", "nets.py:Failing"],
        "model fails on inputs of shape (2, 1, 8, 8): Input height (8) doesn't match",
    ),
    "a checkpoint that does not fit": (
        lambda: checkpoint(nn.Linear(3, 3).state_dict()),
        "does not fit DigitsNet: 24 keys missing: ",
    ),
    "a checkpoint with code": (
        lambda: checkpoint({"state_dict": Code()}),
        "contains pickled Python objects (exec), which could run code, and is refused",
    ),
    "a truncated checkpoint": (
        lambda: checkpoint(whole()[:9000]),
        "it is truncated or in another format; download or save it again",
    ),
    "200 bytes of HTML": (
        lambda: checkpoint(HTML[:200]),
        "is an HTML page, not weights: the download was answered with a web page",
    ),
    "pickled objects in an .npz": (
        lambda: npz(np.array([Code()] * 3), labels(3)),
        "holds pickled Python objects, which could run code",
    ),
    "a zip member that leaves": (
        lambda: zipped("test/cat/0.png", "../../evil.png"),
        "holds the member '../../evil.png', which leaves the archive's folder",
    ),
    "an absolute zip member": (lambda: zipped("/etc/evil.png"), "which leaves the archive's folder"),
    "n-examples 0": (lambda: ["--n-examples", "0"], "--n-examples must be at least 1, got 0"),
    "an option given an odd value": (lambda: ["--seed", "-1"], "seed must be at least 0"),
}


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Run the command; the message, after a check that it is one line and nothing else happened."""
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    code = main(["evaluate", *arguments])
    out, err = capsys.readouterr()
    assert code == 2, out
    assert "Traceback" not in out + err
    # The progress bar, where a run had begun, shares stderr.
    last = err.replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith("error: ")
    after = {path: path.stat().st_mtime_ns for path in Path().rglob("*") if "__pycache__" not in path.parts}
    assert after == {path: when for path, when in before.items() if "__pycache__" not in path.parts}
    return last


@pytest.mark.parametrize("line", LINES)
def test_bad_input(capsys, line):
    make, message = LINES[line]
    told = refused(capsys, make())
    assert message in told


def test_an_out_that_holds_another_run(capsys):
    quick = ["--n-examples", "10", "--attack", "pgd:steps=1", "--out", "run"]
    assert main(["evaluate", *quick]) == 0
    capsys.readouterr()
    assert "out: run holds another run; choose another --out" in refused(capsys, quick)
    told = refused(capsys, [*quick, "--resume", "--seed", "3"])
    assert "out: run holds a run that differs" in told
    assert "seed: 0 there, 3 now" in told
    Path("full").mkdir()
    Path("full/thesis.txt").touch()
    assert "out: full is not empty and holds no run (thesis.txt)" in refused(capsys, ["--out", "full"])
    assert "out: full/thesis.txt is a file" in refused(capsys, ["--out", "full/thesis.txt"])


def test_no_write_permission(capsys, monkeypatch):
    Path("locked").mkdir()
    if os.geteuid():
        Path("locked").chmod(0o500)
    else:  # root may write everywhere

        def denied(*args, **kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(records.Path, "mkdir", denied)
    told = refused(capsys, ["--n-examples", "10", "--out", "locked/run"])
    assert told == "error: out: locked/run cannot be written to (Permission denied); choose another --out"


def test_what_fails_under_attack_leaves_no_run_behind(capsys):
    arguments = ["--n-examples", "10", "--attack", "torchattacks:TIFGSM", "--out", "deep/run"]
    told = refused(capsys, arguments)
    assert "attack 'torchattacks:TIFGSM' failed in its host: RuntimeError: Given groups=3" in told
    assert not Path("deep").exists()
