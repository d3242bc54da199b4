"""Every latent: its samples have the distribution that its charge is of, and the bound with it holds.

Statistical tests compare frequencies by chi-square, or means by standard errors, at fixed seeds.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.known_latents import (
    Enumerated,
    TableModel,
    enumerate_subsets,
    linear_table,
    log_sum_exp,
    random_table,
    telling_table,
)

from jvdm.core.errors import UserError
from jvdm.diffusion import latents, subsets
from jvdm.diffusion.k_hot_surrogate import PERTURBATIONS, KHotSurrogate, direction
from jvdm.diffusion.latents import LATENTS, Gaussian, Gumbel, KSubset

EPS32 = np.finfo(np.float32).eps
M, K = 6, 3
NAMES = [name for name in LATENTS.names() if name != "none"]
DISCRETE = [name for name in NAMES if name != "gaussian"]
SUBSETS = ["k_hot_surrogate", "k_subset"]
# The critical value of chi-square at level 1e-5, by degrees of freedom: Wilson and Hilferty's approximation.
NORMAL_1E5 = 4.265


def build(name, m=M, k=K, **options):
    if name in SUBSETS:
        options["k"] = k
    return LATENTS.build(LATENTS.spec(name, size=m, **options))


def ones(name, k=K):
    """How many ones a value has."""
    return 1 if name == "gumbel" else k


@functools.partial(jax.jit, static_argnums=(0, 1))
def draw(latent, n, seed=0):
    """[n, ...] noise of independent keys."""
    return jax.vmap(latent.draw)(jax.random.split(jax.random.key(seed, impl="threefry2x32"), n))


@functools.partial(jax.jit, static_argnums=0)
def sample(latent, logits, noise):
    return latent.sample(logits, noise)


@functools.partial(jax.jit, static_argnums=0)
def mode(latent, logits):
    return latent.mode(logits)


def random_logits(latent, n=1, spread=1.0, seed=0):
    """[n, num_logits]"""
    return np.float32(spread * np.random.default_rng(seed).normal(size=(n, latent.num_logits)))


def chi_square_excess(counts, probability):
    """How many times its critical value chi-square is."""
    expected = counts.sum() * probability
    assert expected.min() > 5.0
    statistic, freedom = np.sum((counts - expected) ** 2 / expected), len(counts) - 1
    w = 2.0 / (9.0 * freedom)
    return statistic / (freedom * (1.0 - w + NORMAL_1E5 * math.sqrt(w)) ** 3)


def counts_of(values, support):
    """How often each row of the support is a value."""
    index = np.argmax(np.asarray(values, np.float64) @ support.T, axis=1)
    np.testing.assert_array_equal(support[index], values)
    return np.bincount(index, minlength=len(support))


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_shapes_and_what_depends_on_what(name):
    """The charge is a function of the logits alone; examples of a batch are apart."""
    latent = build(name)
    theta, noise = random_logits(latent, 8), np.asarray(draw(latent, 8))
    value, charge, log_ratio = sample(latent, theta[:4], noise[:4])
    assert value.shape == (4, M) and charge.shape == (4,)
    assert value.dtype == charge.dtype == jnp.float32
    assert log_ratio is None or log_ratio.shape == (4,)
    assert np.all(charge > 0)
    other = sample(latent, theta[:4], noise[4:])
    np.testing.assert_array_equal(other.charge, charge)
    assert np.any(other.value != value)
    order = np.array([7, 0, 5, 6])
    mixed = sample(latent, theta[order], noise[order])
    np.testing.assert_array_equal(mixed.value[1], value[0])
    np.testing.assert_array_equal(mixed.charge[1], charge[0])
    assert mode(latent, theta).shape == (8, M)
    assert jax.eval_shape(latent.prior, jax.random.key(0)).shape == (M,)


@pytest.mark.parametrize("name", [*NAMES, "reinforce"])
def test_gradients(name):
    """The value and the charge move every logit, but for the value of REINFORCE, where log_ratio does."""
    latent = build("k_subset", gradient="reinforce") if name == "reinforce" else build(name)
    theta, noise = random_logits(latent, 4), draw(latent, 4)

    def parts(theta):
        value, charge, log_ratio = latent.sample(theta, noise, jnp.asarray(1000))
        weighted = value @ jnp.arange(1.0, M + 1.0)
        return jnp.stack([weighted, charge, jnp.zeros(4) if log_ratio is None else log_ratio]).sum(axis=1)

    value, charge, log_ratio = jax.jit(jax.jacrev(parts))(theta)
    assert np.all(np.isfinite(charge)) and np.all(charge != 0.0)
    if latent.score_function:
        np.testing.assert_array_equal(value, 0.0)
        assert np.all(log_ratio != 0.0)
    else:
        assert np.all(np.isfinite(value)) and np.all(value != 0.0)


@pytest.mark.parametrize("name", DISCRETE)
def test_values_are_of_zeros_and_ones(name):
    """To the last bit, also where a gradient passes; logits of deviation 20."""
    latent = build(name, 50, 15)
    theta = random_logits(latent, 64, spread=20.0)
    value = sample(latent, theta, draw(latent, 64)).value
    for c in (value, mode(latent, theta)):
        assert set(np.unique(c)) == {0.0, 1.0}
        np.testing.assert_array_equal(c.sum(axis=1), ones(name, 15))


@pytest.mark.parametrize("name", ["gumbel", "k_subset"])
def test_samples_have_the_distribution_whose_charge_is_exact(name):
    """By enumeration: frequencies of 20,000 samples, KL, log q and the mode."""
    latent, n = build(name), 20_000
    theta = random_logits(latent, seed=4)[0]
    exact = Enumerated(np.float64(theta), ones(name))
    value, charge, log_ratio = sample(latent, np.tile(theta, (n, 1)), draw(latent, n))
    np.testing.assert_allclose(charge, exact.kl, rtol=2e-5)
    counts = counts_of(value, exact.subsets)
    excess = chi_square_excess(counts, exact.q)
    print(f"{name}: chi-square over its critical value {excess:.2f}")
    assert excess < 1.0
    # It has power: it sees logits that are off by a tenth of what they are.
    assert chi_square_excess(counts, Enumerated(0.9 * exact.theta, exact.k).q) > 1.0
    index = np.argmax(np.asarray(value) @ exact.subsets.T, axis=1)
    np.testing.assert_allclose(log_ratio, exact.log_q[index] + math.log(len(exact.subsets)), atol=1e-5)
    np.testing.assert_array_equal(mode(latent, theta[None])[0], exact.subsets[np.argmax(exact.q)])


@pytest.mark.parametrize("name", DISCRETE)
def test_priors_are_uniform(name):
    latent, n = build(name), 20_000
    support = enumerate_subsets(M, ones(name))
    keys = jax.random.split(jax.random.key(1, impl="threefry2x32"), n)
    counts = counts_of(jax.jit(jax.vmap(latent.prior))(keys), support)
    assert chi_square_excess(counts, np.full(len(support), 1.0 / len(support))) < 1.0
    np.testing.assert_allclose(latent.mode_charge, math.log(len(support)), rtol=1e-12)


def test_gaussian(x64):
    """Its charge is the integral of q ln(q / p), and its samples have the moments of q."""
    latent = build("gaussian", 1)
    mean, raw = 0.7, np.array([-3.0, 0.0, 2.0])
    variance = np.logaddexp(raw, 0.0)
    c = np.linspace(-30.0, 30.0, 20_001)
    log_q = -0.5 * (c - mean) ** 2 / variance[:, None] - 0.5 * np.log(2.0 * np.pi * variance[:, None])
    log_p = -0.5 * c**2 - 0.5 * np.log(2.0 * np.pi)
    kl = np.trapezoid(np.exp(log_q) * (log_q - log_p), c)
    logits = jnp.asarray(np.stack([np.full(3, mean), raw], axis=1))
    value, charge, log_ratio = latent.sample(logits, jnp.ones((3, 1)))
    here = [np.interp(v, c, d) for v, d in zip(value[:, 0], log_q - log_p, strict=True)]
    np.testing.assert_allclose(log_ratio, here, atol=1e-4)  # of the grid
    np.testing.assert_allclose(charge, kl, rtol=1e-9)
    np.testing.assert_allclose(value[:, 0], mean + np.sqrt(variance), rtol=1e-12)
    np.testing.assert_allclose(mode(latent, logits), mean)
    assert latent.mode_charge == math.inf
    noise = np.asarray(draw(build("gaussian", 50), 1000))
    # 50,000 numbers: 5 standard errors.
    assert abs(noise.mean()) < 5 / math.sqrt(noise.size)
    assert abs(noise.std() - 1.0) < 5 / math.sqrt(2 * noise.size)


def test_gaussian_of_almost_no_variance():
    latent = build("gaussian", 2)
    logits = jnp.array([[1.0, -1.0, -200.0, -30.5], [0.0, 0.0, -29.5, 100.0]])

    def total(logits):
        value, charge, _ = latent.sample(logits, jnp.ones((2, 2)))
        return jnp.sum(value) + jnp.sum(charge), charge

    slope, charge = jax.jit(jax.grad(total, has_aux=True))(logits)
    assert np.all(np.isfinite(slope))
    np.testing.assert_allclose(
        charge, [0.5 * (2.0 + 230.5 - 2.0), 0.5 * (29.5 + 100.0 - math.log(100.0) - 2.0)], rtol=1e-5
    )


def test_gumbel_temperature():
    """max(1/2, exp(-step / 10^5)), and the gradient is of softmax at it."""
    latent = Gumbel(size=4)
    np.testing.assert_allclose(latent.temperature(jnp.asarray(0)), 1.0)
    np.testing.assert_allclose(latent.temperature(jnp.asarray(30_000)), math.exp(-0.3), rtol=1e-6)
    for step in (jnp.asarray(100_000), None):
        np.testing.assert_allclose(latent.temperature(step), 0.5)
    theta, noise = jnp.array([[0.3, -1.0, 0.1, 0.7]]), jnp.array([[0.1, 0.4, -0.5, 0.0]])
    jacobian = jax.jit(jax.jacrev(lambda theta, step: latent.sample(theta, noise, step).value[0]))
    for step in (jnp.asarray(30_000), jnp.asarray(100_000)):
        ours = jacobian(theta, step)
        tau = float(latent.temperature(step))
        soft = np.exp(np.asarray((theta + noise)[0]) / tau)
        soft /= soft.sum()
        np.testing.assert_allclose(ours[:, 0], (np.diag(soft) - np.outer(soft, soft)) / tau, atol=1e-6)


def test_a_class_is_a_subset_of_one(x64):
    """Gumbel's KL and log q are those of k = 1."""

    def both(theta):
        value, charge, log_ratio = Gumbel(size=M).sample(theta, jnp.zeros((3, M)))
        return (charge, log_ratio - math.log(M)), (
            subsets.kl_to_uniform(theta, 1),
            subsets.log_prob(value, theta, 1),
        )

    ours, subset = jax.jit(both)(np.random.default_rng(0).normal(size=(3, M)))
    np.testing.assert_allclose(ours, subset, atol=1e-10)


