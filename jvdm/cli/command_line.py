"""The command line: its flags, and errors of the user as one line on stderr."""

import contextlib
import inspect
import logging
import os
import signal
import sys
import textwrap
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

import jvdm
from jvdm.cli import config_file
from jvdm.core.errors import UserError, one_line, unknown

USAGE = """jvdm: train, evaluate, score and sample diffusion models judged by their likelihood.

  jvdm train  --config=digits [--workdir=RUN] [--config.FIELD=VALUE ...]
  jvdm eval   --workdir=RUN [--checkpoint=STEP] [--config.FIELD=VALUE ...]
  jvdm score  --workdir=RUN --config.score.source=npz:FILE
  jvdm sample --workdir=RUN [--checkpoint=STEP]
  jvdm import --config=vdm_cifar10 --source=vdm --checkpoint=PATH --workdir=DIR
  jvdm report --workdir=RUN [--compare=RUN ...]

In a clone of the repository, python main.py takes the same arguments and needs no install:

  python main.py --mode=train --config=configs/digits.py

The mode is the first word or the flag --mode. --config is a file or the name of a packaged config; its
argument follows a colon, as in --config=swissroll:debiased. Without it, a run's own config is taken.
"""

# In the order of the help; what each does is in jvdm.cli.commands, which imports jax.
MODES = ("train", "eval", "score", "sample", "import", "report")

# By mode; a run that is resumed may change what training is advised.
LESS_MEMORY = {
    "train": (
        "raise config.training.microbatches, set config.network.remat=full, lower config.eval.batch_size or "
        "config.training.sample_images, or use more devices"
    ),
    "eval": "lower config.eval.batch_size or config.eval.ode.batch_size",
    "score": "lower config.eval.batch_size or config.eval.ode.batch_size",
    "sample": "lower config.sample.batch_size",
}

# Flags that not every mode takes. Training resumes from the newest checkpoint of its workdir, and a report
# shows all of it.
_ONLY_FOR = {
    "checkpoint": ("eval", "score", "sample", "import"),
    "source": ("import",),
    "compare": ("report",),
}

# --config's own flags are of the config that it names.
_CONFIG_FLAGS = """\
  --config             A file or the name of a config above; then, after a colon, its argument.
  --config.FIELD       Any field of the config, such as --config.training.batch_size=64.
  --config.PART        Another component, such as --config.network=mlp; its options follow."""

_HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull"}


def command(mode: str) -> str:
    """How a mode is called, in the way that this process was."""
    return f"python {sys.argv[0]} --mode={mode}" if sys.argv[0].endswith(".py") else f"jvdm {mode}"


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Define every flag but --config, whose type is that of the config it names."""
    flags.DEFINE_string("mode", None, f"What to do: {', '.join(MODES)}.", values)
    flags.DEFINE_string("workdir", None, "Folder of the run; runs/<name of the config> by default.", values)
    flags.DEFINE_string(
        "checkpoint", None, "A step of the run, or a path; the newest of the run by default.", values
    )
    flags.DEFINE_string("source", None, "For import: the codebase that wrote the checkpoint.", values)
    flags.DEFINE_multi_string(
        "compare", [], "For report: folder of another run; may be given several times.", values
    )
    several = "Whether this is one of several processes: auto, on or off."
    flags.DEFINE_enum("distributed", "auto", ("auto", "on", "off"), several, values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if no launcher sets it.", values)
    for name, help_ in (("num_processes", "Number of processes"), ("process_id", "Index of this process")):
        flags.DEFINE_integer(name, None, f"{help_}, if no launcher sets it.", flag_values=values)


def fail(message: object) -> NoReturn:
    """Print one line on stderr and exit with status 2."""
    print(f"jvdm: error: {one_line(message)}", file=sys.stderr)
    sys.exit(2)


def _fail_of_several(message: object) -> None:
    """`fail`, except that one of several processes exits at once, because the others may wait for it forever.

    JAX's coordination service then ends them.
    """
    import jax

    try:
        several = jax.process_count() > 1
    except (RuntimeError, AssertionError):  # there is no device, which is what is to be said
        several = False
    if not several:
        fail(message)
    print(f"jvdm: error: process {jax.process_index()}: {one_line(message)}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def parse(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """`read`, after --help and --version; a mistake ends the process with one line on stderr."""
    if _HELP & set(argv[1:]):  # absl's own help ends with status 1
        given, _ = config_of(argv)
        if given:
            with contextlib.suppress(UserError):  # the file may register components
                config_file.load(given)
        print(help_text(values))
        sys.exit(0)
    if "--version" in argv[1:]:
        print(f"jvdm {jvdm.__version__}")
        sys.exit(0)
    try:
        return read(argv, values)
    except UserError as error:
        fail(error)


def help_text(values: flags.FlagValues = flags.FLAGS) -> str:
    """What --help prints: usage, packaged configs, flags, sources of data."""
    from jvdm.data import describe_sources

    configs = textwrap.fill(
        ", ".join(config_file.packaged()), 110, initial_indent="  ", subsequent_indent="  "
    )
    sections = {
        "configs": configs,
        "flags": "\n".join([_CONFIG_FLAGS, *_described(values)]),
        "config.data.source": textwrap.indent(describe_sources(), "  "),
    }
    return "\n\n".join([USAGE.strip(), *(f"{title}:\n{text}" for title, text in sections.items())])


def _described(values: flags.FlagValues) -> Iterator[str]:
    """One line per flag of `define_flags`."""
    for flag in values.flags_by_module_dict()[__name__]:
        # absl puts an enum's choices before its text, and adds a line after a list's.
        text = str(flag.help).partition("\n")[0].rpartition(">: ")[2].rstrip(";")
        yield f"  --{flag.name:<18} {text}"


def read(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Read a command into `values`: the mode, the config with its overrides as `config`, all other flags.

    Args:
        argv: the program's name and its arguments.
        values: has the flags of `define_flags`; after this, `mode` is set.

    Returns:
        The program's name.

    Raises:
        UserError: for any mistake in the flags or in the config file.
    """
    # The errors below say what ml_collections warns of.
    absl_logging.set_verbosity(absl_logging.ERROR)
    values.set_gnu_getopt(True)  # flags may follow the mode
    given, argv = config_of(argv)
    try:
        if given:
            config = config_file.load(given, argv)
            argv = config_file.canonical(argv, config)
            config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        program, *words = values(argv)
    except flags.UnrecognizedFlagError as error:
        raise UserError(_unknown_flag(error, values)) from error
    except flags.Error as error:
        raise UserError(str(error)) from error
    except UserError:
        raise
    # ml_collections reads a tuple as Python does.
    except (ValueError, TypeError, SyntaxError, RecursionError, OverflowError) as error:
        raise UserError(f"a flag cannot be read: {error}") from error
    _set_mode(values, words)
    _check_flags(values, given)
    return [program]


