"""How programs are compiled in tests: they run for milliseconds and compile for seconds.

The backend's optimisation is off, and fusions are compiled one by one as before XLA's fusion emitters, which
takes half the time. A program is compiled in one piece: dividing it among threads takes a quarter longer in
total, and the other core is busy with other tests. An option that a later XLA does not know would end the
process, so each is set only for versions that know it.

A number that must not be rounded in another way than a user's is compiled `as_for_users`.
"""

import contextlib
import functools
import importlib.metadata
import os
from unittest import mock

_VERSION = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
OPTIONS: dict[str, int | bool] = {"xla_backend_optimization_level": 0}
_USUAL: dict[str, int | bool] = {"xla_backend_optimization_level": 3}
if _VERSION <= (0, 10):
    OPTIONS["xla_cpu_use_fusion_emitters"] = False
    _USUAL["xla_cpu_use_fusion_emitters"] = True
    OPTIONS["xla_cpu_parallel_codegen_split_count"] = 1
    _USUAL["xla_cpu_parallel_codegen_split_count"] = 32
FLAGS = " ".join(f"--{name}={value}".lower() for name, value in OPTIONS.items())

# For a program that runs for longer than it compiles, such as a million draws.
LIGHT: dict[str, int | bool] = {"xla_backend_optimization_level": 1}


def cache(folder):
    """JAX's settings for programs that are compiled once: names and values.

    The limit on the folder's size also has JAX lock it: without, a process may read what another has half
    written.
    """
    return {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": 1 << 30,
        "jax_persistent_cache_min_compile_time_secs": 0.2,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }


def environment(**more):
    """The environment of a process that compiles as the tests do, and has the programs they have compiled."""
    import jax

    folder = jax.config.jax_compilation_cache_dir
    settings = {name.upper(): str(value) for name, value in cache(folder).items()} if folder else {}
    return {**os.environ, "XLA_FLAGS": FLAGS, **settings, **more}


@contextlib.contextmanager
def as_for_users():
    """What the block gives to `jax.jit` is compiled with XLA's usual options."""
    import jax

    with mock.patch("jax.jit", functools.partial(jax.jit, compiler_options=_USUAL)):
        yield
