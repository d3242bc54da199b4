"""Schedules of every pixel: what each of them is for every latent, and the closed form of each."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from helpers.compose import predicted, step

from jvdm.core.errors import UserError
from jvdm.core.records import Conditioning, Context
from jvdm.diffusion import schedules
from jvdm.diffusion.gaussian import coefficients
from jvdm.diffusion.latents import LATENTS
from jvdm.diffusion.paths import PATHS
from jvdm.diffusion.per_pixel_schedules import SCHEDULES
from jvdm.diffusion.samplers import Ancestral

EPS32 = np.finfo(np.float32).eps
NAMES = [name for name in SCHEDULES.names() if getattr(SCHEDULES.component(name), "per_pixel", False)]
ENDS = {"gamma_min": -13.3, "gamma_max": 5.0}
SPAN = ENDS["gamma_max"] - ENDS["gamma_min"]
SHAPE, M, B, HIDDEN = (2, 3, 2), 5, 4, 8


def build(name, data_shape=SHAPE, **options):
    return SCHEDULES.build(
        SCHEDULES.spec(name, **{**ENDS, "hidden": HIDDEN, **options}), data_shape=data_shape
    )


def context(seed=0, b=B, dtype=float):
    """Of latents [b, M], by default in the precision that is switched on."""
    latent = np.random.default_rng(seed).normal(size=(b, M))
    return Context(latent=jnp.asarray(latent, dtype))


@functools.cache
def initial(name):
    """Initial parameters, float32 numpy."""
    known = context(dtype=jnp.float32)
    params = jax.jit(build(name).init)(jax.random.key(0), jnp.zeros((B, 1, 1, 1), jnp.float32), known)[
        "params"
    ]
    return jax.tree.map(np.asarray, params)


def parameters(name, scale, seed=1):
    """Parameters `scale` away from the initial ones, in the precision that is switched on."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(a + scale * rng.normal(size=a.shape), float), initial(name))


def gamma_fn(name, scale=0.0, seed=1, latents=0):
    """t -> gamma of fixed parameters and latents."""
    params, known = parameters(name, scale, seed), context(latents)
    return jax.jit(lambda t: build(name).apply({"params": params}, t, known))


@functools.partial(jax.jit, static_argnums=0)
def apply(schedule, params, t, known):
    return schedule.apply({"params": params}, t, known)


def times(n):
    """[n, 1, 1, 1, 1] from 0 to 1, for every image."""
    return jnp.linspace(0.0, 1.0, n)[:, None, None, None, None]


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture(params=[0.0, 1.0], ids=["initial", "random"])
def scale(request):
    return request.param


def test_there_are_some():
    assert NAMES == ["pixel_monotone", "polynomial"]


def test_signature_is_that_of_a_schedule(name):
    arguments = inspect.signature(SCHEDULES.component(name).__call__).parameters
    assert list(arguments) == ["self", "t", "context"]
    component = SCHEDULES.component(name)
    assert component.has_interior and not component.endpoints and component.inverse is None


def test_increasing_at_every_pixel(name, scale, x64):
    gamma = gamma_fn(name, scale)(times(401))
    assert gamma.shape == (401, B, *SHAPE)
    # A square with a double root rises by a^2 h^3 / 12 over a step h at least: 1e-9, rounding is 1e-15.
    assert np.all(np.diff(gamma, axis=0) > 0)


def test_float32_slopes_are_not_negative(name, scale):
    """Also where q^2 touches 0: samplers take its root."""
    at = jax.jit(lambda t: schedules.at(gamma_fn(name, scale), t))(times(1001) * jnp.ones((1, B, 1, 1, 1)))
    assert np.all(np.isfinite(at.dgamma_dt)) and np.all(at.dgamma_dt >= 0.0)
    # gamma of up to 13 is rounded, more than once.
    assert np.diff(at.gamma, axis=0).min() > -6 * 13.3 * EPS32


def test_the_ends_are_shared(name, scale):
    gamma = gamma_fn(name, scale)(jnp.array([0.0, 1.0])[:, None, None, None, None])
    np.testing.assert_array_equal(gamma[0], np.float32(ENDS["gamma_min"]))
    # Numerator and denominator may be fused in other ways: some ulp of their quotient, times the span.
    np.testing.assert_allclose(gamma[1], ENDS["gamma_max"], atol=4 * SPAN * EPS32)


