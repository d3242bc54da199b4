"""The variational bound of images, n draws each.

1. Image i has its own key, fold_in(root, i), and from it n uniform numbers, one drawn in each of n
   equal intervals, and n sets of noise: its number depends on nothing else, in particular not on
   batch size or device count.
2. Its bound is the mean of its draws. A split's bits/dim is the mean over images, with
   standard error sd(image means) / sqrt(N), which covers both sampling of images and of draws.
3. The Monte-Carlo part of that error is sqrt( sum_i var_i / n ) / N, with var_i the variance of
       image i's draws about their curve in time (`record.stratified_error`).
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jvdm import sharding
from jvdm.errors import UserError
from jvdm.evaluation.passes import Batches, Rows
from jvdm.model import Model
from jvdm.records import Batch
from jvdm.time_densities import UniformDensity
from jvdm.time_samplers import jittered
from jvdm.training.objective import bits_per_dim

Params = Any


def for_evaluation(model: Model, timesteps: int | None = None) -> Model:
    """The model computing in float32, with T of the bound to evaluate (None keeps the model's)."""
    timesteps = model.timesteps if timesteps is None else timesteps
    return dataclasses.replace(
        model,
        network=model.network.clone(dtype="float32"),
        timesteps=timesteps,
        time_density=UniformDensity() if timesteps else model.time_density,
    )


class VLB:
    """The compiled variational bound.

    Its rows are the terms and `gamma`, the schedule at the drawn times (its mean over pixels), all [N, n].

    Args:
        model: as `for_evaluation` returns it.
        mesh: has a `data` axis.
        batch_size: images at a time.
        draws: n, per image.

    Raises:
        UserError: no draws or no images at a time.
    """

    name: ClassVar[str] = "vlb"
    terms: ClassVar[tuple[str, ...]] = ("reconstruction", "prior", "diffusion")
    shown: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: Model, mesh: Mesh, *, batch_size: int, draws: int):
        if draws < 1:
            raise UserError(f"{draws} draws per image are asked for: give 1 or more")
        self._batches = Batches(mesh, batch_size, "config.eval.batch_size")
        scale = bits_per_dim(model.num_dims)

        def evaluate(params, root_key, images, index):
            batch = Batch(images, jnp.zeros(images.shape[0]))
            image_keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(root_key, index)
            k_time, k_noise = jnp.moveaxis(jax.vmap(jax.random.split)(image_keys), 1, 0)
            u = jax.vmap(lambda key: jittered(key, draws))(k_time)

            def one_draw(j):
                keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(k_noise, j)
                drawn = model.draw(keys, u[:, j])
                at = model.time_gamma(params, model.times(drawn.u).t, model.context(batch))
                terms = model.terms(params, drawn, batch, at=at).parts()
                return {name: scale * term for name, term in terms.items()}, at.gamma.mean(axis=(1, 2, 3))

            terms, gamma = jax.lax.map(one_draw, jnp.arange(draws))
            return {name: term.T for name, term in {**terms, "gamma": gamma}.items()}

        everywhere, by_example = sharding.replicated(mesh), sharding.split(mesh)
        self._evaluate = jax.jit(
            evaluate,
            in_shardings=(everywhere, everywhere, by_example, by_example),
            out_shardings=everywhere,
        )

    def rows(self, params: Params, images: np.ndarray, key: jax.Array, *, first: int = 0) -> Iterator[Rows]:
        """The terms of images[first:], chunk by chunk, in order.

        Args:
            params: the model's.
            images: uint8 [N, h, w, c].
            key: the root from which image i's key is folded.
            first: the images before it are left out.
        """
        for batch_images, index, real in self._batches(images, first):
            with jax.default_matmul_precision("highest"):
                rows = jax.device_get(self._evaluate(params, key, batch_images, index))
            yield {name: row[:real] for name, row in rows.items()}
