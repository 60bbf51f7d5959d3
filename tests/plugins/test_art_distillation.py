"""The ART trainer: the contract of ART's trainers, and that it is the core's distillation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

pytest.importorskip("art")

from art.data_generators import DataGenerator, NumpyDataGenerator, PyTorchDataGenerator
from art.defences.preprocessor import FeatureSqueezing, SpatialSmoothing
from art.defences.trainer import Trainer
from art.estimators.classification import BlackBoxClassifier, PyTorchClassifier
from art.estimators.classification.scikitlearn import ScikitlearnLogisticRegression
from art.utils import to_categorical
from sklearn.linear_model import LogisticRegression

from art_logits import TemperaturePGD
from art_logits.data import load_data
from art_logits.models import load_model
from art_logits.plugins.art import DistillationTrainer
from art_logits.plugins.art import TemperaturePGD as HostAttack
from art_logits.transforms import FlattenIncorrect, OrderIncorrect, PermuteConfidences

ATTACK = TemperaturePGD(eps=0.1, steps=2, step_size=0.07, temperature=1.0)


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Any]:
    x, y = next(load_data("digits", split="train").batches(100))
    return x.numpy(), y.numpy()


@pytest.fixture
def x(digits: tuple[Any, Any]) -> Any:
    return digits[0].copy()


@pytest.fixture
def y(digits: tuple[Any, Any]) -> Any:
    return digits[1].copy()


def small(seed: int = 0, *, classes: int = 10) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, classes)
        )


def wrap(net: nn.Module, *, lr: float | None = 0.2, **options: Any) -> PyTorchClassifier:
    optimizer = None if lr is None else torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    given = {"input_shape": (1, 8, 8), "nb_classes": 10, "clip_values": (0.0, 1.0), "optimizer": optimizer}
    return PyTorchClassifier(net, nn.CrossEntropyLoss(), **{**given, **options})


def weights(classifier: PyTorchClassifier) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in classifier.model.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], atol: float = 0.0) -> None:
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=atol)


def accuracy(trainer: DistillationTrainer, x: Any, y: Any) -> float:
    return float((trainer.predict(x).argmax(axis=1) == y).mean())


def trained(x: Any, y: Any, teacher: Any = None, *, fit: Any = None, **options: Any) -> DistillationTrainer:
    teacher = load_model("digits-at") if teacher is None else teacher
    trainer = DistillationTrainer(wrap(small()), teacher, **options)
    trainer.fit(x, y, **{"nb_epochs": 2, "batch_size": 32, "seed": 0, **(fit or {})})
    return trainer


# ART's own trainer tests ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "labels"),
    [("kd", "one-hot"), ("ard", "column"), ("rslad", "index"), ("iad", "one-hot"), ("adaad", "index")],
)
def test_fit_and_predict(objective: str, labels: str, x: Any, y: Any) -> None:
    formats = {"index": y, "column": y[:, None], "one-hot": to_categorical(y, 10)}
    original, given = x.copy(), formats[labels].copy()
    attack = None if objective == "kd" else ATTACK
    classifier = wrap(small(), lr=0.2 if objective != "ard" else 0.005)
    trainer = DistillationTrainer(classifier, wrap(load_model("digits-at")), objective, attack=attack)
    before = accuracy(trainer, x, y)
    trainer.fit(x, formats[labels], nb_epochs=5, batch_size=20, seed=0)
    after = accuracy(trainer, x, y)
    assert before < 0.3
    assert after > before + 0.3
    np.testing.assert_array_equal(x, original)
    np.testing.assert_array_equal(formats[labels], given)
    assert not any(module.training for module in classifier.model.modules())
    trainer.fit(x, formats[labels], nb_epochs=1, validation_data=(x, formats[labels]))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_fit_generator_and_predict(kind: str, x: Any, y: Any) -> None:
    if kind == "numpy":
        generator: Any = NumpyDataGenerator(x, to_categorical(y, 10), batch_size=16, drop_remainder=False)
    else:
        dataset = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
        loader = torch.utils.data.DataLoader(dataset, batch_size=16)
        generator = PyTorchDataGenerator(loader, size=len(x), batch_size=16)
    original = x.copy()
    trainer = DistillationTrainer(wrap(small()), load_model("digits-at"), "rslad", attack=ATTACK)
    before = accuracy(trainer, x, y)
    trainer.fit_generator(generator, nb_epochs=6, validation_data=(x, y))
    assert accuracy(trainer, x, y) > before + 0.3
    np.testing.assert_array_equal(x, original)
    assert trainer.history is not None
    row = trainer.history.rows[-1]
    assert row["clean_accuracy"] == pytest.approx(accuracy(trainer, x, y))
    assert row["worst_class_accuracy"] <= row["robust_accuracy"] <= row["clean_accuracy"]


def test_the_classifier_is_the_one_given(x: Any, y: Any) -> None:
    classifier = wrap(small())
    trainer = DistillationTrainer(classifier, load_model("digits-at"))
    assert isinstance(trainer, Trainer)
    assert trainer.classifier is classifier
    assert trainer.get_classifier() is classifier
    np.testing.assert_array_equal(trainer.predict(x, batch_size=7), classifier.predict(x, batch_size=7))
    assert trainer.history is None


def test_validation_without_an_attack_is_clean(x: Any, y: Any) -> None:
    trainer = trained(x, y, fit={"validation_data": (x, y)})
    assert trainer.history is not None
    assert "clean_accuracy" in trainer.history.rows[0]
    assert "robust_accuracy" not in trainer.history.rows[0]


# It is the distillation of the core -------------------------------------------------------------------


def test_kd_at_temperature_one_equals_a_hand_written_loop(x: Any, y: Any) -> None:
    """The trainer tells the order of its batches by what its student sees."""

    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.inputs = small(), list[torch.Tensor]()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.inputs.append(x.detach().clone())
            return self.net(x)  # type: ignore[no-any-return]

    student, source = Seen(), load_model("digits-at")
    DistillationTrainer(wrap(student), source).fit(x, y, nb_epochs=3, batch_size=32, seed=0)
    net = small().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    for inputs in student.inputs:
        with torch.no_grad():
            goal = source(inputs).softmax(dim=1)
        loss = F.kl_div(net(inputs).log_softmax(dim=1), goal, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert len(student.inputs) == 3 * 4
    assert_same(student.net.state_dict(), net.state_dict(), atol=1e-5)


def test_teachers_of_every_kind_teach_the_same(x: Any, y: Any) -> None:
    net = load_model("digits-at")
    with torch.no_grad():
        logits = net(torch.from_numpy(x))
    told = weights(trained(x, y, net).classifier)
    for teacher in (wrap(net), wrap(net, lr=None), logits, logits.numpy()):
        assert_same(told, weights(trained(x, y, teacher).classifier), atol=1e-6)


def test_a_teacher_of_another_framework(x: Any, y: Any) -> None:
    model = LogisticRegression(max_iter=200).fit(x.reshape(len(x), -1), y)
    teacher = ScikitlearnLogisticRegression(model, clip_values=(0.0, 1.0))

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)  # type: ignore[no-any-return]

    flat = x.reshape(len(x), -1)
    trainer = DistillationTrainer(wrap(Flat(), input_shape=(64,)), teacher)
    trainer.fit(flat, y, nb_epochs=10, batch_size=20, seed=0)
    assert accuracy(trainer, flat, y) > 0.8
    with pytest.raises(TypeError, match="BlackBoxClassifier can't be attacked"):
        DistillationTrainer(wrap(small()), BlackBoxClassifier(lambda x: x, (1, 8, 8), 10)).fit(x, y)


def test_student_and_teacher_see_inputs_behind_their_preprocessing(x: Any, y: Any) -> None:
    """Shifted and stretched inputs, undone by preprocessing of torch or of numpy, train the same student."""
    plain = weights(trained(x, y).classifier)
    options: dict[str, Any] = {"preprocessing": (2.0, 4.0), "clip_values": (2.0, 6.0)}
    shifted = wrap(small(), **options)
    trainer = DistillationTrainer(shifted, wrap(load_model("digits-at"), **options))
    trainer.fit(4 * x + 2, y, nb_epochs=2, batch_size=32, seed=0)
    assert_same(plain, weights(shifted), atol=1e-4)
    for defence in (SpatialSmoothing(window_size=2), FeatureSqueezing((0.0, 1.0), bit_depth=2)):
        squeezed = DistillationTrainer(
            wrap(small(), preprocessing_defences=[defence]), load_model("digits-at")
        )
        squeezed.fit(x, y, nb_epochs=1, seed=0)


def test_transforms_and_class_weights_reach_the_core(x: Any, y: Any) -> None:
    net = load_model("digits-at")
    with torch.no_grad():
        logits = net(torch.from_numpy(x))
    what = PermuteConfidences(seed=2)
    one = trained(x, y, net, transform=what, temperature=2.0)
    other = trained(x, y, what.fit(logits, temperature=2.0).logits, temperature=2.0)
    assert_same(weights(one.classifier), weights(other.classifier), atol=1e-6)
    none = trained(x, y, class_weights=np.zeros(10))
    assert_same(dict(small().named_parameters()), dict(none.classifier.model.named_parameters()))


def test_the_average_is_of_the_network(x: Any, y: Any) -> None:
    averaged = trained(x, y, fit={"ema": 0.5, "validation_data": (x, y)})
    plain = trained(x, y)
    assert averaged.history is not None
    assert averaged.history.rows[-1]["clean_accuracy"] == pytest.approx(accuracy(averaged, x, y))
    start, end = small().state_dict(), weights(plain.classifier)
    between = weights(averaged.classifier)["1.weight"] - start["1.weight"]
    assert 0 < float(between.norm()) < float((end["1.weight"] - start["1.weight"]).norm())


def test_augmentation_and_precision_reach_the_training(x: Any, y: Any) -> None:
    images = {image.tobytes() for image in x}

    class Told(nn.Module):
        """Counts the images of ``x`` among those that it is asked about."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.known, self.all = load_model("digits-at"), 0, 0

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            self.known += sum(image.numpy().tobytes() in images for image in inputs)
            self.all += len(inputs)
            return self.net(inputs)  # type: ignore[no-any-return]

    generator = NumpyDataGenerator(x, y, batch_size=25)
    for augment in ("none", "shift"):
        for fit in ("fit", "fit_generator"):
            teacher = Told()
            trainer = DistillationTrainer(wrap(small()), teacher)
            arguments: dict[str, Any] = {"augment": augment, "nb_epochs": 2, "seed": 0}
            if fit == "fit":
                trainer.fit(x, y, **arguments)
            else:
                trainer.fit_generator(generator, **arguments)
            assert (teacher.known == teacher.all) == (augment == "none")
    with pytest.raises(ValueError, match="augment must be one of none, crop-flip, shift"):
        trainer.fit_generator(generator, augment="flip")
    half, full = (weights(trained(x, y, fit={"precision": p}).classifier) for p in ("bfloat16", "float32"))
    assert 0 < float((half["1.weight"] - full["1.weight"]).abs().max()) < 0.1


