"""Numbers and names as people read them: in the terminal, on the page, in figures."""

from __future__ import annotations

import unicodedata

import numpy as np


def percent(value: float) -> str:
    """A fraction in percent with one decimal; a dash for NaN.

    >>> percent(0.125), percent(float("nan"))
    ('12.5%', '-')
    """
    return "-" if np.isnan(value) else f"{100 * value:.1f}%"


def interval(low: float, high: float) -> str:
    """An interval of fractions in percent; a dash for NaN.

    >>> interval(0.1, 0.25)
    '10.0-25.0%'
    """
    return "-" if np.isnan(low) else f"{100 * low:.1f}-{100 * high:.1f}%"


def printable(text: str) -> str:
    """``text`` without control characters: a class name must not steer the terminal.

    >>> printable("cat" + chr(27))
    'cat?'
    """
    return "".join(character if character.isprintable() else "?" for character in text)


def width(text: str) -> int:
    """Columns that ``text`` takes in a terminal: East Asian wide characters take two.

    >>> width("cat"), width("猫")
    (3, 2)
    """
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def middle(text: str, limit: int) -> str:
    """``text`` in at most ``limit`` columns: what distinguishes long names is often at their end.

    >>> middle("temperature-pgd:restarts=2", 15)
    'tempera…tarts=2'
    """
    if width(text) <= limit:
        return text
    head, tail = text, ""
    while width(head) > limit // 2:
        head = head[:-1]
    for character in reversed(text):
        if width(head + tail + character) >= limit:
            break
        tail = character + tail
    return f"{head}…{tail}"


def shortened(text: str, limit: int = 80) -> str:
    """``text`` in at most ``limit`` characters.

    >>> shortened("a long reason", limit=7)
    'a long…'
    """
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines of one width: the first column to the left, the others to the right.

    >>> aligned([["cat", "1"], ["x", "20"]])
    ['cat   1', 'x    20']
    """
    widths = [max(width(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [_line(row, widths) for row in rows]


def _line(cells: list[str], widths: list[int]) -> str:
    padded = [
        cell + " " * (space - width(cell)) if column == 0 else " " * (space - width(cell)) + cell
        for column, (cell, space) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded)


def significant(value: float, sign: str = "") -> str:
    """A number with three digits that count, all of them shown; a dash for NaN.

    >>> significant(2.0), significant(1234.5), significant(0.5, "+"), significant(float("nan"))
    ('2.00', '1234', '+0.500', '-')
    """
    if np.isnan(value):
        return "-"
    return f"{value:{sign}.0f}" if abs(value) >= 1000 else f"{value:{sign}#.3g}".rstrip(".")


def points(value: float) -> str:
    """A difference of fractions in percentage points, with its sign; a dash for NaN.

    >>> points(0.125), points(-0.5)
    ('+12.5', '-50.0')
    """
    return "-" if np.isnan(value) else f"{100 * value:+.1f}"


def points_span(low: float, high: float) -> str:
    """An interval of a difference in percentage points; a dash for NaN.

    >>> points_span(-0.5, 0.125)
    '-50.0 to +12.5'
    """
    return "-" if np.isnan(low) else f"{points(low)} to {points(high)}"


def span(low: float, high: float) -> str:
    """An interval of numbers that may be negative; a dash for NaN.

    >>> span(-0.5, 0.25)
    '-0.50 to 0.25'
    """
    return "-" if np.isnan(low) else f"{low:.2f} to {high:.2f}"
