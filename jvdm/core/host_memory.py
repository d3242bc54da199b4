"""Memory of the host: how much there is, and what a program on a CPU keeps of it between steps.

XLA asks the C library for a step's temporary memory at its start and gives it back at its end. By default
glibc takes a block that large from the system at every step, and the system clears each page of it at first
use: a tenth of a step's time, a fifth for small networks.
"""

import ctypes
import os
import pathlib
from collections.abc import Iterator, Mapping

import jax

# Of malloc.h: how many blocks are taken from the system by themselves, and what is free beyond which is
# given back.
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1
# What a user sets who wants it otherwise.
_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep(environment: Mapping[str, str] = os.environ) -> bool:
    """Keep memory that is given back, if this program's arrays are in the host's memory.

    To be called before the first use of a device, but after `jax.distributed` has been initialised.

    Args:
        environment: variables by name. Those with which a user sets how glibc does it are left in charge.

    Returns:
        Whether it does; not on an accelerator, nor with another C library.
    """
    # Of glibc's arenas only the main thread's grows without limit. So it is the one that starts a program;
    # the threads that compute are the same.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if jax.default_backend() != "cpu" or any(name in environment for name in _VARIABLES):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1)])


def available(root: pathlib.Path = pathlib.Path("/")) -> int:
    """Bytes that this process may use: the machine's, or what its control groups (cgroups) allow.

    Args:
        root: of the file system.
    """
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits(root)])


def _limits(root: pathlib.Path) -> Iterator[int]:
    """Of the control groups that the process is in, of either version."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in groups:
        number, controllers, group = line.split(":", 2)
        if number == "0":
            mount, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # A group is within the limits of those above it. In a container the mount is its own group.
        folder = mount / group.lstrip("/")
        for parent in (folder, *folder.parents):
            try:
                text = (parent / name).read_text().strip()
            except OSError:
                text = ""
            if text.isdecimal():
                yield int(text)
            if parent == mount:
                break
