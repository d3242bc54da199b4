"""A score-based SDE of the swiss roll in the plane, which trains in less than a minute on two CPU cores.

    python main.py --mode=train  --config=configs/swissroll.py             # times uniform
    python main.py --mode=train  --config=configs/swissroll.py:debiased    # density g^2 / sigma^2
    python main.py --mode=eval   --config=configs/swissroll.py             # nats, picture of the density
    python main.py --mode=sample --config=configs/swissroll.py             # samples and their trajectories

sdeflow (2106.02808, section 6). The data are continuous, so likelihoods are in nats per point. The true
density is known.
"""

from jvdm import config as config_lib
from jvdm.core.errors import unknown
from jvdm.diffusion.dequantization import DEQUANTIZATIONS
from jvdm.diffusion.divergence import TRACES
from jvdm.diffusion.parameterizations import PARAMETERIZATIONS
from jvdm.diffusion.samplers import SAMPLERS
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.diffusion.times import TIME_DENSITIES
from jvdm.diffusion.transforms import DATA_MAPS
from jvdm.networks import NETWORKS

TIMES = ("uniform", "debiased")


def get_config(times="uniform"):
    if times not in TIMES:
        raise unknown("argument of swissroll.py", times, TIMES)
    config = config_lib.default()
    config.data.source = "swissroll"
    config.data_map = DATA_MAPS.spec("identity")
    config.schedule = SCHEDULES.spec("linear_beta")
    config.parameterization = PARAMETERIZATIONS.spec("drift")
    config.time_density = TIME_DENSITIES.spec(times)
    config.network = NETWORKS.spec("mlp", hidden=128, num_layers=4)
    config.model.time_input = "t"
    config.training.objective = "score_matching"
    config.score_matching.weighting = "unweighted" if times == "uniform" else "likelihood"
    config.optimizer.learning_rate = 5e-3
    config.optimizer.linear_decay = True
    config.optimizer.weight_decay = 0.0
    config.optimizer.ema_rate = 0.995
    config.training.batch_size = 1024
    config.training.num_steps = 6000
    config.training.steps_per_dispatch = 50
    config.training.log_every = 100
    config.training.eval_every = 1000
    config.training.eval_draws = 8
    config.training.checkpoint_every = 2000
    config.training.sample_every = 2000
    config.training.sample_images = 2000
    config.training.sample_steps = 200
    config.eval.estimators = "ode,elbo,scoreflow"
    config.eval.batch_size = 1000
    config.eval.draws = 64
    config.eval.elbo.trace = TRACES.spec("exact")
    config.eval.ode.batch_size = 1000
    config.eval.ode.dequantization = DEQUANTIZATIONS.spec("none")
    config.eval.ode.trace = TRACES.spec("exact")
    config.sample.num_images = 5000
    config.sample.batch_size = 5000
    config.sample.sampler = SAMPLERS.spec("reverse_sde", lam=0.0)
    config.sample.steps = 1000
    return config
