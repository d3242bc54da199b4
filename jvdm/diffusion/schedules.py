"""Noise schedules: t in [0, 1] (and a context) -> gamma(t) = -log SNR, increasing.

    1. fixed:             gamma = gamma_0 + (gamma_1 - gamma_0) t
    2. learned scalar:    gamma = b + |w| t
    3. monotone network:  g(t) = l1(t) + l3(s(l2(l1(t)))), weights through |.|, and
                          gamma = gamma_0 + (gamma_1 - gamma_0) (g(t) - g(0)) / (g(1) - g(0))
       (2107.00630, appendix H: the endpoints are separate parameters, the network only shapes the
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
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jvdm.core import options
from jvdm.core.options import option
from jvdm.core.records import TimeGamma
from jvdm.core.registry import Registry
from jvdm.core.shapes import lead


class Schedule(Protocol):
    """A noise schedule, a linen module; its options are fields with defaults.

    Given by the composition to a field without a default: `noise_path`, `data_shape`.

    Attributes:
        gamma_min, gamma_max: gamma at t = 0 and 1, or where learned ends start; gamma_min may be -inf.
        endpoints: names of the parameters that are the ends alone; () where the ends are not learned alone.
        has_interior: something between the ends is learned.
        per_pixel: gamma differs from pixel to pixel and depends on the context's latent; the ends are shared.
        is_linear: gamma is a straight line in t between its ends, learned or not.
        inverse: gamma -> t, elementwise, of a schedule that learns nothing; None without a closed form.
        log_alpha: t -> log alpha, elementwise, finite where gamma is not; None if gamma_min is finite.
    """

    gamma_min: float
    gamma_max: float
    endpoints: ClassVar[tuple[str, ...]]
    has_interior: ClassVar[bool]
    per_pixel: ClassVar[bool] = False
    is_linear: ClassVar[bool] = False
    inverse: Callable[[Float[Array, "..."]], Float[Array, "..."]] | None = None
    log_alpha: Callable[[Float[Array, "..."]], Float[Array, "..."]] | None = None

    def __call__(self, t: Float[Array, "..."], context: Any = None) -> Float[Array, "..."]:
        """gamma at t, increasing.

        Args:
            t: times in [0, 1] of any shape; broadcastable to the data where the schedule is `per_pixel`.
            context: what is known of the examples (`jvdm.core.records.Context`).

        Returns:
            Of the shape of t; of the data's shape where the schedule is `per_pixel`.
        """
        ...


SCHEDULES = Registry("schedule", Schedule)


def is_fixed(schedule: Any) -> bool:
    """Whether a schedule, or a class of schedules, learns nothing."""
    return not (schedule.has_interior or schedule.endpoints)


def at(schedule_fn: Callable, t: Float[Array, "..."]) -> TimeGamma:
    """gamma(t) and dgamma/dt of an elementwise schedule, by a JVP.

    Args:
        schedule_fn: t -> gamma.
        t: times of any shape.

    Returns:
        Both of the shape of t.
    """
    return TimeGamma(*jax.jvp(schedule_fn, (t,), (jnp.ones_like(t),)))


class MonotoneDense(nn.Module):
    """A dense layer with weights |w|: non-decreasing in every input."""

    features: int
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... features"]:
        """x |w| + b.

        Args:
            x: [..., c].

        Returns:
            [..., features], non-decreasing in every input.
        """
        y = x @ jnp.abs(self.param("kernel", self.kernel_init, (x.shape[-1], self.features)))
        if not self.use_bias:
            return y
        return y + lead(self.param("bias", self.bias_init, (self.features,)), y.ndim)


@SCHEDULES.register("fixed_linear")
class FixedLinear(nn.Module):
    """A straight line from gamma_min to gamma_max, with nothing to learn."""

    gamma_min: float = -13.3
    gamma_max: float = 5.0
    is_linear: ClassVar[bool] = True
    endpoints: ClassVar[tuple[str, ...]] = ()
    has_interior: ClassVar[bool] = False
    per_pixel: ClassVar[bool] = False

    def __call__(self, t: Float[Array, "..."], context=None) -> Float[Array, "..."]:
        """As `Schedule.__call__`."""
        return self.gamma_min + (self.gamma_max - self.gamma_min) * t

    def inverse(self, gamma: Float[Array, "..."]) -> Float[Array, "..."]:
        """As `Schedule.inverse`."""
        return (gamma - self.gamma_min) / (self.gamma_max - self.gamma_min)


@SCHEDULES.register("learned_scalar")
class LearnedScalar(nn.Module):
    """A straight line with learned ends, from gamma_min and gamma_max."""

    gamma_min: float = -13.3
    gamma_max: float = 5.0
    is_linear: ClassVar[bool] = True
    endpoints: ClassVar[tuple[str, ...]] = ("b", "w")
    has_interior: ClassVar[bool] = False
    per_pixel: ClassVar[bool] = False

    @nn.compact
    def __call__(self, t: Float[Array, "..."], context=None) -> Float[Array, "..."]:
        """As `Schedule.__call__`."""
        b = self.param("b", nn.initializers.constant(self.gamma_min), ())
        w = self.param("w", nn.initializers.constant(self.gamma_max - self.gamma_min), ())
        return b + jnp.abs(w) * t


@SCHEDULES.register("monotone_network")
class MonotoneNetwork(nn.Module):
    """A monotone network between learned ends: the paper's form (3)."""

    gamma_min: float = -13.3
    gamma_max: float = 5.0
    hidden: int = option(1024, low=1, help="features of the hidden layer")
    endpoints: ClassVar[tuple[str, ...]] = ("gamma_0", "gamma_1")
    has_interior: ClassVar[bool] = True
    per_pixel: ClassVar[bool] = False

    @nn.compact
    def __call__(self, t: Float[Array, "..."], context=None) -> Float[Array, "..."]:
        """As `Schedule.__call__`."""
        gamma_0 = self.param("gamma_0", nn.initializers.constant(self.gamma_min), ())
        gamma_1 = self.param("gamma_1", nn.initializers.constant(self.gamma_max), ())
        l1 = MonotoneDense(1, kernel_init=nn.initializers.ones_init(), name="l1")
        l2 = MonotoneDense(self.hidden, name="l2")
        l3 = MonotoneDense(1, use_bias=False, name="l3")

        def g(t):
            h = l1(t[..., None])
            return (h + l3(nn.sigmoid(l2(h))))[..., 0]

        start, end = g(jnp.zeros((), t.dtype)), g(jnp.ones((), t.dtype))
        return gamma_0 + (gamma_1 - gamma_0) * (g(t) - start) / (end - start)


