"""Published checkpoints of other codebases -> jvdm's parameters.

A further codebase is one module with `read` and `check_settings`, and one line here.
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
        read: path -> its parameters in jvdm's form, whatever the model.
        check_settings: raises if the model differs in what no shape reveals.
    """

    read: Callable[[str], Imported]
    check_settings: Callable[["Model"], None]

    def __call__(self, path: str, model: "Model") -> Imported:
        """The checkpoint at `path`, checked against the model."""
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
    """A checkpoint of another codebase as parameters of a model.

    Args:
        source: a key of `IMPORTERS`.
        path: of the checkpoint, in any form that the importer knows.
        model: the one that the config selects; it must have been given the checkpoint's settings.

    Raises:
        UserError: unknown source; no checkpoint at `path`, or a corrupt one; or it does not fit the
            model, in which case the message names a leaf, both shapes and the likely option.
    """
    if source not in IMPORTERS:
        raise unknown("checkpoint source", source, IMPORTERS)
    return IMPORTERS[source](path, model)
