import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from art_logits.records import Records
from art_logits.tables import to_latex, to_markdown

NAMES = [
    "cat",
    "a|b",
    "<script>alert(1)</script>",
    "snake_case",
    "_x_",
    "50 %",
    "line\nbreak",
    "$x^2$",
    "a&b",
]


def cells(text):
    """The cells of a Markdown table, read as GitHub's parser does: a bar counts unless it is escaped."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines()]
    return [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in row] for row in rows]


def test_markdown_by_hand():
    frame = pd.DataFrame({"class": ["cat", "dog"], "n": [12345, 0], "robust": [0.12345, np.nan]})
    assert to_markdown(frame) == (
        "| class | n | robust |\n| :-- | --: | --: |\n| cat | 12345 | 0.123 |\n| dog | 0 | - |\n"
    )
    assert "| 0.12345 |" in to_markdown(frame, digits=6)


def test_names_are_text():
    frame = pd.DataFrame({"class": NAMES, "*": range(len(NAMES))})
    heads, _, *rows = cells(to_markdown(frame))
    assert heads == ["class", "*"]
    assert [row[0] for row in rows] == [" ".join(name.split()) for name in NAMES]
    text = to_markdown(frame)
    assert "\\<script\\>" in text
    assert "| snake_case |" in text
    assert "| \\_x\\_ |" in text


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), min_size=1, max_size=5))
def test_any_name_stays_in_its_cell(names):
    rows = cells(to_markdown(pd.DataFrame({"class": names, "n": 1})))
    assert [len(row) for row in rows] == [2] * (len(names) + 2)


def test_latex_escapes_names():
    text = to_latex(pd.DataFrame({"class": NAMES[:6], "robust": 0.5}), caption="Classes", label="tab:classes")
    assert "snake\\_case & 0.5" in text
    assert "50 \\%" in text
    assert "\\caption{Classes}" in text
    assert "\\label{tab:classes}" in text
    assert "\\begin{table}" in text


def test_latex_takes_no_name_for_an_argument_or_another_character():
    names = ["[1ex]", "*", "<b>", "a|b", "two\n\nlines"]
    rows = to_latex(pd.DataFrame({"class": names, "n": 1}), caption="$p < 1$").splitlines()
    first = rows.index("\\midrule") + 1
    assert rows[first : first + 5] == [
        *("{}[1ex] & 1 \\\\", "{}* & 1 \\\\", "\\textless{}b\\textgreater{} & 1 \\\\"),
        *("a\\textbar{}b & 1 \\\\", "two lines & 1 \\\\"),
    ]
    assert "\\caption{$p < 1$}" in "".join(rows)


@pytest.mark.parametrize("name", ["classwise", "logits", "comparison"])
def test_every_report_has_every_format(random_table, make_manifest, tmp_path, name):
    records = Records(random_table(60, 3, reference=True), make_manifest(class_names=["cat", "dog", "a|b"]))
    report = {"classwise": records.classwise, "logits": records.logits}.get(name)
    if report is None:
        from art_logits.analysis import compare

        table = compare(records, records)
    else:
        table = report()
    frame = table.to_frame()
    heads, _, *rows = cells(table.to_markdown())
    assert heads == list(frame.columns)
    assert len(rows) == len(frame)
    assert table.to_latex(label="x").count(" \\\\") == len(frame) + 1
    table.to_csv(tmp_path / "table.csv")
    assert pd.read_csv(tmp_path / "table.csv").shape == frame.shape
