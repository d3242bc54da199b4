"""What training minimises and evaluation reports: the terms of a model's bound, or of score matching.

Each is a function of a model (`jvdm.model`), its parameters, images, and random numbers drawn beforehand
(`Model.draw`): the formulas are those of `jvdm.diffusion.losses`, at the times and noise that the draws give.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jvdm.core.records import Batch, Context, Draws, Dropout, LatentCost, LossTerms, ScoreMatching, TimeGamma
from jvdm.core.shapes import of_example, sum_example
from jvdm.diffusion import losses, transforms
from jvdm.diffusion.gaussian import coefficients
from jvdm.model import Model

Params = Any


def bound(
    model: Model,
    params: Params,
    draws: Draws,
    batch: Batch,
    *,
    dropout: Dropout | None = None,
    at: TimeGamma | None = None,
    known: tuple[Context, LatentCost | None] | None = None,
    second_order: float = 0.0,
) -> LossTerms:
    """The terms of the variational bound for given draws (`jvdm.diffusion.losses`, terms 1 to 5).

    Args:
        model: of discrete data, with noise at time 0.
        params: the model's.
        draws: random numbers, one set per example.
        batch: the examples.
        dropout: dropout is on if given.
        at: gamma and dgamma/dt at the drawn times, where the caller differentiates through
            them; by default they are computed here.
        known: as `Model.encode_latent` returns it; by default computed here.
        second_order: lambda of the penalty; 0 leaves it out.

    Returns:
        Each term [b], nats.
    """
    if known is None:
        known = model.encode_latent(params, batch, draws.latent, step=draws.step, dropout=dropout)
    context, cost = known
    process = model.process
    t, density_weight = model.times(draws.u)
    c = model.at(params, t, context) if at is None else coefficients(model.path, *at)
    x = model.encode(batch.x)
    encoded = process.encode(params, x, c, context)
    z = process.sample(encoded, draws.eps, c)
    relation = model.parameterization(c)

    def network(z):
        return model.output(params, z, c.gamma, context, t=t, dropout=dropout)

    if second_order:
        assert draws.probe is not None
        out, tangent = jax.jvp(network, (z,), (draws.probe,))
        weight = 0.5 * of_example(c.dgamma_dt) * density_weight * of_example(relation.scale) ** 2
        penalty = losses.second_order(
            second_order,
            weight,
            sum_example(draws.probe * tangent),
            sum_example((relation.target(encoded.value, draws.eps) - out) ** 2),
            scale=of_example(relation.scale),
            eps_coeff=of_example(relation.eps_coeff),
            sigma=of_example(c.sigma),
            num_dims=model.num_dims,
        )
    else:
        out, penalty = network(z), None
    prediction = relation.predict(out, z, c)
    if model.timesteps:
        at_s = model.at(params, t - 1.0 / model.timesteps, context)
        encoded_s = process.encode(params, x, at_s, context)
        diffusion = process.step_loss(
            params, encoded_s, encoded, draws.eps, prediction, at_s, model.timesteps, context
        )
    else:
        diffusion = process.integrand(encoded, draws.eps, prediction, density_weight)

    at_0, at_1 = process.at_ends(params, context)
    return LossTerms(
        reconstruction=losses.reconstruction(
            batch.x,
            draws.eps_0,
            at_0.gamma,
            model.num_levels,
            model.decoder_scale(at_0.alpha),
            model.data_map,
        ),
        prior=losses.prior(
            process.marginal(process.encode(params, x, at_1, context), at_1), model.prior(params)
        ),
        diffusion=diffusion,
        second_order=penalty,
        latent=None if cost is None else cost.charge,
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
    dropout: Dropout | None = None,
) -> ScoreMatching:
    """Denoising score matching for given draws (`jvdm.diffusion.losses`, objective 6).

    Args:
        model: in continuous time.
        params: the model's.
        draws: random numbers, one set per example.
        batch: the examples.
        weighting: a name of `losses.WEIGHTINGS`.
        truncation: the time below which the weight of the likelihood stays what it is there.
        dequantize: discrete data is spread over its cells, rather than at their centres.
        dropout: dropout is on if given.

    Returns:
        [b] nats.
    """
    context, _ = model.encode_latent(params, batch, draws.latent, step=draws.step, dropout=dropout)
    t, density_weight = model.times(draws.u)
    # Stratified times are exactly 0 once in 2^23 / b batches, without noise: an output may be 0 / 0.
    t = jnp.maximum(t, 2.0**-24)
    c = model.at(params, t, context)
    if model.num_levels and dequantize:
        if draws.u_data is None:
            raise ValueError("these draws have no u_data to dequantize with")
        x = transforms.dequantize(batch.x, draws.u_data, model.num_levels, model.data_map).y
    else:
        x = model.encode(batch.x)
    encoded = model.process.encode(params, x, c, context)
    z = model.process.sample(encoded, draws.eps, c)
    out = model.output(params, z, c.gamma, context, t=t, dropout=dropout)
    if weighting == "likelihood":
        at = jnp.maximum(t, truncation)
        density_weight *= of_example(model.time_gamma(params, at, context).dgamma_dt)
    squared_error = model.parameterization(c).squared_error(out, encoded.value, draws.eps)
    return ScoreMatching(losses.score_matching(density_weight, squared_error))
