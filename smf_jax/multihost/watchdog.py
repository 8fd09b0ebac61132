"""Watchdog: ends a run that lost a process or is stuck, and names the process.

Heartbeats pass through the key-value store of process 0. Access to it blocks while
process 0 is unreachable, so one thread exchanges them and another one judges them.
"""

import atexit
import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
from jax._src import distributed as jax_distributed

from smf_jax.config import ConfigError
from smf_jax.exits import PEER_LOST, exit_now
from smf_jax.multihost.cluster import Cluster, timeout

PREFIX = "smf_jax/"  # of the keys in the store
INTERVAL = 1  # seconds between two heartbeats
LINGER = 4  # seconds that process 0 outlives a failure: its end makes jax abort others


class Progress(NamedTuple):
    """How far the main thread of a process has come."""

    points: int = 0  # number of points reached
    point: str = "start"  # the last of them
    activity: str = ""  # the last one reported since then
    since: float = 0  # time.monotonic() of the last report
    heartbeat: str = ""  # that brought it here
    heard: float = 0  # time.monotonic() of its arrival

    def __str__(self):
        last = f"{self.point}, {self.activity}" if self.activity else self.point
        return f"'{last}' {time.monotonic() - self.since:.0f} s ago"


_progress = Progress(since=time.monotonic())


def reached(point: str) -> None:
    """Reports that this process reached a point that all reach in the same order."""
    global _progress
    _progress = Progress(_progress.points + 1, point, since=time.monotonic())


def busy(activity: str) -> None:
    """Reports progress between two points, possibly of this process alone."""
    global _progress
    _progress = _progress._replace(activity=activity, since=time.monotonic())


@contextlib.contextmanager
def blame_lost_process() -> Iterator[None]:
    """Gives the watchdog time to name the lost process when a collective fails.

    The collective fails as soon as a process dies, without saying which one.
    """
    try:
        yield
    except ConfigError:  # raised by this package, not by a collective
        raise
    except (ValueError, RuntimeError):
        if jax.process_count() > 1:
            time.sleep(timeout("SMF_PEER_TIMEOUT", os.environ) + 2 * LINGER)
        raise


def end_process(rank: int, code: int) -> None:
    """Ends this process at once, or after `LINGER` if it is process 0."""
    if rank == 0:
        time.sleep(LINGER)
    exit_now(code)


def start(cluster: Cluster, peer_timeout: int, step_timeout: int) -> None:
    """Starts the watchdog, with the timeouts that the package's docstring defines."""
    done = threading.Event()
    arguments = cluster, peer_timeout, step_timeout, done
    thread = threading.Thread(target=_watch, args=arguments, daemon=True)
    thread.start()

    @atexit.register
    def finish() -> None:
        jax.distributed.shutdown()  # waits for the others, so the watchdog still runs
        done.set()
        thread.join()


def _watch(cluster, peer_timeout, step_timeout, done) -> None:
    rank, now = cluster.rank, time.monotonic()
    peers = dict.fromkeys(range(cluster.num_processes), Progress(since=now, heard=now))
    arguments = rank, peers, done
    exchange = threading.Thread(target=_exchange, args=arguments, daemon=True)
    exchange.start()
    # Native code that holds the interpreter lock stops this thread, too. The timer of
    # faulthandler is native: it prints the stacks and ends the process. That of process
    # 0 is longer, so that the others name it before jax aborts them.
    hung = peer_timeout + (2 * INTERVAL if rank == 0 else 0)
    lost, stuck = "", False
    while not (lost or stuck):
        faulthandler.dump_traceback_later(hung, exit=True)
        if done.wait(INTERVAL / 2):
            faulthandler.cancel_dump_traceback_later()
            exchange.join(LINGER)  # Python aborts at exit if a thread is inside jax
            return
        lost = _lost(rank, peers, peer_timeout)
        last = max(progress.since for progress in peers.values())
        stuck = time.monotonic() - last > step_timeout
    faulthandler.cancel_dump_traceback_later()
    reason = lost
    if not lost:
        sys.stderr.flush()
        faulthandler.dump_traceback()
        reason = f"no progress for {step_timeout} s (stacks above): {behind(peers)}"
    sys.stderr.write(
        f"smf: {reason}; this process stops, too. The last checkpoint is intact: start "
        "every process again to resume from it\n"
    )
    end_process(rank, PEER_LOST)  # the main thread may be blocked


def _exchange(rank: int, peers: dict[int, Progress], done: threading.Event) -> None:
    client = jax_distributed.global_state.client
    while not done.wait(INTERVAL):
        *progress, since = _progress[:4]
        # Clocks differ, ages do not; with the age every heartbeat is a new text.
        heartbeat = json.dumps([*progress, time.monotonic() - since])
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # noticed by `_lost`
            client.key_value_set(f"{PREFIX}{rank}", heartbeat, allow_overwrite=True)
            for key, heartbeat in client.key_value_dir_get(PREFIX):
                peer, now = int(key.removeprefix(PREFIX)), time.monotonic()
                if heartbeat != peers[peer].heartbeat:
                    *progress, age = json.loads(heartbeat)
                    peers[peer] = Progress(*progress, now - age, heartbeat, now)


def _lost(rank: int, peers: Mapping[int, Progress], seconds: int) -> str:
    # While process 0 is unreachable no heartbeat arrives: it alone is to blame.
    answered = peers[rank].heard
    lost = [r for r in peers if answered - peers[r].heard > seconds]
    if time.monotonic() - answered > seconds:
        lost = [0]
    if not lost:
        return ""
    names = ", ".join(f"process {other}" for other in lost)
    return f"{names} of {len(peers)} sent no heartbeat for {seconds} s, dead or cut off"


def behind(peers: Mapping[int, Progress]) -> str:
    """Returns which processes are behind the others, with their last reports."""
    first = max(peers.values(), key=lambda progress: progress.points)
    fewest = min(progress.points for progress in peers.values())
    if fewest == first.points:
        return f"no process is behind, their last report was {first}"
    return "; ".join(
        f"process {rank} has not reached '{first.point}', its last report was {last}"
        for rank, last in sorted(peers.items())
        if last.points == fewest
    )
