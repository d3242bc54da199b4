"""Training end to end: what is written, exact resumption, refusals, non-finite losses."""

import itertools
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from jvdm.core import preemption
from jvdm.core.errors import UserError
from jvdm.reporting.writers import read_metrics
from jvdm.runs import checkpoints, integrity, restoring
from jvdm.runs.workdir import Workdir
from jvdm.training import loop as loop_lib
from jvdm.training.loop import Trainer, train


def trainer(path, c=None):
    return Trainer(tiny.config() if c is None else c, Workdir(path), tiny.mesh())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four steps with samples, and its trainer."""
    path = tmp_path_factory.mktemp("run")
    t = trainer(path, tiny.config(sample_every=4))
    t.run()
    return path, t


def test_what_a_run_leaves_behind(finished):
    path, _ = finished
    assert sorted(int(p.name) for p in (path / "checkpoints").iterdir()) == [2, 4]
    for name in ("config.json", "plots/training.png", "plots/schedule.png", "samples/step_00000004.png"):
        assert (path / name).stat().st_size > 0
    assert list(path.glob("events.out.tfevents.*")) or list(path.glob("*/events.out.tfevents.*"))
    assert json.loads((path / "config.json").read_text())["training"]["num_steps"] == 4


def test_metrics(finished):
    lines = read_metrics(finished[0] / "metrics.jsonl")
    assert [line["step"] for line in lines if "train/bpd" in line] == [2, 4]
    assert [line["step"] for line in lines if "test/bpd" in line] == [2, 4]
    for line in lines:
        for split in ("train", "test"):
            if f"{split}/bpd" in line:
                terms = sum(line[f"{split}/{term}"] for term in ("reconstruction", "prior", "diffusion"))
                assert line[f"{split}/bpd"] == pytest.approx(terms, rel=1e-6)
    train = next(line for line in lines if "train/bpd" in line)
    assert {"train/grad_norm", "train/learning_rate", "train/gamma_0", "train/gamma_1"} <= train.keys()


def test_resuming_is_exact(finished, tmp_path):
    """Two steps, then two more in a new process's worth of state: bitwise the run of four."""
    t = trainer(tmp_path, tiny.config(num_steps=2))
    t.run()
    again = trainer(tmp_path)
    assert again.step == 2
    again.run()
    expected = finished[1].state
    for a, b in zip(
        jax.tree.leaves((again.state.params, again.state.ema_params, again.state.opt_state)),
        jax.tree.leaves((expected.params, expected.ema_params, expected.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    steps = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl") if "train/bpd" in line]
    assert steps == [2, 4]


def test_resuming_with_more_microbatches_changes_rounding_only(finished, tmp_path):
    """A run that goes on where there is less memory."""
    trainer(tmp_path, tiny.config(num_steps=2)).run()
    again = trainer(tmp_path, tiny.config(microbatches=4))
    assert again.step == 2
    again.run()
    # As in `test_step`: sums in another order, and Adam's first steps.
    assert 0 < tiny.max_difference(again.state.params, finished[1].state.params) < 2e-4
    losses = [[line["train/bpd"] for line in read_metrics(path / "metrics.jsonl") if "train/bpd" in line]
              for path in (tmp_path, finished[0])]  # fmt: skip
    np.testing.assert_allclose(*losses, rtol=2e-5)


def test_finished_run_is_left_alone(finished):
    path, _ = finished
    before = (path / "metrics.jsonl").read_text()
    trainer(path, tiny.config(sample_every=4)).run()
    assert (path / "metrics.jsonl").read_text() == before


def test_another_config_is_refused(finished):
    c = tiny.config()
    c.network.channels = 16
    c.optimizer.learning_rate = 5e-4
    with pytest.raises(UserError, match=r"network.channels \(saved 8, given 16\), optimizer.learning_rate"):
        trainer(finished[0], c)


def truncate(checkpoint):
    for file in [p for p in checkpoint.rglob("*") if p.is_file()]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def truncate_arrays(checkpoint):
    truncate(checkpoint / "state")


def lose_half(checkpoint):
    for file in sorted(p for p in checkpoint.rglob("*") if p.is_file())[::2]:
        file.unlink()


def flip_bits(checkpoint):
    """One bit in each of the files that hold arrays: the largest ones."""
    largest = max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 4
    largest.write_bytes(data)


DAMAGE = (truncate, truncate_arrays, lose_half, flip_bits)


@pytest.mark.parametrize(
    "damage", [flip_bits, *(pytest.param(each, marks=pytest.mark.long) for each in DAMAGE[:-1])]
)
def test_a_damaged_checkpoint_is_put_aside(finished, tmp_path, damage, caplog):
    """The one before takes its place, the log says so, and the run ends as it did."""
    path, complete = finished
    shutil.copytree(path, tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "4")
    again = trainer(tmp_path / "run", tiny.config(sample_every=4))
    assert again.step == 2
    assert "damaged_checkpoints" in caplog.text and "checkpoints/4 is damaged" in caplog.text
    assert len(list((tmp_path / "run" / "damaged_checkpoints").iterdir())) == 1
    if damage is flip_bits:
        again.run()
        assert tiny.max_difference(again.state.ema_params, complete.state.ema_params) == 0.0
        assert restoring.find(tmp_path / "run", None).name == "4"


def test_nothing_but_damaged_checkpoints_is_one_line(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    for step in ("2", "4"):
        truncate_arrays(tmp_path / "run" / "checkpoints" / step)
    with pytest.raises(UserError, match=r"none of the 2 checkpoints can be read; the newest: .*4") as error:
        trainer(tmp_path / "run", tiny.config(sample_every=4))
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["2", "4"], "left alone"


def test_checksums_see_every_bit():
    tree = {
        "a": jnp.arange(12.0).reshape(3, 4),
        "n": jnp.int32(7),
        "key": jax.random.key(1),
        "b": jnp.ones(2) > 0,
    }
    before = integrity.checksums(tree)
    assert set(before) == {"a", "n", "key", "b"}
    assert before == integrity.checksums(tree)
    for bit in range(32):
        words = np.asarray(tree["a"]).view(np.uint32).copy()
        words[2, 1] ^= np.uint32(1) << np.uint32(bit)
        assert integrity.checksums({"a": words.view(np.float32)})["a"] != before["a"]
    assert integrity.checksums({"a": tree["a"][::-1]})["a"] != before["a"], "the order counts"


def test_two_trainings_in_one_workdir(tmp_path):
    with Workdir(tmp_path).exclusive(), pytest.raises(UserError, match="trains there already"):
        train(tiny.config(), Workdir(tmp_path))


@pytest.mark.long
@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_a_run_that_is_asked_to_stop_loses_nothing(finished, tmp_path, monkeypatch, stop_at):
    """At step 1, between lines of metrics and checkpoints; after step 2, before or after its evaluation."""
    path, complete = finished
    polls = itertools.count(1)
    monkeypatch.setattr(preemption, "requested", lambda: next(polls) == stop_at)
    t = trainer(tmp_path, tiny.config(sample_every=4))
    with pytest.raises(preemption.Preempted):
        t.run()
    again = trainer(tmp_path, tiny.config(sample_every=4))
    assert again.step == (1 if stop_at == 1 else 2)
    assert bool(again.window) == (stop_at == 1)
    again.run()
    assert tiny.max_difference(again.state.params, complete.state.params) == 0.0
    lines, expected = (
        [{k: v for k, v in line.items() if k != "time"} for line in read_metrics(folder)]
        for folder in (tmp_path, path)
    )
    assert lines == expected
    assert trainer(tmp_path, tiny.config(sample_every=4)).todo == (), "done, and not again"


def test_a_run_that_has_saved_nothing_starts_again(tmp_path):
    trainer(tmp_path, tiny.light_config())
    again = trainer(tmp_path, tiny.light_config(steps_per_dispatch=2))
    assert again.step == 0
    assert '"steps_per_dispatch": 2' in (tmp_path / "config.json").read_text()


@pytest.mark.long
def test_stopped_at_the_end_and_done_once(tmp_path, monkeypatch):
    """A run that was stopped in its last evaluation has that to do, once."""
    c = tiny.light_config(num_steps=2)
    evaluate = Trainer._evaluate

    def stop(self):
        raise preemption.Preempted

    monkeypatch.setattr(Trainer, "_evaluate", stop)
    with pytest.raises(preemption.Preempted):
        trainer(tmp_path, c).run()
    monkeypatch.setattr(Trainer, "_evaluate", evaluate)
    again = trainer(tmp_path, c)
    assert "eval_every" in again.todo
    again.run()
    assert trainer(tmp_path, c).todo == ()


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    """It is said, and the training runs."""

    def flock(file, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.setattr(logging.getLogger("jvdm"), "propagate", True)
    with Workdir(tmp_path).exclusive():
        assert "cannot be locked (Function not implemented)" in caplog.text
    (tmp_path / ".training").unlink()
    (tmp_path / ".training").mkdir()
    with pytest.raises(UserError, match="cannot be opened"), Workdir(tmp_path).exclusive():
        pass


@pytest.mark.long
@pytest.mark.parametrize("stop_at", [2, 3, 4, 5])
def test_a_run_that_is_asked_to_stop_keeps_its_best(tmp_path, monkeypatch, stop_at):
    """The checkpoint of step 2, whether it is saved before its evaluation, between the two, or after both."""
    values, polls = {2: 1.0, 4: 3.0, 6: 2.0, 8: 2.5}, itertools.count(1)
    monkeypatch.setattr(Trainer, "_evaluate", lambda self: values[self.step])
    monkeypatch.setattr(preemption, "requested", lambda: next(polls) == stop_at)
    c = tiny.light_config(num_steps=8)
    with pytest.raises(preemption.Preempted):
        trainer(tmp_path, c).run()
    again = trainer(tmp_path, c)
    assert again.step == (3 if stop_at == 5 else 2)
    again.run()
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [2, 6, 8]


def test_non_finite_loss_stops(tmp_path):
    """A learning rate that overflows the parameters at once: the step is named and step 2's state is kept."""
    trainer(tmp_path, tiny.light_config(num_steps=2)).run()
    t = trainer(tmp_path, tiny.light_config())
    t.state = jax.tree.map(lambda x: x, t.state)
    bad = jax.tree.map(lambda p: p * np.float32(np.nan), t.state.params["network"]["out"])
    t.state.params["network"]["out"] = bad
    with pytest.raises(UserError, match=r"step 3: loss nan .* the checkpoint of step 2 is kept"):
        t.run()
    assert restoring.find(tmp_path, None).name == "2"


def test_failed_save_keeps_the_previous(tmp_path, monkeypatch):
    """A write error in Orbax's thread is one line, and the older checkpoint is still read."""
    t = trainer(tmp_path, tiny.light_config(num_steps=2))
    t.run()
    t = trainer(tmp_path, tiny.light_config())

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(t.checkpoints._manager, "save", full)
    with pytest.raises(UserError, match=r"No space left on device.*step 2 is kept"):
        t.run()
    restored = restoring.restore(restoring.find(tmp_path, None), t.state)
    assert int(restored.step) == 2


def test_part_of_a_checkpoint(finished):
    """The averaged weights alone are those of the whole state, and those of another model are refused."""
    path, t = finished
    newest = restoring.find(path, None)
    part = restoring.restore(newest, {"ema_params": t.state.ema_params})
    assert part.keys() == {"ema_params"}
    assert tiny.max_difference(part["ema_params"], t.state.ema_params) == 0.0
    for field, value in (("channels", 16), ("num_blocks", 2), ("attention", True)):
        c = tiny.config()
        c.network[field] = value
        other = jax.eval_shape(tiny.model(c).init, jax.random.key(0))
        with pytest.raises(UserError, match="not a readable checkpoint of this model"):
            restoring.restore(newest, {"ema_params": other})


def test_best_and_newest_are_kept(tmp_path):
    t = trainer(tmp_path, tiny.light_config())
    saved = checkpoints.Checkpoints(tmp_path / "kept", keep="newest:2")
    for step, value in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 2.5)):
        saved.save(t.state, step, value)
        saved.wait()
    saved.close()
    assert sorted(int(p.name) for p in (tmp_path / "kept").iterdir()) == [2, 4, 5]


@pytest.mark.long
def test_one_compilation_of_each_function(tmp_path, caplog):
    """No jitted function of a run is compiled twice."""
    c = tiny.config(sample_every=2)
    with jax.log_compiles(True), caplog.at_level("WARNING", logger="jax"):
        trainer(tmp_path, c).run()
    messages = [record.getMessage() for record in caplog.records]
    names = [
        m.split("jit(")[1].split(")")[0] for m in messages if m.startswith("Finished XLA compilation of")
    ]
    assert [names.count(n) for n in ("train_step", "evaluate", "sample", "initial_state")] == [1, 1, 1, 1]


def test_other_images_are_refused(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "data.json").write_text('{"name": "digits", "train": "0123"}')
    before = (tmp_path / "run" / "config.json").read_text()
    with pytest.raises(UserError, match=r"trained on other train data \(digits, SHA-256 0123\)"):
        trainer(tmp_path / "run", tiny.config(sample_every=4, num_steps=6))
    assert (tmp_path / "run" / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_steps", 0, "num_steps is 0"),
        ("log_every", 3, "log_every is 3, not a positive multiple"),
        ("microbatches", 0, "microbatches is 0"),
        ("steps_per_dispatch", 0, "steps_per_dispatch is 0"),
    ],
)
def test_intervals(field, value, message):
    c = tiny.config(steps_per_dispatch=2)
    c.training[field] = value
    with pytest.raises(UserError, match=message):
        loop_lib.check_intervals(c)
