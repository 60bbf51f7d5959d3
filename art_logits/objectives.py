"""What a distillation minimises: the published objectives by name, and the parts to write others with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor

from . import _checks
from .training_loop import kl_divergence

__all__ = ["OBJECTIVES", "Objective", "Views", "get_objective"]

View: TypeAlias = Literal["clean", "perturbed"]


@dataclass(frozen=True)
class Views:
    """What an objective sees of a batch: logits ``(n, C)`` of those views that it asked for, else None.

    Attributes:
        labels: ``(n,)``.
        temperature: the distillation temperature.
        alpha: the objective's weight, in [0, 1].
        progress: share of the training that lies behind, in [0, 1).
        student: on the clean inputs.
        student_perturbed: on the inner maximisation's result.
        teacher: on the clean inputs, manipulated if there is a transform; no gradient goes there.
        teacher_perturbed: on the inner maximisation's result.
    """

    labels: Tensor
    temperature: float
    alpha: float
    progress: float = 0.0
    student: Tensor | None = None
    student_perturbed: Tensor | None = None
    teacher: Tensor | None = None
    teacher_perturbed: Tensor | None = None

    def __getitem__(self, name: str) -> Tensor:
        """The logits of that name.

        Raises:
            ValueError: the objective did not ask for them.
        """
        logits = getattr(self, name)
        if not isinstance(logits, Tensor):
            raise ValueError(f"objective uses the view {name!r}, which it did not ask for")
        return logits

    def kl(self, teacher: str, student: str) -> Tensor:
        """``T^2 KL(teacher || student)`` of two views at the distillation temperature, ``(n,)``."""
        divergence = kl_divergence(self[teacher], self[student], self.temperature)
        return divergence if self.temperature == 1 else self.temperature**2 * divergence

    def cross_entropy(self, student: str) -> Tensor:
        """Cross-entropy of a view with the labels, at T = 1, ``(n,)``."""
        return F.cross_entropy(self[student], self.labels, reduction="none")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a distillation minimises, and on which images.

    Args:
        name: for messages and histories.
        loss: :class:`Views` to the loss of each sample ``(n,)``.
        temperature: the published distillation temperature.
        alpha: the published weight, in [0, 1].
        student: the views of the student that the loss uses; those in ``unless_one`` not at ``alpha = 1``.
        teacher: the views of the teacher that the loss uses; those in ``unless_one`` not at ``alpha = 1``.
        unless_one: views, ``"student"`` or ``"teacher"`` on clean images, whose weight is ``1 - alpha``.
        inner: what the perturbation maximises: ``"cross_entropy"`` of the student, ``"clean_teacher"`` the
            divergence of the student from the teacher on the clean image, ``"teacher"`` from the teacher on
            the perturbed one, which is differentiated too; None for no perturbation.
    """

    name: str
    loss: Callable[[Views], Tensor]
    temperature: float = 1.0
    alpha: float = 1.0
    student: tuple[View, ...] = ("clean",)
    teacher: tuple[View, ...] = ("clean",)
    unless_one: tuple[str, ...] = ()
    inner: Literal["cross_entropy", "clean_teacher", "teacher"] | None = None

    def asks(self, whom: Literal["student", "teacher"], view: View, alpha: float) -> bool:
        """Whether it asks this network about this view."""
        skipped = alpha == 1 and view == "clean" and whom in self.unless_one
        wanted = self.student if whom == "student" else self.teacher
        needed = whom == "teacher" and view == "clean" and self.inner == "clean_teacher"
        return needed or (view in wanted and not skipped)


def _weighted(alpha: float, first: Callable[[], Tensor], second: Callable[[], Tensor]) -> Tensor:
    """``alpha * first + (1 - alpha) * second``; what has no weight is not computed."""
    if alpha in (0.0, 1.0):
        return first() if alpha else second()
    return alpha * first() + (1 - alpha) * second()


def _kd(views: Views) -> Tensor:
    return _weighted(
        views.alpha, lambda: views.kl("teacher", "student"), lambda: views.cross_entropy("student")
    )


def _ard(views: Views) -> Tensor:
    return _weighted(
        views.alpha, lambda: views.kl("teacher", "student_perturbed"), lambda: views.cross_entropy("student")
    )


def _rslad(views: Views) -> Tensor:
    return _weighted(
        views.alpha,
        lambda: views.kl("teacher", "student_perturbed"),
        lambda: views.kl("teacher", "student"),
    )


def _adaad(views: Views) -> Tensor:
    return _weighted(
        views.alpha,
        lambda: views.kl("teacher_perturbed", "student_perturbed"),
        lambda: views.kl("teacher", "student"),
    )


# Of the published 200 epochs, the share that IAD warms up, and its exponent of the teacher's probability.
_IAD_WARM_UP, _IAD_BETA = 60 / 200, 0.1


