"""Options that carry their own metadata.

An option is a field, of a frozen dataclass or of a linen module, that has a default. `option` gives it a
range or choices, says whether a resumed run may change it and whether it is part of the model that weights
belong to, and describes it. Configs, their checks and their documentation are derived from that.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from jvdm.core.errors import unknown

_KEY = "option"
LARGEST = 2**31 - 1  # whole number that compiled programs take
_LINEN_FIELDS = ("parent", "name")

Number = int | float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """What an option declares apart from its name and default.

    Attributes:
        low, high: the smallest and the largest value of a number.
        above, below: bounds of a number that it must not reach.
        choices: the values of a string; empty is any.
        free_on_resume: a resumed run may change it.
        part_of_model: the function that the weights belong to depends on it, if it does on its section.
        help: a phrase for lists of options.
    """

    low: Number | None = None
    high: Number | None = None
    above: Number | None = None
    below: Number | None = None
    choices: tuple[str, ...] = ()
    free_on_resume: bool = False
    part_of_model: bool = True
    help: str = ""

    def check(self, name: str, value: Any) -> None:
        """Refuse a value outside of the range or the choices.

        Args:
            name: of the option, for the message.
            value: of the option's type.

        Raises:
            ValueError: one line that says what would be right.
        """
        if self.choices and value not in self.choices:
            raise unknown(name, value, self.choices)
        if self.high is None and type(value) is int and abs(value) > LARGEST:
            raise ValueError(f"{name} is {value}: give a number up to {LARGEST}")
        inside = (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        if not inside:
            raise ValueError(f"{name} is {value}: give {self.limits()}")

    def limits(self) -> str:
        """The range or the choices in words, "" where there are none."""
        if self.choices:
            return " | ".join(self.choices)
        low, high, above, below = (_text(n) for n in (self.low, self.high, self.above, self.below))
        if low and high:
            return f"a number from {low} to {high}"
        if above and below:
            return f"a number between {above} and {below}"
        start = (
            f"{low} or more"
            if low
            else "a positive number"
            if above == "0"
            else above and f"more than {above}"
        )
        end = f"{high} or less" if high else below and f"below {below}"
        return ", ".join(part for part in (start, end) if part)


def _text(number: Number | None) -> str:
    return "" if number is None else f"{number:g}" if isinstance(number, float) else str(number)


def option(
    default: Any,
    *,
    low: Number | None = None,
    high: Number | None = None,
    above: Number | None = None,
    below: Number | None = None,
    choices: Iterable[str] = (),
    free_on_resume: bool = False,
    part_of_model: bool = True,
    help: str = "",
) -> Any:
    """A dataclass field with a default and the metadata of `Option`."""
    about = Option(
        low=low,
        high=high,
        above=above,
        below=below,
        choices=tuple(choices),
        free_on_resume=free_on_resume,
        part_of_model=part_of_model,
        help=help,
    )
    return dataclasses.field(default=default, metadata={_KEY: about})


def fields(component: Any) -> list[dataclasses.Field]:
    """The fields of a dataclass, or of a linen module without those that flax adds."""
    return [f for f in dataclasses.fields(component) if f.init and f.name not in _LINEN_FIELDS]


def options(component: Any) -> dict[str, Option]:
    """The metadata of every field that has a default, by name."""
    return {f.name: about(f) for f in fields(component) if f.default is not dataclasses.MISSING}


def about(field: dataclasses.Field) -> Option:
    """The metadata of one field."""
    return field.metadata.get(_KEY, Option())


def check(component: Any) -> None:
    """Refuse an instance with an option outside of its range or choices; for `__post_init__`.

    Raises:
        ValueError: one line that names the option.
    """
    for name, metadata in options(component).items():
        metadata.check(name, getattr(component, name))
