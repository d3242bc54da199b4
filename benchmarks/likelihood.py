"""What the ODE likelihood costs.

    python benchmarks/likelihood.py [--channels=128] [--blocks=8] [--batch=4] [--probes=1]
    python benchmarks/likelihood.py --workdir=runs/demo [--images=32] [--batch=4]

The first form times the right-hand side of the ODE with its trace against a forward pass of the network, per
network evaluation, inside a whole jitted solve of 4 fixed steps (16 evaluations), and their temporary
memory. The second solves images of a trained run's test split with several solvers and tolerances: network
evaluations and seconds per image, and the difference of bits/dim from the finest solver's.
"""

import os
import sys
import time
from typing import Any, NamedTuple

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from script import Parser, run, whole

import jvdm
from jvdm import config as config_lib
from jvdm import model as model_lib
from jvdm.core import host_memory, sharding
from jvdm.core.keys import root_key
from jvdm.core.precision import full_precision
from jvdm.core.records import Batch, Context
from jvdm.core.registry import Config
from jvdm.core.tables import table
from jvdm.diffusion.divergence import TRACES
from jvdm.diffusion.parameterizations import PARAMETERIZATIONS
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.diffusion.solvers import SOLVERS
from jvdm.evaluation import passes
from jvdm.evaluation.ode import ODE
from jvdm.evaluation.vlb import for_evaluation
from jvdm.model import Model
from jvdm.networks import NETWORKS

SOLVERS_COMPARED = [
    ("adaptive", {"method": "dopri5", "tolerance": 1e-3}),
    ("adaptive", {"method": "dopri5", "tolerance": 1e-4}),
    ("adaptive", {"method": "dopri5", "tolerance": 1e-5}),
    ("adaptive", {"method": "tsit5", "tolerance": 1e-5}),
    ("adaptive", {"method": "dopri8", "tolerance": 1e-5}),
    ("fixed", {"method": "rk4", "num_steps": 50}),
    ("fixed", {"method": "rk4", "num_steps": 100}),
    ("fixed", {"method": "heun", "num_steps": 100}),
    ("adaptive", {"method": "dopri5", "tolerance": 1e-6}),
]


class Cost(NamedTuple):
    """What a compiled program costs.

    Attributes:
        compile_s: seconds.
        run_s: seconds of a run, the median of several.
        temporary: bytes, as XLA has planned them; 0 where it does not say.
        evaluations: of the network, one after the other, in a run; those of the slowest image.
    """

    compile_s: float
    run_s: float
    temporary: int
    evaluations: int = 1

    @property
    def per_evaluation_s(self) -> float:
        """Seconds of a run for each evaluation of the network."""
        return self.run_s / self.evaluations


def forward_cost(model: Model, params: Any, batch_size: int, *, repeats: int) -> Cost:
    """Of one forward pass of the network in full float32, as evaluation runs it."""
    z = jax.random.normal(jax.random.key(1), (batch_size, *model.data_shape))
    t = jnp.full(batch_size, 0.5)
    forward = jax.jit(lambda params, z: model.predict(params, z, t, Context()).eps)
    return _cost(forward, params, z, repeats=repeats)[0]


def solve_cost(model: Model, params: Any, config: Config, *, repeats: int) -> Cost:
    """Of the ODE likelihood of a batch of random images.

    Args:
        model: without a latent, as `for_evaluation` returns it.
        params: its own.
        config: the section `eval.ode`.
        repeats: runs after the first, at least 1.
    """
    mesh, n = sharding.make_mesh(jax.devices()[:1]), config.batch_size
    images = np.random.default_rng(0).integers(0, 256, (n, *model.data_shape), dtype=np.uint8)
    batch, index = sharding.to_devices((Batch(images), np.arange(n, dtype=np.int32)), sharding.split(mesh))
    arguments = (params, jax.random.key(0), batch, index, 0, 0)
    cost, sample = _cost(ODE(model, mesh, config)._sample, *arguments, repeats=repeats)
    return cost._replace(evaluations=int(np.max(sample.evaluations)))


