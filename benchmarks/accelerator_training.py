"""The section on training of accelerator.py: the program's own loop, then the likelihood of test images.

Training is stopped by `preemption.deadline`, which saves a checkpoint as SIGTERM would; the weights are
loaded from it as a user's are.
"""

import contextlib
import io
import pathlib
import time

import jax
import numpy as np
from accelerator_speed import EvaluationCost, Sizes, flagship
from ml_collections import ConfigDict
from timed_report import Budget, Report
from train_step import StepCost, convolution_flops

import jvdm
from jvdm.core import preemption, sharding
from jvdm.core.errors import UserError, one_line
from jvdm.core.tables import with_error
from jvdm.reporting.writers import read_metrics
from jvdm.runs.workdir import Workdir
from jvdm.training.loop import Trainer

# Fewer steps than this teach a network little more than the images' mean.
FEWEST_STEPS = 2000
CURVE_LINES = 12
DRAWS = 4


def training_section(
    report: Report,
    budget: Budget,
    sizes: Sizes,
    npz: pathlib.Path,
    folder: pathlib.Path,
    first: StepCost | None,
    evaluation: EvaluationCost | None,
) -> None:
    """A training for the time that remains, less that of the likelihood of test images.

    Args:
        report: that is written to.
        budget: of the whole report.
        sizes: of the device.
        npz: the images.
        folder: for the run's files.
        first: the cost of the flagship's step in bfloat16, if known.
        evaluation: that of its evaluation, if known.
    """
    report.section("training")
    compile_s = first.init_s + first.compile_s if first else 30.0
    # Loading, compiling the bound (a forward pass, in two parts) and a batch of it.
    reserve_s = min(15.0 + compile_s, 0.4 * budget.left_s())
    train_s = min(budget.left_s() - reserve_s, compile_s + sizes.training_s)
    config = training_config(sizes, npz, first, train_s - compile_s)
    network, training = config.network, config.training
    report.line(
        f"configs/vdm_cifar10.py with {network.channels} channels, {network.num_blocks} blocks, "
        f"{network.dtype}, batch {training.batch_size}, learning rate {config.optimizer.learning_rate:g}, "
        f"clip_norm {config.optimizer.clip_norm:g}, ema_power 2/3"
    )
    report.line(f"it is asked to stop after {train_s:.0f} s, compilation included")
    try:
        _train(report, config, folder, train_s)
        _evaluate(report, budget, sizes, config, folder, evaluation)
    except (UserError, jax.errors.JaxRuntimeError) as error:
        report.line(f"stopped: {one_line(error, limit=300)}")


