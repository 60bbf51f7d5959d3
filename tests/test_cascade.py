from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from art_logits import AttackResult, TemperaturePGD, evaluate, prepare
from art_logits.attack import Step
from art_logits.cascade import Cascade, _Near, _replaced, _Spread, _Turn, quick, rows_of, strong
from art_logits.data import load_data
from art_logits.models import load_model
from art_logits.presets import parse_attack

EPS = 0.03


def assert_same(first: AttackResult, second: AttackResult) -> None:
    for name, one, other in zip(first._fields, first, second, strict=True):
        assert torch.equal(one, other), name
    assert torch.equal(first.zero_gradients, second.zero_gradients)
    assert torch.allclose(first.clean_margin, second.clean_margin, rtol=0, atol=0, equal_nan=True)


def stage(**options: Any) -> TemperaturePGD:
    return TemperaturePGD(**{"eps": EPS, "steps": 4, **options})


def mixed(**options: Any) -> Cascade:
    """Weak, targeted and restarted stages, so that samples fall in all of them."""
    return Cascade(
        stages=[
            stage(steps=1, step_size=0.2 * EPS, seed=0, **options),
            stage(steps=2, step_size=0.4 * EPS, seed=1, targeted=True, loss="margin", **options),
            stage(steps=3, step_size=0.4 * EPS, seed=2, restarts=2, loss="margin", **options),
            stage(steps=4, seed=3, targeted=True, loss="margin", **options),
        ]
    )


@pytest.fixture
def problem(curved, images, predict) -> tuple[Any, Tensor, Tensor]:
    x = images(60, dtype=torch.float64)
    labels = predict(curved, x)
    labels[::10] = (labels[::10] + 1) % 3  # some are wrong from the start
    return curved, x, labels


def test_a_cascade_of_one_is_that_attack(problem):
    attack = stage(restarts=2)
    assert_same(Cascade(stages=[attack])(*problem), attack(*problem))


@pytest.mark.parametrize("first", [{}, {"targeted": True}, {"keep": "last", "stop_on_success": False}])
def test_known_clean_logits_spare_their_pass(problem, first):
    model, x, labels = problem
    attack = Cascade(stages=[stage(**first), *mixed().stages[1:]], reach=0.9)
    asked = attack(model, x, labels)
    told = attack(model, x, labels, clean_logits=model(x))
    assert (asked.forwards - told.forwards).tolist() == [1] * len(x)
    assert not told.logits.requires_grad
    assert not told.clean_margin.requires_grad
    assert_same(_replaced(told, forwards=asked.forwards), asked)


def test_bad_clean_logits(problem):
    model, x, labels = problem
    with pytest.raises(ValueError, match=r"clean_logits must have shape \(60, C\), C >= 2, got \(59, 3\)"):
        mixed()(model, x, labels, clean_logits=model(x)[1:])
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\)"):
        mixed()(model, x, labels + 7, clean_logits=model(x))


def test_each_stage_attacks_what_still_stands_and_the_best_margin_is_kept(problem):
    model, x, labels = problem
    stages = [
        stage(steps=1, step_size=0.2 * EPS),
        stage(steps=2, step_size=0.4 * EPS, loss="margin", seed=1),
        stage(seed=2, restarts=3),
    ]
    result = Cascade(stages=stages)(model, x, labels)
    alone = [attack(model, x, labels) for attack in stages]
    falls = torch.zeros(3, dtype=torch.int64)
    for row in range(len(x)):
        run = []
        for attack in alone:
            run.append(attack)
            if attack.success[row]:
                break
        falls[len(run) - 1] += int(run[-1].success[row])
        best = run[-1] if run[-1].success[row] else max(run, key=lambda found: float(found.margin[row]))
        for name in ("adv_inputs", "logits", "success", "margin"):
            assert torch.equal(getattr(result, name)[row], getattr(best, name)[row])
        # Alone, each looks at the clean input; together they look once.
        assert result.forwards[row] == sum(attack.forwards[row] - 1 for attack in run) + 1
        assert result.backwards[row] == sum(attack.backwards[row] for attack in run)
    assert (falls > 0).all()
    assert 0 < int(result.success.sum()) < len(x)


def test_restarts_are_counted_through_the_stages(problem):
    model, x, labels = problem
    weak, middling = (
        stage(steps=1, step_size=0.2 * EPS),
        stage(steps=2, step_size=0.4 * EPS, restarts=3, seed=1),
    )
    attack = Cascade(stages=[weak, middling, stage(seed=2)])
    result = attack(model, x, labels)
    numbers = torch.tensor([-1, 0, 1, 2, 3, 4])
    assert attack.stage_of(numbers).tolist() == [-1, 0, 1, 1, 1, 2]
    wrong = model(x).argmax(1) != labels
    assert (result.restart[wrong] == -1).all()
    assert (attack.stage_of(result.restart)[~wrong] >= 0).all()
    alone = attack.stages[1](model, x, labels)
    second = attack.stage_of(result.restart) == 1
    assert second.any()
    assert torch.equal(result.restart[second], alone.restart[second] + 1)


@pytest.mark.parametrize("size", [1, 7, None])
def test_4_a_sample_does_not_notice_the_others(problem, size):
    model, x, labels = problem
    ids = torch.arange(100, 160)
    whole = mixed()(model, x, labels, ids)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:37]
    part = mixed()(model, x[order], labels[order], ids[order], batch_size=size)
    expected = AttackResult(*(column[order] for column in whole))
    expected.zero_gradients, expected.clean_margin = whole.zero_gradients[order], whole.clean_margin[order]
    assert_same(part, expected)
    assert not torch.equal(whole.adv_inputs, mixed()(model, x, labels, ids + 1).adv_inputs)


def test_passes_are_those_of_the_model(problem, record):
    model, x, labels = problem
    watched = record(model)
    result = mixed()(watched, x, labels)
    assert int(result.forwards.sum()) == sum(watched.rows)
    assert int(result.backwards.sum()) == sum(watched.backward_rows)


