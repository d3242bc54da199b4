"""Arguments of main.py that make a run take seconds."""

import pathlib

ROOT = pathlib.Path(__file__).parents[2]
_SIZES = [
    "--config." + field
    for field in (
        "training.batch_size=8",
        "training.num_steps=2",
        "training.steps_per_dispatch=1",
        "training.log_every=1",
        "training.eval_every=2",
        "training.eval_images=8",
        "training.checkpoint_every=2",
        "training.sample_every=0",
        "eval.batch_size=8",
        "eval.num_images=10",
        "eval.draws=2",
        "eval.ode.batch_size=8",
        "eval.ode.check_images=2",
        "sample.num_images=3",
        "sample.batch_size=2",
        "sample.steps=2",
    )
]
TINY = ["--config.network.channels=8", "--config.network.num_blocks=1", *_SIZES]
# Another network, which compiles in a quarter of the time, for what is the same with any.
LIGHT = [
    "--config.network.name=mlp",
    "--config.network.hidden=32",
    "--config.network.num_layers=1",
    *_SIZES,
]
DIGITS = "--config=configs/digits.py"
VLB = "--config.eval.estimators=vlb"
