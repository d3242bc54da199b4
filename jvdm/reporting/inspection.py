"""Plots of the noise schedule that a model has learned, one for all pixels or one per pixel."""

import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvdm.core.keys import indexed, root_key
from jvdm.core.records import Batch, take
from jvdm.core.shapes import expand
from jvdm.model import Model
from jvdm.reporting import images as image_lib
from jvdm.reporting import pixel_plots, plots
from jvdm.runs.workdir import Workdir

NUM_TIMES = 101
NUM_LATENTS = 4


def plot_schedule(
    model: Model, params: Any, examples: Batch, workdir: Workdir, *, suffix: str = ""
) -> list[pathlib.Path]:
    """Plots gamma(t) as `plots/schedule.png`; per-pixel ones of images also as
    `plots/pixel_schedules.png`.

    Args:
        model: of any kind.
        params: its parameters.
        examples: N images; the second picture shows the schedules for the latents of the first few.
        workdir: the pictures are written there.
        suffix: of their names; without one they are those of the present state of the run.

    Returns:
        The pictures.
    """
    t = np.linspace(0.0, 1.0, NUM_TIMES, dtype=np.float32)
    if model.schedule.gamma_min == -math.inf:
        t = t[1:]  # there is no noise at time 0
    params = jax.device_get(params)
    picture = workdir.plots / f"schedule{suffix}.png"
    if not model.per_pixel:
        at = jax.device_get(model.time_gamma(params, jnp.asarray(t)))
        gamma, dgamma_dt = (np.ravel(a) for a in at)
        plots.schedule(t, gamma, picture, dgamma_dt=dgamma_dt)
        return [picture]
    shown = take(examples, slice(NUM_LATENTS))
    gamma = pixel_gammas(model, params, shown, t)
    # The derivative of a mean over pixels and latents, by finite differences.
    plots.schedule(t, gamma.mean(axis=tuple(i for i in range(gamma.ndim) if i != 1)), picture)
    if len(model.data_shape) != 3:
        return [picture]
    pixels = workdir.plots / f"pixel_schedules{suffix}.png"
    pictures = [image_lib.grid(x[None], num_levels=model.num_levels, pad=0) for x in np.asarray(shown.x)]
    pixel_plots.pixel_schedules(t, gamma, pictures, pixels)
    return [picture, pixels]


def pixel_gammas(model: Model, params: Any, examples: Batch, t: np.ndarray) -> np.ndarray:
    """The gamma of every pixel, for one sample of each image's latent.

    Args:
        model: one with a per-pixel schedule.
        params: its parameters.
        examples: N images.
        t: [T] times.

    Returns:
        [N, T, h, w, c].
    """
    num_images = len(examples.x)
    keys = indexed(root_key(0, "plot"), jnp.arange(num_images))
    noise = jax.vmap(model.latent.draw)(keys)

    @jax.jit
    def gammas(params, batch, noise):
        context, _ = model.encode_latent(params, batch, noise)
        times = jnp.broadcast_to(jnp.asarray(t)[:, None], (len(t), num_images))
        times = expand(times, len(model.data_shape))
        return model.gamma(params, times, context)

    return np.moveaxis(jax.device_get(gammas(params, examples, noise)), 0, 1)
