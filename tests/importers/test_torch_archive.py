"""Files of `torch.save`: archives, storages, tensors and modules; whatever is wrong is one clear line."""

import io
import pickle
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
from helpers.torch_files import (
    CLASSES,
    Call,
    Name,
    New,
    Stored,
    Zip,
    encode,
    get,
    module,
    put,
    rebuild,
    storage,
    tensor,
)

from jvdm.core.errors import UserError
from jvdm.importers import torch_archive, torch_modules

# Tensors.


def test_dtypes(read):
    for dtype in CLASSES:
        array = np.arange(6).reshape(2, 3).astype(getattr(ml_dtypes, dtype, dtype))
        ours = read(Zip(tensor("0", array), {"0": array}))
        assert ours.dtype == array.dtype
        np.testing.assert_array_equal(ours, array)
        assert not ours.flags.writeable


def test_dtypes_without_a_storage_class(read):
    for dtype in ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"):
        array = np.arange(6).astype(getattr(ml_dtypes, dtype, dtype))
        stored = Stored(("storage", Name("torch.storage", "UntypedStorage"), "0", "cpu", array.nbytes))
        args = (stored, 0, (6,), (1,), False, {}, Name("torch", dtype))
        ours = read(Zip(Call(Name("torch._utils", "_rebuild_tensor_v3"), args), {"0": array}))
        assert ours.dtype == array.dtype
        np.testing.assert_array_equal(ours, array)


VIEWS = [
    (0, (3, 4), (4, 1)),
    (0, (4, 3), (1, 4)),  # transposed
    (5, (2, 2), (4, 1)),  # a corner
    (11, (), ()),
    (1, (2, 3), (6, 2)),
    (0, (1, 12, 1), (99, 1, 99)),  # strides of dimensions of one do not matter
    (0, (0, 4), (4, 1)),
    (12, (0,), (1,)),
]


def test_views_of_a_storage(read):
    flat = np.arange(12, dtype=np.float32)
    for offset, size, stride in VIEWS:
        ours = read(Zip(rebuild(storage("0", "float32", 12), offset, size, stride), {"0": flat}))
        assert ours.shape == size
        for index in np.ndindex(*size):
            assert ours[index] == offset + np.dot(index, stride)


def test_tensors_of_one_storage_share_its_memory(read):
    array = np.arange(6, dtype=np.float32)
    a, b = read(Zip([tensor("0", array), tensor("0", array)], {"0": array}))
    assert np.shares_memory(a, b)


FORMS = [
    lambda t: Call(Name("torch._utils", "_rebuild_parameter"), (t, True, {})),
    lambda t: Call(Name("torch._utils", "_rebuild_parameter_with_state"), (t, True, {}, {"a": 1})),
    lambda t: Call(
        Name("torch._tensor", "_rebuild_from_type_v2"),
        (t.target, Name("torch.nn.parameter", "Buffer"), t.args, {"persistent": True}),
    ),
    lambda t: Call(Name("torch._utils", "_rebuild_tensor"), t.args[:4]),
    lambda t: rebuild(*t.args[:4], None),
    lambda t: rebuild(*t.args[:4], {}),
]


def test_forms_of_a_tensor(read):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for wrapped in FORMS:
        np.testing.assert_array_equal(read(Zip(wrapped(tensor("0", array)), {"0": array})), array)


FLOATS = storage("0", "float32", 12)
FLAT = {"0": np.arange(12, dtype=np.float32)}

# By message: offset, size and stride of a tensor.
OUTSIDE = {
    "does not fit in its storage of 12": [
        (0, (13,), (1,)),
        (1, (12,), (1,)),
        (12, (), ()),
        (13, (0,), (1,)),
        (0, (3, 4), (5, 1)),
        (0, (2,), (2**62,)),
        (0, (2**40,), (0,)),  # one value, repeated
        (0, (2**31, 2**31), (0, 0)),
        (0, (2**62, 2**62), (1, 1)),
        (0, (13, 1), (0, 1)),
    ],
    "impossible size": [(0, (0, 2**62, 2**62), (1, 1, 1))],
    "no valid offset, size and strides": [
        (0, (1,) * 65, (1,) * 65),
        (11, (2,), (-1,)),
        (-1, (2,), (1,)),
        (0, (-2, -2), (1, 1)),
        (0, (2**70,), (1,)),
        (2**70, (1,), (1,)),
        (0, (3, 4), (1,)),
        (0, (3.0,), (1,)),
        (True, (3,), (1,)),
        (0, (True,), (1,)),
        (0, ("3",), (1,)),
        (None, (3,), (1,)),
    ],
}


