"""The loop with another model's gradients: what is proposed, what counts, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from art_logits import AttackResult, TemperaturePGD, attack, pgd
from art_logits.attack import Step
from art_logits.prepare import Cast
from art_logits.starts import random_points
from art_logits.temperature import scaled_gap

MODULE = __import__("sys").modules["art_logits.prepare"]


def same(first: AttackResult, second: AttackResult) -> None:
    for name, one, other in zip(first._fields, first, second, strict=True):
        assert torch.equal(one, other), name


class Bent(nn.Module):
    """The model with an error that depends on the input: right in the large, wrong near its boundaries."""

    def __init__(self, model: nn.Module, error: float) -> None:
        super().__init__()
        self.model, self.error = model, error

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs)
        ripple = (1e4 * inputs.flatten(1).sum(dim=1, keepdim=True)).sin()
        sides = torch.arange(logits.shape[1], dtype=logits.dtype) - 1
        return logits + self.error * ripple.detach() * sides


@pytest.fixture
def proposing(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module | None], None]:
    """``proposing(model)``: every attack takes its gradients from that model."""
    return lambda model: monkeypatch.setattr(attack, "gradient_model", lambda *args, **options: model)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "_WORTHWHILE", 0)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"restarts": 3},
    {"restarts": 3, "redraw": 0.3},
    {"stop_on_success": False},
    {"keep": "last"},
    {"keep": "last", "stop_on_success": False},
    {"random_start": False, "momentum": 0.75},
    {"steps": 0, "restarts": 2},
    {"start_radius": 3.0},
    {"start_radius": 2.0, "random_start": False, "keep": "last"},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("error", [0.3, 30.0])
def test_2_what_is_reported_is_the_original_s_whatever_was_proposed(
    curved: nn.Module, images: Any, proposing: Any, options: dict[str, Any], error: float
) -> None:
    x, labels = images(30, dtype=torch.float64), torch.arange(30) % 3
    proposing(Bent(curved, error))
    result = pgd(curved, x, labels, **{"eps": 0.02, "steps": 5, **options})
    logits = curved(result.adv_inputs).detach()
    assert torch.equal(result.logits, logits)
    assert torch.equal(result.success, logits.argmax(dim=1) != labels)
    own = logits[torch.arange(30), labels]
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    torch.testing.assert_close(result.margin, others - own)
    assert bool(((result.adv_inputs - x).abs() <= 0.02 + 1e-9).all())


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("batch_size", [1, 7, None])
def test_4_proposals_do_not_make_results_depend_on_the_batch(
    curved: nn.Module, images: Any, proposing: Any, options: dict[str, Any], batch_size: int | None
) -> None:
    x, labels, ids = images(23, dtype=torch.float64), torch.arange(23) % 3, torch.arange(23)
    proposing(Bent(curved, 0.3))
    pgd_ = TemperaturePGD(**{"eps": 0.02, "steps": 4, **options})
    whole = pgd_(curved, x, labels, ids)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(5))
    moved = pgd_(curved, x[order], labels[order], ids[order], batch_size=batch_size)
    same(moved, AttackResult(*(column[order] for column in whole)))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("batch_size", [None, 4])
def test_counted_passes_are_those_of_both_models(
    curved: nn.Module,
    images: Any,
    record: Any,
    proposing: Any,
    options: dict[str, Any],
    batch_size: int | None,
) -> None:
    x, labels = images(20, dtype=torch.float64), torch.arange(20) % 3
    original, proposer = record(curved), record(Bent(curved, 0.3))
    proposing(proposer)
    result = pgd(original, x, labels, batch_size=batch_size, **{"eps": 0.02, "steps": 4, **options})
    assert int(result.forwards.sum()) == sum(original.rows) + sum(proposer.rows)
    assert int(result.backwards.sum()) == sum(proposer.backward_rows)
    assert original.backward_rows == []


def test_an_unverified_success_goes_on(
    curved: nn.Module, images: Any, predict: Any, record: Any, proposing: Any
) -> None:
    """A proposer that calls everything a success costs a pass at each step, and loses nothing."""
    x = images(20, dtype=torch.float64)
    labels = predict(curved, x)

    class Optimist(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            logits = curved(inputs)
            return logits - 1e3 * nn.functional.one_hot(labels[:1].expand(len(inputs)), 3)

    same_label = labels == labels[0]
    x, labels = x[same_label], labels[same_label]
    options: dict[str, Any] = {"eps": 0.01, "steps": 5, "temperature": 1.0, "loss": "margin"}
    plain = pgd(curved, x, labels, **options)
    proposing(Optimist())
    original = record(curved)
    found = pgd(original, x, labels, **options)
    assert 0 < int(plain.success.sum()) < len(x)
    assert torch.equal(found.success, plain.success)
    # Clean, and as many as there are steps at most: those that fall, fall before.
    assert 4 * len(x) < sum(original.rows) <= 7 * len(x)


@pytest.mark.parametrize(("enough", "most", "few"), [(1, 20, 3), (1000, 2, 1)])
def test_claims_wait_for_one_another(
    curved: nn.Module,
    images: Any,
    predict: Any,
    record: Any,
    proposing: Any,
    monkeypatch: pytest.MonkeyPatch,
    enough: int,
    most: int,
    few: int,
) -> None:
    """One pass of the original for many of them; who waits for whom decides nothing else."""
    monkeypatch.setattr(attack, "_CLAIMS", enough)
    x = images(40, dtype=torch.float64)
    labels = predict(curved, x)
    # Small steps, so that not all of them claim at once.
    options: dict[str, Any] = {"eps": 0.02, "steps": 8, "step_size": 0.004, "random_start": False}
    proposing(None)
    plain = pgd(curved, x, labels, **options)
    original = record(curved)
    proposing(Bent(curved, 0.0))
    found = pgd(original, x, labels, batch_size=30, **options)
    assert 5 < int(found.success.sum()) < 35
    assert torch.equal(found.adv_inputs, plain.adv_inputs)
    # Clean in two parts; what was claimed, and how the others ended.
    assert few <= len(original.rows) - 2 - 1 <= most
    assert sum(original.rows) == 40 + 40


@pytest.fixture
def clean_by_proposer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where a proposer in less than float32 looks at the clean inputs first."""
    monkeypatch.setattr(attack, "is_rounded", lambda proxy, device: proxy is not None)


