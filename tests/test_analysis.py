import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from art_logits import analysis
from art_logits import records as stored
from art_logits.analysis import (
    ClasswiseReport,
    Comparison,
    LogitReport,
    Statistics,
    adversarial_predictions,
    classwise_report,
    compare,
    logit_report,
    strongest_attack,
    summarize,
)
from art_logits.functional import classwise
from art_logits.records import Records

A, B, C = np.eye(3).tolist()
# Six samples, three classes; class 2 ("frog") is absent.
LABELS = [0, 0, 0, 0, 1, 1]
CLEAN = [A, A, A, B, B, B]
ATTACKED = {"pgd": [A, B, A, A, A, B], "tpgd": [A, A, C, B, A, A]}
REFERENCE = ([A, A, A, A, B, A], {"pgd": [A, A, A, A, B, B], "tpgd": [A, A, A, C, B, B]})


@pytest.fixture
def records(make_table, make_manifest):
    table = make_table(LABELS, CLEAN, ATTACKED, reference=REFERENCE)
    return Records(table, make_manifest(class_names=["cat", "dog", "frog"]))


def approx(values):
    return pytest.approx(values, nan_ok=True)


# ---- classes ---------------------------------------------------------------------------------------------


def test_classwise_report_by_hand(records):
    report = classwise_report(records)
    nan = math.nan
    assert report.support.tolist() == [4, 2, 0]
    assert report.clean == approx([0.75, 1, nan])
    assert report.attacks["pgd"] == approx([0.5, 0.5, nan])
    assert report.attacks["tpgd"] == approx([0.5, 0, nan])
    assert report.robust == approx([0.25, 0, nan])
    # Of the three cats that are right, each attack turns one; of the two dogs, one and both.
    assert report.success_rates["pgd"] == approx([1 / 3, 0.5, nan])
    assert report.success_rates["tpgd"] == approx([1 / 3, 1, nan])
    assert report.clean_accuracy == approx(5 / 6)
    assert report.robust_accuracy == approx(1 / 6)
    assert report.attack_accuracies == approx({"pgd": 0.5, "tpgd": 1 / 3})
    assert report.worst_class == ("dog", 0.0)
    assert report.disparity == 0.25


def test_every_column_of_the_frame_by_hand(records):
    nan = math.nan
    # Wilson's ends of k of n solve (k / n - p)^2 = z^2 p (1 - p) / n: of 0 the upper one is z^2 / (n + z^2).
    z2 = stats.norm.ppf(0.975) ** 2
    quarter, three = [
        (k / 4 + z2 / 8 + np.array([-1, 1]) * math.sqrt(z2 * (k / 4 * (1 - k / 4) + z2 / 16) / 4))
        / (1 + z2 / 4)
        for k in (1, 3)
    ]
    half = (0.5 + z2 / 4 + np.array([-1, 1]) * math.sqrt(z2 * (0.25 + z2 / 8) / 2)) / (1 + z2 / 2)
    expected = {
        "support": [4, 2, 0],
        "clean_accuracy": [0.75, 1, nan],
        "pgd.robust_accuracy": [0.5, 0.5, nan],
        "pgd.success_rate": [1 / 3, 0.5, nan],
        "tpgd.robust_accuracy": [0.5, 0, nan],
        "tpgd.success_rate": [1 / 3, 1, nan],
        "robust_accuracy": [0.25, 0, nan],
        "robust_low": [quarter[0], 0, nan],
        "robust_high": [quarter[1], z2 / (2 + z2), nan],
        # Of the reference's four cats tpgd turns one; of its dogs one is wrong, and one stands.
        "reference.clean_accuracy": [1, 0.5, nan],
        "reference.pgd.robust_accuracy": [1, 0.5, nan],
        "reference.pgd.success_rate": [0, 0, nan],
        "reference.tpgd.robust_accuracy": [0.75, 0.5, nan],
        "reference.tpgd.success_rate": [0.25, 0, nan],
        "reference.robust_accuracy": [0.75, 0.5, nan],
        "reference.robust_low": [three[0], half[0], nan],
        "reference.robust_high": [three[1], half[1], nan],
    }
    frame = classwise_report(records).to_frame()
    assert list(frame.columns) == ["class", *expected]
    for name, values in expected.items():
        assert frame[name].tolist() == approx(values), name


