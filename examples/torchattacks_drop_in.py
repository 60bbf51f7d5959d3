"""Temperature-PGD in a torchattacks script: one import changes, everything else stays.

Runs on scikit-learn's digits, in seconds: python examples/torchattacks_drop_in.py
"""

from __future__ import annotations

import torch
import torchattacks
from torch import Tensor, nn

from art_logits.data import load_data
from art_logits.models import load_model
from art_logits.plugins.torchattacks import TemperaturePGD

EPS, ALPHA, STEPS = 0.1, 0.025, 20


class Scaled(nn.Module):
    """The same classifier with its logits times a factor: every prediction stays, as does the robustness."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, C)``."""
        logits: Tensor = self.model(images)
        return self.factor * logits


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((model(images).argmax(dim=1) == labels).float().mean())


def main() -> None:
    torch.manual_seed(0)
    images, labels = load_data("digits").batch(slice(0, 300))
    robust = load_model("digits-at")
    print(f"Linf, eps {EPS}, {STEPS} steps. Clean accuracy {accuracy(robust, images, labels):.1%}\n")

    print("robust accuracy under  torchattacks.PGD  TemperaturePGD")
    for factor in (0.001, 1.0, 100.0, 1000.0):
        model = Scaled(robust, factor).eval()
        # Before: attack = torchattacks.PGD(model, eps=EPS, alpha=ALPHA, steps=STEPS)
        host = torchattacks.PGD(model, eps=EPS, alpha=ALPHA, steps=STEPS)
        ours = TemperaturePGD(model, eps=EPS, alpha=ALPHA, steps=STEPS)
        figures = [accuracy(model, attack(images, labels), labels) for attack in (host, ours)]
        print(f"logits times {factor:<8g} {figures[0]:>17.1%} {figures[1]:>15.1%}")

    # Modes, MultiAttack and save() are the host's own.
    attack = TemperaturePGD(robust, eps=EPS, alpha=ALPHA, steps=STEPS)
    attack.set_mode_targeted_least_likely(quiet=True)
    print(f"\nafter the targeted attack {accuracy(robust, attack(images, labels), labels):.1%}")

    # A radius per class: a callable fits the shrinking batches of MultiAttack.
    radius = torch.linspace(0.05, 0.15, 10)
    by_class = TemperaturePGD(robust, eps=lambda images, labels: radius[labels], alpha="cosine", steps=STEPS)
    both = torchattacks.MultiAttack([by_class, by_class])  # with seed=None, the second one starts elsewhere
    print(f"eps by class, two starts {accuracy(robust, both(images, labels), labels):.1%}")


if __name__ == "__main__":
    main()
