from __future__ import annotations

import hashlib
import inspect
import json
import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import datasets

from art_logits import Records, evaluate

if find_spec("robustbench") is None:
    pytest.skip("needs robustbench", allow_module_level=True)

from art_logits.plugins.robustbench import AutoAttack, _host, autoattack, benchmark, images

COUNT = 300
EPS = 4 / 255


class Pooled(nn.Module):
    """Linear logits of 4 x 4 mean colours."""

    def __init__(self, classes: int = 10, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(classes, 48, generator=generator)
        self.head = nn.Linear(48, classes)
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(-0.5 * weight.sum(dim=1))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(nn.functional.adaptive_avg_pool2d(inputs, 4).flatten(1))


class Idle:
    """A stand-in for AutoAttack that breaks every second sample of its class 0 and nothing else."""

    __module__ = "autoattack.autoattack"

    def __init__(self, model: Any, **options: Any) -> None:
        self.attacks_to_run = ["apgd-ce"]
        self.apgd_targeted = self.fab = type("Inner", (), {"n_target_classes": 9})()

    def run_standard_evaluation(self, x_orig: Tensor, y_orig: Tensor, bs: int) -> Tensor:
        return x_orig.clone()


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoattack, "host_class", lambda: Idle)


def pixels(count: int = COUNT) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 216, (count, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def truth() -> tuple[np.ndarray, np.ndarray]:
    """Images and labels: those that the model sees, but for every tenth."""
    array = pixels()
    with torch.no_grad():
        labels = Pooled()(tensor(array)).argmax(dim=1).numpy()
    labels[::10] = (labels[::10] + 1) % 10
    return array, labels


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, truth: tuple[np.ndarray, np.ndarray]) -> Path:
    """CIFAR-10 in its own format."""
    kind = datasets.CIFAR10
    folder = tmp_path / "data" / kind.base_folder
    folder.mkdir(parents=True)

    def write(name: str, content: Any) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()

    array, labels = truth
    names = [f"class {i}" for i in range(10)]
    meta = write(kind.meta["filename"], {"label_names": names})
    rows = array.transpose(0, 3, 1, 2).reshape(COUNT, -1)
    test = write("test_batch", {"data": rows, "labels": labels.tolist()})
    train = write("data_batch_1", {"data": rows, "labels": labels.tolist()})
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": meta})
    monkeypatch.setattr(kind, "train_list", [["data_batch_1", train]])
    monkeypatch.setattr(kind, "test_list", [["test_batch", test]])
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


