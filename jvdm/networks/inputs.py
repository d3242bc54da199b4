"""What a network sees of the time.

1. gamma: (gamma - gamma_min) / (gamma_max - gamma_min), with the config's ends, also where the schedule
   has learned others (2107.00630, appendix C)
   (of a schedule of every pixel, their mean)
2. t:     the time of the diffusion itself, as in score-based SDEs, whose gamma begins at minus infinity
3. pixel_gamma: (1) of every pixel and channel (the LDM variant of 2312.13236)
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jvdm.core.errors import unknown
from jvdm.core.records import Context


@dataclasses.dataclass(frozen=True, kw_only=True)
class GammaInput:
    """Time (1) or (3).

    Attributes:
        gamma_min, gamma_max: what is mapped to 0 and 1.
        of_pixels: keep those of every pixel.
    """

    gamma_min: float = 0.0
    gamma_max: float = 1.0
    of_pixels: bool = False

    def __call__(self, t: Float[Array, " b"] | None, gamma: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """The network's time.

        Args:
            t: [b] times; unused.
            gamma: [b, ...] at those times, broadcastable to the data.

        Returns:
            [b], or of the shape of gamma with `of_pixels`.
        """
        if not self.of_pixels:
            gamma = jnp.mean(gamma, axis=tuple(range(1, gamma.ndim)))
        return (gamma - self.gamma_min) / (self.gamma_max - self.gamma_min)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeInput:
    """Time (2)."""

    def __call__(self, t: Float[Array, " b"] | None, gamma: Float[Array, "b ..."]) -> Float[Array, " b"]:
        """The network's time.

        Args:
            t: [b] times.
            gamma: unused.

        Returns:
            [b].

        Raises:
            ValueError: t is not given.
        """
        if t is None:
            raise ValueError("this network sees t, which is not given")
        return t


TIME_INPUTS = ("gamma", "t", "pixel_gamma")


def time_input(name: str, schedule: Any) -> GammaInput | TimeInput:
    """What `config.model.time_input` selects.

    Args:
        name: one of `TIME_INPUTS`.
        schedule: has `gamma_min` and `gamma_max`.

    Raises:
        UserError: the name is unknown.
    """
    if name not in TIME_INPUTS:
        raise unknown("config.model.time_input", name, TIME_INPUTS)
    if name == "t":
        return TimeInput()
    return GammaInput(
        gamma_min=schedule.gamma_min, gamma_max=schedule.gamma_max, of_pixels=name == "pixel_gamma"
    )


def features(context: Context, batch_size: int) -> Float[Array, "b m"]:
    """What a network sees of each example apart from z and its time, as one vector.

    The flag of augmentation comes first, 0 where it is not known; then the latent, if there is one.
    """
    augmented = context.conditioning.augmented
    flag = jnp.zeros((batch_size, 1)) if augmented is None else augmented[:, None]
    return flag if context.latent is None else jnp.concatenate([flag, context.latent], axis=-1)
