import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from art_logits.functional.ranks import auroc_interval, extreme_overlap, rank_correlation

pairs = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=30)


@given(pairs)
def test_correlations_match_pandas_and_lie_in_their_intervals(rows):
    import pandas as pd

    frame = pd.DataFrame(rows, columns=["a", "b"]).astype(float)
    result = rank_correlation(frame["a"], frame["b"])
    varied = frame.nunique().min() > 1
    assert np.isnan(result.spearman) == (not varied)
    if varied:
        # Pearson's correlation of the average ranks.
        assert result.spearman == pytest.approx(frame.rank().corr().loc["a", "b"], abs=1e-9)
        assert result.kendall == pytest.approx(frame.corr("kendall").loc["a", "b"], abs=1e-9)
    if varied and len(rows) >= 5:
        assert -1 <= result.spearman_low <= result.spearman <= result.spearman_high <= 1
        assert -1 <= result.kendall_low <= result.kendall <= result.kendall_high <= 1


def test_intervals_by_hand():
    # Of seven, two neighbours swapped: rho = 1 - 6 * 2 / (7 * 48), tau = 1 - 2 * 1 / 21.
    result = rank_correlation([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 7, 6])
    rho, tau = 1 - 12 / 336, 1 - 2 / 21
    z = stats.norm.ppf(0.975)
    spread = z * np.sqrt((1 + rho**2 / 2) / 4)
    assert (result.n, result.spearman, result.kendall) == pytest.approx((7, rho, tau))
    assert result.spearman_low == pytest.approx(np.tanh(np.arctanh(rho) - spread))
    assert result.spearman_high == pytest.approx(np.tanh(np.arctanh(rho) + spread))
    spread = z * np.sqrt(0.437 / 3)
    assert result.kendall_low == pytest.approx(np.tanh(np.arctanh(tau) - spread))
    assert result.kendall_high == pytest.approx(np.tanh(np.arctanh(tau) + spread))
    narrow = rank_correlation([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 7, 6], level=0.5)
    assert narrow.spearman_low > result.spearman_low


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covariance = [[1, 0.6], [0.6, 1]]
    truth = 6 / np.pi * np.arcsin(0.3)
    covered = []
    for _ in range(400):
        a, b = rng.multivariate_normal([0, 0], covariance, size=50).T
        result = rank_correlation(a, b)
        covered.append(result.spearman_low <= truth <= result.spearman_high)
    assert 0.92 <= np.mean(covered) <= 0.98


def test_missing_pairs_do_not_count():
    nan = np.nan
    result = rank_correlation([1, nan, 2, 3, 4, 5, 6], [1, 9, 2, 3, nan, 4, 5])
    assert result.n == 5
    assert result[1:] == pytest.approx((1, 1, 1, 1, 1, 1))


@pytest.mark.parametrize("values", [([], []), ([1], [2]), ([1, 1, 1], [1, 2, 3]), ([np.nan] * 2, [1, 2])])
def test_too_little_to_order_is_nan(values):
    assert np.isnan(rank_correlation(*values)[1:]).all()


def test_too_few_for_an_interval():
    result = rank_correlation([1, 2, 3, 4], [1, 2, 4, 3])
    assert not np.isnan(result.spearman_low)
    assert np.isnan([result.kendall_low, result.kendall_high]).all()
    assert np.isnan(rank_correlation([1, 2, 3], [1, 3, 2]).spearman_low)


@pytest.mark.parametrize(
    ("a", "b", "level", "message"),
    [
        ([1, 2], [1], 0.95, r"b: expected one value per value of a, of shape \(2,\), got shape \(1,\)"),
        ([[1]], [[1]], 0.95, "b: expected one value per value of a"),
        ([1, 2], [1, 2], 1, "level: expected a coverage between 0 and 1, got 1"),
    ],
)
def test_refuses(a, b, level, message):
    with pytest.raises(ValueError, match=message):
        rank_correlation(a, b, level=level)


