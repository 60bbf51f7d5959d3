"""How much robustness does a student inherit that never sees a perturbed image? By class, on digits.

    pip install "art-logits[art,evaluate]"
    python examples/distillation.py

An adversarially trained teacher is distilled into two students on clean images: one learns the teacher's
logits as they are, one the same logits with the incorrect classes flattened, at equal confidence. Beside
them, a student of the same initial weights that is trained on the labels. Under a minute on one core.
"""

from __future__ import annotations

from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_logits import evaluate
from art_logits.data import Data, load_data
from art_logits.models import DigitsNet, load_model
from art_logits.plugins.art import DistillationTrainer
from art_logits.transforms import FlattenIncorrect

EPS, TEMPERATURE, EPOCHS = 0.1, 4.0, 12


def new_student() -> PyTorchClassifier:
    torch.manual_seed(0)
    net = DigitsNet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    return PyTorchClassifier(
        net, nn.CrossEntropyLoss(), (1, 8, 8), 10, optimizer=optimizer, clip_values=(0, 1)
    )


def distilled(data: Data, transform: Any = None, **options: Any) -> nn.Module:
    x, y = (tensor.numpy() for tensor in data.batch(slice(0, len(data))))
    trainer = DistillationTrainer(
        new_student(), load_model("digits-at"), temperature=TEMPERATURE, transform=transform, **options
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(trainer.classifier.optimizer, EPOCHS)
    trainer.fit(x, y, batch_size=64, nb_epochs=EPOCHS, scheduler=schedule, seed=0)
    return trainer.classifier.model


def main() -> None:
    train, test = load_data("digits", split="train"), load_data("digits")
    models = {
        "teacher": load_model("digits-at"),
        "student": distilled(train),
        "flattened": distilled(train, FlattenIncorrect()),
        "labels": distilled(train, alpha=0.0),
    }
    reports = {
        name: evaluate(model, test, attacks=["temperature-pgd"], eps=EPS).classwise()
        for name, model in models.items()
    }
    print(f"right under Temperature-PGD, Linf {EPS}, in per cent of {len(test)} test images")
    print(f"{'class':12s}" + "".join(f"{name:>11s}" for name in reports))
    for number, digit in enumerate(reports["teacher"].class_names):
        print(f"{digit:12s}" + "".join(f"{100 * r.robust[number]:11.1f}" for r in reports.values()))
    print(f"{'all':12s}" + "".join(f"{100 * r.robust_accuracy:11.1f}" for r in reports.values()))
    print(f"{'clean, all':12s}" + "".join(f"{100 * r.clean_accuracy:11.1f}" for r in reports.values()))
    floor = reports["labels"].robust_accuracy
    kept = (reports["student"].robust_accuracy - floor) / (reports["teacher"].robust_accuracy - floor)
    print(f"of what the teacher has over training on labels, the student kept {100 * kept:.0f} %")


if __name__ == "__main__":
    main()
