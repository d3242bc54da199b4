"""Bits per dimension from `objectives.bound` against data whose distribution is known.

The data are the points of `oracles.PointMixture`, the network is the exact denoiser (`known`), so the bound
must average at least the entropy, and reach it in continuous time over a wide range of gamma.
"""

import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import known, oracles, quick
from helpers.known import SHAPE, WIDE, ExactDenoiser

from jvdm.core.records import Batch, Context
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.diffusion.times import stratify
from jvdm.model import objectives

MIXTURE = known.ORACLES["mixture"]
NUM_POINTS, NUM_DIMS = MIXTURE.levels.shape
NATS = NUM_DIMS * np.log(2)  # nats in one bit/dim
TERMS = ("reconstruction", "prior", "diffusion")
NUM_BATCHES, BATCH = 64, 1024  # per point; stratified within a batch, so the standard error is of batches


class Concentrated(nn.Module):
    """Dwells in the middle of the range, where MIXTURE is decided: a third of the line's variance."""

    gamma_min: float
    gamma_max: float
    per_pixel: ClassVar[bool] = False

    def __call__(self, t, context=None):
        k, half = 0.995, 0.5 * (self.gamma_max - self.gamma_min)
        return self.gamma_min + half * (1.0 + jnp.arctanh(k * (2.0 * t - 1.0)) / np.arctanh(k))


class Estimate(NamedTuple):
    """Of the bound, averaged over draws, bits/dim: [term, batch, point] and its sums."""

    bits: np.ndarray

    @property
    def terms(self):
        return dict(zip(TERMS, self.bits.mean(1) @ MIXTURE.weights, strict=True))

    @property
    def batches(self):
        """[batch] averages over the data."""
        return self.bits.sum(0) @ MIXTURE.weights

    @property
    def mean(self):
        return self.batches.mean()

    @property
    def error(self):
        return standard_error(self.batches)


def standard_error(batches):
    return batches.std(axis=0, ddof=1) / np.sqrt(len(batches))


def build(parameterization, gammas=WIDE, timesteps=0, schedule="concentrated", **options):
    ends = {"gamma_min": gammas[0], "gamma_max": gammas[1]}
    if schedule == "concentrated":
        component = Concentrated(**ends)
    else:
        small = {"hidden": 16} if "hidden" in SCHEDULES.options(schedule) else {}
        component = SCHEDULES.build(SCHEDULES.spec(schedule, **ends, **small))
    return known.build(
        "mixture", parameterization=parameterization, schedule=component, timesteps=timesteps, **options
    )


@functools.cache
def bits_per_dim(parameterization, **options):
    """The bound for every point of the data; the same options draw the same numbers."""
    model = build(parameterization, **options)
    params = model.init(jax.random.key(1))
    levels = jnp.asarray(np.repeat(MIXTURE.levels, BATCH, axis=0), jnp.uint8).reshape(-1, *SHAPE)
    batch = Batch(levels)

    def one(key):
        k_time, k_noise = jax.random.split(key)
        u = stratify(jax.random.uniform(k_time, (NUM_POINTS,)), BATCH).reshape(-1)
        draws = model.draw(jax.random.split(k_noise, len(u)), u)
        terms = objectives.bound(model, params, draws, batch)
        return jnp.stack(list(terms.parts().values())).reshape(3, NUM_POINTS, BATCH).mean(-1)

    keys = jax.random.split(jax.random.key(0), NUM_BATCHES)
    nats = np.asarray(
        jax.jit(lambda keys: jax.lax.map(one, keys), compiler_options=quick.LIGHT)(keys), np.float64
    )
    return Estimate(nats.swapaxes(0, 1) / NATS)


ENTROPY = MIXTURE.entropy / NATS
PARAMETERIZATIONS_TESTED = ["noise", "data"]


@pytest.mark.parametrize("path", known.PATH_NAMES)
def test_the_denoiser_is_the_oracle(path):
    rng = np.random.default_rng(0)
    gamma = rng.uniform(*WIDE, 64).astype(np.float32)
    alpha, sigma = oracles.ALPHA_SIGMA[path](gamma[:, None].astype(float))
    points = MIXTURE.points[rng.integers(NUM_POINTS, size=64)]
    z = (alpha * points + sigma * rng.normal(size=points.shape)).astype(np.float32)
    eps, x = (oracle(z.astype(float), alpha, sigma) for oracle in (MIXTURE.eps_hat, MIXTURE.x_hat))
    velocity = {
        "straight": (eps - x) / np.sqrt(2),
        "sub_variance_preserving": (2 * alpha * eps - x) / np.sqrt(1 + 4 * alpha**2),
        "variance_preserving": alpha * eps - sigma * x,
    }[path]
    for name, exact in (("noise", eps), ("data", x), ("velocity", velocity)):
        out = ExactDenoiser("mixture", path, name).apply(
            {}, jnp.asarray(z).reshape(-1, *SHAPE), jnp.asarray(gamma), jnp.zeros(64)
        )
        # eps_hat is a difference of numbers near 1 over sigma >= 1.3e-3: 1e-7 / 1.3e-3, a few times.
        np.testing.assert_allclose(out.reshape(-1, NUM_DIMS), exact, atol=5e-4)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS_TESTED)
