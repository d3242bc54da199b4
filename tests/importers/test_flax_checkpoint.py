"""Checkpoints of the official VDM code's format: what was written is read, and nothing else."""

import dataclasses

import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import serialization
from flax.traverse_util import flatten_dict

from jvdm.core.errors import UserError
from jvdm.importers import flax_checkpoint

DTYPES = ("bfloat16", "float16", "float64", "uint8", "bool")


def example_state():
    rng = np.random.default_rng(0)

    def tree():
        return {
            "gamma": {"b": rng.normal(size=1).astype(np.float32)},
            "net": {
                "conv": {"kernel": rng.normal(size=(3, 3, 2, 4)).astype(np.float32), "bias": np.zeros(4)},
                "empty": np.zeros((0, 3), np.float16),
                "count": np.int32(7),
            },
        }

    return {
        "step": 123,
        "params": tree(),
        "ema_params": tree(),
        "opt_state": {"0": {"count": np.int32(1), "mu": tree()}, "1": {}},
    }


def written(state=None, **changes):
    return serialization.msgpack_serialize({**(state or example_state()), **changes})


def array_extension(shape, dtype, data):
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, data)))


def with_leaf(leaf):
    return msgpack.packb({"step": 1, "params": {"net": {"kernel": leaf}}, "ema_params": {}})


def check_equal(ours, theirs):
    ours, theirs = flatten_dict(ours, sep="/"), flatten_dict(theirs, sep="/")
    assert set(ours) == set(theirs)
    for path, array in theirs.items():
        assert ours[path].dtype == array.dtype
        np.testing.assert_array_equal(ours[path], array)


def error_of(data):
    with pytest.raises(UserError) as caught:
        flax_checkpoint.decode(data, "FILE")
    message = str(caught.value)
    assert "FILE" in message
    assert len(message.splitlines()) == 1
    assert len(message) < 500
    return message


def test_round_trip():
    state = example_state()
    checkpoint = flax_checkpoint.decode(written(state), "FILE")
    assert checkpoint.step == state["step"]
    check_equal(checkpoint.params, state["params"])
    check_equal(checkpoint.ema_params, state["ema_params"])


