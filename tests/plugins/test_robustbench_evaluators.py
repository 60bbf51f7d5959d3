from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from art_logits import ClasswiseReport, LogitReport, Records, TemperaturePGD, evaluate
from art_logits.data import load_data
from art_logits.models import convnet, load_model

if find_spec("robustbench") is None:
    pytest.skip("needs robustbench", allow_module_level=True)

from art_logits.plugins.robustbench import ClasswiseEvaluator, LogitEvaluator, register, unregister


def digits(count: int = 40) -> tuple[Tensor, Tensor]:
    return load_data("digits").subset(count).batch(slice(None))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return load_model("digits-at")


@pytest.fixture
def place() -> Any:
    """Two random models of our own in the zoo."""
    for name, threat_model in (("One", "Linf"), ("Two", "Linf"), ("One", "L2"), ("One", "corruptions")):
        register(name, lambda: convnet(width=4), threat_model=threat_model, pretrained=True)
    yield
    for name, threat_model in (("One", "Linf"), ("Two", "Linf"), ("One", "L2"), ("One", "corruptions")):
        unregister(name, threat_model=threat_model)


class TestClasswise:
    def test_as_an_evaluation_by_hand(self, model: nn.Module) -> None:
        inputs, labels = digits()
        names = [f"digit {i}" for i in range(10)]
        evaluator = ClasswiseEvaluator(model, eps=0.15, class_names=names, batch_size=16, device="cpu")
        report = evaluator.evaluate(inputs, labels)
        expected = evaluate(model, (inputs, labels), attacks=TemperaturePGD(eps=0.15)).classwise()
        assert isinstance(report, ClasswiseReport)
        assert report.class_names == tuple(names)
        assert 0 < report.robust_accuracy < 1
        assert np.array_equal(report.robust, expected.robust)
        assert isinstance(evaluator.records, Records)
        assert evaluator.records.attacks == ["temperature-pgd"]

    def test_arrays_lists_and_other_attacks(self, model: nn.Module, tmp_path: Path) -> None:
        inputs, labels = digits(20)
        evaluator = ClasswiseEvaluator(model, norm="L2", eps=1.0, attacks=["pgd:steps=2", "temperature-pgd"])
        first = evaluator.evaluate(inputs.numpy(), labels.tolist(), out=tmp_path / "run")
        second = evaluator.evaluate(inputs, labels.numpy(), out=tmp_path / "run", resume=True)
        assert evaluator.records.attacks == ["pgd:steps=2", "temperature-pgd"]
        assert np.array_equal(first.robust, second.robust)
        assert Records.load(tmp_path / "run").manifest["identity"]["norm"] == "L2"

    def test_records_come_with_the_first_evaluation(self, model: nn.Module) -> None:
        with pytest.raises(ValueError, match=r"nothing was evaluated yet; call evaluate\(inputs, labels\)"):
            ClasswiseEvaluator(model).records  # noqa: B018

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"model": "Wong2020Fast"}, TypeError, "model must be callable, images to logits, got str"),
            ({"norm": "linf"}, ValueError, "norm must be one of Linf, .*did you mean Linf"),
            ({"eps": -1}, ValueError, "eps must be a finite number >= 0"),
            ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ],
    )
    def test_refused(
        self, model: nn.Module, options: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            ClasswiseEvaluator(options.pop("model", model), **options)

    def test_labels_and_classes_are_checked(self, model: nn.Module) -> None:
        inputs, labels = digits(20)
        with pytest.raises(TypeError, match="labels must be integer"):
            ClasswiseEvaluator(model, eps=0.1).evaluate(inputs, labels.float())
        with pytest.raises(ValueError, match="class_names must name the model's 10 classes"):
            ClasswiseEvaluator(model, eps=0.1, class_names=["a"]).evaluate(inputs, labels)


class TestLogits:
    def test_against_a_reference(self, model: nn.Module) -> None:
        inputs, labels = digits()
        reference = load_model("digits-standard")
        evaluator = LogitEvaluator(model, reference=reference, eps=0.1)
        report = evaluator.evaluate(inputs, labels)
        assert isinstance(report, LogitReport)
        assert set(report.samples) == {"model", "reference"}
        with torch.no_grad():
            expected = model(inputs).amax(dim=1)
        assert np.allclose(report.samples["model"]["clean"]["max_logit"], expected, atol=1e-5)
        assert evaluator.records.has_reference

    def test_without(self, model: nn.Module) -> None:
        report = LogitEvaluator(model, eps=0.1).evaluate(*digits(10))
        assert set(report.samples) == {"model"}


@pytest.mark.usefixtures("place")
class TestFromZoo:
    @pytest.mark.parametrize(
        ("threat_model", "norm", "eps"),
        [("Linf", "Linf", 8 / 255), ("L2", "L2", 0.5), ("corruptions", "Linf", 8 / 255)],
    )
    def test_norm_and_radius_of_the_threat_model(self, threat_model: str, norm: str, eps: float) -> None:
        evaluator = ClasswiseEvaluator.from_zoo("One", dataset="cifar10", threat_model=threat_model)
        assert (evaluator.norm, evaluator.eps) == (norm, eps)
        report = evaluator.evaluate(torch.rand(6, 3, 32, 32), torch.arange(6))
        assert report.class_names[:3] == ("airplane", "automobile", "bird")
        assert evaluator.records.manifest["identity"]["model"]["name"] == "One"

    def test_options(self) -> None:
        evaluator = ClasswiseEvaluator.from_zoo("One", eps=0.01, norm="L1", class_names=list("abcdefghij"))
        assert (evaluator.norm, evaluator.eps, evaluator.class_names) == ("L1", 0.01, list("abcdefghij"))
        assert ClasswiseEvaluator.from_zoo("One", norm="L2").eps == 0.5
        with pytest.raises(ValueError, match="eps must be given for the norm L1"):
            ClasswiseEvaluator.from_zoo("One", norm="L1")
        with pytest.raises(ValueError, match="got 'Three'"):
            ClasswiseEvaluator.from_zoo("Three")
        with pytest.raises(TypeError, match="unexpected keyword argument 'epsilon'"):
            ClasswiseEvaluator.from_zoo("One", epsilon=1)

    def test_reference_of_the_same_place(self) -> None:
        evaluator = LogitEvaluator.from_zoo("One", reference="Two")
        report = evaluator.evaluate(torch.rand(4, 3, 32, 32), torch.arange(4))
        assert set(report.samples) == {"model", "reference"}
