"""Data maps: round trips, slopes, cells, and the decoder and the dequantizations under each of them."""

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.core.errors import UserError
from jvdm.diffusion import losses, transforms
from jvdm.diffusion.dequantization import DEQUANTIZATIONS
from jvdm.diffusion.gaussian import coefficients
from jvdm.diffusion.paths import PATHS, VariancePreserving
from jvdm.diffusion.transforms import DATA_MAPS

EPS32 = np.finfo(np.float32).eps
DISCRETE = [name for name in DATA_MAPS.names() if DATA_MAPS.component(name).discrete]
A = 0.05


def build(name, **options):
    return DATA_MAPS.build(DATA_MAPS.spec(name, **options))


def exact(name, u):
    """y, and ln dy/du, in float64."""
    u = np.asarray(u, np.float64)
    if name == "scaling":
        return 2 * u - 1, np.full(u.shape, np.log(2))
    s = A + (1 - 2 * A) * u
    return np.log(s / (1 - s)), np.log((1 - 2 * A) / (s * (1 - s)))


@pytest.fixture(params=DISCRETE)
def name(request):
    return request.param


@pytest.fixture
def num_levels():
    return 256


def levels_of(num_levels):
    return jnp.arange(num_levels, dtype=jnp.uint8)


def test_closed_form(name):
    u = np.linspace(0, 1, 1001).astype(np.float32)
    value = build(name)(jnp.asarray(u))
    y, log_slope = exact(name, u)
    # s is rounded to half an ulp of 1, which the logarithm of 1 - s >= 0.05 feels 20 times.
    np.testing.assert_allclose(value.y, y, atol=20 * EPS32)
    np.testing.assert_allclose(value.log_slope, log_slope, atol=20 * EPS32)
    assert value.y.dtype == value.log_slope.dtype == jnp.float32


@pytest.mark.parametrize("every", DATA_MAPS.names())
def test_round_trip(every, x64):
    data_map, u = build(every), jnp.linspace(0.0, 1.0, 1001)
    y, log_slope = data_map(u)
    np.testing.assert_allclose(data_map.inverse(y), u, atol=1e-14)
    slope = jax.vmap(jax.grad(lambda u: data_map(u).y))(u)
    np.testing.assert_allclose(log_slope, np.log(slope), atol=1e-13)
    assert np.all(np.diff(y) > 0)
    if data_map.discrete:
        np.testing.assert_allclose(data_map.range, y[jnp.array([0, -1])], rtol=1e-14)
    else:
        assert data_map.range == (-math.inf, math.inf)


def test_round_trip_in_float32(name):
    data_map, u = build(name), jnp.linspace(0.0, 1.0, 1001)
    # Half an ulp of y, up to 3, over a slope of at least 2; a sigmoid is good to an ulp of 1.
    np.testing.assert_allclose(data_map.inverse(data_map(u).y), u, atol=3 * EPS32)


def test_identity_takes_the_data_as_they_are(key):
    x = jax.random.normal(key, (3, 2, 2, 1))
    np.testing.assert_array_equal(transforms.encode(x, 0, build("identity")), x)


def test_encoded_levels_are_the_centres(name, num_levels):
    levels = levels_of(num_levels)
    f = transforms.encode(levels, num_levels, build(name))
    expected, _ = exact(name, (np.arange(num_levels) + 0.5) / num_levels)
    np.testing.assert_allclose(f, expected, atol=20 * EPS32)
    assert f.dtype == jnp.float32
    difference = build(name).difference(levels[:, None], jnp.arange(float(num_levels))[None], num_levels)
    np.testing.assert_allclose(difference, expected[:, None] - expected, atol=40 * EPS32)
    np.testing.assert_array_equal(jnp.diagonal(difference), 0.0)


# Cells ----------------------------------------------------------------------------------------------------


def test_a_dequantized_level_lies_in_its_cell(name, num_levels):
    """For every level; and its place in the cell is u."""
    data_map, levels = build(name), levels_of(num_levels)[:, None]
    # Not so near the edge that rounding, 256 ulps of 1, takes it over.
    u = jnp.linspace(1e-4, 1.0 - 1e-4, 33)[None]
    y, _ = transforms.dequantize(levels, u, num_levels, data_map)
    assert y.shape == (num_levels, 33)
    np.testing.assert_array_equal(
        transforms.level_of(y, num_levels, data_map), np.broadcast_to(levels, y.shape)
    )
    np.testing.assert_allclose(
        data_map.inverse(y) * num_levels - levels.astype(jnp.float32), u.repeat(num_levels, 0), atol=1e-4
    )
    centre, _ = transforms.dequantize(levels, jnp.full((1, 1), 0.5), num_levels, data_map)
    # Of x + 1/2 and of x + u, the same numbers.
    np.testing.assert_array_equal(centre[:, 0], transforms.encode(levels[:, 0], num_levels, data_map))


