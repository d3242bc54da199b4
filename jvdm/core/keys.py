"""Root keys: one per purpose, so that no two purposes share random numbers.

Training starts from key(seed) itself; the others fold a name into it.
"""

import zlib

import jax


def root_key(seed: int, purpose: str) -> jax.Array:
    """The key from which everything drawn for a purpose ("eval", "sample") is folded."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
