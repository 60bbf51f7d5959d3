"""What every test and doctest gets: names that doctests need not import, and its coverage counted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def _names_for_doctests(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace["torch"] = torch


@pytest.fixture(autouse=True)
def _the_trace_goes_on() -> Iterator[None]:
    """AutoAttack ends the trace of a coverage run; the tests after it would count for nothing."""
    trace = sys.gettrace()
    yield
    if sys.gettrace() is not trace:
        sys.settrace(trace)
