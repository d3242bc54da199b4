"""Component tables: what a config can select, and what it is told when it cannot."""

import dataclasses
import json
import re
from typing import Any, ClassVar, Protocol

import pytest
from flax import linen as nn

from jvdm.core import options
from jvdm.core.errors import UserError, unknown
from jvdm.core.options import option
from jvdm.core.registry import Registry


class Anything(Protocol):
    """A contract that every class fulfils."""


@pytest.fixture
def shapes():
    registry = Registry("shape", Anything)

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


class Shape(Protocol):
    """A contract with two members that are required and two that are not."""

    sides: int
    is_convex: ClassVar[bool] = False
    inverse = None

    def __call__(self, x): ...

    @property
    def area(self): ...


def registered(component, protocol: type = Shape):
    registry = Registry("shape", protocol)
    return registry, registry.register("mine")(component)


def test_what_a_component_lacks_is_said_when_it_is_registered():
    @dataclasses.dataclass(frozen=True)
    class Empty:
        pass

    with pytest.raises(TypeError, match="^shape 'mine' lacks sides, __call__, area$"):
        registered(Empty)

    class NoDataclass:
        pass

    with pytest.raises(TypeError, match="^shape 'mine' is neither a dataclass nor a linen module$"):
        registered(NoDataclass)


class Methods:
    """The members of `Shape` that are no value."""

    def __call__(self, x):
        return x

    @property
    def area(self):
        return 1.0


@dataclasses.dataclass(frozen=True)
class WithOption(Methods):
    sides: int = 3


@dataclasses.dataclass(frozen=True)
class WithGiven(Methods):
    sides: int


@dataclasses.dataclass(frozen=True)
class WithConstant(Methods):
    sides: ClassVar[int] = 3


@dataclasses.dataclass(frozen=True)
class WithProperty(Methods):
    @property
    def sides(self):
        return 3


class WithModule(Methods, nn.Module):
    sides: int


@pytest.mark.parametrize("component", [WithOption, WithGiven, WithConstant, WithProperty, WithModule])
def test_a_member_may_be_any_kind_of_field_or_a_property(component):
    registry, _ = registered(component)
    assert registry.component("mine") is component


def test_capabilities_that_a_component_does_not_state_are_those_of_the_protocol():
    @dataclasses.dataclass(frozen=True)
    class Convex(WithConstant):
        is_convex: ClassVar[bool] = True

        def inverse(self, y):
            return y

    @dataclasses.dataclass(frozen=True)
    class Plain(WithConstant):
        pass

    registry, _ = registered(Plain)
    registry.register("convex")(Convex)
    plain: Any = Plain()
    assert (plain.is_convex, plain.inverse) == (False, None)
    assert Convex().is_convex and Convex().inverse(2) == 2
    assert registry.names(lambda c: c.is_convex) == ["convex"]
    assert registry.names() == ["convex", "mine"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounded:
    low: int = option(2, low=1)
    both: float = option(0.5, low=0.0, high=1.0)
    open: float = option(0.5, above=0.0, below=1.0)
    half: float = option(0.5, low=0.0, below=1.0)
    positive: float = option(0.5, above=0.0)
    colour: str = option("red", choices=("red", "blue"), help="of the inside")
    free: str = "anything"

    def __post_init__(self):
        options.check(self)


class BoundedNet(nn.Module):
    low: int = option(2, low=1)
    dtype: str = option("float32", choices=("float32", "bfloat16"), part_of_model=False)

    def __post_init__(self):
        options.check(self)
        super().__post_init__()


@pytest.mark.parametrize(
    ("component", "name", "value", "message"),
    [
        (Bounded, "low", 0, "low is 0: give 1 or more"),
        (Bounded, "both", 1.5, "both is 1.5: give a number from 0 to 1"),
        (Bounded, "both", -1, "both is -1: give a number from 0 to 1"),
        (Bounded, "both", float("nan"), "both is nan: give a number from 0 to 1"),
        (Bounded, "open", 0.0, "open is 0.0: give a number between 0 and 1"),
        (Bounded, "open", 1.0, "open is 1.0: give a number between 0 and 1"),
        (Bounded, "half", 1.0, "half is 1.0: give 0 or more, below 1"),
        (Bounded, "positive", 0.0, "positive is 0.0: give a positive number"),
        (Bounded, "colour", "rad", "unknown colour 'rad'; did you mean 'red'? (choices: blue, red)"),
        (BoundedNet, "low", 0, "low is 0: give 1 or more"),
        (BoundedNet, "dtype", "int8", "unknown dtype 'int8' (choices: bfloat16, float32)"),
    ],
)
def test_ranges_and_choices_hold_for_build_and_for_the_class_itself(component, name, value, message):
    registry, _ = registered(component, Anything)
    with pytest.raises(UserError) as refused:
        registry.build(registry.spec("mine", **{name: value}))
    assert str(refused.value) == f"shape 'mine': {message}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        component(**{name: value})


def test_build_checks_options_of_a_class_that_does_not():
    @dataclasses.dataclass(frozen=True)
    class Careless:
        size: int = option(1, low=1)

    registry, _ = registered(Careless, Anything)
    with pytest.raises(UserError, match="^shape 'mine': size is 0: give 1 or more$"):
        registry.build(registry.spec("mine", size=0))


def test_values_at_the_ends_of_a_range_are_in_it():
    lowest = Bounded(low=1, both=0.0, half=0.0)
    assert (lowest.low, lowest.both, lowest.half) == (1, 0.0, 0.0)
    others = Bounded(both=1.0, open=1e-30, positive=1e30, colour="blue", free="")
    assert (others.both, others.open, others.colour, others.free) == (1.0, 1e-30, "blue", "")


def test_metadata_of_a_component():
    registry, _ = registered(Bounded, Anything)
    assert registry.options("mine")["colour"] == "red"
    known = registry.metadata("mine")
    assert known["colour"].help == "of the inside" and known["colour"].limits() == "red | blue"
    assert known["free"].limits() == "" and known["low"].limits() == "1 or more"
    registry, _ = registered(BoundedNet, Anything)
    assert list(registry.metadata("mine")) == ["low", "dtype"]
    assert not registry.metadata("mine")["dtype"].part_of_model


class Makes(Protocol):
    """A contract with a class method and a static one."""

    size: int

    @classmethod
    def make(cls) -> Any:
        """One of them."""
        ...

    @staticmethod
    def unit() -> str:
        """Of the size."""
        ...


def test_methods_of_the_class_are_required_too():
    @dataclasses.dataclass(frozen=True)
    class Without:
        size: int = 1

    with pytest.raises(TypeError, match="shape 'mine' lacks make, unit"):
        registered(Without, Makes)
