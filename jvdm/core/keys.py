"""Root keys: one per purpose, so that no two purposes share random numbers.

Training starts from key(seed) itself; the others fold a name into it.
"""

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def root_key(seed: int, purpose: str) -> jax.Array:
    """The key from which everything drawn for a purpose ("eval", "sample") is folded."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


def fold_in_each(key: jax.Array, index: Int[Array, " n"] | Int[Array, ""] | int) -> jax.Array:
    """`jax.random.fold_in`, for each of several keys or indices.

    Args:
        key: one typed key, or [n] keys.
        index: [n] integers, or one for all keys.

    Returns:
        [n] keys, key i folded with index i.
    """
    axes = (0 if key.ndim else None, 0 if jnp.ndim(index) else None)
    return jax.vmap(jax.random.fold_in, in_axes=axes)(key, index)
