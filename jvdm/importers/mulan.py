"""Checkpoints of the MuLAN code (2312.13236): its tree of parameters -> jvdm's.

The network is that of the VDM code (`jvdm.importers.vdm`); the encoder is its way down and its middle:

    score_model/...                               network/...
    encoder_model/...                             encoder/...
    encoder_model/dense_layer_final               encoder/logits
    encoder_model/dense_layer_final_{mu,sigma}    encoder/logits, side by side (Gaussian latent)
    gamma/dense_1, dense_2                        schedule/hidden1, hidden2
    gamma/dense_out_{a,b,c}                       schedule/a, b, d

The MuLAN code does not pass the conditioning scalar to the score network. In our network/condition1/kernel
its row, between those of the time and those of the latent, is zero.

The name of a latent selects q(c | x) for given logits. The model p(c) p(x | c) is the same for `k_subset` and
`k_hot_surrogate`, so weights that were trained with the latter can be evaluated and trained further with
either: each gives a valid bound on the same likelihood. `k_hot_surrogate` also reports the number that the
released code computes. No shape reveals k, which of the latents with m logits was used, or, for images of one
channel, which of the two times the network sees.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jvdm.core.errors import UserError
from jvdm.importers import flax_checkpoint, vdm
from jvdm.importers.leaf import Leaf
from jvdm.importers.records import Imported
from jvdm.importers.vdm import DENSE

if TYPE_CHECKING:
    from jvdm.model import Model

CODEBASE = "the MuLAN code"

_SCHEDULE = vdm.within(
    dense_1=("hidden1", DENSE),
    dense_2=("hidden2", DENSE),
    dense_out_a=("a", DENSE),
    dense_out_b=("b", DENSE),
    dense_out_c=("d", DENSE),
)
_LOGITS = vdm.within(dense_layer_final=("logits", DENSE))
_HALVES = vdm.within(dense_layer_final_mu=("mean", DENSE), dense_layer_final_sigma=("variance", DENSE))


def read(path: str | Path) -> Imported:
    """Read a checkpoint; `path` is as for `flax_checkpoint.find`.

    Raises:
        UserError: there is no checkpoint, it is corrupt, or it was not written by the MuLAN code.
    """
    return vdm.read_with(convert, path)


def convert(tree: flax_checkpoint.Tree, name: str = "params") -> dict[str, Any]:
    """jvdm's parameters from those of the MuLAN code.

    Args:
        tree: nested dicts of numpy arrays, `{"score_model", "encoder_model", "gamma"}`.
        name: of the tree, for messages.

    Returns:
        Nested dicts of float32 arrays, `{"network", "schedule", "encoder"}`.

    Raises:
        UserError: a leaf is missing or unexpected, or shapes contradict one another.
    """
    source = cast(dict[str, np.ndarray], flatten_dict(tree, sep="/"))
    arrays = vdm.gather(source, correspondence(source), name, CODEBASE)
    arrays["network/condition1/kernel"] = _with_conditioning(arrays, name)
    for leaf in DENSE.values() if "encoder/mean/bias" in arrays else ():
        halves = [arrays.pop(f"encoder/{half}/{leaf}") for half in ("mean", "variance")]
        if halves[0].shape != halves[1].shape or not halves[0].ndim:
            raise UserError(
                f"{name}: 'encoder_model/dense_layer_final_mu/{leaf}' has shape {halves[0].shape}, but "
                f"'dense_layer_final_sigma/{leaf}' {halves[1].shape}"
            )
        arrays[f"encoder/logits/{leaf}"] = np.concatenate(halves, axis=-1)
    return unflatten_dict(arrays, sep="/")


def _with_conditioning(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """network/condition1/kernel with a row of zeros before the rows of the latent."""
    kernel, first = arrays["network/condition1/kernel"], arrays["schedule/hidden1/kernel"]
    if kernel.ndim != 2 or first.ndim != 2 or len(kernel) <= len(first):
        raise UserError(
            f"{name}: 'score_model/dense0/kernel' of shape {kernel.shape} has no rows for a time next to "
            f"those of the latent, which 'gamma/dense_1/kernel' of shape {first.shape} takes"
        )
    return np.insert(kernel, len(kernel) - len(first), 0.0, axis=0)


def correspondence(paths: Iterable[str]) -> Iterator[Leaf]:
    """Every leaf that the source must have, entries of a stack in order.

    Args:
        paths: '/'-joined, of the source's leaves. They determine depths, attention and whether the latent is
            Gaussian; if so, the encoder's last layer has two halves, `encoder/mean` and `encoder/variance`.
    """
    paths = list(paths)
    yield from vdm.unet(paths, "score_model", "network", ways=("down", "up"))
    yield from vdm.unet(paths, "encoder_model", "encoder", ways=("down",))
    gaussian = any(path.startswith("encoder_model/dense_layer_final_") for path in paths)
    yield from vdm.entries("encoder_model", "encoder", _HALVES if gaussian else _LOGITS)
    yield from vdm.entries("gamma", "schedule", _SCHEDULE)


def check_settings(model: "Model") -> None:
    """Refuse a model that differs from the MuLAN code in what no shape reveals.

    Raises:
        UserError: a model with such weights would compute something else.
    """
    from jvdm.networks.encoders import UNetEncoder

    vdm.check_network(
        model,
        CODEBASE,
        parameterization=("noise", "velocity", "velocity_from_noise"),
        time_input=("gamma", "pixel_gamma"),
    )
    if not isinstance(model.encoder, UNetEncoder):
        raise UserError(f"a checkpoint of {CODEBASE} needs config.encoder.name=unet")
    vdm.check_blocks(model.encoder, "encoder", CODEBASE)
