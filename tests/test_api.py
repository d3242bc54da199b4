"""`import jvdm` as a library: the numbers of the command line, and mistakes in one line."""

import json
import logging
import pathlib
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny, untrained

import jvdm
from jvdm import config as config_lib
from jvdm import data
from jvdm.cli import commands
from jvdm.core.errors import UserError
from jvdm.core.records import Batch
from jvdm.diffusion.latents import LATENTS
from jvdm.diffusion.per_pixel_schedules import SCHEDULES
from jvdm.networks import NETWORKS
from jvdm.networks.encoders import ENCODERS
from jvdm.runs import restoring
from jvdm.runs.saved import complete_config
from jvdm.runs.workdir import Workdir
from jvdm.training.loop import Trainer


def config(of=tiny.light_config):
    c = of(num_steps=2, steps_per_dispatch=2).unlock()
    c.data.source = "digits"
    c.eval.num_images = 6
    c.eval.draws = 3
    c.eval.ode.check_images = 2
    c.eval.ode.solver.tolerance = 1e-3
    return c.lock()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run that has been through evaluation and sampling."""
    workdir = untrained.run(config(), pathlib.Path(tmp_path_factory.mktemp("api")))
    for mode in (commands.evaluate, commands.sample):
        mode(commands.Request(config(), workdir))
    return workdir


@pytest.fixture(scope="module")
def trained(workdir):
    return jvdm.load(workdir.path)


@pytest.fixture(scope="module")
def images():
    return data.load("digits").test[:6]


def record(workdir, estimator):
    (path,) = workdir.eval.glob(f"{estimator}*.json")
    return json.loads(path.read_text())


def test_the_package_itself_imports_nothing():
    program = "import sys, jvdm; dir(jvdm); assert not {'jax', 'numpy', 'flax'} & set(sys.modules); jvdm.x"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "AttributeError: module 'jvdm' has no attribute 'x'"


def test_every_name_is_there():
    assert set(jvdm.__all__) <= set(dir(jvdm))
    for name in jvdm.__all__:
        assert getattr(jvdm, name) is not None


def test_what_is_loaded(workdir, trained):
    assert (trained.step, trained.units, trained.model.num_levels) == (2, "bits/dim", tiny.LEVELS)
    assert trained.config == config()
    assert "step 2" in repr(trained) and "8x8x1 in bits/dim" in repr(trained)
    one = jvdm.load(str(workdir.checkpoints / "2"), devices=jax.devices()[:2])
    assert len(jax.tree.leaves(one.params)[0].sharding.device_set) == 2
    assert tiny.max_difference(one.params, trained.params) == 0


@pytest.mark.parametrize("estimator", ["vlb", "ode"])
def test_the_numbers_of_eval(workdir, trained, images, estimator):
    """The record of --mode=eval but for what the images are called."""
    scores = trained.bits_per_dim(images, estimator)
    expected, found = record(workdir, estimator), json.loads(scores.record.to_json())
    for each in (expected, found):
        for field in ("dataset", "split"):
            del each["provenance"][field]
    assert found == expected
    np.testing.assert_allclose(scores.values.mean(), expected["value"], rtol=1e-12)
    np.testing.assert_allclose(sum(scores.terms.values()), scores.values, rtol=1e-9)
    assert (scores.errors is None) == (estimator == "ode"), "three draws there, one here"


def test_an_example_set_has_its_name(trained):
    example_set = jvdm.load_examples("digits", "test", num_levels=0).first(2)
    scores = trained.bits_per_dim(example_set, draws=1, seed=3, settings={"batch_size": 2})
    origin = scores.record.provenance
    assert (origin.dataset, origin.split, origin.seed) == ("digits", "test[:2]", 3)
    assert scores.errors is None and scores.record.num_draws == 1


def test_nothing_is_compiled_twice(trained, images):
    first = trained.bits_per_dim(images, draws=1)
    programs = len(trained._built)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jvdm.evaluation.suite.build", None)
        again = trained.bits_per_dim(images[:3].astype(np.int64), draws=1)
    assert len(trained._built) == programs
    np.testing.assert_allclose(again.values, first.values[:3], rtol=1e-6)


def test_the_samples_of_sample(workdir, trained):
    with np.load(next(workdir.samples.glob("samples_5x8x8x1_*.npz"))) as saved:
        expected = saved["arr_0"]
    samples = trained.sample(5)
    np.testing.assert_array_equal(samples.images, expected)
    assert samples.log_likelihood is None and samples.latents is None
    np.testing.assert_array_equal(trained.sample(3).images, expected[:3])
    other = trained.sample(2, seed=1, steps=3).images
    assert (other.dtype, other.shape) == (np.uint8, (2, *tiny.SHAPE))
    assert (other != expected[:2]).any()


def test_samples_by_another_sampler(trained):
    samples = trained.sample(2, steps=2, settings={"sampler.clip": False, "sampler.name": "ddim"})
    assert samples.images.shape == (2, *tiny.SHAPE)


def test_score(trained, images):
    """-eps_hat / sigma, and the gradient of a Gaussian with the noise that was added."""
    x, eps = trained.encode(images), jax.random.normal(jax.random.key(0), images.shape)
    t = jnp.linspace(0.1, 0.9, len(images))
    alpha, sigma = trained.alpha_sigma(t)
    z = alpha * x + sigma * eps
    score = trained.score(z, t)
    model = trained.model
    context, _ = model.encode_latent(trained.params, Batch(jnp.asarray(images)))
    expected = -model.predict(trained.params, z, t, context).eps / sigma
    np.testing.assert_allclose(score, expected, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(trained.score(z[:1], 0.1), score[:1], rtol=1e-4, atol=1e-4)
    assert jax.jit(lambda z: trained.score(z, 0.5))(z).shape == z.shape


REFUSED = {
    "shape": (lambda m, x: m.bits_per_dim(x[0]), r"shape \[8, 8, 1\]; it must be \[N, 8, 8, 1\]"),
    "size": (lambda m, x: m.bits_per_dim(x[:, :4]), "the images are 4x8x1, the model's are 8x8x1"),
    "type": (lambda m, x: m.bits_per_dim(x / 16), "float64; they must be integers from 0 to 16"),
    "levels": (lambda m, x: m.bits_per_dim(x + 9), "the model's are 0 to 16"),
    "estimator": (lambda m, x: m.bits_per_dim(x, "vbl"), "did you mean 'vlb'"),
    "field": (
        lambda m, x: m.bits_per_dim(x, settings={"ode.solver.tolerence": 1}),
        r"did you mean config.eval.ode.solver.tolerance\? ",
    ),
    "value": (lambda m, x: m.bits_per_dim(x, draws="3"), "config.eval.draws is '3', not an int"),
    "range": (lambda m, x: m.bits_per_dim(x, draws=0), "config.eval.draws is 0: give 1 or more"),
    "sampler's likelihood": (
        lambda m, x: m.sample(1, settings={"log_likelihood": True}),
        "log_likelihood needs config.sample.sampler.name=ode",
    ),
    "seed": (lambda m, x: m.sample(1, seed=0.5), "seed is 0.5, not an int"),
    "argument": (
        lambda m, x: m.sample(1, settings={"latents": "posterior"}),
        "config.sample.latents is given by the arguments",
    ),
    "component": (lambda m, x: m.sample(1, settings={"sampler.name": "dim"}), "did you mean 'ddim'"),
    "no name": (lambda m, x: m.sample(1, settings={"sampler.name": ["ddim"]}), "not a str"),
    "section": (lambda m, x: m.sample(1, settings={"": 1}), r"unknown field config\.sample\.;"),
    "parts": (
        lambda m, x: m.bits_per_dim(x, "ode", settings={"ode.importance_samples": 2}),
        "config.eval.ode.trace.probes=2",
    ),
    "samples": (lambda m, x: m.sample(0), "config.sample.num_images is 0"),
    "sampler": (lambda m, x: m.sample(1, settings={"sampler.eta": 1}), "unknown field"),
    "z": (lambda m, x: m.score(x[..., 0], 0.5), r"z has shape \[6, 8, 8\]"),
    "t": (lambda m, x: m.score(x, jnp.ones(2)), r"t has shape \[2\]; give one time, or 6"),
    "latents": (lambda m, x: m.latents(x), "this model has no latent"),
    "latents of samples": (lambda m, x: m.sample(1, latents=np.ones((1, 6))), "this model has no latent"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(trained, images, name, unchecked):
    call, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as error:
        call(trained, images)
    assert "\n" not in str(error.value)


def test_what_cannot_be_loaded(workdir, tmp_path):
    with pytest.raises(UserError, match=f"path={tmp_path}: no checkpoint; give"):
        jvdm.load(tmp_path)
    wrong = config().unlock()
    wrong.network.hidden = 16
    with pytest.raises(UserError, match="belong to another model"):
        jvdm.load(workdir.path, config=wrong)
    moved = tmp_path / "checkpoints"
    moved.symlink_to(workdir.checkpoints)
    with pytest.raises(UserError, match="has no config.json; give jvdm.load"):
        jvdm.load(tmp_path)
    assert jvdm.load(tmp_path, config=config()).step == 2
    (tmp_path / "config.json").write_text('{"sead": 1}')
    with pytest.raises(UserError, match="config.json: unknown field of config: 'sead'; did you mean 'seed'"):
        jvdm.load(tmp_path)


def test_a_config_of_an_older_version(workdir, tmp_path):
    """Fields and options that it lacks are at their defaults; tuples come back from JSON's lists."""
    saved = json.loads(workdir.config.read_text())
    del saved["latent"], saved["eval"]["elbo"]
    saved["network"] = {**NETWORKS.spec("ddpm_unet").to_dict(), "multipliers": [1, 2]}
    del saved["network"]["remat"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    c = complete_config(tmp_path / "config.json")
    assert c.latent.name == "none" and c.eval.elbo == config_lib.default().eval.elbo
    assert NETWORKS.build(c.network).multipliers == (1, 2)


def test_images_that_are_not_at_hand(tmp_path):
    """A run has noted the shape of its images."""
    file = tmp_path / "set.npz"
    np.savez(file, train_images=tiny.images(16), test_images=tiny.images(8))
    c = config().unlock()
    c.data.source, c.data.num_levels = f"npz:{file}", tiny.LEVELS
    workdir = untrained.run(c.lock(), tmp_path / "run")
    file.unlink()
    assert jvdm.load(workdir.path).sample(1).images.shape == (1, *tiny.SHAPE)
    workdir.data.unlink()  # as before jvdm noted it
    with pytest.raises(UserError, match=r"set\.npz"):
        jvdm.load(workdir.path)


def test_continuous_data(tmp_path):
    """Points in the plane: nats, and floats in and out."""
    c = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "configs" / "swissroll.py"))["get_config"]()
    c.network.hidden, c.network.num_layers = 8, 1
    c.eval.batch_size = c.eval.ode.batch_size = c.sample.batch_size = 10
    trained = jvdm.load(untrained.run(c.lock(), tmp_path).path)
    points = trained.sample(4, steps=3).images
    assert points.dtype == np.float32
    scores = trained.bits_per_dim(points, "elbo", draws=2)
    assert (scores.record.units, scores.values.shape) == ("nats", (4,))
    assert np.isfinite(trained.score(points, 0.5)).all()
    with pytest.raises(UserError, match="not finite"):
        trained.bits_per_dim(np.full((1, 2), np.nan))


