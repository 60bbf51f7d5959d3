"""Temperature-PGD: projected gradient ascent on ``loss(z / T)``, with each sample on its own clock.

There is one attack loop in this project, :meth:`TemperaturePGD._run`; every evaluation, host adapter
and trainer calls it. A sample that is solved leaves the batch at once and the next one takes its place,
so samples in one batch may stand at different steps and restarts, and none of them notices: a
sample's result depends on the model, the sample, its label, the config, the seed and its id only.

Gradients may come from a faster version of the model (:mod:`art_logits.prepare`). It proposes: an iterate
counts once the original model, in float32, has seen it, and what has been missed by no more than bfloat16
rounds takes its last steps again with the original's gradients.
"""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from . import _checks
from . import steps as step_sizes
from . import temperature as temperatures
from ._batches import Batches
from .balls import get_ball
from .functional.logits import label_margin
from .losses import get_loss
from .losses import margin as margin_loss
from .prepare import (
    PRECISIONS,
    Precision,
    Prepared,
    choose_precision,
    evaluating,
    full_float32,
    gradient_model,
    is_rounded,
    original_of,
    rows_at_a_time,
    rows_per_pass,
    rows_to_hand_over,
)
from .starts import random_choices, random_points, sample_hashes
from .types import Bounds, Loss, Model, Norm, StepSize, Temperature

logger = logging.getLogger(__name__)

# On an H100 a pass of ResNet-18 in float32 takes as long over 64 rows as over 128, and twice that over 256.
_CLAIMS = 256
# And how many steps claims wait for others at most, where no sample waits for their places.
_PATIENCE = 5
# What is left standing by less than logits are rounded by takes the last of its steps again, one in so many,
# without rounding. In 13312 runs on CIFAR-10 bfloat16 lost 8 that float32 won from the same starts, and won 2
# that it lost; so it is 1 and 4, for 0.2 % more passes. Half of the steps finds no more.
_TAIL = 4
# Where a pass over fewer rows takes as long as one over so many: in float32, and to a gradient in bfloat16.
_LEAST = {False: 128, True: 1024}

SampleIds: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"


class _Fields(NamedTuple):
    adv_inputs: Tensor
    logits: Tensor
    success: Tensor
    margin: Tensor
    restart: Tensor
    forwards: Tensor
    backwards: Tensor


class AttackResult(_Fields):
    """What an attack found, one row per sample, in the order of the inputs. A tuple of the first seven.

    Attributes:
        adv_inputs: ``(N, ...)``, within the ball and the bounds. For a failed attack the best iterate
            (``keep="best"``), never silently the clean input.
        logits: ``(N, C)``, the model's logits of exactly ``adv_inputs``, at T = 1.
        success: ``(N,)`` bool; the prediction differs from the label (targeted: equals the target).
        margin: ``(N,)``, ``max_{j != y} z_j - z_y`` (targeted: ``z_t - max_{j != t} z_j``), larger =
            more adversarial.
        restart: ``(N,)``, the restart that found it, from 0; -1 where the clean input already did.
        forwards: ``(N,)``, forward passes spent on the sample, the clean one and those that verify an
            iterate included.
        backwards: ``(N,)``, backward passes spent on the sample.
        zero_gradients: ``(N,)``, at how many steps the loss had a zero or non-finite gradient, and the
            margin's gradient took its place.
        clean_margin: ``(N,)``, the margin of the clean input, which says how far the attack has come; NaN
            where nobody looked at it (``keep="last"`` without ``stop_on_success``), or only what gives the
            gradients did: on a GPU in less than float32 it is asked first, and the original where that one
            sees a success, and at the end about every input whose attack failed.
    """

    zero_gradients: Tensor
    clean_margin: Tensor


