"""ImageNet 64x64, VDM (2107.00630, table 1).

    python main.py --mode=train --config=configs/vdm_imagenet64.py

Published: 3.40 bits/dim.
"""

from jvdm import config as config_lib
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.networks import NETWORKS


def get_config():
    config = config_lib.default()
    config.data.source = "imagenet64"
    config.schedule = SCHEDULES.spec("learned_scalar", gamma_min=-13.3, gamma_max=5.0)
    config.network = NETWORKS.spec("vdm_unet", channels=256, num_blocks=64, dropout=0.1, num_groups=32)
    config.optimizer.decay_mask = "released_vdm"
    config.training.batch_size = 128
    config.training.num_steps = 10_000_000
    return config
