"""Dequantization: discrete data x -> a continuous z, with the density q(z | x), for a density model p(z).

For any q, with P(x) = integral of p(z) p(x | z) dz,

    log P(x) >= E_q[ log p(z) + log p(x | z) - log q(z | x) ]                                       (1)
    log P(x) >= E_q[ log 1/K sum_k exp(log p(z_k) + log p(x | z_k) - log q(z_k | x)) ]              (2)

(2 is at least 1, and grows with K.) With z_0 = alpha_0 f + sigma_0 e, the data encoded as f in cells of width
2 / levels (2305.03935, section 4.4), or by another map of `jvdm.diffusion.transforms` in cells of its own:

    3. truncated normal: e ~ N(0, 1) given lo < e < hi, the cell of x in units of sigma_0 / alpha_0 from its
       centre; by scaling, hi = -lo = tau = alpha_0 / (levels sigma_0). z never leaves the cell of x, so that
       p(x | z) = 1. log q = -1/2 |e|^2 - D/2 ln(2 pi sigma_0^2) - sum ln Z, with Z = Phi(hi) - Phi(lo)
       = erf(tau / sqrt 2). Entropy per dimension:
       1/2 (1 + ln 2 pi sigma_0^2) + ln Z - [hi phi(hi) - lo phi(lo)] / (2 Z)
    4. variational: e ~ N(0, 1), and p(x | z) is the decoder of the variational bound.
       Entropy per dimension: 1/2 (1 + ln 2 pi sigma_0^2)
    5. uniform: z = alpha_s y((x + u) / levels), u uniform: log q = D ln(levels / alpha_s) - sum ln dy/du, and
       the ODE starts at the time s at which gamma is `start_gamma`. As released, alpha_s is taken for 1.
    6. none: data that is continuous is z = alpha_s x, and log q = -D ln alpha_s is the change of its scale.
"""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvdm.core.registry import Registry
from jvdm.diffusion import losses, transforms
from jvdm.diffusion.transforms import SCALING, DataMap, Levels

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
    discrete: ClassVar[bool] = True

    def draw(
        self, key: jax.Array, levels: Levels, at: Start, num_levels: int, data_map: DataMap = SCALING
    ) -> Array:
        """e of one example, [h, w, c] levels; `at` without a batch axis."""
        low, high = self.bounds(levels, at, num_levels, data_map)
        return jax.random.truncated_normal(key, low, high, levels.shape)

    def bounds(self, levels: Levels, at: Start, num_levels: int, data_map: DataMap) -> tuple[Scale, Scale]:
        """lo and hi, of the shape of the levels."""
        one_over = jnp.exp(-0.5 * at.gamma)
        if isinstance(data_map, transforms.Scaling):
            tau = jnp.broadcast_to(one_over / num_levels, levels.shape)
            return -tau, tau
        x = levels.astype(jnp.float32)
        f = transforms.encode(levels, num_levels, data_map)
        low, high = (data_map(edge / num_levels).y - f for edge in (x, x + 1.0))
        return one_over * low, one_over * high

    def __call__(
        self, levels: Levels, e: Data, at: Start, num_levels: int, data_map: DataMap = SCALING
    ) -> Dequantized:
        """z and its density.

        Args:
            levels: [b, h, w, c] data.
            e: [b, h, w, c] from `draw`.
            at: coefficients at the start.
            num_levels: K of the data.
            data_map: that encodes.
        """
        low, high = self.bounds(levels, at, num_levels, data_map)
        mass = 0.5 * (jax.lax.erf(high / math.sqrt(2.0)) - jax.lax.erf(low / math.sqrt(2.0)))
        log_mass = jnp.log(mass)
        log_scale = 0.5 * jnp.log(2.0 * jnp.pi * at.sigma**2)
        if self.analytic_entropy:
            slope = high * jnp.exp(-0.5 * high**2) - low * jnp.exp(-0.5 * low**2)
            excess = slope / (2.0 * math.sqrt(2.0 * math.pi) * mass)
            log_q = -_per_example(0.5 + log_scale + log_mass - excess, e)
        else:
            log_q = -losses.sum_example(0.5 * e**2) - _per_example(log_scale + log_mass, e)
        f = transforms.encode(levels, num_levels, data_map)
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
    discrete: ClassVar[bool] = True

    def __post_init__(self):
        if self.decoder not in losses.DECODERS:
            raise ValueError(f"decoder is {self.decoder!r}: give one of {', '.join(losses.DECODERS)}")

    def draw(
        self, key: jax.Array, levels: Levels, at: Start, num_levels: int, data_map: DataMap = SCALING
    ) -> Array:
        """e of one example, [h, w, c] levels."""
        return jax.random.normal(key, levels.shape)

    def __call__(
        self, levels: Levels, e: Data, at: Start, num_levels: int, data_map: DataMap = SCALING
    ) -> Dequantized:
        """z and its density; arguments as of `TruncatedNormal`."""
        log_scale = 0.5 * jnp.log(2.0 * jnp.pi * at.sigma**2)
        squares = jnp.full_like(e, 0.5) if self.analytic_entropy else 0.5 * e**2
        log_q = -losses.sum_example(squares) - _per_example(log_scale, e)
        magnification = losses.DECODERS[self.decoder](at.alpha)
        nats = losses.reconstruction(levels, e, at.gamma, num_levels, magnification, data_map)
        f = transforms.encode(levels, num_levels, data_map)
        return Dequantized(at.alpha * f + at.sigma * e, log_q, -nats)


