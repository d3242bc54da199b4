"""The DDPM U-Net: shapes, the order of its blocks, its options and its errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.compose import context_of
from jax import lax

from jvdm.core.errors import UserError
from jvdm.core.records import Conditioning, Context
from jvdm.core.shapes import lead
from jvdm.networks import NETWORKS, layers
from jvdm.networks.ddpm_unet import DDPMUNet, ResidualBlock, StridedConv

SMALL = {
    "channels": 8,
    "multipliers": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
    "dropout": 0.0,
}
TIME = jnp.array([0.56, 0.78])
CONDITIONING, OTHER = (context_of(jnp.array(a)) for a in ([0.0, 1.0], [1.0, 0.0]))


def build(**options):
    return DDPMUNet(**{**SMALL, **options})


def image(shape=(2, 8, 8, 1), seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def shapes_of(net, shape=(2, 8, 8, 1)):
    """Shapes of the parameters."""
    z, scalar = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.float32)
    return jax.eval_shape(net.init, jax.random.key(0), z, scalar, Context(Conditioning(augmented=scalar)))[
        "params"
    ]


@functools.cache
def parameters(scale=0.2, **options):
    """Parameters away from their initial zeros."""
    rng = np.random.default_rng(0)
    shapes = shapes_of(build(**options))
    return jax.tree.map(lambda a: jnp.asarray(scale * rng.normal(size=a.shape), a.dtype), shapes)


@functools.cache
def apply_fn(**options):
    net = build(**options)
    return jax.jit(lambda params, z, time, conditioning: net.apply({"params": params}, z, time, conditioning))


@pytest.mark.parametrize(
    ("shape", "multipliers"),
    [
        ((1, 28, 28, 1), (1, 1, 2)),  # 28, 14, 7
        ((2, 7, 5, 3), (1,)),
        ((1, 8, 12, 3), (2, 1, 1)),
        ((1, 1, 2, 1), (3,)),
        ((1, 32, 32, 3), (1, 2, 2, 2)),
    ],
)
@pytest.mark.parametrize("resample_with_conv", [False, True])
def test_any_image_whose_sides_can_be_halved(shape, multipliers, resample_with_conv):
    net = build(multipliers=multipliers, resample_with_conv=resample_with_conv)
    z, scalar = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.float32)
    out, variables = jax.eval_shape(
        net.init_with_output, jax.random.key(0), z, scalar, Context(Conditioning(augmented=scalar))
    )
    assert out.shape == shape
    assert out.dtype == jnp.float32
    assert set(variables) == {"params"}


@pytest.mark.parametrize(
    ("shape", "levels", "message"),
    [
        (
            (1, 28, 28, 1),
            4,
            "has 4 numbers, but images of 28 x 28 can be halved only 2 times: give at most 3",
        ),
        ((1, 8, 6, 1), 3, "images of 8 x 6 can be halved only 1 times: give at most 2"),
        ((1, 7, 8, 1), 2, "images of 7 x 8 can be halved only 0 times: give at most 1"),
    ],
)
def test_sides_that_cannot_be_halved(shape, levels, message):
    with pytest.raises(UserError, match=message) as caught:
        shapes_of(build(multipliers=(1,) * levels), shape)
    assert len(str(caught.value).splitlines()) == 1


def test_published_size():
    """35.7 million parameters on CIFAR-10 (2006.11239, appendix B), and 4 x 128 for the conditioning."""
    sizes = [a.size for a in jax.tree.leaves(shapes_of(DDPMUNet(), (1, 32, 32, 3)))]
    assert sum(sizes) == 35_746_307 + 512


def test_names_of_the_blocks():
    net = build(multipliers=(1, 2, 1), num_res_blocks=2, attention_resolutions=(4, 16))
    blocks = {f"down_{i}_{j}" for i in range(3) for j in range(2)}
    blocks |= {f"up_{i}_{j}" for i in range(3) for j in range(3)}
    attentions = {f"{name}_attention" for name in blocks if name.split("_")[1] in "02"} | {"middle_attention"}
    others = {"condition1", "condition2", "conv_in", "norm_out", "conv_out", "middle1", "middle2"}
    resampling = {"downsample_0", "downsample_1", "upsample_2", "upsample_1"}
    assert set(shapes_of(net, (1, 16, 16, 1))) == blocks | attentions | others | resampling
    without = build(multipliers=(1, 2, 1), resample_with_conv=False, attention_resolutions=())
    assert not any("sample" in name for name in shapes_of(without, (1, 16, 16, 1)))


def test_initialisation():
    """Zero-initialised outputs, of blocks and of the network, which adds nothing of its input."""
    out, variables = jax.jit(build(multipliers=(1,)).init_with_output)(
        jax.random.key(0, impl="rbg"), image(), TIME, CONDITIONING
    )
    np.testing.assert_array_equal(out, 0.0)
    params = variables["params"]
    for name in ("down_0_0", "middle1", "up_0_1"):
        np.testing.assert_array_equal(params[name]["conv2"]["kernel"], 0.0)
        assert np.std(params[name]["conv1"]["kernel"]) > 0.05
        assert np.std(params[name]["condition"]["kernel"]) > 0.05


def by_hand(params, z, time, conditioning, *, time_scale, padding, resample_with_conv):
    """The forward pass of two levels with one block, attention at the lower, from the module's docstring."""
    groups, p = 2, params

    def residual(name, features, h):
        module = ResidualBlock(features, groups, 1e-6, 0.0, jnp.float32, False)
        return module.apply({"params": p[name]}, h, condition)

    def attend(name, h):
        return layers.SelfAttention(groups).apply({"params": p[name]}, h)

    def conv(name, h, stride=1, padding=(1, 1)):
        dimensions = ("NHWC", "HWIO", "NHWC")
        h = lax.conv_general_dilated(
            h, p[name]["kernel"], (stride, stride), (padding, padding), dimension_numbers=dimensions
        )
        return h + lead(p[name]["bias"], 4)

    def dense(name, h):
        return h @ p[name]["kernel"] + lead(p[name]["bias"], h.ndim)

    phase = time_scale * time[:, None] * 10_000.0 ** -(jnp.arange(4.0) / 3)[None]
    condition = jnp.concatenate(
        [jnp.sin(phase), jnp.cos(phase), conditioning.conditioning.augmented[:, None]], axis=-1
    )
    condition = nn.swish(dense("condition2", nn.swish(dense("condition1", condition))))

    h0 = conv("conv_in", z)
    h1 = residual("down_0_0", 8, h0)
    if resample_with_conv:
        h2 = conv("downsample_0", h1, 2, padding)
    else:
        h2 = h1.reshape(2, 4, 2, 4, 2, 8).mean(axis=(2, 4))
    h3 = attend("down_1_0_attention", residual("down_1_0", 16, h2))
    h = residual("middle1", 16, h3)
    h = residual("middle2", 16, attend("middle_attention", h))
    h = attend("up_1_0_attention", residual("up_1_0", 16, jnp.concatenate([h, h3], axis=-1)))
    h = attend("up_1_1_attention", residual("up_1_1", 16, jnp.concatenate([h, h2], axis=-1)))
    h = jnp.kron(h, jnp.ones((1, 2, 2, 1)))
    if resample_with_conv:
        h = conv("upsample_1", h)
    h = residual("up_0_0", 8, jnp.concatenate([h, h1], axis=-1))
    h = residual("up_0_1", 8, jnp.concatenate([h, h0], axis=-1))
    return conv("conv_out", nn.swish(layers.GroupNorm(groups).apply({"params": p["norm_out"]}, h)))


