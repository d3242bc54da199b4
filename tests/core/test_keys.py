"""Keys by name and by index: one derivation, no coincidences."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm.core.keys import indexed, named, root_key

PACKAGE = pathlib.Path(jvdm.__file__).parent


def fold(key, index):
    return jax.random.key_data(jax.random.fold_in(key, index))


KEYS = jax.random.split(jax.random.key(3), 4)


@pytest.mark.parametrize(
    ("key", "index", "pairs"),
    [
        (KEYS[0], jnp.arange(4), [(KEYS[0], i) for i in range(4)]),
        (KEYS, 2, [(key, 2) for key in KEYS]),
        (KEYS, jnp.array([5, 0, 7, 7]), list(zip(KEYS, (5, 0, 7, 7), strict=True))),
    ],
)
def test_indexed(key, index, pairs):
    expected = np.stack([fold(*pair) for pair in pairs])
    np.testing.assert_array_equal(jax.random.key_data(indexed(key, index)), expected)
    np.testing.assert_array_equal(jax.random.key_data(jax.jit(indexed)(key, index)), expected)


def test_one_index_of_one_key():
    np.testing.assert_array_equal(jax.random.key_data(indexed(KEYS[0], 3)), fold(KEYS[0], 3))


def test_names_of_one_key_and_of_several():
    several = jax.random.key_data(named(KEYS, "eps"))
    for key, data in zip(KEYS, several, strict=True):
        np.testing.assert_array_equal(jax.random.key_data(named(key, "eps")), data)
    table = jax.random.key_data(named(KEYS.reshape(2, 2), "eps"))
    np.testing.assert_array_equal(table.reshape(several.shape), several)


def test_splits_are_indices_but_no_name_is():
    """What led to shared numbers: in JAX's generator, the split i of a key is its fold with i."""
    key = KEYS[0]
    np.testing.assert_array_equal(
        jax.random.key_data(jax.random.split(key, 3)), [fold(key, i) for i in range(3)]
    )
    reached = {tuple(fold(key, i).tolist()) for i in (0, 1, 2, 2**31 - 1)}
    assert tuple(jax.random.key_data(named(key, "eps")).tolist()) not in reached


def test_the_names_in_use_have_different_codes():
    names = set()
    for path in PACKAGE.rglob("*.py"):
        names |= set(
            re.findall(
                r'(?:named|random\.\w+|root_key)\([^"()]*(?:\([^()]*\))?[^"()]*"(\w+)"', path.read_text()
            )
        )
    assert {"eps", "eps_0", "times", "dequantization", "probes", "steps", "noise", "eval"} <= names
    codes = {name: tuple(jax.random.key_data(named(KEYS[0], name)).tolist()) for name in names}
    assert len(set(codes.values())) == len(names)


def test_the_generator_is_pinned():
    with jax.default_prng_impl("rbg"):
        other = root_key(0, "eval")
    assert jax.random.key_impl(other) == "threefry2x32"
    np.testing.assert_array_equal(jax.random.key_data(other), jax.random.key_data(root_key(0, "eval")))


def test_nothing_draws_or_derives_keys_elsewhere():
    """Of jax.random, other modules use what makes or describes keys, not what draws or derives."""
    allowed = {"key", "key_data"}
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).as_posix() in ("core/random.py", "core/keys.py"):
            continue
        used = set(re.findall(r"\bjax\.random\.(\w+)|\bjrandom\.(\w+)|\bjr\.(\w+)", path.read_text()))
        names = {name for group in used for name in group if name}
        assert names <= allowed, f"{path}: {names - allowed}"
