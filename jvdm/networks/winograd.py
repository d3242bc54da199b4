"""A 3 x 3 convolution, and its derivative with respect to the kernel, by Winograd's algorithm (1509.09308).

The image is cut into tiles of m x m outputs, each of which depends on (m + 2) x (m + 2) inputs d. A tile of
the output is

    Y = A^T [(G k G^T) * (B^T d B)] A,

where * multiplies position by position and sums over channels: (m + 2)^2 matrix products over all tiles, in
place of 9 m^2. The derivative with respect to k is the transpose,

    dk = G^T [sum over tiles (B^T d B) * (A dY A^T)] G.

The convolution has m = 2. Its transforms only add, subtract and halve, and its sums are over a ninth of the
terms, so that the rounding error is that of the direct sum. The derivative has m = 4: half of the products
and of the transformed arrays, with 5 to 10 times the rounding error, some 3e-6 of a gradient's root mean
square. On a CPU, matrix products are faster than XLA's convolutions, too.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Rows of arrays: one for each position in a tile.
Positions = list[list[Array]]
Matrix = tuple[tuple[float, ...], ...]


class Transforms(NamedTuple):
    """The matrices of tiles of m x m outputs, F(m x m, 3 x 3) in the paper.

    Args:
        inputs: B^T, [m + 2, m + 2].
        kernel: G, [m + 2, 3].
        outputs: A^T, [m, m + 2].
    """

    inputs: Matrix
    kernel: Matrix
    outputs: Matrix


# Interpolation at 0, 1, -1 and infinity.
_TWO = Transforms(
    inputs=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    kernel=((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    outputs=((1, 1, 1, 0), (0, 1, -1, -1)),
)
# At 0, 1, -1, 2, -2 and infinity.
_FOUR = Transforms(
    inputs=(
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
    kernel=(
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
    outputs=((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
)


def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], *, precision: str | None = None
) -> Float[Array, "b h w d"]:
    """3 x 3 convolution, stride 1, zero padding to the same size.

    Args:
        x: [b, h, w, c].
        kernel: [3, 3, c, d].
        precision: of the products.

    Returns:
        [b, h, w, d].
    """
    one = _one(kernel)
    tiles, kernels = _of_input(x / one, _TWO), _of_kernel(kernel, _TWO)
    products = [
        [jnp.matmul(t, k, precision=precision) for t, k in zip(*rows, strict=True)]
        for rows in zip(tiles, kernels, strict=True)
    ]
    return _to_output(products, x.shape[:3], _TWO) / one


def kernel_derivative(
    x: Float[Array, "b h w c"], dy: Float[Array, "b h w d"], *, precision: str | None = None
) -> Float[Array, "3 3 c d"]:
    """The derivative of `convolve` with respect to the kernel.

    Args:
        x: [b, h, w, c].
        dy: [b, h, w, d] the output's cotangent.
        precision: of the products.

    Returns:
        [3, 3, c, d].
    """
    one = _one(dy)
    tiles, cotangents = _of_input(x / one, _FOUR), _of_output(dy / one, _FOUR)
    products = [
        [jnp.matmul(t.T, a, precision=precision) for t, a in zip(*rows, strict=True)]
        for rows in zip(tiles, cotangents, strict=True)
    ]
    return _to_kernel(products, _FOUR)


def _one(a: Array) -> Array:
    """The number 1 to divide an array by, so that it is computed once.

    XLA for CPU computes an array anew inside of each of its many consumers here, unless that asks for a
    division, and does not know that this number is 1 (it is not if `a` has a nan).
    """
    return 1 + 0 * a[0, 0, 0, 0]


def _combined(weights: Sequence[float], parts: Sequence[Array]) -> Array:
    """The sum of weight times part, without those whose weight is 0."""
    (weight, first), *rest = ((w, p) for w, p in zip(weights, parts, strict=True) if w)
    total = first if weight == 1 else weight * first
    for weight, part in rest:
        match weight:
            case 1:
                total = total + part
            case -1:
                total = total - part
            case _:
                total = total + weight * part
    return total


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def _of_input(x: Float[Array, "b h w c"], transforms: Transforms) -> Positions:
    """B^T d B of every tile d: [tiles, c] for each position."""
    m, n = len(transforms.outputs), len(transforms.inputs)

    def along(x, axis):
        last = x.shape[axis] - n + 1
        d = [lax.slice_in_dim(x, i, i + last, m, axis) for i in range(n)]
        return [_combined(weights, d) for weights in transforms.inputs]

    _, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1 + -h % m), (1, 1 + -w % m), (0, 0)))
    return [[a.reshape(-1, c) for a in along(rows, 2)] for rows in along(x, 1)]


def _of_kernel(kernel: Float[Array, "3 3 c d"], transforms: Transforms) -> Positions:
    """G k G^T: [c, d] for each position."""

    def along(k):
        return [_combined(weights, k) for weights in transforms.kernel]

    return [along([row[j] for j in range(3)]) for row in along([kernel[i] for i in range(3)])]


def _to_output(products: Positions, shape: Sequence[int], transforms: Transforms) -> Float[Array, "b h w d"]:
    """A^T M A of every tile M: [b, h, w, d] for `shape` (b, h, w).

    A row of the output is a sum over all rows of M, with the weights of its place in the tile: without a
    branch, which would keep XLA from computing along vectors.
    """
    b, h, w = shape
    m = len(transforms.outputs)
    weights = jnp.asarray(transforms.outputs, products[0][0].dtype).T

    def along(parts, axis):
        of_axis = weights.reshape(-1, *(m if i == axis else 1 for i in range(6)))
        return functools.reduce(jnp.add, [u * a for u, a in zip(of_axis, parts, strict=True)])

    tiles = [[a.reshape(b, -(-h // m), 1, -(-w // m), 1, a.shape[-1]) for a in row] for row in products]
    y = along([along(column, 2) for column in zip(*tiles, strict=True)], 4)
    return y.reshape(b, -(-h // m) * m, -(-w // m) * m, -1)[:, :h, :w]


def _of_output(dy: Float[Array, "b h w d"], transforms: Transforms) -> Positions:
    """A dY A^T of every tile dY: [tiles, d] for each position; the transpose of `_to_output`."""
    m = len(transforms.outputs)

    def along(y):
        return [_combined(weights, y) for weights in _transposed(transforms.outputs)]

    b, h, w, d = dy.shape
    dy = jnp.pad(dy, ((0, 0), (0, -h % m), (0, -w % m), (0, 0)))
    tiles = dy.reshape(b, -(-h // m), m, -(-w // m), m, d)
    rows = along([tiles[:, :, i] for i in range(m)])
    return [[a.reshape(-1, d) for a in along([row[:, :, :, j] for j in range(m)])] for row in rows]


def _to_kernel(products: Positions, transforms: Transforms) -> Float[Array, "3 3 c d"]:
    """G^T M G; the transpose of `_of_kernel`."""
    weights = _transposed(transforms.kernel)
    columns = [[_combined(u, row) for u in weights] for row in products]
    return jnp.stack([jnp.stack([_combined(u, c) for c in zip(*columns, strict=True)]) for u in weights])
