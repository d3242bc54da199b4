"""What the network's output means, and how it gives eps, the pivot of every algorithm.

With z = alpha x + sigma eps, every meaning is affine: eps = scale out + skip z, and the perfect output is
on_eps eps + on_x x.

    1. noise:    out = eps
    2. data:     out = x, so eps = (z - alpha out) / sigma
    3. velocity: out = (eps - k z) / n, of unit variance, where k and n are the path's (`diffusion.paths`):
                 the drift of the probability-flow ODE is proportional to it (2305.03935, section 4.1)
    4. drift:    out = g score = -(g / sigma) eps, with g^2 = sigma^2 dgamma/dt: what the generative SDE adds
                 to the drift, over g (2106.02808, section 3)
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jvdm.core.records import Coefficients
from jvdm.core.registry import Registry

PARAMETERIZATIONS = Registry("parameterization")

Data = Float[Array, "..."]


class Relation(NamedTuple):
    """The affine relation of output and eps at given coefficients; every field broadcasts to the data.

    Attributes:
        scale, skip: eps = scale out + skip z.
        on_eps, on_x: the perfect output is on_eps eps + on_x x.
    """

    scale: Data
    skip: Data
    on_eps: Data
    on_x: Data

    def target(self, x: Data, eps: Data) -> Data:
        """The output of a perfect network."""
        return self.on_eps * eps + self.on_x * x

    def to_eps(self, out: Data, z: Data) -> Data:
        """eps_hat from the output."""
        return self.scale * out + self.skip * z

    def squared_error(self, out: Data, x: Data, eps: Data) -> Data:
        """(eps - eps_hat)^2, elementwise, formed in the space of the output, where it is well conditioned."""
        return (self.scale * (self.target(x, eps) - out)) ** 2


@PARAMETERIZATIONS.register("noise")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise:
    """The output is eps (2107.00630, section 3.3)."""

    def __call__(self, c: Coefficients) -> Relation:
        """Relation (1)."""
        one, zero = jnp.ones_like(c.gamma), jnp.zeros_like(c.gamma)
        return Relation(scale=one, skip=zero, on_eps=one, on_x=zero)


@PARAMETERIZATIONS.register("data")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DataPrediction:
    """The output is x."""

    def __call__(self, c: Coefficients) -> Relation:
        """Relation (2)."""
        one, zero = jnp.ones_like(c.gamma), jnp.zeros_like(c.gamma)
        return Relation(scale=-c.alpha / c.sigma, skip=1.0 / c.sigma, on_eps=zero, on_x=one)


@PARAMETERIZATIONS.register("velocity")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Velocity:
    """The output is the normalised velocity of the path.

    Attributes:
        path: one of `jvdm.diffusion.paths`.
    """

    path: Any

    def __call__(self, c: Coefficients) -> Relation:
        """Relation (3)."""
        v = self.path.velocity(c.gamma)
        return Relation(scale=v.scale, skip=v.skip, on_eps=v.on_eps, on_x=v.on_x)


@PARAMETERIZATIONS.register("velocity_from_noise")
@dataclasses.dataclass(frozen=True, kw_only=True)
class VelocityFromNoise:
    """The velocity read out of a network of noise, v = -e^(gamma/2) z + sqrt(1 + e^gamma) out (2312.13236).

    On the variance-preserving path eps = alpha v + sigma z is then the output, whatever gamma is: the
    relation is that of `Noise`, and so are the loss, the ODE and samples.
    """

    def __call__(self, c: Coefficients) -> Relation:
        """Relation (1)."""
        return Noise()(c)


@PARAMETERIZATIONS.register("drift")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Drift:
    """The output is g times the score."""

    def __call__(self, c: Coefficients) -> Relation:
        """Relation (4)."""
        # g / sigma; dgamma_dt is infinite at the time, if any, without noise.
        rate, zero = jnp.sqrt(c.dgamma_dt), jnp.zeros_like(c.gamma)
        return Relation(scale=-1.0 / rate, skip=zero, on_eps=-rate, on_x=zero)
