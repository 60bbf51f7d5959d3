"""Cells of the distillation benchmarks: train a student, judge it, keep the row; none is done twice.

A config names data, student, teachers, training, attacks, seeds and cells. A cell is trained by an
``objective`` (from a ``teacher``, with ``transform`` specs) or by a ``method`` of ``art_logits.training``
without a teacher, for as many epochs as the config's ``passes`` allow.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import nn

from art_logits import TemperaturePGD, evaluate
from art_logits._files import replacing, write_atomically
from art_logits.data import Data, load_data
from art_logits.distill import distill
from art_logits.functional.logits import confidence, logit_gap, max_logit
from art_logits.models import load_model
from art_logits.presets import parse_number
from art_logits.training import fit
from art_logits.transform_specs import parse_transforms

HERE = Path(__file__).parent
LOGITS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "max_logit": max_logit,
    "logit_gap": logit_gap,
    "confidence": confidence,
}


@dataclass(frozen=True)
class Study:
    """A config, read, with the data and the models that it names."""

    config: dict[str, Any]
    train: Data
    test: Data
    eps: float
    said: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, data_dir: Path) -> Study:
        """Read a config file; ``data_dir`` holds the data files that it names."""
        config = json.loads(path.read_text())
        source = config["data"] if config["data"] == "digits" else str(data_dir / config["data"])
        train, test = load_data(source, split="train"), load_data(source)
        if config.get("n_train", len(train)) < len(train):
            train = train.subset(config["n_train"], seed=0)
        if config["n_test"] < len(test):
            test = test.subset(config["n_test"], seed=0)
        return cls(config, train.in_memory(), test.in_memory(), parse_number(config["eps"]))

    def teacher(self, name: str) -> nn.Module:
        """A teacher of the config."""
        entry = self.config["teachers"][name]
        checkpoint = HERE / entry["checkpoint"] if "checkpoint" in entry else None
        return load_model(entry["model"], checkpoint=checkpoint)

    def logits(self, name: str) -> torch.Tensor:
        """A teacher's logits on the training images, computed once for all cells."""
        if name not in self.said:
            self.said[name] = logits_of(self.teacher(name), self.train)
        return self.said[name]

    def student(self, seed: int) -> nn.Module:
        """A student that only the seed decides: the same in every cell."""
        torch.manual_seed(seed)
        return load_model(self.config["student"])

    def shared(self) -> dict[str, Any]:
        """What decides the students of all cells."""
        others = ("cells", "seeds", "notes", "attacks", "n_test", "passes")
        return {name: value for name, value in self.config.items() if name not in others}

    def judged_by(self) -> list[Any]:
        """What decides the accuracies of a student that is there."""
        return [self.config["attacks"], self.config["n_test"]]

    def inner_attack(self) -> TemperaturePGD:
        """The attack of training and inner maximisations: plain PGD from a random start."""
        steps = self.config["inner_steps"]
        length = 2 * self.eps / steps
        return TemperaturePGD(
            eps=self.eps, norm=self.config["norm"], steps=steps, step_size=length, temperature=1.0
        )

    def epochs(self, cell: dict[str, Any]) -> int:
        """As many as the passes allow: forward and backward passes of the student per training sample."""
        return max(1, round(self.config["passes"] / passes_per_epoch(cell, self.config["inner_steps"])))


def passes_per_epoch(cell: dict[str, Any], steps: int) -> int:
    """Forward and backward passes of the student per sample and epoch: the attack's, and one per view."""
    kind = cell.get("objective") or cell["method"]
    views = {"kd": 1, "standard": 1, "pgd-at": 1, "ard": 1, "adaad": 1, "trades": 2, "rslad": 2, "iad": 2}
    return views[kind] + (0 if kind in ("kd", "standard") else steps)


