"""Changing fields of a config by dotted name, as flags and the library's `settings` do."""

import difflib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jvdm import config as config_lib
from jvdm.core.errors import UserError, wrong_type
from jvdm.core.registry import Config


def choose(config: Config, section: str, name: str) -> None:
    """Put another component into a section; options that both have keep values that both may have.

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
    registry = config_lib.COMPONENTS[section]
    options, about = registry.options(name), registry.metadata(name)

    def may_have(key: str, value: Any) -> bool:
        if type(options.get(key)) is not type(value):
            return False
        try:
            about[key].check(key, value)
        except ValueError:
            return False
        return True

    kept = {key: value for key, value in dict(where[last]).items() if may_have(key, value)}
    with config.unlocked():
        where[last] = registry.spec(name, **kept)


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
        node, last = find(config, field)
        try:
            node[last] = value
        except TypeError as error:
            raise wrong_type(f"config.{field}", value, type(node[last])) from error


def find(config: Config, field: str) -> tuple[Config, str]:
    """The section that has a field, and the field's name in it.

    Args:
        config: all of it.
        field: dotted name, such as "training.batch_size".

    Raises:
        UserError: there is no such field.
    """
    *parents, last = field.split(".")
    node, path = config, "config"
    for name in parents:
        if not isinstance(node.get(name), ConfigDict):
            break
        node, path = node[name], f"{path}.{name}"
    else:
        if last in node:
            return node, last
    every = [f"config.{name}" for name, _ in config_lib.leaves(config.to_dict())]
    near = difflib.get_close_matches(f"config.{field}", every, n=1)
    if not parents:  # the section is forgotten
        near = [name for name in every if name.rpartition(".")[2] == last] or near
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UserError(f"unknown field config.{field}{hint} ({path} has: {', '.join(sorted(node))})")
