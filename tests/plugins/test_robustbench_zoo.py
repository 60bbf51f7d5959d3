from __future__ import annotations

import functools
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from art_logits.models import convnet, load_checkpoint

if find_spec("robustbench") is None:
    pytest.skip("needs robustbench", allow_module_level=True)

from art_logits.plugins.robustbench import _host, load_model, model_zoo, register, unregister, zoo

NAME = "Wong2020Fast"
HTML = b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head></html>" + b" " * 120


class Opened:
    """What unpickling a checkpoint must never do."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('a checkpoint ran code')",)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo folder with a random ``Wong2020Fast``."""
    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = architecture()
    path = file_of(folder)
    path.parent.mkdir(parents=True)
    torch.save(model.state_dict(), path)
    return folder


def architecture() -> nn.Module:
    enums, zoo_of = (_host.robustbench(f"model_zoo.{name}") for name in ("enums", "models"))
    models = zoo_of.model_dicts[enums.BenchmarkDataset.cifar_10][enums.ThreatModel.Linf]
    model: nn.Module = models[NAME]["model"]()
    return model


def file_of(folder: Path, name: str = NAME) -> Path:
    return folder / "cifar10" / "Linf" / f"{name}.pt"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was touched")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(_host.robustbench("utils"), "download_gdrive_new", refuse)


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes | Exception | None], list[str]]:
    """Replace RobustBench's downloader by one that brings these bytes, nothing, or fails."""

    def bring(content: bytes | Exception | None) -> list[str]:
        asked: list[str] = []

        def download(gdrive_id: str, path: Any) -> None:
            asked.append(gdrive_id)
            if isinstance(content, Exception):
                Path(path).write_bytes(b"half of it")
                raise content
            if content is not None:
                Path(path).write_bytes(content)

        monkeypatch.setattr(_host.robustbench("utils"), "download_gdrive_new", download)
        return asked

    return bring


@pytest.fixture
def own() -> Iterator[Callable[..., str]]:
    """Registers a model of our own, and takes it out again."""
    names: list[str] = []

    def add(name: str = "Own2024Model", factory: Any = convnet, **options: Any) -> str:
        register(name, factory, **options)
        names.append(name)
        return name

    yield add
    for name in names:
        unregister(name)


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestImport:
    def test_without_pkg_resources_and_autoattack_and_nothing_stays_behind(self) -> None:
        out = run(
            "import importlib.abc, sys\n"
            "class Gone(importlib.abc.MetaPathFinder):\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name.partition('.')[0] in ('pkg_resources', 'autoattack'):\n"
            "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
            "sys.meta_path.insert(0, Gone())\n"
            "from art_logits.plugins.robustbench import load_model, zoo\n"
            "print('robustbench' in sys.modules, 'timm' in sys.modules)\n"
            "from art_logits.plugins.robustbench._host import robustbench\n"
            "loaders = robustbench('loaders')\n"
            "ids = loaders.pkg_resources.resource_filename('robustbench.loaders', 'helper_files')\n"
            "print(len(open(ids + '/imagenet_test_image_ids.txt').readlines()))\n"
            "print([name for name in sys.modules if name.startswith(('pkg_resources', 'autoattack'))])\n"
            "import robustbench\n"
            "print(robustbench.benchmark.__module__)\n"
            "try:\n"
            "    import autoattack\n"
            "except ImportError as error:\n"
            "    print(error)\n"
        )
        lines = out.splitlines()
        assert lines[-5:] == [
            "False False",
            "5000",
            "[]",
            "robustbench.eval",
            "No module named 'autoattack'",
        ]

    def test_without_the_host(self) -> None:
        out = run(
            "import sys; sys.modules['robustbench'] = None\n"
            "try:\n"
            "    import art_logits.plugins.robustbench\n"
            "except ImportError as error:\n"
            "    print(error)\n"
        )
        assert 'needs robustbench, which is not installed: pip install "art-logits[robustbench]"' in out


