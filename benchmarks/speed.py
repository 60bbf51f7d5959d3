"""How fast is a robust accuracy? PGD by four libraries, and what our engine makes of each pass.

    python benchmarks/speed.py --data-dir DATA --threads 2

**Identical work.** Every attack but ``ours, gap`` and ``temperature-pgd`` is PGD on the cross-entropy (T =
1) with the same number of steps of eps / 4 from one random start (each library's own), on the same images
with the same radius and batch size, in one process. Ours differ in what they leave out: ``every step``
takes all of them for all samples, as the hosts do; the others let a sample go once it is misclassified, and
do not attack one that is wrong from the start. ``plain`` is the loop alone: no fusion, no other memory
layout, no autocast. ``ours, gap`` has the gap temperature and a cosine step, the defaults of the class, at
as many steps and a precision by probe. ``temperature-pgd`` is the default attack of an evaluation, which
decides itself how many steps a sample gets. Cells say on which machine they were measured, and ratios are
within a cell.

**Interleaved.** A round runs every attack of a case once, in an order that turns by one from round to round;
seeds change with the round. Times are medians over the rounds with their range. ``x torchattacks`` is how
many times as fast as torchattacks an attack is, the median of the ratios within a round, so that a busy
moment hits both sides. ``robust`` is counted afterwards on the original model in float32, together with a
check of ball and bounds; what it takes is in nobody's time.

**Limit.** ``time / limit`` divides an attack's time by the bare cost of the passes it made: one forward and
backward pass of the same prepared model at the same batch size for each of its gradients, and a float32
forward pass of the original model for each of its other passes, timed right after the attack. 1.00 is an
engine that costs nothing; ours goes below where it cuts the batch into passes that are cheaper per sample.

**Trained briefly**: ResNet-18 and the vision transformer are too large for the repository. They get a few
epochs of PGD-AT on 1000 images on the spot, from a fixed seed (``runs/benchmarks/models`` keeps them). They
are poor classifiers, so their own clean predictions are the labels: no sample is wrong from the start, which
would spare ours its passes.

Each case is a file in ``results/speed``; one that is there is not measured again, so that an interrupted run
goes on where it stopped (``--again`` measures all, ``--cases`` some, ``--cases none`` only makes the tables).
``--quick`` runs everything once on a few digits, without any data, into ``runs/benchmarks``.

**On a GPU** torch computes convolutions in TF32 unless told otherwise, and so is the hosts' PGD; ``no TF32``
is torchattacks in float32, in which ours verifies. Graphs are recorded before the first round. Of the cases
of ``configs/speed-cuda.json`` those of ResNet-18 were measured, two changes before the present engine, which
hears refuted runs again and looks for what a rounding has missed; its agreement is an earlier one's:

    python benchmarks/speed.py --data-dir DATA --device cuda --config benchmarks/configs/speed-cuda.json
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import foolbox
import numpy as np
import pandas as pd
import torch
import torchattacks
from art.attacks.evasion import ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from measuring import (
    Session,
    command_line,
    environment,
    in_words,
    load_inputs,
    middle,
    save_figure,
    session,
    spend,
    spread,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from art_logits import TemperaturePGD, evaluate, prepare
from art_logits._files import write_atomically
from art_logits.balls import get_ball
from art_logits.plugins import art as art_plugin
from art_logits.plugins import torchattacks as torchattacks_plugin
from art_logits.prepare import evaluating, full_float32
from art_logits.presets import parse_attack
from art_logits.tables import to_markdown

BASELINE = "torchattacks"


@dataclass(frozen=True)
class Setting:
    """What every attack of a case is given."""

    model: nn.Module
    inputs: Tensor
    labels: Tensor
    norm: str
    eps: float
    batch_size: int
    steps: int = 20

    @property
    def device(self) -> torch.device:
        """Where the inputs lie."""
        return self.inputs.device

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels, a batch at a time."""
        size = self.batch_size
        return zip(torch.split(self.inputs, size), torch.split(self.labels, size), strict=True)


class Found(NamedTuple):
    """Adversarial inputs ``(N, ...)``, and the passes of single samples, where the attack tells them."""

    adv_inputs: Tensor
    forwards: int | None = None
    backwards: int | None = None


