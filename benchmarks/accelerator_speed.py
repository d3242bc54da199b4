"""The sections on speed of accelerator.py: training steps, the ODE likelihood, samples."""

import dataclasses
import itertools
import time
from typing import Any, NamedTuple

import jax
from chips import chip_of_device
from likelihood import Cost, forward_cost, solve_cost
from ml_collections import ConfigDict
from timed_report import Budget, Report
from train_step import StepCost, convolution_flops, measure

from configs import vdm_cifar10
from jvdm import model as model_lib
from jvdm.core import sharding
from jvdm.core.errors import UserError, one_line
from jvdm.evaluation.sampling import Sampling
from jvdm.evaluation.vlb import for_evaluation
from jvdm.networks.layers import DTYPES, REMATS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured.

    Attributes:
        shape: of the random images.
        channels: of the networks; the first is the flagship's.
        num_blocks, num_groups: of all networks.
        batch_size: of training.
        repeats: steps after the first.
        images: of the ODE likelihood and of samples, at a time.
        sample_steps: that are timed.
        training_s: seconds that training takes at most.
    """

    shape: tuple[int, int, int] = (32, 32, 3)
    channels: tuple[int, ...] = (128, 256)
    num_blocks: int = 32
    num_groups: int = 32
    batch_size: int = 128
    repeats: int = 10
    images: int = 64
    sample_steps: int = 50
    training_s: float = float("inf")


FULL = Sizes()
# For a CPU: the report's paths, in a minute.
TINY = Sizes(
    shape=(8, 8, 3),
    channels=(8,),
    num_blocks=1,
    num_groups=0,
    batch_size=8,
    repeats=2,
    images=4,
    sample_steps=5,
    training_s=10.0,
)


class Setting(NamedTuple):
    """Of one training step."""

    channels: int
    dtype: str
    remat: str


def settings(sizes: Sizes) -> list[Setting]:
    """All of them, the most telling first: the default of rematerialisation before others, bfloat16 first."""
    remats = sorted(REMATS, key=lambda remat: remat != "elementwise")
    dtypes = sorted(DTYPES, key=lambda dtype: dtype != "bfloat16")
    every = [Setting(*each) for each in itertools.product(sizes.channels, dtypes, remats)]
    return sorted(every, key=lambda each: each.remat != "elementwise")


def flagship(sizes: Sizes, **network: Any) -> ConfigDict:
    """configs/vdm_cifar10.py in these sizes, or with other options of its network."""
    config = vdm_cifar10.get_config()
    same = {
        "channels": sizes.channels[0],
        "num_blocks": sizes.num_blocks,
        "num_groups": sizes.num_groups,
    }
    config.network.update(same | network)
    config.training.batch_size = sizes.batch_size
    return config


STEP_COLUMNS = {
    "channels": 8,
    "dtype": 8,
    "remat": 11,
    "init s": 6,
    "compile s": 9,
    "first s": 7,
    "step ms": 8,
    "images/s": 8,
    "TFLOP/s": 8,
    "% of peak": 9,
    "temp GB": 7,
}


def steps_section(report: Report, budget: Budget, sizes: Sizes, share: float) -> StepCost | None:
    """Rows of training steps, as many as end before a share of the time has passed.

    Returns:
        The cost of the first row, the flagship in bfloat16; None where it could not be measured.
    """
    report.section("training steps")
    report.line(
        f"{sizes.num_blocks} blocks, batch {sizes.batch_size}, {'x'.join(map(str, sizes.shape))}; the median "
        f"of {sizes.repeats} steps"
    )
    report.line(
        "FLOPs are those of the blocks' convolutions, forward and backward, without repetitions; the peak is "
        "the datasheet's"
    )
    widths = STEP_COLUMNS.values()
    report.row(list(STEP_COLUMNS), widths)
    first, slowest_row_s = None, 0.0
    for i, setting in enumerate(settings(sizes)):
        # Compiling takes most of a row and does not depend on the width; steps take what FLOPs say.
        estimate = slowest_row_s + _steps_s(first, setting, sizes)
        if i and not budget.fits(estimate, share):
            report.row([*setting, f"skipped: about {estimate:.0f} s"], list(widths)[: len(setting)])
            continue
        begun = time.monotonic()
        try:
            cost = measure(flagship(sizes, **setting._asdict()), sizes.shape, repeats=sizes.repeats)
        # XLA raises JaxRuntimeError where memory runs out, at compilation or in a step.
        except (UserError, jax.errors.JaxRuntimeError) as error:
            report.row([*setting, one_line(error, limit=150)], list(widths)[: len(setting)])
        else:
            report.row([*setting, *_cells(cost, setting, sizes)], widths)
            first = cost if i == 0 else first
        slowest_row_s = max(slowest_row_s, time.monotonic() - begun)
    return first


def _steps_s(first: StepCost | None, setting: Setting, sizes: Sizes) -> float:
    """What a row's steps take longer than those of the first row: in float32 at most 4 times as long."""
    if first is None:
        return 0.0
    factor = (setting.channels / sizes.channels[0]) ** 2 * (4 if setting.dtype == "float32" else 1)
    return (factor - 1) * (sizes.repeats + 1) * first.step_s


