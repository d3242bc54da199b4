"""Read a pickle without executing anything that it names.

A pickle is a program for a machine with a stack and a memo. Python's own reader imports the names that it
meets, and calls them. Here

    1. a name is a `Global` and stays one: nothing is imported
    2. an instance of a class (NEWOBJ, NEWOBJ_EX, copyreg._reconstructor) is a `Record`, and its state (BUILD)
       is kept as it is
    3. only `calls`, and those that make Python's containers, can be called (REDUCE, INST, OBJ)
    4. other names of the standard library are refused even where nothing calls them

Time and memory are bounded by the length of the pickle: instructions are counted, and with them what a call
copies. Keys are plain values or compared by identity (`jvdm.importers.inert_values`).

Why not a subclass of `pickle.Unpickler`, with an allow-listing `find_class`: no hook sees a key being hashed,
the memo growing or BUILD setting attributes. Measured on Python 3.11 to 3.13 with such a subclass,

    a tuple doubled 100 times as a key, 500 bytes      does not end; neither does a frozenset of one
    a tuple nested 200,000 times as a key              overflows the C stack: the process dies
    60,000 integers of one hash as keys, 700 kB        more than 10 s
    an entry of the memo at 2^27, 7 bytes              2 GB; the largest index asks for 64 GB
    a tensor as a key                                  TypeError, but optimizers are saved with such keys

The first four are refused or harmless here; `tests/importers/test_inert_pickle.py` has the files.
"""

import pickletools
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jvdm.importers.inert_values import Global, Keys, Record, Refused, kind, latin1, sequence
from jvdm.importers.messages import brief

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


def loads(
    data: bytes,
    *,
    calls: Mapping[Name, Callable[..., Any]],
    values: Mapping[Name, Any],
    persistent: Callable[[Any], Any],
) -> Any:
    """What a pickle holds.

    Args:
        data: the pickle.
        calls: what may be called, by name; each raises `Refused` for wrong arguments, TypeError for a wrong
            number of them.
        values: names that stand for a value.
        persistent: an id that is defined outside the pickle -> the object.

    Raises:
        Refused: it is not a pickle, names or calls what it may not, or would take too much time or memory.
    """
    if len(data) > _MAX_BYTES:
        raise Refused(f"the pickle has {len(data)} bytes; the limit is {_MAX_BYTES}")
    return _Machine(calls, values, persistent).run(data)


class _Machine:
    def __init__(self, calls, values, persistent):
        self.keys = Keys()
        self.calls = {
            ("builtins", "dict"): self.keys.mapping,
            ("builtins", "frozenset"): lambda items=(): frozenset(self.keys.many(items)),
            ("builtins", "list"): lambda items=(): list(sequence(items)),
            ("builtins", "set"): lambda items=(): set(self.keys.many(items)),
            ("collections", "Counter"): self.keys.mapping,
            ("collections", "OrderedDict"): self.keys.mapping,
            ("collections", "defaultdict"): lambda factory=None: {},
            ("copyreg", "_reconstructor"): self.reconstruct,
            ("copyreg", "__newobj__"): lambda cls, *args: self.instance(cls, args),
            ("_codecs", "encode"): latin1,
            **calls,
        }
        self.values = values
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.work = 0

    def run(self, data: bytes) -> Any:
        try:
            with warnings.catch_warnings():  # about odd escapes in text
                warnings.simplefilter("ignore")
                for opcode, argument, _ in pickletools.genops(data):
                    if opcode.name != "STOP":  # the last one
                        self.charge(1)
                        self.step(opcode.name, argument)
        except ValueError as error:  # of genops; nothing here raises it
            raise Refused(f"not a pickle ({brief(str(error))})") from error
        return self.pop()

    def charge(self, amount: int) -> None:
        self.work += amount
        if self.work > _MAX_INSTRUCTIONS:
            raise Refused(f"the pickle has more than {_MAX_INSTRUCTIONS} instructions")

    def step(self, name: str, argument: Any) -> None:
        """One instruction, except STOP."""
        push = self.stack.append
        match name:
            case "PROTO" | "FRAME":
                pass  # the version and the length of what follows change nothing that is read
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
                    raise Refused("corrupt: it refers to an entry that its memo lacks")
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
                items = frozenset(self.keys.many(self.pop_mark()))
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
                raise Refused(f"it uses the instruction {name}, which no checkpoint needs")

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

    def set_items(self, items: Sequence[Any]) -> None:
        if len(items) % 2:
            raise Refused("corrupt: a key has no value")
        target, pairs = self.top(), zip(items[::2], items[1::2], strict=True)
        if isinstance(target, dict):
            target.update({self.keys.one(key): value for key, value in pairs})
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
        target.update(self.keys.many(items))

    # Names, calls and instances.

    def find(self, module: Any, name: Any) -> Any:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused("corrupt: a name is not text")
        key = (_PYTHON_2.get(module, module), name)
        if key in self.values:
            return self.values[key]
        named = Global(*key)
        root = key[0].partition(".")[0]
        if root in _STANDARD_LIBRARY and key not in self.calls and key not in _HARMLESS:
            raise Refused(f"it names {named}, which is refused: nothing in a checkpoint is executed")
        return named

    def call(self, target: Any, args: Any) -> Any:
        if not isinstance(target, Global) or not isinstance(args, tuple):
            raise Refused(f"it calls {kind(target)} with {kind(args)}, which is refused")
        call = self.calls.get((target.module, target.name))
        if call is None:
            raise Refused(f"it calls {target}, which is refused: nothing in a checkpoint is executed")
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
        """Keep the state of a record; the attributes of a container or a tensor are dropped."""
        target = self.top()
        if isinstance(target, Record):
            target.state = state
        elif target is None or isinstance(target, (Global, str, bytes, int, float, complex, tuple)):
            raise Refused(f"corrupt: it builds {kind(target)}")
