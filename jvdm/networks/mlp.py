"""A multilayer perceptron, for data of a few dimensions such as the swiss roll of sdeflow (2106.02808).

1. input:  [all of z, sinusoids of the time, conditioning]
2. hidden: `num_layers` dense layers with swish
3. output: a zero-initialised dense layer, in the shape of z
"""

import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jvdm.core import options
from jvdm.core.options import option
from jvdm.core.records import Context
from jvdm.networks import layers
from jvdm.networks.inputs import features
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

    hidden: int = option(128, low=1)
    num_layers: int = option(4, low=1)
    time_features: int = option(32, low=4)
    time_scale: float = option(100.0, above=0.0)
    dtype: str = option("float32", choices=layers.DTYPES, part_of_model=False)

    def __post_init__(self):
        options.check(self)
        if self.time_features % 2:
            raise ValueError(f"time_features is {self.time_features}: give an even number")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        z: Float[Array, " b *d"],
        time: Float[Array, " b"],
        context: Context = Context(),
        *,
        train: bool = False,
    ) -> Float[Array, " b *d"]:
        """The network's output.

        Args:
            z: [b, *data_shape] noised data.
            time: [b] in [0, 1] (`jvdm.networks`).
            context: what else is known of each example.
            train: without effect: there is no dropout.
        """
        del train
        embedding = layers.timestep_embedding(time, self.time_features, scale=self.time_scale)
        num_dims = math.prod(z.shape[1:])
        h = jnp.concatenate([z.reshape(-1, num_dims), embedding, features(context, len(z))], axis=-1)
        for i in range(self.num_layers):
            # The first layer is float32: in bfloat16 z would be known to 2^-9.
            dtype = jnp.dtype(self.dtype) if i else jnp.float32
            h = nn.swish(nn.Dense(self.hidden, dtype=dtype, name=f"hidden_{i}")(h))
        out = nn.Dense(num_dims, kernel_init=nn.initializers.zeros_init(), name="out")
        return out(h.astype(jnp.float32)).reshape(z.shape)