def test_the_worst_interval_by_hand(records):
    report = classwise_report(records)
    # The worst class has none of 2, the other one of 4. At the upper end t both are resampled with t, and no
    # class has none of its samples right with probability 0.975.
    low, high = report.worst_interval
    assert low == 0
    assert (1 - (1 - high) ** 4) * (1 - (1 - high) ** 2) == pytest.approx(0.975)
    # All of the reference's: worst 1 of 2, then 3 of 4, which is raised to t where t is above 3 / 4. Its
    # lower end is Clopper and Pearson's of 1 of 2: two samples both wrong or one right with p, 1 - (1 - p)^2.
    low, high = report.reference.worst_interval
    assert 1 - (1 - low) ** 2 == pytest.approx(0.025)
    at_most_half = 1 - high**2, 1 - stats.binom.sf(2, 4, max(high, 0.75))
    assert 1 - (1 - at_most_half[0]) * (1 - at_most_half[1]) == pytest.approx(0.025)


def test_the_fields_that_are_checked_are_all_there_are():
    """A new field needs a check by hand in this module."""
    assert {field.name for field in dataclasses.fields(ClasswiseReport)} == {
        *("class_names", "support", "clean", "attacks", "robust", "robust_low", "robust_high"),
        *("success_rates", "confusion", "worst_interval", "clean_accuracy", "robust_accuracy"),
        *("robust_interval", "attack_accuracies", "strength", "reference"),
    }
    assert {field.name for field in dataclasses.fields(LogitReport)} == {"samples", "labels", "class_names"}
    assert {field.name for field in dataclasses.fields(Comparison)} == {
        *("class_names", "support", "robust_a", "robust_b", "difference_low", "difference_high"),
        *("only_a", "only_b", "p_values", "p_holm", "overall", "ranks"),
    }


def test_strength_by_hand(make_table):
    table = make_table([0, 0, 1, 1], [A, A, B, A], {"pgd": [A, B, A, A]})
    index = table.column_names.index("pgd.forwards")
    spent = pa.array([9, 2, 5, 0], pa.int32())
    curve = classwise_report(Records(table.set_column(index, table.schema.field(index), spent))).strength[
        "pgd"
    ]
    # Three are right; the cat falls after 2 passes, the dog after 5, the other cat withstands 9.
    assert curve.forwards.tolist() == [0, 2, 5, 9]
    assert curve.standing.tolist() == [0.75, 0.5, 0.25, 0.25]


def test_an_attack_that_has_nothing_to_do_has_a_curve_too(make_table):
    table = make_table([0, 1], [B, A], {"pgd": [B, A]})
    index = table.column_names.index("pgd.forwards")
    idle = table.set_column(index, table.schema.field(index), pa.array([0, 0], pa.int32()))
    curve = classwise_report(Records(idle)).strength["pgd"]
    assert (curve.forwards.tolist(), curve.standing.tolist()) == ([0, 1], [0, 0])


def test_intervals_are_wilsons(records):
    report = classwise_report(records)
    low, high = classwise.wilson_interval([1, 0], [4, 2])
    assert report.robust_low[:2] == approx(low)
    assert report.robust_high[:2] == approx(high)
    assert np.isnan([report.robust_low[2], report.robust_high[2]]).all()
    assert report.robust_interval == approx(tuple(map(float, classwise.wilson_interval(1, 6))))


def test_the_reference_has_a_report_of_its_own(records):
    reference = classwise_report(records).reference
    assert reference.clean == approx([1, 0.5, math.nan])
    assert reference.robust == approx([0.75, 0.5, math.nan])
    assert reference.worst_class == ("dog", 0.5)
    assert reference.reference is None


