"""benchmarks/accelerator.py on this CPU in its tiny sizes, and what it does with a user's mistakes."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers import quick

from jvdm.core.errors import UserError

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPTS = (
    "accelerator",
    "accelerator_speed",
    "accelerator_training",
    "chips",
    "likelihood",
    "numerics",
    "timed_report",
    "train_step",
)
# An image for GPUs may be without them.
ABSENT = ("PIL", "beartype", "filelock", "jinja2", "matplotlib", "sklearn", "tensorflow_datasets", "tqdm")
BLOCKED = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """The folder is no package: its scripts import one another by name."""
    monkeypatch.syspath_prepend(FOLDER)
    yield
    for name in SCRIPTS:
        sys.modules.pop(name, None)


def run(*arguments, **environment):
    """Run the script in a separate process."""
    command = [sys.executable, str(FOLDER / "accelerator.py"), *arguments]
    env = quick.environment(**environment)
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


@pytest.fixture
def npz(tmp_path):
    """Noisy images, each with a different mean colour."""
    rng = np.random.default_rng(0)

    def images(n):
        return np.clip(rng.normal(rng.uniform(60, 200, (n, 1, 1, 3)), 10.0, (n, 8, 8, 3)), 0, 255).astype(
            np.uint8
        )

    np.savez(tmp_path / "images.npz", train_images=images(96), test_images=images(12))
    return tmp_path / "images.npz"


@pytest.mark.long
def test_the_report(npz, tmp_path):
    """All sections and verdicts, without packages that a GPU's image lacks, and nothing else is left."""
    modules, temporary, out = tmp_path / "modules", tmp_path / "temporary", tmp_path / "out"
    for folder in (modules, temporary):
        folder.mkdir()
    (modules / "sitecustomize.py").write_text(BLOCKED)
    done = run(
        f"--data={npz}", "--minutes=15", f"--out={out}", PYTHONPATH=str(modules), TMPDIR=str(temporary)
    )
    assert done.returncode == 0, done.stderr
    assert list(out.iterdir()) == [out / "accelerator.txt"] and not list(temporary.iterdir())
    text = (out / "accelerator.txt").read_text()
    assert text == done.stdout
    device, numerics, steps, likelihood, training = text.split("\n== ")[1:]
    assert "jax 0." in device and "(cpu)" in device
    assert "9 of 9 ok" in numerics and len(re.findall(r"  limit \S+  ok$", numerics, re.M)) == 9
    rows = re.findall(r"^ +8 +(\w+) +(\w+) +[\d.]+ +[\d.]+ ", steps, re.M)
    assert rows[0] == ("bfloat16", "elementwise") and len(set(rows)) == 6
    assert re.search(
        r"images/s with \d+ evaluations \(tolerance 1e-05\)\n  an evaluation .*forward passes", likelihood
    )
    assert re.search(r"images/s with 1000 steps", likelihood)
    assert "96 training and 12 test images" in training and re.search(r"steps/s, \d+ images/s\n", training)
    assert len(re.findall(r"^ +\d+ +[\d.]+  #+$", training, re.M)) > 1
    assert re.search(r"VLB, continuous: [\d.]+ ± [\d.]+ bits/dim of 12 test images", training)
    assert re.search(r"^ODE", training, re.M) and re.search(r"^done after \d+ of 900 s$", training, re.M)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --data, --out"),
        (["--data=missing.npz", "--out=OUT"], "no file "),
        (["--data=OTHER", "--out=OUT"], "of 3 images leaves none to test on"),
        (
            ["--data=NPZ", "--out=OUT", "--minutes=soon"],
            "--minutes=soon: give a number of minutes, 1 or more",
        ),
        (["--data=NPZ", "--out=OUT", "--minutes=0"], "--minutes=0: give"),
        (["--data=NPZ", "--out=OUT", "--minutes=inf"], "--minutes=inf: give"),
        (["--data=NPZ", "--out=NPZ/out"], "is not a directory"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, npz, tmp_path, monkeypatch, capsys):
    import accelerator

    np.savez(tmp_path / "other.npz", labels=np.zeros(3))
    names = {"NPZ": npz, "OTHER": tmp_path / "other.npz", "OUT": tmp_path / "out"}
    for name, path in names.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    monkeypatch.setattr("sys.argv", ["accelerator.py", *arguments])
    with pytest.raises(UserError, match=message) as error:
        accelerator.main()
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
    assert capsys.readouterr() == ("", "")


def test_how_a_mistake_is_shown(tmp_path):
    done = run("--data=missing.npz", f"--out={tmp_path / 'out'}")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"accelerator: error: no file .*\n", done.stderr)


