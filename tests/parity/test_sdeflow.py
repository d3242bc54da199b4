"""Recorded numbers of sdeflow: data map, times, objective, ELBO, the family of reverse SDEs, samples.

The network alone is replayed in test_sdeflow_network.py. Tolerances are multiples of the noise floor, the
peer's deviation between float32 and float64 at its own output, or of float32's rounding (6e-8), and bound

    |ours - theirs|_max / |theirs|_max

except where said otherwise. sdeflow's variance is 1 - exp(-B), which is off by 6e-8 whatever it is; where
that matters the tolerance has it.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import sdeflow_case
from helpers.compose import compose
from helpers.replays import check, jit
from helpers.sdeflow_case import nchw, nhwc

from jvdm.core.records import Batch, Context, Draws
from jvdm.diffusion import dequantization, losses, samplers, score_bounds, transforms
from jvdm.diffusion.divergence import Hutchinson
from jvdm.diffusion.parameterizations import Drift
from jvdm.diffusion.paths import VariancePreserving
from jvdm.diffusion.schedules import LinearBeta
from jvdm.diffusion.times import Debiased, DebiasedReleased, UniformDensity
from jvdm.diffusion.transforms import Logit
from jvdm.evaluation.rows import standard_error
from jvdm.model import objectives
from jvdm.networks import TimeInput

ROUNDING = 2.0**-24


@pytest.fixture(params=sdeflow_case.names(), scope="module")
def replay(request):
    return Replay(sdeflow_case.load_case(request.param))


def data_map_of(settings):
    return Logit(a=settings["alpha"])


class Replay:
    """jvdm's model of a case."""

    def __init__(self, case):
        self.case, self.io, self.settings = case, case.io, case.config
        path = VariancePreserving()
        self.model = compose(
            network=case.network,
            schedule=LinearBeta(
                noise_path=path, beta_min=self.settings["beta_min"], beta_max=self.settings["beta_max"]
            ),
            path=path,
            parameterization=Drift(),
            data_shape=self.io["images_u8_nhwc"].shape[1:],
            num_levels=256,
            time_input=TimeInput(),
            data_map=data_map_of(self.settings),
        )
        self.params = {"network": jax.tree.map(jnp.asarray, case.params), "schedule": {}}
        self.floor = case.noise_floor
        self.images = jnp.asarray(self.io["images_u8_nhwc"])

    def coefficients(self, t):
        return self.model.at(self.params, t)

    @functools.cached_property
    def predict(self):
        return jit(lambda z, t: self.model.predict(self.params, z, t, Context()))

    @functools.cached_property
    def slice(self):
        """(y, t, eps, eps_1, probe) -> terms of the random-slice bound with the released prior."""

        def terms(y, t, eps, eps_1, probe):
            at_s, at_t, at_1 = (self.coefficients(a) for a in (jnp.zeros_like(t), t, jnp.ones_like(t)))
            return score_bounds.random_slice(
                lambda z: self.model.predict(self.params, z, t, Context()).eps,
                y,
                eps=eps,
                eps_1=eps_1,
                probes=probe[None],
                trace=Hutchinson(),
                span=jnp.ones_like(t),
                at_s=at_s,
                at_t=at_t,
                at_1=at_1,
                process=self.model.process,
                prior=self.model.prior(self.params),
                log_prior=score_bounds.PRIORS["sdeflow_released"],
            )

        return jit(terms)

    def step_from(self, t, length):
        """A step of the generative SDE, which needs nothing of the time it goes to but the length."""
        data_range = self.model.data_map.range
        at_s = self.coefficients(jnp.maximum(t - length, 0.0))
        return samplers.Step(self.model.process, self.params, at_s, length, data_range, Context())


def sum_error(a):
    """Of a sum of float32 numbers of the size of its terms, relative to it."""
    return 8 * ROUNDING * np.sqrt(np.prod(np.shape(a)))


