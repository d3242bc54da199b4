"""The fields every config has, their defaults, and the rules for changing them between runs."""

import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from jvdm.core.errors import UserError, unknown, wrong_type
from jvdm.core.registry import Config
from jvdm.data import AUGMENTATIONS
from jvdm.diffusion.dequantization import DEQUANTIZATIONS
from jvdm.diffusion.divergence import TRACES
from jvdm.diffusion.latents import LATENTS
from jvdm.diffusion.parameterizations import PARAMETERIZATIONS
from jvdm.diffusion.paths import PATHS
from jvdm.diffusion.per_pixel_schedules import SCHEDULES
from jvdm.diffusion.samplers import SAMPLERS
from jvdm.diffusion.solvers import SOLVERS
from jvdm.diffusion.times import TIME_DENSITIES, TIME_SAMPLERS
from jvdm.diffusion.transforms import DATA_MAPS
from jvdm.networks import NETWORKS
from jvdm.networks.encoders import ENCODERS

# Sections that select a component.
COMPONENTS = {
    "augmentation": AUGMENTATIONS,
    "schedule": SCHEDULES,
    "path": PATHS,
    "parameterization": PARAMETERIZATIONS,
    "time_sampler": TIME_SAMPLERS,
    "time_density": TIME_DENSITIES,
    "network": NETWORKS,
    "data_map": DATA_MAPS,
    "latent": LATENTS,
    "encoder": ENCODERS,
    "eval.elbo.trace": TRACES,
    "eval.ode.dequantization": DEQUANTIZATIONS,
    "eval.ode.trace": TRACES,
    "eval.ode.solver": SOLVERS,
    "sample.sampler": SAMPLERS,
}

# What a resumed run may change: nothing that touches the sequence of parameters.
FREE_ON_RESUME = (
    "data.data_dir",
    "eval.",
    "score.",
    "sample.",
    "training.num_steps",
    "training.log_every",
    "training.eval_every",
    "training.eval_images",
    "training.eval_draws",
    "training.checkpoint_every",
    "training.sample_every",
    "training.sample_images",
    "training.sample_steps",
    # Where and how it is computed, which changes rounding alone.
    "training.fsdp",
    "network.remat",
    "encoder.remat",
)

# (lowest, highest) of numbers, both allowed.
RANGES = {
    "seed": (0, 2**32 - 1),
    "data.num_levels": (0, 256),
    "model.timesteps": (0, None),
    "optimizer.learning_rate": (0.0, None),
    "optimizer.b1": (0.0, 0.99999),
    "optimizer.b2": (0.0, 0.999999),
    "optimizer.eps": (0.0, None),
    "optimizer.weight_decay": (0.0, None),
    "optimizer.warmup_steps": (0, None),
    "optimizer.clip_norm": (0.0, None),
    "optimizer.ema_rate": (0.0, 1.0),
    "optimizer.ema_power": (0.0, None),
    "training.second_order": (0.0, None),
    "score_matching.truncation": (0.0, 0.99),
    "eval.scoreflow.epsilon": (0.0, 0.99),
    "training.microbatches": (1, None),
    "training.fsdp": (1, None),
    "training.steps_per_dispatch": (1, None),
    "training.eval_images": (0, None),
    "training.eval_draws": (1, None),
    "training.sample_images": (1, None),
    "training.sample_steps": (1, None),
    "eval.batch_size": (1, None),
    "eval.draws": (1, None),
    "eval.timesteps": (-1, None),
    "eval.num_images": (0, None),
    "eval.ode.batch_size": (1, None),
    "eval.ode.draws": (1, None),
    "eval.ode.importance_samples": (1, None),
    "eval.ode.check_images": (0, None),
    "score.num_images": (0, None),
    "sample.num_images": (1, None),
    "sample.batch_size": (1, None),
    "sample.steps": (1, None),
}

# What makes the function that the weights belong to, but for how its trunk is computed.
MODEL_SECTIONS = (
    "model",
    "network",
    "schedule",
    "path",
    "parameterization",
    "data_map",
    "latent",
    "encoder",
)


