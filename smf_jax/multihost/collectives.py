"""Operations that every process must call: they exchange data or wait for all."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from smf_jax.config import require
from smf_jax.multihost.watchdog import blame_lost_process, reached


def barrier(name: str) -> None:
    """Waits until every process calls it with the same name."""
    if jax.process_count() > 1:
        reached(name)
        with blame_lost_process():
            multihost_utils.sync_global_devices(name)


def preempted(step: int) -> bool:
    """Returns whether every process stops after `step`, as one received SIGTERM."""
    several = jax.process_count() > 1
    return several and multihost_utils.reached_preemption_sync_point(step)


def split_work(work: Callable[[str], str], names: Sequence[str]) -> dict[str, str]:
    """Splits calls of `work` among the processes; returns its result for every name.

    Every process passes the same names. A result has at most 256 bytes.
    """
    count, rank = jax.process_count(), jax.process_index()
    if count == 1:
        return {name: work(name) for name in names}
    results = np.zeros((-(-len(names) // count), 256), np.uint8)
    for row, name in enumerate(names[rank::count]):
        result = work(name).encode()[:256]
        results[row, : len(result)] = np.frombuffer(result, np.uint8)
    gathered = _gather(results)
    return {
        name: bytes(gathered[index % count, index // count]).rstrip(b"\0").decode()
        for index, name in enumerate(names)
    }


def require_same(subject: str, content: Any) -> None:
    """Raises `ConfigError` on every process if their contents differ, as JSON.

    Each process would otherwise compute its part of a different run, unnoticed.
    """
    if jax.process_count() == 1:
        return
    reached(f"{subject} compared")
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
    digests = _gather(np.frombuffer(digest, np.uint8))
    different = np.flatnonzero((digests != digests[0]).any(axis=1)).tolist()
    require(
        not different,
        f"{subject} of process {', '.join(map(str, different))} differs from process "
        "0: start every process with the same command, code and files",
    )


def _gather(array: np.ndarray) -> np.ndarray:
    with blame_lost_process():
        return np.asarray(multihost_utils.process_allgather(array))
