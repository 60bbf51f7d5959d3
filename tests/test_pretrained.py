from __future__ import annotations

from urllib.error import URLError

import pytest
import torch
from torch import nn

from art_logits.models import load_model, model_hash
from art_logits.normalize import Normalize
from art_logits.pretrained import Pretrained, Resize

torchvision = pytest.importorskip("torchvision")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and none of the machine's caches."""

    def refuse(*args, **kwargs):
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))


def test_torchvisions_mean_and_std_are_inside():
    model = load_model("torchvision:mobilenet_v3_small:weights=none,num_classes=7")
    assert isinstance(model, Pretrained)
    assert not model.training
    inputs = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        assert torch.equal(model(inputs), model.network((inputs - mean) / std))
    assert model(inputs).shape == (2, 7)
    assert model.native_size == 224


def test_random_weights_are_the_same_every_time_and_leave_the_generator_alone():
    spec = "torchvision:mobilenet_v3_small:weights=none"
    first = model_hash(load_model(spec))
    torch.rand(1)  # the generator stands elsewhere now
    state = torch.get_rng_state()
    assert model_hash(load_model(spec)) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_inputs_are_scaled_inside_only_where_asked_for():
    model = load_model("torchvision:mobilenet_v3_small:weights=none,input_size=64")
    seen = []
    model.network.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    model(torch.rand(1, 3, 20, 24))
    assert seen == [(1, 3, 64, 64)]
    # In both directions, with gradients.
    inputs = torch.rand(1, 1, 4, 4, requires_grad=True)
    Resize(8)(inputs).sum().backward()
    assert bool((inputs.grad > 0).all())
    assert Resize(2)(torch.full((1, 1, 4, 4), 0.5)).allclose(torch.tensor(0.5))
    assert repr(Resize(8)) == "Resize(size=8)"


def test_a_checkpoint_has_the_librarys_keys_and_the_datas_classes(tmp_path):
    network = torchvision.models.mobilenet_v3_small(num_classes=5)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    model = load_model("torchvision:mobilenet_v3_small", checkpoint=tmp_path / "weights.pt", num_classes=5)
    assert torch.equal(model.network.classifier[-1].weight, network.classifier[-1].weight)
    with pytest.raises(ValueError, match=r"classifier.3.weight \(5, 1024\) instead of \(6, 1024\)"):
        load_model(
            "torchvision:mobilenet_v3_small:num_classes=6", checkpoint=tmp_path / "weights.pt", num_classes=5
        )


@pytest.mark.usefixtures("offline")
def test_weights_that_cannot_be_had_are_told():
    with pytest.raises(OSError, match=r"resnet18': its weights could not be loaded \(.*no route"):
        load_model("torchvision:resnet18")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision:resnet17", r"torchvision has no classifier 'resnet17' .*\(did you mean resnet"),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision has no classifier"),
        ("torchvision:resnet18:weight=none", r"'weight' \(did you mean weights"),
        ("torchvision:resnet18:weights=V1", "weights must be one of IMAGENET1K_V1, none, got 'V1'"),
        ("torchvision:resnet18:num_classes=many", "option 'num_classes': expected an integer"),
        ("torchvision:resnet18:weights=none,num_classes=0", "num_classes must be at least 1, got 0"),
        ("torchvision:resnet18:input_size=0", "input_size must be at least 1"),
        ("torchvision:resnet18:", "expected key=value after the colon"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(ValueError, match=message):
        load_model(spec)


def test_timms_mean_and_std_are_inside():
    pytest.importorskip("timm")
    model = load_model("timm:mobilenetv3_small_050:weights=none,num_classes=4")
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 4)
    assert model.normalize.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    vit = load_model("timm:test_vit:weights=none,num_classes=3,input_size=160")
    assert vit.normalize.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert vit(torch.rand(1, 3, 32, 32)).shape == (1, 3)
    assert vit.native_size == 160


def test_bad_timm_specs(monkeypatch):
    timm = pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"timm has no classifier 'resnet19' .*\(did you mean resnet"):
        load_model("timm:resnet19")
    with pytest.raises(ValueError, match=r"weights must be one of a1_in1k, .*got 'zzz'"):
        load_model("timm:resnet18.zzz")

    def offline(name, pretrained, **options):
        raise RuntimeError(f"no connection for {name} {pretrained}")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(OSError, match=r"could not be loaded \(no connection for resnet18.a2_in1k True\)"):
        load_model("timm:resnet18:weights=a2_in1k")
    with pytest.raises(ValueError, match="could not be built: no connection for resnet18 False"):
        load_model("timm:resnet18:weights=none")


def test_mean_and_std_go_around_a_factorys_model():
    plain = "art_logits.models:mnist_convnet"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = load_model(plain)
        torch.manual_seed(0)
        model = load_model(plain, mean=[0.1307], std=[0.3081])
    inputs = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(model(inputs), expected(Normalize([0.1307], [0.3081])(inputs)))
    colour = load_model("torch.nn:Identity", in_channels=3, mean=[0.5], std=[0.25, 0.5, 1.0])
    assert colour(torch.ones(1, 3, 1, 1)).flatten().tolist() == [2.0, 1.0, 0.5]
    assert isinstance(colour, nn.Sequential)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("torch.nn:Identity", {"mean": [0.5]}, "mean and std must be given together"),
        ("torch.nn:Identity", {"std": [0.5]}, "mean and std must be given together"),
        ("torch.nn:Identity", {"mean": [0.5], "std": [0.0]}, "std must be positive"),
        ("torch.nn:Identity", {"mean": [0.5] * 3, "std": [0.5] * 2}, "one value per channel, got 3 and 2"),
        ("digits-at", {"mean": [0.5], "std": [0.5]}, "'digits-at' has its own"),
        ("torchvision:resnet18", {"mean": [0.5], "std": [0.5]}, "'torchvision:resnet18' has its own"),
    ],
)
def test_bad_mean_and_std(spec, options, message):
    with pytest.raises(ValueError, match=message):
        load_model(spec, **options)
