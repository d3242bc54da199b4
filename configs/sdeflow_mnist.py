"""MNIST, sdeflow (2106.02808): a score-based SDE on logits of dequantized images.

    python main.py --mode=train --config=configs/sdeflow_mnist.py              # times uniform in t
    python main.py --mode=train --config=configs/sdeflow_mnist.py:debiased     # density g^2 / sigma^2

The settings are those of the released code: 32 channels, multipliers 1, 2, 2, batch 64, Adam at 1e-4, and no
average of the weights. With 32 groups in normalisation, blocks of 32 channels do not see the time;
`--config.network.num_groups=0` fixes that. jvdm has not been trained that far.
"""

from jvdm import config as config_lib
from jvdm.core.errors import unknown
from jvdm.diffusion.dequantization import DEQUANTIZATIONS
from jvdm.diffusion.parameterizations import PARAMETERIZATIONS
from jvdm.diffusion.samplers import SAMPLERS
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.diffusion.times import TIME_DENSITIES, TIME_SAMPLERS
from jvdm.diffusion.transforms import DATA_MAPS
from jvdm.networks import NETWORKS

TIMES = ("uniform", "debiased")


def get_config(times="uniform"):
    if times not in TIMES:
        raise unknown("argument of sdeflow_mnist.py", times, TIMES)
    config = config_lib.default()
    config.data.source = "mnist"
    config.data_map = DATA_MAPS.spec("logit", a=0.05)
    config.schedule = SCHEDULES.spec("linear_beta", beta_min=0.1, beta_max=20.0)
    config.parameterization = PARAMETERIZATIONS.spec("drift")
    config.time_sampler = TIME_SAMPLERS.spec("uniform")
    config.time_density = TIME_DENSITIES.spec(times)
    config.network = NETWORKS.spec(
        "ddpm_unet",
        channels=32,
        multipliers=(1, 2, 2),
        dropout=0.0,
        downsample_padding="symmetric",
        time_scale=1.0,
        num_groups=32,
    )
    config.model.time_input = "t"
    config.training.objective = "score_matching"
    config.score_matching.weighting = "unweighted" if times == "uniform" else "likelihood"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.warmup_steps = 0
    config.optimizer.ema_rate = 0.0
    config.training.batch_size = 64
    config.training.num_steps = 100_000
    config.eval.estimators = "elbo,scoreflow,ode"
    config.eval.ode.dequantization = DEQUANTIZATIONS.spec("uniform")
    config.sample.sampler = SAMPLERS.spec("reverse_sde", lam=0.0)
    return config
