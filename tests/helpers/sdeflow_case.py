"""A recorded case of sdeflow: the network that its settings stand for, with the checkpoint's weights."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from helpers import peers
from jvdm.importers import sdeflow, torch_archive, torch_modules
from jvdm.networks.ddpm_unet import DDPMUNet


class Case(NamedTuple):
    """One recorded case.

    Attributes:
        network: of the case's settings.
        params: of the network.
        config: the peer's own settings.
        io: inputs, draws and outputs; images are NCHW (`nhwc`, `nchw`).
        step: of the checkpoint.
        source: the checkpoint's arrays by dotted name.
    """

    network: DDPMUNet
    params: Any
    config: dict[str, Any]
    io: dict[str, np.ndarray]
    step: int
    source: dict[str, np.ndarray]

    @property
    def noise_floor(self) -> float:
        """Largest deviation of the peer's output in float32 from that in float64."""
        return self.config["noise_floor"]["a_f32_vs_f64_maxabs"]


def names() -> list[Any]:
    """All cases as pytest parameters, for `load_case`; one skipped parameter where there are none."""
    return peers.cases("sdeflow")


@functools.lru_cache(maxsize=2)
def load_case(case: peers.Case | str) -> Case:
    """A case, or the one whose folder has this name."""
    if isinstance(case, str):
        case = peers.Case(peers.root() / "sdeflow" / case)
    path = case.path / "checkpoint.pt"
    imported = sdeflow.read(path)
    return Case(
        network=network(case.config["unet"]),
        params=imported.params["network"],
        config=case.config,
        io=case.io,
        step=imported.step,
        source=torch_modules.state_dict(torch_archive.read(path)[0]),
    )


def network(settings: dict[str, Any], **options: Any) -> DDPMUNet:
    """The network of sdeflow's settings."""
    fixed = {"downsample_padding": "symmetric", "time_scale": 1.0, "num_groups": 32, "dropout": 0.0}
    return DDPMUNet(
        channels=settings["ch"],
        multipliers=tuple(settings["ch_mult"]),
        num_res_blocks=settings["num_res_blocks"],
        attention_resolutions=tuple(settings["attn_resolutions"]),
        resample_with_conv=settings["resamp_with_conv"],
        **{**fixed, **options},
    )


def nhwc(array: np.ndarray) -> Any:
    """[..., c, h, w] -> [..., h, w, c], on the device."""
    return jnp.asarray(np.moveaxis(array, -3, -1))


def nchw(array: Any) -> np.ndarray:
    """[..., h, w, c] -> [..., c, h, w]."""
    return np.moveaxis(np.asarray(array), -1, -3)


def by_source(case: Case, tree: Any) -> dict[str, np.ndarray]:
    """Leaves of a tree like the network's parameters, by sdeflow's names and in its layout.

    What belongs to the conditioning, which sdeflow does not have, is left out.
    """
    leaves = flatten_dict(tree, sep="/")
    result = {}
    for leaf in sdeflow.correspondence(case.source):
        array, shape = np.asarray(leaves[leaf.target]), case.source[leaf.source].shape
        if leaf.layout == "conv":
            array = array.transpose(3, 2, 0, 1)
        elif leaf.layout != "vector":
            array = array.T[:, : shape[1]].reshape(shape)
        result[leaf.source] = array
    return result
