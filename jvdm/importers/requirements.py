"""Settings that a codebase fixes and no shape reveals: under others, its weights would give wrong numbers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jvdm.core.errors import UserError

if TYPE_CHECKING:
    from jvdm.model import Model


def check_components(model: "Model", codebase: str, **names: Sequence[str]) -> None:
    """Refuse a model whose parts the codebase does not have.

    Args:
        model: the one that the config selects.
        codebase: for the message.
        names: of network, schedule, path, parameterization, data_map or time_input, those that will do.

    Raises:
        UserError: names the option of the first part that will not.
    """
    from jvdm.diffusion.parameterizations import PARAMETERIZATIONS
    from jvdm.diffusion.paths import PATHS
    from jvdm.diffusion.schedules import SCHEDULES
    from jvdm.diffusion.transforms import DATA_MAPS
    from jvdm.networks import NETWORKS, GammaInput, TimeInput

    registries = {
        "network": NETWORKS,
        "schedule": SCHEDULES,
        "path": PATHS,
        "parameterization": PARAMETERIZATIONS,
        "data_map": DATA_MAPS,
    }
    # Which gamma, a scalar or one for each pixel, is a matter of shapes.
    times: dict[str, type] = {"t": TimeInput, "gamma": GammaInput, "pixel_gamma": GammaInput}
    for part, choices in names.items():
        component = times.__getitem__ if part == "time_input" else registries[part].component
        if not isinstance(getattr(model, part), tuple(component(name) for name in choices)):
            option = "model.time_input" if part == "time_input" else f"{part}.name"
            raise UserError(f"a checkpoint of {codebase} needs config.{option}={' or '.join(choices)}")


def check_values(part: Any, section: str, codebase: str, **values: Any) -> None:
    """Refuse options whose values differ from those that the codebase fixes.

    Args:
        part: of the model.
        section: of the config that selects the part.
        codebase: for the message.
        values: by name of the option.

    Raises:
        UserError: names the first option with another value.
    """
    for option, value in values.items():
        found = getattr(part, option)
        if found != value:
            raise UserError(
                f"a checkpoint of {codebase} needs config.{section}.{option}={value}, not {found}"
            )


def check_groups(network: Any, section: str, codebase: str) -> None:
    """Refuse a network that does not normalise in 32 groups, whatever its `num_groups`.

    Args:
        network: has `groups`.
        section: of the config that selects it.
        codebase: for the message.

    Raises:
        UserError: it has another number of groups.
    """
    if network.groups != 32:
        raise UserError(
            f"a checkpoint of {codebase} needs config.{section}.num_groups=32 (with {network.channels} "
            f"channels, {network.num_groups} gives {network.groups})"
        )
