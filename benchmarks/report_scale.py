"""How long a report of many samples and classes takes, and how much memory: 50,000 x 1000 by default.

    python benchmarks/report_scale.py --work runs/report_scale --out benchmarks/results

Writes records of synthetic float32 logits (a model and two attacks; with ``--reference`` a second model under
the same attacks), then runs ``art-logits report`` on them as a process of its own and measures its wall time,
CPU time and peak resident memory. The aim is 60 s and 2 GiB on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from art_logits.records import RecordsWriter, records_schema
from art_logits.tables import to_markdown

HERE = Path(__file__).parent
ATTACKS = ("pgd", "temperature-pgd")
PART = 512

Floats = NDArray[np.float32]


def model_columns(
    prefix: str, labels: NDArray[np.int64], classes: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Clean logits with the label ahead for most samples; each attack pulls it down and another class up."""
    rows = np.arange(len(labels))
    clean = rng.normal(size=(len(labels), classes)).astype(np.float32)
    # Some classes are harder than others.
    clean[rows, labels] += (5 + labels % 7 / 2 + rng.normal(size=len(labels))).astype(np.float32)
    columns = {f"{prefix}clean_logits": clean, f"{prefix}clean_prediction": clean.argmax(axis=1)}
    for strength, name in enumerate(ATTACKS, start=2):
        attacked = clean.copy()
        attacked[rows, labels] -= np.float32(strength)
        attacked[rows, (labels + 1 + labels % 3) % classes] += np.float32(strength)
        prediction = attacked.argmax(axis=1)
        columns |= {
            f"{prefix}{name}.prediction": prediction,
            f"{prefix}{name}.success": prediction != labels,
            f"{prefix}{name}.distance": np.full(len(labels), 8 / 255, dtype=np.float32),
            f"{prefix}{name}.logits": attacked,
            f"{prefix}{name}.forwards": rng.integers(1, 22, len(labels)),
            f"{prefix}{name}.backwards": rng.integers(1, 21, len(labels)),
            f"{prefix}{name}.zero_gradients": np.zeros(len(labels), dtype=np.int64),
            f"{prefix}{name}.success_8bit": prediction != labels,
        }
    return columns


def write_records(out: Path, count: int, classes: int, *, reference: bool) -> None:
    """Records of a run that never was, in parts of 512 rows as an evaluation writes them."""
    schema = records_schema(ATTACKS, classes, reference=reference)
    identity = {
        "model": {"name": "synthetic"},
        "reference": {"name": "synthetic too"} if reference else None,
        "data": {"name": f"{count} x {classes}", "n": count},
        "attacks": {name: {"steps": 20} for name in ATTACKS},
        "class_names": [f"class {index}" for index in range(classes)],
    }
    writer = RecordsWriter(out, {"identity": identity, "command": None}, resume=False)
    rng = np.random.default_rng(0)
    for part, start in enumerate(range(0, count, PART)):
        ids = np.arange(start, min(start + PART, count))
        labels = ids % classes
        columns: dict[str, Any] = {"sample_id": ids, "label": labels}
        for prefix in ("", "reference.") if reference else ("",):
            columns |= model_columns(prefix, labels, classes, rng)
        arrays = [_array(columns[field.name], field.type) for field in schema]
        writer.write(part, pa.Table.from_arrays(arrays, schema=schema))
    passes = {"forwards": count * 21, "backwards": count * 20}
    writer.finish({"model": passes, "reference": passes if reference else None})


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    return pa.array(values).cast(kind)


def measure(folder: Path, out: Path) -> dict[str, float]:
    """Wall seconds, CPU seconds and peak MiB of ``art-logits report``."""
    command = [sys.executable, "-m", "art_logits", "report", str(folder), "--out", str(out)]
    began = time.perf_counter()
    # In a folder of its own: beside a clone's art_logits the installed one would be shadowed.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder)
    _, status, usage = os.wait4(process.pid, 0)
    wall, process.returncode = time.perf_counter() - began, os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    # Linux gives the peak in KiB.
    return {
        "wall (s)": wall,
        "CPU (s)": usage.ru_utime + usage.ru_stime,
        "peak (MiB)": usage.ru_maxrss / 1024,
    }


def main() -> None:
    """Write the records where they are missing, measure, and write report_scale.csv and report_scale.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("runs/report_scale"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    kind = "-reference" if arguments.reference else ""
    folder = (arguments.work / f"{arguments.samples}x{arguments.classes}{kind}").resolve()
    manifest = folder / "manifest.json"
    if not manifest.exists() or not json.loads(manifest.read_text())["complete"]:
        # Elsewhere: a process that starts another one hands its own peak on to it.
        size = (folder, arguments.samples, arguments.classes)
        writer = get_context("spawn").Process(
            target=write_records, args=size, kwargs={"reference": arguments.reference}
        )
        writer.start()
        writer.join()
        if writer.exitcode:
            raise RuntimeError(f"writing {folder} failed with exit code {writer.exitcode}")
    output = folder.with_name(f"{folder.name}-report")
    row = {
        "samples": arguments.samples,
        "classes": arguments.classes,
        "attacks": len(ATTACKS),
        "reference": "yes" if arguments.reference else "no",
        **measure(folder, output),
        "report.html (MiB)": (output / "report.html").stat().st_size / 2**20,
    }
    print(row)
    path = arguments.out / "report_scale.csv"
    table = pd.DataFrame([row])
    if path.exists():
        keys = ["samples", "classes", "attacks", "reference"]
        table = pd.concat([pd.read_csv(path), table]).drop_duplicates(keys, keep="last").sort_values(keys)
    arguments.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)
    text = f"# Size of a report\n\n{__doc__}\n{to_markdown(table, digits=4)}"
    (arguments.out / "report_scale.md").write_text(text)


if __name__ == "__main__":
    main()
