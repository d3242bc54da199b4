"""Paths: gamma -> (alpha, sigma), with gamma = log(sigma^2 / alpha^2).

    1. variance preserving:  sigma^2 = s(gamma),  alpha^2 = s(-gamma),  s the logistic sigmoid
       (2107.00630, section 3.1)

alpha and sigma are made from log-sigmoids, never as 1 - s(gamma), which loses all digits at either end.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvdm.registry import Registry

PATHS = Registry("path")


@PATHS.register("variance_preserving")
@dataclasses.dataclass(frozen=True, kw_only=True)
class VariancePreserving:
    """alpha^2 + sigma^2 = 1."""

    def alpha_sigma(self, gamma: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """alpha and sigma, of the shape of gamma."""
        return jnp.exp(0.5 * jax.nn.log_sigmoid(-gamma)), jnp.exp(0.5 * jax.nn.log_sigmoid(gamma))

    def log_sigma(self, gamma: Float[Array, "..."]) -> Float[Array, "..."]:
        """log sigma, of the shape of gamma."""
        return 0.5 * jax.nn.log_sigmoid(gamma)

    def dlogalpha_dgamma(self, gamma: Float[Array, "..."]) -> Float[Array, "..."]:
        """d log alpha / d gamma, of the shape of gamma."""
        return -0.5 * jax.nn.sigmoid(gamma)
