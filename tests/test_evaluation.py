from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from art_logits import AttackResult, TemperaturePGD, evaluation, prepare
from art_logits.cascade import Cascade, quick
from art_logits.data import as_data, load_data
from art_logits.evaluation import evaluate, resolve_device
from art_logits.records import Records

WEIGHT = torch.tensor([[2.0, -1.0, -1.0], [-1.0, 2.0, -1.0], [-1.0, -1.0, 2.0]])


class Linear(nn.Module):
    """Logits ``inputs @ WEIGHT.T``: the optimal Linf attack is known in closed form."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.body = nn.Linear(3, 3, bias=False, dtype=dtype)
        with torch.no_grad():
            self.body.weight.copy_(WEIGHT)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body(inputs)


def samples(n: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = 0.3 + 0.4 * torch.rand(n, 3, generator=generator)
    return inputs, inputs.argmax(dim=1)


def values(records: Records, column: str) -> np.ndarray:
    """A column as an array; vectors as rows."""
    array = records.table[column].combine_chunks()
    return np.array(array.to_pylist())


def robust_in_closed_form(inputs: Tensor, eps: float) -> np.ndarray:
    """The two largest inputs differ by d: eps moves the margin 3 d by -6 eps."""
    top = inputs.topk(2, dim=1).values
    return (top[:, 0] - top[:, 1] > 2 * eps).numpy()


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(evaluation, "_part_size", lambda *arguments: 16)


def test_linear_model_against_the_closed_form():
    inputs, labels = samples(200)
    records = evaluate(Linear(), (inputs, labels), attacks=TemperaturePGD(eps=0.05, steps=20))
    assert (values(records, "temperature-pgd.success") == ~robust_in_closed_form(inputs, 0.05)).all()
    assert np.allclose(values(records, "clean_logits"), inputs.double() @ WEIGHT.T.double(), atol=1e-6)
    assert (values(records, "clean_prediction") == labels.numpy()).all()
    assert (values(records, "temperature-pgd.distance") <= 0.05 + 1e-6).all()
    prediction = values(records, "temperature-pgd.logits").argmax(axis=1)
    assert (prediction == values(records, "temperature-pgd.prediction")).all()
    assert (values(records, "temperature-pgd.success") == (prediction != labels.numpy())).all()


def test_success_is_measured_against_the_label():
    inputs, labels = samples(30)
    wrong = (labels + 1) % 3
    records = evaluate(Linear(), (inputs, wrong), attacks=lambda model, x, y: x)
    assert values(records, "lambda.success").all()
    assert (values(records, "lambda.distance") == 0).all()
    assert records.robust().sum() == 0


@pytest.mark.parametrize("batch_size", [7, 64])
def test_no_result_depends_on_batch_parts_or_order(monkeypatch, batch_size):
    inputs, labels = samples(40)
    attack = TemperaturePGD(eps=0.08, steps=4, restarts=2)
    whole = evaluate(Linear(torch.float64), (inputs, labels), attacks=attack)
    monkeypatch.setattr(evaluation, "_part_size", lambda *arguments: 9)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    data = (inputs[order], labels[order])
    parts = evaluate(Linear(torch.float64), data, attacks=attack, batch_size=batch_size)
    one, two = (r.to_frame().sort_values("sample_id", ignore_index=True) for r in (whole, parts))
    for column in one.columns:
        assert (np.stack(one[column]) == np.stack(two[column])).all(), column


def test_reference_is_attacked_in_its_own_right():
    inputs, labels = samples(20)
    reference = nn.Sequential(nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        reference[0].weight.copy_(WEIGHT.roll(1, dims=0))
    records = evaluate(
        Linear(), (inputs, labels), attacks={"a": TemperaturePGD(eps=0.01)}, reference=reference
    )
    expected = (inputs @ WEIGHT.roll(1, dims=0).T).argmax(dim=1)
    assert (values(records, "reference.clean_prediction") == expected.numpy()).all()
    assert records.manifest["identity"]["reference"]["name"] == "Sequential"
    assert records.manifest["passes"]["reference"]["forwards"] >= 40


def test_manifest_says_what_decides_the_result():
    inputs, labels = samples(10)
    attack = TemperaturePGD(eps=0.01, steps=3)
    records = evaluate(
        Linear(), (inputs, labels), attacks={"mine": attack}, class_names="abc", command="art-logits", seed=4
    )
    identity = records.manifest["identity"]
    # On a model this small, "auto" is float32.
    decided = {**attack.config(), "precision": "float32"}
    assert identity["attacks"] == {"mine": json.loads(json.dumps(decided))}
    assert identity["class_names"] == ["a", "b", "c"]
    assert identity["data"] == {"name": "arrays", "hash": as_data((inputs, labels)).fingerprint(), "n": 10}
    assert identity["model"]["name"] == "Linear"
    assert len(identity["model"]["hash"]) == 64
    assert (identity["seed"], identity["bounds"], identity["reference"]) == (4, [0.0, 1.0], None)
    assert records.manifest["versions"]["torch"] == torch.__version__
    assert records.manifest["command"] == "art-logits"
    assert records.manifest["complete"] is True


class InterruptError(Exception):
    pass


@pytest.mark.usefixtures("small_parts")
def test_interrupted_runs_resume_to_the_same_records(tmp_path):
    inputs, labels = samples(40)
    attack = TemperaturePGD(eps=0.05, steps=5)
    expected = evaluate(Linear(), (inputs, labels), attacks={"a": attack}).table
    calls = []

    class Failing(Linear):
        def forward(self, inputs):
            calls.append(len(inputs))
            if len(calls) == 20:
                raise InterruptError
            return super().forward(inputs)

    options = {"attacks": {"a": attack}, "out": tmp_path / "run", "model_name": "linear"}
    with pytest.raises(InterruptError):
        evaluate(Failing(), (inputs, labels), **options)
    done = sorted(path.name for path in (tmp_path / "run" / "records").iterdir())
    assert done
    assert len(done) < 3
    resumed = evaluate(Linear(), (inputs, labels), **options, resume=True)
    assert resumed.table.equals(expected)
    assert Records.load(tmp_path / "run").table.equals(expected)
    fresh = evaluate(Linear(), (inputs, labels), attacks={"a": attack})
    assert resumed.manifest["passes"] == fresh.manifest["passes"]
    with pytest.raises(FileExistsError, match="holds another run"):
        evaluate(Linear(), (inputs, labels), **options)
    with pytest.raises(ValueError, match="seed"):
        evaluate(Linear(), (inputs, labels), **options, resume=True, seed=1)


def test_finished_parts_are_not_attacked_again(tmp_path):
    inputs, labels = samples(5)
    calls = []

    def attack(model, x, y):
        calls.append(len(x))
        return x

    for resume in (False, True):
        evaluate(Linear(), (inputs, labels), attacks={"a": attack}, out=tmp_path / "run", resume=resume)
    assert calls == [5]


def test_passes_of_foreign_attacks_are_counted():
    inputs, labels = samples(5)

    def attack(model, x, y):
        x.requires_grad_()
        (grad,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
        model(x[:3].detach())
        assert model.body.out_features == 3
        return (x + 0.01 * grad.sign()).clamp(0, 1)

    records = evaluate(Linear(), (inputs, labels), attacks=attack, batch_size=3)
    assert values(records, "attack.forwards").tolist() == [2, 2, 2, 2, 2]
    assert values(records, "attack.backwards").tolist() == [1, 1, 1, 1, 1]
    # One clean pass and one to verify, per sample.
    assert records.manifest["passes"]["model"] == {"forwards": 20, "backwards": 5}


def every_step(**options):
    return TemperaturePGD(eps=0.05, steps=3, keep="last", stop_on_success=False, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["single", "every step", "cascade", "targets first"])
def test_all_attacks_share_one_look_at_the_inputs(monkeypatch, record, dtype, kind):
    """Recorded is what an attack takes alone; the run's passes are those that were made."""
    attack = {
        "single": TemperaturePGD(eps=0.05, steps=3),
        "every step": every_step(),
        "cascade": Cascade(stages=[TemperaturePGD(eps=0.05, steps=2), TemperaturePGD(eps=0.05, seed=1)]),
        "targets first": Cascade(stages=[every_step(targeted=True), TemperaturePGD(eps=0.05, seed=1)]),
    }[kind]
    inputs, labels = samples(20)
    labels[:3] = (labels[:3] + 1) % 3

    def run(attacks):
        net = record(Linear(dtype))
        evaluated = evaluate(net, (inputs, labels), attacks=attacks)
        return evaluated, sum(net.rows)

    two, made = run({"a": attack, "b": attack})
    alone = attack(Linear(dtype), inputs.to(dtype), labels, as_data((inputs, labels)).ids)
    for name in ("a", "b"):
        assert values(two, f"{name}.forwards").tolist() == alone.forwards.tolist()
        assert values(two, f"{name}.backwards").tolist() == alone.backwards.tolist()
        assert (values(two, f"{name}.success") == (alone.logits.argmax(1) != labels).numpy()).all()
    one, less = run({"a": attack})
    passes = [records.manifest["passes"]["model"]["forwards"] for records in (two, one)]
    assert made - less == passes[0] - passes[1]
    shared = kind != "every step"
    assert made - less == int(alone.forwards.sum()) + 20 - 20 * shared  # the attack's own, and to verify
    monkeypatch.setattr(evaluation, "_is_told_clean_logits", lambda attack: False)
    same, _ = run({"a": attack})
    assert same.table.equals(one.table)


