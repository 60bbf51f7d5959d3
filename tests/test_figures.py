import matplotlib
import numpy as np
import pyarrow as pa
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from art_logits import figures
from art_logits.analysis import compare
from art_logits.records import Records

CAT, DOG, FROG = np.eye(3)
# Three classes; two cats stand and one falls to each attack, of two dogs one falls to both, no frogs.
LABELS = [0, 0, 0, 0, 1, 1]
CLEAN = [CAT, CAT, CAT, CAT, DOG, DOG]
ATTACKED = {"pgd": [CAT, CAT, DOG, CAT, CAT, DOG], "tpgd": [CAT, CAT, CAT, FROG, CAT, DOG]}


@pytest.fixture
def records(make_table, make_manifest):
    table = make_table(LABELS, CLEAN, ATTACKED, reference=(CLEAN, ATTACKED))
    return Records(table, make_manifest(class_names=["cat", "$dog$", "frog"]))


@pytest.fixture
def ax():
    return Figure().subplots()


def labels(texts):
    return [text.get_text() for text in texts]


def of_colour(patches, colour):
    return [patch for patch in patches if patch.get_facecolor()[:3] == to_rgba(colour)[:3]]


def test_bars_are_the_accuracies(records, ax):
    report = records.classwise()
    assert report.plot_classes(ax) is ax
    clean = [bar.get_width() for bar in of_colour(ax.patches, figures.PALETTE.clean)]
    robust = [bar.get_width() for bar in of_colour(ax.patches, figures.PALETTE.robust)]
    assert clean[:2] == [100, 100]
    assert robust[:2] == [50, 50]
    assert np.isnan([clean[2], robust[2]]).all()
    assert labels(ax.get_yticklabels()) == ["cat", "$dog$", "frog"]
    whiskers = ax.collections[0].get_segments()[0]
    assert whiskers[:, 0] == pytest.approx([100 * report.robust_low[0], 100 * report.robust_high[0]])


def test_few_classes_keep_their_order_whatever_their_robustness(make_table, ax):
    attacked = np.eye(3)[[0, 0, 2]]  # the second class is the worst
    figures.plot_classes(Records(make_table([0, 1, 2], np.eye(3), {"a": attacked})).classwise(), ax)
    assert labels(ax.get_yticklabels()) == ["0", "1", "2"]


def test_of_many_classes_the_worst_are_drawn(random_table, ax):
    report = Records(random_table(300, 60)).classwise()
    figures.plot_classes(report, ax, limit=5)
    expected = [str(index) for index in np.argsort(report.robust, kind="stable")[:5]]
    assert labels(ax.get_yticklabels()) == expected


def test_cells_are_the_shares_of_who_is_taken_for_whom(records, ax):
    assert records.classwise().plot_transitions(ax) is ax
    cells = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in ax.texts}
    # Cats: two of four stand, one becomes a dog, one a frog. Dogs: one of two becomes a cat.
    assert cells == {(0, 0): "50", (0, 1): "25", (1, 0): "50", (1, 1): "50"}
    assert labels(ax.get_yticklabels()) == labels(ax.get_xticklabels()) == ["cat", "$dog$"]
    assert {patch.get_alpha() for patch in ax.patches} == {0.5**0.5, 0.5}


def test_of_many_classes_the_worst_are_drawn_with_those_that_they_are_taken_for(make_table, ax):
    # Class 9 is always taken for 2 or, most often, for 1; 8 sometimes for 7; 5 less often for 9; 3 is absent.
    labels_ = [k for k in range(10) if k != 3 for _ in range(5)]
    taken = dict(zip([5, 8, 9], [[9] + [5] * 4, [7, 7, 8, 8, 8], [2, 1, 1, 2, 1]], strict=True))
    attacked = [wrong for k in range(10) if k != 3 for wrong in taken.get(k, [k] * 5)]
    report = Records(make_table(labels_, np.eye(10)[labels_], {"a": np.eye(10)[attacked]})).classwise()
    for limit, expected in {1: {9}, 2: {9, 1}, 3: {9, 1, 8}, 4: {9, 1, 8, 7}, 5: {9, 1, 8, 7, 5}}.items():
        shown, groups = figures.matrix_classes(report, limit)
        assert set(shown) == expected
        assert shown == sorted(shown, key=lambda k: (groups[k], k))
    assert figures.matrix_classes(report, 6)[0].count(0) == 1  # then those that stand, from the first
    assert len(figures.matrix_classes(report, 9)[0]) == 9
    figures.plot_transitions(report, ax, limit=4)
    assert sorted(labels(ax.get_yticklabels())) == ["1", "7", "8", "9"]
    assert sorted(text.get_text() for text in ax.texts) == ["100", "100", "40", "60", "60"]


