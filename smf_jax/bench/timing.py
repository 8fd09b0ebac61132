"""Times of works that take turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

REST = 0.3  # seconds
SHORTEST = 0.05  # seconds of a turn: a GPU is given work without waiting for it

Work = Callable[[], Any]


class Times(NamedTuple):
    """Seconds of one work done once."""

    median: float
    least: float
    most: float
    turns: tuple[float, ...]


def take_turns(works: Mapping[str, Work], repeats: int) -> dict[str, Times]:
    """Returns the times of works that take turns, after two that are not counted.

    A work returns what there is to wait for. It is done as often in a turn as fills
    `SHORTEST`, and waited for once. The next one starts when its threads have come to
    rest, as those of some libraries look for more work for a while.
    """
    often = {}
    for name, work in works.items():
        _time(work, 1)
        often[name] = max(1, int(SHORTEST / _time(work, 1)))
    seconds = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            time.sleep(REST)
            seconds[name].append(_time(work, often[name]))
    return {
        name: Times(statistics.median(of), min(of), max(of), tuple(of))
        for name, of in seconds.items()
    }


def _time(work: Work, times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        last = work()
    jax.block_until_ready(last)
    return (time.perf_counter() - start) / times
