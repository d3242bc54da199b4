"""Samplers: from noise at t = 1 to z_0.

On a uniform grid of T steps, for a step from t to s < t, with c = -expm1(gamma_s - gamma_t):

    1. ancestral: z_s = (alpha_s / alpha_t) (z_t - c sigma_t eps_hat) + sigma_s sqrt(c) eps
       (2107.00630, appendix A.4)
    2. DDIM:      z_s = alpha_s x_hat + sigma_s eps_hat,  x_hat = (z_t - sigma_t eps_hat) / alpha_t
       (2010.02502, eta = 0)

With `clip`, x_hat is clipped to [-1, 1] and eps_hat is replaced by the noise that goes with it.

    3. ODE:       the probability-flow ODE (`jvdm.paths`, equation 3) from z_1 ~ N(0, sigma_1^2), by a solver
       of `jvdm.solvers`; with a trace it also gives log p(z_0) (`jvdm.likelihood`, equation 1)
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvdm import likelihood, losses
from jvdm.divergence import Hutchinson
from jvdm.records import Coefficients, Prediction
from jvdm.registry import Registry
from jvdm.solvers import Adaptive, Fixed

SAMPLERS = Registry("sampler")

Data = Float[Array, "b h w c"]


def clip_eps(eps: Data, z: Data, c: Coefficients) -> Data:
    """The eps_hat that goes with x_hat clipped to [-1, 1]."""
    x = jnp.clip((z - c.sigma * eps) / c.alpha, -1.0, 1.0)
    return (z - c.alpha * x) / c.sigma


@SAMPLERS.register("ancestral")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Ancestral:
    """The reverse process of the discrete-time model (1)."""

    clip: bool = True

    def step(self, eps_hat: Data, z: Data, noise: Data, at_t: Coefficients, at_s: Coefficients) -> Data:
        """z_s from z_t.

        Args:
            eps_hat: [b, h, w, c] prediction at t.
            z: [b, h, w, c] z_t.
            noise: [b, h, w, c] standard normal.
            at_t, at_s: coefficients at both times.
        """
        if self.clip:
            eps_hat = clip_eps(eps_hat, z, at_t)
        c = -jnp.expm1(at_s.gamma - at_t.gamma)
        mean = at_s.alpha / at_t.alpha * (z - c * at_t.sigma * eps_hat)
        return mean + at_s.sigma * jnp.sqrt(c) * noise


@SAMPLERS.register("ddim")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM:
    """The deterministic sampler (2)."""

    clip: bool = True

    def step(self, eps_hat: Data, z: Data, noise: Data, at_t: Coefficients, at_s: Coefficients) -> Data:
        """z_s from z_t; the noise is not used."""
        if self.clip:
            eps_hat = clip_eps(eps_hat, z, at_t)
        x = (z - at_t.sigma * eps_hat) / at_t.alpha
        return at_s.alpha * x + at_s.sigma * eps_hat


@SAMPLERS.register("ode")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ODESampler:
    """The probability-flow ODE (3).

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
    sampler: Ancestral | DDIM,
    keys: jax.Array,
    *,
    shape: tuple[int, int, int],
    num_steps: int,
) -> Data:
    """z_0 from noise, step by step.

    Args:
        predict: (z, t [b]) -> prediction.
        coefficients: t [b] -> coefficients.
        sampler: has `step`.
        keys: [b] one key per sample, so that a sample does not depend on its batch.
        shape: of one sample.
        num_steps: T.

    Returns:
        [b, h, w, c] z_0.
    """
    draw = jax.vmap(lambda key, i: jax.random.normal(jax.random.fold_in(key, i), shape), in_axes=(0, None))
    b = keys.shape[0]

    def body(i, z):
        t = jnp.full(b, (num_steps - i) / num_steps, jnp.float32)
        s = jnp.full(b, (num_steps - i - 1) / num_steps, jnp.float32)
        prediction = predict(z, t)
        return sampler.step(prediction.eps, z, draw(keys, i), prediction.coefficients, coefficients(s))

    return jax.lax.fori_loop(0, num_steps, body, draw(keys, num_steps))


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


def most_likely_levels(z_0: Data, alpha_0: losses.Scale, num_levels: int) -> Array:
    """The argmax of the decoder's categorical: the nearest level.

    Returns:
        [b, h, w, c] uint8, 0..K-1.
    """
    nearest = jnp.round((z_0 / alpha_0 + 1.0) * (num_levels / 2.0) - 0.5)
    return jnp.clip(nearest, 0, num_levels - 1).astype(jnp.uint8)


def sampled_levels(
    keys: jax.Array,
    z_0: Data,
    alpha_0: losses.Scale,
    gamma_0: losses.Scale,
    num_levels: int,
) -> Array:
    """A draw from the decoder's categorical at every pixel.

    Returns:
        [b, h, w, c] uint8, 0..K-1.
    """
    logits = losses.decoder_logits(z_0, alpha_0, gamma_0, num_levels)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.uint8)
