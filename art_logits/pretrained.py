"""Networks of torchvision and timm by name, with the normalisation they were trained with inside.

``torchvision:resnet18`` and ``timm:vit_tiny_patch16_224`` take inputs in ``[0, 1]`` like every model here.
Without a checkpoint their published weights are loaded, and downloaded where they are not in the cache.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor, nn

from . import _checks
from ._extras import require
from .normalize import Normalize
from .presets import read_integer, read_options, split_options

__all__ = ["LIBRARIES", "Pretrained", "Resize", "load_pretrained"]

_NONE = "none"
_OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "weights": str,
    "num_classes": read_integer,
    "input_size": read_integer,
}


class Resize(nn.Module):
    """Scale inputs ``(N, C, H, W)`` to a square, bilinearly and antialiased, inside the model.

    So data keep their size, and eps its meaning, under a network made for another size.

    Args:
        size: height and width of what the network sees.

    >>> Resize(8)(torch.ones(1, 3, 4, 6)).shape
    torch.Size([1, 3, 8, 8])
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = _checks.integer("input_size", size, at_least=1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs ``(N, C, H, W)`` as ``(N, C, size, size)``."""
        return F.interpolate(inputs, size=(self.size, self.size), mode="bilinear", antialias=True)

    def extra_repr(self) -> str:
        """The size, for the model's repr."""
        return f"size={self.size}"


class Pretrained(nn.Sequential):
    """A library's network behind its own normalisation (and :class:`Resize`, where asked for).

    Args:
        network: normalised inputs to logits.
        mean: of its training images in ``[0, 1]``, one per channel.
        std: their standard deviations.
        native_size: height and width that it was made for.
        input_size: scale every input to this size; default, leave it as it is.

    Attributes:
        network: the library's own module, whose keys a checkpoint has.
    """

    network: nn.Module

    def __init__(
        self,
        network: nn.Module,
        mean: Iterable[float],
        std: Iterable[float],
        *,
        native_size: int,
        input_size: int | None = None,
    ) -> None:
        stages: list[tuple[str, nn.Module]] = [("normalize", Normalize(mean, std)), ("network", network)]
        if input_size is not None:
            stages.insert(0, ("resize", Resize(input_size)))
        super().__init__(OrderedDict(stages))
        self.native_size = native_size


class _Wanted(NamedTuple):
    """What a spec asks for."""

    spec: str
    name: str
    weights: str | None  # None: the library's best; "none": random ones
    num_classes: int | None
    input_size: int | None


def load_pretrained(
    library: str, text: str, *, with_weights: bool, num_classes: int | None = None, seed: int = 0
) -> Pretrained:
    """Build the network that ``LIBRARY:NAME[:key=value,...]`` names.

    Options: ``weights`` (a name of the library's, or ``none`` for random ones), ``num_classes``, and
    ``input_size`` (scale every input to this size inside the model).

    Args:
        library: one of :data:`LIBRARIES`.
        text: what follows the library's name and the colon.
        with_weights: False where a checkpoint will follow.
        num_classes: the data's, for a network that gets other weights than the library's.
        seed: of random weights.

    Returns:
        The network, on the CPU.

    Raises:
        ImportError: the library is not installed.
        OSError: the weights could not be loaded or downloaded.
        ValueError: for an unknown name or option (naming the nearest), or a value out of range.

    >>> net = load_pretrained("torchvision", "resnet18:weights=none,num_classes=10", with_weights=True)
    >>> net.eval()(torch.rand(1, 3, 32, 32)).shape, net.native_size
    (torch.Size([1, 10]), 224)
    """
    spec = f"{library}:{text}"
    name, colon, pairs = text.partition(":")
    options = read_options(split_options(pairs, spec, "model"), _OPTIONS, spec, "model") if colon else {}
    for key in ("num_classes", "input_size"):
        if key in options:
            _checks.integer(f"model {spec!r}: {key}", options[key], at_least=1)
    weights = options.get("weights")
    if not with_weights:
        weights = _NONE
    classes = options.get("num_classes", num_classes if weights == _NONE else None)
    wanted = _Wanted(spec, name, weights, classes, options.get("input_size"))
    # Random weights that a second run, to resume the first, gets again; the caller's generator stays.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LIBRARIES[library](wanted)


def _torchvision(wanted: _Wanted) -> Pretrained:
    """A classifier of torchvision."""
    models = require("torchvision.models", extra="evaluate")
    names = models.list_models(module=models)
    _known(wanted, names, "torchvision")
    known = models.get_model_weights(wanted.name)
    weights = _torchvision_weights(wanted, known)
    options = {} if wanted.num_classes is None else {"num_classes": wanted.num_classes}
    network = _built(wanted, lambda: models.get_model(wanted.name, weights=weights, **options))
    preset = (weights or known.DEFAULT).transforms()
    return Pretrained(
        network, preset.mean, preset.std, native_size=preset.crop_size[0], input_size=wanted.input_size
    )


def _torchvision_weights(wanted: _Wanted, known: Any) -> Any:
    """A member of the network's enumeration of weights, or None for random ones."""
    if wanted.weights == _NONE:
        return None
    if wanted.weights is None:
        return known.DEFAULT
    names = [member.name for member in known]
    return known[_checks.choice(f"model {wanted.spec!r}: weights", wanted.weights, [*names, _NONE])]


def _timm(wanted: _Wanted) -> Pretrained:
    """A classifier of timm; the name may have its tag of weights, as ``resnet18.a1_in1k``."""
    timm = require("timm", extra="timm")
    base, _, tag = wanted.name.partition(".")
    _known(wanted._replace(name=base), timm.list_models(), "timm")
    pretrained = wanted.weights != _NONE
    if pretrained and wanted.weights is not None:
        tag = wanted.weights
    if tag:
        tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{base}.*")]
        _checks.choice(f"model {wanted.spec!r}: weights", tag, [*tags, _NONE])
    name = f"{base}.{tag}" if tag else base
    options = {} if wanted.num_classes is None else {"num_classes": wanted.num_classes}
    network = _built(wanted, lambda: timm.create_model(name, pretrained=pretrained, **options))
    config: Any = network.pretrained_cfg
    return Pretrained(
        network,
        config["mean"],
        config["std"],
        native_size=config["input_size"][-1],
        input_size=wanted.input_size,
    )


def _known(wanted: _Wanted, names: Iterable[str], library: str) -> None:
    """Refuse a name that the library does not have, without listing its thousand others."""
    names = list(names)
    if wanted.name not in names:
        near = _checks.nearest(wanted.name, names)
        raise ValueError(
            f"model {wanted.spec!r}: {library} has no classifier {wanted.name!r} among its {len(names)}{near}"
        )


def _built(wanted: _Wanted, build: Callable[[], nn.Module]) -> nn.Module:
    """The network, or what the library says against it."""
    try:
        return build()
    except Exception as error:  # no connection, no cache, no hub, or options that the weights exclude
        reason = " ".join(str(error).split()) or type(error).__name__
        if wanted.weights == _NONE:
            raise ValueError(f"model {wanted.spec!r} could not be built: {reason}") from error
        raise OSError(
            f"model {wanted.spec!r}: its weights could not be loaded ({reason}); give a file of them as the "
            "checkpoint, or weights=none for random ones"
        ) from error


LIBRARIES: dict[str, Callable[[_Wanted], Pretrained]] = {"torchvision": _torchvision, "timm": _timm}
"""Libraries by the prefix of their models' specs."""
