"""ART with one import changed: attack two digits classifiers, then train one adversarially.

pip install "art-logits[art,evaluate]"
python examples/art_drop_in.py
"""

from __future__ import annotations

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.trainer import AdversarialTrainer
from art.estimators.classification import PyTorchClassifier
from art.utils import to_categorical
from torch import nn

from art_logits.data import load_data
from art_logits.models import DigitsNet, load_model
from art_logits.plugins.art import TemperaturePGD

EPS = 0.2
THREAT = {"eps": EPS, "eps_step": EPS / 4, "max_iter": 20, "verbose": False}


class Scaled(nn.Module):
    """A network whose logits are multiplied by a constant, as training with a temperature does."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scaled logits of ``x``."""
        return self.factor * self.model(x)


def classifier(model: nn.Module) -> PyTorchClassifier:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, 8, 8), 10, optimizer=optimizer, clip_values=(0.0, 1.0)
    )


def accuracy(estimator: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> str:
    return f"{100 * np.mean(estimator.predict(x).argmax(axis=1) == y):5.1f} %"


def compare(estimator: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> None:
    print("  clean            ", accuracy(estimator, x, y))
    print(
        "  ART's PGD        ",
        accuracy(estimator, ProjectedGradientDescent(estimator, **THREAT).generate(x, y), y),
    )
    print("  Temperature-PGD  ", accuracy(estimator, TemperaturePGD(estimator, **THREAT).generate(x, y), y))


def main() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (ART's trainer shuffles with it)
    x, y = (tensor.numpy() for tensor in next(load_data("digits").batches(200)))
    for name in ("digits-standard", "digits-at"):
        print(f"{name}, Linf {EPS}")
        compare(classifier(load_model(name)), x, y)
    print("digits-at with its logits times 1000: the same decisions, the same robustness")
    compare(classifier(Scaled(load_model("digits-at"), 1000.0)), x, y)

    # The attack inside ART's own adversarial training: few steps, a random start, the strongest example.
    x_train, y_train = (tensor.numpy() for tensor in next(load_data("digits", split="train").batches(500)))
    trained = classifier(DigitsNet())
    attack = TemperaturePGD(trained, eps=EPS, eps_step=EPS / 2, max_iter=3, num_random_init=1, batch_size=64)
    AdversarialTrainer(trained, attack, ratio=1.0).fit(
        x_train, to_categorical(y_train, 10), batch_size=64, nb_epochs=6
    )
    print(f"trained by ART's AdversarialTrainer with Temperature-PGD, Linf {EPS}")
    compare(trained, x, y)


if __name__ == "__main__":
    main()
