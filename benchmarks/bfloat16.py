"""What a bfloat16 trunk does to the bound of trained weights, on the same images, times and noise.

    python benchmarks/bfloat16.py --workdir=runs/demo [--batch=64] [--batches=64]

Evaluation always computes in float32; this is the loss that training sees. Printed: the mean of each term of
the bound on the test images, bits/dim, with float32 and with bfloat16, and the mean of their paired
differences with its standard error over batches; the last row is of the gradient, the norm of the
difference over the norm of the mean in float32.
"""

import dataclasses
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import jax
import jax.numpy as jnp
import numpy as np
from script import Parser, run, whole

import jvdm
from jvdm import data
from jvdm.core.keys import indexed, named, root_key
from jvdm.core.records import Batch
from jvdm.core.tables import table
from jvdm.diffusion.times import TIME_SAMPLERS
from jvdm.training.gradients import Bound

DTYPES = ("float32", "bfloat16")


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--batch", type=whole, default=64)
    parser.add_argument("--batches", type=whole, default=64)
    args = parser.parse_args()
    trained = jvdm.load(args.workdir, devices=jax.devices()[:1])
    config = trained.config
    dataset = data.load(config.data.source, num_levels=config.data.num_levels, data_dir=config.data.data_dir)
    sampler, scale = TIME_SAMPLERS.build(config.time_sampler), trained.model.units_per_nat

    def step_of(dtype):
        model = dataclasses.replace(trained.model, network=trained.model.network.clone(dtype=dtype))
        gradient = Bound().gradient(model)

        @jax.jit
        def step(params, images, key):
            draws = model.draw(indexed(named(key, "noise"), jnp.arange(args.batch)), sampler(key, args.batch))
            terms, grads = gradient(params, draws, Batch(images), None)
            flat = jnp.concatenate([jnp.ravel(g) for g in jax.tree.leaves(grads)])
            return {name: scale * jnp.mean(term) for name, term in terms.metrics().items()}, flat

        return step

    steps, root = {dtype: step_of(dtype) for dtype in DTYPES}, root_key(0, "bfloat16")
    losses: dict[str, dict[str, list[float]]] = {dtype: {} for dtype in DTYPES}
    gradients = dict.fromkeys(DTYPES, 0.0)
    rng = np.random.default_rng(0)
    for i in range(args.batches):
        images = dataset.test[rng.choice(len(dataset.test), args.batch)]
        for dtype, step in steps.items():
            terms, flat = jax.device_get(step(trained.params, images, indexed(root, i)))
            gradients[dtype] = gradients[dtype] + flat.astype(np.float64) / args.batches
            for name, value in terms.items():
                losses[dtype].setdefault(name, []).append(float(value))
    rows = []
    for name in losses["float32"]:
        one, other = (np.asarray(losses[dtype][name]) for dtype in DTYPES)
        change = other - one
        rows.append(
            {
                "": name,
                "float32": f"{one.mean():.5f}",
                "bfloat16": f"{other.mean():.5f}",
                "change": f"{change.mean():+.6f}",
                "error": f"{change.std(ddof=1) / np.sqrt(len(change)):.6f}" if len(change) > 1 else "-",
            }
        )
    one, other = (np.asarray(gradients[dtype]) for dtype in DTYPES)
    apart = np.linalg.norm(other - one) / np.linalg.norm(one)
    rows.append({"": "gradient", "float32": "", "bfloat16": "", "change": f"{apart:.4f}", "error": ""})
    device = jax.devices()[0]
    print(f"jax {jax.__version__}, {device.device_kind} ({os.cpu_count()} host cores)")
    print(f"{dataset.name}, step {trained.step}, {args.batches} batches of {args.batch}")
    print(table(rows))


if __name__ == "__main__":
    run(main)
