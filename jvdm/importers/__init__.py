"""Published checkpoints of other codebases as jvdm's parameters.

To add a codebase, write a module with `read` and `check_settings`, and enter it in `IMPORTERS`.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from jvdm.core.errors import unknown
from jvdm.importers import addtt, idode, mulan, sdeflow, shapes, vdm
from jvdm.importers.records import Imported

if TYPE_CHECKING:
    from jvdm.model import Model

__all__ = ["IMPORTERS", "Imported", "Importer", "load"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Importer:
    """One codebase's checkpoints.

    Attributes:
        read: path -> its parameters in jvdm's form.
        check_settings: raises `UserError` if the model differs in what no shape reveals.
    """

    read: Callable[[str], Imported]
    check_settings: Callable[["Model"], None]

    def __call__(self, path: str, model: "Model") -> Imported:
        """Read a checkpoint and check it against the model."""
        imported = self.read(path)
        expected = shapes.expected_by(model)
        shapes.check(imported.params, expected, "params")
        shapes.check(imported.ema_params, expected, "ema_params")
        self.check_settings(model)
        return imported


IMPORTERS: dict[str, Callable[[str, "Model"], Imported]] = {
    "addtt": addtt.load,
    "idode": Importer(read=idode.read, check_settings=idode.check_settings),
    "mulan": Importer(read=mulan.read, check_settings=mulan.check_settings),
    "sdeflow": sdeflow.load,
    "vdm": Importer(read=vdm.read, check_settings=vdm.check_settings),
}


def load(source: str, path: str, model: "Model") -> Imported:
    """Read a checkpoint of another codebase as parameters of a model.

    Args:
        source: a key of `IMPORTERS`.
        path: of the checkpoint, in any form that the importer accepts.
        model: the one that the config selects, with the checkpoint's settings.

    Raises:
        UserError: the source is unknown, the checkpoint is absent or corrupt, or it does not fit the model;
            the message then names a leaf, both shapes and the likely option.
    """
    if source not in IMPORTERS:
        raise unknown("checkpoint source", source, IMPORTERS)
    return IMPORTERS[source](path, model)
