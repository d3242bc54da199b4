"""`config.json` and `data.json` of a workdir: written in the present format, read in any that is known."""

import inspect
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from jvdm import config as config_lib
from jvdm.core import formats
from jvdm.core.errors import UserError
from jvdm.core.registry import Config

# In a workdir, if the config names components that are not jvdm's: where they were registered.
OWN_COMPONENTS = "components.json"


def own_components(config: Config) -> dict[str, str]:
    """Where the components of a config that are not jvdm's own come from, "module (file)", by their field."""
    found = {}
    for section, registry in config_lib.COMPONENTS.items():
        spec: Any = config
        for name in section.split("."):
            spec = spec[name]
        component = registry.component(spec["name"])
        if component.__module__.partition(".")[0] != "jvdm":
            own = [f for f in vars(component).values() if inspect.isfunction(f)]
            own = [f for f in own if f.__globals__.get("__name__") == component.__module__]
            files = sorted({f.__code__.co_filename for f in own})
            file = next((each for each in files if pathlib.Path(each).is_file()), None)
            # A config file is run without a module's name.
            module = "" if component.__module__.startswith("<") else component.__module__
            found[f"{section}.name={spec['name']}"] = (
                f"{module} ({file})" if module and file else module or file or "a config file"
            )
    return found


def _import_hint(path: pathlib.Path) -> str:
    """What to import before reading the config of a run that uses custom components; "" if it uses none."""
    try:
        own = config_lib.read_json(path.parent / OWN_COMPONENTS)
    except UserError:
        return ""
    parts = ", ".join(f"config.{field} is from {origin}" for field, origin in own.items())
    return f"; {parts}: import that first, or give --config=FILE.py that does"


def config_text(config: Config) -> str:
    """The content of a `config.json`."""
    content = {formats.FIELD: formats.CONFIG, **config.to_dict()}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def data_text(record: dict[str, Any]) -> str:
    """The content of a `data.json`."""
    return json.dumps({formats.FIELD: formats.DATA, **record}) + "\n"


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """The fields of a `config.json`. Fields that an older version of jvdm did not have may be missing.

    Raises:
        UserError: it cannot be read, or is of a newer format.
    """
    saved = config_lib.read_json(path)
    found = formats.check(saved, formats.CONFIG, path)
    fields = {name: value for name, value in saved.items() if name != formats.FIELD}
    for name, default in config_lib.default().to_dict().items():
        if isinstance(default, dict) and not isinstance(fields.get(name, {}), dict):
            raise UserError(f"{path}: {name} is a {type(fields[name]).__name__}, not a section")
    if found == 1:
        fields = _config_of_format_1(fields)
    return _config_of_format_2(fields) if found <= 2 else fields


def read_data(path: pathlib.Path) -> dict[str, Any]:
    """The fields of a `data.json`.

    Raises:
        UserError: it cannot be read, or is of a newer format.
    """
    saved = config_lib.read_json(path)
    found = formats.check(saved, formats.DATA, path)
    fields = {name: value for name, value in saved.items() if name != formats.FIELD}
    if found == 1 and "image_shape" in fields:
        fields["data_shape"] = fields.pop("image_shape")
    shape, levels = fields.get("data_shape", [1]), fields.get("num_levels", 0)
    if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
        raise UserError(f"{path}: data_shape is {shape!r}, not a list of positive integers")
    if type(levels) is not int or levels < 0:
        raise UserError(f"{path}: num_levels is {levels!r}, not an integer from 0")
    return fields


def complete_config(path: pathlib.Path) -> Config:
    """The config of a `config.json`. Fields that an older version of jvdm did not have are at their default.

    Raises:
        UserError: it cannot be read, or has fields that this version does not know.
    """
    config = ConfigDict(_merged(config_lib.default().to_dict(), read_config(path)))
    try:
        config_lib.check_complete(config)
    except UserError as error:
        raise UserError(f"{path}: {error}{_import_hint(path)}") from error
    return config.lock()


def _config_of_format_1(fields: dict[str, Any]) -> dict[str, Any]:
    """Add what format 1 implies: it was trained on the bound with the prior N(0, I)."""
    model = fields.get("model", {})
    if "prior" not in config_lib.default().model or not isinstance(model, dict):
        return fields
    fields = {**fields, "model": {"prior": "standard", **model}}
    match fields:
        # The name of the process's prior, which had another name in this section.
        case {"eval": {"elbo": {"prior": "noise"} as elbo} as evaluation}:
            fields["eval"] = {**evaluation, "elbo": {**elbo, "prior": "model"}}
    return fields


def _config_of_format_2(fields: dict[str, Any]) -> dict[str, Any]:
    """Say what `remat` meant."""
    fields = dict(fields)
    for name in ("network", "encoder"):
        section = fields.get(name, {})
        if isinstance(section.get("remat"), bool):
            fields[name] = {**section, "remat": "full" if section["remat"] else "none"}
    return fields


def _merged(default: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """`saved`, and what it lacks of `default`; a component's options belong to the one that is chosen."""
    merged = dict(default)
    for name, value in saved.items():
        old = default.get(name)
        sections = isinstance(value, dict) and isinstance(old, dict) and "name" not in old
        merged[name] = _merged(old, value) if sections and old is not None else value
    return merged
