"""A config as plain dictionaries and as JSON."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from jvdm.core.errors import UserError
from jvdm.core.registry import Config


def leaves(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            # As JSON has no tuples, a saved one is a list.
            yield f"{prefix}{name}", tuple(value) if isinstance(value, list) else value


def to_json(config: Config) -> str:
    """The config as JSON text."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A saved config.

    Raises:
        UserError: the file cannot be read or is not JSON.
    """
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(saved, dict):
        raise UserError(f"{path}: holds a {type(saved).__name__}, not a JSON object")
    return saved
