"""Progress of long tasks: a bar on a terminal, periodic lines in a log."""

import collections
import io
import sys
import time
from collections.abc import Callable
from typing import Self


def duration(seconds: float) -> str:
    """Format a length of time: "45s", "1m39s", "2h05m", "3d04h".

    Args:
        seconds: at least 0.

    Returns:
        The two largest units, rounded to the smaller one.
    """
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    hours = round(seconds / 3600)
    return f"{hours // 24}d{hours % 24:02d}h"


class Progress:
    """Progress with rate and time left: tqdm on a terminal, periodic log lines otherwise.

    The rate is measured over the last `3 * interval_s` seconds, from the first update on, so that neither
    compilation nor an earlier part of the run distorts the time left. A line looks like

        train  1200/5000 step  24%  38.1 step/s  1m39s left  bpd 2.013

    Args:
        total: the count at which the task is done.
        initial: the count at which it starts; above zero after a resume.
        label: what is being done.
        unit: what is counted.
        interval_s: minimum time between two lines, in seconds; a bar is redrawn ten times a second.
        stream: the output, stderr by default. Its `isatty` chooses between bar and lines.
        shown: False prints nothing, for every process except the first.
        clock: returns seconds from any origin; replaced in tests.
    """

    def __init__(
        self,
        total: int,
        *,
        initial: int = 0,
        label: str,
        unit: str = "step",
        interval_s: float = 10.0,
        stream: io.TextIOBase | None = None,
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._done, self._initial = total, initial, initial
        self._label, self._unit, self._interval_s = label, unit, interval_s
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._start = clock()
        self._values: dict[str, float] = {}
        self._samples: collections.deque[tuple[float, int]] = collections.deque()
        self._line_time: float | None = None  # when the last line was printed
        self._closed = False
        self._bar = None
        self._shown = shown
        if shown and self._stream.isatty():
            from tqdm import tqdm  # here because most runs write to a log

            self._bar = tqdm(
                total=total,
                initial=initial,
                desc=label,
                unit=" " + unit,
                file=self._stream,
                dynamic_ncols=True,
            )

    def update(self, done: int, **values: float) -> None:
        """Report progress; cheap enough for every step.

        Args:
            done: the absolute count, `total` at the end.
            **values: numbers to show, such as bpd=2.01. They stay until replaced.
        """
        first = not self._samples
        self._done = done
        self._values.update(values)
        now = self._clock()
        self._sample(now)
        if self._bar is not None:
            self._update_bar(first)
        elif self._line_time is None or now - self._line_time >= self._interval_s:
            self._print_line(now)

    def close(self) -> None:
        """Show the last state; calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
        else:
            self._print_line(self._clock(), last=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _update_bar(self, first: bool) -> None:
        assert self._bar is not None
        if self._values:
            self._bar.set_postfix(
                {name: f"{float(v):.4g}" for name, v in self._values.items()}, refresh=False
            )
        if first:  # restart tqdm's timer, which would count compilation into the rate
            self._bar.n = self._bar.last_print_n = self._bar.initial = self._done
            self._bar.unpause()
            self._bar.refresh()
        else:
            self._bar.update(self._done - self._bar.n)

    def _sample(self, now: float) -> None:
        """Store (time, count) about 50 times per window, however often `update` is called."""
        window_s = 3 * self._interval_s
        if not self._samples or now - self._samples[-1][0] >= window_s / 50:
            self._samples.append((now, self._done))
        while len(self._samples) > 2 and self._samples[1][0] <= now - window_s:
            self._samples.popleft()

    def _rate(self, now: float) -> float | None:
        """Counts per second over the window; None before the window has two samples."""
        if not self._samples:
            return None
        then, done_then = self._samples[0]
        if now <= then or self._done <= done_then:
            return None
        return (self._done - done_then) / (now - then)

    def _print_line(self, now: float, last: bool = False) -> None:
        self._line_time = now
        percent = 100 * self._done // self._total if self._total > 0 else 100
        if not self._shown:
            return
        parts = [self._label, f"{self._done}/{self._total} {self._unit}", f"{percent}%"]
        elapsed = now - self._start
        rate = self._rate(now)
        if last and rate is None and elapsed > 0 and self._done > self._initial:
            rate = (self._done - self._initial) / elapsed  # from a single update
        if rate is not None:
            parts.append(f"{rate:.3g} {self._unit}/s" if rate < 100 else f"{rate:.0f} {self._unit}/s")
        if last:
            parts.append(f"took {duration(elapsed)}")
        elif rate is not None:
            parts.append(f"{duration(max(self._total - self._done, 0) / rate)} left")
        parts += [f"{name} {float(value):.4g}" for name, value in self._values.items()]
        print("  ".join(parts), file=self._stream, flush=True)
