"""The library's surface: a trained run as an object.

    trained = jvdm.load("runs/digits")
    scores = trained.bits_per_dim(images, "ode")
    samples = trained.sample(64)

The numbers are those of the command line: the same estimators (`jvdm.evaluation.suite`) and samplers
(`evaluation.sampling`) with the same keys, so that image i of a call draws what image i of a split draws in
`--mode=eval`, and sample i is sample i of `--mode=sample`. Settings are those the run was started with; a
method's `settings` change fields of the section `eval` or `sample`, by the names of the command line.
Compiled programs are kept: the second call with the same settings compiles nothing.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from jvdm import config as config_lib
from jvdm.config import overrides
from jvdm.core import settings as settings_lib
from jvdm.core import sharding
from jvdm.core.errors import UserError, unknown
from jvdm.core.files import expanded
from jvdm.core.keys import root_key
from jvdm.core.precision import full_precision
from jvdm.core.progress import Progress
from jvdm.core.records import Context
from jvdm.core.registry import Config
from jvdm.data.example_set import ExampleSet, check_suits
from jvdm.evaluation import ESTIMATORS, Estimator, suite
from jvdm.evaluation.record import Result
from jvdm.evaluation.rows import bits_per_dim, image_errors
from jvdm.evaluation.sampling import Samples, Sampling, given_latents
from jvdm.evaluation.vlb import for_evaluation
from jvdm.runs import loading
from jvdm.runs.loading import Trained

Settings = Mapping[str, Any]

# Fields that the arguments of the methods take the place of.
_ARGUMENTS = ("eval.estimators", "eval.num_images", "sample.latents", "sample.num_images")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """The likelihoods of images.

    Attributes:
        values: [N] bits/dim of every image (nats of an example where the data is continuous).
        errors: [N] the part of each that comes from its draws, a standard error; None for one draw.
        terms: [N] the parts that a value is the sum of, by name.
        record: of their mean: its standard error over images, the estimator, and where it came from.
    """

    values: np.ndarray
    errors: np.ndarray | None
    terms: dict[str, np.ndarray]
    record: Result


class LoadedModel:
    """A model with trained weights, as `jvdm.load` returns it.

    Attributes:
        model: the composition of network, schedule, path and the rest (`jvdm.model.Model`).
        params: its weights, the averaged (EMA) ones unless it was loaded otherwise, on all devices of `mesh`.
        config: the run's, locked.
        step: of training.
        path: of the checkpoint.
        mesh: the devices that everything runs on.
    """

    def __init__(self, trained: Trained, mesh: Mesh):
        self.model, self.params = trained.model, trained.params
        self.step, self.path = trained.step, trained.path
        self.config: Config = ConfigDict(trained.config.to_dict()).lock()
        self.mesh = mesh
        self._trained = trained
        # As evaluation and sampling have it: in float32.
        self._model = for_evaluation(trained.model)
        self._built: dict[str, list[Estimator]] = {}
        self._sampling: dict[str, Sampling] = {}
        self._score = jax.jit(self._score_of)

    def __repr__(self) -> str:
        size = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        shape = "x".join(map(str, self.model.data_shape))
        return f"LoadedModel({self.path}, step {self.step}, {size:,} parameters, {shape} in {self.units})"

    @property
    def units(self) -> str:
        """The unit of likelihoods: "bits/dim", or "nats" of an example where the data is continuous."""
        return self.model.units

    @settings_lib.pinned()
    def bits_per_dim(
        self,
        images: np.ndarray | ExampleSet,
        estimator: str = "vlb",
        *,
        draws: int | None = None,
        seed: int | None = None,
        first_index: int = 0,
        settings: Settings | None = None,
        show_progress: bool = False,
    ) -> Scores:
        """The likelihood of every image, by one estimator.

        Image i draws the random numbers of index first_index + i. A data set that is evaluated in several
        calls needs the index of each part: calls without it have the same numbers, and the errors of their
        means do not average out.

        Args:
            images: [N, *data_shape] levels 0..K-1 of any integer type, floats where data are continuous; or
                what `jvdm.load_examples` returns, whose name is then in the record.
            estimator: "vlb", the variational bound; "ode", by the probability-flow ODE; "elbo" or
                "scoreflow", the bounds of score-based models.
            draws: per image; the config's by default.
            seed: of the draws; the config's by default.
            first_index: of the first image, 0 or more.
            settings: fields of the config's section `eval` by dotted name, such as
                `{"ode.solver.name": "fixed", "ode.solver.num_steps": 50}`.
            show_progress: on stderr.

        Raises:
            UserError: images that are not the model's, an unknown estimator or field, settings that do not go
                together, or a solver that does not reach the end time.
        """
        if estimator not in ESTIMATORS.names():
            raise unknown("estimator", estimator, ESTIMATORS.names())
        component: Any = ESTIMATORS.component(estimator)
        config = self._config_with(
            "eval", settings, seed, estimators=estimator, **{component.draws_field: draws}
        )
        example_set = self._example_set(images)
        whole = isinstance(first_index, int | np.integer) and not isinstance(first_index, bool)
        if not whole or not 0 <= first_index < 2**31 - len(example_set.images):
            raise UserError(f"first_index is {first_index!r}: give a whole number, 0 or more, below 2^31")
        # Few images do not cost a whole batch. Powers of two, so that few sizes are compiled.
        size = 1 << (len(example_set.images) - 1).bit_length()
        for section in (config.eval, config.eval.ode):
            if section.batch_size > 4 * size:
                section.batch_size = size
        key = json.dumps(config.eval.to_dict(), sort_keys=True)
        if key not in self._built:
            self._built[key] = suite.build(config, self.model, self.mesh)
        # Nothing is kept of a pass that is interrupted.
        (evaluation,) = suite.evaluate(
            config,
            self._trained,
            example_set,
            self.mesh,
            None,
            built=self._built[key],
            show_progress=show_progress,
            start=int(first_index),
        )
        names, rows = evaluation.estimator.terms, evaluation.rows
        return Scores(
            values=bits_per_dim(rows, names).mean(axis=1),
            errors=image_errors(evaluation.estimator, rows),
            terms={name: np.asarray(rows[name], np.float64).mean(axis=1) for name in names},
            record=evaluation.result,
        )

    @settings_lib.pinned()
    def sample(
        self,
        num_images: int,
        *,
        steps: int | None = None,
        seed: int | None = None,
        latents: np.ndarray | None = None,
        settings: Settings | None = None,
        show_progress: bool = False,
    ) -> Samples:
        """Images, [N, *data_shape] uint8 levels, or float32 where the data is continuous.

        Args:
            num_images: N.
            steps: of the sampler; the config's by default.
            seed: the config's by default. Sample i of a seed is the same whatever N is.
            latents: [L, m] to condition on, sample i on number i mod L; by default each is drawn from the
                prior. Only for a model with a latent.
            settings: fields of the config's section `sample` by dotted name, such as
                `{"sampler.name": "ode", "log_likelihood": True}`.
            show_progress: on stderr.

        Raises:
            UserError: an unknown field, settings that do not go together, latents that are not the model's,
                or a solver that does not reach the end time.
        """
        config = self._config_with("sample", settings, seed, num_images=num_images, steps=steps)
        latents = None if latents is None else self._checked_latents(latents)
        size = min(config.sample.batch_size, num_images)
        # Steps and seed are no part of the compiled sampler, latents are.
        fixed = {name: value for name, value in config.sample.to_dict().items() if name != "steps"}
        key = json.dumps({**fixed, "batch_size": size, "num_images": 0}, sort_keys=True)
        sampling = self._sampling.get(key) if latents is None else None
        if sampling is None:
            sampling = Sampling(self._model, self.mesh, config.sample, batch_size=size, latents=latents)
            if latents is None:
                self._sampling[key] = sampling
        root, num_steps = root_key(config.seed, "sample"), config.sample.steps
        if not show_progress:
            return sampling(self.params, num_images, root, num_steps=num_steps)
        with Progress(num_images, label="sample", unit="image") as progress:
            return sampling(self.params, num_images, root, num_steps=num_steps, on_batch=progress.update)

    @settings_lib.pinned()
    def score(
        self,
        z: Float[Array, " b *d"] | np.ndarray,
        t: Float[Array, "..."] | float,
        *,
        latents: Float[Array, "b m"] | np.ndarray | None = None,
    ) -> Float[Array, " b *d"]:
        """The score of the noised data, the gradient of log q(z_t) in z: -eps_hat / sigma.

        It can be called inside jit, grad or vmap.

        Args:
            z: [b, *data_shape] z_t = alpha x + sigma eps, where x is what `encode` returns.
            t: time in [0, 1], one or [b]; above 0 where there is no noise at time 0.
            latents: [b, m] of a model with a latent.

        Returns:
            [b, *data_shape].

        Raises:
            UserError: another shape, or latents where they do not belong, or none where they do.
        """
        z = jnp.asarray(z, jnp.float32)
        if z.ndim < 1 or z.shape[1:] != self.model.data_shape:
            wanted = ", ".join(map(str, self.model.data_shape))
            raise UserError(f"z has shape {list(z.shape)}; it must be [b, {wanted}]")
        t, latent = self._times(t, len(z)), self._latent_of(latents, len(z))
        with full_precision():
            return self._score(self.params, z, t, latent)

    def _score_of(self, params: Any, z: Any, t: Any, latent: Any) -> jax.Array:
        prediction = self._model.predict(params, z, t, self._context(latent, len(z)))
        return -prediction.eps / prediction.coefficients.sigma

    @settings_lib.pinned()
    def alpha_sigma(
        self, t: Float[Array, "..."] | float, *, latents: Float[Array, "b m"] | np.ndarray | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """alpha and sigma at time t, of z_t = alpha x + sigma eps; they broadcast to the data.

        Args:
            t: time in [0, 1], one or [b].
            latents: [b, m] of a model with a latent.
        """
        count = max(jnp.size(t), 1 if latents is None else len(latents))
        t, latent = self._times(t, count), self._latent_of(latents, count)
        context = self._context(latent, count)
        c = self._model.at(self.params, t, context)
        return c.alpha, c.sigma

    @settings_lib.pinned()
    def encode(self, images: np.ndarray) -> jax.Array:
        """[N, *data_shape] data in the space of the diffusion; of discrete data, the centres of the cells."""
        x = self._example_set(images).images
        return self.model.encode(jnp.asarray(x))

    @settings_lib.pinned()
    def latents(self, images: np.ndarray | ExampleSet, *, seed: int | None = None) -> np.ndarray:
        """A sample of q(c | x) for every image, [N, m], which `sample(..., latents=...)` takes.

        Args:
            images: [N, *data_shape] levels.
            seed: the config's by default.

        Raises:
            UserError: images that are not the model's, or a model without a latent.
        """
        self._check_has_latent()
        examples = self._example_set(images).batch
        key = root_key(self.config.seed if seed is None else seed, "latents")
        latents = given_latents("posterior", self._model, self.params, lambda: examples, key)
        assert latents is not None
        return latents

    def _config_with(
        self, section: str, settings: Settings | None, seed: int | None, **arguments: Any
    ) -> Config:
        """A copy of the config with fields of one section replaced; None leaves a field as it is."""
        config = ConfigDict(self.config.to_dict())
        values = {f"{section}.{field}": value for field, value in (settings or {}).items()}
        for field in _ARGUMENTS:
            if field in values:
                raise UserError(f"config.{field} is given by the arguments, not by settings")
        values.update({f"{section}.{name}": a for name, a in arguments.items() if a is not None})
        if seed is not None:
            values["seed"] = seed
        # numpy's numbers are as good as Python's.
        values = {name: a.item() if isinstance(a, np.generic) else a for name, a in values.items()}
        overrides.put(config, values)
        config_lib.check_complete(config)
        return config

    def _example_set(self, images: Any) -> ExampleSet:
        """Images as an `ExampleSet`, if they suit the model.

        Raises:
            UserError: they do not.
        """
        shape, levels = self.model.data_shape, self.model.num_levels
        if not isinstance(images, ExampleSet):
            x = np.asarray(images) if levels else np.asarray(images, np.float32)
            images = ExampleSet(name="given", version="-", split="-", images=x)
        x = images.images
        wanted = f"[N, {', '.join(map(str, shape))}]"
        if x.ndim != 1 + len(shape) or not len(x):
            raise UserError(f"the images have shape {list(x.shape)}; it must be {wanted}, with N at least 1")
        if levels and not np.issubdtype(x.dtype, np.integer):
            raise UserError(f"the images have dtype {x.dtype}; they must be integers from 0 to {levels - 1}")
        check_suits(images, shape, levels)
        if not levels:
            x = x.astype(np.float32, copy=False)
            if not np.isfinite(x).all():
                raise UserError("the data hold numbers that are not finite")
            return dataclasses.replace(images, images=x)
        low, high = int(x.min()), int(x.max())
        if low < 0 or high >= levels:
            raise UserError(f"the images hold the values {low} to {high}; the model's are 0 to {levels - 1}")
        return dataclasses.replace(images, images=x.astype(np.uint8, copy=False))

    def _check_has_latent(self) -> None:
        if self.model.latent is None:
            raise UserError("this model has no latent (config.latent.name=none)")

    def _checked_latents(self, latents: Any) -> np.ndarray:
        self._check_has_latent()
        latents = np.asarray(latents, np.float32)
        if latents.ndim != 2 or not len(latents) or latents.shape[1] != self.model.latent.size:
            raise UserError(
                f"the latents have shape {list(latents.shape)}; it must be [L, {self.model.latent.size}]"
            )
        return latents

    def _latent_of(self, latents: Any, count: int) -> Any:
        if latents is None:
            if self.model.latent is not None:
                raise UserError(
                    f"this model has a latent: give latents=[{count}, {self.model.latent.size}], such as "
                    "those of the method `latents`"
                )
            return None
        self._check_has_latent()
        latents = jnp.asarray(latents, jnp.float32)
        if latents.shape != (count, self.model.latent.size):
            raise UserError(
                f"the latents have shape {list(latents.shape)}; it must be "
                f"[{count}, {self.model.latent.size}]"
            )
        return latents

    def _times(self, t: Any, count: int) -> jax.Array:
        t = jnp.asarray(t, jnp.float32)
        if t.shape not in ((), (1,), (count,)):
            raise UserError(f"t has shape {list(t.shape)}; give one time, or {count}")
        return jnp.broadcast_to(t, (count,))

    def _context(self, latent: Any, count: int) -> Context:
        return Context(latent=latent)


@settings_lib.pinned()
def load(
    path: str | pathlib.Path,
    *,
    config: Config | None = None,
    devices: Sequence[Any] | None = None,
    weights: str | None = None,
) -> LoadedModel:
    """A trained run: its weights, with the model that its config describes.

    Args:
        path: a workdir, whose newest checkpoint is taken, or one checkpoint, `<workdir>/checkpoints/<step>`.
        config: in place of the workdir's `config.json`; it must describe the same model.
        devices: to hold the weights and to compute on, all of jax's by default, whatever the run was
            trained on.
        weights: "ema", the averaged weights, or "raw", those of the last step; by default what the config of
            the run says.

    Raises:
        UserError: no checkpoint there, a damaged one, or one of another model.
    """
    folder = expanded(path, "path")
    mesh = sharding.make_mesh(devices)
    trained = loading.load(folder, str(folder), mesh, config=config, flag="path", weights=weights)
    return LoadedModel(trained, mesh)