@pytest.mark.usefixtures("clean_by_proposer")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("batch_size", [None, 7])
def test_clean_inputs_are_judged_by_the_original_where_it_matters(
    curved: nn.Module,
    images: Any,
    predict: Any,
    record: Any,
    proposing: Any,
    options: dict[str, Any],
    batch_size: int | None,
) -> None:
    """A proposer that is right spares the original those that are attacked with success, and no more."""
    x = images(40, dtype=torch.float64)
    labels = predict(curved, x)
    labels[::8] += 1
    labels %= 3
    attack_ = TemperaturePGD(**{"eps": 0.02, "steps": 5, **options})
    proposing(None)
    plain = attack_(curved, x, labels, batch_size=batch_size)
    original, proposer = record(curved), record(Bent(curved, 0.0))
    proposing(proposer)
    found = attack_(original, x, labels, batch_size=batch_size)
    for name in ("adv_inputs", "logits", "success", "margin", "restart", "backwards"):
        if attack_.keep == "best" or name not in ("adv_inputs", "logits", "margin"):
            assert torch.equal(getattr(found, name), getattr(plain, name)), name
    assert int(found.forwards.sum()) == sum(original.rows) + sum(proposer.rows)
    if not attack_.stop_on_success:
        assert torch.equal(found.clean_margin, plain.clean_margin) or not attack_.looks_at_inputs
        return
    known = (found.restart < 0) | ~found.success
    assert torch.equal(found.clean_margin[known], plain.clean_margin[known])
    assert int(known.sum()) >= 5
    if attack_.restarts == 1:
        assert bool(found.clean_margin[~known].isnan().all())


