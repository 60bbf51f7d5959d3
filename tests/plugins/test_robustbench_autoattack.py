from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from art_logits import AttackResult, TemperaturePGD, evaluate

pyautoattack = pytest.importorskip("pyautoattack")

from art_logits.plugins.robustbench import AutoAttack, autoattack  # noqa: E402 (needs the host)


class Linear(nn.Module):
    """Centred linear logits of images, five or more classes."""

    def __init__(self, classes: int = 5, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(classes, 64, generator=generator, dtype=torch.float64)
        self.body = nn.Linear(64, classes, dtype=dtype)
        with torch.no_grad():
            self.body.weight.copy_(weight)
            self.body.bias.copy_(-0.5 * weight.sum(dim=1))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body(inputs.flatten(1))

    def gaps(self, inputs: Tensor, labels: Tensor, eps: float) -> Tensor:
        """Smallest margin in the Linf ball, ``(N,)``, as long as no bound is in the way."""
        logits, weight = self(inputs), self.body.weight
        margins = logits.gather(1, labels[:, None]) - logits
        reach = eps * (weight[labels][:, None] - weight[None]).abs().sum(dim=2)
        return (margins - reach).scatter(1, labels[:, None], torch.inf).amin(dim=1)


def case(
    classes: int = 5, count: int = 24, dtype: torch.dtype = torch.float32
) -> tuple[Linear, Tensor, Tensor]:
    model = Linear(classes, dtype).eval()
    generator = torch.Generator().manual_seed(2)
    inputs = (0.3 + 0.4 * torch.rand(count, 1, 8, 8, generator=generator)).to(dtype)
    with torch.no_grad():
        labels = model(inputs).argmax(dim=1)
    labels[0] = (labels[0] + 1) % classes
    return model, inputs, labels


class Idle:
    """A stand-in for AutoAttack that breaks nothing."""

    __module__ = "autoattack.autoattack"

    def __init__(self, model: Any, **options: Any) -> None:
        self.model, self.options, self.attacks_to_run = model, options, ["apgd-ce", "apgd-t"]
        self.apgd_targeted = self.fab = type("Inner", (), {"n_target_classes": 9})()

    def run_standard_evaluation(self, x_orig: Tensor, y_orig: Tensor, bs: int) -> Tensor:
        return x_orig.clone()


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoattack, "host_class", lambda: Idle)


EPS = 0.006


def test_closed_form_of_a_linear_model() -> None:
    model, inputs, labels = case(count=12)
    result = AutoAttack(eps=EPS)(model, inputs, labels)
    stands = model.gaps(inputs, labels, EPS) > 0
    assert 0.2 < stands.double().mean() < 0.8
    assert result.success.tolist() == (~stands).tolist()
    assert result.restart[0] == -1
    assert result.restart[1:].eq(0).all()
    assert torch.equal(result.adv_inputs[0], inputs[0])
    assert torch.equal(result.success, result.margin > 0)


@pytest.mark.parametrize(
    ("norm", "eps", "attacks"),
    [("Linf", 0.005, ["apgd-ce", "apgd-t"]), ("L2", 0.05, ["apgd-ce", "fab-t"])],
)
def test_breaks_what_the_host_itself_breaks(norm: Any, eps: float, attacks: list[str]) -> None:
    model, inputs, labels = case(classes=10, count=9)
    with torch.random.fork_rng():
        host = pyautoattack.AutoAttack(model, norm=norm, eps=eps, seed=3, version="standard")
        host.attacks_to_run = attacks
        theirs, _ = host.run_standard_evaluation(inputs, labels, batch_size=8)
    broken = model(theirs).argmax(dim=1) != labels
    result = AutoAttack(norm=norm, eps=eps, seed=3, batch_size=8, attacks_to_run=attacks)(
        model, inputs, labels
    )
    assert 1 < int(broken.sum()) < len(labels) - 1
    assert torch.equal(result.success, broken)
    assert torch.equal(result.adv_inputs[broken], theirs[broken])


