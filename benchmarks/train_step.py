"""Compile time, step time, FLOP/s and memory of one training step of the VDM U-Net.

    python benchmarks/train_step.py [--channels=128] [--batch=4] [--size=32] [--dropout=0.1] [--repeats=3]
        [--depths=4,16,32] [--dtypes=float32,bfloat16] [--remats=none,elementwise,full]

Prints one row per depth, dtype and choice of rematerialisation, 18 by default, on whatever device jax finds.
FLOPs are those of the convolutions, forward and backward, and are not counted again where rematerialisation
repeats them.
"""

import os
import sys
import time
from typing import NamedTuple

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import jax
import numpy as np
from script import Parser, names, run, whole, wholes

from jvdm import config as config_lib
from jvdm import model as model_lib
from jvdm.core import host_memory, sharding
from jvdm.core.errors import UserError
from jvdm.core.records import Batch
from jvdm.core.registry import Config
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.networks import NETWORKS
from jvdm.networks.layers import DTYPES, REMATS
from jvdm.training.memory import device_memory
from jvdm.training.step import init_state, make_train_step

COLUMNS = ("depth", "dtype", "remat", "init s", "compile s", "first s", "step s", "GFLOP/s", "temp GB")


def convolution_flops(channels: int, depth: int, size: int) -> float:
    """Of the residual blocks' convolutions for one image, forward and backward."""
    same = 2.0 * 9 * channels * channels * size * size
    return 3.0 * same * (2 * depth + 4 + 3 * (depth + 1))


class DoesNotFit(UserError):
    """A step needs more memory than the device has."""


class StepCost(NamedTuple):
    """What a training step costs.

    Attributes:
        init_s, compile_s: seconds to make the state and to compile the step.
        first_s, step_s: seconds of the first step, and of a later one (their median).
        flops: of the residual blocks' convolutions in one step.
        state, temporary: bytes, as XLA has planned them; 0 where it does not say.
    """

    init_s: float
    compile_s: float
    first_s: float
    step_s: float
    flops: float
    state: int
    temporary: int


def measure(config: Config, shape: tuple[int, int, int], *, repeats: int) -> StepCost:
    """The cost of a config's training step on the first device, with random images.

    Args:
        config: of a model with the network `vdm_unet`.
        shape: of an image, with as many rows as columns.
        repeats: steps after the first.

    Raises:
        DoesNotFit: the step needs more memory than the device has.
    """
    batch_size, network = config.training.batch_size, config.network
    mesh = sharding.make_mesh(jax.devices()[:1])
    model = model_lib.build(config, shape, 256)

    start = time.perf_counter()
    init = jax.jit(lambda key: init_state(model, config, key), out_shardings=sharding.replicated(mesh))
    state = jax.block_until_ready(init(jax.random.key(0)))
    init_s = time.perf_counter() - start

    images = np.random.default_rng(0).integers(0, 256, (1, batch_size, *shape), dtype=np.uint8)
    batch = sharding.to_devices(Batch(images), sharding.split(mesh, axis=1))
    start = time.perf_counter()
    step = make_train_step(model, config, mesh).lower(state, batch).compile()
    compile_s = time.perf_counter() - start
    memory = step.memory_analysis()
    planned = (memory.argument_size_in_bytes, memory.temp_size_in_bytes) if memory is not None else (0, 0)
    if sum(planned) > device_memory():
        raise DoesNotFit(
            f"does not fit: {sum(planned) / 1e9:.1f} GB are needed and the device has "
            f"{device_memory() / 1e9:.1f} GB"
        )

    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - start)
    flops = batch_size * convolution_flops(network.channels, network.num_blocks, shape[0])
    return StepCost(init_s, compile_s, times[0], float(np.median(times[1:])), flops, *planned)


def row(args, depth: int, dtype: str, remat: str) -> tuple[str, ...]:
    """The cells of one setting; a setting that does not fit says so in place of its figures."""
    config = config_lib.default()
    config.schedule = SCHEDULES.spec("learned_scalar")
    config.network = NETWORKS.spec(
        "vdm_unet", channels=args.channels, num_blocks=depth, dropout=args.dropout, dtype=dtype, remat=remat
    )
    config.training.batch_size = args.batch
    try:
        cost = measure(config, (args.size, args.size, 3), repeats=args.repeats)
    except DoesNotFit as error:
        return str(depth), dtype, remat, str(error)
    return (
        str(depth),
        dtype,
        remat,
        f"{cost.init_s:.1f}",
        f"{cost.compile_s:.1f}",
        f"{cost.first_s:.2f}",
        f"{cost.step_s:.3f}",
        f"{cost.flops / cost.step_s / 1e9:.0f}",
        f"{cost.temporary / 1e9:.2f}" if cost.temporary else "-",
    )


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--channels", type=whole, default=128)
    parser.add_argument("--batch", type=whole, default=4)
    parser.add_argument("--size", type=whole, default=32)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--depths", type=wholes, default="4,16,32")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--remats", default="none,elementwise,full")
    parser.add_argument("--repeats", type=whole, default=3)
    args = parser.parse_args()
    dtypes = names("--dtypes", args.dtypes, DTYPES)
    remats = names("--remats", args.remats, REMATS)
    host_memory.keep()
    device = jax.devices()[0]
    print(
        f"jax {jax.__version__}, {device.device_kind} ({os.cpu_count()} host cores), "
        f"{args.channels} channels, batch {args.batch}, {args.size}x{args.size}x3, "
        f"dropout {args.dropout}, median of {args.repeats} steps"
    )
    print(" ".join(f"{name:>11}" for name in COLUMNS))
    for depth in args.depths:
        for dtype in dtypes:
            for remat in remats:
                cells = row(args, depth, dtype, remat)
                print(" ".join(f"{cell:>11}" for cell in cells), flush=True)


if __name__ == "__main__":
    run(main)
