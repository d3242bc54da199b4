"""Checkpoints of the MuLAN code (2312.13236): its tree of parameters -> jvdm's.

The network is that of the VDM code (`jvdm.importers.vdm`), and the encoder its way down and its middle:

    score_model/...                               network/...
    encoder_model/...                             encoder/...
    encoder_model/dense_layer_final               encoder/logits
    encoder_model/dense_layer_final_{mu,sigma}    encoder/logits, side by side (of a Gaussian latent)
    gamma/dense_1, dense_2                        schedule/hidden1, hidden2
    gamma/dense_out_{a,b,c}                       schedule/a, b, d

Theirs does not tell the score network the conditioning scalar, of which ours has a row of
network/condition1/kernel between those of the time and those of the latent: that row is zero.

What a latent's name chooses is q(c | x) for given logits. The model p(c) p(x | c) is the same for `k_subset`
and `k_hot_surrogate`, so weights that were trained with the latter may be evaluated, and trained on, with
either: each gives a valid bound on the same likelihood. The number as the released code computes it comes of
`k_hot_surrogate`, beside a bound. Neither k, nor which of the latents with m logits it was, leaves a trace in
a shape; nor, for images of one channel, which of the two times the network sees.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jvdm.core import trees
from jvdm.core.errors import UserError
from jvdm.importers import flax_checkpoint, vdm
from jvdm.importers.records import Imported
from jvdm.importers.vdm import DENSE, Leaf

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
    """The checkpoint at `path`, as `flax_checkpoint.find` takes it.

    Raises:
        UserError: there is none, it is corrupt, or it is not of the MuLAN code.
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
        UserError: a leaf is missing, is left over, or does not go with the others.
    """
    source = flax_checkpoint.flatten(tree)
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
    return trees.nest(arrays)


def _with_conditioning(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """network/condition1/kernel with a row of zeros before the rows of the latent."""
    kernel, first = arrays["network/condition1/kernel"], arrays["schedule/hidden1/kernel"]
    if kernel.ndim != 2 or first.ndim != 2 or len(kernel) <= len(first):
        raise UserError(
            f"{name}: 'score_model/dense0/kernel' of shape {kernel.shape} has no rows for a time beside the "
            f"latent that 'gamma/dense_1/kernel' of shape {first.shape} takes"
        )
    return np.insert(kernel, len(kernel) - len(first), 0.0, axis=0)


def correspondence(paths: Iterable[str]) -> Iterator[Leaf]:
    """Every leaf that the source must have, entries of a stack in order.

    Args:
        paths: the '/'-joined paths of the leaves of a source tree, which tell depths, attention and whether
            the latent is Gaussian; its encoder's last layer is in two halves then, `encoder/mean` and
            `encoder/variance`.
    """
    paths = list(paths)
    yield from vdm.unet(paths, "score_model", "network", ways=("down", "up"))
    yield from vdm.unet(paths, "encoder_model", "encoder", ways=("down",))
    gaussian = any(path.startswith("encoder_model/dense_layer_final_") for path in paths)
    yield from vdm.entries("encoder_model", "encoder", _HALVES if gaussian else _LOGITS)
    yield from vdm.entries("gamma", "schedule", _SCHEDULE)


def check_settings(model: "Model") -> None:
    """What the MuLAN code fixes and no shape reveals.

    Raises:
        UserError: a model with such weights would compute something else.
    """
    from jvdm.networks.encoders import UNetEncoder

    vdm.check_components(
        model,
        CODEBASE,
        parameterizations=("noise", "velocity", "velocity_from_noise"),
        paths=("variance_preserving",),
    )
    needs = f"a checkpoint of {CODEBASE} needs"
    if not isinstance(model.encoder, UNetEncoder):
        raise UserError(f"{needs} config.encoder.name=unet")
    vdm.check_blocks(model.encoder, "config.encoder", needs)
