"""Which devices exchange with which, and along which axes of the mesh that is.

A device's number here is its place in the mesh, counted along the last axis first.
"""

import itertools
import math
import re
from collections.abc import Mapping

import numpy as np

Groups = list[list[int]]
_COUNTED = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"  # 0, 1, 2 .. laid out so, and transposed
_OF_MESH = re.compile(
    r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}"
)
_OF_COUNTED = re.compile(rf"replica_groups=\[([\d,]+)\]<={_COUNTED}")
_LISTED = re.compile(r"replica_groups=\{(.*?)\}(?!,\{)")
_PAIRS = re.compile(r"source_target_pairs=\{(.*?)\}(?!,\{)")


def read_groups(text: str, devices: int) -> Groups:
    """Returns the groups in which devices exchange, as an instruction names them.

    Raises:
      ValueError: It names them in none of the ways that XLA has.
    """
    if of_mesh := _OF_MESH.search(text):
        return _groups_of_mesh(*of_mesh.groups())
    if counted := _OF_COUNTED.search(text):
        laid = _laid_out(counted[2], counted[3])
        return laid.reshape(_integers(counted[1])).tolist()
    if listed := _LISTED.search(text):
        return _lists(listed[1]) or [list(range(devices))]  # {}: all with all
    raise ValueError(f"unknown groups of devices in {text[:300]}")


def read_pairs(text: str) -> Groups:
    """Returns who hands something on to whom."""
    return _lists(_PAIRS.search(text)[1])


def axes_of_groups(groups: Groups, mesh: Mapping[str, int]) -> tuple[str, ...] | None:
    """Returns the axes of the mesh along which groups lie; None: they lie otherwise."""
    want = {frozenset(group) for group in groups}
    devices = np.arange(math.prod(mesh.values())).reshape(*mesh.values())
    for count in range(len(mesh) + 1):
        for axes in itertools.combinations(range(len(mesh)), count):
            rest = [axis for axis in range(len(mesh)) if axis not in axes]
            ways = math.prod(devices.shape[axis] for axis in axes)
            laid = np.transpose(devices, (*rest, *axes)).reshape(-1, ways)
            if {frozenset(group) for group in laid.tolist()} == want:
                return tuple(list(mesh)[axis] for axis in axes)
    return None


def axes_of_pairs(pairs: Groups, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the axes of the mesh along which something is handed on."""
    places = np.array([np.unravel_index(pair, tuple(mesh.values())) for pair in pairs])
    differ = (places[..., 0] != places[..., 1]).any(axis=0)
    return tuple(name for name, moved in zip(mesh, differ, strict=True) if moved)


def _groups_of_mesh(sizes: str, order: str | None, axes: str) -> Groups:
    """Reads `'a'=4,'b'=2`, the numbers of its devices, and along what groups lie.

    That is axes, `'b'`, or parts of them: `'a':(2)2` is the latter half of an `a` of 4.
    """
    shape = {name: int(size) for name, size in re.findall(r"([^,=]+)=(\d+)", sizes)}
    if order is None:
        numbers = np.arange(math.prod(shape.values()))
    elif counted := re.fullmatch(_COUNTED, order):
        numbers = _laid_out(counted[1], counted[2])
    else:
        numbers = np.array(_integers(order))
    digits, along = [], []
    parts = {
        name: (int(before or 1), int(ways or shape[name]))
        for name, before, ways in re.findall(r"('[^']*')(?::\((\d+)\)(\d+))?", axes)
    }
    for name, size in shape.items():
        before, ways = parts.get(name, (1, 1))
        along.append(len(digits) + 1)
        digits += [before, ways, size // (before * ways)]
    rest = [axis for axis in range(len(digits)) if axis not in along]
    laid = np.transpose(numbers.reshape(digits), (*rest, *along))
    return laid.reshape(-1, math.prod(digits[axis] for axis in along)).tolist()


def _laid_out(sides: str, order: str | None) -> np.ndarray:
    numbers = np.arange(math.prod(_integers(sides))).reshape(_integers(sides))
    return np.transpose(numbers, _integers(order) if order else None)


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _lists(text: str) -> Groups:
    return [_integers(group) for group in re.findall(r"\{([\d,]+)\}?", text)]
