from __future__ import annotations

from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from torch import Tensor

from art_logits import transforms as tf

TIES = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0])
WIDE = st.floats(-30, 30, width=64)
TEMPERATURES = st.sampled_from([0.5, 1.0, 4.0])


@st.composite
def tables(draw: Any, smallest: int = 2) -> tf.TeacherLogits:
    """Up to 12 samples of 2 to 6 classes in float64, often with ties, under ids in any order."""
    count, classes = draw(st.integers(1, 12)), draw(st.integers(smallest, 6))
    values = draw(arrays.arrays(np.float64, (count, classes), elements=draw(st.sampled_from([TIES, WIDE]))))
    labels = draw(arrays.arrays(np.int64, count, elements=st.integers(0, classes - 1)))
    ids = draw(st.lists(st.integers(-50, 50), min_size=count, max_size=count, unique=True))
    assume((values < 0).any() or not np.allclose(values.sum(axis=1), 1))  # probabilities are refused
    return tf.TeacherLogits(torch.from_numpy(values), torch.from_numpy(labels), ids, draw(TEMPERATURES))


def probabilities(logits: Tensor, temperature: float) -> np.ndarray[Any, Any]:
    z = logits.numpy().astype(np.longdouble) / temperature
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return (e / e.sum(axis=1, keepdims=True)).astype(np.float64)


def correct_class(table: tf.TeacherLogits, transform: Any) -> np.ndarray[Any, Any]:
    return table.correct(getattr(transform, "around", "argmax")).squeeze(1).numpy()


def incorrect(values: Any, correct: Any) -> np.ndarray[Any, Any]:
    """The rows without their correct class, ``(N, C - 1)``."""
    values = np.asarray(values)
    return np.stack([np.delete(row, c) for row, c in zip(values, correct, strict=True)])


def fitted(transform: tf.Transform, table: tf.TeacherLogits) -> Tensor:
    result = transform.fit(table.logits, table.labels, table.sample_ids, temperature=table.temperature)
    np.testing.assert_array_equal(result.sample_ids, table.sample_ids)
    return result.logits


@st.composite
def seeded(draw: Any, make: Any, **options: Any) -> tf.Transform:
    drawn = {name: draw(st.sampled_from(values)) for name, values in options.items()}
    return make(**drawn, around=draw(st.sampled_from(["argmax", "label"])), seed=draw(st.integers(0, 3)))


LEVELS = st.one_of(
    st.builds(tf.MaxLogit, how=st.sampled_from(["scale", "cap", "set"]), value=st.floats(-5, 5)),
    st.builds(tf.LogitGap, how=st.sampled_from(["scale", "cap", "set"]), value=st.floats(0, 5)),
    st.builds(tf.Confidence, how=st.sampled_from(["scale", "cap", "set"]), value=st.floats(0.05, 0.999)),
)
ORDERS = st.one_of(
    seeded(tf.OrderIncorrect, how=["random", "class-random", "class-mean", "reversed"]),
    seeded(tf.NoisyOrder, correlation=[-1.0, -0.4, 0.0, 0.3, 0.9, 1.0]),
)
VALUES = st.builds(tf.KeepTop, k=st.integers(0, 5), around=st.sampled_from(["argmax", "label"]))
PERMUTATIONS = seeded(tf.PermuteConfidences, within=["all", "class"])
SCALES = st.builds(tf.Scale, factor=st.floats(0.05, 20))
ANY = st.one_of(LEVELS, ORDERS, VALUES, PERMUTATIONS, SCALES)


# What every transform owes ----------------------------------------------------------------------------


@given(table=tables(), transform=ANY)
def test_the_argmax_stays_and_nothing_else_is_touched(
    table: tf.TeacherLogits, transform: tf.Transform
) -> None:
    before = table.logits.clone()
    found = fitted(transform, table)
    assert torch.equal(table.logits, before)
    assert found.shape == before.shape
    assert found.dtype == before.dtype
    assert bool(found.isfinite().all())
    if getattr(transform, "around", "argmax") == "argmax" or isinstance(transform, tf.PermuteConfidences):
        assert torch.equal(found.argmax(dim=1), before.argmax(dim=1))


