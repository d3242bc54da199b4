"""Latents that matter, on data of known P(x): both estimators against the bound by enumeration.

The models are perfect given the latent, with schedules that depend on it (`known_latent_models`). So what an
estimator says is known, and a latent that is sampled, conditioned on or charged in a wrong way shows.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import known, tiny
from helpers import known_latent_models as models
from helpers.known_latent_models import BITS, ORACLES
from helpers.known_latents import log_sum_exp

from jvdm.core.records import Context
from jvdm.core.tables import with_error
from jvdm.evaluation.record import result as result_of
from jvdm.evaluation.vlb import VLB

# Bits/dim by which the ODE's solver may be off on average: 6e-4 are measured at its tolerance of 1e-5, of
# which 3e-4 remain at 1e-7, by rounding to float32.
SOLVER = 1e-3
VLB_OPTIONS = {"repeats": 128, "draws": 64}


def show(name, estimate):
    print(
        f"{name:45} truth {estimate.truth.mean():.4f}, expected {estimate.expected.mean():.4f}, "
        f"estimate less expected {with_error(*estimate.excess, digits=4)}, "
        f"less truth {with_error(*estimate.gap, digits=4)} bits/dim"
    )


def check(estimate, tolerance=0.0):
    """Within 3 standard errors of what it is, and so not below -log P(x); as for every point by itself."""
    excess, error = estimate.excess
    assert abs(excess) < 3 * error + tolerance
    assert estimate.gap[0] > -3 * error - tolerance
    # The largest of 12 deviations is beyond 4 with a probability of 0.002, were they normal.
    assert np.abs(estimate.deviations).max() < 4.5
    # Its power: what the latent is charged is many errors, so that half of it would be missed.
    assert estimate.rows["latent"].mean() > 8 * error


def test_the_oracle():
    """Its bounds are bounds; K samples are better than one, and modes are worse than what is sampled."""
    for name, oracle in ORACLES.items():
        truth = -oracle.table.log_likelihood
        np.testing.assert_allclose(log_sum_exp(oracle.table.log_table, axis=0), 0.0, atol=1e-12)
        bounds = [oracle.bound, oracle.importance_bound(2), oracle.importance_bound(3)]
        assert all(np.all(bound > truth - 1e-9) for bound in [*bounds, oracle.at_modes()]), name
        np.testing.assert_allclose(oracle.importance_bound(1), oracle.bound, atol=1e-9)
        assert np.all(bounds[0] >= bounds[1] - 1e-9) and np.all(bounds[1] >= bounds[2] - 1e-9)
    np.testing.assert_allclose(
        ORACLES["classes, posterior"].bound, -ORACLES["classes"].table.log_likelihood, atol=1e-9
    )
    assert np.mean(ORACLES["subsets, untrained"].bound + ORACLES["subsets"].table.log_likelihood) > 0.5


@pytest.mark.parametrize("schedule", ["polynomial", "pixel_monotone"])
def test_the_schedule_depends_on_the_latent(schedule):
    """At the middle of time, gamma varies over subsets, at every pixel."""
    model, params = models.build(schedule=schedule)
    subsets = jnp.asarray(ORACLES["subsets"].q.subsets, jnp.float32)
    gamma = model.gamma(params, jnp.float32(0.5), Context(latent=subsets))
    assert gamma.shape == (len(subsets), *known.SHAPE)
    deviation = np.std(gamma, axis=0)
    assert deviation.min() > 0.3 and deviation.mean() > 1.0


@pytest.mark.parametrize(
    ("oracle", "options"),
    [
        ("subsets", {}),
        pytest.param("subsets, untrained", {"schedule": "pixel_monotone"}, marks=pytest.mark.long),
        ("classes", {"path": "straight", "parameterization": "velocity"}),
    ],
)
def test_the_variational_bound(oracle, options):
    estimate = models.vlb(oracle, **VLB_OPTIONS, **options)
    show(f"VLB, {oracle}", estimate)
    check(estimate)
    # By itself every draw is charged the KL of its image.
    kl = np.repeat(ORACLES[oracle].q.kl, 128) / BITS
    np.testing.assert_allclose(
        estimate.rows["latent"], np.broadcast_to(kl[:, None], (len(kl), 64)), rtol=1e-4
    )


@pytest.mark.long
def test_few_steps_are_worse():
    """T = 50 of the discrete-time bound, with the same latents and noise."""
    continuous, discrete = (models.vlb(**VLB_OPTIONS, **options) for options in ({}, {"timesteps": 50}))
    show("VLB, T = 50", discrete)
    assert discrete.excess[0] > continuous.excess[0] + 3 * discrete.excess[1]
    assert discrete.gap[0] > 0.1


@pytest.mark.parametrize(
    ("oracle", "options"),
    [
        ("subsets", {}),
        pytest.param(
            "subsets, untrained",
            {"path": "straight", "parameterization": "velocity", "num_samples": 3},
            marks=pytest.mark.long,
        ),
        pytest.param("subsets", {"probes": 1, "repeats": 400}, marks=pytest.mark.long),
    ],
)
def test_the_ode(oracle, options):
    estimate = models.ode(oracle, **{"repeats": 100, **options})
    show(f"ODE, {oracle}, {options}"[:45], estimate)
    check(estimate, SOLVER)


@pytest.mark.long
def test_several_samples_of_the_posterior_are_the_truth():
    """Each of them: log p(x | c) + log p(c) - log q(c | x) = log P(x), which with the KL it would not be."""
    estimate = models.ode("classes, posterior", num_samples=2, repeats=20, schedule="pixel_monotone")
    show("ODE, posterior, K = 2", estimate)
    assert abs(estimate.excess[0]) < SOLVER
    # z_1 of N(0, sigma_1^2), and of the data alpha_1 x = 0.007 x away: 0.007 x z_1 / BITS for a sample.
    assert np.abs(estimate.per_point - estimate.expected[:, None]).max() < 0.015
    oracle = ORACLES["classes, posterior"]
    log_ratio = oracle.q.log_q + np.log(oracle.table.log_table.shape[1]) - oracle.q.kl[:, None]
    spread = np.sqrt(np.sum(oracle.q.q * log_ratio**2, axis=1)).mean() / BITS
    assert spread > 0.1, "with the KL, samples would be that far from each other"


@pytest.mark.parametrize("estimator", ["vlb", pytest.param("ode", marks=pytest.mark.long)])
def test_the_surrogate_is_below_the_truth(estimator):
    """Where x tells c: with what the released code charges, and with what the likeliest c costs."""
    run, options = (models.vlb, VLB_OPTIONS) if estimator == "vlb" else (models.ode, {"repeats": 20})
    valid = run("telling", latent="k_hot_surrogate", **options)
    tolerance = 0.0 if estimator == "vlb" else SOLVER
    released = valid.with_charge("surrogate")
    show(f"{estimator}, telling, the valid charge", valid)
    show(f"{estimator}, telling, as released", released)
    assert abs(valid.excess[0]) < 3 * valid.excess[1] + tolerance
    assert valid.gap[0] > -3 * valid.gap[1] - tolerance
    assert released.gap[0] < -0.5 and released.gap[0] < -100 * released.gap[1]
    # Of every point: log 20 nats for 3 of 6, charged as one class, one of 3 alike, log 6 - log 3.
    np.testing.assert_allclose(valid.rows["latent"] * BITS, np.log(20.0), rtol=1e-5)
    np.testing.assert_allclose(valid.rows["surrogate"] * BITS, np.log(2.0), rtol=1e-3)
    assert np.all(released.per_point.mean(axis=1) < released.truth - 0.5)


def test_the_record_says_both():
    """The number is the bound; the released one is there by its name."""
    estimate = models.vlb("telling", latent="k_hot_surrogate", **VLB_OPTIONS)
    model, _ = models.build("telling", latent="k_hot_surrogate")
    estimator = VLB(model, tiny.mesh(), batch_size=8, draws=1)
    result = result_of(estimator, estimate.rows, tiny.provenance(), prior="N(0, I)")
    truth = estimate.truth.mean()
    assert result.is_bound and result.value > truth - 3 * estimate.gap[1]
    assert result.surrogate is not None and result.surrogate.value < truth - 0.5
    np.testing.assert_allclose(
        result.surrogate.value, estimate.with_charge("surrogate").per_point.mean(), rtol=1e-6
    )