@pytest.mark.parametrize("attack", ["pgd", "temperature-pgd"])
def test_a_model_may_answer_in_float64_whatever_it_is_asked_in(attack):
    inputs, labels = samples(30)

    class Wide(Linear):
        def forward(self, inputs):
            return self.body(inputs).double()

    wide, plain = (evaluate(net, (inputs, labels), attacks=attack, eps=0.05) for net in (Wide(), Linear()))
    assert (wide.robust() == plain.robust()).all()
    assert 0 < wide.robust().sum() < 30


class InParts:
    """An attack that wants whole parts; moves every pixel by a fixed amount."""

    takes_parts = True

    def __init__(self, shift: float = 0.01) -> None:
        self.shift = shift
        self.calls: list[tuple[list[int], int | None]] = []

    def config(self) -> dict[str, float]:
        return {"shift": self.shift}

    def __call__(self, model, inputs, labels, sample_ids=None, *, batch_size=None):
        self.calls.append((torch.as_tensor(sample_ids).tolist(), batch_size))
        return TemperaturePGD(eps=self.shift, steps=1)(model, inputs, labels, sample_ids)


def test_an_attack_may_take_whole_parts_with_their_ids():
    attack = InParts()
    data = samples(7)
    records = evaluate(
        Linear(), data, attacks={"a": attack}, batch_size=2, part_size=4, sample_ids=range(10, 17)
    )
    assert attack.calls == [([10, 11, 12, 13], 2), ([14, 15, 16], 2)]
    assert records.manifest["identity"]["part_size"] == 4


