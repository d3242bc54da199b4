"""sdeflow's objects on jvdm's parameters, and the errors where they do not fit."""

import dataclasses

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.compose import compose, with_process
from helpers.torch_files import Zip, module, tensor

from jvdm import importers
from jvdm.core.errors import UserError
from jvdm.diffusion.parameterizations import Drift, Noise
from jvdm.diffusion.paths import Straight, SubVariancePreserving, VariancePreserving
from jvdm.diffusion.schedules import FixedLinear, LinearBeta
from jvdm.diffusion.transforms import SCALING, Logit
from jvdm.importers import sdeflow
from jvdm.networks import GammaInput, TimeInput
from jvdm.networks.ddpm_unet import DDPMUNet

PATH = VariancePreserving()
NETWORK = {
    "channels": 32,
    "multipliers": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
    "downsample_padding": "symmetric",
    "time_scale": 1.0,
    "num_groups": 32,
}


def model(network=None, **parts):
    """The model of a `Source`, with another network's options or other parts."""
    return compose(
        **{
            "network": DDPMUNet(**{**NETWORK, **(network or {})}),
            "schedule": LinearBeta(noise_path=PATH),
            "path": PATH,
            "parameterization": Drift(),
            "data_shape": (8, 8, 1),
            "num_levels": 256,
            "time_input": TimeInput(),
            "data_map": Logit(),
            **parts,
        }
    )


