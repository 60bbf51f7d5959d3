"""Attack a model on data, and write down what happened to every sample.

The evaluation trusts no attack: whatever one returns, the logits are computed again from the adversarial
inputs, by the original model in eval mode and without temperature, and ball and bounds are checked here.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import _checks
from ._batches import Batches, fitting_batch_size
from ._extras import require
from ._version import __version__
from .album import Album
from .attack import AttackResult, TemperaturePGD
from .balls import BALLS, get_ball
from .cascade import Cascade, rows_of
from .counting import Counted, spread
from .data import Data, as_data
from .diagnostics import observe, training_modules
from .models import model_hash
from .prepare import (
    PRECISIONS,
    PROBE,
    Prepared,
    choose_precision,
    evaluating,
    full_float32,
    is_worthwhile,
    original_of,
    rows_per_pass,
)
from .presets import free_name, parse_attack
from .records import FORMAT, Records, RecordsWriter, check_attack_name, read_manifest, records_schema
from .types import Model

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = require("pyarrow", extra="evaluate")

__all__ = ["evaluate", "resolve_device"]

#: ``(model, inputs, labels)`` to adversarial inputs, or an :class:`AttackResult`.
Attack: TypeAlias = Callable[..., Any]
#: One attack or several, as objects or as specs such as ``"pgd:steps=50"``.
Attacks: TypeAlias = "Attack | str | Sequence[Attack | str] | Mapping[str, Attack | str]"

PART_SIZE = 512
"""Samples per part, at least: what an interruption may cost."""

# The last steps of an attack, with few samples left, take as long as its first ones on a GPU, and half as
# long with a small model: in every part (benchmarks/scaling.py, parts).
_BATCHES_PER_PART = 2
_LARGE_PART = 2048

# What torch says of logits that do not depend on the inputs, with frozen parameters and with others.
_NO_GRADIENTS = ("does not require grad", "appears to not have been used in the graph")
_OBSERVED = 16  # samples that a model sees twice before the run
_TOLERANCE = 1e-5  # relative, on the radius; absolute, on the bounds

logger = logging.getLogger(__name__)


def evaluate(
    model: Model,
    data: object,
    *,
    attacks: Attacks,
    reference: Model | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    sample_ids: Tensor | np.ndarray[Any, Any] | Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    batch_size: int | str | None = None,
    device: str | torch.device | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: bool = False,
    norm: str = "Linf",
    eps: float | None = None,
    model_name: str | None = None,
    reference_name: str | None = None,
    command: str | None = None,
    part_size: int | None = None,
    precision: str | None = None,
) -> Records:
    """Attack a model, and a reference if there is one, and record every sample.

    All samples are attacked by all attacks, a part of them at a time; each finished part is written before
    the next one starts. The models come back as they were, also after an exception.

    Args:
        model: maps inputs ``(N, ...)`` in the bounds to logits ``(N, C)``; an ``nn.Module``, or a callable.
            Our attacks take their gradients from a prepared one (:func:`art_logits.prepare`) as it computes
            them.
        data: a :class:`~art_logits.data.Data`, ``(inputs, labels)``, a map-style dataset of
            ``(input, label)``, or a DataLoader over one.
        attacks: one attack or several, named by a mapping or by themselves. An attack is a
            :class:`~art_logits.attack.TemperaturePGD`, a spec for
            :func:`~art_logits.presets.parse_attack`, or a callable ``(model, inputs, labels)`` that returns
            adversarial inputs or an :class:`~art_logits.attack.AttackResult`. One with ``takes_parts = True``
            gets whole parts, is called as TemperaturePGD is, and does its own counting. What its
            ``config()`` returns, if it has one, decides whether a run can be resumed.
        reference: a second model with the same classes, attacked in its own right on the same samples.
        bounds: limits of the inputs.
        sample_ids: ``(N,)`` distinct integers; default the data's own.
        class_names: ``C`` names; default the data's, or ``"0"`` to ``"C-1"``.
        batch_size: samples in one pass of the model; changes speed and memory, not results. None or
            ``"auto"`` takes what suits the device. It is halved where the memory does not suffice.
        device: where to run, ``"auto"`` for a GPU if there is one; default where the models are.
        out: folder to write to, see :class:`~art_logits.records.RecordsWriter`; default none.
        resume: continue the same run in ``out``.
        seed: of the random starts of attacks given as specs.
        progress: show a progress bar, in samples times attacks, on stderr.
        norm: of attacks given as specs; also the norm of ``distance`` for a callable that has no ``norm``.
        eps: radius of attacks given as specs; default the data's for that norm.
        model_name: for the manifest; default the model's class.
        reference_name: for the manifest; default the reference's class.
        command: for the manifest: how this run was started.
        part_size: samples per part, which is what an interruption may cost; default 512. Where all attacks
            are this project's, it is 2048 for a small model on a CPU, and on a GPU twice the batch size if
            that is more. A resumed run keeps to its parts.
        precision: of the gradients of attacks that leave theirs at ``"auto"``: ``"float32"``, ``"bfloat16"``,
            or, as by default, what a short probe finds faster on ``model``. The manifest holds what was
            chosen, and a resumed run keeps to it. What is reported is computed in float32 in any case.

    Returns:
        The records, one row per sample in the order of the data.

    Raises:
        ValueError: for wrong or mismatched arguments, a model whose outputs are no finite logits ``(N, C)``
            or have no gradients for an attack that needs them, labels outside them, an attack whose inputs
            leave its ball or the bounds, or a run in ``out`` that differs.
        TypeError: for arguments, outputs or adversarial inputs of a wrong type.
        FileExistsError: if ``out`` holds something else, or a run and ``resume`` is false.
        BlockingIOError: if another process is writing to ``out``.
        torch.OutOfMemoryError: not even a single sample fits the memory.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    >>> images, labels = torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    >>> records = evaluate(net, (images, labels), attacks=TemperaturePGD(eps=0.1, steps=3))
    >>> len(records), records.attacks
    (6, ['temperature-pgd'])
    """
    if resume and out is None:
        raise ValueError("resume needs out, the folder of the run to continue")
    if batch_size not in (None, "auto"):
        _checks.integer("batch_size", batch_size, at_least=1)
    _checks.choice("norm", norm, BALLS)
    _checks.choice("precision", precision or "auto", PRECISIONS)
    samples = _samples(data, bounds, sample_ids)
    radius = samples.default_eps.get(norm) if eps is None else eps
    named = _named_attacks(attacks, norm=norm, eps=radius, bounds=samples.bounds, seed=seed)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        subjects = [_Subject("", original_of(model), "model", model)]
        if reference is not None:
            subjects.append(_Subject("reference.", original_of(reference), "reference", reference))
        training = {subject.role: training_modules(subject.model) for subject in subjects}
        stack.enter_context(_placed([s.model for s in subjects], device))
        stack.enter_context(evaluating(*(s.model for s in subjects)))
        stored = _stored_choices(out) if resume else _Choices()
        size = stored.part_size
        if part_size is not None:
            size = _checks.integer("part_size", part_size, at_least=1)
        classes = _count_classes(subjects, samples)
        with _gradients_of(subjects[0]):
            named = _settled(named, precision or "auto", stored.precisions, subjects[0], samples)
            batches = Batches(_batch_size(batch_size, subjects[0], samples, size or len(samples)))
        size = size or _part_size(named, subjects, samples, batches.size)
        run = _Run(samples, subjects, named, batches, norm, classes, size)
        names = (model_name, reference_name)
        manifest = {
            "format": FORMAT,
            "identity": _identity(run, names, _class_names(class_names, run), seed),
            "versions": _versions(),
            "command": command,
            "observations": _observations(run, training),
        }
        writer = None if out is None else RecordsWriter(Path(out), manifest, resume=resume)
        if writer is not None:
            stack.enter_context(writer)
        return _collect(run, writer, manifest, progress)


def resolve_device(device: str | torch.device) -> torch.device:
    """A device that exists: ``"auto"`` is a GPU where there is one, else the CPU.

    Raises:
        ValueError: if the name is none of torch's, or the machine has no such device.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device must be auto, cpu or a GPU that is there, got {device!r}: {reason}"
        ) from error
    return found


