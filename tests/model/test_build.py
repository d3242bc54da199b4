"""Parts that do not go together are refused in one line that names the fields, whatever they are called."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import pytest
from flax import linen as nn
from helpers import tiny

from jvdm import config as config_lib
from jvdm import model as model_lib
from jvdm.core.errors import UserError
from jvdm.diffusion.latents import LATENTS
from jvdm.diffusion.parameterizations import PARAMETERIZATIONS
from jvdm.diffusion.paths import PATHS
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.diffusion.times import TIME_DENSITIES
from jvdm.diffusion.transforms import DATA_MAPS
from jvdm.networks import ENCODERS, NETWORKS


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


@pytest.mark.parametrize("name", ["vdm_unet", "ddpm_unet"])
@pytest.mark.parametrize("shape", [(5,), (4, 2), (4, 4, 2, 1)])
def test_a_network_of_images_and_other_data(name, shape):
    c = score_based()
    c.network = NETWORKS.spec(name)
    message = rf"config\.network\.name={name} takes data of rank 3, not of shape .*: choose .* \(mlp\)$"
    with pytest.raises(UserError, match=message):
        build(c, shape=shape)
    c.network = NETWORKS.spec("mlp")
    assert build(c, shape=shape).data_shape == shape


@pytest.mark.parametrize("name", ["unet", "cnn"])
@pytest.mark.parametrize("shape", [(), (5,), (3, 2, 2, 2)])
def test_an_encoder_of_images_and_other_data(name, shape):
    c = tiny.config().unlock()
    c.network = NETWORKS.spec("mlp")
    c.latent = LATENTS.spec("k_subset")
    c.encoder = ENCODERS.spec(name)
    with pytest.raises(
        UserError,
        match=rf"encoder\.name={name} takes data of rank 3, not of shape .*: choose one that takes it$",
    ):
        build(c, shape=shape)


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
        "straight or variance_preserving",
    ),
    "times whose weight is released": (
        change(time_density="debiased_released", training__objective="bound", schedule__t_min=1e-5),
        "debiased_released is for config.training.objective=score_matching",
    ),
    "map of continuous data": (change(data_map="identity"), "identity is not for discrete data"),
    "order of beta": (change(schedule__beta_min=30.0), "beta_min 30.0 is above beta_max 20.0"),
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


@pytest.fixture
def outside(monkeypatch):
    """Components that know of what jvdm's own can do, under names that jvdm does not know."""
    for registry in config_lib.COMPONENTS.values():
        monkeypatch.setattr(registry, "_components", dict(registry._components))

    @SCHEDULES.register("my_line")
    class Line(nn.Module):
        """Linear in t, and fixed."""

        gamma_min: float = -6.0
        gamma_max: float = 4.0
        endpoints: ClassVar[tuple[str, ...]] = ()
        has_interior: ClassVar[bool] = False
        is_linear: ClassVar[bool] = True

        def __call__(self, t, context=None):
            return self.gamma_min + (self.gamma_max - self.gamma_min) * t

        def inverse(self, gamma):
            return (gamma - self.gamma_min) / (self.gamma_max - self.gamma_min)

    @SCHEDULES.register("my_curve")
    class Curve(nn.Module):
        """Fixed, and says nothing more."""

        gamma_min: float = -6.0
        gamma_max: float = 4.0
        endpoints: ClassVar[tuple[str, ...]] = ()
        has_interior: ClassVar[bool] = False

        def __call__(self, t, context=None):
            return self.gamma_min + (self.gamma_max - self.gamma_min) * t**2

    @SCHEDULES.register("my_pixels")
    class Pixels(Line):
        """Of every pixel."""

        has_interior: ClassVar[bool] = True
        per_pixel: ClassVar[bool] = True

    @PATHS.register("my_path")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Path(PATHS.component("straight")):
        """With a cumulative of alpha^2."""

    @PATHS.register("my_plain_path")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class PlainPath(PATHS.component("sub_variance_preserving")):
        """Without it."""

    @TIME_DENSITIES.register("my_density")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Density(TIME_DENSITIES.component("importance")):
        """Needs both."""

    @NETWORKS.register("my_network")
    class Network(nn.Module):
        """Takes a time of every pixel."""

        dtype: str = "float32"
        takes_pixel_time: ClassVar[bool] = True

        @nn.compact
        def __call__(self, z, time, conditioning, *, train=False):
            return nn.Dense(z.shape[-1])(z + time)

    @NETWORKS.register("my_plain_network")
    class PlainNetwork(nn.Module):
        """Takes one time for each image."""

        dtype: str = "float32"

        @nn.compact
        def __call__(self, z, time, conditioning, *, train=False):
            return nn.Dense(z.shape[-1])(z + time[:, None, None, None])

    @DATA_MAPS.register("my_map")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Half(DATA_MAPS.component("scaling")):
        """Half as wide as `scaling`."""

        range: ClassVar[tuple[float, float]] = (-0.5, 0.5)

        def __call__(self, u):
            return super().__call__(u)._replace(y=u - 0.5, log_slope=jnp.zeros_like(u))

        def inverse(self, y):
            return y + 0.5

        def difference(self, levels, others, num_levels):
            return 0.5 * super().difference(levels, others, num_levels)


