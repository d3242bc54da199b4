"""The perceptron for data of a few dimensions: shapes, and that it learns a score."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.compose import context_of

from jvdm.core.records import Context
from jvdm.networks.mlp import MLP

TIME = jnp.array([0.56, 0.78])
CONDITIONING, OTHER = (context_of(jnp.array(a)) for a in ([0.0, 1.0], [1.0, 0.0]))


@pytest.mark.parametrize("shape", [(2, 1, 1, 2), (2, 1, 2, 1), (2, 3, 2, 3)])
def test_any_small_shape(shape):
    net, z = MLP(hidden=8, num_layers=2), jnp.ones(shape)
    out, variables = net.init_with_output(jax.random.key(0), z, TIME, CONDITIONING)
    np.testing.assert_array_equal(out, jnp.zeros(shape))
    params = variables["params"]
    assert set(params) == {"hidden_0", "hidden_1", "out"}
    assert params["hidden_0"]["kernel"].shape == (np.prod(shape[1:]) + 32 + 1, 8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_everything_that_is_given_changes_the_output(dtype):
    net, z = MLP(hidden=8, num_layers=2, dtype=dtype), jnp.ones((2, 1, 1, 2))
    shapes = jax.eval_shape(net.init, jax.random.key(0), z, TIME, CONDITIONING)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), shapes)

    @jax.jit
    def apply(*arguments):
        return net.apply({"params": params}, *arguments)

    out = apply(z, TIME, CONDITIONING)
    assert out.dtype == jnp.float32
    for other in (
        (z + 0.1, TIME, CONDITIONING),
        (z, TIME + 0.03, CONDITIONING),
        (z, TIME, OTHER),
    ):
        assert np.all(np.abs(out - apply(*other)).max(axis=(1, 2, 3)) > 1e-3)


MISTAKES = {
    "hidden": {"hidden": 0},
    "num_layers": {"num_layers": 0},
    "time_features": {"time_features": 7},
    "time_scale": {"time_scale": 0.0},
    "dtype": {"dtype": "float16"},
}


@pytest.mark.parametrize("option", MISTAKES)
def test_options_are_checked(option):
    with pytest.raises(ValueError, match=rf"^(unknown )?{option} "):
        MLP(**MISTAKES[option])


def test_it_learns_where_the_data_is():
    """Points +-(1, 0.5) noised to a standard deviation that grows with time.

    The best estimate of the noise is in closed form, so the loss above that of the best is known.
    """
    net, mean = MLP(hidden=64, num_layers=3), jnp.array([[1.0, 0.5]])

    def draw(key, n):
        k_sign, k_time, k_noise = jax.random.split(key, 3)
        time = jax.random.uniform(k_time, (n,))
        sigma = (0.2 + 0.8 * time)[:, None]
        sign = jax.random.rademacher(k_sign, (n, 1), jnp.float32)
        return sign * mean + sigma * jax.random.normal(k_noise, (n, 2)), sigma, sign * mean, time

    def predict(params, z, time):
        out = net.apply({"params": params}, z.reshape(-1, 1, 1, 2), time, Context())
        return out.reshape(z.shape)

    def loss(params, key):
        z, sigma, x, time = draw(key, 256)
        return jnp.mean(jnp.sum((predict(params, z, time) - (z - x) / sigma) ** 2, axis=-1))

    @jax.jit
    def train(key):
        params = net.init(key, jnp.zeros((1, 1, 1, 2)), jnp.zeros(1), Context())["params"]
        optimizer = optax.adam(3e-3)

        def step(carry, key):
            params, state = carry
            slope = jax.grad(loss)(params, key)
            with jax.numpy_dtype_promotion("standard"):  # optax promotes its counter
                updates, state = optimizer.update(slope, state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, 500))[0][0]

    params = train(jax.random.key(1, impl="rbg"))
    z, sigma, _, time = draw(jax.random.key(2), 4096)
    best = (z - mean * jnp.tanh(z @ mean[0] / sigma[:, 0] ** 2)[:, None]) / sigma
    excess = jnp.mean(jnp.sum((predict(params, z, time) - best) ** 2, axis=-1))
    # What zero would have is about 1.5.
    assert jnp.mean(jnp.sum(best**2, axis=-1)) > 1.0
    assert excess < 0.1
