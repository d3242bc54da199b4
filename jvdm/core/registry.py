"""Named components: a config fragment `{name, **options}` selects and builds one.

Options and their defaults live on the component, a dataclass or a linen module. `spec` writes all
of them into the config, so that every option is visible and typed, and can be overridden.

What callers rely on is a Protocol, checked when a component is registered. Its members without a value are
required. A member with a value is a capability that a component may state; a component that does not has the
Protocol's value, such as `per_pixel: ClassVar[bool] = False`, or None for a method that it does not have.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import ml_collections

from jvdm.core import options as options_lib
from jvdm.core.errors import UserError, unknown, wrong_type
from jvdm.core.options import Option

T = TypeVar("T", bound=type)

# An `ml_collections.ConfigDict`, whose stubs give every field the union of all types a field may have.
Config = Any


class Registry:
    """A table of components of one kind.

    Args:
        kind: what the table holds, for error messages ("schedule", "path").
        protocol: what a component must have, and what it may state.
    """

    def __init__(self, kind: str, protocol: type):
        self.kind = kind
        self.protocol = protocol
        self._components: dict[str, type] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator that enters a dataclass or linen module under `name`.

        Raises:
            KeyError: the name is taken.
            TypeError: the class lacks members of the protocol.
        """

        def decorate(component: T) -> T:
            if name in self._components:
                raise KeyError(f"{self.kind} {name!r} is registered twice")
            described: Any = component
            if not dataclasses.is_dataclass(described):
                raise TypeError(f"{self.kind} {name!r} is neither a dataclass nor a linen module")
            has = {f.name for f in dataclasses.fields(described)}.union(*map(vars, component.__mro__))
            lacking = [member for member in _required(self.protocol) if member not in has]
            if lacking:
                raise TypeError(f"{self.kind} {name!r} lacks {', '.join(lacking)}")
            for member, value in _capabilities(self.protocol).items():
                if member not in has:
                    setattr(component, member, value)
            self._components[name] = component
            return component

        return decorate

    def names(self, having: Callable[[Any], object] = lambda component: True) -> list[str]:
        """The names of all components, or of those for which `having` is true of the class, sorted."""
        return sorted(name for name, component in self._components.items() if having(component))

    def component(self, name: str | None) -> type:
        """The class registered under `name`.

        Raises:
            UserError: the name is unknown.
        """
        if name not in self._components:
            raise unknown(self.kind, name, self._components)
        return self._components[name]

    def name_of(self, component: Any) -> str:
        """The name under which an instance's class is registered.

        Raises:
            KeyError: it is not.
        """
        names = {registered: name for name, registered in self._components.items()}
        return names[type(component)]

    def options(self, name: str | None) -> dict[str, Any]:
        """The options of a component that have defaults, with those defaults."""
        fields = options_lib.fields(self.component(name))
        return {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}

    def metadata(self, name: str | None) -> dict[str, Option]:
        """The ranges, choices and so on of the same options."""
        return options_lib.options(self.component(name))

    def spec(self, name: str, **options: Any) -> Config:
        """The config fragment that selects `name` with all of its options.

        Raises:
            UserError: unknown name or option.
        """
        defaults = self.options(name)
        self._check_names(name, options)
        return ml_collections.ConfigDict({"name": name, **defaults, **options})

    def check(self, spec: Config) -> dict[str, Any]:
        """The options of a fragment, as `build` hands them to the component.

        Raises:
            UserError: unknown name or option, a value of another type, out of its range, or not a choice.
        """
        options = dict(spec)
        name = options.pop("name", None)
        defaults, metadata = self.options(name), self.metadata(name)
        self._check_names(name, options)
        for option, value in options.items():
            default = defaults[option]
            if type(default) is tuple and type(value) is list:  # as JSON writes it
                value = options[option] = tuple(value)
            if type(value) is not type(default) and not (type(default) is float and type(value) is int):
                raise wrong_type(f"{self.kind} {name!r}: option {option}", value, type(default))
            try:
                metadata[option].check(option, value)
            except ValueError as error:
                raise UserError(f"{self.kind} {name!r}: {error}") from error
        return options

    def build(self, spec: Config, **given: Any) -> Any:
        """The component that a fragment selects.

        Args:
            spec: `{name, **options}`, as `spec` returns it; an option that it lacks is at its default.
            **given: what the composition knows and no config holds; a component takes those that it
                declares as fields without defaults.

        Raises:
            UserError: what `check` refuses, or a value the component refuses.
        """
        options, name = self.check(spec), spec["name"]
        component = self.component(name)
        given = {f.name: given[f.name] for f in options_lib.fields(component) if f.name in given}
        try:
            return component(**options, **given)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.kind} {name!r}: {error}") from error

    def _check_names(self, name: str | None, options: dict[str, Any]) -> None:
        known = self.options(name)
        for option in options:
            if option not in known:
                raise unknown(f"option of {self.kind} {name!r}:", option, known)


def _members(protocol: type) -> dict[str, Any]:
    """A protocol's members in the order of their definition, with their values where it gives any."""
    members: dict[str, Any] = {}
    for base in reversed(protocol.__mro__):
        if base not in (object, Protocol, Generic):
            for name in (*vars(base).get("__annotations__", {}), *vars(base)):
                members[name] = vars(base).get(name, dataclasses.MISSING)
    return {name: value for name, value in members.items() if name == "__call__" or not name.startswith("_")}


def _is_required(value: Any) -> bool:
    methods = (property, classmethod, staticmethod)
    return value is dataclasses.MISSING or isinstance(value, methods) or callable(value)


def _required(protocol: type) -> list[str]:
    return [name for name, value in _members(protocol).items() if _is_required(value)]


def _capabilities(protocol: type) -> dict[str, Any]:
    return {name: value for name, value in _members(protocol).items() if not _is_required(value)}
