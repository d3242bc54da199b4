"""The VDM U-Net: shapes, its skip, and that the fast forms equal the plain ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.compose import context_of

from jvdm.core.shapes import lead
from jvdm.networks import NETWORKS, layers
from jvdm.networks.inputs import features
from jvdm.networks.unet import ResidualBlock, VDMUNet

SMALL = {"channels": 8, "num_blocks": 2, "dropout": 0.0}
TIME = jnp.array([0.56, 0.78])
CONDITIONING, OTHER = (context_of(jnp.array(a)) for a in ([0.0, 1.0], [1.0, 0.0]))


def build(**options):
    return VDMUNet(**{**SMALL, **options})


def image(shape=(2, 8, 8, 1), seed=0):
    # Multiples of 1/64: the Fourier features, of period 1/64 and less, are then constants, and float32
    # against bfloat16 compares the trunk and not the amplification of a rounding of z by 800.
    return jnp.asarray(np.random.default_rng(seed).integers(-64, 64, shape) / 64.0, jnp.float32)


@functools.cache
def parameters(scale=0.2, **options):
    """Parameters away from their initial zeros."""
    shapes = jax.eval_shape(build(**options).init, jax.random.key(0), image(), TIME, CONDITIONING)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(scale * rng.normal(size=a.shape), a.dtype), shapes)


@functools.cache
def apply_fn(**options):
    net = build(**options)
    return jax.jit(lambda params, z, time, conditioning: net.apply({"params": params}, z, time, conditioning))


@functools.cache
def value_and_grad(**options):
    net = build(**options)

    def loss(params, z):
        return jnp.mean(net.apply({"params": params}, z, TIME, CONDITIONING) ** 2)

    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize("shape", [(1, 5, 7, 1), (2, 7, 5, 3), (1, 1, 3, 4), (3, 8, 8, 1), (1, 32, 32, 3)])
def test_any_image_size_and_channel_count(shape):
    net, z = build(num_blocks=1, attention=True), jax.ShapeDtypeStruct(shape, jnp.float32)
    scalar = jax.ShapeDtypeStruct(shape[:1], jnp.float32)
    out, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), z, scalar, context_of(scalar))
    assert out.shape == shape
    assert out.dtype == jnp.float32
    assert set(variables) == {"params"}
    assert variables["params"]["conv_out"]["kernel"].shape == (3, 3, 8, shape[-1])


def test_initialisation():
    """Zero-initialised outputs leave z as it is, and scanned blocks start from different numbers."""
    z = image((2, 7, 5, 3))
    # A key of the hardware's generator: the program compiles in a fraction of threefry's time.
    out, variables = jax.jit(build(attention=True).init_with_output)(
        jax.random.key(0, impl="rbg"), z, TIME, CONDITIONING
    )
    np.testing.assert_array_equal(out, z)
    for name in ("down", "up"):
        block = variables["params"][name]["block"]
        # Entries have a standard deviation of 1 / sqrt(72) or 1 / sqrt(144).
        assert np.abs(np.diff(block["conv1"]["kernel"], axis=0)).max() > 0.05
        assert np.std(block["conv1"]["kernel"]) > 0.05
        np.testing.assert_array_equal(block["conv2"]["kernel"], 0.0)


def test_registered_with_the_published_defaults():
    spec = NETWORKS.spec("vdm_unet")
    assert (spec.channels, spec.num_blocks, spec.fourier_first, spec.fourier_last) == (128, 32, 6, 7)
    assert (
        NETWORKS.build(
            spec,
        )
        == VDMUNet()
    )


def unrolled(params, z, time, conditioning, *, attention=False, num_heads=1, norm_epsilon=1e-6):
    """The forward pass with every block applied by itself, from the module's docstring."""
    channels, num_blocks, groups = 8, 2, 2
    block = ResidualBlock(channels, groups, 0.0, jnp.float32, norm_epsilon)
    attend = layers.SelfAttention(groups, norm_epsilon, num_heads=num_heads)

    def stacked(name, i):
        return jax.tree.map(lambda a: a[i], params[name])

    def residual(p, h):
        return block.apply({"params": p}, h, condition)

    def dense(p, h):
        return h @ p["kernel"] + lead(p["bias"], h.ndim)

    # Of the image, or of every pixel its channels' side by side; and all that is known of the image.
    b, h, w, _ = time.shape if time.ndim == 4 else (len(time), 1, 1, 1)
    embedding = layers.timestep_embedding(time.reshape(-1), channels).reshape(b, h, w, -1)
    known = jnp.tile(features(conditioning, b).reshape(b, 1, 1, -1), (1, h, w, 1))
    condition = jnp.concatenate([embedding, known], axis=-1)
    condition = nn.swish(dense(params["condition1"], condition))
    condition = nn.swish(dense(params["condition2"], condition))
    h = jnp.concatenate([z, layers.fourier_features(z, 6, 7)], axis=-1)
    h = layers.Conv3x3(channels).apply({"params": params["conv_in"]}, h)
    kept = [h]
    for i in range(num_blocks):
        h = residual(stacked("down", i)["block"], h)
        if attention:
            h = attend.apply({"params": stacked("down", i)["attention"]}, h)
        kept.append(h)
    h = residual(params["middle1"], h)
    h = attend.apply({"params": params["middle_attention"]}, h)
    h = residual(params["middle2"], h)
    for i in range(num_blocks + 1):
        h = residual(stacked("up", i)["block"], jnp.concatenate([h, kept.pop()], axis=-1))
        if attention:
            h = attend.apply({"params": stacked("up", i)["attention"]}, h)
    assert not kept
    h = nn.swish(layers.GroupNorm(groups, norm_epsilon).apply({"params": params["norm_out"]}, h))
    return z + layers.Conv3x3(z.shape[-1]).apply({"params": params["conv_out"]}, h)


