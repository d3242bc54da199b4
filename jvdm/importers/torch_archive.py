"""Reads what `torch.save` wrote, without PyTorch, and without running anything in it.

Since PyTorch 1.6 such a file (`.pt`, `.pth`) is a zip archive, whose entries are stored uncompressed:

    <name>/data.pkl     a pickle, in which a storage is an id ("storage", class, key, location, length)
    <name>/data/<key>   the bytes of a storage
    <name>/byteorder    "little" or "big"; before PyTorch 2.1 there was none

A tensor is the call of `torch._utils._rebuild_tensor_v2` with a storage, an offset, a size and strides. A
`torch.nn.Module` is an instance whose attributes `_parameters`, `_buffers` and `_modules` are dicts.

A file may come from anywhere: nothing in it is executed (`jvdm.importers.inert_pickle`), all its entries
together are no longer than the file, and what a tensor claims is checked against its storage before an array
is made. Arrays are views of the storages, so that many tensors of one storage take no memory of their own;
and there cannot be so many that copies of all would be out of proportion to the file.
"""

import collections
import dataclasses
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jvdm.core.errors import UserError
from jvdm.importers import inert_pickle
from jvdm.importers.inert_pickle import Global, Record, Refused, brief, kind

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
_NO_CALL = "which is refused: nothing in a checkpoint is run"
_MAX_DIMS = 64
# Bytes of all tensors over those of the file: a tensor may occur as a parameter, in an average, and so on.
_MAX_SHARING = 16
_MAX_LEAVES = 100_000
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
# What zipfile raises of damaged archives: for unknown methods, encryption, bad offsets, names and numbers.
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
    *(RuntimeError, NotImplementedError, ValueError, KeyError, OverflowError),
)


def read(path: str | Path) -> Any:
    """What the file holds.

    Args:
        path: of the file.

    Returns:
        Dicts, lists, tuples, sets, numbers and text; read-only arrays for tensors and parameters; dtypes for
        dtypes and text for devices; a `Record` for an instance of a class, a `Global` for a function that is
        only referred to. Keys that are tensors are `ByIdentity`.

    Raises:
        UserError: there is no such file, it is another kind of file, it is damaged, or it names or calls what
            no checkpoint needs.
    """
    path = Path(path)
    try:
        is_file = path.is_file()
    except OSError as error:
        raise UserError(f"no checkpoint at {str(path)!r}: {error.strerror}") from error
    if not is_file:
        raise UserError(f"no checkpoint at {str(path)!r}: there is no such file")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(512)
            if not start.startswith(b"PK"):
                raise Refused(_other_kind(start))
            with zipfile.ZipFile(file) as archive:
                return _Archive(archive, size).load()
    except Refused as error:
        raise UserError(f"checkpoint {path}: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read checkpoint {path}: {error.strerror or error}") from error
    except _ZIP_ERRORS as error:
        raise UserError(f"checkpoint {path}: truncated or corrupt ({brief(str(error))})") from error


def state_dict(module: Any) -> dict[str, np.ndarray]:
    """Parameters and persistent buffers of a pickled `torch.nn.Module`, by dotted name.

    Args:
        module: the record of the module.

    Raises:
        UserError: it is no module, or contains itself.
    """
    found: dict[str, np.ndarray] = {}
    visits = 0

    def visit(module: Any, prefix: str, depth: int) -> None:
        nonlocal visits
        visits += 1
        state = module.state if isinstance(module, Record) else None
        if not isinstance(state, dict) or not all(
            isinstance(state.get(part), dict) for part in ("_parameters", "_buffers", "_modules")
        ):
            where = f" in {brief(prefix[:-1])}" if prefix else ""
            raise UserError(f"{kind(module)}{where} is not a torch.nn.Module")
        if depth > _MAX_DIMS or visits > _MAX_LEAVES:
            raise UserError(f"{kind(module)} has too many modules in one another: {brief(prefix)}")
        passing = state.get("_non_persistent_buffers_set")
        passing = passing if isinstance(passing, (set, frozenset)) else ()
        for part in ("_parameters", "_buffers"):
            for name, value in state[part].items():
                path = _join(prefix, name)
                if value is None or (part == "_buffers" and name in passing):
                    continue
                if not isinstance(value, np.ndarray):
                    raise UserError(f"{brief(path)} is {kind(value)}, not a tensor")
                found[path] = value
        for name, child in state["_modules"].items():
            if child is not None:
                visit(child, f"{_join(prefix, name)}.", depth + 1)

    visit(module, "", 0)
    return found


