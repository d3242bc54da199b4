"""Schedules of every pixel, conditioned on a latent c of the image (2312.13236, section 3.1 and appendix).

With a network of two hidden layers that maps c to numbers for every pixel and channel:

    1. polynomial:  gamma = gamma_0 + (gamma_1 - gamma_0) P(t) / P(1), where P' = (a t^2 + b t + d)^2, so that
                    P = a^2 t^5 / 5 + a b t^4 / 2 + (b^2 + 2 a d) t^3 / 3 + b d t^2 + d^2 t,
                    and d is at least 1e-3
    2. monotone:    gamma = gamma_0 + (gamma_1 - gamma_0) (g(t) - g(0)) / (g(1) - g(0)),
                    g = t + sum_j w_j s(v_j t + u_j), w and v positive, all from c

All pixels share the ends, which are fixed. A bound with them is a bound because gamma depends on the image
through c alone. A linear schedule is that of `jvdm.schedules`, which does not look at c.
"""

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jvdm.records import Context
from jvdm.schedules import SCHEDULES

Gamma = Float[Array, "... b h w c"]


def _coefficients(
    context: Context, hidden: int, shape: Sequence[int], names: Sequence[str]
) -> list[Float[Array, "b h w c"]]:
    """One number of each name for every pixel; called inside a compact method."""
    if context.latent is None:
        raise ValueError("a schedule of every pixel needs a latent")
    h = latent = context.latent
    for name in ("hidden1", "hidden2"):
        h = nn.swish(nn.Dense(hidden, name=name)(h))
    size = 1
    for n in shape:
        size *= n
    return [nn.Dense(size, name=name)(h).reshape(len(latent), *shape) for name in names]


@SCHEDULES.register("polynomial")
class Polynomial(nn.Module):
    """Schedule (1).

    Attributes:
        image_shape: (h, w, c).
        gamma_min, gamma_max: the ends.
        hidden: features of the network's hidden layers.
    """

    image_shape: tuple[int, int, int]
    gamma_min: float = -13.3
    gamma_max: float = 5.0
    hidden: int = 1024
    endpoints: ClassVar[tuple[str, ...]] = ()
    has_interior: ClassVar[bool] = True
    per_pixel: ClassVar[bool] = True

    @nn.compact
    def __call__(self, t: Float[Array, "... b 1 1 1"], context: Context) -> Gamma:
        """gamma at t, of the images whose latents are in the context."""
        a, b, d = _coefficients(context, self.hidden, self.image_shape, ("a", "b", "d"))
        d = 1e-3 + jax.nn.softplus(d)

        def integral(t):
            return t * (d**2 + t * (b * d + t * ((b**2 + 2 * a * d) / 3 + t * (a * b / 2 + t * a**2 / 5))))

        share = integral(t) / integral(jnp.ones_like(d))
        return self.gamma_min + (self.gamma_max - self.gamma_min) * share


@SCHEDULES.register("pixel_monotone")
class PixelMonotone(nn.Module):
    """Schedule (2).

    Attributes:
        image_shape: (h, w, c).
        gamma_min, gamma_max: the ends.
        hidden: features of the network's hidden layers.
        num_steps: j, sigmoids of every pixel.
    """

    image_shape: tuple[int, int, int]
    gamma_min: float = -13.3
    gamma_max: float = 5.0
    hidden: int = 1024
    num_steps: int = 3
    endpoints: ClassVar[tuple[str, ...]] = ()
    has_interior: ClassVar[bool] = True
    per_pixel: ClassVar[bool] = True

    def __post_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}: give 1 or more")
        super().__post_init__()

    @nn.compact
    def __call__(self, t: Float[Array, "... b 1 1 1"], context: Context) -> Gamma:
        """gamma at t, of the images whose latents are in the context."""
        names = [f"{name}{j}" for j in range(self.num_steps) for name in ("height", "slope", "place")]
        numbers = _coefficients(context, self.hidden, self.image_shape, names)
        steps = [
            (jax.nn.softplus(height), 1.0 + 10.0 * jax.nn.softplus(slope), place)
            for height, slope, place in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
        ]

        def g(t):
            # The steps are spread over [0, 1] to begin with.
            return t + sum(
                height * jax.nn.sigmoid(slope * (t - (j + 0.5) / self.num_steps) + place)
                for j, (height, slope, place) in enumerate(steps)
            )

        zeros = jnp.zeros_like(numbers[0])
        start, end = g(zeros), g(zeros + 1.0)
        return self.gamma_min + (self.gamma_max - self.gamma_min) * (g(t) - start) / (end - start)