class TestLoadModel:
    @pytest.mark.usefixtures("no_network")
    def test_a_file_that_is_there_needs_no_network(self, weights: Path) -> None:
        model = load_model(NAME, dataset="cifar10", threat_model="Linf", model_dir=str(weights))
        assert not model.training
        state = torch.load(file_of(weights), weights_only=True)
        assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
        assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)

    @pytest.mark.usefixtures("no_network")
    def test_positional_arguments_and_enumerations_as_in_robustbench(self, weights: Path) -> None:
        enums = _host.robustbench("model_zoo.enums")
        model = load_model(NAME, weights, enums.BenchmarkDataset.cifar_10, enums.ThreatModel.Linf)
        assert isinstance(model, nn.Module)

    def test_a_missing_file_is_downloaded_by_robustbench(
        self, weights: Path, tmp_path: Path, downloads: Callable[..., list[str]]
    ) -> None:
        asked = downloads(file_of(weights).read_bytes())
        load_model(NAME, model_dir=tmp_path)
        assert asked == [model_zoo._gdrive_ids(model_zoo._entry(NAME, "cifar10", "Linf"))[0]]
        assert sorted(file_of(tmp_path).parent.iterdir()) == [file_of(tmp_path)]
        load_model(NAME, model_dir=tmp_path)
        assert len(asked) == 1

    @pytest.mark.parametrize(
        ("content", "error", "message"),
        [
            (HTML, ValueError, "brought an HTML page, not weights, and was removed.*drive.google.com/uc"),
            (b"PK\x03\x04 cut", ValueError, "brought no checkpoint .*cannot be read as a torch state dict"),
            (None, OSError, r"could not be downloaded \(OSError: no file came\).*save it as"),
            (RuntimeError("quota\nmore"), OSError, r"could not be downloaded \(RuntimeError: quota\)"),
            (RuntimeError(), OSError, r"could not be downloaded \(RuntimeError: no reason given\)"),
        ],
    )
    def test_a_download_that_brings_no_weights_leaves_nothing(
        self,
        tmp_path: Path,
        downloads: Callable[..., list[str]],
        content: bytes | Exception | None,
        error: type[Exception],
        message: str,
    ) -> None:
        downloads(content)
        with pytest.raises(error, match=message):
            load_model(NAME, model_dir=tmp_path)
        assert list(file_of(tmp_path).parent.iterdir()) == []

    @pytest.mark.usefixtures("no_network")
    def test_an_html_page_in_the_place_of_weights_is_moved_aside(self, tmp_path: Path) -> None:
        path = file_of(tmp_path)
        path.parent.mkdir(parents=True)
        path.write_bytes(HTML)
        with pytest.raises(
            ValueError, match=r"is an HTML page, not weights.* now lies at .*Wong2020Fast.pt.html"
        ):
            load_model(NAME, model_dir=tmp_path)
        assert [each.name for each in path.parent.iterdir()] == ["Wong2020Fast.pt.html"]

    @pytest.mark.usefixtures("no_network")
    def test_code_in_a_checkpoint_is_not_run(self, tmp_path: Path) -> None:
        path = file_of(tmp_path)
        path.parent.mkdir(parents=True)
        torch.save({"state_dict": Opened()}, path)
        with pytest.raises(ValueError, match="contains pickled Python objects"):
            load_model(NAME, model_dir=tmp_path)

    @pytest.mark.usefixtures("no_network")
    def test_weights_of_another_model(self, tmp_path: Path) -> None:
        path = file_of(tmp_path)
        path.parent.mkdir(parents=True)
        torch.save(nn.Linear(2, 2).state_dict(), path)
        with pytest.raises(
            ValueError, match=r"does not fit cifar10/Linf/Wong2020Fast: RuntimeError: .*Missing key"
        ):
            load_model(NAME, model_dir=tmp_path)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                ("Wong2020Fst",),
                r"for cifar10/Linf, got 'Wong2020Fst' \(did you mean Wong2020Fast.*zoo\(\) lists",
            ),
            ((NAME, ".", "cifar"), "dataset must be one of cifar10, cifar100, imagenet, got 'cifar'"),
            ((NAME, ".", "cifar10", "linf"), "threat_model must be one of Linf, .*did you mean Linf"),
        ],
    )
    def test_unknown_names(self, arguments: tuple[str, ...], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_model(*arguments)

    def test_ensembles_have_several_files(self) -> None:
        entry = model_zoo._entry("Diffenderfer2021Winning_LRR_CARD_Deck", "cifar10", "corruptions_3d")
        names = [path.name for path in entry.files("models")]
        assert names[0] == "Diffenderfer2021Winning_LRR_CARD_Deck.pt_m0.pt"
        assert len(names) == len(model_zoo._gdrive_ids(entry)) > 1

    @pytest.mark.parametrize(
        ("name", "dataset"), [("Debenedetti2022Light_XCiT-S12", "cifar10"), ("Standard_R50", "imagenet")]
    )
    def test_models_of_timm_and_torchvision_are_left_to_these(
        self, name: str, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: dict[str, Any] = {}

        def load(model_name: str, model_dir: Path, **options: Any) -> nn.Module:
            asked.update(options, name=model_name)
            return nn.Identity()

        monkeypatch.setattr(_host.robustbench("utils"), "load_model", load)
        load_model(name, tmp_path, dataset)
        assert asked == {"name": name, "dataset": dataset, "threat_model": "Linf"}
        assert list(tmp_path.iterdir()) == []


class TestZoo:
    def test_table(self, weights: Path) -> None:
        table = zoo(weights)
        columns = ["name", "architecture", "dataset", "threat_model", "clean_accuracy", "robust_accuracy"]
        assert list(table.columns) == [*columns, "best_known", "present"]
        row = table.set_index(["dataset", "threat_model", "name"]).loc[("cifar10", "Linf", NAME)]
        assert row["architecture"] == "PreActResNet-18"
        assert (row["clean_accuracy"], row["robust_accuracy"]) == (0.8334, 0.4321)
        assert table["present"].sum() == 1
        assert row["present"]
        assert table[["dataset", "threat_model", "name"]].duplicated().sum() == 0
        counts = table.groupby(["dataset", "threat_model"]).size()
        assert counts["cifar10", "Linf"] >= 76
        # What the installed RobustBench adds after our table was made has no figures, and only that.
        assert table["clean_accuracy"].notna().mean() > 0.9
        assert (table["best_known"].dropna() <= table["robust_accuracy"].dropna()).all()
        assert table["clean_accuracy"].dropna().between(0, 1).all()

    @pytest.mark.parametrize(
        ("factory", "expected"),
        [
            (nn.Linear, "Linear"),
            (lambda: convnet(), "convnet"),
            (lambda: 1, "<lambda>"),
            (convnet, "convnet"),
            (functools.partial(convnet, width=4), "partial"),
        ],
    )
    def test_architecture_without_building_it(
        self, own: Callable[..., str], factory: Any, expected: str
    ) -> None:
        name = own(factory=factory)
        table = zoo("nowhere").set_index("name")
        assert table.loc[name, "architecture"] == expected
        assert table.loc[name, ["clean_accuracy", "robust_accuracy", "best_known"]].isna().all()


class TestRegister:
    def test_weights_at_the_zoos_path(self, own: Callable[..., str], tmp_path: Path) -> None:
        name = own()
        path = file_of(tmp_path, name)
        with pytest.raises(
            FileNotFoundError, match=r"there is no .*Own2024Model.pt.*register it with checkpoint"
        ):
            load_model(name, model_dir=tmp_path)
        path.parent.mkdir(parents=True)
        model = convnet()
        torch.save({"state_dict": model.state_dict()}, path)
        assert not zoo("nowhere").set_index("name").loc[name, "present"]
        assert zoo(tmp_path).set_index("name").loc[name, "present"]
        loaded = load_model(name, model_dir=tmp_path)
        host = _host.robustbench("utils").load_model(name, model_dir=tmp_path)
        x = torch.rand(2, 3, 32, 32)
        assert torch.equal(loaded(x), model.eval()(x))
        assert torch.equal(host(x), loaded(x))

    def test_weights_in_a_checkpoint_of_its_own(self, own: Callable[..., str], tmp_path: Path) -> None:
        model = convnet()
        torch.save(model.state_dict(), tmp_path / "net.pt")
        name = own(checkpoint=tmp_path / "net.pt")
        assert zoo("nowhere").set_index("name").loc[name, "present"]
        loaded = load_model(name, model_dir="nowhere")
        assert torch.equal(loaded.classifier.weight, model.classifier.weight)

    def test_weights_from_the_factory(self, own: Callable[..., str]) -> None:
        model = convnet()
        name = own(factory=lambda: model, pretrained=True)
        assert load_model(name) is model

    def test_weights_that_do_not_fit(self, own: Callable[..., str], tmp_path: Path) -> None:
        torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "net.pt")
        with pytest.raises(ValueError, match="does not fit ConvNet"):
            load_model(own(checkpoint=tmp_path / "net.pt"))

    def test_factory_that_returns_something_else(self, own: Callable[..., str]) -> None:
        with pytest.raises(TypeError, match="factory of cifar10/Linf/Own2024Model must return"):
            load_model(own(factory=lambda: "net", pretrained=True))

    @pytest.mark.parametrize(
        ("name", "options", "error", "message"),
        [
            (NAME, {}, ValueError, "cifar10/Linf/Wong2020Fast is in the zoo already"),
            ("a/b", {}, ValueError, "name must be one that can name a file"),
            ("", {}, ValueError, "name must be one that can name a file"),
            ("A", {"factory": nn.Linear(1, 1).weight}, TypeError, "factory must be callable"),
            (
                "A",
                {"checkpoint": "x.pt", "pretrained": True},
                ValueError,
                "must not be given with pretrained",
            ),
            ("A", {"checkpoint": "x.pt"}, FileNotFoundError, "there is no file 'x.pt'"),
            ("A", {"dataset": "mnist"}, ValueError, "dataset must be one of"),
        ],
    )
    def test_refused(self, name: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            register(name, options.pop("factory", convnet), **options)
        assert not [entry for entry in model_zoo._CUSTOM if entry.name == name]

    def test_it_can_be_taken_out_again(self) -> None:
        register("Own2024Model", convnet, threat_model="L2", pretrained=True)
        unregister("Own2024Model", threat_model="L2")
        with pytest.raises(ValueError, match="cifar10/L2/Own2024Model was not registered"):
            unregister("Own2024Model", threat_model="L2")
        with pytest.raises(ValueError, match="was not registered"):
            unregister(NAME)
        with pytest.raises(ValueError, match="got 'Own2024Model'"):
            load_model("Own2024Model", threat_model="L2")


def test_checkpoints_of_the_benchmarks_enter_the_zoo(own: Callable[..., str]) -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "models"
    if not folder.exists():
        pytest.skip("needs a clone")
    from art_logits.models import convnet_cifar

    name = own(factory=convnet_cifar, checkpoint=folder / "cifar10-convnet-at.safetensors")
    expected = convnet_cifar()
    load_checkpoint(expected, folder / "cifar10-convnet-at.safetensors")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(load_model(name)(x), expected.eval()(x))
