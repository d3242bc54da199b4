"""k-subsets by enumeration, and a discrete model whose likelihood given a latent is known; float64 numpy.

The model: c is one of the k-subsets of m elements, all alike, and x has the distribution of a table
p(x | c). Its P(x), its posterior and its bound for any q(c | x) are sums over a few dozen subsets.
"""

import dataclasses
import itertools

import numpy as np


def enumerate_subsets(m, k):
    """[s, m] all of them."""
    chosen = list(itertools.combinations(range(m), k))
    subsets = np.zeros((len(chosen), m))
    for row, elements in zip(subsets, chosen, strict=True):
        row[list(elements)] = 1.0
    return subsets


def log_sum_exp(a, axis=-1):
    largest = np.max(a, axis=axis, keepdims=True)
    return np.squeeze(largest, axis) + np.log(np.sum(np.exp(a - largest), axis=axis))


@dataclasses.dataclass(frozen=True)
class Enumerated:
    """q(c) proportional to e^(theta . c) over k-subsets, [..., m] theta."""

    theta: np.ndarray
    k: int

    @property
    def subsets(self):
        """[s, m]"""
        return enumerate_subsets(self.theta.shape[-1], self.k)

    @property
    def log_normalizer(self):
        """[...]"""
        return log_sum_exp(self.theta @ self.subsets.T)

    @property
    def log_q(self):
        """[..., s]"""
        return self.theta @ self.subsets.T - self.log_normalizer[..., None]

    @property
    def q(self):
        """[..., s]"""
        return np.exp(self.log_q)

    @property
    def marginals(self):
        """[..., m]"""
        return self.q @ self.subsets

    @property
    def covariance(self):
        """[..., m, m], the derivative of the marginals."""
        deviation = self.subsets - self.marginals[..., None, :]
        return np.einsum("...s,...si,...sj->...ij", self.q, deviation, deviation)

    @property
    def kl(self):
        """[...] to the uniform distribution over subsets, nats."""
        return np.sum(self.q * (self.log_q + np.log(len(self.subsets))), axis=-1)

    def gradient(self, f):
        """d/dtheta E[f(c)], [m], of values [s], for theta [m]."""
        return (self.q * f) @ (self.subsets - self.marginals)

    def thresholds(self):
        """[s, m] the probability of element i to be in c, given the elements of subset s above i."""
        weights, subsets = self.q, self.subsets
        result = np.zeros(subsets.shape)
        for s, c in enumerate(subsets):
            for i in range(len(c)):
                alike = np.all(subsets[:, i + 1 :] == c[i + 1 :], axis=1)
                result[s, i] = weights[alike & (subsets[:, i] == 1)].sum() / weights[alike].sum()
        return result


@dataclasses.dataclass(frozen=True)
class TableModel:
    """A discrete model, p(x) = mean over k-subsets of p(x | c).

    Attributes:
        log_table: [x, s] log p(x | c), nats.
        m, k: of the subsets, in the order of `enumerate_subsets`.
    """

    log_table: np.ndarray
    m: int
    k: int

    @property
    def log_likelihood(self):
        """[x] log p(x), nats."""
        return log_sum_exp(self.log_table) - np.log(self.log_table.shape[1])

    @property
    def log_posterior(self):
        """[x, s] log p(c | x)."""
        return self.log_table - log_sum_exp(self.log_table)[:, None]

    def bound(self, log_q, charge):
        """[x] -E_q log p(x | c) + charge, nats, of log_q [x, s]."""
        return charge - np.sum(np.exp(log_q) * self.log_table, axis=1)

    def gap(self, log_q):
        """[x] KL(q(c | x) || p(c | x)), nats: the bound with the true charge, less -log p(x)."""
        return np.sum(np.exp(log_q) * (log_q - self.log_posterior), axis=1)

    def losses(self, x, values):
        """[..., n] -log p(x | c) of values [..., n, m] for x [...]."""
        index = np.argmax(values @ enumerate_subsets(self.m, self.k).T, axis=-1)
        return -np.take_along_axis(self.log_table[x], index, axis=-1)


def random_table(m, k, num_x, spread, seed=0):
    """A table whose logits have the given standard deviation."""
    logits = spread * np.random.default_rng(seed).normal(size=(num_x, len(enumerate_subsets(m, k))))
    return TableModel(logits - log_sum_exp(logits, axis=0), m, k)


def telling_table(m, k, error=0.01):
    """x tells which subset c was, but for an error: as many x as subsets."""
    n = len(enumerate_subsets(m, k))
    table = np.full((n, n), error / (n - 1))
    np.fill_diagonal(table, 1.0 - error)
    return TableModel(np.log(table), m, k)


def linear_table(w, k):
    """[2] x, p(0 | c) proportional to e^(w . c), so that p(c | x = 0) is of the family, with logits w."""
    energy = enumerate_subsets(len(w), k) @ w
    log_p = energy - energy.max() - 0.1
    return TableModel(np.stack([log_p, np.log1p(-np.exp(log_p))]), len(w), k)