def choose(**names):
    c = tiny.config().unlock()
    for section, name in names.items():
        c[section] = config_lib.COMPONENTS[section].spec(name)
    return c


@pytest.mark.usefixtures("outside")
class TestComponentsFromOutside:
    def test_a_schedule_and_a_path_with_what_importance_needs(self):
        build(choose(schedule="my_line", path="my_path", time_density="importance"))
        build(choose(schedule="my_line", path="my_path", time_density="my_density"))

    def test_a_schedule_with_an_inverse(self):
        build(choose(schedule="my_line", time_density="debiased"))

    def test_a_fixed_schedule_in_score_matching_and_second_order(self):
        c = choose(schedule="my_curve")
        c.training.second_order = 0.1
        build(c)
        c.training.second_order = 0.0
        c.training.objective = "score_matching"
        build(c)

    def test_a_schedule_and_a_network_of_every_pixel(self):
        c = choose(schedule="my_pixels", network="my_network", latent="k_subset")
        c.model.time_input = "pixel_gamma"
        model = build(c)
        assert model.per_pixel and build(choose(network="my_plain_network")).network.dtype == "float32"

    def test_a_map_with_equal_cells(self):
        build(choose(data_map="my_map"))

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (
                {"schedule": "my_curve", "time_density": "importance"},
                "a fixed schedule that is linear in t (fixed_linear or my_line), not my_curve",
            ),
            (
                {"schedule": "my_curve", "time_density": "debiased"},
                "a fixed schedule that has an inverse (fixed_linear or linear_beta or my_line), not my_curve",
            ),
            (
                {"schedule": "my_line", "path": "my_plain_path", "time_density": "my_density"},
                "cumulative of alpha^2 (my_path or straight or variance_preserving), not my_plain_path",
            ),
        ],
    )
    def test_without_the_capability_it_is_refused_with_examples(self, names, message):
        with pytest.raises(UserError) as error:
            build(choose(**names))
        assert message in str(error.value) and "\n" not in str(error.value)

    def test_a_network_without_a_time_of_every_pixel(self):
        c = choose(schedule="my_pixels", network="my_plain_network", latent="k_subset")
        c.model.time_input = "pixel_gamma"
        with pytest.raises(UserError, match=r"every pixel \(my_network or vdm_unet\), not my_plain_network"):
            build(c)
        c.schedule = SCHEDULES.spec("my_line")
        with pytest.raises(UserError, match=r"per-pixel schedule \(my_pixels or .*\), not my_line"):
            build(c)

    @pytest.mark.parametrize(
        ("registry", "kind"), [(registry, section) for section, registry in config_lib.COMPONENTS.items()]
    )
    def test_a_class_with_nothing_is_refused(self, registry, kind):
        @dataclasses.dataclass(frozen=True)
        class Nothing:
            pass

        if kind == "sample.sampler":  # one of two members, neither of which alone is required
            return
        with pytest.raises(TypeError, match=f"^{registry.kind} 'nothing' lacks "):
            registry.register("nothing")(Nothing)
