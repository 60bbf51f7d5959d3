"""Two findings of Seguin et al. (arXiv 2108.12001) on small models: the size of logits, and whose confidence.

    python benchmarks/logit_distributions.py --data-dir DATA --work runs/logits --out benchmarks/results

1. Adversarial training (AT) shrinks the max logit and the logit gap on average.
2. AT and standard models differ in which samples they are confident on.

For each case of ``configs/logit_distributions.json`` and each seed an AT and a standard model are trained
from the same initialisation, in the same order of the samples, and evaluated with Temperature-PGD of 20 steps
on the same class-balanced test samples. The recipes are short, made for one processor core: they show the
direction, not the state of the art. ``DATA`` holds the files that the config names; the digits need none.

Every model and every evaluation is kept under ``--work``; the same command continues where it stopped.
Confidence is ranked by its log odds in float64, because float32 rounds many confidences to exactly 1.

How much two models agree has a scale only beside what two seeds of the same training agree: the second
finding holds where the rank correlation *between* the trainings (AT, standard) is smaller than *within* them
(AT, AT and standard, standard). The interval of the difference is a bootstrap over the samples (1000
resamples), which says nothing about other seeds; so the spread over the pairs of models is given too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import special, stats
from torch import nn

from art_logits import Records, TemperaturePGD, evaluate, figures, models
from art_logits.data import Data, load_data
from art_logits.functional.ranks import extreme_overlap
from art_logits.logit_analysis import reference_differences
from art_logits.presets import parse_number
from art_logits.tables import to_markdown
from art_logits.training import fit

HERE = Path(__file__).parent
METHODS = ("pgd-at", "standard")
RESAMPLES = 1000
log = logging.getLogger("logit_distributions")

Floats = NDArray[np.float64]


class Pair(NamedTuple):
    """Two models of a case, and how alike the ranks of their confidences are."""

    kind: str
    models: str
    spearman: float
    top: float
    bottom: float
    top_p: float
    bottom_p: float


def part(case: Mapping[str, Any], split: str, data_dir: Path) -> Data:
    """The training or test samples of a case, class-balanced, the same for every seed."""
    source = case["data"] if case["data"] == "digits" else str(data_dir / case["data"])
    data, count = load_data(source, split=split), case[f"n_{split}"]
    return data if count is None else data.subset(count, seed=0)


def trained(case: Mapping[str, Any], method: str, seed: int, data: Data, folder: Path) -> nn.Module:
    """The model of a case, method and seed: trained, or read where it was before."""
    options = dict(case["model"])
    torch.manual_seed(seed)
    model: nn.Module = getattr(models, options.pop("factory"))(**options)
    if (folder / "model.safetensors").exists():
        models.load_checkpoint(model, folder / "model.safetensors")
        return model.eval()
    recipe, eps = dict(case[method]), parse_number(case["eps"])
    attack = None
    if method == "pgd-at":
        step = parse_number(recipe.pop("step_size"))
        attack = TemperaturePGD(eps=eps, steps=recipe.pop("steps"), step_size=step, temperature=1.0)
    shared = {"augment": case["augment"], "precision": case["precision"], "seed": seed}
    fit(model, data, method=method, attack=attack, **recipe, **shared, out=folder, resume=True)
    return model


def evaluated(case: Mapping[str, Any], seed: int, data_dir: Path, work: Path) -> Records:
    """Records of the AT model with the standard one as its reference."""
    folder = work / case["name"] / f"seed-{seed}"
    if (folder / "records" / "manifest.json").exists():
        records = Records.load(folder / "records", partial=True)
        if records.manifest["complete"]:
            return records
    train, test = part(case, "train", data_dir), part(case, "test", data_dir)
    at, standard = (trained(case, method, seed, train, folder / method) for method in METHODS)
    eps = parse_number(case["eps"])
    return evaluate(
        at,
        test,
        attacks={"temperature-pgd": TemperaturePGD(eps=eps, steps=20)},
        reference=standard,
        out=folder / "records",
        resume=True,
        model_name=f"{case['name']}, AT, seed {seed}",
        reference_name=f"{case['name']}, standard, seed {seed}",
    )


def sizes(name: str, seed: int, records: Records) -> list[dict[str, Any]]:
    """One row per condition and quantity: AT against standard of one seed."""
    statistics, report = records.logits().statistics(), records.classwise()
    accuracy = {
        "at_clean": report.clean_accuracy,
        "at_robust": report.robust_accuracy,
        "standard_clean": report.reference.clean_accuracy,
        "standard_robust": report.reference.robust_accuracy,
    }
    return [
        {
            "case": name,
            "seed": seed,
            "n": len(records),
            **accuracy,
            "condition": row.condition,
            "quantity": row.quantity,
            "at": statistics["model"][row.condition][row.quantity].mean,
            "standard": statistics["reference"][row.condition][row.quantity].mean,
            "difference": row.difference,
            "low": row.low,
            "high": row.high,
        }
        for row in reference_differences(records).itertuples()
    ]


def log_odds(records: Records, model: str) -> Floats:
    """Log odds of the confidence, ``(N,)``: the same order without float32's rounding to 1."""
    prefix = records.prefix(model)
    logits = np.sort(records.column(f"{prefix}clean_logits").astype(np.float64), axis=1)
    odds: Floats = logits[:, -1] - special.logsumexp(logits[:, :-1], axis=1)
    return odds


