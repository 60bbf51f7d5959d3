"""Batch norm folded into the convolution before it: fewer passes over memory, the same function.

In eval mode ``bn(conv(x))`` is an affine map of the convolution's output, channel by channel, and so is a
convolution with other weights. Where this holds is read from the graph of the model (:mod:`torch.fx`), not
guessed from names: the convolution's output must go into that batch norm and nowhere else.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

logger = logging.getLogger(__name__)

# Exact types: a subclass (quantised, parametrised, with an activation inside) computes something else.
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class Pair(NamedTuple):
    """A convolution and the batch norm that alone takes its output, by their names in the model."""

    convolution: str
    norm: str


def has_hooks(model: nn.Module) -> bool:
    """Whether any module has a forward or backward hook, or torch holds one for all modules."""
    own = any(getattr(module, hooks, None) for module in model.modules() for hooks in _HOOKS)
    return own or bool(nn.modules.module._has_any_global_hook())  # type: ignore[no-untyped-call]


def find_pairs(model: nn.Module) -> list[Pair]:
    """Every convolution of a model whose batch norm can be folded into it.

    The model is traced as a whole where it can be; else (control flow that depends on the data, custom
    autograd, a layer that takes no proxies) each module's own ``forward`` is traced by itself, and those that
    can't be are left as they are.

    Args:
        model: any module. It is not run on data, and not changed.
    """
    candidates = {name for name, module in model.named_modules() if type(module) in _NORMS}
    if not candidates:
        return []
    twin = replicate(model, containers=True)
    try:
        graphs = [("", Tracer(whole=True).trace(twin))]
    except Exception as error:  # tracing runs a user's code on proxies, which can raise anything
        logger.debug("the model can't be traced as a whole: %s", error)
        graphs = list(_own_graphs(twin))
    return _pairs_of(model, graphs)


class Tracer(fx.Tracer):
    """Traces through all modules but torch's own, or through none but the root."""

    def __init__(self, *, whole: bool) -> None:
        super().__init__()
        self.whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is left as one call."""
        return super().is_leaf_module(m, module_qualified_name) if self.whole else True


def _own_graphs(model: nn.Module) -> Iterator[tuple[str, fx.Graph]]:
    """The graph of each module's own forward, its children being black boxes; its name first."""
    for name, module in model.named_modules():
        inside = (type(child) in _NORMS for child in module.modules() if child is not module)
        if not any(inside):
            continue
        try:
            yield f"{name}." if name else "", Tracer(whole=False).trace(module)
        except Exception as error:  # as above
            logger.debug("module %r can't be traced: %s", name, error)


def _pairs_of(model: nn.Module, graphs: list[tuple[str, fx.Graph]]) -> list[Pair]:
    modules = dict(model.named_modules(remove_duplicate=False))
    calls: Counter[str] = Counter()
    touched: set[str] = set()
    found: list[Pair] = []
    for prefix, graph in graphs:
        for node in graph.nodes:
            name = f"{prefix}{node.target}"
            if node.op == "call_module":
                calls[name] += 1
                pair = _pair_at(node, prefix)
                if pair is not None:
                    found.append(pair)
            elif node.op == "get_attr":
                touched.add(name.rpartition(".")[0])
    shared = _shared(model)
    return [
        pair
        for pair in found
        if all(calls[name] == 1 and name not in touched and id(modules[name]) not in shared for name in pair)
        and _foldable(modules[pair.convolution], modules[pair.norm])
    ]


def _pair_at(node: fx.Node, prefix: str) -> Pair | None:
    """The pair whose batch norm is called at this node, if its input comes from a module's only use."""
    (source, *others) = [*node.args, *node.kwargs.values()] or [None]
    if others or not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
        return None
    return Pair(f"{prefix}{source.target}", f"{prefix}{node.target}")


def _shared(model: nn.Module) -> set[int]:
    """Ids of the modules that are in the model more than once, or share a weight with another."""
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                owners.setdefault(id(tensor), set()).add(id(module))
    several = {owner for those in owners.values() if len(those) > 1 for owner in those}
    return several | {module for module, count in places.items() if count > 1}


