"""The ODE likelihood of a network: independent of batch and devices, resumable, errors that are errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import known, oracles, tiny
from helpers.compose import with_process

from jvdm.core.errors import UserError
from jvdm.core.keys import named
from jvdm.core.records import Batch
from jvdm.diffusion.dequantization import DEQUANTIZATIONS
from jvdm.diffusion.divergence import TRACES
from jvdm.diffusion.schedules import LinearBeta
from jvdm.diffusion.solvers import SOLVERS
from jvdm.diffusion.transforms import Identity
from jvdm.evaluation import passes
from jvdm.evaluation.ode import ODE
from jvdm.evaluation.rows import independent_errors
from jvdm.evaluation.vlb import for_evaluation

N = 5


@pytest.fixture(scope="module")
def setting():
    model = dataclasses.replace(for_evaluation(tiny.model(tiny.config())), network=tiny.Small())
    return model, jax.jit(model.init)(jax.random.key(0))


def section(**options):
    """The config's section for a quick solve: 8 steps, so that few numbers are compared."""
    c = tiny.config().eval.ode
    c.unlock()
    c.solver = SOLVERS.spec("fixed", method="rk4", num_steps=8)
    for name, value in options.items():
        c[name] = value
    return c


def evaluate(setting, *, num_devices=1, seed=7, **options):
    model, params = setting
    estimator = ODE(model, tiny.mesh(num_devices), section(**options))
    return passes.run(estimator, params, tiny.images(N), jax.random.key(seed)), estimator


def in_double(setting, **options):
    """Rows by adaptive steps, which could depend on batch mates, in float64."""
    model, params = setting
    options["solver"] = SOLVERS.spec("adaptive", tolerance=1e-4)
    options["trace"] = TRACES.spec("hutchinson", distribution="gaussian")  # the other is float32
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
        return evaluate((model, params), **options)[0]


@pytest.fixture(scope="module")
def whole(setting):
    return in_double(setting, batch_size=N)


@pytest.mark.parametrize(("batch_size", "num_devices"), [(8, 8), pytest.param(2, 1, marks=pytest.mark.long)])
def test_independent_of_batch_and_devices(setting, whole, batch_size, num_devices):
    rows = in_double(setting, batch_size=batch_size, num_devices=num_devices)
    np.testing.assert_array_equal(rows["nfe"], whole["nfe"])
    assert len(np.unique(rows["nfe"])) > 1, "images that need as many steps as each other show nothing"
    for name in ODE.terms:
        # Matrix products of another height round differently, by 1e-16 of at most 12. In float32 that moves
        # the estimate of a step's error, with it the size of the step, and the result by up to 3e-4.
        np.testing.assert_allclose(rows[name], whole[name], rtol=0, atol=1e-11)


def test_terms_sum_to_the_bound(whole):
    bound = passes.bits_per_dim(whole, ODE.terms)
    assert bound.shape == (N, 1)
    assert np.all(np.abs(whole["importance"]) < 1e-12), "one sample has nothing to gain"
    assert np.all(whole["reconstruction"] == 0.0), "a truncated normal stays within its cell"
    # The images are noise of 17 levels: no bound can average less than their entropy.
    assert bound.mean() > np.log2(17)


def test_draws_and_samples_are_different_things(setting):
    """Three draws average three bounds; three samples make one bound, which is tighter than their mean."""
    exact = TRACES.spec("exact")
    draws, estimator = evaluate(setting, batch_size=N, draws=3, trace=exact)
    samples, _ = evaluate(setting, batch_size=N, importance_samples=3, trace=exact)
    one = passes.bits_per_dim(draws, estimator.terms)
    together = passes.bits_per_dim(samples, estimator.terms)
    assert one.shape == (N, 3)
    assert together.shape == (N, 1)
    assert np.all(one.std(axis=1) > 1e-3)
    assert np.all(samples["importance"] < 0.0 + np.log2(3) / 64)
    # Samples have keys of their own, so the comparison is one of means: sd of a draw 0.02, of 15 draws.
    assert together.mean() < one.mean() + 4 * one.std() / np.sqrt(15)


def test_shared_probes(setting):
    """One set of probes for all samples of a draw, or each its own: only the trace tells."""
    options = {"importance_samples": 2, "trace": TRACES.spec("hutchinson", probes=2), "batch_size": N}
    model, params = setting
    raw = {}
    for share in (True, False):
        estimator = ODE(model, tiny.mesh(), section(share_probes=share, **options))
        images = jnp.asarray(tiny.images(N))
        raw[share] = estimator._solve(
            estimator._sample, params, named(jax.random.key(7), "ode"), Batch(images), jnp.arange(N), 1, 2
        )
    np.testing.assert_allclose(raw[True].prior, raw[False].prior, rtol=1e-5)
    np.testing.assert_allclose(raw[True].trace[:, :, 0], raw[False].trace[:, :, 0], rtol=1, atol=100)
    assert np.abs(raw[True].trace[:, 0, 1] - raw[False].trace[:, 0, 1]).min() > 1e-3


