"""What the data know of each example reaches the network and the encoder, in training and in every estimator.

A source from outside gives labels, and a network from outside adds a learned shift for each: nothing of the
package changes for it.
"""

import dataclasses
import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import tiny

import jvdm
from jvdm import data
from jvdm import model as model_lib
from jvdm.cli import commands
from jvdm.core.errors import UserError
from jvdm.core.keys import indexed, named, root_key
from jvdm.core.records import Batch, Conditioning, take
from jvdm.data import sources
from jvdm.evaluation import passes, suite
from jvdm.evaluation.vlb import for_evaluation
from jvdm.model import objectives
from jvdm.networks import NETWORKS
from jvdm.runs.workdir import Workdir

N, CLASSES = 6, 3
SOURCE, NETWORK = "labelled", "class_shift"


def labelled():
    digits = data.load("digits")
    rng = np.random.default_rng(0)
    train, test = digits.train[:64], digits.test[:N]
    return data.Dataset(
        name=SOURCE,
        version="1",
        num_levels=17,
        train=train,
        test=test,
        train_conditioning=Conditioning(labels=rng.integers(0, CLASSES, len(train))),
        test_conditioning=Conditioning(labels=np.arange(len(test)) % CLASSES),
    )


class ClassShift(nn.Module):
    """eps_hat = z plus a number for each class; one for all where no labels are given."""

    dtype: str = "float32"
    data_rank: ClassVar[int | None] = None

    @nn.compact
    def __call__(self, z, time, context, *, train=False):
        shift = self.param("shift", nn.initializers.normal(1.0), (CLASSES,))
        labels = context.conditioning.labels
        known = jnp.zeros(len(z)) if labels is None else shift[labels]
        return z + known.reshape(-1, *(1,) * (z.ndim - 1))


@pytest.fixture(scope="module", autouse=True)
def outside():
    data.register(SOURCE, "digits with made-up labels")(labelled)
    NETWORKS.register(NETWORK)(ClassShift)
    yield
    del sources._REGISTERED[SOURCE], NETWORKS._components[NETWORK]


def config(**training):
    c = tiny.config(**training).unlock()
    c.data.source = SOURCE
    c.network = NETWORKS.spec(NETWORK)
    c.eval.ode.check_images = 2
    c.eval.ode.solver.tolerance = 1e-3
    return c.lock()


def test_training_batches_have_the_labels_of_their_images():
    c, dataset = config(), labelled()
    none = data.AUGMENTATIONS.build(c.augmentation)
    batches = data.TrainBatches(dataset.examples("train"), batch_size=8, seed=0, augmentation=none)
    batch, positions = batches[3], batches.positions(3)
    np.testing.assert_array_equal(batch.x, dataset.train[positions])
    np.testing.assert_array_equal(batch.conditioning.labels, dataset.train_conditioning.labels[positions])
    assert batch.conditioning.augmented is None


def test_an_augmentation_keeps_the_labels():
    dataset = labelled()
    vdm = data.AUGMENTATIONS.build(data.AUGMENTATIONS.spec("vdm"))
    examples = dataset.examples("train")
    batches = data.TrainBatches(examples, batch_size=8, seed=0, augmentation=vdm)
    known = batches[0].conditioning
    np.testing.assert_array_equal(known.labels, dataset.train_conditioning.labels[batches.positions(0)])
    assert known.augmented.shape == (8,)


