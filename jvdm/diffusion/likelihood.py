"""Exact log-density of the probability-flow ODE, and the bounds on log P(x) that are built on it.

With the drift b(z, t) of the ODE, whose trajectories run from z at time `start` to z_1 at time 1:

    1. log p(z) = log p(z_1) + integral over t of div b(z_t, t)     (2011.13456, appendix D.2)

p(z_1) is the prior of the process (`gaussian`, 5).
The integral is carried along in nats per dimension, one number per probe of the trace.

With log_w = log p(z) + log p(x | z) - log q(z | x) of `diffusion.dequantization`, unbiased but noisy for a
Hutchinson trace, E[log_w] is a bound for one sample. For K samples, log 1/K sum exp(log_w_k) of *noisy*
log_w_k would be too high by up to half their variance, and no bound. But for any weights s of sum 1,

    2. log 1/K sum_k exp(w_k)  >=  sum_k s_k w_k + H(s) - log K,   H(s) = -sum_k s_k log s_k,

with equality for s_k proportional to exp(w_k). The right-hand side is linear in w: with s from one half of
the probes and w from the other, its mean is a bound, whatever the noise. Both halves take both parts in turn.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvdm.diffusion.normal import Normal

Data = Float[Array, "*d"]


class LogDensity(NamedTuple):
    """Of one example, in nats.

    Attributes:
        prior: log p(z_1).
        trace: [m] the integral of the divergence, one estimate per probe.
        evaluations: of the drift (NFE).
        ok: whether the solver reached time 1.
    """

    prior: Float[Array, ""]
    trace: Float[Array, " m"]
    evaluations: Int[Array, ""]
    ok: Bool[Array, ""]


def batched_field(drift: Callable, trace: Any | None) -> Callable:
    """The field of one example, evaluated for a whole batch at once where it is vmapped.

    A network is given its batch as it is, rather than a vmapped batch of one: it may treat images one by
    one to save memory, which vmap would undo.

    Args:
        drift: (shared, z [b, ...], t [b], context [b, ...]) -> dz/dt [b, ...]; examples do not mix.
        trace: one of `jvdm.diffusion.divergence`; None leaves the integral of the divergence out.

    Returns:
        (shared, context, probes) of one example -> its field, (t, (z, integral)) -> derivative, or
        (t, z) -> dz/dt without a trace.
    """

    def evaluate(shared, z, t, context, probes):
        if trace is None:
            return drift(shared, z, t, context)
        probes = jnp.moveaxis(probes, 1, 0)
        value, traces = trace(lambda z: drift(shared, z, t, context), z, probes, batch_axes=1)
        return value, jnp.moveaxis(traces, 0, 1) / math.prod(z.shape[1:])

    @jax.custom_batching.custom_vmap
    def one(shared, *example):
        return jax.tree.map(lambda a: a[0], evaluate(shared, *jax.tree.map(lambda a: a[None], example)))

    @one.def_vmap
    def _(axis_size, is_batched, shared, *example):
        def batched(a, has_axis):
            return a if has_axis else jnp.broadcast_to(a, (axis_size, *a.shape))

        out = evaluate(shared, *jax.tree.map(batched, example, tuple(is_batched[1:])))
        return out, jax.tree.map(lambda a: True, out)

    def of_example(shared, context, probes):
        if trace is None:
            return lambda t, z: one(shared, z, t, context, probes)
        return lambda t, state: one(shared, state[0], t, context, probes)

    return of_example


def integrate(
    field: Callable,
    z: Data,
    *,
    num_probes: int,
    start: Float[Array, ""],
    prior: Normal,
    solver: Any,
) -> LogDensity:
    """The log-density (1) of one example at time `start`.

    Args:
        field: (t, (z, integral [num_probes])) -> derivative; the integral is in nats per dimension.
        z: [*data_shape].
        num_probes: of the trace.
        start: the time z is at.
        prior: p(z_1), broadcastable to z.
        solver: one of `jvdm.diffusion.solvers`.
    """
    solution = solver(field, (z, jnp.zeros(num_probes, z.dtype)), start, 1.0)
    z_1, integral = solution.state
    log_prior = jnp.sum(jnp.broadcast_to(prior.log_density(z_1), z_1.shape))
    return LogDensity(log_prior, integral * z.size, solution.evaluations, solution.ok)


class Weighted(NamedTuple):
    """A bound from K samples, and the mixture that gives its terms; float64, on the host.

    Attributes:
        bound: [...] on log P(x), nats.
        weights: [..., K] of the samples, of sum 1.
        gain: [...] H(weights) - log K of (2), nats; 0 for K = 1. bound = sum(weights w) + gain.
    """

    bound: np.ndarray
    weights: np.ndarray
    gain: np.ndarray


def weigh(scores: np.ndarray, values: np.ndarray) -> Weighted:
    """Bound (2) of `values` [..., K], with weights proportional to exp(scores).

    Args:
        scores: [..., K] logarithms of weights that need not be normalised, nats.
        values: [..., K] nats.

    Returns:
        The bound [...] in nats, and the weights [..., K].
    """
    scores = np.asarray(scores, np.float64)
    log_weights = scores - scores.max(axis=-1, keepdims=True)
    log_weights = log_weights - np.log(np.exp(log_weights).sum(axis=-1, keepdims=True))
    weights = np.exp(log_weights)
    gain = -(weights * log_weights).sum(axis=-1) - math.log(scores.shape[-1])
    return Weighted((weights * values).sum(axis=-1) + gain, weights, gain)


def importance_bound(log_w: np.ndarray) -> Weighted:
    """The bound from K samples with m independent estimates of each log-weight.

    Args:
        log_w: [..., K, m] nats. One estimate per sample, m = 1, must be exact if K > 1.

    Returns:
        For m = 1 the importance-weighted bound; for more, bound (2) with weights from one half of the
        estimates and values from the other, both ways, averaged.
    """
    log_w = np.asarray(log_w, np.float64)
    num_samples, m = log_w.shape[-2:]
    mean = log_w.mean(axis=-1)
    if num_samples == 1 or m == 1:
        return weigh(mean, mean)
    one, other = log_w[..., : m // 2].mean(axis=-1), log_w[..., m // 2 :].mean(axis=-1)
    both = weigh(one, other), weigh(other, one)
    return Weighted(*(0.5 * (a + b) for a, b in zip(*both, strict=True)))
