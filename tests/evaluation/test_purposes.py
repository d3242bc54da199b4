"""No two purposes draw the same bits: every key that training, estimators and samplers draw from."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import known, tiny, tiny_latents

from jvdm.core import keys, random, sharding
from jvdm.core.keys import root_key
from jvdm.core.records import Batch
from jvdm.diffusion.dequantization import DEQUANTIZATIONS
from jvdm.diffusion.divergence import TRACES
from jvdm.diffusion.samplers import SAMPLERS
from jvdm.diffusion.solvers import SOLVERS
from jvdm.evaluation import passes
from jvdm.evaluation.elbo import RandomSliceELBO, ScoreFlowBound
from jvdm.evaluation.ode import ODE
from jvdm.evaluation.sampling import Sampling, given_latents
from jvdm.evaluation.vlb import VLB, for_evaluation
from jvdm.training.step import init_state, make_train_step

N = 3


@pytest.fixture
def drawn(monkeypatch):
    """Calls a function and returns how often each (purpose, key) was drawn from while it ran."""

    def run(function):
        seen = collections.Counter()

        def recorded(key, purpose):
            key = keys.named(key, purpose)
            jax.debug.callback(
                lambda data: seen.update([(purpose, tuple(np.ravel(data).tolist()))]),
                jax.random.key_data(key),
            )
            return key

        with monkeypatch.context() as patch:
            patch.setattr(random, "named", recorded)
            function()
            jax.effects_barrier()
        return seen

    return run


def ode_section(**options):
    c = tiny.config().eval.ode.unlock()
    c.batch_size = N  # padding draws again what its image draws
    c.solver = SOLVERS.spec("fixed", method="heun", num_steps=1)
    for name, value in options.items():
        c[name] = value
    return c


def network():
    """A model of digits without a latent, its parameters, and images."""
    model = for_evaluation(tiny.model(tiny.light_config()))
    return model, tiny.perturbed(jax.jit(model.init)(jax.random.key(0)))


def train(c, num_steps=2):
    """The first steps of a run of the seed 0."""
    model, mesh, b = tiny.model(c), tiny.mesh(), c.training.batch_size
    root = root_key(0, "training")
    state = jax.jit(lambda key: init_state(model, c, key), out_shardings=sharding.replicated(mesh))(root)
    batches = Batch(np.stack([tiny.images(b)] * num_steps))
    batches = sharding.to_devices(batches, sharding.split(mesh, axis=1))
    jax.block_until_ready(make_train_step(model, c, mesh)(state, batches))


def evaluate(make, setting=None):
    """A pass with the key that evaluation has for the seed 0."""
    model, params = network() if setting is None else setting
    passes.run(make(model), params, tiny.images(N), root_key(0, "eval"))


def of_known_data(make):
    model = known.build("gaussian", "variance_preserving", schedule="linear_beta")
    images = np.zeros((N, *known.SHAPE), np.uint8)
    passes.run(make(model), known.EMPTY, images, root_key(0, "eval"))


def sample(name, **fields):
    model, params = network()
    section = tiny.config().sample.unlock()
    section.sampler = SAMPLERS.spec(name)
    section.update(pixels="sampled", **fields)
    sampling = Sampling(model, tiny.mesh(), section, batch_size=N)
    sampling(params, N, root_key(0, "sample"), num_steps=3)


def latents():
    model, params = tiny_latents.setting("gaussian")
    given_latents("posterior", model, params, lambda: tiny.images(N), root_key(0, "latents"))


SECTION = tiny.config().eval
ESTIMATORS = {
    "vlb": lambda: evaluate(lambda m: VLB(m, tiny.mesh(), batch_size=N, draws=2)),
    "vlb of a latent": lambda: evaluate(
        lambda m: VLB(for_evaluation(m), tiny.mesh(), batch_size=N, draws=2), tiny_latents.setting("gaussian")
    ),
    "elbo": lambda: of_known_data(
        lambda m: RandomSliceELBO(m, tiny.mesh(), SECTION.elbo, batch_size=N, draws=2)
    ),
    "scoreflow": lambda: of_known_data(
        lambda m: ScoreFlowBound(m, tiny.mesh(), SECTION.scoreflow, batch_size=N, draws=2)
    ),
    "ode": lambda: evaluate(
        lambda m: ODE(
            m,
            tiny.mesh(),
            ode_section(
                draws=2, importance_samples=2, share_probes=False, trace=TRACES.spec("hutchinson", probes=2)
            ),
        )
    ),
    "ode of uniform noise": lambda: evaluate(
        lambda m: ODE(m, tiny.mesh(), ode_section(dequantization=DEQUANTIZATIONS.spec("uniform")))
    ),
}
OTHERS = {
    "training": lambda: train(tiny.config()),
    "training of a latent": lambda: train(tiny_latents.config("gaussian")),
    "ancestral samples": lambda: sample("ancestral"),
    "samples by the ODE": lambda: sample("ode", log_likelihood=True),
    "posterior latents": latents,
}
EXPECTED = {
    "vlb": {"times", "eps", "eps_0", "probes", "dequantization"},
    "vlb of a latent": {"times", "eps", "eps_0", "probes", "dequantization", "latent"},
    "elbo": {"times", "eps", "eps_1", "probes", "dequantization"},
    "scoreflow": {"times", "eps", "eps_1", "eps_e", "dequantization"},
    "ode": {"probes", "dequantization"},
    "ode of uniform noise": {"probes", "dequantization"},
    "training": {"times", "eps", "eps_0", "probes", "dequantization", "mask"},
    "training of a latent": {"times", "eps", "eps_0", "probes", "dequantization", "latent"},
    "ancestral samples": {"z_1", "noise", "pixels"},
    "samples by the ODE": {"z_1", "pixels", "probes"},
    "posterior latents": {"latent"},
}
# Runs of one seed that draw the same on purpose: an estimator with other settings or for another model,
# another sampler, another model in training.
SHARED = [
    {"vlb", "vlb of a latent"},
    {"ode", "ode of uniform noise"},
    {"training", "training of a latent"},
    {"ancestral samples", "samples by the ODE"},
]


@pytest.mark.long
def test_every_draw_has_a_key_of_its_own(drawn):
    runs = {name: drawn(run) for name, run in {**ESTIMATORS, **OTHERS}.items()}
    for name, seen in runs.items():
        assert {purpose for purpose, _ in seen} == EXPECTED[name], name
        # None is drawn from twice: of two images, draws, samples, steps or layers. Masks are drawn once more
        # in the backward pass.
        again = [purpose for (purpose, _), times in seen.items() if times > 1 + (purpose == "mask")]
        assert not again, f"{name}: {sorted(set(again))} more than once"
        keys_of = collections.Counter(key for _, key in seen)
        assert max(keys_of.values()) == 1, f"{name}: two purposes have one key"
    for one, seen in runs.items():
        for two, others in runs.items():
            if one >= two or {one, two} in SHARED:
                continue
            shared = {key for _, key in seen} & {key for _, key in others}
            assert not shared, f"{one} and {two} share {len(shared)} keys"


def test_a_setting_keeps_the_draws_of_an_estimator(drawn):
    """So that a ladder of settings differs by the settings alone."""
    one, two = (drawn(ESTIMATORS[name]) for name in ("ode", "ode of uniform noise"))
    first = {key for purpose, key in two if purpose == "dequantization"}
    assert first <= {key for purpose, key in one if purpose == "dequantization"}


def test_samplers_of_one_seed_begin_at_one_z(drawn):
    one, two = (drawn(OTHERS[name]) for name in ("ancestral samples", "samples by the ODE"))
    assert {k for k in one if k[0] == "z_1"} == {k for k in two if k[0] == "z_1"}


def test_estimators_are_uncorrelated():
    """The errors of ELBO and ScoreFlow, which drew from the same keys, had a correlation of -0.38."""
    model = known.build("gaussian", "variance_preserving", schedule="linear_beta")
    images = np.full((2000, *known.SHAPE), 3, np.uint8)
    values = []
    for kind, section in ((RandomSliceELBO, SECTION.elbo), (ScoreFlowBound, SECTION.scoreflow)):
        estimator = kind(model, tiny.mesh(), section, batch_size=2000, draws=1)
        rows = passes.run(estimator, known.EMPTY, images, root_key(0, "eval"))
        values.append(np.sum([rows[name] for name in estimator.terms], axis=0)[:, 0])
    # Of 2000 pairs: four standard errors, on ranks, for the tails are heavy.
    ranks = [np.argsort(np.argsort(value)) for value in values]
    assert abs(np.corrcoef(ranks)[0, 1]) < 4.0 / np.sqrt(2000)


def test_the_noise_of_the_bound_is_not_the_elbos():
    """In JAX's generator split(k)[i] is fold_in(k, i): the bound's eps was the ELBO's dequantization."""
    key = root_key(0, "eval")
    a, b = (random.uniform(keys.named(key, name), "dequantization", (4096,)) for name in ("vlb", "elbo"))
    # Two of 4096 pairs of 23 bits are equal with probability 1e-7.
    assert jnp.sum(a == b) < 2
