"""Tables as text: Markdown and LaTeX from pandas DataFrames, for papers and pull requests."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from art_logits._extras import require
from art_logits._files import write_atomically

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = require("pandas", extra="evaluate")

__all__ = ["Tabular", "to_latex", "to_markdown"]

# What Markdown (GitHub's, too) reads as more than itself in a cell; "_" does so at the ends of words only.
_SPECIAL = re.compile(r"[\\`*\[\]<>&#|~$]|(?<![^\W_])_|_(?![^\W_])")

_LATEX = str.maketrans({"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"})


class Tabular(ABC):
    """A result that is a table: every format that it can be written in."""

    @abstractmethod
    def to_frame(self) -> pd.DataFrame:
        """The table as a pandas DataFrame."""

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_frame` as CSV; NaN is an empty cell.

        Args:
            path: the file, replaced atomically.
        """
        write_atomically(Path(path), self.to_frame().to_csv(index=False).encode())

    def to_markdown(self, *, digits: int = 3) -> str:
        """:meth:`to_frame` as a Markdown table; see :func:`to_markdown`.

        Args:
            digits: significant digits of fractions.

        Returns:
            The table.
        """
        return to_markdown(self.to_frame(), digits=digits)

    def to_latex(self, *, digits: int = 3, caption: str | None = None, label: str | None = None) -> str:
        """:meth:`to_frame` as a LaTeX table for booktabs; see :func:`to_latex`.

        Args:
            digits: significant digits of fractions.
            caption: of the table.
            label: to refer to it.

        Returns:
            The table.
        """
        return to_latex(self.to_frame(), digits=digits, caption=caption, label=label)


def to_markdown(frame: pd.DataFrame, *, digits: int = 3) -> str:
    r"""A Markdown table (pandas would need tabulate for it).

    Args:
        frame: what to write; its index is left out.
        digits: significant digits of fractions.

    Returns:
        The table, ending with a line break; numbers to the right, NaN as a dash. Names are text: characters
        that mean something in Markdown are escaped.

    >>> print(to_markdown(pd.DataFrame({"class": ["a|b"], "n": [2], "robust": [0.12345]})), end="")
    | class | n | robust |
    | :-- | --: | --: |
    | a\|b | 2 | 0.123 |
    """
    heads = [_escaped(str(name)) for name in frame.columns]
    numeric = [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]
    rules = ["--:" if each else ":--" for each in numeric]
    columns = [frame[name].tolist() for name in frame.columns]
    rows = [[_cell(value, digits) for value in row] for row in zip(*columns, strict=True)]
    return "".join(f"| {' | '.join(line)} |\n" for line in [heads, rules, *rows])


def to_latex(
    frame: pd.DataFrame, *, digits: int = 3, caption: str | None = None, label: str | None = None
) -> str:
    r"""A LaTeX table for the package booktabs.

    Args:
        frame: what to write; its index is left out.
        digits: significant digits of fractions.
        caption: of the table; with one or with a ``label`` it is a ``table`` that floats, else a ``tabular``.
        label: to refer to it.

    Returns:
        The table; NaN as a dash, special characters of names escaped (those of the caption are not).

    >>> print(to_latex(pd.DataFrame({"class": ["a_b"], "robust": [0.12345]})), end="")
    \begin{tabular}{lr}
    \toprule
    class & robust \\
    \midrule
    a\_b & 0.123 \\
    \bottomrule
    \end{tabular}
    """
    words = frame.select_dtypes(exclude="number").columns
    text: str = frame.assign(
        **{name: [" ".join(str(each).split()) for each in frame[name]] for name in words}
    ).to_latex(
        index=False, escape=True, na_rep="-", float_format=f"%.{digits}g", caption=caption, label=label
    )
    head, rule, body = text.partition("\\toprule")
    # A row that begins with one of these would be an argument of the line break before it.
    body = re.sub(r"^(?=[\[*])", "{}", body, flags=re.MULTILINE)
    # What pandas leaves is another character in TeX's default encoding.
    return head + rule + body.translate(_LATEX)


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, float):
        return "-" if np.isnan(value) else f"{value:.{digits}g}"
    return _escaped(str(value))


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))
