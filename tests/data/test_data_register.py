"""Sources of data outside jvdm."""

import dataclasses
import logging
import sys
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from jvdm import data
from jvdm.core.errors import UserError
from jvdm.core.records import Conditioning
from jvdm.data import sources

IMAGES = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 1) % 4
DATASET = data.Dataset(name="mine", version="1", num_levels=4, train=IMAGES, test=IMAGES[:1])


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(sources, "_REGISTERED", {})
    data.register("mine", "four levels")(lambda: DATASET)


def test_it_is_a_source_like_the_others():
    assert data.load("mine") is DATASET
    assert data.load("mine", num_levels=4) is DATASET
    assert data.data_spec("mine") == ((4, 4, 1), 4)
    assert data.load_examples("mine", "test", num_levels=4).images.shape == (1, 4, 4, 1)
    assert "four levels" in data.describe_sources()


def test_mistakes():
    with pytest.raises(UserError, match="'mine' has 4 levels, not 256: config.data.num_levels=0 or 4"):
        data.load("mine", num_levels=256)
    with pytest.raises(UserError, match="did you mean 'mine'"):
        data.load("mines")
    with pytest.raises(UserError, match="unknown data source 'mine:x'"):
        data.load("mine:x")
    for name in ("mine", "digits", "cifar10", "a:b"):
        with pytest.raises(KeyError, match="exists already, or has a colon"):
            data.register(name, "")(lambda: DATASET)


class Other(NamedTuple):
    """A record that is no Conditioning."""

    label: int


