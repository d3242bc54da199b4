"""Evaluations of models with a latent: independent of batch and devices, their charge, and the record."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from helpers.known_latents import Enumerated
from helpers.tiny_latents import K, M, batch, draws_of, setting

from jvdm.core import formats
from jvdm.core.errors import UserError
from jvdm.core.keys import named
from jvdm.core.records import Batch, Conditioning, Context
from jvdm.diffusion import transforms
from jvdm.diffusion.latents import LATENTS
from jvdm.diffusion.solvers import SOLVERS
from jvdm.evaluation import passes
from jvdm.evaluation.elbo import RandomSliceELBO
from jvdm.evaluation.ode import ODE
from jvdm.evaluation.record import Surrogate
from jvdm.evaluation.record import result as result_of
from jvdm.evaluation.vlb import VLB, for_evaluation

N = 11
MODE = math.log(math.comb(M, K))


def run(estimator, params):
    return passes.run(estimator, params, tiny.images(N), jax.random.key(7))


def vlb(name, *, batch_size=N, num_devices=1):
    model, params = setting(name)
    estimator = VLB(for_evaluation(model), tiny.mesh(num_devices), batch_size=batch_size, draws=2)
    return estimator, run(estimator, params)


@functools.cache
def ode(name, *, num_samples=1, batch_size=N, num_devices=1):
    model, params = setting(name)
    section = tiny.config().eval.ode
    section.unlock()
    section.solver = SOLVERS.spec("fixed", method="rk4", num_steps=4)
    section.trace.probes, section.importance_samples, section.batch_size = 2, num_samples, batch_size
    estimator = ODE(for_evaluation(model), tiny.mesh(num_devices), section)
    return estimator, run(estimator, params)


@functools.cache
def charges(name):
    """[N] KL of the images' latents, bits/dim."""
    model, params = setting(name)
    _, cost = jax.jit(model.encode_latent)(params, batch(b=N), draws_of(model, b=N).latent)
    return model.units_per_nat * np.asarray(cost.charge)


@pytest.mark.parametrize("name", ["k_subset", "k_hot_surrogate"])
def test_the_variational_bound_is_independent_of_batch_and_devices(name):
    model, _ = setting(name)
    (estimator, one), (_, other) = vlb(name), vlb(name, batch_size=8, num_devices=8)
    assert estimator.terms == (*VLB.terms, "latent")
    assert set(one) == {*estimator.terms, "gamma", *([] if model.latent.is_bound else ["surrogate"])}
    for row in one:
        # The same draws; matrix products of another height may round differently (float32).
        np.testing.assert_allclose(one[row], other[row], rtol=1e-5, atol=1e-5, err_msg=row)
    # Every draw is charged what its image is, in expectation over the latent.
    np.testing.assert_array_equal(one["latent"][:, 0], one["latent"][:, 1])
    if model.latent.is_bound:
        np.testing.assert_allclose(one["latent"][:, 0], charges(name), rtol=1e-4)
    else:
        np.testing.assert_allclose(one["latent"], model.units_per_nat * MODE, rtol=1e-6)
        np.testing.assert_allclose(one["surrogate"][:, 0], charges(name), rtol=1e-4)


@pytest.mark.long
def test_the_ode_is_independent_of_batch_and_devices():
    (estimator, one), (_, other) = ode("k_subset"), ode("k_subset", batch_size=8, num_devices=8)
    assert estimator.terms == (*ODE.terms, "latent")
    for row in (*estimator.terms, "nfe"):
        # As of the variational bound, magnified by the solve.
        np.testing.assert_allclose(one[row], other[row], rtol=2e-5, atol=2e-5, err_msg=row)
    np.testing.assert_allclose(one["latent"][:, 0], charges("k_subset"), rtol=1e-4)


def test_several_samples_are_charged_one_by_one():
    """log q - log p of a subset each, by enumeration, which no KL is."""
    estimator, rows = ode("k_subset", num_samples=2)
    model, params = setting("k_subset")
    images = jnp.asarray(tiny.images(N))
    samples = estimator._solve(
        estimator._sample,
        params,
        named(jax.random.key(7), "ode"),
        Batch(images),
        jnp.arange(N, dtype=jnp.int32),
        1,
        2,
    )
    f = transforms.encode(images, tiny.LEVELS)
    logits = jax.jit(model.encoder.apply)(
        {"params": params["encoder"]}, f, Context(Conditioning(augmented=jnp.zeros(N)))
    )
    log_ratios = Enumerated(np.asarray(logits, np.float64), K).log_q + MODE
    off = np.abs(samples.latent[:, 0, :, None] - log_ratios[:, None]).min(axis=-1)
    # Sums of six logits of up to 10 in float32.
    assert off.max() < 1e-4
    assert np.abs(charges("k_subset")[:, None] / model.units_per_nat - log_ratios).min() > 1e-3
    assert np.any(samples.latent[:, 0, 0] != samples.latent[:, 0, 1])
    # The row is their weighted mean.
    each = model.units_per_nat * np.asarray(samples.latent[:, 0], np.float64)
    assert np.all(rows["latent"][:, 0] > each.min(axis=1) - 1e-6)
    assert np.all(rows["latent"][:, 0] < each.max(axis=1) + 1e-6)
    assert np.all(np.isfinite(passes.bits_per_dim(rows, estimator.terms)))


