"""Make a model ready to be attacked, cheap to attack, and give it back as it was.

Gradients may come from a faster version of a model: batch norms folded, another memory layout, bfloat16.
What is reported never does: success and logits are those of the original model in float32.
"""

from __future__ import annotations

import logging
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import _checks
from ._batches import is_out_of_memory
from .folding import Pair, find_pairs, fold, has_hooks, refold
from .fusing import Rewriting, find_rewritings, rewrite
from .types import Model

logger = logging.getLogger(__name__)

#: What gradients are computed in; ``"auto"`` is resolved by :func:`choose_precision`.
Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]
PRECISIONS = ("auto", "float32", "bfloat16")

_CASTS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Weights times pixels, about the multiply-adds of a convolutional net: below it, a pass costs less than
# what could be saved on it. The bundled digits nets lie at 3 million, a small CIFAR-10 net at 500.
_WORTHWHILE = 2**24
# A wrongly folded model is off by the size of its logits, a right one by float32 rounding.
_AGREEMENT = 1e-3
_COMPARED = 4


@contextmanager
def evaluating(*models: object) -> Iterator[None]:
    """Hold models in eval mode, without parameter gradients, and restore every flag on the way out.

    Each submodule's own ``training`` flag and each parameter's own ``requires_grad`` come back, also
    after an exception; parameters' ``.grad`` and hooks are never touched. Anything that is not an
    ``nn.Module`` (a plain function, say) passes through.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
    >>> with evaluating(net):
    ...     [module.training for module in net.modules()]
    [False, False, False]
    >>> [module.training for module in net.modules()]
    [True, True, False]
    """
    roots = [model for model in models if isinstance(model, nn.Module)]
    modes = [(module, module.training) for root in roots for module in root.modules()]
    grads = [(weight, weight.requires_grad) for root in roots for weight in root.parameters()]
    try:
        for module, _ in modes:
            module.training = False
        for weight, _ in grads:
            weight.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for weight, flag in grads:
            weight.requires_grad_(flag)


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute in float32 where float32 is said: no TF32, no bfloat16 inside of products, no autocast."""
    before = _float32_settings()
    try:
        for setting in before:
            setting.set(setting.exact)
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        for setting in before:
            setting.set(setting.value)


def _computes_in_tf32(device: torch.device) -> bool:
    """Whether torch takes TF32 for float32 somewhere on a device, a GPU that has it."""
    if device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0) and bool(_float32_settings())


class _Setting(NamedTuple):
    """One of torch's switches: what sets it, what it was, and what means float32."""

    set: Callable[[Any], None]
    value: Any
    exact: Any


def _float32_settings() -> list[_Setting]:
    """The switches that must be set for float32 to be float32; none where they are set so already.

    The older ones first, which set some of those that torch 2.9 gave to each backend and operator. Where the
    two contradict each other, torch refuses to tell the older ones, and they are left alone.
    """
    on_gpu, backends = bool(torch.cuda.is_initialized()), torch.backends  # type: ignore[no-untyped-call]
    settings = []
    with suppress(RuntimeError):
        products = torch.get_float32_matmul_precision()
        settings.append(_Setting(torch.set_float32_matmul_precision, products, "highest"))
    if on_gpu:
        with suppress(RuntimeError):
            allowed = backends.cudnn.allow_tf32
            settings.append(_Setting(partial(setattr, backends.cudnn, "allow_tf32"), allowed, False))
    for owner in _operators(on_gpu):
        value = owner.fp32_precision
        settings.append(_Setting(partial(setattr, owner, "fp32_precision"), value, "ieee"))
    return settings if any(setting.value not in (setting.exact, "none") for setting in settings) else []


def _operators(on_gpu: bool) -> list[Any]:
    """Those of torch's kinds of products that have a precision of their own."""
    backends = torch.backends
    known: list[tuple[Any, tuple[str, ...]]] = [(backends.mkldnn, ("matmul", "conv", "rnn"))]
    if on_gpu:
        known += [(backends.cuda, ("matmul",)), (backends.cudnn, ("conv", "rnn"))]
    found = [getattr(backend, name, None) for backend, names in known for name in names]
    return [operator for operator in found if hasattr(operator, "fp32_precision")]


