"""The latent of MuLAN's released code: k ones, charged as if it were one class. For comparison only.

    1. c has k ones, at the k largest theta_i + g_i; the gradient is that of theta + g, centred and divided by
       its norm. No KL of its q is known, and what is charged is that of softmax(theta) from the uniform
       distribution. That is at most ln m, where a k-subset may cost ln C(m, k): not a bound.

The g of (1) are Gumbel(0), or made of w_i ~ Gamma(1/k, 1), i = 1..10, as sum-of-gamma noise (2106.01798):

    2. sum_of_gamma: g = 10/k (sum_i (k/i) w_i - ln 10). k of them add up to 10 (sum_i E_i / i - ln 10) with
                  exponential E_i. The sum is distributed as the largest of ten exponentials, so that
                  P(< 10 y) = (1 - e^-y / 10)^10, which is Gumbel(0, 10) but for its limit exp(-e^-y).
    3. sum_of_gamma_released: i/k in place of k/i (rate and scale swapped), so that for k = 15 the deviation
                  of g is 0.225 in place of 3.21
"""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvdm.core import random
from jvdm.core.options import option
from jvdm.diffusion import subsets
from jvdm.diffusion.latents import (
    LATENTS,
    LatentSample,
    Logits,
    Noise,
    SubsetLatent,
    Value,
    categorical_kl,
)


def direction(a: Value) -> Value:
    """Centred, and divided by its norm, as (1) has it.

    Args:
        a: [b, m].

    Returns:
        [b, m], of mean 0 and norm 1.
    """
    centred = a - jnp.mean(a, axis=-1, keepdims=True)
    return centred / jnp.linalg.norm(centred, axis=-1, keepdims=True)


class Perturbation(NamedTuple):
    """A kind of noise of (1).

    Attributes:
        draw: (key, m, k) -> what is random, for one example.
        total: (what is random [b, ...], k) -> g [b, m].
    """

    draw: Callable[[jax.Array, int, int], Array]
    total: Callable[[Array, int], Array]


NUM_GAMMA, SUM_TEMPERATURE = 10, 10.0  # of the released code: terms of the sum, and of Gumbel(0, 10)


def _draw_gumbel(key: jax.Array, m: int, k: int) -> Array:
    return random.gumbel(key, "latent", (m,))


def _draw_gamma(key: jax.Array, m: int, k: int) -> Array:
    return random.gamma(key, "latent", 1.0 / k, (NUM_GAMMA, m))


def _sum_of_gamma(w: Float[Array, "b i m"], k: int, scales: Float[Array, " i"]) -> Value:
    """Noise (2), of given scales."""
    centred = jnp.sum(scales[None, :, None] * w, axis=-2) - math.log(NUM_GAMMA)
    return SUM_TEMPERATURE / k * centred


def _terms() -> Float[Array, " i"]:
    return jnp.arange(1.0, NUM_GAMMA + 1.0)


PERTURBATIONS = {
    "gumbel": Perturbation(_draw_gumbel, lambda g, k: g),
    "sum_of_gamma": Perturbation(_draw_gamma, lambda w, k: _sum_of_gamma(w, k, k / _terms())),
    "sum_of_gamma_released": Perturbation(_draw_gamma, lambda w, k: _sum_of_gamma(w, k, _terms() / k)),
}


@LATENTS.register("k_hot_surrogate")
@dataclasses.dataclass(frozen=True, kw_only=True)
class KHotSurrogate(SubsetLatent):
    """Latent (1), whose charge is not that of its distribution.

    Attributes:
        noise: a name of `PERTURBATIONS`.
    """

    noise: str = option("sum_of_gamma_released", choices=PERTURBATIONS)
    is_bound: ClassVar[bool] = False

    def draw(self, key: jax.Array) -> Array:
        """As `Latent.draw`."""
        return PERTURBATIONS[self.noise].draw(key, self.size, self.k)

    def sample(self, logits: Logits, noise: Noise, step: jax.Array | None = None) -> LatentSample:
        """As `Latent.sample`."""
        noisy = logits + PERTURBATIONS[self.noise].total(noise, self.k)
        value = subsets.straight_through(subsets.top_k(noisy, self.k), direction(noisy))
        return LatentSample(value, categorical_kl(logits))
