# %% [markdown]
# # A score-based model of the swiss roll, from parts
#
# `python examples/swissroll.py`, or cell by cell in an editor that knows `# %%`. No config and no `main.py`:
# the parts of jvdm are plain objects and functions. It takes about a minute on two CPU cores, and writes
# `swissroll_density.png` and `swissroll_trajectories.png` where it is run.

# %%
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jvdm.core.records import Batch
from jvdm.data import swissroll
from jvdm.diffusion import likelihood
from jvdm.diffusion.divergence import ExactTrace
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
# The model: a variance-preserving diffusion with linear beta, a network that gives the drift `a = g score`,
# and times of density g^2 / sigma^2, so that no time's gradient drowns the others'.

# %%
path = VariancePreserving()
model = Model(
    network=MLP(hidden=128, num_layers=4),
    schedule=LinearBeta(noise_path=path, beta_min=0.1, beta_max=20.0),
    path=path,
    parameterization=Drift(),
    time_density=Debiased(epsilon=1e-3),
    time_input=TimeInput(),
    data_map=Identity(),
    image_shape=swissroll.SHAPE,
    num_levels=0,
)
params = model.init(jax.random.key(0))

# %% [markdown]
# Training: denoising score matching. `model.draw` makes all random numbers, `objectives.score_matching` is
# deterministic.

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
        loss, grads = jax.value_and_grad(loss_fn)(params, draws, Batch(x, jnp.zeros(BATCH)))
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), loss

    (params, opt_state), losses = jax.lax.scan(step, (params, opt_state), jax.random.split(key, NUM_STEPS))
    return params, losses


params, losses = train(params, optimizer.init(params), jax.random.key(1))
print(f"loss {np.mean(losses[:100]):.3f} at first, {np.mean(losses[-100:]):.3f} at last")

# %% [markdown]
# Evaluation: the exact log-density of points by the probability-flow ODE, started at the time where
# gamma = -11.8, a little after the data themselves, which have no noise.

# %%
trace, solver, start = ExactTrace(), Adaptive(tolerance=1e-5), model.schedule.inverse(jnp.float32(-11.8))
field = likelihood.batched_field(model.ode_drift, trace)


@jax.jit
def log_density(params, x):
    context = model.context(params, Batch(x, jnp.zeros(len(x))))
    c = model.coefficients(model.time_gamma(params, start[None]))
    alpha, log_sigma_1 = c.alpha[0], path.log_sigma(model.schedule(jnp.ones((1, 1, 1))))

    def one(x, context):
        found = likelihood.integrate(
            field(params, context, jnp.zeros(1)),
            alpha * x,
            num_probes=1,
            start=start,
            log_sigma_1=log_sigma_1,
            solver=solver,
        )
        # The density of x, of which alpha x is a change of scale.
        return found.prior + found.trace[0] + x.size * jnp.log(alpha[0, 0, 0])

    return jax.vmap(one)(x, context)


test = swissroll.generate(np.random.default_rng(1), 2000)
ours, truth = np.asarray(log_density(params, jnp.asarray(test))), swissroll.log_density(test)
error = np.std(ours - truth) / np.sqrt(len(test))
print(f"log-density of {len(test)} new points: model {ours.mean():.4f} nats, truth {truth.mean():.4f}")
print(f"the model lies {(truth - ours).mean():.4f} ± {error:.4f} nats below")

# %% [markdown]
# Pictures: the density over the plane, and how the two ends of the family of reverse SDEs make samples.

# %%
side, extent = 60, 1.8
axis = (np.arange(side) + 0.5) / side * 2 * extent - extent
grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 1, 1, 2).astype(np.float32)
densities = {
    "model": np.asarray(log_density(params, jnp.asarray(grid))),
    "truth": swissroll.log_density(grid),
}
plane.densities({k: v.reshape(side, side) for k, v in densities.items()}, extent, "swissroll_density.png")

paths = {
    f"λ = {lam:g}": sampling.trajectories(
        model, params, jax.random.key(2), lam=lam, num_steps=500, every=5
    ).reshape(101, -1, 2)
    for lam in (0.0, 1.0)
}
plane.trajectories(paths, "swissroll_trajectories.png")
for name, z in paths.items():
    print(f"{name}: samples have log-density {swissroll.log_density(z[-1]).mean():.3f} under the truth")
