"""The closed forms against finite differences and quadrature: what everything else is judged by."""

import numpy as np
import pytest
from helpers import oracles

MIXTURE = oracles.point_mixture()
GAUSSIAN = oracles.Gaussian(np.array([0.3, -0.5, 0.0]), np.array([0.05, 0.4, 1.3]))
NORMALS = oracles.NormalMixture(MIXTURE, 0.1)
STEP = 1e-5  # central differences of float64: error about step^2 + 1e-16 / step, relative


def gradient(fn, z):
    e = STEP * np.eye(z.shape[-1])
    return np.stack([(fn(z + e[d]) - fn(z - e[d])) / (2 * STEP) for d in range(z.shape[-1])], axis=-1)


@pytest.mark.parametrize("gamma", [-3.0, 0.0, 4.0])
@pytest.mark.parametrize("oracle", [MIXTURE, GAUSSIAN, NORMALS])
def test_score_is_the_gradient_of_the_log_density(oracle, gamma):
    alpha, sigma = oracles.variance_preserving(np.array([gamma]))
    d = 3 if oracle is GAUSSIAN else 4
    z = np.random.default_rng(1).normal(size=(5, d))
    expected = gradient(lambda z: oracle.log_density(z, alpha, sigma), z)
    # Third derivatives are of order sigma^-3 <= 100, times STEP^2.
    np.testing.assert_allclose(-oracle.eps_hat(z, alpha, sigma) / sigma, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gamma", [-3.0, 0.0, 4.0])
def test_score_divergence(gamma):
    alpha, sigma = oracles.variance_preserving(np.array([gamma]))
    z = np.random.default_rng(2).normal(size=(5, 4))
    jacobian = gradient(lambda z: MIXTURE.score(z, alpha, sigma).swapaxes(0, 1), z)
    expected = np.einsum("dnd->n", jacobian)
    np.testing.assert_allclose(MIXTURE.score_divergence(z, alpha, sigma), expected, rtol=1e-6, atol=1e-5)


def test_mixture_density_is_normalised():
    # On a 2-D mixture a Riemann sum of a smooth, decayed integrand converges faster than any power.
    mixture = oracles.point_mixture(num_points=5, num_dims=2)
    alpha, sigma = oracles.variance_preserving(np.array([-1.0]))
    axis = np.linspace(-6, 6, 241)
    z = np.stack(np.meshgrid(axis, axis), axis=-1)
    total = np.exp(mixture.log_density(z, alpha, sigma)).sum() * (axis[1] - axis[0]) ** 2
    assert abs(total - 1.0) < 1e-9


def test_continuous_mixture_is_its_samples_distribution():
    """The density is the sum of its normals, and the mean of -log p over samples the entropy."""
    rng, n = np.random.default_rng(0), 50_000
    x = NORMALS.sample(rng, n)
    distance = np.sum((x[:, None] - MIXTURE.points) ** 2, axis=-1) / 0.1**2
    density = np.exp(-0.5 * distance) @ MIXTURE.weights / (2 * np.pi * 0.1**2) ** 2
    log_p = NORMALS.log_density(x, np.ones(1), np.zeros(1))
    np.testing.assert_allclose(log_p, np.log(density), rtol=1e-12, atol=1e-13)
    # The points' entropy and a normal's, since their distances are some deviations.
    entropy = MIXTURE.entropy + 2 * np.log(2 * np.pi * np.e * 0.1**2)
    assert -0.3 < -log_p.mean() - entropy < 3 * log_p.std() / np.sqrt(n)
    # And noised, as its own samples are.
    alpha, sigma = oracles.sub_variance_preserving(np.array([-2.0]))
    z = alpha * x + sigma * rng.normal(size=x.shape)
    error = (z - alpha * x) / sigma - NORMALS.eps_hat(z, alpha, sigma)
    # E[eps | z]: its error has no part along it.
    products = np.sum(error * NORMALS.eps_hat(z, alpha, sigma), axis=-1)
    assert abs(products.mean()) < 3 * products.std() / np.sqrt(n)


def test_linear_beta_is_the_integral_of_its_rate():
    t = np.linspace(0.001, 1.0, 100_001)
    for path in oracles.ALPHA_SIGMA:
        gamma, rate = oracles.linear_beta_gamma(path, t)
        # Trapezium rule: step^2 / 12 times the slope of the rate at its start, 1 / t^2 = 1e6.
        np.testing.assert_allclose(np.trapezoid(rate, t), gamma[-1] - gamma[0], atol=2e-5)
        alpha, _ = oracles.ALPHA_SIGMA[path](gamma)
        np.testing.assert_allclose(alpha, np.exp(-0.5 * oracles.linear_beta(t)[1]), rtol=1e-12)
        if path != "straight":
            np.testing.assert_allclose(oracles.linear_beta_rate(path, gamma), rate, rtol=1e-9)


@pytest.mark.parametrize("path", oracles.ALPHA_SIGMA)
def test_velocity_has_unit_variance_and_gives_the_drift(path):
    """Of x and eps of variance 1; and 1/2 sigma eps + d log alpha / d gamma z is proportional to it."""
    gamma, step = np.array([-5.0, 0.0, 3.0]), 1e-6
    alpha, sigma = oracles.ALPHA_SIGMA[path](gamma)
    on_eps, on_x = (oracles.velocity(path, x, 1.0 - x, alpha, sigma) * np.ones(3) for x in (0.0, 1.0))
    np.testing.assert_allclose(on_eps**2 + on_x**2, 1.0, rtol=1e-14)
    up, down = (np.log(oracles.ALPHA_SIGMA[path](gamma + s)[0]) for s in (step, -step))
    k = (up - down) / (2 * step)
    # The coefficients of eps and x in the drift, in proportion; central differences of float64.
    np.testing.assert_allclose((0.5 * sigma + k * sigma) * on_x, k * alpha * on_eps, atol=1e-8)


def test_gaussian_diffusion_is_the_integral_of_its_squared_error():
    gammas = np.linspace(-13.3, 5.0, 200_001)
    errors = 0.5 * GAUSSIAN.squared_error(gammas)
    expected = np.trapezoid(errors, gammas)
    # Trapezium rule: span * step^2 / 12 * curvature, below 1e-8.
    np.testing.assert_allclose(GAUSSIAN.diffusion(-13.3, 5.0), expected, rtol=1e-8)
    # The sum is an upper Riemann sum of a term that decreases in information: its excess is O(step).
    discrete = GAUSSIAN.diffusion_discrete(gammas)
    assert 0.0 < discrete - expected < 1e-3


def test_gaussian_squared_error_is_that_of_its_denoiser():
    rng = np.random.default_rng(3)
    x = GAUSSIAN.mean + np.sqrt(GAUSSIAN.variance) * rng.normal(size=(200_000, 3))
    eps = rng.normal(size=x.shape)
    alpha, sigma = oracles.variance_preserving(np.array([-0.5]))
    errors = np.sum((eps - GAUSSIAN.eps_hat(alpha * x + sigma * eps, alpha, sigma)) ** 2, axis=-1)
    standard_error = errors.std() / np.sqrt(len(errors))
    assert abs(errors.mean() - GAUSSIAN.squared_error(np.array(-0.5))) < 3 * standard_error


def test_mixture_weights_are_a_distribution_on_distinct_points():
    assert len(np.unique(MIXTURE.levels, axis=0)) == len(MIXTURE.weights) == 12
    assert np.all((MIXTURE.levels >= 0) & (MIXTURE.levels < MIXTURE.num_levels))
    assert abs(MIXTURE.weights.sum() - 1.0) < 1e-12
    assert 0.0 < MIXTURE.entropy < np.log(12)


@pytest.mark.parametrize("path", oracles.ALPHA_SIGMA)
def test_paths_have_their_gamma(path):
    gamma = np.linspace(-13.3, 10.0, 50)
    alpha, sigma = oracles.ALPHA_SIGMA[path](gamma)
    np.testing.assert_allclose(np.log(sigma**2 / alpha**2), gamma, atol=1e-12)
    one = {"straight": alpha + sigma, "sub_variance_preserving": alpha**2 + sigma}
    np.testing.assert_allclose(one.get(path, alpha**2 + sigma**2), 1.0, rtol=1e-14)


@pytest.mark.parametrize("path", oracles.ALPHA_SIGMA)
@pytest.mark.parametrize("oracle", [MIXTURE, GAUSSIAN, NORMALS])
def test_both_denoisers_are_one(oracle, path):
    """z = alpha E[x | z] + sigma E[eps | z]."""
    alpha, sigma = oracles.ALPHA_SIGMA[path](np.array([-0.7]))
    d = 3 if oracle is GAUSSIAN else 4
    z = np.random.default_rng(4).normal(size=(5, d))
    recovered = alpha * oracle.x_hat(z, alpha, sigma) + sigma * oracle.eps_hat(z, alpha, sigma)
    np.testing.assert_allclose(recovered, z, atol=1e-13)


def test_discretised_gaussian_is_a_distribution_and_its_samples_follow_it():
    gaussian = oracles.discretised_gaussian()
    masses = np.exp(gaussian.log_masses())
    # What lies beyond [-1, 1], more than six standard deviations: 1e-9.
    np.testing.assert_allclose(masses.sum(-1), 1.0, atol=1e-8)
    # Cells are narrow: the density at the centre times the width, up to (width / deviation)^2 / 24 = 1e-3.
    centres, width = oracles.encode(np.arange(256), 256), 2 / 256
    for d in range(4):
        mean, variance = gaussian.mean[d], gaussian.variance[d]
        near = np.abs(centres - mean) < 2 * np.sqrt(variance)
        density = np.exp(-0.5 * (centres - mean) ** 2 / variance) / np.sqrt(2 * np.pi * variance)
        np.testing.assert_allclose(masses[d, near], density[near] * width, rtol=3e-3)
    levels = gaussian.sample(np.random.default_rng(0), 100_000)
    for d in range(4):
        share = np.bincount(levels[:, d], minlength=256) / 100_000
        # 1024 shares: 5 standard errors.
        assert np.all(np.abs(share - masses[d]) < 5 * np.sqrt(masses[d] / 100_000) + 1e-4)
    log_p = gaussian.log_probability(levels)
    assert abs(log_p.mean() + gaussian.entropy) < 3 * log_p.std() / np.sqrt(len(log_p))
    # The entropy of the continuous Gaussian, in units of cells, and a cell's share of the variance.
    entropy = 0.5 * np.sum(np.log(2 * np.pi * np.e * gaussian.variance)) - 4 * np.log(width)
    entropy += np.sum(width**2 / gaussian.variance) / 24
    np.testing.assert_allclose(gaussian.entropy, entropy, atol=1e-5)


def test_samples_of_the_mixture_are_its_points():
    levels = MIXTURE.sample(np.random.default_rng(0), 20_000)
    log_p = MIXTURE.log_probability(levels)
    assert abs(log_p.mean() + MIXTURE.entropy) < 3 * log_p.std() / np.sqrt(len(log_p))
    np.testing.assert_allclose(MIXTURE.log_probability(MIXTURE.levels), np.log(MIXTURE.weights))