@given(table=tables(), transform=ANY, data=st.data())
def test_the_order_of_the_samples_does_not_matter(
    table: tf.TeacherLogits, transform: tf.Transform, data: st.DataObject
) -> None:
    order = torch.tensor(data.draw(st.permutations(range(len(table)))))
    assert table.labels is not None
    moved = transform.fit(
        table.logits[order],
        table.labels[order],
        table.sample_ids[order.numpy()],
        temperature=table.temperature,
    )
    assert torch.equal(moved(table.sample_ids), fitted(transform, table))


def awkward() -> tf.TeacherLogits:
    """Every way in which four classes can tie or miss it by one bit, and ordinary rows; ids in no order."""
    rng = np.random.default_rng(0)
    close = [0.0, 1.0, np.nextafter(2.0, 0.0), 2.0]
    rows = np.concatenate([np.array(list(product(close, repeat=4))), 3 * rng.normal(size=(64, 4))])
    rows, ids = rng.permutation(rows), rng.permutation(5 * len(rows))[: len(rows)]
    return tf.TeacherLogits(
        torch.from_numpy(rows), torch.from_numpy(rng.integers(4, size=len(rows))), ids, 2.0
    )


def top_of(table: tf.TeacherLogits, logits: Tensor) -> tuple[Any, Any, Any]:
    """Place, logit and probability of the class that is the argmax in the table."""
    rows, top = np.arange(len(table)), table.logits.argmax(dim=1).numpy()
    return top, logits.numpy()[rows, top], probabilities(logits, table.temperature)[rows, top]


def others(table: tf.TeacherLogits, logits: Tensor) -> Any:
    return incorrect(logits, table.logits.argmax(dim=1).numpy())


def shares(table: tf.TeacherLogits, logits: Tensor) -> Any:
    e = np.exp(others(table, logits) / table.temperature)
    return e / e.sum(axis=1, keepdims=True)


def confidences(table: tf.TeacherLogits, logits: Tensor) -> Any:
    return np.sort(probabilities(logits, table.temperature).max(axis=1))


# What can be kept, as a function of the table and of new logits; equal to the last bit, or nearly.
INVARIANTS: dict[str, tuple[Any, float]] = {
    "argmax": (lambda table, logits: logits.argmax(dim=1).numpy(), 0),
    "top logit": (lambda table, logits: top_of(table, logits)[1], 1e-15),
    "top probability": (lambda table, logits: top_of(table, logits)[2], 1e-12),
    "incorrect logits": (others, 0),
    "incorrect multiset": (lambda table, logits: np.sort(others(table, logits), axis=1), 0),
    "incorrect order": (lambda table, logits: others(table, logits).argsort(axis=1, kind="stable"), 0),
    "incorrect shares": (shares, 1e-12),
    "confidences of the set": (confidences, 1e-12),
}
_TOP = {"argmax", "top logit", "top probability", "confidences of the set"}
_OTHERS = {"argmax", "incorrect logits", "incorrect multiset", "incorrect order", "incorrect shares"}
# Of each kind, around the argmax: what its docstring says that it keeps.
KEEPS: dict[tf.Transform, set[str]] = {
    tf.Scale(factor=0.3): {"argmax", "incorrect order"},
    tf.MaxLogit(how="cap", value=1.0): _OTHERS,
    tf.LogitGap(how="scale", value=0.1): _OTHERS,
    tf.Confidence(how="set", value=0.3): _OTHERS,
    tf.Confidence(how="scale", value=0.7): _OTHERS,
    tf.PermuteConfidences(): _OTHERS | {"confidences of the set"},
    tf.PermuteConfidences(within="class", around="label"): _OTHERS | {"confidences of the set"},
    tf.OrderIncorrect(how="random"): _TOP | {"incorrect multiset"},
    tf.OrderIncorrect(how="class-random", seed=1): _TOP | {"incorrect multiset"},
    tf.OrderIncorrect(how="class-mean"): _TOP | {"incorrect multiset"},
    tf.OrderIncorrect(how="reversed"): _TOP | {"incorrect multiset"},
    tf.NoisyOrder(correlation=0.3): _TOP | {"incorrect multiset"},
    tf.KeepTop(k=1): _TOP,
    tf.FlattenIncorrect(): _TOP,
}


