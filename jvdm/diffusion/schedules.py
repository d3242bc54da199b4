"""Noise schedules: t in [0, 1] (and a context) -> gamma(t) = -log SNR, increasing.

    1. fixed:             gamma = gamma_0 + (gamma_1 - gamma_0) t
    2. learned scalar:    gamma = b + |w| t
    3. monotone network:  g(t) = l1(t) + l3(s(l2(l1(t)))), weights through |.|, and
                          gamma = gamma_0 + (gamma_1 - gamma_0) (g(t) - g(0)) / (g(1) - g(0))
       (2107.00630, appendix H: the endpoints are parameters of their own, the network only shapes the
       interior)
    4. the same as released: gamma = l1(t) + l3(2 s(l2(2 t - 1)) - 1) / 1024, not renormalised
    5. linear beta:       the SDE with drift -beta(s) z / 2, beta(s) = beta_min + (beta_max - beta_min) s, so
                          that log alpha = -B / 2,  B = beta_min s + (beta_max - beta_min) s^2 / 2
                          on any path; gamma = ln expm1(B) on the variance-preserving one
                          (2011.13456, section 3.4 and appendix B)

A schedule maps times of any shape elementwise; `at` adds the derivative. A fixed schedule also has the
`inverse`, gamma -> t.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jvdm.core.records import TimeGamma
from jvdm.core.registry import Registry

SCHEDULES = Registry("schedule")


def at(schedule_fn: Callable, t: Float[Array, "..."]) -> TimeGamma:
    """gamma(t) and dgamma/dt of an elementwise schedule, by a JVP."""
    return TimeGamma(*jax.jvp(schedule_fn, (t,), (jnp.ones_like(t),)))


class MonotoneDense(nn.Module):
    """A dense layer with weights |w|: non-decreasing in every input."""

    features: int
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... features"]:
        y = x @ jnp.abs(self.param("kernel", self.kernel_init, (x.shape[-1], self.features)))
        return y + self.param("bias", self.bias_init, (self.features,)) if self.use_bias else y


@SCHEDULES.register("fixed_linear")
class FixedLinear(nn.Module):
    """A straight line from gamma_min to gamma_max, with nothing to learn."""

    gamma_min: float = -13.3
    gamma_max: float = 5.0
    endpoints: ClassVar[tuple[str, ...]] = ()
    has_interior: ClassVar[bool] = False

    def __call__(self, t: Float[Array, "..."], context=None) -> Float[Array, "..."]:
        """gamma at t."""
        return self.gamma_min + (self.gamma_max - self.gamma_min) * t

    def inverse(self, gamma: Float[Array, "..."]) -> Float[Array, "..."]:
        """t at gamma."""
        return (gamma - self.gamma_min) / (self.gamma_max - self.gamma_min)


@SCHEDULES.register("learned_scalar")
class LearnedScalar(nn.Module):
    """A straight line with learned ends, from gamma_min and gamma_max."""

    gamma_min: float = -13.3
    gamma_max: float = 5.0
    endpoints: ClassVar[tuple[str, ...]] = ("b", "w")
    has_interior: ClassVar[bool] = False

    @nn.compact
    def __call__(self, t: Float[Array, "..."], context=None) -> Float[Array, "..."]:
        """gamma at t."""
        b = self.param("b", nn.initializers.constant(self.gamma_min), ())
        w = self.param("w", nn.initializers.constant(self.gamma_max - self.gamma_min), ())
        return b + jnp.abs(w) * t


@SCHEDULES.register("monotone_network")
class MonotoneNetwork(nn.Module):
    """A monotone network between learned ends: the paper's form (3)."""

    gamma_min: float = -13.3
    gamma_max: float = 5.0
    hidden: int = 1024
    endpoints: ClassVar[tuple[str, ...]] = ("gamma_0", "gamma_1")
    has_interior: ClassVar[bool] = True

    @nn.compact
    def __call__(self, t: Float[Array, "..."], context=None) -> Float[Array, "..."]:
        """gamma at t."""
        gamma_0 = self.param("gamma_0", nn.initializers.constant(self.gamma_min), ())
        gamma_1 = self.param("gamma_1", nn.initializers.constant(self.gamma_max), ())
        l1 = MonotoneDense(1, kernel_init=nn.initializers.ones_init(), name="l1")
        l2 = MonotoneDense(self.hidden, name="l2")
        l3 = MonotoneDense(1, use_bias=False, name="l3")

        def g(t):
            h = l1(t[..., None])
            return (h + l3(nn.sigmoid(l2(h))))[..., 0]

        start, end = g(jnp.zeros(())), g(jnp.ones(()))
        return gamma_0 + (gamma_1 - gamma_0) * (g(t) - start) / (end - start)


