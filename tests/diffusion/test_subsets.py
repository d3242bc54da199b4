"""The distribution of k-subsets against enumeration, in float64; and in float32 with large logits."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.known_latents import Enumerated

from jvdm.core.shapes import lead
from jvdm.diffusion import subsets

EPS32 = np.finfo(np.float32).eps
SIZES = [(1, 1), (4, 0), (3, 3), (7, 4), (10, 5)]
SPREADS = (0.0, 1.0, 5.0, 20.0)  # standard deviations of logits
M, K = 50, 15  # of the published model
EXACT = 1e-10


def logits(m, spreads=SPREADS, seed=0):
    """[spread, m]"""
    return np.array(spreads)[:, None] * np.random.default_rng(seed).normal(size=(len(spreads), m))


def evaluate(function, *args):
    """Compiled once, [b, m] arguments; numpy."""
    return jax.tree.map(np.asarray, jax.jit(function)(*args))


@pytest.mark.parametrize(("m", "k"), SIZES)
def test_equals_enumeration(m, k, x64):
    exact = Enumerated(logits(m), k)

    def ours(theta):
        return {
            "log_normalizer": subsets.log_normalizer(theta, k),
            "marginals": subsets.marginals(theta, k),
            "kl": subsets.kl_to_uniform(theta, k),
            "log_q": subsets.log_prob(jnp.asarray(exact.subsets)[None], theta[:, None], k),
        }

    for name, value in evaluate(ours, exact.theta).items():
        np.testing.assert_allclose(value, getattr(exact, name), atol=EXACT, err_msg=name)
    np.testing.assert_allclose(subsets.log_count(m, k), np.log(len(exact.subsets)), atol=EXACT)


@pytest.mark.parametrize(("m", "k"), SIZES)
def test_samples_have_the_distribution(m, k, x64):
    """Uniform numbers just within the conditional probabilities of a subset give it; and just outside, not.

    So the set of uniform numbers that gives a subset has its probability as volume, to 1e-10.
    """
    uniforms, thetas, expected, elements = [], [], [], []
    for theta in logits(m, (0.0, 1.0, 5.0)):
        exact = Enumerated(theta, k)
        for c, p in zip(exact.subsets, exact.thresholds(), strict=True):
            inside = np.where(c == 1, p - EXACT, p + EXACT)
            cases = [(inside, c, slice(None))]
            # Beyond one threshold, where the element is free: it changes sides.
            for i in np.flatnonzero((p > 2 * EXACT) & (p < 1.0 - 2 * EXACT)):
                outside = inside.copy()
                outside[i] = p[i] + EXACT if c[i] else p[i] - EXACT
                cases.append((outside, 1.0 - c, slice(i, i + 1)))
            for u, value, where in cases:
                uniforms.append(u), thetas.append(theta), expected.append(value), elements.append(where)
    ours = evaluate(lambda u, theta: subsets.sample(u, theta, k), np.array(uniforms), np.array(thetas))
    np.testing.assert_array_equal(ours.sum(axis=1), k)
    for c, value, where in zip(ours, expected, elements, strict=True):
        np.testing.assert_array_equal(c[where], value[where])


def test_derivatives_equal_enumeration(x64):
    """The Jacobian of the marginals is the covariance, also where all logits are equal, in both modes."""
    m, k = 7, 4
    exact = Enumerated(logits(m), k)
    c = exact.subsets[-1]

    def ours(theta):
        return {
            "reverse": jax.vmap(jax.jacrev(lambda theta: subsets.marginals(theta, k)))(theta),
            "forward": jax.vmap(jax.jacfwd(lambda theta: subsets.marginals(theta, k)))(theta),
            "kl": jax.grad(lambda theta: jnp.sum(subsets.kl_to_uniform(theta, k)))(theta),
            "score": jax.grad(lambda theta: jnp.sum(subsets.log_prob(jnp.asarray(c)[None], theta, k)))(theta),
        }

    value = evaluate(ours, exact.theta)
    np.testing.assert_allclose(value["reverse"], exact.covariance, atol=EXACT)
    np.testing.assert_allclose(value["forward"], exact.covariance, atol=EXACT)
    slope = np.einsum("sij,sj->si", exact.covariance, exact.theta)
    np.testing.assert_allclose(value["kl"], slope, atol=EXACT)
    np.testing.assert_allclose(value["score"], c - exact.marginals, atol=EXACT)


def test_closed_forms_and_symmetries(x64):
    """Beyond enumeration: equal logits, a common constant, another order, the complement."""
    theta = logits(M)
    order = np.random.default_rng(1).permutation(M)

    def ours(theta, k):
        return subsets.log_normalizer(theta, k), subsets.kl_to_uniform(theta, k), subsets.marginals(theta, k)

    ways = np.stack([theta, theta + 7.0, theta[:, order]])
    (value, shifted, permuted), kl, mu = evaluate(lambda theta: ours(theta, K), ways)
    np.testing.assert_allclose(value[0], math.log(math.comb(M, K)), atol=EXACT)
    np.testing.assert_allclose(subsets.log_count(M, K), 28.4, atol=0.1)  # of MATH.md section 3
    np.testing.assert_allclose(mu[0, 0], K / M, atol=EXACT)
    np.testing.assert_allclose(kl[0, 0], 0.0, atol=EXACT)
    np.testing.assert_allclose(shifted, value + 7.0 * K, atol=EXACT)
    np.testing.assert_allclose(permuted, value, atol=EXACT)
    np.testing.assert_allclose(kl, np.stack(3 * [kl[0]]), atol=EXACT)
    np.testing.assert_allclose(mu, np.stack([mu[0], mu[0], mu[0][:, order]]), atol=EXACT)
    # Those left out are an (m - k)-subset with the opposite logits.
    _, complement, left_out = evaluate(lambda theta: ours(theta, M - K), -theta)
    np.testing.assert_allclose(complement, kl[0], atol=EXACT)
    np.testing.assert_allclose(left_out, 1.0 - mu[0], atol=EXACT)


def test_leading_axes():
    """A batch is its members one by one."""
    rng = np.random.default_rng(0)
    theta, u = np.float32(rng.normal(size=(2, 3, 6))), np.float32(rng.uniform(size=(2, 3, 6)))

    def ours(u, theta):
        c = subsets.sample(u, theta, 2)
        likeliest, mu = subsets.top_k(theta, 2), subsets.marginals(theta, 2)
        moments = subsets.moments(theta, 2)
        numbers = (subsets.log_prob(c, theta, 2, moments), subsets.kl_to_uniform(theta, 2, moments))
        return (c, likeliest, mu, subsets.straight_through(c, mu)), numbers

    elements, numbers = evaluate(ours, u, theta)
    assert all(a.shape == theta.shape and a.dtype == jnp.float32 for a in elements)
    assert all(a.shape == (2, 3) and a.dtype == jnp.float32 for a in numbers)
    one, one_number = evaluate(ours, u[1, 2], theta[1, 2])
    np.testing.assert_array_equal(elements[0][1, 2], one[0])
    np.testing.assert_allclose(elements[2][1, 2], one[2], atol=4 * EPS32)
    np.testing.assert_allclose(numbers[1][1, 2], one_number[1], atol=20 * EPS32)


def everything(theta, uniforms, weights):
    """All functions and the gradients that training takes, of [b, m]."""
    c = subsets.sample(uniforms, theta, K)

    def through(theta):
        value = subsets.straight_through(c, subsets.marginals(theta, K))
        return jnp.sum(lead(weights, value.ndim) * value), value

    gradient, value = jax.grad(through, has_aux=True)(theta)
    return {
        "sample": c,
        "value": value,
        "log_normalizer": subsets.log_normalizer(theta, K),
        "log_prob": subsets.log_prob(c, theta, K),
        "marginals": subsets.marginals(theta, K),
        "kl": subsets.kl_to_uniform(theta, K),
        "straight_through_gradient": gradient,
        "kl_gradient": jax.grad(lambda theta: jnp.sum(subsets.kl_to_uniform(theta, K)))(theta),
        "score": jax.grad(lambda theta: jnp.sum(subsets.log_prob(c, theta, K)))(theta),
    }


NUMBERS, DEVIATIONS = 64, (0.0, 1.0, 20.0, 100.0)


def test_float32_is_finite_and_accurate():
    """Logits of standard deviation up to 100."""
    rng = np.random.default_rng(3)
    scale = np.repeat(DEVIATIONS, NUMBERS)[:, None]
    theta = np.float32(scale * rng.normal(size=(len(scale), M)))
    u, weights = np.float32(rng.uniform(size=theta.shape)), np.float32(rng.normal(size=M))
    ours = evaluate(everything, theta, u, weights)
    with jax.enable_x64(True):
        exact = evaluate(everything, *(np.float64(a) for a in (theta, u, weights)))
    np.testing.assert_array_equal(ours["sample"].sum(axis=-1), K)
    np.testing.assert_array_equal(ours["value"], ours["sample"])
    same = np.all(ours["sample"] == exact["sample"], axis=-1)
    for n, deviation in enumerate(DEVIATIONS):
        # e_k is the sum of K logits of which the largest are 2 deviations, or ln C. The recursion adds M of
        # them, each rounded, at random: sqrt(M) ulp of that; and twice that, for the largest of 64.
        rounding = 2.0 * math.sqrt(M) * EPS32 * max(28.4, 2.0 * deviation * K)
        of = slice(n * NUMBERS, (n + 1) * NUMBERS)
        # A sample changes if a uniform number is between two roundings of a threshold.
        assert same[of].mean() >= 1.0 - M * rounding
        for name, value in ours.items():
            assert value.dtype == np.float32 and np.all(np.isfinite(value)), name
            error = np.abs(np.float64(value[of]) - exact[name][of])[same[of]].max()
            print(f"deviation {deviation:.0f}, {name}: error {error:.1e}")
            # Derivatives of the marginals, which are up to 1/4 times weights or logits of 2 deviations.
            slope = max(1.0, deviation) if name == "kl_gradient" else 1.0
            assert error <= slope * rounding, (deviation, name)


def test_many_elements():
    """Gradients of both modes are finite where most of the table is impossible."""
    theta = jnp.asarray(logits(400, (0.0, 5.0)), jnp.float32)

    def ours(theta):
        mu, tangent = jax.jvp(lambda theta: subsets.marginals(theta, 200), (theta,), (jnp.ones(theta.shape),))
        slope = jax.grad(lambda theta: jnp.sum(jnp.arange(400.0)[None] * subsets.marginals(theta, 200)))(
            theta
        )
        return mu, tangent, slope

    mu, tangent, slope = evaluate(ours, theta)
    np.testing.assert_allclose(mu.sum(axis=1), 200.0, rtol=1e-4)
    # Adding a constant to the logits changes nothing; each logit alone moves its marginal by up to 1/4.
    np.testing.assert_allclose(tangent, 0.0, atol=2e-3)
    assert np.all(np.isfinite(slope)) and np.all(np.abs(slope).max(axis=1) > 1.0)


def test_top_k_is_the_mode(x64):
    for theta in logits(7, (1.0, 5.0, 20.0)):
        exact = Enumerated(theta, 4)
        np.testing.assert_array_equal(
            subsets.top_k(jnp.asarray(theta), 4), exact.subsets[np.argmax(exact.log_q)]
        )
    np.testing.assert_array_equal(subsets.top_k(jnp.zeros(5), 2), [1, 1, 0, 0, 0])


@pytest.mark.parametrize("name", ["sample", "top_k"])
def test_samples_and_modes_have_no_gradient(name):
    functions = {"sample": lambda theta: subsets.sample(jnp.full(6, 0.4), theta, 2)}
    functions["top_k"] = lambda theta: subsets.top_k(theta, 2)
    slope = jax.grad(lambda theta: jnp.sum(jnp.arange(6.0) * functions[name](theta)))(
        jnp.linspace(-1.0, 1.0, 6)
    )
    np.testing.assert_array_equal(slope, 0.0)


# f of the tests of gradients, of c [m] in the reals.
def linear(c):
    return jnp.sum(lead(jnp.sin(1.0 + jnp.arange(float(c.shape[-1]))), c.ndim) * c, axis=-1)


def classifier(c):
    """-log softmax(W c)[0], W of deviation 1: the kind of loss that a table of p(x | c) is."""
    w = jnp.asarray(np.random.default_rng(5).normal(size=(4, c.shape[-1])))
    return -jax.nn.log_softmax(c @ w.T)[..., 0]


def quadratic(c):
    """1/2 c' A c of a random A without a diagonal: interactions only."""
    a = np.random.default_rng(6).normal(size=2 * c.shape[-1:])
    a = a + a.T
    np.fill_diagonal(a, 0.0)
    return 0.5 * jnp.sum((c @ a) * c, axis=-1)


