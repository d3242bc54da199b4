"""Reads a pickle without running anything that it names.

A pickle is a program for a machine with a stack and a memo. Python's own reader imports the names that it
meets, and calls them. Here

    1. a name is a `Global` and stays one: nothing is imported
    2. an instance of a class (NEWOBJ, NEWOBJ_EX, copyreg._reconstructor) is a `Record`, and what it is built
       of (BUILD) is kept as it is
    3. a call (REDUCE, INST, OBJ) is one of `calls`, or of those that make Python's containers, or is refused
    4. of the standard library, other names than theirs are refused even where nobody calls them

Time and memory are bounded by the length of the pickle: instructions are counted, and with them what a call
copies. A key is a plain value or compared by identity, as the hash of a tuple can take time that is
exponential in the pickle's length, and recursion without end.
"""

import dataclasses
import pickletools
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Name = tuple[str, str]  # module, name in it

# Some 40 instructions and 200 bytes a tensor: fifty times the largest checkpoints of the known codes.
_MAX_INSTRUCTIONS = 4_000_000
_MAX_BYTES = 2**26
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_STANDARD_LIBRARY = sys.stdlib_module_names | {"commands", "popen2", "exceptions"}
# Names that an instance may be of, or that are handed to a call, not called themselves.
_HARMLESS = {
    ("argparse", "Namespace"),
    *(("builtins", name) for name in ("object", "int", "float", "complex", "bool", "str", "bytes", "tuple")),
}


class Refused(Exception):
    """What is wrong with a pickle, in one line."""


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
        args: what it was made of, keyword arguments last as a dict if there were any.
        state: what it was built of, usually the dict of its attributes.
        items: what was put in it as in a list, or as (key, value) as in a dict.
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


