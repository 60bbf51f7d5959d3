"""Per-sample attack losses: logits ``(N, C)`` and labels ``(N,)`` to ``(N,)``, larger = more adversarial.

The attack hands every loss the logits divided by the temperature. :func:`cross_entropy` and
:func:`probability_margin` depend on it. :func:`margin` is only scaled by it and :func:`dlr` not even
that, so that neither changes its direction: with these two the temperature has no effect.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor

from . import _checks
from .functional.logits import label_margin, logit_gap
from .types import Loss


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Cross-entropy, ``-log softmax(z)_y``, through ``log_softmax``.

    With logits ``z / T`` its gradient is ``(1 - p_y) / T * sum_{j != y} q_j grad(z_j - z_y)`` with
    ``q_j`` proportional to ``exp(z_j / T)``: the temperature decides how the wrong classes are weighted.

    >>> cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    tensor([0.6931])
    """
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Margin (Carlini & Wagner 2017), ``max_{j != y} z_j - z_y``; positive where the attack succeeds.

    >>> margin(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([2]))
    tensor([1.])
    """
    return -label_margin(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020), ``margin / (z_(1) - z_(3) + 1e-12)``.

    With two classes there is no third logit, and ``z_(1) - z_(2)`` would make the ratio constant: the
    gap is detached there, which keeps the scale invariance and the margin's gradient. So it is where the
    label holds the third logit itself, where the ratio is constant too (a target often does).

    >>> dlr(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([1]))
    tensor([-0.5000])
    """
    if logits.shape[1] == 2:
        scale = logit_gap(logits).detach()
    else:
        top = logits.topk(3, dim=1).values
        scale = top[:, 0] - top[:, 2]
        third = logits.gather(1, labels.unsqueeze(1)).squeeze(1) == top[:, 2]
        scale = torch.where(third, scale.detach(), scale)
    return margin(logits, labels) / (scale + 1e-12)


def probability_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Margin of the probabilities (PMA, arXiv 2411.15210), ``max_{j != y} p_j - p_y`` in ``[-1, 1]``.

    >>> probability_margin(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    tensor([0.4621])
    """
    return margin(logits.softmax(dim=1), labels)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "probability_margin": probability_margin,
}


def get_loss(loss: str | Loss) -> Loss:
    """Return the loss of that name, or the callable itself.

    Raises:
        ValueError: unknown name.
    """
    if callable(loss):
        return loss
    return LOSSES[_checks.choice("loss", loss, LOSSES)]
