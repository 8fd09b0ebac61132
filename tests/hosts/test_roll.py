"""The roll call: whoever has come is told of all, in time."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from smf_jax.config import ConfigError
from smf_jax.multihost import startup_barrier as roll
from smf_jax.multihost.cluster import Who


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def come(port, *numbers, count=3, seconds=1):
    """Returns what each of some processes was told, or None."""

    def one(number):
        number, of = number if isinstance(number, tuple) else (number, count)
        try:
            roll.call(Who("127.0.0.1", port, of, number), seconds)
        except (roll.Missing, ConfigError) as error:
            return type(error), str(error)
        return None

    with ThreadPoolExecutor(len(numbers)) as threads:
        return list(threads.map(one, numbers))


def test_all_go_on_when_all_have_come(port):
    assert come(port, 2, 0, 1, seconds=30) == [None] * 3

    socket.create_server(("127.0.0.1", port)).close()  # the port is free for jax


def test_all_are_told_who_is_missing(port):
    start = time.monotonic()

    told = come(port, 0, 3, count=5)

    line = f"process 1, process 2, process 4 of 5 have not come to 127.0.0.1:{port}"
    assert told == [(roll.Missing, f"{line} within 1 s")] * 2
    assert time.monotonic() - start < 3


def test_all_miss_process_0_when_it_does_not_come(port):
    line = f"process 0 of 3 has not come to 127.0.0.1:{port} within 1 s"

    assert come(port, 1, 2) == [(roll.Missing, line)] * 2


def test_nobody_waits_longer_than_the_first_to_come_does(port):
    with ThreadPoolExecutor() as threads:
        start = time.monotonic()
        late = threads.submit(come, port, 0, seconds=30)

        told = come(port, 1)

        assert told == late.result()
        assert "process 2 of 3 has not come" in told[0][1]
        assert time.monotonic() - start < 3


def test_two_of_one_number_are_named_to_all(port):
    told = come(port, 0, 1, 1, seconds=30)

    assert {kind for kind, _ in told} == {ConfigError}
    assert all("two are process 1: " in line for _, line in told)


def test_two_that_are_process_0_are_named(port):
    told = come(port, 0, 0)

    assert any("cannot listen" in line for _, line in told)


def test_one_with_another_number_of_processes_is_named_to_all(port):
    told = come(port, 0, (1, 4), seconds=30)

    assert {kind for kind, _ in told} == {ConfigError}
    assert all(
        line.startswith("process 1 (")
        and line.endswith("was started as one of 4 processes, process 0 as one of 3")
        for _, line in told
    )


def test_strangers_are_let_go(port):
    called = threading.Thread(target=lambda: told.extend(come(port, 0, seconds=30)))
    told = []
    called.start()
    left = []
    for line in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff\x00", b"[1]\n", b'{"a": 1}\n'):
        left.append(connected(port))
        left[-1].sendall(line)
    left[0].close()  # and the others stay

    assert come(port, 1, 2, seconds=30) == [None] * 2
    called.join()
    assert told == [None]
    for connection in left:
        connection.close()


def test_one_that_went_may_come_again(port):
    told = []
    called = threading.Thread(target=lambda: told.extend(come(port, 0, seconds=30)))
    called.start()
    hello = {"number": 1, "count": 3, "name": "1 on a", "left": 30}
    with connected(port) as connection:
        connection.sendall(json.dumps(hello).encode() + b"\n")
        time.sleep(0.2)

    assert come(port, 1, 2, seconds=30) == [None] * 2
    called.join()
    assert told == [None]


def test_process_0_says_that_its_address_is_not_its_own(port):
    with pytest.raises(ConfigError) as error:
        roll.call(Who("240.0.0.1", port, 2, 0), 1)  # which is nobody's

    assert str(error.value) == f"process 0 cannot reach itself at 240.0.0.1:{port}"


def connected(port):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            time.sleep(0.01)
    raise TimeoutError(port)
