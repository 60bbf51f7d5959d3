"""Attacks of the hosts by spec: the same as called directly, within the ball, repeatable."""

from __future__ import annotations

import importlib.util
import inspect
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from art_logits import evaluate
from art_logits.balls import get_ball
from art_logits.presets import parse_attack

THREAT: dict[str, Any] = {"norm": "Linf", "eps": 0.1}


@pytest.fixture
def batch(net, images, predict) -> tuple[nn.Module, Tensor, Tensor]:
    inputs = images(12)
    return net, inputs, predict(net, inputs)


def attack_of(spec: str, **options: Any) -> Any:
    return parse_attack(spec, **{**THREAT, **options})[1]


# ---- torchattacks ----------------------------------------------------------------------------------------


def test_a_torchattacks_spec_is_the_class_called_directly(batch):
    torchattacks = pytest.importorskip("torchattacks")
    net, inputs, labels = batch
    attack = attack_of("torchattacks:PGD:steps=7,alpha=2/255,random_start=false")
    expected = torchattacks.PGD(net, eps=0.1, alpha=2 / 255, steps=7, random_start=False)(inputs, labels)
    assert torch.equal(attack(net, inputs, labels), expected)
    assert attack.config() == {
        "callable": "torchattacks.attacks.pgd.PGD",
        "norm": "Linf",
        "eps": 0.1,
        "seed": 0,
        "projected": False,
        "arguments": {"steps": 7, "alpha": 2 / 255, "random_start": False, "eps": 0.1},
    }


def test_torchattacks_are_told_norm_radius_seed_and_classes(batch):
    pytest.importorskip("torchattacks")
    attack = attack_of("torchattacks:APGD", norm="L2", eps=0.5, seed=4)
    assert attack.arguments == {"norm": "L2", "eps": 0.5, "seed": 4}
    # Its own default, 2/255 at 8/255: what 10 steps of 2/255 do not reach must not look robust.
    assert attack_of("torchattacks:PGD").arguments["alpha"] == pytest.approx(0.1 / 4)
    assert attack_of("torchattacks:PIFGSM").arguments["max_epsilon"] == 0.1
    assert attack_of("torchattacks:CW:c=0.5,kappa=2.5").arguments == {"c": 0.5, "kappa": 2.5}
    net, inputs, labels = batch
    # The net has five classes, and the class attacks nine others by default.
    found = attack_of("torchattacks:APGDT:steps=2")(net, inputs, labels)
    assert float((found - inputs).abs().max()) <= 0.1 + 1e-6


def test_a_search_for_small_perturbations_is_projected_onto_the_ball(batch):
    torchattacks = pytest.importorskip("torchattacks")
    net, inputs, labels = batch
    free = torchattacks.DeepFool(net, steps=20)(inputs, labels)
    ball, eps = get_ball("L2"), 0.08
    inside = ball.norm(free - inputs) <= eps
    assert 0 < int(inside.sum()) < len(inside)
    attack = attack_of("torchattacks:DeepFool:steps=20", norm="L2", eps=eps)
    assert attack.projected
    found = attack(net, inputs, labels)
    assert torch.allclose(found[inside], free[inside], atol=1e-6)
    # On the way to what was found, as far as the ball goes.
    assert torch.allclose(ball.norm(found - inputs)[~inside], torch.tensor(eps), atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("torchattacks", {}, "name the class too, as torchattacks:CLASS"),
        ("torchattacks:PGDD", {}, r"torchattacks has no attack class 'PGDD' \(did you mean PGD"),
        ("torchattacks:MultiAttack", {}, "torchattacks has no attack class 'MultiAttack'"),
        (
            "torchattacks:PGD:step=3",
            {},
            r"one of norm, eps, seed, .* got 'step' \(did you mean steps",
        ),
        ("torchattacks:PGD:steps=2.5", {}, "option 'steps': expected an integer, got '2.5'"),
        ("torchattacks:PGD:alpha=x", {}, "option 'alpha': expected a number"),
        ("torchattacks:PGD:random_start=1", {}, "option 'random_start': expected true or false"),
        ("torchattacks:PGD:eps=-1", {}, "eps must be a finite number >= 0, got -1.0"),
        ("torchattacks:PGD:seed=-1", {}, "seed must be at least 0"),
        ("torchattacks:PGD:norm=L3,eps=1", {}, "norm must be one of"),
        ("torchattacks:PGD:norm=L2", {}, "must give its eps too"),
        ("torchattacks:PGD:targeted=true", {}, "got 'targeted'"),
        ("torchattacks:PGD", {"norm": "L2"}, r"is one in Linf, not in L2: take torchattacks:PGDL2, or add"),
        ("torchattacks:PGDL2", {}, r"is one in L2, not in Linf: take torchattacks:PGD, or add norm=L2,eps"),
        ("torchattacks:BIM", {"norm": "L1"}, "take another attack"),
        ("torchattacks:PGD", {"bounds": (-1.0, 1.0)}, r"needs inputs in \[0, 1\], got bounds \(-1"),
        ("torchattacks:UPGD:loss=nothing", {}, ""),
        ("torchattacks:AutoAttack:version=nothing", {}, "failed in its host: ValueError"),
    ],
)
def test_bad_torchattacks_specs(spec, options, message):
    pytest.importorskip("torchattacks")
    if not message:
        attack_of(spec, **options)  # this class looks at the word when it attacks
        return
    with pytest.raises(ValueError, match=message):
        attack_of(spec, **options)


