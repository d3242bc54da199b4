"""The bounds of score-based models on continuous data of known density, and their closed forms."""

import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import known, known_bounds, oracles
from helpers.compose import gaussian
from helpers.known import NUM_DIMS, ORACLES, WIDE
from helpers.known_bounds import NAMES, TRUNCATED
from scipy.stats import norm

from jvdm.core.records import Coefficients
from jvdm.diffusion import score_bounds
from jvdm.diffusion.normal import Normal
from jvdm.diffusion.paths import PATHS
from jvdm.diffusion.schedules import FixedLinear

# Schedule, path, and the parameterization of a network that errs by a constant. Each is one program for all
# checks: compiling it is half of the time they take.
CASES = {
    "variance preserving SDE": ("continuous_mixture", "variance_preserving", "linear_beta", "drift"),
    "sub-variance preserving SDE": ("continuous_mixture", "sub_variance_preserving", "linear_beta", "drift"),
    "finite gamma": ("continuous_gaussian", "straight", None, "noise"),
}
NUM_EXAMPLES = {"continuous_mixture": 20_000, "continuous_gaussian": 8192}
EPSILON = 1e-5


@functools.cache
def gaps(case, **options):
    oracle, path, schedule, parameterization = CASES[case]
    epsilon = EPSILON if schedule else 0.0
    return known_bounds.gaps(
        oracle,
        path,
        schedule,
        parameterization=parameterization,
        num_examples=NUM_EXAMPLES[oracle],
        **{"epsilon": epsilon, **options},
    )


def coefficients(path, gamma, slope=1.0, k_a=0.0):
    """float64, from the oracle."""
    gamma = np.asarray(gamma)
    alpha, sigma = oracles.ALPHA_SIGMA[path](gamma)
    slope = np.broadcast_to(slope, gamma.shape)
    numbers = (alpha, sigma, gamma, slope, slope * k_a, sigma**2 * slope)
    return Coefficients(*(jnp.asarray(a) for a in numbers))


def process(path):
    return gaussian(FixedLinear(), PATHS.build(PATHS.spec(path)))


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.long] * c.startswith("sub-variance")) for c in CASES]
)
def test_bounds_of_a_perfect_model_are_tight(case):
    """Within 3 standard errors of at most 0.005 bits/dim, by every trace and density of times."""
    every = gaps(case)
    assert set(every) == set(NAMES)
    for name, gap in every.items():
        assert gap.error <= 0.005, name
        # What is left: the prior's error, alpha_1^2 = 5e-5 of squares near 1, and the truncation's, 1e-6.
        assert abs(gap.mean) <= 3 * gap.error + 1e-4, name


@pytest.mark.parametrize("case", ["variance preserving SDE", "finite gamma"])
def test_an_error_of_the_score_costs_what_it_should(case):
    """A constant d in drift costs D d^2 / 2 nats, in eps gamma_1 - gamma_0 times as much: never less."""
    _, path, schedule, _ = CASES[case]
    offset = 0.5 if schedule else 0.1
    every = gaps(case, offset=offset)
    span = 1.0 if schedule else WIDE[1] - WIDE[0]
    # The truncated bound sees another error at its end, of eps.
    at_e = 1.0 / oracles.linear_beta_gamma(path, EPSILON)[1] if schedule else 1.0
    for name, gap in every.items():
        cost = 0.5 * offset**2 * (span + at_e * (name in TRUNCATED)) / math.log(2)
        assert cost > 10 * gap.error, name
        assert abs(gap.mean - cost) <= 3 * gap.error + 1e-4, name


def test_dequantized_data():
    """Uniform noise on 256 levels: the gap is that of the ODE's likelihood with the same noise."""
    every = known_bounds.gaps("gaussian", "variance_preserving", "linear_beta")
    expected = known.gap("gaussian", "uniform")
    for name in ("random slice, 1 probe", "truncated, importance"):
        gap = every[name]
        # These data are narrow, deviations of 0.06 to 0.15, so that their score varies more.
        assert gap.error <= 0.013, name
        assert abs(gap.mean - expected) <= 3 * gap.error + 1e-4, name