@pytest.mark.parametrize("message", OUTSIDE)
def test_tensors_outside_their_storage(error_of, message):
    for view in OUTSIDE[message]:
        assert message in error_of(Zip(rebuild(FLOATS, *view), FLAT)), view


def untyped(stored, dtype, number=1):
    args = (stored, 0, (number,), (1,), False, {}, dtype)
    return Call(Name("torch._utils", "_rebuild_tensor_v3"), args)


BYTES = Stored(("storage", Name("torch.storage", "UntypedStorage"), "0", "cpu", 48))
MADE_FROM = {
    "a tensor is made from an int": rebuild(5, 0, (1,), (1,)),
    "a tensor is made from None": rebuild(None, 0, (0,), (1,)),
    "pending conjugation or negation": rebuild(FLOATS, 0, (1,), (1,), {"neg": True}),
    "no valid offset, size and strides": Call(Name("torch._utils", "_rebuild_tensor_v2"), (FLOATS, 0, 12, 1)),
    "with 0 arguments": Call(Name("torch._utils", "_rebuild_tensor_v2"), ()),
    "a tensor is made from a Storage and None": untyped(FLOATS, None),
    "a tensor is made from an int and": untyped(5, Name("torch", "int8")),
    "a storage of 12 float32 cannot hold int8": untyped(FLOATS, Name("torch", "int8")),
    "a storage of 48 uint8 cannot hold bool": untyped(BYTES, Name("torch", "bool")),
    "a storage of 12 uint8 cannot hold float64": untyped(
        Stored(("storage", Name("torch.storage", "UntypedStorage"), "1", "cpu", 12)), Name("torch", "float64")
    ),
    "a parameter is made from an int": Call(Name("torch._utils", "_rebuild_parameter"), (5, True, {})),
    "a parameter is made from a Storage": Call(
        Name("torch._utils", "_rebuild_parameter"), (FLOATS, True, {})
    ),
}


def test_tensors_made_from_other_things(error_of):
    for message, value in MADE_FROM.items():
        assert message in error_of(Zip(value, {**FLAT, "1": b"x" * 12}))


FLOAT = Name("torch", "FloatStorage")
# By message: the persistent id.
ABSENT = {
    "a persistent id does not stand for a storage": [
        *(5, "storage", (), ("storage", FLOAT, "0", "cpu"), ("module", FLOAT, "0", "cpu", 12))
    ],
    "is not a known storage class": [
        ("storage", Name("torch", "QuantizedStorage"), "0", "cpu", 12),
        ("storage", Name("lib", "FloatStorage"), "0", "cpu", 12),
        ("storage", Name("torch", "Float"), "0", "cpu", 12),
        ("storage", "FloatStorage", "0", "cpu", 12),
    ],
    "is missing": [
        ("storage", FLOAT, "1", "cpu", 12),
        ("storage", FLOAT, "../data.pkl", "cpu", 12),
        ("storage", FLOAT, "/etc/passwd", "cpu", 12),
    ],
    "a storage has no key or no length": [
        ("storage", FLOAT, 0, "cpu", 12),
        ("storage", FLOAT, "0", "cpu", -12),
        ("storage", FLOAT, "0", "cpu", 2**70),
        ("storage", FLOAT, "0", "cpu", 12.0),
        ("storage", FLOAT, "0", "cpu", None),
    ],
    "has 48 bytes, but": [("storage", FLOAT, "0", "cpu", 11), ("storage", FLOAT, "0", "cpu", 13)],
}


@pytest.mark.parametrize("message", ABSENT)
def test_storages_that_are_not_there(error_of, message):
    for pid in ABSENT[message]:
        assert message in error_of(Zip(Stored(pid), FLAT)), pid


def test_memory_is_bounded_by_the_file(read, error_of):
    """A hundred tensors of one storage, as numbers and as bools; then as many as no checkpoint has."""
    array = np.ones(100_000, np.uint8)

    def tensors(count):
        return [tensor("0", array)] * count + [tensor("0", array.astype(bool))] * count

    tracemalloc.start()
    assert len(read(Zip(tensors(7), {"0": array}))) == 14
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6
    assert "its tensors together are more than 16 times as long as the file" in error_of(
        Zip(tensors(100), {"0": array})
    )


# Modules.


def test_old_files_have_no_byte_order(read):
    assert read(Zip(5)) == 5
    assert read(Zip(5).add("archive/byteorder", b"little").add("archive/.data/serialization_id", b"0")) == 5


