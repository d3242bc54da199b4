"""`jvdm.diffusion.dequantization` under its short name."""

from jvdm.diffusion.dequantization import *  # noqa: F403 (all of it is the point)
