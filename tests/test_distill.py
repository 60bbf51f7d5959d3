from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from art_logits import TemperaturePGD
from art_logits import transforms as tf
from art_logits.data import as_data
from art_logits.distill import _Oracle, distill, settle
from art_logits.objectives import OBJECTIVES, Objective, Views, get_objective
from art_logits.training_loop import CHECKPOINT, HISTORY, WEIGHTS, History, training_attack

Pair = tuple[Tensor, Tensor]
CLASSES = 3
ATTACK = TemperaturePGD(eps=0.06, steps=2, step_size=0.04, temperature=1.0)
QUICK: dict[str, Any] = {"batch_size": 16, "lr": 0.05, "precision": "float32", "epochs": 2}


def blobs(count: int = 48, seed: int = 0) -> Pair:
    """Three Gaussian blobs as images ``(count, 1, 4, 4)``."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    centers = torch.tensor([0.25, 0.5, 0.75])[labels].view(-1, 1, 1, 1)
    return (centers + 0.05 * torch.randn(count, 1, 4, 4, generator=rng)).clamp(0, 1), labels


def network(seed: int = 0, *, norm: bool = False, classes: int = CLASSES, gain: float = 1.0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        middle = nn.BatchNorm1d(8) if norm else nn.Identity()
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), middle, nn.ReLU(), nn.Linear(8, classes))
    with torch.no_grad():
        net[-1].weight *= gain
    return net


class Watched(nn.Module):
    """Keeps what it is asked in training mode, and the weights it was asked with; counts all passes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seen, self.rows = model, list[tuple[Tensor, dict[str, Tensor]]](), list[int]()

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.seen.append((inputs.detach().clone(), weights(self.model)))
        self.rows.append(len(inputs))
        logits: Tensor = self.model(inputs)
        return logits


def teacher(seed: int = 5) -> nn.Sequential:
    """A teacher that is neither flat nor certain."""
    return network(seed, gain=8.0).eval()


def train(
    student: nn.Module | None = None, data: Pair | None = None, **options: Any
) -> tuple[nn.Module, History]:
    student = network() if student is None else student
    options = {"teacher": teacher(), **QUICK, **options}
    if get_objective(options.get("objective", "kd")).inner is not None:
        options = {"attack": ATTACK, **options}
    history = distill(student, options.pop("teacher"), blobs() if data is None else data, **options)
    return student, history


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor], atol: float = 1e-6) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


