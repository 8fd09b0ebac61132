"""Every exchange between devices in a compiled program, read from its text."""

import collections
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from smf_jax.plan.groups import axes_of_groups, axes_of_pairs, read_groups, read_pairs

KINDS = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
_BITS = {"pred": 8, "bf16": 16}  # the others end in their bits: f32, s8, u4, c64
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?[\w.\-]+ = (.*)")
_CALLED = re.compile(r"\b(?:calls|to_apply|\w+_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_WHILE = re.compile(r"\bcondition=%?([\w.\-]+), body=%?([\w.\-]+)")
_CHAIN = re.compile(r'frontend_attributes=\{[^}]*chain_id="(\w+)"')
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One kind of exchange, as often as it happens in a step."""

    kind: str  # one of KINDS
    arrays: tuple[str, ...]  # that a device holds afterwards, like f32[8,256]
    ways: int  # devices that exchange with one another
    axes: tuple[str, ...] | None  # of the mesh, along which; None: of no such shape
    times: int | None  # a step; None: in a loop whose length the program does not tell
    size: int  # bytes of the whole: the sum, what is gathered, or what is scattered
    sent: int  # bytes that a device sends each time, on a ring


def collectives(text: str, mesh: Mapping[str, int]) -> list[Collective]:
    """Returns the exchanges of a compiled program, the heaviest first.

    A loop's length is the one the compiler tells, or the constant that its counter is
    compared with: loops made by `jax.lax.scan` count from 0 by 1. Where the compiler
    does some rounds outside the loop, that is a few too many.

    Args:
      text: The program, as `compiled.as_text()` has it.
      mesh: Devices along each axis of the mesh, in its order.

    Raises:
      ValueError: It names who exchanges with whom in an unknown way.
    """
    computations, entry = _computations(text)
    rounds = {}
    for place, (line, times, scattered) in enumerate(_walk(computations, entry, 1)):
        # The beginning, the middle and the end of one exchange are of one chain.
        chain = _CHAIN.search(line)
        key = _read(line, mesh, scattered), chain[1] if chain else place
        rounds[key] = max(times, rounds.get(key, 0))
    counts = collections.Counter()
    for (each, _), times in rounds.items():
        counts[each, times == math.inf] += times
    found = [
        each._replace(times=None if endless else times)
        for (each, endless), times in counts.items()
    ]
    return sorted(found, key=lambda each: (-each.sent * (each.times or 1), each.kind))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Returns the instructions of each computation, its result last, and the first."""
    parts, entry, lines = {}, "", []
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            lines = parts[header[2]] = []
            entry = header[2] if header[1] else entry
        elif instruction := _INSTRUCTION.match(line):
            # Nothing is told by their order but which of them is the result.
            place = len(lines) if instruction[1] or not lines else len(lines) - 1
            lines.insert(place, re.sub(r"/\*.*?\*/", "", instruction[2]))
    return parts, entry


def _walk(
    computations: dict[str, list[str]], name: str, times: int | float
) -> Iterator[tuple[str, int | float, str | None]]:
    """Yields each exchange, how often, and what a device keeps if it is not the sum.

    On TPU a sum of which each device keeps a part is a computation of its own.
    """
    scatters = name.startswith("all-reduce-scatter")
    scattered = _split(computations[name][-1])[0] if scatters else None
    for line in computations[name]:
        if _opcode(line).removesuffix("-start") in KINDS:
            yield line, times, scattered
            continue  # what it applies is a sum of two numbers
        if loop := _WHILE.search(line):
            rounds = _rounds(line, computations[loop[1]])
            yield from _walk(computations, loop[2], times * rounds)
        called = _CALLED.findall(line)
        for branches in _BRANCHES.findall(line):
            called += [branch.strip().lstrip("%") for branch in branches.split(",")]
        for callee in called:
            yield from _walk(computations, callee, times)


def _rounds(line: str, condition: list[str]) -> int | float:
    if told := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line):
        return int(told[1])
    last = condition[-1]
    constants = [int(n) for each in condition for n in _constant(each)]
    if " compare(" in last and "direction=LT" in last and len(constants) == 1:
        return constants[0]
    return math.inf


def _constant(line: str) -> list[str]:
    return re.findall(r"^s32\[\]\S* constant\((\d+)\)", line)


def _split(line: str) -> tuple[str, str]:
    """Returns the type of an instruction's result, and what follows it."""
    if not line.startswith("("):
        result, _, rest = line.partition(" ")
        return result, rest
    depth = itertools.accumulate((c == "(") - (c == ")") for c in line)
    end = next(place for place, open_ in enumerate(depth) if open_ == 0)
    return line[: end + 1], line[end + 1 :].lstrip()


def _opcode(line: str) -> str:
    return _split(line)[1].partition("(")[0]


def _parts(result: str) -> list[str]:
    """Returns the members of a tuple's type."""
    parts, depth = [""], 0
    for letter in result[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _read(line: str, mesh: Mapping[str, int], scattered: str | None) -> Collective:
    result, rest = _split(line)
    opcode = rest.partition("(")[0]
    kind = opcode.removesuffix("-start")
    if opcode != kind and kind != "all-reduce" and result.startswith("("):
        result = _parts(result)[1]  # the first is what goes in
    size = _bytes(result)
    if kind == "collective-permute":
        ways, axes = 2, axes_of_pairs(read_pairs(rest), mesh)
    else:
        groups = read_groups(rest, math.prod(mesh.values()))
        ways, axes = len(groups[0]), axes_of_groups(groups, mesh)
    if kind == "reduce-scatter":
        size *= ways
    if scattered is not None:
        kind, result = "reduce-scatter", scattered
    sent = _sent(kind, size, ways)
    names = tuple(array[0] for array in _ARRAY.finditer(result))
    return Collective(kind, names, ways, axes, None, size, sent)


def _bytes(result: str) -> int:
    total = 0
    for name, sides in _ARRAY.findall(result):
        bits = _BITS.get(name) or int(re.search(r"\d+", name)[0])
        total += math.prod(int(side) for side in sides.split(",") if side) * bits // 8
    return total


def _sent(kind: str, size: int, ways: int) -> int:
    """Source: Thakur et al. 2005, Optimization of Collective Communication in MPICH."""
    if kind.startswith("collective"):
        return size
    rounds = 2 if kind == "all-reduce" else 1
    return rounds * size * (ways - 1) // ways
