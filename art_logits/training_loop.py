"""The training loop: batches, averaging, validation, checkpoints, resuming, one process or several.

What a step minimises is the caller's: :func:`art_logits.training.fit` trains adversarially,
:func:`art_logits.distill.distill` distils. Both hand a function from a :class:`Batch` to the loss of each of
its samples to a :class:`TrainingRun`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from . import _checks
from ._extras import require
from ._files import locked, replacing
from .attack import TemperaturePGD
from .data import Data, as_data
from .prepare import PRECISIONS, PROBE, Cast, Precision, choose_precision, evaluating
from .pretrained import Pretrained

logger = logging.getLogger(__name__)

Augment: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "model.safetensors"
HISTORY = "history.json"


# ----------------------------------------------------------------------------------------------------------
# What goes in and what comes out


@dataclass(frozen=True, kw_only=True)
class LoopRecipe:
    """The arguments of the loop that shape its result, checked.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range.
    """

    epochs: int
    batch_size: int
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    ema: float | None = None
    augment: str = "none"
    precision: Precision = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        checked = {
            "epochs": _checks.integer("epochs", self.epochs, at_least=1),
            "batch_size": _checks.integer("batch_size", self.batch_size, at_least=1),
            "lr": _checks.number("lr", self.lr, above=0.0),
            "momentum": 0.0 if self.momentum == 0 else _fraction("momentum", self.momentum),
            "weight_decay": _checks.number("weight_decay", self.weight_decay, at_least=0.0),
            "ema": None if self.ema is None else _fraction("ema", self.ema),
            "augment": _checks.choice("augment", self.augment, AUGMENTATIONS),
            "seed": _checks.integer("seed", self.seed, at_least=0),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON holds it; what a resumed run must agree with."""
        return dict(self.__dict__)


def _fraction(name: str, value: float) -> float:
    if not 0 < _checks.number(name, value) < 1:
        raise ValueError(f"{name} must lie in (0, 1), got {value!r}")
    return float(value)


@dataclass
class History:
    """One row per epoch: epoch, lr, loss, seconds and, with validation data, accuracies.

    ``zero_gradients`` is the share of the samples whose loss had no gradient at some step of the inner
    attack; where it grows, the network is dying: lower ``lr``. ``clean_accuracy``, ``robust_accuracy`` and
    ``worst_class_accuracy`` (robust, of the class with the lowest) are those of the validation data.

    Attributes:
        rows: the epochs, oldest first. Accuracies are fractions, of the averaged weights if there are any.
    """

    rows: list[dict[str, float]] = field(default_factory=list)

    def to_frame(self) -> Any:
        """The rows as a pandas DataFrame (needs the extra ``evaluate``)."""
        return require("pandas", extra="evaluate").DataFrame(self.rows)


class Batch(NamedTuple):
    """What a step sees: this process's part of a batch, on its device.

    Attributes:
        inputs: ``(n, ...)``, augmented.
        labels: ``(n,)``.
        ids: ``(n,)`` sample ids on the CPU, or None where there are none.
        seed: of the random starts: another one in each epoch.
        progress: share of the epochs that lie behind, in [0, 1).
    """

    inputs: Tensor
    labels: Tensor
    ids: Tensor | None
    seed: int
    progress: float


class Part(NamedTuple):
    """This process's part of a batch, on the CPU: inputs, labels, ids, and the size of the whole batch."""

    inputs: Tensor
    labels: Tensor
    ids: Tensor | None
    total: int


class Source(Protocol):
    """Where the batches of an epoch come from."""

    def __len__(self) -> int:
        """Number of samples."""

    @property
    def batches(self) -> int:
        """Number of batches in an epoch."""

    def epoch(self, seed: int, team: Team) -> Iterator[Part]:
        """The batches of an epoch; the same order in every process."""


