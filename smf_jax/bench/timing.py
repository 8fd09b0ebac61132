"""Times cases in turn, so that all meet the same noise."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

PAUSE = 0.3  # seconds before a sample: idle threads of some libraries spin for a while
MIN_SECONDS = 0.05  # of a sample: short calls are repeated, and waited for once


class Case(NamedTuple):
    """A piece of work to time."""

    call: Callable[[], Any]  # returns arrays to wait for
    amount: int | None = None  # bytes or tokens per call, if they limit its speed
    sizes: dict[str, int] | None = None  # of a training step; see `steps.step_case`


def time_in_turn(cases: Mapping[str, Case], repeats: int) -> dict[str, dict[str, Any]]:
    """Returns the seconds per call of each case, with its amount and sizes.

    Two calls of each case come first: one compiles, and the other tells how many calls
    fill a sample.
    """
    calls = {}
    for name, case in cases.items():
        _time(case.call, 1)
        calls[name] = max(1, int(MIN_SECONDS / _time(case.call, 1)))
    samples = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            time.sleep(PAUSE)
            samples[name].append(_time(case.call, calls[name]))
    return {
        name: {
            "median": statistics.median(seconds),
            "min": min(seconds),
            "max": max(seconds),
            "samples": seconds,
            "amount": cases[name].amount,
            "sizes": cases[name].sizes,
        }
        for name, seconds in samples.items()
    }


def _time(call: Callable[[], Any], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        last = call()
    jax.block_until_ready(last)
    return (time.perf_counter() - start) / times