class Cast(nn.Module):
    """A model under autocast, with logits in at least float32, in the memory layout convolutions like.

    Args:
        model: maps inputs ``(N, ...)`` to logits ``(N, C)``.
        precision: ``"float32"`` for no autocast, ``"bfloat16"`` or ``"float16"``.
        channels_last: hand images ``(N, channels, H, W)`` over with their channels last in memory.
    """

    def __init__(self, model: nn.Module, precision: str = "float32", *, channels_last: bool = True) -> None:
        super().__init__()
        self.model, self.dtype, self.channels_last = model, _CASTS[precision], channels_last

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(N, C)`` of inputs ``(N, ...)``."""
        if self.channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        if self.dtype is None:
            logits: Tensor = self.model(inputs)
        else:
            with torch.autocast(inputs.device.type, self.dtype):
                logits = self.model(inputs)
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


class Prepared(nn.Module):
    """What :func:`prepare` returns: a cheaper way to compute a model's logits and input gradients.

    It holds no weights of its own: every call folds those that its original has then, so an optimiser's
    step, ``load_state_dict`` or a write into ``.data`` is never missed. An attack that is given a prepared
    model takes its gradients from it, and judges by its :attr:`original`; a ``precision`` of the attack's
    other than ``"auto"``, and ``fuse=False``, go before those it was prepared with.

    Attributes:
        original: the model it was made of.
    """

    def __init__(
        self,
        original: nn.Module,
        precision: str,
        *,
        fuse: bool,
        channels_last: bool,
        compile: bool | str = False,
        cuda_graphs: bool = False,
    ) -> None:
        super().__init__()
        self.original, self.precision = original, precision
        self.fuse, self.channels_last = fuse, channels_last
        self.compiler, self.cuda_graphs = compile, cuda_graphs
        self._compared = False
        self._one_kernel = not compile  # which does that by itself
        self._kept: tuple[list[object], nn.Module, _Compiled | _Graphed] | None = None
        self._variants: dict[tuple[str, bool], Prepared] = {}

    @property
    def pairs(self) -> list[Pair]:
        """The convolutions and batch norms that are folded, by their names in the original."""
        return _pairs(self.original) if self.fuse else []

    @property
    def changes(self) -> bool:
        """Whether anything but the precision is other than in the original."""
        return bool(self.pairs or self.channels_last or self.compiler or self.cuda_graphs)

    def config(self) -> dict[str, Any]:
        """What was asked for, as JSON can hold it."""
        return {
            "precision": self.precision,
            "fuse": self.fuse,
            "channels_last": self.channels_last,
            "compile": self.compiler,
            "cuda_graphs": self.cuda_graphs,
        }

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(N, C)`` of inputs ``(N, ...)``, in at least float32."""
        with evaluating(self.original):
            logits: Tensor = self.snapshot(inputs)(inputs)
        return logits

    def variant(self, precision: str, *, fuse: bool) -> Prepared:
        """The same model prepared in the same way but for these two; what it compiles, it compiles once."""
        fuse = fuse and self.fuse
        if (precision, fuse) == (self.precision, self.fuse):
            return self
        if (precision, fuse) not in self._variants:
            changes = {**self.config(), "precision": precision, "fuse": fuse}
            self._variants[precision, fuse] = Prepared(self.original, **changes)
        return self._variants[precision, fuse]

    def snapshot(self, inputs: Tensor) -> nn.Module:
        """The model as it is now, ready for many passes; to be used while its weights stay as they are.

        The first time, the folded model is compared with the original on up to 4 of the ``inputs``
        (one forward pass of each): where they differ, the original is used, and the log says so once.
        The original must be held in eval mode meanwhile (:func:`evaluating`).
        """
        if not (self.compiler or self.cuda_graphs):
            return self._cast(self._folded(inputs))
        # What is compiled or recorded works on one set of tensors, into which later weights are written.
        own = (*self.original.parameters(), *self.original.buffers())
        tensors: list[object] = [(id(tensor), tensor.data_ptr()) for tensor in own]
        if self._kept is not None and self._kept[0] == tensors and self._kept[1] is not self.original:
            refold(self._kept[1], self.original, self.pairs)
        elif self._kept is None or self._kept[0] != tensors:
            net = self._folded(inputs)
            self._kept = tensors, net, self._quickened(self._cast(net))
        return self._kept[2]

    def _quickened(self, net: Cast) -> _Compiled | _Graphed:
        if not self.compiler:
            return _Graphed(net)
        options: dict[str, Any] = {"mode": "reduce-overhead"} if self.cuda_graphs else {}
        return _Compiled(net, options | ({"backend": self.compiler} if self.compiler is not True else {}))

    def _cast(self, net: nn.Module) -> Cast:
        return Cast(net, self.precision, channels_last=self.channels_last)

    def _folded(self, inputs: Tensor) -> nn.Module:
        pairs = self.pairs
        if not pairs:
            return self.original
        folded, probe = fold(self.original, pairs), inputs[:_COMPARED]
        one_kernel = self._one_kernel and _has_one_kernel(inputs)
        rewritings = _rewritings(self.original, folded, pairs) if one_kernel else []
        if rewritings:
            rewrite(folded, rewritings)
            if not self._compared and not self._agrees(
                folded, probe, "convolutions are not fused with ReLUs"
            ):
                self._one_kernel = False
                return self._folded(inputs)
        elif not self._compared and not self._agrees(folded, probe, "batch norms are not folded"):
            self.fuse = False
        self._compared = True
        if not self.fuse:
            return self.original
        if (dtype := _CASTS[self.precision]) is not None:
            # Autocast keeps what it has rounded for weights that want gradients, not for these.
            for pair in pairs:
                folded.get_submodule(pair.convolution).to(dtype)
        return folded

    def _agrees(self, folded: nn.Module, probe: Tensor, otherwise: str) -> bool:
        before = {id(module): dict(vars(module)) for module in folded.modules()}
        try:
            with torch.no_grad(), full_float32():
                expected, found = self.original(probe), folded(probe)
            same = bool(((found - expected).abs() <= _AGREEMENT * expected.abs().max()).all())
            reason = "its logits differ from the original's"
        except Exception as error:  # whatever a user's code raises on a model that was changed
            same, reason = False, str(error)
        if same and any(_keeps_state(module, before[id(module)]) for module in folded.modules()):
            same, reason = False, "a forward pass changes the model's attributes, which a copy would miss"
        if not same:
            _say_once(self.original, f"{otherwise}: {reason}")
        return same


