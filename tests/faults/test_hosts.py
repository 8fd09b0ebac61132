"""One of several processes never comes, stops, or is stuck: the others say which."""

import signal

import pytest

PEER_LOST = 69
SPARE = 10  # seconds for a busy machine
FIRST_STEP = 12  # seconds that a first step may take to compile
STILL = SILENT = 4  # seconds that little programs may stand still, and be silent


@pytest.fixture(scope="module")
def few(together):
    """Returns a function that runs processes which only wait for each other."""

    def run(**arguments):
        return together(
            [], program="one_of_few", SMF_PEER_TIMEOUT=str(SILENT), **arguments
        )

    return run


def test_all_name_the_one_that_never_comes(few):
    ended = few(count=3, absent=[1], SMF_START_TIMEOUT="5")

    assert len(ended) == 2
    for code, seconds, output in ended.values():
        assert code == PEER_LOST
        assert seconds < SPARE  # since the other ended; both were started at once
        assert "smf: process 1 of 3 has not come to 127.0.0.1:" in output
        assert "within 5 s" in output


def test_all_name_the_one_that_is_stuck_and_it_shows_where(few):
    ended = few(count=3, signals={0: [[3, "sleep"]]}, SMF_STEP_TIMEOUT=str(STILL))

    for code, seconds, output in ended.values():
        assert code == PEER_LOST, output
        assert STILL - 1 < seconds < STILL + SPARE
        line = output.splitlines()[-1]
        assert "process 0 has not come to 'end of point 3'" in line
        assert "its last sign was 'point 3'" in line
    assert [number for number in ended if "in hurt" in ended[number][2]] == [0]
    assert [number for number in ended if "in wait_for_all" in ended[number][2]] == [
        1,
        2,
    ]


def test_a_run_that_is_stuck_in_its_data_is_ended_by_all(together, command, tmp_path):
    ended = together(
        command(tmp_path / "run"),
        signals={1: [[5, "sleep"]]},
        SMF_STEP_TIMEOUT=str(FIRST_STEP),
    )

    for code, seconds, output in ended.values():
        assert code == PEER_LOST, output
        assert FIRST_STEP - 1 < seconds < FIRST_STEP + SPARE
        line = output.splitlines()[-1]
        assert "process 1 has not come to 'step 6', its last sign was 'step 5'" in line
    assert "in hurt" in ended[1][2]


def test_the_others_name_process_0_when_it_is_stopped(few):
    ended = few(count=3, signals={0: [[3, signal.SIGSTOP]]})

    for code, seconds, output in (ended[1], ended[2]):
        assert code == PEER_LOST, output
        assert seconds < SILENT + SPARE
        assert f"process 0 of 3 not heard of for {SILENT} s" in output.splitlines()[-1]


def test_one_that_holds_its_interpreter_is_named_and_shows_where(few):
    ended = few(count=3, signals={1: [[3, "hold"]]})

    for code, seconds, output in (ended[0], ended[2]):
        assert code == PEER_LOST, output
        assert seconds < SILENT + SPARE
        assert f"process 1 of 3 not heard of for {SILENT} s" in output.splitlines()[-1]
    code, seconds, output = ended[1]
    assert code == 1, output
    assert seconds < SILENT + SPARE
    assert "in hurt" in output
