"""How do time and memory grow? With samples, steps, the size of batches and of an evaluation's parts.

    python benchmarks/scaling.py --data-dir DATA --threads 2

**Time** of the attack itself, sizes interleaved, medians of the rounds. *Samples*: the default run of the
class, where a sample leaves once it is misclassified, on the smallest number of images, taken again and again
with other random starts, so that sizes do not differ in how hard their images are. *Steps*: the same with
every step taken by every sample. Both are fitted by a straight line through all sizes; beside slope and R^2
stand the largest residual, as a share of the fitted time, and the exponent b of ``time ~ size^b``, which is 1
for a linear law.
*Batch size*: milliseconds per forward and backward pass, every step taken, beside ``torchattacks.PGD``;
bfloat16 only where it is native.
*Parts*: an evaluation by its default attack, in parts of so many samples, each of which ends with passes over
few of them. Of a data set that is too small its images are taken again and again, under other ids.

**Memory** is the peak of the resident set of a fresh process, above what it was after a first attack on two
images: ``torchattacks.PGD`` and ours on the same batches, and ``evaluate``, which also keeps records, on more
and more images. ``MALLOC_MMAP_THRESHOLD_=65536`` gives freed tensors back to the system at once, so that the
peak is that of tensors in use, and ``ONEDNN_PRIMITIVE_CACHE_CAPACITY=0`` keeps no compiled convolutions, of
which there is else one per layer and number of rows, up to 1024 in all. On a GPU it is the peak that torch
has allocated.

**On a GPU** (``--device cuda --config benchmarks/configs/scaling-cuda.json``) a call also takes its two
float32 passes without TF32, clean and last, which weigh more than the two gradient steps that the curve over
batch sizes on record has: that one is an earlier engine's. ``evaluate`` took parts of 512 samples when its
memory was measured, and takes two batches now.

Each case is a file in ``results/scaling``; one that is there is not measured again, so that an interrupted
run goes on where it stopped (``--again`` measures all, ``--cases`` some, ``--cases none`` only makes the
tables). ``--quick`` runs everything once on a few digits, without any data, into ``runs/benchmarks``.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torchattacks
from measuring import (
    Session,
    bfloat16_is_native,
    command_line,
    environment,
    in_words,
    load_inputs,
    save_figure,
    session,
    spend,
)
from scipy.stats import linregress
from torch import Tensor, nn

from art_logits import TemperaturePGD, evaluate
from art_logits.tables import to_markdown

HOST = "torchattacks"
# What a batch is attacked by, in the curve over batch sizes and in the memory of one batch.
ATTACKS = (HOST, "float32", "bfloat16")


def known_to(device: torch.device, names: Iterable[str]) -> list[str]:
    """The attacks without bfloat16 where a CPU has to emulate it, which takes some twenty times as long."""
    emulated = device.type == "cpu" and not bfloat16_is_native(environment(device))
    return [name for name in names if not (name == "bfloat16" and emulated)]


def attack_batches(
    name: str, model: nn.Module, inputs: Tensor, labels: Tensor, eps: float, steps: int, size: int
) -> None:
    """Attack batch by batch, every step taken, by torchattacks or by ours in a precision."""
    if name == HOST:
        host = torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=steps)
        attack: Callable[[Tensor, Tensor], Any] = host
    else:
        options: dict[str, Any] = {"temperature": 1.0, "stop_on_success": False, "precision": name}
        attack = partial(TemperaturePGD(eps=eps, steps=steps, step_size=eps / 4, **options), model)
    for x, y in zip(torch.split(inputs, size), torch.split(labels, size), strict=True):
        attack(x, y)


# ----------------------------------------------------------------------------------------------------------
# Time


def measure_samples(case: dict[str, Any], data_dir: Path, device: torch.device) -> list[dict[str, Any]]:
    """Seconds of the default attack on so many samples: the same few, each with many random starts.

    The first so many of a data set would differ in how hard they are, too.
    """
    few = min(case["sizes"])
    model, inputs, labels, eps = load_inputs({**case, "n": few}, data_dir, device)
    attack = TemperaturePGD(eps=eps, steps=case["steps"])

    def work(size: int) -> Callable[[], Any]:
        rows = torch.arange(size) % few
        return partial(
            attack, model, inputs[rows], labels[rows], torch.arange(size), batch_size=case["batch_size"]
        )

    return _rounds(case, work, device)


def measure_steps(case: dict[str, Any], data_dir: Path, device: torch.device) -> list[dict[str, Any]]:
    """Seconds of the default attack with 5, 10, ... steps, all of which every sample takes."""
    model, inputs, labels, eps = load_inputs(case, data_dir, device)

    def work(size: int) -> Callable[[], Any]:
        attack = TemperaturePGD(eps=eps, steps=size, stop_on_success=False)
        return partial(attack, model, inputs, labels, batch_size=case["batch_size"])

    return _rounds(case, work, device)


def measure_parts(case: dict[str, Any], data_dir: Path, device: torch.device) -> list[dict[str, Any]]:
    """Seconds of an evaluation of the same samples in parts of so many."""
    model, inputs, labels, eps = load_inputs({**case, "n": case["images"]}, data_dir, device)
    rows = torch.arange(case["n"]) % len(inputs)
    data, ids = (inputs[rows].cpu(), labels[rows].cpu()), torch.arange(case["n"])

    def work(size: int) -> Callable[[], Any]:
        options: dict[str, Any] = {"attacks": "temperature-pgd", "norm": case["norm"], "eps": eps}
        return partial(
            evaluate, model, data, sample_ids=ids, part_size=size, batch_size=case["batch_size"], **options
        )

    return _rounds(case, work, device)


def _rounds(
    case: dict[str, Any], work: Callable[[int], Callable[[], Any]], device: torch.device
) -> list[dict[str, Any]]:
    work(min(case["sizes"]))()
    rows = []
    for number in range(case["rounds"]):
        for size in case["sizes"]:
            _, spent = spend(work(size), device)
            rows.append({"round": number, "size": size, "seconds": spent.wall, "cpu_seconds": spent.cpu})
    return rows


def measure_batches(case: dict[str, Any], data_dir: Path, device: torch.device) -> list[dict[str, Any]]:
    """Milliseconds per forward and backward pass of each attack at each batch size."""
    model, inputs, labels, eps = load_inputs(case, data_dir, device)
    rows = []
    for number in range(-1, case["rounds"]):
        for size in case["sizes"]:
            for name in known_to(device, ATTACKS):
                # Round -1 warms up: kernels are chosen by the shape.
                steps = case["steps"] if number >= 0 else 1
                count = len(inputs) if number >= 0 else size
                work = partial(attack_batches, name, model, inputs[:count], labels[:count], eps, steps, size)
                _, spent = spend(work, device)
                cost = 1000 * spent.wall / (count * steps)
                rows.append({"round": number, "size": size, "attack": name, "milliseconds": cost})
    return [row for row in rows if row["round"] >= 0]


def fit(sizes: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """A straight line through the points, and how straight they are.

    Args:
        sizes: at least three sizes, not all equal.
        seconds: one time per size, positive.

    Returns:
        ``slope`` and ``intercept``, ``r2``, ``residual`` (the largest, as a share of the fitted time) and
        ``exponent`` (slope of the logarithms).

    >>> {name: round(value, 6) for name, value in fit([1, 2, 4], [2, 4, 8]).items()}
    {'slope': 2.0, 'intercept': 0.0, 'r2': 1.0, 'residual': 0.0, 'exponent': 1.0}
    """
    line = linregress(sizes, seconds)
    fitted = line.slope * np.asarray(sizes) + line.intercept
    return {
        "slope": float(line.slope),
        "intercept": float(line.intercept),
        "r2": float(line.rvalue**2),
        "residual": float(np.abs(np.asarray(seconds) / fitted - 1).max()),
        "exponent": float(linregress(np.log(sizes), np.log(seconds)).slope),
    }


# ----------------------------------------------------------------------------------------------------------
# Memory


def measure_memory(case: dict[str, Any], data_dir: Path, device: torch.device) -> list[dict[str, Any]]:
    """Peaks of fresh processes, one after the other."""
    if device.type == "cpu" and not Path("/proc/self/clear_refs").exists():
        print("memory: the peak of a process can be told on Linux only, left out", flush=True)
        return []
    names = known_to(device, case["attacks"])
    jobs = [(name, size) for name in names for size in case["attacks"][name]]
    rows = []
    for number in range(case["rounds"]):
        for name, size in jobs:
            job = {"case": {**case, "n": size}, "attack": name, "device": str(device)}
            rows.append({"round": number, "attack": name, "size": size, **_child(job, data_dir)})
    return rows


def _child(job: dict[str, Any], data_dir: Path) -> dict[str, Any]:
    """Run one job in a process of its own, and read what it prints."""
    threads = str(torch.get_num_threads())
    command = [sys.executable, __file__, "--threads", threads, "--data-dir", str(data_dir)]
    variables = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0"}
    done = subprocess.run(
        [*command, "--job", json.dumps(job)], env=variables, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the process that measures the memory failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_job(job: dict[str, Any], data_dir: Path) -> dict[str, Any]:
    """What a child does: load, note the memory, attack, note the peak. In bytes."""
    case, device = job["case"], torch.device(job["device"])
    model, inputs, labels, eps = load_inputs(case, data_dir, device)

    def work(count: int) -> None:
        x, y, size = inputs[:count], labels[:count], case["batch_size"]
        if job["attack"] == "evaluate":
            attack = TemperaturePGD(eps=eps, steps=case["steps"])
            evaluate(model, (x, y), attacks={"attack": attack}, batch_size=size)
        else:
            attack_batches(job["attack"], model, x, y, eps, case["steps"], size)

    work(2)  # code is loaded on first use, and is not what a sample costs
    gc.collect()
    before = _reset_peak(device)
    work(len(inputs))
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return {"before": before, "peak": _peak(device), "weights": weights}


def _reset_peak(device: torch.device) -> int:
    """Forget the peak so far; what is in use now, in bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(field: str) -> int:
    """A field of the process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


# ----------------------------------------------------------------------------------------------------------
# Tables and figure

MEASURES = {
    "samples": measure_samples,
    "steps": measure_steps,
    "batches": measure_batches,
    "parts": measure_parts,
    "memory": measure_memory,
}


def medians(cell: dict[str, Any], value: str, *keys: str) -> pd.DataFrame:
    """Medians over the rounds, one row per combination of the keys, in the order of the measurements."""
    return pd.DataFrame(cell["rows"]).groupby(list(keys), sort=False)[value].median().reset_index()


def time_text(cell: dict[str, Any]) -> str:
    """Table and fit of the time over samples or steps."""
    unit = {"samples": "image", "steps": "step"}[cell["case"]["kind"]]
    table = medians(cell, "seconds", "size").rename(columns={"size": f"{unit}s"})
    law = fit(table[f"{unit}s"].tolist(), table["seconds"].tolist())
    table[f"ms per {unit}"] = 1000 * table["seconds"] / table[f"{unit}s"]
    words = (
        f"{1000 * law['slope']:.3g} ms per {unit} and {law['intercept']:.2g} s once; R^2 = {law['r2']:.5f}, "
        f"largest residual {100 * law['residual']:.1f} %, time ~ {unit}s^{law['exponent']:.3f}.\n"
    )
    return f"{to_markdown(table)}\n{words}"


def parts_text(cell: dict[str, Any]) -> str:
    """Table of the time by the size of the parts."""
    table = medians(cell, "seconds", "size")
    table["x the largest's"] = table["seconds"] / table["seconds"].iloc[-1]
    return to_markdown(table.rename(columns={"size": "samples per part"}))


def batch_table(cell: dict[str, Any]) -> pd.DataFrame:
    """Milliseconds per pass by batch size, a column per attack."""
    table = medians(cell, "milliseconds", "size", "attack")
    wide = table.pivot(index="size", columns="attack", values="milliseconds")
    wide = wide[[name for name in ATTACKS if name in wide]]
    return wide.reset_index().rename(columns={"size": "batch size"})


def memory_table(cell: dict[str, Any]) -> pd.DataFrame:
    """Peaks in MB (10^6 bytes) above the start, by attack and number of samples."""
    rows = pd.DataFrame(cell["rows"])
    rows["MB"] = (rows["peak"] - rows["before"]) / 1e6
    groups = rows.groupby(["attack", "size"], sort=False)["MB"]
    table = groups.agg(["median", "min", "max"]).reset_index()
    host = {
        size: float(peak)
        for name, size, peak in table[["attack", "size", "median"]].itertuples(index=False)
        if name == HOST
    }
    over = [
        "" if name == HOST or size not in host else f"{peak - host[size]:+.1f}"
        for name, size, peak in table[["attack", "size", "median"]].itertuples(index=False)
    ]
    named = table.rename(columns={"size": "images", "median": "peak, MB", "min": "lowest", "max": "highest"})
    return named.assign(**{f"above {HOST}, MB": over})


def memory_text(cell: dict[str, Any]) -> str:
    """Table of the peaks, and the weights that they are to be compared with."""
    if not cell["rows"]:
        return "Not measured: this system does not tell the peak of a process.\n"
    weights = cell["rows"][0]["weights"] / 1e6
    return f"{to_markdown(memory_table(cell))}\nOne copy of the weights: {weights:.1f} MB.\n"


def section(cell: dict[str, Any]) -> str:
    """A case as Markdown."""
    case = cell["case"]
    count = f", {case['n']} images" if "n" in case else ""
    steps = f", {case['steps']} steps" if "steps" in case else ""
    head = f"## {case['name']}: {case['model']}{count}{steps}, {case['norm']} {case['eps']}"
    batch = f", batch {case['batch_size']}" if "batch_size" in case else ""
    texts: dict[str, Callable[[dict[str, Any]], str]] = {
        "samples": time_text,
        "steps": time_text,
        "batches": lambda cell: to_markdown(batch_table(cell)),
        "parts": parts_text,
        "memory": memory_text,
    }
    rounds = f", {case['rounds']} rounds"
    return f"{head}{batch}{rounds}\n\n{in_words(cell['environment'])}\n\n{texts[case['kind']](cell)}"


def write(cells: Sequence[dict[str, Any]], run: Session) -> None:
    """Tables and figure from the cells that are there."""
    rows = [{"case": cell["case"]["name"], **row} for cell in cells for row in cell["rows"]]
    pd.DataFrame(rows).to_csv(run.out / "scaling.csv", index=False, float_format="%.6g")
    text = ["# Scaling\n", __doc__ or "", f"Made by `{run.command}`.\n"]
    (run.out / "scaling.md").write_text("\n".join([*text, *map(section, cells)]))
    if cells:
        draw(cells, run.out / "scaling.svg")


def draw(cells: Sequence[dict[str, Any]], path: Path) -> None:
    """One panel per case."""
    from matplotlib.figure import Figure

    rows = math.ceil(len(cells) / 2)
    figure = Figure(figsize=(8, 3 * rows), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False).flatten()
    for panel, cell in zip(panels, cells, strict=False):
        PANELS[cell["case"]["kind"]](panel, cell)
        panel.grid(lw=0.3)
    for panel in panels[len(cells) :]:
        panel.set_axis_off()
    save_figure(figure, path)


def draw_time(panel: Any, cell: dict[str, Any]) -> None:
    """Points of all rounds and the fitted line."""
    points = pd.DataFrame(cell["rows"])
    table = medians(cell, "seconds", "size")
    law = fit(table["size"].tolist(), table["seconds"].tolist())
    ends = np.array([0, points["size"].max()])
    panel.plot(ends, law["slope"] * ends + law["intercept"], color="0.6", lw=1)
    panel.plot(points["size"], points["seconds"], "o", ms=3)
    panel.set(xlabel=cell["case"]["kind"], ylabel="seconds", title=f"R² = {law['r2']:.5f}")


def draw_parts(panel: Any, cell: dict[str, Any]) -> None:
    """A line through the medians."""
    table = medians(cell, "seconds", "size")
    panel.plot(table["size"], table["seconds"], "o-", ms=3)
    _by_size(panel, table["size"], xlabel="samples per part", ylabel="seconds of an evaluation")


def draw_batches(panel: Any, cell: dict[str, Any]) -> None:
    """A line per attack."""
    table = batch_table(cell).set_index("batch size")
    for name in table:
        panel.plot(table.index, table[name], "o-", ms=3, label=name)
    _by_size(panel, table.index, xlabel="batch size", ylabel="ms per forward and backward pass")
    panel.legend(fontsize=7)


def draw_memory(panel: Any, cell: dict[str, Any]) -> None:
    """A line per attack that was measured at several sizes, a mark for the others."""
    if not cell["rows"]:
        return
    table = memory_table(cell)
    for name, mine in table.groupby("attack", sort=False):
        panel.plot(mine["images"], mine["peak, MB"], "o-", ms=4, label=name)
    _by_size(panel, table["images"], xlabel="images", ylabel="peak memory above the start, MB")
    panel.legend(fontsize=7)


def _by_size(panel: Any, sizes: Iterable[int], **labels: str) -> None:
    """Sizes on a logarithmic axis, each at its tick."""
    ticks = sorted(set(sizes))
    panel.set(xscale="log", ylim=(0, None), **labels)
    panel.set_xticks(ticks, [str(size) for size in ticks])
    panel.minorticks_off()


PANELS = {
    "samples": draw_time,
    "steps": draw_time,
    "batches": draw_batches,
    "parts": draw_parts,
    "memory": draw_memory,
}


def measure(case: dict[str, Any], data_dir: Path, device: torch.device) -> dict[str, Any]:
    """The rows of a case, and the machine."""
    rows = MEASURES[case["kind"]](case, data_dir, device)
    return {"environment": environment(device), "rows": rows}


def main() -> None:
    """Measure the cases of the config that have no cell yet, and write tables and figures of all."""
    parser = command_line("scaling", __doc__ or "")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.job:
        print(json.dumps(run_job(json.loads(options.job), options.data_dir)))
        return
    run = session("scaling", options)

    def tables() -> None:
        write(run.cells("scaling", "cases"), run)

    run.measure("scaling", "cases", measure, tables)
    tables()


if __name__ == "__main__":
    main()
