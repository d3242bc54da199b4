"""Models that are perfect for data of known likelihood (`oracles`), and jvdm's estimators at work on them.

Shared by the tests and by `benchmarks/oracle_gaps.py`.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from helpers import oracles
from helpers.compose import compose
from jvdm.core.records import Context
from jvdm.diffusion import likelihood
from jvdm.diffusion.divergence import ExactTrace, Hutchinson
from jvdm.diffusion.gaussian import coefficients
from jvdm.diffusion.parameterizations import PARAMETERIZATIONS
from jvdm.diffusion.paths import PATHS
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.diffusion.solvers import Adaptive
from jvdm.diffusion.times import TIME_DENSITIES
from jvdm.diffusion.transforms import DATA_MAPS

ORACLES = {
    # Levels are 193 standard deviations apart at gamma = -13.3: the decoder costs nothing.
    "mixture": oracles.point_mixture(num_levels=8),
    # 6 standard deviations apart: dequantization and decoder cost what they do for 8-bit images.
    "fine_mixture": oracles.point_mixture(num_levels=256),
    "gaussian": oracles.discretised_gaussian(),
    # Continuous data, told exactly; broad, because the variance of bounds at one time grows with the score.
    "continuous_gaussian": oracles.Gaussian(
        np.array([0.5, -0.7, 0.0, 0.2]), np.array([0.5, 0.7, 1.2, 1.0]) ** 2
    ),
    "continuous_mixture": oracles.NormalMixture(oracles.point_mixture(4, num_levels=8), 0.4),
}
SHAPE, NUM_DIMS = (2, 2, 1), 4
# The ways of dequantization under which an oracle's continuous version is the right model of its data.
DEQUANTIZED = {"fine_mixture": ("truncated_normal", "variational"), "gaussian": ("uniform",)}
WIDE = (-13.3, 10.0)  # sigma_1 almost 1, so that the prior is exact to 1e-5 nats
PATH_NAMES = tuple(oracles.ALPHA_SIGMA)
DEFAULT = Adaptive()
EMPTY = {"network": {}, "schedule": {}}


class ExactDenoiser(nn.Module):
    """The output of a perfect network for an oracle, plus a constant."""

    oracle_name: str
    path_name: str
    parameterization: str
    offset: float = 0.0

    def __call__(self, z, gamma, context, *, train=False):
        oracle, flat = ORACLES[self.oracle_name], z.reshape(-1, NUM_DIMS)
        alpha, sigma = oracles.ALPHA_SIGMA[self.path_name](gamma[:, None], jnp)
        x_hat = oracle.x_hat(flat, alpha, sigma, jnp)
        eps_hat = oracle.eps_hat(flat, alpha, sigma, jnp)
        velocity = oracles.velocity(self.path_name, x_hat, eps_hat, alpha, sigma, jnp)
        # Of linear beta, the schedule that this output is for.
        drift = -jnp.sqrt(oracles.linear_beta_rate(self.path_name, gamma[:, None], jnp)) * eps_hat
        outputs = {"noise": eps_hat, "data": x_hat, "velocity": velocity, "drift": drift}
        return outputs[self.parameterization].reshape(z.shape) + self.offset


def build(
    oracle="mixture",
    path="variance_preserving",
    parameterization="noise",
    *,
    schedule=None,
    time_density="uniform",
    timesteps=0,
    offset=0.0,
    prior="path",
):
    """A perfect model; the schedule is linear over WIDE if none is given, linear beta if that is its name."""
    path_component = PATHS.build(PATHS.spec(path))
    if schedule is None:
        schedule = SCHEDULES.build(SCHEDULES.spec("fixed_linear", gamma_min=WIDE[0], gamma_max=WIDE[1]))
    elif schedule == "linear_beta":
        schedule = SCHEDULES.build(SCHEDULES.spec("linear_beta"), noise_path=path_component)
    num_levels = getattr(ORACLES[oracle], "num_levels", 0)
    return compose(
        network=ExactDenoiser(oracle, path, parameterization, offset),
        schedule=schedule,
        path=path_component,
        parameterization=PARAMETERIZATIONS.build(
            PARAMETERIZATIONS.spec(parameterization), path=path_component
        ),
        data_shape=SHAPE,
        num_levels=num_levels,
        data_map=DATA_MAPS.build(DATA_MAPS.spec("scaling" if num_levels else "identity")),
        timesteps=timesteps,
        prior=prior,
        time_density=TIME_DENSITIES.build(TIME_DENSITIES.spec(time_density)),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BothTraces:
    """The exact trace, and estimates by several probes, of the same solve."""

    probes: int
    distribution: str = "rademacher"

    @property
    def hutchinson(self):
        return Hutchinson(probes=self.probes, distribution=self.distribution)

    def draw(self, key, shape):
        # The first stands for the exact trace.
        return Hutchinson(probes=self.probes + 1, distribution=self.distribution).draw(key, shape)

    def __call__(self, fn, z, probes, *, batch_axes=0):
        value, exact = ExactTrace()(fn, z, probes[:1], batch_axes=batch_axes)
        _, estimates = self.hutchinson(fn, z, probes[1:], batch_axes=batch_axes)
        return value, jnp.concatenate([exact, estimates])


class Scored(NamedTuple):
    """log p(z) + log p(x | z) - log q(z | x) of samples [n, K], nats.

    Attributes:
        exact: [n, K], with the exact trace.
        estimates: [n, K, m], with each probe.
        density_error: [n, K] of log p(z) with the exact trace, against the closed form: the solver's.
        evaluations: [n, K].
        ok: of all.
    """

    exact: np.ndarray
    estimates: np.ndarray
    density_error: np.ndarray
    evaluations: np.ndarray
    ok: bool


@functools.cache
def density_program(oracle, path, parameterization, trace, solver):
    """([n] z, start, [n] probes) -> LogDensity, compiled."""
    model = build(oracle, path, parameterization)
    prior = model.prior(EMPTY)
    field = likelihood.batched_field(model.ode_drift, trace)

    def one(z, start, probes):
        return likelihood.integrate(
            field(EMPTY, Context(), probes),
            z,
            num_probes=len(probes),
            start=start,
            prior=prior,
            solver=solver,
        )

    return jax.jit(jax.vmap(one, in_axes=(0, None, 0)))


def start_of(path: Any, dequantization: Any):
    """Coefficients and time at which the ODE starts."""
    gamma = max(WIDE[0], dequantization.start_gamma)
    gamma_0 = jnp.full((1, 1, 1, 1), gamma)
    at = coefficients(path, gamma_0, jnp.full_like(gamma_0, WIDE[1] - WIDE[0]))
    return at, jnp.float32((gamma - WIDE[0]) / (WIDE[1] - WIDE[0]))


@functools.cache
def prepare_program(oracle, path, dequantization, trace):
    """(images, keys of the noise, keys of the probes) -> Dequantized, probes; compiled."""
    at, _ = start_of(PATHS.build(PATHS.spec(path)), dequantization)
    one = jax.tree.map(lambda a: a[0], at)
    num_levels = ORACLES[oracle].num_levels

    def prepare(images, noise_keys, probe_keys):
        e = jax.vmap(lambda key, x: dequantization.draw(key, x, one, num_levels))(noise_keys, images)
        probes = jax.vmap(lambda key: trace.draw(key, SHAPE))(probe_keys)
        return dequantization(images, e, at, num_levels), probes

    return jax.jit(prepare)


def score(
    levels,
    dequantization,
    *,
    oracle,
    path,
    trace,
    parameterization="velocity",
    solver=DEFAULT,
    num_samples=1,
    seed=0,
):
    """Scored samples of levels [n, d]. Any n and num_samples of the same product share a program."""
    n, total = len(levels), len(levels) * num_samples
    at, start = start_of(PATHS.build(PATHS.spec(path)), dequantization)
    images = jnp.asarray(np.repeat(levels, num_samples, axis=0), jnp.uint8).reshape(total, *SHAPE)
    keys = jax.random.split(jax.random.key(seed), (2, total))
    dequantized, probes = prepare_program(oracle, path, dequantization, trace)(images, *keys)
    result = density_program(oracle, path, parameterization, trace, solver)(dequantized.z, start, probes)
    log_p = np.asarray(result.prior, np.float64)[:, None] + np.asarray(result.trace, np.float64)
    rest = np.asarray(dequantized.log_decoder, np.float64) - np.asarray(dequantized.log_q, np.float64)
    log_w = (log_p + rest[:, None]).reshape(n, num_samples, -1)
    z = np.asarray(dequantized.z, np.float64).reshape(total, NUM_DIMS)
    known = ORACLES[oracle].log_density(
        z, *oracles.ALPHA_SIGMA[path](np.asarray(at.gamma, np.float64).ravel())
    )
    return Scored(
        log_w[..., 0],
        log_w[..., 1:],
        (log_p[:, 0] - known).reshape(n, num_samples),
        np.asarray(result.evaluations).reshape(n, num_samples),
        bool(np.all(result.ok)),
    )


def excess(bound, log_probability):
    """[n] bits/dim of a bound on log P(x) [n] above the truth."""
    return (log_probability - bound) / (NUM_DIMS * np.log(2))


def gap(oracle, name):
    """Bits/dim by which the bound of one sample exceeds -log P(x), but for the solver's error."""
    if name == "truncated_normal":
        # p(z_0) is the whole normal, w N(f, sigma_0^2), of which q is what lies in the cell: -log Z.
        return -math.log2(math.erf(math.exp(-WIDE[0] / 2) / 256 / math.sqrt(2)))
    if name == "variational":
        # The decoder's term, by quadrature over eps_0.
        e = np.linspace(-8, 8, 3201)
        nats = oracles.decoder_nats(np.full(e.shape, 100), e, WIDE[0], 256)
        return np.trapezoid(nats * np.exp(-0.5 * e**2), e) / math.sqrt(2 * math.pi) / math.log(2)
    # E_u log p of a slope s within a cell of width w is off by (s w)^2 / 24, and E s^2 = 1 / variance.
    return np.mean((2 / 256) ** 2 / ORACLES[oracle].variance) / 24 / math.log(2)
