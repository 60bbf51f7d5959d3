"""Distil a robust teacher into a student: with or without input perturbations, in plain PyTorch.

``kd`` matches the teacher on clean images only, the experiment of Seguin et al. (arXiv 2108.12001); ``ard``,
``rslad``, ``iad`` and ``adaad`` are today's robust distillation methods, whose inner maximisations run
through the project's one attack loop. What the teacher says can be manipulated first, see
:mod:`art_logits.transforms`.

>>> from art_logits.models import DigitsNet, load_model
>>> data = torch.rand(64, 1, 8, 8), torch.arange(64) % 10
>>> history = distill(DigitsNet(), load_model("digits-at"), data, objective="kd", epochs=2)
>>> [row["epoch"] for row in history.rows]
[1, 2]
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from . import _checks
from .attack import TemperaturePGD
from .data import Data
from .models import model_hash
from .objectives import Objective, Views, get_objective
from .prepare import Cast, Precision, evaluating
from .training_loop import (
    Batch,
    DataSource,
    History,
    LoopRecipe,
    Source,
    TrainingRun,
    kl_divergence,
    pick_precision,
    settle_place,
    training_attack,
)
from .transforms import Compose, TeacherLogits, Transform, as_transform, transform_config
from .types import Model

__all__ = ["DistillRecipe", "Distillation", "distill", "settle", "train_student"]

Teacher: TypeAlias = "Model | Tensor | np.ndarray[Any, Any] | TeacherLogits"


# ----------------------------------------------------------------------------------------------------------
# Checked arguments


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """The arguments of a distillation that do not depend on data or loop, settled by :func:`settle`.

    Attributes:
        objective: what is minimised.
        temperature: of the distillation, > 0.
        alpha: the objective's weight, in [0, 1].
        attack: the config of the inner maximisation or, where there is none, of the validation.
        transform: of the teacher's logits.
        class_weights: ``(C,)`` factors of the losses, or None.
    """

    objective: Objective
    temperature: float
    alpha: float
    attack: TemperaturePGD | None
    transform: Compose
    class_weights: Tensor | None

    @property
    def asks_perturbed(self) -> bool:
        """Whether the teacher is asked about perturbed inputs."""
        return "perturbed" in self.objective.teacher or self.objective.inner == "teacher"

    def config(self) -> dict[str, Any]:
        """All arguments as JSON can hold them."""
        weights = self.class_weights
        return {
            "objective": self.objective.name,
            "temperature": self.temperature,
            "alpha": self.alpha,
            "attack": None if self.attack is None else self.attack.config(),
            "transform": transform_config(self.transform),
            "class_weights": None if weights is None else weights.tolist(),
        }


def settle(
    objective: str | Objective | Callable[[Tensor, Tensor, Tensor], Tensor] = "kd",
    temperature: float | None = None,
    alpha: float | None = None,
    attack: TemperaturePGD | None = None,
    transform: Transform | Sequence[Transform] | None = None,
    class_weights: Any = None,
) -> Distillation:
    """Check the arguments of a distillation, and put published values where there are none.

    Args:
        objective: as :func:`~art_logits.objectives.get_objective` takes it.
        temperature: > 0; None for the objective's published value.
        alpha: in [0, 1]; None for the objective's published value.
        attack: the inner maximisation's config, whose loss the objective replaces. Required by an objective
            that perturbs; otherwise it is that of the validation.
        transform: one transform of the teacher's logits, or several, or None.
        class_weights: ``(C,)`` factors >= 0 of the losses of the samples of each class, used as they are.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range; an attack that is missing, targeted, or whose eps is a
            radius of another norm; a transform that needs a fit where the teacher is asked about perturbed
            inputs.

    >>> settle("rslad", attack=TemperaturePGD(eps=0.1)).alpha == 5 / 6
    True
    """
    goal = get_objective(objective)
    weight = goal.alpha if alpha is None else _checks.number("alpha", alpha)
    if not 0 <= weight <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha!r}")
    terms = Distillation(
        objective=goal,
        temperature=_checks.number(
            "temperature", goal.temperature if temperature is None else temperature, above=0.0
        ),
        alpha=weight,
        attack=_inner(goal, attack),
        transform=as_transform(transform),
        class_weights=_class_weights(class_weights),
    )
    if terms.asks_perturbed and terms.transform.needs_fit:
        raise ValueError(
            f"transform {transform!r} is fitted on the teacher's clean logits, and objective {goal.name!r} "
            "asks the teacher about perturbed inputs: use kd, ard or rslad, or a transform without a fit"
        )
    return terms


def _inner(goal: Objective, attack: TemperaturePGD | None) -> TemperaturePGD | None:
    if attack is None:
        if goal.inner is not None:
            raise ValueError(
                f"attack must be given for objective {goal.name!r}, which perturbs the inputs: "
                "an art_logits.TemperaturePGD with your eps"
            )
        return None
    if not isinstance(attack, TemperaturePGD):
        raise TypeError(
            f"attack must be an art_logits.TemperaturePGD, the config of the inner maximisation, "
            f"got {type(attack).__module__}.{type(attack).__qualname__}"
        )
    check_radius(attack)
    return training_attack(attack)


def check_radius(attack: TemperaturePGD) -> None:
    """Refuse an eps that is plainly the radius of another norm.

    In Linf that is one larger than the range of the inputs, whose ball holds every input; in L2 and L1 one of
    the customary Linf radii k/255 with k up to 16, in whose ball nothing happens.

    Raises:
        ValueError: such an eps.
    """
    eps = torch.as_tensor(attack.eps)
    span = float((torch.as_tensor(attack.bounds[1]) - torch.as_tensor(attack.bounds[0])).max())
    if attack.norm == "Linf":
        if float(eps.max()) > span:
            raise ValueError(
                f"attack's eps {float(eps.max()):g} exceeds the range of the inputs, {span:g}, so it is no "
                "radius for Linf: give one for Linf, the norm that it belongs to (norm='L2' or 'L1'), or the "
                "inputs' own bounds="
            )
        return
    levels = eps.double() * 255 / span
    customary = (levels - levels.round()).abs() < 1e-4
    if bool((customary & (levels.round() >= 1) & (levels.round() <= 16)).all()):
        raise ValueError(
            f"attack's eps {float(eps.max()):.4g} is {float(levels.max()):.3g}/255, a radius for Linf, and "
            f"its norm is {attack.norm}: give a radius for {attack.norm}, or norm='Linf'"
        )


def _class_weights(value: Any) -> Tensor | None:
    if value is None:
        return None
    try:
        weights = torch.as_tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"class_weights must be numbers, one per class, got {value!r}") from error
    if weights.ndim != 1 or not bool((weights.isfinite() & (weights >= 0)).all()):
        raise ValueError(f"class_weights must be one finite number >= 0 per class, got {weights.tolist()!r}")
    return weights


@dataclass(frozen=True, kw_only=True)
class DistillRecipe(LoopRecipe):
    """How a student was made: what a resumed run must agree with.

    Attributes:
        student: class of the student.
        teacher: what identifies the teacher: a hash of its weights or of its logits.
        data: fingerprint of the data.
        distillation: the distillation's arguments.
        optimizer: class and defaults of a given optimiser.
        scheduler: class of a given scheduler.
    """

    student: str
    teacher: str
    data: str
    distillation: dict[str, Any]
    optimizer: str | None = None
    scheduler: str | None = None


# ----------------------------------------------------------------------------------------------------------
# The teacher


class _Oracle:
    """What the teacher says, manipulated: on clean inputs from a constant table where that is possible.

    Args:
        terms: the distillation's arguments.
        network: the teacher's network, or None where only its logits are there.
        table: the manipulated logits of the whole set, or None.
    """

    def __init__(self, terms: Distillation, network: Model | None, table: TeacherLogits | None) -> None:
        self.network, self.table = network, table
        self.transform, self.temperature = terms.transform, terms.temperature

    def clean(self, inputs: Tensor, labels: Tensor, ids: Tensor | None) -> Tensor:
        """Logits ``(n, C)`` on clean inputs, without a gradient."""
        if self.table is not None and ids is not None:
            return self.table(ids)
        with torch.no_grad():
            return self(inputs, labels)

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Logits ``(n, C)`` on any inputs, differentiable."""
        logits = self.untransformed(inputs)
        if not self.transform.transforms:
            return logits
        return self.transform(logits, labels, temperature=self.temperature)

    def untransformed(self, inputs: Tensor) -> Tensor:
        """What the network itself says, ``(n, C)``."""
        if self.network is None:
            raise ValueError("teacher must be a network to be asked about other inputs, got its logits")
        return _checks.teacher_logits(self.network(inputs))


