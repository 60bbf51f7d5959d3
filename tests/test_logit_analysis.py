import numpy as np
import pytest
from scipy import stats

from art_logits import logit_analysis
from art_logits import records as stored
from art_logits.analysis import LOGIT_QUANTITIES, logit_report
from art_logits.functional.ranks import auroc_interval
from art_logits.logit_analysis import (
    class_statistics,
    confidence_correlation,
    fall_intervals,
    fall_predictors,
    reference_differences,
    wrong_class_agreement,
)
from art_logits.records import Records

A, B, C = np.eye(3).tolist()


@pytest.fixture
def records(random_table):
    return Records(random_table(80, 5, reference=True))


def test_differences_by_hand(make_table):
    # Max logits 5, 3 against 1, 1; under attack 2, 2 against 2, 1.
    model = ([[5, 0], [0, 3]], {"pgd": [[2, 0], [0, 2]]})
    reference = ([[1, 0], [0, 1]], {"pgd": [[2, 0], [0, 1]]})
    frame = reference_differences(Records(make_table([0, 1], *model, reference=reference)))
    assert len(frame) == 2 * len(LOGIT_QUANTITIES)
    rows = frame.set_index(["condition", "quantity"])
    clean, attacked = rows.loc[("clean", "max_logit")], rows.loc[("adversarial", "max_logit")]
    assert clean.tolist() == [3, 2, 4]
    assert attacked.tolist() == [0.5, 0, 1]


def test_difference_intervals_are_paired_and_near_those_of_students_t(records):
    samples = logit_report(records).samples
    rows = reference_differences(records).set_index(["condition", "quantity"])
    change = samples["model"]["clean"]["margin"] - samples["reference"]["clean"]["margin"]
    row = rows.loc[("clean", "margin")]
    expected = stats.ttest_1samp(change.astype(float), 0).confidence_interval(0.95)
    width = expected.high - expected.low
    assert row["difference"] == pytest.approx(change.mean())
    assert [row["low"], row["high"]] == pytest.approx([expected.low, expected.high], abs=0.12 * width)
    assert reference_differences(records).equals(reference_differences(records))
    narrow = reference_differences(records, level=0.5).set_index(["condition", "quantity"])
    assert narrow.loc[("clean", "margin"), "low"] > row["low"]


def test_differences_of_every_quantity_are_those_of_pandas(records):
    samples = logit_report(records).sample_frame().drop(columns="class").astype(float)
    rows = reference_differences(records).set_index(["condition", "quantity"])
    assert len(rows) == 2 * len(LOGIT_QUANTITIES)
    for (condition, quantity), row in rows.iterrows():
        change = samples[f"model.{condition}.{quantity}"] - samples[f"reference.{condition}.{quantity}"]
        assert row["difference"] == pytest.approx(change.mean(), rel=1e-5)
        # Percentiles of a bootstrap of 80 samples are about 1.96 standard errors away.
        assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * change.sem(), rel=0.12)
        assert row["low"] < row["difference"] < row["high"]


def test_difference_of_one_sample_without_an_attack(make_table):
    frame = reference_differences(Records(make_table([0], [A], {}, reference=([B], {}))))
    assert set(frame["condition"]) == {"clean"}
    assert frame[["low", "high"]].isna().all(axis=None)


def test_differences_by_class(random_table, make_manifest):
    names = ["cat", "dog", "frog", "$x$"]
    table = random_table(40, 4, reference=True)
    records = Records(table, make_manifest(class_names=names))
    frame = reference_differences(records, by_class=True)
    assert list(frame.columns) == ["class", "n", "condition", "quantity", "difference", "low", "high"]
    assert list(dict.fromkeys(frame["class"])) == names
    rows = frame.set_index(["class", "condition", "quantity"])
    labels, samples = records.column("label"), logit_report(records).samples
    change = samples["model"]["clean"]["margin"] - samples["reference"]["clean"]["margin"]
    for index, name in enumerate(names):
        row = rows.loc[(name, "clean", "margin")]
        assert row["n"] == (labels == index).sum()
        assert row["difference"] == pytest.approx(change[labels == index].mean(), rel=1e-5)
        assert row["low"] <= row["difference"] <= row["high"]


def test_differences_of_an_absent_class(make_table):
    table = make_table([0, 0, 1], [A, B, A], {}, reference=([A, A, B], {}))
    frame = reference_differences(Records(table), by_class=True).set_index(["class", "quantity"])
    assert frame.loc[("2", "margin"), "n"] == 0
    assert frame.loc[("2", "margin"), ["difference", "low", "high"]].isna().all()
    assert frame.loc[("1", "margin"), "difference"] == -2
    assert frame.loc[("1", "margin"), ["low", "high"]].isna().all()


