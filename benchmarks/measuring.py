"""What the timing benchmarks share: clocks, the machine in words, cells that survive an interruption, tables.

A *cell* is one case of a benchmark: its raw measurements, in one small JSON file below the results. It is
written when the case is complete, and a case whose cell is there is not measured again; tables and
figures are made from all the cells, so a benchmark can be run in pieces.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from losses import load_case
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from art_logits import TemperaturePGD
from art_logits._files import write_atomically
from art_logits.data import load_data
from art_logits.evaluation import resolve_device
from art_logits.models import load_checkpoint
from art_logits.prepare import full_float32
from art_logits.training import fit

HERE = Path(__file__).parent
T = TypeVar("T")

_FEATURES = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")
_HOSTS = ("torchattacks", "adversarial-robustness-toolbox", "foolbox")


@dataclass(frozen=True)
class Cells:
    """One JSON file per case in a folder.

    Attributes:
        folder: where they lie; made when the first is written.
    """

    folder: Path

    def measured(
        self, case: dict[str, Any], measure: Callable[[], dict[str, Any]], again: bool = False
    ) -> bool:
        """Measure a case and keep the result, unless it was measured already with the same config.

        Args:
            case: the case's entry of the config; its ``name`` is the file's.
            measure: makes the measurements, as JSON can hold them.
            again: measure in any case.

        Returns:
            Whether it was measured now.
        """
        path = self.folder / f"{case['name']}.json"
        if not again and path.exists() and json.loads(path.read_text())["case"] == case:
            print(f"{case['name']}: already measured", flush=True)
            return False
        began = time.perf_counter()
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        cell = {"case": case, "load_before": load, **measure()}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(cell, indent=1) + "\n").encode())
        print(f"{case['name']}: {time.perf_counter() - began:.0f} s", flush=True)
        return True

    def all(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """The cells of these cases that are there, in this order."""
        paths = [self.folder / f"{name}.json" for name in names]
        return [json.loads(path.read_text()) for path in paths if path.exists()]


@dataclass(frozen=True)
class Session:
    """What the command line of a timing benchmark says.

    Attributes:
        options: the parsed arguments.
        device: where to run.
        config: cases, from the script's config or the one given.
        out: folder of the results.
        command: the command that makes them, with ``DATA`` for the folder of the data.
    """

    options: argparse.Namespace
    device: torch.device
    config: dict[str, list[dict[str, Any]]]
    out: Path
    command: str

    def measure(
        self,
        script: str,
        kind: str,
        work: Callable[[dict[str, Any], Path, torch.device], dict[str, Any]],
        after: Callable[[], None],
    ) -> None:
        """Measure the cases of one kind that were asked for and have no cell; ``after`` follows each."""
        for case in self.config[kind]:
            if self.options.cases is None or case["name"] in self.options.cases:
                job = partial(work, case, self.options.data_dir, self.device)
                if Cells(self.out / script).measured(case, job, self.options.again):
                    after()

    def cells(self, script: str, kind: str) -> list[dict[str, Any]]:
        """What was measured so far of one kind, in the order of the config."""
        return Cells(self.out / script).all(case["name"] for case in self.config[kind])


def command_line(script: str, description: str) -> argparse.ArgumentParser:
    """The arguments that timing benchmarks share; ``script`` is its file's name without the ending."""
    parser = argparse.ArgumentParser(
        prog=f"{script}.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--config", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", nargs="+", help="names of cases; none for tables only")
    parser.add_argument("--again", action="store_true", help="measure also what was measured")
    parser.add_argument("--quick", action="store_true", help="a few digits, one round: does it run?")
    return parser


def session(script: str, options: argparse.Namespace) -> Session:
    """Read the config; a quick run has its own, and leaves the results on record alone."""
    source = options.config or HERE / "configs" / f"{script}{'-quick' if options.quick else ''}.json"
    results = HERE / "results" / ("cuda" if options.device.startswith("cuda") else "")
    out = options.out or (Path("runs/benchmarks") if options.quick else results)
    out.mkdir(parents=True, exist_ok=True)
    flags = [f"--threads {options.threads}"]
    flags += [f"--device {options.device}"] if options.device != "cpu" else []
    flags += ["--quick"] if options.quick else ["--data-dir DATA"]
    flags += [f"--config {options.config}"] if options.config else []
    return Session(
        options,
        # Tables can be made anywhere.
        torch.device("cpu") if options.cases == ["none"] else resolve_device(options.device),
        json.loads(source.read_text()),
        out,
        f"python benchmarks/{script}.py {' '.join(flags)}",
    )


@dataclass(frozen=True)
class Spent:
    """Seconds on the clock, and of all of the process's threads together."""

    wall: float
    cpu: float


def spend(work: Callable[[], T], device: torch.device) -> tuple[T, Spent]:
    """Do some work; its result, and what it took. Work under way on a GPU is waited for."""

    def clocks() -> tuple[float, float]:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter(), time.process_time()

    wall, cpu = clocks()
    result = work()
    wall_after, cpu_after = clocks()
    return result, Spent(wall_after - wall, cpu_after - cpu)


def environment(device: torch.device) -> dict[str, Any]:
    """What decides how fast this machine is, without what tells whose it is."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    installed = {name: version for name in _HOSTS if (version := _version(name))}
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "features": [name for name in _FEATURES if known.get(name)],
        "versions": {"torch": str(torch.__version__), **installed},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def bfloat16_is_native(machine: dict[str, Any]) -> bool:
    """Whether the CPU of an environment computes in bfloat16 itself."""
    return bool({"avx512_bf16", "amx_bf16"} & set(machine["features"]))


def in_words(machine: dict[str, Any]) -> str:
    """An environment as one line of text."""
    native = "native" if bfloat16_is_native(machine) else "not native"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    features = ", ".join(machine["features"]) or machine["capability"]
    threads = f"{machine['threads']} of {machine['cores']} cores"
    if machine["device"] != "cpu":
        return f"{machine['device']}, {threads} beside it; {versions}."
    return f"{machine['device']}, {threads} ({features}: bfloat16 {native}); {versions}."


def load_inputs(
    case: dict[str, Any], data_dir: Path, device: torch.device
) -> tuple[nn.Module, Tensor, Tensor, float]:
    """Model, inputs, labels and radius of a case, on the device.

    A case with ``"train"`` has no checkpoint in the repository: its net is trained on the spot, from a fixed
    seed, and kept in ``runs/benchmarks/models`` for the next time. It classifies poorly, so its own clean
    predictions take the place of the labels: none is wrong from the start. Cases may share a net, by its
    ``"name"`` there.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, data, eps = load_case(case, data_dir)
    model = model.to(device)
    if "train" in case:
        path = Path("runs/benchmarks/models") / f"{case['train'].get('name', case['name'])}.safetensors"
        if not path.exists():
            train_briefly(model, case, data_dir, path)
        load_checkpoint(model, path)
    inputs, labels = (tensor.to(device) for tensor in data.batch(slice(None)))
    if "train" in case:
        with torch.no_grad(), full_float32():
            labels = torch.cat([model(part).argmax(dim=1) for part in torch.split(inputs, 64)])
    return model, inputs, labels, eps


def train_briefly(model: nn.Module, case: dict[str, Any], data_dir: Path, path: Path) -> None:
    """A few epochs of PGD-AT on a few images: enough that attacks meet both standing and fallen samples."""
    source = case["data"] if case["data"] == "digits" else data_dir / case["data"]
    data = load_data(source, split="train").subset(case["train"]["n"], seed=0)
    eps = data.default_eps["Linf"]
    attack = TemperaturePGD(eps=eps, steps=2, step_size=0.75 * eps, temperature=1.0)
    options = {key: value for key, value in case["train"].items() if key not in ("n", "name")}
    print(f"{case['name']}: training on {len(data)} images", flush=True)
    fit(model, data, attack=attack, ema=None, precision="auto", seed=0, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save_tensors({name: t.cpu() for name, t in model.state_dict().items()}))


def middle(values: Sequence[float]) -> float:
    """The median."""
    return float(np.median(np.asarray(values, dtype=float)))


def spread(values: Sequence[float], digits: int = 2, unit: str = "") -> str:
    """Median and range as text: ``3.10 (2.95 to 3.20)``.

    >>> spread([3.0, 1.0, 2.0], digits=1, unit="x")
    '2.0x (1.0 to 3.0)'
    """
    low, high = min(values), max(values)
    return f"{middle(values):.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure as SVG, the same bytes for the same figure."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "art-logits", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    write_atomically(path, buffer.getvalue())
