import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from art_logits.analysis import compare
from art_logits.comparison import (
    compare_all,
    comparison_frame,
    comparison_warnings,
    format_comparison,
    render_comparison,
    write_comparison,
)
from art_logits.figures import PALETTE
from art_logits.functional.ranks import rank_correlation
from art_logits.records import Records

# Intervals of 0 and 10 of 20, 0 and 0 of 4, 0 and 10 of 24 samples, by Bonett and Price: of cats
# 10 / 22 -+ 1.96 sqrt((12 / 22 - 100 / 484) / 22), and so on.
CATS, DOGS, ALL = (["+21.1", "to", "+69.8"], ["-46.2", "to", "+46.2"], ["+16.9", "to", "+60.0"])
EVIL = "<script>alert(1)</script>"


@pytest.fixture
def make_run(make_table, make_manifest):
    """A run over classes cat (20 samples) and dog (4), robust on the first so many of each."""

    def make(cats, dogs, **identity):
        labels = [0] * 20 + [1] * 4
        robust = [i < cats for i in range(20)] + [i < dogs for i in range(4)]
        attacked = np.eye(3)[[y if r else 2 for y, r in zip(labels, robust, strict=True)]]
        table = make_table(labels, np.eye(3)[labels], {"pgd": attacked})
        return Records(table, make_manifest(**{"class_names": ["cat", "dog", "frog"], **identity}))

    return make


@pytest.fixture
def runs(make_run):
    return {"base": make_run(10, 2), "better": make_run(20, 2), "worse": make_run(9, 0)}


def test_every_run_is_compared_with_the_first(runs):
    comparisons = compare_all(runs)
    assert list(comparisons) == ["better", "worse"]
    assert comparisons["better"].robust_a.tolist()[:2] == [0.5, 0.5]
    assert comparisons["better"].robust_b.tolist()[:2] == [1, 0.5]
    assert comparisons["worse"].robust_b.tolist()[:2] == [0.45, 0]


def test_frame_has_every_run_and_class_and_all_samples(runs):
    frame = comparison_frame(compare_all(runs))
    assert frame["run"].tolist() == ["better"] * 4 + ["worse"] * 4
    assert frame["class"].tolist() == ["cat", "dog", "frog", ""] * 2
    better = frame.set_index(["run", "class"]).loc["better"]
    assert better.loc["cat", "only_b"] == 10
    # Two tests: McNemar of 0 against 10, corrected by the factor 2; the absent class has none.
    assert better.loc["cat", "p_holm"] == pytest.approx(2 * 2 / 1024)
    assert np.isnan(better.loc["frog", "p_value"])
    assert better.loc["", "difference"] == pytest.approx(10 / 24)
    assert better.loc["", "support"] == 24
    assert better.loc["", ["difference_low", "difference_high"]].tolist() == pytest.approx(
        [0.169, 0.600], abs=5e-4
    )


def test_text_by_hand(runs):
    text = format_comparison(compare_all(runs), "base")
    lines = [line.split() for line in text.split("\n\n")[0].splitlines()]
    assert lines[0] == ["better", "against", "base"]
    assert lines[3] == ["cat", "20", "50.0%", "100.0%", "+50.0", *CATS, "0", "10", "0.0020", "0.0039"]
    assert lines[4] == ["dog", "4", "50.0%", "50.0%", "+0.0", *DOGS, "0", "0", "1.0000", "1.0000"]
    assert lines[5] == ["frog", "0", "-", "-", "-", "-", "0", "0", "-", "-"]
    assert lines[7] == ["overall", "24", "50.0%", "91.7%", "+41.7", *ALL, "0", "10", "0.0020"]
    assert "rank correlation of the classes: not defined" in text
    assert "worse against base" in text


def test_the_ranks_of_the_classes_are_compared(random_table):
    a, b = Records(random_table(200, 8)), Records(random_table(200, 8))
    comparison = compare(a, b)
    assert comparison.ranks == rank_correlation(comparison.robust_a, comparison.robust_b)
    assert "Spearman 1.00, 95 % 1.00 to 1.00; Kendall 1.00, 95 % 1.00 to 1.00" in format_comparison(
        {"b": comparison}, "a"
    )


def test_text_of_many_classes_shows_those_that_changed_most(make_table):
    labels = list(range(60)) * 2
    clean = np.eye(60)[labels]
    turned = clean.copy()
    turned[[57, 117]] = clean[[0, 0]]
    runs = {
        "a": Records(make_table(labels, clean, {"pgd": clean})),
        "b": Records(make_table(labels, clean, {"pgd": turned})),
    }
    lines = format_comparison(compare_all(runs), "a").splitlines()
    assert lines[3].split()[:5] == ["57", "2", "100.0%", "0.0%", "-100.0"]
    assert "(10 classes that changed less are not shown)" in lines


def test_page_says_what_changed_and_needs_nothing_from_outside(runs):
    page = render_comparison(runs)
    text = " ".join(re.sub("<[^>]*>", " ", page).split())
    assert "better is robust on 91.7% of 24 shared samples, base on 50.0%: +41.7 points" in text
    assert "+41.7 points (95 % interval +16.9 to +60.0, McNemar p 0.0020)" in text
    assert "Classes that changed after Holm's correction: 1." in text.replace("&#39;", "'")
    assert "Worst class: cat with 50.0% in the baseline, dog with 50.0% in this run." in text
    assert page.count('<tr class="marked">') == 1
    assert not re.search(r"https?:|@import|(src|href)=\"(?!#|data:)", page)
    assert page.count("<script") == 1
    assert page.count("<svg") == 2
    assert "base net pgd 24 100.0% 50.0%" in text  # the overview of three runs
    assert "net; attacks pgd; 24 samples; art-logits evaluate" in text