Contender = Callable[[Setting, int], Found]


# ----------------------------------------------------------------------------------------------------------
# The attacks


def run_torchattacks(setting: Setting, seed: int) -> Found:
    """``torchattacks.PGD`` or ``PGDL2``, batch by batch."""
    kind = torchattacks.PGDL2 if setting.norm == "L2" else torchattacks.PGD
    torch.manual_seed(seed)
    attack = kind(
        setting.model, eps=setting.eps, alpha=setting.eps / 4, steps=setting.steps, random_start=True
    )
    return Found(torch.cat([attack(x, y) for x, y in setting.batches()]))


def run_torchattacks_float32(setting: Setting, seed: int) -> Found:
    """The same with convolutions in float32 on a GPU too, where torch rounds their inputs to TF32."""
    with full_float32():
        return run_torchattacks(setting, seed)


def run_foolbox(setting: Setting, seed: int) -> Found:
    """``foolbox.attacks.LinfPGD`` or ``L2PGD``, batch by batch."""
    kind = foolbox.attacks.L2PGD if setting.norm == "L2" else foolbox.attacks.LinfPGD
    torch.manual_seed(seed)
    model = foolbox.PyTorchModel(setting.model, bounds=(0, 1), device=setting.device)
    attack = kind(abs_stepsize=setting.eps / 4, steps=setting.steps, random_start=True)
    return Found(torch.cat([attack(model, x, y, epsilons=setting.eps)[1] for x, y in setting.batches()]))


def _classifier(setting: Setting) -> PyTorchClassifier:
    with torch.no_grad():
        classes = setting.model(setting.inputs[:1]).shape[1]
    return PyTorchClassifier(
        setting.model,
        nn.CrossEntropyLoss(),
        tuple(setting.inputs.shape[1:]),
        classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if setting.device.type == "cuda" else "cpu",
    )


def run_art(setting: Setting, seed: int) -> Found:
    """ART's ``ProjectedGradientDescentPyTorch`` on the whole set of samples."""
    np.random.seed(seed)  # noqa: NPY002 - ART draws from numpy's global generator
    return _run_art(setting, ProjectedGradientDescentPyTorch)


def _run_art(setting: Setting, kind: Any, **options: Any) -> Found:
    attack = kind(
        _classifier(setting),
        norm=2 if setting.norm == "L2" else np.inf,
        eps=setting.eps,
        eps_step=setting.eps / 4,
        max_iter=setting.steps,
        num_random_init=1,
        batch_size=setting.batch_size,
        verbose=False,
        **options,
    )
    found = attack.generate(setting.inputs.cpu().numpy(), setting.labels.cpu().numpy())
    return Found(torch.from_numpy(found).to(setting.device))


def run_torchattacks_plugin(setting: Setting, seed: int, precision: str) -> Found:
    """The drop-in for ``torchattacks.PGD``, batch by batch."""
    attack = torchattacks_plugin.TemperaturePGD(
        setting.model,
        eps=setting.eps,
        alpha=setting.eps / 4,
        steps=setting.steps,
        norm=setting.norm,
        temperature=1.0,
        stop_on_success=True,
        seed=seed,
        precision=precision,
    )
    return Found(torch.cat([attack(x, y) for x, y in setting.batches()]))


def run_art_plugin(setting: Setting, seed: int, precision: str) -> Found:
    """The drop-in for ART's PGD."""
    options = {"temperature": 1.0, "stop_on_success": True, "seed": seed, "precision": precision}
    return _run_art(setting, art_plugin.TemperaturePGD, **options)


#: Made once per model, since compilers and CUDA graphs begin anew with every other one.
prepared = functools.cache(prepare)


def run_core(
    setting: Setting, seed: int, precision: str, fuse: bool = True, stop: bool = True, **switches: bool
) -> Found:
    """Our PGD on the whole set of samples; with switches of ``prepare``, on a model so prepared."""
    attack = TemperaturePGD(
        eps=setting.eps,
        norm=setting.norm,
        steps=setting.steps,
        step_size=setting.eps / 4,
        temperature=1.0,
        stop_on_success=stop,
        seed=seed,
        precision=precision,
        fuse=fuse,
    )
    if switches:
        setting = replace(setting, model=prepared(setting.model, precision=precision, **switches))
    return _found(attack, setting)


