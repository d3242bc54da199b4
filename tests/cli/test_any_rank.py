"""Data that are not images, from a source from outside, through every mode."""

import json

import numpy as np
import pytest
from helpers import tiny

from jvdm import data
from jvdm.cli import commands
from jvdm.data import sources
from jvdm.diffusion.solvers import SOLVERS
from jvdm.networks import NETWORKS
from jvdm.runs.workdir import Workdir

# (shape, K) of each source; K = 0 is continuous.
KINDS = {"numbers": ((), 5), "vectors": ((5,), 4), "series": ((4, 2), 17), "points": ((3,), 0)}


def made_up(name):
    shape, levels = KINDS[name]
    rng = np.random.default_rng(0)

    def draw(n):
        if not levels:
            return rng.normal(size=(n, *shape)).astype(np.float32)
        return rng.integers(0, levels, (n, *shape)).astype(np.uint8)

    return data.Dataset(name=name, version="1", num_levels=levels, train=draw(64), test=draw(12))


@pytest.fixture(scope="module", autouse=True)
def registered():
    for name in KINDS:
        data.register(name, "made up")(lambda name=name: made_up(name))
    yield
    for name in KINDS:
        del sources._REGISTERED[name]


def config(name):
    c = tiny.config(sample_every=4).unlock()
    c.data.source = name
    c.network = NETWORKS.spec("mlp", hidden=16, num_layers=2)
    c.eval.num_images = 8
    c.eval.estimators = "vlb,ode"
    c.eval.ode.solver = SOLVERS.spec("fixed", method="heun", num_steps=4)
    c.eval.ode.check_images = 0
    if not KINDS[name][1]:
        c.data_map.name = "identity"
        c.schedule = c.schedule.__class__({"name": "fixed_linear", "gamma_min": -10.0, "gamma_max": 5.0})
        c.training.objective = "score_matching"
        c.eval.estimators = "ode,elbo"
        c.eval.ode.dequantization = c.schedule.__class__({"name": "none"})
    return c.lock()


# The two ends of what a shape can be; the others are `long`.
QUICK = {"numbers", "points"}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in KINDS]
)
def test_every_mode(name, tmp_path, capsys):
    shape, levels = KINDS[name]
    c, workdir = config(name), Workdir(tmp_path / "run")
    request = commands.Request(c, workdir)
    for mode in ("train", "eval", "sample", "report"):
        commands.MODES[mode](request)
    assert json.loads(workdir.data.read_text())["data_shape"] == list(shape)
    records = [json.loads(path.read_text()) for path in workdir.eval.glob("*.json")]
    assert len(records) == 2 and all(np.isfinite(record["value"]) for record in records)
    assert {record["units"] for record in records} == {"bits/dim" if levels else "nats"}
    wanted = "x".join(map(str, (5, *shape)))
    samples = np.load(next(workdir.samples.glob(f"samples_{wanted}_*.npz")))["arr_0"]
    assert samples.shape == (5, *shape) and samples.dtype == (np.uint8 if levels else np.float32)
    assert not list(workdir.samples.glob("*.png"))
    assert wanted in (workdir.path / "report.html").read_text()
    # Scored, too.
    capsys.readouterr()
    c = c.unlock()
    c.score.source = name
    commands.score(commands.Request(c.lock(), workdir))
    assert f"scores  {workdir.scores / name}_test" in capsys.readouterr().out
