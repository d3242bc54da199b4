"""The variational bound over a split: every image exactly once, n draws per image.

1. Image i has its own key, fold_in(root, i), and from it n times, one drawn in each of n
   equal intervals, and n sets of noise: its number depends on nothing else, in particular not on
   batch size or device count.
2. Its bound is the mean of its draws. The split's bits/dim is the mean over images, with
   standard error sd(image means) / sqrt(N), which covers both sampling of images and of draws.
3. The Monte-Carlo part of that error is sqrt( sum_i var_i / n ) / N, with var_i the variance of
       image i's draws about their curve in time (`record.monte_carlo_error`).
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jvdm import sharding
from jvdm.data import evaluation_batches
from jvdm.errors import UserError
from jvdm.model import Model
from jvdm.records import Batch, LossTerms
from jvdm.time_densities import UniformDensity
from jvdm.time_samplers import jittered
from jvdm.training.objective import bits_per_dim

Params = Any


class ImageTerms(NamedTuple):
    """Of N images with n draws each, in bits/dim.

    Attributes:
        terms: each [N, n].
        gamma: [N, n] the schedule at the drawn times (its mean over pixels).
    """

    terms: LossTerms
    gamma: np.ndarray

    @property
    def image_bpd(self) -> np.ndarray:
        """[N] the bound of each image, averaged over its draws."""
        return np.asarray(self.terms.total).mean(axis=1)


def for_evaluation(model: Model, timesteps: int | None = None) -> Model:
    """The model computing in float32, with T of the bound to evaluate (None keeps the model's)."""
    timesteps = model.timesteps if timesteps is None else timesteps
    return dataclasses.replace(
        model,
        network=model.network.clone(dtype="float32"),
        timesteps=timesteps,
        time_density=UniformDensity() if timesteps else model.time_density,
    )


class Evaluator:
    """A compiled evaluation, to be called with any parameters and images.

    Args:
        model: as `for_evaluation` returns it.
        mesh: has a `data` axis.
        batch_size: images at a time, over all devices; rounded up to a multiple of their number.
        draws: n, per image.

    Raises:
        UserError: no draws or no images at a time.
    """

    def __init__(self, model: Model, mesh: Mesh, *, batch_size: int, draws: int):
        batch_size = sharding.evaluation_batch("config.eval.batch_size", batch_size, mesh)
        if draws < 1:
            raise UserError(f"{draws} draws per image are asked for: give 1 or more")
        self._mesh, self._batch_size, self._draws = mesh, batch_size, draws
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
                terms = model.terms(params, drawn, batch, at=at)
                terms = jax.tree.map(lambda term: scale * term, terms)
                return terms, at.gamma.mean(axis=(1, 2, 3))

            return jax.lax.map(one_draw, jnp.arange(draws))

        everywhere, by_example = sharding.replicated(mesh), sharding.split(mesh)
        self._evaluate = jax.jit(
            evaluate,
            in_shardings=(everywhere, everywhere, by_example, by_example),
            out_shardings=everywhere,
        )

    def batches(self, params: Params, images: np.ndarray, key: jax.Array) -> Iterator[ImageTerms]:
        """The terms of every image, batch by batch, in order.

        Args:
            params: the model's.
            images: uint8 [N, h, w, c].
            key: the root from which image i's key is folded.
        """
        source = evaluation_batches(
            images,
            batch_size=self._batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        by_example = sharding.split(self._mesh)
        remaining = len(images)
        with jax.default_matmul_precision("highest"):
            for batch in source:
                images_, index = sharding.to_devices((batch["images"], batch["index"]), by_example)
                terms, gamma = jax.device_get(self._evaluate(params, key, images_, index))
                # Padding is at the end of the last batch.
                real = min(self._batch_size, remaining)
                remaining -= real
                yield ImageTerms(*jax.tree.map(lambda a: a.T[:real], (terms, gamma)))

    def __call__(
        self,
        params: Params,
        images: np.ndarray,
        key: jax.Array,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> ImageTerms:
        """The terms of every image.

        Args:
            params, images, key: as `batches`.
            on_batch: called with (images done, mean bits/dim so far) after every batch.

        Raises:
            UserError: the bound of an image is not finite.
        """
        parts: list[ImageTerms] = []
        done, total = 0, 0.0
        for part in self.batches(params, images, key):
            bad = np.flatnonzero(~np.isfinite(part.image_bpd))
            if bad.size:
                raise UserError(
                    f"the bound of image {done + bad[0]} (and of {bad.size - 1} more in its batch) "
                    "is not finite: the weights, or the ends of gamma, are broken"
                )
            parts.append(part)
            done += len(part.gamma)
            total += float(part.image_bpd.sum(dtype=np.float64))
            if on_batch is not None:
                on_batch(done, total / done)
        return jax.tree.map(lambda *a: np.concatenate(a), *parts)