WRONG = {
    "levels": ({"train": IMAGES + np.uint8(9)}, "the train data hold the value 12"),
    "dtype": ({"train": IMAGES.astype(np.int64)}, "the train data have dtype int64; they must be uint8"),
    "empty": ({"test": IMAGES[:0]}, "the test split holds no data"),
    "other shapes": ({"test": IMAGES[:, :1]}, "they must be equal"),
    "not finite": (
        {"num_levels": 0, "train": np.full((2, 3), np.nan, np.float32)},
        "the train data hold numbers that are not finite",
    ),
    "number of labels": (
        {"test_conditioning": Conditioning(labels=np.zeros(7, int))},
        r"labels is of \[7\]; it must be an array of \[1\]",
    ),
    "list": ({"test_conditioning": Conditioning(labels=[1])}, "labels is of list; it must be an array"),
    "labels in words": (
        {"test_conditioning": Conditioning(labels=np.array(["cat"]))},
        "the labels must be integers from 0, not <U3",
    ),
    "float labels": (
        {"test_conditioning": Conditioning(labels=np.ones(1))},
        "the labels must be integers from 0, not float64",
    ),
    "negative labels": (
        {"test_conditioning": Conditioning(labels=-np.ones(1, int))},
        "the labels must be integers from 0",
    ),
    "augmented": (
        {"test_conditioning": Conditioning(augmented=np.full(1, np.nan))},
        "augmented must be finite numbers",
    ),
    "no record": ({"test_conditioning": np.zeros(1)}, "the conditioning is a ndarray"),
    "another record": ({"test_conditioning": Other(1)}, "the conditioning is a Other"),
    "scalar": ({"train": np.array(1, np.uint8)}, r"the train data have shape \[\]; it must be \[N, ...\]"),
    "no values": ({"train": IMAGES[..., :0], "test": IMAGES[..., :0]}, r"shape \[2, 4, 4, 0\]"),
    "no levels": ({"num_levels": 1}, "num_levels is 1; it must be from 2 to 256"),
    "many levels": ({"num_levels": 257}, "num_levels is 257; it must be from 2 to 256"),
    "floats of levels": (
        {"train": IMAGES / 4},
        "they must be uint8, because num_levels=4 is of discrete data",
    ),
}
# Of continuous data.
POINTS = np.zeros((3, 2), np.float32)
WRONG_POINTS = {
    "double": ({"train": POINTS.astype(float)}, "dtype float64; they must be float32, because num_levels=0"),
    "half": ({"test": POINTS.astype(np.float16)}, "the test data have dtype float16"),
    "whole": ({"train": IMAGES}, "dtype uint8; they must be float32"),
    "byte order": ({"train": POINTS.astype(">f4")}, "dtype >f4; they must be float32"),
    "complex": ({"train": POINTS.astype(complex)}, "dtype complex128"),
    "objects": ({"train": POINTS.astype(object)}, "dtype object"),
    "scalar": ({"train": np.array(1.0, np.float32)}, r"shape \[\]"),
    "empty": ({"train": POINTS[:0]}, "the train split holds no data"),
    "no values": ({"train": POINTS[:, :0], "test": POINTS[:, :0]}, r"shape \[3, 0\]"),
    "other shapes": ({"test": POINTS[:, :1]}, r"test examples have shape \[1\] and train examples \[2\]"),
    "other ranks": ({"test": POINTS[..., None]}, "they must be equal"),
    "nan in the test split": (
        {"test": POINTS * np.float32(np.nan)},
        "the test data hold numbers that are not",
    ),
    "inf": ({"train": POINTS + np.float32(np.inf)}, "not finite"),
    "conditioning": (
        {"train_conditioning": Conditioning(augmented=np.zeros(2, np.float32))},
        r"augmented is of \[2\]; it must be an array of \[3\]",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_it_returns_is_checked(name):
    change, message = WRONG[name]
    data.register(f"wrong {name}", "")(lambda: dataclasses.replace(DATASET, **change))
    with pytest.raises(UserError, match=rf"^wrong {name}[:,].*{message}"):
        data.load(f"wrong {name}")


@pytest.mark.parametrize("name", WRONG_POINTS)
def test_continuous_data_is_checked(name):
    change, message = WRONG_POINTS[name]
    good = data.Dataset(name="points", version="1", num_levels=0, train=POINTS, test=POINTS[:1])
    data.register("points", "")(lambda: dataclasses.replace(good, **change))
    with pytest.raises(UserError, match=f"^points[:,].*{message}") as error:
        data.load("points")
    assert "\n" not in str(error.value)
    data.register("good points", "")(lambda: good)
    assert data.data_spec("good points") == ((2,), 0)


def raising(error):
    def read():
        raise error

    return read


RAISES = {
    "division": (lambda: 1 / 0, r"ZeroDivisionError: division by zero \(test_data_register.py, line \d+\)"),
    "two lines": (raising(RuntimeError("one\ntwo")), "RuntimeError: one two "),
    "no words": (raising(ValueError()), r"ValueError \(test_data"),
    "a file": (
        lambda: np.load("/nope.npy"),
        r"FileNotFoundError: .*nope.npy.* \(test_data_register.py, line",
    ),
    "arguments": (lambda path: None, r"TypeError: .* missing 1 required positional argument: 'path'$"),
    "a command line": (lambda: sys.exit(3), "SystemExit: 3 "),
    "memory": (raising(MemoryError()), "MemoryError"),
    "a message of its own": (raising(UserError("give the folder FACES")), ": give the folder FACES"),
    "nothing": (lambda: None, "returned a NoneType; it must return a jvdm.data.Dataset"),
    "arrays": (lambda: (IMAGES, IMAGES), "returned a tuple; it must"),
}


@pytest.mark.parametrize("name", RAISES)
def test_what_a_function_raises_is_one_line(name):
    function, message = RAISES[name]
    data.register("mine too", "")(function)
    for call in (data.load, data.data_spec):
        with pytest.raises(UserError, match=f"^data source 'mine too'.*{message}") as error:
            call("mine too")
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="^data source 'mine too'"):
        data.load_examples("mine too", "test", num_levels=4)


TYPES = {
    "list": ({"train": [[1]]}, "train is of type list; it must be a numpy array"),
    "none": ({"test": None}, "test is of type NoneType; it must be"),
    "jax": ({"train": jnp.zeros((2, 4, 4, 1), jnp.uint8)}, "train is of type ArrayImpl; it must be a numpy"),
    "float levels": ({"num_levels": 4.0}, "num_levels is of type float; it must be an int$"),
    "numpy's levels": ({"num_levels": np.int64(4)}, "num_levels is of type int64; it must be an int$"),
    "no levels": ({"num_levels": None}, "num_levels is of type NoneType"),
    "name": ({"name": 3}, "name is 3; it must be one line of text"),
    "name of two lines": ({"name": "a\nb"}, "name is 'a.*b'; it must be one line of text"),
    "version": ({"version": 1.0}, "version is 1.0; it must be one line of text"),
    "density": ({"log_density": 3}, "log_density is of type int; it must be a function"),
}


@pytest.mark.parametrize("name", TYPES)
def test_fields_of_another_type(name, unchecked):
    change, message = TYPES[name]
    data.register("mine too", "")(lambda: dataclasses.replace(DATASET, **change))
    with pytest.raises(UserError, match=f"^data source 'mine too': {message}") as error:
        data.load("mine too")
    assert "\n" not in str(error.value)


def test_what_looks_like_channels_first_has_a_word(caplog):
    """An example may have any shape, so it is no error as of files."""
    caplog.set_level(logging.INFO, logger="jvdm")
    logging.getLogger("jvdm").propagate = True
    images = np.zeros((5, 3, 8, 8), np.uint8)
    first = data.Dataset(name="first", version="1", num_levels=4, train=images, test=images)
    data.register("first", "")(lambda: first)
    assert data.load("first") is first
    (message,) = caplog.messages
    assert message.startswith(
        "WARNING: first: the train data have shape [5, 3, 8, 8], which looks like [N, C,"
    )
    caplog.clear()
    labels = Conditioning(labels=np.zeros(2, int))
    data.register("last", "")(lambda: dataclasses.replace(DATASET, train_conditioning=labels))
    data.load("last")
    assert not caplog.messages
