import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pandas as pd
import pytest

from art_logits._class_sections import attack_section, class_table, diagnostics_table, transition_section
from art_logits._logit_sections import fall_section, logit_section, picture_section
from art_logits._page import Row, Table
from art_logits._provenance import threat
from art_logits._text import middle, width
from art_logits.logit_analysis import fall_intervals, fall_predictors
from art_logits.records import Records
from art_logits.report import format_class_table, render, write_outputs

EVIL = "<script>alert(1)</script>"
VOID = {"meta", "path", "rect", "use", "br", "img"}


class Page(HTMLParser):
    """Collects the tags and texts of a page, and checks that every tag is closed."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join("".join(self.texts).split())


@pytest.fixture(scope="module")
def records(random_table, make_manifest, thumbnails):
    table = random_table(60, 3, reference=True)
    reference = {"name": "digits-standard", "hash": "bb"}
    manifest = make_manifest(class_names=["cat", "dog", "frog"], reference=reference)
    manifest["passes"] = {"model": {"forwards": 7, "backwards": 5}}
    return Records(table, manifest, thumbnails(["above_reference", "confident_falls"], [3, 5, 700]))


@pytest.fixture(scope="module")
def rendered(records):
    """The page of the records: rendered once, because drawing takes its time."""
    return render(records)


def many_classes(random_table, num_classes):
    return Records(random_table(5 * num_classes, num_classes))


# ---- page ------------------------------------------------------------------------------------------------


def test_page_states_the_result(records, rendered):
    page = Page(rendered)
    classes = records.classwise()
    worst = classes.worst_class
    assert f"net is right on {100 * classes.clean_accuracy:.1f}% of 60 samples of digits" in page.text
    assert f"on {100 * classes.robust_accuracy:.1f}% (95 % interval" in page.text
    assert f"The worst class is {worst.name} with {100 * worst.robust_accuracy:.1f}%" in page.text
    assert f"The reference digits-standard: {100 * classes.reference.clean_accuracy:.1f}% clean" in page.text
    assert "art-logits evaluate" in page.text
    assert "steps 20, eps 0.1" in page.text
    assert "torch 2.0" in page.text
    assert "forwards 7, backwards 5" in page.text
    assert [tag for tag, attributes in page.tags if attributes.get("class") == "marked"] == ["tr"]


def test_page_says_how_uneven_the_classes_are(make_table):
    clean = np.eye(3)[[0, 0, 1, 1]]
    attacked = np.eye(3)[[0, 1, 1, 1]]
    page = Page(render(Records(make_table([0, 0, 1, 1], clean, {"pgd": attacked}))))
    # Robust 0.5 and 1: mean 0.75, deviation 0.25; Gini 0.5 * 2 / (2 * 4 * 0.75).
    assert "Worst class 50.0% (95 % interval 1.3-" in page.text
    assert "worst 10 % of the classes 50.0%, worst 20 % 50.0%" in page.text
    assert "divided by their mean 0.33, Gini 0.17." in page.text
    drawing = next(a for tag, a in page.tags if tag == "svg" and "Heat map" in a["aria-label"])
    assert "Heat map of 2 classes" in drawing["aria-label"]
    # The row of class 0 is half right, half taken for class 1; class 1 is always right.
    cells = [text.strip() for text in page.texts]
    assert cells.count("50") >= 2


def test_page_needs_nothing_from_outside(rendered):
    page = Page(rendered)
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "base", "form"}
    addresses = [
        value
        for _, attributes in page.tags
        for key, value in attributes.items()
        if "href" in key or key == "src"
    ]
    assert any(value.startswith("data:image/png;base64,") for value in addresses)
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in addresses)
    assert not re.search(r"https?:|@import|url\((?!#)", rendered)


def test_page_runs_its_own_script_only(rendered):
    policy = next(a["content"] for tag, a in Page(rendered).tags if a.get("http-equiv"))
    script = re.findall(r"<script>(.*?)</script>", rendered, flags=re.DOTALL)
    assert len(script) == rendered.count("<script") == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert not [key for _, attributes in Page(rendered).tags for key in attributes if key.startswith("on")]


def test_every_section_is_there_and_linked(rendered):
    page = Page(rendered)
    sections = [a["id"] for tag, a in page.tags if tag == "section" and "id" in a]
    links = [a["href"].removeprefix("#") for tag, a in page.tags if tag == "a" and "href" in a]
    assert sections == [
        *("classes", "transitions", "attacks", "logits", "confidence"),
        *("falls", "pictures", "diagnostics", "made"),
    ]
    assert links == sections


def test_pictures_show_what_the_models_say(records, rendered):
    page = Page(rendered)
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    # Two samples of two kinds, three pictures each; sample 700 is none of the records.
    assert len(pictures) == 2 * 2 * 3
    row, names = 3, records.class_names
    clean, attacked = (names[records.column(c)[row]] for c in ("clean_prediction", "pgd.prediction"))
    logits = records.column("clean_logits")[row].astype(float)
    sure = np.exp(logits).max() / np.exp(logits).sum()
    label = names[records.column("label")[row]]
    alts = [picture["alt"] for picture in pictures]
    assert f"{label}: taken for {clean} {100 * sure:.1f}%" in alts
    assert any(alt.startswith(f"{label} under pgd: taken for {attacked} ") for alt in alts)
    assert "More confident than the reference: the largest differences" in page.text
    assert "sample 3, largest change 0.1" in page.text
    assert "sample 700" not in page.text


def test_pictures_come_with_the_best_first(records, thumbnails):
    shown = Records(records.table, records.manifest, thumbnails(["unsure_falls"], [1, 2, 0], [0.1, 0.3, 0.2]))
    samples = picture_section(shown, shown.logits())[0]["samples"]
    assert [sample["note"].split(",")[0] for sample in samples] == ["sample 2", "sample 0", "sample 1"]


def test_what_stronger_attacks_gain_by_hand(make_table, make_manifest):
    labels = [0, 0, 1, 1]
    clean, weak, strong = (np.eye(2)[rows] for rows in (labels, [0, 0, 1, 0], [0, 1, 0, 0]))
    records = Records(make_table(labels, clean, {"weak": weak, "strong": strong}), make_manifest())
    section = attack_section(records, records.classwise())
    assert [row[:2] for row in section["gains"].rows] == [("strong", ["weak", "+50.0", "-", "-", "-", "-"])]
    assert [[row.name, *row.cells] for row in section["gains_by_class"].rows] == [
        ["0", "100.0%", "+50.0"],
        ["1", "50.0%", "+50.0"],
    ]
    assert [row.name for row in section["consistency"].rows] == ["weak and strong"]


def test_differences_by_class_by_hand(make_table, make_manifest):
    # Max logits 5 and 3 against 1 and 1 in the first class, none in the second, 4 against 1 in the third.
    clean, reference = [[5, 0, 0], [3, 0, 0], [0, 0, 4]], [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    table = make_table([0, 0, 2], clean, {}, reference=(reference, {}))
    records = Records(table, make_manifest(class_names=["cat", "dog", "cat"], reference={"name": "other"}))
    section = logit_section(records, records.logits())
    differences = section["differences_by_class"]
    column = differences.heads.index("max logit, clean")
    assert [(row.name, row.cells[column - 1]) for row in differences.rows] == [
        ("cat", "+3.00 (2.00 to 4.00)"),
        ("dog", "-"),
        ("cat", "+3.00 (-)"),
    ]
    means = section["by_class"]
    column = means.heads.index("max logit, clean")
    assert [(row.name, row.cells[column - 1]) for row in means.rows] == [
        ("cat", "4.00"),
        ("dog", "-"),
        ("cat", "4.00"),
    ]


def test_the_headline_says_under_what(random_table, make_manifest, make_table):
    attacks = {
        "pgd": {"norm": "Linf", "eps": 8 / 255},
        "tpgd": {"callable": "cascade", "stages": [{"norm": "Linf", "eps": 8 / 255}] * 2},
    }
    text = Page(render(Records(random_table(), make_manifest(attacks=attacks)))).text
    assert ") also under pgd and tpgd (Linf, eps 8/255)." in text
    attacks["tpgd"] = {"norm": "L2", "eps": 0.5}
    text = Page(render(Records(random_table(), make_manifest(attacks=attacks)))).text
    assert "also under pgd and tpgd (Linf, eps 8/255; L2, eps 0.5)." in text
    logits = np.eye(2)
    text = Page(render(Records(make_table([0, 1], logits, dict.fromkeys("abcd", logits))))).text
    assert "(95 % interval 34.2-100.0%) also under all of 4 attacks." in text
    text = Page(render(Records(make_table([0, 1], logits, {})))).text
    assert "is right on 100.0% of 2 samples of data (95 % interval 34.2-100.0%); no attack ran." in text


@pytest.mark.parametrize("config", ["only a repr", {"norm": "Linf"}, {"norm": "Linf", "eps": [0.1, 0.2]}])
def test_a_threat_that_is_not_known_is_not_stated(random_table, make_manifest, config):
    records = Records(random_table(), make_manifest(attacks={"pgd": config, "tpgd": config}))
    assert threat(records) == ""
    assert ") also under pgd and tpgd. " in Page(render(records)).text


def test_attacks_by_hand(make_table):
    # Three of four are right; a turns one of them, b two. The reference has all right, and loses one to a.
    labels = [0, 0, 1, 1]
    clean, first, second = (np.eye(2)[rows] for rows in ([0, 0, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0]))
    reference = (np.eye(2)[labels], {"a": np.eye(2)[[0, 0, 1, 0]], "b": np.eye(2)[labels]})
    records = Records(make_table(labels, clean, {"a": first, "b": second}, reference=reference))
    table = attack_section(records, records.classwise())["table"]
    assert table.heads[1:] == [
        *("on", "robust", "95 % interval", "success rate", "forward passes", "backward passes")
    ]
    # Wilson's intervals of 2, 1, 3 and 4 of 4.
    assert [[row.name, *row.cells] for row in table.rows] == [
        ["a", "model", "50.0%", "15.0-85.0%", "33.3%", "21.0", "20.0"],
        ["b", "model", "25.0%", "4.6-69.9%", "66.7%", "21.0", "20.0"],
        ["a", "reference", "75.0%", "30.1-95.4%", "25.0%", "21.0", "20.0"],
        ["b", "reference", "100.0%", "51.0-100.0%", "0.0%", "21.0", "20.0"],
    ]


def test_the_class_table_by_hand(make_table, make_manifest):
    # Cats: two right, of which one falls; dogs: one of two right, and it falls; no frogs.
    clean, attacked = np.eye(3)[[0, 0, 1, 0]], np.eye(3)[[0, 1, 0, 1]]
    records = Records(
        make_table([0, 0, 1, 1], clean, {"pgd": attacked}), make_manifest(class_names=["cat", "dog", "frog"])
    )
    table = class_table(records.classwise())
    assert table.heads == [
        *("class", "samples", "clean", "pgd", "all attacks", "95 % interval", "success rate")
    ]
    assert [[*row] for row in table.rows] == [
        ["cat", ["2", "100.0%", "50.0%", "50.0%", "9.5-90.5%", "50.0%"], ""],
        ["dog", ["2", "50.0%", "0.0%", "0.0%", "0.0-65.8%", "100.0%"], "worst"],
        ["frog", ["0", "-", "-", "-", "-", "-"], ""],
    ]
    assert table.total.cells == ["4", "75.0%", "25.0%", "25.0%", "4.6-69.9%", "66.7%"]


def test_columns_of_words_are_read_from_the_left(rendered):
    rows = [("a", ["pgd", "1.0%", "-", "-0.5 to 1"]), ("b", ["7", "<0.1", "", "+2"])]
    table = Table("x", ["x", *"abcd"], [Row(*row) for row in rows])
    assert table.words == {0}
    # Of the attacks the model's name, and no number.
    section = rendered[rendered.index('id="attacks"') :]
    assert '<th scope="row">pgd</th><td class="word">model</td><td>' in section
    assert '<th scope="col">attack</th><th scope="col" class="word">on</th><th scope="col">robust' in section


def test_what_predicts_a_fall_comes_with_intervals(records):
    section = fall_section(records, records.logits())
    assert section["overall"].heads[1:] == [
        *("model", "95 % interval of the model", "reference", "95 % interval of the reference")
    ]
    for row, own, other in zip(
        section["overall"].rows,
        fall_intervals(records).itertuples(),
        fall_intervals(records, "reference").itertuples(),
        strict=True,
    ):
        assert row.cells == [
            cell
            for each in (own, other)
            for cell in (f"{each.auroc:.3f}", f"{each.low:.3f} to {each.high:.3f}")
        ]
    overall = fall_predictors(records).iloc[0]
    assert section["counts"][0] == f"The model: {overall['falls']} of {overall['n']} samples fall."


def test_names_in_other_scripts_are_drawn_without_a_warning(make_table, make_manifest, recwarn):
    records = Records(
        make_table([0, 1], np.eye(2), {"pgd": np.eye(2)}), make_manifest(class_names=["猫", "犬"])
    )
    assert "猫" in render(records)
    assert not [each for each in recwarn if "Glyph" in str(each.message)]


def test_diagnostics_by_hand(make_table):
    labels = [0, 0, 1, 1]
    clean, first, second = (np.eye(2)[rows] for rows in ([0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]))
    records = make_table(labels, clean, {"a": first, "b": second})
    names = records.column_names
    # Of the three successes of a (the first, third and last sample) one is gone; older records do not know.
    records = records.drop_columns([name for name in names if name.endswith("success_8bit")])
    lost = "1"
    records = records.append_column("a.success_8bit", [[False, False, True, True]])
    table = diagnostics_table(Records(records))
    # Only a turns the first sample; both turn the third; b turns the last one back.
    assert [[row.name, *row.cells] for row in table.rows] == [
        ["a", "model", "0", "0.1", lost, "1", "0"],
        ["b", "model", "0", "0.1", "-", "0", "1"],
    ]


def test_the_most_frequent_errors_by_hand(make_table):
    labels = [0, 0, 0, 1, 2]
    attacked = np.eye(3)[[0, 1, 1, 2, 2]]
    section = transition_section(Records(make_table(labels, np.eye(3)[labels], {"a": attacked})).classwise())
    assert [[row.name, *row.cells] for row in section["errors"].rows] == [
        ["0", "1", "2", "66.7%"],
        ["1", "2", "1", "100.0%"],
    ]


def test_drawings_are_described_and_follow_the_theme(rendered):
    text = rendered
    drawings = [attributes for tag, attributes in Page(text).tags if tag == "svg"]
    assert len(drawings) == 11
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)
    assert "the worst is" in drawings[0]["aria-label"]
    assert "Heat map of 3 classes, by label and adversarial prediction" in drawings[1]["aria-label"]
    described = " ".join(drawing["aria-label"] for drawing in drawings)
    assert "Curves of the reference's robust accuracy" in described
    assert "Histogram of the max logit: median" in described
    assert "Scatter of the adversarial confidences" in described
    assert "prefers-color-scheme: dark" in text
    assert "currentColor" in text
    assert "#01020" not in text


def test_ids_are_unique_and_the_page_is_the_same_every_time(records, rendered):
    text = rendered
    ids = [attributes["id"] for _, attributes in Page(text).tags if "id" in attributes]
    assert ids
    assert len(ids) == len(set(ids))
    assert render(records) == text


def test_drawing_leaves_matplotlib_as_it_was(records):
    before = dict(matplotlib.rcParams)
    render(records)
    assert dict(matplotlib.rcParams) == before


def test_names_are_text_not_markup(random_table, make_manifest):
    manifest = make_manifest(
        class_names=[EVIL, "$\\frac{1}", 'a"onload="b'],
        model={"name": EVIL, "hash": EVIL},
        data={"name": EVIL},
        attacks={EVIL: {"loss": EVIL}, "plain": "an attack that only has a repr"},
    )
    text = render(Records(random_table(), {**manifest, "command": EVIL}))
    page = Page(text)
    assert EVIL not in text
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [attributes for _, attributes in page.tags if "onload" in attributes]
    assert EVIL in page.text
    assert "an attack that only has a repr" in page.text
    assert "$\\frac{1}" in page.text


def test_names_of_attacks_are_text_not_markup(make_table):
    clean = np.eye(2)
    page = Page(render(Records(make_table([0, 1], clean, {"<b>bold": clean}))))
    assert "b" not in {tag for tag, _ in page.tags}
    assert "<b>bold" in page.text


def test_page_without_reference_attack_or_manifest(make_table):
    page = Page(render(Records(make_table([0, 1, 1], np.eye(3)[[0, 1, 0]], {}))))
    assert "No attack ran: robust accuracy equals clean accuracy." in page.text
    assert "Without samples, hence without values: 2." in page.text
    assert "Fewer than 10 samples, hence wide intervals: 0, 1." in page.text
    assert "The reference" not in page.text


def test_a_run_without_trouble_has_no_warnings(make_table):
    labels = [0, 1] * 10
    clean = 2 * np.eye(2)[labels]
    assert "Read this first" not in render(Records(make_table(labels, clean, {"pgd": clean})))


def test_page_of_an_incomplete_run_with_vanishing_gradients_says_so(random_table, make_manifest):
    table = random_table(20)
    index = table.column_names.index("pgd.zero_gradients")
    values = table.column(index).to_numpy().copy()
    values[:3] = 1
    table = table.set_column(index, table.schema.field(index), [values])
    text = Page(render(Records(table, {**make_manifest(), "complete": False}))).text
    assert "The run is not complete" in text
    assert "pgd met gradients that were zero or not finite on 3 of 20 samples that" in text
    assert "tpgd met" not in text


def test_page_of_many_classes_draws_the_worst_and_folds_the_rest(random_table):
    records = many_classes(random_table, 61)
    page = Page(render(records))
    assert "The 40 worst classes." in page.text
    assert "The worst classes, each with the one that it is most often taken for. Rows: label." in page.text
    assert "The 15 worst and the 5 best of 61 classes; all of them below." in page.text
    # The heat map of 20 classes, and nothing else, is scrolled where the page is narrow.
    wide = [each for tag, each in page.tags if tag == "svg" and "min-width" in each["style"]]
    assert [each["aria-label"].split(",")[0] for each in wide] == ["Heat map of 20 classes"]
    assert "Classes: all 61 rows" in page.text
    assert "AUROC by class: all 61 rows" in page.text
    assert "Gains by class, in points: all 61 rows" in page.text


def test_of_many_classes_those_that_attacks_gain_most_on_come_first(random_table):
    records = many_classes(random_table, 61)
    table = attack_section(records, records.classwise())["gains_by_class"]
    gains = [float(row.cells[1]) for row in table.rows if row.cells[1] != "-"]
    assert float(table.excerpt[0].cells[1]) == max(gains)
    assert float(table.excerpt[-1].cells[1]) == min(gains)
    assert max(gains) > min(gains)


def test_consistency_of_model_and_reference_by_hand(make_table):
    # Robust 1, 1/2, 0 of the model, and 0, 1/2, 1 of the reference: the orders are opposite.
    labels = [0, 0, 1, 1, 2, 2]
    clean, model, other = (np.eye(3)[rows] for rows in (labels, [0, 0, 1, 0, 0, 0], [1, 1, 1, 0, 2, 2]))
    records = Records(make_table(labels, clean, {"a": model}, reference=(clean, {"a": other})))
    row = attack_section(records, records.classwise())["consistency"].rows[-1]
    assert [row.name, *row.cells] == ["model and reference", "-1.00", "-", "-1.00", "-"]


def test_constant_quantities_can_be_drawn(make_table):
    clean = np.eye(2)[[0, 1]]
    assert "<svg" in render(Records(make_table([0, 1], clean, {"pgd": clean})))


# ---- files -----------------------------------------------------------------------------------------------


def test_outputs_are_written_and_agree(records, rendered, tmp_path):
    classes = write_outputs(records, tmp_path)
    assert classes.to_frame().equals(records.classwise().to_frame())
    assert format_class_table(records, classes=classes) == format_class_table(records)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("summary.json", "classwise.csv", "logits.csv", "report.html"),
    }
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    frame = pd.read_csv(tmp_path / "classwise.csv")
    assert summary["robust_accuracy"] == pytest.approx(records.robust().mean())
    assert summary["worst_class"]["robust_accuracy"] == pytest.approx(frame["robust_accuracy"].min())
    logits = pd.read_csv(tmp_path / "logits.csv").set_index(["model", "condition", "quantity"])
    margin = summary["logits"]["reference"]["adversarial"]["margin"]["q05"]
    assert logits.loc[("reference", "adversarial", "margin"), "q05"] == pytest.approx(margin)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == rendered


def test_outputs_replace_older_ones(records, tmp_path):
    (tmp_path / "summary.json").write_text("old")
    write_outputs(records, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["n"] == 60


def test_outputs_need_a_folder(records, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"out: expected an existing folder, got .*missing; create it"
    ):
        write_outputs(records, tmp_path / "missing")


# ---- terminal --------------------------------------------------------------------------------------------


def test_class_table_by_hand(make_table, make_manifest):
    a, b = [1, 0, 0], [0, 1, 0]
    table = make_table([0, 0, 1, 1], [a, a, b, a], {"pgd": [a, b, a, b]})
    lines = format_class_table(Records(table, make_manifest(class_names=["cat", "dog", "frog"]))).splitlines()
    assert [line.split() for line in lines if "---" not in line] == [
        ["class", "n", "clean", "pgd", "all", "attacks", "95", "%"],
        ["cat", "2", "100.0%", "50.0%", "50.0%", "9.5-90.5%"],
        ["dog", "2", "50.0%", "0.0%", "0.0%", "0.0-65.8%", "worst"],
        ["frog", "0", "-", "-", "-", "-"],
        ["overall", "4", "75.0%", "25.0%", "25.0%", "4.6-69.9%"],
    ]
    assert len({len(line.removesuffix("  worst")) for line in lines}) == 1


def test_class_table_fits_a_terminal(make_table, make_manifest):
    labels = list(range(10)) * 3
    logits = np.eye(10)[labels]
    names = [f"a very long name of the class number {index}" for index in range(10)]
    attacks = {"temperature-pgd:steps=50,restarts=2": logits, "temperature-pgd:steps=50,restarts=3": logits}
    text = format_class_table(Records(make_table(labels, logits, attacks), make_manifest(class_names=names)))
    assert max(map(len, text.splitlines())) <= 100
    # What tells long names apart is kept.
    assert "tempera…tarts=2" in text
    assert "tempera…tarts=3" in text
    assert "a very …mber 7" in text


def test_class_table_aligns_wide_characters_and_strips_control_characters(make_table, make_manifest):
    logits = np.eye(3)
    names = ["猫", "\x1b[31mred", "cafe\u0301"]
    text = format_class_table(
        Records(make_table([0, 1, 2], logits, {"pgd": logits}), make_manifest(class_names=names))
    )
    assert "\x1b" not in text
    assert "?[31mred" in text
    widths = {width(line.removesuffix("  worst")) for line in text.splitlines()}
    assert len(widths) == 1


def test_class_table_of_many_classes_shows_the_worst(random_table):
    records = many_classes(random_table, 60)
    lines = format_class_table(records).splitlines()
    assert "(10 more robust classes are not shown)" in lines
    assert lines[2].endswith("worst")
    assert lines[2].split()[0] == records.classwise().worst_class.name
    assert lines[-1].startswith("overall")


@pytest.mark.parametrize("limit", [5, 6, 11])
@pytest.mark.parametrize("text", ["short", "a rather long name", "長い名前です長い", "ab" * 20])
def test_middle_keeps_both_ends_within_the_limit(text, limit):
    short = middle(text, limit)
    assert width(short) <= limit
    if short != text:
        head, tail = short.split("…")
        assert text.startswith(head)
        assert text.endswith(tail)
        assert tail