def test_targets_are_the_wrong_classes_by_the_clean_logits_in_turn():
    clean = torch.tensor([[5.0, 1.0, 3.0, 2.0], [0.0, 5.0, 3.0, 4.0]], dtype=torch.float64)
    seen = []

    def loss(logits: Tensor, goals: Tensor) -> Tensor:
        seen.append(goals.tolist())
        return (logits - clean[0]).sum(dim=1)

    def model(x: Tensor) -> Tensor:
        return clean[: len(x)] + 0.001 * x

    aimed = [stage(steps=1, targeted=True, loss=loss, seed=seed) for seed in range(1, 5)]
    x = torch.full((2, 4), 0.5, dtype=torch.float64)
    result = Cascade(stages=[stage(steps=1), *aimed])(model, x, torch.tensor([0, 1]))
    assert seen == [[2, 3], [3, 2], [1, 0], [2, 3]]
    assert result.forwards.tolist() == [1 + 5 * 2] * 2  # the clean input; step and last of each stage
    assert not result.success.any()


def test_a_targeted_stage_is_judged_against_the_label():
    """On the way to class 2, class 1 overtakes the label."""

    def model(x: Tensor) -> Tensor:
        return torch.cat([0 * x + 0.5, 5 * x - 2.2, x - 0.1], dim=1)

    towards = stage(
        eps=0.2,
        targeted=True,
        loss=lambda logits, goals: -logits.gather(1, goals[:, None])[:, 0],
        keep="last",
        random_start=False,
    )
    x, label = torch.tensor([[0.5]], dtype=torch.float64), torch.tensor([0])
    assert not towards(model, x, label, targets=torch.tensor([2])).success
    result = Cascade(stages=[towards])(model, x, label)
    assert result.success
    assert float(result.margin) == pytest.approx(0.8)
    assert float(result.adv_inputs) == pytest.approx(0.7)


def test_a_point_at_which_the_model_breaks_down_is_no_success():
    def model(x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros_like(x)], dim=1).masked_fill(x != 0.5, torch.nan)

    attack = Cascade(stages=[stage(targeted=True, steps=1)])
    result = attack(model, torch.tensor([[0.5]]), torch.tensor([0]))
    assert not result.success
    assert result.margin == -torch.inf


def test_masks_and_observers_reach_every_stage(problem):
    model, x, labels = problem
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    mask[..., :5] = 1
    steps = []
    attack = mixed()
    result = attack(model, x, labels, mask=mask, observer=steps.append)
    assert torch.equal(result.adv_inputs[..., 5:], x[..., 5:])
    assert not torch.equal(result.adv_inputs[..., :5], x[..., :5])
    assert {int(number) for step in steps for number in step.restart.unique()} == {0, 1, 2, 3, 4}
    for step in steps:
        assert torch.equal(step.inputs[..., 5:], x[step.rows][..., 5:])


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_one_radius_per_sample(problem, norm):
    model, x, labels = problem
    eps = torch.linspace(0, 2 * EPS, 60, dtype=torch.float64)
    result = mixed(eps=eps, norm=norm)(model, x, labels)
    flat = (result.adv_inputs - x).flatten(1)
    length = flat.abs().amax(1) if norm == "Linf" else flat.norm(p=2 if norm == "L2" else 1, dim=1)
    assert (length <= eps * (1 + 1e-9)).all()
    assert (length > eps / 2).sum() > 30
    part = mixed(eps=eps, norm=norm).rows(slice(20, 40))(model, x[20:40], labels[20:40])
    assert torch.equal(part.adv_inputs, result.adv_inputs[20:40])


def test_rows_of_an_attack_with_plain_numbers_is_the_attack():
    attack = stage(step_size=torch.tensor(0.01))
    assert rows_of(attack, slice(0, 2)) is attack
    assert rows_of(stage(step_size=torch.tensor([0.1, 0.2])), slice(1, 2)).step_size.tolist() == [
        pytest.approx(0.2)
    ]


def test_the_precision_is_chosen_once_for_all_stages(net, images, predict, monkeypatch):
    asked = []

    def choose(model: Any, inputs: Tensor, *, fuse: bool) -> str:
        asked.append(len(inputs))
        return "float32"

    monkeypatch.setattr("art_logits.cascade.choose_precision", choose)
    x = images(20)
    result = mixed()(net, x, predict(net, x))
    assert asked == [20]
    assert_same(result, mixed(precision="float32")(net, x, predict(net, x)))


def test_a_prepared_model_gives_the_gradients_of_all_stages(net, images, predict, monkeypatch):
    monkeypatch.setattr("art_logits.cascade.choose_precision", None)  # it has been chosen
    monkeypatch.setattr(__import__("sys").modules["art_logits.prepare"], "_WORTHWHILE", 0)
    x = images(20)
    labels = predict(net, x)
    found = mixed()(prepare(net, precision="bfloat16"), x, labels)
    assert_same(found, mixed(precision="bfloat16")(net, x, labels))
    with pytest.raises(AssertionError):
        assert_same(found, mixed(precision="float32")(net, x, labels))


def test_cascades_are_compared_by_their_stages():
    assert mixed() == mixed()
    assert hash(mixed()) == hash(mixed())
    assert mixed() != mixed(eps=0.1)
    assert mixed() != mixed().stages[0]
    assert mixed().replace(eps=0.1) == mixed(eps=0.1)
    assert (mixed().eps, mixed().norm, mixed().bounds) == (EPS, "Linf", (0.0, 1.0))
    assert (mixed().precision, mixed().fuse) == ("auto", True)
    config = json.loads(json.dumps(mixed().config()))
    assert [entry["steps"] for entry in config["stages"]] == [1, 2, 3, 4]
    assert config["precision"] == "auto"