# ----------------------------------------------------------------------------------------------------------
# Before the first attack: everything that can be wrong with the arguments


@dataclasses.dataclass(frozen=True)
class _Subject:
    """A model under attack, the prefix of its columns, and what our attacks take its gradients from."""

    prefix: str
    model: Model
    role: str
    attacked: Model

    def home(self) -> tuple[torch.device, torch.dtype]:
        """Where the model wants its inputs, and as what: float64 for a float64 model, else float32."""
        tensors = (
            [*self.model.parameters(), *self.model.buffers()] if isinstance(self.model, nn.Module) else []
        )
        device = tensors[0].device if tensors else torch.device("cpu")
        floating = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
        return device, torch.float64 if torch.float64 in floating else torch.float32


@dataclasses.dataclass(frozen=True)
class _Run:
    """All that the attacks of one evaluation share."""

    data: Data
    subjects: list[_Subject]
    attacks: dict[str, Attack]
    batches: Batches
    norm: str
    classes: int
    part_size: int

    @functools.cached_property
    def images(self) -> bool:
        """Whether the samples are images, which may be rounded to 8 bits."""
        return self.data.batch([0])[0].ndim == 4

    @property
    def parts(self) -> list[slice]:
        """Rows of each part."""
        starts = range(0, len(self.data), self.part_size)
        return [slice(start, min(start + self.part_size, len(self.data))) for start in starts]


