"""What a checkpoint records about its arrays, and whether they are read as they were saved."""

import contextlib
import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from jvdm.core import formats
from jvdm.core.errors import UserError, one_line
from jvdm.runs.integrity import checksums

log = logging.getLogger("jvdm")

STATE = "state"  # the item of the train state
CHECKSUMS = "checksums"


class Unreadable(UserError):
    """A checkpoint that is absent, damaged, or of another structure."""


def short(error: BaseException) -> str:
    """The message of an Orbax error, shortened; its traces can be pages long."""
    text, details, _ = str(error).partition(" See full TensorStore details")
    return one_line(text if details else error, limit=300)


class Description(NamedTuple):
    """What a checkpoint records about its arrays.

    Attributes:
        arrays: the folder of the train state.
        checksums: of every leaf by name; None where an early version saved none.
    """

    arrays: pathlib.Path
    checksums: dict[str, int] | None


def read_description(path: pathlib.Path) -> dict[str, Any]:
    """The metric, checksums and format of a checkpoint, without its arrays.

    Raises:
        NewerFormat: this version cannot read the checkpoint.
        OSError, ValueError: damaged.
    """
    saved = json.loads((path / "metrics" / "metrics").read_text())
    if not isinstance(saved, dict):
        raise ValueError(f"{path / 'metrics'} holds no JSON object")
    formats.check(saved, formats.CHECKPOINT, path)
    return saved


def describe(path: pathlib.Path) -> Description:
    """Where the arrays of a checkpoint are, in any format, and their checksums.

    Raises:
        NewerFormat: this version cannot read the checkpoint.
        OSError, ValueError: damaged.
    """
    saved = read_description(path)
    item = "default" if saved.get(formats.FIELD, 1) == 1 else STATE
    return Description(path / item, saved.get(CHECKSUMS))


def _not_of_metadata(record: logging.LogRecord) -> bool:
    """False for Orbax's warning that a file is absent which jvdm never writes."""
    return "Metadata file does not exist" not in record.getMessage()


@contextlib.contextmanager
def reading(path: pathlib.Path, of_model: str = " of this model") -> Iterator[None]:
    """Report any exception in the block as an unreadable checkpoint.

    Raises:
        NewerFormat: this version cannot read it.
        Unreadable: in every other case.
    """
    absl = logging.getLogger("absl")
    absl.addFilter(_not_of_metadata)
    try:
        yield
    except formats.NewerFormat:
        raise
    # Orbax and its storage raise many types for damaged files.
    except Exception as error:
        raise Unreadable(f"{path}: not a readable checkpoint{of_model} ({short(error)})") from error
    finally:
        absl.removeFilter(_not_of_metadata)


def check_sums(description: Description, tree: Any) -> None:
    """Refuse arrays that differ from what was saved.

    Raises:
        ValueError: naming the first of them.
    """
    if description.checksums is None:
        path = description.arrays.parent
        log.warning("WARNING: %s was written by an earlier version, without checksums", path)
        return
    for name, total in checksums(tree).items():
        if description.checksums.get(name) != total:
            raise ValueError(f"{name} is not what was saved: its checksum differs")