DISCRETE = [name for name in DEQUANTIZATIONS.names() if DEQUANTIZATIONS.component(name).discrete]


@pytest.mark.parametrize("name", DISCRETE)
def test_every_dequantization(setting, name):
    rows, estimator = evaluate(setting, batch_size=N, dequantization=DEQUANTIZATIONS.spec(name))
    bound = passes.bits_per_dim(rows, estimator.terms)
    assert bound.mean() > np.log2(17), "the entropy of the images"
    assert bound.max() < 20.0
    assert (rows["reconstruction"].max() > 0) == (name == "variational")


@pytest.mark.long
def test_uniform_starts_where_it_should(setting):
    """At gamma = -3 of a schedule from -7: the path from there is shorter, and the number another."""
    spec = DEQUANTIZATIONS.spec
    # Beyond the schedule's end is its end.
    at_end, also, inside = (
        evaluate(setting, batch_size=N, dequantization=spec("uniform", start_gamma=gamma))[0]
        for gamma in (-20.0, -7.0, -3.0)
    )
    np.testing.assert_allclose(at_end["trace"], also["trace"], rtol=1e-5)
    assert np.abs(inside["trace"] - at_end["trace"]).min() > 1e-2


@pytest.mark.long
def test_solver_error(setting):
    """Few steps are off by what many steps say; twice many steps say the same of many."""
    model, params = setting
    images, key = tiny.images(N), jax.random.key(7)
    by_steps = {}
    for steps in (4, 32):
        estimator = ODE(
            model, tiny.mesh(), section(batch_size=2, solver=SOLVERS.spec("fixed", num_steps=steps))
        )
        by_steps[steps] = estimator.solver_error(params, images, key, num_images=3)
    assert by_steps[4].num_images == 3
    assert by_steps[4].finer == "rk4, 8 steps"
    assert abs(by_steps[4].bias) <= by_steps[4].rms
    assert by_steps[32].rms < 0.1 * by_steps[4].rms


def test_a_refined_solver_that_does_not_finish(setting):
    """Of adaptive solvers with as many steps as the first one needs."""
    model, params = setting
    images, key = tiny.images(2), jax.random.key(7)

    def solver_error(max_steps):
        solver = SOLVERS.spec("adaptive", tolerance=1e-3, max_steps=max_steps)
        estimator = ODE(model, tiny.mesh(), section(batch_size=2, solver=solver))
        return estimator.solver_error(params, images, key, num_images=2)

    with pytest.raises(UserError, match="refined ODE solver .* or raise config.eval.ode.solver.max_steps"):
        solver_error(3)
    assert np.isfinite(solver_error(10_000).bias)


def test_a_solver_that_does_not_finish_names_the_images(setting):
    solver = SOLVERS.spec("adaptive", tolerance=1e-5, max_steps=3)
    with pytest.raises(UserError, match=r"for 2 image\(s\): 0, 1; raise config.eval.ode.solver.max_steps"):
        evaluate(setting, batch_size=2, solver=solver)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"importance_samples": 2}, "probes=2 or more"),
        (
            {
                "importance_samples": 2,
                "trace": TRACES.spec("exact"),
                "dequantization": DEQUANTIZATIONS.spec("truncated_normal", analytic_entropy=True),
            },
            "analytic_entropy=False",
        ),
        ({"solver": SOLVERS.spec("fixed", method="rk5")}, "did you mean 'rk4'"),
        ({"batch_size": 0}, "config.eval.ode.batch_size is 0"),
        (
            {"dequantization": DEQUANTIZATIONS.spec("none")},
            "dequantization.name=none is not for discrete data",
        ),
    ],
)
def test_what_does_not_go_together(setting, options, message):
    with pytest.raises(UserError, match=message):
        ODE(setting[0], tiny.mesh(), section(**options))


def test_dequantizations_of_other_models(setting):
    """Continuous data are not spread at all, and a cell of no noise has no truncated normal."""
    model, _ = setting
    continuous = dataclasses.replace(model, num_levels=0, data_map=Identity())
    ODE(continuous, tiny.mesh(), section(dequantization=DEQUANTIZATIONS.spec("none")))
    with pytest.raises(UserError, match="uniform is not for continuous data: choose none"):
        ODE(continuous, tiny.mesh(), section(dequantization=DEQUANTIZATIONS.spec("uniform")))
    noise_free = with_process(model, schedule=LinearBeta(noise_path=model.path))
    ODE(noise_free, tiny.mesh(), section(dequantization=DEQUANTIZATIONS.spec("uniform")))
    with pytest.raises(UserError, match="truncated_normal needs noise at time 0") as error:
        ODE(noise_free, tiny.mesh(), section())
    assert "\n" not in str(error.value)


