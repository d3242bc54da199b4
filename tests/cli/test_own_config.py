"""A run knows itself: commands about a run need no config and no overrides."""

import pathlib
import shutil
import sys

import jax
import pytest
from absl import flags
from helpers import tiny
from helpers.commands import ROOT

from jvdm.cli import command_line, config_file
from jvdm.cli import main as main_lib
from jvdm.core.errors import UserError
from jvdm.runs import checkpoints, restoring
from jvdm.runs.workdir import Workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "run"
    tiny.trainer(path).run()
    return path


@pytest.fixture
def command(monkeypatch):
    """Runs a command in this process, on one device."""
    device = jax.devices()[0]
    monkeypatch.setattr("jax.devices", lambda: [device])
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr("sys.argv", ["jvdm"])

    def command(*arguments):
        values = flags.FlagValues()
        command_line.define_flags(values)
        argv = ["jvdm", *map(str, arguments)]
        command_line.read(argv, values)
        main_lib.run_mode(values, command_line.config_of(argv)[0])

    return command


SMALL = ("--config.eval.num_images=4", "--config.eval.estimators=vlb", "--config.eval.draws=1")


def test_commands_about_a_run(run, command, capsys):
    """Eval, score, sample and a longer training of a config that no file holds."""
    command("eval", f"--workdir={run}", *SMALL)
    command("--mode=score", "--workdir", run, *SMALL)
    command("sample", f"--workdir={run}", "--config.sample.num_images=2", "--config.sample.steps=2")
    command("train", f"--workdir={run}")
    assert len(list((run / "eval").glob("vlb*.json"))) == 1
    assert len(list((run / "scores").glob("*vlb*.csv"))) == 1
    assert len(list((run / "samples").glob("samples_2x8x8x1*.npz"))) == 1
    assert f"next    jvdm eval --workdir={run}" in capsys.readouterr().out


def test_the_config_of_a_run_as_a_file(run, command, tmp_path):
    """Without --workdir it is about that run; with another --workdir it starts a new one."""
    before = {path.name for path in (run / "eval").iterdir()} if (run / "eval").exists() else set()
    command("eval", f"--config={run / 'config.json'}", *SMALL, "--config.eval.draws=2")
    assert {path.name for path in (run / "eval").iterdir()} > before
    command("train", f"--config={run / 'config.json'}", f"--workdir={tmp_path / 'new'}")
    assert (tmp_path / "new" / "config.json").read_text() == (run / "config.json").read_text()


def test_a_checkpoint_brings_its_run(run, command, tmp_path):
    for given in (run, run / "checkpoints", run / "checkpoints" / "2"):
        command("eval", f"--checkpoint={given}", f"--workdir={tmp_path}", *SMALL)
    names = {path.name.partition("_seed")[0] for path in (tmp_path / "eval").iterdir()}
    assert names == {"vlb_continuous_step4_4x1", "vlb_continuous_step2_4x1"}


def test_steps(run, command):
    command("eval", f"--workdir={run}", "--checkpoint=2", *SMALL)
    assert list((run / "eval").glob("vlb_continuous_step2_4x1*.json"))
    for given in ("3", f"{run}/checkpoints/3"):
        with pytest.raises(
            UserError, match=f"--checkpoint={given}: there is no checkpoint of step 3; there are 2, 4$"
        ):
            command("eval", f"--workdir={run}", f"--checkpoint={given}", *SMALL)
    with pytest.raises(UserError, match="config.init_from=1500: no checkpoint"):
        restoring.find(pathlib.Path("1500"), "1500", flag="config.init_from")


def test_neither_a_config_nor_a_run(command, tmp_path):
    for arguments in (["train"], ["eval", f"--workdir={tmp_path}"]):
        with pytest.raises(UserError, match="--config is missing: .*; or --workdir, the folder of a run"):
            command(*arguments)


def test_a_config_that_is_only_near(run, monkeypatch, tmp_path):
    """A step, or a folder beside a `config.json`, does not bring the config of the current folder."""
    monkeypatch.chdir(run)
    (tmp_path / "empty").mkdir()
    for given in ("2", "samples", str(tmp_path / "empty")):
        assert config_file.of_run(["--workdir=nowhere", f"--checkpoint={given}"]) == ""
    for given in (".", "checkpoints", "checkpoints/2"):
        assert config_file.of_run([f"--checkpoint={given}"]) == str(run / "config.json")


@pytest.mark.parametrize(
    ("keep", "steps"),
    [
        ("newest:2", {3, 7, 8}),
        ("newest:1", {3, 8}),
        ("all", {1, 2, 3, 4, 5, 6, 7, 8}),
        ("every:4", {3, 4, 8}),
        ("newest:3, every:2", {2, 3, 4, 6, 7, 8}),
    ],
)
def test_which_checkpoints_are_kept(tmp_path, keep, steps):
    """The best, here that of step 3, in any case."""
    manager = checkpoints.Checkpoints(tmp_path, keep=keep)
    state = tiny.trainer(tmp_path / "run").state
    for step in range(1, 9):
        manager.save(state, step, abs(step - 3.0))
        manager.wait()
    assert manager.steps() == steps
    assert manager.best() == (3, 0.0)
    manager.close()