class DataSource:
    """Batches of :class:`art_logits.data.Data` in a random order, of nearly equal size, augmented.

    Args:
        data: the samples.
        batch_size: the largest size of a batch, over all processes.
        augment: name of the augmentation.
    """

    def __init__(self, data: Data, batch_size: int, augment: str) -> None:
        self.data, self.augment = data, augment
        self.batches = -(-len(data) // batch_size)

    def __len__(self) -> int:
        return len(self.data)

    def epoch(self, seed: int, team: Team) -> Iterator[Part]:
        """A permutation of all samples, cut into batches."""
        rng = torch.Generator().manual_seed(seed)
        for chunk in torch.randperm(len(self.data), generator=rng).tensor_split(self.batches):
            mine = chunk[team.process_index :: team.num_processes]
            if self.augment == "none":
                inputs, labels = self.data.batch(mine)
            else:
                # The whole batch in every process: what a sample draws must not depend on their number.
                inputs, labels = self.data.batch(chunk)
                part = slice(team.process_index, None, team.num_processes)
                inputs, labels = AUGMENTATIONS[self.augment](inputs, rng)[part], labels[part]
            yield Part(inputs, labels, self.data.ids[mine], len(chunk))


def crop_flip(inputs: Tensor, rng: torch.Generator, *, padding: int = 4) -> Tensor:
    """Shift each image by up to ``padding`` pixels into a black border and mirror half of them.

    Args:
        inputs: ``(N, channels, height, width)``.
        rng: source of randomness; the global state is not used.
        padding: largest shift.
    """
    count, _, height, width = inputs.shape
    padded = F.pad(inputs, [padding] * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1, 1, 1), generator=rng)
    rows = top + torch.arange(height).view(1, 1, -1, 1)
    columns = torch.arange(width).view(1, 1, 1, -1).expand(count, 1, 1, width)
    mirrored = torch.rand((count, 1, 1, 1), generator=rng) < 0.5
    columns = left + torch.where(mirrored, columns.flip(-1), columns)
    sample = torch.arange(count).view(-1, 1, 1, 1)
    channel = torch.arange(inputs.shape[1]).view(1, -1, 1, 1)
    return padded[sample, channel, rows, columns]


def _shift(inputs: Tensor, rng: torch.Generator) -> Tensor:
    """Shift by up to two pixels, never mirror: digits are not symmetric."""
    count, _, height, width = inputs.shape
    padded = F.pad(inputs, [2] * 4)
    top, left = torch.randint(0, 5, (2, count), generator=rng).tolist()
    return torch.stack(
        [padded[i, :, t : t + height, s : s + width] for i, (t, s) in enumerate(zip(top, left, strict=True))]
    )


AUGMENTATIONS: dict[str, Augment] = {
    "none": lambda inputs, rng: inputs,
    "crop-flip": crop_flip,
    "shift": _shift,
}


# ----------------------------------------------------------------------------------------------------------
# One process or several


class Team(Protocol):
    """What the loop asks of ``accelerate.Accelerator``."""

    @property
    def process_index(self) -> int:
        """This process's number, from 0."""

    @property
    def num_processes(self) -> int:
        """How many processes train together."""

    def prepare(self, *things: Any) -> Any:
        """The model so that its gradients are averaged over the processes, and its optimiser."""

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss."""

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Tensor:
        """The sum over the processes."""

    def wait_for_everyone(self) -> None:
        """A barrier."""


class Alone:
    """The team of a single process."""

    process_index, num_processes = 0, 1

    def prepare(self, *things: Any) -> Any:
        """As they are."""
        return things

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss."""
        loss.backward()  # type: ignore[no-untyped-call]

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Tensor:
        """As it is."""
        return tensor

    def wait_for_everyone(self) -> None:
        """Nobody to wait for."""


