"""The generated data and their density, against quadrature and a kernel estimate."""

import numpy as np
import pytest

from jvdm import data
from jvdm.core.errors import UserError
from jvdm.data import swissroll


@pytest.fixture(scope="module")
def dataset():
    return data.load("swissroll")


def test_shapes_and_repeatability(dataset):
    assert dataset.num_levels == 0 and dataset.data_shape == (2,)
    assert dataset.train.shape == (100_000, 2) and dataset.test.shape == (5_000, 2)
    assert dataset.train.dtype == np.float32
    again = data.load("swissroll")
    assert again.fingerprint("train") == dataset.fingerprint("train")
    assert dataset.fingerprint("train") != dataset.fingerprint("test")


def test_points_are_those_of_scikit_learn(dataset):
    """Moments of its roll of noise 1, over 10; 100,000 points each, so errors of 0.7 / 316 = 0.002."""
    from sklearn.datasets import make_swiss_roll

    theirs = make_swiss_roll(100_000, noise=1.0, random_state=0)[0][:, [0, 2]] / 10.0
    ours = dataset.train.reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=5 * 0.0022)
    np.testing.assert_allclose(np.cov(ours.T), np.cov(theirs.T), atol=5 * 0.0022)


def test_density_integrates_to_one():
    side, extent = 120, 2.2
    axis = (np.arange(side) + 0.5) / side * 2 * extent - extent
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    # Cells of 0.037 under kernels of 0.1: the midpoint rule is exact to far below 1e-6.
    total = np.exp(swissroll.log_density(grid)).sum() * (2 * extent / side) ** 2
    assert total == pytest.approx(1.0, abs=1e-6)


def test_more_kernels_change_nothing(dataset):
    few, many = (swissroll.log_density(dataset.test[:200], num_kernels=n) for n in (4000, 16_000))
    # Of the rule, at the ends of the curve; it falls with the square of the spacing.
    np.testing.assert_allclose(few, many, atol=2e-5)


@pytest.mark.long
def test_density_is_that_of_a_kernel_estimate(dataset):
    """A Gaussian kernel estimate from 100,000 points; its width of 0.03 adds 9 % to the variance of 0.01."""
    from sklearn.neighbors import KernelDensity

    estimate = KernelDensity(bandwidth=0.03).fit(dataset.train.reshape(-1, 2))
    test = dataset.test[:500]
    kernel, exact = estimate.score_samples(test.reshape(-1, 2)).mean(), swissroll.log_density(test).mean()
    # Its bias is negative (about -width^2 / 2 times the mean Laplacian of log p) and small.
    assert exact - 0.05 < kernel < exact + 0.01


@pytest.mark.parametrize(("levels", "message"), [(256, "continuous")])
def test_levels_are_refused(levels, message):
    with pytest.raises(UserError, match=message):
        data.load("swissroll", num_levels=levels)


def test_shape_without_the_data():
    assert data.data_spec("swissroll") == ((2,), 0)
