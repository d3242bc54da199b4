"""Whatever a random number becomes is right for the least and for the greatest number that there can be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import constant_bits, tiny, tiny_latents

from jvdm.core import random
from jvdm.core.records import Coefficients
from jvdm.diffusion import samplers, subsets
from jvdm.diffusion.dequantization import DEQUANTIZATIONS
from jvdm.diffusion.divergence import TRACES
from jvdm.diffusion.gaussian import coefficients
from jvdm.diffusion.latents import LATENTS
from jvdm.diffusion.paths import PATHS
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.diffusion.times import TIME_DENSITIES, TIME_SAMPLERS, jittered, stratify
from jvdm.diffusion.transforms import DATA_MAPS, dequantize, level_of
from jvdm.evaluation import passes
from jvdm.evaluation.vlb import VLB, for_evaluation

LEAST, GREATEST = 2.0**-24, 1.0 - 2.0**-24
ENDS = np.array([LEAST, GREATEST], np.float32)


@pytest.fixture(params=constant_bits.ENDS)
def end(request):
    """A key whose numbers are all the least, or all the greatest."""
    return constant_bits.key(request.param)


@pytest.mark.parametrize("name", TIME_SAMPLERS.names())
@pytest.mark.parametrize("n", [1, 3, 64, 1000])
def test_time_samplers(end, name, n):
    u = np.asarray(TIME_SAMPLERS.build(TIME_SAMPLERS.spec(name))(end, n))
    assert u.min() >= LEAST and u.max() <= GREATEST


@pytest.mark.parametrize("n", [1, 2, 3, 64, 1000, 16_384])
def test_rounding_does_not_lead_to_an_end(end, n):
    """(63 + u) / 64 was 1 for one u in 4 million, a time beyond the last step."""
    for u in (jittered(end, n), stratify(jnp.asarray(ENDS), n), stratify(jnp.float32(0.3), n)):
        assert u.min() >= LEAST and u.max() <= GREATEST


@pytest.mark.parametrize("timesteps", [1, 2, 3, 10, 1000, 1025, 4097, 1_000_003])
def test_discrete_times_are_ends_of_steps(timesteps):
    c = tiny.light_config().unlock()
    c.model.timesteps = timesteps
    t, _ = tiny.model(c).times(jnp.asarray(ENDS))
    np.testing.assert_array_equal(t, np.float32([1.0 / timesteps, 1.0]))


CASES = [
    ("uniform", "fixed_linear", "variance_preserving"),
    ("importance", "fixed_linear", "variance_preserving"),
    ("importance", "fixed_linear", "straight"),
    ("debiased", "fixed_linear", "straight"),
    *[("debiased", "linear_beta", path) for path in PATHS.names()],
    ("debiased_released", "linear_beta", "variance_preserving"),
]


@pytest.mark.parametrize(("name", "schedule", "path"), CASES)
@pytest.mark.parametrize(("low", "high"), [(-13.3, 5.0), (-20.0, 20.0), (-1.0, 10.0)])
def test_time_densities(name, schedule, path, low, high):
    path = PATHS.build(PATHS.spec(path))
    options = {"gamma_min": low, "gamma_max": high} if schedule == "fixed_linear" else {}
    schedule = SCHEDULES.build(SCHEDULES.spec(schedule, **options), noise_path=path)
    density = TIME_DENSITIES.build(TIME_DENSITIES.spec(name))
    t, weight = density(jnp.asarray(ENDS), schedule=schedule, path=path)
    assert 0.0 <= t[0] < t[1] <= 1.0
    assert np.isfinite(weight).all() and np.all(np.asarray(weight) > 0.0)
    assert np.isfinite(schedule(t)).all()


def at(gamma):
    path = PATHS.build(PATHS.spec("variance_preserving"))
    return coefficients(path, jnp.float32(gamma), jnp.ones(()))


@pytest.mark.parametrize("name", ["truncated_normal", "variational", "uniform"])
@pytest.mark.parametrize("data_map", DATA_MAPS.names())
@pytest.mark.parametrize("num_levels", [2, 4, 17, 256])
@pytest.mark.parametrize("gamma", [-13.3, -7.0, -2.0])
def test_dequantization(end, name, data_map, num_levels, gamma):
    """z stays in the closed cell of its level, and its density is that of a draw, not that of an end."""
    data_map = DATA_MAPS.build(DATA_MAPS.spec(data_map))
    if not data_map.discrete:
        return
    how = DEQUANTIZATIONS.build(DEQUANTIZATIONS.spec(name))
    levels = jnp.arange(num_levels, dtype=jnp.uint8)
    where: Coefficients = at(gamma)
    e = how.draw(end, levels, where, num_levels, data_map)
    out = how(levels[None], e[None], where, num_levels, data_map)
    assert np.isfinite(out.z).all() and np.isfinite(out.log_q).all() and np.isfinite(out.log_decoder).all()
    # Numbers of 32 bits end at 6.34 deviations, JAX's of 23 bits at 5.42.
    assert name == "uniform" or np.abs(e).max() < 6.5
    if name != "variational":
        alpha = np.float64(where.alpha)
        y = np.asarray(out.z[0], np.float64) / alpha
        edges = np.asarray(data_map(jnp.arange(num_levels + 1.0) / num_levels).y, np.float64)
        # Rounding of z: two units in the last place.
        slack = 2.0 * np.finfo(np.float32).eps * np.abs(y).max() / alpha
        assert (y >= edges[:-1] - slack).all() and (y <= edges[1:] + slack).all()


def test_a_draw_at_the_end_costs_what_it_should():
    """Two levels at gamma = -13.3: an image with one such draw was reported with -104 bits/dim."""
    how = DEQUANTIZATIONS.build(DEQUANTIZATIONS.spec("truncated_normal"))
    levels, where = jnp.zeros((1, 512), jnp.uint8), at(-13.3)
    low, high = how.bounds(levels, where, 2, DATA_MAPS.build(DATA_MAPS.spec("scaling")))
    words = jnp.full(levels.shape, 2**31, jnp.uint32).at[0, 0].set(0)
    one_at_the_end = random.truncated_quantile(words, low, high)
    none = random.truncated_quantile(words.at[0, 0].set(2**31), low, high)
    costs = [-float(how(levels, e, where, 2).log_q[0]) for e in (none, one_at_the_end)]
    # 6.34^2 / 2 nats of 512 dimensions.
    np.testing.assert_allclose(costs[1] - costs[0], 6.338**2 / 2, rtol=1e-3)


@pytest.mark.parametrize("num_levels", [2, 16, 256])
@pytest.mark.parametrize("data_map", ["scaling", "logit"])
def test_uniform_numbers_in_a_cell(num_levels, data_map):
    """The least number is in the cell of its level; the greatest may be rounded to the next cell's edge."""
    data_map = DATA_MAPS.build(DATA_MAPS.spec(data_map))
    levels = jnp.arange(num_levels, dtype=jnp.uint8)
    for u in ENDS:
        y, log_q = dequantize(levels, jnp.full(num_levels, u), num_levels, data_map)
        assert np.isfinite(y).all() and np.isfinite(log_q).all()
        found = np.asarray(level_of(y, num_levels, data_map), int)
        assert np.all(np.abs(found - np.arange(num_levels)) <= 1)


