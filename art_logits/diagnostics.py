"""What makes robustness numbers look other than they are: looked for, counted, and told.

Nothing here refuses a run. While it evaluates, :func:`art_logits.evaluate` stores what only the live model
can show (:func:`observe`) in the manifest, under ``observations``; :func:`find_warnings` reads that and the
records, so that a report made again later says the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from .records import Records
    from .types import Model

__all__ = ["Diagnosis", "find_warnings", "observe", "training_modules"]

ZERO_GRADIENTS = 0.05
"""Share of the attacked samples without a gradient at some step, above which it is told."""

_REPEAT = 1e-4  # relative to the largest logit: kernels that add in another order stay far below it
_ROUNDING = 1e-3  # of a sum of probabilities, in half precision too
_PIXELS = (-0.1, 1.1)  # what bicubic resizing may make of [0, 1]
_PAIRS = (("mean", "std"), ("mu", "sigma"), ("mean", "sigma"), ("mu", "std"), ("means", "stds"))

ModelName = Literal["model", "reference"]


@dataclass(frozen=True)
class Diagnosis:
    """One warning.

    Args:
        code: what it is about, for programs; the table in :func:`find_warnings` has them.
        message: what was seen, what it means for the numbers and what to do, for people.
        model: the model that it is about; None if it is about the data.
        attack: the attack that it is about; None if it is about none.
        count: of samples or classes, where something was counted.
    """

    code: str
    message: str
    model: ModelName | None = "model"
    attack: str | None = None
    count: int | None = None


def find_warnings(records: Records) -> list[Diagnosis]:
    """All warnings about a run; a pure function of the records and their manifest.

    ================== =====================================================================================
    code               said when
    ================== =====================================================================================
    jpeg               the data are small images in JPEG files, which published sets of that size are not
    training-mode      the model came in training mode (see :func:`training_modules`)
    unsteady           two passes over the same inputs differ by more than 1e-4 of the largest logit
    normalized-twice   a layer that normalises pixels got values outside [0, 1] (see :func:`observe`)
    input-size         the network was made for images of another size
    probabilities      every row of outputs is nonnegative and sums to 1
    log-probabilities  the exponentials of every row of outputs sum to 1
    zero-gradients     the attack met a zero or non-finite gradient on more than 5 % of the samples attacked
    robust-above-clean more samples of a class are right under the attack than without it
    rounding           successes of the attack are gone once the inputs are rounded to 8 bits
    ================== =====================================================================================

    Args:
        records: of an evaluation, also an unfinished one.

    Returns:
        The warnings: about the data, about each model, about each of its attacks.
    """
    observations = records.manifest.get("observations") or {}
    notes = (observations.get("data") or {}).get("notes") or {}
    found = [Diagnosis(code, message, None) for code, message in notes.items()]
    models: list[ModelName] = ["model", "reference"] if records.has_reference else ["model"]
    for model in models:
        found += _of_observations(observations.get(model) or {}, model)
        found += _of_outputs(records, model)
        for attack in records.attacks:
            found += _of_attack(records, model, attack)
    return found


# ----------------------------------------------------------------------------------------------------------
# What the live model shows


def training_modules(model: Model) -> int:
    """Number of modules in training mode whose function may depend on the mode.

    Those are torch's batch norms and dropouts, and modules of one's own that hold weights or other modules:
    their forward may ask for the mode. A fresh ``nn.Sequential`` around a model in eval mode is none.

    Args:
        model: any model, before an evaluation puts it into eval mode.

    >>> training_modules(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    1
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return sum(module.training and _depends_on_mode(module) for module in modules)


def _depends_on_mode(module: nn.Module) -> bool:
    if type(module).__module__.startswith("torch.nn."):
        sensitive = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd, nn.RReLU, nn.RNNBase)
        return isinstance(module, sensitive)
    return any(True for _ in module.children()) or any(True for _ in module.parameters(recurse=False))


