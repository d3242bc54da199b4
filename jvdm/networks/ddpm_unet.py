"""The U-Net of DDPM (2006.11239, appendix B), over several resolutions, as sdeflow uses it (2106.02808).

    1. condition: time in [0, 1] -> sinusoids -> two dense layers
    2. input:     z -> 3 x 3 convolution, kept
    3. down:      for each level `num_res_blocks` residual blocks, each output kept; then, unless the level
                  is the last, half the resolution, kept
    4. middle:    residual block, attention, residual block
    5. up:        for each level, the last first, `num_res_blocks + 1` residual blocks, each on
                  [h, kept], last kept first; then, unless the level is the first, twice the resolution
    6. output:    normalisation, zero-initialised 3 x 3 convolution

Level i has `multipliers[i] * channels` features. Blocks at one of `attention_resolutions` are followed by
attention. A side that is halved must be even: twice the half would not fit what was kept.
"""

import functools
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jvdm.core.errors import UserError
from jvdm.core.options import option
from jvdm.core.records import Context
from jvdm.core.shapes import lead
from jvdm.networks import layers
from jvdm.networks.inputs import features
from jvdm.networks.network import NETWORKS

# Zeros before and after each side, for a window of 3 in steps of 2 over an even number of pixels.
_PADDING = {"same": (0, 1), "symmetric": (1, 1)}


class ResidualBlock(nn.Module):
    """Normalise, convolve, add the condition, normalise, convolve; plus the input."""

    features: int
    num_groups: int
    epsilon: float
    dropout: float
    dtype: DTypeLike
    train: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        condition: Float[Array, "b d"],
        place: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b h w features"]:
        def norm_swish(y, name):
            return nn.swish(layers.GroupNorm(self.num_groups, self.epsilon, self.dtype, name=name)(y))

        y = layers.Conv3x3(self.features, dtype=self.dtype, name="conv1")(norm_swish(x, "norm1"))
        shift = nn.Dense(self.features, dtype=self.dtype, name="condition")(condition)
        y = norm_swish(layers.product(y + shift[:, None, None, :]), "norm2")
        y = layers.Dropout(self.dropout, self.train)(y, place)
        y = layers.Conv3x3(self.features, zero_init=True, dtype=self.dtype, name="conv2")(y)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="shortcut")(x)
        return x + y


