"""The command `jvdm`: flags, then one of the modes."""

import shlex
import sys

from absl import app, flags

from jvdm.cli import command_line, config_file, streams
from jvdm.core.errors import UserError

command_line.define_flags()


def run() -> None:
    """Run the command that sys.argv holds, and exit; the entry point of `jvdm` and of main.py."""
    streams.guard()
    app.run(main, flags_parser=command_line.parse)


def main(argv: list[str]) -> None:
    """Run the mode of the flags, which are parsed; a mistake ends the process with one line."""
    del argv
    # Here, so that a mistake in the flags is reported without importing jax.
    from jvdm.core import host_memory, preemption, processes, settings

    values = flags.FLAGS
    given, _ = command_line.config_of(sys.argv)
    command_line.configure_logging()
    with command_line.errors_in_one_line(values.mode):
        processes.initialize(
            values.distributed,
            coordinator=values.coordinator,
            num_processes=values.num_processes,
            process_id=values.process_id,
        )
        settings.pin()
        processes.check_devices()
        host_memory.keep()
        preemption.install()
        run_mode(values, given)


def run_mode(values: flags.FlagValues, given: str) -> None:
    """Run the mode of parsed flags in this process.

    Args:
        values: as `command_line.read` leaves them.
        given: the value of --config, or "".

    Raises:
        UserError: a mistake of the user. A workdir that was made for nothing is removed.
    """
    from jvdm import config as config_lib
    from jvdm.cli import commands
    from jvdm.core import processes
    from jvdm.core.files import expanded
    from jvdm.runs.workdir import Workdir

    config = values.config if given else None  # a report needs none
    if config is not None:
        with config_file.named_in_errors(given):
            config_lib.check_complete(config)
    folder = values.workdir or config_file.run_folder(given)
    workdir = Workdir(expanded(folder, "--workdir").absolute())
    flags_given = {f"--{name}": values[name].value for name in ("mode", "checkpoint", "source", "compare")}
    fields = {} if config is None else dict(config_lib.leaves(config.to_dict()))
    fields.pop("data.data_dir", None)  # of each machine
    processes.check_agreement(
        {**flags_given, "--workdir": folder, **{f"config.{f}": v for f, v in fields.items()}}
    )
    if processes.is_main():
        print(f"workdir {workdir.path}")
    is_new = not workdir.path.exists()
    try:
        commands.MODES[values.mode](
            commands.Request(config, workdir, values.checkpoint, values.source, values.compare)
        )
    except UserError:
        if is_new:
            workdir.discard_if_unused()
        raise
    if processes.is_main():
        print(f"workdir {workdir.path}")
        if values.mode == "train":
            print(f"next    {command_line.command('eval')} --workdir={shlex.quote(folder)}")