def test_density_of_a_dequantized_level(name, num_levels, x64):
    """It integrates to one over every cell."""
    data_map, levels = build(name), jnp.arange(num_levels)[:, None]
    u = jnp.linspace(0.0, 1.0, 201)[None]
    y, log_q = transforms.dequantize(levels, u, num_levels, data_map)
    # Trapezium rule of a density that varies by the factor 5 at most (two levels of logit), in 200 steps.
    total = np.trapezoid(np.exp(log_q), y, axis=-1)
    np.testing.assert_allclose(total, 1.0, atol=1e-3)
    widths = np.diff(exact(name, np.arange(num_levels + 1) / num_levels)[0])
    if name == "scaling":
        np.testing.assert_allclose(np.exp(-log_q), np.broadcast_to(widths[:, None], log_q.shape), rtol=1e-12)
    assert np.all(np.exp(-log_q).max(axis=-1) >= widths * (1 - 1e-6))
    assert np.all(np.exp(-log_q).min(axis=-1) <= widths * (1 + 1e-6))


def test_every_level_is_the_nearest_to_its_centre(name, num_levels):
    data_map, levels = build(name), levels_of(num_levels)
    f = transforms.encode(levels, num_levels, data_map)
    for function in (transforms.nearest_level, transforms.level_of):
        value = function(f, num_levels, data_map)
        assert value.dtype == jnp.uint8
        np.testing.assert_array_equal(value, levels)
        # Beyond the ends, the ends.
        ends = function(jnp.array([-1e3, -5.0, 5.0, 1e3]), num_levels, data_map)
        np.testing.assert_array_equal(ends, [0, 0, num_levels - 1, num_levels - 1])


def test_nearest_level_about_the_ties(name, num_levels):
    """A hair to either side of the middle of two centres, one or the other; in the middle, either."""
    data_map, levels = build(name), np.arange(num_levels - 1)
    f = transforms.encode(levels_of(num_levels), num_levels, data_map)
    middle, hair = 0.5 * (f[1:] + f[:-1]), 1e-3 * jnp.diff(f)
    nearest = functools.partial(transforms.nearest_level, num_levels=num_levels, data_map=data_map)
    np.testing.assert_array_equal(nearest(middle - hair), levels)
    np.testing.assert_array_equal(nearest(middle + hair), levels + 1)
    tied = np.asarray(nearest(middle), int)
    assert np.all((tied == levels) | (tied == levels + 1))


def test_the_edge_of_a_logit_cell_is_not_the_middle():
    """Outer cells are longer on their outer side, so that `level_of` and `nearest_level` differ."""
    data_map = build("logit")
    edge = data_map(jnp.array([1.0, 255.0]) / 256).y
    inside = edge + jnp.array([-1e-4, 1e-4])
    np.testing.assert_array_equal(transforms.level_of(inside, 256, data_map), [0, 255])
    centres = transforms.encode(jnp.array([0, 1, 254, 255]), 256, data_map)
    assert edge[0] > centres[:2].mean() and edge[1] < centres[2:].mean()


# The decoder ----------------------------------------------------------------------------------------------

reconstruction = jax.jit(losses.reconstruction, static_argnums=(3, 4, 5))
decoder_logits = jax.jit(losses.decoder_logits, static_argnums=(3, 4))


