"""What surrounds the command: flags parsed with one-line errors, logging, and errors of a run as one line."""

import contextlib
import logging
import os
import pathlib
import runpy
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from jvdm.core.errors import UserError

FLAGS = flags.FLAGS

LESS_MEMORY = (
    "lower the batch size of config.training, config.eval or config.sample, "
    "raise config.training.microbatches, or set config.network.remat=True"
)

# Flags that not every mode takes. Training resumes from the newest checkpoint of its workdir, and a report
# shows all of it.
_ONLY_FOR = {
    "checkpoint": ("eval", "score", "sample", "import"),
    "source": ("import",),
    "compare": ("report",),
}


def fail(message: object) -> None:
    """Print one line on stderr and exit with status 2."""
    print("jvdm: error: " + " ".join(str(message).split()), file=sys.stderr)
    sys.exit(2)


def _fail_of_several(message: object) -> None:
    """The same; a process among several ends at once, since the others may wait for it for ever.

    JAX's coordination service then ends them.
    """
    import jax

    if jax.process_count() == 1:
        fail(message)
    print(f"jvdm: error: process {jax.process_index()}: {' '.join(str(message).split())}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def config_argument(argv: Sequence[str]) -> tuple[str, list[str]]:
    """(what --config is given, or nothing; the other arguments)."""
    given, rest, arguments = "", [], iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name not in ("--config", "-config"):
            rest.append(argument)
        else:
            given = value if equals else next(arguments, "")
    return given, rest


def load_config(given: str, overrides: Sequence[str] = ()) -> Any:
    """The config of a file, with the components that are asked for.

    Args:
        given: its path, and after a colon the argument of its `get_config`.
        overrides: flags; --config.SECTION.name=NAME puts another component into a section, before its options
            are set, so that they are options of the new one.

    Raises:
        UserError: there is no such file, it fails, or it returns no config; or a component is unknown.
    """
    path, colon, argument = given.partition(":")
    if not pathlib.Path(path).is_file():
        raise UserError(f"--config={path}: no such file; see the folder configs/")
    sys.path.append(str(pathlib.Path(path).absolute().parent))  # for what it imports from beside it
    try:
        get_config = runpy.run_path(path).get("get_config")
        if get_config is None:
            raise UserError("it defines no get_config()")
        config = get_config(argument) if colon else get_config()
        if config is None:
            raise UserError("get_config() returned None")
    except UserError as error:
        raise UserError(f"--config={given}: {error}") from error
    # A config file is the user's code, so anything may come out of it.
    except Exception as error:
        raise UserError(f"--config={given}: {type(error).__name__}: {error}") from error
    from jvdm import config as config_lib
    from jvdm.config import overrides as overrides_lib

    with in_config_file(given):
        config_lib.check_complete(config)
    for override in overrides:
        field, equals, value = override.lstrip("-").partition("=")
        if equals and field.startswith("config."):
            overrides_lib.choose_components(config, {field.removeprefix("config."): value})
    return config.lock()


def parse(argv: list[str], *, usage: str, modes: Sequence[str]) -> list[str]:
    """Parse the flags `mode` and `config` and whatever else is defined; a mistake in them is one line.

    Args:
        argv: as of the process.
        usage: what --help prints first.
        modes: the choices of --mode.
    """
    # What ml_collections warns of, the errors below say.
    absl_logging.set_verbosity(absl_logging.ERROR)
    # absl's own help ends with status 1.
    if {"--help", "-help", "-h", "--helpshort", "--helpfull"} & set(argv):
        from jvdm.data import describe_sources

        print(f"{usage}{FLAGS.main_module_help()}\n\nconfig.data.source:\n{describe_sources()}")
        sys.exit(0)
    given, argv = config_argument(argv)
    rest: list[str] = []
    try:
        if given:
            config_flags.DEFINE_config_dict("config", load_config(given, argv), sys_argv=argv)
        rest = FLAGS(argv)
        if len(rest) > 1:
            raise UserError(f"unexpected argument {rest[1]!r}: flags are given as --name=value")
        if FLAGS.mode is None:
            raise UserError(f"--mode is missing: one of {', '.join(modes)}")
        for name, mode_names in _ONLY_FOR.items():
            if name in FLAGS and FLAGS[name].value and FLAGS.mode not in mode_names:
                raise UserError(
                    f"--{name} is for --mode={', '.join(mode_names)}; --mode={FLAGS.mode} does not take it"
                )
        if FLAGS.mode == "report" and not (FLAGS.workdir or given):
            raise UserError("--workdir is missing: the folder of the run to report on")
        if FLAGS.mode != "report" and not given:
            raise UserError("--config is missing: a file of configs/, such as --config=configs/digits.py")
    except (UserError, flags.Error) as error:
        fail(error)
    except (AttributeError, KeyError) as error:
        # ml_collections gives the message with its quotes escaped.
        text = str(error).replace("\\n", ". ").replace("\\'", "'").strip("'\"").replace("'. Did", ". Did")
        fail(f"unknown config field {text}")
    # ml_collections parses a field's name as Python, and its value by the field's type.
    except (ValueError, TypeError, SyntaxError, RecursionError, OverflowError) as error:
        fail(f"a flag cannot be read: {error}")
    return rest


def config_name(given: str) -> str:
    """The config's file name without suffix, and the parts of its argument, of files likewise."""
    path, _, argument = given.partition(":")
    parts = [path, *(part for part in argument.split(",") if part)]
    return "-".join(pathlib.Path(part).stem for part in parts)


def configure_logging() -> None:
    """jvdm's own messages as plain lines on stderr.

    Its dependencies' errors reach it as exceptions; what they log besides are tracebacks of their threads.
    """
    sys.unraisablehook = lambda error: None if _after_failed_save(error) else sys.__unraisablehook__(error)
    # Orbax's writers that a failed save leaves unstarted, found by the garbage collector at exit.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    absl_logging.set_verbosity(absl_logging.WARNING)
    for name in ("absl", "asyncio", "concurrent.futures"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    log = logging.getLogger("jvdm")
    log.setLevel(logging.INFO)
    log.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)


def _after_failed_save(error) -> bool:
    """Orbax's writers that end after another has failed find their event loop closed."""
    return isinstance(error.exc_value, RuntimeError) and "Event loop is closed" in str(error.exc_value)


@contextlib.contextmanager
def in_config_file(given: str) -> Iterator[None]:
    """Errors of the block name the config's file.

    Raises:
        UserError: the block's, after the file.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"--config={given}: {error}") from error


@contextlib.contextmanager
def errors_in_one_line(mode: str) -> Iterator[None]:
    """Ends the process with one line if the block is stopped, or fails in a way that the user can mend."""
    from jvdm.core import preemption

    try:
        yield
    except UserError as error:
        _fail_of_several(error)
    except preemption.Preempted:
        print("jvdm: stopped by SIGTERM; the same command goes on where it was", file=sys.stderr)
        sys.exit(preemption.EXIT_STATUS)
    except KeyboardInterrupt:
        fail("interrupted" + "; the same command resumes at the last checkpoint" * (mode == "train"))
    except MemoryError:
        _fail_of_several(f"out of memory: {LESS_MEMORY}")
    except RuntimeError as error:
        # jax.errors.JaxRuntimeError, whatever the device.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _fail_of_several(f"out of device memory: {LESS_MEMORY}")
