"""The fields that every config has, with their defaults, ranges and choices.

`Fields` is the whole config; a field of it, or of one of its sections, is

    1. an option (`jvdm.core.options`),
    2. a `Section`, whose own fields are a dataclass, or
    3. a `Component` of a registry, whose options the component declares.

What a section or component says about `free_on_resume` and `part_of_model` holds for everything in it; but
one of its options alone may be free on resume, or not part of the model.
"""

import dataclasses

from jvdm.core.options import option
from jvdm.core.registry import Registry
from jvdm.data import AUGMENTATIONS
from jvdm.data.splitting import TEST_FRACTION
from jvdm.diffusion import gaussian, losses, score_bounds
from jvdm.diffusion.dequantization import DEQUANTIZATIONS
from jvdm.diffusion.divergence import TRACES
from jvdm.diffusion.latents import LATENTS
from jvdm.diffusion.parameterizations import PARAMETERIZATIONS
from jvdm.diffusion.paths import PATHS
from jvdm.diffusion.per_pixel_schedules import SCHEDULES
from jvdm.diffusion.process import PROCESSES
from jvdm.diffusion.samplers import SAMPLERS
from jvdm.diffusion.solvers import SOLVERS
from jvdm.diffusion.times import TIME_DENSITIES, TIME_SAMPLERS
from jvdm.diffusion.transforms import DATA_MAPS
from jvdm.model.checks import OBJECTIVES, SCHEDULE_OBJECTIVES
from jvdm.networks import NETWORKS, TIME_INPUTS
from jvdm.networks.encoders import ENCODERS


@dataclasses.dataclass(frozen=True)
class Section:
    """A group of fields.

    Attributes:
        fields: a dataclass of them.
        free_on_resume: a resumed run may change all of them.
        part_of_model: they are part of the model, but for those that say that they are not.
    """

    fields: type
    free_on_resume: bool = False
    part_of_model: bool = False


@dataclasses.dataclass(frozen=True)
class Component:
    """The choice of a component, `{name, **options}`.

    Attributes:
        registry: to choose from.
        name: the default.
        free_on_resume, part_of_model: as in `Section`.
    """

    registry: Registry
    name: str
    free_on_resume: bool = False
    part_of_model: bool = False


@dataclasses.dataclass(frozen=True)
class Data:
    """What is trained on."""

    source: str = option("digits", help="digits, npz:FILE, folder:DIR, cifar10, mnist, imagenet32_old, ...")
    num_levels: int = option(
        0, low=0, high=256, help="values per dimension of npz: and folder: images; 0 is the source's own"
    )
    data_dir: str = option("", free_on_resume=True, help="of TFDS sets; empty is the default of TFDS")
    # What a run is resumed on is compared by content.
    test_fraction: float = option(
        TEST_FRACTION,
        above=0.0,
        below=1.0,
        free_on_resume=True,
        help="held out as the test split of npz: and folder: images without one",
    )
    split_seed: int = option(0, low=0, free_on_resume=True, help="of the images that are held out")