@pytest.mark.parametrize(
    ("options", "padding"),
    [
        ({}, (0, 1)),
        ({"downsample_padding": "symmetric", "time_scale": 1.0}, (1, 1)),
        ({"resample_with_conv": False}, None),
    ],
)
def test_network_is_its_docstring(options, padding):
    params, z = parameters(**options), image()
    out = apply_fn(**options)(params, z, TIME, CONDITIONING)
    scale = options.get("time_scale", 1000.0)
    with_conv = options.get("resample_with_conv", True)
    expected = jax.jit(
        functools.partial(by_hand, time_scale=scale, padding=padding, resample_with_conv=with_conv)
    )(params, z, TIME, CONDITIONING)
    # Seven blocks of float32 sums of up to 288 products, in another order; the phases of time 1000 to 3e-5.
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert np.std(expected) > 0.1, "the network must do something"


@pytest.mark.parametrize("padding", [(0, 1), (1, 1)])
def test_strided_convolution(padding):
    """Values and derivatives are those of the convolution with stride 2."""
    x, module = image((2, 6, 4, 3)), StridedConv(padding, jnp.float32)
    params = module.init(jax.random.key(0), x)

    def reference(params, x):
        p = params["params"]
        dimensions = ("NHWC", "HWIO", "NHWC")
        return lead(p["bias"], 4) + lax.conv_general_dilated(
            x, p["kernel"], (2, 2), (padding, padding), dimension_numbers=dimensions
        )

    ours, pull = jax.vjp(module.apply, params, x)
    theirs, pull_reference = jax.vjp(reference, params, x)
    assert ours.shape == (2, 3, 2, 3)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    cotangent = image(ours.shape, seed=1)
    pairs = zip(jax.tree.leaves(pull(cotangent)), jax.tree.leaves(pull_reference(cotangent)), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, atol=1e-5)


@functools.cache
def value_and_grad(**options):
    net = build(**options)

    def loss(params, z):
        return jnp.mean(net.apply({"params": params}, z, TIME, CONDITIONING) ** 2)

    return jax.jit(jax.value_and_grad(loss))


def test_every_parameter_has_a_gradient():
    _, gradients = value_and_grad()(parameters(), image())
    gradients = jax.tree_util.tree_leaves_with_path(gradients)
    dead = {jax.tree_util.keystr(k) for k, a in gradients if np.abs(a).max() < 1e-7}
    # The keys' bias adds a constant to all logits of a query.
    assert all("['key']['bias']" in name for name in dead)
    assert all(np.all(np.isfinite(a)) for _, a in gradients)


