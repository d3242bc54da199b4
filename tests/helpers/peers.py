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

from helpers.compose import compose
from jvdm.diffusion.k_hot_surrogate import KHotSurrogate
from jvdm.diffusion.latents import Gaussian, Gumbel
from jvdm.diffusion.parameterizations import Noise, Velocity, VelocityFromNoise
from jvdm.diffusion.paths import Straight, VariancePreserving
from jvdm.diffusion.per_pixel_schedules import Polynomial
from jvdm.diffusion.schedules import FixedLinear, LearnedScalar, MonotoneNetworkReleased
from jvdm.diffusion.times import Importance, UniformDensity
from jvdm.model import Model
from jvdm.networks import GammaInput
from jvdm.networks.encoders import UNetEncoder
from jvdm.networks.unet import VDMUNet

SCHEDULES = {
    "fixed": FixedLinear,
    "learnable_scalar": LearnedScalar,
    "learnable_nnet": MonotoneNetworkReleased,
}
# Of the i-DODE code: what it calls schedule is the path.
PATHS = {"VP": VariancePreserving(), "SP": Straight()}
# What MuLAN calls the noise of its top k.
NOISES = {"gamma": "sum_of_gamma_released", "gumbel": "gumbel"}


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
    return Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "peers"


def cases(peer: str) -> list[Any]:
    """All cases of a peer as pytest parameters; one skipped parameter where there are none."""
    folder = root() / peer
    found = sorted(config.parent for config in folder.glob("*/config.json"))
    if found:
        return [pytest.param(Case(path), id=path.name) for path in found]
    reason = f"no recorded numbers in {folder}: set JVDM_PEERS_DIR to the folder that holds {peer}/"
    return [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=reason))]


def _blocks(settings: dict[str, Any]) -> dict[str, Any]:
    """What the U-Nets of the VDM code, and of those derived from it, have in common."""
    return {
        "channels": settings["sm_n_embd"],
        "dropout": settings["sm_pdrop"],
        "attention": settings["with_attention"],
        "fourier": settings["with_fourier_features"],
        "num_groups": 32,  # whatever the number of channels
    }


def _ends(settings: dict[str, Any]) -> dict[str, float]:
    return {key: settings[key] for key in ("gamma_min", "gamma_max")}


def _model(case: Case, **parts: Any) -> Model:
    """The model with the parts that all those codes name alike, and the given others.

    The prior of their variational bounds is N(0, I).
    """
    settings = case.config["model"]
    common = {
        "network": VDMUNet(num_blocks=settings["sm_n_layer"], **_blocks(settings)),
        "data_shape": case.io["images"].shape[1:],
        "num_levels": settings["vocab_size"],
        "timesteps": settings["sm_n_timesteps"],
        "time_input": GammaInput(**_ends(settings)),
        "prior": "standard",
    }
    return compose(**(common | parts))


def _scalar_schedule(case: Case) -> Any:
    """Of the codes whose gamma is the same for all pixels."""
    settings = case.config["model"]
    return SCHEDULES[settings["gamma_type"]](**_ends(settings))


def vdm_model(case: Case) -> Model:
    """The model that the settings of a case of the official VDM code stand for."""
    return _model(case, schedule=_scalar_schedule(case), path=VariancePreserving(), parameterization=Noise())


def idode_model(case: Case, prior: str = "standard") -> Model:
    """The model that the settings of a case of the official i-DODE code stand for.

    The prior of its ODE is another than that of its bound: "path", N(0, sigma_1^2 I).
    """
    settings = case.config["model"]
    path = PATHS[settings["schedule"]]
    return _model(
        case,
        schedule=_scalar_schedule(case),
        path=path,
        parameterization=Velocity(path=path) if settings["velocity"] else Noise(),
        time_density=Importance() if settings["importance"] else UniformDensity(),
        decoder="idode_released",
        prior=prior,
    )


def mulan_latent(case: Case) -> Any:
    """The latent that the settings of a case of the MuLAN code stand for."""
    settings = case.config["model"]
    size = settings["latent_size"]
    if settings["latent_type"] == "topk":
        noise = NOISES[settings["topk_noise_type"]]
        return KHotSurrogate(size=size, k=settings["latent_k"], noise=noise)
    return {"gaussian": Gaussian, "gumbel": Gumbel}[settings["latent_type"]](size=size)


def mulan_parameterization(case: Case) -> Any:
    """What the output means in its loss and its ODE."""
    if case.config["vdm_type"] == "mulan_epsilon":
        return Noise()
    from_noise = case.config["model"]["velocity_from_epsilon"]
    return VelocityFromNoise() if from_noise else Velocity(path=VariancePreserving())


def mulan_model(case: Case) -> Model:
    """The model that the settings of a case of the MuLAN code stand for."""
    settings, latent = case.config["model"], mulan_latent(case)
    schedules, encoders = {"poly_fixedend": Polynomial}, {"unet": UNetEncoder}
    return _model(
        case,
        schedule=schedules[settings["gamma_type"]](
            data_shape=case.io["images"].shape[1:],
            hidden=case.config["gamma_n_features"],
            **_ends(settings),
        ),
        path=VariancePreserving(),
        parameterization=mulan_parameterization(case),
        time_input=GammaInput(of_pixels=settings["unet_type"] == "ldm", **_ends(settings)),
        latent=latent,
        encoder=encoders[settings["encoder"]](
            num_outputs=latent.num_logits, num_blocks=settings["forward_n_layer"], **_blocks(settings)
        ),
    )


def mulan_logits(io: dict[str, np.ndarray]) -> Any:
    """[b, n] what gives the recorded encoder's output; variances are recorded after softplus."""
    if "enc_logits" in io:
        return io["enc_logits"]
    raw = np.log(np.expm1(np.float64(io["enc_var"])))
    return np.concatenate([io["enc_mu"], raw], axis=1).astype(np.float32)


def mulan_noise(io: dict[str, np.ndarray], prefix: str = "") -> np.ndarray:
    """[b, ...] the latent's draws, as `draw` has them."""
    if f"{prefix}latent_gamma_noise" in io:
        return np.moveaxis(io[f"{prefix}latent_gamma_noise"], 0, 1)
    names = (f"{prefix}latent_{kind}" for kind in ("gumbel_noise", "eps_z"))
    return next(io[name] for name in names if name in io)
