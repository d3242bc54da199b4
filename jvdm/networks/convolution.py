"""A 3 x 3 convolution whose derivatives are fast inside a scan on a CPU.

XLA for CPU runs the forward convolution at the same speed inside a loop or not. Its own derivatives,
inside a loop, are 3 to 6 times (with respect to the input) and 70 to 110 times (with respect to the kernel)
slower than that, because they become convolutions with reversed windows or windows as large as the image.
Here the convolution and its derivative are a pair of bilinear primitives that is closed under
transposition. With y = conv(x, k) and w = kernel(x, dy), the kernel's cotangent:

    1. dx = conv(dy, k')           k' is k mirrored in space with its channels swapped
    2. dk = kernel(x, dy)
    3. of w with respect to dy:    conv(x, w's cotangent)
    4. of w with respect to x:     conv(dy, w's cotangent, mirrored and swapped)

So derivatives of every order and mode exist: reverse, forward (`jvp`), and the gradient of a JVP. How the two
are computed is decided when a program is lowered for a platform, not by the machine that traces it. On a CPU
it is by Winograd's algorithm (`jvdm.networks.winograd`) where arrays are large enough. Where they are not,
the kernel's derivative is, for each row offset i, one matrix product
x^T [dy shifted by (i, 0), (i, 1), (i, 2)], which gives three of the nine taps. Everything else is XLA's own.
`benchmarks/convolution.py` has the times.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from jvdm.networks import winograd

# From which Winograd's algorithm is the faster on a CPU: channels on both sides, and the channels' and the
# sides' product. The batch has no part in it: rounding of an example does not depend on its batch.
_WINOGRAD_CHANNELS, _WINOGRAD_SIZE = 32, 2**16


def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], *, precision: str | None = None
) -> Float[Array, "b h w d"]:
    """3 x 3 convolution, stride 1, zero padding to the same size.

    Args:
        x: [b, h, w, c].
        kernel: [3, 3, c, d], of the same dtype.
        precision: of the products, also of its derivatives: "highest" for full float32 on accelerators whose
            default is less, None for JAX's default (`jax.default_matmul_precision`).

    Returns:
        [b, h, w, d].
    """
    # The default is that of the block in which this is called, not of where the program is lowered.
    config: Any = jax.config
    return _convolve_p.bind(x, kernel, precision=precision or config.jax_default_matmul_precision)


def mirrored(kernel: Float[Array, "3 3 c d"]) -> Float[Array, "3 3 d c"]:
    """The kernel of the transpose with respect to x."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _convolve_lax(x, kernel, *, precision):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision
    )


def _kernel_lax(x, dy, *, precision):
    kernel = jax.ShapeDtypeStruct((3, 3, x.shape[3], dy.shape[3]), x.dtype)
    of_kernel = functools.partial(_convolve_lax, x, precision=precision)
    return jax.linear_transpose(of_kernel, kernel)(dy)[0]


def _kernel_by_rows(x, dy, *, precision):
    _, h, w, c = x.shape
    d = dy.shape[3]
    padded = jnp.pad(dy, ((0, 0), (1, 1), (1, 1), (0, 0)))
    # Tap (i, j) of the kernel meets x at (p + i - 1, q + j - 1) where dy is at (p, q).
    shifted = jnp.concatenate([padded[:, :, 2 - j : 2 - j + w] for j in range(3)], axis=-1)
    x_t = x.reshape(-1, c).T
    rows = [
        jnp.matmul(x_t, shifted[:, 2 - i : 2 - i + h].reshape(-1, 3 * d), precision=precision)
        for i in range(3)
    ]
    return jnp.stack(rows).reshape(3, c, 3, d).swapaxes(1, 2)


def _convolve_cpu(x, kernel, *, precision):
    if _is_small(x, kernel.shape[3]):
        return _convolve_lax(x, kernel, precision=precision)
    return winograd.convolve(_wide(x), _wide(kernel), precision=precision).astype(x.dtype)


def _kernel_cpu(x, dy, *, precision):
    if _is_small(x, dy.shape[3]):
        return _kernel_by_rows(x, dy, precision=precision)
    return winograd.kernel_derivative(_wide(x), _wide(dy), precision=precision).astype(x.dtype)


def _is_small(x, features):
    """For Winograd's algorithm."""
    _, h, w, c = x.shape
    return min(c, features) < _WINOGRAD_CHANNELS or h * w * c * features < _WINOGRAD_SIZE


def _wide(a):
    """At least float32, in which Winograd's sums must be."""
    return a.astype(jnp.float32) if a.dtype.itemsize < 4 else a


_convolve_p = Primitive("convolve_3x3")
_kernel_p = Primitive("convolve_3x3_kernel")


@_convolve_p.def_abstract_eval
def _convolve_abstract(x, kernel, *, precision):
    return x.update(shape=(*x.shape[:3], kernel.shape[3]))


@_kernel_p.def_abstract_eval
def _kernel_abstract(x, dy, *, precision):
    return x.update(shape=(3, 3, x.shape[3], dy.shape[3]))


@functools.cache
def _jitted(primitive, precision):
    return jax.jit(functools.partial(primitive.bind, precision=precision))


_convolve_p.def_impl(lambda x, kernel, *, precision: _jitted(_convolve_p, precision)(x, kernel))
_kernel_p.def_impl(lambda x, dy, *, precision: _jitted(_kernel_p, precision)(x, dy))


def _lowered(fn):
    return mlir.lower_fun(fn, multiple_results=False)


mlir.register_lowering(_convolve_p, _lowered(_convolve_lax))
mlir.register_lowering(_kernel_p, _lowered(_kernel_lax))
mlir.register_lowering(_convolve_p, _lowered(_convolve_cpu), platform="cpu")
mlir.register_lowering(_kernel_p, _lowered(_kernel_cpu), platform="cpu")

ad.defbilinear(
    _convolve_p,
    lambda ct, x, kernel, *, precision: _convolve_p.bind(ct, mirrored(kernel), precision=precision),
    lambda ct, x, kernel, *, precision: _kernel_p.bind(x, ct, precision=precision),
)
ad.defbilinear(
    _kernel_p,
    lambda ct, x, dy, *, precision: _convolve_p.bind(dy, mirrored(ct), precision=precision),
    lambda ct, x, dy, *, precision: _convolve_p.bind(x, ct, precision=precision),
)


def _convolve_batch(arguments, axes, *, precision):
    x, kernel = arguments
    x_axis, kernel_axis = axes
    if kernel_axis is None:
        x = jnp.moveaxis(x, x_axis, 0)
        y = _convolve_p.bind(x.reshape(-1, *x.shape[2:]), kernel, precision=precision)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
    return jax.vmap(functools.partial(_convolve_lax, precision=precision), in_axes=axes)(x, kernel), 0


def _kernel_batch(arguments, axes, *, precision):
    return jax.vmap(functools.partial(_kernel_by_rows, precision=precision), in_axes=axes)(*arguments), 0


batching.primitive_batchers[_convolve_p] = _convolve_batch
batching.primitive_batchers[_kernel_p] = _kernel_batch
