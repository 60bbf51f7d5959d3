"""Robust distillation as an ART trainer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from art.data_generators import DataGenerator
from art.defences.trainer import Trainer
from art.estimators.classification import ClassifierMixin
from art.estimators.estimator import BaseEstimator
from torch import Tensor

from art_logits import _checks
from art_logits.data import Data
from art_logits.distill import settle, train_student
from art_logits.training_loop import AUGMENTATIONS, DataSource, History, LoopRecipe, Part, Source, Team
from art_logits.types import Bounds

from .estimators import TorchLogits, check, is_torch, logits_of
from .evasion import as_inputs, class_indices, drawn_seed

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

_OPTIONS: dict[str, Any] = {
    "augment": "none",
    "ema": None,
    "precision": "float32",
    "seed": None,
    "verbose": False,
}


class DistillationTrainer(Trainer):  # type: ignore[misc]
    """Train a classifier on what a teacher says, robustly or without any input perturbation.

    The work is done by :func:`art_logits.distill.distill`'s core, with the classifier's own optimizer; the
    classifier's ``loss`` plays no part. Like ``predict``, training sees inputs behind the classifier's
    preprocessing.

    Where it differs from ART's trainers, on purpose: every scheduler of torch is taken and stepped after each
    epoch, unknown keyword arguments are refused, validation data are preprocessed once, ``fit`` and
    ``fit_generator`` are one loop, and ``history`` says what happened.

    Args:
        classifier: a ``PyTorchClassifier`` with an optimizer; the student.
        teacher: an ART classifier, an ``nn.Module``, or the teacher's logits ``(N, C)`` on the training data,
            in their order. An objective on clean images asks a teacher once for each sample, in ``fit`` and
            without ``augment``; with logits it runs no teacher at all.
        objective: ``"kd"`` (no perturbation), ``"ard"``, ``"rslad"``, ``"iad"``, ``"adaad"``, an
            :class:`art_logits.objectives.Objective`, or a callable ``(student_logits, teacher_logits, labels)
            -> (n,)`` on clean images.
        temperature: of the distillation, > 0; None for the objective's published one.
        alpha: the objective's weight, in [0, 1]; None for its published one.
        attack: an :class:`art_logits.TemperaturePGD`, the inner maximisation, whose loss the objective
            replaces; for an objective without perturbation, the attack that measures robust accuracy on
            validation data.
        transform: what to do to the teacher's logits: one of :mod:`art_logits.transforms`, or several.
        class_weights: ``(C,)`` factors >= 0 of the losses of each class's samples.

    Attributes:
        history: a :class:`art_logits.training_loop.History`: one row per epoch of the last ``fit`` or
            ``fit_generator``, None before.

    Raises:
        TypeError: a classifier that is no ``PyTorchClassifier``, or an argument of the wrong type.
        ValueError: an argument out of its range; an objective that perturbs without an attack; a
            preprocessing defence that acts in training only.
    """

    def __init__(
        self,
        classifier: Any,
        teacher: Any,
        objective: Any = "kd",
        temperature: float | None = None,
        alpha: float | None = None,
        attack: Any = None,
        transform: Any = None,
        class_weights: Any = None,
    ) -> None:
        if not is_torch(classifier):
            raise TypeError(
                "classifier must be a PyTorchClassifier with its own gradients and predict, got "
                f"{type(classifier).__name__}"
            )
        if teacher is classifier:
            raise ValueError("teacher must be another classifier than the one to train, got the same one")
        _check_defences(classifier)
        self._terms = settle(objective, temperature, alpha, attack, transform, class_weights)
        self._teacher = teacher
        self.history: History | None = None
        super().__init__(classifier)

    def fit(
        self,
        x: Array,
        y: Array,
        validation_data: tuple[Array, Array] | None = None,
        batch_size: int = 128,
        nb_epochs: int = 20,
        scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        """Train the classifier; it ends in eval mode.

        Args:
            x: ``(N, ...)``, as ``predict`` takes them; not changed.
            y: class indices ``(N,)`` or ``(N, 1)``, or one-hot ``(N, C)``.
            validation_data: ``(x, y)``, to measure clean accuracy on after each epoch and, with an
                ``attack``, robust and worst class accuracy.
            batch_size: samples per step.
            nb_epochs: passes over the data.
            scheduler: a ``torch.optim.lr_scheduler.LRScheduler`` of the classifier's optimizer, stepped after
                each epoch; a ``ReduceLROnPlateau`` gets the robust accuracy, and so wants ``mode="max"``.
            kwargs: ``augment`` (``"none"``, ``"shift"``, ``"crop-flip"``), ``ema`` (decay of a weight average
                per step, in (0, 1)), ``precision`` (``"float32"`` or ``"bfloat16"``), ``seed`` (absent, one
                integer is drawn from numpy's global generator), ``verbose`` (a progress bar).

        Raises:
            TypeError: an unknown keyword argument, or an argument of the wrong type.
            ValueError: no optimizer; an argument out of its range; data, teacher and classifier that do not
                fit; see :func:`art_logits.distill.distill`.
            FloatingPointError: the loss became NaN or infinite; the classifier keeps the weights from before
                that step.
        """
        options = _options("fit", kwargs)
        data = self._data((x, y))
        recipe = _recipe(nb_epochs, batch_size, options)
        source = DataSource(data, recipe.batch_size, recipe.augment)
        self._train(source, recipe, scheduler, validation_data, data=data, progress=options["verbose"])

    def fit_generator(
        self, generator: Any, nb_epochs: int = 20, scheduler: Any = None, **kwargs: Any
    ) -> None:
        """Train the classifier on an ART generator; it ends in eval mode.

        Its samples have no ids, so the teacher is asked about each batch: logits computed once and transforms
        that are fitted are refused.

        Args:
            generator: an ``art.data_generators.DataGenerator`` with a size.
            nb_epochs: epochs of ``size`` samples, in batches as the generator gives them.
            scheduler: as in :meth:`fit`.
            kwargs: those of :meth:`fit`, and ``validation_data``.

        Raises:
            TypeError: not a generator of ART's; an unknown keyword argument.
            ValueError: a generator without size or samples, and as :meth:`fit` raises.
            FloatingPointError: as :meth:`fit` raises.
        """
        options = _options("fit_generator", kwargs, validation_data=None)
        source = _GeneratorSource(generator, self._classifier, options["augment"])
        recipe = _recipe(nb_epochs, generator.batch_size, options)
        self._train(source, recipe, scheduler, options["validation_data"], progress=options["verbose"])

    def predict(self, x: Array, **kwargs: Any) -> Array:
        """What the classifier predicts for ``x`` ``(N, ...)``: its outputs ``(N, C)``."""
        predicted: Array = self._classifier.predict(x, **kwargs)
        return predicted

    def _train(
        self,
        source: Source,
        recipe: LoopRecipe,
        scheduler: Any,
        validation_data: tuple[Array, Array] | None,
        *,
        data: Data | None = None,
        progress: bool = False,
    ) -> None:
        optimizer = self._classifier.optimizer
        if optimizer is None:
            raise ValueError(
                "classifier must have an optimizer to be trained: build it with "
                "PyTorchClassifier(optimizer=...)"
            )
        self.history = train_student(
            TorchLogits(self._classifier),
            _as_teacher(self._teacher),
            self._terms,
            source,
            recipe,
            data=data,
            validation=None if validation_data is None else self._data(validation_data, "validation_data"),
            validation_attack=self._terms.attack,
            device=self._classifier.device,
            progress=progress,
            optimizer=optimizer,
            scheduler=scheduler,
        )

    def _data(self, pair: tuple[Array, Array], name: str = "x, y") -> Data:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"{name} must be a pair (x, y), got {type(pair).__name__}")
        inputs, labels = _tensors(*pair, self._classifier)
        limits = (-np.inf, np.inf)  # an attack looks after its own
        _checks.inputs(inputs, Bounds(*limits))
        return Data(lambda rows: inputs[rows], labels, name="arrays", bounds=limits, checked=True)


class _GeneratorSource:
    """Batches as an ART generator gives them."""

    def __init__(self, generator: Any, classifier: Any, augment: str) -> None:
        if not isinstance(generator, DataGenerator):
            raise TypeError(
                f"generator must be an art.data_generators.DataGenerator, got {type(generator).__name__}"
            )
        if not generator.size:
            raise ValueError(
                f"generator must have a size of at least one sample, got {generator.size!r}: give it the "
                "number of samples in an epoch"
            )
        self.generator, self.classifier = generator, classifier
        self.augment = AUGMENTATIONS[_checks.choice("augment", augment, AUGMENTATIONS)]
        self.batches = -(-generator.size // generator.batch_size)

    def __len__(self) -> int:
        return int(self.generator.size)

    def epoch(self, seed: int, team: Team) -> Iterator[Part]:
        """As many batches as make up an epoch; several processes share each."""
        rng = torch.Generator().manual_seed(seed)
        for number in range(self.batches):
            try:
                x, y = self.generator.get_batch()
            except StopIteration:
                raise ValueError(f"generator ended after {number} of {self.batches} batches") from None
            if len(x) == 0:
                raise ValueError(f"generator gave an empty batch, number {number} of {self.batches}")
            inputs, labels = _tensors(x, y, self.classifier)
            mine = slice(team.process_index, None, team.num_processes)
            yield Part(self.augment(inputs, rng)[mine], labels[mine], None, len(inputs))


def _tensors(x: Array, y: Array, classifier: Any) -> tuple[Tensor, Tensor]:
    inputs = as_inputs(np.asarray(x), classifier.clip_values)
    labels = class_indices(np.asarray(y), classifier.nb_classes)
    if len(inputs) != len(labels):
        raise ValueError(f"x and y must have the same length, got {len(inputs)} and {len(labels)}")
    return inputs, torch.from_numpy(labels)


def _recipe(epochs: int, batch_size: int, options: dict[str, Any]) -> LoopRecipe:
    return LoopRecipe(
        epochs=_checks.integer("nb_epochs", epochs, at_least=1),
        batch_size=batch_size,
        ema=options["ema"],
        augment=options["augment"],
        precision=cast(Any, _checks.choice("precision", options["precision"], ("float32", "bfloat16"))),
        seed=drawn_seed() if options["seed"] is None else options["seed"],
    )


def _options(method: str, given: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The keyword arguments with their defaults; unknown ones are refused by name."""
    known = {**_OPTIONS, **more}
    for name in given:
        if name not in known:
            raise TypeError(
                f"{method}() got an unexpected keyword argument {name!r}, expected one of "
                f"{', '.join(known)}{_checks.nearest(name, known)}"
            )
    _checks.boolean("verbose", given.get("verbose", False))
    return {**known, **given}


def _check_defences(classifier: Any) -> None:
    """Refuse what training would have to do and the attack could not see."""
    for defence in classifier.preprocessing_defences or []:
        if defence.apply_fit and not defence.apply_predict:
            raise ValueError(
                f"classifier has the preprocessing defence {type(defence).__name__} that acts in training "
                "only, which the distillation would not see: use augment= in fit"
            )


def _as_teacher(teacher: Any) -> Any:
    """A classifier of ART's as a network; anything else is the core's to judge."""
    if not isinstance(teacher, BaseEstimator | ClassifierMixin):
        return teacher
    check(teacher)
    return logits_of(teacher)[0]
