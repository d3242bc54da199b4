"""How noisy the training gradient is with and without importance-sampled times.

    python benchmarks/gradient_variance.py --workdir=runs/cifar10_tiny [--batch=16] [--batches=64]

At the weights of a trained run (fixed schedule), the gradient of mean bits/dim is taken for many batches,
each with times drawn by either density, of the same images, noise and uniform numbers. Printed: the
standard deviation of the loss over batches, and the trace of the gradient's covariance over the squared
norm of its mean: the inverse of a signal-to-noise ratio.
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
from jvdm.core.records import Batch
from jvdm.core.tables import table
from jvdm.diffusion.times import TIME_DENSITIES, TIME_SAMPLERS
from jvdm.training.gradients import Bound


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--batch", type=whole, default=16)
    parser.add_argument("--batches", type=whole, default=64)
    args = parser.parse_args()
    trained = jvdm.load(args.workdir, devices=jax.devices()[:1])
    config = trained.config
    dataset = data.load(config.data.source, num_levels=config.data.num_levels, data_dir=config.data.data_dir)
    sampler = TIME_SAMPLERS.build(config.time_sampler)
    rows = []
    for name in ("uniform", "importance"):
        density = TIME_DENSITIES.build(TIME_DENSITIES.spec(name))
        model = dataclasses.replace(trained.model, time_density=density)
        gradient, scale = Bound().gradient(model), model.units_per_nat

        @jax.jit
        def step(params, images, key, model=model, gradient=gradient, scale=scale):
            k_time, k_noise = jax.random.split(key)
            draws = model.draw(jax.random.split(k_noise, args.batch), sampler(k_time, args.batch))
            terms, grads = gradient(params, draws, Batch(images), None)
            flat = jnp.concatenate([jnp.ravel(g) for g in jax.tree.leaves(grads["network"])])
            return scale * jnp.mean(terms.diffusion), flat

        losses, total, squares = [], 0.0, 0.0
        rng = np.random.default_rng(0)
        for i in range(args.batches):
            images = dataset.train[rng.permutation(len(dataset.train))[: args.batch]]
            loss, flat = jax.device_get(step(trained.params, images, jax.random.key(i)))
            losses.append(loss)
            total = total + flat.astype(np.float64)
            squares += float(np.sum(flat.astype(np.float64) ** 2))
        n = args.batches
        mean_square = float(np.sum((total / n) ** 2))
        covariance = (squares - n * mean_square) / (n - 1)
        # The squared norm of an average holds 1/n of the covariance.
        signal = mean_square - covariance / n
        rows.append(
            {
                "times": name,
                "loss, bits/dim": f"{np.mean(losses):.4f}",
                "its sd": f"{np.std(losses, ddof=1):.4f}",
                "trace of gradient covariance": f"{covariance:.4e}",
                "over squared mean": f"{covariance / signal:.2f}",
            }
        )
    device = jax.devices()[0]
    print(f"jax {jax.__version__}, {device.device_kind} ({os.cpu_count()} host cores)")
    print(f"{dataset.name}, {config.path.name}, step {trained.step}, {n} batches of {args.batch}")
    print(table(rows))


if __name__ == "__main__":
    run(main)