def _samples(data: object, bounds: tuple[float, float], ids: Any) -> Data:
    """The data, under the caller's ids if there are any."""
    samples = as_data(data, bounds=bounds)
    if samples.bounds != tuple(bounds):
        raise ValueError(f"bounds must be those of the data, {samples.bounds}, got {tuple(bounds)}")
    return samples if ids is None else samples.with_ids(ids)


def _named_attacks(attacks: Attacks, **defaults: Any) -> dict[str, Attack]:
    """Attacks by the names that their columns will have."""
    if isinstance(attacks, Mapping):
        pairs = [(name, _one_attack(attack, **defaults)[1]) for name, attack in attacks.items()]
    else:
        several = [attacks] if isinstance(attacks, str) or callable(attacks) else list(attacks)
        pairs = [_one_attack(attack, **defaults) for attack in several]
    if not pairs:
        raise ValueError("attacks must hold at least one attack, got none")
    named: dict[str, Attack] = {}
    for name, attack in pairs:
        named[free_name(check_attack_name(name), named)] = attack
    return named


def _one_attack(attack: object, **defaults: Any) -> tuple[str, Attack]:
    """An attack and its own name."""
    if isinstance(attack, str):
        if defaults["eps"] is None:
            raise ValueError(f"eps must be given: the data has no default for {defaults['norm']}")
        return parse_attack(attack, **defaults)
    if isinstance(attack, TemperaturePGD):
        if attack.targeted:
            raise ValueError("attacks must be untargeted: an evaluation has no targets")
        return "temperature-pgd", attack
    if not callable(attack):
        raise TypeError(
            "attacks must be TemperaturePGD objects, specs such as 'pgd', or callables "
            f"(model, inputs, labels), got {type(attack).__name__}"
        )
    return _qualified_name(attack).rpartition(".")[2].strip("<>"), attack


def _qualified_name(thing: object) -> str:
    return str(getattr(thing, "__qualname__", type(thing).__qualname__))


class _Choices(NamedTuple):
    """What a run was not told and chose itself, and keeps to when it is resumed, maybe on another machine."""

    part_size: int | None = None
    precisions: Mapping[str, str] = MappingProxyType({})


