"""The MuLAN code's tree on jvdm's parameters, and the errors where it does not fit."""

import dataclasses
import functools
import re

import numpy as np
import pytest
import test_vdm_import
from flax.traverse_util import flatten_dict
from helpers.compose import compose, with_process
from test_vdm_import import CHANNELS, parent, write  # noqa: F401 (a fixture)

from jvdm import importers
from jvdm.core.errors import UserError
from jvdm.diffusion.k_hot_surrogate import KHotSurrogate
from jvdm.diffusion.latents import Gaussian, Gumbel, KSubset
from jvdm.diffusion.parameterizations import DataPrediction, Noise, Velocity, VelocityFromNoise
from jvdm.diffusion.paths import Straight, VariancePreserving
from jvdm.diffusion.per_pixel_schedules import PixelMonotone, Polynomial
from jvdm.diffusion.schedules import FixedLinear
from jvdm.importers import mulan, shapes
from jvdm.networks import GammaInput, TimeInput
from jvdm.networks.encoders import CNNEncoder, UNetEncoder
from jvdm.networks.unet import VDMUNet

SHAPE, SIZE, HIDDEN = (8, 8, 3), 10, 6
VP = VariancePreserving()


def model(
    latent=None, *, schedule=None, encoder=None, hidden=HIDDEN, shape=SHAPE, of_pixels=False, **network
):
    """The model for the trees of `Source`, or one that differs in the given options."""
    latent = latent or KHotSurrogate(size=SIZE, k=3)
    options = {"channels": CHANNELS, "num_groups": 32}
    return compose(
        network=VDMUNet(**{**options, "num_blocks": 2, **network}),
        schedule=schedule or Polynomial(data_shape=shape, hidden=hidden),
        path=VP,
        parameterization=Noise(),
        data_shape=shape,
        num_levels=256,
        time_input=GammaInput(of_pixels=of_pixels),
        latent=latent,
        encoder=UNetEncoder(num_outputs=latent.num_logits, **{**options, "num_blocks": 1, **(encoder or {})}),
    )


class Source(test_vdm_import.Source):
    """Trees as the MuLAN code has them, with random values."""

    def tree(self, depth=2, c=CHANNELS, *, forward=1, attention=False, gaussian=False, times=1, encoder=None):
        network = super().tree(depth, c, attention=attention, schedule="fixed")["score_model"]
        network["dense0"] = self.dense(times * c + SIZE, 4 * c)
        encoder = super().tree(forward, encoder or c, attention=attention, schedule="fixed")["score_model"]
        encoder = {name: layer for name, layer in encoder.items() if not name.startswith("up.")}
        width = encoder["conv_in"]["bias"].size
        encoder["conv_out"] = self.dense(3, 3, width, 1)
        halves = ("dense_layer_final_mu", "dense_layer_final_sigma")
        for name in halves if gaussian else ("dense_layer_final",):
            encoder[name] = self.dense(SHAPE[0] * SHAPE[1], SIZE)
        num_pixels = SHAPE[0] * SHAPE[1] * SHAPE[2]
        gamma = {
            "dense_1": self.dense(SIZE, HIDDEN),
            "dense_2": self.dense(HIDDEN, HIDDEN),
            **{f"dense_out_{name}": self.dense(HIDDEN, num_pixels) for name in "abc"},
        }
        return {"score_model": network, "encoder_model": encoder, "gamma": gamma}