def _keeps_state(module: nn.Module, before: dict[str, Any]) -> bool:
    after = vars(module)
    return after.keys() != before.keys() or any(after[key] is not before[key] for key in before)


class _Compiled(nn.Module):
    """A compiled model, or the model itself from the first failure of the compiler on."""

    def __init__(self, model: Cast, options: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.dtype = model, model.dtype
        self.compiled: Callable[[Tensor], Tensor] | None = torch.compile(model, **options)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.compiled is not None:
            try:
                return _copied(self.compiled, inputs)
            except Exception as error:  # compilers fail in many ways, and none is the user's affair
                self.compiled = None
                _say_once(self.model, f"the model is not compiled: {_first_line(error)}")
        logits: Tensor = self.model(inputs)
        return logits


# From about so many rows on a GPU has enough to compute to be told what comes next in the meantime.
_MOST_RECORDED = 512


class _Graphed(nn.Module):
    """A model whose passes are recorded as CUDA graphs, one per shape, and replayed.

    A pass over few rows then takes what the GPU needs, not what telling it takes. From the first failure on
    it is the model itself.
    """

    def __init__(self, model: Cast) -> None:
        super().__init__()
        self.model, self.dtype = model, model.dtype
        self.recorded: dict[object, Callable[[Tensor], Tensor]] | None = {}
        self._pool: Any = None

    def forward(self, inputs: Tensor) -> Tensor:
        if self.recorded is not None and _can_be_recorded(inputs):
            differentiable = inputs.requires_grad and torch.is_grad_enabled()
            key = (inputs.shape, inputs.dtype, inputs.device, differentiable)
            try:
                if key not in self.recorded:
                    self.recorded[key] = self._record(inputs, differentiable)
                return _copied(self.recorded[key], inputs)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                self.recorded = None
                _say_once(self.model, f"no CUDA graphs: {_first_line(error)}")
        logits: Tensor = self.model(inputs)
        return logits

    def _record(self, inputs: Tensor, differentiable: bool) -> Callable[[Tensor], Tensor]:
        if self._pool is None:
            # One for all: no two of the graphs are ever in use at a time.
            self._pool = torch.cuda.graph_pool_handle()
        sample = inputs.detach().clone().requires_grad_(differentiable)

        def run(x: Tensor) -> Tensor:  # a module's own forward would be replaced
            logits: Tensor = self.model(x)
            return logits

        with warnings.catch_warnings():
            # torch 2.11 keeps what it warms up with, and warns of it when it records on another stream.
            warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream does not match")
            recorded = torch.cuda.make_graphed_callables(run, (sample,), pool=self._pool)
        return cast("Callable[[Tensor], Tensor]", recorded)


def _can_be_recorded(inputs: Tensor) -> bool:
    return inputs.is_cuda and len(inputs) <= _MOST_RECORDED


def _copied(run: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Logits, and later gradients, as copies: the next pass of a graph writes into the very same tensors."""
    entry = inputs.view_as(inputs)
    if entry.requires_grad:
        entry.register_hook(torch.clone)  # type: ignore[no-untyped-call]
    return run(entry).clone()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def prepare(
    model: nn.Module,
    *,
    precision: str = "float32",
    fuse: bool = True,
    channels_last: bool = True,
    compile: bool | str = False,
    cuda_graphs: bool = False,
) -> Prepared:
    """A version of a model whose logits and input gradients are cheaper, in eval mode; the model stays as is.

    Batch norms are folded into the convolutions before them wherever the model's graph shows that nothing
    else takes the convolution's output. Hooks, shared modules, parametrizations, subclasses of the layers,
    and a module whose forward can't be traced are left alone; the log says once what was given up and why.
    An attack does this by itself (:class:`art_logits.TemperaturePGD`, ``precision``), and measures
    success on the original; given a prepared model, it does it as that was prepared, which is how an attack
    comes to a compiler, to CUDA graphs or to float16.

    Args:
        model: maps inputs ``(N, ...)`` to logits ``(N, C)``.
        precision: what convolutions and products are computed in: ``"float32"``, ``"bfloat16"`` or, on a GPU,
            ``"float16"``. Weights stay as they are, logits come back in float32; a float64 model stays one.
        fuse: fold batch norms and, on a GPU, compute a convolution in one kernel with the residual sum and
            the ReLU that follow it.
        channels_last: give images to the model with their channels last in memory, which most convolutions
            compute faster.
        compile: hand the result to :func:`torch.compile`, by its default backend or the one named. It pays
            after many passes only: compiling takes seconds to minutes.
        cuda_graphs: record the passes over up to 512 rows, once for every number of rows, and replay them;
            with ``compile``, leave that to the compiler (``mode="reduce-overhead"``). Needs a GPU, and memory
            for each number of rows.

    Returns:
        A module that computes what ``model`` does at the moment of each call, up to rounding. Its gradients
        reach the inputs, not the weights.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: an unknown precision, or one that the model's device does not have.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    >>> fast = prepare(net)
    >>> fast.pairs
    [Pair(convolution='0', norm='1')]
    >>> x = torch.rand(2, 1, 4, 4)
    >>> torch.allclose(fast(x), net.eval()(x), atol=1e-5)
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    _checks.choice("precision", precision, _CASTS)
    model = original_of(model)
    on_gpu = any(weight.is_cuda for weight in model.parameters())
    if not on_gpu and (precision == "float16" or cuda_graphs):
        what = "precision 'float16'" if precision == "float16" else "cuda_graphs"
        raise ValueError(f"{what} needs a model on a GPU: move it there, or use bfloat16 or float32")
    return Prepared(
        model,
        "float32" if _is_double(model) else precision,
        fuse=fuse,
        channels_last=channels_last and _is_convolutional(model),
        compile=compile,
        cuda_graphs=cuda_graphs,
    )


def original_of(model: Any) -> Any:
    """The model itself, or the one that a prepared one was made of."""
    return model.original if isinstance(model, Prepared) else model


def gradient_model(model: Model, inputs: Tensor, precision: str, *, fuse: bool) -> nn.Module | None:
    """What an attack takes its gradients from, or None for the model itself, where nothing is to be gained.

    Args:
        model: the original, held in eval mode (:func:`evaluating`), or a prepared version of it.
        inputs: ``(N, ...)``, what is going to be attacked.
        precision: ``"float32"`` or ``"bfloat16"``.
        fuse: whether the model may be folded and its memory layout changed; done where the model is large
            enough for it to pay, by its weights and the size of an input.

    On a GPU on which torch computes float32 in TF32, as it does convolutions unless told otherwise, so are
    gradients at ``"float32"``: it takes a fraction of the time, and is what the model's user gets.
    """
    original = original_of(model)
    if not isinstance(original, nn.Module) or inputs.dtype == torch.float64 or _is_double(original):
        return None
    asked = model.variant(precision, fuse=fuse) if isinstance(model, Prepared) else None
    worthwhile = is_worthwhile(original, inputs)
    fuse = fuse and worthwhile
    key = (precision, fuse, asked, inputs.shape[1:], inputs.device)
    snapshots = _snapshots.get(original, {})
    if key not in snapshots:
        prepared = asked or prepare(original, precision=precision, fuse=fuse, channels_last=fuse)
        rounded = precision != "float32" or (worthwhile and _computes_in_tf32(inputs.device))
        gains = rounded or prepared.changes
        snapshots[key] = prepared.snapshot(inputs) if gains else None
    return snapshots[key]


_snapshots: weakref.WeakKeyDictionary[nn.Module, dict[object, nn.Module | None]] = weakref.WeakKeyDictionary()


def is_rounded(proxy: Model | None, device: torch.device) -> bool:
    """Whether a pass of :func:`gradient_model`'s on a GPU takes a fraction of the original's in float32."""
    on_gpu = proxy is not None and device.type == "cuda"
    return on_gpu and (getattr(proxy, "dtype", None) is not None or _computes_in_tf32(device))


@contextmanager
def prepared_once(model: Model) -> Iterator[None]:
    """Let :func:`gradient_model` fold a model once for all that is done within, where its weights stay."""
    if not isinstance(model, nn.Module) or model in _snapshots:
        yield
        return
    _snapshots[model] = {}
    try:
        yield
    finally:
        del _snapshots[model]


# ----------------------------------------------------------------------------------------------------------
# What can be known of a model without running it

_known_pairs: weakref.WeakKeyDictionary[nn.Module, tuple[object, list[Pair]]] = weakref.WeakKeyDictionary()
_known_rewritings: weakref.WeakKeyDictionary[nn.Module, tuple[object, list[Rewriting]]] = (
    weakref.WeakKeyDictionary()
)
_SETTINGS = (bool, int, float, str, type(None))
_said: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()


def _say_once(model: nn.Module, text: str, level: int = logging.WARNING) -> None:
    said = _said.setdefault(model, set())
    if text not in said:
        said.add(text)
        logger.log(level, "%s: %s", type(model).__name__, text)


def _pairs(model: nn.Module) -> list[Pair]:
    """What can be folded, found once for a model as long as its modules stay the same."""
    if has_hooks(model):
        _say_once(model, "batch norms are not folded: the model has hooks")
        return []
    structure = tuple((name, id(module), type(module)) for name, module in model.named_modules())
    known = _known_pairs.get(model)
    if known is None or known[0] != structure:
        try:
            pairs = find_pairs(model)
        except Exception as error:  # an attack must not fail because its model is unusual
            _say_once(model, f"batch norms are not folded: {error}")
            pairs = []
        norms = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
        if norms > len(pairs):
            # No warning: in some architectures a batch norm stands before its convolution.
            text = f"{len(pairs)} of {norms} batch norms can be folded into the convolution before them"
            _say_once(model, text, logging.INFO)
        _known_pairs[model] = known = structure, pairs
    return list(known[1])


def _has_one_kernel(inputs: Tensor) -> bool:
    """Whether what computes with these inputs has one for a convolution with all that follows it."""
    return inputs.is_cuda and torch.backends.cudnn.enabled


def _rewritings(model: nn.Module, folded: nn.Module, pairs: list[Pair]) -> list[Rewriting]:
    """What can be one kernel, found once for a model as long as modules and settings stay the same."""
    settings = tuple(
        (name, id(module), *(item for item in vars(module).items() if isinstance(item[1], _SETTINGS)))
        for name, module in model.named_modules()
    )
    known = _known_rewritings.get(model)
    if known is None or known[0] != settings:
        _known_rewritings[model] = known = settings, find_rewritings(folded, pairs)
    return known[1]


def _is_double(model: nn.Module) -> bool:
    tensors = (*model.parameters(), *model.buffers())
    return any(tensor.dtype == torch.float64 for tensor in tensors)


def _is_convolutional(model: nn.Module) -> bool:
    """Whether most weights are those of two-dimensional convolutions."""
    weights = sum(weight.numel() for weight in model.parameters())
    kernels = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))
    return 2 * kernels > weights


