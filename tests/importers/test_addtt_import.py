"""The parameters of addtt's PyTorch code on jvdm's, and the errors where they do not fit."""

import dataclasses

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.compose import compose, with_process
from helpers.torch_files import Name, Zip, encode, tensor

from jvdm import importers
from jvdm.core.errors import UserError
from jvdm.diffusion.parameterizations import DataPrediction, Noise
from jvdm.diffusion.paths import Straight, VariancePreserving
from jvdm.diffusion.schedules import FixedLinear, LearnedScalar, MonotoneNetworkReleased
from jvdm.diffusion.transforms import Logit
from jvdm.importers import addtt
from jvdm.networks import GammaInput, TimeInput
from jvdm.networks.unet import VDMUNet

CHANNELS, DEPTH, IMAGE_CHANNELS = 8, 2, 3
SETTINGS = {
    "attention_everywhere": "false",
    "embedding_dim": "8",
    "gamma_max": "5.0",
    "gamma_min": "-13.3",
    "input_channels": "3",
    "lr": "0.0002",
    "n_attention_heads": "2",
    "n_blocks": "2",
    "noise_schedule": "learned_linear",
    "norm_groups": "4",
    "use_fourier_features": "true",
}


def model(schedule=None, data_shape=(8, 8, IMAGE_CHANNELS), **network):
    options = {
        "channels": CHANNELS,
        "num_blocks": DEPTH,
        "num_groups": 4,
        "num_heads": 2,
        "fourier_first": 5,
        "fourier_last": 6,
        "norm_epsilon": 1e-5,
    }
    return compose(
        network=VDMUNet(**{**options, **network}),
        schedule=schedule or LearnedScalar(),
        time_input=GammaInput(gamma_min=-13.3, gamma_max=5.0),
        path=VariancePreserving(),
        parameterization=Noise(),
        data_shape=data_shape,
        num_levels=256,
    )


class Source:
    """Parameters by the names that PyTorch gives them, with random values."""

    def __init__(
        self, seed=0, *, depth=DEPTH, attention=False, fourier=True, dropout=True, schedule="learned"
    ):
        self.rng = np.random.default_rng(seed)
        self.found = {}
        c, colours, second = CHANNELS, IMAGE_CHANNELS, 3 if dropout else 2

        def block(name, c_in):
            self.norm(f"{name}.net1.0", c_in)
            self.layer(f"{name}.net1.2", c, c_in, 3, 3)
            self.leaf(f"{name}.cond_proj.weight", c, 4 * c)
            self.norm(f"{name}.net2.0", c)
            self.layer(f"{name}.net2.{second}", c, c, 3, 3)
            if c_in != c:
                self.layer(f"{name}.skip_conv", c, c_in, 1, 1)

        def attend(name):
            self.norm(f"{name}.layers.0", c)
            self.layer(f"{name}.layers.1", 3 * c, c, 1, 1)
            self.layer(f"{name}.layers.3", c, c, 1, 1)

        self.layer("model.embed_conditioning.0", 4 * c, c)
        self.layer("model.embed_conditioning.2", 4 * c, 4 * c)
        self.layer("model.conv_in", c, colours * (5 if fourier else 1), 3, 3)
        for way, length, c_in in (("down", depth, c), ("up", depth + 1, 2 * c)):
            for i in range(length):
                block(f"model.{way}_blocks.{i}.resnet_block", c_in)
                if attention:
                    attend(f"model.{way}_blocks.{i}.attention_block")
        block("model.mid_resnet_block_1", c)
        attend("model.mid_attn_block")
        block("model.mid_resnet_block_2", c)
        self.norm("model.conv_out.0", c)
        self.layer("model.conv_out.2", colours, c, 3, 3)
        if schedule == "learned":
            self.leaf("gamma.b")
            self.leaf("gamma.w", 1)

    def leaf(self, name, *shape):
        self.found[name] = np.asarray(self.rng.normal(size=shape), np.float32)

    def layer(self, name, *shape):
        self.leaf(f"{name}.weight", *shape)
        self.leaf(f"{name}.bias", shape[0])

    def norm(self, name, c):
        self.leaf(f"{name}.weight", c)
        self.leaf(f"{name}.bias", c)