@pytest.mark.long
def test_a_model_with_a_latent(tmp_path, images):
    c = config(tiny.config).unlock()
    c.schedule = SCHEDULES.spec("pixel_monotone", gamma_min=-7.0, gamma_max=5.0, hidden=8)
    c.latent = LATENTS.spec("k_subset", size=6, k=2)
    c.encoder = ENCODERS.spec("cnn", channels=4, num_layers=2)
    trained = jvdm.load(untrained.run(c.lock(), tmp_path).path)
    latents = trained.latents(images)
    np.testing.assert_array_equal(latents.sum(axis=1), 2.0)
    samples = trained.sample(3, latents=latents[:2])
    np.testing.assert_array_equal(samples.latents, latents[[0, 1, 0]])
    alpha, _ = trained.alpha_sigma(0.5, latents=latents)
    assert alpha.shape == (6, *tiny.SHAPE)
    z = alpha * trained.encode(images)
    assert trained.score(z, 0.5, latents=latents).shape == z.shape
    with pytest.raises(UserError, match=r"give latents=\[6, 6\]"):
        trained.score(z, 0.5)
    with pytest.raises(UserError, match=r"shape \[1, 4\]; it must be \[L, 6\]"):
        trained.sample(1, latents=np.ones((1, 4)))


def test_checkpoints_are_only_read(workdir, trained):
    """Loading writes nothing."""
    before = sorted(workdir.path.rglob("*"))
    jvdm.load(restoring.find(workdir.path, None))
    assert sorted(workdir.path.rglob("*")) == before


