"""The terms of the variational bound on -log P(x), per example, in nats (2107.00630, section 3).

With data x in {0..K-1}, encoded as f (`jvdm.diffusion.transforms`; 2 (x + 1/2) / K - 1 by scaling), and
z_0 / alpha_0 = f + e^(gamma_0 / 2) eps_0:

    1. reconstruction: -sum log softmax_v [ -1/2 e^-gamma_0 (z_0 / alpha_0 - f_v)^2 ] at v = x
    2. prior:          KL( N(alpha_1 f, sigma_1^2) || p(z_1) ), where p(z_1) is N(0, sigma_1^2), so that it is
                       1/2 sum( alpha_1^2 f^2 / sigma_1^2 ), or N(0, 1), as the paper has it:
                       1/2 sum( alpha_1^2 f^2 + sigma_1^2 - ln sigma_1^2 - 1 )
    3. diffusion, continuous time: 1/2 gamma'(t) |eps - eps_hat|^2 (`gaussian`, 7)
    4. diffusion, T steps:         T/2 expm1(gamma_t - gamma_s) |eps - eps_hat|^2,  s = t - 1/T

And a penalty of training (2305.03935, section 4.3), for an output F with eps = n F + k z, |F - F_hat|^2 of
weight w in (3), one probe v, and e = |F - F_hat|^2 without gradient:

    5. second order: (lambda / D) w r^2,  r = sigma v^T (dF/dz) v - a D + n e,  a = (1 - k sigma) / n
       From E[ sigma div eps_hat | z ] = D - E[ |eps - eps_hat|^2 | z ] for the perfect eps_hat, over n.

Denoising score matching leaves (1) and (2) away, and may weigh (3) otherwise (2011.13456, section 3.3;
2101.09258, section 4; 2106.02808, section 4):

    6. 1/2 w(t) |eps - eps_hat|^2,  w = 1, or the likelihood's above t_e, w = gamma'(max(t, t_e))
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvdm.core.shapes import lead, sum_example
from jvdm.diffusion.normal import Normal, kl
from jvdm.diffusion.transforms import SCALING, DataMap, Levels, encode

# Broadcastable to the data.
Scale = Float[Array, "..."]


# The weights w of (6).
WEIGHTINGS = ("unweighted", "likelihood")

# What z_0 is multiplied by before the decoder divides it by alpha_0. The released i-DODE code divides twice:
# on the straight path at a cost of 0.017 bits/dim on CIFAR-10, on the other, where alpha_0 is 1 - 8e-7, at
# none to speak of. It is here to reproduce its numbers.
DECODERS: dict[str, Callable[[Scale], Scale]] = {
    "exact": jnp.ones_like,
    "idode_released": lambda alpha_0: 1.0 / alpha_0,
}


def reconstruction(
    levels: Levels,
    eps_0: Float[Array, " b *d"],
    gamma_0: Scale,
    num_levels: int,
    decoder_scale: Scale | None = None,
    data_map: DataMap = SCALING,
) -> Float[Array, " b"]:
    """Term (1), -log p(x | z_0), exact for any number of levels.

    The distance of z_0 / alpha_0 to level v, in units of its standard deviation e^(gamma_0 / 2), is
    (f_x - f_v) / e^(gamma_0 / 2) + eps_0: no digits are lost when levels are many deviations apart.

    Args:
        levels: [b, *data_shape] data, 0..K-1.
        eps_0: [b, *data_shape] noise at time 0.
        gamma_0: gamma at time 0, broadcastable to the data.
        num_levels: K.
        decoder_scale: of z_0, one of `DECODERS` at alpha_0; None is 1.
        data_map: that encodes.

    Returns:
        [b] nats.
    """
    if decoder_scale is not None:
        f = encode(levels, num_levels, data_map).astype(eps_0.dtype)
        eps_0 = eps_0 + (decoder_scale - 1.0) * (f * jnp.exp(-0.5 * gamma_0) + eps_0)

    # Recomputed in the backward pass: K numbers per pixel are too many to keep.
    @jax.checkpoint
    def log_normalizer(gamma_0):
        values = lead(jnp.arange(num_levels, dtype=jnp.float32), levels.ndim + 1)
        differences = data_map.difference(levels[..., None], values, num_levels).astype(eps_0.dtype)
        one_over = lead(jnp.exp(-0.5 * gamma_0)[..., None], differences.ndim)
        distance = one_over * differences + eps_0[..., None]
        return jax.nn.logsumexp(-0.5 * distance**2, axis=-1)

    return sum_example(log_normalizer(gamma_0) + 0.5 * eps_0**2)


def decoder_logits(
    z_0: Float[Array, " b *d"],
    alpha_0: Scale,
    gamma_0: Scale,
    num_levels: int,
    data_map: DataMap = SCALING,
) -> Float[Array, "b *d k"]:
    """The unnormalised log p(x = v | z_0) of term (1) for every level v.

    Args:
        z_0: [b, *data_shape] at time 0.
        alpha_0, gamma_0: at time 0, broadcastable to z_0.
        num_levels: K.
        data_map: that encodes.

    Returns:
        [b, *data_shape, K].
    """
    f = encode(jnp.arange(num_levels), num_levels, data_map).astype(z_0.dtype)
    distance = (z_0 / alpha_0)[..., None] - lead(f, z_0.ndim + 1)
    return -0.5 * lead(jnp.exp(-gamma_0)[..., None], distance.ndim) * distance**2


def prior(marginal: Normal, prior: Normal) -> Float[Array, " b"]:
    """Term (2), KL(q(z_1 | x) || p(z_1)).

    Args:
        marginal: q(z_1 | x), [b, *data_shape] means.
        prior: p(z_1), broadcastable to them.

    Returns:
        [b] nats.
    """
    return kl(marginal, prior)


def diffusion_discrete(
    timesteps: int,
    gamma_s: Scale,
    gamma_t: Scale,
    squared_error: Float[Array, " b *d"],
) -> Float[Array, " b"]:
    """Term (4) at drawn steps: an unbiased estimate of the sum over T steps.

    The stable form, of the process that leaves x as it is, of what `diffusion_kl` has for any process.

    Args:
        timesteps: T.
        gamma_s, gamma_t: at s = t - 1/T and t, broadcastable to the data.
        squared_error: [b, *data_shape] (eps - eps_hat)^2.

    Returns:
        [b] nats.
    """
    return 0.5 * timesteps * sum_example(jnp.expm1(gamma_t - gamma_s) * squared_error)


def diffusion_kl(timesteps: int, posterior: Normal, reverse: Normal) -> Float[Array, " b"]:
    """T KL(q(z_s | z_t, x) || p(z_s | z_t)) at drawn steps: an unbiased estimate of the sum over T steps.

    Args:
        timesteps: T.
        posterior, reverse: of a process (`gaussian`, 3 and 4), [b, *data_shape] means.

    Returns:
        [b] nats.
    """
    return timesteps * kl(posterior, reverse)


def score_matching(weight: Float[Array, " b"], squared_error: Float[Array, " b *d"]) -> Float[Array, " b"]:
    """Objective (6) at drawn times.

    Args:
        weight: [b] w, over the density of the times.
        squared_error: [b, *data_shape] (eps - eps_hat)^2.

    Returns:
        [b] nats.
    """
    return 0.5 * weight * sum_example(squared_error)


def second_order(
    strength: float,
    weight: Float[Array, " b"],
    divergence: Float[Array, " b"],
    squared_error: Float[Array, " b"],
    *,
    scale: Float[Array, " b"],
    eps_coeff: Float[Array, " b"],
    sigma: Float[Array, " b"],
    num_dims: int,
) -> Float[Array, " b"]:
    """Penalty (5) at drawn times.

    Args:
        strength: lambda.
        weight: [b] w, of the output's squared error in the diffusion term.
        divergence: [b] v^T (dF/dz) v.
        squared_error: [b] e, of the output.
        scale, eps_coeff: [b] n and a, of the parameterization.
        sigma: [b] at t.
        num_dims: D.

    Returns:
        [b] nats.
    """
    e = jax.lax.stop_gradient(squared_error)
    residual = sigma * divergence - eps_coeff * num_dims + scale * e
    return strength / num_dims * weight * residual**2
