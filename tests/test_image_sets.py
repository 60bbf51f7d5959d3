"""Image folders and zips of them. The files are made here; what they hold is known pixel by pixel."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from art_logits.data import load_data
from art_logits.image_sets import Fit

SHAPE = (6, 8, 3)


def pixels(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(array: np.ndarray, kind: str = "png", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def write_folder(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_zip(path: Path, files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


WRITERS = {
    "folder": lambda tmp_path, files: write_folder(tmp_path / "set", files),
    "zip": lambda tmp_path, files: write_zip(tmp_path / "set.zip", files),
}


@pytest.fixture(params=list(WRITERS))
def write(request, tmp_path):
    """``write(files)``: them as a folder, or as a zip."""
    return lambda files: WRITERS[request.param](tmp_path, files)


NAMES = ["dog/b.png", "cat/10.png", "cat/9.png", "dog/a.png"]
ORDER = [1, 2, 3, 0]  # cat/10, cat/9, dog/a, dog/b


def test_classes_and_images_are_in_alphabetical_order(write):
    data = load_data(write({name: encoded(pixels(i)) for i, name in enumerate(NAMES)}))
    assert (data.name, len(data)) == ("set", 4)
    assert data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.ids.tolist() == [0, 1, 2, 3]
    assert data.default_eps["Linf"] == 8 / 255
    inputs, labels = data.batch([3, 0])
    expected = np.stack([pixels(0), pixels(1)]).astype(np.float32).transpose(0, 3, 1, 2) / 255
    assert inputs.dtype == torch.float32
    assert np.array_equal(inputs.numpy(), expected)
    assert labels.tolist() == [1, 0]


def test_a_folder_its_zip_and_its_arrays_are_the_same_data(tmp_path):
    files = {name: encoded(pixels(i)) for i, name in enumerate(NAMES)}
    np.savez(tmp_path / "set.npz", x=np.stack([pixels(i) for i in ORDER]), y=[0, 0, 1, 1])
    paths = [
        write_folder(tmp_path / "set", files),
        write_zip(tmp_path / "deflated.zip", files),
        write_zip(tmp_path / "stored.zip", {f"set/{k}": v for k, v in files.items()}, zipfile.ZIP_STORED),
        tmp_path / "set.npz",
    ]
    assert len({load_data(path).fingerprint() for path in paths}) == 1
    changed = {**files, "cat/9.png": encoded(pixels(7))}
    assert (
        load_data(write_zip(tmp_path / "changed.zip", changed)).fingerprint()
        != load_data(paths[0]).fingerprint()
    )


@pytest.mark.parametrize("around", ["", "cifar/", "a/b/"])
@pytest.mark.parametrize("test", ["test", "val", "validation"])
def test_split_folders(write, around, test):
    files = {
        f"{around}train/cat/0.png": encoded(pixels(0)),
        f"{around}train/dog/0.png": encoded(pixels(1)),
        f"{around}{test}/dog/0.png": encoded(pixels(2)),
        f"{around}{test}/dog/deep/1.png": encoded(pixels(3)),
        "README.txt": b"not an image",
    }
    path = write(files)
    train, held_out = load_data(path, split="train"), load_data(path)
    assert train.labels.tolist() == [0, 1]
    # The test split has no cat; its dogs are class 1 all the same.
    assert held_out.labels.tolist() == [1, 1]
    assert held_out.class_names == train.class_names == ("cat", "dog")
    assert np.array_equal(held_out.batch([1])[0][0].numpy() * 255, pixels(3).transpose(2, 0, 1))


def test_test_goes_before_val_and_without_splits_there_is_one(write):
    both = write(
        {
            "val/a/0.png": encoded(pixels(0)),
            "test/a/0.png": encoded(pixels(1)),
            "test/a/1.png": encoded(pixels(1)),
        }
    )
    assert len(load_data(both)) == 2


def test_a_class_may_be_called_train(write):
    path = write({f"{name}/0.png": encoded(pixels(0)) for name in ("car", "train", "plane")})
    for split in ("test", "train"):
        assert load_data(path, split=split).class_names == ("car", "plane", "train")


def test_what_is_no_image_is_ignored(write):
    image = encoded(pixels(0))
    files = {
        "a/0.PNG": image,
        "a/notes.txt": b"",
        "a/._0.png": b"macOS",
        "a/.DS_Store": b"",
        "__MACOSX/a/0.png": b"",
        ".git/x/0.png": b"",
        "labels.csv": b"a",
    }
    assert len(load_data(write(files))) == 1


def test_only_the_images_of_a_batch_are_read(write, monkeypatch):
    path = write({f"{c}/{i}.png": encoded(pixels(i)) for c in "ab" for i in range(20)})
    opened = []
    image_open = Image.open
    monkeypatch.setattr(Image, "open", lambda file: opened.append(file) or image_open(file))
    data = load_data(path)
    assert len(opened) == 1  # in colour: it settles the channels
    data.subset(4, "first").batch([2])
    assert len(opened) == 3  # this image, and the first for its size


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_gray_images_have_one_channel(write, mode):
    array = pixels(0, (5, 7))
    image = Image.fromarray(array).convert(mode)
    file = io.BytesIO()
    image.save(file, "png")
    data = load_data(write({"a/0.png": file.getvalue(), "b/0.png": file.getvalue()}))
    inputs, _ = data.batch([0])
    assert inputs.shape == (1, 1, 5, 7)
    assert np.array_equal(inputs[0, 0].numpy() * 255, np.asarray(image.convert("L")))
    assert data.default_eps["Linf"] == 0.3


def test_a_gray_image_among_colours_gets_three_equal_channels(write):
    gray = pixels(0, SHAPE[:2])
    data = load_data(write({"a/0.png": encoded(gray), "b/0.png": encoded(pixels(1))}))
    inputs, _ = data.batch([0, 1])
    assert np.array_equal(inputs[0].numpy() * 255, np.stack([gray] * 3))


def test_palette_and_transparent_images_become_colours(write):
    rgb = pixels(0)
    transparent = np.concatenate([rgb, pixels(1, (*SHAPE[:2], 1))], axis=2)
    indices, colours = pixels(2, SHAPE[:2]) % 5, pixels(3, (5, 3))
    picture = Image.fromarray(indices)
    picture.putpalette(colours.tobytes())
    file = io.BytesIO()
    picture.save(file, "png")
    inputs, _ = load_data(write({"a/0.png": encoded(transparent), "a/1.png": file.getvalue()})).batch([0, 1])
    assert np.array_equal(inputs[0].numpy() * 255, rgb.transpose(2, 0, 1))
    assert np.array_equal(inputs[1].numpy() * 255, colours[indices].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("kind", "suffix"), [("jpeg", "jpg"), ("jpeg", "JPEG"), ("bmp", "bmp"), ("tiff", "tif"), ("ppm", "ppm")]
)
def test_other_formats_are_decoded_as_pillow_does(write, kind, suffix):
    content = encoded(pixels(3), kind)
    inputs, _ = load_data(write({f"a/0.{suffix}": content})).batch([0])
    expected = np.asarray(Image.open(io.BytesIO(content)))
    assert np.array_equal(inputs[0].numpy() * 255, expected.transpose(2, 0, 1))
    if kind != "jpeg":
        assert np.array_equal(expected, pixels(3))


@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    resize=st.none() | st.integers(1, 16),
    crop=st.none() | st.integers(1, 16),
)
def test_a_fit_makes_squares_or_says_why_not(height, width, resize, crop):
    if resize and crop and crop > resize:
        with pytest.raises(ValueError, match="crop must be at most resize"):
            Fit(resize, crop)
        return
    fit, image = Fit(resize, crop), Image.fromarray(pixels(0, (height, width, 3)))
    if not resize and not crop:
        assert fit(image) is image
    elif not resize and crop > min(height, width):
        with pytest.raises(ValueError, match=rf"it is {height}x{width}, smaller than crop={crop}"):
            fit(image)
    else:
        assert fit(image).size == (crop or resize, crop or resize)


def test_a_crop_is_the_middle_and_a_resize_keeps_the_shape_of_things():
    array = pixels(0, (10, 12, 3))
    assert np.array_equal(np.asarray(Fit(crop=4)(Image.fromarray(array))), array[3:7, 4:8])
    # The left half is black and the right half white: also after scaling, with nothing squeezed.
    halves = np.zeros((40, 80, 3), np.uint8)
    halves[:, 40:] = 255
    small = np.asarray(Fit(resize=10)(Image.fromarray(halves)))
    assert small.shape == (10, 10, 3)
    assert small[:, :4].max() == 0
    assert small[:, 6:].min() == 255


def test_unequal_sizes_need_a_word(write):
    path = write({"a/0.png": encoded(pixels(0)), "a/1.png": encoded(pixels(1, (9, 6, 3)))})
    data = load_data(path)
    assert data.batch([0])[0].shape == (1, 3, 6, 8)
    for indices in ([0, 1], [1]):
        with pytest.raises(
            ValueError, match=r"image 'a/1.png' has 9x6 pixels and 'a/0.png' has 6x8: say by resize and crop"
        ):
            data.batch(indices)
    assert load_data(path, resize=5).batch([0, 1])[0].shape == (2, 3, 5, 5)
    assert load_data(path, resize=5, crop=4).batch([0, 1])[0].shape == (2, 3, 4, 4)
    cropped, _ = load_data(path, crop=6).batch([0, 1])
    assert np.array_equal(cropped[0].numpy() * 255, pixels(0)[:, 1:7].transpose(2, 0, 1))
    with pytest.raises(ValueError, match=r"image 'a/0.png': it is 6x8, smaller than crop=7: enlarge it"):
        load_data(path, crop=7).batch([0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"resize": 0}, ValueError, "resize must be at least 1, got 0"),
        ({"crop": -1}, ValueError, "crop must be at least 1, got -1"),
        ({"crop": 2.5}, TypeError, "crop must be an integer, got 2.5"),
        ({"resize": 4, "crop": 5}, ValueError, "crop must be at most resize, 4, got 5"),
        ({"download": True}, ValueError, "download is for mnist, .*, not for data"),
        ({"data_dir": "x"}, ValueError, "data_dir is for mnist, .*, not for data"),
    ],
)
def test_bad_options(write, options, error, message):
    path = write({"a/0.png": encoded(pixels(0))})
    with pytest.raises(error, match=message):
        load_data(path, **options)


SIXTEEN_BITS = encoded(np.full((6, 8), 999, np.uint16))
HTML = b"<!DOCTYPE html><html><body>quota exceeded</body></html>"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HTML, r"image 'b/1.png' cannot be read \(no known image format\): replace or remove it"),
        (b"", "image 'b/1.png' cannot be read"),
        (encoded(pixels(0))[:90], "image 'b/1.png' cannot be read"),
        (encoded(pixels(0), "jpeg")[:-200], "image 'b/1.png' cannot be read"),
        (SIXTEEN_BITS, "image 'b/1.png' must have 8 bits per channel, got mode I;16: convert it first"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(write, content, message):
    path = write({"a/0.png": encoded(pixels(0)), "b/0.png": encoded(pixels(0)), "b/1.png": content})
    data = load_data(path)
    assert len(data.batch([0, 1])[0]) == 2
    with pytest.raises(ValueError, match=message):
        data.batch([2])


def test_an_image_that_would_fill_the_memory_is_named(write, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"image 'a/0.png' cannot be read \(Image size \(48 pixels\)"):
        load_data(write({"a/0.png": encoded(pixels(0))}))


def test_colour_among_gray_is_refused(write):
    gray = encoded(pixels(0, SHAPE[:2]))
    data = load_data(write({"a/0.png": gray, "b/0.png": gray, "b/1.png": encoded(pixels(0))}))
    with pytest.raises(ValueError, match=r"image 'b/1.png' is in colour and others are gray"):
        data.batch([2])


IMAGE = encoded(pixels(0))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/0.txt": b"", "0.npy": b""}, r"holds no images \(.jpg, .jpeg, .png"),
        ({"0.png": IMAGE, "a/0.png": IMAGE}, "'0.png' lies in none of them: the layout is <class>/<image>"),
        ({"train/a/0.png": IMAGE}, "has no test split, only train: choose it by split"),
        ({"test/a/0.png": IMAGE, "extra/0.png": IMAGE}, "got both: test beside extra"),
        (
            {"a/0.png": IMAGE, "b/0.png": IMAGE, "docs/x.txt": b"", "docs/x/y.txt": b""},
            "no image in its folder 'docs",
        ),
    ],
)
def test_bad_layouts(write, files, message):
    path = write(files)
    if any(name.startswith("docs") for name in files) and path.suffix == ".zip":
        with zipfile.ZipFile(path, "a") as archive:
            archive.mkdir("docs") if hasattr(archive, "mkdir") else archive.writestr("docs/", b"")
    with pytest.raises(ValueError, match=message):
        load_data(path)


@pytest.mark.parametrize("name", ["../a/0.png", "a/../../0.png", "/a/0.png", "..\\a\\0.png", "C:/a/0.png"])
def test_zip_members_that_leave_the_folder(tmp_path, name):
    path = write_zip(tmp_path / "bad.zip", {"a/0.png": IMAGE, name: IMAGE})
    with pytest.raises(ValueError, match=r"bad.zip' holds the member .* which leaves the archive's folder"):
        load_data(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.zip"]


def test_zips_that_are_none(tmp_path):
    whole = write_zip(tmp_path / "whole.zip", {"a/0.png": IMAGE, "a/1.png": IMAGE}, zipfile.ZIP_STORED)
    content = bytearray(whole.read_bytes())
    for name, part in {"cut": content[:-30], "page": HTML}.items():
        (tmp_path / f"{name}.zip").write_bytes(part)
        with pytest.raises(ValueError, match=rf"{name}.zip' is no complete .zip archive"):
            load_data(tmp_path / f"{name}.zip")
    # A flipped bit in the second image: its checksum tells.
    second = content.rindex(b"IDAT", 0, content.index(b"PK\x01\x02"))
    content[second + 8] ^= 1
    (tmp_path / "flipped.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"image 'a/1.png' cannot be read \(Bad CRC-32"):
        load_data(tmp_path / "flipped.zip").batch([0, 1])
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*none.zip'"):
        load_data(tmp_path / "none.zip", resize=4)


def test_windows_zips_and_a_member_without_a_name(tmp_path):
    path = write_zip(tmp_path / "w.zip", {"set\\b\\0.png": IMAGE, "set\\a\\0.png": IMAGE, ".": b""})
    data = load_data(path)
    assert data.class_names == ("a", "b")
    assert data.batch([0, 1])[0].shape == (2, 3, 6, 8)


def test_the_working_directory_and_none_at_all(tmp_path, monkeypatch):
    monkeypatch.chdir(write_folder(tmp_path / "here", {"a/0.png": IMAGE}))
    assert load_data(".").name == "here"
    with pytest.raises(ValueError, match="data must be one of digits, mnist"):
        load_data("")
