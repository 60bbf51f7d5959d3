"""The ART adapter against ART's own ProjectedGradientDescent, and where ART takes an attack."""

from __future__ import annotations

import copy
import inspect
import logging
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("art")

from art.attacks.evasion import AutoAttack, ProjectedGradientDescent
from art.defences.postprocessor import Rounded
from art.defences.preprocessor import FeatureSqueezing, SpatialSmoothing
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.defences.trainer import AdversarialTrainer, AdversarialTrainerTRADESPyTorch
from art.estimators.classification import BlackBoxClassifier, PyTorchClassifier
from art.exceptions import EstimatorError
from art.metrics import adversarial_accuracy
from art.summary_writer import SummaryWriterDefault
from art.utils import to_categorical
from scipy.stats import kstest, truncnorm

from art_logits.data import load_data
from art_logits.models import load_model
from art_logits.plugins.art import TemperaturePGD

QUICK = {"eps": 0.1, "eps_step": 0.03, "max_iter": 5, "verbose": False}


class Linear64(nn.Module):
    """Linear in float64 whatever the inputs: the reference on which results are exact."""

    def __init__(self, features: int = 64, classes: int = 10, scale: float = 1.0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(features, classes, generator=rng, dtype=torch.float64))
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).double().tanh() @ self.weight * self.scale


class Counting(nn.Module):
    """Counts the forward passes of what it wraps."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.net(x)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Any]:
    x, y = next(load_data("digits").batches(80))
    return x.numpy(), y.numpy()


@pytest.fixture
def x(digits: tuple[Any, Any]) -> Any:
    return digits[0].copy()


@pytest.fixture
def y(digits: tuple[Any, Any]) -> Any:
    return digits[1].copy()


def wrap(net: nn.Module, **options: Any) -> PyTorchClassifier:
    given: dict[str, Any] = {"input_shape": (1, 8, 8), "nb_classes": 10, "clip_values": (0.0, 1.0), **options}
    return PyTorchClassifier(net, nn.CrossEntropyLoss(), **given)


@pytest.fixture
def robust() -> PyTorchClassifier:
    return wrap(load_model("digits-at"))


@pytest.fixture
def reference() -> PyTorchClassifier:
    return wrap(Linear64())


def distances(a: Any, b: Any) -> Any:
    return np.abs(a - b).reshape(len(a), -1).max(axis=1)


def accuracy(classifier: PyTorchClassifier, x: Any, y: Any) -> float:
    return float((classifier.predict(x).argmax(axis=1) == y).mean())


# ---- the contract -------------------------------------------------------------------------------------


def test_the_signature_is_art_s_then_our_own() -> None:
    theirs = inspect.signature(ProjectedGradientDescent.__init__).parameters
    ours = inspect.signature(TemperaturePGD.__init__).parameters
    assert [(p.name, p.default) for p in ours.values()][: len(theirs)] == [
        (p.name, p.default) for p in theirs.values()
    ]
    assert {p.name: p.default for p in list(ours.values())[len(theirs) :]} == {
        "temperature": "gap",
        "loss": "cross_entropy",
        "stop_on_success": False,
        "keep": "best",
        "seed": None,
        "precision": "float32",
    }
    assert set(ProjectedGradientDescent.attack_params) <= set(TemperaturePGD.attack_params)
    assert TemperaturePGD._estimator_requirements == ProjectedGradientDescent._estimator_requirements


def test_without_art_the_import_says_what_to_install() -> None:
    code = "import sys; sys.modules['art'] = None; import art_logits.plugins.art"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 1
    assert (
        'art_logits.plugins.art needs art, which is not installed: pip install "art-logits[art]"'
        in run.stderr
    )


def test_repr_names_every_parameter(robust: PyTorchClassifier) -> None:
    text = repr(TemperaturePGD(robust, eps=0.25, seed=7))
    assert text.startswith("TemperaturePGD(norm=inf, eps=0.25, eps_step=0.1, decay=None, max_iter=100, ")
    assert "temperature=gap" in text
    assert "seed=7" in text


# ---- equal to ART's -----------------------------------------------------------------------------------

CASES = {
    "plain": {},
    "targeted": {"targeted": True},
    "decay": {"decay": 0.6},
    "mask": {"mask": 1.0},
    "targeted mask": {"targeted": True, "mask": 1.0},
    "weighted mask and decay": {"mask": 0.3, "decay": 0.6},
    "inf by name": {"norm": "inf"},
}


def both(
    classifier: PyTorchClassifier, x: Any, y: Any, *, mask: float | None = None, **options: Any
) -> tuple[Any, Any]:
    """Adversarial examples of ART's PGD and of ours; ``mask`` is the weight of a random half."""
    options = {**QUICK, "max_iter": 10, "num_random_init": 0, **options}
    weights = None if mask is None else (np.random.default_rng(0).random(x.shape) < 0.5) * np.float32(mask)
    labels = (y + 1) % 10 if options.get("targeted") else y
    theirs = ProjectedGradientDescent(classifier, **options).generate(x, labels, mask=weights)
    ours = TemperaturePGD(classifier, **options, temperature=1.0, keep="last").generate(
        x, labels, mask=weights
    )
    return theirs, ours


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("model", ["digits-at", "digits-standard"])
def test_equal_to_art_s_pgd(model: str, options: Any, x: Any, y: Any) -> None:
    classifier = wrap(load_model(model))
    theirs, ours = both(classifier, x, y, **options)
    assert (distances(theirs, ours) < 1e-6).mean() >= 0.99
    assert accuracy(classifier, theirs, y) == accuracy(classifier, ours, y)
    assert distances(ours, x).max() > 0.09


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_equal_to_art_s_pgd_on_every_sample_of_the_reference(
    options: Any, reference: PyTorchClassifier, x: Any, y: Any
) -> None:
    theirs, ours = both(reference, x, y, **options)
    assert distances(theirs, ours).max() < 1e-6


