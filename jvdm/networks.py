"""The networks by name, and what each of them sees of the time.

A network is (z [b, h, w, c], time [b], conditioning [b], train) -> output [b, h, w, c]. Its time is one of

    1. gamma: (gamma - gamma_min) / (gamma_max - gamma_min), with the config's ends, also where the schedule
       has learned others (2107.00630, appendix C)
    2. t:     the time of the diffusion itself, as in score-based SDEs, whose gamma begins at minus infinity
"""

import dataclasses

from jaxtyping import Array, Float

from jvdm.ddpm_unet import DDPMUNet
from jvdm.mlp import MLP
from jvdm.registry import Registry
from jvdm.unet import VDMUNet

NETWORKS = Registry("network")
NETWORKS.register("vdm_unet")(VDMUNet)
NETWORKS.register("ddpm_unet")(DDPMUNet)
NETWORKS.register("mlp")(MLP)

TIME_INPUTS = ("gamma", "t")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GammaInput:
    """Time (1).

    Attributes:
        gamma_min, gamma_max: what is mapped to 0 and 1.
    """

    gamma_min: float = 0.0
    gamma_max: float = 1.0

    def __call__(self, t: Float[Array, " b"] | None, gamma: Float[Array, " b"]) -> Float[Array, " b"]:
        """The network's time at t, where the schedule is gamma."""
        return (gamma - self.gamma_min) / (self.gamma_max - self.gamma_min)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeInput:
    """Time (2)."""

    def __call__(self, t: Float[Array, " b"] | None, gamma: Float[Array, " b"]) -> Float[Array, " b"]:
        """The network's time at t, where the schedule is gamma."""
        if t is None:
            raise ValueError("this network sees t, which is not given")
        return t
