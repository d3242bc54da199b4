"""Generators whose every word is the least, or the greatest, that there is."""

import jax
import jax.extend.random
import jax.numpy as jnp

ENDS = ("least", "greatest")


def _impl(word):
    """All keys are alike, and all bits are those of `word`."""
    return jax.extend.random.define_prng_impl(
        key_shape=(1,),
        seed=lambda seed: jnp.zeros(1, jnp.uint32),
        split=lambda key, shape: jnp.broadcast_to(key, (*shape, 1)),
        random_bits=lambda key, width, shape: jnp.full(shape, word).astype(f"uint{width}"),
        fold_in=lambda key, data: key,
        name=f"all_{word:x}",
        tag="ends",
    )


_IMPLS = {"least": _impl(jnp.uint32(0)), "greatest": _impl(jnp.uint32(0xFFFFFFFF))}


def key(end):
    """A key of one of `ENDS`."""
    return jax.random.key(0, impl=_IMPLS[end])