def test_parts_of_a_data_set_have_their_own_noise(trained, images):
    """Every call alone begins at index 0: parts without an index have the same numbers."""
    whole = trained.bits_per_dim(images[:6], draws=2).values
    parts = [trained.bits_per_dim(images[i : i + 2], draws=2, first_index=i).values for i in (0, 2, 4)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=2e-6)
    alone = trained.bits_per_dim(images[2:4], draws=2)
    assert np.all(np.abs(alone.values - whole[2:4]) > 1e-4)
    assert alone.record.provenance.first_index == 0
    ode = trained.bits_per_dim(images[:3], "ode").values
    one = trained.bits_per_dim(images[2:3], "ode", first_index=2)
    # Each image has its own step sizes, at the solver's tolerance.
    np.testing.assert_allclose(one.values, ode[2:3], atol=1e-3)


def test_numpys_numbers_are_as_good_as_pythons(trained, images, unchecked):
    found = trained.bits_per_dim(images[2:4], draws=np.int64(2), first_index=np.int64(2)).values
    np.testing.assert_array_equal(found, trained.bits_per_dim(images[2:4], draws=2, first_index=2).values)


@pytest.mark.parametrize("index", [-1, 1.5, True, None, "3", np.float32(2), 2**31 - 2, 2**40])
def test_indices_that_are_refused(trained, images, unchecked, index):
    with pytest.raises(UserError, match="first_index is .*: give a whole number"):
        trained.bits_per_dim(images[:2], first_index=index)