def source(seed=0, **options):
    return Source(seed, **options).found


@pytest.fixture
def write(tmp_path):
    """Writes a folder with checkpoint and settings, and returns its path."""

    def write(params, ema_params=None, *, step=7, settings=None, state=None, ema=None):
        stored = {"params": params, "ema": ema_params if ema_params is not None else params}
        storages = {f"{key}{i}": a for key, p in stored.items() for i, a in enumerate(p.values())}

        def tensors(key, prefix=""):
            return {f"{prefix}{n}": tensor(f"{key}{i}", a) for i, (n, a) in enumerate(stored[key].items())}

        numbers = ema or {"initted": np.ones(1, np.float32), "step": np.array([7])}
        for name, a in numbers.items():
            storages[name] = a
        value = {
            "step": step,
            "model": tensors("params"),
            "opt": {"state": {}, "param_groups": []},
            "ema": {
                **{name: tensor(name, a) for name, a in numbers.items()},
                **tensors("params", "online_model."),
                **tensors("ema", "ema_model."),
            },
        }
        value.update(state or {})
        (tmp_path / "model.pt").write_bytes(Zip(value, storages).data())
        lines = [f"{key}: {text}\n" for key, text in {**SETTINGS, **(settings or {})}.items()]
        (tmp_path / "config.yaml").write_text("".join(lines))
        return str(tmp_path)

    return write


EMA = {"initted": np.ones(1, np.float32), "step": np.array([7])}
EMA_0_8 = {"initted": np.array(True), "step": np.array(7)}  # as ema-pytorch 0.8 writes it


@pytest.mark.parametrize(
    ("options", "schedule", "ema"),
    [
        ({"depth": 1, "attention": True}, LearnedScalar(), EMA),
        ({"depth": 11, "dropout": False, "schedule": "fixed"}, FixedLinear(), EMA_0_8),
        ({"fourier": False, "attention": True, "dropout": False}, LearnedScalar(), EMA),
    ],
)
def test_every_leaf_arrives(write, options, schedule, ema):
    params, ema_params = (source(seed, **options) for seed in (0, 1))
    depth, attention = options.get("depth", DEPTH), options.get("attention", False)
    settings = {
        "n_blocks": depth,
        "attention_everywhere": str(attention).lower(),
        "use_fourier_features": str(options.get("fourier", True)).lower(),
        "noise_schedule": f"{options.get('schedule', 'learned')}_linear",
    }
    target = model(schedule, num_blocks=depth, attention=attention, fourier=options.get("fourier", True))
    imported = importers.load("addtt", write(params, ema_params, settings=settings, ema=ema), target)
    assert imported.step == 7
    for found, ours in ((params, imported.params), (ema_params, imported.ema_params)):
        values = np.concatenate([a.ravel() for a in flatten_dict(ours, sep="/").values()])
        assert values.dtype == np.float32
        # All of them, and the row of the conditioning.
        expected = np.concatenate([*(a.ravel() for a in found.values()), np.zeros(4 * CHANNELS)])
        np.testing.assert_array_equal(np.sort(values), np.sort(expected.astype(np.float32)))


def test_order_of_axes():
    found = source(attention=True)
    ours = flatten_dict(addtt.convert(found), sep="/")

    def same(path, expected):
        np.testing.assert_array_equal(ours[path], expected, err_msg=path)

    c = CHANNELS
    same("network/condition2/kernel", found["model.embed_conditioning.2.weight"].T)
    same("network/condition1/kernel", np.pad(found["model.embed_conditioning.0.weight"].T, ((0, 1), (0, 0))))
    same("network/conv_out/kernel", found["model.conv_out.2.weight"].transpose(2, 3, 1, 0))
    up = [found[f"model.up_blocks.{i}.resnet_block.skip_conv.weight"][:, :, 0, 0].T for i in range(DEPTH + 1)]
    same("network/up/block/shortcut/kernel", np.stack(up))
    same(
        "network/up/block/norm2/norm/scale",
        [found[f"model.up_blocks.{i}.resnet_block.net2.0.weight"] for i in range(3)],
    )
    for i, name in enumerate(("query", "key", "value")):
        part = slice(c * i, c * (i + 1))
        packed = found["model.down_blocks.1.attention_block.layers.1.weight"][part, :, 0, 0].T
        np.testing.assert_array_equal(ours[f"network/down/attention/{name}/kernel"][1], packed)
        same(f"network/middle_attention/{name}/bias", found["model.mid_attn_block.layers.1.bias"][part])
    # sin 5: z0 z1 z2, sin 6: z0 z1 z2, and the cosines -> sin z0: 5 6, sin z1: 5 6, ...
    order = [0, 1, 2, 3, 6, 4, 7, 5, 8, 9, 12, 10, 13, 11, 14]
    same("network/conv_in/kernel", found["model.conv_in.weight"].transpose(2, 3, 1, 0)[:, :, order])
    assert ours["schedule/b"].shape == ours["schedule/w"].shape == ()


