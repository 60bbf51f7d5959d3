r"""Manipulations of a teacher's logits: what is it in them that a student learns robustness from?

Each transform changes one part of the logit vector and keeps the others, so that the parts can be told
apart (the question of Seguin et al., arXiv 2108.12001, whose own list of manipulations is not published in
the abstract: this one is ours):

1. the level: :class:`Scale`, :class:`MaxLogit`, :class:`LogitGap`, :class:`Confidence`;
2. whose confidence it is: :class:`PermuteConfidences`;
3. the order of the incorrect classes: :class:`OrderIncorrect`, :class:`NoisyOrder`;
4. their values: :class:`KeepTop`, :class:`FlattenIncorrect`;

and, as a control, :class:`SmoothLabels`. :class:`Compose` applies several in turn.

Probabilities are those at the distillation temperature, ``softmax(z / temperature)``. The *incorrect* classes
are all but the teacher's argmax or, with ``around="label"``, all but the label. A transform is fitted once on
the logits of the whole set and gives a constant table, :class:`TeacherLogits`, keyed by sample id: shuffling
within a batch, or again at every step, averages over the epochs to label smoothing and measures nothing.
What a transform says that it keeps, it keeps exactly: untouched logits bit for bit, probabilities up to the
rounding of ``softmax``. The teacher's argmax is kept by every transform that does not say otherwise.

>>> teacher = torch.tensor([[4.0, 1.0, 2.0], [0.0, 3.0, 1.0]])
>>> OrderIncorrect(how="reversed")(teacher)
tensor([[4., 2., 1.],
        [1., 3., 0.]])
>>> table = Compose(Scale(factor=0.5), FlattenIncorrect()).fit(teacher, sample_ids=[7, 8])
>>> table([8]).argmax(dim=1)
tensor([1])
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from . import _checks
from .starts import generator

__all__ = [
    "TRANSFORMS",
    "Compose",
    "Confidence",
    "FlattenIncorrect",
    "KeepTop",
    "LogitGap",
    "MaxLogit",
    "NoisyOrder",
    "OrderIncorrect",
    "PermuteConfidences",
    "Scale",
    "SmoothLabels",
    "TeacherLogits",
    "Transform",
    "flatten_incorrect",
    "order_incorrect",
    "permute_log_odds",
    "with_log_odds",
    "with_top",
]

Around: TypeAlias = Literal["argmax", "label"]
How: TypeAlias = Literal["scale", "cap", "set"]
Ids: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"

# What else the keys of the random generators stand for, where a seed serves several draws.
_PER_SAMPLE, _PER_CLASS, _PERMUTATION, _NOISE = range(4)


# ----------------------------------------------------------------------------------------------------------
# The table


@dataclass(frozen=True, eq=False)
class TeacherLogits:
    """A teacher's logits on a whole set, keyed by sample id: constant, whatever the batch or the epoch.

    Args:
        logits: ``(N, C)`` tensor or array, finite, ``C >= 2``; half precision becomes float32.
        labels: ``(N,)`` true classes, or None where nothing asks for them.
        sample_ids: ``(N,)`` distinct integers; default ``0 .. N-1``, as :class:`art_logits.data.Data` has.
        temperature: the distillation temperature, > 0, at which transforms take probabilities.

    Raises:
        TypeError: logits that are no floating-point tensor or array, labels or ids that are no integers.
        ValueError: other shapes, logits that are not finite, ids that repeat, labels outside the classes,
            a temperature that is not positive.

    >>> table = TeacherLogits(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), sample_ids=[5, 3])
    >>> table([3, 5, 3])[:, 0]
    tensor([0., 2., 0.])
    """

    logits: Tensor
    labels: Tensor | None = None
    sample_ids: Any = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        logits = _checks.teacher_logits(self.logits)
        count, classes = logits.shape
        ids = np.arange(count) if self.sample_ids is None else _checks.sample_ids(self.sample_ids, count)
        order = np.argsort(ids, kind="stable")
        if len(np.unique(ids)) != count:
            raise ValueError("sample_ids must be distinct, got repeated ones")
        labels = self.labels
        if labels is not None:
            labels = _checks.labels("labels", labels, count, logits.device)
            _checks.in_range("labels", labels, classes)
        temperature = _checks.number("temperature", self.temperature, above=0.0)
        checked = {"logits": logits, "labels": labels, "sample_ids": ids, "temperature": temperature}
        for name, value in {**checked, "_order": order, "_sorted": ids[order]}.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def classes(self) -> int:
        """Number of classes ``C``."""
        return self.logits.shape[1]

    def __call__(self, sample_ids: Tensor | Ids | Sequence[int]) -> Tensor:
        """The logits of some samples, ``(n, C)``, in the order of ``sample_ids`` ``(n,)``.

        Raises:
            ValueError: an id that is not in the table.
        """
        return self.logits[torch.from_numpy(self.rows(sample_ids)).to(self.logits.device)]

    def rows(self, sample_ids: Tensor | Ids | Sequence[int]) -> Ids:
        """Where these samples stand in the table, ``(n,)``.

        Raises:
            TypeError: ids that are not integers.
            ValueError: an id that is not in the table.
        """
        wanted = _checks.sample_ids(sample_ids, len(sample_ids))
        order, ids = self.__dict__["_order"], self.__dict__["_sorted"]
        place = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
        unknown = wanted[ids[place] != wanted]
        if len(unknown):
            raise ValueError(
                f"sample_ids must be ids of the teacher's logits, got {len(unknown)} others, the first of "
                f"them {int(unknown[0])}: give the teacher's logits for every sample, with their ids"
            )
        rows: Ids = order[place]
        return rows

    def correct(self, around: Around) -> Tensor:
        """The class that counts as correct, ``(N, 1)``: the teacher's argmax, or the label.

        Raises:
            ValueError: the label is asked for and there are none.
        """
        if around == "argmax":
            return self.logits.argmax(dim=1, keepdim=True)
        if self.labels is None:
            raise ValueError("labels must be given for a transform around the label")
        return self.labels.unsqueeze(1)


# ----------------------------------------------------------------------------------------------------------
# Pure functions


def with_top(logits: Tensor, top: Tensor, value: Tensor) -> Tensor:
    """Logits whose class ``top`` has the logit ``value``, or the smallest above it that keeps it the argmax.

    Args:
        logits: ``(N, C)``.
        top: ``(N, 1)``, the teacher's argmax.
        value: ``(N, 1)``.

    Returns:
        ``(N, C)``; all other logits are untouched.

    >>> with_top(torch.tensor([[4.0, 1.0, 2.0]]), torch.tensor([[0]]), torch.tensor([[0.0]]))
    tensor([[2., 1., 2.]])
    """
    best, place = logits.scatter(1, top, -torch.inf).max(dim=1, keepdim=True)
    # Of equal logits argmax takes the first.
    least = torch.where(place < top, torch.nextafter(best, torch.full_like(best, torch.inf)), best)
    return logits.scatter(1, top, torch.maximum(value, least))


def log_odds(logits: Tensor, correct: Tensor, temperature: float = 1.0) -> Tensor:
    """``log(p / (1 - p))`` of one class's probability, ``(N, 1)``; it has no ceiling, as p has in float32.

    >>> log_odds(torch.tensor([[3.0, 0.0]]), torch.tensor([[0]]), temperature=2.0)
    tensor([[1.5000]])
    """
    return logits.gather(1, correct) / temperature - _others(logits, correct, temperature)


def with_log_odds(logits: Tensor, top: Tensor, odds: Tensor, temperature: float = 1.0) -> Tensor:
    """Logits whose class ``top`` has these log-odds, or the smallest above them that keep it the argmax.

    Only that class's logit moves, so the incorrect classes keep their shares of what is left.

    Args:
        logits: ``(N, C)``.
        top: ``(N, 1)``, the teacher's argmax.
        odds: ``(N, 1)``, ``log(p / (1 - p))``.
        temperature: at which p is the probability.

    >>> z = with_log_odds(torch.tensor([[5.0, 1.0, 1.0]]), torch.tensor([[0]]), torch.tensor([[0.0]]))
    >>> z.softmax(dim=1)
    tensor([[0.5000, 0.2500, 0.2500]])
    """
    return with_top(logits, top, temperature * (odds + _others(logits, top, temperature)))


def _others(logits: Tensor, correct: Tensor, temperature: float) -> Tensor:
    hidden = (logits / temperature).scatter(1, correct, -torch.inf)
    return hidden.logsumexp(dim=1, keepdim=True)


def order_incorrect(logits: Tensor, correct: Tensor, priority: Tensor) -> Tensor:
    """Hand the incorrect logits out anew: the largest to the incorrect class of the largest priority.

    Args:
        logits: ``(N, C)``.
        correct: ``(N, 1)``, the class whose logit stays.
        priority: ``(N, C)``, finite; the correct class's is ignored, of equals the first comes first.

    Returns:
        ``(N, C)``, the same logits in each row.

    >>> order_incorrect(torch.tensor([[9.0, 1.0, 2.0]]), torch.tensor([[0]]), torch.tensor([[0.0, 1.0, 0.0]]))
    tensor([[9., 2., 1.]])
    """
    classes = priority.scatter(1, correct, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :-1]
    values = logits.scatter(1, correct, -torch.inf).sort(dim=1, descending=True).values[:, :-1]
    return logits.scatter(1, classes, values)


def flatten_incorrect(logits: Tensor, correct: Tensor, keep: int = 0, temperature: float = 1.0) -> Tensor:
    """Give all but the ``keep`` largest incorrect classes one probability, the mean of theirs.

    Args:
        logits: ``(N, C)``.
        correct: ``(N, 1)``.
        keep: how many incorrect classes stay as they are, >= 0.
        temperature: at which the probabilities are.

    Returns:
        ``(N, C)``; the correct class and those kept have the logits and the probabilities that they had.

    >>> flatten_incorrect(torch.tensor([[9.0, 3.0, 2.0, 2.0]]), torch.tensor([[0]]), keep=1)
    tensor([[9., 3., 2., 2.]])
    """
    hidden = logits.scatter(1, correct, -torch.inf)
    values, classes = hidden.sort(dim=1, descending=True, stable=True)
    rest, places = values[:, keep:-1], classes[:, keep:-1]
    if rest.shape[1] < 2:
        return logits.clone()
    level = temperature * ((rest / temperature).logsumexp(dim=1, keepdim=True) - math.log(rest.shape[1]))
    # A mean that rounding puts above the largest would change the order.
    level = torch.minimum(torch.maximum(level, rest[:, -1:]), rest[:, :1])
    return logits.scatter(1, places, level.expand_as(rest))


def permute_log_odds(odds: Tensor, least: Tensor, rng: np.random.Generator) -> Tensor:
    """A random permutation of ``odds`` in which nobody gets less than its ``least``; all such are as likely.

    A sample whose runner-up holds most of the incorrect mass can't have any confidence: below some, the
    runner-up would become the argmax. Whatever satisfies a larger ``least`` satisfies a smaller one, so
    drawing for the most demanding first, from what is left, draws uniformly. Takes ``O(N log N)``.

    Args:
        odds: ``(N,)``.
        least: ``(N,)``, at most ``odds``, element by element.
        rng: source of randomness.

    Returns:
        ``(N,)`` indices: sample i gets ``odds[result[i]]``.

    >>> odds = torch.tensor([0.0, 1.0, 2.0])
    >>> permute_log_odds(odds, torch.tensor([-1.0, 0.5, 1.5]), np.random.default_rng(0))
    tensor([0, 1, 2])
    """
    values, limits = odds.tolist(), torch.minimum(least, odds).tolist()
    donors = sorted(range(len(values)), key=values.__getitem__, reverse=True)
    takers = sorted(range(len(values)), key=limits.__getitem__, reverse=True)
    result, pool, opened = [0] * len(values), list[int](), 0
    for taker in takers:
        while opened < len(donors) and values[donors[opened]] >= limits[taker]:
            pool.append(donors[opened])
            opened += 1
        drawn = int(rng.integers(len(pool)))
        pool[drawn], pool[-1] = pool[-1], pool[drawn]
        result[taker] = pool.pop()
    return torch.tensor(result, device=odds.device)


# ----------------------------------------------------------------------------------------------------------
# Transforms


@dataclass(frozen=True)
class Transform(ABC):
    """A manipulation of teacher logits: a frozen config, and a pure function of the table it is given."""

    @property
    def needs_fit(self) -> bool:
        """Whether a sample's result depends on other samples or on its id: only :meth:`fit` gives it then."""
        return False

    @property
    def needs_labels(self) -> bool:
        """Whether it asks for the labels."""
        return getattr(self, "around", "argmax") == "label"

    @abstractmethod
    def apply(self, table: TeacherLogits) -> Tensor:
        """The manipulated logits ``(N, C)`` of a whole set."""

    def fit(
        self,
        logits: Tensor | np.ndarray[Any, Any],
        labels: Any = None,
        sample_ids: Any = None,
        *,
        temperature: float = 1.0,
    ) -> TeacherLogits:
        """Manipulate the logits of a whole set, once.

        Args:
            logits: ``(N, C)``, the teacher's.
            labels: ``(N,)``, for a transform around the label.
            sample_ids: ``(N,)`` distinct integers; default ``0 .. N-1``.
            temperature: the distillation temperature, > 0.

        Returns:
            The new logits, by sample id. They do not depend on the order of the samples.

        Raises:
            TypeError: as :class:`TeacherLogits` raises.
            ValueError: as :class:`TeacherLogits` raises, labels are missing, or the logits of the whole set
                are probabilities.
        """
        table = TeacherLogits(torch.as_tensor(logits), labels, sample_ids, temperature)
        _checks.not_probabilities(table.logits)
        return replace(table, logits=self.apply(table))

    def __call__(self, logits: Tensor, labels: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
        """Manipulate some logits ``(n, C)``, each by itself, with gradients where the values are kept.

        Raises:
            ValueError: a transform that needs a fit, or labels are missing.
        """
        if self.needs_fit:
            raise ValueError(
                f"transform {self!r} depends on the whole set and on sample ids: use its fit(logits, labels, "
                "sample_ids)"
            )
        return self.apply(TeacherLogits(logits, labels, temperature=temperature))


@dataclass(frozen=True)
class Compose(Transform):
    """Several transforms, one after the other; none of them is the identity.

    >>> Compose()(torch.tensor([[1.0, 0.0]]))
    tensor([[1., 0.]])
    """

    transforms: tuple[Transform, ...] = ()

    def __init__(self, *transforms: Transform) -> None:
        for transform in transforms:
            if not isinstance(transform, Transform):
                raise TypeError(
                    "transform must be an art_logits.transforms.Transform or several, got "
                    f"{transform!r} of type {type(transform).__name__}"
                )
        object.__setattr__(self, "transforms", transforms)

    @property
    def needs_fit(self) -> bool:
        """Whether one of them does."""
        return any(transform.needs_fit for transform in self.transforms)

    @property
    def needs_labels(self) -> bool:
        """Whether one of them does."""
        return any(transform.needs_labels for transform in self.transforms)

    def apply(self, table: TeacherLogits) -> Tensor:
        """Each on the result of the one before."""
        for transform in self.transforms:
            table = replace(table, logits=transform.apply(table))
        return table.logits


@dataclass(frozen=True, kw_only=True)
class Scale(Transform):
    """All logits times a factor, as another temperature does.

    Keeps: argmax, the order of all classes (logits that differ by a bit may become equal, the argmax stays
    ahead). Changes: max logit, gap, confidence.

    Args:
        factor: > 0.

    Raises:
        ValueError: a factor that is not positive.
    """

    factor: float

    def __post_init__(self) -> None:
        _checks.number("factor", self.factor, above=0.0)

    def apply(self, table: TeacherLogits) -> Tensor:
        """``factor * z``."""
        return _leading(table.logits * self.factor, table.correct("argmax"))


@dataclass(frozen=True, kw_only=True)
class _Level(Transform):
    """One quantity of the top class, set by moving the top logit alone.

    Args:
        how: ``"scale"`` multiplies the quantity by ``value``, ``"cap"`` limits it to ``value``, ``"set"``
            makes it ``value``.
        value: a number, in the unit of the quantity.
    """

    how: How
    value: float

    def __post_init__(self) -> None:
        _checks.choice("how", self.how, ("scale", "cap", "set"))
        _checks.number("value", self.value)

    def _moved(self, quantity: Tensor) -> Tensor:
        if self.how == "scale":
            return quantity * self.value
        goal = torch.full_like(quantity, self.value)
        return torch.minimum(quantity, goal) if self.how == "cap" else goal


@dataclass(frozen=True, kw_only=True)
class MaxLogit(_Level):
    """The max logit scaled, capped or set; never below the runner-up.

    Keeps: argmax, every incorrect logit. Changes: the top logit, and with it gap and confidence.

    Args:
        how: ``"scale"``, ``"cap"`` or ``"set"``.
        value: the factor, the limit or the logit.

    Raises:
        ValueError: an unknown ``how``.
        TypeError: a value that is no number.

    >>> MaxLogit(how="cap", value=3.0)(torch.tensor([[4.0, 1.0], [2.0, 1.0]]))
    tensor([[3., 1.],
            [2., 1.]])
    """

    def apply(self, table: TeacherLogits) -> Tensor:
        """Move the top logit."""
        top = table.correct("argmax")
        return with_top(table.logits, top, self._moved(table.logits.gather(1, top)))


@dataclass(frozen=True, kw_only=True)
class LogitGap(_Level):
    """The logit gap scaled, capped or set, by moving the top logit alone.

    Keeps: argmax, every incorrect logit. Changes: the top logit, and with it confidence.

    Args:
        how: ``"scale"``, ``"cap"`` or ``"set"``.
        value: the factor, the limit or the gap, >= 0.

    Raises:
        ValueError: an unknown ``how``, a negative value.
        TypeError: a value that is no number.

    >>> LogitGap(how="set", value=0.5)(torch.tensor([[4.0, 1.0]]))
    tensor([[1.5000, 1.0000]])
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.number("value", self.value, at_least=0.0)

    def apply(self, table: TeacherLogits) -> Tensor:
        """Move the top logit."""
        top = table.correct("argmax")
        second = table.logits.scatter(1, top, -torch.inf).amax(dim=1, keepdim=True)
        gap = table.logits.gather(1, top) - second
        return with_top(table.logits, top, second + self._moved(gap))


@dataclass(frozen=True, kw_only=True)
class Confidence(_Level):
    """The confidence scaled, capped or set, by moving the top logit alone.

    Keeps: argmax, every incorrect logit, and so the shares of the incorrect classes in what is left.
    A confidence at which the runner-up would overtake is raised to the smallest at which it does not.

    Args:
        how: ``"scale"``, ``"cap"`` or ``"set"``.
        value: the factor, in (0, 1], or the confidence, in (0, 1).

    Raises:
        ValueError: an unknown ``how``, a value out of its range.
        TypeError: a value that is no number.

    >>> Confidence(how="set", value=0.9)(torch.tensor([[4.0, 1.0, 1.0]])).softmax(dim=1)
    tensor([[0.9000, 0.0500, 0.0500]])
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        inside = 0 < self.value <= 1 if self.how == "scale" else 0 < self.value < 1
        if not inside:
            span = "(0, 1]: no confidence exceeds 1" if self.how == "scale" else "(0, 1)"
            raise ValueError(f"value must lie in {span}, got {self.value!r}")

    def apply(self, table: TeacherLogits) -> Tensor:
        """Move the top logit."""
        top, temperature = table.correct("argmax"), table.temperature
        odds = log_odds(table.logits, top, temperature)
        if self.how == "scale":
            # log(f p / (1 - f p)) with p = 1 / (1 + exp(-odds)), without rounding p to 1 first.
            value = math.log(self.value) - torch.log1p(torch.exp(-odds) - self.value)
            return (
                table.logits.clone()
                if self.value == 1
                else with_log_odds(table.logits, top, value, temperature)
            )
        goal = torch.full_like(odds, math.log(self.value) - math.log1p(-self.value))
        goal = torch.minimum(odds, goal) if self.how == "cap" else goal
        return with_log_odds(table.logits, top, goal, temperature)


@dataclass(frozen=True, kw_only=True)
class PermuteConfidences(Transform):
    """Give each sample another sample's confidence, by a random permutation of all of them.

    Only the top logit moves. Where a sample's runner-up would overtake at some confidences, it draws from
    the others (:func:`permute_log_odds`).

    Keeps: argmax, every incorrect logit (so their order and their shares of what is left), and the multiset
    of confidences over the set, or over each class. Changes: which sample has which.

    Args:
        within: ``"all"`` samples, or each ``"class"``: the teacher's argmax, or the label (``around``).
        around: what a sample's class is.
        seed: of the permutation.

    Raises:
        ValueError: an unknown ``within`` or ``around``, a negative seed.
        TypeError: a seed that is no integer.
    """

    within: Literal["all", "class"] = "all"
    around: Around = "argmax"
    seed: int = 0

    def __post_init__(self) -> None:
        _checks.choice("within", self.within, ("all", "class"))
        _check_around_and_seed(self)

    @property
    def needs_fit(self) -> bool:
        """Yes: it is about the whole set."""
        return True

    def apply(self, table: TeacherLogits) -> Tensor:
        """Permute the log-odds of the argmax."""
        top, temperature = table.correct("argmax"), table.temperature
        odds = log_odds(table.logits, top, temperature)
        lowest = with_top(table.logits, top, torch.full_like(odds, -torch.inf))
        least = log_odds(lowest, top, temperature)
        drawn = odds.clone()
        for key, members in self._groups(table):
            rng = generator(self.seed, key, _PERMUTATION)
            order = permute_log_odds(odds[members, 0], least[members, 0], rng)
            drawn[members] = odds[members[order]]
        return with_log_odds(table.logits, top, drawn, temperature)

    def _groups(self, table: TeacherLogits) -> list[tuple[int, Tensor]]:
        """The rows of each group in the order of their ids: that of the rows must not matter."""
        rows = torch.from_numpy(np.argsort(table.sample_ids, kind="stable")).to(table.logits.device)
        if self.within == "all":
            return [(0, rows)]
        classes = table.correct(self.around).squeeze(1)[rows]
        return [(c, rows[classes == c]) for c in sorted(set(classes.tolist()))]


@dataclass(frozen=True, kw_only=True)
class OrderIncorrect(Transform):
    """Hand the incorrect logits of each sample to the incorrect classes in another order.

    Keeps: the correct class's logit and probability, and the multiset of incorrect logits. Changes: which
    incorrect class has which.

    Args:
        how: ``"random"`` (per sample), ``"class-random"`` (one random order per correct class),
            ``"class-mean"`` (the order of the mean probabilities of all samples of that correct class) or
            ``"reversed"``.
        around: what the correct class is.
        seed: of the random orders.

    Raises:
        ValueError: an unknown ``how`` or ``around``, a negative seed.
        TypeError: a seed that is no integer.
    """

    how: Literal["random", "class-random", "class-mean", "reversed"]
    around: Around = "argmax"
    seed: int = 0

    def __post_init__(self) -> None:
        _checks.choice("how", self.how, ("random", "class-random", "class-mean", "reversed"))
        _check_around_and_seed(self)

    @property
    def needs_fit(self) -> bool:
        """For the random order of a sample, which its id decides, and for the class's mean order."""
        return self.how in ("random", "class-mean")

    def apply(self, table: TeacherLogits) -> Tensor:
        """Order them by this transform's priority of the classes."""
        correct = table.correct(self.around)
        return _reordered(table.logits, correct, self._priority(table, correct), self.around)

    def _priority(self, table: TeacherLogits, correct: Tensor) -> Tensor:
        if self.how == "reversed":
            return -table.logits
        if self.how == "random":
            return _draws(self.seed, table, _PER_SAMPLE).to(table.logits)
        if self.how == "class-random":
            rows = [generator(self.seed, c, _PER_CLASS).random(table.classes) for c in range(table.classes)]
            by_class = torch.from_numpy(np.stack(rows)).to(table.logits)
        else:
            by_class = _class_means(table, correct.squeeze(1))
        return by_class[correct.squeeze(1)]


@dataclass(frozen=True, kw_only=True)
class NoisyOrder(Transform):
    """Disturb the order of the incorrect classes until its rank correlation with the teacher's is as given.

    The incorrect classes are ordered by ``w * rank + (1 - |w|) * noise``, with Gaussian noise. The weight w
    in [-1, 1], one for all samples, is fitted so that Spearman's correlation between old and new ranks,
    averaged over the samples, comes as close as it can; it grows with w.

    Keeps: the correct class's logit and probability, and the multiset of incorrect logits.

    Args:
        correlation: in [-1, 1]; 1 changes nothing, -1 reverses the order.
        around: what the correct class is.
        seed: of the noise.

    Raises:
        ValueError: a correlation outside [-1, 1], an unknown ``around``, a negative seed.
        TypeError: a correlation that is no number, a seed that is no integer.
    """

    correlation: float
    around: Around = "argmax"
    seed: int = 0

    def __post_init__(self) -> None:
        if not -1 <= _checks.number("correlation", self.correlation) <= 1:
            raise ValueError(f"correlation must lie in [-1, 1], got {self.correlation!r}")
        _check_around_and_seed(self)

    @property
    def needs_fit(self) -> bool:
        """Yes: the weight of the noise is about the whole set."""
        return True

    def apply(self, table: TeacherLogits) -> Tensor:
        """Order the incorrect logits by their disturbed ranks."""
        correct = table.correct(self.around)
        ranks = _incorrect_ranks(table.logits, correct)
        noise = _draws(self.seed, table, _NOISE).to(ranks)
        priority = _fit_noise(ranks, noise, correct, self.correlation)
        return _reordered(table.logits, correct, priority, self.around)


@dataclass(frozen=True, kw_only=True)
class KeepTop(Transform):
    """Keep the largest incorrect classes, and give all others one probability, the mean of theirs.

    Keeps: argmax, the correct class's logit and probability, the logits and probabilities of the ``k``
    largest incorrect classes. Changes: the values of the rest, and with them their order.

    Args:
        k: how many incorrect classes to keep, >= 0.
        around: what the correct class is.

    Raises:
        ValueError: a negative ``k``, an unknown ``around``.
        TypeError: a ``k`` that is no integer.
    """

    k: int
    around: Around = "argmax"

    def __post_init__(self) -> None:
        _checks.integer("k", self.k, at_least=0)
        _checks.choice("around", self.around, ("argmax", "label"))

    def apply(self, table: TeacherLogits) -> Tensor:
        """Flatten the rest."""
        correct = table.correct(self.around)
        result = flatten_incorrect(table.logits, correct, self.k, table.temperature)
        return _leading(result, correct) if self.around == "argmax" else result


@dataclass(frozen=True, kw_only=True)
class FlattenIncorrect(KeepTop):
    """All incorrect classes get one probability, at equal confidence: :class:`KeepTop` with ``k = 0``.

    >>> FlattenIncorrect()(torch.tensor([[4.0, 1.0, 2.0]])).softmax(dim=1)
    tensor([[0.8438, 0.0781, 0.0781]])
    """

    k: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k:
            raise ValueError(f"k must be 0, got {self.k}: use KeepTop to keep some incorrect classes")


@dataclass(frozen=True, kw_only=True)
class SmoothLabels(Transform):
    """The control without a teacher: one confidence in every label, the rest spread evenly.

    Keeps nothing of a sample's logits, also not the argmax. By default only the teacher's mean confidence
    over the whole set remains: label smoothing at equal confidence.

    Args:
        confidence: in (0, 1); default the teacher's mean one at the distillation temperature.

    Raises:
        ValueError: a confidence outside (0, 1).
        TypeError: a confidence that is no number.

    >>> SmoothLabels(confidence=0.8)(torch.zeros(1, 3), torch.tensor([2])).softmax(dim=1)
    tensor([[0.1000, 0.1000, 0.8000]])
    """

    confidence: float | None = None

    def __post_init__(self) -> None:
        if self.confidence is not None and not 0 < _checks.number("confidence", self.confidence) < 1:
            raise ValueError(f"confidence must lie in (0, 1), got {self.confidence!r}")

    @property
    def needs_fit(self) -> bool:
        """Where the confidence is the teacher's mean one."""
        return self.confidence is None

    @property
    def needs_labels(self) -> bool:
        """Yes."""
        return True

    def apply(self, table: TeacherLogits) -> Tensor:
        """Log-probabilities times the temperature."""
        correct, classes = table.correct("label"), table.classes
        mean = (table.logits / table.temperature).softmax(dim=1).amax(dim=1).double().mean()
        # A teacher that is certain of everything would leave nothing to spread.
        confidence = min(float(mean), 1 - 1e-7) if self.confidence is None else self.confidence
        rest = math.log1p(-confidence) - math.log(classes - 1)
        flat = torch.full_like(table.logits, table.temperature * rest)
        return flat.scatter(1, correct, table.temperature * math.log(confidence))


def _check_around_and_seed(transform: Any) -> None:
    _checks.choice("around", transform.around, ("argmax", "label"))
    _checks.integer("seed", transform.seed, at_least=0)


def _draws(seed: int, table: TeacherLogits, purpose: int) -> Tensor:
    """A random row ``(C,)`` per sample, decided by seed and id alone: uniform, or normal for noise."""
    rows = []
    for sample_id in table.sample_ids.tolist():
        rng = generator(seed, sample_id, purpose)
        rows.append(rng.standard_normal(table.classes) if purpose == _NOISE else rng.random(table.classes))
    return torch.from_numpy(np.stack(rows))


def _class_means(table: TeacherLogits, classes: Tensor) -> Tensor:
    """Mean probabilities ``(C, C)`` of the samples of each class; zero where it has none."""
    probabilities = (table.logits / table.temperature).softmax(dim=1)
    # In the order of the ids: a sum depends on its order, by the last bit.
    rows = torch.from_numpy(np.argsort(table.sample_ids, kind="stable")).to(classes.device)
    total = torch.zeros(table.classes, table.classes, dtype=probabilities.dtype, device=classes.device)
    total.index_add_(0, classes[rows], probabilities[rows])
    return total / classes.bincount(minlength=table.classes).clamp_min(1).unsqueeze(1)


def _reordered(logits: Tensor, correct: Tensor, priority: Tensor, around: Around) -> Tensor:
    result = order_incorrect(logits, correct, priority)
    return _leading(result, correct) if around == "argmax" else result


def _leading(logits: Tensor, top: Tensor) -> Tensor:
    """The argmax one ulp above another class that holds the same logit now and stands before it."""
    return with_top(logits, top, logits.gather(1, top))


def _incorrect_ranks(values: Tensor, correct: Tensor) -> Tensor:
    """Ranks of the incorrect classes, 0 for the smallest, ``(N, C)`` float64; -1 for the correct class."""
    hidden = values.scatter(1, correct, -torch.inf)
    # Of equals the first is the larger, as where the logits are handed out.
    order = hidden.argsort(dim=1, descending=True, stable=True)
    classes = values.shape[1]
    downward = torch.arange(classes - 2, -2, -1, dtype=torch.float64, device=values.device)
    return torch.empty_like(values, dtype=torch.float64).scatter(1, order, downward.expand(len(values), -1))


def _fit_noise(ranks: Tensor, noise: Tensor, correct: Tensor, goal: float) -> Tensor:
    """The mixture of ranks and noise ``(N, C)`` whose mean Spearman correlation with the ranks is given."""
    incorrect = ranks.shape[1] - 1
    low, high = -1.0, 1.0
    if goal >= high or incorrect < 2:
        return ranks

    def mixture(weight: float) -> Tensor:
        return weight * ranks + (1 - abs(weight)) * noise

    def miss(weight: float) -> float:
        apart = _incorrect_ranks(mixture(weight), correct) - ranks
        worst = incorrect * (incorrect**2 - 1) / 6
        return 1 - float((apart**2).sum(dim=1).mean()) / worst - goal

    # The correlation of each sample can only grow with the weight, in steps: halving finds the step.
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if miss(middle) > 0 else (middle, high)
    return mixture(min(low, high, key=lambda weight: abs(miss(weight))))


TRANSFORMS: dict[str, type[Transform]] = {
    "scale": Scale,
    "max-logit": MaxLogit,
    "logit-gap": LogitGap,
    "confidence": Confidence,
    "permute-confidences": PermuteConfidences,
    "order": OrderIncorrect,
    "noisy-order": NoisyOrder,
    "keep-top": KeepTop,
    "flatten": FlattenIncorrect,
    "smooth-labels": SmoothLabels,
}
"""Name of each transform in a spec (``order:how=reversed``), to its class."""


def as_transform(value: object) -> Compose:
    """One transform, several in a sequence, or None for the identity, as one.

    Raises:
        TypeError: anything else.
    """
    if value is None:
        return Compose()
    if isinstance(value, Compose):
        return value
    return Compose(*value) if isinstance(value, list | tuple) else Compose(value)  # type: ignore[arg-type]


def transform_config(transform: Transform) -> Any:
    """A transform as JSON can hold it: its name and arguments; of several, a list."""
    if isinstance(transform, Compose):
        return [transform_config(part) for part in transform.transforms]
    arguments = {field.name: getattr(transform, field.name) for field in fields(transform)}
    return {"transform": type(transform).__name__, **arguments}
