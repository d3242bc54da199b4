"""The files that PyTorch wrote for the peers: every tensor as Python's own unpickler makes it; and damage."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from helpers import peers

from jvdm.core.errors import UserError
from jvdm.importers import torch_archive
from jvdm.importers.inert_values import ByIdentity, Global, Record

DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "BoolStorage": np.bool_,
}


@pytest.fixture(scope="module", params=[case for peer in ("addtt", "sdeflow") for case in peers.cases(peer)])
def path(request):
    """One file."""
    (found,) = (p for p in request.param.path.iterdir() if p.suffix == ".pt")
    return found


class Instance:
    """Of any class."""

    def __init__(self, module, name):
        self.module, self.name, self.state = module, name, None

    def __setstate__(self, state):
        self.state = state


class Parameter(np.ndarray):
    """A key of dicts, as tensors are."""

    __hash__ = object.__hash__


class Reader(pickle.Unpickler):
    """Python's, which calls what the file names: for files that are trusted.

    Args:
        archive: the open file.
    """

    def __init__(self, archive):
        self.archive = archive
        (self.pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        super().__init__(archive.open(self.pickled))

    def persistent_load(self, pid):
        _, dtype, key, _, size = pid
        data = self.archive.read(f"{self.pickled.removesuffix('.pkl')}/{key}")
        array = np.frombuffer(data, dtype)
        assert array.shape == (size,)
        return array

    def find_class(self, module, name):
        if name in DTYPES:
            return DTYPES[name]
        if name == "_rebuild_tensor_v2":
            return lambda flat, offset, size, stride, *_: np.lib.stride_tricks.as_strided(
                flat[offset:], size, [step * flat.itemsize for step in stride]
            ).view(Parameter)
        if name == "_rebuild_parameter":
            return lambda data, *_: data
        if module in ("collections", "__builtin__", "builtins"):
            return super().find_class(module, name)
        if name == "group_norm":
            return (module, name)
        return type(name, (Instance,), {"__new__": lambda cls: object.__new__(cls), "of": (module, name)})


def same(ours, theirs, where="it"):
    """Asserts that both structures are alike; counts the tensors."""
    if isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype, where
        np.testing.assert_array_equal(ours, np.asarray(theirs), err_msg=where)
        return 1
    if isinstance(ours, Record):
        assert (ours.module, ours.name) == theirs.of
        return same(ours.state, theirs.state, where)
    if isinstance(ours, Global):
        assert (ours.module, ours.name) == theirs
        return 0
    if isinstance(theirs, dict):
        assert len(ours) == len(theirs), where
        pairs = zip(ours.items(), theirs.items(), strict=True)
        keys = [(k.value if isinstance(k, ByIdentity) else k, l, a, b) for (k, a), (l, b) in pairs]  # noqa: E741
        return sum(same(k, l, where) + same(a, b, f"{where}, {str(l)[:40]}") for k, l, a, b in keys)  # noqa: E741
    if isinstance(theirs, (list, tuple)):
        assert type(ours) is type(theirs) and len(ours) == len(theirs), where
        return sum(same(a, b, where) for a, b in zip(ours, theirs, strict=True))
    assert ours == theirs, where
    return 0


def test_all_that_is_in_it(path):
    with zipfile.ZipFile(path) as archive:
        theirs = Reader(archive).load()
        count = same(torch_archive.read(path), theirs)
        print("tensors:", count)
        assert count >= sum("/data/" in name for name in archive.namelist())


def damaged(path, rng):
    """The file with a few changed bytes in its pickle, or anywhere."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        pickled = bytearray(archive.read(name))
    start = data.index(pickled)
    for i in range(6):
        changed, buffer = data.copy(), io.BytesIO()
        places = (
            rng.integers(0, len(data), size=4) if i % 2 else start + rng.integers(0, len(pickled), size=2)
        )
        for place in places:
            changed[place] ^= 1 << rng.integers(8)
        if i % 2:
            yield bytes(changed)
            continue
        # The checksum as if it had been written like this.
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(buffer, "w") as rewritten:
            for entry in archive.namelist():
                content = archive.read(entry)
                rewritten.writestr(entry, changed[start : start + len(content)] if entry == name else content)
        yield buffer.getvalue()


def test_damage_is_an_error_in_one_line_or_harmless(path, tmp_path):
    for data in damaged(path, np.random.default_rng(0)):
        (tmp_path / "model.pt").write_bytes(data)
        try:
            torch_archive.read(tmp_path / "model.pt")
        except UserError as error:
            message = str(error)
            print(message.partition("model.pt")[2])
            assert len(message.splitlines()) == 1