def test_seeds(x: Any, y: Any) -> None:
    same = [weights(trained(x, y).classifier) for _ in range(2)]
    assert_same(*same)
    np.random.seed(3)  # noqa: NPY002
    first = weights(trained(x, y, fit={"seed": None}).classifier)
    second = weights(trained(x, y, fit={"seed": None}).classifier)
    np.random.seed(3)  # noqa: NPY002
    third = weights(trained(x, y, fit={"seed": None}).classifier)
    assert_same(first, third)
    assert not torch.equal(first["1.weight"], second["1.weight"])


def test_schedulers(x: Any, y: Any) -> None:
    classifier = wrap(small())
    schedule = torch.optim.lr_scheduler.StepLR(classifier.optimizer, 1, gamma=0.5)
    trainer = DistillationTrainer(classifier, load_model("digits-at"), attack=ATTACK)
    trainer.fit(x, y, nb_epochs=3, scheduler=schedule)
    assert trainer.history is not None
    assert [row["lr"] for row in trainer.history.rows] == pytest.approx([0.2, 0.1, 0.05])
    # Every scheduler of torch has a base class of its own making; one of a user's too.
    optim = torch.optim.lr_scheduler
    for make in (
        lambda o: optim.OneCycleLR(o, 0.1, total_steps=4),
        lambda o: optim.SequentialLR(o, [optim.ConstantLR(o), optim.ExponentialLR(o, 0.9)], [1]),
        lambda o: optim.LambdaLR(o, lambda epoch: 0.5**epoch),
        lambda o: optim.CosineAnnealingWarmRestarts(o, 1),
    ):
        other = wrap(small())
        DistillationTrainer(other, load_model("digits-at")).fit(
            x, y, nb_epochs=2, scheduler=make(other.optimizer)
        )
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(classifier.optimizer, mode="max", patience=0)
    trainer.fit(x, y, nb_epochs=2, scheduler=plateau, validation_data=(x, y))
    assert plateau.best == max(row["robust_accuracy"] for row in trainer.history.rows)


