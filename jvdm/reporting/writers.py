"""Scalars and images of a run: `metrics.jsonl` and TensorBoard events.

Both files are written synchronously. tensorboardX's `SummaryWriter` hands events to a thread through a
bounded queue: on a full disk the thread dies and the training loop waits for the queue forever. Only its
record format and messages are used here, so that errors reach the caller.
"""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any, Self, SupportsFloat

import numpy as np

from jvdm.core.errors import UserError
from jvdm.core.files import user_errors, write_atomically

FILE_NAME = "metrics.jsonl"
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class NullWriter:
    """Has the methods of `MetricWriter` and writes nothing; for every process except the first."""

    def scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Ignore the values."""

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Ignore the image."""

    def sync(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class MetricWriter:
    """`metrics.jsonl` and TensorBoard events of one workdir.

    Args:
        workdir: the directory of the run, created if missing.
        resume_step: the step of the checkpoint that is resumed. Lines beyond it, and an incomplete
            last line, are dropped, and TensorBoard is told to forget events beyond it, because the resumed
            run writes them again. At 0, a fresh start, nothing earlier is kept.
        redone: prefix of scalars of `resume_step` itself that the resumed run writes again, such as "test/";
            lines with one of them are dropped too.

    Raises:
        UserError: a file cannot be written, or an earlier `metrics.jsonl` was not written by jvdm.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, resume_step: int = 0, redone: str | None = None):
        workdir = pathlib.Path(workdir).absolute()
        self._path = workdir / FILE_NAME
        first_new_step = resume_step + 1 if resume_step else 0
        with user_errors(self._path):
            workdir.mkdir(parents=True, exist_ok=True)
            _drop_from(self._path, first_new_step, redone)
            self._file = open(self._path, "ab")  # noqa: SIM115, closed by close()
        try:
            self._events = _Events(workdir, first_new_step)
        except BaseException:
            self._file.close()
            raise

    def scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Append one line, on disk when the call returns, and one TensorBoard event.

        Args:
            step: the number of training steps done.
            values: scalars by name, such as "train/bpd", "train/diffusion", "test/bpd", "train/grad_norm".
                JSON has no nan and inf: they are written as the strings "nan", "inf", "-inf".

        Raises:
            UserError: the disk is full or a file is no longer writable.
        """
        plain = {name: float(value) for name, value in values.items()}
        reserved = plain.keys() & {"step", "time"}
        if reserved:
            raise ValueError(f"scalar names {sorted(reserved)} are reserved: every line has these fields")
        now = time.time()
        record = {"step": int(step), "time": round(now, 3)}
        record |= {name: value if math.isfinite(value) else str(value) for name, value in plain.items()}
        with user_errors(self._path):
            self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            self._file.flush()
        self._events.scalars(int(step), now, plain)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Show one image in TensorBoard.

        Args:
            step: the number of training steps done.
            name: where it appears, such as "samples/ancestral".
            image: uint8 [H, W, C], C 1 or 3.

        Raises:
            UserError: the disk is full or the event file is no longer writable.
        """
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
            raise ValueError(f"expected uint8 [H, W, 1 or 3], got {image.dtype} {list(image.shape)}")
        self._events.image(int(step), time.time(), name, image)

    def sync(self) -> None:
        """Return once the lines so far are safe on disk, even if the machine fails.

        Raises:
            UserError: they cannot be written.
        """
        with user_errors(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close both files; calling it again does nothing."""
        try:
            with user_errors(self._path):
                self._file.close()
        finally:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        # After a failed write, closing fails the same way: the first error is the one to report.
        with contextlib.suppress(UserError) if exc_type else contextlib.nullcontext():
            self.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the lines of a `metrics.jsonl`.

    Args:
        path: the file, or the workdir that holds it.

    Returns:
        One dict per line: "step" (int), "time" (unix seconds) and the scalars as floats, nan and inf
        included. An incomplete last line is left out.

    Raises:
        UserError: the file does not exist or a line before the last is not JSON.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read metrics {path}: {error.strerror or error}") from error
    records = (record for _, record in _parse(path, content))
    return [{name: _number(value) for name, value in record.items()} for record in records]


def _number(value: Any) -> Any:
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _parse(path: pathlib.Path, content: bytes) -> list[tuple[bytes, dict[str, Any]]]:
    """The complete lines, as written and as parsed; an incomplete last line is left out."""
    lines = content.split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    parsed = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError("no step")
        except ValueError as error:
            if number == len(lines):
                break
            raise UserError(
                f"{path}, line {number}: not a line of metrics; delete the line or use another workdir"
            ) from error
        parsed.append((line, record))
    return parsed


def _drop_from(path: pathlib.Path, first_new_step: int, redone: str | None) -> None:
    """Keep the complete lines before `first_new_step`; an untouched file is not rewritten."""
    if not path.exists():
        return

    def stays(record):
        again = redone is not None and any(name.startswith(redone) for name in record)
        return record["step"] < first_new_step - again

    content = path.read_bytes()
    kept = b"".join(line + b"\n" for line, record in _parse(path, content) if stays(record))
    if kept != content:
        write_atomically(path, lambda file: file.write(kept))


class _Events:
    """One TensorBoard event file, written synchronously."""

    def __init__(self, workdir: pathlib.Path, first_new_step: int):
        # Imported here because evaluation, scoring and the plots need no TensorBoard.
        from tensorboardX import record_writer, summary
        from tensorboardX.proto import event_pb2

        messages: Any = event_pb2  # generated at import: a type checker does not see its classes
        self._summary, self._messages = summary, messages
        # TensorBoard reads the files of a run in the order of their names, which is that of their creation.
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        self._path = workdir / f"events.out.tfevents.{seconds}.{nanoseconds:09d}"
        with user_errors(self._path):
            self._records = record_writer.RecordWriter(str(self._path))
        self._write(0, time.time(), file_version="brain.Event:2")
        # A START event makes TensorBoard discard what earlier files hold at or beyond its step.
        start = messages.SessionLog(status=messages.SessionLog.START)
        self._write(first_new_step, time.time(), session_log=start)

    def scalars(self, step: int, now: float, values: Mapping[str, SupportsFloat]) -> None:
        summaries = [self._summary.scalar(name, value) for name, value in values.items()]
        if summaries:
            merged = type(summaries[0])(value=[part.value[0] for part in summaries])
            self._write(step, now, summary=merged)

    def image(self, step: int, now: float, name: str, image: np.ndarray) -> None:
        self._write(step, now, summary=self._summary.image(name, image, dataformats="HWC"))

    def close(self) -> None:
        with user_errors(self._path):
            self._records.close()

    def _write(self, step: int, now: float, **content: Any) -> None:
        event = self._messages.Event(step=step, wall_time=now, **content)
        with user_errors(self._path):
            self._records.write(event.SerializeToString())
            self._records.flush()
