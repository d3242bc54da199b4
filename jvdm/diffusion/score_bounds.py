"""Bounds on the log-density of a continuous z_s that see the score at one random time, per example, in nats.

The generative SDE runs from z_1 ~ N(0, sigma_1^2) at time 1 back to time s, with drift and noise of the path
and a = g score, g^2 = sigma^2 gamma', the score -eps_hat / sigma. The inference process runs the other way:

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
from jvdm.diffusion.losses import sum_example

Data = Float[Array, "b h w c"]
PerExample = Float[Array, " b"]


def noise_prior(z: Data, log_sigma_1: Float[Array, "..."]) -> PerExample:
    """-log N(z; 0, sigma_1^2): the noise of the path itself."""
    log_sigma_1 = jnp.broadcast_to(log_sigma_1, z.shape)
    squares = 0.5 * (z * jnp.exp(-log_sigma_1)) ** 2
    return sum_example(squares + log_sigma_1 + 0.5 * math.log(2.0 * math.pi))


def released_prior(z: Data, log_sigma_1: Float[Array, "..."]) -> PerExample:
    """-log N(z; 0, 1) as the sdeflow code has it, with 1e-5 added to the variance in the exponent alone."""
    return sum_example(z**2 / (2.0 + 1e-5) + 0.5 * math.log(2.0 * math.pi))


PRIORS: dict[str, Callable[[Data, Float[Array, "..."]], PerExample]] = {
    "noise": noise_prior,
    "sdeflow_released": released_prior,
}


def transition(z_s: Data, eps: Data, at_s: Coefficients, at_t: Coefficients) -> Data:
    """z_t given z_s (1)."""
    scale = at_t.sigma * jnp.sqrt(-jnp.expm1(at_s.gamma - at_t.gamma))
    return at_t.alpha / at_s.alpha * z_s + scale * eps


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
    probes: Float[Array, "m b h w c"],
    trace: Any,
    span: PerExample,
    dlogalpha_dgamma: Float[Array, "..."],
    at_s: Coefficients,
    at_t: Coefficients,
    at_1: Coefficients,
    prior: Callable[[Data, Float[Array, "..."]], PerExample] = noise_prior,
    log_sigma_1: Float[Array, "..."],
) -> RandomSlice:
    """Bound (2) at one time t per example.

    Args:
        eps_hat_fn: z_t -> eps_hat at the examples' times.
        z_s: [b, h, w, c] at time s.
        eps, eps_1: [b, h, w, c] noise of z_t and of z_1.
        probes: of the trace.
        trace: one of `jvdm.diffusion.divergence`.
        span: [b] one over the density of t in [s, 1]; 1 - s for a uniform one.
        dlogalpha_dgamma: of the path at t, broadcastable to the data.
        at_s, at_t, at_1: coefficients at the three times.
        prior: one of `PRIORS`.
        log_sigma_1: of the path at time 1, broadcastable to the data.
    """
    z_t = transition(z_s, eps, at_s, at_t)
    eps_hat, traces = trace(eps_hat_fn, z_t, probes, batch_axes=1)
    rate = jnp.broadcast_to(at_t.dgamma_dt, z_t.shape)
    # The noise is isotropic for a scalar schedule, so that its factor leaves the divergence.
    factor = jnp.ravel(at_t.dgamma_dt * at_t.sigma)
    divergence = factor * jnp.mean(traces, axis=0) + sum_example(rate * dlogalpha_dgamma)
    return RandomSlice(
        prior=prior(transition(z_s, eps_1, at_s, at_1), log_sigma_1),
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
    dlogalpha_dgamma: Float[Array, "..."],
    at_t: Coefficients,
    at_e: Coefficients,
    at_1: Coefficients,
    log_sigma_1: Float[Array, "..."],
) -> Truncated:
    """Bound (3) at one time t per example.

    Args:
        eps_hat_fn, eps_hat_at_e_fn: z -> eps_hat at the examples' times, and at time e.
        x: [b, h, w, c] without noise.
        eps, eps_1, eps_e: [b, h, w, c] noise at the three times.
        span: [b] one over the density of t in [e, 1].
        dlogalpha_dgamma: of the path at t, broadcastable to the data.
        at_t, at_e, at_1: coefficients at the three times.
        log_sigma_1: of the path at time 1, broadcastable to the data.
    """

    def noised(c, noise):
        return c.alpha * x + c.sigma * noise

    eps_hat = eps_hat_fn(noised(at_t, eps))
    # |eps - eps_hat|^2 - |eps|^2 - 2 k_a
    integrand = eps_hat * (eps_hat - 2.0 * eps) - 2.0 * dlogalpha_dgamma
    at_end = 0.5 * (eps_e - eps_hat_at_e_fn(noised(at_e, eps_e))) ** 2 - 0.5 - jnp.log(at_e.alpha)
    return Truncated(
        prior=noise_prior(noised(at_1, eps_1), log_sigma_1),
        diffusion=span * 0.5 * sum_example(at_t.dgamma_dt * integrand),
        reconstruction=sum_example(at_end),
    )
