"""Which parts of a model go together: a one-line error for each combination that does not."""

import math
from collections.abc import Callable
from typing import Any

from jvdm.core.errors import UserError, unknown
from jvdm.core.registry import Config, Registry
from jvdm.diffusion import losses
from jvdm.diffusion.latents import LATENTS
from jvdm.diffusion.paths import PATHS
from jvdm.diffusion.per_pixel_schedules import SCHEDULES
from jvdm.diffusion.process import PROCESSES
from jvdm.diffusion.schedules import is_fixed
from jvdm.diffusion.transforms import DATA_MAPS
from jvdm.networks import ENCODERS, NETWORKS

# Of `training.objective` and of `training.schedule_objective`; `jvdm.training.gradients` has what they are.
OBJECTIVES = ("bound", "score_matching")
SCHEDULE_OBJECTIVES = ("bound", "variance")


def check(
    config: Config, schedule: Any, path: Any, time_density: Any, data_map: Any, num_levels: int
) -> None:
    """Refuse parts that do not go together.

    Args:
        config: all of it.
        schedule, path, time_density, data_map: that it selects.
        num_levels: K of the data, 0 if it is continuous.

    Raises:
        UserError: naming the fields, and what would be right.
    """
    _schedule_objective(config, schedule)
    _fixed_parts(config, schedule, path, time_density)
    _objective(config, schedule)
    _noise_free_start(config, schedule)
    _data(config, data_map, num_levels)


def _such_as(registry: Registry, having: Callable[[Any], object]) -> str:
    """The registered components that have something, as examples for a message."""
    names = registry.names(having)
    return f" ({' or '.join(names)})" if names else ""


def _schedule_objective(config: Config, schedule: Any) -> None:
    objective = config.training.schedule_objective
    if objective not in SCHEDULE_OBJECTIVES:
        raise unknown("config.training.schedule_objective", objective, SCHEDULE_OBJECTIVES)
    if objective == "variance":
        if config.model.timesteps:
            raise UserError(
                "config.training.schedule_objective=variance needs continuous time: config.model.timesteps=0"
            )
        if not (schedule.has_interior and schedule.endpoints):
            such_as = _such_as(SCHEDULES, lambda s: s.has_interior and s.endpoints)
            raise UserError(
                "config.training.schedule_objective=variance needs a schedule with learned ends and "
                f"interior{such_as}, not {config.schedule.name}"
            )


def _needs_fixed(
    what: str, config: Config, schedule: Any, kind: str = "", having: Callable[[Any], object] = bool
) -> None:
    """Refuse `what` in discrete time, or with a schedule that learns or lacks what it needs.

    Args:
        what: needs it.
        config, schedule: as in `check`.
        kind: of a fixed schedule, in words that follow.
        having: whether a schedule, or a class of schedules, is of that kind.
    """

    def fits(schedule: Any) -> bool:
        return is_fixed(schedule) and bool(having(schedule))

    if config.model.timesteps or not fits(schedule):
        raise UserError(
            f"{what} needs continuous time and a fixed schedule{kind}{_such_as(SCHEDULES, fits)}, "
            f"not {config.schedule.name} with config.model.timesteps={config.model.timesteps}"
        )


def _fixed_parts(config: Config, schedule: Any, path: Any, time_density: Any) -> None:
    """What needs continuous time and a fixed schedule."""
    what = f"config.time_density.name={config.time_density.name}"
    if time_density.needs_linear:
        _needs_fixed(what, config, schedule, " that is linear in t", lambda s: s.is_linear)
    if time_density.needs_inverse:
        _needs_fixed(what, config, schedule, " that has an inverse", lambda s: s.inverse is not None)
    if time_density.needs_alpha2_cumulative and path.alpha2_cumulative is None:
        such_as = _such_as(PATHS, lambda path: path.alpha2_cumulative is not None)
        raise UserError(
            f"{what} needs a path that has a cumulative of alpha^2{such_as}, not {config.path.name}"
        )
    if not time_density.unbiased and config.training.objective == "bound":
        raise UserError(
            f"{what} is for config.training.objective=score_matching: with it the loss is not a bound"
        )
    if config.training.second_order:
        _needs_fixed("config.training.second_order", config, schedule)


def _data(config: Config, data_map: Any, num_levels: int) -> None:
    """Whether map and objective suit the data."""
    if data_map.discrete != bool(num_levels):
        kind = "discrete" if num_levels else "continuous"
        names = " or ".join(DATA_MAPS.names(lambda m: m.discrete == bool(num_levels)))
        raise UserError(f"config.data_map.name={config.data_map.name} is not for {kind} data: choose {names}")
    if config.training.objective == "bound" and not num_levels:
        raise UserError("config.training.objective=bound is for discrete data: choose score_matching")


