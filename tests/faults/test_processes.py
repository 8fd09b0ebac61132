"""Several processes as one program: one dies, the others say so, all go on together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from smf_jax import checkpoint
from smf_jax.config import SaveConfig
from tests import tiny
from tests.faults.conftest import ROOT, outcome
from tests.integration.commands import CONFIG_FILE

PEER_LOST, ABORTED = 69, -signal.SIGABRT
TIMEOUT = 8  # seconds of silence after which a process is missed
STATED = TIMEOUT + 10  # within which the others end; the rest is for a busy machine
STEPS, EVERY = 30, 10


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Returns a function that runs a command in several processes."""
    folder = tmp_path_factory.mktemp("together")

    def run(argv, count=2, signals=None, more=None):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        started, seconds = [], {}
        for number in range(count):
            environment = os.environ | {
                "SMF_COORDINATOR": f"127.0.0.1:{port}",
                "SMF_NUM_PROCESSES": str(count),
                "SMF_PROCESS_ID": str(number),
                "SMF_PEER_TIMEOUT": str(TIMEOUT),
            }
            faults = json.dumps((signals or {}).get(number, []))
            command = [sys.executable, "-m", "tests.faults.one_of_many"]
            command += [str(folder / "cache"), faults, *map(str, argv)]
            command += (more or {}).get(number, [])
            with (folder / f"output-{number}").open("w") as output:
                started.append(
                    subprocess.Popen(
                        command, cwd=ROOT, env=environment, stdout=output, stderr=output
                    )
                )
        try:
            deadline = time.monotonic() + 120
            while len(seconds) < count and time.monotonic() < deadline:
                for number, process in enumerate(started):
                    if process.poll() is not None:
                        seconds.setdefault(number, time.monotonic())
                time.sleep(0.05)
        finally:
            for process in started:
                process.kill()
                process.wait()
        assert len(seconds) == count, "a process hangs"
        time.sleep(0.5)  # what is said of a process is said after its end
        first = min(seconds.values())
        return {
            number: (
                process.returncode,
                seconds[number] - first,
                (folder / f"output-{number}").read_text(),
            )
            for number, process in enumerate(started)
        }

    return run


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Returns a function from a run directory to the command that trains there."""
    path = tmp_path_factory.mktemp("config") / "config.py"
    config = tiny.pretrain_config("unused", STEPS)
    object.__setattr__(config.data, "batch_size", 4)  # which two and four can share
    object.__setattr__(config, "save", SaveConfig(every=EVERY))
    path.write_text(CONFIG_FILE.format(config=config))
    return lambda run_dir: ["pretrain", path, "--run-dir", run_dir]


@pytest.fixture(scope="module")
def reference(together, command, tmp_path_factory):
    """Returns a run of two processes that nothing hurt."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    for code, _, output in together(command(run_dir)).values():
        assert code == 0, output
    return run_dir


@pytest.mark.parametrize("victim", [0, 1])
def test_one_dies_the_other_names_it_in_time_and_both_go_on_together(
    together, command, reference, tmp_path, victim
):
    run_dir, other = tmp_path / "run", 1 - victim

    ended = together(command(run_dir), signals={victim: [[25, signal.SIGKILL]]})

    code, seconds, output = ended[other]
    assert ended[victim][0] == -signal.SIGKILL
    assert code == (PEER_LOST if victim else ABORTED), output
    assert seconds < STATED
    assert f"process {victim}" in output.splitlines()[-1]
    assert "dead or cut off" in output.splitlines()[-1]
    assert checkpoint.problems(run_dir, checkpoint.latest_step(run_dir)) == []

    for code, _, output in together(command(run_dir)).values():
        assert code == 0, output
    assert outcome(run_dir) == outcome(reference)


def test_one_is_told_to_stop_and_all_save_the_same_step(
    together, command, reference, tmp_path
):
    run_dir = tmp_path / "run"

    ended = together(command(run_dir), signals={1: [[12, signal.SIGTERM]]})

    assert [code for code, _, _ in ended.values()] == [75, 75]
    stopped = [output.splitlines()[-1] for _, _, output in ended.values()]
    assert stopped[0] == stopped[1]
    for code, _, output in together(command(run_dir)).values():
        assert code == 0, output
    got, want = outcome(run_dir), outcome(reference)
    assert got["arrays"]["30"] == want["arrays"]["30"]
    assert got["metrics"] == want["metrics"]


@pytest.mark.parametrize("count", [1, 4])
def test_another_number_of_processes_reads_the_same_parameters(
    together, reference, count
):
    want = checkpoint.read(reference, STEPS).arrays

    ended = together(["verify", reference], count)

    for code, _, output in ended.values():
        assert code == 0, output
    (line,) = [
        line for line in ended[0][2].splitlines() if line.startswith("params sha256 ")
    ]
    params = {n.removeprefix("params/"): d for n, d in want.items() if "params/" in n}
    assert line == f"params sha256 {checkpoint.hash_of(params)}"


def test_rows_that_cannot_be_shared_are_refused_by_every_process(
    together, command, tmp_path
):
    argv = [*command(tmp_path / "run"), "--data.batch-size", "3"]

    for code, _, output in together(argv).values():
        assert code == 2
        assert "a batch of 3 rows cannot be shared by 2 processes" in output


def test_one_with_other_settings_is_refused_by_all_before_any_work(
    together, command, tmp_path
):
    run_dir = tmp_path / "run"
    other = {1: ["--optim.learning-rate", "0.5"]}

    for code, _, output in together(command(run_dir), more=other).values():
        assert code == 2
        assert "configuration, code or data of process 1 is not that of process 0" in (
            output
        )
    assert not (run_dir / "config.json").exists()
