"""Changing fields of a config by dotted name, as flags and the library's `settings` do."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jvdm import config as config_lib
from jvdm.core.errors import unknown, wrong_type
from jvdm.core.registry import Config


def choose(config: Config, section: str, name: str) -> None:
    """Put another component into a section; options that both have keep their values.

    Args:
        config: changed in place.
        section: a key of `jvdm.config.COMPONENTS`.
        name: of the component.

    Raises:
        UserError: the name is unknown.
    """
    *parents, last = section.split(".")
    where = config
    for parent in parents:
        where = where[parent]
    old, options = dict(where[last]), config_lib.COMPONENTS[section].options(name)
    kept = {key: value for key, value in old.items() if type(options.get(key)) is type(value)}
    with config.unlocked():
        where[last] = config_lib.COMPONENTS[section].spec(name, **kept)


def choose_components(config: Config, values: Mapping[str, Any]) -> None:
    """`choose` for every field that names a component, such as "eval.ode.solver.name".

    Args:
        config: changed in place; fields of `values` that do not name a component are ignored.
        values: by dotted name.

    Raises:
        UserError: a name is unknown.
    """
    for field, value in values.items():
        section = field.removesuffix(".name")
        if section != field and section in config_lib.COMPONENTS:
            if not isinstance(value, str):
                raise wrong_type(f"config.{field}", value, str)
            choose(config, section, value)


def put(config: Config, values: Mapping[str, Any]) -> None:
    """Set fields; components first, so that options are those of the new ones.

    Args:
        config: changed in place.
        values: by dotted name, such as "eval.ode.solver.tolerance".

    Raises:
        UserError: an unknown field or component, or a value of another type.
    """
    choose_components(config, values)
    for field, value in values.items():
        *parents, last = field.split(".")
        node = config
        for name in parents:
            node = node[name] if isinstance(node, ConfigDict) and name in node else None
        if not (isinstance(node, ConfigDict) and last in node):
            section = {parents[0]: config[parents[0]].to_dict()} if parents and parents[0] in config else {}
            leaves = config_lib.leaves(section or config.to_dict())
            raise unknown("field", f"config.{field}", [f"config.{name}" for name, _ in leaves])
        try:
            node[last] = value
        except TypeError as error:
            raise wrong_type(f"config.{field}", value, type(node[last])) from error
