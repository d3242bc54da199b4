"""Bounds on the log-density of a continuous z_s that see the score at one random time, per example, in nats.

The generative SDE runs from the process's prior at time 1 back to time s, with its drift and noise and
a = g score, g^2 = sigma^2 gamma', the score -eps_hat / sigma. The inference process runs the other way:

    1. z_t = (alpha_t / alpha_s) z_s + sigma_t sqrt(-expm1(gamma_s - gamma_t)) eps

where gamma_s is -inf if z_s is without noise. With f(z, t) = k z, k = d log alpha / dt:

    2. random slice (2106.02808, theorem 3; implicit score matching):
       log p(z_s) >= E[ log p(z_1) ] - integral over [s, 1] of E[ 1/2 |a|^2 + div(g a - f) ]
       1/2 |a|^2 = 1/2 gamma' |eps_hat|^2,   div(g a - f) = -gamma' sigma div eps_hat - D k
    3. truncated (2101.09258, theorem 3 and appendix), from time e, for data x at time 0 without noise:
       log p(x) >= E[ log p(x_1) ]
                   - 1/2 integral over [e, 1] of E[ gamma' (|eps - eps_hat|^2 - |eps|^2) - 2 D k ]
                   + E[ log N(x; (x_e - sigma_e eps_hat) / alpha_e, sigma_e^2 / alpha_e^2) ] + H(q(x_e | x))
       and the last two together are D/2 + D log alpha_e - 1/2 |eps - eps_hat|^2 at time e

(2) holds down to a noise-free time, where its integrand stays finite for the scores of smooth densities; its
price is the divergence. Each function returns the terms of -log p; their mean over random numbers is a bound.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jvdm.core.records import Coefficients
from jvdm.core.shapes import of_example, sum_example
from jvdm.diffusion.gaussian import diffuse
from jvdm.diffusion.normal import Normal
from jvdm.diffusion.process import Process

Data = Float[Array, " b *d"]
PerExample = Float[Array, " b"]


def process_prior(z: Data, prior: Normal) -> PerExample:
    """-log p(z_1) of the process.

    Args:
        z: [b, *data_shape] at time 1.
        prior: p(z_1), broadcastable to z.

    Returns:
        [b] nats.
    """
    return -sum_example(jnp.broadcast_to(prior.log_density(z), z.shape))


def released_prior(z: Data, prior: Normal) -> PerExample:
    """-log N(z; 0, 1) as the sdeflow code has it, with 1e-5 added to the variance in the exponent alone."""
    return sum_example(z**2 / (2.0 + 1e-5) + 0.5 * math.log(2.0 * math.pi))


PRIORS: dict[str, Callable[[Data, Normal], PerExample]] = {
    "model": process_prior,
    "sdeflow_released": released_prior,
}


class RandomSlice(NamedTuple):
    """Terms of -log p(z_s) by (2), each [b] nats: the prior's, of 1/2 |a|^2, and of div(g a - f)."""

    prior: PerExample
    score: PerExample
    divergence: PerExample


def random_slice(
    eps_hat_fn: Callable[[Data], Data],
    z_s: Data,
    *,
    eps: Data,
    eps_1: Data,
    probes: Float[Array, "m ..."],
    trace: Any,
    span: PerExample,
    at_s: Coefficients,
    at_t: Coefficients,
    at_1: Coefficients,
    process: Process,
    prior: Normal,
    log_prior: Callable[[Data, Normal], PerExample] = process_prior,
) -> RandomSlice:
    """Bound (2) at one time t per example.

    Args:
        eps_hat_fn: z_t -> eps_hat at the examples' times.
        z_s: [b, *data_shape] at time s.
        eps, eps_1: [b, *data_shape] noise of z_t and of z_1.
        probes: of the trace.
        trace: one of `jvdm.diffusion.divergence`.
        span: [b] one over the density of t in [s, 1]; 1 - s for a uniform one.
        at_s, at_t, at_1: coefficients at the three times.
        process: of which z_s is a sample.
        prior: p(z_1).
        log_prior: one of `PRIORS`.
    """

    def transition(eps, at):
        return process.forward(z_s, None, None, at_s, at).sample(eps)

    z_t = transition(eps, at_t)
    eps_hat, traces = trace(eps_hat_fn, z_t, probes, batch_axes=1)
    rate = jnp.broadcast_to(at_t.dgamma_dt, z_t.shape)
    # The noise is isotropic for a scalar schedule, so that its factor leaves the divergence.
    factor = of_example(at_t.dgamma_dt * at_t.sigma)
    drift = sum_example(jnp.broadcast_to(at_t.dlogalpha_dt, z_t.shape))
    divergence = factor * jnp.mean(traces, axis=0) + drift
    return RandomSlice(
        prior=log_prior(transition(eps_1, at_1), prior),
        score=span * 0.5 * sum_example(rate * eps_hat**2),
        divergence=-span * divergence,
    )


class Truncated(NamedTuple):
    """Terms of -log p(x) by (3), each [b] nats: the prior's, the integral, and those at time e."""

    prior: PerExample
    diffusion: PerExample
    reconstruction: PerExample


def truncated(
    eps_hat_fn: Callable[[Data], Data],
    eps_hat_at_e_fn: Callable[[Data], Data],
    x: Data,
    *,
    eps: Data,
    eps_1: Data,
    eps_e: Data,
    span: PerExample,
    at_t: Coefficients,
    at_e: Coefficients,
    at_1: Coefficients,
    prior: Normal,
) -> Truncated:
    """Bound (3) at one time t per example.

    Args:
        eps_hat_fn, eps_hat_at_e_fn: z -> eps_hat at the examples' times, and at time e.
        x: [b, *data_shape] without noise.
        eps, eps_1, eps_e: [b, *data_shape] noise at the three times.
        span: [b] one over the density of t in [e, 1].
        at_t, at_e, at_1: coefficients at the three times.
        prior: p(z_1).
    """
    eps_hat = eps_hat_fn(diffuse(x, eps, at_t))
    # gamma' (|eps - eps_hat|^2 - |eps|^2) - 2 k
    integrand = at_t.dgamma_dt * eps_hat * (eps_hat - 2.0 * eps) - 2.0 * at_t.dlogalpha_dt
    at_end = 0.5 * (eps_e - eps_hat_at_e_fn(diffuse(x, eps_e, at_e))) ** 2 - 0.5 - jnp.log(at_e.alpha)
    return Truncated(
        prior=process_prior(diffuse(x, eps_1, at_1), prior),
        diffusion=span * 0.5 * sum_example(integrand),
        reconstruction=sum_example(at_end),
    )
