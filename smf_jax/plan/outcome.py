"""What came of compiling a step: what it needs, or why there is no answer."""

import re
from typing import Any, NamedTuple

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Allocation(NamedTuple):
    """One of the largest arrays of a step that does not fit."""

    size: int  # bytes of a device
    array: str  # like f32[20480,32768]
    source: str  # the operation that makes it, or the argument that it is


class TooLarge(NamedTuple):
    """What a compiler tells of a step that does not fit."""

    needs: int | None  # bytes of a device, at least; None: not told
    largest: list[Allocation]


class Outcome(NamedTuple):
    """What came of compiling a step for some devices. Bytes are of one device."""

    topology: str
    mesh: dict[str, Any]  # as it was asked for: mesh.data, and so on
    fits: bool | None  # None: there is no answer
    why: str | None = None  # there is no answer
    has: int | None = None  # bytes that a program may use
    needs: int | None = None  # at least, where it does not fit
    groups: dict[str, int] | None = None  # bytes of the arguments, by what they are
    seconds: float | None = None  # of compiling
    measured: dict[str, Any] | None = None  # Measured, as a dict
    largest: list[dict[str, Any]] | None = None  # Allocation, as dicts


def read_too_large(message: str) -> TooLarge | None:
    """Returns what a compiler's error tells of memory; None: it is of another kind."""
    if not message.startswith("RESOURCE_EXHAUSTED"):
        return None
    needs = None
    if used := re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message):
        needs = int(float(used[1]) * UNITS[used[2]])
    elif single := re.search(r"Allocation \(size=(\d+)\) would exceed", message):
        needs = int(single[1])
    entries = re.split(r"\n\s+\d+\. (?=Size: )", message)[1:]
    largest = sorted(map(_allocation, entries), key=lambda each: -each.size)
    return TooLarge(needs, largest)


def _allocation(entry: str) -> Allocation:
    fields = dict(re.findall(r"(?m)^\s*([A-Z][\w ]*): (.*)$", entry))
    size = re.match(r"([\d.]+)([KMGT]?)", fields["Size"])
    name = re.search(r'op_name="([^"]*)"', fields.get("Operator", ""))
    array = re.match(r"\w+\[[\d,]*\]", fields.get("Shape", ""))
    return Allocation(
        size=int(float(size[1]) * UNITS[size[2]]),
        array=array[0] if array else "",
        source=name[1] if name else fields.get("XLA label", "")[:80],
    )