@pytest.mark.parametrize(
    ("stages", "error", "message"),
    [
        ([], ValueError, "stages must hold at least one attack, got none"),
        ("strong", TypeError, "stages must be TemperaturePGD objects, got str"),
        (3, TypeError, "stages must be TemperaturePGD objects, got int"),
        ([stage(), stage(eps=0.1)], ValueError, "stages must share eps, .*, got eps 0.03 and 0.1"),
        ([stage(), stage(norm="L2")], ValueError, "got norm 'Linf' and 'L2'"),
        ([stage(), stage(bounds=(-1.0, 1.0))], ValueError, "got bounds"),
        ([stage(), stage(fuse=False)], ValueError, "got fuse True and False"),
    ],
)
def test_stages_that_do_not_fit(stages, error, message):
    with pytest.raises(error, match=message):
        Cascade(stages=stages)


def test_wrong_calls_are_refused_before_the_first_stage(problem):
    model, x, labels = problem
    attack = mixed()
    with pytest.raises(ValueError, match="inputs must lie within bounds"):
        attack(model, x + 1, labels)
    with pytest.raises(ValueError, match="labels must have shape"):
        attack(model, x, labels[1:])
    with pytest.raises(ValueError, match="sample_ids must have shape"):
        attack(model, x, labels, [1])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        attack(model, x, labels, batch_size=0)
    with pytest.raises(ValueError, match="mask must hold weights"):
        attack(model, x, labels, mask=-torch.ones(1))


# Reach -----------------------------------------------------------------------------------------------------


def test_stages_attack_what_came_near(problem):
    """What each sample costs tells which stages it was in; and those it was in end as they do alone."""
    model, x, labels = problem
    stages = [stage(steps=2, step_size=0.3 * EPS), stage(seed=1), stage(steps=3, seed=2, loss="margin")]
    first, second, third = (attack(model, x, labels) for attack in stages)
    result = Cascade(stages=stages, reach=[0.6, 0.3])(model, x, labels)
    assert torch.equal(result.clean_margin, first.clean_margin)
    distance, spent, best = first.clean_margin.abs(), first.forwards.clone(), first.margin.clone()
    fallen, counts = first.success.clone(), []
    for found, reach in ((second, 0.6), (third, 0.3)):
        near = ~fallen & (best > -reach * distance)
        counts.append((int(near.sum()), int((~fallen & ~near).sum())))
        spent[near] += found.forwards[near] - 1  # the clean input was the first stage's
        best[near] = torch.where(found.success, found.margin, torch.maximum(best, found.margin))[near]
        fallen |= near & found.success
    assert all(count for pair in counts for count in pair)  # else the test shows nothing
    assert torch.equal(result.forwards, spent)
    assert torch.equal(result.success, fallen)
    assert torch.equal(result.margin, best)


def test_no_reach_is_a_reach_for_all(problem):
    assert_same(replace(mixed(), reach=[None, None, None])(*problem), mixed()(*problem))


def test_a_target_does_not_depend_on_who_came_near_before(problem):
    """The first targeted stage is for nobody, the second for all: they get the class of the second."""
    model, x, labels = problem
    aims: list[dict[int, int]] = []

    def loss(logits: Tensor, goals: Tensor) -> Tensor:
        seen.append(goals)
        return logits.gather(1, goals.unsqueeze(1)).squeeze(1) - logits.sum(dim=1)

    for rows in (torch.arange(60), torch.arange(0, 60, 7)):
        seen: list[Tensor] = []
        short: dict[str, Any] = {"steps": 1, "step_size": 1e-6 * EPS, "random_start": False}
        last: dict[str, Any] = {**short, "targeted": True, "loss": loss}
        attack = Cascade(
            stages=[stage(**short), stage(**last, seed=1), stage(**last, seed=2)], reach=[0.0, None]
        )
        attack(model, x[rows], labels[rows], rows)
        # Nobody came within 0: the one stage that was run is the second targeted one.
        standing = (model(x[rows]).argmax(1) == labels[rows]).nonzero().squeeze(1)
        aims.append(dict(zip(rows[standing].tolist(), torch.cat(seen).tolist(), strict=False)))
    assert len(aims[1]) > 3
    assert all(aims[0][row] == aim for row, aim in aims[1].items())
    wrong = model(x).scatter(1, labels.unsqueeze(1), -torch.inf).argsort(dim=1, descending=True)
    assert all(int(wrong[row, 1]) == aim for row, aim in aims[0].items())


def test_reach_does_not_see_the_scale_of_the_logits(problem):
    model, x, labels = problem
    attack = replace(mixed(), reach=0.5)
    plain, louder = attack(model, x, labels), attack(lambda points: 512 * model(points), x, labels)
    assert torch.equal(plain.adv_inputs, louder.adv_inputs)
    assert torch.equal(plain.forwards, louder.forwards)
    assert not torch.equal(plain.forwards, mixed()(model, x, labels).forwards)


def test_reach_is_measured_whatever_the_first_stage_looks_at(problem):
    """Neither a stage that would not look at the clean input nor a target changes what near is."""
    model, x, labels = problem
    blind: dict[str, Any] = {"keep": "last", "stop_on_success": False}
    for first in (stage(steps=1, step_size=0.2 * EPS, **blind), stage(steps=1, targeted=True)):
        alone = Cascade(stages=[first])(model, x, labels)
        assert torch.equal(alone.clean_margin, stage()(model, x, labels).clean_margin)
        near = ~alone.success & (alone.margin > -0.5 * alone.clean_margin.abs())
        assert 0 < int(near.sum()) < int((~alone.success).sum())
        result = Cascade(stages=[first, stage(seed=1)], reach=0.5)(model, x, labels)
        assert torch.equal(result.forwards > alone.forwards, near)


@pytest.mark.parametrize(
    ("reach", "error", "message"),
    [
        (-0.1, ValueError, "reach must be a finite number >= 0, got -0.1"),
        ("far", TypeError, "reach must be a number, got 'far'"),
        ([0.1], ValueError, "reach must have one entry per stage after the first, 3, got 1"),
        ([0.1, None, float("inf")], ValueError, "reach must be a finite number >= 0, got inf"),
    ],
)
def test_bad_reach(reach, error, message):
    with pytest.raises(error, match=message):
        replace(mixed(), reach=reach)


