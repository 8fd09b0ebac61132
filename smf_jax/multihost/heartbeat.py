"""Signs of the main thread's progress: what it came to last, and when."""

import time
from collections.abc import Mapping
from typing import NamedTuple


class Sign(NamedTuple):
    """The last sign of a process."""

    points: int  # that it has come to
    point: str  # the last of them
    doing: str  # what it has done since; empty: nothing that it told of
    since: float  # time.monotonic() of the sign

    def __str__(self):
        what = f"{self.point}, {self.doing}" if self.doing else self.point
        return f"'{what}' {time.monotonic() - self.since:.0f} s ago"


_last = Sign(0, "start", "", time.monotonic())


def reached(point: str) -> None:
    """Says that this process has come to a point which all come to, in one order."""
    global _last
    _last = Sign(_last.points + 1, point, "", time.monotonic())


def busy(doing: str) -> None:
    """Says that work between two points goes on, be it on one process alone."""
    global _last
    _last = _last._replace(doing=doing, since=time.monotonic())


def last() -> Sign:
    """Returns the last sign of this process."""
    return _last


def furthest_behind(signs: Mapping[int, Sign]) -> str:
    """Returns which processes are behind the others, with their last signs."""
    first = max(signs.values(), key=lambda sign: sign.points)
    behind = min(sign.points for sign in signs.values())
    if behind == first.points:
        return f"none is behind, the last sign of all was {first}"
    return "; ".join(
        f"process {number} has not come to '{first.point}', its last sign was {sign}"
        for number, sign in sorted(signs.items())
        if sign.points == behind
    )
