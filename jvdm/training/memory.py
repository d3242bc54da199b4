"""Whether a training step fits its device, and settings that make it fit, by the programs' own figures."""

import logging
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from jvdm import model as model_lib
from jvdm.core import host_memory
from jvdm.core.errors import UserError
from jvdm.core.records import Batch
from jvdm.core.registry import Config
from jvdm.model import Model
from jvdm.networks.layers import REMATS
from jvdm.runs.state import TrainState
from jvdm.training.step import make_train_step

log = logging.getLogger("jvdm")

# Compiling a large step takes a minute or more.
MOST_TRIALS = 4


def compile_step(
    model: Model, config: Config, mesh: Mesh, state: TrainState, batches: Batch, *, resumed: bool
) -> Any:
    """The compiled training step.

    Args:
        model: what is trained.
        config: all of it.
        mesh: the devices.
        state, batches: what the step is called with, or their shapes.
        resumed: the run exists, so that only fields that are free on a resume may be advised.

    Returns:
        As `jax.stages.Compiled`.

    Raises:
        UserError: it needs more memory than a device has; the message names settings that fit.
    """
    log.info("compiling the training step")
    compiled = make_train_step(model, config, mesh).lower(state, batches).compile()
    memory, have, device = compiled.memory_analysis(), device_memory(), jax.local_devices()[0].device_kind
    if memory is None:
        return compiled
    # The state is donated: its output takes the place of its input.
    need = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    log.info(
        "one step needs %.2f GB per device (%.2f GB state and batch, %.2f GB temporary); %s has %.1f GB",
        *(size / 1e9 for size in (need, memory.argument_size_in_bytes, memory.temp_size_in_bytes)),
        device,
        have / 1e9,
    )
    if need <= have:
        return compiled
    log.info("that is too much; looking for settings that fit")
    settings, least = _that_fit(model, config, mesh, state, batches, have)
    if settings:
        advice = f"with {settings} it needs {least / 1e9:.2f} GB"
    else:
        tried = f" (the least that was tried needs {least / 1e9:.2f} GB)" if least else ""
        smaller = "" if resumed else ", a smaller config.training.batch_size or a smaller network"
        halving = "; config.network.name=ddpm_unet works at lower resolutions"
        advice = f"use more devices{smaller}{tried}" + halving * (not resumed and "fourier" in config.network)
    raise UserError(
        f"a training step needs {need / 1e9:.2f} GB per device, and {device} has {have / 1e9:.2f} GB: "
        f"{advice}"
    )


def device_memory() -> int:
    """Bytes that a program may use on one of this process's devices."""
    stats = jax.local_devices()[0].memory_stats() or {}
    # CPU devices share what the machine has, or a container's part of it.
    return stats.get("bytes_limit") or host_memory.available() // jax.local_device_count()


def _that_fit(
    model: Model, config: Config, mesh: Mesh, state: TrainState, batches: Batch, have: int
) -> tuple[str, int]:
    """(flags of the first settings that fit, the bytes they need), or ("", the least that any needs)."""
    least = []
    for settings in list(_settings(config, mesh))[:MOST_TRIALS]:
        trial = config.copy_and_resolve_references().unlock()
        for field, value in settings.items():
            section, name = field.split(".")
            trial[section][name] = value
        changed = model_lib.build(trial.lock(), model.data_shape, model.num_levels)
        memory = make_train_step(changed, trial, mesh).lower(state, batches).compile().memory_analysis()
        least.append(memory.argument_size_in_bytes + memory.temp_size_in_bytes)
        if least[-1] <= have:
            return " ".join(f"--config.{field}={value}" for field, value in settings.items()), least[-1]
    return "", min(least, default=0)


def _settings(config: Config, mesh: Mesh) -> Iterator[dict[str, Any]]:
    """Settings that need less memory, those first that cost least; a resumed run may have all of them."""
    has_remat = "remat" in config.network
    if has_remat:
        for remat in REMATS[REMATS.index(config.network.remat) + 1 :]:
            yield {"network.remat": remat}
    per_device = config.training.batch_size // mesh.size
    for microbatches in (2**n * config.training.microbatches for n in range(1, 32)):
        if per_device % microbatches:
            return
        remat = {"network.remat": "full"} if has_remat and config.network.remat != "full" else {}
        yield {"training.microbatches": microbatches, **remat}
