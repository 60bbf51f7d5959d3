from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import art_logits

ROOT = Path(art_logits.__file__).parent
HOSTS = ["torchattacks", "art", "robustbench", "autoattack", "pyautoattack", "foolbox"]
EXTRAS = [
    "pandas",
    "pyarrow",
    "matplotlib",
    "typer",
    "torchvision",
    "sklearn",
    "torchmetrics",
    "safetensors",
    "scipy",
    "jinja2",
]

#: From the ground up; a module imports from its own floor and those below. New modules stand on the top.
FLOORS = [
    {"types", "_batches", "_checks", "_extras", "_files", "_text", "_version"},
    {"losses", "temperature", "balls", "steps", "starts", "transforms", "functional"},
    {
        "attack",
        "cascade",
        "counting",
        "folding",
        "fusing",
        "prepare",
        "normalize",
        "fairness",
        "_parts",
        "_provenance",
        "records",
        "tables",
    },
    {
        "image_sets",
        "npz",
        "torchvision_sets",
        "data",
        "models",
        "pretrained",
        "presets",
        "diagnostics",
        "album",
    },
    {"training_loop", "objectives", "transform_specs"},
    {"distill", "training"},
    {"evaluation"},
    {"analysis"},
]


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_core_and_the_plugins_import_without_any_host() -> None:
    run(
        f"import sys; sys.modules.update(dict.fromkeys({HOSTS}))\n"
        "import art_logits, art_logits.plugins\n"
        "from art_logits import TemperaturePGD, pgd, AttackResult, evaluate, Records\n"
        "from art_logits import classwise_report, logit_report, compare\n"
    )


def test_the_attack_runs_where_only_torch_numpy_and_tqdm_are_installed() -> None:
    out = run(
        f"import sys; sys.modules.update(dict.fromkeys({HOSTS + EXTRAS}))\n"
        "import torch, art_logits\n"
        "x, y = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 1])\n"
        "result = art_logits.pgd(lambda x: x.flatten(1)[:, :3], x, y, eps=0.1)\n"
        "print(result.success.tolist())\n"
        "try:\n"
        "    art_logits.Records\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    assert "[True, True]" in out
    assert 'pip install "art-logits[evaluate]"' in out


def test_importing_the_package_imports_nothing_that_an_extra_brings() -> None:
    out = run(
        "import sys, torch; before = set(sys.modules)\n"
        "import art_logits\n"
        f"print([name for name in {HOSTS + EXTRAS} if name in set(sys.modules) - before])\n"
        "print(sorted(name for name in sys.modules if name.startswith('art_logits.')))\n"
    )
    assert out.splitlines()[0] == "[]"
    assert "art_logits.records" not in out
    assert "art_logits.attack" in out


def test_names_are_found_on_first_use_and_unknown_ones_are_not() -> None:
    assert set(dir(art_logits)) == set(art_logits.__all__)
    for name in art_logits.__all__:
        assert getattr(art_logits, name) is not None
    with pytest.raises(AttributeError, match="module 'art_logits' has no attribute 'evalute'"):
        art_logits.evalute  # noqa: B018


def test_one_version_everywhere() -> None:
    version = art_logits.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.?(dev|a|b|rc)\d+)?", version)
    assert importlib.metadata.version("art-logits") == version
    citation = ROOT.parent / "CITATION.cff"
    if citation.exists():  # absent from an installed wheel
        assert f"\nversion: {version}\n" in citation.read_text(encoding="utf-8")


def sources() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def module_of(path: Path) -> str:
    """``attack``, ``functional.logits``, ..., without the package's name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def floor_of(module: str) -> int:
    top = module.split(".")[0]
    return next((level for level, names in enumerate(FLOORS) if top in names), len(FLOORS))


def imports_at_import_time(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements that run with the module: not those in functions, nor for type checkers only."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending.extend(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))


def own_imports(path: Path) -> Iterator[str]:
    """Modules of the package that a module imports at import time, without the package's name."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in imports_at_import_time(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif node.level:
            above = ["art_logits", *package[: len(package) - node.level + 1]]
            base = above + (node.module.split(".") if node.module else [])
            names = [[*base, alias.name] for alias in node.names] if not node.module else [base]
        else:
            base = (node.module or "").split(".")
            plain = base in (["art_logits"], ["art_logits", "functional"])
            names = [[*base, alias.name] for alias in node.names] if plain else [base]
        yield from (".".join(name[1:]) for name in names if name[0] == "art_logits" and len(name) > 1)


def test_the_layering_test_sees_imports() -> None:
    """It could not fail if it saw none."""
    attack = set(own_imports(ROOT / "attack.py"))
    assert {"_checks", "balls", "functional.logits", "prepare", "types"} <= attack
    assert {"functional.classwise", "records"} <= set(own_imports(ROOT / "analysis.py"))


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_imports_point_downward(path: Path) -> None:
    module = module_of(path)
    if module in ("", "__main__"):
        return  # the package itself re-exports from above, on first use
    too_high = [name for name in own_imports(path) if floor_of(name) > floor_of(module)]
    assert too_high == []


def test_no_import_cycles() -> None:
    graph = {module_of(path): set(own_imports(path)) for path in sources() if module_of(path)}
    finished: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module not in finished:
            for name in graph.get(module, ()):
                visit(name, (*trail, module))
            finished.add(module)

    for module in graph:
        visit(module, ())


def imported_packages(path: Path, *, lazily: bool) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if lazily else imports_at_import_time(tree)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_the_core_imports_no_host(path: Path) -> None:
    assert not imported_packages(path, lazily=True) & set(HOSTS)


def test_the_plugin_package_imports_no_host() -> None:
    import art_logits.plugins

    assert art_logits.plugins.__file__ is not None
    assert not imported_packages(Path(art_logits.plugins.__file__), lazily=True) & set(HOSTS)


LOWER = [path for path in sources() if floor_of(module_of(path)) <= 2 and module_of(path) != "records"]


@pytest.mark.parametrize("path", LOWER, ids=module_of)
def test_the_lower_floors_need_torch_and_numpy_alone(path: Path) -> None:
    foreign = imported_packages(path, lazily=False) - set(sys.stdlib_module_names)
    assert foreign <= {"torch", "numpy", "art_logits"}


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_public_things_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "module"
    public = [
        node
        for parent in [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name[0] != "_")]
        for node in parent.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_"
    ]
    assert [node.name for node in public if not ast.get_docstring(node)] == []
