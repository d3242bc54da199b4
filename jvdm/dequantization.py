"""Dequantization: discrete data x -> a continuous z, with the density q(z | x), for a density model p(z).

For any q, with P(x) = integral of p(z) p(x | z) dz,

    log P(x) >= E_q[ log p(z) + log p(x | z) - log q(z | x) ]                                       (1)
    log P(x) >= E_q[ log 1/K sum_k exp(log p(z_k) + log p(x | z_k) - log q(z_k | x)) ]              (2)

(2 is at least 1, and grows with K.) With z_0 = alpha_0 f + sigma_0 e, the data encoded as f in cells of width
2 / levels (2305.03935, section 4.4):

    3. truncated normal: e ~ N(0, 1) given |e| < tau, tau = alpha_0 / (levels sigma_0): z never leaves the
       cell of x, so that p(x | z) = 1. log q = -1/2 |e|^2 - D/2 ln(2 pi sigma_0^2) - D ln Z, with
       Z = erf(tau / sqrt 2). Entropy per dimension:
       1/2 (1 + ln 2 pi sigma_0^2) + ln Z - tau exp(-tau^2 / 2) / (sqrt(2 pi) Z)
    4. variational: e ~ N(0, 1), and p(x | z) is the decoder of the variational bound.
       Entropy per dimension: 1/2 (1 + ln 2 pi sigma_0^2)
    5. uniform: z = alpha_s (2 (x + u) / levels - 1), u uniform: log q = -D ln(2 alpha_s / levels), and the
       ODE starts at the time s at which gamma is `start_gamma`. As released, alpha_s is taken for 1.
"""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvdm import losses
from jvdm.registry import Registry

DEQUANTIZATIONS = Registry("dequantization")

Data = Float[Array, "b h w c"]
Scale = losses.Scale


class Start(NamedTuple):
    """Coefficients at the time at which the ODE starts, broadcastable to the data."""

    alpha: Scale
    sigma: Scale
    gamma: Scale


class Dequantized(NamedTuple):
    """A continuous version of discrete data.

    Attributes:
        z: [b, h, w, c].
        log_q: [b] log q(z | x), nats.
        log_decoder: [b] log p(x | z), nats; 0 where z tells x.
    """

    z: Data
    log_q: Float[Array, " b"]
    log_decoder: Float[Array, " b"]


def _per_example(a: Scale, like: Data) -> Float[Array, " b"]:
    """The sum over an example's dimensions of a scale."""
    return losses.sum_example(jnp.broadcast_to(a, like.shape))


@DEQUANTIZATIONS.register("truncated_normal")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TruncatedNormal:
    """Dequantization (3).

    Attributes:
        analytic_entropy: -E[log q] in place of the sampled -log q: the same mean, but a larger variance,
            because log p and log q of the same sample vary together.
    """

    analytic_entropy: bool = False
    start_gamma: ClassVar[float] = -math.inf

    def draw(self, key: jax.Array, shape: tuple[int, int, int], at: Start, num_levels: int) -> Array:
        """e of one example; `at` is that example's, without a batch axis."""
        tau = jnp.broadcast_to(self.bound(at, num_levels), shape)
        return jax.random.truncated_normal(key, -tau, tau, shape)

    def bound(self, at: Start, num_levels: int) -> Scale:
        """tau."""
        return jnp.exp(-0.5 * at.gamma) / num_levels

    def __call__(self, levels: losses.Levels, e: Data, at: Start, num_levels: int) -> Dequantized:
        """z and its density.

        Args:
            levels: [b, h, w, c] data.
            e: [b, h, w, c] from `draw`.
            at: coefficients at the start.
            num_levels: K of the data.
        """
        tau = self.bound(at, num_levels)
        log_mass = jnp.log(jax.lax.erf(tau / math.sqrt(2.0)))
        log_scale = 0.5 * jnp.log(2.0 * jnp.pi * at.sigma**2)
        if self.analytic_entropy:
            mass = jnp.exp(log_mass)
            excess = tau * jnp.exp(-0.5 * tau**2) / (math.sqrt(2.0 * math.pi) * mass)
            log_q = -_per_example(0.5 + log_scale + log_mass - excess, e)
        else:
            log_q = -losses.sum_example(0.5 * e**2) - _per_example(log_scale + log_mass, e)
        f = losses.encode(levels, num_levels)
        return Dequantized(at.alpha * f + at.sigma * e, log_q, jnp.zeros_like(log_q))


