"""The figures of benchmarks/ahead_of_time.py, on programs whose costs are known, compiled for this CPU."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from helpers import tiny

from jvdm.core.errors import UserError
from jvdm.core.records import Batch, Context
from jvdm.networks.convolution import convolve
from jvdm.training.step import init_state, make_train_step

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """The folder is no package: its scripts import one another by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield
    for name in ("ahead_of_time", "chips", "flops", "hlo"):
        sys.modules.pop(name, None)


def flops(fn, *arguments):
    from flops import flops_of

    return flops_of(jax.make_jaxpr(fn)(*arguments).jaxpr)


X, KERNELS = jnp.zeros((2, 4, 5, 3)), jnp.zeros((7, 3, 3, 3, 3))
ONE = 2 * 9 * 2 * 4 * 5 * 3 * 3  # of the convolution of X with one kernel


def stack(x, kernels):
    return jax.lax.scan(lambda h, kernel: (convolve(h, kernel), None), x, kernels)[0].sum()


def test_flops():
    assert flops(lambda a, b: a @ b, jnp.zeros((2, 3)), jnp.zeros((3, 5))) == {"products": 2 * 2 * 3 * 5}
    assert flops(stack, X, KERNELS) == {"convolutions": 7 * ONE}
    # Forward, with respect to the input and to the kernel.
    assert flops(jax.grad(stack, argnums=(0, 1)), X, KERNELS) == {"convolutions": 3 * 7 * ONE}
    # Computed again in the backward pass.
    again = flops(jax.grad(jax.checkpoint(stack), argnums=(0, 1)), X, KERNELS)
    assert again["convolutions"] in (3 * 7 * ONE, 4 * 7 * ONE)

    def strided(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    # [2, 1, 2, 3] results, each of 27 products.
    assert flops(strided, X, KERNELS[0]) == {"convolutions": 2 * (2 * 1 * 2 * 3) * 27}
    branches = lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: a @ a, lambda a: a, a)  # noqa: E731
    assert flops(branches, jnp.zeros((3, 3))) == {"products": 2 * 27}


def program(fn, *arguments):
    import hlo

    return hlo.Program(jax.jit(fn).lower(*arguments).compile().as_text())


@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_flops_are_those_of_all_devices(num_devices):
    """Inside of shard_map shapes are those of one device."""
    mesh, by_example = tiny.mesh(num_devices), jax.sharding.PartitionSpec("data")

    def product(x):
        return jax.lax.scan(lambda x, _: (x @ jnp.ones((6, 6)), None), x, length=3)[0]

    mapped = jax.shard_map(product, mesh=mesh, in_specs=by_example, out_specs=by_example, check_vma=False)
    assert flops(mapped, jnp.ones((8, 6))) == {"products": 3 * 2 * 8 * 6 * 6}


def test_convolutions_in_a_loop():
    found = program(stack, X, KERNELS)
    assert sum(cost.count for cost in found.convolutions().values()) == 7
    assert found.open_loops == 0


def test_a_loop_of_unknown_length_is_open():
    assert (
        program(lambda a: jax.lax.while_loop(lambda a: a[0] < 9, lambda a: a + 1, a), jnp.zeros(3)).open_loops
        == 1
    )


def test_bytes():
    a = jnp.zeros((64, 1024))  # 262,144 bytes
    assert program(lambda a: jnp.sin(a) + 1.0, a).bytes_moved() == 2 * a.nbytes
    # A loop that reads a row and writes a row 64 times; all else that it does is to prepare its result.
    rows = program(lambda a: jax.lax.map(jnp.sin, a), a)
    assert 2 * a.nbytes <= rows.bytes_moved() < 5 * a.nbytes


TEXT = """\
HloModule jit_f

%fused (p0: f32[8,16], p1: f32[1,16], p2: s32[]) -> f32[8,16] {
  %p0 = f32[8,16]{1,0} parameter(0)
  %b = f32[8,16]{1,0} bitcast(%p0)
  %p1 = f32[1,16]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %u = f32[8,16]{1,0} dynamic-update-slice(%b, %p1, %p2, %p2)
}

%turned (p: bf16[4,8]) -> bf16[8,4] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %t = bf16[8,4]{1,0} transpose(%p), dimensions={1,0}
}

%body (s: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %s = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %a = f32[8,16]{1,0} get-tuple-element(%s), index=1
  %c = (f32[1,16]{1,0}, u8[0]{0}) custom-call(%a), custom_call_target="__cudnn$convBackwardFilter"
  %g = f32[1,16]{1,0} get-tuple-element(%c), index=0
  %r = f32[1,16]{1,0} all-reduce(%g), to_apply=%add
  %f = f32[8,16]{1,0} fusion(%a, %r, %i), kind=kLoop, calls=%fused
  ROOT %o = (s32[], f32[8,16]{1,0}) tuple(%i, %f)
}

%below (c: s32[], n: s32[]) -> pred[] {
  %n = s32[] parameter(1)
  %c = s32[] parameter(0)
  ROOT %l = pred[] compare(%c, %n), direction=LT
}

%condition (s: (s32[], f32[8,16])) -> pred[] {
  %s = (s32[], f32[8,16]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%s), index=0
  %five = s32[] constant(5)
  CONDITION
}

ENTRY %main (x: (s32[], f32[8,16]), k: bf16[4,8]) -> bf16[8,4] {
  %x = (s32[], f32[8,16]{1,0}) parameter(0)
  %k = bf16[4,8]{1,0} parameter(1)
  %w = (s32[], f32[8,16]{1,0}) while(%x), condition=%condition, body=%body, backend_config={TRIPS}
  ROOT %v = bf16[8,4]{1,0} fusion(%k), kind=kLoop, calls=%turned, metadata={op_name="jit(f)/transpose"}
}
"""