def test_derivative_is_the_finite_difference(name, scale, x64):
    gamma = gamma_fn(name, scale)
    t = jnp.linspace(0.01, 0.99, 23)[:, None, None, None, None] * jnp.ones((1, B, 1, 1, 1))
    at = schedules.at(gamma, t)
    assert at.gamma.dtype == at.dgamma_dt.dtype == jnp.float64
    step = 1e-5
    difference = (gamma(t + step) - gamma(t - step)) / (2 * step)
    # Central difference: step^2 times the third derivative, below 1e5, and |gamma| 1e-16 / step.
    np.testing.assert_allclose(at.dgamma_dt, difference, rtol=1e-6, atol=2e-5)
    np.testing.assert_allclose(at.gamma, gamma(t), rtol=1e-14, atol=1e-14)


def test_derivatives_in_the_parameters_are_finite_differences(name, x64):
    """Of gamma and of its slope, which both are in the loss."""
    schedule, params, known = build(name), parameters(name, 0.5), context()
    t = jnp.linspace(0.1, 0.9, B)[:, None, None, None]
    rng = np.random.default_rng(5)
    weights = [jnp.asarray(rng.normal(size=(B, *SHAPE))) for _ in range(2)]
    direction = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), params)

    @jax.jit
    def loss(params):
        at = schedules.at(lambda t: schedule.apply({"params": params}, t, known), t)
        return sum(jnp.sum(w * a) for w, a in zip(weights, at, strict=True))

    def moved(step):
        return loss(jax.tree.map(lambda a, d: a + step * d, params, direction))

    step = 1e-5
    slope = sum(
        jnp.vdot(a, d)
        for a, d in zip(jax.tree.leaves(jax.grad(loss)(params)), jax.tree.leaves(direction), strict=True)
    )
    # Central difference: step^2 times a third derivative, in proportion some hundreds.
    np.testing.assert_allclose(slope, (moved(step) - moved(-step)) / (2 * step), rtol=1e-6)


def test_pixels_differ_and_depend_on_the_latent(name, scale):
    t = jnp.full((1, 1, 1, 1), 0.4)
    one, other = (gamma_fn(name, scale, latents=seed)(t) for seed in (0, 1))
    # Some of 48 differences may be small by chance, but not as small as rounding.
    difference = np.abs(one - other)
    assert np.all(difference > 16 * 13.3 * EPS32) and np.median(difference) > 0.01 * SPAN
    # The standard deviation over the pixels and channels of an image.
    assert np.all(np.std(np.asarray(one), axis=(1, 2, 3)) > 0.01 * SPAN * (0.2 + scale))


def test_images_of_a_batch_are_apart(name):
    schedule, params, known = build(name), parameters(name, 1.0), context()
    t = jnp.linspace(0.1, 0.9, B)[:, None, None, None]
    whole = apply(schedule, params, t, known)
    for i in range(B):
        one = apply(schedule, params, t[i : i + 1], Context(latent=known.latent[i : i + 1]))
        # A matrix product of one row may be summed in another order: some ulp of |gamma| up to 13.3.
        np.testing.assert_allclose(one[0], whole[i], atol=16 * 13.3 * EPS32)


def test_conditioning_is_not_looked_at(name):
    """An augmented image has the schedule of its latent."""
    schedule, params, known = build(name), parameters(name, 1.0), context()
    t = jnp.full((B, 1, 1, 1), 0.4)
    other = known._replace(conditioning=Conditioning(augmented=jnp.ones(B)))
    np.testing.assert_array_equal(apply(schedule, params, t, known), apply(schedule, params, t, other))


def test_any_leading_shape(name):
    """Times [2, 1, 1, 1, 1], as the ends of a model have, [b, 1, 1, 1], and a scalar."""
    schedule, params, known = build(name), parameters(name, 1.0), context()
    t = jnp.array([0.2, 0.7])[:, None, None, None, None]
    both = apply(schedule, params, t, known)
    assert both.shape == (2, B, *SHAPE)
    for i in range(2):
        for shape in ((B, 1, 1, 1), (1, 1, 1, 1), ()):
            one = apply(schedule, params, jnp.full(shape, t[i, 0, 0, 0, 0]), known)
            assert one.shape == (B, *SHAPE) and one.dtype == jnp.float32
            # The same operations, which may be fused in other ways.
            np.testing.assert_allclose(one, both[i], atol=8 * 13.3 * EPS32)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 1), (32, 32, 3)])
