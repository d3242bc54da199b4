"""A script that is used wrongly says so in one line, with status 2, before it measures anything."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("train_step", ["--depths=x"], "argument --depths: 'x' is not a whole number from 1; see --help"),
        ("train_step", ["--depths=0"], "argument --depths: '0' is not a whole number from 1; see --help"),
        ("train_step", ["--remats=ful"], "'ful'; did you mean 'full'?"),
        ("train_step", ["--channels=7", "--depths=1"], "channels is 7"),
        ("likelihood", ["--workdir=/nowhere"], "/nowhere"),
        ("likelihood", ["--batch=0"], "argument --batch: '0' is not a whole number from 1; see --help"),
        ("ahead_of_time", ["--target=h100", "--config=nothing"], "nothing"),
        ("ahead_of_time", ["--target=h100", "--config=digits", "--batch=0"], "'0' is not a whole number"),
        ("ahead_of_time", ["--target=h100", "--config=digits", "--programs=training"], "'training'"),
        ("accelerator", ["--data=a.npz"], "the following arguments are required: --out; see --help"),
    ],
)
def test_a_mistake_is_one_line(script, arguments, message, tmp_path):
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *arguments],
        cwd=tmp_path,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"{script}: error: ")
    assert message in last
    assert "Traceback" not in result.stderr
