"""Every way of drawing times is uniform and unbiased; stratified times are spread evenly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.diffusion.times import TIME_SAMPLERS, stratify

BATCH = 8
DRAWS = 4096


@pytest.fixture(params=TIME_SAMPLERS.names(), scope="module")
def times(request):
    """[DRAWS, BATCH] times of independent keys."""
    sampler = TIME_SAMPLERS.build(TIME_SAMPLERS.spec(request.param))
    keys = jax.random.split(jax.random.key(7), DRAWS)
    return np.asarray(jax.jit(jax.vmap(lambda key: sampler(key, BATCH)))(keys))


def kolmogorov_distance(values):
    """Largest distance between the empirical distribution and the uniform one."""
    values = np.sort(values)
    n = len(values)
    return max(np.max(np.arange(1, n + 1) / n - values), np.max(values - np.arange(n) / n))


# Level 1e-4 of Kolmogorov's statistic: 2.23 / sqrt(4096) = 0.035. At a place where the true
# distribution is off by 0.065 the empirical one has sd <= 0.5 / 64 = 0.008, so that such a bias is
# missed with probability below 1e-4.
LIMIT = 2.23 / np.sqrt(DRAWS)


def test_range_shape_and_dtype(times):
    assert times.shape == (DRAWS, BATCH)
    assert times.dtype == np.float32
    assert times.min() >= 0.0
    assert times.max() < 1.0


def test_every_place_in_the_batch_is_uniform(times):
    distances = [kolmogorov_distance(times[:, i]) for i in range(BATCH)]
    assert max(distances) < LIMIT


def test_the_uniformity_test_has_power():
    """It sees times that are stratified but never rotated, and a density off by a tenth."""
    rng = np.random.default_rng(0)
    fixed = (np.arange(BATCH) + rng.uniform(size=(DRAWS, 1))) / BATCH
    assert kolmogorov_distance(fixed[:, 3]) > 10 * LIMIT
    tilted = rng.uniform(size=DRAWS) ** 1.25
    assert kolmogorov_distance(tilted) > LIMIT


def test_unbiased(times):
    estimates = np.exp(3.0 * times.astype(np.float64)).mean(axis=1)
    standard_error = estimates.std(ddof=1) / np.sqrt(DRAWS)
    exact = np.expm1(3.0) / 3.0
    assert abs(estimates.mean() - exact) < 3.5 * standard_error
    # Independent times: sd of exp(3u) is 5.2, so 5.2 / sqrt(8 * 4096) = 0.029; none may be worse.
    assert standard_error < 0.032


def test_one_key_gives_one_batch(key):
    for name in TIME_SAMPLERS.names():
        sampler = TIME_SAMPLERS.build(TIME_SAMPLERS.spec(name))
        np.testing.assert_array_equal(sampler(key, 5), sampler(key, 5))
        assert np.any(sampler(key, 5) != sampler(jax.random.fold_in(key, 1), 5))


@pytest.mark.parametrize("n", [1, 3, 8, 128])
def test_stratified_has_one_time_in_every_stratum(n, key):
    sampler = TIME_SAMPLERS.build(TIME_SAMPLERS.spec("stratified"))
    for i in range(20):
        u = np.sort(np.asarray(sampler(jax.random.fold_in(key, i), n), np.float64))
        # Consecutive points, around the circle, are 1/n apart: sums near 1 round to 1.2e-7.
        np.testing.assert_allclose(np.diff([*u, u[0] + 1.0]), 1.0 / n, atol=3e-7)


def test_stratified_times_are_rotated(key):
    sampler = TIME_SAMPLERS.build(TIME_SAMPLERS.spec("stratified"))
    first = np.array([sampler(jax.random.fold_in(key, i), 8)[0] for i in range(64)])
    # 64 uniform numbers all below 7/8, or all above 1/8, have probability 2e-4.
    assert first.min() < 1 / 8
    assert first.max() > 7 / 8


def test_stratified_has_the_lower_variance():
    def spread(name):
        sampler = TIME_SAMPLERS.build(TIME_SAMPLERS.spec(name))
        keys = jax.random.split(jax.random.key(3), 512)
        return np.var(np.exp(3.0 * jax.vmap(lambda key: sampler(key, 32))(keys)).mean(axis=1))

    # In theory 32 * 20: the rotation leaves a saw tooth of the periodic extension's jump.
    assert spread("stratified") < spread("uniform") / 10


def test_stratify_broadcasts_over_rotations():
    u_0 = jnp.array([[0.0, 0.5], [0.25, 0.99]])
    points = stratify(u_0, 4)
    assert points.shape == (2, 2, 4)
    # One rounding of a sum below 2.
    np.testing.assert_allclose(points[1, 0], [0.25, 0.5, 0.75, 0.0], atol=1e-7)
    np.testing.assert_allclose(points[1, 1], [0.99, 0.24, 0.49, 0.74], atol=2e-7)