def test_any_image_shape_and_width(name, shape):
    schedule = build(name, shape, hidden=6)
    params = jax.eval_shape(schedule.init, jax.random.key(0), jnp.zeros((B, 1, 1, 1)), context())["params"]
    gamma = jax.eval_shape(
        lambda p: schedule.apply({"params": p}, jnp.zeros((B, 1, 1, 1)), context()), params
    )
    assert gamma.shape == (B, *shape)
    size = int(np.prod(shape))
    assert params["hidden1"]["kernel"].shape == (M, 6) and params["hidden2"]["kernel"].shape == (6, 6)
    outputs = {n: p["kernel"].shape for n, p in params.items() if not n.startswith("hidden")}
    assert set(outputs.values()) == {(6, size)}
    assert len(outputs) == {"polynomial": 3, "pixel_monotone": 9}[name]


def test_gradients_are_finite_and_reach_every_layer(name):
    schedule, known = build(name), context()
    t = jnp.full((B, 1, 1, 1), 0.4)

    @jax.jit
    def gradients(params, latent):
        def loss(params, latent):
            weights = jnp.arange(1.0, 1.0 + B * np.prod(SHAPE)).reshape(B, *SHAPE)
            return jnp.sum(weights * schedule.apply({"params": params}, t, known._replace(latent=latent)))

        return jax.grad(loss, argnums=(0, 1))(params, latent)

    for leaf in jax.tree.leaves(gradients(parameters(name, 0.1), known.latent)):
        assert np.all(np.isfinite(leaf)) and np.any(leaf != 0.0)


