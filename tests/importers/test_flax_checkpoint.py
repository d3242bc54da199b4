"""Checkpoints of the official VDM code's format: what was written is read, and nothing else."""

import dataclasses

import msgpack
import numpy as np
import pytest
from flax import serialization

from jvdm.core.errors import UserError
from jvdm.importers import flax_checkpoint


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
    ours, theirs = flax_checkpoint.flatten(ours), flax_checkpoint.flatten(theirs)
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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "uint8", "bool"])
def test_dtypes(dtype):
    import jax.numpy as jnp

    array = np.asarray(jnp.array([0, 1, 1]), dtype=jnp.dtype(dtype))
    checkpoint = flax_checkpoint.decode(written(params={"a": array}), "FILE")
    check_equal(checkpoint.params, {"a": array})


@pytest.mark.parametrize("step", [np.int32(5), np.array(5, np.int64), 5])
def test_forms_of_the_step(step):
    assert flax_checkpoint.decode(written(step=step), "FILE").step == 5


@pytest.mark.parametrize("step", [-1, True, 1.5, "5", None, np.float32(5), np.array([5])])
def test_not_a_step(step):
    assert "'step'" in error_of(written(step=step))


@pytest.mark.parametrize("key", ["step", "params", "ema_params"])
def test_missing_key(key):
    state = example_state()
    del state[key]
    assert f"no '{key}'" in error_of(serialization.msgpack_serialize(state))


@pytest.mark.parametrize("cut", [0, 1, 10, 0.5, -1])
def test_truncated(cut):
    data = written()
    assert "truncated or corrupt" in error_of(data[: int(len(data) * cut) if isinstance(cut, float) else cut])


def test_trailing_bytes():
    assert "truncated or corrupt" in error_of(written() + b"\0")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tree", ["params", "ema_params"])
def test_not_finite(tree, value):
    state = example_state()
    state[tree]["net"]["conv"]["kernel"][1, 2, 0, 3] = value
    message = error_of(written(state))
    assert f"'{tree}/net/conv/kernel'" in message
    assert "not finite" in message


def test_the_optimizers_state_is_left_aside():
    mu = {"kernel": np.full(3, np.nan, np.float32)}
    read = flax_checkpoint.decode(written(opt_state={"mu": mu}), "FILE")
    assert {field.name for field in dataclasses.fields(read)} == {"step", "params", "ema_params"}


@pytest.mark.parametrize("leaf", [1.0, "text", None, [1.0, 2.0], b"bytes", msgpack.ExtType(2, b""), True])
def test_leaf_that_is_no_array(leaf):
    assert "'params/net/kernel'" in error_of(with_leaf(leaf))


@pytest.mark.parametrize(
    "leaf",
    [
        array_extension([2, 2], "float32", b"\0" * 15),
        array_extension([2**40, 2**40], "float32", b"\0" * 16),
        array_extension([2**62, 4], "float32", b""),
        array_extension([0, 2**62, 2**62], "float32", b""),
        array_extension([-1, -4], "float32", b"\0" * 16),
        array_extension([-1], "float32", b"\0" * 16),
        array_extension([True, 4], "float32", b"\0" * 16),
        array_extension([4.0], "float32", b"\0" * 16),
        array_extension([1] * 65, "float32", b"\0" * 4),
        array_extension([1] * 64 + [1], "float32", b"\0" * 4),
        array_extension([4], "object", b"\0" * 32),
        array_extension([4], "V4", b"\0" * 16),
        array_extension([4], ["float32"], b"\0" * 16),
        array_extension([4], "float32", "text"),
        array_extension("4", "float32", b"\0" * 16),
        msgpack.ExtType(1, msgpack.packb([[4], "float32"])),
        msgpack.ExtType(1, b"\xdd\xff\xff\xff\xff"),  # a list of 2^32 - 1
        msgpack.ExtType(1, b"\x91" * 5000),
        msgpack.ExtType(1, b""),
    ],
)
def test_hostile_array(leaf):
    assert "'params/net/kernel'" in error_of(with_leaf(leaf))


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [
        ({"0": 4}, {}),
        ({"0": 2**62, "1": 2**62}, {"0": array_extension([2], "float32", b"\0" * 8)}),
        ({"0": 0, "1": 2**62, "2": 2**62}, {"0": array_extension([0], "float32", b"")}),
        ({"1": 2}, {"0": array_extension([2], "float32", b"\0" * 8)}),
        ({"0": 2}, {"1": array_extension([2], "float32", b"\0" * 8)}),
        ({"0": 2}, {"0": array_extension([1, 2], "float32", b"\0" * 8)}),
        ({"0": 2}, {"0": 1.0}),
        ({"0": "2"}, {"0": array_extension([2], "float32", b"\0" * 8)}),
        (None, None),
        ([2], [array_extension([2], "float32", b"\0" * 8)]),
    ],
)
def test_hostile_chunks(shape, chunks):
    leaf = {"__msgpack_chunked_array__": True, "shape": shape, "chunks": chunks}
    assert "'params/net/kernel" in error_of(with_leaf(leaf))


