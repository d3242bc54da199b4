"""Programs that are measured in turns: each is a process, and one of them runs while the others wait.

A worker reads one request per line on stdin, `{"do": name, **arguments}`, and writes one reply per line, as
JSON. This module needs only Python, because workers run in different environments.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any


def serve(handlers: dict[str, Callable[..., Any]]) -> None:
    """Answer requests until stdin ends: the worker's side.

    Args:
        handlers: by name; each takes the request's arguments and returns what JSON can hold.
    """
    # What a library prints goes to stderr, so that stdout has replies only.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        reply = handlers[request.pop("do")](**request)
        print(json.dumps(reply), file=replies, flush=True)


def timed(step: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Steps for at least `seconds`: how long each took, and the CPU time of all of them.

    Args:
        step: runs one step and returns when it is done.
        seconds: of wall-clock time; the step that exceeds them is the last, so that there is at least one.

    Returns:
        `steps`, seconds of each, and `cpu`, CPU seconds of this process.
    """
    times: list[float] = []
    begin, cpu = time.perf_counter(), time.process_time()
    while not times or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return {"steps": times, "cpu": time.process_time() - cpu}


def peak_memory() -> int:
    """The most memory that this process has had resident, in bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Worker:
    """A process that serves requests: the measuring program's side.

    Args:
        name: what an error calls it.
        command: that starts it.
        environment: variables that it has beside those of this process.
    """

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str] | None = None):
        self.name = name
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def __call__(self, do: str, **arguments: Any) -> Any:
        """The reply to one request.

        Raises:
            EOFError: the worker has ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(json.dumps({"do": do, **arguments}), file=self.process.stdin, flush=True)
            reply = self.process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            raise EOFError(f"the process of {self.name} ended with status {self.process.wait()}")
        return json.loads(reply)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.terminate()
        # What the process did not read is lost.
        with contextlib.suppress(BrokenPipeError):
            self.process.__exit__(None, None, None)
