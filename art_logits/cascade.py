"""Several attacks one after another, each on the samples that still stand and came near.

The loop stays the one of :class:`~art_logits.attack.TemperaturePGD`: a :class:`Cascade` only decides who is
attacked next, and merges what was found. Its point is diversity: where one more restart of the same
attack finds nothing, another temperature, loss, step size, target or start often does. And economy: a sample
that an attack has hardly moved seldom falls to the next, and need not be asked again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from . import _checks
from ._batches import Batches
from .attack import AttackResult, SampleIds, Step, TemperaturePGD
from .balls import get_ball
from .functional.logits import label_margin
from .prepare import Precision, Prepared, choose_precision, original_of, prepared_once
from .starts import sample_hashes
from .temperature import scaled_gap
from .types import Bounds, Model, Norm

__all__ = ["Cascade", "quick", "rows_of", "strong"]

_SHARED = ("eps", "norm", "bounds", "precision", "fuse")
_CONDITIONS = ("reach", "spreads", "masked")
_FAR = 3.0  # where gradients are looked at for what they promise, in radii


@dataclass(frozen=True, kw_only=True, eq=False)
class Cascade:
    """Attacks run in turn, each on the samples that none before it has broken.

    A sample's result is the best that any stage found, by success first and by margin then: losses at
    different temperatures cannot be compared. Passes are added up over the stages. It is called as a
    :class:`~art_logits.attack.TemperaturePGD` is, and as there, a sample's result depends on the model, the
    sample, its label, the stages and its id, not on the batch size, the order or the neighbours.

    A targeted stage aims at a wrong class, by the order in which the clean input's logits make them likely.
    What it finds is judged against the label, as all else is. A stage whose restarts search on from the best
    point (``redraw`` below 1) begins at the best that the stages before it have found. The model sees the
    clean inputs once, for all stages.

    Args:
        stages: at least one attack, with the same ``eps``, ``norm``, ``bounds``, ``precision`` and ``fuse``.
            Stages with the same ``seed`` have the same random starts: give each its own.
        reach: how near a sample must have come for a stage to attack it: its best margin so far must be above
            ``-reach`` times the size of its margin without attack. A number >= 0 for every stage but the
            first, which attacks all, or a sequence of one number, or None, for each of these; None for no
            such condition. A ratio of margins, it does not depend on the scale of the logits. Where a
            gradient has vanished, the sample counts as near: a run without gradients shows nothing.
        spreads: how near a sample must have come in units of what a start decides: its best margin so far
            must be above minus this many times its spread, the largest difference between the margins at
            which it was left by stages that share all but the seed. Where these agree, the attack has
            converged, and one more start will find what they found. Given as ``reach`` is, and asked in
            addition to it; a sample that has not had two such stages has no spread, and is not near.
        masked: how many times what was achieved a sample's gradient must promise for a stage to attack it.
            What it promises is the rise of the margin over a step of eps, by the gradient at a random point
            of the ball of three times the radius; what was achieved is the rise from the clean input's margin
            to the best so far. Where gradients tell the truth the two are about the same; several times as
            much means that they are masked near the input. Given as ``reach`` is, and asked in addition: once
            per sample, when a stage first wants to know, for a pass forward and backward.
        aims: which wrong class each stage aims at, one integer >= 0 per stage: 0 is the likeliest, and after
            the least likely they begin again. It says nothing to stages that are not targeted, where it may
            be None. Absent, the first targeted stage aims at class 0, the next at 1, and so on.

    Raises:
        TypeError: a stage that is no :class:`~art_logits.attack.TemperaturePGD`; a condition that is no
            number.
        ValueError: no stages, or stages that differ in what they must share; a condition or an aim below
            0, or another number of them than of stages.

    >>> weights = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    >>> attack = Cascade(stages=[TemperaturePGD(eps=0.2), TemperaturePGD(eps=0.2, loss="margin", seed=1)])
    >>> result = attack(lambda x: x @ weights, torch.tensor([[0.6, 0.5], [0.9, 0.1]]), torch.tensor([0, 0]))
    >>> result.success, attack.stage_of(result.restart)
    (tensor([ True, False]), tensor([0, 0]))
    """

    stages: Sequence[TemperaturePGD]
    reach: float | Sequence[float | None] | None = None
    spreads: float | Sequence[float | None] | None = None
    masked: float | Sequence[float | None] | None = None
    aims: Sequence[int | None] | None = None

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
        for name in _CONDITIONS:
            checked = _per_stage(name, getattr(self, name), len(stages) - 1)
            object.__setattr__(self, name, checked)
        object.__setattr__(self, "aims", self._checked_aims())

    def _checked_aims(self) -> tuple[int | None, ...]:
        """One entry per stage, None for those that are not targeted."""
        if self.aims is None:
            count = itertools.count()
            return tuple(next(count) if stage.targeted else None for stage in self.stages)
        if len(self.aims) != len(self.stages):
            raise ValueError(f"aims must have one entry per stage, {len(self.stages)}, got {len(self.aims)}")
        pairs = zip(self.stages, self.aims, strict=True)
        return tuple(
            _checks.integer("aims", aim, at_least=0) if stage.targeted else None for stage, aim in pairs
        )

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
        turns = list(self._turns())
        return {
            "precision": self.precision,
            **{name: list(getattr(self, name)) for name in _CONDITIONS},
            "aims": [turn.aim for turn in turns],
            "stages": [stage.config() for stage in self.stages],
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cascade) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        return self.stages, self.reach, self.spreads, self.masked, self.aims

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
        clean_logits: Tensor | None = None,
    ) -> AttackResult:
        """Attack a batch; the model comes back exactly as it was, and no global random state is used.

        Args:
            model: as :class:`~art_logits.attack.TemperaturePGD` takes it.
            inputs: ``(N, ...)``, floating point, within the bounds.
            labels: ``(N,)``, true classes.
            sample_ids: ``(N,)`` integers that key the random starts; a hash of each sample's bytes and
                label where absent.
            mask: as :class:`~art_logits.attack.TemperaturePGD` takes it.
            batch_size: as :class:`~art_logits.attack.TemperaturePGD` takes it.
            observer: called with each :class:`~art_logits.attack.Step`, rows counted in this call's inputs
                and restarts through all stages.
            clean_logits: as :class:`~art_logits.attack.TemperaturePGD` takes it.

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
        if self.precision == "auto" and not isinstance(model, Prepared):
            # Once for all stages: a probe on the few samples that still stand might decide otherwise.
            chosen = choose_precision(model, inputs, fuse=self.fuse)
            options: dict[str, Any] = {"mask": mask, "batch_size": batch_size, "observer": observer}
            return self.replace(precision=chosen)(
                model, inputs, labels, sample_ids, clean_logits=clean_logits, **options
            )
        ids = sample_hashes(inputs, labels) if sample_ids is None else sample_ids
        ids = _checks.sample_ids(ids, len(inputs))
        weights = None if mask is None else _checks.mask(mask, inputs)
        call = _Call(model, inputs, labels, ids, weights, batch_size, observer, self.stages[0])
        with prepared_once(original_of(model)):
            return self._run(call, clean_logits)

    def _run(self, call: _Call, clean_logits: Tensor | None) -> AttackResult:
        turns = list(self._turns())
        best = call.open(turns[0], clean_logits)
        spread = _Spread(best.margin, asked=any(turn.near.spreads is not None for turn in turns))
        spread.note(turns[0], slice(None), best.margin)
        promises = _Promises(call, best.margin)
        for turn in turns[1:]:
            rows = (~best.success & turn.near.rows(best, spread.width)).nonzero().squeeze(1)
            if turn.near.masked is not None:
                best, rows = promises.kept(best, rows, turn.near.masked)
            if len(rows):
                found = call.run(turn, rows, best.adv_inputs)
                spread.note(turn, rows, found.margin)
                best = _merged(best, found, rows)
        return best

    def _turns(self) -> Iterator[_Turn]:
        """The stages with all that is said of each: the same whoever is left to attack."""
        conditions = (cast("tuple[float | None, ...]", getattr(self, name)) for name in _CONDITIONS)
        aims = cast("tuple[int | None, ...]", self.aims)
        restarts = 0
        # The first stage is for all.
        near = [_Near(), *map(_Near, *conditions)]
        for stage, asked, aim in zip(self.stages, near, aims, strict=True):
            yield _Turn(stage, asked, aim, restarts)
            restarts += stage.restarts