def observe(model: Model, forward: Callable[[Tensor], Tensor], inputs: Tensor) -> dict[str, Any]:
    """Look at a model while it sees a few samples twice.

    Normalised twice: a *normalising layer* is a module with a mean and a standard deviation per channel
    (attributes ``mean`` and ``std``, or ``mu`` and ``sigma``) that can be those of pixels in [0, 1], whose
    mean lies in (0, 1) and whose standard deviation cannot exceed 1/2. If such a layer, on images of the
    data's channels, gets values outside [0, 1] by more than 0.1, these are no pixels any more: the data or
    another layer have normalised them before (or they have another scale). A normalisation that is written
    into a forward method without such attributes is not seen.

    Args:
        model: the model, in eval mode.
        forward: inputs to finite logits ``(N, C)`` of this model.
        inputs: a few samples ``(N, ...)``.

    Returns:
        For JSON: ``repeat_difference``, the largest difference of the two passes relative to the largest
        logit; ``normalized_twice``, the layer, what it got and what it is for, or None; ``native_size`` and
        ``input_size``, where the model says for which images it was made.
    """
    seen: list[dict[str, Any]] = []
    with ExitStack() as stack:
        for name, module, mean, std in _normalizing_layers(model):
            hook = _watch(seen, name, mean, std, channels=inputs.shape[1])
            stack.callback(module.register_forward_pre_hook(hook).remove)
        first = forward(inputs)
    second = forward(inputs)
    largest = float(first.abs().max()) or 1.0
    observed: dict[str, Any] = {
        "repeat_difference": float((first - second).abs().max()) / largest,
        "normalized_twice": seen[0] if seen else None,
    }
    native = getattr(model, "native_size", None)
    if isinstance(native, int) and inputs.ndim == 4:
        observed |= {"native_size": native, "input_size": _size_inside(model, inputs)}
    return observed


def _size_inside(model: Model, inputs: Tensor) -> int:
    """Height of the images that the network sees."""
    resize = getattr(model, "resize", None)
    return int(getattr(resize, "size", inputs.shape[2]))


def _normalizing_layers(model: Model) -> Iterator[tuple[str, nn.Module, Tensor, Tensor]]:
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    for name, module in modules:
        if isinstance(module, torch.jit.ScriptModule):
            continue  # takes no hooks
        for pair in _PAIRS:
            mean, std = (_values(getattr(module, key, None)) for key in pair)
            if mean is not None and std is not None and _of_pixels(mean, std):
                yield name, module, mean, std
                break


def _values(attribute: object) -> Tensor | None:
    """A mean or a standard deviation per channel, ``(C,)``."""
    if isinstance(attribute, Tensor):
        return attribute.detach().flatten().float().cpu()
    if isinstance(attribute, float | int):
        return torch.tensor([float(attribute)])
    plain = isinstance(attribute, list | tuple) and all(isinstance(v, float | int) for v in attribute)
    return torch.tensor(attribute).float() if plain else None


def _of_pixels(mean: Tensor, std: Tensor) -> bool:
    return (
        0 < mean.numel() <= 4
        and mean.shape == std.shape
        and bool(((mean > 0) & (mean < 1) & (std > 0) & (std <= 0.5)).all())
    )