@pytest.mark.parametrize("f", [linear, classifier, quadratic])
def test_straight_through_is_exact_for_linear_losses_and_biased_for_others(f, x64):
    """Its mean by enumeration, for 40 vectors of logits of deviation 1/2, 1 and 3 each.

    The slope of f at a subset is not its difference to the next: a tenth to two fifths of the gradient are
    wrong, but it points where it should.
    """
    deviations, count = (0.5, 1.0, 3.0), 40
    exact = Enumerated(logits(6, np.repeat(deviations, count)), 3)
    c = jnp.asarray(exact.subsets)
    losses = np.asarray(f(c))

    def gradients(theta):  # [n, s, m]
        of = jax.grad(lambda theta, c: f(subsets.straight_through(c, subsets.marginals(theta, exact.k))))
        return jax.vmap(jax.vmap(of, (None, 0)), (0, None))(theta, c)

    samples = evaluate(gradients, exact.theta)
    means = np.einsum("ns,nsi->ni", exact.q, samples)
    truth = np.stack([Enumerated(theta, exact.k).gradient(losses) for theta in exact.theta])
    size = np.linalg.norm(truth, axis=1)
    bias = np.linalg.norm(means - truth, axis=1) / size
    cosine = np.sum(means * truth, axis=1) / np.linalg.norm(means, axis=1) / size
    variance = np.einsum("ns,nsi->n", exact.q, (samples - means[:, None]) ** 2)
    figures = np.stack([bias, cosine, np.sqrt(variance) / size]).reshape(3, len(deviations), count)
    for deviation, (median_bias, median_cosine, spread) in zip(
        deviations, np.median(figures, axis=2).T, strict=True
    ):
        print(
            f"{f.__name__}, logits of deviation {deviation}: over the norm of the gradient, medians: "
            f"bias {median_bias:.3f}, deviation of one sample {spread:.2f}; cosine {median_cosine:.3f}"
        )
        if f is linear:
            np.testing.assert_allclose(means, truth, atol=EXACT)
        else:
            assert 0.05 < median_bias < 0.5 and median_cosine > 0.9


