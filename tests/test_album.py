import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from art_logits.album import KINDS, THUMBNAIL_SIZE, Album
from art_logits.records import THUMBNAILS_PER_KIND, best_thumbnails, thumbnails_schema


def decoded(png):
    return np.array(Image.open(io.BytesIO(png)))


def rows_of(table, kind):
    return [row for row in table.to_pylist() if row["kind"] == kind]


def fill(album, clean, attacked, images, reference=None):
    album.add_clean(clean)
    for name, logits in attacked.items():
        album.add_attack(name, logits, images)
    if reference is not None:
        album.add_clean(reference, reference=True)
    return album.table()


def logits_of(confidences, predictions, classes=3):
    """Logits whose softmax gives a prediction this probability, and the others equal shares."""
    logits = torch.zeros(len(predictions), classes)
    share = torch.tensor(confidences)
    logits[torch.arange(len(predictions)), torch.tensor(predictions)] = torch.log(
        share * (classes - 1) / (1 - share)
    )
    return logits


def test_kinds_by_hand():
    labels = torch.tensor([0, 1, 2, 0, 1])
    clean = logits_of([0.9, 0.6, 0.7, 0.5, 0.8], [0, 1, 2, 0, 0])  # the last is wrong
    attacked = logits_of([0.5, 0.95, 0.6, 0.4, 0.9], [1, 0, 2, 0, 0])  # the first two fall
    reference = logits_of([0.4, 0.65, 0.7, 0.9, 0.8], [0, 1, 2, 0, 0])
    images = torch.rand(5, 1, 4, 4)
    album = Album(images, labels, torch.tensor([10, 11, 12, 13, 14]), (0.0, 1.0))
    table = fill(album, clean, {"pgd": attacked}, images, reference)
    shown = {kind: [row["sample_id"] for row in rows_of(table, kind)] for kind in KINDS}
    assert shown == {
        "confident_falls": [10, 11],
        "unsure_falls": [11, 10],
        "confident_errors": [11, 10],
        "unsure_stands": [13, 12],
        "above_reference": [10],
        "below_reference": [13, 11],
    }
    scores = {row["kind"]: row["score"] for row in table.to_pylist()[::-1]}
    assert scores["confident_falls"] == pytest.approx(0.9)
    assert scores["above_reference"] == pytest.approx(0.5)
    assert table.schema == thumbnails_schema()


def test_the_attack_that_turns_a_sample_is_shown():
    labels = torch.tensor([0, 1])
    images = torch.zeros(2, 1, 4, 4)
    album = Album(images, labels, torch.arange(2), (0.0, 1.0))
    clean = logits_of([0.9, 0.9], [0, 1])
    album.add_clean(clean)
    album.add_attack("weak", clean, images)
    # A margin of exactly 0 in favour of class 0: it turns the second sample and not the first.
    album.add_attack("tie", torch.zeros(2, 3), images + 0.5)
    album.add_attack("none", torch.zeros(2, 3).index_fill(1, torch.tensor([2]), -1.0), images)
    rows = rows_of(album.table(), "confident_falls")
    assert [(row["sample_id"], row["attack"]) for row in rows] == [(1, "tie")]
    assert (decoded(rows[0]["adversarial"]) == 128).all()


def test_pictures_are_the_images_in_eight_bits():
    images = torch.rand(1, 3, 6, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    adversarial = images.clone()
    adversarial[0, 0, 0, 0] += 0.01
    adversarial[0, 1, 2, 3] -= 0.02
    album = Album(images, torch.tensor([0]), torch.tensor([7]), (-1.0, 1.0))
    table = fill(album, logits_of([0.9], [0]), {"pgd": logits_of([0.9], [1])}, adversarial)
    row = table.to_pylist()[0]
    expected = (255 * (images[0] + 1) / 2).round().permute(1, 2, 0).numpy()
    assert (decoded(row["clean"]) == expected).all()
    difference = decoded(row["difference"])
    assert difference.shape == (6, 5, 3)
    assert difference[0, 0, 0] == pytest.approx(0.75 * 255, abs=1)
    assert difference[2, 3, 1] == 0
    assert (difference != 128).sum() == 2
    assert row["largest_difference"] == pytest.approx(0.02, rel=1e-4)


def test_an_image_that_nothing_changed_has_a_grey_difference():
    images = torch.rand(1, 1, 4, 4)
    album = Album(images, torch.tensor([0]), torch.tensor([0]), (0.0, 1.0))
    row = fill(album, logits_of([0.9], [0]), {"pgd": logits_of([0.9], [0])}, images).to_pylist()[0]
    assert row["kind"] == "unsure_stands"
    assert (decoded(row["difference"]) == 128).all()
    assert row["largest_difference"] == 0


@pytest.mark.parametrize(
    ("size", "expected"),
    [((160, 100), (80, 50)), ((81, 81), (80, 80)), ((80, 10), (80, 10)), ((400, 1), (80, 1))],
)
def test_large_images_become_small_ones(size, expected):
    images = torch.full((1, 3, *size), 0.25)
    album = Album(images, torch.tensor([0]), torch.tensor([0]), (0.0, 1.0))
    row = fill(album, logits_of([0.9], [0]), {"pgd": logits_of([0.9], [0])}, images).to_pylist()[0]
    assert max(expected) <= THUMBNAIL_SIZE
    for name in ("clean", "adversarial"):
        assert decoded(row[name]).shape == (*expected, 3)
        assert (decoded(row[name]) == 64).all()


@pytest.mark.parametrize("shape", [(4, 9), (4, 2, 5, 5), (4, 3, 5)])
def test_inputs_that_are_no_images_have_no_thumbnails(shape):
    images = torch.rand(shape)
    album = Album(images, torch.tensor([0, 1, 0, 1]), torch.arange(4), (0.0, 1.0))
    clean = logits_of([0.9] * 4, [0, 1, 0, 1])
    table = fill(album, clean, {"pgd": clean}, images)
    assert (len(table), table.schema) == (0, thumbnails_schema())


def test_an_album_without_attacks_is_empty():
    album = Album(torch.rand(1, 1, 4, 4), torch.tensor([0]), torch.tensor([0]), (0.0, 1.0))
    album.add_clean(logits_of([0.9], [0]))
    assert len(album.table()) == 0


@given(seed=st.integers(0, 10**6), n=st.integers(1, 40), cut=st.integers(1, 39))
def test_the_best_of_the_parts_are_the_best_of_all(seed, n, cut):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (n,), generator=generator)
    # Coarse values: ties must go to the first sample, whatever the parts.
    clean, attacked, reference = torch.randint(0, 4, (3, n, 3), generator=generator).float()
    images = torch.rand(n, 1, 2, 2, generator=generator)
    ids = torch.arange(n)

    def table(rows):
        album = Album(images[rows], labels[rows], ids[rows], (0.0, 1.0))
        return fill(album, clean[rows], {"pgd": attacked[rows]}, images[rows], reference[rows])

    parts = pa.concat_tables([table(slice(i, i + cut)) for i in range(0, n, cut)])
    best = parts.take(best_thumbnails(parts)).to_pandas()
    whole = table(slice(0, n)).to_pandas()
    for kind in KINDS:
        ids_of = [frame.loc[frame["kind"] == kind, "sample_id"] for frame in (best, whole)]
        assert sorted(ids_of[0]) == sorted(ids_of[1])
        assert len(ids_of[1]) <= THUMBNAILS_PER_KIND
