"""The device mesh, and how arrays are sharded over it.

One mesh with the axes `data` and `fsdp` over all devices of all processes; one device is the smallest mesh.

    1. Batches are split along their example axis, over both.
    2. What training carries is split over `fsdp`: of every leaf its largest dimension that divides, of equals
       the last. Small leaves, and all of them where `fsdp` is 1, are replicated.
    3. Evaluation, sampling and pictures take replicated weights.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jvdm.core.errors import UserError

AXES = ("data", "fsdp")
SMALL = 1024  # elements of a leaf that is not worth splitting


def make_mesh(devices: Sequence[Any] | None = None, *, fsdp: int = 1) -> Mesh:
    """A mesh over the given devices (all of them by default).

    Args:
        devices: to be used, in any order. A process's own are neighbours in the mesh, so that its part of a
            batch is one piece of it, and `fsdp` stays within a host where it can.
        fsdp: over how many devices the state is split.

    Raises:
        UserError: `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        choices = [str(n) for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise UserError(
            f"config.training.fsdp is {fsdp}, which does not divide {len(devices)} device(s): "
            f"choose {', '.join(choices)}"
        )
    devices = sorted(devices, key=lambda d: (d.process_index, d.id))
    return Mesh(np.array(devices, object).reshape(-1, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Replicated: every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Split along `axis` over all devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXES))


def of_state(tree: Any, mesh: Mesh) -> Any:
    """The sharding of each leaf of what training carries.

    Args:
        tree: whatever has shapes: arrays, or what `jax.eval_shape` returns.
        mesh: of `make_mesh`.
    """
    parts = mesh.shape["fsdp"]

    def sharding_of(leaf):
        dividing = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or leaf.size < SMALL or not dividing:
            return replicated(mesh)
        axis = max(dividing, key=lambda axis: (leaf.shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    return jax.tree.map(sharding_of, tree)


def gather(tree: Any, mesh: Mesh) -> Any:
    """The same arrays, replicated; all processes must call it."""
    if mesh.shape["fsdp"] == 1:
        return tree
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)


def to_devices(tree: Any, sharding: NamedSharding) -> Any:
    """Global arrays from each process's own part (all of it, where there is one process)."""
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), tree)


def evaluation_batch(name: str, batch_size: int, mesh: Mesh) -> int:
    """The batch size rounded up to a multiple of the devices: the rest is padding.

    Raises:
        UserError: it is not positive.
    """
    if batch_size < 1:
        raise UserError(f"{name} is {batch_size}: give 1 or more")
    return -(-batch_size // mesh.size) * mesh.size


def check_batch(name: str, batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
    """Refuse a batch that does not divide evenly.

    Raises:
        UserError: naming the field, the numbers and the nearest sizes that would do.
    """
    unit = mesh.size * microbatches
    if batch_size <= 0 or batch_size % unit:
        below = max(unit, batch_size // unit * unit)
        what = f"{mesh.size} device(s)" + (f" x {microbatches} microbatches" if microbatches > 1 else "")
        raise UserError(
            f"{name} is {batch_size}, not a positive multiple of {what}: try {below} or {below + unit}"
        )
