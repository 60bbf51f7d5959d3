from __future__ import annotations

import hashlib
import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from art_logits.data import Data, as_data, load_data


def numbers(labels: list[int], **options) -> Data:
    """Data whose sample i is the single pixel i / N."""
    pixels = torch.arange(len(labels)).view(-1, 1) / len(labels)
    return Data(lambda positions: pixels[positions], torch.tensor(labels), name="numbers", **options)


def save(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


def test_digits_have_a_fixed_stratified_split():
    test, train = load_data("digits"), load_data("digits", split="train")
    assert (len(test), len(train)) == (500, 1297)
    assert test.labels.bincount().min() >= 48
    assert test.labels.bincount().max() <= 52
    assert test.class_names == tuple("0123456789")
    assert test.default_eps == {"Linf": 0.1, "L2": 0.5, "L1": 2.0}
    inputs, _ = test.batch(slice(None))
    assert inputs.shape == (500, 1, 8, 8)
    assert inputs.dtype == torch.float32
    assert (float(inputs.min()), float(inputs.max())) == (0.0, 1.0)
    seen = {image.numpy().tobytes() for image in train.batch(slice(None))[0]}
    assert sum(image.numpy().tobytes() in seen for image in inputs) == 0
    # The bundled models were trained on the other part of exactly this split.
    assert test.fingerprint()[:16] == "85fed790c83d18ba"


def test_batches_follow_indices_and_order():
    data = numbers([0, 1, 2, 3])
    inputs, labels = data.batch([2, 0])
    assert inputs.flatten().tolist() == [0.5, 0.0]
    assert labels.tolist() == [2, 0]
    assert data.batch(np.array([3]))[1].tolist() == [3]
    assert [len(y) for _, y in data.batches(3)] == [3, 1]
    assert repr(data) == "Data('numbers', n=4, classes=?)"


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
def test_balanced_subsets_are_as_equal_as_possible(labels, draw):
    data = numbers(labels)
    n = draw.draw(st.integers(1, len(labels)))
    subset = data.subset(n, seed=draw.draw(st.integers(0, 5)))
    have, got = data.labels.bincount(minlength=5), subset.labels.bincount(minlength=5)
    assert int(got.sum()) == n
    assert bool((got <= have).all())
    # A class may have fewer than the largest by two only where it has no more.
    short = got < got.max() - 1
    assert bool((got[short] == have[short]).all())
    ids = subset.ids.tolist()
    assert ids == sorted(set(ids))
    assert subset.batch(slice(None))[0].flatten().tolist() == [float(data.batch([i])[0]) for i in ids]


def test_balanced_subsets_are_nested_seeded_and_free_of_order():
    labels = [i % 3 for i in range(60)]
    data = numbers(labels)
    small, large = set(data.subset(9).ids.tolist()), set(data.subset(20).ids.tolist())
    assert small < large
    assert set(data.subset(20, seed=1).ids.tolist()) != large
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    pixels = torch.arange(60).view(-1, 1) / 60
    shuffled = Data(lambda p: pixels[order][p], data.labels[order], name="shuffled", ids=order)
    assert set(shuffled.subset(20).ids.tolist()) == large


def test_first_takes_the_first_and_subsets_of_subsets_keep_ids():
    data = numbers([0, 0, 1, 1, 2, 2])
    assert data.subset(2, "first").ids.tolist() == [0, 1]
    twice = data.subset(3).subset(2, "first")
    assert twice.batch([1])[0].item() == pytest.approx(int(twice.ids[1]) / 6)


def test_subset_refuses_bad_arguments():
    data = numbers([0, 1])
    with pytest.raises(ValueError, match="n must be at most 2, the samples of numbers, got 3"):
        data.subset(3)
    with pytest.raises(ValueError, match="n must be at least 1"):
        data.subset(0)
    with pytest.raises(TypeError, match="n must be an integer"):
        data.subset(1.0)
    with pytest.raises(ValueError, match="sampling must be one of balanced, first"):
        data.subset(1, "balance")


def test_fingerprint_sees_pixels_labels_and_ids():
    pixels = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 1])
    changed = pixels.clone()
    changed[2, 3] = 0.5
    ids = torch.arange(3)
    base = Data(lambda p: pixels[p], labels, name="a")
    others = [
        Data(lambda p: changed[p], labels, name="a"),
        Data(lambda p: pixels[p], torch.tensor([0, 1, 0]), name="a"),
        Data(lambda p: pixels[p], labels, name="a", ids=ids + 1),
        Data(lambda p: pixels[p].view(-1, 2, 2), labels, name="a"),
        base.subset(2, "first"),
    ]
    assert len({data.fingerprint() for data in [base, *others]}) == 6
    assert Data(lambda p: pixels[p], labels, name="b").fingerprint() == base.fingerprint()