class _Near(NamedTuple):
    """What a stage asks of the samples that it attacks."""

    reach: float | None = None
    spreads: float | None = None
    masked: float | None = None

    def rows(self, best: AttackResult, width: Tensor) -> Tensor:
        """Which samples have come near enough to success; what is masked is asked of these alone."""
        near = torch.ones_like(best.success)
        if self.reach is not None:
            near &= ~(best.margin <= -self.reach * best.clean_margin.abs()) | (best.zero_gradients > 0)
        if self.spreads is not None:
            near &= ~(best.margin <= -self.spreads * width)
        return near


class _Spread:
    """How far apart the stages that share all but the seed have left each sample: ``width``."""

    def __init__(self, margin: Tensor, *, asked: bool) -> None:
        self.asked, self.width = asked, torch.zeros_like(margin)
        self.ends: dict[object, tuple[Tensor, Tensor]] = {}

    def note(self, turn: _Turn, rows: Tensor | slice, margin: Tensor) -> None:
        """Add the margins at which a stage has left these rows; another target is another attack."""
        if not self.asked:
            return
        # Sizes per sample are the whole stage's: the key must not depend on who is left.
        key = (replace(turn.attack, seed=0), turn.aim)
        if key not in self.ends:
            empty = torch.full_like(self.width, torch.inf)
            self.ends[key] = empty, -empty
        low, high = self.ends[key]
        # A model that broke down at every iterate has left no margin.
        lost = ~margin.isfinite()
        low[rows] = torch.minimum(low[rows], margin.masked_fill(lost, torch.inf))
        high[rows] = torch.maximum(high[rows], margin.masked_fill(lost, -torch.inf))
        self.width = torch.maximum(self.width, (high - low).clamp_min(0))


