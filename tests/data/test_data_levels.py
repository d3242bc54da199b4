"""Arrays of other types than uint8, levels that no value has, and labels that nobody reads."""

import logging
import re

import numpy as np
import numpy as numpy  # as messages call it
import pytest
from PIL import Image

from jvdm.core.errors import UserError
from jvdm.data import load, load_examples
from jvdm.data.levels import as_levels


def levels(high=256, count=20, seed=0):
    return np.random.default_rng(seed).integers(0, high, (count, 4, 5, 1), dtype=np.uint8)


def write(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def warnings(said):
    return [record.getMessage() for record in said.records if record.levelno == logging.WARNING]


WHOLE = ["int8", "int16", "int32", "int64", "uint16", "uint64", ">i4", "float16", "float32", "float64", ">f8"]


@pytest.mark.parametrize("dtype", WHOLE)
def test_whole_numbers_of_any_type_are_taken(tmp_path, said, dtype):
    images = levels(100)
    source = write(tmp_path / "a.npz", train_images=images.astype(dtype), test_images=images[:3])
    dataset = load(source, num_levels=100)
    assert dataset.train.dtype == np.uint8
    np.testing.assert_array_equal(dataset.train, images)
    line = (
        f"{tmp_path}/a.npz: train_images is of dtype {np.dtype(dtype)} and holds whole numbers from 0 to 99"
    )
    assert [message for message in said.messages if "dtype" in message] == [f"{line}; it is taken as uint8"]
    scored = load_examples(source, "train", num_levels=100)
    assert scored.fingerprint == dataset.fingerprint("train")


def test_other_arrays_than_those_that_are_named(tmp_path):
    """An only array that is divided, and one that is scored whole."""
    images = levels()
    source = write(tmp_path / "a.npz", x=images.astype(float), y=np.zeros(20))
    dataset = load(source)
    assert len(dataset.train) == 18 and dataset.train.dtype == np.uint8
    own = load_examples(source, "test", num_levels=256, test_fraction=0.1)
    assert own.fingerprint == dataset.fingerprint("test")
    scored = load_examples(write(tmp_path / "b.npz", x=images.astype(float)), "test", num_levels=256)
    np.testing.assert_array_equal(scored.images, images)


def test_booleans_are_two_levels(tmp_path, said):
    images = levels(2).astype(bool)
    source = write(tmp_path / "a.npz", train_images=images, test_images=images[:3])
    dataset = load(source, num_levels=2)
    assert dataset.train.dtype == np.uint8
    np.testing.assert_array_equal(dataset.train, images)
    assert sum("of dtype bool" in message for message in said.messages) == 2
    for num_levels in (0, 256, 3):
        with pytest.raises(
            UserError, match="train_images is of dtype bool, .* config.data.num_levels=2, not"
        ):
            load(source, num_levels=num_levels)


FRACTIONS = {
    "0 to 1": (lambda x: x / 255, 256, "numpy.round(255 * images).astype(numpy.uint8)"),
    "0 to 1 in single precision": (lambda x: x / np.float32(255), 256, "numpy.round(255 * images)"),
    "-1 to 1": (lambda x: x / 127.5 - 1, 256, "numpy.round(127.5 * (images + 1)).astype(numpy.uint8)"),
    "0 to 255": (lambda x: x + 0.25 * (x < 255), 256, "numpy.round(images).astype(numpy.uint8)"),
    "16 levels": (lambda x: x / 15, 16, "numpy.round(15 * images).astype(numpy.uint8)"),
}


@pytest.mark.parametrize("case", FRACTIONS)
def test_fractions_are_refused_with_what_rounds_them(tmp_path, case):
    change, num_levels, remedy = FRACTIONS[case]
    wanted = levels(num_levels)
    wanted.flat[:2] = 0, num_levels - 1
    source = write(tmp_path / "a.npz", train_images=change(wanted), test_images=wanted)
    with pytest.raises(UserError, match="train_images is of dtype float.* with fractions") as error:
        load(source, num_levels=num_levels)
    assert "\n" not in str(error.value) and remedy in str(error.value)
    # The message's own line makes them right.
    (code,) = re.findall(r"numpy\.round.*", str(error.value))
    images = eval(code, {"numpy": numpy, "images": change(wanted)})
    np.testing.assert_array_equal(images, wanted)
    right = write(tmp_path / "b.npz", train_images=images, test_images=wanted)
    assert load(right, num_levels=num_levels).train.dtype == np.uint8


NO_LEVELS = {
    "standardised": (np.array([-2.1, 2.6]), r"with fractions, from -2.1 to 2.6; .* from 0 to 255, as uint8$"),
    "too high": (
        np.array([0, 256]),
        "holds the value 256; .*num_levels=256 the lowest is 0 and the highest is 255",
    ),
    "negative": (np.array([-1, 3]), "holds the value -1; .* the lowest is 0"),
    "negative floats": (np.array([-1.0, 1.0]), "holds the value -1; "),
    "huge": (np.array([2**63 + 5], np.uint64), "holds the value 922337203685477"),
    "nan": (np.array([np.nan, 1.0]), "not finite; it must hold 0 to 255"),
    "inf": (np.array([np.inf, 1.0]), "not finite"),
    "complex": (np.array([1j]), "of dtype complex128; it must be uint8"),
    "text": (np.array(["a"]), "of dtype <U1; it must be uint8"),
    "durations": (np.array([1], "m8[s]"), "it must be uint8"),
    "dates": (np.array([1], "M8[s]"), "it must be uint8"),
}


@pytest.mark.parametrize("case", NO_LEVELS)
def test_values_that_are_no_levels(case):
    array, message = NO_LEVELS[case]
    with pytest.raises(UserError, match=f"^file: x .*{message}"):
        as_levels(array, "x", 256, "file")


def test_arrays_without_values():
    """What is wrong with their shape is said by others."""
    assert as_levels(np.zeros((0, 3)), "x", 256, "file").shape == (0, 3)
    assert as_levels(np.array(3.0), "x", 256, "file").dtype == np.uint8


MEANT = {16: 16, 2: 2, 1: 2, 40: 40, 64: 64}


@pytest.mark.parametrize("high", MEANT)
def test_values_far_below_the_levels(tmp_path, said, high):
    images = levels(high)
    images.flat[0] = high - 1
    source = write(tmp_path / "a.npz", train_images=images, test_images=images)
    load(source)
    assert warnings(said) == [
        f"WARNING: {tmp_path}/a.npz: the largest value is {high - 1}: is "
        f"config.data.num_levels={MEANT[high]} meant?"
    ]
    said.clear()
    load(source, num_levels=MEANT[high])
    assert not warnings(said)


@pytest.mark.parametrize(("high", "num_levels"), [(65, 256), (256, 256), (5, 16), (1, 2), (2, 3), (2, 4)])
def test_nothing_is_said_of_levels_that_may_be_right(tmp_path, said, high, num_levels):
    images = levels(high)
    images.flat[0] = high - 1
    load(write(tmp_path / "a.npz", train_images=images, test_images=images), num_levels=num_levels)
    assert not warnings(said)


def test_levels_of_the_test_split_count_too(tmp_path, said):
    """Where one split was scaled and the other was not, both numbers are said."""
    load(write(tmp_path / "a.npz", train_images=levels(2), test_images=levels(200)))
    (warning,) = warnings(said)
    assert "the largest value is 1, and that of the test images is 19" in warning
    assert re.search(r"num_levels=(19\d|200) meant", warning)


def test_levels_of_a_folder(tmp_path, said):
    for i, image in enumerate(levels(8)):
        Image.fromarray(image.squeeze(-1)).save(tmp_path / f"{i:02d}.png")
    load(f"folder:{tmp_path}")
    assert warnings(said) == [
        f"WARNING: {tmp_path}: the largest value is 7: is config.data.num_levels=8 meant?"
    ]
    said.clear()
    load_examples(f"folder:{tmp_path}", "test", num_levels=256)
    assert not warnings(said), "a few images to score may be dark"


LABELS = ["labels", "y", "train_labels", "test_labels", "y_train", "y_test"]


def test_labels_are_ignored_with_a_word(tmp_path, said):
    images = levels()
    more = {name: np.zeros(20, int) for name in LABELS}
    source = write(tmp_path / "a.npz", train_images=images, test_images=images, **more)
    dataset = load(source)
    assert dataset.train_conditioning is None
    (warning,) = warnings(said)
    assert warning.startswith(f"WARNING: {tmp_path}/a.npz: {', '.join(sorted(LABELS))} will be ignored; ")
    said.clear()
    load(write(tmp_path / "b.npz", train_images=images, test_images=images, ids=np.zeros(20)))
    assert not warnings(said)


def test_channels_first_stay_refused_whatever_their_type(tmp_path):
    images = np.zeros((20, 3, 8, 8))
    with pytest.raises(UserError, match=r"looks like \[N, C, H, W\].*numpy.moveaxis"):
        load(write(tmp_path / "a.npz", train_images=images, test_images=images))