def pairs(confidences: Mapping[tuple[str, int], Floats]) -> Iterator[Pair]:
    """Every pair of models of a case."""
    for ((method, seed), a), ((other, its), b) in itertools.combinations(confidences.items(), 2):
        overlap = extreme_overlap(a, b)
        yield Pair(
            "between" if method != other else f"within {method}",
            f"{method} {seed}, {other} {its}",
            float(stats.spearmanr(a, b).statistic),
            overlap.top,
            overlap.bottom,
            overlap.top_p,
            overlap.bottom_p,
        )


def excess(confidences: Mapping[tuple[str, int], Floats]) -> tuple[float, float, float]:
    """Mean rank correlation within the trainings minus that between them, and its 95 % interval."""
    kinds = [a == b for (a, _), (b, _) in itertools.combinations(confidences, 2)]
    within = np.array(kinds)
    values, upper = np.stack(list(confidences.values())), np.triu_indices(len(confidences), k=1)

    def difference(rows: NDArray[np.int64]) -> float:
        ranks = stats.rankdata(values[:, rows], axis=1)
        correlations = np.corrcoef(ranks)[upper]
        return float(correlations[within].mean() - correlations[~within].mean())

    count = values.shape[1]
    rng = np.random.default_rng(0)
    draws = [difference(rng.integers(0, count, count)) for _ in range(RESAMPLES)]
    low, high = np.quantile(draws, (0.025, 0.975))
    return difference(np.arange(count)), float(low), float(high)