def test_continuous_bound_is_tight(parameterization):
    bound = bits_per_dim(parameterization)
    assert bound.error <= 0.003
    assert bound.mean >= ENTROPY - 3 * bound.error
    # What is left of the gap: alpha_1^2 |E f|^2 / 2 = 1e-5 nats in the prior, nothing in the decoder
    # (levels are 193 standard deviations apart).
    assert bound.mean <= ENTROPY + 0.005 + 3 * bound.error


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS_TESTED)
def test_continuous_bound_is_tight_for_every_image(parameterization):
    """The exact reverse process assigns each image its probability, not only on average."""
    points = bits_per_dim(parameterization).bits.sum(0)
    truth = -np.log(MIXTURE.weights) / NATS
    assert np.all(standard_error(points) < 0.015)
    # 12 comparisons: 4 standard errors keep the level of 3 for one.
    assert np.all(np.abs(points.mean(0) - truth) < 4 * standard_error(points))
    assert np.ptp(truth) > 0.5, "images must differ for this to say something"


# Velocity on either path: on the schedule of low variance, in steps, and with times from the density that
# makes its weight constant, on the line it needs.
VELOCITY = {
    "straight": {"path": "straight"},
    "sub-variance preserving": {"path": "sub_variance_preserving"},
    "straight, T = 1000": {"path": "straight", "timesteps": 1000},
    "straight, importance": {
        "path": "straight",
        "schedule": "fixed_linear",
        "time_density": "importance",
    },
    "importance": {"schedule": "fixed_linear", "time_density": "importance"},
}


# Each is a combination of what the others have.
COMBINED = ("straight, T = 1000", "straight, importance")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name in COMBINED)) for name in VELOCITY]
)
def test_velocity_bound_is_tight(name):
    bound = bits_per_dim("velocity", **VELOCITY[name])
    # The density serves a network whose velocity errs at all gamma alike. A perfect one errs in the middle.
    assert bound.error <= (0.005 if "importance" in name else 0.003)
    assert bound.mean >= ENTROPY - 3 * bound.error
    assert bound.mean <= ENTROPY + 0.005 + 3 * bound.error
    assert 0 <= bound.terms["prior"] < 1e-4 and 0 <= bound.terms["reconstruction"] < 1e-4


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS_TESTED)
def test_discrete_bound_is_a_bound_and_close(parameterization):
    discrete = bits_per_dim(parameterization, timesteps=1000)
    assert discrete.error <= 0.003
    assert discrete.mean >= ENTROPY - 3 * discrete.error
    # Steps of the middle are 7.8 / 1000 in gamma, each adds half of that, relative: 0.003 bits/dim.
    assert discrete.mean <= ENTROPY + 0.005 + 3 * discrete.error


@pytest.mark.parametrize("timesteps", [50, 1000])
def test_discrete_bound_exceeds_the_continuous_by_the_known_gap(timesteps):
    """On equal steps d of gamma the sum is expm1(d) / d times the integral, L.

    1/2 sum expm1(d) M(gamma_t), and sum d M(gamma_t) is the trapezium rule for 2 L: M, the squared
    error of eps, vanishes smoothly at both ends, where the rule converges faster than any power of d.
    """
    continuous = bits_per_dim("noise", schedule="fixed_linear")
    discrete = bits_per_dim("noise", schedule="fixed_linear", timesteps=timesteps)
    excess = discrete.batches - continuous.batches  # of the same draws
    step = (WIDE[1] - WIDE[0]) / timesteps
    predicted = (np.expm1(step) / step - 1) * ENTROPY
    assert abs(excess.mean() - predicted) < 3 * standard_error(excess)
    assert predicted > 5 * standard_error(excess), "the gap must be visible"


