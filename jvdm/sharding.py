"""The device mesh and how arrays lie on it.

One mesh with a `data` axis over all devices of all processes; one device is the smallest mesh.
Parameters are replicated, batches are split along their example axis.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jvdm.errors import UserError


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with one axis, `data`, over the given devices (all of them by default)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Split along `axis` over the mesh's `data` axis."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


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
