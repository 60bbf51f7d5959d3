import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from art_logits.functional.groups import class_groups


def blocks(sizes, rng, *, inside=20, outside=1):
    """Errors fall mostly inside blocks; how many a class makes varies by a factor of ten."""
    truth = np.repeat(np.arange(len(sizes)), sizes)
    rate = np.where(truth[:, None] == truth[None], inside, outside) * rng.uniform(1, 10, (len(truth), 1))
    counts = rng.poisson(rate)
    np.fill_diagonal(counts, rng.integers(0, 2000, len(truth)))
    return counts, truth


@given(st.integers(0, 1000))
def test_planted_groups_are_found_whatever_the_order_and_the_robustness(seed):
    rng = np.random.default_rng(seed)
    counts, truth = blocks([4, 5, 3], rng)
    order = rng.permutation(len(truth))
    groups = class_groups(counts[np.ix_(order, order)])
    assert adjusted_rand_score(truth[order], groups) == 1
    assert groups[0] == 0
    assert set(groups.tolist()) == {0, 1, 2}


def test_classes_without_samples_belong_to_no_group():
    counts = np.zeros((6, 6), dtype=int)
    counts[:4, :4] = [[5, 3, 0, 0], [4, 4, 0, 0], [0, 0, 6, 2], [0, 0, 3, 1]]
    counts[0, 5] = 1  # taken for a class that has no samples of its own
    assert class_groups(counts).tolist() == [0, 0, 1, 1, -1, -1]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (np.zeros((0, 0)), []),
        (np.zeros((2, 2)), [-1, -1]),
        ([[3, 0], [0, 0]], [0, -1]),
        ([[3, 1], [1, 3]], [0, 0]),
        (np.eye(4), [0, 0, 0, 0]),
    ],
)
def test_too_little_to_group(counts, expected):
    assert class_groups(counts).tolist() == expected


def test_no_more_groups_than_asked_for():
    counts, _ = blocks([3] * 6, np.random.default_rng(0))
    assert class_groups(counts).max() == 5
    assert class_groups(counts, max_groups=3).max() <= 2


@pytest.mark.parametrize(
    ("matrix", "options", "message"),
    [
        ([[1, 2]], {}, r"matrix: expected one of shape \(C, C\), got shape \(1, 2\)"),
        ([[1, 2], [2, 1]], {"max_groups": 1}, "max_groups: expected at least 2, got 1"),
    ],
)
def test_refuses(matrix, options, message):
    with pytest.raises(ValueError, match=message):
        class_groups(matrix, **options)


def test_errors_of_either_class_bring_two_together():
    # The last class is always taken for the third, never the other way round; the others have no tie to them.
    counts = np.array([[5, 5, 0, 0], [5, 5, 0, 0], [1, 1, 8, 0], [0, 0, 8, 2]])
    assert class_groups(counts).tolist() == [0, 0, 1, 1]
    assert class_groups(counts[::-1, ::-1]).tolist() == [0, 0, 1, 1]