def run_gap(setting: Setting, seed: int) -> Found:
    """One run with the defaults of the class."""
    return _found(TemperaturePGD(eps=setting.eps, norm=setting.norm, steps=setting.steps, seed=seed), setting)


def run_preset(setting: Setting, seed: int, **switches: Any) -> Found:
    """The default attack of an evaluation."""
    if switches:
        setting = replace(setting, model=prepared(setting.model, **switches))
    _, attack = parse_attack("temperature-pgd", norm=setting.norm, eps=setting.eps, seed=seed)
    return _found(attack, setting)


def _found(attack: Any, setting: Setting) -> Found:
    result = attack(setting.model, setting.inputs, setting.labels, batch_size=setting.batch_size)
    return Found(result.adv_inputs, int(result.forwards.sum()), int(result.backwards.sum()))


CONTENDERS: Mapping[str, Contender] = {
    BASELINE: run_torchattacks,
    "torchattacks, no TF32": run_torchattacks_float32,
    "ART": run_art,
    "Foolbox": run_foolbox,
    "ours, float32, every step": partial(run_core, precision="float32", fuse=False, stop=False),
    "ours, bfloat16, every step": partial(run_core, precision="bfloat16", stop=False),
    "ours, float32, plain": partial(run_core, precision="float32", fuse=False),
    "ours, float32": partial(run_core, precision="float32"),
    "ours, bfloat16": partial(run_core, precision="bfloat16"),
    "ours, float32, compiled": partial(run_core, precision="float32", compile=True),
    "ours, bfloat16, compiled": partial(run_core, precision="bfloat16", compile=True),
    "ours, bfloat16, CUDA graphs": partial(run_core, precision="bfloat16", cuda_graphs=True),
    "ours, gap": run_gap,
    "temperature-pgd": run_preset,
    "temperature-pgd, CUDA graphs": partial(run_preset, precision="bfloat16", cuda_graphs=True),
    "torchattacks drop-in, float32": partial(run_torchattacks_plugin, precision="float32"),
    "torchattacks drop-in, bfloat16": partial(run_torchattacks_plugin, precision="bfloat16"),
    "ART drop-in, bfloat16": partial(run_art_plugin, precision="bfloat16"),
}
# The model whose passes each of ours makes: (prepared or as it is, precision).
PASSES = {
    "ours, float32, every step": "plain",
    "ours, bfloat16, every step": "bfloat16",
    "ours, float32, plain": "plain",
    "ours, float32": "float32",
    "ours, bfloat16": "bfloat16",
}
HOSTS = (BASELINE, "torchattacks, no TF32", "ART", "Foolbox")


# ----------------------------------------------------------------------------------------------------------
# The measurements


def measure(case: dict[str, Any], data_dir: Path, device: torch.device) -> dict[str, Any]:
    """All rounds of a case: per attack and round the seconds, the passes and what stays right."""
    setting = load_setting(case, data_dir, device)
    passes = {name: host_passes(setting, name) for name in case["attacks"] if name in HOSTS}
    warm_up(setting, case["attacks"])
    clean = right(setting, setting.inputs)
    rows: list[dict[str, Any]] = []
    bare: list[dict[str, float]] = []
    for seed in range(case["rounds"]):
        first = seed % len(case["attacks"])
        for name in case["attacks"][first:] + case["attacks"][:first]:
            found, spent = spend(partial(CONTENDERS[name], setting, seed), device)
            row = {"round": seed, "attack": name, "seconds": spent.wall, "cpu_seconds": spent.cpu}
            forwards, backwards = passes.get(name, (found.forwards, found.backwards))
            rows.append({**row, "forwards": forwards, "backwards": backwards, **judge(setting, found, clean)})
            # A cell is written when all rounds are done: who has to stop before has seen something.
            print(f"{case['name']}: {name}: {spent.wall:.3f} s, {rows[-1]['robust']} left", flush=True)
            if name in PASSES:
                # Right after the attack: what else the machine does changes within a round.
                bare.append({"round": seed, **bare_costs(setting, PASSES[name])})
    return {
        "environment": environment(device),
        "clean": int(clean.sum()),
        "rows": rows,
        "bare": pd.DataFrame(bare).groupby("round").median().reset_index().to_dict("records") if bare else [],
    }


