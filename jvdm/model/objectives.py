"""What training minimises and evaluation reports: the terms of a model's bound, or of score matching.

Each is a function of a model (`jvdm.model`), its parameters, images, and random numbers drawn beforehand
(`Model.draw`): the formulas are those of `jvdm.diffusion.losses`, at the times and noise that the draws give.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jvdm.core.records import Batch, Context, Draws, LossTerms, ScoreMatching, TimeGamma
from jvdm.diffusion import losses, transforms
from jvdm.model import Model

Params = Any


def bound(
    model: Model,
    params: Params,
    draws: Draws,
    batch: Batch,
    *,
    dropout_key: jax.Array | None = None,
    at: TimeGamma | None = None,
    context: Context | None = None,
    second_order: float = 0.0,
) -> LossTerms:
    """The terms of the variational bound for given draws (`jvdm.diffusion.losses`, terms 1 to 5).

    Args:
        model: of discrete data, with noise at time 0.
        params: the model's.
        draws: random numbers, one set per example.
        batch: the images.
        dropout_key: dropout is on if given.
        at: gamma and dgamma/dt at the drawn times, where the caller differentiates through
            them; by default they are computed here.
        context: likewise.
        second_order: lambda of the penalty; 0 leaves it out.

    Returns:
        Each term [b], nats.
    """
    if context is None:
        context = model.context(params, batch, draws.latent, step=draws.step, dropout_key=dropout_key)
    t, density_weight = model.times(draws.u)
    if at is None:
        at = model.time_gamma(params, t, context)
    c = model.coefficients(at)
    f = transforms.encode(batch.images, model.num_levels, model.data_map)
    z = c.alpha * f + c.sigma * draws.eps
    relation = model.parameterization(c)

    def network(z):
        return model.output(params, z, c.gamma, context, t=t, dropout_key=dropout_key)

    weight = c.dgamma_dt * density_weight[:, None, None, None]
    if second_order:
        assert draws.probe is not None
        out, tangent = jax.jvp(network, (z,), (draws.probe,))
        penalty = losses.second_order(
            second_order,
            jnp.ravel(0.5 * weight * relation.scale**2),
            losses.sum_example(draws.probe * tangent),
            losses.sum_example((relation.target(f, draws.eps) - out) ** 2),
            scale=jnp.ravel(relation.scale),
            on_eps=jnp.ravel(relation.on_eps),
            sigma=jnp.ravel(c.sigma),
            num_dims=model.num_dims,
        )
    else:
        out, penalty = network(z), None
    squared_error = relation.squared_error(out, f, draws.eps)
    if model.timesteps:
        gamma_s = model.gamma(params, (t - 1.0 / model.timesteps)[:, None, None, None], context)
        diffusion = losses.diffusion_discrete(model.timesteps, gamma_s, c.gamma, squared_error)
    else:
        diffusion = losses.diffusion_continuous(weight, squared_error)

    ends = jnp.array([0.0, 1.0])[:, None, None, None, None]
    gamma_0, gamma_1 = model.gamma(params, ends, context)
    alpha_0, _ = model.path.alpha_sigma(gamma_0)
    alpha_1, _ = model.path.alpha_sigma(gamma_1)
    return LossTerms(
        reconstruction=losses.reconstruction(
            batch.images,
            draws.eps_0,
            gamma_0,
            model.num_levels,
            model.magnification(alpha_0),
            model.data_map,
        ),
        prior=losses.prior(f, alpha_1, model.path.log_sigma(gamma_1)),
        diffusion=diffusion,
        second_order=penalty,
        latent=context.charge,
    )


def score_matching(
    model: Model,
    params: Params,
    draws: Draws,
    batch: Batch,
    *,
    weighting: str,
    truncation: float,
    dequantize: bool,
    dropout_key: jax.Array | None = None,
) -> ScoreMatching:
    """Denoising score matching for given draws (`jvdm.diffusion.losses`, objective 6).

    Args:
        model: in continuous time.
        params: the model's.
        draws: random numbers, one set per example.
        batch: the images.
        weighting: a name of `losses.WEIGHTINGS`.
        truncation: the time below which the weight of the likelihood stays what it is there.
        dequantize: discrete data is spread over its cells, rather than at their centres.
        dropout_key: dropout is on if given.

    Returns:
        [b] nats.
    """
    context = model.context(params, batch, draws.latent, step=draws.step, dropout_key=dropout_key)
    t, density_weight = model.times(draws.u)
    # Stratified times are exactly 0 once in 2^23 / b batches, without noise: an output may be 0 / 0.
    t = jnp.maximum(t, 2.0**-24)
    c = model.coefficients(model.time_gamma(params, t, context))
    if model.num_levels and dequantize:
        if draws.u_data is None:
            raise ValueError("these draws have no u_data to dequantize with")
        f = transforms.dequantize(batch.images, draws.u_data, model.num_levels, model.data_map).y
    else:
        f = transforms.encode(batch.images, model.num_levels, model.data_map)
    z = c.alpha * f + c.sigma * draws.eps
    out = model.output(params, z, c.gamma, context, t=t, dropout_key=dropout_key)
    if weighting == "likelihood":
        at = jnp.maximum(t, truncation)
        density_weight *= jnp.ravel(model.time_gamma(params, at, context).dgamma_dt)
    squared_error = model.parameterization(c).squared_error(out, f, draws.eps)
    return ScoreMatching(losses.score_matching(density_weight, squared_error))
