"""The gradient of the training objective, in bits/dim (nats where the data is continuous).

1. bound: the mean over the batch of the variational bound, and of the second-order penalty if there is one. A
   latent without a gradient of its own is drawn twice, and has that of leave-one-out REINFORCE
   (`jvdm.diffusion.subsets`), everything else being the same in both.
2. variance (2107.00630, appendix I.2): as 1, except that the interior of the schedule minimises
   E[l^2], l the per-example continuous-time diffusion loss, which leaves its mean alone and
   lowers its variance. l_i depends on the schedule only through g_i = gamma(t_i) and
   g'_i = gamma'(t_i). With these as inputs, one VJP of mean(l) through the denoiser gives
   a_i = dl_i/dg_i / B and b_i = dl_i/dg'_i / B besides the gradient of the network. Pulling (a, b)
   back through the small map (schedule parameters) -> (g, g') gives the gradient of the ends,
   pulling (2 l a, 2 l b) back that of the interior.
3. score matching: the mean over the batch of `jvdm.diffusion.losses`, objective 6.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jvdm.core.records import Batch, Draws, LossTerms, ScoreMatching, TimeGamma
from jvdm.core.registry import Config
from jvdm.diffusion import subsets
from jvdm.model import Model, objectives

Params = Any
# (params, draws, batch, dropout_key) -> (terms [b] in nats, gradient of mean bits/dim)
Gradient = Callable[[Params, Draws, Batch, jax.Array | None], tuple[LossTerms | ScoreMatching, Params]]


def bound_gradient(model: Model, second_order: float = 0.0) -> Gradient:
    """Objective (1); `second_order` is the strength of the penalty."""
    scale = model.units_per_nat

    def terms_of(params, draws, batch, dropout_key) -> tuple[LossTerms, Any]:
        context = model.context(params, batch, draws.latent, step=draws.step, dropout_key=dropout_key)
        terms = objectives.bound(
            model, params, draws, batch, dropout_key=dropout_key, context=context, second_order=second_order
        )
        return terms, context.log_ratio

    def gradient(params, draws, batch, dropout_key):
        def objective(params):
            terms, _ = terms_of(params, draws, batch, dropout_key)
            return scale * jnp.mean(terms.objective), terms

        grads, terms = jax.grad(objective, has_aux=True)(params)
        return terms, grads

    def reinforced(params, draws, batch, dropout_key):
        others = draws._replace(latent=draws.other_latent)

        def objective(params):
            (one, ratio), (two, other_ratio) = (
                terms_of(params, d, batch, dropout_key) for d in (draws, others)
            )
            losses = jnp.stack([one.objective, two.objective])
            score = subsets.leave_one_out(losses, jnp.stack([ratio, other_ratio]))
            mean = jax.tree.map(lambda a, b: 0.5 * (a + b), one, two)
            return scale * jnp.mean(mean.objective + score), mean

        grads, terms = jax.grad(objective, has_aux=True)(params)
        return terms, grads

    return reinforced if model.latent is not None and model.latent.score_function else gradient


def variance_gradient(model: Model) -> Gradient:
    """Objective (2), which learns the schedule, so that there is no second-order penalty."""
    scale = model.units_per_nat

    def gradient(params, draws, batch, dropout_key):
        context = model.context(params, batch)
        t = model.times(draws.u).t

        def objective(params, at):
            terms = objectives.bound(model, params, draws, batch, dropout_key=dropout_key, at=at)
            return scale * jnp.mean(terms.total), terms

        def schedule_at(schedule):
            return model.time_gamma({"schedule": schedule}, t, context)

        at, pull_back = jax.vjp(schedule_at, params["schedule"])
        (grads, cotangent), terms = jax.grad(objective, argnums=(0, 1), has_aux=True)(params, at)
        twice_loss = 2.0 * scale * terms.diffusion[:, None, None, None]
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


def score_matching_gradient(model: Model, config: Config) -> Gradient:
    """Objective (3); `config` is the section `score_matching`."""
    scale = model.units_per_nat

    def gradient(params, draws, batch, dropout_key):
        def objective(params):
            terms = objectives.score_matching(
                model,
                params,
                draws,
                batch,
                weighting=config.weighting,
                truncation=config.truncation,
                dequantize=config.dequantize,
                dropout_key=dropout_key,
            )
            return scale * jnp.mean(terms.objective), terms

        grads, terms = jax.grad(objective, has_aux=True)(params)
        return terms, grads

    return gradient


def objective_gradient(model: Model, config: Config) -> Gradient:
    """The gradient that a config selects; `jvdm.model.build` has checked its names."""
    if config.training.objective == "score_matching":
        return score_matching_gradient(model, config.score_matching)
    if config.training.schedule_objective == "variance":
        return variance_gradient(model)
    return bound_gradient(model, config.training.second_order)
