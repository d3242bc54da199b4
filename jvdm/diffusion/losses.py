"""The terms of the variational bound on -log P(x), per example, in nats (2107.00630, section 3).

With data x in {0..K-1}, encoded as f (`jvdm.diffusion.transforms`; 2 (x + 1/2) / K - 1 by scaling), and
z_0 / alpha_0 = f + e^(gamma_0 / 2) eps_0:

    1. reconstruction: -sum log softmax_v [ -1/2 e^-gamma_0 (z_0 / alpha_0 - f_v)^2 ] at v = x
    2. prior:          KL( N(alpha_1 f, sigma_1^2) || N(0, 1) )
                       = 1/2 sum( alpha_1^2 f^2 + sigma_1^2 - ln sigma_1^2 - 1 )
    3. diffusion, continuous time: 1/2 gamma'(t) |eps - eps_hat|^2
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

from jvdm.diffusion.transforms import SCALING, DataMap, Levels, encode

# Broadcastable to the data.
Scale = Float[Array, "..."]


def sum_example(a: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Sum over everything but the first axis."""
    return jnp.sum(a, axis=tuple(range(1, a.ndim)))


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
    eps_0: Float[Array, "b h w c"],
    gamma_0: Scale,
    num_levels: int,
    magnification: Scale | None = None,
    data_map: DataMap = SCALING,
) -> Float[Array, " b"]:
    """Term (1), -log p(x | z_0), exact for any number of levels.

    The distance of z_0 / alpha_0 to level v, in units of its standard deviation e^(gamma_0 / 2), is
    (f_x - f_v) / e^(gamma_0 / 2) + eps_0: no digits are lost when levels are many deviations apart.

    Args:
        levels: [b, h, w, c] data, 0..K-1.
        eps_0: [b, h, w, c] noise at time 0.
        gamma_0: gamma at time 0, broadcastable to the data.
        num_levels: K.
        magnification: of z_0, one of `DECODERS` at alpha_0; None is 1.
        data_map: that encodes.

    Returns:
        [b] nats.
    """
    if magnification is not None:
        f = encode(levels, num_levels, data_map)
        eps_0 = eps_0 + (magnification - 1.0) * (f * jnp.exp(-0.5 * gamma_0) + eps_0)

    # Recomputed in the backward pass: K numbers per pixel are too many to keep.
    @jax.checkpoint
    def log_normalizer(gamma_0):
        values = jnp.arange(num_levels, dtype=jnp.float32)
        differences = data_map.difference(levels[..., None], values, num_levels)
        distance = jnp.exp(-0.5 * gamma_0)[..., None] * differences + eps_0[..., None]
        return jax.nn.logsumexp(-0.5 * distance**2, axis=-1)

    return sum_example(log_normalizer(gamma_0) + 0.5 * eps_0**2)


def decoder_logits(
    z_0: Float[Array, "b h w c"],
    alpha_0: Scale,
    gamma_0: Scale,
    num_levels: int,
    data_map: DataMap = SCALING,
) -> Float[Array, "b h w c k"]:
    """The unnormalised log p(x = v | z_0) of term (1) for every level v.

    Args:
        z_0: [b, h, w, c] at time 0.
        alpha_0, gamma_0: at time 0, broadcastable to z_0.
        num_levels: K.
        data_map: that encodes.

    Returns:
        [b, h, w, c, K].
    """
    f = encode(jnp.arange(num_levels), num_levels, data_map)
    distance = (z_0 / alpha_0)[..., None] - f
    return -0.5 * jnp.exp(-gamma_0)[..., None] * distance**2


def prior(f: Float[Array, "b h w c"], alpha_1: Scale, log_sigma_1: Scale) -> Float[Array, " b"]:
    """Term (2), KL(q(z_1 | x) || N(0, 1)).

    Args:
        f: [b, h, w, c] encoded data.
        alpha_1, log_sigma_1: at time 1, broadcastable to f.

    Returns:
        [b] nats.
    """
    log_variance = 2.0 * log_sigma_1
    # expm1(l) - l: the variance is almost 1, so sigma^2 - ln sigma^2 - 1 would cancel.
    return 0.5 * sum_example((alpha_1 * f) ** 2 + (jnp.expm1(log_variance) - log_variance))


def diffusion_continuous(dgamma_dt: Scale, squared_error: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """Term (3) at drawn times: an unbiased estimate of the integral over t in [0, 1].

    Args:
        dgamma_dt: at t, broadcastable to the data.
        squared_error: [b, h, w, c] (eps - eps_hat)^2.

    Returns:
        [b] nats.
    """
    return 0.5 * sum_example(dgamma_dt * squared_error)


def diffusion_discrete(
    timesteps: int,
    gamma_s: Scale,
    gamma_t: Scale,
    squared_error: Float[Array, "b h w c"],
) -> Float[Array, " b"]:
    """Term (4) at drawn steps: an unbiased estimate of the sum over T steps.

    Args:
        timesteps: T.
        gamma_s, gamma_t: at s = t - 1/T and t, broadcastable to the data.
        squared_error: [b, h, w, c] (eps - eps_hat)^2.

    Returns:
        [b] nats.
    """
    return 0.5 * timesteps * sum_example(jnp.expm1(gamma_t - gamma_s) * squared_error)


def score_matching(weight: Float[Array, " b"], squared_error: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """Objective (6) at drawn times.

    Args:
        weight: [b] w, over the density of the times.
        squared_error: [b, h, w, c] (eps - eps_hat)^2.

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
    on_eps: Float[Array, " b"],
    sigma: Float[Array, " b"],
    num_dims: int,
) -> Float[Array, " b"]:
    """Penalty (5) at drawn times.

    Args:
        strength: lambda.
        weight: [b] w, of the output's squared error in the diffusion term.
        divergence: [b] v^T (dF/dz) v.
        squared_error: [b] e, of the output.
        scale, on_eps: [b] n and a, of the parameterization.
        sigma: [b] at t.
        num_dims: D.

    Returns:
        [b] nats.
    """
    e = jax.lax.stop_gradient(squared_error)
    residual = sigma * divergence - on_eps * num_dims + scale * e
    return strength / num_dims * weight * residual**2