class Step(NamedTuple):
    """What an observer sees: one gradient step of the samples under way, before it is taken.

    Attributes:
        rows: ``(n,)``, which inputs these are, by their position in the call.
        restart: ``(n,)``, each sample's restart.
        step: ``(n,)``, each sample's own step, counted from 0.
        inputs: ``(n, ...)``, the points.
        logits: ``(n, C)``, of these points, at T = 1, from the model that the gradients come from.
        gradient: ``(n, ...)``, the direction of ascent before mask, momentum and norm.
    """

    rows: Tensor
    restart: Tensor
    step: Tensor
    inputs: Tensor
    logits: Tensor
    gradient: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class TemperaturePGD:
    """Projected gradient ascent on a loss of the logits divided by a temperature.

    With ``temperature=1.0`` and a fixed ``step_size`` it is plain PGD (Madry et al. 2018); a fixed
    temperature is paper A's attack (Tian et al., KDD 2021, arXiv 2105.14240); the default ``"gap"``
    takes each sample's own logit gap, the scale of MIFPE (Yu & Xu 2023), see
    :mod:`art_logits.temperature`.

    Args:
        eps: radius of the ball, in the unit of the inputs, >= 0; a number, or a tensor ``(N,)`` of one
            per sample; in Linf also one per element, in the shape of the inputs.
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``.
        steps: gradient steps per restart, >= 0.
        step_size: length of a step, in the norm and the unit of the inputs: a number > 0,
            ``"cosine"`` (2 eps to 0), ``"linear"`` (2 eps to 0), a callable ``(step, steps) -> float``, or
            a tensor as ``eps`` may be one.
        temperature: a number > 0, ``"gap"`` (alias ``"auto"``), a sequence of one number per step, or a
            callable ``(logits (N, C), step) -> (N,)``. ``margin`` and ``dlr`` do not depend on it.
        loss: ``"cross_entropy"``, ``"margin"``, ``"dlr"``, ``"probability_margin"``, or a callable
            ``(logits (N, C), labels (N,)) -> (N,)``, larger = more adversarial.
        restarts: runs per sample, >= 1; the best is kept, by success first and by margin then.
        redraw: share of the elements that a restart after the first draws anew, in (0, 1]; the others are
            those of the sample's best point so far. 1 for a start of its own. With less, restarts search on
            from what was found (basin hopping, Wales & Doye 1997), which pays where random starts end at
            different margins; a shorter first step, of half of eps, keeps them from losing it again.
        random_start: start from a uniform point of the ball instead of the input. Restarts after the
            first always do.
        targeted: ascend towards ``targets`` instead of away from ``labels``.
        bounds: range of valid inputs.
        stop_on_success: a sample leaves as soon as its attack succeeds, and is not attacked at all where
            the clean input does. Otherwise every step is taken.
        keep: ``"best"`` returns the best iterate, ``"last"`` the last one, as the hosts do.
        seed: of the random starts.
        momentum: share of the past in each step's direction, >= 0: ``g = momentum * g + grad / ||grad||_1``
            (MI-FGSM, Dong et al. 2018); 0 for none.
        start_radius: radius of the ball in which a run begins, in units of eps, >= 1. The ball shrinks to eps
            over the first two thirds of the steps, and what the run finds before does not count. For models
            whose gradients lead nowhere inside the ball and somewhere outside of it, as those trained in Linf
            and attacked in L2 may (after the decreasing radii of Croce & Hein 2021, arXiv 2103.01208, in L1).
            In L1, where a run within the ball leaves several times what AutoAttack does, take 6 and a
            ``step_size`` that falls from 8 eps; :func:`art_logits.cascade.quick` has more such runs.
        precision: what gradients are computed in: ``"float32"``, ``"bfloat16"``, or ``"auto"`` for bfloat16
            where a short probe finds it faster (:func:`art_logits.prepare.choose_precision`). Success and
            all that is reported come from the original model in float32 (TF32 is not), whatever this says;
            a float64 model stays float64. In bfloat16, with ``stop_on_success`` and ``keep="best"``, a sample
            left standing by no more than the rounding of its logits takes the last quarter of its steps
            again, from its best point, in float32.
        fuse: let the gradients of a model that is large enough for it to pay come from a copy with its batch
            norms folded into its convolutions and another memory layout (:func:`art_logits.prepare`). The
            results are those of float32 with other roundings; false, at precision ``"float32"``, for the
            plain model bit by bit, on a GPU in TF32 where torch computes so. So it is with
            ``keep="last", stop_on_success=False``, which is there to take the very steps that the hosts take.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range; the message says which and what was expected.

    >>> weights = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    >>> attack = TemperaturePGD(eps=0.2, steps=5)
    >>> result = attack(lambda x: x @ weights, torch.tensor([[0.6, 0.5]]), torch.tensor([0]))
    >>> result.success
    tensor([True])
    """

    eps: float | Tensor = 8 / 255
    norm: Norm = "Linf"
    steps: int = 20
    step_size: float | Literal["cosine", "linear"] | StepSize | Tensor = "cosine"
    temperature: float | Literal["gap", "auto"] | tuple[float, ...] | list[float] | Temperature = "gap"
    loss: str | Loss = "cross_entropy"
    restarts: int = 1
    redraw: float = 1.0
    random_start: bool = True
    targeted: bool = False
    bounds: Bounds | tuple[float, float] = (0.0, 1.0)
    stop_on_success: bool = True
    keep: Literal["best", "last"] = "best"
    seed: int = 0
    momentum: float = 0.0
    start_radius: float = 1.0
    precision: Precision = "auto"
    fuse: bool = True

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "eps": _checks.epsilons(self.eps),
            "steps": _checks.integer("steps", self.steps, at_least=0),
            "restarts": _checks.integer("restarts", self.restarts, at_least=1),
            "seed": _checks.integer("seed", self.seed, at_least=0),
            "bounds": _checks.bounds(self.bounds),
            "keep": _checks.choice("keep", self.keep, ("best", "last")),
            "momentum": _checks.number("momentum", self.momentum, at_least=0.0),
            "start_radius": _checks.number("start_radius", self.start_radius, at_least=1.0),
            "redraw": _checks.number("redraw", self.redraw, above=0.0, at_most=1.0),
            "precision": _checks.choice("precision", self.precision, PRECISIONS),
        }
        for flag in ("random_start", "targeted", "stop_on_success", "fuse"):
            checked[flag] = _checks.boolean(flag, getattr(self, flag))
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        get_ball(self.norm)
        get_loss(self.loss)
        step_sizes.resolve(self.step_size, self.steps)
        temperatures.resolve(self.temperature, self.steps)

    def config(self) -> dict[str, Any]:
        """All arguments as JSON can hold them: tensors become lists, callables their names."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TemperaturePGD) or self.config() != other.config():
            return False
        # Two callables may share a name: every lambda of a function does.
        pairs = [(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return all(_same_function(mine, theirs) for mine, theirs in pairs if callable(mine))

    def __hash__(self) -> int:
        return hash(json.dumps(self.config(), sort_keys=True))

    def __call__(
        self,
        model: Model,
        inputs: Tensor,
        labels: Tensor,
        sample_ids: Tensor | np.ndarray[Any, Any] | list[int] | None = None,
        targets: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        batch_size: int | Batches | None = None,
        observer: Callable[[Step], None] | None = None,
        judge: bool = True,
        clean_logits: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> AttackResult:
        """Attack a batch; the model comes back exactly as it was, and no global random state is used.

        Args:
            model: maps inputs to logits ``(N, C)``, ``C >= 2``. It is held in eval mode meanwhile. From a
                prepared one (:func:`art_logits.prepare`) come the gradients, as it computes them.
            inputs: ``(N, ...)``, floating point, within the bounds.
            labels: ``(N,)``, true classes.
            sample_ids: ``(N,)`` integers that key the random starts; a hash of each sample's bytes and
                label where absent.
            targets: ``(N,)``, target classes, for a targeted attack.
            mask: weight >= 0 of each element, of a shape that broadcasts to the inputs; elements of
                weight 0 stay as they are.
            batch_size: samples under way at a time, and at most in one pass of the model; all of them
                where absent. It changes speed and memory, not results, and is halved where the memory does
                not suffice. Who attacks part after part may share one ``Batches`` among the calls, which
                remembers what fits.
            observer: called with each :class:`Step`, for a progress bar or a log. It must not change the
                tensors that it is given.
            judge: False where ``adv_inputs`` is all that is wanted, as in adversarial training: the pass
                that would judge a last iterate is spared where nothing is chosen by it (``keep="last"``,
                ``restarts=1``, no ``stop_on_success``), and the result then says no success, the margin
                ``-inf`` and the logits NaN.
            clean_logits: ``(N, C)``, ``C >= 2``, the model's logits of the inputs, where the caller has them:
                the pass that would find them, where one is made, is spared, and not counted.
            starts: ``(N, ...)``, where the first run of each sample begins, as what another attack has found:
                the nearest points of ball and bounds.

        Raises:
            TypeError: inputs, labels, ids, starts or the model's output are of the wrong type.
            ValueError: they have the wrong shape or range; targets are missing, or given without
                ``targeted=True``.
            torch.OutOfMemoryError: not even a single sample fits the memory.
        """
        gradients_of, model = model, original_of(model)
        inputs = _checks.inputs(inputs, Bounds(*self.bounds))
        labels = _checks.labels("labels", labels, len(inputs), inputs.device)
        goals = self._goals(labels, targets)
        if not isinstance(batch_size, Batches):
            size = len(inputs) if batch_size is None else batch_size
            batch_size = Batches(_checks.integer("batch_size", size, at_least=1))
        # Inference mode would forbid gradients for good; no_grad is lifted where a gradient is taken.
        with torch.inference_mode(False), evaluating(model):
            ids = None if sample_ids is None else _checks.sample_ids(sample_ids, len(inputs))
            if ids is None and (self.random_start or self.restarts > 1):  # nothing else asks for ids
                ids = sample_hashes(inputs, labels)
            proxy = self._gradient_model(gradients_of, inputs)
            peaks = proxy is not None and self.keep == "best"
            region = _Region(self, inputs.clone(), mask, peaks)
            if starts is not None:
                region.starts = _checks.starts(starts, inputs)
            book = _Book(self, model, proxy, region.inputs, goals.clone(), batch_size, judge)
            # A run from the input itself has no iterate before its first step.
            book.earliest = int(not self.random_start and starts is None)
            if ids is not None:
                region.ids, region.ahead = ids, book.size
            if book.chooses:
                book.open(clean_logits)
            cases = book.open_cases()
            self._run(region, book, cases, region.start(cases, 0, book.x), observer)
            if len(near := book.near_misses()):
                book.take_over()
                step = self.steps - math.ceil(self.steps / _TAIL)
                slots = region.resume(near, book.restart[near], step, book.x[near])
                self._run(region, book, cases[:0], slots, observer)
            return book.result()

    @property
    def looks_at_inputs(self) -> bool:
        """Whether the inputs' own logits matter: not if every step is taken and the last point returned."""
        return self.keep == "best" or self.stop_on_success

    def _gradient_model(self, model: Model, inputs: Tensor) -> Model | None:
        precision: str = self.precision
        if precision == "auto" and isinstance(model, Prepared):
            precision = model.precision
        elif precision == "auto":
            precision = choose_precision(model, inputs, fuse=self.fuse)
        # The last of all steps is what the hosts return: in float32 it must be the same point as theirs.
        as_hosts = self.keep == "last" and not self.stop_on_success and precision == "float32"
        return gradient_model(model, inputs, precision, fuse=self.fuse and not as_hosts)

    def _goals(self, labels: Tensor, targets: Tensor | None) -> Tensor:
        if not self.targeted:
            if targets is not None:
                raise ValueError("targets were given to an untargeted attack: pass targeted=True to use them")
            return labels
        if targets is None:
            raise ValueError("targets must be given, one class per input, because targeted=True")
        return _checks.labels("targets", targets, len(labels), labels.device)

    def _run(
        self,
        region: _Region,
        book: _Book,
        waiting: Tensor,
        slots: _Slots,
        observer: Callable[[Step], None] | None,
    ) -> None:
        """The loop: fill the free slots, step every slot, let go of what is solved or has run its course."""
        landed = slots.take(slice(0))
        claims, waited = _Claims(landed, landed.x), 0
        while len(waiting) or len(slots) or len(landed) or len(claims):
            free = max(0, book.size - len(slots))
            if free and len(waiting):
                slots, waiting = slots.join(region.start(waiting, free, book.x)), waiting[free:]
            if self.steps:
                logits, grad = book.gradient(slots)
                if observer is not None:
                    observer(Step(slots.index, slots.restart, slots.step, slots.x, logits, grad))
                slots, leaving = book.enter(slots, logits)
                if leaving is not None and len(rows := _where(leaving)):
                    if book.proxy is not None:
                        claims = claims.join(_Claims(slots, grad).take(rows))
                    going = _where(~leaving)
                    slots, grad = slots.take(going), grad[going]
                slots = region.ascend(slots, grad)
            slots, landed = self._parted(slots, landed)
            # A claim can wait for others, as one pass for all of them costs less; what is refuted goes on.
            waited += bool(len(claims))
            if len(claims) and (len(claims) >= book.enough(len(slots), len(waiting), waited)):
                if len(refuted := book.refute(claims)):
                    back, landed = self._parted(region.ascend(refuted.slots, refuted.grad), landed)
                    slots = slots.join(back)
                claims, waited = claims.take(slice(0)), 0
            # A last iterate needs no gradient: these are evaluated together, unless others wait for it.
            if len(landed) and (len(landed) >= book.size or self._nothing_else(waiting, slots, landed)):
                unsolved = _where(~book.land(landed))
                waiting = torch.cat([waiting, landed.take(unsolved).next_restarts(self.restarts)])
                landed = landed.take(slice(0))

    def _parted(self, slots: _Slots, landed: _Slots) -> tuple[_Slots, _Slots]:
        """Those that go on, and those that have run their course, behind the ones that had before."""
        done = slots.step >= self.steps
        if len(rows := _where(done)):
            return slots.take(_where(~done)), landed.join(slots.take(rows))
        return slots, landed

    def _nothing_else(self, waiting: Tensor, slots: _Slots, landed: _Slots) -> bool:
        """Whether free slots wait for those that have landed."""
        if len(waiting):
            return False
        return not len(slots) or bool((landed.restart + 1 < self.restarts).any())