def _stored_choices(out: str | Path | None) -> _Choices:
    """Those of an earlier run in ``out``, if there is one."""
    try:
        identity = read_manifest(Path(out or ""))["identity"]
        attacks = identity["attacks"].items()
        precisions = {name: config["precision"] for name, config in attacks if "precision" in config}
        return _Choices(_checks.integer("part_size", identity["part_size"], at_least=1), precisions)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return _Choices()  # the writer will say what is wrong with it


def _part_size(attacks: Mapping[str, Attack], subjects: list[_Subject], data: Data, batch_size: int) -> int:
    """As many as an interruption may cost: few where each may take long, as with the attacks of hosts."""
    if not all(isinstance(attack, TemperaturePGD | Cascade) for attack in attacks.values()):
        return PART_SIZE
    if all(subject.home()[0].type == "cuda" for subject in subjects):
        return max(PART_SIZE, _BATCHES_PER_PART * batch_size)
    inputs, _ = data.batch(slice(0, 1))
    small = all(isinstance(s.model, nn.Module) and not is_worthwhile(s.model, inputs) for s in subjects)
    return _LARGE_PART if small else PART_SIZE


def _settled(
    attacks: dict[str, Attack], precision: str, stored: Mapping[str, str], subject: _Subject, data: Data
) -> dict[str, Attack]:
    """The attacks with their precision decided: a probe may decide otherwise elsewhere, or tomorrow."""

    def decide(name: str, attack: Any) -> str:
        if precision != "auto":
            return precision
        if stored.get(name) in PRECISIONS:
            return stored[name]
        if isinstance(subject.attacked, Prepared):
            # float16 is no precision of an attack's: the model's description has it.
            return subject.attacked.precision if subject.attacked.precision in PRECISIONS else "auto"
        device, dtype = subject.home()
        inputs, _ = data.batch(slice(0, PROBE))
        return choose_precision(subject.model, inputs.to(device, dtype), fuse=attack.fuse)

    return {
        name: _with_precision(attack, decide(name, attack))
        if getattr(attack, "precision", None) == "auto"
        else attack
        for name, attack in attacks.items()
    }


def _with_precision(attack: Any, precision: str) -> Attack:
    if isinstance(attack, Cascade):
        return attack.replace(precision=precision)
    changed: Attack = dataclasses.replace(attack, precision=precision)
    return changed


def _batch_size(asked: int | str | None, subject: _Subject, data: Data, most: int) -> int:
    """The caller's batch size, or one that suits the model, its device and its memory."""
    if isinstance(asked, int):
        return int(asked)
    device, dtype = subject.home()
    return fitting_batch_size(subject.model, data.batch(slice(0, 2))[0].to(device, dtype), most=most)