# kd is knowledge distillation -------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 1.0), (4.0, 0.7), (1.0, 0.0)])
def test_kd_equals_a_hand_written_loop_step_by_step(norm: bool, temperature: float, alpha: float) -> None:
    (x, y), source = blobs(50), teacher()
    student = Watched(network(norm=norm))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    train(student, (x, y), teacher=source, temperature=temperature, alpha=alpha, optimizer=optimizer)

    net = network(norm=norm).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    steps = 0
    for inputs, seen in student.seen:
        assert_close(seen, weights(net))
        rows = [int((x == image).flatten(1).all(dim=1).nonzero()) for image in inputs]
        with torch.no_grad():
            said = source(inputs) / temperature
        logits = net(inputs)
        loss = alpha * temperature**2 * F.kl_div(
            (logits / temperature).log_softmax(1), said.softmax(1), reduction="batchmean"
        ) + (1 - alpha) * F.cross_entropy(logits, y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    assert steps == 2 * 4
    assert_close(weights(student.model), weights(net))


def test_the_student_comes_to_say_what_the_teacher_says() -> None:
    x, _ = blobs()
    source = teacher()
    student, history = train(epochs=60, lr=0.3)
    assert history.rows[-1]["loss"] < 0.1 * history.rows[0]["loss"]
    found, wanted = student(x).softmax(dim=1), source(x).softmax(dim=1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.15)
    assert not student.training


# Objectives -------------------------------------------------------------------------------------------


def kl(p: Any, q: Any) -> Any:
    return (p * (np.log(p) - np.log(q))).sum(axis=1)


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@given(
    seed=st.integers(0, 2**31),
    tau=st.sampled_from([1.0, 2.0, 30.0]),
    alpha=st.sampled_from([0.0, 0.3, 5 / 6, 1.0]),
    late=st.booleans(),
)
def test_losses_are_the_formulas(seed: int, tau: float, alpha: float, late: bool) -> None:
    """Against numpy, one formula per method, in float64."""
    rng = np.random.default_rng(seed)
    s, sp, t, tp = rng.normal(size=(4, 6, 5)) * 3
    y = rng.integers(5, size=6)
    names = ("student", "student_perturbed", "teacher", "teacher_perturbed")
    logits = {name: torch.from_numpy(z) for name, z in zip(names, (s, sp, t, tp), strict=True)}
    views = Views(torch.from_numpy(y), tau, alpha, 0.3 if late else 0.29, **logits)
    ce = -np.log(softmax(s)[np.arange(6), y])
    trust = softmax(tp)[np.arange(6), y] ** 0.1 if late else 1.0
    S, SP, T, TP = (softmax(z / tau) for z in (s, sp, t, tp))
    mixed = trust * tau**2 * kl(T, SP) + (1 - trust) * kl(softmax(s), softmax(sp))
    expected = {
        "kd": alpha * tau**2 * kl(T, S) + (1 - alpha) * ce,
        "ard": alpha * tau**2 * kl(T, SP) + (1 - alpha) * ce,
        "rslad": tau**2 * (alpha * kl(T, SP) + (1 - alpha) * kl(T, S)),
        "iad": alpha * mixed + (1 - alpha) * ce,
        "adaad": tau**2 * (alpha * kl(TP, SP) + (1 - alpha) * kl(T, S)),
    }
    assert set(expected) == set(OBJECTIVES)
    for name, value in expected.items():
        found = OBJECTIVES[name].loss(views).numpy()
        np.testing.assert_allclose(found, value, rtol=1e-9, atol=1e-11, err_msg=name)


def test_published_values() -> None:
    found = {name: (goal.temperature, goal.alpha) for name, goal in OBJECTIVES.items()}
    assert found == {
        "kd": (1, 1),
        "ard": (30, 1),
        "rslad": (1, 5 / 6),
        "iad": (1, 1),
        "adaad": (1, 1),
    }
    assert settle("rslad", attack=ATTACK).alpha == 5 / 6
    assert settle("ard", 4.0, 0.5, ATTACK).temperature == 4.0
    assert settle("ard", 4.0, 0.5, ATTACK).alpha == 0.5


def hand_pgd(x: Tensor, loss: Callable[[Tensor], Tensor], steps: int = 2) -> Tensor:
    """Plain PGD without a random start: what the inner maximisations of the papers' codes do."""
    moved = x.clone()
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss(moved).sum(), moved)
        moved = x + (moved.detach() + 0.04 * grad.sign() - x).clamp(-0.06, 0.06)
        moved = moved.clamp(0, 1)
    return moved.detach()


@pytest.mark.parametrize("name", ["ard", "rslad", "iad", "adaad"])
@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_the_inner_maximisation_is_the_published_one(name: str, tau: float) -> None:
    """What the student is trained on equals plain PGD on the method's inner loss, at the same weights."""
    attack = TemperaturePGD(
        eps=0.06, steps=2, step_size=0.04, temperature=1.0, random_start=False, loss="margin"
    )
    source, (x, y) = teacher(), blobs()
    student = Watched(network(norm=True))
    train(student, objective=name, attack=attack, temperature=tau, alpha=0.5, teacher=source)
    for inputs, seen in student.seen:
        clean, moved = inputs.chunk(2)
        net = network(norm=True)
        net.load_state_dict(seen)
        net.eval()
        rows = [int((x == image).flatten(1).all(dim=1).nonzero()) for image in clean]

        def divergence(z: Tensor, clean: Tensor = clean, net: nn.Module = net) -> Tensor:
            said = source(clean) if name == "rslad" else source(z)
            p, log_q = (said / tau).softmax(1), (net(z) / tau).log_softmax(1)
            return (p * (p.log() - log_q)).sum(dim=1)

        def entropy(z: Tensor, net: nn.Module = net, rows: list[int] = rows) -> Tensor:
            return F.cross_entropy(net(z), y[rows], reduction="none")

        expected = hand_pgd(clean, entropy if name in ("ard", "iad") else divergence)
        assert float((moved - clean).abs().max()) > 0.03
        # From a zero gradient, as adaad has where both agree, rounding decides.
        same = ((moved - expected).abs() < 1e-6).double().mean()
        assert float(same) > 0.99


