"""Startup barrier: waits for every process and names the missing ones.

It comes before jax's own barrier, which aborts every process without naming any.
Process 0 listens on the port where jax will listen later, and the others ask it which
processes are missing until none is.
"""

import contextlib
import json
import os
import socket
import time

from smf_jax.config import ConfigError
from smf_jax.multihost.cluster import Cluster

POLL = 0.2  # seconds
GRACE = 2  # seconds for all to hear of a conflict, and until a rank is free again


class MissingProcesses(Exception):
    """Some processes did not start in time; the message names them."""


def wait(cluster: Cluster, seconds: int) -> None:
    """Waits until every process waits here.

    Raises:
      MissingProcesses: Some do not within `seconds`.
      ConfigError: Ranks or the number of processes contradict each other, or process 0
        cannot listen at its address.
    """
    name = f"process id {os.getpid()} on {socket.gethostname()}"
    exchange = _answer if cluster.rank == 0 else _ask
    missing, conflict = exchange(cluster, name, time.monotonic() + seconds)
    if conflict:
        raise ConfigError(conflict)
    if missing:
        names = ", ".join(f"process {rank}" for rank in missing)
        raise MissingProcesses(
            f"{names} of {cluster.num_processes} did not reach {cluster.address} "
            f"within {seconds} s"
        )


def _ask(cluster: Cluster, name: str, deadline: float) -> tuple[list[int], str]:
    missing, conflict = [0], ""
    host, _, port = cluster.address.rpartition(":")
    while missing and not conflict and (left := deadline - time.monotonic()) > 0:
        # Fails while process 0 does not listen yet, or if another program does.
        with (
            contextlib.suppress(OSError, ValueError, TypeError),
            socket.create_connection((host.strip("[]"), port), left) as connection,
            connection.makefile("rw") as file,
        ):
            question = cluster.rank, cluster.num_processes, name
            print(json.dumps(question), file=file, flush=True)
            missing, conflict = json.loads(file.readline())
        time.sleep(POLL)
    return missing, conflict


def _answer(cluster: Cluster, own_name: str, deadline: float) -> tuple[list[int], str]:
    everyone, informed = set(range(cluster.num_processes)), {0}
    arrived = {0: (own_name, deadline)}  # with the time of the last question
    conflict = ""
    with _server(cluster) as server:
        while informed < everyone and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            # Fails if another program connects, or if the process dies.
            with (
                contextlib.suppress(OSError, ValueError, TypeError),
                server.accept()[0] as connection,
                connection.makefile("rw") as file,
            ):
                connection.settimeout(GRACE)
                rank, count, name = json.loads(file.readline())
                now = time.monotonic()
                known, seen = arrived.get(rank, (name, now))
                if count != cluster.num_processes:
                    conflict = (
                        f"process {rank} ({name}) was started as one of {count} "
                        f"processes, process 0 as one of {cluster.num_processes}"
                    )
                elif known != name and now - seen < GRACE:
                    conflict = f"two processes have rank {rank}: {known}, and {name}"
                else:
                    arrived[rank] = name, now
                missing = sorted(everyone - arrived.keys())
                print(json.dumps([missing, conflict]), file=file, flush=True)
                if conflict:
                    deadline = min(deadline, now + GRACE)
                elif not missing:
                    informed.add(rank)
    # A process that arrived, but never heard that none is missing, has died.
    return sorted(everyone - arrived.keys() or everyone - informed), conflict


def _server(cluster: Cluster) -> socket.socket:
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    address = "", int(cluster.address.rpartition(":")[2])
    options = {"family": family, "dualstack_ipv6": dual}
    try:
        return socket.create_server(address, backlog=1024, **options)
    except OSError as error:
        raise ConfigError(
            f"process 0 cannot listen at {cluster.address} ({error.strerror}): another "
            "process 0 or program may use the port; choose another one"
        ) from error