def weights_of(noise, k):
    """g is an affine function of what is random: its constant, and the weight of each number."""
    total = functools.partial(PERTURBATIONS[noise].total, k=k)
    constant = total(jnp.zeros((1, 10, 1)))
    return float(constant[0, 0]), np.asarray(total(jnp.eye(10)[:, :, None]) - constant)[:, 0]


@pytest.mark.parametrize("k", [1, 4, 15])
def test_sum_of_gamma_noise(k, x64):
    """Its moments from those of the gamma distribution, mean and variance 1/k each."""
    harmonic, squares = sum(1 / i for i in range(1, 11)), sum(1 / i**2 for i in range(1, 11))
    constant, weights = weights_of("sum_of_gamma", k)
    # The largest of ten exponentials, less ln 10, is all but Gumbel(0): mean 0.577, deviation 1.283.
    np.testing.assert_allclose(k * constant + weights.sum(), 10.0 * (harmonic - math.log(10.0)), rtol=1e-12)
    np.testing.assert_allclose(np.sum(weights**2) / k, 100.0 * squares / k, rtol=1e-12)
    assert abs(harmonic - math.log(10.0) - np.euler_gamma) < 0.05
    assert abs(math.sqrt(squares) - math.pi / math.sqrt(6.0)) < 0.04
    if k == 15:  # of MATH.md section 9
        np.testing.assert_allclose(math.sqrt(np.sum(weights**2) / k), 3.22, atol=0.01)
        _, released = weights_of("sum_of_gamma_released", k)
        np.testing.assert_allclose(math.sqrt(np.sum(released**2) / k), 0.226, atol=0.001)


