"""Several processes as one program: one dies, the others say so, all go on together."""

import json
import signal

import numpy as np
import pytest

from smf_jax import checkpoint
from smf_jax.config import FinetuneConfig, MeshConfig, OptimConfig
from smf_jax.slots import patch
from tests.faults.conftest import MISSED, outcome
from tests.integration.commands import CONFIG_FILE

PEER_LOST, ABORTED = 69, -signal.SIGABRT
STATED = MISSED + 10  # within which the others end; the rest is for a busy machine
STEPS = 30


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
    if victim:
        assert "process 1 of 2 sent no heartbeat" in output.splitlines()[-1]
    else:  # jax aborts first; it calls process 0 the leader task
        assert "Either the leader task was preempted/died" in output
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


CURVE = ["--steps", "20", "--log-every", "1", "--data.batch-size", "5"]
SHARED = {
    "parts of each layer": (2, ["--mesh.model", "2", "--mesh.values", "slots"]),
    "slots of each": (4, ["--mesh.fsdp", "2", "--mesh.values", "everywhere"]),
}


def train_together(together, argv, count, **more) -> None:
    for code, _, output in together(argv, count, **more).values():
        assert code == 0, output


def losses(run_dir) -> list[float]:
    rows = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["loss"] for row in rows]


@pytest.fixture(scope="module")
def alone(together, command, tmp_path_factory):
    """Returns a run of one process, which others are to repeat."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    train_together(together, [*command(run_dir), *CURVE], 1)
    return run_dir


@pytest.mark.parametrize("name", SHARED)
def test_several_processes_train_as_one_does(together, command, alone, tmp_path, name):
    count, mesh = SHARED[name]
    run_dir = tmp_path / "run"

    # Five rows, of which some get one more than others.
    train_together(together, [*command(run_dir), *CURVE, *mesh], count)

    assert len(losses(run_dir)) == 20
    assert losses(run_dir) == pytest.approx(losses(alone), abs=1e-5)


def test_what_two_have_begun_four_end(together, command, alone, tmp_path):
    argv = [*command(tmp_path / "run"), *CURVE]
    begun = together([*argv, "--mesh.fsdp", "2"], signals={1: [[12, signal.SIGTERM]]})
    assert [code for code, _, _ in begun.values()] == [75, 75]

    train_together(together, [*argv, "--mesh.fsdp", "4"], 4)

    assert losses(tmp_path / "run") == pytest.approx(losses(alone), abs=1e-5)


def test_one_with_other_settings_is_refused_by_all_before_any_work(
    together, command, tmp_path
):
    run_dir = tmp_path / "run"
    other = {1: ["--optim.learning-rate", "0.5"]}

    for code, _, output in together(command(run_dir), more=other).values():
        assert code == 2
        assert "command or code of process 1 differs from process 0" in output
    assert not (run_dir / "config.json").exists()


def test_two_processes_teach_what_one_does(together, reference, tmp_path):
    config = FinetuneConfig(
        base=str(reference),
        run_dir="unused",
        teach="statements",
        steps=4,
        batch_size=3,
        eval_every=0,
        log_every=1,
        mesh=MeshConfig(fsdp=0, data=1, values="everywhere"),
        optim=OptimConfig(method="smf", optimizer="sgd", learning_rate=5.0, top_t=4),
    )
    path = tmp_path / "smf.py"
    path.write_text(CONFIG_FILE.format(config=config))
    train_together(together, ["usage", reference, "--documents", "4"], 2)

    runs = [tmp_path / "one", tmp_path / "two"]
    for count, run_dir in enumerate(runs, 1):
        argv = ["finetune", path, "--run-dir", run_dir]
        train_together(together, argv, count)

    assert losses(runs[1]) == pytest.approx(losses(runs[0]), abs=1e-5)
    one, two = (patch.load(run / "patch.safetensors").tables[0] for run in runs)
    assert two.slots.tolist() == one.slots.tolist()
    np.testing.assert_allclose(two.after, one.after, rtol=0, atol=1e-5)
