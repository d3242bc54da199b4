import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from jvdm.core import files
from jvdm.core.errors import UserError
from jvdm.reporting.writers import MetricWriter, NullWriter, read_metrics


def steps(path):
    return [record["step"] for record in read_metrics(path)]


def events(workdir):
    """(file, event) of every event file in the order TensorBoard reads them; checks the framing."""
    from tensorboardX.proto import event_pb2

    found = []
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            found.append((path.name, event_pb2.Event.FromString(content[12 : 12 + length])))
            content = content[16 + length :]
    return found


def test_scalars_are_json_lines_on_disk_at_once(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.scalars(7, {"train/bpd": np.float32(2.5), "train/grad_norm": 1})
        (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["step"] == 7
    assert record["train/bpd"] == 2.5
    assert record["train/grad_norm"] == 1.0
    assert record["time"] > 1.6e9


def test_non_finite_values_are_strict_json_and_read_back(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.scalars(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    text = (tmp_path / "metrics.jsonl").read_text()
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [record[k] for k in "abc"] == ["nan", "inf", "-inf"]
    (record,) = read_metrics(tmp_path)
    assert math.isnan(record["a"])
    assert record["b"] == math.inf
    assert record["c"] == -math.inf


@pytest.mark.parametrize("resume_step", [1, 20, 25, 30, 99])
def test_resume_keeps_exactly_the_lines_up_to_the_step(tmp_path, resume_step):
    with MetricWriter(tmp_path) as writer:
        for step in (10, 20, 20, 30):
            writer.scalars(step, {"train/bpd": step})
    before = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    MetricWriter(tmp_path, resume_step=resume_step).close()
    after = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert after == [line for line, s in zip(before, (10, 20, 20, 30), strict=True) if s <= resume_step]


def test_crash_and_resume_leave_no_line_missing_or_doubled(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in (10, 20, 30):
            writer.scalars(step, {"x": 0})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 40, "ti')
    assert steps(path) == [10, 20, 30]
    with MetricWriter(tmp_path, resume_step=20) as writer:
        for step in (30, 40):
            writer.scalars(step, {"x": 1})
    assert [(r["step"], r["x"]) for r in read_metrics(path)] == [(10, 0), (20, 0), (30, 1), (40, 1)]


@pytest.mark.parametrize("torn", [b"{", b'{"step": 3', b"\0\0\0\0", b'{"step": 3, "x": 1\n', b"12"])
def test_a_torn_last_line_is_dropped_on_resume(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "x": 1}\n{"step": 2, "x": 1}\n' + torn)
    assert steps(path) == [1, 2]
    with MetricWriter(tmp_path, resume_step=9) as writer:
        writer.scalars(10, {"x": 1})
    assert steps(path) == [1, 2, 10]


def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "x": 1}\n{"step": 2, "x": 1}')
    with MetricWriter(tmp_path, resume_step=2) as writer:
        writer.scalars(3, {"x": 1})
    assert steps(path) == [1, 2, 3]


def test_a_fresh_start_keeps_nothing(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.scalars(0, {"x": 1})
        writer.scalars(5, {"x": 1})
    MetricWriter(tmp_path).close()
    assert read_metrics(tmp_path) == []


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\nhello\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        read_metrics(path)
    with pytest.raises(UserError, match="line 2"):
        MetricWriter(tmp_path, resume_step=5)
    assert path.read_bytes().count(b"\n") == 3


def test_missing_metrics_are_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot read metrics"):
        read_metrics(tmp_path)


def test_resume_that_cannot_replace_the_file_leaves_it_whole(tmp_path, monkeypatch):
    with MetricWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.scalars(step, {"x": 1})
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(UserError, match=r"metrics\.jsonl: No space left on device"):
        MetricWriter(tmp_path, resume_step=1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))


def test_workdir_that_is_a_file_is_a_user_error(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken is not a directory") as caught:
        MetricWriter(tmp_path / "taken")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_is_one_line_and_closing_does_not_hide_it(tmp_path):
    writer = MetricWriter(tmp_path)
    writer._file.close()
    writer._file = open("/dev/full", "ab")  # noqa: SIM115
    with pytest.raises(UserError, match=r"metrics\.jsonl: No space left on device"), writer:
        writer.scalars(1, {"x": 1})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_under_the_event_file_is_an_error_and_no_deadlock(tmp_path):
    writer = MetricWriter(tmp_path)
    writer._events._records.close()
    writer._events._records._writer = open("/dev/full", "wb")  # noqa: SIM115
    with pytest.raises(UserError, match=r"tfevents.*No space left on device"), writer:
        writer.scalars(1, {"x": 1})
    assert steps(tmp_path) == [1]


def test_tensorboard_holds_the_scalars_and_images(tmp_path):
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    with MetricWriter(tmp_path) as writer:
        writer.scalars(3, {"train/bpd": 2.5, "test/bpd": math.nan})
        writer.image(3, "samples/grid", picture)
        writer.image(4, "samples/grey", picture[:, :, :1])
    found = [event for _, event in events(tmp_path)]
    assert found[0].file_version == "brain.Event:2"
    values = {v.tag: (event.step, v) for event in found for v in event.summary.value}
    assert values["train/bpd"][0] == 3
    assert values["train/bpd"][1].simple_value == 2.5
    assert math.isnan(values["test/bpd"][1].simple_value)
    assert (values["samples/grid"][1].image.height, values["samples/grid"][1].image.width) == (2, 2)
    assert values["samples/grey"][0] == 4


def test_tensorboard_purges_what_the_resumed_run_writes_again(tmp_path):
    for resume_step in (0, 20):
        MetricWriter(tmp_path, resume_step=resume_step).close()
    starts = [(name, e.step) for name, e in events(tmp_path) if e.HasField("session_log")]
    assert [step for _, step in starts] == [0, 21]
    assert starts[0][0] < starts[1][0]


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3), np.float32)]
)
def test_images_of_another_kind_are_refused(tmp_path, image):
    with MetricWriter(tmp_path) as writer, pytest.raises(ValueError, match="expected uint8"):
        writer.image(0, "x", image)


def test_reserved_names_are_refused(tmp_path):
    with MetricWriter(tmp_path) as writer, pytest.raises(ValueError, match="step"):
        writer.scalars(0, {"step": 1.0})


def test_closing_twice_is_fine(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.scalars(1, {"x": 2.0})
    writer.close()
    writer.close()
    assert [line["x"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [2.0]


def test_null_writer_has_the_same_methods():
    public = {name for name in vars(MetricWriter) if not name.startswith("_") or name == "__enter__"}
    assert public <= set(vars(NullWriter))
    with NullWriter() as writer:
        writer.scalars(0, {"x": 1.0})
        writer.image(0, "x", np.zeros((1, 1, 3), np.uint8))


def test_imports_are_lazy_and_without_tensorflow(tmp_path):
    program = (
        "import sys\n"
        "from jvdm.core import files, progress, tables\n"
        "from jvdm.reporting import images, plots, writers\n"
        "heavy = {'tensorboardX', 'matplotlib', 'PIL', 'tqdm', 'jax', 'tensorflow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "writer = writers.MetricWriter(sys.argv[1])\n"
        "writer.close()\n"
        "plots.training_curves([], sys.argv[1] + '/curves.png')\n"
        "heavy = {'tensorflow', 'torch', 'jax', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
