from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from art_logits import models
from art_logits.models import DigitsNet, Normalize, load_checkpoint, load_model, model_hash, model_names

FACTORIES = """
import torch
from torch import nn
from sibling import WIDTH

TEXT = "no factory"

class Net(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.body = nn.Linear(WIDTH, classes)
    def forward(self, x):
        return self.body(x.flatten(1))

def make_net():
    return Net()

def make_for(num_classes, in_channels):
    return Net(num_classes * in_channels)

def make_number():
    return 3

def make_error():
    raise RuntimeError("no luck")
"""


@pytest.fixture
def factory_file(tmp_path: Path) -> Path:
    (tmp_path / "sibling.py").write_text("WIDTH = 64\n")
    path = tmp_path / "nets.py"
    path.write_text(FACTORIES)
    return path


@pytest.fixture
def digits_net() -> DigitsNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DigitsNet()


@pytest.mark.parametrize(
    ("factory", "shape", "limit"),
    [
        (models.DigitsNet, (2, 1, 8, 8), 48_000),
        (models.convnet, (2, 3, 32, 32), 500_000),
        (models.convnet_cifar, (2, 3, 32, 32), 500_000),
        (models.resnet_small, (2, 3, 32, 32), 500_000),
        (models.resnet_cifar, (2, 3, 32, 32), 500_000),
        (models.mnist_convnet, (2, 1, 28, 28), 480_000),
    ],
)
def test_architectures_give_logits_and_stay_small(factory, shape, limit):
    model = factory(num_classes=7).eval()
    assert model(torch.rand(shape)).shape == (2, 7)
    assert sum(weight.numel() for weight in model.parameters()) < limit


@pytest.mark.parametrize("factory", [models.convnet, models.resnet_small])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_other_numbers_of_channels(factory, channels):
    assert factory(channels, 5, width=4).eval()(torch.rand(1, channels, 16, 16)).shape == (1, 5)


def test_normalize_works_per_channel():
    out = Normalize((0.0, 0.5), (1.0, 0.25))(torch.ones(1, 2, 1, 1))
    assert out.flatten().tolist() == [1.0, 2.0]
    assert "0.25" in repr(Normalize((0.5,), (0.25,)))


def test_normalize_refuses_bad_statistics():
    with pytest.raises(ValueError, match="one value per channel, got 1 and 2"):
        Normalize((0.0,), (1.0, 1.0))
    with pytest.raises(ValueError, match="std must be positive"):
        Normalize((0.0,), (0.0,))
    with pytest.raises(ValueError, match=r"inputs must have shape \(N, 3, H, W\) for this model"):
        models.convnet()(torch.rand(1, 1, 32, 32))


@pytest.mark.parametrize("name", model_names())
def test_bundled_models_load_with_their_weights_in_eval_mode(name):
    model = load_model(name)
    assert not any(module.training for module in model.modules())
    assert model_hash(model) == model_hash(load_model(name))
    file = Path(models.__file__).parent / "weights" / f"{name}.safetensors"
    assert file.stat().st_size < 200_000


@pytest.mark.parametrize(("name", "least"), [("digits-at", 0.95), ("digits-standard", 0.97)])
def test_bundled_models_know_the_held_out_digits(name, least):
    from art_logits.data import load_data

    inputs, labels = load_data("digits").batch(slice(None))
    with torch.no_grad():
        accuracy = (load_model(name)(inputs).argmax(dim=1) == labels).float().mean()
    assert accuracy >= least


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match=r"expected one of digits-at, .*did you mean digits-at"):
        load_model("digits-ta")
    with pytest.raises(ValueError, match=r"name the factory in the file too, as net.py:FACTORY"):
        load_model("net.py")
    with pytest.raises(ValueError, match="looks like a checkpoint"):
        load_model("weights.pt")


def test_factory_of_a_file_finds_its_sibling_and_leaves_the_path_alone(factory_file, monkeypatch):
    import sys

    before = list(sys.path)
    model = load_model(f"{factory_file}:make_net")
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert not model.training
    assert sys.path == before


def test_factory_gets_what_it_requires(factory_file):
    model = load_model(f"{factory_file}:make_for", num_classes=4, in_channels=2)
    assert model.body.out_features == 8
    assert load_model("torch.nn:Identity", num_classes=4).training is False


def test_factory_of_a_module():
    assert isinstance(load_model("art_logits.models:mnist_convnet"), models.MnistConvNet)


