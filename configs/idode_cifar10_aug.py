"""CIFAR-10 with augmentation, i-DODE (2305.03935).

    python main.py --mode=train --config=configs/idode_cifar10_aug.py

The augmentation has flips, rotations and channel permutations, with a conditioning scalar that says whether
an image was augmented. Bits/dim are for unaugmented test images. Published: 2.42 bits/dim by the ODE with
20 importance samples. Two probes of the trace make that number a bound (docs/evaluation.md, "K samples").
"""

from jvdm import config as config_lib
from jvdm.data import AUGMENTATIONS
from jvdm.diffusion.divergence import TRACES
from jvdm.diffusion.parameterizations import PARAMETERIZATIONS
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.diffusion.times import TIME_DENSITIES
from jvdm.networks import NETWORKS


def get_config():
    config = config_lib.default()
    config.data.source = "cifar10"
    config.augmentation = AUGMENTATIONS.spec("vdm")
    config.schedule = SCHEDULES.spec("fixed_linear", gamma_min=-13.3, gamma_max=5.0)
    config.parameterization = PARAMETERIZATIONS.spec("velocity")
    config.time_density = TIME_DENSITIES.spec("importance")
    config.network = NETWORKS.spec(
        "vdm_unet", channels=256, num_blocks=32, attention=True, dropout=0.05, num_groups=32
    )
    config.optimizer.decay_mask = "released_vdm"
    config.training.batch_size = 1024
    config.training.num_steps = 6_000_000
    config.eval.ode.importance_samples = 20
    config.eval.ode.trace = TRACES.spec("hutchinson", probes=2)
    return config
