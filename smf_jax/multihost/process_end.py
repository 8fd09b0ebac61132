"""The end of a process that others may wait for, or that jax aborts."""

import atexit
import os
import subprocess
import sys

from smf_jax.multihost.cluster import Who

_explainers: list[subprocess.Popen] = []  # one, of each process but the first

# Run beside a process that jax aborts when process 0 dies, with a trace that does not
# name it. It outlives that process, and says what has happened unless told "done".
_EXPLAINER = """
import socket, sys
number, count, host, port = sys.argv[1:]
if sys.stdin.read() != "done":
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError:
        sys.stderr.write(
            f"smf: process {number} of {count} stopped, as process 0 at {host}:{port} "
            "is dead or cut off. The last checkpoint stands: start all of them again "
            "to go on from it\\n"
        )
"""


def explain_abort(who: Who) -> None:
    """Sees to it that it is said why, should jax abort this process."""
    about = [str(part) for part in (who.number, who.count, who.host, who.port)]
    # In a session of its own: Ctrl-C is not meant for it.
    explainer = subprocess.Popen(
        [sys.executable, "-ISc", _EXPLAINER, *about],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _explainers.append(explainer)
    atexit.register(_tell_done)


def _tell_done() -> None:
    while _explainers:
        _explainers.pop().communicate("done")


def end(code: int) -> None:
    """Ends this process at once, from whichever thread."""
    _tell_done()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
