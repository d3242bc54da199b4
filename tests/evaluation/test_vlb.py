"""The evaluated bound: every image once, whatever the batch and the devices; errors that are errors."""

import json

import jax
import numpy as np
import pytest
from helpers import quick, tiny

from jvdm.core.errors import UserError
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.diffusion.times import TIME_DENSITIES, UniformDensity, jittered
from jvdm.evaluation import passes
from jvdm.evaluation.rows import of_mean, standard_error, stratified_errors
from jvdm.evaluation.vlb import VLB, for_evaluation

N = 21


@pytest.fixture(scope="module")
def setting():
    model = tiny.model(tiny.config())
    return for_evaluation(model), tiny.perturbed(jax.jit(model.init)(jax.random.key(0)))


def mean_bpd(rows):
    return passes.bits_per_dim(rows, VLB.terms).mean()


def evaluate(setting, *, batch_size, num_devices=1, draws=3, timesteps=None):
    model, params = setting
    model = for_evaluation(model, timesteps)
    with quick.as_for_users():
        estimator = VLB(model, tiny.mesh(num_devices), batch_size=batch_size, draws=draws)
    return passes.run(estimator, params, tiny.images(N), jax.random.key(7))


@pytest.fixture(scope="module")
def whole(setting):
    return evaluate(setting, batch_size=N)


@pytest.mark.parametrize(
    ("batch_size", "num_devices"), [(5, 1), (8, 8), pytest.param(20, 8, marks=pytest.mark.long)]
)
def test_independent_of_batch_and_devices(setting, whole, batch_size, num_devices):
    result = evaluate(setting, batch_size=batch_size, num_devices=num_devices)
    assert result["gamma"].shape == (N, 3)
    # The draws are the same numbers; matrix products of another height may round differently (float32).
    np.testing.assert_array_equal(result["gamma"], whole["gamma"])
    for name in VLB.terms:
        np.testing.assert_allclose(result[name], whole[name], rtol=3e-6, atol=1e-7)


def test_draws_of_an_image_are_stratified(setting, whole):
    """Three times per image: one in each third of [gamma_0, gamma_1], since the schedule is linear."""
    model, params = setting
    gamma_0, gamma_1 = np.asarray(jax.jit(model.gamma)(params, np.array([0.0, 1.0], np.float32)))
    position = (np.sort(whole["gamma"], axis=1) - gamma_0) / (gamma_1 - gamma_0) * 3
    assert (np.floor(position) == np.arange(3)).all()
    assert position.std(axis=0).min() > 0.1


def test_discrete_times_exceed_continuous(setting, whole):
    """expm1 weights: the discrete bound of few steps is looser for a network that ignores the steps."""
    few = evaluate(setting, batch_size=N, timesteps=4)
    assert mean_bpd(few) > mean_bpd(whole)


def test_running_mean_is_reported(setting):
    model, params = setting
    seen = []
    estimator = VLB(model, tiny.mesh(), batch_size=8, draws=1)
    rows = passes.run(
        estimator,
        params,
        tiny.images(N),
        jax.random.key(0),
        on_chunk=lambda done, values: seen.append((done, values)),
    )
    assert [done for done, _ in seen] == [8, 16, N]
    image_bpd = passes.bits_per_dim(rows, VLB.terms).mean(axis=1)
    assert seen[-1][1]["bpd"] == pytest.approx(image_bpd.mean())
    assert seen[-1][1]["err"] == pytest.approx(standard_error(image_bpd))


def test_nothing_to_do_is_an_error(setting):
    with pytest.raises(UserError, match=r"config.eval.batch_size is 0"):
        evaluate(setting, batch_size=0)
    with pytest.raises(UserError, match="0 draws"):
        evaluate(setting, batch_size=4, draws=0)


def test_broken_weights_are_an_error(setting):
    model, params = setting
    estimator = VLB(model, tiny.mesh(), batch_size=8, draws=1)
    broken = {**params, "schedule": {"b": np.float32(np.nan), "w": np.float32(1.0)}}
    with pytest.raises(UserError, match=r"image 0 \(and of 7 more in its batch\) is not finite"):
        passes.run(estimator, broken, tiny.images(N), jax.random.key(0))


