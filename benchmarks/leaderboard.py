"""Class-wise robust accuracy of the models of RobustBench's zoo: AutoAttack beside Temperature-PGD.

    python benchmarks/leaderboard.py --model-dir models --data-dir data --out runs/leaderboard

One row per model of the config, best first by AutoAttack. Each model has a folder of records in ``OUT``, so
the command can be interrupted and repeated: what is finished stays. Models whose weights are not in
``MODEL_DIR/<dataset>/<threat model>/<name>.pt`` are listed as missing, or downloaded with ``--download``.

A model of the config is a name of the zoo, or an object with ``name``, ``factory`` and, if need be,
``checkpoint`` (relative to this folder), which is registered in the zoo first. Published figures are those of
RobustBench's weights, whatever lies at a zoo path here.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from art_logits import Records, evaluate
from art_logits.data import Data, load_data
from art_logits.functional.classwise import class_counts, wilson_interval, worst_class, worst_class_interval
from art_logits.models import load_model as load_own_model
from art_logits.plugins.robustbench import AutoAttack, load_model, register, zoo
from art_logits.presets import parse_number
from art_logits.tables import to_markdown

HERE = Path(__file__).parent
PART_SIZE = 64
"""Samples that an interruption may cost; AutoAttack takes seconds for each on a CPU."""

OURS = "temperature-pgd"


class Place(NamedTuple):
    """What all models of a leaderboard share."""

    dataset: str
    threat_model: str
    eps: float
    note: str = ""


def read_config(path: Path) -> tuple[Place, list[str]]:
    """The place in the zoo, and names of models, those with a factory of their own registered."""
    config = json.loads(path.read_text())
    place = Place(
        config["dataset"], config["threat_model"], parse_number(config["eps"]), config.get("note", "")
    )
    names = []
    for model in config["models"]:
        if isinstance(model, dict):
            add_model(place, **model)
            names.append(model["name"])
        else:
            names.append(model)
    return place, names


def add_model(place: Place, name: str, factory: str, checkpoint: str | None = None) -> None:
    """Put a model of our own into the zoo, with the weights of a file or those at the zoo's path."""
    options: dict[str, Any] = {"dataset": place.dataset, "threat_model": place.threat_model}
    if checkpoint is not None:
        options["checkpoint"] = HERE / checkpoint

    def build() -> Any:
        return load_own_model(factory)

    build.__name__ = factory.rpartition(":")[2]  # what the table calls its architecture
    register(name, build, **options)


def run_model(name: str, place: Place, data: Data, arguments: argparse.Namespace) -> Records:
    """Both attacks on one model, or what an earlier call found."""
    model = load_model(name, arguments.model_dir, place.dataset, place.threat_model)
    options: dict[str, Any] = {"norm": place.threat_model, "eps": place.eps}
    host = AutoAttack(**options, attacks_to_run=arguments.attacks_to_run, batch_size=arguments.batch_size)
    return evaluate(
        model,
        data,
        attacks={"+".join(arguments.attacks_to_run or ["autoattack"]): host, OURS: OURS},
        **options,
        batch_size=arguments.batch_size,
        device=arguments.device,
        precision="float32",
        out=arguments.out / name,
        resume=True,
        progress=arguments.progress,
        model_name=name,
        part_size=PART_SIZE,
    )


def class_rows(name: str, records: Records) -> list[dict[str, Any]]:
    """One row per attack and class."""
    labels, names = records.column("label"), records.class_names
    rows = []
    for attack in records.attacks:
        hits, support = class_counts(records.survives(attack), labels, len(names))
        clean, _ = class_counts(records.correct(), labels, len(names))
        low, high = wilson_interval(hits, support)
        rows += [
            {
                "model": name,
                "attack": attack,
                "class": names[index],
                "n": int(support[index]),
                "clean": int(clean[index]),
                "robust": int(hits[index]),
                "low": float(low[index]),
                "high": float(high[index]),
            }
            for index in range(len(names))
        ]
    return rows


def model_row(name: str, records: Records, published: pd.Series[Any]) -> dict[str, Any]:
    """One row per model: accuracies in percent, and the worst class under each attack."""
    row: dict[str, Any] = {
        "model": name,
        "architecture": published["architecture"],
        "published AutoAttack": percent(published["robust_accuracy"]),
        "n": len(records),
        "clean": percent(records.correct().mean()),
    }
    labels, names = records.column("label"), records.class_names
    for attack in records.attacks:
        survives = records.survives(attack)
        hits, support = class_counts(survives, labels, len(names))
        rates = hits / support
        worst = worst_class(rates) or 0
        low, high = worst_class_interval(hits, support)
        row[attack] = percent(survives.mean())
        row[f"{attack}: worst class"] = (
            f"{names[worst]} {percent(rates[worst])} ({percent(low)} to {percent(high)})"
        )
        row[f"{attack}: passes"] = int(records.column(f"{attack}.forwards").sum())
    return row