def test_a_torchattacks_class_that_fails_on_the_images_says_so(batch):
    pytest.importorskip("torchattacks")
    net, inputs, labels = batch
    with pytest.raises(ValueError, match=r"attack 'torchattacks:TIFGSM' failed in its host: RuntimeError"):
        attack_of("torchattacks:TIFGSM")(net, inputs, labels)

    class Full(nn.Module):
        def forward(self, x):
            raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError, match="full"):
        attack_of("torchattacks:PGD")(Full(), inputs, labels)


def test_a_plain_function_can_be_attacked(batch):
    pytest.importorskip("torchattacks")
    net, inputs, labels = batch
    attack = attack_of("torchattacks:BIM:steps=3")
    assert torch.equal(attack(lambda x: net(x), inputs, labels), attack(net, inputs, labels))


# ---- ART -------------------------------------------------------------------------------------------------


def test_an_art_spec_is_the_class_called_directly(batch):
    pytest.importorskip("art")
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    net, inputs, labels = batch
    attack = attack_of("art:ProjectedGradientDescent:max_iter=5,eps_step=0.02", norm="L2", eps=0.5)
    classifier = PyTorchClassifier(
        net, nn.CrossEntropyLoss(), (1, 8, 8), 5, clip_values=(0.0, 1.0), device_type="cpu"
    )
    direct = ProjectedGradientDescent(classifier, norm=2, eps=0.5, eps_step=0.02, max_iter=5, verbose=False)
    expected = direct.generate(inputs.numpy(), y=labels.numpy())
    assert np.array_equal(attack(net, inputs, labels).numpy(), expected)
    assert attack.config()["arguments"] == {
        "max_iter": 5,
        "eps_step": 0.02,
        "norm": 2,
        "eps": 0.5,
        "targeted": False,
        "verbose": False,
    }