def test_a_fingerprint_does_not_depend_on_how_much_is_read_at_once():
    pixels = torch.rand(1100, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(1100, dtype=torch.int64)
    digest = hashlib.sha256(torch.arange(1100).numpy().tobytes() + labels.numpy().tobytes())
    for part in (pixels[:1024], pixels[1024:]):
        digest.update(b"torch.float32(2,)" + part.numpy().tobytes())
    assert Data(lambda p: pixels[p], labels, name="a").fingerprint() == digest.hexdigest()


def test_data_refuses_bad_labels_and_ids():
    for labels, error, message in [
        (torch.tensor([0.0, 1.0]), TypeError, "labels must be integer class indices, got torch.float32"),
        (torch.tensor([-1, 0]), ValueError, "labels must be >= 0, got -1"),
        (torch.eye(3, dtype=torch.int64), ValueError, "one-hot labels take argmax"),
        (torch.tensor([], dtype=torch.int64), ValueError, "at least one sample"),
        (torch.tensor([0, 2]), ValueError, r"labels must lie in \[0, 2\), one per class name, got 2"),
    ]:
        with pytest.raises(error, match=message):
            Data(lambda p: p, labels, name="bad", class_names=["a", "b"])
    with pytest.raises(ValueError, match="sample_ids must be distinct"):
        numbers([0, 1], ids=torch.tensor([5, 5]))
    with pytest.raises(ValueError, match=r"sample_ids must have shape \(2,\)"):
        numbers([0, 1]).with_ids([1])
    assert numbers([0, 1]).with_ids([7, 8]).ids.tolist() == [7, 8]


def test_batches_of_a_lazy_source_are_checked():
    bad = Data(lambda p: torch.full((len(p), 2), 2.0), torch.tensor([0]), name="bad")
    with pytest.raises(ValueError, match="inputs must lie within bounds"):
        bad.fingerprint()


@pytest.mark.parametrize("kind", ["uint8", "float64", "float16"])
@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW"])
def test_npz_in_every_layout_and_type(tmp_path, kind, layout):
    rng = np.random.default_rng(0)
    shape = {"NHW": (5, 6, 7), "NHWC": (5, 6, 7, 3), "NCHW": (5, 3, 6, 7)}[layout]
    x = rng.integers(0, 256, shape).astype(np.uint8)
    stored = x if kind == "uint8" else (x / 255).astype(kind)
    data = load_data(save(tmp_path / "set.npz", x=stored, y=np.arange(5, dtype=np.uint8)))
    inputs, labels = data.batch([4, 1])
    expected = x[[4, 1]].astype(np.float32) / 255
    if layout == "NHW":
        expected = expected[:, None]
    elif layout == "NHWC":
        expected = expected.transpose(0, 3, 1, 2)
    assert inputs.dtype == torch.float32
    assert inputs.shape == expected.shape
    assert np.abs(inputs.numpy() - expected).max() < (1e-3 if kind == "float16" else 1e-7)
    assert labels.tolist() == [4, 1]
    assert data.name == "set"
    assert data.default_eps["Linf"] == (0.3 if layout == "NHW" else 8 / 255)


def test_npz_with_keras_keys_chooses_the_split(tmp_path):
    path = save(
        tmp_path / "keras.npz",
        x_train=np.zeros((3, 8, 8), np.uint8),
        y_train=np.zeros((3, 1), np.int64),
        x_test=np.zeros((2, 8, 8), np.uint8),
        y_test=np.zeros(2, np.int64),
    )
    assert len(load_data(path)) == 2
    assert len(load_data(path, split="train")) == 3
    named = save(
        tmp_path / "named.npz", x=np.zeros((1, 8, 8)), y=np.zeros(1, int), class_names=["cat", "dog"]
    )
    assert load_data(named, split="train").class_names == ("cat", "dog")


X, Y = np.zeros((2, 8, 8)), np.zeros(2, int)


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({"x": X, "y": Y[:1]}, ValueError, "same length, got 2 and 1"),
        ({"x": X, "y": Y + 0.5}, TypeError, "labels must be integer class indices, got float64"),
        ({"x": X, "y": Y - 1}, ValueError, "labels must be >= 0, got -1"),
        ({"x": X, "y": Y + 3, "class_names": ["a"]}, ValueError, r"labels must lie in \[0, 1\)"),
        ({"x": X[:0], "y": Y[:0]}, ValueError, "at least one sample"),
        ({"x": X + np.nan, "y": Y}, ValueError, "inputs must not contain NaN"),
        ({"x": X + 2, "y": Y}, ValueError, r"floats in \[0, 1\] or uint8, got \[2, 2\]"),
        ({"x": X - 1e-3, "y": Y}, ValueError, "undo the normalisation"),
        ({"x": X.astype(np.int32), "y": Y}, TypeError, "must be uint8 or floats"),
        ({"x": X.reshape(2, 64), "y": Y}, ValueError, "reshape flat images first"),
        ({"x": np.zeros((2, 3, 8, 3)), "y": Y}, ValueError, "both could be"),
        ({"x": np.zeros((2, 8, 8, 8)), "y": Y}, ValueError, "neither can be"),
        ({"images": X, "y": Y}, ValueError, r"must hold 'x' and 'y', .* got 'images', 'y'"),
        (
            {"x": X, "y": Y, "class_names": np.array(["a"], dtype=object)},
            ValueError,
            "pickled Python objects",
        ),
        ({"x": np.array([None, None]), "y": Y}, ValueError, "pickled Python objects"),
    ],
)
def test_bad_npz_files(tmp_path, arrays, error, message):
    with pytest.raises(error, match=message):
        load_data(save(tmp_path / "bad.npz", **arrays))


