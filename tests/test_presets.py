from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from art_logits import TemperaturePGD
from art_logits.cascade import quick
from art_logits.presets import parse_attack, parse_attacks, parse_number
from art_logits.records import check_attack_name

THREAT = {"norm": "Linf", "eps": 0.1}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive_their_text(value):
    assert parse_number(repr(value)) == value


@given(st.integers(0, 500), st.integers(1, 500))
def test_fractions(top, bottom):
    assert parse_number(f"{top}/{bottom}") == top / bottom


@pytest.mark.parametrize(
    "text", ["", "x", "1/0", "1/2/3", "nan", "inf", "1_0", "0x1", "8 /255", "1e999", "1/1e5", "--1"]
)
def test_what_is_no_number(text):
    with pytest.raises(ValueError, match=r"expected a (finite )?number such as 0.1 or 8/255"):
        parse_number(text)


def test_pgd_is_the_fields_pgd_20():
    name, attack = parse_attack("pgd", norm="Linf", eps=8 / 255, seed=3)
    assert name == "pgd"
    assert attack == TemperaturePGD(eps=8 / 255, steps=20, step_size=2 / 255, temperature=1.0, seed=3)
    assert attack.random_start


def test_temperature_pgd_is_the_default_attack():
    name, attack = parse_attack("temperature-pgd", norm="L2", eps=0.5, bounds=(-1.0, 1.0))
    assert name == "temperature-pgd"
    assert attack == quick(eps=0.5, norm="L2", bounds=(-1.0, 1.0))


@pytest.mark.parametrize("option", ["steps=50", "restarts=2", "temperature=gap", "stop_on_success=true"])
def test_temperature_pgd_with_options_of_one_attack_is_that_attack(option):
    name, attack = parse_attack(f"temperature-pgd:{option},seed=2", **THREAT)
    key, _, value = option.partition("=")
    value = {"temperature": "gap", "stop_on_success": True}.get(key) or int(value)
    assert name == f"temperature-pgd:{option},seed=2"
    assert attack == TemperaturePGD(eps=THREAT["eps"], norm=THREAT["norm"], seed=2, **{key: value})


def test_temperature_pgd_in_another_ball_is_still_the_default():
    _, attack = parse_attack("temperature-pgd:norm=L2,eps=0.5,seed=2,precision=float32,fuse=false", **THREAT)
    assert attack == quick(norm="L2", eps=0.5, seed=2, precision="float32", fuse=False)


def test_options_are_read_as_their_fields_demand():
    spec = (
        "pgd: steps=50, restarts=2, temperature=0.2, eps=4/255, norm=L2, loss=probability_margin, seed=7, "
        "random_start=false, stop_on_success=False, keep=last, step_size=cosine"
    )
    name, attack = parse_attack(spec, **THREAT)
    assert attack == TemperaturePGD(
        eps=4 / 255,
        norm="L2",
        steps=50,
        restarts=2,
        temperature=0.2,
        loss="probability_margin",
        seed=7,
        random_start=False,
        stop_on_success=False,
        keep="last",
        step_size="cosine",
    )
    assert name.startswith("pgd:steps=50,restarts=2,temperature=0_2,eps=4/255,")
    assert check_attack_name(name) == name


def test_the_step_follows_the_specs_own_eps():
    assert parse_attack("pgd:eps=0.4", **THREAT)[1].step_size == pytest.approx(0.1)
    assert parse_attack("pgd:eps=0", **THREAT)[1].eps == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pdg", r"attack must be one of pgd, .*torchattacks:CLASS, art:CLASS, got 'pdg' \(did you mean pgd"),
        ("torchatacks:PGD", r"attack must be one of .* \(did you mean torchattacks"),
        ("pgd:step=3", r"the option must be one of eps, .* got 'step' \(did you mean steps"),
        ("pgd:bounds=3", "the option must be one of"),
        ("pgd:", "expected key=value after the colon, got ''"),
        ("pgd:steps", "expected key=value after the colon, got 'steps'"),
        ("pgd:steps=", "expected key=value"),
        ("pgd:steps=3,steps=4", "the option 'steps' was given twice"),
        ("pgd:steps=3.5", "option 'steps': expected an integer, got '3.5'"),
        ("pgd:random_start=1", "option 'random_start': expected true or false, got '1'"),
        ("pgd:precision=float8", "precision must be one of auto, float32, bfloat16, got 'float8'"),
        ("pgd:eps=big", "option 'eps': expected a number"),
        ("pgd:temperature=-", "option 'temperature': expected a number"),
        ("pgd:temperature=cold", "attack 'pgd:temperature=cold': temperature"),
        ("pgd:norm=L2", "must give its eps too"),
        ("pgd:norm=L3,eps=1", "norm must be one of"),
        ("pgd:steps=-1", "steps must be at least 0"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(ValueError, match=message):
        parse_attack(spec, **THREAT)


def test_several_specs_have_distinct_names():
    attacks = parse_attacks(["pgd", "pgd:steps=50", "temperature-pgd"], **THREAT)
    assert list(attacks) == ["pgd", "pgd:steps=50", "temperature-pgd"]
    twice = parse_attacks(["pgd", "pgd ", "pgd:seed=3", "pgd"], **THREAT)
    assert list(twice) == ["pgd", "pgd-2", "pgd:seed=3", "pgd-3"]
    assert twice["pgd"] == twice["pgd-2"]
    with pytest.raises(ValueError, match="at least one attack"):
        parse_attacks([], **THREAT)


def test_precision_and_fusion_by_spec() -> None:
    _, attack = parse_attack("pgd:precision=bfloat16,fuse=false", norm="Linf", eps=0.1)
    assert (attack.precision, attack.fuse) == ("bfloat16", False)
    _, attack = parse_attack("temperature-pgd", norm="Linf", eps=0.1)
    assert (attack.precision, attack.fuse) == ("auto", True)
