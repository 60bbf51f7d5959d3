"""From an ART classifier to what the attack asks for: inputs ``(N, ...)`` -> logits ``(N, C)``.

There are two ways.

* **Torch**: classifiers whose ``loss_gradient``, ``class_gradient`` and ``predict`` are
  ``PyTorchClassifier``'s own. The network is called directly, behind the classifier's preprocessing
  (framework preprocessing is differentiated; numpy preprocessing uses its own ``estimate_gradient``).
* **Class gradients**: the classifiers in this table, through ``predict`` and ``class_gradient`` alone.

  ============================== ======================== ==================================
  classifier                     ``predict`` returns      ``class_gradient`` differentiates
  ============================== ======================== ==================================
  ScikitlearnLogisticRegression
    2 classes                    p (log p: use_logits)    p
    more, multinomial            p (log p: use_logits)    log p
  KerasClassifier                z if use_logits, else p  the same
  TensorFlowV2Classifier         z                        z
  EnsembleClassifier of the      weighted sum of z        the same
  torch or z classifiers above
  ============================== ======================== ==================================

  Where a table entry is p, ``log p`` serves as logits: it has the same softmax.

Any other classifier is refused, with the reason: gradients of an unknown quantity would make an attack
that looks weak, and a model that looks robust.

A network with a single output is taken for a binary one: its output is the logit of class 1 if the
classifier's loss is ``BCEWithLogitsLoss``, and its probability if it is ``BCELoss``.

Gradients, and the success by which the attack chooses, are those of the network's own outputs: like ART's
attacks it does not see ``postprocessing_defences``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from art.estimators.classification import (
    EnsembleClassifier,
    KerasClassifier,
    PyTorchClassifier,
    TensorFlowV2Classifier,
)
from art.estimators.classification.scikitlearn import ScikitlearnLogisticRegression
from torch import Tensor, nn

from art_logits.prepare import evaluating
from art_logits.types import Model

LOGITS, PROBABILITIES, LOG_PROBABILITIES = "logits", "probabilities", "log-probabilities"


class Quantities(NamedTuple):
    """What a classifier's methods deal in.

    Attributes:
        predicted: what ``predict`` returns.
        differentiated: what ``class_gradient`` differentiates.
    """

    predicted: str
    differentiated: str


def _of_logistic_regression(classifier: Any) -> Quantities:
    predicted = LOG_PROBABILITIES if classifier.use_logits else PROBABILITIES
    model = classifier.model
    if classifier.nb_classes == 2:
        return Quantities(predicted, PROBABILITIES)
    if model.solver == "liblinear" or getattr(model, "multi_class", None) == "ovr":
        raise TypeError(
            "estimator is a one-versus-rest LogisticRegression, for which ART's class_gradient, that of a "
            "multinomial one, is wrong: fit it with another solver, such as 'lbfgs'"
        )
    return Quantities(predicted, LOG_PROBABILITIES)


def _of_keras(classifier: Any) -> Quantities:
    quantity = LOGITS if classifier.use_logits else PROBABILITIES
    return Quantities(quantity, quantity)


def _of_ensemble(classifier: Any) -> Quantities:
    for member in classifier.classifiers:
        check(member)
        if not is_torch(member) and quantities(member) != (LOGITS, LOGITS):
            raise TypeError(
                "estimator is an EnsembleClassifier with a member that does not return logits, "
                f"{type(member).__name__}: the weighted sum of its members' outputs has no known meaning"
            )
        _check_no_postprocessing(member)
    return Quantities(LOGITS, LOGITS)


_TABLE: dict[type, Callable[[Any], Quantities]] = {
    ScikitlearnLogisticRegression: _of_logistic_regression,
    KerasClassifier: _of_keras,
    TensorFlowV2Classifier: lambda classifier: Quantities(LOGITS, LOGITS),
    EnsembleClassifier: _of_ensemble,
}

# By name, so that none of these modules is imported for it.
_REASONS = {
    "ScikitlearnSVC": "its predict returns votes or probabilities, its class_gradient differentiates "
    "sums of decision functions",
    "RandomizedSmoothingMixin": "its predict counts votes under noise, which have no gradient; attack the "
    "network without smoothing, as a PyTorchClassifier",
    "DeRandomizedSmoothingMixin": "its predict counts votes over ablated inputs, which have no gradient",
    "GPyGaussianProcessClassifier": "its class_gradient is not a gradient: the difference quotient is "
    "multiplied by the step where it should be divided",
    "QueryEfficientGradientEstimationClassifier": "it has no class_gradient",
    "DetectorClassifier": "it has no loss_gradient, and its class_gradient takes a detector's for granted "
    "that is made for images",
}


def is_torch(classifier: Any) -> bool:
    """Whether the network can be called directly: gradients and predict are ``PyTorchClassifier``'s own."""
    return _has_methods_of(classifier, PyTorchClassifier, ("loss_gradient", "class_gradient", "predict"))


