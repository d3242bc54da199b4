"""jvdm: train, evaluate, score and sample diffusion models judged by their likelihood.

python main.py --mode=train  --config=configs/digits.py [--workdir=DIR] [--config.FIELD=VALUE ...]
python main.py --mode=eval   --config=configs/digits.py [--workdir=DIR] [--checkpoint=PATH]
python main.py --mode=score  --config=configs/digits.py --config.score.source=npz:FILE
python main.py --mode=sample --config=configs/digits.py [--workdir=DIR] [--checkpoint=PATH]
python main.py --mode=import --config=configs/vdm_cifar10.py --source=vdm --checkpoint=PATH --workdir=DIR
python main.py --mode=report --workdir=DIR [--compare=DIR ...]
"""

import functools
import pathlib
import sys

from absl import app, flags

from jvdm.cli import command_line

MODES = ("train", "eval", "score", "sample", "import", "report")
FLAGS = flags.FLAGS

flags.DEFINE_enum("mode", None, MODES, "What to do.")
flags.DEFINE_string("workdir", None, "The run's folder; runs/<config name> by default.")
flags.DEFINE_string("checkpoint", None, "A checkpoint folder; the workdir's newest by default.")
flags.DEFINE_string("source", None, "With --mode=import: the codebase the checkpoint is from.")
flags.DEFINE_enum("distributed", "auto", ("auto", "on", "off"), "Whether there are several processes.")
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where no launcher tells.")
flags.DEFINE_integer("num_processes", None, "How many processes there are, likewise.")
flags.DEFINE_integer("process_id", None, "Which of them this is, likewise.")
flags.DEFINE_multi_string(
    "compare", [], "With --mode=report: another run's folder, side by side; repeatable."
)


def main(argv: list[str]) -> None:
    del argv
    given, _ = command_line.config_argument(sys.argv)
    # After the flags: a mistake in them needs no jax to be told.
    from jvdm import config as config_lib
    from jvdm.cli import commands
    from jvdm.core import preemption, processes
    from jvdm.runs.workdir import Workdir

    command_line.configure_logging()
    with command_line.errors_in_one_line(FLAGS.mode):
        processes.initialize(
            FLAGS.distributed,
            coordinator=FLAGS.coordinator,
            num_processes=FLAGS.num_processes,
            process_id=FLAGS.process_id,
        )
        preemption.install()
        if given:  # --mode=report needs none
            with command_line.in_config_file(given):
                config_lib.check_complete(FLAGS.config)
        folder = FLAGS.workdir or f"runs/{command_line.config_name(given)}"
        workdir = Workdir(pathlib.Path(folder).expanduser().absolute())
        if processes.is_main():
            print(f"workdir {workdir.path}")
        config = FLAGS.config if given else None
        request = commands.Request(config, workdir, FLAGS.checkpoint, FLAGS.source, FLAGS.compare)
        commands.MODES[FLAGS.mode](request)
    if processes.is_main():
        print(f"workdir {workdir.path}")


if __name__ == "__main__":
    app.run(main, flags_parser=functools.partial(command_line.parse, usage=__doc__ or "", modes=MODES))
