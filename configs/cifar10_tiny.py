"""CIFAR-10 images on two CPU cores: a small VDM that learns in minutes.

    python main.py --mode=train --config=configs/cifar10_tiny.py:FILE.npz
    python main.py --mode=train --config=configs/cifar10_tiny.py            # TFDS cifar10

FILE.npz has uint8 arrays `train_images` and `test_images`, [N, 32, 32, 3].
"""

from jvdm import config as config_lib
from jvdm.data import AUGMENTATIONS
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.networks import NETWORKS


def get_config(npz=""):
    config = config_lib.default()
    config.data.source = f"npz:{npz}" if npz else "cifar10"
    config.augmentation = AUGMENTATIONS.spec("flip")
    config.schedule = SCHEDULES.spec("learned_scalar", gamma_min=-13.3, gamma_max=5.0)
    config.network = NETWORKS.spec("vdm_unet", channels=32, num_blocks=4, dropout=0.0)
    config.optimizer.learning_rate = 2e-3
    config.optimizer.linear_decay = True
    config.optimizer.ema_rate = 0.99
    config.optimizer.clip_norm = 1.0
    config.training.batch_size = 16
    config.training.num_steps = 2000
    config.training.log_every = 50
    config.training.eval_every = 500
    config.training.eval_images = 256
    config.training.checkpoint_every = 500
    config.training.sample_every = 1000
    config.training.sample_images = 16
    config.training.sample_steps = 50
    config.eval.batch_size = 64
    config.eval.draws = 16
    config.sample.num_images = 36
    config.sample.batch_size = 36
    config.sample.steps = 250
    return config
