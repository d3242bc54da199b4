"""The divergence of a vector field: tr(J), J = d fn / d z, of one example or of each of a batch.

1. Hutchinson: v^T J v for a random v of covariance 1, by one forward-mode JVP, which costs about
   as much as fn itself and stores no activations. Unbiased; for v of -1 and 1 the diagonal of J adds no
   variance. The probes are drawn once per solve of an ODE: an integrand that changes from evaluation to
   evaluation is no function of time, and the step-size control would chase it.
2. exact: the D unit vectors in turn, for small data and for audits of (1).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvdm.core import options, random
from jvdm.core.options import option
from jvdm.core.registry import Registry

Data = Float[Array, "..."]
Field = Callable[[Data], Data]


class Trace(Protocol):
    """How the divergence of a field is found, a frozen dataclass.

    Attributes:
        exact: there is nothing random in it.
        probes: m, how many `draw` gives; 1 where it is exact.
    """

    exact: ClassVar[bool]
    probes: int = 1

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> Float[Array, "m ..."]:
        """The probes of one solve.

        Args:
            key: of random numbers.
            shape: of one example.

        Returns:
            [m, *shape], or [1] where nothing is random.
        """
        ...

    def __call__(
        self, fn: Field, z: Data, probes: Array, *, batch_axes: int = 0
    ) -> tuple[Data, Float[Array, "m ..."]]:
        """fn(z), and one estimate of its divergence per probe.

        Args:
            fn: of one example, or of a batch whose examples do not mix.
            z: an example after `batch_axes` axes of the batch.
            probes: [m, ...] from `draw`.
            batch_axes: 0 or more.

        Returns:
            The shape of z, and [m] followed by the batch.
        """
        ...


TRACES = Registry("trace", Trace)

PROBES = {
    "rademacher": lambda key, shape: random.rademacher(key, "probes", shape),
    "gaussian": lambda key, shape: random.normal(key, "probes", shape),
}


@TRACES.register("hutchinson")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Hutchinson:
    """Estimate (1).

    Attributes:
        probes: m, how many; several share one evaluation of fn.
        distribution: "rademacher" (-1 and 1) or "gaussian".
    """

    probes: int = option(1, low=1)
    distribution: str = option("rademacher", choices=PROBES)
    exact: ClassVar[bool] = False

    def __post_init__(self):
        options.check(self)

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> Float[Array, "m ..."]:
        """As `Trace.draw`."""
        return PROBES[self.distribution](key, (self.probes, *shape))

    def __call__(
        self, fn: Field, z: Data, probes: Float[Array, "m ..."], *, batch_axes: int = 0
    ) -> tuple[Data, Float[Array, "m ..."]]:
        """fn(z), and one estimate of its divergence per probe.

        Args:
            fn: of one example, or of a batch whose examples do not mix.
            z: an example after `batch_axes` axes of the batch.
            probes: [m, *z.shape].
            batch_axes: 0 or more.

        Returns:
            The shape of z, and [m] followed by the batch.
        """

        def product(v, tangent):
            return jnp.sum(v * tangent, axis=tuple(range(batch_axes, z.ndim)))

        if len(probes) == 1:
            value, tangent = jax.jvp(fn, (z,), (probes[0],))
            return value, product(probes[0], tangent)[None]
        value, push_forward = jax.linearize(fn, z)
        return value, jax.vmap(lambda v: product(v, push_forward(v)))(probes)


@TRACES.register("exact")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ExactTrace:
    """The trace (2).

    Attributes:
        at_a_time: unit vectors pushed forward at once.
    """

    at_a_time: int = option(64, low=1)
    exact: ClassVar[bool] = True

    def __post_init__(self):
        options.check(self)

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> Float[Array, "1"]:
        """As `Trace.draw`: one entry, for the one number that comes out."""
        return jnp.zeros(1)

    def __call__(
        self, fn: Field, z: Data, probes: Array, *, batch_axes: int = 0
    ) -> tuple[Data, Float[Array, "1 ..."]]:
        """As `Hutchinson.__call__`, whose probes it ignores."""
        value, push_forward = jax.linearize(fn, z)
        batch, shape = z.shape[:batch_axes], z.shape[batch_axes:]
        size = math.prod(shape)

        def diagonal(i):
            unit = jnp.zeros(size, z.dtype).at[i].set(1.0)
            tangent = push_forward(jnp.broadcast_to(unit.reshape(shape), z.shape))
            return tangent.reshape(*batch, size)[..., i]

        entries = jax.lax.map(diagonal, jnp.arange(size), batch_size=min(self.at_a_time, size))
        return value, jnp.sum(entries, axis=0)[None]
