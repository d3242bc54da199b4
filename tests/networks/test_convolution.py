"""The convolution with its own derivatives against XLA's, in every mode and transformation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jvdm.networks.convolution import convolve

# The last two are done by Winograd's algorithm, with tiles that reach over the edge and without.
SIZES = [
    (2, 5, 7, 3, 4),
    (1, 1, 1, 1, 1),
    (3, 2, 1, 4, 2),
    (1, 8, 8, 1, 5),
    (2, 15, 17, 32, 33),
    (1, 16, 14, 40, 32),
]
WINOGRAD = SIZES[4]
# float64 sums of at most 9 * 40 or 2 * 15 * 17 products of normal numbers, in different orders.
TOLERANCE = {"rtol": 1e-10, "atol": 1e-11}


def reference(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def arrays(size=SIZES[0], dtype=jnp.float64, count=4):
    """x, kernel, dx, dkernel; kernels such that an output is of size 1."""
    b, h, w, c, d = size
    rng = np.random.default_rng(0)
    shapes = [(b, h, w, c), (3, 3, c, d)] * 2
    sizes = [1.0, 1.0 / (3.0 * c**0.5)] * 2
    values = [size * rng.normal(size=shape) for size, shape in zip(sizes, shapes, strict=True)]
    return [jnp.asarray(a, dtype) for a in values[:count]]


def assert_same(transform, *args, **tolerance):
    """`transform(convolution)(*args)` is the same for both, and not zero."""
    expected = jax.tree.leaves(jax.jit(transform(reference))(*args))
    value = jax.tree.leaves(jax.jit(transform(convolve))(*args))
    assert len(expected) == len(value) > 0
    for a, b in zip(value, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), **(tolerance or TOLERANCE)
        )
        assert np.any(np.asarray(b) != 0)


def loss(conv):
    """A scalar with a full Hessian."""
    return lambda x, kernel: jnp.sum(jnp.sin(conv(x, kernel)))


def test_by_hand():
    """At each pixel the sum over the neighbours that exist of neighbour times tap."""
    x, kernel = (
        np.random.default_rng(0).normal(size=(1, 3, 4, 1)),
        np.random.default_rng(1).normal(size=(3, 3, 1, 1)),
    )
    expected = np.zeros((3, 4))
    for p, q, i, j in np.ndindex(3, 4, 3, 3):
        if 0 <= p + i - 1 < 3 and 0 <= q + j - 1 < 4:
            expected[p, q] += x[0, p + i - 1, q + j - 1, 0] * kernel[i, j, 0, 0]
    value = convolve(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))[0, ..., 0]
    # Nine float32 products.
    np.testing.assert_allclose(value, expected, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_forward(size, x64):
    assert_same(lambda conv: conv, *arrays(size, count=2))


def test_forward_without_jit(x64):
    x, kernel = arrays(count=2)
    np.testing.assert_allclose(convolve(x, kernel), reference(x, kernel), **TOLERANCE)


@pytest.mark.parametrize("size", SIZES)
def test_gradients(size, x64):
    assert_same(lambda conv: jax.grad(loss(conv), argnums=(0, 1)), *arrays(size, count=2))


@pytest.mark.parametrize("argnum", [0, 1])
def test_gradient_of_one_argument(argnum, x64):
    assert_same(lambda conv: jax.grad(loss(conv), argnums=argnum), *arrays(count=2))


@pytest.mark.parametrize("size", [SIZES[0], WINOGRAD])
def test_jvp(size, x64):
    assert_same(lambda conv: lambda x, k, dx, dk: jax.jvp(conv, (x, k), (dx, dk)), *arrays(size))


def test_jvp_of_one_argument(x64):
    assert_same(lambda conv: lambda x, k, dx, dk: jax.jvp(lambda x: conv(x, k), (x,), (dx,)), *arrays())


def test_gradient_of_jvp(x64):
    """What the second-order loss needs: grad of v^T (d out / d x) v with respect to everything."""

    def transform(conv):
        def second(x, kernel, dx):
            return jnp.sum(
                dx * jax.jvp(lambda x: jnp.sin(conv(jnp.sin(conv(x, kernel)), kernel)), (x,), (dx,))[1]
            )

        return jax.grad(second, argnums=(0, 1))

    x, kernel, dx, _ = arrays((2, 4, 3, 3, 3))
    assert_same(transform, x, kernel, dx)


@pytest.mark.parametrize("size", [SIZES[0], WINOGRAD])
def test_gradient_of_gradient(size, x64):
    def transform(conv):
        gradients = jax.grad(loss(conv), argnums=(0, 1))
        return jax.grad(lambda x, k: sum(jnp.sum(jnp.sin(g)) for g in gradients(x, k)), argnums=(0, 1))

    assert_same(transform, *arrays(size, count=2))


@pytest.mark.parametrize(
    ("x_axis", "kernel_axis"), [(0, None), (2, None), (None, 0), (None, 3), (0, 0), (1, 2)]
)
def test_vmap(x_axis, kernel_axis, x64):
    rng = np.random.default_rng(3)
    x, kernel = arrays(count=2)

    def stack(a, axis):
        return a if axis is None else jnp.asarray(np.stack([a * s for s in rng.normal(size=3)], axis=axis))

    axes = (x_axis, kernel_axis)
    args = stack(x, x_axis), stack(kernel, kernel_axis)
    assert_same(lambda conv: jax.vmap(conv, in_axes=axes), *args)
    # Of the gradient: the transposes are batched, too.
    assert_same(lambda conv: jax.vmap(jax.grad(loss(conv), argnums=(0, 1)), in_axes=axes), *args)


def test_vmap_of_jvps_with_one_primal(x64):
    """Several probes of one solve share x and kernel."""
    x, kernel, _, _ = arrays()
    probes = jnp.asarray(np.random.default_rng(4).normal(size=(3, *x.shape)))
    assert_same(
        lambda conv: lambda x, k, v: jax.vmap(lambda v: jax.jvp(lambda x: conv(x, k), (x,), (v,))[1])(v),
        x,
        kernel,
        probes,
    )


def chain(conv, body_of=lambda body: body):
    """A scan of convolutions over stacked kernels, as the U-Net's blocks are."""

    def fn(x, kernels):
        def body(h, kernel):
            h = jnp.sin(conv(h, kernel))
            return h, jnp.sum(h)

        return lax.scan(body_of(body), x, kernels)

    return fn


