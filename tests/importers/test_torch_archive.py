"""Files of `torch.save`: what they hold is read, nothing in them is run, and all else is one clear line."""

import collections
import dataclasses
import io
import os
import pickle
import struct
import sys
import tracemalloc
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest

from jvdm.core.errors import UserError
from jvdm.importers import inert_pickle, torch_archive
from jvdm.importers.inert_pickle import ByIdentity, Global, Record

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


# What a file is made of, besides plain values. No PyTorch is installed, so pickles are put together by hand.


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


@pytest.fixture
def read(tmp_path):
    """(Zip or bytes) -> what the file holds."""

    def read(content):
        path = tmp_path / "model.pt"
        path.write_bytes(content if isinstance(content, bytes) else content.data())
        return torch_archive.read(path)

    return read


@pytest.fixture
def error_of(read):
    """(Zip or bytes) -> the error's message."""

    def error_of(content):
        with pytest.raises(UserError) as caught:
            read(content)
        message = str(caught.value)
        assert "model.pt" in message
        assert len(message.splitlines()) == 1
        assert len(message) < 600
        return message

    return error_of


# What is read.


@pytest.mark.parametrize("dtype", CLASSES)
def test_dtypes(read, dtype):
    array = np.arange(6).reshape(2, 3).astype(getattr(ml_dtypes, dtype, dtype))
    ours = read(Zip(tensor("0", array), {"0": array}))
    assert ours.dtype == array.dtype
    np.testing.assert_array_equal(ours, array)
    assert not ours.flags.writeable


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"])
def test_dtypes_without_a_storage_class(read, dtype):
    array = np.arange(6).astype(getattr(ml_dtypes, dtype, dtype))
    stored = Stored(("storage", Name("torch.storage", "UntypedStorage"), "0", "cpu", array.nbytes))
    args = (stored, 0, (6,), (1,), False, {}, Name("torch", dtype))
    ours = read(Zip(Call(Name("torch._utils", "_rebuild_tensor_v3"), args), {"0": array}))
    assert ours.dtype == array.dtype
    np.testing.assert_array_equal(ours, array)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (3, 4), (4, 1)),
        (0, (4, 3), (1, 4)),  # transposed
        (5, (2, 2), (4, 1)),  # a corner
        (11, (), ()),
        (1, (2, 3), (6, 2)),
        (0, (1, 12, 1), (99, 1, 99)),  # strides of dimensions of one do not matter
        (0, (0, 4), (4, 1)),
        (12, (0,), (1,)),
    ],
)
def test_views_of_a_storage(read, offset, size, stride):
    flat = np.arange(12, dtype=np.float32)
    ours = read(Zip(rebuild(storage("0", "float32", 12), offset, size, stride), {"0": flat}))
    assert ours.shape == size
    for index in np.ndindex(*size):
        assert ours[index] == offset + np.dot(index, stride)


def test_tensors_of_one_storage_take_no_memory_of_their_own(read):
    array = np.arange(6, dtype=np.float32)
    a, b = read(Zip([tensor("0", array), tensor("0", array)], {"0": array}))
    assert np.shares_memory(a, b)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda t: Call(Name("torch._utils", "_rebuild_parameter"), (t, True, {})),
        lambda t: Call(Name("torch._utils", "_rebuild_parameter_with_state"), (t, True, {}, {"a": 1})),
        lambda t: Call(
            Name("torch._tensor", "_rebuild_from_type_v2"),
            (t.target, Name("torch.nn.parameter", "Buffer"), t.args, {"persistent": True}),
        ),
        lambda t: Call(Name("torch._utils", "_rebuild_tensor"), t.args[:4]),
        lambda t: rebuild(*t.args[:4], None),
        lambda t: rebuild(*t.args[:4], {}),
    ],
)
def test_forms_of_a_tensor(read, wrapped):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(read(Zip(wrapped(tensor("0", array)), {"0": array})), array)


