"""The one train step: jitted, donated, sharded; one device is the smallest mesh.

Keys (`jvdm.core.keys`): the root key lives in the state, step n has the key of index n, example i of the
global batch that of index i of the step's key named "noise", and its masks, of each layer, that of index i of
"dropout". So the draws depend neither on the number of devices nor on that of microbatches.

Along the mesh's axis `data`, each device computes the gradient for its part of the batch, one microbatch at a
time. The gradients are averaged over the devices once per step, at the end. Along `fsdp`, XLA inserts the
communication that the sharding of the state needs.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jvdm.core import sharding
from jvdm.core.keys import indexed, named, root_key
from jvdm.core.records import Batch, Dropout
from jvdm.core.registry import Config
from jvdm.diffusion.times import TIME_SAMPLERS
from jvdm.model import Model
from jvdm.runs.state import StepMetrics, TrainState
from jvdm.training.gradients import objective_gradient
from jvdm.training.optimizer import ema_rate, learning_rate, make_optimizer

Params = Any


def init_state(model: Model, config: Config, key: jax.Array) -> TrainState:
    """The state before the first step."""
    params = model.init(named(key, "init"))
    optimizer = make_optimizer(config.optimizer, config.training.num_steps)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        root_key=named(key, "steps"),
    )


def make_train_step(model: Model, config: Config, mesh: Mesh) -> Any:
    """The jitted step.

    Args:
        model: what is trained.
        config: all of it.
        mesh: of `sharding.make_mesh`; the state is placed on it by `sharding.of_state`.

    Returns:
        (state, batches) -> (state, metrics). Every field of `batches` and of the metrics has a leading
        axis: the steps of one dispatch. The state is donated.
    """
    optimizer = make_optimizer(config.optimizer, config.training.num_steps)
    rate = learning_rate(config.optimizer, config.training.num_steps)
    time_sampler = TIME_SAMPLERS.build(config.time_sampler)
    gradient = objective_gradient(model, config)
    batch_size, num_micro = config.training.batch_size, config.training.microbatches
    scale = model.units_per_nat

    parallel = mesh.shape["data"] > 1

    def over_fsdp(spec: PartitionSpec) -> Any:
        """A sharding inside of `gradients`, which does not see the axis `data` if there is more than one."""
        return spec if parallel else NamedSharding(mesh, spec)

    def to_microbatches(a):
        # Every num_micro-th example: a microbatch then has examples of every device, and none moves.
        a = a.reshape(-1, num_micro, *a.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(a, over_fsdp(PartitionSpec(None, "fsdp")))

    def gradients(params: Params, step: jax.Array, k_dropout: jax.Array, examples: Any) -> Any:
        """Of the mean over `examples`, (u, keys, places, batch); and the means of the metrics."""

        def accumulate(grads, micro):
            u, keys, places, batch = micro
            draws = model.draw(keys, u)._replace(step=step)
            dropout = Dropout(k_dropout, places) if has_dropout else None
            terms, more = gradient(params, draws, batch, dropout)
            means = {name: scale * jnp.mean(term) for name, term in terms.metrics().items()}
            return like_params(jax.tree.map(lambda a, b: a + b / num_micro, grads, more)), means

        zeros = like_params(jax.tree.map(jnp.zeros_like, params))
        micro = jax.tree.map(to_microbatches, examples)
        if num_micro == 1:
            return accumulate(zeros, jax.tree.map(lambda a: a[0], micro))
        grads, terms = jax.lax.scan(accumulate, zeros, micro)
        return grads, jax.tree.map(lambda a: jnp.mean(a, axis=0), terms)

    summed = gradients
    if parallel:
        everything = PartitionSpec()
        summed = jax.shard_map(
            lambda *arguments: jax.lax.pmean(gradients(*arguments), "data"),
            mesh=mesh,
            axis_names={"data"},
            in_specs=(everything, everything, everything, PartitionSpec("data")),
            out_specs=everything,
            check_vma=False,
        )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        key = indexed(state.root_key, state.step)
        u = time_sampler(key, batch_size)
        places = jnp.arange(batch_size)
        examples = (u, indexed(named(key, "noise"), places), places, batch)
        grads, terms = summed(state.params, state.step, named(key, "dropout"), examples)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        keep = ema_rate(config.optimizer, state.step)
        ema_params = jax.tree.map(lambda old, new: keep * old + (1.0 - keep) * new, state.ema_params, params)
        learns = bool(state.params["schedule"]) and not model.per_pixel
        gamma_0, gamma_1 = model.ends(params) if learns else (None, None)
        metrics = StepMetrics(
            losses=terms,
            grad_norm=optax.tree.norm(grads),
            learning_rate=jnp.asarray(rate(state.step), jnp.float32),
            gamma_0=gamma_0,
            gamma_1=gamma_1,
        )
        step = state.step + 1
        state = dataclasses.replace(
            state, step=step, params=params, ema_params=ema_params, opt_state=opt_state
        )
        return state, metrics

    has_dropout = any(getattr(part, "dropout", 0.0) > 0.0 for part in (model.network, model.encoder))
    everywhere, by_example = sharding.replicated(mesh), sharding.split(mesh, axis=1)

    where = sharding.of_state(
        jax.eval_shape(lambda key: init_state(model, config, key), root_key(0, "training")), mesh
    )

    def like_params(tree):
        """Gradients are sharded like their parameters: each device sums its own part."""
        specs = jax.tree.map(lambda sharding: over_fsdp(sharding.spec), where.params)
        return jax.lax.with_sharding_constraint(tree, specs)

    def train_step(state, batches):
        return jax.lax.scan(step, state, batches)

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(where, by_example),
        out_shardings=(where, everywhere),
    )
