"""AdamW with the published masks, the learning rate, and the moving average of the parameters."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jvdm.core.errors import unknown
from jvdm.core.registry import Config

Params = Any


def _leaf_name(path) -> str:
    return str(path[-1].key)


def _kernels(params: Params) -> Params:
    """The networks' kernels: no bias, no normalisation scale, nothing of the schedule."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[0].key != "schedule" and _leaf_name(path) == "kernel", params
    )


def _released_vdm(params: Params) -> Params:
    """All but leaves named `bias`: normalisation scales and the schedule are decayed too."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _leaf_name(path) != "bias", params)


DECAY_MASKS = {"kernels": _kernels, "released_vdm": _released_vdm}


def _promoting(fn: Callable) -> Callable:
    """A function of optax, which promotes its counters implicitly, also where JAX is strict elsewhere."""

    @functools.wraps(fn)
    def promoting(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"):
            return fn(*args, **kwargs)

    return promoting


def learning_rate(config: Config, num_steps: int) -> optax.Schedule:
    """Linear warm-up from zero, then constant or linearly to zero at `num_steps`."""
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    if config.linear_decay:
        after = optax.linear_schedule(config.learning_rate, 0.0, max(1, num_steps - config.warmup_steps))
    else:
        after = optax.constant_schedule(config.learning_rate)
    joined = optax.join_schedules([warmup, after], [config.warmup_steps]) if config.warmup_steps else after
    return _promoting(joined)


def make_optimizer(config: Config, num_steps: int) -> optax.GradientTransformation:
    """AdamW over `{"network", "schedule"}`, for gradients of bits/dim.

    Raises:
        UserError: unknown decay mask.
    """
    if config.decay_mask not in DECAY_MASKS:
        raise unknown("config.optimizer.decay_mask", config.decay_mask, DECAY_MASKS)
    adamw = optax.adamw(
        learning_rate(config, num_steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=DECAY_MASKS[config.decay_mask],
    )
    whole = optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw
    return optax.GradientTransformation(whole.init, _promoting(whole.update))


def ema_rate(config: Config, step: Int[Array, ""]) -> Float[Array, ""]:
    """The share of the old average that stays, after optimizer step `step` (0 is the first)."""
    rate = jnp.float32(config.ema_rate)
    if not config.ema_power:
        return rate
    return jnp.minimum(rate, 1.0 - (1.0 + step.astype(jnp.float32)) ** -config.ema_power)
