"""Composition: a config selects the parts, and `build` joins them into one model.

This is the only module that knows all of the mathematics and the networks. Parameters are
`{"network": ..., "schedule": ...}`, `"encoder"` with a latent, and what else the process learns.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jvdm.core import random
from jvdm.core.errors import UserError, unknown
from jvdm.core.keys import indexed, named
from jvdm.core.records import Batch, Coefficients, Context, Draws, Dropout, LatentCost, TimeGamma
from jvdm.core.registry import Config
from jvdm.diffusion import losses, transforms
from jvdm.diffusion.latents import LATENTS
from jvdm.diffusion.normal import Normal
from jvdm.diffusion.parameterizations import PARAMETERIZATIONS
from jvdm.diffusion.paths import PATHS
from jvdm.diffusion.per_pixel_schedules import SCHEDULES
from jvdm.diffusion.process import PROCESSES, Process
from jvdm.diffusion.relations import Prediction
from jvdm.diffusion.times import TIME_DENSITIES, UniformDensity, WeightedTimes
from jvdm.diffusion.transforms import DATA_MAPS, SCALING
from jvdm.model import checks
from jvdm.networks import NETWORKS, GammaInput, time_input
from jvdm.networks.encoders import ENCODERS

Params = Any
Data = Float[Array, " b *d"]


def _apply(
    module: nn.Module, params: Params, *arrays: Array, context: Context, dropout: Dropout | None
) -> Any:
    """A network's or an encoder's output.

    Masks of `layers.Dropout` are drawn from the stream "mask" and an example's place in the batch. The stream
    "dropout" is for modules that draw for all examples at once: it differs between parts of a batch.
    """
    if dropout is None:
        return module.apply({"params": params}, *arrays, context)
    of_this_part = indexed(named(dropout.key, "part"), dropout.place[0])
    rngs = {"mask": dropout.key, "dropout": of_this_part}
    context = context._replace(place=dropout.place)
    return module.apply({"params": params}, *arrays, context, train=True, rngs=rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A diffusion model over arrays of one shape, discrete or continuous.

    Attributes:
        network: (z, time [b], context, train) -> output [b, *data_shape].
        process: the forward process.
        parameterization: coefficients -> relation of output and eps.
        data_shape: of one example, of any rank.
        num_levels: K, values per dimension; 0 is continuous data.
        timesteps: T of the discrete-time bound, 0 for continuous time.
        time_density: uniform numbers -> times, in continuous time.
        decoder: a name of `losses.DECODERS`.
        time_input: (t, gamma) -> the network's time; gamma itself by default.
        data_map: from data to the space of the diffusion.
        latent: an auxiliary latent (`jvdm.diffusion.latents`), or None.
        encoder: (encoded data, context, train) -> logits of the latent; None without one.
        evaluating: a latent whose training charge is not a bound is replaced by one whose charge is.
    """

    network: nn.Module
    process: Process
    parameterization: Any
    data_shape: tuple[int, ...]
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
    def schedule(self) -> Any:
        """The process's schedule."""
        return self.process.schedule

    @property
    def path(self) -> Any:
        """The process's path."""
        return self.process.path

    @property
    def per_pixel(self) -> bool:
        """Whether gamma differs from pixel to pixel; the ends are shared."""
        return self.schedule.per_pixel

    @property
    def has_bound(self) -> bool:
        """Whether the variational bound of discrete data is defined: the noise at time 0 is not zero."""
        return self.num_levels > 0 and not self.process.starts_without_noise

    @property
    def num_dims(self) -> int:
        """D, dimensions of one example."""
        return math.prod(self.data_shape)

    @property
    def units(self) -> str:
        """The unit of reported likelihoods: "bits/dim" of discrete data, "nats" of continuous."""
        return "bits/dim" if self.num_levels else "nats"

    @property
    def units_per_nat(self) -> float:
        """How many of those units are one nat."""
        return 1.0 / (self.num_dims * math.log(2.0)) if self.num_levels else 1.0

    def init(self, key: jax.Array) -> Params:
        """Initial parameters: `"network"`, those of the process, and `"encoder"` with a latent.

        Args:
            key: of random numbers.
        """
        z, scalar, params = jnp.zeros((1, *self.data_shape)), jnp.zeros(1), {}
        context = Context()
        if self.latent is not None and self.encoder is not None:
            context = context._replace(latent=jnp.zeros((1, self.latent.size)))
            encoder = self.encoder.init(named(key, "encoder"), z, Context())
            params["encoder"] = encoder.get("params", {})
        time = self.time_input(scalar, jnp.zeros((1, *self.data_shape) if self.per_pixel else (1,)))
        network = self.network.init(named(key, "network"), z, time, context)
        process = self.process.init(named(key, "process"), context)
        return {"network": network.get("params", {}), **process, **params}

    def draw(self, keys: jax.Array, u: Float[Array, " b"]) -> Draws:
        """The random numbers of one evaluation of the bound.

        Args:
            keys: [b] one key per example, so that an example's noise does not depend on its batch.
            u: [b] numbers in (0, 1), from a time sampler.
        """

        def noise(key):
            return (
                random.normal(key, "eps", self.data_shape),
                random.normal(key, "eps_0", self.data_shape),
                random.rademacher(key, "probes", self.data_shape),
                random.uniform(key, "dequantization", self.data_shape),
            )

        draws = Draws(u, *jax.vmap(noise)(keys))
        if self.latent is None:
            return draws
        draw = jax.vmap(self.latent.draw)
        return draws._replace(latent=draw(keys), other_latent=draw(named(keys, "other")))

    def encode_latent(
        self,
        params: Params,
        batch: Batch,
        noise: Any = None,
        *,
        step: Array | None = None,
        dropout: Dropout | None = None,
    ) -> tuple[Context, LatentCost | None]:
        """The context of the examples, and the cost of the latent in it.

        Args:
            params: the model's.
            batch: the examples.
            noise: [b, ...] of the latent; unused without one.
            step: of training, where the latent's gradient is annealed.
            dropout: dropout is on if given.

        Returns:
            The context, and the cost; None without a latent.
        """
        context = Context(batch.conditioning)
        if self.latent is None or self.encoder is None:
            return context, None
        f = self.encode(batch.x)
        if dropout is not None:
            dropout = dropout._replace(key=named(dropout.key, "encoder"))
        logits: Any = _apply(self.encoder, params["encoder"], f, context=context, dropout=dropout)
        sample = self.latent.sample(logits, noise, step)
        if self.evaluating and not self.latent.is_bound:
            # A function of the example has a charge that is known.
            charge = jnp.full_like(sample.charge, self.latent.mode_charge)
            cost = LatentCost(charge, log_ratio=charge, surrogate=sample.charge)
            return context._replace(latent=self.latent.mode(logits)), cost
        return context._replace(latent=sample.value), LatentCost(sample.charge, sample.log_ratio)

    def prior_context(self, keys: jax.Array, latent: Float[Array, "b m"] | None = None) -> Context:
        """The context of samples: a latent from the prior, or a given one.

        Args:
            keys: [b] one key per sample.
            latent: [b, m] in place of the prior's.
        """
        if self.latent is None:
            return Context()
        return Context(latent=jax.vmap(self.latent.prior)(keys) if latent is None else latent)

    def encode(self, x: Array) -> Data:
        """Data in the space of the diffusion; of discrete data, the centres of the cells.

        Args:
            x: [b, *data_shape] levels, or continuous data.

        Returns:
            [b, *data_shape].
        """
        return transforms.encode(x, self.num_levels, self.data_map)

    def at(self, params: Params, t: Float[Array, " b"], context: Context | None = None) -> Coefficients:
        """As `Process.at`."""
        return self.process.at(params, t, context)

    def gamma(
        self, params: Params, t: Float[Array, "..."], context: Context | None = None
    ) -> Float[Array, "..."]:
        """As `Process.gamma`."""
        return self.process.gamma(params, t, context)

    def time_gamma(self, params: Params, t: Float[Array, " b"], context: Context | None = None) -> TimeGamma:
        """As `Process.time_gamma`."""
        return self.process.time_gamma(params, t, context)

    def ends(self, params: Params) -> Float[Array, "2"]:
        """As `Process.ends`."""
        return self.process.ends(params)

    def prior(self, params: Params) -> Normal:
        """As `Process.prior`."""
        return self.process.prior(params)

    def times(self, u: Float[Array, " b"]) -> WeightedTimes:
        """Times from uniform numbers, by the density; in discrete time, the upper ends of steps.

        Args:
            u: [b] numbers in (0, 1).

        Returns:
            [b] times, and one over their density.
        """
        if self.timesteps:
            # Rounding may make the product T.
            step = jnp.minimum(jnp.floor(u * self.timesteps), self.timesteps - 1.0)
            return WeightedTimes((step + 1.0) / self.timesteps, jnp.ones_like(u))
        return self.time_density(u, schedule=self.schedule, path=self.path)

    def output(
        self,
        params: Params,
        z: Data,
        gamma: Float[Array, "b ..."],
        context: Context,
        *,
        t: Float[Array, " b"] | None = None,
        dropout: Dropout | None = None,
    ) -> Data:
        """The network's output, in the units of the parameterization.

        Args:
            params: the model's.
            z: [b, *data_shape] noised data.
            gamma: [b, ...] at z's time, broadcastable to the data.
            context: of the examples.
            t: [b] z's time, for a network that sees it.
            dropout: dropout is on if given.

        Returns:
            [b, *data_shape], in the units of the parameterization.
        """
        time = self.time_input(t, gamma)
        return _apply(self.network, params["network"], z, time, context=context, dropout=dropout)

    def predict(self, params: Params, z: Data, t: Float[Array, " b"], context: Context) -> Prediction:
        """The denoiser's estimate of eps.

        Args:
            params: the model's.
            z: [b, *data_shape] z_t.
            t: [b] times in [0, 1].
            context: of the examples.

        Returns:
            eps_hat [b, *data_shape], of unit variance, with the process at t.
        """
        c = self.at(params, t, context)
        out = self.output(params, z, c.gamma, context, t=t)
        return self.parameterization(c).predict(out, z, c)

    def ode_drift(self, params: Params, z: Data, t: Float[Array, " b"], context: Context) -> Data:
        """The drift of the probability-flow ODE (`jvdm.diffusion.gaussian`, 6).

        Args:
            params, z, t, context: as in `predict`.

        Returns:
            dz/dt, [b, *data_shape], per unit of t.
        """
        if self.process.starts_without_noise:
            # Without noise gamma' is infinite: the limit, from a little above.
            t = jnp.maximum(t, 2.0**-24)
        prediction = self.predict(params, z, t, context)
        return self.process.drift(params, z, prediction, context)

    def decoder_scale(self, alpha_0: Float[Array, "..."]) -> Float[Array, "..."]:
        """The factor of z_0 before it is decoded.

        Args:
            alpha_0: at time 0, of any shape.

        Returns:
            Of the shape of alpha_0.
        """
        return losses.DECODERS[self.decoder](alpha_0)


