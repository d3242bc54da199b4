"""What a compiled program does, read from its text: convolutions, bytes, collectives, copies, large arrays.

The text is XLA's optimised HLO. A loop whose number of rounds is known counts its body as often; any other,
such as the steps of an adaptive solver, counts once, and `Program.open_loops` says how many there are.
Bytes are those that each instruction reads and writes, so that what stays in a cache is counted as if it did
not. Of an array that a fusion only slices, or updates a slice of, the slice is counted.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {
    "pred": 8,
    "s4": 4,
    "u4": 4,
    "s8": 8,
    "u8": 8,
    "bf16": 16,
    "f16": 16,
    "f32": 32,
    "s32": 32,
    "u32": 32,
}
_BITS |= {"s16": 16, "u16": 16, "f64": 64, "s64": 64, "u64": 64, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%(\S+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(.*\) -> .* \{$")
_OPERATION = re.compile(r"^(?P<shape>\(.*?\)|\S+) (?P<op>[\w-]+)\((?P<arguments>.*?)\)(?P<rest>, .*)?$")

# Instructions that move nothing.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"}
_CALLS = {"while", "conditional", "call"}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_WINDOW = re.compile(r"window=\{size=[\dx]*[2-9]")
_CUDNN_CONVOLUTION = re.compile(r'custom_call_target="__cudnn\$conv(\w+)"')


def num_bytes(shape: str) -> int:
    """Of all arrays in a shape, such as `(f32[2,3]{1,0}, u8[0]{0})`."""
    return sum(
        math.prod(map(int, filter(None, dimensions.split(",")))) * _BITS.get(kind, 32) // 8
        for kind, dimensions in _ARRAY.findall(shape)
    )


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: without %.
        shape: of the result, as text.
        op: such as "fusion".
        operands: names.
        rest: attributes, as text; of a constant its value, of a parameter its index.
        is_root: it is the computation's result.
    """

    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    @functools.cached_property
    def source(self) -> str:
        """The JAX operation that it was made for."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else self.name

    def called(self, attribute: str) -> list[str]:
        """Names of computations after `attribute=`."""
        found = re.search(rf"\b{attribute}=(?:\{{([^}}]*)\}}|%(\S+?)(?:,|$))", self.rest)
        return re.findall(r"[^%,\s]+", found[1] or found[2]) if found else []


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one kind of instruction does in a run of the program.

    Attributes:
        count: how often it runs.
        bytes: of its results, added up.
        largest: bytes of its largest result.
    """

    count: int = 0
    bytes: int = 0
    largest: int = 0

    def plus(self, times: int, size: int) -> "Cost":
        """With so many more runs of an instruction whose result has that size."""
        return Cost(self.count + times, self.bytes + times * size, max(self.largest, size))


