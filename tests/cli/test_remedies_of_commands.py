"""Remedies in messages about flags, files and folders, carried out."""

import json

import jax
import numpy as np
import pytest
from helpers import tiny

import jvdm
from jvdm import config as config_lib
from jvdm import data
from jvdm.cli import commands, config_file
from jvdm.core import processes, sharding
from jvdm.core.errors import UserError
from jvdm.core.files import write_atomically
from jvdm.evaluation import slices
from jvdm.reporting.writers import read_metrics
from jvdm.runs.workdir import Workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("remedies") / "run"
    tiny.trainer(path).run()
    return path


def test_a_damaged_line_of_metrics_is_deleted(run, tmp_path):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([lines[0], "{", *lines[1:]]))
    with pytest.raises(UserError, match=f"{path}, line 2: .*; delete the line or use another workdir"):
        read_metrics(path)
    path.write_text("\n".join(lines))
    assert [record["step"] for record in read_metrics(path)] == [json.loads(line)["step"] for line in lines]


def test_another_workdir_for_an_import(run, tmp_path, monkeypatch):
    """It is asked for before the checkpoint is read."""
    monkeypatch.setattr("jvdm.importers.load", lambda *_: (_ for _ in ()).throw(UserError("reads it")))

    def import_into(path):
        commands.import_(commands.Request(tiny.light_config(), Workdir(path), "anything", "vdm"))

    with pytest.raises(UserError, match="holds checkpoints already; give another"):
        import_into(run)
    with pytest.raises(UserError, match="reads it"):
        import_into(tmp_path / "another")


def test_flags_of_configs(tmp_path):
    with pytest.raises(UserError, match=r"is a section: give one of its fields .*--config.score.num_images"):
        config_file.load("digits", ["--config.score=3"])
    config_file.load("digits", ["--config.score.num_images=3"])
    (tmp_path / "mine.py").write_text("from jvdm import config\n\nget_config = config.default\n")
    with pytest.raises(UserError, match=f"--config={tmp_path}: a folder; give a file"):
        config_file.load(str(tmp_path))
    config_file.load(str(tmp_path / "mine.py"))


def test_another_workdir(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written .*; give another"):
        Workdir(tmp_path / "file").prepare()
    Workdir(tmp_path / "folder").prepare()
    (tmp_path / "folder" / ".training").mkdir()
    message = "cannot be opened .*; give another --workdir"
    with pytest.raises(UserError, match=message), Workdir(tmp_path / "folder").exclusive():
        pass
    (tmp_path / "folder" / "plots").touch()
    with pytest.raises(UserError, match="plots is not a folder .*; remove it, or give another --workdir"):
        Workdir(tmp_path / "folder").prepare()
    (tmp_path / "folder" / "plots").unlink()
    Workdir(tmp_path / "folder").prepare()
    one, other = Workdir(tmp_path / "one"), Workdir(tmp_path / "other")
    one.prepare()
    other.prepare()
    with one.exclusive():
        message = "trains there already; stop it, or give another"
        with pytest.raises(UserError, match=message), one.exclusive():
            pass
        with other.exclusive():
            pass
    with one.exclusive():
        pass


def test_a_run_without_its_config(run, tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "checkpoints").symlink_to(run / "checkpoints")
    with pytest.raises(UserError, match=r"no config.json; give jvdm.load\(..., config=CONFIG\)"):
        jvdm.load(path)
    assert jvdm.load(path, config=tiny.light_config()).step == 4


def test_no_checkpoint_yet(run, tmp_path):
    with pytest.raises(UserError, match="give a folder <workdir>/checkpoints/<step>, or train first"):
        jvdm.load(tmp_path)
    assert jvdm.load(run / "checkpoints" / "4").step == 4


def test_steps_that_a_dispatch_does_not_divide(tmp_path):
    """Of a branch: a run that is resumed has the steps per dispatch that it was started with."""
    every = [f"training.{each}_every" for each in ("log", "eval", "checkpoint")]
    one, two = dict.fromkeys(every, 1), dict.fromkeys(every, 2)
    tiny.trainer(tmp_path / "run", **one, **{"training.num_steps": 1}).run()
    branch = {"branch_from": str(tmp_path / "run"), "training.steps_per_dispatch": 2}
    with pytest.raises(
        UserError, match="not a multiple of config.training.steps_per_dispatch, 2: set it to 1"
    ):
        tiny.trainer(tmp_path / "branch", **two, **branch)
    tiny.trainer(tmp_path / "branch", **two, **{**branch, "training.steps_per_dispatch": 1}).run()


def test_saved_values_of_a_config(run, tmp_path):
    with pytest.raises(UserError, match=r"optimizer.learning_rate .*; use the saved values, or another --wo"):
        tiny.trainer(run, **{"optimizer.learning_rate": 0.5})
    assert tiny.trainer(run).step == 4
    assert tiny.trainer(tmp_path / "another", **{"optimizer.learning_rate": 0.5}).step == 0


def test_numbers_that_are_not_finite():
    c = config_lib.default()
    c.optimizer.learning_rate = float("nan")
    with pytest.raises(UserError, match="config.optimizer.learning_rate is nan: give a finite number"):
        config_lib.check_complete(c)


def test_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "file"

    def full(file):
        raise OSError(28, "No space left on device")

    with pytest.raises(
        UserError, match="No space left on device; free space there, or give another --workdir"
    ):
        write_atomically(path, full)
    write_atomically(path, lambda file: file.write(b"x"))
    assert path.read_bytes() == b"x"


def test_flags_of_several_processes(monkeypatch):
    """What the messages say is accepted: no process is started here."""
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_: None)
    with pytest.raises(UserError, match="--num_processes=0: give 1 or more"):
        processes.initialize("on", coordinator="host:1", num_processes=0, process_id=0)
    processes.initialize("on", coordinator="host:1", num_processes=1, process_id=0)
    with monkeypatch.context() as patch:

        def fail(*_):
            raise RuntimeError("nobody there")

        patch.setattr(jax.distributed, "initialize", fail)
        with pytest.raises(UserError, match="or --distributed=off for one process"):
            processes.initialize("on", coordinator=None, num_processes=None, process_id=None)
        processes.initialize("off", coordinator=None, num_processes=None, process_id=None)


def test_devices_that_fsdp_does_not_divide():
    devices = jax.devices()[:4]
    with pytest.raises(UserError, match="fsdp is 3, which does not divide 4 .*: choose 1, 2, 4"):
        sharding.make_mesh(devices, fsdp=3)
    for fsdp in (1, 2, 4):
        sharding.make_mesh(devices, fsdp=fsdp)


def test_archives_of_numpy(tmp_path):
    path = tmp_path / "data.npz"
    path.write_bytes(b"PK")
    with pytest.raises(UserError, match="not an .npz archive, or it is truncated; write it with numpy.savez"):
        data.load(f"npz:{path}", num_levels=17)
    np.savez(path, train_images=tiny.images(4), test_images=tiny.images(4))
    data.load(f"npz:{path}", num_levels=17)


def test_sources_without_their_path(tmp_path):
    np.savez(tmp_path / "FILE", train_images=tiny.images(4), test_images=tiny.images(4))
    with pytest.raises(UserError, match="names no path; write npz:FILE"):
        data.load("npz")
    data.load(f"npz:{tmp_path / 'FILE.npz'}")


def test_draws():
    with pytest.raises(UserError, match="0 draws per image are asked for: give 1 or more"):
        slices.SlicePass(lambda *_: {}, tiny.mesh(), batch_size=1, draws=0)
    slices.SlicePass(lambda *_: {}, tiny.mesh(), batch_size=1, draws=1)
