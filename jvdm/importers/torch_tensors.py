"""PyTorch's tensors as read-only numpy arrays: the calls that a file of `torch.save` makes to rebuild them.

A tensor is the call of `torch._utils._rebuild_tensor_v2` with a storage, an offset, a size and strides. All
four are checked against the storage before an array is made. Arrays are views of the storages, so that many
tensors of one storage take no further memory; and there can only be so many that copies of all of them would
stay in proportion to the file.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from jvdm.importers.inert_pickle import Name
from jvdm.importers.inert_values import Global, Refused, kind
from jvdm.importers.messages import brief

_DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex64", "complex128", "bool"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
}
# Storages that are named after what they hold; the others are untyped.
_STORAGES = {
    name: _DTYPES[dtype]
    for name, dtype in (
        *(("Half", "float16"), ("Float", "float32"), ("Double", "float64"), ("BFloat16", "bfloat16")),
        *(("ComplexFloat", "complex64"), ("ComplexDouble", "complex128"), ("Bool", "bool")),
        *(("Char", "int8"), ("Short", "int16"), ("Int", "int32"), ("Long", "int64"), ("Byte", "uint8")),
        *(("Untyped", "uint8"), ("_Untyped", "uint8")),
    )
}
# Of a shape, here and in numpy.
_MAX_DIMS = 64
# Bytes of all tensors over those of the file: a tensor may occur as a parameter, in an average, and so on.
_MAX_SHARING = 16


@dataclasses.dataclass
class Budget:
    """The bytes that tensors may still take."""

    left: int

    @classmethod
    def of_file(cls, size: int) -> "Budget":
        """For a file of `size` bytes."""
        return cls(_MAX_SHARING * size)

    def spend(self, amount: int) -> None:
        """Take a tensor's bytes off.

        Raises:
            Refused: too few are left.
        """
        self.left -= amount
        if self.left < 0:
            raise Refused(f"its tensors together are more than {_MAX_SHARING} times as long as the file")


@dataclasses.dataclass(frozen=True)
class Storage:
    """A storage, from which tensors are made.

    Attributes:
        data: its bytes.
        dtype: of its values.
        budget: of the file, shared by all its storages.
    """

    data: bytes
    dtype: np.dtype
    budget: Budget

    @property
    def size(self) -> int:
        """The number of values."""
        return len(self.data) // self.dtype.itemsize


def storage_dtype(cls: Any) -> np.dtype:
    """The dtype of a class of storages.

    Raises:
        Refused: it is not such a class.
    """
    if isinstance(cls, Global) and cls.module in ("torch", "torch.cuda", "torch.storage"):
        name = cls.name.removesuffix("Storage")
        if name != cls.name and name in _STORAGES:
            return _STORAGES[name]
    raise Refused(f"{kind(cls)} is not a known storage class")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> np.ndarray:
    """_rebuild_tensor, and _v2, which adds (requires_grad, hooks[, metadata])."""
    if not isinstance(storage, Storage):
        raise Refused(f"corrupt: a tensor is made from {kind(storage)}")
    if len(rest) > 2 and rest[2]:
        raise Refused("a tensor with pending conjugation or negation is not supported")
    if not is_count(offset) or not _are_counts(size) or not _are_counts(stride) or len(size) != len(stride):
        raise Refused("corrupt: a tensor has no valid offset, size and strides")
    number, width = math.prod(size), storage.dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if number else 0
    # Repeated values (a stride of 0) could be any number of them.
    if number > storage.size or last >= max(storage.size, 1) or offset > storage.size:
        raise Refused(
            f"a tensor of size {brief(str(tuple(size)))} does not fit in its storage of {storage.size} values"
        )
    storage.budget.spend(number * width)
    try:
        strides = [step * width for step in stride] if number else None
        return np.ndarray(size, storage.dtype, storage.data, offset * width, strides)
    except (ValueError, OverflowError) as error:  # a dimension that numpy cannot count to
        raise Refused(f"a tensor has an impossible size {brief(str(tuple(size)))}") from error


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> np.ndarray:
    """A tensor of an untyped storage."""
    if not isinstance(storage, Storage) or not isinstance(dtype, np.dtype):
        raise Refused(f"corrupt: a tensor is made from {kind(storage)} and {kind(dtype)}")
    if storage.dtype != np.uint8 or len(storage.data) % dtype.itemsize or dtype == np.bool_:
        raise Refused(f"corrupt: a storage of {storage.size} {storage.dtype} cannot hold {dtype}")
    return _tensor(dataclasses.replace(storage, dtype=dtype), offset, size, stride, grad, hooks, *rest)


def _parameter(data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> np.ndarray:
    if not isinstance(data, np.ndarray):
        raise Refused(f"corrupt: a parameter is made from {kind(data)}")
    return data


def _tensor_of_type(call: Any, cls: Any, args: Any, state: Any) -> np.ndarray:
    """A tensor with extra attributes, or of a subclass of torch.Tensor."""
    rebuild = _TENSORS.get(call.name) if isinstance(call, Global) and call.module == "torch._utils" else None
    if rebuild is None or not isinstance(args, tuple):
        raise Refused(f"it calls {kind(call)}, which is refused: nothing in a checkpoint is executed")
    return rebuild(*args)


def _device(name: Any, index: Any = None) -> str:
    if not isinstance(name, str) or len(name) > 32 or not (index is None or is_count(index)):
        raise Refused("corrupt: a device has no name")
    return name if index is None else f"{name}:{index}"


def _size(items: Any = ()) -> tuple[int, ...]:
    if not _are_counts(items):
        raise Refused("corrupt: a torch.Size does not hold counts")
    return tuple(items)


_TENSORS = {
    "_rebuild_tensor": _tensor,
    "_rebuild_tensor_v2": _tensor,
    "_rebuild_tensor_v3": _tensor_v3,
    "_rebuild_parameter": _parameter,
    "_rebuild_parameter_with_state": _parameter,
}
CALLS: dict[Name, Callable[..., Any]] = {
    **{("torch._utils", name): call for name, call in _TENSORS.items()},
    ("torch._tensor", "_rebuild_from_type_v2"): _tensor_of_type,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
}
VALUES: dict[Name, Any] = {("torch", name): dtype for name, dtype in _DTYPES.items()}


def is_count(value: Any) -> bool:
    """Whether a value can count elements."""
    return type(value) is int and 0 <= value < 2**63


def _are_counts(values: Any) -> bool:
    return isinstance(values, (tuple, list)) and len(values) <= _MAX_DIMS and all(map(is_count, values))