def find_team(accelerator: Any, device: torch.device) -> tuple[Team, torch.device]:
    """The processes that train together, and this one's device.

    Args:
        accelerator: an ``accelerate.Accelerator``; None finds one's own where ``accelerate launch`` or
            ``torchrun`` started several processes.
        device: where a single process trains; if that is the CPU, so do several.

    Raises:
        ImportError: there are several processes, and Accelerate is not installed.
    """
    if accelerator is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        accelerator = require("accelerate", extra="distill").Accelerator(cpu=device.type == "cpu")
    if accelerator is None:
        return Alone(), device
    return accelerator, accelerator.device


class Place(NamedTuple):
    """On what and where a model is trained; ``folder`` is for checkpoint, weights and history, or None."""

    data: Data
    validation: Data | None
    team: Team
    device: torch.device
    folder: Path | None


def settle_place(
    model: nn.Module,
    data: Any,
    validation: Any,
    *,
    accelerator: Any,
    device: str | torch.device | None,
    out: str | os.PathLike[str] | None,
) -> Place:
    """Read the data, find the processes that train together, and move the model to its device.

    Args:
        model: moved there; where it is if ``device`` is None.
        data: anything :func:`art_logits.data.as_data` takes.
        validation: the same, or None.
        accelerator: as :func:`find_team` takes it.
        device: of a single process.
        out: the folder, or None.

    Raises:
        TypeError: data of another kind.
        ValueError: data out of their range.
        ImportError: there are several processes, and Accelerate is not installed.
    """
    train, held_out = as_data(data), None if validation is None else as_data(validation)
    asked = next(model.parameters()).device if device is None else torch.device(device)
    team, where = find_team(accelerator, asked)
    model.to(where)
    return Place(train, held_out, team, where, None if out is None else Path(out))


# ----------------------------------------------------------------------------------------------------------
# The loop


