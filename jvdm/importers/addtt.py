"""Checkpoints of addtt's PyTorch code of VDM (2107.00630): its parameters -> those of `VDMUNet`.

`model.pt` is a dict with the keys `step`, `model`, `opt` and `ema`. `model` has the names below; in `ema`
they follow `ema_model.`, for the moving average. `config.yaml` beside it has the settings.

    model.embed_conditioning.{0,2}           condition1, condition2
    model.conv_in, model.conv_out.{0,2}      conv_in, norm_out, conv_out
    model.{down,up}_blocks.<i>               {down,up}, entry i of axis 0
        .resnet_block, .attention_block          block, attention
    model.mid_resnet_block_{1,2}             middle1, middle2
    model.mid_attn_block                     middle_attention
    gamma.{b,w}                              schedule/{b,w}; a fixed schedule has none

The axes of kernels are in another order, and besides

    1. the kernel of condition1 gets a row of zeros for the conditioning, which this code does not have
    2. query, key and value are one layer, in this order
    3. the Fourier features are sines, then cosines, as ours are; but within each exponent by exponent, and
       ours are channel by channel
    4. the second convolution of a block is net2.3 if the network has dropout, and net2.2 otherwise

Number of blocks, attention, dropout and schedule are read off the names. From these follows which leaves
there must be; one too many or too few is an error.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jvdm.core import trees
from jvdm.core.errors import UserError
from jvdm.importers import shapes, torch_archive, torch_layers
from jvdm.importers.inert_pickle import brief, kind
from jvdm.importers.records import Imported

if TYPE_CHECKING:
    from jvdm.model import Model

CODEBASE = "addtt's VDM code"

_ENDS = {
    "model.embed_conditioning.0": ("condition1", "embedding"),
    "model.embed_conditioning.2": ("condition2", "dense"),
    "model.conv_in": ("conv_in", "input"),
    "model.conv_out.0": ("norm_out", "norm"),
    "model.conv_out.2": ("conv_out", "conv"),
}
_BLOCK = {
    "net1.0": ("norm1", "norm"),
    "net1.2": ("conv1", "conv"),
    "cond_proj": ("condition", "no_bias"),
    "net2.0": ("norm2", "norm"),
}
_ATTENTION = {
    "layers.0": ("norm", "norm"),
    "layers.1": ("query key value", "pointwise"),
    "layers.3": ("out", "pointwise"),
}
_SHORTCUT = {"skip_conv": ("shortcut", "pointwise")}
_SCHEDULES = {"fixed_linear": "fixed_linear", "learned_linear": "learned_scalar"}


class Leaf(NamedTuple):
    """Where one parameter of the source goes.

    Attributes:
        source: its dotted name.
        targets: '/'-joined paths, each of an equal part of the source's first axis.
        layout: a key of `torch_layers.LAYOUTS`, or input.
        entry: which one of a target's first axis, or None for all of the target.
    """

    source: str
    targets: tuple[str, ...]
    layout: str
    entry: int | None = None


def load(path: str | Path, model: "Model") -> Imported:
    """The checkpoint at `path`, checked against the model, and with `config.yaml` if that is there.

    Raises:
        UserError: as `read` does, or the config selects another model.
    """
    imported = read(path)
    check_settings(model)
    file = _file(path)
    _compare(settings(file.with_name("config.yaml")), model)
    expected = shapes.expected_by(model)
    shapes.check(imported.params, expected, "params")
    shapes.check(imported.ema_params, expected, "ema_params")
    return imported


def read(path: str | Path) -> Imported:
    """The checkpoint at `path`, a file, or the folder of a `model.pt`.

    Raises:
        UserError: there is none, it is corrupt, or it is not of this code.
    """
    file = _file(path)
    saved = torch_archive.read(file)
    try:
        if not isinstance(saved, dict):
            raise UserError(f"not of {CODEBASE}: it holds {kind(saved)}, not a dict")
        for key in ("step", "model", "ema"):
            if key not in saved:
                keys = ", ".join(sorted(brief(repr(k)) for k in saved)[:8]) or "none"
                raise UserError(f"not of {CODEBASE}: it has no {key!r} (keys: {keys})")
        if not isinstance(saved["ema"], dict):
            raise UserError(f"not of {CODEBASE}: 'ema' is {kind(saved['ema'])}, not a dict")
        named = {k: v for k, v in saved["ema"].items() if isinstance(k, str) and k.startswith("ema_model.")}
        ema = {k.removeprefix("ema_model."): v for k, v in named.items()}
        return Imported(_step(saved["step"]), convert(saved["model"]), convert(ema, "ema"))
    except UserError as error:
        raise UserError(f"checkpoint {file}: {error}") from error


def settings(path: Path) -> dict[str, str]:
    """The settings in a `config.yaml`, as text; none if there is no such file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        if not path.is_file():
            return {}
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise UserError(f"cannot read the settings {path}: {reason}") from error
    pattern = re.compile(r"""(\w+):\s+(["']?)(.*?)\2\s*(#.*)?""")
    found = (pattern.fullmatch(line) for line in lines if len(line) < 200)
    return {m[1]: m[3] for m in found if m}