@pytest.mark.parametrize("shape", ["x", "1:", "2:", "3:", "samples"])
def test_equal_to_art_s_pgd_with_an_eps_per_element(
    shape: str, reference: PyTorchClassifier, x: Any, y: Any
) -> None:
    shapes = {"x": x.shape, "1:": (1, 8, 8), "2:": (8, 8), "3:": (8,), "samples": (len(x), 1, 1, 1)}
    eps = np.random.default_rng(0).uniform(0.01, 0.2, shapes[shape])
    theirs, ours = both(reference, x, y, eps=eps, eps_step=eps / 4)
    assert distances(theirs, ours).max() < 1e-6
    assert (np.abs(ours - x) <= eps + 1e-6).all()
    assert np.abs(ours - x).max() > 0.15


@pytest.mark.parametrize("clip", ["x", "1:", "2:", "none"])
def test_equal_to_art_s_pgd_with_clip_values_of_any_kind(clip: str, x: Any, y: Any) -> None:
    shapes = {"x": (1, 8, 8), "1:": (8, 8), "2:": (8,)}
    limits = None if clip == "none" else (np.zeros(shapes[clip]), np.full(shapes[clip], 1.0))
    classifier = wrap(Linear64(), clip_values=limits)
    theirs, ours = both(classifier, x, y)
    assert distances(theirs, ours).max() < 1e-6
    assert (ours.min() < 0) == (clip == "none")


def test_clip_values_hold_element_by_element(x: Any, y: Any) -> None:
    upper = np.where(np.arange(8) < 4, 1.0, 1.25)
    classifier = wrap(Linear64(), clip_values=(np.zeros(8), upper))
    adv = TemperaturePGD(classifier, **{**QUICK, "eps": 0.5}).generate(x, y)
    assert (adv <= upper.astype(np.float32)).all()
    assert (adv[..., 4:] > 1.0).any()


class Contrast(PreprocessorPyTorch):
    """A defence that ART differentiates in torch."""

    def forward(self, x: Any, y: Any = None) -> tuple[Any, Any]:
        return (3 * x - 1).sigmoid(), y


def preprocessings() -> dict[str, Callable[[], dict[str, Any]]]:
    """Keywords of a classifier that preprocesses; "numpy" where ART differentiates in numpy."""
    return {
        "mean and std": lambda: {"preprocessing": (0.3, 0.4)},
        "framework": lambda: {"preprocessing_defences": Contrast(), "preprocessing": (0.3, 0.4)},
        "numpy": lambda: {"preprocessing_defences": SpatialSmoothing(window_size=3, channels_first=True)},
        "numpy, mean and std": lambda: {
            "preprocessing_defences": FeatureSqueezing(clip_values=(0, 1), bit_depth=5),
            "preprocessing": (0.3, 0.4),
        },
    }


@pytest.mark.parametrize("name", preprocessings())
def test_equal_to_art_s_pgd_behind_preprocessing(name: str, x: Any, y: Any) -> None:
    classifier = wrap(Linear64(), **preprocessings()[name]())
    assert classifier.all_framework_preprocessing == (not name.startswith("numpy"))
    theirs, ours = both(classifier, x[:20], y[:20])
    assert (distances(theirs, ours) < 1e-6).all()
    assert distances(ours, x[:20]).max() > 0.09


def test_postprocessing_is_not_seen_by_the_attack_as_in_art(x: Any, y: Any) -> None:
    plain, rounded = wrap(Linear64()), wrap(Linear64(), postprocessing_defences=Rounded(decimals=1))
    assert not np.array_equal(plain.predict(x), rounded.predict(x))
    expected = TemperaturePGD(plain, **QUICK).generate(x, y)
    assert np.array_equal(TemperaturePGD(rounded, **QUICK).generate(x, y), expected)


# ---- results depend on the sample alone ---------------------------------------------------------------


@pytest.mark.parametrize("stop_on_success", [False, True])
def test_neither_batch_size_nor_order_changes_a_result(
    stop_on_success: bool, reference: PyTorchClassifier, x: Any
) -> None:
    y = reference.predict(x).argmax(axis=1)
    options = {**QUICK, "num_random_init": 2, "seed": 3, "stop_on_success": stop_on_success}
    expected = TemperaturePGD(reference, **options).generate(x, y)
    order = np.random.default_rng(0).permutation(len(x))
    for batch_size in (1, 7, 1000):  # one at a time: more batches than go to the device at once
        attack = TemperaturePGD(reference, **options, batch_size=batch_size)
        assert np.array_equal(attack.generate(x, y), expected)
        assert np.array_equal(attack.generate(x[order], y[order]), expected[order])
    assert distances(expected, x).min() > 0


def test_eps_and_mask_stay_with_their_samples_in_any_batch(
    reference: PyTorchClassifier, x: Any, y: Any
) -> None:
    rng = np.random.default_rng(0)
    eps, mask = rng.uniform(0.01, 0.2, x.shape), rng.random(x.shape) < 0.5
    options = {**QUICK, "eps": eps, "eps_step": eps / 3}
    expected = TemperaturePGD(reference, **options).generate(x, y, mask=mask)
    small = TemperaturePGD(reference, **options, batch_size=1).generate(x, y, mask=mask)
    assert np.array_equal(small, expected)
    assert np.array_equal(expected[~mask], x[~mask])
    assert (expected != x)[mask].mean() > 0.5


