"""A case of the MuLAN code: jvdm's model with its weights, and what is particular to its replays."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from helpers import peers, replays
from helpers.replays import ROUNDING, jit, per_image
from jvdm.core.records import Coefficients, Context, Draws
from jvdm.diffusion import losses, schedules
from jvdm.diffusion.gaussian import coefficients
from jvdm.importers import mulan
from jvdm.networks import GammaInput


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequentialMean(GammaInput):
    """The mean of the pixels' gamma as theirs has it, one added after another, in float32.

    Where all are the same, at t = 0, the roundings are too: -13.3004 in place of -13.3 at 32 x 32 x 3, so
    that the phase of the time embedding is off by 0.02.
    """

    def __call__(self, t, gamma):
        if self.of_pixels or gamma[0].size == 1:
            return super().__call__(t, gamma)
        flat = jnp.moveaxis(gamma.reshape(len(gamma), -1), 1, 0)
        total, _ = jax.lax.scan(lambda sum, g: (sum + g, None), jnp.zeros(len(gamma)), flat)
        return super().__call__(t, total / len(flat))


class Replay(replays.Replay):
    """A case; its context is that of the recorded latents."""

    correspondence = staticmethod(mulan.correspondence)

    def __init__(self, case: peers.Case):
        model = peers.mulan_model(case)
        time_input = SequentialMean(**dataclasses.asdict(model.time_input))
        super().__init__(case, "mulan", dataclasses.replace(model, time_input=time_input))
        self.case = case
        model = self.model
        self.context = self.context_of(self.io["latent_embedding"])

        def encode(params, batch):
            f = losses.encode(batch.x, model.num_levels)
            return model.encoder.apply({"params": params["encoder"]}, f, Context(batch.conditioning))

        def schedule(params, t, context):
            at = schedules.at(lambda t: model.gamma({"schedule": params}, t, context), t)
            return at.gamma, at.dgamma_dt

        self.encode, self.schedule = jit(encode), jit(schedule)

    def context_of(self, latent: Any) -> Context:
        """Of the first images, with given latents."""
        first = jax.tree.map(lambda a: a[: len(latent)], self.batch.conditioning)
        return Context(first, latent=jnp.asarray(latent))

    def draws(self, prefix: str = "") -> Draws:
        """As of the other codes, and the latent's."""
        noise = jnp.asarray(peers.mulan_noise(self.io, prefix))
        return super().draws(prefix)._replace(latent=noise, step=jnp.asarray(self.io["step"]))

    def kick_draws(self, draws, kick):
        """Noise and times; and with the noise the rounding of z_t, of which sigma may be a small part."""
        draws = replays.kick_times(draws, kick)
        gamma, _ = self.schedule(
            self.ema_params["schedule"], per_image(self.model.times(draws.u).t), self.context
        )
        z_in_units_of_noise = np.exp(-0.5 * np.asarray(gamma))
        rounding = kick(z_in_units_of_noise) - z_in_units_of_noise
        return super().kick_draws(draws._replace(eps=draws.eps + rounding), kick)

    def independent(self, name: str, size: int) -> int:
        """The gradient of what comes before the schedule's last layer is made of a few numbers per image."""
        of_schedule = name.startswith(("gamma/dense_1/", "gamma/dense_2/"))
        return self.case.config["gamma_n_features"] if of_schedule or "encoder" in name else size

    def like_source(self, ours: dict[str, Any]) -> dict[str, Any]:
        """Without the row of the conditioning, and the logits of a Gaussian latent in two halves."""
        ours = dict(ours)
        size, kernel = self.settings["latent_size"], ours["network/condition1/kernel"]
        ours["network/condition1/kernel"] = np.delete(kernel, -size - 1, axis=0)
        if self.settings["latent_type"] == "gaussian":
            for leaf in ("kernel", "bias"):
                halves = np.split(ours.pop(f"encoder/logits/{leaf}"), 2, axis=-1)
                for name, half in zip(("mean", "variance"), halves, strict=True):
                    ours[f"encoder/{name}/{leaf}"] = half
        return ours

    def coefficients(self, t: Any) -> Any:
        """At times [n] of the first n images."""
        context = self.context_of(self.io["latent_embedding"][: len(t)])
        return self.coefficients_at(per_image(np.float32(t)), context)

    def coefficients_at(self, t: jax.Array, context: Context) -> Coefficients:
        """At times [b, 1, 1, 1]."""
        return coefficients(self.model.path, *self.schedule(self.ema_params["schedule"], t, context))

    def schedule_noise(self, t: jax.Array, context: Context) -> tuple[float, float]:
        """How far a rounding of its weights moves gamma and dgamma/dt at most."""
        rng = np.random.default_rng(0)

        def kick(a):
            return a * (1.0 + 2.0 * ROUNDING * rng.choice([-1.0, 1.0], a.shape)).astype(np.float32)

        schedule = jax.tree.map(kick, self.imported.ema_params["schedule"])
        pair = (self.schedule(weights, t, context) for weights in (schedule, self.ema_params["schedule"]))
        gamma, dgamma_dt = (float(jnp.max(jnp.abs(a - b))) for a, b in zip(*pair, strict=True))
        return gamma, dgamma_dt

    def gamma_like_data(self, key: str) -> jax.Array:
        """A recorded gamma, of every image or of every pixel."""
        gamma = self.io[key]
        return per_image(gamma) if gamma.ndim == 1 else jnp.asarray(gamma)