def assert_kept(table: tf.TeacherLogits, transform: tf.Transform, names: set[str]) -> None:
    found = fitted(transform, table)
    for name in names:
        measure, tolerance = INVARIANTS[name]
        before, after = measure(table, table.logits), measure(table, found)
        np.testing.assert_allclose(after, before, rtol=tolerance, atol=0, err_msg=f"{name} of {transform}")


@pytest.mark.parametrize("transform", KEEPS, ids=repr)
def test_what_a_transform_claims_to_keep_it_keeps(transform: tf.Transform) -> None:
    table = awkward()
    assert not torch.equal(fitted(transform, table), table.logits)
    assert_kept(table, transform, KEEPS[transform])


@pytest.mark.parametrize("first", KEEPS, ids=repr)
def test_two_in_turn_keep_what_both_keep(first: tf.Transform) -> None:
    table = awkward()
    for second, kept in KEEPS.items():
        assert_kept(table, tf.Compose(first, second), KEEPS[first] & kept)


AROUND_THE_LABEL = (
    tf.OrderIncorrect(how="random", around="label"),
    tf.OrderIncorrect(how="class-random", around="label"),
    tf.OrderIncorrect(how="class-mean", around="label"),
    tf.NoisyOrder(correlation=0.3, around="label"),
    tf.KeepTop(k=1, around="label"),
    tf.SmoothLabels(),
)


@pytest.mark.parametrize("transform", [*KEEPS, *AROUND_THE_LABEL], ids=repr)
def test_a_sample_s_logits_are_its_id_s(transform: tf.Transform) -> None:
    """Whatever the order of the samples; by itself and after another one that is fitted too."""
    table = awkward()
    assert table.labels is not None
    order = np.random.default_rng(1).permutation(len(table))
    for what in (transform, tf.Compose(tf.OrderIncorrect(how="random", seed=5), transform)):
        moved = what.fit(
            table.logits[order], table.labels[order], table.sample_ids[order], temperature=table.temperature
        )
        torch.testing.assert_close(moved(table.sample_ids), fitted(what, table), rtol=1e-13, atol=1e-13)


def test_means_that_differ_by_rounding_are_in_one_order_all_the_same() -> None:
    """Two classes with the same probabilities in another order: only how they are summed tells them apart."""
    rng = np.random.default_rng(0)
    pairs = rng.normal(size=(12, 2))
    logits = np.concatenate([pairs, pairs[:, ::-1]])
    logits = torch.from_numpy(np.column_stack([np.full(len(logits), 5.0), logits]))
    ids = rng.permutation(len(logits))
    transform = tf.OrderIncorrect(how="class-mean")
    expected = transform.fit(logits, sample_ids=ids)
    for _ in range(20):
        order = rng.permutation(len(logits))
        assert torch.equal(transform.fit(logits[order], sample_ids=ids[order])(ids), expected(ids))


@pytest.mark.parametrize("transform", [*KEEPS, *AROUND_THE_LABEL], ids=repr)
def test_only_what_depends_on_one_sample_alone_goes_without_a_fit(transform: tf.Transform) -> None:
    """A result that other samples or an id could change needs a fit, and no other does."""
    table = awkward()
    assert table.labels is not None
    half = slice(0, 100)
    alone = transform.fit(
        table.logits[half],
        table.labels[half],
        table.sample_ids[half] + 10**6,
        temperature=table.temperature,
    )
    same = torch.allclose(alone.logits, fitted(transform, table)[half], rtol=1e-13, atol=1e-13)
    assert same != transform.needs_fit


