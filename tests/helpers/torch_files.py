"""Files of `torch.save`, made by hand: PyTorch is not installed, and does not write hostile ones."""

import dataclasses
import io
import pickle
import struct
import zipfile

import numpy as np

CLASSES = {
    "float16": "Half",
    "float32": "Float",
    "float64": "Double",
    "bfloat16": "BFloat16",
    "complex64": "ComplexFloat",
    "complex128": "ComplexDouble",
    "bool": "Bool",
    "int8": "Char",
    "int16": "Short",
    "int32": "Int",
    "int64": "Long",
    "uint8": "Byte",
}


# What a file holds, in addition to plain values.


@dataclasses.dataclass
class Name:
    """A global."""

    module: str
    name: str


@dataclasses.dataclass
class Call:
    """REDUCE."""

    target: object
    args: object = ()
    then: bytes = b""  # instructions that follow


@dataclasses.dataclass
class New:
    """NEWOBJ, and BUILD if there is a state."""

    cls: object
    args: object = ()
    state: object = None


@dataclasses.dataclass
class Stored:
    """A persistent id."""

    pid: object


def encode(value) -> bytes:
    """The instructions that leave a value on the stack."""
    match value:
        case bytes():
            return value
        case None:
            return pickle.NONE
        case bool():
            return pickle.NEWTRUE if value else pickle.NEWFALSE
        case int():
            data = pickle.encode_long(value)
            return pickle.LONG4 + struct.pack("<i", len(data)) + data
        case float():
            return pickle.BINFLOAT + struct.pack(">d", value)
        case str():
            data = value.encode()
            return pickle.BINUNICODE + struct.pack("<I", len(data)) + data
        case tuple():
            return pickle.MARK + b"".join(map(encode, value)) + pickle.TUPLE
        case list():
            return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(encode, value)) + pickle.APPENDS
        case dict():
            items = b"".join(encode(k) + encode(v) for k, v in value.items())
            return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
        case Name():
            return pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode()
        case Call():
            return encode(value.target) + encode(value.args) + pickle.REDUCE + value.then
        case New():
            made = encode(value.cls) + encode(value.args) + pickle.NEWOBJ
            return made if value.state is None else made + encode(value.state) + pickle.BUILD
        case Stored():
            return encode(value.pid) + pickle.BINPERSID
    raise TypeError(value)


def put(index):
    return pickle.LONG_BINPUT + struct.pack("<I", index)


def get(index):
    return pickle.LONG_BINGET + struct.pack("<I", index)


def storage(key, dtype, number):
    return Stored(("storage", Name("torch", f"{CLASSES[dtype]}Storage"), key, "cpu", number))


def rebuild(stored, offset, size, stride, *more):
    """_rebuild_tensor_v2."""
    empty = Call(Name("collections", "OrderedDict"))
    args = (stored, offset, tuple(size), tuple(stride), False, empty, *more)
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), args)


def tensor(key, array):
    """A whole storage as a tensor like the array, in rows."""
    strides = [s // array.itemsize for s in np.empty(array.shape, array.dtype).strides]
    return rebuild(storage(key, array.dtype.name, array.size), 0, array.shape, strides)


def module(**state):
    """A pickled torch.nn.Module of class `lib.models.Net`."""
    parts = ("_parameters", "_buffers", "_modules")
    return New(Name("lib.models", "Net"), (), {**{part: {} for part in parts}, **state})


class Zip:
    """Entries of an archive, to be changed before it is written."""

    def __init__(self, value=None, storages=None, *, pickled=None):
        self.entries = [
            ("archive/data.pkl", b"\x80\x02" + encode(value) + b"." if pickled is None else pickled)
        ]
        for key, array in (storages or {}).items():
            self.entries.append(
                (f"archive/data/{key}", array if isinstance(array, bytes) else array.tobytes())
            )
        self.entries.append(("archive/version", b"3\n"))

    def add(self, name, data=b""):
        self.entries.append((name, data))
        return self

    def data(self, compression=zipfile.ZIP_STORED) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", compression) as archive:
            for name, data in self.entries:
                archive.writestr(name, data)
        return file.getvalue()
