"""Which parts of a model go together: one line for each combination that does not."""

import math
from typing import Any

from jvdm.core.errors import UserError, unknown
from jvdm.core.registry import Config
from jvdm.diffusion import losses, schedules


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


def _schedule_objective(config: Config, schedule: Any) -> None:
    objective = config.training.schedule_objective
    if objective not in ("bound", "variance"):
        raise UserError(
            f"config.training.schedule_objective is {objective!r}: the choices are bound, variance"
        )
    if objective == "variance":
        if config.model.timesteps:
            raise UserError(
                "config.training.schedule_objective=variance needs continuous time: config.model.timesteps=0"
            )
        if not (schedule.has_interior and schedule.endpoints):
            raise UserError(
                "config.training.schedule_objective=variance needs a schedule with learned ends and "
                f"interior: monotone_network, not {config.schedule.name}"
            )


def _needs_fixed(what: str, config: Config, schedule: Any, *, linear: bool = False) -> None:
    """Refuse `what` in discrete time, with a schedule that learns, or with another than `fixed_linear`."""
    fits = isinstance(schedule, schedules.FixedLinear) if linear else not _learns(schedule)
    if config.model.timesteps or not fits:
        needed = "the schedule fixed_linear" if linear else "a fixed schedule"
        raise UserError(
            f"{what} needs continuous time and {needed}, "
            f"not {config.schedule.name} with config.model.timesteps={config.model.timesteps}"
        )


def _learns(schedule: Any) -> bool:
    return bool(schedule.has_interior or schedule.endpoints)


def _fixed_parts(config: Config, schedule: Any, path: Any, time_density: Any) -> None:
    """What needs continuous time and a fixed schedule."""
    name = config.time_density.name
    if time_density.needs == "fixed_linear":
        _needs_fixed(f"config.time_density.name={name}", config, schedule, linear=True)
    if time_density.needs == "fixed_linear" and not hasattr(path, "alpha2_cumulative"):
        raise UserError(
            f"config.time_density.name={name} needs config.path.name=variance_preserving or straight, "
            f"not {config.path.name}"
        )
    if time_density.needs == "inverse":
        _needs_fixed(f"config.time_density.name={name}", config, schedule)
    if not time_density.unbiased and config.training.objective == "bound":
        raise UserError(
            f"config.time_density.name={name} is for config.training.objective=score_matching: with it the "
            "loss is no bound"
        )
    if config.training.second_order:
        _needs_fixed("config.training.second_order", config, schedule)


def _data(config: Config, data_map: Any, num_levels: int) -> None:
    """Whether map and objective suit the data."""
    name = config.data_map.name
    if data_map.discrete != bool(num_levels):
        kind, needed = ("discrete", "scaling or logit") if num_levels else ("continuous", "identity")
        raise UserError(f"config.data_map.name={name} is not for {kind} data: choose {needed}")
    if config.training.objective == "bound" and not num_levels:
        raise UserError("config.training.objective=bound is for discrete data: choose score_matching")


def _objective(config: Config, schedule: Any) -> None:
    if config.training.objective not in ("bound", "score_matching"):
        raise unknown("config.training.objective", config.training.objective, ("bound", "score_matching"))
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


def check_latent(config: Config, schedule: Any, latent: Any) -> None:
    """Refuse parts that do not go together with a latent, or without one.

    Args:
        config: all of it.
        schedule, latent: that it selects; None where there is no latent.

    Raises:
        UserError: naming the fields, and what would be right.
    """
    per_pixel = getattr(schedule, "per_pixel", False)
    if per_pixel and latent is None:
        raise UserError(
            f"config.schedule.name={config.schedule.name} needs a latent: set config.latent.name=k_subset"
        )
    if config.model.time_input == "pixel_gamma" and not per_pixel:
        raise UserError(
            "config.model.time_input=pixel_gamma needs a schedule of every pixel: "
            "config.schedule.name=polynomial"
        )
    if config.model.time_input == "pixel_gamma" and config.network.name != "vdm_unet":
        raise UserError("config.model.time_input=pixel_gamma needs config.network.name=vdm_unet")
    if latent is None:
        return
    for field, value in (
        ("training.objective", "score_matching"),
        ("training.schedule_objective", "variance"),
    ):
        section, name = field.split(".")
        if config[section][name] == value:
            raise UserError(
                f"config.{field}={value} is not for a model with config.latent.name={config.latent.name}"
            )