class _Promises:
    """How many times what was achieved a sample's gradient promises, asked when first wanted."""

    def __init__(self, call: _Call, like: Tensor) -> None:
        self.call, self.times = call, torch.full_like(like, torch.nan)

    def kept(self, best: AttackResult, rows: Tensor, masked: float) -> tuple[AttackResult, Tensor]:
        """Those of the rows whose gradients promise so much, and the result with the passes that it took."""
        if len(asked := rows[self.times[rows].isnan()]):
            rise, cost = self.call.promise(asked)
            achieved = (best.margin[asked] - best.clean_margin[asked]).clamp_min(0)
            # Nothing promised where nothing was achieved shows nothing: such a gradient has vanished.
            self.times[asked] = (rise / achieved).nan_to_num(torch.inf, torch.inf)
            spent = {
                name: getattr(best, name).index_add(0, asked, cost) for name in ("forwards", "backwards")
            }
            best = _replaced(best, **spent)
        return best, rows[self.times[rows] >= masked]


class _Turn(NamedTuple):
    """A stage, whom it is for, which wrong class it aims at, and how many restarts come before it."""

    attack: TemperaturePGD
    near: _Near
    aim: int | None
    restarts: int


@dataclass
class _Call:
    """What all stages of one call are given, and the clean logits, which tell the targets."""

    model: Model
    inputs: Tensor
    labels: Tensor
    ids: SampleIds
    mask: Tensor | None
    batch_size: Batches
    observer: Callable[[Step], None] | None
    first: TemperaturePGD
    clean: Tensor | None = None

    def open(self, turn: _Turn, known: Tensor | None) -> AttackResult:
        """The first stage, on all samples, once the clean logits are known."""
        everyone = torch.arange(len(self.inputs), device=self.inputs.device)
        looks = int(known is None)
        if known is None:
            # No steps, no start: the attack's own last iterate is the clean input, evaluated as it does.
            look = replace(turn.attack, targeted=False, steps=0, random_start=False, restarts=1)
            look = replace(look, step_size=1.0, stop_on_success=False, keep="last", temperature=1.0)
            known = self._attack(replace(look, precision="float32"), everyone).logits
        self.clean = _checks.clean_logits(known, len(everyone)).detach()
        _checks.in_range("labels", self.labels, self.clean.shape[1])
        found = self.run(turn, everyone)
        margin = -label_margin(self.clean, self.labels)
        return _replaced(found, forwards=found.forwards + looks, clean_margin=margin)

    def run(self, turn: _Turn, rows: Tensor, best: Tensor | None = None) -> AttackResult:
        """A stage on some rows, judged against their labels; ``best`` are the best points of all so far."""
        targets = None if turn.aim is None else self._targets(rows, turn.aim)
        watch = None if self.observer is None else self._watch(self.observer, rows, turn.restarts)
        starts = best[rows] if best is not None and turn.attack.redraw < 1 else None
        found = self._attack(rows_of(turn.attack, rows), rows, targets, watch, starts=starts)
        restart = torch.where(found.restart < 0, found.restart, found.restart + turn.restarts)
        found = _replaced(found, restart=restart)
        return found if targets is None else _against(self.labels[rows], found)

    def promise(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The margin's rise over a step of eps, by its gradient outside of the ball; the passes."""
        rise = self.inputs.new_zeros(len(rows))
        first = rows_of(self.first, rows)
        ball, eps = get_ball(first.norm), torch.as_tensor(first.eps).to(self.inputs)
        weights = None if self.mask is None else self.mask[rows]

        def note(step: Step) -> None:
            radius = (eps[step.rows] if eps.ndim else eps.expand(len(step.rows))).view(len(step.rows), -1)
            gradient = step.gradient if weights is None else step.gradient * weights[step.rows]
            along = (gradient * ball.steepest(gradient)).flatten(1)
            rise[step.rows] = (along * radius).sum(dim=1)

        look = replace(first, eps=_FAR * first.eps, steps=1, step_size=1.0, loss="margin", temperature=1.0)
        look = replace(look, random_start=True, restarts=1, targeted=False, momentum=0.0, start_radius=1.0)
        look = replace(look, stop_on_success=False, keep="last")
        cost = self._attack(look, rows, observer=note, judge=False).forwards
        return rise, cost

    def _attack(
        self,
        attack: TemperaturePGD,
        rows: Tensor,
        targets: Tensor | None = None,
        observer: Callable[[Step], None] | None = None,
        *,
        judge: bool = True,
        starts: Tensor | None = None,
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
            judge=judge,
            clean_logits=None if self.clean is None else self.clean[rows],
            starts=starts,
        )

    def _targets(self, rows: Tensor, aim: int) -> Tensor:
        """The wrong class of each row that is this far from the likeliest."""
        assert self.clean is not None
        wrong = self.clean[rows].scatter(1, self.labels[rows].unsqueeze(1), -torch.inf)
        order = wrong.argsort(dim=1, descending=True, stable=True)[:, :-1]
        return order[:, aim % order.shape[1]]

    def _watch(self, observer: Callable[[Step], None], rows: Tensor, first: int) -> Callable[[Step], None]:
        return lambda step: observer(step._replace(rows=rows[step.rows], restart=step.restart + first))


def _replaced(result: AttackResult, **changes: Tensor) -> AttackResult:
    clean_margin = changes.pop("clean_margin", result.clean_margin)
    changed = AttackResult(*result._replace(**changes))
    changed.zero_gradients, changed.clean_margin = result.zero_gradients, clean_margin
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


def _per_stage(name: str, given: Any, count: int) -> tuple[float | None, ...]:
    """One number or None per stage after the first, from one for all of them or from that many."""
    each = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given] * count
    if len(each) != count:
        raise ValueError(f"{name} must have one entry per stage after the first, {count}, got {len(each)}")
    return tuple(None if one is None else _checks.number(name, one, at_least=0.0) for one in each)