@pytest.mark.parametrize("form", ["folder", "file", "other name", "no settings"])
def test_forms_of_the_path(write, tmp_path, form):
    path = tmp_path if write(source()) else None
    if form == "other name":
        path = (tmp_path / "model.pt").rename(tmp_path / "vdm_5000.pt")
    elif form == "no settings":
        (tmp_path / "config.yaml").unlink()
    elif form == "file":
        path = tmp_path / "model.pt"
    assert importers.load("addtt", str(path), model()).step == 7


def test_other_precisions_become_float32():
    for dtype in ["float16", "bfloat16", "float64"]:
        import ml_dtypes

        found = {name: a.astype(getattr(ml_dtypes, dtype, dtype)) for name, a in source().items()}
        leaves = flatten_dict(addtt.convert(found), sep="/").values()
        assert {a.dtype for a in leaves} == {np.dtype(np.float32)}


def test_forms_of_the_step(write):
    for step in [5, np.array(5), np.array([5])]:
        storages = {"step": step} if isinstance(step, np.ndarray) else {}
        path = write(source(), step=tensor("step", step) if storages else step, ema=storages or None)
        assert addtt.read(path).step == 5


def test_not_a_step(write):
    for step in [-1, True, 1.5, "5", None]:
        with pytest.raises(UserError, match=r"model\.pt: 'step' is (an? \w+|None), not a number of steps"):
            addtt.read(write(source(), step=step))


STATES = {
    "list": ([1, 2], "it holds a list, not a dict"),
    "no step": ({"model": {}, "ema": {}, "epoch": 3}, "it has no 'step' (keys: 'ema', 'epoch', 'model')"),
    "empty": ({}, "it has no 'step' (keys: none)"),
    "no average": ({"step": 1, "model": {}}, "it has no 'ema'"),
    "average": ({"step": 1, "model": {}, "ema": [1]}, "'ema' is a list, not a dict"),
    "model": ({"step": 1, "model": 3, "ema": {}}, "'model' is an int, not a dict"),
    "empty model": (
        {"step": 1, "model": {}, "ema": {}},
        "'model' does not have the parameters of addtt's VDM code",
    ),
    "no tensor": ({"step": 1, "model": {"a": 3}, "ema": {}}, "'model' has an int at 'a', not a tensor"),
    "no name": ({"step": 1, "model": {3: 3}, "ema": {}}, "'model' has an int at 3, not a tensor"),
}


def test_another_file_of_pytorch(tmp_path):
    for state in STATES:
        value, message = STATES[state]
        (tmp_path / "model.pt").write_bytes(Zip(value).data())
        with pytest.raises(UserError) as caught:
            addtt.read(tmp_path)
        assert message in str(caught.value) and "model.pt" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_an_average_that_lacks_a_leaf(write):
    ema_params = source(1)
    del ema_params["model.conv_in.bias"]
    with pytest.raises(
        UserError, match=r"'ema' does not have the parameters .*: 'model\.conv_in\.bias' is missing"
    ):
        addtt.read(write(source(), ema_params))


MISSING = [
    "model.down_blocks.1.resnet_block.net1.2.weight",
    "model.up_blocks.2.resnet_block.skip_conv.bias",
    "model.down_blocks.0.attention_block.layers.1.bias",
    "model.mid_resnet_block_1.net2.3.weight",
    "model.conv_out.2.bias",
    "gamma.w",
]