def kolmogorov_distance(values, cumulative):
    n, at = len(values), cumulative(np.sort(values))
    return max(np.max(np.arange(1, n + 1) / n - at), np.max(at - np.arange(n) / n))


def test_k_sums_of_gamma_are_gumbel():
    """Of 1500 sums of k = 15: Kolmogorov's statistic at level 1e-4 is 2.23 / sqrt(1500) = 0.06."""
    n, k = 1500, 15
    w = draw(KHotSurrogate(size=k + 1, k=k), n)
    sums = {
        noise: np.asarray(PERTURBATIONS[noise].total(w, k), np.float64)[:, :k].sum(axis=1) / 10.0
        for noise in ("sum_of_gamma", "sum_of_gamma_released")
    }
    limit = 2.23 / math.sqrt(n)
    distance = kolmogorov_distance(sums["sum_of_gamma"], lambda y: (1.0 - np.exp(-y) / 10.0) ** 10)
    to_gumbel = {noise: kolmogorov_distance(y, lambda y: np.exp(-np.exp(-y))) for noise, y in sums.items()}
    print(f"distance to ten exponentials {distance:.4f}, to Gumbel {to_gumbel}")
    assert distance < limit
    # The limit of ever more terms is at most 0.03 away; and the test has power: the released noise is not.
    assert to_gumbel["sum_of_gamma"] < limit + 0.03
    assert to_gumbel["sum_of_gamma_released"] > 5 * limit


