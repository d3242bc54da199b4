"""Every option as a page of the documentation; `python -m jvdm.config.listing` prints it."""

from collections.abc import Iterator
from typing import Any

from jvdm.config.plain import leaves
from jvdm.config.schema import COMPONENTS, about, default
from jvdm.core.options import Option
from jvdm.core.registry import Config

_HEAD = "| | default | may be | | resume | model |\n|---|---|---|---|---|---|\n"
_INTRODUCTION = """\
# Options

What every field is by default, what it may be, whether a resumed run may change it ("resume"), and whether
weights belong to its value ("model"). `python -m jvdm.config.listing` prints this page.

"""


def listing() -> str:
    """Markdown: a table of the fields that every config has, and one for the components of each section."""
    config = default().to_dict()
    parts = [_INTRODUCTION, "## Of every config\n\n", _HEAD]
    for field, value in leaves(config):
        if not any(field.startswith(f"{section}.") for section in COMPONENTS):
            parts.append(_row(field, value, about(field, config)))
    for section, registry in COMPONENTS.items():
        parts += [f"\n## `{section}`\n\n", _HEAD]
        for name in registry.names():
            chosen = _chosen(config, section, {"name": name, **registry.options(name)})
            parts += _rows(section, name, chosen)
    return "".join(parts)


def _rows(section: str, name: str, config: Config) -> Iterator[str]:
    """The component's name, and each of its options."""
    for field, value in leaves(dict(config)):
        if field == f"{section}.name":
            yield f"| **`{name}`** | | | | | |\n"
        elif field.startswith(f"{section}."):
            yield _row(field.removeprefix(f"{section}."), value, about(field, config))


def _chosen(config: Config, section: str, fragment: dict[str, Any]) -> dict[str, Any]:
    """The config with another component."""
    first, _, inner = section.partition(".")
    return {**config, first: _chosen(config[first], inner, fragment) if inner else fragment}


def _row(name: str, value: Any, option: Option) -> str:
    limits = option.limits().replace(" | ", ", ")
    resume = "yes" if option.free_on_resume else ""
    model = "yes" if option.part_of_model else ""
    cells = (f"`{name}`", f"`{value!r}`", limits, option.help, resume, model)
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    print(listing(), end="")