def test_arrays_in_chunks(monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
    state, data = example_state(), written()
    assert b"__msgpack_chunked_array__" in data
    check_equal(flax_checkpoint.decode(data, "FILE").params, state["params"])


def test_dtypes():
    arrays = {dtype: np.array([0, 1, 1]).astype(getattr(ml_dtypes, dtype, dtype)) for dtype in DTYPES}
    check_equal(flax_checkpoint.decode(written(params=arrays), "FILE").params, arrays)


def test_forms_of_the_step():
    for step in (np.int32(5), np.array(5, np.int64), 5):
        assert flax_checkpoint.decode(written(step=step), "FILE").step == 5


def test_not_a_step():
    for step in (-1, True, 1.5, "5", None, np.float32(5), np.array([5])):
        assert "'step' is" in error_of(written(step=step))


def test_missing_key():
    for key in ["step", "params", "ema_params"]:
        state = example_state()
        del state[key]
        assert f"no '{key}'" in error_of(serialization.msgpack_serialize(state))


def test_truncated():
    data = written()
    for cut in (0, 1, 10, len(data) // 2, -1):
        assert "truncated or corrupt" in error_of(data[:cut])


def test_trailing_bytes():
    assert "truncated or corrupt" in error_of(written() + b"\0")


@pytest.mark.parametrize("tree", ["params", "ema_params"])
def test_not_finite(tree):
    for value in (np.nan, np.inf, -np.inf):
        state = example_state()
        state[tree]["net"]["conv"]["kernel"][1, 2, 0, 3] = value
        assert f"'{tree}/net/conv/kernel' has values that are not finite" in error_of(written(state))


def test_the_optimizers_state_is_left_aside():
    mu = {"kernel": np.full(3, np.nan, np.float32)}
    read = flax_checkpoint.decode(written(opt_state={"mu": mu}), "FILE")
    assert {field.name for field in dataclasses.fields(read)} == {"step", "params", "ema_params"}


def test_not_a_tree():
    for tree in (5, [1], None):
        assert "'ema_params' is" in error_of(msgpack.packb({"step": 1, "params": {}, "ema_params": tree}))


def test_leaf_that_is_not_an_array():
    other = msgpack.ExtType(2, msgpack.packb(([4], "int8", b"1234")))
    for leaf in (1.0, "text", None, [1.0, 2.0], b"bytes", other, True):
        message = error_of(with_leaf(leaf))
        assert "'params/net/kernel' is" in message and "not an array" in message


# By message: leaves of the file.
ARRAYS = {
    "bytes; ": [
        array_extension([2, 2], "float32", b"\0" * 15),
        array_extension([2**40, 2**40], "float32", b"\0" * 16),
        array_extension([2**62, 4], "float32", b""),
        array_extension([1], "int8", b"\0" * 2),
    ],
    "has an impossible shape": [array_extension([0, 2**62, 2**62], "float32", b"")],
    "has no valid shape": [
        array_extension([-1, -4], "float32", b"\0" * 16),
        array_extension([-1], "float32", b"\0" * 16),
        array_extension([True, 4], "float32", b"\0" * 16),
        array_extension([4.0], "float32", b"\0" * 16),
        array_extension("4", "float32", b"\0" * 16),
        array_extension(4, "float32", b"\0" * 16),
    ],
    "has dtype": [
        array_extension([4], "object", b"\0" * 32),
        array_extension([4], "V4", b"\0" * 16),
        array_extension([4], ["float32"], b"\0" * 16),
    ],
    "holds a str, not bytes": [array_extension([4], "float32", "text")],
    "is not an array of shape, dtype and bytes": [
        msgpack.ExtType(1, msgpack.packb([[4], "float32"])),
        msgpack.ExtType(1, msgpack.packb("abc")),
    ],
    "is not an array (": [
        array_extension([1] * 65, "float32", b"\0" * 4),
        msgpack.ExtType(1, b"\xdd\xff\xff\xff\xff"),  # a list of 2^32 - 1
        msgpack.ExtType(1, b"\x91" * 5000),
        msgpack.ExtType(1, b"\x81\x01\x01"),  # a map
        msgpack.ExtType(1, b""),
    ],
}


@pytest.mark.parametrize("message", ARRAYS)
def test_hostile_arrays(message):
    for leaf in ARRAYS[message]:
        found = error_of(with_leaf(leaf))
        assert "'params/net/kernel'" in found and message in found


TWO = array_extension([2], "float32", b"\0" * 8)
# By message: shape and chunks of a leaf.
CHUNKS = {
    "does not have flat chunks of one dtype": [
        ({"0": 4}, {}),
        ({"0": 2}, {"0": array_extension([1, 2], "float32", b"\0" * 8)}),
        ({"0": 4}, {"0": TWO, "1": array_extension([2], "int32", b"\0" * 8)}),
    ],
    "chunks of 2 values": [({"0": 2**62, "1": 2**62}, {"0": TWO}), ({"0": 3}, {"0": TWO})],
    "has an impossible shape": [
        ({"0": 0, "1": 2**62, "2": 2**62}, {"0": array_extension([0], "float32", b"")})
    ],
    "shape' is not a sequence": [({"1": 2}, {"0": TWO}), (None, None), ([2], [TWO])],
    "chunks' is not a sequence": [({"0": 2}, {"1": TWO})],
    "chunks/0' is a float, not an array": [({"0": 2}, {"0": 1.0})],
    "has no valid shape": [({"0": "2"}, {"0": TWO})],
}


@pytest.mark.parametrize("message", CHUNKS)
def test_hostile_chunks(message):
    for shape, chunks in CHUNKS[message]:
        found = error_of(with_leaf({"__msgpack_chunked_array__": True, "shape": shape, "chunks": chunks}))
        assert "'params/net/kernel" in found and message in found


# By message: whole files.
FILES = {
    "not a training state": [b"\x93\x01\x02\x03", b"\xc0", b"\x01"],
    "has no 'step' (keys: none)": [b"\x80"],
    "truncated or corrupt": [
        b"not a checkpoint",
        b"\xdf\xff\xff\xff\xff",  # a map of 2^32 - 1
        b"\xdd\xff\xff\xff\xff" * 1000,
        b"\x91" * 100_000,
        b"\x81\x81\xa1a\x01\x01",  # a map as a key
        b"\x81\xa2\xff\xfe\x01",  # a key that is not UTF-8
        b"\xc6\xff\xff\xff\xff",
    ],
    "": [b"\xd7\xff" + b"\xff" * 8],  # a time stamp, which msgpack's versions read differently
}


@pytest.mark.parametrize("message", FILES)
def test_hostile_files(message):
    for data in FILES[message]:
        assert message in error_of(data)


def test_deep_nesting():
    tree = {"kernel": np.zeros(1)}
    for _ in range(200):
        tree = {"a": tree}
    assert "nested deeper" in error_of(written(params=tree))


def test_names_of_leaves():
    for key in ("a/b", "", "line\nbreak/", "x" * 10_000 + "/"):
        assert "has an invalid key" in error_of(written(params={key: np.zeros(1)}))
    leaf = array_extension([1], "int8", b"1")
    assert "has an invalid key" in error_of(
        msgpack.packb({"step": 1, "params": {b"a": leaf}, "ema_params": {}})
    )
    error_of(written(params={"a\nb" * 1000: 1.0}))  # a long and odd one is still one line


@pytest.fixture
def folder(tmp_path):
    """`checkpoints-0/` with three checkpoints, whose steps are their numbers."""
    files = tmp_path / "work" / "checkpoints-0"
    files.mkdir(parents=True)
    for n in (2, 10, 9):
        (files / f"ckpt-{n}.flax").write_bytes(written(step=n))
        (files / f"ckpt-{n}.index").write_bytes(b"")
    (files / "checkpoint").write_text('model_checkpoint_path: "ckpt-2"\n')
    (files / "ckpt-99.flax.tmp").write_bytes(b"")
    return files


def test_forms_of_the_path(folder):
    for path, step in {"ckpt-2.flax": 2, "ckpt-9": 9, "": 10, "..": 10}.items():
        assert flax_checkpoint.read(folder / path).step == step
        assert flax_checkpoint.read(str(folder / path)).step == step


def test_no_such_path(folder):
    for path in ("ckpt-3", "ckpt-3.flax", "ckpt-1", "nowhere/ckpt-2", "nul\0", "x" * 5000):
        with pytest.raises(UserError, match="no checkpoint"):
            flax_checkpoint.read(folder / path)


def test_nowhere(tmp_path):
    with pytest.raises(UserError, match="the path does not exist"):
        flax_checkpoint.read(tmp_path / "nowhere")


def test_folder_without_checkpoints(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint in .*ckpt-<n>\.flax"):
        flax_checkpoint.read(tmp_path)


def test_a_file_of_another_kind(folder):
    with pytest.raises(UserError, match="truncated or corrupt"):
        flax_checkpoint.read(folder / "checkpoint")


def test_a_file_that_cannot_be_read(folder, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(UserError, match=r"cannot read checkpoint .*: Permission denied"):
        flax_checkpoint.read(folder)
