"""Keys folded one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.core.keys import fold_in_each


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
def test_fold_in_each(key, index, pairs):
    expected = np.stack([fold(*pair) for pair in pairs])
    np.testing.assert_array_equal(jax.random.key_data(fold_in_each(key, index)), expected)
    np.testing.assert_array_equal(jax.random.key_data(jax.jit(fold_in_each)(key, index)), expected)