@pytest.mark.parametrize("save_array", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_arrays_of_any_storage_are_the_same(tmp_path, save_array, order):
    x = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    stored = np.asarray(x, order=order)
    # An odd name before it moves the array to an address that no type likes.
    save_array(tmp_path / "set.npz", odd=np.zeros(3, np.uint8), x=stored / np.float32(255), y=np.arange(5))
    inputs, _ = load_data(tmp_path / "set.npz").batch([3, 0])
    assert np.array_equal(inputs.numpy(), x[[3, 0]].transpose(0, 3, 1, 2) / np.float32(255))


def test_the_pixels_of_an_npz_stay_in_the_file(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (3000, 50, 50, 3), dtype=np.uint8)
    path = save(tmp_path / "large.npz", x=x, y=np.arange(3000) % 7)
    load_data(path)  # what is imported on first use is not counted
    tracemalloc.start()
    try:
        data = load_data(path)
        data.batch([5])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes / 4
    # The labels' class count and the pixels are those of the file all the same.
    assert np.array_equal(data.batch([2999])[0][0].numpy() * 255, x[2999].transpose(2, 0, 1))


def test_an_npz_whose_header_claims_more_than_it_holds(tmp_path):
    """Mapped as it claims, it would show the bytes of the next array."""
    x, claim = io.BytesIO(), io.BytesIO()
    np.save(x, np.zeros((2, 8, 8), np.uint8))
    np.save(claim, np.zeros((3, 8, 8), np.uint8))
    y = io.BytesIO()
    np.save(y, np.zeros(3, int))
    with zipfile.ZipFile(tmp_path / "claim.npz", "w") as archive:
        archive.writestr("x.npy", claim.getvalue()[:128] + x.getvalue()[128:])
        archive.writestr("y.npy", y.getvalue())
    with pytest.raises(ValueError, match=r"claim.npz' is no complete .npz archive"):
        load_data(tmp_path / "claim.npz")


@pytest.mark.parametrize("member", ["x.npy", "x"])
def test_other_versions_of_the_array_format_are_left_to_numpy(tmp_path, member):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.full((2, 8, 8), 51, np.uint8), version=(3, 0))
    y = io.BytesIO()
    np.save(y, np.zeros(2, int))
    with zipfile.ZipFile(tmp_path / "three.npz", "w") as archive:
        archive.writestr(member, file.getvalue())
        archive.writestr("y", y.getvalue())
    assert float(load_data(tmp_path / "three.npz").batch([1])[0].max()) == pytest.approx(0.2)


def test_npz_files_that_are_none(tmp_path):
    whole = save(tmp_path / "whole.npz", x=np.random.default_rng(0).random((9, 8, 8)), y=np.zeros(9, int))
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"is no complete .npz archive"):
        load_data(cut)
    damaged = tmp_path / "damaged.npz"
    content = bytearray(whole.read_bytes())
    content[300:400] = bytes(100)
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=r"is no complete .npz archive"):
        load_data(damaged)
    encrypted = bytearray(whole.read_bytes())
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1  # as the archive's directory has it
    (tmp_path / "encrypted.npz").write_bytes(encrypted)
    with pytest.raises(ValueError, match=r"is no complete .npz archive \(File 'x.npy' is encrypted"):
        load_data(tmp_path / "encrypted.npz")
    with (tmp_path / "plain.npz").open("wb") as file:
        np.save(file, X)
    with pytest.raises(ValueError, match=r"is no .npz archive: save it with numpy.savez"):
        load_data(tmp_path / "plain.npz")
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*none.npz'"):
        load_data(tmp_path / "none.npz")


def test_unknown_specs():
    with pytest.raises(
        ValueError, match=r"data must be one of digits, mnist, .*, an existing folder .*did you mean digits"
    ):
        load_data("digit")
    with pytest.raises(FileNotFoundError, match="data: there is no folder 'nowhere/cats'"):
        load_data("nowhere/cats")
    with pytest.raises(ValueError, match="split must be one of test, train"):
        load_data("digits", split="valid")


