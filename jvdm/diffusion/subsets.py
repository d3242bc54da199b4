"""The distribution of k-subsets with weights e^theta: everything about it in O(m k).

A k-subset of m elements is c in {0, 1}^m with |c| = k (conditional Poisson sampling; 2210.01941). With e_j
the elementary symmetric polynomials, and L[i, j] = ln e_j of the first i weights,

    1. log q(c) = theta . c - ln e_k(e^theta)
    2. L[i, j] = ln(e^L[i-1, j] + e^(theta_i + L[i-1, j-1])),  L[0, 0] = 0,  and ln e_k = L[m, k]
    3. E[c] = mu = d/dtheta ln e_k, so that d/dtheta log q(c) = c - mu
    4. KL(q || uniform) = theta . mu - ln e_k + ln C(m, k)
    5. With j elements yet to be taken among the first i, element i is one of them with probability
       e^(theta_i + L[i-1, j-1] - L[i, j]) = sigmoid(theta_i + L[i-1, j-1] - L[i-1, j]);
       from i = m, j = k downwards that is an exact sample.

Gradients of E[f(c)]:

    6. straight-through: d f / d c of the sample, times d mu / d theta. Exact if f is linear, else biased.
    7. leave-one-out REINFORCE, of n independent samples: 1/n sum_s (f_s - mean of the others' f) (c_s - mu);
       unbiased, since the others do not depend on c_s and E[c_s - mu] = 0.

All functions broadcast over leading axes.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Logits = Float[Array, "... m"]
Subset = Float[Array, "... m"]

# ln 0: finite, so that differences and gradients are, and so large that adding a logit leaves it as it is.
LOG_ZERO = -1e30


def log_count(m: int, k: int) -> float:
    """ln C(m, k), nats: what one k-subset costs under the uniform prior.

    Args:
        m: elements.
        k: the size of the subsets, 0..m.

    Returns:
        Nats.
    """
    return math.log(math.comb(m, k))


def _log_add(a: Array, b: Array) -> Array:
    """ln(e^a + e^b), of finite numbers."""
    # Not logaddexp: within a scan, its second derivative is wrong where a = b, as it is for equal logits.
    high, low = jnp.where(a >= b, a, b), jnp.where(a >= b, b, a)
    return high + jnp.log1p(jnp.exp(low - high))


def _one_less(row: Float[Array, "... k1"]) -> Float[Array, "... k1"]:
    """L[i, j - 1] at j, from a row of (2)."""
    return jnp.concatenate([jnp.full_like(row[..., :1], LOG_ZERO), row[..., :-1]], axis=-1)


def _table(theta: Logits, k: int) -> tuple[Float[Array, "... k1"], Float[Array, "m ... k1"]]:
    """The recursion (2): L[m], and L[i - 1] for every i of 1..m."""
    first = jnp.where(jnp.arange(k + 1) == 0, 0.0, LOG_ZERO).astype(theta.dtype)

    def add(row, theta_i):
        return _log_add(row, theta_i[..., None] + _one_less(row)), row

    start = jnp.broadcast_to(first, (*theta.shape[:-1], k + 1))
    return jax.lax.scan(add, start, jnp.moveaxis(theta, -1, 0))


def log_normalizer(theta: Logits, k: int) -> Float[Array, "..."]:
    """ln e_k (2).

    Args:
        theta: [..., m] log weights.
        k: the size of the subsets, 0..m.

    Returns:
        [...] nats.
    """
    return _table(theta, k)[0][..., k]


class Moments(NamedTuple):
    """What one pass through the table and back gives.

    Attributes:
        log_normalizer: [...] ln e_k (2), nats.
        marginals: [..., m] mu (3), the probability of each element to be in the subset; their sum is k.
    """

    log_normalizer: Float[Array, "..."]
    marginals: Float[Array, "... m"]


def moments(theta: Logits, k: int) -> Moments:
    """Normaliser and marginals, both with their gradients in theta.

    Args:
        theta: [..., m] log weights.
        k: the size of the subsets.

    Returns:
        The normaliser [...] in nats, and the marginals [..., m].
    """
    value, pullback = jax.vjp(lambda theta: log_normalizer(theta, k), theta)
    return Moments(value, *pullback(jnp.ones_like(value)))


def marginals(theta: Logits, k: int) -> Float[Array, "... m"]:
    """mu (3), the probability of each element to be in the subset.

    Args:
        theta: [..., m] log weights.
        k: the size of the subsets.

    Returns:
        [..., m] probabilities, whose sum is k.
    """
    return moments(theta, k).marginals


def log_prob(c: Subset, theta: Logits, k: int, given: Moments | None = None) -> Float[Array, "..."]:
    """log q(c) (1), [...] nats; its gradient in theta is c - mu.

    Args:
        c: [..., m], with k ones.
        theta: [..., m] log weights.
        k: the size of the subsets.
        given: the moments of theta, where they are known.
    """
    value = log_normalizer(theta, k) if given is None else given.log_normalizer
    return jnp.sum(theta * c, axis=-1) - value


def kl_to_uniform(theta: Logits, k: int, given: Moments | None = None) -> Float[Array, "..."]:
    """KL(q || uniform over k-subsets) (4), [...] nats, between 0 and ln C(m, k).

    Args:
        theta: [..., m] log weights.
        k: the size of the subsets.
        given: the moments of theta, where they are known.
    """
    value, mu = moments(theta, k) if given is None else given
    return jnp.sum(theta * mu, axis=-1) - value + log_count(theta.shape[-1], k)


def sample(uniforms: Float[Array, "... m"], theta: Logits, k: int) -> Subset:
    """An exact sample (5).

    Args:
        uniforms: [..., m] independent numbers in (0, 1), on which the sample depends alone.
        theta: [..., m] log weights.
        k: the size of the subsets.

    Returns:
        [..., m] of 0 and 1, always k ones; no gradient.
    """
    theta = jax.lax.stop_gradient(theta)
    _, rows = _table(theta, k)

    def decide(left, element):
        u, theta_i, row = element

        def at(a):
            return jnp.take_along_axis(a, left[..., None], axis=-1)[..., 0]

        taken = u < jax.nn.sigmoid(theta_i + at(_one_less(row)) - at(row))
        return left - taken.astype(left.dtype), taken

    start = jnp.full(theta.shape[:-1], k)
    last = (jnp.moveaxis(uniforms, -1, 0), jnp.moveaxis(theta, -1, 0), rows)
    _, taken = jax.lax.scan(decide, start, last, reverse=True)
    return jnp.moveaxis(taken, 0, -1).astype(theta.dtype)


def top_k(theta: Logits, k: int) -> Subset:
    """The likeliest subset: 1 at the k largest (of equal ones the first); no gradient.

    Args:
        theta: [..., m] log weights.
        k: the size of the subset.

    Returns:
        [..., m] of 0 and 1.
    """
    _, indices = jax.lax.top_k(jax.lax.stop_gradient(theta), k)
    return jnp.sum(jax.nn.one_hot(indices, theta.shape[-1], dtype=theta.dtype), axis=-2)


def straight_through(c: Array, mu: Array) -> Array:
    """c, to the last bit, with the gradient of mu (6); any two arrays of one shape."""
    return jax.lax.stop_gradient(c) + (mu - jax.lax.stop_gradient(mu))


def leave_one_out(losses: Float[Array, "n ..."], log_q: Float[Array, "n ..."]) -> Float[Array, "..."]:
    """What adds the estimate (7) to the gradient of the mean loss.

    Args:
        losses: [n, ...] f of n independent samples of each distribution; n is 2 or more.
        log_q: [n, ...] log q of the samples, which has the gradient.

    Returns:
        [...] numbers that are 0, and whose gradient in the logits is the estimate of that of E[f].

    Raises:
        ValueError: fewer than two samples.
    """
    n = losses.shape[0]
    if n < 2:
        raise ValueError(f"leave-one-out needs two samples or more, not {n}")
    advantage = jax.lax.stop_gradient(losses - jnp.mean(losses, axis=0, keepdims=True)) * (n / (n - 1))
    return jnp.mean(advantage * (log_q - jax.lax.stop_gradient(log_q)), axis=0)