@pytest.mark.parametrize("quantity", figures.QUANTITY_LABELS)
def test_histograms_hold_all_samples(random_table, ax, quantity):
    report = Records(random_table(60, 3, reference=True)).logits()
    assert report.plot_histograms(quantity, ax, bins=7) is ax
    named = [patch for patch in ax.patches if patch.get_label()]
    assert [patch.get_label() for patch in named] == [
        *("model, clean", "model, adversarial"),
        *("reference, clean", "reference, adversarial"),
    ]
    for patch in named:
        assert patch.get_data().values.sum() == pytest.approx(100)
        assert len(patch.get_data().values) == 7
    assert ax.get_xlabel() == figures.QUANTITY_LABELS[quantity]


def test_histograms_of_an_unknown_quantity_are_refused(records):
    with pytest.raises(ValueError, match="quantity must be one of"):
        records.logits().plot_histograms("loss")


def test_points_are_the_confidences(random_table, ax):
    records = Records(random_table(60, 3, reference=True))
    report = records.logits()
    assert report.plot_confidence("adversarial", ax) is ax
    stands, falls = (scatter.get_offsets() for scatter in ax.collections)
    assert len(stands) == records.robust().sum()
    robust = records.robust()
    samples = {name: 100 * report.samples[name]["adversarial"]["confidence"] for name in report.samples}
    both = np.stack([samples["reference"], samples["model"]], axis=1)
    np.testing.assert_allclose(stands, both[robust])
    np.testing.assert_allclose(falls, both[~robust])


def test_of_many_samples_some_are_drawn(random_table, ax):
    report = Records(random_table(60, 3, reference=True)).logits()
    figures.plot_confidence(report, ax=ax, limit=10)
    assert sum(len(scatter.get_offsets()) for scatter in ax.collections) == 10


def test_scatter_needs_a_reference_and_samples(make_table, random_table):
    alone = Records(random_table()).logits()
    with pytest.raises(ValueError, match="report: expected one with a reference"):
        alone.plot_confidence()
    clean = Records(make_table(LABELS, CLEAN, {}, reference=(CLEAN, {}))).logits()
    with pytest.raises(
        ValueError, match=r"condition: expected one with samples \(clean\), got 'adversarial'"
    ):
        clean.plot_confidence("adversarial")


def test_strength_falls_from_the_clean_to_the_robust_accuracy(records, ax):
    report = records.classwise()
    assert report.plot_strength(ax) is ax
    first, second, everything = ax.lines
    # 21 forward passes per sample and attack; both attacks leave four of six.
    assert first.get_xdata().tolist() == [0, 21, 21, 21]
    assert first.get_ydata() == pytest.approx([100, 400 / 6, 400 / 6, 400 / 6])
    assert [first.get_label(), second.get_label()] == ["pgd", "tpgd"]
    # The same in the figure of the reference, whatever is the stronger one there.
    again = report.reference.plot_strength(Figure().subplots()).lines
    for line, other, colour in zip((first, second), again, figures.PALETTE, strict=False):
        assert (line.get_label(), line.get_color()) == (other.get_label(), colour)
        assert other.get_color() == colour
    assert everything.get_ydata() == pytest.approx([50, 50])


def test_passes_of_unequal_attacks_have_a_logarithmic_scale(make_table, ax):
    table = make_table(LABELS, CLEAN, ATTACKED)
    assert Records(table).classwise().plot_strength(ax).get_xscale() == "linear"
    assert ax.get_xlim()[0] == ax.get_ylim()[0] == 0
    index = table.column_names.index("tpgd.forwards")
    many = table.set_column(index, table.schema.field(index), pa.array([105] * 6, pa.int32()))
    other = Records(many).classwise().plot_strength(Figure().subplots())
    assert other.get_xscale() == "log"
    other.figure.canvas.draw()
    # Numbers as they are read, not formulas.
    assert {"1", "10"} <= {label.get_text() for label in other.get_xticklabels()}
    assert (other.get_xlim()[0], other.get_ylim()[0]) == (1, 0)
    plain = Records(many).classwise().plot_strength(Figure().subplots(), logarithmic=False)
    assert (plain.get_xscale(), plain.get_xlim()[0]) == ("linear", 0)