@pytest.mark.parametrize(
    "data",
    [
        b"\x80",
        b"\x93\x01\x02\x03",
        b"\xc0",
        b"not a checkpoint",
        b"\xdf\xff\xff\xff\xff",  # a map of 2^32 - 1
        b"\xdd\xff\xff\xff\xff" * 1000,
        b"\x91" * 100_000,
        b"\x81\x81\xa1a\x01\x01",  # a map as a key
        b"\x81\xa2\xff\xfe\x01",  # a key that is not UTF-8
        b"\xc6\xff\xff\xff\xff",
        b"\xd7\xff" + b"\xff" * 8,  # a time stamp
    ],
)
def test_hostile_file(data):
    error_of(data)


def test_deep_nesting():
    tree = {"kernel": np.zeros(1)}
    for _ in range(200):
        tree = {"a": tree}
    assert "nested deeper" in error_of(written(params=tree))


@pytest.mark.parametrize("key", ["a/b", "", "line\nbreak/", "x" * 10_000 + "/"])
def test_names_of_leaves(key):
    error_of(written(params={key: np.zeros(1)}))


def test_long_and_odd_names_are_one_line():
    error_of(written(params={"a\nb" * 1000: 1.0}))


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


def outcome(data):
    """The error's message, or the leaves that were read."""
    try:
        checkpoint = flax_checkpoint.decode(data, "FILE")
    except UserError as error:
        return str(error)
    trees = (checkpoint.params, checkpoint.ema_params)
    return [leaf for tree in trees for leaf in flax_checkpoint.flatten(tree).values()]


@pytest.mark.parametrize("chunked", [False, True])
def test_random_damage_is_a_user_error_or_harmless(chunked, monkeypatch):
    if chunked:
        monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
    outcomes = [outcome(data) for data in mutations(written(), 600)]
    messages = [o for o in outcomes if isinstance(o, str)]
    assert len(messages) > 300
    assert all(len(message.splitlines()) == 1 for message in messages)
    assert all(isinstance(leaf, np.ndarray) for o in outcomes if not isinstance(o, str) for leaf in o)


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


@pytest.mark.parametrize(
    ("path", "step"),
    [("ckpt-2.flax", 2), ("ckpt-9", 9), ("", 10), ("..", 10)],
)
def test_forms_of_the_path(folder, path, step):
    assert flax_checkpoint.read(folder / path).step == step
    assert flax_checkpoint.read(str(folder / path)).step == step


@pytest.mark.parametrize("path", ["ckpt-3", "ckpt-3.flax", "ckpt-1", "nowhere/ckpt-2", "nul\0", "x" * 5000])
def test_no_such_path(folder, path):
    with pytest.raises(UserError, match="no checkpoint"):
        flax_checkpoint.read(folder / path)


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
