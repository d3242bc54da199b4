"""Data whose likelihood and denoiser are known, written without jvdm.

With z = alpha x + sigma eps:

    1. Gaussian, x ~ N(m, diag(c)):
       eps_hat = sigma (z - alpha m) / (alpha^2 c + sigma^2)
       E|eps - eps_hat|^2 = sum c / (c + e^gamma)
       1/2 int E|eps - eps_hat|^2 dgamma = 1/2 sum ln[(1 + c e^-gamma_0) / (1 + c e^-gamma_1)]
    2. finitely many points f_j of weight w_j, on a grid of K levels per dimension, so that
       P(x = f_j) = w_j is the mass of discrete data, and z is a Gaussian mixture:
       p_j(z) proportional to w_j exp(-|z - alpha f_j|^2 / (2 sigma^2))
       eps_hat = (z - alpha sum_j p_j f_j) / sigma,  score = -eps_hat / sigma
       div score = sum_d [ (alpha_d / sigma_d)^2 Var_p(f_d) - 1 ] / sigma_d^2
    3. points of (2) with noise of deviation d, continuous: (2) with sqrt(alpha^2 d^2 + sigma^2) for sigma
    4. the Gaussian (1), and discrete data x that tell in which of K cells of [-1, 1] it fell:
       P(x) = prod_d [ Phi(upper edge of cell x_d) - Phi(lower edge) ]

Everything is float64 numpy. `xp=jax.numpy` gives the same formula inside a jitted function.
"""

import dataclasses

import numpy as np
from scipy.special import ndtr


def variance_preserving(gamma, xp=np):
    """alpha and sigma with alpha^2 + sigma^2 = 1."""
    return 1.0 / xp.sqrt(1.0 + xp.exp(gamma)), 1.0 / xp.sqrt(1.0 + xp.exp(-gamma))


def straight(gamma, xp=np):
    """alpha and sigma with alpha + sigma = 1."""
    return 1.0 / (1.0 + xp.exp(0.5 * gamma)), 1.0 / (1.0 + xp.exp(-0.5 * gamma))


def sub_variance_preserving(gamma, xp=np):
    """alpha and sigma with alpha^2 + sigma = 1."""
    # Of alpha^2 + e^(gamma / 2) alpha = 1, the root that does not cancel.
    ratio = xp.exp(0.5 * gamma)
    alpha = 2.0 / (ratio + xp.sqrt(ratio**2 + 4.0))
    return alpha, ratio * alpha


ALPHA_SIGMA = {
    "variance_preserving": variance_preserving,
    "straight": straight,
    "sub_variance_preserving": sub_variance_preserving,
}


def velocity(path, x, eps, alpha, sigma, xp=np):
    """The velocity of unit variance on a path by name."""
    if path == "straight":
        return (eps - x) * 0.5**0.5
    if path == "sub_variance_preserving":
        return (2.0 * alpha * eps - x) / xp.sqrt(1.0 + 4.0 * alpha**2)
    return alpha * eps - sigma * x


BETA_MIN, BETA_MAX = 0.1, 20.0


def linear_beta(t):
    """beta at t, and B, its integral from 0 to t."""
    slope = BETA_MAX - BETA_MIN
    return BETA_MIN + slope * t, BETA_MIN * t + 0.5 * slope * t**2


def linear_beta_gamma(path, t):
    """gamma and dgamma/dt of beta from BETA_MIN to BETA_MAX at t, where alpha = e^(-B / 2)."""
    beta, b = linear_beta(t)
    if path == "variance_preserving":
        return np.log(np.expm1(b)), beta / -np.expm1(-b)
    if path == "straight":
        return 2.0 * np.log(np.expm1(0.5 * b)), beta / -np.expm1(-0.5 * b)
    return 2.0 * np.log(2.0 * np.sinh(0.5 * b)), beta / np.tanh(0.5 * b)


def linear_beta_rate(path, gamma, xp=np):
    """dgamma/dt of the same schedule where it is gamma; on either path of an SDE."""
    if path == "variance_preserving":
        b = xp.log1p(xp.exp(gamma))
        factor = 1.0 + xp.exp(-gamma)
    else:
        half = xp.arcsinh(0.5 * xp.exp(0.5 * gamma))
        b, factor = 2.0 * half, 1.0 / xp.tanh(half)
    return xp.sqrt(BETA_MIN**2 + 2.0 * (BETA_MAX - BETA_MIN) * b) * factor


def encode(levels, num_levels):
    """The centre of each of K cells of [-1, 1]."""
    return (2.0 * np.asarray(levels, np.float64) + 1.0 - num_levels) / num_levels


