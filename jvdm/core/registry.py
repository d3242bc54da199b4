"""Named components: a config fragment `{name, **options}` selects and builds one.

Options and their defaults live on the component, a dataclass or a linen module. `spec` writes all
of them into the config, so that every option is visible and typed, and can be overridden.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import ml_collections

from jvdm.core.errors import UserError, unknown, wrong_type

T = TypeVar("T", bound=type)

# An `ml_collections.ConfigDict`, whose stubs give every field the union of all types a field may have.
Config = Any

_LINEN_FIELDS = ("parent", "name")


class Registry:
    """A table of components of one kind.

    Args:
        kind: what the table holds, for error messages ("schedule", "path").
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._components: dict[str, type] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator that enters a dataclass under `name`."""

        def decorate(component: T) -> T:
            if name in self._components:
                raise KeyError(f"{self.kind} {name!r} is registered twice")
            self._components[name] = component
            return component

        return decorate

    def names(self) -> list[str]:
        """The registered names, sorted."""
        return sorted(self._components)

    def component(self, name: str) -> type:
        """The class registered under `name`.

        Raises:
            UserError: the name is unknown.
        """
        if name not in self._components:
            raise unknown(self.kind, name, self._components)
        return self._components[name]

    def options(self, name: str) -> dict[str, Any]:
        """The options of a component that have defaults, with those defaults."""
        return {f.name: f.default for f in self._fields(name) if f.default is not dataclasses.MISSING}

    def spec(self, name: str, **options: Any) -> Config:
        """The config fragment that selects `name` with all of its options.

        Raises:
            UserError: unknown name or option.
        """
        defaults = self.options(name)
        self._check_options(name, options)
        return ml_collections.ConfigDict({"name": name, **defaults, **options})

    def build(self, spec: Config, **given: Any) -> Any:
        """The component that a fragment selects.

        Args:
            spec: `{name, **options}`, as `spec` returns it.
            **given: what the composition knows and no config holds; a component takes those that it
                declares as fields without defaults.

        Raises:
            UserError: unknown name or option, or a value the component refuses.
        """
        options = dict(spec)
        name = options.pop("name", None)
        component = self.component(name)
        self._check_options(name, options)
        for option, default in self.options(name).items():
            value = options.get(option, default)
            if type(default) is tuple and type(value) is list:  # as JSON writes it
                value = options[option] = tuple(value)
            if type(value) is not type(default) and not (type(default) is float and type(value) is int):
                raise wrong_type(f"{self.kind} {name!r}: option {option}", value, type(default))
        given = {f.name: given[f.name] for f in self._fields(name) if f.name in given}
        try:
            return component(**options, **given)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.kind} {name!r}: {error}") from error

    def _fields(self, name: str) -> Iterable[dataclasses.Field]:
        fields = dataclasses.fields(self.component(name))
        return [f for f in fields if f.init and f.name not in _LINEN_FIELDS]

    def _check_options(self, name: str, options: dict[str, Any]) -> None:
        known = self.options(name)
        for option in options:
            if option not in known:
                raise unknown(f"option of {self.kind} {name!r}:", option, known)
