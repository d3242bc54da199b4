"""The precision of matrix products outside training."""

from contextlib import AbstractContextManager

import jax


def full_precision() -> AbstractContextManager[None]:
    """Compute matrix products and convolutions inside the block in full float32.

    GPUs and TPUs use fewer bits by default, enough for a gradient but not for a likelihood.
    """
    return jax.default_matmul_precision("highest")
