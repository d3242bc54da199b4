"""What is written where nobody reads, or in an encoding that lacks its characters."""

import os
import subprocess
import sys

import pytest
from helpers.commands import ROOT


def python(code, **options):
    return subprocess.Popen(
        [sys.executable, "-c", "from jvdm.cli import streams\nstreams.guard()\n" + code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", b"2.01 +- 0.02, 8x8, lambda = 1, e, \\u65e5, \\udce9.png\n"),
        ("latin-1", "2.01 ± 0.02, 8×8, lambda = 1, é, \\u65e5, \\udce9.png\n".encode("latin-1")),
        ("utf-8", "2.01 ± 0.02, 8×8, λ = 1, é, 日, \\udce9.png\n".encode()),
    ],
)
def test_encodings(encoding, expected):
    """The last is the name of a file whose bytes are not UTF-8."""
    text = "2.01 ± 0.02, 8×8, λ = 1, é, 日, \udce9.png"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    out, err = python(f"print({text!a})", env=environment).communicate(timeout=60)
    assert (out, err) == (expected, b"")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_pipe_asks_to_stop(stream):
    """What is written after it is dropped; the loops learn of it, and the status is that of SIGPIPE."""
    code = (
        "import sys, time\n"
        "from jvdm.core import preemption\n"
        f"stream = sys.{stream}\n"
        "print('ready', file=stream, flush=True)\n"
        "sys.stdin.readline()\n"
        "assert not preemption.requested()\n"
        "for _ in range(3):\n"
        "    print('x' * 100_000, file=stream, flush=True)\n"
        "assert preemption.requested() and preemption.cause() == 'a closed pipe'\n"
        "sys.exit(preemption.status())\n"
    )
    process = python(code, stdin=subprocess.PIPE)
    pipe = getattr(process, stream)
    assert pipe.readline() == b"ready\n"
    pipe.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    other = process.stderr if stream == "stdout" else process.stdout
    assert other.read() == b""
    other.close()
    assert process.wait(timeout=60) == 141