def test_the_first_of_several_worst_classes(make_table):
    table = make_table([0, 1, 2], [A, B, C], {"pgd": [A, A, A]})
    assert classwise_report(Records(table)).worst_class == ("1", 0.0)


def test_without_an_attack_robust_is_clean(make_table):
    report = classwise_report(Records(make_table(LABELS, CLEAN, {})))
    assert report.robust == approx(report.clean)
    assert report.attacks == {}


def test_unevenness_by_hand(records):
    report = classwise_report(records)
    # Cats 0.25, dogs 0, no frogs.
    assert (report.tail_10, report.tail_20) == (0, 0)
    assert (report.nsd, report.gini) == (1, 0.5)
    assert report.worst_interval == approx(classwise.worst_class_interval([1, 0, 0], [4, 2, 0]))
    assert report.worst_interval[0] == 0
    assert (report.reference.tail_10, report.reference.nsd) == approx((0.5, 0.2))


def test_transitions_by_hand(records):
    report = classwise_report(records)
    # Cats: one robust, one turned into a dog by pgd, one into a frog by tpgd, one a dog without an attack.
    # Dogs: one turned into a cat by both, one by tpgd.
    assert report.confusion.tolist() == [[1, 2, 1], [2, 0, 0], [0, 0, 0]]
    assert report.transitions[:2].tolist() == [[0.25, 0.5, 0.25], [1, 0, 0]]
    assert np.isnan(report.transitions[2]).all()
    assert report.groups().tolist() == [0, 0, -1]


def test_of_two_attacks_that_succeed_the_smaller_margin_names_the_prediction(make_table):
    table = make_table([0, 0], [A, A], {"pgd": [[0, 1, 0], A], "tpgd": [[0, 0, 2], A]})
    assert adversarial_predictions(Records(table)).tolist() == [2, 0]


def test_a_tie_that_keeps_the_label_does_not_hide_the_attack_that_turns_it(make_table):
    # All margins are 0; argmax takes the first class: of the first attack on the last sample the label.
    tie, kept = [1, 1, 0], [0, 1, 1]
    table = make_table([0, 1, 1], [A, B, B], {"pgd": [tie, tie, kept], "tpgd": [A, B, tie]})
    records = Records(table)
    assert adversarial_predictions(records).tolist() == [0, 0, 0]
    assert records.robust().tolist() == [True, False, False]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_the_diagonal_of_the_transitions_is_the_robust_accuracy(random_table, seed, num_classes):
    report = classwise_report(Records(random_table(30, num_classes, seed=seed, reference=True)))
    for each in (report, report.reference):
        assert np.diag(each.transitions) == approx(each.robust)
        assert each.confusion.sum(axis=1).tolist() == each.support.tolist()


def test_without_an_attack_predictions_are_the_clean_ones(make_table):
    records = Records(make_table(LABELS, CLEAN, {}))
    assert adversarial_predictions(records).tolist() == [0, 0, 0, 1, 1, 1]
    assert classwise_report(records).gains() == []
    assert len(classwise_report(records).consistency()) == 0


def test_gains_by_hand(make_table):
    labels = [0, 0, 1, 1, 2, 2]
    clean = np.eye(4)[labels]

    def under(robust):
        return np.eye(4)[[y if r else 3 for y, r in zip(labels, robust, strict=True)]]

    # Weak: 1, 1, 0.5. Middle: 1, 0.5, 0.5. Strong: 1, 0.5, 0. Class 3 has no samples.
    attacks = {
        "strong": under([1, 1, 1, 0, 0, 0]),
        "weak": under([1, 1, 1, 1, 1, 0]),
        "middle": under([1, 1, 1, 0, 1, 0]),
    }
    report = classwise_report(Records(make_table(labels, clean, attacks)))
    middle, strong = report.gains()
    assert (middle.attack, middle.baseline, strong.attack) == ("middle", "weak", "strong")
    assert middle.gain == approx([0, 0.5, 0, math.nan])
    assert strong.gain == approx([0, 0.5, 0.5, math.nan])
    # Vulnerability 0, 0.25, 0.75 against gains 0, 0.5, 0.5: ranks 1, 2, 3 against 1, 2.5, 2.5.
    assert strong.vulnerability.n == 3
    assert strong.vulnerability.spearman == approx(math.sqrt(3) / 2)
    assert middle.vulnerability.spearman == approx(0)
    frame = report.consistency()
    assert frame[["a", "b"]].to_numpy().tolist() == [
        ["strong", "weak"],
        ["strong", "middle"],
        ["weak", "middle"],
    ]
    assert frame["spearman"].tolist() == approx([math.sqrt(3) / 2] * 2 + [0.5])