def test_few_images_do_not_cost_a_batch(trained, images):
    """A batch more than four times as large becomes the next power of two, so that few sizes are compiled."""
    trained._built.clear()
    for n in (1, 2, 3, 4):
        trained.bits_per_dim(images[:n], draws=2)
    sizes = [estimator.batch_size for (estimator,) in trained._built.values()]
    assert sizes == [1, 2, 16]


def test_no_temporary_folder_is_needed(trained, images, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "TemporaryDirectory", None)
    monkeypatch.setattr(tempfile, "mkdtemp", None)
    trained.bits_per_dim(images[:2], draws=2)


def test_loading_says_nothing(workdir, caplog):
    jvdm.load(workdir.path)
    assert not [record for record in caplog.records if record.name == "absl"]


def test_raw_weights_and_an_average_of_the_initial_ones(tmp_path, images, caplog, monkeypatch):
    """After four steps at the rate 0.9999 the average is that of the initial weights: it is said."""
    c = tiny.light_config().unlock()
    c.optimizer.ema_rate = 0.9999
    c.optimizer.learning_rate = 0.01
    Trainer(c.lock(), Workdir(tmp_path), tiny.mesh()).run()
    monkeypatch.setattr(logging.getLogger("jvdm"), "propagate", True)
    averaged = jvdm.load(tmp_path)
    assert "still hold 100 % of the initial ones, after 4 steps" in caplog.text
    caplog.clear()
    raw = jvdm.load(tmp_path, weights="raw")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert tiny.max_difference(raw.params, averaged.params) > 1e-3
    numbers = {each.bits_per_dim(images[:2], draws=1).record.provenance.weights for each in (raw, averaged)}
    assert numbers == {"raw", "ema"}
    with pytest.raises(UserError, match="weights.*'mean'"):
        jvdm.load(tmp_path, weights="mean")