@pytest.mark.parametrize(
    "options", [{}, {"attention": True}, {"attention": True, "num_heads": 4, "norm_epsilon": 0.5}]
)
def test_scanned_stack_is_the_blocks_one_after_another(options):
    params, z = parameters(attention=bool(options)), image()
    out = apply_fn(**options)(params, z, TIME, CONDITIONING)
    expected = jax.jit(functools.partial(unrolled, **options))(params, z, TIME, CONDITIONING)
    # Ten blocks of float32 sums of 72 and 144 products, in another order.
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected - z).max() > 0.1, "the network must do something"
    for name, count in (("down", 2), ("up", 3)):
        assert {a.shape[0] for a in jax.tree.leaves(params[name])} == {count}


@pytest.mark.parametrize("per_pixel", [False, True])
def test_a_latent_and_a_time_for_every_pixel(per_pixel):
    """Channels of other times, and a latent beside the scalar, against the same formula."""
    z, rng = image((3, 5, 4, 2)), np.random.default_rng(3)
    time = jnp.asarray(rng.uniform(size=z.shape if per_pixel else 3), jnp.float32)
    known = jnp.asarray(rng.normal(size=(3, 6)), jnp.float32)
    shapes = jax.eval_shape(build().init, jax.random.key(0), z, time, context_of(known))["params"]
    assert shapes["condition1"]["kernel"].shape == (8 * (2 if per_pixel else 1) + 6, 32)
    params = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), jnp.float32), shapes)
    out = apply_fn()(params, z, time, context_of(known))
    expected = jax.jit(unrolled)(params, z, time, context_of(known))
    # As above; sums grow with parameters of deviation 0.3.
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4 * float(jnp.abs(expected).max()))
    moved = apply_fn()(params, z, time, context_of(known.at[:, 0].add(1.0)))
    assert np.abs(moved - out).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads 3 does not divide channels 8"),
        ({"num_heads": 0}, "num_heads is 0: give 1 or more"),
        ({"norm_epsilon": 0.0}, "norm_epsilon is 0.0"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.long
@pytest.mark.parametrize("remat", ["elementwise", "full"])
def test_rematerialised_network_is_the_same(remat):
    params, z = parameters(attention=True), image()
    value, gradients = value_and_grad(attention=True, remat="none")(params, z)
    again, recomputed = value_and_grad(attention=True, remat=remat)(params, z)
    # The same operations, which may be fused differently.
    np.testing.assert_allclose(again, value, rtol=1e-5)
    scale = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(gradients))
    assert jax.tree.structure(gradients) == jax.tree.structure(recomputed)
    for a, b in zip(jax.tree.leaves(recomputed), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("attention", [False, True])
def test_elementwise_rematerialisation_repeats_no_product(attention):
    """Convolutions and matrix products of the gradient's program, before XLA."""
    params, z = parameters(attention=attention), image()

    def products(remat):
        fn = value_and_grad(attention=attention, remat=remat)
        text = fn.trace(params, z).lower(lowering_platforms=("cuda",)).as_text()
        return text.count("stablehlo.convolution("), text.count("stablehlo.dot_general")

    none, elementwise, full = (products(remat) for remat in layers.REMATS)
    assert elementwise == none
    assert full[0] > none[0] and full[1] > none[1]


def test_every_parameter_has_a_gradient():
    _, gradients = value_and_grad()(parameters(), image())
    # One exception of the mathematics: the keys' bias adds a constant to all logits of a query.
    dead = {
        jax.tree_util.keystr(k) for k, a in jax.tree.leaves_with_path(gradients) if np.abs(a).max() < 1e-7
    }
    assert dead <= {"['middle_attention']['key']['bias']"}
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(gradients))