def convert(source: Any, name: str = "model") -> dict[str, Any]:
    """jvdm's parameters from those of this code.

    Args:
        source: arrays by dotted name.
        name: of all of them, for messages.

    Returns:
        Nested dicts of float32 arrays, `{"network", "schedule"}`.

    Raises:
        UserError: a leaf is missing, is left over, has an impossible shape, or is unlike its fellows in a
            stack.
    """
    if not isinstance(source, Mapping):
        raise UserError(f"{name!r} is {kind(source)}, not a dict")
    for leaf, array in source.items():
        if not isinstance(leaf, str) or not isinstance(array, np.ndarray):
            raise UserError(f"{name!r} has {kind(array)} at {brief(repr(leaf))}, not a tensor at a name")
    leaves = list(correspondence(source))
    expected = {leaf.source for leaf in leaves}
    surplus, missing = sorted(set(source) - expected), sorted(expected - set(source))
    if missing:
        also = f", and {brief(surplus[0])!r} is not expected" if surplus else ""
        raise UserError(f"{name!r} has not the parameters of {CODEBASE}: {missing[0]!r} is missing{also}")
    if surplus:
        raise UserError(
            f"{name!r} has not the parameters of {CODEBASE}: {brief(surplus[0])!r} is not expected"
        )

    stacks: dict[str, list[np.ndarray]] = {}
    for leaf in leaves:
        for target, array in zip(leaf.targets, _arrange(source, leaf, name), strict=True):
            stack = stacks.setdefault(target, [])
            if stack and stack[0].shape != array.shape:
                raise UserError(f"{name!r}: {leaf.source!r} has not the shape of its fellow in block 0")
            stack.append(array)
    stacked = {target for leaf in leaves if leaf.entry is not None for target in leaf.targets}
    params = {
        target: np.stack(arrays) if target in stacked else arrays[0] for target, arrays in stacks.items()
    }
    return {"network": {}, "schedule": {}} | trees.nest(params)


def correspondence(names: Any) -> Iterator[Leaf]:
    """Every leaf that the source must have, entries of a stack in order.

    Args:
        names: of the source, which tell depth, attention, dropout and schedule.
    """
    blocks = {m[1] for name in names if (m := re.match(r"model\.down_blocks\.(\d{1,9})\.", name))}
    attention = any(re.match(r"model\.(down|up)_blocks\.\d{1,9}\.attention_block\.", name) for name in names)
    dropout = any(re.search(r"\.net2\.3\.", name) for name in names)
    block = {**_BLOCK, f"net2.{3 if dropout else 2}": ("conv2", "conv")}

    yield from _layers("", "network", _ENDS)
    for i in (1, 2):
        yield from _layers(f"model.mid_resnet_block_{i}.", f"network/middle{i}", block)
    yield from _layers("model.mid_attn_block.", "network/middle_attention", _ATTENTION)
    for way, length, layers in (("down", len(blocks), block), ("up", len(blocks) + 1, block | _SHORTCUT)):
        for i in range(length):
            prefix, target = f"model.{way}_blocks.{i}", f"network/{way}"
            yield from _layers(f"{prefix}.resnet_block.", f"{target}/block", layers, i)
            if attention:
                yield from _layers(f"{prefix}.attention_block.", f"{target}/attention", _ATTENTION, i)
    if any(name.startswith("gamma.") for name in names):
        yield from (Leaf(f"gamma.{name}", (f"schedule/{name}",), "scalar") for name in ("b", "w"))


def _layers(
    source: str, target: str, layers: Mapping[str, tuple[str, str]], entry: int | None = None
) -> Iterator[Leaf]:
    for name, (ours, layout) in layers.items():
        targets = [f"{target}/{part}" for part in ours.split()]
        leaves = {"weight": ("kernel", layout), "bias": ("bias", "vector")}
        if layout == "norm":
            leaves = {"weight": ("norm/scale", "vector"), "bias": ("norm/bias", "vector")}
        elif layout == "no_bias":
            leaves = {"weight": ("kernel", "dense")}
        for leaf, (last, order) in leaves.items():
            yield Leaf(f"{source}{name}.{leaf}", tuple(f"{t}/{last}" for t in targets), order, entry)


