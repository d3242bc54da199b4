"""Memory that a program on a CPU keeps between steps.

XLA asks the C library for a step's temporary memory at its start and gives it back at its end. By default
glibc takes a block that large from the system at every step, and the system clears each page of it at first
use: a tenth of a step's time, a fifth for small networks.
"""

import ctypes
import os
from collections.abc import Mapping

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