def test_a_power_of_two_on_the_logits_changes_no_bit(x: Any, y: Any) -> None:
    attacks = [TemperaturePGD(wrap(Linear64(scale=2.0**k)), **QUICK) for k in (0, 12, -12)]
    plain, large, small = (attack.generate(x, y) for attack in attacks)
    assert np.array_equal(plain, large)
    assert np.array_equal(plain, small)


class Scaled(nn.Module):
    """Logits times a factor: the same decisions, the same robustness."""

    def __init__(self, net: nn.Module, factor: float) -> None:
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) * self.factor  # type: ignore[no-any-return]


@pytest.mark.parametrize(("name", "swing"), [("digits-at", 0.03), ("distilled", 0.3)])
def test_other_factors_on_the_logits_flip_next_to_nothing(
    name: str, swing: float, distilled: nn.Module
) -> None:
    net = distilled if name == "distilled" else load_model(name)
    x, y = (tensor.numpy() for tensor in next(load_data("digits").batches(200)))
    options = {"eps": 0.1, "eps_step": 0.025, "max_iter": 20, "verbose": False}
    right, host = {}, []
    for factor in (1.0, 1e-3, 10.0, 100.0, 1000.0):
        classifier = wrap(Scaled(net, factor))
        found = TemperaturePGD(classifier, **options).generate(x, y)
        right[factor] = classifier.predict(found).argmax(axis=1) == y
        assert (right[factor] != right[1.0]).mean() <= 0.005
        host.append(accuracy(classifier, ProjectedGradientDescent(classifier, **options).generate(x, y), y))
    assert max(host) - min(host) >= swing


def test_an_integer_seed_fixes_everything(robust: PyTorchClassifier, x: Any, y: Any) -> None:
    attack = TemperaturePGD(robust, **QUICK, num_random_init=1, random_eps=True, seed=5)
    state = np.random.get_state()[1].copy()  # noqa: NPY002 (ART's generator)
    first = attack.generate(x, y)
    assert np.array_equal(first, attack.generate(x, y))
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    attack.set_params(seed=6)
    assert not np.array_equal(first, attack.generate(x, y))


def test_without_a_seed_each_call_draws_one_integer_from_numpy(
    robust: PyTorchClassifier, x: Any, y: Any
) -> None:
    attack = TemperaturePGD(robust, **QUICK, num_random_init=1)
    np.random.seed(0)  # noqa: NPY002
    first, second, after = attack.generate(x, y), attack.generate(x, y), np.random.random()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    again = attack.generate(x, y)
    np.random.randint(2**31 - 1)  # noqa: NPY002
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)
    assert after == np.random.random()  # noqa: NPY002


# ---- what generate takes ------------------------------------------------------------------------------


def test_labels_in_every_format(robust: PyTorchClassifier, x: Any, y: Any) -> None:
    attack = TemperaturePGD(robust, **QUICK)
    expected = attack.generate(x, y)
    hot = to_categorical(y, 10)
    for labels in (hot, hot.astype(bool), y[:, None], y.astype(np.float32), list(y), 0.8 * hot + 0.02):
        assert np.array_equal(attack.generate(x, labels), expected)


def test_absent_labels_are_the_predictions(reference: PyTorchClassifier, x: Any, y: Any) -> None:
    attack = TemperaturePGD(reference, **QUICK)
    predicted = reference.predict(x).argmax(axis=1)
    assert (predicted != y).any()
    expected = attack.generate(x, predicted)
    assert np.array_equal(attack.generate(x), expected)
    assert np.array_equal(attack.generate(x=x, y=None), expected)
    assert np.array_equal(attack.generate(x, None), expected)


def test_unknown_keywords_are_ignored(robust: PyTorchClassifier, x: Any, y: Any) -> None:
    attack = TemperaturePGD(robust, **QUICK)
    assert np.array_equal(attack.generate(x, y, x_init=x, minimal=True), attack.generate(x, y))


def test_x_is_cast_once_and_never_changed(robust: PyTorchClassifier, x: Any, y: Any) -> None:
    attack = TemperaturePGD(robust, **QUICK)
    expected, before = attack.generate(x, y), x.copy()
    assert expected.dtype == np.float32
    assert not np.shares_memory(expected, x)
    for given in (x.astype(np.float64), list(x), np.asfortranarray(x)):
        assert np.array_equal(attack.generate(given, y), expected)
    x.setflags(write=False)
    assert np.array_equal(attack.generate(x, y), expected)
    assert np.array_equal(x, before)


def test_a_hair_outside_the_clip_values_is_rounding(reference: PyTorchClassifier, x: Any, y: Any) -> None:
    attack = TemperaturePGD(reference, **QUICK)
    expected = attack.generate(x, y)
    beyond = np.where(x == 1, x + 1e-6, np.where(x == 0, x - 1e-6, x))
    assert (beyond.astype(np.float32) != x).any()
    assert np.array_equal(attack.generate(beyond, y), expected)
    net = Counting(Linear64())
    with pytest.raises(ValueError, match=r"got values in \[-0\.001, 1\]: give x as predict takes it"):
        TemperaturePGD(wrap(net), **QUICK).generate(np.where(x == 0, -1e-3, x))
    assert net.calls == 0


def test_no_inputs_give_none_back(reference: PyTorchClassifier, x: Any, y: Any, caplog: Any) -> None:
    with caplog.at_level(logging.INFO):
        found = TemperaturePGD(reference, **QUICK).generate(x[:0], y[:0])
    assert found.shape == (0, 1, 8, 8)
    assert found.dtype == np.float32