def test_plain_values(read):
    ordered = Name("collections", "OrderedDict")
    metadata = encode({"_metadata": {"version": 1}}) + pickle.BUILD
    value = {
        "step": 7,
        "big": 2**200,
        "lr": 2e-4,
        "betas": (0.9, 0.99),
        "model": Call(ordered, (), pickle.MARK + encode("a") + encode(1) + pickle.SETITEMS + metadata),
        "python 2": Call(ordered, ([["a", 1], ["b", 2]],)),
        "state": Call(
            Name("collections", "defaultdict"), (Name("__builtin__", "dict"),), encode(0) + encode(1) + b"s"
        ),
        "names": Call(Name("__builtin__", "set"), (["a", "b"],)),
        "milestones": Call(Name("collections", "Counter"), ({5: 1},)),
        "size": Call(Name("torch", "Size"), ([2, 3],)),
        "device": Call(Name("torch", "device"), ("cuda", 1)),
        "cpu": Call(Name("torch", "device"), ("cpu",)),
        "dtype": Name("torch", "bfloat16"),
        "bytes": Call(Name("_codecs", "encode"), ("\x00\xff", "latin1")),
        "function": Name("torch.nn.functional", "silu"),
    }
    assert read(Zip(value)) == {
        "step": 7,
        "big": 2**200,
        "lr": 2e-4,
        "betas": (0.9, 0.99),
        "model": {"a": 1},
        "python 2": {"a": 1, "b": 2},
        "state": {0: 1},
        "names": {"a", "b"},
        "milestones": {5: 1},
        "size": (2, 3),
        "device": "cuda:1",
        "cpu": "cpu",
        "dtype": np.dtype(ml_dtypes.bfloat16),
        "bytes": b"\x00\xff",
        "function": Global("torch.nn.functional", "silu"),
    }


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_protocols(read, protocol):
    value = {
        "a": [1, -1, 2**40, 1.5, None, True, False, "text", "\N{GREEK SMALL LETTER GAMMA}", ()],
        "b": ((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, []),
        "c": {1, 2},
        "d": collections.OrderedDict(x=frozenset([3])),
        "e": b"\x00\xff",
    }
    value["f"] = value["a"]
    ours = read(Zip(pickled=pickle.dumps(value, protocol)))
    assert ours == value
    assert ours["f"] is ours["a"]


@pytest.fixture
def foreign(monkeypatch):
    """A class of a module that is gone when its instances are read."""
    modules = {name: types.ModuleType(name) for name in ("lib", "lib.sdes")}

    class Plugin:
        """Does harm if anyone makes one."""

        harmless = True

        def __new__(cls, *args):
            assert cls.harmless
            return super().__new__(cls)

        def __setstate__(self, state):
            raise AssertionError

    Plugin.__module__, Plugin.__qualname__ = "lib.sdes", "Plugin"
    modules["lib.sdes"].Plugin = Plugin  # pyright: ignore[reportAttributeAccessIssue]
    for name, value in modules.items():
        monkeypatch.setitem(sys.modules, name, value)
    yield Plugin
    Plugin.harmless = True


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_instance_is_a_record(read, foreign, monkeypatch, protocol):
    instance = foreign()
    instance.__dict__.update(T=1.0, parts=[foreign()])
    pickled = pickle.dumps([instance, instance], protocol)
    for name in ("lib", "lib.sdes"):
        monkeypatch.delitem(sys.modules, name)
    foreign.harmless = False
    first, second = read(Zip(pickled=pickled))
    assert first is second
    assert (first.module, first.name, first.args) == ("lib.sdes", "Plugin", ())
    assert first.state["T"] == 1.0
    assert isinstance(first.state["parts"][0], Record)
    assert "lib.sdes" not in sys.modules
    assert {first: 1}[second] == 1
    assert repr(first) == "<record of lib.sdes.Plugin>"


def test_an_instance_with_arguments_items_and_slots(read):
    cls = Name("__main__", "Config")
    made = encode(New(cls, (1,))) + encode("a") + encode(2) + b"s" + encode(3) + b"a"
    slots = encode((None, {"x": 4})) + pickle.BUILD
    keywords = encode(cls) + encode((1,)) + encode({"k": 2}) + pickle.NEWOBJ_EX
    first, second, space = read(
        Zip([made + slots, keywords, New(Name("argparse", "Namespace"), (), {"lr": 1})])
    )
    assert (first.args, first.items, first.state) == ((1,), [("a", 2), 3], (None, {"x": 4}))
    assert second.args == (1, {"k": 2})
    assert (space.module, space.name, space.state) == ("argparse", "Namespace", {"lr": 1})


def test_state_of_an_optimizer_by_parameter(read):
    array = np.ones(3, np.float32)
    parameter = Call(Name("torch._utils", "_rebuild_parameter"), (tensor("0", array), True, {}), put(5))
    value = [parameter, pickle.EMPTY_DICT + get(5) + encode(1) + b"s" + get(5) + encode(2) + b"s"]
    ours, state = read(Zip(value, {"0": array}))
    ((key, number),) = state.items()
    assert isinstance(key, ByIdentity) and key.value is ours and number == 2


def test_old_files_have_no_byte_order(read):
    assert read(Zip(5)) == 5
    assert read(Zip(5).add("archive/byteorder", b"little").add("archive/.data/serialization_id", b"0")) == 5


# The parameters of a module.


def test_state_dict(read):
    array = np.arange(4, dtype=np.float32)
    t = tensor("0", array)
    shared = module(_parameters={"weight": t, "bias": None}).__dict__
    child = New(shared["cls"], (), shared["state"])
    passing = Call(Name("builtins", "set"), (["cache"],))
    root = module(
        _parameters={"T": t},
        _buffers={"mean": t, "cache": t, "none": None},
        _non_persistent_buffers_set=passing,
        _modules={"a": encode(child) + put(1), "b": module(_modules={"0": get(1), "1": None})},
        training=True,
    )
    found = torch_archive.state_dict(read(Zip(root, {"0": array})))
    assert list(found) == ["T", "mean", "a.weight", "b.0.weight"]
    np.testing.assert_array_equal(found["b.0.weight"], array)


NOT_MODULES = {
    "a number": (5, "a int is not a torch.nn.Module"),
    "another instance": (
        New(Name("lib", "SDE"), (), {"T": 1}),
        "<record of lib.SDE> is not a torch.nn.Module",
    ),
    "state": (New(Name("lib", "SDE")), "is not a torch.nn.Module"),
    "list for dict": (module(_modules=[]), "is not a torch.nn.Module"),
    "child": (module(_modules={"a": module(_modules={"b": 3})}), "a int in a.b is not a torch.nn.Module"),
    "tensor": (module(_parameters={"w": 3}), "w is a int, not a tensor"),
    "name": (module(_parameters={"a.b": None}), "'' has a str 'a.b' for a name"),
    "number for name": (module(_modules={3: module()}), "'' has a int '3' for a name"),
    "passing": (module(_non_persistent_buffers_set=3, _buffers={"w": 3}), "w is a int, not a tensor"),
}


@pytest.mark.parametrize("case", NOT_MODULES)
def test_not_a_module(read, case):
    value, message = NOT_MODULES[case]
    with pytest.raises(UserError) as caught:
        torch_archive.state_dict(read(Zip(value)))
    assert message in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("children", ["a", "ab"])
def test_a_module_in_itself(read, children):
    head = encode(Name("lib", "Net")) + encode(()) + pickle.NEWOBJ + put(0)
    inside = b"".join(encode(name) + get(0) for name in children)
    modules = encode("_modules") + pickle.EMPTY_DICT + pickle.MARK + inside + pickle.SETITEMS
    state = encode({"_parameters": {}, "_buffers": {}}) + pickle.MARK + modules + pickle.SETITEMS
    record = read(Zip(head + state + pickle.BUILD))
    with pytest.raises(UserError, match="too many modules in one another"):
        torch_archive.state_dict(record)


def test_modules_shared_so_often_that_their_names_are_countless(read):
    value = encode(module()) + put(0)
    for i in range(60):
        children = b"".join(encode(name) + get(i) for name in "ab")
        modules = pickle.EMPTY_DICT + pickle.MARK + children + pickle.SETITEMS
        value += b"0" + encode(module(_modules=modules)) + put(i + 1)
    with pytest.raises(UserError, match="too many modules"):
        torch_archive.state_dict(read(Zip(value)))


# What is refused: calls.


class Evil:
    """Pickles as a call."""

    def __init__(self, target, *args):
        self.target, self.args = target, args

    def __reduce__(self):
        return self.target, self.args


EVIL = {
    "os.system": (os.system, "touch owned"),
    "builtins.eval": (eval, "open('owned', 'w')"),
    "builtins.exec": (exec, "open('owned', 'w')"),
    "builtins.getattr": (getattr, "a", "b"),
    "builtins.__import__": (__import__, "os"),
    "builtins.open": (open, "owned", "w"),
    "subprocess.Popen": (__import__("subprocess").Popen, "touch owned"),
    "importlib.import_module": (__import__("importlib").import_module, "antigravity"),
    "operator.attrgetter": (__import__("operator").attrgetter, "system"),
    "functools.partial": (__import__("functools").partial, os.system, "touch owned"),
    "pickle.loads": (pickle.loads, b"N."),
    "shutil.rmtree": (__import__("shutil").rmtree, "nowhere"),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", EVIL)
def test_calls_into_the_standard_library(error_of, tmp_path, monkeypatch, name, protocol):
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps({"model": [Evil(*EVIL[name])]}, protocol)
    message = error_of(Zip(pickled=pickled))
    # Python writes os.system as posix.system, and names of protocols below 3 as Python 2 had them.
    root = name.split(".")[-1]
    assert "which is refused: nothing in a checkpoint is run" in message
    assert root in message or "partial" in message
    assert not (tmp_path / "owned").exists()


REFUSED = {
    "posix": (Call(Name("posix", "system"), ("true",)), "names posix.system"),
    "not called": ({"f": Name("builtins", "eval")}, "names builtins.eval"),
    "python 2": (Name("__builtin__", "execfile"), "names builtins.execfile"),
    "python 2 module": (Name("commands", "getoutput"), "names commands.getoutput"),
    "instance": (New(Name("subprocess", "Popen"), ("true",)), "names subprocess.Popen"),
    "dotted": (
        pickle.PROTO + b"\x04" + encode("os") + encode("path.os.system") + b"\x93",
        "names os.path.os.sys",
    ),
    "inst": (b"(" + encode("true") + b"ios\nsystem\n", "names os.system"),
    "obj": (b"(" + encode(Name("torch.hub", "load")) + encode("a") + b"o", "calls torch.hub.load"),
    "obj of nothing": (b"(o", "calls a NoneType"),
    "other code": (Call(Name("torch.hub", "load"), ("a",)), "calls torch.hub.load"),
    "numpy": (Call(Name("numpy.testing._private.utils", "runstring"), ("1", {})), "calls numpy.testing"),
    "a class": (Call(Name("lib.sdes", "PluginReverseSDE"), ()), "calls lib.sdes.PluginReverseSDE"),
    "nested": (
        Call(Name("torch.storage", "_load_from_bytes"), (b"C\x01N",)),
        "calls torch.storage._load_from",
    ),
    "sparse": (
        Call(Name("torch._utils", "_rebuild_sparse_tensor"), (1, 2)),
        "calls torch._utils._rebuild_sp",
    ),
    "a result": (Call(Call(Name("collections", "OrderedDict")), ()), "calls a dict with a tuple"),
    "an instance": (Call(New(Name("lib", "Net")), ()), "calls <record of lib.Net>"),
    "text": (Call("os.system", ("true",)), "calls a str"),
    "text for arguments": (Call(Name("collections", "OrderedDict"), "ab"), "OrderedDict with a str"),
    "instance of an instance": (New(New(Name("lib", "Net"))), "makes an instance of <record of lib.Net>"),
    "instance of a result": (New(Call(Name("builtins", "dict"))), "makes an instance of a dict"),
    "instance of text": (New("os.system", ("true",)), "makes an instance of a str"),
    "reconstructor": (
        Call(Name("copy_reg", "_reconstructor"), (Name("os", "system"), Name("__builtin__", "object"), None)),
        "names os.system",
    ),
    "newobj": (Call(Name("copyreg", "__newobj__"), (5,)), "makes an instance of a int"),
    "type": (
        Call(Name("torch._tensor", "_rebuild_from_type_v2"), (Name("torch.hub", "load"), 1, ("a",), 2)),
        "calls torch.hub.load",
    ),
    "type of a call": (
        Call(Name("torch._tensor", "_rebuild_from_type_v2"), (Name("torch._utils", "_set_obj"), 1, (), 2)),
        "calls torch._utils._set_obj",
    ),
    "arguments": (Call(Name("builtins", "set"), (1, 2, 3)), "with 3 arguments of the wrong kind"),
    "more arguments": (Call(Name("torch", "Size"), (1, 2)), "with 2 arguments of the wrong kind"),
    "device": (Call(Name("torch", "device"), ("x" * 100,)), "a device has no name"),
    "size": (Call(Name("torch", "Size"), ((1, -1),)), "a torch.Size is not of numbers"),
    "encoding": (Call(Name("_codecs", "encode"), ("a", "rot13")), "not encoded as Python"),
    "wide bytes": (Call(Name("_codecs", "encode"), ("\u1234", "latin1")), "bytes are above 255"),
    "build a name": (encode(Name("lib", "f")) + encode({"__code__": 1}) + b"b", "builds lib.f"),
    "build nothing": (b"N}b", "builds a NoneType"),
    "extension": (b"\x82\x01", "the instruction EXT1"),
    "textual id": (b"Pid\n", "the instruction PERSID"),
    "buffer": (b"\x97", "the instruction NEXT_BUFFER"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(error_of, case):
    value, message = REFUSED[case]
    assert message in error_of(Zip(value))


def test_long_and_odd_names_are_one_line(error_of):
    error_of(Zip(Call(Name("lib\r\x0b.x", "y" * 5000), ())))
    error_of(Zip(encode("os\n\n") + encode("z\n" * 5000) + b"\x93" + encode(()) + b"R"))
    error_of(Zip(Stored(("storage", Name("torch", "FloatStorage"), "a\nb" * 1000, "cpu", 1))))


def test_nothing_is_imported(read, error_of, tmp_path, monkeypatch):
    (tmp_path / "hostile_package.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    cls = Name("hostile_package", "Class")
    assert read(Zip([cls, New(cls, (), {"a": 1})]))[1].module == "hostile_package"
    error_of(Zip(Call(cls, ())))
    assert "hostile_package" not in sys.modules


# What is refused: tensors that are not there.

FLOATS = storage("0", "float32", 12)
FLAT = {"0": np.arange(12, dtype=np.float32)}


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
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
        (0, (0, 2**62, 2**62), (1, 1, 1)),
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
)
def test_tensors_that_are_not_in_their_storage(error_of, offset, size, stride):
    error_of(Zip(rebuild(FLOATS, offset, size, stride), FLAT))


@pytest.mark.parametrize(
    "value",
    [
        rebuild(5, 0, (1,), (1,)),
        rebuild(None, 0, (0,), (1,)),
        rebuild(FLOATS, 0, (1,), (1,), {"neg": True}),
        Call(Name("torch._utils", "_rebuild_tensor_v2"), ()),
        Call(Name("torch._utils", "_rebuild_tensor_v2"), (FLOATS, 0, 12, 1)),
        Call(Name("torch._utils", "_rebuild_tensor_v3"), (FLOATS, 0, (1,), (1,), False, {}, None)),
        Call(
            Name("torch._utils", "_rebuild_tensor_v3"),
            (FLOATS, 0, (1,), (1,), False, {}, Name("torch", "int8")),
        ),
        Call(Name("torch._utils", "_rebuild_parameter"), (5, True, {})),
        Call(Name("torch._utils", "_rebuild_parameter"), (FLOATS, True, {})),
    ],
)
def test_tensors_of_other_things(error_of, value):
    error_of(Zip(value, FLAT))


FLOAT = Name("torch", "FloatStorage")


@pytest.mark.parametrize(
    "pid",
    [
        5,
        "storage",
        (),
        ("storage", FLOAT, "0", "cpu"),
        ("module", FLOAT, "0", "cpu", 12),
        ("storage", Name("torch", "QuantizedStorage"), "0", "cpu", 12),
        ("storage", Name("lib", "FloatStorage"), "0", "cpu", 12),
        ("storage", Name("torch", "Float"), "0", "cpu", 12),
        ("storage", "FloatStorage", "0", "cpu", 12),
        ("storage", FLOAT, "1", "cpu", 12),
        ("storage", FLOAT, 0, "cpu", 12),
        ("storage", FLOAT, "../data.pkl", "cpu", 12),
        ("storage", FLOAT, "/etc/passwd", "cpu", 12),
        ("storage", FLOAT, "0", "cpu", 11),
        ("storage", FLOAT, "0", "cpu", 13),
        ("storage", FLOAT, "0", "cpu", -12),
        ("storage", FLOAT, "0", "cpu", 2**70),
        ("storage", FLOAT, "0", "cpu", 12.0),
        ("storage", FLOAT, "0", "cpu", None),
    ],
)
def test_storages_that_are_not_there(error_of, pid):
    error_of(Zip(Stored(pid), FLAT))


# What is refused: pickles that are none, or too much.


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b".",
        b"N",
        b"\x80\x02",
        b"text",
        b"\xff",
        b"0.",
        b"t.",
        b"1.",
        b"2.",
        b"R.",
        b"NR.",
        b"NNR.",
        b"b.",
        b"s.",
        b"Ns.",
        b"NNNs.",
        b"(NNNu.",
        b"(N}(Nu.",
        b"}(Nu.",
        b"a.",
        b"NNa.",
        b"(Ne.",
        b"(N\x90.",
        b"\x8f(]\x90.",
        b"h\x00.",
        b"q\x00.",
        b"\x94.",
        b"\x93.",
        b"NN\x93.",
        b"Q.",
        b"c.",
        b"cos\n",
        b"I1x\n.",
        b"L\n.",
        b"I" + b"9" * 5000 + b"\n.",
        b"F1.0.0\n.",
        b"S'a\n.",
        b"X\x02\x00\x00\x00\xff\xfe.",  # not UTF-8
        b"X\xff\xff\xff\xffa.",
        b"\x8d" + b"\xff" * 8 + b".",
        b"\x8e" + b"\xff" * 7 + b"\x0f.",
        b"\x96" + b"\xff" * 7 + b"\x0f.",
        b"\x8b\xff\xff\xff\x7f.",
        b"\x8b\xff\xff\xff\xff.",
        b"T\xff\xff\xff\x7f.",
        b"\x92.",
        b"NNN\x92.",
        b"}]s.",
        b"}\x8fNs.",
        b"}(tNs.",
        b"}(NtNs.",
        b"}" + encode(2**64) + b"Ns.",
    ],
)
def test_not_a_pickle(error_of, pickled):
    error_of(Zip(pickled=pickled))


def test_a_memo_with_a_huge_index(read):
    assert read(Zip(b"]" + put(2**32 - 1) + b"0" + get(2**32 - 1))) == []


@pytest.mark.parametrize("nest", [b"]" * 100_000 + b"a" * 99_999, b")" + b"\x85" * 100_000])
def test_deep_nesting(read, error_of, nest):
    assert len(read(Zip(nest))) == 1
    error_of(Zip(b"(" * 100_000))


def test_an_odd_escape(read):
    assert read(Zip(b"S'\\d'\n")) == "\\d"


def test_hashes_that_would_take_forever(error_of):
    doubled = b")" + b"q\x00h\x00\x86" * 100
    assert "a tuple is a key" in error_of(Zip(b"}" + doubled + b"Ns"))
    assert "a tuple is a key" in error_of(Zip(b"}" + b")" + b"\x85" * 200_000 + b"Ns"))
    assert "a frozenset is a key" in error_of(Zip(b"\x8f((\x91\x90"))


def test_copies_that_grow_beyond_the_file(error_of, monkeypatch):
    monkeypatch.setattr(inert_pickle, "_MAX_INSTRUCTIONS", 100_000)
    long = pickle.EMPTY_LIST + pickle.MARK + b"N" * 10_000 + pickle.APPENDS + put(0)
    copy = encode(Name("builtins", "list")) + get(0) + b"\x85R"
    assert "more than 100000 instructions" in error_of(Zip(long + copy * 100))
    tuples = pickle.MARK + b"N" * 10_000 + b"t" + put(0)
    call = (
        encode(Name("copyreg", "__newobj__")) + pickle.MARK + encode(Name("lib", "A")) + b"t" + b"0" + get(0)
    )
    assert "instance" in error_of(Zip(tuples + call + b"R"))
    assert "more than 100000 instructions" in error_of(Zip(b"N" * 200_000))


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
    assert "its tensors together are 16 times as long as the file" in error_of(
        Zip(tensors(100), {"0": array})
    )


def test_a_pickle_that_is_too_long(error_of, monkeypatch):
    monkeypatch.setattr(inert_pickle, "_MAX_BYTES", 100)
    assert "longer than any that is known" in error_of(Zip("x" * 200))


# What is refused: archives that are none, or odd.

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


def test_the_archive_that_is_changed_below_is_read(read):
    np.testing.assert_array_equal(read(WHOLE)["model"]["w"], WEIGHT)


@pytest.mark.parametrize("cut", [1, 4, 30, 100, 0.5, 0.9, -1, -10])
def test_truncated(error_of, cut):
    data = WHOLE.data()
    message = error_of(data[: int(len(data) * cut) if isinstance(cut, float) else cut])
    assert "truncated or corrupt" in message or "no zip archive" in message


ODD = {
    "empty": (b"", "empty"),
    "text": (b"not a checkpoint", "no zip archive"),
    "before 1.6": (
        pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2),
        "format from before 1.6",
    ),
    "before 0.1.10": (b"sys_info".ljust(257, b"\0") + b"ustar" + b"\0" * 250, "format from before 1.6"),
    "plain pickle": (pickle.dumps({"a": 1}), "a plain pickle"),
    "empty archive": (b"PK\x05\x06" + b"\0" * 18, "without data.pkl"),
    "only an end": (b"PK\x05\x06" + b"\xff" * 18, "truncated or corrupt"),
    "compressed": (WHOLE.data(zipfile.ZIP_DEFLATED), "is compressed"),
    "two pickles": (
        Zip(1).add("other/data.pkl", b"N."),
        "data.pkl is not in one folder (archive/data.pkl, other",
    ),
    "pickle in a folder": (Zip(1).add("archive/code/data.pkl", b"N."), "data.pkl is not in one folder"),
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
    "numpy": (None, "a zip archive without data.pkl, so not of torch.save (it has a.npy)"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_archives(error_of, case):
    content, message = ODD[case]
    if content is None:
        file = io.BytesIO()
        np.savez(file, a=WEIGHT)
        content = file.getvalue()
    assert message in error_of(content)


def test_an_entry_that_is_there_twice(error_of):
    data = Zip(tensor("0", WEIGHT), {"0": WEIGHT, "1": WEIGHT}).data()
    for _ in range(2):
        data = changed(data, b"archive/data/1", b"archive/data/0")
    assert "2 entries archive/data/0" in error_of(data)


def test_entries_that_lie_in_one_another(error_of):
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


def mutations(data, count):
    """Files with a few changed bytes, a piece cut out, repeated or put elsewhere."""
    rng = np.random.default_rng(0)
    for i in range(count):
        mutated = bytearray(data)
        start, stop = sorted(rng.integers(0, len(data), size=2))
        match i % 4:
            case 0:
                for position in rng.integers(0, len(data), size=rng.integers(1, 6)):
                    mutated[position] = rng.integers(256)
            case 1:
                del mutated[start : min(stop, start + rng.integers(1, 40))]
            case 2:
                mutated[start:start] = mutated[stop : stop + rng.integers(1, 40)]
            case 3:
                del mutated[start:]
        yield bytes(mutated)


EXAMPLE = module(
    _parameters={"w": tensor("0", WEIGHT)},
    _modules={"a": module(_buffers={"b": tensor("0", WEIGHT)})},
    opt={
        "state": Call(Name("collections", "defaultdict"), (Name("builtins", "dict"),)),
        "betas": (0.9, [1, 2.0]),
    },
)


def outcome(read, content):
    """The error's message, or None."""
    try:
        torch_archive.state_dict(read(content))
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("of", ["pickle", "archive"])
def test_random_damage_is_a_user_error_or_harmless(read, of):
    if of == "pickle":
        pickled = b"\x80\x02" + encode(EXAMPLE) + b"."
        contents = (Zip(storages={"0": WEIGHT}, pickled=m) for m in mutations(pickled, 800))
    else:
        contents = mutations(Zip(EXAMPLE, {"0": WEIGHT}).data(), 400)
    messages = [outcome(read, content) for content in contents]
    found = [message for message in messages if message]
    assert len(found) > len(messages) / 2
    assert all(len(message.splitlines()) == 1 and len(message) < 600 for message in found)


# Paths.


@pytest.mark.parametrize("name", ["nowhere.pt", "", "nul\0", "x" * 5000, "model.pt/more"])
def test_no_such_file(tmp_path, name):
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
