"""Parameters of PyTorch's layers in our layout: outputs last, float32.

PyTorch's kernels are [out, in, *window]. That of a dense layer after a sinusoidal embedding gets one more
input, of weight zero: the conditioning, which those codebases do not have.
"""

from collections.abc import Iterator

import numpy as np

from jvdm.core.errors import UserError
from jvdm.importers.leaf import Leaf
from jvdm.importers.messages import brief

# The window of a kernel; None if it is not a kernel.
LAYOUTS = {
    "scalar": None,
    "vector": None,
    "dense": (),
    "embedding": (),
    "pointwise": (1, 1),
    "conv": (3, 3),
}


def leaves(source: str, target: str, layout: str) -> Iterator[Leaf]:
    """The parameters of one layer.

    Args:
        source: the layer's dotted name.
        target: its '/'-joined path in jvdm's parameters.
        layout: of its kernel; "norm" for a normalisation, "no_bias" for a dense layer without bias.
    """
    if layout == "norm":
        yield Leaf(f"{source}.weight", f"{target}/norm/scale", layout="vector")
        yield Leaf(f"{source}.bias", f"{target}/norm/bias", layout="vector")
        return
    yield Leaf(f"{source}.weight", f"{target}/kernel", layout="dense" if layout == "no_bias" else layout)
    if layout != "no_bias":
        yield Leaf(f"{source}.bias", f"{target}/bias", layout="vector")


def check(array: np.ndarray, layout: str, where: str) -> None:
    """Refuse an array that is not such a parameter.

    Args:
        array: as saved.
        layout: a key of `LAYOUTS`.
        where: its name, for messages.

    Raises:
        UserError: the dtype or the shape is another.
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
        raise UserError(f"{where} has shape {brief(str(shape))}, which is not that of a {layout} parameter")


def arrange(array: np.ndarray, layout: str, where: str) -> np.ndarray:
    """A parameter in our layout, float32.

    Args:
        array, layout, where: as for `check`.

    Raises:
        UserError: as in `check`, or values are not finite.
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
