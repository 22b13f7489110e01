"""What devices tell each other in a compiled program, read off its text.

A collective counts once, wherever it stands: in the entry, in the body of a loop, in a fusion or
in what an asynchronous instruction wraps. One that is cut into pieces counts once as well: the
halves of an asynchronous pair, and the fusions that a TPU program spreads a transfer over, which
all bear the same channel. How often it runs is the product of the trip counts of the loops
around it.
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
    """An exchange of numbers between devices.

    Attributes:
        kind: one of `KINDS`.
        bytes: of what a device holds before or after, whichever is more.
        runs: how often it happens in one call of the program.
        name: of the operation that the program was traced from.
        replicas: which devices take part together, as the compiler writes it.
    """

    kind: str
    bytes: int
    runs: int
    name: str
    replicas: str


def collectives(text: str) -> list[Collective]:
    """All of an optimized program's, in the order of its text."""
    lines = instructions(text)
    types = {(x.computation, x.name): x.type for x in lines}
    runs, found = how_often(lines), {}
    for x in lines:
        kind = x.opcode.removesuffix("-start")
        if kind in KINDS:
            channel = attribute(r"channel_id=(\d+)", x.rest) or f"{x.computation}/{x.name}"
            # TPUs fuse an all-reduce with the slice that is left of it: a reduce-scatter.
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
    """All lines but those that open and close computations."""
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
            # What nothing calls is the entry.
            runs[name] = sum(n * count(x) for x, n in callers[name]) if name in callers else 1
        return runs[name]

    for x in lines:
        count(x.computation)
    return runs


def trip_count(loop: Instruction, bounds: dict[str, list[int]]) -> int:
    """As the compiler notes it; or else the one number that the condition compares with.

    A loop of which neither is known counts once.
    """
    if known := attribute(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known)
    bound = bounds.get(attribute(r"condition=%?([\w.-]+)", loop.rest), [])
    return bound[0] if len(bound) == 1 else 1


def attribute(pattern: str, rest: str) -> str:
    """The group of a pattern, or nothing."""
    found = re.search(pattern, rest)
    return found[1] if found else ""


def parts(type_: str) -> list[str]:
    """The elements of a tuple's type; of another type, itself."""
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
