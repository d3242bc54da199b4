"""CIFAR-10 without augmentation, VDM (2107.00630, table 1).

    python main.py --mode=train --config=configs/vdm_cifar10.py

Published: 2.65 bits/dim after 10M steps on 8 TPUv3 chips (the paper's table; the public checkpoint has
2.637). jvdm has not been trained that far; docs/results.md has the measurements.
"""

from jvdm import config as config_lib
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.networks import NETWORKS


def get_config():
    config = config_lib.default()
    config.data.source = "cifar10"
    config.schedule = SCHEDULES.spec("learned_scalar", gamma_min=-13.3, gamma_max=5.0)
    config.network = NETWORKS.spec("vdm_unet", channels=128, num_blocks=32, dropout=0.1, num_groups=32)
    config.optimizer.decay_mask = "released_vdm"
    config.training.batch_size = 128
    config.training.num_steps = 10_000_000
    return config
