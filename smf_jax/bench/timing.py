"""Times of works that take turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

REST = 0.3  # seconds
COPIED = 2**28  # bytes: more than any cache holds

Work = Callable[[], Any]


class Times(NamedTuple):
    """Seconds of one work."""

    median: float
    least: float
    most: float
    turns: tuple[float, ...]


def take_turns(works: Mapping[str, Work], repeats: int) -> dict[str, Times]:
    """Returns the times of works, each done once a turn, after one that is not counted.

    A work returns when it is done; the next one starts when its threads have come to
    rest, as those of some libraries look for more work for a while.
    """
    for work in works.values():
        work()
    seconds = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            time.sleep(REST)
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: Times(statistics.median(of), min(of), max(of), tuple(of))
        for name, of in seconds.items()
    }


def done(function: Callable, *arguments: Any) -> Work:
    """Returns a work that waits for what jax computes."""
    return lambda: jax.block_until_ready(function(*arguments))


def copying() -> tuple[Work, int]:
    """Returns a work that copies an array, and the bytes it reads and writes."""
    array = jnp.zeros(COPIED // 4, jnp.float32)
    return done(jax.jit(lambda array: array + 1), array), 2 * COPIED
