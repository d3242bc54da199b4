"""ImageNet 32x32, new (anti-aliased) version, i-DODE (2305.03935).

    python main.py --mode=train --config=configs/idode_imagenet32_new.py
    python main.py --mode=train --config=configs/idode_imagenet32_new.py:finetune

Published: 3.43 bits/dim with batch 128, 2M steps and 250k steps of finetuning. Do not compare the old and the
new version of the data.
"""

from jvdm import config as config_lib
from jvdm.core.errors import unknown
from jvdm.diffusion.parameterizations import PARAMETERIZATIONS
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.diffusion.times import TIME_DENSITIES
from jvdm.networks import NETWORKS

STAGES = ("first", "finetune")


def get_config(stage="first"):
    if stage not in STAGES:
        raise unknown("argument of idode_imagenet32_new.py", stage, STAGES)
    config = config_lib.default()
    config.data.source = "imagenet32_new"
    config.schedule = SCHEDULES.spec("fixed_linear", gamma_min=-13.3, gamma_max=5.0)
    config.parameterization = PARAMETERIZATIONS.spec("velocity")
    config.time_density = TIME_DENSITIES.spec("importance")
    config.network = NETWORKS.spec("vdm_unet", channels=256, num_blocks=32, dropout=0.1, num_groups=32)
    config.optimizer.decay_mask = "released_vdm"
    config.training.batch_size = 128
    config.training.num_steps = 2_000_000
    if stage == "finetune":
        config.init_from = "runs/idode_imagenet32_new"
        config.training.second_order = 0.1
        config.training.num_steps = 250_000
    return config
