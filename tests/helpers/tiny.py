"""A config, a data set and a mesh small enough for tests."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jvdm import config as config_lib
from jvdm import model as model_lib
from jvdm.config import overrides
from jvdm.core import sharding
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.evaluation.record import Provenance, environment
from jvdm.networks import NETWORKS
from jvdm.runs.workdir import Workdir
from jvdm.training.loop import Trainer

SHAPE = (8, 8, 1)
LEVELS = 17


def config(**training):
    """VDM on digits with 8 channels; keyword arguments are fields of `training`."""
    c = config_lib.default()
    c.schedule = SCHEDULES.spec("learned_scalar", gamma_min=-7.0, gamma_max=5.0)
    c.network = NETWORKS.spec(
        "vdm_unet", channels=8, num_blocks=1, dropout=0.1, fourier_first=2, fourier_last=3
    )
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 2
    c.optimizer.ema_rate = 0.9
    c.training.batch_size = 16
    c.training.num_steps = 4
    c.training.log_every = 2
    c.training.eval_every = 2
    c.training.eval_images = 16
    c.training.eval_draws = 1
    c.training.checkpoint_every = 2
    c.training.sample_every = 0
    c.training.sample_images = 4
    c.training.sample_steps = 2
    c.eval.batch_size = 16
    c.eval.draws = 2
    c.eval.num_images = 20
    c.eval.ode.batch_size = 8
    c.eval.ode.check_images = 4
    c.sample.num_images = 5
    c.sample.batch_size = 4
    c.sample.steps = 2
    for name, value in training.items():
        c.training[name] = value
    return c.lock()


def light_config(**training):
    """The same with a network that compiles in a quarter of the time, for what is the same with any."""
    c = config(**training).unlock()
    c.network = NETWORKS.spec("mlp", hidden=32, num_layers=1)
    return c.lock()


def trainer(path, **fields):
    """A run of `light_config` with other values of fields, by dotted name."""
    c = light_config().unlock()
    overrides.put(c, fields)
    return Trainer(c.lock(), Workdir(path), mesh())


class Small(nn.Module):
    """A network that compiles in no time, mixes pixels, and is neither linear nor stiff."""

    dtype: str = "float32"
    z_dtype: str | None = None

    @nn.compact
    def __call__(self, z, gamma, conditioning, *, train=False):
        z = z.astype(self.z_dtype or z.dtype).astype(z.dtype)
        flat = z.reshape(len(z), -1)
        hidden = nn.tanh(nn.Dense(16)(jnp.concatenate([2.0 * flat, 0.2 * gamma[:, None]], axis=-1)))
        return z + nn.Dense(flat.shape[-1])(hidden).reshape(z.shape)


def mesh(num_devices=1):
    """A mesh of the first devices."""
    return sharding.make_mesh(jax.devices()[:num_devices])


def model(c):
    """The model of a config for digits."""
    return model_lib.build(c, SHAPE, LEVELS)


def provenance(step=0):
    """Of numbers made up."""
    return Provenance(
        dataset="digits",
        dataset_version="-",
        dataset_hash="0",
        split="test",
        num_levels=LEVELS,
        checkpoint="/c",
        step=step,
        weights="ema",
        weights_hash="0",
        seed=0,
        matmul_precision="float32, highest",
        trained_dtype="float32",
        **environment(),
    )


def perturbed(params, seed=0, scale=0.1):
    """Parameters away from initialisation, where zero-initialised layers hide mistakes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: (p + scale * rng.standard_normal(p.shape)).astype(np.float32), jax.device_get(params)
    )


def images(n, seed=0):
    """[n, 8, 8, 1] uint8 levels."""
    return np.random.default_rng(seed).integers(0, LEVELS, (n, *SHAPE), dtype=np.uint8)


def max_difference(a, b):
    """The largest absolute difference between two trees of arrays."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max()) for x, y in pairs)
