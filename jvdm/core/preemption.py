"""Stopping on request: SIGTERM, as schedulers send it, is honoured by loops between two pieces of work.

    1. One process: a handler notes the signal. Loops ask `requested` after every piece of work, save what
       they have and raise `Preempted`.
    2. Where a piece takes longer than `GRACE_S` the process ends by itself: what is saved is whole at any
       time, so only that piece is lost.
    3. Several processes: JAX's coordination service gives all of them the same point at which to stop,
       whichever of them got the signal. They must ask equally often.

    4. A caller that has only so much time asks by itself, with `deadline`.

The exit status is 143, 128 + SIGTERM, so that a scheduler starts the job again.
"""

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import jax

GRACE_S = 15.0
EXIT_STATUS = 128 + signal.SIGTERM

_signalled = threading.Event()
_expired = threading.Event()
_points = itertools.count()
_ends: list[socket.socket] = []  # of the pair that wakes the watching thread, which must stay open


class Preempted(Exception):
    """The process was asked to stop, and its work is saved."""


def install() -> None:
    """Notice SIGTERM from now on; to be called once, by the main thread. JAX does in several processes."""
    if jax.process_count() > 1:
        return
    # Python runs its handlers between two bytecodes of the main thread, which may wait for a device for
    # minutes: the byte that the interpreter writes at once wakes the thread that keeps the time.
    wake, woken = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: _signalled.set())

    def watch():
        while signal.SIGTERM not in woken.recv(16):
            pass  # woken by another signal, which has its own handler
        _signalled.set()
        # If all goes well the process is gone before this returns.
        threading.Event().wait(GRACE_S)
        print(
            f"jvdm: stopped {GRACE_S:g} s after SIGTERM, in the middle of its work; what was saved is whole",
            file=sys.stderr,
        )
        sys.stderr.flush()
        os._exit(EXIT_STATUS)

    threading.Thread(target=watch, daemon=True, name="preemption").start()
    _ends.extend((wake, woken))


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
    return _signalled.is_set() or _expired.is_set()


def check() -> None:
    """Stop here if a stop was requested.

    Raises:
        Preempted: it is.
    """
    if requested():
        raise Preempted