@pytest.mark.parametrize(("m", "k", "n"), [(5, 2, 2), (5, 2, 3), (6, 3, 2)])
def test_leave_one_out_is_unbiased(m, k, n, x64):
    """Its mean over all n-tuples of samples, by enumeration, is the gradient."""
    exact = Enumerated(logits(m, (1.5,))[0], k)
    losses = np.asarray(classifier(jnp.asarray(exact.subsets)))
    tuples = np.array(list(itertools.product(range(len(losses)), repeat=n)))
    probability = np.prod(exact.q[tuples], axis=1)

    def surrogate(theta, choice):
        log_q = subsets.log_prob(jnp.asarray(exact.subsets)[choice], theta[None], k)
        return subsets.leave_one_out(jnp.asarray(losses)[choice], log_q)

    of_every = jax.vmap(jax.value_and_grad(surrogate), (None, 0))
    values, gradients = evaluate(of_every, exact.theta, tuples)
    np.testing.assert_array_equal(values, 0.0)
    truth = exact.gradient(losses)
    np.testing.assert_allclose(probability @ gradients, truth, atol=EXACT)
    spread = np.sqrt(probability @ np.sum((gradients - truth) ** 2, axis=1)) / np.linalg.norm(truth)
    print(f"REINFORCE m={m} k={k}, {n} samples: deviation over the norm of the gradient {spread:.2f}")
    assert np.linalg.norm(truth) > 0.1


