"""The checks of conftest.py are on: a wrong shape or type, or an implicit broadcast, is an error."""

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from jvdm.core.shapes import sum_example
from jvdm.diffusion import losses
from jvdm.diffusion.schedules import FixedLinear
from jvdm.model.objectives import bound
from jvdm.networks.layers import timestep_embedding


def test_a_wrong_rank_is_refused():
    with pytest.raises(TypeCheckError, match="timestep_embedding"):
        timestep_embedding(jnp.zeros((2, 3)), 4)


def test_sizes_that_differ_are_refused():
    """Each array alone could be an argument; b is 2 in one and 3 in the other."""
    losses.score_matching(jnp.ones(2), jnp.ones((2, 4)))
    with pytest.raises(TypeCheckError, match="score_matching"):
        losses.score_matching(jnp.ones(3), jnp.ones((2, 4)))


def test_a_wrong_type_is_refused():
    with pytest.raises(TypeCheckError, match="sum_example"):
        sum_example(jnp.ones((2, 4), jnp.int32))


def test_fields_of_components_are_checked():
    with pytest.raises(TypeCheckError, match="FixedLinear"):
        FixedLinear(gamma_min="-13.3")


def test_shapes_are_checked_while_a_program_is_traced():
    with pytest.raises(TypeCheckError, match="sum_example"):
        jax.eval_shape(lambda: sum_example(jnp.ones((2, 4), jnp.int32)))


def test_every_part_of_the_package_is_checked():
    """A function that jaxtyping has not decorated has no `__wrapped__`."""
    for function in (sum_example, losses.prior, bound, timestep_embedding):
        assert hasattr(function, "__wrapped__"), function


def test_ranks_are_not_promoted():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)


def test_types_are_not_promoted():
    with pytest.raises(jax.dtypes.TypePromotionError):
        jnp.ones(3) + jnp.arange(3)
