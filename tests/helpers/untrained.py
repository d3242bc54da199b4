"""A workdir with a checkpoint of weights that no training has made, for what only needs some."""

import dataclasses

import jax
import jax.numpy as jnp

from helpers import tiny
from jvdm import data
from jvdm import model as model_lib
from jvdm.runs.checkpoints import Checkpoints
from jvdm.runs.workdir import Workdir
from jvdm.training.step import init_state


def run(config, path, *, step=2):
    """The workdir at `path`; its weights are not those of initialisation, where outputs are zero."""
    workdir = Workdir(path)
    workdir.prepare()
    shape, num_levels = data.data_spec(**config.data)
    model = model_lib.build(config, shape, num_levels)
    state = init_state(model, config, jax.random.key(0))
    state = dataclasses.replace(
        state, step=jnp.int32(step), ema_params=tiny.perturbed(state.ema_params, scale=0.02)
    )
    checkpoints = Checkpoints(workdir.checkpoints)
    checkpoints.save(jax.tree.map(jnp.asarray, state), step, None)
    checkpoints.close()
    workdir.save_config(config)
    workdir.save_data({"data_shape": shape, "num_levels": num_levels})
    return workdir
