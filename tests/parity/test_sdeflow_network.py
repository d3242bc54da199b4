"""sdeflow's network, replayed: same weights, data and times, hence the same outputs.

Tolerances are multiples of a case's `noise_floor`, by which the rounding of float32 moved the peer's own
output. `pytest -rP` shows every deviation.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import sdeflow_case
from helpers.replays import jit, note
from helpers.sdeflow_case import nchw, nhwc

from jvdm.networks import layers

# Ours and theirs are each off by one floor, which is itself one draw of a random deviation. Measured: up to
# 1.8. The least of the mistakes of which the cases tell, another epsilon of normalisation, makes 23.
FLOORS = 6.0


@pytest.fixture(scope="module", params=sdeflow_case.names())
def case(request):
    """One case."""
    with jax.default_matmul_precision("highest"):
        yield sdeflow_case.load_case(request.param)


@pytest.fixture(scope="module")
def output(case):
    """(y [b, c, h, w], times) -> a [b, c, h, w] and the output of every module, by name."""

    @jit
    def apply(params, y, t):
        return case.network.apply(
            {"params": params}, y, t, capture_intermediates=True, mutable=["intermediates"]
        )

    def output(y, t):
        a, state = apply(case.params, nhwc(y), jnp.asarray(t.ravel()))
        modules = state["intermediates"]
        return nchw(a), {name: out["__call__"][0] for name, out in modules.items() if name != "__call__"}

    return output


def test_weights_and_steps_are_the_checkpoints(case):
    assert case.step == case.config["count"]
    ours = sdeflow_case.by_source(case, case.params)
    assert set(ours) | {"T"} == set(case.config["parameter_names_in_order"])
    for name, array in ours.items():
        np.testing.assert_array_equal(array, case.source[name], err_msg=name)
    sizes = sum(a.size for a in jax.tree.leaves(case.params)) - sum(a.size for a in ours.values())
    row = case.params["condition1"]["kernel"][-1]
    assert sizes == row.size
    np.testing.assert_array_equal(row, 0.0)


def test_our_own_tree_has_these_shapes(case):
    b, c, h, w = case.io["dsm_uniform/y"].shape
    z, scalar = jax.ShapeDtypeStruct((b, h, w, c), jnp.float32), jax.ShapeDtypeStruct((b,), jnp.float32)
    ours = jax.eval_shape(case.network.init, jax.random.key(0), z, scalar)["params"]
    shapes = [jax.tree.map(lambda a: a.shape, tree) for tree in (ours, case.params)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("where", ["dsm_uniform", "dsm_debias", "elbo", "lmbd"])
def test_network_output(case, output, where):
    t, theirs = case.io[f"{where}/t"], case.io.get(f"{where}/a")
    if where == "lmbd":  # whose time is that of the generative SDE
        t, theirs = case.config["T"] - t, case.io["lmbd/a_at_T_minus_t"]
    ours, _ = output(case.io[f"{where}/y"], t)
    deviation = np.abs(ours - theirs).max() / case.noise_floor
    note(f"output, {where}, in units of the noise floor", deviation)
    assert deviation <= FLOORS


MODULES = {
    r"begin_conv": "conv_in",
    r"mid_modules\.0": "middle1",
    r"mid_modules\.1": "middle_attention",
    r"mid_modules\.2": "middle2",
    r"(down|up)_modules\.\d+\.(\d+)a_(\d+)a_block": r"\1_\2_\3",
    r"(down|up)_modules\.\d+\.(\d+)a_(\d+)b_attn": r"\1_\2_\3_attention",
    r"down_modules\.\d+\.(\d+)b_downsample": r"downsample_\1",
    r"up_modules\.\d+\.(\d+)b_upsample": r"upsample_\1",
    r"end_conv": "conv_out",
}


def our_name(module):
    (name,) = (re.sub(p, ours, module) for p, ours in MODULES.items() if re.fullmatch(p, module))
    return name


def test_every_recorded_module(case, output):
    io, network = case.io, case.network
    t = io["dsm_uniform/t"]
    a, modules = output(io["dsm_uniform/y"], t)
    relative = FLOORS * case.noise_floor / np.abs(io["dsm_uniform/a"]).max()

    def check(name, ours, theirs):
        assert ours.shape == theirs.shape
        deviation = np.abs(ours - theirs).max() / np.abs(theirs).max()
        note(name, deviation)
        assert deviation <= relative, name

    # A case has whatever its author has recorded.
    if "int/t_embedding" in io:
        t = jnp.asarray(t.ravel())
        embedding = layers.timestep_embedding(t, network.channels, scale=network.time_scale)
        check("t_embedding", embedding, io["int/t_embedding"])
    if "int/temb" in io:
        check("temb", modules["condition2"], io["int/temb"])
    recorded = [key.removeprefix("int/img0_stride2/") for key in io if key.startswith("int/img0_stride2/")]
    if not recorded:
        pytest.skip("the case has no numbers from inside the network")
    for module in recorded:
        name = our_name(module)
        if name not in modules:  # resolution changes without parameters, hence without a module
            assert not network.resample_with_conv and "sample" in name
            continue
        check(module, nchw(modules[name])[0, :, ::2, ::2][:, :8, :8], io[f"int/img0_stride2/{module}"])
    np.testing.assert_array_equal(a, nchw(modules["conv_out"]), err_msg="nothing is added to the output")