@pytest.mark.parametrize(("levels_there", "gamma_0"), [(17, 1.0), (256, -13.3)])
def test_decoder_is_a_distribution_over_levels(name, levels_there, gamma_0):
    """Of reconstruction by every level in turn, and the one that the decoder's logits say."""
    data_map = build(name)
    alpha, _ = PATHS.build(PATHS.spec("variance_preserving")).alpha_sigma(jnp.float32(gamma_0))
    low, high = data_map.range
    z_0 = alpha * jnp.asarray(np.random.default_rng(0).uniform(low, high, (1, 40, 1, 1)), jnp.float32)
    logits = decoder_logits(z_0, alpha, jnp.float32(gamma_0), levels_there, data_map)
    log_p = np.asarray(jax.nn.log_softmax(logits))[0, :, 0, 0]  # [40, K]

    levels = jnp.broadcast_to(levels_of(levels_there)[:, None], (levels_there, 40)).reshape(-1, 1, 1, 1)
    f = transforms.encode(levels, levels_there, data_map)
    eps_0 = (jnp.tile(z_0.ravel(), levels_there).reshape(f.shape) / alpha - f) * math.exp(-gamma_0 / 2)
    nats = np.asarray(
        reconstruction(levels, eps_0, jnp.float32(gamma_0), levels_there, None, data_map), np.float64
    ).reshape(levels_there, 40)
    # Distances, in deviations, of numbers up to 3 rounded to an ulp, over a deviation of 1.3e-3 and times the
    # distance itself, up to 10 where p counts: 2e-3 of the exponent at -13.3.
    rounding = 4 * EPS32 * math.exp(-gamma_0 / 2) * 10
    np.testing.assert_allclose(np.exp(-nats).sum(0), 1.0, atol=1e-5 + rounding)
    likely = log_p.T > -20
    np.testing.assert_allclose(-nats[likely], log_p.T[likely], atol=1e-4 + 4 * rounding)
    assert likely.sum() >= 40
    nearest = transforms.nearest_level(z_0 / alpha, levels_there, data_map).ravel()
    # The nearest is the likeliest, but for ties of rounding.
    assert np.all(log_p[np.arange(40), nearest] > log_p.max(-1) - 1e-2)


def test_logit_decoder_by_hand(x64):
    """The softmax of MATH.md section 1, with logit centres, in float64."""
    rng, gamma_0, k = np.random.default_rng(0), -4.0, 17
    levels, eps_0 = rng.integers(0, k, (2, 3, 1, 1)), rng.normal(size=(2, 3, 1, 1))
    value = reconstruction(
        jnp.asarray(levels), jnp.asarray(eps_0), jnp.float64(gamma_0), k, None, build("logit")
    )
    centres = exact("logit", (np.arange(k) + 0.5) / k)[0]
    x = centres[levels] + math.exp(gamma_0 / 2) * eps_0
    logits = -0.5 * math.exp(-gamma_0) * (x[..., None] - centres) ** 2
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_p, levels[..., None], -1)[..., 0].sum(axis=(1, 2, 3))
    # Centres are formed in float32.
    np.testing.assert_allclose(value, expected, rtol=1e-5)


# Dequantization under the logit map -----------------------------------------------------------------------

LOGIT = DATA_MAPS.build(DATA_MAPS.spec("logit"))


def start(gamma, dtype=jnp.float64):
    gamma = jnp.full((1, 1, 1, 1), gamma, dtype)
    return coefficients(PATHS.build(PATHS.spec("variance_preserving")), gamma, jnp.ones_like(gamma))


@pytest.mark.parametrize("level", [0, 8, 16])
@pytest.mark.parametrize(
    "dequantization", [n for n in DEQUANTIZATIONS.names() if DEQUANTIZATIONS.component(n).discrete]
)
def test_density_over_a_logit_cell(dequantization, level, x64):
    """One over all of z, of which all but the variational one lie in the cell."""
    component, at, k, n = DEQUANTIZATIONS.build(DEQUANTIZATIONS.spec(dequantization)), start(-5.0), 17, 4001
    levels = jnp.full((n, 1, 1, 1), level, jnp.uint8)
    low, high = {"variational": (-9.0, 9.0)}.get(dequantization, (0.0, 1.0))
    if dequantization == "truncated_normal":
        low, high = (float(a[0, 0, 0, 0]) for a in component.bounds(levels, at, k, LOGIT))
    e = jnp.linspace(low, high, n)[:, None, None, None]
    z, log_q, _ = component(levels, e, at, k, LOGIT)
    # As in tests/test_dequantization.py; uniform, level + u is rounded in float32: 1e-6 of a step, 1 / 4000.
    np.testing.assert_allclose(np.trapezoid(np.exp(log_q), z.ravel()), 1.0, atol=5e-6)
    if dequantization != "variational":
        edges = exact("logit", np.array([level, level + 1]) / k)[0]
        alpha = 1.0 if dequantization == "uniform_released" else float(at.alpha[0, 0, 0, 0])
        np.testing.assert_allclose(z.ravel()[jnp.array([0, -1])] / alpha, edges, atol=1e-6)


