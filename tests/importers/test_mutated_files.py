"""Checkpoints of every codebase with bytes changed: what is read fits the model, or there is one line."""

import io
import sys
import zipfile

import hypothesis
import jax
import numpy as np
import pytest
import test_addtt_import
import test_mulan_import
import test_sdeflow_import
import test_vdm_import
from hypothesis import strategies as st
from test_addtt_import import write as write_addtt  # noqa: F401
from test_sdeflow_import import write as write_sdeflow  # noqa: F401
from test_vdm_import import write as write_flax  # noqa: F401

from jvdm import importers
from jvdm.core.errors import UserError
from jvdm.importers import shapes

pytestmark = pytest.mark.long

SETTINGS = hypothesis.settings(
    derandomize=True,
    deadline=None,
    max_examples=40,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)

# What code that a file brings would have to do; `_watching` is whom it is told.
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "exec",
    "compile",
)
_watching: list[list[str]] = []


# The checks of calls (tests/conftest.py) compile what they check.
CHECKS = ("/jaxtyping/", "/beartype/")


def _audit(event, _):
    if _watching and event in FORBIDDEN:
        by = sys._getframe(1).f_code.co_filename
        if not any(package in by for package in CHECKS):
            _watching[-1].append(event)


sys.addaudithook(_audit)

PLACE = st.floats(0.0, 1.0, exclude_max=True)
CHANGE = st.one_of(
    st.tuples(st.just("set"), PLACE, st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("insert"), PLACE, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("delete"), PLACE, st.integers(1, 40)),
    st.tuples(st.just("cut"), PLACE, st.none()),
    # The head is where the structure is.
    st.tuples(st.just("set"), PLACE.map(lambda place: place / 100), st.binary(min_size=1, max_size=4)),
)
CHANGES = st.lists(CHANGE, min_size=1, max_size=4)


def changed(data: bytes, changes) -> bytes:
    found = bytearray(data)
    for kind, place, what in changes:
        at = int(place * len(found))
        if kind == "set":
            found[at : at + len(what)] = what
        elif kind == "insert":
            found[at:at] = what
        elif kind == "delete":
            del found[at : at + what]
        else:
            del found[at:]
    return bytes(found)


def with_changed_pickle(data: bytes, changes) -> bytes:
    """The archive with another pickle, whose checksum is right."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, changed(content, changes) if name.endswith("data.pkl") else content)
    return file.getvalue()


def check_all(source, path, file, model, change, monkeypatch):
    """Every mutation of `file` is read at `path`, or refused."""
    original = file.read_bytes()
    # Once for all: flax makes classes while it traces, which looks like what is watched for.
    expected = shapes.expected_by(model)
    monkeypatch.setattr(shapes, "expected_by", lambda _: expected)
    importers.load(source, path, model)  # it is a valid one, and whatever is imported late is imported

    @SETTINGS
    @hypothesis.given(CHANGES)
    def check(changes):
        file.write_bytes(change(original, changes))
        events: list[str] = []
        message = ""
        _watching.append(events)
        try:
            imported = importers.load(source, path, model)
        except UserError as error:
            hypothesis.event("refused")
            message = str(error)
        else:
            hypothesis.event("read")
            leaves = jax.tree.leaves((imported.params, imported.ema_params))
            assert all(isinstance(leaf, np.ndarray) and np.isfinite(leaf).all() for leaf in leaves)
        finally:
            _watching.pop()
        assert not events
        assert len(message.splitlines()) <= 1

    check()


@pytest.mark.parametrize("source", ["vdm", "mulan"])
def test_flax(write_flax, tmp_path, source, monkeypatch):  # noqa: F811
    if source == "mulan":
        options, model = test_mulan_import.CASES["attention"]
        tree = test_mulan_import.Source().tree(**options)
    else:
        tree = test_vdm_import.Source().tree(depth=1)
        model = test_vdm_import.model(num_blocks=1)
    path = write_flax(tree)
    check_all(source, path, tmp_path / "checkpoints-0" / "ckpt-1.flax", model, changed, monkeypatch)


@pytest.mark.parametrize("change", [changed, with_changed_pickle])
def test_addtt(write_addtt, tmp_path, change, monkeypatch):  # noqa: F811
    path = write_addtt(test_addtt_import.source())
    check_all("addtt", path, tmp_path / "model.pt", test_addtt_import.model(), change, monkeypatch)


@pytest.mark.parametrize("change", [changed, with_changed_pickle])
def test_sdeflow(write_sdeflow, tmp_path, change, monkeypatch):  # noqa: F811
    path = write_sdeflow(test_sdeflow_import.Source().tree())
    check_all("sdeflow", path, tmp_path / "checkpoint.pt", test_sdeflow_import.model(), change, monkeypatch)


def test_settings_of_addtt(write_addtt, tmp_path, monkeypatch):  # noqa: F811
    path = write_addtt(test_addtt_import.source())
    check_all("addtt", path, tmp_path / "config.yaml", test_addtt_import.model(), changed, monkeypatch)