def test_standard_error_is_that_of_the_mean():
    """Coverage: of 2000 means of 25 normal numbers, 95 % lie within t(24) standard errors, ± 3 sd."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2000, 25))
    inside = np.mean([abs(v.mean()) < 2.064 * standard_error(v) for v in values])
    assert abs(inside - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 2000)
    assert standard_error(np.ones(1)) is None


@pytest.mark.parametrize("draws", [4, 16, 64])
def test_monte_carlo_error_is_calibrated(key, draws):
    """A steep loss 3 (1 - u)^2 with noise: the error stated against that of 4000 repetitions."""
    u = np.asarray(jax.vmap(lambda k: jittered(k, draws))(jax.random.split(key, 4000)))
    rng = np.random.default_rng(0)
    values = 3.0 * (1.0 - u) ** 2 + 0.2 * rng.standard_normal(u.shape)
    shuffled = rng.permuted(np.arange(draws)[None].repeat(4000, 0), axis=1)
    values, u = (np.take_along_axis(a, shuffled, 1) for a in (values, u))
    true = values.mean(axis=1).std() / np.sqrt(4000)
    stated = of_mean(stratified_errors(values, u))
    # The true deviation is known to 1.1 % (4000 repetitions). At 4 draws neighbours rise by 0.75 on average.
    assert 0.97 * true < stated < (3.0 if draws == 4 else 1.6 if draws == 16 else 1.1) * true


def test_monte_carlo_error_needs_two_draws():
    assert of_mean(stratified_errors(np.ones((3, 1)), np.ones((3, 1)))) is None


def test_record(tmp_path):
    """Numbers by hand: two images, two draws each."""
    one = np.array([[1.0, 3.0], [4.0, 4.0]], np.float32)
    gamma = np.array([[0.0, 1.0], [0.0, 1.0]], np.float32)
    rows = {"reconstruction": one, "prior": 0 * one, "diffusion": one, "gamma": gamma}
    c = tiny.config()
    estimator = VLB.from_config(c, tiny.model(c), tiny.mesh())
    given = {"params": {}, "examples": tiny.images(2), "key": jax.random.key(0)}
    result = estimator.result(rows, tiny.provenance(step=5), **given)
    assert result.value == pytest.approx(6.0)
    assert result.standard_error == pytest.approx(np.std([4.0, 8.0], ddof=1) / np.sqrt(2))
    # Image 1: (6 - 2)^2 / 2 = 8, image 2: 0; sqrt(8 / 2 draws) / 2 images.
    assert result.monte_carlo_error == pytest.approx(1.0)
    assert result.terms["reconstruction"].mean == pytest.approx(3.0)
    assert sum(term.mean for term in result.terms.values()) == pytest.approx(result.value)
    assert (estimator.file_name(), result.description) == ("vlb_continuous", "VLB, continuous")
    assert (result.timesteps, result.time_density, result.prior) == (0, "uniform", "N(0, sigma_1^2 I)")
    path = tmp_path / "eval" / "a.json"
    result.write(path)
    saved = json.loads(path.read_text())
    assert saved["value"] == pytest.approx(6.0)
    assert saved["units"] == "bits/dim"
    assert saved["ode"] is None
    assert saved["provenance"]["matmul_precision"] == "float32, highest"
    assert {"jax", "flax", "jvdm", "diffrax"} <= saved["provenance"]["versions"].keys()
    assert "6.0000 ± 2.0000" in result.row()["bits/dim"]


def test_times_of_an_evaluation_estimate_the_bound():
    """Those of training, except where their weight is another on purpose."""
    c = tiny.config().unlock()
    c.schedule = SCHEDULES.spec("linear_beta", t_min=1e-5)
    c.training.objective = "score_matching"
    for name, expected in (("debiased", "debiased"), ("debiased_released", "uniform")):
        c.time_density = TIME_DENSITIES.spec(name)
        model = tiny.model(c)
        assert isinstance(for_evaluation(model).time_density, TIME_DENSITIES.component(expected))
        assert isinstance(for_evaluation(model, 10).time_density, UniformDensity)


def test_a_model_without_this_bound_is_an_error():
    for spec in (SCHEDULES.spec("linear_beta"), SCHEDULES.spec("linear_beta", t_min=1e-5)):
        c = tiny.config().unlock()
        c.schedule, c.model.time_input, c.training.objective = spec, "t", "score_matching"
        if spec.t_min:
            VLB(for_evaluation(tiny.model(c)), tiny.mesh(), batch_size=8, draws=1)
            continue
        with pytest.raises(UserError, match="vlb needs discrete data and noise at time 0") as error:
            VLB(for_evaluation(tiny.model(c)), tiny.mesh(), batch_size=8, draws=1)
        assert "\n" not in str(error.value)


def test_evaluation_is_float32():
    """A model with a bfloat16 trunk is evaluated in float32: the same numbers as the float32 model's."""
    c = tiny.config()
    c.network.dtype = "bfloat16"
    assert for_evaluation(tiny.model(c)).network == for_evaluation(tiny.model(tiny.config())).network


@pytest.mark.parametrize(
    ("change", "name", "settings"),
    [
        ({"eval.timesteps": 7}, "vlb_T7", {"timesteps": 7, "time_density": None}),
        ({"model.timesteps": 5}, "vlb_T5", {"timesteps": 5, "time_density": None}),
        (
            {"model.timesteps": 5, "eval.timesteps": 0},
            "vlb_continuous",
            {"timesteps": 0, "time_density": "uniform"},
        ),
        ({"model.prior": "standard"}, "vlb_continuous", {"timesteps": 0, "time_density": "uniform"}),
    ],
)
def test_what_it_says_of_itself(change, name, settings):
    c = tiny.config()
    with c.unlocked():
        c.update_from_flattened_dict(change)
    one = VLB.from_config(c, tiny.model(c), tiny.mesh())
    assert one.settings() == settings
    assert one.file_name() == name
    assert one.description() == ("VLB, continuous" if name == "vlb_continuous" else f"VLB, T = {name[5:]}")
    assert one.model.process.prior_text == ("N(0, I)" if "model.prior" in change else "N(0, sigma_1^2 I)")
    assert one.draws == c.eval.draws
