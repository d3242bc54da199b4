"""`jvdm.networks.unet` under its short name."""

from jvdm.networks.unet import *  # noqa: F403 (all of it is the point)
