"""Samples from a trained model: any number of images, each with its own key."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jvdm import samplers, sharding
from jvdm.errors import UserError, unknown
from jvdm.model import Model
from jvdm.records import Context
from jvdm.registry import Config

Params = Any

PIXELS = ("argmax", "sampled")


class Sampling:
    """A compiled sampler, to be called with any parameters and numbers of images and steps.

    Sample i has the key fold_in(root, i): it depends neither on the batch nor on the devices.

    Args:
        model: as `for_evaluation` returns it.
        mesh: has a `data` axis.
        config: the section `sample`.
        batch_size: images at a time, over all devices; rounded up to a multiple of their number.

    Raises:
        UserError: an unknown sampler or choice of pixels, or no images at a time.
    """

    def __init__(self, model: Model, mesh: Mesh, config: Config, *, batch_size: int):
        self._batch_size = sharding.evaluation_batch("config.sample.batch_size", batch_size, mesh)
        if config.pixels not in PIXELS:
            raise unknown("config.sample.pixels", config.pixels, PIXELS)
        self._mesh = mesh
        sampler = samplers.SAMPLERS.build(config.sampler)
        sampled_pixels = config.pixels == "sampled"

        def sample(params, root_key, index, num_steps):
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(root_key, index)
            k_path, k_pixels = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
            context = Context(conditioning=jnp.zeros(index.shape[0]))

            def coefficients(t):
                return model.coefficients(model.time_gamma(params, t, context))

            z_0 = samplers.sample(
                lambda z, t: model.predict(params, z, t, context),
                coefficients,
                sampler,
                k_path,
                shape=model.image_shape,
                num_steps=num_steps,
            )
            c = coefficients(jnp.zeros(index.shape[0]))
            if sampled_pixels:
                return samplers.sampled_levels(k_pixels, z_0, c.alpha, c.gamma, model.num_levels)
            return samplers.most_likely_levels(z_0, c.alpha, model.num_levels)

        everywhere, by_example = sharding.replicated(mesh), sharding.split(mesh)
        self._sample = jax.jit(
            sample, in_shardings=(everywhere, everywhere, by_example, None), out_shardings=everywhere
        )

    def __call__(
        self,
        params: Params,
        num_images: int,
        key: jax.Array,
        *,
        num_steps: int,
        on_batch: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Images.

        Args:
            params: the model's.
            num_images: N.
            key: the root.
            num_steps: of the sampler.
            on_batch: called with the number of images done after every batch.

        Returns:
            [N, h, w, c] uint8, 0..K-1.

        Raises:
            UserError: no images or no steps are asked for.
        """
        if num_images < 1 or num_steps < 1:
            raise UserError(f"cannot draw {num_images} samples in {num_steps} steps: give at least 1 of each")
        place = functools.partial(sharding.to_devices, sharding=sharding.split(self._mesh))
        parts = []
        for start in range(0, num_images, self._batch_size):
            index = np.arange(start, start + self._batch_size, dtype=np.int32)
            local = np.split(index, jax.process_count())[jax.process_index()]
            with jax.default_matmul_precision("highest"):
                parts.append(np.asarray(self._sample(params, key, place(local), num_steps)))
            if on_batch is not None:
                on_batch(min(start + self._batch_size, num_images))
        return np.concatenate(parts)[:num_images]