def test_continuous_data(setting, key):
    """A perfect model's number is the known one, in nats, from data that are no integers."""
    oracle = known.ORACLES["continuous_gaussian"]
    model = known.build("continuous_gaussian", schedule="linear_beta")
    x = oracle.sample(np.random.default_rng(0), N).astype(np.float32).reshape(N, *known.SHAPE)
    spec = DEQUANTIZATIONS.spec("none", start_gamma=-9.0)
    solver = SOLVERS.spec("adaptive")
    estimator = ODE(
        model, tiny.mesh(), section(dequantization=spec, trace=TRACES.spec("exact"), solver=solver)
    )
    rows = passes.run(estimator, known.EMPTY, x, key)
    nats = passes.bits_per_dim(rows, ODE.terms)[:, 0]
    alpha, sigma = oracles.variance_preserving(np.array([-9.0]))
    flat = alpha * x.reshape(N, -1).astype(float)
    exact = -oracle.log_density(flat, alpha, sigma) - known.NUM_DIMS * np.log(alpha)
    # The prior has the mean 0 instead of alpha_1 m, 0.007 * 0.7, times z_1 of up to 3.
    np.testing.assert_allclose(nats, exact, atol=0.02)


class Killed(Exception):
    """Stands for a machine that dies."""


def test_a_pass_goes_on_where_it_was_stopped(setting, tmp_path):
    """Stopped after two chunks, continued with another batch size: the numbers of an uninterrupted pass."""
    model, params = setting
    images, key = tiny.images(N), jax.random.key(7)
    settings = {"anything": 1}
    computed = []

    @functools.cache
    def estimator_of(batch_size):
        return ODE(model, tiny.mesh(), section(batch_size=batch_size))

    def run(batch_size, stop_after=None, settings=settings):
        estimator = estimator_of(batch_size)

        def on_chunk(done, values):
            computed.append(done)
            if done == stop_after:
                raise Killed

        store = passes.Store(tmp_path, "x", settings)
        with store.held():
            return passes.run(estimator, params, images, key, on_chunk=on_chunk, store=store)

    with pytest.raises(Killed):
        run(1, stop_after=2)
    assert computed == [1, 2]
    resumed = run(2)
    assert computed == [1, 2, 4, 5]
    straight = passes.run(estimator_of(2), params, images, key)
    for name in ODE.terms:
        np.testing.assert_allclose(resumed[name], straight[name], rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(run(2)["trace"], resumed["trace"])
    assert computed == [1, 2, 4, 5], "nothing was left to compute"
    (folder,) = tmp_path.iterdir()
    (folder / "000000001.npz").write_bytes(b"PK damaged")
    run(2)
    assert computed == [1, 2, 4, 5, 3, 5], "from the damaged chunk on"
    run(5, settings={"anything": 2})
    assert computed[-1:] == [5] and len(computed) == 7, "another evaluation starts anew"
    run(2)
    assert len(computed) == 7, "and leaves the first as it was"


def test_record(whole, setting):
    solver = SOLVERS.spec("adaptive", tolerance=1e-3, max_steps=100)
    estimator = ODE(setting[0], tiny.mesh(), section(solver=solver, check_images=0))
    given = {"params": setting[1], "examples": tiny.images(N), "key": jax.random.key(7)}
    result = estimator.result(whole, tiny.provenance(step=3), **given)
    assert estimator.file_name() == "ode_truncated_normal_K1_dopri5_0.001"
    assert result.description == "ODE, truncated normal, K = 1"
    for change, name in (
        ({"trace": TRACES.spec("exact")}, "_exact_trace"),
        ({"trace": TRACES.spec("hutchinson", probes=2, distribution="gaussian")}, "_2_probes_gaussian"),
        (
            {"dequantization": DEQUANTIZATIONS.spec("truncated_normal", analytic_entropy=True)},
            "_analytic_entropy",
        ),
    ):
        other = ODE(setting[0], tiny.mesh(), section(solver=solver, **change))
        assert other.file_name() == f"ode_truncated_normal_K1_dopri5_0.001{name}"
    assert result.ode.solver_error is None and result.slices is None
    settings = {
        name: value for name, value in dataclasses.asdict(result.ode).items() if name in estimator.settings()
    }
    assert settings == estimator.settings()
    assert result.monte_carlo_error is None
    assert result.ode.max_nfe >= result.ode.mean_nfe > 10
    assert sum(term.mean for term in result.terms.values()) == pytest.approx(result.value)
    assert result.prior == "N(0, sigma_1^2 I)"
    assert result.row()["NFE"] == f"{result.ode.mean_nfe:.0f}"
    values = np.array([[1.0, 2.0, 6.0]])
    assert independent_errors(values)[0] == pytest.approx(np.std([1, 2, 6], ddof=1) / np.sqrt(3))


@pytest.mark.long
def test_lower_precision_would_move_the_number(setting):
    """What float32 evaluation is for: rounding z to bfloat16 before the network moves bits/dim."""
    model, params = setting
    rounded = dataclasses.replace(model, network=tiny.Small(z_dtype="bfloat16"))
    full, _ = evaluate(setting, batch_size=N)
    again, _ = evaluate((rounded, params), batch_size=N)
    difference = np.abs(passes.bits_per_dim(full, ODE.terms) - passes.bits_per_dim(again, ODE.terms))
    assert difference.max() > 1e-3
