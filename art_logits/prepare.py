"""Make a model ready to be attacked, and give it back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
