"""What a temperature adds: losses and temperatures on adversarially trained models, at equal passes.

    python benchmarks/losses.py --data-dir DATA --out benchmarks/results

Every attack of the table has the same budget: 20 steps, one random start, and leaves a sample at its
first success. For each model of ``configs/losses.json`` it counts the samples that stay right, and tests each
attack against ``gap, cosine`` on the samples that only one of the two breaks (McNemar, exact binomial).
``DATA`` holds the files that the config names; the digits need none.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from scipy.stats import binomtest
from torch import nn

from art_logits import TemperaturePGD, evaluate
from art_logits.data import Data, load_data
from art_logits.models import load_model
from art_logits.presets import parse_number
from art_logits.tables import to_markdown

HERE = Path(__file__).parent
BASELINE = "gap, cosine"


def attacks(eps: float, norm: str) -> dict[str, TemperaturePGD]:
    """The attacks of the table, all of 20 steps and one start."""
    plain: dict[str, Any] = {"eps": eps, "norm": norm, "steps": 20, "step_size": eps / 4, "temperature": 1.0}
    table = {"cross-entropy, T=1": TemperaturePGD(**plain)}
    for temperature in (0.1, 0.2, 0.5, 2.0, 5.0):
        options = {**plain, "temperature": temperature}
        table[f"cross-entropy, T={temperature:g}"] = TemperaturePGD(**options)
    for loss in ("margin", "dlr", "probability_margin"):
        table[loss] = TemperaturePGD(**{**plain, "loss": loss})
        table[f"{loss}, cosine"] = TemperaturePGD(**{**plain, "loss": loss, "step_size": "cosine"})
    table["cross-entropy, T=1, cosine"] = TemperaturePGD(**{**plain, "step_size": "cosine"})
    table["gap"] = TemperaturePGD(**{**plain, "temperature": "gap"})
    table[BASELINE] = TemperaturePGD(**{**plain, "temperature": "gap", "step_size": "cosine"})
    return table


def load_case(case: dict[str, Any], data_dir: Path) -> tuple[nn.Module, Data, float]:
    """Model, class-balanced samples and radius of a case of a config."""
    source = case["data"] if case["data"] == "digits" else str(data_dir / case["data"])
    checkpoint = HERE / case["checkpoint"] if "checkpoint" in case else None
    model = load_model(case["model"], checkpoint=checkpoint)
    return model, load_data(source).subset(case["n"], seed=0), parse_number(case["eps"])


def measure(case: dict[str, Any], data_dir: Path) -> list[dict[str, Any]]:
    """One row per attack on one model."""
    model, data, eps = load_case(case, data_dir)
    robust, rows = {}, []
    for name, attack in attacks(eps, case["norm"]).items():
        records = evaluate(model, data, attacks={"attack": attack}, batch_size=256)
        robust[name] = records.robust()
        report = records.classwise()
        passes = {kind: int(records.column(f"attack.{kind}").sum()) for kind in ("forwards", "backwards")}
        rows.append(
            {
                "model": case["name"],
                "attack": name,
                "n": len(data),
                "clean": round(report.clean_accuracy * len(data)),
                "robust": int(robust[name].sum()),
                "worst_class": report.worst_class.name,
                "worst_robust": report.worst_class.robust_accuracy,
                **passes,
            }
        )
        print(f"{case['name']}: {name}: {rows[-1]['robust']} of {len(data)} left", flush=True)
    for row in rows:
        ours, theirs = robust[BASELINE], robust[row["attack"]]
        only_ours, only_theirs = int((~ours & theirs).sum()), int((ours & ~theirs).sum())
        pairs = only_ours + only_theirs
        row["only_gap_breaks"], row["only_it_breaks"] = only_ours, only_theirs
        row["mcnemar_p"] = binomtest(only_ours, pairs).pvalue if pairs else 1.0
    return rows


def main() -> None:
    """Measure every case of the config and write losses.csv and losses.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--config", type=Path, default=HERE / "configs" / "losses.json")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cases = json.loads(arguments.config.read_text())
    table = pd.DataFrame([row for case in cases for row in measure(case, arguments.data_dir)])
    arguments.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.out / "losses.csv", index=False)
    text = [__doc__ or "", f"torch {torch.__version__}, {arguments.threads} threads.\n"]
    for name, rows in table.groupby("model", sort=False):
        text.append(f"## {name}: {rows['clean'].iloc[0]} of {rows['n'].iloc[0]} right without attack\n")
        text.append(
            to_markdown(rows.drop(columns=["model", "n", "clean"]).sort_values("robust", kind="stable"))
        )
    (arguments.out / "losses.md").write_text("# Losses and temperatures\n\n" + "\n".join(text) + "\n")


if __name__ == "__main__":
    main()