def quantities(classifier: Any) -> Quantities:
    """The row of the table for a classifier that :func:`check` lets pass and is not a torch one.

    Raises:
        TypeError: a one-versus-rest LogisticRegression, or an ensemble of other things than logits.
    """
    return _TABLE[_entry(classifier)](classifier)


def check(classifier: Any) -> None:
    """Refuse a classifier that neither way serves.

    Raises:
        TypeError: an unknown classifier, or one whose gradients are of no use; the message says why.
        ValueError: a classifier with ``postprocessing_defences`` that is not a torch one.
    """
    if is_torch(classifier):
        return
    _entry(classifier)
    _check_no_postprocessing(classifier)
    if (
        getattr(classifier, "nb_classes", None) is not None
    ):  # a scikit-learn model has none until it is fitted
        quantities(classifier)


def _entry(classifier: Any) -> type:
    for known in _TABLE:
        if _has_methods_of(classifier, known, ("class_gradient", "predict")):
            return known
    kind = type(classifier)
    names = [base.__name__ for base in kind.__mro__]
    reason = next((_REASONS[name] for name in names if name in _REASONS), None)
    if reason is None:
        served = ", ".join(["PyTorchClassifier", *(known.__name__ for known in _TABLE)])
        reason = (
            "it is not known which quantity its class_gradient differentiates; served are classifiers that "
            f"keep the gradients and predict of {served}"
        )
    raise TypeError(f"estimator of type {kind.__name__} can't be attacked: {reason}")


def _check_no_postprocessing(classifier: Any) -> None:
    if classifier.postprocessing_defences:
        raise ValueError(
            f"estimator of type {type(classifier).__name__} has postprocessing_defences, through which its "
            "class_gradient does not go: attack it without them"
        )


def _has_methods_of(classifier: Any, owner: type, methods: tuple[str, ...]) -> bool:
    return isinstance(classifier, owner) and all(
        getattr(type(classifier), method) is getattr(owner, method) for method in methods
    )


def logits_of(classifier: Any) -> tuple[Model, torch.device]:
    """The model that the attack calls, and the device on which it expects its inputs.

    Raises:
        TypeError: as :func:`quantities` does.
    """
    if is_torch(classifier):
        return TorchLogits(classifier), classifier.device
    return ClassGradientLogits(classifier), torch.device("cpu")


def predicted_classes(classifier: Any, inputs: Any, batch_size: int) -> Any:
    """What a classifier predicts for ``(N, ...)``: class indices ``(N,)``."""
    outputs = classifier.predict(inputs, batch_size=batch_size)
    if outputs.shape[1] == 1:
        threshold = 0.0 if isinstance(classifier.loss, nn.BCEWithLogitsLoss) else 0.5
        return (outputs[:, 0] > threshold).astype(np.int64)
    return np.argmax(outputs, axis=1)


@contextmanager
def untouched(classifier: Any) -> Iterator[None]:
    """Give every network of a classifier back as it was: train/eval flags, ``requires_grad``, ``.grad``.

    ART's ``predict`` leaves a network in eval mode, its gradients set and clear the weights' ``.grad``.
    """
    networks = _networks(classifier)
    grads = [(weight, weight.grad) for network in networks for weight in network.parameters()]
    with evaluating(*networks):
        try:
            yield
        finally:
            for weight, grad in grads:
                weight.grad = grad


def _networks(classifier: Any) -> list[nn.Module]:
    members = classifier.classifiers if isinstance(classifier, EnsembleClassifier) else [classifier]
    networks = (_network(member) for member in members)
    return [network for network in networks if isinstance(network, nn.Module)]


def _network(classifier: Any) -> Any:
    # The one private attribute of ART that is used: a wrapper whose forward returns a list of outputs.
    return getattr(classifier, "_model", None)


