"""The trace of a Jacobian: exact, and estimated without bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.core.errors import UserError
from jvdm.diffusion.divergence import PROBES, TRACES, ExactTrace, Hutchinson

SHAPE = (2, 3, 1)
D = 6
EPS32 = np.finfo(np.float32).eps
NUM_PROBES = 16384


@pytest.fixture(scope="module")
def matrix():
    return jnp.asarray(np.random.default_rng(0).normal(size=(D, D)), jnp.float32)


@pytest.fixture(scope="module")
def z():
    return jnp.asarray(np.random.default_rng(1).normal(size=SHAPE), jnp.float32)


def linear(matrix):
    return lambda z: (matrix @ z.ravel()).reshape(z.shape)


def curved(z):
    """Nonlinear, mixes all dimensions, and its Jacobian is not symmetric."""
    flat = z.ravel()
    return (
        jnp.sin(jnp.arange(1.0, 1.0 + flat.size) * jnp.roll(flat, 1)) * jnp.sum(flat**2) + flat**3
    ).reshape(z.shape)


def trace_of_jacobian(fn, z):
    return np.trace(np.asarray(jax.jacfwd(fn)(z), np.float64).reshape(D, D))


@pytest.mark.parametrize("probes", [1, 3])
def test_rademacher_is_exact_on_diagonal_jacobians(z, probes, key):
    """v_i^2 = 1, so that v^T J v is the trace whatever v is."""
    diagonal = jnp.arange(1.0, 1.0 + D).reshape(SHAPE)
    trace = Hutchinson(probes=probes)
    for i in range(4):
        value, estimates = trace(lambda z: diagonal * z, z, trace.draw(jax.random.fold_in(key, i), SHAPE))
        np.testing.assert_array_equal(value, diagonal * z)
        # Small integers: no rounding.
        np.testing.assert_array_equal(estimates, np.full(probes, D * (D + 1) / 2))


@pytest.fixture(scope="module")
def estimates(matrix, z):
    """distribution -> [NUM_PROBES] estimates of the trace of a full matrix."""

    def draw(distribution):
        trace = Hutchinson(probes=NUM_PROBES, distribution=distribution)
        probes = trace.draw(jax.random.key(3), SHAPE)
        return probes, trace(linear(matrix), z, probes)[1]

    return {name: tuple(np.asarray(a, np.float64) for a in draw(name)) for name in PROBES}


@pytest.mark.parametrize("distribution", PROBES)
def test_hutchinson_is_unbiased(estimates, matrix, distribution):
    _, values = estimates[distribution]
    standard_error = values.std() / np.sqrt(NUM_PROBES)
    exact = np.trace(np.asarray(matrix, np.float64))
    assert abs(values.mean() - exact) < 3 * standard_error
    # The variance is known: with S the symmetric part, 2 |S|^2, less the diagonal's for Rademacher.
    symmetric = 0.5 * np.asarray(matrix + matrix.T, np.float64)
    if distribution == "rademacher":
        symmetric -= np.diag(np.diag(symmetric))
    # The variance of a sample variance of n, with kurtosis below 15: sqrt(14 / n) = 0.03.
    np.testing.assert_allclose(values.var(), 2 * np.sum(symmetric**2), rtol=0.1)


@pytest.mark.parametrize("distribution", PROBES)
def test_probes_have_covariance_one(estimates, distribution):
    probes, _ = estimates[distribution]
    assert probes.shape == (NUM_PROBES, *SHAPE)
    flat = probes.reshape(NUM_PROBES, D)
    # 36 entries of standard error at most sqrt(2 / n) = 0.011; and 6 means of 1 / sqrt(n) = 0.008.
    np.testing.assert_allclose(flat.T @ flat / NUM_PROBES, np.eye(D), atol=0.045)
    np.testing.assert_allclose(flat.mean(0), 0.0, atol=0.031)
    assert (set(np.unique(probes)) == {-1.0, 1.0}) == (distribution == "rademacher")


@pytest.mark.parametrize("distribution", PROBES)
def test_several_probes_are_single_ones_together(z, distribution, key):
    probes = Hutchinson(probes=3, distribution=distribution).draw(key, SHAPE)
    value, together = Hutchinson(probes=3, distribution=distribution)(curved, z, probes)
    single = [Hutchinson(distribution=distribution)(curved, z, probes[i : i + 1]) for i in range(3)]
    for i, (one_value, one) in enumerate(single):
        np.testing.assert_allclose(one_value, value, rtol=4 * EPS32)
        # Sums of six terms below 50 in another order.
        np.testing.assert_allclose(one[0], together[i], rtol=1e-5, atol=50 * 6 * EPS32)
    assert np.ptp(together) > 1.0, "probes must differ for this to say something"


@pytest.mark.parametrize("name", TRACES.names())
def test_value_is_that_of_the_field(name, z, key):
    trace = TRACES.build(TRACES.spec(name))
    value, estimates = trace(curved, z, trace.draw(jax.random.key(0), SHAPE))
    assert estimates.shape == (1,)
    np.testing.assert_allclose(value, curved(z), rtol=4 * EPS32)


# One at a time, not a divisor of six, all, and more than there are.
@pytest.mark.parametrize("at_a_time", [1, 4, 6, 64])
def test_exact_trace_is_the_trace_of_the_jacobian(z, at_a_time, x64):
    z = z.astype(jnp.float64)
    trace = ExactTrace(at_a_time=at_a_time)
    _, value = jax.jit(lambda z: trace(curved, z, trace.draw(jax.random.key(0), SHAPE)))(z)
    # Sums of six numbers below 50.
    np.testing.assert_allclose(value[0], trace_of_jacobian(curved, z), rtol=1e-13)
    assert abs(value[0]) > 0.1


def test_hutchinson_averages_to_the_exact_trace_of_a_nonlinear_field(z, key):
    trace = Hutchinson(probes=NUM_PROBES)
    values = np.asarray(trace(curved, z, trace.draw(jax.random.key(0), SHAPE))[1], np.float64)
    assert abs(values.mean() - trace_of_jacobian(curved, z)) < 3 * values.std() / np.sqrt(NUM_PROBES)


@pytest.mark.parametrize("name", TRACES.names())
def test_a_batch_is_its_examples(name, key):
    """A field of a batch whose examples do not mix, after one and after two axes of batch."""
    trace = TRACES.build(TRACES.spec(name, **({"probes": 2} if name == "hutchinson" else {"at_a_time": 4})))
    z = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3, *SHAPE)), jnp.float32)
    probes = trace.draw(key, z.shape)
    single = [
        trace(curved, z[i, j], probes[:, i, j] if name == "hutchinson" else probes)
        for i, j in np.ndindex(2, 3)
    ]
    value, traces = trace(jax.vmap(jax.vmap(curved)), z, probes, batch_axes=2)
    flat, flat_traces = trace(
        jax.vmap(curved),
        z.reshape(6, *SHAPE),
        probes.reshape(-1, 6, *SHAPE) if name == "hutchinson" else probes,
        batch_axes=1,
    )
    for k, (one, estimates) in enumerate(single):
        np.testing.assert_allclose(value.reshape(6, *SHAPE)[k], one, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(flat[k], one, rtol=1e-5, atol=1e-5)
        # Sums of six terms below 100 in another order.
        for several in (traces.reshape(-1, 6), flat_traces):
            np.testing.assert_allclose(several[:, k], estimates, rtol=1e-5, atol=100 * 6 * EPS32)
    assert np.ptp(flat_traces, axis=-1).min() > 1.0, "examples must differ"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hutchinson", {"probes": 0}, "probes is 0: give 1 or more"),
        ("hutchinson", {"distribution": "gauss"}, "did you mean 'gaussian'.*choices: gaussian, rademacher"),
        ("exact", {"at_a_time": 0}, "at_a_time is 0: give 1 or more"),
        ("hutchinson", {"probes": 1.5}, "probes is 1.5, not an int"),
        ("skilling", {}, "choices: exact, hutchinson"),
    ],
)
def test_errors_are_one_line_with_the_choices(name, options, message):
    with pytest.raises(UserError, match=message) as error:
        TRACES.build({"name": name, **options})
    assert "\n" not in str(error.value)