def test_pixels_in_bytes_need_clip_values_that_span_them(x: Any, y: Any) -> None:
    pixels = (x * 255).round().astype(np.uint8)
    options = {**QUICK, "eps": 20.0, "eps_step": 6.0}
    attack = TemperaturePGD(wrap(Linear64(), clip_values=(0, 255), preprocessing=(0.0, 255.0)), **options)
    assert np.array_equal(attack.generate(pixels, y), attack.generate(pixels.astype(np.float32), y))
    for limits in ((0.0, 1.0), (0, 254), None):
        net = Counting(Linear64())
        with pytest.raises(ValueError, match="x of type uint8 holds pixels from 0 to 255"):
            TemperaturePGD(wrap(net, clip_values=limits), **options).generate(pixels)
        assert net.calls == 0


def test_other_integers_are_numbers_like_any(x: Any, y: Any) -> None:
    attack = TemperaturePGD(wrap(Linear64()), **QUICK)
    black_and_white = x > 0.5
    expected = attack.generate(black_and_white.astype(np.float32), y)
    assert np.array_equal(attack.generate(black_and_white.astype(np.int64), y), expected)
    assert np.array_equal(attack.generate(black_and_white, y), expected)


@pytest.mark.parametrize(
    ("options", "arguments", "error", "message"),
    [
        ({}, {"x": np.full((2, 1, 8, 8), "a")}, TypeError, "x must hold numbers, got <U1"),
        (
            {},
            {"x": np.full((2, 1, 8, 8), 1.5)},
            ValueError,
            r"inputs must lie within bounds \[0, 1\], .*or an estimator whose clip_values span x",
        ),
        ({}, {"y": np.array(["3", "7"])}, TypeError, "y must hold class indices .* got <U1"),
        ({}, {"y": np.array([0, 10])}, ValueError, r"labels must lie in \[0, 10\)"),
        ({}, {"y": np.array([0, -1])}, ValueError, r"labels must lie in \[0, 10\)"),
        ({}, {"y": np.array([0, 0.5])}, ValueError, "y must hold class indices .* got fractions"),
        ({}, {"y": np.array([0])}, ValueError, r"labels must have shape \(2,\)"),
        ({}, {"y": np.eye(2, 9)}, ValueError, r"y must have one column per class, 10, got shape \(2, 9\)"),
        ({"targeted": True}, {}, ValueError, "y must be given, one target class per input"),
        ({"targeted": True}, {"y": np.array([0, 10])}, ValueError, r"targets must lie in \[0, 10\)"),
        ({}, {"mask": np.full((8, 8), -1.0)}, ValueError, "mask must hold weights >= 0 only"),
        ({}, {"mask": np.ones(7)}, ValueError, r"mask must broadcast to the inputs' shape \(2, 1, 8, 8\)"),
        (
            {},
            {"mask": np.ones(8, dtype=int)},
            ValueError,
            "mask must be a tensor of booleans or floating-point",
        ),
        (
            {"eps": np.ones(7), "eps_step": np.ones(7)},
            {},
            ValueError,
            r"eps must broadcast to the shape of x, \(2, 1, 8, 8\), got \(7,\)",
        ),
        (
            {"eps": np.linspace(0.1, 1, 8), "eps_step": np.linspace(0.1, 1, 8), "norm": 2},
            {},
            ValueError,
            r"eps must be a number or have shape \(2,\), got \(2, 1, 8, 8\)",
        ),
    ],
)
def test_what_generate_refuses(
    options: Any, arguments: Any, error: type[Exception], message: str, reference: PyTorchClassifier
) -> None:
    attack = TemperaturePGD(reference, **{**QUICK, **options})
    with pytest.raises(error, match=message):
        attack.generate(**{"x": np.full((2, 1, 8, 8), 0.5), **arguments})


@pytest.mark.parametrize("nothing", [{"max_iter": 0}, {"eps": 0}])
@pytest.mark.parametrize("norm", [np.inf, 2, 1])
def test_no_steps_or_no_radius_change_nothing(
    nothing: Any, norm: Any, robust: PyTorchClassifier, x: Any, y: Any
) -> None:
    attack = TemperaturePGD(robust, **{**QUICK, **nothing}, norm=norm, num_random_init=3)
    assert np.array_equal(attack.generate(x, y), x)


@pytest.mark.parametrize(("norm", "order"), [(np.inf, np.inf), (2, 2), (1, 1), (2.0, 2)])
def test_every_norm_stays_in_its_ball_and_hurts(
    norm: Any, order: float, robust: PyTorchClassifier, x: Any, y: Any
) -> None:
    eps = {np.inf: 0.1, 2: 1.0, 1: 3.0}[order]
    attack = TemperaturePGD(robust, norm=norm, eps=eps, eps_step=eps / 4, max_iter=10, verbose=False)
    adv = attack.generate(x, y)
    lengths = np.linalg.norm((adv - x).reshape(len(x), -1), ord=order, axis=1)
    assert (lengths <= eps * (1 + 1e-5)).all()
    assert np.median(lengths) > 0.9 * eps
    assert accuracy(robust, adv, y) < accuracy(robust, x, y)


def test_one_radius_per_sample_in_a_finite_norm(robust: PyTorchClassifier, x: Any, y: Any) -> None:
    eps = np.linspace(0.1, 1.0, len(x)).reshape(-1, 1, 1, 1)
    adv = TemperaturePGD(robust, norm=2, eps=eps, eps_step=eps / 2, max_iter=8, verbose=False).generate(x, y)
    lengths = np.linalg.norm((adv - x).reshape(len(x), -1), axis=1)
    assert (lengths <= eps.ravel() * (1 + 1e-5)).all()
    assert (lengths > 0.9 * eps.ravel()).mean() > 0.9