def test_the_surrogate_is_charged_as_a_class():
    """At most ln m, whatever its k-subsets may cost."""
    latent = KHotSurrogate(noise="gumbel")
    theta = jnp.asarray(random_logits(latent, 64, spread=20.0))
    charge = latents.categorical_kl(theta)
    np.testing.assert_array_equal(latent.sample(theta, jnp.zeros((64, 50))).charge, charge)
    assert not latent.is_bound
    assert np.all(charge < math.log(50) + 1e-5) and latent.mode_charge > 7 * math.log(50)
    np.testing.assert_allclose(charge, Enumerated(np.float64(theta), 1).kl, rtol=1e-5)


def test_the_surrogate_has_the_gradient_of_a_direction():
    latent = KHotSurrogate(size=M, k=K, noise="gumbel")
    theta, noise = random_logits(latent), draw(latent, 1)
    jacobian = jax.jacrev(lambda theta: latent.sample(theta, noise).value[0])
    value, ours = jax.jit(lambda theta: (latent.sample(theta, noise).value[0], jacobian(theta)[:, 0]))(theta)
    noisy = np.float64(theta + noise)[0]
    centred = noisy - noisy.mean()
    size = np.linalg.norm(centred)
    unit = centred / size
    np.testing.assert_allclose(unit, direction(jnp.asarray(noisy)[None])[0], atol=1e-6)
    projection = np.eye(M) - 1.0 / M - np.outer(unit, unit)
    np.testing.assert_allclose(ours, projection / size, atol=1e-6)
    np.testing.assert_array_equal(np.flatnonzero(value), np.sort(np.argsort(noisy)[-K:]))


# The bound, on models whose P(x) is known.


def table_model(which, name):
    m, k = M, ones(name)
    return {"random": random_table(m, k, 12, 1.5), "telling": telling_table(m, k)}[which]


def encoder(model, kind):
    """[x, m] logits of q(c | x): arbitrary, or as the posterior's marginals have it."""
    if kind == "arbitrary":
        return np.random.default_rng(2).normal(size=(len(model.log_table), model.m))
    mu = np.exp(model.log_posterior) @ enumerate_subsets(model.m, model.k)
    return np.log(mu) - np.log1p(-mu)


MODELS = [
    ("random", "arbitrary"),
    ("random", "marginals"),
    ("telling", "arbitrary"),
    ("telling", "marginals"),
]


@pytest.mark.parametrize("name", ["gumbel", "k_subset"])
@pytest.mark.parametrize(("table", "kind"), MODELS)
def test_the_bound_by_enumeration(name, table, kind, x64):
    """It is above -log P(x) by the divergence of q from the posterior."""
    model = table_model(table, name)
    theta, latent = encoder(model, kind), build(name)
    exact = Enumerated(theta, model.k)
    charge = sample(latent, theta, np.full(theta.shape, 0.5)).charge
    excess = model.bound(exact.log_q, np.asarray(charge)) + model.log_likelihood
    np.testing.assert_allclose(excess, model.gap(exact.log_q), atol=1e-10)
    assert np.all(excess > 0.0)


@pytest.mark.parametrize("k", [1, K])
def test_the_bound_is_tight_where_the_posterior_is_of_the_family(k, x64):
    """For x = 0, whose logits are those of the posterior; for x = 1 they are not."""
    w = np.random.default_rng(0).normal(size=M)
    model, latent = linear_table(w, k), KSubset(size=M, k=k)
    charge = sample(latent, w[None], np.zeros((1, M))).charge
    excess = model.bound(Enumerated(np.stack([w, w]), k).log_q, np.asarray(charge)) + model.log_likelihood
    np.testing.assert_allclose(excess[0], 0.0, atol=1e-10)
    assert excess[1] > 0.1


def estimates(latent, model, theta, n, seed=0):
    """Mean and standard error of the bound of every x, [x] each, nats, from n samples."""
    num_x = len(theta)
    logits = np.repeat(np.float32(theta), n, axis=0)
    value, charge, _ = sample(latent, logits, draw(latent, num_x * n, seed))
    losses = model.losses(np.arange(num_x), np.asarray(value, np.float64).reshape(num_x, n, -1))
    terms = losses + np.asarray(charge, np.float64).reshape(num_x, n)
    return terms.mean(axis=1), terms.std(axis=1, ddof=1) / math.sqrt(n)


