"""The intervals of `config.training`: which are possible, and what is due after a step."""

from jvdm.core.errors import UserError
from jvdm.core.registry import Config

INTERVALS = ("num_steps", "log_every", "eval_every", "checkpoint_every", "sample_every")
NEVER = ("eval_every", "sample_every")  # where 0 is never


def check_intervals(config: Config) -> None:
    """Refuse intervals that are not multiples of `config.training.steps_per_dispatch`.

    Raises:
        UserError: naming the field.
    """
    training, unit = config.training, config.training.steps_per_dispatch
    if unit < 1:
        raise UserError(f"config.training.steps_per_dispatch is {unit}: give 1 or more")
    if training.microbatches < 1:
        raise UserError(f"config.training.microbatches is {training.microbatches}: give 1 or more")
    for name in INTERVALS:
        value = training[name]
        if value < (name not in NEVER) or value % unit:
            raise UserError(
                f"config.training.{name} is {value}, not a positive multiple of "
                f"config.training.steps_per_dispatch, {unit}"
            )


def is_due(training: Config, interval: str, step: int) -> bool:
    """Whether what an interval is of is due after a step; all of it is after the last one.

    Args:
        training: the section of the config.
        interval: one of `INTERVALS`.
        step: how many are done.
    """
    if interval in NEVER and not training[interval]:
        return False
    return step % training[interval] == 0 or step == training.num_steps
