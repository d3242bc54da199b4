"""Configs of models with every latent, small enough for tests, and draws of theirs."""

import functools

import jax
import jax.numpy as jnp

from helpers import tiny
from jvdm.core.records import Batch
from jvdm.diffusion.latents import LATENTS
from jvdm.diffusion.per_pixel_schedules import SCHEDULES
from jvdm.networks import NETWORKS
from jvdm.networks.encoders import ENCODERS

M, K, B = 6, 2, 4
LATENT_SPECS = {
    "gaussian": LATENTS.spec("gaussian", size=M),
    "gumbel": LATENTS.spec("gumbel", size=M),
    "k_subset": LATENTS.spec("k_subset", size=M, k=K),
    "reinforce": LATENTS.spec("k_subset", size=M, k=K, gradient="reinforce"),
    "k_hot_surrogate": LATENTS.spec("k_hot_surrogate", size=M, k=K),
}
NAMES = sorted(LATENT_SPECS)


def config(name, schedule="polynomial", **training):
    """A network and an encoder that compile in no time; the latent is by name."""
    c = tiny.config(**training).unlock()
    small = {"hidden": 8} if "hidden" in SCHEDULES.options(schedule) else {}
    c.schedule = SCHEDULES.spec(schedule, gamma_min=-7.0, gamma_max=5.0, **small)
    c.network = NETWORKS.spec("mlp", hidden=16, num_layers=1, time_features=8)
    c.encoder = ENCODERS.spec("cnn", channels=4, num_layers=2)
    c.latent = LATENT_SPECS[name]
    return c


@functools.cache
def setting(name, schedule="polynomial"):
    """(model, parameters away from their initial zeros)"""
    model = tiny.model(config(name, schedule))
    return model, tiny.perturbed(jax.jit(model.init)(jax.random.key(0)), scale=0.3)


def batch(seed=0, b=B):
    """Images that are noise."""
    return Batch(jnp.asarray(tiny.images(b, seed)))


@functools.partial(jax.jit, static_argnums=0)
def _draw(model, keys, u):
    return model.draw(keys, u)


def draws_of(model, b=B, seed=1):
    """The first b of any number of draws."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), jnp.arange(b))
    return _draw(model, keys, (jnp.arange(b, dtype=jnp.float32) + 0.3) / B)