def test_missing_leaf():
    for name in MISSING:
        found = source(attention=True)
        del found[name]
        with pytest.raises(UserError, match=f"'{name}' is missing"):
            addtt.convert(found)


SURPLUS = [
    "model.down_blocks.0.resnet_block.skip_conv.weight",
    "model.mid_resnet_block_1.net2.2.weight",
    "model.conv_in.scale",
    "gamma.gamma",
    "encoder.weight",
]


def test_surplus_leaf():
    for name in SURPLUS:
        found = {**source(), name: np.zeros(3, np.float32)}
        with pytest.raises(UserError, match=f"'{name}' is unexpected"):
            addtt.convert(found)


def test_absurd_number_of_a_block():
    found = {**source(), "model.down_blocks.999999999.resnet_block.net1.0.weight": np.zeros(8, np.float32)}
    with pytest.raises(UserError, match=r"blocks\.2.*is missing, and 'model\.down_blocks\.999999999"):
        addtt.convert(found)


LEAVES = [
    ("model.conv_in.bias", np.zeros(8, np.int32), "holds int32, not floating point"),
    ("model.conv_in.bias", np.full(8, np.nan, np.float32), "has values that are not finite"),
    ("model.conv_in.bias", np.zeros((8, 1), np.float32), r"has shape \(8, 1\)"),
    ("model.conv_in.weight", np.zeros((8, 15, 5, 5), np.float32), r"has shape \(8, 15, 5, 5\)"),
    ("model.conv_in.weight", np.zeros((8, 15), np.float32), r"has shape \(8, 15\)"),
    (
        "model.conv_in.weight",
        np.zeros((8, 10, 3, 3), np.float32),
        "has 10 inputs, which cannot be of 3 channels",
    ),
    (
        "model.conv_in.weight",
        np.zeros((8, 2, 3, 3), np.float32),
        "has 2 inputs, which cannot be of 3 channels",
    ),
    ("model.conv_in.weight", np.zeros((0, 15, 3, 3), np.float32), r"has shape \(0, 15, 3, 3\)"),
    ("model.conv_out.2.bias", np.zeros(0, np.float32), "which cannot be of 0 channels"),
    ("model.mid_attn_block.layers.1.bias", np.zeros(25, np.float32), "has 25 outputs"),
    (
        "model.up_blocks.1.resnet_block.net1.0.bias",
        np.zeros(9, np.float32),
        r"has shape \(9,\), but entry 0 of its stack has \(16,\)",
    ),
    ("model.embed_conditioning.0.weight", np.array(1.0, np.float32), r"has shape \(\)"),
    ("gamma.b", np.zeros(2, np.float32), r"has shape \(2,\)"),
]


def test_leaf_that_fits_nowhere():
    for name, value, message in LEAVES:
        with pytest.raises(
            UserError, match=f"'model': '{name}' {message}" if "of 0 channels" not in message else message
        ):
            addtt.convert({**source(), name: value})


# Settings, and models that do not fit.

MISFITS = {
    "heads": (
        {},
        {"num_heads": 1},
        "config.network.num_heads is 1, but n_attention_heads of config.yaml is 2",
    ),
    "groups": ({}, {"num_groups": 2}, "config.network.num_groups is 2, but norm_groups of config.yaml is 4"),
    "channels": (
        {},
        {"channels": 16},
        "config.network.channels is 16, but embedding_dim of config.yaml is 8",
    ),
    "depth": ({}, {"num_blocks": 3}, "config.network.num_blocks is 3, but n_blocks of config.yaml is 2"),
    "fourier": (
        {},
        {"fourier": False},
        "config.network.fourier is False, but use_fourier_features of config.y",
    ),
    "attention": (
        {},
        {"attention": True},
        "config.network.attention is True, but attention_everywhere of con",
    ),
    "images": (
        {},
        {"data_shape": (8, 8, 1)},
        "images have 1 channels, but input_channels of config.yaml is 3",
    ),
    "ends": (
        {},
        {"schedule": LearnedScalar(gamma_max=6.0)},
        "config.schedule.gamma_max is 6.0, but gamma_max of config.yaml is 5.0",
    ),
    "schedule": ({}, {"schedule": FixedLinear()}, "it needs config.schedule.name=learned_scalar"),
    "other": ({}, {"schedule": MonotoneNetworkReleased()}, "it needs config.schedule.name=learned_scalar"),
    "unknown": ({"noise_schedule": "cosine"}, {}, "unknown noise_schedule cosine in config.yaml"),
    "no number": ({"n_blocks": "[2]"}, {}, "n_blocks of config.yaml is [2]"),
    "nothing": ({"n_blocks": "null"}, {}, "n_blocks of config.yaml is null"),
}


