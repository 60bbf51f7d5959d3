from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from art_logits import evaluate
from art_logits.analysis import summarize
from art_logits.cli import main
from art_logits.diagnostics import Diagnosis, find_warnings, observe, training_modules
from art_logits.normalize import Normalize
from art_logits.records import Records
from art_logits.report import render

ATTACK = {"attacks": "pgd:steps=2", "eps": 0.05}


def codes(records: Records) -> list[str]:
    return [warning.code for warning in find_warnings(records)]


def the(records: Records, code: str) -> Diagnosis:
    (found,) = [warning for warning in find_warnings(records) if warning.code == code]
    return found


@pytest.fixture
def data(net, images, predict):
    inputs = images(20)
    return inputs, predict(net, inputs)


class Changing(nn.Module):
    """A net whose outputs change from call to call: a dropout that eval mode does not switch off."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs):
        return self.net(nn.functional.dropout(inputs, 0.2, training=True))


class OwnNormalization(nn.Module):
    """Normalises as the models of RobustBench's zoo do, in its own forward."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mu", torch.tensor([0.5]).view(1, 1, 1, 1))
        self.register_buffer("sigma", torch.tensor([0.25]).view(1, 1, 1, 1))

    def forward(self, inputs):
        return self.net((inputs - self.mu) / self.sigma)


def test_a_sound_model_gets_no_warning_of_its_own(net, data):
    records = evaluate(nn.Sequential(Normalize([0.5], [0.25]), net), data, **ATTACK)
    assert set(codes(records)) <= {"rounding"}
    assert find_warnings(Records(records.table)) == find_warnings(records)


# ---- the live model --------------------------------------------------------------------------------------


def test_training_mode_is_told_for_model_and_reference(net, data):
    net.train()
    records = evaluate(net, data, reference=net, **ATTACK)
    found = [warning for warning in find_warnings(records) if warning.code == "training-mode"]
    assert [(warning.model, warning.count) for warning in found] == [("model", 1), ("reference", 1)]
    assert "The reference came in training mode (1 modules" in found[1].message
    assert net.training


def test_what_may_depend_on_the_mode():
    assert training_modules(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Dropout())) == 2
    assert training_modules(nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Dropout().eval())) == 0
    # Its forward may ask for the mode; a normalisation has nothing to ask about.
    assert training_modules(nn.Sequential(Normalize([0.5], [0.5]), Changing(nn.Linear(2, 2)))) == 1
    assert training_modules(nn.LSTM(2, 2)) == 1
    assert training_modules(lambda x: x) == 0


def test_outputs_that_change_are_told(net, data):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        records = evaluate(Changing(net).eval(), data, **ATTACK)
    assert "gives different outputs for the same inputs" in the(records, "unsteady").message
    # Less than that is what kernels do that add in another order.
    record = evaluate(net, data, **ATTACK)
    record.manifest["observations"]["model"]["repeat_difference"] = 9e-5
    assert "unsteady" not in codes(record)
    record.manifest["observations"]["model"]["repeat_difference"] = 2e-4
    assert "unsteady" in codes(record)


@pytest.mark.parametrize(
    ("wrap", "layer"),
    [
        (lambda net: nn.Sequential(Normalize([0.5], [0.25]), Normalize([0.3], [0.3]), net), "1"),
        (lambda net: nn.Sequential(Normalize([0.1], [0.1]), OwnNormalization(net)), "1"),
        # A normalisation that is not seen makes the next one seen.
        (lambda net: nn.Sequential(nn.BatchNorm2d(1), nn.Hardtanh(-3, -2), OwnNormalization(net)), "2"),
    ],
)
def test_two_normalisations_in_the_model_are_told(net, data, wrap, layer):
    records = evaluate(wrap(net).eval(), data, **ATTACK)
    found = the(records, "normalized-twice")
    assert f"its layer '{layer}' subtracts" in found.message
    assert "which is for pixels in [0, 1], but gets values from" in found.message