@given(table=tables(), transform=ANY)
def test_what_needs_no_fit_does_the_same_sample_by_sample(
    table: tf.TeacherLogits, transform: tf.Transform
) -> None:
    whole = fitted(transform, table)
    assert table.labels is not None
    if transform.needs_fit:
        with pytest.raises(ValueError, match=r"depends on the whole set .* use its fit"):
            transform(table.logits, table.labels)
        return
    rows = [
        transform(table.logits[i : i + 1], table.labels[i : i + 1], temperature=table.temperature)
        for i in range(len(table))
    ]
    torch.testing.assert_close(torch.cat(rows), whole, rtol=1e-14, atol=1e-14)


@given(table=tables(), first=ANY, second=ANY)
def test_several_are_applied_in_turn(
    table: tf.TeacherLogits, first: tf.Transform, second: tf.Transform
) -> None:
    both = tf.Compose(first, second)
    assert both.needs_fit == (first.needs_fit or second.needs_fit)
    assert both.needs_labels == (first.needs_labels or second.needs_labels)
    ids, temperature = table.sample_ids, table.temperature
    middle = fitted(first, table)
    last = second.apply(tf.TeacherLogits(middle, table.labels, ids, temperature))
    assert torch.equal(fitted(both, table), last)
    assert torch.equal(fitted(tf.Compose(), table), table.logits)


# What each keeps --------------------------------------------------------------------------------------


@given(table=tables(), factor=st.floats(0.05, 20))
def test_scale(table: tf.TeacherLogits, factor: float) -> None:
    assert torch.equal(fitted(tf.Scale(factor=factor), table), factor * table.logits)


@given(table=tables(), transform=LEVELS)
def test_levels_move_the_top_logit_alone(table: tf.TeacherLogits, transform: Any) -> None:
    top = table.logits.argmax(dim=1).numpy()
    found = fitted(transform, table)
    np.testing.assert_array_equal(incorrect(found, top), incorrect(table.logits, top))


@given(table=tables(), how=st.sampled_from(["scale", "cap", "set"]), value=st.floats(0, 5))
def test_level_of_max_logit_and_gap(table: tf.TeacherLogits, how: Any, value: float) -> None:
    """The quantity is what was asked for, or the least that keeps the argmax."""
    top2 = table.logits.sort(dim=1, descending=True).values
    second = top2[:, 1]
    moved = {
        "scale": lambda q: q * value,
        "cap": lambda q: q.clamp(max=value),
        "set": lambda q: 0 * q + value,
    }
    largest = fitted(tf.MaxLogit(how=how, value=value), table).amax(dim=1)
    torch.testing.assert_close(largest, torch.maximum(moved[how](top2[:, 0]), second), rtol=1e-14, atol=1e-14)
    tall = fitted(tf.LogitGap(how=how, value=value), table).amax(dim=1)
    torch.testing.assert_close(tall, second + moved[how](top2[:, 0] - second), rtol=1e-14, atol=1e-14)


@given(table=tables(), how=st.sampled_from(["scale", "cap", "set"]), value=st.floats(0.05, 0.999))
def test_level_of_confidence(table: tf.TeacherLogits, how: Any, value: float) -> None:
    transform = tf.Confidence(how=how, value=value)
    before = probabilities(table.logits, table.temperature)
    after = probabilities(fitted(transform, table), table.temperature)
    top = before.argmax(axis=1)
    goal = {"scale": before.max(axis=1) * value, "cap": np.minimum(before.max(axis=1), value)}.get(
        how, np.full(len(top), value)
    )
    # Where the runner-up holds the share s of the incorrect mass, it would overtake below s / (1 + s).
    shares = incorrect(before, top) / incorrect(before, top).sum(axis=1, keepdims=True)
    least = shares.max(axis=1) / (1 + shares.max(axis=1))
    if (before.max(axis=1) < 1 - 1e-9).all():  # else the incorrect mass is lost in this test's arithmetic
        np.testing.assert_allclose(after.max(axis=1), np.maximum(goal, least), rtol=1e-9)
    untouched = tf.Confidence(how="scale", value=1)
    assert torch.equal(fitted(untouched, table), table.logits)