@pytest.mark.parametrize("name", ["gumbel", "k_subset"])
@pytest.mark.parametrize(("table", "kind"), MODELS[:3])
def test_the_bound_by_sampling(name, table, kind):
    """2000 samples for each x: within 3 standard errors of what it is, and so not below -log P(x).

    A bound that is off by 6 standard errors is seen with a probability of 0.9987 for each x.
    """
    model, latent = table_model(table, name), build(name)
    theta = encoder(model, kind)
    exact = Enumerated(np.float64(np.float32(theta)), model.k)
    mean, error = estimates(latent, model, theta, 2000)
    deviation = (mean - model.bound(exact.log_q, exact.kl)) / error
    print(
        f"{name}, {table}, {kind}: largest standard error {error.max():.3f} nats, "
        f"largest deviation {np.abs(deviation).max():.1f} of them"
    )
    assert np.all(np.abs(deviation) < 3.0)
    assert np.all(mean + model.log_likelihood > -3.0 * error)


@pytest.mark.parametrize("noise", sorted(PERTURBATIONS))
def test_the_surrogate_undercuts_the_truth(noise):
    """Where x tells c, its "bound" is below -log P(x), while the exact one with the same logits is not."""
    model = telling_table(M, K)
    theta, n = encoder(model, "marginals"), 50
    theta = 10.0 * theta  # so that the noise, whatever it is, changes next to no top k
    surrogate = build("k_hot_surrogate", noise=noise)
    mean, error = estimates(surrogate, model, theta, n)
    excess = mean + model.log_likelihood
    print(f"{noise}: {excess.mean():.2f} nats from the truth, {model.log_likelihood.mean():.2f}")
    assert np.all(excess < -1.0 - 3.0 * error)
    mean, error = estimates(build("k_subset"), model, theta, n)
    assert np.all(mean + model.log_likelihood > -3.0 * error - 1e-4)


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize(("table", "kind"), MODELS)
def test_modes_with_their_charge_are_a_bound(name, table, kind):
    model, latent = table_model(table, name), build(name)
    theta = encoder(model, kind)
    modes = np.asarray(mode(latent, np.float32(theta)), np.float64)
    losses = model.losses(np.arange(len(theta)), modes[:, None])[:, 0]
    assert np.all(losses + latent.mode_charge + model.log_likelihood > 0.0)
    if (table, kind) == ("telling", "marginals"):  # and as good as can be: c is all of x
        np.testing.assert_allclose(losses + latent.mode_charge, -model.log_likelihood, atol=0.011)


def test_the_table_model_is_normalised():
    for model in (random_table(M, K, 12, 1.5), telling_table(M, K), linear_table(np.arange(5.0), 2)):
        assert isinstance(model, TableModel)
        np.testing.assert_allclose(log_sum_exp(model.log_table, axis=0), 0.0, atol=1e-12)
        np.testing.assert_allclose(np.exp(model.log_likelihood).sum(), 1.0, rtol=1e-12)


def test_bounds_and_gradients_by_name():
    assert [name for name in NAMES if LATENTS.component(name).is_bound] == [
        "gaussian",
        "gumbel",
        "k_subset",
    ]
    assert KSubset(gradient="reinforce").score_function and not KSubset().score_function
    assert Gaussian().num_logits == 100
    assert all(build(name).num_logits == M for name in DISCRETE)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("k_subset", {"k": 50}, "k is 50: give a number from 1 to 49, less than size=50"),
        ("k_subset", {"k": 0}, "k is 0"),
        ("k_hot_surrogate", {"k": 7, "size": 7}, "k is 7: give a number from 1 to 6"),
        ("k_subset", {"gradient": "reinforced"}, "did you mean 'reinforce'"),
        ("k_hot_surrogate", {"noise": "gamma"}, "unknown noise 'gamma'"),
        ("gumbel", {"size": 1}, "size is 1: give 2 or more"),
        ("gumbel", {"min_temperature": 0.0}, "min_temperature is 0.0: give a positive number"),
        ("gumbel", {"decay": -1.0}, "decay is -1.0: give 0 or more"),
        ("gaussian", {"size": 0}, "size is 0: give 1 or more"),
    ],
)
def test_refused_options(name, options, message):
    with pytest.raises(UserError, match=message) as error:
        LATENTS.build(LATENTS.spec(name, **options))
    assert "\n" not in str(error.value)