def test_normalised_data_for_a_model_that_normalises_are_told(net, data):
    inputs, labels = data
    normalised = (inputs - 0.5) / 0.25
    records = evaluate(OwnNormalization(net), (normalised, labels), bounds=(-2.0, 2.0), **ATTACK)
    assert "its layer 'OwnNormalization' subtracts (0.5) and divides by (0.25)" in (
        the(records, "normalized-twice").message
    )
    # The same data are right for a model that does not.
    records = evaluate(net, (normalised, labels), bounds=(-2.0, 2.0), **ATTACK)
    assert "normalized-twice" not in codes(records)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(Normalize([0.5], [0.25]), nn.Flatten(), nn.Linear(64, 3)),
        # An ensemble normalises in each of its members.
        nn.ModuleList([Normalize([0.5], [0.25]), Normalize([0.4], [0.2])]),
        # No statistics of pixels: [0, 255], and none at all.
        nn.Sequential(Normalize([0.5], [0.25]), Normalize([-1.0], [2.0]), nn.Flatten(), nn.Linear(64, 3)),
        nn.Sequential(Normalize([0.5], [0.25]), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 3)),
    ],
)
def test_one_normalisation_is_none_too_many(model, images):
    forward = model
    if isinstance(model, nn.ModuleList):

        def forward(x):
            return sum(member(x) for member in model).flatten(1)

    with torch.no_grad():
        seen = observe(model, forward, images(4))
    assert seen == {"repeat_difference": 0.0, "normalized_twice": None}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_statistics_in_lists_are_seen_and_hooks_leave_no_trace(images):
    class Listed(nn.Module):
        mean, std = [0.5], (0.25,)

        def forward(self, x):
            return ((x - 0.5) / 0.25).flatten(1)

    model = nn.Sequential(Listed())
    seen = observe(model, model, images(2) - 0.5)
    assert seen["normalized_twice"]["layer"] == "0"
    assert not model[0]._forward_pre_hooks
    scripted = torch.jit.script(nn.Flatten())
    assert observe(scripted, scripted, images(2))["normalized_twice"] is None


def test_the_size_that_a_network_was_made_for(images):
    class Made(nn.Sequential):
        native_size = 224

    records = evaluate(
        Made(nn.Flatten(), nn.Linear(64, 3)), (images(6), torch.arange(6) % 3), attacks="pgd:steps=1"
    )
    assert "made for images of 224x224, and sees 8x8" in the(records, "input-size").message


# ---- the records -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outputs", "code"),
    [
        (lambda z: z.softmax(dim=1), "probabilities"),
        (lambda z: z.softmax(dim=1).half().float(), "probabilities"),
        (lambda z: z.log_softmax(dim=1), "log-probabilities"),
        (lambda z: z.sigmoid(), None),
        (lambda z: -z.abs(), None),
        (lambda z: z, None),
    ],
)
def test_outputs_that_are_no_logits(make_table, outputs, code):
    logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    table = make_table([0] * 30, outputs(logits).numpy(), {})
    assert codes(Records(table)) == ([code] if code else [])


def test_a_model_that_ends_in_a_softmax(net, data):
    records = evaluate(nn.Sequential(net, nn.Softmax(dim=1)), data, reference=net, **ATTACK)
    assert the(records, "probabilities").model == "model"


def counted(table, column: str, values) -> Records:
    index = table.column_names.index(column)
    field = table.schema.field(index)
    return Records(table.set_column(index, field, pa.array(values, field.type)))


@pytest.mark.parametrize(("lost", "told"), [(5, False), (6, True)])
def test_zero_gradients_above_five_percent(make_table, lost, told):
    clean = 2 * np.eye(2)[[0, 1] * 50]
    table = make_table([0, 1] * 50, clean, {"pgd": clean})
    records = counted(table, "pgd.zero_gradients", [3] * lost + [0] * (100 - lost))
    assert codes(records) == (["zero-gradients"] if told else [])
    if told:
        assert "on 6 of 100 samples that it attacked" in the(records, "zero-gradients").message


def test_zero_gradients_of_the_samples_that_were_attacked(make_table):
    clean = 2 * np.eye(2)[[0, 1] * 50]
    table = make_table([0, 1] * 50, clean, {"pgd": clean})
    table = counted(table, "pgd.backwards", [20] * 40 + [0] * 60).table
    found = the(counted(table, "pgd.zero_gradients", [1] * 3 + [0] * 97), "zero-gradients")
    assert (found.attack, found.count) == ("pgd", 3)


def test_more_right_under_the_attack_than_without_it(make_table):
    labels = [0, 0, 0, 0, 1, 1]
    clean = 2 * np.eye(3)[[0, 0, 1, 1, 1, 1]]
    attacked = 2 * np.eye(3)[[1, 0, 0, 0, 0, 1]]
    table = make_table(
        labels, clean, {"odd": attacked, "same": clean}, reference=(clean, {"odd": clean, "same": clean})
    )
    found = the(Records(table), "robust-above-clean")
    assert (found.attack, found.count) == ("odd", 1)
    assert "in 0 (75.0% against 50.0%): it turns" in found.message