@pytest.mark.parametrize("checkpoint", [False, True])
def test_scan(checkpoint, x64):
    x, kernels = arrays((2, 4, 5, 3, 3), count=2)
    kernels = jnp.stack([kernels, 0.5 * kernels, -kernels])
    body_of = (lambda body: jax.checkpoint(body, prevent_cse=False)) if checkpoint else (lambda body: body)

    def objective(conv):
        def fn(x, kernels):
            h, sums = chain(conv, body_of)(x, kernels)
            return jnp.sum(h) + jnp.sum(sums**2)

        return fn

    assert_same(lambda conv: jax.value_and_grad(objective(conv), argnums=(0, 1)), x, kernels)


def test_checkpoint(x64):
    assert_same(lambda conv: jax.grad(jax.checkpoint(loss(conv)), argnums=(0, 1)), *arrays(count=2))


@pytest.mark.parametrize("channels", [32, 128])
def test_winograd_is_as_exact_as_the_direct_sum(channels):
    """Of both, the root mean square of the float32 error."""
    x, kernel, dy, _ = (
        np.asarray(a, np.float64) for a in arrays((2, 16, 16, channels, channels), jnp.float32)
    )
    short = [jnp.asarray(a, jnp.float32) for a in (x, kernel, dy)]
    with jax.enable_x64():
        exact = [np.asarray(a) for a in products(reference, *map(jnp.asarray, (x, kernel, dy)))]
    ours, direct = (jax.jit(functools.partial(products, conv))(*short) for conv in (convolve, reference))
    for name, a, b, c in zip(("output", "of x", "of the kernel"), ours, direct, exact, strict=True):
        error, of_direct = (np.sqrt(np.mean((np.asarray(v) - c) ** 2) / np.mean(c**2)) for v in (a, b))
        # With tiles of 2 x 2, Winograd's own error is about twice that of a sum as long; the direct sum is
        # nine times as long. The weights of tiles of 4 x 4, up to 8, cost another factor of 5 to 10.
        most = 5e-6 if name == "of the kernel" else max(2 * of_direct, 1e-6)
        assert 0 < error < most, name


