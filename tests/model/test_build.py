"""Parts that do not go together are refused in one line that names the fields."""

import pytest
from helpers import tiny

from jvdm import model as model_lib
from jvdm.core.errors import UserError
from jvdm.diffusion.parameterizations import PARAMETERIZATIONS
from jvdm.diffusion.paths import PATHS
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.diffusion.times import TIME_DENSITIES
from jvdm.diffusion.transforms import DATA_MAPS
from jvdm.networks import NETWORKS


def score_based():
    """A score-based SDE on logits, which is as it should be."""
    c = tiny.config().unlock()
    c.data_map = DATA_MAPS.spec("logit")
    c.schedule = SCHEDULES.spec("linear_beta")
    c.parameterization = PARAMETERIZATIONS.spec("drift")
    c.model.time_input = "t"
    c.training.objective = "score_matching"
    return c


def build(c, num_levels=tiny.LEVELS, shape=tiny.SHAPE):
    return model_lib.build(c, shape, num_levels)


def test_a_score_based_model():
    model = build(score_based())
    assert not model.has_bound and model.units == "bits/dim"


def test_the_same_with_noise_at_time_0_has_a_bound():
    c = score_based()
    c.schedule.t_min = 1e-5
    c.training.objective = "bound"
    assert build(c).has_bound


def test_a_model_of_points():
    c = score_based()
    c.data_map = DATA_MAPS.spec("identity")
    c.network = NETWORKS.spec("mlp")
    model = build(c, 0, (1, 1, 2))
    assert not model.has_bound and (model.units, model.units_per_nat) == ("nats", 1.0)


def change(**fields):
    """Fields by dotted name, with "__" for the dots; a string for a component is its name."""
    specs = {
        "schedule": SCHEDULES,
        "path": PATHS,
        "time_density": TIME_DENSITIES,
        "data_map": DATA_MAPS,
    }

    def apply(c):
        for field, value in fields.items():
            if field in specs:
                c[field] = specs[field].spec(value)
            else:
                section, name = field.split("__")
                c[section][name] = value
        return c

    return apply


REFUSED = {
    "bound without noise": (change(training__objective="bound"), "objective=bound needs a finite gamma"),
    "gamma as input": (change(model__time_input="gamma"), "time_input=gamma needs a finite gamma"),
    "steps without noise": (change(model__timesteps=10), "timesteps=10"),
    "infinite weight": (change(score_matching__truncation=0.0), "truncation is 0"),
    "unknown weight": (change(score_matching__weighting="likelihod"), "did you mean 'likelihood'"),
    "unknown objective": (change(training__objective="score"), "config.training.objective"),
    "penalty of a score": (change(training__second_order=0.1), "second_order is a penalty"),
    "learned schedule": (
        change(schedule="learned_scalar"),
        "score_matching needs continuous time and a fixed",
    ),
    "times of another schedule": (change(time_density="importance"), "importance needs continuous time"),
    "times of another path": (
        change(schedule="fixed_linear", path="sub_variance_preserving", time_density="importance"),
        "variance_preserving or straight",
    ),
    "times whose weight is released": (
        change(time_density="debiased_released", training__objective="bound", schedule__t_min=1e-5),
        "debiased_released is for config.training.objective=score_matching",
    ),
    "map of continuous data": (change(data_map="identity"), "identity is not for discrete data"),
    "order of beta": (change(schedule__beta_min=30.0), "beta_min 30.0 and beta_max 20.0"),
    "logit's a": (change(data_map__a=0.5), "a is 0.5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    apply, message = REFUSED[name]
    c = apply(score_based())
    with pytest.raises(UserError) as error:
        build(c)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_debiased_times_need_a_fixed_schedule():
    c = tiny.config().unlock()
    c.time_density = TIME_DENSITIES.spec("debiased")
    with pytest.raises(UserError, match="debiased needs continuous time and a fixed schedule"):
        build(c)


def test_maps_and_bounds_of_continuous_data():
    c = score_based()
    with pytest.raises(UserError, match="logit is not for continuous data: choose identity"):
        build(c, 0, (1, 1, 2))
    c.data_map = DATA_MAPS.spec("identity")
    c.schedule.t_min = 1e-5
    c.training.objective = "bound"
    with pytest.raises(UserError, match="bound is for discrete data"):
        build(c, 0, (1, 1, 2))
