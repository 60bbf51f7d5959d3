"""RobustBench's ``benchmark``, with a row per sample behind its two numbers."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from art_logits import _checks
from art_logits._extras import require
from art_logits._files import write_atomically
from art_logits.analysis import ClasswiseReport, classwise_report, summarize
from art_logits.evaluation import evaluate
from art_logits.functional.classwise import class_accuracy, class_counts
from art_logits.records import Records
from art_logits.types import Model

from ._host import robustbench
from .autoattack import AutoAttack
from .images import clean_images, corruptions
from .model_zoo import dataset_name, threat_model_name

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BenchmarkResult", "benchmark"]

logger = logging.getLogger(__name__)

_NORMS = ("Linf", "L2")
_PART_SIZE = 128
"""Samples per part, at least: what an interruption may cost. AutoAttack takes seconds per sample on a CPU."""


class _Accuracies(NamedTuple):
    clean: float
    robust: float


class BenchmarkResult(_Accuracies):
    """What ``benchmark`` returns: a tuple of two numbers, as RobustBench's, that carries the rest.

    Attributes:
        clean: share of samples that are predicted right without an attack.
        robust: share that is right without and under every attack; for corruptions, the mean accuracy on the
            corrupted images, over corruptions and severities.
        records: one row per sample; each corruption and severity has the columns of an attack.
        mce: mean corruption error relative to AlexNet's, where RobustBench's table with that is in
            ``./model_info/<dataset>/corruptions``; None elsewhere.
    """

    records: Records
    mce: float | None = None

    @property
    def report(self) -> ClasswiseReport:
        """Which classes fail; see :func:`art_logits.analysis.classwise_report`."""
        return classwise_report(self.records)

    def corruptions(self) -> pd.DataFrame:
        """Clean against corrupted, class by class.

        Returns:
            One row per class, ``class``, ``support``, ``clean``, ``corrupted`` (the mean of those that
            follow) and each corruption's accuracy, the mean over severities; fractions, NaN for a class
            without samples. A last row of an empty class is that of all samples.

        Raises:
            ValueError: these are not the results of a benchmark on corruptions.
        """
        return _corruption_table(self.records)


def benchmark(
    model: Model,
    n_examples: int | None = 10000,
    dataset: Any = "cifar10",
    threat_model: Any = "Linf",
    to_disk: bool = False,
    model_name: str | None = None,
    data_dir: str | Path = "./data",
    corruptions_data_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 32,
    eps: float | None = None,
    log_path: str | Path | None = None,
    preprocessing: str | Callable[[Any], Tensor] | None = None,
    aa_state_path: str | Path | None = None,
    *,
    attacks: Any = None,
    seed: int = 0,
    progress: bool = False,
) -> BenchmarkResult:
    """Evaluate a model as RobustBench does, sample by sample.

    AutoAttack standard for ``"Linf"`` and ``"L2"``, the corrupted images of CIFAR-10-C, CIFAR-100-C,
    ImageNet-C and ImageNet-3DCC for ``"corruptions"`` and ``"corruptions_3d"``. The first fourteen arguments
    are RobustBench's. The model is in eval mode meanwhile, and comes back as it was.

    Args:
        model: images in [0, 1] to logits ``(N, C)``.
        n_examples: how many test images, from the first; None for all.
        dataset: ``"cifar10"``, ``"cifar100"`` or ``"imagenet"``.
        threat_model: ``"Linf"``, ``"L2"``, ``"corruptions"`` or ``"corruptions_3d"``.
        to_disk: write ``./model_info/<dataset>/<threat model>/<model_name>.json`` as RobustBench does, with
            AutoAttack's number only if it is the standard version's, and our metrics beside it in
            ``art-logits/<model_name>.json``.
        model_name: for the manifest and for ``to_disk``; on ImageNet, whose preprocessing to use.
        data_dir: folder of the data, to which missing CIFAR images are downloaded.
        corruptions_data_dir: folder of the corrupted images; default ``data_dir``.
        device: where to run; default where the model is.
        batch_size: samples in one pass, and attacked together by AutoAttack.
        eps: radius of the attacks, in the unit of the images; of no use for corruptions.
        log_path: file to which AutoAttack's progress is appended.
        preprocessing: RobustBench's name of one, or a callable from a PIL image to ``(3, H, W)``.
        aa_state_path: folder of the records. Where it holds this run, interrupted, the run continues; where
            it holds another one, of another model, data, attack, eps or batch size, it is refused.
        attacks: in place of AutoAttack's standard version, whatever :func:`art_logits.evaluate` takes.
        seed: of AutoAttack, and of attacks given as specs.
        progress: show a progress bar on stderr.

    Returns:
        The clean and the robust accuracy, with the records behind them.

    Raises:
        ValueError: for arguments out of their range, ``eps`` missing, ``to_disk`` without ``model_name``, or
            a run in ``aa_state_path`` that differs.
        FileNotFoundError: data are missing that RobustBench does not download.
        FileExistsError: ``aa_state_path`` holds something else.
        OSError: a download failed.
    """
    case = _Case(dataset_name(dataset), threat_model_name(threat_model), model_name)
    if to_disk and not model_name:
        raise ValueError("model_name must be given with to_disk=True: it names the file")
    if aa_state_path is not None and Path(aa_state_path).is_file():
        raise ValueError(
            f"aa_state_path must be a folder, got the file {str(aa_state_path)!r}: states that AutoAttack "
            "itself wrote cannot be resumed"
        )
    if getattr(model, "training", False):
        warnings.warn("The given model is *not* in eval mode: it is evaluated in eval mode", stacklevel=2)
    data = clean_images(
        *case[:2],
        n_examples=n_examples,
        data_dir=data_dir,
        model_name=model_name,
        preprocessing=preprocessing,
    )
    norm = case.threat_model if case.threat_model in _NORMS else "Linf"
    if case.threat_model in _NORMS:
        if eps is None:
            raise ValueError(f"eps must be given for the threat model {norm}, such as 8 / 255 in Linf")
        chosen = attacks
        if attacks is None:
            options: dict[str, Any] = {"norm": norm, "seed": seed, "batch_size": batch_size}
            chosen = {"autoattack": AutoAttack(eps=eps, log_path=log_path, **options)}
    else:
        if attacks is not None:
            raise ValueError(f"attacks must not be given for {case.threat_model}: the images are the attack")
        chosen = corruptions(*case[:2], data, corruptions_data_dir or data_dir)
    with _folder_named(aa_state_path):
        records = evaluate(
            model,
            data,
            attacks=chosen,
            batch_size=batch_size,
            device=device,
            out=aa_state_path,
            resume=aa_state_path is not None,
            seed=seed,
            progress=progress,
            norm=norm,
            eps=eps,
            model_name=model_name,
            part_size=max(_PART_SIZE, _checks.integer("batch_size", batch_size, at_least=1)),
        )
    result = _result(records, case)
    logger.info("%s: clean accuracy %.2f %%, robust accuracy %.2f %%", case, *(100 * x for x in result))
    if to_disk:
        _write(result, case, eps)
    return result


@contextmanager
def _folder_named(path: object) -> Iterator[None]:
    """Tell what is wrong with the folder of the records by this function's name for it."""
    try:
        yield
    except (ValueError, OSError) as error:
        if path is None or not str(error).startswith("out: "):
            raise
        text = str(error).replace("out: ", "aa_state_path: ", 1).replace("--out", "aa_state_path")
        raise type(error)(text) from error


