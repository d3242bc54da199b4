"""A new run that goes on from all of another run's state, under another config.

After a loss that was not finite, say, with a lower learning rate.
"""

import dataclasses
import logging
import pathlib
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from jvdm import config as config_lib
from jvdm.core import processes, sharding
from jvdm.core.errors import UserError
from jvdm.core.keys import root_key
from jvdm.core.registry import Config
from jvdm.model import Model
from jvdm.runs import saved
from jvdm.runs.restoring import find, naming_the_one_before, restore
from jvdm.runs.state import TrainState
from jvdm.training.step import init_state

log = logging.getLogger("jvdm")


def branch_from(path: str, model: Model, config: Config, mesh: Mesh) -> TrainState:
    """The state of another run, with its step: weights, averages, moments, root of the random numbers.

    Args:
        path: a workdir, its folder of checkpoints, or one checkpoint.
        model: of the new run, which must be that of the other.
        config: of the new run.
        mesh: the devices.

    Raises:
        UserError: no checkpoint there, a damaged one, or one of another model.
    """
    checkpoint = find(pathlib.Path(path), path, flag="config.branch_from")
    checkpoint = checkpoint.parent / str(processes.of_main(int(checkpoint.name)))
    file = checkpoint.parent.parent / "config.json"
    if not file.is_file():
        raise UserError(f"config.branch_from={path}: {file.parent} has no config.json")
    config_lib.check_model(saved.read_config(file), config, file.parent)
    other = saved.complete_config(file)
    shapes = jax.eval_shape(lambda key: init_state(model, other, key), root_key(0, "training"))
    where = sharding.of_state(shapes, mesh)
    like = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, where)
    with naming_the_one_before(checkpoint, "config.branch_from"):
        state = restore(checkpoint, like)
    log.info("branched from %s at step %d", checkpoint, int(state.step))
    return dataclasses.replace(state, opt_state=_converted(state.opt_state, other, config))


def _converted(opt_state: Any, other: Config, config: Config) -> Any:
    """The optimizer's state, which has one more part where gradients are clipped."""
    before, now = (bool(each.optimizer.clip_norm) for each in (other, config))
    if before == now:
        return opt_state
    return opt_state[1] if before else (optax.EmptyState(), opt_state)
