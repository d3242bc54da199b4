"""What the network's output means, and how it gives eps, the pivot of every algorithm.

With z = alpha x + sigma eps, every meaning is affine: eps = scale out + skip z, and the perfect output is
eps_coeff eps + x_coeff x.

    1. noise:    out = eps
    2. data:     out = x, so eps = (z - alpha out) / sigma
    3. velocity: out = (eps - k z) / n, of unit variance, where k and n are the path's (`diffusion.paths`):
                 the drift of the probability-flow ODE is proportional to it (2305.03935, section 4.1)
    4. drift:    out = g score = -(g / sigma) eps, with g^2 = sigma^2 dgamma/dt: what the generative SDE adds
                 to the drift, over g (2106.02808, section 3)
"""

import dataclasses
from typing import Any, Protocol

import jax.numpy as jnp

from jvdm.core.records import Coefficients
from jvdm.core.registry import Registry
from jvdm.diffusion.relations import Relation


class Parameterization(Protocol):
    """What the output means, a frozen dataclass; the composition gives `path` to a field of that name."""

    def __call__(self, c: Coefficients) -> Relation:
        """The relation of the network's output and eps.

        Args:
            c: coefficients, broadcastable to the data.

        Returns:
            Its fields have the shape of the coefficients.
        """
        ...


PARAMETERIZATIONS = Registry("parameterization", Parameterization)


@PARAMETERIZATIONS.register("noise")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise:
    """The output is eps (2107.00630, section 3.3)."""

    def __call__(self, c: Coefficients) -> Relation:
        """As `Parameterization.__call__`: relation (1)."""
        one, zero = jnp.ones_like(c.gamma), jnp.zeros_like(c.gamma)
        return Relation(scale=one, skip=zero, eps_coeff=one, x_coeff=zero)


@PARAMETERIZATIONS.register("data")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DataPrediction:
    """The output is x."""

    def __call__(self, c: Coefficients) -> Relation:
        """As `Parameterization.__call__`: relation (2)."""
        one, zero = jnp.ones_like(c.gamma), jnp.zeros_like(c.gamma)
        return Relation(scale=-c.alpha / c.sigma, skip=1.0 / c.sigma, eps_coeff=zero, x_coeff=one)


@PARAMETERIZATIONS.register("velocity")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Velocity:
    """The output is the normalised velocity of the path.

    Attributes:
        path: one of `jvdm.diffusion.paths`.
    """

    path: Any

    def __call__(self, c: Coefficients) -> Relation:
        """As `Parameterization.__call__`: relation (3)."""
        return self.path.velocity(c.gamma)


@PARAMETERIZATIONS.register("velocity_from_noise")
@dataclasses.dataclass(frozen=True, kw_only=True)
class VelocityFromNoise:
    """The velocity read out of a network of noise, v = -e^(gamma/2) z + sqrt(1 + e^gamma) out (2312.13236).

    On the variance-preserving path eps = alpha v + sigma z is then the output, whatever gamma is: the
    relation is that of `Noise`, and so are the loss, the ODE and samples.
    """

    def __call__(self, c: Coefficients) -> Relation:
        """As `Parameterization.__call__`: relation (1)."""
        return Noise()(c)


@PARAMETERIZATIONS.register("drift")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Drift:
    """The output is g times the score."""

    def __call__(self, c: Coefficients) -> Relation:
        """As `Parameterization.__call__`: relation (4)."""
        # g / sigma; dgamma_dt is infinite at a time without noise, where g need not be.
        rate, zero = jnp.sqrt(c.dgamma_dt), jnp.zeros_like(c.gamma)
        g = jnp.sqrt(c.g2)
        return Relation(scale=-1.0 / rate, skip=zero, eps_coeff=-rate, x_coeff=zero, g2_score_scale=g)
