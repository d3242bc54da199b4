"""A model with every latent: its context and terms, its gradients, training and evaluation as one."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from helpers.known_latents import Enumerated
from helpers.tiny_latents import NAMES, B, K, M, batch, config, draws_of, setting

from jvdm.core.errors import UserError
from jvdm.core.records import Batch, Conditioning, Context, LatentCost
from jvdm.diffusion.latents import LATENTS, categorical_kl
from jvdm.diffusion.per_pixel_schedules import SCHEDULES
from jvdm.diffusion.samplers import SAMPLERS
from jvdm.evaluation.sampling import Sampling
from jvdm.evaluation.vlb import for_evaluation
from jvdm.model import objectives
from jvdm.networks import NETWORKS
from jvdm.networks.encoders import ENCODERS
from jvdm.training.gradients import Bound


@functools.cache
def evaluated(name):
    """(model, context, terms) of the first images and draws."""
    model, params = setting(name)
    draws = draws_of(model)

    @jax.jit
    def both(params):
        known = model.encode_latent(params, batch(), draws.latent)
        return known, objectives.bound(model, params, draws, batch())

    return model, *both(params)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_parameters(name):
    model, params = setting(name)
    assert set(params) == {"network", "schedule", "encoder"}
    assert params["encoder"]["logits"]["kernel"].shape[1] == model.latent.num_logits
    assert params["schedule"]["hidden1"]["kernel"].shape[0] == M
    # The image, the sinusoids, the scalar and the latent.
    assert params["network"]["hidden_0"]["kernel"].shape[0] == 64 + 8 + 1 + M
    without = jax.eval_shape(tiny.model(tiny.config()).init, jax.random.key(0))
    assert set(without) == {"network", "schedule"}


def test_draws_are_reproducible_and_apart(name):
    model, _ = setting(name)
    draws, again = draws_of(model), draws_of(model)
    assert tiny.max_difference(draws, again) == 0.0
    assert draws.step is None
    # An example's numbers are its own.
    more = draws_of(model, b=2 * B)
    for field in ("eps", "eps_0", "latent", "other_latent"):
        np.testing.assert_array_equal(getattr(more, field)[:B], getattr(draws, field))
    latent, other = np.asarray(draws.latent).reshape(B, -1), np.asarray(draws.other_latent).reshape(B, -1)
    for i in range(B):
        assert np.any(latent[i] != other[i]) and np.any(latent[i] != latent[i - 1])
    # A latent changes none of the numbers that a model without one draws.
    plain = draws_of(tiny.model(tiny.config()))
    assert plain.latent is None and plain.other_latent is None
    for field in ("u", "eps", "eps_0", "probe", "u_data"):
        np.testing.assert_array_equal(getattr(plain, field), getattr(draws, field))


def test_terms(name):
    """The charge is a term, the total is their sum, and what training minimises."""
    _, (context, cost), terms = evaluated(name)
    np.testing.assert_array_equal(terms.latent, cost.charge)
    parts = terms.parts()
    assert list(parts) == ["reconstruction", "prior", "diffusion", "latent"]
    np.testing.assert_allclose(terms.total, sum(np.float64(part) for part in parts.values()), rtol=1e-6)
    np.testing.assert_array_equal(terms.objective, terms.total)
    assert list(terms.metrics()) == ["bpd", *parts]
    assert all(part.shape == (B,) and np.all(np.isfinite(part)) for part in parts.values())
    assert context.latent.shape == (B, M) and cost.surrogate is None


def test_the_context_is_the_encoders(name):
    """Its logits of the encoded images, sampled with the draws' noise."""
    model, (context, cost), _ = evaluated(name)
    _, params = setting(name)
    f = 2.0 * (np.float32(tiny.images(B)) + 0.5) / tiny.LEVELS - 1.0
    logits = jax.jit(model.encoder.apply)({"params": params["encoder"]}, f)
    sample = jax.jit(model.latent.sample)(logits, draws_of(model).latent)
    # Logits may be fused in other ways; samples are not at a threshold here.
    np.testing.assert_allclose(context.latent, sample.value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cost.charge, sample.charge, rtol=1e-4, atol=1e-6)
    if sample.log_ratio is None:
        assert cost.log_ratio is None
    else:
        np.testing.assert_allclose(cost.log_ratio, sample.log_ratio, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("schedule", ["polynomial", "pixel_monotone"])
def test_gamma_depends_on_the_image_through_the_latent_alone(schedule):
    model, params = setting("k_subset", schedule)
    draws = draws_of(model)

    @jax.jit
    def gammas(params, images, t):
        context, _ = model.encode_latent(params, Batch(images), draws.latent)
        bare = Context(latent=context.latent)
        return model.time_gamma(params, t, context), model.time_gamma(params, t, bare), context.latent

    t = jnp.full(B, 0.37)
    at, of_latent, _ = gammas(params, jnp.asarray(tiny.images(B)), t)
    assert at.gamma.shape == at.dgamma_dt.shape == (B, *tiny.SHAPE)
    np.testing.assert_array_equal(at.gamma, of_latent.gamma)
    np.testing.assert_array_equal(at.dgamma_dt, of_latent.dgamma_dt)
    seen = {}
    for seed in range(8):
        of_seed, _, c = gammas(params, jnp.asarray(tiny.images(B, seed)), t)
        for gamma, value in zip(np.asarray(of_seed.gamma), np.asarray(c), strict=True):
            seen.setdefault(tuple(value), []).append(gamma)
    # 32 images and 15 subsets: some are of one latent, and so of one gamma.
    assert len(seen) > 3 and max(map(len, seen.values())) > 1
    for alike in seen.values():
        # A row of a matrix product may be summed in another order.
        np.testing.assert_allclose(alike, np.broadcast_to(alike[0], np.shape(alike)), atol=1e-5)
    one, other = list(seen.values())[:2]
    assert np.abs(one[0] - other[0]).max() > 0.1


@pytest.mark.parametrize("schedule", ["polynomial", "fixed_linear"])
def test_the_bound_depends_on_the_latent(schedule):
    """Through the network, if the schedule does not look at it."""
    model, params = setting("k_subset", schedule)
    draws = draws_of(model)

    @jax.jit
    def diffusion(params, latent):
        context = Context(latent=latent)
        return objectives.bound(
            model, params, draws, batch(), known=(context, LatentCost(jnp.zeros(B)))
        ).diffusion

    latents = np.zeros((2, B, M), np.float32)
    latents[0, :, :K] = latents[1, :, -K:] = 1.0
    one, other = (np.asarray(diffusion(params, latent)) for latent in latents)
    assert np.all(np.abs(one - other) > 1e-3)


def test_a_schedule_of_the_image_has_scalar_gamma():
    model, params = setting("k_subset", "fixed_linear")
    assert not model.per_pixel
    assert model.time_gamma(params, jnp.full(B, 0.4), Context()).gamma.shape == (B, 1, 1, 1)


def test_context_at_evaluation(name):
    """As in training, but for a charge that is no bound: then the mode, at its price, whatever the noise."""
    model, (trained, trained_cost), _ = evaluated(name)
    _, params = setting(name)
    context_of = jax.jit(lambda noise: for_evaluation(model).encode_latent(params, batch(), noise))
    context, cost = context_of(draws_of(model).latent)
    if model.latent.is_bound:
        assert cost.surrogate is None
        # The same operations, which may be fused in other ways.
        np.testing.assert_allclose(context.latent, trained.latent, atol=1e-6)
        np.testing.assert_allclose(cost.charge, trained_cost.charge, rtol=1e-5)
        assert cost.log_ratio.shape == (B,)
        return
    np.testing.assert_allclose(cost.charge, math.log(math.comb(M, K)), rtol=1e-6)
    np.testing.assert_array_equal(cost.log_ratio, cost.charge)
    np.testing.assert_allclose(cost.surrogate, trained_cost.charge, rtol=1e-5)
    f = 2.0 * (np.float32(tiny.images(B)) + 0.5) / tiny.LEVELS - 1.0
    logits = jax.jit(model.encoder.apply)({"params": params["encoder"]}, f)
    expected = np.zeros((B, M))
    np.put_along_axis(expected, np.argsort(np.asarray(logits), axis=1)[:, -K:], 1.0, axis=1)
    np.testing.assert_array_equal(context.latent, expected)
    np.testing.assert_allclose(cost.surrogate, categorical_kl(logits), rtol=1e-4)
    other, _ = context_of(draws_of(model, seed=9).latent)
    np.testing.assert_array_equal(other.latent, context.latent)


def test_prior_context(name):
    """Where there is no image: reproducible, of each key its own, or a latent that is given."""
    model, _ = setting(name)
    keys = jax.random.split(jax.random.key(3), 8)
    draw = jax.jit(model.prior_context)
    context = draw(keys)
    assert context.latent.shape == (8, M)
    assert context.conditioning == Conditioning()
    np.testing.assert_array_equal(draw(keys[2:5]).latent, context.latent[2:5])
    assert len(np.unique(context.latent, axis=0)) > 2
    given = np.arange(8.0 * M, dtype=np.float32).reshape(8, M)
    np.testing.assert_array_equal(draw(keys, given).latent, given)
    if name != "gaussian":
        np.testing.assert_array_equal(context.latent.sum(axis=1), 1 if name == "gumbel" else K)
    assert tiny.model(tiny.config()).prior_context(keys).latent is None


def test_training_gradients_reach_every_part(name):
    model, params = setting(name)
    draws = draws_of(model)._replace(step=jnp.asarray(3))
    terms, gradient = jax.jit(lambda p: Bound().gradient(model)(p, draws, batch(), None))(params)
    assert terms.latent.shape == (B,)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.all(np.isfinite(leaf)), path
        assert np.any(leaf != 0.0), path

    # The encoder learns of the image, and not of the charge alone.
    def charge(encoder):
        _, cost = model.encode_latent({**params, "encoder": encoder}, batch(), draws.latent, step=draws.step)
        return model.units_per_nat * jnp.mean(cost.charge)

    of_charge = jax.jit(jax.grad(charge))(params["encoder"])
    scale = np.abs(of_charge["logits"]["kernel"]).max()
    assert np.abs(gradient["encoder"]["logits"]["kernel"] - of_charge["logits"]["kernel"]).max() > 0.1 * scale


def test_the_gradients_temperature_is_annealed():
    """Gumbel's, with the step of training; the terms are the same."""
    model, params = setting("gumbel")

    @jax.jit
    def of_step(step):
        draws = draws_of(model)._replace(step=step)
        return Bound().gradient(model)(params, draws, batch(), None)

    (terms, early), (same, late), (_, later) = (of_step(jnp.asarray(s)) for s in (0, 10**6, 10**7))
    np.testing.assert_array_equal(terms.total, same.total)
    early, late, later = (g["encoder"]["logits"]["kernel"] for g in (early, late, later))
    assert np.abs(early - late).max() > 1e-3 * np.abs(late).max()
    np.testing.assert_array_equal(late, later)


# The gradient through a k-subset by enumeration.

GROUPS, GROUP = 64, 256


class Gradients:
    """Of one image, time and noise, [M] in its logits, in bits/dim: by enumeration, and of many draws."""

    def __init__(self, name, seed=11):
        model, params = setting(name)
        # A latent that matters: the network's other inputs stay as they are.
        kernel = params["network"]["hidden_0"]["kernel"].copy()
        kernel[-M:] *= 3.0
        network = {**params["network"], "hidden_0": {**params["network"]["hidden_0"], "kernel": kernel}}
        params = {**params, "network": network}
        one = jax.tree.map(lambda a: a[2:3], draws_of(model))
        image = jax.tree.map(lambda a: a[:1], batch())
        scale = model.units_per_nat
        f = jnp.asarray(2.0 * (np.float32(tiny.images(B)[:1]) + 0.5) / tiny.LEVELS - 1.0)
        logits = model.encoder.apply({"params": params["encoder"]}, f)
        self.exact_q = Enumerated(np.asarray(logits, np.float64)[0], K)
        subsets = jnp.asarray(self.exact_q.subsets, jnp.float32)
        num_subsets = len(subsets)
        tiled = jax.tree.map(lambda a: jnp.repeat(a, num_subsets, axis=0), (one, image))

        def losses(params, c):
            context = Context(latent=c)
            return objectives.bound(
                model, params, *tiled, known=(context, LatentCost(jnp.zeros(num_subsets)))
            ).total

        # A loss depends on its own row of c alone.
        f_s, slope = jax.jit(lambda p, c: (losses(p, c), jax.grad(lambda c: jnp.sum(losses(p, c)))(c)))(
            params, subsets
        )
        f_s, slope = np.float64(f_s), np.float64(slope)
        covariance = self.exact_q.covariance
        of_charge = covariance @ self.exact_q.theta
        self.losses = f_s
        self.exact = scale * (self.exact_q.gradient(f_s) + of_charge)
        self.straight_through = scale * (covariance @ (self.exact_q.q @ slope) + of_charge)
        q = jnp.asarray(self.exact_q.q, jnp.float32)
        self.exact_schedule = jax.jit(jax.grad(lambda p: scale * jnp.sum(q * losses(p, subsets))))(params)[
            "schedule"
        ]

        gradient = Bound().gradient(model)
        many = jax.tree.map(lambda a: jnp.repeat(a, GROUP, axis=0), (one, image))

        def of_group(key):
            latent, other = (jax.vmap(model.latent.draw)(k) for k in jax.random.split(key, (2, GROUP)))
            draws = many[0]._replace(latent=latent, other_latent=other)
            _, grads = gradient(params, draws, many[1], None)
            return grads["encoder"]["logits"]["bias"], grads["schedule"]

        keys = jax.random.split(jax.random.key(seed, impl="threefry2x32"), GROUPS)
        per_group, schedule = jax.jit(lambda keys: jax.lax.map(of_group, keys))(keys)
        self.per_group = np.float64(per_group)
        self.schedule_per_group = schedule

    @property
    def mean(self):
        return self.per_group.mean(axis=0)

    @property
    def errors(self):
        return self.per_group.std(axis=0, ddof=1) / math.sqrt(GROUPS)


@pytest.fixture(scope="module")
def gradients():
    return {name: Gradients(name) for name in ("reinforce", "k_subset")}


@pytest.mark.long
def test_reinforce_is_unbiased(gradients):
    """16,384 pairs of draws, against the sum over all 15 subsets."""
    g = gradients["reinforce"]
    size, deviation = np.linalg.norm(g.exact), (g.mean - g.exact) / g.errors
    power = np.linalg.norm(g.errors) / size
    print(
        f"losses of subsets {g.losses.min():.2f} to {g.losses.max():.2f} nats; gradient {g.exact}; "
        f"deviations {deviation} standard errors; the error is {100 * power:.2f} % of the gradient's size"
    )
    assert np.std(g.losses) > 1.0, "the subsets must differ"
    # The gradients of the logits add up to zero: of the other five, Hotelling's T^2, which for 64 groups is
    # beyond 25.6 with a probability of 0.001.
    rest = (g.mean - g.exact)[1:]
    assert rest @ np.linalg.solve(np.cov(g.per_group[:, 1:].T) / GROUPS, rest) < 25.6
    assert np.abs(deviation).max() < 3.5
    # A bias of a tenth of the gradient would be three standard errors.
    assert power < 0.035


@pytest.mark.long
def test_straight_through_is_biased_as_enumeration_says(gradients):
    g = gradients["k_subset"]
    size, error = np.linalg.norm(g.exact), np.linalg.norm(g.errors)
    bias = g.straight_through - g.exact
    cosine = g.straight_through @ g.exact / size / np.linalg.norm(g.straight_through)
    print(
        f"straight-through: bias {100 * np.linalg.norm(bias) / size:.0f} % of the gradient's size, cosine "
        f"{cosine:.2f}; standard error {100 * error / size:.2f} %"
    )
    np.testing.assert_allclose(g.exact, gradients["reinforce"].exact, rtol=1e-4, atol=1e-6 * size)
    # Its own mean is known by enumeration.
    assert np.abs((g.mean - g.straight_through) / g.errors).max() < 3.5
    # That is not the gradient, which is what the test above would have seen.
    assert np.linalg.norm(g.mean - g.exact) > 10 * error


@pytest.mark.long
@pytest.mark.parametrize("name", ["reinforce", "k_subset"])
def test_other_parameters_have_the_mean_gradient(gradients, name):
    """Those of the schedule, along ten random directions."""
    g, rng = gradients[name], np.random.default_rng(0)
    for _ in range(10):
        direction = jax.tree.map(lambda a: rng.normal(size=a.shape), g.exact_schedule)
        pairs = jax.tree.leaves(
            jax.tree.map(
                lambda a, e, d: (np.float64(a) * d).reshape(GROUPS, -1).sum(1) - np.sum(np.float64(e) * d),
                g.schedule_per_group,
                g.exact_schedule,
                direction,
            )
        )
        values = sum(pairs)
        assert abs(values.mean()) < 3.5 * values.std(ddof=1) / math.sqrt(GROUPS)


def test_sampling():
    """From the prior's latents or from given ones; of each sample its own, whatever the batch."""
    model, params = setting("k_subset")
    model = for_evaluation(model)

    def sample(n, latents=None, **sizes):
        section = tiny.config().sample
        section.unlock()
        section.sampler = SAMPLERS.spec("ancestral")
        sampling = Sampling(model, tiny.mesh(), section, latents=latents, **sizes)
        return sampling(params, n, jax.random.key(3), num_steps=3).images

    one = sample(4, batch_size=4)
    # Pixels that rounding (float32) moves across the middle between two levels may differ.
    assert (sample(4, batch_size=3) == one).mean() > 0.99
    given = np.zeros((2, M), np.float32)
    given[0, :K] = given[1, -K:] = 1.0
    assert (sample(4, given, batch_size=4) != one).mean() > 0.01


def unet(c):
    """The smallest U-Nets in place of network and encoder."""
    options = {"channels": 4, "num_blocks": 1, "fourier": False}
    c.network = NETWORKS.spec("vdm_unet", **options)
    c.encoder = ENCODERS.spec("unet", **options)
    return c


def test_a_network_may_see_the_gamma_of_every_pixel():
    """The U-Net with a condition of every pixel: two schedules of one mean gamma give other outputs."""
    c = unet(config("k_subset"))
    shapes = {}
    for time_input in ("gamma", "pixel_gamma"):
        c.model.time_input = time_input
        model = tiny.model(c)
        params = jax.eval_shape(model.init, jax.random.key(0))
        shapes[time_input] = params["network"]["condition1"]["kernel"].shape
    assert shapes == {"gamma": (4 + 1 + M, 16), "pixel_gamma": (4 + 1 + M, 16)}
    params = jax.tree.map(
        lambda a: jnp.asarray(0.3 * np.random.default_rng(a.size).normal(size=a.shape), a.dtype), params
    )
    z = jnp.asarray(np.random.default_rng(0).normal(size=(1, *tiny.SHAPE)), jnp.float32)
    context = Context(latent=jnp.eye(M)[:1])
    output = jax.jit(lambda gamma: model.output(params, z, gamma, context))
    flat = jnp.full((1, *tiny.SHAPE), -1.0)
    tilted = flat + jnp.linspace(-2.0, 2.0, 8)[None, :, None, None]
    assert np.abs(output(flat) - output(tilted)).max() > 1e-2


REFUSED = {
    "no latent": (
        {"latent": LATENTS.spec("none")},
        "config.schedule.name=polynomial needs a latent: set config.latent.name to gaussian",
    ),
    "pixel_gamma, scalar schedule": (
        {"schedule": SCHEDULES.spec("fixed_linear"), "model.time_input": "pixel_gamma"},
        "pixel_gamma needs a per-pixel schedule (pixel_monotone or polynomial), not fixed_linear",
    ),
    "pixel_gamma, another network": (
        {"model.time_input": "pixel_gamma"},
        "pixel_gamma needs a network that takes a time of every pixel",
    ),
    "score matching": (
        {"training.objective": "score_matching", "schedule": SCHEDULES.spec("fixed_linear")},
        "config.training.objective=score_matching is not for a model with config.latent.name=k_subset",
    ),
    "score matching, per pixel": (
        {"training.objective": "score_matching"},
        "objective=score_matching needs continuous time and a fixed schedule (fixed_linear or linear_beta)",
    ),
    "variance": (
        {"training.schedule_objective": "variance", "schedule": SCHEDULES.spec("monotone_network")},
        "config.training.schedule_objective=variance is not for a model with config.latent.name=k_subset",
    ),
    "variance, per pixel": (
        {"training.schedule_objective": "variance"},
        "needs a schedule with learned ends and interior",
    ),
    "second order": (
        {"training.second_order": 0.1},
        "config.training.second_order needs continuous time and a fixed schedule (fixed_linear",
    ),
    "times of a fixed schedule": (
        {"time_density.name": "importance"},
        "config.time_density.name=importance needs continuous time and a fixed schedule that is linear",
    ),
    "ends in the wrong order": (
        {"schedule.gamma_min": 6.0},
        "config.schedule: gamma_min 6.0 is not below gamma_max 5.0",
    ),
    "no such subset": (
        {"latent": LATENTS.spec("k_subset", size=4, k=4)},
        "latent 'k_subset': k is 4: give a number from 1 to 3, less than size=4",
    ),
    "no such encoder": ({"encoder.name": "unett"}, "unknown encoder 'unett'; did you mean 'unet'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together(case):
    changes, message = REFUSED[case]
    c = config("k_subset")
    for field, value in changes.items():
        section, _, option = field.partition(".")
        if option:
            c[section][option] = value
        else:
            c[section] = value
    with pytest.raises(UserError) as error:
        tiny.model(c)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_latent_with_a_penalty_and_a_fixed_schedule():
    """The second-order penalty is of the diffusion given c: with a gamma of the image there may be one."""
    model, params = setting("k_subset", "fixed_linear")
    draws = draws_of(model)
    terms = jax.jit(lambda p: objectives.bound(model, p, draws, batch(), second_order=0.1))(params)
    assert terms.second_order.shape == (B,) and np.all(terms.second_order >= 0.0)
    np.testing.assert_allclose(terms.objective, terms.total + terms.second_order, rtol=1e-6)
