"""Component tables: what a config can select, and what it is told when it cannot."""

import dataclasses
import json

import pytest
from flax import linen as nn

from jvdm.core.errors import UserError, unknown
from jvdm.core.registry import Registry


@pytest.fixture
def shapes():
    registry = Registry("shape")

    @registry.register("square")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Square:
        side: float = 1.0
        colour: str = "red"

        def __post_init__(self):
            if self.side <= 0:
                raise ValueError(f"side is {self.side}: it must be positive")

    @registry.register("net")
    class Net(nn.Module):
        width: int
        depth: int = 2
        sizes: tuple[int, ...] = (1, 2)

    return registry


def test_names_are_sorted(shapes):
    assert shapes.names() == ["net", "square"]


def test_spec_shows_every_option(shapes):
    assert dict(shapes.spec("square", side=2.0)) == {"name": "square", "side": 2.0, "colour": "red"}


def test_a_linen_module_has_only_its_own_options(shapes):
    assert dict(shapes.spec("net")) == {"name": "net", "depth": 2, "sizes": (1, 2)}


def test_build_uses_options_and_what_is_given(shapes):
    square = shapes.build(shapes.spec("square", colour="blue"))
    assert (square.side, square.colour) == (1.0, "blue")
    net = shapes.build(shapes.spec("net", depth=3), width=7)
    assert (net.width, net.depth) == (7, 3)


def test_a_list_as_json_writes_it_is_a_tuple(shapes):
    spec = json.loads(json.dumps(shapes.spec("net", sizes=(3,)).to_dict()))
    assert spec["sizes"] == [3]
    assert shapes.build(spec, width=7).sizes == (3,)
    with pytest.raises(UserError, match=r"^shape 'net': option sizes is 3, not a tuple$"):
        shapes.build(shapes.spec("net", sizes=3), width=7)


def test_build_leaves_the_spec_as_it_was(shapes):
    spec = shapes.spec("square")
    shapes.build(spec)
    assert spec.name == "square"


def test_an_overridden_option_reaches_the_component(shapes):
    spec = shapes.spec("square")
    spec.side = 5.0
    assert shapes.build(spec).side == 5.0


def test_component_is_the_registered_class(shapes):
    assert shapes.component("square").__name__ == "Square"


@pytest.mark.parametrize("method", ["spec", "component", "options"])
def test_unknown_name_gives_nearest_and_choices(shapes, method):
    with pytest.raises(UserError) as raised:
        getattr(shapes, method)("sqare")
    assert str(raised.value) == "unknown shape 'sqare'; did you mean 'square'? (choices: net, square)"


def test_unknown_option_gives_nearest_and_choices(shapes):
    expected = "unknown option of shape 'square': 'color'; did you mean 'colour'? (choices: colour, side)"
    with pytest.raises(UserError) as raised:
        shapes.spec("square", color="blue")
    assert str(raised.value) == expected
    spec = shapes.spec("square").unlock()
    spec.color = "blue"
    with pytest.raises(UserError) as raised:
        shapes.build(spec)
    assert str(raised.value) == expected


def test_a_given_field_is_not_an_option(shapes):
    with pytest.raises(UserError, match="width"):
        shapes.spec("net", width=3)


def test_a_refused_value_is_a_user_error_with_its_reason(shapes):
    with pytest.raises(UserError, match=r"^shape 'square': side is -1.0: it must be positive$"):
        shapes.build(shapes.spec("square", side=-1.0))


def test_a_fragment_without_name_is_a_user_error(shapes):
    spec = shapes.spec("square").unlock()
    del spec["name"]
    with pytest.raises(UserError, match="unknown shape None"):
        shapes.build(spec)


def test_a_name_is_registered_once(shapes):
    with pytest.raises(KeyError, match="twice"):
        shapes.register("net")(int)


def test_far_names_have_no_hint():
    assert str(unknown("shape", "zzz", ["net"])) == "unknown shape 'zzz' (choices: net)"
    assert str(unknown("shape", "zzz", [])) == "unknown shape 'zzz' (choices: none)"
