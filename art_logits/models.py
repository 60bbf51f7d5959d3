"""Models by name: bundled ones, the benchmark architectures, and your own factory with a checkpoint.

Every model takes inputs ``(N, channels, height, width)`` in ``[0, 1]`` and returns logits ``(N, C)``;
normalisation is part of the model (:class:`Normalize`), so that eps keeps its unit: pixels.

Checkpoints are only ever read as data: safetensors, or ``torch.load(weights_only=True)``. A factory is
Python code that you name yourself, and runs as such.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from . import _checks
from ._extras import require
from .normalize import Normalize
from .pretrained import LIBRARIES, Pretrained, load_pretrained

__all__ = [
    "BasicBlock",
    "ConvNet",
    "DigitsNet",
    "MnistConvNet",
    "Normalize",
    "ResNetSmall",
    "convnet",
    "convnet_cifar",
    "convnet_mnist",
    "is_html",
    "load_checkpoint",
    "load_model",
    "mnist_convnet",
    "model_hash",
    "model_names",
    "read_checkpoint",
    "resnet_cifar",
    "resnet_small",
]

# Per-channel mean and standard deviation of the training images in [0, 1].
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)
DIGITS_MEAN, DIGITS_STD = (0.3053,), (0.3760,)


def _statistics(in_channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std for a benchmark architecture: CIFAR-10's, MNIST's, or a neutral ``0.5, 0.25``."""
    if in_channels == 3:
        return CIFAR10_MEAN, CIFAR10_STD
    if in_channels == 1:
        return MNIST_MEAN, MNIST_STD
    return (0.5,) * in_channels, (0.25,) * in_channels


