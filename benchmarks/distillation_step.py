"""What a step of ``kd`` costs beside a hand-written loop: least CPU time of several alternating runs.

    python benchmarks/distillation_step.py --threads 1

Both train the same student on the same images for the same steps, from the teacher's logits computed once, by
SGD with momentum: the trainer as a user calls it (its checks, its history, its progress), the hand-written
loop with nothing but a permutation of tensors in memory and the loss.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_logits.distill import distill
from art_logits.models import DigitsNet, convnet_cifar
from art_logits.plugins.art import DistillationTrainer

Run = Callable[[], object]
EPOCHS = 2
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {
    "digits convnet, 1x8x8, batches of 64": (DigitsNet, (1, 8, 8), 64, 1280),
    "CIFAR convnet, 3x32x32, batches of 64": (convnet_cifar, (3, 32, 32), 64, 256),
}


def sgd(net: nn.Module) -> torch.optim.SGD:
    """The optimiser of every run."""
    return torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)


def by_hand(net: nn.Module, x: Tensor, said: Tensor, size: int) -> Run:
    """The loop that one would write."""
    return lambda: _loop(net, sgd(net.train()), x, said, size)


def _loop(net: nn.Module, optimizer: torch.optim.SGD, x: Tensor, said: Tensor, size: int) -> None:
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(size):
            loss = F.kl_div(
                F.log_softmax(net(x[rows]), dim=1), F.softmax(said[rows], dim=1), reduction="batchmean"
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()


def by_core(net: nn.Module, x: Tensor, said: Tensor, size: int) -> Run:
    """The core's function."""
    data, options = (x, torch.zeros(len(x), dtype=torch.int64)), {"batch_size": size, "epochs": EPOCHS}
    return lambda: distill(net, said, data, optimizer=sgd(net), precision="float32", **options)


def by_art(net: nn.Module, x: Tensor, said: Tensor, size: int) -> Run:
    """The ART trainer."""
    classifier = PyTorchClassifier(net, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, optimizer=sgd(net))
    labels = np.zeros(len(x), dtype=np.int64)
    trainer = DistillationTrainer(classifier, said)
    return lambda: trainer.fit(x.numpy(), labels, batch_size=size, nb_epochs=EPOCHS, seed=0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, (build, shape, size, count) in CASES.items():
        x = torch.rand(count, *shape)
        said = torch.randn(count, 10)
        best: dict[str, float] = {}
        for _ in range(options.repeats):
            for way in (by_hand, by_core, by_art):
                torch.manual_seed(0)
                run = way(build(), x, said, size)
                began = time.process_time()
                run()
                spent = (time.process_time() - began) / (EPOCHS * -(-count // size))
                best[way.__name__] = min(best.get(way.__name__, np.inf), spent)
        costs = ", ".join(
            f"{way} {1000 * spent:.2f} ms ({spent / best['by_hand']:.3f})" for way, spent in best.items()
        )
        print(f"{name}: CPU time of a step: {costs}", flush=True)


if __name__ == "__main__":
    main()