@pytest.mark.long
def test_the_surrogates_charge_is_that_of_the_mode_for_any_number_of_samples():
    _, rows = ode("k_hot_surrogate", num_samples=2)
    model, _ = setting("k_hot_surrogate")
    np.testing.assert_allclose(rows["latent"], model.units_per_nat * MODE, rtol=1e-6)
    np.testing.assert_allclose(rows["surrogate"][:, 0], charges("k_hot_surrogate"), rtol=1e-4)


def test_estimators_that_do_not_know_latents():
    model, _ = setting("k_subset")
    c = tiny.config().eval
    with pytest.raises(UserError, match="elbo is not for models with a latent: choose vlb or ode"):
        RandomSliceELBO(for_evaluation(model), tiny.mesh(), c.elbo, batch_size=8, draws=1)
    section = tiny.config().eval.ode
    section.unlock()
    section.dequantization = {"name": "uniform", "start_gamma": -3.0}
    with pytest.raises(UserError, match="another time for every pixel: give at most -7.0") as error:
        ODE(for_evaluation(model), tiny.mesh(), section)
    assert "\n" not in str(error.value)


# The record, of rows made up.


@dataclasses.dataclass
class Estimator:
    """What a record looks at."""

    latent: object
    name: str = "vlb"
    terms: tuple[str, ...] = (*VLB.terms, "latent")

    def description(self):
        return "VLB, continuous"


def latent_of(name):
    return setting(name)[0].latent


def rows(surrogate=None):
    """Two images of two draws: 6 and 8 bits/dim with the latent's 1."""
    one = np.array([[1.0, 3.0], [3.0, 3.0]], np.float32)
    gamma = np.array([[0.0, 1.0], [0.0, 1.0]], np.float32)
    made = {
        "reconstruction": one,
        "prior": one,
        "diffusion": 0 * one + 1,
        "latent": 0 * one + 1,
        "gamma": gamma,
    }
    return made if surrogate is None else {**made, "surrogate": np.full((2, 2), surrogate, np.float32)}


def record(name, made):
    return result_of(Estimator(latent_of(name)), made, tiny.provenance(), prior="N(0, I)")


@pytest.mark.parametrize("name", ["gaussian", "gumbel", "k_subset"])
def test_a_record_of_a_bound(name):
    result = record(name, rows())
    assert result.value == pytest.approx(7.0)
    assert result.terms["latent"].mean == 1.0 and result.is_bound
    assert result.latent_charge == "exact KL(q || p)"
    assert result.surrogate is None and json.loads(result.to_json())["surrogate"] is None
    assert "as released" not in result.row()
    assert "latent 1.0000" in result.terms_text()


def test_without_a_latent_there_is_no_charge():
    made = rows()
    del made["latent"]
    estimator = Estimator(None, terms=VLB.terms)
    result = result_of(estimator, made, tiny.provenance(), prior="N(0, I)")
    assert result.latent_charge == "none" and result.value == pytest.approx(6.0)


def test_a_record_of_the_surrogate(tmp_path):
    """The number is the bound; beside it, what is released, and why it is another."""
    result = record("k_hot_surrogate", rows(surrogate=0.25))
    assert result.value == pytest.approx(7.0)
    assert (
        result.latent_charge
        == f"{MODE:.4f} nats by the prior, of the likeliest latent, which the image fixes"
    )
    assert isinstance(result.surrogate, Surrogate)
    assert result.surrogate.value == pytest.approx(6.25) and result.surrogate.charge == 0.25
    assert result.row()["as released"] == "6.2500 (no bound)"
    assert result.row()["bits/dim"].startswith("7.0")
    path = tmp_path / "a.json"
    result.write(path)
    saved = json.loads(path.read_text())
    assert saved == {"format": formats.RECORD, **json.loads(json.dumps(dataclasses.asdict(result)))}
    assert saved["surrogate"] == {
        "value": 6.25,
        "charge": 0.25,
        "difference": "charges the KL of one class of m, at most ln m, for k of m, which cost ln C(m, k)",
    }
    assert saved["value"] == 7.0 and saved["is_bound"] is True
    assert Surrogate(**saved["surrogate"]) == result.surrogate


@pytest.mark.parametrize(
    ("num_samples", "charge"), [(1, "exact KL(q || p)"), (2, "log q - log p of each sample")]
)
def test_the_record_of_an_ode(num_samples, charge):
    estimator, made = ode("k_subset", num_samples=num_samples)
    estimator.config.check_images = 0
    given = {"params": {}, "examples": tiny.images(1), "key": jax.random.key(0)}
    result = estimator.result(made, tiny.provenance(), **given)
    assert result.latent_charge == charge
    assert sum(term.mean for term in result.terms.values()) == pytest.approx(result.value)
    assert result.terms["latent"].mean == pytest.approx(made["latent"].mean())
    assert result.surrogate is None


def test_every_latent_says_whether_it_is_a_bound():
    names = [name for name in LATENTS.names() if name != "none"]
    assert [name for name in names if not LATENTS.component(name).is_bound] == ["k_hot_surrogate"]
