import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import confusion_matrix

from art_logits.functional import classwise

outcomes = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=60)


def test_absent_class_is_nan_with_support_zero():
    hits, support = classwise.class_counts([True, False, True, True], [0, 0, 2, 2], 4)
    assert hits.tolist() == [1, 0, 2, 0]
    assert support.tolist() == [2, 0, 2, 0]
    accuracy = classwise.class_accuracy([True, False, True, True], [0, 0, 2, 2], 4)
    assert accuracy == pytest.approx([0.5, np.nan, 1.0, np.nan], nan_ok=True)


def test_no_samples_at_all():
    hits, support = classwise.class_counts(np.zeros(0, dtype=bool), np.zeros(0, dtype=np.int64), 3)
    assert hits.tolist() == support.tolist() == [0, 0, 0]
    assert classwise.confusion([], [], 2).tolist() == [[0, 0], [0, 0]]


@given(outcomes)
def test_counts_match_bincount_for_arrays_and_tensors(rows):
    labels, hits = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    labels.flags.writeable = hits.flags.writeable = False
    expected = np.bincount(labels, weights=hits, minlength=5), np.bincount(labels, minlength=5)
    for arguments in ((hits, labels), (torch.tensor(hits), torch.tensor(labels, dtype=torch.int32))):
        counts = classwise.class_counts(*arguments, 5)
        assert counts.hits.tolist() == expected[0].tolist()
        assert counts.support.tolist() == expected[1].tolist()


@pytest.mark.parametrize(
    ("hits", "labels", "num_classes", "message"),
    [
        ([1, 0], [0, 1], 2, "hits: expected 2 booleans"),
        ([True], [0, 1], 2, r"hits: expected 2 booleans, one per label, got torch.bool of shape \(1,\)"),
        ([True], [2], 2, r"labels: expected integers in \[0, 2\), got 2 to 2"),
        ([True], [-1], 2, r"labels: expected integers in \[0, 2\), got -1"),
        ([True], [0.0], 2, r"labels: expected integers of shape \(N,\), got torch.float64"),
        ([True], [[0]], 2, r"labels: expected integers of shape \(N,\)"),
        ([True], [True], 2, r"labels: expected integers of shape \(N,\), got torch.bool"),
        ([True], [0], 1, "num_classes: expected at least 2, got 1"),
    ],
)
def test_counts_refuse(hits, labels, num_classes, message):
    with pytest.raises(ValueError, match=message):
        classwise.class_counts(hits, labels, num_classes)


@given(st.integers(1, 400), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_solves_its_equation(support, data, level):
    """The ends are the shares p with |hits / n - p| = z sqrt(p (1 - p) / n)."""
    hits = data.draw(st.integers(0, support))
    low, high = classwise.wilson_interval(hits, support, level=level)
    z2 = stats.norm.ppf((1 + level) / 2) ** 2
    share = hits / support
    roots = np.roots([1 + z2 / support, -2 * share - z2 / support, share**2])
    assert (float(low), float(high)) == pytest.approx(sorted(roots), abs=1e-7)
    assert 0 <= low <= hits / support <= high <= 1


def test_wilson_of_arrays_has_nan_for_no_samples():
    low, high = classwise.wilson_interval([0, 5, 5], [0, 5, 10])
    assert np.isnan([low[0], high[0]]).all()
    assert high[1] == 1.0
    assert low[2] == pytest.approx(1 - high[2])
    assert [end.shape for end in classwise.wilson_interval(np.ones((2, 3)), 4)] == [(2, 3)] * 2
    assert [end.shape for end in classwise.wilson_interval([], [])] == [(0,)] * 2


@pytest.mark.parametrize(
    ("hits", "support", "level", "message"),
    [
        (1, 2, 1.0, "level: expected a coverage between 0 and 1, got 1.0"),
        (1, 2, 0.0, "level: expected"),
        (3, 2, 0.95, "hits: expected counts from 0 to support"),
        (-1, 2, 0.95, "hits: expected counts from 0 to support"),
        (0.5, 2, 0.95, "hits, support: expected whole numbers of samples, got fractions"),
    ],
)
def test_wilson_refuses(hits, support, level, message):
    with pytest.raises(ValueError, match=message):
        classwise.wilson_interval(hits, support, level=level)


def test_worst_class_and_disparity_ignore_absent_classes():
    values = [np.nan, 0.75, 0.25, 0.25]
    assert classwise.worst_class(values) == 2
    assert classwise.disparity(values) == 0.5


def test_worst_class_and_disparity_of_nothing():
    assert classwise.worst_class([np.nan, np.nan]) is None
    assert np.isnan(classwise.disparity([np.nan, np.nan]))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=50))