def test_random_starts_come_from_the_attack_and_differ_by_epoch() -> None:
    student = Watched(network())
    still = TemperaturePGD(eps=0.06, steps=0, random_start=True)
    train(student, objective="adaad", attack=still, batch_size=48)
    (first, _), (second, _) = student.seen
    x, _ = blobs()
    order = [
        [int((x - image).flatten(1).abs().amax(dim=1).argmin()) for image in part] for part in (first, second)
    ]
    noise = [part - x[rows] for part, rows in zip((first, second), order, strict=True)]
    assert all(0.01 < float(each.abs().max()) <= 0.06 + 1e-6 for each in noise)
    by_sample = [each[np.argsort(rows)] for each, rows in zip(noise, order, strict=True)]
    assert float((by_sample[0] - by_sample[1]).abs().max()) > 0.01


@pytest.mark.parametrize(
    ("name", "alpha", "views"),
    [("kd", 1.0, 1), ("ard", 1.0, 1), ("ard", 0.5, 2), ("rslad", 1.0, 1), ("iad", 1.0, 2), ("adaad", 0.5, 2)],
)
def test_no_view_is_computed_in_vain(name: str, alpha: float, views: int) -> None:
    student = Watched(network())
    train(student, objective=name, alpha=alpha, batch_size=48, epochs=1)
    assert [len(inputs) for inputs, _ in student.seen] == [48 * views]


