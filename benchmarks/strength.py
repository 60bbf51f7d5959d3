"""How strong is an attack for the passes it takes? Ours, three libraries' PGD and AutoAttack.

    python benchmarks/strength.py --data-dir DATA --threads 2

**Judged alike.** Every attack runs on the same images through ``art_logits.evaluate``, which counts what it
asks of the model, checks ball and bounds, and decides by the original model in float32 which images are still
right. A pass is one image forward or backward; those of AutoAttack include its black-box queries, those of
ours the clean pass and the ones that verify. (An evaluation makes the clean pass once for all attacks.)

**AutoAttack** is the standard version (APGD-CE, APGD-T, FAB-T, Square) of pyautoattack, seed 0, batches of
256. It takes from minutes to an hour per case on two cores. Cells on record that say ``folded`` were run on
the net with its batch norms folded (:func:`art_logits.prepare`), the same function up to rounding. The
curves of the CIFAR-10 convnet come from a GPU (``--device cuda --out benchmarks/results``).

**Precision.** "auto" took float32 on the machine of most cells, which has no native bfloat16, and takes it
for the transformer on the others too. ``precision=bfloat16`` are the same attacks as "auto" runs them on the
convnet and the residual net elsewhere; what they leave is judged in float32 like all else.

**Reach and spreads.** ``temperature-pgd`` and ``strong`` are cascades (:mod:`art_logits.cascade`): ten steps
for every sample, then other starts, temperatures, targets and more steps for those that came near. How near
is measured by the best margin so far as a share of the clean input's (``reach``): most samples that a short
run leaves and another attack breaks stand near, most of those that nothing breaks do not, and runs on these
are what other attacks spend most of their passes on. And by how far apart runs end that differ in their
start alone (``spreads``): on the CIFAR-10 nets two starts leave a sample at the same margin, to a few
thousandths of the clean one, and long runs find nothing there; on MNIST and digits they do not, and do.
``gap, cosine, 20 steps`` in the tables is a single run, the default of the class.

**Masked gradients.** The MNIST net, trained in Linf at 0.3, is blind to small changes: in L2 its gradients
near the input lead nowhere, and PGD of any kind leaves most of what AutoAttack breaks (by FAB-T and Square).
Runs that begin outside of the ball, at six times its radius, and shrink it (``start_radius``) break more than
AutoAttack. Who needs them is told by one gradient at three times the radius, by how many times what was
achieved it promises (``masked``): on the MNIST net 3 to 100 (most over 5), on CIFAR-10 nets 1 (95 % of
samples under 1.5), on digits between. In Linf such runs broke nothing more on MNIST, and one digit.

**L1.** A step in L1 changes few elements, and a run within the ball changes the same few again and again: 20
steps leave 281 digits where AutoAttack leaves 68, and 396 images of MNIST where it leaves 52. From six radii
away, with first steps of eight instead of two, they leave 169 of the digits, and a handful of such runs,
which differ in loss, temperature and length, fewer than AutoAttack. On the CIFAR-10 convnet it makes no
difference where a run begins. Of those that the first such run leaves farther than half of their clean margin
hardly any fall to another, which is the ``reach`` of the runs that follow. Restarts that draw three in ten
elements anew (``redraw``), each of them from outside, break some of what is left then.

**Searching on.** Where the draw of a start decides, fresh ones draw lots, while restarts that keep nine in
ten elements of the best point and draw the others anew climb (``redraw``, basin hopping). MNIST's sample
3345 falls to AutoAttack's Square, not to its APGD-T or FAB-T, to four of 12,000 random starts of twenty
steps (thirty kinds of runs, by a script that is not kept), and to most searches of a hundred short restarts.
``strong`` ends with one in Linf, on samples within 0.05 of their clean margin and four spreads: on few, but
digits. It breaks 3345 with 16 of the seeds 0 to 19 (``strong:seed=1`` and so on; not with 4, 10, 16 and 18),
one image more of the convnet than AutoAttack does (8054), and of the other images (README) one each of
MNIST's, the convnet's and the transformer's. Where spreads are small, and on digits that nothing else
breaks, it finds the margins of the other runs; in L2 it broke nothing.

**How the stages were chosen.** On these very cases, with other seeds than the tables': some twenty kinds
of runs on every sample that came near, and a beam search over sequences of runs and conditions for what
they leave, at 0.6 % of AutoAttack's passes on each case but in L1. Half the gap with a first step of 1.5
eps breaks as many in ten steps as the gap with 2 eps in twenty. On the CIFAR-10 nets random starts find
nothing, and other temperatures do. On MNIST and digits a run from the clean input itself, without noise,
at the likeliest wrong class breaks what dozens of random starts leave (all but one of MNIST's hard
samples in fifty steps), and on digits in L2 a run at the second likeliest. Of the losses for a target,
cross-entropy at half the gap was the better; the margin came close. Expect less of other nets than of
these; the README has images that nothing was chosen on. The transformer was trained after the stages had
been chosen; ``strong`` left one sample of it in Linf (7878) that AutoAttack and ``gap, cosine, 20 steps``
broke, and has that run among its turns since. What is done about masked gradients was chosen on MNIST in
L2, what is done in L1 on digits and MNIST.

**What added nothing**: momentum, first steps of 3 and 4 eps, steps of constant length, starts at corners of
the ball, going on from the best iterate as it is with smaller steps, targets beyond the third on these nets;
a temperature that falls within the run (``falling gap`` in the tables: it gains a sample or two over the gap
with as many steps); the range of the logits, that of the three largest, or the margin over the dual norm of
its gradient, as the measure of nearness; in L2, the nearest point of ball and bounds at once instead of the
ball's, clipped (as many digits, four images of MNIST less broken; L1's steps never leave the bounds).

**Cells.** Each attack on each case is one file below ``strength/``, with the images that it left and the
machine that it ran on: a run can be interrupted, and what is there is not measured again. ``--cases CASE``
takes cases by name, ``--attacks`` attacks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from losses import load_case
from measuring import Cells, command_line, environment, in_words, save_figure, session
from scipy.stats import binomtest
from torch import Tensor, nn

from art_logits import TemperaturePGD, evaluate
from art_logits._files import write_atomically
from art_logits.cascade import _cosine
from art_logits.presets import parse_attack
from art_logits.tables import to_markdown
from art_logits.temperature import scaled_gap

REFERENCE = "AutoAttack"
OURS = ("temperature-pgd", "strong")
STEPS = (5, 10, 20, 50, 100)
#: Ours: loss, temperature, and whether the steps shrink.
FAMILIES: dict[str, dict[str, Any]] = {
    "CE, T = 1": {"temperature": 1.0, "step_size": None},
    "CE, T = 1, cosine": {"temperature": 1.0},
    "margin, cosine": {"loss": "margin"},
    "DLR, cosine": {"loss": "dlr"},
    "probability margin, cosine": {"loss": "probability_margin", "temperature": 1.0},
    "gap, cosine": {},
}


def attacks(norm: str, eps: float) -> dict[str, Callable[..., Any]]:
    """The attacks that a case can name beside specs, ready for :func:`art_logits.evaluate`."""
    table: dict[str, Callable[..., Any]] = {}
    for steps in STEPS:
        for family, options in FAMILIES.items():
            own = {key: eps / 4 if value is None else value for key, value in options.items()}
            table[f"{family}, {steps} steps"] = TemperaturePGD(norm=norm, eps=eps, steps=steps, **own)
        for host, attack in (("torchattacks PGD", of_torchattacks), ("Foolbox PGD", of_foolbox)):
            table[f"{host}, {steps} steps"] = partial(attack, norm=norm, eps=eps, steps=steps)
        table[f"ART PGD, {steps} steps"] = partial(of_art, norm=norm, eps=eps, steps=steps)
    falling: dict[str, Any] = {"temperature": falling_gap, "step_size": partial(_cosine, first=1.75 * eps)}
    table["falling gap, 20 steps"] = TemperaturePGD(norm=norm, eps=eps, steps=20, **falling)
    for name, parts in ((REFERENCE, None), ("APGD-CE", ["apgd-ce"])):
        table[name] = partial(of_autoattack, norm=norm, eps=eps, parts=parts)
    return table


def falling_gap(logits: Tensor, step: int) -> Tensor:
    """A temperature that falls from twice the logit gap to a fifth of it, over 20 steps."""
    return scaled_gap(logits, scale=2.0 * 0.1 ** (step / 19))


def of_autoattack(
    model: nn.Module, inputs: Tensor, labels: Tensor, *, norm: str, eps: float, parts: list[str] | None
) -> Tensor:
    """AutoAttack's standard version, or some of its parts."""
    from pyautoattack import AutoAttack

    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    version: dict[str, Any] = {"version": "custom", "attacks": parts} if parts else {"version": "standard"}
    attack = AutoAttack(model, norm=norm, eps=eps, seed=0, device=str(inputs.device), **version)
    found: Tensor = attack.run_standard_evaluation(inputs, labels, batch_size=256)[0]
    return found