@pytest.mark.parametrize(
    ("trips", "condition"),
    [
        ('"known_trip_count":{"n":"5"}', "ROOT %y = pred[] constant(true)"),
        ('""', "ROOT %y = pred[] compare(%j, %five), direction=LT"),
        ('""', "ROOT %y = pred[] fusion(%j, %five), kind=kLoop, calls=%below"),
    ],
)
def test_a_program_by_hand(trips, condition):
    from hlo import Cost, Program

    found = Program(TEXT.replace("TRIPS", trips).replace("CONDITION", condition))
    assert found.open_loops == 0
    assert found.convolutions() == {"BackwardFilter": Cost(count=5, bytes=5 * 64, largest=64)}
    assert found.collectives() == {"all-reduce": Cost(count=5, bytes=5 * 64, largest=64)}
    assert found.copies() == Cost(count=1, bytes=64, largest=64)
    # A round: the convolution reads [8, 16] and makes [1, 16], the reduction reads and makes [1, 16], the
    # fusion reads [1, 16] and an index and writes [1, 16]. Then [4, 8] of two bytes is read and written.
    assert found.bytes_moved() == 5 * ((512 + 64) + (64 + 64) + (64 + 4 + 64)) + 64 + 64
    assert found.largest(1) == [(512, "f32[8,16]", "w")]


@pytest.mark.parametrize(("num_devices", "microbatches"), [(1, 1), (2, 2), (8, 1)])
def test_gradients_are_summed_once(num_devices, microbatches):
    """A training step sums each parameter's gradient over the devices once, and the metrics."""
    from hlo import Program

    c = tiny.config(microbatches=microbatches)
    model, mesh = tiny.model(c), tiny.mesh(num_devices)
    state = jax.eval_shape(lambda key: init_state(model, c, key), jax.random.key(0))
    batches = jax.eval_shape(lambda: Batch(jnp.zeros((1, 16, *tiny.SHAPE), jnp.uint8)))
    step = make_train_step(model, c, mesh)
    program = Program(step.lower(state, batches).compile().as_text())
    summed = program.collectives()
    if num_devices == 1:
        assert not summed
    else:
        parameters = 4 * sum(leaf.size for leaf in jax.tree.leaves(state.params))
        # Beside the metrics; scalars of which the gradient is known to be 0 need no sum.
        assert set(summed) == {"all-reduce"} and abs(summed["all-reduce"].bytes - parameters) < 100


@pytest.mark.parametrize(
    "condition", ["compare(%j, %j), direction=LT", "compare(%j, %five), direction=GT", "and(%j, %five)"]
)
def test_a_loop_of_unknown_length_counts_as_one_round(condition):
    from hlo import Program

    found = Program(TEXT.replace("TRIPS", '""').replace("CONDITION", f"ROOT %y = pred[] {condition}"))
    assert found.open_loops == 1
    assert found.convolutions()["BackwardFilter"].count == 1


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("h101", "unknown --target 'h101'; did you mean 'h100'?"),
        ("h100:2", "one GPU is compiled for; write --target=h100"),
        ("v5e", "give a topology, such as --target=v5e:2x4"),
    ],
)
def test_targets_that_are_refused(target, message):
    from ahead_of_time import chip_of

    with pytest.raises(UserError) as error:
        chip_of(target)
    assert message in str(error.value)


def test_without_a_python_that_fits(monkeypatch, tmp_path):
    import ahead_of_time

    monkeypatch.setattr("sys.version_info", (3, 11))
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
    # A version manager's shim that has no Python behind it.
    monkeypatch.setattr("shutil.which", lambda name: "/bin/false")
    with pytest.raises(UserError, match="needs Python 3.12 or later"):
        ahead_of_time._python_that_fits()
    monkeypatch.setattr("sys.version_info", (3, 12))
    assert ahead_of_time._python_that_fits() == sys.executable


def test_a_mistake_is_one_line():
    script = [sys.executable, str(FOLDER / "ahead_of_time.py"), "--config=digits"]
    for arguments in (["--target=h101"], ["--target=h100", "--programs=eval"]):
        done = subprocess.run([*script, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("ahead_of_time: error: unknown ")


@pytest.mark.long
def test_the_programs_of_a_config():
    """For this machine's device, in place of one of a topology."""
    import ahead_of_time
    from chips import CHIPS

    c, mesh = tiny.config(), tiny.mesh()
    model = tiny.model(c)
    made = {name: getattr(ahead_of_time, name)(c, model, mesh) for name in ahead_of_time.PROGRAMS}
    for name, program in made.items():
        text = list(ahead_of_time.lines(name, program, CHIPS["h100"], "float32", 1))
        assert text[0].startswith(f"{name} (compiled in ")
        assert "fits 80 GB" in text[1] and "GFLOP" in text[2] and "GB" in text[4]
    z = jnp.zeros((1, *tiny.SHAPE))
    params = jax.eval_shape(model.init, jax.random.key(0))
    one = flops(lambda p: model.predict(p, z, jnp.ones(1), Context()).eps, params)["convolutions"]
    # Forward, and two derivatives of every convolution: the schedule learns, so z depends on parameters.
    assert made["train"].flops["convolutions"] == 3 * c.training.batch_size * one
    # The steps are a loop of unknown length.
    assert made["sample"].flops["convolutions"] == c.sample.batch_size * one
    assert made["ode"].flops["convolutions"] % (2 * c.eval.ode.batch_size * one) == 0
