"""The second-order penalty: its formulas, what a perfect network makes of it, and its gradient."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import known, oracles, tiny

from jvdm.core.records import Batch, Context
from jvdm.diffusion import losses
from jvdm.diffusion.gaussian import coefficients
from jvdm.diffusion.parameterizations import PARAMETERIZATIONS
from jvdm.diffusion.paths import PATHS
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.diffusion.times import TIME_DENSITIES
from jvdm.model import objectives

LAMBDA = 0.1
GAMMA = np.array([-8.0, -3.0, 0.0, 2.0, 5.0])
GAUSSIAN = known.ORACLES["gaussian"]
D = known.NUM_DIMS


def relation(path, parameterization, gamma):
    """The relation of output and eps at gamma, and sigma."""
    path = PATHS.build(PATHS.spec(path))
    component = PARAMETERIZATIONS.build(PARAMETERIZATIONS.spec(parameterization), path=path)
    gamma = jnp.asarray(gamma)
    c = coefficients(path, gamma, jnp.ones_like(gamma))
    return component(c), c.sigma


def penalty(r, sigma, divergence, squared_error, weight=1.0, num_dims=D):
    return losses.second_order(
        LAMBDA,
        jnp.full_like(sigma, weight),
        jnp.asarray(divergence),
        jnp.asarray(squared_error),
        scale=r.scale,
        eps_coeff=r.eps_coeff,
        sigma=sigma,
        num_dims=num_dims,
    )


FORMULAS = {
    "variance_preserving": lambda a, s, div, e, d: s * div - a * (d - e),
    "straight": lambda a, s, div, e, d: s * div - d / np.sqrt(2) + np.sqrt(2) * a * e,
    # The general formula, with eps_coeff and scale of 2 alpha eps - x over its deviation.
    "sub_variance_preserving": lambda a, s, div, e, d: (
        s * div - 2 * a / np.sqrt(1 + 4 * a**2) * d + a * np.sqrt((1 + 4 * a**2) / (4 * a**2 + s**2)) * e
    ),
}
# n^2 of eps = n F + k z.
SCALE2 = {
    "variance_preserving": lambda a, s: a**2,
    "straight": lambda a, s: 2 * a**2,
    "sub_variance_preserving": lambda a, s: a**2 * (1 + 4 * a**2) / (4 * a**2 + s**2),
}


@pytest.mark.parametrize("path", FORMULAS)
def test_velocity_formulas(path, x64):
    """Of MATH.md section 2, and by the same rule for the other path."""
    rng = np.random.default_rng(0)
    divergence, error = rng.normal(size=5) * 20, rng.uniform(0, 30, 5)
    weight = 3.7
    value = penalty(*relation(path, "velocity", GAMMA), divergence, error, weight, num_dims=48)
    residual = FORMULAS[path](*oracles.ALPHA_SIGMA[path](GAMMA), divergence, error, 48)
    np.testing.assert_allclose(value, LAMBDA / 48 * weight * residual**2, rtol=1e-11)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS.names())
@pytest.mark.parametrize("path", PATHS.names())
def test_a_perfect_network_has_a_residual_of_mean_zero(path, parameterization, x64):
    """E[r | z] = 0, over data and noise given z, at every gamma."""
    r, sigma = relation(path, parameterization, GAMMA[:, None])
    alpha, sigma = oracles.ALPHA_SIGMA[path](GAMMA[:, None])
    rng, n = np.random.default_rng(0), 100_000
    z = alpha * GAUSSIAN.mean + np.sqrt(alpha**2 * GAUSSIAN.variance + sigma**2) * rng.normal(size=(5, D))

    def output(z):
        eps, x = GAUSSIAN.eps_hat(z, alpha, sigma, jnp), GAUSSIAN.x_hat(z, alpha, sigma, jnp)
        return r.target(x, eps)

    # Elementwise, so that any probe of -1 and 1 gives the trace.
    _, slopes = jax.jvp(output, (jnp.asarray(z),), (jnp.ones((5, D)),))
    divergence = np.sum(slopes, axis=-1)
    posterior = GAUSSIAN.variance * sigma**2 / (alpha**2 * GAUSSIAN.variance + sigma**2)
    x = GAUSSIAN.x_hat(z, alpha, sigma) + np.sqrt(posterior) * rng.normal(size=(n, 5, D))
    of_each = jax.tree.map(lambda a: a[None], r)
    target = of_each.target(jnp.asarray(x), jnp.asarray((z - alpha * x) / sigma))
    error = np.sum(np.asarray(target - output(jnp.asarray(z))[None]) ** 2, axis=-1)

    # The residual with its sign, from its square, a step h of the divergence to either side.
    h, r = 0.5, r._replace(scale=r.scale[:, 0], eps_coeff=r.eps_coeff[:, 0])
    up, down = (
        np.asarray(
            jax.vmap(lambda e, d: penalty(r, jnp.asarray(sigma[:, 0]), d, e), (0, None))(
                error, divergence + step
            )
        )
        for step in (h, -h)
    )
    residual = (up - down) / (4 * h * sigma[:, 0] * LAMBDA / D)
    standard_error = residual.std(axis=0) / np.sqrt(n)
    # 5 comparisons: 3.5 standard errors keep the level of 3 for one. And 1e-10 of rounding where 1/alpha or
    # 1/sigma makes terms large.
    assert np.all(np.abs(residual.mean(0)) < 3.5 * standard_error + 1e-10)
    # Without the divergence it would not be zero, by far.
    assert np.all(np.abs(sigma[:, 0] * divergence) > 9 * standard_error)


def test_the_squared_error_has_no_gradient():
    r, sigma = relation("straight", "velocity", GAMMA)
    divergence, error = jnp.linspace(-3.0, 5.0, 5), jnp.linspace(1.0, 9.0, 5)
    by_divergence, by_error = jax.grad(lambda a, b: penalty(r, sigma, a, b).sum(), argnums=(0, 1))(
        divergence, error
    )
    np.testing.assert_array_equal(by_error, 0.0)
    residual = FORMULAS["straight"](*oracles.straight(GAMMA), np.asarray(divergence), np.asarray(error), D)
    # Float32, of a square.
    np.testing.assert_allclose(by_divergence, 2 * LAMBDA / D * residual * sigma, rtol=1e-4)


@pytest.mark.parametrize(
    ("density", "path"),
    [
        (density, path)
        for density, path in itertools.product(TIME_DENSITIES.names(), PATHS.names())
        if density != "importance" or PATHS.component(path).alpha2_cumulative is not None
    ],
)
def test_penalty_of_the_model(path, density, key):
    """By the formulas, from the model's draws, in float64; and the bound does not see it."""
    b = 6
    model = known.build("gaussian", path, "velocity", time_density=density, offset=0.3)
    levels = GAUSSIAN.sample(np.random.default_rng(0), b)
    batch = Batch(jnp.asarray(levels, jnp.uint8).reshape(b, *known.SHAPE))

    @jax.jit
    def terms(keys, u):
        draws = model.draw(keys, u)
        return (
            draws,
            model.times(u),
            objectives.bound(model, known.EMPTY, draws, batch, second_order=LAMBDA),
            objectives.bound(model, known.EMPTY, draws, batch),
        )

    draws, times, value, without = terms(jax.random.split(key, b), jnp.linspace(0.05, 0.95, b))
    gamma_0, gamma_1 = known.WIDE
    t, density_weight = (np.asarray(a, np.float64) for a in times)
    gamma = (gamma_0 + (gamma_1 - gamma_0) * t)[:, None]
    alpha, sigma = oracles.ALPHA_SIGMA[path](gamma)
    x, eps = oracles.encode(levels, 256), np.asarray(draws.eps, np.float64).reshape(b, D)
    z = alpha * x + sigma * eps
    eps_hat, x_hat = GAUSSIAN.eps_hat(z, alpha, sigma), GAUSSIAN.x_hat(z, alpha, sigma)
    eps_coeff, on_x = (oracles.velocity(path, a, 1.0 - a, alpha, sigma) for a in (0.0, 1.0))
    error = np.sum((eps_coeff * (eps - eps_hat) + on_x * (x - x_hat) - 0.3) ** 2, axis=-1)
    spread = alpha**2 * GAUSSIAN.variance + sigma**2
    divergence = np.sum((eps_coeff * sigma + on_x * alpha * GAUSSIAN.variance) / spread, axis=-1)
    a, s = alpha[:, 0], sigma[:, 0]
    weight = 0.5 * (gamma_1 - gamma_0) * SCALE2[path](a, s) * density_weight
    residual = FORMULAS[path](a, s, divergence, error, D)
    # eps_hat is made from z in float32: an ulp of 1 over sigma, 1e-3 of an error of 0.3 at sigma = 3e-3.
    np.testing.assert_allclose(value.second_order, LAMBDA / D * weight * residual**2, rtol=5e-3)
    np.testing.assert_allclose(value.diffusion, weight * error, rtol=5e-3)
    for name, term in without.parts().items():
        # With the tangent, sums may be fused in another way.
        np.testing.assert_allclose(value.parts()[name], term, rtol=1e-5, atol=1e-6)
    assert without.second_order is None
    np.testing.assert_allclose(value.objective, value.total + value.second_order, rtol=1e-6)
    np.testing.assert_array_equal(without.objective, without.total)


