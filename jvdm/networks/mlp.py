"""A multilayer perceptron, for data of a few dimensions such as the swiss roll of sdeflow (2106.02808).

1. input:  [all of z, sinusoids of the time, conditioning]
2. hidden: `num_layers` dense layers with swish
3. output: a zero-initialised dense layer, in the shape of z
"""

import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jvdm.networks import layers
from jvdm.networks.network import NETWORKS


@NETWORKS.register("mlp")
class MLP(nn.Module):
    """A multilayer perceptron that sees all dimensions at once.

    Attributes:
        hidden: features of every layer.
        num_layers: layers before the output.
        time_features: sinusoids of the time; frequencies run from time_scale down to time_scale / 10,000.
        time_scale: what the time is multiplied by before its embedding.
        dtype: of the hidden layers, "float32" or "bfloat16"; input and output are float32 in any case.
    """

    hidden: int = 128
    num_layers: int = 4
    time_features: int = 32
    time_scale: float = 100.0
    dtype: str = "float32"

    def __post_init__(self):
        layers.check_options(self)
        if self.time_features < 4 or self.time_features % 2:
            raise ValueError(f"time_features is {self.time_features}: give an even number from 4")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "b h w c"],
        time: Float[Array, " b"],
        conditioning: Float[Array, "b ..."],
        *,
        train: bool = False,
    ) -> Float[Array, "b h w c"]:
        """The network's output.

        Args:
            z: [b, h, w, c] noised data.
            time: [b] in [0, 1] (`jvdm.networks`).
            conditioning: [b] a scalar known of the example, or zeros; or [b, m].
            train: without effect: there is no dropout.
        """
        del train
        embedding = layers.timestep_embedding(time, self.time_features, scale=self.time_scale)
        num_dims = math.prod(z.shape[1:])
        h = jnp.concatenate(
            [z.reshape(-1, num_dims), embedding, conditioning.reshape(len(conditioning), -1)], axis=-1
        )
        for i in range(self.num_layers):
            # The first layer is float32: in bfloat16 z would be known to 2^-9.
            dtype = jnp.dtype(self.dtype) if i else jnp.float32
            h = nn.swish(nn.Dense(self.hidden, dtype=dtype, name=f"hidden_{i}")(h))
        out = nn.Dense(num_dims, kernel_init=nn.initializers.zeros_init(), name="out")
        return out(h.astype(jnp.float32)).reshape(z.shape)
