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

Number of blocks, attention and schedule are read off the tree. From these follows which leaves there
must be; one too many or too few is an error.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jvdm.core import trees
from jvdm.core.errors import UserError
from jvdm.importers import flax_checkpoint
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


class Leaf(NamedTuple):
    """Where one leaf of the source goes.

    Attributes:
        source, target: '/'-joined paths.
        entry: which one of the target's first axis, or None for all of the target.
    """

    source: str
    target: str
    entry: int | None = None


def read(path: str | Path, codebase: str = CODEBASE) -> Imported:
    """The checkpoint at `path`, as `flax_checkpoint.find` takes it.

    Args:
        path: of the checkpoint.
        codebase: that it is taken to be of, for messages.

    Raises:
        UserError: there is none, it is corrupt, or it has another tree.
    """
    return read_with(functools.partial(convert, codebase=codebase), path)


def read_with(convert: Callable[[flax_checkpoint.Tree, str], dict[str, Any]], path: str | Path) -> Imported:
    """The checkpoint at `path`, its trees converted by (tree, name of the tree) -> parameters.

    Raises:
        UserError: as of `read`.
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
        UserError: a leaf is missing, is left over, or is unlike its fellows in a stack.
    """
    source = flax_checkpoint.flatten(tree)
    arrays = gather(source, correspondence(source), name, codebase)
    for target in ("schedule/b", "schedule/w"):
        if target in arrays and arrays[target].shape == (1,):
            arrays[target] = arrays[target].reshape(())
    return {"network": {}, "schedule": {}} | trees.nest(arrays)


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
        UserError: as of `convert`.
    """
    leaves = list(leaves)
    expected = {leaf.source for leaf in leaves}
    surplus = sorted(set(source) - expected)
    missing = sorted(expected - set(source))
    if missing:
        also = f", and {surplus[0]!r} is not expected" if surplus else ""
        raise UserError(f"{name} is not a tree of {codebase}: {missing[0]!r} is missing{also}")
    if surplus:
        raise UserError(f"{name} is not a tree of {codebase}: {surplus[0]!r} is not expected")

    stacks: dict[str, list[np.ndarray]] = {}
    for leaf in leaves:
        array = source[leaf.source]
        if array.dtype.kind in "biu":
            raise UserError(f"{name}: {leaf.source!r} holds {array.dtype}, not floating point")
        array = array.astype(np.float32)
        stack = stacks.setdefault(leaf.target, [])
        if stack and stack[0].shape != array.shape:
            raise UserError(
                f"{name}: {leaf.source!r} has shape {array.shape}, but entry 0 of its stack {stack[0].shape}"
            )
        stack.append(array)

    stacked = {leaf.target for leaf in leaves if leaf.entry is not None}
    return {
        target: np.stack(arrays) if target in stacked else np.asarray(arrays[0])
        for target, arrays in stacks.items()
    }


def correspondence(paths: Iterable[str]) -> Iterator[Leaf]:
    """Every leaf that the source must have, entries of a stack in order.

    Args:
        paths: the '/'-joined paths of the leaves of a source tree, which tell depth, attention and
            schedule.
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
        ways: "down" or "up" or both, besides its ends and middle.
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
    """What the VDM code fixes and no shape reveals.

    Raises:
        UserError: a model with such weights would compute something else.
    """
    check_components(model, CODEBASE, parameterizations=("noise",), paths=("variance_preserving",))


def check_components(
    model: "Model", codebase: str, *, parameterizations: Sequence[str], paths: Sequence[str]
) -> None:
    """Whether a model has the network of the VDM code, and one of the given other parts.

    Args:
        model: the one that the config selects.
        codebase: for messages.
        parameterizations, paths: names in their registries.

    Raises:
        UserError: a model with such weights would compute something else.
    """
    from jvdm.diffusion.parameterizations import PARAMETERIZATIONS
    from jvdm.diffusion.paths import PATHS
    from jvdm.networks import GammaInput
    from jvdm.networks.unet import VDMUNet

    needs = f"a checkpoint of {codebase} needs"
    network = model.network
    if not isinstance(network, VDMUNet):
        raise UserError(f"{needs} config.network.name=vdm_unet")
    for option, part, registry, names in (
        ("parameterization", model.parameterization, PARAMETERIZATIONS, parameterizations),
        ("path", model.path, PATHS, paths),
    ):
        if not isinstance(part, tuple(registry.component(name) for name in names)):
            raise UserError(f"{needs} config.{option}.name={' or '.join(names)}")
    if not isinstance(model.time_input, GammaInput):
        raise UserError(f"{needs} a network that sees gamma, not config.model.time_input=t")
    for option, value in (("num_heads", 1), ("norm_epsilon", 1e-6)):
        if getattr(network, option) != value:
            raise UserError(f"{needs} config.network.{option}={value}, not {getattr(network, option)}")
    check_blocks(network, "config.network", needs)


def check_blocks(network: Any, section: str, needs: str) -> None:
    """Whether a network of `jvdm.networks.unet`'s blocks has the groups and Fourier features of the VDM code.

    Args:
        network: has `groups` and `fourier`.
        section: of the config, for messages.
        needs: the beginning of a message.

    Raises:
        UserError: as of `check_components`.
    """
    if network.groups != 32:
        raise UserError(
            f"{needs} {section}.num_groups=32 (with {network.channels} "
            f"channels, {network.num_groups} gives {network.groups})"
        )
    exponents = (network.fourier_first, network.fourier_last)
    if network.fourier and exponents != (6, 7):
        raise UserError(
            f"{needs} {section}.fourier_first=6 and "
            f"{section}.fourier_last=7, not {exponents[0]} and {exponents[1]}"
        )
