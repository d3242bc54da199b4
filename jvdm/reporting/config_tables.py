"""Configs as tables of the report: all fields, those off their defaults, and those in which runs differ."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from jvdm import config as config_lib
from jvdm.reporting.parts import Column, Table

_ABSENT = object()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a config.

    Attributes:
        name: dotted.
        value, default: `_ABSENT` where there is none.
    """

    name: str
    value: Any
    default: Any

    @property
    def changed(self) -> bool:
        """The value is not the default. A field that the file lacks has its default."""
        return self.value is not _ABSENT and self.value != self.default


class Section(NamedTuple):
    """The fields of one section of a config, and how many there are in words."""

    caption: str
    size: str
    table: Table


def fields(config: Mapping[str, Any]) -> list[Field]:
    """Every field of a config and of the defaults, by name."""
    given, defaults = dict(config_lib.leaves(dict(config))), defaults_of(config)
    return [
        Field(name=name, value=given.get(name, _ABSENT), default=defaults.get(name, _ABSENT))
        for name in sorted(given.keys() | defaults.keys())
    ]


def defaults_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of every field; a component's options have the defaults of the chosen component."""
    given = dict(config_lib.leaves(dict(config)))
    defaults = dict(config_lib.leaves(config_lib.default().to_dict()))
    for section, registry in config_lib.COMPONENTS.items():
        chosen, start = f"{section}.name", f"{section}."
        if given.get(chosen) != defaults[chosen] and given.get(chosen) in registry.names():
            defaults = {k: v for k, v in defaults.items() if k == chosen or not k.startswith(start)}
            defaults.update(config_lib.leaves(registry.options(given[chosen]), start))
    return defaults


def changes(config: Mapping[str, Any]) -> Table | None:
    """The fields that are not at their defaults; None if there is none."""
    rows = [[f.name, _shown(f.value), _shown(f.default)] for f in fields(config) if f.changed]
    columns = [Column("field", "code"), Column("value"), Column("default")]
    return _table("Fields that differ from their defaults", columns, rows) if rows else None


def sections(config: Mapping[str, Any]) -> list[Section]:
    """Every field, section by section."""
    found = []
    columns = [Column("field", "code"), Column("value"), Column("", "changed"), Column("default")]
    in_sections = sorted(fields(config), key=lambda field: _section(field.name))
    for section, group in itertools.groupby(in_sections, key=lambda field: _section(field.name)):
        inside = list(group)
        changed = sum(field.changed for field in inside)
        count = f"{len(inside)} field{'s' * (len(inside) > 1)}" + f", {changed} changed" * bool(changed)
        rows = [[f.name, _shown(f.value), "changed" * f.changed, _shown(f.default)] for f in inside]
        found.append(Section(section, count, _table(f"Config: {section}", columns, rows)))
    return found


def differences(configs: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """The fields in which configs differ, by the runs' names; None if they are equal."""
    # A field that an older version of jvdm did not have was at its default.
    full = [defaults_of(config) | dict(config_lib.leaves(dict(config))) for config in configs.values()]
    rows = []
    for name in sorted({name for each in full for name in each}):
        values = [each.get(name, _ABSENT) for each in full]
        if any(value != values[0] for value in values):
            rows.append([name, *map(_shown, values)])
    columns = [Column("field", "code"), *map(Column, configs)]
    return _table("Fields in which the configs differ", columns, rows) if rows else None


def _table(caption: str, columns: list[Column], rows: list[list[str | None]]) -> Table:
    return Table(caption=caption, columns=columns, groups={"": rows})


def _section(name: str) -> str:
    section, dot, _ = name.partition(".")
    return section if dot else "general"


def _shown(value: Any) -> str | None:
    if value is _ABSENT:
        return None
    return value if isinstance(value, str) and value else repr(value)
