"""The gradient of the training objective, in bits/dim (nats where the data is continuous).

1. bound: the mean over the batch of the variational bound, and of the second-order penalty if there is one. A
   latent without its own gradient is drawn twice, and has that of leave-one-out REINFORCE
   (`jvdm.diffusion.subsets`), everything else being the same in both.
2. variance (2107.00630, appendix I.2): as 1, except that the interior of the schedule minimises
   E[l^2], l the per-example continuous-time diffusion loss, which leaves its mean alone and
   lowers its variance. l_i depends on the schedule only through g_i = gamma(t_i) and
   g'_i = gamma'(t_i). With these as inputs, one VJP of mean(l) through the denoiser gives
   a_i = dl_i/dg_i / B and b_i = dl_i/dg'_i / B as well as the gradient of the network. Pulling (a, b)
   back through the small map (schedule parameters) -> (g, g') gives the gradient of the ends,
   pulling (2 l a, 2 l b) back that of the interior.
3. score matching: the mean over the batch of `jvdm.diffusion.losses`, objective 6.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, Self

import jax
import jax.numpy as jnp

from jvdm.core.records import Batch, Draws, Dropout, LossTerms, ScoreMatching, TimeGamma
from jvdm.core.registry import Config, Registry
from jvdm.core.shapes import expand
from jvdm.diffusion import subsets
from jvdm.model import Model, objectives

Params = Any
# (params, draws, batch, dropout) -> (terms [b] in nats, gradient of mean bits/dim)
Gradient = Callable[[Params, Draws, Batch, Dropout | None], tuple[LossTerms | ScoreMatching, Params]]


class Objective(Protocol):
    """What training minimises.

    Attributes:
        of_schedule: `training.schedule_objective` selects it, for the interior of the schedule; everything
            else has the objective `bound`. The others are selected by `training.objective`.
    """

    of_schedule: ClassVar[bool] = False

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """The objective with the options that a config has for it; `jvdm.model.build` has checked them."""
        ...

    def gradient(self, model: Model) -> Gradient:
        """Its gradient for a model."""
        ...


OBJECTIVES = Registry("objective", Objective)


@OBJECTIVES.register("bound")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
    """Objective (1); `second_order` is the strength of the penalty."""

    second_order: float = 0.0

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """As `Objective.from_config`."""
        return cls(second_order=config.training.second_order)

    def gradient(self, model: Model) -> Gradient:
        """As `Objective.gradient`; of a latent that needs it, by REINFORCE."""
        scale = model.units_per_nat

        def terms_of(params, draws, batch, dropout) -> tuple[LossTerms, Any]:
            known = model.encode_latent(params, batch, draws.latent, step=draws.step, dropout=dropout)
            terms = objectives.bound(
                model,
                params,
                draws,
                batch,
                dropout=dropout,
                known=known,
                second_order=self.second_order,
            )
            return terms, None if known[1] is None else known[1].log_ratio

        def gradient(params, draws, batch, dropout):
            def objective(params):
                terms, _ = terms_of(params, draws, batch, dropout)
                return scale * jnp.mean(terms.objective), terms

            grads, terms = jax.grad(objective, has_aux=True)(params)
            return terms, grads

        def reinforced(params, draws, batch, dropout):
            others = draws._replace(latent=draws.other_latent)

            def objective(params):
                (one, ratio), (two, other_ratio) = (
                    terms_of(params, d, batch, dropout) for d in (draws, others)
                )
                losses = jnp.stack([one.objective, two.objective])
                score = subsets.leave_one_out(losses, jnp.stack([ratio, other_ratio]))
                mean = jax.tree.map(lambda a, b: 0.5 * (a + b), one, two)
                return scale * jnp.mean(mean.objective + score), mean

            grads, terms = jax.grad(objective, has_aux=True)(params)
            return terms, grads

        return reinforced if model.latent is not None and model.latent.score_function else gradient


@OBJECTIVES.register("variance")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Variance:
    """Objective (2), which learns the schedule, so that there is no second-order penalty."""

    of_schedule: ClassVar[bool] = True

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """As `Objective.from_config`."""
        return cls()

    def gradient(self, model: Model) -> Gradient:
        """As `Objective.gradient`."""
        scale = model.units_per_nat

        def gradient(params, draws, batch, dropout):
            context, _ = model.encode_latent(params, batch)
            t = model.times(draws.u).t

            def objective(params, at):
                terms = objectives.bound(model, params, draws, batch, dropout=dropout, at=at)
                return scale * jnp.mean(terms.total), terms

            def schedule_at(schedule):
                return model.time_gamma({**params, "schedule": schedule}, t, context)

            at, pull_back = jax.vjp(schedule_at, params["schedule"])
            (grads, cotangent), terms = jax.grad(objective, argnums=(0, 1), has_aux=True)(params, at)
            twice_loss = expand(2.0 * scale * terms.diffusion, len(model.data_shape))
            (ends,) = pull_back(cotangent)
            (interior,) = pull_back(TimeGamma(*(twice_loss * c for c in cotangent)))
            schedule = {
                name: jax.tree.map(jnp.add, grads["schedule"][name], ends[name])
                if name in model.schedule.endpoints
                else interior[name]
                for name in params["schedule"]
            }
            return terms, {**grads, "schedule": schedule}

        return gradient


@OBJECTIVES.register("score_matching")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoisingScoreMatching:
    """Objective (3), with the options of the config's section `score_matching`."""

    weighting: str = "likelihood"
    truncation: float = 1e-3
    dequantize: bool = True

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """As `Objective.from_config`."""
        config = config.score_matching
        return cls(weighting=config.weighting, truncation=config.truncation, dequantize=config.dequantize)

    def gradient(self, model: Model) -> Gradient:
        """As `Objective.gradient`."""
        scale = model.units_per_nat

        def gradient(params, draws, batch, dropout):
            def objective(params):
                terms = objectives.score_matching(
                    model,
                    params,
                    draws,
                    batch,
                    weighting=self.weighting,
                    truncation=self.truncation,
                    dequantize=self.dequantize,
                    dropout=dropout,
                )
                return scale * jnp.mean(terms.objective), terms

            grads, terms = jax.grad(objective, has_aux=True)(params)
            return terms, grads

        return gradient


def objective_gradient(model: Model, config: Config) -> Gradient:
    """The gradient that a config selects; `jvdm.model.build` has checked its names."""
    names = config.training
    # A schedule without an objective of its kind has that of the rest.
    name = names.objective if names.schedule_objective == "bound" else names.schedule_objective
    component: Any = OBJECTIVES.component(name)
    return component.from_config(config).gradient(model)
