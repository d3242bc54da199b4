"""Augmentations only move the values of an image, as often as they say, and tell of it."""

import numpy as np
import pytest

from jvdm.core.errors import UserError
from jvdm.data.augmentation import AUGMENTATIONS, Draws, apply


def build(name, **options):
    return AUGMENTATIONS.build(AUGMENTATIONS.spec(name, **options))


def images(count, height=6, width=6, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def identity(count, channels):
    return Draws(
        flip=np.zeros(count, bool),
        quarter_turns=np.zeros(count, int),
        permutation=np.tile(np.arange(channels), (count, 1)),
    )


def augment(name, x, rng, **options):
    """(the batch augmented, the flags that the network sees or None)."""
    draws = build(name, **options).draw(x.shape, rng)
    return (x, None) if draws is None else (apply(x, draws), draws.augmented)


def one_by_one(x, draws):
    """The plain loop that `apply` must equal."""
    out = []
    for image, flip, turns, permutation in zip(x, *draws[:3], strict=True):
        image = image[:, ::-1] if flip else image
        out.append(np.rot90(image, turns)[..., permutation])
    return np.stack(out)


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_values_are_kept_and_types_hold(name, channels):
    x = images(300, channels=channels)
    before = x.copy()
    y, augmented = augment(name, x, np.random.default_rng(1))
    assert y.dtype == np.uint8
    assert y.shape == x.shape
    assert (augmented is not None) == (name == "vdm"), "the network is told of the vdm augmentation alone"
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(np.sort(y.reshape(300, -1)), np.sort(x.reshape(300, -1)))
    if augmented is not None:
        assert augmented.dtype == np.float32 and augmented.shape == (300,)
        assert set(np.unique(augmented)) <= {0.0, 1.0}


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_same_generator_same_result(name):
    x = images(50)
    first, again = (augment(name, x, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS.names() if name != "none"])
def test_apply_equals_a_loop_over_images(name):
    x = images(400)
    augmentation = build(name)
    draws = augmentation.draw(x.shape, np.random.default_rng(3))
    np.testing.assert_array_equal(apply(x, draws), one_by_one(x, draws))


def test_none_changes_nothing():
    x = images(20)
    y, conditioning = augment("none", x, np.random.default_rng(0))
    np.testing.assert_array_equal(y, x)
    assert conditioning is None


def test_flip_is_a_fair_coin_of_which_nothing_is_told():
    x = images(4000, height=2, width=3)
    y, conditioning = augment("flip", x, np.random.default_rng(0))
    same = (y == x).all((1, 2, 3))
    flipped = (y == x[:, :, ::-1]).all((1, 2, 3))
    assert (same | flipped).all()
    assert not (same & flipped).any()
    # 4.4 standard deviations of a fair coin
    assert abs(flipped.mean() - 0.5) < 4.4 * 0.5 / np.sqrt(4000)
    assert conditioning is None


def test_flip_twice_is_the_identity():
    x = images(5, height=4, width=7)
    draws = identity(5, 3)._replace(flip=np.ones(5, bool))
    assert (apply(x, draws) != x).any()
    np.testing.assert_array_equal(apply(apply(x, draws), draws), x)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_four_quarter_turns_are_the_identity(turns):
    x = images(5)
    draws = identity(5, 3)._replace(quarter_turns=np.full(5, turns))
    y = x
    for _ in range(4):
        y = apply(y, draws)
    np.testing.assert_array_equal(y, x)


def test_permutation_says_where_each_channel_comes_from():
    x = images(1)
    draws = identity(1, 3)._replace(permutation=np.array([[2, 0, 1]]))
    y = apply(x, draws)
    for channel, source in enumerate((2, 0, 1)):
        np.testing.assert_array_equal(y[..., channel], x[..., source])


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5, 1.0])
def test_vdm_augments_as_often_as_it_says(probability):
    x = images(4000, height=3, width=3)
    y, conditioning = augment("vdm", x, np.random.default_rng(5), probability=probability)
    tolerance = 4.4 * np.sqrt(probability * (1 - probability) / 4000)
    assert abs(conditioning.mean() - probability) <= tolerance
    untouched = conditioning == 0
    np.testing.assert_array_equal(y[untouched], x[untouched])
    # An augmented image is still the same with probability 1/48 (and no image is symmetric).
    if probability:
        changed = (y != x).any((1, 2, 3))[~untouched].mean()
        assert abs(changed - 47 / 48) < 4.4 * np.sqrt(47 / 48 / 48 / (4000 * probability))


def test_vdm_draws_every_symmetry_equally_often():
    shape = (24000, 4, 4, 3)
    draws = build("vdm", probability=1.0).draw(shape, np.random.default_rng(2))
    kinds = np.column_stack([draws.flip, draws.quarter_turns, draws.permutation])
    _, counts = np.unique(kinds, axis=0, return_counts=True)
    assert len(counts) == 2 * 4 * 6
    # Each of 48 cells expects 500, standard deviation 22.
    assert np.abs(counts - 500).max() < 5 * 22.2
    turns = np.bincount(draws.quarter_turns, minlength=4)
    assert np.abs(turns - 6000).max() < 5 * np.sqrt(24000 * 3 / 16)


@pytest.mark.parametrize(
    ("option", "field", "untouched"),
    [
        ("horizontal_flip", "flip", 0),
        ("rotate", "quarter_turns", 0),
        ("permute_channels", "permutation", [0, 1, 2]),
    ],
)
def test_vdm_options_switch_one_symmetry_off_and_no_other(option, field, untouched):
    shape = (500, 4, 4, 3)
    on = build("vdm").draw(shape, np.random.default_rng(4))
    off = build("vdm", **{option: False}).draw(shape, np.random.default_rng(4))
    for name in Draws._fields:
        value = getattr(off, name)
        if name == field:
            assert (value == np.asarray(untouched)).all()
            assert (getattr(on, name) != value).any()
        else:
            np.testing.assert_array_equal(value, getattr(on, name))


def test_vdm_refuses_what_it_cannot_do():
    oblong = images(4, height=4, width=6)
    with pytest.raises(UserError, match="square images, not 4x6: set config.augmentation.rotate=False"):
        augment("vdm", oblong, np.random.default_rng(0))
    y, _ = augment("vdm", oblong, np.random.default_rng(0), rotate=False)
    assert y.shape == oblong.shape
    with pytest.raises(UserError, match=r"probability is 1\.5: give a number from 0 to 1"):
        build("vdm", probability=1.5)


@pytest.mark.parametrize("name", ["flip", "vdm"])
def test_augmentations_are_for_images(name):
    with pytest.raises(UserError, match=r"not for data of shape \[7\]: set config\.augmentation\.name=none"):
        build(name).draw((4, 7), np.random.default_rng(0))
    assert build("none").draw((4, 7), np.random.default_rng(0)) is None
