"""Configs: every field is read, every file trains, resumption rules."""

import dataclasses
import json
import pathlib
import re
import runpy

import jax
import numpy as np
import pytest
from helpers import tiny
from ml_collections import ConfigDict

from jvdm import config as config_lib
from jvdm import model as model_lib
from jvdm.cli import config_file
from jvdm.config import overrides
from jvdm.core import sharding
from jvdm.core.errors import UserError
from jvdm.data import AUGMENTATIONS, TrainBatches
from jvdm.training.intervals import check_intervals
from jvdm.training.step import init_state, make_train_step

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = "\n".join(p.read_text() for p in (ROOT / "jvdm").rglob("*.py") if p.name != "config.py")
COMPONENTS = config_lib.COMPONENTS


def plain_fields():
    fields = [field for field, _ in config_lib.leaves(config_lib.default().to_dict())]
    return [field for field in fields if not field.startswith(tuple(f"{c}." for c in COMPONENTS))]


@pytest.mark.parametrize("field", plain_fields())
def test_every_field_is_read(field):
    """As config.section.field, or config.field where a section is passed on; intervals by their name."""
    name = field.rpartition(".")[2]
    read = re.search(
        rf"\b(config|training)\.({re.escape(field)}|{name})\b|(_due\(|_WORK = \([^)]*)\"{name}\"", SOURCES
    )
    assert read, field


def test_every_component_is_built():
    for component in COMPONENTS:
        name = component.rpartition(".")[2]
        assert re.search(rf"\.build\(\s*config\.{name}\b", SOURCES), component


def config_files():
    return sorted((ROOT / "configs").glob("*.py"))


ARGUMENTS = {
    "swissroll": ["debiased"],
    "sdeflow_mnist": ["debiased"],
    "sdeflow_cifar10": ["debiased"],
    "mnist_tiny": ["some.npz", "debiased,some.npz"],
    "vdm_imagenet32": ["new"],
    "cifar10_tiny": ["some.npz"],
    "cifar10": ["straight", "finetune", "straight_finetune"],
    "mulan_cifar10": ["velocity"],
    "mulan_tiny": ["vdm_learned", "idode_velocity", "mulan_surrogate", "mulan_gaussian,some.npz"],
    "idode_imagenet32_old": ["finetune"],
    "idode_imagenet32_new": ["finetune"],
}
CASES = [(path, *a) for path in config_files() for a in ([()] + [(x,) for x in ARGUMENTS.get(path.stem, [])])]
# Of each objective and network one; the others are `long`.
QUICK = {"digits", "cifar10:finetune", "sdeflow_cifar10:debiased", "swissroll"}


def named(case):
    return ":".join([case[0].stem, *case[1:]])


def load(case):
    path, *arguments = case
    return runpy.run_path(str(path))["get_config"](*arguments)


def data_of(c):
    """(shape, levels) of a config's data."""
    shapes = {"digits": (8, 8, 1), "swissroll": (2,), "mnist": (28, 28, 1)}
    return shapes.get(c.data.source, (32, 32, 3)), 0 if c.data.source == "swissroll" else 256


def shrunk(case):
    """The config with the sizes made small, and of all images alike."""
    c = load(case)
    small = {
        "vdm_unet": {"channels": 8, "num_blocks": 1, "num_groups": 2},
        "ddpm_unet": {"channels": 8, "multipliers": (1, 2), "num_res_blocks": 1, "num_groups": 2},
        "mlp": {"hidden": 8, "num_layers": 1},
    }
    c.network.update(small[c.network.name])
    c.encoder.update(small["vdm_unet"])
    if "hidden" in c.schedule:
        c.schedule.hidden = 8
    c.training.batch_size, c.training.steps_per_dispatch = 4, 2
    c.data.source = "swissroll" if c.data.source == "swissroll" else "images"
    return c


def trained_cases():
    """One of those that take the same two steps: the others differ in data, evaluation, or how often."""
    cases = {}
    for case in CASES:
        fields = shrunk(case).to_dict()
        for name in ("eval", "sample", "score"):
            del fields[name]
        training = fields["training"].items()
        fields["training"] = {
            k: v for k, v in training if not k.startswith(("eval_", "sample_", "log_", "checkpoint_"))
        }
        cases.setdefault(json.dumps(fields, sort_keys=True), case)
    marks = {True: [], False: pytest.mark.long}
    return [pytest.param(case, id=named(case), marks=marks[named(case) in QUICK]) for case in cases.values()]


def some_state(model, c):
    """As of `init_state`, with other weights: what draws those takes longer to compile than it is worth."""
    key = jax.random.key(0)
    shapes = dataclasses.replace(jax.eval_shape(lambda key: init_state(model, c, key), key), root_key=None)
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
    schedule = jax.device_get(jax.jit(lambda key: model.init(key)["schedule"])(key))  # its ends are no noise
    params = {**tiny.perturbed(zeros.params), "schedule": schedule}
    return dataclasses.replace(zeros, root_key=key, params=params, ema_params=params)


NUM_PARAMETERS: dict[str, int] = {}  # by the fields of the model


@pytest.mark.parametrize("case", CASES, ids=named)
def test_every_config_builds(case):
    """At full size, shapes only."""
    c = load(case)
    config_lib.check_complete(c)
    check_intervals(c)
    full = model_lib.build(c, *data_of(c))
    # Configs of one model are traced once: that is most of the time.
    fields = json.dumps([config_lib.model_fields(c), data_of(c)], sort_keys=True)
    if fields not in NUM_PARAMETERS:
        shapes = jax.eval_shape(full.init, jax.random.key(0))
        NUM_PARAMETERS[fields] = sum(np.prod(a.shape) for a in jax.tree.leaves(shapes))
    assert NUM_PARAMETERS[fields] > 5e4


