"""What a forward process is: the conditionals that losses, bounds, samplers and likelihoods stand on.

`gaussian` has the process of all four published systems. Another one, learned or not, is a class with the
methods of `Process`, registered in `PROCESSES`. Here x is the data after the data map (f in
docs/mathematics.md), and `encode` is what the process itself makes of x at a time, such as a learned map.
"""

from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float

from jvdm.core.records import Coefficients, Context, TimeGamma
from jvdm.core.registry import Registry
from jvdm.diffusion.normal import Normal

Data = Float[Array, " b *d"]
Scale = Float[Array, "..."]
Params = Any


class Encoded(NamedTuple):
    """x as the process sees it at time t.

    Attributes:
        value: [b, *data_shape].
        tangent: its derivative in gamma, of the same shape; 0 where the process leaves x as it is.
    """

    value: Data
    tangent: Data


@runtime_checkable
class Process(Protocol):
    """A forward process with its conditionals, a frozen dataclass; its options are fields with defaults.

    Given by the composition to a field without a default: `schedule`, `path`, `data_shape` of one example,
    and `prior_name`, the choice of `config.model.prior`. A process may lack the methods that are
    None here; what needs one that is missing is refused.

    `params` are all parameters of the model, the groups of `init` among them. `at` is the process at the
    times of z, computed once.

    Attributes:
        schedule, path: as in `jvdm.diffusion.gaussian`.
        starts_without_noise: gamma is -inf at time 0.
        prior_text: the prior, for records.
        is_markov: q(z_t | z_s, x) does not depend on x.
        forward: (z_s, encoded_s, encoded_t, at_s, at_t) -> q(z_t | z_s, x); a Markov process needs neither of
            the two encoded arrays.
        posterior: (z_t, encoded_s, encoded_t, at_s, at_t) -> q(z_s | z_t, x).
        reverse: (params, z_t, prediction, at_s, context) -> p(z_s | z_t), the ancestral step; the prediction
            holds the process at t.
        step_loss: (params, encoded_s, encoded_t, eps, prediction, at_s, timesteps, context) -> [b] nats,
            T KL(posterior || reverse) at drawn steps.
        drift: (params, z, prediction, context) -> dz/dt of the probability-flow ODE.
    """

    schedule: Any
    path: Any
    starts_without_noise: bool
    prior_text: str
    is_markov: ClassVar[bool] = False
    forward: Any = None
    posterior: Any = None
    reverse: Any = None
    step_loss: Any = None
    drift: Any = None

    def init(self, key: jax.Array, context: Context) -> Params:
        """Its groups of initial parameters, such as `{"schedule": ...}`.

        Args:
            key: of random numbers.
            context: of one example.
        """
        ...

    def gamma(self, params: Params, t: Scale, context: Context | None = None) -> Scale:
        """gamma(t), elementwise.

        Args:
            params: all parameters of the model.
            t: times of any shape; broadcastable to the data where the schedule is one of every pixel.
            context: of the examples, for a schedule that depends on them.

        Returns:
            Of the shape of t, or of the data.
        """
        ...

    def time_gamma(self, params: Params, t: Float[Array, " b"], context: Context | None = None) -> TimeGamma:
        """gamma and dgamma/dt.

        Args:
            params, context: as in `gamma`.
            t: [b] times in [0, 1].

        Returns:
            Both broadcastable to [b, *data_shape].
        """
        ...

    def ends(self, params: Params) -> Float[Array, "2"]:
        """gamma at t = 0 and 1, which all examples share.

        Args:
            params: as in `gamma`.

        Returns:
            [2].
        """
        ...

    def at(self, params: Params, t: Float[Array, " b"], context: Context | None = None) -> Coefficients:
        """The process at given times.

        Args:
            params, context: as in `gamma`.
            t: [b] times in [0, 1].

        Returns:
            Every field broadcastable to [b, *data_shape].
        """
        ...

    def at_ends(self, params: Params, context: Context | None = None) -> tuple[Coefficients, Coefficients]:
        """The process at t = 0 and at t = 1.

        Args:
            params, context: as in `gamma`.

        Returns:
            Two records; of one example where all examples share them.
        """
        ...

    def encode(self, params: Params, x: Data, at: Coefficients, context: Context | None = None) -> Encoded:
        """What the process makes of x at a time.

        Args:
            params, context: as in `gamma`.
            x: [b, *data_shape] encoded data.
            at: the process at that time.

        Returns:
            The array that takes the place of x, and its derivative in gamma.
        """
        ...

    def sample(self, encoded: Encoded, eps: Data, at: Coefficients) -> Data:
        """A sample of q(z_t | x).

        Args:
            encoded: x at t.
            eps: [b, *data_shape] standard normal noise.
            at: the process at t.

        Returns:
            [b, *data_shape] z_t.
        """
        ...

    def marginal(self, encoded: Encoded, at: Coefficients) -> Normal:
        """The distribution q(z_t | x).

        Args:
            encoded: x at t.
            at: the process at t.

        Returns:
            Of [b, *data_shape] means.
        """
        ...

    def prior(self, params: Params) -> Normal:
        """The model's p(z_1).

        Args:
            params: as in `gamma`.

        Returns:
            Broadcastable to the data.
        """
        ...

    def denoised(self, z: Data, prediction: Any) -> Data:
        """The estimate x_hat of the data that a prediction implies.

        Args:
            z: [b, *data_shape] z_t.
            prediction: at t.

        Returns:
            [b, *data_shape], the denoiser's estimate of the data.
        """
        ...

    def integrand(
        self, encoded: Encoded, eps: Data, prediction: Any, weight: Float[Array, " b"] | float = 1.0
    ) -> Float[Array, " b"]:
        """The diffusion loss per unit of time.

        Args:
            encoded: x at t.
            eps: [b, *data_shape] noise of z_t.
            prediction: at z_t; it holds the process at t.
            weight: [b] or one number, such as one over the density of t.

        Returns:
            [b] nats, times the weight.
        """
        ...


PROCESSES = Registry("process", Process)
