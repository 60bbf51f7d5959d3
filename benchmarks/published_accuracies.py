"""The table of published accuracies that ``zoo()`` shows, from RobustBench's own result files.

    git clone https://github.com/RobustBench/robustbench
    python benchmarks/published_accuracies.py robustbench/model_info plugins/robustbench/published.csv

RobustBench's package on PyPI has no such files; its repository does, under the MIT license. The table holds
fractions in place of their percentages. Made from commit 78fcc9e of 31 March 2025.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

THREAT_MODELS = ("Linf", "L2", "corruptions")


def fraction(value: Any) -> float | None:
    """A percentage, mostly as text, as a fraction."""
    return None if value is None else round(float(value) / 100, 6)


def row(path: Path) -> dict[str, Any]:
    """What one result file says."""
    info = json.loads(path.read_text())
    robust = info.get("autoattack_acc", info.get("corruptions_acc"))
    return {
        "dataset": path.parent.parent.name,
        "threat_model": path.parent.name,
        "name": path.stem,
        "architecture": info["architecture"],
        "clean_accuracy": fraction(info["clean_acc"]),
        "robust_accuracy": fraction(robust),
        "best_known": fraction(info.get("external", robust)),
    }


def main() -> None:
    """Read every result file of the folder and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_info", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    files = sorted(arguments.model_info.glob("*/*/*.json"))
    table = pd.DataFrame([row(path) for path in files if path.parent.name in THREAT_MODELS])
    table.to_csv(arguments.out, index=False)
    print(f"{len(table)} models")


if __name__ == "__main__":
    main()
