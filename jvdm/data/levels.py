"""From the arrays that users have to levels 0..K-1 in uint8, and whether K is what they mean.

An array of another type is taken where each of its values is a level already: whole numbers from 0 to K-1 in
any type of integer or float, and booleans for K = 2. What would have to be rounded is refused, with the code
that rounds it.
"""

import logging

import numpy as np

from jvdm.core.errors import UserError
from jvdm.data.dataset import Dataset, chunks

log = logging.getLogger("jvdm")


def as_levels(array: np.ndarray, name: str, num_levels: int, where: str) -> np.ndarray:
    """The array in uint8; the log says so where it was not.

    Args:
        array: of any shape.
        name: of the array, for messages.
        num_levels: K.
        where: the file it was read from, for messages.

    Raises:
        UserError: values that are no levels.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        if num_levels != 2:
            raise UserError(
                f"{where}: {name} is of dtype bool, which is for config.data.num_levels=2, not {num_levels}"
            )
    elif array.dtype.kind not in "iuf":
        raise UserError(f"{where}: {name} is of dtype {array.dtype}; it must be uint8")
    elif array.size:
        _check(array, name, num_levels, where)
    log.info(
        "%s: %s is of dtype %s and holds whole numbers from 0 to %d; it is taken as uint8",
        *(where, name, array.dtype, num_levels - 1),
    )
    return array.astype(np.uint8)


def _check(array: np.ndarray, name: str, num_levels: int, where: str) -> None:
    """Refuse values other than 0..K-1.

    Raises:
        UserError: saying how they become levels.
    """
    array = np.atleast_1d(array)
    if not all(np.isfinite(chunk).all() for chunk in chunks(array)):
        raise UserError(
            f"{where}: {name} holds numbers that are not finite; it must hold 0 to {num_levels - 1}"
        )
    low, high = min(chunk.min() for chunk in chunks(array)), max(chunk.max() for chunk in chunks(array))
    highest = num_levels - 1
    if all((chunk == np.floor(chunk)).all() for chunk in chunks(array)):
        if low < 0 or high > highest:
            raise UserError(
                f"{where}: {name} holds the value {high if high > highest else low:.0f}; with "
                f"num_levels={num_levels} the lowest is 0 and the highest is {highest}"
            )
        return
    rounded = ""
    if low >= 0 and high <= 1:
        rounded = f"numpy.round({highest} * images)"
    elif low >= -1 and high <= 1:
        rounded = f"numpy.round({highest / 2:g} * (images + 1))"
    elif low >= 0 and high <= highest:
        rounded = "numpy.round(images)"
    remedy = f": {rounded}.astype(numpy.uint8)" if rounded else ""
    raise UserError(
        f"{where}: {name} is of dtype {array.dtype} with fractions, from {low:.4g} to {high:.4g}; it must "
        f"hold whole numbers from 0 to {highest}, as uint8{remedy}"
    )


def warn_of_unused_levels(dataset: Dataset, where: str) -> None:
    """Say if the values of the train split are far below the number of levels.

    Args:
        dataset: discrete.
        where: what it was read from, for the message.
    """
    highest, of_test = (
        max(int(chunk.max()) for chunk in chunks(split)) for split in (dataset.train, dataset.test)
    )
    meant = max(highest + 1, 2)
    if highest >= dataset.num_levels / 4 or meant >= dataset.num_levels:
        return
    others = f", and that of the test images is {of_test}" if of_test > highest else ""
    log.warning(
        "WARNING: %s: the largest value is %d%s: is config.data.num_levels=%d meant?",
        *(where, highest, others, max(meant, of_test + 1)),
    )
