"""Configs as tables of a page, and in what they differ from the defaults and from one another."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from jvdm import config as config_lib
from jvdm.reporting.markup import Column, Html, element, join, table

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
        """It is not at its default; one that the file lacks is."""
        return self.value is not _ABSENT and self.value != self.default


def fields(config: Mapping[str, Any]) -> list[Field]:
    """Every field of a config and of the defaults, by name."""
    given, defaults = dict(config_lib.leaves(dict(config))), defaults_of(config)
    return [
        Field(name=name, value=given.get(name, _ABSENT), default=defaults.get(name, _ABSENT))
        for name in sorted(given.keys() | defaults.keys())
    ]


def defaults_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of every field; of a component's options, those of the component that is chosen."""
    given = dict(config_lib.leaves(dict(config)))
    defaults = dict(config_lib.leaves(config_lib.default().to_dict()))
    for section, registry in config_lib.COMPONENTS.items():
        name = given.get(f"{section}.name")
        if name != defaults[f"{section}.name"] and name in registry.names():
            for field in [
                each for each in defaults if each.startswith(f"{section}.") and each != f"{section}.name"
            ]:
                del defaults[field]
            defaults.update(config_lib.leaves(registry.options(name), f"{section}."))
    return defaults


def changes(config: Mapping[str, Any]) -> Html:
    """The fields that are not at their defaults."""
    rows = [[_code(f.name), _shown(f.value), _shown(f.default)] for f in fields(config) if f.changed]
    if not rows:
        return element("p", "Every field is at its default.", class_="empty")
    titles = ("field", "value", "default")
    return table("Fields that differ from their defaults", [Column(title=title) for title in titles], rows)


def everything(config: Mapping[str, Any]) -> Html:
    """Every field, a fold for each section."""
    folds = []
    in_sections = sorted(fields(config), key=lambda field: _section(field.name))
    for section, group in itertools.groupby(in_sections, key=lambda field: _section(field.name)):
        inside = list(group)
        changed = sum(field.changed for field in inside)
        rows = [
            [
                _code(f.name),
                _shown(f.value),
                element("strong", "changed", class_="changed") if f.changed else "",
                _shown(f.default),
            ]
            for f in inside
        ]
        titles = ("field", "value", "", "default")
        columns = [Column(title=title) for title in titles]
        count = f"{len(inside)} field{'s' * (len(inside) > 1)}" + f", {changed} changed" * bool(changed)
        heading = element("summary", section, " ", element("span", count, class_="units"))
        folds.append(
            element("details", heading, table(f"Config: {section}", columns, rows), class_="section")
        )
    label = element(
        "label", "Search all fields ", element("input", type="search", id="search", autocomplete="off")
    )
    found = element("span", id="found", role="status")
    search = element("p", label, " ", found, class_="search", hidden=True)
    return element("div", search, join(folds), id="fields")


def differences(configs: Mapping[str, Mapping[str, Any] | None]) -> Html:
    """The fields in which runs differ.

    Args:
        configs: by the runs' names; None where there is none.
    """
    given = {
        name: dict(config_lib.leaves(dict(config))) for name, config in configs.items() if config is not None
    }
    if len(given) < 2:
        return element(
            "p", "Fewer than two configs can be read: there is nothing to compare.", class_="empty"
        )
    defaults: list[Mapping[str, Any]] = [
        defaults_of(config) for config in configs.values() if config is not None
    ]
    names = sorted({name for each in (*given.values(), *defaults) for name in each})
    rows = []
    for name in names:
        # A field that an older version of jvdm did not have was at its default.
        values = [
            each.get(name, default.get(name, _ABSENT))
            for each, default in zip(given.values(), defaults, strict=True)
        ]
        if any(value != values[0] for value in values):
            rows.append([_code(name), *map(_shown, values)])
    if not rows:
        return element("p", "The configs are equal.", class_="empty")
    columns = [Column(title="field"), *(Column(title=name) for name in given)]
    return table("Fields in which the configs differ", columns, rows)


def _section(name: str) -> str:
    section, dot, _ = name.partition(".")
    return section if dot else "general"


def _code(name: str) -> Html:
    return element("code", name)


def _shown(value: Any) -> object:
    if value is _ABSENT:
        return None
    return value if isinstance(value, str) and value else repr(value)
