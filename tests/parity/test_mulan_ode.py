"""The MuLAN code's probability-flow ODE, replayed: drift, divergence, dequantization, likelihood.

Its likelihood as released is not what the mathematics has:

    1. the start is z_0 / alpha_0 with noise of width e^(gamma_0 / 2), and is taken for z_0
    2. the truncated normal ends at 3 in place of tau = 1 / (256 e^(gamma_0 / 2)), 3.0187 for gamma_0 = -13.3,
       of which it has normaliser and entropy
    3. the prior is N(0, 1), although sigma_1^2 is 0.9933 for gamma_1 = 5
    4. the latent is the noise-free one, and is charged with the KL of a categorical distribution

(1) to (3) are arguments of the library's parts here, (4) is what the library reports as `surrogate`, beside a
bound. Its solver is scipy's RK45, with one step size for all images; what steps it took is not recorded.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import mulan_case, peers, replays
from helpers.replays import ROUNDING, jit, note

from jvdm.core.records import Coefficients, Context, LatentCost
from jvdm.diffusion import dequantization, divergence, likelihood, solvers, subsets
from jvdm.diffusion.gaussian import coefficients
from jvdm.diffusion.normal import Normal
from jvdm.diffusion.parameterizations import Noise, Velocity
from jvdm.evaluation.vlb import for_evaluation

TRUNCATION, NORMALIZER = 3.0, 0.9974613  # of (2)
LEVEL_OFF = 1e-3  # sigma^2 below which its drift in high precision takes e^gamma for sigma^2
DEQUANTIZATIONS = {
    "tn": ("eps", dequantization.TruncatedNormal(analytic_entropy=True)),
    "uniform": ("u", dequantization.UniformReleased()),
}


class Replay(mulan_case.Replay):
    """A case, and its probability-flow ODE with the EMA weights."""

    def __init__(self, case: peers.Case):
        super().__init__(case)
        # Its own mean of gamma: what theirs rounds off there is much less than what the solver's steps do.
        model = peers.mulan_model(case)

        def high_precision(params, z, t, context):
            """Theirs, which is less precise."""
            prediction = self.model.predict(params, z, t, context)
            eps, c = prediction.eps, prediction.coefficients
            sigma = jnp.where(c.sigma**2 < LEVEL_OFF, jnp.exp(0.5 * c.gamma), c.sigma)
            if isinstance(model.parameterization, Noise):
                return 0.5 * c.dgamma_dt * sigma * (eps - sigma * z)
            velocity = Velocity(path=model.path)(c)
            v_hat = (eps - velocity.skip * z) / velocity.scale
            return 0.5 * c.dgamma_dt * c.alpha * sigma * v_hat

        field = likelihood.batched_field(model.ode_drift, divergence.Hutchinson())

        def solve(params, z, context, probe):
            state = z, jnp.zeros(1)
            return solvers.Adaptive(tolerance=1e-5)(field(params, context, probe[None]), state, 0.0, 1.0)

        self.drifts = {
            "": replays.drift_and_divergence(self.model.ode_drift),
            "_highprec": replays.drift_and_divergence(high_precision),
        }
        self.solve = jit(jax.vmap(solve, in_axes=(None, 0, 0, 0)))

    @functools.cached_property
    def at_start(self) -> Coefficients:
        """Of (1): alpha_0 is 1."""
        gamma = jnp.full((1, 1, 1, 1), self.settings["gamma_min"])
        at = coefficients(self.model.path, gamma, jnp.zeros_like(gamma))
        return at._replace(alpha=jnp.ones_like(gamma), sigma=jnp.exp(0.5 * gamma))

    def dequantized(self, kind: str, method: Any = None) -> dequantization.Dequantized:
        """The recorded noise, put through a method, by default that of the kind."""
        key, default = DEQUANTIZATIONS[kind]
        noise = self.io[f"lik_{kind}_dequant_{key}"]
        images = self.batch.x[: len(noise)]
        return (method or default)(images, jnp.asarray(noise), self.at_start, self.model.num_levels)

    def evaluated(self, n: int) -> tuple[Context, LatentCost]:
        """What the library conditions on in evaluation, and charges, of the first n images."""
        batch, noise = jax.tree.map(lambda a: a[:n], (self.batch, jnp.asarray(peers.mulan_noise(self.io))))
        return for_evaluation(self.model).encode_latent(self.ema_params, batch, noise)


@pytest.fixture(scope="module", params=peers.cases("mulan"))
def replay(request):
    """One case."""
    with jax.default_matmul_precision("highest"):
        yield Replay(request.param)


@pytest.mark.parametrize("precision", ["", "_highprec"])
def test_drift_and_divergence(replay, check, precision):
    """Theirs in high precision has a sigma that is up to 5e-4 too large where it is small."""
    replay.need(f"ode_drift{precision}")
    io, model = replay.io, replay.model
    z = jnp.asarray(io.get("ode_x", io["score_z"]))
    context, probe = replay.context_of(io["ode_embedding"]), jnp.asarray(io["ode_probe"])
    for i, t in enumerate(io["ode_t"]):
        drift, div, norm = replay.drifts[precision](replay.ema_params, z, context, probe, jnp.asarray(t))
        times = jnp.full((len(z), 1, 1, 1), t)
        c = replay.coefficients_at(times, context)
        # gamma' is a factor of both; k_a z and 1/2 sigma eps_hat nearly cancel where eps_hat is nearly z.
        noise = 3.0 * replay.schedule_noise(times, context)[1] / float(c.dgamma_dt.max())
        part = np.abs(c.dgamma_dt * model.path.dlogalpha_dgamma(c.gamma))
        theirs = io[f"ode_drift{precision}"][i]
        cancelled = 4.0 * ROUNDING * float(jnp.max(part * jnp.abs(z))) / np.abs(theirs).max()
        check(f"drift, t = {t:.1f}", drift[: len(theirs)], theirs, 1e-5 + noise + cancelled)
        # Their divergences cancel too. Errors of 1e-5 of the parts of J v add up as their squares do.
        theirs = io[f"ode_div{precision}"][i]
        off = 2.0 * ROUNDING * part.sum(axis=(1, 2, 3)).max() + 1e-5 * float(norm.max())
        check(f"divergence, t = {t:.1f}", div, theirs, 1e-5 + noise + off / np.abs(theirs).max())


@pytest.mark.parametrize("kind", DEQUANTIZATIONS)
def test_dequantization(replay, check, kind):
    replay.need(f"lik_{kind}_x_start")
    io = replay.io
    dequantized = replay.dequantized(kind)
    check("x_start", dequantized.z, io[f"lik_{kind}_x_start"], 1e-6)
    bits = replay.to_bits_per_dim(dequantized.log_q)
    check("bpd offset", bits, io[f"lik_{kind}_bpd_offset"], 1e-6)
    if kind != "tn":
        return
    eps, sampled = io["lik_tn_dequant_eps"], dequantization.TruncatedNormal()
    _, tau = sampled.bounds(replay.batch.x, replay.at_start, replay.model.num_levels, replay.model.data_map)
    print("released end, and tau:", TRUNCATION, float(tau.max()))
    assert np.abs(eps).max() < TRUNCATION < float(tau.max())
    # It is of eps, and of constants of seven digits.
    log_sigma = jnp.log(jnp.ravel(replay.at_start.sigma))
    log_q_of_eps = replay.dequantized(kind, sampled).log_q + replay.model.num_dims * log_sigma
    assert abs(math.erf(float(tau.max()) / math.sqrt(2.0)) - NORMALIZER) < 1e-7
    check("log q of eps", log_q_of_eps.ravel(), io["lik_tn_log_q_eps"], 1e-6)


@pytest.mark.parametrize("kind", DEQUANTIZATIONS)
def test_latent_and_its_charges(replay, check, kind):
    """What theirs charges is the library's surrogate; the library charges what the k-subset costs."""
    replay.need(f"lik_{kind}_embedding")
    expected = replay.io[f"lik_{kind}_embedding"]
    context, cost = replay.evaluated(len(expected))
    check("latent", context.latent, expected, 4.0 * ROUNDING)
    # The rounding of the logits, as in test_mulan, besides that of the sum.
    check("surrogate", cost.surrogate, replay.io[f"lik_{kind}_aux_kl"], 1e-5 + 100.0 * ROUNDING)
    of_subset = subsets.log_count(replay.settings["latent_size"], replay.settings["latent_k"])
    check("charge", cost.charge, np.full(len(expected), of_subset), ROUNDING)


