"""Encoders: images -> logits of a latent's posterior q(c | x) (2312.13236, section 3.2 and appendix).

1. U-Net: the way down and the middle of the VDM U-Net at time 0, one channel, swish, one dense layer
2. CNN:   convolutions that halve the resolution, mean over pixels, one dense layer
"""

from typing import ClassVar, Protocol

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jvdm.core import options
from jvdm.core.options import option
from jvdm.core.records import Context
from jvdm.core.registry import Registry
from jvdm.networks import layers, unet
from jvdm.networks.inputs import features


class Encoder(Protocol):
    """An encoder, a linen module; its options are fields with defaults.

    Attributes:
        num_outputs: n, given by the latent; a field without a default.
        dtype, data_rank: as of a network (`jvdm.networks.network`).
    """

    num_outputs: int
    dtype: str
    data_rank: ClassVar[int | None] = None

    def __call__(
        self, x: Float[Array, "b ..."], context: Context, *, train: bool = False
    ) -> Float[Array, "b n"]:
        """Logits of the latent.

        Args:
            x: [b, ...] encoded data.
            context: what else is known of each example; there is no latent yet.
            train: dropout is on (`layers.Dropout`), with the streams "mask" and "dropout".
        """
        ...


ENCODERS = Registry("encoder", Encoder)


@ENCODERS.register("unet")
class UNetEncoder(nn.Module):
    """Encoder (1).

    Attributes:
        num_outputs: n, of the latent.
        channels, num_blocks, dropout, attention, fourier, fourier_first, fourier_last, num_groups, remat,
            dtype: as in `VDMUNet`.
    """

    num_outputs: int
    channels: int = option(128, low=4)
    num_blocks: int = option(4, low=1)
    dropout: float = option(0.1, low=0.0, below=1.0, part_of_model=False)
    attention: bool = False
    fourier: bool = True
    fourier_first: int = 6
    fourier_last: int = 7
    num_groups: int = option(0, low=0)
    remat: str = option("elementwise", choices=layers.REMATS, free_on_resume=True, part_of_model=False)
    dtype: str = option("float32", choices=layers.DTYPES, part_of_model=False)
    data_rank: ClassVar[int | None] = 3

    def __post_init__(self):
        unet.check(self)
        super().__post_init__()

    @property
    def groups(self) -> int:
        """Groups of every normalisation."""
        return self.num_groups or layers.most_groups(self.channels)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], context: Context = Context(), *, train: bool = False
    ) -> Float[Array, "b n"]:
        """Logits.

        Args:
            x: [b, h, w, c] encoded data.
            context: what else is known of each image.
            train: dropout is on.
        """
        blocks = unet.Blocks(
            channels=self.channels,
            groups=self.groups,
            norm_epsilon=1e-6,
            num_heads=1,
            dropout=self.dropout,
            attention=self.attention,
            remat=self.remat,
            dtype=jnp.dtype(self.dtype),
            train=train,
        )
        condition = blocks.condition(jnp.zeros(len(x)), features(context, len(x)))
        h, _ = blocks.descend(unet.extend(x, self), condition, context.place, self.num_blocks)
        h = nn.swish(blocks.finish(h, 1, zero_init=False))
        return nn.Dense(self.num_outputs, name="logits")(h.reshape(len(x), -1))


@ENCODERS.register("cnn")
class CNNEncoder(nn.Module):
    """Encoder (2).

    Attributes:
        num_outputs: n, of the latent.
        channels: of the first convolution; each further one has twice as many.
        num_layers: convolutions.
        dtype: "float32" or "bfloat16"; the dense layer is float32.
    """

    num_outputs: int
    channels: int = option(32, low=1)
    num_layers: int = option(3, low=1)
    dtype: str = option("float32", choices=layers.DTYPES, part_of_model=False)
    data_rank: ClassVar[int | None] = 3

    def __post_init__(self):
        options.check(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], context: Context = Context(), *, train: bool = False
    ) -> Float[Array, "b n"]:
        """Logits; arguments as in `UNetEncoder`."""
        del context, train
        h = x
        for i in range(self.num_layers):
            features = self.channels * 2**i
            h = nn.Conv(features, (3, 3), strides=(2, 2), dtype=jnp.dtype(self.dtype), name=f"conv{i}")(h)
            h = nn.swish(h)
        return nn.Dense(self.num_outputs, name="logits")(jnp.mean(h, axis=(1, 2)).astype(jnp.float32))