@DEQUANTIZATIONS.register("variational")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Variational:
    """Dequantization (4).

    Attributes:
        analytic_entropy: as of `TruncatedNormal`.
        decoder: a name of `losses.DECODERS`.
    """

    analytic_entropy: bool = False
    decoder: str = "exact"
    start_gamma: ClassVar[float] = -math.inf

    def __post_init__(self):
        if self.decoder not in losses.DECODERS:
            raise ValueError(f"decoder is {self.decoder!r}: give one of {', '.join(losses.DECODERS)}")

    def draw(self, key: jax.Array, shape: tuple[int, int, int], at: Start, num_levels: int) -> Array:
        """e of one example."""
        return jax.random.normal(key, shape)

    def __call__(self, levels: losses.Levels, e: Data, at: Start, num_levels: int) -> Dequantized:
        """z and its density; arguments as of `TruncatedNormal`."""
        log_scale = 0.5 * jnp.log(2.0 * jnp.pi * at.sigma**2)
        squares = jnp.full_like(e, 0.5) if self.analytic_entropy else 0.5 * e**2
        log_q = -losses.sum_example(squares) - _per_example(log_scale, e)
        magnification = losses.DECODERS[self.decoder](at.alpha)
        nats = losses.reconstruction(levels, e, at.gamma, num_levels, magnification)
        return Dequantized(at.alpha * losses.encode(levels, num_levels) + at.sigma * e, log_q, -nats)


def _uniform(levels: losses.Levels, u: Data, alpha: Scale, num_levels: int) -> Dequantized:
    z = alpha * (2.0 * (levels.astype(jnp.float32) + u) / num_levels - 1.0)
    log_q = -_per_example(jnp.log(alpha) + math.log(2.0 / num_levels), z)
    return Dequantized(z, log_q, jnp.zeros_like(log_q))


@DEQUANTIZATIONS.register("uniform")
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformDequantization:
    """Dequantization (5).

    Attributes:
        start_gamma: the ODE starts where gamma is this, or at time 0 if gamma is higher there.
    """

    start_gamma: float = -11.8
    analytic_entropy: ClassVar[bool] = False

    def draw(self, key: jax.Array, shape: tuple[int, int, int], at: Start, num_levels: int) -> Array:
        """u of one example."""
        return jax.random.uniform(key, shape)

    def __call__(self, levels: losses.Levels, u: Data, at: Start, num_levels: int) -> Dequantized:
        """z and its density; `u` in [0, 1), other arguments as of `TruncatedNormal`."""
        return _uniform(levels, u, at.alpha, num_levels)


@DEQUANTIZATIONS.register("uniform_released")
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformReleased:
    """Dequantization (5) as the i-DODE code has it, z not scaled by alpha: a bound, of another model."""

    start_gamma: float = -11.8
    analytic_entropy: ClassVar[bool] = False

    def draw(self, key: jax.Array, shape: tuple[int, int, int], at: Start, num_levels: int) -> Array:
        """u of one example."""
        return jax.random.uniform(key, shape)

    def __call__(self, levels: losses.Levels, u: Data, at: Start, num_levels: int) -> Dequantized:
        """z and its density; `u` in [0, 1), other arguments as of `TruncatedNormal`."""
        return _uniform(levels, u, jnp.ones_like(at.alpha), num_levels)
