"""Memory per device and time of one training step, over 1, 2, 4, 8 devices, by data and by fsdp.

    python benchmarks/scaling.py [--channels=64] [--blocks=4] [--batch=8] [--devices=1,2,4,8] [--repeats=3]

Every row is a separate process with that many host devices, which share the cores of this machine: its
memory is what each of so many devices would need, its time only what splitting the same work costs: `CPU s`,
of all threads, does not count what other programs take. With --real the devices are those that jax finds, and
the time is theirs. The global batch is the same in all rows. The efficiency compares `CPU s` with that of one
device, or, with --real, `step s` with an n-th of that of one.
"""

import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from script import Parser, run, whole, wholes

MEMORY = ("state MB", "argument MB", "temp MB")
COLUMNS = ("devices", "fsdp", *MEMORY, "compile s", "step s", "CPU s", "efficiency")


def measure(args, num_devices: int, fsdp: int) -> tuple[str, ...]:
    """All columns but the last."""
    import jax
    import numpy as np

    from jvdm import config as config_lib
    from jvdm import model as model_lib
    from jvdm.core import sharding
    from jvdm.core.records import Batch
    from jvdm.diffusion.schedules import SCHEDULES
    from jvdm.networks import NETWORKS
    from jvdm.training.step import init_state, make_train_step

    config = config_lib.default()
    config.schedule = SCHEDULES.spec("learned_scalar")
    config.network = NETWORKS.spec("vdm_unet", channels=args.channels, num_blocks=args.blocks)
    config.training.batch_size = args.batch
    devices = jax.devices()[:num_devices]
    mesh = sharding.make_mesh(devices, fsdp=fsdp)
    model = model_lib.build(config, (args.size, args.size, 3), 256)

    def initial(key):
        return init_state(model, config, key)

    key = jax.random.key(0)
    where = sharding.of_state(jax.eval_shape(initial, key), mesh)
    state = jax.block_until_ready(jax.jit(initial, out_shardings=where)(key))
    leaves = jax.tree.leaves((state.params, state.ema_params, state.opt_state))
    held = sum(s.data.nbytes for leaf in leaves for s in leaf.addressable_shards if s.device == devices[0])

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, args.batch, args.size, args.size, 3), dtype=np.uint8)
    batch = Batch(images)
    batch = sharding.to_devices(batch, sharding.split(mesh, axis=1))
    start = time.perf_counter()
    step = make_train_step(model, config, mesh).lower(state, batch).compile()
    compile_time = time.perf_counter() - start
    memory = step.memory_analysis()
    times, cpu_times = [], []
    for _ in range(args.repeats + 1):
        start, cpu_start = time.perf_counter(), time.process_time()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - start)
        cpu_times.append(time.process_time() - cpu_start)
    sizes = (held, memory.argument_size_in_bytes, memory.temp_size_in_bytes)
    return (
        str(num_devices),
        str(fsdp),
        *(f"{size / 1e6:.1f}" for size in sizes),
        f"{compile_time:.1f}",
        f"{np.median(times[1:]):.3f}",
        f"{np.median(cpu_times[1:]):.3f}",
    )


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--channels", type=whole, default=64)
    parser.add_argument("--blocks", type=whole, default=4)
    parser.add_argument("--batch", type=whole, default=8)
    parser.add_argument("--size", type=whole, default=32)
    parser.add_argument("--devices", type=wholes, default="1,2,4,8")
    parser.add_argument("--repeats", type=whole, default=3)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--row", help="DEVICES,FSDP: in this process")
    args = parser.parse_args()
    if args.row:
        print(" ".join(measure(args, *map(int, args.row.split(",")))))
        return
    print(
        f"{args.channels} channels, {args.blocks} blocks, global batch {args.batch}, "
        f"{args.size}x{args.size}x3, "
        f"median of {args.repeats} steps; "
        + ("separate devices" if args.real else f"host devices sharing {os.cpu_count()} cores")
    )
    print(" ".join(f"{name:>11}" for name in COLUMNS))
    first = None
    for num_devices in args.devices:
        for fsdp in (1, num_devices) if num_devices > 1 else (1,):
            environment = dict(os.environ)
            if not args.real:
                flag = f"--xla_force_host_platform_device_count={num_devices}"
                flags = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
                environment.update(JAX_PLATFORMS="cpu", XLA_FLAGS=flags)
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], f"--row={num_devices},{fsdp}"],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            if done.returncode:
                sys.exit(done.returncode)  # that process has said why
            row = done.stdout.split()
            seconds = float(row[-2 if args.real else -1])
            first = seconds if first is None else first
            # On n separate devices it would take an n-th of the time; on shared cores, the same time.
            ideal = first / num_devices if args.real else first
            row.append(f"{ideal / seconds:.2f}")
            print(" ".join(f"{cell:>11}" for cell in row), flush=True)


if __name__ == "__main__":
    run(main)