def test_random_eps_shrinks_eps_and_step_by_one_factor(reference: PyTorchClassifier, x: Any, y: Any) -> None:
    attack = TemperaturePGD(reference, **QUICK, random_eps=True, seed=1, keep="last")
    adv = attack.generate(x, y)
    factor = distances(adv, x).max() / 0.1
    assert 0 < factor < 1
    scaled = {**QUICK, "eps": 0.1 * factor, "eps_step": 0.03 * factor}
    assert distances(adv, TemperaturePGD(reference, **scaled, keep="last").generate(x, y)).max() < 1e-5
    assert (attack.eps, attack.eps_step) == (0.1, 0.03)


def test_random_eps_is_a_truncated_normal_variable(reference: PyTorchClassifier) -> None:
    grey = np.full((1, 1, 8, 8), 0.5, dtype=np.float32)
    attack = TemperaturePGD(reference, eps=0.2, eps_step=1.0, max_iter=1, verbose=False, random_eps=True)
    np.random.seed(0)  # noqa: NPY002
    radii = [distances(attack.generate(grey, np.array([0])), grey)[0] for _ in range(300)]
    assert kstest(radii, truncnorm(0, 2, scale=0.1).cdf).pvalue > 0.05


def test_random_eps_of_arrays_is_drawn_per_element(reference: PyTorchClassifier, x: Any, y: Any) -> None:
    eps = np.full((8, 8), 0.1)
    attack = TemperaturePGD(
        reference, eps=eps, eps_step=eps, max_iter=3, random_eps=True, seed=2, verbose=False
    )
    reach = np.abs(attack.generate(np.full_like(x, 0.5), y) - 0.5).max(axis=(0, 1))
    assert len(np.unique(reach.round(5))) > 50
    assert reach.max() <= 0.1 + 1e-6


def test_more_restarts_never_find_less(robust: PyTorchClassifier, x: Any, y: Any) -> None:
    def margins(count: int) -> Any:
        attack = TemperaturePGD(robust, **QUICK, num_random_init=count, seed=0)
        logits = robust.predict(attack.generate(x, y))
        own = logits[np.arange(len(y)), y]
        logits[np.arange(len(y)), y] = -np.inf
        return logits.max(axis=1) - own

    one, four = margins(1), margins(4)
    assert (four >= one - 1e-5).all()
    assert (four > one + 1e-3).any()


def test_restarts_judge_success_by_the_label_not_by_the_clean_prediction() -> None:
    # Wrong already, and right in most of the ball: ART's restarts count the correction as a success.
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net[1].bias.copy_(torch.tensor([-0.5, 0.5]))
    classifier = wrap(net, input_shape=(1,), nb_classes=2)
    x, y = np.array([[0.45]], dtype=np.float32), np.array([0])
    adv = TemperaturePGD(
        classifier, eps=0.4, eps_step=0.01, max_iter=1, num_random_init=20, verbose=False, seed=0
    )
    assert classifier.predict(x).argmax() == 1
    assert classifier.predict(adv.generate(x, y)).argmax() == 1


def test_stop_on_success_saves_passes_and_loses_no_success(x: Any, y: Any) -> None:
    net = Counting(load_model("digits-standard"))
    classifier = wrap(net)
    options = {"eps": 0.15, "eps_step": 0.05, "max_iter": 20, "verbose": False, "batch_size": 8}
    full, calls = TemperaturePGD(classifier, **options).generate(x, y), net.calls
    net.calls = 0
    stopped = TemperaturePGD(classifier, **options, stop_on_success=True).generate(x, y)
    assert net.calls < calls / 2
    assert accuracy(classifier, stopped, y) <= accuracy(classifier, full, y) < 0.5


def test_success_is_logged(robust: PyTorchClassifier, x: Any, y: Any, caplog: Any) -> None:
    with caplog.at_level(logging.INFO, logger="art_logits.plugins.art.evasion"):
        adv = TemperaturePGD(robust, **QUICK).generate(x, y)
    assert f"Success rate of attack: {100 * (1 - accuracy(robust, adv, y)):.2f}%" in caplog.text


