"""Data have a shape of any rank, and times broadcast to them."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def expand(t: Float[Array, "..."], rank: int) -> Float[Array, "..."]:
    """Times with `rank` axes of length 1 after their own, to broadcast to [..., *data_shape].

    Args:
        t: [...], in most cases [b].
        rank: the number of axes of one example.
    """
    return t.reshape(*t.shape, *(1,) * rank)


def lead(a: Float[Array, "*a"], rank: int) -> Float[Array, "..."]:
    """An array with axes of length 1 before its own, to broadcast with arrays of `rank` axes.

    Args:
        a: [*a].
        rank: the number of axes of the result; an array that has as many or more is returned as it is.
    """
    return a.reshape(*(1,) * (rank - a.ndim), *a.shape)


def sum_example(a: Float[Array, " b *d"]) -> Float[Array, " b"]:
    """The sum over everything but the first axis.

    Args:
        a: [b, ...].

    Returns:
        [b].
    """
    return jnp.sum(a, axis=tuple(range(1, a.ndim)))


def of_example(a: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """A number of each example that broadcasts to it, without the axes of length 1.

    Args:
        a: [b, 1, ...].

    Returns:
        [b].
    """
    return a.reshape(a.shape[0])


def mean_example(a: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """The mean over everything but the first axis.

    Args:
        a: [b, ...].

    Returns:
        [b].
    """
    return jnp.mean(a, axis=tuple(range(1, a.ndim)))
