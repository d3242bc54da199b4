"""The objective of denoising score matching, by hand and against the variational bound's diffusion term."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import known, oracles
from helpers.known import EMPTY, SHAPE

from jvdm.core.records import Batch
from jvdm.diffusion import transforms
from jvdm.diffusion.times import TIME_DENSITIES
from jvdm.model import objectives

B = 6
OFFSET = 0.3
GAUSSIAN = known.ORACLES["gaussian"]
LEVELS = GAUSSIAN.sample(np.random.default_rng(0), B)
BATCH = Batch(jnp.asarray(LEVELS, jnp.uint8).reshape(B, *SHAPE))
U = np.array([0.0005, 0.01, 0.3, 0.5, 0.8, 0.99], np.float32)


def drawn(model, u=U):
    return jax.jit(model.draw)(jax.random.split(jax.random.key(0), B), jnp.asarray(u))


def value(model, draws, batch=BATCH, **options):
    options = {"weighting": "likelihood", "truncation": 1e-3, "dequantize": True, **options}
    return jax.jit(lambda draws: objectives.score_matching(model, EMPTY, draws, batch, **options))(draws)


@pytest.mark.parametrize(
    ("path", "density"),
    [
        ("variance_preserving", "uniform"),
        ("variance_preserving", "debiased_released"),
        ("sub_variance_preserving", "debiased"),
    ],
)
def test_by_hand(path, density):
    """1/2 w |eps - eps_hat|^2 over the density, in float64, of a network that errs by a constant."""
    model = known.build("gaussian", path, schedule="linear_beta", time_density=density, offset=OFFSET)
    draws, (t, over_density) = drawn(model), model.times(jnp.asarray(U))
    t, over_density = (np.asarray(a, np.float64) for a in (t, over_density))
    gamma, _ = oracles.linear_beta_gamma(path, t)
    alpha, sigma = oracles.ALPHA_SIGMA[path](gamma[:, None])
    eps = np.asarray(draws.eps, np.float64).reshape(B, -1)
    u = np.asarray(draws.u_data, np.float64).reshape(B, -1)
    kinds = list(
        itertools.product((True, False), (("unweighted", 1e-3), ("likelihood", 1e-3), ("likelihood", 0.2)))
    )

    @jax.jit
    def every(draws):
        return [
            objectives.score_matching(
                model, EMPTY, draws, BATCH, weighting=weighting, truncation=truncation, dequantize=dequantize
            )
            for dequantize, (weighting, truncation) in kinds
        ]

    for (dequantize, (weighting, truncation)), result in zip(kinds, every(draws), strict=True):
        x = 2 * (LEVELS + u) / 256 - 1 if dequantize else oracles.encode(LEVELS, 256)
        eps_hat = GAUSSIAN.eps_hat(alpha * x + sigma * eps, alpha, sigma) + OFFSET
        error = np.sum((eps - eps_hat) ** 2, axis=-1)
        rate = oracles.linear_beta_gamma(path, np.maximum(t, truncation))[1]
        w = rate if weighting == "likelihood" else 1.0
        # z is rounded to half an ulp of 1, which eps_hat feels 1 / 0.06 times, and the square twice.
        np.testing.assert_allclose(result.score_matching, 0.5 * w * over_density * error, rtol=1e-4)
    np.testing.assert_array_equal(result.objective, result.score_matching)
    assert list(result.metrics()) == ["score_matching"]
    assert np.all(error > 0.01) and t.min() < 1e-3 < t.max()


@pytest.mark.parametrize(
    ("parameterization", "density"),
    [("noise", "uniform"), ("velocity", "importance"), ("data", "debiased")],
)
def test_it_is_the_diffusion_term(parameterization, density):
    """With the likelihood's weight, data at the centres of their cells, and a schedule of finite gamma."""
    model = known.build("gaussian", "straight", parameterization, time_density=density, offset=OFFSET)
    draws = drawn(model)
    terms = jax.jit(lambda draws: objectives.bound(model, EMPTY, draws, BATCH))(draws)
    # The same formula, fused otherwise.
    np.testing.assert_allclose(
        value(model, draws, dequantize=False).score_matching, terms.diffusion, rtol=1e-5
    )


def test_continuous_data_are_taken_as_they_are():
    model = known.build("continuous_gaussian", schedule="linear_beta")
    x = known.ORACLES["continuous_gaussian"].sample(np.random.default_rng(0), B).astype(np.float32)
    batch = Batch(jnp.asarray(x).reshape(B, *SHAPE))
    draws = drawn(model)
    result = value(model, draws, batch, weighting="unweighted")
    np.testing.assert_array_equal(
        result.score_matching, value(model, draws, batch, weighting="unweighted", dequantize=False).objective
    )
    alpha, sigma = oracles.variance_preserving(
        oracles.linear_beta_gamma("variance_preserving", U.astype(float))[0][:, None]
    )
    eps = np.asarray(draws.eps, np.float64).reshape(B, -1)
    eps_hat = known.ORACLES["continuous_gaussian"].eps_hat(alpha * x + sigma * eps, alpha, sigma)
    np.testing.assert_allclose(result.score_matching, 0.5 * np.sum((eps - eps_hat) ** 2, axis=-1), rtol=1e-4)


def test_data_under_the_logit_map():
    """They reach the network as the logit of a point of their cell."""
    data_map = transforms.Logit()
    model = dataclasses.replace(known.build("gaussian", schedule="linear_beta"), data_map=data_map)
    draws = drawn(model)
    u = (LEVELS + np.asarray(draws.u_data, np.float64).reshape(B, -1)) / 256
    s = 0.05 + 0.9 * u
    x = np.log(s / (1 - s))
    alpha, sigma = oracles.variance_preserving(
        oracles.linear_beta_gamma("variance_preserving", U.astype(float))[0][:, None]
    )
    eps = np.asarray(draws.eps, np.float64).reshape(B, -1)
    eps_hat = GAUSSIAN.eps_hat(alpha * x + sigma * eps, alpha, sigma)
    error = 0.5 * np.sum((eps - eps_hat) ** 2, axis=-1)
    np.testing.assert_allclose(value(model, draws, weighting="unweighted").score_matching, error, rtol=1e-4)


@pytest.mark.parametrize("parameterization", ["noise", "drift"])
def test_a_time_of_zero_is_a_number(parameterization):
    """Without noise gamma' is infinite, and eps of some parameterizations nothing over nothing."""
    model = known.build("gaussian", parameterization=parameterization, schedule="linear_beta")
    for density in ("uniform", "debiased"):
        at_zero = dataclasses.replace(model, time_density=TIME_DENSITIES.build(TIME_DENSITIES.spec(density)))
        result = value(at_zero, drawn(at_zero, np.zeros(B)))
        assert np.all(np.isfinite(result.score_matching)) and np.all(result.score_matching > 0)
