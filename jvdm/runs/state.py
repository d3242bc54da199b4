"""What training carries from step to step, and what it reports about each."""

from typing import Any, NamedTuple, no_type_check

import jax
from flax import struct
from jaxtyping import Array, Float, Int

Params = Any


@no_type_check  # JAX also makes it of shapes, shardings and paths
@struct.dataclass
class TrainState:
    """All that training carries from step to step.

    Attributes:
        step: optimizer steps done.
        params, ema_params: `{"network", "schedule"}`, and `"encoder"` with a latent.
        opt_state: the optimizer's, an `optax.OptState`.
        root_key: typed key from which every step's keys are folded.
    """

    step: Int[Array, ""]
    params: Params
    ema_params: Params
    opt_state: Any
    root_key: jax.Array


class StepMetrics(NamedTuple):
    """Metrics of one step, over the global batch.

    Attributes:
        losses: what is minimised and its terms, by name; the progress bar shows the first. In bits/dim, or
            nats where the data are continuous.
        grad_norm, learning_rate: of the step.
        gamma_0, gamma_1: the ends of a schedule that learns; None of one that does not.
    """

    losses: dict[str, Float[Array, ""]]
    grad_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    gamma_0: Float[Array, ""] | None
    gamma_1: Float[Array, ""] | None