def pgd(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    *,
    sample_ids: Tensor | np.ndarray[Any, Any] | list[int] | None = None,
    targets: Tensor | None = None,
    mask: Tensor | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> AttackResult:
    """Run :class:`TemperaturePGD` in one call: ``options`` are its arguments, with its defaults.

    Raises:
        TypeError: an unknown option, or as :class:`TemperaturePGD` raises.
        ValueError: as :class:`TemperaturePGD` raises.

    >>> weights = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    >>> x, y = torch.tensor([[0.6, 0.5]]), torch.tensor([0])
    >>> pgd(lambda x: x @ weights, x, y, eps=0.01, temperature=0.5).success
    tensor([False])
    """
    attack = TemperaturePGD(**options)
    return attack(model, inputs, labels, sample_ids, targets, mask=mask, batch_size=batch_size)


@dataclass(frozen=True)
class _Slots:
    """Samples under way, one per row: which sample, in which restart, at which step, at which point.

    ``velocity`` is the accumulated direction of a momentum attack, and has no columns in any other.
    ``peak`` is the best point of this restart that the original model has not seen, ``height`` its margin;
    where that model gives the gradients too, it has seen them all, and ``peak`` has no columns.
    """

    index: Tensor
    restart: Tensor
    step: Tensor
    x: Tensor
    velocity: Tensor
    peak: Tensor
    height: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def columns(self) -> tuple[Tensor, ...]:
        return self.index, self.restart, self.step, self.x, self.velocity, self.peak, self.height

    def take(self, rows: Tensor | slice) -> _Slots:
        """The slots at these positions, in their order."""
        if isinstance(rows, Tensor) and len(rows) == len(self):
            return self
        return _Slots(*(column[rows] for column in self.columns()))

    def join(self, other: _Slots) -> _Slots:
        if not (len(self) and len(other)):
            return self if len(self) else other
        return _Slots(*(torch.cat(pair) for pair in zip(self.columns(), other.columns(), strict=True)))

    def next_restarts(self, restarts: int) -> Tensor:
        cases = torch.stack([self.index, self.restart + 1], dim=1)
        return cases[cases[:, 1] < restarts]


@dataclass(frozen=True)
class _Claims:
    """Points that a stand-in for the model calls a success, with the gradients there, should they be none."""

    slots: _Slots
    grad: Tensor

    def __len__(self) -> int:
        return len(self.slots)

    def take(self, rows: Tensor | slice) -> _Claims:
        """The claims at these positions, in their order."""
        return _Claims(self.slots.take(rows), self.grad[rows])

    def join(self, other: _Claims) -> _Claims:
        return _Claims(self.slots.join(other.slots), torch.cat([self.grad, other.grad]))


class _Region:
    """Where the attack may go: the ball around each input, within the bounds, on the mask."""

    def __init__(self, attack: TemperaturePGD, inputs: Tensor, mask: Tensor | None, peaks: bool) -> None:
        self.attack, self.inputs, self.peaks = attack, inputs, peaks
        self.ids: SampleIds = np.zeros(len(inputs), np.int64)
        #: For how many of those who wait points are drawn at a time, and those drawn that none has taken yet.
        self.ahead, self.points = 0, inputs[:0]
        self.starts: Tensor | None = None
        self.ball = get_ball(attack.norm)
        tensors = (b.to(inputs) if isinstance(b, Tensor) else b for b in attack.bounds)
        self.bounds = Bounds(*tensors)  # numbers stay numbers, which are clipped to in a tenth of the time
        sizes = step_sizes.resolve(attack.step_size, attack.steps)
        self.lengths = sizes._replace(lengths=sizes.lengths.to(inputs))  # once, not in every step
        self.mask = None if mask is None else _checks.mask(mask, inputs)
        self.eps = self.unit = self._per_sample("eps", attack.eps)
        # By the number of steps taken; None for a ball that stays as it is.
        self.radii: Tensor | None = None
        if attack.start_radius > 1:
            self.radii = step_sizes.radii(attack.start_radius, attack.steps).to(inputs)
        if isinstance(attack.step_size, Tensor):
            self.unit = self._per_sample("step_size", attack.step_size)

    def _per_sample(self, name: str, value: float | Tensor) -> Tensor:
        """``value`` with a row per input: ``(N, 1, ...)``, or in Linf the shape of the inputs."""
        count, like = len(self.inputs), self.inputs
        result = torch.as_tensor(value, dtype=like.dtype, device=like.device)
        if result.ndim == 0 or result.shape == (count,):
            return result.expand(count).view(-1, *[1] * (like.ndim - 1))
        if self.ball.separable and result.shape == like.shape:
            return result
        elementwise = f"; in Linf also {tuple(like.shape)}" if self.ball.separable else ""
        raise ValueError(
            f"{name} must be a number or have shape ({count},), got {tuple(result.shape)}{elementwise}"
        )

    def start(self, waiting: Tensor, count: int, best: Tensor) -> _Slots:
        """Slots for the first ``count`` of those who wait, rows of (index, restart), each at its own start.

        ``best`` are the best points of all samples so far, which restarts may begin near.
        """
        index, restart = waiting[:count].unbind(dim=1)
        x, step = self.inputs[index], torch.zeros_like(index)
        noisy = ((restart > 0) | self.attack.random_start).nonzero().squeeze(1)
        if len(noisy):
            rows, base = index[noisy], x[noisy]
            radius = self._radius(rows, step[noisy])
            if self.attack.random_start:
                points = self._drawn(waiting, len(index))
            else:
                points = random_points(self.ball, base, **self._keys(rows, restart[noisy]))
            delta = self._masked(rows, points * radius)
            if self.attack.redraw < 1:
                first = (restart[noisy] == 0).view(-1, *[1] * (x.ndim - 1))
                drawn = first | random_choices(self.attack.redraw, base, **self._keys(rows, restart[noisy]))
                delta = torch.where(drawn, delta, best[rows] - base)
            x[noisy] = self._within(base, radius, delta)
        if self.starts is not None and len(known := _where(restart == 0)):
            rows, base = index[known], self.inputs[index[known]]
            delta = self.starts[rows] - base
            if self.mask is not None:
                delta = delta.masked_fill(self.mask[rows] == 0, 0)
            x[known] = self._within(base, self._radius(rows, step[known]), delta)
        return self._slots(index, restart, step, x)

    def resume(self, index: Tensor, restart: Tensor, step: int, x: Tensor) -> _Slots:
        """Slots for runs that go on from these points, of which so many steps are behind them."""
        return self._slots(index, restart, torch.full_like(index, step), x)

    def _slots(self, index: Tensor, restart: Tensor, step: Tensor, x: Tensor) -> _Slots:
        nothing = x.flatten(1)[:, :0]
        velocity = torch.zeros_like(x) if self.attack.momentum else nothing
        height = x.new_full((len(x),), -torch.inf)
        return _Slots(index, restart, step, x, velocity, x if self.peaks else nothing, height)

    def _drawn(self, waiting: Tensor, count: int) -> Tensor:
        """Points of the unit ball for the first of those who wait, in their order."""
        points = self.points
        if len(points) < count:
            # Drawing takes as long for few points as for many, on a GPU, and half as long on a CPU: those who
            # come next, too.
            index, restart = waiting[len(points) : max(count, self.ahead)].unbind(dim=1)
            more = random_points(self.ball, self.inputs[index], **self._keys(index, restart))
            points = torch.cat([points, more]) if len(points) else more
        # An empty view would keep all that were drawn.
        self.points = points[count:] if len(points) > count else points[:0].clone()
        return points[:count]

    def _keys(self, rows: Tensor, restart: Tensor) -> dict[str, Any]:
        """What the random numbers of these starts depend on."""
        ids = self.ids[rows.cpu().numpy()]
        return {"seed": self.attack.seed, "sample_ids": ids, "restarts": restart.cpu().numpy()}

    def ascend(self, slots: _Slots, grad: Tensor) -> _Slots:
        """One step of steepest ascent, projected onto the ball and then onto the bounds."""
        rows, velocity = slots.index, slots.velocity
        grad = self._masked(rows, grad)
        if self.attack.momentum:
            length = grad.flatten(1).abs().sum(dim=1).clamp_min(torch.finfo(grad.dtype).tiny)
            grad = velocity = self.attack.momentum * velocity + grad / length.view(-1, *[1] * (grad.ndim - 1))
        room = grad
        if not self.ball.separable:
            lower, upper = self.bounds
            room = torch.where(grad > 0, upper - slots.x, slots.x - lower)
        step = self.ball.step(grad, self.lengths.at(slots.step, self.unit[rows]), room)
        base = self.inputs[rows]
        delta = self._masked(rows, step).add_(slots.x).sub_(base)
        x = self._within(base, self._radius(rows, slots.step + 1), delta)
        return replace(slots, step=slots.step + 1, x=x, velocity=velocity)

    def _radius(self, rows: Tensor, step: Tensor) -> Tensor:
        """Radius of the ball around each of these rows after so many steps."""
        eps = self.eps[rows]
        return eps if self.radii is None else eps * self.radii[step].view(-1, *[1] * (eps.ndim - 1))

    def _within(self, base: Tensor, eps: Tensor, delta: Tensor) -> Tensor:
        """The nearest points of the ball, then of the bounds; overwrites ``delta``."""
        x = self.ball.project(delta, eps).add_(base)
        lower: Any  # torch's stubs know pairs of numbers and pairs of tensors, and no pair of either
        upper: Any
        lower, upper = self.bounds
        return x.clamp_(lower, upper)

    def _masked(self, rows: Tensor, values: Tensor) -> Tensor:
        return values if self.mask is None else values * self.mask[rows]


class _Book:
    """The best result of each sample so far, and the passes of the model that it took.

    Only what the original model has seen is written down. Where another one gives the gradients, its logits
    tell which iterates are worth that pass: those it calls a success, and the best of each restart.
    """

    def __init__(
        self,
        attack: TemperaturePGD,
        model: Model,
        proxy: Model | None,
        inputs: Tensor,
        goals: Tensor,
        batches: Batches,
        judge: bool,
    ) -> None:
        self.attack, self.model, self.proxy, self.goals, self.batches = attack, model, proxy, goals, batches
        # As many slots as asked for, in passes that a CPU likes. A function of the user's sees all of them.
        custom = callable(attack.loss) or temperatures.is_custom(attack.temperature)
        self.at_most = {False: _most_rows(model, inputs, least=_LEAST[False]), True: None}
        if not custom:
            dtype = getattr(proxy, "dtype", None)
            self.at_most[True] = _most_rows(model, inputs, least=_LEAST[True], dtype=dtype)
        self.claims = rows_per_pass(model, inputs) or _CLAIMS
        self.loss = get_loss(attack.loss)
        self.temperature = temperatures.resolve(attack.temperature, attack.steps)
        self.forwards, self.backwards, self.zeros = (torch.zeros_like(goals) for _ in range(3))
        self.one, self.inputs = goals.new_ones(1), inputs
        #: Whether what gives the gradients has looked at the clean inputs, and the original at some of them.
        self.proposes = False
        self.x, self.logits = inputs.clone(), inputs.new_empty(0)
        self.restart = torch.full_like(goals, -1)
        self.success = torch.zeros_like(goals, dtype=torch.bool)
        self.margin = inputs.new_empty(0)
        self.clean_margin = inputs.new_full((len(goals),), torch.nan)
        # Hosts that want the last iterate, whatever the clean input does, are spared its pass.
        self.chooses = attack.looks_at_inputs
        self.settled = step_sizes.settled_at(attack.start_radius, attack.steps)
        self.earliest = 0
        self.judges = judge or self.chooses or attack.restarts > 1 or not attack.steps

    @property
    def size(self) -> int:
        """How many samples are under way at a time."""
        return self.batches.size

    def enough(self, under_way: int, waiting: int, waited: int) -> int:
        """How many claims are worth a pass of the original, once the first has waited for so many steps."""
        if not (under_way or waiting):
            return 1
        if not _on_gpu(self.inputs):
            return self.claims
        # A pass over few rows takes as long as one over some more: the refuted go on beside others, and not
        # after them.
        return 1 if waited >= _PATIENCE and not waiting else min(self.claims, under_way)

    def open(self, known: Tensor | None) -> None:
        """A clean input that already succeeds is a result; one that does not is no iterate of the attack."""
        if known is not None:
            clean = _checks.clean_logits(known, len(self.inputs)).detach()
        else:
            self.proposes = self.attack.stop_on_success and is_rounded(self.proxy, self.inputs.device)
            clean = self._logits(self.inputs, proxy=self.proposes)
            self.forwards += 1
        self._allocate(clean)
        everyone = torch.arange(len(clean), device=clean.device)
        if self.proposes:
            _, success = self._outcome(clean, self.goals)
            self._see(everyone[success])
        else:
            self._know(everyone, clean)

    def _see(self, index: Tensor) -> None:
        """Show these clean inputs to the original."""
        if len(index):
            self.forwards[index] += 1
            self._know(index, self._logits(self.inputs[index]))

    def _know(self, index: Tensor, clean: Tensor) -> None:
        if bool(clean.isnan().any()):
            raise ValueError("model must return finite logits, got NaN for a clean input")
        margin, success = self._outcome(clean, self.goals[index])
        self.clean_margin = self.clean_margin.to(margin.dtype)
        self.clean_margin[index] = margin
        # Where an attack has found nothing, the point is still the clean input.
        nothing = self.margin[index] == -torch.inf
        self.logits[index[nothing]] = clean[nothing]
        rows = index[success]
        self.x[rows], self.logits[rows] = self.inputs[rows], clean[success]
        self.restart[rows], self.success[rows], self.margin[rows] = -1, True, margin[success]

    def _allocate(self, like: Tensor) -> None:
        """The number of classes and the precision are known with the first logits only."""
        if not len(self.logits):
            classes = like.shape[1]
            _checks.in_range("targets" if self.attack.targeted else "labels", self.goals, classes)
            self.logits = like.new_full((len(self.goals), classes), torch.nan)
            self.margin = like.new_full((len(self.goals),), -torch.inf)
        elif self.logits.dtype != like.dtype:  # known logits came in another than the model's
            self.logits, self.margin = self.logits.to(like), self.margin.to(like)

    def open_cases(self) -> Tensor:
        """The samples to attack, as rows of (index, restart)."""
        index = torch.arange(len(self.goals), device=self.goals.device)
        if self.attack.stop_on_success:
            index = index[~self.success]
        return torch.stack([index, torch.zeros_like(index)], dim=1)

    def forward(self, slots: _Slots, *, proxy: bool = False) -> Tensor:
        """Logits at the slots' points, from the original model or the one that stands in for it."""
        logits = self._logits(slots.x, proxy=proxy)
        self._count(self.forwards, slots)
        self._allocate(logits)
        return logits

    def _count(self, counter: Tensor, slots: _Slots) -> None:
        """One more for each slot's sample; a landed sample may be there more than once."""
        counter.index_add_(0, slots.index, self.one.expand(len(slots)))

    def _logits(self, x: Tensor, *, proxy: bool = False) -> Tensor:
        def part(rows: slice) -> Tensor:
            with torch.no_grad():
                return self._ask(x[rows], proxy=proxy)

        return torch.cat(self.batches.run(part, len(x), at_most=self.at_most[proxy]))

    def _ask(self, x: Tensor, *, proxy: bool) -> Tensor:
        count, rows = len(x), rows_to_hand_over(self.model, x, most=self.batches.size)
        if rows > count:
            x = torch.cat([x, x[:1].detach().expand(rows - count, *x.shape[1:])])
        if proxy and self.proxy is not None:
            return _checks.logits(self.proxy(x), rows)[:count]
        with full_float32():
            return _checks.logits(self.model(x), rows)[:count]

    def gradient(self, slots: _Slots) -> tuple[Tensor, Tensor]:
        """Logits and loss gradient at the slots' points; the margin's gradient where that one vanishes."""
        logits, grad = self._pass(slots, self._tempered)
        largest = grad.flatten(1).abs().amax(dim=1)
        lost = _where(~((largest > 0) & (largest < torch.inf)))
        if len(lost):
            rest = slots.take(lost)
            self._count(self.zeros, rest)
            grad[lost] = self._pass(rest, lambda z, goals, step: margin_loss(z, goals))[1].nan_to_num(0, 0, 0)
        return logits, grad

    def _tempered(self, logits: Tensor, goals: Tensor, step: Tensor) -> Tensor:
        scale = self.temperature(logits.detach(), step)
        return _checks.per_sample("loss", self.loss(logits / scale.unsqueeze(1), goals), len(goals))

    def _pass(self, slots: _Slots, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        def part(rows: slice) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                x = slots.x[rows].detach().requires_grad_()
                logits = self._ask(x, proxy=True)
                self._allocate(logits)
                # The sum, never the mean: a sample's gradient must not know how many others are in the batch.
                value = loss(logits, self.goals[slots.index[rows]], slots.step[rows]).sum()
                (grad,) = torch.autograd.grad(-value if self.attack.targeted else value, x)
            # A prepared model's comes with its channels last: the original would get the next point so, for
            # which a GPU has no good kernels in float32.
            return logits.detach(), grad.contiguous()

        logits, grads = zip(*self.batches.run(part, len(slots), at_most=self.at_most[True]), strict=True)
        for counter in (self.forwards, self.backwards):
            self._count(counter, slots)
        return _joined(logits), _joined(grads)

    def enter(self, slots: _Slots, logits: Tensor) -> tuple[_Slots, Tensor | None]:
        """Note what a pass of the model that gives the gradients has shown.

        Returns:
            The slots, and which of them leave, ``(n,)`` bool: those that are solved, or claim to be where it
            was not the original that was asked; None where none can.
        """
        if not self.chooses:
            return slots, None
        if self.proxy is None:
            solved = self._note(slots, logits, final=False)
            return slots, solved if self.attack.stop_on_success else None
        margin, success = self._outcome(logits, self.goals[slots.index])
        claimed = success & self._moved(slots) & self.attack.stop_on_success
        if self.attack.keep == "best":
            # What the original is going to see is no candidate for the end of the restart.
            slots = self._raised(slots, self._moved(slots) & ~claimed & (margin > slots.height), margin)
        return slots, claimed if self.attack.stop_on_success else None

    def refute(self, claims: _Claims) -> _Claims:
        """Show the original what another model has called a success; returns those claims that are none."""
        # A run that was refuted may claim again: near a boundary, the next claim can be right.
        return claims.take(_where(~self._note(claims.slots, self.forward(claims.slots), final=False)))

    def land(self, slots: _Slots) -> Tensor:
        """Note how a restart ended; returns which samples need no further attack."""
        if not self.judges:
            self.x[slots.index], self.restart[slots.index] = slots.x, slots.restart
            return torch.ones_like(slots.index, dtype=torch.bool)
        if self.proxy is None or self.attack.keep == "last":
            solved = self._note(slots, self.forward(slots), final=True)
        else:
            solved = self._land_best(slots)
        if self.proposes:
            # None is called robust whose clean input the original has not called right.
            left = slots.index[~solved]
            self._see(left[self.clean_margin[left].isnan()])
            solved |= self.success[slots.index]
        return solved

    def _land_best(self, slots: _Slots) -> Tensor:
        """Show the original the last iterates that are claimed, and of the others the best of the restart."""
        slots, claimed = self.enter(slots, self.forward(slots, proxy=True))
        if claimed is None:
            claimed = torch.zeros_like(slots.index, dtype=torch.bool)
        # One pass for both.
        wide = claimed.view(-1, *[1] * (slots.x.ndim - 1))
        shown = replace(slots, x=torch.where(wide, slots.x, slots.peak))
        solved = self._note(shown, self.forward(shown), final=True)
        if len(refuted := _where(claimed & ~solved)):
            rest = slots.take(refuted)
            rest = replace(rest, x=rest.peak)
            solved[refuted] = self._note(rest, self.forward(rest), final=True)
        return solved

    def near_misses(self) -> Tensor:
        """Which samples, by their position, were left standing by no more than another model's rounding."""
        dtype = getattr(self.proxy, "dtype", None)
        if dtype is None or not self.attack.stop_on_success or self.attack.keep != "best":
            return self.goals[:0]
        rounding = torch.finfo(dtype).eps / 2 * self.logits.abs().amax(dim=1)
        return _where(~self.success & (self.margin > -rounding))

    def take_over(self) -> None:
        """Let the original give the gradients from here on."""
        self.proxy = None
        if self.at_most[True] is not None:  # as it is where a function of the user's sees all slots
            self.at_most[True] = self.at_most[False]

    def _raised(self, slots: _Slots, rows: Tensor, margin: Tensor) -> _Slots:
        if bool(rows.all()):
            return replace(slots, peak=slots.x, height=margin)
        wide = rows.view(-1, *[1] * (slots.x.ndim - 1))
        return replace(
            slots, peak=torch.where(wide, slots.x, slots.peak), height=torch.where(rows, margin, slots.height)
        )

    def _moved(self, slots: _Slots) -> Tensor:
        """Which points are iterates: not the clean input, where a run starts from it, nor one outside eps."""
        if self.settled or not self.earliest:
            return slots.step >= self.settled
        return (slots.step >= self.earliest) | (slots.restart > 0)

    def _note(self, slots: _Slots, logits: Tensor, *, final: bool) -> Tensor:
        """Write down the points that beat what is in the book; returns which samples are solved."""
        index = slots.index
        margin, success = self._outcome(logits, self.goals[index])
        leaving = success & self.attack.stop_on_success
        if self.settled:
            leaving &= slots.step >= self.settled
        better = (success & ~self.success[index]) | (
            (success == self.success[index]) & (margin > self.margin[index])
        )
        eligible = self._moved(slots) if self.attack.keep == "best" else leaving
        eligible = eligible | final
        won = _where(better & eligible)
        rows = index[won]
        self.x[rows], self.logits[rows] = slots.x[won], logits[won]
        self.margin[rows], self.success[rows] = margin[won], success[won]
        self.restart[rows] = slots.restart[won]
        return leaving

    def _outcome(self, logits: Tensor, goals: Tensor) -> tuple[Tensor, Tensor]:
        """Margin, larger = more adversarial, and success, by the prediction that a user would recompute."""
        hit = logits.argmax(dim=1) == goals
        margin, success = label_margin(logits, goals), hit
        if not self.attack.targeted:
            margin, success = -margin, ~hit
        # A point at which the model breaks down is no adversarial example.
        broken = logits.isnan().any(dim=1)
        return margin.masked_fill(broken, -torch.inf), success & ~broken

    def result(self) -> AttackResult:
        lost = int((self.zeros > 0).sum())
        if lost:
            # Training calls this for every batch: the count is in the result, the log is for the curious.
            logger.info(
                "zero or non-finite gradient of the loss on %d of %d samples; the margin's gradient was used",
                lost,
                len(self.zeros),
            )
        result = AttackResult(
            self.x, self.logits, self.success, self.margin, self.restart, self.forwards, self.backwards
        )
        result.zero_gradients, result.clean_margin = self.zeros, self.clean_margin
        return result


def _on_gpu(inputs: Tensor) -> bool:
    """Whether it is not rows but passes, and what is done between them, that take the time."""
    return inputs.is_cuda


def _most_rows(
    model: Model, inputs: Tensor, *, least: int, **options: Any
) -> int | Callable[[int], int] | None:
    """How many rows a pass has at most, as :meth:`Batches.run` takes it; options are a CPU's."""
    if _on_gpu(inputs):
        return functools.partial(rows_at_a_time, least=least)
    return rows_per_pass(model, inputs, **options)


def _where(mask: Tensor) -> Tensor:
    """The positions of a mask. Each use of a mask makes a GPU wait, that of positions does not."""
    return mask.nonzero().squeeze(1)


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _same_function(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, functools.partial) and isinstance(theirs, functools.partial):
        # Their arguments are in the config; two partials are never equal themselves.
        return _same_function(mine.func, theirs.func)
    return bool(mine == theirs)


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it."""
    if isinstance(value, Tensor | np.generic):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, functools.partial):
        return {
            "function": _plain(value.func),
            "args": _plain(value.args),
            "keywords": _plain(value.keywords),
        }
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if callable(value):
        # An instance by its class: its default repr holds an address, which no second process shares.
        return getattr(value, "__qualname__", None) or type(value).__qualname__
    return value
