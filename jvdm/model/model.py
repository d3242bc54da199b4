"""Composition: a config selects the parts, and `build` joins them into one model.

This is the only module that knows all of the mathematics and the networks. Parameters are
`{"network": ..., "schedule": ...}`, and `"encoder"` with a latent.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jvdm.core.errors import UserError, unknown
from jvdm.core.records import Batch, Coefficients, Context, Draws, Prediction, TimeGamma
from jvdm.core.registry import Config
from jvdm.diffusion import losses, schedules, transforms
from jvdm.diffusion.latents import LATENTS, NoLatent
from jvdm.diffusion.parameterizations import PARAMETERIZATIONS
from jvdm.diffusion.paths import PATHS
from jvdm.diffusion.per_pixel_schedules import SCHEDULES
from jvdm.diffusion.times import TIME_DENSITIES, UniformDensity, WeightedTimes
from jvdm.diffusion.transforms import DATA_MAPS, SCALING
from jvdm.model import checks
from jvdm.networks import NETWORKS, GammaInput, time_input
from jvdm.networks.encoders import ENCODERS

Params = Any
Data = Float[Array, "b h w c"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A diffusion model over discrete images, or over continuous data of the shape of images.

    Attributes:
        network: (z, time [b], conditioning [b], train) -> output [b, h, w, c].
        schedule: (t, context) -> gamma.
        path: gamma -> alpha, sigma.
        parameterization: coefficients -> relation of output and eps.
        image_shape: (h, w, c).
        num_levels: K, values per dimension; 0 is continuous data.
        timesteps: T of the discrete-time bound, 0 for continuous time.
        time_density: uniform numbers -> times, in continuous time.
        decoder: a name of `losses.DECODERS`.
        time_input: (t, gamma) -> the network's time; gamma itself by default.
        data_map: from data to the space of the diffusion.
        latent: an auxiliary latent (`jvdm.diffusion.latents`), or None.
        encoder: (encoded images, conditioning) -> logits of the latent; None without one.
        evaluating: a latent whose charge in training is no bound is replaced by one whose charge is.
    """

    network: nn.Module
    schedule: nn.Module
    path: Any
    parameterization: Any
    image_shape: tuple[int, int, int]
    num_levels: int
    timesteps: int = 0
    time_density: Any = UniformDensity()  # noqa: RUF009 (immutable)
    decoder: str = "exact"
    time_input: Any = GammaInput()  # noqa: RUF009 (immutable)
    data_map: transforms.DataMap = SCALING
    latent: Any = None
    encoder: nn.Module | None = None
    evaluating: bool = False

    @property
    def per_pixel(self) -> bool:
        """Whether gamma is another at every pixel; the ends are shared."""
        return getattr(self.schedule, "per_pixel", False)

    @property
    def has_bound(self) -> bool:
        """Whether the variational bound of discrete data is defined: the noise at time 0 is not zero."""
        return self.num_levels > 0 and self.schedule.gamma_min > -math.inf

    @property
    def num_dims(self) -> int:
        """D, dimensions of one image."""
        h, w, c = self.image_shape
        return h * w * c

    @property
    def units(self) -> str:
        """In which likelihoods are reported: "bits/dim" of discrete data, "nats" of continuous."""
        return "bits/dim" if self.num_levels else "nats"

    @property
    def units_per_nat(self) -> float:
        """Those units in one nat."""
        return 1.0 / (self.num_dims * math.log(2.0)) if self.num_levels else 1.0

    def init(self, key: jax.Array) -> Params:
        """Initial parameters, `{"network", "schedule"}`, and `"encoder"` with a latent."""
        k_network, k_schedule = jax.random.split(key)
        z, scalar, params = jnp.zeros((1, *self.image_shape)), jnp.zeros(1), {}
        context = Context(scalar)
        if self.latent is not None and self.encoder is not None:
            context = context._replace(latent=jnp.zeros((1, self.latent.size)))
            encoder = self.encoder.init(jax.random.fold_in(k_network, 1), z, scalar)
            params["encoder"] = encoder.get("params", {})
        t = jnp.zeros((1, 1, 1, 1)) if self.per_pixel else jnp.zeros(())
        schedule = self.schedule.init(k_schedule, t, context)
        time = self.time_input(scalar, jnp.zeros((1, *self.image_shape) if self.per_pixel else (1,)))
        network = self.network.init(k_network, z, time, _known(context))
        return {"network": network.get("params", {}), "schedule": schedule.get("params", {}), **params}

    def draw(self, keys: jax.Array, u: Float[Array, " b"]) -> Draws:
        """The random numbers of one evaluation of the bound.

        Args:
            keys: [b] one key per example, so that an example's noise does not depend on its batch.
            u: [b] numbers in [0, 1), from a time sampler.
        """

        def noise(key):
            k_eps, k_eps_0 = jax.random.split(key)
            return (
                jax.random.normal(k_eps, self.image_shape),
                jax.random.normal(k_eps_0, self.image_shape),
                jax.random.rademacher(jax.random.fold_in(key, 2), self.image_shape, jnp.float32),
                jax.random.uniform(jax.random.fold_in(key, 3), self.image_shape),
            )

        draws = Draws(u, *jax.vmap(noise)(keys))
        if self.latent is None:
            return draws
        one, other = (
            jax.vmap(self.latent.draw)(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, n))
            for n in (4, 5)
        )
        return draws._replace(latent=one, other_latent=other)

    def context(
        self,
        params: Params,
        batch: Batch,
        noise: Any = None,
        *,
        step: Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> Context:
        """What schedule and network know of the images.

        Args:
            params: the model's.
            batch: the images.
            noise: [b, ...] of the latent; not looked at without one.
            step: of training, where the latent's gradient is annealed.
            dropout_key: dropout is on if given.
        """
        context = Context(conditioning=batch.conditioning)
        if self.latent is None or self.encoder is None:
            return context
        f = transforms.encode(batch.images, self.num_levels, self.data_map)
        rngs = {} if dropout_key is None else {"dropout": jax.random.fold_in(dropout_key, 1)}
        logits: Any = self.encoder.apply(
            {"params": params["encoder"]}, f, batch.conditioning, train=dropout_key is not None, rngs=rngs
        )
        sample = self.latent.sample(logits, noise, step)
        if self.evaluating and not self.latent.is_bound:
            # A function of the image has a charge that is known.
            charge = jnp.full_like(sample.charge, self.latent.mode_charge)
            return context._replace(
                latent=self.latent.mode(logits), charge=charge, log_ratio=charge, surrogate=sample.charge
            )
        return context._replace(latent=sample.value, charge=sample.charge, log_ratio=sample.log_ratio)

    def prior_context(self, keys: jax.Array, latent: Float[Array, "b m"] | None = None) -> Context:
        """What schedule and network know where there is no image: a latent of the prior, or a given one."""
        context = Context(conditioning=jnp.zeros(len(keys)))
        if self.latent is None:
            return context
        return context._replace(latent=jax.vmap(self.latent.prior)(keys) if latent is None else latent)

    def ends(self, params: Params) -> Float[Array, "2"]:
        """gamma at t = 0 and 1."""
        ends = jnp.array([0.0, 1.0])
        if self.per_pixel:
            return self.schedule.gamma_min + (self.schedule.gamma_max - self.schedule.gamma_min) * ends
        return self.gamma(params, ends)

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

    def times(self, u: Float[Array, " b"]) -> WeightedTimes:
        """Times from uniform numbers, by the density, or the upper end of one of T steps."""
        if self.timesteps:
            return WeightedTimes((jnp.floor(u * self.timesteps) + 1.0) / self.timesteps, jnp.ones_like(u))
        return self.time_density(u, schedule=self.schedule, path=self.path)

    def output(
        self,
        params: Params,
        z: Data,
        gamma: Float[Array, "b ..."],
        context: Context,
        *,
        t: Float[Array, " b"] | None = None,
        dropout_key: jax.Array | None = None,
    ) -> Data:
        """The network's output; `t` is for a network that sees it; a key switches dropout on."""
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        out: Any = self.network.apply(
            {"params": params["network"]},
            z,
            self.time_input(t, gamma),
            _known(context),
            train=dropout_key is not None,
            rngs=rngs,
        )
        return out

    def predict(self, params: Params, z: Data, t: Float[Array, " b"], context: Context) -> Prediction:
        """The denoiser's estimate of eps at times [b]."""
        c = self.coefficients(self.time_gamma(params, t, context))
        out = self.output(params, z, c.gamma, context, t=t)
        return Prediction(self.parameterization(c).to_eps(out, z), c)

    def ode_drift(self, params: Params, z: Data, t: Float[Array, " b"], context: Context) -> Data:
        """dz/dt of the probability-flow ODE at times [b] (`jvdm.diffusion.paths`, equation 3)."""
        if self.schedule.gamma_min == -math.inf:
            # Without noise gamma' is infinite: the limit, from a little above.
            t = jnp.maximum(t, 2.0**-24)
        eps, c = self.predict(params, z, t, context)
        return c.dgamma_dt * (self.path.dlogalpha_dgamma(c.gamma) * z + 0.5 * c.sigma * eps)

    def magnification(self, alpha_0: Float[Array, "..."]) -> Float[Array, "..."]:
        """What z_0 is multiplied by before it is decoded."""
        return losses.DECODERS[self.decoder](alpha_0)


def _known(context: Context) -> Float[Array, "b ..."]:
    """What a network is told besides the time: the conditioning, and the latent."""
    if context.latent is None:
        return context.conditioning
    return jnp.concatenate([context.conditioning[:, None], context.latent], axis=-1)


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
    path = PATHS.build(config.path)
    schedule = SCHEDULES.build(config.schedule, noise_path=path, image_shape=image_shape)
    latent = LATENTS.build(config.latent)
    latent = None if isinstance(latent, NoLatent) else latent
    encoder = None if latent is None else ENCODERS.build(config.encoder, num_outputs=latent.num_logits)
    if not schedule.gamma_min < schedule.gamma_max:
        raise UserError(
            f"config.schedule: gamma_min {schedule.gamma_min} is not below gamma_max {schedule.gamma_max}"
        )
    time_density = TIME_DENSITIES.build(config.time_density)
    data_map = DATA_MAPS.build(config.data_map)
    checks.check(config, schedule, path, time_density, data_map, num_levels)
    checks.check_latent(config, schedule, latent)
    if config.model.decoder not in losses.DECODERS:
        raise unknown("config.model.decoder", config.model.decoder, losses.DECODERS)
    return Model(
        network=NETWORKS.build(config.network),
        schedule=schedule,
        path=path,
        parameterization=PARAMETERIZATIONS.build(config.parameterization, path=path),
        image_shape=image_shape,
        num_levels=num_levels,
        timesteps=timesteps,
        time_density=time_density,
        decoder=config.model.decoder,
        time_input=time_input(config.model.time_input, schedule),
        data_map=data_map,
        latent=latent,
        encoder=encoder,
    )