class TrainingRun:
    """State of one training: model, average, optimiser, schedule, history.

    Args:
        model: trained in place.
        recipe: what a resumed run must agree with.
        source: the batches.
        batch_loss: a batch to the loss of each of its samples ``(n,)``; it reaches this run's ``net`` (with
            gradients of the weights) and ``bare`` (to be attacked), and adds to ``lost`` the samples whose
            attack lost its gradient.
        attack: the attack of the validation, or None for clean accuracy alone.
        device: where to train.
        out: folder for checkpoint, weights and history, or None.
        optimizer: by default SGD with Nesterov momentum and a one-cycle learning rate, stepped with each
            batch, as the recipe says.
        scheduler: of the learning rate, stepped after each epoch.
        team: the processes that train together.

    Raises:
        ValueError: a batch is smaller than the number of processes, a scheduler of another optimiser, or a
            plateau scheduler and nothing to measure robust accuracy with.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: LoopRecipe,
        source: Source,
        batch_loss: Callable[[TrainingRun, Batch], Tensor],
        *,
        attack: TemperaturePGD | None,
        device: torch.device,
        out: Path | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: LRScheduler | None = None,
        team: Team | None = None,
    ) -> None:
        self.model, self.recipe, self.source, self.batch_loss = model, recipe, source, batch_loss
        self.attack, self.device, self.out = attack, device, out
        self.team: Team = Alone() if team is None else team
        if len(source) // source.batches < self.team.num_processes:
            raise ValueError(
                f"batch_size must be at least {self.team.num_processes}, one sample per process, in every "
                f"batch; got {source.batches} batches of {len(source)} samples"
            )
        self.history, self.epoch, self.lost = History(), 0, 0
        self.bare = Cast(model, recipe.precision)
        self.optimizer = _sgd(model, recipe) if optimizer is None else optimizer
        self.net, self.stepper = self.team.prepare(self.bare, self.optimizer)
        # After the processes agreed on the weights.
        self.average = _average(model, recipe.ema)
        self.per_batch = scheduler is None and optimizer is None
        self.schedule = self._one_cycle() if self.per_batch else scheduler
        if self.schedule is not None and self.schedule.optimizer is not self.optimizer:
            raise ValueError("scheduler must be of the optimizer that trains the model, got one of another")

    def _one_cycle(self) -> OneCycleLR:
        total = self.recipe.epochs * self.source.batches
        return OneCycleLR(
            self.optimizer,
            max_lr=self.recipe.lr,
            total_steps=total,
            # The scheduler divides by the length of its warm-up less one step: a quarter of 4 is no length.
            pct_start=0.25 if total != 4 else 0.5,
            cycle_momentum=False,
        )

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows the progress bar."""
        return self.team.process_index == 0

    @property
    def averaged(self) -> nn.Module:
        """The model whose accuracy counts: the average where there is one."""
        return self.model if self.average is None else self.average.module

    def run(self, validation: Data | None = None, *, resume: bool = False, progress: bool = False) -> History:
        """Train to the end; the model ends in eval mode, with the averaged weights if there are any.

        Raises:
            ValueError: a checkpoint made by another recipe.
            FloatingPointError: the loss or the weights became NaN or infinite.
            FileExistsError: ``out`` already holds a training run and ``resume`` is not set.
            BlockingIOError: another process is training into ``out``.
        """
        if isinstance(self.schedule, ReduceLROnPlateau) and (validation is None or self.attack is None):
            raise ValueError(
                "validation data and an attack must be given for a ReduceLROnPlateau scheduler, which is "
                "handed the robust accuracy on them"
            )
        self._prepare_folder(resume=resume)
        try:
            with locked(self.out if self.is_main else None):
                while self.epoch < self.recipe.epochs:
                    self._train_epoch(progress=progress)
                    self._validate(validation)
                    self._save()
                self._finish()
        finally:
            self.model.eval()
        return self.history

    def _prepare_folder(self, *, resume: bool) -> None:
        if self.out is None:
            return
        path = self.out / CHECKPOINT
        if path.exists() and not resume:
            raise FileExistsError(
                f"out already holds a training run ({path}): give another folder, or pass resume=True"
            )
        # Nobody may write before everybody has looked.
        self.team.wait_for_everyone()
        if path.exists():
            self._restore(torch.load(path, map_location=self.device, weights_only=True))
        self.out.mkdir(parents=True, exist_ok=True)

    def _restore(self, state: dict[str, Any]) -> None:
        there, here = state["recipe"], json.loads(json.dumps(self.recipe.to_json()))
        differing = [
            f"{key}: {there.get(key)!r} there, {here[key]!r} now"
            for key in here
            if here[key] != there.get(key)
        ]
        if differing:
            raise ValueError(
                f"out holds a run of another recipe, so it cannot be resumed: {'; '.join(differing)}"
            )
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.history.rows, self.epoch = state["history"], state["epoch"]

    def _save(self) -> None:
        if self.out is None or not self.is_main:
            return
        state = {
            "recipe": json.loads(json.dumps(self.recipe.to_json())),
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "history": self.history.rows,
            "epoch": self.epoch,
        }
        with replacing(self.out / CHECKPOINT) as path:
            torch.save(state, path)

    def _train_epoch(self, *, progress: bool) -> None:
        began, total, seen, self.lost = time.perf_counter(), 0.0, 0, 0
        seed = self.recipe.seed * 1_000_003 + self.epoch
        label = f"epoch {self.epoch + 1}/{self.recipe.epochs}"
        self.model.train()
        with tqdm(
            self.source.epoch(seed, self.team),
            total=self.source.batches,
            desc=label,
            disable=not (progress and self.is_main),
            leave=False,
        ) as bar:
            scores = _scores(self.history)
            bar.set_postfix(scores)
            for number, part in enumerate(bar):
                total += part.total * self._step(part, seed, number)
                seen += part.total
                if not bar.disable:
                    bar.set_postfix({**scores, "loss": total / seen}, refresh=False)
        self._check_weights()
        self.epoch += 1
        self.history.rows.append(
            {
                "epoch": self.epoch,
                "lr": float(self.optimizer.param_groups[0]["lr"]),
                "loss": total / seen,
                "zero_gradients": float(self._summed(self.lost)) / seen,
                "seconds": time.perf_counter() - began,
            }
        )

    def _step(self, part: Part, seed: int, number: int) -> float:
        """One step of the optimiser; the mean loss of the whole batch."""
        batch = Batch(
            part.inputs.to(self.device),
            part.labels.to(self.device),
            part.ids,
            seed,
            self.epoch / self.recipe.epochs,
        )
        losses = _checks.per_sample("objective", self.batch_loss(self, batch), len(batch.labels))
        # Of the whole batch: the processes' gradients are averaged, and their parts may differ in size.
        loss = losses.sum() / (part.total / self.team.num_processes)
        value = float(self._summed(loss.detach())) / self.team.num_processes
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss became {value} in epoch {self.epoch + 1}, batch {number}: lower the learning "
                f"rate; the weights are those from before this batch{self._kept}"
            )
        self.stepper.zero_grad(set_to_none=True)
        self.team.backward(loss)
        self.stepper.step()
        if self.per_batch and self.schedule is not None:
            self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return value

    def _summed(self, value: Any) -> Tensor:
        return self.team.reduce(torch.as_tensor(value, device=self.device), reduction="sum")

    @property
    def _kept(self) -> str:
        return "" if self.out is None else "; the last epoch's checkpoint is kept"

    def _check_weights(self) -> None:
        if not all(bool(weight.isfinite().all()) for weight in self.model.parameters()):
            raise FloatingPointError(
                f"weights became NaN or infinite at the end of epoch {self.epoch + 1}: lower the learning "
                f"rate{self._kept}"
            )

    def _validate(self, data: Data | None) -> None:
        row = self.history.rows[-1]
        if data is not None:
            attack = self.attack
            if attack is not None:
                # The weights stand still here: gradients from a folded model, and success in float32.
                attack = replace(_doubled(attack), precision=self.recipe.precision, fuse=True)
            row.update(self._accuracies(data, attack))
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(row["robust_accuracy"])
        elif self.schedule is not None and not self.per_batch:
            self.schedule.step()
        logger.info("%s", ", ".join(f"{key} {value:.4g}" for key, value in row.items()))

    def _accuracies(self, data: Data, attack: TemperaturePGD | None) -> dict[str, float]:
        """Accuracies as fractions; the processes share the work."""
        model = self.averaged
        classes = int(data.labels.max()) + 1
        # Of each class: samples, right without attack, right under it.
        counts = torch.zeros(3, classes, dtype=torch.int64, device=self.device)
        mine = torch.arange(len(data))[self.team.process_index :: self.team.num_processes]
        for chunk in torch.split(mine, 256):
            inputs, labels = (tensor.to(self.device) for tensor in data.batch(chunk))
            # The attack sees to its own eval mode; without it batch norm would learn from held-out data.
            with torch.no_grad(), evaluating(model):
                right = model(inputs).argmax(dim=1) == labels
            outcomes = [torch.ones_like(right), right]
            if attack is not None:
                outcomes.append(~attack(model, inputs, labels, data.ids[chunk]).success)
            for row, outcome in zip(counts, outcomes, strict=False):
                row += labels[outcome].bincount(minlength=classes)
        samples, clean, robust = self._summed(counts).cpu().double()
        found = {"clean_accuracy": float(clean.sum()) / len(data)}
        if attack is not None:
            found["robust_accuracy"] = float(robust.sum()) / len(data)
            found["worst_class_accuracy"] = float((robust / samples)[samples > 0].min())
        return found

    def _finish(self) -> None:
        if self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
        if self.out is None:
            return
        if self.is_main:
            save_file = require("safetensors.torch", extra="evaluate").save_file
            # Of a library's network its own keys, which load_model and the library read.
            net = self.model.network if isinstance(self.model, Pretrained) else self.model
            with replacing(self.out / WEIGHTS) as path:
                save_file({name: t.contiguous() for name, t in net.state_dict().items()}, path)
            with replacing(self.out / HISTORY) as path:
                path.write_text(
                    json.dumps({"recipe": self.recipe.to_json(), "epochs": self.history.rows}, indent=1)
                )
        self.team.wait_for_everyone()