def uniform(levels: Levels, u: Data, alpha: Scale, num_levels: int, data_map: DataMap) -> Dequantized:
    """Dequantization (5), of z = alpha y."""
    y, log_q = transforms.dequantize(levels, u, num_levels, data_map)
    log_q = losses.sum_example(log_q) - _per_example(jnp.log(alpha), y)
    return Dequantized(alpha * y, log_q, jnp.zeros_like(log_q))


@DEQUANTIZATIONS.register("uniform")
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformDequantization:
    """Dequantization (5).

    Attributes:
        start_gamma: the ODE starts where gamma is this, or at time 0 if gamma is higher there.
    """

    start_gamma: float = -11.8
    analytic_entropy: ClassVar[bool] = False
    discrete: ClassVar[bool] = True

    def draw(
        self, key: jax.Array, levels: Levels, at: Start, num_levels: int, data_map: DataMap = SCALING
    ) -> Array:
        """u of one example, [h, w, c] levels."""
        return jax.random.uniform(key, levels.shape)

    def __call__(
        self, levels: Levels, u: Data, at: Start, num_levels: int, data_map: DataMap = SCALING
    ) -> Dequantized:
        """z and its density; `u` in [0, 1), other arguments as of `TruncatedNormal`."""
        return uniform(levels, u, at.alpha, num_levels, data_map)


@DEQUANTIZATIONS.register("uniform_released")
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformReleased(UniformDequantization):
    """Dequantization (5) as the i-DODE code has it, z not scaled by alpha: a bound, of another model."""

    def __call__(
        self, levels: Levels, u: Data, at: Start, num_levels: int, data_map: DataMap = SCALING
    ) -> Dequantized:
        """z and its density; `u` in [0, 1), other arguments as of `TruncatedNormal`."""
        return uniform(levels, u, jnp.ones_like(at.alpha), num_levels, data_map)


@DEQUANTIZATIONS.register("none")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Continuous:
    """Of data that is continuous (6).

    Attributes:
        start_gamma: as of `UniformDequantization`.
    """

    start_gamma: float = -11.8
    analytic_entropy: ClassVar[bool] = False
    discrete: ClassVar[bool] = False

    def draw(
        self, key: jax.Array, levels: Data, at: Start, num_levels: int, data_map: DataMap = SCALING
    ) -> Array:
        """Nothing is random."""
        return jnp.zeros_like(levels)

    def __call__(
        self, levels: Data, u: Data, at: Start, num_levels: int, data_map: DataMap = SCALING
    ) -> Dequantized:
        """z and its density; `levels` are the data themselves."""
        log_q = -_per_example(jnp.log(at.alpha), levels)
        return Dequantized(at.alpha * levels, log_q, jnp.zeros_like(log_q))