class StridedConv(nn.Module):
    """3 x 3 convolution in steps of 2.

    As one matrix product over gathered windows: as fast as XLA's own, and inside a scan, on a CPU, its
    derivative is 16 times faster.
    """

    padding: tuple[int, int]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        c = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, c, c))
        bias = self.param("bias", nn.initializers.zeros_init(), (c,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        rows, columns = (side // 2 for side in x.shape[1:3])
        x = jnp.pad(x, ((0, 0), self.padding, self.padding, (0, 0)))
        taps = [
            x[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] for i in range(3) for j in range(3)
        ]
        return jnp.concatenate(taps, axis=-1) @ kernel.reshape(9 * c, c) + lead(bias, x.ndim)


@NETWORKS.register("ddpm_unet")
class DDPMUNet(nn.Module):
    """The DDPM U-Net.

    Attributes:
        channels: features of the first convolution; those of a level are a multiple.
        multipliers: one for each level, whose resolution is half of the one before.
        num_res_blocks: residual blocks of a level on the way down; there is one more on the way up.
        attention_resolutions: heights at which each block is followed by attention (there always is
            one attention in the middle); heights that do not occur are ignored.
        dropout: probability, inside every residual block, in training.
        resample_with_conv: half the resolution by a convolution in steps of 2, and twice by repetition
            and a convolution; otherwise by the mean of 2 x 2 pixels, and by repetition alone.
        downsample_padding: zeros of that convolution: "same", one after the last row and column, or
            "symmetric", one more before the first.
        time_scale: what the time is multiplied by before its embedding.
        num_groups: of group normalisation; 0 is the largest divisor of the channels up to
            min(32, channels / 4), so that a group has at least four channels.
        norm_epsilon: added to the variances of normalisation.
        remat: what a block keeps for its derivatives: "none" recomputes nothing, "elementwise" all but
            convolutions and matrix products, "full" everything.
        dtype: of the trunk, "float32" or "bfloat16"; input convolution, normalisation statistics and
            output are float32 in any case.
    """

    channels: int = option(128, low=4)
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = option(2, low=1)
    attention_resolutions: tuple[int, ...] = (16,)
    dropout: float = option(0.1, low=0.0, below=1.0, part_of_model=False)
    resample_with_conv: bool = True
    downsample_padding: str = option("same", choices=_PADDING)
    time_scale: float = option(1000.0, above=0.0)
    num_groups: int = option(0, low=0)
    norm_epsilon: float = option(1e-6, above=0.0)
    remat: str = option("elementwise", choices=layers.REMATS, free_on_resume=True, part_of_model=False)
    dtype: str = option("float32", choices=layers.DTYPES, part_of_model=False)
    data_rank: ClassVar[int | None] = 3

    def __post_init__(self):
        layers.check_channels(self)
        for name in ("multipliers", "attention_resolutions"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or any(type(n) is not int or n < 1 for n in value):
                raise ValueError(f"{name} is {value!r}: give a tuple of whole numbers from 1")
        if not self.multipliers:
            raise ValueError("multipliers is empty: give one number for each level")
        super().__post_init__()

    @property
    def groups(self) -> int:
        """Groups of every normalisation."""
        return self.num_groups or layers.most_groups(self.channels)

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "b h w c"],
        time: Float[Array, " b"],
        context: Context = Context(),
        *,
        train: bool = False,
    ) -> Float[Array, "b h w c"]:
        """The network's output.

        Args:
            z: [b, h, w, c] noised data.
            time: [b] in [0, 1] (`jvdm.networks`).
            context: what else is known of each example.
            train: dropout is on.

        Raises:
            UserError: h or w cannot be halved as often as there are levels.
        """
        self._check_sides(*z.shape[1:3])
        dtype, last = jnp.dtype(self.dtype), len(self.multipliers) - 1

        condition = layers.timestep_embedding(time, self.channels, scale=self.time_scale)
        condition = jnp.concatenate([condition, features(context, len(z))], axis=-1)
        condition = nn.swish(nn.Dense(4 * self.channels, name="condition1")(condition))
        condition = nn.swish(nn.Dense(4 * self.channels, name="condition2")(condition)).astype(dtype)

        block = functools.partial(
            layers.rematerialised(ResidualBlock, self.remat),
            num_groups=self.groups,
            epsilon=self.norm_epsilon,
            dropout=self.dropout,
            dtype=dtype,
            train=train,
        )
        attend = functools.partial(
            layers.rematerialised(layers.SelfAttention, self.remat),
            self.groups,
            epsilon=self.norm_epsilon,
            dtype=dtype,
        )

        def block_attend(h, level, name):
            h = block(self.multipliers[level] * self.channels, name=name)(h, condition, context.place)
            return attend(name=f"{name}_attention")(h) if h.shape[1] in self.attention_resolutions else h

        h = layers.Conv3x3(self.channels, precision="highest", name="conv_in")(z).astype(dtype)
        kept = [h]
        for level in range(last + 1):
            for i in range(self.num_res_blocks):
                h = block_attend(h, level, f"down_{level}_{i}")
                kept.append(h)
            if level < last:
                h = self._half(h, f"downsample_{level}")
                kept.append(h)

        h = block(h.shape[-1], name="middle1")(h, condition, context.place)
        h = attend(name="middle_attention")(h)
        h = block(h.shape[-1], name="middle2")(h, condition, context.place)

        for level in range(last, -1, -1):
            for i in range(self.num_res_blocks + 1):
                h = block_attend(jnp.concatenate([h, kept.pop()], axis=-1), level, f"up_{level}_{i}")
            if level:
                h = self._twice(h, f"upsample_{level}")

        norm = layers.GroupNorm(self.groups, self.norm_epsilon, name="norm_out")
        h = nn.swish(norm(h.astype(jnp.float32)))
        return layers.Conv3x3(z.shape[-1], zero_init=True, precision="highest", name="conv_out")(h)

    def _half(self, h, name):
        """Half the resolution."""
        if self.resample_with_conv:
            return StridedConv(_PADDING[self.downsample_padding], h.dtype, name=name)(h)
        # Not nn.avg_pool, which divides by an integer.
        return nn.pool(h, 0.0, lax.add, (2, 2), (2, 2), "VALID") / 4.0

    def _twice(self, h, name):
        """Twice the resolution."""
        h = h.repeat(2, axis=1).repeat(2, axis=2)
        return layers.Conv3x3(h.shape[-1], dtype=h.dtype, name=name)(h) if self.resample_with_conv else h

    def _check_sides(self, height, width):
        halvings = len(self.multipliers) - 1
        possible = next(n for n in range(halvings, -1, -1) if height % 2**n == 0 and width % 2**n == 0)
        if possible < halvings:
            raise UserError(
                f"config.network.multipliers has {halvings + 1} numbers, but images of {height} x {width} "
                f"can be halved only {possible} times: give at most {possible + 1}"
            )