def _objective(config: Config, schedule: Any) -> None:
    if config.training.objective not in OBJECTIVES:
        raise unknown("config.training.objective", config.training.objective, OBJECTIVES)
    if config.training.objective == "score_matching":
        _needs_fixed("config.training.objective=score_matching", config, schedule)
        if config.training.second_order:
            raise UserError("config.training.second_order is a penalty of config.training.objective=bound")
        weighting = config.score_matching.weighting
        if weighting not in losses.WEIGHTINGS:
            raise unknown("config.score_matching.weighting", weighting, losses.WEIGHTINGS)
        infinite = schedule.gamma_min == -math.inf and not config.score_matching.truncation
        if weighting == "likelihood" and infinite:
            raise UserError(
                "config.score_matching.truncation is 0, where the likelihood's weight is infinite on this "
                "schedule: give a time such as 1e-3"
            )


def _noise_free_start(config: Config, schedule: Any) -> None:
    """What needs a finite gamma at time 0."""
    timesteps = config.model.timesteps
    if timesteps and schedule.gamma_min == -math.inf:
        raise UserError(
            f"config.model.timesteps={timesteps} needs a finite gamma at time 0: "
            "config.schedule.t_min above 0"
        )
    if config.model.time_input == "gamma" and schedule.gamma_min == -math.inf:
        raise UserError(
            "config.model.time_input=gamma needs a finite gamma at time 0: set config.model.time_input=t, or "
            "config.schedule.t_min above 0"
        )
    if config.training.objective == "bound" and schedule.gamma_min == -math.inf:
        raise UserError(
            "config.training.objective=bound needs a finite gamma at time 0: config.schedule.t_min above 0, "
            "or config.training.objective=score_matching"
        )


# What a process may lack, in words.
PROCESS_PARTS = {
    "is_markov": "is Markov",
    "reverse": "has an ancestral step",
    "step_loss": "has a bound in discrete time",
    "drift": "has a probability-flow ODE",
}


def check_process(process: Any, part: str, what: str) -> None:
    """Refuse what needs a part that the process lacks.

    Args:
        process: one of `PROCESSES`, or another one.
        part: a key of `PROCESS_PARTS`.
        what: needs it, to open the message.

    Raises:
        UserError: naming the processes that have it.
    """
    if not getattr(process, part, None):
        such_as = _such_as(PROCESSES, lambda p: getattr(p, part))
        names = {PROCESSES.component(name): name for name in PROCESSES.names()}
        name = names.get(type(process), type(process).__name__)
        raise UserError(f"{what} needs a process that {PROCESS_PARTS[part]}{such_as}, not {name}")


def _check_rank(
    config: Config, section: str, registry: Registry, component: Any, data_shape: tuple[int, ...]
) -> None:
    rank = len(data_shape)
    if component.data_rank not in (None, rank):
        raise UserError(
            f"config.{section}.name={config[section].name} takes data of rank {component.data_rank}, not of "
            f"shape {list(data_shape)}: choose one that takes it"
            f"{_such_as(registry, lambda c: c.data_rank in (None, rank))}"
        )


def check_network(config: Config, schedule: Any, network: Any, data_shape: tuple[int, ...]) -> None:
    """Refuse a network that cannot take the data, or the time that the config gives it.

    Args:
        config: all of it.
        schedule, network: that it selects.
        data_shape: of one example.

    Raises:
        UserError: naming the fields, and what would be right.
    """
    _check_rank(config, "network", NETWORKS, network, data_shape)
    if config.model.time_input != "pixel_gamma":
        return
    if not schedule.per_pixel:
        raise UserError(
            "config.model.time_input=pixel_gamma needs a per-pixel schedule"
            f"{_such_as(SCHEDULES, lambda s: s.per_pixel)}, not {config.schedule.name}"
        )
    if not network.takes_pixel_time:
        raise UserError(
            "config.model.time_input=pixel_gamma needs a network that takes a time of every pixel"
            f"{_such_as(NETWORKS, lambda n: n.takes_pixel_time)}, not {config.network.name}"
        )


def check_latent(
    config: Config, schedule: Any, latent: Any, encoder: Any, data_shape: tuple[int, ...]
) -> None:
    """Refuse parts that do not go together with a latent, or without one.

    Args:
        config: all of it.
        schedule, latent, encoder: that it selects; the latter two are None where there is no latent.
        data_shape: of one example.

    Raises:
        UserError: naming the fields, and what would be right.
    """
    if schedule.per_pixel and latent is None:
        names = " or ".join(LATENTS.names(lambda latent: latent.is_bound and latent.size))
        raise UserError(
            f"config.schedule.name={config.schedule.name} needs a latent: set config.latent.name to {names}"
        )
    if latent is None:
        return
    _check_rank(config, "encoder", ENCODERS, encoder, data_shape)
    for field, value in (
        ("training.objective", "score_matching"),
        ("training.schedule_objective", "variance"),
    ):
        section, name = field.split(".")
        if config[section][name] == value:
            raise UserError(
                f"config.{field}={value} is not for a model with config.latent.name={config.latent.name}"
            )
