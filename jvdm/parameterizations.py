"""What the network's output means, and how it gives eps, the pivot of every algorithm.

With z = alpha x + sigma eps:

    1. noise: out = eps
    2. data:  out = x, so eps = (z - alpha out) / sigma

`squared_error` is (eps - eps_hat)^2 formed in the space of the output, where it is well conditioned.
"""

import dataclasses

from jaxtyping import Array, Float

from jvdm.records import Coefficients
from jvdm.registry import Registry

PARAMETERIZATIONS = Registry("parameterization")

Data = Float[Array, "..."]


@PARAMETERIZATIONS.register("noise")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise:
    """The output is eps (2107.00630, section 3.3)."""

    def target(self, x: Data, eps: Data, c: Coefficients) -> Data:
        """The output of a perfect network."""
        return eps

    def to_eps(self, out: Data, z: Data, c: Coefficients) -> Data:
        """eps_hat from the output."""
        return out

    def squared_error(self, out: Data, x: Data, eps: Data, c: Coefficients) -> Data:
        """(eps - eps_hat)^2, elementwise."""
        return (eps - out) ** 2


@PARAMETERIZATIONS.register("data")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DataPrediction:
    """The output is x."""

    def target(self, x: Data, eps: Data, c: Coefficients) -> Data:
        """The output of a perfect network."""
        return x

    def to_eps(self, out: Data, z: Data, c: Coefficients) -> Data:
        """eps_hat from the output."""
        return (z - c.alpha * out) / c.sigma

    def squared_error(self, out: Data, x: Data, eps: Data, c: Coefficients) -> Data:
        """(eps - eps_hat)^2 = e^-gamma (x - x_hat)^2, elementwise."""
        return (c.alpha / c.sigma * (x - out)) ** 2
