"""How the times of a batch are drawn.

    1. uniform:     independent u_i
    2. stratified:  u_i = (u_0 + i / n) mod 1, one draw u_0 for the whole (global) batch
       (2107.00630, appendix I.1)

Each u_i alone is uniform, so either gives an unbiased estimate; the second has the lower variance.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvdm.registry import Registry

TIME_SAMPLERS = Registry("time sampler")


def stratify(u_0: Float[Array, "..."], n: int) -> Float[Array, "... n"]:
    """n evenly spaced points of [0, 1), rotated by u_0."""
    return jnp.mod(u_0[..., None] + jnp.arange(n, dtype=jnp.float32) / n, 1.0)


def jittered(key: jax.Array, n: int) -> Float[Array, " n"]:
    """One number drawn in each of n equal intervals of [0, 1), independently."""
    return (jnp.arange(n, dtype=jnp.float32) + jax.random.uniform(key, (n,))) / n


@TIME_SAMPLERS.register("uniform")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform:
    """Independent times."""

    def __call__(self, key: jax.Array, n: int) -> Float[Array, " n"]:
        """n numbers in [0, 1)."""
        return jax.random.uniform(key, (n,))


@TIME_SAMPLERS.register("stratified")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Stratified:
    """Evenly spaced times with one common random rotation."""

    def __call__(self, key: jax.Array, n: int) -> Float[Array, " n"]:
        """n numbers in [0, 1)."""
        return stratify(jax.random.uniform(key, ()), n)
