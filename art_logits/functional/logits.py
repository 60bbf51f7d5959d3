"""Per-sample statistics of logits.

Every function takes logits ``(N, C)`` (and labels ``(N,)``) and returns one value per sample ``(N,)``.
The names are those of paper B (Seguin et al., arXiv 2108.12001): max logit and logit gap.
"""

from __future__ import annotations

import torch
from torch import Tensor


def max_logit(logits: Tensor) -> Tensor:
    """Largest logit, ``max_k z_k``.

    Args:
        logits: ``(N, C)``.

    Returns:
        ``(N,)``, in the unit of the logits.

    >>> max_logit(torch.tensor([[1.0, 3.0, 2.0]]))
    tensor([3.])
    """
    return logits.amax(dim=1)


def logit_gap(logits: Tensor) -> Tensor:
    """Gap between the two largest logits, ``z_(1) - z_(2)``, whoever holds them; never negative.

    Args:
        logits: ``(N, C)`` with ``C >= 2``.

    Returns:
        ``(N,)``, in the unit of the logits.

    >>> logit_gap(torch.tensor([[1.0, 3.0, 2.0]]))
    tensor([1.])
    """
    top = logits.topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def label_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """How far the label's logit lies above the best other one, ``z_y - max_{j != y} z_j``.

    Positive where the prediction is right. The adversary's margin (:func:`art_logits.losses.margin`)
    is its negative.

    Args:
        logits: ``(N, C)`` with ``C >= 2``.
        labels: ``(N,)``, integers in ``[0, C)``.

    Returns:
        ``(N,)``, in the unit of the logits.

    >>> label_margin(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([2]))
    tensor([-1.])
    """
    index = labels.unsqueeze(1)
    others = logits.scatter(1, index, -torch.inf)
    return logits.gather(1, index).squeeze(1) - others.amax(dim=1)


def confidence(logits: Tensor) -> Tensor:
    """Probability of the prediction, ``max_k softmax(z)_k``.

    Args:
        logits: ``(N, C)``.

    Returns:
        ``(N,)`` in ``[1 / C, 1]``.

    >>> confidence(torch.tensor([[0.0, 0.0]]))
    tensor([0.5000])
    """
    return logits.softmax(dim=1).amax(dim=1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of ``softmax(z)``, in nats.

    Args:
        logits: ``(N, C)``.

    Returns:
        ``(N,)`` in ``[0, log C]``.

    >>> entropy(torch.tensor([[0.0, 0.0]]))
    tensor([0.6931])
    """
    result: Tensor = torch.special.entr(logits.softmax(dim=1)).sum(dim=1)
    return result
