"""What surrounds the command: flags parsed with one-line errors, logging, and errors of a run as one line."""

import contextlib
import logging
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from jvdm.errors import UserError

FLAGS = flags.FLAGS

LESS_MEMORY = (
    "lower the batch size of config.training, config.eval or config.sample, "
    "raise config.training.microbatches, or set config.network.remat=True"
)


def fail(message: object) -> None:
    """Print one line on stderr and exit with status 2."""
    print("jvdm: error: " + " ".join(str(message).split()), file=sys.stderr)
    sys.exit(2)


def parse(argv: list[str], *, usage: str, modes: Sequence[str]) -> list[str]:
    """Parse the flags `mode` and `config` and whatever else is defined; a mistake in them is one line.

    Args:
        argv: as of the process.
        usage: what --help prints first.
        modes: the choices of --mode.
    """
    rest = argv
    # What ml_collections warns of, the errors below say.
    absl_logging.set_verbosity(absl_logging.ERROR)
    # absl's own help ends with status 1.
    if {"--help", "-help", "-h", "--helpshort", "--helpfull"} & set(argv):
        from jvdm.data import describe_sources

        print(f"{usage}{FLAGS.main_module_help()}\n\nconfig.data.source:\n{describe_sources()}")
        sys.exit(0)
    try:
        for argument in argv:
            path = argument.removeprefix("--").partition("config=")[2].partition(":")[0]
            if argument.lstrip("-").startswith("config=") and not pathlib.Path(path).is_file():
                raise UserError(f"--config={path}: no such file; see the folder configs/")
        rest = FLAGS(argv)
        if len(rest) > 1:
            raise UserError(f"unexpected argument {rest[1]!r}: flags are given as --name=value")
        if FLAGS.mode is None:
            raise UserError(f"--mode is missing: one of {', '.join(modes)}")
        if FLAGS.mode != "report" and FLAGS.compare:
            raise UserError("--compare is for --mode=report")
        if FLAGS.mode == "report" and not (FLAGS.workdir or FLAGS.config):
            raise UserError("--workdir is missing: the folder of the run to report on")
        if FLAGS.config is None and FLAGS.mode != "report":
            given = any(argument.lstrip("-").startswith("config=") for argument in argv)
            raise UserError(
                "--config: get_config() returned None"
                if given
                else "--config is missing: a file of configs/, such as --config=configs/digits.py"
            )
    except (UserError, flags.Error) as error:
        # ml_collections puts a traceback into the message where a config file fails: its last line says why.
        before, traceback, trace = str(error).partition("Traceback (most recent call last):")
        fail(before + trace.strip().splitlines()[-1] if traceback else error)
    except (AttributeError, KeyError) as error:
        # ml_collections gives the message with its quotes escaped.
        text = str(error).replace("\\n", ". ").replace("\\'", "'").strip("'\"").replace("'. Did", ". Did")
        for argument in argv:
            # Of an option, ml_collections says its last name only.
            field = argument.lstrip("-").partition("=")[0]
            if text.isidentifier() and field.endswith(f".{text}"):
                text = (
                    f"{field}: the component of the config file has no such option; "
                    "choose another component in a config file to set its options"
                )
                break
        fail(f"unknown config field {text}")
    # A config file is the user's code, so anything may come out of it.
    except Exception as error:
        fail(f"--config: {type(error).__name__}: {error}")
    return rest


def config_name() -> str:
    """The config's file name without suffix, and its argument."""
    path, _, argument = config_flags.get_config_filename(FLAGS["config"]).partition(":")
    parts = [pathlib.Path(path).stem] + [pathlib.Path(argument).stem] * bool(argument)
    return "-".join(parts)


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


def in_config_file(check: Callable[[Any], None], config: Any) -> None:
    """Call a check of the config, whose errors then name the file.

    Raises:
        UserError: the check's, after the file.
    """
    try:
        check(config)
    except UserError as error:
        raise UserError(f"--config={config_flags.get_config_filename(FLAGS['config'])}: {error}") from error


@contextlib.contextmanager
def errors_in_one_line(mode: str) -> Iterator[None]:
    """Ends the process with one line where the block fails for a reason that the user can mend."""
    try:
        yield
    except UserError as error:
        fail(error)
    except KeyboardInterrupt:
        fail("interrupted" + "; the same command resumes at the last checkpoint" * (mode == "train"))
    except MemoryError:
        fail(f"out of memory: {LESS_MEMORY}")
    except RuntimeError as error:
        # jax.errors.JaxRuntimeError, whatever the device.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        fail(f"out of device memory: {LESS_MEMORY}")
