"""The MuLAN code's numbers, replayed: weights, encoder, schedule of every pixel, loss, gradient, samples.

Its latents are in `test_mulan_latents`, its ODE in `test_mulan_ode`. Tolerances as in `test_vdm` and
`test_idode`: multiples of float32's rounding times the amplification.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import mulan_case, peers, replays
from helpers.replays import ROUNDING, note, per_image

from jvdm.diffusion import losses, samplers, transforms
from jvdm.diffusion.gaussian import coefficients
from jvdm.diffusion.parameterizations import Velocity

CSAMPLE_STEP = re.compile(r"csample_i(\d+)_eps")


@pytest.fixture(scope="module", params=peers.cases("mulan"))
def replay(request):
    """One case."""
    with jax.default_matmul_precision("highest"):
        yield mulan_case.Replay(request.param)


def test_step_and_weights_are_the_checkpoints(replay):
    replays.check_weights(replay)


def test_the_networks_conditioning_is_not_theirs(replay):
    kernel = replay.imported.params["network"]["condition1"]["kernel"]
    assert not kernel[-replay.settings["latent_size"] - 1].any()
    assert kernel[-replay.settings["latent_size"]].any()


# As in test_vdm. Measured: 5e-7 at 32 channels, 8e-7 at 64 and of every pixel's gamma.
@pytest.mark.parametrize("weights", ["ema_params", "params"])
def test_network_output(replay, check, weights):
    io, context = replay.io, replay.context_of(replay.io["score_cond"])
    z, gamma = jnp.asarray(io["score_z"]), replay.gamma_like_data("score_g")
    out = replay.output(getattr(replay, weights), z, gamma, context)
    key = "score_out" if weights == "ema_params" else "score_out__params"
    check(f"network output, {weights}", out, io[key], 1e-5)


# Layers as of the network, and one more of a thousand terms. Measured: 2e-6.
@pytest.mark.parametrize("weights", ["ema_params", "params"])
def test_encoder_output(replay, check, weights):
    io, suffix = replay.io, "" if weights == "ema_params" else "__params"
    logits = replay.encode(getattr(replay, weights), replay.batch)
    if replay.settings["latent_type"] != "gaussian":
        check(f"logits, {weights}", logits, io[f"enc_logits{suffix}"], 1e-5)
        return
    mean, raw = jnp.split(logits, 2, axis=-1)
    check(f"mean, {weights}", mean, io[f"enc_mu{suffix}"], 1e-5)
    if not suffix:
        check("variance", jax.nn.softplus(raw), io["enc_var"], 1e-5)


def check_schedule(replay, check, t, context, expected):
    """gamma and its derivative; where their polynomial is a small rest of large terms, by a kick's worth."""
    ours = replay.schedule(replay.ema_params["schedule"], t, context)
    noise = replay.schedule_noise(t, context)
    for name, a, theirs, off in zip(("gamma", "dgamma_dt"), ours, expected, noise, strict=True):
        check(name, a, theirs, 1e-6 + 3.0 * off / np.abs(theirs).max())


def test_schedule_of_every_pixel(replay, check):
    io = replay.io
    t = jnp.asarray(io["gamma_t"])[:, None, None, None, None]
    context = replay.context_of(io["latent_embedding"][: io["gamma"].shape[1]])
    check_schedule(replay, check, t, context, (io["gamma"], io["dgamma_dt"]))


def test_variances_at_the_ends(replay, check):
    """Theirs is a mean over all pixels of all images, one number added after another: a rounding of each."""
    variance = np.asarray(replay.coefficients([0.0, 1.0]).sigma) ** 2
    for name, ours in zip(("var_0", "var_1"), variance, strict=True):
        theirs = np.broadcast_to(replay.io[name], ours.shape)
        check(name, ours, theirs, 1e-5 + replay.io["images"].size * ROUNDING)


