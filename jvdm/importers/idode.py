"""Checkpoints of the official i-DODE code (2305.03935).

The code is derived from the VDM code and has its tree (`jvdm.importers.vdm`). No shape reveals the path or
the parameterization: with the wrong one of either, a config is accepted and gives a poor likelihood.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from jvdm.importers import vdm
from jvdm.importers.records import Imported

if TYPE_CHECKING:
    from jvdm.model import Model

CODEBASE = "the i-DODE code"


def read(path: str | Path) -> Imported:
    """Read a checkpoint; `path` is as for `flax_checkpoint.find`.

    Raises:
        UserError: there is no checkpoint, it is corrupt, or it was not written by the i-DODE code.
    """
    return vdm.read(path, CODEBASE)


def check_settings(model: "Model") -> None:
    """Refuse a model that differs from the i-DODE code in what no shape reveals.

    Raises:
        UserError: a model with such weights would compute something else.
    """
    vdm.check_network(
        model,
        CODEBASE,
        parameterization=("noise", "velocity"),
        path=("variance_preserving", "straight"),
    )