CASES = {
    "top k": ({}, model()),
    "k-subset": ({}, model(KSubset(size=SIZE, k=3))),
    "gumbel": ({}, model(Gumbel(size=SIZE))),
    "gaussian": ({"gaussian": True}, model(Gaussian(size=SIZE))),
    "pixels": ({"times": 3}, model(of_pixels=True)),
    "attention": (
        {"attention": True, "forward": 3},
        model(attention=True, encoder={"attention": True, "num_blocks": 3}),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_leaf_arrives(write, case):  # noqa: F811
    options, target = CASES[case]
    params, ema_params = (Source(s).tree(**options) for s in (0, 1))
    imported = importers.load("mulan", write(params, ema_params), target)
    assert imported.step == 7
    for source, ours in ((params, imported.params), (ema_params, imported.ema_params)):
        source, ours = flatten_dict(source, sep="/"), flatten_dict(ours, sep="/")
        # One row more, that of the conditioning.
        assert sum(a.size for a in source.values()) + 4 * CHANNELS == sum(a.size for a in ours.values())
        for leaf in mulan.correspondence(source):
            if leaf.target == "network/condition1/kernel" or leaf.target.startswith(
                ("encoder/mean/", "encoder/variance/")
            ):
                continue
            value = ours[leaf.target] if leaf.entry is None else ours[leaf.target][leaf.entry]
            np.testing.assert_array_equal(value, source[leaf.source])


def test_row_of_the_conditioning():
    tree = Source().tree(times=3)
    kernel, theirs = (
        mulan.convert(tree)["network"]["condition1"]["kernel"],
        tree["score_model"]["dense0"]["kernel"],
    )
    np.testing.assert_array_equal(kernel[: 3 * CHANNELS], theirs[: 3 * CHANNELS])
    assert not kernel[3 * CHANNELS].any()
    np.testing.assert_array_equal(kernel[3 * CHANNELS + 1 :], theirs[3 * CHANNELS :])


def test_halves_of_a_gaussian():
    tree = Source().tree(gaussian=True)
    logits = mulan.convert(tree)["encoder"]["logits"]
    for leaf in ("kernel", "bias"):
        for half, part in (("mu", slice(SIZE)), ("sigma", slice(SIZE, None))):
            theirs = tree["encoder_model"][f"dense_layer_final_{half}"][leaf]
            np.testing.assert_array_equal(logits[leaf][..., part], theirs)


MISSING = [
    "score_model/up.block_2/nin_shortcut/bias",
    "encoder_model/down.block_0/conv1/kernel",
    "encoder_model/mid.attn_1/q/bias",
    "encoder_model/dense_layer_final/bias",
    "gamma/dense_1/kernel",
    "gamma/dense_out_c/bias",
]


def test_missing_leaf():
    for path in MISSING:
        tree = Source().tree()
        node, last = parent(tree, path)
        del node[last]
        with pytest.raises(UserError, match=f"params does not have .*: '{path}' is missing"):
            mulan.convert(tree)


SURPLUS = [
    "score_model/down.block_0/nin_shortcut/kernel",
    "encoder_model/up.block_0/conv1/kernel",
    "gamma/dense_3/kernel",
    "gamma/w",
    "another/kernel",
]


def test_surplus_leaf():
    for path in SURPLUS:
        tree = Source().tree()
        node, last = parent(tree, path)
        node[last] = np.zeros(3, np.float32)
        with pytest.raises(UserError, match=f"'{path}' is unexpected"):
            mulan.convert(tree)


def test_half_of_a_gaussian():
    tree = Source().tree(gaussian=True)
    del tree["encoder_model"]["dense_layer_final_mu"]
    with pytest.raises(UserError, match="'encoder_model/dense_layer_final_mu/bias' is missing"):
        mulan.convert(tree)


CONTRADICTIONS = [
    ({}, "score_model/dense0/kernel", (SIZE, 4), r"dense0/kernel' of shape \(10, 4\) has no rows"),
    ({}, "score_model/dense0/kernel", (4,), r"dense0/kernel' of shape \(4,\) has no rows"),
    ({}, "gamma/dense_1/kernel", (), r"'gamma/dense_1/kernel' of shape \(\) takes"),
    ({"gaussian": True}, "encoder_model/dense_layer_final_mu/bias", (3,), r"mu/bias' has shape \(3,\)"),
    ({"gaussian": True}, "encoder_model/dense_layer_final_sigma/kernel", (), r"sigma/kernel' \(\)"),
]


def test_leaves_that_do_not_go_together():
    for options, path, shape, message in CONTRADICTIONS:
        tree = Source().tree(**options)
        node, last = parent(tree, path)
        node[last] = np.zeros(shape, np.float32)
        with pytest.raises(UserError, match=message) as caught:
            mulan.convert(tree)
        assert len(str(caught.value).splitlines()) == 1


def test_a_leaf_of_no_dimensions():
    """Whatever leaf it is, one line."""
    paths = flatten_dict(Source().tree(), sep="/")
    # The blocks of one stack, and those of the middle, are alike.
    for path in sorted(path for path in paths if not re.search(r"block_[12]|mid\.|up\.", path)):
        tree = Source().tree()
        node, last = parent(tree, path)
        node[last] = np.zeros((), np.float32)
        with pytest.raises(UserError) as caught:
            shapes.check(mulan.convert(tree), expected(), "params")
        assert len(str(caught.value).splitlines()) == 1


@functools.cache
def expected():
    return shapes.expected_by(model())


MISFITS = {
    "channels": ({"channels": 64}, {}, "config.network.channels? the checkpoint's is 32"),
    "depth": ({"num_blocks": 3}, {}, "config.network.num_blocks? the checkpoint's is 2"),
    "encoder's channels": (
        {"encoder": {"channels": 64}},
        {},
        "config.encoder.channels? the checkpoint's is 32",
    ),
    "encoder's depth": (
        {"encoder": {"num_blocks": 2}},
        {},
        "config.encoder.num_blocks? the checkpoint's is 1",
    ),
    "encoder's attention": (
        {"encoder": {"attention": True}},
        {},
        "config.encoder.attention? the checkpoint's is False",
    ),
    "encoder's Fourier features": ({"encoder": {"fourier": False}}, {}, "config.encoder.fourier?"),
    "latent's size": ({"latent": Gumbel(size=12)}, {}, "config.latent.size? the checkpoint's is 10"),
    "gaussian": ({}, {"gaussian": True}, "config.latent.name? the checkpoint's is gaussian"),
    "not gaussian": ({"latent": Gaussian(size=SIZE)}, {}, "the checkpoint's is not gaussian"),
    "hidden": ({"hidden": 1024}, {}, "config.schedule.hidden? the checkpoint's is 6"),
    "schedule": ({"schedule": FixedLinear()}, {}, "config.schedule.name? the checkpoint's is polynomial"),
    "pixels' schedule": (
        {"schedule": PixelMonotone(data_shape=SHAPE, hidden=HIDDEN)},
        {},
        "config.schedule.name? the checkpoint's is polynomial",
    ),
    "time": ({"of_pixels": True}, {}, "config.model.time_input? the checkpoint's is gamma"),
    "pixels' time": ({}, {"times": 3}, "config.model.time_input? the checkpoint's is pixel_gamma"),
    "images": ({"shape": (6, 8, 3)}, {}, "for images of 192 numbers, not 144"),
}


def test_model_of_other_shape(write):  # noqa: F811
    for misfit in MISFITS:
        options, source, hint = MISFITS[misfit]
        with pytest.raises(UserError) as caught:
            importers.load("mulan", write(Source().tree(**source)), model(**options))
        message = str(caught.value)
        assert hint in message
        assert "params '" in message
        assert "shape (" in message
        assert len(message.splitlines()) == 1


def without_latent():
    return dataclasses.replace(model(schedule=FixedLinear()), latent=None, encoder=None)


def with_cnn():
    return dataclasses.replace(model(), encoder=CNNEncoder(num_outputs=SIZE))


def test_no_latent_and_another_encoder(write):  # noqa: F811
    path = write(Source().tree())
    with pytest.raises(UserError, match=r"config\.schedule\.name\? the checkpoint's is polynomial"):
        importers.load("mulan", path, without_latent())
    with pytest.raises(UserError, match=r"config\.encoder\.name\?"):
        importers.load("mulan", path, with_cnn())


def test_checkpoint_without_latent(write):  # noqa: F811
    """The VDM code's, for a model with a latent, and the other way round."""
    target = model(schedule=FixedLinear())
    with pytest.raises(UserError, match=r"config\.latent\.name\? the checkpoint's is none"):
        importers.load("vdm", write(test_vdm_import.Source().tree(schedule="fixed")), target)
    with pytest.raises(
        UserError,
        match="the MuLAN code: 'encoder_model/GroupNorm_0/bias' is missing",
    ):
        importers.load("mulan", write(test_vdm_import.Source().tree(schedule="fixed")), target)


def test_parameterizations(write):  # noqa: F811
    for parameterization in [Noise(), Velocity(path=VP), VelocityFromNoise()]:
        target = dataclasses.replace(model(), parameterization=parameterization)
        assert importers.load("mulan", write(Source().tree()), target).step == 7


SETTINGS = {
    "groups": (model(num_groups=16), r"config\.network\.num_groups=32"),
    "fourier": (model(fourier_first=5, fourier_last=6), r"config\.network\.fourier_first=6"),
    "heads": (model(num_heads=2), r"config\.network\.num_heads=1"),
    "epsilon": (model(norm_epsilon=1e-5), r"config\.network\.norm_epsilon=1e-06"),
    "encoder's groups": (model(encoder={"num_groups": 0}), r"config\.encoder\.num_groups=32"),
    "encoder's fourier": (
        model(encoder={"fourier_first": 5, "fourier_last": 6}),
        r"config\.encoder\.fourier_first=6",
    ),
    "parameterization": (
        dataclasses.replace(model(), parameterization=DataPrediction()),
        r"config\.parameterization\.name=noise or velocity or velocity_from_noise",
    ),
    "path": (with_process(model(), path=Straight()), r"config\.path\.name=variance_preserving"),
    "time": (
        dataclasses.replace(model(), time_input=TimeInput()),
        r"config\.model\.time_input=gamma or pixel_gamma",
    ),
}


def test_settings_that_no_shape_reveals():
    for setting in SETTINGS:
        target, message = SETTINGS[setting]
        with pytest.raises(UserError, match=f"a checkpoint of the MuLAN code needs {message}"):
            mulan.check_settings(target)


def test_the_average_may_not_differ_in_shape(write):  # noqa: F811
    path = write(Source().tree(), Source().tree(forward=2))
    with pytest.raises(UserError, match="ema_params 'encoder/down"):
        importers.load("mulan", path, model())


def test_corrupt_file(write):  # noqa: F811
    for keep in [0, 1, 100, -1]:
        path = write(Source().tree())
        with open(path, "rb+") as file:
            file.truncate(keep if keep >= 0 else len(file.read()) + keep)
        with pytest.raises(UserError) as caught:
            importers.load("mulan", path, model())
        assert len(str(caught.value).splitlines()) == 1


def test_missing_checkpoint():
    with pytest.raises(UserError, match="no checkpoint at nowhere"):
        importers.load("mulan", "nowhere", model())
