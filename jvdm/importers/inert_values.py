"""What a pickle holds once it has been read without executing anything.

Names and instances of classes are records of what the pickle says. Keys are plain values, or compared by
identity: the hash of a nested tuple can take time that is exponential in the length of the pickle, and
recursion as deep as the pickle is long.
"""

import dataclasses
from typing import Any

from jvdm.importers import messages
from jvdm.importers.messages import brief


class Refused(Exception):
    """What is wrong with a file, in one line."""


@dataclasses.dataclass(frozen=True)
class Global:
    """A name in a module, which was not looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return brief(f"{self.module}.{self.name}")


@dataclasses.dataclass(eq=False, repr=False)
class Record:
    """An instance of a class that was not looked up.

    Attributes:
        module, name: of the class.
        args: what the instance was made from; keyword arguments come last, as a dict, if there are any.
        state: what BUILD gave it, usually the dict of its attributes.
        items: what was appended to it, or set in it as (key, value).
    """

    module: str
    name: str
    args: tuple = ()
    state: Any = None
    items: list = dataclasses.field(default_factory=list)

    def __repr__(self) -> str:
        return f"<record of {brief(f'{self.module}.{self.name}')}>"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ByIdentity:
    """A key that is this very object, such as the parameter that an optimizer's state belongs to."""

    value: Any

    def __repr__(self) -> str:
        return f"<{kind(self.value)} as a key>"


def kind(value: Any) -> str:
    """What a value is, for messages."""
    return str(value) if isinstance(value, (Global, Record)) else messages.kind(value)


class Keys:
    """Turns values into keys of dicts and members of sets."""

    def __init__(self):
        self.identities: dict[int, ByIdentity] = {}

    def one(self, value: Any) -> Any:
        """The key for a value.

        Raises:
            Refused: a container, or a number whose hash many others share.
        """
        if value is None or isinstance(value, (str, bytes, bool, float, Global, Record, ByIdentity)):
            return value
        if isinstance(value, int) and -(2**63) <= value < 2**63:
            return value
        if isinstance(value, (int, complex, list, tuple, dict, set, frozenset, bytearray)):
            raise Refused(f"{kind(value)} is used as a key")
        return self.identities.setdefault(id(value), ByIdentity(value))

    def many(self, items: Any = ()) -> list[Any]:
        """The keys for the items of a sequence."""
        return [self.one(item) for item in sequence(items)]

    def mapping(self, items: Any = ()) -> dict:
        """dict, OrderedDict or Counter of a mapping, or of pairs."""
        if isinstance(items, dict):
            return dict(items)
        pairs = [sequence(pair) for pair in sequence(items)]
        if any(len(pair) != 2 for pair in pairs):
            raise Refused("corrupt: a mapping is not made of pairs")
        return {self.one(key): value for key, value in pairs}


def sequence(items: Any) -> Any:
    """The items, if they are some."""
    if not isinstance(items, (list, tuple, set, frozenset)):
        raise Refused(f"corrupt: {kind(items)} is not a sequence")
    return items


def latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """Bytes as protocol 2 writes them: a call of `_codecs.encode`."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused("corrupt: bytes are not encoded as Python does it")
    try:
        return text.encode("latin1")
    except UnicodeEncodeError as error:
        raise Refused("corrupt: bytes are above 255") from error