class TestNumbers:
    def test_as_robustbench_itself(self, data_dir: Path) -> None:
        model = Pooled().eval()
        with torch.random.fork_rng():
            expected = _host.robustbench("eval").benchmark(
                model, n_examples=6, data_dir=str(data_dir), eps=EPS, batch_size=8
            )
        result = benchmark(model, n_examples=6, data_dir=data_dir, eps=EPS, batch_size=8)
        clean, robust = result
        assert (clean, robust) == pytest.approx(expected)
        assert 0 < robust < clean < 1
        assert result.records.attacks == ["autoattack"]
        config = result.records.manifest["identity"]["attacks"]["autoattack"]
        assert (config["version"], config["eps"], config["batch_size"]) == ("standard", EPS, 8)

    def test_the_signature_begins_with_robustbenchs(self) -> None:
        ours = inspect.signature(benchmark).parameters
        theirs = inspect.signature(_host.robustbench("eval").benchmark).parameters
        assert list(ours)[: len(theirs)] == list(theirs)
        for name, parameter in theirs.items():
            default = getattr(parameter.default, "value", parameter.default)
            assert ours[name].default == default, name

    def test_other_attacks(self, data_dir: Path, truth: tuple[np.ndarray, np.ndarray]) -> None:
        attacks = {"weak": "pgd:steps=1", "strong": AutoAttack(norm="L2", eps=0.1, attacks_to_run=["apgd-t"])}
        result = benchmark(
            Pooled().eval(),
            30,
            threat_model="L2",
            eps=0.1,
            data_dir=data_dir,
            attacks=attacks,
            progress=False,
        )
        direct = evaluate(
            Pooled(),
            (tensor(truth[0][:30]), torch.from_numpy(truth[1][:30])),
            attacks=attacks,
            norm="L2",
            eps=0.1,
        )
        assert result.clean == 27 / 30 == direct.correct().mean()
        assert result.robust == direct.robust().mean() < direct.survives("weak").mean()
        assert result.report.class_names == tuple(f"class {i}" for i in range(10))
        assert result.report.robust_accuracy == result.robust
        assert result.mce is None

    @pytest.mark.usefixtures("idle")
    def test_the_model_comes_back_in_its_mode_with_a_warning(self, data_dir: Path) -> None:
        model = Pooled().train()
        with pytest.warns(UserWarning, match=r"is \*not\* in eval mode"):
            benchmark(model, 3, data_dir=data_dir, eps=EPS, device="cpu")
        assert model.training

    @pytest.mark.usefixtures("idle")
    def test_all_images(self, data_dir: Path) -> None:
        assert len(benchmark(Pooled().eval(), None, data_dir=data_dir, eps=EPS).records) == COUNT

    @pytest.mark.usefixtures("idle")
    def test_preprocessing(self, data_dir: Path) -> None:
        def inverted(image: Image.Image) -> Tensor:
            return 1 - tensor(np.asarray(image)[None])[0]

        plain, other = (
            benchmark(Pooled().eval(), 20, data_dir=data_dir, eps=EPS, preprocessing=each).records
            for each in (None, inverted)
        )
        assert (plain.column("label") == other.column("label")).all()
        assert not np.allclose(plain.column("clean_logits"), other.column("clean_logits"))
        resized = benchmark(Pooled().eval(), 20, data_dir=data_dir, eps=EPS, preprocessing="Res224").records
        both = [each.column("clean_logits").ravel() for each in (plain, resized)]
        assert np.corrcoef(both)[0, 1] > 0.99

    def test_missing_data_are_downloaded(self, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def download(self: Any) -> None:
            asked.append(str(self.root))
            raise RuntimeError("no network")

        monkeypatch.setattr(datasets.CIFAR10, "download", download)
        with pytest.raises(OSError, match=r"could not be downloaded .* no network"):
            benchmark(Pooled().eval(), 3, data_dir=data_dir / "elsewhere", eps=EPS)
        assert asked == [str(data_dir / "elsewhere")]


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"eps": None}, ValueError, "eps must be given for the threat model Linf"),
            ({"dataset": "mnist"}, ValueError, "dataset must be one of cifar10"),
            ({"threat_model": "linf"}, ValueError, "threat_model must be one of Linf"),
            (
                {"n_examples": 301},
                ValueError,
                "n_examples must be at most 300, .*of cifar10, got 301",
            ),
            ({"n_examples": 0}, ValueError, "n_examples must be at least 1"),
            ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
            ({"to_disk": True}, ValueError, "model_name must be given with to_disk=True"),
            ({"threat_model": "corruptions", "attacks": "pgd"}, ValueError, "attacks must not be given"),
            ({"preprocessing": "Res225"}, ValueError, "preprocessing must be one of .*did you mean Res224"),
            (
                {"threat_model": "corruptions_3d"},
                ValueError,
                "threat_model must not be corruptions_3d for cifar10",
            ),
        ],
    )
    def test_arguments(
        self, data_dir: Path, options: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            benchmark(Pooled().eval(), **{"n_examples": 3, "data_dir": data_dir, "eps": EPS, **options})


class TestResume:
    @pytest.mark.usefixtures("idle")
    def test_an_interrupted_run_gives_the_same(self, data_dir: Path, tmp_path: Path) -> None:
        options: dict[str, Any] = {"data_dir": data_dir, "eps": EPS, "batch_size": 50, "n_examples": 290}
        expected = benchmark(Pooled().eval(), **options)

        class Failing(Pooled):
            calls = 0

            def forward(self, inputs: Tensor) -> Tensor:
                Failing.calls += 1
                if Failing.calls == 150:
                    raise KeyboardInterrupt
                return super().forward(inputs)

        state = tmp_path / "state"
        options["model_name"] = "pooled"
        with pytest.raises(KeyboardInterrupt):
            benchmark(Failing().eval(), **options, aa_state_path=state)
        done = len(list((state / "records").glob("part-*")))
        assert 0 < done < 3
        resumed = benchmark(Pooled().eval(), **options, aa_state_path=state)
        assert resumed == expected
        assert resumed.records.table.equals(expected.records.table)
        again = benchmark(Pooled().eval(), **options, aa_state_path=state)
        assert again.records.table.equals(expected.records.table)
        assert Records.load(state).attacks == ["autoattack"]

    @pytest.mark.usefixtures("idle")
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"eps": 0.01}, r"attacks\.autoattack\.eps"),
            ({"threat_model": "L2"}, r"attacks\.autoattack\.norm"),
            ({"n_examples": 4}, r"data\.hash"),
            ({"batch_size": 7}, r"attacks\.autoattack\.batch_size: 32 there, 7 now"),
            ({"seed": 1}, r"attacks\.autoattack\.seed"),
            ({"model": Pooled(seed=1).eval()}, r"model\.hash"),
            ({"attacks": {"autoattack": "pgd"}}, r"attacks\.autoattack\.callable"),
        ],
    )
    def test_another_run_is_refused(
        self, data_dir: Path, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        options = {"model": Pooled().eval(), "n_examples": 3, "data_dir": data_dir, "eps": EPS}
        options["aa_state_path"] = tmp_path / "state"
        benchmark(**options)
        with pytest.raises(ValueError, match=f"^aa_state_path: .*{message}.*Choose another aa_state_path"):
            benchmark(**{**options, **change})

    @pytest.mark.usefixtures("idle")
    def test_a_folder_of_something_else_is_refused(self, data_dir: Path) -> None:
        with pytest.raises(FileExistsError, match=r"^aa_state_path: .*is not empty and holds no run"):
            benchmark(Pooled().eval(), 3, data_dir=data_dir, eps=EPS, aa_state_path=data_dir)
        with pytest.raises(ValueError, match="labels must lie in"):
            benchmark(Pooled(2).eval(), 3, data_dir=data_dir, eps=EPS, aa_state_path=data_dir)

    def test_states_of_autoattack_are_refused(self, data_dir: Path, tmp_path: Path) -> None:
        (tmp_path / "state.json").write_text("{}")
        with pytest.raises(ValueError, match="aa_state_path must be a folder, got the file"):
            benchmark(Pooled().eval(), 3, data_dir=data_dir, eps=EPS, aa_state_path=tmp_path / "state.json")


class TestDisk:
    @pytest.mark.usefixtures("idle")
    def test_as_robustbench_writes_it_with_ours_beside(
        self, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        result = benchmark(Pooled().eval(), 30, data_dir=data_dir, eps=EPS, to_disk=True, model_name="Own")
        path = Path("model_info/cifar10/Linf/Own.json")
        written = json.loads(path.read_text())
        (tmp_path / "theirs").mkdir()
        monkeypatch.chdir(tmp_path / "theirs")
        enums = _host.robustbench("model_zoo.enums")
        place = (enums.BenchmarkDataset.cifar_10, enums.ThreatModel.Linf)
        _host.robustbench("utils").update_json(*place, "Own", result.clean, result.robust, EPS)
        assert written == json.loads(path.read_text())
        assert list(written) == list(json.loads(path.read_text()))
        assert written["clean_acc"] == "90.0"
        monkeypatch.chdir(tmp_path)
        # RobustBench reads every *.json of the folder as its own.
        assert list(path.parent.glob("*.json")) == [path]
        ours = json.loads((path.parent / "art-logits" / "Own.json").read_text())
        assert ours["robust_accuracy"] == result.robust
        assert ours["worst_class"]["name"].startswith("class ")
        assert ours["identity"]["attacks"]["autoattack"]["version"] == "standard"

    @pytest.mark.usefixtures("idle")
    def test_only_the_standard_version_is_called_autoattack(self, data_dir: Path) -> None:
        path = Path("model_info/cifar10/Linf/Own.json")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"link": "https://own", "autoattack_acc": "12.0", "clean_acc": "1.0"}))
        options: dict[str, Any] = {"data_dir": data_dir, "eps": EPS, "to_disk": True, "model_name": "Own"}
        attacks = {"part": AutoAttack(eps=EPS, attacks_to_run=["apgd-ce"]), "pgd": "pgd"}
        benchmark(Pooled().eval(), 30, **options, attacks=attacks)
        info = json.loads(path.read_text())
        assert (info["autoattack_acc"], info["clean_acc"], info["link"]) == ("12.0", "90.0", "https://own")
        result = benchmark(Pooled().eval(), 30, **options, attacks={**attacks, "aa": AutoAttack(eps=EPS)})
        # The stand-in breaks nothing, PGD does.
        assert json.loads(path.read_text())["autoattack_acc"] == "90.0"
        assert result.robust < 0.9