def test_the_progress_bar_is_asked_for(x: Any, y: Any, capfd: pytest.CaptureFixture[str]) -> None:
    trained(x, y)
    assert "epoch" not in capfd.readouterr().err
    trained(x, y, fit={"verbose": True})
    assert "epoch 2/2" in capfd.readouterr().err


# Refusals ---------------------------------------------------------------------------------------------


def test_no_optimizer(x: Any, y: Any) -> None:
    trainer = DistillationTrainer(wrap(small(), lr=None), load_model("digits-at"))
    with pytest.raises(ValueError, match="classifier must have an optimizer to be trained"):
        trainer.fit(x, y)
    with pytest.raises(ValueError, match="classifier must have an optimizer to be trained"):
        trainer.fit_generator(NumpyDataGenerator(x, y, batch_size=10))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"classifier": nn.Linear(1, 1)}, TypeError, "classifier must be a PyTorchClassifier .*, got Linear"),
        ({"objective": "adaad"}, ValueError, "attack must be given for objective 'adaad'"),
        ({"attack": 0.1}, TypeError, "attack must be an art_logits.TemperaturePGD, .* got builtins.float"),
        ({"temperature": -1.0}, ValueError, "temperature must be a finite number > 0, got -1"),
        ({"alpha": 2}, ValueError, r"alpha must lie in \[0, 1\], got 2"),
    ],
)
def test_refused_at_once(options: Any, error: type[Exception], message: str) -> None:
    arguments = {"classifier": wrap(small()), "teacher": load_model("digits-at"), **options}
    with pytest.raises(error, match=message):
        DistillationTrainer(**arguments)


