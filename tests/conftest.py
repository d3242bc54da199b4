"""Settings that every test runs under.

Warnings are errors (pyproject.toml). There are eight host devices, so that meshes of one and of eight
can be built; what does not ask for a mesh uses the first. Numbers are float32 unless a test takes
the fixture `x64`.

Every call in jvdm is checked against its annotations, shapes included (jaxtyping with beartype), and JAX
promotes neither types nor ranks. Separate processes that tests start run unchecked, as a user's do.
"""

import gc
import os
import pathlib

from helpers import checked, quick  # noqa: F401 (the hook names checked.calls)

# XLA reads these once, when the first device is used: before anything imports jax.
_FLAGS = f"--xla_force_host_platform_device_count=8 {quick.FLAGS}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# The collector would walk millions of JAX's objects thousands of times: a twentieth of the suite.
gc.set_threshold(100_000, 20, 20)

# Before anything imports jvdm.
jaxtyping.install_import_hook("jvdm", "helpers.checked.calls")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_collection_modifyitems(items):
    """What lies in tests/parity is marked `parity`."""
    folder = pathlib.Path(__file__).parent / "parity"
    for item in items:
        if item.path.is_relative_to(folder):
            item.add_marker("parity")


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(request):
    """A program is compiled once, whichever test and worker run it, and is there for the next run.

    `pytest --cache-clear` forgets them.
    """
    for name, value in quick.cache(request.config.cache.mkdir("xla")).items():
        jax.config.update(name, value)


@pytest.fixture
def key():
    """A key of the generator whose numbers are the same on every device."""
    return jax.random.key(0, impl="threefry2x32")


@pytest.fixture
def unchecked():
    """Calls are not checked, as a user's are not: for what jvdm itself says of a wrong type."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def x64():
    """Double precision for one test, where a tolerance must exclude rounding."""
    with jax.enable_x64(True):
        yield