def test_art_classes_are_told_norm_and_radius():
    pytest.importorskip("art")
    attack = attack_of("art:FastGradientMethod")
    assert attack.arguments["norm"] == np.inf
    assert attack.arguments["eps_step"] == pytest.approx(0.1 / 3)
    assert attack.config()["arguments"]["norm"] == "inf"
    assert attack_of("art:BasicIterativeMethod").arguments["eps"] == 0.1
    # A radius of a transport distance is none of ours.
    wasserstein = attack_of("art:Wasserstein")
    assert wasserstein.projected
    assert "eps" not in wasserstein.arguments
    assert attack_of("art:HopSkipJump", norm="L2").arguments["norm"] == 2
    assert not attack_of("art:SignOPTAttack", norm="L2").arguments["targeted"]
    assert attack_of("art:CarliniL2Method:learning_rate=0.5,batch_size=3").arguments["batch_size"] == 3


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("art:", {}, "name the class too, as art:CLASS"),
        ("art:DeepFol", {}, r"ART has no attack class 'DeepFol' \(did you mean DeepFool"),
        ("art:PoisoningAttackBackdoor", {}, "must be an evasion attack, .* is one of poisoning"),
        ("art:TargetedUniversalPerturbation", {}, "must be untargeted: an evaluation has no targets"),
        ("art:CopycatCNN", {}, "is one of extraction"),
        ("art:DPatch", {}, "is not for image classifiers in PyTorch: ART's DPatch asks for ObjectDetector"),
        ("art:LaserAttack", {}, "needs the options iterations, laser_generator"),
        ("art:DeepFool:max_itr=3", {}, r"got 'max_itr' \(did you mean max_iter"),
        ("art:DeepFool:max_iter=-3", {}, "failed in its host: ValueError"),
        ("art:BasicIterativeMethod", {"norm": "L2"}, "is one in Linf, not in L2"),
        ("art:HopSkipJump", {"norm": "L1"}, "failed in its host: ValueError: Norm order"),
    ],
)
def test_bad_art_specs(spec, options, message):
    pytest.importorskip("art")
    with pytest.raises(ValueError, match=message):
        attack_of(spec, **options)


@pytest.mark.parametrize(
    ("spec", "norm", "count"),
    [
        ("art:HopSkipJump:max_iter=1,max_eval=50,init_eval=10,init_size=10", "L2", 3),  # computes in double
        ("art:PixelAttack:max_iter=1,es=1", "Linf", 1),  # knows no class indices
        ("art:ShadowAttack:nb_steps=1", "Linf", 3),  # takes one sample at a time
    ],
)
def test_art_attacks_of_all_kinds(images, predict, spec, norm, count):
    pytest.importorskip("art")
    inputs = images(count).repeat(1, 3, 1, 1)
    colour = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    found = attack_of(spec, norm=norm)(colour, inputs, predict(colour, inputs))
    assert found.shape == inputs.shape
    assert bool((get_ball(norm).norm(found - inputs) <= 0.1 + 1e-5).all())


def test_an_art_attack_that_needs_probabilities_says_so(batch):
    pytest.importorskip("art")
    net, inputs, labels = batch
    with pytest.raises(ValueError, match=r"'art:SimBA' failed in its host: .* predicting probabilities"):
        attack_of("art:SimBA")(net, inputs, labels)


def test_an_art_attack_that_returns_no_images_is_named(batch):
    pytest.importorskip("art")
    from art.attacks import EvasionAttack

    from art_logits.plugins.art.specs import ArtAttack
    from art_logits.presets import Threat

    class Patch(EvasionAttack):
        _estimator_requirements = ()

        def __init__(self, estimator):
            super().__init__(estimator=estimator)

        def generate(self, x, y=None, **kwargs):
            return x[:1], x[:1]

    net, inputs, labels = batch
    attack = ArtAttack("art:Patch", Patch, Threat("Linf", 0.1, (0.0, 1.0), 0))
    with pytest.raises(ValueError, match=r"must return perturbed inputs of shape \(12, .* got tuple"):
        attack(net, inputs, labels)


def test_a_plain_function_can_be_attacked_through_art(batch):
    pytest.importorskip("art")
    net, inputs, labels = batch
    attack = attack_of("art:FastGradientMethod")
    assert torch.equal(attack(lambda x: net(x), inputs, labels), attack(net, inputs, labels))


# ---- AutoAttack ------------------------------------------------------------------------------------------

# To import it takes more than to have it.
NEEDS_ROBUSTBENCH = pytest.mark.skipif(
    importlib.util.find_spec("robustbench") is None, reason="robustbench is not installed"
)