@pytest.mark.parametrize("name", TRUNCATED)
def test_a_late_truncation_costs_what_it_should(name):
    """The decoder's variance is sigma^2 / alpha^2; the posterior's is rho = c / (c + e^gamma_e) of it.

    Their means are equal, so that the bound is off by 1/2 sum (rho - 1 - ln rho).
    """
    gamma_e = -1.0
    gap = gaps("finite gamma", epsilon=(gamma_e - WIDE[0]) / (WIDE[1] - WIDE[0]))[name]
    variance = ORACLES["continuous_gaussian"].variance
    rho = variance / (variance + math.exp(gamma_e))
    cost = 0.5 * np.sum(rho - 1.0 - np.log(rho)) / (NUM_DIMS * math.log(2))
    assert abs(gap.mean - cost) < 3 * gap.error
    assert cost > 10 * gap.error


def test_traces_differ_by_their_noise_alone():
    """Of a Jacobian that is not diagonal; of one that is, Rademacher probes are exact."""
    every = gaps("variance preserving SDE")
    one, four, exact = (every[f"random slice, {trace}"].error for trace in ("1 probe", "4 probes", "exact"))
    assert exact < four < one
    every = gaps("finite gamma")
    assert every["random slice, 1 probe"].mean == pytest.approx(every["random slice, exact"].mean, abs=1e-4)


# Parts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS.names())
def test_transition(path, x64):
    """From s to t by way of r, the same mean and variance; from no noise, the diffusion itself."""
    at_s, at_r, at_t = (coefficients(path, gamma) for gamma in (-3.0, 0.5, 2.0))
    one, zero = jnp.ones(1), jnp.zeros(1)

    def moments(start, end):
        normal = process(path).forward(one, None, None, start, end)
        return normal.mean, jnp.exp(normal.log_sigma)

    (m1, s1), (m2, s2), (m, s) = moments(at_s, at_r), moments(at_r, at_t), moments(at_s, at_t)
    np.testing.assert_allclose(m, m1 * m2, rtol=1e-14)
    np.testing.assert_allclose(s**2, (m2 * s1) ** 2 + s2**2, rtol=1e-14)
    clean = Coefficients(one, zero, -jnp.inf * one, jnp.inf * one, -one, one)
    np.testing.assert_allclose(
        jnp.ravel(jnp.stack(moments(clean, at_t))), (at_t.alpha, at_t.sigma), rtol=1e-14
    )
    np.testing.assert_allclose(s**2 + (m * at_s.sigma) ** 2, at_t.sigma**2, rtol=1e-14)