def build(config: Config, data_shape: tuple[int, ...], num_levels: int) -> Model:
    """The model that a config selects.

    Args:
        config: all of it.
        data_shape: of one example, of any rank.
        num_levels: K of the data; 0 is continuous data.

    Raises:
        UserError: unknown component or option, or parts that do not go together.
    """
    path = PATHS.build(config.path)
    schedule = SCHEDULES.build(config.schedule, noise_path=path, data_shape=data_shape)
    latent = LATENTS.build(config.latent)
    latent = latent if latent.size else None
    encoder = None if latent is None else ENCODERS.build(config.encoder, num_outputs=latent.num_logits)
    if not schedule.gamma_min < schedule.gamma_max:
        raise UserError(
            f"config.schedule: gamma_min {schedule.gamma_min} is not below gamma_max {schedule.gamma_max}"
        )
    time_density = TIME_DENSITIES.build(config.time_density)
    data_map = DATA_MAPS.build(config.data_map)
    checks.check(config, schedule, path, time_density, data_map, num_levels)
    process = PROCESSES.build(
        config.process, schedule=schedule, path=path, data_shape=data_shape, prior_name=config.model.prior
    )
    if timesteps := config.model.timesteps:
        checks.check_process(process, "step_loss", f"config.model.timesteps={timesteps}")
    checks.check_latent(config, schedule, latent, encoder, data_shape)
    network = NETWORKS.build(config.network)
    checks.check_network(config, schedule, network, data_shape)
    if config.model.decoder not in losses.DECODERS:
        raise unknown("config.model.decoder", config.model.decoder, losses.DECODERS)
    return Model(
        network=network,
        process=process,
        parameterization=PARAMETERIZATIONS.build(config.parameterization, path=path),
        data_shape=data_shape,
        num_levels=num_levels,
        timesteps=timesteps,
        time_density=time_density,
        decoder=config.model.decoder,
        time_input=time_input(config.model.time_input, schedule),
        data_map=data_map,
        latent=latent,
        encoder=encoder,
    )