def test_one_two_and_a_thousand_classes(make_table, random_table):
    lonely = classwise_report(Records(make_table([0, 0], [[1, 0], [0, 1]], {"pgd": [[1, 0], [1, 0]]})))
    assert lonely.support.tolist() == [2, 0]
    assert (lonely.disparity, lonely.gini, lonely.tail_20) == (0, 0, 0.5)
    assert lonely.groups().tolist() == [0, -1]
    two = classwise_report(Records(random_table(20, 2)))
    assert two.groups().tolist() == [0, 0]
    many = classwise_report(Records(random_table(3000, 1000)))
    assert many.tail_10 <= many.tail_20
    assert many.groups().max() < 20
    assert 0 <= many.worst_interval[0] <= many.worst_interval[1] <= 1


def test_class_frame_and_csv(records, tmp_path):
    report = classwise_report(records)
    frame = report.to_frame()
    outcome = [
        "clean_accuracy",
        "pgd.robust_accuracy",
        "pgd.success_rate",
        "tpgd.robust_accuracy",
        "tpgd.success_rate",
        "robust_accuracy",
        "robust_low",
        "robust_high",
    ]
    assert list(frame.columns) == ["class", "support", *outcome, *(f"reference.{name}" for name in outcome)]
    assert frame["class"].tolist() == ["cat", "dog", "frog"]
    report.to_csv(tmp_path / "classwise.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "classwise.csv"), frame)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_classwise_matches_pandas(random_table, seed, num_classes):
    records = Records(random_table(30, num_classes, seed=seed))
    report = classwise_report(records)
    frame = records.to_frame(logits=False)
    right = frame["clean_prediction"] == frame["label"]
    for name in records.attacks:
        expected = (right & ~frame[f"{name}.success"]).groupby(frame["label"]).mean()
        assert report.attacks[name] == approx(expected.reindex(range(num_classes)).to_numpy())
        assert np.all((report.robust <= report.attacks[name]) | np.isnan(report.robust))
    weights = report.support / report.support.sum()
    assert np.nansum(report.robust * weights) == approx(report.robust_accuracy)


# ---- logits ----------------------------------------------------------------------------------------------


@pytest.fixture
def logit_records(make_table):
    clean = [[4, 1, 0], [0, 2, 1]]
    pgd = [[3, 2, 0], [1, 1, 0]]
    tpgd = [[2, 1, 0], [1, 0, 3]]
    return Records(make_table([0, 1], clean, {"pgd": pgd, "tpgd": tpgd}))


def test_the_strongest_attack_leaves_the_smallest_margin(logit_records):
    # Margins 1 and 1 (the first of both), then 0 and -3.
    assert strongest_attack(logit_records).tolist() == [0, 1]


def test_the_strongest_attack_needs_one(make_table):
    with pytest.raises(ValueError, match="records: expected at least one attack, got none"):
        strongest_attack(Records(make_table(LABELS, CLEAN, {})))


def test_logit_samples_by_hand(logit_records):
    samples = logit_report(logit_records).samples["model"]
    assert samples["clean"]["max_logit"].tolist() == [4, 2]
    assert samples["clean"]["logit_gap"].tolist() == [3, 1]
    assert samples["clean"]["margin"].tolist() == [3, 1]
    assert samples["adversarial"]["max_logit"].tolist() == [3, 3]
    assert samples["adversarial"]["logit_gap"].tolist() == [1, 2]
    assert samples["adversarial"]["margin"].tolist() == [1, -3]
    adversarial = special.softmax([[3, 2, 0], [1, 0, 3]], axis=1)
    assert samples["adversarial"]["confidence"] == approx(adversarial.max(axis=1))
    assert samples["adversarial"]["entropy"] == approx(stats.entropy(adversarial, axis=1))


def test_statistics_are_of_the_population_and_linear():
    statistics = Statistics.of(np.array([3.0, 1.0], dtype=np.float32))
    assert statistics == approx(Statistics(mean=2, std=1, q05=1.1, q50=2, q95=2.9))
    assert np.isnan(Statistics.of(np.empty(0))).all()


def test_logit_frame_and_csv(records, tmp_path):
    report = logit_report(records)
    frame = report.to_frame()
    assert list(frame.columns) == ["model", "condition", "quantity", "mean", "std", "q05", "q50", "q95"]
    assert len(frame) == 2 * 2 * 5
    row = frame.set_index(["model", "condition", "quantity"]).loc[("reference", "clean", "margin")]
    # Five of six right with margin 1, one wrong with margin -1: the 5 % quantile lies a quarter of the way.
    assert row.tolist() == approx([4 / 6, math.sqrt(1 - 16 / 36), -0.5, 1, 1])
    assert report.labels.tolist() == LABELS
    assert report.class_names == ("cat", "dog", "frog")
    report.to_csv(tmp_path / "logits.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "logits.csv"), frame)


def test_histogram_by_hand(make_table):
    clean = [[0, 0], [1, 0], [2, 0], [4, 0]]
    report = logit_report(Records(make_table([0, 0, 0, 0], clean, {})))
    frame = report.histogram("logit_gap", bins=2)
    # From the 0.5 % quantile 0.015 to the 99.5 % quantile 3.97, the values beyond them in the outermost bins.
    assert frame["low"].tolist() == approx([0.015, 1.9925])
    assert frame["high"].tolist() == approx([1.9925, 3.97])
    assert frame["count"].tolist() == [2, 2]
    assert set(frame["condition"]) == {"clean"}


def test_histograms_share_their_bins_and_hold_all_samples(random_table):
    report = logit_report(Records(random_table(60, 3, reference=True)))
    frame = report.histogram("margin", bins=7)
    groups = frame.groupby(["model", "condition"])
    assert groups["count"].sum().tolist() == [60] * 4
    assert {tuple(group["low"]) for _, group in groups} == {tuple(frame["low"][:7])}


def test_extreme_values_are_gathered_in_the_outermost_bins():
    edges = analysis._edges([np.r_[np.linspace(0, 1, 1000), 1e6]], 40)
    assert edges[-1] < 1.01
    assert len(edges) == 41


def test_histogram_refuses(records):
    with pytest.raises(ValueError, match="quantity must be one of max_logit"):
        logit_report(records).histogram("loss")
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        logit_report(records).histogram("margin", bins=0)


def test_sample_frame_is_the_records_row_by_row(records):
    frame = logit_report(records).sample_frame()
    assert frame["class"].tolist() == ["cat"] * 4 + ["dog"] * 2
    assert frame.shape == (6, 1 + 2 * 2 * 5)
    # Cats are right but for the last.
    assert frame["model.clean.margin"].tolist() == approx([1, 1, 1, -1, 1, 1])
    assert "model.adversarial.margin" in frame
    assert "reference.clean.entropy" in frame


def test_without_an_attack_adversarial_is_empty(make_table):
    statistics = logit_report(Records(make_table(LABELS, CLEAN, {}))).statistics()
    assert np.isnan(statistics["model"]["adversarial"]["margin"]).all()
    assert statistics["model"]["clean"]["max_logit"].mean == 1


def test_blocks_do_not_change_the_samples(random_table, monkeypatch):
    records = Records(random_table(25))
    whole = logit_report(records).samples["model"]["adversarial"]
    monkeypatch.setattr(stored, "_BLOCK", 7)
    parts = logit_report(records).samples["model"]["adversarial"]
    for name, values in whole.items():
        assert np.array_equal(parts[name], values)


def test_logits_are_never_python_objects(random_table, monkeypatch):
    records = Records(random_table(50, 20))

    def refuse(*_, **__):
        raise AssertionError("logits were turned into Python objects")

    monkeypatch.setattr(Records, "to_frame", refuse)
    column = records.column("clean_logits")
    assert column.dtype == np.float32
    summary = summarize(records)
    expected = torch.from_numpy(column.copy()).amax(dim=1).double().mean().item()
    assert summary["logits"]["model"]["clean"]["max_logit"]["mean"] == approx(expected)


# ---- comparison ------------------------------------------------------------------------------------------


def outcome_table(make_table, labels, robust, **options):
    """Records in which sample i is right, and robust where ``robust[i]``."""
    clean = np.eye(2)[labels]
    attacked = np.eye(2)[[y if r else 1 - y for y, r in zip(labels, robust, strict=True)]]
    return make_table(labels, clean, {"pgd": attacked}, **options)


def test_compare_by_hand_pairs_on_the_sample_id(make_table):
    labels = [0] * 6 + [1] * 4
    first, second = [1, 1, 1, 1, 1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0, 1, 0, 1, 0]
    a = Records(outcome_table(make_table, labels, first))
    # The second in reverse order, and with samples that the first lacks.
    ids = [*range(9, -1, -1), 50, 51]
    b = Records(outcome_table(make_table, [*labels[::-1], 0, 1], [*second[::-1], 1, 1], sample_ids=ids))
    comparison = compare(a, b)
    assert comparison.class_names == ("0", "1")
    assert comparison.ranks.n == 2
    assert comparison.ranks.spearman == approx(-1)  # the first class is the better in a, the second in b
    assert comparison.support.tolist() == [6, 4]
    assert comparison.robust_a == approx([5 / 6, 0.5])
    assert comparison.robust_b == approx([1 / 6, 0.5])
    assert comparison.difference == approx([-4 / 6, 0])
    # a = 5 / 8 and 2 / 6, b = 1 / 8 and 2 / 6
    spread = stats.norm.ppf(0.975) * np.sqrt([(6 / 8 - 1 / 4) / 8, (4 / 6) / 6])
    assert comparison.difference_low == approx([max(-1, -0.5 - spread[0]), -spread[1]])
    assert comparison.difference_high == approx([-0.5 + spread[0], spread[1]])
    assert comparison.only_a.tolist() == [4, 1]
    assert comparison.only_b.tolist() == [0, 1]
    assert comparison.p_values == approx([2 / 16, 1])
    assert comparison.p_holm == approx([4 / 16, 1])
    assert comparison.overall == approx(
        {
            "support": 10,
            "robust_a": 0.7,
            "robust_b": 0.3,
            "difference": -0.4,
            # a = 6 / 12, b = 2 / 12: -1 / 3 -+ 1.96 sqrt((2 / 3 - 1 / 9) / 12)
            "difference_low": -1 / 3 - stats.norm.ppf(0.975) * math.sqrt(5 / 108),
            "difference_high": -1 / 3 + stats.norm.ppf(0.975) * math.sqrt(5 / 108),
            "only_a": 5,
            "only_b": 1,
            "p_value": stats.binomtest(1, 6).pvalue,
        }
    )


def test_compare_with_itself_finds_nothing(records):
    comparison = compare(records, records)
    frame = comparison.to_frame()
    assert list(frame.columns) == [
        *("class", "support", "robust_a", "robust_b"),
        *("difference", "difference_low", "difference_high"),
        *("only_a", "only_b", "p_value", "p_holm"),
    ]
    assert frame["difference"].tolist() == approx([0, 0, math.nan])
    # The absent class has no test, and does not count in Holm's correction.
    assert frame["p_value"].tolist() == approx([1, 1, math.nan])
    assert comparison.overall["p_value"] == 1


def test_compare_refuses_other_data(random_table, make_table, make_manifest):
    a = Records(random_table(), make_manifest())
    cases = {
        r"b: expected the data of a \(dd\), got ee; evaluate the same data \(a: digits, b: mnist\)": (
            random_table(),
            {"data": {"name": "mnist", "hash": "ee"}},
        ),
        "b: expected the 3 classes of a, in their order, got 3 others": (
            random_table(),
            {"class_names": ["x", "y", "z"]},
        ),
        "b: expected the 3 classes of a, in their order, got 4 others": (random_table(num_classes=4), {}),
        r"b: expected samples \(sample_id\) that a has too, got none": (
            random_table(sample_ids=range(100, 120)),
            {},
        ),
        "b: expected the labels of a on shared samples": (random_table(seed=1), {}),
        "b: expected every sample_id once": (random_table(sample_ids=[0] * 20), {}),
    }
    for message, (table, identity) in cases.items():
        with pytest.raises(ValueError, match=message):
            compare(a, Records(table, make_manifest(**identity)))
    with pytest.raises(ValueError, match="a: expected every sample_id once"):
        compare(Records(random_table(sample_ids=[0] * 20)), a)


def test_compare_without_hashes(random_table, make_manifest):
    a, b = Records(random_table()), Records(random_table(), make_manifest())
    assert compare(a, b).overall["support"] == 20


# ---- summary ---------------------------------------------------------------------------------------------


def test_summary_has_every_field_of_the_contract(records):
    summary = summarize(records)
    assert summary["n"] == 6
    assert summary["clean_accuracy"] == approx(5 / 6)
    assert summary["robust_accuracy"] == approx(1 / 6)
    assert summary["attacks"] == {
        "pgd": {"robust_accuracy": approx(1 / 2), "forwards": 126, "backwards": 120},
        "tpgd": {"robust_accuracy": approx(1 / 3), "forwards": 126, "backwards": 120},
    }
    assert summary["worst_class"] == {"name": "dog", "robust_accuracy": 0.0}
    assert summary["disparity"] == 0.25
    low, high = classwise.worst_class_interval([1, 0], [4, 2])
    assert summary["worst_class_interval"] == approx({"low": low, "high": high})
    assert [summary[name] for name in ("tail_10", "tail_20", "nsd", "gini")] == [0, 0, 1, 0.5]
    assert summary["reference"]["worst_class"] == {"name": "dog", "robust_accuracy": 0.5}
    assert set(summary["logits"]) == {"model", "reference"}
    for conditions in summary["logits"].values():
        assert set(conditions) == {"clean", "adversarial"}
        for quantities in conditions.values():
            assert set(quantities) == {"max_logit", "logit_gap", "margin", "confidence"}
            for statistics in quantities.values():
                assert set(statistics) == {"mean", "std", "q05", "q50", "q95"}
    # Margins of 1, and of -1 for the cat that is wrong; tpgd leaves -1 to one cat more, pgd to another.
    margins = {"clean": [1, 1, 1, -1, 1, 1], "adversarial": [1, -1, -1, -1, -1, -1]}
    for condition, values in margins.items():
        of_margin = summary["logits"]["model"][condition]["margin"]
        assert of_margin == approx(
            {
                "mean": np.mean(values),
                "std": np.std(values),
                **dict(zip(("q05", "q50", "q95"), np.quantile(values, [0.05, 0.5, 0.95]), strict=True)),
            }
        )
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_summary_without_a_reference_does_not_mention_one(random_table):
    summary = summarize(Records(random_table()))
    assert "reference" not in summary
    assert set(summary["logits"]) == {"model"}


def test_nan_is_null(make_table):
    summary = summarize(Records(make_table(LABELS, CLEAN, {})))
    assert summary["logits"]["model"]["adversarial"]["margin"]["mean"] is None
    json.dumps(summary, allow_nan=False)


def test_passes_of_many_samples_do_not_overflow(random_table):
    table = random_table(4)
    index = table.column_names.index("pgd.forwards")
    table = table.set_column(index, "pgd.forwards", pa.array([2**31 - 1] * 4, pa.int32()))
    assert summarize(Records(table))["attacks"]["pgd"]["forwards"] == 4 * (2**31 - 1)
