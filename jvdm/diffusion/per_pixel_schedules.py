"""Schedules of every pixel, conditioned on a latent c of the image (2312.13236, section 3.1 and appendix).

With a network of two hidden layers that maps c to numbers for every pixel and channel:

    1. polynomial:  gamma = gamma_0 + (gamma_1 - gamma_0) P(t) / P(1), where P' = (a t^2 + b t + d)^2, so that
                    P = a^2 t^5 / 5 + a b t^4 / 2 + (b^2 + 2 a d) t^3 / 3 + b d t^2 + d^2 t,
                    and d is at least 1e-3
    2. monotone:    gamma = gamma_0 + (gamma_1 - gamma_0) (g(t) - g(0)) / (g(1) - g(0)),
                    g = t + sum_j w_j s(v_j t + u_j), w and v positive, all from c

All pixels share the ends, which are fixed. A bound with them is a bound because gamma depends on the image
through c alone. A linear schedule is that of `jvdm.diffusion.schedules`, which does not look at c.

Samplers take roots of gamma', which (1) brings to 0 or near it, and of steps of gamma. So both are computed
as sums of what is not negative, to a few ulp:

    3. P = t sum_i w_i q(t x_i)^2,  q = a t^2 + b t + d,  by Gauss's rule of three points x_i on [0, 1], which
       is exact up to t^5, and P' = q^2
    4. s(v t + u) - s(u) = s(v t + u) s(-u) (1 - e^(-v t))
"""

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jvdm.core import options
from jvdm.core.options import option
from jvdm.core.records import Context
from jvdm.core.shapes import lead
from jvdm.diffusion.schedules import SCHEDULES

Gamma = Float[Array, "..."]


def _coefficients(
    context: Context, hidden: int, shape: Sequence[int], names: Sequence[str], rank: int
) -> list[Float[Array, "..."]]:
    """One number of each name for every pixel, of `rank` axes or more; called inside a compact method."""
    if context.latent is None:
        raise ValueError("a schedule of every pixel needs a latent")
    h = latent = context.latent
    for name in ("hidden1", "hidden2"):
        h = nn.swish(nn.Dense(hidden, name=name)(h))
    size = 1
    for n in shape:
        size *= n
    return [lead(nn.Dense(size, name=name)(h).reshape(len(latent), *shape), rank) for name in names]


class _PixelSchedule(nn.Module):
    """What both schedules have."""

    data_shape: tuple[int, ...]
    gamma_min: float = -13.3
    gamma_max: float = 5.0
    hidden: int = option(1024, low=1, help="features of the hidden layers")
    endpoints: ClassVar[tuple[str, ...]] = ()
    has_interior: ClassVar[bool] = True
    per_pixel: ClassVar[bool] = True

    def __post_init__(self):
        options.check(self)
        super().__post_init__()


# Points and weights of (3).
_GAUSS = tuple(zip((0.5 - 0.15**0.5, 0.5, 0.5 + 0.15**0.5), (5 / 18, 8 / 18, 5 / 18), strict=True))


def _square(t: Array, a: Array, b: Array, d: Array) -> Array:
    return (d + t * (b + t * a)) ** 2


@jax.custom_jvp
def _integral(t: Array, a: Array, b: Array, d: Array) -> Array:
    """P (3)."""
    return _gauss(t, a, b, d)


def _gauss(t: Array, a: Array, b: Array, d: Array) -> Array:
    return t * sum(weight * _square(point * t, a, b, d) for point, weight in _GAUSS)


@_integral.defjvp
def _(primals, tangents):
    """P' in t is one square; in a, b and d there is nothing to gain."""
    t, a, b, d = primals
    dt, *others = tangents
    value, along_others = jax.jvp(lambda a, b, d: _gauss(t, a, b, d), (a, b, d), tuple(others))
    return value, along_others + _square(t, a, b, d) * dt


@SCHEDULES.register("polynomial")
class Polynomial(_PixelSchedule):
    """Schedule (1).

    Attributes:
        data_shape: of one example.
        gamma_min, gamma_max: the ends.
        hidden: features of the network's hidden layers.
    """

    @nn.compact
    def __call__(self, t: Float[Array, "..."], context: Context) -> Gamma:
        """As `Schedule.__call__`, for the images whose latents are in the context."""
        a, b, d = _coefficients(context, self.hidden, self.data_shape, ("a", "b", "d"), t.ndim)
        d = 1e-3 + jax.nn.softplus(d)
        share = _integral(t, a, b, d) / _integral(jnp.ones((), t.dtype), a, b, d)
        return self.gamma_min + (self.gamma_max - self.gamma_min) * share


@SCHEDULES.register("pixel_monotone")
class PixelMonotone(_PixelSchedule):
    """Schedule (2).

    Attributes:
        data_shape: of one example.
        gamma_min, gamma_max: the ends.
        hidden: features of the network's hidden layers.
        num_steps: j, sigmoids of every pixel.
    """

    num_steps: int = option(3, low=1)

    @nn.compact
    def __call__(self, t: Float[Array, "..."], context: Context) -> Gamma:
        """As `Schedule.__call__`, for the images whose latents are in the context."""
        names = [f"{name}{j}" for j in range(self.num_steps) for name in ("height", "slope", "place")]
        numbers = _coefficients(context, self.hidden, self.data_shape, names, t.ndim)
        steps = [
            (jax.nn.softplus(height), 1.0 + 10.0 * jax.nn.softplus(slope), place)
            for height, slope, place in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
        ]

        def rise(t):
            """g(t) - g(0)."""
            total = t
            for j, (height, slope, place) in enumerate(steps):
                # The steps are spread over [0, 1] to begin with.
                at_0 = place - slope * (j + 0.5) / self.num_steps
                step = jax.nn.sigmoid(at_0 + slope * t) * jax.nn.sigmoid(-at_0) * -jnp.expm1(-slope * t)
                total = total + height * step
            return total

        return self.gamma_min + (self.gamma_max - self.gamma_min) * rise(t) / rise(jnp.ones((), t.dtype))