# ---- parameters ---------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"norm": 0}, ValueError, r"norm must be np\.inf, \"inf\", 1 or 2 \(no other p is supported\), got 0"),
    ({"norm": 3}, ValueError, "no other p is supported"),
    ({"norm": [2]}, ValueError, "norm must be"),
    ({"eps": "1"}, TypeError, "eps and eps_step must be numbers or numpy arrays, got str and float"),
    ({"eps": [0.1, 0.2]}, TypeError, "must be numbers or numpy arrays, got list and float"),
    ({"eps": -1}, ValueError, "eps must be a finite number >= 0"),
    ({"eps": np.array([-1.0]), "eps_step": np.array([1.0])}, ValueError, "eps must be finite and >= 0"),
    ({"eps": np.array([1.0])}, TypeError, "must be both numbers or both arrays"),
    ({"eps_step": np.array([-1.0])}, TypeError, "must be both numbers or both arrays"),
    ({"eps_step": -1}, ValueError, "eps_step must be a finite number > 0"),
    ({"eps_step": 0}, ValueError, "eps_step must be a finite number > 0"),
    (
        {"eps": np.ones(3), "eps_step": np.array([1, 0, 1])},
        ValueError,
        "eps_step must be > 0 in every element",
    ),
    ({"eps": np.ones(2), "eps_step": np.ones(1)}, ValueError, "eps and eps_step must have the same shape"),
    ({"targeted": "False"}, ValueError, "targeted must be True or False"),
    ({"verbose": "False"}, ValueError, "verbose must be True or False"),
    ({"random_eps": 1}, ValueError, "random_eps must be True or False"),
    ({"stop_on_success": None}, ValueError, "stop_on_success must be True or False"),
    ({"num_random_init": "1"}, TypeError, "num_random_init must be an integer"),
    ({"num_random_init": 1.0}, TypeError, "num_random_init must be an integer"),
    ({"num_random_init": -1}, ValueError, "num_random_init must be at least 0"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ({"batch_size": -1}, ValueError, "batch_size must be at least 1"),
    ({"max_iter": -1}, ValueError, "max_iter must be at least 0"),
    ({"decay": -0.1}, ValueError, "decay must be a finite number >= 0"),
    ({"summary_writer": 3}, ValueError, "summary_writer must be a bool, a folder or a SummaryWriter"),
    ({"summary_writer": True, "num_random_init": 2}, ValueError, "summary_writer does not work with"),
    ({"temperature": 0}, ValueError, "temperature must be a finite number > 0"),
    ({"temperature": [1.0, 2.0]}, ValueError, "temperature, as a schedule"),
    ({"loss": "ce"}, ValueError, "loss must be one of"),
    ({"keep": "all"}, ValueError, "keep must be one of best, last"),
    ({"seed": -1}, ValueError, "seed must be at least 0"),
    ({"seed": 0.5}, TypeError, "seed must be an integer"),
]


@pytest.mark.parametrize(("parameters", "error", "message"), REFUSED)
def test_refused_parameters(
    parameters: Any, error: type[Exception], message: str, reference: PyTorchClassifier
) -> None:
    with pytest.raises(error, match=message):
        TemperaturePGD(reference, **parameters)
    attack = TemperaturePGD(reference, eps=0.25)
    before = repr(attack)
    with pytest.raises(error, match=message):
        attack.set_params(**{"max_iter": 7, **parameters})
    assert repr(attack) == before


def test_set_params_refuses_unknown_names_and_names_the_nearest(reference: PyTorchClassifier) -> None:
    attack = TemperaturePGD(reference)
    with pytest.raises(ValueError, match=r'"esp" cannot be set for this attack \(did you mean eps'):
        attack.set_params(verbose=False, esp=0.1)
    assert attack.verbose is True


def test_parameters_set_by_hand_are_checked_before_work(reference: PyTorchClassifier, x: Any) -> None:
    attack = TemperaturePGD(reference, **QUICK)
    attack.eps_step = 0
    with pytest.raises(ValueError, match="eps_step must be a finite number > 0"):
        attack.generate(x)


def test_set_params_takes_effect(robust: PyTorchClassifier, x: Any, y: Any) -> None:
    attack = TemperaturePGD(robust, **QUICK)
    assert attack.targeted is False
    options = {
        "eps": np.full(x.shape, 0.05),
        "eps_step": np.full(x.shape, 0.02),
        "targeted": True,
        "decay": 0.5,
    }
    attack.set_params(**options)
    assert attack.targeted is True
    expected = TemperaturePGD(robust, **{**QUICK, **options}).generate(x, y)
    assert np.array_equal(attack.generate(x, y), expected)


def test_numpy_scalars_are_numbers(robust: PyTorchClassifier, x: Any, y: Any) -> None:
    attack = TemperaturePGD(robust, **QUICK)
    scalars = {"eps": np.float64(0.1), "eps_step": np.float64(0.03), "max_iter": np.int64(5)}
    assert np.array_equal(
        attack.generate(x, y), TemperaturePGD(robust, **{**QUICK, **scalars}).generate(x, y)
    )
    half = TemperaturePGD(robust, **{**QUICK, "eps": np.float32(0.0625)})
    assert distances(half.generate(x, y), x).max() == pytest.approx(0.0625, abs=1e-6)


def test_copies_and_pickles_attack_alike(x: Any, y: Any) -> None:
    attack = TemperaturePGD(wrap(Linear64()), **QUICK, loss="margin", seed=3)
    parameters = {
        name: getattr(attack, name) for name in TemperaturePGD.attack_params if name != "summary_writer"
    }
    assert pickle.loads(pickle.dumps(parameters)) == parameters
    assert np.array_equal(copy.deepcopy(attack).generate(x, y), attack.generate(x, y))


# ---- estimators by type -------------------------------------------------------------------------------


def test_what_is_no_estimator_with_loss_gradients_is_refused_as_art_does() -> None:
    with pytest.raises(EstimatorError) as caught:
        TemperaturePGD(object())
    assert list(caught.value.class_expected_list) == list(TemperaturePGD._estimator_requirements)
    with pytest.raises(EstimatorError):
        TemperaturePGD(BlackBoxClassifier(lambda x: np.eye(2)[:1], (1,), 2))


# ---- the network comes back as it was -----------------------------------------------------------------


def state(net: nn.Module) -> Any:
    return (
        [module.training for module in net.modules()],
        [weight.requires_grad for weight in net.parameters()],
        [None if weight.grad is None else weight.grad.clone() for weight in net.parameters()],
        [value.clone() for value in net.state_dict().values()],
        [len(module._forward_hooks) for module in net.modules()],
    )


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return all(map(same, a, b)) if isinstance(a, list | tuple) else bool(a == b)