def test_confusion_matches_sklearn(pairs):
    sources, predictions = np.array(pairs).T
    expected = confusion_matrix(sources, predictions, labels=range(4))
    assert classwise.confusion(sources, predictions, 4).tolist() == expected.tolist()


def test_confusion_refuses_lengths_that_differ():
    with pytest.raises(ValueError, match="predictions: expected 2, one per source, got 1"):
        classwise.confusion([0, 1], [0], 2)


@pytest.mark.parametrize(
    ("only_a", "only_b", "expected"),
    [(0, 0, 1.0), (3, 3, 1.0), (0, 5, 2 / 32), (1, 5, 2 * (1 + 6) / 64), (10, 0, 2 / 1024)],
)
def test_mcnemar_by_hand(only_a, only_b, expected):
    assert classwise.mcnemar(only_a, only_b) == pytest.approx(expected)


def test_paired_interval_of_a_published_example():
    """Bentur et al. 2009, as in Fagerland, Lydersen and Laake 2014: 7 and 1 of 21 children change."""
    # a = 8 / 23, b = 2 / 23: -6 / 23 -+ 1.96 sqrt((10 / 23 - 36 / 529) / 23)
    low, high = classwise.paired_difference_interval([7, 0], [1, 0], [21, 0])
    assert [low[0], high[0]] == pytest.approx([-0.50836, -0.01338], abs=1e-5)
    assert np.isnan([low[1], high[1]]).all()


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 60), st.sampled_from([0.8, 0.95]))
def test_paired_interval_holds_the_difference_and_is_antisymmetric(only_a, only_b, both, level):
    n = only_a + only_b + both
    if not n:
        return
    low, high = classwise.paired_difference_interval(only_a, only_b, n, level=level)
    assert -1 <= low <= (only_b - only_a) / n <= high <= 1
    assert low < high
    turned = classwise.paired_difference_interval(only_b, only_a, n, level=level)
    assert (-turned[1], -turned[0]) == pytest.approx((low, high))


def test_paired_interval_is_that_of_a_bootstrap_where_samples_are_many(rng):
    change = np.repeat([-1, 0, 1], [120, 700, 180])
    reference = stats.bootstrap((change,), np.mean, method="percentile", rng=rng).confidence_interval
    interval = classwise.paired_difference_interval(120, 180, 1000)
    assert interval == pytest.approx(tuple(reference), abs=0.004)


@pytest.mark.parametrize("shares", [(0.05, 0.05), (0.0, 0.02), (0.2, 0.05)])
def test_paired_interval_covers_the_true_difference(shares, rng):
    counts = rng.multinomial(40, [*shares, 1 - sum(shares)], size=2000)
    low, high = classwise.paired_difference_interval(counts[:, 0], counts[:, 1], 40)
    truth = shares[1] - shares[0]
    assert ((low <= truth) & (truth <= high)).mean() > 0.94


def test_paired_interval_refuses():
    with pytest.raises(ValueError, match="level: expected a coverage between 0 and 1, got 1"):
        classwise.paired_difference_interval(1, 1, 2, level=1)
    for counts in ((-1, 0, 3), (0, -1, 3), (2, 2, 3)):
        with pytest.raises(ValueError, match="only_a, only_b: expected counts from 0 that sum to at most"):
            classwise.paired_difference_interval(*counts)


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04; the last is raised to 0.06.
    assert classwise.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_does_not_count_tests_that_were_not_made():
    assert classwise.holm([np.nan, 0.02, 0.9]) == pytest.approx([np.nan, 0.04, 0.9], nan_ok=True)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_with_bonferronis(p_values):
    """A hypothesis falls if every set of hypotheses that holds it does, by Bonferroni's test of the set."""
    each = range(len(p_values))
    sets = [chosen for size in each for chosen in itertools.combinations(each, size + 1)]
    local = {chosen: min(1.0, len(chosen) * min(p_values[i] for i in chosen)) for chosen in sets}
    expected = [max(p for chosen, p in local.items() if i in chosen) for i in each]
    assert classwise.holm(p_values) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_raw_values_and_bonferroni(p_values):
    raw, adjusted = np.array(p_values), classwise.holm(p_values)
    assert np.all(adjusted >= raw)
    assert np.all(adjusted <= np.minimum(1, raw * len(raw)) + 1e-12)
    assert np.all(np.diff(adjusted[np.argsort(raw, kind="stable")]) >= 0)


accuracies = st.lists(st.one_of(st.integers(0, 20).map(lambda n: n / 20), st.just(np.nan)), max_size=30)