@pytest.mark.parametrize("kind", DEQUANTIZATIONS)
def test_likelihood(replay, check, kind):
    """With the library's integrator, each image in its own steps, to within the errors that either lets pass.

    For each step these are 1e-5 (1 + |y|) in root mean square, for z and for the integral, which is in nats
    per dimension. Their sum, the former times the gradient of log N(z_1), is what log p may be off.
    """
    replay.need(f"lik_{kind}_x_start")
    io = replay.io
    z_end, delta_logp, log_p, aux_kl, offset, bpd, embedding = (
        io[f"lik_{kind}_{key}"]
        for key in ("z_end", "delta_logp", "log_p", "aux_kl", "bpd_offset", "bpd_per_image", "embedding")
    )
    z, probe = jnp.asarray(io[f"lik_{kind}_x_start"]), jnp.asarray(io[f"lik_{kind}_probe"])
    solution = replay.solve(replay.ema_params, z, replay.context_of(embedding), probe)
    assert np.all(solution.ok)
    z_1, integral = solution.state
    num_dims = replay.model.num_dims
    trace = np.asarray(integral[:, 0], np.float64) * num_dims
    steps = float(np.max(solution.evaluations)) / 6.0  # rejected ones included
    print("evaluations:", solution.evaluations, "theirs:", int(io[f"lik_{kind}_nfe"]))

    rms = np.sqrt(np.mean(z_end**2, axis=(1, 2, 3)))
    of_z = 1e-5 * steps * (1.0 + rms)
    off = np.sqrt(np.mean((np.asarray(z_1, np.float64) - z_end) ** 2, axis=(1, 2, 3)))
    note("z_end, root mean square", off.max())
    assert np.all(off <= of_z)

    of_trace = 1e-5 * steps * (1.0 + np.abs(delta_logp) / num_dims)
    off = np.abs(trace - delta_logp) / num_dims
    note("delta_logp, bits/dim", off.max() / math.log(2.0))
    assert np.all(off <= of_trace)

    prior = jax.vmap(lambda z: Normal(jnp.zeros(()), jnp.zeros(())).log_density(z).sum())(z_1)  # (3)
    ours = np.asarray(prior, np.float64) + trace
    allowed = of_z * rms + of_trace
    off = np.abs(ours - log_p) / num_dims
    note("log_p, bits/dim", off.max() / math.log(2.0))
    assert np.all(off <= allowed)

    (_, cost), log_q = replay.evaluated(len(z)), np.asarray(replay.dequantized(kind).log_q, np.float64)
    bits = (log_q - ours + np.asarray(cost.surrogate, np.float64)) / (num_dims * math.log(2.0))
    note("bpd", np.abs(bits - bpd).max())
    assert np.all(np.abs(bits - bpd) <= 1e-6 + allowed / math.log(2.0))
    # What the released prior and charge amount to, each.
    sigma_1 = replay.model.path.log_sigma(replay.model.ends(replay.ema_params)[1])
    exact = jax.vmap(lambda z: Normal(jnp.zeros(()), sigma_1).log_density(z).sum())(z_1)
    print("bits/dim that the prior of the path changes:", (prior - exact) / (num_dims * math.log(2.0)))
    print("and the valid charge:", (cost.charge - aux_kl) / (num_dims * math.log(2.0)), "offset:", offset)
