"""What the auxiliary latent adds to a training step of configs/mulan_cifar10.py.

    python benchmarks/latent_cost.py [--batch=4] [--repeats=5] [--small]

The same network is trained without a latent, on a fixed schedule, and with each latent: encoder, sample,
charge and per-pixel schedule. Steps of all of them take turns, so that other work on the machine slows all
alike; printed are medians, ratios of medians, and parameters. --small, 2 blocks of 32 channels, is to try
the script.
"""

import os
import pathlib
import runpy
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, os.fspath(ROOT))

import jax
import jax.numpy as jnp
import numpy as np
from script import Parser, run, whole

from jvdm import model as model_lib
from jvdm.core import sharding
from jvdm.core.records import Batch
from jvdm.core.tables import table
from jvdm.diffusion.latents import LATENTS
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.training.step import init_state, make_train_step

CASES = ("none", "k_subset", "k_hot_surrogate", "gumbel", "gaussian")


def prepare(args, latent: str):
    """(step, state, batch, number of parameters)."""
    config = runpy.run_path(os.fspath(ROOT / "configs" / "mulan_cifar10.py"))["get_config"]()
    config.training.batch_size = args.batch
    config.latent = LATENTS.spec(latent)
    if latent == "none":
        config.schedule = SCHEDULES.spec("fixed_linear", gamma_min=-13.3, gamma_max=5.0)
    if args.small:
        small = {"channels": 32, "num_groups": 8, "num_blocks": 2}
        config.network.update(small)
        config.encoder.update({**small, "num_blocks": 1})
    mesh = sharding.make_mesh(jax.devices()[:1])
    model = model_lib.build(config, (32, 32, 3), 256)
    init = jax.jit(lambda key: init_state(model, config, key), out_shardings=sharding.replicated(mesh))
    state = jax.block_until_ready(init(jax.random.key(0)))
    images = np.random.default_rng(0).integers(0, 256, (1, args.batch, 32, 32, 3), dtype=np.uint8)
    batch = Batch(jnp.asarray(images))
    batch = sharding.to_devices(batch, sharding.split(mesh, axis=1))
    step = make_train_step(model, config, mesh).lower(state, batch).compile()
    count = sum(a.size for a in jax.tree.leaves(state.params))
    return [step, state, batch, count]


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--batch", type=whole, default=4)
    parser.add_argument("--repeats", type=whole, default=5)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    names = args.cases.split(",")
    cases = {name: prepare(args, name) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(args.repeats + 1):
        for name, case in cases.items():
            step, state, batch, _ = case
            start = time.perf_counter()
            state, _ = jax.block_until_ready(step(state, batch))
            times[name].append(time.perf_counter() - start)
            case[1] = state
    medians = {name: float(np.median(t[1:])) for name, t in times.items()}  # without the first
    base = medians[names[0]]
    rows = [
        {
            "latent": name,
            "step s": f"{medians[name]:.3f}",
            "ratio": f"{medians[name] / base:.3f}",
            "parameters": f"{cases[name][3] / 1e6:.1f}M",
        }
        for name in names
    ]
    device = jax.devices()[0]
    print(f"jax {jax.__version__}, {device.device_kind}, batch {args.batch}, {args.repeats} steps of each")
    print(table(rows))


if __name__ == "__main__":
    run(main)