def decoder_nats(levels, eps_0, gamma_0, num_levels):
    """-log p(x | z_0) of every element, by a softmax over levels of z_0 = alpha_0 f + sigma_0 eps_0."""
    alpha, sigma = variance_preserving(np.float64(gamma_0))
    z_0 = alpha * encode(levels, num_levels) + sigma * np.asarray(eps_0, np.float64)
    logits = -0.5 * ((z_0[..., None] - alpha * encode(np.arange(num_levels), num_levels)) / sigma) ** 2
    largest = logits.max(-1, keepdims=True)
    log_p = logits - largest - np.log(np.exp(logits - largest).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, np.asarray(levels, np.int64)[..., None], axis=-1)[..., 0]


def aligned(a, z, xp=np):
    """An array of z's type, with leading axes of length 1 up to z's rank: JAX adds none in the tests."""
    a = xp.asarray(a, z.dtype)
    return a.reshape((1,) * (z.ndim - a.ndim) + a.shape)


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Independent normal data: `mean` and `variance` [d]."""

    mean: np.ndarray
    variance: np.ndarray

    def sample(self, rng, n):
        """[n, d] data."""
        return self.mean + np.sqrt(self.variance) * rng.normal(size=(n, len(self.mean)))

    def eps_hat(self, z, alpha, sigma, xp=np):
        """E[eps | z]."""
        mean, variance = (aligned(a, z, xp) for a in (self.mean, self.variance))
        return sigma * (z - alpha * mean) / (alpha**2 * variance + sigma**2)

    def x_hat(self, z, alpha, sigma, xp=np):
        """E[x | z]."""
        mean, variance = (aligned(a, z, xp) for a in (self.mean, self.variance))
        return mean + alpha * variance * (z - alpha * mean) / (alpha**2 * variance + sigma**2)

    def log_density(self, z, alpha, sigma):
        """[...] log density of z [..., d]."""
        variance = alpha**2 * self.variance + sigma**2
        return -0.5 * np.sum((z - alpha * self.mean) ** 2 / variance + np.log(2 * np.pi * variance), axis=-1)

    def squared_error(self, gamma):
        """[...] E|eps - eps_hat|^2 at gamma [...]."""
        return np.sum(self.variance / (self.variance + np.exp(gamma)[..., None]), axis=-1)

    def diffusion(self, gamma_0, gamma_1):
        """Nats of the continuous-time diffusion term."""
        c = self.variance
        return 0.5 * np.sum(np.log1p(c * np.exp(-gamma_0)) - np.log1p(c * np.exp(-gamma_1)))

    def diffusion_discrete(self, gammas):
        """Nats of the diffusion term of steps between gammas [T + 1], increasing."""
        return 0.5 * np.sum(np.expm1(np.diff(gammas)) * self.squared_error(gammas[1:]))


@dataclasses.dataclass(frozen=True)
class DiscretisedGaussian(Gaussian):
    """Discrete data of K `num_levels`, whose continuous version is exactly Gaussian.

    The Gaussian must hardly reach beyond [-1, 1]: what does is P's missing mass.
    """

    num_levels: int

    def sample(self, rng, n):
        """[n, d] levels."""
        x = super().sample(rng, n)
        levels = np.floor((x + 1.0) * self.num_levels / 2.0)
        return np.clip(levels, 0, self.num_levels - 1).astype(np.int64)

    def log_masses(self):
        """[d, K] log probability of every level."""
        edges = np.linspace(-1.0, 1.0, self.num_levels + 1)
        a = (edges - self.mean[:, None]) / np.sqrt(self.variance)[:, None]
        # Of the tail on the side of the cell, so that neither is a difference of numbers near 1.
        below, above = np.diff(ndtr(a)), -np.diff(ndtr(-a))
        return np.log(np.where(a[:, 1:] > 0, above, below) + 1e-300)

    def log_probability(self, levels):
        """[...] log P(x) of levels [..., d]."""
        return np.sum(self.log_masses()[np.arange(len(self.mean)), levels], axis=-1)

    @property
    def entropy(self):
        """Nats of the distribution: no bound may average less."""
        log_masses = self.log_masses()
        return -np.sum(np.exp(log_masses) * log_masses)


@dataclasses.dataclass(frozen=True)
class PointMixture:
    """Discrete data: `levels` [j, d] of K `num_levels`, of probability `weights` [j]."""

    levels: np.ndarray
    weights: np.ndarray
    num_levels: int

    @property
    def points(self):
        """[j, d] encoded data."""
        return encode(self.levels, self.num_levels)

    @property
    def entropy(self):
        """Nats of the true distribution: no bound may average less."""
        return -np.sum(self.weights * np.log(self.weights))

    def sample(self, rng, n):
        """[n, d] levels."""
        return self.levels[rng.choice(len(self.weights), size=n, p=self.weights)]

    def log_probability(self, levels):
        """[...] log P(x) of levels [..., d], which must be among the points."""
        equal = np.all(np.asarray(levels)[..., None, :] == self.levels, axis=-1)
        return np.log(equal @ self.weights)

    def _log_joint(self, z, alpha, sigma, xp):
        points = aligned(self.points, z[..., None, :], xp)
        residual = (z[..., None, :] - alpha[..., None, :] * points) / sigma[..., None, :]
        return aligned(np.log(self.weights), z, xp) - 0.5 * xp.sum(residual**2, axis=-1)

    def posterior(self, z, alpha, sigma, xp=np):
        """[..., j] p(f_j | z) for z, alpha and sigma [..., d] (the last two broadcastable)."""
        log_joint = self._log_joint(z, alpha, sigma, xp)
        p = xp.exp(log_joint - xp.max(log_joint, axis=-1, keepdims=True))
        return p / xp.sum(p, axis=-1, keepdims=True)

    def x_hat(self, z, alpha, sigma, xp=np):
        """E[x | z]."""
        return self.posterior(z, alpha, sigma, xp) @ self.points.astype(z.dtype)

    def eps_hat(self, z, alpha, sigma, xp=np):
        """E[eps | z]."""
        return (z - alpha * self.x_hat(z, alpha, sigma, xp)) / sigma

    def log_density(self, z, alpha, sigma):
        """[...] log density of z [..., d]."""
        log_joint = self._log_joint(z, alpha, sigma, np)
        largest = log_joint.max(-1)
        log_sum = largest + np.log(np.exp(log_joint - largest[..., None]).sum(-1))
        return log_sum - np.sum(np.log(np.sqrt(2 * np.pi) * sigma) * np.ones_like(z), axis=-1)

    def score(self, z, alpha, sigma):
        """Gradient of the log density."""
        return -self.eps_hat(z, alpha, sigma) / sigma

    def score_divergence(self, z, alpha, sigma):
        """[...] divergence of the score."""
        p = self.posterior(z, alpha, sigma)
        x_hat = p @ self.points
        variance = np.einsum("...j,...jd->...d", p, (self.points - x_hat[..., None, :]) ** 2)
        return np.sum(((alpha / sigma) ** 2 * variance - 1.0) / sigma**2, axis=-1)


@dataclasses.dataclass(frozen=True)
class NormalMixture:
    """Continuous data: the points of a `PointMixture` with normal noise of one `deviation`."""

    base: PointMixture
    deviation: float

    def sample(self, rng, n):
        """[n, d] data."""
        points = encode(self.base.sample(rng, n), self.base.num_levels)
        return points + self.deviation * rng.normal(size=points.shape)

    def _total(self, alpha, sigma, xp):
        return xp.sqrt((alpha * self.deviation) ** 2 + sigma**2)

    def eps_hat(self, z, alpha, sigma, xp=np):
        """E[eps | z]."""
        total = self._total(alpha, sigma, xp)
        return sigma / total * self.base.eps_hat(z, alpha, total, xp)

    def x_hat(self, z, alpha, sigma, xp=np):
        """E[x | z]."""
        total = self._total(alpha, sigma, xp)
        centre = self.base.x_hat(z, alpha, total, xp)
        return centre + alpha * (self.deviation / total) ** 2 * (z - alpha * centre)

    def log_density(self, z, alpha, sigma):
        """[...] log density of z [..., d]."""
        return self.base.log_density(z, alpha, self._total(alpha, sigma, np))


def point_mixture(num_points=12, num_dims=4, num_levels=16, seed=0):
    """Distinct random points with weights between about 1 and 10 parts."""
    rng = np.random.default_rng(seed)
    codes = rng.choice(num_levels**num_dims, size=num_points, replace=False)
    levels = np.stack([codes // num_levels**d % num_levels for d in range(num_dims)], axis=-1)
    weights = rng.uniform(1.0, 10.0, num_points)
    return PointMixture(levels, weights / weights.sum(), num_levels)


def discretised_gaussian(num_levels=256):
    """Four independent dimensions, of deviations of 8 to 19 cells, six of them within [-1, 1]."""
    deviations = np.array([0.12, 0.06, 0.15, 0.09])
    return DiscretisedGaussian(np.array([0.2, -0.3, 0.0, 0.1]), deviations**2, num_levels)