@SCHEDULES.register("monotone_network_released")
class MonotoneNetworkReleased(nn.Module):
    """A monotone network whose ends move with its interior: the released form (4)."""

    gamma_min: float = -13.3
    gamma_max: float = 5.0
    hidden: int = option(1024, low=1, help="features of the hidden layer")
    endpoints: ClassVar[tuple[str, ...]] = ()
    has_interior: ClassVar[bool] = True
    per_pixel: ClassVar[bool] = False

    @nn.compact
    def __call__(self, t: Float[Array, "..."], context=None) -> Float[Array, "..."]:
        """As `Schedule.__call__`."""
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

    noise_path: Any  # flax modules have a property `path`
    beta_min: float = option(0.1, low=0.0)
    beta_max: float = option(20.0, above=0.0)
    t_min: float = option(0.0, low=0.0, below=1.0)
    endpoints: ClassVar[tuple[str, ...]] = ()
    has_interior: ClassVar[bool] = False
    per_pixel: ClassVar[bool] = False

    def __post_init__(self):
        options.check(self)
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_min {self.beta_min} is above beta_max {self.beta_max}")
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
        """As `Schedule.__call__`."""
        return self.noise_path.gamma_of_log_alpha(jnp.asarray(self.log_alpha(t)))

    def log_alpha(self, t: Any) -> Any:
        """As `Schedule.log_alpha`."""
        s = self.t_min + (1.0 - self.t_min) * t
        return -0.5 * s * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * s)

    def inverse(self, gamma: Float[Array, "..."]) -> Float[Array, "..."]:
        """As `Schedule.inverse`."""
        integral = -2.0 * self.noise_path.log_alpha(gamma)
        b, a = self.beta_min, self.beta_max - self.beta_min
        s = 2.0 * integral / (b + jnp.sqrt(b**2 + 2.0 * a * integral))
        return (s - self.t_min) / (1.0 - self.t_min)
