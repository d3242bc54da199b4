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

Kernels have their axes in another order (`jvdm.importers.torch_layers`), and

    1. query, key and value are one layer, in this order
    2. sines and cosines of the Fourier features are ordered by exponent, ours by channel
    3. the second convolution of a block is net2.3 if the network has dropout, and net2.2 otherwise

Names determine the number of blocks, attention, dropout and schedule, and hence the expected leaves. A
missing or an unexpected leaf is an error.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flax.traverse_util import unflatten_dict

from jvdm.core.errors import UserError
from jvdm.importers import requirements, shapes, torch_archive, torch_layers
from jvdm.importers.inert_values import kind
from jvdm.importers.leaf import Leaf, check_names, stack
from jvdm.importers.messages import brief
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


def load(path: str | Path, model: "Model") -> Imported:
    """Read a checkpoint and check it, and a `config.yaml` beside it, against the model.

    Raises:
        UserError: as in `read`, or the config selects another model.
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
    """Read a checkpoint, a file or the folder of a `model.pt`.

    Raises:
        UserError: there is no checkpoint, it is corrupt, or it was not written by this code.
    """
    file = _file(path)
    saved = torch_archive.read(file)
    try:
        if not isinstance(saved, dict):
            raise UserError(f"not a file of {CODEBASE}: it holds {kind(saved)}, not a dict")
        for key in ("step", "model", "ema"):
            if key not in saved:
                keys = ", ".join(sorted(brief(repr(k)) for k in saved)[:8]) or "none"
                raise UserError(f"not a file of {CODEBASE}: it has no {key!r} (keys: {keys})")
        if not isinstance(saved["ema"], dict):
            raise UserError(f"not a file of {CODEBASE}: 'ema' is {kind(saved['ema'])}, not a dict")
        named = {k: v for k, v in saved["ema"].items() if isinstance(k, str) and k.startswith("ema_model.")}
        ema = {k.removeprefix("ema_model."): v for k, v in named.items()}
        return Imported(_step(saved["step"]), convert(saved["model"]), convert(ema, "ema"))
    except UserError as error:
        raise UserError(f"checkpoint {file}: {error}") from error


def settings(path: Path) -> dict[str, str]:
    """The settings in a `config.yaml`, as text; none if the file does not exist.

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
        UserError: a leaf is missing or unexpected, has an impossible shape, or the entries of a stack differ.
    """
    if not isinstance(source, Mapping):
        raise UserError(f"{name!r} is {kind(source)}, not a dict")
    for leaf, array in source.items():
        if not isinstance(leaf, str) or not isinstance(array, np.ndarray):
            raise UserError(f"{name!r} has {kind(array)} at {brief(repr(leaf))}, not a tensor at a name")
    leaves = list(correspondence(source))
    check_names(source, (leaf.source for leaf in leaves), repr(name), CODEBASE)
    params = stack(leaves, lambda leaf: _arrange(source, leaf, name), repr(name))
    return {"network": {}, "schedule": {}} | unflatten_dict(params, sep="/")


def correspondence(names: Any) -> Iterator[Leaf]:
    """Every leaf that the source must have, entries of a stack in order.

    Args:
        names: of the source's parameters; they determine depth, attention, dropout and schedule.
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
        yield from (Leaf(f"gamma.{name}", f"schedule/{name}", layout="scalar") for name in ("b", "w"))


def _layers(
    source: str, target: str, layers: Mapping[str, tuple[str, str]], entry: int | None = None
) -> Iterator[Leaf]:
    for name, (ours, layout) in layers.items():
        parts = ours.split()
        for i, part in enumerate(parts):
            for leaf in torch_layers.leaves(f"{source}{name}", f"{target}/{part}", layout):
                yield leaf._replace(entry=entry, part=i, parts=len(parts))


def _arrange(source: Mapping[str, np.ndarray], leaf: Leaf, name: str) -> np.ndarray:
    """The target of a leaf in our layout, float32."""
    array, where, layout = source[leaf.source], f"{name!r}: {leaf.source!r}", leaf.layout
    if layout == "input":
        layout = "conv"
        torch_layers.check(array, layout, where)
        array = _channel_by_channel(array, source["model.conv_out.2.bias"].size, where)
    array = torch_layers.arrange(array, layout, where)
    if leaf.parts == 1:
        return array
    if array.shape[-1] % leaf.parts:
        raise UserError(f"{where} has {array.shape[-1]} outputs, which is not a multiple of {leaf.parts}")
    return np.ascontiguousarray(np.split(array, leaf.parts, axis=-1)[leaf.part])


def _channel_by_channel(kernel: np.ndarray, channels: int, where: str) -> np.ndarray:
    """Item (2) of the input convolution's kernel [o, i, 3, 3]."""
    features = kernel.shape[1] - channels
    if channels < 1 or features < 0 or features % (2 * channels):
        raise UserError(f"{where} has {kernel.shape[1]} inputs, which cannot be of {channels} channels")
    parts = kernel[:, channels:].reshape(len(kernel), 2, -1, channels, 3, 3).swapaxes(2, 3)
    return np.concatenate([kernel[:, :channels], parts.reshape(len(kernel), features, 3, 3)], axis=1)


def _file(path: str | Path) -> Path:
    path = Path(path)
    try:
        return path / "model.pt" if path.is_dir() else path
    except OSError:  # reading it will say what is wrong
        return path


def _step(value: Any) -> int:
    if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "iu":
        value = value.item()
    if type(value) is not int or value < 0:
        raise UserError(f"'step' is {kind(value)}, not a number of steps")
    return value


def _compare(theirs: Mapping[str, str], model: "Model") -> None:
    """Refuse a model that differs from `config.yaml`.

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
        ("input_channels", None, model.data_shape[-1]),
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
    """The value of a number, or of true and false; None for other text."""
    try:
        return {"true": 1.0, "false": 0.0}.get(text.lower()) if text.isalpha() else float(text)
    except ValueError:
        return None


def check_settings(model: "Model") -> None:
    """Refuse a model that differs from this code in what no shape reveals.

    Raises:
        UserError: a model with such weights would compute something else.
    """
    requirements.check_components(
        model,
        CODEBASE,
        network=("vdm_unet",),
        parameterization=("noise",),
        path=("variance_preserving",),
        time_input=("gamma",),
        data_map=("scaling",),
    )
    network: Any = model.network
    requirements.check_values(network, "network", CODEBASE, norm_epsilon=1e-5)
    if network.fourier:
        requirements.check_values(network, "network", CODEBASE, fourier_first=5, fourier_last=6)
