"""Damaged checkpoints under the commands: the one before is taken, the log says so, or there is one line."""

import io
import pathlib
import shutil
import zipfile

import numpy as np
import pytest
from helpers import tiny

from jvdm.cli import commands
from jvdm.core import preemption
from jvdm.core.errors import UserError
from jvdm.core.files import read_arrays
from jvdm.evaluation import RandomSliceELBO, passes
from jvdm.runs import loading, restoring
from jvdm.runs.workdir import Workdir


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """The commands' mesh is that of a machine with one device."""
    mesh = tiny.mesh()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jvdm.core.sharding.make_mesh", lambda *_, **__: mesh)
        yield


def config(**training):
    c = tiny.config(**training)
    with c.unlocked():
        c.eval.estimators = "vlb"
        c.eval.num_images = 16
    return c


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("damage") / "run"
    commands.train(commands.Request(config(), Workdir(path)))
    return path


@pytest.fixture
def run(finished, tmp_path):
    """A copy, to be damaged."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def files(checkpoint):
    return sorted(p for p in checkpoint.rglob("*") if p.is_file())


def truncate(checkpoint):
    for file in files(checkpoint):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_bits(checkpoint):
    """Everywhere in the file that holds the arrays: an evaluation reads but one part of them."""
    largest = max(files(checkpoint), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    for place in range(0, len(data), 500):
        data[place] ^= 4
    largest.write_bytes(data)


def lose_half(checkpoint):
    for file in files(checkpoint)[::2]:
        file.unlink()


DAMAGE = (truncate, flip_bits, lose_half)


def content(folder: pathlib.Path):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.long
@pytest.mark.parametrize("damage", DAMAGE)
def test_training_goes_on_from_the_one_before(run, damage, caplog):
    damage(run / "checkpoints" / "4")
    commands.train(commands.Request(config(), Workdir(run)))
    assert "going on from the checkpoint of step 2" in caplog.text or damage is not flip_bits
    assert "checkpoints/4 is damaged and was moved to" in caplog.text
    assert len(list((run / "damaged_checkpoints").iterdir())) == 1
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["2", "4"]


@pytest.mark.parametrize(
    "damage", [truncate, *(pytest.param(each, marks=pytest.mark.long) for each in DAMAGE[1:])]
)
def test_evaluation_takes_the_one_before(run, damage, caplog, capsys):
    damage(run / "checkpoints" / "4")
    before = content(run / "checkpoints")
    commands.evaluate(commands.Request(config(), Workdir(run)))
    assert "taking the checkpoint of step 2" in caplog.text
    assert "step2" in capsys.readouterr().out
    assert content(run / "checkpoints") == before, "nothing is moved"
    assert not (run / "damaged_checkpoints").exists()


def test_evaluation_of_a_named_checkpoint_takes_no_other(run):
    flip_bits(run / "checkpoints" / "4")
    with pytest.raises(UserError, match="checkpoints/4: not a readable checkpoint"):
        commands.evaluate(commands.Request(config(), Workdir(run), str(run / "checkpoints" / "4")))


@pytest.mark.parametrize("best", [True, False])
def test_a_checkpoint_that_a_training_replaces_while_it_is_read(run, best, monkeypatch, caplog):
    """The newest one then is read, and not the best one, which may be far older."""
    checkpoints = run / "checkpoints"
    if not best:
        shutil.rmtree(checkpoints / "2")
    read = restoring.restore

    def restore(path, like):
        if path.name == "4":
            (checkpoints / "4").rename(checkpoints / "6")
        return read(path, like)

    monkeypatch.setattr(restoring, "restore", restore)
    trained = loading.load(run, None, tiny.mesh())
    assert trained.path == checkpoints / "6"
    assert "not a readable" not in caplog.text
    monkeypatch.setattr(restoring, "restore", lambda path, like: read(path.parent / "none", like))
    with pytest.raises(UserError, match="not a readable checkpoint"):
        loading.load(run, None, tiny.mesh())


@pytest.mark.parametrize("command", [commands.train, commands.evaluate])
@pytest.mark.parametrize("damage", DAMAGE)
def test_all_damaged(run, damage, command):
    for step in ("2", "4"):
        damage(run / "checkpoints" / step)
    before = content(run / "checkpoints")
    with pytest.raises(UserError) as error:
        command(commands.Request(config(num_steps=6), Workdir(run)))
    assert len(str(error.value).splitlines()) == 1
    assert "checkpoint" in str(error.value)
    assert content(run / "checkpoints") == before, "left alone"


def damaged(data: bytes):
    """An archive with each kind of damage."""
    yield data[: len(data) // 2]
    yield b""
    yield b"PK\x03\x04" + data[4:50]
    yield data[:60] + bytes(255 - b for b in data[60:90]) + data[90:]


@pytest.mark.parametrize("kind", range(4))
def test_a_damaged_chunk_is_computed_again(tmp_path, kind):
    store = passes.Store(tmp_path, "p", {"a": 1})
    with store.held():
        for first in (0, 2, 4):
            store.save(first, {"x": np.arange(100.0).reshape(2, 50) + first})
    path = tmp_path / f"{store.name}.partial" / "000000002.npz"
    path.write_bytes(list(damaged(path.read_bytes()))[kind])
    again = passes.Store(tmp_path, "p", {"a": 1})
    with again.held():
        (chunk,) = again.load()
    np.testing.assert_array_equal(chunk["x"], np.arange(100.0).reshape(2, 50))


def test_a_header_that_claims_a_huge_array_is_damage(tmp_path):
    """numpy's error is then a MemoryError."""
    file, path = io.BytesIO(), tmp_path / "a.npz"
    np.save(file, np.zeros(4))
    huge = b"(999999999999999,), }"
    real = b"(4,), }".ljust(len(huge))
    assert real in file.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", file.getvalue().replace(real, huge))
    with np.load(path) as archive, pytest.raises(MemoryError):
        archive["a"]
    assert read_arrays(path) is None


def test_damaged_settings_of_chunks_start_anew(tmp_path):
    store = passes.Store(tmp_path, "p", {"a": 1})
    with store.held():
        store.save(0, {"x": np.zeros((2, 1))})
    (tmp_path / f"{store.name}.partial" / "settings.json").write_bytes(b"\xff\xfe")
    again = passes.Store(tmp_path, "p", {"a": 1})
    with again.held():
        assert again.load() == []


@pytest.mark.long
def test_a_stopped_evaluation_keeps_the_estimators_that_are_done(finished, tmp_path, monkeypatch, caplog):
    """The second estimator is interrupted at its end: neither is computed again."""
    caplog.set_level("INFO", logger="jvdm")
    shutil.copytree(finished, tmp_path / "run")
    c = config()
    with c.unlocked():
        c.eval.estimators = "vlb,elbo"

    def stop(*_, **__):
        raise preemption.Preempted

    with monkeypatch.context() as patch:
        patch.setattr(RandomSliceELBO, "result", stop)
        with pytest.raises(preemption.Preempted):
            commands.evaluate(commands.Request(c, Workdir(tmp_path / "run")))
    commands.evaluate(commands.Request(c, Workdir(tmp_path / "run")))
    assert caplog.text.count("continuing after image 16 of 16") == 2
    assert not list((tmp_path / "run" / "eval").glob("*.partial"))