def test_what_an_attack_says_of_itself_decides_whether_a_run_can_be_resumed(tmp_path):
    data = samples(3)
    records = evaluate(Linear(), data, attacks={"a": InParts(0.01)}, out=tmp_path / "run")
    assert records.manifest["identity"]["attacks"]["a"]["shift"] == 0.01
    with pytest.raises(ValueError, match=r"attacks\.a\.shift: 0\.01 there, 0\.02 now"):
        evaluate(Linear(), data, attacks={"a": InParts(0.02)}, out=tmp_path / "run", resume=True)


def test_part_size_is_a_positive_integer():
    with pytest.raises(ValueError, match="part_size must be at least 1"):
        evaluate(Linear(), samples(3), attacks={"a": InParts()}, part_size=0)


def test_attack_may_return_a_result():
    inputs, labels = samples(5)

    def attack(model, x, y):
        return TemperaturePGD(eps=0.1, steps=2)(model, x, y)

    records = evaluate(Linear(), (inputs, labels), attacks=attack)
    assert isinstance(attack(Linear(), inputs, labels), AttackResult)
    assert records.manifest["passes"]["model"]["backwards"] == values(records, "attack.backwards").sum() > 0


def test_foreign_attacks_work_on_copies_under_no_grad_and_inference_mode():
    inputs, labels = samples(5)
    model, before = Linear(), inputs.clone()

    def attack(model, x, y):
        assert torch.is_grad_enabled()
        y.zero_()
        return x.mul_(0.9)

    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            records = evaluate(model, (inputs, labels), attacks=[attack, TemperaturePGD(eps=0.1, steps=1)])
        assert torch.equal(inputs, before)
        assert (values(records, "label") == labels.numpy()).all()


