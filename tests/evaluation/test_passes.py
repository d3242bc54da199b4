"""Chunks on disk: what differs has another place, and one place has one writer."""

import numpy as np
import pytest

from jvdm.core.errors import UserError
from jvdm.evaluation.passes import Store


def rows(value):
    return {"x": np.full((2, 3), float(value))}


def test_two_passes_of_one_folder_do_not_meet(tmp_path):
    """Interleaved, as of two processes, one of which is stopped and started again: each has its chunks."""
    cats, dogs = (Store(tmp_path, "vlb_step4", {"data": name}) for name in ("cats", "dogs"))
    with cats.held(), dogs.held():
        cats.save(0, rows(1))
        dogs.save(0, rows(2))
        cats.save(2, rows(3))
    for store, expected in ((cats, [1, 3]), (dogs, [2])):
        again = Store(tmp_path, "vlb_step4", {"data": "cats" if store is cats else "dogs"})
        with again.held():
            assert [chunk["x"][0, 0] for chunk in again.load()] == expected
    dogs.discard()
    with cats.held():
        assert len(cats.load()) == 2, "what one discards is its own"


def test_names_differ_as_settings_do(tmp_path):
    settings = [{"a": 1}, {"a": 2}, {"a": 1, "b": None}, {"b": 1}, {"a": "1"}, {"a": [1]}]
    names = [Store(tmp_path, "n", each).name for each in settings]
    assert len(set(names)) == len(names)
    assert Store(tmp_path, "n", {"b": None, "a": 1}).name == names[2], "whatever their order"


def test_a_pass_has_one_writer(tmp_path):
    with (
        Store(tmp_path, "n", {"a": 1}).held(),
        pytest.raises(UserError, match="another process computes the same numbers"),
        Store(tmp_path, "n", {"a": 1}).held(),
    ):
        pass
    with Store(tmp_path, "n", {"a": 1}).held():
        pass


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    store = Store(tmp_path / "file", "n", {})
    with pytest.raises(UserError, match="cannot write"), store.held():
        pass
