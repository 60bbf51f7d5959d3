"""What a step of ``kd`` costs beside a hand-written loop: CPU time, taken in turn, medians of many rounds.

    python benchmarks/distillation_step.py --threads 1 --out benchmarks/results/distillation_step.md

All train the same student on the same images for the same steps, from the teacher's logits computed once, by
SGD with momentum. The core (``art_logits.distill.distill``) stands beside a loop over tensors in memory, the
ART trainer beside a loop over the numpy arrays that it is given; both loops shuffle, gather, take the loss,
step and add up the losses for a history, and no more. Ours are whole calls, with their checks, the hash of
the data and the history: all that they do before and after the steps is divided among these.

A round runs the four ways one after the other and gives two ratios; the table has the medians over the
rounds, with the middle half of them.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_logits.distill import distill
from art_logits.models import DigitsNet, convnet
from art_logits.plugins.art import DistillationTrainer

Run = Callable[[], object]
EPOCHS = 20  # the default of ART's trainers
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {
    "digits convnet, 1x8x8, batches of 64": (DigitsNet, (1, 8, 8), 64, 640),
    "convnet of width 16, 3x32x32, batches of 64": (partial(convnet, width=16), (3, 32, 32), 64, 128),
}


def sgd(net: nn.Module) -> torch.optim.SGD:
    """The optimiser of every run."""
    return torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)


def step(net: nn.Module, optimizer: torch.optim.SGD, x: Tensor, said: Tensor) -> float:
    """The step that one would write."""
    loss = F.kl_div(F.log_softmax(net(x), dim=1), F.softmax(said, dim=1), reduction="batchmean")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def over_tensors(net: nn.Module, x: Tensor, said: Tensor, size: int) -> Run:
    """A loop over tensors."""

    def run() -> list[float]:
        optimizer, history = sgd(net.train()), []
        for _ in range(EPOCHS):
            batches = torch.randperm(len(x)).split(size)
            history.append(sum(step(net, optimizer, x[rows], said[rows]) for rows in batches))
        return history

    return run


def over_arrays(net: nn.Module, x: Tensor, said: Tensor, size: int) -> Run:
    """A loop over numpy arrays, through the classifier's own network and optimiser."""
    classifier, images, logits = as_classifier(net, x), x.numpy(), said.numpy()

    def run() -> list[float]:
        history = []
        classifier.model.train()
        for _ in range(EPOCHS):
            order, total = np.random.permutation(len(images)), 0.0  # noqa: NPY002 (as ART's trainers do)
            for start in range(0, len(order), size):
                rows = order[start : start + size]
                batch, goal = (
                    torch.from_numpy(part[rows]).to(classifier.device) for part in (images, logits)
                )
                total += step(classifier.model, classifier.optimizer, batch, goal)
            history.append(total)
        return history

    return run


def core(net: nn.Module, x: Tensor, said: Tensor, size: int) -> Run:
    """The core's function."""
    data, options = (x, torch.zeros(len(x), dtype=torch.int64)), {"batch_size": size, "epochs": EPOCHS}
    return lambda: distill(net, said, data, optimizer=sgd(net), precision="float32", **options)


def trainer(net: nn.Module, x: Tensor, said: Tensor, size: int) -> Run:
    """The ART trainer."""
    ours = DistillationTrainer(as_classifier(net, x), said.numpy())
    images, labels = x.numpy(), np.zeros(len(x), dtype=np.int64)
    return lambda: ours.fit(images, labels, batch_size=size, nb_epochs=EPOCHS, seed=0)


def as_classifier(net: nn.Module, x: Tensor) -> PyTorchClassifier:
    """The student as ART holds it."""
    return PyTorchClassifier(net, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, optimizer=sgd(net))


WAYS = (over_tensors, core, over_arrays, trainer)
PAIRS = {"core": ("core", "over_tensors"), "ART trainer": ("trainer", "over_arrays")}


def measure(case: str, rounds: int) -> list[dict[str, float]]:
    """CPU milliseconds of a step, per round and way."""
    build, shape, size, count = CASES[case]
    torch.manual_seed(0)
    x, said = torch.rand(count, *shape), torch.randn(count, 10)
    steps, found = EPOCHS * -(-count // size), list[dict[str, float]]()
    for number in range(rounds + 1):
        spent = {}
        # Every other round the other way round: what the one leaves behind is not always the same one's.
        for way in WAYS if number % 2 else reversed(WAYS):
            torch.manual_seed(0)
            run = way(build(), x, said, size)
            began = time.process_time()
            run()
            spent[way.__name__] = 1000 * (time.process_time() - began) / steps
        found.append(spent)
    return found[1:]  # the first warms up


def table(case: str, rounds: list[dict[str, float]]) -> str:
    """Rows of the table: times by hand and ours, and the ratio within the rounds."""
    lines = []
    for name, (ours, hand) in PAIRS.items():
        ratios = [spent[ours] / spent[hand] for spent in rounds]
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        by_hand, by_us = (np.median([spent[way] for spent in rounds]) for way in (hand, ours))
        lines.append(
            f"| {case} | {name} | {by_hand:.2f} | {by_us:.2f} | {middle:.3f} ({low:.3f} to {high:.3f}) |\n"
        )
    return "".join(lines)


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, help="write the text there, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    text = f"# distillation_step\n\n{__doc__}\n"
    text += f"torch {torch.__version__}, {options.threads} threads of {os.cpu_count()} cores, "
    text += f"{options.rounds} rounds, load at the start {load:.1f}.\n\n"
    text += "| case | of | by hand, ms | ours, ms | ours / by hand |\n| --- | --- | --- | --- | --- |\n"
    for case in CASES:
        text += table(case, measure(case, options.rounds))
    print(text)
    if options.out is not None:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
