# %% [markdown]
# # A score-based model of the swiss roll, from parts
#
# Run `python examples/swissroll.py`, or run it cell by cell in an editor that supports `# %%`. It needs no
# config and no `main.py`: the parts of jvdm are plain objects and functions. It takes about a minute on two
# CPU cores and writes `swissroll_density.png` and `swissroll_trajectories.png` into the current folder.

# %%
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jvdm.core.records import Batch, Context
from jvdm.data import swissroll
from jvdm.diffusion import likelihood
from jvdm.diffusion.divergence import ExactTrace
from jvdm.diffusion.gaussian import GaussianProcess
from jvdm.diffusion.parameterizations import Drift
from jvdm.diffusion.paths import VariancePreserving
from jvdm.diffusion.schedules import LinearBeta
from jvdm.diffusion.solvers import Adaptive
from jvdm.diffusion.times import Debiased
from jvdm.diffusion.transforms import Identity
from jvdm.evaluation import sampling
from jvdm.model import Model, objectives
from jvdm.networks import TimeInput
from jvdm.networks.mlp import MLP
from jvdm.reporting import plane

NUM_STEPS, BATCH = int(os.environ.get("STEPS", 4000)), 1024

# %% [markdown]
# The model is a variance-preserving diffusion with linear beta. The network gives the drift `a = g score`,
# and the times have density g^2 / sigma^2, so that no single time dominates the gradient.

# %%
path = VariancePreserving()
schedule = LinearBeta(noise_path=path, beta_min=0.1, beta_max=20.0)
model = Model(
    network=MLP(hidden=128, num_layers=4),
    process=GaussianProcess(schedule=schedule, path=path, data_shape=swissroll.SHAPE, prior_name="path"),
    parameterization=Drift(),
    time_density=Debiased(epsilon=1e-3),
    time_input=TimeInput(),
    data_map=Identity(),
    data_shape=swissroll.SHAPE,
    num_levels=0,
)
params = model.init(jax.random.key(0))

# %% [markdown]
# Training uses denoising score matching. `model.draw` draws all random numbers, and
# `objectives.score_matching` is deterministic.

# %%
optimizer = optax.adam(optax.linear_schedule(5e-3, 0.0, NUM_STEPS))
data = jnp.asarray(swissroll.generate(np.random.default_rng(0), 100_000))


def loss_fn(params, draws, batch):
    terms = objectives.score_matching(
        model, params, draws, batch, weighting="likelihood", truncation=1e-3, dequantize=False
    )
    return jnp.mean(terms.objective)


@jax.jit
def train(params, opt_state, key):
    def step(carry, key):
        params, opt_state = carry
        k_data, k_time, k_noise = jax.random.split(key, 3)
        x = data[jax.random.randint(k_data, (BATCH,), 0, len(data))]
        draws = model.draw(jax.random.split(k_noise, BATCH), jax.random.uniform(k_time, (BATCH,)))
        loss, grads = jax.value_and_grad(loss_fn)(params, draws, Batch(x))
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), loss

    (params, opt_state), losses = jax.lax.scan(step, (params, opt_state), jax.random.split(key, NUM_STEPS))
    return params, losses


params, losses = train(params, optimizer.init(params), jax.random.key(1))
print(f"loss {np.mean(losses[:100]):.3f} at first, {np.mean(losses[-100:]):.3f} at last")

# %% [markdown]
# Evaluation computes the exact log-density of points by the probability-flow ODE. The ODE starts at the
# time where gamma = -11.8, slightly after time 0, because the data have no noise at time 0.

# %%
trace, solver, start = ExactTrace(), Adaptive(tolerance=1e-5), model.schedule.inverse(jnp.float32(-11.8))
field = likelihood.batched_field(model.ode_drift, trace)


@jax.jit
def log_density(params, x):
    alpha, prior = model.at(params, start[None]).alpha[0], model.prior(params)

    def one(x):
        found = likelihood.integrate(
            field(params, Context(), jnp.zeros(1)),
            alpha * x,
            num_probes=1,
            start=start,
            prior=prior,
            solver=solver,
        )
        # The density of x: alpha x is x at another scale.
        return found.prior + found.trace[0] + x.size * jnp.log(alpha[0])

    return jax.vmap(one)(x)


test = swissroll.generate(np.random.default_rng(1), 2000)
ours, truth = np.asarray(log_density(params, jnp.asarray(test))), swissroll.log_density(test)
error = np.std(ours - truth) / np.sqrt(len(test))
print(f"log-density of {len(test)} new points: model {ours.mean():.4f} nats, truth {truth.mean():.4f}")
print(f"the model is {(truth - ours).mean():.4f} ± {error:.4f} nats below the truth")

# %% [markdown]
# The pictures show the density over the plane, and the trajectories of samples for the two ends of the
# family of reverse SDEs.

# %%
side, extent = 60, 1.8
axis = (np.arange(side) + 0.5) / side * 2 * extent - extent
grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype(np.float32)
densities = {
    "model": np.asarray(log_density(params, jnp.asarray(grid))),
    "truth": swissroll.log_density(grid),
}
plane.densities({k: v.reshape(side, side) for k, v in densities.items()}, extent, "swissroll_density.png")

paths = {
    f"λ = {lam:g}": sampling.trajectories(model, params, jax.random.key(2), lam=lam, num_steps=500, every=5)
    for lam in (0.0, 1.0)
}
plane.trajectories(paths, "swissroll_trajectories.png")
for name, z in paths.items():
    print(f"{name}: samples have log-density {swissroll.log_density(z[-1]).mean():.3f} under the truth")
