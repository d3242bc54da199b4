"""The file that --config names: where it is, what it returns, and the name of its run."""

import contextlib
import decimal
import difflib
import itertools
import pathlib
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from jvdm.core.errors import UserError, unknown, wrong_type
from jvdm.core.files import expanded

# What ml_collections reads a flag with.
_PARSERS = {int: flags.IntegerParser(), float: flags.FloatParser(), bool: flags.BooleanParser()}

RUN_CONFIG = "config.json"  # in a workdir

PACKAGE = pathlib.Path(__file__).resolve().parents[1]


def packaged() -> dict[str, pathlib.Path]:
    """The config files that come with jvdm, by name.

    They are in the package where it is installed, and in the folder beside it in a clone of the repository.
    """
    inside = PACKAGE / "configs"
    folder = inside if inside.is_dir() else PACKAGE.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}


def find(path: str) -> pathlib.Path:
    """The file of a path, or of the name of a packaged config.

    Args:
        path: "configs/digits.py" or "digits"; a file of that name comes first.

    Raises:
        UserError: there is neither.
    """
    file = pathlib.Path(path)
    if file.is_file():
        return file
    configs = packaged()
    if path in configs:
        return configs[path]
    if file.is_dir():
        raise UserError(f"--config={path}: a folder; give a file (packaged configs: {', '.join(configs)})")
    if file.suffix != ".py" and len(file.parts) < 2:
        raise unknown("config", path, configs)
    near = difflib.get_close_matches(file.stem, configs, n=1)
    hint = f"; did you mean --config={near[0]}?" if near else ""
    raise UserError(f"--config={path}: no such file{hint} (packaged configs: {', '.join(configs)})")


def split(given: str) -> tuple[str, str, str]:
    """The path, the colon or "", and the argument of a value of --config.

    A folder's name may have colons: the longest part before one that is a file is the path.
    """
    places = [place for place, character in enumerate(given) if character == ":"]
    for place in reversed([*places, len(given)]):
        if pathlib.Path(given[:place]).is_file():
            return given[:place], given[place : place + 1], given[place + 1 :]
    return given.partition(":")


def argument(argv: Sequence[str], flag: str = "config") -> tuple[str, list[str]]:
    """Split a flag, --config unless told otherwise, from a command.

    Returns:
        (its value, or "" without it; the other arguments).
    """
    given, rest, arguments = "", [], iter(argv)
    for each in arguments:
        name, equals, value = each.partition("=")
        if name not in (f"--{flag}", f"-{flag}"):
            rest.append(each)
        else:
            given = value if equals else next(arguments, "")
    return given, rest


def of_run(argv: Sequence[str]) -> str:
    """The config of the run that a command without --config is about, or "" where there is none.

    It is that of --workdir, or of the run that --checkpoint belongs to.
    """
    workdir, checkpoint = (argument(argv, flag)[0] for flag in ("workdir", "checkpoint"))
    folders = [expanded(workdir, "--workdir")] if workdir else []
    if checkpoint:
        path = expanded(checkpoint, "--checkpoint").absolute()
        path = path.parent if path.parent.name == "checkpoints" else path
        folders.append(path.parent if path.name == "checkpoints" else path)
    return next((str(each / RUN_CONFIG) for each in folders if (each / RUN_CONFIG).is_file()), "")


def load(given: str, overrides: Sequence[str] = ()) -> Any:
    """The config that a file returns, with the components that overrides choose.

    Args:
        given: the value of --config: a path or a name, and after a colon the argument of `get_config`; or the
            `config.json` of a run.
        overrides: flags; --config.SECTION.name=NAME puts another component into a section before its options
            are set, so that the options are those of the new component.

    Raises:
        UserError: there is no such file, it fails, or it returns no config; or an override names an unknown
            component or field, or has a value of another type.
    """
    path, colon, argument = split(given)
    file = find(path)
    if file.suffix == ".json":
        from jvdm.runs import saved

        return _overridden(saved.complete_config(file), overrides)
    sys.path.append(str(file.absolute().parent))  # for what it imports from its own folder
    try:
        get_config = runpy.run_path(str(file)).get("get_config")
        if get_config is None:
            raise UserError("it defines no get_config()")
        config = get_config(argument) if colon else get_config()
        if config is None:
            raise UserError("get_config() returned None")
    except UserError as error:
        raise UserError(f"--config={given}: {error}") from error
    # A config file is the user's code and may raise anything.
    except Exception as error:
        raise UserError(f"--config={given}: {type(error).__name__}: {error}") from error
    from jvdm import config as config_lib

    with named_in_errors(given):
        config_lib.check_complete(config)
    return _overridden(config, overrides)


