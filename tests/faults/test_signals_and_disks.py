"""A run that is told to stop, or that cannot write, loses nothing it had saved."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from random import Random

import pytest

from smf_jax import checkpoint
from tests.faults.children import ROOT, SMF
from tests.faults.conftest import EACH, SAVED, must_end_well, outcome

AT_ONCE = 130  # exit code, see docs/reference/exit_codes.md


@pytest.mark.parametrize(
    ("name", "number"), [("pretrain", signal.SIGTERM), ("smf", signal.SIGINT)]
)
def test_a_run_that_is_told_to_stop_saves_and_resumes(
    runner, jobs, tmp_path, name, number
):
    run_dir = tmp_path / "run"
    command = jobs(name).command(run_dir)

    ended = runner(*command, signals=[(5, number)])
    assert ended.code == SAVED
    assert "stopped after step 5 of 9, and saved" in ended.output
    assert checkpoint.latest_step(run_dir) == 5
    again = must_end_well(runner(*command, "--resume", "must"))

    assert "from step 5 of 9" in again.output
    got, want = outcome(run_dir), outcome(jobs(name).reference)
    assert got["metrics"] == want["metrics"]
    assert got["arrays"]["9"] == want["arrays"]["9"]
    assert got["evaluation"] == want["evaluation"]


def test_a_run_that_is_told_to_stop_in_its_last_step_is_finished(
    runner, jobs, tmp_path
):
    command = jobs("small").command(tmp_path / "run")

    must_end_well(runner(*command, signals=[(9, signal.SIGTERM)]))


def test_a_second_ctrl_c_ends_a_run_at_once_and_keeps_what_was_saved(
    runner, jobs, interrupted, tmp_path
):
    run_dir = shutil.copytree(interrupted, tmp_path / "run")
    command = jobs("small").command(run_dir)

    twice = [(1, signal.SIGINT), (1, signal.SIGINT)]
    assert runner(*command, signals=twice).code == AT_ONCE

    assert checkpoint.problems(run_dir, 6) == []
    must_end_well(runner(*command))
    want = outcome(jobs("small").reference)["arrays"]["9"]
    assert outcome(run_dir)["arrays"]["9"] == want


@pytest.mark.skipif(not EACH, reason="SMF_HURT_EACH=1 interrupts at 200 moments")
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_a_run_at_each_moment_of_its_start(jobs, tmp_path, times):
    run_dir = tmp_path / "run"
    endless = ["--steps", "1000000", "--log-every", "1000", "--save.every", "1000"]
    command = [sys.executable, "-c", SMF, *jobs("small").command(run_dir, *endless)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    random, codes = Random(times), Counter()

    for _ in range(200):
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            time.sleep(random.uniform(0.3, 4))  # Python itself has started
            for _ in range(times):
                process.send_signal(signal.SIGINT)
                time.sleep(0.3)
            try:
                process.wait(timeout=2 if times == 2 else 20)
            finally:
                process.kill()
        codes[process.returncode] += 1

    print(f"\n{times} times: {dict(codes)}")
    assert codes.keys() <= {AT_ONCE, SAVED}
    step = checkpoint.latest_step(run_dir)
    assert step is None or checkpoint.problems(run_dir, step) == []


FULL = {
    errno.ENOSPC: "No space left on device",
    errno.EDQUOT: "Disk quota exceeded",
    errno.EROFS: "Read-only file system",
}


@pytest.mark.parametrize("nth", range(1, 60) if EACH else (1, 5, 21, 41))
def test_a_run_that_cannot_write_any_more_says_so_and_loses_nothing(
    runner, jobs, interrupted, tmp_path, nth
):
    number = [*FULL][nth % 3]
    run_dir = shutil.copytree(interrupted, tmp_path / "run")
    command = jobs("small").command(run_dir)

    ended = runner(*command, folder=run_dir, nth=nth, errno=number)

    assert ended.code == 1, ended.output
    # Threads of a library may complain before and after it, even on the same line.
    (line,) = [line for line in ended.output.splitlines() if "smf pretrain: " in line]
    assert FULL[number] in line
    assert checkpoint.problems(run_dir, 6) == []
    must_end_well(runner(*command))
    got, want = outcome(run_dir), outcome(jobs("small").reference)
    assert got == want | {"files": got["files"]}


HOLD = """
import sys, time
from smf_jax.runs.lock import lock_run_dir

with lock_run_dir(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_second_writer_is_refused_until_the_first_is_dead(runner, jobs, tmp_path):
    run_dir = tmp_path / "run"
    command = jobs("small").command(run_dir)
    hold = [sys.executable, "-c", HOLD, str(run_dir)]

    with subprocess.Popen(hold, cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "locked\n"
        ended = runner(*command)
        assert ended.code == 2
        assert f"is being written by process {first.pid} on " in ended.output
        first.kill()
        first.wait()
        must_end_well(runner(*command))


def test_a_reader_that_goes_away_does_not_end_a_run(jobs, tmp_path):
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "smf_jax", *jobs("small").command(run_dir)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}

    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.wait(timeout=120) == 0

    assert checkpoint.latest_step(run_dir) == 9