@dataclasses.dataclass
class _Budget:
    """Bytes that tensors may still take."""

    left: int

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise Refused(f"its tensors together are {_MAX_SHARING} times as long as the file")


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A storage before a tensor is made of it."""

    data: bytes
    dtype: np.dtype
    budget: _Budget

    @property
    def size(self) -> int:
        return len(self.data) // self.dtype.itemsize


class _Archive:
    """An open archive, whose entries have been checked.

    Args:
        archive: the open file.
        size: of the file.
    """

    def __init__(self, archive: zipfile.ZipFile, size: int):
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        self.archive = archive
        self.entries = dict(zip(names, entries, strict=True))
        self.budget = _Budget(_MAX_SHARING * size)
        self.read: dict[str, bytes] = {}
        self.storages: dict[tuple[str, np.dtype], _Storage] = {}
        if len(self.entries) < len(names):
            (twice, number), *_ = collections.Counter(names).most_common(1)
            raise Refused(f"corrupt: it has {number} entries {brief(twice)}")
        pickles = [name for name in names if name.split("/")[-1] == "data.pkl"]
        if not pickles:
            raise Refused(f"a zip archive without data.pkl, so not of torch.save (it has {_list(names)})")
        self.prefix = pickles[0].removesuffix("data.pkl")
        if len(pickles) > 1 or self.prefix.count("/") != 1:
            raise Refused(f"corrupt: data.pkl is not in one folder ({_list(pickles)})")
        for name, entry in self.entries.items():
            if not name.startswith(self.prefix) or ".." in name.split("/") or "\\" in name:
                raise Refused(f"corrupt: the entry {brief(name)} is not in the folder of data.pkl")
            if entry.flag_bits & 0x41:
                raise Refused(f"the entry {brief(name)} is encrypted")
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                raise Refused(f"the entry {brief(name)} is compressed, which torch.save does not do")
        if sum(entry.file_size for entry in entries) > size:
            raise Refused("corrupt: its entries together are longer than the file")
        if f"{self.prefix}constants.pkl" in self.entries:
            raise Refused("a TorchScript program (torch.jit.save), not a checkpoint of torch.save")
        order = f"{self.prefix}byteorder"
        if order in self.entries and self.bytes(order) != b"little":
            raise Refused("written on a big-endian machine: load and save it once on another")

    def bytes(self, name: str) -> bytes:
        """An entry, whose checksum is compared."""
        data = self.archive.read(self.entries[name])
        if len(data) != self.entries[name].file_size:
            raise Refused(f"truncated: the entry {brief(name)} has {len(data)} bytes")
        return data

    def load(self) -> Any:
        """What data.pkl holds."""
        return inert_pickle.loads(
            self.bytes(f"{self.prefix}data.pkl"), calls=_CALLS, values=_VALUES, persistent=self.storage
        )

    def storage(self, pid: Any) -> _Storage:
        """The storage that an id stands for."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise Refused("corrupt: a persistent id is not of a storage")
        _, cls, key, _, length = pid
        dtype = _storage_dtype(cls)
        if not isinstance(key, str) or not _is_count(length):
            raise Refused("corrupt: a storage has no key or no length")
        name = f"{self.prefix}data/{key}"
        if name not in self.entries:
            raise Refused(f"truncated or corrupt: it has no storage {brief(key)}")
        found, needed = self.entries[name].file_size, length * dtype.itemsize
        if found != needed:
            raise Refused(
                f"the storage {brief(key)} has {found} bytes, and {length} of {dtype} take {needed}"
            )
        if (key, dtype) not in self.storages:
            if key not in self.read:
                self.read[key] = self.bytes(name)
            data = self.read[key]
            if dtype == np.bool_:  # numpy relies on these being 0 or 1
                data = (np.frombuffer(data, np.uint8) != 0).tobytes()
            self.storages[key, dtype] = _Storage(data, dtype, self.budget)
        return self.storages[key, dtype]


