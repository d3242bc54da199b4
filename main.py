"""jvdm: train, evaluate, score and sample diffusion models judged by their likelihood.

python main.py --mode=train  --config=configs/digits.py [--workdir=DIR] [--config.FIELD=VALUE ...]
python main.py --mode=eval   --config=configs/digits.py [--workdir=DIR] [--checkpoint=PATH]
python main.py --mode=score  --config=configs/digits.py --config.score.source=npz:FILE
python main.py --mode=sample --config=configs/digits.py [--workdir=DIR] [--checkpoint=PATH]
python main.py --mode=import --config=configs/vdm_cifar10.py --source=vdm --checkpoint=PATH --workdir=DIR
"""

import functools
import pathlib
import sys

from absl import app, flags

from jvdm import command_line

MODES = ("train", "eval", "score", "sample", "import")
FLAGS = flags.FLAGS

flags.DEFINE_enum("mode", None, MODES, "What to do.")
flags.DEFINE_string("workdir", None, "The run's folder; runs/<config name> by default.")
flags.DEFINE_string("checkpoint", None, "A checkpoint folder; the workdir's newest by default.")
flags.DEFINE_string("source", None, "With --mode=import: the codebase the checkpoint is from.")


def main(argv: list[str]) -> None:
    del argv
    given, _ = command_line.config_argument(sys.argv)
    # After the flags: a mistake in them needs no jax to be told.
    from jvdm import commands
    from jvdm import config as config_lib
    from jvdm.workdir import Workdir

    command_line.configure_logging()
    with command_line.errors_in_one_line(FLAGS.mode):
        with command_line.in_config_file(given):
            config_lib.check_complete(FLAGS.config)
        folder = FLAGS.workdir or f"runs/{command_line.config_name(given)}"
        workdir = Workdir(pathlib.Path(folder).expanduser().absolute())
        print(f"workdir {workdir.path}")
        commands.MODES[FLAGS.mode](FLAGS.config, workdir, FLAGS.checkpoint, FLAGS.source)
    print(f"workdir {workdir.path}")


if __name__ == "__main__":
    app.run(main, flags_parser=functools.partial(command_line.parse, usage=__doc__ or "", modes=MODES))
