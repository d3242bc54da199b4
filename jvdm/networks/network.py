"""The registry of networks, (z [b, *data_shape], time [b], context, train) -> output [b, *data_shape]."""

from typing import ClassVar, Protocol

from jaxtyping import Array, Float

from jvdm.core.records import Context
from jvdm.core.registry import Registry


class Network(Protocol):
    """A network, a linen module; its options are fields with defaults.

    Attributes:
        dtype: of the trunk, "float32" or "bfloat16"; an option, which evaluation sets to float32.
        data_rank: the rank of the data that it takes, 3 for images [h, w, c]; None takes any.
        takes_pixel_time: the time may be of every pixel and channel, of the shape of z.
    """

    dtype: str
    data_rank: ClassVar[int | None] = None
    takes_pixel_time: ClassVar[bool] = False

    def __call__(
        self,
        z: Float[Array, "b ..."],
        time: Float[Array, "b ..."],
        context: Context,
        *,
        train: bool = False,
    ) -> Float[Array, "b ..."]:
        """The network's output, of the shape of z.

        Args:
            z: [b, ...] noised data.
            time: [b] of each example, in [0, 1] where it is made of gamma (`jvdm.networks.inputs`).
            context: what else is known of each example.
            train: dropout is on (`layers.Dropout`), with the streams "mask" and "dropout".
        """
        ...


NETWORKS = Registry("network", Network)
