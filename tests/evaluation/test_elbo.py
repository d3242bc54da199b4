"""The evaluated bounds of score-based models: on data of known likelihood, for any batch, and errors."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from helpers import known, oracles, tiny
from helpers.known import EMPTY, NUM_DIMS, ORACLES, SHAPE

from jvdm.core.errors import UserError
from jvdm.diffusion.divergence import TRACES
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.evaluation import passes, suite
from jvdm.evaluation.elbo import RandomSliceELBO, ScoreFlowBound
from jvdm.evaluation.rows import standard_error
from jvdm.evaluation.vlb import VLB

N = 21
ESTIMATORS = {"elbo": RandomSliceELBO, "scoreflow": ScoreFlowBound}


def section(name, **options):
    c = tiny.config().eval[name].unlock()
    for option, value in options.items():
        c[option] = value
    return c


def estimator(name, model, *, num_devices=1, batch_size=N, draws=3, **options):
    return ESTIMATORS[name](
        model, tiny.mesh(num_devices), section(name, **options), batch_size=batch_size, draws=draws
    )


def images(oracle, n):
    data = ORACLES[oracle].sample(np.random.default_rng(0), n).reshape(n, *SHAPE)
    return data.astype(np.uint8 if hasattr(ORACLES[oracle], "num_levels") else np.float32)


def model_of(oracle="gaussian", path="variance_preserving", schedule="linear_beta", **options):
    return known.build(oracle, path, schedule=schedule, **options)


def rows_of(one, data, seed=7):
    return passes.run(one, EMPTY, data, jax.random.key(seed))


@pytest.fixture(params=ESTIMATORS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def whole():
    """Rows by estimator."""
    return {name: rows_of(estimator(name, model_of()), images("gaussian", N)) for name in ESTIMATORS}


# Of each estimator on discrete data and on continuous, with one path and schedule or another.
CASES = [
    ("elbo", "gaussian", "variance_preserving", "linear_beta"),
    ("elbo", "continuous_mixture", "sub_variance_preserving", "linear_beta"),
    ("scoreflow", "gaussian", "straight", None),
    ("scoreflow", "continuous_mixture", "variance_preserving", "linear_beta"),
]


@pytest.mark.parametrize(("name", "oracle", "path", "schedule"), CASES)
def test_a_perfect_model_reaches_the_known_likelihood(name, oracle, path, schedule):
    """To 0.05 bits/dim, which tells that all parts are there; tests/test_score_bounds.py looks closer."""
    n, model = 2048, model_of(oracle, path, schedule)
    data = images(oracle, n)
    one = estimator(name, model, batch_size=n, draws=32)
    rows = rows_of(one, data)
    image = passes.bits_per_dim(rows, one.terms).mean(axis=1)
    flat = data.reshape(n, -1)
    if model.num_levels:
        assert model.units == "bits/dim"
        truth = -ORACLES[oracle].log_probability(flat) / (NUM_DIMS * math.log(2))
        # For spreading data over cells.
        expected = known.gap(oracle, "uniform")
    else:
        assert model.units == "nats"
        np.testing.assert_array_equal(rows["dequantization"], 0.0)
        image = image / (NUM_DIMS * math.log(2))
        truth = -ORACLES[oracle].log_density(flat.astype(float), np.ones(1), np.zeros(1))
        truth, expected = truth / (NUM_DIMS * math.log(2)), 0.0
    error = standard_error(image - truth)
    assert error < 0.05
    assert abs(np.mean(image - truth) - expected) < 3 * error + 1e-3


def test_independent_of_batch_and_devices(name, whole):
    """All images on one device, or one on each of eight."""
    one = estimator(name, model_of(), batch_size=8, num_devices=8)
    rows = rows_of(one, images("gaussian", N))
    assert rows.keys() == {*one.terms, "gamma"} == whole[name].keys()
    for row in rows:
        assert rows[row].shape == (N, 3)
        # The draws are the same numbers; sums may be fused otherwise, and terms of 20 cancel in part.
        np.testing.assert_allclose(rows[row], whole[name][row], rtol=1e-4, atol=1e-4)
    assert np.ptp(passes.bits_per_dim(rows, one.terms), axis=1).min() > 0.01, "draws of their own"


def test_times_are_stratified(whole):
    """One in each third: of t for the random slice, of gamma for the truncated bound."""
    gamma, _ = oracles.linear_beta_gamma("variance_preserving", np.array([1e-5, 1 / 3, 2 / 3, 1.0]))
    elbo, scoreflow = (np.sort(whole[name]["gamma"], axis=1) for name in ESTIMATORS)
    assert np.all((elbo[:, 1:] > gamma[1:3]) & (elbo[:, :2] < gamma[1:3]))
    place = (scoreflow - gamma[0]) / (gamma[-1] - gamma[0]) * 3
    assert np.all(np.floor(place) == np.arange(3)) and place.std(axis=0).min() > 0.1
    uniform = estimator("scoreflow", model_of(), importance=False)
    uniform = np.sort(rows_of(uniform, images("gaussian", N))["gamma"], axis=1)
    assert np.all((uniform[:, 1:] > gamma[1:3]) & (uniform[:, :2] < gamma[1:3]))


def test_dequantization_is_the_width_of_a_cell(name, whole):
    """log q of uniform noise, log2(K / 2) bits, for alpha = 1."""
    np.testing.assert_allclose(whole[name]["dequantization"], 7.0, rtol=1e-6)


def test_options_reach_the_bound(whole):
    """Another trace moves the divergence alone, another prior the prior alone."""
    data, model = images("gaussian", N), model_of()
    exact = rows_of(estimator("elbo", model, trace=TRACES.spec("exact")), data)
    # A diagonal Jacobian, of which Rademacher probes are exact.
    for term in RandomSliceELBO.terms:
        np.testing.assert_allclose(exact[term], whole["elbo"][term], rtol=1e-4, atol=1e-4)
    released = rows_of(estimator("elbo", model, prior="sdeflow_released"), data)
    # The same operations in another program, which may be fused otherwise: an ulp or two.
    np.testing.assert_allclose(released["score"], whole["elbo"]["score"], rtol=5e-7)
    difference = released["prior"] - whole["elbo"]["prior"]
    # sigma_1^2 is 1 - 4e-5, and 1e-5 is added to it in half of the formula.
    assert 0 < np.abs(difference).max() < 1e-3


REFUSED = {
    "no truncation": ("scoreflow", {"epsilon": 0.0}, "epsilon is 0, where this schedule has no noise"),
    "unknown prior": ("elbo", {"prior": "modle"}, "config.eval.elbo.prior 'modle'; did you mean 'model'"),
    "no draws": ("elbo", {"draws": 0}, "0 draws per image"),
    "no images": ("scoreflow", {"batch_size": 0}, "config.eval.batch_size is 0"),
    "no probes": ("elbo", {"trace": TRACES.spec("hutchinson", probes=0)}, "probes is 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    name, options, message = REFUSED[case]
    with pytest.raises(UserError) as error:
        estimator(name, model_of(), **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_learned_schedule_has_uniform_times():
    """Its inverse is not known; the random slice asks for nothing."""
    model = tiny.model(tiny.config())
    with pytest.raises(UserError, match="importance=True needs a fixed schedule: set it to False") as error:
        estimator("scoreflow", model)
    assert "\n" not in str(error.value)
    estimator("scoreflow", model, importance=False)
    estimator("elbo", model)


def test_a_finite_gamma_needs_no_truncation():
    one = estimator("scoreflow", model_of(schedule=None), epsilon=0.0)
    rows = rows_of(one, images("gaussian", N))
    assert all(np.isfinite(rows[term]).all() for term in one.terms)


def test_what_training_watches():
    """The variational bound where there is one, or else the random slice."""
    c = tiny.config().unlock()
    assert isinstance(suite.during_training(c, tiny.model(c), tiny.mesh()), VLB)
    c.schedule, c.model.time_input = SCHEDULES.spec("linear_beta"), "t"
    c.training.objective = "score_matching"
    assert isinstance(suite.during_training(c, tiny.model(c), tiny.mesh()), RandomSliceELBO)


def record_of(one, rows, provenance):
    return one.result(rows, provenance, params=EMPTY, examples=images("gaussian", N), key=jax.random.key(7))


def test_record(whole):
    """Names, units, the prior, and whether it is a bound."""
    one = estimator("elbo", model_of())
    result = record_of(one, whole["elbo"], tiny.provenance(step=3))
    bits = passes.bits_per_dim(whole["elbo"], one.terms)
    assert result.value == pytest.approx(bits.mean()) and result.units == "bits/dim"
    assert result.standard_error == pytest.approx(bits.mean(axis=1).std(ddof=1) / math.sqrt(N))
    assert sum(term.mean for term in result.terms.values()) == pytest.approx(result.value)
    assert result.is_bound and result.slices == section("elbo").to_dict() and result.ode is None
    assert result.prior == "N(0, sigma_1^2 I)"
    assert one.file_name() == "elbo_1_probes"
    assert result.row()["estimator"] == result.description == "ELBO, random slice, 1 probe"

    exact = estimator("elbo", model_of(), trace=TRACES.spec("exact"), prior="sdeflow_released")
    continuous = dataclasses.replace(tiny.provenance(step=3), num_levels=0)
    released = record_of(exact, whole["elbo"], continuous)
    assert not released.is_bound and released.units == "nats" and "nats" in released.row()
    assert released.prior == "N(0, I), not normalised, as released"
    assert exact.file_name() == "elbo_exact_sdeflow_released"
    assert released.description == "ELBO, random slice, exact trace"

    flow = estimator("scoreflow", model_of())
    truncated = record_of(flow, whole["scoreflow"], tiny.provenance())
    assert flow.file_name() == "scoreflow_1e-05" and truncated.is_bound
    assert truncated.description == "ScoreFlow bound, from t = 1e-05"
    assert truncated.prior == "N(0, sigma_1^2 I)" and truncated.slices == section("scoreflow").to_dict()
    assert truncated.monte_carlo_error > 0
    uniform = estimator("scoreflow", model_of(), importance=False)
    assert uniform.file_name() == "scoreflow_1e-05_uniform_times"
