"""Recorded numbers of MuLAN's latents: from the encoder's output and the draws to value and charge.

Tolerances are multiples of float32's rounding, 6e-8, and bound |ours - theirs|_max / |theirs|_max.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.peers import cases, mulan_latent, mulan_logits, mulan_noise
from helpers.replays import ROUNDING

from jvdm.diffusion.k_hot_surrogate import PERTURBATIONS, KHotSurrogate, direction
from jvdm.diffusion.latents import Gaussian


@pytest.fixture(params=cases("mulan"))
def case(request):
    return request.param


def step_of(io):
    """The step of the recorded temperature, if there is one."""
    return (
        jnp.asarray(-1e5 * np.log(np.float64(io["latent_tau"])), jnp.float32) if "latent_tau" in io else None
    )


def test_value_and_charge(case, check):
    io, latent = case.io, mulan_latent(case)
    logits, noise = jnp.asarray(mulan_logits(io)), jnp.asarray(mulan_noise(io))
    assert logits.shape[1] == latent.num_logits
    value, charge, _ = latent.sample(logits, noise, step_of(io))
    # Theirs is (hard - soft) + soft, which may be a rounding away from 0 and 1; ours is 0 and 1.
    check("value", value, io["latent_embedding"], 4 * ROUNDING)
    if "latent_khot" in io:
        check("k-hot", value, io["latent_khot"], 0.0)
    # A sum of m terms, of which some are negative: it is 20 to 100 times smaller than they are.
    check("charge", charge, io["latent_kl"], 100 * ROUNDING)
    assert latent.is_bound == (case.config["model"]["latent_type"] != "topk")


def test_what_has_the_gradient(case, check):
    """The relaxed value, and the noise it is made with."""
    io, latent = case.io, mulan_latent(case)
    if isinstance(latent, Gaussian):
        assert "latent_soft" not in io
        return
    noise = jnp.asarray(mulan_noise(io))
    if isinstance(latent, KHotSurrogate):
        noise = PERTURBATIONS[latent.noise].total(noise, latent.k)
        soft = direction(jnp.asarray(mulan_logits(io)) + noise)
        if "latent_noise_total" in io:
            check("noise", noise, io["latent_noise_total"], 8 * ROUNDING)
    else:
        tau = latent.temperature(step_of(io))
        check("temperature", tau, io["latent_tau"], 4 * ROUNDING)
        soft = jnp.exp((jnp.asarray(mulan_logits(io)) + noise) / tau)
        soft = soft / soft.sum(axis=1, keepdims=True)
    check("soft", soft, io["latent_soft"], 32 * ROUNDING)


def test_modes(case, check):
    """What is evaluated: the noise-free top k, and the charge of the sample with it."""
    io, latent = case.io, mulan_latent(case)
    for likelihood in ("lik_tn", "lik_uniform"):
        if f"{likelihood}_embedding" in io:
            expected = io[f"{likelihood}_embedding"]
            logits = jnp.asarray(mulan_logits(io))[: len(expected)]
            check("mode", latent.mode(logits), expected, 4 * ROUNDING)
            charge = latent.sample(logits, jnp.asarray(mulan_noise(io))[: len(expected)]).charge
            check("charge", charge, io[f"{likelihood}_aux_kl"], 100 * ROUNDING)


def test_the_value_that_samples_are_given(case):
    """One for all images: what any value of the latent may be."""
    value, latent = case.io["det_embedding"], mulan_latent(case)
    np.testing.assert_array_equal(value, np.broadcast_to(value[0], value.shape))
    assert value.shape[1] == latent.size
    if not isinstance(latent, Gaussian):
        ones = latent.k if isinstance(latent, KHotSurrogate) else 1
        np.testing.assert_allclose(np.sort(value[0])[::-1], np.arange(latent.size) < ones, atol=4 * ROUNDING)
