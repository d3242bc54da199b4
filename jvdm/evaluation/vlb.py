"""The variational bound of discrete data (`diffusion.losses`), n draws per image (`evaluation.slices`)."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jvdm.core.errors import UserError
from jvdm.core.records import Batch
from jvdm.diffusion.times import UniformDensity
from jvdm.evaluation.passes import Rows
from jvdm.evaluation.slices import SlicePass
from jvdm.model import Model, objectives

Params = Any


def for_evaluation(model: Model, timesteps: int | None = None) -> Model:
    """The model computing in float32, with T of the bound to evaluate (None keeps the model's).

    Its times are uniform where those of training would not estimate the bound.
    """
    timesteps = model.timesteps if timesteps is None else timesteps
    return dataclasses.replace(
        model,
        network=model.network.clone(dtype="float32"),
        encoder=None if model.encoder is None else model.encoder.clone(dtype="float32"),
        evaluating=True,
        timesteps=timesteps,
        time_density=UniformDensity() if timesteps or not model.time_density.unbiased else model.time_density,
    )


class VLB:
    """The compiled variational bound.

    Its rows are the terms, with a latent `latent` among them; `surrogate`, what the latent is charged
    elsewhere, if that is no bound; and `gamma`, the schedule at the drawn times (its mean over pixels); all
    [N, n].

    Args:
        model: as `for_evaluation` returns it.
        mesh: has a `data` axis.
        batch_size: images at a time.
        draws: n, per image.

    Raises:
        UserError: no draws, no images at a time, or a model that has no such bound.
    """

    name: ClassVar[str] = "vlb"
    terms: tuple[str, ...] = ("reconstruction", "prior", "diffusion")
    shown: ClassVar[tuple[str, ...]] = ()
    latent: Any = None

    def __init__(self, model: Model, mesh: Mesh, *, batch_size: int, draws: int):
        if not model.has_bound:
            raise UserError(
                "the estimator vlb needs discrete data and noise at time 0 (config.schedule.t_min above 0): "
                "set config.eval.estimators=elbo,ode"
            )
        scale = model.units_per_nat

        def one_draw(params, images, u, keys):
            batch = Batch(images, jnp.zeros(images.shape[0]))
            drawn = model.draw(keys, u)
            context = model.context(params, batch, drawn.latent)
            at = model.time_gamma(params, model.times(drawn.u).t, context)
            terms = objectives.bound(model, params, drawn, batch, at=at, context=context).parts()
            if context.surrogate is not None:
                terms["surrogate"] = context.surrogate
            return {name: scale * term for name, term in terms.items()}, at.gamma.mean(axis=(1, 2, 3))

        self.latent = model.latent
        if model.latent is not None:
            self.terms = (*VLB.terms, "latent")

        self._pass = SlicePass(one_draw, mesh, batch_size=batch_size, draws=draws)

    def rows(self, params: Params, images: np.ndarray, key: jax.Array, *, first: int = 0) -> Iterator[Rows]:
        """The terms of images[first:], chunk by chunk, in order.

        Args:
            params: the model's.
            images: uint8 [N, h, w, c].
            key: the root from which image i's key is folded.
            first: the images before it are left out.
        """
        return self._pass(params, images, key, first)
