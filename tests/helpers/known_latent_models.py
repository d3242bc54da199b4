"""Models with a latent that are perfect for data of known likelihood, and jvdm's estimators at work on them.

c is one of the k-subsets of m elements, all alike (k = 1: a class). Given c, the data are points of a grid,
point x of probability p(x | c) (`known_latents`). The network is the denoiser that is exact given c and any
gamma of the pixels (`oracles`, equation 2), the encoder a table of logits theta(x), and the schedule one of
jvdm's, of every pixel, with random parameters. So all of this is a sum over a few subsets, or over K-tuples
of them:

    1. log P(x) = log mean_c p(x | c)
    2. E_q[ -log p(x | c) ] + KL(q || p), the bound for any q(c | x)
    3. E_q[ -log 1/K sum_k p(x | c_k) p(c_k) / q(c_k | x) ], the bound of K samples

The estimators must come to these, plus the known price of dequantization or of the decoder (`known.gap`).

Shared by the tests and by `benchmarks/oracle_gaps.py`.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from helpers import known, oracles
from helpers.compose import compose
from helpers.known import NUM_DIMS, SHAPE, WIDE
from helpers.known_latents import Enumerated, TableModel, enumerate_subsets, random_table, telling_table
from jvdm import config as config_lib
from jvdm.core import sharding
from jvdm.diffusion.dequantization import DEQUANTIZATIONS
from jvdm.diffusion.divergence import TRACES
from jvdm.diffusion.latents import LATENTS
from jvdm.diffusion.parameterizations import PARAMETERIZATIONS
from jvdm.diffusion.paths import PATHS
from jvdm.diffusion.per_pixel_schedules import SCHEDULES
from jvdm.evaluation import passes
from jvdm.evaluation.ode import ODE
from jvdm.evaluation.vlb import VLB, for_evaluation
from jvdm.networks import GammaInput

BITS = NUM_DIMS * math.log(2)  # nats in one bit/dim
NUM_LEVELS = 256


@dataclasses.dataclass(frozen=True)
class LatentOracle:
    """Data of known P(x), and q(c | x).

    Attributes:
        table: p(x | c).
        logits: [x, m] theta.
        mixture: the points; its weights are not used.
    """

    table: TableModel
    logits: np.ndarray
    mixture: oracles.PointMixture

    @property
    def q(self):
        """q(c | x) of every x."""
        return Enumerated(self.logits, self.table.k)

    @property
    def bound(self):
        """[x] bound (2), nats."""
        return self.table.bound(self.q.log_q, self.q.kl)

    def importance_bound(self, num_samples):
        """[x] bound (3), nats."""
        log_q = self.q.log_q
        log_w = self.table.log_table - log_q - math.log(log_q.shape[1])
        tuples = np.array(list(itertools.product(range(log_q.shape[1]), repeat=num_samples)))
        probability = np.exp(log_q[:, tuples].sum(axis=-1))
        largest = log_w.max()
        return -np.sum(
            probability * (largest + np.log(np.exp(log_w[:, tuples] - largest).mean(axis=-1))), axis=1
        )

    def at_modes(self):
        """[x] bound (2) of the q that is sure of the likeliest c, nats."""
        subsets = enumerate_subsets(self.table.m, self.table.k)
        likeliest = np.argmax(self.logits @ subsets.T, axis=1)
        return math.log(len(subsets)) - self.table.log_table[np.arange(len(self.logits)), likeliest]


def _marginals(table):
    """[x, m] logits of the marginals of the posterior."""
    mu = np.exp(table.log_posterior) @ enumerate_subsets(table.m, table.k)
    return np.log(mu) - np.log1p(-mu)


def _oracle(table, logits, seed=0):
    points = oracles.point_mixture(len(table.log_table), NUM_DIMS, NUM_LEVELS, seed)
    return LatentOracle(table, logits, points)


_SUBSETS, _CLASSES, _TELLING = random_table(5, 2, 12, 2.5), random_table(6, 1, 12, 2.5), telling_table(6, 3)
ORACLES = {
    "subsets": _oracle(_SUBSETS, _marginals(_SUBSETS)),
    # As an encoder that has learned little: its bound is far from the truth.
    "subsets, untrained": _oracle(_SUBSETS, 1.5 * np.random.default_rng(2).normal(size=(12, 5))),
    "classes": _oracle(_CLASSES, _marginals(_CLASSES)),
    # q is the posterior itself: the bounds are the truth, and with K > 1 every sample is.
    "classes, posterior": _oracle(_CLASSES, _CLASSES.log_posterior),
    # x tells c, so that the posterior is sure; times 10, so that noise added to the logits hardly matters.
    "telling": _oracle(_TELLING, 10.0 * _marginals(_TELLING)),
}


class ExactDenoiser(nn.Module):
    """The output of a perfect network given c."""

    oracle: str
    path_name: str
    parameterization: str
    dtype: str = "float32"

    def __call__(self, z, gamma, context, *, train=False):
        oracle, flat = ORACLES[self.oracle], z.reshape(-1, NUM_DIMS)
        alpha, sigma = oracles.ALPHA_SIGMA[self.path_name](
            jnp.broadcast_to(gamma, z.shape).reshape(flat.shape), jnp
        )
        subsets = jnp.asarray(enumerate_subsets(oracle.table.m, oracle.table.k), jnp.float32)
        c = jnp.argmax(context.latent @ subsets.T, axis=-1)
        points = jnp.asarray(oracle.mixture.points, jnp.float32)
        residual = (flat[:, None] - alpha[:, None] * points[None]) / sigma[:, None]
        log_joint = jnp.asarray(oracle.table.log_table.T, jnp.float32)[c] - 0.5 * jnp.sum(
            residual**2, axis=-1
        )
        x_hat = jax.nn.softmax(log_joint) @ points
        eps_hat = (flat - alpha * x_hat) / sigma
        velocity = oracles.velocity(self.path_name, x_hat, eps_hat, alpha, sigma, jnp)
        return {"noise": eps_hat, "velocity": velocity}[self.parameterization].reshape(z.shape)


class TableEncoder(nn.Module):
    """The logits of the point that an image is."""

    oracle: str
    dtype: str = "float32"

    def __call__(self, x, conditioning, *, train=False):
        oracle = ORACLES[self.oracle]
        points = jnp.asarray(oracle.mixture.points, jnp.float32)
        distance = jnp.sum((x.reshape(-1, 1, NUM_DIMS) - points[None]) ** 2, axis=-1)
        return jnp.asarray(oracle.logits, jnp.float32)[jnp.argmin(distance, axis=-1)]


def build(
    oracle="subsets",
    path="variance_preserving",
    parameterization="noise",
    *,
    latent="",
    schedule="polynomial",
    timesteps=0,
    seed=0,
):
    """A perfect model and its parameters; the latent is the one with an exact charge if none is named."""
    table = ORACLES[oracle].table
    latent = latent or ("gumbel" if table.k == 1 else "k_subset")
    options = {} if latent == "gumbel" else {"k": table.k}
    small = {"hidden": 8} if "hidden" in SCHEDULES.options(schedule) else {}
    path_component = PATHS.build(PATHS.spec(path))
    model = compose(
        network=ExactDenoiser(oracle, path, parameterization),
        schedule=SCHEDULES.build(
            SCHEDULES.spec(schedule, gamma_min=WIDE[0], gamma_max=WIDE[1], **small), data_shape=SHAPE
        ),
        path=path_component,
        parameterization=PARAMETERIZATIONS.build(
            PARAMETERIZATIONS.spec(parameterization), path=path_component
        ),
        data_shape=SHAPE,
        num_levels=NUM_LEVELS,
        timesteps=timesteps,
        time_input=GammaInput(of_pixels=True),
        latent=LATENTS.build(LATENTS.spec(latent, size=table.m, **options)),
        encoder=TableEncoder(oracle),
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    # Of deviation 0.7: every latent has another schedule, but few pixels one whose gamma all but rests.
    params = jax.tree.map(lambda a: jnp.asarray(0.7 * rng.normal(size=a.shape), a.dtype), shapes)
    return for_evaluation(model, timesteps), params


def images(oracle, repeats):
    """[x * repeats, ...] every point as often as the others."""
    levels = np.repeat(ORACLES[oracle].mixture.levels, repeats, axis=0)
    return levels.astype(np.uint8).reshape(-1, *SHAPE)


class Estimate(NamedTuple):
    """Of a bound, bits/dim.

    Attributes:
        per_point: [x, r] of each image; all r of a point are alike.
        expected: [x] what it must be on average.
        truth: [x] -log P(x).
        rows: of the estimator.
        nfe: of an ODE solve.
    """

    per_point: np.ndarray
    expected: np.ndarray
    truth: np.ndarray
    rows: dict[str, np.ndarray]
    nfe: float | None

    @property
    def excess(self):
        """Of the mean over points above what is expected, and its standard error."""
        return self._mean(self.per_point - self.expected[:, None])

    @property
    def gap(self):
        """Of the mean over points above -log P(x), and its standard error."""
        return self._mean(self.per_point - self.truth[:, None])

    @property
    def deviations(self):
        """[x] every point's excess in standard errors."""
        mean, r = (self.per_point - self.expected[:, None]).mean(axis=1), self.per_point.shape[1]
        return mean / (self.per_point.std(axis=1, ddof=1) / math.sqrt(r))

    def with_charge(self, other):
        """The same with the row `other` in place of `latent`."""
        instead = (self.rows[other] - self.rows["latent"]).mean(axis=1).reshape(self.per_point.shape)
        return self._replace(per_point=self.per_point + instead)

    def _mean(self, a):
        # Points are given, images of a point are drawn: the variance is that within points.
        x, r = a.shape
        return float(a.mean()), float(math.sqrt(np.sum(a.var(axis=1, ddof=1) / r)) / x)


