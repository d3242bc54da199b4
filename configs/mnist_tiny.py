"""MNIST on two CPU cores: a small sdeflow (2106.02808).

    python main.py --mode=train --config=configs/mnist_tiny.py:FILE.npz
    python main.py --mode=train --config=configs/mnist_tiny.py:debiased,FILE.npz    # density g^2 / sigma^2
    python main.py --mode=train --config=configs/mnist_tiny.py                      # TFDS mnist

FILE.npz has uint8 arrays `train_images` and `test_images`, [N, 28, 28, 1].
"""

from jvdm import config as config_lib
from jvdm.diffusion.dequantization import DEQUANTIZATIONS
from jvdm.diffusion.parameterizations import PARAMETERIZATIONS
from jvdm.diffusion.samplers import SAMPLERS
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.diffusion.times import TIME_DENSITIES
from jvdm.diffusion.transforms import DATA_MAPS
from jvdm.networks import NETWORKS


def get_config(argument=""):
    first, _, rest = argument.partition(",")
    debiased = first == "debiased"
    npz = rest if debiased else argument
    config = config_lib.default()
    config.data.source = f"npz:{npz}" if npz else "mnist"
    config.data_map = DATA_MAPS.spec("logit", a=0.05)
    config.schedule = SCHEDULES.spec("linear_beta", beta_min=0.1, beta_max=20.0)
    config.parameterization = PARAMETERIZATIONS.spec("drift")
    config.time_density = TIME_DENSITIES.spec("debiased" if debiased else "uniform")
    config.network = NETWORKS.spec(
        "ddpm_unet",
        channels=32,
        multipliers=(1, 2, 2),
        num_res_blocks=1,
        attention_resolutions=(),
        dropout=0.0,
    )
    config.model.time_input = "t"
    config.training.objective = "score_matching"
    config.score_matching.weighting = "likelihood" if debiased else "unweighted"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.linear_decay = True
    config.optimizer.weight_decay = 0.0
    config.optimizer.ema_rate = 0.99
    config.optimizer.clip_norm = 1.0
    config.training.batch_size = 32
    config.training.num_steps = 3000
    config.training.log_every = 50
    config.training.eval_every = 500
    config.training.eval_images = 512
    config.training.eval_draws = 4
    config.training.checkpoint_every = 500
    config.training.sample_every = 1000
    config.training.sample_images = 16
    config.training.sample_steps = 100
    config.eval.estimators = "elbo,scoreflow,ode"
    config.eval.batch_size = 128
    config.eval.draws = 16
    config.eval.num_images = 1024
    config.eval.ode.dequantization = DEQUANTIZATIONS.spec("uniform")
    config.eval.ode.batch_size = 64
    config.eval.ode.check_images = 8
    config.sample.sampler = SAMPLERS.spec("reverse_sde", lam=0.0)
    config.sample.num_images = 36
    config.sample.batch_size = 36
    config.sample.steps = 500
    return config