def default() -> Config:
    """VDM with the published hyperparameters, on digits; a config file changes what it needs."""
    config = ConfigDict()
    config.seed = 0
    config.init_from = ""  # a workdir or checkpoint whose weights a new run starts from

    config.data = ConfigDict()
    config.data.source = "digits"  # digits | npz:FILE | folder:DIR | cifar10 | mnist | imagenet32_old | ...
    config.data.num_levels = 0  # values per dimension of npz: and folder: images; 0 is the source's own
    config.data.data_dir = ""  # of TFDS sets; empty is TFDS's own default
    config.augmentation = AUGMENTATIONS.spec("none")

    config.data_map = DATA_MAPS.spec("scaling")
    config.schedule = SCHEDULES.spec("learned_scalar")
    config.path = PATHS.spec("variance_preserving")
    config.parameterization = PARAMETERIZATIONS.spec("noise")
    config.time_sampler = TIME_SAMPLERS.spec("stratified")
    config.time_density = TIME_DENSITIES.spec("uniform")
    config.network = NETWORKS.spec("vdm_unet")
    config.latent = LATENTS.spec("none")
    config.encoder = ENCODERS.spec("unet")  # of config.latent
    config.model = ConfigDict()
    config.model.timesteps = 0  # of the discrete-time bound; 0 is continuous time
    config.model.time_input = "gamma"  # what the network sees of the time: gamma | t | pixel_gamma
    config.model.decoder = "exact"  # exact | idode_released

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 2e-4
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.01
    config.optimizer.decay_mask = "kernels"  # kernels | released_vdm
    config.optimizer.warmup_steps = 100
    config.optimizer.linear_decay = False  # to zero at training.num_steps
    config.optimizer.clip_norm = 0.0  # of the gradient of bits/dim; 0 is off
    config.optimizer.ema_rate = 0.9999
    config.optimizer.ema_power = 0.0  # rate min(ema_rate, 1 - (1 + step)^-power); 0 is off

    config.training = ConfigDict()
    config.training.batch_size = 128  # over all devices
    config.training.microbatches = 1
    config.training.fsdp = 1  # over how many devices parameters, averages and optimizer state are split
    config.training.num_steps = 10_000_000
    config.training.steps_per_dispatch = 1
    config.training.objective = "bound"  # bound | score_matching
    config.training.schedule_objective = "bound"  # bound | variance (2107.00630, appendix I.2)
    config.training.second_order = 0.0  # strength of the penalty (2305.03935, section 4.3); published 0.1
    config.training.log_every = 1000
    config.training.eval_every = 10_000
    config.training.eval_images = 1024  # of the test split, during training; 0 is all
    config.training.eval_draws = 2  # per image, during training
    config.training.checkpoint_every = 10_000
    config.training.sample_every = 50_000  # 0 is never
    config.training.sample_images = 64
    config.training.sample_steps = 250

    config.score_matching = ConfigDict()  # of config.training.objective=score_matching
    config.score_matching.weighting = "likelihood"  # likelihood | unweighted
    config.score_matching.truncation = 1e-3  # the likelihood's weight is constant below this time
    config.score_matching.dequantize = True  # spread discrete data uniformly over its cells

    config.eval = ConfigDict()
    config.eval.estimators = "vlb,ode"  # of vlb, ode, elbo, scoreflow
    config.eval.num_images = 0  # the first ones of the split; 0 is all
    config.eval.batch_size = 128  # of vlb, elbo and scoreflow
    config.eval.draws = 16  # per image, of vlb, elbo and scoreflow
    config.eval.timesteps = -1  # of the variational bound; 0 is continuous time, -1 is model.timesteps
    config.eval.ode = ConfigDict()
    config.eval.ode.batch_size = 64
    config.eval.ode.draws = 1  # per image, each a bound of importance_samples samples
    config.eval.ode.importance_samples = 1  # K
    config.eval.ode.dequantization = DEQUANTIZATIONS.spec("truncated_normal")
    config.eval.ode.trace = TRACES.spec("hutchinson")
    config.eval.ode.share_probes = True  # by the K samples of a draw
    config.eval.ode.solver = SOLVERS.spec("adaptive")
    config.eval.ode.check_images = 16  # solved again at a tenth of the tolerance; 0 is none

    config.eval.elbo = ConfigDict()
    config.eval.elbo.trace = TRACES.spec("hutchinson")
    config.eval.elbo.prior = "noise"  # noise | sdeflow_released
    config.eval.scoreflow = ConfigDict()
    config.eval.scoreflow.epsilon = 1e-5  # the time at which the bound is truncated
    config.eval.scoreflow.importance = True  # times uniform in gamma, rather than in t

    config.score = ConfigDict()
    config.score.source = ""  # as data.source, or any folder of images or array; empty is data.source
    config.score.split = "test"
    config.score.num_images = 0  # the first ones; 0 is all

    config.sample = ConfigDict()
    config.sample.num_images = 64
    config.sample.batch_size = 64
    config.sample.steps = 1000
    config.sample.sampler = SAMPLERS.spec("ancestral")
    config.sample.pixels = "argmax"  # argmax | sampled
    config.sample.latents = "prior"  # prior | posterior, of the test images | FILE.npz, one array [L, m]
    config.sample.log_likelihood = False  # of z_0, nats; with the sampler ode
    return config.lock()


