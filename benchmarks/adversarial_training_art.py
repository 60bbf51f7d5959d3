"""ART's AdversarialTrainer with our attack against ART's PGD: time, and robustness by one judge.

Same network, initial weights, data, epochs, eps and steps; our attack with its default temperature and
with temperature 1, keeping the best iterate or, as ART, the last. A step of ours takes less time than one
of ART's: "8 steps" and "9 steps" spend some of what is saved on more steps than the others have. The judge
is the core's attack with two losses, 50 steps and 3 restarts; it attacks every network with the same seed.
CPU seconds stand beside wall seconds, because these depend on what else the machine does. Each attack is
compared with the first one seed by seed: means with 95 % t intervals.

    python benchmarks/adversarial_training_art.py            # one seed, about a minute on one core
    python benchmarks/adversarial_training_art.py --seeds 5
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.trainer import AdversarialTrainer
from art.estimators.classification import PyTorchClassifier
from art.utils import to_categorical
from student_cells import interval
from torch import nn

import art_logits
from art_logits.data import load_data
from art_logits.models import DigitsNet
from art_logits.plugins.art import TemperaturePGD

#: The attack's class, and its own options.
ATTACKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ART's PGD": (ProjectedGradientDescent, {}),
    "T-PGD, T = gap": (TemperaturePGD, {}),
    "T-PGD, T = 1": (TemperaturePGD, {"temperature": 1.0}),
    # The very steps of ART's attack, from other random starts.
    "T-PGD, T = 1, last": (TemperaturePGD, {"temperature": 1.0, "keep": "last"}),
    "T-PGD, 8 steps": (TemperaturePGD, {"temperature": 1.0, "keep": "last", "max_iter": 8}),
    "T-PGD, 9 steps": (TemperaturePGD, {"temperature": 1.0, "keep": "last", "max_iter": 9}),
    "T-PGD, T = 2, last": (TemperaturePGD, {"temperature": 2.0, "keep": "last"}),
    "T-PGD, T = 5, last": (TemperaturePGD, {"temperature": 5.0, "keep": "last"}),
    "T-PGD, T = 0.5, last": (TemperaturePGD, {"temperature": 0.5, "keep": "last"}),
    "T-PGD, T = 0.25, last": (TemperaturePGD, {"temperature": 0.25, "keep": "last"}),
}
DEFAULT = ["ART's PGD", "T-PGD, T = gap", "T-PGD, T = 1, last", "T-PGD, 8 steps", "T-PGD, 9 steps"]


def train(
    attack: tuple[Any, dict[str, Any]],
    seed: int,
    data: tuple[np.ndarray, np.ndarray],
    options: argparse.Namespace,
) -> Any:
    """Train a fresh network; returns the network, and the wall and CPU seconds that it took."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (ART shuffles and starts with it)
    net = DigitsNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=options.lr)
    estimator = PyTorchClassifier(
        net, nn.CrossEntropyLoss(), (1, 8, 8), 10, optimizer=optimizer, clip_values=(0.0, 1.0)
    )
    make, own = attack
    shared = {
        "eps": options.eps,
        "eps_step": options.eps / 4,
        "max_iter": options.steps,
        "num_random_init": options.random_starts,
        "batch_size": options.batch_size,
        "verbose": False,
    }
    crafter = make(estimator, **{**shared, **own})
    x, y = data
    # ART steps the scheduler once per fit of the classifier, which its trainer calls batch by batch. Down to
    # zero: the last of noisy iterates would be judged otherwise.
    batches = -(-len(x) // options.batch_size) * options.epochs
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=batches)
    wall, cpu = time.perf_counter(), time.process_time()
    AdversarialTrainer(estimator, crafter, ratio=1.0).fit(
        x,
        to_categorical(y, 10),
        batch_size=options.batch_size,
        nb_epochs=options.epochs,
        scheduler=schedule,
    )
    return net.eval(), time.perf_counter() - wall, time.process_time() - cpu


def judge(net: nn.Module, data: tuple[torch.Tensor, torch.Tensor], eps: float) -> tuple[float, float]:
    """Clean accuracy and robust accuracy, by the core's attack with two losses, on (x, y)."""
    x, y = data
    with torch.no_grad():
        clean = net(x).argmax(dim=1) == y
    robust = clean.clone()
    for loss in ("cross_entropy", "margin"):
        robust &= ~art_logits.pgd(net, x, y, eps=eps, steps=50, restarts=3, loss=loss).success
    return float(clean.float().mean()), float(robust.float().mean())


def main() -> None:
    """Train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=DEFAULT)
    parser.add_argument("--random-starts", type=int, default=1, help="0: both attacks take the same steps")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--eps", type=float, default=0.2)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()

    x, y = next(load_data("digits", split="train").batches(10**6))
    test = next(load_data("digits").batches(10**6))
    print(
        f"{len(x)} training images, {len(test[0])} test images, Linf {options.eps}, {options.steps} steps, ",
        end="",
    )
    print(f"{options.epochs} epochs, {torch.get_num_threads()} threads")
    print(
        f"{'attack in training':20s}{'seed':>5s}{'wall s':>9s}{'CPU s':>9s}{'clean %':>9s}{'robust %':>10s}"
    )
    totals: dict[str, list[tuple[float, ...]]] = {name: [] for name in options.attacks}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in options.attacks:
            attack = ATTACKS[name]
            net, wall, cpu = train(attack, seed, (x.numpy(), y.numpy()), options)
            clean, robust = judge(net, test, options.eps)
            totals[name].append((wall, cpu, 100 * clean, 100 * robust))
            print(
                "{:20s}{:5d}{:9.1f}{:9.1f}{:9.2f}{:10.2f}".format(name, seed, *totals[name][-1]), flush=True
            )
    for name, rows in totals.items():
        print("{:20s}{:>5s}{:9.1f}{:9.1f}{:9.2f}{:10.2f}".format(name, "mean", *np.mean(rows, axis=0)))
    first, *others = options.attacks
    for name in others if options.seeds > 1 else []:
        mine, baseline = np.array(totals[name]), np.array(totals[first])
        robust, ratio = interval(mine[:, 3] - baseline[:, 3]), interval(mine[:, 1] / baseline[:, 1])
        print(
            "{} against {}: robust {:+.2f} points (± {:.2f})".format(name, first, *robust)
            + ", CPU time x {:.3f} (± {:.3f})".format(*ratio)
        )


if __name__ == "__main__":
    main()