def test_confidence_correlation_matches_scipy(records):
    frame = confidence_correlation(records).set_index("condition")
    samples = logit_report(records).samples
    for condition in ("clean", "adversarial"):
        pair = [samples[model][condition]["confidence"] for model in ("model", "reference")]
        assert frame.loc[condition, "spearman"] == pytest.approx(stats.spearmanr(*pair).statistic)
        assert frame.loc[condition, "kendall"] == pytest.approx(stats.kendalltau(*pair).statistic)
        for kind in ("spearman", "kendall"):
            row = frame.loc[condition]
            assert row[f"{kind}_low"] < row[kind] < row[f"{kind}_high"]
        assert frame.loc[condition, "n"] == 80


def test_wrong_class_agreement_matches_scipy_in_blocks(records, monkeypatch):
    monkeypatch.setattr(stored, "_BLOCK", 7)
    labels, first = records.column("label"), records.column("clean_logits")
    second = records.column("reference.clean_logits")
    rho = np.array(
        [
            stats.spearmanr(np.delete(x, y), np.delete(z, y)).statistic
            for x, z, y in zip(first, second, labels, strict=True)
        ]
    )
    confidence = logit_report(records).samples["model"]["clean"]["confidence"]
    order = np.argsort(confidence)
    frame = wrong_class_agreement(records, bins=2)
    assert frame["n"].tolist() == [80, 40, 40]
    expected = [rho.mean(), rho[order[:40]].mean(), rho[order[40:]].mean()]
    assert frame["agreement"].tolist() == pytest.approx(expected)
    assert frame["confidence_low"][0] == confidence.min()
    assert frame["confidence_high"][1] == confidence[order[39]]


def test_agreement_by_hand_and_of_constant_logits(make_table):
    model = [[9, 3, 2, 1], [9, 3, 2, 1], [9, 1, 1, 1]]
    reference = [[9, 3, 2, 1], [9, 1, 2, 3], [9, 3, 2, 1]]
    frame = wrong_class_agreement(
        Records(make_table([0, 0, 0], model, {}, reference=(reference, {}))), bins=1
    )
    assert frame["n"].tolist() == [2, 2]
    assert frame["agreement"].tolist() == [0, 0]
    two = Records(make_table([0, 1], np.eye(2), {}, reference=(np.eye(2), {})))
    assert wrong_class_agreement(two, bins=3)["n"].tolist() == [0, 0, 0]
    assert wrong_class_agreement(two)["agreement"].isna().all()


def test_fall_predictors_by_hand(make_table):
    # Class 0: margins 4, 3 stand, 2 and 3.5 fall; one sample is wrong. Class 1: stands. Class 2: absent.
    clean = [[4, 0, 0], [3, 0, 0], [2, 0, 0], [3.5, 0, 0], [0, 9, 0], [0, 1, 0]]
    attacked = [[4, 0, 0], [3, 0, 0], [0, 1, 0], [0, 1, 0], [0, 9, 0], [0, 1, 0]]
    frame = fall_predictors(Records(make_table([0, 0, 0, 0, 0, 1], clean, {"pgd": attacked})))
    assert frame["class"].tolist() == ["", "0", "1", "2"]
    assert frame["n"].tolist() == [5, 4, 1, 0]
    assert frame["falls"].tolist() == [2, 2, 0, 0]
    # Pairs (stands, falls) in which the one that stands has the larger margin: three of four in class 0,
    # and none of the two with the sample of class 1.
    assert frame["margin"].tolist() == pytest.approx([0.5, 0.75, np.nan, np.nan], nan_ok=True)
    assert frame["max_logit"].equals(frame["margin"])
    assert frame["entropy"][1] == pytest.approx(0.25)


def test_fall_predictors_are_the_shares_of_pairs_in_order(records):
    frame = fall_predictors(records)
    right, stands, labels = records.correct(), records.robust(), records.column("label")
    samples = logit_report(records).samples["model"]["clean"]
    for row, chosen in [(0, right), *((k + 1, right & (labels == k)) for k in range(5))]:
        for quantity in LOGIT_QUANTITIES:
            expected = share_of_pairs(samples[quantity][chosen], stands[chosen])
            assert frame[quantity][row] == pytest.approx(expected)
    assert fall_predictors(records, by_class=False).equals(frame.iloc[:1])


def share_of_pairs(values, stands):
    """The AUROC's definition: pairs of a sample that stands and one that falls in order, ties by half."""
    above = values[stands][:, None].astype(float) - values[~stands][None]
    return np.mean((above > 0) + 0.5 * (above == 0))


