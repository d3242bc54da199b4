"""The state split over devices: the same numbers, less memory of each, and checkpoints for any mesh."""

import json
import shutil

import jax
import numpy as np
import pytest
from helpers import tiny

from jvdm import config as config_lib
from jvdm.core import sharding
from jvdm.core.errors import UserError
from jvdm.core.records import Batch
from jvdm.runs.workdir import Workdir
from jvdm.training.loop import Trainer
from jvdm.training.step import init_state, make_train_step

NUM_DEVICES = 8  # of the tests' host


def wide(**training):
    """Leaves on both sides of the size that is split."""
    c = tiny.config(**training)
    c.network.channels = 16
    return c


def mesh_of(num_devices, fsdp):
    return sharding.make_mesh(jax.devices()[:num_devices], fsdp=fsdp)


def bytes_of_each(tree):
    """Bytes on the first device, and of the whole."""
    leaves = [a for a in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key)]
    device = jax.devices()[0]
    here = sum(s.data.nbytes for a in leaves for s in a.addressable_shards if s.device == device)
    return here, sum(a.nbytes for a in leaves)


def one_step(num_devices, fsdp, **training):
    """(state, metrics) after one step, the state as it lies."""
    c = wide(**training)
    model, mesh = tiny.model(c), mesh_of(num_devices, fsdp)
    key = jax.random.key(0)
    where = sharding.of_state(jax.eval_shape(lambda k: init_state(model, c, k), key), mesh)
    # The init of one device, so that all start from the same bits.
    state = jax.device_put(jax.jit(lambda k: init_state(model, c, k))(key), where)
    b = c.training.batch_size
    batches = Batch(tiny.images(b).reshape(1, b, *tiny.SHAPE))
    batches = sharding.to_devices(batches, sharding.split(mesh, axis=1))
    state, metrics = make_train_step(model, c, mesh)(state, batches)
    return state, jax.device_get(metrics)


def first_moment(state):
    """Adam's, which is a tenth of the gradient."""
    return jax.device_get(state.opt_state)


@pytest.fixture(scope="module")
def one_device():
    return one_step(1, 1)


@pytest.mark.long
@pytest.mark.parametrize(("fsdp", "microbatches"), [(4, 2), (8, 1)])
def test_eight_devices_train_like_one(one_device, fsdp, microbatches):
    """Sums over the batch are in another order (float32); so are those of microbatches."""
    state, metrics = one_step(NUM_DEVICES, fsdp, microbatches=microbatches)
    np.testing.assert_allclose(metrics.losses["bpd"], one_device[1].losses["bpd"], rtol=2e-5)
    np.testing.assert_allclose(metrics.grad_norm, one_device[1].grad_norm, rtol=2e-4)
    # Moments are proportional to gradients up to 3, of which float32 sums keep 1e-5.
    assert tiny.max_difference(first_moment(state), first_moment(one_device[0])) < 1e-4
    assert tiny.max_difference(jax.device_get(state.params), jax.device_get(one_device[0].params)) < 2e-4

    here, whole = bytes_of_each((state.params, state.ema_params, state.opt_state))
    for leaf in jax.tree.leaves((state.params, state.ema_params, state.opt_state)):
        shards = {shard.data.size for shard in leaf.addressable_shards}
        is_split = leaf.size >= sharding.SMALL and any(size % fsdp == 0 for size in leaf.shape)
        assert shards == {leaf.size // fsdp if is_split else leaf.size}
    # Small leaves are 30 % of this network.
    assert here < whole * (0.3 + 0.7 / fsdp)


def test_which_dimension():
    mesh = mesh_of(NUM_DEVICES, 4)

    def spec(*shape):
        return tuple(sharding.of_state(jax.ShapeDtypeStruct(shape, np.float32), mesh).spec)

    assert spec(3, 3, 64, 64) == (None, None, None, "fsdp"), "the last of equals"
    assert spec(3, 3, 128, 64) == (None, None, "fsdp")
    assert spec(32, 3, 3, 30, 30) == ("fsdp",)
    assert spec(3, 3, 33, 31) == (), "none divides"
    assert spec(32, 16) == () and spec() == (), "small"


@pytest.mark.parametrize("fsdp", [0, 3, 16])
def test_what_does_not_divide(fsdp):
    with pytest.raises(UserError, match=f"fsdp is {fsdp}, which .* 8 device.*: choose 1, 2, 4, 8$"):
        sharding.make_mesh(fsdp=fsdp)


def test_range():
    c = config_lib.default()
    c.training.fsdp = 0
    with pytest.raises(UserError, match="config.training.fsdp is 0: give 1 or more"):
        config_lib.check_complete(c)


def test_processes_are_neighbours():
    """However devices are given, a process's part of a batch is one piece."""
    devices = jax.devices()[::-1]
    assert list(sharding.make_mesh(devices, fsdp=2).devices.ravel()) == jax.devices()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two steps on eight devices, by data and by fsdp; and four steps by data, never stopped."""
    folder = tmp_path_factory.mktemp("elastic")
    run(folder / "fsdp", 8, 4, num_steps=2)
    whole = run(folder / "whole", 8, 1, num_steps=4)
    shutil.copytree(folder / "whole", folder / "data")
    shutil.rmtree(folder / "data" / "checkpoints" / "4")
    return folder, whole


def run(path, num_devices, fsdp, **training):
    c = wide(eval_every=4, sample_every=0, fsdp=fsdp, **training)
    trainer = Trainer(c, Workdir(path), mesh_of(num_devices, fsdp))
    started = trainer.step
    trainer.run()
    assert trainer.step == training["num_steps"] and started == (2 if started else 0)
    return trainer


@pytest.mark.long
@pytest.mark.parametrize(
    ("saved", "num_devices", "fsdp"),
    [("data", 4, 2), ("data", 2, 1), ("fsdp", 1, 1), ("fsdp", 8, 1)],
)
def test_checkpoints_fit_any_mesh(runs, tmp_path, saved, num_devices, fsdp):
    folder, whole = runs
    shutil.copytree(folder / saved, tmp_path / "run")
    trainer = run(tmp_path / "run", num_devices, fsdp, num_steps=4)
    assert len(jax.tree.leaves(trainer.state.params)[0].sharding.device_set) == num_devices
    # Adam's first steps divide by the gradient's size: those of a gradient near zero may turn, 1e-3 at most.
    for field in ("params", "ema_params"):
        a, b = (jax.device_get(getattr(t.state, field)) for t in (trainer, whole))
        assert tiny.max_difference(a, b) < 5e-4
    a, b = (first_moment(t.state) for t in (trainer, whole))
    assert tiny.max_difference(a, b) < 2e-3
    # Evaluation takes gathered weights.
    lines = [(p / "metrics.jsonl").read_text().splitlines()[-1] for p in (tmp_path / "run", folder / "whole")]
    mine, theirs = (json.loads(line) for line in lines)
    assert mine["test/bpd"] == pytest.approx(theirs["test/bpd"], rel=1e-4)
