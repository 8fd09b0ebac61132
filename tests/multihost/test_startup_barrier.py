"""The startup barrier: every process learns in time which ones are missing."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from smf_jax.config import ConfigError
from smf_jax.multihost import startup_barrier
from smf_jax.multihost.cluster import Cluster
from smf_jax.multihost.startup_barrier import GRACE, MissingProcesses


@pytest.fixture
def port(monkeypatch):
    """Returns a free port; every thread has the name of a process of its own."""
    monkeypatch.setattr("os.getpid", threading.get_ident)
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait(port, *ranks, count=3, seconds=1):
    """Returns for each process the type and message of its error, or None.

    A pair is a rank and another number of processes.
    """

    def process(rank):
        rank, num_processes = rank if isinstance(rank, tuple) else (rank, count)
        cluster = Cluster(f"127.0.0.1:{port}", num_processes, rank)
        try:
            startup_barrier.wait(cluster, seconds)
        except (MissingProcesses, ConfigError) as error:
            return type(error), str(error)
        return None

    with ThreadPoolExecutor(len(ranks)) as threads:
        return list(threads.map(process, ranks))


def ask(port, line):
    """Returns the answer of process 0 to a line."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(line)
                return connection.makefile("rb").readline()
        except ConnectionRefusedError:
            time.sleep(0.01)
    raise TimeoutError(port)


def test_all_continue_when_all_have_arrived(port):
    assert wait(port, 2, 0, 1, seconds=30) == [None] * 3

    socket.create_server(("127.0.0.1", port)).close()  # the port is free for jax


def test_all_name_the_missing_processes(port):
    start = time.monotonic()

    errors = wait(port, 0, 3, count=5)

    names = "process 1, process 2, process 4 of 5"
    line = f"{names} did not reach 127.0.0.1:{port} within 1 s"
    assert errors == [(MissingProcesses, line)] * 2
    assert time.monotonic() - start < 3


def test_all_name_process_0_if_it_does_not_start(port):
    line = f"process 0 of 3 did not reach 127.0.0.1:{port} within 1 s"

    assert wait(port, 1, 2) == [(MissingProcesses, line)] * 2


def test_two_processes_of_one_rank_are_refused_by_all(port):
    errors = wait(port, 0, 1, 1, seconds=30)

    assert {kind for kind, _ in errors} == {ConfigError}
    assert all("two processes have rank 1: " in line for _, line in errors)


def test_a_second_process_0_cannot_listen(port):
    errors = wait(port, 0, 0)

    assert any("cannot listen" in line for _, line in errors)


def test_another_number_of_processes_is_refused_by_all(port):
    errors = wait(port, 0, (1, 4), seconds=30)

    assert {kind for kind, _ in errors} == {ConfigError}
    assert all(
        line.startswith("process 1 (")
        and line.endswith("was started as one of 4 processes, process 0 as one of 3")
        for _, line in errors
    )


def test_other_programs_are_ignored(port):
    with ThreadPoolExecutor() as threads:
        first = threads.submit(wait, port, 0, seconds=30)
        for line in (b"GET / HTTP/1.1\r\n", b"\xff\x00\n", b"[1]\n", b'{"a": 1}\n'):
            assert ask(port, line) == b""
        silent = socket.create_connection(("127.0.0.1", port))

        assert wait(port, 1, 2, seconds=30) == [None] * 2
        assert first.result() == [None]
        silent.close()


def test_a_process_may_start_again_while_others_are_missing(port):
    with ThreadPoolExecutor() as threads:
        first = threads.submit(wait, port, 0, seconds=30)
        question = json.dumps([1, 3, "a process that ends now"]).encode() + b"\n"
        assert json.loads(ask(port, question)) == [[2], ""]
        time.sleep(GRACE)

        assert wait(port, 1, 2, seconds=30) == [None] * 2
        assert first.result() == [None]
