"""The U-Net of VDM (2107.00630, appendix C): one resolution, so that fine detail is never discarded.

    1. condition: time in [0, 1] -> sinusoids -> two dense layers
    2. input:     [z, sin and cos of 2^n 2 pi z] -> 3 x 3 convolution
    3. down:      `num_blocks` residual blocks, each output kept
    4. middle:    residual block, attention, residual block
    5. up:        `num_blocks + 1` residual blocks, each on [h, kept output], last kept first
    6. output:    normalisation, zero-initialised 3 x 3 convolution, + z

The blocks of 3 and of 5 are alike, so each stack is one scan over stacked parameters. Where every pixel has a
own gamma, it may have its own condition: the sinusoids of its channels' times, side by side, and
what else is known of the image (the LDM variant of 2312.13236).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jvdm.core.options import option
from jvdm.core.records import Context
from jvdm.networks import layers
from jvdm.networks.inputs import features
from jvdm.networks.network import NETWORKS


class ResidualBlock(nn.Module):
    """Normalise, convolve, add the condition, normalise, convolve; plus the input."""

    features: int
    num_groups: int
    dropout: float
    dtype: DTypeLike
    epsilon: float = 1e-6
    train: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        condition: Float[Array, "b 1 1 d"] | Float[Array, "b h w d"],
        place: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b h w features"]:
        def norm_swish(y, name):
            return nn.swish(layers.GroupNorm(self.num_groups, self.epsilon, self.dtype, name=name)(y))

        zeros = nn.initializers.zeros_init()
        y = layers.Conv3x3(self.features, dtype=self.dtype, name="conv1")(norm_swish(x, "norm1"))
        shift = nn.Dense(
            self.features, use_bias=False, kernel_init=zeros, dtype=self.dtype, name="condition"
        )(condition)
        y = norm_swish(layers.product(y + shift), "norm2")
        y = layers.Dropout(self.dropout, self.train)(y, place)
        y = layers.Conv3x3(self.features, zero_init=True, dtype=self.dtype, name="conv2")(y)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="shortcut")(x)
        return x + y


class DownBlock(nn.Module):
    """One step of the down scan: (h, condition, place) -> h', and h' is kept."""

    block: Callable[..., nn.Module]
    attend: Callable[..., nn.Module] | None

    @nn.compact
    def __call__(self, h, condition, place):
        h = self.block(name="block")(h, condition, place)
        if self.attend is not None:
            h = self.attend(name="attention")(layers.product(h))
        return h, h


class UpBlock(nn.Module):
    """One step of the up scan: (h, condition, place, kept output) -> h'."""

    block: Callable[..., nn.Module]
    attend: Callable[..., nn.Module] | None

    @nn.compact
    def __call__(self, h, condition, place, kept):
        h = jnp.concatenate([h, kept], axis=-1)
        h = self.block(name="block")(h, condition, place)
        if self.attend is not None:
            h = self.attend(name="attention")(layers.product(h))
        return h, None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """What the blocks of one network have in common; a maker of modules inside a compact method.

    Attributes:
        channels, groups, norm_epsilon, num_heads, dropout, attention, remat, dtype: as in `VDMUNet`.
        train: dropout is on.
    """

    channels: int
    groups: int
    norm_epsilon: float
    num_heads: int
    dropout: float
    attention: bool
    remat: str
    dtype: DTypeLike
    train: bool

    def condition(
        self, time: Float[Array, " b"] | Float[Array, "b h w c"], known: Float[Array, "b m"]
    ) -> Float[Array, "b 1 1 d"] | Float[Array, "b h w d"]:
        """Step 1, of the image or of every pixel."""
        embedding = layers.timestep_embedding(time.reshape(-1), self.channels)
        shape = (*time.shape[:3], -1) if time.ndim == 4 else (len(time), 1, 1, -1)
        embedding = embedding.reshape(shape)
        known = jnp.broadcast_to(known[:, None, None], (*embedding.shape[:3], known.shape[-1]))
        h = jnp.concatenate([embedding, known], axis=-1)
        for name in ("condition1", "condition2"):
            h = nn.swish(nn.Dense(4 * self.channels, name=name)(h))
        return h.astype(self.dtype)

    def descend(
        self,
        h: Float[Array, "b h w c"],
        condition: Float[Array, "b 1 1 d"] | Float[Array, "b h w d"],
        place: Int[Array, " b"] | None,
        num_blocks: int,
    ) -> tuple[Float[Array, "b h w k"], Float[Array, "n b h w k"]]:
        """Steps 2 to 4 from the extended input: the middle's output, and what is kept, last first."""
        h = layers.Conv3x3(self.channels, precision="highest", name="conv_in")(h).astype(self.dtype)
        kept_in = h
        h, kept = self.stack(DownBlock, num_blocks, (nn.broadcast, nn.broadcast), name="down")(
            h, condition, place
        )
        block, attend = (self._rematerialised(make) for make in (self.block, self.attend))
        h = block(name="middle1")(h, condition, place)
        h = attend(name="middle_attention")(h)
        h = block(name="middle2")(h, condition, place)
        return h, jnp.concatenate([kept_in[None], kept], axis=0)[::-1]

    def finish(
        self, h: Float[Array, "b h w c"], features: int, *, zero_init: bool = True
    ) -> Float[Array, "b h w features"]:
        """Step 6, but for + z."""
        h = nn.swish(layers.GroupNorm(self.groups, self.norm_epsilon, name="norm_out")(h.astype(jnp.float32)))
        return layers.Conv3x3(features, zero_init=zero_init, precision="highest", name="conv_out")(h)

    @property
    def block(self) -> functools.partial:
        """Make a residual block."""
        return functools.partial(
            ResidualBlock,
            features=self.channels,
            num_groups=self.groups,
            dropout=self.dropout,
            dtype=self.dtype,
            epsilon=self.norm_epsilon,
            train=self.train,
        )

    @property
    def attend(self) -> functools.partial:
        """Make an attention."""
        return functools.partial(
            layers.SelfAttention, self.groups, self.norm_epsilon, self.dtype, self.num_heads
        )

    def _rematerialised(self, make: functools.partial) -> functools.partial:
        """The same maker, of modules that keep what `remat` says."""
        return functools.partial(layers.rematerialised(make.func, self.remat), *make.args, **make.keywords)

    def stack(self, step: Any, length: int, in_axes: Any, *, name: str) -> nn.Module:
        """The module that applies `step` `length` times, each with its own parameters."""
        scanned = nn.scan(
            layers.rematerialised(step, self.remat, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True, "mask": True},
            in_axes=in_axes,
            length=length,
        )
        return scanned(self.block, self.attend if self.attention else None, name=name)