def numbers(params, latent):
    """What the dense layers give, by name, [B, *SHAPE] float64."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def dense(name, h):
        return h @ params[name]["kernel"] + params[name]["bias"]

    h = np.asarray(latent, np.float64)
    for layer in ("hidden1", "hidden2"):
        h = dense(layer, h)
        h = h / (1.0 + np.exp(-h))
    return {n: dense(n, h).reshape(B, *SHAPE) for n in params if not n.startswith("hidden")}


def test_the_polynomial_is_the_integral_of_a_square(scale, x64):
    """Against Simpson's rule, and against the paper's coefficients."""
    params, known = parameters("polynomial", scale), context()
    value = numbers(params, known.latent)
    a, b, d = value["a"], value["b"], 1e-3 + np.logaddexp(value["d"], 0.0)
    s = np.linspace(0.0, 1.0, 2001)[:, None, None, None, None]
    square = (a * s**2 + b * s + d) ** 2
    # Simpson's rule on every pair of intervals of 1/2000; its error is h^4 / 180 of a fourth derivative,
    # 24 a^2, below 1e-10.
    pairs = (square[:-2:2] + 4.0 * square[1:-1:2] + square[2::2]) / (3.0 * 2000)
    integral = np.cumsum(pairs, axis=0)
    t = s[2::2]
    expected = ENDS["gamma_min"] + SPAN * integral / integral[-1]
    gamma = gamma_fn("polynomial", scale)
    np.testing.assert_allclose(gamma(jnp.asarray(t)), expected, atol=1e-8)
    closed = a**2 * t**5 / 5 + a * b * t**4 / 2 + (b**2 + 2 * a * d) * t**3 / 3 + b * d * t**2 + d**2 * t
    # Terms of the closed form cancel, of the sum of squares they do not: some hundred ulp of float64.
    np.testing.assert_allclose(
        gamma(jnp.asarray(t)), ENDS["gamma_min"] + SPAN * closed / closed[-1], atol=1e-11
    )
    assert np.any(np.min(square, axis=0) < 1e-4), "some pixels must have a time at which gamma rests"


def test_the_monotone_schedule_is_a_sum_of_sigmoids(scale, x64):
    params, known = parameters("pixel_monotone", scale), context()
    value = numbers(params, known.latent)
    s = np.linspace(0.0, 1.0, 11)[:, None, None, None, None]

    def g(t):
        total = t
        for j in range(3):
            slope = 1.0 + 10.0 * np.logaddexp(value[f"slope{j}"], 0.0)
            at = slope * (t - (j + 0.5) / 3) + value[f"place{j}"]
            total = total + np.logaddexp(value[f"height{j}"], 0.0) / (1.0 + np.exp(-at))
        return total

    expected = ENDS["gamma_min"] + SPAN * (g(s) - g(0.0)) / (g(1.0) - g(0.0))
    np.testing.assert_allclose(gamma_fn("pixel_monotone", scale)(jnp.asarray(s)), expected, atol=1e-11)


def test_d_is_not_zero(x64):
    """However negative the network's number is, P(1) is at least 1e-6: no 0 / 0 where a and b vanish too."""
    schedule, known = build("polynomial"), context()
    params = jax.tree.map(jnp.zeros_like, parameters("polynomial", 0.0))
    params["d"]["bias"] = params["d"]["bias"] - 1e3
    t = jnp.linspace(0.0, 1.0, 5)[:, None, None, None, None]
    gamma = apply(schedule, params, t, known)
    # A constant q: a straight line.
    np.testing.assert_allclose(gamma, np.broadcast_to(ENDS["gamma_min"] + SPAN * t, gamma.shape), rtol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_number_of_steps(num_steps):
    schedule = build("pixel_monotone", num_steps=num_steps)
    params = jax.eval_shape(schedule.init, jax.random.key(0), jnp.zeros((B, 1, 1, 1)), context())["params"]
    assert len(params) == 2 + 3 * num_steps


def test_a_step_of_almost_nothing_has_no_noise():
    """Where gamma rests, rounding may turn a step about: samples must not become NaN."""
    path = PATHS.build(PATHS.spec("variance_preserving"))
    gamma = jnp.array([-2.0, -2.0, 1.0]).reshape(3, 1, 1, 1)
    turned = jnp.array([-2.0 + 5e-7, -2.0, 0.5]).reshape(3, 1, 1, 1)

    at_t, at_s = (coefficients(path, g, jnp.ones_like(g)) for g in (gamma, turned))
    z, noise = jnp.full((3, 2, 2, 1), 0.3), jnp.ones((3, 2, 2, 1))
    out = Ancestral().step(predicted(jnp.zeros_like(z), z, at_t), z, noise, step(path, at_s))
    assert np.all(np.isfinite(out))
    # alpha of the two gammas differs by 1e-7.
    np.testing.assert_allclose(out[:2], 0.3, atol=1e-6)
    assert np.all(np.abs(out[2] - 0.3) > 0.1)


def test_without_a_latent_there_is_no_schedule(name):
    with pytest.raises(ValueError, match="a schedule of every pixel needs a latent"):
        jax.eval_shape(build(name).init, jax.random.key(0), jnp.zeros((B, 1, 1, 1)), Context())


def test_a_model_has_the_ends_of_its_schedule(name):
    c = tiny.config().unlock()
    c.schedule, c.latent = SCHEDULES.spec(name, hidden=4, **ENDS), LATENTS.spec("k_subset", size=4, k=2)
    model = tiny.model(c)
    assert model.per_pixel and model.has_bound
    np.testing.assert_allclose(model.process.ends({}), [ENDS["gamma_min"], ENDS["gamma_max"]], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pixel_monotone", {"num_steps": 0}, "num_steps is 0: give 1 or more"),
        ("pixel_monotone", {"hidden": 0}, "hidden is 0: give 1 or more"),
        ("polynomial", {"hidden": 0}, "hidden is 0: give 1 or more"),
        ("polynomial", {"hidden": 1.5}, "option hidden is 1.5, not an int"),
    ],
)
def test_refused_options(name, options, message):
    with pytest.raises(UserError, match=message) as error:
        build(name, **options)
    assert "\n" not in str(error.value)


def test_unknown_option():
    with pytest.raises(UserError, match="did you mean 'hidden'") as error:
        SCHEDULES.spec("polynomial", hiden=8)
    assert "\n" not in str(error.value)
