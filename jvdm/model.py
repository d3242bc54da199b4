"""Composition: a config selects the parts, and `build` joins them into one model.

This is the only module that knows all of the mathematics and the networks. Parameters are
`{"network": ..., "schedule": ...}`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jvdm import losses, schedules
from jvdm.errors import UserError
from jvdm.parameterizations import PARAMETERIZATIONS
from jvdm.paths import PATHS
from jvdm.records import Batch, Coefficients, Context, Draws, LossTerms, Prediction, TimeGamma
from jvdm.registry import Config
from jvdm.schedules import SCHEDULES
from jvdm.unet import NETWORKS

Params = Any
Data = Float[Array, "b h w c"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A diffusion model over discrete images.

    Attributes:
        network: (z, gamma [b], conditioning [b], train) -> output [b, h, w, c].
        schedule: (t, context) -> gamma.
        path: gamma -> alpha, sigma.
        parameterization: output <-> eps.
        image_shape: (h, w, c).
        num_levels: K, values per dimension.
        timesteps: T of the discrete-time bound, 0 for continuous time.
    """

    network: nn.Module
    schedule: nn.Module
    path: Any
    parameterization: Any
    image_shape: tuple[int, int, int]
    num_levels: int
    timesteps: int = 0

    @property
    def num_dims(self) -> int:
        """D, dimensions of one image."""
        h, w, c = self.image_shape
        return h * w * c

    def init(self, key: jax.Array) -> Params:
        """Initial parameters, `{"network", "schedule"}`."""
        k_network, k_schedule = jax.random.split(key)
        z = jnp.zeros((1, *self.image_shape))
        network = self.network.init(k_network, z, jnp.zeros(1), jnp.zeros(1))
        schedule = self.schedule.init(k_schedule, jnp.zeros(()))
        return {"network": network.get("params", {}), "schedule": schedule.get("params", {})}

    def draw(self, keys: jax.Array, u: Float[Array, " b"]) -> Draws:
        """The random numbers of one evaluation of the bound.

        Args:
            keys: [b] one key per example, so that an example's noise does not depend on its batch.
            u: [b] numbers in [0, 1), from a time sampler.
        """

        def noise(key):
            k_eps, k_eps_0 = jax.random.split(key)
            return jax.random.normal(k_eps, self.image_shape), jax.random.normal(k_eps_0, self.image_shape)

        return Draws(u, *jax.vmap(noise)(keys))

    def context(self, batch: Batch) -> Context:
        """What schedule and network know of the images."""
        return Context(conditioning=batch.conditioning)

    def gamma(
        self, params: Params, t: Float[Array, "..."], context: Context | None = None
    ) -> Float[Array, "..."]:
        """gamma(t), elementwise."""
        gamma: Any = self.schedule.apply({"params": params["schedule"]}, t, context)
        return gamma

    def time_gamma(self, params: Params, t: Float[Array, " b"], context: Context | None = None) -> TimeGamma:
        """gamma and dgamma/dt at times [b], broadcastable to the data."""
        return schedules.at(lambda t: self.gamma(params, t, context), t[:, None, None, None])

    def coefficients(self, at: TimeGamma) -> Coefficients:
        """alpha, sigma and the schedule."""
        alpha, sigma = self.path.alpha_sigma(at.gamma)
        return Coefficients(alpha, sigma, at.gamma, at.dgamma_dt)

    def times(self, u: Float[Array, " b"]) -> Float[Array, " b"]:
        """Times from uniform numbers: themselves, or the upper end of one of T steps."""
        return (jnp.floor(u * self.timesteps) + 1.0) / self.timesteps if self.timesteps else u

    def output(
        self,
        params: Params,
        z: Data,
        gamma: Float[Array, "b ..."],
        context: Context,
        *,
        dropout_key: jax.Array | None = None,
    ) -> Data:
        """The network's output; dropout is on if there is a key for it."""
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        out: Any = self.network.apply(
            {"params": params["network"]},
            z,
            gamma.reshape(z.shape[0]),
            context.conditioning,
            train=dropout_key is not None,
            rngs=rngs,
        )
        return out

    def predict(self, params: Params, z: Data, t: Float[Array, " b"], context: Context) -> Prediction:
        """The denoiser's estimate of eps at times [b]."""
        c = self.coefficients(self.time_gamma(params, t, context))
        out = self.output(params, z, c.gamma, context)
        return Prediction(self.parameterization.to_eps(out, z, c), c)

    def terms(
        self,
        params: Params,
        draws: Draws,
        batch: Batch,
        *,
        dropout_key: jax.Array | None = None,
        at: TimeGamma | None = None,
    ) -> LossTerms:
        """The terms of the variational bound for given draws.

        Args:
            params: the model's.
            draws: random numbers, one set per example.
            batch: the images.
            dropout_key: dropout is on if given.
            at: gamma and dgamma/dt at the drawn times, where the caller differentiates through
                them; by default they are computed here.

        Returns:
            Each term [b], nats.
        """
        context = self.context(batch)
        t = self.times(draws.u)
        if at is None:
            at = self.time_gamma(params, t, context)
        c = self.coefficients(at)
        f = losses.encode(batch.images, self.num_levels)
        z = c.alpha * f + c.sigma * draws.eps
        out = self.output(params, z, c.gamma, context, dropout_key=dropout_key)
        squared_error = self.parameterization.squared_error(out, f, draws.eps, c)
        if self.timesteps:
            gamma_s = self.gamma(params, (t - 1.0 / self.timesteps)[:, None, None, None], context)
            diffusion = losses.diffusion_discrete(self.timesteps, gamma_s, c.gamma, squared_error)
        else:
            diffusion = losses.diffusion_continuous(c.dgamma_dt, squared_error)

        ends = jnp.array([0.0, 1.0])[:, None, None, None, None]
        gamma_0, gamma_1 = self.gamma(params, ends, context)
        alpha_1, _ = self.path.alpha_sigma(gamma_1)
        return LossTerms(
            reconstruction=losses.reconstruction(batch.images, draws.eps_0, gamma_0, self.num_levels),
            prior=losses.prior(f, alpha_1, self.path.log_sigma(gamma_1)),
            diffusion=diffusion,
        )