def test_stages_attack_what_the_start_may_decide(problem):
    """The spread is that of the runs that share all but the seed, whatever others come between them."""
    model, x, labels = problem
    like: dict[str, Any] = {"steps": 1, "step_size": 0.1 * EPS}
    blind = stage(steps=0, seed=1)
    stages = [stage(**like), blind, stage(**like, seed=2), stage(seed=3)]
    first, _, again, last = (attack(model, x, labels) for attack in stages)
    for times in (2.0, 8.0):
        three = Cascade(stages=stages[:3])(model, x, labels)
        result = Cascade(stages=stages, spreads=[None, None, times])(model, x, labels)
        near = ~three.success & (three.margin > -times * (first.margin - again.margin).abs())
        assert near.any()
        assert (~three.success & ~near).any()
        spent = three.forwards + torch.where(near, last.forwards - 1, 0)
        assert torch.equal(result.forwards, spent)
        assert torch.equal(result.success, three.success | (near & last.success))


def test_runs_that_differ_have_no_spread(problem):
    """Other arguments and other targets make another attack; and one run alone has no spread."""
    model, x, labels = problem
    for stages in (
        [stage(steps=1), stage(steps=2, seed=1)],
        [stage(steps=1), stage(steps=1, loss="margin", seed=1)],
        [stage(steps=1, targeted=True), stage(steps=1, targeted=True, seed=1)],
    ):
        short = Cascade(stages=stages)(model, x, labels)
        longer = Cascade(stages=[*stages, stage(seed=2)], spreads=[None, 1e9])(model, x, labels)
        assert (~short.success).any()
        assert_same(longer, short)
    alone = Cascade(stages=[stage(steps=1), stage(seed=1)], spreads=1e9)(model, x, labels)
    assert_same(alone, Cascade(stages=[stage(steps=1)])(model, x, labels))


def test_a_run_that_the_model_broke_down_in_has_left_no_margin():
    spread = _Spread(torch.zeros(3), asked=True)
    rows = torch.arange(3)
    for seed, margins in ((0, [-torch.inf, -3.0, -2.0]), (1, [-1.0, -1.0, -torch.inf])):
        turn = _Turn(stage(seed=seed), _Near(), None, 0)
        spread.note(turn, rows, torch.tensor(margins))
    assert spread.width.tolist() == [0.0, 2.0, 0.0]


def test_spreads_are_asked_in_addition_to_reach(problem):
    model, x, labels = problem
    weak: dict[str, Any] = {"steps": 1, "step_size": 0.1 * EPS}
    stages = [stage(**weak), stage(**weak, seed=1), stage(seed=2)]

    def spent(**conditions: Any) -> Tensor:
        return Cascade(stages=stages, **conditions)(model, x, labels, ids).forwards

    ids = torch.arange(len(x))
    least = Cascade(stages=stages[:2])(model, x, labels, ids).forwards
    near, wide = spent(reach=[None, 0.8]) > least, spent(spreads=[None, 8.0]) > least
    both = spent(reach=[None, 0.8], spreads=[None, 8.0]) > least
    assert torch.equal(both, near & wide)
    assert 0 < int(both.sum()) < min(int(near.sum()), int(wide.sum()))


def test_spreads_do_not_see_the_scale_of_the_logits(problem):
    model, x, labels = problem
    attack = Cascade(stages=[stage(steps=2), stage(steps=2, seed=1), stage(seed=2)], spreads=[None, 2.0])
    plain, louder = attack(model, x, labels), attack(lambda points: 512 * model(points), x, labels)
    assert torch.equal(plain.adv_inputs, louder.adv_inputs)
    assert torch.equal(plain.forwards, louder.forwards)


def test_where_a_gradient_vanished_every_sample_is_near(images):
    """The model is flat around the clean inputs, and has gradients further out."""
    x = images(12, dtype=torch.float64)

    def model(points: Tensor) -> Tensor:
        away = (points - x[: len(points)]).flatten(1).abs().sum(dim=1, keepdim=True)
        return torch.cat([torch.ones_like(away), (away - 0.2).clamp_min(0.0)], dim=1)

    labels = torch.zeros(12, dtype=torch.int64)
    stages = [stage(random_start=False), stage(seed=1)]
    first = Cascade(stages=stages[:1])(model, x, labels)
    assert (first.zero_gradients > 0).all()
    assert not first.success.any()
    result = Cascade(stages=stages, reach=0.0)(model, x, labels)
    assert (result.backwards > first.backwards).all()


def test_aims_choose_the_wrong_class(problem):
    model, x, labels = problem
    seen: list[Tensor] = []

    def loss(logits: Tensor, goals: Tensor) -> Tensor:
        seen.append(goals)
        return logits.sum(dim=1)

    rows = model(x).argmax(dim=1) == labels
    x, labels = x[rows], labels[rows]
    order = model(x).scatter(1, labels.unsqueeze(1), -torch.inf).argsort(dim=1, descending=True)
    aimed = [stage(steps=1, eps=0.0, targeted=True, loss=loss, seed=seed) for seed in (1, 2, 3)]
    stages = [stage(steps=1, eps=0.0), *aimed]
    attack = Cascade(stages=stages, aims=[None, 1, 1, 2])
    attack(model, x, labels)
    assert [goals.tolist() for goals in seen] == [order[:, aim].tolist() for aim in (1, 1, 0)]
    assert attack.aims == attack.replace(seed=7).aims
    assert attack.config()["aims"] == [None, 1, 1, 2]
    assert attack != Cascade(stages=stages)
    assert Cascade(stages=stages) == Cascade(stages=stages, aims=[9, 0, 1, 2])
    with pytest.raises(ValueError, match="aims must have one entry per stage, 4, got 1"):
        Cascade(stages=stages, aims=[0])
    with pytest.raises(ValueError, match="aims must be at least 0, got -1"):
        Cascade(stages=stages, aims=[None, 0, -1, 0])
    with pytest.raises(TypeError, match="aims must be an integer, got None"):
        Cascade(stages=stages, aims=[None, 0, None, 0])


