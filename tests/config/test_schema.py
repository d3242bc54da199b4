"""What is known of every field: ranges and choices, free on resume, part of the model."""

import pytest
from helpers import tiny
from ml_collections import ConfigDict

from jvdm import config as config_lib
from jvdm.config import overrides
from jvdm.core.errors import UserError
from jvdm.evaluation import sampling
from jvdm.training import optimizer

FIELDS = dict(config_lib.leaves(config_lib.default().to_dict()))
NUMBERS = [name for name, value in FIELDS.items() if type(value) in (int, float)]
CHOICES = [name for name in FIELDS if config_lib.about(name, config_lib.default()).choices]


def with_value(field, value):
    c = ConfigDict(config_lib.default().to_dict())
    overrides.put(c, {field: value})
    return c


def just_outside(option):
    """Values just beyond each end of a range."""
    if option.low is not None:
        yield option.low - 1
    if option.high is not None:
        yield option.high + 1
    if option.above is not None:
        yield option.above
    if option.below is not None:
        yield option.below


@pytest.mark.parametrize("field", NUMBERS)
def test_values_at_the_ends_of_a_range_are_accepted_and_those_beyond_are_not(field):
    option = config_lib.about(field, config_lib.default())
    kind = type(FIELDS[field])
    for value in (option.low, option.high):
        if value is not None:
            config_lib.check_complete(with_value(field, kind(value)))
    for value in just_outside(option):
        with pytest.raises(UserError) as error:
            config_lib.check_complete(with_value(field, kind(value)))
        name = field.rpartition(".")[2]
        assert f"{name} is {kind(value)}: give {option.limits()}" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", CHOICES)
def test_every_choice_is_accepted_and_others_are_not(field):
    choices = config_lib.about(field, config_lib.default()).choices
    assert FIELDS[field] in choices
    for value in choices:
        config_lib.check_complete(with_value(field, value))
    c = ConfigDict(config_lib.default().to_dict())
    *sections, last = field.split(".")
    node = c
    for name in sections:
        node = node[name]
    node[last] = "anything"
    with pytest.raises(UserError, match="'anything'.*choices: ") as error:
        config_lib.check_complete(c)
    assert "\n" not in str(error.value)


def test_choices_are_those_of_the_code_that_reads_them():
    """Of modules that the config may not import."""
    c = config_lib.default()
    assert config_lib.about("optimizer.decay_mask", c).choices == tuple(optimizer.DECAY_MASKS)
    assert config_lib.about("sample.pixels", c).choices == tuple(sampling.PIXELS)


def test_which_fields_are_free_on_resume():
    """As far as they do not change the sequence of parameters."""
    free = {name for name in FIELDS if config_lib.about(name, config_lib.default()).free_on_resume}
    assert {name for name in FIELDS if name.startswith(("eval.", "score.", "sample."))} < free
    assert {name.partition(".")[2] for name in free if name.startswith("training.")} == {
        *(
            "fsdp",
            "microbatches",
            "num_steps",
            "log_every",
            "eval_every",
            "eval_images",
            "eval_draws",
            "checkpoint_every",
            "keep_checkpoints",
        ),
        *("sample_every", "sample_images", "sample_steps"),
    }
    others = {name for name in free if name.split(".")[0] not in ("eval", "score", "sample", "training")}
    assert others == {
        "init_from",
        "branch_from",
        "weights",
        "data.data_dir",
        "data.test_fraction",
        "data.split_seed",
        "network.remat",
        "encoder.remat",
    }


def test_which_fields_make_the_model():
    fields = config_lib.model_fields(config_lib.default())
    assert {name.partition(".")[0] for name in fields} == {
        *(
            "model",
            "network",
            "process",
            "schedule",
            "path",
            "parameterization",
            "data_map",
            "latent",
            "encoder",
        )
    }
    assert {"network.channels", "schedule.gamma_min"} < set(fields)
    how_it_is_computed = {"remat", "dtype", "dropout"}
    assert not {f"{part}.{name}" for part in ("network", "encoder") for name in how_it_is_computed} & set(
        fields
    )


def test_options_are_those_of_the_component_that_is_chosen():
    c = config_lib.default().unlock()
    overrides.choose(c, "network", "mlp")
    assert config_lib.about("network.time_scale", c).above == 0.0
    assert not config_lib.about("network.dtype", c).part_of_model
    # A field of a component that is not chosen, or that jvdm no longer has, is what its section is.
    assert config_lib.about("network.channels", c).part_of_model
    assert config_lib.about("eval.ode.gone", c).free_on_resume
    assert not config_lib.about("training.gone", c).free_on_resume
    assert not config_lib.about("gone", c).part_of_model
    assert config_lib.about("eval", c).free_on_resume


def test_a_component_of_evaluation_is_checked_before_training():
    c = ConfigDict(config_lib.default().to_dict())
    c.eval.ode.solver.tolerance = 0.0
    with pytest.raises(UserError, match="'adaptive': tolerance is 0.0: give a number between 0 and 1"):
        config_lib.check_complete(c)
    c = ConfigDict(config_lib.default().to_dict())
    c.sample.sampler.name = "ddmi"
    with pytest.raises(UserError, match="unknown sampler 'ddmi'; did you mean 'ddim'"):
        config_lib.check_complete(c)


def test_a_saved_config_that_is_a_section_short(tmp_path):
    """What a section is in one config and a value in the other differs; no traceback."""
    with pytest.raises(UserError, match="network"):
        config_lib.check_model({**tiny.config().to_dict(), "network": 3}, tiny.config(), tmp_path)


@pytest.mark.parametrize("field", ["eval.draws", "sample.steps", "training.num_steps", "network.channels"])
def test_whole_numbers_that_no_program_takes(field):
    c = config_lib.default().unlock()
    overrides.put(c, {field: 10**12})
    with pytest.raises(
        UserError, match=f"{field.rpartition('.')[2]} is {10**12}: give a number up to 2147483647"
    ):
        config_lib.check_complete(c)
