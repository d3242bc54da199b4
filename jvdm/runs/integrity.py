"""Checksums of arrays, which show whether what is read back is what was saved, on any devices.

The words w_i of an array, its bits taken as integers, give sum_i (2 i + 1) w_i modulo 2^32. The order of the
summation, and so the sharding, does not matter; any single flipped bit changes the sum, since 2 i + 1 is odd.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jvdm.core import trees


def _words(a: jax.Array) -> jax.Array:
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a = jax.random.key_data(a)
    a = a.ravel()
    width = a.dtype.itemsize
    if width not in (1, 2, 4):
        raise ValueError(f"no checksum of {a.dtype}")
    if a.dtype == jnp.bool_:
        return a.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(a, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[width]).astype(
        jnp.uint32
    )


@jax.jit
def _sums(leaves: list[jax.Array]) -> list[jax.Array]:
    def total(a):
        words = _words(a)
        odd = 2 * jnp.arange(words.size, dtype=jnp.uint32) + 1
        return jnp.sum(odd * words, dtype=jnp.uint32)

    return [total(a) for a in leaves]


def checksums(tree: Any) -> dict[str, int]:
    """The checksum of every leaf by its name, such as "params/network/conv_in/kernel"."""
    leaves = trees.leaves(tree)
    sums = jax.device_get(_sums([jnp.asarray(leaf) for leaf in leaves.values()]))
    return {name: int(total) for name, total in zip(leaves, sums, strict=True)}