def test_spreads_are_part_of_an_attack():
    stages = [stage(), stage(seed=1)]
    plain, asked = Cascade(stages=stages), Cascade(stages=stages, spreads=2.0)
    assert plain != asked
    assert asked == Cascade(stages=stages, spreads=[2])
    assert hash(asked) == hash(Cascade(stages=stages, spreads=[2]))
    assert (plain.config()["spreads"], asked.config()["spreads"]) == ([None], [2.0])
    with pytest.raises(ValueError, match="spreads must be a finite number >= 0, got -1"):
        Cascade(stages=stages, spreads=-1)
    with pytest.raises(ValueError, match="spreads must have one entry per stage after the first, 1, got 2"):
        Cascade(stages=stages, spreads=[1, 2])


# strong and quick ------------------------------------------------------------------------------------------


@given(st.integers(43, 6000), st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_strong_keeps_to_its_budget(passes, seed):
    attack = strong(eps=EPS, passes=passes, seed=seed)
    cost = [1] + [part.restarts * (2 * part.steps + 2) for part in attack.stages]
    assert passes - 102 < sum(cost) <= passes
    assert attack.stages[0] == quick(eps=EPS, seed=seed).stages[0]
    assert len({part.seed for part in attack.stages}) == len(attack.stages)
    assert all(part.stop_on_success and part.keep == "best" for part in attack.stages)
    longer = strong(eps=EPS, passes=passes + 100, seed=seed)
    pairs = zip(attack.stages, longer.stages, strict=False)  # the longer one may have more of them
    assert all(replace(mine, restarts=more.restarts) == more for mine, more in pairs)
    assert all(
        mine.restarts <= more.restarts for mine, more in zip(attack.stages, longer.stages, strict=False)
    )


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_strong_attacks_whom_quick_attacks_at_least(norm):
    """The same stages, and no condition that is harder to meet."""
    default, more = quick(eps=EPS, norm=norm), strong(eps=EPS, norm=norm)
    places = [more.stages.index(each) for each in default.stages]
    assert [more.aims[place] for place in places] == list(default.aims)
    assert places[0] == 0
    # Those who are blind are seen to early; all others in the same order.
    inside = [place for place, each in zip(places, default.stages, strict=True) if each.start_radius == 1]
    assert inside == sorted(inside)
    for name, harder in (("reach", False), ("spreads", False), ("masked", True)):
        for mine, place in zip(getattr(default, name), places[1:], strict=True):
            wider = getattr(more, name)[place - 1]
            assert wider is None or (mine is not None and (wider < mine if harder else wider > mine)), name
    assert len({each.seed for each in more.stages}) == len(more.stages)


def test_quick_aims_at_the_second_class_where_the_norm_lets_it_pay():
    aims = {norm: set(quick(norm=norm).aims) for norm in ("Linf", "L2", "L1")}
    assert aims == {"Linf": {None, 0}, "L2": {None, 0, 1}, "L1": {None, 0, 1}}


def test_strong_goes_round_the_wrong_classes():
    attack = strong(passes=5640)
    first = len(quick().stages)
    aims = [aim for part, aim in zip(attack.stages, attack.aims, strict=True) if part.targeted][3:]
    likeliest = [part.steps == 50 for part in attack.stages[first:] if part.targeted]
    assert [aim for aim, again in zip(aims, likeliest, strict=True) if not again] == list(range(11))


def test_strong_takes_turns_in_losses_temperatures_first_steps_and_targets():
    attack = strong()
    assert sum(part.targeted for part in attack.stages) >= 3
    assert {part.loss for part in attack.stages} == {"cross_entropy", "margin"}
    scales = {part.temperature.keywords["scale"] for part in attack.stages if callable(part.temperature)}
    assert scales == {0.25, 0.5, 1.0, 2.0}
    firsts = {round(part.step_size(0, 20) / attack.eps, 6) for part in attack.stages}
    assert firsts == {0.5, 0.75, 1.0, 1.5, 2.0}
    assert attack.eps == 8 / 255


def test_strong_ends_with_restarts_near_the_best_point_for_the_few_that_a_start_decides():
    """As many as its passes allow; and for nobody else, since they cost more than all the others."""
    attack = strong()
    last = attack.stages[-1]
    assert [stage.redraw < 1 for stage in attack.stages] == [False] * (len(attack.stages) - 1) + [True]
    assert (last.steps, last.restarts, last.redraw) == (10, 111, 0.1)
    assert (attack.reach[-1], attack.spreads[-1]) == (0.05, 4.0)
    assert strong(passes=3500) == attack
    least = 3500 - (111 - 1) * 22
    assert strong(passes=least).stages[:-1] == attack.stages[:-1]
    assert strong(passes=least).stages[-1].restarts == 1
    assert strong(passes=least - 22).stages == attack.stages[:-1]
    more = strong(passes=5000).stages
    assert [stage.restarts for stage in more if stage.redraw < 1] == [120]
    assert more[-1].redraw == 1


def test_strong_has_no_such_restarts_in_l2_where_they_broke_nothing():
    assert strong(norm="L2") == strong(norm="L2", passes=1000)
    assert all(stage.redraw == 1 for stage in strong(norm="L2", passes=5000).stages)


def test_in_l1_strong_searches_on_from_outside():
    """What is drawn anew of a point goes far, and comes back with the ball."""
    attack = strong(norm="L1")
    assert attack == strong(norm="L1", passes=3500)
    (place,) = (number for number, stage in enumerate(attack.stages) if stage.redraw < 1)
    stage = attack.stages[place]
    assert (stage.steps, stage.restarts, stage.redraw, stage.start_radius) == (20, 20, 0.3, 6.0)
    assert (attack.reach[place - 1], attack.spreads[place - 1]) == (0.15, None)


def test_a_stage_that_searches_on_begins_at_the_best_point_so_far(problem):
    net, x, labels = problem
    near = stage(seed=1, steps=2, step_size=0.1 * EPS, restarts=3, redraw=0.2)
    seen: list[Step] = []
    before = stage(seed=0, steps=2)(net, x, labels)
    result = Cascade(stages=[stage(seed=0, steps=2), near])(net, x, labels, observer=seen.append)
    firsts = {}
    for step in seen:
        for row, restart, number, point in zip(step.rows, step.restart, step.step, step.inputs, strict=True):
            if int(number) == 0 and int(restart) == 1:  # the second stage's first run
                firsts[int(row)] = point
    assert sorted(firsts) == (~before.success).nonzero().squeeze(1).tolist()
    for row, point in firsts.items():
        torch.testing.assert_close(point, before.adv_inputs[row], rtol=0, atol=1e-12)
    assert (result.margin >= before.margin).all()
    assert int(result.success.sum()) >= int(before.success.sum())


def test_no_turn_of_strong_sees_the_scale_of_the_logits(net, images, predict):
    x = images(8)
    labels = predict(net, x)
    whole = strong(eps=EPS, precision="float32", fuse=False)
    for part in whole.replace(stop_on_success=False).stages:
        targets = (labels + 1) % 3 if part.targeted else None
        plain = part(net, x, labels, None, targets)
        louder = part(lambda points: 1024 * net(points), x, labels, None, targets)
        assert torch.equal(louder.adv_inputs, plain.adv_inputs), part
        assert torch.equal(louder.logits, 1024 * plain.logits), part


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.03), ("L2", 0.2), ("L1", 1.0), ("Linf", 0.0)])
def test_strong_breaks_what_quick_breaks_and_costs_what_it_says(curved, images, predict, norm, eps):
    x = images(40, dtype=torch.float64)
    labels = predict(curved, x)
    passes = {"Linf": 500, "L2": 800, "L1": 1200}[norm]
    result = strong(eps=eps, norm=norm, passes=passes)(curved, x, labels)
    default = quick(eps=eps, norm=norm)(curved, x, labels)
    assert (result.success >= default.success).all()
    assert (result.margin >= default.margin).all()
    # No copy of this small model is used: the pass that would verify it is never made.
    spent = result.forwards + result.backwards
    assert (~result.success).any()
    # A sample that stands has had at least the stages that are for all.
    whole = strong(eps=eps, norm=norm, passes=passes)
    asked = [(None, None), *zip(whole.reach, whole.masked, strict=True)]
    free = [each == (None, None) for each in asked]
    for_all = [
        2 * part.steps + 1 for part, all_of_them in zip(whole.stages, free, strict=True) if all_of_them
    ]
    assert len(for_all) >= 4
    assert int(spent[~result.success].min()) >= 1 + sum(for_all)
    assert int(spent.max()) <= passes + 2  # the look at what a gradient promises


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.03), ("L2", 0.2)])
def test_quick_breaks_what_its_first_run_breaks_and_spends_more_on_what_came_near(
    curved, images, predict, norm, eps
):
    x = images(60, dtype=torch.float64)
    labels = predict(curved, x)
    attack = quick(eps=eps, norm=norm)
    result, first = attack(curved, x, labels), attack.stages[0](curved, x, labels)
    assert (result.success >= first.success).all()
    assert (result.margin >= first.margin).all()
    furthest = max(reach for reach in attack.reach if reach is not None)
    near = ~first.success & (first.margin > -furthest * first.clean_margin.abs())
    far = ~first.success & ~near
    assert near.any()
    assert far.any()
    looks = norm != "Linf"  # at what the gradient promises, which is kept in this model
    assert torch.equal(result.forwards[far], first.forwards[far] + int(looks))
    assert (result.forwards[near] > first.forwards[near]).all()
    assert attack == quick(eps=eps, norm=norm)
    assert attack != quick(eps=eps, norm=norm, seed=1)


