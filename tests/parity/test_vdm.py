"""The official VDM code's numbers, replayed: same weights and draws, hence the same outputs.

Both sides compute in float32, in different orders of operations, so each tolerance is a multiple of
float32's rounding (6e-8) times how far the quantity amplifies it. They bound

    |ours - theirs|_max / |theirs|_max

except where said otherwise. What decides is the phase of the Fourier features: 2 pi 2^7 z moves by
800 times the rounding of z, and with it the network's output. Where a quantity is a difference of
near-equal numbers, the tolerance grows by the cancellation, which is computed. `pytest -rP` shows
every deviation.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import peers, replays
from helpers.replays import ROUNDING, per_image

from jvdm.diffusion import losses, samplers, transforms

SAMPLE_STEP = re.compile(r"sample_i(\d+)_eps")


@pytest.fixture(scope="module", params=peers.cases("vdm"))
def replay(request):
    """One case."""
    with jax.default_matmul_precision("highest"):
        yield replays.Replay(request.param, "vdm", peers.vdm_model(request.param))


def test_step_and_weights_are_the_checkpoints(replay):
    replays.check_weights(replay)


# The output sums hundreds of products per layer over some ten layers: a few tens of roundings, most of
# them random. Measured: 4e-7 at 32 channels, 1.6e-6 at 64.
@pytest.mark.parametrize("weights", ["ema_params", "params"])
def test_network_output(replay, check, weights):
    ours = replay.output(
        getattr(replay, weights),
        jnp.asarray(replay.io["score_z"]),
        per_image(replay.io["score_g"]),
        replay.context,
    )
    key = "score_eps_hat" if weights == "ema_params" else "score_eps_hat__params"
    check(f"network output, {weights}", ours, replay.io[key], 1e-5)


def test_schedule(replay, check):
    at = replay.model.time_gamma(replay.ema_params, jnp.asarray(replay.io["gamma_t"]))
    check("gamma", at.gamma.ravel(), replay.io["gamma"], 1e-6)
    check("dgamma_dt", at.dgamma_dt.ravel(), replay.io["dgamma_dt"], 1e-6)


def test_variances_at_the_ends(replay, check):
    variance = replay.coefficients([0.0, 1.0]).sigma.ravel() ** 2
    # d sigma^2 / sigma^2 is d gamma at gamma_0, about -13: its rounding is 13 times as large.
    check("var_0", variance[0], replay.io["var_0"].reshape(()), 1e-5)
    check("var_1", variance[1], replay.io["var_1"].reshape(()), 1e-6)


def test_times_gamma_and_noised_data(replay, check):
    draws = replay.draws()
    t = replay.model.times(draws.u).t
    c = replay.coefficients(t)
    f = losses.encode(replay.batch.x, replay.model.num_levels)
    check("t", t, replay.io["loss_t"], 1e-6)
    check("gamma_t", c.gamma.ravel(), replay.io["loss_g_t"], 1e-6)
    check("z_t", c.alpha * f + c.sigma * draws.eps, replay.io["loss_z_t"], 1e-6)


def test_network_output_inside_the_loss(replay, check):
    ours = replay.output(
        replay.ema_params,
        jnp.asarray(replay.io["loss_z_t"]),
        per_image(replay.io["loss_g_t"]),
        replay.context,
    )
    check("network output in the loss", ours, replay.io["loss_eps_hat"], 1e-5)


def cancellation(replay) -> float:
    """Relative rounding of gamma_t - gamma_s for times 1/T apart; 0 in continuous time.

    gamma and t are rounded in both terms and by both codes: eight roundings.
    """
    steps = replay.model.timesteps
    if not steps:
        return 0.0
    ends = np.abs([replay.settings["gamma_min"], replay.settings["gamma_max"]])
    slope = np.abs(replay.io["dgamma_dt"]).min()
    return float(8.0 * ROUNDING * max(ends.max(), slope) / (slope / steps))


def test_weight_of_the_diffusion_loss(replay, check):
    t = replay.model.times(replay.draws().u).t
    at, steps = replay.coefficients(t), replay.model.timesteps
    if steps:
        weight = 0.5 * steps * jnp.expm1(at.gamma - replay.coefficients(t - 1.0 / steps).gamma)
    else:
        weight = 0.5 * at.dgamma_dt
    check("loss weight", weight.ravel(), replay.io["loss_weight"], 1e-6 + cancellation(replay))


def test_loss_terms_of_each_image(replay, check):
    terms, io = replay.terms, replay.io
    recon_rounding = replay.reconstruction_rounding(replay.draws()).max()
    tolerance = 1e-5 + 4.0 * recon_rounding / io["loss_recon"].max()
    check("loss_recon", terms.reconstruction, io["loss_recon"], tolerance)
    check("loss_klz", terms.prior, io["loss_klz"], 1e-6 + replay.prior_rounding() / io["loss_klz"].max())
    # The network's output squared and summed, twice its tolerance.
    check("loss_diff", terms.diffusion, io["loss_diff"], 2e-5 + cancellation(replay))


def test_training_loss(replay, check):
    replay.skip_dropout()
    loss, terms, _ = replay.training
    io, bits = replay.io, [replay.to_bits_per_dim(term) for term in terms.parts().values()]
    check("train bpd", loss, io["train_bpd"], 2e-5 + cancellation(replay))
    recon_rounding = replay.reconstruction_rounding(replay.draws("train_"))
    tolerance = 1e-5 + 4.0 * replay.to_bits_per_dim(recon_rounding) / io["train_bpd_recon"]
    check("train bpd, reconstruction", bits[0], io["train_bpd_recon"], tolerance)
    tolerance = 1e-6 + replay.to_bits_per_dim(replay.prior_rounding()) / io["train_bpd_latent"]
    check("train bpd, prior", bits[1], io["train_bpd_latent"], tolerance)
    check("train bpd, diffusion", bits[2], io["train_bpd_diff"], 2e-5 + cancellation(replay))


def test_gradient_of_every_leaf(replay):
    replay.skip_dropout()
    replays.check_gradient(replay, 2e-6 + cancellation(replay))


def test_first_optimizer_step(replay):
    replay.skip_dropout()
    replays.check_optimizer_step(replay, 2e-6 + cancellation(replay))


def test_ancestral_steps(replay, check):
    """Theirs takes sigma_s^2 = 1 - s(-gamma_s), which near s = 0 is 1e-6 with a rounding of 1e-7."""
    steps = int(replay.io["sample_T"])
    indices = [int(m[1]) for key in replay.io if (m := SAMPLE_STEP.fullmatch(key))]
    assert indices
    sampler = samplers.Ancestral(clip=False)
    z_t = jnp.asarray(replay.io["sample_z_t"])
    for i in indices:
        t, s = (jnp.full(z_t.shape[0], (steps - i - j) / steps, jnp.float32) for j in (0, 1))
        at_s = replay.coefficients(s)
        at_t = replay.coefficients(t)
        out = replay.output(replay.ema_params, z_t, at_t.gamma, replay.context)
        prediction = replay.model.parameterization(at_t).predict(out, z_t, at_t)
        noise, theirs = (replay.io[f"sample_i{i}_{key}"] for key in ("eps", "z_s"))
        where = replay.step_to(at_s, 1.0 / steps)
        z_s = sampler.step(prediction, z_t, jnp.asarray(noise), where)
        # The scale of the noise is at most sigma_s; d sigma_s = d sigma_s^2 / (2 sigma_s).
        rounding = 2.0 * ROUNDING / (2.0 * float(at_s.sigma.min())) * np.abs(noise).max()
        check(f"ancestral step {i}", z_s, theirs, 1e-6 + rounding / np.abs(theirs).max())


def test_decoded_levels(replay):
    c, levels = replay.coefficients([0.0]), replay.model.num_levels
    z_0 = jnp.asarray(replay.io["gen_z_0"])
    nearest = transforms.nearest_level(z_0 / c.alpha, levels)
    logits = losses.decoder_logits(z_0, c.alpha, c.gamma, levels)
    replays.check_levels({"nearest": nearest, "argmax": jnp.argmax(logits, axis=-1)}, replay, z_0)
