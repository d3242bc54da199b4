"""The parameters of a pickled `torch.nn.Module`.

A module is an instance whose attributes `_parameters`, `_buffers` and `_modules` are dicts.
"""

from typing import Any

import numpy as np

from jvdm.core.errors import UserError
from jvdm.importers.inert_values import Record, kind
from jvdm.importers.messages import brief

# Modules inside one another, and modules in all; a shared module counts each time.
_MAX_DEPTH = 64
_MAX_MODULES = 100_000


def state_dict(module: Any) -> dict[str, np.ndarray]:
    """Parameters and persistent buffers of a module, by dotted name.

    Args:
        module: its record, as `torch_archive.read` returns it.

    Raises:
        UserError: it is not a module, or it contains itself.
    """
    found: dict[str, np.ndarray] = {}
    visits = 0

    def visit(module: Any, prefix: str, depth: int) -> None:
        nonlocal visits
        visits += 1
        state = module.state if isinstance(module, Record) else None
        if not isinstance(state, dict) or not all(
            isinstance(state.get(part), dict) for part in ("_parameters", "_buffers", "_modules")
        ):
            where = f" in {brief(prefix[:-1])}" if prefix else ""
            raise UserError(f"{kind(module)}{where} is not a torch.nn.Module")
        if depth > _MAX_DEPTH or visits > _MAX_MODULES:
            raise UserError(f"{kind(module)} has too many nested modules: {brief(prefix)}")
        transient = state.get("_non_persistent_buffers_set")
        transient = transient if isinstance(transient, (set, frozenset)) else ()
        for part in ("_parameters", "_buffers"):
            for name, value in state[part].items():
                path = _join(prefix, name)
                if value is None or (part == "_buffers" and name in transient):
                    continue
                if not isinstance(value, np.ndarray):
                    raise UserError(f"{brief(path)} is {kind(value)}, not a tensor")
                found[path] = value
        for name, child in state["_modules"].items():
            if child is not None:
                visit(child, f"{_join(prefix, name)}.", depth + 1)

    visit(module, "", 0)
    return found


def _join(prefix: str, name: Any) -> str:
    if not isinstance(name, str) or not name or "." in name:
        raise UserError(f"'{brief(prefix)}' has a child with the invalid name {brief(repr(name))}")
    return f"{prefix}{name}"
