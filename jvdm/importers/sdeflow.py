"""Checkpoints of sdeflow (2106.02808): PyTorch's parameters of its drift network -> those of `DDPMUNet`.

`checkpoint.pt` is a list of whole objects: the generative SDE, whose module `a` is the network; the
optimizer; whether training goes on; the number of steps taken. For level l, whose blocks i counts:

    a.temb_net.main.{0,2}                             condition1, condition2
    a.begin_conv, a.end_conv.{0,2}                    conv_in, norm_out, conv_out
    a.down_modules.<l>.<l>a_<i>a_block, a_<i>b_attn   down_<l>_<i>, down_<l>_<i>_attention
    a.down_modules.<l>.<l>b_downsample                downsample_<l>
    a.mid_modules.{0,1,2}                             middle1, middle_attention, middle2
    a.up_modules.<last - l>.<l>a_<i>a_block, ...      up_<l>_<i>, up_<l>_<i>_attention
    a.up_modules.<last - l>.<l>b_upsample.up_conv     upsample_<l>
    T, base_sde.T                                     must be 1

Kernels have their axes in another order (`jvdm.importers.torch_layers`). sdeflow keeps no moving average:
`ema_params` are the parameters themselves.

Names and shapes determine levels, blocks, attention and resampling, and hence which leaves are expected. A
missing or an unexpected leaf is an error. All of these, and beta, are compared with the config.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from flax.traverse_util import unflatten_dict

from jvdm.core.errors import UserError
from jvdm.importers import requirements, shapes, torch_archive, torch_layers, torch_modules
from jvdm.importers.inert_values import Record
from jvdm.importers.leaf import Leaf, check_names
from jvdm.importers.messages import brief
from jvdm.importers.records import Imported

if TYPE_CHECKING:
    from jvdm.model import Model

CODEBASE = "sdeflow"

_BLOCK = {
    "temb_proj": ("condition", "dense"),
    "norm1": ("norm1", "norm"),
    "conv1": ("conv1", "conv"),
    "norm2": ("norm2", "norm"),
    "conv2": ("conv2", "conv"),
}
_SHORTCUT = {"shortcut": ("shortcut", "pointwise")}
_ATTENTION = {
    "norm": ("norm", "norm"),
    "attn_q": ("query", "pointwise"),
    "attn_k": ("key", "pointwise"),
    "attn_v": ("value", "pointwise"),
    "proj_out": ("out", "pointwise"),
}
_ENDS = {
    "temb_net.main.0": ("condition1", "embedding"),
    "temb_net.main.2": ("condition2", "dense"),
    "begin_conv": ("conv_in", "conv"),
    "end_conv.0": ("norm_out", "norm"),
    "end_conv.2": ("conv_out", "conv"),
}
_TIMES = ("T", "base_sde.T")


class Architecture(NamedTuple):
    """The options of `DDPMUNet` that follow from the names and shapes of a tree.

    Attributes:
        channels, num_res_blocks, resample_with_conv: as there; 0 and False for an incomplete tree.
        multipliers: one for each level, as there.
        attention: levels whose blocks are followed by attention.
    """

    channels: int
    multipliers: tuple[int, ...]
    num_res_blocks: int
    resample_with_conv: bool
    attention: tuple[int, ...]


def load(path: str | Path, model: "Model") -> Imported:
    """Read a checkpoint and check it against the model.

    Raises:
        UserError: as in `read`, or the model is another one.
    """
    check_settings(model)
    saved = _open(path)
    _check_options(saved, model)
    imported = saved.imported
    shapes.check(imported.params, shapes.expected_by(model), "params")
    return imported


def read(path: str | Path) -> Imported:
    """Read a checkpoint, a file or the folder of a `checkpoint.pt`.

    Raises:
        UserError: there is no checkpoint, it is corrupt, or it was not written by sdeflow.
    """
    return _open(path).imported


def convert(source: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """jvdm's parameters from those of sdeflow.

    Args:
        source: arrays by dotted name.

    Returns:
        Nested dicts of float32 arrays, `{"network", "schedule"}`, the latter empty.

    Raises:
        UserError: a leaf is missing or unexpected, or has an impossible shape.
    """
    leaves = list(correspondence(source))
    check_names(source, [*(leaf.source for leaf in leaves), *_TIMES], "the module", CODEBASE)
    for name in _TIMES:
        if source[name].size != 1 or source[name].item() != 1.0:
            raise UserError(f"{name} is not 1, as sdeflow's configs have it")

    network = {
        leaf.target: torch_layers.arrange(source[leaf.source], leaf.layout, repr(leaf.source))
        for leaf in leaves
    }
    return {"network": unflatten_dict(network, sep="/"), "schedule": {}}


def architecture(source: Mapping[str, np.ndarray]) -> Architecture:
    """The architecture of arrays by dotted name, even if some are missing."""
    levels, blocks, attention = set(), set(), set()
    for name in source:
        if m := re.match(r"a\.down_modules\.(\d{1,9})\.", name):
            levels.add(m[1])
        if m := re.match(r"a\.down_modules\.0\.0a_(\d{1,9})a_block\.", name):
            blocks.add(m[1])
        if m := re.match(r"a\.(?:down|up)_modules\.\d{1,9}\.(\d{1,9})a_\d{1,9}b_attn\.", name):
            attention.add(int(m[1]))

    def features(name: str) -> int:
        return source[name].size if name in source else 0

    channels = features("a.begin_conv.bias")
    widths = [features(f"a.down_modules.{n}.{n}a_0a_block.conv1.bias") for n in range(len(levels))]
    return Architecture(
        channels=channels,
        multipliers=tuple(width // max(channels, 1) for width in widths),
        num_res_blocks=len(blocks),
        resample_with_conv=any("b_downsample." in name or "b_upsample." in name for name in source),
        attention=tuple(sorted(attention)),
    )


def correspondence(source: Mapping[str, np.ndarray]) -> Iterator[Leaf]:
    """Every parameter that the network must have.

    Args:
        source: arrays by dotted name; names give the architecture, shapes the blocks with a shortcut.
    """
    found = architecture(source)
    last = len(found.multipliers) - 1

    def block(name: str, target: str) -> Iterator[Leaf]:
        yield from _leaves(name, target, _BLOCK)
        kernel = source.get(f"{name}.conv1.weight")
        if kernel is not None and kernel.ndim > 1 and kernel.shape[0] != kernel.shape[1]:
            yield from _leaves(name, target, _SHORTCUT)

    def blocks(way: str, index: int, level: int, number: int) -> Iterator[Leaf]:
        for i in range(number):
            name, target = f"a.{way}_modules.{index}.{level}a_{i}", f"{way}_{level}_{i}"
            yield from block(f"{name}a_block", target)
            if level in found.attention:
                yield from _leaves(f"{name}b_attn", f"{target}_attention", _ATTENTION)

    yield from _leaves("a", "", _ENDS)
    yield from block("a.mid_modules.0", "middle1")
    yield from _leaves("a.mid_modules.1", "middle_attention", _ATTENTION)
    yield from block("a.mid_modules.2", "middle2")
    for level in range(last + 1):
        index = last - level  # of the way up
        yield from blocks("down", level, level, found.num_res_blocks)
        yield from blocks("up", index, level, found.num_res_blocks + 1)
        if found.resample_with_conv and level < last:
            name = f"a.down_modules.{level}.{level}b_downsample"
            yield from torch_layers.leaves(name, f"downsample_{level}", "conv")
        if found.resample_with_conv and level:
            name = f"a.up_modules.{index}.{level}b_upsample.up_conv"
            yield from torch_layers.leaves(name, f"upsample_{level}", "conv")


def _leaves(source: str, target: str, layers: Mapping[str, tuple[str, str]]) -> Iterator[Leaf]:
    for name, (ours, layout) in layers.items():
        yield from torch_layers.leaves(f"{source}.{name}", f"{target}/{ours}".lstrip("/"), layout)


class _Saved(NamedTuple):
    """An open checkpoint.

    Attributes:
        source: arrays by dotted name.
        beta: beta_min and beta_max, if they are in the file.
        imported: its parameters in our form.
    """

    source: dict[str, np.ndarray]
    beta: dict[str, float]
    imported: Imported


def _open(path: str | Path) -> _Saved:
    saved = torch_archive.read(os.path.join(path, "checkpoint.pt") if os.path.isdir(path) else path)
    if not isinstance(saved, list) or len(saved) != 4 or not isinstance(saved[0], Record):
        raise UserError(
            f"checkpoint {path} is not a file of {CODEBASE}: it holds no list of module, optimizer, flag "
            "and step count"
        )
    module, step = saved[0], saved[3]
    if type(step) is not int or step < 0:
        raise UserError(
            f"checkpoint {path} is not a file of {CODEBASE}: its step count is {brief(repr(step))}"
        )
    try:
        source = torch_modules.state_dict(module)
        params = convert(source)
    except UserError as error:
        raise UserError(f"checkpoint {path}: {error}") from error
    sde = module.state["_modules"].get("base_sde")
    state = sde.state if isinstance(sde, Record) and isinstance(sde.state, dict) else {}
    beta = {name: state[name] for name in ("beta_min", "beta_max") if type(state.get(name)) in (int, float)}
    return _Saved(source, beta, Imported(step, params, params))


def _check_options(saved: _Saved, model: "Model") -> None:
    """Refuse a model whose options are not the checkpoint's.

    Raises:
        UserError: names the first option that differs, and the checkpoint's value.
    """
    network, found = model.network, architecture(saved.source)
    if len(found.multipliers) == 1:  # there is nothing to resample
        found = found._replace(resample_with_conv=network.resample_with_conv)
    heights = [model.data_shape[0] // 2**level for level in range(len(found.multipliers))]
    attention = tuple(height for height in heights if height in network.attention_resolutions)
    same = ("channels", "multipliers", "num_res_blocks", "resample_with_conv")
    for option, value, theirs in (
        *((f"network.{name}", getattr(network, name), getattr(found, name)) for name in same),
        ("network.attention_resolutions", attention, tuple(heights[level] for level in found.attention)),
        *((f"schedule.{name}", getattr(model.schedule, name), value) for name, value in saved.beta.items()),
    ):
        if value != theirs:
            raise UserError(
                f"the checkpoint does not fit the config: config.{option} is {value}, the checkpoint's is "
                f"{brief(str(theirs))}"
            )


def check_settings(model: "Model") -> None:
    """Refuse a model that differs from sdeflow in what no shape reveals.

    Raises:
        UserError: a model with such weights would compute something else.
    """
    requirements.check_components(
        model,
        CODEBASE,
        network=("ddpm_unet",),
        parameterization=("drift",),
        path=("variance_preserving",),
        schedule=("linear_beta",),
        time_input=("t",),
        data_map=("logit",),
    )
    requirements.check_values(
        model.network,
        "network",
        CODEBASE,
        time_scale=1.0,
        norm_epsilon=1e-6,
        downsample_padding="symmetric",
    )
    requirements.check_values(model.schedule, "schedule", CODEBASE, t_min=0.0)
    requirements.check_values(model.data_map, "data_map", CODEBASE, a=0.05)
    requirements.check_groups(model.network, "network", CODEBASE)
