"""Data maps: from data to the space in which the diffusion runs, with the log-determinant.

With u = x / K in [0, 1] for data x in {0..K-1}, or (x + noise) / K:

    1. scaling:  y = 2 u - 1
    2. logit:    y = logit(s),  s = a + (1 - 2 a) u,  ln dy/du = ln(1 - 2 a) - ln s - ln(1 - s)
                 (1605.08803, section 4.1; 2106.02808)
    3. identity: y = x, for continuous data, which has no levels

A level v is the cell [v / K, (v + 1) / K], and for its centre, f_v = y((v + 1/2) / K).
"""

import dataclasses
import math
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from jvdm.core import options
from jvdm.core.options import option
from jvdm.core.registry import Registry

Levels = UInt8[Array, "..."] | Int[Array, "..."]
Data = Float[Array, "..."]


class Mapped(NamedTuple):
    """Both of the shape of the data: y, and ln |dy/du|, elementwise."""

    y: Data
    log_slope: Data


@runtime_checkable
class DataMap(Protocol):
    """A map of data, a frozen dataclass: increasing, elementwise.

    Attributes:
        discrete: it is for data of levels; otherwise for continuous data, which it must leave as they are.
        equal_cells: the cells of all levels are equally wide, so that cells and centres have closed forms.
        range: y of u = 0 and 1.
    """

    discrete: ClassVar[bool]
    equal_cells: ClassVar[bool] = False

    @property
    def range(self) -> tuple[float, float]:
        """y of u = 0 and 1, infinite where it has no bound."""
        ...

    def __call__(self, u: Data) -> Mapped:
        """y and its slope, elementwise.

        Args:
            u: numbers in [0, 1] of any shape; continuous data for a map that is not `discrete`.

        Returns:
            y, and ln |dy/du|, nats per dimension, both of the shape of u.
        """
        ...

    def inverse(self, y: Data) -> Data:
        """u of y, elementwise.

        Args:
            y: of any shape.

        Returns:
            Of the shape of y.
        """
        ...

    def difference(self, levels: Levels, others: Data, num_levels: int) -> Data:
        """f of some levels less f of others, without cancellation where there is a closed form.

        Args:
            levels: of any shape.
            others: levels of a shape that broadcasts with it.
            num_levels: K.

        Returns:
            Of the broadcast shape.
        """
        ...


DATA_MAPS = Registry("data map", DataMap)


@DATA_MAPS.register("scaling")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling:
    """Map (1)."""

    discrete: ClassVar[bool] = True
    equal_cells: ClassVar[bool] = True

    @property
    def range(self) -> tuple[float, float]:
        """y of u = 0 and 1."""
        return -1.0, 1.0

    def __call__(self, u: Data) -> Mapped:
        """As `DataMap.__call__`."""
        return Mapped(2.0 * u - 1.0, jnp.full_like(u, math.log(2.0)))

    def inverse(self, y: Data) -> Data:
        """As `DataMap.inverse`."""
        return 0.5 * (y + 1.0)

    def difference(self, levels: Levels, others: Data, num_levels: int) -> Data:
        """As `DataMap.difference`: exact, however close they are."""
        return 2.0 / num_levels * (levels.astype(jnp.float32) - others)


@DATA_MAPS.register("logit")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Logit:
    """Map (2).

    Attributes:
        a: how far s stays away from 0 and 1.
    """

    a: float = option(0.05, above=0.0, below=0.5)
    discrete: ClassVar[bool] = True
    equal_cells: ClassVar[bool] = False

    def __post_init__(self):
        options.check(self)

    @property
    def range(self) -> tuple[float, float]:
        """y of u = 0 and 1."""
        end = math.log((1.0 - self.a) / self.a)
        return -end, end

    def __call__(self, u: Data) -> Mapped:
        """As `DataMap.__call__`."""
        s = self.a + (1.0 - 2.0 * self.a) * u
        log_s, log_rest = jnp.log(s), jnp.log1p(-s)
        return Mapped(log_s - log_rest, math.log(1.0 - 2.0 * self.a) - log_s - log_rest)

    def inverse(self, y: Data) -> Data:
        """As `DataMap.inverse`."""
        return (jax.nn.sigmoid(y) - self.a) / (1.0 - 2.0 * self.a)

    def difference(self, levels: Levels, others: Data, num_levels: int) -> Data:
        """As `DataMap.difference`."""
        return encode(levels, num_levels, self) - encode(others, num_levels, self)


@DATA_MAPS.register("identity")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """Map (3)."""

    discrete: ClassVar[bool] = False
    equal_cells: ClassVar[bool] = False

    @property
    def range(self) -> tuple[float, float]:
        """Continuous data may be anywhere."""
        return -math.inf, math.inf

    def __call__(self, u: Data) -> Mapped:
        """As `DataMap.__call__`."""
        return Mapped(u, jnp.zeros_like(u))

    def inverse(self, y: Data) -> Data:
        """As `DataMap.inverse`."""
        return y

    def difference(self, levels: Levels, others: Data, num_levels: int) -> Data:
        """As `DataMap.difference`: x of one less x of others."""
        return levels.astype(jnp.float32) - others


SCALING = Scaling()


def encode(levels: Levels | Data, num_levels: int, data_map: DataMap = SCALING) -> Data:
    """Data in the space of the diffusion: the centre of each level's cell, or continuous data as they are.

    Args:
        levels: [b, *data_shape], or any other shape.
        num_levels: K; 0 is continuous data.
        data_map: from cells to that space.

    Returns:
        f, of the shape of the levels.
    """
    x = levels.astype(jnp.float32)
    if not num_levels:
        return data_map(x).y
    return data_map((x + 0.5) / num_levels).y


def dequantize(levels: Levels, u: Data, num_levels: int, data_map: DataMap = SCALING) -> Mapped:
    """A point of each level's cell, and the log-density of such points.

    Args:
        levels: of any shape.
        u: uniform numbers in (0, 1), of the same shape.
        num_levels: K.
        data_map: from cells to the space of the diffusion.

    Returns:
        y of the points, and log q(y | x) = ln K - ln |dy/du|, nats per dimension, in place of the slope.
    """
    y, log_slope = data_map((levels.astype(u.dtype) + u) / num_levels)
    return Mapped(y, math.log(num_levels) - log_slope)


def level_of(y: Data, num_levels: int, data_map: DataMap = SCALING) -> UInt8[Array, "..."]:
    """The level whose cell contains y, or the first or last.

    Args:
        y: of any shape.
        num_levels: K.
        data_map: from cells to the space of y.

    Returns:
        uint8, of the shape of y.
    """
    level = jnp.floor(data_map.inverse(y) * num_levels)
    return jnp.clip(level, 0, num_levels - 1).astype(jnp.uint8)


def nearest_level(y: Data, num_levels: int, data_map: DataMap = SCALING) -> UInt8[Array, "..."]:
    """The level whose centre is nearest to y, the most likely one of the bound's decoder.

    Arguments and result are as in `level_of`.
    """
    if data_map.equal_cells:
        nearest = jnp.round(data_map.inverse(y) * num_levels - 0.5)
        return jnp.clip(nearest, 0, num_levels - 1).astype(jnp.uint8)
    centres = encode(jnp.arange(num_levels), num_levels, data_map)
    return jnp.searchsorted(0.5 * (centres[1:] + centres[:-1]), y).astype(jnp.uint8)