def _cost(function: Any, *arguments: Any, repeats: int) -> tuple[Cost, Any]:
    """Of a jitted function, with its result."""
    with full_precision():
        start = time.perf_counter()
        program = function.lower(*arguments).compile()
        compile_s = time.perf_counter() - start
        result, times = jax.block_until_ready(program(*arguments)), []
        for _ in range(repeats):
            start = time.perf_counter()
            result = jax.block_until_ready(program(*arguments))
            times.append(time.perf_counter() - start)
    memory = program.memory_analysis()
    run_s = float(np.median(times))
    return Cost(compile_s, run_s, memory.temp_size_in_bytes if memory is not None else 0), result


def cost(args) -> None:
    """Against a forward pass."""
    config = config_lib.default()
    config.schedule = SCHEDULES.spec("fixed_linear")
    config.parameterization = PARAMETERIZATIONS.spec("velocity")
    config.network = NETWORKS.spec("vdm_unet", channels=args.channels, num_blocks=args.blocks)
    config.eval.ode.batch_size = args.batch
    config.eval.ode.trace = TRACES.spec("hutchinson", probes=args.probes)
    config.eval.ode.solver = SOLVERS.spec("fixed", method="rk4", num_steps=4)
    model = for_evaluation(model_lib.build(config, (args.size, args.size, 3), 256))
    params = jax.jit(model.init)(jax.random.key(0))
    forward = forward_cost(model, params, args.batch, repeats=args.repeats)
    solve = solve_cost(model, params, config.eval.ode, repeats=args.repeats)
    memory = [each.temporary / 1e6 for each in (forward, solve)]
    print(f"forward pass            {forward.run_s * 1e3:9.1f} ms  {memory[0]:9.1f} MB temporary")
    print(
        f"ODE, per evaluation     {solve.per_evaluation_s * 1e3:9.1f} ms  {memory[1]:9.1f} MB temporary, "
        "whole solve"
    )
    print(
        f"ratio                   {solve.per_evaluation_s / forward.run_s:9.2f}     "
        f"{memory[1] / memory[0]:9.2f}      ({args.probes} probe(s))"
    )


def compare(args) -> None:
    """Solvers on the test split of a trained run."""
    from jvdm import data

    trained = jvdm.load(args.workdir, devices=jax.devices()[:1])
    config, mesh = ConfigDict(trained.config.to_dict()), trained.mesh
    dataset = data.load(config.data.source, num_levels=config.data.num_levels, data_dir=config.data.data_dir)
    images, key = dataset.test[: args.images], root_key(config.seed, "eval")
    rows, numbers = [], []
    for name, options in SOLVERS_COMPARED:
        config.eval.ode.solver = SOLVERS.spec(name, **options)
        config.eval.ode.batch_size = args.batch
        estimator = ODE(for_evaluation(trained.model, 0), mesh, config.eval.ode)
        passes.run(estimator, trained.params, images[: args.batch], key)  # compiles
        start = time.perf_counter()
        result = passes.run(estimator, trained.params, images, key)
        seconds = (time.perf_counter() - start) / len(images)
        numbers.append(passes.bits_per_dim(result, estimator.terms).mean(axis=1))
        rows.append(
            {
                "solver": estimator.solver.text(),
                "NFE": f"{np.mean(result['nfe']):.0f}",
                "s/image": f"{seconds:.3f}",
                "bits/dim": f"{numbers[-1].mean():.5f}",
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    for row, number in zip(rows, numbers, strict=True):
        difference = number - numbers[-1]
        row["off, mean"] = f"{difference.mean():+.6f}"
        row["off, rms"] = f"{np.sqrt(np.mean(difference**2)):.6f}"
    print(f"{dataset.name}, {len(images)} test images, {args.batch} at a time, step {trained.step}")
    print(table(rows))


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--channels", type=whole, default=128)
    parser.add_argument("--blocks", type=whole, default=8)
    parser.add_argument("--batch", type=whole, default=4)
    parser.add_argument("--size", type=whole, default=32)
    parser.add_argument("--probes", type=whole, default=1)
    parser.add_argument("--repeats", type=whole, default=5)
    parser.add_argument("--workdir", default="")
    parser.add_argument("--images", type=whole, default=32)
    args = parser.parse_args()
    host_memory.keep()
    device = jax.devices()[0]
    print(f"jax {jax.__version__}, {device.device_kind} ({os.cpu_count()} host cores)")
    if args.workdir:
        compare(args)
    else:
        print(
            f"{args.channels} channels, {args.blocks} blocks, batch {args.batch}, {args.size}x{args.size}x3"
        )
        cost(args)


if __name__ == "__main__":
    run(main)