def is_worthwhile(model: nn.Module, inputs: Tensor) -> bool:
    """Whether a model is so large, for inputs ``(N, ...)``, that preparing it saves more than it costs."""
    positions = inputs[0, 0].numel() if inputs.ndim > 2 else 1
    return sum(weight.numel() for weight in model.parameters()) * positions >= _WORTHWHILE


# ----------------------------------------------------------------------------------------------------------
# How many samples at a time

# Of the largest tensor in a pass. Measured on two CIFAR-10 nets in float32 and bfloat16, forward and with
# gradients: the best of 16, 32, 64, 128 and 256 samples per pass is where this tensor has 8 MiB; twice as
# many take 20 % longer each on a net with large maps (they leave the caches, and are handed back to the
# system after every use), half as many 10 % longer on one with small maps (fixed costs of a pass).
_LARGEST = 2**23
_FEWEST = 16
_elements: weakref.WeakKeyDictionary[nn.Module, dict[object, int]] = weakref.WeakKeyDictionary()


class _LargestTensor(TorchFunctionMode):
    """Notes how many elements the largest tensor has that a pass over ``rows`` samples makes of each."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.elements = rows, 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.ndim and len(made) == self.rows:  # else a weight's
            self.elements = max(self.elements, made.numel() // self.rows)
        return made


def rows_per_pass(model: Model, inputs: Tensor, *, dtype: torch.dtype | None = None) -> int | None:
    """How many samples a CPU computes best at a time, or None for as many as there are.

    The model, held in eval mode (:func:`evaluating`), sees two samples once per shape of inputs. On a GPU, of
    plain callables, and of models so small that nothing could be saved, the answer is None.

    Args:
        model: maps inputs ``(N, ...)`` to logits ``(N, C)``.
        inputs: ``(N, ...)``, N >= 1.
        dtype: what the activations are computed in; by default as the inputs.

    Returns:
        At least 16, or None.
    """
    if not isinstance(model, nn.Module) or inputs.is_cuda or not is_worthwhile(model, inputs):
        return None
    known, key = _elements.setdefault(model, {}), tuple(inputs.shape[1:])
    if key not in known:
        probe = inputs[:2]
        with torch.no_grad(), full_float32(), _LargestTensor(len(probe)) as largest:
            model(probe)
        known[key] = largest.elements
    width = torch.finfo(dtype or inputs.dtype).bits // 8
    return max(_FEWEST, _LARGEST // (known[key] * width))


# A GPU's library of convolutions plans its work anew for every number of rows that it has not met: on an H100
# 25 ms (float32) or 50 ms (bfloat16) for a pass of ResNet-18, as long as a pass over thousands of samples.
# Fewer rows than these take as long: a GPU waits to be told what to do.
_FEWEST_ON_GPU = 8


def rows_to_hand_over(model: Model, inputs: Tensor, *, most: int) -> int:
    """How many rows a model is best given where these are asked for; the caller repeats one to fill up.

    Args:
        model: a module; a plain callable gets what is there.
        inputs: ``(N, ...)``, from 1 to ``most`` rows.
        most: the largest batch.

    Returns:
        On a GPU a power of two, at least 8, or ``most``, so that few shapes occur; else N.
    """
    if not (inputs.is_cuda and isinstance(model, nn.Module)):
        return len(inputs)
    return _few_shapes(len(inputs), most)


def rows_at_a_time(left: int, *, least: int) -> int:
    """How many of so many rows a GPU is best given next: all of them, or as many as fill a power of two.

    600 rows cost what 1024 do, which they are filled up to; 512 and 88 cost little more than half of that.

    Args:
        left: rows that are left, >= 1.
        least: fewer rows than these are not worth a pass of their own.

    >>> [rows_at_a_time(left, least=128) for left in (1, 130, 255, 256, 384, 385, 600)]
    [1, 128, 255, 256, 256, 385, 512]
    """
    full = 1 << (left - 1).bit_length()
    return full // 2 if full // 2 >= least and left <= 3 * full // 4 else left


def _few_shapes(count: int, most: int) -> int:
    """The next power of two.

    >>> [_few_shapes(count, 1000) for count in (1, 8, 9, 400, 513, 1000)], _few_shapes(3, 5)
    ([8, 8, 16, 512, 1000, 1000], 5)
    """
    return min(most, max(_FEWEST_ON_GPU, 1 << (count - 1).bit_length()))


# ----------------------------------------------------------------------------------------------------------
# Which precision pays

PROBE = 16  # samples; fewer are attacked in less time than a probe takes
_GPU_PROBE = 1024  # rows
_PAYS = 1.2  # times as fast
_chosen: weakref.WeakKeyDictionary[nn.Module, dict[object, Precision]] = weakref.WeakKeyDictionary()


def choose_precision(model: Model, inputs: Tensor, *, fuse: bool = True) -> Precision:
    """The precision that ``"auto"`` stands for: bfloat16 where a short probe finds it right and faster.

    The probe takes up to three passes forward and backward over 16 samples in each precision, and is done
    once per model, device and shape. On a GPU these 16 are repeated to as many rows as there are inputs, at
    most 1024: the fewer, the more a GPU's time is that of telling it what to do. bfloat16 must be 1.2 times
    as fast, its logits and gradients finite, and its predictions those of float32 on at least 9 of 10
    samples. Plain callables, float64 models, models so small that nothing could be saved, and fewer than 16
    samples get float32 without a probe.

    Args:
        model: the model.
        inputs: ``(N, ...)``, what is going to be attacked.
        fuse: whether gradients may come from a folded model.

    Returns:
        ``"float32"`` or ``"bfloat16"``.
    """
    if not isinstance(model, nn.Module) or inputs.dtype != torch.float32 or _is_double(model):
        return "float32"
    if not is_worthwhile(model, inputs):
        return "float32"
    rows = _few_shapes(len(inputs), _GPU_PROBE) if inputs.is_cuda else PROBE
    key = (tuple(inputs.shape[1:]), inputs.device, fuse, rows)
    known = _chosen.setdefault(model, {})
    if key not in known:
        if len(inputs) < PROBE:
            return "float32"
        with torch.inference_mode(False), evaluating(model):
            known[key] = _probe(model, inputs[:PROBE].detach(), fuse, rows)
    return known[key]


def _probe(model: nn.Module, inputs: Tensor, fuse: bool, rows: int) -> Precision:
    """The choice for passes over this many rows, or over half as many where they do not fit, and so on."""
    while True:
        try:
            return _probe_rows(model, inputs.repeat(rows // len(inputs), *[1] * (inputs.ndim - 1)), fuse)
        except RuntimeError as error:
            if rows == len(inputs) or not is_out_of_memory(error):
                raise
        rows //= 2


def _probe_rows(model: nn.Module, inputs: Tensor, fuse: bool) -> Precision:
    seconds, logits = {}, {}
    for precision in ("float32", "bfloat16"):
        net = prepare(model, precision=precision, fuse=fuse).snapshot(inputs)
        try:
            seconds[precision], logits[precision], finite = _time_passes(net, inputs)
        except RuntimeError as error:  # a device or a layer that has no such kernels
            if precision == "float32" or is_out_of_memory(error):
                raise
            _say_once(model, f"no bfloat16: {str(error).splitlines()[0]}")
            return "float32"
    agreed = (logits["float32"].argmax(dim=1) == logits["bfloat16"].argmax(dim=1)).float().mean()
    faster = seconds["bfloat16"] * _PAYS < seconds["float32"]
    return "bfloat16" if finite and faster and float(agreed) >= 0.9 else "float32"


def _time_passes(net: nn.Module, inputs: Tensor) -> tuple[float, Tensor, bool]:
    """Seconds of a pass forward and backward, its logits, and whether all that came out is finite."""
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        with torch.enable_grad():
            probe = inputs.clone().requires_grad_()
            logits = net(probe)
            (grad,) = torch.autograd.grad(logits.sum(), probe)
        finite = bool(logits.isfinite().all()) and bool(grad.isfinite().all())
        best = min(best, time.perf_counter() - began)
    return best, logits.detach(), finite
