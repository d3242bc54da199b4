"""Pickles: they are read, nothing in them is executed, and their length bounds time and memory."""

import collections
import io
import os
import pickle
import signal
import subprocess
import sys
import tracemalloc
import types

import ml_dtypes
import numpy as np
import pytest
from helpers.torch_files import Call, Name, New, Stored, Zip, encode, get, put, tensor

from jvdm.importers import inert_pickle
from jvdm.importers.inert_values import ByIdentity, Global, Record


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


def test_protocols(read):
    value = {
        "a": [1, -1, 2**40, 1.5, None, True, False, "text", "\N{GREEK SMALL LETTER GAMMA}", ()],
        "b": ((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, []),
        "c": {1, 2},
        "d": collections.OrderedDict(x=frozenset([3])),
        "e": b"\x00\xff",
    }
    value["f"] = value["a"]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
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


# Calls and names.


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
def test_calls_into_the_standard_library(error_of, tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    for name, (target, *args) in EVIL.items():
        message = error_of(Zip(pickled=pickle.dumps({"model": [Evil(target, *args)]}, protocol)))
        # Python writes os.system as posix.system, and names of protocols below 3 as Python 2 had them.
        root = name.split(".")[-1]
        assert "which is refused: nothing in a checkpoint is executed" in message
        assert root in message or "partial" in message
        assert not (tmp_path / "owned").exists()


# By kind: (what the pickle does, what the message says).
REFUSED = {
    "names of the standard library": [
        (Call(Name("posix", "system"), ("true",)), "names posix.system"),
        ({"f": Name("builtins", "eval")}, "names builtins.eval"),  # not called
        (New(Name("subprocess", "Popen"), ("true",)), "names subprocess.Popen"),
        (encode("os") + encode("path.os.system") + b"\x93", "names os.path.os.sys"),
        (b"(" + encode("true") + b"ios\nsystem\n", "names os.system"),
        (
            Call(
                Name("copy_reg", "_reconstructor"),
                (Name("os", "system"), Name("__builtin__", "object"), None),
            ),
            "names os.system",
        ),
    ],
    "names of Python 2's": [
        (Name("__builtin__", "execfile"), "names builtins.execfile"),
        (Name("commands", "getoutput"), "names commands.getoutput"),
    ],
    "calls of other code": [
        (Call(Name("torch.hub", "load"), ("a",)), "calls torch.hub.load, which is refused"),
        (b"(" + encode(Name("torch.hub", "load")) + encode("a") + b"o", "calls torch.hub.load"),
        (Call(Name("numpy.testing._private.utils", "runstring"), ("1", {})), "calls numpy.testing"),
        (Call(Name("lib.sdes", "PluginReverseSDE"), ()), "calls lib.sdes.PluginReverseSDE"),
        (Call(Name("torch.storage", "_load_from_bytes"), (b"C\x01N",)), "calls torch.storage._load_from"),
        (Call(Name("torch._utils", "_rebuild_sparse_tensor"), (1, 2)), "calls torch._utils._rebuild_sp"),
    ],
    "calls of what is no name": [
        (b"(o", "calls None"),
        (Call(Call(Name("collections", "OrderedDict")), ()), "calls a dict with a tuple"),
        (Call(New(Name("lib", "Net")), ()), "calls <record of lib.Net>"),
        (Call("os.system", ("true",)), "calls a str"),
    ],
    "arguments that are no tuple": [
        (Call(Name("collections", "OrderedDict"), "ab"), "OrderedDict with a str"),
        (encode(Name("lib", "Net")) + encode("ab") + b"\x81", "an instance of lib.Net from a str"),
    ],
    "instances of what is no name": [
        (New(New(Name("lib", "Net"))), "makes an instance of <record of lib.Net>"),
        (New(Call(Name("builtins", "dict"))), "makes an instance of a dict"),
        (New("os.system", ("true",)), "makes an instance of a str"),
        (Call(Name("copyreg", "__newobj__"), (5,)), "makes an instance of an int"),
    ],
    "calls inside a tensor's": [
        (
            Call(Name("torch._tensor", "_rebuild_from_type_v2"), (Name(module, name), 1, args, 2)),
            message,
        )
        for module, name, args, message in (
            ("torch.hub", "load", ("a",), "calls torch.hub.load"),
            ("torch._utils", "_set_obj", (), "calls torch._utils._set_obj"),
            ("lib", "_rebuild_tensor", (), "calls lib._rebuild_tensor"),
            ("torch._utils", "_rebuild_tensor", [], "calls torch._utils._rebuild_tensor"),
        )
    ],
    "wrong arguments": [
        (Call(Name("builtins", "set"), (1, 2, 3)), "with 3 arguments of the wrong kind"),
        (Call(Name("torch", "Size"), (1, 2)), "with 2 arguments of the wrong kind"),
        (Call(Name("builtins", "list"), (5,)), "an int is not a sequence"),
        (Call(Name("collections", "OrderedDict"), ([(1, 2, 3)],)), "a mapping is not made of pairs"),
        (Call(Name("torch", "device"), ("x" * 100,)), "a device has no name"),
        (Call(Name("torch", "device"), ("cuda", "0")), "a device has no name"),
        (Call(Name("torch", "device"), (5,)), "a device has no name"),
        (Call(Name("torch", "Size"), ((1, -1),)), "a torch.Size does not hold counts"),
        (Call(Name("_codecs", "encode"), ("a", "rot13")), "not encoded as Python"),
        (Call(Name("_codecs", "encode"), (5, "latin1")), "not encoded as Python"),
        (Call(Name("_codecs", "encode"), ("\u1234", "latin1")), "bytes are above 255"),
    ],
    "attributes of what has none": [
        (encode(Name("lib", "f")) + encode({"__code__": 1}) + b"b", "builds lib.f"),
        (b"N}b", "builds None"),
    ],
    "instructions that no checkpoint needs": [
        (b"\x82\x01", "the instruction EXT1"),
        (b"Pid\n", "the instruction PERSID"),
        (b"\x97", "the instruction NEXT_BUFFER"),
    ],
}


@pytest.mark.parametrize("fault", REFUSED)
def test_refused(error_of, fault):
    for value, message in REFUSED[fault]:
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


# Damaged pickles.

DAMAGED = {
    "opcode b'\\\\xff' unknown": [b"\xff"],
    "exhausted before seeing STOP": [b"", b"N", b"\x80\x02"],
    "no newline found": [b"cos\n"],
    "stack is empty": [b".", b"2.", b"R.", b"NR.", b"b.", b"s.", b"Ns.", b"q\x00.", b"\x94.", b"\x93.", b"Q."]
    + [b"NN\x92.", b"a.", b"\x85."],
    "stack has no mark": [b"text", b"0.", b"t.", b"1."],
    "an entry that its memo lacks": [b"h\x00.", b"Nq\x000h\x01."],
    "it calls None": [b"NNR."],
    "a name is not text": [b"NN\x93.", b"N" + encode("a") + b"\x93.", encode("a") + b"N\x93."],
    "a key has no value": [b"}(Nu.", b"(Nd."],
    "sets items of": [b"NNNs.", b"](NNu."],
    "appends to": [b"NNa.", b"N(Ne."],
    "adds to": [b"N(N\x90."],
    "is not a sequence": [encode(Call(Name("builtins", "set"), (5,))) + b"."],
    "a list is used as a key": [b"}]Ns.", b"\x8f(]\x90.", b"(]\x91."],
    "a set is used as a key": [b"}\x8fNs."],
    "a tuple is used as a key": [b"}(tNs.", b"}(NtNs."],
    "an int is used as a key": [b"}" + encode(2**64) + b"Ns."],  # their hashes can all be one
    "invalid literal": [b"I1x\n.", b"L1x\n."],
    "Exceeds the limit": [b"I" + b"9" * 5000 + b"\n."],
    "could not convert string to float": [b"F1.0.0\n."],
    "no string quotes": [b"Sa\n."],
    "can't decode": [b"X\x02\x00\x00\x00\xff\xfe."],
    "expected": [  # lengths beyond the end, or below 0
        b"X\xff\xff\xff\xffa.",
        b"\x8d" + b"\xff" * 7 + b"\x0f.",
        b"\x8e" + b"\xff" * 7 + b"\x0f.",
        b"\x96" + b"\xff" * 7 + b"\x0f.",
        b"\x8b\xff\xff\xff\x7f.",
        b"\x8b\xff\xff\xff\xff.",
        b"T\xff\xff\xff\x7f.",
    ],
}


@pytest.mark.parametrize("message", DAMAGED)
def test_damaged(error_of, message):
    for pickled in DAMAGED[message]:
        assert message in error_of(Zip(pickled=pickled))


def test_an_odd_escape(read):
    assert read(Zip(b"S'\\d'\n")) == "\\d"


# Time and memory.


def doubled(times):
    """A tuple of two, which are one tuple of two, and so on."""
    return b"q\x00h\x00\x86" * times


NESTED = b")" + b"\x85" * 30_000
HUGE_INDEX = 2**20


def test_why_the_standard_reader_will_not_do():
    """pickle.Unpickler, whose find_class and persistent_load see none of this; ours is tested below."""

    class Counted:
        hashed = 0

        def __hash__(self):
            Counted.hashed += 1
            return 1

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            raise AssertionError

        def persistent_load(self, pid):
            return Counted()

    # Tuples remember their hash from 3.14 on. Frozensets of tuples and deep tuples stay as they are.
    if sys.version_info < (3, 14):
        Reader(io.BytesIO(b"}NQ" + doubled(10) + b"Ns.")).load()
        assert Counted.hashed == 2**10

    tracemalloc.start()
    Reader(io.BytesIO(b"N" + put(HUGE_INDEX) + b".")).load()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak > 8 * HUGE_INDEX

    program = (
        "import pickle, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0));"
        "pickle.loads(b'}' + b')' + b'\\x85' * 200_000 + b'Ns.')"
    )
    died = subprocess.run([sys.executable, "-c", program], check=False)
    assert died.returncode == -signal.SIGSEGV


def test_hashes_that_would_take_forever(error_of):
    """Exponential in the length of the pickle, and recursion as deep as it is long."""
    for pickled in (b"})" + doubled(100) + b"Ns", b"}" + NESTED + b"Ns", b"()" + doubled(100) + b"\x91"):
        assert "a tuple is used as a key" in error_of(Zip(pickled))
    assert "a frozenset is used as a key" in error_of(Zip(b"\x8f((\x91\x90"))


def test_deep_nesting(read, error_of):
    for nested in (b"]" * 30_000 + b"a" * 29_999, NESTED):
        assert len(read(Zip(nested))) == 1
    error_of(Zip(b"(" * 30_000))


def test_a_memo_with_a_huge_index(read):
    tracemalloc.start()
    assert read(Zip(b"]" + put(2**32 - 1) + b"0" + get(2**32 - 1))) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * HUGE_INDEX


def test_copies_that_grow_beyond_the_file(error_of, monkeypatch):
    monkeypatch.setattr(inert_pickle, "_MAX_INSTRUCTIONS", 100_000)
    long = pickle.EMPTY_LIST + pickle.MARK + b"N" * 10_000 + pickle.APPENDS + put(0)
    tuples = pickle.MARK + b"N" * 10_000 + b"t" + put(0)
    copies = {
        "lists": long + (encode(Name("builtins", "list")) + get(0) + b"\x85R") * 100,
        "arguments": tuples + (encode(Name("collections", "OrderedDict")) + get(0) + b"0") * 2
        + (encode(Name("lib", "A")) + get(0) + encode({"k": 1}) + b"\x92") * 100,
        "instructions": b"N" * 200_000,
    }  # fmt: skip
    for what, pickled in copies.items():
        assert "more than 100000 instructions" in error_of(Zip(pickled)), what


def test_a_pickle_that_is_too_long(error_of, monkeypatch):
    monkeypatch.setattr(inert_pickle, "_MAX_BYTES", 100)
    assert "the limit is 100" in error_of(Zip("x" * 200))