@pytest.mark.parametrize(("gammas", "timesteps"), [((-5.0, 2.0), 0), ((-2.0, 5.0), 20), ((-13.3, 0.0), 0)])
def test_a_narrow_range_still_gives_a_bound(gammas, timesteps):
    """Coarse decoder, prior far from q(z_1): above the truth by much, never below."""
    bound = bits_per_dim("noise", gammas=gammas, timesteps=timesteps, schedule="fixed_linear")
    assert bound.error <= 0.005
    assert bound.mean >= ENTROPY - 3 * bound.error
    assert bound.mean > ENTROPY + 0.005
    assert all(value >= 0 for value in bound.terms.values())


# Of every image alike: those of every pixel need a latent (tests/evaluation/test_latent_oracle.py).
INTERIORS = [
    name
    for name in SCHEDULES.names()
    if SCHEDULES.component(name).has_interior and not getattr(SCHEDULES.component(name), "per_pixel", False)
]


@pytest.mark.parametrize("schedule", INTERIORS)
def test_the_interior_of_the_schedule_does_not_matter(schedule):
    """In continuous time the bound depends on the schedule's ends alone."""
    bound = bits_per_dim("noise", schedule=schedule)
    assert bound.error <= 0.005
    assert abs(bound.mean - ENTROPY) < 3 * bound.error


def test_an_error_of_the_denoiser_costs_what_it_should():
    """eps_hat off by a constant d costs (gamma_1 - gamma_0) D d^2 / 2 nats: the weight is right."""
    offset = 0.2
    bound = bits_per_dim("noise", offset=offset)
    cost = 0.5 * (WIDE[1] - WIDE[0]) * offset**2 / np.log(2)
    assert abs(bound.mean - ENTROPY - cost) < 3 * bound.error
    assert cost > 0.5


def test_predict_is_the_denoiser_and_its_coefficients():
    for name in PARAMETERIZATIONS_TESTED:
        model = build(name, schedule="fixed_linear")
        t = np.array([0.2, 0.5, 0.9], np.float32)
        gamma = WIDE[0] + (WIDE[1] - WIDE[0]) * t.astype(float)
        z = np.random.default_rng(0).normal(size=(3, NUM_DIMS)).astype(np.float32)
        prediction = model.predict(
            model.init(jax.random.key(0)),
            jnp.asarray(z).reshape(3, *SHAPE),
            jnp.asarray(t),
            Context(),
        )
        alpha, sigma = oracles.variance_preserving(gamma[:, None])
        c = prediction.coefficients
        assert c.alpha.shape == c.dgamma_dt.shape == (3, 1, 1, 1)
        np.testing.assert_allclose(c.gamma.ravel(), gamma, rtol=1e-6, atol=2e-6)
        np.testing.assert_allclose(c.sigma.ravel(), sigma.ravel(), rtol=1e-5)
        np.testing.assert_allclose(c.dgamma_dt.ravel(), WIDE[1] - WIDE[0], rtol=1e-6)
        # z is not near alpha f here: eps_hat up to 1 / sigma = 77, and gamma's rounding moves it by 1e-5.
        exact = MIXTURE.eps_hat(z.astype(float), alpha, sigma)
        np.testing.assert_allclose(prediction.eps.reshape(3, -1), exact, rtol=1e-4, atol=1e-4)


def test_terms_of_an_example_do_not_depend_on_its_batch():
    model = build("noise")
    levels = jnp.asarray(MIXTURE.levels[:6], jnp.uint8).reshape(6, *SHAPE)
    keys = jax.random.split(jax.random.key(5), 6)
    u = jnp.linspace(0.05, 0.95, 6)

    @jax.jit
    def total(keys, u, levels):
        draws, batch = model.draw(keys, u), Batch(levels)
        return objectives.bound(model, {"network": {}, "schedule": {}}, draws, batch).total

    whole = total(keys, u, levels)
    # Sums over the mixture's points may be vectorised differently: an ulp or two of the terms.
    np.testing.assert_allclose(total(keys[2:4], u[2:4], levels[2:4]), whole[2:4], rtol=1e-6, atol=1e-6)
    assert len(set(np.asarray(whole).tolist())) == 6


@pytest.mark.parametrize(("u", "expected"), [(0.0, 0.25), (0.2499, 0.25), (0.25, 0.5), (0.9999999, 1.0)])
def test_discrete_times_are_the_upper_ends_of_steps(u, expected):
    model = build("noise", timesteps=4)
    assert float(model.times(jnp.array([u], jnp.float32)).t[0]) == expected


def test_largest_uniform_number_stays_below_one_step_too_many():
    u = jnp.nextafter(jnp.ones(1), jnp.zeros(1))
    for timesteps in (3, 7, 1000, 4097):
        model = build("noise", timesteps=timesteps)
        assert float(model.times(u).t[0]) == 1.0