@pytest.mark.parametrize("name", [name for name in LATENTS.names() if name != "none"])
def test_latents(end, name):
    """Whatever is drawn of them, k ones or finite numbers come out, of the posterior and of the prior."""
    latent = LATENTS.build(LATENTS.spec(name))
    if getattr(latent, "noise", "gumbel") != "gumbel":
        latent = LATENTS.build(LATENTS.spec(name, noise="gumbel"))  # rejection never ends with equal words
    logits = jnp.linspace(-40.0, 40.0, latent.num_logits)[None]
    sample = latent.sample(logits, latent.draw(end)[None])
    assert np.isfinite(sample.value).all() and np.isfinite(sample.charge).all()
    prior = np.asarray(latent.prior(end))
    assert np.isfinite(prior).all()
    if name != "gaussian":
        k = getattr(latent, "k", 1)
        assert prior.sum() == k and np.asarray(sample.value).sum() == k


@pytest.mark.parametrize("u", ENDS)
@pytest.mark.parametrize("k", [1, 3, 6])
def test_subsets_have_k_elements(u, k):
    for theta in (jnp.zeros(7), jnp.linspace(-100.0, 100.0, 7), jnp.linspace(30.0, -90.0, 7)):
        assert float(subsets.sample(jnp.full(7, u), theta, k).sum()) == k


def test_probes_and_pixels(end):
    for trace in (TRACES.spec("hutchinson"), TRACES.spec("hutchinson", distribution="gaussian")):
        assert np.isfinite(TRACES.build(trace).draw(end, (4,))).all()
    where = at(-13.3)
    keys = jnp.stack([end, end])
    z_0 = jnp.broadcast_to(where.alpha * centres(), (2, 16))
    pixels = samplers.sampled_levels(keys, z_0, where.alpha, where.gamma, 16)
    np.testing.assert_array_equal(pixels, np.tile(np.arange(16), (2, 1)))


def centres():
    return (jnp.arange(16, dtype=jnp.float32) + 0.5) / 8.0 - 1.0


def test_the_bound_of_a_network(end):
    """All numbers at an end at once: finite, in continuous and in discrete time."""
    for timesteps in (0, 10):
        c = tiny.light_config().unlock()
        model = for_evaluation(tiny.model(c), timesteps)
        params = jax.tree.map(
            lambda a: jnp.full(a.shape, 0.01, a.dtype), jax.eval_shape(model.init, jax.random.key(0))
        )
        estimator = VLB(model, tiny.mesh(), batch_size=4, draws=3)
        rows = passes.run(estimator, params, tiny.images(4), end)
        assert all(np.isfinite(row).all() for row in rows.values())


def test_the_bound_of_a_latent(end):
    setting = tiny_latents.setting("k_subset")
    model, params = setting[0], setting[1]
    estimator = VLB(for_evaluation(model), tiny.mesh(), batch_size=4, draws=2)
    rows = passes.run(estimator, params, tiny.images(4), end)
    assert all(np.isfinite(row).all() for row in rows.values())
