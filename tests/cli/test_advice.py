"""Advice that the program gives is advice that it takes."""

import re

import pytest
from helpers.commands import ROOT

from jvdm import config as config_lib
from jvdm.cli import config_file
from jvdm.cli.command_line import LESS_MEMORY
from jvdm.config import overrides
from jvdm.core.errors import UserError
from jvdm.core.files import expanded
from jvdm.diffusion.solvers import SOLVERS


@pytest.mark.parametrize("mode", LESS_MEMORY)
def test_advice_on_memory_is_open_to_a_run_that_is_resumed(mode):
    """A resume refuses another batch size of training, which was advised."""
    c = config_lib.default()
    fields = re.findall(r"config\.([\w.]+\w)", LESS_MEMORY[mode])
    assert fields
    for field in fields:
        overrides.find(c, field)
        assert config_lib.about(field, c).free_on_resume, field


def test_another_component_does_not_keep_what_it_cannot_have():
    """Adaptive steps have no Heun: the method is then the default, and another value of both is kept."""
    c = config_lib.default()
    overrides.put(c, {"eval.ode.solver.name": "fixed", "eval.ode.solver.method": "heun"})
    overrides.put(c, {"eval.ode.solver.name": "adaptive"})
    assert c.eval.ode.solver.method == SOLVERS.options("adaptive")["method"]
    config_lib.check_complete(c)
    overrides.put(c, {"eval.ode.solver.method": "tsit5"})
    overrides.put(c, {"eval.ode.solver.name": "fixed"})
    assert c.eval.ode.solver.method == "tsit5"


def test_a_config_in_a_folder_with_a_colon(tmp_path):
    folder = tmp_path / "a:b"
    folder.mkdir()
    (folder / "digits.py").write_text((ROOT / "configs" / "digits.py").read_text())
    (folder / "args.py").write_text(
        "from jvdm import config\n\ndef get_config(x='none'):\n    c = config.default()\n"
        "    c.data.source = f'npz:{x}'\n    return c\n"
    )
    assert config_file.load(str(folder / "digits.py")).data.source == "digits"
    assert config_file.load(f"{folder / 'args.py'}:/d/x:y.npz").data.source == "npz:/d/x:y.npz"
    assert config_file.run_name(f"{folder / 'args.py'}:/d/x.npz") == "args-x"
    assert config_file.split("swissroll:debiased") == ("swissroll", ":", "debiased")
    assert config_file.split("digits") == ("digits", "", "")


def test_a_home_directory_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/runs", "--workdir") == tmp_path / "runs"
    with pytest.raises(UserError, match="--workdir=~nobody-here/x: there is no home directory"):
        expanded("~nobody-here/x", "--workdir")