def rows_of(attack: TemperaturePGD, index: Tensor | slice) -> TemperaturePGD:
    """The attack on these rows of its inputs: eps and step sizes, one per sample, are cut to them."""
    lengths = {name: getattr(attack, name) for name in ("eps", "step_size")}
    cut: dict[str, Any] = {
        name: value[index] for name, value in lengths.items() if isinstance(value, Tensor) and value.ndim
    }
    return replace(attack, **cut) if cut else attack


# Temperatures in gaps, first steps in eps; reach, spreads and aims as a Cascade takes them.
_Options = dict[str, Any]
_HALF: _Options = {"temperature": 0.5, "step_size": 1.5}
_QUARTER: _Options = {"temperature": 0.25, "step_size": 1.5}
_TWICE: _Options = {"temperature": 2.0, "step_size": 1.5}
_MARGIN: _Options = {"loss": "margin", "step_size": 1.0}
_INPUT: _Options = {"random_start": False}
_OUTER: _Options = {"step_size": 8.0, "start_radius": 6.0}
#: Turns that begin outside of the ball. A net trained in Linf can be blind to small changes: gradients lead
#: nowhere in L2; in L1, where a step changes few elements, such runs are the stronger ones everywhere, and
#: the more so the further the first steps go.
_OUTSIDE: dict[str, list[_Options]] = {
    "Linf": [],
    "L2": [
        {"temperature": 0.5, "step_size": 3.0, "start_radius": 6.0, "masked": 4.0, "steps": 20},
        {"temperature": 0.5, "step_size": 3.0, "start_radius": 6.0, "masked": 4.0, "steps": 40},
    ],
    "L1": [
        {**_MARGIN, **_OUTER, "steps": 20},
        {**_HALF, **_OUTER, "start_radius": 12.0, "steps": 20, "reach": 0.5},
        {**_QUARTER, **_OUTER, "step_size": 4.0, "steps": 20, "reach": 0.4},
        {**_HALF, **_OUTER, "steps": 40, "reach": 0.4},
        {**_HALF, **_OUTER, "step_size": 4.0, "start_radius": 12.0, "steps": 40, "reach": 0.4},
        {**_HALF, **_OUTER, "steps": 100, "reach": 0.2},
        {**_HALF, **_OUTER, "step_size": 4.0, "start_radius": 12.0, "steps": 100, "reach": 0.2},
    ],
}
#: Restarts near the best point, for the few samples so near that the draw of a start decides.
_HOPS: dict[str, _Options] = {
    "Linf": {
        **_HALF,
        "step_size": 0.5,
        "steps": 10,
        "restarts": 120,
        "redraw": 0.1,
        "reach": 0.05,
        "spreads": 4.0,
    },
    "L1": {**_HALF, **_OUTER, "steps": 20, "restarts": 20, "redraw": 0.3, "reach": 0.15},
}
#: What :func:`strong` may spend on a sample: in Linf and L1 a round and these restarts.
_PASSES = {"Linf": 3500, "L2": 1000, "L1": 3500}
_LIKELIEST: _Options = {"targeted": True, "aim": 0}
_SECOND: _Options = {"targeted": True, "aim": 1}
#: What a turn says to the cascade; all else is its attack's.
_OF_CASCADE = (*_CONDITIONS, "aim", "number")
#: How many wrong classes :func:`strong` aims at before its rounds.
_OPENING_AIMS = 3


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

    Ten steps at half the logit gap, from the input itself, for all samples. Those that came within a quarter
    of their clean margin of success (``reach``) get a random start, twice the gap, and the likeliest wrong
    class as a target; in L2 and L1 the second likeliest too, from further away. Nearer ones get more starts
    and steps, and where the start has proved to matter (``spreads``), runs of fifty steps. Samples that ten
    steps leave far from success seldom fall at all: what is saved on them is spent where it decides. Unless
    gradients are masked (``masked``), which in L2 is asked of all that stand: these get two runs that begin
    outside of the ball (``start_radius``). A net trained in Linf on MNIST is masked in L2. In L1 gradients in
    the ball tell little: all that stand get a run from outside, with first steps of eight radii, and those
    that it brought near six more, of up to a hundred steps, before anything else.
    ``benchmarks/strength.py`` has the figures beside AutoAttack's, and how the stages were chosen.

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
    >>> [stage.steps for stage in attack.stages]
    [10, 10, 10, 10, 10, 20, 50, 50, 20, 20]
    >>> attack.reach
    (0.25, 0.1, 0.25, 0.25, 0.05, 0.1, 0.1, 0.1, 0.1)
    """
    return _in_turn(_quick(norm), eps, norm, bounds, seed, precision, fuse)


def strong(
    *,
    eps: float = 8 / 255,
    norm: Norm = "Linf",
    bounds: Bounds | tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    passes: int | None = None,
    precision: Precision = "auto",
    fuse: bool = True,
) -> Cascade:
    """A :class:`Cascade` for an evaluation that should not be beaten by a stronger attack.

    Its stages take turns in what makes an attack fail on one sample and not on another: temperature (a
    quarter of the logit gap to twice, and the margin as the limit of small ones), start, number of steps,
    size of the first, target. It begins with the stages of :func:`quick`, for more samples, and from 500
    passes on (800 in L2, 1200 in L1) breaks all that that breaks. Two temperatures and three targets are
    tried on every sample that stands, whatever came before, and so are runs that begin outside of the ball:
    five in L1, where targets and rounds begin there too, and three in L2 where gradients are masked. All else
    is for those within 0.3 of their clean margin. In Linf the few within 0.05 for which the draw of a start
    decides (``spreads``) get some 110 short restarts near their best point (``redraw``), in L1 those within
    0.15 get twenty. The turns are the same for every model, and none depends on the scale of its
    logits. ``benchmarks/strength.py`` has the figures, and how they were chosen.

    Args:
        eps: radius of the ball, in the unit of the inputs, >= 0.
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``.
        bounds: range of valid inputs.
        seed: of the random starts, below 2**32.
        passes: what one sample may cost, forward and backward passes together, >= 23, one stage; by default
            3500 in Linf and L1, 1000 in L2. Few cost that much: who is broken earlier, stays far from it or
            ends at one margin wherever a run starts costs less. AutoAttack spends nearly 10,000 on a sample
            that it does not break.
        precision: as :class:`~art_logits.attack.TemperaturePGD` takes it.
        fuse: as :class:`~art_logits.attack.TemperaturePGD` takes it.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range.

    >>> attack = strong(eps=8 / 255)
    >>> len(attack.stages), attack.reach[:6]
    (24, (None, 0.3, None, None, 0.3, 0.3))
    """
    clean = 1
    opening = _opening(norm)
    asked = _PASSES[_checks.choice("norm", norm, _PASSES)] if passes is None else passes
    left = _checks.integer("passes", asked, at_least=clean + _cost(opening[0])) - clean
    turns: list[_Options] = []
    for turn in itertools.chain(opening, _rounds(norm)):
        restarts = min(turn.get("restarts", 1), left // _cost(turn))
        if not restarts:
            break
        left -= restarts * _cost(turn)
        turns.append({**turn, "restarts": restarts})
    return _in_turn(turns, eps, norm, bounds, seed, precision, fuse)


def _in_turn(
    turns: Sequence[_Options],
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
    stages, numbers = [], itertools.count(sum("number" in turn for turn in turns))
    for turn in turns:
        number = turn["number"] if "number" in turn else next(numbers)
        options: _Options = {key: value for key, value in turn.items() if key not in _OF_CASCADE}
        options["step_size"] = partial(_cosine, first=turn["step_size"] * (radius or 1.0))
        if "temperature" in turn:
            options["temperature"] = partial(scaled_gap, scale=turn["temperature"])
        # Starts of their own, and the same in every stage of the same number and seed.
        options["seed"] = seed + (number << 32)
        shared: dict[str, Any] = {"eps": radius, "norm": norm, "bounds": bounds}
        stages.append(TemperaturePGD(**shared, precision=precision, fuse=fuse, **options))
    return Cascade(
        stages=stages,
        **{name: [turn.get(name) for turn in turns[1:]] for name in _CONDITIONS},
        aims=[turn.get("aim") for turn in turns],
    )


def _quick(norm: Norm) -> list[_Options]:
    """The turns of :func:`quick`."""
    first = {**_HALF, **_INPUT, "steps": 10}
    inside = [
        {**_HALF, "steps": 10, "reach": 0.25},
        {**_HALF, "steps": 10, "reach": 0.1},
        {**_TWICE, **_INPUT, "steps": 10, "reach": 0.25},
        # In Linf the second class breaks few samples, in L2 many, and from afar.
        *([] if norm == "Linf" else [{**_HALF, **_INPUT, **_SECOND, "steps": 20, "reach": 0.45}]),
        {**_HALF, **_INPUT, **_LIKELIEST, "steps": 10, "reach": 0.25},
        {**_HALF, **_INPUT, "steps": 20, "reach": 0.05},
        {**_HALF, **_INPUT, **_LIKELIEST, "steps": 50, "reach": 0.1, "spreads": 2.0},
        {**_QUARTER, "steps": 50, "reach": 0.1, "spreads": 1.0},
        {**_HALF, "steps": 20, "reach": 0.1, "spreads": 2.0},
        {**_QUARTER, **_LIKELIEST, "steps": 20, "reach": 0.1, "spreads": 1.0},
    ]
    outside = _OUTSIDE.get(norm, [])
    # In L1 they break most of what can be broken, in L2 they are for the few nets that need them.
    return [first, *outside, *inside] if norm == "L1" else [first, *inside, *outside]


def _opening(norm: Norm) -> list[_Options]:
    """How :func:`strong` begins: the turns of :func:`quick` for more samples, then targets for all."""

    def wider(turn: _Options) -> _Options:
        widened = dict(turn)
        if "reach" in turn:
            widened["reach"] = None if turn["reach"] > 0.2 else 0.3
        if "spreads" in turn:
            widened["spreads"] = 8.0
        if "masked" in turn:
            widened["masked"] = 2.0
        return widened

    target: _Options = {**_MARGIN, "steps": 10, "step_size": 1.5, "targeted": True}
    if norm == "L1":
        target |= {**_OUTER, "steps": 40}
    # Wherever they stand, the turns keep their numbers, and with them the starts that they have in quick.
    first, *rest = ({**wider(turn), "number": number} for number, turn in enumerate(_quick(norm)))
    # Early, for those whom they break need nothing else; and in L2 once more, for starts matter there.
    outside = [turn for turn in rest if "start_radius" in turn]
    inside = [turn for turn in rest if "start_radius" not in turn]
    last = outside[-1:] if norm == "L2" else []
    again = [{key: value for key, value in turn.items() if key != "number"} for turn in last]
    targets = ({**target, "aim": aim} for aim in range(_OPENING_AIMS))
    return [first, *outside, *again, *inside, *targets]


def _rounds(norm: Norm) -> Iterator[_Options]:
    """What :func:`strong` repeats, each time at the next two wrong classes."""
    outer = _OUTER if norm == "L1" else {}
    for aim in itertools.count(_OPENING_AIMS, 2):
        for turn in (
            _MARGIN,
            {"temperature": 1.0, "step_size": 2.0},  # the default of the class
            {**_HALF, **_LIKELIEST, "steps": 50, "spreads": 8.0},
            _HALF,
            {**_MARGIN, "step_size": 0.75},
            _QUARTER,
            {**_QUARTER, **_LIKELIEST, "steps": 50, "spreads": 8.0},
            _TWICE,
            {**_HALF, "targeted": True, "aim": aim},
            {**_HALF, "targeted": True, "aim": aim + 1},
        ):
            yield {"steps": 20, "reach": 0.3, **turn, **outer}
        if aim == _OPENING_AIMS and norm in _HOPS:
            yield _HOPS[norm]


def _cost(turn: _Options) -> int:
    """Passes of a run on a sample that it does not break: the steps and the last iterate.

    One more verifies the best iterate where a copy of the model gives the gradients.
    """
    return 2 * int(turn["steps"]) + 2


def _cosine(step: int, steps: int, *, first: float) -> float:
    """A step size that falls from ``first`` towards 0, as ``"cosine"`` does from 2 eps."""
    return first * (1 + math.cos(math.pi * step / steps)) / 2
