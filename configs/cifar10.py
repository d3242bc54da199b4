"""CIFAR-10 without augmentation, i-DODE (2305.03935): the flagship.

    python main.py --mode=train --config=configs/cifar10.py              # variance-preserving path
    python main.py --mode=train --config=configs/cifar10.py:straight     # straight path
    python main.py --mode=train --config=configs/cifar10.py:finetune     # second-order stage, after the first
    python main.py --mode=train --config=configs/cifar10.py:straight_finetune

Published: 2.56 bits/dim by the ODE with truncated-normal dequantization, batch 128, 6M steps and 200k steps
of finetuning. The finetuning stages start from the weights of the first stage (`config.init_from`):
runs/cifar10 or runs/cifar10-straight. jvdm has not been trained that far.
"""

from jvdm import config as config_lib
from jvdm.core.errors import unknown
from jvdm.diffusion.parameterizations import PARAMETERIZATIONS
from jvdm.diffusion.paths import PATHS
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.diffusion.times import TIME_DENSITIES
from jvdm.networks import NETWORKS

STAGES = ("variance_preserving", "straight", "finetune", "straight_finetune")


def get_config(stage="variance_preserving"):
    if stage not in STAGES:
        raise unknown("argument of cifar10.py", stage, STAGES)
    config = config_lib.default()
    config.data.source = "cifar10"
    config.schedule = SCHEDULES.spec("fixed_linear", gamma_min=-13.3, gamma_max=5.0)
    config.path = PATHS.spec("straight" if stage.startswith("straight") else "variance_preserving")
    config.parameterization = PARAMETERIZATIONS.spec("velocity")
    config.time_density = TIME_DENSITIES.spec("importance")
    config.network = NETWORKS.spec("vdm_unet", channels=128, num_blocks=32, dropout=0.1, num_groups=32)
    config.optimizer.decay_mask = "released_vdm"
    config.training.batch_size = 128
    config.training.num_steps = 6_000_000
    if stage.endswith("finetune"):
        config.init_from = "runs/cifar10-straight" if stage.startswith("straight") else "runs/cifar10"
        config.training.second_order = 0.1
        config.training.num_steps = 200_000
    return config
