"""Layers that the networks share: dropout and group normalisation against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.networks import layers


def dropped(x, key, place=None, *, rate=0.3):
    layer = layers.Dropout(rate, train=True)
    return np.asarray(layer.apply({}, x, place, rngs={"mask": key}))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("channels", [7, 8])
def test_dropout_keeps_the_mean(rate, channels):
    x = jnp.ones((8, 64, 64, channels))
    out = dropped(x, jax.random.key(0), rate=rate)
    exact = round(rate * 2**32) / 2**32
    kept = np.mean(out != 0)
    # Five standard deviations of a share of independent elements.
    assert abs(kept - (1 - exact)) < 5 * np.sqrt(exact * (1 - exact) / x.size)
    np.testing.assert_allclose(out[out != 0], 1 / (1 - exact), rtol=1e-6)


def test_dropout_under_float64():
    """The same masks, whatever the width of numbers that JAX makes by default."""
    x, key = jnp.ones((4, 1000)), jax.random.key(0)
    expected = dropped(x, key)
    with jax.enable_x64():
        np.testing.assert_array_equal(dropped(x, key), expected)


def test_masks_belong_to_examples():
    """Not to their batch: half of a batch has the masks of that half."""
    x, key = jnp.ones((4, 4, 4, 8)), jax.random.key(0)
    whole = dropped(x, key)
    np.testing.assert_array_equal(whole, dropped(x, key, jnp.arange(4)))
    np.testing.assert_array_equal(whole[2:], dropped(x[2:], key, jnp.arange(2, 4)))
    assert all(np.any(whole[i] != whole[j]) for i in range(4) for j in range(i))
    assert np.any(whole != dropped(x, jax.random.key(1)))


def test_dropout_of_nothing():
    x = jnp.ones((2, 3))
    assert layers.Dropout(0.0, train=True).apply({}, x) is x
    assert layers.Dropout(0.5, train=False).apply({}, x) is x


def test_dropout_of_bfloat16():
    out = dropped(jnp.ones((2, 4, 4, 8), jnp.bfloat16), jax.random.key(0))
    assert out.dtype == jnp.bfloat16


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_group_norm(groups):
    """Mean and variance over positions and the channels of a group (1803.08494, section 3.1)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 5, 4, 8)) * 2.0 + 1.0
    scale, bias = rng.normal(size=(2, 8))
    params = {"norm": {"scale": jnp.float32(scale), "bias": jnp.float32(bias)}}
    norm = layers.GroupNorm(groups, epsilon=1e-3)
    out = norm.apply({"params": params}, jnp.asarray(x, jnp.float32))
    grouped = x.reshape(3, 20, groups, -1)
    centred = grouped - grouped.mean((1, 3), keepdims=True)
    normal = centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-3)
    # Float32: sums of 160 terms, and cancellation of mean^2 against a variance of 4.
    np.testing.assert_allclose(out, normal.reshape(x.shape) * scale + bias, rtol=1e-5, atol=1e-5)


def test_group_norm_of_a_constant():
    """Without a variance below zero, which rounding could give."""
    out = layers.GroupNorm(2).init_with_output(jax.random.key(0), jnp.full((1, 8, 8, 4), 0.1))[0]
    assert np.all(np.isfinite(out)) and np.abs(out).max() < 0.1
