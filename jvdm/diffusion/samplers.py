"""Samplers: from noise at t = 1 to z_0.

On a uniform grid of T steps, for a step from t to s < t, with c = -expm1(gamma_s - gamma_t):

    1. ancestral: z_s = (alpha_s / alpha_t) (z_t - c sigma_t eps_hat) + sigma_s sqrt(c) eps
       (2107.00630, appendix A.4)
    2. DDIM:      z_s = alpha_s x_hat + sigma_s eps_hat,  x_hat = (z_t - sigma_t eps_hat) / alpha_t
       (2010.02502, eta = 0)

With `clip`, x_hat is clipped to the range of the data, and eps_hat replaced by the noise that goes with it.

    3. reverse SDE, of the family that has the marginals of the diffusion, by Euler-Maruyama steps of length
       h, with f = d log alpha / dt z, g^2 = sigma^2 gamma', score = -eps_hat / sigma, lam in [0, 1]
       (2106.02808, section 5 and appendix):
                  z_s = z_t + h [ (1 - lam/2) g^2 score - f ] + sqrt(h (1 - lam)) g eps
       lam = 0 is the reverse SDE, lam = 1 the probability-flow ODE
    4. ODE:       the probability-flow ODE (`paths`, equation 3) from z_1 ~ N(0, sigma_1^2), by a solver
       of `diffusion.solvers`; with a trace it also gives log p(z_0) (`diffusion.likelihood`, equation 1)
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvdm.core.records import Coefficients, Prediction
from jvdm.core.registry import Registry
from jvdm.diffusion import likelihood, losses
from jvdm.diffusion.divergence import Hutchinson
from jvdm.diffusion.solvers import Adaptive, Fixed
from jvdm.diffusion.transforms import SCALING, DataMap

SAMPLERS = Registry("sampler")

Data = Float[Array, "b h w c"]


Range = tuple[float, float]


def clip_eps(eps: Data, z: Data, c: Coefficients, data_range: Range) -> Data:
    """The eps_hat that goes with x_hat clipped to the range of the data."""
    x = jnp.clip((z - c.sigma * eps) / c.alpha, *data_range)
    return (z - c.alpha * x) / c.sigma


class Step(NamedTuple):
    """Where a step from t to s is.

    Attributes:
        at_t, at_s: coefficients at both times.
        length: t - s.
        dlogalpha_dgamma: of the path at t, broadcastable to the data.
        data_range: of the encoded data.
    """

    at_t: Coefficients
    at_s: Coefficients
    length: Float[Array, ""] | float
    dlogalpha_dgamma: Float[Array, "..."]
    data_range: Range


@SAMPLERS.register("ancestral")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Ancestral:
    """The reverse process of the discrete-time model (1)."""

    clip: bool = True

    def step(self, eps_hat: Data, z: Data, noise: Data, where: Step) -> Data:
        """z_s from z_t.

        Args:
            eps_hat: [b, h, w, c] prediction at t.
            z: [b, h, w, c] z_t.
            noise: [b, h, w, c] standard normal.
            where: t and s.
        """
        at_t, at_s = where.at_t, where.at_s
        if self.clip:
            eps_hat = clip_eps(eps_hat, z, at_t, where.data_range)
        # Where a schedule is almost flat, rounding may turn a step of gamma about.
        c = -jnp.expm1(jnp.minimum(at_s.gamma - at_t.gamma, 0.0))
        mean = at_s.alpha / at_t.alpha * (z - c * at_t.sigma * eps_hat)
        return mean + at_s.sigma * jnp.sqrt(c) * noise


@SAMPLERS.register("ddim")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM:
    """The deterministic sampler (2)."""

    clip: bool = True

    def step(self, eps_hat: Data, z: Data, noise: Data, where: Step) -> Data:
        """z_s from z_t; the noise is not used."""
        at_t, at_s = where.at_t, where.at_s
        if self.clip:
            eps_hat = clip_eps(eps_hat, z, at_t, where.data_range)
        x = (z - at_t.sigma * eps_hat) / at_t.alpha
        return at_s.alpha * x + at_s.sigma * eps_hat


@SAMPLERS.register("reverse_sde")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReverseSDE:
    """The family of reverse SDEs (3).

    Attributes:
        lam: from 0, the reverse SDE, to 1, the ODE.
    """

    lam: float = 0.0

    def __post_init__(self):
        if not 0.0 <= self.lam <= 1.0:
            raise ValueError(f"lam is {self.lam}: give a number from 0 to 1")

    def step(self, eps_hat: Data, z: Data, noise: Data, where: Step) -> Data:
        """z_s from z_t; arguments as of `Ancestral`."""
        c, h = where.at_t, where.length
        # g^2 score is -gamma' sigma eps_hat.
        drift = -c.dgamma_dt * ((1.0 - 0.5 * self.lam) * c.sigma * eps_hat + where.dlogalpha_dgamma * z)
        diffusion = jnp.sqrt((1.0 - self.lam) * c.dgamma_dt) * c.sigma
        return z + h * drift + jnp.sqrt(h) * diffusion * noise


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

    def __post_init__(self):
        self.solver(1)  # refuses bad options
        Hutchinson(probes=self.probes)

    def solver(self, num_steps: int) -> Any:
        """The solver; `num_steps` is not looked at where the steps are adaptive."""
        if self.tolerance:
            return Adaptive(method=self.method, tolerance=self.tolerance, max_steps=self.max_steps)
        return Fixed(method=self.method, num_steps=num_steps)


class Flow(NamedTuple):
    """Samples of the ODE.

    Attributes:
        z_0: [b, h, w, c].
        log_likelihood: [b] log p(z_0), nats, or None.
        ok: [b] the solver came to its end.
    """

    z_0: Data
    log_likelihood: Float[Array, " b"] | None
    ok: Array


def sample(
    predict: Callable[[Data, Float[Array, " b"]], Prediction],
    coefficients: Callable[[Float[Array, " b"]], Coefficients],
    sampler: Ancestral | DDIM | ReverseSDE,
    keys: jax.Array,
    *,
    shape: tuple[int, int, int],
    num_steps: int,
    path: Any,
    data_range: Range,
    every: int = 0,
) -> Data:
    """z_0 from noise, step by step.

    Args:
        predict: (z, t [b]) -> prediction.
        coefficients: t [b] -> coefficients.
        sampler: has `step`.
        keys: [b] one key per sample, so that a sample does not depend on its batch.
        shape: of one sample.
        num_steps: T.
        path: one of `jvdm.diffusion.paths`.
        data_range: of the encoded data, for clipping.
        every: keep z after every so many steps, a divisor of their number; 0 keeps the last one only.

    Returns:
        [b, h, w, c] z_0, or [T / every + 1, b, h, w, c] from z_1 to z_0.

    Raises:
        ValueError: `every` does not divide the number of steps.
    """
    if every and num_steps % every:
        raise ValueError(f"every {every} does not divide the number of steps, {num_steps}")
    draw = jax.vmap(lambda key, i: jax.random.normal(jax.random.fold_in(key, i), shape), in_axes=(0, None))
    b = keys.shape[0]

    def body(i, z):
        t = jnp.full(b, (num_steps - i) / num_steps, jnp.float32)
        s = jnp.full(b, (num_steps - i - 1) / num_steps, jnp.float32)
        eps, at_t = predict(z, t)
        where = Step(at_t, coefficients(s), 1.0 / num_steps, path.dlogalpha_dgamma(at_t.gamma), data_range)
        return sampler.step(eps, z, draw(keys, i), where)

    start = draw(keys, num_steps)
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
    shape: tuple[int, int, int],
    log_sigma_1: Float[Array, "..."],
    num_steps: int,
    log_likelihood: bool,
) -> Flow:
    """z_0 from noise, along the ODE, each sample with steps of its own.

    Args:
        drift: (shared, z [b, h, w, c], t [b], context) -> dz/dt.
        shared: what the drift needs for all samples, such as parameters.
        context: a tree with a leading axis [b].
        sampler: chooses the solver.
        keys: [b] one key per sample.
        shape: of one sample.
        log_sigma_1: at time 1, broadcastable to a sample.
        num_steps: of a solver with equal steps.
        log_likelihood: whether to compute it.
    """
    solver = sampler.solver(num_steps)
    trace = Hutchinson(probes=sampler.probes) if log_likelihood else None
    field = likelihood.batched_field(drift, trace)

    def one(key, context):
        k_noise, k_probe = jax.random.split(key)
        z_1 = jnp.exp(log_sigma_1) * jax.random.normal(k_noise, shape)
        if trace is None:
            solution = solver(field(shared, context, jnp.zeros(0)), z_1, 1.0, 0.0)
            return Flow(solution.state, None, solution.ok)
        probes = trace.draw(k_probe, shape)
        solution = solver(field(shared, context, probes), (z_1, jnp.zeros(len(probes))), 1.0, 0.0)
        z_0, integral = solution.state
        # The integral runs from 1 to 0.
        log_p = likelihood.normal_log_density(z_1, log_sigma_1) - z_1.size * jnp.mean(integral)
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

    Returns:
        [b, h, w, c] uint8, 0..K-1.
    """
    logits = losses.decoder_logits(z_0, alpha_0, gamma_0, num_levels, data_map)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.uint8)
