"""Any override of a config's fields makes a model or is refused in one line, as the command does it."""

import copy
import functools
import json

import hypothesis
import pytest
from absl import flags
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jvdm import config as config_lib
from jvdm import model as model_lib
from jvdm.cli import command_line
from jvdm.core.errors import UserError
from jvdm.core.registry import Config
from jvdm.training.intervals import check_intervals

DIGITS = "configs/digits.py"

# Too slow for any example to be shrunk for long; derandomized, so that a run is the same everywhere.
SETTINGS = hypothesis.settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)

FIELDS = sorted(name for name, _ in config_lib.leaves(config_lib.default().to_dict()))
WORDS = [name for registry in config_lib.COMPONENTS.values() for name in registry.names()]
ODD = (
    *("", " ", "-", "many", "None", "True", "false", "nan", "inf", "-inf", "1e400", "1e-400", "0", "-1"),
    *("-0.0", "1", "3", "0.5", "1.5", "7e9", str(2**31), str(-(2**63)), str(10**30), "9" * 5000, "0x10"),
    *("1_000", "()", "(1,", "(1, 2)", "(1, 'a')", "[1, 2]", "{}", "{'a': 1}", "☃", "Ω" * 300, "١٢", "a=b"),
    *("a\nb", "%s", "{0}", "../..", "'", '"', "lambda: 0", "__import__('os')", "1+1", "\\", "\ud7ff"),
)
VALUES = st.one_of(
    st.sampled_from(ODD),
    st.sampled_from(WORDS),
    st.integers(-3, 70).map(str),
    st.integers().map(str),
    st.floats(allow_nan=True, allow_infinity=True).map(repr),
    st.text(max_size=20).filter(lambda text: "\x00" not in text),
)
NAMES = st.one_of(
    st.sampled_from(FIELDS),
    st.sampled_from(sorted(f"{section}.name" for section in config_lib.COMPONENTS)),
    st.sampled_from(["training", "network", "", ".", "seed.", "network..channels", "nope", "eval.ode", "☃"]),
    st.text(max_size=12).filter(lambda text: "\x00" not in text),
)
DEFAULTS = dict(config_lib.leaves(config_lib.default().to_dict()))
OF_TYPE = {
    bool: st.booleans().map(str),
    int: st.one_of(st.integers(-2, 70), st.integers()).map(str),
    float: st.one_of(st.floats(-1.0, 9.0), st.floats()).map(repr),
    str: st.sampled_from(WORDS),
    tuple: st.lists(st.integers(-1, 4), max_size=3).map(lambda values: str(tuple(values))),
}
# Of the right type, so that it is the model that has to refuse them.
TYPED = st.sampled_from(FIELDS).flatmap(
    lambda field: st.tuples(st.just(field), OF_TYPE[type(DEFAULTS[field])])
)
OVERRIDES = st.one_of(
    st.lists(TYPED, min_size=1, max_size=3), st.lists(st.tuples(NAMES, VALUES), min_size=1, max_size=2)
)


def parsed(arguments: list[str]) -> Config:
    """The config that the command would have of these arguments; a mistake ends the process, in one line."""
    values = flags.FlagValues()
    command_line.define_flags(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.path", [])  # the folder of a config file is added to it
        command_line.parse(["jvdm", "train", *arguments], values)
    return values.config


def build(config: Config) -> None:
    """As far as --mode=train goes before it touches data."""
    config_lib.check_complete(config)
    check_intervals(config)
    config_lib.to_json(config)
    model_lib.build(config, (8, 8, 1), 17)


@hypothesis.given(OVERRIDES)
@SETTINGS
def test_overrides_by_flags(overrides):
    arguments = [f"--config={DIGITS}", *(f"--config.{name}={value}" for name, value in overrides)]
    with pytest.MonkeyPatch.context() as patch:
        lines, status, config = [], None, None
        patch.setattr("builtins.print", lambda text, **_: lines.append(text))
        try:
            config = parsed(arguments)
        except SystemExit as end:
            status = end.code
    if config is None:
        hypothesis.event("refused as a flag")
        assert status == 2
        (line,) = lines
        assert line.startswith("jvdm: error: ")
        assert len(line.splitlines()) == 1
        return
    try:
        build(config)
    except UserError:
        hypothesis.event("refused as a config")
    else:
        hypothesis.event("accepted")


PYTHON = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.integers(),
    st.floats(),
    st.text(max_size=10),
    st.sampled_from(WORDS),
    st.lists(st.integers(), max_size=3),
    st.tuples(st.floats()),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
    st.binary(max_size=3),
)


PLAIN = config_lib.default().to_dict()


@hypothesis.given(st.lists(st.tuples(st.sampled_from(FIELDS), PYTHON), min_size=1, max_size=3))
@SETTINGS
def test_values_of_a_config_file(changes):
    """What a config file may have set, whatever its type."""
    plain = copy.deepcopy(PLAIN)
    for field, value in changes:
        *parents, last = field.split(".")
        where = functools.reduce(
            lambda node, name: node[name] if isinstance(node, dict) else {}, parents, plain
        )
        if isinstance(where, dict):
            where[last] = value
    try:
        build(ConfigDict(plain))
    except UserError:
        hypothesis.event("refused")
    else:
        hypothesis.event("accepted")


SAVED = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda part: st.one_of(
        st.lists(part, max_size=3),
        st.dictionaries(st.sampled_from(["training", "network", "name", "seed", "x"]), part, max_size=3),
    ),
    max_leaves=8,
)


@hypothesis.given(st.one_of(SAVED.map(lambda saved: json.dumps(saved).encode()), st.binary(max_size=30)))
@SETTINGS
def test_any_saved_config(tmp_path_factory, content):
    """config.json of a workdir, damaged or of another program."""
    path = tmp_path_factory.getbasetemp() / "config.json"
    path.write_bytes(content)
    config = config_lib.default()
    for check in (config_lib.check_resume, config_lib.check_model):
        message = ""
        try:
            check(config_lib.read_json(path), config, path.parent)
        except UserError as error:
            message = str(error)
        assert len(message.splitlines()) <= 1
