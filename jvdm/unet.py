"""The U-Net of VDM (2107.00630, appendix C): one resolution, so that fine detail is never discarded.

    1. condition: time in [0, 1] -> sinusoids -> two dense layers
    2. input:     [z, sin and cos of 2^n 2 pi z] -> 3 x 3 convolution
    3. down:      `num_blocks` residual blocks, each output kept
    4. middle:    residual block, attention, residual block
    5. up:        `num_blocks + 1` residual blocks, each on [h, kept output], last kept first
    6. output:    normalisation, zero-initialised 3 x 3 convolution, + z

The blocks of 3 and of 5 are alike, so each stack is one scan over stacked parameters.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jvdm import layers


class ResidualBlock(nn.Module):
    """Normalise, convolve, add the condition, normalise, convolve; plus the input."""

    features: int
    num_groups: int
    dropout: float
    dtype: DTypeLike
    epsilon: float = 1e-6

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], condition: Float[Array, "b d"], *, train: bool
    ) -> Float[Array, "b h w features"]:
        def norm_swish(y, name):
            return nn.swish(layers.GroupNorm(self.num_groups, self.epsilon, self.dtype, name=name)(y))

        zeros = nn.initializers.zeros_init()
        y = layers.Conv3x3(self.features, dtype=self.dtype, name="conv1")(norm_swish(x, "norm1"))
        shift = nn.Dense(
            self.features, use_bias=False, kernel_init=zeros, dtype=self.dtype, name="condition"
        )(condition)
        y = norm_swish(y + shift[:, None, None, :], "norm2")
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        y = layers.Conv3x3(self.features, zero_init=True, dtype=self.dtype, name="conv2")(y)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="shortcut")(x)
        return x + y


class DownBlock(nn.Module):
    """One step of the down scan: (h, condition) -> h', and h' is kept."""

    block: Callable[..., nn.Module]
    attend: Callable[..., nn.Module] | None
    train: bool

    @nn.compact
    def __call__(self, h, condition):
        h = self.block(name="block")(h, condition, train=self.train)
        if self.attend is not None:
            h = self.attend(name="attention")(h)
        return h, h


class UpBlock(nn.Module):
    """One step of the up scan: (h, condition, kept output) -> h'."""

    block: Callable[..., nn.Module]
    attend: Callable[..., nn.Module] | None
    train: bool

    @nn.compact
    def __call__(self, h, condition, kept):
        h = jnp.concatenate([h, kept], axis=-1)
        h = self.block(name="block")(h, condition, train=self.train)
        if self.attend is not None:
            h = self.attend(name="attention")(h)
        return h, None


class VDMUNet(nn.Module):
    """The VDM U-Net.

    Attributes:
        channels: features of every block (the papers' n_embd).
        num_blocks: residual blocks on the way down; there is one more on the way up.
        dropout: probability, inside every residual block, in training.
        attention: attention after every block (there always is one in the middle).
        num_heads: of every attention.
        fourier: whether the input is extended by Fourier features.
        fourier_first, fourier_last: range of exponents n, both included.
        num_groups: of group normalisation; 0 is the largest divisor of the channels up to
            min(32, channels / 4), so that a group has at least four channels.
        norm_epsilon: added to the variances of normalisation.
        remat: recompute a block's activations in the backward pass instead of keeping them.
        dtype: of the trunk, "float32" or "bfloat16"; input convolution, Fourier features,
            normalisation statistics and output are float32 in any case.
    """

    channels: int = 128
    num_blocks: int = 32
    dropout: float = 0.1
    attention: bool = False
    num_heads: int = 1
    fourier: bool = True
    fourier_first: int = 6
    fourier_last: int = 7
    num_groups: int = 0
    norm_epsilon: float = 1e-6
    remat: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        if self.channels < 4 or self.channels % 2:
            raise ValueError(f"channels is {self.channels}: give an even number from 4")
        if self.num_blocks < 1:
            raise ValueError(f"num_blocks is {self.num_blocks}: give 1 or more")
        if self.num_groups < 0 or self.channels % self.groups:
            raise ValueError(f"num_groups {self.num_groups} does not divide channels {self.channels}")
        if self.num_heads < 1 or self.channels % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide channels {self.channels}")
        if not self.norm_epsilon > 0.0:
            raise ValueError(f"norm_epsilon is {self.norm_epsilon}: give a positive number")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype is {self.dtype!r}: give float32 or bfloat16")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}: give a probability below 1")
        if self.fourier and self.fourier_last < self.fourier_first:
            raise ValueError(f"fourier_last {self.fourier_last} is below fourier_first {self.fourier_first}")
        super().__post_init__()

    @property
    def groups(self) -> int:
        """Groups of every normalisation."""
        most = min(32, self.channels // 4)
        return self.num_groups or next(n for n in range(most, 0, -1) if self.channels % n == 0)

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "b h w c"],
        time: Float[Array, " b"],
        conditioning: Float[Array, " b"],
        *,
        train: bool = False,
    ) -> Float[Array, "b h w c"]:
        """The network's output.

        Args:
            z: [b, h, w, c] noised data.
            time: [b] in [0, 1] (`jvdm.networks`).
            conditioning: [b] a scalar known of the image (whether it was augmented), or zeros.
            train: dropout is on.
        """
        dtype, groups = jnp.dtype(self.dtype), self.groups

        condition = layers.timestep_embedding(time, self.channels)
        condition = jnp.concatenate([condition, conditioning[:, None]], axis=-1)
        condition = nn.swish(nn.Dense(4 * self.channels, name="condition1")(condition))
        condition = nn.swish(nn.Dense(4 * self.channels, name="condition2")(condition)).astype(dtype)

        h = z
        if self.fourier:
            h = jnp.concatenate(
                [z, layers.fourier_features(z, self.fourier_first, self.fourier_last)], axis=-1
            )
        h = layers.Conv3x3(self.channels, precision="highest", name="conv_in")(h).astype(dtype)
        kept_in = h

        epsilon = self.norm_epsilon
        block = functools.partial(ResidualBlock, self.channels, groups, self.dropout, dtype, epsilon)
        attend = functools.partial(layers.SelfAttention, groups, epsilon, dtype, self.num_heads)
        stack = functools.partial(self._stack, block, attend, train=train)

        h, kept = stack(DownBlock, self.num_blocks, nn.broadcast, name="down")(h, condition)
        h = block(name="middle1")(h, condition, train=train)
        h = attend(name="middle_attention")(h)
        h = block(name="middle2")(h, condition, train=train)
        kept = jnp.concatenate([kept_in[None], kept], axis=0)[::-1]
        h, _ = stack(UpBlock, self.num_blocks + 1, (nn.broadcast, 0), name="up")(h, condition, kept)

        h = nn.swish(layers.GroupNorm(groups, epsilon, name="norm_out")(h.astype(jnp.float32)))
        return z + layers.Conv3x3(z.shape[-1], zero_init=True, precision="highest", name="conv_out")(h)

    def _stack(self, block, attend, step, length, in_axes, *, train, name):
        """The module that applies `step` `length` times, each with parameters of its own."""
        if self.remat:
            step = nn.remat(step, prevent_cse=False)
        scanned = nn.scan(
            step,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=in_axes,
            length=length,
        )
        return scanned(block, attend if self.attention else None, train, name=name)