@pytest.mark.long
def test_gradient_through_the_network():
    """Backwards through the forward derivative, as in training, against finite differences by every leaf."""
    c = tiny.config()
    c.unlock()
    c.schedule = SCHEDULES.spec("fixed_linear", gamma_min=-7.0, gamma_max=5.0)
    c.path = PATHS.spec("straight")
    c.parameterization = PARAMETERIZATIONS.spec("velocity")
    model = tiny.model(c)
    params = tiny.perturbed(jax.jit(model.init)(jax.random.key(0)), scale=0.05)["network"]
    b = 3
    batch = Batch(jnp.asarray(tiny.images(b)))
    draws = jax.jit(model.draw)(jax.random.split(jax.random.key(1), b), jnp.array([0.2, 0.5, 0.8]))

    @jax.jit
    @jax.value_and_grad
    def penalty_of_training(network):
        params = {"network": network, "schedule": {}}
        return objectives.bound(model, params, draws, batch, second_order=LAMBDA).second_order.sum()

    at = model.at({"network": params, "schedule": {}}, draws.u)
    f = losses.encode(batch.x, model.num_levels)
    z = at.alpha * f + at.sigma * draws.eps

    @jax.jit
    def evaluate(network):
        """F_hat, and the estimate [b] of its divergence."""
        params = {"network": network, "schedule": {}}
        out, tangent = jax.jvp(lambda z: model.output(params, z, at.gamma, Context()), (z,), (draws.probe,))
        return out, losses.sum_example(draws.probe * tangent)

    out, _ = evaluate(params)
    error = losses.sum_example((model.parameterization(at).target(f, draws.eps) - out) ** 2)

    def value(network):
        """The formula, with the error of the network at `params` whatever `network` is."""
        _, divergence = (np.asarray(a, np.float64) for a in evaluate(network))
        alpha, sigma = (np.asarray(a, np.float64).ravel() for a in (at.alpha, at.sigma))
        d = model.num_dims
        residual = FORMULAS["straight"](alpha, sigma, divergence, np.asarray(error, np.float64), d)
        return np.sum(LAMBDA / d * 12.0 * alpha**2 * residual**2)

    total, gradient = penalty_of_training(params)
    np.testing.assert_allclose(total, value(params), rtol=1e-5)
    leaves, treedef = jax.tree.flatten(params)
    gradients = jax.tree.leaves(gradient)
    norms = np.array([np.sqrt(np.sum(np.square(g, dtype=np.float64))) for g in gradients])
    assert np.mean(norms > 1e-3 * norms.max()) > 0.8, "almost every parameter has a say"
    for i, (leaf, g, norm) in enumerate(zip(leaves, gradients, norms, strict=True)):
        if norm <= 1e-3 * norms.max():
            continue
        # Along the leaf's own gradient, so far that the value changes by a hundredth, at most 0.03.
        step = min(0.01 * float(total) / norm, 0.03)
        up, down = (
            value(jax.tree.unflatten(treedef, [*leaves[:i], leaf + s * step * g / norm, *leaves[i + 1 :]]))
            for s in (1.0, -1.0)
        )
        # Rounding, 1e-6 of the value, over the change; and the curvature's share of the third order.
        np.testing.assert_allclose((up - down) / (2 * step), norm, rtol=0.02)