def test_tail_by_hand():
    values = [0.9, 0.1, np.nan, 0.5, 0.3]
    assert classwise.tail(values, 0.1) == 0.1
    assert classwise.tail(values, 0.5) == pytest.approx(0.2)
    assert classwise.tail(values, 1) == pytest.approx(0.45)
    # 7 % of 100 classes are 7, although 0.07 * 100 is not.
    assert classwise.tail(np.arange(100), 0.07) == 3
    assert np.isnan(classwise.tail([np.nan], 0.1))


@pytest.mark.parametrize("share", [0, -0.1, 1.1, np.nan])
def test_tail_refuses(share):
    with pytest.raises(ValueError, match=f"share: expected a part .* at most 1, got {share}"):
        classwise.tail([0.5], share)


@given(accuracies)
def test_unevenness_matches_its_definitions(values):
    present = np.array([value for value in values if not np.isnan(value)])
    nsd, gini = classwise.nsd(values), classwise.gini(values)
    if not present.any():
        assert np.isnan([nsd, gini]).all()
        return
    pairs = np.abs(present[:, None] - present[None]).mean()
    assert nsd == pytest.approx(present.std() / present.mean())
    assert gini == pytest.approx(pairs / 2 / present.mean(), abs=1e-12)
    assert -1e-12 <= gini <= 1 - 1 / len(present) + 1e-12
    assert classwise.tail(values, 0.1) <= classwise.tail(values, 0.2) + 1e-12


def test_gini_refuses_negative_values():
    with pytest.raises(ValueError, match=r"values: expected none below 0, got -0\.5"):
        classwise.gini([0.1, -0.5])


@given(st.integers(1, 300), st.data(), st.sampled_from([0.8, 0.95]))
def test_worst_class_interval_of_one_class_is_clopper_pearson(support, data, level):
    hits = data.draw(st.integers(0, support))
    expected = stats.binomtest(hits, support).proportion_ci(level, method="exact")
    interval = classwise.worst_class_interval([hits, 0], [support, 0], level=level)
    assert interval == pytest.approx((expected.low, expected.high), abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), min_size=1, max_size=8))
def test_worst_class_interval_contains_the_observed_minimum(rows):
    support = np.array([n for _, n in rows])
    hits = np.minimum([h for h, _ in rows], support)
    low, high = classwise.worst_class_interval(hits, support)
    assert 0 <= low <= (hits / support).min() <= high <= 1


@pytest.mark.parametrize("truth", [[0.5] * 10, [0.2] + [0.7] * 9, np.linspace(0.3, 0.8, 10), [0.02] * 5])
def test_worst_class_interval_covers_the_true_minimum(truth):
    rng = np.random.default_rng(0)
    draws = rng.binomial(60, truth, size=(300, len(truth)))
    intervals = np.array([classwise.worst_class_interval(hits, [60] * len(truth)) for hits in draws])
    covered = (intervals[:, 0] <= min(truth)) & (min(truth) <= intervals[:, 1])
    assert covered.mean() >= 0.93
    if len(set(truth)) == 1 and truth[0] == 0.5:
        # Of equal classes the unluckiest looks bad: the interval of that class alone misses far too often.
        worst = draws.min(axis=1)
        alone = np.array([classwise.wilson_interval(h, 60)[1] for h in worst])
        assert (alone >= 0.5).mean() < 0.93


def test_classes_far_above_the_worst_do_not_widen_its_interval():
    alone = stats.binomtest(50, 100).proportion_ci(method="exact")
    assert classwise.worst_class_interval([50, 95, 99], [100] * 3) == pytest.approx(tuple(alone), abs=1e-6)
    # One that may be the worst does: both are at or below 1 / 2 with probability 1 - 0.025 ^ (1 / 2).
    high = classwise.worst_class_interval([50, 50], [100] * 2)[1]
    assert 1 - stats.binom.sf(50, 100, high) ** 2 == pytest.approx(0.025)
    assert high > alone.high + 0.01


def test_worst_class_interval_of_nothing_and_its_refusals():
    assert np.isnan(classwise.worst_class_interval([0], [0])).all()
    with pytest.raises(ValueError, match="level: expected a coverage between 0 and 1, got 2"):
        classwise.worst_class_interval([0], [1], level=2)
    with pytest.raises(ValueError, match="hits: expected counts from 0 to support"):
        classwise.worst_class_interval([2], [1])


def test_row_shares_by_hand():
    shares = classwise.row_shares([[2, 1, 1], [0, 0, 0], [0, 0, 5]])
    assert shares[[0, 2]].tolist() == [[0.5, 0.25, 0.25], [0, 0, 1]]
    assert np.isnan(shares[1]).all()
