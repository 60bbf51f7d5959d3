"""Several attacks one after another, each on the samples that still stand and came near.

The loop stays the one of :class:`~art_logits.attack.TemperaturePGD`: a :class:`Cascade` only decides who is
attacked next, and merges what was found. Its point is diversity: where one more restart of the same
attack finds nothing, another temperature, loss, step size, target or start often does. And economy: a sample
that an attack has hardly moved seldom falls to the next, and need not be asked again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, cycle
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from . import _checks
from ._batches import Batches
from .attack import AttackResult, SampleIds, Step, TemperaturePGD
from .functional.logits import label_margin
from .prepare import Precision, choose_precision, original_of
from .starts import sample_hashes
from .temperature import scaled_gap
from .types import Bounds, Model, Norm

__all__ = ["Cascade", "quick", "rows_of", "strong"]

_SHARED = ("eps", "norm", "bounds", "precision", "fuse")


@dataclass(frozen=True, kw_only=True, eq=False)
class Cascade:
    """Attacks run in turn, each on the samples that none before it has broken.

    A sample's result is the best that any stage found, by success first and by margin then: losses at
    different temperatures cannot be compared. Passes are added up over the stages. It is called as a
    :class:`~art_logits.attack.TemperaturePGD` is, and as there, a sample's result depends on the model, the
    sample, its label, the stages and its id, not on the batch size, the order or the neighbours.

    A targeted stage aims at a wrong class: the first such stage at the one that the clean input's logits
    make the likeliest, the next at the second, and so on round. What it finds is judged against the label,
    as all else is.

    Args:
        stages: at least one attack, with the same ``eps``, ``norm``, ``bounds``, ``precision`` and ``fuse``.
            Stages with the same ``seed`` have the same random starts: give each its own.
        reach: how near a sample must have come for a stage to attack it: its best margin so far must be above
            ``-reach`` times the size of its margin without attack. A number >= 0 for every stage but the
            first, which attacks all, or a sequence of one number, or None, for each of these; None for no
            such condition. A ratio of margins, it does not depend on the scale of the logits. Where the first
            stage does not look at the clean input (``keep="last"`` without ``stop_on_success``), all samples
            are near.

    Raises:
        TypeError: a stage that is no :class:`~art_logits.attack.TemperaturePGD`; a reach that is no number.
        ValueError: no stages, or stages that differ in what they must share; a reach below 0, or another
            number of them than of stages after the first; a reach after a targeted first stage, whose margins
            are those of its targets.

    >>> weights = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    >>> attack = Cascade(stages=[TemperaturePGD(eps=0.2), TemperaturePGD(eps=0.2, loss="margin", seed=1)])
    >>> result = attack(lambda x: x @ weights, torch.tensor([[0.6, 0.5], [0.9, 0.1]]), torch.tensor([0, 0]))
    >>> result.success, attack.stage_of(result.restart)
    (tensor([ True, False]), tensor([0, 0]))
    """

    stages: Sequence[TemperaturePGD]
    reach: float | Sequence[float | None] | None = None

    #: For the evaluation: one call may hold more samples than fit one pass.
    takes_parts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        stages = tuple(self.stages) if isinstance(self.stages, Sequence) else (self.stages,)
        if not stages:
            raise ValueError("stages must hold at least one attack, got none")
        for stage in stages:
            if not isinstance(stage, TemperaturePGD):
                raise TypeError(f"stages must be TemperaturePGD objects, got {type(stage).__name__}")
        first = stages[0].config()
        for stage in stages[1:]:
            other = stage.config()
            for name in _SHARED:
                if other[name] != first[name]:
                    found = f"{first[name]!r} and {other[name]!r}"
                    raise ValueError(f"stages must share {', '.join(_SHARED)}, got {name} {found}")
        object.__setattr__(self, "stages", stages)
        object.__setattr__(self, "reach", self._checked_reach(len(stages) - 1))

    def _checked_reach(self, count: int) -> tuple[float | None, ...]:
        """One entry per stage after the first."""
        given = self.reach
        each = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given] * count
        if len(each) != count:
            raise ValueError(f"reach must have one entry per stage after the first, {count}, got {len(each)}")
        checked = (None if one is None else _checks.number("reach", one, at_least=0.0) for one in each)
        reach = tuple(checked)
        if self.stages[0].targeted and any(one is not None for one in reach):
            raise ValueError("reach needs a first stage that is not targeted: its margins are compared")
        return reach

    @property
    def eps(self) -> float | Tensor:
        """Radius of the ball that all stages share."""
        return self.stages[0].eps

    @property
    def norm(self) -> Norm:
        """Norm that all stages share."""
        return self.stages[0].norm

    @property
    def bounds(self) -> Bounds:
        """Range of valid inputs that all stages share."""
        return Bounds(*self.stages[0].bounds)

    @property
    def precision(self) -> Precision:
        """What gradients are computed in, the same in all stages."""
        return self.stages[0].precision

    @property
    def fuse(self) -> bool:
        """Whether gradients may come from a folded copy of the model, the same in all stages."""
        return self.stages[0].fuse

    def config(self) -> dict[str, Any]:
        """The stages' arguments as JSON can hold them, in their order, and each one's reach."""
        return {
            "precision": self.precision,
            "reach": list(self._reaches),
            "stages": [stage.config() for stage in self.stages],
        }

    @property
    def _reaches(self) -> tuple[float | None, ...]:
        """As it is held: one entry per stage after the first."""
        return cast("tuple[float | None, ...]", self.reach)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cascade) and (self.stages, self.reach) == (other.stages, other.reach)

    def __hash__(self) -> int:
        return hash((self.stages, self.reach))

    def replace(self, **changes: Any) -> Cascade:
        """The same stages with other arguments, each as :class:`TemperaturePGD` takes it.

        >>> strong(eps=0.1).replace(norm="L2").norm
        'L2'
        """
        return replace(self, stages=[replace(stage, **changes) for stage in self.stages])

    def rows(self, index: Tensor | slice) -> Cascade:
        """The attack on these rows of its inputs: eps and step sizes, one per sample, are cut to them."""
        return replace(self, stages=[rows_of(stage, index) for stage in self.stages])

    def stage_of(self, restart: Tensor) -> Tensor:
        """Which stage each of a result's restarts belongs to, ``(N,)``, from 0; -1 stays -1.

        A result counts the restarts of all stages through: the first one of a stage follows the last one
        of the stage before it.
        """
        ends = torch.tensor([stage.restarts for stage in self.stages], device=restart.device).cumsum(0)
        return torch.where(restart < 0, restart, torch.searchsorted(ends, restart, right=True))

    def __call__(
        self,
        model: Model,
        inputs: Tensor,
        labels: Tensor,
        sample_ids: Tensor | np.ndarray[Any, Any] | list[int] | None = None,
        *,
        mask: Tensor | None = None,
        batch_size: int | Batches | None = None,
        observer: Callable[[Step], None] | None = None,
    ) -> AttackResult:
        """Attack a batch; the model comes back exactly as it was, and no global random state is used.

        Args:
            model: maps inputs to logits ``(N, C)``, ``C >= 2``. It is held in eval mode meanwhile.
            inputs: ``(N, ...)``, floating point, within the bounds.
            labels: ``(N,)``, true classes.
            sample_ids: ``(N,)`` integers that key the random starts; a hash of each sample's bytes and
                label where absent.
            mask: as :class:`~art_logits.attack.TemperaturePGD` takes it.
            batch_size: as :class:`~art_logits.attack.TemperaturePGD` takes it.
            observer: called with each :class:`~art_logits.attack.Step`, rows counted in this call's inputs
                and restarts through all stages.

        Raises:
            TypeError: inputs, labels, ids or the model's output are of the wrong type.
            ValueError: they have the wrong shape or range.
            torch.OutOfMemoryError: not even a single sample fits the memory.
        """
        inputs = _checks.inputs(inputs, self.bounds)
        labels = _checks.labels("labels", labels, len(inputs), inputs.device)
        if not isinstance(batch_size, Batches):
            size = len(inputs) if batch_size is None else batch_size
            batch_size = Batches(_checks.integer("batch_size", size, at_least=1))
        if self.precision == "auto":
            # Once for all stages: a probe on the few samples that still stand might decide otherwise.
            chosen = choose_precision(original_of(model), inputs, fuse=self.fuse)
            return self.replace(precision=chosen)(
                model, inputs, labels, sample_ids, mask=mask, batch_size=batch_size, observer=observer
            )
        ids = sample_hashes(inputs, labels) if sample_ids is None else sample_ids
        ids = _checks.sample_ids(ids, len(inputs))
        weights = None if mask is None else _checks.mask(mask, inputs)
        call = _Call(model, inputs, labels, ids, weights, batch_size, observer)
        before = _Before(0, 0)
        best = call.run(self.stages[0], torch.arange(len(inputs), device=inputs.device), before)
        before = before.after(self.stages[0])
        for stage, reach in zip(self.stages[1:], self._reaches, strict=True):
            rows = (~best.success & _within(best, reach)).nonzero().squeeze(1)
            if len(rows):
                best = _merged(best, call.run(rows_of(stage, rows), rows, before), rows)
            before = before.after(stage)
        return best


class _Before(NamedTuple):
    """How many restarts and targeted stages come before a stage: the same whoever is left to attack."""

    restarts: int
    aims: int

    def after(self, stage: TemperaturePGD) -> _Before:
        return _Before(self.restarts + stage.restarts, self.aims + stage.targeted)


class _Call:
    """What all stages of one call are given, and which classes their targets are."""

    def __init__(
        self,
        model: Model,
        inputs: Tensor,
        labels: Tensor,
        ids: SampleIds,
        mask: Tensor | None,
        batch_size: Batches,
        observer: Callable[[Step], None] | None,
    ) -> None:
        self.model, self.inputs, self.labels, self.ids, self.mask = model, inputs, labels, ids, mask
        self.batch_size, self.observer = batch_size, observer
        self.ranked = torch.zeros_like(labels, dtype=torch.bool)
        self.ranking = labels.new_zeros(len(inputs), 0)

    def run(self, attack: TemperaturePGD, rows: Tensor, before: _Before) -> AttackResult:
        """A stage on some rows, judged against their labels."""
        looked = self._rank(attack, rows) if attack.targeted else torch.zeros_like(rows)
        targets = self.ranking[rows, before.aims % self.ranking.shape[1]] if attack.targeted else None
        watch = None if self.observer is None else self._watch(self.observer, rows, before.restarts)
        found = self._attack(attack, rows, targets, watch)
        found = _replaced(
            found,
            restart=torch.where(found.restart < 0, found.restart, found.restart + before.restarts),
            forwards=found.forwards + looked,
        )
        return _against(self.labels[rows], found) if attack.targeted else found

    def _attack(
        self,
        attack: TemperaturePGD,
        rows: Tensor,
        targets: Tensor | None = None,
        observer: Callable[[Step], None] | None = None,
    ) -> AttackResult:
        return attack(
            self.model,
            self.inputs[rows],
            self.labels[rows],
            self.ids[rows.cpu().numpy()],
            targets,
            mask=None if self.mask is None else self.mask[rows],
            batch_size=self.batch_size,
            observer=observer,
        )

    def _rank(self, attack: TemperaturePGD, rows: Tensor) -> Tensor:
        """Order the wrong classes of these rows, likeliest first; the passes of each that it took."""
        fresh = ~self.ranked[rows]
        new = rows[fresh]
        if len(new):
            # No steps, no start: the attack's own last iterate is the clean input, evaluated as it does.
            look = replace(rows_of(attack, fresh), targeted=False, steps=0, random_start=False, restarts=1)
            look = replace(look, stop_on_success=False, keep="last", step_size="cosine", temperature=1.0)
            logits = self._attack(look, new).logits
            wrong = logits.scatter(1, self.labels[new].unsqueeze(1), -torch.inf)
            order = wrong.argsort(dim=1, descending=True, stable=True)[:, :-1]
            if not self.ranking.shape[1]:
                self.ranking = order.new_zeros(len(self.inputs), order.shape[1])
            self.ranking[new], self.ranked[new] = order, True
        return fresh.to(rows.dtype)

    def _watch(self, observer: Callable[[Step], None], rows: Tensor, first: int) -> Callable[[Step], None]:
        return lambda step: observer(step._replace(rows=rows[step.rows], restart=step.restart + first))


def _within(best: AttackResult, reach: float | None) -> Tensor:
    """Which samples have come near enough to success; where the clean margin is unknown, all."""
    if reach is None:
        return torch.ones_like(best.success)
    return ~(best.margin <= -reach * best.clean_margin.abs())


def _replaced(result: AttackResult, **changes: Tensor) -> AttackResult:
    changed = AttackResult(*result._replace(**changes))
    changed.zero_gradients, changed.clean_margin = result.zero_gradients, result.clean_margin
    return changed


def _against(labels: Tensor, found: AttackResult) -> AttackResult:
    """What a targeted attack has found, judged as an untargeted one: any wrong class will do."""
    # Where the model broke down at every iterate, the logits are still those of the clean input.
    broken = (found.margin == -torch.inf) | found.logits.isnan().any(dim=1)
    margin = (-label_margin(found.logits, labels)).masked_fill(broken, -torch.inf)
    success = (found.logits.argmax(dim=1) != labels) & ~broken
    return _replaced(found, success=success, margin=margin)


def _merged(best: AttackResult, found: AttackResult, rows: Tensor) -> AttackResult:
    """What is known of all samples after a stage on ``rows``, none of which had been broken before."""
    better = found.success | (found.margin > best.margin[rows])
    won = rows[better]
    merged = AttackResult(*(column.clone() for column in best))
    for name in ("adv_inputs", "logits", "success", "margin", "restart"):
        getattr(merged, name)[won] = getattr(found, name)[better]
    for name in ("forwards", "backwards"):
        getattr(merged, name)[rows] += getattr(found, name)
    merged.zero_gradients = best.zero_gradients.index_add(0, rows, found.zero_gradients)
    merged.clean_margin = best.clean_margin
    return merged


def rows_of(attack: TemperaturePGD, index: Tensor | slice) -> TemperaturePGD:
    """The attack on these rows of its inputs: eps and step sizes, one per sample, are cut to them."""
    lengths = {name: getattr(attack, name) for name in ("eps", "step_size")}
    cut: dict[str, Any] = {
        name: value[index] for name, value in lengths.items() if isinstance(value, Tensor) and value.ndim
    }
    return replace(attack, **cut) if cut else attack


def quick(
    *,
    eps: float = 8 / 255,
    norm: Norm = "Linf",
    bounds: Bounds | tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    precision: Precision = "auto",
    fuse: bool = True,
) -> Cascade:
    """The default attack of an evaluation, ``temperature-pgd``: half a percent of AutoAttack's passes.

    Ten steps at half the logit gap for all samples; then runs at twice and a quarter of the gap for those
    that came within 0.3 and 0.25 of their clean margin of success, and a few more for those within a tenth
    (``reach``). Samples that ten steps leave far from success seldom fall at all: what is saved on them is
    spent where it decides. ``benchmarks/strength.py`` has the figures beside AutoAttack's, and how the
    stages were chosen.

    Args:
        eps: radius of the ball, in the unit of the inputs, >= 0.
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``.
        bounds: range of valid inputs.
        seed: of the random starts, below 2**32.
        precision: as :class:`~art_logits.attack.TemperaturePGD` takes it.
        fuse: as :class:`~art_logits.attack.TemperaturePGD` takes it.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range.

    >>> attack = quick(eps=8 / 255)
    >>> [stage.steps for stage in attack.stages], attack.reach
    ([10, 10, 20, 10, 10, 10], (0.3, 0.25, 0.1, 0.1, 0.1))
    """
    return _in_turn(_QUICK, eps, norm, bounds, seed, precision, fuse)


def strong(
    *,
    eps: float = 8 / 255,
    norm: Norm = "Linf",
    bounds: Bounds | tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    passes: int = 1000,
    precision: Precision = "auto",
    fuse: bool = True,
) -> Cascade:
    """A :class:`Cascade` for an evaluation that should not be beaten by a stronger attack.

    Its stages take turns in what makes an attack fail on one sample and not on another: temperature (a
    quarter of the logit gap to twice, and the margin as the limit of small ones), size of the first step,
    target; each has a random start of its own. It begins with the stages of :func:`quick` and breaks all that
    that breaks. Three temperatures and three targets are tried on every sample that stands, whatever came
    before; all else on those within 0.3 of their clean margin. The turns are the same for every model, and
    none depends on the scale of its logits. ``benchmarks/strength.py`` has the figures, and how they were
    chosen.

    Args:
        eps: radius of the ball, in the unit of the inputs, >= 0.
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``.
        bounds: range of valid inputs.
        seed: of the random starts, below 2**32.
        passes: what one sample may cost, forward and backward passes together, >= 23, one stage. Few cost
            that much: who is broken earlier or stays far from it costs less. AutoAttack spends nearly 10,000
            on a sample that it does not break.
        precision: as :class:`~art_logits.attack.TemperaturePGD` takes it.
        fuse: as :class:`~art_logits.attack.TemperaturePGD` takes it.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range.

    >>> attack = strong(eps=8 / 255)
    >>> len(attack.stages), attack.reach[:6]
    (28, (None, None, 0.3, 0.3, 0.3, None))
    """
    left = _checks.integer("passes", passes, at_least=_cost(_OPENING[0]))
    turns: list[dict[str, Any]] = []
    for turn in chain(_OPENING, cycle(_ROUND)):
        if left < _cost(turn):
            break
        left -= _cost(turn)
        turns.append(turn)
    return _in_turn(turns, eps, norm, bounds, seed, precision, fuse)


def _in_turn(
    turns: Sequence[dict[str, Any]],
    eps: float,
    norm: Norm,
    bounds: Bounds | tuple[float, float],
    seed: int,
    precision: Precision,
    fuse: bool,
) -> Cascade:
    """The cascade of some turns: temperature in gaps, first step in eps, reach."""
    radius = _checks.number("eps", eps, at_least=0.0)
    _checks.integer("seed", seed, at_least=0)
    stages = []
    for number, turn in enumerate(turns):
        options: dict[str, Any] = {key: value for key, value in turn.items() if key != "reach"}
        options["step_size"] = partial(_cosine, first=turn["step_size"] * (radius or 1.0))
        if "temperature" in turn:
            options["temperature"] = partial(scaled_gap, scale=turn["temperature"])
        # Starts of their own, and the same in every stage of the same number and seed.
        options["seed"] = seed + (number << 32)
        shared: dict[str, Any] = {"eps": radius, "norm": norm, "bounds": bounds}
        stages.append(TemperaturePGD(**shared, precision=precision, fuse=fuse, **options))
    return Cascade(stages=stages, reach=[turn.get("reach") for turn in turns[1:]])


_HALF: dict[str, Any] = {"temperature": 0.5, "step_size": 1.5}
_QUARTER: dict[str, Any] = {"temperature": 0.25, "step_size": 1.5}
_TWICE: dict[str, Any] = {"temperature": 2.0, "step_size": 1.5}
_MARGIN: dict[str, Any] = {"loss": "margin", "step_size": 1.0}
_TARGET: dict[str, Any] = {"steps": 10, "loss": "margin", "step_size": 1.5, "targeted": True}

_QUICK: tuple[dict[str, Any], ...] = (
    {**_HALF, "steps": 10},
    {**_TWICE, "steps": 10, "reach": 0.3},
    {**_QUARTER, "steps": 20, "reach": 0.25},
    {**_MARGIN, "steps": 10, "reach": 0.1},
    *[{**_HALF, "steps": 10, "reach": 0.1}] * 2,
)
#: How :func:`strong` begins: as :func:`quick`, with the same starts, but for more samples, so that it breaks
#: all that :func:`quick` breaks.
_OPENING: tuple[dict[str, Any], ...] = (
    *[{**turn, "reach": None} for turn in _QUICK[:3]],
    *[{**turn, "reach": 0.3} for turn in _QUICK[3:]],
    *[_TARGET] * 3,
)
#: What it repeats.
_ROUND: tuple[dict[str, Any], ...] = tuple(
    {"steps": 20, "reach": 0.3, **turn}
    for turn in (
        _HALF,
        _MARGIN,
        {**_HALF, "temperature": 1.0},
        _HALF,
        {**_MARGIN, "step_size": 0.75},
        _QUARTER,
        _HALF,
        _TWICE,
        *[_TARGET] * 2,
    )
)


def _cost(turn: dict[str, Any]) -> int:
    """Passes of a stage on a sample that it does not break: the clean input, the steps, the last iterate.

    One more verifies the best iterate where a copy of the model gives the gradients.
    """
    return 2 * int(turn["steps"]) + 3


def _cosine(step: int, steps: int, *, first: float) -> float:
    """A step size that falls from ``first`` towards 0, as ``"cosine"`` does from 2 eps."""
    return first * (1 + math.cos(math.pi * step / steps)) / 2
