"""The train step: global batch semantics, microbatches, optimizer, averages."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from helpers import tiny

from jvdm.core import sharding
from jvdm.core.errors import UserError
from jvdm.core.keys import named
from jvdm.core.records import Batch, Context, Dropout
from jvdm.training.optimizer import DECAY_MASKS, ema_rate, learning_rate, make_optimizer
from jvdm.training.step import init_state, make_train_step


def run(c, num_devices=1, steps=2):
    """(parameters, metrics) after `steps` steps of the same images, in one dispatch."""
    model, mesh = tiny.model(c), tiny.mesh(num_devices)
    state = jax.jit(lambda k: init_state(model, c, k), out_shardings=sharding.replicated(mesh))(
        jax.random.key(0)
    )
    b = c.training.batch_size
    batches = Batch(np.stack([tiny.images(b)] * steps))
    batches = sharding.to_devices(batches, sharding.split(mesh, axis=1))
    state, metrics = make_train_step(model, c, mesh)(state, batches)
    return jax.device_get((state.params, state.ema_params)), jax.device_get(metrics)


@pytest.fixture(scope="module")
def one_device():
    return run(tiny.config())


def test_eight_devices_train_like_one(one_device):
    params, metrics = run(tiny.config(), num_devices=8)
    # The same numbers are drawn; sums over the batch are in another order (float32), and the first steps of
    # Adam divide by the gradient's size, so that a gradient near zero may turn its step of at most 1e-3.
    np.testing.assert_allclose(metrics.losses["bpd"], one_device[1].losses["bpd"], rtol=2e-5)
    np.testing.assert_allclose(metrics.grad_norm, one_device[1].grad_norm, rtol=2e-4)
    assert tiny.max_difference(params, one_device[0]) < 2e-4


@pytest.mark.parametrize("num_devices", [1, 2])
def test_microbatches_are_the_whole_batch(one_device, num_devices):
    """Accumulation changes rounding only, dropout included: masks belong to examples."""
    (a, metrics_a), (b, metrics_b) = one_device, run(tiny.config(microbatches=4), num_devices)
    np.testing.assert_allclose(metrics_a.losses["bpd"], metrics_b.losses["bpd"], rtol=2e-5)
    # Adam does not see by what a gradient is multiplied; its norm does.
    np.testing.assert_allclose(metrics_a.grad_norm, metrics_b.grad_norm, rtol=2e-4)
    assert tiny.max_difference(a, b) < 2e-4


class Masks(nn.Module):
    """A network that is flax's own dropout."""

    @nn.compact
    def __call__(self, z, time, context, *, train=False):
        return nn.Dropout(0.5, deterministic=not train)(z)


def test_what_draws_for_all_examples_draws_anew_in_each_part():
    """Of a batch of 4: no two devices or microbatches have the same masks."""
    model = dataclasses.replace(tiny.model(tiny.config()), network=Masks())
    z, gamma = jnp.ones((2, *tiny.SHAPE)), jnp.zeros((2, 1, 1, 1))
    one, other = (
        model.output(
            {"network": {}},
            z,
            gamma,
            Context(),
            dropout=Dropout(jax.random.key(0), jnp.arange(first, first + 2)),
        )
        for first in (0, 2)
    )
    assert np.any(one != other)


def test_microbatches_draw_different_noise():
    """With equal images, the loss of two microbatches differs from that of one half repeated."""
    c = tiny.config(microbatches=2)
    model = tiny.model(c)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), jnp.arange(16))
    draws = jax.jit(model.draw)(keys, jnp.linspace(0.0, 0.9, 16))
    flat = draws.eps.reshape(16, -1)
    correlation = np.corrcoef(flat)
    off_diagonal = np.abs(correlation - np.eye(16)).max()
    # 64 pixels: correlations have deviation 1/8; 120 pairs stay below 5 deviations.
    assert off_diagonal < 0.625


def test_metrics_are_the_terms(one_device):
    metrics = one_device[1]
    losses = metrics.losses
    np.testing.assert_allclose(
        losses["bpd"], losses["reconstruction"] + losses["prior"] + losses["diffusion"], rtol=1e-6
    )
    assert metrics.losses["bpd"].shape == (2,)
    assert metrics.learning_rate[0] == 0.0
    assert metrics.learning_rate[1] == pytest.approx(5e-4)


