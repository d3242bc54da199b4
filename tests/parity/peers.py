"""Numbers recorded from the original codebases: where they lie and how a case is read.

They are outside the repository: in the folder that JVDM_PEERS_DIR names, or in `shared/peers` beside
the repository. A case is `<peer>/<case>/` with `config.json`, `io.npz` and a checkpoint.
"""

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jvdm.model import Model
from jvdm.networks import GammaInput
from jvdm.parameterizations import Noise, Velocity
from jvdm.paths import Straight, VariancePreserving
from jvdm.schedules import FixedLinear, LearnedScalar, MonotoneNetworkReleased
from jvdm.time_densities import Importance, UniformDensity
from jvdm.unet import VDMUNet

SCHEDULES = {
    "fixed": FixedLinear,
    "learnable_scalar": LearnedScalar,
    "learnable_nnet": MonotoneNetworkReleased,
}
# Of the i-DODE code: what it calls schedule is the path.
PATHS = {"VP": VariancePreserving(), "SP": Straight()}


@dataclasses.dataclass(frozen=True)
class Case:
    """One recorded case.

    Attributes:
        path: its folder.
    """

    path: Path

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The peer's settings."""
        return json.loads((self.path / "config.json").read_text())

    @functools.cached_property
    def io(self) -> dict[str, np.ndarray]:
        """Inputs, draws and outputs."""
        with np.load(self.path / "io.npz") as archive:
            return dict(archive)

    @property
    def checkpoint(self) -> Path:
        """The peer's checkpoint."""
        return self.path / self.config["ckpt"]


def root() -> Path:
    """The folder of all peers, whether or not it exists."""
    given = os.environ.get("JVDM_PEERS_DIR")
    return Path(given) if given else Path(__file__).resolve().parents[2].parent / "shared" / "peers"


def cases(peer: str) -> list[Any]:
    """All cases of a peer as pytest parameters; one skipped parameter where there are none."""
    folder = root() / peer
    found = sorted(config.parent for config in folder.glob("*/config.json"))
    if found:
        return [pytest.param(Case(path), id=path.name) for path in found]
    reason = f"no recorded numbers in {folder}: set JVDM_PEERS_DIR to the folder that holds {peer}/"
    return [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=reason))]


def _unet(settings: dict[str, Any]) -> VDMUNet:
    """The network of the VDM code, and of those derived from it."""
    return VDMUNet(
        channels=settings["sm_n_embd"],
        num_blocks=settings["sm_n_layer"],
        dropout=settings["sm_pdrop"],
        attention=settings["with_attention"],
        fourier=settings["with_fourier_features"],
        num_groups=32,  # whatever the number of channels
    )


def _model(case: Case, **parts: Any) -> Model:
    """The model with the parts that all those codes name alike, and the given others."""
    settings = case.config["model"]
    ends = {key: settings[key] for key in ("gamma_min", "gamma_max")}
    return Model(
        network=_unet(settings),
        schedule=SCHEDULES[settings["gamma_type"]](**ends),
        image_shape=case.io["images"].shape[1:],
        num_levels=settings["vocab_size"],
        timesteps=settings["sm_n_timesteps"],
        time_input=GammaInput(**ends),
        **parts,
    )


def vdm_model(case: Case) -> Model:
    """The model that the settings of a case of the official VDM code stand for."""
    return _model(case, path=VariancePreserving(), parameterization=Noise())


def idode_model(case: Case) -> Model:
    """The model that the settings of a case of the official i-DODE code stand for."""
    settings = case.config["model"]
    path = PATHS[settings["schedule"]]
    return _model(
        case,
        path=path,
        parameterization=Velocity(path=path) if settings["velocity"] else Noise(),
        time_density=Importance() if settings["importance"] else UniformDensity(),
        decoder="idode_released",
    )
