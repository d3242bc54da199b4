"""CIFAR-10 with augmentation, VDM (2107.00630, table 1).

    python main.py --mode=train --config=configs/vdm_cifar10_aug.py

The augmentation has flips, rotations and channel permutations, with a conditioning scalar that says whether
an image was augmented. Bits/dim are for unaugmented test images. Published: 2.49 bits/dim (the public
checkpoint has 2.522).
"""

from jvdm import config as config_lib
from jvdm.data import AUGMENTATIONS
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.networks import NETWORKS


def get_config():
    config = config_lib.default()
    config.data.source = "cifar10"
    config.augmentation = AUGMENTATIONS.spec("vdm")
    config.schedule = SCHEDULES.spec("monotone_network_released", gamma_min=-13.3, gamma_max=5.0)
    config.network = NETWORKS.spec(
        "vdm_unet", channels=256, num_blocks=32, attention=True, dropout=0.05, num_groups=32
    )
    config.optimizer.decay_mask = "released_vdm"
    config.training.batch_size = 1024
    config.training.num_steps = 10_000_000
    return config
