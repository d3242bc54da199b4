"""A 3 x 3 convolution whose derivatives are fast inside a scan on a CPU.

XLA for CPU runs the forward convolution at the speed of a matrix product, inside a loop or not. Its
own derivatives, inside a loop, are 6 times (with respect to the input) and 50 times (with respect
to the kernel) slower, because they become convolutions with reversed windows or windows as large as
the image. Here the convolution is a bilinear primitive whose transposes are written out:

    1. with respect to x: the same convolution, with the kernel mirrored in space and its channels swapped
    2. with respect to the kernel: for each row offset i, one matrix product x^T [dy shifted by
       (i, 0), (i, 1), (i, 2)], which gives three of the nine taps

Both are made of the primitive itself or of plain operations, so derivatives of every order and mode
exist: reverse, forward (`jvp`), and the gradient of a JVP. `benchmarks/convolution.py` has the times.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float


def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], *, precision: str | None = None
) -> Float[Array, "b h w d"]:
    """3 x 3 convolution, stride 1, zero padding to the same size.

    Args:
        x: [b, h, w, c].
        kernel: [3, 3, c, d], of the same dtype.
        precision: of the products, "highest" for full float32 on accelerators whose default is less.

    Returns:
        [b, h, w, d].
    """
    if jax.default_backend() == "cpu":
        return _convolve_p.bind(x, kernel)
    return _convolve_lax(x, kernel, precision)


def _convolve_lax(x, kernel, precision=None):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision
    )


_convolve_p = Primitive("convolve_3x3")


@_convolve_p.def_abstract_eval
def _abstract(x, kernel):
    return x.update(shape=(*x.shape[:3], kernel.shape[3]))


_convolve_p.def_impl(jax.jit(_convolve_lax))
mlir.register_lowering(_convolve_p, mlir.lower_fun(_convolve_lax, multiple_results=False))


def _transpose_x(cotangent, x, kernel):
    del x
    return _convolve_p.bind(cotangent, kernel[::-1, ::-1].swapaxes(2, 3))


def _transpose_kernel(cotangent, x, kernel):
    del kernel
    _, h, w, c = x.shape
    d = cotangent.shape[3]
    padded = jnp.pad(cotangent, ((0, 0), (1, 1), (1, 1), (0, 0)))
    # Tap (i, j) of the kernel meets x at (p + i - 1, q + j - 1) where the cotangent is at (p, q).
    shifted = jnp.concatenate([padded[:, :, 2 - j : 2 - j + w] for j in range(3)], axis=-1)
    x_t = x.reshape(-1, c).T
    rows = [x_t @ shifted[:, 2 - i : 2 - i + h].reshape(-1, 3 * d) for i in range(3)]
    return jnp.stack(rows).reshape(3, c, 3, d).swapaxes(1, 2)


ad.defbilinear(_convolve_p, _transpose_x, _transpose_kernel)


def _batch(arguments, axes):
    x, kernel = arguments
    x_axis, kernel_axis = axes
    if kernel_axis is None:
        x = jnp.moveaxis(x, x_axis, 0)
        y = _convolve_p.bind(x.reshape(-1, *x.shape[2:]), kernel)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
    return jax.vmap(_convolve_lax, in_axes=axes)(x, kernel), 0


batching.primitive_batchers[_convolve_p] = _batch
