"""Trained weights from a workdir, and the config they were trained with."""

import logging
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jvdm import config as config_lib
from jvdm import data
from jvdm import model as model_lib
from jvdm.core import sharding
from jvdm.core.errors import UserError
from jvdm.core.registry import Config
from jvdm.model import Model
from jvdm.runs import restoring
from jvdm.runs.workdir import Workdir

log = logging.getLogger("jvdm")


class Trained(NamedTuple):
    """A model with its averaged weights, and where they came from."""

    model: Model
    params: Any
    step: int
    path: pathlib.Path


def restore(
    config: Config,
    path: pathlib.Path,
    mesh: Mesh,
    *,
    older: bool,
) -> Trained:
    """The averaged weights of one checkpoint on all devices, with the model of the config.

    Args:
        config: all of it.
        path: `<workdir>/checkpoints/<step>`.
        mesh: has a `data` axis.
        older: whether, if it is damaged, the one before will do, which the log then says.

    Raises:
        UserError: a damaged checkpoint, or one of another model.
    """
    model = model_lib.build(config, *_image_spec(config, Workdir(path.parent.parent)))
    shapes = {
        "step": jax.ShapeDtypeStruct((), np.int32),
        "ema_params": jax.eval_shape(model.init, jax.random.key(0)),
    }
    everywhere = sharding.replicated(mesh)
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), shapes)
    state, path = restoring.restore_readable(path, like, older=older)
    log.info("weights of step %d from %s", int(state["step"]), path)
    return Trained(model, state["ema_params"], int(state["step"]), path)


def _image_spec(config: Config, workdir: Workdir) -> tuple[tuple[int, int, int], int]:
    """(h, w, c) and the number of levels: what the run has noted of its own data, or those of other data.

    Raises:
        UserError: as `data.image_spec`, or what was noted cannot be read.
    """
    source, num_levels = config.data.source, config.data.num_levels
    if workdir.data.is_file() and workdir.config.is_file():
        noted, saved = config_lib.read_json(workdir.data), config_lib.read_json(workdir.config)
        section = saved.get("data", {})
        same = section.get("source") == source and section.get("num_levels", 0) == num_levels
        if same and {"image_shape", "num_levels"} <= noted.keys():
            height, width, channels = noted["image_shape"]
            return (height, width, channels), noted["num_levels"]
    return data.image_spec(source, num_levels=num_levels)


def saved_config(path: pathlib.Path) -> Config:
    """The config of a `config.json`; fields that an older version of jvdm did not have are at their default.

    Raises:
        UserError: it cannot be read, or has fields that this version does not know.
    """
    config = ConfigDict(_merged(config_lib.default().to_dict(), config_lib.read_json(path)))
    try:
        config_lib.check_complete(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return config.lock()


def _merged(default: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """`saved`, and what it lacks of `default`; a component's options belong to the one that is chosen."""
    merged = dict(default)
    for name, value in saved.items():
        old = default.get(name)
        sections = isinstance(value, dict) and isinstance(old, dict) and "name" not in old
        merged[name] = _merged(old, value) if sections and old is not None else value
    return merged