def test_times_gamma_and_noised_data(replay, check):
    io, draws = replay.io, replay.draws()
    t = replay.model.times(draws.u).t
    check("t", t, io["loss_t"], 1e-6)
    check_schedule(replay, check, per_image(t), replay.context, (io["loss_g_t"], io["loss_dgamma_dt"]))
    alpha, sigma = replay.model.path.alpha_sigma(jnp.asarray(io["loss_g_t"]))
    f = losses.encode(replay.batch.x, replay.model.num_levels)
    check("z_t", alpha * f + sigma * draws.eps, io["loss_z_t"], 1e-6)


def test_inside_the_loss(replay, check):
    """At the recorded z_t, so that its rounding is not carried into the network."""
    io, model = replay.io, replay.model
    z, gamma = (jnp.asarray(io[f"loss_{key}"]) for key in ("z_t", "g_t"))
    out = replay.output(replay.ema_params, z, gamma, replay.context)
    check("network output in the loss", out, io["loss_net_out"], 1e-5)
    if "loss_v_hat" not in io:
        return
    c = coefficients(model.path, gamma, jnp.asarray(io["loss_dgamma_dt"]))
    relation, velocity = model.parameterization(c), Velocity(path=model.path)(c)
    f = losses.encode(replay.batch.x, model.num_levels)
    # Theirs computes v from the network's eps as a difference of e^(gamma / 2), 1 / alpha, times z and eps.
    v_hat = (relation.to_eps(out, z) - velocity.skip * z) / velocity.scale
    check("v_hat, times alpha", c.alpha * v_hat, c.alpha * io["loss_v_hat"], 1e-5)
    check("v", velocity.target(f, replay.draws().eps), io["loss_v_target"], 1e-6)


def tolerance_of(noise: np.ndarray, of: np.ndarray, relative: float) -> float:
    """Relative, and three kicks' worth: where inputs are not damped, 800 roundings of z_t are a phase."""
    return relative + 3.0 * float(np.max(noise) / np.max(of))


def rounding_of_times(replay) -> float:
    """Relative rounding of t - s for times 1/T apart, each rounded by both codes; 0 in continuous time."""
    return 4.0 * ROUNDING * replay.model.timesteps


def test_loss_terms_of_each_image(replay, check):
    """From the images and the draws alone: encoder, latent, schedule, network."""
    terms, noise, io = replay.terms, replay.terms_noise, replay.io
    recon_rounding = replay.reconstruction_rounding(replay.draws()).max()
    tolerance = 1e-5 + 4.0 * recon_rounding / io["loss_recon"].max()
    check("loss_recon", terms.reconstruction, io["loss_recon"], tolerance)
    theirs = io["loss_klz_prior_part"]
    check("prior", terms.prior, theirs, 1e-6 + replay.prior_rounding() / theirs.max())
    check("latent", terms.latent, io["latent_kl"], tolerance_of(noise.latent, io["latent_kl"], 1e-5))
    both = tolerance_of(noise.latent + replay.prior_rounding(), io["loss_klz"], 1e-5)
    check("loss_klz", terms.prior + terms.latent, io["loss_klz"], both)
    tolerance = tolerance_of(noise.diffusion, io["loss_diff"], 2e-5 + rounding_of_times(replay))
    check("loss_diff", terms.diffusion, io["loss_diff"], tolerance)


def test_training_loss(replay, check):
    replay.skip_dropout()
    loss, terms, _ = replay.training
    noise, io, bits = replay.training_noise, replay.io, replay.to_bits_per_dim
    recon = 4.0 * bits(replay.reconstruction_rounding(replay.draws("train_")))
    tolerance = 1e-5 + recon / io["train_bpd_recon"]
    check("train bpd, reconstruction", bits(terms.reconstruction), io["train_bpd_recon"], tolerance)
    latent, theirs = terms.prior + terms.latent, io["train_bpd_latent"]
    tolerance = tolerance_of(bits(noise.latent + replay.prior_rounding()), theirs, 1e-5)
    check("train bpd, prior and latent", bits(latent), theirs, tolerance)
    relative = 2e-5 + rounding_of_times(replay)
    tolerance = tolerance_of(bits(noise.diffusion), io["train_bpd_diff"], relative)
    check("train bpd, diffusion", bits(terms.diffusion), io["train_bpd_diff"], tolerance)
    check("train bpd", loss, io["train_bpd"], tolerance)


