"""The times of the diffusion loss: how the numbers u of a batch are drawn, and which times t they become.

Samplers give u in (0, 1):

    1. uniform:     independent u_i
    2. stratified:  u_i = (u_0 + i / n) mod 1, one draw u_0 for the whole (global) batch
       (2107.00630, appendix I.1)

Each u_i alone is uniform, so either gives an unbiased estimate; the second has the lower variance.

A density maps u to a time t of density p(t), and the loss at t is divided by p(t), so that every density
estimates the same integral.

    3. uniform:     t = u
    4. importance:  p proportional to alpha^2 in gamma, where the velocity's weight is constant
                    (2305.03935, section 4.2), on a schedule that is linear in t:
                    A(gamma(u)) = A(gamma_0) + Z u,  Z = A(gamma_1) - A(gamma_0),  A' = alpha^2
                    1 / p(t) = Z / (alpha^2 (gamma_1 - gamma_0))
                    so that the loss 1/2 gamma' n^2 |F - F_hat|^2 / p(t) is 1/2 (n / alpha)^2 Z |F - F_hat|^2
    5. debiased:    p proportional to gamma'(t) = g^2 / sigma^2 above t_e, where times are then uniform in
                    gamma, and to r = gamma'(t_e) below (2106.02808, appendix; 2101.09258, section 4.2):
                    1 / p(t) = Z / gamma'(max(t, t_e)),  Z = t_e r + gamma(1) - gamma(t_e)
                    t = Z u / r for u Z < t_e r,  otherwise gamma(t) = gamma(t_e) + Z u - t_e r
    6. debiased as released: the density (5) of beta from 0.1 to 20 and t_e = 0.001, whatever the schedule is,
                    and the loss is not divided by it
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvdm.core import options, random
from jvdm.core.options import option
from jvdm.core.registry import Registry
from jvdm.core.shapes import lead
from jvdm.diffusion import schedules
from jvdm.diffusion.paths import VariancePreserving

Times = Float[Array, "..."]


class WeightedTimes(NamedTuple):
    """Times, and one over their density; both of the shape of u."""

    t: Times
    weight: Times


class TimeSampler(Protocol):
    """How the numbers u of a batch are drawn, a frozen dataclass."""

    def __call__(self, key: jax.Array, n: int) -> Float[Array, " n"]:
        """Numbers in (0, 1), each of them uniform by itself.

        Args:
            key: of random numbers.
            n: how many.

        Returns:
            [n].
        """
        ...


class TimeDensity(Protocol):
    """Which times the numbers u become in continuous time, a frozen dataclass.

    Attributes:
        unbiased: the weight is one over the density, so that the loss estimates its integral over time.
        needs_linear: it needs a schedule that is linear in t and learns nothing.
        needs_inverse: it needs a schedule that has an `inverse` and learns nothing.
        needs_alpha2_cumulative: it needs a path that has `alpha2_cumulative` and `alpha2_quantile`.
    """

    unbiased: ClassVar[bool]
    needs_linear: ClassVar[bool] = False
    needs_inverse: ClassVar[bool] = False
    needs_alpha2_cumulative: ClassVar[bool] = False

    def __call__(self, u: Times, *, schedule: Any, path: Any) -> WeightedTimes:
        """Times, and what the loss at each of them is multiplied by.

        Args:
            u: uniform in (0, 1), of any shape.
            schedule: one of `jvdm.diffusion.schedules`.
            path: one of `jvdm.diffusion.paths`.
        """
        ...


TIME_SAMPLERS = Registry("time sampler", TimeSampler)
TIME_DENSITIES = Registry("time density", TimeDensity)


def stratify(u_0: Float[Array, "..."], n: int) -> Float[Array, "... n"]:
    """n evenly spaced points of (0, 1), rotated by u_0.

    Args:
        u_0: [...] in (0, 1).
        n: how many points.

    Returns:
        [..., n] in (0, 1).
    """
    points = lead(jnp.arange(n, dtype=u_0.dtype) / n, u_0.ndim + 1)
    return _inside(jnp.mod(u_0[..., None] + points, 1.0))


def _inside(u: Times) -> Times:
    """Numbers of [0, 1] in (0, 1): rounding may have led to an end."""
    return jnp.clip(u, 2.0**-24, 1.0 - 2.0**-24)


def jittered(key: jax.Array, n: int) -> Float[Array, " n"]:
    """One number drawn in each of n equal intervals of (0, 1), independently.

    Args:
        key: of the numbers.
        n: how many.

    Returns:
        [n] in (0, 1), in increasing order.
    """
    return _inside((jnp.arange(n, dtype=jnp.float32) + random.uniform(key, "times", (n,))) / n)


@TIME_SAMPLERS.register("uniform")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform:
    """Independent times."""

    def __call__(self, key: jax.Array, n: int) -> Float[Array, " n"]:
        """As `TimeSampler.__call__`."""
        return random.uniform(key, "times", (n,))


@TIME_SAMPLERS.register("stratified")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Stratified:
    """Evenly spaced times with one common random rotation."""

    def __call__(self, key: jax.Array, n: int) -> Float[Array, " n"]:
        """As `TimeSampler.__call__`."""
        return stratify(random.uniform(key, "times", ()), n)


@TIME_DENSITIES.register("uniform")
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformDensity:
    """Density 1."""

    unbiased: ClassVar[bool] = True

    def __call__(self, u: Times, *, schedule: Any, path: Any) -> WeightedTimes:
        """As `TimeDensity.__call__`: times (3)."""
        return WeightedTimes(u, jnp.ones_like(u))


@TIME_DENSITIES.register("importance")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Importance:
    """Density proportional to alpha^2 in gamma."""

    needs_linear: ClassVar[bool] = True
    needs_alpha2_cumulative: ClassVar[bool] = True
    unbiased: ClassVar[bool] = True

    def __call__(self, u: Times, *, schedule: Any, path: Any) -> WeightedTimes:
        """Times (4).

        Args:
            u: uniform in (0, 1).
            schedule: linear in t.
            path: one of `jvdm.diffusion.paths` that has a cumulative of alpha^2.
        """
        ends = jnp.array([schedule.gamma_min, schedule.gamma_max], u.dtype)
        low, high = path.alpha2_cumulative(ends)
        gamma = path.alpha2_quantile(low + (high - low) * u, ends[0], ends[1])
        alpha, _ = path.alpha_sigma(gamma)
        span = ends[1] - ends[0]
        return WeightedTimes((gamma - ends[0]) / span, (high - low) / (alpha**2 * span))


def _uniform_in_gamma(u: Times, schedule: Any, epsilon: float) -> WeightedTimes:
    """Times (5); `schedule` is a function of t that has an `inverse`."""
    end = jnp.ones((), u.dtype)
    low, rate = schedules.at(schedule, epsilon * end)
    area = epsilon * rate
    total = area + schedule(end) - low
    below = total * u < area
    gamma = low + jnp.where(below, 0.0, total * u - area)
    # Rounding may lead a little beyond 1.
    t = jnp.where(below, total * u / rate, jnp.clip(schedule.inverse(gamma), epsilon, 1.0))
    return WeightedTimes(t, total / schedules.at(schedule, jnp.maximum(t, epsilon)).dgamma_dt)


@TIME_DENSITIES.register("debiased")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Debiased:
    """Density proportional to g^2 / sigma^2.

    Attributes:
        epsilon: t_e.
    """

    epsilon: float = option(1e-3, above=0.0, below=1.0)
    needs_inverse: ClassVar[bool] = True
    unbiased: ClassVar[bool] = True

    def __post_init__(self):
        options.check(self)

    def __call__(self, u: Times, *, schedule: Any, path: Any) -> WeightedTimes:
        """As `TimeDensity.__call__`: times (5)."""
        return _uniform_in_gamma(u, schedule, self.epsilon)


@TIME_DENSITIES.register("debiased_released")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DebiasedReleased:
    """Density (5) of one schedule, of weight 1: the loss of another weighting than it is meant to have."""

    unbiased: ClassVar[bool] = False

    def __call__(self, u: Times, *, schedule: Any, path: Any) -> WeightedTimes:
        """As `TimeDensity.__call__`: times (6)."""
        released = schedules.LinearBeta(noise_path=VariancePreserving())
        return WeightedTimes(_uniform_in_gamma(u, released, 1e-3).t, jnp.ones_like(u))
