"""The density from which the times of the diffusion loss are drawn.

A time sampler gives u, uniform in [0, 1); a density maps it to a time t of density p(t), and the loss at t
is divided by p(t), so that every density estimates the same integral.

    1. uniform:     t = u
    2. importance:  p proportional to alpha^2 in gamma, where the velocity's weight is constant
                    (2305.03935, section 4.2), on a schedule that is linear in t:
                    A(gamma(u)) = A(gamma_0) + Z u,  Z = A(gamma_1) - A(gamma_0),  A' = alpha^2
                    1 / p(t) = Z / (alpha^2 (gamma_1 - gamma_0))
                    so that the loss 1/2 gamma' n^2 |F - F_hat|^2 / p(t) is 1/2 (n / alpha)^2 Z |F - F_hat|^2
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jvdm.registry import Registry

TIME_DENSITIES = Registry("time density")

Times = Float[Array, "..."]


class WeightedTimes(NamedTuple):
    """Times, and one over their density; both of the shape of u."""

    t: Times
    weight: Times


@TIME_DENSITIES.register("uniform")
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformDensity:
    """Density 1."""

    needs_linear_schedule: ClassVar[bool] = False

    def __call__(self, u: Times, *, path: Any, gamma_0: float, gamma_1: float) -> WeightedTimes:
        """Times (1)."""
        return WeightedTimes(u, jnp.ones_like(u))


@TIME_DENSITIES.register("importance")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Importance:
    """Density proportional to alpha^2 in gamma."""

    needs_linear_schedule: ClassVar[bool] = True

    def __call__(self, u: Times, *, path: Any, gamma_0: float, gamma_1: float) -> WeightedTimes:
        """Times (2).

        Args:
            u: uniform in [0, 1).
            path: one of `jvdm.paths`.
            gamma_0, gamma_1: the ends of a linear schedule.
        """
        ends = jnp.array([gamma_0, gamma_1], u.dtype)
        low, high = path.alpha2_cumulative(ends)
        gamma = path.alpha2_quantile(low + (high - low) * u, ends[0], ends[1])
        alpha, _ = path.alpha_sigma(gamma)
        span = ends[1] - ends[0]
        return WeightedTimes((gamma - ends[0]) / span, (high - low) / (alpha**2 * span))
