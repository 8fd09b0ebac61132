"""Several processes as one program: who they are, what each is given, who is missing.

The environment says who is who, the same command runs on every host:

    SMF_COORDINATOR=HOST:PORT   an address of the first process that all can reach
    SMF_NUM_PROCESSES=2
    SMF_PROCESS_ID=0            from 0
    SMF_PEER_TIMEOUT=30         seconds of silence after which a process is missed

Without SMF_COORDINATOR a run is one process.
"""

import atexit
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils

from smf_jax.config import ConfigError, require
from smf_jax.exits import PEER_LOST

START_TIMEOUT = 120  # seconds in which all processes must have come
_ALIVE = "smf_jax/alive/"
_explainers: list[subprocess.Popen] = []  # one, of each process but the first


def initialize() -> None:
    """Joins the processes that the environment names, if it names any.

    Raises:
      ConfigError: A variable is missing or is no number.
    """
    address = os.environ.get("SMF_COORDINATOR")
    if address is None or jax.distributed.is_initialized():
        return
    count, number = _number("SMF_NUM_PROCESSES"), _number("SMF_PROCESS_ID")
    require(
        0 <= number < count,
        f"SMF_PROCESS_ID={number} must be below SMF_NUM_PROCESSES={count}",
    )
    require(
        address.rpartition(":")[2].isdecimal(),
        f"SMF_COORDINATOR={address} must be HOST:PORT",
    )
    timeout = _number("SMF_PEER_TIMEOUT", 30)
    require(timeout > 2, f"SMF_PEER_TIMEOUT={timeout} must be above 2 seconds")
    if number > 0:
        _explain_abort(number, count, address)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    late = threading.Timer(START_TIMEOUT, _give_up, (number, count, address))
    late.daemon = True
    late.start()
    jax.distributed.initialize(
        address, count, number, initialization_timeout=START_TIMEOUT + 60
    )
    late.cancel()
    watch = threading.Thread(target=_watch, args=(number, count, timeout), daemon=True)
    watch.start()


def _give_up(number: int, count: int, address: str) -> None:
    sys.stderr.write(
        f"smf: process {number} has waited {START_TIMEOUT} s for all {count} processes "
        f"to come to {address}: at least one has not\n"
    )
    _end(PEER_LOST)


def _number(name: str, default: int | None = None) -> int:
    value = os.environ.get(name, default)
    require(value is not None, f"SMF_COORDINATOR is set, but {name} is not")
    try:
        return int(value)
    except ValueError as error:
        raise ConfigError(f"{name}={value} is no whole number") from error


# Run beside a process that jax aborts when process 0 dies, with a trace that does not
# name it. It outlives that process, and says what has happened unless told "done".
_EXPLAINER = """
import socket, sys
number, count, host, port = sys.argv[1:]
if sys.stdin.read() != "done":
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        sys.stderr.write(
            f"smf: process {number} of {count} stopped, as process 0 at {host}:{port} "
            "is dead or cut off. The last checkpoint stands: start all of them again "
            "to go on from it\\n"
        )
"""


def _explain_abort(number: int, count: int, address: str) -> None:
    host, _, port = address.rpartition(":")
    command = [sys.executable, "-ISc", _EXPLAINER, str(number), str(count), host, port]
    # In a session of its own: Ctrl-C is not meant for it.
    explainer = subprocess.Popen(
        command, stdin=subprocess.PIPE, text=True, start_new_session=True
    )
    _explainers.append(explainer)
    atexit.register(_tell_done)


def _tell_done() -> None:
    while _explainers:
        _explainers.pop().communicate("done")


def _watch(number: int, count: int, timeout: int) -> None:
    """Tells the others that this process lives, and ends it when one falls silent."""
    client = jax_distributed.global_state.client
    heard = {other: ("", time.monotonic()) for other in range(count)}
    for beat in range(sys.maxsize):
        client.key_value_set(f"{_ALIVE}{number}", str(beat), allow_overwrite=True)
        now = time.monotonic()
        for key, value in client.key_value_dir_get(_ALIVE):
            other = int(key.rpartition("/")[2])
            if heard[other][0] != value:
                heard[other] = value, now
        silent = [other for other, (_, since) in heard.items() if now - since > timeout]
        if silent:
            names = ", ".join(f"process {other}" for other in silent)
            sys.stderr.write(
                f"smf: {names} of {count} not heard of for {timeout} s, dead or cut "
                "off; this process stops, too. The last checkpoint stands: start all "
                "of them again to go on from it\n"
            )
            _end(PEER_LOST)  # the main thread may wait for the dead for ever
        time.sleep(1)


@contextlib.contextmanager
def naming_the_missing() -> Iterator[None]:
    """Leaves it to the watch to say who is missing where a collective has failed.

    The network notices a dead process at once, and without its name.
    """
    try:
        yield
    except ConfigError:  # ours, and of no collective
        raise
    except (ValueError, RuntimeError):
        if jax.process_count() > 1:
            time.sleep(_number("SMF_PEER_TIMEOUT", 30) + 5)
        raise


def leave(code: int) -> None:
    """Ends this process at once if it failed and there are others.

    They may never come to an end, and jax would wait for them at exit.
    """
    if code and jax.distributed.is_initialized():
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        if is_main():
            time.sleep(2)  # its end ends the others: they may have something to say
        _end(code)


def _end(code: int) -> None:
    _tell_done()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_main() -> bool:
    """Returns whether this process writes what is written once."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        with naming_the_missing():
            multihost_utils.sync_global_devices(name)


def preempted(step: int) -> bool:
    """Returns whether all processes are to stop after `step`, since one was told to."""
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(
        step
    )


def require_same(what: str, content: Any) -> None:
    """Raises `ConfigError` on every process unless all have the same JSON content.

    Each would else compute its share of another run, and none would notice.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(content, sort_keys=True)
    mine = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    with naming_the_missing():
        of_all = np.asarray(multihost_utils.process_allgather(mine))
    others = np.flatnonzero((of_all != of_all[0]).any(axis=1)).tolist()
    require(
        not others,
        f"{what} of process {', '.join(map(str, others))} is not that of process 0: "
        "start all with the same command, code and files",
    )