def summary_of_sizes(table: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds; the p value is that of a one-sample t test of the seeds' differences."""
    rows = []
    for (case, condition, quantity), group in table.groupby(["case", "condition", "quantity"], sort=False):
        change = group["difference"]
        rows.append(
            {
                "case": case,
                "condition": condition,
                "quantity": quantity,
                "seeds": len(group),
                "AT": group["at"].mean(),
                "standard": group["standard"].mean(),
                "difference": change.mean(),
                "smallest": change.min(),
                "largest": change.max(),
                "p (seeds)": float(stats.ttest_1samp(change, 0).pvalue) if len(group) > 1 else np.nan,
            }
        )
    return pd.DataFrame(rows)


def summary_of_pairs(table: pd.DataFrame) -> pd.DataFrame:
    """Means over the pairs of models of a kind, and how many pairs share more than chance would."""
    rows = []
    for (case, kind), group in table.groupby(["case", "kind"], sort=False):
        rho = group["spearman"]
        rows.append(
            {
                "case": case,
                "pairs": len(group),
                "kind": kind,
                "Spearman": rho.mean(),
                "smallest": rho.min(),
                "largest": rho.max(),
                "shared top tenth": group["top"].mean(),
                "shared bottom tenth": group["bottom"].mean(),
                "top above chance": int((group["top_p"] < 0.05).sum()),
                "bottom above chance": int((group["bottom_p"] < 0.05).sum()),
            }
        )
    return pd.DataFrame(rows)


def draw(name: str, records: Records, out: Path) -> None:
    """Histograms and scatter of one seed, as PNG and SVG."""
    report = records.logits()
    with figures.style(svg_hashsalt=name):
        figure = Figure(figsize=(11, 3.2), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        report.plot_histograms("max_logit", left)
        report.plot_histograms("logit_gap", middle)
        middle.legend(frameon=False)
        report.plot_confidence("clean", right, limit=1000)
        right.legend(frameon=False)
        figures.save(figure, out / f"logit_distributions-{name.lower()}")


def text(accuracy: pd.DataFrame, size: pd.DataFrame, alike: pd.DataFrame, gap: pd.DataFrame) -> str:
    """The Markdown page."""
    return "\n".join(
        [
            "# Logit distributions: adversarial training against standard\n",
            __doc__ or "",
            f"torch {torch.__version__}. Model: AT; reference: standard.\n",
            "## The models\n",
            "Means over the seeds, as fractions; robust under Temperature-PGD, 20 steps.\n",
            to_markdown(accuracy),
            "## Size: means over the samples, then over the seeds\n",
            "Difference: AT minus standard, with its smallest and largest value over the seeds, and the p",
            "value of a t test over them. The CSV has a paired bootstrap interval for each seed.\n",
            to_markdown(size),
            "## Whose confidence: agreement of two models on clean samples\n",
            "Shared tenths: part of the most (least) confident tenth of one model that is also in that of",
            "the other; 0.1 by chance. Above chance: pairs with a one-sided hypergeometric p below 0.05.\n",
            to_markdown(alike),
            "Mean Spearman correlation within the trainings minus that between them:\n",
            to_markdown(gap),
            *(
                f"![{case}](logit_distributions-{case.lower()}.png)\n"
                for case in dict.fromkeys(accuracy["case"])
            ),
        ]
    )


def write(cases: list[dict[str, Any]], found: Mapping[str, list[Records]], out: Path) -> None:
    """Tables and figures of all cases."""
    size, alike, gap = [], [], []
    for case in cases:
        name, runs = case["name"], found[case["name"]]
        size += [row for seed, records in enumerate(runs) for row in sizes(name, seed, records)]
        which = {"pgd-at": "model", "standard": "reference"}
        confidences = {
            (method, seed): log_odds(records, which[method])
            for method in METHODS
            for seed, records in enumerate(runs)
        }
        alike += [{"case": name, **pair._asdict()} for pair in pairs(confidences)]
        if len(runs) > 1:
            gap.append(
                {"case": name, **dict(zip(("difference", "low", "high"), excess(confidences), strict=True))}
            )
    sizes_table, pairs_table = pd.DataFrame(size), pd.DataFrame(alike)
    columns = ["at_clean", "at_robust", "standard_clean", "standard_robust"]
    accuracy = (
        sizes_table.groupby("case", sort=False)[["n", *columns]].mean().reset_index().astype({"n": int})
    )
    out.mkdir(parents=True, exist_ok=True)
    sizes_table.to_csv(out / "logit_distributions.csv", index=False)
    pairs_table.to_csv(out / "logit_distributions-pairs.csv", index=False)
    page = text(accuracy, summary_of_sizes(sizes_table), summary_of_pairs(pairs_table), pd.DataFrame(gap))
    (out / "logit_distributions.md").write_text(page)
    for case in cases:
        draw(case["name"], found[case["name"]][0], out)


def main() -> None:
    """Train, evaluate and compare every case of the config."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--config", type=Path, default=HERE / "configs" / "logit_distributions.json")
    parser.add_argument("--cases", nargs="*", help="names of cases; default all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/logit_distributions"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    cases = json.loads(arguments.config.read_text())
    cases = [case for case in cases if not arguments.cases or case["name"] in arguments.cases]
    found: dict[str, list[Records]] = {}
    for case in cases:
        for seed in range(arguments.seeds):
            records = evaluated(case, seed, arguments.data_dir, arguments.work)
            found.setdefault(case["name"], []).append(records)
            log.info("%s, seed %d: %d samples", case["name"], seed, len(records))
    write(cases, found, arguments.out)


if __name__ == "__main__":
    main()