def test_standing_samples_come_with_an_iterate_and_never_with_the_clean_image() -> None:
    model, inputs, labels = case()
    attack = AutoAttack(eps=EPS, attacks_to_run=["apgd-t"])
    records = evaluate(
        model, (inputs, labels), attacks={"autoattack": attack, "ours": TemperaturePGD(eps=EPS)}
    )
    stands = records.survives("autoattack")
    assert stands.sum() > 3
    assert (records.column("autoattack.distance")[stands] > 0.9 * EPS).all()
    ours, theirs = (records.column(f"{name}.logits")[stands] for name in ("ours", "autoattack"))
    clean = records.column("clean_logits")[stands]
    picked = labels.numpy()[stands]
    rows = range(len(picked))
    assert (theirs[rows, picked] < clean[rows, picked]).all()
    # As bad as Temperature-PGD's own, which stopped on no success here.
    assert abs(theirs[rows, picked] - ours[rows, picked]).max() < 1e-4


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_a_success_of_the_follow_up_is_not_a_success_of_autoattack(norm: Any) -> None:
    model, inputs, labels = case()
    eps = {"Linf": 0.05, "L2": 1.0, "L1": 8.0}[norm]
    assert TemperaturePGD(norm=norm, eps=eps)(model, inputs, labels).success.sum() > len(labels) / 2
    result = AutoAttack(norm=norm, eps=eps)(model, inputs, labels)
    assert result.success.tolist() == [True] + [False] * (len(labels) - 1)
    moved = (result.adv_inputs != inputs).flatten(1).any(dim=1)
    assert moved.tolist() == [False] + [True] * (len(labels) - 1)
    # No pass of the follow-up is charged to AutoAttack.
    assert (result.forwards == 0).all()
    assert (result.backwards == 0).all()


@pytest.mark.usefixtures("idle")
def test_iterates_are_keyed_by_the_ids_of_their_samples() -> None:
    model, inputs, labels = case()
    attack = AutoAttack(eps=0.001, norm="L2")  # too small to break anything
    whole = attack(model, inputs, labels, torch.arange(24)).adv_inputs
    part = attack(model, inputs[5:], labels[5:], torch.arange(5, 24)).adv_inputs
    other = attack(model, inputs[5:], labels[5:], torch.arange(19)).adv_inputs
    assert torch.allclose(whole[5:], part, atol=1e-7)
    assert not torch.allclose(part, other, atol=1e-7)


def test_passes_are_those_that_the_host_spends() -> None:
    model, inputs, labels = case()
    seen = {"forwards": 0}

    def counting(x: Tensor) -> Tensor:
        seen["forwards"] += len(x)
        return model(x)

    with torch.random.fork_rng():
        host = pyautoattack.AutoAttack(counting, eps=EPS, seed=0)
        host.attacks_to_run = ["apgd-ce"]
        host.run_standard_evaluation(inputs, labels, batch_size=128)
    result = AutoAttack(eps=EPS, attacks_to_run=["apgd-ce"])(model, inputs, labels)
    assert int(result.forwards.sum()) == seen["forwards"]
    assert 0 < int(result.backwards.sum()) < int(result.forwards.sum())
    assert isinstance(result, AttackResult)
    assert result.zero_gradients.tolist() == [0] * len(labels)


def test_the_batch_size_of_an_evaluation_changes_nothing() -> None:
    model, inputs, labels = case()
    attack = AutoAttack(eps=EPS, attacks_to_run=["apgd-ce", "apgd-dlr"], batch_size=7)
    tables = [
        evaluate(model, (inputs, labels), attacks={"a": attack}, batch_size=size).table for size in (5, 24)
    ]
    assert tables[0].column("a.prediction").equals(tables[1].column("a.prediction"))


def test_nothing_global_changes_and_the_model_comes_back(
    net: nn.Module, images: Callable[..., Tensor], predict: Callable[..., Tensor]
) -> None:
    x = images(4)
    labels = predict(net, x)  # what is wrong already is not attacked
    net.train()
    net[1].eval()
    flags = [module.training for module in net.modules()]
    state, trace = torch.get_rng_state(), sys.gettrace()

    def tracer(*_: Any) -> None:
        return None

    sys.settrace(tracer)
    try:
        AutoAttack(eps=0.01, attacks_to_run=["apgd-ce", "fab-t"])(net, x, labels)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(trace)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in net.modules()] == flags
    assert all(weight.grad is None and weight.requires_grad for weight in net.parameters())


def test_float64_models_are_attacked_in_float64() -> None:
    model, inputs, labels = case(dtype=torch.float64)
    result = AutoAttack(eps=EPS, attacks_to_run=["apgd-t"])(model, inputs, labels)
    assert result.adv_inputs.dtype == torch.float64
    assert torch.equal(result.adv_inputs[0], inputs[0])
    assert torch.equal(result.success, model.gaps(inputs, labels, EPS) <= 0)