@given(table=tables(), transform=PERMUTATIONS)
def test_permuted_confidences(table: tf.TeacherLogits, transform: tf.PermuteConfidences) -> None:
    top = table.logits.argmax(dim=1).numpy()
    found = fitted(transform, table)
    np.testing.assert_array_equal(incorrect(found, top), incorrect(table.logits, top))
    group = np.zeros(len(table), int) if transform.within == "all" else correct_class(table, transform)
    before, after = (probabilities(z, table.temperature).max(axis=1) for z in (table.logits, found))
    for g in np.unique(group):
        np.testing.assert_allclose(np.sort(after[group == g]), np.sort(before[group == g]), rtol=1e-12)


@given(table=tables(), transform=ORDERS)
def test_orders_keep_the_correct_logit_and_the_multiset_of_the_others(
    table: tf.TeacherLogits, transform: Any
) -> None:
    found, correct = fitted(transform, table), correct_class(table, transform)
    rows = np.arange(len(table))
    np.testing.assert_array_equal(
        np.sort(incorrect(found, correct), axis=1), np.sort(incorrect(table.logits, correct), axis=1)
    )
    # Around the argmax, one that shared its logit with another class may come to stand one ulp higher.
    tie = 0 if transform.around == "label" else 4e-15
    np.testing.assert_allclose(found[rows, correct], table.logits[rows, correct], rtol=tie, atol=1e-300)
    before, after = (probabilities(z, table.temperature)[rows, correct] for z in (table.logits, found))
    np.testing.assert_allclose(after, before, rtol=1e-12)


@given(table=tables(), transform=VALUES)
def test_flat_values_keep_the_mass_and_the_largest(table: tf.TeacherLogits, transform: tf.KeepTop) -> None:
    found, correct = fitted(transform, table), correct_class(table, transform)
    before, after = (probabilities(z, table.temperature) for z in (table.logits, found))
    np.testing.assert_allclose(after.sum(axis=1), 1, rtol=1e-12)
    rows = np.arange(len(table))
    np.testing.assert_allclose(after[rows, correct], before[rows, correct], rtol=1e-10, atol=1e-300)
    old, new = incorrect(table.logits, correct), incorrect(found, correct)
    for old_row, new_row in zip(old, new, strict=True):
        order = np.argsort(-old_row, kind="stable")
        kept, rest = order[: transform.k], order[transform.k :]
        np.testing.assert_array_equal(new_row[kept], old_row[kept])
        assert len(set(new_row[rest])) <= 1
        assert len(rest) < 2 or old_row[rest].min() <= new_row[rest[0]] <= old_row[rest].max()


@given(table=tables())
def test_flatten_is_keep_top_of_none(table: tf.TeacherLogits) -> None:
    assert torch.equal(fitted(tf.FlattenIncorrect(), table), fitted(tf.KeepTop(k=0), table))


@given(table=tables())
def test_reversed_is_the_order_turned_round(table: tf.TeacherLogits) -> None:
    found, correct = fitted(tf.OrderIncorrect(how="reversed"), table), correct_class(table, None)
    for old, new in zip(incorrect(table.logits, correct), incorrect(found, correct), strict=True):
        if len(set(old)) == len(old):
            np.testing.assert_array_equal(new, np.sort(old)[::-1][np.argsort(np.argsort(old))])


