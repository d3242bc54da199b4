"""MuLAN and the systems it is compared with, on two CPU cores, with equal networks, steps and data.

    python main.py --mode=train --config=configs/mulan_tiny.py                     # on digits
    python main.py --mode=train --config=configs/mulan_tiny.py:SYSTEM              # one of SYSTEMS, on digits
    python main.py --mode=train --config=configs/mulan_tiny.py:SYSTEM,FILE.npz     # on 32x32 images

FILE.npz has uint8 arrays `train_images` and `test_images`, [N, 32, 32, 3]. For these images the network has
no Fourier features: after so few steps, the ODE with them is too stiff to solve. benchmarks/systems.py
trains and evaluates all systems.
"""

from jvdm import config as config_lib
from jvdm.core.errors import unknown
from jvdm.diffusion.latents import LATENTS
from jvdm.diffusion.parameterizations import PARAMETERIZATIONS
from jvdm.diffusion.per_pixel_schedules import SCHEDULES
from jvdm.diffusion.times import TIME_DENSITIES
from jvdm.networks import NETWORKS
from jvdm.networks.encoders import ENCODERS

SYSTEMS = (
    "vdm_fixed",
    "vdm_learned",
    "idode_velocity",
    "mulan_k_subset",
    "mulan_velocity",
    "mulan_surrogate",
    "mulan_gaussian",
)


def get_config(argument="mulan_k_subset"):
    system, _, npz = argument.partition(",")
    if system not in SYSTEMS:
        raise unknown("argument of mulan_tiny.py", system, SYSTEMS)
    config = config_lib.default()
    ends = {"gamma_min": -13.3 if npz else -7.0, "gamma_max": 5.0}
    if npz:
        config.data.source = f"npz:{npz}"
        trunk = {"channels": 32, "dropout": 0.0, "fourier": False}
        config.network = NETWORKS.spec("vdm_unet", num_blocks=4, **trunk)
        config.training.batch_size = 16
        config.training.num_steps = 300
        config.training.log_every = 20
        config.training.eval_every = 50
        config.training.eval_images = 128
        config.training.checkpoint_every = 300
        config.training.sample_every = 0
        config.eval.batch_size = 64
        config.eval.draws = 16
        config.eval.num_images = 128
        config.eval.ode.batch_size = 16
        config.optimizer.linear_decay = True
        config.optimizer.ema_rate = 0.99
    else:
        trunk = {"channels": 32, "dropout": 0.1, "fourier_first": 2, "fourier_last": 4}
        config.network = NETWORKS.spec("vdm_unet", num_blocks=2, **trunk)
        config.training.batch_size = 64
        config.training.num_steps = 2000
        config.training.steps_per_dispatch = 10
        config.training.log_every = 50
        config.training.eval_every = 250
        config.training.eval_images = 0
        config.training.eval_draws = 8
        config.training.checkpoint_every = 500
        config.training.sample_every = 0
        config.eval.batch_size = 297
        config.eval.draws = 64
        config.eval.ode.batch_size = 99
        config.optimizer.ema_rate = 0.998
        config.optimizer.ema_power = 0.75
    config.optimizer.learning_rate = 2e-3
    config.optimizer.clip_norm = 1.0
    config.sample.steps = 250
    if system.startswith("mulan"):
        config.schedule = SCHEDULES.spec("polynomial", hidden=64, **ends)
        config.encoder = ENCODERS.spec("unet", num_blocks=1, **trunk)
        subset = {"size": 16, "k": 5}
        config.latent = {
            "mulan_surrogate": LATENTS.spec("k_hot_surrogate", **subset),
            "mulan_gaussian": LATENTS.spec("gaussian", size=16),
        }.get(system, LATENTS.spec("k_subset", **subset))
    elif system == "vdm_learned":
        config.schedule = SCHEDULES.spec("monotone_network", **ends)
        config.training.schedule_objective = "variance"
    else:
        config.schedule = SCHEDULES.spec("fixed_linear", **ends)
    if system in ("idode_velocity", "mulan_velocity"):
        config.parameterization = PARAMETERIZATIONS.spec("velocity")
    if system == "idode_velocity":
        config.time_density = TIME_DENSITIES.spec("importance")
    return config
