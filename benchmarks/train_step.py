"""Compile time, step time, FLOP/s and memory of one training step of the VDM U-Net.

    python benchmarks/train_step.py [--channels=128] [--batch=4] [--depths=4,16,32] [--repeats=3]

Prints one row per depth and choice of rematerialisation, in float32 and bfloat16, on whatever device jax
finds. FLOPs are those of the convolutions, forward and backward, and are not counted again where
rematerialisation repeats them.
"""

import argparse
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import jax
import jax.numpy as jnp
import numpy as np

from jvdm import config as config_lib
from jvdm import model as model_lib
from jvdm.core import sharding
from jvdm.core.records import Batch
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.networks import NETWORKS
from jvdm.training.step import init_state, make_train_step

COLUMNS = ("depth", "dtype", "remat", "init s", "compile s", "first s", "step s", "GFLOP/s", "temp GB")


def convolution_flops(channels: int, depth: int, size: int) -> float:
    """Of the residual blocks' convolutions for one image, forward and backward."""
    same = 2.0 * 9 * channels * channels * size * size
    return 3.0 * same * (2 * depth + 4 + 3 * (depth + 1))


def measure(args, depth: int, dtype: str, remat: str) -> tuple[str, ...]:
    config = config_lib.default()
    config.schedule = SCHEDULES.spec("learned_scalar")
    config.network = NETWORKS.spec(
        "vdm_unet", channels=args.channels, num_blocks=depth, dropout=args.dropout, dtype=dtype, remat=remat
    )
    config.training.batch_size = args.batch
    mesh = sharding.make_mesh(jax.devices()[:1])
    model = model_lib.build(config, (args.size, args.size, 3), 256)

    start = time.perf_counter()
    init = jax.jit(lambda key: init_state(model, config, key), out_shardings=sharding.replicated(mesh))
    state = jax.block_until_ready(init(jax.random.key(0)))
    init_time = time.perf_counter() - start

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, args.batch, args.size, args.size, 3), dtype=np.uint8)
    batch = Batch(jnp.asarray(images))
    batch = sharding.to_devices(batch, sharding.split(mesh, axis=1))
    start = time.perf_counter()
    step = make_train_step(model, config, mesh).lower(state, batch).compile()
    compile_time = time.perf_counter() - start

    times = []
    for _ in range(args.repeats + 1):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - start)
    step_time = float(np.median(times[1:]))
    flops = args.batch * convolution_flops(args.channels, depth, args.size)
    memory = step.memory_analysis()
    temp = f"{memory.temp_size_in_bytes / 1e9:.2f}" if memory is not None else "-"
    return (
        str(depth),
        dtype,
        remat,
        f"{init_time:.1f}",
        f"{compile_time:.1f}",
        f"{times[0]:.2f}",
        f"{step_time:.3f}",
        f"{flops / step_time / 1e9:.0f}",
        temp,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--depths", default="4,16,32")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--remats", default="none,elementwise,full")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    device = jax.devices()[0]
    print(
        f"jax {jax.__version__}, {device.device_kind} ({os.cpu_count()} host cores), "
        f"{args.channels} channels, batch {args.batch}, {args.size}x{args.size}x3, "
        f"dropout {args.dropout}, median of {args.repeats} steps"
    )
    print(" ".join(f"{name:>11}" for name in COLUMNS))
    for depth in map(int, args.depths.split(",")):
        for dtype in args.dtypes.split(","):
            for remat in args.remats.split(","):
                row = measure(args, depth, dtype, remat)
                print(" ".join(f"{cell:>11}" for cell in row), flush=True)


if __name__ == "__main__":
    main()