@SCHEDULES.register("monotone_network_released")
class MonotoneNetworkReleased(nn.Module):
    """A monotone network whose ends move with its interior: the released form (4)."""

    gamma_min: float = -13.3
    gamma_max: float = 5.0
    hidden: int = 1024
    endpoints: ClassVar[tuple[str, ...]] = ()
    has_interior: ClassVar[bool] = True

    @nn.compact
    def __call__(self, t: Float[Array, "..."], context=None) -> Float[Array, "..."]:
        """gamma at t."""
        constant = nn.initializers.constant
        span = self.gamma_max - self.gamma_min
        l1 = MonotoneDense(1, kernel_init=constant(span), bias_init=constant(self.gamma_min), name="l1")
        t = t[..., None]
        h = 2.0 * nn.sigmoid(MonotoneDense(self.hidden, name="l2")(2.0 * t - 1.0)) - 1.0
        h = MonotoneDense(1, use_bias=False, name="l3")(h) / self.hidden
        return (l1(t) + h)[..., 0]


@SCHEDULES.register("linear_beta")
class LinearBeta(nn.Module):
    """The schedule of the score-based SDEs (5), nothing to learn; s = t_min + (1 - t_min) t.

    Attributes:
        noise_path: one of `jvdm.diffusion.paths`.
        beta_min, beta_max: at s = 0 and 1.
        t_min: s at t = 0. At 0 there is no noise, gamma is -inf, and the data must be continuous, or be made
            so; above it, gamma is finite, as the variational bound of discrete data needs it.
    """

    noise_path: Any  # flax has a `path` of its own
    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 0.0
    endpoints: ClassVar[tuple[str, ...]] = ()
    has_interior: ClassVar[bool] = False

    def __post_init__(self):
        if not 0.0 <= self.beta_min <= self.beta_max or not self.beta_max > 0.0:
            raise ValueError(
                f"beta_min {self.beta_min} and beta_max {self.beta_max}: give 0 or more, in order"
            )
        if not 0.0 <= self.t_min < 1.0:
            raise ValueError(f"t_min is {self.t_min}: give 0 or more, below 1")
        super().__post_init__()

    @property
    def gamma_min(self) -> float:
        """gamma at t = 0."""
        return self._end(0.0) if self.t_min else -math.inf

    @property
    def gamma_max(self) -> float:
        """gamma at t = 1."""
        return self._end(1.0)

    def _end(self, t: float) -> float:
        with jax.ensure_compile_time_eval():
            return float(self(t))

    def __call__(self, t: Float[Array, "..."] | float, context=None) -> Float[Array, "..."]:
        """gamma at t."""
        s = self.t_min + (1.0 - self.t_min) * t
        integral = s * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * s)
        return self.noise_path.gamma_of_log_alpha(-0.5 * integral)

    def inverse(self, gamma: Float[Array, "..."]) -> Float[Array, "..."]:
        """t at gamma."""
        integral = -2.0 * self.noise_path.log_alpha(gamma)
        b, a = self.beta_min, self.beta_max - self.beta_min
        s = 2.0 * integral / (b + jnp.sqrt(b**2 + 2.0 * a * integral))
        return (s - self.t_min) / (1.0 - self.t_min)