def test_the_host_s_attack_is_no_config() -> None:
    classifier = wrap(small())
    with pytest.raises(
        TypeError, match=r"art_logits\.TemperaturePGD, .* got art_logits\.plugins\.art\.evasion"
    ):
        DistillationTrainer(classifier, load_model("digits-at"), "ard", attack=HostAttack(classifier))
    with pytest.raises(ValueError, match="teacher must be another classifier than the one to train"):
        DistillationTrainer(classifier, classifier)


def test_the_student_s_own_network_cannot_teach_it(x: Any, y: Any) -> None:
    classifier = wrap(small())
    for teacher in (classifier.model, wrap(classifier.model)):
        with pytest.raises(ValueError, match=r"teacher must not share weights .* copy\.deepcopy"):
            DistillationTrainer(classifier, teacher).fit(x, y)


def test_a_defence_in_training_only_is_refused() -> None:
    defence = SpatialSmoothing(apply_fit=True, apply_predict=False)
    with pytest.raises(ValueError, match="preprocessing defence SpatialSmoothing that acts in training only"):
        DistillationTrainer(wrap(small(), preprocessing_defences=[defence]), load_model("digits-at"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"learning_rate": 1}, TypeError, r"fit\(\) got an unexpected keyword argument 'learning_rate'"),
        (
            {"sed": 1},
            TypeError,
            r"unexpected keyword argument 'sed', expected one of .* \(did you mean seed\?\)",
        ),
        (
            {"scheduler": "step"},
            ValueError,
            r"scheduler must be a torch.optim.lr_scheduler.LRScheduler, got str",
        ),
        ({"y": np.arange(100) % 11}, ValueError, r"labels must lie in \[0, 10\)"),
        (
            {"y": np.zeros((100, 9))},
            ValueError,
            r"y must have one column per class, 10, got shape \(100, 9\)",
        ),
        ({"y": np.zeros(99, int)}, ValueError, "x and y must have the same length, got 100 and 99"),
        ({"x": np.full((100, 1, 8, 8), np.nan)}, ValueError, "inputs must not contain NaN"),
        ({"nb_epochs": 0}, ValueError, "nb_epochs must be at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"precision": "auto"}, ValueError, "precision must be one of float32, bfloat16"),
        ({"verbose": 1}, TypeError, "verbose must be True or False, got 1"),
        ({"validation_data": np.zeros((3, 1, 8, 8))}, TypeError, r"validation_data must be a pair \(x, y\)"),
    ],
)
def test_refused_in_fit(options: Any, error: type[Exception], message: str, x: Any, y: Any) -> None:
    trainer = DistillationTrainer(wrap(small()), load_model("digits-at"))
    before = weights(trainer.classifier)
    with pytest.raises(error, match=message):
        trainer.fit(**{"x": x, "y": y, **options})
    assert_same(before, weights(trainer.classifier))