@pytest.mark.parametrize("component", ["truncated_normal", "variational"])
@pytest.mark.parametrize("level", [0, 8, 200])
def test_entropy_over_a_logit_cell(component, level, x64):
    """The analytic one is the integral of -q log q."""
    spec, at, k = DEQUANTIZATIONS.spec, start(-8.0), 256
    sampled, analytic = (
        DEQUANTIZATIONS.build(spec(component, analytic_entropy=analytic)) for analytic in (False, True)
    )
    levels = jnp.full((4001, 1, 1, 1), level, jnp.uint8)
    low, high = sampled.bounds(levels, at, k, LOGIT) if component == "truncated_normal" else (-9.0, 9.0)
    e = jnp.asarray(low + (high - low) * np.linspace(0, 1, 4001)[:, None, None, None])
    z, log_q, _ = sampled(levels, e, at, k, LOGIT)
    expected = np.trapezoid(-np.exp(log_q) * log_q, z.ravel())
    np.testing.assert_allclose(-analytic(levels, e, at, k, LOGIT).log_q, expected, atol=1e-5)


def test_truncated_normal_never_leaves_a_logit_cell(key):
    """Of any level, in float32, where most of the normal is cut off and where little is."""
    component = DEQUANTIZATIONS.build(DEQUANTIZATIONS.spec("truncated_normal"))
    levels = jnp.broadcast_to(levels_of(256)[:, None, None], (64, 256, 1, 1))

    @jax.jit
    def draw(keys, at):
        one = jax.tree.map(lambda a: a[0], at)
        e = jax.vmap(lambda key, x: component.draw(key, x, one, 256, LOGIT))(keys, levels)
        return component(levels, e, at, 256, LOGIT).z

    for gamma in (-13.3, -8.0):
        at = start(gamma, jnp.float32)
        z = draw(jax.random.split(key, 64), at)
        edges = exact("logit", np.arange(257) / 256)[0]
        x = np.asarray(z / at.alpha, np.float64)[..., 0, 0]
        # Rounded to an ulp of 3, of cells of 0.014 and more.
        assert np.all((x > edges[:-1] - 4 * EPS32) & (x < edges[1:] + 4 * EPS32))
        place = (x - edges[:-1]) / np.diff(edges)
        # Uniform but for the normal's fall towards the edges: within 5 standard errors where it is broad.
        assert abs(place.mean() - 0.5) < (0.02 if gamma == -13.3 else 5 * 0.29 / math.sqrt(place.size))


@pytest.mark.parametrize("a", [0.0, 0.5, -0.1])
def test_a_logit_that_is_none(a):
    with pytest.raises(UserError, match="data map 'logit': a is") as error:
        build("logit", a=a)
    assert "\n" not in str(error.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wide:
    """y = 3 u - 1: another map with cells of equal width."""

    equal_cells: bool = True
    discrete: ClassVar[bool] = True
    range: ClassVar[tuple[float, float]] = (-1.0, 2.0)

    def __call__(self, u):
        return transforms.Mapped(3.0 * u - 1.0, jnp.full_like(u, math.log(3.0)))

    def inverse(self, y):
        return (y + 1.0) / 3.0

    def difference(self, levels, others, num_levels):
        return 3.0 / num_levels * (levels.astype(jnp.float32) - others)


@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_closed_forms_of_equal_cells_are_those_of_any_cells(num_levels):
    """Of a map that is not jvdm's own."""
    short, long = Wide(), Wide(equal_cells=False)
    levels = jnp.arange(num_levels, dtype=jnp.uint8)
    # Nothing within rounding of an edge.
    y = 3.0 * (jnp.arange(40.0 * num_levels) + 0.5) / (40 * num_levels) - 1.0
    nearest = transforms.nearest_level(y, num_levels, short)
    np.testing.assert_array_equal(nearest, transforms.nearest_level(y, num_levels, long))
    np.testing.assert_array_equal(nearest, transforms.level_of(y, num_levels, short))
    one = jnp.ones(())
    at = coefficients(VariancePreserving(), jnp.float32(-1.5), one)
    for a, b in zip(
        *(
            DEQUANTIZATIONS.build(DEQUANTIZATIONS.spec("truncated_normal")).bounds(levels, at, num_levels, m)
            for m in (short, long)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3)
