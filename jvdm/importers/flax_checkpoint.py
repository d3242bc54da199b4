"""Reads the checkpoints of the official VDM code, and of the codes derived from it (i-DODE, MuLAN).

clu's `MultihostCheckpoint` writes them: a folder `checkpoints-0/` with `ckpt-<n>.flax`, and TensorFlow files
that are not needed. The `.flax` file is MessagePack of `{step, params, ema_params, opt_state}`, in which

    1. an array is an extension of type 1: MessagePack of (shape, name of the dtype, bytes)
    2. a numpy scalar is an extension of type 3, with the same content
    3. an array of more than 2^30 bytes is a map {"__msgpack_chunked_array__", "shape", "chunks"},
       where "shape" and "chunks" are maps from "0", "1", ... and the chunks are flat arrays

A file may come from anywhere: nothing in it is executed, and every declared length is checked against the
bytes present before an array is made.
"""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

from jvdm.core.errors import UserError
from jvdm.importers.messages import brief, kind

Tree = dict[str, Any]

_ARRAY, _SCALAR = 1, 3
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES = {
    "bool": np.dtype(np.bool_),
    **{np.dtype(code).name: np.dtype(code) for code in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")},
    **{np.dtype(code).name: np.dtype(code) for code in ("f2", "f4", "f8")},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# Trees of the known codes are at most six deep; their only sequences are shapes.
_MAX_DEPTH = 32
_MAX_SEQUENCE = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint holds, without the optimizer's state.

    Attributes:
        step: training steps taken.
        params: nested dicts of numpy arrays, all finite.
        ema_params: the same for the moving average of the parameters.
    """

    step: int
    params: Tree
    ema_params: Tree


def read(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: as for `find`.

    Raises:
        UserError: there is no checkpoint, or it is damaged.
    """
    file = find(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read checkpoint {file}: {error.strerror}") from error
    return decode(data, str(file))


def find(path: str | Path) -> Path:
    """The `.flax` file of `path`.

    Args:
        path: a `.flax` file, the same without its suffix, a folder of such files, or the folder above
            (with `checkpoints-0`); of several checkpoints the newest.

    Raises:
        UserError: there is no checkpoint.
    """
    path = Path(path)
    try:
        if path.is_file():
            return path
        prefixed = path.with_name(path.name + ".flax") if path.name else path
        if prefixed.is_file():
            return prefixed
        if not path.exists():
            raise UserError(f"no checkpoint at {path}: the path does not exist")
        files = [f for pattern in ("*.flax", "checkpoints-0/*.flax") for f in path.glob(pattern)]
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"no checkpoint at {str(path)!r}: {reason}") from error
    numbered = [(int(m[1]), f) for f in files if (m := re.fullmatch(r"ckpt-(\d{1,18})\.flax", f.name))]
    if not numbered:
        raise UserError(f"no checkpoint in {path}: expected ckpt-<n>.flax there or in checkpoints-0")
    return max(numbered)[1]


def decode(data: bytes, name: str) -> Checkpoint:
    """The checkpoint in the bytes of a `.flax` file.

    Args:
        data: the whole file.
        name: of the file, for messages.

    Raises:
        UserError: the bytes are not such a checkpoint.
    """
    try:
        # Extensions stay bytes here: those of the optimizer's state are never decoded.
        state = msgpack.unpackb(data, raw=False, max_array_len=_MAX_SEQUENCE)
    except (msgpack.UnpackException, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"checkpoint {name} is truncated or corrupt: not MessagePack ({_reason(error)})"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {name} is corrupt: it holds {_kind(state)}, not a training state")
    for key in ("step", "params", "ema_params"):
        if key not in state:
            keys = ", ".join(sorted(brief(repr(k)) for k in state)[:8]) or "none"
            raise UserError(f"checkpoint {name} has no {key!r} (keys: {keys})")
    try:
        return Checkpoint(
            step=_step(state["step"]),
            params=_tree(state["params"], "params"),
            ema_params=_tree(state["ema_params"], "ema_params"),
        )
    except _Malformed as error:
        raise UserError(f"checkpoint {name} is corrupt: {error}") from error


class _Malformed(Exception):
    """What is wrong with a leaf."""


def _step(value: Any) -> int:
    if isinstance(value, msgpack.ExtType):
        array = _array(value, "step")
        if array.shape == () and array.dtype.kind in "iu":
            value = int(array)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _Malformed(f"'step' is {_kind(value)}, not a number of steps")
    return value


def _tree(value: Any, path: str, depth: int = 0) -> Tree:
    if not isinstance(value, dict):
        raise _Malformed(f"{_quote(path)} is {_kind(value)}, not a tree of arrays")
    if depth > _MAX_DEPTH:
        raise _Malformed(f"{_quote(path)} is nested deeper than {_MAX_DEPTH} levels")
    tree = {}
    for key, child in value.items():
        where = f"{path}/{key}"
        # "/" joins names in paths: a name that contains one could make two leaves alike.
        if not isinstance(key, str) or not key or "/" in key:
            raise _Malformed(f"{_quote(path)} has an invalid key {brief(repr(key))}")
        if isinstance(child, dict) and _CHUNKED not in child:
            tree[key] = _tree(child, where, depth + 1)
        else:
            tree[key] = _leaf(child, where)
    return tree


def _leaf(value: Any, path: str) -> np.ndarray:
    array = _unchunk(value, path) if isinstance(value, dict) else _array(value, path)
    if array.dtype.kind not in "biu" and not np.isfinite(array).all():
        raise _Malformed(f"{_quote(path)} has values that are not finite")
    return array


def _array(value: Any, path: str) -> np.ndarray:
    if not isinstance(value, msgpack.ExtType) or value.code not in (_ARRAY, _SCALAR):
        raise _Malformed(f"{_quote(path)} is {_kind(value)}, not an array")
    try:
        content = msgpack.unpackb(value.data, raw=False, max_array_len=_MAX_SEQUENCE, max_map_len=0)
    except (msgpack.UnpackException, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _Malformed(f"{_quote(path)} is not an array ({_reason(error)})") from error
    if not isinstance(content, list) or len(content) != 3:
        raise _Malformed(f"{_quote(path)} is not an array of shape, dtype and bytes")
    shape, dtype_name, buffer = content
    if not isinstance(dtype_name, str) or dtype_name not in _DTYPES:
        raise _Malformed(f"{_quote(path)} has dtype {brief(repr(dtype_name))} (known: {', '.join(_DTYPES)})")
    if not isinstance(buffer, bytes):
        raise _Malformed(f"{_quote(path)} holds {_kind(buffer)}, not bytes")
    dtype = _DTYPES[dtype_name]
    shape = _shape(shape, path)
    expected = math.prod(shape) * dtype.itemsize
    if len(buffer) != expected:
        raise _Malformed(
            f"{_quote(path)} has {len(buffer)} bytes; {brief(str(shape))} of {dtype_name} takes {expected}"
        )
    return _reshape(np.frombuffer(buffer, dtype), shape, path)


def _unchunk(value: dict, path: str) -> np.ndarray:
    shape = _shape(_sequence(value.get("shape"), f"{path}/shape"), path)
    chunks = _sequence(value.get("chunks"), f"{path}/chunks")
    arrays = [_array(chunk, f"{path}/chunks/{i}") for i, chunk in enumerate(chunks)]
    if not arrays or any(a.ndim != 1 or a.dtype != arrays[0].dtype for a in arrays):
        raise _Malformed(f"{_quote(path)} does not have flat chunks of one dtype")
    size = sum(a.size for a in arrays)
    if size != math.prod(shape):
        raise _Malformed(
            f"{_quote(path)} has chunks of {size} values in all; its shape is {brief(str(shape))}"
        )
    return _reshape(np.concatenate(arrays), shape, path)


def _sequence(value: Any, path: str) -> list:
    if not isinstance(value, dict) or set(value) != {str(i) for i in range(len(value))}:
        raise _Malformed(f"{_quote(path)} is not a sequence")
    return [value[str(i)] for i in range(len(value))]


def _shape(value: Any, path: str) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(n) is not int or n < 0 for n in value):
        raise _Malformed(f"{_quote(path)} has no valid shape: {brief(repr(value))}")
    return tuple(value)


def _reshape(flat: np.ndarray, shape: tuple[int, ...], path: str) -> np.ndarray:
    try:
        return flat.reshape(shape)
    except ValueError as error:  # no values, but a dimension beyond numpy's range
        raise _Malformed(f"{_quote(path)} has an impossible shape {brief(str(shape))}") from error


def _quote(path: str) -> str:
    return f"'{brief(path, 160)}'"


def _kind(value: Any) -> str:
    return f"an extension of type {value.code}" if isinstance(value, msgpack.ExtType) else kind(value)


def _reason(error: BaseException) -> str:
    return brief(f"{type(error).__name__}: {error}", 120)
