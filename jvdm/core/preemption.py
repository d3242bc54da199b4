"""Stopping on request: signals are honoured by loops between two pieces of work.

    1. One process: a handler notes the signal. Loops ask `requested` after every piece of work, save what
       they have and raise `Preempted`. The signals are SIGTERM and SIGUSR1, as schedulers send them, SIGHUP
       of a terminal that closes, and SIGINT of Ctrl-C, except those that the process was started without
       (`nohup`). A second Ctrl-C ends the process at once, and so does the first where there is nothing to
       save, outside of `working`.
    2. Where a piece takes longer than `GRACE_S` the process ends by itself: what is saved is whole at any
       time, so only that piece is lost.
    3. Several processes: JAX's coordination service gives all of them the same point at which to stop,
       whichever of them got SIGTERM; the other signals become one. They must ask equally often.
    4. A caller that has only so much time asks by itself, with `deadline`; a closed pipe asks with `request`.

The exit status is 128 + the signal's number, as of a process that the signal ends: 143 of SIGTERM, 130 of
Ctrl-C, 129 of SIGHUP, 138 of SIGUSR1, 141 of a closed pipe. 143 or 138 tell a scheduler to start again.
"""

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax

GRACE_S = 15.0
# For a command that Ctrl-C ends with nothing to save.
_UNSAVED_GRACE_S = 1.0
_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")  # the last two are not on every system
_SIGPIPE = 13
_WHOLE = "what was saved is whole"

_causes: list[tuple[str, int]] = []  # in words, with the number: the first one counts
_expired = threading.Event()
_points = itertools.count()
_ends: list[socket.socket] = []  # of the pair that wakes the watching thread, which must stay open
_at_work = 0


class Preempted(Exception):
    """The process was asked to stop, and its work is saved."""


def install() -> None:
    """Notice the signals from now on; to be called once, by the main thread."""
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    if jax.process_count() > 1:
        for number in numbers:
            if number != signal.SIGTERM:  # JAX has its own handler
                signal.signal(number, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        return
    # Python runs its handlers between two bytecodes of the main thread, which may wait for a device for
    # minutes: the byte that the interpreter writes at once wakes the thread that keeps the time.
    wake, woken = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, _interrupted if number == signal.SIGINT else lambda *_: None)
    threading.Thread(target=_watch, args=(woken, set(numbers)), daemon=True, name="preemption").start()
    _ends.extend((wake, woken))


def _interrupted(*_: object) -> None:
    """Python's handler of Ctrl-C, where there is nothing to save; elsewhere `_watch` has noted it."""
    if not _at_work:
        raise KeyboardInterrupt


def _watch(woken: socket.socket, numbers: set[int]) -> None:
    """Note the first signal, and end the process when its time is over, or at a second Ctrl-C."""
    end: float | None = None
    interrupted = False
    while True:
        try:
            woken.settimeout(None if end is None else max(end - time.monotonic(), 0.0))
            for number in woken.recv(16):
                if number not in numbers:
                    continue  # it has its own handler
                name = signal.Signals(number).name
                if end is None:
                    grace = GRACE_S
                    if number == signal.SIGINT:
                        name = "Ctrl-C"
                        if not _at_work:
                            grace = _UNSAVED_GRACE_S
                    request(name, number)
                    end = time.monotonic() + grace
                if number == signal.SIGINT and interrupted:
                    _say(f"interrupted again; {_WHOLE}")
                    os._exit(status())
                if number == signal.SIGINT and _at_work:
                    _say("stopping after this piece of work; Ctrl-C again ends at once")
                interrupted = interrupted or number == signal.SIGINT
        except TimeoutError:
            # If all goes well the process is gone before this.
            if _at_work or _causes[0][1] != signal.SIGINT:
                _say(f"stopped {GRACE_S:g} s after {cause()}, in the middle of its work; {_WHOLE}")
            else:
                _say("interrupted")
            os._exit(status())


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"jvdm: {text}", file=sys.stderr, flush=True)


def request(cause: str, number: int = _SIGPIPE) -> None:
    """Ask the loops of this process to stop; only the first request counts.

    Args:
        cause: in words, for the message.
        number: of the signal that would have it; that of a closed pipe by default.
    """
    if not _causes:
        _causes.append((cause, number))


def cause() -> str:
    """Why the process stops, in words: "SIGTERM"."""
    return _causes[0][0] if _causes else "SIGTERM"


def status() -> int:
    """The exit status of a process that was asked to stop."""
    return 128 + (_causes[0][1] if _causes else signal.SIGTERM)


@contextlib.contextmanager
def working() -> Iterator[None]:
    """There is work to save inside the block, so that Ctrl-C is a request to stop, not an end."""
    global _at_work
    _at_work += 1
    try:
        yield
    finally:
        _at_work -= 1


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Ask the loops inside the block to stop, as SIGTERM would; for a single process.

    Args:
        seconds: from now until the request, which ends with the block.
    """
    timer = threading.Timer(seconds, _expired.set)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        _expired.clear()


def requested() -> bool:
    """Whether to stop now; in several processes the same answer everywhere."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(next(_points))
    return bool(_causes) or _expired.is_set()


def check() -> None:
    """Stop here if a stop was requested.

    Raises:
        Preempted: it is.
    """
    if requested():
        raise Preempted
