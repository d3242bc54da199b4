"""Layers that the networks share.

Precision: a layer computes in its `dtype` (the trunk's), parameters are float32, normalisation
statistics and softmax are always float32.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jvdm.core import options, random
from jvdm.core.keys import indexed
from jvdm.core.shapes import lead
from jvdm.networks.convolution import convolve

# Of a network's trunk, `dtype`.
DTYPES = ("float32", "bfloat16")

# What a block keeps for its derivatives, `remat`.
REMATS = ("none", "elementwise", "full")
# Beside its input, what an "elementwise" block keeps: results of convolutions and matrix products on which
# its derivatives depend. What is between them (normalisations, activations, dropout) is computed again.
_KEPT = ("product",)

# From which one image's attention weights fill a cache of 1 MB, on a CPU.
_POSITIONS_OF_A_CACHE = 512


def product(x: Array) -> Array:
    """Mark the result of a convolution or a matrix product that an "elementwise" block keeps."""
    return checkpoint_name(x, *_KEPT)


def rematerialised(module: Any, kind: str, **options: Any) -> Any:
    """A class of modules whose calls keep what `kind` says.

    Args:
        module: a subclass of `nn.Module`.
        kind: one of `REMATS`: "none" keeps what automatic differentiation asks for; "elementwise" keeps the
            input and results of products, so that no product is computed twice; "full" keeps the input.
        **options: of `nn.remat`.
    """
    if kind == "none":
        return module
    policies = jax.checkpoint_policies
    policy = policies.save_only_these_names(*_KEPT) if kind == "elementwise" else policies.nothing_saveable
    return nn.remat(module, policy=policy, **options)


def timestep_embedding(
    t: Float[Array, " b"], dim: int, *, max_period: float = 10_000.0, scale: float = 1000.0
) -> Float[Array, "b dim"]:
    """Sinusoidal embedding of a time (1706.03762, section 3.5).

    Args:
        t: [b] times in [0, 1]; frequencies run from scale down to scale / max_period.
        dim: an even number of features.
        max_period: quotient of the highest and the lowest frequency.
        scale: the highest frequency.

    Returns:
        [b, dim]: sines, then cosines.
    """
    half = dim // 2
    frequency = scale * jnp.exp(-jnp.log(max_period) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    phase = t[:, None] * frequency[None]
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


def fourier_features(z: Float[Array, "b h w c"], first: int, last: int) -> Float[Array, "b h w d"]:
    """sin and cos of 2 pi 2^n z for n = first..last (2107.00630, appendix C).

    Returns:
        [b, h, w, 2 c (last - first + 1)]: sines, then cosines; within each, channel by channel.
    """
    frequency = 2.0 * jnp.pi * 2.0 ** jnp.arange(first, last + 1, dtype=jnp.float32)
    phase = (z[..., None] * lead(frequency, z.ndim + 1)).reshape(*z.shape[:-1], -1)
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


def most_groups(channels: int) -> int:
    """The largest divisor of the channels up to min(32, channels / 4), as a number of groups."""
    return next(n for n in range(min(32, channels // 4), 0, -1) if channels % n == 0)


def check_channels(network: Any) -> None:
    """Refuse options outside of their ranges, and channels that the groups do not divide.

    Args:
        network: has `channels`, `num_groups`, and `groups`, the number that is normalised with.

    Raises:
        ValueError: naming the option.
    """
    options.check(network)
    if network.channels % 2:
        raise ValueError(f"channels is {network.channels}: give an even number")
    # Every normalisation is over a multiple of the channels.
    if network.channels % network.groups:
        raise ValueError(f"num_groups {network.num_groups} does not divide channels {network.channels}")


class Conv3x3(nn.Module):
    """3 x 3 convolution, stride 1, zero padding to the same size."""

    features: int
    zero_init: bool = False
    dtype: DTypeLike = jnp.float32
    precision: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w features"]:
        init = nn.initializers.zeros_init() if self.zero_init else nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        return convolve(x, kernel, precision=self.precision) + lead(bias, x.ndim)


class _Affine(nn.Module):
    """Scale and bias of each channel; a module because weights have it so."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> tuple[Any, Any]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        return scale, self.param("bias", nn.initializers.zeros_init(), (channels,))