def test_first_steps_are_in_the_unit_of_the_inputs():
    cosine = strong(eps=0.2).stages[2].step_size
    assert callable(cosine)
    assert [round(cosine(step, 4), 4) for step in range(4)] == [0.3, 0.2561, 0.15, 0.0439]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"passes": 22}, ValueError, "passes must be at least 23, got 22"),
        ({"passes": 50.0}, TypeError, "passes must be an integer"),
        ({"eps": -1.0}, ValueError, "eps must be a finite number >= 0"),
        ({"eps": torch.ones(3)}, TypeError, "eps must be a number"),
        ({"norm": "L3"}, ValueError, "norm must be one of"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"precision": "float8"}, ValueError, "precision must be one of"),
    ],
)
def test_bad_options_of_strong(options, error, message):
    with pytest.raises(error, match=message):
        strong(**options)


def test_strong_as_a_spec():
    name, attack = parse_attack("strong:passes=200,norm=L2,eps=0.5,seed=3", norm="Linf", eps=0.1)
    assert name == "strong:passes=200,norm=L2,eps=0_5,seed=3"
    assert attack == strong(eps=0.5, norm="L2", seed=3, passes=200)
    assert parse_attack("strong", norm="Linf", eps=0.1, bounds=(-1.0, 1.0))[1] == strong(
        eps=0.1, bounds=(-1.0, 1.0)
    )
    with pytest.raises(ValueError, match=r"the option must be one of .*passes.*, got 'steps'"):
        parse_attack("strong:steps=3", norm="Linf", eps=0.1)
    with pytest.raises(ValueError, match="attack 'strong:passes=3': passes must be at least 23"):
        parse_attack("strong:passes=3", norm="Linf", eps=0.1)


