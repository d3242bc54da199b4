"""A run's trained weights, with the model that its config describes."""

import logging
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jvdm import config as config_lib
from jvdm import data
from jvdm import model as model_lib
from jvdm.core import sharding
from jvdm.core.errors import UserError, unknown
from jvdm.core.files import expanded
from jvdm.core.registry import Config
from jvdm.model import Model
from jvdm.runs import restoring, saved
from jvdm.runs.workdir import Workdir

log = logging.getLogger("jvdm")

# Of a train state, by the name of its weights.
FIELDS = {"ema": "ema_params", "raw": "params"}


class Trained(NamedTuple):
    """A model with its weights, and where they came from.

    Attributes:
        model: as the config describes it.
        params: the weights, on all devices.
        step: of training.
        path: of the checkpoint.
        config: all of it.
        weights: which weights they are, "ema" (averaged) or "raw".
    """

    model: Model
    params: Any
    step: int
    path: pathlib.Path
    config: Config
    weights: str


def load(
    workdir: pathlib.Path,
    checkpoint: str | None,
    mesh: Mesh,
    *,
    config: Config | None = None,
    flag: str = "--checkpoint",
    weights: str | None = None,
) -> Trained:
    """The weights of a checkpoint, on all devices, with their model.

    If the checkpoint is damaged, the one before takes its place, unless it was named itself; the log says so.

    Args:
        workdir: of a run.
        checkpoint: a path to one checkpoint, `<workdir>/checkpoints/<step>`, or to another workdir; None
            is the newest of `workdir`.
        mesh: has a `data` axis.
        config: in place of the run's `config.json`; it must describe the same model.
        flag: where the user gave the checkpoint, for errors.
        weights: "ema" or "raw"; None is what the config says.

    Raises:
        UserError: no checkpoint there, a damaged one, or one of another model.
    """
    path = restoring.find(workdir, checkpoint, flag=flag)
    run = Workdir(path.parent.parent)
    if config is not None:
        config_lib.check_complete(config)
        if run.config.exists():
            config_lib.check_model(saved.read_config(run.config), config, run.path)
            _check_split(config, run)
    elif run.config.exists():
        config = saved.complete_config(run.config)
    else:
        raise UserError(f"{run.path} has no config.json; give jvdm.load(..., config=CONFIG)")
    is_named = checkpoint is not None and expanded(checkpoint, flag).absolute() == path
    model = model_lib.build(config, *_data_spec(config, run))
    complete: Config = config
    weights = complete.weights if weights is None else weights
    if weights not in FIELDS:
        raise unknown("weights", weights, FIELDS)
    shapes = {
        "step": jax.ShapeDtypeStruct((), np.int32),
        FIELDS[weights]: jax.eval_shape(model.init, jax.random.key(0)),
    }
    everywhere = sharding.replicated(mesh)
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), shapes)
    state, path = restoring.restore_readable(path, like, older=not is_named)
    step = int(state["step"])
    log.info("weights of step %d from %s", step, path)
    if weights == "ema":
        _warn_of_initial_weights(complete, step)
    return Trained(model, state[FIELDS[weights]], step, path, complete, weights)


def _warn_of_initial_weights(config: Config, step: int) -> None:
    """Say if the average is still of the initial weights, of which a slow average keeps rate^steps."""
    optimizer = config.optimizer
    share = optimizer.ema_rate**step
    if share > 0.01 and not optimizer.ema_power:
        log.warning(
            "WARNING: the averaged weights still hold %.0f %% of the initial ones, after %d steps with "
            "config.optimizer.ema_rate=%g; --config.weights=raw takes those of the last step",
            *(100 * share, step, optimizer.ema_rate),
        )


def _check_split(config: Config, run: Workdir) -> None:
    """Refuse to divide the images of the run into other splits than it did.

    Raises:
        UserError: the config would, so that images that were trained on were in the test split.
    """
    version = saved.read_data(run.data).get("version", "-") if run.data.is_file() else "-"
    before = {field: old for field, old, _ in config_lib.differences(saved.read_config(run.config), config)}
    changed = [name for name in ("test_fraction", "split_seed") if f"data.{name}" in before]
    is_divided = config.data.source.startswith(("npz:", "folder:")) and version != "-"
    if changed and is_divided and "data.source" not in before:
        given = ", ".join(f"config.data.{name} is {config.data[name]}" for name in changed)
        flags = " ".join(f"--config.data.{name}={before[f'data.{name}']}" for name in changed)
        raise UserError(
            f"{run.path} was trained on a split of {config.data.source} ({version}), and {given}, which "
            f"would put images that it was trained on into the test split; give {flags}"
        )


def _data_spec(config: Config, run: Workdir) -> tuple[tuple[int, ...], int]:
    """The shape of an example and the number of levels, as the run recorded them, if the config asks for its
    data.

    Raises:
        UserError: as `data.data_spec`, or what was recorded cannot be read.
    """
    source, num_levels = config.data.source, config.data.num_levels
    if run.data.is_file() and run.config.is_file():
        recorded, section = saved.read_data(run.data), saved.read_config(run.config).get("data", {})
        same = section.get("source") == source and section.get("num_levels", 0) == num_levels
        if same and {"data_shape", "num_levels"} <= recorded.keys():
            return tuple(recorded["data_shape"]), recorded["num_levels"]
    return data.data_spec(**config.data)