def test_dequantization_and_logit(replay):
    io = replay.io
    data = transforms.dequantize(replay.images, nhwc(io["deq/u"]), 256, replay.model.data_map)
    # sdeflow adds u to an image divided by 255 and multiplied by 255: a rounding or two, times dy/dx <= 19.
    check("y", nchw(data.y), io["logit/y"], 40 * ROUNDING)
    # log q = log K - log-determinant, summed over an image.
    log_q = losses.sum_example(data.log_slope)
    expected = replay.model.num_dims * np.log(256.0) - io["logit/ldj"]
    np.testing.assert_allclose(log_q, expected, rtol=sum_error(data.y[0]))
    back = transforms.level_of(data.y, 256, replay.model.data_map)
    # A point within a rounding of its cell's edge may come back as the neighbour.
    assert np.mean(np.asarray(back) != np.asarray(replay.images)) < 1e-3


@pytest.mark.parametrize("name", ["uniform", "debias"])
def test_times(replay, name):
    io = replay.io
    u, t = (jnp.ravel(io[f"dsm_{name}/{part}"]) for part in ("u", "t"))
    density = UniformDensity() if name == "uniform" else DebiasedReleased()
    ours = density(u, schedule=replay.model.schedule, path=replay.model.path).t
    # sdeflow's 1 - exp(-B) is 1e-4 at the truncation, with a rounding of 6e-8, which is 6e-4 of gamma there,
    # and of the area below it. (Ours is within 1e-7 of float64: test_time_densities.py.)
    rate = np.ravel(replay.coefficients(jnp.maximum(t, 1e-3)).dgamma_dt)
    tolerance = 4 * ROUNDING if name == "uniform" else 1.2e-3 / rate
    assert np.all(np.abs(ours - t) <= tolerance)


def test_debiased_density(replay):
    io, model = replay.io, replay.model
    u = jnp.asarray(io["debias/u21"])
    t, weight = Debiased(epsilon=float(io["debias/t_epsilon"]))(u, schedule=model.schedule, path=model.path)
    if (model.schedule.beta_min, model.schedule.beta_max) != (0.1, 20.0):
        pytest.skip("sdeflow's density ignores the betas of the case")
    rate = np.ravel(replay.coefficients(jnp.maximum(t, 1e-3)).dgamma_dt)
    assert np.all(np.abs(t - io["debias/t21"]) <= 1.2e-3 / rate)  # as in test_times
    np.testing.assert_allclose(1.0 / weight, io["debias/density_at_t21"], rtol=1e-3)
    (at_e,) = np.ravel(replay.coefficients(jnp.array([1e-3])).dgamma_dt)
    gamma_e, gamma_1 = model.schedule(jnp.array([1e-3, 1.0]))
    np.testing.assert_allclose(1e-3 * at_e + gamma_1 - gamma_e, io["debias/normalizer_Z"][0], rtol=1e-4)


@pytest.mark.parametrize("name", ["uniform", "debias"])
def test_objective_and_its_gradient(replay, name):
    io, model = replay.io, replay.model
    t, noise = (io[f"dsm_{name}/{part}"] for part in ("t", "noise"))
    c = replay.coefficients(jnp.ravel(t))
    mean_weight, _, g = io[f"dsm_{name}/mean_weight_std_g"]
    np.testing.assert_allclose(np.ravel(c.alpha), mean_weight, rtol=4 * ROUNDING * 10)
    # B is up to 10 and in the exponent.
    np.testing.assert_allclose(np.ravel(jnp.sqrt(c.dgamma_dt) * c.sigma), g, rtol=1e-5)

    # The recorded times, of either density, have weight 1 in sdeflow.
    draws = Draws(jnp.ravel(t), nhwc(noise), nhwc(noise), None, nhwc(io["deq/u"]))
    batch = Batch(replay.images)

    def objective(params, weighting, model):
        return objectives.score_matching(
            model, params, draws, batch, weighting=weighting, truncation=1e-3, dequantize=True
        ).objective

    def mean(network):
        terms = objective({"network": network, "schedule": {}}, "unweighted", model)
        return jnp.mean(terms), terms

    (_, ours), grads = jit(jax.value_and_grad(mean, has_aux=True))(replay.params["network"])
    # The output, off by a noise floor or two, is multiplied by std / g, at most sqrt(1 / dgamma_dt).
    theirs = io[f"dsm_{name}/dsm"]
    dims = model.num_dims
    np.testing.assert_allclose(ours, theirs, rtol=6 * replay.floor / np.sqrt(2 * theirs / dims).min())
    leaves = sdeflow_case.by_source(replay.case, grads)
    ours_l2 = {name: np.linalg.norm(np.asarray(leaf, np.float64)) for name, leaf in leaves.items()}
    theirs_l2 = dict(zip(replay.settings["parameter_names_in_order"], io[f"dsm_{name}/grad_l2"], strict=True))
    assert ours_l2.keys() == theirs_l2.keys() - {"T"}
    largest = max(theirs_l2.values())
    for leaf, norm in ours_l2.items():
        # Of the largest leaf: the gradient of a bias before a normalisation is a difference that cancels.
        assert abs(norm - theirs_l2[leaf]) <= 1e-4 * largest, leaf