def test_priors():
    z = np.random.default_rng(0).normal(size=(3, 2, 2, 1)).astype(np.float32)
    prior = Normal(jnp.zeros(()), jnp.log(jnp.full((1, 1, 1, 1), 0.9)))
    assert set(score_bounds.PRIORS) == {"model", "sdeflow_released"}
    value = score_bounds.process_prior(jnp.asarray(z), prior)
    exact = -norm.logpdf(z.astype(float), scale=0.9).reshape(3, -1).sum(-1)
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    # As released, N(0, 1) whatever the path says: at most 5e-6 of the squares too low (MATH.md section 9).
    released = np.asarray(score_bounds.released_prior(jnp.asarray(z), prior), np.float64)
    standard = -norm.logpdf(z.astype(float)).reshape(3, -1).sum(-1)
    np.testing.assert_allclose(released, standard, rtol=4e-6)
    squares = np.sum(z.astype(float) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(
        standard - released,
        squares / 2 - squares / (2 + 1e-5),
        atol=4 * np.finfo(np.float32).eps * standard.max(),
    )


class Recorded:
    """A trace that says what it was asked."""

    def __call__(self, fn, z, probes, *, batch_axes):
        assert batch_axes == 1
        self.z = z
        return fn(z), jnp.stack([jnp.full(len(z), 2.0), jnp.full(len(z), 4.0)])


def test_terms_by_hand(x64):
    """Of one linear eps_hat and a trace of 2 and 4, from the formulas of the module, in float64."""
    rng = np.random.default_rng(0)
    z, eps, eps_1, eps_e = (rng.normal(size=(3, 2, 2, 1)) for _ in range(4))
    path, shape, d = "sub_variance_preserving", (3, 1, 1, 1), 4
    rate, k_a = rng.uniform(5, 9, shape), -rng.uniform(0.1, 0.4, shape)
    span = rng.uniform(0.5, 1.5, 3)
    gammas = (np.full(shape, -4.0), rng.uniform(-1, 1, shape), np.full(shape, 6.0))
    at_s, at_t, at_1 = (coefficients(path, gamma, rate, k_a) for gamma in gammas)
    trace, sigma_1 = Recorded(), at_1.sigma
    prior = Normal(jnp.zeros(()), jnp.log(sigma_1))

    terms = score_bounds.random_slice(
        lambda z: 0.7 * z - 0.1,
        jnp.asarray(z),
        eps=jnp.asarray(eps),
        eps_1=jnp.asarray(eps_1),
        probes=jnp.zeros(1),
        trace=trace,
        span=jnp.asarray(span),
        at_s=at_s,
        at_t=at_t,
        at_1=at_1,
        process=process(path),
        prior=prior,
    )
    total = {
        c: at_c.alpha / at_s.alpha * z
        + at_c.sigma * np.sqrt(1 - (at_c.alpha * at_s.sigma / at_s.alpha / at_c.sigma) ** 2) * e
        for c, at_c, e in (("t", at_t, eps), ("1", at_1, eps_1))
    }
    np.testing.assert_allclose(trace.z, total["t"], rtol=1e-12)

    def each(a):
        return np.broadcast_to(a, z.shape).reshape(3, -1).sum(-1)

    np.testing.assert_allclose(terms.prior, -each(norm.logpdf(total["1"], scale=sigma_1)), rtol=1e-12)
    a = -np.sqrt(rate) * (0.7 * total["t"] - 0.1)
    np.testing.assert_allclose(terms.score, span * each(0.5 * a**2), rtol=1e-12)
    divergence = -(rate * at_t.sigma).ravel() * 3.0 - d * (rate * k_a).ravel()
    np.testing.assert_allclose(terms.divergence, span * divergence, rtol=1e-12)

    late = coefficients(path, np.full(shape, -3.0))
    terms = score_bounds.truncated(
        lambda z: 0.7 * z - 0.1,
        lambda z: -0.2 * z,
        jnp.asarray(z),
        eps=jnp.asarray(eps),
        eps_1=jnp.asarray(eps_1),
        eps_e=jnp.asarray(eps_e),
        span=jnp.asarray(span),
        at_t=at_t,
        at_e=late,
        at_1=at_1,
        prior=prior,
    )
    z_t, z_1, z_e = (c.alpha * z + c.sigma * e for c, e in ((at_t, eps), (at_1, eps_1), (late, eps_e)))
    np.testing.assert_allclose(terms.prior, -each(norm.logpdf(z_1, scale=sigma_1)), rtol=1e-12)
    integrand = (eps - 0.7 * z_t + 0.1) ** 2 - eps**2 - 2 * k_a
    np.testing.assert_allclose(terms.diffusion, 0.5 * span * each(rate * integrand), rtol=1e-12, atol=1e-12)
    # -log N(x; (z_e - sigma_e eps_hat) / alpha_e, sigma_e^2 / alpha_e^2) - H(q(z_e | x)).
    mean = (z_e + 0.2 * late.sigma * z_e) / late.alpha
    decoder = -each(norm.logpdf(z, mean, late.sigma / late.alpha))
    entropy = d * (0.5 * math.log(2 * math.pi * math.e) + np.log(late.sigma).ravel())
    np.testing.assert_allclose(terms.reconstruction, decoder - entropy, rtol=1e-11)
