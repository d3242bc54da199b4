"""The bounds of score-based models on continuous, or uniformly dequantized, data (`diffusion.score_bounds`).

`elbo` is the random-slice bound on log p at the time the model starts at, whatever noise there is;
`scoreflow` the truncated bound on log p of the data themselves. Discrete data x are spread uniformly over
their cells, log P(x) >= E_u[ log p(y) - log q(y | x) ] (`dequantization`). Each draw has dequantization
noise, a time, noise at all times, and probes of its own (`jvdm.evaluation.slices`).
"""

import abc
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jvdm.core.errors import UserError, unknown
from jvdm.core.records import Batch, Coefficients
from jvdm.core.registry import Config
from jvdm.diffusion import dequantization, schedules, score_bounds
from jvdm.diffusion.divergence import TRACES
from jvdm.evaluation.passes import Rows
from jvdm.evaluation.slices import SlicePass
from jvdm.model import Model

Params = Any


def _continuous(model: Model, images: jax.Array, keys: jax.Array, alpha: jax.Array) -> Any:
    """alpha y and log q of images dequantized uniformly, or of continuous data as they are."""
    if not model.num_levels:
        none = dequantization.Continuous()
        return none(images, images, dequantization.Start(alpha, alpha, alpha), 0)
    u = jax.vmap(lambda key: jax.random.uniform(key, model.image_shape))(keys)
    return dequantization.uniform(images, u, alpha, model.num_levels, model.data_map)


def _normal(model: Model, keys: jax.Array) -> jax.Array:
    return jax.vmap(lambda key: jax.random.normal(key, model.image_shape))(keys)


def _split(keys: jax.Array, n: int) -> jax.Array:
    """[n, b] keys."""
    return jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, n))(keys), 1, 0)


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

    name: ClassVar[str]
    terms: ClassVar[tuple[str, ...]]
    shown: ClassVar[tuple[str, ...]] = ()
    latent: Any = None

    def __init__(self, model: Model, mesh: Mesh, config: Config, *, batch_size: int, draws: int):
        if model.latent is not None:
            raise UserError(f"the estimator {self.name} is not for models with a latent: choose vlb or ode")
        bound, scale = self._bound(model, config), model.units_per_nat

        def one_draw(params, images, u, keys):
            context = model.context(params, Batch(images, jnp.zeros(images.shape[0])))

            def coefficients(t):
                return model.coefficients(model.time_gamma(params, t, context))

            def eps_hat_at(t):
                return lambda z: model.predict(params, z, t, context).eps

            terms, log_q, at_t = bound(images, u, keys, coefficients, eps_hat_at)
            rows = {**terms._asdict(), "dequantization": log_q}
            return {name: scale * row for name, row in rows.items()}, at_t.gamma.mean(axis=(1, 2, 3))

        self._pass = SlicePass(one_draw, mesh, batch_size=batch_size, draws=draws)

    @abc.abstractmethod
    def _bound(self, model: Model, config: Config) -> Callable[..., tuple[Any, jax.Array, Coefficients]]:
        """(images, u, keys, t -> coefficients, t -> eps_hat) -> (terms, log q, coefficients at t)."""

    def rows(self, params: Params, images: np.ndarray, key: jax.Array, *, first: int = 0) -> Iterator[Rows]:
        """As `VLB.rows`."""
        return self._pass(params, images, key, first)


class RandomSliceELBO(_ScoreBound):
    """The compiled random-slice bound; `config` is the section `eval.elbo`."""

    name = "elbo"
    terms = ("prior", "score", "divergence", "dequantization")

    def _bound(self, model: Model, config: Config) -> Callable[..., tuple[Any, jax.Array, Coefficients]]:
        if config.prior not in score_bounds.PRIORS:
            raise unknown("config.eval.elbo.prior", config.prior, score_bounds.PRIORS)
        trace, prior = TRACES.build(config.trace), score_bounds.PRIORS[config.prior]

        def bound(images, u, keys, coefficients, eps_hat_at):
            k_data, k_eps, k_eps_1, k_probe = _split(keys, 4)
            # Not 0, to which u may be rounded: there may be no noise at all.
            t = jnp.maximum(u, 2.0**-24)
            at_s, at_t, at_1 = (coefficients(a) for a in (jnp.zeros_like(t), t, jnp.ones_like(t)))
            data = _continuous(model, images, k_data, at_s.alpha)
            probes = jnp.moveaxis(jax.vmap(lambda key: trace.draw(key, model.image_shape))(k_probe), 1, 0)
            terms = score_bounds.random_slice(
                eps_hat_at(t),
                data.z,
                eps=_normal(model, k_eps),
                eps_1=_normal(model, k_eps_1),
                probes=probes,
                trace=trace,
                span=jnp.ones_like(t),
                dlogalpha_dgamma=model.path.dlogalpha_dgamma(at_t.gamma),
                at_s=at_s,
                at_t=at_t,
                at_1=at_1,
                prior=prior,
                log_sigma_1=model.path.log_sigma(at_1.gamma),
            )
            return terms, data.log_q, at_t

        return bound


class ScoreFlowBound(_ScoreBound):
    """The compiled truncated bound; `config` is the section `eval.scoreflow`.

    Times that are uniform in gamma need a fixed schedule.
    """

    name = "scoreflow"
    terms = ("prior", "diffusion", "reconstruction", "dequantization")

    def _bound(self, model: Model, config: Config) -> Callable[..., tuple[Any, jax.Array, Coefficients]]:
        epsilon, importance = config.epsilon, config.importance
        if not epsilon and model.schedule.gamma_min == -np.inf:
            raise UserError(
                "config.eval.scoreflow.epsilon is 0, where this schedule has no noise: "
                "give a time such as 1e-5"
            )
        if importance and not hasattr(model.schedule, "inverse"):
            raise UserError("config.eval.scoreflow.importance=True needs a fixed schedule: set it to False")

        def bound(images, u, keys, coefficients, eps_hat_at):
            k_data, k_eps, k_eps_1, k_eps_e = _split(keys, 4)
            t_e, one = jnp.full_like(u, epsilon), jnp.ones_like(u)
            t, span = epsilon + (1.0 - epsilon) * u, (1.0 - epsilon) * one
            if importance:
                gamma_e, gamma_1 = model.schedule(t_e), model.schedule(one)
                t = jnp.clip(model.schedule.inverse(gamma_e + (gamma_1 - gamma_e) * u), epsilon, 1.0)
                span = (gamma_1 - gamma_e) / schedules.at(model.schedule, t).dgamma_dt
            at_t, at_e, at_1 = (coefficients(a) for a in (t, t_e, one))
            data = _continuous(model, images, k_data, jnp.ones_like(at_t.alpha))
            terms = score_bounds.truncated(
                eps_hat_at(t),
                eps_hat_at(t_e),
                data.z,
                eps=_normal(model, k_eps),
                eps_1=_normal(model, k_eps_1),
                eps_e=_normal(model, k_eps_e),
                span=span,
                dlogalpha_dgamma=model.path.dlogalpha_dgamma(at_t.gamma),
                at_t=at_t,
                at_e=at_e,
                at_1=at_1,
                log_sigma_1=model.path.log_sigma(at_1.gamma),
            )
            return terms, data.log_q, at_t

        return bound
