"""A run that is killed goes on, and ends with the bits of one that never was."""

import random
import shutil
import signal

import pytest

from smf_jax import checkpoint
from tests.faults.conftest import BETWEEN, STEPS, must_end_well, outcome

PARTS = 8  # of the file operations, so that a test does not take minutes
MOMENTS = random.Random(0)
# 24 of them: each job is killed at steps of its own, by chance.
KILLS = {
    job: sorted(MOMENTS.sample(range(1, STEPS + 1), 4))
    for job in ("pretrain", "smf", "lora", "full", "momentum", "retrofit")
}


@pytest.fixture
def want(jobs):
    """Returns the outcome of a job without faults, as that of another run directory."""

    def read(name):
        outcomes = outcome(jobs(name).reference)
        # The base is given its usage afterwards.
        return outcomes | {
            "files": sorted({*outcomes["files"]} - {"usage.safetensors"})
        }

    return read


@pytest.mark.parametrize("name", KILLS)
def test_killed_at_step_after_step_it_ends_with_the_same_bits(
    runner, jobs, want, tmp_path, name
):
    run_dir = tmp_path / "run"
    command = jobs(name).command(run_dir)

    for step in KILLS[name]:
        begun = checkpoint.latest_step(run_dir) or 0  # it goes on from there
        ended = runner(*command, signals=[(step - begun, signal.SIGKILL)])
        assert ended.code == -signal.SIGKILL, ended.output
    must_end_well(runner(*command))

    assert outcome(run_dir) == want(name)


@pytest.fixture(scope="module")
def interrupted(runner, jobs, tmp_path_factory):
    """Returns a run with its checkpoint of step 6, and three steps to go."""
    run_dir = tmp_path_factory.mktemp("interrupted") / "run"
    command = jobs("small").command(run_dir)
    assert runner(*command, signals=[(6, signal.SIGTERM)]).code == 75
    return run_dir


@pytest.mark.parametrize("part", range(PARTS))
def test_killed_at_any_file_operation_it_ends_with_the_same_bits(
    runner, jobs, want, interrupted, tmp_path, part
):
    # From resuming over the last save to the removal of an older checkpoint.
    for nth in range(1 + part * BETWEEN, 10_000, PARTS * BETWEEN):
        run_dir = tmp_path / str(nth)
        shutil.copytree(interrupted, run_dir)
        command = jobs("small").command(run_dir)
        ended = runner(*command, folder=run_dir, nth=nth)
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL, ended.output
        # What a later verb takes for whole must be so: the run goes on, or is whole.
        again = runner(*command)
        if again.code == 2:
            assert "holds a finished run" in again.output
        else:
            must_end_well(again)
        got = outcome(run_dir)
        # Killed between the last save and the removal of the oldest: one is left.
        for content in (got["arrays"], got["progress"]):
            content.pop("3", None)
        assert got == want("small"), f"operation {nth}"
        shutil.rmtree(run_dir)
    assert 10 < nth < 1000


@pytest.mark.parametrize("nth", range(1, 40, 4))
def test_killed_at_a_file_operation_of_its_beginning_it_begins_anew(
    runner, jobs, want, tmp_path, nth
):
    run_dir = tmp_path / "run"
    command = jobs("small").command(run_dir)

    ended = runner(*command, folder=run_dir, nth=nth)
    assert ended.code == -signal.SIGKILL, ended.output
    must_end_well(runner(*command))

    assert outcome(run_dir) == want("small")