def test_a_figure_without_attacks_is_empty(make_table, ax):
    report = Records(make_table(LABELS, CLEAN, {})).classwise()
    assert len(report.plot_strength(ax).lines) == 1


@pytest.mark.parametrize("usetex", [False, True])
def test_names_are_no_formulas_in_axes_of_a_user(records, ax, usetex):
    with matplotlib.rc_context({"text.parse_math": True, "text.usetex": usetex}):
        records.classwise().plot_classes(ax)
    name = ax.get_yticklabels()[1]
    assert (name.get_parse_math(), name.get_usetex()) == (False, False)


def test_a_figure_of_its_own_where_there_are_no_axes(records):
    before = pyplot.get_fignums()
    ax = records.classwise().plot_classes()
    assert ax.figure.number not in before
    pyplot.close(ax.figure)


# ---- files -----------------------------------------------------------------------------------------------

OURS = ["classes", "transitions", "strength"]
HISTOGRAMS = [f"histogram-{quantity}" for quantity in figures.QUANTITY_LABELS]
BOTH = ["confidence-clean", "confidence-adversarial", *(f"reference-{name}" for name in OURS)]


def files(names):
    return {f"{name}{suffix}" for name in names for suffix in (".png", ".svg")}


def test_figures_are_written_the_same_every_time(records, tmp_path):
    written = figures.write_figures(records, tmp_path / "new" / "figures")
    assert {path.name for path in written} == files([*OURS, *HISTOGRAMS, *BOTH])
    first = {path.name: path.read_bytes() for path in written}
    again = figures.write_figures(records, tmp_path / "again")
    assert {path.name: path.read_bytes() for path in again} == first
    for name, content in first.items():
        if name.endswith(".svg"):
            assert b"<text" not in content  # text is drawn as paths
            assert b"<dc:date>" not in content
        else:
            assert content.startswith(b"\x89PNG")


def test_a_run_without_attacks_and_reference_has_fewer_figures(make_table, tmp_path):
    figures.write_figures(Records(make_table(LABELS, CLEAN, {})), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == files(["classes", "transitions", *HISTOGRAMS])


def test_keys_take_no_name_for_a_formula(make_table, tmp_path):
    table = make_table(LABELS, CLEAN, {"$\\frac{1}": ATTACKED["pgd"]})
    figures.write_figures(Records(table), tmp_path)
    assert (tmp_path / "strength.svg").exists()


def test_style_leaves_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    with figures.style("red", svg_hashsalt="x"):
        assert matplotlib.rcParams["text.color"] == "red"
        assert matplotlib.rcParams["svg.hashsalt"] == "x"
    assert dict(matplotlib.rcParams) == before


def test_changes_are_drawn_from_one_run_to_the_other(make_table, ax):
    classes = [0] * 12 + [1] * 2
    first, second = np.eye(2)[[0] * 12 + [1, 0]], np.eye(2)[[1] * 9 + [0] * 3 + [1, 1]]
    runs = [Records(make_table(classes, np.eye(2)[classes], {"pgd": each})) for each in (first, second)]
    assert figures.plot_changes(compare(*runs), ax, shown=[1, 0]) is ax
    assert labels(ax.get_yticklabels()) == ["1", "0"]
    lines, before, after = ax.collections
    assert before.get_offsets().tolist() == [[50, 0], [100, 1]]
    assert after.get_offsets().tolist() == [[100, 0], [25, 1]]
    assert [segment.tolist() for segment in lines.get_segments()] == [
        [[50, 0], [100, 0]],
        [[100, 1], [25, 1]],
    ]
    # Nine of twelve are more than chance, one of two is not.
    assert after.get_facecolors()[-1] == pytest.approx(to_rgba(figures.PALETTE.robust))
    assert after.get_facecolors()[0][3] == 0
    figures.plot_changes(compare(*runs), Figure().subplots())