def test_class_mean_order_by_hand() -> None:
    """Two samples of class 0 disagree on the other classes; the one with more mass there decides for both."""
    z = torch.tensor([[3.0, 2.0, 0.0], [9.0, 0.0, 5.0], [0.0, 1.0, 5.0]], dtype=torch.float64)
    found = tf.OrderIncorrect(how="class-mean").fit(z).logits
    assert found.tolist() == [[3, 2, 0], [9, 5, 0], [0, 1, 5]]
    # At a high temperature all have nearly as much mass, and the logits' own mean decides.
    warm = tf.OrderIncorrect(how="class-mean").fit(z, temperature=50.0).logits
    assert warm.tolist() == [[3, 0, 2], [9, 0, 5], [0, 1, 5]]


def test_class_random_order_is_one_per_class() -> None:
    z = torch.rand(40, 8, generator=torch.Generator().manual_seed(0))
    top, found = z.argmax(dim=1), tf.OrderIncorrect(how="class-random", seed=3)(z)
    orders = {
        (int(c), tuple(row.scatter(0, c, torch.inf).argsort().tolist()))
        for c, row in zip(top, found, strict=True)
    }
    assert len(orders) == len(set(top.tolist()))
    assert not torch.equal(found, tf.OrderIncorrect(how="class-random", seed=4)(z))


def test_random_order_differs_between_samples_and_is_uniform() -> None:
    z = torch.tensor([[9.0, 1.0, 2.0, 3.0]]).expand(6000, 4)
    found = tf.OrderIncorrect(how="random").fit(z).logits
    counts = [int((found[:, 1:] == torch.tensor(p)).all(dim=1).sum()) for p in permutations((1.0, 2.0, 3.0))]
    assert sum(counts) == 6000
    assert stats.chisquare(counts).pvalue > 1e-3
    other = tf.OrderIncorrect(how="random", seed=1).fit(z).logits
    assert 0.1 < float((found == other).all(dim=1).double().mean()) < 0.24


@pytest.mark.parametrize("goal", [-1.0, -0.7, 0.0, 0.25, 1.0])
@pytest.mark.parametrize(("classes", "around"), [(3, "argmax"), (10, "label")])
def test_noise_reaches_its_correlation(classes: int, goal: float, around: Any) -> None:
    rng = torch.Generator().manual_seed(0)
    z, labels = torch.randn(200, classes, generator=rng), torch.randint(classes, (200,), generator=rng)
    transform = tf.NoisyOrder(correlation=goal, around=around)
    found = transform.fit(z, labels).logits
    correct = z.argmax(dim=1) if around == "argmax" else labels
    pairs = zip(incorrect(z, correct), incorrect(found, correct), strict=True)
    mean = np.mean([stats.spearmanr(old, new).statistic for old, new in pairs])
    assert mean == pytest.approx(goal, abs=0.01)
    assert transform.fit(z[:1], labels[:1]).logits.shape == (1, classes)


def test_noise_comes_from_the_seed_and_ends_nearest_to_its_correlation() -> None:
    z = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    found = [tf.NoisyOrder(correlation=0.5, seed=seed).fit(z).logits for seed in (0, 1)]
    assert not torch.equal(*found)
    # Of one sample with four incorrect classes, 0.8 and 1 are neighbours among the correlations.
    one = torch.tensor([[9.0, 1.0, 2.0, 3.0, 4.0]])
    for seed in range(5):
        assert torch.equal(tf.NoisyOrder(correlation=0.91, seed=seed).fit(one).logits, one)
        assert not torch.equal(tf.NoisyOrder(correlation=0.89, seed=seed).fit(one).logits, one)