def class_table(records: dict[str, Records], attack: str) -> pd.DataFrame:
    """Robust accuracy in percent, a row per model and a column per class."""
    rows = []
    for name, each in records.items():
        hits, support = class_counts(each.survives(attack), each.column("label"), each.num_classes)
        shares = map(percent, hits / support)
        rows.append({"model": name, **dict(zip(each.class_names, shares, strict=True))})
    return pd.DataFrame(rows)


def percent(share: float) -> str:
    """A fraction as people read it; a dash where there is none."""
    return "-" if pd.isna(share) else f"{100 * share:.1f}"


def collect(
    names: list[str], place: Place, data: Data, arguments: argparse.Namespace
) -> tuple[dict[str, Records], dict[str, str]]:
    """Records by model, best first, and reasons for the models that have none."""
    table = zoo(arguments.model_dir).set_index(["dataset", "threat_model", "name"])
    records, absent = {}, {}
    for name in names:
        key = (place.dataset, place.threat_model, name)
        if key in table.index and not table.loc[key, "present"] and not arguments.download:
            absent[name] = "weights missing"
            continue
        try:
            records[name] = run_model(name, place, data, arguments)
        except (ValueError, OSError) as error:
            absent[name] = str(error)
            continue
        accuracies = {
            attack: percent(records[name].survives(attack).mean()) for attack in records[name].attacks
        }
        print(name, accuracies, flush=True)
    order = sorted(records, key=lambda name: -records[name].survives(records[name].attacks[0]).mean())
    return {name: records[name] for name in order}, absent


def write(
    records: dict[str, Records],
    absent: dict[str, str],
    place: Place,
    data: Data,
    arguments: argparse.Namespace,
) -> None:
    """Write leaderboard.csv, a row per model, attack and class, and leaderboard.md for people."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = [row for name, each in records.items() for row in class_rows(name, each)]
    pd.DataFrame(rows).to_csv(arguments.out / "leaderboard.csv", index=False)
    table = zoo(arguments.model_dir).set_index(["dataset", "threat_model", "name"])
    text = [
        f"# Class-wise leaderboard: {place.dataset}, {place.threat_model}, eps {place.eps:.4g}\n",
        f"{len(data)} images of {data.name}; robust accuracy in percent, 95 % intervals of the worst class; "
        f"passes: forward passes of single samples. Made by\n\n    {arguments.command}\n",
    ]
    if place.note:
        text.append(f"{place.note}\n")
    if records:
        found = [model_row(name, each, table.loc[(*place[:2], name)]) for name, each in records.items()]
        text.append(to_markdown(pd.DataFrame(found)))
        for attack in next(iter(records.values())).attacks:
            text.append(f"## By class under {attack}\n\n{to_markdown(class_table(records, attack))}")
    if absent:
        text.append("## Not evaluated\n")
        text.append("\n".join(f"- {name}: {reason}" for name, reason in absent.items()) + "\n")
    (arguments.out / "leaderboard.md").write_text("\n".join(text))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=HERE / "configs" / "leaderboard.json")
    parser.add_argument("--model-dir", type=Path, default=Path("models"))
    parser.add_argument("--data", help="what to evaluate on; default the config's data set")
    parser.add_argument("--data-dir", type=Path, help="where torchvision's files of the data set lie")
    parser.add_argument("--n-examples", type=int, default=1000)
    parser.add_argument("--sampling", choices=["balanced", "first"], default="balanced")
    parser.add_argument(
        "--attacks-to-run", nargs="+", help="parts of AutoAttack in place of its standard version"
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--download", action="store_true", help="let RobustBench download missing weights")
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/leaderboard"))
    arguments = parser.parse_args(argv)
    given = sys.argv[1:] if argv is None else argv
    arguments.command = shlex.join(["python", "benchmarks/leaderboard.py", *given])
    return arguments


def main(argv: list[str] | None = None) -> None:
    """Evaluate every model of the config that is there, and write the tables."""
    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    arguments = parse(argv)
    place, names = read_config(arguments.config)
    data = load_data(arguments.data or place.dataset, data_dir=arguments.data_dir)
    data = data.subset(min(arguments.n_examples, len(data)), arguments.sampling)
    records, absent = collect(names, place, data, arguments)
    write(records, absent, place, data, arguments)
    print(f"{len(records)} models, {len(absent)} not evaluated: {arguments.out / 'leaderboard.md'}")


if __name__ == "__main__":
    main()
