"""Temperature-PGD as a torchattacks attack: the host's conventions outside, the core's loop inside.

>>> from art_logits.models import load_model
>>> attack = TemperaturePGD(load_model("digits-at"), eps=0.1, steps=5, seed=0)
>>> attack(torch.rand(2, 1, 8, 8), torch.tensor([3, 7])).shape
torch.Size([2, 1, 8, 8])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from art_logits import _checks
from art_logits import steps as step_sizes
from art_logits._extras import require
from art_logits.attack import TemperaturePGD as _Core
from art_logits.prepare import Precision, evaluating
from art_logits.starts import generator, sample_hashes
from art_logits.types import Bounds, Loss, Norm, StepSize, Temperature

__all__ = ["TemperaturePGD"]

#: Images ``(N, ...)`` in [0, 1] and labels ``(N,)`` to one radius per sample ``(N,)``.
EpsOfSamples: TypeAlias = Callable[[Tensor, Tensor], Tensor]

_Attack: Any = require("torchattacks.attack", extra="torchattacks").Attack

_BOUNDS = Bounds(0.0, 1.0)
_REMEDY = "for normalised images call set_normalization_used(mean, std) first"
# In place of a restart's number: random targets draw from (seed, sample id) too, and no start draws here.
_TARGETS = 2**32


class _Default(float):
    """A default that other norms replace: equal to its number, yet told from one that the user wrote."""


_EPS, _ALPHA = _Default(8 / 255), _Default(2 / 255)
# In L2 nobody means a radius of 8/255, and 20 steps of 2/255 would stop half-way to one that somebody means,
# so that a model would look robust: "cosine" is in units of each sample's eps.
_EPS_OF_NORM: Mapping[str, float] = {"L2": 0.5, "L1": 12.0}
_ALPHA_OF_NORM: Mapping[str, str] = {"L2": "cosine", "L1": "cosine"}


class TemperaturePGD(_Attack):  # type: ignore[misc]
    """PGD on the loss of ``logits / temperature``, a drop-in for ``torchattacks.PGD``.

    With ``temperature=1.0, keep="last"`` it takes the steps of ``torchattacks.PGD``. The defaults are
    stronger at the same cost: each sample's own logit gap as temperature, which makes the attack independent
    of the scale of the logits, and the best iterate instead of the last. What the host offers around an
    attack works as there: targeted modes, ``set_normalization_used``, ``set_device``,
    ``set_model_training_mode``, ``save``, ``MultiAttack``.

    A sample's result depends on the model, the sample, its label, the arguments and the seed, not on the
    rest of the batch. The model comes back as it was: every submodule's training flag, ``requires_grad``,
    ``.grad`` and the buffers, also those that ``set_model_training_mode`` lets a pass update.

    Args:
        model: maps images ``(N, ...)`` in [0, 1] to logits ``(N, C)``.
        eps: radius of the ball, in the unit of the images, >= 0: a number, a tensor ``(N,)``, or a callable
            ``(images, labels) -> (N,)``, which fits batches of any size, such as ``MultiAttack``'s. If not
            given: 8/255 in Linf, 0.5 in L2 (RobustBench's; ``torchattacks.PGDL2`` has 1.0), 12 in L1.
        alpha: step size, in the unit of the images: a number > 0, a tensor ``(N,)``, ``"cosine"`` or
            ``"linear"`` (2 eps to 0), or a callable ``(step, steps) -> float``. If not given: 2/255 in Linf,
            else ``"cosine"``.
        steps: gradient steps per restart, >= 0.
        random_start: start from a uniform point of the ball.
        temperature: a number > 0, ``"gap"``, a list of one number per step, or a callable
            ``(logits (N, C), step) -> (N,)``.
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``.
        loss: ``"cross_entropy"``, ``"margin"``, ``"dlr"``, ``"probability_margin"``, or a callable
            ``(logits (N, C), labels (N,)) -> (N,)``, larger = more adversarial.
        restarts: runs per sample, >= 1, the best of which is returned.
        stop_on_success: a sample's attack ends with its first success, which is faster. Otherwise every step
            is taken, for the strongest example.
        keep: ``"best"`` returns each sample's best iterate, ``"last"`` the last one, as the host's PGD.
        seed: an integer >= 0 fixes random starts and random targets. None draws one integer per call from
            torch's generator, so that a second call starts elsewhere.
        precision: of the gradients: ``"float32"``, bit by bit those of the model, as torch computes it (on a
            GPU in TF32, unless told otherwise); ``"bfloat16"``, also with batch norms folded; or ``"auto"``,
            the faster one by a short probe. Success is float32's, not TF32's, in any case. A model in
            training mode (``set_model_training_mode``) is attacked in float32.

    Shape:
        - images: ``(N, ...)``, floating point, in [0, 1]; normalised after ``set_normalization_used``.
        - labels: ``(N,)`` class indices; target classes after ``set_mode_targeted_by_label``.
        - output: as the images, detached.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range; the message says which and what was expected.
    """

    def __init__(
        self,
        model: nn.Module,
        eps: float | Tensor | EpsOfSamples = _EPS,
        alpha: float | Tensor | Literal["cosine", "linear"] | StepSize = _ALPHA,
        steps: int = 20,
        random_start: bool = True,
        temperature: float | Literal["gap", "auto"] | tuple[float, ...] | list[float] | Temperature = "gap",
        norm: Norm = "Linf",
        loss: str | Loss = "cross_entropy",
        restarts: int = 1,
        stop_on_success: bool = False,
        keep: Literal["best", "last"] = "best",
        seed: int | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__("TemperaturePGD", model)
        self.supported_mode = ["default", "targeted"]
        self.eps = _of_norm(eps, _EPS_OF_NORM, norm)
        self.alpha = _of_norm(alpha, _ALPHA_OF_NORM, norm)
        self.steps = steps
        self.random_start = random_start
        # The host looks for attacks inside lists, and compares what it finds there.
        self.temperature = tuple(temperature) if isinstance(temperature, list) else temperature
        self.norm = norm
        self.loss = loss
        self.restarts = restarts
        self.stop_on_success = stop_on_success
        self.keep = keep
        self.seed = seed
        self.precision = precision
        self._core(0.0 if callable(eps) else self.eps, 0 if seed is None else seed)

    def __call__(self, inputs: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """Attack a batch, see the class; the model and the attack come back as they were."""
        normalised = self._normalization_applied
        try:
            # The host restores one flag for the whole model, which unfreezes a frozen BatchNorm. Nested in
            # here it finds a model in eval mode, sets the mode that its user chose and restores nothing.
            with evaluating(self.model), _buffers_kept(self.model, self._model_training):
                adv_images: Tensor = super().__call__(inputs, labels, *args, **kwargs)
                return adv_images
        finally:
            # The host forgets this flag when the attack raises, and normalises twice from then on.
            self._set_normalization_applied(normalised)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Attack images in [0, 1]; the host's ``__call__`` undoes and repeats their normalisation.

        Args:
            images: ``(N, ...)``, floating point, in [0, 1] but for rounding.
            labels: ``(N,)``, class indices.

        Returns:
            Adversarial images ``(N, ...)``, detached, on ``self.device``.

        Raises:
            TypeError: images, labels or what a callable returned are of the wrong type.
            ValueError: they have the wrong shape or range.
        """
        if isinstance(images, Tensor) and images.shape[:1] == (0,):
            return images.detach().clone().to(self.device)  # as the host's attacks do
        images = _checks.inputs(_inside(images), _BOUNDS, remedy=_REMEDY).to(self.device)
        labels = _checks.labels("labels", labels, len(images), images.device)
        eps, seed = self.eps, self._draw_seed()
        if callable(eps):
            eps = _checks.per_sample("eps", eps(images, labels), len(images))
        targets = self._targets(images, labels, seed) if self.targeted else None
        # get_logits, because it normalises. It is no module: the mode of the model stays the host's affair.
        plain = self._model_training or type(self).get_logits is not _Attack.get_logits
        model = self.get_logits if plain else _Normalised(self)
        return self._core(eps, seed)(model, images, labels, targets=targets, judge=False).adv_inputs

    def _core(self, eps: float | Tensor, seed: int) -> _Core:
        """The core's attack, made anew for each call: users of the host assign to its attributes."""
        steps = _checks.integer("steps", self.steps, at_least=0)
        step_sizes.resolve(self.alpha, steps, name="alpha")
        return _Core(
            eps=eps,
            norm=self.norm,
            steps=steps,
            step_size=self.alpha,
            temperature=self.temperature,
            loss=self.loss,
            restarts=self.restarts,
            random_start=self.random_start,
            targeted=self.targeted,
            bounds=_BOUNDS,
            stop_on_success=self.stop_on_success,
            keep=self.keep,
            seed=seed,
            precision=self.precision,
            fuse=self.precision != "float32",
        )

    def _draw_seed(self) -> int:
        if self.seed is not None:
            return self.seed
        return int(torch.randint(2**63 - 1, (), device="cpu"))

    def _targets(self, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        if self.attack_mode == "targeted(random)":
            return self._random_targets(images, labels, seed)
        targets: Tensor = self.get_target_label(images, labels)
        return targets

    def _random_targets(self, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        """Uniform over the other classes, by (seed, sample): the same in whatever batch the sample is."""
        classes = self.get_output_with_eval_nograd(images).shape[1]
        ids: Iterable[int] = sample_hashes(images, labels).tolist()
        shifts = [int(generator(seed, sample_id, _TARGETS).integers(1, classes)) for sample_id in ids]
        return (labels + torch.tensor(shifts, device=labels.device)) % classes

    def get_random_target_label(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """Random target classes ``(N,)``, none of them the label (the prediction, without labels)."""
        if labels is None:
            labels = self.get_output_with_eval_nograd(inputs).argmax(dim=1)
        return self._random_targets(inputs, labels, self._draw_seed())

    @torch.no_grad()
    def get_output_with_eval_nograd(self, inputs: Tensor) -> Tensor:
        """Logits ``(N, C)`` in eval mode; the host's own would leave a frozen BatchNorm in training mode."""
        with evaluating(self.model):
            logits: Tensor = self.get_logits(inputs)
        return logits

    def inverse_normalize(self, inputs: Tensor) -> Tensor:
        """Images in [0, 1] of normalised ones; what rounding put outside by a hair goes back in."""
        images: Tensor = super().inverse_normalize(inputs)
        return _inside(images)

    def save(
        self,
        data_loader: Iterable[tuple[Tensor, Tensor]],
        save_path: Any = None,
        verbose: bool = True,
        return_verbose: bool = False,
        save_predictions: bool = False,
        save_clean_inputs: bool = False,
        save_type: str = "float",
    ) -> tuple[float, float, float] | None:
        """Attack the batches of a loader and save the results, as the host does.

        Returns:
            With ``return_verbose``: robust accuracy in percent, mean L2 distance of the successes, and the
            seconds that the last batch took.
        """
        with evaluating(self.model):
            # The host has predictions to save only where it also computes the figures.
            figures: tuple[float, float, float] | None = super().save(
                data_loader,
                save_path,
                verbose=verbose,
                return_verbose=return_verbose or save_predictions,
                save_predictions=save_predictions,
                save_clean_inputs=save_clean_inputs,
                save_type=save_type,
            )
        return figures if return_verbose else None


class _Normalised(nn.Module):
    """What the host's ``get_logits`` computes, as a module that can be prepared.

    Args:
        attack: the host's attack, whose model and normalisation these are.
    """

    def __init__(self, attack: Any) -> None:
        super().__init__()
        self.model, self.attack = attack.model, attack

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, C)`` of images in [0, 1]."""
        if self.attack._normalization_applied is False:
            images = self.attack.normalize(images)
        logits: Tensor = self.model(images)
        return logits


def _inside(images: Tensor) -> Tensor:
    """Images with what rounding put outside [0, 1] by a hair put back; of another kind as they are."""
    floating = isinstance(images, Tensor) and images.is_floating_point()
    return _checks.within_a_hair(images, _BOUNDS) if floating else images


def _of_norm(value: Any, of_norm: Mapping[str, Any], norm: object) -> Any:
    """``value``, unless the user gave none: then the norm's own default."""
    if isinstance(value, _Default):
        return of_norm.get(str(norm), float(value))
    return value


@contextmanager
def _buffers_kept(model: nn.Module, at_risk: bool) -> Iterator[None]:
    """Undo what passes in training mode did to buffers, such as the statistics of a BatchNorm."""
    modules = model.modules() if at_risk else ()
    kept = [
        (module, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, content in kept:
                setattr(module, name, buffer.copy_(content))