def _foldable(convolution: nn.Module, norm: nn.Module) -> bool:
    if type(convolution) not in _CONVOLUTIONS or type(norm) not in _NORMS:
        return False
    if "forward" in vars(convolution) or "forward" in vars(norm):  # replaced on the instance
        return False
    # Without running statistics a batch norm takes those of the batch, also in eval mode.
    return (
        isinstance(norm.running_mean, Tensor)
        and isinstance(norm.running_var, Tensor)
        and isinstance(convolution.weight, nn.Parameter)
        and convolution.weight.is_floating_point()
        and norm.num_features == convolution.out_channels
    )


def replicate(model: nn.Module, *, containers: bool = False) -> nn.Module:
    """A second tree of modules in eval mode over the same weights, which want no gradients.

    Nothing is copied but the tree itself: tensors are shared, and so are the other attributes.

    Args:
        model: the model.
        containers: copy lists, dictionaries and sets, so that a forward that notes something in them leaves
            no trace.

    Raises:
        TypeError: a module that has no tree to copy, such as one of TorchScript.
    """
    twins: dict[int, nn.Module] = {}
    weights: dict[int, nn.Parameter] = {}

    def twin_of(module: nn.Module) -> nn.Module:
        if id(module) in twins:
            return twins[id(module)]
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError("a TorchScript module can't be copied without its weights")
        twin: nn.Module = object.__new__(type(module))
        twins[id(module)] = twin
        attributes = vars(module)
        if containers:
            attributes = {
                key: value.copy() if type(value) in (list, dict, set) else value
                for key, value in attributes.items()
            }
        vars(twin).update(attributes)
        vars(twin).update(
            training=False,
            _parameters={name: frozen(weight) for name, weight in module._parameters.items()},
            _buffers=dict(module._buffers),
            _modules={name: child and twin_of(child) for name, child in module._modules.items()},
        )
        return twin

    def frozen(weight: nn.Parameter | None) -> nn.Parameter | None:
        if weight is None:
            return None
        return weights.setdefault(id(weight), nn.Parameter(weight.detach(), requires_grad=False))

    return twin_of(model)


def fold(model: nn.Module, pairs: list[Pair]) -> nn.Module:
    """A twin of the model (see :func:`replicate`) with these batch norms folded; the model stays as it is.

    The new weights are computed in float64 and rounded once.

    Args:
        model: the model that the pairs were found in.
        pairs: from :func:`find_pairs`.
    """
    twin = replicate(model)
    for pair in pairs:
        convolution, norm = twin.get_submodule(pair.convolution), twin.get_submodule(pair.norm)
        for name, tensor in zip(("weight", "bias"), _folded(convolution, norm), strict=True):
            convolution._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        parent, _, name = pair.norm.rpartition(".")
        twin.get_submodule(parent)._modules[name] = nn.Identity()
    return twin


def refold(twin: nn.Module, model: nn.Module, pairs: list[Pair]) -> None:
    """Write what :func:`fold` would compute from the model's weights of today into a twin it made."""
    for pair in pairs:
        weight, bias = _folded(model.get_submodule(pair.convolution), model.get_submodule(pair.norm))
        convolution = twin.get_submodule(pair.convolution)
        with torch.no_grad():
            convolution.get_parameter("weight").copy_(weight)
            convolution.get_parameter("bias").copy_(bias)


@torch.no_grad()
def _folded(convolution: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does both: ``scale * w`` and ``scale * (b - mean) + beta``."""
    weight, mean = convolution.weight.double(), norm.running_mean.double()
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -mean if convolution.bias is None else convolution.bias.double() - mean
    bias = scale * bias if norm.bias is None else scale * bias + norm.bias.double()
    layout = torch.channels_last if weight.ndim == 4 else torch.contiguous_format
    weight = (weight * scale.view(-1, *[1] * (weight.ndim - 1))).to(convolution.weight.dtype)
    return weight.contiguous(memory_format=layout), bias.to(convolution.weight.dtype)
