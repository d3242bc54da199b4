"""The train step of a model with a latent: the same on any number of devices, with the encoder's dropout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import tiny
from helpers.tiny_latents import M, batch, config, draws_of

from jvdm.core import sharding
from jvdm.core.keys import named
from jvdm.core.records import Batch
from jvdm.training.step import init_state, make_train_step


def train(c, num_devices=1, model=None, steps=2):
    """(parameters, metrics) after `steps` steps in one dispatch."""
    model, mesh = model or tiny.model(c), tiny.mesh(num_devices)
    state = jax.jit(lambda k: init_state(model, c, k), out_shardings=sharding.replicated(mesh))(
        jax.random.key(0)
    )
    b = c.training.batch_size
    batches = Batch(tiny.images(steps * b).reshape(steps, b, *tiny.SHAPE))
    batches = sharding.to_devices(batches, sharding.split(mesh, axis=1))
    state, metrics = make_train_step(model, c, mesh)(state, batches)
    return jax.device_get(state.params), jax.device_get(metrics)


@pytest.mark.long
def test_eight_devices_train_like_one():
    (one, metrics), (eight, same) = (train(config("reinforce"), num_devices=n) for n in (1, 8))
    # The same numbers are drawn; sums over the batch are in another order (float32), and the first steps of
    # Adam divide by the gradient's size, so that a gradient near zero may turn its step of at most 1e-3.
    assert metrics.losses.keys() == same.losses.keys() and "latent" in metrics.losses
    for term, values in metrics.losses.items():
        np.testing.assert_allclose(values, same.losses[term], rtol=2e-5, atol=1e-7, err_msg=term)
    np.testing.assert_allclose(metrics.grad_norm, same.grad_norm, rtol=2e-4)
    assert tiny.max_difference(one, eight) < 2e-4
    # The ends are fixed, so that there is nothing to show.
    assert metrics.gamma_0 is None and metrics.gamma_1 is None


class Dropping(nn.Module):
    """An encoder of nothing but dropout."""

    num_outputs: int
    dropout: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, context=None, *, train=False):
        h = nn.Dropout(self.dropout, deterministic=not train)(jnp.ones((len(x), 64)))
        return nn.Dense(self.num_outputs)(h)


def test_an_encoder_has_its_dropout_whatever_the_network_has():
    """Its charge in training is not that of the same parameters without it."""
    c = config("k_subset")
    model = dataclasses.replace(tiny.model(c), encoder=Dropping(M, 0.5))
    assert not hasattr(model.network, "dropout")
    _, metrics = train(c, model=model, steps=1)
    # The first step is of the initial parameters.
    params = jax.jit(model.init)(named(jax.random.key(0), "init"))
    _, cost = jax.jit(model.encode_latent)(params, batch(), draws_of(model).latent)
    without = model.units_per_nat * np.asarray(cost.charge)
    assert np.ptp(without) < 1e-6 * without[0], "the encoder sees no image"
    assert abs(metrics.losses["latent"][0] - without[0]) > 1e-2 * without[0]
