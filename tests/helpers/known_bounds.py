"""The bounds of score-based models at work on data of known likelihood (`known`), continuous or dequantized.

A single time and noise give a bound that is off by ten nats, most of it from |eps|^2, whose mean is known.
Terms of mean zero, times coefficients fitted by least squares, take that away (control variates).

Shared by the tests and by `benchmarks/oracle_gaps.py`.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from helpers import known, oracles
from helpers.known import EMPTY, NUM_DIMS, ORACLES, SHAPE, WIDE
from jvdm.core.records import Context
from jvdm.diffusion import schedules, score_bounds
from jvdm.diffusion.divergence import ExactTrace, Hutchinson
from jvdm.diffusion.losses import sum_example
from jvdm.diffusion.times import jittered

TRACES = {"exact": ExactTrace(), "1 probe": Hutchinson(), "4 probes": Hutchinson(probes=4)}
SLICES = tuple(f"random slice, {name}" for name in TRACES)
TRUNCATED = ("truncated, uniform times", "truncated, importance")
NAMES = (*SLICES, *TRUNCATED)


class Estimate(NamedTuple):
    """Of a bound's mean excess over -log p, bits/dim, and its standard error over examples."""

    mean: float
    error: float


def controls(x, eps, others, c, span):
    """[n, k] numbers of mean zero that vary with the bounds of a perfect model at the same draws."""
    weight, sigma2 = span * jnp.ravel(c.dgamma_dt * c.sigma**2), jnp.ravel(c.sigma**2)
    square, product = sum_example(eps**2 - 1.0), sum_example(eps * x)
    tilt = jnp.ravel(c.alpha / c.sigma) * product
    terms = [weight * square, weight * sigma2 * square, weight * tilt, weight * sigma2 * tilt]
    return jnp.stack([*terms, *(sum_example(e**2 - 1.0) for e in others)], axis=-1)


@functools.cache
def program(oracle, path, schedule, parameterization):
    """([n] x, key, offset, epsilon, m) -> -log p [n] by every bound, nats, and its controls [n, k]; compiled.

    Both are means over m draws.
    """

    def draw(x, key, u, offset, epsilon):
        model = known.build(oracle, path, parameterization, schedule=schedule, offset=offset)
        n, (k_eps, k_1, k_e, k_probe) = len(x), jax.random.split(key, 4)
        eps, eps_1, eps_e = (jax.random.normal(k, x.shape) for k in (k_eps, k_1, k_e))
        context, one = Context(), jnp.ones(n)

        def coefficients(t):
            return model.at(EMPTY, t)

        at_1 = coefficients(one)
        at_end = {"at_1": at_1, "prior": model.prior(EMPTY), "eps": eps, "eps_1": eps_1}

        def eps_hat_fn(t):
            return lambda z: model.predict(EMPTY, z, t, context).eps

        t, at_s = jnp.maximum(u, 2.0**-24), coefficients(0.0 * one)
        at_t = coefficients(t)
        every = {}
        for name, trace in TRACES.items():
            terms = score_bounds.random_slice(
                eps_hat_fn(t),
                at_s.alpha * x,
                probes=trace.draw(k_probe, x.shape),
                trace=trace,
                process=model.process,
                span=one,
                at_s=at_s,
                at_t=at_t,
                **at_end,
            )
            every[f"random slice, {name}"] = sum(terms), controls(x, eps, [eps_1], at_t, one)

        t_e = epsilon * one
        at_e, gamma_e, gamma_1 = coefficients(t_e), model.schedule(t_e), model.schedule(one)
        t_gamma = jnp.clip(model.schedule.inverse(gamma_e + (gamma_1 - gamma_e) * u), epsilon, 1.0)
        times = {
            "uniform times": (epsilon + (1.0 - epsilon) * u, (1.0 - epsilon) * one),
            "importance": (t_gamma, (gamma_1 - gamma_e) / schedules.at(model.schedule, t_gamma).dgamma_dt),
        }
        for name, (t, span) in times.items():
            at_t = coefficients(t)
            terms = score_bounds.truncated(
                eps_hat_fn(t),
                eps_hat_fn(t_e),
                x,
                eps_e=eps_e,
                span=span,
                at_t=at_t,
                at_e=at_e,
                **at_end,
            )
            every[f"truncated, {name}"] = sum(terms), controls(x, eps, [eps_1, eps_e], at_t, span)
        return every

    def means(x, key, offset, epsilon, num_draws):
        k_time, k_noise = jax.random.split(key)
        u = jax.vmap(lambda k: jittered(k, num_draws))(jax.random.split(k_time, len(x)))
        keys = jax.random.split(k_noise, num_draws)
        draws = jax.lax.map(lambda a: draw(x, *a, offset, epsilon), (keys, u.T))
        return jax.tree.map(lambda a: jnp.mean(a, axis=0), draws)

    return jax.jit(means, static_argnums=4)


def without_controls(excess, control):
    """The mean of `excess` [n] and its error, less what the controls [n, k] explain."""
    design = np.concatenate([np.ones((len(excess), 1)), control], axis=1)
    coefficients = np.linalg.lstsq(design, excess, rcond=None)[0]
    # A control's mean is known, so that its part is left out of the mean; k + 1 coefficients are fitted.
    rest = excess - control @ coefficients[1:]
    freedom = len(rest) - len(coefficients)
    return Estimate(
        float(rest.mean()), float(np.sqrt(np.sum((rest - rest.mean()) ** 2) / freedom / len(rest)))
    )


def gaps(
    oracle,
    path,
    schedule,
    *,
    parameterization="noise",
    offset=0.0,
    epsilon=1e-5,
    num_examples=8192,
    num_draws=16,
    seed=0,
):
    """The `Estimate` of every bound of `NAMES`, at examples of the oracle's data."""
    rng, data = np.random.default_rng(seed), ORACLES[oracle]
    x = levels = data.sample(rng, num_examples)
    num_levels = getattr(data, "num_levels", 0)
    if num_levels:
        x = 2.0 * (levels + rng.uniform(size=levels.shape)) / num_levels - 1.0
    images = jnp.asarray(x, jnp.float32).reshape(-1, *SHAPE)
    run = program(oracle, path, schedule, parameterization)
    every = run(images, jax.random.key(seed), jnp.float32(offset), jnp.float32(epsilon), num_draws)
    x = np.asarray(images, np.float64).reshape(-1, NUM_DIMS)
    if num_levels:
        assert schedule == "linear_beta", "noise at the start would count as part of the gap"
        # log P(x) >= E_u[ log p - log q ], log q of uniform noise.
        log_p = data.log_probability(levels) + NUM_DIMS * math.log(num_levels / 2)
        truth = dict.fromkeys(NAMES, log_p)
    else:
        # The random slice is a bound on log p(z_s), the truncated one on log p(x).
        at_0 = np.ones(1), np.zeros(1)
        at_s = at_0 if schedule == "linear_beta" else oracles.ALPHA_SIGMA[path](np.array([WIDE[0]]))
        truth = dict.fromkeys(SLICES, data.log_density(at_s[0] * x, *at_s))
        truth |= dict.fromkeys(TRUNCATED, data.log_density(x, *at_0))
    return {
        name: without_controls(
            known.excess(-np.asarray(nats, np.float64), truth[name]), np.asarray(control, np.float64)
        )
        for name, (nats, control) in every.items()
    }
