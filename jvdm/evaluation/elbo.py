"""The bounds of score-based models on continuous, or uniformly dequantized, data (`diffusion.score_bounds`).

`elbo` is the random-slice bound on log p at the time the model starts at, whatever noise there is;
`scoreflow` the truncated bound on log p of the data themselves. Discrete data x are spread uniformly over
their cells, log P(x) >= E_u[ log p(y) - log q(y | x) ] (`dequantization`). Each draw has dequantization
noise, a time, noise at all times, and its own probes (`jvdm.evaluation.slices`).
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jvdm.core import random
from jvdm.core.errors import UserError, unknown
from jvdm.core.keys import named
from jvdm.core.records import Coefficients
from jvdm.core.registry import Config
from jvdm.core.shapes import mean_example
from jvdm.diffusion import dequantization, schedules, score_bounds
from jvdm.diffusion.divergence import TRACES
from jvdm.evaluation import record
from jvdm.evaluation.estimator import ESTIMATORS, Examples
from jvdm.evaluation.record import Provenance, Result
from jvdm.evaluation.rows import Rows
from jvdm.evaluation.slices import SlicePass
from jvdm.evaluation.vlb import for_evaluation
from jvdm.model import Model
from jvdm.model.checks import check_process

Params = Any


def _continuous(model: Model, images: jax.Array, keys: jax.Array, alpha: jax.Array) -> Any:
    """alpha y and log q of uniformly dequantized images, or of continuous data."""
    if not model.num_levels:
        return dequantization.continuous(images, alpha)
    u = jax.vmap(lambda key: random.uniform(key, "dequantization", model.data_shape))(keys)
    return dequantization.uniform(images, u, alpha, model.num_levels, model.data_map)


def _normal(model: Model, keys: jax.Array, purpose: str) -> jax.Array:
    return jax.vmap(lambda key: random.normal(key, purpose, model.data_shape))(keys)


@dataclasses.dataclass(eq=False)
class _ScoreBound(abc.ABC):
    """What both bounds have in common.

    Its rows are the terms and `gamma`, all [N, n], in the model's units.

    Args:
        model: as `for_evaluation` returns it, in continuous time.
        mesh: has a `data` axis.
        config: the section `eval.elbo` or `eval.scoreflow`.
        batch_size: images at a time.
        draws: n, per image.

    Raises:
        UserError: no draws or no images at a time, a model with a latent, or settings that do not suit it.
    """

    model: Model
    mesh: Mesh
    config: Config
    _: dataclasses.KW_ONLY
    batch_size: int
    draws: int
    name: ClassVar[str]
    draws_field: ClassVar[str] = "draws"
    shown: ClassVar[tuple[str, ...]] = ()
    terms: ClassVar[tuple[str, ...]]

    def __post_init__(self):
        model = self.model
        if model.latent is not None:
            raise UserError(f"the estimator {self.name} is not for models with a latent: choose vlb or ode")
        check_process(model.process, "is_markov", f"the estimator {self.name}")
        bound, scale = self._bound(model, self.config), model.units_per_nat

        def one_draw(params, batch, u, keys):
            context, _ = model.encode_latent(params, batch)

            def coefficients(t):
                return model.at(params, t, context)

            def eps_hat_at(t):
                return lambda z: model.predict(params, z, t, context).eps

            terms, log_q, at_t = bound(batch.x, u, keys, coefficients, eps_hat_at, model.prior(params))
            rows = {**terms._asdict(), "dequantization": log_q}
            return {name: scale * row for name, row in rows.items()}, mean_example(at_t.gamma)

        self._pass = SlicePass(one_draw, self.mesh, batch_size=self.batch_size, draws=self.draws)

    @property
    def latent(self) -> Any:
        """None: these bounds are not for models with a latent."""
        return None

    @classmethod
    def from_config(cls, config: Config, model: Model, mesh: Mesh) -> Self:
        """As `Estimator.from_config`; the section has the estimator's name."""
        model, section = for_evaluation(model, 0), config.eval[cls.name]
        return cls(model, mesh, section, batch_size=config.eval.batch_size, draws=config.eval.draws)

    @abc.abstractmethod
    def _bound(self, model: Model, config: Config) -> Callable[..., tuple[Any, jax.Array, Coefficients]]:
        """(images, u, keys, t -> coefficients, t -> eps_hat, prior) -> (terms, log q, coefficients at t)."""

    def rows(
        self, params: Params, examples: Examples, key: jax.Array, *, first: int = 0, start: int = 0
    ) -> Iterator[Rows]:
        """As `VLB.rows`."""
        return self._pass(params, examples, named(key, self.name), first, start)

    def settings(self) -> dict[str, Any]:
        """The section of the config."""
        return self.config.to_dict()


