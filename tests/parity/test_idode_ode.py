"""The official i-DODE code's probability-flow ODE, replayed: drift, dequantization, likelihood, samples.

Theirs is scipy's RK45, which is Dormand and Prince's method, with one step size for all images; the steps
that it took are recorded. Its state is float64 and the network's input float32; here both are float32. A
solution is a long sum of roundings, and the peers' notes tell how far one carries: a start that is off by one
moves z_1 by 3e-6 and log p by 3e-3 nats. (Cases with an ODE have networks that are damped to that end.)
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import peers, replays
from helpers.replays import ROUNDING, jit, note

from jvdm.core.records import Coefficients, Context
from jvdm.diffusion import dequantization, divergence, likelihood, solvers
from jvdm.diffusion.gaussian import coefficients
from jvdm.diffusion.normal import Normal
from jvdm.diffusion.paths import invert_increasing

# Of their solution whose steps ours takes; the finer one is what ours is compared with in steps of its own.
TOLERANCE = "1e-05"
DEQUANTIZATIONS = {
    "u": lambda decoder, analytic_entropy: dequantization.UniformReleased(),
    "v": lambda decoder, analytic_entropy: dequantization.Variational(
        decoder=decoder, analytic_entropy=analytic_entropy
    ),
    "tn": lambda decoder, analytic_entropy: dequantization.TruncatedNormal(analytic_entropy=analytic_entropy),
}


class Solved(NamedTuple):
    """z_1 [n, h, w, c], and the integral of the divergence [n] in nats; float64."""

    z: np.ndarray
    trace: np.ndarray


class Replay(replays.Replay):
    """A case, and its probability-flow ODE with the EMA weights."""

    def __init__(self, case: peers.Case):
        super().__init__(case, "idode", peers.idode_model(case, prior="path"))
        model, trace = self.model, divergence.Hutchinson()
        self.span = self.settings["gamma_max"] - self.settings["gamma_min"]

        with_trace = likelihood.batched_field(model.ode_drift, trace)
        without = likelihood.batched_field(model.ode_drift, None)

        def step(params, z, context, probe, integral, times):
            field = with_trace(params, context, probe[None])
            return solvers.solve_at(diffrax.Dopri5(), times, field, (z, integral))

        def adaptive(params, z, context, probe, start):
            return likelihood.integrate(
                with_trace(params, context, probe[None]),
                z,
                num_probes=1,
                start=start,
                prior=model.prior(params),
                solver=solvers.Adaptive(tolerance=1e-5),
            )

        def backwards(params, z, context):
            return solvers.Adaptive(tolerance=1e-6)(without(params, context, ()), z, 1.0, 0.0)

        self.drift_and_divergence = replays.drift_and_divergence(model.ode_drift)
        self._step = jit(jax.vmap(step, in_axes=(None, 0, 0, 0, 0, None)), optimize=True)
        self.adaptive = jit(jax.vmap(adaptive, in_axes=(None, 0, 0, 0, None)), optimize=True)
        self.backwards = jit(jax.vmap(backwards, in_axes=(None, 0, 0)), optimize=True)

    def context_of(self, n: int) -> Context:
        """Of the first n images."""
        return jax.tree.map(lambda a: a[:n], self.context)

    def gamma(self, t: Any) -> jax.Array:
        """Of the schedule."""
        return self.model.gamma(self.ema_params, jnp.asarray(t, jnp.float32))

    @functools.cached_property
    def log_sigma_1(self) -> jax.Array:
        """log sigma at time 1."""
        return self.model.path.log_sigma(self.gamma(1.0))

    def times_of(self, gamma: np.ndarray) -> np.ndarray:
        """[n] times in float32 whose gamma is nearest to the given ones.

        float32 has fewer times near 1 than gammas near 0, so they may be off by a rounding of the span.
        """
        target = jnp.asarray(gamma, jnp.float32)
        t = np.asarray(invert_increasing(self.gamma, target, jnp.zeros(()), jnp.ones(())))
        candidates = [t, np.zeros_like(t), np.ones_like(t)]
        for towards in np.float32([-1.0, 2.0]):
            neighbour = t
            for _ in range(3):
                neighbour = np.nextafter(neighbour, towards)
                candidates.append(neighbour)
        near = np.clip(np.stack(candidates), np.float32(0.0), np.float32(1.0))
        off = np.abs(np.asarray(self.gamma(near), np.float64) - np.asarray(gamma))
        return np.take_along_axis(near, off.argmin(axis=0)[None], axis=0)[0]

    @functools.cached_property
    def start(self) -> tuple[jax.Array, Context, jax.Array]:
        """Start state, context and probe of the likelihood."""
        z = jnp.asarray(self.io["lik_x_start"])
        return z, self.context_of(len(z)), jnp.asarray(self.io["lik_probe"], jnp.float32)

    @functools.cached_property
    def solved(self) -> Solved:
        """The solution in the steps that theirs took."""
        z, *rest = self.start
        integral = jnp.zeros((len(z), 1))
        times = self.times_of(self.io[f"lik_tol{TOLERANCE}_t_steps"])
        # Step by step, so that one program serves any number of them.
        for ends in itertools.pairwise(times):
            assert ends[0] < ends[1]
            solution = self._step(self.ema_params, z, *rest, integral, jnp.asarray(ends))
            assert np.all(solution.ok)
            z, integral = solution.state
        nats = np.asarray(integral, np.float64)[:, 0] * self.model.num_dims
        return Solved(np.asarray(z, np.float64), nats)

    def method(self, *, analytic_entropy: bool) -> Any:
        """The case's dequantization."""
        return DEQUANTIZATIONS[self.settings["dequantization"]](self.model.decoder, analytic_entropy)

    def dequantized(self, *, analytic_entropy: bool) -> dequantization.Dequantized:
        """The recorded noise, put through the case's dequantization."""
        noise = self.io["lik_dequant_u" if self.settings["dequantization"] == "u" else "lik_dequant_eps"]
        method = self.method(analytic_entropy=analytic_entropy)
        images = self.batch.x[: len(noise)]
        return method(images, jnp.asarray(noise), self.at_start, self.model.num_levels)

    @functools.cached_property
    def at_start(self) -> Coefficients:
        """Coefficients at the start of the ODE."""
        start_gamma = self.method(analytic_entropy=False).start_gamma
        gamma = jnp.maximum(self.gamma(0.0), start_gamma).reshape(1, 1, 1, 1)
        return coefficients(self.model.path, gamma, jnp.zeros_like(gamma))