def _conv_bn_relu(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU: in this order the norm can be fused into the convolution."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class DigitsNet(nn.Module):
    """The architecture of the bundled ``digits-at`` and ``digits-standard``: 44 thousand parameters.

    Four 3x3 convolutions with batch norm, one of stride 2, and a linear layer on the 4x4 map.
    Inputs ``(N, 1, 8, 8)`` in ``[0, 1]``, logits ``(N, num_classes)``.

    Args:
        num_classes: number of classes.

    >>> DigitsNet().eval()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.normalize = Normalize(DIGITS_MEAN, DIGITS_STD)
        self.features = nn.Sequential(
            _conv_bn_relu(1, 24),
            _conv_bn_relu(24, 24),
            _conv_bn_relu(24, 48, stride=2),
            _conv_bn_relu(48, 48),
        )
        self.classifier = nn.Linear(48 * 4 * 4, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of inputs ``(N, 1, 8, 8)``."""
        return self.classifier(self.features(self.normalize(inputs)).flatten(1))  # type: ignore[no-any-return]


class ConvNet(nn.Module):
    """VGG-like: six 3x3 convolutions with batch norm in three stages, global average pooling, linear.

    Inputs ``(N, in_channels, height, width)`` in ``[0, 1]`` with sides of at least 4.

    Args:
        in_channels: 3 for CIFAR-10's normalisation, 1 for MNIST's; others get a neutral one.
        num_classes: number of classes.
        width: channels of the first stage; the others have two and three times as many.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 10, width: int = 32) -> None:
        super().__init__()
        self.normalize = Normalize(*_statistics(in_channels))
        self.features = nn.Sequential(
            _conv_bn_relu(in_channels, width),
            _conv_bn_relu(width, width),
            _conv_bn_relu(width, 2 * width, stride=2),
            _conv_bn_relu(2 * width, 2 * width),
            _conv_bn_relu(2 * width, 3 * width, stride=2),
            _conv_bn_relu(3 * width, 3 * width),
            nn.AdaptiveAvgPool2d(1),
        )
        self.classifier = nn.Linear(3 * width, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(N, num_classes)``."""
        return self.classifier(self.features(self.normalize(inputs)).flatten(1))  # type: ignore[no-any-return]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut; a 1x1 projection where the shape changes.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        stride: stride of the first convolution and of the projection.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv_bn_relu(in_channels, out_channels, stride=stride),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H / stride, W / stride)``."""
        return torch.relu(self.body(inputs) + self.shortcut(inputs))


class ResNetSmall(nn.Module):
    """A small residual net: three stages of two basic blocks, global average pooling, linear.

    Inputs ``(N, in_channels, height, width)`` in ``[0, 1]``.

    Args:
        in_channels: 3 for CIFAR-10's normalisation, 1 for MNIST's; others get a neutral one.
        num_classes: number of classes.
        width: channels of the first stage; the others have two and four times as many.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 10, width: int = 24) -> None:
        super().__init__()
        self.normalize = Normalize(*_statistics(in_channels))
        self.features = nn.Sequential(
            _conv_bn_relu(in_channels, width),
            BasicBlock(width, width),
            BasicBlock(width, width),
            BasicBlock(width, 2 * width, stride=2),
            BasicBlock(2 * width, 2 * width),
            BasicBlock(2 * width, 4 * width, stride=2),
            BasicBlock(4 * width, 4 * width),
            nn.AdaptiveAvgPool2d(1),
        )
        self.classifier = nn.Linear(4 * width, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(N, num_classes)``."""
        return self.classifier(self.features(self.normalize(inputs)).flatten(1))  # type: ignore[no-any-return]


class MnistConvNet(nn.Module):
    """The field's MNIST net without batch norm: two 5x5 convolutions with pooling, two linear layers.

    Inputs ``(N, 1, 28, 28)`` in ``[0, 1]``; 455 thousand parameters.

    Args:
        num_classes: number of classes.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(64 * 7 * 7, 128), nn.ReLU(inplace=True), nn.Linear(128, num_classes)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of inputs ``(N, 1, 28, 28)``."""
        return self.classifier(self.features(inputs).flatten(1))  # type: ignore[no-any-return]


def convnet(in_channels: int = 3, num_classes: int = 10, width: int = 32) -> ConvNet:
    """Build a :class:`ConvNet`, randomly initialised."""
    return ConvNet(in_channels, num_classes, width)


def convnet_cifar(num_classes: int = 10) -> ConvNet:
    """:class:`ConvNet` of width 48 for 32x32 colour images: 460 thousand parameters."""
    return ConvNet(3, num_classes, width=48)


def convnet_mnist(num_classes: int = 10) -> ConvNet:
    """:class:`ConvNet` of width 16 for gray images: 52 thousand parameters."""
    return ConvNet(1, num_classes, width=16)


def resnet_small(in_channels: int = 3, num_classes: int = 10, width: int = 24) -> ResNetSmall:
    """Build a :class:`ResNetSmall`, randomly initialised."""
    return ResNetSmall(in_channels, num_classes, width)


def resnet_cifar(num_classes: int = 10) -> ResNetSmall:
    """:class:`ResNetSmall` of width 16 for 32x32 colour images: 175 thousand parameters."""
    return ResNetSmall(3, num_classes, width=16)


def mnist_convnet(num_classes: int = 10) -> MnistConvNet:
    """Build a :class:`MnistConvNet`, randomly initialised."""
    return MnistConvNet(num_classes)


# The bundled models: architecture by name; the weights lie in art_logits/weights/NAME.safetensors.
_ZOO = "robustbench"
_BUNDLED: dict[str, Callable[[], nn.Module]] = {"digits-at": DigitsNet, "digits-standard": DigitsNet}


def model_names() -> list[str]:
    """Names of the bundled models, sorted.

    >>> model_names()
    ['digits-at', 'digits-standard']
    """
    return sorted(_BUNDLED)


def load_model(
    spec: str,
    *,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    model_dir: str | Path | None = None,
    seed: int = 0,
) -> nn.Module:
    """Load the model that a spec names, in eval mode, on the CPU.

    Specs:
        ``digits-at``, ``digits-standard``: bundled (:func:`model_names`).
        ``FILE.py:factory``, ``package.module:factory``: a callable that returns the ``nn.Module``; it runs as
        ordinary Python code.
        ``torchvision:NAME``, ``timm:NAME``: see :func:`art_logits.pretrained.load_pretrained`; with their own
        mean and standard deviation inside.
        ``robustbench:DATASET/THREAT_MODEL/NAME``: of RobustBench's zoo, from ``model_dir``, or downloaded to
        there; with a checkpoint its architecture alone.

    Args:
        spec: the model.
        checkpoint: weights for it: ``.safetensors``, or a state dict saved by ``torch.save`` (read with
            ``weights_only=True``). Overrides the weights that the spec's model has.
        num_classes: passed to a factory that has a required parameter of that name, and to a network of a
            library that gets a checkpoint or random weights.
        in_channels: passed to a factory that has a required parameter of that name.
        mean: one value per channel, or one for all, for a factory's model without normalisation inside.
        std: its standard deviations.
        model_dir: folder of RobustBench's checkpoints, in its own layout; default ``models``.
        seed: of the random weights of a library's network; a factory draws from torch's generator.

    Returns:
        The module, in eval mode.

    Raises:
        ImportError: the library of the spec is not installed; the message says how to install it.
        ValueError: for an unknown name, factory or option (naming the nearest ones), a factory that fails, a
            checkpoint that cannot be read or does not fit (naming the keys), or ``mean`` and ``std`` for a
            model that has its own.
        TypeError: if the factory is not callable or returns something else than an ``nn.Module``.
        FileNotFoundError: if a file that the spec or the checkpoint names is not there.
        OSError: if weights could not be downloaded.

    >>> load_model("art_logits.models:mnist_convnet").training
    False
    """
    head, _, rest = spec.partition(":")
    location, _, factory = spec.rpartition(":")
    is_factory = bool(location and factory) and head not in (*LIBRARIES, _ZOO)
    _check_statistics(spec, mean, std, is_factory=is_factory)
    if head in LIBRARIES:
        model: nn.Module = load_pretrained(
            head, rest, with_weights=checkpoint is None, num_classes=num_classes, seed=seed
        )
    elif head == _ZOO:
        model = _from_zoo(spec, rest, model_dir, with_weights=checkpoint is None)
    elif is_factory:
        model = _from_factory(spec, location, factory, num_classes=num_classes, in_channels=in_channels)
    else:
        model = _bundled(spec, with_weights=checkpoint is None)
    if checkpoint is not None:
        load_checkpoint(model.network if isinstance(model, Pretrained) else model, checkpoint)
    if mean is not None and std is not None:
        model = _normalized(model, mean, std, in_channels)
    return model.eval()


def _check_statistics(spec: str, mean: object, std: object, *, is_factory: bool) -> None:
    """Refuse half of a normalisation, and one for a model that has its own."""
    if mean is None and std is None:
        return
    if mean is None or std is None:
        raise ValueError("mean and std must be given together, one value per channel each")
    if not is_factory:
        raise ValueError(
            f"mean and std are for models of a factory, without normalisation inside; {spec!r} has its own"
        )


def _normalized(
    model: nn.Module, mean: Sequence[float], std: Sequence[float], in_channels: int | None
) -> nn.Module:
    """The model behind a normalisation; a single value is for all channels."""
    channels = in_channels or 1
    means, stds = ([*v] * channels if len(v) == 1 else [*v] for v in (mean, std))
    return nn.Sequential(OrderedDict([("normalize", Normalize(means, stds)), ("model", model)]))


def _from_zoo(spec: str, path: str, model_dir: str | Path | None, *, with_weights: bool) -> nn.Module:
    """A model of RobustBench's zoo."""
    parts = path.split("/")
    if len(parts) != 3 or not all(parts):
        raise ValueError(
            f"model {spec!r} must be robustbench:DATASET/THREAT_MODEL/NAME, such as "
            "robustbench:cifar10/Linf/Wong2020Fast"
        )
    dataset, threat_model, name = parts
    plugin = importlib.import_module("art_logits.plugins.robustbench")
    place = {"dataset": dataset, "threat_model": threat_model}
    try:
        if not with_weights:
            built: nn.Module = plugin.build_model(name, **place)
            return built
        folder = "models" if model_dir is None else str(model_dir)
        model: nn.Module = plugin.load_model(name, model_dir=folder, **place)
    except ValueError as error:
        raise ValueError(f"model {spec!r}: {error}") from error
    return model


def _bundled(name: str, *, with_weights: bool) -> nn.Module:
    """The bundled model of that name, with its weights unless a checkpoint will follow."""
    if name not in _BUNDLED:
        raise ValueError(_unknown_model(name))
    model = _BUNDLED[name]()
    if with_weights:
        safetensors = require("safetensors.torch", extra="evaluate")
        file = resources.files("art_logits") / "weights" / f"{name}.safetensors"
        _fit(model, safetensors.load(file.read_bytes()), source=f"{name}.safetensors")
    return model


def _unknown_model(name: str) -> str:
    """Error message for a model spec that is no bundled name and names no factory."""
    if name.rstrip(":").endswith(".py"):
        return f"model {name!r}: name the factory in the file too, as {name.rstrip(':')}:FACTORY"
    if Path(name).suffix in {".safetensors", ".pt", ".pth", ".ckpt", ".bin"}:
        return (
            f"model {name!r} looks like a checkpoint, which does not say the architecture: "
            f"give FILE.py:factory as the model and {name} as the checkpoint"
        )
    return (
        f"model: expected one of {', '.join(model_names())}, FILE.py:factory, package.module:factory, "
        f"torchvision:NAME, timm:NAME or robustbench:DATASET/THREAT_MODEL/NAME, "
        f"got {name!r}{_checks.nearest(name, [*model_names(), *LIBRARIES, _ZOO])}"
    )


@contextmanager
def _on_path(folder: Path, *, first: bool) -> Iterator[None]:
    """Put a folder on ``sys.path`` while a user's module loads, so that it finds its siblings."""
    entry = str(folder)
    sys.path.insert(0 if first else len(sys.path), entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


def _from_factory(spec: str, location: str, name: str, **known: int | None) -> nn.Module:
    """Import the factory of ``location:name`` and call it."""
    is_file = location.endswith(".py")
    folder = Path(location).resolve().parent if is_file else Path.cwd()
    with _on_path(folder, first=is_file):
        module = _module_of_file(Path(location)) if is_file else _module_of_name(location)
        factory = getattr(module, name, None)
        if factory is None:
            near = _checks.nearest(name, _callables(module))
            raise ValueError(f"model {spec!r}: {location} has no factory {name!r}{near}")
        if not callable(factory):
            raise TypeError(f"model {spec!r}: {name} must be callable, got {type(factory).__name__}")
        try:
            model = factory(**_required_arguments(factory, known))
        except Exception as error:
            raise ValueError(f"model {spec!r}: the factory raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model {spec!r}: the factory must return a torch.nn.Module, got {type(model).__name__}"
        )
    return model


def _module_of_file(path: Path) -> ModuleType:
    """Run a Python file as a module of its own."""
    if not path.is_file():
        raise FileNotFoundError(f"model: there is no file {str(path)!r}")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    name = f"_art_logits_factory_{path.stem}_{digest}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:  # pragma: no cover - a .py file always has a loader
        raise ValueError(f"model: {str(path)!r} cannot be imported")
    module = importlib.util.module_from_spec(module_spec)
    # Dataclasses and pickling look their module up by name: it must be registered while it runs.
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"model: running {str(path)!r} raised {type(error).__name__}: {error}") from error
    return module


def _module_of_name(name: str) -> ModuleType:
    """Import ``package.module``."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        near = _checks.nearest(name, [*LIBRARIES, _ZOO])
        raise ValueError(f"model: importing {name!r} raised {type(error).__name__}: {error}{near}") from error


def _callables(module: ModuleType) -> list[str]:
    return [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]


def _required_arguments(factory: Callable[..., Any], known: Mapping[str, int | None]) -> dict[str, int]:
    """What is known of the data, for those parameters of a factory that have no default."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some built-in callables have no signature
        return {}
    required = {p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    return {key: value for key, value in known.items() if key in required and value is not None}


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint's weights into a model, strictly.

    ``.safetensors`` files, or state dicts written by ``torch.save``: bare, or under the key ``state_dict``,
    ``model_state_dict`` or ``model``; the prefixes ``module.`` (DataParallel) and ``_orig_mod.``
    (``torch.compile``) are removed where every key has them.

    Args:
        model: receives the weights in place.
        path: the file.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it cannot be read as weights, or does not fit the model (naming the keys).
    """
    path = Path(path)
    _fit(model, _unwrap(read_checkpoint(path), path), source=str(path))


def read_checkpoint(path: str | Path) -> object:
    """Read a checkpoint as data: code in it is refused, not run.

    Args:
        path: a ``.safetensors`` file, or one written by ``torch.save``.

    Returns:
        What it holds: a state dict, or whatever holds one.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it is empty, an HTML page, truncated, in another format, or holds pickled code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: there is no file {str(path)!r}")
    if not path.stat().st_size:
        raise ValueError(f"checkpoint {str(path)!r} is empty")
    if is_html(path):
        raise ValueError(
            f"checkpoint {str(path)!r} is an HTML page, not weights: the download was answered with a web "
            "page (a login or an error); open it in a browser, and download the file again"
        )
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def is_html(path: str | Path) -> bool:
    """Whether a file begins as a web page does: what a download often brings in place of weights."""
    with Path(path).open("rb") as file:
        head = file.read(512)
    return head.lstrip().lower().startswith((b"<!doctype html", b"<html", b"<?xml"))


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    safetensors = require("safetensors", extra="evaluate")
    reader = require("safetensors.torch", extra="evaluate")
    try:
        state: Mapping[str, Tensor] = reader.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"checkpoint {str(path)!r} is no complete safetensors file ({error}): download or save it again"
        ) from error
    return state


def _read_torch(path: Path) -> object:
    """Read a ``torch.save`` file as data only: code in it is refused, not run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way: IndexError, KeyError, EOFError, ...
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise ValueError(
                f"checkpoint {str(path)!r} contains pickled Python objects ({found[1]}), which could run "
                "code, and is refused: save the weights alone, by torch.save(model.state_dict(), FILE)"
            ) from error
        # Torch's own text would advise to run whatever the file contains.
        reason = str(error).partition("\n")[0][:160] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            reason = "unknown pickle"
        elif isinstance(error, OSError):  # a seek to where the file should go on
            reason = "its end is missing"
        raise ValueError(
            f"checkpoint {str(path)!r} cannot be read as a torch state dict ({reason}): "
            "it is truncated or in another format; download or save it again"
        ) from error


def _unwrap(state: object, path: Path) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, without wrappers and prefixes."""
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state:
        raise ValueError(
            f"checkpoint {str(path)!r} must hold a state dict (names to tensors), got {_describe(state)}"
        )
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if len(tensors) != len(state):
        others = [str(key) for key in state if str(key) not in tensors]
        raise ValueError(
            f"checkpoint {str(path)!r} must hold a state dict (names to tensors), got other values under "
            f"{_some(others)}; save the state dict alone or under 'state_dict'"
        )
    for prefix in ("module.", "_orig_mod."):
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _describe(value: object) -> str:
    return "an empty one" if isinstance(value, Mapping) else type(value).__name__


def _some(names: Iterable[str], count: int = 3) -> str:
    """A few of many names, for an error message."""
    names = list(names)
    rest = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + rest


def _fit(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load a state dict, or say which keys are missing, unexpected or of another shape."""
    expected = model.state_dict()
    # Batch counters do not touch the function in eval mode; files converted by other tools often lack them.
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in expected]
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(v.shape)}"
        for k, v in expected.items()
        if k in state and isinstance(v, Tensor) and state[k].shape != v.shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    found = [f"{len(names)} keys {what}: {_some(names)}" for what, names in problems.items() if names]
    if found:
        raise ValueError(
            f"checkpoint {source!r} does not fit {type(model).__name__}: {'; '.join(found)}. "
            "Is it of this architecture and number of classes?"
        )
    model.load_state_dict(dict(state), strict=False)


def model_hash(model: object) -> str | None:
    """Hash of a model's weights and buffers: names, dtypes, shapes and bytes.

    Args:
        model: an ``nn.Module``, or any callable.

    Returns:
        sha256 in hex, the same on every device; None for a callable without a state dict.

    >>> model_hash(nn.Identity()) == model_hash(nn.ReLU()), model_hash(torch.relu) is None
    (True, True)
    """
    if not isinstance(model, nn.Module):
        return None
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, Tensor):
            continue
        value = value.detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
