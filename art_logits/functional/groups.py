"""Groups of classes that are taken for each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from art_logits._extras import require
from art_logits.functional.classwise import ratio

if TYPE_CHECKING:
    from sklearn import cluster, metrics
else:
    cluster = require("sklearn.cluster", extra="evaluate")
    metrics = require("sklearn.metrics", extra="evaluate")


def class_groups(matrix: ArrayLike, *, max_groups: int = 20) -> NDArray[np.int64]:
    """Group classes by who is taken for whom.

    Two classes are near when the errors of one fall on the other: with ``E`` the matrix without its diagonal,
    every row divided by its sum, their distance is ``1 - (E_ij + E_ji) / 2``. The diagonal is left out
    because a robust class, which makes few errors, can still be one of a group. Classes are merged by
    average linkage; of 2 to ``max_groups`` groups those with the largest silhouette are taken.

    Args:
        matrix: ``(C, C)`` counts, row source, column prediction.
        max_groups: the most groups, at least 2.

    Returns:
        ``(C,)`` numbers of groups from 0, by the first class of each; -1 for a class without samples. Fewer
        than three classes with samples, or classes without errors, are one group.

    Raises:
        ValueError: ``matrix`` is not square, or ``max_groups`` is below 2.

    >>> class_groups([[5, 3, 0, 0], [4, 4, 0, 0], [0, 0, 6, 2], [0, 0, 3, 1]])
    array([0, 0, 1, 1])
    """
    counts = np.asarray(matrix, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"matrix: expected one of shape (C, C), got shape {counts.shape}")
    if max_groups < 2:
        raise ValueError(f"max_groups: expected at least 2, got {max_groups}")
    present = np.flatnonzero(counts.sum(axis=1) > 0)
    groups = np.full(len(counts), -1, dtype=np.int64)
    groups[present] = _grouped(counts[np.ix_(present, present)], max_groups)
    return groups


def _grouped(counts: NDArray[np.float64], max_groups: int) -> NDArray[np.int64]:
    """Groups of classes that all have samples."""
    one = np.zeros(len(counts), dtype=np.int64)
    errors = counts - np.diag(np.diag(counts))
    if len(counts) < 3 or not errors.any():
        return one
    shares = np.nan_to_num(ratio(errors, errors.sum(axis=1, keepdims=True)))
    distance = 1 - (shares + shares.T) / 2
    np.fill_diagonal(distance, 0.0)
    candidates = [_merged(distance, k) for k in range(2, min(max_groups, len(counts) - 1) + 1)]
    scores = [metrics.silhouette_score(distance, labels, metric="precomputed") for labels in candidates]
    return _by_first(candidates[int(np.argmax(scores))])


def _merged(distance: NDArray[np.float64], groups: int) -> NDArray[np.int64]:
    model = cluster.AgglomerativeClustering(n_clusters=groups, metric="precomputed", linkage="average")
    labels: NDArray[np.int64] = model.fit_predict(distance)
    return labels


def _by_first(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers in the order in which they occur first."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.empty(len(first), dtype=np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return order[inverse]