def load_setting(case: dict[str, Any], data_dir: Path, device: torch.device) -> Setting:
    """The setting that a case of the config describes."""
    model, inputs, labels, eps = load_inputs(case, data_dir, device)
    return Setting(model, inputs, labels, case["norm"], eps, case["batch_size"], case.get("steps", 20))


def warm_up(setting: Setting, names: Sequence[str]) -> None:
    """Let every attack meet the model on half a batch: kernels are chosen, and probes made, on first use."""
    few = max(1, setting.batch_size // 2)
    for name in names:
        CONTENDERS[name](replace(setting, inputs=setting.inputs[:few], labels=setting.labels[:few]), 0)


def host_passes(setting: Setting, name: str) -> tuple[int, int]:
    """Forward and backward passes of a host, which takes equally many for every sample: counted on a few."""

    def attack(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return CONTENDERS[name](replace(setting, model=model, inputs=inputs, labels=labels), 0).adv_inputs

    few = (setting.inputs[:8].cpu(), setting.labels[:8].cpu())
    records = evaluate(setting.model, few, attacks={"host": attack}, norm=setting.norm)
    count = len(setting.inputs)
    forwards, backwards = (records.column(f"host.{kind}").sum() for kind in ("forwards", "backwards"))
    return round(forwards * count / len(few[0])), round(backwards * count / len(few[0]))


def right(setting: Setting, inputs: Tensor) -> Tensor:
    """Which inputs are classified as labelled, ``(N,)`` bool, by the original model in float32."""
    # Hosts leave gradients behind, and some a wrapper in training mode.
    setting.model.eval().zero_grad(set_to_none=True)
    with torch.no_grad(), full_float32():
        parts = [setting.model(part).argmax(dim=1) for part in torch.split(inputs, setting.batch_size)]
    return torch.cat(parts) == setting.labels


def judge(setting: Setting, found: Found, clean: Tensor) -> dict[str, Any]:
    """How many of the samples that are right without the attack stay so, and the largest perturbation."""
    distance = float(get_ball(setting.norm).norm((found.adv_inputs - setting.inputs).double()).max())
    outside = not bool(((found.adv_inputs >= 0) & (found.adv_inputs <= 1)).all())
    if outside or distance > setting.eps * (1 + 1e-4) + 1e-6:
        raise RuntimeError(f"an attack left its ball of {setting.eps:g} or the bounds: distance {distance:g}")
    robust = clean & right(setting, found.adv_inputs)
    return {"robust": int(robust.sum()), "distance": distance}


def bare_costs(setting: Setting, kind: str) -> dict[str, float]:
    """Seconds per sample of a bare pass at the case's batch size, each the median of three.

    The kind's own (:data:`PASSES`) is a forward and backward pass of that model, ``forward`` one forward pass
    of the original in float32.
    """
    inputs, labels = next(setting.batches())

    def gradient() -> Tensor:
        x = inputs.clone().requires_grad_()
        value = cross_entropy(net(x).float(), labels, reduction="sum")
        return torch.autograd.grad(value, x)[0]

    def forward() -> Tensor:
        with torch.no_grad(), full_float32():
            return setting.model(inputs)

    costs = {}
    with evaluating(setting.model):
        net: Callable[[Tensor], Tensor] = setting.model
        if kind != "plain":
            # The snapshot, because a prepared model looks at its original's weights in every call.
            net = prepare(setting.model, precision=kind).snapshot(inputs)
        for name, work in ((kind, gradient), ("forward", forward)):
            work()
            costs[name] = middle([spend(work, setting.device)[1].wall for _ in range(3)]) / len(inputs)
    return costs


def compare_precisions(case: dict[str, Any], data_dir: Path, device: torch.device) -> dict[str, Any]:
    """What fusion and bfloat16 change, against the plain float32 loop from the same starts."""
    setting = load_setting(case, data_dir, device)
    clean, stands = right(setting, setting.inputs), {}
    for name in ("ours, float32, plain", "ours, float32", "ours, bfloat16"):
        found = CONTENDERS[name](setting, 0)
        judge(setting, found, clean)
        stands[name] = clean & right(setting, found.adv_inputs)
    plain = stands["ours, float32, plain"]
    rows = [
        {"attack": name, "robust": int(stand.sum()), "flips": int((stand != plain).sum())}
        for name, stand in stands.items()
    ]
    return {"environment": environment(device), "clean": int(clean.sum()), "rows": rows}


# ----------------------------------------------------------------------------------------------------------
# Tables and figures


def summary(cell: dict[str, Any]) -> pd.DataFrame:
    """One row per attack of a case."""
    rows = pd.DataFrame(cell["rows"])
    seconds = rows.pivot(index="round", columns="attack", values="seconds")
    table = []
    for name in cell["case"]["attacks"]:
        mine = rows[rows["attack"] == name].sort_values("round")
        first = mine.iloc[0]
        counted = not pd.isna(first["forwards"])
        per_image = (
            f"{first['forwards'] / cell['case']['n']:.1f} + {first['backwards'] / cell['case']['n']:.1f}"
        )
        table.append(
            {
                "attack": name,
                "robust": f"{middle(mine['robust']):g}",
                "seconds": spread(mine["seconds"].tolist()),
                **{
                    f"x {host}": spread((seconds[host] / seconds[name]).tolist())
                    for host in HOSTS
                    if host in seconds
                },
                "passes per image, forward + backward": per_image if counted else "",
                "time / limit": engine_ratio(cell, mine, name),
            }
        )
    return pd.DataFrame(table)


def engine_ratio(cell: dict[str, Any], mine: pd.DataFrame, name: str) -> str:
    """Time over the bare cost of the passes, median and range over the rounds; empty for the hosts."""
    if name not in PASSES or not cell["bare"]:
        return ""
    costs = pd.DataFrame(cell["bare"]).set_index("round")
    mine = mine.set_index("round")
    others = mine["forwards"] - mine["backwards"]
    limit = costs[PASSES[name]] * mine["backwards"] + costs["forward"] * others
    return spread((mine["seconds"] / limit).tolist())


def write(timed: Sequence[dict[str, Any]], agreement: Sequence[dict[str, Any]], run: Session) -> None:
    """Tables, figure and the README's table from the cells that are there."""
    raw = [
        {**{key: cell["case"][key] for key in ("name", "n", "norm", "batch_size")}, **row}
        for cell in timed
        for row in cell["rows"]
    ]
    pd.DataFrame(raw).to_csv(run.out / "speed.csv", index=False, float_format="%.6g")
    text = ["# Speed\n", __doc__ or "", f"Made by `{run.command}`.\n"]
    for cell in timed:
        text.append(f"## {title(cell)}\n\n{in_words(cell['environment'])}\n\n{to_markdown(summary(cell))}")
    if agreement:
        text.append("## What fusion and bfloat16 change\n")
        text.append(
            "The same random starts; a flip is a sample whose outcome differs from the plain loop's.\n"
        )
        text.append(to_markdown(agreement_table(agreement)))
    (run.out / "speed.md").write_text("\n".join(text))
    if timed:
        draw(timed, run.out / "speed.svg")
        (run.out / "speed-readme.md").write_text(readme_table(timed))
        if run.options.readme:
            copy_table(run.out / "speed-readme.md", run.options.readme)


def title(cell: dict[str, Any]) -> str:
    """A case in words."""
    case = cell["case"]
    brief = " (trained briefly)" if "train" in case else ""
    return (
        f"{case['name']}{brief}: {case['n']} images, {cell['clean']} right without attack, "
        f"{case['norm']} {case['eps']}, {case.get('steps', 20)} steps, batch {case['batch_size']}, "
        f"{case['rounds']} rounds"
    )


def agreement_table(cells: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per model and variant."""
    rows = []
    for cell in cells:
        case = cell["case"]
        for row in cell["rows"]:
            share = f"{row['flips']} ({100 * row['flips'] / case['n']:.2f} %)"
            which = f"{case['name']}, {case['norm']} {case['eps']}"
            rows.append({"case": which, "n": case["n"], "clean": cell["clean"], **row, "flips": share})
    return pd.DataFrame(rows)


def readme_table(cells: Sequence[dict[str, Any]]) -> str:
    """The first case in full; of the others, how many times as fast as torchattacks each attack is."""
    full = summary(cells[0])
    hosts = [f"x {host}" for host in HOSTS if f"x {host}" in full]
    main = full[["attack", "robust", "seconds", *hosts, "time / limit"]]
    names = [name for name in CONTENDERS if any(name in cell["case"]["attacks"] for cell in cells[1:])]
    others = []
    machines = [in_words(cells[0]["environment"])]
    for cell in cells[1:]:
        ratios = dict(summary(cell)[["attack", f"x {BASELINE}"]].itertuples(index=False))
        short = {name: ratios[name].split(" ")[0] if name in ratios else "" for name in names}
        where = machines[0] if same_machine(cell, cells[0]) else in_words(cell["environment"])
        machines += [where] if where not in machines else []
        mark = f" (machine {machines.index(where) + 1})" if where != machines[0] else ""
        others.append({"case": f"{title(cell)}{mark}", **short})
    parts = [f"{title(cells[0])}; {in_words(cells[0]['environment'])}\n", to_markdown(main)]
    if others:
        parts += [
            "Times as fast as torchattacks:\n",
            to_markdown(pd.DataFrame(others).drop(columns=BASELINE)),
        ]
    parts += [f"Machine {number}: {words}\n" for number, words in enumerate(machines[1:], 2)]
    return "\n".join(parts)


def same_machine(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two cells were measured on processors that know the same instructions."""
    mine, theirs = one["environment"], other["environment"]
    return all(mine[key] == theirs[key] for key in ("device", "threads", "cores", "features"))


def copy_table(table: Path, readme: Path) -> None:
    """Put the table between the two comments that mark its place.

    Raises:
        ValueError: the file has no such place.
    """
    begin, end = "<!-- benchmarks/results/speed-readme.md -->\n", "<!-- end -->"
    before, begins, rest = readme.read_text().partition(begin)
    _, ends, after = rest.partition(end)
    if not (begins and ends):
        raise ValueError(f"readme must have the lines {begin.strip()} and {end}, {readme.name} does not")
    write_atomically(readme, f"{before}{begin}{table.read_text()}{end}{after}".encode())


def draw(cells: Sequence[dict[str, Any]], path: Path) -> None:
    """How many times as fast as torchattacks: a dot per case and attack, with the range over the rounds."""
    from matplotlib.figure import Figure

    names = [name for name in CONTENDERS if any(name in cell["case"]["attacks"] for cell in cells)]
    figure = Figure(figsize=(7.5, 0.5 + 0.45 * len(names)))
    axes = figure.subplots()
    for number, cell in enumerate(cells):
        rows = pd.DataFrame(cell["rows"]).pivot(index="round", columns="attack", values="seconds")
        shown = [name for name in names if name in rows]
        ratios = [rows[BASELINE] / rows[name] for name in shown]
        middles = np.array([ratio.median() for ratio in ratios])
        ranges = [middles - [r.min() for r in ratios], [r.max() for r in ratios] - middles]
        heights = [names.index(name) + 0.6 * (number + 0.5) / len(cells) - 0.3 for name in shown]
        axes.errorbar(middles, heights, xerr=np.abs(ranges), fmt="o", ms=4, lw=1, label=cell["case"]["name"])
    axes.axvline(1, color="0.5", lw=0.8)
    axes.set(xscale="log", xlabel="times as fast as torchattacks (median and range of the rounds)")
    ticks = [0.5, 1, 2, 4, 6, 8, 16]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="x", lw=0.3)
    axes.legend(fontsize=7, loc="best")
    save_figure(figure, path)


def main() -> None:
    """Measure the cases of the config that have no cell yet, and write tables and figures of all."""
    parser = command_line("speed", __doc__ or "")
    parser.add_argument("--readme", type=Path, help="a file to copy the short table into")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = session("speed", options)

    def tables() -> None:
        write(run.cells("speed", "cases"), run.cells("speed", "agreement"), run)

    run.measure("speed", "agreement", compare_precisions, tables)
    run.measure("speed", "cases", measure, tables)
    tables()


if __name__ == "__main__":
    main()
