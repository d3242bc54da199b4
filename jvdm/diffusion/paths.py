"""Paths: gamma -> (alpha, sigma), with gamma = log(sigma^2 / alpha^2).

With s the logistic sigmoid:

    1. variance preserving:  sigma^2 = s(gamma),  alpha^2 = s(-gamma)       (2107.00630, section 3.1)
    2. straight:             sigma = s(gamma / 2),  alpha = s(-gamma / 2)   (2305.03935, section 4.1)
    3. sub-variance preserving: sigma = 1 - alpha^2,  so that with alpha = e^(-B/2)
                             e^(gamma / 2) = 2 sinh(B / 2)                  (2011.13456, section 3.4)

alpha and sigma are made from their logarithms, never as 1 - s(gamma), which loses all digits at either end.

For every path, g^2 = sigma^2 dgamma/dt, and the probability-flow ODE is

    4. dz/dgamma = k_a z + 1/2 sigma eps_hat,  k_a = d log alpha / d gamma

With k = -2 k_a / sigma its drift is 1/2 sigma (eps_hat - k z), and the *velocity* of unit variance is

    5. F = (eps - k z) / n = [ (1 - k sigma) eps - k alpha x ] / n,   n^2 = (1 - k sigma)^2 + (k alpha)^2
       variance preserving: k = sigma, n = alpha,          F = alpha eps - sigma x
       straight:            k = 1,     n = sqrt(2) alpha,  F = (eps - x) / sqrt(2)
       sub-variance preserving: k alpha = (4 + e^gamma)^(-1/2),  F = (2 alpha eps - x) / sqrt(1 + 4 alpha^2)

Times of density proportional to alpha^2 in gamma make the weight of |F - F_hat|^2 constant where n^2 is
proportional to alpha^2, as on paths (1) and (2). The cumulative of alpha^2, up to a constant, is

    6. variance preserving: log s(gamma)
       straight:            2 log s(gamma / 2) + 2 s(-gamma / 2)

Where a schedule gives log alpha, its noise may begin at zero, and gamma at minus infinity. What stays finite
is g^2 over d log alpha / dt, sigma^2 / k_a:

    7. variance preserving: -2
       straight:            -2 sigma
       sub-variance preserving: -2 sigma (1 + alpha^2)
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvdm.core.registry import Registry
from jvdm.diffusion.relations import Relation

Scale = Float[Array, "..."]


class Path(Protocol):
    """A path, a frozen dataclass of functions that are elementwise, so that gamma has any shape.

    Attributes:
        alpha2_cumulative: gamma -> equation (6); None where there is no closed form.
        alpha2_quantile: (value, gamma_0, gamma_1) -> the gamma between these of that cumulative, or None.
        gamma_of_log_alpha: log alpha -> gamma, -inf at 0, for the schedule `linear_beta`; or None.
    """

    alpha2_cumulative: Callable[[Scale], Scale] | None = None
    alpha2_quantile: Callable[[Scale, Scale, Scale], Scale] | None = None
    gamma_of_log_alpha: Callable[[Scale], Scale] | None = None

    def alpha_sigma(self, gamma: Scale) -> tuple[Scale, Scale]:
        """alpha and sigma, elementwise.

        Args:
            gamma: of any shape.

        Returns:
            Both of the shape of gamma.
        """
        ...

    def log_alpha(self, gamma: Scale) -> Scale:
        """log alpha, to full relative accuracy.

        Args:
            gamma: of any shape.

        Returns:
            Of the shape of gamma.
        """
        ...

    def log_sigma(self, gamma: Scale) -> Scale:
        """log sigma, to full relative accuracy.

        Args:
            gamma: of any shape.

        Returns:
            Of the shape of gamma.
        """
        ...

    def dlogalpha_dgamma(self, gamma: Scale) -> Scale:
        """d log alpha / d gamma.

        Args:
            gamma: of any shape.

        Returns:
            Of the shape of gamma.
        """
        ...

    def g2_over_dlogalpha(self, gamma: Scale) -> Scale:
        """Quotient (7).

        Args:
            gamma: of any shape.

        Returns:
            Of the shape of gamma.
        """
        ...

    def velocity(self, gamma: Scale) -> Relation:
        """The relation of the velocity (5) and eps.

        Args:
            gamma: broadcastable to the data.

        Returns:
            Its fields have the shape of gamma.
        """
        ...


PATHS = Registry("path", Path)


def invert_increasing(fn: Callable[[Scale], Scale], value: Scale, low: Scale, high: Scale) -> Scale:
    """x with fn(x) = value, elementwise, for an increasing fn, by bisection of [low, high].

    Args:
        fn: elementwise.
        value: of any shape.
        low, high: of that shape; the solution is between them.

    Returns:
        Of the shape of `value`. Not differentiable; 50 halvings end at the resolution of float32, and of the
        interval in float64.
    """
    low, high = (jnp.broadcast_to(a, value.shape).astype(value.dtype) for a in (low, high))

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        below = fn(middle) < value
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, 50, halve, (low, high))
    return 0.5 * (low + high)


@PATHS.register("variance_preserving")
@dataclasses.dataclass(frozen=True, kw_only=True)
class VariancePreserving:
    """alpha^2 + sigma^2 = 1."""

    def alpha_sigma(self, gamma: Scale) -> tuple[Scale, Scale]:
        """As `Path.alpha_sigma`."""
        return jnp.exp(self.log_alpha(gamma)), jnp.exp(self.log_sigma(gamma))

    def log_alpha(self, gamma: Scale) -> Scale:
        """As `Path.log_alpha`."""
        return 0.5 * jax.nn.log_sigmoid(-gamma)

    def gamma_of_log_alpha(self, log_alpha: Scale) -> Scale:
        """As `Path.gamma_of_log_alpha`, elementwise."""
        return jnp.log(jnp.expm1(-2.0 * log_alpha))

    def log_sigma(self, gamma: Scale) -> Scale:
        """As `Path.log_sigma`."""
        return 0.5 * jax.nn.log_sigmoid(gamma)

    def dlogalpha_dgamma(self, gamma: Scale) -> Scale:
        """As `Path.dlogalpha_dgamma`."""
        return -0.5 * jax.nn.sigmoid(gamma)

    def g2_over_dlogalpha(self, gamma: Scale) -> Scale:
        """As `Path.g2_over_dlogalpha`."""
        return jnp.full_like(gamma, -2.0)

    def velocity(self, gamma: Scale) -> Relation:
        """As `Path.velocity`."""
        alpha, sigma = self.alpha_sigma(gamma)
        return Relation(scale=alpha, skip=sigma, eps_coeff=alpha, x_coeff=-sigma)

    def alpha2_cumulative(self, gamma: Scale) -> Scale:
        """As `Path.alpha2_cumulative`: equation (6), elementwise."""
        return jax.nn.log_sigmoid(gamma)

    def alpha2_quantile(self, value: Scale, gamma_0: Scale, gamma_1: Scale) -> Scale:
        """As `Path.alpha2_quantile`, elementwise, in closed form."""
        return jnp.clip(-jnp.log(jnp.expm1(-value)), gamma_0, gamma_1)


@PATHS.register("straight")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Straight:
    """alpha + sigma = 1: z moves on a straight line from data to noise."""

    def alpha_sigma(self, gamma: Scale) -> tuple[Scale, Scale]:
        """As `Path.alpha_sigma`."""
        return jnp.exp(self.log_alpha(gamma)), jnp.exp(self.log_sigma(gamma))

    def log_alpha(self, gamma: Scale) -> Scale:
        """As `Path.log_alpha`."""
        return jax.nn.log_sigmoid(-0.5 * gamma)

    def gamma_of_log_alpha(self, log_alpha: Scale) -> Scale:
        """As `Path.gamma_of_log_alpha`, elementwise."""
        return 2.0 * (jnp.log(-jnp.expm1(log_alpha)) - log_alpha)

    def log_sigma(self, gamma: Scale) -> Scale:
        """As `Path.log_sigma`."""
        return jax.nn.log_sigmoid(0.5 * gamma)

    def dlogalpha_dgamma(self, gamma: Scale) -> Scale:
        """As `Path.dlogalpha_dgamma`."""
        return -0.5 * jax.nn.sigmoid(0.5 * gamma)

    def g2_over_dlogalpha(self, gamma: Scale) -> Scale:
        """As `Path.g2_over_dlogalpha`."""
        return -2.0 * jnp.exp(self.log_sigma(gamma))

    def velocity(self, gamma: Scale) -> Relation:
        """As `Path.velocity`."""
        alpha, _ = self.alpha_sigma(gamma)
        one, half = jnp.ones_like(gamma), jnp.full_like(gamma, 0.5)
        return Relation(
            scale=jnp.sqrt(2 * one) * alpha, skip=one, eps_coeff=jnp.sqrt(half), x_coeff=-jnp.sqrt(half)
        )

    def alpha2_cumulative(self, gamma: Scale) -> Scale:
        """As `Path.alpha2_cumulative`: equation (6), elementwise."""
        return 2.0 * (jax.nn.log_sigmoid(0.5 * gamma) + jax.nn.sigmoid(-0.5 * gamma))

    def alpha2_quantile(self, value: Scale, gamma_0: Scale, gamma_1: Scale) -> Scale:
        """As `Path.alpha2_quantile`, elementwise, by bisection."""
        return invert_increasing(self.alpha2_cumulative, value, gamma_0, gamma_1)


@PATHS.register("sub_variance_preserving")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SubVariancePreserving:
    """sigma = 1 - alpha^2: less noise than (1) at every time of the same drift."""

    def alpha_sigma(self, gamma: Scale) -> tuple[Scale, Scale]:
        """As `Path.alpha_sigma`."""
        return jnp.exp(self.log_alpha(gamma)), jnp.exp(self.log_sigma(gamma))

    def log_alpha(self, gamma: Scale) -> Scale:
        """As `Path.log_alpha`."""
        return -jnp.arcsinh(0.5 * jnp.exp(0.5 * gamma))

    def gamma_of_log_alpha(self, log_alpha: Scale) -> Scale:
        """As `Path.gamma_of_log_alpha`, elementwise."""
        return 2.0 * (jnp.log(-jnp.expm1(2.0 * log_alpha)) - log_alpha)

    def log_sigma(self, gamma: Scale) -> Scale:
        """As `Path.log_sigma`."""
        # 1 / sigma = 1 + alpha^2 / sigma: the digits of log sigma are kept also where sigma is almost 1.
        return -jnp.log1p(jnp.exp(self.log_alpha(gamma) - 0.5 * gamma))

    def dlogalpha_dgamma(self, gamma: Scale) -> Scale:
        """As `Path.dlogalpha_dgamma`."""
        return -0.5 / jnp.sqrt(1.0 + 4.0 * jnp.exp(-gamma))

    def g2_over_dlogalpha(self, gamma: Scale) -> Scale:
        """As `Path.g2_over_dlogalpha`."""
        return -2.0 * jnp.exp(self.log_sigma(gamma)) * (1.0 + jnp.exp(2.0 * self.log_alpha(gamma)))

    def velocity(self, gamma: Scale) -> Relation:
        """As `Path.velocity`."""
        alpha, _ = self.alpha_sigma(gamma)
        # 1 / k alpha, and n over it.
        over, n = jnp.sqrt(4.0 + jnp.exp(gamma)), jnp.sqrt(1.0 + 4.0 * alpha**2)
        return Relation(
            scale=n / over, skip=1.0 / (alpha * over), eps_coeff=2.0 * alpha / n, x_coeff=-1.0 / n
        )
