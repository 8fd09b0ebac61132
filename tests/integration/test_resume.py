"""What a run resumes from, and what it refuses to."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from smf_jax import checkpoint, sharding
from smf_jax.config import ComputeConfig
from smf_jax.slots import patch
from smf_jax.train import state
from tests import bases
from tests.integration.files import (
    TIMES,
    content,
    edit_record,
    flip,
    interrupt,
    largest,
    rows,
)


@pytest.fixture
def interrupted(base, tmp_path):
    """Returns a copy of `base` that was killed in its save of step 60."""
    return interrupt(shutil.copytree(base, tmp_path / "run"))


@pytest.fixture
def resume(run):
    """Returns a function that runs the command of `base` for a run directory."""
    return lambda run_dir, *more: run(bases.base_config(run_dir), *more)


def assert_same_run(run_dir, want_dir) -> None:
    logged = (
        [{name: row[name] for name in row.keys() - TIMES} for row in rows(folder)]
        for folder in (run_dir, want_dir)
    )
    assert next(logged) == next(logged)
    got, want = (checkpoint.read(folder, 60) for folder in (run_dir, want_dir))
    assert (got.arrays, got.progress) == (want.arrays, want.progress)


# --- from the latest checkpoint ---


@pytest.mark.parametrize("torn", ["", '{"step": 58}\n{"step": 59, "lo'])
def test_a_resumed_run_equals_one_that_was_never_interrupted(
    base, interrupted, resume, torn
):
    with (interrupted / "metrics.jsonl").open("a") as file:
        file.write(torn)  # after the checkpoint; the last row is incomplete

    code, printed = resume(interrupted)

    assert code == 0
    assert "from step 45 of 60" in printed
    assert_same_run(interrupted, base)
    seconds = [row["seconds"] for row in rows(interrupted)]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize(
    ("changed", "code", "says"), [("no row", 2, ""), ('"step": 25', 0, "WARNING: ")]
)
def test_metrics_damaged_before_the_checkpoint_are_named(
    interrupted, resume, changed, code, says
):
    path = interrupted / "metrics.jsonl"
    path.write_text(path.read_text().replace('"step": 24', changed))

    got, printed = resume(interrupted)

    assert got == code
    assert f"{says}{path} is damaged" in printed


def test_other_settings_are_refused_and_all_differences_named(interrupted, resume):
    other = ("--optim.learning-rate", "0.5", "--seed", "3", "--model.dim", "32")
    before = content(interrupted)

    code, printed = resume(interrupted, *other)

    assert code == 2
    assert "pretrain.optim.learning_rate was 0.01, now 0.5" in printed
    assert "pretrain.seed was 0, now 3" in printed
    assert "pretrain.model.dim was 16, now 32" in printed
    assert "log_every" not in printed
    assert content(interrupted) == before


def test_a_record_names_the_products_that_the_machine_chose(
    base, tmp_path, run, monkeypatch
):
    config = bases.base_config(tmp_path / "run")
    config = dataclasses.replace(config, compute=ComputeConfig(), steps=5)
    monkeypatch.setattr(sharding, "has_amx", lambda: True)

    code, printed = run(config)

    assert code == 0
    assert "products: factors rounded to bfloat16 (compute.products)" in printed
    record = json.loads((tmp_path / "run/config.json").read_text())
    assert record["pretrain"]["compute"]["products"] == "bfloat16"

    monkeypatch.setattr(sharding, "has_amx", lambda: False)
    code, printed = run(config)

    assert code == 2
    assert "compute.products was bfloat16, now float32" in printed


def test_resume_never_refuses_an_interrupted_run_and_changes_nothing(
    interrupted, resume
):
    before = content(interrupted)

    code, printed = resume(interrupted, "--resume", "never")

    assert code == 2
    assert f"{interrupted} holds a run interrupted after step 45" in printed
    assert content(interrupted) == before


def test_resume_must_refuses_to_start_a_new_run(tmp_path, resume):
    code, printed = resume(tmp_path / "none", "--resume", "must")

    assert code == 2
    assert "holds no checkpoint to resume from" in printed
    assert not (tmp_path / "none").exists()


def test_a_changed_tokenizer_is_refused(interrupted, resume):
    path = interrupted / "tokenizer.json"
    path.write_text(path.read_text().replace('"<unk>"', '"<unq>"'))

    code, printed = resume(interrupted)

    assert code == 2
    assert f"{path} is damaged" in printed


def test_skips_that_were_allowed_cannot_be_forbidden_later(
    interrupted, resume, monkeypatch
):
    load = checkpoint.load

    def skipped_twice(*arguments, **options):
        loaded, record = load(*arguments, **options)
        loaded["optimizer"]["skipped"] += 2
        return loaded, record

    monkeypatch.setattr(state.checkpoint, "load", skipped_twice)

    code, printed = resume(interrupted)
    assert code == 2
    assert "skipped 2 batches by step 45: resume with --on-nan skip=2" in printed
    assert resume(interrupted, "--on-nan", "skip=2")[0] == 0


# --- from an older checkpoint, or none ---


def test_a_damaged_checkpoint_stops_a_run_unless_fallback_is_allowed(
    base, interrupted, resume
):
    damaged = flip(largest(interrupted / "checkpoints" / "45"))
    flip(interrupted / "checkpoints" / "30" / "manifest.json", 40)

    code, printed = resume(interrupted)
    assert code == 2
    assert f"{damaged} is damaged" in printed
    assert "--allow-fallback resumes from step 15" in printed
    assert checkpoint.steps(interrupted) == [15, 30, 45]

    code, printed = resume(interrupted, "--allow-fallback")
    assert code == 0
    assert printed.count("WARNING") == 4
    assert "resuming from step 15 repeats 30 steps" in printed
    assert_same_run(interrupted, base)
    folders = {path.name for path in (interrupted / "checkpoints").iterdir()}
    assert folders == {"15", "30", "45", "60", "30.damaged", "45.damaged"}


def test_an_unreadable_checkpoint_counts_as_damaged(interrupted, resume, monkeypatch):
    unreadable = largest(interrupted / "checkpoints" / "45")
    opened = type(unreadable).open

    def fail(path, *arguments, **more):
        if path.name == unreadable.name:
            raise OSError(5, "Input/output error", str(path))
        return opened(path, *arguments, **more)

    monkeypatch.setattr(type(unreadable), "open", fail)

    code, printed = resume(interrupted)
    assert code == 2
    assert f"{unreadable} cannot be read (Input/output error)" in printed
    assert "--allow-fallback resumes from step 30" in printed


def test_a_run_without_an_intact_checkpoint_is_refused(interrupted, resume):
    for step in ("15", "30", "45"):
        flip(largest(interrupted / "checkpoints" / step))

    code, printed = resume(interrupted, "--allow-fallback")

    assert code == 2
    assert "no older checkpoint is intact" in printed
    assert checkpoint.steps(interrupted) == [15, 30, 45]


def test_a_run_whose_checkpoints_are_gone_is_not_started_anew(interrupted, resume):
    (interrupted / "checkpoints").rename(interrupted.parent / "elsewhere")

    code, printed = resume(interrupted)

    assert code == 2
    assert f"{interrupted} came to step 60 and has no checkpoint" in printed
    assert rows(interrupted)[-1]["step"] == 60


def test_starting_anew_removes_no_file_of_others(base, resume, tmp_path):
    run_dir = tmp_path / "run"
    (run_dir / "mine").mkdir(parents=True)
    (run_dir / "notes.txt").write_text("mine")
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(base / name, run_dir)

    assert resume(run_dir, "--steps", "4")[0] == 0

    assert (run_dir / "notes.txt").read_text() == "mine"
    assert (run_dir / "mine").is_dir()


# --- teaching ---


@pytest.fixture
def taught_interrupted(taught, tmp_path):
    return interrupt(shutil.copytree(taught, tmp_path / "smf"))


@pytest.fixture
def resume_teaching(commands, run):
    config = commands.folder / "smf.py"
    return lambda run_dir, *more: run("finetune", config, "--run-dir", run_dir, *more)


def test_teaching_resumes_with_the_same_base_usage_and_facts_alone(
    taught_interrupted, resume_teaching
):
    names = ("base_hash", "usage_hash", "corpus_hash")
    was = json.loads((taught_interrupted / "config.json").read_text())
    others = dict.fromkeys(names, "another")
    edit_record(taught_interrupted, lambda record: record.update(others))

    code, printed = resume_teaching(taught_interrupted)

    assert code == 2
    for name in names:
        assert f"{name} was another, now {was[name]}" in printed


def test_settings_that_change_no_result_may_change(
    commands, taught, taught_interrupted, resume_teaching
):
    # As by a version that had no such setting.
    edit_record(taught_interrupted, lambda r: r["finetune"]["compute"].pop("lookup"))

    other = ("--no-reuse-prefix", "--save.every", "9", "--on-nan", "skip=2")
    code, printed = resume_teaching(taught_interrupted, *other)

    assert code == 0
    assert "finetune.compute.lookup was None, now xla" in printed
    assert "finetune.reuse_prefix was True, now False" in printed
    assert "finetune.save.every was 2, now 9" in printed
    assert commands.compiled["run"]["jit(_prefix)"] == 0
    (got,), (want,) = (
        patch.load(folder / "patch.safetensors").tables
        for folder in (taught_interrupted, taught)
    )
    np.testing.assert_array_equal(got.slots, want.slots)
    # float32 sums in another order, at a rate of 5
    np.testing.assert_allclose(got.after, want.after, rtol=0, atol=1e-5)


def test_an_interrupted_run_is_neither_evaluated_nor_a_base(interrupted, run):
    for verb, *more in (["ask", "who ?"], ["usage"], ["evaluate"]):
        code, printed = run(verb, interrupted, *more)
        assert code == 2
        assert "was interrupted after step 45 of 60" in printed