@pytest.mark.parametrize("keep", ["", "none", "newest", "newest:0", "every:x", "newest:2;every:3"])
def test_what_cannot_be_kept(tmp_path, keep):
    with pytest.raises(UserError, match="keep_checkpoints is .*: give all, newest:N, every:STEPS, or newest"):
        tiny.trainer(tmp_path, **{"training.keep_checkpoints": keep})


def test_a_run_that_ends_says_what_it_came_to(tmp_path, caplog, command):
    caplog.set_level("INFO", logger="jvdm")
    tiny.trainer(tmp_path / "run").run()
    (line,) = [each for each in caplog.messages if each.startswith("test split")]
    assert line.startswith("test split, 16 examples, ") and "bits/dim at step 4" in line
    assert f"metrics     {tmp_path / 'run' / 'metrics.jsonl'}" in caplog.messages


def test_no_evaluation(tmp_path):
    """`eval_every=0`: the newest checkpoints are kept, and none is the best."""
    run = tiny.trainer(tmp_path, **{"training.eval_every": 0})
    run.run()
    assert "test/" not in (tmp_path / "metrics.jsonl").read_text()
    assert restoring.steps_in(tmp_path / "checkpoints")


def test_a_workdir_that_is_removed(tmp_path, monkeypatch):
    run = tiny.trainer(tmp_path / "run")
    monkeypatch.setattr(run, "_finish", lambda *_: shutil.rmtree(tmp_path / "run", ignore_errors=True))
    with pytest.raises(UserError, match="was removed before step 2: there is nowhere to save"):
        run.run()


OWN = """
import dataclasses
from jvdm import config
from jvdm.diffusion.paths import PATHS, VariancePreserving

@PATHS.register("{name}")
@dataclasses.dataclass(frozen=True)
class Mine(VariancePreserving):
    def extra(self):
        return 1

def get_config():
    c = config.default()
    with c.unlocked():
        c.path = PATHS.spec("{name}")
    return c
"""


def test_components_of_ones_own(tmp_path):
    """Where they are registered is recorded, and said where they are not."""
    file = tmp_path / "mine.py"
    file.write_text(OWN.format(name="mine_of_a_file"))
    config = config_file.load(str(file))
    workdir = Workdir(tmp_path / "run")
    workdir.prepare()
    workdir.save_config(config)
    text = workdir.config.read_text().replace("mine_of_a_file", "mine_of_nobody")
    workdir.config.write_text(text)
    message = f"unknown .*mine_of_nobody.*mine_of_a_file is from {file}: import that first, or give --config"
    with pytest.raises(UserError, match=message):
        config_file.load(str(workdir.config))


def test_typing(monkeypatch):
    monkeypatch.chdir(ROOT)

    def config(*arguments):
        values = flags.FlagValues()
        command_line.define_flags(values)
        command_line.read(["jvdm", "train", "--config=digits", *arguments], values)
        return values.config

    assert config("--config.network=mlp").network.name == "mlp"
    assert config("--config.network", "mlp", "--config.network.hidden=7").network.hidden == 7
    assert config("--config.eval.ode.solver=fixed").eval.ode.solver.name == "fixed"
    assert config("--config.schedule=fixed_linear").schedule.name == "fixed_linear"
    assert config("--config.training.num_steps=1e5").training.num_steps == 100_000
    assert config("--config.training.num_steps", "2.5E3").training.num_steps == 2500
    assert config("--config.optimizer.learning_rate=1e-3").optimizer.learning_rate == 1e-3
    assert config("--config.data.source=1e5").data.source == "1e5"
    for wrong in ("1e-1", "1.55e1", "1e", "e5", "1e999", "nan"):
        with pytest.raises(UserError, match=f"config.training.num_steps is '{wrong}', not an int"):
            config(f"--config.training.num_steps={wrong}")
    with pytest.raises(UserError, match="unknown network 'mpl'; did you mean 'mlp'"):
        config("--config.network=mpl")
    with pytest.raises(
        UserError, match="unknown flag --learning_rate; did you mean --config.optimizer.learning_rate.$"
    ):
        config("--learning_rate=3")
    with pytest.raises(
        UserError, match="unknown flag --batch_size; did you mean .*--config.training.batch_size"
    ):
        config("--batch_size=64")
    with pytest.raises(
        UserError, match="unknown flag --training.batch_size; did you mean --config.training.b"
    ):
        config("--training.batch_size=64")