@pytest.mark.usefixtures("clean_by_proposer")
@pytest.mark.parametrize("options", [{}, {"restarts": 2}, {"keep": "last"}])
@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("proposed", [False, True])
def test_a_clean_input_is_wrong_or_right_by_the_original_s_word(
    proposing: Any, options: dict[str, Any], wrong: bool, proposed: bool
) -> None:
    """What the proposer calls wrong is checked at once, what it calls right at the end."""

    def margins(clean_is_wrong: bool) -> dict[int, float]:
        return {**dict.fromkeys(range(11), -1.0), 5: 2.0 if clean_is_wrong else -2.0}

    proposing(Table(margins(proposed)))
    asked: dict[str, Any] = {"eps": 0.3, "steps": 3, "step_size": 0.1, "random_start": False, **options}
    result = pgd(Table(margins(wrong)), torch.tensor([[0.5]]), torch.tensor([0]), **asked)
    assert result.success.tolist() == [wrong]
    assert result.clean_margin.tolist() == [2.0 if wrong else -2.0]
    if wrong:
        assert result.restart.tolist() == [-1]
        assert result.adv_inputs.tolist() == torch.tensor([[0.5]]).tolist()
        assert result.margin.tolist() == [2.0]
        assert result.logits.tolist() == [[0.0, 2.0]]
        assert bool(result.backwards == 0) == proposed
    else:
        assert bool(result.backwards > 0)


