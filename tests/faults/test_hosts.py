"""One of several processes never comes, stops, or is stuck: the others say which."""

import signal

from tests.faults.conftest import MISSED

PEER_LOST = 69
SPARE = 10  # seconds for a busy machine
FIRST_STEP = 10  # seconds in which a first step is compiled
THREE = ("--data.batch-size", "3")  # rows that three can share


def test_all_name_the_one_that_never_comes(together, command, tmp_path):
    ended = together(
        command(tmp_path / "run"), count=3, absent=[1], SMF_START_TIMEOUT="5"
    )

    for code, seconds, output in ended.values():
        assert code == PEER_LOST
        assert seconds < SPARE  # after each other, as they were started together
        assert "smf: process 1 of 3 has not come to 127.0.0.1:" in output
        assert "within 5 s" in output


def test_all_name_the_one_that_is_stuck_and_it_shows_where(together, command, tmp_path):
    ended = together(
        [*command(tmp_path / "run"), *THREE],
        count=3,
        signals={2: [[5, "sleep"]]},
        SMF_STEP_TIMEOUT=str(FIRST_STEP),
    )

    for code, seconds, output in ended.values():
        assert code == PEER_LOST, output
        assert FIRST_STEP - 1 < seconds < FIRST_STEP + SPARE
        line = output.splitlines()[-1]
        assert "process 2 has not come to 'step 6'" in line
        assert "its last sign was 'step 5'" in line
        assert "loop.py" in output  # where its main thread is
    assert [number for number in ended if "in hurt" in ended[number][2]] == [2]


def test_the_others_name_process_0_when_it_is_stopped(together, command, tmp_path):
    argv = [*command(tmp_path / "run"), *THREE]

    ended = together(argv, count=3, signals={0: [[5, signal.SIGSTOP]]})

    for code, seconds, output in (ended[1], ended[2]):
        assert code == PEER_LOST, output
        assert seconds < MISSED + SPARE
        assert f"process 0 of 3 not heard of for {MISSED} s" in output.splitlines()[-1]


def test_one_that_holds_its_interpreter_is_named_and_shows_where(
    together, command, tmp_path
):
    ended = together(command(tmp_path / "run"), signals={1: [[5, "hold"]]})

    code, seconds, output = ended[0]
    assert code == PEER_LOST, output
    assert seconds < MISSED + SPARE
    assert f"process 1 of 2 not heard of for {MISSED} s" in output.splitlines()[-1]
    code, seconds, output = ended[1]
    assert code == 1 or code == -signal.SIGABRT, output
    assert seconds < MISSED + SPARE
    assert "in hurt" in output