def test_bfloat16_trunk():
    params, z = parameters(scale=0.1), image()
    exact = apply_fn()(params, z, TIME, CONDITIONING)
    out = apply_fn(dtype="bfloat16")(params, z, TIME, CONDITIONING)
    assert out.dtype == jnp.float32
    # Each of ten blocks rounds to 2^-9 relative; a per cent or two of what the network adds.
    added = np.asarray(exact - z)
    assert np.abs(out - exact).max() < 0.05 * np.abs(added).max()
    assert np.abs(out - exact).max() > 1e-6, "the trunk must not be float32"
    initial = jax.eval_shape(build(dtype="bfloat16").init, jax.random.key(0), z, TIME, CONDITIONING)
    assert {a.dtype for a in jax.tree.leaves(initial)} == {jnp.dtype(jnp.float32)}


def test_bfloat16_keeps_the_ends_in_float32():
    """Input convolution, output convolution and normalisation's statistics, as traced."""
    seen = {}

    def record(next_fn, args, kwargs, context):
        out = next_fn(*args, **kwargs)
        if context.method_name == "__call__" and context.module.path:
            seen[context.module.path[-1]] = (args[0].dtype, jax.tree.leaves(out)[0].dtype)
        return out

    with nn.intercept_methods(record):
        jax.eval_shape(build(dtype="bfloat16").init, jax.random.key(0), image(), TIME, CONDITIONING)
    float32, bfloat16 = jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)
    assert seen["conv_in"] == seen["conv_out"] == seen["norm_out"] == (float32, float32)
    assert seen["middle1"] == seen["down"] == seen["up"] == (bfloat16, bfloat16)


def test_group_norm_statistics_are_float32():
    # A mean of 64 with a spread of 1: in bfloat16, of 8 bits, x^2 - mean^2 would be nothing but rounding.
    x = jnp.asarray(64 + np.random.default_rng(0).integers(-4, 5, (1, 16, 16, 8)) / 2.0, jnp.bfloat16)
    norm = layers.GroupNorm(2, dtype=jnp.bfloat16)
    out = norm.apply(norm.init(jax.random.key(0), x), x).astype(jnp.float32)
    grouped = np.asarray(x, np.float64).reshape(256, 2, 4)
    exact = (grouped - grouped.mean((0, 2), keepdims=True)) / grouped.std((0, 2), keepdims=True)
    # One rounding of a result up to 2, plus float32 cancellation of 64^2 against 1: 4096 * 1e-7.
    np.testing.assert_allclose(out, exact.reshape(x.shape), rtol=2**-7, atol=2e-3)


def change(name, groups):
    """Largest change of the output when the time or the conditioning of one example changes."""
    fn, params, z = apply_fn(num_groups=groups), parameters(), image()
    other = {"time": (TIME + 0.03, CONDITIONING), "conditioning": (TIME, OTHER)}[name]
    return np.abs(fn(params, z, TIME, CONDITIONING) - fn(params, z, *other)).max(axis=(1, 2, 3))


@pytest.mark.parametrize("name", ["time", "conditioning"])
def test_time_and_conditioning_change_the_output(name):
    assert np.all(change(name, 0) > 1e-3)
    # One channel per group takes away what is constant over a channel (MATH.md, section 9): the
    # default must not be that.
    assert np.all(change(name, 8) < 1e-4)


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (8, 2), (32, 8), (64, 16), (128, 32), (256, 32)])
def test_default_number_of_groups(channels, groups):
    """min(32, channels / 4), and an explicit number is obeyed."""

    def used(num_groups):
        seen = set()

        def record(next_fn, args, kwargs, context):
            if isinstance(context.module, layers.GroupNorm):
                seen.add(context.module.num_groups)
            return next_fn(*args, **kwargs)

        net = build(channels=channels, num_groups=num_groups, num_blocks=1)
        with nn.intercept_methods(record):
            jax.eval_shape(net.init, jax.random.key(0), image((2, 2, 2, 1)), TIME, CONDITIONING)
        return seen

    assert used(0) == {groups}
    assert used(2) == {2}


def test_timestep_embedding():
    t = np.array([0.0, 0.3, 1.0])
    frequency = 1000.0 * 10_000.0 ** -(np.arange(4) / 3)
    phase = t[:, None] * frequency
    # Phases of up to 1000, rounded to 6e-5.
    np.testing.assert_allclose(
        layers.timestep_embedding(jnp.asarray(t, jnp.float32), 8),
        np.concatenate([np.sin(phase), np.cos(phase)], axis=-1),
        atol=5e-4,
    )


def test_fourier_features():
    z = np.random.default_rng(0).uniform(-1, 1, (1, 2, 3, 2)).astype(np.float32)
    features = layers.fourier_features(jnp.asarray(z), 5, 7)
    assert features.shape == (1, 2, 3, 12)
    for channel in range(2):
        for k, n in enumerate((5, 6, 7)):
            phase = 2 * np.pi * 2.0**n * z[..., channel].astype(np.float64)
            # The phase, up to 804, is rounded in float32 to 6e-5, as is the factor.
            np.testing.assert_allclose(features[..., channel * 3 + k], np.sin(phase), atol=3e-4)
            np.testing.assert_allclose(features[..., 6 + channel * 3 + k], np.cos(phase), atol=3e-4)


