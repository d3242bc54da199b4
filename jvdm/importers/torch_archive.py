"""Reads files of `torch.save` without PyTorch, and without executing anything in them.

Since PyTorch 1.6 such a file (`.pt`, `.pth`) is a zip archive, whose entries are stored uncompressed:

    <name>/data.pkl     a pickle, in which a storage is an id ("storage", class, key, location, length)
    <name>/data/<key>   the bytes of a storage
    <name>/byteorder    "little" or "big"; absent before PyTorch 2.1

A file may come from anywhere. Nothing in it is executed (`jvdm.importers.inert_pickle`), its entries together
are no longer than the file, and tensors are checked against their storages (`jvdm.importers.torch_tensors`).
"""

import collections
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jvdm.core.errors import UserError
from jvdm.importers import inert_pickle, torch_tensors
from jvdm.importers.inert_values import Refused
from jvdm.importers.messages import brief

_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
# What zipfile raises for damaged archives: unknown methods (NotImplementedError), encryption (RuntimeError),
# bad offsets, names and numbers.
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
    *(RuntimeError, NotImplementedError, ValueError, KeyError, OverflowError),
)


def read(path: str | Path) -> Any:
    """What a file holds.

    Args:
        path: of the file.

    Returns:
        Dicts, lists, tuples, sets, numbers and text; read-only arrays for tensors and parameters; numpy's
        dtypes for dtypes and text for devices; a `Record` for an instance of a class, a `Global` for a
        function that is only referred to. Keys that are tensors are `ByIdentity`.

    Raises:
        UserError: the file does not exist, is of another kind, is damaged, or names or calls what no
            checkpoint needs.
    """
    path = Path(path)
    try:
        is_file = path.is_file()
    except OSError as error:
        raise UserError(f"no checkpoint at {str(path)!r}: {error.strerror}") from error
    if not is_file:
        raise UserError(f"no checkpoint at {str(path)!r}: the file does not exist")
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


class _Archive:
    """An open archive whose entries have been checked.

    Args:
        archive: the open file.
        size: of the file.
    """

    def __init__(self, archive: zipfile.ZipFile, size: int):
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        self.archive = archive
        self.entries = dict(zip(names, entries, strict=True))
        self.budget = torch_tensors.Budget.of_file(size)
        self.read: dict[str, bytes] = {}
        self.storages: dict[tuple[str, np.dtype], torch_tensors.Storage] = {}
        if len(self.entries) < len(names):
            (twice, number), *_ = collections.Counter(names).most_common(1)
            raise Refused(f"corrupt: it has {number} entries named {brief(twice)}")
        pickles = [name for name in names if name.split("/")[-1] == "data.pkl"]
        if not pickles:
            raise Refused(f"not a file of torch.save: a zip archive without data.pkl (it has {_list(names)})")
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
            raise Refused("written on a big-endian machine; only little-endian files can be read")

    def bytes(self, name: str) -> bytes:
        """The content of an entry, whose checksum is verified."""
        return self.archive.read(self.entries[name])

    def load(self) -> Any:
        """What data.pkl holds."""
        return inert_pickle.loads(
            self.bytes(f"{self.prefix}data.pkl"),
            calls=torch_tensors.CALLS,
            values=torch_tensors.VALUES,
            persistent=self.storage,
        )

    def storage(self, pid: Any) -> torch_tensors.Storage:
        """The storage of an id."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise Refused("corrupt: a persistent id does not stand for a storage")
        _, cls, key, _, length = pid
        dtype = torch_tensors.storage_dtype(cls)
        if not isinstance(key, str) or not torch_tensors.is_count(length):
            raise Refused("corrupt: a storage has no key or no length")
        name = f"{self.prefix}data/{key}"
        if name not in self.entries:
            raise Refused(f"truncated or corrupt: the storage {brief(key)} is missing")
        found, needed = self.entries[name].file_size, length * dtype.itemsize
        if found != needed:
            raise Refused(
                f"the storage {brief(key)} has {found} bytes, but {length} of {dtype} take {needed}"
            )
        if (key, dtype) not in self.storages:
            if key not in self.read:
                self.read[key] = self.bytes(name)
            data = self.read[key]
            if dtype == np.bool_:  # numpy relies on these being 0 or 1
                data = (np.frombuffer(data, np.uint8) != 0).tobytes()
            self.storages[key, dtype] = torch_tensors.Storage(data, dtype, self.budget)
        return self.storages[key, dtype]


def _other_kind(start: bytes) -> str:
    """What kind of file this is, if not a zip archive."""
    if start.startswith(_LEGACY) or start[257:262] == b"ustar":
        return "in the format of PyTorch before 1.6, which cannot be read: save it again with a newer PyTorch"
    if start.startswith(b"\x80"):
        return "a plain pickle, not a file of torch.save"
    return "not a file of torch.save (not a zip archive)" if start else "empty"


def _list(names: list[str]) -> str:
    return ", ".join(brief(name) for name in names[:4]) + (", ..." if len(names) > 4 else "") or "nothing"
