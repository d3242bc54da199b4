"""A 3 x 3 convolution, and its derivative with respect to the kernel, by Winograd's algorithm (1509.09308).

The image is cut into tiles of 2 x 2 outputs, each of which depends on 4 x 4 inputs d. A tile of the output is

    Y = A^T [(G k G^T) * (B^T d B)] A,

where * multiplies position by position and sums over channels: 16 matrix products over all tiles, with
16 multiplications for 4 outputs, in place of 36. The derivative with respect to k is the transpose,

    dk = G^T [sum over tiles (B^T d B) * (A dY A^T)] G.

The transforms only add, subtract and halve, and sums are over a ninth of the terms, so that the rounding
error is that of the direct sum. On a CPU, matrix products are faster than XLA's convolutions, too.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# 4 x 4 arrays of which each belongs to one of the 16 positions.
Positions = list[list[Array]]


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
    b, h, w, _ = x.shape
    tiles, kernels = _of_input(x), _of_kernel(kernel)
    products = [
        [jnp.matmul(tiles[i][j], kernels[i][j], precision=precision) for j in range(4)] for i in range(4)
    ]
    return _to_output(products, (b, -(-h // 2), -(-w // 2)))[:, :h, :w]


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
    tiles, cotangents = _of_input(x), _of_output(dy)
    products = [
        [jnp.matmul(tiles[i][j].T, cotangents[i][j], precision=precision) for j in range(4)] for i in range(4)
    ]
    return _to_kernel(products)


def _of_input(x: Float[Array, "b h w c"]) -> Positions:
    """B^T d B of every tile d: [tiles, c] for each position."""

    def along(x, axis):
        tiles = (x.shape[axis] - 2) // 2
        d = [lax.slice_in_dim(x, i, i + 2 * tiles - 1, 2, axis) for i in range(4)]
        return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]

    _, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1 + h % 2), (1, 1 + w % 2), (0, 0)))
    return [[a.reshape(-1, c) for a in along(rows, 2)] for rows in along(x, 1)]


def _of_kernel(kernel: Float[Array, "3 3 c d"]) -> Positions:
    """G k G^T: [c, d] for each position."""

    def along(k: Sequence[Array]):
        even, odd = 0.5 * (k[0] + k[2]), 0.5 * k[1]
        return k[0], even + odd, even - odd, k[2]

    return [list(along([row[j] for j in range(3)])) for row in along([kernel[i] for i in range(3)])]


def _to_output(products: Positions, shape: tuple[int, int, int]) -> Float[Array, "b h w d"]:
    """A^T M A of every tile M: [b, 2 n, 2 m, d] for `shape` (b, n, m)."""

    def along(m: Sequence[Array]):
        return m[0] + m[1] + m[2], m[1] - m[2] - m[3]

    rows = [along(row) for row in products]
    tiles = [along([row[j] for row in rows]) for j in range(2)]
    tiles = [jnp.stack([tiles[j][i].reshape(*shape, -1) for j in range(2)], axis=3) for i in range(2)]
    b, n, m = shape
    return jnp.stack(tiles, axis=2).reshape(b, 2 * n, 2 * m, -1)


def _of_output(dy: Float[Array, "b h w d"]) -> Positions:
    """A dY A^T of every tile dY: [tiles, d] for each position; the transpose of `_to_output`."""

    def along(y: Sequence[Array]):
        return y[0], y[0] + y[1], y[0] - y[1], -y[1]

    b, h, w, d = dy.shape
    dy = jnp.pad(dy, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
    tiles = dy.reshape(b, -(-h // 2), 2, -(-w // 2), 2, d)
    columns = [along([tiles[:, :, i, :, j] for i in range(2)]) for j in range(2)]
    return [[a.reshape(-1, d) for a in along([column[i] for column in columns])] for i in range(4)]


def _to_kernel(products: Positions) -> Float[Array, "3 3 c d"]:
    """G^T M G; the transpose of `_of_kernel`."""

    def along(m: Sequence[Array]):
        even, odd = 0.5 * (m[1] + m[2]), 0.5 * (m[1] - m[2])
        return m[0] + even, odd, even + m[3]

    rows = [along(row) for row in products]
    return jnp.stack([jnp.stack(along([row[j] for row in rows])) for j in range(3)], axis=1)
