"""Estimates at one random time per draw: n draws per image, with stratified times.

1. Image i has its own key, that of its index, and from it n uniform numbers, one drawn in each of n
   equal intervals, and n keys of noise: its number depends on nothing else, in particular not on
   batch size or device count.
2. Its bound is the mean of its draws. A split's bits/dim is the mean over images, with
   standard error sd(image means) / sqrt(N), which covers both sampling of images and of draws.
3. The Monte-Carlo part of that error is sqrt( sum_i var_i / n ) / N, with var_i the variance of
   image i's draws about their curve in time (`rows.stratified_errors`).
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jvdm.core import sharding
from jvdm.core.errors import UserError
from jvdm.core.keys import indexed, named
from jvdm.core.precision import full_precision
from jvdm.core.records import Batch
from jvdm.diffusion.times import jittered
from jvdm.evaluation.estimator import Examples
from jvdm.evaluation.passes import Batches
from jvdm.evaluation.rows import Rows

Params = Any
# (params, batch, u [b], keys [b]) -> (terms [b] by name, gamma at the times [b])
OneDraw = Callable[[Params, Batch, jax.Array, jax.Array], tuple[dict[str, jax.Array], jax.Array]]


class SlicePass:
    """A compiled pass over images, n draws each.

    Args:
        one_draw: one draw of every image of a batch.
        mesh: has a `data` axis.
        batch_size: images at a time.
        draws: n, per image.

    Raises:
        UserError: no draws or no images at a time.
    """

    def __init__(self, one_draw: OneDraw, mesh: Mesh, *, batch_size: int, draws: int):
        if draws < 1:
            raise UserError(f"{draws} draws per image are asked for: give 1 or more")
        self._batches = Batches(mesh, batch_size, "config.eval.batch_size")

        def evaluate(params, root_key, batch, index):
            image_keys = indexed(root_key, index)
            u = jax.vmap(lambda key: jittered(key, draws))(image_keys)

            def draw(j):
                return one_draw(params, batch, u[:, j], indexed(named(image_keys, "draws"), j))

            terms, gamma = jax.lax.map(draw, jnp.arange(draws))
            return {name: term.T for name, term in {**terms, "gamma": gamma}.items()}

        everywhere, by_example = sharding.replicated(mesh), sharding.split(mesh)
        self._evaluate = jax.jit(
            evaluate,
            in_shardings=(everywhere, everywhere, by_example, by_example),
            out_shardings=everywhere,
        )

    def __call__(
        self, params: Params, examples: Examples, key: jax.Array, first: int, start: int
    ) -> Iterator[Rows]:
        """The terms and `gamma`, all [N, n], chunk by chunk, as `Estimator.rows`."""
        for batch, index, real in self._batches(examples, first, start=start):
            with full_precision():
                rows = jax.device_get(self._evaluate(params, key, batch, index))
            yield {name: row[:real] for name, row in rows.items()}
