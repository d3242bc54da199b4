"""Sources of data outside jvdm."""

import dataclasses

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
}


@pytest.mark.parametrize("name", WRONG)
def test_what_it_returns_is_checked(name):
    change, message = WRONG[name]
    data.register(f"wrong {name}", "")(lambda: dataclasses.replace(DATASET, **change))
    with pytest.raises(UserError, match=rf"^wrong {name}[:,].*{message}"):
        data.load(f"wrong {name}")
