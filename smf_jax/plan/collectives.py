"""The collectives of a compiled program, read from its HLO text."""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

KINDS = "all-reduce all-gather all-to-all reduce-scatter collective-permute".split()
_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
# Groups: root marker, name, result type, opcode, operands and attributes.
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)")
_CALLED = re.compile(r"\b(calls|to_apply|body|\w+_computations?)=(\{.*?\}|[%\w.\-]+)")
_CHAIN = re.compile(r'frontend_attributes=\{[^}]*chain_id="(\w+)"')
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{([\d,{}]*)\}")
_RESHAPED = re.compile(r"replica_groups=\[([\d,]+)\]<=([^ ]+)")
_OF_MESH = re.compile(r"replica_groups=mesh\[(.*?)\](, device_ids=\(.*?\))? \{(.*?)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """The collectives of one kind over the same mesh axes."""

    kind: str
    axes: tuple[str, ...]
    count: int  # executions per step
    sent: int  # bytes sent per device and step, on a ring


def collectives(text: str, mesh: Mapping[str, int]) -> list[Collective]:
    """Returns the collectives in `compiled.as_text()`, most bytes first.

    A loop of unknown length counts once; `jax.lax.scan` always has a known length.
    `mesh` is the size of each axis, in order.
    """
    computations = _parse(text)
    times = collections.Counter({list(computations)[-1]: 1})  # the entry comes last
    operations, runs = {}, {}
    for computation in reversed(computations):  # callers first
        for _, name, result, opcode, rest in computations[computation]:
            for attribute, callees in _CALLED.findall(rest):
                trips = _trip_count(rest, computations) if attribute == "body" else 1
                for callee in re.findall(r"[\w.\-]+", callees):
                    times[callee] += times[computation] * trips
            operations[name] = rest
            kind = opcode.removesuffix("-done")
            if kind not in KINDS:
                continue
            if kind != opcode:  # KIND-done: the groups are on its operand, KIND-start
                rest = operations[re.match(r"%?([\w.\-]+)", rest)[1]]
            groups = read_groups(rest, math.prod(mesh.values()))
            size, ways = _bytes(result), groups.shape[1]
            if computation.startswith("all-reduce-scatter"):  # a fusion on TPU
                kind, size = "reduce-scatter", size // ways
            # On TPU, several instructions with one chain id are a single collective.
            chain = _CHAIN.search(rest)
            key = kind, axes_of(groups, mesh), _sent(kind, size, ways)
            key = (*key, chain[1] if chain else name)
            runs[key] = max(times[computation], runs.get(key, 0))
    counts, total = collections.Counter(), collections.Counter()
    for (kind, axes, sent, _), count in runs.items():
        counts[kind, axes] += count
        total[kind, axes] += count * sent
    return [Collective(*key, counts[key], sent) for key, sent in total.most_common()]


def axes_of(
    groups: Int[np.ndarray, "groups ways"], mesh: Mapping[str, int]
) -> tuple[str, ...]:
    """Returns the axes of the mesh along which the devices of a group differ."""
    places = np.unravel_index(groups, tuple(mesh.values()))
    differ = [(place != place[:, :1]).any() for place in places]
    return tuple(axis for axis, moves in zip(mesh, differ, strict=True) if moves)


def read_groups(text: str, devices: int) -> Int[np.ndarray, "groups ways"]:
    """Returns the replica groups, or source-target pairs, of an instruction.

    Devices are numbered in the row-major order of the mesh. Of groups in the format
    `mesh[...]`, only the first is returned: the others span the same axes.

    Raises:
      ValueError: The format is unknown.
    """
    if listed := _LISTED.search(text):
        groups = re.findall(r"\{([\d,]+)\}", listed[1])
        return np.array([_integers(group) for group in groups] or [range(devices)])
    if reshaped := _RESHAPED.search(text):
        return _numbers(reshaped[2]).reshape(_integers(reshaped[1]))
    if not (of_mesh := _OF_MESH.search(text)):
        raise ValueError(f"unknown format of replica groups: {text[:300]}")
    sizes, order, axes = of_mesh.groups()
    shape, index = [], []
    for name, size in re.findall(r"('[^']*')=(\d+)", sizes):
        # 'a':(2)3 is the factor 3 in an axis of size 2 x 3 x ...
        part = re.search(rf"{name}(?::\((\d+)\)(\d+))?", axes)
        before, ways = (part[1] or 1, part[2] or size) if part else (1, 1)
        shape += [int(before), int(ways), int(size) // (int(before) * int(ways))]
        index += [0, slice(None), 0]
    numbers = _numbers(order.partition("(")[2]) if order else np.arange(devices)
    return numbers.reshape(shape)[tuple(index)].reshape(1, -1)


def _parse(text: str) -> dict[str, list[tuple]]:
    """Returns the instructions of each computation; callees come before callers."""
    computations, instructions = {}, []
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            instructions = computations[header[1]] = []
        elif match := _INSTRUCTION.match(line):
            instructions.append(match.groups())
    return computations


def _trip_count(loop: str, computations: dict[str, list[tuple]]) -> int:
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop):
        return int(known[1])
    # On TPU: the only constant in the condition, which the counter is compared with.
    condition = computations[re.search(r"condition=%?([\w.\-]+)", loop)[1]]
    is_counted = any(op[0] and "direction=LT" in op[-1] for op in condition)
    limits = [op[-1] for op in condition if op[2][:3] + op[3] == "s32constant"]
    return _integers(limits[0])[0] if is_counted and len(limits) == 1 else 1


def _bytes(result: str) -> int:
    return sum(
        math.prod(_integers(shape)) * (_integers(dtype) or [8])[0] // 8  # [8]: pred
        for dtype, shape in re.findall(r"([a-z]\w*)\[([\d,]*)\]", result)
    )


def _sent(kind: str, size: int, ways: int) -> int:
    """Returns the bytes that a device sends for a result of `size` bytes.

    Source: Thakur et al. 2005, Optimization of Collective Communication in MPICH.
    """
    if kind == "collective-permute":
        return size
    if kind == "reduce-scatter":
        return size * (ways - 1)
    return (2 if kind == "all-reduce" else 1) * size * (ways - 1) // ways


def _numbers(text: str) -> np.ndarray:
    """Parses `0,2,1,3`, or `[2,2]T(1,0)`: arange(4), reshaped and transposed."""
    if not text.startswith("["):
        return np.array(_integers(text))
    shape, _, order = text.partition("]")
    numbers = np.arange(math.prod(_integers(shape))).reshape(_integers(shape))
    return numbers.transpose(_integers(order) or None)


def _integers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
