"""Networks and encoders, and the layers that they share.

A network knows nothing of schedules or losses: it maps an array, a time and a condition to an array.
"""

from jvdm.networks.ddpm_unet import DDPMUNet
from jvdm.networks.encoders import ENCODERS, CNNEncoder, UNetEncoder
from jvdm.networks.inputs import TIME_INPUTS, GammaInput, TimeInput, features, time_input
from jvdm.networks.mlp import MLP
from jvdm.networks.network import NETWORKS
from jvdm.networks.unet import VDMUNet

__all__ = [
    "ENCODERS",
    "MLP",
    "NETWORKS",
    "TIME_INPUTS",
    "CNNEncoder",
    "DDPMUNet",
    "GammaInput",
    "TimeInput",
    "UNetEncoder",
    "VDMUNet",
    "features",
    "time_input",
]