@pytest.fixture
def corrupted(data_dir: Path, truth: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    """CIFAR-10-C in its own format, of 40 images: noise that grows with the severity."""
    total = 40
    folder = data_dir / "CIFAR-10-C"
    folder.mkdir()
    made = {}
    for number, name in enumerate(_host.robustbench("data").CORRUPTIONS):
        rng = np.random.default_rng(number)
        steps = [
            np.clip(truth[0][:total] + rng.normal(0, 12 * s, (total, 1, 1, 3)), 0, 255).astype(np.uint8)
            for s in range(1, 6)
        ]
        made[name] = np.stack(steps)
        np.save(folder / f"{name}.npy", np.concatenate(steps))
    np.save(folder / "labels.npy", np.tile(truth[1][:total], 5))
    return made


class TestCorruptions:
    def accuracies(self, made: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, np.ndarray]:
        """Right or wrong, ``(severity, sample)``."""
        with torch.no_grad():
            return {
                name: np.stack([Pooled()(tensor(step)).argmax(dim=1).numpy() == labels for step in steps])
                for name, steps in made.items()
            }

    def test_class_by_class(
        self, data_dir: Path, corrupted: dict[str, np.ndarray], truth: tuple[np.ndarray, np.ndarray]
    ) -> None:
        result = benchmark(Pooled().eval(), 40, threat_model="corruptions", data_dir=data_dir)
        labels = truth[1][:40]
        hits = self.accuracies(corrupted, labels)
        assert result.clean == 0.9
        assert result.robust == pytest.approx(np.mean([value.mean() for value in hits.values()]))
        assert 0.1 < result.robust < 0.9
        assert len(result.records.attacks) == 75
        table = result.corruptions()
        assert list(table.columns) == ["class", "support", "clean", "corrupted", *corrupted]
        for row in range(10):
            mine = labels == row
            assert table["support"][row] == mine.sum()
            assert table["fog"][row] == pytest.approx(hits["fog"][:, mine].mean(), nan_ok=True)
        assert table["snow"][10] == pytest.approx(hits["snow"].mean())
        assert table["corrupted"][10] == pytest.approx(result.robust)
        assert table["class"].tolist() == [*(f"class {i}" for i in range(10)), ""]
        assert table["clean"][10] == 0.9

    def test_first_examples_of_another_folder(
        self, data_dir: Path, corrupted: dict[str, np.ndarray], truth: tuple[np.ndarray, np.ndarray]
    ) -> None:
        (data_dir / "CIFAR-10-C").rename(data_dir.parent / "CIFAR-10-C")
        result = benchmark(
            Pooled().eval(),
            7,
            threat_model="corruptions",
            data_dir=data_dir,
            corruptions_data_dir=data_dir.parent,
        )
        hits = self.accuracies({k: v[:, :7] for k, v in corrupted.items()}, truth[1][:7])
        assert result.robust == pytest.approx(np.mean([value.mean() for value in hits.values()]))

    def test_on_disk_and_relative_to_alexnet(
        self, data_dir: Path, corrupted: dict[str, np.ndarray], truth: tuple[np.ndarray, np.ndarray]
    ) -> None:
        options: dict[str, Any] = {"threat_model": "corruptions", "data_dir": data_dir, "to_disk": True}
        first = benchmark(Pooled().eval(), 40, **options, model_name="Own")
        assert first.mce is None
        folder = Path("model_info/cifar10/corruptions")
        info = json.loads((folder / "Own.json").read_text())
        assert info["corruptions_acc"] == str(round(first.robust * 100, 2))
        assert info["corruptions_mce"] is None
        table = pd.read_csv(folder / "unaggregated_results.csv", header=[0, 1], index_col=0)
        hits = self.accuracies(corrupted, truth[1][:40])
        assert table.loc["Own", ("fog", "3")] == pytest.approx(hits["fog"][2].mean())
        benchmark(Pooled(seed=1).eval(), 40, **options, model_name="AlexNet")
        result = benchmark(Pooled().eval(), 40, **options, model_name="Own")
        rows = pd.read_csv(folder / "unaggregated_results.csv", header=[0, 1], index_col=0)
        assert rows.index.tolist() == ["AlexNet", "Own"]
        errors = 1 - rows
        expected = np.mean(
            [errors.loc["Own"][name].mean() / errors.loc["AlexNet"][name].mean() for name in corrupted]
        )
        assert result.mce == pytest.approx(expected)
        assert json.loads((folder / "Own.json").read_text())["corruptions_mce"] == str(
            round(expected * 100, 2)
        )
        ours = json.loads((folder / "art-logits" / "Own.json").read_text())
        assert ours["corruptions"][-1]["corrupted"] == pytest.approx(result.robust)

    def test_resume_tells_other_images(self, data_dir: Path, corrupted: dict[str, np.ndarray]) -> None:
        options: dict[str, Any] = {"threat_model": "corruptions", "data_dir": data_dir}
        options["aa_state_path"] = data_dir.parent / "state"
        benchmark(Pooled().eval(), 5, **options)
        path = data_dir / "CIFAR-10-C" / "fog.npy"
        array = np.load(path)
        array[2 * 40 + 4] += 1
        np.save(path, array)
        with pytest.raises(ValueError, match=r"attacks\.fog-3\.sha256"):
            benchmark(Pooled().eval(), 5, **options)

    @pytest.mark.parametrize(
        ("name", "content", "error", "message"),
        [
            ("fog.npy", None, FileNotFoundError, "corruptions_data_dir: there is no file .*fog.npy"),
            ("fog.npy", b"<html>", ValueError, "fog.npy' cannot be read .* get it again"),
            ("fog.npy", np.zeros((200, 32, 32, 1), np.uint8), ValueError, r"images \(32, 32, 3\) of bytes"),
            ("fog.npy", np.zeros((20, 32, 32, 3), np.uint8), ValueError, "5 times at least 7 images"),
            ("labels.npy", np.arange(200) % 10, ValueError, "must hold the labels of the 7 clean images"),
            ("labels.npy", np.arange(5), ValueError, "must hold the labels of the 7 clean images"),
        ],
    )
    @pytest.mark.usefixtures("corrupted")
    def test_files_of_another_layout(
        self, data_dir: Path, name: str, content: Any, error: type[Exception], message: str
    ) -> None:
        path = data_dir / "CIFAR-10-C" / name
        path.unlink()
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            np.save(path, content)
        with pytest.raises(error, match=message):
            benchmark(Pooled().eval(), 7, threat_model="corruptions", data_dir=data_dir)

    def test_missing_images_are_downloaded(self, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []

        def download(*link: Any, save_dir: Path) -> None:
            asked.append((*link, save_dir))
            raise RuntimeError("no network")

        monkeypatch.setattr(_host.robustbench("data"), "zenodo_download", download)
        with pytest.raises(
            OSError, match=r"could not be downloaded .*no network.*zenodo.org/records/2535967"
        ):
            benchmark(Pooled().eval(), 7, threat_model="corruptions", data_dir=data_dir)
        assert asked == [("2535967", {"CIFAR-10-C.tar"}, data_dir)]

    @pytest.mark.usefixtures("idle")
    def test_attacks_have_no_such_table(self, data_dir: Path) -> None:
        with pytest.raises(ValueError, match="'autoattack' is an attack"):
            benchmark(Pooled().eval(), 3, data_dir=data_dir, eps=EPS).corruptions()


class TestImageNet:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        self.write(tmp_path / "val", count=6)
        return tmp_path

    def write(self, root: Path, count: int) -> None:
        """All 1000 class folders, and the first of RobustBench's 5000 images."""
        helpers = Path(_host.robustbench("loaders").__file__).parent / "helper_files"
        names = (helpers / "imagenet_test_image_ids.txt").read_text().split()
        for name in json.loads((helpers / "imagenet_class_to_id_map.json").read_text()):
            (root / name).mkdir(parents=True)
        rng = np.random.default_rng(0)
        for name in names[:count]:
            Image.fromarray(rng.integers(0, 256, (260, 300, 3), dtype=np.uint8)).save(root / name)

    @pytest.mark.usefixtures("idle")
    def test_the_first_of_robustbenchs_images(self, folder: Path) -> None:
        model = Pooled(1000).eval()
        options: dict[str, Any] = {"dataset": "imagenet", "data_dir": folder, "eps": EPS}
        result = benchmark(model, 4, **options, preprocessing="Res256Crop224")
        host = _host.robustbench("data")
        x, y = host.load_imagenet(4, str(folder), host.PREPROCESSINGS["Res256Crop224"])
        assert result.records.column("label").tolist() == y.tolist()
        with torch.no_grad():
            assert np.allclose(result.records.column("clean_logits"), model(x), atol=1e-5)
        assert result.records.class_names[0] == "n01440764"
        named = benchmark(model, 4, **options, model_name="Salman2020Do_R18")
        assert (named.records.column("clean_logits") == result.records.column("clean_logits")).all()

    def test_refused(self, folder: Path) -> None:
        options: dict[str, Any] = {"dataset": "imagenet", "eps": EPS}
        with pytest.raises(ValueError, match="preprocessing must be given for imagenet unless model_name"):
            benchmark(Pooled(1000).eval(), 4, data_dir=folder, **options)
        with pytest.raises(ValueError, match=r"preprocessing must be given .* got model_name 'Nobody'"):
            benchmark(Pooled(1000).eval(), 4, data_dir=folder, **options, model_name="Nobody")
        with pytest.raises(ValueError, match="n_examples must be at most 5000"):
            benchmark(Pooled(1000).eval(), data_dir=folder, preprocessing="Res224", **options)
        (folder / "val" / "n02066245").rmdir()  # none of the 5000 images is of this class
        with pytest.raises(ValueError, match=r"expected folders of all 1000 classes .*got 999"):
            benchmark(Pooled(1000).eval(), 4, data_dir=folder, preprocessing="Res224", **options)
        with pytest.raises(FileNotFoundError, match="expected ImageNet's images as"):
            benchmark(Pooled(1000).eval(), 4, data_dir=folder / "no", preprocessing="Res224", **options)

    def test_corruptions(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        enums, host = _host.robustbench("model_zoo.enums"), _host.robustbench("data")
        kinds = {enums.ThreatModel.corruptions: ("fog",)}
        monkeypatch.setitem(host.CORRUPTIONS_DICT, enums.BenchmarkDataset.imagenet, kinds)
        for severity in range(1, 6):
            self.write(folder / "ImageNet-C" / "fog" / str(severity), count=3)
        options: dict[str, Any] = {"dataset": "imagenet", "threat_model": "corruptions", "data_dir": folder}
        result = benchmark(Pooled(1000).eval(), 3, **options, preprocessing="Res224")
        assert result.records.attacks == [f"fog-{severity}" for severity in range(1, 6)]
        clean, foggy = (result.records.column(name) for name in ("clean_logits", "fog-5.logits"))
        assert np.allclose(clean, foggy, atol=1e-4)  # the same pixels were written
        with pytest.raises(FileNotFoundError, match="corruptions_data_dir: there is"):
            benchmark(Pooled(1000).eval(), 4, **options, preprocessing="Res224")


def test_default_radii_are_those_of_the_leaderboards() -> None:
    assert set(images.DEFAULT_EPS) == {"cifar10", "cifar100", "imagenet"}
    assert images.DEFAULT_EPS["imagenet"]["Linf"] == 4 / 255


def test_callables_are_models_too(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoattack, "host_class", lambda: Idle)
    model = Pooled().eval()

    def plain(inputs: Tensor) -> Tensor:
        return model(inputs)

    options: dict[str, Any] = {"data_dir": data_dir, "eps": EPS}
    assert benchmark(plain, 20, **options) == benchmark(model, 20, **options)