def products(conv, x, kernel, dy):
    """The convolution and both of its derivatives."""
    out, transpose = jax.vjp(conv, x, kernel)
    return out, *transpose(dy)


def test_float32():
    # Sums of up to 9 * 4 (kernel: 2 * 5 * 7) products of size 1: rounding of a few 1e-7 each.
    assert_same(
        lambda conv: jax.value_and_grad(loss(conv), argnums=(0, 1)), *arrays(dtype=jnp.float32, count=2),
        rtol=1e-5, atol=2e-5,
    )  # fmt: skip


@pytest.mark.parametrize("size", [SIZES[0], WINOGRAD])
def test_bfloat16(size):
    x, kernel = arrays(size, dtype=jnp.bfloat16, count=2)
    exact = reference(x.astype(jnp.float32), kernel.astype(jnp.float32))
    value = convolve(x, kernel)
    assert value.dtype == jnp.bfloat16
    # One rounding of the sum to 8 bits: half an ulp is 2^-9 relative (accumulation is float32).
    np.testing.assert_allclose(value.astype(jnp.float32), exact, rtol=2**-8, atol=1e-5)
    fn = jax.jit(jax.grad(lambda x, k: jnp.sum(convolve(x, k).astype(jnp.float32) * weights), argnums=(0, 1)))
    weights = jnp.asarray(np.random.default_rng(5).choice([-1.0, 1.0], size=exact.shape), jnp.float32)
    expected = jax.grad(lambda x, k: jnp.sum(reference(x, k) * weights), argnums=(0, 1))(
        x.astype(jnp.float32), kernel.astype(jnp.float32)
    )
    for a, b in zip(fn(x, kernel), expected, strict=True):
        assert a.dtype == jnp.bfloat16
        # The cotangent, +-1, is exact in bfloat16, so again one rounding of a sum.
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-8, atol=2e-5)


def test_shapes_without_running():
    """Abstract evaluation, which initialisation and memory estimates use."""
    x, kernel = (
        jax.ShapeDtypeStruct((2, 5, 7, 3), jnp.bfloat16),
        jax.ShapeDtypeStruct((3, 3, 3, 4), jnp.bfloat16),
    )
    out = jax.eval_shape(convolve, x, kernel)
    assert out.shape == (2, 5, 7, 4)
    assert out.dtype == jnp.bfloat16


PLATFORMS = ("cpu", "cuda", "tpu")


def lowered_for(platform, fn, *arguments):
    """The program as text, for a platform that need not be there."""
    return jax.jit(fn).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(("size", "convolutions", "matrix_products"), [(SIZES[0], 2, 3), (WINOGRAD, 0, 68)])
def test_how_it_is_computed_is_decided_for_the_platform(platform, size, convolutions, matrix_products):
    """Traced on one machine, lowered for another: matrix products are the CPU's alone."""
    x, kernel = arrays(size, dtype=jnp.float32, count=2)
    gradient = lambda x, kernel: jax.vjp(convolve, x, kernel)[1](convolve(x, kernel))  # noqa: E731
    text = lowered_for(platform, gradient, x, kernel)
    assert text.count("stablehlo.convolution(") == (convolutions if platform == "cpu" else 3)
    assert text.count("stablehlo.dot_general") == (matrix_products if platform == "cpu" else 0)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("given", ["argument", "context"])
@pytest.mark.parametrize("size", [SIZES[0], WINOGRAD])
def test_precision_reaches_every_derivative(platform, given, size):
    x, kernel = arrays(size, dtype=jnp.float32, count=2)
    precision = "highest" if given == "argument" else None
    conv = lambda x, kernel: convolve(x, kernel, precision=precision)  # noqa: E731
    with jax.default_matmul_precision("highest" if given == "context" else "default"):
        text = lowered_for(
            platform, lambda x, kernel: jax.vjp(conv, x, kernel)[1](conv(x, kernel)), x, kernel
        )
    products = [line for line in text.splitlines() if "convolution(" in line or "dot_general" in line]
    assert len(products) in (3, 5, 68)
    assert all("HIGHEST" in line for line in products), text