TRAINED = trained_cases()


def test_quick_cases_are_cases():
    assert {case.id for case in TRAINED} >= QUICK


@pytest.mark.parametrize("case", TRAINED)
def test_every_config_trains(case):
    """Two steps of every config: its own choices, with the sizes made small."""
    c = shrunk(case)
    shape, num_levels = ((2,), 0) if c.data.source == "swissroll" else ((8, 8, 3), 256)
    model, mesh = model_lib.build(c, shape, num_levels), tiny.mesh()
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, *shape)).astype(np.float32)
    if num_levels:
        images = rng.integers(0, 256, (6, *shape), dtype=np.uint8)
    batches = TrainBatches(images, batch_size=4, seed=0, augmentation=AUGMENTATIONS.build(c.augmentation))
    parts = [batches[i] for i in range(2)]
    batch = jax.tree.map(lambda *a: np.stack(a), *parts)
    batch = sharding.to_devices(batch, sharding.split(mesh, axis=1))
    # Two steps are not worth an optimised program.
    quick = {"xla_backend_optimization_level": 0}
    state = some_state(model, c)
    step = make_train_step(model, c, mesh).lower(state, batch).compile(quick)
    state, metrics = step(state, batch)
    assert all(np.isfinite(loss).all() for loss in metrics.losses.values())
    assert int(state.step) == 2


def test_published_hyperparameters():
    """The flagship's numbers as the paper gives them."""
    c = runpy.run_path(str(ROOT / "configs" / "vdm_cifar10.py"))["get_config"]()
    assert (c.network.channels, c.network.num_blocks, c.network.dropout) == (128, 32, 0.1)
    assert (c.training.batch_size, c.training.num_steps) == (128, 10_000_000)
    o = c.optimizer
    assert (o.b1, o.b2, o.eps, o.weight_decay, o.learning_rate) == (0.9, 0.99, 1e-8, 0.01, 2e-4)
    assert (o.warmup_steps, o.ema_rate, o.decay_mask) == (100, 0.9999, "released_vdm")
    assert (c.schedule.name, c.schedule.gamma_min, c.schedule.gamma_max) == ("learned_scalar", -13.3, 5.0)


def test_sections_with_a_name_are_the_components():
    fields = [field for field, _ in config_lib.leaves(config_lib.default().to_dict())]
    assert {field.removesuffix(".name") for field in fields if field.endswith(".name")} == set(COMPONENTS)


def test_another_component_keeps_what_both_have():
    c = tiny.config()
    overrides.choose(c, "schedule", "monotone_network")
    assert (c.schedule.gamma_min, c.schedule.gamma_max, c.schedule.hidden) == (-7.0, 5.0, 1024)
    overrides.choose(c, "eval.ode.solver", "fixed")
    assert c.eval.ode.solver.num_steps > 0 and "tolerance" not in c.eval.ode.solver
    config_lib.check_complete(c)
    assert c.is_locked and c.eval.is_locked
    with pytest.raises(UserError, match="did you mean 'fixed_linear'"):
        overrides.choose(c, "schedule", "fixed_liner")


def test_each_argument_of_a_config_file_has_a_workdir_of_its_own():
    for given, name in (
        ("configs/digits.py", "digits"),
        ("digits", "digits"),
        ("swissroll:debiased", "swissroll-debiased"),
        ("configs/mulan_tiny.py:vdm_fixed", "mulan_tiny-vdm_fixed"),
        ("configs/mnist_tiny.py:/data/set.npz", "mnist_tiny-set"),
        ("configs/mnist_tiny.py:debiased,/data/set.npz", "mnist_tiny-debiased-set"),
    ):
        assert config_file.run_name(given) == name


def test_what_may_change_on_resume(tmp_path):
    saved = tiny.config().to_dict()
    c = tiny.config(num_steps=8, log_every=1)
    c.eval.draws, c.network.remat = 7, "full"
    config_lib.check_resume(saved, c, tmp_path)
    c.optimizer.linear_decay = True
    with pytest.raises(UserError, match=r"optimizer.linear_decay .*training.num_steps \(saved 4, given 8\)"):
        config_lib.check_resume(saved, c, tmp_path)


def test_what_makes_another_model(tmp_path):
    saved = tiny.config().to_dict()
    c = tiny.config()
    c.network.dtype, c.network.remat, c.data.source = "bfloat16", "full", "mnist"
    config_lib.check_model(saved, c, tmp_path)
    c.network.num_blocks = 3
    with pytest.raises(UserError, match=r"network.num_blocks \(saved 1, given 3\)"):
        config_lib.check_model(saved, c, tmp_path)


def test_incomplete_configs():
    config_lib.check_complete(tiny.config())
    with pytest.raises(UserError, match="is missing; start from"):
        config_lib.check_complete(ConfigDict())
    c = ConfigDict(config_lib.default().to_dict())
    del c.optimizer["b2"]
    with pytest.raises(UserError, match="config.optimizer.b2 is missing"):
        config_lib.check_complete(c)
    c = ConfigDict({**config_lib.default().to_dict(), "sead": 1})
    with pytest.raises(UserError, match="did you mean 'seed'"):
        config_lib.check_complete(c)
    c = ConfigDict({**config_lib.default().to_dict(), "seed": "x"})
    with pytest.raises(UserError, match="config.seed is 'x', not an int"):
        config_lib.check_complete(c)
    with pytest.raises(UserError, match="NoneType"):
        config_lib.check_complete(None)


def test_saved_config_that_is_not_one(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        config_lib.read_json(tmp_path / "config.json")
