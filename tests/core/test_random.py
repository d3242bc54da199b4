"""Draws: from open intervals, by quantiles that are right at both ends, each for its own purpose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import constant_bits

from jvdm.core import random

ENDS = np.array([0, 2**32 - 1], np.uint32)
WORDS = np.concatenate([ENDS, np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)])
# 386 is the bound of binary images with little noise, e^(13.3 / 2) / 2; others are those of narrow cells, and
# of the uneven cells that a logit map has.
BOUNDS = [(-386.0, 386.0), (-3.0, 3.0), (-0.01, 0.01), (-1e-4, 1e-4), (-0.5, 8.0), (-20.0, 1e-3)]


def test_uniform_numbers_are_inside_and_exact():
    least, greatest = np.asarray(random.open_unit(jnp.asarray(ENDS)))
    assert (least, greatest) == (2.0**-24, 1.0 - 2.0**-24)
    u = np.asarray(random.open_unit(jnp.asarray(WORDS)), np.float64)
    np.testing.assert_array_equal(u, ((WORDS >> 9) + 0.5) / 2**23)


@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_truncated_quantile(low, high):
    ends = [jnp.full(WORDS.shape, end, jnp.float32) for end in (low, high)]
    e = np.asarray(jax.jit(random.truncated_quantile)(jnp.asarray(WORDS), *ends), np.float64)
    low, high = (np.float64(np.float32(end)) for end in (low, high))
    v, rest = ((words + 0.5) / 2.0**32 for words in (WORDS, ~WORDS))
    exact = np.where(
        v < 0.5, scipy.stats.truncnorm.ppf(v, low, high), scipy.stats.truncnorm.isf(rest, low, high)
    )
    # 2.5 units of the last place of numbers near 4, and as many of the width of a narrow cell.
    assert np.abs(e - exact).max() < 2.5 * 2.0**-22 * min(1.0, high - low)
    assert low < e.min()
    assert e.max() < high


def test_the_ends_of_a_truncated_normal_are_those_of_32_bits():
    """The float32 quantile at an exact 0, which is the bound itself, was 386: e^2 / 2 of it 74,000 nats."""
    e = random.truncated_quantile(jnp.asarray(ENDS), jnp.full(2, -386.0), jnp.full(2, 386.0))
    np.testing.assert_allclose(e, [-6.338, 6.338], atol=1e-3)


def test_moments_of_a_truncated_normal(key):
    low, high = jnp.full(200_000, -0.5), jnp.full(200_000, 2.0)
    e = np.asarray(random.truncated_normal(key, "test", low, high), np.float64)
    exact = scipy.stats.truncnorm(-0.5, 2.0)
    # Four standard errors, of the mean and of the variance.
    assert abs(e.mean() - exact.mean()) < 4.0 * exact.std() / np.sqrt(e.size)
    assert abs(e.var() - exact.var()) < 4.0 * np.std((e - e.mean()) ** 2) / np.sqrt(e.size)


def test_float64_where_a_caller_works_in_it(key, x64):
    for draw in (random.uniform, random.normal, random.gumbel):
        assert draw(key, "test", (3,)).dtype == jnp.float64
    low = jnp.full(3, -1.0)
    assert random.truncated_normal(key, "test", low, -low).dtype == jnp.float64
    assert random.rademacher(key, "test", (3,)).dtype == jnp.float32


@pytest.mark.parametrize("end", constant_bits.ENDS)
def test_ends_of_jaxs_quantiles(end):
    """What JAX makes of the least and the greatest word: finite, and as the module says."""
    key, sign = constant_bits.key(end), 1.0 if end == "greatest" else -1.0
    np.testing.assert_allclose(random.normal(key, "test", (5,)), 5.22 if sign > 0 else -5.42, atol=0.01)
    np.testing.assert_allclose(random.gumbel(key, "test", (5,)), 15.94 if sign > 0 else -4.47, atol=0.01)
    assert random.categorical(key, "test", jnp.array([-1e5, 0.0, -3e5])) == 1
    assert random.index_below(key, "test", 7) in range(7)


def test_each_purpose_has_its_own_numbers(key):
    draws = [random.bits(key, name, (1000,)) for name in ("eps", "eps_0", "times")]
    draws.append(random.bits(jax.random.fold_in(key, 1), "eps", (1000,)))
    words = np.concatenate(draws)
    # 4000 words of 32 bits: two are equal with probability 0.002.
    assert len(np.unique(words)) >= len(words) - 1
