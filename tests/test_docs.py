"""The documentation: its examples run, its commands are valid, and nothing that exists is left out."""

import fnmatch
import importlib
import itertools
import pathlib
import re
import shlex
import sys
import tomllib
from typing import NamedTuple

import pytest
from absl import flags
from helpers import tiny, untrained
from ml_collections import ConfigDict

from jvdm import config as config_lib
from jvdm.cli import command_line, commands, config_file
from jvdm.config import listing
from jvdm.data import sources
from jvdm.data.published import PUBLISHED
from jvdm.runs.workdir import Workdir

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
VALUES = flags.FlagValues()
command_line.define_flags(VALUES)
FLAGS = set(VALUES)


class Block(NamedTuple):
    """A fenced block: its language, its title or "", its text, and the line it starts at."""

    language: str
    title: str
    text: str
    line: int


def blocks(page):
    """The fenced blocks of a page, those inside of lists too."""
    found, lines = [], iter(enumerate(page.read_text().splitlines(), start=1))
    for number, line in lines:
        opening = re.match(r'( *)```(\w+)(?: title="(.*)")?$', line)
        if not opening:
            continue
        indent = len(opening[1])
        inside = itertools.takewhile(lambda each: each[1].strip() != "```", lines)
        text = "".join(f"{content[indent:]}\n" for _, content in inside)
        found.append(Block(opening[2], opening[3] or "", text, number + 1))
    return found


def named(page):
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The run that examples load; its weights are of no use, so that it takes no time."""
    c = tiny.config().unlock()
    c.eval.ode.solver.tolerance = 1e-3
    return untrained.run(c.lock(), tmp_path_factory.mktemp("digits")).path


@pytest.fixture
def project(tmp_path, monkeypatch, digits):
    """A folder to run a page in, with the run `runs/digits`."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(digits)
    monkeypatch.chdir(tmp_path)
    # What a page registers and imports is forgotten after it.
    for registry in config_lib.COMPONENTS.values():
        monkeypatch.setattr(registry, "_components", dict(registry._components))
    monkeypatch.setattr(sources, "_REGISTERED", {})
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


EXAMPLES = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


@pytest.mark.long
@pytest.mark.parametrize("page", EXAMPLES, ids=named)
def test_examples_run(page, project):
    """All Python of a page, in order; what has a title is a file, and a config file is trained with."""
    namespace = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "bash" and "--mode=train --config=my_project/my_config.py" in block.text:
            c = config_file.load(str(project / "my_config.py"))
            commands.train(commands.Request(c, Workdir(project / "runs" / "my_config")))
        if block.language != "python":
            continue
        if block.title:
            with (project / block.title).open("a") as file:
                file.write(block.text + "\n\n")
            importlib.invalidate_caches()
        else:
            # Lines of a traceback are those of the page.
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            exec(code, namespace)


def test_there_are_examples():
    assert {"docs/library.md", "docs/extending.md", "docs/evaluation.md"} <= {named(p) for p in EXAMPLES}


def commands_of(page):
    """The lines of the page's shell blocks, without comments."""
    lines = []
    for block in blocks(page):
        if block.language == "bash":
            lines += block.text.replace("\\\n", " ").splitlines()
    if page.name == "README.md":
        program = rf"python \S+\.py |jvdm ({'|'.join(command_line.MODES)}) "
        lines = [line for line in page.read_text().splitlines() if re.match(program, line)]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def check_main(words, page, monkeypatch):
    """A call of the command: mode, flags, config and its fields exist; values are of their types.

    Args:
        words: what follows `jvdm` or `python main.py`.
    """
    if words[0] in command_line.MODES:
        words = [f"--mode={words[0]}", *words[1:]]
    given = dict(word.removeprefix("--").split("=", 1) for word in words)
    mode = given.pop("mode")
    assert mode in command_line.MODES, mode
    if mode == "report":
        assert set(given) <= FLAGS
        return
    assert "config" in given or "workdir" in given, words
    value = given.pop("config", "digits")  # a run's own
    if value == "my_project/my_config.py":
        assert any(block.title == "my_config.py" for block in blocks(page))
        return
    if value == "FILE.py":
        return
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(ROOT)
    config = config_file.load(value, words)
    for name, text in given.items():
        if not name.startswith("config."):
            assert name in FLAGS, name
            continue
        *sections, field = name.split(".")[1:]
        node = config
        for section in sections:
            node = node[section]
        assert field in node and not isinstance(node[field], ConfigDict), name
        kind = type(node[field])
        assert kind is not bool or text in ("True", "False"), name
        if kind in (int, float) and text != "VALUE":
            kind(text)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=named)