def build(config: Config, image_shape: tuple[int, int, int], num_levels: int) -> Model:
    """The model that a config selects, for images of a given shape and number of levels.

    Raises:
        UserError: unknown component or option, or parts that do not go together.
    """
    timesteps = config.model.timesteps
    if timesteps < 0:
        raise UserError(
            f"config.model.timesteps is {timesteps}: give 0 (continuous time) or a number of steps"
        )
    schedule = SCHEDULES.build(config.schedule)
    if not schedule.gamma_min < schedule.gamma_max:
        raise UserError(
            f"config.schedule: gamma_min {schedule.gamma_min} is not below gamma_max {schedule.gamma_max}"
        )
    if config.training.schedule_objective == "variance":
        if timesteps:
            raise UserError(
                "config.training.schedule_objective=variance needs continuous time: config.model.timesteps=0"
            )
        if not (schedule.has_interior and schedule.endpoints):
            raise UserError(
                "config.training.schedule_objective=variance needs a schedule with learned ends and "
                f"interior: monotone_network, not {config.schedule.name}"
            )
    elif config.training.schedule_objective != "bound":
        raise UserError(
            f"config.training.schedule_objective is {config.training.schedule_objective!r}: "
            "the choices are bound, variance"
        )
    return Model(
        network=NETWORKS.build(config.network, gamma_min=schedule.gamma_min, gamma_max=schedule.gamma_max),
        schedule=schedule,
        path=PATHS.build(config.path),
        parameterization=PARAMETERIZATIONS.build(config.parameterization),
        image_shape=image_shape,
        num_levels=num_levels,
        timesteps=timesteps,
    )