def returns(result):
    return lambda model, x, y: result(x)


@pytest.mark.parametrize(
    ("attack", "error", "message"),
    [
        (returns(lambda x: x + 5), ValueError, r"attack 'bad' must keep to the bounds \[0, 1\]"),
        (returns(lambda x: x * torch.nan), ValueError, "must return finite inputs"),
        (returns(lambda x: x[1:]), ValueError, r"must return inputs of shape \(5, 3\), got \(4, 3\)"),
        (returns(lambda x: (x, x)), TypeError, "floating-point tensor or an AttackResult, got tuple"),
        (returns(lambda x: (255 * x).long()), TypeError, r"got torch.int64"),
    ],
)
def test_attacks_are_not_trusted(attack, error, message):
    with pytest.raises(error, match=message):
        evaluate(Linear(), samples(5), attacks={"bad": attack})


class Leaving:
    """An attack that leaves its ball by a factor."""

    def __init__(self, norm, eps, factor):
        self.norm, self.eps, self.factor = norm, eps, factor

    def __call__(self, model, x, y):
        delta = torch.zeros_like(x)
        delta[:, 0] = self.eps * self.factor
        return x + delta


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("eps", [0.1, torch.full((5,), 0.1)])
def test_the_ball_is_checked(norm, eps):
    records = evaluate(Linear(), samples(5), attacks={"a": Leaving(norm, eps, 1.0)})
    assert np.allclose(values(records, "a.distance"), 0.1, atol=1e-6)
    with pytest.raises(
        ValueError, match=rf"attack 'a' must stay in its {norm} ball of radius 0.1, .* 0.1001"
    ):
        evaluate(Linear(), samples(5), attacks={"a": Leaving(norm, eps, 1.001)})


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_our_attack_passes_the_check_in_every_ball(norm):
    records = evaluate(
        nn.Sequential(nn.Flatten(), nn.Linear(768, 4)),
        (torch.rand(20, 3, 16, 16), torch.arange(20) % 4),
        attacks="temperature-pgd:steps=5",
        norm=norm,
        eps=0.25,
    )
    assert values(records, "temperature-pgd:steps=5.distance").max() <= 0.25 * (1 + 1e-4)


def test_one_eps_per_sample_is_cut_to_the_parts(monkeypatch):
    monkeypatch.setattr(evaluation, "_part_size", lambda *arguments: 3)
    inputs, labels = samples(8)
    eps = torch.linspace(0, 0.1, 8)
    records = evaluate(
        Linear(), (inputs, labels), attacks={"a": TemperaturePGD(eps=eps, stop_on_success=False)}
    )
    assert np.allclose(values(records, "a.distance"), eps, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda x: (x, x), TypeError, "model must return a tensor of logits"),
        (lambda x: x * torch.nan, ValueError, "model must return finite logits, got NaN"),
        (lambda x: x.sum(dim=1), ValueError, "model must return logits"),
        (nn.Linear(4, 3), ValueError, r"model fails on inputs of shape \(2, 3\): .*mat1"),
        (lambda x: x[:, :2], ValueError, r"labels must lie in \[0, 2\)"),
        (lambda x: x[:, : 3 if len(x) == 2 else 2], ValueError, "model must return 3 logits, got 2"),
    ],
)
def test_models_that_give_no_logits(model, error, message):
    with pytest.raises(error, match=message):
        evaluate(model, (torch.eye(3).repeat(2, 1), torch.arange(6) % 3), attacks="pgd")


