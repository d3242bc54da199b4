"""Encoders: the U-Net's equals its blocks applied one by one, and what training and dtype change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jvdm.core.errors import UserError
from jvdm.core.records import Conditioning, Context
from jvdm.core.shapes import lead
from jvdm.networks import layers
from jvdm.networks.encoders import ENCODERS, CNNEncoder, UNetEncoder
from jvdm.networks.unet import ResidualBlock, VDMUNet

N, CHANNELS, BLOCKS = 5, 8, 2
OPTIONS = {
    "unet": {"channels": CHANNELS, "num_blocks": BLOCKS, "dropout": 0.0},
    "cnn": {"channels": 4, "num_layers": 2},
}
CONTEXT = Context(Conditioning(augmented=jnp.array([0.0, 1.0])))


def build(name, **options):
    return ENCODERS.build(ENCODERS.spec(name, **{**OPTIONS[name], **options}), num_outputs=N)


def image(shape=(2, 8, 8, 1), seed=0):
    # Multiples of 1/64, where the Fourier features are constants (see `test_unet`).
    return jnp.asarray(np.random.default_rng(seed).integers(-64, 64, shape) / 64.0, jnp.float32)


@functools.cache
def parameters(name, scale=0.2, **options):
    """Parameters away from their initial zeros."""
    shapes = jax.eval_shape(build(name, **options).init, jax.random.key(0), image(), CONTEXT)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(scale * rng.normal(size=a.shape), a.dtype), shapes)


@functools.cache
def apply_fn(name, **options):
    encoder = build(name, **options)
    return jax.jit(lambda params, x, context: encoder.apply({"params": params}, x, context))


@pytest.fixture(params=sorted(OPTIONS))
def name(request):
    return request.param


def test_every_encoder_is_tested():
    assert sorted(OPTIONS) == ENCODERS.names()


@pytest.mark.parametrize("shape", [(1, 5, 7, 1), (2, 1, 1, 3), (2, 8, 8, 1), (1, 32, 32, 3)])
def test_shapes(name, shape):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    known = Context(Conditioning(augmented=jax.ShapeDtypeStruct(shape[:1], jnp.float32)))
    out, variables = jax.eval_shape(build(name).init_with_output, jax.random.key(0), x, known)
    assert out.shape == (shape[0], N) and out.dtype == jnp.float32
    assert set(variables) == {"params"}


def test_images_of_a_batch_are_apart(name):
    fn, params, x = apply_fn(name), parameters(name), image()
    # Sums of float32 products in another order.
    np.testing.assert_allclose(
        fn(params, x[1:], Context(Conditioning(augmented=CONTEXT.conditioning.augmented[1:])))[0],
        fn(params, x, CONTEXT)[1],
        rtol=1e-4,
        atol=1e-4,
    )
    other = fn(params, image(seed=1), CONTEXT)
    assert np.abs(other - fn(params, x, CONTEXT)).max(axis=1).min() > 1e-2


def unrolled(params, x, context, *, attention=False):
    """The U-Net's way down and middle, with every block applied by itself, from the modules' docstrings."""
    groups = layers.most_groups(CHANNELS)
    block = ResidualBlock(CHANNELS, groups, 0.0, jnp.float32)
    attend = layers.SelfAttention(groups)

    def stacked(i):
        return jax.tree.map(lambda a: a[i], params["down"])

    def residual(p, h):
        return block.apply({"params": p}, h, condition)

    def dense(p, h):
        return h @ p["kernel"] + lead(p["bias"], h.ndim)

    # Time 0: sines of 0, then cosines.
    half = jnp.ones((len(x), CHANNELS // 2))
    condition = jnp.concatenate([0.0 * half, half, context.conditioning.augmented[:, None]], axis=-1)[
        :, None, None
    ]
    for layer in ("condition1", "condition2"):
        condition = nn.swish(dense(params[layer], condition))
    h = jnp.concatenate([x, layers.fourier_features(x, 6, 7)], axis=-1)
    h = layers.Conv3x3(CHANNELS).apply({"params": params["conv_in"]}, h)
    for i in range(BLOCKS):
        h = residual(stacked(i)["block"], h)
        if attention:
            h = attend.apply({"params": stacked(i)["attention"]}, h)
    h = residual(params["middle1"], h)
    h = attend.apply({"params": params["middle_attention"]}, h)
    h = residual(params["middle2"], h)
    h = nn.swish(layers.GroupNorm(groups).apply({"params": params["norm_out"]}, h))
    h = nn.swish(layers.Conv3x3(1).apply({"params": params["conv_out"]}, h))
    return dense(params["logits"], h.reshape(len(x), -1))


@pytest.mark.parametrize("attention", [False, True])
def test_the_unet_is_its_blocks_one_after_another(attention):
    params, x = parameters("unet", attention=attention), image()
    out = apply_fn("unet", attention=attention)(params, x, CONTEXT)
    expected = jax.jit(functools.partial(unrolled, attention=attention))(params, x, CONTEXT)
    # Six blocks of float32 sums of 72 products, in another order.
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
    assert np.std(expected) > 0.1, "the encoder must do something"


def test_its_trunk_is_the_denoisers():
    """The same parameters, by name and shape, but for the way up, and the last layers."""
    x = image()
    net = VDMUNet(channels=CHANNELS, num_blocks=BLOCKS, attention=True)
    denoiser = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(2), CONTEXT)["params"]
    encoder = jax.eval_shape(build("unet", attention=True).init, jax.random.key(0), x, CONTEXT)["params"]
    assert set(denoiser) - set(encoder) == {"up"} and set(encoder) - set(denoiser) == {"logits"}
    for part in set(encoder) - {"logits", "conv_out"}:
        assert encoder[part] == denoiser[part], part
    assert encoder["conv_out"]["kernel"].shape == (3, 3, CHANNELS, 1)
    assert encoder["logits"]["kernel"].shape == (64, N)


def test_initial_logits_differ_between_images(name):
    """Nothing is zero that would keep the encoder from learning."""
    encoder = build(name)
    logits, variables = jax.jit(encoder.init_with_output)(jax.random.key(0, impl="rbg"), image(), CONTEXT)
    assert np.abs(logits[0] - logits[1]).max() > 1e-3
    last = {"unet": "conv_out", "cnn": "conv1"}[name]
    assert np.all(variables["params"][last]["kernel"] != 0.0)


def test_every_parameter_has_a_gradient(name):
    encoder, params, x = build(name), parameters(name), image()

    def loss(params):
        return jnp.sum(encoder.apply({"params": params}, x, CONTEXT) ** 2)

    gradients = jax.jit(jax.grad(loss))(params)
    dead = {
        jax.tree_util.keystr(k)
        for k, a in jax.tree_util.tree_leaves_with_path(gradients)
        if np.abs(a).max() < 1e-7
    }
    # One exception of the mathematics: the keys' bias adds a constant to all logits of a query.
    assert dead <= {"['middle_attention']['key']['bias']"}
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(gradients))
    assert "logits" in gradients


def test_conditioning_reaches_the_unet():
    fn, params, x = apply_fn("unet"), parameters("unet"), image()
    moved = fn(params, x, Context(Conditioning(augmented=jnp.array([1.0, 0.0]))))
    assert np.all(np.abs(moved - fn(params, x, CONTEXT)).max(axis=1) > 1e-3)


def test_dropout_only_in_training():
    encoder, params, x = build("unet", dropout=0.5), parameters("unet"), image()

    @jax.jit
    def train(key):
        return encoder.apply({"params": params}, x, CONTEXT, train=True, rngs={"mask": key})

    programs = [apply_fn("unet", dropout=p).lower(params, x, CONTEXT).as_text() for p in (0.5, 0.0)]
    assert programs[0] == programs[1], "outside training there is no dropout in the program"
    evaluated, first = apply_fn("unet")(params, x, CONTEXT), train(jax.random.key(0))
    np.testing.assert_array_equal(first, train(jax.random.key(0)))
    assert np.abs(first - train(jax.random.key(1))).max() > 1e-2
    assert np.abs(first - evaluated).max() > 1e-2


@pytest.mark.parametrize("remat", ["elementwise", "full"])
def test_rematerialised_is_the_same(remat):
    params, x = parameters("unet"), image()
    # The same operations, which may be fused in other ways.
    np.testing.assert_allclose(
        apply_fn("unet", remat=remat)(params, x, CONTEXT),
        apply_fn("unet", remat="none")(params, x, CONTEXT),
        rtol=1e-5,
        atol=1e-6,
    )


def test_bfloat16_trunk(name):
    params, x = parameters(name, scale=0.1), image()
    exact = apply_fn(name)(params, x, CONTEXT)
    out = apply_fn(name, dtype="bfloat16")(params, x, CONTEXT)
    assert out.dtype == jnp.float32
    # Each of a few layers rounds to 2^-9 relative: a per cent or two.
    assert np.abs(out - exact).max() < 0.05 * np.abs(exact).max()
    assert np.abs(out - exact).max() > 1e-7, "the trunk must not be float32"
    shapes = jax.eval_shape(build(name, dtype="bfloat16").init, jax.random.key(0), x, CONTEXT)
    assert {a.dtype for a in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}


def test_bfloat16_keeps_the_ends_in_float32():
    """Of the U-Net: input convolution, output convolution, its normalisation, and the logits, as traced."""
    seen = {}

    def record(next_fn, args, kwargs, context):
        out = next_fn(*args, **kwargs)
        if context.method_name == "__call__" and context.module.path:
            seen[context.module.path[-1]] = (args[0].dtype, jax.tree.leaves(out)[0].dtype)
        return out

    with nn.intercept_methods(record):
        jax.eval_shape(build("unet", dtype="bfloat16").init, jax.random.key(0), image(), CONTEXT)
    float32, bfloat16 = jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)
    assert {seen[part] for part in ("conv_in", "conv_out", "norm_out", "logits")} == {(float32, float32)}
    assert seen["middle1"] == seen["down"] == (bfloat16, bfloat16)


def test_the_cnn_is_strided_convolutions_and_a_mean():
    """Against sums over the windows: 3 x 3, stride 2, as much padding as gives ceil(n / 2) outputs."""
    params, x = parameters("cnn"), image((2, 6, 5, 2), seed=3)
    shapes = jax.eval_shape(build("cnn").init, jax.random.key(0), x, CONTEXT)["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: np.asarray(rng.normal(size=a.shape), np.float32), shapes)
    h = np.asarray(x, np.float64)
    for layer in ("conv0", "conv1"):
        kernel, bias = (np.float64(params[layer][part]) for part in ("kernel", "bias"))
        size = [-(-n // 2) for n in h.shape[1:3]]
        total = [max(0, 2 * (m - 1) + 3 - n) for m, n in zip(size, h.shape[1:3], strict=True)]
        padded = np.pad(h, [(0, 0), *((t // 2, t - t // 2) for t in total), (0, 0)])
        h = np.zeros((len(h), *size, kernel.shape[-1])) + bias
        for i in range(3):
            for j in range(3):
                window = padded[:, i : i + 2 * size[0] - 1 : 2, j : j + 2 * size[1] - 1 : 2]
                h += window @ kernel[i, j]
        h = h / (1.0 + np.exp(-h))
    expected = h.mean(axis=(1, 2)) @ np.float64(params["logits"]["kernel"]) + params["logits"]["bias"]
    # Float32 sums of up to 36 products, twice.
    out = apply_fn("cnn")(params, x, CONTEXT)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert params["conv0"]["kernel"].shape == (3, 3, 2, 4) and params["conv1"]["kernel"].shape == (3, 3, 4, 8)


def test_defaults_are_the_published_ones():
    spec = ENCODERS.spec("unet")
    assert (spec.channels, spec.num_blocks, spec.fourier_first, spec.fourier_last) == (128, 4, 6, 7)
    assert ENCODERS.build(spec, num_outputs=N) == UNetEncoder(num_outputs=N)
    assert ENCODERS.build(ENCODERS.spec("cnn"), num_outputs=N) == CNNEncoder(num_outputs=N)
    assert build("unet").groups == VDMUNet(channels=CHANNELS).groups


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unet", {"channels": 7}, "channels is 7: give an even number"),
        ("unet", {"num_blocks": 0}, "num_blocks is 0: give 1 or more"),
        ("unet", {"num_groups": 3}, "num_groups 3 does not divide channels 8"),
        ("unet", {"dropout": 1.0}, "dropout is 1.0: give 0 or more, below 1"),
        ("unet", {"dtype": "float16"}, "unknown dtype 'float16'"),
        ("unet", {"fourier_last": 5}, "fourier_last 5 is below fourier_first 6"),
        ("cnn", {"channels": 0}, "channels is 0: give 1 or more"),
        ("cnn", {"num_layers": 0}, "num_layers is 0: give 1 or more"),
        ("cnn", {"dtype": "float64"}, "unknown dtype 'float64'"),
        ("cnn", {"chanels": 8}, "did you mean 'channels'"),
    ],
)
def test_refused_options(name, options, message):
    with pytest.raises(UserError, match=message) as error:
        build(name, **options)
    assert "\n" not in str(error.value)