def test_what_holm_does_not_let_pass_is_not_called_a_change(make_run):
    runs = {"base": make_run(10, 2), "other": make_run(16, 2)}
    comparison = compare_all(runs)["other"]
    # Six cats more: 2 / 2^6 alone, twice as much beside the test of the dogs.
    assert (comparison.p_values[0], comparison.p_holm[0]) == pytest.approx((1 / 32, 1 / 16))
    page = render_comparison(runs)
    assert "Classes that changed after Holm&#39;s correction: 0." in page
    assert 'class="marked"' not in page
    hollow, filled = (
        compare_all({"base": runs["base"], "other": make_run(cats, 2)})["other"].plot_changes(
            Figure().subplots()
        )
        for cats in (16, 20)
    )
    assert hollow.collections[-1].get_facecolors()[0][3] == 0
    assert filled.collections[-1].get_facecolors()[0] == pytest.approx(to_rgba(PALETTE.robust))


def test_names_are_text_not_markup(make_run):
    names = {"class_names": [EVIL, "dog", "frog"], "model": {"name": EVIL}}
    page = render_comparison({EVIL: make_run(1, 1, **names), EVIL + "2": make_run(2, 2, **names)})
    assert EVIL not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 6


def test_runs_that_do_not_compare_as_they_stand_are_warned_of(make_run, make_table, make_manifest):
    attacks = {"pgd": {"norm": "Linf", "eps": 8 / 255}}
    runs = {"a": make_run(1, 1, attacks=attacks), "b": make_run(2, 2, attacks=attacks)}
    assert comparison_warnings(runs) == []
    assert "Read this first" not in render_comparison(runs)
    larger = {"pgd": {"norm": "Linf", "eps": 16 / 255}}
    runs["c"] = make_run(1, 1, attacks=larger)
    few = make_table([0, 0], np.eye(3)[[0, 0]], {"pgd": np.eye(3)[[0, 0]]})
    runs["d"] = Records(few, make_manifest(class_names=["cat", "dog", "frog"], attacks={}))
    found = comparison_warnings(runs)
    assert found == [
        "The runs have different threat models, so differences are not the models' alone "
        "(a: Linf, eps 8/255; b: Linf, eps 8/255; c: Linf, eps 16/255).",
        "The runs have different numbers of samples; only shared ones are compared "
        "(a: 24, b: 24, c: 24, d: 2).",
    ]
    text = " ".join(re.sub("<[^>]*>", " ", render_comparison(runs)).split()).replace("&#39;", "'")
    assert all(each in text for each in found)
    assert "b net pgd 24 100.0% 16.7% Linf, eps 8/255" in text


def test_a_run_without_a_manifest_is_compared_too(random_table):
    page = render_comparison({"a": Records(random_table()), "b": Records(random_table())})
    assert "unnamed model; attacks pgd, tpgd; 20 samples; made from Python" in page


def test_files(runs, tmp_path):
    out = tmp_path / "deep" / "folder"
    comparisons = write_comparison(runs, out)
    assert {path.name for path in out.iterdir()} == {"comparison.csv", "comparison.html"}
    frame = pd.read_csv(out / "comparison.csv", keep_default_na=True)
    assert frame["difference"].to_numpy() == pytest.approx(
        comparison_frame(comparisons)["difference"].to_numpy(dtype=float), nan_ok=True
    )
    assert (out / "comparison.html").read_text() == render_comparison(runs)
    comparisons["better"].to_csv(out / "one.csv")
    assert pd.read_csv(out / "one.csv")["class"].tolist() == ["cat", "dog", "frog"]


def test_refusals_name_the_runs_and_write_nothing(make_run, tmp_path):
    runs = {"one": make_run(1, 1), "two": make_run(1, 1, data={"name": "digits", "hash": "ee"})}
    with pytest.raises(
        ValueError, match=r"cannot compare one \(a\) with two \(b\): b: expected the data of a"
    ):
        write_comparison(runs, tmp_path / "out")
    with pytest.raises(ValueError, match="runs: expected at least two to compare, got 1"):
        write_comparison({"one": runs["one"]}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_page_of_many_classes_folds_them(make_table):
    labels = list(range(61)) * 2
    clean = np.eye(61)[labels]
    turned = clean.copy()
    turned[[57, 118]] = clean[[0, 0]]
    records = [Records(make_table(labels, clean, {"pgd": attacked})) for attacked in (clean, turned)]
    text = render_comparison(dict(zip("ab", records, strict=True)))
    assert "The 15 largest losses and the 5 largest gains of 61 classes; all of them below." in text
    assert "The 40 largest changes. Robust accuracy" in text
    assert "Classes: all 61 rows" in text
    # The excerpt begins with the largest loss, and then keeps the order of the classes.
    names = re.findall(r'<th scope="row">(\d+) ?', text[text.index("largest losses") :])
    assert names[:3] == ["57", "0", "1"]
