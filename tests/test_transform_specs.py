from __future__ import annotations

from typing import Any

import pytest

from art_logits import transforms as tf
from art_logits.transform_specs import parse_transform, parse_transforms


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("scale:factor=1/2", tf.Scale(factor=0.5)),
        ("max-logit:how=cap,value=3", tf.MaxLogit(how="cap", value=3.0)),
        ("logit-gap:how=scale, value=0.5", tf.LogitGap(how="scale", value=0.5)),
        ("confidence:how=set,value=0.9", tf.Confidence(how="set", value=0.9)),
        ("permute-confidences", tf.PermuteConfidences()),
        (
            "permute-confidences:within=class,around=label,seed=3",
            tf.PermuteConfidences(within="class", around="label", seed=3),
        ),
        ("order:how=class-mean", tf.OrderIncorrect(how="class-mean")),
        ("noisy-order:correlation=-0.5", tf.NoisyOrder(correlation=-0.5)),
        ("keep-top:k=2", tf.KeepTop(k=2)),
        ("flatten", tf.FlattenIncorrect()),
        ("smooth-labels", tf.SmoothLabels()),
        ("smooth-labels:confidence=0.9", tf.SmoothLabels(confidence=0.9)),
    ],
)
def test_every_transform_has_a_spec(spec: str, expected: tf.Transform) -> None:
    assert parse_transform(spec) == expected


def test_several_in_turn() -> None:
    assert parse_transforms(["scale:factor=2", "flatten"]) == tf.Compose(
        tf.Scale(factor=2.0), tf.FlattenIncorrect()
    )
    assert parse_transforms([]) == tf.Compose()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("flaten", r"transform must be one of scale, .*, got 'flaten' \(did you mean flatten\?\)"),
        ("order", r"transform 'order': give how=\.\.\. too"),
        ("max-logit:how=cap", r"transform 'max-logit:how=cap': give value=\.\.\. too"),
        ("scale:factor=0", "transform 'scale:factor=0': factor must be a finite number > 0"),
        ("scale:factor=x", "transform 'scale:factor=x': option 'factor': expected a number"),
        ("scale:faktor=1", r"transform 'scale:faktor=1': the option must be one of factor, got 'faktor'"),
        ("keep-top:k=1.5", "transform 'keep-top:k=1.5': option 'k': expected an integer"),
        ("keep-top:k", "transform 'keep-top:k': expected key=value after the colon"),
        ("keep-top:k=1,k=2", "transform 'keep-top:k=1,k=2': the option 'k' was given twice"),
    ],
)
def test_refused_specs(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_transform(spec)