def test_a_model_without_gradients_is_named_and_can_be_attacked_without_them(tmp_path):
    data = torch.eye(3).repeat(2, 1), torch.arange(6) % 3  # right, so that there is something to attack
    # With a weight that requires gradients torch says it in other words.
    loose = nn.Parameter(torch.ones(()))

    def model(x):
        return x.detach() * loose

    with pytest.raises(ValueError, match="model: expected logits that can be differentiated by the inputs"):
        evaluate(model, data, attacks=TemperaturePGD(eps=0.1, precision="float32"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    records = evaluate(model, data, attacks={"noise": lambda _, x, __: 1 - x})
    assert len(records) == 6


def test_other_runtime_errors_of_an_attack_stay_what_they_are():
    def broken(*_):
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match=r"^out of luck$"):
        evaluate(Linear(), samples(), attacks={"broken": broken})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"attacks": []}, ValueError, "at least one attack"),
        ({"attacks": 3}, TypeError, "not iterable"),
        ({"attacks": [3]}, TypeError, r"attacks must be TemperaturePGD objects, .* got int"),
        ({"attacks": TemperaturePGD(targeted=True)}, ValueError, "an evaluation has no targets"),
        ({"attacks": {"a.b": "pgd"}}, ValueError, "without a dot"),
        ({"attacks": "pgd", "norm": "L3"}, ValueError, "norm must be one of"),
        ({"attacks": "pgd", "resume": True}, ValueError, "resume needs out"),
        ({"attacks": "pgd", "batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"attacks": "pgd", "class_names": ["a"]}, ValueError, "model's 3 classes, got 1 names$"),
        ({"attacks": "pgd", "sample_ids": [1] * 5}, ValueError, "sample_ids must be distinct"),
        (
            {"attacks": "pgd", "reference": lambda x: x[:, :2]},
            ValueError,
            "must have the model's 3 classes, got 2",
        ),
        ({"attacks": "pgd", "device": "abacus"}, ValueError, "device must be auto, cpu or a GPU"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        evaluate(Linear(), samples(5), **options)


def test_bad_arguments_that_need_data():
    data = load_data("digits").subset(10)
    with pytest.raises(ValueError, match=r"bounds must be those of the data"):
        evaluate(Linear(), data, attacks="pgd", bounds=(-1.0, 1.0))
    with pytest.raises(ValueError, match="names from the data"):
        evaluate(nn.Sequential(nn.Flatten(), nn.Linear(64, 11)), data, attacks="pgd")
    data.default_eps.clear()
    with pytest.raises(ValueError, match="eps must be given: the data has no default for Linf"):
        evaluate(Linear(), data, attacks="pgd")


def test_nothing_is_written_before_the_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match="labels must lie in"):
        evaluate(lambda x: x[:, :2], samples(20), attacks="pgd", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_model_comes_back_as_it_was():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3).eval(), nn.Dropout())
    model[0].weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    flags = [weight.requires_grad for weight in model.parameters()]
    state = {key: value.clone() for key, value in model.state_dict().items()}

    def rude(net, x, y):
        net.train()
        raise InterruptError

    def attack(net, x, y):
        assert not any(module.training for module in net.modules())
        net.train()
        return x

    evaluate(model, samples(5), attacks=["pgd", attack])
    with pytest.raises(InterruptError):
        evaluate(model, samples(5), attacks=rude)
    assert [module.training for module in model.modules()] == modes
    assert [weight.requires_grad for weight in model.parameters()] == flags
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_no_global_random_state_is_touched():
    model = Linear()
    state = torch.get_rng_state()
    evaluate(model, samples(5), attacks=["pgd"])
    assert torch.equal(torch.get_rng_state(), state)


def test_attacks_are_named_by_themselves():
    attack = TemperaturePGD(eps=0.1, steps=1)
    records = evaluate(
        Linear(), samples(3), attacks=[attack, attack, "pgd:eps=0.1", Leaving("Linf", 0.1, 1.0)]
    )
    assert records.attacks == ["temperature-pgd", "temperature-pgd-2", "pgd:eps=0_1", "Leaving"]


def test_own_sample_ids_and_data_class_names():
    records = evaluate(Linear(), samples(3), attacks="pgd", sample_ids=[9, 5, 7])
    assert values(records, "sample_id").tolist() == [9, 5, 7]
    assert records.class_names == ["0", "1", "2"]


def test_devices():
    assert resolve_device("auto").type in {"cpu", "cuda"}
    model = Linear()
    records = evaluate(model, samples(3), attacks="pgd", device="cpu")
    assert len(records) == 3
    with pytest.raises(ValueError, match="device must be auto"):
        resolve_device("cuda:99")


def test_progress_goes_to_stderr_and_only_on_demand(capsys):
    evaluate(Linear(), samples(3), attacks="pgd")
    assert capsys.readouterr() == ("", "")
    evaluate(Linear(), samples(3), attacks="pgd", progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "3/3" in err


@pytest.mark.usefixtures("small_parts")
def test_thumbnails_do_not_depend_on_parts_batches_or_an_interruption(monkeypatch, net, images, tmp_path):
    inputs = images(40)
    labels = net(inputs).argmax(dim=1)
    reference = copy.deepcopy(net)
    with torch.no_grad():
        reference[-1].weight.mul_(0.3).add_(0.05)
    options = {"attacks": {"a": TemperaturePGD(eps=0.1, steps=2)}, "reference": reference}
    expected = evaluate(net, (inputs, labels), **options).thumbnails
    kinds = set(expected["kind"].to_pylist())
    assert {"above_reference", "confident_falls"} <= kinds
    assert len(expected) <= 6 * len(kinds)
    calls = []
    write = evaluation.RecordsWriter.write

    def failing(self, part, table, thumbnails=None):
        calls.append(part)
        if len(calls) == 2:
            raise InterruptError
        write(self, part, table, thumbnails)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation.RecordsWriter, "write", failing)
        with pytest.raises(InterruptError):
            evaluate(net, (inputs, labels), **options, out=tmp_path / "run")
    resumed = evaluate(net, (inputs, labels), **options, out=tmp_path / "run", resume=True)
    assert resumed.thumbnails.equals(expected)
    assert Records.load(tmp_path / "run").thumbnails.equals(expected)
    monkeypatch.setattr(evaluation, "_part_size", lambda *arguments: 512)
    whole = evaluate(net, (inputs, labels), **options, batch_size=7).thumbnails
    shown = [
        sorted(zip(*(t[c].to_pylist() for c in ("kind", "sample_id")), strict=True))
        for t in (whole, expected)
    ]
    assert shown[0] == shown[1]


# Precision, batch sizes and memory --------------------------------------------------------------------


def precisions(records: Records) -> dict[str, str]:
    return {name: each["precision"] for name, each in records.manifest["identity"]["attacks"].items()}


def test_auto_is_decided_before_the_run_and_stored(monkeypatch):
    asked = []

    def choose(model, inputs, *, fuse):
        asked.append((type(model).__name__, len(inputs), fuse))
        return "bfloat16"

    monkeypatch.setattr(evaluation, "choose_precision", choose)
    attacks = {
        "auto": TemperaturePGD(eps=0.01, steps=1),
        "plain": TemperaturePGD(eps=0.01, steps=1, fuse=False),
        "own": TemperaturePGD(eps=0.01, steps=1, precision="float32"),
        "spec": "pgd:steps=1,precision=float32",
        "foreign": lambda model, x, y: x,
    }
    attacks["foreign"].eps = None
    records = evaluate(Linear(), samples(40), attacks=attacks, eps=0.01, reference=Linear())
    stored = records.manifest["identity"]["attacks"]
    assert {name: each.get("precision") for name, each in stored.items()} == {
        "auto": "bfloat16",
        "plain": "bfloat16",
        "own": "float32",
        "spec": "float32",
        "foreign": None,
    }
    assert asked == [("Linear", 16, True), ("Linear", 16, False)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_given_precision_is_that_of_the_attacks_that_leave_it_open(monkeypatch, precision):
    monkeypatch.setattr(evaluation, "choose_precision", None)
    attacks = ["pgd:steps=1", "pgd:precision=float32,steps=1", TemperaturePGD(eps=0.01, steps=1)]
    records = evaluate(Linear(), samples(4), attacks=attacks, eps=0.01, precision=precision)
    assert list(precisions(records).values()) == [precision, "float32", precision]


@pytest.mark.usefixtures("small_parts")
def test_a_resumed_run_keeps_the_precision_that_was_chosen(tmp_path, monkeypatch):
    options = {"attacks": {"a": TemperaturePGD(eps=0.05, steps=2)}, "out": tmp_path / "run"}
    monkeypatch.setattr(evaluation, "choose_precision", lambda *args, **kwargs: "bfloat16")
    first = evaluate(Linear(), samples(20), **options)
    monkeypatch.setattr(evaluation, "choose_precision", lambda *args, **kwargs: "float32")
    again = evaluate(Linear(), samples(20), **options, resume=True)
    assert precisions(first) == precisions(again) == {"a": "bfloat16"}
    assert again.table.equals(first.table)
    with pytest.raises(ValueError, match="precision"):
        evaluate(Linear(), samples(20), **options, resume=True, precision="float32")


def test_a_resumed_run_keeps_to_its_parts(tmp_path, monkeypatch):
    """On another machine they might be of another size."""
    options = {"attacks": {"a": TemperaturePGD(eps=0.05, steps=2)}, "out": tmp_path}
    monkeypatch.setattr(evaluation, "_part_size", lambda *arguments: 6)
    first = evaluate(Linear(), samples(20), **options)
    (tmp_path / "records" / "part-00001.parquet").unlink()
    monkeypatch.setattr(evaluation, "_part_size", lambda *arguments: 10)
    again = evaluate(Linear(), samples(20), **options, resume=True)
    assert again.table.equals(first.table)
    assert again.manifest["identity"]["part_size"] == 6
    with pytest.raises(ValueError, match="part_size"):
        evaluate(Linear(), samples(20), **options, resume=True, part_size=10)


def placed(device, net):
    """A subject whose model is said to be on a device that this machine may not have."""
    return SimpleNamespace(model=net, home=lambda: (torch.device(device), torch.float32))


def test_parts_are_as_large_as_an_interruption_may_cost():
    small, large, data = Linear(), nn.Linear(4, 2**22), as_data(samples(3))
    ours = {"a": TemperaturePGD(eps=0.1), "b": quick(eps=0.1)}
    size = evaluation._part_size
    assert size(ours, [placed("cpu", small)], data, 128) == 2048
    assert size(ours, [placed("cpu", large)], data, 128) == 512
    assert size(ours, [placed("cpu", small), placed("cpu", large)], data, 128) == 512
    assert size(ours, [placed("cpu", torch.relu)], data, 128) == 512
    assert size(ours, [placed("cuda", large)], data, 2048) == 4096
    assert size(ours, [placed("cuda", large)], data, 100) == 512
    for subject in (placed("cpu", small), placed("cuda", small)):
        assert size({**ours, "foreign": lambda model, x, y: x}, [subject], data, 2048) == 512


@pytest.mark.usefixtures("small_parts")
def test_our_attacks_take_their_gradients_from_a_prepared_model(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "choose_precision", None)  # it has been chosen
    options = {"attacks": {"a": TemperaturePGD(eps=0.05, steps=2)}}
    net = Linear()
    found = evaluate(prepare(net, precision="bfloat16"), samples(20), **options, out=tmp_path / "run")
    expected = evaluate(net, samples(20), **options, precision="bfloat16")
    assert found.table.equals(expected.table)
    assert precisions(found) == {"a": "bfloat16"}
    described = found.manifest["identity"]["model"]
    assert described == {
        **expected.manifest["identity"]["model"],
        "name": "Linear",
        "prepared": prepare(net, precision="bfloat16").config(),
    }
    assert json.loads(json.dumps(described)) == described
    with pytest.raises(ValueError, match="model"):
        evaluate(net, samples(20), **options, out=tmp_path / "run", resume=True)


def test_what_a_prepared_model_is_compiled_with_reaches_an_evaluation(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: compiled.append(model) or model)
    net, data, attack = Linear(), samples(20), TemperaturePGD(eps=0.05, steps=2)
    expected = evaluate(net, data, attacks=attack)
    assert compiled == []
    found = evaluate(prepare(net, compile=True), data, attacks=attack)
    assert len(compiled) == 1
    name = "temperature-pgd.success"
    assert found.column(name).tolist() == expected.column(name).tolist()


@pytest.mark.parametrize("manifest", ["{}", "nonsense", '{"format": 1, "identity": {"attacks": {"a": 3}}}'])
def test_a_damaged_manifest_is_left_to_the_writer(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(manifest)
    assert evaluation._stored_choices(tmp_path) == (None, {})
    with pytest.raises(ValueError, match=r"manifest.json|differs"):
        evaluate(Linear(), samples(4), attacks="pgd", eps=0.1, out=tmp_path, resume=True)


@pytest.mark.parametrize("asked", [None, "auto"])
def test_the_batch_size_is_found_where_none_is_given(monkeypatch, asked):
    sizes = []

    class Watched(Linear):
        def forward(self, inputs):
            sizes.append(len(inputs))
            return super().forward(inputs)

    evaluate(Watched(), samples(150), attacks=TemperaturePGD(eps=0.01, steps=1), batch_size=asked)
    assert max(sizes) == 128
    with pytest.raises(TypeError, match="batch_size must be an integer"):
        evaluate(Linear(), samples(4), attacks="pgd", eps=0.1, batch_size="all")


def test_out_of_memory_changes_no_record_and_is_remembered():
    def failures(model, x, y):
        assert len(x) <= 4
        return x

    class Cramped(Linear):
        tries = 0

        def forward(self, inputs):
            if len(inputs) > 4:
                Cramped.tries += 1
                raise torch.OutOfMemoryError("no memory")
            return super().forward(inputs)

    attacks = {"a": TemperaturePGD(eps=0.05, steps=3), "foreign": failures}
    options = {"attacks": attacks, "batch_size": 16, "part_size": 10}
    expected = evaluate(Linear(), samples(40), **{**options, "batch_size": 4})
    found = evaluate(Cramped(), samples(40), **options)
    assert found.table.equals(expected.table)
    # 10 rows, then 5: after that every part, attack and pass keeps to what fits.
    assert Cramped.tries == 2


def test_what_fits_the_gradients_of_a_cascade_is_remembered_from_part_to_part():
    class Cramped(Linear):
        tries = 0

        def forward(self, inputs):
            if inputs.requires_grad and len(inputs) > 4:
                Cramped.tries += 1
                raise torch.OutOfMemoryError("no memory")
            return super().forward(inputs)

    attack = Cascade(stages=[TemperaturePGD(eps=0.01, steps=3), TemperaturePGD(eps=0.01, steps=3, seed=1)])
    options = {"attacks": attack, "batch_size": 10, "part_size": 10}
    expected = evaluate(Linear(), samples(40), **{**options, "batch_size": 4})
    found = evaluate(Cramped(), samples(40), **options)
    assert found.table.equals(expected.table)
    # 10 rows, then 5, in the first part alone.
    assert Cramped.tries == 2
