"""A process does not start, is stopped or is stuck: the others name it."""

import signal

import pytest

PEER_LOST = 69
SLACK = 10  # seconds for a busy machine
FIRST_STEP = 12  # seconds within which a first step compiles
STEP_TIMEOUT = PEER_TIMEOUT = 4  # seconds, for programs that compile nothing


@pytest.fixture(scope="module")
def few(together):
    """Returns a function that runs three processes which only wait for each other."""

    def run(**arguments):
        return together(
            [],
            3,
            program="one_of_few",
            SMF_PEER_TIMEOUT=str(PEER_TIMEOUT),
            **arguments,
        )

    return run


def test_the_others_name_a_process_that_does_not_start(few):
    ended = few(absent=[1], SMF_START_TIMEOUT="5")

    assert len(ended) == 2
    for code, seconds, output in ended.values():
        assert code == PEER_LOST
        assert seconds < SLACK  # since the other ended; both were started at once
        assert "smf: process 1 of 3 did not reach 127.0.0.1:" in output
        assert "within 5 s" in output


def test_all_name_the_stuck_process_and_show_their_stacks(few):
    ended = few(signals={0: [[3, "sleep"]]}, SMF_STEP_TIMEOUT=str(STEP_TIMEOUT))

    for code, seconds, output in ended.values():
        assert code == PEER_LOST, output
        assert STEP_TIMEOUT - 1 < seconds < STEP_TIMEOUT + SLACK
        line = output.splitlines()[-1]
        assert "process 0 has not reached 'end of point 3'" in line
        assert "its last report was 'point 3'" in line
    assert [rank for rank in ended if "in hurt" in ended[rank][2]] == [0]
    assert [rank for rank in ended if "in barrier" in ended[rank][2]] == [1, 2]


def test_all_end_a_run_that_is_stuck_in_its_data(together, command, tmp_path):
    ended = together(
        command(tmp_path / "run"),
        signals={1: [[5, "sleep"]]},
        SMF_STEP_TIMEOUT=str(FIRST_STEP),
    )

    for code, seconds, output in ended.values():
        assert code == PEER_LOST, output
        assert FIRST_STEP - 1 < seconds < FIRST_STEP + SLACK
        line = output.splitlines()[-1]
        assert (
            "process 1 has not reached 'step 6', its last report was 'step 5'" in line
        )
    assert "in hurt" in ended[1][2]


def test_the_others_name_process_0_when_it_is_stopped(few):
    ended = few(signals={0: [[3, signal.SIGSTOP]]})

    for code, seconds, output in (ended[1], ended[2]):
        assert code == PEER_LOST, output
        assert seconds < PEER_TIMEOUT + SLACK
        line = output.splitlines()[-1]
        assert f"process 0 of 3 sent no heartbeat for {PEER_TIMEOUT} s" in line


def test_a_process_that_holds_its_interpreter_is_named_and_shows_its_stack(few):
    ended = few(signals={1: [[3, "hold"]]})

    for code, seconds, output in (ended[0], ended[2]):
        assert code == PEER_LOST, output
        assert seconds < PEER_TIMEOUT + SLACK
        line = output.splitlines()[-1]
        assert f"process 1 of 3 sent no heartbeat for {PEER_TIMEOUT} s" in line
    code, seconds, output = ended[1]
    assert code == 1, output
    assert seconds < PEER_TIMEOUT + SLACK
    assert "in hurt" in output
