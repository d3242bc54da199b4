"""No run starts whose saves do not come back."""

import jax
import pytest
from helpers import tiny

import jvdm
from jvdm import importers
from jvdm.cli import commands
from jvdm.core.errors import UserError
from jvdm.runs import checkpoints
from jvdm.runs.workdir import Workdir
from jvdm.training.loop import Trainer


def trained_in(path):
    Trainer(tiny.light_config(), Workdir(path), tiny.mesh()).run()


@pytest.mark.parametrize("name", ["lr[1]", "a\\b"])
def test_paths_that_orbax_misreads_are_refused_before_the_first_step(tmp_path, name):
    """A run there ended well, and its checkpoints could not be read, not even in another folder."""
    with pytest.raises(UserError, match="saved there does not come back .Orbax does not take") as error:
        trained_in(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert not list((tmp_path / name / "checkpoints").iterdir())
    assert not (tmp_path / name / "metrics.jsonl").exists()
    assert not (tmp_path / name / ".trial").exists()


def test_an_import_into_such_a_path_is_refused(tmp_path, monkeypatch):
    params = tiny.model(tiny.light_config()).init(jax.random.key(0))
    imported = importers.Imported(step=3, params=params, ema_params=params)
    monkeypatch.setattr(importers, "load", lambda *_: imported)
    for name, message in (("lr[1]", "saved there does not come back .Orbax does not take"), ("lr1", None)):
        request = commands.Request(tiny.light_config(), Workdir(tmp_path / name), "anything", "vdm")
        if message is None:
            commands.import_(request)
            assert jvdm.load(tmp_path / name).step == 3
        else:
            with pytest.raises(UserError, match=message):
                commands.import_(request)
            assert not (tmp_path / name / "checkpoints").exists()


@pytest.mark.parametrize("name", ["a b", "{1,2}", "a=1,b=2", "ü", "50%"])
def test_other_paths_are_as_good_as_any(tmp_path, name):
    trained_in(tmp_path / name)
    assert jvdm.load(tmp_path / name).step == 4
    assert not (tmp_path / name / ".trial").exists()


def test_what_comes_back_changed_is_refused(tmp_path, monkeypatch):
    """A storage that loses a bit: the checksums are of what was saved."""
    whole = checkpoints.checksums

    def wrong(state):
        sums = whole(state)
        name = next(iter(sums))
        return sums | {name: sums[name] ^ 1}

    monkeypatch.setattr(checkpoints, "checksums", wrong)
    with pytest.raises(UserError, match="does not come back"):
        trained_in(tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_what_a_killed_trial_has_left_is_removed(tmp_path):
    (tmp_path / ".trial" / "checkpoints" / "0").mkdir(parents=True)
    trained_in(tmp_path)
    assert not (tmp_path / ".trial").exists()