class Program:
    """A compiled program.

    Args:
        text: of `compiled.as_text()`.

    Attributes:
        open_loops: how many loops' rounds XLA does not know.
    """

    def __init__(self, text: str):
        self._computations: dict[str, dict[str, Instruction]] = {}
        self._entry = ""
        inside: dict[str, Instruction] = {}
        for line in text.splitlines():
            if opening := _COMPUTATION.match(line):
                inside = self._computations[opening[2]] = {}
                self._entry = opening[2] if opening[1] else self._entry
            elif instruction := _parse(line):
                inside[instruction.name] = instruction
        self.open_loops = 0
        self._runs = list(self._walk(self._entry, 1))

    def _walk(self, name: str, times: int) -> Iterator[tuple[str, Instruction, int]]:
        """(computation, instruction, how often it runs) of everything outside of fusions."""
        for each in self._computations[name].values():
            yield name, each, times
            if each.op == "while":
                rounds = self._rounds(each)
                self.open_loops += not rounds
                yield from self._walk(each.called("body")[0], times * (rounds or 1))
            elif each.op in ("conditional", "call"):
                # One branch runs: the last, of a conditional of which XLA knows nothing.
                branches = each.called("branch_computations") or each.called("false_computation")
                yield from self._walk((branches or each.called("to_apply"))[-1], times)

    def _rounds(self, loop: Instruction) -> int:
        """How often a loop runs, as XLA notes it or as its condition counts; 0 is unknown.

        The counters of JAX's scans begin at 0 and go up by 1.
        """
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known[1])
        within = self._computations[loop.called("condition")[0]]
        root = next(i for i in within.values() if i.is_root)
        if root.op == "fusion":
            # Its constants may be outside, as operands.
            inside = self._computations[root.called("calls")[0]]
            parameters = sorted((int(i.rest), i.name) for i in inside.values() if i.op == "parameter")
            outside = {
                name: within[o] for (_, name), o in zip(parameters, root.operands, strict=True) if o in within
            }
            within = {**inside, **outside}
            root = next(i for i in inside.values() if i.is_root)
        if root.op == "compare" and "direction=LT" in root.rest:
            limit = within.get(root.operands[1])
            if limit and limit.op == "constant" and limit.rest.isdigit():
                return int(limit.rest)
        return 0

    def convolutions(self) -> dict[str, Cost]:
        """By kind: "convolution", or cuDNN's "BackwardFilter" and so on."""
        costs: dict[str, Cost] = {}
        for name, each, times in self._runs:
            for _, inner in self._with_fused(name, each):
                found = _CUDNN_CONVOLUTION.search(inner.rest) if inner.op == "custom-call" else None
                # For a TPU a matrix product is a convolution too, without a window.
                if (inner.op == "convolution" and _WINDOW.search(inner.rest)) or found:
                    kind = found[1] if found else "convolution"
                    costs[kind] = costs.get(kind, Cost()).plus(times, num_bytes(inner.shape))
        return costs

    def collectives(self) -> dict[str, Cost]:
        """By kind."""
        costs: dict[str, Cost] = {}
        for _, each, times in self._runs:
            kind = each.op.removesuffix("-start")
            if kind in COLLECTIVES:
                costs[kind] = costs.get(kind, Cost()).plus(times, num_bytes(each.shape))
        return costs

    def copies(self) -> Cost:
        """Copies and transposes, alone or as the whole of a fusion: changes of layout."""
        cost = Cost()
        for name, each, times in self._runs:
            ops = {inner.op for _, inner in self._with_fused(name, each)} - _FREE - {"fusion", "fusion-start"}
            if ops and ops <= {"copy", "transpose", "copy-start", "copy-done"}:
                cost = cost.plus(times, num_bytes(each.shape))
        return cost

    def bytes_moved(self) -> int:
        """Read and written, in one run of the program."""
        return sum(
            times * self._bytes_of(name, each)
            for name, each, times in self._runs
            if each.op not in _FREE | _CALLS and not each.op.endswith("-done")
        )

    def largest(self, count: int) -> list[tuple[int, str, str]]:
        """(bytes, shape, JAX operation) of the largest arrays that instructions make."""
        arrays = {}
        for _, each, _ in self._runs:
            if each.op in _FREE:
                continue
            for kind, dimensions in _ARRAY.findall(each.shape):
                shape = f"{kind}[{dimensions}]"
                arrays.setdefault(shape, (num_bytes(shape), shape, each.source))
        return sorted(arrays.values(), reverse=True)[:count]

    def _with_fused(self, name: str, each: Instruction) -> Iterator[tuple[str, Instruction]]:
        yield name, each
        for inside in each.called("calls"):  # of a fusion, or of what begins one beside other work
            for inner in self._computations[inside].values():
                yield from self._with_fused(inside, inner)

    def _bytes_of(self, name: str, each: Instruction) -> int:
        within = self._computations[name]
        if each.op == "dynamic-slice":
            return 2 * num_bytes(each.shape)
        if each.op == "dynamic-update-slice":
            return 2 * num_bytes(within[each.operands[1]].shape)
        inside = each.called("calls")
        if not inside:
            return num_bytes(each.shape) + sum(
                num_bytes(within[o].shape) for o in each.operands if o in within
            )
        return _bytes_of_fusion(self._computations[inside[0]])


def _bytes_of_fusion(fused: dict[str, Instruction]) -> int:
    """Read and written by the instructions of a fusion, taken together."""

    def origin(name):
        while fused[name].op == "bitcast":
            (name,) = fused[name].operands
        return name

    users = [i for i in fused.values() if i.op != "bitcast"]
    (root,) = (i for i in fused.values() if i.is_root)
    total = 0
    for parameter in (i.name for i in users if i.op == "parameter"):
        for each in (i for i in users if parameter in map(origin, i.operands)):
            if each.op == "dynamic-slice":
                total += num_bytes(each.shape)
            elif each.op != "dynamic-update-slice" or parameter in map(origin, each.operands[1:]):
                total += num_bytes(fused[parameter].shape)
                break
    for result in root.operands if root.op == "tuple" else [root.name]:
        made = fused[origin(result)]
        total += num_bytes(fused[made.operands[1]].shape if made.op == "dynamic-update-slice" else made.shape)
    return total


def _parse(line: str) -> Instruction | None:
    head = _INSTRUCTION.match(line)
    body = _OPERATION.match(head[3]) if head else None
    if not (head and body):
        return None
    operands = tuple(re.findall(r"%([^\s,()]+)", body["arguments"]))
    rest = body["arguments"] if body["op"] in ("constant", "parameter") else body["rest"] or ""
    return Instruction(head[2], body["shape"], body["op"], operands, rest, bool(head[1]))