def test_gradient_of_every_leaf(replay):
    replay.skip_dropout()
    replays.check_gradient(replay, 2e-6 + rounding_of_times(replay))


def test_first_optimizer_step(replay):
    replay.skip_dropout()
    replays.check_optimizer_step(replay, 2e-6 + rounding_of_times(replay))


def test_conditional_samples(replay, check):
    """Theirs takes a network of eps whose loss is of v for one of v when it samples; so does this test."""
    io, model = replay.io, replay.model
    steps = int(io["csample_T"])
    indices = [int(m[1]) for key in io if (m := CSAMPLE_STEP.fullmatch(key))]
    assert indices
    from_noise = replay.settings["velocity_from_epsilon"]
    context = replay.context_of(io["ode_embedding"])
    z_t = jnp.asarray(io.get("csample_z_t", io["score_z"]))
    differ = []  # pixels that another meaning would change, by step
    for i in indices:
        t, s = (jnp.full((len(z_t), 1, 1, 1), (steps - i - j) / steps) for j in (0, 1))
        at_t, at_s = (replay.coefficients_at(a, context) for a in (t, s))
        out = replay.output(replay.ema_params, z_t, at_t.gamma, context)
        noise, theirs = (io[f"csample_i{i}_{key}"] for key in ("eps", "z_s"))
        where = replay.step_to(at_s, 1.0 / steps, context)
        parameterization = Velocity(path=model.path) if from_noise else model.parameterization
        prediction = parameterization(at_t).predict(out, z_t, at_t)
        z_s = samplers.Ancestral(clip=False).step(prediction, z_t, jnp.asarray(noise), where)
        off = np.abs(np.asarray(z_s, np.float64) - theirs)
        tolerance = 1e-6 * np.abs(theirs).max() + step_rounding(
            replay, at_s, t, s, context, noise, prediction
        )
        note(f"ancestral step {i}, part of tolerance", np.max(off / tolerance))
        assert np.all(off <= tolerance)
        if from_noise:
            prediction = model.parameterization(at_t).predict(out, z_t, at_t)
            right = samplers.Ancestral(clip=False).step(prediction, z_t, jnp.asarray(noise), where)
            differ.append(np.mean(np.abs(right - theirs) > tolerance))
    assert not from_noise or max(differ) > 0.5


def step_rounding(replay, at_s, t, s, context, noise, prediction) -> np.ndarray:
    """How far the rounding of gamma_s and gamma_t moves z_s, elementwise.

    c = -expm1(gamma_s - gamma_t) is off by that of both, and sqrt(c) by up to its root where a pixel's gamma
    hardly grows. Theirs has sigma_s^2 = 1 - s(-gamma_s), with a rounding of 1, as in test_vdm.
    """
    at_t = prediction.coefficients
    ends = np.abs([replay.settings["gamma_min"], replay.settings["gamma_max"]]).max()
    d = sum(1e-6 * ends + 3.0 * replay.schedule_noise(a, context)[0] for a in (t, s))
    c = -np.expm1(np.asarray(at_s.gamma - at_t.gamma, np.float64))
    root = np.minimum(np.sqrt(d), d / (2.0 * np.sqrt(np.maximum(c, 1e-12))))
    of_sigma = 2.0 * ROUNDING / (2.0 * np.asarray(at_s.sigma)) * np.sqrt(c)
    mean = np.asarray(at_s.alpha / at_t.alpha * at_t.sigma) * np.abs(prediction.eps)
    return np.abs(noise) * (np.asarray(at_s.sigma) * root + of_sigma) + d * mean


def test_decoded_levels(replay):
    c, levels = replay.coefficients([0.0]), replay.model.num_levels
    z_0 = jnp.asarray(replay.io["gen_z_0"])
    nearest = transforms.nearest_level(z_0 / c.alpha, levels)
    logits = losses.decoder_logits(z_0, c.alpha, c.gamma, levels)
    replays.check_levels({"nearest": nearest, "argmax": jnp.argmax(logits, axis=-1)}, replay, z_0)
