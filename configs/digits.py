"""VDM on scikit-learn's 8x8 digits (17 levels): a complete run takes minutes on two CPU cores.

python main.py --mode=train --config=configs/digits.py
"""

from jvdm import config as config_lib
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.networks import NETWORKS


def get_config():
    config = config_lib.default()
    config.data.source = "digits"
    config.schedule = SCHEDULES.spec("learned_scalar", gamma_min=-7.0, gamma_max=5.0)
    config.network = NETWORKS.spec(
        "vdm_unet", channels=32, num_blocks=2, dropout=0.1, fourier_first=2, fourier_last=4
    )
    config.optimizer.learning_rate = 2e-3
    config.optimizer.ema_rate = 0.998
    config.optimizer.ema_power = 0.75
    config.optimizer.clip_norm = 1.0
    config.training.batch_size = 64
    config.training.num_steps = 2000
    config.training.steps_per_dispatch = 10
    config.training.log_every = 50
    config.training.eval_every = 250
    config.training.eval_images = 0
    config.training.eval_draws = 8
    config.training.checkpoint_every = 500
    config.training.sample_every = 500
    config.training.sample_steps = 50
    config.eval.batch_size = 297
    config.eval.draws = 64
    config.eval.ode.batch_size = 99
    config.sample.steps = 250
    return config
