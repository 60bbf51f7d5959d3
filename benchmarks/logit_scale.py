"""Does the scale of the logits decide how robust a model looks? torchattacks' PGD beside Temperature-PGD.

    python benchmarks/logit_scale.py --data-dir DATA --out benchmarks/results

Multiplying a model's logits by a constant changes no decision, so no attack should find it more or less
robust. For each model of the config and each factor: samples that stay right under both attacks of 20 steps
with a random start, and the samples whose outcome under Temperature-PGD differs from that at factor 1.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torchattacks
from losses import load_case
from torch import Tensor, nn

from art_logits.plugins.torchattacks import TemperaturePGD
from art_logits.tables import to_markdown

HERE = Path(__file__).parent
FACTORS = (1e-3, 2.0**-3, 1.0, 2.0**3, 10.0, 100.0, 1000.0)


class Scaled(nn.Module):
    """A model whose logits are multiplied by a constant."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, inputs: Tensor) -> Tensor:
        """Scaled logits ``(N, C)``."""
        return self.factor * self.model(inputs)


def standing(model: nn.Module, attack: Any, inputs: Tensor, labels: Tensor, size: int = 256) -> Tensor:
    """Which samples are right without and under the attack, ``(N,)`` bool."""
    right = []
    for x, y in zip(inputs.split(size), labels.split(size), strict=True):
        adversarial = attack(x, y)
        model.eval()  # the host's attacks leave a wrapper of an eval-mode net in training mode
        with torch.no_grad():
            right.append((model(x).argmax(1) == y) & (model(adversarial).argmax(1) == y))
    return torch.cat(right)


def measure(case: dict[str, Any], data_dir: Path) -> list[dict[str, Any]]:
    """One row per factor."""
    base, data, eps = load_case(case, data_dir)
    inputs, labels = data.batch(slice(None))
    options = {"eps": eps, "alpha": eps / 4, "steps": 20}
    ours: dict[float, Tensor] = {}
    host: dict[float, Tensor] = {}
    for factor in FACTORS:
        model = Scaled(base, factor).eval()
        torch.manual_seed(0)
        host[factor] = standing(model, torchattacks.PGD(model, **options), inputs, labels)
        ours[factor] = standing(model, TemperaturePGD(model, **options, seed=0), inputs, labels)
        print(case["name"], factor, int(host[factor].sum()), int(ours[factor].sum()), flush=True)
    return [
        {
            "model": case["name"],
            "n": len(data),
            "factor": factor,
            "torchattacks.PGD": int(host[factor].sum()),
            "Temperature-PGD": int(ours[factor].sum()),
            "flips": int((ours[factor] != ours[1.0]).sum()),
        }
        for factor in FACTORS
    ]


def main() -> None:
    """Measure every case of the config and write logit_scale.csv and logit_scale.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--config", type=Path, default=HERE / "configs" / "logit_scale.json")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    cases = json.loads(arguments.config.read_text())
    table = pd.DataFrame([row for case in cases for row in measure(case, arguments.data_dir)])
    arguments.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.out / "logit_scale.csv", index=False)
    text = f"# Scale of the logits\n\n{__doc__}\ntorch {torch.__version__}.\n\n{to_markdown(table)}"
    (arguments.out / "logit_scale.md").write_text(text)


if __name__ == "__main__":
    main()
