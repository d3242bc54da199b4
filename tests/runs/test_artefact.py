"""A checkpoint is all that a resume needs; older formats are read, newer ones refused."""

import itertools
import json
import shutil

import pytest
from helpers import old_formats, tiny

from jvdm import config as config_lib
from jvdm.cli import commands
from jvdm.core import formats, preemption
from jvdm.core.errors import UserError
from jvdm.reporting.runs import read_run
from jvdm.reporting.writers import read_metrics
from jvdm.runs import checkpoints, saved
from jvdm.runs.workdir import Workdir
from jvdm.training.loop import Trainer


def config(**training):
    c = tiny.light_config(sample_every=4, **training).unlock()
    c.eval.estimators, c.eval.num_images = "vlb", 16
    if "prior" in c.model:
        c.model.prior = "standard"  # as all runs of format 1
    return c.lock()


def trainer(path, c=None):
    return Trainer(config() if c is None else c, Workdir(path), tiny.mesh())


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """The commands' mesh is that of a machine with one device."""
    mesh = tiny.mesh()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jvdm.core.sharding.make_mesh", lambda *_, **__: mesh)
        yield


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """The lines of metrics and the state of a run that nothing stopped."""
    path = tmp_path_factory.mktemp("complete")
    t = trainer(path)
    t.run()
    return lines(path), t.state


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Workdirs of runs that were stopped between two lines, and after step 2 before its evaluation."""
    paths = {}
    for stop_at in (1, 2):
        path = paths[stop_at] = tmp_path_factory.mktemp(f"stopped{stop_at}")
        polls = itertools.count(1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(preemption, "requested", lambda p=polls, s=stop_at: next(p) == s)
            with pytest.raises(preemption.Preempted):
                trainer(path).run()
    return paths


def lines(folder):
    return [{k: v for k, v in line.items() if k != "time"} for line in read_metrics(folder / "metrics.jsonl")]


def ends_like(complete, t, path):
    expected, state = complete
    t.run()
    assert lines(path) == expected
    for part in ("params", "ema_params", "opt_state"):
        assert tiny.max_difference(getattr(t.state, part), getattr(state, part)) == 0.0


@pytest.mark.parametrize("stop_at", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_copy_of_the_checkpoint_is_complete(complete, stopped, tmp_path, stop_at):
    (checkpoint,) = (stopped[stop_at] / "checkpoints").iterdir()
    shutil.copytree(checkpoint, tmp_path / "checkpoints" / checkpoint.name)
    for name in ("metrics.jsonl", "config.json"):
        if (stopped[stop_at] / name).exists():
            shutil.copy(stopped[stop_at] / name, tmp_path)
    t = trainer(tmp_path)
    assert bool(t.window) == (stop_at == 1) and ("eval_every" in t.todo) == (stop_at == 2)
    ends_like(complete, t, tmp_path)


@pytest.mark.parametrize("stop_at", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_run_of_format_1_goes_on(complete, stopped, tmp_path, stop_at):
    """It becomes one of the present format, checkpoint by checkpoint."""
    path = tmp_path / "run"
    shutil.copytree(stopped[stop_at], path)
    old_formats.to_format_1(path)
    assert saved.read_data(path / "data.json")["num_levels"] == tiny.LEVELS
    t = trainer(path)
    assert bool(t.window) == (stop_at == 1) and ("eval_every" in t.todo) == (stop_at == 2)
    ends_like(complete, t, path)
    assert trainer(path).todo == (), "done, and not again"
    assert json.loads((path / "config.json").read_text())["format"] == formats.CONFIG
    assert (path / "checkpoints" / "4" / "state").is_dir()


@pytest.mark.parametrize(("was", "means"), [(True, "full"), (False, "none")])
def test_remat_of_format_2(tmp_path, was, means):
    fields = json.loads(saved.config_text(tiny.config()))
    fields["network"]["remat"] = fields["encoder"]["remat"] = was
    path = tmp_path / "config.json"
    for number in ({}, {"format": 2}):
        path.write_text(json.dumps({**{k: v for k, v in fields.items() if k != "format"}, **number}))
        c = saved.complete_config(path)
        assert c.network.remat == c.encoder.remat == means
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match="remat"):
        saved.complete_config(path)


def test_the_weights_and_records_of_format_1(stopped, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(stopped[1], path)
    commands.evaluate(commands.Request(config(), Workdir(path)))
    (before,) = read_run(path).records.values()
    old_formats.to_format_1(path)
    assert {**read_run(path).records.popitem()[1], "format": 2} == before
    assert len(read_run(path).records) == 1
    shutil.rmtree(path / "eval")
    commands.evaluate(commands.Request(config(), Workdir(path)))
    assert read_run(path).records.popitem()[1] == before


def test_the_prior_of_format_1(stopped, tmp_path):
    """It was N(0, I), and nothing said so."""
    fields = json.loads((stopped[1] / "config.json").read_text())
    fields["model"].pop("prior", None)
    del fields["format"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    known = "prior" in config_lib.default().model
    assert saved.read_config(path)["model"].get("prior") == ("standard" if known else None)
    if known:
        assert saved.complete_config(path).model.prior == "standard"
        path.write_text(json.dumps({**fields, "format": 2}))
        assert saved.complete_config(path).model.prior == config_lib.default().model.prior


def test_the_reader_converts_once_the_field_exists(tmp_path, monkeypatch):
    later = config_lib.default().unlock()
    later.model.prior = "path"
    monkeypatch.setattr(config_lib, "default", lambda: later)
    path = tmp_path / "config.json"
    for content, expected in (
        ({}, "standard"),
        ({"model": {"timesteps": 0}}, "standard"),
        ({"model": {"prior": "path"}}, "path"),
        ({"format": 2, "model": {}}, None),
    ):
        path.write_text(json.dumps(content))
        assert saved.read_config(path).get("model", {}).get("prior") == expected


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (saved.read_config, {"format": 2, "model": []}, "model is a list, not a section"),
        (saved.read_config, {"model": 3}, "model is a int, not a section"),
        (saved.read_data, {"data_shape": 3}, "data_shape is 3, not a list of positive integers"),
        (
            saved.read_data,
            {"format": 2, "data_shape": [8, "a", 1]},
            "data_shape is .* not a list",
        ),
        (
            saved.read_data,
            {"data_shape": [8, 8, 1], "num_levels": 17.5},
            "num_levels is 17.5, not",
        ),
    ],
)
def test_values_of_another_type_are_one_line(tmp_path, read, content, message):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"file.json: {message}"):
        read(path)


def renumber(path, number=99):
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": number}))


NEWER = r"written by a newer jvdm, in format 99; this one reads formats up to \d: upgrade jvdm$"


@pytest.mark.parametrize("command", [commands.train, commands.evaluate])
@pytest.mark.parametrize("name", ["config.json", "data.json", "checkpoints/1/metrics/metrics"])
def test_a_newer_format_is_refused(stopped, tmp_path, name, command):
    """And nothing is moved: the files are not damaged."""
    path = tmp_path / "run"
    shutil.copytree(stopped[1], path)
    renumber(path / name)
    before = sorted(path.rglob("*"))
    with pytest.raises(UserError, match=NEWER) as error:
        command(commands.Request(config(), Workdir(path)))
    assert str(path / name.removesuffix("/metrics/metrics")) in str(error.value)
    assert [p for p in sorted(path.rglob("*")) if p.name != ".training"] == before


def test_a_newer_record_is_refused(stopped, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(stopped[1], path)
    commands.evaluate(commands.Request(config(), Workdir(path)))
    (record,) = path.glob("eval/*.json")
    assert json.loads(record.read_text())["format"] == formats.RECORD
    renumber(record)
    assert any("newer jvdm" in note for note in read_run(path).notes)


@pytest.mark.parametrize("part", ["pending", pytest.param("metrics", marks=pytest.mark.long)])
def test_killed_while_the_evaluation_is_recorded(complete, stopped, tmp_path, monkeypatch, part):
    """Before the metric is written, or after it and before the evaluation is no longer pending."""
    path = tmp_path / "run"
    shutil.copytree(stopped[2], path)
    t = trainer(path)

    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        if part == "pending":
            patch.setattr(checkpoints.pending_lib, "write", kill)
        else:
            patch.setattr(checkpoints, "write_atomically", kill)
        with pytest.raises(Killed):
            t.run()
    again = trainer(path)
    assert "eval_every" in again.todo
    ends_like(complete, again, path)


def test_a_checkpoint_with_damaged_pending_work_is_put_aside(stopped, tmp_path, caplog):
    path = tmp_path / "run"
    shutil.copytree(stopped[2], path)
    shutil.copytree(stopped[1] / "checkpoints" / "1", path / "checkpoints" / "1")
    item = path / "checkpoints" / "2" / "pending" / "metadata"
    item.write_text(item.read_text().replace("eval_every", "eval_evory"))
    t = trainer(path)
    assert t.step == 1 and "its checksum differs" in caplog.text
    assert [p.name[:2] for p in (path / "damaged_checkpoints").iterdir()] == ["2-"]