def test_bad_factories_are_named(factory_file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*nowhere.py'"):
        load_model(f"{tmp_path / 'nowhere.py'}:make_net")
    with pytest.raises(ValueError, match=r"has no factory 'make_ne' \(did you mean make_net"):
        load_model(f"{factory_file}:make_ne")
    with pytest.raises(TypeError, match="TEXT must be callable, got str"):
        load_model(f"{factory_file}:TEXT")
    with pytest.raises(TypeError, match=r"must return a torch.nn.Module, got int"):
        load_model(f"{factory_file}:make_number")
    with pytest.raises(ValueError, match="the factory raised RuntimeError: no luck"):
        load_model(f"{factory_file}:make_error")
    with pytest.raises(ValueError, match="the factory raised TypeError"):
        load_model(f"{factory_file}:make_for")
    with pytest.raises(ValueError, match=r"importing 'no.such.module' raised ModuleNotFoundError"):
        load_model("no.such.module:net")
    with pytest.raises(TypeError, match=r"must return a torch.nn.Module, got dict"):
        load_model("builtins:dict")
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    with pytest.raises(ValueError, match="raised ZeroDivisionError"):
        load_model(f"{broken}:net")


@pytest.mark.parametrize("wrap", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_torch_checkpoints_in_their_usual_wrappings(tmp_path, digits_net, wrap, prefix):
    state = {prefix + key: value for key, value in digits_net.state_dict().items()}
    path = tmp_path / "weights.pt"
    torch.save(state if wrap is None else {wrap: state, "epoch": 3}, path)
    assert model_hash(load_model("digits-at", checkpoint=path)) == model_hash(digits_net)


def test_safetensors_checkpoint_without_batch_counters(tmp_path, digits_net):
    state = {k: v for k, v in digits_net.state_dict().items() if not k.endswith("num_batches_tracked")}
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
    model = load_model("art_logits.models:DigitsNet", checkpoint=tmp_path / "weights.safetensors")
    assert torch.equal(model.classifier.weight, digits_net.classifier.weight)


def test_checkpoints_that_do_not_fit_name_the_keys(tmp_path, digits_net):
    state = digits_net.state_dict()
    state["extra.weight"] = torch.zeros(1)
    state["classifier.bias"] = torch.zeros(3)
    del state["classifier.weight"]
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(
        ValueError,
        match=r"1 keys missing: classifier.weight; 1 keys unexpected: extra.weight; "
        r"1 keys of another shape: classifier.bias \(3,\) instead of \(10,\)",
    ):
        load_checkpoint(DigitsNet(), tmp_path / "weights.pt")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"keys missing: .* and \d+ more; 1 keys unexpected: a"):
        load_checkpoint(DigitsNet(), tmp_path / "other.safetensors")


class _Payload:
    def __reduce__(self):
        return (print, ("code of a checkpoint ran",))


def test_pickled_code_is_refused_and_not_run(tmp_path, digits_net, capsys):
    for name, content in {"module.pt": digits_net, "code.pt": {"state_dict": _Payload()}}.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(
            ValueError, match=r"pickled Python objects \(.*\), which could run code, and is refused"
        ):
            load_checkpoint(DigitsNet(), tmp_path / name)
    assert "ran" not in capsys.readouterr().out


def test_unreadable_checkpoints(tmp_path, digits_net):
    def path(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    torch.save(digits_net.state_dict(), tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    safe = safetensors.torch.save(digits_net.state_dict())
    net = DigitsNet()
    with pytest.raises(FileNotFoundError, match=r"checkpoint: there is no file '.*none.pt'"):
        load_checkpoint(net, tmp_path / "none.pt")
    with pytest.raises(ValueError, match="is empty"):
        load_checkpoint(net, path("empty.pt", b""))
    with pytest.raises(ValueError, match="is an HTML page, not weights"):
        load_checkpoint(net, path("page.safetensors", b"\n<!DOCTYPE html><html>log in</html>"))
    with pytest.raises(ValueError, match="cannot be read as a torch state dict"):
        load_checkpoint(net, path("cut.pt", whole[: len(whole) // 2]))
    with pytest.raises(ValueError, match=r"cannot be read as a torch state dict \(unknown pickle\)"):
        load_checkpoint(net, path("noise.pt", b"what is this?" * 9))
    with pytest.raises(ValueError, match="is no complete safetensors file"):
        load_checkpoint(net, path("cut.safetensors", safe[: len(safe) // 2]))
    with pytest.raises(ValueError, match="cannot be read as a torch state dict"):
        load_checkpoint(net, path("old.pt", pickle.dumps({"a": list(range(99))}, protocol=2)[:20]))


def test_checkpoints_that_hold_something_else(tmp_path):
    for content, message in [
        (torch.zeros(3), "got Tensor"),
        ({}, "got an empty one"),
        ({"epoch": 3, "weights": torch.zeros(1)}, "other values under epoch"),
    ]:
        torch.save(content, tmp_path / "odd.pt")
        with pytest.raises(ValueError, match=f"must hold a state dict .*{message}"):
            load_checkpoint(DigitsNet(), tmp_path / "odd.pt")


def test_hash_sees_weights_names_dtypes_and_shapes(digits_net):
    first = model_hash(digits_net)
    with torch.no_grad():
        digits_net.classifier.bias[0] += 1
    assert model_hash(digits_net) != first
    assert model_hash(nn.Linear(2, 3).to(torch.bfloat16)) is not None
    zeros = [nn.Module() for _ in range(4)]
    zeros[0].register_buffer("a", torch.zeros(4))
    zeros[1].register_buffer("b", torch.zeros(4))
    zeros[2].register_buffer("a", torch.zeros(2, 2))
    zeros[3].register_buffer("a", torch.zeros(4, dtype=torch.int32))
    assert len({model_hash(module) for module in zeros}) == 4


def test_hash_ignores_memory_layout_and_is_none_for_callables():
    net = nn.Conv2d(3, 4, 3)
    before = model_hash(net)
    assert model_hash(net.to(memory_format=torch.channels_last)) == before
    assert model_hash(lambda x: x) is None

    class Extra(nn.Linear):
        def get_extra_state(self):
            return "note"

    assert model_hash(Extra(1, 1)) is not None
