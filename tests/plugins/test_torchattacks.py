from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import art_logits
from art_logits.data import load_data
from art_logits.models import Normalize, load_model

torchattacks = pytest.importorskip("torchattacks")

from art_logits.plugins.torchattacks import TemperaturePGD  # noqa: E402 (needs the host)

# torchattacks.PGD's own behaviour, in this attack's words
AS_HOST: dict[str, Any] = {"temperature": 1.0, "keep": "last"}
DIGITS: dict[str, Any] = {"eps": 0.1, "alpha": 0.025}
MODES: dict[str, Callable[[Any], None]] = {
    "default": lambda attack: None,
    "function": lambda attack: attack.set_mode_targeted_by_function(next_class, quiet=True),
    "random": lambda attack: attack.set_mode_targeted_random(quiet=True),
    "least likely": lambda attack: attack.set_mode_targeted_least_likely(kth_min=2, quiet=True),
    "label": lambda attack: attack.set_mode_targeted_by_label(quiet=True),
}


def next_class(images: Tensor, labels: Tensor) -> Tensor:
    return (labels + 1) % 10


class Scaled(nn.Module):
    """Logits times a factor. In eval mode, as the model is: the host's PGD would not give that back."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs) * self.factor


def predict(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model(inputs).argmax(dim=1)


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    return (predict(model, inputs) == labels).float().mean().item()


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    return load_data("digits").subset(200).batch(slice(0, 200))


@pytest.fixture
def robust() -> nn.Module:
    return load_model("digits-at")


@pytest.fixture
def exact() -> tuple[nn.Module, Tensor, Tensor]:
    """A float64 net, on which nothing may differ at all, with 24 images and labels, some of them wrong."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10)).double().eval()
    images = torch.rand(24, 3, 2, 2, dtype=torch.float64)
    labels = predict(net, images)
    labels[::6] = (labels[::6] + 3) % 10
    return net, images, labels


