"""The work that a checkpoint's step has not done yet, in the checkpoint's item `pending`.

A checkpoint may fall between two lines of metrics, whose steps so far are not averaged yet, and a run that
was asked to stop may have saved before it evaluated. Whoever resumes there takes up both, so that the run's
metrics are those of one that was never stopped.
"""

import json
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jvdm.core.files import read_arrays, write_atomically
from jvdm.runs.state import StepMetrics

ITEM = "pending"

_LOSS = "loss/"
_OTHERS = ("grad_norm", "learning_rate", "gamma_0", "gamma_1")
_CHECKSUM = "crc32"


class Pending(NamedTuple):
    """The work that one step has not done yet.

    Attributes:
        window: metrics of the steps since the last line.
        todo: names of the intervals, such as "eval_every", whose work at this step is not done.
    """

    window: Sequence[StepMetrics] = ()
    todo: Sequence[str] = ()


NOTHING = Pending()


def to_json(pending: Pending) -> dict[str, Any]:
    """A JSON object with its own checksum. Its numbers are exact: JSON has every digit of a float."""
    window: dict[str, Any] = {}
    if pending.window:
        for name in pending.window[0].losses:
            window[_LOSS + name] = np.concatenate([m.losses[name] for m in pending.window])
        for name in _OTHERS:
            if getattr(pending.window[0], name) is not None:
                window[name] = np.concatenate([getattr(m, name) for m in pending.window])
    content = {
        "todo": list(pending.todo),
        "window": {name: np.asarray(values, np.float64).tolist() for name, values in window.items()},
    }
    return {**content, _CHECKSUM: _checksum(content)}


def read(checkpoint: pathlib.Path) -> Pending:
    """The work that a checkpoint's step has not done yet.

    Args:
        checkpoint: `<workdir>/checkpoints/<step>`, of any format. In format 1 this is beside it, in
            `<workdir>/notes/<step>.npz`, if there is any.

    Raises:
        OSError, ValueError: it is missing or damaged.
    """
    path = _path(checkpoint)
    if path.is_file():
        return _of_json(json.loads(path.read_text()))
    notes = checkpoint.parent.parent / "notes" / f"{checkpoint.name}.npz"
    if (checkpoint / "default").is_dir():
        return _of_notes(notes) if notes.is_file() else NOTHING
    raise FileNotFoundError(f"{path} is missing")


def write(checkpoint: pathlib.Path, pending: Pending) -> None:
    """Replace the item of a checkpoint on disk, atomically.

    Raises:
        UserError: it cannot be written.
    """
    text = json.dumps(to_json(pending))
    write_atomically(_path(checkpoint), lambda file: file.write(text.encode()))


def _path(checkpoint: pathlib.Path) -> pathlib.Path:
    return checkpoint / ITEM / "metadata"  # as Orbax names it


def _checksum(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _of_json(saved: Any) -> Pending:
    """The inverse of `to_json`.

    Raises:
        ValueError: damaged.
    """
    if not isinstance(saved, dict) or saved.pop(_CHECKSUM, None) != _checksum(saved):
        raise ValueError(f"the item {ITEM!r} is not what was saved: its checksum differs")
    arrays = {name: np.array(values) for name, values in saved["window"].items()}
    return Pending(_window(arrays), tuple(saved["todo"]))


def _of_notes(path: pathlib.Path) -> Pending:
    """From format 1.

    Raises:
        ValueError: damaged.
    """
    arrays = read_arrays(path)
    if arrays is None or "todo" not in arrays:
        raise ValueError(f"{path} is damaged; remove it to go on without the metrics since the last line")
    todo = tuple(str(name) for name in arrays.pop("todo"))
    return Pending(_window(arrays), todo)


def _window(arrays: Mapping[str, np.ndarray]) -> tuple[StepMetrics, ...]:
    losses: Any = {name.removeprefix(_LOSS): a for name, a in arrays.items() if name.startswith(_LOSS)}
    if not losses:
        return ()
    others: dict[str, Any] = {name: arrays.get(name) for name in _OTHERS}
    return (StepMetrics(losses=losses, **others),)