def test_commands_are_valid(page, monkeypatch):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for words in commands_of(page):
        words = [word for word in words if not re.match(r"[A-Z]+=", word)]
        if words[0] == "make":
            assert set(words[1:]) <= targets, words
        elif words[0] == "jvdm" or words[:2] == ["python", "main.py"]:
            arguments = words[1 + (words[0] == "python") :]
            if all("=" in word for word in arguments[1:]) and "…" not in words:
                check_main(arguments, page, monkeypatch)
        elif words[0].endswith("python"):
            scripts = [word for word in words[1:] if word.endswith(".py")]
            assert all((ROOT / script).is_file() for script in scripts), words
        else:
            assert words[:2] == ["pip", "install"] or (ROOT / words[0]).is_file(), words


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_that_are_named_exist(page):
    names = re.findall(r"`((?:configs|benchmarks|examples|tests|scripts)/[\w./]+\.\w+)", page.read_text())
    for name in names:
        assert (ROOT / name).is_file(), name


def test_every_config_is_on_the_page_of_systems():
    text = (ROOT / "docs" / "systems.md").read_text()
    for file in (ROOT / "configs").glob("*.py"):
        assert f"`configs/{file.name}" in text, file.name


def test_every_component_is_on_the_page_of_systems():
    text = (ROOT / "docs" / "systems.md").read_text()
    rows = dict(re.findall(r"^\| (`.*?`) \| (.*) \|$", text.partition("## Components")[2], re.M))
    for field, registry in config_lib.COMPONENTS.items():
        (row,) = (names for fields, names in rows.items() if f"`{field}`" in fields)
        for name in registry.names():
            assert f"`{name}`" in row, f"{field}: {name}"
    for source in ("digits", "swissroll", *PUBLISHED):
        assert f"`{source}`" in rows["`data.source`"], source


def test_every_option_of_a_component_is_on_the_page_of_systems():
    text = (ROOT / "docs" / "systems.md").read_text().partition("Their options,")[2].partition("## ")[0]
    for field, registry in config_lib.COMPONENTS.items():
        for name in registry.names():
            for option in registry.options(name):
                assert f"`{option}`" in text, f"{field} {name}: {option}"


def test_the_page_of_options_is_that_of_the_code():
    assert (ROOT / "docs" / "reference" / "options.md").read_text() == listing.listing()


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    listed = set(re.findall(r"[\w/]+\.md", nav))
    assert listed == {page.relative_to(ROOT / "docs").as_posix() for page in PAGES}


def test_references_to_modules_exist():
    """`[jvdm.diffusion.paths][]` is a link to the reference, which has a section of that name."""
    documented = {
        name for page in PAGES for name in re.findall(r"^::: (jvdm[\w.]*)$", page.read_text(), re.M)
    }
    for page in PAGES:
        for name in re.findall(r"\[(jvdm[\w.]*)\]\[\]", page.read_text()):
            assert name in documented, f"{named(page)}: {name}"
    for name in documented:
        module = ROOT / name.replace(".", "/")
        parent = module.parent.with_suffix(".py")
        assert module.is_dir() or module.with_suffix(".py").is_file() or parent.is_file(), name


def test_the_package_has_all_of_its_files():
    """Whatever in the package is no Python is named in pyproject.toml, so that an installed one has it."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for file in (ROOT / "jvdm").rglob("*"):
        if file.is_file() and file.suffix != ".py" and "__pycache__" not in file.parts:
            package = ".".join(file.relative_to(ROOT).parent.parts)
            assert any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns.get(package, [])), file