def test_the_evaluation_treats_it_as_it_treats_one_attack(net, images, predict, tmp_path, monkeypatch):
    monkeypatch.setattr("art_logits.evaluation._part_size", lambda *arguments: 16)
    x = images(40)
    labels = predict(net, x)
    ids = torch.arange(40)
    options: dict[str, Any] = {"eps": EPS, "precision": "float32", "sample_ids": ids}
    records = evaluate(net, (x, labels), attacks=["strong:passes=120"], out=tmp_path / "run", **options)
    name = records.attacks[0]
    result = strong(eps=EPS, passes=120, precision="float32")(net, x, labels, ids)
    assert name == "strong:passes=120"
    assert records.column(f"{name}.success").tolist() == result.success.tolist()
    assert records.column(f"{name}.backwards").tolist() == result.backwards.tolist()
    config = records.manifest["identity"]["attacks"][name]
    expected = json.loads(json.dumps(strong(eps=EPS, passes=120, precision="float32").config()))
    assert config == {"callable": "art_logits.cascade.Cascade", **expected}
    again = evaluate(
        net, (x, labels), attacks=["strong:passes=120"], out=tmp_path / "run", resume=True, **options
    )
    assert again.table.equals(records.table)


def test_the_evaluation_cuts_radii_and_chooses_the_precision(net, images, predict, monkeypatch):
    monkeypatch.setattr("art_logits.evaluation._part_size", lambda *arguments: 16)
    x = images(40)
    labels, eps, ids = predict(net, x), torch.linspace(0.01, 0.05, 40), torch.arange(40)
    attack = mixed(eps=eps)
    records = evaluate(net, (x, labels), attacks=attack, sample_ids=ids)
    assert records.attacks == ["Cascade"]
    result = attack.replace(precision="float32")(net, x, labels, ids)
    assert records.column("Cascade.success").tolist() == result.success.tolist()
    assert records.manifest["identity"]["attacks"]["Cascade"]["precision"] == "float32"


def test_10_a_model_is_folded_once_per_call_and_never_after_its_weights_changed(net, images, monkeypatch):
    prepare = __import__("sys").modules["art_logits.prepare"]
    folds, fold = [], prepare.fold
    monkeypatch.setattr(prepare, "fold", lambda model, pairs: folds.append(model) or fold(model, pairs))
    monkeypatch.setattr(prepare, "_WORTHWHILE", 0)
    x, labels = images(20), torch.arange(20) % 5
    attack = Cascade(stages=[stage(seed=seed, precision="float32") for seed in range(3)])
    first = attack(net, x, labels)
    assert len(folds) == 1
    assert len(prepare._snapshots) == 0
    with torch.no_grad():
        net[-1].weight.mul_(-1)
    second = attack(net, x, labels)
    assert len(folds) == 2
    assert not torch.equal(first.adv_inputs, second.adv_inputs)
    assert_same(second, attack(copy.deepcopy(net), x, labels))
    with pytest.raises(ValueError, match="labels must lie in"):
        attack(net, x, labels + 7)
    assert len(prepare._snapshots) == 0


def test_the_look_at_the_inputs_does_not_decide_where_gradients_come_from(net, images):
    x, labels = images(20), torch.arange(20) % 5
    attack = stage(precision="bfloat16", fuse=False)
    assert_same(Cascade(stages=[attack])(net, x, labels), attack(net, x, labels))
    plain = Cascade(stages=[replace(attack, precision="float32")])(net, x, labels)
    assert not torch.equal(plain.adv_inputs, attack(net, x, labels).adv_inputs)


# Gradients that are masked near the input -------------------------------------------------------------