def brief(text: str) -> str:
    """At most 60 characters on one line."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")[1:-1]


def loads(
    data: bytes,
    *,
    calls: Mapping[Name, Callable[..., Any]],
    values: Mapping[Name, Any],
    persistent: Callable[[Any], Any],
) -> Any:
    """What the pickle holds.

    Args:
        data: the pickle.
        calls: what may be called, by name; they raise `Refused` if they do not like their arguments, and
            TypeError if it is their number.
        values: names that stand for a value.
        persistent: an id that only the pickle's surroundings know -> the object.

    Raises:
        Refused: it is not a pickle, or names or calls what it should not.
    """
    if len(data) > _MAX_BYTES:
        raise Refused(f"a pickle of {len(data)} bytes is longer than any that is known")
    return _Machine(calls, values, persistent).run(data)


class _Machine:
    def __init__(self, calls, values, persistent):
        self.calls = {
            ("builtins", "dict"): self.mapping,
            ("builtins", "frozenset"): lambda items=(): frozenset(self.keys(items)),
            ("builtins", "list"): lambda items=(): list(_sequence(items)),
            ("builtins", "set"): lambda items=(): set(self.keys(items)),
            ("collections", "Counter"): self.mapping,
            ("collections", "OrderedDict"): self.mapping,
            ("collections", "defaultdict"): lambda factory=None: {},
            ("copyreg", "_reconstructor"): self.reconstruct,
            ("copyreg", "__newobj__"): lambda cls, *args: self.instance(cls, args),
            ("_codecs", "encode"): _encode,
            **calls,
        }
        self.values = values
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.identities: dict[int, ByIdentity] = {}
        self.work = 0

    def run(self, data: bytes) -> Any:
        try:
            with warnings.catch_warnings():  # about odd escapes in text
                warnings.simplefilter("ignore")
                for opcode, argument, _ in pickletools.genops(data):
                    if opcode.name == "STOP":
                        return self.pop()
                    self.charge(1)
                    self.step(opcode.name, argument)
        except ValueError as error:  # of genops; nothing here raises it
            raise Refused(f"not a pickle ({brief(str(error))})") from error
        raise Refused("not a pickle (it has no end)")

    def charge(self, amount: int) -> None:
        self.work += amount
        if self.work > _MAX_INSTRUCTIONS:
            raise Refused(f"a pickle of more than {_MAX_INSTRUCTIONS} instructions")

    def step(self, name: str, argument: Any) -> None:
        """One instruction, except STOP."""
        push = self.stack.append
        match name:
            case "PROTO" | "FRAME":
                pass
            # Values and the memo.
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(name == "NEWTRUE")
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4" | "FLOAT" | "BINFLOAT":
                push(argument)
            case "STRING" | "BINSTRING" | "SHORT_BINSTRING" | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                push(argument)
            case "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BYTEARRAY8":
                push(argument)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.top()
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.top()
            case "GET" | "BINGET" | "LONG_BINGET":
                if argument not in self.memo:
                    raise Refused("corrupt: it refers to what it has not")
                push(self.memo[argument])
            # The stack.
            case "MARK":
                self.marked.append(self.stack)
                self.stack = []
            case "POP_MARK":
                self.pop_mark()
            case "POP":
                self.pop() if self.stack else self.pop_mark()
            case "DUP":
                push(self.top())
            # Containers.
            case "EMPTY_TUPLE":
                push(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = self.pop_many(int(name[-1]))
                push(items)
            case "TUPLE":
                items = tuple(self.pop_mark())
                self.stack.append(items)
            case "EMPTY_LIST":
                push([])
            case "LIST":
                items = self.pop_mark()
                self.stack.append(items)
            case "APPEND":
                item = self.pop()
                self.extend([item])
            case "APPENDS":
                items = self.pop_mark()
                self.extend(items)
            case "EMPTY_DICT":
                push({})
            case "DICT":
                items = self.pop_mark()
                self.stack.append({})
                self.set_items(items)
            case "SETITEM":
                self.set_items(self.pop_many(2))
            case "SETITEMS":
                self.set_items(self.pop_mark())
            case "EMPTY_SET":
                push(set())
            case "ADDITEMS":
                self.add(self.pop_mark())
            case "FROZENSET":
                items = frozenset(self.keys(self.pop_mark()))
                self.stack.append(items)
            # Names, calls, instances.
            case "GLOBAL":
                push(self.find(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                push(self.find(*self.pop_many(2)))
            case "REDUCE":
                push(self.call(*self.pop_many(2)))
            case "INST":
                args = tuple(self.pop_mark())
                self.stack.append(self.call(self.find(*argument.split(" ", 1)), args))
            case "OBJ":
                cls, *args = self.pop_mark() or [None]
                self.stack.append(self.call(cls, tuple(args)))
            case "NEWOBJ":
                push(self.instance(*self.pop_many(2)))
            case "NEWOBJ_EX":
                push(self.instance(*self.pop_many(3)))
            case "BUILD":
                self.build(self.pop())
            case "BINPERSID":
                push(self.persistent(self.pop()))
            case _:
                raise Refused(f"it has the instruction {name}, which no checkpoint needs")

    # The stack.

    def top(self) -> Any:
        if not self.stack:
            raise Refused("corrupt: its stack is empty")
        return self.stack[-1]

    def pop(self) -> Any:
        top = self.top()
        self.stack.pop()
        return top

    def pop_many(self, number: int) -> Any:
        return tuple([self.pop() for _ in range(number)])[::-1]

    def pop_mark(self) -> list[Any]:
        if not self.marked:
            raise Refused("corrupt: its stack has no mark")
        items, self.stack = self.stack, self.marked.pop()
        return items

    # Containers.

    def key(self, value: Any) -> Any:
        """A value as it may be a key or a member of a set."""
        if value is None or isinstance(value, (str, bytes, bool, float, Global, Record, ByIdentity)):
            return value
        if isinstance(value, int) and -(2**63) <= value < 2**63:
            return value
        if isinstance(value, (int, complex, list, tuple, dict, set, frozenset, bytearray)):
            raise Refused(f"a {type(value).__name__} is a key")
        return self.identities.setdefault(id(value), ByIdentity(value))

    def keys(self, items: Any) -> list[Any]:
        return [self.key(item) for item in _sequence(items)]

    def mapping(self, items: Any = ()) -> dict:
        """dict, OrderedDict or Counter of a mapping, or of pairs."""
        if isinstance(items, dict):
            return dict(items)
        pairs = [_sequence(pair) for pair in _sequence(items)]
        if any(len(pair) != 2 for pair in pairs):
            raise Refused("corrupt: a mapping is not of pairs")
        return {self.key(key): value for key, value in pairs}

    def set_items(self, items: Sequence[Any]) -> None:
        if len(items) % 2:
            raise Refused("corrupt: a key has no value")
        target, pairs = self.top(), zip(items[::2], items[1::2], strict=True)
        if isinstance(target, dict):
            target.update({self.key(key): value for key, value in pairs})
        elif isinstance(target, Record):
            target.items.extend(pairs)
        else:
            raise Refused(f"corrupt: it sets items of {kind(target)}")

    def extend(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, (list, Record)):
            raise Refused(f"corrupt: it appends to {kind(target)}")
        (target if isinstance(target, list) else target.items).extend(items)

    def add(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, set):
            raise Refused(f"corrupt: it adds to {kind(target)}")
        target.update(self.keys(items))

    # Names, calls and instances.

    def find(self, module: Any, name: Any) -> Any:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused("corrupt: a name is no text")
        key = (_PYTHON_2.get(module, module), name)
        if key in self.values:
            return self.values[key]
        named = Global(*key)
        root = key[0].partition(".")[0]
        if root in _STANDARD_LIBRARY and key not in self.calls and key not in _HARMLESS:
            raise Refused(f"it names {named}, which is refused: nothing in a checkpoint is run")
        return named

    def call(self, target: Any, args: Any) -> Any:
        if not isinstance(target, Global) or not isinstance(args, tuple):
            raise Refused(f"it calls {kind(target)} with {kind(args)}, which is refused")
        call = self.calls.get((target.module, target.name))
        if call is None:
            raise Refused(f"it calls {target}, which is refused: nothing in a checkpoint is run")
        copied = (str, bytes, list, tuple, dict, set, frozenset)
        self.charge(len(args) + sum(len(a) for a in args if isinstance(a, copied)))
        try:
            return call(*args)
        except TypeError as error:
            raise Refused(f"it calls {target} with {len(args)} arguments of the wrong kind") from error

    def instance(self, cls: Any, args: Any, keywords: Any = None) -> Record:
        if not isinstance(cls, Global) or not isinstance(args, tuple):
            raise Refused(f"it makes an instance of {kind(cls)} from {kind(args)}, which is refused")
        if keywords:
            self.charge(len(args))
            args = (*args, keywords)
        return Record(cls.module, cls.name, args)

    def reconstruct(self, cls: Any, base: Any, state: Any) -> Record:
        """Instances in protocols 0 and 1: `state` is the part of a built-in class that cls derives from."""
        return self.instance(cls, () if state is None else (state,))

    def build(self, state: Any) -> None:
        """Attributes of a container or of a tensor are left aside."""
        target = self.top()
        if isinstance(target, Record):
            target.state = state
        elif target is None or isinstance(target, (Global, str, bytes, int, float, complex, tuple)):
            raise Refused(f"corrupt: it builds {kind(target)}")


def kind(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, Global):
        return str(value)
    return repr(value) if isinstance(value, Record) else f"a {type(value).__name__}"


def _sequence(items: Any) -> Any:
    if not isinstance(items, (list, tuple, set, frozenset)):
        raise Refused(f"corrupt: {kind(items)} is not a sequence")
    return items


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Bytes in protocol 2."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused("corrupt: bytes are not encoded as Python does it")
    try:
        return text.encode("latin1")
    except UnicodeEncodeError as error:
        raise Refused("corrupt: bytes are above 255") from error