def train_cell(study: Study, cell: dict[str, Any], seed: int, student: nn.Module) -> dict[str, Any]:
    """Train the student of a cell with a seed; what it took."""
    epochs, began = study.epochs(cell), time.process_time()
    options = {**study.config["training"], **cell.get("training", {}), "epochs": epochs, "seed": seed}
    if "method" in cell:
        history = fit(student, study.train, method=cell["method"], attack=study.inner_attack(), **options)
    else:
        name, clean = cell["teacher"], cell["objective"] == "kd"
        terms = {key: cell[key] for key in ("temperature", "alpha") if key in cell}
        history = distill(
            student,
            study.logits(name) if clean else study.teacher(name),
            study.train,
            objective=cell["objective"],
            transform=parse_transforms(cell.get("transform", [])),
            attack=None if clean else study.inner_attack(),
            **{**study.config.get("distillation", {}), **terms},
            **options,
        )
    seconds = round(time.process_time() - began, 1)
    return {"seed": seed, "epochs": epochs, "loss": history.rows[-1]["loss"], "cpu_seconds": seconds}


def run_cell(study: Study, cell: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """The row of a cell with a seed: trained and judged here, or read where that is done already."""
    identity = [study.shared(), cell, seed, study.epochs(cell)]
    weights = folder / f"{digest(identity)}.pt"
    row = folder / f"{digest([*identity, *study.judged_by()])}.json"
    if row.exists():
        return json.loads(row.read_text())
    student = study.student(seed)
    if weights.exists():
        kept = torch.load(weights, weights_only=True)
        student.load_state_dict(kept["student"])
    else:
        kept = {"trained": train_cell(study, cell, seed, student), "student": student.state_dict()}
        with replacing(weights) as path:
            torch.save(kept, path)
    found = {**describe(cell), **kept["trained"], **judge(study, student)}
    write_atomically(row, json.dumps(found, indent=1).encode())
    return found


def describe(cell: dict[str, Any]) -> dict[str, Any]:
    """What a cell is, as columns."""
    return {
        "group": cell["group"],
        "cell": cell["name"],
        "teacher": cell.get("teacher", "none"),
        "objective": cell.get("objective") or cell["method"],
        "transform": " + ".join(cell.get("transform", [])),
    }


def judge(study: Study, model: nn.Module) -> dict[str, Any]:
    """Accuracies of a model under the config's attacks, its worst class, and its clean logits."""
    found = evaluate(
        model, study.test, attacks=study.config["attacks"], eps=study.eps, norm=study.config["norm"]
    )
    report = found.classwise()
    logits = logits_of(model, study.test)
    return {
        "clean": report.clean_accuracy,
        **{name: value for name, value in report.attack_accuracies.items()},
        "worst": report.worst_class.robust_accuracy,
        "worst_class": report.worst_class.name,
        **{name: float(quantity(logits).mean()) for name, quantity in LOGITS.items()},
    }


def logits_of(model: nn.Module, data: Data) -> torch.Tensor:
    """Logits ``(N, C)`` on all the data."""
    with torch.no_grad():
        return torch.cat([model(x) for x, _ in data.batches(256)])


def run_all(study: Study, folder: Path) -> pd.DataFrame:
    """Every cell of the config with every seed; what is finished is read from ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in study.config["seeds"]:
        for cell in study.config["cells"]:
            rows.append(run_cell(study, cell, seed, folder))
            print(f"seed {seed}: {rows[-1]['cell']}: {scores(study, rows[-1])}", flush=True)
    for name in study.config["teachers"]:
        rows.append(teacher_row(study, name, folder))
        print(f"teacher {name}: {scores(study, rows[-1])}", flush=True)
    return pd.DataFrame(rows)


def teacher_row(study: Study, name: str, folder: Path) -> dict[str, Any]:
    """A teacher, judged as the students are."""
    row = folder / f"{digest([study.shared(), name, *study.judged_by()])}.json"
    if not row.exists():
        found = {"group": "teachers", "cell": f"teacher {name}", **judge(study, study.teacher(name))}
        write_atomically(row, json.dumps(found, indent=1).encode())
    found = json.loads(row.read_text())
    return found


def scores(study: Study, row: dict[str, Any]) -> str:
    """A row in one line."""
    names = ("clean", *attack_names(study), "worst")
    return ", ".join(f"{name} {100 * row[name]:.1f}" for name in names)


def attack_names(study: Study) -> list[str]:
    """The columns of the config's attacks."""
    return [spec.replace(".", "_") for spec in study.config["attacks"]]


def digest(content: Any) -> str:
    """A name that another content does not have."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def interval(values: Any, level: float = 0.95) -> tuple[float, float]:
    """Mean, and half the width of its t interval; NaN for a single value."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    spread = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(spread)


def summarize(study: Study, rows: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """One row per cell: means over the seeds with 95 % t intervals, and paired differences to a baseline."""
    last = attack_names(study)[-1]
    names = ["clean", *attack_names(study), "worst"]
    reference = rows[rows["cell"] == baseline].set_index("seed")[last]
    lines = []
    for (group, name), part in rows.groupby(["group", "cell"], sort=False):
        line: dict[str, Any] = {"group": group, "cell": name, "n": len(part)}
        for column in names:
            line[column] = percent(*interval(100 * part[column]))
        paired = 100 * (part.set_index("seed")[last] - reference).dropna()  # a teacher has no seed
        line[f"{last} - baseline"] = percent(*interval(paired), sign=True) if len(paired) else ""
        worst = part["worst_class"].astype(str)
        line["worst class"] = ", ".join(sorted(set(worst)))
        for column in LOGITS:
            line[column] = f"{part[column].mean():.2f}"
        lines.append(line)
    return pd.DataFrame(lines)


def percent(mean: float, half: float, *, sign: bool = False) -> str:
    """``72.1 ± 1.3``."""
    text = f"{mean:+.1f}" if sign else f"{mean:.1f}"
    return text if np.isnan(half) else f"{text} ± {half:.1f}"


def figure(study: Study, rows: pd.DataFrame, path: Path, title: str) -> None:
    """Accuracy under the last attack, cell by cell: each seed, and the mean with its interval."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    last = attack_names(study)[-1]
    cells = list(dict.fromkeys(zip(rows["group"], rows["cell"], strict=True)))
    canvas, axes = pyplot.subplots(figsize=(8, 0.32 * len(cells) + 1.2), layout="constrained")
    groups = list(dict.fromkeys(rows["group"]))
    for place, (group, name) in enumerate(cells):
        values = 100 * rows[(rows["cell"] == name) & (rows["group"] == group)][last]
        mean, half = interval(values)
        colour = f"C{groups.index(group)}"
        axes.plot(values, [place] * len(values), ".", color=colour, alpha=0.4)
        axes.errorbar(mean, place, xerr=0 if np.isnan(half) else half, fmt="o", color=colour, capsize=3)
    axes.set_yticks(range(len(cells)), [f"{name}" for _, name in cells])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(f"right under {last}, %: each seed, mean and 95 % t interval")
    axes.set_title(title)
    handles = [pyplot.Line2D([], [], marker="o", ls="", color=f"C{i}", label=g) for i, g in enumerate(groups)]
    axes.legend(handles=handles, fontsize="small")
    canvas.savefig(path, dpi=130)
    pyplot.close(canvas)


def markdown_table(table: pd.DataFrame) -> str:
    """A Markdown table; pandas would need tabulate for it."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(value) for value in line) + " |" for line in lines) + "\n"


def main(doc: str, name: str, baseline: str) -> None:
    """The command line of a benchmark: run the cells of a config, write CSV, Markdown and figure."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=HERE / "configs" / f"{name}-digits.json")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--cells", type=Path, default=Path("runs"), help="where finished cells are kept")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    study = Study.read(options.config, options.data_dir)
    stem = options.config.stem
    rows = run_all(study, options.cells / stem)
    options.out.mkdir(parents=True, exist_ok=True)
    rows.to_csv(options.out / f"{stem}.csv", index=False)
    heading = f"# {stem}\n\n{doc}\n\ntorch {torch.__version__}, {options.threads} threads.\n"
    notes = "\n".join(f"- {note}" for note in study.config.get("notes", []))
    table = markdown_table(summarize(study, rows, baseline))
    (options.out / f"{stem}.md").write_text(f"{heading}\n{table}\n{notes}\n")
    figure(study, rows, options.out / f"{stem}.png", stem)