class TorchLogits(nn.Module):
    """A ``PyTorchClassifier``'s network behind its preprocessing, differentiable.

    Args:
        classifier: a classifier for which :func:`is_torch` is true.
    """

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.network = _network(classifier)
        self.classifier = classifier

    def __deepcopy__(self, memo: dict[int, Any]) -> TorchLogits:
        # A copy of the network behind the same preprocessing: ART copies a classifier through files.
        twin = TorchLogits(self.classifier)
        twin.network = copy.deepcopy(self.network, memo)
        return twin.train(self.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs ``(N, ...)`` as the classifier's ``predict`` takes them -> its last output ``(N, C)``."""
        # cuDNN's recurrent layers have no backward pass in eval mode; the native ones do.
        native = torch.backends.cudnn.flags(enabled=False) if self.classifier.is_rnn else nullcontext()
        with native:
            output: Tensor = self.network(self._preprocessed(inputs))[-1]
        if output.ndim == 1 or output.shape[1] == 1:
            return self._of_two_classes(output.reshape(-1, 1))
        return output

    def _of_two_classes(self, output: Tensor) -> Tensor:
        if isinstance(self.classifier.loss, nn.BCEWithLogitsLoss):
            return torch.cat([torch.zeros_like(output), output], dim=1)
        if isinstance(self.classifier.loss, nn.BCELoss):
            return torch.cat([1 - output, output], dim=1).clamp_min(torch.finfo(output.dtype).tiny).log()
        return output  # which the attack refuses

    def _preprocessed(self, inputs: Tensor) -> Tensor:
        prepared: Tensor
        if self.classifier.all_framework_preprocessing:
            prepared, _ = self.classifier._apply_preprocessing(inputs, y=None, fit=False, no_grad=False)
        else:
            prepared = _NumpyPreprocessing.apply(inputs, self.classifier)
        return prepared


class _NumpyPreprocessing(torch.autograd.Function):
    """ART's numpy preprocessing, with the gradient that each defence estimates for itself."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, classifier: Any) -> Tensor:
        ctx.classifier, ctx.array = classifier, inputs.detach().cpu().numpy()
        prepared, _ = classifier._apply_preprocessing(ctx.array, y=None, fit=False, no_grad=True)
        return torch.as_tensor(prepared).to(inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        with torch.enable_grad():  # torch switches it off during a backward pass, and ART needs it
            result = ctx.classifier._apply_preprocessing_gradient(ctx.array, grad.cpu().numpy())
        return torch.as_tensor(result).to(grad), None


class ClassGradientLogits:
    """Logits of a classifier that is known by ``predict`` and ``class_gradient`` alone.

    Args:
        classifier: a classifier of the table in this module.

    Raises:
        TypeError: as :func:`quantities` does.
    """

    def __init__(self, classifier: Any) -> None:
        self.classifier, self.quantities = classifier, quantities(classifier)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Inputs ``(N, ...)`` -> logits ``(N, C)``, in the precision of ``predict``."""
        result: Tensor = _ClassGradients.apply(inputs, self.classifier, self.quantities)
        return result


class _ClassGradients(torch.autograd.Function):
    """``predict`` forward; backward the sum over classes of each logit's weight times ``class_gradient``."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, classifier: Any, kinds: Quantities) -> Tensor:
        ctx.classifier, ctx.kinds, ctx.like = classifier, kinds, inputs
        predicted = np.asarray(classifier.predict(inputs.detach().numpy()))
        if kinds.predicted == PROBABILITIES:
            predicted = np.log(_positive(predicted))
        logits = torch.as_tensor(predicted)
        ctx.save_for_backward(logits)
        return logits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (logits,) = ctx.saved_tensors
        with torch.enable_grad():
            jacobian = np.asarray(ctx.classifier.class_gradient(ctx.like.detach().numpy()))
        weights = grads[0].numpy().astype(np.float64)
        if ctx.kinds.differentiated == PROBABILITIES:
            # The chain rule of log p.
            weights = weights / _positive(np.exp(logits.numpy().astype(np.float64)))
        result = np.einsum("nc,nc...->n...", weights, jacobian)
        return torch.as_tensor(result).to(ctx.like).view_as(ctx.like), None, None


def _positive(probabilities: Any) -> Any:
    return np.maximum(probabilities, np.finfo(probabilities.dtype).tiny)
