"""Samples from a trained model: any number of images, each with its own key."""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jvdm.core import preemption, sharding
from jvdm.core.errors import UserError, unknown
from jvdm.core.keys import indexed
from jvdm.core.precision import full_precision
from jvdm.core.records import Batch, as_batch, take
from jvdm.core.registry import Config
from jvdm.data.local import read_npz_array
from jvdm.diffusion import samplers, transforms
from jvdm.evaluation.estimator import Examples
from jvdm.evaluation.passes import Store
from jvdm.model import Model
from jvdm.model.checks import check_process

log = logging.getLogger("jvdm")

Params = Any

PIXELS = ("argmax", "sampled")
_NOTHING = {"images": None, "log_likelihood": None, "latents": None}


class Samples(NamedTuple):
    """N images.

    Attributes:
        images: [N, *data_shape] uint8, 0..K-1, or float32 of continuous data.
        log_likelihood: [N] log p(z_0) of the continuous z_0 that the image was decoded from, nats; or None.
        latents: [N, m] that they are conditioned on; None of a model without a latent.
    """

    images: np.ndarray
    log_likelihood: np.ndarray | None
    latents: np.ndarray | None


class Sampling:
    """A compiled sampler, to be called with any parameters and numbers of images and steps.

    Sample i has the key of its index: it depends neither on the batch nor on the devices.

    Args:
        model: as `for_evaluation` returns it.
        mesh: has a `data` axis.
        config: the section `sample`.
        batch_size: images at a time, over all devices; rounded up to a multiple of their number.
        latents: [L, m] to condition on, sample i on number i mod L; by default each is drawn from the prior.

    Raises:
        UserError: an unknown sampler or choice of pixels, no images at a time, or a log-likelihood of a
            sampler that has none.
    """

    def __init__(
        self,
        model: Model,
        mesh: Mesh,
        config: Config,
        *,
        batch_size: int,
        latents: np.ndarray | None = None,
    ):
        self._batch_size = sharding.evaluation_batch("config.sample.batch_size", batch_size, mesh)
        if config.pixels not in PIXELS:
            raise unknown("config.sample.pixels", config.pixels, PIXELS)
        self._mesh = mesh
        sampler = samplers.SAMPLERS.build(config.sampler)
        is_ode = sampler.solver is not None
        for part in sampler.needs:
            check_process(model.process, part, f"config.sample.sampler.name={config.sampler.name}")
        if config.log_likelihood and not is_ode:
            raise UserError(
                "config.sample.log_likelihood needs config.sample.sampler.name=ode, "
                f"not {config.sampler.name}"
            )
        sampled_pixels = config.pixels == "sampled"
        if sampled_pixels and not model.has_bound:
            raise UserError(
                "config.sample.pixels=sampled needs discrete data and noise at time 0: choose argmax"
            )

        def z_by_steps(params, keys, context, num_steps):
            z_0 = samplers.sample(
                lambda z, t: model.predict(params, z, t, context),
                model.process,
                params,
                context,
                sampler,
                keys,
                shape=model.data_shape,
                num_steps=num_steps,
                data_range=model.data_map.range,
            )
            return samplers.Flow(z_0, None, jnp.ones(len(keys), bool))

        def z_by_ode(params, keys, context, num_steps):
            return samplers.flow(
                model.ode_drift,
                params,
                context,
                sampler,
                keys,
                shape=model.data_shape,
                prior=model.prior(params),
                num_steps=num_steps,
                log_likelihood=config.log_likelihood,
            )

        def sample(params, root_key, index, num_steps):
            keys = indexed(root_key, index)
            latent = None if latents is None else jnp.asarray(latents)[index % len(latents)]
            context = model.prior_context(keys, latent)
            flow = (z_by_ode if is_ode else z_by_steps)(params, keys, context, num_steps)
            c = model.at(params, jnp.zeros(index.shape[0]), context)
            z_0 = model.decoder_scale(c.alpha) * flow.z_0
            x = z_0 / c.alpha
            if not model.num_levels:
                images = model.data_map.inverse(x)
            elif sampled_pixels:
                images = samplers.sampled_levels(
                    keys, z_0, c.alpha, c.gamma, model.num_levels, model.data_map
                )
            elif model.has_bound:
                images = transforms.nearest_level(x, model.num_levels, model.data_map)
            else:
                images = transforms.level_of(x, model.num_levels, model.data_map)
            return (images, flow.log_likelihood, context.latent), flow.ok

        everywhere, by_example = sharding.replicated(mesh), sharding.split(mesh)
        shardings = {"in_shardings": (everywhere, everywhere, by_example), "out_shardings": everywhere}
        # The number of equal steps of an ODE solver is part of the program.
        self._sample = (
            jax.jit(sample, static_argnums=3, **shardings)
            if is_ode
            else jax.jit(
                sample, in_shardings=(everywhere, everywhere, by_example, None), out_shardings=everywhere
            )
        )

    def __call__(
        self,
        params: Params,
        num_images: int,
        key: jax.Array,
        *,
        num_steps: int,
        on_batch: Callable[[int], None] | None = None,
        store: Store | None = None,
    ) -> Samples:
        """Images.

        Args:
            params: the model's.
            num_images: N.
            key: the root.
            num_steps: of the sampler.
            on_batch: called with the number of images done after every batch.
            store: where finished batches are kept and found again.

        Raises:
            UserError: no images or no steps are asked for, or a solver that does not reach the end time.
            Preempted: the process was asked to stop.
        """
        if num_images < 1 or num_steps < 1:
            raise UserError(f"cannot draw {num_images} samples in {num_steps} steps: give at least 1 of each")
        place = functools.partial(sharding.to_devices, sharding=sharding.split(self._mesh))
        parts = [Samples(**{**_NOTHING, **rows}) for rows in store.load()] if store else []
        done = sum(len(part.images) for part in parts)
        if done:
            log.info("continuing after image %d of %d", min(done, num_images), num_images)
        for start in range(done, num_images, self._batch_size):
            if start > done:
                preemption.check()
            index = np.arange(start, start + self._batch_size, dtype=np.int32)
            local = np.split(index, jax.process_count())[jax.process_index()]
            with full_precision():
                samples, ok = jax.device_get(self._sample(params, key, place(local), num_steps))
            if not ok.all():
                raise UserError(
                    f"the ODE solver did not reach the end time for {int((~ok).sum())} samples; raise "
                    "config.sample.sampler.max_steps or config.sample.sampler.tolerance"
                )
            parts.append(Samples(*samples))
            if store:
                store.save(start, {k: a for k, a in parts[-1]._asdict().items() if a is not None})
            if on_batch is not None:
                on_batch(min(start + self._batch_size, num_images))
        return jax.tree.map(lambda *a: np.concatenate(a)[:num_images], *parts)


