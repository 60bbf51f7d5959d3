"""Convolution, residual sum and ReLU as one kernel of a GPU.

Of a pass of ResNet-18 forward in bfloat16, an H100 spends half on biases, sums and ReLUs, each of which reads
and writes a whole tensor; cuDNN adds and clips what it has convolved before it is written at all. Where a
module does this is read from the graph of its own ``forward`` (:mod:`torch.fx`), once its batch norms are
folded (:mod:`art_logits.folding`); it then gets another ``forward``.
"""

from __future__ import annotations

import logging
import operator
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ._batches import is_out_of_memory
from .folding import Pair, Tracer, replicate

logger = logging.getLogger(__name__)

_RELUS = (functional.relu, torch.relu, torch.relu_)


class Rewriting(NamedTuple):
    """Another ``forward`` for a module.

    Attributes:
        module: its name in the model, empty for the model itself.
        forward: takes the module and the arguments of its own ``forward``.
        layers: the names of the modules that it calls beside those that are there, and of the convolution
            that each of them stands for.
    """

    module: str
    forward: Callable[..., Any]
    layers: dict[str, str]


def find_rewritings(folded: nn.Module, pairs: list[Pair]) -> list[Rewriting]:
    """Where a folded convolution's output goes into a ReLU, or into a sum and then a ReLU, and nowhere else.

    Modules whose ``forward`` can't be traced by itself are left alone.

    Args:
        folded: from :func:`art_logits.folding.fold`; it is not run on data, and not changed.
        pairs: what was folded in it.
    """
    known = {id(folded.get_submodule(pair.convolution)) for pair in pairs}
    found = []
    for name, module in folded.named_modules():
        layers = {child: layer for child, layer in module.named_children() if id(layer) in known}
        own = "forward" not in vars(module)  # replaced on the instance
        if own and any(_can_be_fused(layer) for layer in layers.values()):
            try:
                twin = replicate(module, containers=True)
                before = dict(vars(twin))
                graph = Tracer(whole=False).trace(twin)
                if vars(twin) != before:  # what a forward notes in attributes would be lost
                    continue
                fused = _rewrite(graph, module, set(layers))
            except Exception as error:  # tracing runs a user's code on proxies, which can raise anything
                logger.debug("module %r can't be traced: %s", name, error)
                continue
            if fused:
                found.append(Rewriting(name, _function(graph, module, fused), fused))
    return found


def rewrite(folded: nn.Module, rewritings: list[Rewriting]) -> None:
    """Give a folded model's modules their other ``forward``, in place."""
    for rewriting in rewritings:
        module = folded.get_submodule(rewriting.module)
        for name, convolution in rewriting.layers.items():
            module._modules[name] = Fused(module.get_submodule(convolution))
        vars(module)["forward"] = types.MethodType(rewriting.forward, module)


class Fused(nn.Module):
    """``relu(convolution(x))`` or ``relu(convolution(x) + other)``, differentiable once, by the inputs alone.

    On a CPU, and from the first failure of the one kernel on, it is as many as there are operations.

    Args:
        convolution: a :class:`torch.nn.Conv2d` with a bias, padded with a number of zeros.
    """

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution
        self.one_kernel = True

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """``(N, channels, H, W)``, in the precision of the weights."""
        layer: Any = self.convolution
        dtype, geometry = layer.weight.dtype, (layer.stride, layer.padding, layer.dilation, layer.groups)
        x = x.to(dtype)
        if other is not None:
            other = other.to(dtype)
        if self.one_kernel and x.is_cuda:
            try:
                out: Tensor = _OneKernel.apply(x, other, layer.weight, layer.bias, geometry)
                if other is None or other.shape == out.shape:
                    return out
                reason = "a sum that broadcasts"
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                reason = str(error)
            self.one_kernel = False
            logger.info("a convolution is not fused with what follows: %s", reason)
        return _as_many(x, other, layer.weight, layer.bias, geometry)


def _as_many(x: Tensor, other: Tensor | None, weight: Tensor, bias: Tensor, geometry: Any) -> Tensor:
    out = functional.conv2d(x, weight, bias, *geometry)
    return (out if other is None else out + other).relu_()


def _in_one(x: Tensor, other: Tensor | None, weight: Tensor, bias: Tensor, geometry: Any) -> Tensor:
    if other is None:
        return torch.cudnn_convolution_relu(x, weight, bias, *geometry)
    return torch.cudnn_convolution_add_relu(x, weight, other, 1.0, bias, *geometry)


class _OneKernel(torch.autograd.Function):
    """cuDNN's kernel has no gradient in torch."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, other: Tensor | None, weight: Tensor, bias: Tensor, geometry: Any
    ) -> Tensor:
        out = _in_one(x, other, weight, bias, geometry)
        # The input is there for its shape and its layout: it is the output of the layer before, kept anyway.
        ctx.save_for_backward(x, out, weight)
        ctx.geometry = geometry
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, out, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        grad = torch.ops.aten.threshold_backward(grad, out, 0)
        back = torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, dilation, False, (0, 0), groups, (True, False, False)
        )[0]
        return back, grad if ctx.needs_input_grad[1] else None, None, None, None


def _rewrite(graph: fx.Graph, module: nn.Module, folded: set[str]) -> dict[str, str]:
    """Change the graph of a forward; returns the layers that it then calls, and their convolutions."""
    children = dict(module.named_children())
    for node in list(graph.nodes):
        if node.op == "call_module" and type(children.get(node.target)) is nn.Identity:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)

    def is_convolution(node: Any) -> bool:
        ours = isinstance(node, fx.Node) and node.op == "call_module" and node.target in folded
        return ours and len(node.users) == 1 and _can_be_fused(children[node.target])

    layers: dict[str, str] = {}
    for node in list(graph.nodes):
        if not _is_relu(node, children):
            continue
        source: Any = node.args[0]
        convolution, other = source, None
        if _is_sum(source) and len(source.users) == 1:
            orders = (source.args, source.args[::-1])
            convolution, other = next((parts for parts in orders if is_convolution(parts[0])), (None, None))
        if not is_convolution(convolution):
            continue
        name = f"fused_{len(layers)}"
        layers[name] = convolution.target
        inputs = (convolution.args[0],) if other is None else (convolution.args[0], other)
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.call_module(name, inputs))
        for done in (node, source, convolution) if other is not None else (node, convolution):
            graph.erase_node(done)
    return layers


def _is_relu(node: fx.Node, children: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(children.get(str(node.target))) is nn.ReLU
    if node.op == "call_function":
        return node.target in _RELUS
    return node.op == "call_method" and node.target in ("relu", "relu_")


def _is_sum(node: Any) -> bool:
    """Whether a node adds two tensors, as far as can be seen; ``+=`` is traced as ``+``."""
    if not (isinstance(node, fx.Node) and node.op == "call_function" and node.target is operator.add):
        return False
    return all(isinstance(part, fx.Node) for part in node.args) and node.args[0] is not node.args[1]


def _can_be_fused(layer: nn.Module) -> bool:
    return type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _function(graph: fx.Graph, module: nn.Module, layers: dict[str, str]) -> Callable[..., Any]:
    """The graph as a function of the module and its arguments."""
    root = replicate(module)
    root._modules.update({name: Fused(module.get_submodule(layer)) for name, layer in layers.items()})
    forward: Callable[..., Any] = type(fx.GraphModule(root, graph)).forward
    return forward
