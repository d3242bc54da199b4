"""The processes z_t = alpha f + sigma eps, with f made of x, and the one with f = x.

For s < t, c = 1 - e^(gamma_s - gamma_t), a denoiser's eps_hat and x_hat = (z_t - sigma_t eps_hat) / alpha_t:

    1. marginal:   q(z_t | x) = N(alpha_t x, sigma_t^2)                            (2107.00630, section 3.1)
    2. forward:    q(z_t | z_s) = N((alpha_t / alpha_s) z_s, sigma_t^2 c)          (2107.00630, appendix A.1)
    3. posterior:  q(z_s | z_t, x) = N((alpha_s / alpha_t) (1 - c) z_t + alpha_s c x, sigma_s^2 c)
                                                                                   (2107.00630, appendix A.2)
                   with f_s and f_t in place of x, alpha_s (1 - c) (f_s - f_t) is added to alpha_s c f_s
    4. reverse:    p(z_s | z_t) is (3) at x_hat: its mean is (alpha_s / alpha_t) (z_t - c sigma_t eps_hat)
    5. prior:      p(z_1) = N(0, sigma_1^2), or N(0, 1) as the released codes have it; both give valid bounds
    6. drift:      dz/dt = (d log alpha / dt) z - 1/2 g^2 score,  score = -eps_hat / sigma, of the
                   probability-flow ODE                                            (2011.13456, section 4.3)
    7. integrand:  1/2 gamma'(t) |eps - eps_hat|^2, the diffusion loss per unit of time, which is
                   lim T KL((3) || (4)) for s = t - 1/T                            (2107.00630, section 4.1)
    8. step loss:  T KL((3) || (4)) = T/2 expm1(gamma_t - gamma_s) |eps - eps_hat|^2
                                                                                   (2107.00630, section 4.2)

At a time without noise gamma is -inf and gamma' inf. A schedule that gives log alpha keeps what has a limit
there: d log alpha / dt and g^2 come from log alpha, not from gamma.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvdm.core.errors import unknown
from jvdm.core.records import Coefficients, Context, TimeGamma
from jvdm.core.shapes import expand, sum_example
from jvdm.diffusion import losses
from jvdm.diffusion.normal import Normal
from jvdm.diffusion.process import PROCESSES, Encoded
from jvdm.diffusion.relations import Prediction

Data = Float[Array, " b *d"]
Scale = Float[Array, "..."]
Params = Any

PRIORS = ("path", "standard")


def diffuse(x: Float[Array, "..."], eps: Float[Array, "..."], at: Coefficients) -> Float[Array, "..."]:
    """z_t = alpha x + sigma eps.

    Args:
        x: data, or what the process makes of them.
        eps: standard normal noise, of the same shape.
        at: broadcastable to them.

    Returns:
        z_t, of the shape of x.
    """
    return at.alpha * x + at.sigma * eps


def coefficients(path: Any, gamma: Scale, dgamma_dt: Scale) -> Coefficients:
    """The coefficients of a path where the schedule is gamma, with its derivative in t.

    Args:
        path: one of `jvdm.diffusion.paths`.
        gamma: of any shape.
        dgamma_dt: of the same shape.

    Returns:
        Every field of that shape.
    """
    alpha, sigma = path.alpha_sigma(gamma)
    rate = path.dlogalpha_dgamma(gamma) * dgamma_dt
    return Coefficients(alpha, sigma, gamma, dgamma_dt, rate, sigma**2 * dgamma_dt)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AffineProcess:
    """What all processes z_t = alpha f + sigma eps share; gamma may be another at every pixel.

    Attributes:
        schedule: (t, context) -> gamma, a linen module (`schedules`, `per_pixel_schedules`), whose parameters
            are `params["schedule"]` of the methods.
        path: gamma -> alpha, sigma (`paths`).
        data_shape: of one example.
        prior_name: "path", N(0, sigma_1^2), or "standard", N(0, 1).

    Raises:
        UserError: an unknown prior.
    """

    schedule: Any
    path: Any
    data_shape: tuple[int, ...]
    prior_name: str

    def __post_init__(self):
        if self.prior_name not in PRIORS:
            raise unknown("config.model.prior", self.prior_name, PRIORS)

    @property
    def rank(self) -> int:
        """The number of axes of one example."""
        return len(self.data_shape)

    @property
    def starts_without_noise(self) -> bool:
        """Whether gamma is -inf at time 0."""
        return self.schedule.gamma_min == -math.inf

    @property
    def prior_text(self) -> str:
        """The prior, for records."""
        return "N(0, sigma_1^2 I)" if self.prior_name == "path" else "N(0, I)"

    def init(self, key: jax.Array, context: Context) -> Params:
        """As `Process.init`: `{"schedule": ...}`."""
        t = jnp.zeros((1,) * (self.rank + 1) if self.schedule.per_pixel else ())
        return {"schedule": self.schedule.init(key, t, context).get("params", {})}

    def gamma(self, params: Params, t: Scale, context: Context | None = None) -> Scale:
        """As `Process.gamma`."""
        gamma: Any = self.schedule.apply({"params": params["schedule"]}, t, context)
        return gamma

    def time_gamma(self, params: Params, t: Float[Array, " b"], context: Context | None = None) -> TimeGamma:
        """As `Process.time_gamma`, by a JVP."""
        t = expand(t, self.rank)
        return TimeGamma(*jax.jvp(lambda t: self.gamma(params, t, context), (t,), (jnp.ones_like(t),)))

    def at(self, params: Params, t: Float[Array, " b"], context: Context | None = None) -> Coefficients:
        """As `Process.at`."""
        c = coefficients(self.path, *self.time_gamma(params, t, context))
        if not self.starts_without_noise:
            return c
        # gamma is infinite at t = 0, log alpha is not.
        t = expand(t, self.rank)
        _, rate = jax.jvp(self.schedule.log_alpha, (t,), (jnp.ones_like(t),))
        return c._replace(dlogalpha_dt=rate, g2=self.path.g2_over_dlogalpha(c.gamma) * rate)

    def at_ends(self, params: Params, context: Context | None = None) -> tuple[Coefficients, Coefficients]:
        """As `Process.at_ends`."""
        t = expand(jnp.array([0.0, 1.0]), self.rank + 1)
        at = jax.jvp(lambda t: self.gamma(params, t, context), (t,), (jnp.ones_like(t),))
        zero, one = (coefficients(self.path, *(a[i] for a in at)) for i in (0, 1))
        return zero, one

    def ends(self, params: Params) -> Float[Array, "2"]:
        """As `Process.ends`."""
        ends = jnp.array([0.0, 1.0])
        if self.schedule.per_pixel:
            return self.schedule.gamma_min + (self.schedule.gamma_max - self.schedule.gamma_min) * ends
        return self.gamma(params, ends)

    def sample(self, encoded: Encoded, eps: Data, at: Coefficients) -> Data:
        """As `Process.sample`: z_t of (1)."""
        return diffuse(encoded.value, eps, at)

    def marginal(self, encoded: Encoded, at: Coefficients) -> Normal:
        """As `Process.marginal`: (1)."""
        return Normal(at.alpha * encoded.value, self.path.log_sigma(at.gamma))

    def posterior(
        self, z_t: Data, encoded_s: Encoded, encoded_t: Encoded, at_s: Coefficients, at_t: Coefficients
    ) -> Normal:
        """q(z_s | z_t, x) of (3), with what the process makes of x at both times.

        Args:
            z_t: [b, *data_shape].
            encoded_s, encoded_t: x at s and t.
            at_s, at_t: the process at s and t.

        Returns:
            Of [b, *data_shape] means.
        """
        c = c_of_step(at_s, at_t)
        change = (1.0 - c) * (encoded_s.value - encoded_t.value)
        mean = at_s.alpha / at_t.alpha * (1.0 - c) * z_t + at_s.alpha * (c * encoded_s.value + change)
        return Normal(mean, self.path.log_sigma(at_s.gamma) + 0.5 * jnp.log(c))

    def prior(self, params: Params) -> Normal:
        """As `Process.prior`: (5), a scalar mean and log sigma."""
        if self.prior_name == "standard":
            return Normal(jnp.zeros(()), jnp.zeros(()))
        return Normal(jnp.zeros(()), self.path.log_sigma(self.ends(params)[1]))

    def denoised(self, z: Data, prediction: Prediction) -> Data:
        """As `Process.denoised`: (z - sigma eps_hat) / alpha."""
        c = prediction.coefficients
        return (z - c.sigma * prediction.eps) / c.alpha


@PROCESSES.register("gaussian")
@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianProcess(AffineProcess):
    """The process (1) to (8), which leaves x as it is."""

    is_markov = True

    def encode(self, params: Params, x: Data, at: Coefficients, context: Context | None = None) -> Encoded:
        """As `Process.encode`: x itself, with tangent 0."""
        return Encoded(x, jnp.zeros_like(x))

    def forward(
        self,
        z_s: Data,
        encoded_s: Encoded | None,
        encoded_t: Encoded | None,
        at_s: Coefficients,
        at_t: Coefficients,
    ) -> Normal:
        """q(z_t | z_s) of (2).

        Args:
            z_s: [b, *data_shape].
            encoded_s, encoded_t: unused; None will do.
            at_s, at_t: the process at s and t.

        Returns:
            Of [b, *data_shape] means.
        """
        log_c = jnp.log(c_of_step(at_s, at_t))
        return Normal(at_t.alpha / at_s.alpha * z_s, self.path.log_sigma(at_t.gamma) + 0.5 * log_c)

    def reverse(
        self,
        params: Params,
        z_t: Data,
        prediction: Prediction,
        at_s: Coefficients,
        context: Context | None = None,
    ) -> Normal:
        """p(z_s | z_t) of (4), the ancestral step.

        Args:
            params, context: unused.
            z_t: [b, *data_shape].
            prediction: at z_t; it holds the process at t.
            at_s: the process at s.

        Returns:
            Of [b, *data_shape] means.
        """
        at_t = prediction.coefficients
        c = c_of_step(at_s, at_t)
        mean = at_s.alpha / at_t.alpha * (z_t - c * at_t.sigma * prediction.eps)
        return Normal(mean, self.path.log_sigma(at_s.gamma) + 0.5 * jnp.log(c))

    def drift(self, params: Params, z: Data, prediction: Prediction, context: Context | None = None) -> Data:
        """dz/dt of the probability-flow ODE (6).

        Args:
            params, context: unused.
            z: [b, *data_shape] z_t.
            prediction: at z; it holds the process at t.

        Returns:
            [b, *data_shape], per unit of t.
        """
        c = prediction.coefficients
        if self.starts_without_noise:
            return c.dlogalpha_dt * z - 0.5 * prediction.g2_score
        # The same, with gamma' taken out: adaptive steps keep the rounding that published numbers have.
        return c.dgamma_dt * (self.path.dlogalpha_dgamma(c.gamma) * z + 0.5 * c.sigma * prediction.eps)

    def integrand(
        self, encoded: Encoded, eps: Data, prediction: Prediction, weight: Float[Array, " b"] | float = 1.0
    ) -> Float[Array, " b"]:
        """As `Process.integrand`: (7)."""
        rate = prediction.coefficients.dgamma_dt * expand(jnp.broadcast_to(weight, eps.shape[:1]), self.rank)
        return 0.5 * sum_example(rate * prediction.squared_error(encoded.value, eps))

    def step_loss(
        self,
        params: Params,
        encoded_s: Encoded,
        encoded_t: Encoded,
        eps: Data,
        prediction: Prediction,
        at_s: Coefficients,
        timesteps: int,
        context: Context | None = None,
    ) -> Float[Array, " b"]:
        """T KL(posterior || reverse) of (8), at drawn steps.

        Args:
            params, context: unused.
            encoded_s, encoded_t: x at s and t.
            eps: [b, *data_shape] noise of z_t.
            prediction: at z_t; it holds the process at t.
            at_s: the process at s = t - 1/T.
            timesteps: T.

        Returns:
            [b] nats.
        """
        squared_error = prediction.squared_error(encoded_t.value, eps)
        return losses.diffusion_discrete(timesteps, at_s.gamma, prediction.coefficients.gamma, squared_error)


def c_of_step(at_s: Coefficients, at_t: Coefficients) -> Scale:
    """c = 1 - e^(gamma_s - gamma_t) of a step between two times.

    Args:
        at_s, at_t: the process at both, broadcastable to each other.

    Returns:
        In (0, 1), broadcastable to the data.
    """
    # Where a schedule is almost flat, rounding may reverse a step of gamma.
    return -jnp.expm1(jnp.minimum(at_s.gamma - at_t.gamma, 0.0))