def test_any_memory_layout(net: nn.Module, images: Callable[..., Tensor]) -> None:
    wide = nn.Sequential(nn.Conv2d(3, 1, 1), *net).eval().to(memory_format=torch.channels_last)
    x = torch.cat([images(4, seed=seed) for seed in range(3)], dim=1).permute(0, 2, 3, 1).contiguous()
    inputs = x.permute(0, 3, 1, 2)
    assert not inputs.is_contiguous()
    attack = AutoAttack(eps=0.1, attacks_to_run=["apgd-ce", "fab-t"])
    labels = torch.tensor([0, 1, 2, 3])
    result = attack(wide, inputs, labels)
    assert torch.equal(result.success, attack(wide, inputs.contiguous(), labels).success)


class TestClasses:
    @pytest.mark.parametrize("classes", [4, 6])
    def test_the_targeted_attacks_take_every_other_class(self, classes: int) -> None:
        model, inputs, labels = case(classes, count=8)
        result = AutoAttack(eps=EPS, attacks_to_run=["apgd-t", "fab-t"])(model, inputs, labels)
        assert torch.equal(result.success, model.gaps(inputs, labels, EPS) <= 0)

    @pytest.mark.parametrize(("classes", "attack", "needed"), [(3, "apgd-t", 4), (2, "apgd-dlr", 3)])
    def test_too_few_for_a_loss(self, classes: int, attack: str, needed: int) -> None:
        model, inputs, labels = case(classes, count=2)
        with pytest.raises(
            ValueError, match=f"must not hold '{attack}' for a model of {classes} .* {needed};"
        ):
            AutoAttack(eps=EPS, attacks_to_run=[attack])(model, inputs, labels)

    def test_two_are_enough_for_the_others(self) -> None:
        model, inputs, labels = case(2, count=4)
        attack = AutoAttack(eps=EPS, attacks_to_run=["apgd-ce", "fab", "fab-t"])
        assert torch.equal(attack(model, inputs, labels).success, model.gaps(inputs, labels, EPS) <= 0)


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"norm": "L0"}, ValueError, "norm must be one of Linf, L2, L1"),
            ({"eps": 0}, ValueError, "eps must be a finite number > 0"),
            ({"version": "standrad"}, ValueError, "version must be one of .*did you mean standard or rand"),
            ({"version": "custom"}, ValueError, "attacks_to_run must name attacks of apgd-ce"),
            ({"attacks_to_run": []}, ValueError, "at least one attack"),
            ({"attacks_to_run": "apgd-ce"}, TypeError, "a list of names, got the string"),
            (
                {"attacks_to_run": ["apgd"]},
                ValueError,
                "attacks_to_run must be one of .*did you mean apgd-t or",
            ),
            ({"attacks_to_run": ["fab"], "version": "rand"}, ValueError, "not be given with version 'rand'"),
            ({"seed": -1}, ValueError, "seed must be at least 0"),
            ({"batch_size": 2.0}, TypeError, "batch_size must be an integer"),
        ],
    )
    def test_refused(self, options: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            AutoAttack(**options)

    def test_inputs_and_labels_are_checked(self) -> None:
        model, inputs, labels = case(count=3)
        with pytest.raises(ValueError, match="undo the normalisation and put it inside the model"):
            AutoAttack()(model, inputs * 3, labels)
        with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\)"):
            AutoAttack()(model, inputs, labels + 5)
        with pytest.raises(ValueError, match=r"labels must have shape \(3,\)"):
            AutoAttack()(model, inputs, labels[:2])

    def test_config_says_what_decides_the_result(self, tmp_path: Path) -> None:
        config = AutoAttack(attacks_to_run=["apgd-ce"], log_path=tmp_path / "log").config()
        assert config == {
            "norm": "Linf",
            "eps": 8 / 255,
            "version": "custom",
            "attacks_to_run": ["apgd-ce"],
            "seed": 0,
            "batch_size": 128,
            "package": "pyautoattack",
        }