def test_what_the_released_objective_lacks(replay):
    """With its own density and the likelihood's weight, the objective is Z times the released one."""
    io, model = replay.io, replay.model
    if (model.schedule.beta_min, model.schedule.beta_max) != (0.1, 20.0):
        pytest.skip("sdeflow's density ignores the betas of the case")
    noise, u = nhwc(io["dsm_debias/noise"]), jnp.ravel(io["dsm_debias/u"])
    draws = Draws(u, noise, noise, None, nhwc(io["deq/u"]))
    batch = Batch(replay.images)
    right = dataclasses.replace(model, time_density=Debiased())
    ours = jit(
        lambda params: (
            objectives.score_matching(
                right, params, draws, batch, weighting="likelihood", truncation=1e-3, dequantize=True
            ).objective
        )
    )(replay.params)
    # The times differ as in test_times.
    np.testing.assert_allclose(ours, io["debias/normalizer_Z"][0] * io["dsm_debias/dsm"], rtol=1e-3)


def test_elbo_of_every_image(replay):
    io, n = replay.io, len(replay.images)
    y, t = nhwc(io["logit/y"]), jnp.ravel(io["elbo/t"])
    eps, eps_1 = nhwc(io["elbo/noise_y"]), nhwc(io["elbo/noise_yT"])
    probe = nhwc(io["elbo/v"].astype(np.float32))
    at_t, at_s = replay.coefficients(t), replay.coefficients(jnp.zeros(n))
    sigma_error = ROUNDING / float(jnp.min(at_t.sigma)) * 4
    process = replay.model.process

    def transition(eps, at):
        return process.forward(y, None, None, at_s, at).sample(eps)

    z = transition(eps, at_t)
    check("y_t", nchw(z), io["elbo/y"], 8 * ROUNDING + sigma_error)
    at_1 = replay.coefficients(jnp.ones(n))
    check("y_T", nchw(transition(eps_1, at_1)), io["elbo/yT"], 8 * ROUNDING)

    terms = replay.slice(y, t, eps, eps_1, probe)
    scale = np.abs(io["elbo/elbo_logit_space"]).max()
    # lp and Nu are sums of squares; Mu is a trace that cancels, so its tolerance is of the whole bound.
    check("lp", -terms.prior, io["elbo/lp"], sum_error(y[0]))
    check("Nu", -terms.score, io["elbo/Nu"], 10 * replay.floor)
    np.testing.assert_allclose(-terms.divergence, io["elbo/Mu"], atol=10 * replay.floor * scale)
    log_q = dequantization.uniform(
        replay.images, nhwc(io["deq/u"]), jnp.ones((n, 1, 1, 1)), 256, replay.model.data_map
    ).log_q
    nats = sum(terms) + log_q
    bpd = np.asarray(nats) * replay.model.units_per_nat
    np.testing.assert_allclose(
        bpd, io["elbo/bpd"], atol=10 * replay.floor * scale * replay.model.units_per_nat
    )

    # The corrected prior differs by what 1e-5 in the denominator and sigma_1 < 1 make, at most 1e-4 nats a
    # dimension.
    right = score_bounds.process_prior(transition(eps_1, at_1), replay.model.prior(replay.params))
    difference = np.abs(np.asarray(right - terms.prior)) / replay.model.num_dims
    assert 0 < difference.max() < 1e-4


