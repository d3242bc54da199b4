"""What networks see of the time."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from jvdm import model as model_lib
from jvdm.core.errors import UserError
from jvdm.networks import GammaInput, TimeInput


def test_the_ends_of_gamma_are_mapped_to_unit_times():
    times = GammaInput(gamma_min=-13.3, gamma_max=5.0)(None, jnp.array([-13.3, -4.15, 5.0]))
    np.testing.assert_allclose(times, [0.0, 0.5, 1.0], atol=1e-6)  # a rounding of 5 / 18.3


def test_a_network_that_sees_t_needs_it():
    t = jnp.array([0.25])
    np.testing.assert_array_equal(TimeInput()(t, jnp.array([-3.0])), t)
    with pytest.raises(ValueError, match="sees t"):
        TimeInput()(None, jnp.array([-3.0]))


def test_the_ends_are_those_of_the_config():
    model = tiny.model(tiny.config())
    assert model.time_input == GammaInput(gamma_min=-7.0, gamma_max=5.0)


def test_an_unknown_input_is_refused():
    c = tiny.config()
    c.model.time_input = "gama"
    with pytest.raises(UserError, match="gamma"):
        model_lib.build(c, tiny.SHAPE, tiny.LEVELS)