def test_log_odds_are_permuted_uniformly_among_what_is_allowed() -> None:
    """Three samples; the third refuses the smallest. Of 3! permutations the 4 others are as likely."""
    odds, least = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([-9.0, -9.0, 0.5])
    counts: dict[tuple[int, ...], int] = {}
    rng = np.random.default_rng(0)
    for _ in range(4000):
        drawn = tuple(tf.permute_log_odds(odds, least, rng).tolist())
        counts[drawn] = counts.get(drawn, 0) + 1
    assert set(counts) == {p for p in permutations(range(3)) if p[2] != 0}
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_confidences_move_between_samples_and_with_the_seed() -> None:
    z = torch.randn(200, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z[torch.arange(200), torch.arange(200) % 10] += 6.0
    found = [tf.PermuteConfidences(seed=seed).fit(z).logits for seed in (0, 1)]
    stays = [float((each == z).all(dim=1).double().mean()) for each in found]
    assert max(stays) < 0.05
    assert not torch.equal(*found)
    within = tf.PermuteConfidences(within="class").fit(z).logits
    assert not torch.equal(within, found[0])
    # Two classes with the same confidences draw different permutations of them.
    tall = torch.arange(4.0, 24.0, dtype=torch.float64)
    twins = torch.cat([torch.stack([tall, 0 * tall], dim=1), torch.stack([0 * tall, tall], dim=1)])
    first, second = tf.PermuteConfidences(within="class").fit(twins).logits.amax(dim=1).chunk(2)
    assert not torch.equal(first, second)


def test_smooth_labels() -> None:
    z = torch.tensor([[2.0, 0.0, 0.0], [0.0, 4.0, 0.0]], dtype=torch.float64)
    mean = float((z / 2).softmax(dim=1).amax(dim=1).mean())
    found = tf.SmoothLabels().fit(z, [2, 1], temperature=2.0)
    expected = torch.full((2, 3), (1 - mean) / 2, dtype=torch.float64)
    expected[0, 2] = expected[1, 1] = mean
    torch.testing.assert_close((found.logits / 2).softmax(dim=1), expected, rtol=1e-12, atol=0)
    certain = tf.SmoothLabels().fit(100 * z, [2, 1])
    assert bool(certain.logits.isfinite().all())


def test_gradients_pass_through_what_is_kept() -> None:
    z = torch.tensor([[4.0, 1.0, 2.0]], requires_grad=True)
    tf.OrderIncorrect(how="reversed")(z)[0, 1].backward()
    assert z.grad is not None
    assert z.grad.tolist() == [[0, 0, 1]]


def test_float32_keeps_its_precision_and_half_becomes_float32() -> None:
    z = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    for transform in (tf.PermuteConfidences(), tf.FlattenIncorrect(), tf.OrderIncorrect(how="random")):
        found = transform.fit(z).logits
        assert found.dtype == torch.float32
        assert torch.equal(found.argmax(dim=1), z.argmax(dim=1))
        assert transform.fit(z.half()).logits.dtype == torch.float32
        assert transform.fit(z.numpy()).logits.dtype == torch.float32


# The table --------------------------------------------------------------------------------------------


@given(table=tables(), data=st.data())
def test_rows_are_found_by_id(table: tf.TeacherLogits, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(table) - 1), min_size=1))
    assert torch.equal(table(table.sample_ids[rows]), table.logits[rows])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"logits": [[1.0, 2.0]]}, TypeError, r"teacher's logits must be a floating-point .* got list"),
        ({"logits": torch.tensor([[1, 2]])}, TypeError, "must be a floating-point .* got torch.int64"),
        (
            {"logits": torch.zeros(3)},
            ValueError,
            r"must have shape \(N, C\) with N >= 1 and C >= 2, got \(3,\)",
        ),
        ({"logits": torch.zeros(3, 1)}, ValueError, r"must have shape \(N, C\)"),
        ({"logits": torch.zeros(0, 2)}, ValueError, r"must have shape \(N, C\)"),
        ({"logits": torch.tensor([[1.0, torch.nan]])}, ValueError, "must be finite, got NaN or infinity"),
        ({"labels": [0]}, ValueError, r"labels must have shape \(2,\)"),
        ({"labels": [0, 3]}, ValueError, r"labels must lie in \[0, 3\)"),
        ({"sample_ids": [1, 1]}, ValueError, "sample_ids must be distinct"),
        ({"sample_ids": [1]}, ValueError, r"sample_ids must have shape \(2,\)"),
        ({"temperature": 0}, ValueError, "temperature must be a finite number > 0, got 0"),
    ],
)
def test_refused_tables(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tf.TeacherLogits(**{"logits": torch.zeros(2, 3), **options})


def test_unknown_ids_and_missing_labels() -> None:
    table = tf.TeacherLogits(torch.zeros(2, 3), sample_ids=[4, 9])
    with pytest.raises(
        ValueError, match="must be ids of the teacher's logits, got 2 others, the first of them 5"
    ):
        table([4, 5, 10])
    with pytest.raises(ValueError, match="labels must be given for a transform around the label"):
        table.correct("label")


def test_probabilities_are_refused_and_log_probabilities_are_not() -> None:
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        ValueError, match=r"must be logits, got probabilities \(rows of numbers >= 0 with sum 1\)"
    ):
        tf.Scale(factor=1.0).fit(z.softmax(dim=1))
    tf.Scale(factor=1.0).fit(z.log_softmax(dim=1))


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (tf.Scale, {"factor": 0}, ValueError, "factor must be a finite number > 0"),
        (
            tf.MaxLogit,
            {"how": "drop", "value": 1},
            ValueError,
            "how must be one of scale, cap, set, got 'drop'",
        ),
        (tf.MaxLogit, {"how": "cap", "value": "1"}, TypeError, "value must be a number"),
        (tf.LogitGap, {"how": "set", "value": -1}, ValueError, "value must be a finite number >= 0, got -1"),
        (tf.Confidence, {"how": "set", "value": 1}, ValueError, r"value must lie in \(0, 1\), got 1"),
        (
            tf.Confidence,
            {"how": "scale", "value": 1.5},
            ValueError,
            r"value must lie in \(0, 1\]: no confidence",
        ),
        (tf.PermuteConfidences, {"within": "batch"}, ValueError, "within must be one of all, class"),
        (tf.PermuteConfidences, {"around": "top"}, ValueError, "around must be one of argmax, label"),
        (tf.PermuteConfidences, {"seed": -1}, ValueError, "seed must be at least 0"),
        (tf.OrderIncorrect, {"how": "random", "seed": 0.5}, TypeError, "seed must be an integer"),
        (
            tf.OrderIncorrect,
            {"how": "mean"},
            ValueError,
            "how must be one of random, class-random, class-mean",
        ),
        (tf.NoisyOrder, {"correlation": 1.1}, ValueError, r"correlation must lie in \[-1, 1\], got 1.1"),
        (tf.KeepTop, {"k": -1}, ValueError, "k must be at least 0"),
        (tf.KeepTop, {"k": 1, "around": 0}, ValueError, "around must be one of argmax, label"),
        (tf.FlattenIncorrect, {"k": 1}, ValueError, "k must be 0, got 1: use KeepTop"),
        (tf.SmoothLabels, {"confidence": 1.0}, ValueError, r"confidence must lie in \(0, 1\), got 1.0"),
    ],
)
def test_refused_arguments(make: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(**options)


def test_as_transform() -> None:
    scale = tf.Scale(factor=2.0)
    assert tf.as_transform(None) == tf.Compose()
    assert tf.as_transform(scale) == tf.as_transform([scale]) == tf.as_transform(tf.Compose(scale))
    for wrong in ("scale", [scale, 3]):
        with pytest.raises(
            TypeError, match=r"transform must be an art_logits.transforms.Transform or several"
        ):
            tf.as_transform(wrong)


def test_config_is_plain() -> None:
    both = tf.Compose(tf.Scale(factor=2.0), tf.KeepTop(k=1))
    assert tf.transform_config(both) == [
        {"transform": "Scale", "factor": 2.0},
        {"transform": "KeepTop", "k": 1, "around": "argmax"},
    ]
