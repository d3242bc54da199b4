"""JAX's settings: those that change jvdm's numbers are pinned, the others that may are recorded.

`JAX_...` environment variables and `jax.config` set them for a whole process. Pinned:

    jax_enable_x64              False  everything is float32; a caller's float64 stays outside
    jax_threefry_partitionable  True   random numbers do not depend on how they are split over devices
    jax_disable_jit             False  step by step, the same programs round otherwise
    jax_debug_nans, _infs       False  where there is no noise, infinities are computed on purpose; every loss
                                       and every bound is checked
    jax_error_checking_...      ignore for the same reason
    jax_transfer_guard...       allow  numbers go to the devices and come back

The generator and its seed are pinned by `jvdm.core.keys`, the kinds of draws by `jvdm.core.random`, and the
precision of products outside training by `jvdm.core.precision`. In training, products have the precision that
`jax_default_matmul_precision` asks for. Types and ranks are promoted nowhere, so that those settings change
nothing.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import jax

log = logging.getLogger("jvdm")

PINNED = {
    "jax_enable_x64": False,
    "jax_threefry_partitionable": True,
    "jax_disable_jit": False,
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    **{f"jax_error_checking_behavior_{kind}": "ignore" for kind in ("nan", "divide", "oob")},
    "jax_transfer_guard": "allow",
    **{
        f"jax_transfer_guard_{way}": "allow"
        for way in ("host_to_device", "device_to_host", "device_to_device")
    },
}

# What may change the rounding of a number, and its default.
_RECORDED = {
    "jax_default_matmul_precision": None,
    "jax_disable_most_optimizations": False,
    "jax_allow_f16_reductions": True,
    "jax_softmax_custom_jvp": False,
    "jax_use_direct_linearize": True,
    "jax_optimization_level": "UNKNOWN",
    "jax_exec_time_optimization_effort": 0.0,
}
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE", "TF_CUDNN_DETERMINISTIC")


def _value(name: str) -> Any:
    """A setting, as a context has it or as the process does: JAX gives only some of them as attributes.

    Raises:
        KeyError: this JAX has no such setting.
    """
    config: Any = jax.config
    return getattr(config, name) if hasattr(config, name) else config.values[name]


def pin() -> None:
    """Pin the settings for this process, and say which the user had set otherwise."""
    for name, value in PINNED.items():
        found = _value(name)
        if found not in (value, None):  # a transfer guard that is not set
            log.warning("WARNING: %s=%s is ignored: jvdm computes with %s", name, found, value)
            jax.config.update(name, value)


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """The pinned settings inside the block, and the caller's again after it: for calls as a library."""
    with contextlib.ExitStack() as stack:
        for context in (
            jax.enable_x64(False),
            jax.threefry_partitionable(True),
            jax.disable_jit(False),
            jax.debug_nans(False),
            jax.debug_infs(False),
            jax.transfer_guard("allow"),
        ):
            stack.enter_context(context)
        yield


def recorded() -> dict[str, str]:
    """The settings that are not JAX's defaults and may change rounding, for a record; by name."""
    found = {name: str(value) for name, default in _RECORDED.items() if (value := _value(name)) != default}
    return found | {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