class TestHost:
    def test_the_real_package_is_used_where_it_is_installed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "autoattack.py").write_text(
            "class AutoAttack:\n"
            "    calls = []\n"
            "    def __init__(self, model, **options):\n"
            "        self.options, self.attacks_to_run = options, ['apgd-ce', 'apgd-t', 'fab-t', 'square']\n"
            "        self.apgd_targeted = self.fab = type('Inner', (), {'n_target_classes': 9})()\n"
            "    def run_standard_evaluation(self, x_orig, y_orig, bs=250, return_labels=False):\n"
            "        self.calls.append((self.options, self.attacks_to_run, self.fab.n_target_classes, bs))\n"
            "        return x_orig\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        model, inputs, labels = case(count=3)
        attack = AutoAttack(eps=EPS, attacks_to_run=["apgd-ce"], seed=5, batch_size=2)
        try:
            attack(model, inputs, labels)
            (options, attacks, targets, size), *_ = sys.modules["autoattack"].AutoAttack.calls
            assert attack.config()["package"] == "autoattack"
        finally:
            sys.modules.pop("autoattack", None)
        assert attacks == ["apgd-ce"]
        assert (targets, size) == (4, 2)
        assert options["seed"] == 5
        assert options["verbose"] is False
        assert options["version"] == "standard"

    def test_neither_is_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("autoattack", "pyautoattack"):
            monkeypatch.setitem(sys.modules, module, None)
        autoattack._adapter.cache_clear()
        with pytest.raises(ImportError, match=r'needs pyautoattack.*pip install "art-logits\[robustbench\]"'):
            AutoAttack().config()

    def test_our_own_adapter_never_poses_as_the_real_package(self) -> None:
        AutoAttack().config()
        assert "autoattack" not in sys.modules


class TestAdapter:
    """The interface of ``autoattack.AutoAttack``, over pyautoattack."""

    def adversary(self, model: Any = None, **options: Any) -> Any:
        return autoattack._adapter()(model or case(4)[0], eps=EPS, device="cpu", seed=0, **options)

    def test_signature_of_the_real_package(self) -> None:
        names = ["model", "norm", "eps", "seed", "verbose", "attacks_to_run", "version"]
        names += ["is_tf_model", "device", "log_path"]
        assert list(inspect.signature(autoattack._adapter()).parameters) == names

    def test_labels_on_request(self) -> None:
        model, inputs, labels = case(4)
        adversary = self.adversary(model, version="custom", attacks_to_run=["apgd-ce"])
        x_adv, y_adv = adversary.run_standard_evaluation(inputs, labels, bs=10, return_labels=True)
        assert torch.equal(model(x_adv).argmax(dim=1), y_adv)
        assert torch.equal(adversary.run_standard_evaluation(inputs, labels, bs=10), x_adv)

    def test_each_attack_on_its_own(self) -> None:
        model, inputs, labels = case(4)
        adversary = self.adversary(model, version="custom", attacks_to_run=["apgd-ce", "apgd-dlr"])
        found = adversary.run_standard_evaluation_individual(inputs, labels)
        assert list(found) == ["apgd-ce", "apgd-dlr"]
        assert adversary.attacks_to_run == ["apgd-ce", "apgd-dlr"]
        assert all((model(x).argmax(dim=1) != labels).any() for x in found.values())

    def test_versions_can_be_set_later(self) -> None:
        adversary = self.adversary(version="custom")
        assert adversary.attacks_to_run == []
        adversary.set_version("rand")
        assert adversary.attacks_to_run == ["apgd-ce", "apgd-dlr"]

    def test_log_file(self, tmp_path: Path) -> None:
        model, inputs, labels = case(4)
        log = logging.getLogger("auto-attack")
        before = (log.level, list(log.handlers))
        attack = AutoAttack(eps=EPS, attacks_to_run=["apgd-ce"], log_path=tmp_path / "log.txt")
        attack(model, inputs, labels)
        assert "running apgd-ce" in (tmp_path / "log.txt").read_text()
        assert (log.level, list(log.handlers)) == before

    def test_states_are_refused(self, tmp_path: Path) -> None:
        _, inputs, labels = case(4)
        with pytest.raises(
            ValueError, match=r"state_path must be None.*benchmark\(..., aa_state_path=FOLDER\)"
        ):
            self.adversary().run_standard_evaluation(inputs, labels, state_path=tmp_path / "state.json")

    def test_tensorflow_is_refused(self) -> None:
        with pytest.raises(ValueError, match="is_tf_model must be False"):
            self.adversary(is_tf_model=True)
