"""`jvdm.diffusion.losses` under its short name."""

from jvdm.diffusion.losses import *  # noqa: F403 (all of it is the point)