def _cells(cost: StepCost, setting: Setting, sizes: Sizes) -> list[str]:
    rate = cost.flops / cost.step_s
    return [
        f"{cost.init_s:.1f}",
        f"{cost.compile_s:.1f}",
        f"{cost.first_s:.2f}",
        f"{1e3 * cost.step_s:.1f}",
        f"{sizes.batch_size / cost.step_s:.0f}",
        f"{rate / 1e12:.3g}",
        share_of_peak(rate, setting.dtype),
        f"{cost.temporary / 1e9:.2f}" if cost.temporary else "-",
    ]


def share_of_peak(flops_per_s: float, precision: str) -> str:
    """In percent of the first device's peak; "-" where its datasheet is not known."""
    chip = chip_of_device(jax.devices()[0].device_kind)
    return f"{100 * flops_per_s / chip.peak[precision]:.1f}" if chip else "-"


class EvaluationCost(NamedTuple):
    """What evaluation of the flagship costs, of `Sizes.images` images; None for what was not measured."""

    forward: Cost
    solve: Cost | None


def likelihood_section(
    report: Report, budget: Budget, sizes: Sizes, share: float, first: StepCost | None
) -> EvaluationCost | None:
    """The ODE likelihood in forward passes, and samples, of the flagship with the weights it starts from."""
    report.section("ODE likelihood and samples")
    config = flagship(sizes)
    config.eval.ode.batch_size = config.sample.batch_size = sizes.images
    report.line(
        f"{sizes.channels[0]} channels, {sizes.num_blocks} blocks, {sizes.images} images at a time, in full "
        "float32; initial weights, whose ODE needs fewer evaluations than that of trained weights"
    )
    # A forward pass compiles faster than a training step.
    compile_s = first.compile_s if first else 30.0
    if not budget.fits(compile_s, share):
        report.line(f"skipped: about {compile_s:.0f} s")
        return None
    model = for_evaluation(model_lib.build(config, sizes.shape, 256))
    params = jax.jit(model.init)(jax.random.key(0))
    try:
        return _measured(report, budget, sizes, share, config, model, params)
    except (UserError, jax.errors.JaxRuntimeError) as error:
        report.line(one_line(error, limit=300))
        return None


def _measured(
    report: Report, budget: Budget, sizes: Sizes, share: float, config: ConfigDict, model: Any, params: Any
) -> EvaluationCost:
    forward = forward_cost(model, params, sizes.images, repeats=3)
    flops = sizes.images * convolution_flops(sizes.channels[0], sizes.num_blocks, sizes.shape[0]) / 3
    rate = flops / forward.run_s
    report.line(
        f"forward pass    compiled in {forward.compile_s:.1f} s, {1e3 * forward.run_s:.2f} ms, "
        f"{sizes.images / forward.run_s:.0f} images/s, {rate / 1e12:.3g} TFLOP/s "
        f"({share_of_peak(rate, 'highest')} % of the float32 peak)"
    )
    # Two runs of some 150 evaluations, of three forward passes each at most.
    estimate, solve = 3 * forward.compile_s + 2 * 150 * 3 * forward.run_s, None
    if budget.fits(estimate, share):
        solve = solve_cost(model, params, config.eval.ode, repeats=1)
        report.line(
            f"ODE likelihood  compiled in {solve.compile_s:.1f} s, {solve.run_s:.2f} s, "
            f"{sizes.images / solve.run_s:.3g} images/s with {solve.evaluations} evaluations "
            f"(tolerance {config.eval.ode.solver.tolerance:g})"
        )
        report.line(
            f"  an evaluation with its trace takes {1e3 * solve.per_evaluation_s:.2f} ms, as long as "
            f"{solve.per_evaluation_s / forward.run_s:.2f} forward passes"
        )
    else:
        report.line(f"ODE likelihood  skipped: about {estimate:.0f} s")
    estimate = 2 * forward.compile_s + (sizes.sample_steps + 2) * 1.2 * forward.run_s
    if budget.fits(estimate, share):
        report.line(f"samples         {_samples(sizes, config, model, params)}")
    else:
        report.line(f"samples         skipped: about {estimate:.0f} s")
    return EvaluationCost(forward, solve)


def _samples(sizes: Sizes, config: ConfigDict, model: Any, params: Any) -> str:
    mesh = sharding.make_mesh(jax.devices()[:1])
    sampling = Sampling(model, mesh, config.sample, batch_size=sizes.images)
    seconds = []
    # The number of steps is an argument of the program: the first call compiles.
    for num_steps in (1, sizes.sample_steps):
        start = time.perf_counter()
        sampling(params, sizes.images, jax.random.key(0), num_steps=num_steps)
        seconds.append(time.perf_counter() - start)
    step_s = seconds[1] / sizes.sample_steps
    return (
        f"compiled in {seconds[0] - step_s:.1f} s, {1e3 * step_s:.2f} ms a step (ancestral, of "
        f"{sizes.sample_steps}), {sizes.images / (step_s * config.sample.steps):.3g} images/s with "
        f"{config.sample.steps} steps"
    )
