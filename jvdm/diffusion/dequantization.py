"""Dequantization: discrete data x -> a continuous z, with the density q(z | x), for a density model p(z).

For any q, with P(x) = integral of p(z) p(x | z) dz,

    log P(x) >= E_q[ log p(z) + log p(x | z) - log q(z | x) ]                                       (1)
    log P(x) >= E_q[ log 1/K sum_k exp(log p(z_k) + log p(x | z_k) - log q(z_k | x)) ]              (2)

(2 is at least 1, and grows with K.) With z_0 = alpha_0 f + sigma_0 e, the data encoded as f in cells of width
2 / levels (2305.03935, section 4.4), or by another map of `jvdm.diffusion.transforms`, which has other cells:

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
from typing import ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvdm.core import options, random
from jvdm.core.options import option
from jvdm.core.records import Coefficients
from jvdm.core.registry import Registry
from jvdm.core.shapes import sum_example
from jvdm.diffusion import losses, transforms
from jvdm.diffusion.gaussian import diffuse
from jvdm.diffusion.transforms import SCALING, DataMap, Levels

Data = Float[Array, " b *d"]
Scale = losses.Scale


class Dequantized(NamedTuple):
    """A continuous version of discrete data.

    Attributes:
        z: [b, *data_shape].
        log_q: [b] log q(z | x), nats.
        log_decoder: [b] log p(x | z), nats; 0 where z determines x.
    """

    z: Data
    log_q: Float[Array, " b"]
    log_decoder: Float[Array, " b"]


class Dequantization(Protocol):
    """A dequantization, a frozen dataclass.

    Attributes:
        start_gamma: the ODE starts where gamma is this, or at time 0 if gamma is higher there.
        discrete: it is for data of levels; otherwise for continuous data.
        analytic_entropy: log_q is its mean over e, which does not depend on the sample.
    """

    start_gamma: float
    discrete: ClassVar[bool]
    analytic_entropy: bool

    def draw(
        self, key: jax.Array, levels: Levels, at: Coefficients, num_levels: int, data_map: DataMap = SCALING
    ) -> Array:
        """The noise e of one example, of the shape of its levels; `at` without a batch axis."""
        ...

    def __call__(
        self, levels: Levels, e: Data, at: Coefficients, num_levels: int, data_map: DataMap = SCALING
    ) -> Dequantized:
        """z and its density, [b] nats.

        Args:
            levels: [b, ...] data.
            e: [b, ...] from `draw`.
            at: coefficients at the start.
            num_levels: K of the data.
            data_map: that encodes.
        """
        ...


DEQUANTIZATIONS = Registry("dequantization", Dequantization)


def _per_example(a: Scale, like: Data) -> Float[Array, " b"]:
    """The sum over an example's dimensions of a scale."""
    return sum_example(jnp.broadcast_to(a, like.shape))


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
        self, key: jax.Array, levels: Levels, at: Coefficients, num_levels: int, data_map: DataMap = SCALING
    ) -> Array:
        """e of one example, [*data_shape] levels; `at` without a batch axis."""
        low, high = self.bounds(levels, at, num_levels, data_map)
        return random.truncated_normal(key, "dequantization", low, high)

    def bounds(
        self, levels: Levels, at: Coefficients, num_levels: int, data_map: DataMap
    ) -> tuple[Scale, Scale]:
        """lo and hi, of the shape of the levels."""
        one_over = jnp.exp(-0.5 * at.gamma)
        if data_map.equal_cells:
            first, last = data_map.range
            tau = jnp.broadcast_to(one_over * (0.5 * (last - first)) / num_levels, levels.shape)
            return -tau, tau
        x = levels.astype(jnp.float32)
        f = transforms.encode(levels, num_levels, data_map)
        edges = (data_map(edge / num_levels).y for edge in (x, x + 1.0))
        low, high = ((edge - f).astype(one_over.dtype) for edge in edges)
        return one_over * low, one_over * high

    def __call__(
        self, levels: Levels, e: Data, at: Coefficients, num_levels: int, data_map: DataMap = SCALING
    ) -> Dequantized:
        """z and its density.

        Args:
            levels: [b, *data_shape] data.
            e: [b, *data_shape] from `draw`.
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
            log_q = -sum_example(0.5 * e**2) - _per_example(log_scale + log_mass, e)
        f = transforms.encode(levels, num_levels, data_map).astype(e.dtype)
        return Dequantized(diffuse(f, e, at), log_q, jnp.zeros_like(log_q))


@DEQUANTIZATIONS.register("variational")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Variational:
    """Dequantization (4).

    Attributes:
        analytic_entropy: as in `TruncatedNormal`.
        decoder: a name of `losses.DECODERS`.
    """

    analytic_entropy: bool = False
    decoder: str = option("exact", choices=losses.DECODERS)
    start_gamma: ClassVar[float] = -math.inf
    discrete: ClassVar[bool] = True

    def __post_init__(self):
        options.check(self)

    def draw(
        self, key: jax.Array, levels: Levels, at: Coefficients, num_levels: int, data_map: DataMap = SCALING
    ) -> Array:
        """e of one example, [*data_shape] levels."""
        return random.normal(key, "dequantization", levels.shape)

    def __call__(
        self, levels: Levels, e: Data, at: Coefficients, num_levels: int, data_map: DataMap = SCALING
    ) -> Dequantized:
        """z and its density; arguments as in `TruncatedNormal`."""
        log_scale = 0.5 * jnp.log(2.0 * jnp.pi * at.sigma**2)
        squares = jnp.full_like(e, 0.5) if self.analytic_entropy else 0.5 * e**2
        log_q = -sum_example(squares) - _per_example(log_scale, e)
        decoder_scale = losses.DECODERS[self.decoder](at.alpha)
        nats = losses.reconstruction(levels, e, at.gamma, num_levels, decoder_scale, data_map)
        f = transforms.encode(levels, num_levels, data_map).astype(e.dtype)
        return Dequantized(diffuse(f, e, at), log_q, -nats)


def uniform(levels: Levels, u: Data, alpha: Scale, num_levels: int, data_map: DataMap) -> Dequantized:
    """Dequantization (5), of z = alpha y.

    Args:
        levels: [b, *data_shape] data.
        u: [b, *data_shape] in (0, 1).
        alpha: at the start, broadcastable to them.
        num_levels: K of the data.
        data_map: that encodes.

    Returns:
        z, log q(z | x) [b] in nats, and a decoder that costs nothing.
    """
    y, log_q = transforms.dequantize(levels, u, num_levels, data_map)
    log_q = sum_example(log_q) - _per_example(jnp.log(alpha), y)
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
        self, key: jax.Array, levels: Levels, at: Coefficients, num_levels: int, data_map: DataMap = SCALING
    ) -> Array:
        """u of one example, [*data_shape] levels."""
        return random.uniform(key, "dequantization", levels.shape)

    def __call__(
        self, levels: Levels, u: Data, at: Coefficients, num_levels: int, data_map: DataMap = SCALING
    ) -> Dequantized:
        """z and its density; `u` in (0, 1), other arguments as in `TruncatedNormal`."""
        return uniform(levels, u, at.alpha, num_levels, data_map)


@DEQUANTIZATIONS.register("uniform_released")
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformReleased(UniformDequantization):
    """Dequantization (5) as the i-DODE code has it, z not scaled by alpha: a bound, of another model."""

    def __call__(
        self, levels: Levels, u: Data, at: Coefficients, num_levels: int, data_map: DataMap = SCALING
    ) -> Dequantized:
        """z and its density; `u` in (0, 1), other arguments as in `TruncatedNormal`."""
        return uniform(levels, u, jnp.ones_like(at.alpha), num_levels, data_map)


def continuous(x: Data, alpha: Scale) -> Dequantized:
    """(6), of z = alpha x.

    Args:
        x: [b, *data_shape] data.
        alpha: at the start, broadcastable to them.

    Returns:
        z, log q [b] in nats, and a decoder that costs nothing.
    """
    log_q = -_per_example(jnp.log(alpha), x)
    return Dequantized(alpha * x, log_q, jnp.zeros_like(log_q))


@DEQUANTIZATIONS.register("none")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Continuous:
    """Of data that is continuous (6).

    Attributes:
        start_gamma: as in `UniformDequantization`.
    """

    start_gamma: float = -11.8
    analytic_entropy: ClassVar[bool] = False
    discrete: ClassVar[bool] = False

    def draw(
        self,
        key: jax.Array,
        levels: Float[Array, "*d"],
        at: Coefficients,
        num_levels: int,
        data_map: DataMap = SCALING,
    ) -> Array:
        """Nothing is random."""
        return jnp.zeros_like(levels)

    def __call__(
        self, levels: Data, u: Data, at: Coefficients, num_levels: int, data_map: DataMap = SCALING
    ) -> Dequantized:
        """z and its density; `levels` are the data themselves."""
        return continuous(levels, at.alpha)