class Broken(DataGenerator):  # type: ignore[misc]
    """A generator that ends, or gives nothing."""

    def __init__(self, size: int | None, batches: list[Any]) -> None:
        super().__init__(None, 10)
        self._size, self.batches = size, iter(batches)

    def get_batch(self) -> Any:
        return next(self.batches)


def test_refused_generators(x: Any, y: Any) -> None:
    trainer = DistillationTrainer(wrap(small()), load_model("digits-at"))
    for size in (None, 0):
        with pytest.raises(
            ValueError, match=rf"generator must have a size of at least one sample, got {size}"
        ):
            trainer.fit_generator(Broken(size, []))
    with pytest.raises(TypeError, match=r"generator must be an art.data_generators.DataGenerator, got list"):
        trainer.fit_generator([(x, y)])
    with pytest.raises(ValueError, match="generator ended after 1 of 3 batches"):
        trainer.fit_generator(Broken(30, [(x[:10], y[:10])]))
    with pytest.raises(ValueError, match="generator gave an empty batch, number 0 of 3"):
        trainer.fit_generator(Broken(30, [(x[:0], y[:0])]))
    with pytest.raises(TypeError, match=r"fit_generator\(\) got an unexpected keyword argument 'batch_size'"):
        trainer.fit_generator(NumpyDataGenerator(x, y, batch_size=10), batch_size=3)


def test_generators_refuse_what_is_keyed_by_sample(x: Any, y: Any) -> None:
    generator = NumpyDataGenerator(x, y, batch_size=10)
    net = load_model("digits-at")
    with torch.no_grad():
        logits = net(torch.from_numpy(x))
    refused = r"cannot follow inputs that are augmented or come from a generator without sample ids"
    for teacher, transform in ((logits, None), (net, OrderIncorrect(how="random"))):
        trainer = DistillationTrainer(wrap(small()), teacher, transform=transform)
        with pytest.raises(ValueError, match=refused):
            trainer.fit_generator(generator)
    DistillationTrainer(wrap(small()), net, transform=FlattenIncorrect()).fit_generator(
        generator, nb_epochs=1
    )


def test_a_teacher_that_does_not_fit(x: Any, y: Any) -> None:
    for teacher, message in (
        (small(classes=9), "must have the same number of classes, got 9 and 10"),
        (nn.Sequential(load_model("digits-at"), nn.Softmax(dim=1)), "got probabilities"),
        (np.zeros((99, 10), np.float32), "must have one row per training sample, 100, got 99"),
    ):
        with pytest.raises(ValueError, match=message):
            DistillationTrainer(wrap(small()), teacher).fit(x, y)
