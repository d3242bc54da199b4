"""What a checkpoint leaves undone: exact, checked, and part of the checkpoint."""

import json

import numpy as np
import pytest

from jvdm.core.errors import UserError
from jvdm.runs import pending
from jvdm.runs.pending import Pending
from jvdm.runs.state import StepMetrics


def metrics(seed, steps, *, learned=True):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((5, steps)).astype(np.float32)
    values[1, 0] = np.nan
    ends = values[3:] if learned else (None, None)
    return StepMetrics({"bpd": values[0], "prior": values[1]}, values[2], 1e-3 * values[2], *ends)


def same(a, b):
    """Bitwise, whatever the windows' pieces."""
    join = [Pending(pending.to_json(p)["window"], tuple(p.todo)) for p in (a, b)]
    return json.dumps(join[0]) == json.dumps(join[1])


@pytest.mark.parametrize("learned", [True, False])
def test_every_bit_comes_back(tmp_path, learned):
    window = [metrics(seed, steps, learned=learned) for seed, steps in ((0, 1), (1, 3))]
    given = Pending(window, ("eval_every", "sample_every"))
    pending.write(tmp_path / "4", given)
    found = pending.read(tmp_path / "4")
    assert same(found, given) and found.todo == given.todo
    (one,) = found.window
    for name in ("bpd", "prior"):
        expected = np.concatenate([m.losses[name] for m in window])
        assert one.losses[name].astype(np.float32).tobytes() == expected.tobytes()
    assert (one.gamma_0 is None) == (not learned)
    # A run that is stopped twice between two lines has pieces of both kinds.
    twice = Pending([*found.window, metrics(2, 2, learned=learned)])
    pending.write(tmp_path / "4", twice)
    assert same(pending.read(tmp_path / "4"), Pending([*window, metrics(2, 2, learned=learned)]))


def test_nothing_is_pending(tmp_path):
    pending.write(tmp_path / "4", pending.NOTHING)
    assert pending.read(tmp_path / "4") == pending.NOTHING


def test_every_changed_byte_is_noticed(tmp_path):
    pending.write(tmp_path / "4", Pending([metrics(0, 2)], ("eval_every",)))
    path = tmp_path / "4" / "pending" / "metadata"
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises((ValueError, KeyError)):
            pending.read(tmp_path / "4")
    for damaged in (b"", data[: len(data) // 2], b"[]", b"{}"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError):  # noqa: PT011, of JSON or of the checksum
            pending.read(tmp_path / "4")
    path.unlink()
    with pytest.raises(OSError, match="missing"):
        pending.read(tmp_path / "4")


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    pending.write(tmp_path / "4", Pending(todo=("eval_every",)))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        pending.write(tmp_path / "4", pending.NOTHING)
    assert pending.read(tmp_path / "4").todo == ("eval_every",)
    assert [p.name for p in (tmp_path / "4" / "pending").iterdir()] == ["metadata"]


def test_notes_of_format_1(tmp_path):
    checkpoint = tmp_path / "checkpoints" / "4"
    (checkpoint / "default").mkdir(parents=True)
    assert pending.read(checkpoint) == pending.NOTHING
    (tmp_path / "notes").mkdir()
    notes = tmp_path / "notes" / "4.npz"
    np.savez(notes, todo=np.array(["eval_every"]), **{"loss/bpd": np.ones(2), "grad_norm": np.zeros(2)})
    found = pending.read(checkpoint)
    assert found.todo == ("eval_every",) and found.window[0].losses["bpd"].tolist() == [1.0, 1.0]
    assert found.window[0].gamma_0 is None
    notes.write_bytes(notes.read_bytes()[:100])
    with pytest.raises(ValueError, match="4.npz is damaged; remove it"):
        pending.read(checkpoint)
    pending.write(checkpoint, pending.NOTHING)
    assert pending.read(checkpoint) == pending.NOTHING, "what is written later counts"