@contextmanager
def _gradients_of(subject: _Subject) -> Iterator[None]:
    """Say what is wrong where a model has no gradients."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # adapters of hosts make ValueErrors
        if not any(sign in str(error) for sign in _NO_GRADIENTS):
            raise
        raise ValueError(
            f"{subject.role}: expected logits that can be differentiated by the inputs, got some without "
            "gradients; take torch.no_grad() and detach() out of its forward pass, or attack it without "
            "gradients (--attack square)"
        ) from error


@contextmanager
def _placed(models: Sequence[Model], device: str | torch.device | None) -> Iterator[None]:
    """Move models to a device, and back afterwards; None leaves them where they are."""
    if device is None:
        yield
        return
    target = resolve_device(device)
    modules = [model for model in models if isinstance(model, nn.Module)]
    homes = [next((t.device for t in (*m.parameters(), *m.buffers())), target) for m in modules]
    try:
        for module in modules:
            module.to(target)
        yield
    finally:
        for module, home in zip(modules, homes, strict=True):
            module.to(home)


def _count_classes(subjects: Sequence[_Subject], data: Data) -> int:
    """Number of classes, from one small forward pass of each model, which must fit data and labels."""
    counts = []
    for subject in subjects:
        # Two samples: a model that squeezes a batch of one would be refused for nothing.
        inputs, _ = data.batch(slice(0, 2))
        try:
            logits = _logits(subject, inputs, Batches(len(inputs)))
        except (ValueError, TypeError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a model's own code may fail in any way
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(
                f"{subject.role} fails on inputs of shape {tuple(inputs.shape)}: {reason}"
            ) from error
        counts.append(logits.shape[1])
    if len(set(counts)) > 1:
        raise ValueError(f"reference must have the model's {counts[0]} classes, got {counts[1]}")
    _checks.in_range("labels", data.labels, counts[0])
    return counts[0]


def _class_names(given: Sequence[str] | None, run: _Run) -> list[str]:
    """The caller's names, the data's, or numbers."""
    names = run.data.class_names if given is None else given
    if names is None:
        return [str(index) for index in range(run.classes)]
    if len(names) != run.classes:
        raise ValueError(
            f"class_names must name the model's {run.classes} classes, got {len(names)} names"
            + (" from the data" if given is None else "")
        )
    return [str(name) for name in names]


def _identity(
    run: _Run, names: Sequence[str | None], class_names: Sequence[str], seed: int
) -> dict[str, Any]:
    """Everything that decides the result, and is compared on resume."""
    described = [
        {"name": name or _qualified_name(subject.model), "hash": model_hash(subject.model)}
        | ({"prepared": subject.attacked.config()} if isinstance(subject.attacked, Prepared) else {})
        for subject, name in zip(run.subjects, names, strict=False)
    ]
    return {
        "model": described[0],
        "reference": described[1] if len(described) > 1 else None,
        "data": {"name": run.data.name, "hash": run.data.fingerprint(), "n": len(run.data)},
        "class_names": list(class_names),
        "attacks": {name: _config(attack) for name, attack in run.attacks.items()},
        "bounds": list(run.data.bounds),
        "norm": run.norm,
        "seed": seed,
        "part_size": run.part_size,
    }


def _config(attack: Attack) -> dict[str, Any]:
    """What an attack says of itself."""
    if isinstance(attack, TemperaturePGD):
        return attack.config()
    described = {"callable": f"{getattr(attack, '__module__', '')}.{_qualified_name(attack)}"}
    return {**described, **attack.config()} if hasattr(attack, "config") else described


def _observations(run: _Run, training: Mapping[str, int]) -> dict[str, Any]:
    """What only the live models show, for :func:`art_logits.diagnostics.find_warnings`."""
    inputs, _ = run.data.batch(slice(0, _OBSERVED))
    seen: dict[str, Any] = {"data": {"notes": run.data.notes}}
    for subject in run.subjects:
        forward = functools.partial(_logits, subject, batches=run.batches, classes=run.classes)
        seen[subject.role] = {
            "training_modules": training[subject.role],
            **observe(subject.model, forward, inputs),
        }
    return seen


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "art_logits": __version__,
    }


# ----------------------------------------------------------------------------------------------------------
# The run


def _collect(run: _Run, writer: RecordsWriter | None, manifest: dict[str, Any], progress: bool) -> Records:
    """Evaluate the parts that are not finished, and bring all of them together."""
    finished = set() if writer is None else writer.finished_parts
    tables, pictures = [], []
    each = len(run.attacks) * len(run.subjects)
    done = sum(rows.stop - rows.start for i, rows in enumerate(run.parts) if i in finished)
    with tqdm(total=len(run.data) * each, initial=done * each, unit="attack", disable=not progress) as bar:
        for part, rows in enumerate(run.parts):
            if part in finished:
                continue
            table, thumbnails = _evaluate_part(run, rows, bar)
            if writer is None:
                tables.append(table)
                pictures.append(thumbnails)
            else:
                writer.write(part, table, thumbnails)
    if writer is None:
        records = Records.from_parts(tables, thumbnails=pictures)
        complete = {**manifest, "passes": _passes(records, run), "complete": True}
        return Records(records.table, complete, records.thumbnails)
    return writer.finish(_passes(Records.load(writer.out, partial=True), run))


def _passes(records: Records, run: _Run) -> dict[str, dict[str, int]]:
    """Samples through each model.

    One clean, those of the attacks, one to verify each attack, and one more to verify a success in 8 bits.
    The clean one takes the place of those of the attacks that are told its logits.
    """
    passes = {}
    for subject in run.subjects:
        spared = sum(_is_told_clean_logits(attack) for attack in run.attacks.values())
        total = {"forwards": len(run.data) * (1 + len(run.attacks) - spared), "backwards": 0}
        for name in run.attacks:
            for kind in total:
                total[kind] += int(records.table[f"{subject.prefix}{name}.{kind}"].to_numpy().sum())
            if run.images:
                total["forwards"] += int(records.table[f"{subject.prefix}{name}.success"].to_numpy().sum())
        passes[subject.role] = total
    return passes


class _Part(NamedTuple):
    """Samples of one part, ``(n, ...)``, and the model's logits of them ``(n, C)``."""

    inputs: Tensor
    labels: Tensor
    ids: Tensor
    clean: Tensor