def test_an_objective_of_your_own() -> None:
    calls = list[tuple[int, ...]]()

    def squared(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        calls.append((*student.shape, *teacher.shape, *labels.shape))
        return ((student - teacher) ** 2).sum(dim=1)

    _, history = train(objective=squared, epochs=30, lr=0.02)
    assert history.rows[-1]["loss"] < 0.3 * history.rows[0]["loss"]
    assert set(calls) == {(16, 3, 16, 3, 16)}
    own = Objective(
        name="robust",
        loss=lambda v: v.kl("teacher", "student_perturbed"),
        student=("perturbed",),
        inner="teacher",
    )
    train(objective=own, attack=ATTACK, epochs=1)
    with pytest.raises(ValueError, match="objective uses the view 'student', which it did not ask for"):
        train(
            objective=Objective(
                name="x", loss=lambda v: v["student"], student=("perturbed",), inner="teacher"
            )
        )
    with pytest.raises(
        ValueError, match=r"objective must return one value per sample, shape \(16,\), got \(\)"
    ):
        train(objective=lambda s, t, y: (s - t).sum())


def test_an_inner_maximisation_alone_asks_the_teacher() -> None:
    """One that perturbs as rslad does and learns from the labels sees rslad's images in its first step."""
    own = Objective(
        name="own",
        loss=lambda views: views.cross_entropy("student_perturbed"),
        student=("perturbed",),
        teacher=(),
        inner="clean_teacher",
    )
    seen = []
    for objective in (own, "rslad", "ard"):
        student = Watched(network())
        train(student, objective=objective, attack=ATTACK, alpha=1.0, temperature=1.0, batch_size=48)
        seen.append(student.seen[0][0])
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


# The teacher ------------------------------------------------------------------------------------------


def test_clean_objectives_ask_the_teacher_once_or_not_at_all() -> None:
    for name in ("kd", "ard", "rslad"):
        source = Watched(teacher())
        asked, _ = train(objective=name, teacher=source, epochs=3)
        assert sum(source.rows) == 48
        with torch.no_grad():
            logits = teacher()(blobs()[0])
        keyed = tf.TeacherLogits(logits.flip(0), None, as_data(blobs()).ids.flip(0))
        for said in (logits, logits.numpy(), keyed):
            told, _ = train(objective=name, teacher=said, epochs=3)
            assert_close(weights(told), weights(asked))


def test_augmented_images_are_shown_to_the_teacher() -> None:
    source = Watched(teacher())
    train(teacher=source, epochs=2, augment="shift")
    assert sum(source.rows) == 2 * 48 + 48  # the check before the first step sees one batch


def test_the_teacher_comes_back_as_it_was() -> None:
    source = network(5, norm=True)
    source[2].eval()
    source[1].weight.requires_grad_(False)
    before = weights(source)
    for name in OBJECTIVES:
        train(objective=name, teacher=source, epochs=1)
    assert_close(weights(source), before, atol=0)
    assert [module.training for module in source] == [True, True, False, True, True]
    assert [w.requires_grad for w in source.parameters()] == [False] + [True] * 5
    assert all(w.grad is None for w in source.parameters())


def test_the_teacher_is_asked_in_eval_mode() -> None:
    source = network(5, norm=True)
    source(blobs(seed=2)[0])  # statistics of its own
    before = weights(source)
    for name in OBJECTIVES:
        told = [
            train(objective=name, teacher=source.train(mode), augment="shift")[0] for mode in (True, False)
        ]
        assert_close(*map(weights, told))
    assert_close(weights(source), before, atol=0)


@pytest.mark.parametrize("name", ["kd", "ard", "rslad"])
def test_a_transform_is_fitted_on_the_whole_set_and_stays(name: str) -> None:
    x, y = blobs()
    with torch.no_grad():
        logits = teacher()(x)
    what = tf.Compose(tf.PermuteConfidences(seed=3), tf.OrderIncorrect(how="random", around="label"))
    ids = torch.arange(100, 148)
    data = as_data((x, y)).with_ids(ids)
    first = network()
    distill(first, teacher(), data, objective=name, attack=ATTACK, transform=what, temperature=2.0, **QUICK)
    second = network()
    told = what.fit(logits, y, ids, temperature=2.0).logits
    distill(second, told, data, objective=name, attack=ATTACK, temperature=2.0, **QUICK)
    assert_close(weights(first), weights(second))
    third, _ = train(objective=name, attack=ATTACK, temperature=2.0)
    assert float((third[-1].weight - first[-1].weight).abs().max().detach()) > 1e-3  # type: ignore[index]


def test_a_transform_without_a_fit_works_wherever_the_teacher_is_asked() -> None:
    changed = tf.Compose(tf.OrderIncorrect(how="reversed"), tf.Confidence(how="set", value=0.6))

    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = teacher()

        def forward(self, inputs: Tensor) -> Tensor:
            return changed(self.model(inputs), temperature=3.0)

    for name in ("kd", "iad", "adaad"):
        options: dict[str, Any] = {"objective": name, "augment": "shift", "alpha": 0.5, "temperature": 3.0}
        one, _ = train(transform=changed, **options)
        other, _ = train(teacher=Reversed(), **options)
        assert_close(weights(one), weights(other))


def test_class_weights() -> None:
    """A class of weight 0 might as well not be there, but for the size of the batch."""
    x, y = blobs()
    one, _ = train(class_weights=[0, 2, 1], batch_size=48)
    optimizer = torch.optim.SGD((two := network()).parameters(), lr=0.05)
    three = network()
    kept = torch.tensor([0.0, 2.0, 1.0])
    said = teacher()(x).detach()

    def weighted(student: Tensor, source: Tensor, labels: Tensor) -> Tensor:
        return kept[labels] * F.kl_div(student.log_softmax(1), source.softmax(1), reduction="none").sum(dim=1)

    distill(three, said, (x, y), objective=weighted, **{**QUICK, "batch_size": 48})
    assert_close(weights(one), weights(three))
    zero = network()
    distill(zero, said, (x, y), class_weights=[0, 0, 0], optimizer=optimizer, **QUICK)
    assert_close(weights(zero), weights(two), atol=0)


# The loop ---------------------------------------------------------------------------------------------


def test_history_with_validation() -> None:
    student, history = train(epochs=8, lr=0.3, validation=blobs(33, seed=1), attack=ATTACK)
    row = history.rows[-1]
    x, y = blobs(33, seed=1)
    right = student(x).argmax(dim=1) == y
    assert row["clean_accuracy"] == pytest.approx(float(right.double().mean()))
    attack = TemperaturePGD(eps=0.06, steps=4, step_size=0.04, temperature=1.0, keep="last")
    stays = ~attack(student, x, y, as_data((x, y)).ids).success
    assert row["robust_accuracy"] == pytest.approx(float(stays.double().mean()))
    assert row["worst_class_accuracy"] == pytest.approx(
        min(float(stays[y == c].double().mean()) for c in range(3))
    )
    assert {"epoch", "lr", "loss"} <= set(history.to_frame().columns)


def test_the_history_counts_samples_whose_inner_loss_has_no_gradient() -> None:
    flat = network()
    with torch.no_grad():
        flat[-1].weight.zero_()
    shares = [
        train(net, objective="ard", batch_size=48, epochs=1)[1].rows[0]["zero_gradients"]
        for net in (flat, network())
    ]
    assert shares == [1.0, 0.0]


def test_the_progress_bar_shows_loss_and_accuracies(capfd: pytest.CaptureFixture[str]) -> None:
    train(validation=blobs(24, seed=1), progress=True, epochs=2)
    shown = capfd.readouterr().err
    for word in ("epoch 2/2", "loss=", "clean=", "robust=", "worst="):
        assert word in shown


def test_average_resume_and_files(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "objective": "rslad",
        "ema": 0.9,
        "augment": "shift",
        "validation": blobs(12, seed=1),
    }
    whole, history = train(out=tmp_path / "whole", epochs=4, **options)

    class Interrupted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.passes = teacher(), 9  # a check, and 3 batches in each epoch

        def forward(self, inputs: Tensor) -> Tensor:
            self.passes -= 1
            if self.passes < 0:
                raise KeyboardInterrupt
            logits: Tensor = self.model(inputs)
            return logits

    source = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        train(teacher=source, out=tmp_path / "rest", epochs=4, **options)
    done = torch.load(tmp_path / "rest" / CHECKPOINT, weights_only=True)["epoch"]
    assert done == 2
    source.passes = 10**6
    rest, again = train(network(9), teacher=source, out=tmp_path / "rest", resume=True, epochs=4, **options)
    assert_close(weights(rest), weights(whole), atol=0)
    assert [row["loss"] for row in again.rows] == [row["loss"] for row in history.rows]
    assert {path.name for path in (tmp_path / "rest").iterdir()} >= {CHECKPOINT, HISTORY, WEIGHTS}
    recipe = json.loads((tmp_path / "whole" / HISTORY).read_text())["recipe"]
    assert recipe["distillation"]["objective"] == "rslad"
    assert recipe["distillation"]["attack"]["eps"] == 0.06
    with pytest.raises(ValueError, match=r"another recipe, so it cannot be resumed: teacher: '\w+' there"):
        train(teacher=teacher(6), out=tmp_path / "whole", resume=True, epochs=4, **options)
    with pytest.raises(ValueError, match=r"cannot be resumed: data: '\w+' there"):
        train(teacher=teacher(), data=blobs(seed=3), out=tmp_path / "whole", resume=True, epochs=4, **options)
    with pytest.raises(
        ValueError, match=r"distillation: .*'temperature': 1.0.* there, .*'temperature': 2.0.* now"
    ):
        train(teacher=teacher(), temperature=2.0, out=tmp_path / "whole", resume=True, epochs=4, **options)


def test_schedulers_are_stepped_by_epoch_and_plateaus_see_robust_accuracy() -> None:
    class Plateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
        seen: tuple[float, ...] = ()

        def step(self, metrics: Any, epoch: Any = None) -> None:
            self.seen += (metrics,)
            super().step(metrics, epoch)

    student = network()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    _, history = train(student, optimizer=optimizer, scheduler=schedule, epochs=3)
    assert [row["lr"] for row in history.rows] == [0.2, 0.1, 0.05]
    plateau = Plateau(optimizer, mode="max")
    options: dict[str, Any] = {"optimizer": optimizer, "scheduler": plateau, "attack": ATTACK}
    _, history = train(student, validation=blobs(24, seed=1), epochs=3, **options)
    assert list(plateau.seen) == [row["robust_accuracy"] for row in history.rows]
    with pytest.raises(
        ValueError, match="validation data and an attack must be given for a ReduceLROnPlateau"
    ):
        train(student, **options)
    with pytest.warns(UserWarning, match=r"mode='min'.* is handed the robust accuracy, which should rise"):
        train(student, validation=blobs(24, seed=1), **{**options, "scheduler": Plateau(optimizer)})
    other = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(network().parameters(), lr=0.1), 1)
    with pytest.raises(ValueError, match="scheduler must be of the optimizer that trains the model"):
        train(student, optimizer=optimizer, scheduler=other)
    for wrong in (0.1, torch.optim.lr_scheduler.StepLR):
        with pytest.raises(
            ValueError, match=r"scheduler must be a torch.optim.lr_scheduler.LRScheduler, got"
        ):
            train(student, optimizer=optimizer, scheduler=wrong)


