"""A forward process from outside that learns its map of x: one class, and nothing of the package changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import learned_map, tiny
from helpers.compose import predicted

import jvdm
from jvdm import model as model_lib
from jvdm.cli import commands
from jvdm.core.errors import UserError
from jvdm.core.records import Batch, Context
from jvdm.diffusion import losses
from jvdm.diffusion.paths import VariancePreserving
from jvdm.diffusion.process import PROCESSES
from jvdm.diffusion.samplers import SAMPLERS
from jvdm.diffusion.schedules import FixedLinear
from jvdm.model import objectives
from jvdm.runs.workdir import Workdir

SHAPE, NUM = (2, 3, 1), 5


@pytest.fixture(scope="module", autouse=True)
def diffenc():
    learned_map.register()
    yield
    learned_map.forget()


def config(**training):
    c = tiny.light_config(**training).unlock()
    c.data.source = "digits"
    c.process = PROCESSES.spec(learned_map.NAME)
    return c.lock()


@pytest.fixture
def parts(x64):
    """The process, its parameters, and random arrays in float64."""
    schedule = FixedLinear(gamma_min=-6.0, gamma_max=4.0)
    process = learned_map.DiffEnc(
        schedule=schedule, path=VariancePreserving(), data_shape=SHAPE, prior_name="path"
    )
    params = process.init(jax.random.key(1), Context())
    params = jax.tree.map(lambda a: a.astype(jnp.float64), params)
    x, eps, eps_hat = (jax.random.normal(jax.random.key(i), (NUM, *SHAPE), jnp.float64) for i in range(3))
    return process, params, 0.3 * x, eps, eps_hat


@pytest.mark.parametrize("t", [0.1, 0.6, 0.95])
def test_the_integrand_is_the_limit_of_steps(parts, t):
    """T KL(posterior || reverse) tends to it as 1/T: what is left halves, and extrapolation removes it."""
    process, params, x, eps, eps_hat = parts
    at_t = process.at(params, jnp.full(NUM, t))
    encoded = process.encode(params, x, at_t)
    prediction = predicted(eps_hat, process.sample(encoded, eps, at_t), at_t)

    def steps(num):
        at_s = process.at(params, jnp.full(NUM, t - 1.0 / num))
        encoded_s = process.encode(params, x, at_s)
        return process.step_loss(params, encoded_s, encoded, eps, prediction, at_s, num)

    limit, coarse, fine = process.integrand(encoded, eps, prediction), steps(2000), steps(4000)
    np.testing.assert_allclose((coarse - limit) / (fine - limit), 2.0, rtol=0.02)
    # What is of second order in 1/T = 1/4000, times derivatives of gamma's range, 10.
    np.testing.assert_allclose(2.0 * fine - coarse, limit, rtol=(10 / 4000) ** 2 * 10)


def test_a_perfect_denoiser_pays_nothing(parts):
    """x_hat = (x_t - x_t') / (1 + sigma^2) makes the model's step the posterior, as steps become short."""
    process, params, x, eps, _ = parts
    at_t = process.at(params, jnp.full(NUM, 0.5))
    encoded = process.encode(params, x, at_t)
    x_hat = (encoded.value - encoded.tangent) / (1.0 + at_t.sigma**2)
    z_t = process.sample(encoded, eps, at_t)
    prediction = predicted((z_t - at_t.alpha * x_hat) / at_t.sigma, z_t, at_t)
    # Rounding of float64, squared, times alpha^2 / sigma^2.
    np.testing.assert_allclose(process.integrand(encoded, eps, prediction), 0.0, atol=1e-24)


def test_the_tangent_is_the_derivative_in_gamma(parts):
    process, params, x, *_ = parts
    h = 1e-4

    def at(t):
        return process.encode(params, x, process.at(params, jnp.full(NUM, t)))

    # gamma' is 10: a central difference over 2 h in t is one over 20 h in gamma.
    difference = (at(0.4 + h).value - at(0.4 - h).value) / (20.0 * h)
    np.testing.assert_allclose(at(0.4).tangent, difference, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("timesteps", [0, 10])
def test_the_bound_has_a_gradient_for_every_parameter(timesteps):
    c = config().unlock()
    c.model.timesteps = timesteps
    model = model_lib.build(c, SHAPE, tiny.LEVELS)
    params = tiny.perturbed(model.init(jax.random.key(0)))
    assert set(params) == {"network", "schedule", "forward_map"}
    keys = jax.random.split(jax.random.key(1), NUM)
    draws = model.draw(keys, jnp.linspace(0.05, 0.95, NUM))
    batch = Batch(jax.random.randint(jax.random.key(2), (NUM, *SHAPE), 0, tiny.LEVELS))

    def total(params):
        return jnp.mean(objectives.bound(model, params, draws, batch).total)

    value, grads = jax.jit(jax.value_and_grad(total))(params)
    assert jnp.isfinite(value)
    for leaf in jax.tree.leaves(grads["forward_map"]):
        assert np.isfinite(leaf).all() and np.any(leaf)


def test_the_discrete_bound_asks_the_process():
    """It is T KL(posterior || reverse) of this process, not that of the Gaussian one."""
    c = config().unlock()
    c.model.timesteps = 10
    model = model_lib.build(c, SHAPE, tiny.LEVELS)
    process = model.process
    params = jax.tree.map(jnp.asarray, tiny.perturbed(model.init(jax.random.key(0))))
    draws = model.draw(jax.random.split(jax.random.key(1), NUM), jnp.full(NUM, 0.65))
    batch = Batch(jax.random.randint(jax.random.key(2), (NUM, *SHAPE), 0, tiny.LEVELS))
    context, x = Context(), model.encode(batch.x)
    t = jnp.full(NUM, 0.7)
    at_s, at_t = model.at(params, t - 0.1, context), model.at(params, t, context)
    encoded_s, encoded_t = (process.encode(params, x, at, context) for at in (at_s, at_t))
    z_t = process.sample(encoded_t, draws.eps, at_t)
    posterior = process.posterior(z_t, encoded_s, encoded_t, at_s, at_t)
    reverse = process.reverse(params, z_t, model.predict(params, z_t, t, context), at_s, context)
    terms = objectives.bound(model, params, draws, batch)
    np.testing.assert_allclose(terms.diffusion, losses.diffusion_kl(10, posterior, reverse), rtol=1e-5)


@pytest.mark.long
def test_it_trains_evaluates_and_samples(tmp_path, capsys):
    c, workdir = config(num_steps=2), Workdir(tmp_path / "run")
    c.unlock().eval.estimators = "vlb"
    commands.train(commands.Request(c, workdir))
    commands.evaluate(commands.Request(c, workdir))
    commands.sample(commands.Request(c, workdir))
    capsys.readouterr()
    trained = jvdm.load(workdir.path)
    assert "forward_map" in trained.params
    assert np.isfinite(trained.bits_per_dim(np.zeros((2, *tiny.SHAPE), np.uint8), draws=2).values).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eval.estimators": "ode"}, "the estimator ode needs a process that has a probability-flow ODE"),
        ({"eval.estimators": "elbo"}, "the estimator elbo needs a process that is Markov"),
        ({"sample.sampler": "ode"}, "sampler.name=ode needs a process that has a probability-flow ODE"),
        ({"sample.sampler": "reverse_sde"}, "sampler.name=reverse_sde needs a process that has a prob"),
    ],
)
def test_what_it_lacks_is_refused(change, message):
    from jvdm.evaluation import suite
    from jvdm.evaluation.sampling import Sampling

    c = config().unlock()
    ((field, value),) = change.items()
    model = model_lib.build(c, tiny.SHAPE, tiny.LEVELS)
    if field == "eval.estimators":
        c.eval.estimators = value
        run = lambda: suite.build(c, model, tiny.mesh())  # noqa: E731
    else:
        c.sample.sampler = SAMPLERS.spec(value)
        run = lambda: Sampling(model, tiny.mesh(), c.sample, batch_size=4)  # noqa: E731
    with pytest.raises(UserError, match=rf"{message}.* \(gaussian\), not diffenc$"):
        run()


def test_a_process_without_steps_and_discrete_time():
    """NAME with the step loss taken away stands for a process whose posterior has no closed form."""
    component = PROCESSES.component(learned_map.NAME)
    c = config().unlock()
    c.model.timesteps = 10
    loss = component.step_loss
    try:
        component.step_loss = None
        with pytest.raises(
            UserError, match=r"timesteps=10 needs a process that has a bound in discrete time"
        ):
            model_lib.build(c, SHAPE, tiny.LEVELS)
    finally:
        component.step_loss = loss
