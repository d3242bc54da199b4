"""benchmarks/against_pytorch.py, as far as it goes without PyTorch, and the step that it compares."""

import argparse
import pathlib
import statistics
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.core.errors import UserError
from jvdm.core.records import Batch, Draws
from jvdm.model import objectives

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPT = FOLDER / "against_pytorch.py"


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """The folder is no package: its scripts import one another by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield
    for name in ("against_pytorch", "jvdm_step", "turns"):
        sys.modules.pop(name, None)


def test_sizes():
    from against_pytorch import SIZES, Size, sizes_of

    assert sizes_of("64x4x16x32,32x1x64x8") == [Size(64, 4, 16, 32), Size(32, 1, 64, 8)]
    assert ",".join(map(str, sizes_of(SIZES))) == SIZES
    assert Size(64, 4, 16, 32).arguments == ["--channels=64", "--blocks=4", "--batch=16", "--side=32"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--sizes=64x4x16", "'64x4x16' is not channels x blocks x batch x side"),
        ("--sizes=64x0x16x32", "'64x0x16x32' is not channels x blocks x batch x side"),
        ("--sizes=64x4x16x32,", "'' is not channels x blocks x batch x side"),
        ("--sizes=30x4x16x32", "30 channels: give a multiple of 4"),
        ("--rounds=0", "--rounds=0: give a number from 1"),
        ("--seconds=0", "--seconds=0: give a number above 0"),
        ("--remat=ful", "unknown --remat 'ful'; did you mean 'full'?"),
        ("--layout=nhwc", "unknown --layout 'nhwc'"),
        ("--python=/bin/false", "--python=/bin/false cannot import torch and numpy"),
        ("--python=no/python", "--python=no/python cannot import torch and numpy"),
    ],
)
def test_arguments_that_are_refused(flag, message, monkeypatch):
    from against_pytorch import arguments

    monkeypatch.setattr("sys.argv", ["against_pytorch.py", flag])
    with pytest.raises(UserError) as error:
        arguments()
    assert message in str(error.value)


def test_a_mistake_is_one_line():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--sizes=64"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("against_pytorch: error: --sizes: '64' is not ")


@pytest.mark.parametrize(
    ("fails", "message"), [("venv", "cannot create the virtual environment"), ("install", "cannot install ")]
)
def test_an_environment_that_cannot_be_made(fails, message, monkeypatch, tmp_path):
    import against_pytorch

    monkeypatch.setattr(against_pytorch, "ENVIRONMENT", tmp_path / "pytorch")

    def run(command, **options):
        return subprocess.CompletedProcess(command, int(fails in command or "import torch, numpy" in command))

    monkeypatch.setattr("subprocess.run", run)
    with pytest.raises(UserError, match=message):
        against_pytorch.environment()


def test_ratio():
    from against_pytorch import Ratio, Round, ratio_of

    # The second round had a slow spell that lasted for both, the third one for a single step.
    rounds = [Round([1, 1, 1], [2, 2]), Round([5, 5, 5], [15, 15]), Round([1, 1, 9], [4, 4])]
    assert ratio_of(rounds) == Ratio(median=3, low=2, high=4)


def test_row():
    from against_pytorch import COLUMNS, Round, Size, aligned, row

    rounds = [Round([1.0], [2.0]), Round([3.0, 1.0, 1.0], [3.0])]
    facts = {"parameters": 1234567, "layout": "contiguous"}
    text = row(Size(64, 4, 16, 32), facts, rounds, [1.5e9, 2e9], 0.031)
    assert text.split() == [
        *("64x4x16x32", "1,234,567", "1.0000", "2.5000"),
        *("2.50", "[2.00,", "3.00]", "1.50", "2.00", "3%", "contiguous"),
    ]
    assert len(text) == len(aligned(*COLUMNS))


def test_others():
    import os

    from against_pytorch import others_share

    cores = os.cpu_count()
    assert others_share(10.0, 4.0, 6.0 / cores) == pytest.approx(1.0)
    # Both clocks are rounded.
    assert others_share(3.99, 4.0, 2.0) == 0.0


def test_profile():
    from against_pytorch import profile_lines

    lines = list(profile_lines({"other": 0.001, "convolution, forward": 0.003}))
    assert [line.split() for line in lines] == [
        ["convolution,", "forward", "3.0", "ms", "75.0%"],
        ["other", "1.0", "ms", "25.0%"],
    ]
    assert not list(profile_lines({}))


WORKER = """
import turns
turns.serve({"add": lambda a, b: (print("noise"), a + b)[1], "end": lambda: exit(3)})
"""


def test_a_worker(monkeypatch):
    from turns import Worker

    monkeypatch.setenv("PYTHONPATH", str(FOLDER))
    with Worker("PyTorch", [sys.executable, "-c", WORKER]) as worker:
        assert worker("add", a=1, b=2) == 3
        with pytest.raises(EOFError, match="the process of PyTorch ended with status 3"):
            worker("end")


def test_a_turn():
    from turns import timed

    calls = []
    assert len(timed(lambda: calls.append(1), 0.0)["steps"]) == 1
    turn = timed(lambda: calls.append(1), 0.01)
    assert len(calls) == 1 + len(turn["steps"])
    assert 0.0 <= statistics.median(turn["steps"]) <= 0.01 + max(turn["steps"])


@pytest.mark.long
def test_the_step_that_is_compared(tmp_path):
    """What is written for PyTorch is the model's loss and gradient at these parameters."""
    import jvdm_step

    args = argparse.Namespace(channels=8, blocks=1, batch=2, side=4, dropout=0.1, remat="none")
    jvdm_step.one_step(args, str(tmp_path / "step.npz"))
    found = np.load(tmp_path / "step.npz")
    _, model = jvdm_step.configured(args)
    params = jax.eval_shape(model.init, jax.random.key(0))
    paths = [
        "/".join(str(part.key) for part in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(params["network"])
    ]
    network = jax.tree.unflatten(
        jax.tree.structure(params["network"]), [jnp.asarray(found[f"params/{path}"]) for path in paths]
    )
    draws = Draws(*(jnp.asarray(found[name]) for name in ("u", "eps", "eps_0")))
    bound = jax.jit(lambda params, draws, x: objectives.bound(model, params, draws, Batch(x)))
    terms = bound({**params, "network": network}, draws, jnp.asarray(found["x"]))
    np.testing.assert_allclose(
        found["terms"], [terms.diffusion, terms.reconstruction, terms.prior], rtol=1e-4
    )
    norm = np.sqrt(sum(np.sum(found[f"grads/{path}"] ** 2) for path in paths))
    for path in paths:
        value, grad, after = (found[f"{tree}/{path}"] for tree in ("params", "grads", "after"))
        # The first update of AdamW is the learning rate, 2e-4, against the sign of the gradient.
        kept = value * (1.0 - 2e-4 * 0.01 * path.endswith("kernel"))
        clear = np.abs(grad) > 1e-5 * max(1.0, norm)
        np.testing.assert_allclose((after - kept)[clear], -2e-4 * np.sign(grad[clear]), rtol=0.02)


@pytest.mark.long
def test_steps_of_jvdm():
    import jvdm_step

    args = argparse.Namespace(channels=8, blocks=1, batch=2, side=4, dropout=0.1, remat="none")
    step = jvdm_step.Step(args)
    step()
    assert step.state.step == 1
    assert step.facts() == {"parameters": sum(a.size for a in jax.tree.leaves(step.state.params))}
