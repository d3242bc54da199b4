"""Sources outside jvdm: what a registered function returns, checked like what is read from a file."""

import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jvdm.core.errors import UserError, one_line
from jvdm.data.dataset import Dataset, check_dataset, looks_channels_first

log = logging.getLogger("jvdm")


def read(name: str, function: Callable[[], Any], num_levels: int) -> Dataset:
    """What the function of a source returns.

    Args:
        name: of the source.
        function: as it was registered.
        num_levels: that the config asks for; 0 is the source's own.

    Raises:
        UserError: whatever the function raises, or something else than two splits of valid data.
    """
    try:
        dataset = function()
    # A user's function may do anything; a command-line program inside it exits.
    except (Exception, SystemExit) as error:
        raise UserError(f"data source {name!r}: {_what_failed(error)}") from error
    _check_types(name, dataset)
    if num_levels not in (0, dataset.num_levels):
        raise UserError(
            f"data source {name!r} has {dataset.num_levels} levels, not {num_levels}: "
            f"config.data.num_levels=0 or {dataset.num_levels}"
        )
    check_dataset(dataset, name)
    if looks_channels_first(dataset.train):
        log.warning(
            "WARNING: %s: the train data have shape %s, which looks like [N, C, H, W]; images must be "
            "[N, H, W, C]: numpy.moveaxis(images, 1, -1)",
            *(name, list(dataset.train.shape)),
        )
    return dataset


def _what_failed(error: BaseException) -> str:
    """The error and the last line of the user's file that it passed."""
    kind, message = type(error).__name__, one_line(error)
    said = (
        kind if message in ("", kind) else message if isinstance(error, UserError) else f"{kind}: {message}"
    )
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is the call above
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    return f"{said} ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else said


def _check_types(name: str, dataset: Any) -> None:
    """Refuse what the checks of values could not read.

    Raises:
        UserError: not a dataset, or a field of another type.
    """
    if not isinstance(dataset, Dataset):
        raise UserError(
            f"data source {name!r} returned a {type(dataset).__name__}; it must return a jvdm.data.Dataset"
        )
    for field in ("name", "version"):
        value = getattr(dataset, field)
        if not isinstance(value, str) or value != one_line(value):
            raise UserError(
                f"data source {name!r}: {field} is {one_line(repr(value), limit=80)}; it must be one line of "
                "text"
            )
    levels = dataset.num_levels
    if type(levels) is not int:
        raise UserError(
            f"data source {name!r}: num_levels is of type {type(levels).__name__}; it must be an int"
        )
    for field in ("train", "test"):
        value = getattr(dataset, field)
        if not isinstance(value, np.ndarray):
            raise UserError(
                f"data source {name!r}: {field} is of type {type(value).__name__}; it must be a numpy array"
            )
    if dataset.log_density is not None and not callable(dataset.log_density):
        kind = type(dataset.log_density).__name__
        raise UserError(f"data source {name!r}: log_density is of type {kind}; it must be a function")