def _scores(history: History) -> dict[str, float]:
    """Loss and accuracies of the last epoch, under the short names of a progress bar."""
    last = history.rows[-1] if history.rows else {}
    return {
        key.partition("_")[0]: value for key, value in last.items() if key.endswith(("loss", "_accuracy"))
    }


def _sgd(model: nn.Module, recipe: LoopRecipe) -> torch.optim.SGD:
    return torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )


def _doubled(attack: TemperaturePGD) -> TemperaturePGD:
    """The attack with twice its steps; a schedule of temperatures holds each of its values for two."""
    temperature = attack.temperature
    if isinstance(temperature, list | tuple):
        temperature = [value for value in temperature for _ in range(2)]
    return replace(attack, steps=2 * attack.steps, temperature=temperature, stop_on_success=True)


def _average(model: nn.Module, decay: float | None) -> AveragedModel | None:
    if decay is None:
        return None
    # Batch norm's statistics are averaged too: those of today's weights do not fit averaged ones.
    rule = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(model, multi_avg_fn=rule, use_buffers=True)
    return average.eval()


# ----------------------------------------------------------------------------------------------------------
# What the methods share


def kl_divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """``KL(softmax(teacher / T) || softmax(student / T))`` of each sample; its mean is ``batchmean``.

    Args:
        teacher: logits ``(N, C)``.
        student: logits ``(N, C)``.
        temperature: T, > 0.

    Returns:
        ``(N,)``, in nats.

    >>> kl_divergence(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 2.0]]))
    tensor([0.])
    """
    if temperature != 1:
        teacher, student = teacher / temperature, student / temperature
    log_p, log_q = teacher.log_softmax(dim=1), student.log_softmax(dim=1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def training_attack(attack: TemperaturePGD | None, data: Data | None = None) -> TemperaturePGD:
    """An attack as training uses it: every step of every sample, and the last iterate.

    Args:
        attack: None for 5 steps of eps / 2 at T = 1 in Linf, at the data's default eps.
        data: the training data.

    Raises:
        ValueError: a targeted attack, or neither attack nor data.
    """
    if attack is None:
        if data is None:
            raise ValueError("attack must be given where there are no data to take a radius from")
        eps = data.default_eps["Linf"]
        attack = TemperaturePGD(eps=eps, steps=5, step_size=eps / 2, temperature=1.0, bounds=data.bounds)
    if attack.targeted:
        raise ValueError("attack must be untargeted: training has no target classes")
    # Training wants the strongest example of every sample, also of those that are already wrong.
    # The model that it attacks is the one that trains, in the precision that it trains in.
    return replace(attack, stop_on_success=False, keep="last", precision="float32", fuse=False)


def pick_precision(
    precision: Precision, model: nn.Module, data: Data, device: torch.device, resumed: Path | None
) -> Precision:
    """The precision of the passes; ``"auto"`` is that of the run in ``resumed``, or the faster in a probe.

    Raises:
        ValueError: an unknown precision.
    """
    _checks.choice("precision", precision, PRECISIONS)
    if precision != "auto":
        return precision
    if resumed is not None and (resumed / CHECKPOINT).exists():
        # A probe may decide otherwise today.
        found: Precision = torch.load(resumed / CHECKPOINT, weights_only=True)["recipe"]["precision"]
        return found
    # Nothing is folded while batch norm trains.
    return choose_precision(model, data.batch(slice(0, PROBE))[0].to(device), fuse=False)
