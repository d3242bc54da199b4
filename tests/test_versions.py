"""requirements.lock satisfies the ranges of requirements.txt, and the check of it can fail."""

import importlib.util
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("lock", ROOT / "scripts" / "lock.py")
assert SPEC is not None and SPEC.loader is not None
lock = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(lock)

REQUIREMENTS = (ROOT / "requirements.txt").read_text()
LOCK = (ROOT / "requirements.lock").read_text()


def test_the_lock_satisfies_the_ranges():
    assert lock.complaints(REQUIREMENTS, LOCK) == []
    command = [sys.executable, ROOT / "scripts" / "lock.py", "--check"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b""


@pytest.mark.parametrize(
    ("requirement", "complaint"),
    [
        ("Pillow>=10", None),
        ("ml_dtypes>=0.5,<1  # any spelling of a name", None),
        ("jax>=99", "jax==.* is not >=99"),
        ("numpy>=2,<2.1", "numpy==.* is not <2.1,>=2"),
        ("no-such-package", "no-such-package is missing"),
        ("# jax>=99", None),
    ],
)
def test_a_lock_that_does_not(requirement, complaint):
    found = lock.complaints(f"{REQUIREMENTS}\n{requirement}\n", LOCK)
    if complaint is None:
        assert found == []
    else:
        (line,) = found
        assert re.fullmatch(complaint, line)


def test_every_locked_file_has_a_hash():
    lines = [line for line in LOCK.splitlines() if not line.startswith("#")]
    assert len(lock.locked(LOCK)) == len(lines) > len(REQUIREMENTS.splitlines())
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==\S+ --hash=sha256:[0-9a-f]{64}", line), line


def test_every_requirement_has_a_lowest_version():
    """scripts/check_versions.sh pins it, so each line is NAME>=VERSION, with or without an upper end."""
    for line in REQUIREMENTS.splitlines():
        if not line.startswith("#"):
            assert re.fullmatch(r"[\w.-]+>=[\d.]+(,<[\d.]+)?", line), line


def test_the_versions_of_python_that_are_claimed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    prefix = "Programming Language :: Python :: 3."
    minors = [int(c.removeprefix(prefix)) for c in project["classifiers"] if c.startswith(prefix)]
    assert project["requires-python"] == f">=3.{minors[0]}"
    assert minors == list(range(minors[0], minors[-1] + 1))
