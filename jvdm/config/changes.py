"""What may differ between the config of a saved run and the given one."""

import pathlib
from typing import Any

from jvdm.config.plain import leaves
from jvdm.config.schema import about, default
from jvdm.core.errors import UserError
from jvdm.core.registry import Config

Change = tuple[str, Any, Any]


def differences(saved: dict[str, Any], current: Config) -> list[Change]:
    """(field, saved value, current value) of every field that differs; None where it is absent.

    A field that an older version of jvdm did not have was at its default.
    """
    new, defaults = dict(leaves(current.to_dict())), dict(leaves(default().to_dict()))
    old = {field: value for field, value in defaults.items() if new.get(field) == value}
    old.update(leaves(saved))
    fields = sorted(old.keys() | new.keys())
    return [(f, old.get(f), new.get(f)) for f in fields if old.get(f) != new.get(f)]


def _describe(changed: list[Change]) -> str:
    return ", ".join(f"{field} (saved {old!r}, given {new!r})" for field, old, new in changed)


def check_resume(saved: dict[str, Any], current: Config, where: pathlib.Path) -> None:
    """Refuse to resume a run under a config that would make it a different run.

    Raises:
        UserError: naming the fields that differ and may not.
    """

    def may_change(field: str) -> bool:
        if field == "training.num_steps" and current.optimizer.linear_decay:
            return False  # the learning rate depends on it
        return about(field, current).free_on_resume

    def same_content(change: Change) -> bool:
        """Whether files of one kind lie elsewhere: the trainer compares what they hold."""
        field, old, new = change
        kinds = {str(source).partition(":")[0] for source in (old, new)}
        return field == "data.source" and len(kinds) == 1 and kinds <= {"npz", "folder"}

    changed = [
        change
        for change in differences(saved, current)
        if not may_change(change[0]) and not same_content(change)
    ]
    if changed:
        raise UserError(
            f"{where} holds a run with another config: {_describe(changed)}; "
            "use the saved values, or another --workdir"
        )


def model_fields(config: Config) -> dict[str, Any]:
    """(dotted name, value) of every field that defines the model."""
    return {f: value for f, value in leaves(config.to_dict()) if about(f, config).part_of_model}


def check_model(saved: dict[str, Any], current: Config, where: pathlib.Path) -> None:
    """Refuse to use weights with a config of a different model.

    Raises:
        UserError: naming the fields that differ.
    """
    changed = [change for change in differences(saved, current) if about(change[0], current).part_of_model]
    if changed:
        raise UserError(f"the weights in {where} belong to another model: {_describe(changed)}")