def test_auroc_with_ties_is_the_share_of_pairs_in_order(rng):
    values, stands = rng.integers(0, 4, (50, 3)).astype(float), rng.random(50) < 0.6
    expected = [share_of_pairs(column, stands) for column in values.T]
    assert logit_analysis._auroc(values, stands) == pytest.approx(expected)
    assert np.isnan(logit_analysis._auroc(values, np.ones(50, dtype=bool))).all()
    assert np.isnan(logit_analysis._auroc(values, np.zeros(50, dtype=bool))).all()


def test_fall_intervals_are_those_of_the_predictors(records):
    for model in ("model", "reference"):
        frame, overall = fall_intervals(records, model), fall_predictors(records, model).iloc[0]
        right, stands = records.correct(model), records.robust(model)
        samples = logit_report(records).samples[model]["clean"]
        assert frame["quantity"].tolist() == list(LOGIT_QUANTITIES)
        for row in frame.itertuples():
            assert row.auroc == overall[row.quantity]
            expected = auroc_interval(samples[row.quantity][right], stands[right])
            assert (row.low, row.high) == expected
    wide, narrow = fall_intervals(records, level=0.99), fall_intervals(records, level=0.5)
    assert (wide["low"] < narrow["low"]).all()


def test_fall_predictors_of_the_reference(records):
    own, other = fall_predictors(records), fall_predictors(records, "reference")
    assert own["n"][0] == records.correct().sum()
    assert other["n"][0] == records.correct("reference").sum()
    assert other["falls"][0] == other["falls"][1:].sum()


def test_refusals(random_table, records):
    alone = Records(random_table())
    for function in (reference_differences, confidence_correlation, wrong_class_agreement):
        with pytest.raises(ValueError, match="model: these records have no reference"):
            function(alone)
    for function in (fall_predictors, fall_intervals):
        with pytest.raises(ValueError, match="model: these records have no reference"):
            function(alone, "reference")
    with pytest.raises(ValueError, match="level: expected a coverage between 0 and 1, got 0"):
        reference_differences(records, level=0)
    with pytest.raises(ValueError, match="bins: expected at least 1, got 0"):
        wrong_class_agreement(records, bins=0)


def test_a_logit_report_at_hand_is_not_made_again(records, monkeypatch):
    functions = [
        class_statistics,
        reference_differences,
        confidence_correlation,
        wrong_class_agreement,
        fall_predictors,
    ]
    expected = [function(records) for function in functions]
    logit = logit_report(records)
    monkeypatch.delattr(logit_analysis, "logit_report")
    for function, frame in zip(functions, expected, strict=True):
        assert function(records, logit=logit).equals(frame)


def test_statistics_by_class_by_hand(make_table):
    # Max logits 5, 3, 4 of classes 0, 0, 2; under attack 2, 1, 4.
    clean, attacked = [[5, 0, 0], [3, 0, 0], [0, 0, 4]], [[2, 0, 0], [0, 1, 0], [0, 0, 4]]
    table = make_table([0, 0, 2], clean, {"pgd": attacked}, reference=(attacked, {"pgd": attacked}))
    frame = class_statistics(Records(table))
    assert len(frame) == 3 * 2 * len(LOGIT_QUANTITIES)
    rows = frame.set_index(["condition", "quantity", "class"])
    assert rows.loc[("clean", "max_logit", "0")].tolist() == pytest.approx([2, 4, 3.1, 4, 4.9])
    assert rows.loc[("adversarial", "max_logit", "0")].tolist() == pytest.approx([2, 1.5, 1.05, 1.5, 1.95])
    assert rows.loc[("adversarial", "margin", "2")].tolist() == [1, 4, 4, 4, 4]
    absent = rows.loc[("clean", "entropy", "1")]
    assert absent["n"] == 0
    assert absent.drop("n").isna().all()
    reference = class_statistics(Records(table), "reference").set_index(["condition", "quantity", "class"])
    assert reference.loc[("clean", "max_logit", "0"), "mean"] == 1.5


def test_statistics_by_class_are_those_of_pandas(records):
    samples = logit_report(records).sample_frame()
    groups = samples.astype(dict.fromkeys(samples.columns.drop("class"), float)).groupby("class")
    for model in ("model", "reference"):
        for row in class_statistics(records, model).itertuples():
            values = groups.get_group(row._1)[f"{model}.{row.condition}.{row.quantity}"]
            assert row.n == len(values)
            found, expected = (
                [row.mean, row.q05, row.q50, row.q95],
                [values.mean(), *values.quantile([0.05, 0.5, 0.95])],
            )
            assert found == pytest.approx(expected)


def test_statistics_by_class_without_attacks_are_clean_ones(make_table):
    frame = class_statistics(Records(make_table([0, 1], np.eye(2), {})))
    assert set(frame["condition"]) == {"clean"}


def test_statistics_by_class_need_a_model(make_table):
    with pytest.raises(ValueError, match="model: these records have no reference"):
        class_statistics(Records(make_table([0, 1], np.eye(2), {})), "reference")
