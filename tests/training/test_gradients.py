"""The gradients of the training objectives against direct differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from jvdm import config as config_lib
from jvdm.core.errors import UserError
from jvdm.core.records import Batch, TimeGamma
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.model import objectives
from jvdm.training.gradients import OBJECTIVES, Bound, DenoisingScoreMatching, Variance, objective_gradient


@pytest.fixture(scope="module")
def setting():
    c = tiny.config()
    c.unlock()
    c.schedule = SCHEDULES.spec("monotone_network", gamma_min=-7.0, gamma_max=5.0, hidden=8)
    c.training.schedule_objective = "variance"
    model = tiny.model(c)
    params = tiny.perturbed(jax.jit(model.init)(jax.random.key(0)))
    b = 4
    batch = Batch(jnp.asarray(tiny.images(b)))
    keys = jax.random.split(jax.random.key(1), b)
    draws = jax.jit(model.draw)(keys, jnp.array([0.1, 0.35, 0.6, 0.85]))
    return model, params, draws, batch


def direct(model, params, draws, batch):
    """E[bound] for network and ends, E[l^2] for the interior, each by plain autodiff."""
    scale = model.units_per_nat

    def bound(params):
        return scale * jnp.mean(objectives.bound(model, params, draws, batch).total)

    def squared(params):
        return jnp.mean((scale * objectives.bound(model, params, draws, batch).diffusion) ** 2)

    grads, second = jax.jit(jax.grad(bound))(params), jax.jit(jax.grad(squared))(params)
    ends = model.schedule.endpoints
    schedule = {n: (grads if n in ends else second)["schedule"][n] for n in params["schedule"]}
    return {**grads, "schedule": schedule}


def test_variance_gradient_is_that_of_autodiff(setting):
    model, params, draws, batch = setting
    _, grads = jax.jit(lambda p: Variance().gradient(model)(p, draws, batch, None))(params)
    expected = direct(model, params, draws, batch)
    for path, a in jax.tree_util.tree_leaves_with_path(grads):
        b = expected
        for k in path:
            b = b[k.key]
        # Same sums in another order: float32 rounding, relative to the leaf's largest entry.
        np.testing.assert_allclose(
            a, b, rtol=2e-4, atol=2e-5 * float(jnp.abs(b).max()) + 1e-9, err_msg=str(path)
        )


def test_interior_differs_from_the_bound_gradient(setting):
    model, params, draws, batch = setting
    _, variance = jax.jit(lambda p: Variance().gradient(model)(p, draws, batch, None))(params)
    _, bound = jax.jit(lambda p: Bound().gradient(model)(p, draws, batch, None))(params)
    interior, same = variance["schedule"]["l3"]["kernel"], bound["schedule"]["l3"]["kernel"]
    assert float(jnp.abs(interior - same).max()) > 1e-3 * float(jnp.abs(interior).max())


def test_one_pass_through_the_denoiser(setting):
    """Both objectives call the network's convolutions equally often: one forward pass and one VJP."""
    model, params, draws, batch = setting

    def convolutions(objective):
        jaxpr = jax.make_jaxpr(lambda p: objective.gradient(model)(p, draws, batch, None)[1])(params)
        return str(jaxpr).count("convolve_3x3")

    assert convolutions(Variance()) == convolutions(Bound()) > 0


def test_time_gamma_given_is_time_gamma_computed(setting):
    model, params, draws, batch = setting
    at = jax.jit(lambda p: model.time_gamma(p, model.times(draws.u).t))(params)
    given, computed = jax.jit(
        lambda p: (
            objectives.bound(model, p, draws, batch, at=TimeGamma(*at)),
            objectives.bound(model, p, draws, batch),
        )
    )(params)
    # gamma is rounded once where it is given, and may be fused where it is computed.
    for name, term in given.parts().items():
        np.testing.assert_allclose(term, computed.parts()[name], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "timesteps", "message"),
    [("learned_scalar", 0, "monotone_network"), ("monotone_network", 100, "continuous time")],
)
def test_variance_needs_an_interior_and_continuous_time(name, timesteps, message):
    c = tiny.config(schedule_objective="variance")
    c.unlock()
    c.schedule = SCHEDULES.spec(name)
    c.model.timesteps = timesteps
    with pytest.raises(UserError, match=message):
        tiny.model(c)


def test_the_config_offers_the_registered_objectives():
    """The schema, which training cannot be imported into, against the table."""
    c = config_lib.default()
    of_schedule = set(OBJECTIVES.names(lambda objective: objective.of_schedule))
    assert set(config_lib.about("training.objective", c).choices) == set(OBJECTIVES.names()) - of_schedule
    assert set(config_lib.about("training.schedule_objective", c).choices) == of_schedule | {"bound"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Bound()),
        ({"training.second_order": 0.1}, Bound(second_order=0.1)),
        ({"training.schedule_objective": "variance"}, Variance()),
        (
            {"training.objective": "score_matching", "score_matching.truncation": 0.25},
            DenoisingScoreMatching(truncation=0.25),
        ),
        (
            {
                "training.objective": "score_matching",
                "score_matching.weighting": "unweighted",
                "score_matching.dequantize": False,
            },
            DenoisingScoreMatching(weighting="unweighted", dequantize=False),
        ),
    ],
)
def test_the_config_selects_the_objective(changes, expected, monkeypatch, unchecked):
    """By its name, with its options; the defaults are those of the config."""
    c = config_lib.default()
    with c.unlocked():
        c.update_from_flattened_dict(changes)
    monkeypatch.setattr(type(expected), "gradient", lambda self, model: (self, model))
    assert objective_gradient("the model", c) == (expected, "the model")
