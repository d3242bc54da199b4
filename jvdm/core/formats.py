"""The format of what a run writes: one number per kind of file, which rises when layout or meaning changes.

A file without a number is of format 1, from before there were numbers. Readers convert older formats and
refuse newer ones in one line.
"""

from collections.abc import Mapping
from typing import Any

from jvdm.core.errors import UserError

FIELD = "format"

# 1: no number, and the prior of the variational bound is N(0, I), which the config does not say. That of the
# ODE, of the other bounds and of the ODE's samples was N(0, sigma_1^2); format 2 has one prior for all.
# 2: `remat` of a network or an encoder is a boolean, False for "none" and True for "full".
CONFIG = 3
# 1: no number, and the shape of an example is called `image_shape`.
DATA = 2
# 1: the train state is the item `default`, and what its step leaves undone is `<workdir>/notes/<step>.npz`.
CHECKPOINT = 2
# Of evaluations and scores. 1: no number.
RECORD = 2


class NewerFormat(UserError):
    """A file in a format that this version does not know; the file is not damaged."""


def check(content: Mapping[str, Any], newest: int, where: object) -> int:
    """The format of what was read, if this version reads it.

    Args:
        content: the JSON object that holds the number.
        newest: the format that this version writes.
        where: the file, for the error.

    Raises:
        NewerFormat: this version cannot read it.
        UserError: that is no format.
    """
    found = content.get(FIELD, 1)
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise UserError(f"{where}: its format is {found!r}; it must be an integer from 1 to {newest}")
    if found > newest:
        raise NewerFormat(
            f"{where}: written by a newer jvdm, in format {found}; this one reads formats up to {newest}: "
            "upgrade jvdm"
        )
    return found