def _run(estimator, params, oracle, repeats, expected, seed):
    data = ORACLES[oracle]
    rows = passes.run(estimator, params, images(oracle, repeats), jax.random.key(seed))
    per_point = passes.bits_per_dim(rows, estimator.terms).mean(axis=1).reshape(-1, repeats)
    nfe = float(np.mean(rows["nfe"])) if "nfe" in rows else None
    return Estimate(per_point, expected / BITS, -data.table.log_likelihood / BITS, rows, nfe)


def _mesh():
    return sharding.make_mesh(jax.devices()[:1])


def _expected(oracle, latent, num_samples):
    if latent == "k_hot_surrogate":
        return ORACLES[oracle].at_modes()
    return ORACLES[oracle].bound if num_samples == 1 else ORACLES[oracle].importance_bound(num_samples)


@functools.cache
def vlb(oracle="subsets", *, latent="", repeats=64, draws=32, seed=0, **options):
    """The variational bound."""
    model, params = build(oracle, latent=latent, **options)
    estimator = VLB(model, _mesh(), batch_size=len(images(oracle, repeats)), draws=draws)
    expected = _expected(oracle, latent, 1) + BITS * known.gap("fine_mixture", "variational")
    return _run(estimator, params, oracle, repeats, expected, seed)


@functools.cache
def ode(
    oracle="subsets",
    *,
    latent="",
    num_samples=1,
    probes=0,
    dequantization="truncated_normal",
    repeats=50,
    draws=1,
    seed=0,
    **options: Any,
):
    """The ODE's likelihood; the trace is exact without probes."""
    model, params = build(oracle, latent=latent, **options)
    section = config_lib.default().eval.ode
    section.unlock()
    section.dequantization = DEQUANTIZATIONS.spec(dequantization)
    section.trace = TRACES.spec("hutchinson", probes=probes) if probes else TRACES.spec("exact")
    section.importance_samples, section.draws = num_samples, draws
    section.batch_size = len(images(oracle, repeats))
    estimator = ODE(model, _mesh(), section)
    expected = _expected(oracle, latent, num_samples) + BITS * known.gap("fine_mixture", dequantization)
    return _run(estimator, params, oracle, repeats, expected, seed)
