"""The evaluated bound: every image once, whatever the batch and the devices; errors that are errors."""

import json

import jax
import numpy as np
import pytest
import tiny

from jvdm.errors import UserError
from jvdm.evaluation.record import monte_carlo_error, standard_error, vlb_result
from jvdm.evaluation.vlb import Evaluator, ImageTerms, for_evaluation
from jvdm.records import LossTerms
from jvdm.time_samplers import jittered

N = 21


@pytest.fixture(scope="module")
def setting():
    model = tiny.model(tiny.config())
    return for_evaluation(model), tiny.perturbed(jax.jit(model.init)(jax.random.key(0)))


def evaluate(setting, *, batch_size, num_devices=1, draws=3, timesteps=None):
    model, params = setting
    model = for_evaluation(model, timesteps)
    evaluator = Evaluator(model, tiny.mesh(num_devices), batch_size=batch_size, draws=draws)
    return evaluator(params, tiny.images(N), jax.random.key(7))


@pytest.fixture(scope="module")
def whole(setting):
    return evaluate(setting, batch_size=N)


@pytest.mark.parametrize(("batch_size", "num_devices"), [(1, 1), (5, 1), (8, 8), (20, 8)])
def test_independent_of_batch_and_devices(setting, whole, batch_size, num_devices):
    result = evaluate(setting, batch_size=batch_size, num_devices=num_devices)
    assert result.gamma.shape == (N, 3)
    # The draws are the same numbers; matrix products of another height may round differently (float32).
    np.testing.assert_array_equal(result.gamma, whole.gamma)
    for a, b in zip(result.terms, whole.terms, strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-6, atol=1e-7)


def test_draws_of_an_image_are_stratified(setting, whole):
    """Three times per image: one in each third of [gamma_0, gamma_1], since the schedule is linear."""
    model, params = setting
    gamma_0, gamma_1 = np.asarray(jax.jit(model.gamma)(params, np.array([0.0, 1.0], np.float32)))
    position = (np.sort(whole.gamma, axis=1) - gamma_0) / (gamma_1 - gamma_0) * 3
    assert (np.floor(position) == np.arange(3)).all()
    assert position.std(axis=0).min() > 0.1


def test_discrete_times_exceed_continuous(setting, whole):
    """expm1 weights: the discrete bound of few steps is looser for a network that ignores the steps."""
    few = evaluate(setting, batch_size=N, timesteps=4)
    assert few.image_bpd.mean() > whole.image_bpd.mean()


def test_running_mean_is_reported(setting):
    model, params = setting
    seen = []
    evaluator = Evaluator(model, tiny.mesh(), batch_size=8, draws=1)
    result = evaluator(params, tiny.images(N), jax.random.key(0), lambda done, bpd: seen.append((done, bpd)))
    assert [done for done, _ in seen] == [8, 16, N]
    assert seen[-1][1] == pytest.approx(float(result.image_bpd.mean()), rel=1e-6)


def test_nothing_to_do_is_an_error(setting):
    with pytest.raises(UserError, match=r"config.eval.batch_size is 0"):
        evaluate(setting, batch_size=0)
    with pytest.raises(UserError, match="0 draws"):
        evaluate(setting, batch_size=4, draws=0)


def test_broken_weights_are_an_error(setting):
    model, params = setting
    evaluator = Evaluator(model, tiny.mesh(), batch_size=8, draws=1)
    broken = {**params, "schedule": {"b": np.float32(np.nan), "w": np.float32(1.0)}}
    with pytest.raises(UserError, match=r"image 0 \(and of 7 more in its batch\) is not finite"):
        evaluator(broken, tiny.images(N), jax.random.key(0))


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
    stated = monte_carlo_error(values, u)
    # The true deviation is known to 1.1 % (4000 repetitions). At 4 draws neighbours rise by 0.75 on average.
    assert 0.97 * true < stated < (3.0 if draws == 4 else 1.6 if draws == 16 else 1.1) * true


def test_monte_carlo_error_needs_two_draws():
    assert monte_carlo_error(np.ones((3, 1)), np.ones((3, 1))) is None


def test_record(tmp_path):
    """Numbers by hand: two images, two draws each."""
    one = np.array([[1.0, 3.0], [4.0, 4.0]], np.float32)
    terms = ImageTerms(LossTerms(one, 0 * one, one), np.array([[0.0, 1.0], [0.0, 1.0]], np.float32))
    result = vlb_result(
        terms,
        timesteps=0,
        num_levels=17,
        dataset="digits",
        dataset_version="-",
        dataset_hash="0",
        split="test",
        checkpoint="/c",
        step=5,
        weights="ema",
        seed=0,
    )
    assert result.bits_per_dim == pytest.approx(6.0)
    assert result.standard_error == pytest.approx(np.std([4.0, 8.0], ddof=1) / np.sqrt(2))
    # Image 1: (6 - 2)^2 / 2 = 8, image 2: 0; sqrt(8 / 2 draws) / 2 images.
    assert result.monte_carlo_error == pytest.approx(1.0)
    assert result.terms["reconstruction"].mean == pytest.approx(3.0)
    assert sum(term.mean for term in result.terms.values()) == pytest.approx(result.bits_per_dim)
    path = tmp_path / "eval" / "a.json"
    result.write(path)
    saved = json.loads(path.read_text())
    assert saved["bits_per_dim"] == pytest.approx(6.0)
    assert saved["matmul_precision"] == "float32, highest"
    assert {"jax", "flax", "jvdm"} <= saved["versions"].keys()
    assert "6.0000 ± 2.0000" in result.row()["bits/dim"]


def test_evaluation_is_float32():
    """A model with a bfloat16 trunk is evaluated in float32: the same numbers as the float32 model's."""
    c = tiny.config()
    c.network.dtype = "bfloat16"
    assert for_evaluation(tiny.model(c)).network == for_evaluation(tiny.model(tiny.config())).network
