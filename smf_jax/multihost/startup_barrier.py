"""The roll call before a run of several processes: has everyone come, and who has not?

Process 0 listens where jax will listen later. Everyone, itself included, connects,
sends one line of JSON and waits for one: the word. A connection that sends anything
else is let go; one that ends before the word was of a process that is gone again.
"""

import contextlib
import json
import os
import selectors
import socket
import threading
import time
from typing import NamedTuple

from smf_jax.config import ConfigError
from smf_jax.multihost.cluster import Who

GRACE = 2  # seconds that the word may take, and that all have to hear of a mistake
LINE = 1000  # bytes, at most


class Missing(Exception):
    """Not all processes have come in time; the message names those that have not."""


class _Guest(NamedTuple):
    connection: socket.socket
    number: int
    count: int  # of processes, as it was told
    name: str  # its host and process
    left: float  # seconds that it will wait


def call(who: Who, seconds: int) -> None:
    """Returns when all processes have come, each within `seconds` of its own start.

    Raises:
      Missing: Some have not.
      ConfigError: Two have one number, or are told of other numbers of processes; or
        process 0 cannot listen at its address.
    """
    deadline = time.monotonic() + seconds
    holder = None
    if who.number == 0:
        holder = threading.Thread(
            target=_hold, args=(_listen(who), who, deadline, seconds), daemon=True
        )
        holder.start()
    word = _answer(who, deadline)
    if holder is not None:
        holder.join(GRACE)  # until it has told all
    if word is None and who.number == 0:
        raise ConfigError(f"process 0 cannot reach itself at {who.address}")
    if word is None:
        raise Missing(_say([0], who, seconds))
    if word["missing"]:
        raise Missing(word["missing"])
    if word["wrong"]:
        raise ConfigError(word["wrong"])


def _listen(who: Who) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(
            ("", who.port), family=family, backlog=who.count, dualstack_ipv6=both
        )
    except OSError as error:
        raise ConfigError(
            f"process 0 cannot listen at {who.address} ({error.strerror}): another "
            "process 0 or another program may; name another port"
        ) from error


def _answer(who: Who, deadline: float) -> dict[str, str] | None:
    """Returns the word, or None if there is none in time."""
    name = f"{os.getpid()} on {socket.gethostname()}"
    while (left := deadline - time.monotonic()) > 0:
        hello = {"number": who.number, "count": who.count, "name": name, "left": left}
        with contextlib.suppress(OSError, ValueError):
            address = who.host.strip("[]"), who.port
            with socket.create_connection(address, timeout=left) as connection:
                connection.sendall(json.dumps(hello).encode() + b"\n")
                connection.settimeout(left + GRACE)
                word = json.loads(connection.makefile("rb").readline(LINE))
                if isinstance(word, dict) and word.keys() == {"missing", "wrong"}:
                    return word
        time.sleep(0.1)  # process 0 is not there yet, or it is something else
    return None


def _hold(server: socket.socket, who: Who, deadline: float, seconds: int) -> None:
    """Collects all processes, and gives them the word."""
    guests: dict[socket.socket, _Guest] = {}
    wrong = ""
    with contextlib.ExitStack() as connections:
        with server, selectors.DefaultSelector() as selector:
            selector.register(server, selectors.EVENT_READ)
            while wrong or len(guests) < who.count:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                for key, _ in selector.select(left):
                    if key.fileobj is server:
                        connection = connections.enter_context(server.accept()[0])
                        selector.register(connection, selectors.EVENT_READ)
                    elif guest := _read(key.fileobj):
                        wrong = wrong or _contradiction(guest, who, guests)
                        guests[guest.connection] = guest
                        left = GRACE if wrong else guest.left
                        deadline = min(deadline, time.monotonic() + left)
                    else:
                        guests.pop(key.fileobj, None)
                        selector.unregister(key.fileobj)
                        key.fileobj.close()
        # Now jax can listen there.
        here = {guest.number for guest in guests.values()}
        missing = [] if wrong else sorted({*range(who.count)} - here)
        word = {"missing": _say(missing, who, seconds), "wrong": wrong}
        # Process 0 last: it may end with the word.
        for guest in sorted(guests.values(), key=lambda guest: -guest.number):
            with contextlib.suppress(OSError):
                guest.connection.sendall(json.dumps(word).encode() + b"\n")


def _read(connection: socket.socket) -> _Guest | None:
    """Returns who says hello, or None if nobody does who belongs here."""
    try:
        hello = json.loads(connection.recv(LINE))
        guest = _Guest(connection, **hello)
        right = 0 <= guest.number < guest.count and guest.left + len(guest.name) > 0
    except (OSError, ValueError, TypeError):
        return None
    return guest if right else None


def _contradiction(guest: _Guest, who: Who, guests: dict) -> str:
    if guest.count != who.count:
        return (
            f"process {guest.number} ({guest.name}) was started as one of "
            f"{guest.count} processes, process 0 as one of {who.count}"
        )
    for other in guests.values():
        if other.number == guest.number:
            return f"two are process {guest.number}: {other.name}, and {guest.name}"
    return ""


def _say(missing: list[int], who: Who, seconds: int) -> str:
    if not missing:
        return ""
    names = ", ".join(f"process {number}" for number in missing)
    verb = "have" if len(missing) > 1 else "has"
    return f"{names} of {who.count} {verb} not come to {who.address} within {seconds} s"
