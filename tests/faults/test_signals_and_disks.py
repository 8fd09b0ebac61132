"""A run that is told to stop, or that cannot write, loses nothing that it had."""

import errno
import os
import shutil
import signal
import subprocess
import sys

import pytest

from smf_jax import checkpoint
from tests.faults.children import ROOT
from tests.faults.conftest import BETWEEN, must_end_well, outcome

SAVED, AT_ONCE = 75, 130  # exit codes, as README.md has them


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["pretrain", "smf"])
def test_told_to_stop_it_saves_and_the_same_command_goes_on(
    runner, jobs, tmp_path, number, name
):
    run_dir = tmp_path / "run"
    command = jobs(name).command(run_dir)

    ended = runner(*command, signals=[(5, number)])
    assert ended.code == SAVED
    assert "stopped after step 5 of 9, and saved; the same command goes on" in (
        ended.output
    )
    assert checkpoint.latest_step(run_dir) == 5
    again = must_end_well(runner(*command, "--resume", "must"))

    assert "going on from step 5 of 9" in again.output
    got, want = outcome(run_dir), outcome(jobs(name).reference)
    assert got["metrics"] == want["metrics"]
    assert got["arrays"]["9"] == want["arrays"]["9"]
    assert got["evaluation"] == want["evaluation"]


def test_told_to_stop_in_its_last_step_it_is_done(runner, jobs, tmp_path):
    command = jobs("pretrain").command(tmp_path / "run")

    must_end_well(runner(*command, signals=[(9, signal.SIGTERM)]))


def test_a_second_ctrl_c_ends_it_at_once_and_what_was_saved_stands(
    runner, jobs, tmp_path
):
    run_dir = tmp_path / "run"
    command = jobs("pretrain").command(run_dir)
    assert runner(*command, signals=[(5, signal.SIGTERM)]).code == SAVED

    twice = [(1, signal.SIGINT), (1, signal.SIGINT)]
    assert runner(*command, signals=twice).code == AT_ONCE

    assert checkpoint.problems(run_dir, 5) == []
    must_end_well(runner(*command))
    assert (
        outcome(run_dir)["arrays"]["9"]
        == (outcome(jobs("pretrain").reference)["arrays"]["9"])
    )


@pytest.fixture(scope="module")
def interrupted(runner, jobs, tmp_path_factory):
    """Returns a run with its checkpoint of step 6, and three steps to go."""
    run_dir = tmp_path_factory.mktemp("interrupted") / "run"
    command = jobs("small").command(run_dir)
    assert runner(*command, signals=[(6, signal.SIGTERM)]).code == SAVED
    return run_dir


FULL = ("ENOSPC", "EDQUOT", "EROFS")  # disk full, over the quota, read-only


@pytest.mark.parametrize("start", range(3))
def test_where_nothing_can_be_written_any_more_it_says_so_and_loses_nothing(
    runner, jobs, interrupted, tmp_path, start
):
    # The three in turn, from one file operation on after another.
    for nth in range(1 + start, 60, 6 * BETWEEN):
        name = FULL[nth % 3]
        run_dir = tmp_path / str(nth)
        shutil.copytree(interrupted, run_dir)
        command = jobs("small").command(run_dir)

        ended = runner(*command, folder=run_dir, nth=nth, errno=getattr(errno, name))

        assert ended.code == 1, ended.output
        # Threads of a library may complain between, and beside it on the line.
        lines = ended.output.splitlines()
        (said,) = [line for line in lines if "smf pretrain: " in line]
        reason = {
            "ENOSPC": "No space left on device",
            "EDQUOT": "Disk quota exceeded",
            "EROFS": "Read-only file system",
        }[name]
        assert reason in said
        assert checkpoint.problems(run_dir, 6) == []
        must_end_well(runner(*command))
        assert outcome(run_dir) == outcome(jobs("small").reference) | {
            "files": outcome(run_dir)["files"]
        }


def test_the_second_writer_is_refused_until_the_first_is_dead(
    jobs, runner, tmp_path, refused_while_held
):
    run_dir = tmp_path / "run"
    command = jobs("small").command(run_dir)

    with refused_while_held(run_dir) as holder:
        ended = runner(*command)
        assert ended.code == 2
        assert f"is being written by process {holder.pid} on " in ended.output
        holder.kill()
        holder.wait()
        must_end_well(runner(*command))


@pytest.fixture
def refused_while_held():
    """Returns a function that starts a process which holds a run directory."""
    holding = (
        "import sys, time\n"
        "from smf_jax.runs.lock import lock_run_dir\n"
        "with lock_run_dir(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )

    def hold(run_dir):
        holder = subprocess.Popen(
            [sys.executable, "-c", holding, str(run_dir)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert holder.stdout.readline() == "held\n"
        return holder

    return hold


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