def _arrange(source: Mapping[str, np.ndarray], leaf: Leaf, name: str) -> list[np.ndarray]:
    """One array for each target, in our order, outputs last, float32."""
    array, where = source[leaf.source], f"{name!r}: {leaf.source!r}"
    if leaf.layout == "input":
        torch_layers.check(array, "conv", where)
        array = _channel_by_channel(array, source["model.conv_out.2.bias"].size, where)
    array = torch_layers.arrange(array, "conv" if leaf.layout == "input" else leaf.layout, where)
    if not array.ndim:
        return [array]
    if array.shape[-1] % len(leaf.targets):
        raise UserError(f"{where} has {array.shape[-1]} outputs, which are not of {len(leaf.targets)} layers")
    return [np.ascontiguousarray(part) for part in np.split(array, len(leaf.targets), axis=-1)]


def _channel_by_channel(kernel: np.ndarray, channels: int, where: str) -> np.ndarray:
    """Item (3) of the input convolution's kernel [o, i, 3, 3]."""
    features = kernel.shape[1] - channels
    if channels < 1 or features < 0 or features % (2 * channels):
        raise UserError(f"{where} has {kernel.shape[1]} inputs, which are not of {channels} channels")
    parts = kernel[:, channels:].reshape(len(kernel), 2, -1, channels, 3, 3).swapaxes(2, 3)
    return np.concatenate([kernel[:, :channels], parts.reshape(len(kernel), features, 3, 3)], axis=1)


def _file(path: str | Path) -> Path:
    path = Path(path)
    try:
        return path / "model.pt" if path.is_dir() else path
    except OSError:  # what is wrong with it, reading it will tell
        return path


def _step(value: Any) -> int:
    if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "iu":
        value = value.item()
    if type(value) is not int or value < 0:
        raise UserError(f"'step' is {kind(value)}, not a number of steps")
    return value


def _compare(theirs: Mapping[str, str], model: "Model") -> None:
    """What `config.yaml` says of the config.

    Raises:
        UserError: names the first option that differs, and the checkpoint's value.
    """
    from jvdm.diffusion.schedules import SCHEDULES

    network: Any = model.network
    if "noise_schedule" in theirs:
        name = _SCHEDULES.get(theirs["noise_schedule"])
        if name is None:
            raise UserError(f"unknown noise_schedule {brief(theirs['noise_schedule'])} in config.yaml")
        if not isinstance(model.schedule, SCHEDULES.component(name)):
            raise UserError(f"the checkpoint does not fit the config: it needs config.schedule.name={name}")
    for key, option, ours in (
        ("input_channels", None, model.image_shape[-1]),
        ("embedding_dim", "network.channels", network.channels),
        ("n_blocks", "network.num_blocks", network.num_blocks),
        ("attention_everywhere", "network.attention", network.attention),
        ("n_attention_heads", "network.num_heads", network.num_heads),
        ("use_fourier_features", "network.fourier", network.fourier),
        ("norm_groups", "network.num_groups", network.groups),
        ("gamma_min", "schedule.gamma_min", model.schedule.gamma_min),
        ("gamma_max", "schedule.gamma_max", model.schedule.gamma_max),
    ):
        if key in theirs and _number(theirs[key]) != ours:
            what = f"config.{option} is {ours}" if option else f"images have {ours} channels"
            raise UserError(
                f"the checkpoint does not fit the config: {what}, but {key} of config.yaml is "
                f"{brief(theirs[key])}"
            )


def _number(text: str) -> float | None:
    """Of a number, or of true and false."""
    try:
        return {"true": 1.0, "false": 0.0}.get(text.lower()) if text.isalpha() else float(text)
    except ValueError:
        return None


def check_settings(model: "Model") -> None:
    """What this code fixes and no shape reveals.

    Raises:
        UserError: a model with such weights would compute something else.
    """
    from jvdm.diffusion.parameterizations import PARAMETERIZATIONS
    from jvdm.diffusion.paths import PATHS
    from jvdm.diffusion.transforms import DATA_MAPS
    from jvdm.networks import GammaInput
    from jvdm.networks.unet import VDMUNet

    needs = f"a checkpoint of {CODEBASE} needs"
    for option, part, component in (
        ("network.name=vdm_unet", model.network, VDMUNet),
        ("parameterization.name=noise", model.parameterization, PARAMETERIZATIONS.component("noise")),
        ("path.name=variance_preserving", model.path, PATHS.component("variance_preserving")),
        ("model.time_input=gamma", model.time_input, GammaInput),
        ("data_map.name=scaling", model.data_map, DATA_MAPS.component("scaling")),
    ):
        if not isinstance(part, component):
            raise UserError(f"{needs} config.{option}")
    network: Any = model.network
    if network.norm_epsilon != 1e-5:
        raise UserError(f"{needs} config.network.norm_epsilon=1e-5, not {network.norm_epsilon}")
    exponents = (network.fourier_first, network.fourier_last)
    if network.fourier and exponents != (5, 6):
        raise UserError(
            f"{needs} config.network.fourier_first=5 and config.network.fourier_last=6, "
            f"not {exponents[0]} and {exponents[1]}"
        )