def test_leave_one_out_keeps_examples_apart(x64):
    """[n, b] losses: each example has the estimate of its own; a constant in its losses cancels."""
    rng = np.random.default_rng(0)
    theta, losses = rng.normal(size=(4, 6)), rng.normal(size=(3, 4))
    c = evaluate(
        lambda u: subsets.sample(u, jnp.asarray(np.stack([theta] * 3)), 2), rng.uniform(size=(3, 4, 6))
    )

    def total(theta, losses):
        return jnp.sum(subsets.leave_one_out(losses, subsets.log_prob(jnp.asarray(c), theta[None], 2)))

    ours = evaluate(jax.grad(total), theta, losses)
    others = (losses.sum(axis=0) - losses) / 2.0
    score = c - Enumerated(theta, 2).marginals
    np.testing.assert_allclose(ours, np.mean((losses - others)[..., None] * score, axis=0), atol=EXACT)
    np.testing.assert_allclose(evaluate(jax.grad(total), theta, losses + np.arange(4.0)), ours, atol=EXACT)


def test_leave_one_out_does_not_differentiate_the_losses():
    ones = jnp.ones((2, 3))
    slope = jax.grad(lambda losses: jnp.sum(subsets.leave_one_out(losses, ones)))(ones)
    np.testing.assert_array_equal(slope, 0.0)


def test_one_sample_is_refused():
    with pytest.raises(ValueError, match="leave-one-out needs two samples or more, not 1"):
        subsets.leave_one_out(jnp.zeros((1, 3)), jnp.zeros((1, 3)))
