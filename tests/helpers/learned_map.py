"""A learned forward process, as a user would write it: DiffEnc (2310.19789).

With a network y(x, gamma) and primes for derivatives in gamma, on the variance-preserving path:

    1. encode:    x_t = x + sigma^2 y
    2. reverse:   p(z_s | z_t) has mean
                  (alpha_s / alpha_t) e^d z_t - alpha_s (expm1(d) + d sigma_t^2) x_hat,  d = gamma_s - gamma_t
    3. integrand: 1/2 gamma' alpha^2 |(x_hat - x_t) / sigma + sigma x_hat + x_t' / sigma|^2
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from jvdm.core.shapes import expand, sum_example
from jvdm.diffusion import losses
from jvdm.diffusion.gaussian import AffineProcess, c_of_step
from jvdm.diffusion.normal import Normal
from jvdm.diffusion.process import PROCESSES, Encoded

NAME = "diffenc"


class Map(nn.Module):
    """y(x, gamma)."""

    hidden: int

    @nn.compact
    def __call__(self, x, gamma):
        flat = x.reshape(len(x), -1)
        hidden = nn.tanh(
            nn.Dense(self.hidden, param_dtype=x.dtype)(
                jnp.concatenate([flat, 0.1 * gamma.reshape(-1, 1)], axis=-1)
            )
        )
        return jnp.tanh(nn.Dense(flat.shape[-1], param_dtype=x.dtype)(hidden)).reshape(x.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffEnc(AffineProcess):
    """The process (1) to (3); it has no ODE, and q(z_t | z_s, x) needs x."""

    hidden: int = 16

    def init(self, key, context):
        k_schedule, k_map = jax.random.split(key)
        x, gamma = jnp.zeros((1, *self.data_shape)), jnp.zeros((1, *(1,) * self.rank))
        return {
            **super().init(k_schedule, context),
            "forward_map": Map(self.hidden).init(k_map, x, gamma)["params"],
        }

    def encode(self, params, x, at, context=None):
        def encoded(gamma):
            return x + jax.nn.sigmoid(gamma) * Map(self.hidden).apply(
                {"params": params["forward_map"]}, x, gamma
            )

        # Every example has a time, also where all share it.
        gamma = jnp.broadcast_to(at.gamma, (len(x), *(1,) * self.rank))
        return Encoded(*jax.jvp(encoded, (gamma,), (jnp.ones_like(gamma),)))

    def reverse(self, params, z_t, prediction, at_s, context=None):
        at_t = prediction.coefficients
        d = at_s.gamma - at_t.gamma
        x_hat = self.denoised(z_t, prediction)
        mean = at_s.alpha / at_t.alpha * jnp.exp(d) * z_t
        mean = mean - at_s.alpha * (jnp.expm1(d) + d * at_t.sigma**2) * x_hat
        return Normal(mean, self.path.log_sigma(at_s.gamma) + 0.5 * jnp.log(c_of_step(at_s, at_t)))

    def integrand(self, encoded, eps, prediction, weight=1.0):
        c = prediction.coefficients
        x_hat = self.denoised(self.sample(encoded, eps, c), prediction)
        error = (x_hat - encoded.value + encoded.tangent) / c.sigma + c.sigma * x_hat
        rate = c.dgamma_dt * expand(jnp.broadcast_to(weight, eps.shape[:1]), self.rank)
        return 0.5 * sum_example(rate * (c.alpha * error) ** 2)

    def step_loss(self, params, encoded_s, encoded_t, eps, prediction, at_s, timesteps, context=None):
        at_t = prediction.coefficients
        z_t = self.sample(encoded_t, eps, at_t)
        posterior = self.posterior(z_t, encoded_s, encoded_t, at_s, at_t)
        return losses.diffusion_kl(timesteps, posterior, self.reverse(params, z_t, prediction, at_s))


def register():
    """Enter it, as an import of a user's module would."""
    PROCESSES.register(NAME)(DiffEnc)


def forget():
    """Take it out again."""
    del PROCESSES._components[NAME]
