"""Reads the collectives of a compiled program from its text.

A collective counts once, whether it is in the entry, in the body of a loop, in a fusion or in an
asynchronous instruction. One that is split counts once too: an asynchronous pair, or a transfer
that a TPU program spreads over several fusions with the same channel. The number of runs is the
product of the trip counts of the loops around it.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation|"
    r"(?:branch|called)_computations)=(\{[^}]*\}|%?[\w.-]+)"
)


class Instruction(NamedTuple):
    """One line: `name = type opcode(rest`, in a computation."""

    computation: str
    name: str
    type: str
    opcode: str
    rest: str


class Collective(NamedTuple):
    """One collective operation of a program.

    Attributes:
        kind: one of `KINDS`.
        bytes: size of the input or the output on a device, the larger of both.
        runs: how often it runs in one call of the program.
        name: name of the traced operation that it comes from.
        replicas: which devices take part together, as the compiler writes it.
    """

    kind: str
    bytes: int
    runs: int
    name: str
    replicas: str


def collectives(text: str) -> list[Collective]:
    """All collectives of an optimized program, in the order of its text."""
    lines = instructions(text)
    types = {(x.computation, x.name): x.type for x in lines}
    runs, found = how_often(lines), {}
    for x in lines:
        kind = x.opcode.removesuffix("-start")
        if kind in KINDS:
            channel = attribute(r"channel_id=(\d+)", x.rest) or f"{x.computation}/{x.name}"
            # TPUs fuse an all-reduce with the slice that follows it: a reduce-scatter.
            kind = "reduce-scatter" if "all-reduce-scatter" in x.computation else kind
            operands = re.findall(r"%?([\w.-]+)", x.rest.partition(")")[0])
            given = sum(size(types.get((x.computation, name), "")) for name in operands)
            taken = max(map(size, parts(x.type) if x.opcode.endswith("-start") else [x.type]))
            one = Collective(
                kind,
                max(given, taken),
                runs[x.computation],
                attribute(r'op_name="([^"]*)"', x.rest),
                attribute(r"(?:replica_groups|source_target_pairs)=(.*?), [a-z_]+=", x.rest),
            )
            found.setdefault((kind, channel), one)
    return list(found.values())


def instructions(text: str) -> list[Instruction]:
    """All lines except those that open or close computations."""
    computation, found = "", []
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            computation = header[1]
        elif match := INSTRUCTION.match(line):
            found.append(Instruction(computation, *match.groups()))
    return found


def how_often(lines: Iterable[Instruction]) -> Counter[str]:
    """How often each computation runs in one call of the program."""
    callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    bounds: dict[str, list[int]] = defaultdict(list)
    for x in lines:
        if x.opcode == "constant" and x.type.startswith("s32[]"):
            bounds[x.computation].append(int(x.rest.partition(")")[0]))
    for x in lines:
        trips = trip_count(x, bounds) if x.opcode == "while" else 1
        for called in CALLED.findall(x.rest):
            for name in called.strip("{}").replace("%", "").split(", "):
                callers[name].append((x.computation, trips))
    runs: Counter[str] = Counter()

    def count(name: str) -> int:
        if name not in runs:
            # A computation without callers is the entry.
            runs[name] = sum(n * count(x) for x, n in callers[name]) if name in callers else 1
        return runs[name]

    for x in lines:
        count(x.computation)
    return runs


def trip_count(loop: Instruction, bounds: dict[str, list[int]]) -> int:
    """The compiler's trip count, or else the number that the condition compares with.

    If neither is known, the loop counts once.
    """
    if known := attribute(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known)
    bound = bounds.get(attribute(r"condition=%?([\w.-]+)", loop.rest), [])
    return bound[0] if len(bound) == 1 else 1


def attribute(pattern: str, rest: str) -> str:
    """The first group of a pattern, or an empty string."""
    found = re.search(pattern, rest)
    return found[1] if found else ""


def parts(type_: str) -> list[str]:
    """The element types of a tuple type. Any other type is its own only element."""
    if not type_.startswith("("):
        return [type_]
    found, depth = [""], 0
    for x in type_[1:-1]:
        depth += (x in "({[") - (x in ")}]")
        if x == "," and depth == 0:
            found.append("")
        else:
            found[-1] += x
    return found


def size(type_: str) -> int:
    """Bytes of all arrays in a type, without the padding of their layouts."""
    total = 0
    for _, bits, shape in ARRAY.findall(type_):
        count = math.prod(int(n) for n in shape.split(",") if n)
        total += -(-int(bits or 8) * count // 8)
    return total
