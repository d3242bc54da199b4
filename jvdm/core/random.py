"""Random numbers, each drawn for a named purpose: the only place in which jvdm draws with JAX.

Uniform numbers come from the open interval (0, 1), so that no quantile function is asked for the end of a
distribution, which it reaches with no probability but which a generator of 23 bits gives once in 2^23 draws:

    1. uniform: u = (j + 1/2) / 2^23, j of 23 bits. u and 1 - u are exact in float32.
    2. truncated normal: with j of 32 bits, v = (j + 1/2) / 2^32, and Z = Phi(hi) - Phi(lo),
           p = Phi(lo) + Z v,  q = Phi(-hi) + Z (1 - v),  p + q = 1,
       e = Phi^-1(p) in the lower tail and -Phi^-1(q) in the upper, where p or q is small and so is its
       rounding; between them e = sqrt 2 erf^-1(p - q).

`normal`, `gumbel` and `categorical` are JAX's; the least and the largest number of its generator give
-5.42 and 5.22, and -4.47 and 15.9.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jvdm.core.keys import named

Shape = Sequence[int]


def _default() -> jnp.dtype:
    """float32, or float64 where a caller works in it."""
    return jnp.asarray(0.0).dtype


# Below this, p is so small that its float32 rounding moves the quantile by less than the quantile's own.
_TAIL = 0.05


def bits(key: jax.Array, purpose: str, shape: Shape) -> Array:
    """Words of 32 random bits.

    Args:
        key: one typed key.
        purpose: what they are for; other purposes have other numbers.
        shape: of the numbers.

    Returns:
        uint32 of that shape.
    """
    return jax.random.bits(named(key, purpose), shape, jnp.uint32)


def uniform(key: jax.Array, purpose: str, shape: Shape) -> Float[Array, "..."]:
    """Uniform numbers (1), in the open interval (0, 1); arguments as in `bits`."""
    return open_unit(bits(key, purpose, shape)).astype(_default())


def open_unit(words: Array) -> Float[Array, "..."]:
    """Uniform numbers (1) of words of 32 bits, from 2^-24 to 1 - 2^-24."""
    return ((words >> jnp.uint32(9)).astype(jnp.float32) + 0.5) * 2.0**-23


def normal(key: jax.Array, purpose: str, shape: Shape) -> Float[Array, "..."]:
    """Standard normal numbers; arguments as in `bits`."""
    return jax.random.normal(named(key, purpose), shape, _default())


def rademacher(key: jax.Array, purpose: str, shape: Shape) -> Float[Array, "..."]:
    """-1 and 1, equally likely; arguments as in `bits`."""
    return jax.random.rademacher(named(key, purpose), shape, jnp.float32)


def gumbel(key: jax.Array, purpose: str, shape: Shape) -> Float[Array, "..."]:
    """Standard Gumbel numbers; arguments as in `bits`."""
    return jax.random.gumbel(named(key, purpose), shape, _default(), mode="low")


def gamma(key: jax.Array, purpose: str, a: float, shape: Shape) -> Float[Array, "..."]:
    """Numbers of Gamma(a, 1); other arguments as in `bits`."""
    return jax.random.gamma(named(key, purpose), a, shape, _default())


def index_below(key: jax.Array, purpose: str, n: int) -> Int[Array, ""]:
    """One of 0..n-1, equally likely; other arguments as in `bits`."""
    return jax.random.randint(named(key, purpose), (), 0, n, jnp.int32)


def categorical(key: jax.Array, purpose: str, logits: Float[Array, "... k"]) -> Int[Array, "..."]:
    """Draws from categorical distributions.

    Args:
        key, purpose: as in `bits`.
        logits: [..., K], not normalised.

    Returns:
        [...], 0..K-1.
    """
    return jax.random.categorical(named(key, purpose), logits, mode="low")


def truncated_normal(
    key: jax.Array, purpose: str, low: Float[Array, "..."], high: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Standard normal numbers given low < e < high (2).

    Args:
        key, purpose: as in `bits`.
        low, high: of the shape of the numbers, low < 0 < high.

    Returns:
        Of that shape, strictly between the bounds.
    """
    return truncated_quantile(bits(key, purpose, jnp.shape(low)), low, high)


def truncated_quantile(
    words: Array, low: Float[Array, "..."], high: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The numbers (2) of words of 32 bits; other arguments and result as in `truncated_normal`."""
    root, dtype = math.sqrt(2.0), low.dtype
    v, rest = ((w.astype(dtype) + 0.5) * 2.0**-32 for w in (words, ~words))
    erf_low, erf_high = jax.lax.erf(low / root), jax.lax.erf(high / root)
    width = erf_high - erf_low
    p = 0.5 * (jax.lax.erfc(-low / root) + width * v)
    q = 0.5 * (jax.lax.erfc(high / root) + width * rest)
    middle = jnp.where(v < 0.5, erf_low + width * v, erf_high - width * rest)
    # Each quantile at a number that suits it, also where another is taken.
    tail = jax.scipy.special.ndtri(jnp.clip(jnp.minimum(p, q), 2.0**-40, _TAIL))
    centre = root * jax.lax.erf_inv(jnp.clip(middle, -0.95, 0.95))
    e = jnp.where(p < _TAIL, tail, jnp.where(q < _TAIL, -tail, centre))
    inside = (jnp.nextafter(end, jnp.asarray(to, dtype)) for end, to in ((low, math.inf), (high, -math.inf)))
    return jnp.clip(e, *inside)