def test_evaluation_in_batches(replay):
    """sdeflow's evaluate(): the mean and its standard error over all images."""
    io, bpd, first = replay.io, [], 0
    for b in itertools.takewhile(lambda b: f"evaluate/b{b}_deq_u" in io, itertools.count()):
        u, eps, eps_1 = (nhwc(io[f"evaluate/b{b}_{name}"]) for name in ("deq_u", "noise_y", "noise_yT"))
        t, probe = jnp.ravel(io[f"evaluate/b{b}_u_t"]), nhwc(io[f"evaluate/b{b}_v"].astype(np.float32))
        images, first = replay.images[first : first + len(u)], first + len(u)
        ones = jnp.ones((len(u), 1, 1, 1))
        data = dequantization.uniform(images, u, ones, 256, replay.model.data_map)
        terms = replay.slice(data.z, t, eps, eps_1, probe)
        bpd.append((sum(terms) + data.log_q) * replay.model.units_per_nat)
    bpd = np.concatenate(bpd)
    scale = max(1.0, np.abs(bpd).max())
    np.testing.assert_allclose(bpd.mean(), io["evaluate/mean_bpd"], atol=10 * replay.floor * scale)
    # sdeflow divides by the square root of n with the deviation of n, or of n - 1.
    ours = standard_error(bpd)
    either = (ours, bpd.std() / np.sqrt(len(bpd)))
    assert min(abs(float(io["evaluate/std_err"]) - e) for e in either) <= 10 * replay.floor * scale


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_family_of_reverse_sdes(replay, lam):
    io = replay.io
    t, z = 1.0 - jnp.ravel(io["lmbd/t"]), nhwc(io["lmbd/y"])
    prediction, sampler = replay.predict(z, t), samplers.ReverseSDE(lam=lam)
    drift = sampler.drift(prediction, z, replay.step_from(t, 0.0))
    check("drift", nchw(drift), io[f"lmbd/mu_{lam}"], 10 * replay.floor)
    volatility = jnp.sqrt((1.0 - lam) * prediction.coefficients.g2)
    np.testing.assert_allclose(np.ravel(volatility), io[f"lmbd/sigma_{lam}"], rtol=2e-5, atol=2e-5)


def test_one_step(replay):
    io = replay.io
    num_steps, _, t, delta = io["em/num_steps_i_t_delta"]
    z, n = nhwc(io["em/y0"]), len(io["em/y0"])
    np.testing.assert_allclose(delta, 1.0 / num_steps, rtol=1e-6)
    t = jnp.full(n, 1.0 - t)
    where = replay.step_from(t, delta)
    z_s = samplers.ReverseSDE(lam=0.0).step(replay.predict(z, t), z, nhwc(io["em/noise"]), where)
    check("y1", nchw(z_s), io["em/y1"], 10 * replay.floor)


def test_grid_of_samples(replay):
    """Three steps from noise, mapped to [0, 1] and laid out as a square."""
    io, model = replay.io, replay.model
    z, noises = nhwc(io["grid/y0"]), nhwc(io["grid/noises"])
    num_steps, n = len(noises), len(z)
    for i in range(num_steps):
        t = jnp.full(n, 1.0 - i / num_steps)
        where = replay.step_from(t, 1.0 / num_steps)
        z = samplers.ReverseSDE(lam=0.0).step(replay.predict(z, t), z, noises[i], where)
    x = np.asarray(model.data_map.inverse(z))
    side = int(np.sqrt(n))
    rows = [np.concatenate(list(x[side * r : side * r + side]), axis=1) for r in range(side)]
    ours = np.moveaxis(np.concatenate(rows, axis=0), -1, 0)
    # Three steps of a third multiply a deviation by up to about 1 + 20 / 3 each.
    np.testing.assert_allclose(np.clip(ours, 0.0, 1.0), io["grid/grid_chw"], atol=100 * replay.floor)