def test_a_nan_loss_stops_before_it_touches_the_weights(tmp_path: Path) -> None:
    seen = list[dict[str, Tensor]]()
    student = network()

    def broken(student_logits: Tensor, source: Tensor, labels: Tensor) -> Tensor:
        seen.append(weights(student))
        return student_logits.sum(dim=1) * (float("nan") if len(seen) == 5 else 1.0)

    with pytest.raises(
        FloatingPointError,
        match=r"the loss became nan in epoch 2, batch 1: lower the learning rate; .* is kept",
    ):
        train(student, objective=broken, out=tmp_path)
    assert_close(weights(student), seen[-1], atol=0)
    assert not student.training
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert state["epoch"] == 1
    # Without a folder there is no checkpoint to promise.
    with pytest.raises(FloatingPointError, match=r"the weights are those from before this batch$"):
        train(objective=lambda z, *_: z.sum(dim=1) * float("nan"))
    assert_close(state["model"], seen[3], atol=0)


def test_bfloat16_trains() -> None:
    for name in ("kd", "adaad"):
        _, history = train(objective=name, precision="bfloat16", teacher=teacher())
        assert np.isfinite(history.rows[-1]["loss"])


TOGETHER: dict[str, Any] = {
    "objective": "rslad",
    "attack": ATTACK,
    "ema": 0.9,
    "augment": "shift",
    "epochs": 2,
    "batch_size": 17,
}
WORKER = """
import sys
sys.path.insert(0, {tests!r})
from test_distill import TOGETHER, blobs, network, teacher, torch
from art_logits.distill import distill
distill(network(), teacher(), blobs(50), validation=blobs(31, seed=1), out=sys.argv[1], **TOGETHER)
# In one piece: the other process writes to the same pipe.
sys.stdout.write("one of %d, " % torch.distributed.get_world_size())
"""


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    # With --cpu it starts one process, unless there is MPI; the student's device decides where it trains.
    "accelerate": ["accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2"],
}


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("accelerate", marks=pytest.mark.slow)])
def test_two_processes_train_the_student_of_one(tmp_path: Path, launcher: str) -> None:
    """With batches that do not divide by two, augmentation, averaging and validation."""
    pytest.importorskip("accelerate")
    from safetensors.torch import load_file

    script, out = tmp_path / "worker.py", tmp_path / "out"
    script.write_text(WORKER.format(tests=str(Path(__file__).parent)))
    launch = [sys.executable, "-W", "ignore", "-m", *LAUNCHERS[launcher], str(script), str(out)]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("one of 2, ") == 2
    one = network()
    history = distill(one, teacher(), blobs(50), validation=blobs(31, seed=1), **TOGETHER)
    assert_close(load_file(out / WEIGHTS), weights(one), atol=1e-4)
    both = json.loads((out / HISTORY).read_text())["epochs"]
    for first, second in zip(history.rows, both, strict=True):
        for key in set(first) - {"seconds"}:
            assert second[key] == pytest.approx(first[key], abs=1e-4), key


# Refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"objective": "rsald"},
            ValueError,
            r"objective must be one of kd, ard, rslad, iad, adaad, .*mean rslad",
        ),
        ({"objective": "rslad", "attack": None}, ValueError, "attack must be given for objective 'rslad'"),
        ({"attack": "pgd"}, TypeError, "attack must be an art_logits.TemperaturePGD, .* got builtins.str"),
        ({"attack": TemperaturePGD(targeted=True)}, ValueError, "attack must be untargeted"),
        (
            {"attack": TemperaturePGD(eps=2.0)},
            ValueError,
            r"attack's eps 2 exceeds the range of the inputs, 1, so",
        ),
        (
            {"attack": TemperaturePGD(norm="L2", eps=8 / 255)},
            ValueError,
            r"attack's eps 0.03137 is 8/255, a radius for Linf, and its norm is L2: give a radius for L2",
        ),
        ({"temperature": 0}, ValueError, "temperature must be a finite number > 0, got 0"),
        ({"temperature": "1"}, TypeError, "temperature must be a number"),
        ({"alpha": 1.5}, ValueError, r"alpha must lie in \[0, 1\], got 1.5"),
        ({"alpha": -0.1}, ValueError, r"alpha must lie in \[0, 1\], got -0.1"),
        ({"transform": "flatten"}, TypeError, "transform must be an art_logits.transforms.Transform"),
        ({"class_weights": [1.0, 2.0]}, ValueError, "class_weights must have one number per class, 3, got 2"),
        (
            {"class_weights": [1.0, -2.0, 1.0]},
            ValueError,
            "class_weights must be one finite number >= 0 per class",
        ),
        ({"class_weights": "equal"}, TypeError, "class_weights must be numbers, one per class, got 'equal'"),
        ({"teacher": network(classes=4)}, ValueError, "must have the same number of classes, got 4 and 3"),
        ({"teacher": torch.zeros(48, 4)}, ValueError, "must have the same number of classes, got 4 and 3"),
        ({"teacher": torch.zeros(47, 3)}, ValueError, "must have one row per training sample, 48, got 47"),
        ({"teacher": torch.full((48, 3), torch.nan)}, ValueError, "teacher's logits must be finite"),
        ({"teacher": torch.rand(48, 3).softmax(1)}, ValueError, "must be logits, got probabilities"),
        (
            {"teacher": tf.TeacherLogits(torch.zeros(48, 3))},
            ValueError,
            "must be ids of the teacher's logits, got 48",
        ),
        (
            {"teacher": nn.Sequential(teacher(), nn.Softmax(dim=1)), "augment": "shift"},
            ValueError,
            "must be logits, got probabilities",
        ),
        ({"teacher": nn.Sequential(teacher(), nn.Softmax(dim=1))}, ValueError, "got probabilities"),
        (
            # A transform without a fit would hide what the network says.
            {
                "teacher": nn.Sequential(teacher(), nn.Softmax(dim=1)),
                "augment": "shift",
                "transform": tf.Scale(factor=2.0),
            },
            ValueError,
            "teacher's logits must be logits, got probabilities",
        ),
        (
            {
                "teacher": nn.Sequential(teacher(), nn.Softmax(dim=1)),
                "objective": "adaad",
                "attack": ATTACK,
                "transform": tf.Scale(factor=2.0),
            },
            ValueError,
            "teacher's logits must be logits, got probabilities",
        ),
        ({"teacher": "digits-at"}, TypeError, "teacher must be a model, or an array of its logits, got str"),
        (
            {"teacher": torch.zeros(48, 3), "augment": "shift"},
            ValueError,
            "teacher's logits, computed once, cannot follow inputs that are augmented",
        ),
        (
            {"transform": tf.PermuteConfidences(), "augment": "shift"},
            ValueError,
            r"transform Compose\(.*PermuteConfidences.* cannot follow inputs that are augmented",
        ),
        (
            {"transform": tf.PermuteConfidences(), "objective": "adaad", "attack": ATTACK},
            ValueError,
            "objective 'adaad' asks the teacher about perturbed inputs: use kd, ard or rslad",
        ),
        (
            {"teacher": torch.zeros(48, 3), "objective": "iad", "attack": ATTACK},
            ValueError,
            "teacher must be a network for objective 'iad'",
        ),
        ({"data": (blobs()[0], blobs()[1] + 1)}, ValueError, r"labels must lie in \[0, 3\)"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1"),
        ({"ema": 1.0}, ValueError, r"ema must lie in \(0, 1\)"),
        ({"augment": "flip"}, ValueError, "augment must be one of none, crop-flip, shift"),
        ({"precision": "half"}, ValueError, "precision must be one of auto, float32, bfloat16"),
    ],
)
def test_refused_arguments(options: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    student = network()
    before = weights(student)
    arguments = {"teacher": teacher(), "data": blobs(), **QUICK, "out": tmp_path / "out", **options}
    with pytest.raises(error, match=message):
        distill(student, arguments.pop("teacher"), arguments.pop("data"), **arguments)
    assert_close(weights(student), before, atol=0)
    assert not (tmp_path / "out").exists()


def test_a_student_cannot_teach_itself() -> None:
    net = network()
    with pytest.raises(ValueError, match="teacher must be another model than the student"):
        train(net, teacher=net)


def test_students_that_return_probabilities_or_share_weights() -> None:
    with pytest.raises(ValueError, match="student's logits must be logits, got probabilities"):
        train(nn.Sequential(network(), nn.Softmax(dim=1)))
    shared = nn.Sequential((net := network()), nn.Linear(CLASSES, CLASSES))
    with pytest.raises(ValueError, match=r"teacher must not share weights with the student"):
        train(shared, teacher=net)
    net.requires_grad_(False)  # what stands still may be shared
    train(shared, teacher=net)


def test_a_table_cannot_be_asked() -> None:
    with pytest.raises(ValueError, match="teacher must be a network to be asked about other inputs"):
        _Oracle(settle(), None, None)(*blobs())


def test_an_attack_needs_a_radius() -> None:
    with pytest.raises(ValueError, match="attack must be given where there are no data"):
        training_attack(None)