def _storage_dtype(cls: Any) -> np.dtype:
    if isinstance(cls, Global) and cls.module in ("torch", "torch.cuda", "torch.storage"):
        name = cls.name.removesuffix("Storage")
        if name != cls.name and name in _STORAGES:
            return _STORAGES[name]
    raise Refused(f"{kind(cls)} is not a known class of storages")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> np.ndarray:
    """_rebuild_tensor, and _v2, which has (requires_grad, hooks[, metadata]) besides."""
    if not isinstance(storage, _Storage):
        raise Refused(f"corrupt: a tensor is made of {kind(storage)}")
    if len(rest) > 2 and rest[2]:
        raise Refused("a tensor whose values are to be conjugated or negated is not supported")
    if not _is_count(offset) or not _are_counts(size) or not _are_counts(stride) or len(size) != len(stride):
        raise Refused("corrupt: a tensor has no valid offset, size and strides")
    number, width = math.prod(size), storage.dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if number else 0
    # Repeated values (a stride of 0) could be any number of them.
    if number > storage.size or last >= max(storage.size, 1) or offset > storage.size:
        raise Refused(
            f"a tensor of size {brief(str(tuple(size)))} does not lie in its storage of {storage.size} values"
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
    if not isinstance(storage, _Storage) or not isinstance(dtype, np.dtype):
        raise Refused(f"corrupt: a tensor is made of {kind(storage)} and {kind(dtype)}")
    if storage.dtype != np.uint8 or len(storage.data) % dtype.itemsize or dtype == np.bool_:
        raise Refused(f"corrupt: a storage of {storage.size} {storage.dtype} is not of {dtype}")
    return _tensor(dataclasses.replace(storage, dtype=dtype), offset, size, stride, grad, hooks, *rest)


def _parameter(data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> np.ndarray:
    if not isinstance(data, np.ndarray):
        raise Refused(f"corrupt: a parameter is made of {kind(data)}")
    return data


def _tensor_of_type(call: Any, cls: Any, args: Any, state: Any) -> np.ndarray:
    """A tensor with attributes of its own, or of a class derived from torch.Tensor."""
    rebuild = _TENSORS.get(call.name) if isinstance(call, Global) and call.module == "torch._utils" else None
    if rebuild is None or not isinstance(args, tuple):
        raise Refused(f"it calls {kind(call)}, {_NO_CALL}")
    return rebuild(*args)


def _device(name: Any, index: Any = None) -> str:
    if not isinstance(name, str) or len(name) > 32 or not (index is None or _is_count(index)):
        raise Refused("corrupt: a device has no name")
    return name if index is None else f"{name}:{index}"


def _size(items: Any = ()) -> tuple[int, ...]:
    if not _are_counts(items):
        raise Refused("corrupt: a torch.Size is not of numbers")
    return tuple(items)


_TENSORS = {
    "_rebuild_tensor": _tensor,
    "_rebuild_tensor_v2": _tensor,
    "_rebuild_tensor_v3": _tensor_v3,
    "_rebuild_parameter": _parameter,
    "_rebuild_parameter_with_state": _parameter,
}
_CALLS = {
    **{("torch._utils", name): call for name, call in _TENSORS.items()},
    ("torch._tensor", "_rebuild_from_type_v2"): _tensor_of_type,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
}
_VALUES = {("torch", name): dtype for name, dtype in _DTYPES.items()}


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _are_counts(values: Any) -> bool:
    return isinstance(values, (tuple, list)) and len(values) <= _MAX_DIMS and all(map(_is_count, values))


def _join(prefix: str, name: Any) -> str:
    if not isinstance(name, str) or not name or "." in name:
        raise UserError(f"'{brief(prefix)}' has {kind(name)} '{brief(str(name))}' for a name")
    return f"{prefix}{name}"


def _other_kind(start: bytes) -> str:
    """What a file is that is no zip archive."""
    if start.startswith(_LEGACY) or start[257:262] == b"ustar":
        return "in PyTorch's format from before 1.6, which is not read: torch.save it with a version since"
    if start.startswith(b"\x80"):
        return "a plain pickle, not a file of torch.save"
    return "not a file of torch.save (no zip archive)" if start else "empty"


def _list(names: list[str]) -> str:
    return ", ".join(brief(name) for name in names[:4]) + (", ..." if len(names) > 4 else "") or "nothing"
