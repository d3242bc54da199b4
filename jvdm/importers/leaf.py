"""From the parameters of another codebase to jvdm's, and the checks of both."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from jvdm.core.errors import UserError
from jvdm.importers.messages import brief


class Leaf(NamedTuple):
    """Where one parameter of the source goes.

    Attributes:
        source: its name there.
        target: '/'-joined path in jvdm's parameters.
        entry: which entry of the target's first axis, or None for all of the target.
        layout: of PyTorch's parameters, a key of `torch_layers.LAYOUTS`; Flax has our layout.
        part, parts: the target is this one of so many equal parts of the outputs.
    """

    source: str
    target: str
    entry: int | None = None
    layout: str = ""
    part: int = 0
    parts: int = 1


def check_names(found: Iterable[str], expected: Iterable[str], where: str, codebase: str) -> None:
    """Refuse a source with missing or unexpected parameters.

    Args:
        found: names of the source's parameters.
        expected: the names that there must be.
        where: what holds the parameters, for the message.
        codebase: for the message.

    Raises:
        UserError: names the first parameter that is missing, and the first that is unexpected.
    """
    found, expected = set(found), set(expected)
    missing, surplus = sorted(expected - found), sorted(found - expected)
    faults = [f"{missing[0]!r} is missing"] if missing else []
    if surplus:
        faults.append(f"'{brief(surplus[0])}' is unexpected")
    if faults:
        raise UserError(f"{where} does not have the parameters of {codebase}: {', and '.join(faults)}")


def stack(
    leaves: Iterable[Leaf], array_of: Callable[[Leaf], np.ndarray], where: str
) -> dict[str, np.ndarray]:
    """Arrays by target, entries stacked along axis 0.

    Args:
        leaves: the entries of a stack in order.
        array_of: leaf -> the target, or its entry.
        where: what holds the parameters, for the message.

    Raises:
        UserError: the entries of a stack differ in shape.
    """
    found: dict[str, list[np.ndarray]] = {}
    stacked = set()
    for leaf in leaves:
        array = array_of(leaf)
        entries = found.setdefault(leaf.target, [])
        if entries and entries[0].shape != array.shape:
            raise UserError(
                f"{where}: {leaf.source!r} has shape {array.shape}, but entry 0 of its stack "
                f"has {entries[0].shape}"
            )
        entries.append(array)
        if leaf.entry is not None:
            stacked.add(leaf.target)
    return {name: np.stack(arrays) if name in stacked else arrays[0] for name, arrays in found.items()}