class _Case(NamedTuple):
    """What a benchmark is about."""

    dataset: str
    threat_model: str
    model_name: str | None

    @property
    def folder(self) -> Path:
        """Where RobustBench writes results: both kinds of corruptions in one folder."""
        return Path("model_info") / self.dataset / self.threat_model.replace("_3d", "")

    @property
    def table(self) -> Path:
        """RobustBench's table of accuracies by corruption and severity."""
        return self.folder / f"unaggregated_results{'_3d' if self.threat_model.endswith('_3d') else ''}.csv"


def _result(records: Records, case: _Case) -> BenchmarkResult:
    clean = float(records.correct().mean())
    if case.threat_model in _NORMS:
        result = BenchmarkResult(clean, float(records.robust().mean()))
    else:
        by_corruption = _corrupted_accuracies(records)
        result = BenchmarkResult(clean, float(np.mean(list(by_corruption.values()))))
        result.mce = _mean_corruption_error(by_corruption, case.table)
    result.records = records
    return result


# ----------------------------------------------------------------------------------------------------------
# Corruptions


def _hits(records: Records, attack: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which corrupted images are predicted right, whatever the prediction for the clean one."""
    right: np.ndarray[Any, np.dtype[np.bool_]] = ~records.column(f"{attack}.success")
    return right


def _corruption_names(records: Records) -> dict[str, list[str]]:
    """Columns of each corruption, in the order of the severities."""
    described = records.manifest.get("identity", {}).get("attacks", {})
    names: dict[str, list[str]] = {}
    for attack in records.attacks:
        corruption = described.get(attack, {}).get("corruption")
        if corruption is None:
            raise ValueError(
                f"threat_model must have been corruptions for this table, but {attack!r} is an attack"
            )
        names.setdefault(corruption, []).append(attack)
    return names


def _corrupted_accuracies(records: Records) -> dict[tuple[str, int], float]:
    """Accuracy by corruption and severity."""
    return {
        (corruption, severity): float(_hits(records, attack).mean())
        for corruption, attacks in _corruption_names(records).items()
        for severity, attack in enumerate(attacks, start=1)
    }


def _corruption_table(records: Records) -> pd.DataFrame:
    pandas = require("pandas", extra="evaluate")
    labels, classes = records.column("label"), records.num_classes

    def accuracies(hits: np.ndarray[Any, np.dtype[np.bool_]]) -> list[float]:
        return [*class_accuracy(hits, labels, classes), hits.mean()]

    rates = {
        corruption: np.mean([accuracies(_hits(records, attack)) for attack in attacks], axis=0)
        for corruption, attacks in _corruption_names(records).items()
    }
    correct = records.correct()
    frame: pd.DataFrame = pandas.DataFrame(
        {
            "class": [*records.class_names, ""],
            "support": [*class_counts(correct, labels, classes).support, len(labels)],
            "clean": accuracies(correct),
            "corrupted": np.mean(list(rates.values()), axis=0),
            **rates,
        }
    )
    return frame


def _read_table(path: Path) -> pd.DataFrame | None:
    """RobustBench's table of accuracies: a row per model, columns of (corruption, severity)."""
    if not path.is_file():
        return None
    pandas = require("pandas", extra="evaluate")
    frame: pd.DataFrame = pandas.read_csv(path, header=[0, 1], index_col=0)
    columns: Any = frame.columns
    frame.columns = columns.set_levels(columns.levels[1].astype(int), level=1)
    return frame


def _mean_corruption_error(accuracies: Mapping[tuple[str, int], float], path: Path) -> float | None:
    """Hendrycks & Dietterich (ICLR 2019): errors relative to AlexNet's, averaged over corruptions."""
    table = _read_table(path)
    if table is None or "AlexNet" not in table.index:
        return None
    alexnet = table.loc["AlexNet"]
    ratios = []
    for corruption in dict.fromkeys(name for name, _ in accuracies):
        errors = [1 - accuracy for (name, _), accuracy in accuracies.items() if name == corruption]
        ratios.append(np.mean(errors) / (1 - alexnet[corruption]).mean())
    return float(np.mean(ratios))


# ----------------------------------------------------------------------------------------------------------
# On disk


def _write(result: BenchmarkResult, case: _Case, eps: float | None) -> None:
    """RobustBench's files, and ours in a folder in which it does not look for its own."""
    sidecar = case.folder / "art-logits"
    sidecar.mkdir(parents=True, exist_ok=True)
    _write_json(case.folder / f"{case.model_name}.json", _model_info(result, case, eps))
    summary: dict[str, Any] = {"model_name": case.model_name, **summarize(result.records)}
    if case.threat_model not in _NORMS:
        _write_table(result, case)
        table = result.corruptions()
        summary["corruptions"] = json.loads(table.to_json(orient="records"))
    name = f"{case.model_name}{'-3d' if case.threat_model.endswith('_3d') else ''}.json"
    _write_json(sidecar / name, summary | {"identity": result.records.manifest["identity"]})


def _model_info(result: BenchmarkResult, case: _Case, eps: float | None) -> dict[str, Any]:
    """RobustBench's fields: percentages as text; those of an existing file that say nothing new stay."""
    found: dict[str, str] = {"clean_acc": _percent(result.clean)}
    suffix = "_3d" if case.threat_model.endswith("_3d") else ""
    if case.threat_model in _NORMS:
        standard = _standard_autoattack(result.records)
        if standard is not None:
            found["autoattack_acc"] = _percent(float(result.records.survives(standard).mean()))
    else:
        found[f"corruptions_acc{suffix}"] = _percent(result.robust)
        if result.mce is not None:
            found[f"corruptions_mce{suffix}"] = _percent(result.mce)
    info = asdict(robustbench("utils").ModelInfo(dataset=case.dataset, eps=eps, **found))
    path = case.folder / f"{case.model_name}.json"
    if not path.is_file():
        return info
    existing: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return existing | {key: value for key, value in info.items() if value is not None}


def _percent(share: float) -> str:
    return str(round(share * 100, 2))


def _standard_autoattack(records: Records) -> str | None:
    """Name of the attack that is AutoAttack's standard version, if one is."""
    described = records.manifest["identity"]["attacks"]
    of_host = f"{AutoAttack.__module__}.{AutoAttack.__qualname__}"
    for name in records.attacks:
        config = described[name]
        if config.get("callable") == of_host and config.get("version") == "standard":
            return name
    return None


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=2).encode())


def _write_table(result: BenchmarkResult, case: _Case) -> None:
    """The model's row in RobustBench's table of corruptions and severities."""
    pandas = require("pandas", extra="evaluate")
    row = pandas.DataFrame(_corrupted_accuracies(result.records), index=[case.model_name])
    before = _read_table(case.table)
    if before is not None:
        row = pandas.concat([before.drop(index=case.model_name, errors="ignore"), row])
    write_atomically(case.table, row.to_csv().encode())
