"""The official VDM code's tree on jvdm's parameters, and the errors where it does not fit."""

import copy
import dataclasses

import numpy as np
import pytest
from flax import serialization
from flax.traverse_util import flatten_dict
from helpers.compose import compose

from jvdm import importers
from jvdm.core.errors import UserError
from jvdm.diffusion.parameterizations import DataPrediction, Noise
from jvdm.diffusion.paths import VariancePreserving
from jvdm.diffusion.schedules import FixedLinear, LearnedScalar, MonotoneNetwork, MonotoneNetworkReleased
from jvdm.importers import vdm
from jvdm.networks.unet import VDMUNet

CHANNELS = 32
ENDS = {"gamma_min": -13.3, "gamma_max": 5.0}
NETWORK = {"channels": CHANNELS, "num_blocks": 2, "num_groups": 32}


def model(schedule=None, data_shape=(8, 8, 3), **network):
    return compose(
        network=VDMUNet(**{**NETWORK, **network}),
        schedule=schedule or LearnedScalar(),
        path=VariancePreserving(),
        parameterization=Noise(),
        data_shape=data_shape,
        num_levels=256,
    )


class Source:
    """Trees as the VDM code has them, with random values."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)

    def leaf(self, *shape):
        return self.rng.normal(size=shape).astype(np.float32)

    def dense(self, *shape):
        return {"kernel": self.leaf(*shape), "bias": self.leaf(shape[-1])}

    def norm(self, c):
        return {"scale": self.leaf(c), "bias": self.leaf(c)}

    def block(self, c_in, c):
        block = {
            "GroupNorm_0": self.norm(c_in),
            "conv1": self.dense(3, 3, c_in, c),
            "cond_proj": {"kernel": self.leaf(4 * c, c)},
            "GroupNorm_1": self.norm(c),
            "conv2": self.dense(3, 3, c, c),
        }
        return block if c_in == c else {**block, "nin_shortcut": self.dense(c_in, c)}

    def attention(self, c):
        return {
            "GroupNorm_0": self.norm(c),
            **{name: self.dense(c, c) for name in ("q", "k", "v", "proj_out")},
        }

    def tree(
        self, depth=2, c=CHANNELS, *, attention=False, fourier=True, schedule="scalar", image_channels=3
    ):
        net = {
            "dense0": self.dense(c + 1, 4 * c),
            "dense1": self.dense(4 * c, 4 * c),
            "conv_in": self.dense(3, 3, image_channels * (5 if fourier else 1), c),
            "mid.block_1": self.block(c, c),
            "mid.attn_1": self.attention(c),
            "mid.block_2": self.block(c, c),
            "GroupNorm_0": self.norm(c),
            "conv_out": self.dense(3, 3, c, image_channels),
        }
        for i in range(depth + 1):
            ways = ("down", "up") if i < depth else ("up",)
            for way in ways:
                net[f"{way}.block_{i}"] = self.block(c if way == "down" else 2 * c, c)
                if attention:
                    net[f"{way}.attn_{i}"] = self.attention(c)
        gamma = {
            "fixed": {},
            "scalar": {"gamma": {"b": self.leaf(1), "w": self.leaf(1)}},
            "nnet": {
                "gamma": {
                    "l1": self.dense(1, 1),
                    "l2": self.dense(1, 1024),
                    "l3": {"kernel": self.leaf(1024, 1)},
                }
            },
        }[schedule]
        return {"score_model": net, **gamma}


@pytest.fixture
def write(tmp_path):
    """Writes a checkpoint, and returns its path."""

    def write(params, ema_params=None, step=7):
        state = {
            "step": step,
            "params": params,
            "ema_params": ema_params or copy.deepcopy(params),
            "opt_state": {},
        }
        path = tmp_path / "checkpoints-0" / "ckpt-1.flax"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(serialization.msgpack_serialize(state))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("released", "schedule", "depth", "attention"),
    [
        ("fixed", FixedLinear(), 1, True),
        ("scalar", LearnedScalar(), 11, False),
        ("nnet", MonotoneNetworkReleased(), 3, True),
    ],
)
def test_every_leaf_arrives(write, released, schedule, depth, attention):
    params, ema_params = (Source(s).tree(depth, attention=attention, schedule=released) for s in (0, 1))
    target = model(schedule, num_blocks=depth, attention=attention)
    imported = importers.load("vdm", write(params, ema_params), target)
    assert imported.step == 7
    for source, ours in ((params, imported.params), (ema_params, imported.ema_params)):
        source, ours = flatten_dict(source, sep="/"), flatten_dict(ours, sep="/")
        assert sum(a.size for a in source.values()) == sum(a.size for a in ours.values())
        for leaf in vdm.correspondence(source):
            value = ours[leaf.target] if leaf.entry is None else ours[leaf.target][leaf.entry]
            np.testing.assert_array_equal(value.ravel(), source[leaf.source].ravel())


def test_other_precisions_become_float32():
    tree = Source().tree()
    tree["gamma"]["b"] = tree["gamma"]["b"].astype(np.float64)
    assert vdm.convert(tree)["schedule"]["b"].dtype == np.float32


def parent(tree, path):
    *parents, last = path.split("/")
    for name in parents:
        tree = tree.setdefault(name, {})
    return tree, last


MISSING = [
    "score_model/down.block_1/conv1/kernel",
    "score_model/up.block_2/nin_shortcut/bias",
    "score_model/down.attn_0/q/kernel",
    "score_model/conv_out/bias",
    "gamma/w",
]


def test_missing_leaf():
    for path in MISSING:
        tree = Source().tree(attention=True)
        node, last = parent(tree, path)
        del node[last]
        with pytest.raises(UserError, match=f"'{path}' is missing"):
            vdm.convert(tree)


SURPLUS = [
    "score_model/down.block_0/nin_shortcut/kernel",
    "score_model/conv_in/scale",
    "score_model/another/kernel",
    "encoder/dense/kernel",
    "gamma/c",
]


def test_surplus_leaf():
    for path in SURPLUS:
        tree = Source().tree()
        node, last = parent(tree, path)
        node[last] = np.zeros(3, np.float32)
        with pytest.raises(UserError, match=f"'{path}' is unexpected"):
            vdm.convert(tree)


def test_absurd_number_of_a_block():
    tree = Source().tree()
    tree["score_model"]["down.block_99999999999999"] = tree["score_model"]["down.block_1"]
    with pytest.raises(UserError, match=r"is missing, and .*down\.block_99999999999999.* is unexpected"):
        vdm.convert(tree)


def test_blocks_that_differ_in_shape():
    tree = Source().tree()
    tree["score_model"]["down.block_1"]["conv1"]["bias"] = np.zeros(5, np.float32)
    with pytest.raises(UserError, match=r"down\.block_1/conv1/bias' has shape \(5,\)"):
        vdm.convert(tree)


def test_integers():
    tree = Source().tree()
    tree["score_model"]["conv_in"]["bias"] = np.zeros(CHANNELS, np.int32)
    with pytest.raises(UserError, match="conv_in/bias' holds int32"):
        vdm.convert(tree)


MISFITS = {
    "channels": ({"channels": 64}, {}, {}, "config.network.channels? the checkpoint's is 32"),
    "depth": ({"num_blocks": 3}, {}, {}, "config.network.num_blocks? the checkpoint's is 2"),
    "depth and channels": ({"channels": 64, "num_blocks": 3}, {}, {}, "config.network.channels?"),
    "attention": ({"attention": True}, {}, {}, "config.network.attention? the checkpoint's is False"),
    "no attention": ({}, {}, {"attention": True}, "config.network.attention? the checkpoint's is True"),
    "fourier": ({}, {}, {"fourier": False}, "config.network.fourier? the checkpoint's is False"),
    "no fourier": ({"fourier": False}, {}, {}, "config.network.fourier?"),
    "images": ({}, {"data_shape": (8, 8, 1)}, {}, "for images of 3 channels, not 1"),
    "fixed": ({}, {}, {"schedule": "fixed"}, "config.schedule.name? the checkpoint's is fixed_linear"),
    "scalar": ({}, {"schedule": FixedLinear()}, {}, "the checkpoint's is learned_scalar"),
    "released": ({}, {"schedule": MonotoneNetwork()}, {"schedule": "nnet"}, "is monotone_network_released"),
    "hidden": (
        {},
        {"schedule": MonotoneNetworkReleased(hidden=512)},
        {"schedule": "nnet"},
        "config.schedule.hidden?",
    ),
}


def test_model_of_other_shape(write):
    for misfit in MISFITS:
        network, options, source, hint = MISFITS[misfit]
        with pytest.raises(UserError) as caught:
            importers.load("vdm", write(Source().tree(**source)), model(**options, **network))
        message = str(caught.value)
        assert hint in message
        assert "params '" in message
        assert "shape (" in message
        assert len(message.splitlines()) == 1


SETTINGS = [
    ({"num_groups": 0}, "num_groups=32"),
    ({"num_groups": 16}, "num_groups=32"),
    ({"fourier_first": 5, "fourier_last": 6}, "fourier_first=6"),
]


def test_settings_that_no_shape_reveals(write):
    for network, option in SETTINGS:
        with pytest.raises(UserError, match=f"config.network.{option}"):
            importers.load("vdm", write(Source().tree()), model(**network))


def test_another_parameterization(write):
    target = dataclasses.replace(model(), parameterization=DataPrediction())
    with pytest.raises(UserError, match=r"config\.parameterization\.name=noise"):
        importers.load("vdm", write(Source().tree()), target)


def test_the_average_may_not_differ_in_shape(write):
    path = write(Source().tree(), Source().tree(depth=3))
    with pytest.raises(UserError, match="ema_params 'network/down"):
        importers.load("vdm", path, model())


def test_unknown_source():
    with pytest.raises(UserError, match="unknown checkpoint source 'vmd'; did you mean 'vdm'"):
        importers.load("vmd", "anywhere", model())


def test_missing_checkpoint():
    with pytest.raises(UserError, match="no checkpoint at nowhere"):
        importers.load("vdm", "nowhere", model())