@pytest.fixture(scope="module", params=peers.cases("idode"))
def replay(request):
    """One case."""
    with jax.default_matmul_precision("highest"):
        yield Replay(request.param)


def test_drift_and_divergence(replay, check):
    """Ours is per t, theirs per gamma."""
    replay.need("ode_drift")
    io, model = replay.io, replay.model
    z = jnp.asarray(io.get("ode_x", io["score_z"]))
    probe = jnp.asarray(io["ode_probe"], jnp.float32)
    arguments = (replay.ema_params, z, replay.context_of(len(z)), probe)
    for i, t in enumerate(replay.times_of(io["ode_gamma"])):
        drift, div, _ = (
            np.asarray(a, np.float64) for a in replay.drift_and_divergence(*arguments, jnp.asarray(t))
        )
        at = model.time_gamma(replay.ema_params, jnp.asarray([t]))
        slope, gamma = float(at.dgamma_dt.ravel()[0]), float(at.gamma.ravel()[0])
        # If no t has that gamma, the phase of the time embedding, 1000 t, is off.
        tolerance = 1e-5 + 1000.0 * abs(gamma - float(io["ode_gamma"][i])) / replay.span
        # k_a z and 1/2 sigma eps_hat nearly cancel where eps_hat is nearly z: four roundings of either.
        theirs, k_a = io["ode_drift"][i], abs(float(model.path.dlogalpha_dgamma(jnp.float32(gamma))))
        cancelled = 4.0 * ROUNDING * k_a * float(jnp.max(jnp.abs(z))) / np.abs(theirs).max()
        check("drift", drift[: len(theirs)] / slope, theirs, tolerance + cancelled)
        # So do their divergences, k_a D; k_a and sigma are each rounded for all dimensions at once.
        theirs = io["ode_div"][i]
        cancelled = 2.0 * ROUNDING * k_a * model.num_dims / np.abs(theirs).max()
        check("divergence", div[: len(theirs)] / slope, theirs, tolerance + cancelled)


def test_dequantization(replay, check):
    replay.need("lik_x_start")
    io = replay.io
    check("start gamma", replay.at_start.gamma.ravel()[0], io["lik_gamma_span"][0], 1e-6)
    sampled, closed = (replay.dequantized(analytic_entropy=analytic) for analytic in (False, True))
    check("x_start", sampled.z, io["lik_x_start"], 1e-6)
    if "lik_logq_sample" in io:
        check("log q, sampled", sampled.log_q, io["lik_logq_sample"], 1e-6)
        check("log q, analytic", closed.log_q, io["lik_logq_closed"], 1e-6)
    if "lik_recon_logprob" in io:
        eps, draws = jnp.asarray(io["lik_dequant_eps"]), replay.draws()
        draws = draws._replace(eps_0=jnp.zeros_like(draws.eps_0).at[: len(eps)].set(eps))
        nats = 4.0 * replay.reconstruction_rounding(draws) + replay.decoder_scale_rounding(draws)
        tolerance = 1e-5 + nats[: len(eps)].max() / np.abs(io["lik_recon_logprob"]).max()
        check("log p(x | z_0)", sampled.log_decoder, io["lik_recon_logprob"], tolerance)
    if "lik_tau" in io:
        images, levels = replay.batch.x, replay.model.num_levels
        _, high = dequantization.TruncatedNormal().bounds(
            images, replay.at_start, levels, replay.model.data_map
        )
        tau = high.ravel()[0]
        check("tau", tau, io["lik_tau"].reshape(()), 1e-6)
        check(
            "Z of the truncated normal", math.erf(float(tau) / math.sqrt(2.0)), io["lik_Z"].reshape(()), 1e-6
        )


