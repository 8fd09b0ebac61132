"""What a taught run consists of, and what `verify` says of damage to it."""

import shutil

import numpy as np
import pytest

from smf_jax import checkpoint
from smf_jax.runs.load import load_run
from smf_jax.slots import patch
from tests import bases
from tests.integration.files import edit_record, flip, interrupt, largest, read_json


@pytest.fixture
def verify(run):
    """Returns a function that verifies a run: its exit code and lines."""

    def verify(run_dir) -> tuple[int, list[str]]:
        code, printed = run("verify", run_dir)
        return code, printed.splitlines()

    return verify


# --- a taught run and its base ---


def test_a_taught_run_holds_what_was_trained_and_the_patch_from_its_base(base, taught):
    manifest = checkpoint.read(taught, 6)
    change = patch.load(taught / "patch.safetensors")
    base_hash = load_run(base).model_hash
    before, after = (
        [np.asarray(table[...]) for table in load_run(run_dir).model.values]
        for run_dir in (base, taught)
    )

    params = {name for name in manifest.arrays if name.startswith("params/")}
    assert params == {"params/values/0"}
    assert read_json(taught / "config.json")["base_hash"] == base_hash
    assert change.base_hash == base_hash
    for got, want in (
        (patch.apply(before, change), after),
        (patch.revert(after, change), before),
    ):
        np.testing.assert_array_equal(got[0].view("u4"), want[0].view("u4"))


def set_base(run_dir, base) -> None:
    edit_record(run_dir, lambda record: record["finetune"].update(base=str(base)))


def test_a_base_is_found_beside_its_run_when_both_were_moved(base, taught, tmp_path):
    for run_dir in (base, taught):
        shutil.copytree(run_dir, tmp_path / run_dir.name)
    moved = tmp_path / taught.name
    set_base(moved, "gone/base")

    assert load_run(moved).model_hash == load_run(taught).model_hash


def test_a_taught_run_is_refused_without_its_very_base(base, taught, run, tmp_path):
    moved = shutil.copytree(taught, tmp_path / "smf")
    other = interrupt(shutil.copytree(base, tmp_path / "other"))
    set_base(moved, other)

    code, printed = run("ask", moved, "who ?")
    assert code == 2
    assert "was interrupted after step 45 of 60" in printed

    shutil.rmtree(other)
    assert run(bases.base_config(other), "--seed", "1", "--steps", "4")[0] == 0
    code, printed = run("ask", moved, "who ?")
    assert code == 2
    for run_dir in (base, other):
        assert load_run(run_dir).model_hash in printed


def test_a_kept_checkpoint_is_evaluated_by_its_step(taught, run, tmp_path):
    run_dir = shutil.copytree(taught, tmp_path / taught.name)
    curve = read_json(taught / "teaching.json")["curve"]

    for step, *want in curve[1:]:
        assert run("evaluate", run_dir, "--step", step)[0] == 0
        scores = read_json(run_dir / f"evaluation-{step}.json")["scores"]
        groups = ("taught", "held_out", "known")
        assert want == [scores[group]["exact_match"] for group in groups]
    code, printed = run("evaluate", run_dir, "--step", "3")
    assert code == 2
    assert "holds no step 3, only [2, 4, 6]" in printed


def test_a_checkpoint_has_the_scores_of_its_own_step(taught):
    metrics = [checkpoint.read(taught, step).metrics for step in (2, 4, 6)]

    assert ["known" in of_step for of_step in metrics] == [False, True, True]


# --- damage ---


@pytest.mark.parametrize("name", ["base", "taught"])
def test_an_intact_run_is_named_by_the_hash_of_its_parameters(verify, request, name):
    run_dir = request.getfixturevalue(name)

    code, lines = verify(run_dir)

    assert code == 0
    assert f"params sha256 {load_run(run_dir).model_hash}" in lines
    assert not any("DAMAGED" in line for line in lines)


def test_an_interrupted_run_is_intact(verify, base, tmp_path):
    code, lines = verify(interrupt(shutil.copytree(base, tmp_path / "run")))

    assert code == 0
    assert "run: interrupted, step 45 of 60" in lines


def test_every_damaged_file_is_named(verify, base, tmp_path):
    run_dir = shutil.copytree(base, tmp_path / "run")
    damaged = [flip(largest(run_dir / "checkpoints" / step)) for step in ("15", "60")]

    code, lines = verify(run_dir)

    assert code == 1
    named = [line for line in lines if line.startswith("DAMAGED")]
    assert named == [
        f"DAMAGED {path} is damaged: checksum mismatch" for path in damaged
    ]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("base", "usage.safetensors"),
        ("taught", "patch.safetensors"),
        ("taught", "teaching.json"),
    ],
)
def test_a_damaged_file_beside_the_checkpoints_is_named(
    verify, request, tmp_path, name, file
):
    run_dir = shutil.copytree(request.getfixturevalue(name), tmp_path / "run")
    flip(run_dir / file)

    code, lines = verify(run_dir)

    assert code == 1
    assert any(line.startswith(f"DAMAGED {run_dir / file}") for line in lines)


@pytest.mark.parametrize("damage", ["missing", "repeated", "digit", "appended"])
def test_damaged_metrics_are_named(verify, base, tmp_path, damage):
    run_dir = shutil.copytree(base, tmp_path / "run")
    path = run_dir / "metrics.jsonl"
    rows = path.read_text().splitlines(keepends=True)
    changed = {
        "missing": rows[:3] + rows[4:],
        "repeated": rows[:1] + rows,
        "digit": [rows[0].replace('"step": 8', '"step": 9'), *rows[1:]],
        "appended": rows + rows[:1],  # after the last checkpoint: no damage
    }[damage]
    assert changed != rows
    path.write_text("".join(changed))

    code, lines = verify(run_dir)

    is_damage = damage != "appended"
    assert code == is_damage
    assert any(line.startswith(f"DAMAGED {path}") for line in lines) == is_damage


def test_a_run_with_the_tokenizer_of_another_is_damaged(base, tmp_path, verify):
    run_dir = shutil.copytree(base, tmp_path / "run")
    edit_record(
        run_dir, lambda record: record.update(tokenizer_hash="0123456789abcdef")
    )

    code, lines = verify(run_dir)

    assert code == 1
    assert "is not the tokenizer of this model" in lines[-1]


def test_a_folder_that_is_no_run_is_not_verified(run, tmp_path):
    code, printed = run("verify", tmp_path)

    assert code == 2
    assert "holds no checkpoint" in printed
