"""Which classifiers of ART can be attacked, and that their gradients are those of what is attacked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("art")
pytest.importorskip("sklearn")

from art.attacks.evasion import ProjectedGradientDescent
from art.defences.postprocessor import Rounded
from art.estimators.certification.randomized_smoothing import (
    NumpyRandomizedSmoothing,
    PyTorchRandomizedSmoothing,
)
from art.estimators.classification import (
    DetectorClassifier,
    EnsembleClassifier,
    GPyGaussianProcessClassifier,
    KerasClassifier,
    PyTorchClassifier,
    QueryEfficientGradientEstimationClassifier,
    SklearnClassifier,
    TensorFlowV2Classifier,
)
from sklearn.datasets import load_digits, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC, LinearSVC

from art_logits.plugins.art import TemperaturePGD
from art_logits.plugins.art.estimators import (
    LOG_PROBABILITIES,
    LOGITS,
    PROBABILITIES,
    ClassGradientLogits,
    Quantities,
    TorchLogits,
    check,
    is_torch,
    logits_of,
    quantities,
)

QUICK = {"eps": 0.2, "eps_step": 0.05, "max_iter": 10, "verbose": False}


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Any]:
    data = load_digits()
    return data.data / 16, data.target


@pytest.fixture(scope="module")
def iris() -> tuple[Any, Any]:
    x, y = load_iris(return_X_y=True)
    return (x - x.min(axis=0)) / (x.max(axis=0) - x.min(axis=0)), y


def logistic(x: Any, y: Any, *, use_logits: bool = False, **options: Any) -> Any:
    classifier = SklearnClassifier(LogisticRegression(max_iter=200), clip_values=(0, 1), **options)
    classifier.fit(x, np.eye(int(y.max()) + 1)[y])
    classifier.set_params(use_logits=use_logits)
    return classifier


@pytest.fixture(scope="module", params=["10 classes", "2 classes", "preprocessing", "log-probabilities"])
def regression(request: Any, digits: tuple[Any, Any]) -> tuple[Any, Any, Any]:
    x, y = digits
    if request.param == "2 classes":
        x, y = x[y < 2], y[y < 2]
    mean = x.mean(axis=0)
    options: dict[str, Any] = {
        "preprocessing": {"preprocessing": (mean, np.full_like(mean, 0.4))},
        "log-probabilities": {"use_logits": True},
    }.get(request.param, {})
    return logistic(x, y, **options), x, y


def numeric(function: Any, x: Any, step: float = 3e-3) -> Any:
    """Central differences of ``function (N, D) -> (N, C)``: ``(N, C, D)``.

    Coarse, because ART's default preprocessing casts to float32.
    """
    slopes = []
    for i in range(x.shape[1]):
        shift = np.zeros(x.shape[1])
        shift[i] = step
        slopes.append((function(x + shift) - function(x - shift)) / (2 * step))
    return np.stack(slopes, axis=-1)


def net(seed: int = 0, *, classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, classes))


def wrap(model: nn.Module, kind: type = PyTorchClassifier, **options: Any) -> Any:
    given = {"input_shape": (64,), "nb_classes": 10, "clip_values": (0.0, 1.0), **options}
    return kind(model, nn.CrossEntropyLoss(), **given)


# ---- the table, by finite differences -----------------------------------------------------------------


def test_logistic_regression_s_class_gradient_is_of_what_the_table_says(regression: Any) -> None:
    classifier, x, _ = regression
    kind = quantities(classifier)
    points = x[::150]

    def probabilities(z: Any) -> Any:
        p = classifier.predict(z)
        return np.exp(p) if kind.predicted == LOG_PROBABILITIES else p

    assert probabilities(points).sum(axis=1) == pytest.approx(np.ones(len(points)))
    of_p = numeric(probabilities, points)
    of_log_p = numeric(lambda z: np.log(probabilities(z)), points)
    right, wrong = (of_p, of_log_p) if kind.differentiated == PROBABILITIES else (of_log_p, of_p)
    given = classifier.class_gradient(points)
    np.testing.assert_allclose(given, right, atol=2e-3)
    assert np.abs(given - wrong).max() > 1e-2
    assert kind.differentiated == (PROBABILITIES if classifier.nb_classes == 2 else LOG_PROBABILITIES)


def check_gradient(classifier: Any, points: Any, tolerance: float, step: float) -> None:
    """The gradient of a weighted sum of the logits, against differences of the logits themselves."""
    model, _ = logits_of(classifier)
    x = torch.from_numpy(points).requires_grad_()
    logits = model(x)
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=logits.shape)).to(logits)
    (grad,) = torch.autograd.grad((weights * logits).sum(), x)
    assert grad.dtype == x.dtype
    slopes = numeric(lambda z: model(torch.from_numpy(z).to(x)).detach().numpy(), points, step)
    expected = np.einsum("nc,ncd->nd", weights.numpy(), slopes)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(grad.numpy(), expected, atol=tolerance)


def test_gradients_of_logistic_regression_s_logits(regression: Any) -> None:
    classifier, x, _ = regression
    check_gradient(classifier, x[::150], 5e-3, 3e-3)
    logits = logits_of(classifier)[0](torch.from_numpy(x[:5]))
    p = classifier.predict(x[:5])
    expected = np.exp(p) if classifier.use_logits else p
    np.testing.assert_allclose(logits.softmax(dim=1).numpy(), expected, rtol=1e-4)


def test_gradients_of_an_ensemble_s_logits(digits: tuple[Any, Any]) -> None:
    members = [wrap(net(seed)) for seed in range(2)]
    ensemble = EnsembleClassifier(
        members, classifier_weights=[0.3, 0.7], clip_values=(0, 1), channels_first=True
    )
    assert quantities(ensemble) == Quantities(LOGITS, LOGITS)
    x = digits[0][:6].astype(np.float32)
    check_gradient(ensemble, x, 2e-3, 1e-2)
    expected = 0.3 * members[0].predict(x) + 0.7 * members[1].predict(x)
    np.testing.assert_allclose(logits_of(ensemble)[0](torch.from_numpy(x)).numpy(), expected, rtol=1e-5)


def test_gradients_of_a_torch_classifier_s_logits(digits: tuple[Any, Any]) -> None:
    classifier = wrap(net(), preprocessing=(0.3, 0.4))
    assert is_torch(classifier)
    check_gradient(classifier, digits[0][:6].astype(np.float32), 5e-3, 1e-2)


def test_the_two_ways_agree(digits: tuple[Any, Any]) -> None:
    x, y = digits[0][:40].astype(np.float32), digits[1][:40]
    direct = wrap(net())
    ensemble = EnsembleClassifier([direct], clip_values=(0, 1), channels_first=True)
    assert isinstance(logits_of(ensemble)[0], ClassGradientLogits)
    adv = [TemperaturePGD(one, **QUICK).generate(x, y) for one in (direct, ensemble)]
    assert (np.abs(adv[0] - adv[1]).max(axis=1) < 1e-6).mean() >= 0.95
    assert np.abs(adv[0] - x).max() == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        (KerasClassifier, {"_use_logits": True}, Quantities(LOGITS, LOGITS)),
        (KerasClassifier, {"_use_logits": False}, Quantities(PROBABILITIES, PROBABILITIES)),
        (TensorFlowV2Classifier, {}, Quantities(LOGITS, LOGITS)),
    ],
)
def test_rows_of_the_table_for_hosts_that_are_not_installed(kind: type, options: Any, expected: Any) -> None:
    classifier = object.__new__(kind)
    vars(classifier).update(options)
    assert quantities(classifier) == expected


def test_a_probability_that_underflows_leaves_finite_logits_and_gradients(digits: tuple[Any, Any]) -> None:
    x, y = digits[0][digits[1] < 2], digits[1][digits[1] < 2]
    classifier = logistic(x, y)
    classifier.model.coef_ = classifier.model.coef_ * 1e4
    assert (classifier.predict(x) == 0).any()
    inputs = torch.from_numpy(x).requires_grad_()
    logits = logits_of(classifier)[0](inputs)
    (grad,) = torch.autograd.grad(logits.sum(), inputs)
    assert bool(logits.isfinite().all())
    assert bool(grad.isfinite().all())


# ---- attacks through the table ------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 10])
def test_equal_to_art_s_pgd_on_logistic_regression(classes: int, digits: tuple[Any, Any]) -> None:
    # Without preprocessing and with probabilities, where ART's own loss_gradient is right.
    x, y = digits[0][digits[1] < classes], digits[1][digits[1] < classes]
    classifier = logistic(x, y)
    x, hot = x[:60].astype(np.float32), np.eye(classes)[y[:60]]
    theirs = ProjectedGradientDescent(classifier, **QUICK).generate(x, hot)
    ours = TemperaturePGD(classifier, **QUICK, temperature=1.0, keep="last").generate(x, hot)
    assert (np.abs(theirs - ours).max(axis=1) < 1e-6).mean() >= 0.99
    assert (classifier.predict(theirs).argmax(1) == classifier.predict(ours).argmax(1)).all()
    assert (classifier.predict(ours).argmax(1) != y[:60]).any()


@pytest.mark.parametrize("norm", [np.inf, 2, 1])
def test_every_logistic_regression_is_fooled(norm: Any, regression: Any) -> None:
    classifier, x, y = regression
    x, y = x[:60].astype(np.float32), y[:60]
    eps = {np.inf: 0.3, 2: 2.0, 1: 8.0}[norm]
    attack = TemperaturePGD(classifier, norm=norm, eps=eps, eps_step=eps / 4, max_iter=10, verbose=False)
    adv = attack.generate(x, y)
    accuracies = [(classifier.predict(images).argmax(axis=1) == y).mean() for images in (x, adv)]
    assert accuracies[0] > 0.9
    assert accuracies[1] < 0.5


def test_tabular_data_targeted_and_within_bounds(iris: tuple[Any, Any]) -> None:
    x, y = iris
    classifier = logistic(x, y)
    attack = TemperaturePGD(classifier, eps=1.0, eps_step=0.1, max_iter=20, verbose=False, targeted=True)
    targets = (y + 1) % 3
    adv = attack.generate(x, np.eye(3)[targets])
    assert adv.min() >= 0
    assert adv.max() <= 1
    assert (classifier.predict(adv).argmax(axis=1) == targets).mean() > 0.5


def test_tabular_data_without_bounds_leaves_the_unit_cube(iris: tuple[Any, Any]) -> None:
    x, y = iris
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    options = {"eps": 1.0, "eps_step": 0.2, "max_iter": 5, "verbose": False}
    free = wrap(net, input_shape=(4,), nb_classes=3, clip_values=None)
    adv = TemperaturePGD(free, **options).generate(x, y)
    assert adv.min() < 0
    assert adv.max() > 1
    held = wrap(net, input_shape=(4,), nb_classes=3)
    clipped = TemperaturePGD(held, **options).generate(x, y)
    assert clipped.min() >= 0
    assert clipped.max() <= 1


def test_an_ensemble_s_networks_come_back_as_they_were(digits: tuple[Any, Any]) -> None:
    x = digits[0][:8].astype(np.float32)
    members = [wrap(nn.Sequential(nn.Linear(64, 10), nn.Dropout(0.5))) for _ in range(2)]
    grads = []
    for member in members:
        member.model.train()
        member.model(torch.from_numpy(x)).sum().backward()
        grads.append([weight.grad.clone() for weight in member.model.parameters()])
    ensemble = EnsembleClassifier(members, clip_values=(0, 1), channels_first=True)
    adv = TemperaturePGD(ensemble, **QUICK).generate(x)
    assert np.abs(adv - x).max() > 0.1
    for member, before in zip(members, grads, strict=True):
        assert all(module.training for module in member.model.modules())
        for weight, grad in zip(member.model.parameters(), before, strict=True):
            assert weight.requires_grad
            assert torch.equal(weight.grad, grad)


def test_recurrent_networks(digits: tuple[Any, Any]) -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRU(8, 16, batch_first=True), nn.Linear(16, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.cell(x.view(-1, 8, 8))[0][:, -1])  # type: ignore[no-any-return]

    torch.manual_seed(0)
    classifier = wrap(Rows())
    assert classifier.is_rnn
    x = digits[0][:10].astype(np.float32)
    y = classifier.predict(x).argmax(axis=1)
    adv = TemperaturePGD(classifier, **QUICK).generate(x, y)
    hot = np.eye(10, dtype=np.float32)[y]
    assert (classifier.compute_loss(adv, hot) > classifier.compute_loss(x, hot)).all()


class OneOutput(nn.Module):
    """A binary network; its output is a logit, or a probability, with or without a column of its own."""

    def __init__(self, *, sigmoid: bool, column: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.sigmoid, self.column = nn.Linear(64, 1), sigmoid, column

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.layers(x) if self.column else self.layers(x)[:, 0]
        return z.sigmoid() if self.sigmoid else z


@pytest.mark.parametrize("column", [True, False])
@pytest.mark.parametrize("sigmoid", [True, False])
def test_binary_networks_with_one_output(sigmoid: bool, column: bool, digits: tuple[Any, Any]) -> None:
    loss = nn.BCELoss() if sigmoid else nn.BCEWithLogitsLoss()
    net = OneOutput(sigmoid=sigmoid, column=column)
    classifier = PyTorchClassifier(net, loss, (64,), 2, clip_values=(0.0, 1.0))
    x = digits[0][:100].astype(np.float32)
    z = net.layers(torch.from_numpy(x))[:, 0].detach().numpy()
    own = (z > 0).astype(int)
    assert set(own) == {0, 1}
    attack = TemperaturePGD(classifier, **{**QUICK, "eps": 0.05})
    adv = attack.generate(x)
    assert np.array_equal(adv, attack.generate(x, own[:, None]))
    # The best attack on a linear network in Linf is known: a full step against the sign of its weights.
    signs = np.sign(net.layers.weight[0].detach().numpy()) * np.where(own == 1, -1, 1)[:, None]
    np.testing.assert_allclose(adv, np.clip(x + 0.05 * signs, 0, 1), atol=1e-6)
    logits = logits_of(classifier)[0](torch.from_numpy(x)).detach()
    np.testing.assert_allclose((logits[:, 1] - logits[:, 0]).numpy(), z, atol=1e-5)


def test_one_output_of_another_loss_is_refused(digits: tuple[Any, Any]) -> None:
    classifier = wrap(OneOutput(sigmoid=False), nb_classes=2)
    with pytest.raises(
        ValueError, match=r"model must return logits \(3, C\) with C >= 2, got shape \(3, 1\)"
    ):
        TemperaturePGD(classifier, **QUICK).generate(digits[0][:3], np.array([0, 1, 0]))


# ---- refused, with the reason -------------------------------------------------------------------------


class OtherGradients(PyTorchClassifier):  # type: ignore[misc]
    def loss_gradient(self, *arguments: Any, **keywords: Any) -> Any:
        return super().loss_gradient(*arguments, **keywords)


class OtherFit(PyTorchClassifier):  # type: ignore[misc]
    def fit(self, *arguments: Any, **keywords: Any) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("model", [SVC(), LinearSVC()])
def test_support_vector_machines_are_refused(model: Any, iris: tuple[Any, Any]) -> None:
    classifier = SklearnClassifier(model, clip_values=(0, 1))
    classifier.fit(iris[0], np.eye(3)[iris[1]])
    with pytest.raises(
        TypeError, match="type ScikitlearnSVC can't be attacked: its predict returns votes or"
    ):
        TemperaturePGD(classifier)


def test_randomized_smoothing_is_refused(digits: tuple[Any, Any]) -> None:
    smoothed = wrap(net(), PyTorchRandomizedSmoothing, sample_size=4)
    with pytest.raises(TypeError, match="can't be attacked: its predict counts votes under noise"):
        TemperaturePGD(smoothed)
    with pytest.raises(TypeError, match="its predict counts votes under noise"):
        TemperaturePGD(NumpyRandomizedSmoothing(wrap(net()), sample_size=4))
    TemperaturePGD(wrap(net()), **QUICK).generate(digits[0][:2])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (GPyGaussianProcessClassifier, "its class_gradient is not a gradient"),
        (QueryEfficientGradientEstimationClassifier, "it has no class_gradient"),
        (DetectorClassifier, "it has no loss_gradient"),
    ],
)
def test_classifiers_without_usable_gradients_are_refused(kind: type, reason: str) -> None:
    with pytest.raises(TypeError, match=f"type {kind.__name__} can't be attacked: {reason}"):
        check(object.__new__(kind))


def test_what_overrides_a_gradient_is_unknown_and_refused() -> None:
    with pytest.raises(
        TypeError, match="type OtherGradients can't be attacked: it is not known which quantity"
    ):
        TemperaturePGD(wrap(net(), OtherGradients))
    assert is_torch(wrap(net(), OtherFit))


def test_one_versus_rest_is_refused(iris: tuple[Any, Any]) -> None:
    classifier = logistic(*iris)
    classifier.model.solver = "liblinear"
    with pytest.raises(TypeError, match="one-versus-rest LogisticRegression"):
        TemperaturePGD(classifier)
    classifier.model.solver, classifier.model.multi_class = "lbfgs", "ovr"
    with pytest.raises(TypeError, match="one-versus-rest LogisticRegression"):
        TemperaturePGD(classifier)
    two = logistic(iris[0][:100], iris[1][:100])
    two.model.solver = "liblinear"
    assert quantities(two).differentiated == PROBABILITIES


def test_a_model_that_is_fitted_later_is_judged_then(iris: tuple[Any, Any]) -> None:
    classifier = SklearnClassifier(LogisticRegression(), clip_values=(0, 1))
    attack = TemperaturePGD(classifier, **QUICK)
    classifier.fit(iris[0], np.eye(3)[iris[1]])
    assert np.abs(attack.generate(iris[0]) - iris[0]).max() == pytest.approx(0.2, abs=1e-6)


def test_postprocessing_hides_the_class_gradients(iris: tuple[Any, Any]) -> None:
    classifier = logistic(*iris, postprocessing_defences=Rounded(decimals=1))
    with pytest.raises(ValueError, match="ScikitlearnLogisticRegression has postprocessing_defences"):
        TemperaturePGD(classifier)
    member = wrap(net(), postprocessing_defences=Rounded(decimals=1))
    with pytest.raises(ValueError, match="PyTorchClassifier has postprocessing_defences"):
        TemperaturePGD(EnsembleClassifier([member], clip_values=(0, 1), channels_first=True))


def test_an_ensemble_of_unknown_things_is_refused() -> None:
    ensemble = EnsembleClassifier([wrap(net(), OtherGradients)], clip_values=(0, 1), channels_first=True)
    with pytest.raises(TypeError, match="type OtherGradients can't be attacked"):
        TemperaturePGD(ensemble)
    keras = object.__new__(KerasClassifier)
    vars(keras).update(_use_logits=False, postprocessing_defences=None, nb_classes=10)
    ensemble._classifiers = [keras]
    with pytest.raises(TypeError, match="with a member that does not return logits, KerasClassifier"):
        TemperaturePGD(ensemble)


@pytest.mark.parametrize("preprocessing", [(0.0, 1.0), (0.5, 1.0), (np.zeros((1, 1, 1)), np.ones((1, 1, 1)))])
def test_only_training_goes_without_a_preprocessing_that_changes_nothing(preprocessing: Any) -> None:
    """Elsewhere the network gets a copy: its first layer may work in place."""
    seen = []

    class Seen(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            seen.append(inputs)
            return inputs.flatten(1)

    classifier = PyTorchClassifier(Seen(), nn.CrossEntropyLoss(), (1, 2, 2), 4, preprocessing=preprocessing)
    logits, inputs = TorchLogits(classifier), torch.rand(3, 1, 2, 2)
    logits.train()(inputs)
    logits.eval()(inputs)
    logits.train()(inputs.clone().requires_grad_())
    nothing = float(np.sum(preprocessing[0])) == 0
    assert [other is inputs for other in seen] == [nothing, False, False]
    for other in seen:
        torch.testing.assert_close(other, inputs if nothing else inputs - 0.5)
