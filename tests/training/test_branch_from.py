"""A run that goes on from another run's whole state under another config; remedies that are accepted."""

import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny

from jvdm.config import overrides
from jvdm.core.errors import UserError
from jvdm.runs import loading, restoring, saved
from jvdm.runs.workdir import Workdir
from jvdm.training.loop import Trainer


def trainer(path, c):
    return Trainer(c, Workdir(path), tiny.mesh())


def config(**fields):
    c = tiny.light_config().unlock()
    overrides.put(c, fields)
    return c.lock()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run of four steps without clipping, and one with it; by whether they clip."""
    folder = tmp_path_factory.mktemp("source")
    for clip in (False, True):
        trainer(folder / str(clip), config(**{"optimizer.clip_norm": float(clip)})).run()
    return folder


def adam(opt_state):
    return jax.device_get({name: optax.tree.get(opt_state, name) for name in ("mu", "nu")})


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("now", [False, True])
def test_state_and_step_are_kept(source, tmp_path, before, now):
    """Whether gradients were or are clipped, which changes the structure of the optimizer's state."""
    fields = {
        "branch_from": str(source / str(before)),
        "optimizer.clip_norm": float(now),
        "optimizer.learning_rate": 1e-4,
        "training.num_steps": 6,
    }
    old = trainer(source / str(before), config(**{"optimizer.clip_norm": float(before)}))
    new = trainer(tmp_path, config(**fields))
    assert new.step == int(new.state.step) == 4
    for one, other in (
        (new.state.params, old.state.params),
        (new.state.ema_params, old.state.ema_params),
        (adam(new.state.opt_state), adam(old.state.opt_state)),
        (jax.random.key_data(new.state.root_key), jax.random.key_data(old.state.root_key)),
    ):
        assert tiny.max_difference(one, other) == 0.0
    new.run()
    assert restoring.find(tmp_path, None).name == "6"
    assert not list((source / str(before) / "checkpoints").glob("6")), "the other run is as it was"


def test_a_branch_resumes_by_itself(source, tmp_path):
    """What it branched from is used up, and may be gone."""
    shutil.copytree(source / "False", tmp_path / "a")
    fields = {"branch_from": str(tmp_path / "a"), "training.num_steps": 6}
    trainer(tmp_path / "b", config(**fields)).run()
    shutil.rmtree(tmp_path / "a")
    assert trainer(tmp_path / "b", config(**fields)).step == 6
    again = trainer(tmp_path / "b", config(**{"training.num_steps": 8}))
    again.run()
    assert again.step == 8


def test_the_remedy_of_a_loss_that_is_not_finite(source, tmp_path):
    """The flags of the message lead on from the last good checkpoint; a resume would refuse them."""
    shutil.copytree(source / "False", tmp_path / "a")
    t = trainer(tmp_path / "a", config(**{"training.num_steps": 6}))
    t.state.params["network"]["out"] = jax.tree.map(
        lambda p: p * np.float32(np.nan), t.state.params["network"]["out"]
    )
    with pytest.raises(
        UserError, match="the checkpoint of step 4 is kept; go on from it in another"
    ) as error:
        t.run()
    flags = dict(re.findall(r"--config\.([\w.]+)=(\S+)", str(error.value)))
    assert flags.keys() == {"branch_from", "optimizer.learning_rate", "optimizer.clip_norm"}
    for name in ("optimizer.learning_rate", "optimizer.clip_norm"):
        fields = {"branch_from": flags["branch_from"], name: float(flags[name]), "training.num_steps": 6}
        with pytest.raises(UserError, match="holds a run with another config"):
            trainer(tmp_path / "a", config(**fields))
        branch = trainer(tmp_path / name, config(**fields))
        branch.run()
        assert branch.step == 6 and jnp.isfinite(optax.tree.norm(branch.state.params))


def test_the_remedy_where_nothing_was_saved(tmp_path):
    """The same workdir takes the changed config, for a run that has saved nothing is started again."""
    t = trainer(tmp_path, config())
    t.state.params["network"]["out"] = jax.tree.map(
        lambda p: p * np.float32(np.nan), t.state.params["network"]["out"]
    )
    with pytest.raises(UserError, match="nothing was saved yet; start again with ") as error:
        t.run()
    flags = dict(re.findall(r"--config\.([\w.]+)=(\S+)", str(error.value)))
    trainer(tmp_path, config(**{name: float(value) for name, value in flags.items()})).run()
    assert restoring.find(tmp_path, None).name == "4"


def test_refused(source, tmp_path):
    with pytest.raises(UserError, match=r"config.branch_from=.*nope: no checkpoint"):
        trainer(tmp_path / "a", config(branch_from=str(tmp_path / "nope")))
    with pytest.raises(UserError, match="belong to another model: .*network.hidden"):
        trainer(tmp_path / "b", config(**{"branch_from": str(source / "False"), "network.hidden": 16}))
    with pytest.raises(UserError, match="num_steps is 4, and .* is at step 4 already: give more"):
        trainer(tmp_path / "f", config(branch_from=str(source / "False")))
    with pytest.raises(UserError, match="both given"):
        trainer(tmp_path / "c", config(branch_from=str(source / "False"), init_from=str(source / "False")))
    shutil.copytree(source / "False", tmp_path / "d")
    (tmp_path / "d" / "config.json").unlink()
    with pytest.raises(UserError, match="has no config.json"):
        trainer(tmp_path / "e", config(branch_from=str(tmp_path / "d")))