def given_latents(
    choice: str, model: Model, params: Params, examples: Callable[[], Examples], key: jax.Array
) -> np.ndarray | None:
    """The latents that `config.sample.latents` selects.

    Args:
        choice: "prior"; "posterior", a sample of q(c | x) for each of the images; or an .npz with one array
            [L, m].
        model: of the samples.
        params: its parameters.
        examples: called for the images of the posterior.
        key: the root, from which image i's key is folded.

    Returns:
        [L, m], or None for the prior.

    Raises:
        UserError: a model without a latent, or a file that holds no latents of this model.
    """
    if choice == "prior":
        return None
    if model.latent is None:
        raise UserError(
            f"config.sample.latents={choice} is for a model with a latent: this one has none: choose prior"
        )
    if choice == "posterior":
        return _posterior(model, params, as_batch(examples()), key)
    name, array = read_npz_array(choice, "config.sample.latents")
    numeric = np.issubdtype(array.dtype, np.number)
    if array.ndim != 2 or not len(array) or array.shape[1] != model.latent.size or not numeric:
        raise UserError(
            f"config.sample.latents: {name} of {choice} is {array.dtype} {list(array.shape)}, not numbers "
            f"[L, {model.latent.size}]"
        )
    if not np.isfinite(array).all():
        raise UserError(f"config.sample.latents: {name} of {choice} holds numbers that are not finite")
    return array.astype(np.float32)


def _posterior(model: Model, params: Params, examples: Batch, key: jax.Array) -> np.ndarray:
    """A sample of q(c | x) for each image, [N, m]."""

    @jax.jit
    def encode(params, batch, index):
        keys = indexed(key, index)
        noise = jax.vmap(model.latent.draw)(keys)
        return model.encode_latent(params, batch, noise)[0].latent

    num_images = len(examples.x)
    size, parts = min(256, num_images), []
    for start in range(0, num_images, size):
        # The last batch goes back, so that there is one compilation.
        first = min(start, num_images - size)
        index = np.arange(first, first + size)
        with full_precision():
            parts.append(jax.device_get(encode(params, take(examples, index), index))[start - first :])
    return np.concatenate(parts)


def trajectories(
    model: Model, params: Params, key: jax.Array, *, lam: float, num_steps: int, every: int, num: int = 1000
) -> np.ndarray:
    """The paths of samples of the reverse SDE of `lam` (`samplers.ReverseSDE`).

    Args:
        model: in continuous time.
        params: the model's.
        key: the root, from which sample i's key is folded.
        lam: from 0, the reverse SDE, to 1, the ODE.
        num_steps: of Euler-Maruyama.
        every: steps between the points that are kept.
        num: of samples.

    Returns:
        [num_steps / every + 1, num, *data_shape], from noise to data.
    """
    context = model.prior_context(indexed(key, jnp.arange(num)))
    params = jax.device_get(params)  # one process draws them, on its own device

    @jax.jit
    def run(params, key):
        keys = indexed(key, jnp.arange(num))
        return samplers.sample(
            lambda z, t: model.predict(params, z, t, context),
            model.process,
            params,
            context,
            samplers.ReverseSDE(lam=lam),
            keys,
            shape=model.data_shape,
            num_steps=num_steps,
            data_range=model.data_map.range,
            every=every,
        )

    with full_precision():
        return jax.device_get(run(params, key))