def config_of(argv: list[str]) -> tuple[str, list[str]]:
    """The config of a command, and its other arguments.

    Returns:
        (the value of --config; without one the config of the run that the command is about; "" if there is
        neither, or none is needed; the other arguments).
    """
    given, rest = config_file.argument(argv)
    mode = config_file.argument(rest, "mode")[0]
    if given or "report" in (mode, *rest[1:2]) or "import" in (mode, *rest[1:2]):
        return given, rest
    return config_file.of_run(rest), rest


def _unknown_flag(error: flags.UnrecognizedFlagError, values: flags.FlagValues) -> str:
    """With the fields of the config that are meant, if the flag has the name of one."""
    from jvdm import config as config_lib

    config: Any = values["config"].value if "config" in values else config_lib.default()
    fields = [field for field, _ in config_lib.leaves(config.to_dict())]
    near = [each for each in fields if f".{each}".endswith(f".{error.flagname}")]
    if not near:
        return str(error)
    return f"unknown flag --{error.flagname}; did you mean --config.{' or --config.'.join(near)}?"


def _set_mode(values: flags.FlagValues, words: list[str]) -> None:
    """Take the mode from the flag, or from the only word that is not a flag."""
    if values.mode is None and words:
        values.mode, *words = words
    if values.mode is None:
        raise UserError(f"the mode is missing: jvdm MODE, one of {', '.join(MODES)}; jvdm --help")
    if values.mode not in MODES:
        raise unknown("mode", values.mode, MODES)
    if words:
        hint = f"; did you mean --config={words[0]}?" if words[0].endswith(".py") else ""
        raise UserError(
            f"unexpected argument {words[0]!r}: after the mode, flags are given as --name=value{hint}"
        )


def _check_flags(values: flags.FlagValues, given: str) -> None:
    """Refuse flags that the mode does not take, and require those it needs."""
    for name, modes in _ONLY_FOR.items():
        if values[name].value and values.mode not in modes:
            plural = "s" * (len(modes) > 1)
            raise UserError(
                f"--{name} is for the mode{plural} {', '.join(modes)}; {values.mode} does not take it"
            )
    if values.mode == "report" and not (values.workdir or given):
        raise UserError("--workdir is missing: the folder of the run to report on")
    if values.mode != "report" and not given:
        raise UserError(
            "--config is missing: a file, or the name of a packaged config, such as --config=digits (jvdm "
            "--help lists them); or --workdir, the folder of a run"
        )


def configure_logging() -> None:
    """Print jvdm's own messages as plain lines on stderr, and silence its dependencies.

    Their errors arrive as exceptions; all that they log is tracebacks of their threads.
    """
    sys.unraisablehook = lambda error: None if _left_by_orbax(error) else sys.__unraisablehook__(error)
    # A failed save leaves some of Orbax's writers unstarted; the garbage collector finds them at exit.
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


def _left_by_orbax(error) -> bool:
    """Whether it is an Orbax writer or reader that a failure has left unfinished.

    Writers find their event loop closed; readers are ended by the garbage collector.
    """
    if isinstance(error.exc_value, RuntimeError) and "Event loop is closed" in str(error.exc_value):
        return True
    return inspect.iscoroutine(error.object) and "orbax" in error.object.cr_code.co_filename


@contextlib.contextmanager
def errors_in_one_line(mode: str) -> Iterator[None]:
    """End the process with one line if the block is stopped, or fails in a way that the user can fix.

    Args:
        mode: of the command.
    """
    from jvdm.core import preemption

    try:
        yield
    except UserError as error:
        _fail_of_several(error)
    except preemption.Preempted:
        by = preemption.cause()
        print(f"jvdm: stopped by {by}; the same command continues from where it stopped", file=sys.stderr)
        sys.exit(preemption.status())
    except KeyboardInterrupt:
        print("jvdm: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except MemoryError:
        _fail_of_several(f"out of memory: {LESS_MEMORY.get(mode, 'use a larger machine')}")
    except RuntimeError as error:
        # jax.errors.JaxRuntimeError, whatever the device.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _fail_of_several(f"out of device memory: {LESS_MEMORY.get(mode, 'use a larger machine')}")