@pytest.mark.long
@pytest.mark.parametrize("remat", ["elementwise", "full"])
def test_rematerialised_network_is_the_same(remat):
    params, z = parameters(), image()
    value, gradients = value_and_grad(remat="none")(params, z)
    again, recomputed = value_and_grad(remat=remat)(params, z)
    np.testing.assert_allclose(again, value, rtol=1e-5)
    assert jax.tree.structure(gradients) == jax.tree.structure(recomputed)
    scale = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(gradients))
    for a, b in zip(jax.tree.leaves(recomputed), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * scale)


def test_bfloat16_trunk():
    params, z = parameters(scale=0.1), image()
    exact = apply_fn()(params, z, TIME, CONDITIONING)
    out = apply_fn(dtype="bfloat16")(params, z, TIME, CONDITIONING)
    assert out.dtype == jnp.float32
    assert 1e-6 < np.abs(out - exact).max() < 0.05 * np.abs(exact).max()
    assert {a.dtype for a in jax.tree.leaves(shapes_of(build(dtype="bfloat16")))} == {jnp.dtype(jnp.float32)}


def test_bfloat16_keeps_the_ends_in_float32():
    seen = {}

    def record(next_fn, args, kwargs, context):
        out = next_fn(*args, **kwargs)
        if context.method_name == "__call__" and context.module.path:
            seen[context.module.path[-1]] = (args[0].dtype, jax.tree.leaves(out)[0].dtype)
        return out

    with nn.intercept_methods(record):
        shapes_of(build(dtype="bfloat16"))
    float32, bfloat16 = jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)
    assert seen["conv_in"] == seen["conv_out"] == seen["norm_out"] == (float32, float32)
    for name in ("down_0_0", "downsample_0", "middle1", "middle_attention", "upsample_1", "up_0_1"):
        assert seen[name] == (bfloat16, bfloat16), name


@pytest.mark.parametrize("name", ["time", "conditioning"])
def test_time_and_conditioning_change_the_output(name):
    other = {"time": (TIME + 0.03, CONDITIONING), "conditioning": (TIME, OTHER)}[name]
    fn, params, z = apply_fn(), parameters(), image()
    change = np.abs(fn(params, z, TIME, CONDITIONING) - fn(params, z, *other)).max(axis=(1, 2, 3))
    assert np.all(change > 1e-3)


def test_dropout_only_in_training():
    net, params, z = build(dropout=0.5), parameters(), image()

    @jax.jit
    def train(key):
        return net.apply({"params": params}, z, TIME, CONDITIONING, train=True, rngs={"mask": key})

    programs = [apply_fn(**o).lower(params, z, TIME, CONDITIONING).as_text() for o in ({"dropout": 0.5}, {})]
    assert programs[0] == programs[1], "outside training there is no dropout in the program"
    first = train(jax.random.key(0))
    np.testing.assert_array_equal(first, train(jax.random.key(0)))
    assert np.abs(first - train(jax.random.key(1))).max() > 1e-2


@pytest.mark.parametrize(
    ("channels", "num_groups", "groups"), [(8, 0, 2), (8, 4, 4), (128, 0, 32), (32, 32, 32), (36, 0, 9)]
)
def test_number_of_groups(channels, num_groups, groups):
    seen = set()

    def record(next_fn, args, kwargs, context):
        if isinstance(context.module, layers.GroupNorm):
            seen.add((context.module.num_groups, context.module.epsilon))
        return next_fn(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes_of(build(channels=channels, num_groups=num_groups, norm_epsilon=1e-5))
    assert seen == {(groups, 1e-5)}


MISTAKES = {
    "channels": [{"channels": 7}, {"channels": 2}],
    "multipliers": [
        {"multipliers": ()},
        {"multipliers": (1, 0)},
        {"multipliers": (1, 1.5)},
        {"multipliers": [1]},
    ],
    "attention_resolutions": [{"attention_resolutions": (0,)}],
    "num_res_blocks": [{"num_res_blocks": 0}],
    "downsample_padding": [{"downsample_padding": "valid"}],
    "num_groups": [{"num_groups": 3}, {"num_groups": -1}],
    "time_scale": [{"time_scale": 0.0}],
    "norm_epsilon": [{"norm_epsilon": -1.0}],
    "dtype": [{"dtype": "float16"}],
    "dropout": [{"dropout": 1.0}],
}


@pytest.mark.parametrize(("option", "value"), [(o, v) for o, values in MISTAKES.items() for v in values])
def test_options_are_checked(option, value, unchecked):
    with pytest.raises(ValueError, match=rf"^(unknown )?{option} ") as caught:
        build(**value)
    assert len(str(caught.value).splitlines()) == 1


def test_options_through_the_registry():
    assert NETWORKS.build(NETWORKS.spec("ddpm_unet")) == DDPMUNet()
    net = NETWORKS.build(NETWORKS.spec("ddpm_unet", multipliers=(1, 2), attention_resolutions=()))
    assert (net.multipliers, net.attention_resolutions) == ((1, 2), ())
    with pytest.raises(UserError, match=r"^network 'ddpm_unet': option multipliers is 2, not a tuple$"):
        NETWORKS.build({"name": "ddpm_unet", "multipliers": 2})
