"""A run that is killed resumes, and ends with the bits of one that never was."""

import random
import re
import shutil
import signal

import pytest

from smf_jax import checkpoint
from tests.faults.conftest import EACH, STEPS, must_end_well, outcome

MOMENTS = random.Random(0)
KILLS = {
    job: sorted(MOMENTS.sample(range(1, STEPS + 1), 2 if EACH else 1))
    for job in ("pretrain", "smf", "lora", "full", "retrofit")
}
# Small runs, from resuming over the last save to the removal of an older checkpoint,
# or from the beginning.
PHASES = ("resumed", "new")


@pytest.mark.parametrize("name", KILLS)
def test_killed_at_step_after_step_a_run_ends_with_the_same_bits(
    runner, jobs, tmp_path, name
):
    run_dir = tmp_path / "run"
    command = jobs(name).command(run_dir)

    for step in KILLS[name]:
        start = checkpoint.latest_step(run_dir) or 0
        ended = runner(*command, signals=[(step - start, signal.SIGKILL)])
        assert ended.code == -signal.SIGKILL, ended.output
    must_end_well(runner(*command))

    assert outcome(run_dir) == outcome(jobs(name).reference)


@pytest.fixture
def start(interrupted, tmp_path):
    """Returns a function that puts the run directory of a phase in its place."""

    def start(phase: str):
        run_dir = tmp_path / phase
        shutil.rmtree(run_dir, ignore_errors=True)
        if phase == "resumed":
            shutil.copytree(interrupted, run_dir)
        return run_dir

    return start


@pytest.fixture
def finish(runner, jobs):
    """Returns a function that ends a killed run and compares it to one unhurt."""

    def finish(run_dir) -> None:
        must_end_well(runner(*jobs("small").command(run_dir)))
        got, want = outcome(run_dir), outcome(jobs("small").reference)
        # Killed between the last save and the removal of the oldest: that is left.
        for content in (got["arrays"], got["progress"]):
            content.pop("3", None)
        assert got == want

    return finish


def kinds(operations: list[str], run_dir) -> list[str]:
    """Returns a shell pattern for each kind of operation on each kind of file."""
    names = (operation.replace(str(run_dir), "*") for operation in operations)
    names = (re.sub(r"/(arrays[^/]*)/.*", r"/\1/*", name) for name in names)
    names = (re.sub(r"^unlink \*/[^/]*$", "unlink *.json*", name) for name in names)
    return list(dict.fromkeys(re.sub(r"\d+", "*", name) for name in names))


def test_killed_at_each_kind_of_file_operation_a_run_ends_with_the_same_bits(
    runner, jobs, start, finish
):
    killed = []
    for phase in PHASES:
        run_dir = start(phase)
        command = jobs("small").command(run_dir)
        unhurt = must_end_well(runner(*command, folder=run_dir))
        run_dir = start(phase)
        for kind in kinds(unhurt.operations, run_dir):
            if kind in killed:
                continue
            # One kill after the other, until the last checkpoint is saved.
            if checkpoint.latest_step(run_dir) == STEPS:
                finish(run_dir)
                run_dir = start(phase)
            ended = runner(*command, folder=run_dir, operation=kind, nth=1)
            assert ended.code == -signal.SIGKILL, f"{kind}: {ended.output}"
            killed.append(kind)
        finish(run_dir)

    assert {
        "write */config.json.partial",
        "write */metrics.jsonl",
        "write */checkpoints/*.saving/manifest.json",
        "rename */checkpoints/*",
        "unlink */checkpoints/*.deleting/arrays/*",
    } <= {*killed}
    assert len(killed) > 25


@pytest.mark.skipif(not EACH, reason="SMF_HURT_EACH=1 kills at each file operation")
@pytest.mark.parametrize("phase", PHASES)
def test_killed_at_each_file_operation_a_run_ends_with_the_same_bits(
    runner, jobs, start, finish, phase
):
    for nth in range(1, 1000):
        run_dir = start(phase)
        ended = runner(*jobs("small").command(run_dir), folder=run_dir, nth=nth)
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL, ended.output
        finish(run_dir)
    assert 10 < nth < 999