def _watch(
    seen: list[dict[str, Any]], name: str, mean: Tensor, std: Tensor, *, channels: int
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """A hook that notes what a normalising layer gets, if these are no pixels."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        images = args[0] if args else None
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != channels:
            return
        low, high = float(images.min()), float(images.max())
        if mean.numel() in (1, channels) and (low < _PIXELS[0] or high > _PIXELS[1]):
            layer = name or type(module).__name__
            seen.append(
                {"layer": layer, "low": low, "high": high, "mean": mean.tolist(), "std": std.tolist()}
            )

    return hook


# ----------------------------------------------------------------------------------------------------------
# What the records show


def _of_observations(seen: Mapping[str, Any], model: ModelName) -> Iterator[Diagnosis]:
    training = seen.get("training_modules") or 0
    if training:
        yield Diagnosis(
            "training-mode",
            f"The {model} came in training mode ({training} modules that may depend on it). It was evaluated "
            "in eval mode and set back; what was measured elsewhere without model.eval() differs.",
            model,
            count=training,
        )
    difference = seen.get("repeat_difference") or 0.0
    if difference > _REPEAT:
        yield Diagnosis(
            "unsteady",
            f"The {model} gives different outputs for the same inputs (by {difference:.1%} of the largest "
            "logit, in eval mode): a random defence, or dropout that eval mode does not switch off. Single "
            "gradients mislead an attack then; average over the randomness (EOT), or switch it off.",
            model,
        )
    twice = seen.get("normalized_twice")
    if twice:
        yield Diagnosis(
            "normalized-twice",
            f"Inputs of the {model} look normalised twice: its layer {twice['layer']!r} subtracts "
            f"{_short(twice['mean'])} and divides by {_short(twice['std'])}, which is for pixels in [0, 1], "
            f"but gets values from {twice['low']:.3g} to {twice['high']:.3g}. Give the data as pixels, and "
            "normalise once, inside the model.",
            model,
        )
    native, size = seen.get("native_size"), seen.get("input_size")
    if native and size != native:
        yield Diagnosis(
            "input-size",
            f"The {model}'s network was made for images of {native}x{native}, and sees {size}x{size}: resize "
            f"the data (--resize {native}), or add input_size={native} to the model.",
            model,
        )


def _short(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in values) + ")"


def _of_outputs(records: Records, model: ModelName) -> Iterator[Diagnosis]:
    kind = _kind_of_outputs(records, model)
    if kind == "probabilities":
        yield Diagnosis(
            "probabilities",
            f"The {model}'s outputs are probabilities: nonnegative, and every row sums to 1. A softmax at "
            "the end hides gradients from attacks, and the logit statistics are not of logits: return what "
            "enters the softmax.",
            model,
        )
    elif kind == "log-probabilities":
        yield Diagnosis(
            "log-probabilities",
            f"The {model}'s outputs are log-probabilities: their exponentials sum to 1 in every row. "
            "Cross-entropy and its attack are the same for them, but max logit and margins are not those of "
            "logits: return what enters the log-softmax.",
            model,
        )


def _kind_of_outputs(records: Records, model: ModelName) -> str | None:
    """Which normalised outputs the logits of all samples are; None for logits."""
    possible = {"probabilities": _are_probabilities, "log-probabilities": _are_log_probabilities}
    for _, (outputs,) in records.blocks(f"{records.prefix(model)}clean_logits"):
        possible = {kind: test for kind, test in possible.items() if test(outputs)}
        if not possible:
            return None
    return next(iter(possible))


def _are_probabilities(rows: NDArray[np.float32]) -> bool:
    return bool(rows.min() >= -_ROUNDING) and _all_one(rows)


def _are_log_probabilities(rows: NDArray[np.float32]) -> bool:
    return bool(rows.max() <= _ROUNDING) and _all_one(np.exp(rows))


def _all_one(rows: NDArray[np.float32]) -> bool:
    return bool((np.abs(rows.sum(axis=1, dtype=np.float64) - 1) <= _ROUNDING).all())


def _of_attack(records: Records, model: ModelName, attack: str) -> Iterator[Diagnosis]:
    prefix = f"{records.prefix(model)}{attack}"
    whose = "" if model == "model" else " on the reference"
    attacked = int((records.column(f"{prefix}.backwards") > 0).sum())
    lost = int((records.column(f"{prefix}.zero_gradients") > 0).sum())
    if lost > ZERO_GRADIENTS * attacked:
        yield Diagnosis(
            "zero-gradients",
            f"{attack}{whose} met gradients that were zero or not finite on {lost} of {attacked} samples "
            "that it attacked, and used the margin's there. A model that hides its gradients looks "
            "more robust than it is: add an attack without gradients, such as square.",
            model,
            attack,
            lost,
        )
    yield from _above_clean(records, model, attack, whose)
    yield from _rounding(records, model, attack, whose)


def _above_clean(records: Records, model: ModelName, attack: str, whose: str) -> Iterator[Diagnosis]:
    labels = records.column("label")
    right = ~records.column(f"{records.prefix(model)}{attack}.success")
    clean = records.correct(model)
    classes = [
        f"{name} ({right[labels == i].mean():.1%} against {clean[labels == i].mean():.1%})"
        for i, name in enumerate(records.class_names)
        if (right & (labels == i)).sum() > (clean & (labels == i)).sum()
    ]
    if classes:
        more = f" and {len(classes) - 3} more" if len(classes) > 3 else ""
        yield Diagnosis(
            "robust-above-clean",
            f"Under {attack}{whose} more samples are right than without an attack, in "
            f"{', '.join(classes[:3])}{more}: it turns wrong predictions into right ones, so it "
            "does not attack the label. Robust accuracy counts only samples that are right without the "
            "attack too.",
            model,
            attack,
            len(classes),
        )


def _rounding(records: Records, model: ModelName, attack: str, whose: str) -> Iterator[Diagnosis]:
    prefix = f"{records.prefix(model)}{attack}"
    if f"{prefix}.success_8bit" not in records.columns:
        return  # records of an earlier version
    fooled = records.correct(model) & records.column(f"{prefix}.success")
    gone = int((fooled & ~records.column(f"{prefix}.success_8bit")).sum())
    if gone:
        yield Diagnosis(
            "rounding",
            f"{gone} of {int(fooled.sum())} successes of {attack}{whose} vanish when the adversarial inputs "
            "are rounded to 8 bits per channel, as saving them as images would do.",
            model,
            attack,
            gone,
        )