@pytest.fixture
def mixed() -> nn.Module:
    """A training net with one frozen BatchNorm, one frozen weight and gradients of its own."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5)),
        nn.Flatten(),
        nn.Linear(144, 10),
    ).train()
    net[2][0].eval()
    net[0].weight.requires_grad_(False)
    net[4].weight.grad = torch.full_like(net[4].weight, 3)
    return net


def state_of(model: nn.Module) -> list[Any]:
    return [
        [module.training for module in model.modules()],
        [weight.requires_grad for weight in model.parameters()],
        [None if weight.grad is None else weight.grad.tolist() for weight in model.parameters()],
        [value.tolist() for value in model.state_dict().values()],
    ]


def test_signature_is_the_contract() -> None:
    parameters = inspect.signature(TemperaturePGD).parameters
    assert {name: p.default for name, p in parameters.items() if name != "model"} == {
        "eps": 8 / 255,
        "alpha": 2 / 255,
        "steps": 20,
        "random_start": True,
        "temperature": "gap",
        "norm": "Linf",
        "loss": "cross_entropy",
        "restarts": 1,
        "stop_on_success": False,
        "keep": "best",
        "seed": None,
        "precision": "float32",
    }
    host = list(inspect.signature(torchattacks.PGD).parameters)
    assert list(parameters)[: len(host)] == host


class TestSameAsHost:
    @pytest.mark.parametrize("mode", ["default", "function", "least likely", "label"])
    def test_float64_everywhere(self, exact: tuple[nn.Module, Tensor, Tensor], mode: str) -> None:
        net, images, labels = exact
        ours = TemperaturePGD(net, eps=0.1, alpha=0.03, steps=7, random_start=False, **AS_HOST)
        theirs = torchattacks.PGD(net, eps=0.1, alpha=0.03, steps=7, random_start=False)
        for attack in (ours, theirs):
            MODES[mode](attack)
        adv, expected = ours(images, labels), theirs(images, labels)
        assert (adv - expected).abs().max() <= 1e-6
        assert not torch.equal(adv, images)
        assert torch.equal(predict(net, adv), predict(net, expected))

    @pytest.mark.parametrize("mode", ["default", "function"])
    def test_float32_convnet(self, robust: nn.Module, digits: tuple[Tensor, Tensor], mode: str) -> None:
        ours = TemperaturePGD(robust, **DIGITS, random_start=False, **AS_HOST)
        theirs = torchattacks.PGD(robust, **DIGITS, steps=20, random_start=False)
        for attack in (ours, theirs):
            MODES[mode](attack)
        adv, expected = ours(*digits), theirs(*digits)
        same = (adv - expected).flatten(1).abs().amax(dim=1) <= 1e-6
        assert same.float().mean() >= 0.99
        assert torch.equal(predict(robust, adv), predict(robust, expected))


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "core"),
        [
            ({"temperature": 0.5}, {"temperature": 0.5}),
            ({"temperature": [1.0, 2.0, 0.5]}, {"temperature": (1.0, 2.0, 0.5)}),
            ({"alpha": "linear"}, {"step_size": "linear"}),
            ({"alpha": lambda step, steps: 0.05 / (1 + step)}, {"step_size": [0.05, 0.025, 0.05 / 3]}),
            ({"loss": "margin", "restarts": 2}, {"loss": "margin", "restarts": 2}),
            ({"norm": "L2", "eps": 0.3, "alpha": 0.1}, {"norm": "L2", "eps": 0.3, "step_size": 0.1}),
            ({"stop_on_success": True, "seed": 4}, {"stop_on_success": True, "seed": 4}),
            ({"keep": "last", "random_start": False}, {"keep": "last", "random_start": False}),
        ],
    )
    def test_reach_the_core(
        self, exact: tuple[nn.Module, Tensor, Tensor], options: dict[str, Any], core: dict[str, Any]
    ) -> None:
        net, images, labels = exact
        if isinstance(core.get("step_size"), list):
            lengths = core["step_size"]
            core = core | {"step_size": lambda step, steps: lengths[step]}
        given = {"eps": 0.1, "alpha": 0.03, "steps": 3, "seed": 0} | options
        expected = {"eps": 0.1, "step_size": 0.03, "steps": 3, "seed": 0, "stop_on_success": False} | core
        result = art_logits.pgd(net, images, labels, **expected)
        assert torch.equal(TemperaturePGD(net, **given)(images, labels), result.adv_inputs)

    def test_assignment_counts_from_the_next_call(self, exact: tuple[nn.Module, Tensor, Tensor]) -> None:
        net, images, labels = exact
        attack = TemperaturePGD(net, eps=0.1, alpha=0.03, seed=0)
        attack.eps, attack.steps = 0.01, 3
        expected = TemperaturePGD(net, eps=0.01, alpha=0.03, steps=3, seed=0)
        assert torch.equal(attack(images, labels), expected(images, labels))
        attack.keep = "first"
        with pytest.raises(ValueError, match="keep must be one of"):
            attack(images, labels)

    @pytest.mark.parametrize(
        ("norm", "eps", "alpha"), [("Linf", 8 / 255, 2 / 255), ("L2", 0.5, "cosine"), ("L1", 12.0, "cosine")]
    )
    def test_each_norm_has_its_own_defaults(self, norm: Any, eps: float, alpha: object) -> None:
        attack = TemperaturePGD(nn.Linear(2, 2), norm=norm)
        assert (attack.eps, attack.alpha) == (eps, alpha)
        assert type(attack.eps) is float
        given = TemperaturePGD(nn.Linear(2, 2), norm=norm, eps=8 / 255, alpha=2 / 255)
        assert (given.eps, given.alpha) == (8 / 255, 2 / 255)

    def test_default_l2_reaches_its_radius(self, robust: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
        images, labels = digits
        distance = (TemperaturePGD(robust, norm="L2")(images, labels) - images).flatten(1).norm(dim=1)
        assert distance.max() <= 0.5 + 1e-6
        assert distance.median() > 0.4

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"eps": -0.1}, ValueError, r"eps must be a finite number >= 0, got -0\.1"),
            ({"eps": "8/255"}, TypeError, "eps must be a number, got '8/255'"),
            ({"eps": torch.tensor([-1.0])}, ValueError, "eps must be finite and >= 0"),
            ({"alpha": 0.0}, ValueError, r"^alpha must be a finite number > 0, got 0\.0"),
            ({"alpha": "cosin"}, ValueError, r"^alpha must be one of .*did you mean cosine"),
            ({"alpha": lambda step, steps: -1.0}, ValueError, r"^alpha must be a finite number > 0"),
            ({"alpha": torch.tensor([-1.0])}, ValueError, r"^alpha must be finite and > 0"),
            ({"steps": 2.5}, TypeError, r"steps must be an integer, got 2\.5"),
            ({"random_start": "yes"}, TypeError, "random_start must be True or False"),
            ({"temperature": 0}, ValueError, "temperature must be a finite number > 0"),
            ({"temperature": [torch.ones(2), torch.ones(2)]}, ValueError, "temperature, as a schedule"),
            ({"norm": "L3"}, ValueError, "norm must be one of Linf, L2, L1"),
            ({"norm": 2}, ValueError, "norm must be one of Linf, L2, L1"),
            ({"loss": "ce"}, ValueError, "loss must be one of"),
            ({"restarts": 0}, ValueError, "restarts must be at least 1"),
            ({"keep": "first"}, ValueError, "keep must be one of best, last"),
            ({"seed": -1}, ValueError, "seed must be at least 0"),
        ],
    )
    def test_refused_at_once(self, options: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            TemperaturePGD(nn.Linear(2, 2), **options)

    def test_unknown_keyword(self) -> None:
        with pytest.raises(TypeError, match="eps_step"):
            TemperaturePGD(nn.Linear(2, 2), eps_step=0.1)

    def test_repr_shows_every_argument(self) -> None:
        text = repr(TemperaturePGD(nn.Linear(2, 2), eps=0.1, seed=3))
        assert text.startswith("TemperaturePGD(model_name=Linear, device=cpu, attack_mode=default")
        for name in list(inspect.signature(TemperaturePGD).parameters)[1:]:
            assert f" {name}=" in text
        assert "eps=0.1, alpha=0.00784313725490196, steps=20" in text
        assert "seed=3" in text
        assert "=_" not in text


class TestImages:
    def test_outside_the_bounds_names_the_remedy(self, robust: nn.Module) -> None:
        with pytest.raises(ValueError, match=r"within bounds \[0, 1\].*call set_normalization_used"):
            TemperaturePGD(robust)(torch.full((1, 1, 8, 8), 1.5), torch.tensor([0]))

    def test_integers(self, robust: nn.Module) -> None:
        with pytest.raises(TypeError, match=r"floating point, got torch\.uint8"):
            TemperaturePGD(robust)(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.tensor([0]))

    def test_a_hair_outside_the_bounds_is_rounding(
        self, robust: nn.Module, digits: tuple[Tensor, Tensor]
    ) -> None:
        images, labels = digits[0][:20], digits[1][:20]
        attack = TemperaturePGD(robust, **DIGITS, steps=2, random_start=False)
        expected = attack(images, labels)
        shifted = torch.where(images == 0, -1e-6, images)
        assert torch.equal(attack(torch.where(images == 1, 1 + 1e-6, shifted), labels), expected)
        with pytest.raises(ValueError, match=r"got values in \[-0\.001, 1\]: for normalised images"):
            attack(torch.where(images == 0, -1e-3, images), labels)

    def test_no_images(self, robust: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
        images, labels = digits[0][:0], digits[1][:0]
        for attack in (TemperaturePGD(robust), torchattacks.PGD(robust)):
            assert attack(images, labels).shape == (0, 1, 8, 8)

    def test_labels_of_the_wrong_length(self, robust: nn.Module) -> None:
        with pytest.raises(ValueError, match=r"labels must have shape \(2,\)"):
            TemperaturePGD(robust)(torch.zeros(2, 1, 8, 8), torch.tensor([0]))

    def test_result_is_new_detached_and_in_place(self, exact: tuple[nn.Module, Tensor, Tensor]) -> None:
        net, images, labels = exact
        before = images.clone()
        adv = TemperaturePGD(net, eps=0.1, alpha=0.03)(images.requires_grad_(), labels)
        assert torch.equal(images, before)
        assert not adv.requires_grad
        assert adv.dtype == images.dtype
        assert (adv - before).abs().max() <= 0.1 + 1e-12
        assert adv.min() >= 0
        assert adv.max() <= 1

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    @pytest.mark.parametrize("mode", ["default", "least likely"])
    def test_without_gradients_around(
        self, exact: tuple[nn.Module, Tensor, Tensor], context: Callable[[], Any], mode: str
    ) -> None:
        net, images, labels = exact
        attack = TemperaturePGD(net, eps=0.1, alpha=0.03, seed=0)
        MODES[mode](attack)
        expected = attack(images, labels)
        with context():
            assert torch.equal(attack(images.clone(), labels.clone()), expected)


class TestEps:
    def test_one_per_sample(self, exact: tuple[nn.Module, Tensor, Tensor]) -> None:
        net, images, labels = exact
        eps = torch.linspace(0, 0.2, len(images))
        adv = TemperaturePGD(net, eps=eps, alpha=0.05, seed=0)(images, labels)
        distance = (adv - images).flatten(1).abs().amax(dim=1)
        assert (distance <= eps + 1e-7).all()
        assert torch.equal(adv[0], images[0])
        assert distance[12:].max() > 0.1
        alone = TemperaturePGD(net, eps=float(eps[5]), alpha=0.05, seed=0)(images[5:6], labels[5:6])
        assert torch.allclose(adv[5:6], alone, atol=1e-12)

    def test_by_callable(self, exact: tuple[nn.Module, Tensor, Tensor]) -> None:
        net, images, labels = exact
        by_class = torch.linspace(0.02, 0.2, 10)
        attack = TemperaturePGD(net, eps=lambda images, labels: by_class[labels], alpha="cosine", seed=0)
        expected = TemperaturePGD(net, eps=by_class[labels], alpha="cosine", seed=0)(images, labels)
        assert torch.equal(attack(images, labels), expected)
        assert torch.equal(attack(images[3:8], labels[3:8]), expected[3:8])

    def test_tensor_of_the_wrong_length(self, exact: tuple[nn.Module, Tensor, Tensor]) -> None:
        net, images, labels = exact
        with pytest.raises(ValueError, match=r"eps must be a number or have shape \(24,\), got \(5,\)"):
            TemperaturePGD(net, eps=torch.ones(5))(images, labels)

    @pytest.mark.parametrize(
        ("answer", "error", "message"),
        [
            (0.1, TypeError, r"eps must return a tensor \(N,\), got float"),
            (torch.ones(1), ValueError, r"eps must return one value per sample, shape \(24,\)"),
            (torch.ones(24, dtype=torch.int64), TypeError, "eps must be a floating-point tensor"),
        ],
    )
    def test_callable_that_answers_wrongly(
        self,
        exact: tuple[nn.Module, Tensor, Tensor],
        answer: Any,
        error: type[Exception],
        message: str,
    ) -> None:
        net, images, labels = exact
        with pytest.raises(error, match=message):
            TemperaturePGD(net, eps=lambda images, labels: answer)(images, labels)


class TestSeed:
    def draws(self, attack: Any, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(5)
        adv = attack(images, labels)
        return adv, torch.get_rng_state()

    @pytest.mark.parametrize("mode", list(MODES))
    def test_none_draws_one_integer_per_call(
        self, exact: tuple[nn.Module, Tensor, Tensor], mode: str
    ) -> None:
        net, images, labels = exact
        attack = TemperaturePGD(net, eps=0.1, alpha=0.03, steps=2)
        MODES[mode](attack)
        first, state = self.draws(attack, images, labels)
        second = attack(images, labels)
        assert torch.equal(self.draws(attack, images, labels)[0], first)
        assert not torch.equal(second, first)
        torch.manual_seed(5)
        seed = int(torch.randint(2**63 - 1, ()))
        assert torch.equal(torch.get_rng_state(), state)
        fixed = TemperaturePGD(net, eps=0.1, alpha=0.03, steps=2, seed=seed)
        MODES[mode](fixed)
        assert torch.equal(fixed(images, labels), first)

    @pytest.mark.parametrize("mode", list(MODES))
    def test_integer_fixes_everything(self, exact: tuple[nn.Module, Tensor, Tensor], mode: str) -> None:
        net, images, labels = exact
        attack = TemperaturePGD(net, eps=0.1, alpha=0.03, steps=2, restarts=2, seed=1)
        MODES[mode](attack)
        torch.manual_seed(5)
        before = torch.get_rng_state()
        first = attack(images, labels)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(attack(images, labels), first)
        attack.seed = 2
        assert not torch.equal(attack(images, labels), first)


class TestSamplesAreAlone:
    @pytest.mark.parametrize("mode", list(MODES))
    @pytest.mark.parametrize("stop_on_success", [False, True])
    def test_order_and_batches(
        self, exact: tuple[nn.Module, Tensor, Tensor], mode: str, stop_on_success: bool
    ) -> None:
        net, images, labels = exact
        attack = TemperaturePGD(
            net, eps=0.1, alpha=0.03, steps=5, restarts=2, stop_on_success=stop_on_success, seed=0
        )
        MODES[mode](attack)
        whole = attack(images, labels)
        order = torch.randperm(len(images))
        shuffled = attack(images[order], labels[order])
        assert torch.allclose(shuffled, whole[order], rtol=0, atol=1e-12)
        parts = [attack(*pair) for pair in zip(images.split(7), labels.split(7), strict=True)]
        assert torch.allclose(torch.cat(parts), whole, rtol=0, atol=1e-12)

    def test_multi_attack(self, exact: tuple[nn.Module, Tensor, Tensor]) -> None:
        net, images, labels = exact
        weak = TemperaturePGD(net, eps=0.02, alpha=0.01, seed=0)
        strong = TemperaturePGD(net, eps=lambda x, y: 0.1 + 0.01 * y, alpha="cosine", seed=0)
        both = torchattacks.MultiAttack([weak, strong])(images, labels)
        first, second = weak(images, labels), strong(images, labels)
        fooled = [predict(net, adv) != labels for adv in (first, second)]
        rest = ~fooled[0] & fooled[1]
        assert fooled[0].any()
        assert rest.any()
        assert torch.equal(both[fooled[0]], first[fooled[0]])
        assert torch.allclose(both[rest], second[rest], rtol=0, atol=1e-12)

    def test_multi_attack_of_one_attack_restarts(self, exact: tuple[nn.Module, Tensor, Tensor]) -> None:
        net, images, labels = exact
        attack = TemperaturePGD(net, eps=0.1, steps=0)
        seen = []
        handle = net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
        torchattacks.MultiAttack([attack, attack])(images, labels)
        handle.remove()
        left = predict(net, seen[1]) == labels
        # Clean and final iterate of the first call, MultiAttack's own look, then the same of the second.
        assert torch.equal(seen[3], images[left])
        assert len(seen[4]) > 0
        assert not torch.equal(seen[4], seen[1][left])

    def test_eps_of_a_fixed_length_does_not_fit_the_rest(
        self, exact: tuple[nn.Module, Tensor, Tensor]
    ) -> None:
        net, images, labels = exact
        attack = TemperaturePGD(net, eps=torch.full((24,), 0.01))
        with pytest.raises(ValueError, match=r"eps must be a number or have shape \(\d+,\), got \(24,\)"):
            torchattacks.MultiAttack([attack, attack])(images, labels)


class TestTargets:
    @pytest.fixture
    def spy(self, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
        """The targets that the core is given."""
        import art_logits.plugins.torchattacks as plugin

        seen: list[Tensor] = []
        run = plugin._Core.__call__

        def call(core: Any, *args: Any, targets: Tensor | None = None, **kwargs: Any) -> Any:
            assert core.targeted == (targets is not None)
            if targets is not None:
                seen.append(targets)
            return run(core, *args, targets=targets, **kwargs)

        monkeypatch.setattr(plugin._Core, "__call__", call)
        return seen

    def test_by_function(self, robust: nn.Module, digits: tuple[Tensor, Tensor], spy: list[Tensor]) -> None:
        attack = TemperaturePGD(robust, eps=0.5, alpha=0.1)
        MODES["function"](attack)
        adv = attack(*digits)
        assert torch.equal(spy[0], (digits[1] + 1) % 10)
        assert accuracy(robust, adv, spy[0]) > 0.5

    def test_by_label(self, robust: nn.Module, digits: tuple[Tensor, Tensor], spy: list[Tensor]) -> None:
        attack = TemperaturePGD(robust, eps=0.5, alpha=0.1)
        MODES["label"](attack)
        goals = (digits[1] + 3) % 10
        adv = attack(digits[0], goals)
        assert torch.equal(spy[0], goals)
        assert accuracy(robust, adv, goals) > 0.5

    @pytest.mark.parametrize("kth", [1, 3])
    def test_least_likely(
        self, robust: nn.Module, digits: tuple[Tensor, Tensor], spy: list[Tensor], kth: int
    ) -> None:
        attack = TemperaturePGD(robust, **DIGITS, steps=1)
        attack.set_mode_targeted_least_likely(kth_min=kth, quiet=True)
        attack(*digits)
        with torch.no_grad():
            logits = robust(digits[0])
        logits[torch.arange(200), digits[1]] = torch.inf
        assert torch.equal(spy[0], logits.kthvalue(kth, dim=1).indices)

    def test_random(self, robust: nn.Module, digits: tuple[Tensor, Tensor], spy: list[Tensor]) -> None:
        images, labels = digits
        attack = TemperaturePGD(robust, **DIGITS, steps=1)
        MODES["random"](attack)
        attack(images, labels)
        attack(images, labels)
        assert not torch.equal(spy[0], spy[1])
        assert (torch.cat(spy) != labels.repeat(2)).all()
        shift = (torch.cat(spy) - labels.repeat(2)) % 10
        counts = torch.bincount(shift, minlength=10)[1:]
        # 400 draws of 9 classes: 44 expected of each, standard deviation 6
        assert counts.min() > 20
        assert counts.max() < 70

    def test_random_without_labels_avoids_the_prediction(
        self, robust: nn.Module, digits: tuple[Tensor, Tensor]
    ) -> None:
        attack = TemperaturePGD(robust, seed=0)
        targets = attack.get_random_target_label(digits[0])
        assert targets.shape == (200,)
        assert (targets != predict(robust, digits[0])).all()

    def test_back_to_default(
        self, robust: nn.Module, digits: tuple[Tensor, Tensor], spy: list[Tensor]
    ) -> None:
        attack = TemperaturePGD(robust, **DIGITS, steps=2, seed=0)
        expected = attack(*digits)
        MODES["random"](attack)
        attack(*digits)
        attack.set_mode_default()
        assert torch.equal(attack(*digits), expected)
        assert len(spy) == 1

    def test_no_function(self, robust: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
        attack = TemperaturePGD(robust)
        attack.set_mode_targeted_by_function(None, quiet=True)
        with pytest.raises(ValueError, match="target_map_function is not initialized"):
            attack(*digits)

    def test_function_of_the_wrong_shape(self, robust: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
        attack = TemperaturePGD(robust)
        attack.set_mode_targeted_by_function(lambda images, labels: labels[:3], quiet=True)
        with pytest.raises(ValueError, match=r"targets must have shape \(200,\)"):
            attack(*digits)


class TestNormalization:
    MEAN, STD = (0.31,), (0.37,)

    @pytest.fixture
    def bare(self, robust: nn.Module) -> nn.Module:
        """The robust model without its first layer, which takes normalised images."""
        robust.normalize = nn.Identity()
        return robust

    def normalise(self, images: Tensor) -> Tensor:
        return Normalize(self.MEAN, self.STD)(images)

    @pytest.mark.parametrize("mode", ["default", "least likely", "random"])
    def test_same_as_inside_the_model(
        self, bare: nn.Module, digits: tuple[Tensor, Tensor], mode: str
    ) -> None:
        # In float64: the images lose a bit on the way there and back, and with float32 their hash.
        images, labels = digits[0].double(), digits[1]
        bare.double()
        inside = TemperaturePGD(nn.Sequential(Normalize(self.MEAN, self.STD), bare), **DIGITS, seed=0)
        outside = TemperaturePGD(bare, **DIGITS, seed=0)
        outside.set_normalization_used(mean=list(self.MEAN), std=list(self.STD))
        for attack in (inside, outside):
            MODES[mode](attack)
        expected, adv = inside(images, labels), outside(self.normalise(images), labels)
        assert torch.allclose(adv, self.normalise(expected), rtol=0, atol=1e-9)

    def test_rounding_stays_within_the_bounds(self, bare: nn.Module) -> None:
        # With these two, black comes back as -7e-9, in float32.
        mean, std = (0.11,), (0.1,)
        images = Normalize(mean, std)(torch.rand(8, 1, 8, 8).round())
        assert (images * torch.tensor(std) + torch.tensor(mean)).min() < 0
        attack = TemperaturePGD(bare, eps=0.0)
        attack.set_normalization_used(mean=list(mean), std=list(std))
        assert torch.allclose(attack(images, torch.zeros(8, dtype=torch.int64)), images, atol=1e-6)

    def test_pixels_are_not_normalised_ones(self, bare: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
        attack = TemperaturePGD(bare, **DIGITS, seed=0)
        attack.set_normalization_used(mean=[0.9], std=[0.2])
        with pytest.raises(ValueError, match="inputs must lie within bounds"):
            attack(digits[0] + 1, digits[1])

    def test_survives_an_exception(self, bare: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
        images, labels = self.normalise(digits[0][:5]), digits[1][:5]
        attack = TemperaturePGD(bare, **DIGITS, seed=0)
        attack.set_normalization_used(mean=list(self.MEAN), std=list(self.STD))
        expected = attack(images, labels)
        with pytest.raises(ValueError, match="labels must lie in"):
            attack(images, labels + 10)
        assert torch.equal(attack(images, labels), expected)


class TestModelComesBack:
    IMAGES, LABELS = torch.linspace(0, 1, 4 * 64).view(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])

    @pytest.mark.parametrize("mode", list(MODES))
    @pytest.mark.parametrize("training", [None, (False, False), (True, False), (False, True), (True, True)])
    def test_after_an_attack(self, mixed: nn.Module, mode: str, training: tuple[bool, bool] | None) -> None:
        attack = TemperaturePGD(mixed, steps=2)
        if training is not None:
            attack.set_model_training_mode(True, *training)
        MODES[mode](attack)
        before = state_of(mixed)
        attack(self.IMAGES, self.LABELS)
        assert state_of(mixed) == before

    @pytest.mark.parametrize("training", [False, True])
    def test_after_an_exception(self, mixed: nn.Module, training: bool) -> None:
        attack = TemperaturePGD(mixed, steps=2)
        attack.set_model_training_mode(training, training, training)
        before = state_of(mixed)
        with pytest.raises(ValueError, match="labels must lie in"):
            attack(self.IMAGES, self.LABELS + 10)
        assert state_of(mixed) == before

    def test_after_save(self, mixed: nn.Module) -> None:
        before = state_of(mixed)
        TemperaturePGD(mixed, steps=2).save([(self.IMAGES, self.LABELS)], verbose=False)
        assert state_of(mixed) == before

    def test_in_a_fresh_wrapper(self, robust: nn.Module) -> None:
        wrapper = nn.Sequential(robust)
        TemperaturePGD(wrapper, steps=2)(self.IMAGES, self.LABELS)
        assert wrapper.training
        assert not any(module.training for module in robust.modules())

    @pytest.mark.parametrize(
        ("training", "seen"),
        [
            (None, [False, False, False, False]),
            ((True, False, False), [True, False, False, False]),
            ((True, True, False), [True, True, True, False]),
            ((True, False, True), [True, False, False, True]),
            ((False, True, True), [False, False, False, False]),
        ],
    )
    @pytest.mark.parametrize("mode", ["default", "least likely"])
    def test_mode_during_the_attack(
        self,
        mixed: nn.Module,
        mode: str,
        training: tuple[bool, bool, bool] | None,
        seen: list[bool],
    ) -> None:
        attack = TemperaturePGD(mixed, steps=2)
        if training is not None:
            attack.set_model_training_mode(*training)
        MODES[mode](attack)
        watched = [mixed, mixed[1], mixed[2][0], mixed[2][1]]
        modes = []
        mixed.register_forward_pre_hook(lambda *_: modes.append([module.training for module in watched]))
        attack(self.IMAGES, self.LABELS)
        # The least likely class is found in eval mode, as in the host; the clean pass and the steps follow.
        targets = [[False] * 4] if mode == "least likely" else []
        assert modes == targets + [seen] * 4


def test_logits_for_targets_leave_a_frozen_batch_norm_alone(mixed: nn.Module) -> None:
    before = state_of(mixed)
    TemperaturePGD(mixed).get_output_with_eval_nograd(torch.rand(2, 1, 8, 8))
    assert state_of(mixed) == before


class TestDevice:
    def test_model_without_parameters(self, capsys: pytest.CaptureFixture[str]) -> None:
        attack = TemperaturePGD(nn.Flatten(), eps=0.2, alpha=0.1)
        assert attack.device is None
        assert "set_device" in capsys.readouterr().out
        images, labels = torch.tensor([[[0.6, 0.5]]]), torch.tensor([0])
        attack.set_device("cpu")
        adv = attack(images, labels)
        assert adv.flatten()[0] < adv.flatten()[1]

    def test_images_go_to_the_device(self, robust: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
        attack = TemperaturePGD(robust)
        attack.set_device("meta")
        devices = []
        attack._core = lambda eps, seed: (
            lambda model, images, labels, targets, judge: (
                devices.extend([images.device, labels.device])
                or art_logits.AttackResult(images, *[labels] * 6)
            )
        )
        assert attack(*digits).device == torch.device("meta")
        assert devices == [torch.device("meta")] * 2

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_gpu(self, robust: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
        on_cpu = TemperaturePGD(robust, **DIGITS, seed=0)(*digits)
        adv = TemperaturePGD(robust.cuda(), **DIGITS, seed=0)(*digits)
        assert adv.is_cuda
        flips = predict(robust, adv) != predict(robust, on_cpu.cuda())
        assert flips.float().mean() <= 0.01


class TestSave:
    @pytest.fixture
    def loader(self, digits: tuple[Tensor, Tensor]) -> Any:
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*digits), batch_size=80)

    @pytest.mark.parametrize("verbose", [False, True])
    def test_and_load(
        self,
        robust: nn.Module,
        digits: tuple[Tensor, Tensor],
        loader: Any,
        tmp_path: Path,
        verbose: bool,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        path = str(tmp_path / "adv.pt")
        attack = TemperaturePGD(robust, **DIGITS, seed=0)
        expected = attack(*digits)
        answer = attack.save(loader, path, verbose=verbose, save_predictions=True, save_clean_inputs=True)
        assert answer is None
        assert ("Robust accuracy" in capsys.readouterr().out) == verbose
        loaded = TemperaturePGD.load(path, load_predictions=True, load_clean_inputs=True)
        adv, labels, predictions, clean = (torch.cat(column) for column in zip(*loaded, strict=True))
        assert torch.allclose(adv, expected, atol=1e-6)
        assert torch.equal(labels, digits[1])
        assert torch.equal(clean, digits[0])
        assert torch.equal(predictions, predict(robust, adv))

    def test_figures(self, robust: nn.Module, digits: tuple[Tensor, Tensor], loader: Any) -> None:
        attack = TemperaturePGD(robust, **DIGITS, seed=0)
        adv = attack(*digits)
        figures = attack.save(loader, verbose=False, return_verbose=True)
        assert figures is not None
        fooled = predict(robust, adv) != digits[1]
        distance = (adv - digits[0]).flatten(1).norm(dim=1)
        assert figures[0] == pytest.approx(100 * (1 - fooled.float().mean().item()), abs=1e-4)
        assert figures[1] == pytest.approx(distance[fooled].mean().item(), rel=1e-4)

    def test_bytes_of_normalised_images(
        self, robust: nn.Module, digits: tuple[Tensor, Tensor], tmp_path: Path
    ) -> None:
        path = str(tmp_path / "adv.pt")
        normalised = (digits[0] - 0.5) / 0.25
        attack = TemperaturePGD(nn.Sequential(Normalize((-2.0,), (4.0,)), robust), eps=0.0)
        attack.set_normalization_used(mean=[0.5], std=[0.25])
        attack.save([(normalised, digits[1])], path, verbose=False, save_type="int")
        (batch,) = TemperaturePGD.load(path, batch_size=200)
        assert (batch[0] - digits[0]).abs().max() <= 1.01 / 255


@pytest.fixture(scope="module")
def all_digits() -> tuple[Tensor, Tensor]:
    return load_data("digits").batch(slice(0, 500))


class TestLogitScale:
    """What scaling the logits does to the two attacks: nothing, and as good as everything."""

    FACTORS = (1e-3, 10.0, 100.0, 1000.0)

    def attacked(self, model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
        return TemperaturePGD(model, **DIGITS, seed=0)(*data)

    def host_accuracy(self, model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
        adv = torchattacks.PGD(model, **DIGITS, steps=20, random_start=False)(*data)
        return accuracy(model, adv, data[1])

    @pytest.mark.parametrize("name", ["robust", "distilled"])
    def test_powers_of_two_change_no_bit(
        self, name: str, request: pytest.FixtureRequest, digits: tuple[Tensor, Tensor]
    ) -> None:
        model = request.getfixturevalue(name)
        expected = self.attacked(model, digits)
        for exponent in (-10, 7):
            assert torch.equal(self.attacked(Scaled(model, 2.0**exponent), digits), expected)

    @pytest.mark.parametrize(("name", "swing"), [("robust", 0.03), ("distilled", 0.3)])
    def test_other_factors_flip_next_to_nothing(
        self, name: str, swing: float, request: pytest.FixtureRequest, all_digits: tuple[Tensor, Tensor]
    ) -> None:
        model = request.getfixturevalue(name)
        survivors = predict(model, self.attacked(model, all_digits)) == all_digits[1]
        host = [self.host_accuracy(model, all_digits)]
        for factor in self.FACTORS:
            scaled = Scaled(model, factor)
            right = predict(scaled, self.attacked(scaled, all_digits)) == all_digits[1]
            assert (right != survivors).float().mean() <= 0.005
            host.append(self.host_accuracy(scaled, all_digits))
        assert max(host) - min(host) >= swing
        # At none of these scales does the host find more; at one that suits it (1/20 of the distilled
        # net's) it does, by a percent.
        assert survivors.float().mean() <= min(host)

    def test_distillation_defends_against_the_host_only(
        self, distilled: nn.Module, all_digits: tuple[Tensor, Tensor]
    ) -> None:
        clean = accuracy(distilled, *all_digits)
        ours = accuracy(distilled, self.attacked(distilled, all_digits), all_digits[1])
        host = self.host_accuracy(distilled, all_digits)
        assert clean > 0.9
        assert ours < host - 0.2
        # Undoing the distillation's scale gives the host its gradient back.
        assert self.host_accuracy(Scaled(distilled, 1 / 20), all_digits) < host - 0.2


class TestHostSuite:
    """What torchattacks checks of each of its attacks, in its own terms; see tests/hosts/README.md."""

    def test_robust_accuracy_is_no_higher_than_clean(
        self, robust: nn.Module, digits: tuple[Tensor, Tensor]
    ) -> None:
        images, labels = digits
        clean = accuracy(robust, images, labels)
        attack = TemperaturePGD(robust)
        with torch.no_grad():
            assert accuracy(robust, attack(images, labels), labels) <= clean
            attack.set_mode_targeted_random(quiet=True)
            assert accuracy(robust, attack(images, labels), labels) <= clean

    def test_as_base_attack_of_lgv(
        self, robust: nn.Module, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Where there is a GPU, the host trains on it, wherever the model is.
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*digits), batch_size=50)
        lgv = torchattacks.LGV(
            robust, loader, lr=0.01, epochs=1, nb_models_epoch=2, verbose=False,
            attack_class=TemperaturePGD, **DIGITS, steps=4,
        )  # fmt: skip
        adv = lgv(*digits)
        assert (adv - digits[0]).abs().max() <= 0.1 + 1e-6
        assert accuracy(robust, adv, digits[1]) < accuracy(robust, *digits)


def test_logits_of_a_subclass_are_the_attacked_ones(exact: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, images, labels = exact

    class Negated(TemperaturePGD):  # type: ignore[misc]
        def get_logits(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return -super().get_logits(inputs, *args, **kwargs)

    options: dict[str, Any] = {"eps": 0.1, "alpha": 0.03, "steps": 2, "seed": 0}
    found = Negated(net, **options)(images, labels)
    assert torch.equal(found, TemperaturePGD(Scaled(net, -1.0), **options)(images, labels))
    assert not torch.equal(found, TemperaturePGD(net, **options)(images, labels))


def test_without_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    monkeypatch.delitem(sys.modules, "torchattacks.attack", raising=False)
    monkeypatch.delitem(sys.modules, "art_logits.plugins.torchattacks", raising=False)
    with pytest.raises(ImportError, match=r'pip install "art-logits\[torchattacks\]"'):
        importlib.import_module("art_logits.plugins.torchattacks")


class TestPrecision:
    """Float32 is the model's, bit by bit; other precisions are as strong, and judged in float32."""

    @pytest.fixture(autouse=True)
    def _large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.modules["art_logits.prepare"], "_WORTHWHILE", 0)

    @pytest.fixture
    def digits(self) -> tuple[nn.Module, Tensor, Tensor]:
        data = load_data("digits")
        return load_model("digits-at"), *data.batch(slice(0, 100))

    def test_float32_is_neither_folded_nor_cast(self, digits: tuple[nn.Module, Tensor, Tensor]) -> None:
        net, images, labels = digits
        found = TemperaturePGD(net, **DIGITS, steps=5, seed=0)(images, labels)
        plain = art_logits.TemperaturePGD(
            eps=0.1, step_size=0.025, steps=5, stop_on_success=False, precision="float32", fuse=False
        )
        assert torch.equal(found, plain(net, images, labels).adv_inputs)

    @pytest.mark.parametrize("normalised", [False, True])
    @pytest.mark.parametrize("stop_on_success", [False, True])
    def test_bfloat16_is_as_strong(
        self, digits: tuple[nn.Module, Tensor, Tensor], normalised: bool, stop_on_success: bool
    ) -> None:
        net, images, labels = digits
        if normalised:
            net.normalize = nn.Identity()
        mean, std = [0.3053], [0.3760]
        found = {}
        for precision in ("float32", "bfloat16"):
            attack = TemperaturePGD(
                net, eps=0.2, alpha=0.05, seed=0, precision=precision, stop_on_success=stop_on_success
            )
            shown = images
            if normalised:
                attack.set_normalization_used(mean, std)
                shown = (images - mean[0]) / std[0]
            found[precision] = attack(shown, labels)
        assert not torch.equal(*found.values())
        plain, half = (accuracy(net, adv, labels) for adv in found.values())
        assert 0.5 < plain < 0.9
        assert half <= plain + 0.01

    def test_a_model_in_training_mode_is_left_to_the_host(
        self, digits: tuple[nn.Module, Tensor, Tensor]
    ) -> None:
        net, images, labels = digits
        results = []
        for precision in ("float32", "bfloat16"):
            attack = TemperaturePGD(net, **DIGITS, steps=3, seed=0, precision=precision)
            attack.set_model_training_mode(model_training=True, batchnorm_training=True)
            results.append(attack(images, labels))
        assert torch.equal(*results)

    def test_unknown_precisions(self, digits: tuple[nn.Module, Tensor, Tensor]) -> None:
        with pytest.raises(ValueError, match="precision must be one of auto, float32, bfloat16, got 'half'"):
            TemperaturePGD(digits[0], precision="half")