@pytest.mark.parametrize(("options", "extra"), [({"fourier": False}, 0), ({"fourier_first": 5}, 6), ({}, 4)])
def test_fourier_options_reach_the_input(options, extra):
    shapes = jax.eval_shape(build(**options).init, jax.random.key(0), image(), TIME, CONDITIONING)["params"]
    assert shapes["conv_in"]["kernel"].shape == (3, 3, 1 + extra, 8)


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_attention_is_residual_softmax(heads):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 2, 3, 8)).astype(np.float32)
    module = layers.SelfAttention(2, num_heads=heads)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(x))["params"]
    p = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), shapes)
    y = np.asarray(layers.GroupNorm(2).apply({"params": p["norm"]}, jnp.asarray(x)), np.float64).reshape(
        2, 6, 8
    )
    q, k, v = (y @ p[name]["kernel"] + p[name]["bias"] for name in ("query", "key", "value"))
    attended = np.zeros_like(v)
    for part in np.split(np.arange(8), heads):
        logits = np.einsum("bqc,bkc->bqk", q[..., part], k[..., part]) / np.sqrt(8 / heads)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        attended[..., part] = weights / weights.sum(-1, keepdims=True) @ v[..., part]
    expected = x.reshape(2, 6, 8) + attended @ p["out"]["kernel"] + p["out"]["bias"]
    # Logits of up to 50 are rounded to 1e-5 relative in the weights; values of up to 50.
    np.testing.assert_allclose(
        module.apply({"params": p}, jnp.asarray(x)).reshape(2, 6, 8), expected, rtol=1e-3, atol=2e-3
    )


def test_dropout_only_in_training():
    net, params, z = build(dropout=0.5), parameters(), image()

    @jax.jit
    def train(key):
        return net.apply({"params": params}, z, TIME, CONDITIONING, train=True, rngs={"mask": key})

    programs = [apply_fn(**o).lower(params, z, TIME, CONDITIONING).as_text() for o in ({"dropout": 0.5}, {})]
    assert programs[0] == programs[1], "outside training there is no dropout in the program"
    evaluated = apply_fn()(params, z, TIME, CONDITIONING)
    first = train(jax.random.key(0))
    np.testing.assert_array_equal(first, train(jax.random.key(0)))
    assert np.abs(first - train(jax.random.key(1))).max() > 1e-2
    assert np.abs(first - evaluated).max() > 1e-2


def test_dropout_differs_between_scanned_blocks():
    """Four down blocks that each add a dropped-out constant: their sum takes five values, not two."""
    net, z = build(dropout=0.5, num_blocks=4), jnp.zeros((2, 8, 8, 1))
    params = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), parameters(num_blocks=4))
    eye = np.eye(8, dtype=np.float32)
    params["down"]["block"]["norm2"]["norm"]["bias"][:] = 1.0
    params["down"]["block"]["conv2"]["kernel"][:, 1, 1] = eye
    params["up"]["block"]["shortcut"]["kernel"][:, :8] = eye  # the way up passes h on
    params["norm_out"]["norm"]["scale"][:] = 1.0
    params["conv_out"]["kernel"][1, 1, 0] = 1.0

    @jax.jit
    def train(params, key):
        return net.apply({"params": params}, z, TIME, CONDITIONING, train=True, rngs={"mask": key})

    out = train(params, jax.random.key(0))
    for example in np.asarray(out):
        # 64 pixels; each of the rarest values, none and all of four, is missed with probability 0.016.
        assert len(np.unique(example.round(3))) >= 4


@pytest.mark.long
@pytest.mark.parametrize("remat", layers.REMATS)
def test_program_does_not_grow_with_depth(remat):
    """Of the gradient, with dropout: what training compiles."""

    def program(num_blocks):
        net = build(num_blocks=num_blocks, remat=remat, attention=True, dropout=0.1)
        params = jax.eval_shape(net.init, jax.random.key(0), image(), TIME, CONDITIONING)["params"]

        def loss(params, key):
            rngs = {"mask": key}
            return net.apply({"params": params}, image(), TIME, CONDITIONING, train=True, rngs=rngs).sum()

        return jax.jit(jax.grad(loss)).lower(params, jax.random.key(0)).as_text()

    shallow, deep = program(4), program(16)
    assert deep.count("\n") == shallow.count("\n")
    # Only digits of shapes may differ.
    assert abs(len(deep) - len(shallow)) < 0.02 * len(shallow)
    assert "stablehlo.while" in deep
