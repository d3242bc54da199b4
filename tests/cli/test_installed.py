"""The wheel: what it holds, and the command of an install in a folder that has no repository."""

import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest
from helpers import quick
from helpers.commands import ROOT, TINY, VLB

pytestmark = pytest.mark.long

# What a build reads; the rest of a working tree is left alone, and nothing is built into it.
SOURCES = ("jvdm", "configs", "pyproject.toml", "setup.py", "requirements.txt", "README.md", "LICENSE")


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built of a copy of the sources, without network."""
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree / name)
    wheels = tmp_path_factory.mktemp("wheels")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, tree)
    (path,) = wheels.glob("jvdm-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of an install without dependencies: those of this interpreter are used."""
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--target", target, wheel)
    return target


def test_the_wheel_has_all_files_and_no_others(wheel):
    """Every file of jvdm/ and configs/ under its name in the package; no tests, scripts or main.py."""
    expected = {
        f"jvdm/{'configs/' if folder == 'configs' else ''}{path.relative_to(ROOT / folder).as_posix()}"
        for folder in ("jvdm", "configs")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    assert names == expected


def test_metadata(installed):
    (found,) = importlib.metadata.distributions(path=[str(installed)])
    (entry,) = found.entry_points
    assert (entry.group, entry.name, entry.value) == ("console_scripts", "jvdm", "jvdm.cli.main:run")
    requirements = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1] != "#"]
    needed = [each for each in found.requires if "extra ==" not in each]
    names = [
        {each.partition(">=")[0].partition("<")[0].lower() for each in lines}
        for lines in (needed, requirements)
    ]
    assert names[0] == names[1]
    assert found.metadata["Requires-Python"] == ">=3.11"


def jvdm(installed, folder, *arguments):
    """The console script, in a folder."""
    done = subprocess.run(
        [sys.executable, str(installed / "bin" / "jvdm"), *arguments],
        cwd=folder,
        env=quick.environment(PYTHONPATH=str(installed), JAX_PLATFORMS="cpu"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done


def test_the_command(installed, tmp_path):
    """Train, evaluate, sample and report by a config's name; the run is in runs/ of the folder."""
    for mode in ("train", "eval", "sample"):
        done = jvdm(installed, tmp_path, mode, "--config=digits", VLB, *TINY)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"workdir {tmp_path}/runs/digits\n")
    done = jvdm(installed, tmp_path, "report", "--workdir=runs/digits")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "digits"
    assert f"report     {run / 'report.html'}" in done.stdout
    assert list(run.glob("eval/vlb_*.json")) and list(run.glob("samples/*.npz"))
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_the_code_that_runs_is_that_of_the_wheel(installed, tmp_path):
    code = "import jvdm, jvdm.cli.config_file as c; print(jvdm.__file__, c.find('digits'))"
    env = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    package, config = done.stdout.split()
    assert pathlib.Path(package) == installed / "jvdm" / "__init__.py"
    assert pathlib.Path(config) == installed / "jvdm" / "configs" / "digits.py"


def test_a_mistake_is_one_line(installed, tmp_path):
    done = jvdm(installed, tmp_path, "train", "--config=digit")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("jvdm: error: unknown config 'digit'; did you mean 'digits'?")
    assert not list(tmp_path.iterdir())