def test_pairs_have_ids_that_do_not_depend_on_the_order():
    x = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
    x[4] = x[1]  # a copy, with the same label
    y = torch.tensor([0, 1, 0, 1, 1, 0])
    order = torch.tensor([5, 4, 3, 2, 1, 0])
    one, two = as_data((x, y)), as_data((x[order].numpy(), y[order].numpy()))
    assert sorted(one.ids.tolist()) == sorted(two.ids.tolist())
    assert len(set(one.ids.tolist())) == 6
    ids = dict(zip(one.ids.tolist(), x.tolist(), strict=True))
    assert all(
        ids[i] == row for i, row in zip(two.ids.tolist(), two.batch(slice(None))[0].tolist(), strict=True)
    )


def test_pairs_of_bytes_and_of_doubles():
    assert (
        as_data((torch.full((1, 1, 2, 2), 255, dtype=torch.uint8), torch.tensor([0]))).batch([0])[0].max()
        == 1
    )
    assert as_data((torch.rand(1, 2).double(), torch.tensor([0]))).batch([0])[0].dtype == torch.float64
    wide = as_data((torch.full((1, 2), -1.0), torch.tensor([0])), bounds=(-1.0, 1.0))
    assert wide.bounds == (-1.0, 1.0)
    assert as_data(wide) is wide


def test_datasets_and_loaders_are_read_in_order():
    x, y = torch.rand(5, 1, 4, 4), torch.tensor([3, 1, 0, 2, 1])
    for data in (TensorDataset(x, y), DataLoader(TensorDataset(x, y), batch_size=2, shuffle=True)):
        read = as_data(data)
        assert read.labels.tolist() == y.tolist()
        assert read.ids.tolist() == [0, 1, 2, 3, 4]
        assert torch.equal(read.batch([4, 0])[0], x[[4, 0]])
        assert read.default_eps["Linf"] == 0.3


class Items:
    """A map-style dataset over given items."""

    def __init__(self, *items, classes=None):
        self.items = items
        if classes:
            self.classes = classes

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1), 0


def test_dataset_class_names_come_along():
    assert as_data(Items((torch.zeros(3, 4, 4), np.int64(1)), classes=["cat", "dog"])).class_names == (
        "cat",
        "dog",
    )


def test_in_memory_the_source_is_asked_once():
    asked = []

    def source(rows):
        asked.append(len(rows))
        return rows.float().unsqueeze(1) / 10

    part = Data(source, torch.tensor([0, 1, 0, 1]), name="four", ids=torch.tensor([7, 8, 9, 6])).subset(3)
    held = part.in_memory()
    assert asked == [3]
    assert held.ids.tolist() == part.ids.tolist()
    assert torch.equal(held.batch([2, 0])[0], part.batch([2, 0])[0])
    assert held.fingerprint() == part.fingerprint()
    assert asked[:2] == [3, 2]


def test_what_a_source_gives_is_looked_at_unless_it_is_known():
    labels = torch.tensor([0, 1, 0])
    for checked in (False, True):
        data = Data(lambda rows: torch.full((len(rows), 1), 2.0), labels, name="two", checked=checked)
        for part in (data, data.subset(2), data.with_ids([5, 6, 7])):
            if checked:
                assert part.batch([0])[0].tolist() == [[2.0]]
            else:
                with pytest.raises(ValueError, match="inputs must lie within bounds"):
                    part.batch([0])


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((torch.rand(2, 3), torch.tensor([0])), ValueError, "same length, got 2 and 1"),
        ((torch.rand(2, 3), torch.rand(2)), TypeError, "labels must be integer"),
        ((torch.rand(2, 3) + 1, torch.tensor([0, 1])), ValueError, "inputs must lie within bounds"),
        ((torch.rand(2, 3) * torch.nan, torch.tensor([0, 1])), ValueError, "inputs must not contain NaN"),
        ((torch.rand(0, 3), torch.tensor([], dtype=torch.int64)), ValueError, "non-empty batch"),
        (torch.rand(2, 3), TypeError, r"data must be a Data, .* got Tensor"),
        (DataLoader(Stream()), TypeError, "map-style Dataset"),
        (3, TypeError, "got int"),
        (Items(), ValueError, "at least one sample"),
        (Items(torch.zeros(3)), TypeError, r"data must give \(input, label\) per sample, got Tensor at 0"),
        (Items(("picture", 0)), TypeError, "add a transform such as torchvision"),
        (Items((torch.zeros(1), 0.5)), TypeError, "data must give integer labels, got 0.5 at 0"),
    ],
)
def test_as_data_refuses(data, error, message):
    with pytest.raises(error, match=message):
        as_data(data)