def check_complete(config: Any) -> None:
    """Refuse a config that lacks a field of `default`, has one more, or has one of another type or range.

    Raises:
        UserError: naming it.
    """

    def check(expected: dict[str, Any], given: Any, where: str) -> None:
        if not isinstance(given, ConfigDict):
            raise UserError(
                f"{where} is a {type(given).__name__}, not a section; start from jvdm.config.default()"
            )
        if "name" not in expected:  # a component checks its own options
            for name in given:
                if name not in expected:
                    raise unknown(f"field of {where}:", name, expected)
        for name, value in expected.items():
            field = f"{where}.{name}"
            if name not in given:
                raise UserError(f"{field} is missing; start from jvdm.config.default()")
            if isinstance(value, dict):
                # The options of a component belong to the component that is chosen.
                check({"name": ""} if "name" in value else value, given[name], field)
            elif isinstance(given[name], bool) != isinstance(value, bool) or (
                not isinstance(given[name], type(value))
                and not (isinstance(value, float) and isinstance(given[name], int))
            ):
                raise wrong_type(field, given[name], type(value))

    check(default().to_dict(), config, "config")
    for field, value in leaves(config.to_dict()):
        for part in value if isinstance(value, tuple) else (value,):
            if not isinstance(part, str | bool | int | float):
                raise UserError(f"config.{field} is {value!r}, which no config holds")
            if isinstance(part, float) and not math.isfinite(part):
                raise UserError(f"config.{field} is {value!r}: give a finite number")
        low, high = RANGES.get(field, (None, None))
        if (low is not None and value < low) or (high is not None and value > high):
            limit = f"at least {low}" if high is None else f"from {low} to {high}"
            raise UserError(f"config.{field} is {value}: give {limit}")


def leaves(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            # As JSON has no tuples, a saved one is a list.
            yield f"{prefix}{name}", tuple(value) if isinstance(value, list) else value


def to_json(config: Config) -> str:
    """The config as JSON text."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A saved config.

    Raises:
        UserError: the file cannot be read or is not JSON.
    """
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(saved, dict):
        raise UserError(f"{path}: holds a {type(saved).__name__}, not a JSON object")
    return saved


def differences(saved: dict[str, Any], current: Config) -> list[tuple[str, Any, Any]]:
    """(field, saved value, current value) of every field that differs; None where it is absent.

    A field that an older version of jvdm did not have was at its default.
    """
    new, defaults = dict(leaves(current.to_dict())), dict(leaves(default().to_dict()))
    old = {field: value for field, value in defaults.items() if new.get(field) == value}
    old.update(leaves(saved))
    fields = sorted(old.keys() | new.keys())
    return [(f, old.get(f), new.get(f)) for f in fields if old.get(f) != new.get(f)]


def _describe(changed: list[tuple[str, Any, Any]]) -> str:
    return ", ".join(f"{field} (saved {old!r}, given {new!r})" for field, old, new in changed)


def check_resume(saved: dict[str, Any], current: Config, where: pathlib.Path) -> None:
    """Refuse to continue a run under a config that would make it another run.

    Raises:
        UserError: naming the fields that differ and may not.
    """
    free = FREE_ON_RESUME
    if current.optimizer.linear_decay:
        free = tuple(field for field in free if field != "training.num_steps")
    changed = [c for c in differences(saved, current) if not c[0].startswith(free)]
    if changed:
        raise UserError(
            f"{where} holds a run with another config: {_describe(changed)}; "
            "use the saved values, or another --workdir"
        )


def makes_the_model(field: str) -> bool:
    """Whether the function that weights belong to depends on a field, by its dotted name."""
    section, _, name = field.partition(".")
    return section in MODEL_SECTIONS and not (
        section in ("network", "encoder") and name in ("remat", "dtype", "dropout")
    )


def model_fields(config: Config) -> dict[str, Any]:
    """(dotted name, value) of every field that makes the model."""
    return {field: value for field, value in leaves(config.to_dict()) if makes_the_model(field)}


def check_model(saved: dict[str, Any], current: Config, where: pathlib.Path) -> None:
    """Refuse to use weights with a config of another model.

    Raises:
        UserError: naming the fields that differ.
    """
    changed = [change for change in differences(saved, current) if makes_the_model(change[0])]
    if changed:
        raise UserError(f"the weights in {where} belong to another model: {_describe(changed)}")
