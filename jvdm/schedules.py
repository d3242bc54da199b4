"""`jvdm.diffusion.schedules` under its short name."""

from jvdm.diffusion.schedules import *  # noqa: F403