def test_the_same_data_elsewhere_is_the_same_run(tmp_path):
    """A job's scratch folder has another name each time; other bytes under the same name are refused."""
    images = tiny.images(40)
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        given = images if name != "three" else images[::-1]
        np.savez(tmp_path / name / "data.npz", train_images=given, test_images=images[:20])

    def fields(name, steps):
        source = f"npz:{tmp_path / name / 'data.npz'}"
        return {"data.source": source, "data.num_levels": 17, "training.num_steps": steps}

    trainer(tmp_path / "run", config(**fields("one", 4))).run()
    shutil.rmtree(tmp_path / "one")
    resumed = trainer(tmp_path / "run", config(**fields("two", 6)))
    assert resumed.step == 4
    with pytest.raises(UserError, match="was trained on other train data"):
        trainer(tmp_path / "run", config(**fields("three", 6)))
    with pytest.raises(UserError, match="holds a run with another config: data"):
        trainer(tmp_path / "run", config(**{"training.num_steps": 6}))


@pytest.mark.parametrize("split", ["train", "test"])
def test_other_data_is_a_branch(tmp_path, split):
    """Of either split: a curve over two test splits would be none."""
    images = {"train_images": tiny.images(40), "test_images": tiny.images(20, seed=1)}
    for name in ("old", "new"):
        np.savez(tmp_path / name, **images)
        images[f"{split}_images"] = images[f"{split}_images"][1:]

    def fields(name, steps, **others):
        source = {"data.source": f"npz:{tmp_path / name}.npz", "data.num_levels": 17}
        return {**source, "training.num_steps": steps, **others}

    trainer(tmp_path / "run", config(**fields("old", 4))).run()
    with pytest.raises(
        UserError, match=f"on other {split} data .*; use another --workdir, with --config.bra"
    ):
        trainer(tmp_path / "run", config(**fields("new", 6)))
    branch = trainer(tmp_path / "branch", config(**fields("new", 6, branch_from=str(tmp_path / "run"))))
    assert branch.step == 4
    branch.run()


def test_a_split_that_was_held_out_is_kept(tmp_path):
    """Resuming compares content: another seed is refused, the same splits in other files are not."""
    images = tiny.images(40)
    np.savez(tmp_path / "flat.npz", images)

    def fields(name, steps, seed):
        source = {"data.source": f"npz:{tmp_path / name}.npz", "data.num_levels": 17}
        return {**source, "data.split_seed": seed, "training.num_steps": steps}

    first = trainer(tmp_path / "run", config(**fields("flat", 4, 1)))
    first.run()
    assert (len(first.dataset.train), len(first.dataset.test)) == (36, 4)
    recorded = saved.read_data(first.workdir.data)
    assert recorded["version"] == "4 of 40 held out by seed 1"
    with pytest.raises(
        UserError, match=r"on other train data \(npz:flat.npz, 4 of 40 held out by seed 1, SHA.* by seed 2, "
    ):
        trainer(tmp_path / "run", config(**fields("flat", 6, 2)))
    np.savez(tmp_path / "both.npz", train_images=first.dataset.train, test_images=first.dataset.test)
    assert trainer(tmp_path / "run", config(**fields("both", 6, 2))).step == 4


def test_evaluating_another_split(tmp_path):
    """Its test images would be among those that were trained on; the remedy is carried out."""
    np.savez(tmp_path / "flat.npz", tiny.images(40))
    np.savez(tmp_path / "other.npz", tiny.images(40, seed=1))

    def fields(name="flat", **others):
        source = {"data.source": f"npz:{tmp_path / name}.npz", "data.num_levels": 17}
        return {**source, **{f"data.{field}": value for field, value in others.items()}}

    trainer(tmp_path / "run", config(**fields(split_seed=1, test_fraction=0.2))).run()
    path, mesh = tmp_path / "run", tiny.mesh()
    with pytest.raises(UserError, match="split_seed is 0, which would put .*; give --config") as error:
        loading.load(path, None, mesh, config=config(**fields(test_fraction=0.2)))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="was trained on a split of npz.*8 of 40 held out by seed 1") as error:
        loading.load(path, None, mesh, config=config(**fields()))
    flags = dict(re.findall(r"--config\.data\.(\w+)=(\S+)", str(error.value)))
    right = {"split_seed": int(flags["split_seed"]), "test_fraction": float(flags["test_fraction"])}
    assert loading.load(path, None, mesh, config=config(**fields(**right))).step == 4
    assert loading.load(path, None, mesh, config=config(**fields("other"))).step == 4, "other images may be"
    trainer(tmp_path / "digits", config()).run()
    assert loading.load(tmp_path / "digits", None, mesh, config=config(**{"data.split_seed": 3})).step == 4


@pytest.mark.parametrize("field", ["init_from", "branch_from"])
@pytest.mark.parametrize("damage", ["arrays", "list"])
def test_a_damaged_source_names_the_one_before(source, tmp_path, field, damage):
    """Which it takes if it is told to."""
    shutil.copytree(source / "False", tmp_path / "old")
    state = tmp_path / "old" / "checkpoints" / "4" / "state"
    files = (
        [state / "_METADATA"] if damage == "list" else [p for p in state.rglob("*") if p.parent.name == "d"]
    )
    assert files
    for file in files:
        file.write_bytes(b"")
    fields = {"training.num_steps": 6}
    with pytest.raises(UserError, match="not a readable checkpoint .*; the one before is --config") as caught:
        trainer(tmp_path / "new", config(**fields, **{field: str(tmp_path / "old")}))
    assert "TensorStore" not in str(caught.value) and "NoneType" not in str(caught.value)
    flag, _, value = str(caught.value).rpartition("--config.")[2].partition("=")
    assert flag == field and value == str(tmp_path / "old" / "checkpoints" / "2")
    assert trainer(tmp_path / "new", config(**fields, **{flag: value})).step == (2 if "b" in field[0] else 0)
