"""The variational bound of discrete data (`diffusion.losses`), n draws per image (`evaluation.slices`)."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Self

import jax
from jax.sharding import Mesh

from jvdm.core.errors import UserError
from jvdm.core.keys import named
from jvdm.core.registry import Config
from jvdm.core.shapes import mean_example
from jvdm.diffusion.times import TIME_DENSITIES, UniformDensity
from jvdm.evaluation import record
from jvdm.evaluation.estimator import ESTIMATORS, Examples
from jvdm.evaluation.record import Provenance, Result
from jvdm.evaluation.rows import Rows
from jvdm.evaluation.slices import SlicePass
from jvdm.model import Model, objectives
from jvdm.model.checks import check_process

Params = Any


def for_evaluation(model: Model, timesteps: int | None = None) -> Model:
    """The model in float32, with T of the bound to evaluate (None keeps the model's).

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


@ESTIMATORS.register("vlb")
@dataclasses.dataclass(eq=False)
class VLB:
    """The compiled variational bound.

    Its rows are the terms, with a latent `latent` among them; `surrogate`, what the latent is charged
    elsewhere, if that is not a bound; and `gamma`, the schedule at the drawn times (its mean over pixels);
    all [N, n].

    Args:
        model: as `for_evaluation` returns it.
        mesh: has a `data` axis.
        batch_size: images at a time.
        draws: n, per image.

    Raises:
        UserError: no draws, no images at a time, or a model that has no such bound.
    """

    model: Model
    mesh: Mesh
    _: dataclasses.KW_ONLY
    batch_size: int
    draws: int
    name: ClassVar[str] = "vlb"
    draws_field: ClassVar[str] = "draws"
    shown: ClassVar[tuple[str, ...]] = ()
    terms: tuple[str, ...] = dataclasses.field(init=False, default=("reconstruction", "prior", "diffusion"))

    def __post_init__(self):
        model = self.model
        if not model.has_bound:
            raise UserError(
                "the estimator vlb needs discrete data and noise at time 0 (config.schedule.t_min above 0): "
                "set config.eval.estimators=elbo,ode"
            )
        if model.timesteps:
            check_process(model.process, "step_loss", f"config.eval.timesteps={model.timesteps}")
        scale = model.units_per_nat

        def one_draw(params, batch, u, keys):
            drawn = model.draw(keys, u)
            context, cost = known = model.encode_latent(params, batch, drawn.latent)
            at = model.time_gamma(params, model.times(drawn.u).t, context)
            terms = objectives.bound(model, params, drawn, batch, at=at, known=known).parts()
            if cost is not None and cost.surrogate is not None:
                terms["surrogate"] = cost.surrogate
            return {name: scale * term for name, term in terms.items()}, mean_example(at.gamma)

        if model.latent is not None:
            self.terms = (*VLB.terms, "latent")

        self._pass = SlicePass(one_draw, self.mesh, batch_size=self.batch_size, draws=self.draws)

    @classmethod
    def from_config(cls, config: Config, model: Model, mesh: Mesh) -> Self:
        """As `Estimator.from_config`."""
        timesteps = model.timesteps if config.eval.timesteps < 0 else config.eval.timesteps
        model = for_evaluation(model, timesteps)
        return cls(model, mesh, batch_size=config.eval.batch_size, draws=config.eval.draws)

    @property
    def latent(self) -> Any:
        """The model's, or None."""
        return self.model.latent

    def rows(
        self, params: Params, examples: Examples, key: jax.Array, *, first: int = 0, start: int = 0
    ) -> Iterator[Rows]:
        """The terms of the images from `first` on, chunk by chunk, in order.

        Args:
            params: the model's.
            examples: N images, and what is known of each.
            key: the root from which image i's key is folded.
            first: the images before it are left out.
            start: the index of the first of all examples, by which its key is folded.
        """
        return self._pass(params, examples, named(key, self.name), first, start)

    def settings(self) -> dict[str, Any]:
        """T, and the density of the times in continuous time."""
        timesteps = self.model.timesteps
        density = None if timesteps else TIME_DENSITIES.name_of(self.model.time_density)
        return {"timesteps": timesteps, "time_density": density}

    def description(self) -> str:
        """As `Estimator.description`."""
        return f"VLB, T = {self.model.timesteps}" if self.model.timesteps else "VLB, continuous"

    def file_name(self) -> str:
        """As `Estimator.file_name`: "vlb_continuous", "vlb_T1000"."""
        return f"vlb_T{self.model.timesteps}" if self.model.timesteps else "vlb_continuous"

    def result(
        self, rows: Rows, provenance: Provenance, *, params: Params, examples: Examples, key: jax.Array
    ) -> Result:
        """As `Estimator.result`."""
        prior = self.model.process.prior_text
        return record.result(self, rows, provenance, prior=prior, **self.settings())