@pytest.mark.parametrize("name", ["vlb", "ode", "elbo", "scoreflow"])
def test_every_estimator_sees_the_labels(name):
    """Across batches, with padding: as if each class were evaluated by a model that knows its shift alone."""
    c = config().unlock()
    c.eval.estimators = name
    c.eval.batch_size = c.eval.ode.batch_size = 4
    c.schedule = c.schedule if name != "scoreflow" else jvdm.diffusion.SCHEDULES.spec("fixed_linear")
    model = model_lib.build(c, tiny.SHAPE, 17)
    params = jax.device_get(model.init(jax.random.key(0)))
    examples, key = labelled().examples("test"), jax.random.key(5)
    (estimator,) = suite.build(c, model, tiny.mesh())
    rows = passes.run(estimator, params, examples, key)
    shift = params["network"]["shift"]
    for label in range(CLASSES):
        alone = {**params, "network": {"shift": np.full_like(shift, shift[label])}}
        of_class = passes.run(estimator, alone, examples, key)
        for term in estimator.terms:
            np.testing.assert_array_equal(rows[term][label::CLASSES], of_class[term][label::CLASSES])


def test_what_the_source_says_of_augmentation_is_kept():
    """Where the augmentation itself says nothing, as `flip` does."""
    dataset = labelled()
    known = Conditioning(augmented=np.ones(len(dataset.train), np.float32))
    flip = data.AUGMENTATIONS.build(data.AUGMENTATIONS.spec("flip"))
    batches = data.TrainBatches(Batch(dataset.train, known), batch_size=4, seed=0, augmentation=flip)
    np.testing.assert_array_equal(batches[0].conditioning.augmented, np.ones(4))


def test_the_bound_of_other_labels_is_another():
    c = config()
    model = for_evaluation(model_lib.build(c, tiny.SHAPE, 17))
    params = model.init(jax.random.key(0))
    examples = labelled().examples("test")
    draws = model.draw(indexed(jax.random.key(1), jnp.arange(N)), jnp.linspace(0.1, 0.9, N))
    others = Batch(examples.x, Conditioning(labels=(examples.conditioning.labels + 1) % CLASSES))
    batches = jax.tree.map(jnp.asarray, (examples, others))
    one, other = (objectives.bound(model, params, draws, batch).diffusion for batch in batches)
    assert np.all(np.asarray(one) != np.asarray(other))


def test_labels_are_part_of_the_fingerprint():
    dataset = labelled()
    example_set = data.of_dataset(dataset, "test")
    without = data.ExampleSet(name="x", version="-", split="test", images=dataset.test)
    assert example_set.fingerprint == dataset.fingerprint("test") != without.fingerprint
    first = example_set.first(4)
    np.testing.assert_array_equal(first.conditioning.labels, [0, 1, 2, 0])
    assert first.fingerprint != example_set.fingerprint


def test_taking_some_examples():
    examples = labelled().examples("test")
    some = take(examples, np.array([4, 0]))
    np.testing.assert_array_equal(some.x, examples.x[[4, 0]])
    np.testing.assert_array_equal(some.conditioning.labels, [1, 0])


def test_it_trains_and_evaluates(tmp_path):
    """The shift of every class has been trained, and the library's number is the command's."""
    c, workdir = config(num_steps=4), Workdir(tmp_path / "run")
    c.unlock().eval.estimators = "vlb"
    commands.train(commands.Request(c, workdir))
    commands.evaluate(commands.Request(c, workdir))
    trained = jvdm.load(workdir.path)
    start = model_lib.build(c, tiny.SHAPE, 17).init(named(root_key(c.seed, "training"), "init"))
    assert np.all(trained.params["network"]["shift"] != start["network"]["shift"])
    scores = trained.bits_per_dim(jvdm.load_examples(SOURCE, "test", num_levels=0), draws=c.eval.draws)
    plain = trained.bits_per_dim(labelled().test, draws=c.eval.draws)
    (record,) = workdir.eval.glob("vlb*.json")
    assert json.loads(record.read_text())["value"] == scores.record.value
    assert np.all(scores.values != plain.values)
    wrong = dataclasses.replace(
        jvdm.load_examples(SOURCE, "test", num_levels=0), conditioning=Conditioning(labels=np.zeros(3, int))
    )
    with pytest.raises(UserError, match=r"labelled: labels is of \[3\]; it must be an array of \[6\]"):
        trained.bits_per_dim(wrong)
