"""What a checkpoint's step leaves undone: `<workdir>/notes/<step>.npz`, beside `checkpoints/<step>/`.

A checkpoint may lie between two lines of metrics, whose steps so far are not averaged yet, and a run that was
asked to stop may have saved before it evaluated. Whoever resumes there takes both up, so that the run's
metrics are those of one that was never stopped.
"""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from jvdm.core.errors import UserError
from jvdm.core.files import read_arrays, write_arrays
from jvdm.runs.state import StepMetrics

_LOSS = "loss/"
_OTHERS = ("grad_norm", "learning_rate", "gamma_0", "gamma_1")


class Notes(NamedTuple):
    """Of one step.

    Attributes:
        window: metrics of the steps since the last line.
        todo: names of the intervals, such as "eval_every", whose work at this step is not done.
    """

    window: list[StepMetrics]
    todo: tuple[str, ...]


def _path(folder: pathlib.Path, step: int) -> pathlib.Path:
    return folder / f"{step}.npz"


def save(folder: pathlib.Path, step: int, notes: Notes, *, keep: set[int]) -> None:
    """Write the notes of a step, and remove those of steps other than it and `keep`.

    Raises:
        UserError: they cannot be written.
    """
    arrays = {"todo": np.array(notes.todo, dtype=np.str_)}
    if notes.window:
        for name in notes.window[0].losses:
            arrays[_LOSS + name] = np.concatenate([m.losses[name] for m in notes.window])
        for name in _OTHERS:
            if getattr(notes.window[0], name) is not None:
                arrays[name] = np.concatenate([getattr(m, name) for m in notes.window])
    write_arrays(_path(folder, step), **arrays)
    for path in folder.glob("*.npz"):
        if path.stem.isdigit() and int(path.stem) not in keep | {step}:
            path.unlink(missing_ok=True)
    for path in folder.glob(".*.tmp"):  # of processes that were killed
        path.unlink(missing_ok=True)


def load(folder: pathlib.Path, step: int) -> Notes:
    """The notes of a step; empty ones where there are none.

    Raises:
        UserError: they cannot be read.
    """
    path = _path(folder, step)
    if not path.is_file():
        return Notes([], ())
    arrays = read_arrays(path)
    if arrays is None or "todo" not in arrays:
        raise UserError(f"{path} is damaged; remove it to go on without the metrics since the last line")
    todo = tuple(str(name) for name in arrays.pop("todo"))
    losses: Any = {name.removeprefix(_LOSS): a for name, a in arrays.items() if name.startswith(_LOSS)}
    if not losses:
        return Notes([], todo)
    rest: dict[str, Any] = {name: arrays.get(name) for name in _OTHERS}
    return Notes([StepMetrics(losses=losses, **rest)], todo)