def _iad(views: Views) -> Tensor:
    return _weighted(views.alpha, lambda: _introspective(views), lambda: views.cross_entropy("student"))


def _introspective(views: Views) -> Tensor:
    """The teacher as far as it is to be trusted on the perturbed input, and the student itself otherwise."""
    robust = views.kl("teacher", "student_perturbed")
    if views.progress < _IAD_WARM_UP:
        return robust
    right = views["teacher_perturbed"].softmax(dim=1).gather(1, views.labels.unsqueeze(1)).squeeze(1)
    trust = right**_IAD_BETA
    return trust * robust + (1 - trust) * kl_divergence(views["student"], views["student_perturbed"])


OBJECTIVES: Mapping[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective(name="kd", loss=_kd),
        Objective(
            name="ard",
            loss=_ard,
            temperature=30.0,
            student=("clean", "perturbed"),
            unless_one=("student",),
            inner="cross_entropy",
        ),
        Objective(
            name="rslad",
            loss=_rslad,
            alpha=5 / 6,
            student=("clean", "perturbed"),
            unless_one=("student",),
            inner="clean_teacher",
        ),
        Objective(
            name="iad",
            loss=_iad,
            student=("clean", "perturbed"),
            teacher=("clean", "perturbed"),
            inner="cross_entropy",
        ),
        Objective(
            name="adaad",
            loss=_adaad,
            student=("clean", "perturbed"),
            teacher=("clean", "perturbed"),
            unless_one=("student", "teacher"),
            inner="teacher",
        ),
    )
}
r"""The objectives by name.

With S and T the student's and the teacher's softmax at the temperature tau, x' the result of the inner
maximisation, and every KL divergence a mean over the batch of sums over the classes (``batchmean``):

``kd``
    ``alpha tau^2 KL(T(x) || S(x)) + (1 - alpha) CE(S(x), y)``, no perturbation. There are no published
    values to take: Hinton et al. 2015 tune both, and those of arXiv 2108.12001 are not in its abstract. 1 and
    1 are our choice: the teacher's own probabilities, and no labels.
``ard`` (Goldblum et al., AAAI 2020)
    ``alpha tau^2 KL(T(x) || S(x')) + (1 - alpha) CE(S(x), y)``; x' maximises the student's cross-entropy.
    tau = 30, alpha = 1, the authors' code's defaults. That code also averages the KL over the classes.
``rslad`` (Zi et al., ICCV 2021)
    ``alpha KL(T(x) || S(x')) + (1 - alpha) KL(T(x) || S(x))``; x' maximises ``KL(T(x) || S(x'))``. tau = 1,
    alpha = 5/6, of the paper; its code also averages the KL over the classes.
``iad`` (Zhu et al., ICLR 2022)
    ``alpha (w tau^2 KL(T(x) || S(x')) + (1 - w) KL(S(x) || S(x'))) + (1 - alpha) CE(S(x), y)`` with the trust
    ``w = T_y(x')^0.1``, and w = 1 in the first 60 of 200 epochs; x' maximises the student's cross-entropy.
    tau = 1, alpha = 1, defaults of the authors' IAD-I. That script leaves the first term unweighted; the
    paper's formula, which their IAD-II follows, weights it, and so do we.
``adaad`` (Huang et al., CVPR 2023)
    ``alpha KL(T(x') || S(x')) + (1 - alpha) KL(T(x) || S(x))``; x' maximises ``KL(T(x') || S(x'))``, through
    the teacher too. tau = 1, alpha = 1, the default of the authors' code.

Terms at tau = 1 in the papers are taken at tau, times tau^2, where another temperature is asked for.
RSLAD's and AdaAD's code starts the inner maximisation 0.001 from the image; here the attack's config decides.
One pass of the student serves clean and perturbed images together, so batch norm sees both alike.
"""


def get_objective(objective: str | Objective | Callable[[Tensor, Tensor, Tensor], Tensor]) -> Objective:
    """The objective of that name, an :class:`Objective` itself, or one made of a plain function.

    Args:
        objective: a name; an :class:`Objective`; or a callable ``(student_logits (n, C), teacher_logits
            (n, C), labels (n,)) -> (n,)`` on clean images, which does with temperatures what it wants.

    Raises:
        ValueError: an unknown name.

    >>> get_objective("rslad").inner
    'clean_teacher'
    """
    if isinstance(objective, Objective):
        return objective
    if callable(objective):
        function = objective
        return Objective(
            name=str(getattr(function, "__qualname__", type(function).__qualname__)),
            loss=lambda views: function(views["student"], views["teacher"], views.labels),
        )
    return OBJECTIVES[_checks.choice("objective", objective, OBJECTIVES)]