@ESTIMATORS.register("elbo")
class RandomSliceELBO(_ScoreBound):
    """The compiled random-slice bound; `config` is the section `eval.elbo`."""

    name: ClassVar[str] = "elbo"
    terms = ("prior", "score", "divergence", "dequantization")

    def _bound(self, model: Model, config: Config) -> Callable[..., tuple[Any, jax.Array, Coefficients]]:
        if config.prior not in score_bounds.PRIORS:
            raise unknown("config.eval.elbo.prior", config.prior, score_bounds.PRIORS)
        trace, log_prior = TRACES.build(config.trace), score_bounds.PRIORS[config.prior]

        def bound(images, t, keys, coefficients, eps_hat_at, prior):
            at_s, at_t, at_1 = (coefficients(a) for a in (jnp.zeros_like(t), t, jnp.ones_like(t)))
            data = _continuous(model, images, keys, at_s.alpha)
            probes = jnp.moveaxis(jax.vmap(lambda key: trace.draw(key, model.data_shape))(keys), 1, 0)
            terms = score_bounds.random_slice(
                eps_hat_at(t),
                data.z,
                eps=_normal(model, keys, "eps"),
                eps_1=_normal(model, keys, "eps_1"),
                probes=probes,
                trace=trace,
                span=jnp.ones_like(t),
                at_s=at_s,
                at_t=at_t,
                at_1=at_1,
                process=model.process,
                prior=prior,
                log_prior=log_prior,
            )
            return terms, data.log_q, at_t

        return bound

    def description(self) -> str:
        """As `Estimator.description`."""
        probes = self.config.trace.get("probes")
        trace = f"{probes} probe{'s' * (probes > 1)}" if probes else "exact trace"
        return f"ELBO, random slice, {trace}"

    def file_name(self) -> str:
        """As `Estimator.file_name`: "elbo_1_probes", "elbo_exact_sdeflow_released"."""
        probes = self.config.trace.get("probes")
        prior = "" if self.config.prior == "model" else f"_{self.config.prior}"
        return (f"elbo_{probes}_probes" if probes else "elbo_exact") + prior

    def result(
        self, rows: Rows, provenance: Provenance, *, params: Params, examples: Examples, key: jax.Array
    ) -> Result:
        """As `Estimator.result`; with a prior that is not normalised the number is not a bound."""
        of_model = self.config.prior == "model"
        return record.result(
            self,
            rows,
            provenance,
            prior=self.model.process.prior_text if of_model else "N(0, I), not normalised, as released",
            is_bound=of_model,
            slices=self.settings(),
        )


@ESTIMATORS.register("scoreflow")
class ScoreFlowBound(_ScoreBound):
    """The compiled truncated bound; `config` is the section `eval.scoreflow`.

    Times that are uniform in gamma need a fixed schedule.
    """

    name: ClassVar[str] = "scoreflow"
    terms = ("prior", "diffusion", "reconstruction", "dequantization")

    def _bound(self, model: Model, config: Config) -> Callable[..., tuple[Any, jax.Array, Coefficients]]:
        epsilon, importance = config.epsilon, config.importance
        if not epsilon and model.schedule.gamma_min == -np.inf:
            raise UserError(
                "config.eval.scoreflow.epsilon is 0, where this schedule has no noise: "
                "give a time such as 1e-5"
            )
        if importance and model.schedule.inverse is None:
            raise UserError("config.eval.scoreflow.importance=True needs a fixed schedule: set it to False")

        def bound(images, u, keys, coefficients, eps_hat_at, prior):
            t_e, one = jnp.full_like(u, epsilon), jnp.ones_like(u)
            t, span = epsilon + (1.0 - epsilon) * u, (1.0 - epsilon) * one
            if importance:
                gamma_e, gamma_1 = model.schedule(t_e), model.schedule(one)
                t = jnp.clip(model.schedule.inverse(gamma_e + (gamma_1 - gamma_e) * u), epsilon, 1.0)
                span = (gamma_1 - gamma_e) / schedules.at(model.schedule, t).dgamma_dt
            at_t, at_e, at_1 = (coefficients(a) for a in (t, t_e, one))
            data = _continuous(model, images, keys, jnp.ones_like(at_t.alpha))
            terms = score_bounds.truncated(
                eps_hat_at(t),
                eps_hat_at(t_e),
                data.z,
                eps=_normal(model, keys, "eps"),
                eps_1=_normal(model, keys, "eps_1"),
                eps_e=_normal(model, keys, "eps_e"),
                span=span,
                at_t=at_t,
                at_e=at_e,
                at_1=at_1,
                prior=prior,
            )
            return terms, data.log_q, at_t

        return bound

    def description(self) -> str:
        """As `Estimator.description`."""
        return f"ScoreFlow bound, from t = {self.config.epsilon:g}"

    def file_name(self) -> str:
        """As `Estimator.file_name`: "scoreflow_1e-05"."""
        times = "" if self.config.importance else "_uniform_times"
        return f"scoreflow_{self.config.epsilon:g}{times}"

    def result(
        self, rows: Rows, provenance: Provenance, *, params: Params, examples: Examples, key: jax.Array
    ) -> Result:
        """As `Estimator.result`."""
        prior = self.model.process.prior_text
        return record.result(self, rows, provenance, prior=prior, slices=self.settings())