def _overridden(config: Any, overrides: Sequence[str]) -> Any:
    """A complete config with the components that overrides choose.

    Raises:
        UserError: as `load`.
    """
    from jvdm.config import overrides as overrides_lib

    given_fields = list(_fields(canonical(overrides)))
    for field, value, _ in given_fields:
        overrides_lib.choose_components(config, {field: value})
    for field, value, is_joined in given_fields:
        _check_field(config, field, _whole(config, field, value), is_joined=is_joined)
    return config.lock()


def canonical(argv: Sequence[str], config: Any = None) -> list[str]:
    """Flags as ml_collections reads them.

    A component may be written without `.name`, as in --config.network=mlp, and a whole number with an
    exponent, as in --config.training.num_steps=1e5.

    Args:
        argv: flags and other words.
        config: its fields that are integers take such numbers; None for the components alone.
    """
    from jvdm import config as config_lib

    result = list(argv)
    for i, flag in enumerate(argv):
        name, equals, value = flag.partition("=")
        dashes, _, field = name.partition("config.")
        if dashes not in ("-", "--") or not field:
            continue
        if field in config_lib.COMPONENTS:
            name, field = f"{name}.name", f"{field}.name"
        result[i] = name + equals + value
        if config is not None:
            if equals:
                result[i] = name + equals + _whole(config, field, value)
            elif i + 1 < len(argv):
                result[i + 1] = _whole(config, field, argv[i + 1])
    return result


def _whole(config: Any, field: str, value: str) -> str:
    """A value of a flag, without an exponent if the field is an integer and it is a whole number."""
    for name in field.split("."):
        if not isinstance(config, ConfigDict) or name not in config:
            return value
        config = config[name]
    if type(config) is int and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)[eE]\+?\d{1,2}", value):
        number = decimal.Decimal(value)
        if number == int(number):
            return str(int(number))
    return value


def _fields(argv: Sequence[str]) -> Iterator[tuple[str, str, bool]]:
    """(field, value, whether they are one word) of each --config.FIELD=VALUE and --config.FIELD VALUE.

    What follows a boolean's flag may be something else, so its value is only what is joined to it.
    """
    for flag, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        name, equals, value = flag.lstrip("-").partition("=")
        if flag.startswith("-") and name.startswith(("config.", "noconfig.")):
            yield name.partition(".")[2], value if equals else following, bool(equals)


def _check_field(config: Any, field: str, value: str, *, is_joined: bool) -> None:
    """Refuse what is no field, and a value that the field's type cannot be read from.

    Args:
        config: has the components that the flags choose.
        field: dotted name.
        value: as text.
        is_joined: it is in one word with the field.

    Raises:
        UserError: it is refused.
    """
    from jvdm.config import overrides as overrides_lib

    section, name = overrides_lib.find(config, field)
    old = section[name]
    if isinstance(old, ConfigDict):
        fields = ", ".join(f"--config.{field}.{each}" for each in old)
        raise UserError(f"--config.{field} is a section: give one of its fields ({fields})")
    if type(old) in _PARSERS and (is_joined or type(old) is not bool):
        try:
            _PARSERS[type(old)].parse(value)
        except (ValueError, TypeError) as error:
            raise wrong_type(f"config.{field}", value, type(old)) from error


def run_name(given: str) -> str:
    """The name of a config's default workdir: the file's stem, then each part of its argument.

    Args:
        given: the value of --config. "configs/mnist_tiny.py:debiased,/data/set.npz" has the name
            "mnist_tiny-debiased-set".
    """
    path, _, argument = split(given)
    parts = [path, *(part for part in argument.split(",") if part)]
    return "-".join(pathlib.Path(part).stem for part in parts)


def run_folder(given: str) -> str:
    """The workdir of a command without --workdir: the run that the config is of, or `runs/<its name>`."""
    path = pathlib.Path(split(given)[0])
    return str(path.parent) if path.name == RUN_CONFIG else f"runs/{run_name(given)}"


@contextlib.contextmanager
def named_in_errors(given: str) -> Iterator[None]:
    """Put the config in front of the errors of a block.

    Raises:
        UserError: the block's, with the value of --config before it.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"--config={given}: {error}") from error