@pytest.mark.usefixtures("clean_by_proposer")
def test_clean_logits_that_are_not_finite_are_the_original_s_affair(
    curved: nn.Module, images: Any, predict: Any, proposing: Any
) -> None:
    class Broken(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return curved(inputs) * torch.nan

    x = images(6, dtype=torch.float64)
    labels = predict(curved, x)
    proposing(Broken())
    result = pgd(curved, x, labels, eps=0.01, steps=2)
    assert not bool(result.clean_margin.isnan().any())
    proposing(curved)
    with pytest.raises(ValueError, match="must return finite logits, got NaN for a clean input"):
        pgd(Broken(), x, labels, eps=0.01, steps=2)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_success_that_was_never_proposed_is_found_at_the_end(
    curved: nn.Module, images: Any, predict: Any, proposing: Any, keep: str
) -> None:
    x = images(40, dtype=torch.float64)
    labels = predict(curved, x)

    class Pessimist(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            # The right order and gradients, and never the wrong class on top.
            logits = curved(inputs)
            rows = torch.tensor([int((x - point).abs().flatten(1).sum(dim=1).argmin()) for point in inputs])
            return logits + 1e3 * nn.functional.one_hot(labels[rows], 3)

    # The margin's gradient does not see the constant.
    options: dict[str, Any] = {"eps": 0.02, "steps": 6, "loss": "margin", "keep": keep}
    plain = pgd(curved, x, labels, **options)
    proposing(Pessimist())
    found = pgd(curved, x, labels, **options)
    assert 5 < int(plain.success.sum()) < 40
    if keep == "best":
        assert torch.equal(found.success, plain.success)
    assert int(found.success.sum()) >= int(plain.success.sum()) - (keep == "last")


def test_1_the_best_proposal_of_each_restart_is_kept(
    curved: nn.Module, images: Any, predict: Any, record: Any, proposing: Any
) -> None:
    """With a proposer that is right, a failed attack returns its best iterate, as without one."""
    x = images(40, dtype=torch.float64)
    labels = predict(curved, x)
    for options in ({"stop_on_success": False}, {"restarts": 2}, {"stop_on_success": False, "restarts": 2}):
        asked: dict[str, Any] = {"eps": 0.02, "steps": 5, "step_size": 0.06, **options}
        proposing(None)
        plain = pgd(curved, x, labels, **asked)
        proposing(Bent(curved, 0.0))
        found = pgd(curved, x, labels, **asked)
        assert torch.equal(found.adv_inputs, plain.adv_inputs)
        assert torch.equal(found.margin, plain.margin)
        assert torch.equal(found.restart, plain.restart)


class Table(nn.Module):
    """Margins at tenths of one pixel, under a slope that always points upwards."""

    def __init__(self, margins: dict[int, float]) -> None:
        super().__init__()
        self.margins = margins

    def forward(self, x: Tensor) -> Tensor:
        values = [self.margins[round(10 * point)] for point in x.flatten().tolist()]
        other = torch.tensor(values).to(x).unsqueeze(1) + (x - x.detach())
        return torch.cat([torch.zeros_like(other), other], dim=1)


@pytest.mark.parametrize("success_at", [6, 7, 8])
def test_refuted_claims_are_no_candidates_for_the_end(proposing: Any, success_at: int) -> None:
    """The best of what the original has not seen is what it sees at the end, the last iterate included."""
    proposal = {5: -9.0, 6: -1.0, 7: -1.0, 8: -1.0, success_at: -0.5}
    claimed = 7 if success_at != 7 else 8
    truth = {point: 1.0 if point == success_at else -1.0 for point in range(5, 9)}
    proposing(Table({**proposal, claimed: 5.0}))
    options: dict[str, Any] = {"eps": 0.4, "steps": 3, "step_size": 0.1, "random_start": False}
    result = pgd(Table(truth), torch.tensor([[0.5]]), torch.tensor([0]), **options)
    assert bool(result.success)
    assert round(10 * float(result.adv_inputs)) == success_at
    # Clean, three steps, the last iterate as proposed, the claim, and the best of the others.
    assert int(result.forwards) == 7


def test_a_run_that_was_refuted_is_heard_again(proposing: Any) -> None:
    """How much a stand-in overstates differs from point to point: its lowest claim is the success here."""
    proposing(Table({5: -9.0, 6: 5.0, 7: 0.5, 8: 0.9}))
    options: dict[str, Any] = {"eps": 0.4, "steps": 3, "step_size": 0.1, "random_start": False}
    truth = Table({5: -1.0, 6: -1.0, 7: 1.0, 8: -1.0})
    result = pgd(truth, torch.tensor([[0.5]]), torch.tensor([0]), **options)
    assert bool(result.success)
    assert round(10 * float(result.adv_inputs)) == 7
    # Clean, three steps, and two claims.
    assert (int(result.forwards), int(result.backwards)) == (6, 3)


class Sloping(Table):
    """Around logits of 10, which bfloat16 rounds by up to 10 / 256, under a slope that points up or down."""

    def __init__(self, margins: dict[int, float], slope: float, dtype: torch.dtype | None = None) -> None:
        super().__init__(margins)
        self.slope, self.dtype = slope, dtype

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x.detach() + self.slope * (x - x.detach()))
        return logits + 10


MISSES = pytest.mark.parametrize(
    ("height", "dtype", "options"),
    [
        (-0.038, torch.bfloat16, {}),
        (-0.041, torch.bfloat16, {}),
        (0.01, torch.bfloat16, {}),
        (-0.038, None, {}),
        (-0.038, torch.bfloat16, {"stop_on_success": False}),
        (-0.038, torch.bfloat16, {"keep": "last"}),
    ],
)


@MISSES
def test_what_rounding_has_missed_takes_its_last_steps_again(
    proposing: Any, height: float, dtype: torch.dtype | None, options: dict[str, Any]
) -> None:
    """The stand-in leads down, and its best point, at 0.4, is nearly a success; the original leads up."""
    proposing(Sloping({1: -9.0, 2: -9.0, 3: -9.0, 4: -1.0, 5: -9.0}, -1.0, dtype))
    truth = Sloping({**dict.fromkeys(range(1, 10), -1.0), 1: height, 4: height, 6: 1.0}, 1.0)
    asked: dict[str, Any] = {"eps": 0.4, "steps": 8, "step_size": 0.1, "random_start": False, **options}
    observed: list[Step] = []
    watch = TemperaturePGD(**asked)
    result = watch(truth, torch.tensor([[0.5]]), torch.tensor([0]), observer=observed.append)
    again = -10 / 256 < height < 0 and dtype is not None and not options
    assert bool(result.success) == (again or height > 0)
    steps = [int(step.step) for step in observed]
    assert steps == [*range(8), *([6, 7] if again else [])]
    assert int(result.backwards) == len(steps)
    if again:
        assert round(10 * float(result.adv_inputs)) == 6
        assert int(result.restart) == 0
        # Clean, eight steps, the last iterate as proposed, the best of the run, two steps, where they end.
        assert int(result.forwards) == 14


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_short_run_has_a_last_step_to_take_again(proposing: Any, steps: int) -> None:
    proposing(Sloping({4: -1.0, 5: -9.0, **dict.fromkeys(range(4), -9.0)}, -1.0, torch.bfloat16))
    truth = Sloping({**dict.fromkeys(range(10), -1.0), 4: -0.01}, 1.0)
    asked: dict[str, Any] = {"eps": 0.4, "step_size": 0.1, "random_start": False}
    result = pgd(truth, torch.tensor([[0.5]]), torch.tensor([0]), steps=steps, **asked)
    assert not bool(result.success)
    assert int(result.backwards) == (steps + 1 if steps else 0)
    assert round(10 * float(result.adv_inputs)) == (4 if steps else 5)


def test_a_function_of_the_user_s_sees_all_that_take_steps_again(
    proposing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attack, "rows_per_pass", lambda *args, **options: 1)
    proposing(Sloping({3: -9.0, 4: -1.0, 5: -9.0}, -1.0, torch.bfloat16))
    truth = Sloping({**dict.fromkeys(range(3, 8), -1.0), 4: -0.01}, 1.0)
    rows = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        rows.append(len(logits))
        return nn.functional.cross_entropy(logits, labels, reduction="none")

    asked: dict[str, Any] = {"eps": 0.2, "step_size": 0.1, "random_start": False, "steps": 2, "loss": loss}
    result = pgd(truth, torch.full((3, 1), 0.5), torch.zeros(3, dtype=torch.int64), **asked)
    assert result.backwards.tolist() == [3, 3, 3]
    assert rows == [3, 3, 3]


@pytest.mark.parametrize(("on_gpu", "longest"), [(True, 20 + 2 * (attack._PATIENCE - 1)), (False, 20 + 18)])
def test_the_refuted_do_not_stay_behind_on_a_gpu(
    record: Any, proposing: Any, monkeypatch: pytest.MonkeyPatch, on_gpu: bool, longest: int
) -> None:
    """A claim, and a later one, is not worth a pass beside three samples until it has waited for a while."""
    monkeypatch.setattr(attack, "_on_gpu", lambda inputs: on_gpu)
    margins = dict.fromkeys(range(100), -1.0)
    proposer = record(Table({**margins, 1: 5.0, 10: 9.0}))
    proposing(proposer)
    x, labels = torch.tensor([[0.0], [3.0], [4.0], [5.0]]), torch.zeros(4, dtype=torch.int64)
    options: dict[str, Any] = {"eps": 2.0, "step_size": 0.1, "random_start": False, "bounds": (0.0, 10.0)}
    result = pgd(Table(margins), x, labels, steps=20, **options)
    assert not bool(result.success.any())
    assert result.backwards.tolist() == [20] * 4
    assert len(proposer.backward_rows) == longest


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("stop_on_success", [True, False])
def test_fused_float32_flips_next_to_nothing(
    net: nn.Module, images: Any, predict: Any, stop_on_success: bool
) -> None:
    x = images(500)
    labels = predict(net, x)
    options: dict[str, Any] = {"eps": 0.03, "steps": 5, "stop_on_success": stop_on_success}
    plain = pgd(net, x, labels, **options, precision="float32", fuse=False)
    fused = pgd(net, x, labels, **options, precision="float32")
    assert 0.2 < float(plain.success.float().mean()) < 0.9
    assert float((plain.success != fused.success).float().mean()) <= 0.002
    # It was another way: what another model proposes has to be verified.
    assert int(fused.forwards.sum()) > int(plain.forwards.sum())


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("keep", ["last", "best"])
def test_8_the_steps_that_the_hosts_take_are_those_of_the_plain_model(
    net: nn.Module, images: Any, keep: str
) -> None:
    x, labels = images(30), torch.arange(30) % 5
    options: dict[str, Any] = {"steps": 4, "stop_on_success": False, "keep": keep, "precision": "float32"}
    plain = pgd(net, x, labels, fuse=False, **options)
    asked = pgd(net, x, labels, **options)
    # One pass more verifies what another model has proposed.
    assert torch.equal(asked.forwards, plain.forwards) == (keep == "last")
    if keep == "last":
        same(asked, plain)


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("worthwhile", [True, False])
def test_where_float32_is_rounded_gradients_are_and_verdicts_are_not(
    net: nn.Module, images: Any, monkeypatch: pytest.MonkeyPatch, keep: str, worthwhile: bool
) -> None:
    """A GPU computes in TF32 what torch lets it; a small model is not worth the passes that verify."""
    monkeypatch.setattr(MODULE, "_computes_in_tf32", lambda device: True)
    monkeypatch.setattr(MODULE, "_WORTHWHILE", 0 if worthwhile else 2**40)
    seen = set()
    net.register_forward_pre_hook(
        lambda *_: seen.add((torch.is_grad_enabled(), torch.get_float32_matmul_precision()))
    )
    x, labels = images(30), torch.arange(30) % 5
    options: dict[str, Any] = {"steps": 4, "stop_on_success": False, "keep": keep, "precision": "float32"}
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = pgd(net, x, labels, fuse=False, **options)
    finally:
        torch.set_float32_matmul_precision(before)
    rounded = (True, "high") in seen
    assert rounded == worthwhile
    assert ((True, "highest") in seen) != worthwhile
    assert (False, "highest") in seen
    with torch.no_grad():
        assert torch.equal(found.success, net(found.adv_inputs).argmax(dim=1) != labels)
    if keep == "last":  # no bfloat16 in this CPU's products: the very points of the plain model
        same(found, pgd(net, x, labels, fuse=False, **options))


def test_a_proposer_s_memory_layout_stays_its_own(proposing: Any) -> None:
    """It likes its channels last; its gradients must not carry that on to the points that others get."""
    laid_out = []
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    )
    proposing(Cast(net, channels_last=True))

    class Original(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            laid_out.append(inputs.is_contiguous())
            logits: Tensor = net(inputs)
            return logits

    def watch(step: Step) -> None:
        laid_out.extend([step.inputs.is_contiguous(), step.gradient.is_contiguous()])

    options: dict[str, Any] = {"eps": 0.03, "steps": 3}
    TemperaturePGD(**options)(Original(), torch.rand(20, 3, 8, 8), torch.arange(20) % 5, observer=watch)
    assert len(laid_out) >= 8  # three steps, the clean images and the end
    assert all(laid_out)


@pytest.mark.parametrize("fuse", [True, False])
def test_bfloat16_is_as_strong(net: nn.Module, images: Any, predict: Any, large: None, fuse: bool) -> None:
    x = images(500)
    labels = predict(net, x)
    options: dict[str, Any] = {"eps": 0.03, "steps": 5}
    plain = pgd(net, x, labels, **options, precision="float32", fuse=False)
    half = pgd(net, x, labels, **options, precision="bfloat16", fuse=fuse)
    assert int(half.success.sum()) >= int(plain.success.sum()) - 1
    with torch.no_grad():
        assert torch.equal(half.success, net(half.adv_inputs).argmax(dim=1) != labels)
    parts = pgd(net, x, labels, **options, precision="bfloat16", fuse=fuse, batch_size=64)
    assert float((half.success != parts.success).float().mean()) <= 0.002


def test_precision_has_no_effect_on_float64_models(curved: nn.Module, images: Any) -> None:
    x, labels = images(10, dtype=torch.float64), torch.arange(10) % 3
    same(pgd(curved, x, labels, precision="bfloat16"), pgd(curved, x, labels, precision="float32"))


@pytest.mark.parametrize(
    ("prepared", "asked", "as_asked"),
    [
        ({"precision": "bfloat16"}, {}, {"precision": "bfloat16"}),
        ({"precision": "bfloat16"}, {"precision": "float32"}, {"precision": "float32"}),
        ({"precision": "bfloat16"}, {"fuse": False}, {"precision": "bfloat16", "fuse": False}),
        ({"precision": "float32", "fuse": False}, {}, {"precision": "float32", "fuse": False}),
    ],
    ids=str,
)
def test_gradients_come_from_a_prepared_model_and_verdicts_from_its_original(
    net: nn.Module, images: Any, large: None, prepared: Any, asked: Any, as_asked: Any
) -> None:
    x, labels = images(20), torch.arange(20) % 5
    model = MODULE.prepare(net, channels_last=prepared.get("fuse", True), **prepared)
    found = pgd(model, x, labels, eps=0.02, steps=3, **asked)
    same(found, pgd(net, x, labels, eps=0.02, steps=3, **as_asked))
    with torch.no_grad():
        assert torch.equal(found.success, net(found.adv_inputs).argmax(dim=1) != labels)


def test_a_small_model_is_prepared_where_that_was_asked_for(
    net: nn.Module, images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And compiled, once: the switches of :func:`prepare` reach an attack through the model it is given."""
    compiled: list[nn.Module] = []

    def compiler(model: nn.Module, **options: Any) -> nn.Module:
        compiled.append(model)
        return model

    monkeypatch.setattr(torch, "compile", compiler)
    x, labels = images(10), torch.arange(10) % 5
    model = MODULE.prepare(net, compile=True)
    for _ in range(2):
        found = pgd(model, x, labels, eps=0.02, steps=3)
    plain = pgd(net, x, labels, eps=0.02, steps=3)
    assert len(compiled) == 1
    torch.testing.assert_close(found.adv_inputs, plain.adv_inputs)
    assert int(found.forwards.sum()) > int(plain.forwards.sum())  # the original's passes, which verify


@pytest.mark.usefixtures("large")
def test_auto_is_resolved_by_the_probe(net: nn.Module, images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = images(20), torch.arange(20) % 5
    by_name = {name: pgd(net, x, labels, steps=3, precision=name) for name in ("float32", "bfloat16")}
    for name, expected in by_name.items():
        monkeypatch.setattr(attack, "choose_precision", lambda *args, name=name, **options: name)
        same(pgd(net, x, labels, steps=3), expected)
    assert not torch.equal(by_name["float32"].adv_inputs, by_name["bfloat16"].adv_inputs)


# Slots and memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_on_success", [True, False])
@pytest.mark.parametrize(
    ("count", "batch_size", "restarts", "eps"), [(120, 8, 1, 0.02), (120, 32, 3, 0.02), (45, 32, 6, 0.01)]
)
def test_slots_are_full_until_the_queue_is_empty(
    curved: nn.Module,
    images: Any,
    predict: Any,
    count: int,
    batch_size: int,
    restarts: int,
    stop_on_success: bool,
    eps: float,
) -> None:
    """Counted over the passes at which enough samples, or restarts of them, are still to be attacked."""
    x = images(count, dtype=torch.float64)
    passes: list[list[int]] = []
    pgd_ = TemperaturePGD(eps=eps, steps=7, restarts=restarts, stop_on_success=stop_on_success)
    labels = predict(curved, x)
    pgd_(curved, x, labels, batch_size=batch_size, observer=lambda step: passes.append(step.rows.tolist()))
    # A sample has one restart at a time: with fewer samples left than slots, no queue can fill them.
    full, unfinished = [], set()
    for rows in reversed(passes):
        unfinished |= set(rows)
        if len(unfinished) >= batch_size:
            full.append(len(rows))
    assert len(full) > 3
    assert max(map(len, passes)) <= batch_size
    assert sum(full) >= 0.95 * batch_size * len(full)


@pytest.mark.parametrize(
    ("options", "largest"),
    [
        ({}, 9),
        ({"temperature": partial(scaled_gap, scale=0.5)}, 9),
        ({"temperature": lambda z, t: z[:, 0] * 0 + 1}, 30),
    ],
)
def test_passes_on_a_cpu_have_the_size_that_a_cpu_likes(
    curved: nn.Module,
    images: Any,
    record: Any,
    proposing: Any,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    largest: int,
) -> None:
    """Each model its own; and not where a function of the user's sees the batch."""
    x, labels = images(30, dtype=torch.float64), torch.arange(30) % 3
    original, proposer, slots = record(curved), record(Bent(curved, 0.0)), []
    pgd_ = TemperaturePGD(eps=0.02, steps=3, stop_on_success=False, **options)
    plain = pgd_(curved, x, labels, observer=lambda step: slots.append(len(step.rows)))
    monkeypatch.setattr(attack, "rows_per_pass", lambda model, inputs, dtype=0: 7 if dtype == 0 else 9)
    proposing(proposer)
    found = pgd_(original, x, labels, observer=lambda step: slots.append(len(step.rows)))
    assert set(slots) == {30}
    assert (max(original.rows), max(proposer.rows)) == (7, largest)
    assert torch.equal(found.adv_inputs, plain.adv_inputs)


class Cramped(nn.Module):
    """Runs out of memory above a batch size; another one where a gradient is wanted."""

    def __init__(self, model: nn.Module, forward: int, backward: int) -> None:
        super().__init__()
        self.model, self.limits = model, (forward, backward)
        self.served: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) > self.limits[torch.is_grad_enabled()]:
            raise torch.OutOfMemoryError("tried to allocate 1 GiB")
        self.served.append(len(inputs))
        logits: Tensor = self.model(inputs)
        return logits


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("limits", [(7, 3), (3, 7), (1, 1), (100, 9)])
def test_out_of_memory_halves_the_batch_and_changes_nothing_else(
    curved: nn.Module, images: Any, options: dict[str, Any], limits: tuple[int, int]
) -> None:
    x, labels = images(30, dtype=torch.float64), torch.arange(30) % 3
    pgd_ = TemperaturePGD(**{"eps": 0.02, "steps": 4, **options})
    cramped = Cramped(curved, *limits)
    found = pgd_(cramped, x, labels, batch_size=20)
    same(found, pgd_(curved, x, labels, batch_size=20))
    # What is counted is what went through: nothing is lost, and nothing done twice.
    assert sum(cramped.served) == int(found.forwards.sum())


def test_out_of_memory_at_a_single_sample_is_said(curved: nn.Module, images: Any) -> None:
    x, labels = images(5, dtype=torch.float64), torch.arange(5) % 3
    with pytest.raises(torch.OutOfMemoryError, match="with a single sample in the batch"):
        pgd(Cramped(curved, 0, 0), x, labels)


@pytest.mark.parametrize("options", OPTIONS)
def test_rows_that_fill_up_a_pass_change_nothing_else(
    curved: nn.Module, images: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """As a GPU is served: passes of few sizes, filled up with a row that nobody looks at."""
    x, labels = images(30, dtype=torch.float64), torch.arange(30) % 3
    attack_ = TemperaturePGD(**{"eps": 0.02, "steps": 4, **options})
    plain = attack_(curved, x, labels, batch_size=20)
    monkeypatch.setattr(
        attack, "rows_to_hand_over", lambda model, inputs, most: MODULE._few_shapes(len(inputs), most)
    )
    served = Cramped(curved, 20, 20)
    same(attack_(served, x, labels, batch_size=20), plain)
    assert set(served.served) <= {8, 16, 20}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("error", [None, 0.3])
def test_what_a_gpu_is_spared_changes_nothing(
    curved: nn.Module,
    images: Any,
    predict: Any,
    proposing: Any,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    error: float | None,
) -> None:
    """Starts drawn ahead, batches cut into full parts, claims that wait for fewer."""
    x = images(50, dtype=torch.float64)
    labels = predict(curved, x)
    attack_ = TemperaturePGD(**{"eps": 0.02, "steps": 4, **options})
    proposing(None if error is None else Bent(curved, error))
    plain = attack_(curved, x, labels, batch_size=12)
    drawn: list[int] = []

    def noted(ball: Any, like: Tensor, **keys: Any) -> Tensor:
        drawn.append(len(like))
        return random_points(ball, like, **keys)

    monkeypatch.setattr(attack, "random_points", noted)
    monkeypatch.setattr(attack, "_on_gpu", lambda inputs: True)
    monkeypatch.setattr(attack, "_LEAST", {False: 2, True: 4})
    served = Cramped(curved, 12, 12)
    if error is None:
        same(attack_(served, x, labels, batch_size=12), plain)
        assert {8, 4} <= set(served.served)
    else:
        same(attack_(curved, x, labels, batch_size=12), plain)
    if attack_.random_start and attack_.restarts == 1:
        # All that are attacked, 12 at a time or fewer, and no other.
        attacked = int((plain.backwards > 0).sum()) if attack_.steps else len(x)
        assert sum(drawn) == attacked
        assert max(drawn) == 12
        assert len(drawn) <= attacked // 12 + 2


def test_ids_are_made_for_random_starts_alone(
    curved: nn.Module, images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("hashed")

    x, labels = images(5, dtype=torch.float64), torch.arange(5) % 3
    expected = pgd(curved, x, labels, steps=2, random_start=False)
    monkeypatch.setattr(attack, "sample_hashes", refuse)
    same(pgd(curved, x, labels, steps=2, random_start=False), expected)
    for options in ({}, {"random_start": False, "restarts": 2}):
        with pytest.raises(AssertionError, match="hashed"):
            pgd(curved, x, labels, steps=2, **options)


def test_an_infinite_gradient_is_counted_and_replaced_by_the_margin_s() -> None:
    weights = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    x, labels = torch.tensor([[0.9, 0.1]]), torch.tensor([0])
    steep = {"loss": lambda z, y: -(z[:, 0] * 1e38) * 1e3, "temperature": 1.0}  # beyond float32's range
    result = pgd(lambda inputs: inputs @ weights, x, labels, eps=0.2, steps=3, **steep)
    assert result.zero_gradients.tolist() == [3]
    torch.testing.assert_close(result.margin, torch.tensor([-0.8]))
