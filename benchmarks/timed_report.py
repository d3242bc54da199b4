"""A text report that is written as it is measured, and the minutes that it may take."""

import contextlib
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from jvdm.core.files import user_errors


class Report:
    """Lines that are printed, and safe on disk before the next is measured.

    Args:
        path: of the file; one that is there is replaced.

    Raises:
        UserError: it cannot be written.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        with user_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115 (open as long as the process)

    def line(self, text: str = "") -> None:
        """Write a line.

        Raises:
            UserError: the disk is full.
        """
        with user_errors(self._path):
            print(text, file=self._file, flush=True)
            os.fsync(self._file.fileno())
        print(text, flush=True)

    def section(self, title: str) -> None:
        """Begin a section."""
        self.line()
        self.line(f"== {title}")

    def fields(self, **values: Any) -> None:
        """Write names with their values, one to a line."""
        for name, value in values.items():
            self.line(f"{name:12} {value}")

    def row(self, cells: Any, widths: Any) -> None:
        """Write cells, each to the right of its column; a last one without a width is text."""
        shown = [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False)]
        self.line("  ".join([*shown, *cells[len(shown) :]]))


class Budget:
    """The time that a report may take.

    Args:
        minutes: of all of it.
        start: `time.monotonic()` when it began.
    """

    def __init__(self, minutes: float, start: float):
        self.total_s = 60.0 * minutes
        self._start = start

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def left_s(self, share: float = 1.0) -> float:
        """Seconds until a share of the time has passed."""
        return share * self.total_s - self.elapsed_s

    def fits(self, seconds: float, share: float = 1.0) -> bool:
        """Whether what takes so many seconds would end before a share of the time has passed."""
        return seconds <= self.left_s(share)

    @contextlib.contextmanager
    def enforced(self, report: Report) -> Iterator[pathlib.Path]:
        """A folder for all temporary files inside the block, and an end of the process when the time is over.

        A compilation cannot be interrupted, and its time can only be estimated, so a thread ends the process
        in the middle of it if the estimate was too low.
        """
        with tempfile.TemporaryDirectory(prefix="jvdm-") as name:
            folder, before = pathlib.Path(name), tempfile.tempdir

            def end():
                with contextlib.suppress(Exception):
                    report.line(
                        f"stopped: the {self.total_s / 60:g} minutes are over; what follows is missing"
                    )
                shutil.rmtree(folder, ignore_errors=True)
                sys.stdout.flush()
                os._exit(1)

            watchdog = threading.Timer(max(0.0, self.left_s() - 1.0), end)
            watchdog.daemon = True
            watchdog.start()
            tempfile.tempdir = name
            try:
                yield folder
            finally:
                tempfile.tempdir = before
                watchdog.cancel()
