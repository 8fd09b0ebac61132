"""Several processes as one program: who they are, what each is given, who is missing.

Who is who is said by the first of these that says anything; all get the same command.

  flags of any verb       --coordinator HOST:PORT --num-processes N --process-id I
  the environment         SMF_COORDINATOR, SMF_NUM_PROCESSES, SMF_PROCESS_ID
  a step of SLURM         SLURM_STEP_ID, and more than one task
  a TPU pod, as GKE does  TPU_WORKER_HOSTNAMES (more than one), TPU_WORKER_ID

HOST is that of process 0, numbers are from 0; else a run is one process. Whole seconds:

  SMF_START_TIMEOUT=120   all must have come so long after the first
  SMF_PEER_TIMEOUT=30     a process that is silent for so long is missed
  SMF_STEP_TIMEOUT=600    all end when none has come any further for so long

The last must be above the longest work that gives no sign: compiling a step, making a
tokenizer, reading or writing one checkpoint. Steps, batches of questions and texts,
and tensors that are read give signs.
"""

import contextlib
import hashlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from smf_jax.config import ConfigError, require
from smf_jax.exits import PEER_LOST
from smf_jax.multihost import startup_barrier, watchdog
from smf_jax.multihost.cluster import Who, number_of, who
from smf_jax.multihost.heartbeat import busy, reached
from smf_jax.multihost.process_end import end, explain_abort

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


def initialize(said: Mapping[str, str]) -> None:
    """Joins the processes that flags or the environment name, if they name any.

    Ends this process with code 69, and a line that names them, if some do not come.

    Args:
      said: The flags, without those that are not given.

    Raises:
      ConfigError: What is named is not whole, or does not fit together.
    """
    me = who(said, os.environ)
    if me is None or jax.distributed.is_initialized():
        return
    start = number_of("SMF_START_TIMEOUT", os.environ, 120)
    silence, standstill = _silence(), number_of("SMF_STEP_TIMEOUT", os.environ, 600)
    for name, value in (("PEER", silence), ("STEP", standstill)):
        require(value > 2, f"SMF_{name}_TIMEOUT={value} must be above 2 seconds")
    try:
        startup_barrier.call(me, start)
    except startup_barrier.Missing as error:
        sys.stderr.write(f"smf: {error}; this process stops\n")
        end(PEER_LOST)
    if me.number > 0:
        explain_abort(me)
    late = threading.Timer(start, _give_up, (me, start))
    late.daemon = True
    late.start()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        me.address,
        me.count,
        me.number,
        # Else jax asks SLURM which one device this process is to have.
        cluster_detection_method="deactivate",
        initialization_timeout=start + 60,
        heartbeat_timeout_seconds=2 * silence + 60,  # the watch is to be first
    )
    late.cancel()
    reached("all have come")
    watchdog.start(me, silence, standstill)


def _silence() -> int:
    return number_of("SMF_PEER_TIMEOUT", os.environ, 30)


def _give_up(me: Who, seconds: int) -> None:
    sys.stderr.write(
        f"smf: all {me.count} processes had come, but process {me.number} could not "
        f"join them at {me.address} within {seconds} s: one has died since\n"
    )
    end(PEER_LOST)


@contextlib.contextmanager
def blame_lost_process() -> Iterator[None]:
    """Leaves it to the watch to say who is missing where a collective has failed.

    The network notices a dead process at once, and without its name.
    """
    try:
        yield
    except ConfigError:  # ours, and of no collective
        raise
    except (ValueError, RuntimeError):
        if jax.process_count() > 1:
            time.sleep(_silence() + 5)
        raise


def shut_down(code: int) -> None:
    """Ends this process at once if it failed and there are others.

    They may never come to an end, and jax would wait for them at exit.
    """
    if code and jax.distributed.is_initialized():
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        watchdog.leave(jax.process_index(), range(jax.process_count()))
        end(code)


def is_main() -> bool:
    """Returns whether this process writes what is written once."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def barrier(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        reached(name)
        with blame_lost_process():
            multihost_utils.sync_global_devices(name)


def preempted(step: int) -> bool:
    """Returns whether all processes are to stop after `step`, since one was told to."""
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(
        step
    )


def split_work(work: Callable[[str], str], names: Sequence[str]) -> dict[str, str]:
    """Returns the result of `work` for each of some names, of which each process does
    its share.

    All processes name the same; results have at most 256 bytes.
    """
    count, me = jax.process_count(), jax.process_index()
    if count == 1:
        return {name: work(name) for name in names}
    each = -(-len(names) // count)
    mine = np.zeros((each, 256), np.uint8)
    for place, name in enumerate(names[me::count]):
        result = work(name).encode()[:256]
        mine[place, : len(result)] = np.frombuffer(result, np.uint8)
    with blame_lost_process():
        of_all = np.asarray(multihost_utils.process_allgather(mine))
    return {
        name: bytes(of_all[place % count, place // count]).rstrip(b"\0").decode()
        for place, name in enumerate(names)
    }


def require_same(what: str, content: Any) -> None:
    """Raises `ConfigError` on every process unless all have the same JSON content.

    Each would else compute its share of another run, and none would notice.
    """
    if jax.process_count() == 1:
        return
    reached(f"{what} compared")
    text = json.dumps(content, sort_keys=True)
    mine = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    with blame_lost_process():
        of_all = np.asarray(multihost_utils.process_allgather(mine))
    others = np.flatnonzero((of_all != of_all[0]).any(axis=1)).tolist()
    require(
        not others,
        f"{what} of process {', '.join(map(str, others))} is not that of process 0: "
        "start all with the same command, code and files",
    )
