"""Joins the processes of one program, and names the one that is lost or stuck.

All run the same command. A process learns its rank, the number of processes and the
coordinator (the address of process 0) from the first of these that is set:

    flags of any verb   --coordinator HOST:PORT --num-processes N --process-id RANK
    environment         SMF_COORDINATOR, SMF_NUM_PROCESSES, SMF_PROCESS_ID
    SLURM               a step of more than one task
    TPU pod on GKE      TPU_WORKER_HOSTNAMES (more than one), TPU_WORKER_ID

Without any of them the program is a single process. Timeouts, in whole seconds:

    SMF_START_TIMEOUT=120   until a process that has not started is missing
    SMF_PEER_TIMEOUT=30     until a process without a heartbeat is lost
    SMF_STEP_TIMEOUT=600    until a run without progress on any process is stuck

The last must exceed the longest work that reports no progress: compiling a step,
training a tokenizer, reading or writing one checkpoint. Steps, evaluation batches and
tensors read from a file report progress.
"""

import os
import sys
import traceback
from collections.abc import Mapping

import jax

from smf_jax.exits import PEER_LOST, exit_now
from smf_jax.multihost import startup_barrier, watchdog
from smf_jax.multihost.cluster import TIMEOUTS, detect, timeout
from smf_jax.multihost.collectives import barrier, preempted, require_same, split_work
from smf_jax.multihost.watchdog import blame_lost_process, busy, reached

__all__ = [
    "barrier",
    "blame_lost_process",
    "busy",
    "initialize",
    "is_main",
    "preempted",
    "reached",
    "require_same",
    "shut_down",
    "split_work",
]


def initialize(flags: Mapping[str, str]) -> None:
    """Connects this process to the others, if any, and starts its watchdog.

    Ends it with code 69 if some do not start in time, and names them. `flags` are
    variables that override the environment.

    Raises:
      ConfigError: The settings are incomplete, or contradict each other.
    """
    cluster = detect(os.environ | flags)
    if cluster is None or jax.distributed.is_initialized():
        return
    start_timeout, *timeouts = (timeout(name, os.environ) for name in TIMEOUTS)
    try:
        startup_barrier.wait(cluster, start_timeout)
    except startup_barrier.MissingProcesses as error:
        sys.stderr.write(f"smf: {error}; this process stops\n")
        exit_now(PEER_LOST)
    jax.distributed.initialize(
        cluster.address,
        cluster.num_processes,
        cluster.rank,
        # If it detected SLURM, jax would take only one device per task.
        cluster_detection_method="deactivate",
        initialization_timeout=start_timeout,
        # Longer than the watchdog's, because jax aborts without naming the process.
        heartbeat_timeout_seconds=2 * timeouts[0] + 60,
    )
    reached("all processes connected")
    watchdog.start(cluster, *timeouts)


def shut_down(code: int) -> None:
    """Ends this process at once if it failed as one of several.

    A normal exit waits for the others, which may be waiting for this process.
    """
    if code and jax.distributed.is_initialized():
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        watchdog.end_process(jax.process_index(), code)


def is_main() -> bool:
    """Returns whether this process writes the files and prints the results."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0
