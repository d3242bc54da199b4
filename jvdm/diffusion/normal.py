"""Independent normal distributions, and their Kullback-Leibler divergence."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jvdm.core.shapes import sum_example

Scale = Float[Array, "..."]


class Normal(NamedTuple):
    """Independent normal distributions; both fields broadcast to the data."""

    mean: Scale
    log_sigma: Scale

    def sample(self, noise: Float[Array, "..."]) -> Float[Array, "..."]:
        """mean + deviation * noise.

        Args:
            noise: standard normal, of the shape of the samples.

        Returns:
            Of the shape of the noise and the mean, broadcast.
        """
        return self.mean + jnp.exp(self.log_sigma) * noise

    def log_density(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """The log-density of every dimension.

        Args:
            z: where; broadcastable with mean and deviation.

        Returns:
            Of the broadcast shape, nats.
        """
        squares = 0.5 * ((z - self.mean) * jnp.exp(-self.log_sigma)) ** 2
        return -(squares + self.log_sigma + 0.5 * math.log(2.0 * math.pi))


def kl(q: Normal, p: Normal) -> Float[Array, " b"]:
    """KL(q || p) of every example.

    Args:
        q: of [b, *data_shape] means.
        p: broadcastable to them.

    Returns:
        [b] nats.
    """
    log_ratio = 2.0 * (q.log_sigma - p.log_sigma)
    squares = ((q.mean - p.mean) * jnp.exp(-p.log_sigma)) ** 2
    # expm1(l) - l: with equal variances, as of (3) and (4), nothing cancels.
    return 0.5 * sum_example(squares + (jnp.expm1(log_ratio) - log_ratio))
