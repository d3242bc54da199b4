"""i-DODE's checkpoints: the tree is the VDM code's, so only what differs is tested here."""

import dataclasses

import numpy as np
import pytest
from helpers.compose import with_process
from test_vdm_import import Source, model, write  # noqa: F401 (a fixture)

from jvdm import importers
from jvdm.core.errors import UserError
from jvdm.diffusion.parameterizations import DataPrediction, Noise, Velocity
from jvdm.diffusion.paths import Straight, VariancePreserving
from jvdm.diffusion.schedules import FixedLinear


def target(path, parameterization, **network):
    """A model for the trees of `Source`, without a schedule to learn."""
    fixed = model(FixedLinear(), **network)
    return dataclasses.replace(with_process(fixed, path=path), parameterization=parameterization)


@pytest.fixture
def checkpoint(write):  # noqa: F811
    """(change of a tree) -> path of a checkpoint with the changed tree."""

    def checkpoint(change=lambda tree: None):
        tree = Source().tree(schedule="fixed")
        change(tree)
        return write(tree)

    return checkpoint


@pytest.mark.parametrize("path", [VariancePreserving(), Straight()])
@pytest.mark.parametrize("velocity", [False, True])
def test_both_paths_and_parameterizations(checkpoint, path, velocity):
    parameterization = Velocity(path=path) if velocity else Noise()
    assert importers.load("idode", checkpoint(), target(path, parameterization)).step == 7


SETTINGS = {
    "parameterization": (DataPrediction(), {}, r"config\.parameterization\.name=noise or velocity"),
    "groups": (Noise(), {"num_groups": 16}, r"config\.network\.num_groups=32"),
    "fourier": (Noise(), {"fourier_first": 5, "fourier_last": 6}, r"config\.network\.fourier_first=6"),
}


def test_settings_that_no_shape_reveals(checkpoint):
    for setting in SETTINGS:
        parameterization, network, message = SETTINGS[setting]
        with pytest.raises(UserError, match=f"a checkpoint of the i-DODE code needs {message}"):
            importers.load("idode", checkpoint(), target(Straight(), parameterization, **network))


def drop(tree):
    del tree["score_model"]["conv_out"]["bias"]


def add(tree):
    tree["encoder"] = {"kernel": np.zeros(3, np.float32)}


TREES = {
    "missing": (drop, "'score_model/conv_out/bias' is missing"),
    "surplus": (add, "'encoder/kernel' is unexpected"),
}


def test_another_tree(checkpoint):
    for tree in TREES:
        change, message = TREES[tree]
        with pytest.raises(UserError, match=f"does not have the parameters of the i-DODE code: {message}"):
            importers.load("idode", checkpoint(change), target(Straight(), Noise()))


def test_another_schedule(checkpoint):
    with pytest.raises(UserError, match="the checkpoint's is fixed_linear"):
        importers.load("idode", checkpoint(), model())