def training_config(sizes: Sizes, npz: pathlib.Path, first: StepCost | None, seconds: float) -> ConfigDict:
    """The flagship with as many blocks as allow for `FEWEST_STEPS`, and the optimizer of a short run."""
    steps = {blocks: seconds / _step_s(first, sizes, blocks) for blocks in _depths(sizes.num_blocks)}
    num_blocks = next((blocks for blocks in steps if steps[blocks] >= FEWEST_STEPS), min(steps))
    config = flagship(sizes, dtype="bfloat16", remat="elementwise")
    config.network.num_blocks = num_blocks
    config.data.source = f"npz:{npz}"
    # The published rate and average are for millions of steps.
    config.optimizer.learning_rate = 5e-4
    config.optimizer.clip_norm = 1.0
    config.optimizer.ema_power = 2 / 3
    # Several lines even of a training that is slower than expected.
    config.training.log_every = int(np.clip(steps[num_blocks] / (2 * CURVE_LINES), 1, 20))
    # The deadline comes first.
    for name in ("num_steps", "eval_every", "checkpoint_every"):
        config.training[name] = 10**6 * config.training.log_every
    config.training.sample_every = 0
    config.eval.batch_size = sizes.images
    config.eval.ode.batch_size = max(4, sizes.images // 4)
    config.eval.ode.check_images = 0
    # Weights that have hardly been trained may need thousands of evaluations, and the time is limited.
    config.eval.ode.solver.max_steps = 150
    return config


def _depths(num_blocks: int) -> list[int]:
    """Halves of the flagship's, down to 4 blocks."""
    return [num_blocks] + ([] if num_blocks <= 4 else _depths(num_blocks // 2))


def _step_s(first: StepCost | None, sizes: Sizes, num_blocks: int) -> float:
    """Seconds of a step, by that of the flagship and the numbers of convolutions."""
    return (first.step_s if first else 1.0) * _part(sizes, num_blocks)


def _part(sizes: Sizes, num_blocks: int) -> float:
    """How much of the flagship's work a network of so many blocks does."""
    channels, size = sizes.channels[0], sizes.shape[0]
    whole = convolution_flops(channels, sizes.num_blocks, size)
    return convolution_flops(channels, num_blocks, size) / whole


def _train(report: Report, config: ConfigDict, folder: pathlib.Path, seconds: float) -> None:
    start, workdir = time.monotonic(), Workdir(folder / "run")
    # The loop's progress is for a terminal.
    with (
        contextlib.redirect_stderr(io.StringIO()),
        preemption.deadline(seconds),
        contextlib.suppress(preemption.Preempted),
    ):
        trainer = Trainer(config.lock(), workdir, sharding.make_mesh(jax.devices()[:1]))
        trainer.run()
    lines = read_metrics(workdir.metrics)
    report.line(
        f"data {trainer.dataset.name}: {len(trainer.dataset.train)} training and {len(trainer.dataset.test)} "
        f"test images; {trainer.step} steps in {time.monotonic() - start:.0f} s, compilation and the "
        "checkpoint included"
    )
    if len(lines) > 1:
        steps, elapsed = (lines[-1][name] - lines[0][name] for name in ("step", "time"))
        rate = steps / max(elapsed, 1e-3)
        report.line(f"{rate:.3g} steps/s, {rate * config.training.batch_size:.0f} images/s")
    for line in loss_curve(lines):
        report.line(line)


def loss_curve(lines: list[dict]) -> list[str]:
    """Bits/dim of training over the steps, as bars; of runs of neighbouring lines, the means."""
    if not lines:
        return ["too few steps for a curve"]
    parts = np.array_split(np.arange(len(lines)), min(CURVE_LINES, len(lines)))
    steps = [lines[part[-1]]["step"] for part in parts]
    bits = [float(np.mean([lines[i]["train/bpd"] for i in part])) for part in parts]
    # On a logarithmic scale, from the lowest to the highest.
    height = np.log(np.array(bits) / min(bits)) / max(np.log(max(bits) / min(bits)), 1e-9)
    bars = [round(1 + 39 * h) for h in height]
    rows = [f"{step:8}  {b:9.4f}  {'#' * bar}" for step, b, bar in zip(steps, bits, bars, strict=True)]
    return [f"{'step':>8}  {'bits/dim':>9}  training", *rows]


def _evaluate(
    report: Report,
    budget: Budget,
    sizes: Sizes,
    config: ConfigDict,
    folder: pathlib.Path,
    evaluation: EvaluationCost | None,
) -> None:
    trained = jvdm.load(folder / "run", devices=jax.devices()[:1])
    images = jvdm.load_examples(config.data.source, "test", num_levels=config.data.num_levels).images

    def score(estimator: str, count: int, draws: int, *, shown: bool = True) -> float:
        """The bits/dim of the first images, in a line of the report; the seconds that it took."""
        start = time.monotonic()
        record = trained.bits_per_dim(images[:count], estimator, draws=draws).record
        seconds = time.monotonic() - start
        nfe = f", {record.ode.mean_nfe:.0f} evaluations an image" if record.ode else ""
        value = with_error(record.value, record.standard_error or float("nan"))
        if shown:
            report.line(
                f"{record.description}: {value} bits/dim of {record.num_images} test images, "
                f"{draws} draw(s){nfe}; {seconds:.1f} s"
            )
        return seconds

    batch = min(sizes.images, len(images))
    score("vlb", batch, DRAWS)
    # The program is compiled now: the same again tells what a batch takes.
    batch_s = score("vlb", batch, DRAWS, shown=False)
    batches = int(0.5 * min(budget.left_s(), sizes.training_s) / batch_s)
    if batches > 1 and len(images) > batch:
        score("vlb", min(batches * batch, len(images)), DRAWS)
    ode_s = _ode_s(sizes, config, evaluation)
    if not budget.fits(ode_s, 0.97):
        report.line(f"ODE: skipped, up to {ode_s:.0f} s")
        return
    try:
        score("ode", min(config.eval.ode.batch_size, len(images)), 1)
    except UserError as error:
        report.line(f"ODE: {str(error).partition(';')[0]}")  # its advice is for a config


def _ode_s(sizes: Sizes, config: ConfigDict, evaluation: EvaluationCost | None) -> float:
    """Seconds that a batch takes at most, by those of the flagship."""
    if evaluation is None or evaluation.solve is None:
        return float("inf")
    ode, solve = config.eval.ode, evaluation.solve
    evaluations = 6 * ode.solver.max_steps  # dopri5's stages
    part = _part(sizes, config.network.num_blocks) * ode.batch_size / sizes.images
    return 1.5 * solve.compile_s + evaluations * part * solve.per_evaluation_s
