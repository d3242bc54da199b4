"""The MuLAN code's numbers, replayed: weights, encoder, schedule of every pixel, loss, gradient, samples.

Its latents are in `test_mulan_latents`, its ODE in `test_mulan_ode`. Tolerances as in `test_vdm` and
`test_idode`: multiples of float32's rounding times the amplification.
"""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import replays
from replays import ROUNDING, jit, note, per_image

from jvdm import losses, samplers, schedules, transforms
from jvdm.importers import mulan
from jvdm.parameterizations import Velocity
from jvdm.records import Context, Draws, LossTerms

CSAMPLE_STEP = re.compile(r"csample_i(\d+)_eps")


class Replay(replays.Replay):
    """A case; its context is that of the recorded latents."""

    correspondence = staticmethod(mulan.correspondence)

    def __init__(self, case: peers.Case):
        super().__init__(case, "mulan", peers.mulan_model(case))
        self.case = case
        model = self.model
        self.context = self.context_of(self.io["latent_embedding"])

        def encode(params, batch):
            f = losses.encode(batch.images, model.num_levels)
            return model.encoder.apply({"params": params["encoder"]}, f, batch.conditioning)

        def schedule(params, t, context):
            at = schedules.at(lambda t: model.gamma(params, t, context), t)
            return at.gamma, at.dgamma_dt

        self.encode, self.schedule = jit(encode), jit(schedule)

    def context_of(self, latent: Any) -> Context:
        """Of the first images, with given latents."""
        return Context(self.batch.conditioning[: len(latent)], latent=jnp.asarray(latent))

    def draws(self, prefix: str = "") -> Draws:
        """As of the other codes, and the latent's."""
        noise = jnp.asarray(peers.mulan_noise(self.io, prefix))
        return super().draws(prefix)._replace(latent=noise, step=jnp.asarray(self.io["step"]))

    def like_source(self, ours: dict[str, Any]) -> dict[str, Any]:
        """Without the row of the conditioning, and the logits of a Gaussian latent in two halves."""
        ours = dict(ours)
        size, kernel = self.settings["latent_size"], ours["network/condition1/kernel"]
        ours["network/condition1/kernel"] = np.delete(np.asarray(kernel), -size - 1, axis=0)
        if self.settings["latent_type"] == "gaussian":
            for leaf in ("kernel", "bias"):
                halves = np.split(np.asarray(ours.pop(f"encoder/logits/{leaf}")), 2, axis=-1)
                for name, half in zip(("mean", "variance"), halves, strict=True):
                    ours[f"encoder/{name}/{leaf}"] = half
        return ours

    def gamma_like_data(self, key: str) -> jax.Array:
        """A recorded gamma, of every image or of every pixel."""
        gamma = self.io[key]
        return per_image(gamma) if gamma.ndim == 1 else jnp.asarray(gamma)


@pytest.fixture(scope="module", params=peers.cases("mulan"))
def replay(request):
    """One case."""
    with jax.default_matmul_precision("highest"):
        yield Replay(request.param)