def _evaluate_part(run: _Run, rows: slice, bar: tqdm[Any]) -> tuple[pa.Table, pa.Table]:
    """All attacks on all models, on one part of the data: its rows, and thumbnails of some of them."""
    inputs, labels = run.data.batch(rows)
    ids = run.data.ids[rows]
    album = Album(inputs, labels, ids, run.data.bounds)
    columns: dict[str, Any] = {"sample_id": pa.array(ids.numpy()), "label": pa.array(labels.numpy())}
    for subject in run.subjects:
        exact = _logits(subject, inputs, run.batches, run.classes, as_they_are=True)
        clean = exact.float()
        columns[f"{subject.prefix}clean_prediction"] = pa.array(clean.argmax(dim=1).numpy())
        columns[f"{subject.prefix}clean_logits"] = _vectors(clean)
        album.add_clean(clean, reference=subject.role == "reference")
        part = _Part(inputs, labels, ids, exact)
        for name, attack in run.attacks.items():
            bar.set_postfix_str(f"{subject.role} {name}", refresh=True)
            outcome = _attack(run, subject, name, _rows_of(attack, rows), part, album)
            columns.update({f"{subject.prefix}{name}.{key}": value for key, value in outcome.items()})
            bar.update(len(labels))
    schema = records_schema(list(run.attacks), run.classes, reference=len(run.subjects) > 1)
    table = {field.name: columns[field.name].cast(field.type) for field in schema}
    return pa.table(table, schema=schema), album.table()


def _rows_of(attack: Attack, rows: slice) -> Attack:
    """The attack on these rows: eps and step sizes, one per sample, are cut to them."""
    if isinstance(attack, Cascade):
        return attack.rows(rows)
    return rows_of(attack, rows) if isinstance(attack, TemperaturePGD) else attack


def _attack(
    run: _Run,
    subject: _Subject,
    name: str,
    attack: Attack,
    part: _Part,
    album: Album,
) -> dict[str, Any]:
    """Run one attack, check what it returns, and compute its columns; the model's go into the album."""
    inputs, labels = part.inputs, part.labels
    with _gradients_of(subject):
        found = _attacked(run, subject, name, attack, part)
    distance = _checked_distance(attack, name, inputs, found.adv_inputs, run)
    logits = _logits(subject, found.adv_inputs, run.batches, run.classes)
    if subject.role == "model":
        album.add_attack(name, logits, found.adv_inputs)
    prediction = logits.argmax(dim=1)
    success = prediction != labels
    return {
        "prediction": pa.array(prediction.numpy()),
        "success": pa.array(success.numpy()),
        "distance": pa.array(distance.float().numpy()),
        "logits": _vectors(logits),
        "forwards": pa.array(found.forwards.numpy()),
        "backwards": pa.array(found.backwards.numpy()),
        "zero_gradients": pa.array(found.zero_gradients.numpy()),
        "success_8bit": pa.array(_success_8bit(run, subject, found.adv_inputs, labels, success).numpy()),
    }