def test_every_step_draws_anew(one_device):
    """The first step's rate is 0, so that the second has the same parameters and images, and another loss."""
    first, second = one_device[1].losses["diffusion"]
    assert abs(first - second) > 1e-2 * first


def test_average_follows_the_parameters(one_device):
    """One step from rate 0.9: average = 0.9 old + 0.1 new, and step 0 of the warm-up moves nothing."""
    params, average = one_device[0]
    start = jax.device_get(jax.jit(tiny.model(tiny.config()).init)(named(jax.random.key(0), "init")))
    expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, start, params)
    # Rounding of one multiply-add on numbers up to about 10 (the schedule's).
    assert tiny.max_difference(average, expected) < 2e-6


def test_learning_rate():
    c = tiny.config().optimizer
    c.warmup_steps, c.learning_rate = 10, 1.0
    rate = learning_rate(c, 110)
    assert [float(rate(s)) for s in (0, 5, 10, 60)] == pytest.approx([0.0, 0.5, 1.0, 1.0])
    c.linear_decay = True
    rate = learning_rate(c, 110)
    assert [float(rate(s)) for s in (5, 10, 60, 110)] == pytest.approx([0.5, 1.0, 0.5, 0.0])


def test_ema_power():
    c = tiny.config().optimizer
    c.ema_rate, c.ema_power = 0.99, 0.5
    assert float(ema_rate(c, jnp.array(0))) == 0.0
    assert float(ema_rate(c, jnp.array(3))) == pytest.approx(0.5)
    assert float(ema_rate(c, jnp.array(10**6))) == pytest.approx(0.99)


def test_decay_masks():
    params = jax.eval_shape(tiny.model(tiny.config()).init, jax.random.key(0))
    kernels, released = (DECAY_MASKS[name](params) for name in ("kernels", "released_vdm"))
    assert not any(jax.tree.leaves(kernels["schedule"]))
    assert all(jax.tree.leaves(released["schedule"]))
    block = kernels["network"]["down"]["block"]
    assert block["conv1"]["kernel"] and not block["conv1"]["bias"] and not block["norm1"]["norm"]["scale"]
    block = released["network"]["down"]["block"]
    assert block["conv1"]["kernel"] and not block["conv1"]["bias"] and block["norm1"]["norm"]["scale"]


def test_clipping_bounds_the_update():
    c = tiny.config().optimizer
    c.clip_norm, c.weight_decay = 1.0, 0.0
    params = {"network": {"kernel": jnp.zeros(3)}, "schedule": {}}
    clipped = make_optimizer(c, 10)
    state = clipped.init(params)
    huge = jax.tree.map(lambda p: p + 1e6, params)
    _, state = clipped.update(huge, state, params)
    mu = optax.tree_utils.tree_get(state, "mu")["network"]["kernel"]
    assert float(jnp.linalg.norm(mu)) == pytest.approx(0.1, rel=1e-5)


def test_unknown_mask():
    c = tiny.config().optimizer
    c.decay_mask = "kernel"
    with pytest.raises(UserError, match="did you mean 'kernels'"):
        make_optimizer(c, 10)


@pytest.mark.long
def test_rematerialisation_saves_memory():
    """What a block keeps, in arrays of its output: 1 more than its input for elementwise, over 10 for none.

    A pair of blocks, one on the way down and one on the way up, adds to the step's temporary memory what
    the two keep, and what their parameters cost in any case: measured between 8 and 24 pairs.
    """
    kept = {}
    for remat in ("none", "elementwise", "full"):
        sizes = []
        for pairs in (8, 24):
            c = tiny.config()
            c.network.num_blocks, c.network.remat = pairs, remat
            model, mesh = tiny.model(c), tiny.mesh()
            state = jax.eval_shape(lambda k, m=model, c=c: init_state(m, c, k), jax.random.key(0))
            batches = jax.eval_shape(lambda: Batch(jnp.zeros((1, 16, *tiny.SHAPE), jnp.uint8)))
            compiled = make_train_step(model, c, mesh).lower(state, batches).compile()
            sizes.append(compiled.memory_analysis().temp_size_in_bytes)
        array = 4 * 16 * 8 * 8 * c.network.channels
        kept[remat] = (sizes[1] - sizes[0]) / 16 / 2 / array
    # The compiler's alignment and small vectors (statistics, dropout's keys) are a few percent of an array.
    assert kept["elementwise"] - kept["full"] == pytest.approx(1, abs=0.1)
    assert kept["none"] - kept["full"] > 10