def test_likelihood_in_their_steps(replay, check):
    replay.need("lik_x_start")
    z_end, delta_logp, prior_logp, bpd = (
        replay.io[f"lik_tol{TOLERANCE}_{key}"] for key in ("z_end", "delta_logp", "prior_logp", "bpd")
    )
    num_dims, solved = replay.model.num_dims, replay.solved
    # Every step and every evaluation is rounded, in either code: four kicks' worth, of which most come too
    # late to be amplified. Measured: about one.
    z_tolerance = 4.0 * 3e-6 / np.abs(z_end).max()
    check("z_end", solved.z, z_end, z_tolerance)

    # The divergence is k_a D and the network's part, which nearly cancel if eps_hat is nearly z: sixteen
    # roundings of both integrals. The first is D log(alpha_1 / alpha_0).
    alpha_1, _ = replay.model.path.alpha_sigma(replay.gamma(1.0))
    size = num_dims * abs(math.log(float(alpha_1))) + np.abs(delta_logp).max()
    nats = 4.0 * 3e-3 + 16.0 * ROUNDING * size
    note("delta_logp, nats", np.abs(solved.trace - delta_logp).max())
    check("delta_logp", solved.trace, delta_logp, nats / np.abs(delta_logp).max())

    z_1 = jnp.asarray(solved.z, jnp.float32)
    prior = jax.vmap(lambda z: Normal(jnp.zeros(()), replay.log_sigma_1).log_density(z).sum())(z_1)
    # A sum of squares of z, most of whose deviations are of random sign.
    check("prior_logp", prior, prior_logp, 1e-6 + z_tolerance)

    dequantized = replay.dequantized(analytic_entropy=True)
    prior, log_decoder, log_q = (
        np.asarray(a, np.float64) for a in (prior, dequantized.log_decoder, dequantized.log_q)
    )
    scale = 1.0 / (num_dims * math.log(2.0))
    bits = -scale * (prior + solved.trace + log_decoder - log_q)
    nats += (1e-6 + z_tolerance) * np.abs(prior_logp).max() + 1e-6 * np.abs(log_q).max()
    check("bpd", bits, bpd, 1e-6 + scale * nats / bpd.max())


def test_likelihood_in_our_steps(replay):
    """The default solver against their finest, to within the errors that its step control lets pass.

    For each step these are 1e-5 (1 + |y|) in root mean square, for z and for the integral, which is in nats
    per dimension. Their sum, the former times the gradient of log N(z_1), is what log p may be off.
    """
    replay.need("lik_x_start")
    io = replay.io
    (t,) = replay.times_of(io["lik_gamma_span"][:1])
    result = replay.adaptive(replay.ema_params, *replay.start, jnp.asarray(t))
    assert np.all(result.ok)
    trace, prior = np.asarray(result.trace[:, 0], np.float64), np.asarray(result.prior, np.float64)
    theirs = io["lik_tol1e-07_prior_logp"] + io["lik_tol1e-07_delta_logp"]
    off = (prior + trace - theirs) / replay.model.num_dims
    rms = np.sqrt(np.mean(io["lik_tol1e-07_z_end"] ** 2, axis=(1, 2, 3)))
    steps = np.asarray(result.evaluations) // 6  # rejected ones included
    of_trace = 1.0 + np.abs(trace) / replay.model.num_dims
    of_prior = (1.0 + rms) * rms * math.exp(-2.0 * float(replay.log_sigma_1))
    allowed = 1e-5 * steps * (of_trace + of_prior)
    print("steps:", steps, "off, bits/dim:", off / math.log(2.0), "allowed:", allowed / math.log(2.0))
    assert np.all(np.abs(off) <= allowed)


def test_samples(replay):
    """Theirs lets 1e-5 (1 + |z|) pass in each step, in root mean square; ours a tenth."""
    replay.need("odesamp_z")
    io = replay.io
    z_1 = jnp.asarray(io["odesamp_z"]) * jnp.exp(replay.log_sigma_1)
    solution = replay.backwards(replay.ema_params, z_1, replay.context_of(len(z_1)))
    assert np.all(solution.ok)
    theirs = io["odesamp_x_end"].astype(np.float64)
    off = np.sqrt(np.mean((np.asarray(solution.state, np.float64) - theirs) ** 2))
    steps = int(io["odesamp_nfe"]) / 6
    note("end of a sample, root mean square", off)
    assert off <= 1e-5 * steps * (1.0 + np.sqrt(np.mean(theirs**2)))