@pytest.fixture
def touchy(x: Any, y: Any) -> nn.Module:
    """In training mode but for a frozen norm, one weight fixed, gradients present, a hook."""
    net = load_model("digits-at").train()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    norms[0].eval()
    nn.functional.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(y)).backward()
    norms[1].weight.requires_grad_(False)
    norms[1].register_forward_hook(lambda *arguments: None)
    return net


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("preprocessing", ["mean and std", "numpy"])
def test_the_network_comes_back_as_it_was(
    labelled: bool, preprocessing: str, touchy: nn.Module, x: Any, y: Any
) -> None:
    classifier = wrap(touchy, **preprocessings()[preprocessing]())
    before = state(classifier._model)
    TemperaturePGD(classifier, **QUICK, num_random_init=2).generate(x, y if labelled else None)
    assert same(state(classifier._model), before)


def test_the_network_comes_back_as_it_was_after_an_error(touchy: nn.Module, x: Any) -> None:
    classifier = wrap(touchy)
    before = state(classifier._model)

    def fails(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no loss today")

    with pytest.raises(RuntimeError, match="no loss today"):
        TemperaturePGD(classifier, **QUICK, loss=fails).generate(x)
    assert same(state(classifier._model), before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_switched_off(
    mode: Any, robust: PyTorchClassifier, x: Any, y: Any
) -> None:
    attack = TemperaturePGD(robust, **QUICK)
    expected = attack.generate(x, y)
    with mode():
        assert np.array_equal(attack.generate(x, y), expected)


# ---- wherever ART takes an attack ---------------------------------------------------------------------


def trainable() -> PyTorchClassifier:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    # ART's TRADES trainer reads the accuracy of a bare Sequential from its first layer.
    wrapped = Counting(net)
    return wrap(wrapped, optimizer=torch.optim.Adam(wrapped.parameters(), lr=0.01))


@pytest.mark.parametrize("trainer", ["madry", "trades"])
def test_adversarial_training(trainer: str, x: Any, y: Any) -> None:
    classifier = trainable()
    attack = TemperaturePGD(classifier, **QUICK, num_random_init=1, seed=0)
    before = accuracy(classifier, attack.generate(x, y), y)
    np.random.seed(0)  # noqa: NPY002
    hot = to_categorical(y, 10)
    if trainer == "madry":
        AdversarialTrainer(classifier, attacks=attack, ratio=1.0).fit(x, hot, batch_size=16, nb_epochs=15)
    else:
        AdversarialTrainerTRADESPyTorch(classifier, attack, beta=1.0).fit(x, hot, batch_size=16, nb_epochs=15)
    assert before < 0.3
    assert accuracy(classifier, attack.generate(x, y), y) > before + 0.3


@pytest.fixture
def _multiprocess(monkeypatch: pytest.MonkeyPatch) -> None:
    """ART's AutoAttack imports this package, which ART does not install, also where it does not use it."""
    monkeypatch.setitem(sys.modules, "multiprocess", multiprocessing)


@pytest.mark.usefixtures("_multiprocess")
@pytest.mark.parametrize("targeted", [False, True])
def test_in_art_s_auto_attack(targeted: bool, robust: PyTorchClassifier, x: Any, y: Any) -> None:
    ours = TemperaturePGD(robust, **QUICK, seed=0)
    ensemble = AutoAttack(robust, eps=0.1, attacks=[ours], targeted=targeted)
    adv = ensemble.generate(x, y)
    assert distances(adv, x).max() <= 0.1 + 1e-6
    assert accuracy(robust, adv, y) <= accuracy(
        robust, ours.set_params(targeted=False) or ours.generate(x, y), y
    )
    assert (ensemble.best_attacks == 0).any()


@pytest.mark.usefixtures("_multiprocess")
def test_art_s_auto_attack_finds_what_the_attack_finds_alone(x: Any) -> None:
    classifier = wrap(Linear64())
    attack = TemperaturePGD(classifier, **QUICK, num_random_init=1, seed=0)
    y = np.where(np.arange(len(x)) % 8, classifier.predict(x).argmax(axis=1), 0)  # some wrong from the start
    alone = attack.generate(x, y)
    within = AutoAttack(classifier, eps=0.1, attacks=[attack]).generate(x, y)
    clean, broken = (classifier.predict(images).argmax(axis=1) for images in (x, alone))
    hit = (clean == y) & (broken != y)
    assert hit.any()
    assert (clean != y).any()
    assert np.array_equal(within[hit], alone[hit])  # attacked in a smaller batch


def test_in_art_s_adversarial_accuracy(robust: PyTorchClassifier, x: Any) -> None:
    attack = TemperaturePGD(robust, **QUICK)
    predicted = robust.predict(x).argmax(axis=1)
    adv = attack.generate(x, predicted)
    assert adversarial_accuracy(robust, x, attack_crafter=attack) == accuracy(robust, adv, predicted)


# ---- TensorBoard and the progress bar -----------------------------------------------------------------


class Board:
    """Stands for a tensorboardX writer: keeps what it is given."""

    def __init__(self, logdir: str | None = None, comment: str = "") -> None:
        self.logdir, self.comment, self.flushed = logdir, comment, 0
        self.scalars: list[tuple[str, dict[str, float], int]] = []

    def add_scalars(self, tag: str, values: dict[str, float], global_step: int) -> None:
        self.scalars.append((tag, values, global_step))

    def flush(self) -> None:
        self.flushed += 1


@pytest.fixture
def _tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tensorboardX")
    module.SummaryWriter = Board  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorboardX", module)


@pytest.mark.usefixtures("_tensorboard")
@pytest.mark.parametrize("stop_on_success", [False, True])
def test_the_summary_writer_sees_every_step_of_every_batch(stop_on_success: bool, x: Any, y: Any) -> None:
    classifier = wrap(load_model("digits-standard"))
    writer = SummaryWriterDefault("runs", ind_1=True, ind_2=True, ind_3=True)
    board = writer.summary_writer
    options = {**QUICK, "max_iter": 3, "num_random_init": 1, "seed": 0, "stop_on_success": stop_on_success}
    attack = TemperaturePGD(classifier, **options, batch_size=32, summary_writer=writer)
    assert attack.summary_writer is writer
    adv = attack.generate(x, y)
    assert board.flushed == 1
    losses = {(tag, step): values for tag, values, step in board.scalars if tag.startswith("loss/")}
    assert set(losses) == {(f"loss/total/batch-{b}", t) for b in range(3) for t in range(3)}
    assert [len(losses[f"loss/total/batch-{b}", 2]) for b in range(3)] == [32, 32, 16]
    gradients = [values for tag, values, _ in board.scalars if tag == "gradients/norm-L2/batch-0"]
    assert len(gradients) == 3
    assert all(value > 0 for value in gradients[0].values())
    first = TemperaturePGD(classifier, **options).generate(x, y)
    assert np.array_equal(adv, first)


@pytest.mark.usefixtures("_tensorboard")
def test_the_losses_in_the_log_are_those_of_the_points(reference: PyTorchClassifier, x: Any, y: Any) -> None:
    writer = SummaryWriterDefault(True)
    board = writer.summary_writer
    TemperaturePGD(reference, **{**QUICK, "max_iter": 2}, summary_writer=writer).generate(x[:4], y[:4])
    logged = [list(values.values()) for tag, values, _ in board.scalars if tag.startswith("loss/total")]
    assert logged[0] == pytest.approx(reference.compute_loss(x[:4], to_categorical(y[:4], 10)).tolist())
    assert np.mean(logged[1]) > np.mean(logged[0])


@pytest.mark.usefixtures("_tensorboard")
@pytest.mark.parametrize("targeted", [False, True])
def test_the_writer_is_told_the_goals_and_whether_they_are_targets(
    targeted: bool, reference: PyTorchClassifier, x: Any, y: Any
) -> None:
    told = []

    class Spy(SummaryWriterDefault):  # type: ignore[misc]
        def update(self, *args: Any, **kwargs: Any) -> None:
            told.append((kwargs["targeted"], kwargs["y"].argmax(axis=1).tolist()))

    options = {**QUICK, "max_iter": 2, "targeted": targeted}
    TemperaturePGD(reference, **options, summary_writer=Spy(True)).generate(x[:4], y[:4])
    assert told == [(targeted, y[:4].tolist())] * 2


@pytest.mark.usefixtures("_tensorboard")
def test_the_summary_writer_by_name_and_afterwards(robust: PyTorchClassifier) -> None:
    attack = TemperaturePGD(robust, summary_writer="somewhere")
    assert attack.summary_writer.summary_writer.logdir == "somewhere/generate-0"
    attack.set_params(verbose=False)
    assert attack.summary_writer.summary_writer.logdir == "somewhere/generate-0"
    attack.set_params(summary_writer=False)
    assert attack.summary_writer is None
    attack.set_params(summary_writer=True)
    assert attack.summary_writer.summary_writer.comment == "-generate-0"
    with pytest.raises(ValueError, match="summary_writer does not work with num_random_init > 1"):
        attack.set_params(num_random_init=2)


def test_the_progress_bar_shows_where_asked(robust: PyTorchClassifier, x: Any, y: Any, capsys: Any) -> None:
    attack = TemperaturePGD(robust, **{**QUICK, "verbose": True}, num_random_init=2)
    attack.generate(x, y)
    assert f"/{len(x) * 5 * 2}" in capsys.readouterr().err
    attack.set_params(verbose=False)
    attack.generate(x, y)
    assert capsys.readouterr().err == ""


# ---- precision ----------------------------------------------------------------------------------------


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["art_logits.prepare"], "_WORTHWHILE", 0)


def test_float32_is_the_network_s_own(large: None, robust: PyTorchClassifier, x: Any, y: Any) -> None:
    from art_logits import pgd

    found = TemperaturePGD(robust, **QUICK).generate(x, y)
    options: dict[str, Any] = {"eps": 0.1, "step_size": 0.03, "steps": 5, "random_start": False}
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    plain = pgd(
        robust.model, inputs, labels, **options, stop_on_success=False, precision="float32", fuse=False
    )
    assert np.array_equal(found, plain.adv_inputs.numpy())


@pytest.mark.parametrize("preprocessing", [None, (0.1, 1.1)])
def test_bfloat16_is_as_strong(large: None, preprocessing: Any, x: Any, y: Any) -> None:
    classifier = wrap(load_model("digits-at"), preprocessing=preprocessing)
    options = {**QUICK, "eps": 0.2, "eps_step": 0.05, "max_iter": 10}
    found = [
        TemperaturePGD(classifier, **options, precision=precision).generate(x, y)
        for precision in ("float32", "bfloat16")
    ]
    assert not np.array_equal(*found)
    plain, half = (accuracy(classifier, adv, y) for adv in found)
    assert 0.3 < plain < 0.95
    assert half <= plain + 1 / len(x)


def test_unknown_precisions(robust: PyTorchClassifier) -> None:
    attack = TemperaturePGD(robust, verbose=False)
    with pytest.raises(ValueError, match="precision must be one of auto, float32, bfloat16, got 'half'"):
        attack.set_params(precision="half")
    assert attack.precision == "float32"