class GroupNorm(nn.Module):
    """Group normalisation (1803.08494) with float32 statistics.

    Sums are over positions first and then over a group's channels, and the result is x times one number per
    image and channel plus another. So every pass over x, also of the derivative, runs along channels, and
    what is as large as x is never held in float32 if it is in bfloat16.
    """

    num_groups: int
    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        scale, bias = (jnp.asarray(a, jnp.float32) for a in _Affine(name="norm")(x))
        x = x.astype(jnp.float32)

        def mean(y):
            return jnp.mean(y.sum((1, 2)).reshape(b, self.num_groups, -1), axis=2) / (h * w)

        def of_channels(y):
            return jnp.repeat(y, c // self.num_groups, axis=1)

        mu = mean(x)
        variance = jnp.maximum(mean(x * x) - mu * mu, 0.0)
        factor = of_channels(jax.lax.rsqrt(variance + self.epsilon)) * lead(scale, 2)
        shift = lead(bias, 2) - of_channels(mu) * factor
        return (x * factor[:, None, None] + shift[:, None, None]).astype(self.dtype)


class Dropout(nn.Module):
    """Dropout whose masks depend on an example's place in the batch, not on who else is computed with it.

    The probability is the nearest multiple of 2^-32; what is kept is divided by the exact rest.
    """

    rate: float
    train: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, " b *d"], place: Int[Array, " b"] | None = None
    ) -> Float[Array, " b *d"]:
        dropped = min(round(self.rate * 2**32), 2**32 - 1)
        if not self.train or not dropped:
            return x
        place = jnp.arange(len(x)) if place is None else place
        keys = indexed(self.make_rng("mask"), place)
        words = jax.vmap(lambda key: random.bits(key, "mask", x.shape[1:]))(keys)
        kept = words >= jnp.uint32(dropped)
        return jnp.where(kept, x / (1 - dropped / 2**32), jnp.zeros_like(x))


def attend(
    q: Float[Array, "b n c"], k: Float[Array, "b n c"], v: Float[Array, "b n c"]
) -> Float[Array, "b n c"]:
    """softmax(q k^T / sqrt(c)) v, with the softmax in float32.

    The [n, n] weights are recomputed in the backward pass. In a program for a CPU they are [keys, queries],
    so that the softmax runs along vectors, and images whose weights fill a cache are done by ones or twos.

    Args:
        q, k, v: [b, n, c], over n positions.

    Returns:
        [b, n, c].
    """
    root = jnp.sqrt(jnp.float32(q.shape[-1]))

    def one(q, k, v):
        logits = jnp.einsum("qc,kc->qk", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits / root, axis=-1)
        return weights.astype(v.dtype) @ v

    def one_cpu(q, k, v):
        logits = jnp.einsum("kc,qc->kq", k, q, preferred_element_type=jnp.float32) / root
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=0, keepdims=True)))
        sums = weights.sum(axis=0, keepdims=True).astype(v.dtype)
        return (jnp.einsum("kc,kq->cq", v, weights.astype(v.dtype)) / sums).T

    def cpu(*qkv):
        if q.shape[1] < _POSITIONS_OF_A_CACHE:
            return jax.vmap(one_cpu)(*qkv)
        image = jax.checkpoint(one_cpu, prevent_cse=False)
        if len(q) % 2:
            return jax.lax.map(lambda qkv: image(*qkv), qkv)
        # One core does an image: two of them at a time.
        pairs = [a.reshape(-1, 2, *a.shape[1:]) for a in qkv]
        two = jax.lax.map(lambda qkv: jnp.stack([image(*(a[i] for a in qkv)) for i in range(2)]), pairs)
        return two.reshape(v.shape)

    @jax.checkpoint
    def for_the_platform(*qkv):
        return jax.lax.platform_dependent(*qkv, cpu=cpu, default=jax.vmap(one))

    return for_the_platform(q, k, v)


class SelfAttention(nn.Module):
    """Residual attention over pixels, zero-initialised at its output.

    Each head has its own part of the channels, in order.
    """

    num_groups: int
    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32
    num_heads: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        y = GroupNorm(self.num_groups, self.epsilon, self.dtype, name="norm")(x).reshape(b, h * w, c)
        q, k, v = (product(nn.Dense(c, dtype=self.dtype, name=name)(y)) for name in ("query", "key", "value"))
        # Heads as if they were images.
        parts = (b, h * w, self.num_heads, c // self.num_heads)
        q, k, v = (a.reshape(parts).swapaxes(1, 2).reshape(-1, h * w, parts[-1]) for a in (q, k, v))
        y = (
            product(attend(q, k, v))
            .reshape(b, self.num_heads, h * w, parts[-1])
            .swapaxes(1, 2)
            .reshape(b, h * w, c)
        )
        y = nn.Dense(c, kernel_init=nn.initializers.zeros_init(), dtype=self.dtype, name="out")(y)
        return x + y.reshape(b, h, w, c)
