"""Checkpoints of the official VDM code (2107.00630): its tree of parameters -> jvdm's.

Codes derived from it have the same tree (`jvdm.importers.idode`) or one of the same blocks
(`jvdm.importers.mulan`), and pass their own name for messages.

    score_model/dense0, dense1                    network/condition1, condition2
    score_model/conv_in, conv_out                 the same
    score_model/GroupNorm_0                       network/norm_out
    score_model/{down,up}.block_<i>               network/{down,up}/block, entry i of axis 0
    score_model/{down,up}.attn_<i>                network/{down,up}/attention, entry i of axis 0
    score_model/mid.block_1, mid.attn_1, .block_2 network/middle1, middle_attention, middle2
    gamma/{b,w}, of shape (1,)                    schedule/{b,w}, of shape ()
    gamma/{l1,l2,l3}                              schedule/{l1,l2,l3}

Names in the tree determine the number of blocks, attention and schedule, and hence the expected leaves.
A missing or an unexpected leaf is an error.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jvdm.core.errors import UserError
from jvdm.importers import flax_checkpoint, requirements
from jvdm.importers.leaf import Leaf, check_names, stack
from jvdm.importers.records import Imported

if TYPE_CHECKING:
    from jvdm.model import Model

CODEBASE = "the VDM code"

DENSE = {"kernel": "kernel", "bias": "bias"}
_NORM = {"scale": "norm/scale", "bias": "norm/bias"}


def within(**layers: tuple[str, dict[str, str]]) -> dict[str, str]:
    """Source path -> target path inside a block, from {source layer: (target layer, leaves)}."""
    return {f"{a}/{x}": f"{b}/{y}" for a, (b, leaves) in layers.items() for x, y in leaves.items()}


_DOWN_BLOCK = within(
    GroupNorm_0=("norm1", _NORM),
    conv1=("conv1", DENSE),
    cond_proj=("condition", {"kernel": "kernel"}),
    GroupNorm_1=("norm2", _NORM),
    conv2=("conv2", DENSE),
)
_UP_BLOCK = _DOWN_BLOCK | within(nin_shortcut=("shortcut", DENSE))
_ATTENTION = within(
    GroupNorm_0=("norm", _NORM),
    q=("query", DENSE),
    k=("key", DENSE),
    v=("value", DENSE),
    proj_out=("out", DENSE),
)
_ENDS = within(
    dense0=("condition1", DENSE),
    dense1=("condition2", DENSE),
    conv_in=("conv_in", DENSE),
    GroupNorm_0=("norm_out", _NORM),
    conv_out=("conv_out", DENSE),
)
_SCALAR = {"b": "b", "w": "w"}
_MONOTONE = within(l1=("l1", DENSE), l2=("l2", DENSE), l3=("l3", {"kernel": "kernel"}))


def read(path: str | Path, codebase: str = CODEBASE) -> Imported:
    """Read a checkpoint.

    Args:
        path: as for `flax_checkpoint.find`.
        codebase: for messages.

    Raises:
        UserError: there is no checkpoint, it is corrupt, or it has another tree.
    """
    return read_with(functools.partial(convert, codebase=codebase), path)


def read_with(convert: Callable[[flax_checkpoint.Tree, str], dict[str, Any]], path: str | Path) -> Imported:
    """Read a checkpoint whose trees `convert` turns into parameters: (tree, its name) -> parameters.

    Raises:
        UserError: as in `read`.
    """
    checkpoint = flax_checkpoint.read(path)
    try:
        return Imported(
            checkpoint.step,
            convert(checkpoint.params, "params"),
            convert(checkpoint.ema_params, "ema_params"),
        )
    except UserError as error:
        raise UserError(f"checkpoint {path}: {error}") from error


def convert(tree: flax_checkpoint.Tree, name: str = "params", codebase: str = CODEBASE) -> dict[str, Any]:
    """jvdm's parameters from those of the VDM code.

    Args:
        tree: nested dicts of numpy arrays, `{"score_model", "gamma"}`.
        name: of the tree, for messages.
        codebase: for messages.

    Returns:
        Nested dicts of float32 arrays, `{"network", "schedule"}`.

    Raises:
        UserError: a leaf is missing or unexpected, or the entries of a stack differ in shape.
    """
    source = cast(dict[str, np.ndarray], flatten_dict(tree, sep="/"))
    arrays = gather(source, correspondence(source), name, codebase)
    for target in ("schedule/b", "schedule/w"):
        if target in arrays and arrays[target].shape == (1,):
            arrays[target] = arrays[target].reshape(())
    return {"network": {}, "schedule": {}} | unflatten_dict(arrays, sep="/")


def gather(
    source: Mapping[str, np.ndarray], leaves: Iterable[Leaf], name: str, codebase: str
) -> dict[str, np.ndarray]:
    """Float32 arrays by target, entries stacked.

    Args:
        source: arrays by '/'-joined path.
        leaves: all that there must be; the entries of a stack in order.
        name: of the tree, for messages.
        codebase: for messages.

    Raises:
        UserError: as in `convert`.
    """

    def floating(leaf: Leaf) -> np.ndarray:
        array = source[leaf.source]
        if array.dtype.kind in "biu":
            raise UserError(f"{name}: {leaf.source!r} holds {array.dtype}, not floating point")
        return array.astype(np.float32)

    leaves = list(leaves)
    check_names(source, (leaf.source for leaf in leaves), name, codebase)
    return stack(leaves, floating, name)


def correspondence(paths: Iterable[str]) -> Iterator[Leaf]:
    """Every leaf that the source must have, entries of a stack in order.

    Args:
        paths: '/'-joined, of the source's leaves; they determine depth, attention and schedule.
    """
    paths = list(paths)
    yield from unet(paths, "score_model", "network", ways=("down", "up"))
    if any(path.startswith("gamma/l") for path in paths):
        yield from entries("gamma", "schedule", _MONOTONE)
    elif any(path.startswith("gamma/") for path in paths):
        yield from entries("gamma", "schedule", _SCALAR)


def unet(paths: Iterable[str], source: str, target: str, *, ways: Sequence[str]) -> Iterator[Leaf]:
    """The leaves of a U-Net, or of the parts of one.

    Args:
        paths: of the whole source tree.
        source, target: where the network is in either tree.
        ways: "down" or "up" or both; ends and middle are always there.
    """
    layers = {path.split("/")[1] for path in paths if path.startswith(f"{source}/")}
    num_blocks = sum(re.fullmatch(r"down\.block_\d+", layer) is not None for layer in layers)
    attention = any(re.match(r"(down|up)\.attn_", layer) for layer in layers)
    stacks = {"down": (num_blocks, _DOWN_BLOCK), "up": (num_blocks + 1, _UP_BLOCK)}

    yield from entries(source, target, _ENDS)
    yield from entries(f"{source}/mid.block_1", f"{target}/middle1", _DOWN_BLOCK)
    yield from entries(f"{source}/mid.attn_1", f"{target}/middle_attention", _ATTENTION)
    yield from entries(f"{source}/mid.block_2", f"{target}/middle2", _DOWN_BLOCK)
    for way in ways:
        length, block = stacks[way]
        for i in range(length):
            yield from entries(f"{source}/{way}.block_{i}", f"{target}/{way}/block", block, i)
            if attention:
                yield from entries(f"{source}/{way}.attn_{i}", f"{target}/{way}/attention", _ATTENTION, i)


def entries(source: str, target: str, names: Mapping[str, str], entry: int | None = None) -> Iterator[Leaf]:
    """The leaves of one layer, from {source path: target path} within it."""
    for a, b in names.items():
        yield Leaf(f"{source}/{a}", f"{target}/{b}", entry)


def check_settings(model: "Model") -> None:
    """Refuse a model that differs from the VDM code in what no shape reveals.

    Raises:
        UserError: a model with such weights would compute something else.
    """
    check_network(model, CODEBASE)


def check_network(
    model: "Model",
    codebase: str,
    *,
    parameterization: Sequence[str] = ("noise",),
    path: Sequence[str] = ("variance_preserving",),
    time_input: Sequence[str] = ("gamma",),
) -> None:
    """Refuse a model whose network, or use of it, is not that of the VDM code.

    Args:
        model: the one that the config selects.
        codebase: for messages.
        parameterization, path, time_input: names of those that the codebase has.

    Raises:
        UserError: a model with such weights would compute something else.
    """
    requirements.check_components(
        model,
        codebase,
        network=("vdm_unet",),
        parameterization=parameterization,
        path=path,
        time_input=time_input,
    )
    requirements.check_values(model.network, "network", codebase, num_heads=1, norm_epsilon=1e-6)
    check_blocks(model.network, "network", codebase)


def check_blocks(network: Any, section: str, codebase: str) -> None:
    """Refuse groups or Fourier features that are not the VDM code's.

    Args:
        network: of `jvdm.networks.unet`'s blocks.
        section: of the config that selects it.
        codebase: for messages.

    Raises:
        UserError: as in `check_network`.
    """
    requirements.check_groups(network, section, codebase)
    if network.fourier:
        requirements.check_values(network, section, codebase, fourier_first=6, fourier_last=7)
