"""Checkpoints of the official i-DODE code (2305.03935).

Their tree is that of the VDM code, from which it is derived (`jvdm.importers.vdm`). Neither the path nor what
the output means leaves a trace in a shape: a config with the wrong one of the two is not found out, and gives
a poor likelihood.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from jvdm.importers import vdm
from jvdm.importers.records import Imported

if TYPE_CHECKING:
    from jvdm.model import Model

CODEBASE = "the i-DODE code"


def read(path: str | Path) -> Imported:
    """The checkpoint at `path`, as `flax_checkpoint.find` takes it.

    Raises:
        UserError: there is none, it is corrupt, or it is not of the i-DODE code.
    """
    return vdm.read(path, CODEBASE)


def check_settings(model: "Model") -> None:
    """What the i-DODE code fixes and no shape reveals.

    Raises:
        UserError: a model with such weights would compute something else.
    """
    vdm.check_components(
        model,
        CODEBASE,
        parameterizations=("noise", "velocity"),
        paths=("variance_preserving", "straight"),
    )