class Blind(torch.nn.Module):
    """Logits ``(0, 4 * what one pixel has risen by above 0.2, - 1)``: flat near the input."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        self.inputs = inputs

    def forward(self, points: Tensor) -> Tensor:
        base = self.inputs[: len(points)] if len(points) != len(self.inputs) else self.inputs
        seen = ((points - base).flatten(1)[:, 5] - 0.2).clamp_min(0)
        return torch.stack([torch.zeros_like(seen), 4 * seen - 1], dim=1)


@pytest.fixture
def blind() -> tuple[Blind, Tensor, Tensor]:
    x = torch.full((40, 1, 8, 8), 0.3, dtype=torch.float64)
    return Blind(x), x, torch.zeros(40, dtype=torch.int64)


def test_gradients_that_promise_more_than_they_kept_are_masked(blind):
    """In L2 at 0.5, the pixel alone can move by 0.5 and succeed; random starts move it by a sixteenth."""
    model, x, labels = blind
    options: dict[str, Any] = {"eps": 0.5, "norm": "L2"}
    inside = stage(**options, steps=10)
    outside = stage(**options, steps=20, start_radius=6.0, step_size="cosine", seed=1)
    # Without ids samples that are alike would have one and the same start.
    ids = torch.arange(len(x))
    assert not inside(model, x, labels, ids).success.any()
    result = Cascade(stages=[inside, outside], masked=3.5)(model, x, labels, ids)
    # A run from outside breaks a quarter of them.
    assert int(result.success.sum()) >= 5
    assert int(quick(**options)(model, x, labels, ids).success.sum()) >= 10


def test_a_linear_model_masks_nothing(make_exact, images, predict):
    """There the promise is kept, wherever the gradient is looked at: its norm times eps, in each norm."""
    linear, x = make_exact(2, 64), images(30, dtype=torch.float64) * 0.2 + 0.4  # far from the bounds
    labels = predict(linear, x)
    for norm, eps in (("Linf", 0.001), ("L2", 0.01), ("L1", 0.05)):
        options: dict[str, Any] = {"eps": eps, "norm": norm, "steps": 20, "stop_on_success": False}
        stages = [stage(**options), stage(**options, seed=1)]
        alone = Cascade(stages=stages[:1])(linear, x, labels)
        standing = ~alone.success
        assert bool(standing.any())
        for masked, asked in ((1.1, False), (0.9, True)):
            result = Cascade(stages=stages, masked=masked)(linear, x, labels)
            more = (result.backwards - alone.backwards)[standing]
            # One pass finds the promise; a stage takes its steps.
            assert more.tolist() == [21 if asked else 1] * len(more), (norm, masked)


def test_a_promise_knows_which_elements_may_move(make_exact, images, predict):
    linear, x = make_exact(2, 64), images(30, dtype=torch.float64) * 0.2 + 0.4
    labels, half = predict(linear, x), torch.zeros(8, 8)
    half[:4] = 1.0
    stages = [stage(eps=0.001, steps=20), stage(eps=0.001, steps=20, seed=1)]
    alone = Cascade(stages=stages[:1])(linear, x, labels, mask=half)
    # All elements together would promise about twice as much as half of them.
    result = Cascade(stages=stages, masked=1.3)(linear, x, labels, mask=half)
    assert set((result.backwards - alone.backwards)[~alone.success].tolist()) == {1}


def test_a_promise_is_asked_for_outside_of_the_ball(problem, record):
    model, x, labels = problem
    watched = record(model)
    stages = [stage(eps=0.1, norm="L2"), stage(eps=0.1, norm="L2", seed=1)]
    Cascade(stages=stages, masked=1.0)(watched, x, labels)
    gradients = [points for asked, points, _ in watched.calls if asked]
    away = torch.cat([torch.cdist(points.flatten(1), x.flatten(1)).amin(dim=1) for points in gradients])
    # Of 64 dimensions, nearly all points of a ball lie near its rim.
    assert 0.27 < float(away.max()) <= 0.3 + 1e-9
    assert bool(((away <= 0.1 + 1e-9) | (away > 0.25)).all())


def masking(often: float = 1.0, **options: Any) -> Cascade:
    """Weak stages, of which the third and the last are for some of the samples."""
    stages = [
        stage(steps=1, step_size=0.2 * EPS, **options),
        stage(steps=1, step_size=0.2 * EPS, seed=1, **options),
        stage(steps=2, step_size=0.3 * EPS, seed=2, start_radius=2.0, **options),
        stage(steps=3, step_size=0.3 * EPS, seed=3, **options),
    ]
    return Cascade(stages=stages, masked=[None, 3.4 * often, 4.4 * often])


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("size", [1, 7, None])
def test_4_masks_do_not_depend_on_the_batch_and_their_passes_are_counted(problem, record, norm, size):
    model, x, labels = problem
    ids = torch.arange(100, 160)
    eps, often = {"Linf": (EPS, 1), "L2": (8 * EPS, 3), "L1": (64 * EPS, 6)}[norm]
    attack = masking(often, norm=norm, eps=eps)
    watched = record(model)
    whole = attack(watched, x, labels, ids)
    assert int(whole.forwards.sum()) == sum(watched.rows)
    assert int(whole.backwards.sum()) == sum(watched.backward_rows)
    part = attack(model, x[20:45], labels[20:45], ids[20:45], batch_size=size)
    expected = AttackResult(*(column[20:45] for column in whole))
    expected.zero_gradients, expected.clean_margin = whole.zero_gradients[20:45], whole.clean_margin[20:45]
    assert_same(part, expected)
    # Some were asked and refused, some were not.
    assert len(set(whole.backwards[~whole.success].tolist())) > 1


def test_masks_do_not_see_the_scale_of_the_logits(problem):
    model, x, labels = problem
    plain, louder = masking()(model, x, labels), masking()(lambda points: 512 * model(points), x, labels)
    assert torch.equal(plain.adv_inputs, louder.adv_inputs)
    assert torch.equal(plain.forwards, louder.forwards)


def test_what_may_not_move_promises_nothing(problem):
    """A mask of the inputs' elements, and radii of their own, are those of the promise, too."""
    model, x, labels = problem
    nothing = masking()(model, x, labels, mask=torch.zeros(1, 8, 8))
    assert torch.equal(nothing.adv_inputs, x)
    radii = torch.linspace(0.5, 1.5, 60, dtype=torch.float64) * EPS
    whole = masking(eps=radii)(model, x, labels)
    for row in (11, 42):
        one = masking(eps=float(radii[row]))(model, x[row : row + 1], labels[row : row + 1])
        assert torch.equal(one.forwards, whole.forwards[row : row + 1])
        assert torch.equal(one.adv_inputs, whole.adv_inputs[row : row + 1])


def outside(attack: Cascade) -> list[bool]:
    return [each.start_radius > 1 for each in attack.stages]


def test_strong_begins_outside_for_those_that_are_blind():
    assert outside(strong(norm="L2"))[:5] == [False, True, True, True, False]
    assert strong(norm="L2").masked[:4] == (2.0, 2.0, 2.0, None)
    assert outside(quick(norm="L2"))[-3:] == [False, True, True]
    for attack in (quick(), strong()):
        assert not any(outside(attack))
        assert set(attack.masked) == {None}


def test_in_l1_runs_begin_outside_for_all_and_go_far_at_first():
    for attack in (quick(norm="L1"), strong(norm="L1")):
        assert outside(attack)[:9] == [False, *[True] * 7, False]
        assert set(attack.masked) == {None}
        assert attack.reach[0] is None
        firsts = [
            each.step_size(0, each.steps) / attack.eps for each in attack.stages if each.start_radius > 1
        ]
        assert min(firsts) >= 4
    # Targets, rounds and restarts, too.
    whole = outside(strong(norm="L1"))
    assert whole[len(quick(norm="L1").stages) :] == [True] * (len(whole) - 18)
    # Long runs are for those that short ones brought near.
    near = quick(norm="L1").reach[1:7]
    assert list(near) == sorted(near, reverse=True)


def test_in_l1_quick_breaks_most_of_what_one_run_leaves():
    """As it does of all digits, where one run leaves more than half and AutoAttack a seventh."""
    model, (x, labels) = load_model("digits-at"), load_data("digits").subset(60).batch(slice(0, 60))
    options: dict[str, Any] = {"norm": "L1", "eps": 1.5}
    alone = TemperaturePGD(**options)(model, x, labels)
    cascade = quick(**options)(model, x, labels)
    assert int((~cascade.success).sum()) * 3 < int((~alone.success).sum())