def test_settings_of_another_model(write):
    for misfit in MISFITS:
        settings, options, message = MISFITS[misfit]
        with pytest.raises(UserError) as caught:
            importers.load("addtt", write(source(), settings=settings), model(**options))
        assert message in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


SHAPES = {
    "channels": ({"channels": 16}, "config.network.channels? the checkpoint's is 8"),
    "depth": ({"num_blocks": 3}, "config.network.num_blocks? the checkpoint's is 2"),
    "attention": ({"attention": True}, "config.network.attention? the checkpoint's is False"),
    "fourier": ({"fourier": False}, "config.network.fourier?"),
    "schedule": ({"schedule": FixedLinear()}, "config.schedule.name? the checkpoint's is learned_scalar"),
    "images": ({"data_shape": (8, 8, 1)}, "for images of 3 channels, not 1"),
}


@pytest.mark.parametrize("misfit", SHAPES)
def test_model_of_other_shape_without_settings(write, tmp_path, misfit):
    options, message = SHAPES[misfit]
    path = write(source())
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(UserError) as caught:
        importers.load("addtt", path, model(**options))
    assert message in str(caught.value)


NEEDS = {
    "epsilon": (model(norm_epsilon=1e-6), "config.network.norm_epsilon=1e-05, not 1e-06"),
    "exponents": (
        model(fourier_first=6, fourier_last=7),
        "config.network.fourier_first=5, not 6",
    ),
    "last exponent": (model(fourier_last=7), "config.network.fourier_last=6, not 7"),
    "network": (dataclasses.replace(model(), network=FixedLinear()), "config.network.name=vdm_unet"),
    "data map": (dataclasses.replace(model(), data_map=Logit()), "config.data_map.name=scaling"),
    "output": (
        dataclasses.replace(model(), parameterization=DataPrediction()),
        "config.parameterization.name=noise",
    ),
    "path": (with_process(model(), path=Straight()), "config.path.name=variance_preserving"),
    "time": (dataclasses.replace(model(), time_input=TimeInput()), "config.model.time_input=gamma"),
}


def test_settings_that_no_shape_reveals(write):
    for need in NEEDS:
        target, message = NEEDS[need]
        with pytest.raises(UserError) as caught:
            importers.load("addtt", write(source()), target)
        assert f"a checkpoint of addtt's VDM code needs {message}" in str(caught.value)


def test_exponents_do_not_matter_without_fourier_features(write):
    path = write(source(fourier=False), settings={"use_fourier_features": "false"})
    target = model(fourier=False, fourier_first=6, fourier_last=7)
    assert importers.load("addtt", path, target).step == 7


def test_forms_of_settings(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a: 1\n\n# b: 2\n'c': 3\nd: \"x y\"  # z\ne:\n- 1\nf:   -13.3 \ng: 'h'\nlist: [1, 2]\n")
    found = addtt.settings(path)
    assert found == {"a": "1", "d": "x y", "f": "-13.3", "g": "h", "list": "[1, 2]"}
    assert addtt.settings(tmp_path / "none.yaml") == {}
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"cannot read the settings .*config\.yaml: not text"):
        addtt.settings(path)


def test_names_of_the_average_that_are_no_text(tmp_path):
    """A global is written like a name."""
    ema = encode({}) + encode(Name("ema_model", "model")) + encode(1) + b"s"
    params = source()
    value = {"step": 1, "model": {name: tensor(name, a) for name, a in params.items()}, "ema": ema}
    (tmp_path / "model.pt").write_bytes(Zip(value, params).data())
    with pytest.raises(UserError, match="'ema' does not have the parameters"):
        addtt.read(tmp_path)