@NEEDS_ROBUSTBENCH
def test_autoattack_and_its_parts_are_told_norm_radius_and_seed():
    attack = attack_of("autoattack", norm="L2", eps=0.5, seed=3)
    assert (attack.norm, attack.eps, attack.seed, attack.version) == ("L2", 0.5, 3, "standard")
    assert attack_of("autoattack:version=rand,batch_size=7").batch_size == 7
    part = attack_of("apgd-ce:eps=4/255")
    assert (part.eps, list(part.attacks_to_run), part.version) == (4 / 255, ["apgd-ce"], "custom")


@NEEDS_ROBUSTBENCH
def test_apgd_runs_in_an_evaluation(batch):
    net, inputs, labels = batch
    records = evaluate(net, (inputs, labels), attacks=["apgd-ce", "pgd:steps=2"], **THREAT)
    assert records.manifest["identity"]["attacks"]["apgd-ce"]["eps"] == 0.1
    assert records.survives("apgd-ce").sum() <= records.survives("pgd:steps=2").sum()
    assert records.column("apgd-ce.backwards").sum() > 0


@NEEDS_ROBUSTBENCH
@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("autoattack:version=best", {}, "attack 'autoattack:version=best': version must be one of"),
        ("autoattack:steps=3", {}, r"one of version, batch_size, got 'steps'"),
        ("apgd-ce:version=rand", {}, "one of batch_size, got 'version'"),
        ("autoattack:eps=0", {}, "attack 'autoattack:eps=0': eps"),
        ("autoattack", {"bounds": (-1.0, 1.0)}, r"needs inputs in \[0, 1\]"),
        ("autoatack", {}, "did you mean autoattack"),
    ],
)
def test_bad_autoattack_specs(spec, options, message):
    with pytest.raises(ValueError, match=message):
        attack_of(spec, **options)


# ---- all ------------------------------------------------------------------------------------------------

RANDOM = {
    "torchattacks": "torchattacks:PGD:steps=2",
    "art": "art:ProjectedGradientDescent:max_iter=2,num_random_init=1",
}


@pytest.mark.parametrize("host", RANDOM)
def test_results_repeat_and_no_global_random_state_is_touched(batch, host):
    pytest.importorskip(host)
    net, inputs, labels = batch
    attack = attack_of(RANDOM[host])
    state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    first = attack(net, inputs, labels)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1]  # noqa: NPY002
    assert random.getstate() == state[2]
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    assert torch.equal(attack(net, inputs, labels), first)
    assert not torch.equal(attack_of(RANDOM[host], seed=1)(net, inputs, labels), first)


@pytest.mark.parametrize("host", RANDOM)
def test_the_model_comes_back_as_it_was(batch, host):
    pytest.importorskip(host)
    net, inputs, labels = batch
    net.train()
    net[1].eval()
    weight = net[-1].weight
    weight.grad = torch.ones_like(weight)
    evaluate(net, (inputs, labels), attacks=RANDOM[host], **THREAT)
    assert [module.training for module in net] == [True, False, True, True, True, True, True]
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert weight.requires_grad


def test_evaluate_runs_attacks_of_both_hosts_beside_ours(batch):
    pytest.importorskip("torchattacks")
    pytest.importorskip("art")
    net, inputs, labels = batch
    specs = ["pgd:steps=3", "torchattacks:FGSM", "art:FastGradientMethod", "torchattacks:FGSM"]
    records = evaluate(net, (inputs, labels), attacks=specs, **THREAT)
    assert records.attacks == [*specs[:3], "torchattacks:FGSM-2"]
    config = records.manifest["identity"]["attacks"]["art:FastGradientMethod"]
    assert config["callable"].endswith("fast_gradient.FastGradientMethod")
    for name in records.attacks:
        assert records.column(f"{name}.distance").max() <= 0.1 + 1e-6
        assert records.column(f"{name}.backwards").sum() > 0


def test_the_spec_modules_import_one_host_each():
    pytest.importorskip("torchattacks")
    from art_logits.plugins import _host_attacks, torchattacks_specs

    assert "import art" not in inspect.getsource(torchattacks_specs).replace("import art_logits", "")
    for host in ("torchattacks", "art."):
        assert f"import {host}" not in inspect.getsource(_host_attacks)