@dataclasses.dataclass(frozen=True)
class Model:
    """How the components make one model."""

    timesteps: int = option(0, low=0, help="of the discrete-time bound; 0 is continuous time")
    time_input: str = option("gamma", choices=TIME_INPUTS, help="what the network sees of the time")
    prior: str = option(
        "path",
        choices=gaussian.PRIORS,
        part_of_model=False,  # the same weights have a bound with either
        help="of the model at t = 1: N(0, sigma_1^2), or the released codes' N(0, I)",
    )
    decoder: str = option("exact", choices=losses.DECODERS, help="how z_0 is decoded")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW, and the moving average of the weights."""

    learning_rate: float = option(2e-4, low=0.0)
    b1: float = option(0.9, low=0.0, high=0.99999)
    b2: float = option(0.99, low=0.0, high=0.999999)
    eps: float = option(1e-8, low=0.0)
    weight_decay: float = option(0.01, low=0.0)
    decay_mask: str = option("kernels", choices=("kernels", "released_vdm"), help="which weights decay")
    warmup_steps: int = option(100, low=0)
    linear_decay: bool = option(False, help="of the learning rate, to zero at training.num_steps")
    clip_norm: float = option(0.0, low=0.0, help="of the gradient of bits/dim; 0 is off")
    ema_rate: float = option(0.9999, low=0.0, high=1.0)
    ema_power: float = option(0.0, low=0.0, help="rate min(ema_rate, 1 - (1 + step)^-power); 0 is off")


@dataclasses.dataclass(frozen=True)
class Training:
    """The training loop; on resume, what does not touch the sequence of parameters may change."""

    batch_size: int = option(128, low=1, help="over all devices")
    # How a batch is cut and where it is computed changes rounding only.
    microbatches: int = option(1, low=1, free_on_resume=True, help="parts of each device's part of a batch")
    fsdp: int = option(
        1,
        low=1,
        free_on_resume=True,
        help="over how many devices parameters, averages and optimizer state are split",
    )
    num_steps: int = option(
        10_000_000, free_on_resume=True, help="of training; a multiple of steps_per_dispatch"
    )
    steps_per_dispatch: int = option(1, low=1, help="in one call; divides num_steps and every interval")
    objective: str = option("bound", choices=OBJECTIVES)
    schedule_objective: str = option(
        "bound", choices=SCHEDULE_OBJECTIVES, help="of the schedule (2107.00630, appendix I.2)"
    )
    second_order: float = option(
        0.0, low=0.0, help="strength of the penalty (2305.03935, section 4.3); published 0.1"
    )
    log_every: int = option(1000, free_on_resume=True)
    eval_every: int = option(10_000, low=0, free_on_resume=True, help="0 is never")
    eval_images: int = option(
        1024, low=0, free_on_resume=True, help="of the test split, during training; 0 is all"
    )
    eval_draws: int = option(2, low=1, free_on_resume=True, help="per image, during training")
    checkpoint_every: int = option(10_000, free_on_resume=True)
    keep_checkpoints: str = option(
        "newest:2",
        free_on_resume=True,
        help="newest:N, every:STEPS, or both with a comma, or all; the best one and the newest always",
    )
    sample_every: int = option(50_000, low=0, free_on_resume=True, help="0 is never")
    sample_images: int = option(64, low=1, free_on_resume=True)
    sample_steps: int = option(250, low=1, free_on_resume=True)


@dataclasses.dataclass(frozen=True)
class ScoreMatching:
    """Of training.objective=score_matching."""

    weighting: str = option("likelihood", choices=losses.WEIGHTINGS)
    truncation: float = option(
        1e-3, low=0.0, high=0.99, help="the likelihood's weight is constant below this time"
    )
    dequantize: bool = option(True, help="spread discrete data uniformly over its cells")


@dataclasses.dataclass(frozen=True)
class ODE:
    """The estimator ode."""

    batch_size: int = option(64, low=1)
    draws: int = option(1, low=1, help="per image, each a bound of importance_samples samples")
    importance_samples: int = option(1, low=1, help="K")
    dequantization: Component = Component(DEQUANTIZATIONS, "truncated_normal")
    trace: Component = Component(TRACES, "hutchinson")
    share_probes: bool = option(True, help="by the K samples of a draw")
    solver: Component = Component(SOLVERS, "adaptive")
    check_images: int = option(16, low=0, help="solved again at a tenth of the tolerance; 0 is none")


@dataclasses.dataclass(frozen=True)
class ELBO:
    """The estimator elbo."""

    trace: Component = Component(TRACES, "hutchinson")
    prior: str = option("model", choices=score_bounds.PRIORS)


@dataclasses.dataclass(frozen=True)
class ScoreFlow:
    """The estimator scoreflow."""

    epsilon: float = option(1e-5, low=0.0, high=0.99, help="the time at which the bound is truncated")
    importance: bool = option(True, help="times uniform in gamma, rather than in t")


@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluation, of all estimators."""

    estimators: str = option("vlb,ode", help="of vlb, ode, elbo, scoreflow")
    num_images: int = option(0, low=0, help="the first ones of the split; 0 is all")
    batch_size: int = option(128, low=1, help="of vlb, elbo and scoreflow")
    draws: int = option(16, low=1, help="per image, of vlb, elbo and scoreflow")
    timesteps: int = option(
        -1, low=-1, help="of the variational bound; 0 is continuous time, -1 is model.timesteps"
    )
    ode: Section = Section(ODE)
    elbo: Section = Section(ELBO)
    scoreflow: Section = Section(ScoreFlow)


@dataclasses.dataclass(frozen=True)
class Score:
    """The images that --mode=score scores."""

    source: str = option("", help="as data.source, or any folder of images or array; empty is data.source")
    split: str = option("test")
    num_images: int = option(0, low=0, help="the first ones; 0 is all")


@dataclasses.dataclass(frozen=True)
class Sample:
    """Samples of the model."""

    num_images: int = option(64, low=1)
    batch_size: int = option(64, low=1)
    steps: int = option(1000, low=1)
    sampler: Component = Component(SAMPLERS, "ancestral")
    pixels: str = option("argmax", choices=("argmax", "sampled"))
    latents: str = option(
        "prior", help="prior, posterior (of the test images), or FILE.npz, one array [L, m]"
    )
    log_likelihood: bool = option(False, help="of z_0, nats; with the sampler ode")


@dataclasses.dataclass(frozen=True)
class Fields:
    """All of a config: VDM with the published hyperparameters, on digits."""

    seed: int = option(0, low=0, high=2**32 - 1)
    init_from: str = option(
        "", free_on_resume=True, help="a workdir or checkpoint whose weights a new run starts from"
    )
    branch_from: str = option(
        "", free_on_resume=True, help="a workdir or checkpoint from whose whole state a new run goes on"
    )
    weights: str = option(
        "ema",
        choices=("ema", "raw"),
        free_on_resume=True,
        help="what is evaluated, scored and sampled from: averaged weights, or those of the last step",
    )
    data: Section = Section(Data)
    augmentation: Component = Component(AUGMENTATIONS, "none")
    data_map: Component = Component(DATA_MAPS, "scaling", part_of_model=True)
    process: Component = Component(PROCESSES, "gaussian", part_of_model=True)
    schedule: Component = Component(SCHEDULES, "learned_scalar", part_of_model=True)
    path: Component = Component(PATHS, "variance_preserving", part_of_model=True)
    parameterization: Component = Component(PARAMETERIZATIONS, "noise", part_of_model=True)
    time_sampler: Component = Component(TIME_SAMPLERS, "stratified")
    time_density: Component = Component(TIME_DENSITIES, "uniform")
    network: Component = Component(NETWORKS, "vdm_unet", part_of_model=True)
    latent: Component = Component(LATENTS, "none", part_of_model=True)
    encoder: Component = Component(ENCODERS, "unet", part_of_model=True)  # of the latent
    model: Section = Section(Model, part_of_model=True)
    optimizer: Section = Section(Optimizer)
    training: Section = Section(Training)
    score_matching: Section = Section(ScoreMatching)
    eval: Section = Section(Eval, free_on_resume=True)
    score: Section = Section(Score, free_on_resume=True)
    sample: Section = Section(Sample, free_on_resume=True)
