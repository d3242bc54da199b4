"""Keys: named purposes and indices in turn, so that no two purposes share random numbers.

    root_key(seed, "training") -> indexed(., step) -> named(., "noise") -> indexed(., place) -> a draw "eps"

Random numbers come from `jvdm.core.random`, which names what each draw is for. A name and an index never
lead to the same key: names have the highest of 32 bits set, indices have not. That matters, because in JAX's
generator `split(key)[i]` is `fold_in(key, i)`, and two derivations that look different may give one key.

The generator is threefry, and the seed the run's, whatever `jax_default_prng_impl` and
`jax_random_seed_offset` say.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

# Of the derivation: records name it, and a pass that was begun with another is not continued.
SCHEME = 2


def root_key(seed: int, purpose: str) -> jax.Array:
    """The key of everything that is drawn for a purpose: "init", "training", "eval", "sample", ...

    Args:
        seed: of the run, 0 to 2^32 - 1.
        purpose: any name.

    Returns:
        A typed key, whatever generator JAX is told to use by default.
    """
    # As jax.random.key has it, but for JAX's setting jax_random_seed_offset.
    data = jnp.array([0, seed], jnp.uint32)
    return named(jax.random.wrap_key_data(data, impl="threefry2x32"), purpose)


def named(key: jax.Array, purpose: str) -> jax.Array:
    """The key of a purpose.

    Args:
        key: a typed key, or any array of them.
        purpose: any name.

    Returns:
        Keys of the same shape, which no index leads to.
    """
    code = np.uint32(zlib.crc32(purpose.encode()) | 0x80000000)
    fold = jax.random.fold_in
    for _ in range(key.ndim):
        fold = jax.vmap(fold, in_axes=(0, None))
    return fold(key, code)


def indexed(key: jax.Array, index: Int[Array, " n"] | Int[Array, ""] | np.ndarray | int) -> jax.Array:
    """The key of an index, for one or several of either.

    Args:
        key: one typed key, or [n] keys.
        index: [n] integers from 0 to 2^31 - 1, or one for all keys.

    Returns:
        One key, or [n] keys: key i folded with index i.
    """
    if not key.ndim and not jnp.ndim(index):
        return jax.random.fold_in(key, index)
    axes = (0 if key.ndim else None, 0 if jnp.ndim(index) else None)
    return jax.vmap(jax.random.fold_in, in_axes=axes)(key, index)
