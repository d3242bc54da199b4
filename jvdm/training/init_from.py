"""A new run that starts from the weights of another run, where they fit."""

import dataclasses
import logging
import pathlib

from jvdm.core import processes
from jvdm.core.errors import UserError
from jvdm.runs.restoring import find, naming_the_one_before, restore_what_fits
from jvdm.runs.state import TrainState

log = logging.getLogger("jvdm")


def init_from(path: str, state: TrainState) -> TrainState:
    """The initial state of a new run with the weights of another run, where they fit; the log names the rest.

    Args:
        path: a workdir, its folder of checkpoints, or one checkpoint.
        state: the initial state.

    Raises:
        UserError: no checkpoint there, a damaged one, or one that has no leaf of this model.
    """
    checkpoint = find(pathlib.Path(path), path, flag="config.init_from")
    checkpoint = checkpoint.parent / str(processes.of_main(int(checkpoint.name)))
    fields = {"params": state.params, "ema_params": state.ema_params}
    with naming_the_one_before(checkpoint, "config.init_from"):
        fitted = restore_what_fits(checkpoint, fields)
    taken, left = fitted.taken, fitted.left
    if not taken:
        raise UserError(f"config.init_from={path}: no leaf of {checkpoint} fits the model of this config")
    log.info("weights from %s: %d of %d leaves", checkpoint, len(taken), len(taken) + len(left))
    for name, why in left.items():
        log.warning("WARNING: %s is initialised anew: %s", name, why)
    return dataclasses.replace(state, **fitted.tree)