def _success_8bit(
    run: _Run, subject: _Subject, adv_inputs: Tensor, labels: Tensor, success: Tensor
) -> Tensor:
    """Which successes are still there when images are rounded to 256 levels within the bounds."""
    rows = success.nonzero().squeeze(1)
    if not run.images or not len(rows):
        return success
    lower, upper = run.data.bounds
    levels = ((adv_inputs[rows] - lower) * (255 / (upper - lower))).round()
    rounded = lower + levels * ((upper - lower) / 255)
    logits = _logits(subject, rounded, run.batches, run.classes)
    kept = success.clone()
    kept[rows] = logits.argmax(dim=1) != labels[rows]
    return kept


@dataclasses.dataclass(frozen=True)
class _Found:
    """What is taken from an attack: its inputs and its costs; everything else is computed again."""

    adv_inputs: Tensor
    forwards: Tensor
    backwards: Tensor
    zero_gradients: Tensor


def _attacked(run: _Run, subject: _Subject, name: str, attack: Attack, part: _Part) -> _Found:
    """Call an attack on a part, in batches where it does not make its own."""
    device, dtype = subject.home()
    inputs, labels, ids = part.inputs.to(device, dtype), part.labels.to(device), part.ids
    if isinstance(attack, TemperaturePGD | Cascade):
        told = _is_told_clean_logits(attack)
        known = part.clean.to(device) if told else None
        result = attack(subject.attacked, inputs, labels, ids, batch_size=run.batches, clean_logits=known)
        _check_shape(name, result.adv_inputs, inputs)
        found = _from_result(result)
        # Recorded is what an attack takes alone: it stands beside those that look for themselves.
        return dataclasses.replace(found, forwards=found.forwards + int(told))
    if getattr(attack, "takes_parts", False):
        result = attack(subject.model, inputs, labels, ids, batch_size=run.batches.size)
        _check_shape(name, getattr(result, "adv_inputs", result), inputs)
        return _from_result(result)

    def chunk(rows: slice) -> _Found:
        return _call(subject, name, attack, inputs[rows], labels[rows])

    pieces = run.batches.run(chunk, len(inputs))
    return _Found(*(torch.cat(columns) for columns in zip(*map(_columns, pieces), strict=True)))


def _is_told_clean_logits(attack: Attack) -> bool:
    """Whether an attack is told the logits of its inputs, for which it would else ask the model."""
    return isinstance(attack, Cascade) or (isinstance(attack, TemperaturePGD) and attack.looks_at_inputs)


def _columns(found: _Found) -> tuple[Tensor, ...]:
    return found.adv_inputs, found.forwards, found.backwards, found.zero_gradients


def _from_result(result: AttackResult | Tensor) -> _Found:
    if not isinstance(result, AttackResult):
        none = torch.zeros(len(result), dtype=torch.int64)
        return _Found(result.detach().cpu(), none, none, none)
    zeros = getattr(result, "zero_gradients", torch.zeros_like(result.forwards))
    return _Found(result.adv_inputs.cpu(), result.forwards.cpu(), result.backwards.cpu(), zeros.cpu())


def _call(subject: _Subject, name: str, attack: Attack, inputs: Tensor, labels: Tensor) -> _Found:
    """Call someone else's attack on one batch, counting what it asks of the model."""
    counted = Counted(subject.model).eval()
    # Copies: nothing keeps an attack from working in place.
    with torch.enable_grad():
        result = attack(counted, inputs.clone(), labels.clone())
    if isinstance(result, AttackResult):
        _check_shape(name, result.adv_inputs, inputs)
        return _from_result(result)
    _check_shape(name, result, inputs)
    zeros = torch.zeros(len(inputs), dtype=torch.int64)
    forwards, backwards = (spread(total, len(inputs)) for total in (counted.forwards, counted.backwards))
    return _Found(result.detach().cpu(), forwards, backwards, zeros)