class Source:
    """Arrays by dotted name as sdeflow has them, with random values."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)

    def leaf(self, *shape):
        return self.rng.normal(size=shape).astype(np.float32)

    def layer(self, name, *shape):
        return {f"{name}.weight": self.leaf(*shape), f"{name}.bias": self.leaf(shape[0])}

    def conv(self, name, c_in, c, k=3):
        return self.layer(name, c, c_in, k, k)

    def block(self, name, c_in, c, condition):
        return {
            **self.layer(f"{name}.temb_proj", c, condition),
            **self.layer(f"{name}.norm1", c_in),
            **self.conv(f"{name}.conv1", c_in, c),
            **self.layer(f"{name}.norm2", c),
            **self.conv(f"{name}.conv2", c, c),
            **({} if c_in == c else self.conv(f"{name}.shortcut", c_in, c, 1)),
        }

    def attention(self, name, c):
        parts = ("attn_q", "attn_k", "attn_v", "proj_out")
        layers = [self.conv(f"{name}.{part}", c, c, 1) for part in parts]
        return {k: v for layer in (*layers, self.layer(f"{name}.norm", c)) for k, v in layer.items()}

    def tree(self, c=32, multipliers=(1, 2), blocks=1, attention=(1,), with_conv=True, image_channels=1):
        last, condition = len(multipliers) - 1, 4 * c
        tree = {
            "T": np.ones(1, np.float32),
            "base_sde.T": np.ones(1, np.float32),
            **self.layer("a.temb_net.main.0", condition, c),
            **self.layer("a.temb_net.main.2", condition, condition),
            **self.conv("a.begin_conv", image_channels, c),
        }
        kept, h = [c], c
        for n, m in enumerate(multipliers):
            for i in range(blocks):
                tree |= self.block(f"a.down_modules.{n}.{n}a_{i}a_block", h, m * c, condition)
                h = m * c
                kept.append(h)
                if n in attention:
                    tree |= self.attention(f"a.down_modules.{n}.{n}a_{i}b_attn", h)
            if n < last:
                kept.append(h)
                if with_conv:
                    tree |= self.conv(f"a.down_modules.{n}.{n}b_downsample", h, h)
        tree |= self.block("a.mid_modules.0", h, h, condition)
        tree |= self.attention("a.mid_modules.1", h)
        tree |= self.block("a.mid_modules.2", h, h, condition)
        for n in range(last, -1, -1):
            at = f"a.up_modules.{last - n}.{n}"
            for i in range(blocks + 1):
                tree |= self.block(f"{at}a_{i}a_block", h + kept.pop(), multipliers[n] * c, condition)
                h = multipliers[n] * c
                if n in attention:
                    tree |= self.attention(f"{at}a_{i}b_attn", h)
            if n and with_conv:
                tree |= self.conv(f"{at}b_upsample.up_conv", h, h)
        return {**tree, **self.layer("a.end_conv.0", h), **self.conv("a.end_conv.2", h, image_channels)}


def nested(tree, keys, **attributes):
    """The pickled module with these parameters; `attributes` are of its child `base_sde`."""
    parameters = {name: tensor(keys[name], a) for name, a in tree.items() if "." not in name}
    children = {name.partition(".")[0]: {} for name in tree if "." in name}
    for name, array in tree.items():
        child, _, rest = name.partition(".")
        if rest:
            children[child][rest] = array
    modules = {}
    for child, leaves in children.items():
        below = {rest: keys[f"{child}.{rest}"] for rest in leaves}
        modules[child] = nested(leaves, below)
        if child == "base_sde":
            modules[child].state.update(attributes)
    return module(_parameters=parameters, _modules=modules)


@pytest.fixture
def write(tmp_path):
    """Writes a checkpoint, and returns its path."""

    def write(tree, step=7, **beta):
        keys = {name: str(i) for i, name in enumerate(tree)}
        storages = {keys[name]: array for name, array in tree.items()}
        beta = {"beta_min": 0.1, "beta_max": 20.0, **beta}
        path = tmp_path / "checkpoint.pt"
        path.write_bytes(Zip([nested(tree, keys, **beta), module(), True, step], storages).data())
        return str(path)

    return write


CASES = {
    "two levels": ({}, {}, (8, 8, 1)),
    "three levels, two blocks": (
        {"multipliers": (1, 1, 2), "blocks": 2, "attention": (0, 2), "image_channels": 3},
        {"multipliers": (1, 1, 2), "num_res_blocks": 2, "attention_resolutions": (12, 3)},
        (12, 12, 3),
    ),
    "no convolutions": (
        {"c": 64, "multipliers": (2, 1), "with_conv": False, "attention": ()},
        {
            "channels": 64,
            "multipliers": (2, 1),
            "resample_with_conv": False,
            "attention_resolutions": (16,),
        },
        (8, 8, 1),
    ),
    "one level": (
        {"multipliers": (1,), "attention": (0,)},
        {"multipliers": (1,), "attention_resolutions": (7,)},
        (7, 7, 1),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_leaf_arrives(write, case):
    source, network, data_shape = CASES[case]
    tree = Source().tree(**source)
    path = write(tree)
    imported = importers.load("sdeflow", path, model(network, data_shape=data_shape))
    assert imported.step == 7
    assert imported.ema_params is imported.params
    assert set(imported.params) == {"network", "schedule"}
    assert imported.params["schedule"] == {}
    ours = flatten_dict(imported.params["network"], sep="/")
    assert {a.dtype for a in ours.values()} == {np.dtype(np.float32)}
    leaves = list(sdeflow.correspondence(tree))
    assert sorted(leaf.target for leaf in leaves) == sorted(ours)
    for leaf in leaves:
        array = tree[leaf.source]
        if leaf.layout == "conv":
            array = np.einsum("oihw->hwio", array)
        elif leaf.layout != "vector":
            array = np.einsum("oi...->io...", array).reshape(array.shape[1::-1])
        ours_here = ours[leaf.target]
        if leaf.layout == "embedding":
            np.testing.assert_array_equal(ours_here[-1], 0.0)
            ours_here = ours_here[:-1]
        np.testing.assert_array_equal(ours_here, array, err_msg=leaf.source)


def test_the_folder_of_the_file(write, tmp_path):
    write(Source().tree())
    assert sdeflow.read(tmp_path).step == 7


def test_other_precisions_become_float32():
    tree = {name: a.astype(np.float64) for name, a in Source().tree().items()}
    assert {a.dtype for a in flatten_dict(sdeflow.convert(tree), sep="/").values()} == {np.dtype(np.float32)}


MISSING = [
    "a.begin_conv.bias",
    "a.down_modules.0.0a_0a_block.norm1.weight",
    "a.down_modules.1.1a_0a_block.shortcut.weight",
    "a.down_modules.1.1a_0b_attn.attn_q.weight",
    "a.down_modules.0.0b_downsample.bias",
    "a.up_modules.0.1a_1b_attn.norm.bias",
    "a.up_modules.0.1b_upsample.up_conv.weight",
    "a.mid_modules.1.proj_out.weight",
    "a.end_conv.2.weight",
    "base_sde.T",
]


def test_missing_leaf():
    for name in MISSING:
        tree = Source().tree()
        del tree[name]
        with pytest.raises(UserError, match=f"does not have the parameters of sdeflow: '{name}' is missing"):
            sdeflow.convert(tree)


SURPLUS = [
    "a.down_modules.0.0a_0a_block.shortcut.weight",
    "a.down_modules.1.1b_downsample.weight",
    "a.up_modules.1.0b_upsample.up_conv.weight",
    "a.begin_conv.scale",
    "a.another.weight",
    "encoder.weight",
]


def test_surplus_leaf():
    for name in SURPLUS:
        tree = {**Source().tree(), name: np.zeros(3, np.float32)}
        with pytest.raises(UserError, match=f"'{name}' is unexpected"):
            sdeflow.convert(tree)


def test_a_perceptron_instead_of_the_network():
    with pytest.raises(UserError, match=r"'a\.begin_conv\.bias' is missing, and .*a\.main\.0\.bias"):
        sdeflow.convert({"T": np.ones(1), "base_sde.T": np.ones(1), **Source().layer("a.main.0", 8, 3)})


def test_absurd_number_of_a_level():
    tree = Source().tree()
    tree["a.down_modules.999999999.0a_0a_block.conv1.weight"] = np.zeros((3, 3), np.float32)
    with pytest.raises(UserError, match="is missing, and .*999999999.* is unexpected"):
        sdeflow.convert(tree)


LEAVES = {
    "rank": (
        "a.begin_conv.weight",
        np.zeros((32, 1), np.float32),
        "which is not that of a conv",
    ),
    "window": ("a.begin_conv.weight", np.zeros((32, 1, 1, 1), np.float32), "which is not that of a conv"),
    "empty": ("a.end_conv.0.bias", np.zeros(0, np.float32), "shape (0,), which is not that of a vector"),
    "integers": ("a.end_conv.0.bias", np.zeros(32, np.int32), "holds int32, not floating point"),
    "infinite": ("a.end_conv.0.bias", np.full(32, np.inf, np.float32), "values that are not finite"),
    "time": ("T", np.full(1, 2.0, np.float32), "T is not 1"),
}


def test_impossible_leaf(write):
    for leaf in LEAVES:
        name, array, message = LEAVES[leaf]
        with pytest.raises(UserError) as caught:
            sdeflow.read(write({**Source().tree(), name: array}))
        assert message in str(caught.value)
        assert "checkpoint.pt: " in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


MISFITS = {
    "channels": ({"channels": 64}, {}, {}, "config.network.channels is 64, the checkpoint's is 32"),
    "multipliers": (
        {"multipliers": (1, 1)},
        {},
        {},
        "config.network.multipliers is (1, 1), the checkpoint's is (1, 2)",
    ),
    "depth": ({"num_res_blocks": 2}, {}, {}, "config.network.num_res_blocks is 2, the checkpoint's is 1"),
    "resampling": ({"resample_with_conv": False}, {}, {}, "config.network.resample_with_conv is False"),
    "attention": (
        {"attention_resolutions": (8, 4)},
        {},
        {},
        "config.network.attention_resolutions is (8, 4), the checkpoint's is (4,)",
    ),
    "beta": ({}, {}, {"beta_max": 10.0}, "config.schedule.beta_max is 20.0, the checkpoint's is 10.0"),
    "images": ({}, {"image_channels": 3}, {}, "for images of 3 channels, not 1"),
}


def test_model_of_other_options(write):
    for misfit in MISFITS:
        network, source, beta, message = MISFITS[misfit]
        path = write(Source().tree(**source), **beta)
        with pytest.raises(UserError) as caught:
            importers.load("sdeflow", path, model(network))
        assert message in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


SETTINGS = {
    "network.name=ddpm_unet": lambda m: dataclasses.replace(m, network=FixedLinear()),
    "parameterization.name=drift": lambda m: dataclasses.replace(m, parameterization=Noise()),
    "path.name=variance_preserving": lambda m: with_process(m, path=SubVariancePreserving()),
    "path.name=variance_preserving ": lambda m: with_process(m, path=Straight()),
    "schedule.name=linear_beta": lambda m: with_process(m, schedule=FixedLinear()),
    "schedule.t_min=0.0": lambda m: with_process(m, schedule=LinearBeta(noise_path=PATH, t_min=1e-3)),
    "model.time_input=t": lambda m: dataclasses.replace(m, time_input=GammaInput()),
    "data_map.name=logit": lambda m: dataclasses.replace(m, data_map=SCALING),
    "data_map.a=0.05": lambda m: dataclasses.replace(m, data_map=Logit(a=0.1)),
    "network.time_scale=1.0": lambda m: model({"time_scale": 1000.0}),
    "network.norm_epsilon=1e-06": lambda m: model({"norm_epsilon": 1e-5}),
    "network.downsample_padding=symmetric": lambda m: model({"downsample_padding": "same"}),
    "network.num_groups=32": lambda m: model({"num_groups": 0}),
}


def test_settings_that_no_shape_reveals():
    for setting in SETTINGS:
        with pytest.raises(UserError, match=f"^a checkpoint of sdeflow needs config.{setting.strip()}"):
            importers.load("sdeflow", "never read", SETTINGS[setting](model()))


OTHERS = [{}, [], [1, 2, True, 7], [module(), module(), True]]


def test_another_file(tmp_path):
    for content in OTHERS:
        (tmp_path / "checkpoint.pt").write_bytes(Zip(content).data())
        with pytest.raises(UserError, match="is not a file of sdeflow: it holds no list of module"):
            sdeflow.read(tmp_path)


def test_absurd_count(write):
    for step in [-1, 0.5, "seven", True]:
        with pytest.raises(UserError, match="its step count is"):
            sdeflow.read(write(Source().tree(), step=step))


def test_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere.pt", "nul\0"):
        with pytest.raises(UserError, match="checkpoint"):
            sdeflow.read(path)
