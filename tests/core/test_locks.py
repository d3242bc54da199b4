"""Locks between processes: one holder, gone with its process, and a warning where there are none."""

import errno
import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from jvdm.core import locks

HOLD = """
import pathlib, sys, time
from jvdm.core import locks
with locks.exclusive(pathlib.Path(sys.argv[1]), wait=False, purpose="holds it"):
    pathlib.Path(sys.argv[1]).write_text("the owner")
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def hold(tmp_path):
    """Starts a process that holds the lock for some seconds."""
    path, started = tmp_path / "lock", []

    def start(seconds):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path), str(seconds)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return path, process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def taken(path):
    """Whether this process gets the lock at once."""
    try:
        with locks.exclusive(path, wait=False, purpose="waits"):
            return True
    except locks.Busy:
        return False


def test_one_holder_until_it_is_killed(hold):
    path, process = hold(60)
    assert not taken(path)
    assert path.read_text() == "the owner", "whoever does not get the lock leaves its file alone"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert taken(path) and taken(path)


def test_waiting_for_the_holder(hold):
    path, process = hold(0.5)
    with locks.exclusive(path, wait=True, purpose="waits"):
        assert process.wait(timeout=10) == 0


def test_two_in_one_process(tmp_path):
    with locks.exclusive(tmp_path / "lock", wait=False, purpose="waits"):
        assert not taken(tmp_path / "lock")
    assert taken(tmp_path / "lock")


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog, code, wait):
    """It is said, the block runs, and no marker is left that would outlive the process."""

    def flock(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.setattr(logging.getLogger("jvdm"), "propagate", True)
    start = time.monotonic()
    for _ in range(2):
        with locks.exclusive(tmp_path / "lock", wait=wait, purpose="trains there"):
            pass
    assert caplog.text.count(f"cannot be locked ({os.strerror(code)}): make sure that nothing else") == 2
    assert time.monotonic() - start < 5
    assert [p.name for p in tmp_path.iterdir()] == ["lock"]


def test_a_file_that_cannot_be_opened(tmp_path):
    with pytest.raises(IsADirectoryError), locks.exclusive(tmp_path, wait=False, purpose="waits"):
        pass