class _Pair(nn.Module):
    """The student's logits; where gradients are asked for, the teacher's on the same inputs are kept aside.

    The attack computes a loss right after the pass whose logits it gets, so the rows of both belong together.
    """

    def __init__(self, student: nn.Module, oracle: _Oracle, labels: Tensor) -> None:
        super().__init__()
        self.student, self.oracle, self.labels = student, oracle, labels
        self.teacher = oracle.network
        self.said: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """The student's logits ``(n, C)``."""
        logits: Tensor = self.student(inputs)
        if torch.is_grad_enabled():
            self.said = self.oracle(inputs, self.labels)
        return logits

    def divergence(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of the student from the teacher on the inputs of the last pass, ``(n,)``."""
        said = logits if self.said is None else self.said
        return kl_divergence(said, logits, self.oracle.temperature)


def _oracle(
    terms: Distillation,
    teacher: Teacher,
    data: Data | None,
    *,
    constant: bool,
    precision: str,
    device: torch.device,
) -> _Oracle:
    """The teacher as the objective may ask it.

    Args:
        terms: the distillation's arguments.
        teacher: a network, or logits.
        data: the training data, or None where only a generator knows.
        constant: whether a sample looks the same in every epoch: nothing augments it, and it has an id.
        precision: of the network's passes.
        device: of the results.
    """
    given = _given_logits(teacher, data)
    if given is not None and terms.asks_perturbed:
        raise ValueError(
            f"teacher must be a network for objective {terms.objective.name!r}, which asks it about "
            "perturbed inputs; got its logits on the clean ones"
        )
    if not constant and (given is not None or terms.transform.needs_fit):
        what = f"transform {terms.transform!r}" if given is None else "teacher's logits, computed once,"
        raise ValueError(
            f"{what} cannot follow inputs that are augmented or come from a generator without sample ids: "
            "give the teacher as a network without such a transform, or train on arrays with augment='none'"
        )
    if data is None or not constant or terms.asks_perturbed:  # then logits have been refused
        return _Oracle(terms, _network(teacher, precision, device), None)
    if given is None:
        given = _ask_all(_network(teacher, "float32", device), data, device)
    labels = data.labels.to(device) if terms.transform.needs_labels else None
    table = TeacherLogits(given.to(device), labels, data.ids, terms.temperature)
    _checks.not_probabilities(table.logits)
    return _Oracle(terms, None, replace(table, logits=terms.transform.apply(table)))


def _given_logits(teacher: Teacher, data: Data | None) -> Tensor | None:
    """The teacher's logits ``(N, C)`` in the order of the data, if that is what was given."""
    if isinstance(teacher, TeacherLogits):
        if data is None:
            raise ValueError("teacher's logits, keyed by sample id, cannot follow a generator without ids")
        return teacher(data.ids)
    if not isinstance(teacher, Tensor | np.ndarray):
        return None
    logits = _checks.teacher_logits(teacher)
    if data is not None and len(logits) != len(data):
        raise ValueError(
            f"teacher's logits must have one row per training sample, {len(data)}, got {len(logits)}"
        )
    return logits


def _network(teacher: Teacher, precision: str, device: torch.device) -> Model:
    if isinstance(teacher, nn.Module):
        return Cast(teacher.to(device), precision)
    if not callable(teacher) or isinstance(teacher, TeacherLogits):
        raise TypeError(f"teacher must be a model, or an array of its logits, got {type(teacher).__name__}")
    return teacher


def _ask_all(network: Model, data: Data, device: torch.device) -> Tensor:
    """The teacher's logits on the whole set, ``(N, C)``."""
    with torch.no_grad(), evaluating(network):
        return torch.cat([network(inputs.to(device)) for inputs, _ in data.batches(256)])


# ----------------------------------------------------------------------------------------------------------
# Training


class _Step:
    """What a step minimises."""

    def __init__(self, terms: Distillation, oracle: _Oracle) -> None:
        self.terms, self.oracle = terms, oracle
        self.goal, self.alpha, self.temperature = terms.objective, terms.alpha, terms.temperature
        self.checked = False

    def check(self, student: Model, inputs: Tensor, labels: Tensor) -> int:
        """Refuse a teacher and a student that do not fit, before anything is trained.

        Returns:
            The number of classes.

        Raises:
            ValueError: other numbers of classes, labels or class weights that do not fit them, or a teacher
                or student that returns probabilities.
        """
        with torch.no_grad(), evaluating(student):
            outputs = _checks.logits(student(inputs), len(inputs))
            if self.oracle.table is None:
                # Before a transform, which would hide it.
                said = _checks.not_probabilities(self.oracle.untransformed(inputs))
            else:
                said = self.oracle.table.logits
        classes = _checks.not_probabilities(outputs, "student").shape[1]
        if said.shape[1] != classes:
            raise ValueError(
                f"teacher and student must have the same number of classes, got {said.shape[1]} and {classes}"
            )
        _checks.in_range("labels", labels, classes)
        weights = self.terms.class_weights
        if weights is not None and len(weights) != classes:
            raise ValueError(f"class_weights must have one number per class, {classes}, got {len(weights)}")
        self.checked = True
        return classes

    def __call__(self, run: TrainingRun, batch: Batch) -> Tensor:
        """The loss of each sample, ``(n,)``."""
        if not self.checked:
            self.check(run.bare, batch.inputs, batch.labels)
        teacher = None
        if self.goal.asks("teacher", "clean", self.alpha):
            teacher = self.oracle.clean(batch.inputs, batch.labels, batch.ids)
        inputs = {"student": batch.inputs} if self.goal.asks("student", "clean", self.alpha) else {}
        views: dict[str, Tensor | None] = {"teacher": teacher}
        if self.goal.inner is not None and self.terms.attack is not None:
            moved = inputs["student_perturbed"] = self._perturb(run, batch, self.terms.attack, teacher)
            if "perturbed" in self.goal.teacher:
                with torch.no_grad():
                    views["teacher_perturbed"] = self.oracle(moved, batch.labels)
        views.update(_one_pass(run.net, inputs))
        losses = self.goal.loss(Views(batch.labels, self.temperature, self.alpha, batch.progress, **views))
        if self.terms.class_weights is None:
            return losses
        return losses * self.terms.class_weights.to(losses)[batch.labels]

    def _perturb(
        self, run: TrainingRun, batch: Batch, attack: TemperaturePGD, teacher: Tensor | None
    ) -> Tensor:
        """The inner maximisation, through the one attack loop, from a start that differs by epoch."""
        model: nn.Module = run.bare
        attack = replace(attack, seed=batch.seed, loss="cross_entropy")
        if self.goal.inner == "clean_teacher" and teacher is not None:
            # Nobody leaves the batch before its end (stop_on_success=False), so row i stays sample i.
            divergence = partial(kl_divergence, teacher, temperature=self.temperature)
            attack = replace(attack, temperature=1.0, loss=lambda z, y: divergence(z))
        elif self.goal.inner == "teacher":
            model = pair = _Pair(run.bare, self.oracle, batch.labels)
            attack = replace(attack, temperature=1.0, loss=pair.divergence)
        result = attack(model, batch.inputs, batch.labels, batch.ids, judge=False)
        run.lost += int((result.zero_gradients > 0).sum())
        return result.adv_inputs


def _one_pass(net: Model, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The logits of several views from one pass, so that batch norm sees them alike."""
    if len(inputs) == 1:
        return {name: net(x) for name, x in inputs.items()}
    return dict(zip(inputs, net(torch.cat(list(inputs.values()))).chunk(len(inputs)), strict=True))


def distill(
    student: nn.Module,
    teacher: Teacher,
    data: Any,
    *,
    objective: str | Objective | Callable[[Tensor, Tensor, Tensor], Tensor] = "kd",
    temperature: float | None = None,
    alpha: float | None = None,
    attack: TemperaturePGD | None = None,
    transform: Transform | Sequence[Transform] | None = None,
    class_weights: Any = None,
    validation: Any = None,
    epochs: int = 30,
    batch_size: int = 128,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: LRScheduler | None = None,
    ema: float | None = None,
    augment: str = "none",
    precision: Precision = "auto",
    device: str | torch.device | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = False,
    accelerator: Any = None,
) -> History:
    """Train ``student`` on what ``teacher`` says; it ends in eval mode, with averaged weights if ``ema``.

    Args:
        student: trained in place; inputs ``(N, ...)`` in the data's bounds to logits ``(N, C)``.
        teacher: a model, or its logits ``(N, C)`` on the data, or these keyed by sample id, as
            :class:`~art_logits.transforms.TeacherLogits`. Where the objective asks about clean images only
            and nothing is augmented, a model is run once over the data, and logits are enough.
        data: anything :func:`art_logits.data.as_data` takes, such as ``(inputs, labels)``.
        objective: a name of :data:`~art_logits.objectives.OBJECTIVES`, an
            :class:`~art_logits.objectives.Objective`, or a callable on clean images, see
            :func:`~art_logits.objectives.get_objective`.
        temperature: the distillation temperature, > 0; None for the objective's published one.
        alpha: the objective's weight, in [0, 1]; None for its published one.
        attack: the inner maximisation of an objective that perturbs, which replaces its loss; those that
            maximise a divergence also set its temperature to 1. For others, the attack of the validation.
        transform: what to do to the teacher's logits first: one of :mod:`art_logits.transforms`, or several.
        class_weights: ``(C,)`` factors >= 0 of the losses of each class's samples, used as they are.
        validation: data for clean, robust and worst class accuracy after each epoch, under ``attack`` with
            twice its steps (by default 10 steps in Linf at the data's default eps).
        epochs: passes over the data.
        batch_size: samples per optimiser step, of all processes together.
        lr: largest learning rate, of the default optimiser.
        momentum: of the default optimiser, in [0, 1).
        weight_decay: of the default optimiser.
        optimizer: of the student's parameters; by default SGD with Nesterov momentum and a one-cycle learning
            rate, stepped with each batch.
        scheduler: of ``optimizer``'s learning rate, stepped after each epoch; a ``ReduceLROnPlateau`` gets
            the validation's robust accuracy, and so wants ``mode="max"`` (else there is a warning).
        ema: decay of the exponential moving average of the weights per step, in (0, 1), or None.
        augment: ``"none"``, ``"shift"`` (by up to 2 pixels) or ``"crop-flip"``.
        precision: of the passes; ``"auto"`` takes bfloat16 where a short probe finds it faster.
        device: where to train; by default where the student is. The teacher is moved there.
        seed: of order, augmentation and random starts. The student's initialisation is the caller's.
        out: folder for ``checkpoint.pt`` (each epoch), ``model.safetensors`` and ``history.json``.
        resume: continue from the checkpoint in ``out``.
        progress: show a progress bar with loss and accuracies.
        accelerator: an ``accelerate.Accelerator`` that joins several processes; found by itself under
            ``accelerate launch`` and ``torchrun``.

    Returns:
        One row per epoch.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range; a missing attack; teacher and student, or logits and data,
            that do not fit; a teacher or student that returns probabilities; a teacher that shares weights
            with what is trained; logits or fitted transforms together with
            augmentation or with an objective that asks about perturbed inputs; a checkpoint made by another
            recipe.
        FloatingPointError: the loss became NaN or infinite; the student has the weights from before that
            step, and the last epoch's checkpoint is kept.
        FileExistsError: ``out`` already holds a training run and ``resume`` is not set.
        BlockingIOError: another process is training into ``out``.
    """
    terms = settle(objective, temperature, alpha, attack, transform, class_weights)
    place = settle_place(student, data, validation, accelerator=accelerator, device=device, out=out)
    train = place.data
    recipe = DistillRecipe(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        ema=ema,
        augment=augment,
        precision=pick_precision(precision, student, train, place.device, place.folder if resume else None),
        seed=seed,
        student=type(student).__qualname__,
        teacher=_identity(teacher),
        data=train.fingerprint(),
        distillation=terms.config(),
        optimizer=None if optimizer is None else f"{type(optimizer).__name__} {_plain_defaults(optimizer)}",
        scheduler=None if scheduler is None else type(scheduler).__name__,
    )
    return train_student(
        student,
        teacher,
        terms,
        DataSource(train, recipe.batch_size, recipe.augment),
        recipe,
        data=train,
        validation=place.validation,
        validation_attack=terms.attack or training_attack(None, train),
        device=place.device,
        folder=place.folder,
        resume=resume,
        progress=progress,
        optimizer=optimizer,
        scheduler=scheduler,
        team=place.team,
    )


def train_student(
    student: nn.Module,
    teacher: Teacher,
    terms: Distillation,
    source: Source,
    recipe: LoopRecipe,
    *,
    data: Data | None,
    validation: Data | None,
    validation_attack: TemperaturePGD | None,
    device: torch.device,
    folder: Path | None = None,
    resume: bool = False,
    progress: bool = False,
    **options: Any,
) -> History:
    """Distil from any source of batches: what :func:`distill` does once its arguments are settled.

    Args:
        student: trained in place, on ``device``.
        teacher: as :func:`distill` takes it.
        terms: the distillation's arguments.
        source: the batches.
        recipe: the loop's arguments.
        data: what the source draws from, or None where samples have no ids.
        validation: held-out data, or None.
        validation_attack: for robust accuracy on them, or None.
        device: where to train.
        folder: for checkpoint, weights and history, or None.
        resume: continue from the checkpoint there.
        progress: show a progress bar.
        options: ``optimizer``, ``scheduler`` and ``team`` of the run.

    Raises:
        TypeError: as :func:`distill` raises.
        ValueError: as :func:`distill` raises.
        FloatingPointError: as :func:`distill` raises.
        FileExistsError: as :func:`distill` raises.
    """
    if teacher is student:
        raise ValueError("teacher must be another model than the student, got the same one")
    _check_shared_weights(student, teacher)
    _check_scheduler(options.get("scheduler"))
    with evaluating(teacher):
        oracle = _oracle(
            terms,
            teacher,
            data,
            constant=data is not None and recipe.augment == "none",
            precision=recipe.precision,
            device=device,
        )
        step = _Step(terms, oracle)
        run = TrainingRun(
            student, recipe, source, step, attack=validation_attack, device=device, out=folder, **options
        )
        if data is not None:
            inputs, labels = (tensor.to(device) for tensor in data.batch(slice(0, 64)))
            classes = step.check(run.bare, inputs, labels)
            _checks.in_range("labels", data.labels, classes)
        return run.run(validation, resume=resume, progress=progress)


def _check_shared_weights(student: nn.Module, teacher: Teacher) -> None:
    """The teacher's weights stand still, so none of them may be one that the student trains."""
    trained = {id(weight) for weight in student.parameters() if weight.requires_grad}
    if isinstance(teacher, nn.Module) and any(id(weight) in trained for weight in teacher.parameters()):
        raise ValueError(
            "teacher must not share weights with the student, whose training changes them: give it a copy, "
            "as copy.deepcopy makes one"
        )


def _check_scheduler(scheduler: Any) -> None:
    # Before torch 2.2 a plateau scheduler was none of the others.
    if scheduler is not None and not isinstance(scheduler, LRScheduler | ReduceLROnPlateau):
        raise ValueError(
            "scheduler must be a torch.optim.lr_scheduler.LRScheduler, got "
            f"{getattr(scheduler, '__name__', type(scheduler).__name__)}"
        )
    if isinstance(scheduler, ReduceLROnPlateau) and scheduler.mode == "min":
        warnings.warn(
            "scheduler is a ReduceLROnPlateau with mode='min', torch's default, and is handed the robust "
            "accuracy, which should rise: with mode='max' it lowers the learning rate where that stalls",
            stacklevel=4,
        )


def _identity(teacher: Teacher) -> str:
    """What a resumed run must find again: a hash of weights or logits, or a function's name."""
    logits = teacher.logits if isinstance(teacher, TeacherLogits) else teacher
    if isinstance(logits, Tensor | np.ndarray):
        array = np.ascontiguousarray(torch.as_tensor(logits).detach().cpu().numpy())
        return hashlib.sha256(array.tobytes()).hexdigest()
    return model_hash(teacher) or str(getattr(teacher, "__qualname__", type(teacher).__qualname__))


def _plain_defaults(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {key: value for key, value in optimizer.defaults.items() if isinstance(value, int | float | tuple)}
