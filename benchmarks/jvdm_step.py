"""jvdm's training step as a worker of `against_pytorch.py`.

The system is VDM with a fixed linear schedule, in float32, with the gradient clipped at norm 1.
"""

import argparse
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import jax
import jax.numpy as jnp
import numpy as np
import turns
from flax import traverse_util

from jvdm import config as config_lib
from jvdm import model as model_lib
from jvdm.core import host_memory, sharding
from jvdm.core.records import Batch, Draws
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.model import objectives
from jvdm.networks import NETWORKS
from jvdm.training.optimizer import make_optimizer
from jvdm.training.step import init_state, make_train_step


def configured(args: argparse.Namespace) -> tuple[Any, model_lib.Model]:
    """The config and the model."""
    config = config_lib.default()
    config.schedule = SCHEDULES.spec("fixed_linear")
    config.network = NETWORKS.spec(
        "vdm_unet", channels=args.channels, num_blocks=args.blocks, dropout=args.dropout, remat=args.remat
    )
    config.optimizer.clip_norm = 1.0
    config.training.batch_size = args.batch
    return config, model_lib.build(config, (args.side, args.side, 3), 256)


def images(args: argparse.Namespace) -> np.ndarray:
    """[batch, side, side, 3] levels."""
    shape = (args.batch, args.side, args.side, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class Step:
    """The compiled step, its state, and a batch that stays on the device."""

    def __init__(self, args: argparse.Namespace):
        config, model = configured(args)
        mesh = sharding.make_mesh(jax.devices()[:1])
        init = jax.jit(lambda key: init_state(model, config, key), out_shardings=sharding.replicated(mesh))
        self.state = init(jax.random.key(0))
        self.batch = sharding.to_devices(Batch(jnp.asarray(images(args)[None])), sharding.split(mesh, axis=1))
        self.step = make_train_step(model, config, mesh).lower(self.state, self.batch).compile()

    def __call__(self) -> None:
        self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))

    def facts(self) -> dict[str, Any]:
        """What it has."""
        sizes = [leaf.size for leaf in jax.tree.leaves(self.state.params)]
        return {"parameters": sum(sizes)}


def one_step(args: argparse.Namespace, file: str) -> None:
    """Write one step without dropout: parameters, random draws and results.

    Args:
        args: the size.
        file: an .npz of `x`, `u`, `eps`, `eps_0`; the `terms`, [3, b] nats; and for every parameter its
            value, gradient and value after a first step without warm-up, as `params/...`, `grads/...` and
            `after/...`.
    """
    config, model = configured(args)
    config.optimizer.warmup_steps = 0
    x = images(args)
    params = jax.jit(model.init)(jax.random.key(1))
    leaves, structure = jax.tree.flatten(params)
    # Away from initialisation, where zeros hide mistakes.
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [a + 0.05 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(structure, leaves)
    u = (0.3 + jnp.arange(args.batch) / args.batch) % 1.0
    draws: Draws = jax.jit(model.draw)(jax.random.split(jax.random.key(3), args.batch), u)
    optimizer = make_optimizer(config.optimizer, config.training.num_steps)

    def objective(params):
        terms = objectives.bound(model, params, draws, Batch(jnp.asarray(x)))
        return model.units_per_nat * jnp.mean(terms.objective), terms

    @jax.jit
    def step(params):
        grads, terms = jax.grad(objective, has_aux=True)(params)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return terms, grads, jax.tree.map(jnp.add, params, updates)

    terms, grads, after = step(params)
    trees = {"params": params["network"], "grads": grads["network"], "after": after["network"]}
    arrays: dict[str, Any] = {
        "x": x,
        "u": u,
        "eps": draws.eps,
        "eps_0": draws.eps_0,
        "terms": np.stack([terms.diffusion, terms.reconstruction, terms.prior]),
        **traverse_util.flatten_dict(trees, sep="/"),
    }
    np.savez(file, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("channels", "blocks", "batch", "side"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--remat", default="elementwise")
    args = parser.parse_args()
    host_memory.keep()
    steps: list[Step] = []

    def build() -> dict[str, Any]:
        steps.append(Step(args))
        return steps[0].facts()

    turns.serve(
        {
            "versions": lambda: f"jax {jax.__version__}",
            "build": build,
            "turn": lambda seconds: turns.timed(steps[0], seconds),
            "memory": turns.peak_memory,
            "one_step": lambda file: one_step(args, file),
        }
    )


if __name__ == "__main__":
    main()
