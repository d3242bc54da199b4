"""What a step gives back is kept for the next one."""

import os
import platform
import subprocess
import sys

import pytest

from jvdm.core import host_memory

# Steps with 256 MB of temporary memory. It prints what `keep` says, and the pages that two steps had to get.
PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
from jvdm.core import host_memory

kept = host_memory.keep() if sys.argv[1] == "keep" else False
# The product of one matrix is an operand of the next, so that neither is fused away.
step = jax.jit(lambda x: (x @ x.T @ x).sum())
x = jnp.ones((8192, 8))
faults = []
for _ in range(6):
    step(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(kept, faults[-1] - faults[-3])
"""
PAGES = 2 * 8192 * 8192 * 4 // 4096  # of two steps


def run(*arguments, **environment):
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC", "GLIBC"))
    }
    command = [sys.executable, "-c", PROGRAM, *arguments]
    result = subprocess.run(
        command,
        env={**variables, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, pages = result.stdout.split()
    return kept == "True", int(pages)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library: nothing is set")
def test_a_step_reuses_the_memory_of_the_last():
    assert run("no")[1] > PAGES / 2
    kept, pages = run("keep")
    assert kept
    assert pages < PAGES / 100


def test_a_user_s_own_settings_are_left():
    assert not run("keep", MALLOC_TRIM_THRESHOLD_="131072")[0]


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/a/b", {"a/memory.max": "2000", "a/b/memory.max": "max", "memory.max": "9000"}, 2000),
        ("0::/a/b", {"memory.max": "1000"}, 1000),  # in a container, which sees no folder of the group
        ("4:cpu:/a\n2:memory,other:/a", {"memory/a/memory.limit_in_bytes": "3000"}, 3000),
        ("0::/a", {}, None),
        (None, {}, None),
    ],
)
def test_a_container_s_limit(tmp_path, groups, files, expected):
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups + "\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert host_memory.available(tmp_path) == (machine if expected is None else expected)
