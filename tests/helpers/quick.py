"""How programs are compiled in tests: they run for milliseconds and compile for seconds.

The backend's optimisation is off, and fusions are compiled one by one as before XLA's fusion emitters, which
takes half the time. An option that a later XLA no longer knows would end the process, so it is asked for
where it is known to be.

A number that must not be rounded in another way than a user's is compiled `as_for_users`.
"""

import contextlib
import functools
import importlib.metadata
from unittest import mock

_VERSION = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
OPTIONS: dict[str, int | bool] = {"xla_backend_optimization_level": 0}
_USUAL: dict[str, int | bool] = {"xla_backend_optimization_level": 3}
if _VERSION <= (0, 10):
    OPTIONS["xla_cpu_use_fusion_emitters"] = False
    _USUAL["xla_cpu_use_fusion_emitters"] = True
FLAGS = " ".join(f"--{name}={value}".lower() for name, value in OPTIONS.items())


@contextlib.contextmanager
def as_for_users():
    """What the block gives to `jax.jit` is compiled with XLA's usual options."""
    import jax

    with mock.patch("jax.jit", functools.partial(jax.jit, compiler_options=_USUAL)):
        yield