def test_state_dict(read):
    array = np.arange(4, dtype=np.float32)
    t = tensor("0", array)
    shared = module(_parameters={"weight": t, "bias": None}).__dict__
    child = New(shared["cls"], (), shared["state"])
    transient = Call(Name("builtins", "set"), (["cache"],))
    root = module(
        _parameters={"T": t},
        _buffers={"mean": t, "cache": t, "none": None},
        _non_persistent_buffers_set=transient,
        _modules={"a": encode(child) + put(1), "b": module(_modules={"0": get(1), "1": None})},
        training=True,
    )
    found = torch_modules.state_dict(read(Zip(root, {"0": array})))
    assert list(found) == ["T", "mean", "a.weight", "b.0.weight"]
    np.testing.assert_array_equal(found["b.0.weight"], array)


NOT_MODULES = {
    "a number": (5, "an int is not a torch.nn.Module"),
    "another instance": (
        New(Name("lib", "SDE"), (), {"T": 1}),
        "<record of lib.SDE> is not a torch.nn.Module",
    ),
    "state": (New(Name("lib", "SDE")), "is not a torch.nn.Module"),
    "list for dict": (module(_modules=[]), "is not a torch.nn.Module"),
    "child": (module(_modules={"a": module(_modules={"b": 3})}), "an int in a.b is not a torch.nn.Module"),
    "tensor": (module(_parameters={"w": 3}), "w is an int, not a tensor"),
    "name": (module(_parameters={"a.b": None}), "'' has a child with the invalid name 'a.b'"),
    "number for name": (module(_modules={3: module()}), "'' has a child with the invalid name 3"),
    "transient": (module(_non_persistent_buffers_set=3, _buffers={"w": 3}), "w is an int, not a tensor"),
}


def test_not_a_module(read):
    for case, (value, message) in NOT_MODULES.items():
        with pytest.raises(UserError) as caught:
            torch_modules.state_dict(read(Zip(value)))
        assert message in str(caught.value) and len(str(caught.value).splitlines()) == 1, case


def module_in_itself(children):
    head = encode(Name("lib", "Net")) + encode(()) + pickle.NEWOBJ + put(0)
    inside = b"".join(encode(name) + get(0) for name in children)
    modules = encode("_modules") + pickle.EMPTY_DICT + pickle.MARK + inside + pickle.SETITEMS
    state = encode({"_parameters": {}, "_buffers": {}}) + pickle.MARK + modules + pickle.SETITEMS
    return head + state + pickle.BUILD


def modules_with_countless_names():
    """Each module is two children of the next."""
    value = encode(module()) + put(0)
    for i in range(60):
        children = b"".join(encode(name) + get(i) for name in "ab")
        modules = pickle.EMPTY_DICT + pickle.MARK + children + pickle.SETITEMS
        value += b"0" + encode(module(_modules=modules)) + put(i + 1)
    return value


def test_too_many_modules(read, monkeypatch):
    monkeypatch.setattr(torch_modules, "_MAX_MODULES", 1000)
    for value in (module_in_itself("a"), module_in_itself("ab"), modules_with_countless_names()):
        with pytest.raises(UserError, match="too many nested modules"):
            torch_modules.state_dict(read(Zip(value)))


# Archives.

WEIGHT = np.arange(12, dtype=np.float32)
WHOLE = Zip({"step": 1, "model": {"w": tensor("0", WEIGHT)}}, {"0": WEIGHT}).add(
    "archive/byteorder", b"little"
)


def changed(data, old, new, *, last=False):
    """Bytes with one occurrence of `old` changed."""
    at = data.rindex(old) if last else data.index(old)
    return data[:at] + new + data[at + len(old) :]


def central(data, name, offset, new):
    """Bytes with a field of an entry in the central directory changed."""
    at = data.rindex(name) - 46 + offset
    assert data[at - offset :].startswith(b"PK\x01\x02")
    return data[:at] + new + data[at + len(new) :]


def in_folders(name):
    """An archive whose only pickle has this name."""
    archive = Zip()
    archive.entries = [(name, b"N.")]
    return archive


def numpy_archive():
    file = io.BytesIO()
    np.savez(file, a=WEIGHT)
    return file.getvalue()


def test_the_archive_that_is_changed_below_is_read(read):
    np.testing.assert_array_equal(read(WHOLE)["model"]["w"], WEIGHT)


