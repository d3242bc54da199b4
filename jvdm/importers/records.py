"""What every importer returns."""

from typing import Any, NamedTuple


class Imported(NamedTuple):
    """A checkpoint of another codebase as parameters of a `jvdm.model.Model`.

    Attributes:
        step: training steps taken.
        params: nested dicts of float32 numpy arrays, `{"network", "schedule"}`, with a latent also
            `"encoder"`.
        ema_params: the same for the moving average of the parameters.
    """

    step: int
    params: Any
    ema_params: Any