def _check_shape(name: str, adv_inputs: object, inputs: Tensor) -> None:
    if not isinstance(adv_inputs, Tensor) or not adv_inputs.is_floating_point():
        raise TypeError(
            f"attack {name!r} must return adversarial inputs as a floating-point tensor or an AttackResult, "
            f"got {_checks.kind_of(adv_inputs)}"
        )
    if adv_inputs.shape != inputs.shape:
        raise ValueError(
            f"attack {name!r} must return inputs of shape {tuple(inputs.shape)}, "
            f"got {tuple(adv_inputs.shape)}"
        )


def _checked_distance(attack: Attack, name: str, inputs: Tensor, adv_inputs: Tensor, run: _Run) -> Tensor:
    """Norm of each perturbation, after a check of bounds and ball."""
    lower, upper = run.data.bounds
    adversarial = adv_inputs.double()
    if not bool(adversarial.isfinite().all()):
        raise ValueError(f"attack {name!r} must return finite inputs, got NaN or infinity")
    low, high = float(adversarial.min()), float(adversarial.max())
    if low < lower - _TOLERANCE or high > upper + _TOLERANCE:
        raise ValueError(
            f"attack {name!r} must keep to the bounds [{lower:g}, {upper:g}], got [{low:g}, {high:g}]"
        )
    norm = getattr(attack, "norm", None)
    declared = isinstance(norm, str) and norm in BALLS
    ball = get_ball(norm if declared else run.norm)
    distance = ball.norm(adversarial - inputs.double())
    eps = getattr(attack, "eps", None)
    if declared and (_checks.is_number(eps) or isinstance(eps, Tensor)):
        # Adding a perturbation to an input rounds every pixel, by up to half a unit of its last place.
        rounding = torch.full_like(inputs[:1].double(), max(abs(lower), abs(upper)) * 2.0**-24)
        limit = torch.as_tensor(eps).cpu().double() * (1 + _TOLERANCE) + ball.norm(rounding)
        excess = distance - limit
        if bool((excess > 0).any()):
            worst = int(excess.argmax())
            radius = float(torch.as_tensor(eps).cpu().double().expand(len(distance))[worst])
            raise ValueError(
                f"attack {name!r} must stay in its {norm} ball of radius {radius:g}, "
                f"got a perturbation of {float(distance[worst]):g}"
            )
    return distance


def _logits(
    subject: _Subject,
    inputs: Tensor,
    batches: Batches,
    classes: int | None = None,
    *,
    as_they_are: bool = False,
) -> Tensor:
    """Logits ``(N, C)`` of the model as it is, float32 on the CPU; finite, and of one width.

    Those of a float64 model stay in float64 with ``as_they_are``.
    """
    device, dtype = subject.home()

    def part(rows: slice) -> Tensor:
        batch = inputs[rows]
        logits = _checks.logits(subject.model(batch.to(device, dtype)), len(batch)).cpu()
        if not bool(logits.isfinite().all()):
            raise ValueError(f"{subject.role} must return finite logits, got NaN or infinity")
        if classes not in (None, logits.shape[1]):
            raise ValueError(f"{subject.role} must return {classes} logits, got {logits.shape[1]}")
        return logits if as_they_are else logits.float()

    # An attack may have switched modes: what is reported is always the model in eval mode.
    with torch.no_grad(), full_float32(), evaluating(subject.model):
        most = rows_per_pass(subject.model, inputs[:2].to(device, dtype))
        return torch.cat(batches.run(part, len(inputs), at_most=most))


def _vectors(logits: Tensor) -> pa.FixedSizeListArray:
    """Logits ``(N, C)`` as a column of vectors."""
    return pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1).numpy()), logits.shape[1])