def of_torchattacks(
    model: nn.Module, inputs: Tensor, labels: Tensor, *, norm: str, eps: float, steps: int
) -> Tensor:
    """PGD of torchattacks with steps of a quarter of the radius, in batches of 256."""
    import torchattacks

    kind = torchattacks.PGD if norm == "Linf" else torchattacks.PGDL2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attack = kind(model, eps=eps, alpha=eps / 4, steps=steps)
        return torch.cat([attack(x, y) for x, y in zip(inputs.split(256), labels.split(256), strict=True)])


def of_foolbox(
    model: nn.Module, inputs: Tensor, labels: Tensor, *, norm: str, eps: float, steps: int
) -> Tensor:
    """PGD of Foolbox with steps of a quarter of the radius, in batches of 256."""
    import foolbox

    kind = foolbox.attacks.LinfPGD if norm == "Linf" else foolbox.attacks.L2PGD
    attack = kind(abs_stepsize=eps / 4, steps=steps)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        subject = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device=inputs.device)
        batches = zip(inputs.split(256), labels.split(256), strict=True)
        return torch.cat([attack(subject, x, y, epsilons=eps)[1] for x, y in batches])


def of_art(model: nn.Module, inputs: Tensor, labels: Tensor, *, norm: str, eps: float, steps: int) -> Tensor:
    """PGD of ART with steps of a quarter of the radius and a random start, in batches of 256."""
    import numpy as np
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    with torch.no_grad():
        classes = model(inputs[:2]).shape[1]
    estimator = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), tuple(inputs.shape[1:]), classes, clip_values=(0.0, 1.0)
    )
    attack = ProjectedGradientDescent(
        estimator,
        norm=np.inf if norm == "Linf" else 2,
        eps=eps,
        eps_step=eps / 4,
        max_iter=steps,
        num_random_init=1,
        batch_size=256,
        verbose=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = np.random.get_state()  # noqa: NPY002 (ART draws its starts from it)
        np.random.seed(0)  # noqa: NPY002
        found = torch.from_numpy(attack.generate(inputs.cpu().numpy(), labels.cpu().numpy()))
        np.random.set_state(state)  # noqa: NPY002
    return found.to(inputs.device)


def measure(case: dict[str, Any], attack: str, data_dir: Path, device: torch.device) -> dict[str, Any]:
    """One attack on one case: which images it left, and what it took."""
    model, data, eps = load_case(case, data_dir)
    known = attacks(case["norm"], eps)
    chosen = known[attack] if attack in known else parse_attack(attack, norm=case["norm"], eps=eps)[1]
    began = time.perf_counter()
    # A host's attack gets all images in one call, as its users would call it.
    records = evaluate(
        model,
        data,
        attacks={"attack": chosen},
        norm=case["norm"],
        eps=eps,
        batch_size=_batch(chosen, len(data)),
        device=device,
        part_size=len(data),
    )
    seconds = time.perf_counter() - began
    return {
        "clean": int(records.correct().sum()),
        "left": records.column("sample_id")[records.robust()].tolist(),
        "forwards": int(records.column("attack.forwards").sum()),
        "backwards": int(records.column("attack.backwards").sum()),
        "seconds": round(seconds, 1),
        # What "auto" chose; hosts' attacks have no such choice.
        "precision": records.manifest["identity"]["attacks"]["attack"].get("precision"),
        "environment": environment(device),
    }


def _batch(attack: Callable[..., Any], count: int) -> int:
    return count if isinstance(attack, partial) else 256


# ----------------------------------------------------------------------------------------------------------
# Tables and figures, from the cells


def rows_of(case: dict[str, Any], cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per attack on a case, set against AutoAttack's where that is there."""
    left = {cell["case"]["attack"]: set(cell["left"]) for cell in cells}
    passes = {cell["case"]["attack"]: cell["forwards"] + cell["backwards"] for cell in cells}
    rows = []
    for cell in cells:
        name = cell["case"]["attack"]
        row: dict[str, Any] = {
            "case": case["name"],
            "norm": case["norm"],
            "eps": case["eps"],
            "attack": name,
            "n": case["n"],
            "clean": cell["clean"],
            "left": len(left[name]),
            "forwards": cell["forwards"],
            "backwards": cell["backwards"],
            "passes per image": passes[name] / case["n"],
            "seconds": cell["seconds"],
            "precision": cell.get("precision"),
        }
        if REFERENCE in left:
            missed, gained = left[name] - left[REFERENCE], left[REFERENCE] - left[name]
            pairs = len(missed) + len(gained)
            row |= {
                "points above AutoAttack": 100 * (len(left[name]) - len(left[REFERENCE])) / case["n"],
                "share of its passes": passes[name] / passes[REFERENCE],
                "only AutoAttack breaks": " ".join(map(str, sorted(missed))),
                "AutoAttack leaves, it breaks": " ".join(map(str, sorted(gained))),
                "McNemar p": binomtest(len(gained), pairs).pvalue if pairs else 1.0,
            }
        rows.append(row)
    return rows


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """Ours beside AutoAttack: what is left of each case, at which share of the passes."""
    rows = []
    for name, rows_of_case in table.groupby("case", sort=False):
        found = rows_of_case.set_index("attack")
        if REFERENCE not in found.index:
            continue
        row = {
            "case": name,
            "eps": f"{found['norm'].iloc[0]} {found['eps'].iloc[0]}",
            "clean": f"{found['clean'].iloc[0]} of {found['n'].iloc[0]}",
            REFERENCE: found.loc[REFERENCE, "left"],
        }
        for attack in (attack for attack in OURS if attack in found.index):
            line = found.loc[attack]
            missed = len(str(line["only AutoAttack breaks"]).split())
            gained = len(str(line["AutoAttack leaves, it breaks"]).split())
            row[attack] = f"{line['left']} ({line['points above AutoAttack']:+.2f} points)"
            row[f"{attack}: passes"] = f"{100 * line['share of its passes']:.2f} %"
            row[f"{attack}: misses / gains"] = f"{missed} / {gained}"
        rows.append(row)
    return pd.DataFrame(rows)


def missed(table: pd.DataFrame) -> pd.DataFrame:
    """Where ours leaves samples that AutoAttack breaks: which, by their ids, and what it breaks instead."""
    rows = []
    for row in table[table["attack"].str.split(":").str[0].isin(OURS)].to_dict("records"):
        if str(row.get("only AutoAttack breaks") or "nan") == "nan":
            continue
        rows.append(
            {
                "case": row["case"],
                "attack": row["attack"],
                "points above AutoAttack": f"{row['points above AutoAttack']:+.2f}",
                "share of its passes": f"{100 * row['share of its passes']:.2f} %",
                "only AutoAttack breaks": row["only AutoAttack breaks"],
                "AutoAttack leaves, it breaks": row["AutoAttack leaves, it breaks"],
            }
        )
    return pd.DataFrame(rows)


def draw(name: str, table: pd.DataFrame, path: Path) -> None:
    """Robust accuracy against passes, a line per family of attacks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    families = table["attack"].str.replace(r", \d+ steps$", "", regex=True)
    for (family, rows), marker in zip(
        table.groupby(families, sort=False), "osD^v<>pPX*hHd1234", strict=False
    ):
        style = "-" if len(rows) > 1 else ""
        accuracy = 100 * rows["left"] / rows["n"]
        axes.plot(rows["passes per image"], accuracy, style, marker=marker, markersize=4, label=family)
    axes.set_xscale("log")
    axes.set_xlabel("passes per image, forward and backward")
    axes.set_ylabel("robust accuracy in %, lower is stronger")
    axes.set_title(name)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    save_figure(figure, path)
    plt.close(figure)


def main() -> None:
    """Measure what is missing; write strength.csv, strength.md and a figure per case."""
    parser = command_line("strength", __doc__ or "")
    parser.add_argument("--attacks", nargs="+", help="only these attacks of each case")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = session("strength", options)
    cells, rows, machines = Cells(run.out / "strength"), [], set()
    for case in run.config["cases"]:
        named = [{**case, "attack": name, "name": _file(case["name"], name)} for name in case["attacks"]]
        for cell in named:
            cell.pop("attacks")
            wanted = options.attacks is None or cell["attack"] in options.attacks
            if wanted and (options.cases is None or case["name"] in options.cases):
                cells.measured(
                    cell, partial(measure, cell, cell["attack"], options.data_dir, run.device), options.again
                )
        measured = cells.all(cell["name"] for cell in named)
        machines |= {in_words(cell["environment"]) for cell in measured}
        rows += rows_of(case, measured)
    table = pd.DataFrame(rows)
    write_atomically(run.out / "strength.csv", table.to_csv(index=False, float_format="%.6g").encode())
    text = [f"# Strength for the passes\n\n{__doc__}", f"`{run.command}`. Cells come from:\n"]
    text += [*(f"- {words}" for words in sorted(machines)), ""]
    text += ["## Ours beside AutoAttack\n", to_markdown(headline(table))]
    if len(lost := missed(table)):
        text += ["\n## What ours misses, by sample id\n", to_markdown(lost)]
    short = [
        "attack",
        "precision",
        "left",
        "passes per image",
        "points above AutoAttack",
        "share of its passes",
        "McNemar p",
    ]
    for name, part in table.groupby("case", sort=False):
        clean = f"{part['clean'].iloc[0]} of {part['n'].iloc[0]} right without attack"
        text += [
            f"\n## {name}: {clean}\n",
            to_markdown(part[[c for c in short if c in part]].sort_values("left", kind="stable")),
        ]
        if part["attack"].str.endswith(" steps").sum() > 2:  # a point or two make no curve
            draw(str(name), part, run.out / f"strength-{name}.svg")
    write_atomically(run.out / "strength.md", ("\n".join(text) + "\n").encode())
    print(headline(table).to_string(index=False))


def _file(case: str, attack: str) -> str:
    slug = "".join(letter if letter.isalnum() else "-" for letter in attack.lower())
    return f"{case}.{'-'.join(part for part in slug.split('-') if part)}"


if __name__ == "__main__":
    main()