def test_time_that_is_over(tmp_path):
    """The process ends in the middle of a measurement; the report says so, and no files are left behind."""
    code = f"""
import pathlib, sys, time
sys.path.insert(0, {str(FOLDER)!r})
from timed_report import Budget, Report
report = Report(pathlib.Path({str(tmp_path)!r}) / "out" / "report.txt")
with Budget(0.04, time.monotonic()).enforced(report) as folder:
    (folder / "checkpoint").touch()
    report.section("one")
    time.sleep(60)
"""
    (tmp_path / "temporary").mkdir()
    env = quick.environment(TMPDIR=str(tmp_path / "temporary"), PYTHONPATH=str(FOLDER.parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 1, done.stderr
    assert done.stdout == "\n== one\nstopped: the 0.04 minutes are over; what follows is missing\n"
    assert (tmp_path / "out" / "report.txt").read_text() == done.stdout
    assert not list((tmp_path / "temporary").iterdir())


def test_budget():
    import time

    from timed_report import Budget

    budget = Budget(1.0, time.monotonic() - 30.0)
    assert budget.fits(25.0) and not budget.fits(31.0)
    assert not budget.fits(0.0, share=0.4) and budget.fits(10.0, share=0.8)


def test_settings():
    """The default of rematerialisation is first, and every combination is there once."""
    from accelerator_speed import FULL, settings

    every = settings(FULL)
    assert every[0] == (128, "bfloat16", "elementwise") and len(set(every)) == 12
    assert {each.remat for each in every[:4]} == {"elementwise"}


class Lines:
    """A report whose lines are kept."""

    def __init__(self):
        self.lines = []

    def line(self, text=""):
        self.lines.append(text)

    section = line

    def row(self, cells, widths):
        self.lines.append(" ".join(map(str, cells)))


def test_steps_that_do_not_fit(monkeypatch):
    """Neither a refusal nor XLA's own error ends the report; a row that would take too long is not begun."""
    import time

    import accelerator_speed
    import jax
    from timed_report import Budget

    failures = iter([UserError("does not fit: 9 GB"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB")])

    def measure(*_, **__):
        if failure := next(failures, None):
            raise failure
        time.sleep(0.6)
        return cost

    cost = accelerator_speed.StepCost(1.0, 1.0, 1.0, step_s=0.5, flops=1e12, state=1, temporary=10**9)
    monkeypatch.setattr(accelerator_speed, "measure", measure)
    report, budget = Lines(), Budget(1.0, time.monotonic() - 29.0)
    assert accelerator_speed.steps_section(report, budget, accelerator_speed.TINY, 0.5) is None
    rows = report.lines[-6:]
    assert rows[0] == "8 bfloat16 elementwise does not fit: 9 GB"
    assert rows[1] == "8 float32 elementwise RESOURCE_EXHAUSTED: 9 GB"
    assert rows[2] == "8 bfloat16 none 1.0 1.0 1.00 500.0 16 2 - 1.00"
    assert rows[3] == "8 bfloat16 full skipped: about 1 s"


def test_depth_of_training(npz):
    """As many blocks as leave time for enough steps, and a quarter of the blocks at least."""
    from accelerator_speed import FULL
    from accelerator_training import training_config
    from train_step import StepCost

    cost = StepCost(init_s=1.0, compile_s=1.0, first_s=1.0, step_s=0.1, flops=1.0, state=1, temporary=1)
    for seconds, blocks in ((300.0, 32), (120.0, 16), (60.0, 8), (1.0, 4)):
        assert training_config(FULL, npz, cost, seconds).network.num_blocks == blocks


def test_loss_curve():
    from accelerator_training import CURVE_LINES, loss_curve

    lines = [{"step": 10 * (i + 1), "train/bpd": 3.0 + 5.0 / (i + 1)} for i in range(50)]
    header, *rows = loss_curve(lines)
    assert header.split() == ["step", "bits/dim", "training"] and len(rows) == CURVE_LINES
    assert rows[-1].split()[0] == "500" and rows[-1].endswith("  #") and rows[0].endswith("#" * 40)
    assert len(loss_curve(lines[:1])) == 2 and loss_curve([]) == ["too few steps for a curve"]


def test_the_limit_of_products_sees_tf32():
    """Inputs rounded to 10 bits of mantissa exceed it, and float32 does not."""
    import numerics

    def rounded(a):
        return ((a.view(np.uint32) + 0x1000) & 0xFFFFE000).view(np.float32)

    reference = numerics._convolution(numerics.X, numerics.KERNEL)
    tf32 = numerics._convolution(rounded(numerics.X), rounded(numerics.KERNEL))
    assert numerics.relative_error(tf32, reference) > 10 * numerics.PRODUCTS
    assert numerics.convolution() < numerics.PRODUCTS


def test_chips_by_device_kind():
    import chips

    assert chips.chip_of_device("NVIDIA H200") is chips.CHIPS["h200"]
    assert chips.chip_of_device("cpu") is None
    assert set(chips._DEVICE_KINDS.values()) == set(chips.CHIPS)
