"""The config that `jvdm.config.sections` declares: its default, its checks, and what is known of a field."""

import dataclasses
import math
from typing import Any

from ml_collections import ConfigDict

from jvdm.config.plain import leaves
from jvdm.config.sections import Component, Fields, Section
from jvdm.core import options
from jvdm.core.errors import UserError, unknown, wrong_type
from jvdm.core.options import Option
from jvdm.core.registry import Config, Registry


def default() -> Config:
    """VDM with the published hyperparameters, on digits; a config file changes what it needs."""
    return _default(Fields).lock()


def _default(fields: type) -> Config:
    config = ConfigDict()
    for field in dataclasses.fields(fields):
        match field.default:
            case Section() as section:
                config[field.name] = _default(section.fields)
            case Component() as component:
                config[field.name] = component.registry.spec(component.name)
            case value:
                config[field.name] = value
    return config


def _components(fields: type, prefix: str = "") -> dict[str, Registry]:
    found: dict[str, Registry] = {}
    for field in dataclasses.fields(fields):
        match field.default:
            case Section() as section:
                found |= _components(section.fields, f"{prefix}{field.name}.")
            case Component() as component:
                found[prefix + field.name] = component.registry
    return found


# Sections that select a component, by dotted name.
COMPONENTS = _components(Fields)


def about(field: str, config: Config) -> Option:
    """What is known of a field.

    Args:
        field: its dotted name, such as "eval.ode.solver.tolerance".
        config: a config or its dictionary, which selects the components.

    Returns:
        Its range and choices, whether it is free on resume, and whether it is part of the model. Of a field
        that neither a section nor the chosen component has, what its section says.

    Raises:
        UserError: the config selects an unknown component.
    """
    return _about(Fields, field.split("."), config, free_on_resume=False, part_of_model=False)


def _about(
    fields: type, names: list[str], config: Config, *, free_on_resume: bool, part_of_model: bool
) -> Option:
    """What is known of a field of `fields`, whose section is as given."""
    name, *inner = names
    part = {field.name: field for field in dataclasses.fields(fields)}.get(name)
    option = Option() if part is None else options.about(part)
    if part is not None and isinstance(part.default, Section | Component):
        free_on_resume = free_on_resume or part.default.free_on_resume
        part_of_model = part.default.part_of_model
        if inner and isinstance(part.default, Section):
            return _about(
                part.default.fields,
                inner,
                config[name],
                free_on_resume=free_on_resume,
                part_of_model=part_of_model,
            )
        if inner and isinstance(part.default, Component):
            registry = part.default.registry
            known = {
                "name": Option(choices=tuple(registry.names())),
                **registry.metadata(config[name]["name"]),
            }
            option = known.get(".".join(inner), Option())
    return dataclasses.replace(
        option,
        free_on_resume=option.free_on_resume or free_on_resume,
        part_of_model=option.part_of_model and part_of_model,
    )


def check_complete(config: Any) -> None:
    """Refuse a config with a missing, unknown or impossible field.

    Raises:
        UserError: naming the field, and what would be right.
    """
    _check_types(default().to_dict(), config, "config")
    for field, value in leaves(config.to_dict()):
        for part in value if isinstance(value, tuple) else (value,):
            if not isinstance(part, str | bool | int | float):
                raise UserError(f"config.{field} is {value!r}, which no config holds")
            if isinstance(part, float) and not math.isfinite(part):
                raise UserError(f"config.{field} is {value!r}: give a finite number")
    _check_values(Fields, config, "config")


def _check_types(expected: dict[str, Any], given: Any, where: str) -> None:
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
            _check_types({"name": ""} if "name" in value else value, given[name], field)
        elif isinstance(given[name], bool) != isinstance(value, bool) or (
            not isinstance(given[name], type(value))
            and not (isinstance(value, float) and isinstance(given[name], int))
        ):
            raise wrong_type(field, given[name], type(value))


def _check_values(fields: type, config: Config, where: str) -> None:
    """Ranges and choices, of components too."""
    for field in dataclasses.fields(fields):
        name = f"{where}.{field.name}"
        match field.default:
            case Section() as section:
                _check_values(section.fields, config[field.name], name)
            case Component(registry=registry):
                registry.check(config[field.name])
            case _:
                try:
                    options.about(field).check(name, config[field.name])
                except ValueError as error:
                    raise UserError(str(error)) from error