# ---- AUROC ------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(2, 12))
def test_the_auroc_interval_by_its_definition(seed, m, n):
    rng = np.random.default_rng(seed)
    above, below = rng.integers(2, 9, m).astype(float), rng.integers(0, 7, n).astype(float)
    order = rng.permutation(m + n)
    low, high = auroc_interval(np.r_[above, below][order], (np.arange(m + n) < m)[order])
    wins = (above[:, None] > below) + 0.5 * (above[:, None] == below)
    area, rows, columns = wins.mean(), wins.mean(axis=1), wins.mean(axis=0)
    variance = rows.var(ddof=1) / m + columns.var(ddof=1) / n
    if area in (0, 1) or variance == 0:
        assert np.isnan([low, high]).all()
        return
    spread = stats.norm.ppf(0.975) * np.sqrt(variance) / (area * (1 - area))
    ends = np.log(area / (1 - area)) + np.array([-spread, spread])
    assert [low, high] == pytest.approx(1 / (1 + np.exp(-ends)))
    assert 0 < low < area < high < 1


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_the_auroc_interval_covers_as_often_as_it_says(shift, rng):
    truth = stats.norm.cdf(shift / np.sqrt(2))
    group = np.arange(60) < 25
    covered = []
    for _ in range(600):
        low, high = auroc_interval(rng.normal(size=60) + shift * group, group)
        covered.append(low <= truth <= high)
    assert 0.925 <= np.mean(covered) <= 0.975


def test_the_auroc_interval_needs_two_of_both_and_some_disorder():
    for values, group in (([1, 2, 3], [True, False, False]), ([1, 2, 3, 4], [False, False, True, True])):
        assert np.isnan(auroc_interval(values, group)).all()
    wide = auroc_interval([1, 3, 2, 4], [False, False, True, True])
    narrow = auroc_interval([1, 3, 2, 4], [False, False, True, True], level=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_auroc_interval_refuses():
    with pytest.raises(ValueError, match=r"positive: expected one boolean per value, \(2,\), got int64 of"):
        auroc_interval([1, 2], [0, 1])
    with pytest.raises(ValueError, match="positive: expected one boolean per value"):
        auroc_interval([1, 2], [True])
    with pytest.raises(ValueError, match="level: expected a coverage between 0 and 1, got 1"):
        auroc_interval([1, 2], [True, False], level=1)


# ---- largest and smallest values -------------------------------------------------------------------------


def test_overlap_by_hand():
    # Tenths of 20: the largest of a are 18 and 19, those of b 18 and 17; the smallest 0, 1 and 2, 3.
    a = np.arange(20)
    b = np.r_[[10, 11, 0, 1], np.arange(2, 10), np.arange(12, 20)].astype(float)
    b[[18, 17]], b[19] = [50, 49], 5.5
    overlap = extreme_overlap(a, b)
    assert overlap[:4] == (20, 2, 0.5, 0.0)
    # One or two of two drawn from 20 with 2 marked: 1 - C(18, 2) / C(20, 2).
    assert overlap.top_p == pytest.approx(1 - 153 / 190)
    assert overlap.bottom_p == pytest.approx(1)


@given(st.integers(2, 40), st.floats(0.01, 0.5), st.integers(0, 100))
def test_overlap_with_oneself_is_complete_and_symmetric(n, share, seed):
    a, b = np.random.default_rng(seed).normal(size=(2, n))
    same = extreme_overlap(a, 3 * a + 1, share=share)
    assert (same.top, same.bottom) == (1, 1)
    assert same.size == max(1, int(share * n))
    assert extreme_overlap(a, b, share=share) == extreme_overlap(b, a, share=share)
    reverse = extreme_overlap(-a, -b, share=share)
    assert (reverse.top, reverse.bottom) == extreme_overlap(a, b, share=share)[3:1:-1]


def test_overlap_by_chance():
    a, b = np.random.default_rng(0).normal(size=(2, 20000))
    overlap = extreme_overlap(a, b)
    assert overlap.top == pytest.approx(0.1, abs=0.02)
    shared = overlap.top * 2000
    table = [[shared, 2000 - shared], [2000 - shared, 16000 + shared]]
    expected = stats.fisher_exact(table, alternative="greater")
    assert overlap.top_p == pytest.approx(expected.pvalue)


@pytest.mark.parametrize(
    ("a", "b", "share", "message"),
    [
        (
            [1, 2],
            [1, 2, 3],
            0.1,
            r"b: expected two values or more, .* got \(3,\) for \(2,\)",
        ),
        ([1], [1], 0.1, "b: expected two values or more"),
        ([1, np.nan], [1, 2], 0.1, "a, b: expected values without NaN"),
        ([1, 2], [1, 2], 0.6, "share: .* at most 0.5, got 0.6"),
        ([1, 2], [1, 2], 0, "share: .* above 0"),
    ],
)
def test_overlap_refuses(a, b, share, message):
    with pytest.raises(ValueError, match=message):
        extreme_overlap(a, b, share=share)
