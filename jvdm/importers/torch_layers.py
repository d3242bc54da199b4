"""Parameters of PyTorch's layers in our layout: outputs last, float32.

A kernel is [out, in, *window] there. That of a dense layer after a sinusoidal embedding gets one more input,
of weight zero: the conditioning, which those codebases do not have.
"""

import numpy as np

from jvdm.core.errors import UserError
from jvdm.importers.inert_pickle import brief

# The window of a kernel; None is no kernel.
LAYOUTS = {
    "scalar": None,
    "vector": None,
    "dense": (),
    "embedding": (),
    "pointwise": (1, 1),
    "conv": (3, 3),
}


def check(array: np.ndarray, layout: str, where: str) -> None:
    """Refuse what is no such parameter.

    Args:
        array: as it was saved.
        layout: a key of `LAYOUTS`.
        where: its name, for the message.

    Raises:
        UserError: another dtype or shape.
    """
    if array.dtype.kind in "biuc":
        raise UserError(f"{where} holds {array.dtype}, not floating point")
    shape, window = array.shape, LAYOUTS[layout]
    if layout == "scalar":
        fits = shape in ((), (1,))
    elif window is None:
        fits = len(shape) == 1
    else:
        fits = len(shape) == 2 + len(window) and shape[2:] == window
    if 0 in shape or not fits:
        raise UserError(f"{where} has shape {brief(str(shape))}, not that of a {layout} layer")


def arrange(array: np.ndarray, layout: str, where: str) -> np.ndarray:
    """A parameter in our layout.

    Args:
        array, layout, where: as of `check`.

    Raises:
        UserError: as `check`, or values that are not finite.
    """
    check(array, layout, where)
    array = np.array(array, np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{where} has values that are not finite")
    if layout == "scalar":
        return array.reshape(())
    if layout == "embedding":
        array = np.concatenate([array, np.zeros((len(array), 1), np.float32)], axis=1)
    if layout == "conv":
        array = array.transpose(2, 3, 1, 0)
    elif LAYOUTS[layout] is not None:
        array = array.reshape(array.shape[:2]).T
    return np.ascontiguousarray(array)
