"""Counts the kernels of a GPU program and the memory that they move, from its optimized HLO.

Every instruction of the entry is a kernel or a library call, except those in `FREE`, which launch
nothing. The rules:

1. A kernel reads each operand once and writes each result once. Values inside a fusion stay in
   registers. Caches are ignored: a kernel that reads what the last one wrote reads it again.
2. Inside a fusion, a slice or gather reads as many elements as it returns, and whatever feeds it is
   read in that proportion. Different slices of one operand add up, at most to the whole operand.
3. A `dynamic-update-slice` or `scatter` that XLA runs in place writes only the update. It is in
   place if it produces a result and its target is an operand: XLA copies the operand beforehand if
   it is still needed, and that copy is a kernel of its own.
4. The scratch memory of a library call is not counted.
5. The body of a loop counts as often as it runs, or once if the trip count is unknown. Of a
   conditional, the branch that moves most is counted.
6. Sizes are without padding.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import prod
from typing import NamedTuple

from benchmarks.hlo import (
    ARRAY,
    CALLED,
    Instruction,
    attribute,
    instructions,
    parts,
    size,
    trip_count,
)

FREE = {
    "add-dependency",
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}
SLICES = {"slice", "dynamic-slice", "gather"}
UPDATES = {"dynamic-update-slice", "scatter"}
Computations = Mapping[str, list[Instruction]]


class Kernel(NamedTuple):
    """A kernel or library call.

    Attributes:
        name: name of the instruction.
        opcode: of the instruction.
        read: bytes that one run reads.
        written: bytes that one run writes.
        runs: how often it runs in one call of the program.
    """

    name: str
    opcode: str
    read: int
    written: int
    runs: int = 1


def kernels(text: str) -> list[Kernel]:
    """All kernels of an optimized program, in the order of its text."""
    computations = defaultdict(list)
    for x in instructions(text):
        computations[x.computation].append(x)
    return launched(attribute(r"(?m)^ENTRY %?([\w.-]+)", text), computations)


def launches(found: Iterable[Kernel]) -> int:
    return sum(x.runs for x in found)


def traffic(found: Iterable[Kernel]) -> int:
    """Bytes read and written."""
    return sum(x.runs * (x.read + x.written) for x in found)


def launched(computation: str, computations: Computations) -> list[Kernel]:
    """The kernels that one run of `computation` launches."""
    found, types = [], {x.name: x.type for x in computations[computation]}
    for x in computations[computation]:
        if x.opcode in ("while", "conditional", "call", "async-start"):
            inner = [launched(name, computations) for name in called(x)]
            runs = trip_count(x, {}) if x.opcode == "while" else 1
            chosen = [max(inner, key=traffic)] if x.opcode == "conditional" else inner
            found += [one._replace(runs=runs * one.runs) for part in chosen for one in part]
        elif x.opcode not in FREE and not x.opcode.endswith("-done"):
            found.append(kernel(x, types, computations))
    return found


def kernel(x: Instruction, types: Mapping[str, str], computations: Computations) -> Kernel:
    """The kernel of one instruction, whose operands have the given types."""
    given = operands(x)
    if x.opcode == "fusion":
        body = computations[called(x)[0]]
    else:
        numbered = enumerate(given)
        body = [Instruction("", y, types[y], "parameter", f"{i})") for i, y in numbered] + [x]
    updates = updates_in_place(body)
    read: dict[str, int] = {}
    for i, size_read in reads(body, updates).items():
        # A kernel may be given the same array twice.
        read[given[i]] = max(size_read, read.get(given[i], 0))
    return Kernel(x.name, x.opcode, sum(read.values()), written(body, updates))


def reads(body: list[Instruction], updates: Mapping[str, list[Instruction]]) -> dict[int, int]:
    """Bytes that a fused computation reads of each parameter, by the parameter's number."""
    types = {x.name: x.type for x in body}
    in_place = {x.name for chain in updates.values() for x in chain}
    # The elements of each instruction that are needed, by the slice that takes them. The key is ""
    # if the reader is not a slice.
    needed: dict[str, dict[str, int]] = defaultdict(dict)
    for x in results(body):
        needed[x.name] = {"": elements(x.type)}
    found = {}
    # Operands come before their readers.
    for x in reversed(body):
        own, needs = elements(x.type), needed[x.name]
        taken = min(sum(needs.values()), own)
        if x.opcode == "parameter":
            found[int(x.rest.partition(")")[0])] = size(x.type) * taken // max(own, 1)
        for i, y in enumerate(operands(x)):
            count = elements(types[y])
            if i == 0 and x.opcode in SLICES:
                need = {x.name: taken}
            elif i == 0 and x.name in in_place:
                # A scatter combines the update with the old numbers.
                need = {x.name: elements(update(x, types))} if x.opcode == "scatter" else {}
            elif count == own or x.opcode == "reduce":
                need = {reader: n * count // own for reader, n in needs.items()}
            else:
                need = {"": count}
            needed[y] |= need
    return found


def written(body: list[Instruction], updates: Mapping[str, list[Instruction]]) -> int:
    """Bytes that a fused computation writes."""
    types, total = {x.name: x.type for x in body}, 0
    for x in results(body):
        if chain := updates[x.name]:
            total += sum(size(update(y, types)) for y in chain)
            continue
        arrays = parts(x.type)
        if x.opcode == "custom-call" and len(arrays) > 1 and is_scratch(arrays[-1]):
            arrays.pop()
        # The type of an asynchronous copy is (destination, source, context).
        total += sum(map(size, arrays[:1] if x.opcode.endswith("-start") else arrays))
    return total


def updates_in_place(body: list[Instruction]) -> dict[str, list[Instruction]]:
    """For each result of a fused computation, the updates that XLA runs in place."""
    by_name, found = {x.name: x for x in body}, {}
    for result in results(body):
        chain, x = [], result
        while x.opcode in UPDATES or x.opcode == "bitcast":
            chain += [x] if x.opcode in UPDATES else []
            x = by_name[operands(x)[0]]
        found[result.name] = chain if x.opcode == "parameter" else []
    return found


def update(x: Instruction, types: Mapping[str, str]) -> str:
    """The type of the numbers that a `dynamic-update-slice` or `scatter` writes."""
    return types[operands(x)[1 if x.opcode == "dynamic-update-slice" else -1]]


def results(body: list[Instruction]) -> list[Instruction]:
    """The instructions that produce the results of a fused computation."""
    by_name, root = {x.name: x for x in body}, body[-1]
    return [by_name[y] for y in operands(root)] if root.opcode == "tuple" else [root]


def operands(x: Instruction) -> list[str]:
    if x.opcode in ("parameter", "constant"):
        return []
    return [y.split("%")[-1] for y in x.rest.partition(")")[0].split(", ") if "%" in y]


def called(x: Instruction) -> list[str]:
    groups = CALLED.findall(x.rest)
    return [name for group in groups for name in group.strip("{}").replace("%", "").split(", ")]


def is_scratch(type_: str) -> bool:
    """Whether a type is an array of bytes, which libraries use for scratch memory."""
    array = ARRAY.search(type_)
    return array is not None and array[1] in ("s8", "u8") and "," not in array[3]


def elements(type_: str) -> int:
    return sum(prod(int(n) for n in array[2].split(",") if n) for array in ARRAY.findall(type_))
