from __future__ import annotations

import logging

import pytest
import torch

from art_logits._batches import Batches, fitting_batch_size


def limited(limit: int, error: type[RuntimeError] = torch.OutOfMemoryError, text: str = "no memory"):
    """A function that fails above a number of rows, and the parts that went through."""
    done: list[int] = []

    def function(rows: slice) -> list[int]:
        if rows.stop - rows.start > limit:
            raise error(text)
        done.extend(range(rows.start, rows.stop))
        return list(range(rows.start, rows.stop))

    return function, done


@pytest.mark.parametrize("count", [1, 5, 16, 37])
@pytest.mark.parametrize("limit", [1, 3, 8, 100])
def test_parts_are_halved_until_they_fit_and_nothing_is_lost_or_done_twice(count: int, limit: int) -> None:
    function, done = limited(limit)
    batches = Batches(16)
    results = batches.run(function, count)
    assert [row for rows in results for row in rows] == list(range(count)) == done
    assert max(map(len, results)) <= max(limit, 1)
    assert batches.size <= 16


@pytest.mark.parametrize("limit", [2, 100])
def test_parts_are_as_large_as_a_function_says(limit: int) -> None:
    function, done = limited(limit)
    asked: list[int] = []

    def at_most(left: int) -> int:
        asked.append(left)
        return 1 << (left.bit_length() - 1)

    results = Batches(16).run(function, 27, at_most=at_most)
    assert done == list(range(27))
    if limit == 100:
        assert asked == [16, 11, 3, 1]
        assert list(map(len, results)) == [16, 8, 2, 1]
    else:
        assert set(map(len, results)) <= {1, 2}


def test_a_size_that_did_not_fit_is_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    function, _ = limited(5)
    batches = Batches(16)
    with caplog.at_level(logging.WARNING, logger="art_logits"):
        batches.run(function, 40)
        batches.run(function, 40)
    assert batches.size == 4
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory: going on with a batch size of 8",
        "out of memory: going on with a batch size of 4",
    ]


def test_a_single_sample_that_does_not_fit_ends_it() -> None:
    function, done = limited(0)
    with pytest.raises(torch.OutOfMemoryError, match=r"out of memory with a single sample .*no memory"):
        Batches(4).run(function, 4)
    assert done == []


def test_the_cpu_says_it_in_its_own_words_and_other_errors_pass() -> None:
    function, _ = limited(2, RuntimeError, "DefaultCPUAllocator: can't allocate memory: you tried")
    assert len(Batches(8).run(function, 8)) == 4
    function, _ = limited(2, RuntimeError, "shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        Batches(8).run(function, 8)


def test_batches_for_a_cpu_are_those_of_its_caches() -> None:
    inputs = torch.zeros(2, 3)
    assert fitting_batch_size(lambda x: x, inputs, most=512) == 128
    assert fitting_batch_size(lambda x: x, inputs, most=10) == 10