def test_only_some_of_many_classes_are_named(make_table):
    clean = 2 * np.eye(6)[[5, 5, 5, 5, 5]]
    table = make_table(list(range(5)), clean, {"odd": 2 * np.eye(6)[list(range(5))]})
    assert "2 (100.0% against 0.0%) and 2 more: it" in the(Records(table), "robust-above-clean").message


@pytest.mark.parametrize(("lower", "upper"), [(0.0, 1.0), (-1.0, 3.0)])
@pytest.mark.parametrize(
    ("needed", "moved", "gone"), [(0.3, 0.4, True), (0.3, 0.6, False), (0.7, 1.0, False)]
)
def test_successes_that_vanish_in_8_bits(lower, upper, needed, moved, gone):
    """One pixel on level 100 that must rise by ``needed`` levels and rises by ``moved``."""
    level = (upper - lower) / 255
    start, turn = lower + 100 * level, lower + (100 + needed) * level
    inputs = torch.full((1, 1, 1, 1), start)

    def model(x):
        return torch.cat([torch.zeros_like(x), 1000 * (x - turn)], dim=1).flatten(1)

    records = evaluate(
        model,
        (inputs, torch.tensor([0])),
        attacks={"a": lambda model, x, y: x + moved * level},
        bounds=(lower, upper),
    )
    assert records.column("a.success").tolist() == [True]
    assert records.column("a.success_8bit").tolist() == [not gone]
    assert ("rounding" in codes(records)) == gone


def test_the_warning_counts_what_counts_as_robust(make_table):
    clean = 2 * np.eye(2)[[0, 0, 0, 1]]
    attacked = 2 * np.eye(2)[[1, 1, 0, 1]]
    table = make_table([0, 0, 0, 0], clean, {"pgd": attacked})
    records = counted(table, "pgd.success_8bit", [False, True, False, False])
    found = the(records, "rounding")
    assert (found.count, found.message[:27]) == (1, "1 of 2 successes of pgd van")
    old = Records(records.table.drop_columns(["pgd.success_8bit"]))
    assert codes(old) == []


def test_samples_that_are_no_images_are_not_rounded():
    weights = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    inputs, labels = torch.tensor([[0.5001, 0.5], [0.9, 0.1]]), torch.tensor([0, 0])
    records = evaluate(lambda x: x @ weights, (inputs, labels), attacks={"a": "pgd:eps=1e-3"})
    assert records.column("a.success_8bit").tolist() == records.column("a.success").tolist() == [True, False]


def test_8_bit_passes_are_counted(net, data):
    records = evaluate(net, data, attacks={"a": "pgd:steps=2"}, eps=0.05)
    expected = 20 + int(records.column("a.forwards").sum()) + int(records.column("a.success").sum())
    assert records.manifest["passes"]["model"]["forwards"] == expected


# ---- where they are told ---------------------------------------------------------------------------------


def test_warnings_are_in_the_summary_and_the_page(net, data):
    records = evaluate(nn.Sequential(net, nn.Softmax(dim=1)), data, **ATTACK)
    (entry,) = [entry for entry in summarize(records)["warnings"] if entry["code"] == "probabilities"]
    assert entry["model"] == "model"
    assert set(entry) == {"code", "message", "model", "attack", "count"}
    json.dumps(entry)
    assert "outputs are probabilities" in render(records)


def test_the_command_tells_them_after_the_table_and_again_in_a_report(tmp_path, capsys, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    with zipfile.ZipFile("cats-jpeg.zip", "w") as archive:
        for i in range(12):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(file, "jpeg")
            archive.writestr(f"{i % 3}/{i}.jpg", file.getvalue())
    Path("nets.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Softmax(dim=1))\n"
    )
    arguments = [
        "--data",
        "cats-jpeg.zip",
        "--model",
        "nets.py:net",
        "--attack",
        "pgd:steps=1",
        "--out",
        "run",
    ]
    assert main(["evaluate", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith("warning: ")]
    assert told[0].startswith(
        "warning: The images are small JPEG files. If they were made from a published set"
    )
    assert any("outputs are probabilities" in line for line in told)
    assert lines.index(told[0]) > next(i for i, line in enumerate(lines) if line.startswith("overall"))
    assert [w["code"] for w in json.loads(Path("run/summary.json").read_text())["warnings"]][:2] == [
        "jpeg",
        "probabilities",
    ]
    assert main(["report", "run"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")] == told