def test_truncated(error_of):
    data = WHOLE.data()
    for cut in (1, 4, 30, 100, len(data) // 2, len(data) * 9 // 10, -1, -10):
        message = error_of(data[:cut])
        assert "truncated or corrupt" in message or "not a zip archive" in message


ODD = {
    "empty": (b"", "empty"),
    "text": (b"not a checkpoint", "not a zip archive"),
    "before 1.6": (
        pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2),
        "the format of PyTorch before 1.6",
    ),
    "before 0.1.10": (
        b"sys_info".ljust(257, b"\0") + b"ustar" + b"\0" * 250,
        "the format of PyTorch before 1.6",
    ),
    "plain pickle": (pickle.dumps({"a": 1}), "a plain pickle"),
    "empty archive": (b"PK\x05\x06" + b"\0" * 18, "without data.pkl"),
    "only an end": (b"PK\x05\x06" + b"\xff" * 18, "truncated or corrupt"),
    "compressed": (WHOLE.data(zipfile.ZIP_DEFLATED), "is compressed"),
    "two pickles": (
        Zip(1).add("other/data.pkl", b"N."),
        "data.pkl is not in one folder (archive/data.pkl, other",
    ),
    "pickle in a folder": (Zip(1).add("archive/code/data.pkl", b"N."), "data.pkl is not in one folder"),
    "pickle in two folders": (in_folders("a/b/data.pkl"), "data.pkl is not in one folder"),
    "pickle in no folder": (in_folders("data.pkl"), "data.pkl is not in one folder"),
    "parent": (Zip(1).add("archive/../../etc/passwd"), "entry archive/../../etc/passwd is not in the folder"),
    "absolute": (Zip(1).add("/etc/passwd"), "entry /etc/passwd is not in the folder"),
    "backslash": (Zip(1).add("archive/..\\up"), "is not in the folder"),
    "elsewhere": (Zip(1).add("other/data/0"), "other/data/0 is not in the folder"),
    "big-endian": (Zip(1).add("archive/byteorder", b"big"), "big-endian"),
    "byte order": (Zip(1).add("archive/byteorder", b""), "big-endian"),
    "TorchScript": (Zip(1).add("archive/constants.pkl", b"N."), "a TorchScript program"),
    "checksum": (changed(WHOLE.data(), WEIGHT.tobytes(), b"\x01" * 48), "truncated or corrupt (Bad CRC-32"),
    "checksum of the pickle": (changed(WHOLE.data(), b"step", b"stop"), "truncated or corrupt (Bad CRC-32"),
    "encrypted": (central(WHOLE.data(), b"archive/data/0", 8, b"\x01"), "is encrypted"),
    "sizes": (
        central(WHOLE.data(), b"archive/data/0", 20, struct.pack("<II", 2**31, 2**31)),
        "longer than the",
    ),
    "a size": (central(WHOLE.data(), b"archive/data/0", 24, struct.pack("<I", 2**31)), "is compressed"),
    "smaller": (central(WHOLE.data(), b"archive/data/0", 20, struct.pack("<II", 8, 8)), "has 8 bytes"),
    "a place": (
        central(WHOLE.data(), b"archive/data/0", 42, struct.pack("<I", 2**31 - 9)),
        "truncated or corr",
    ),
    "a compression": (central(WHOLE.data(), b"archive/data/0", 10, b"\x63"), "is compressed"),
    "file in the local header": (
        changed(WHOLE.data(), b"archive/data/0", b"archive/data/9"),
        "truncated or corr",
    ),
    "numpy": (numpy_archive(), "a zip archive without data.pkl (it has a.npy)"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_archives(error_of, case):
    content, message = ODD[case]
    assert message in error_of(content)


def test_an_entry_that_is_there_twice(error_of):
    data = Zip(tensor("0", WEIGHT), {"0": WEIGHT, "1": WEIGHT}).data()
    for _ in range(2):
        data = changed(data, b"archive/data/1", b"archive/data/0")
    assert "2 entries named archive/data/0" in error_of(data)


def test_entries_inside_one_another(error_of):
    """Many of one place: a small file that is long when it is read."""
    keys = [str(i) for i in range(100, 150)]
    data = Zip([tensor(key, WEIGHT) for key in keys], dict.fromkeys(keys, WEIGHT)).data()
    small = data[: data.index(b"PK\x03\x04", 10)] + data[data.index(b"PK\x01\x02") :]
    at = small.rindex(b"PK\x05\x06") + 16
    small = small[:at] + struct.pack("<I", small.index(b"PK\x01\x02")) + small[at + 4 :]
    for key in keys:
        small = central(small, f"archive/data/{key}".encode(), 42, struct.pack("<I", 0))
        small = central(small, f"archive/data/{key}".encode(), 20, struct.pack("<II", 4000, 4000))
    assert "its entries together are longer than the file" in error_of(small)


# Paths.


def test_no_such_file(tmp_path):
    for name in ("nowhere.pt", "", "nul\0", "x" * 5000, "model.pt/more"):
        with pytest.raises(UserError, match="no checkpoint at") as caught:
            torch_archive.read(tmp_path / name)
        assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "model.pt").write_bytes(b"")
    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(UserError, match=r"cannot read checkpoint .*model\.pt: Permission denied"):
        torch_archive.read(tmp_path / "model.pt")
