"""ImageNet 32x32, VDM (2107.00630, table 1).

    python main.py --mode=train --config=configs/vdm_imagenet32.py         # the old version of the data
    python main.py --mode=train --config=configs/vdm_imagenet32.py:new     # the new, anti-aliased one

Published, old version: 3.72 bits/dim. Do not compare the two versions of the data.
"""

from jvdm import config as config_lib
from jvdm.core.errors import unknown
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.networks import NETWORKS


def get_config(version="old"):
    if version not in ("old", "new"):
        raise unknown("argument of vdm_imagenet32.py", version, ("old", "new"))
    config = config_lib.default()
    config.data.source = f"imagenet32_{version}"
    config.schedule = SCHEDULES.spec("learned_scalar", gamma_min=-13.3, gamma_max=5.0)
    config.network = NETWORKS.spec("vdm_unet", channels=256, num_blocks=32, dropout=0.1, num_groups=32)
    config.optimizer.decay_mask = "released_vdm"
    config.training.batch_size = 128
    config.training.num_steps = 10_000_000
    return config