def extend(z: Float[Array, "b h w c"], network: Any) -> Float[Array, "b h w d"]:
    """z with its Fourier features, if the network has them."""
    if not network.fourier:
        return z
    features = layers.fourier_features(z, network.fourier_first, network.fourier_last)
    return jnp.concatenate([z, features], axis=-1)


def check(network: Any) -> None:
    """Refuse options that no network of these blocks can have.

    Raises:
        ValueError: naming the option.
    """
    layers.check_channels(network)
    if network.fourier and network.fourier_last < network.fourier_first:
        raise ValueError(
            f"fourier_last {network.fourier_last} is below fourier_first {network.fourier_first}"
        )


@NETWORKS.register("vdm_unet")
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
        remat: what a block keeps for its derivatives: "none" recomputes nothing, "elementwise" all but
            convolutions and matrix products, "full" everything.
        dtype: of the trunk, "float32" or "bfloat16"; input convolution, Fourier features,
            normalisation statistics and output are float32 in any case.
    """

    channels: int = option(128, low=4)
    num_blocks: int = option(32, low=1)
    dropout: float = option(0.1, low=0.0, below=1.0, part_of_model=False)
    attention: bool = False
    num_heads: int = option(1, low=1)
    fourier: bool = True
    fourier_first: int = 6
    fourier_last: int = 7
    num_groups: int = option(0, low=0)
    norm_epsilon: float = option(1e-6, above=0.0)
    remat: str = option("elementwise", choices=layers.REMATS, free_on_resume=True, part_of_model=False)
    dtype: str = option("float32", choices=layers.DTYPES, part_of_model=False)
    data_rank: ClassVar[int | None] = 3
    takes_pixel_time: ClassVar[bool] = True

    def __post_init__(self):
        check(self)
        if self.channels % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide channels {self.channels}")
        super().__post_init__()

    @property
    def groups(self) -> int:
        """Groups of every normalisation."""
        return self.num_groups or layers.most_groups(self.channels)

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "b h w c"],
        time: Float[Array, " b"] | Float[Array, "b h w c"],
        context: Context = Context(),
        *,
        train: bool = False,
    ) -> Float[Array, "b h w c"]:
        """The network's output.

        Args:
            z: [b, h, w, c] noised data.
            time: [b] in [0, 1] (`jvdm.networks`), or [b, h, w, c], one for each pixel and channel.
            context: what else is known of each example.
            train: dropout is on.
        """
        blocks = Blocks(
            channels=self.channels,
            groups=self.groups,
            norm_epsilon=self.norm_epsilon,
            num_heads=self.num_heads,
            dropout=self.dropout,
            attention=self.attention,
            remat=self.remat,
            dtype=jnp.dtype(self.dtype),
            train=train,
        )
        condition = blocks.condition(time, features(context, len(z)))
        h, kept = blocks.descend(extend(z, self), condition, context.place, self.num_blocks)
        up = blocks.stack(UpBlock, self.num_blocks + 1, (nn.broadcast, nn.broadcast, 0), name="up")
        h, _ = up(h, condition, context.place, kept)
        return z + blocks.finish(h, z.shape[-1])
