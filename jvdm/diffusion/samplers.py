"""Samplers: from noise at t = 1 to z_0.

All start from the prior of the process (`gaussian`, 5). On a uniform grid of T steps, s = t - 1/T:

    1. ancestral: a draw from the model's reverse step p(z_s | z_t) (`gaussian`, 4; 2107.00630, appendix A.4)
    2. DDIM:      z_s = alpha_s x_hat + sigma_s eps_hat                         (2010.02502, eta = 0)

With `clip`, x_hat is clipped to the range of the data, and eps_hat replaced by the noise that goes with it.

    3. reverse SDE, of the family that has the marginals of the diffusion, by Euler-Maruyama steps of length
       h, with the drift b of the ODE (`gaussian`, 6) and lam in [0, 1] (2106.02808, section 5 and appendix):
                  z_s = z_t - h b + h (1 - lam)/2 g^2 score + sqrt(h (1 - lam)) g eps
       lam = 0 is the reverse SDE, lam = 1 the probability-flow ODE
    4. ODE:       the probability-flow ODE by a solver of `solvers`; with a trace it also gives log p(z_0)
                  (`likelihood`, equation 1)
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jvdm.core import random
from jvdm.core.keys import indexed, named
from jvdm.core.records import Coefficients, Context
from jvdm.core.registry import Registry
from jvdm.diffusion import likelihood, losses
from jvdm.diffusion.divergence import Hutchinson
from jvdm.diffusion.normal import Normal
from jvdm.diffusion.process import Process
from jvdm.diffusion.relations import Prediction
from jvdm.diffusion.solvers import Adaptive, Fixed
from jvdm.diffusion.transforms import SCALING, DataMap


class Sampler(Protocol):
    """A sampler, a frozen dataclass that has one of the two.

    Attributes:
        step: (prediction at t, z_t, noise, where) -> z_s, of the shape of z_t; `where` is a `Step`. None for
            a sampler that solves the ODE.
        solver: (number of steps, where they are equal) -> one of `diffusion.solvers`. None for a sampler that
            takes steps.
        probes: of the Hutchinson trace for the log-likelihood of a sampler that solves the ODE.
        needs: methods that a process may lack (`process.Process`).
    """

    step: Callable[..., Any] | None = None
    solver: Callable[[int], Any] | None = None
    probes: int = 0
    needs: ClassVar[tuple[str, ...]] = ()


SAMPLERS = Registry("sampler", Sampler)

Data = Float[Array, " b *d"]
Range = tuple[float, float]


class Step(NamedTuple):
    """Where a step from t to s goes; the prediction holds the process at t.

    Attributes:
        process: that is reversed.
        params: the model's.
        at_s: the process at s.
        length: t - s.
        data_range: of the encoded data.
        context: of the samples.
    """

    process: Process
    params: Any
    at_s: Coefficients
    length: Float[Array, ""] | float
    data_range: Range
    context: Context


def clipped(prediction: Prediction, z: Data, process: Process, data_range: Range) -> Prediction:
    """The prediction whose x_hat is clipped to the range of the data.

    Args:
        prediction: at t.
        z: [b, *data_shape] z_t.
        process: that is reversed.
        data_range: least and largest value of the encoded data.

    Returns:
        The same prediction with another eps_hat and score.
    """
    c = prediction.coefficients
    x = jnp.clip(process.denoised(z, prediction), *data_range)
    eps = (z - c.alpha * x) / c.sigma
    return prediction._replace(eps=eps, g2_score=-c.dgamma_dt * c.sigma * eps)


@SAMPLERS.register("ancestral")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Ancestral:
    """The reverse process of the discrete-time model (1)."""

    clip: bool = True
    needs: ClassVar[tuple[str, ...]] = ("reverse",)

    def step(self, prediction: Prediction, z: Data, noise: Data, where: Step) -> Data:
        """z_s from z_t.

        Args:
            prediction: at t.
            z: [b, *data_shape] z_t.
            noise: [b, *data_shape] standard normal.
            where: the step.
        """
        if self.clip:
            prediction = clipped(prediction, z, where.process, where.data_range)
        return where.process.reverse(where.params, z, prediction, where.at_s, where.context).sample(noise)


@SAMPLERS.register("ddim")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM:
    """The deterministic sampler (2)."""

    clip: bool = True

    def step(self, prediction: Prediction, z: Data, noise: Data, where: Step) -> Data:
        """As `Ancestral.step`; the noise is not used."""
        process = where.process
        if self.clip:
            prediction = clipped(prediction, z, process, where.data_range)
        x = process.denoised(z, prediction)
        encoded = process.encode(where.params, x, where.at_s, where.context)
        return process.sample(encoded, prediction.eps, where.at_s)


@SAMPLERS.register("reverse_sde")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReverseSDE:
    """The family of reverse SDEs (3).

    Attributes:
        lam: from 0, the reverse SDE, to 1, the ODE.
    """

    lam: float = 0.0
    needs: ClassVar[tuple[str, ...]] = ("drift",)

    def __post_init__(self):
        if not 0.0 <= self.lam <= 1.0:
            raise ValueError(f"lam is {self.lam}: give a number from 0 to 1")

    def drift(self, prediction: Prediction, z: Data, where: Step) -> Data:
        """The drift over the remaining time 1 - t, finite at time 0 where the score is.

        Args:
            prediction: at t.
            z: [b, *data_shape] z_t.
            where: the step.

        Returns:
            [b, *data_shape], per unit of time.
        """
        ode = where.process.drift(where.params, z, prediction, where.context)
        return 0.5 * (1.0 - self.lam) * prediction.g2_score - ode

    def step(self, prediction: Prediction, z: Data, noise: Data, where: Step) -> Data:
        """As `Ancestral.step`."""
        h, g2 = where.length, prediction.coefficients.g2
        volatility = jnp.sqrt(h * (1.0 - self.lam) * g2)
        return z + h * self.drift(prediction, z, where) + volatility * noise


@SAMPLERS.register("ode")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ODESampler:
    """The probability-flow ODE (4).

    Attributes:
        method: of the solver.
        tolerance: of its adaptive steps; 0 takes `config.sample.steps` equal steps instead.
        max_steps: of the adaptive solver.
        probes: of the Hutchinson trace, where the log-likelihood is asked for.
    """

    method: str = "dopri5"
    tolerance: float = 1e-5
    max_steps: int = 1000
    probes: int = 1
    needs: ClassVar[tuple[str, ...]] = ("drift",)

    def __post_init__(self):
        self.solver(1)  # refuses bad options
        Hutchinson(probes=self.probes)

    def solver(self, num_steps: int) -> Any:
        """The solver; adaptive steps ignore `num_steps`."""
        if self.tolerance:
            return Adaptive(method=self.method, tolerance=self.tolerance, max_steps=self.max_steps)
        return Fixed(method=self.method, num_steps=num_steps)


class Flow(NamedTuple):
    """Samples of the ODE.

    Attributes:
        z_0: [b, *data_shape].
        log_likelihood: [b] log p(z_0), nats, or None.
        ok: [b] the solver reached the end time.
    """

    z_0: Data
    log_likelihood: Float[Array, " b"] | None
    ok: Array


def sample(
    predict: Callable[[Data, Float[Array, " b"]], Prediction],
    process: Process,
    params: Any,
    context: Context,
    sampler: Ancestral | DDIM | ReverseSDE,
    keys: jax.Array,
    *,
    shape: tuple[int, ...],
    num_steps: int | Int[Array, ""],
    data_range: Range,
    every: int = 0,
) -> Data:
    """z_0 from noise, step by step.

    Args:
        predict: (z, t [b]) -> prediction.
        process: that is reversed.
        params: the model's.
        context: of the samples.
        sampler: has `step`.
        keys: [b] one key per sample, so that a sample does not depend on its batch.
        shape: of one sample.
        num_steps: T, an array only where `every` is 0.
        data_range: of the encoded data, for clipping.
        every: keep z after every so many steps, a divisor of their number; 0 keeps the last one only.

    Returns:
        [b, *shape] z_0, or [T / every + 1, b, *shape] from z_1 to z_0.

    Raises:
        ValueError: `every` does not divide the number of steps.
    """
    if every and num_steps % every:
        raise ValueError(f"every {every} does not divide the number of steps, {num_steps}")
    b = keys.shape[0]

    def noise(i):
        keys_of_step = indexed(named(keys, "steps"), i)
        return jax.vmap(lambda key: random.normal(key, "noise", shape))(keys_of_step)

    def body(i, z):
        t = jnp.full(b, (num_steps - i) / num_steps, jnp.float32)
        s = jnp.full(b, (num_steps - i - 1) / num_steps, jnp.float32)
        where = Step(process, params, process.at(params, s, context), 1.0 / num_steps, data_range, context)
        return sampler.step(predict(z, t), z, noise(i), where)

    start = process.prior(params).sample(jax.vmap(lambda key: random.normal(key, "z_1", shape))(keys))
    if not every:
        return jax.lax.fori_loop(0, num_steps, body, start)

    def several(z, j):
        z = jax.lax.fori_loop(j * every, (j + 1) * every, body, z)
        return z, z

    _, kept = jax.lax.scan(several, start, jnp.arange(num_steps // every))
    return jnp.concatenate([start[None], kept])


def flow(
    drift: Callable[[Any, Data, Array, Any], Data],
    shared: Any,
    context: Any,
    sampler: ODESampler,
    keys: jax.Array,
    *,
    shape: tuple[int, ...],
    prior: Normal,
    num_steps: int,
    log_likelihood: bool,
) -> Flow:
    """z_0 from noise, along the ODE, each sample with its own steps.

    Args:
        drift: (shared, z [b, *shape], t [b], context) -> dz/dt.
        shared: what the drift needs for all samples, such as parameters.
        context: a tree with a leading axis [b].
        sampler: chooses the solver.
        keys: [b] one key per sample.
        shape: of one sample.
        prior: p(z_1), broadcastable to a sample.
        num_steps: of a solver with equal steps.
        log_likelihood: whether to compute it.
    """
    solver = sampler.solver(num_steps)
    trace = Hutchinson(probes=sampler.probes) if log_likelihood else None
    field = likelihood.batched_field(drift, trace)

    def one(key, context):
        z_1 = prior.sample(random.normal(key, "z_1", shape))
        if trace is None:
            solution = solver(field(shared, context, jnp.zeros(0)), z_1, 1.0, 0.0)
            return Flow(solution.state, None, solution.ok)
        probes = trace.draw(key, shape)
        solution = solver(field(shared, context, probes), (z_1, jnp.zeros(len(probes))), 1.0, 0.0)
        z_0, integral = solution.state
        # The integral runs from 1 to 0.
        log_p = jnp.sum(prior.log_density(z_1)) - z_1.size * jnp.mean(integral)
        return Flow(z_0, log_p, solution.ok)

    return jax.vmap(one)(keys, context)


def sampled_levels(
    keys: jax.Array,
    z_0: Data,
    alpha_0: losses.Scale,
    gamma_0: losses.Scale,
    num_levels: int,
    data_map: DataMap = SCALING,
) -> Array:
    """A draw from the decoder's categorical at every pixel.

    Args:
        keys: [b] keys.
        z_0: [b, *data_shape] at time 0.
        alpha_0, gamma_0: at time 0, broadcastable to z_0.
        num_levels: K.
        data_map: that encodes.

    Returns:
        [b, *data_shape] uint8, 0..K-1.
    """
    logits = losses.decoder_logits(z_0, alpha_0, gamma_0, num_levels, data_map)
    draw = jax.vmap(lambda key, logits: random.categorical(key, "pixels", logits))
    return draw(keys, logits).astype(jnp.uint8)
