"""`jvdm.diffusion.schedules` under its short name."""

from jvdm.diffusion.schedules import *  # noqa: F403 (all of it is the point)
