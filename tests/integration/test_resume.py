"""What a run goes on from, what it refuses to, and how `verify` tells what is wrong."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from smf_jax import checkpoint
from smf_jax.config import FinetuneConfig, OptimConfig, SaveConfig
from smf_jax.runs.load import load_run
from smf_jax.slots import patch
from tests import tiny
from tests.integration.commands import Commands

STEPS, EVERY = 20, 5


def pretrain_config(run_dir):
    save = SaveConfig(every=EVERY, keep=9)
    config = tiny.pretrain_config(run_dir, STEPS)
    return dataclasses.replace(config, save=save, log_every=2)


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def base(commands):
    run_dir = commands.folder / "base"
    assert commands.run_config("base", "pretrain", pretrain_config(run_dir)) == 0
    assert commands.run("usage", "usage", str(run_dir), "--documents", "5") == 0
    return run_dir


@pytest.fixture(scope="module")
def taught(commands, base):
    run_dir = commands.folder / "smf"
    config = FinetuneConfig(
        mesh=tiny.ONE,
        base=str(base),
        run_dir=str(run_dir),
        teach="statements",
        steps=6,
        batch_size=6,
        eval_every=2,
        log_every=2,
        save=SaveConfig(every=2, keep=9),
        optim=OptimConfig(method="smf", optimizer="sgd", learning_rate=5.0, top_t=3),
    )
    assert commands.run_config("smf", "finetune", config) == 0
    return run_dir


@pytest.fixture
def interrupted(base, tmp_path):
    """Returns a run that was killed in its last save."""
    run_dir = shutil.copytree(base, tmp_path / "run")
    shutil.rmtree(run_dir / "checkpoints" / str(STEPS))
    (run_dir / "usage.safetensors").unlink()
    return run_dir


@pytest.fixture
def go_on(commands, base, capsys):
    """Returns a function that runs the command of `base` again: its code and words."""

    def run(run_dir, *more: str) -> tuple[int, str]:
        capsys.readouterr()
        config = str(commands.folder / "base.py")
        code = commands.run(
            "again", "pretrain", config, "--run-dir", str(run_dir), *more
        )
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


@pytest.fixture
def verify(commands, capsys):
    """Returns a function that verifies a run: its code and lines."""

    def run(run_dir) -> tuple[int, list[str]]:
        capsys.readouterr()
        code = commands.run("verify", "verify", str(run_dir))
        return code, capsys.readouterr().out.splitlines()

    return run


def rows(run_dir) -> list[dict]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    times = ("seconds", "tokens_per_second")
    return [
        {name: value for name, value in json.loads(line).items() if name not in times}
        for line in lines
    ]


def flip(path, place=-1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def largest(folder):
    return max(
        (path for path in folder.rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )


def vouch_for_config(run_dir, path) -> None:
    """Makes a manifest vouch for the record of a run as it is now."""
    manifest = checkpoint.read(run_dir, int(path.parent.name))
    digest = checkpoint.manifest.file_digest(run_dir / "config.json")
    run_files = manifest.run_files | {"config.json": digest}
    checkpoint.manifest.write(path.parent, manifest._replace(run_files=run_files))


def test_a_run_with_the_tokenizer_of_another_is_refused(base, tmp_path, verify):
    run_dir = shutil.copytree(base, tmp_path / "run")
    record = json.loads((run_dir / "config.json").read_text())
    record["tokenizer_hash"] = "0123456789abcdef"
    (run_dir / "config.json").write_text(json.dumps(record))
    for path in run_dir.glob("checkpoints/*/manifest.json"):
        vouch_for_config(run_dir, path)

    code, lines = verify(run_dir)

    assert code == 1
    assert "is not the tokenizer of this model" in lines[-1]


# --- going on ---


def test_moments_of_rows_that_were_not_read_go_on_as_they_were(commands):
    whole, killed = (commands.folder / name for name in ("whole", "killed"))
    config = pretrain_config(whole)
    optim = dataclasses.replace(config.optim, rows="read", weight_decay=0.1)
    config = dataclasses.replace(config, optim=optim)
    assert commands.run_config("read", "pretrain", config) == 0
    shutil.copytree(whole, killed)
    shutil.rmtree(killed / "checkpoints" / str(STEPS))

    again = ("pretrain", str(commands.folder / "read.py"), "--run-dir", str(killed))
    assert commands.run("again", *again) == 0

    got, want = (checkpoint.read(run_dir, STEPS) for run_dir in (killed, whole))
    assert (got.arrays, got.progress) == (want.arrays, want.progress)


def test_it_goes_on_and_is_the_same_as_if_never_interrupted(base, interrupted, go_on):
    code, said = go_on(interrupted)

    assert code == 0
    assert "going on from step 15 of 20" in said
    assert load_run(interrupted).model_hash == load_run(base).model_hash
    assert rows(interrupted) == rows(base)
    got, want = (checkpoint.read(d, STEPS) for d in (interrupted, base))
    assert (got.arrays, got.progress) == (want.arrays, want.progress)


def test_seconds_are_counted_on(interrupted, go_on):
    go_on(interrupted)

    lines = (interrupted / "metrics.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("end", ["", '{"step": 18, "lo', '{"step": 18}'])
def test_what_metrics_said_after_the_checkpoint_is_said_again_once(
    base, interrupted, go_on, end
):
    with (interrupted / "metrics.jsonl").open("a") as file:
        file.write(end)

    assert go_on(interrupted)[0] == 0
    assert rows(interrupted) == rows(base)


def test_metrics_that_are_damaged_in_the_middle_are_refused(interrupted, go_on):
    path = interrupted / "metrics.jsonl"
    path.write_text("no row\n" + path.read_text())

    code, said = go_on(interrupted)

    assert code == 2
    assert f"{path} is damaged" in said


def test_what_is_refused_changes_nothing(interrupted, go_on):
    def content():
        files = (path for path in interrupted.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files if path.name != ".lock"}

    before = content()

    assert go_on(interrupted, "--resume", "never")[0] == 2
    assert go_on(interrupted, "--seed", "1")[0] == 2
    assert content() == before


def test_never_going_on_refuses_to_lose_what_is_there(interrupted, go_on):
    code, said = go_on(interrupted, "--resume", "never")

    assert code == 2
    assert f"{interrupted} holds a run interrupted after step 15" in said


def test_having_to_go_on_refuses_to_begin_anew(tmp_path, go_on):
    code, said = go_on(tmp_path / "none", "--resume", "must")

    assert code == 2
    assert "holds no checkpoint to go on from" in said
    assert not (tmp_path / "none").exists()


def test_other_settings_are_refused_and_each_difference_is_listed(interrupted, go_on):
    other = ("--optim.learning-rate", "0.5", "--seed", "3", "--model.dim", "32")

    code, said = go_on(interrupted, *other)

    assert code == 2
    assert "pretrain.optim.learning_rate was 0.01, now 0.5" in said
    assert "pretrain.seed was 0, now 3" in said
    assert "pretrain.model.dim was 16, now 32" in said
    assert "log_every" not in said


def test_what_changes_no_number_may_be_another(base, interrupted, go_on):
    code, _ = go_on(interrupted, "--save.every", "9", "--on-nan", "skip=2")

    assert code == 0
    assert load_run(interrupted).model_hash == load_run(base).model_hash


def test_a_tokenizer_that_was_changed_is_refused(interrupted, go_on):
    path = interrupted / "tokenizer.json"
    path.write_text(path.read_text().replace('"<unk>"', '"<unq>"'))

    code, said = go_on(interrupted)

    assert code == 2
    assert f"{path} is damaged: checksum mismatch" in said


# --- damaged checkpoints ---


def test_a_damaged_checkpoint_is_not_passed_over_in_silence(interrupted, go_on):
    damaged = largest(interrupted / "checkpoints" / "15")
    flip(damaged)

    code, said = go_on(interrupted)

    assert code == 2
    assert f"{damaged} is damaged: checksum mismatch" in said
    assert "--allow-fallback goes on from step 10" in said
    assert checkpoint.steps(interrupted) == [5, 10, 15]


def test_an_older_checkpoint_is_gone_on_from_when_allowed_and_loudly(
    base, interrupted, go_on
):
    flip(largest(interrupted / "checkpoints" / "15"))
    flip(interrupted / "checkpoints" / "10" / "manifest.json", 40)

    code, said = go_on(interrupted, "--allow-fallback")

    assert code == 0
    assert said.count("WARNING") == 4
    assert "going on from step 5 instead, so 10 steps are done again" in said
    assert rows(interrupted) == rows(base)
    assert load_run(interrupted).model_hash == load_run(base).model_hash
    aside = {path.name for path in (interrupted / "checkpoints").iterdir()}
    assert aside == {"5", "10", "15", "20", "10.damaged", "15.damaged"}


def test_where_no_checkpoint_is_whole_none_is_gone_on_from(interrupted, go_on):
    for step in (5, 10, 15):
        flip(largest(interrupted / "checkpoints" / str(step)))

    code, said = go_on(interrupted, "--allow-fallback")

    assert code == 2
    assert "no older one is whole" in said
    assert checkpoint.steps(interrupted) == [5, 10, 15]


# --- runs that stand on others ---


def test_a_taught_run_holds_what_trained_and_names_its_base(base, taught):
    manifest = checkpoint.read(taught, 6)
    params = {name for name in manifest.arrays if name.startswith("params/")}
    record = json.loads((taught / "config.json").read_text())

    assert params == {"params/values/0"}
    assert record["base_hash"] == load_run(base).model_hash


def test_runs_that_are_moved_together_stay_together(base, taught, tmp_path):
    for run_dir in (base, taught):
        shutil.copytree(run_dir, tmp_path / run_dir.name)
    record = tmp_path / "smf" / "config.json"
    want = load_run(taught).model_hash
    text = record.read_text().replace(str(base), "gone/base")
    record.write_text(text)
    for path in (tmp_path / "smf" / "checkpoints").glob("*/manifest.json"):
        vouch_for_config(tmp_path / "smf", path)

    assert load_run(tmp_path / "smf").model_hash == want


def test_a_taught_run_on_another_base_is_refused_by_both_hashes(
    commands, base, taught, tmp_path, capsys
):
    want = load_run(base).model_hash
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(taught, tmp_path / "smf")
    shutil.rmtree(tmp_path / "base" / "checkpoints" / str(STEPS))
    kept = base.rename(base.with_name("hidden"))
    try:
        assert commands.run("ask", "ask", str(tmp_path / "smf"), "who ?") == 2
        assert "was interrupted after step 15 of 20" in capsys.readouterr().err
        other = pretrain_config(tmp_path / "other")
        other = dataclasses.replace(other, seed=1)
        assert commands.run_config("other", "pretrain", other) == 0
        shutil.rmtree(tmp_path / "base")
        (tmp_path / "other").rename(tmp_path / "base")
        capsys.readouterr()
        assert commands.run("ask", "ask", str(tmp_path / "smf"), "who ?") == 2
        assert f"taught model {want}" in capsys.readouterr().err
    finally:
        kept.rename(base)


def test_an_interrupted_run_is_no_base_and_answers_nothing(
    commands, interrupted, capsys
):
    for verb in (["ask", "who ?"], ["usage"], ["evaluate"]):
        command = [verb[0], str(interrupted), *verb[1:]]
        assert commands.run("use", *command) == 2
        assert "was interrupted after step 15 of 20" in capsys.readouterr().err


def test_a_kept_checkpoint_is_asked_by_its_step(commands, taught):
    curve = json.loads((taught / "teaching.json").read_text())["curve"]

    for step, learned, held_out, kept in curve[1:]:
        assert commands.run("old", "evaluate", str(taught), "--step", str(step)) == 0
        scores = json.loads((taught / "evaluation.json").read_text())["scores"]
        got = [scores[name]["exact_match"] for name in ("taught", "held_out", "known")]
        assert got == [learned, held_out, kept]


def test_a_step_that_was_not_kept_is_refused_with_those_that_were(
    commands, taught, capsys
):
    assert commands.run("old", "evaluate", str(taught), "--step", "3") == 2
    assert "holds no step 3, only [2, 4, 6]" in capsys.readouterr().err


def test_the_patch_of_a_run_leads_from_its_base_to_it_and_back(base, taught):
    change = patch.load(taught / "patch.safetensors")
    before, after = (
        [np.asarray(table[...]) for table in load_run(run_dir).model.values]
        for run_dir in (base, taught)
    )

    assert change.base_hash == load_run(base).model_hash
    for got, want in (
        (patch.apply(before, change), after),
        (patch.revert(after, change), before),
    ):
        np.testing.assert_array_equal(got[0].view("u4"), want[0].view("u4"))


@pytest.mark.parametrize("what", ["base_hash", "usage_hash", "corpus_hash"])
def test_teaching_goes_on_with_the_same_base_usage_and_facts_alone(
    commands, taught, tmp_path, capsys, what
):
    run_dir = shutil.copytree(taught, tmp_path / "smf")
    shutil.rmtree(run_dir / "checkpoints" / "6")
    record = json.loads((run_dir / "config.json").read_text())
    was, record[what] = record[what], "another"
    (run_dir / "config.json").write_text(json.dumps(record))
    for path in (run_dir / "checkpoints").glob("*/manifest.json"):
        vouch_for_config(run_dir, path)

    config = str(commands.folder / "smf.py")
    command = ["finetune", config, "--run-dir", str(run_dir)]
    assert commands.run("again", *command) == 2

    assert f"{what} was another, now {was}" in capsys.readouterr().err


def test_teaching_goes_on_where_settings_of_speed_are_others_or_were_not_there(
    commands, taught, tmp_path, capsys
):
    run_dir = shutil.copytree(taught, tmp_path / "smf")
    shutil.rmtree(run_dir / "checkpoints" / "6")
    record = json.loads((run_dir / "config.json").read_text())
    del record["finetune"]["compute"]["lookup"]  # as by a version that had none
    (run_dir / "config.json").write_text(json.dumps(record))
    for path in (run_dir / "checkpoints").glob("*/manifest.json"):
        vouch_for_config(run_dir, path)

    config = str(commands.folder / "smf.py")
    command = ["finetune", config, "--run-dir", str(run_dir), "--no-reuse-prefix"]
    assert commands.run("again", *command) == 0

    said = capsys.readouterr().out
    assert "finetune.compute.lookup was None, now xla" in said
    assert "finetune.reuse_prefix was True, now False" in said
    assert commands.compiled["again"]["jit(_prefix)"] == 0
    (got,), (want,) = (
        patch.load(run / "patch.safetensors").tables for run in (run_dir, taught)
    )
    np.testing.assert_array_equal(got.slots, want.slots)


# --- verify ---


@pytest.mark.parametrize("name", ["base", "taught"])
def test_a_sound_run_is_named_by_its_parameters(verify, request, name):
    run_dir = request.getfixturevalue(name)

    code, lines = verify(run_dir)

    assert code == 0
    assert f"params sha256 {load_run(run_dir).model_hash}" in lines
    assert not any("WRONG" in line for line in lines)


def test_an_interrupted_run_is_sound(verify, interrupted):
    code, lines = verify(interrupted)

    assert code == 0
    assert "run: interrupted, step 15 of 20" in lines


def test_every_damaged_file_is_told(verify, base, tmp_path):
    run_dir = shutil.copytree(base, tmp_path / "run")
    damaged = [largest(run_dir / "checkpoints" / step) for step in ("5", "20")]
    for path in damaged:
        flip(path)

    code, lines = verify(run_dir)

    assert code == 1
    wrong = [line for line in lines if line.startswith("WRONG")]
    assert wrong == [f"WRONG {path} is damaged: checksum mismatch" for path in damaged]


@pytest.mark.parametrize(
    ("run", "name"),
    [
        ("base", "usage.safetensors"),
        ("taught", "patch.safetensors"),
        ("taught", "teaching.json"),
    ],
)
def test_a_damaged_file_beside_the_checkpoints_is_told(
    verify, request, tmp_path, run, name
):
    run_dir = shutil.copytree(request.getfixturevalue(run), tmp_path / "run")
    flip(run_dir / name)

    code, lines = verify(run_dir)

    assert code == 1
    assert any(line.startswith(f"WRONG {run_dir / name}") for line in lines)


def test_metrics_with_a_step_missing_or_twice_are_told(verify, base, tmp_path):
    run_dir = shutil.copytree(base, tmp_path / "run")
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    for changed in (lines[:3] + lines[4:], lines + lines[:1], lines[:1] + lines):
        path.write_text("".join(changed))
        sound = changed[: len(lines)] == lines  # only what comes after is another

        code, said = verify(run_dir)

        assert code == (0 if sound else 1)
        assert (f"WRONG {path} is damaged: checksum mismatch" in said) != sound


def test_metrics_of_which_a_digit_changed_are_told_and_stop_nothing(
    verify, interrupted, go_on
):
    path = interrupted / "metrics.jsonl"
    text = path.read_text()
    path.write_text(text.replace('"loss": 4', '"loss": 3', 1))
    assert path.read_text() != text

    code, lines = verify(interrupted)
    assert code == 1
    assert f"WRONG {path} is damaged: checksum mismatch" in lines

    code, said = go_on(interrupted)
    assert code == 0
    assert f"WARNING: {path} is damaged: checksum mismatch" in said


def test_what_is_no_run_cannot_be_verified(commands, tmp_path, capsys):
    assert commands.run("verify", "verify", str(tmp_path)) == 2
    assert "holds no checkpoint" in capsys.readouterr().err


# --- what is lost, or would be ---


def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(interrupted, go_on):
    (interrupted / "checkpoints").rename(interrupted.parent / "elsewhere")

    code, said = go_on(interrupted)

    assert code == 2
    assert f"{interrupted} came to step 20 and has no checkpoint" in said
    assert rows(interrupted)[-1]["step"] == 20


def test_beginning_anew_removes_nothing_that_is_not_the_runs(
    commands, base, tmp_path, capsys
):
    run_dir = tmp_path / "run"
    (run_dir / "mine").mkdir(parents=True)
    (run_dir / "notes.txt").write_text("mine")
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(base / name, run_dir)
    config = str(commands.folder / "base.py")

    command = ["pretrain", config, "--run-dir", str(run_dir)]
    assert commands.run("again", *command) == 0

    assert (run_dir / "notes.txt").read_text() == "mine"
    assert (run_dir / "mine").is_dir()


def test_a_checkpoint_that_cannot_be_read_is_fallen_back_from(
    interrupted, go_on, monkeypatch
):
    unreadable = largest(interrupted / "checkpoints" / "15")
    opened = type(unreadable).open

    def fail(path, *arguments, **more):
        if path.name == unreadable.name:
            raise OSError(5, "Input/output error", str(path))
        return opened(path, *arguments, **more)

    monkeypatch.setattr(type(unreadable), "open", fail)

    code, said = go_on(interrupted)
    assert code == 2
    assert f"{unreadable} cannot be read (Input/output error)" in said
    assert go_on(interrupted, "--allow-fallback")[0] == 0


def test_skips_that_were_allowed_cannot_be_forbidden_afterwards(
    interrupted, go_on, monkeypatch
):
    from smf_jax.train import state

    load = checkpoint.load

    def skipped_twice(*arguments, **options):
        loaded, record = load(*arguments, **options)
        loaded["optimizer"]["skipped"] += 2
        return loaded, record

    monkeypatch.setattr(state.checkpoint, "load", skipped_twice)

    code, said = go_on(interrupted)
    assert code == 2
    assert "has skipped 2 batches by step 15: go on with --on-nan skip=2" in said
    assert go_on(interrupted, "--on-nan", "skip=2")[0] == 0


def test_the_best_is_told_by_scores_of_its_own_step(commands, base, tmp_path):
    config = FinetuneConfig(
        mesh=tiny.ONE,
        base=str(base),
        run_dir=str(tmp_path / "run"),
        teach="statements",
        steps=6,
        batch_size=6,
        eval_every=4,
        save=SaveConfig(every=1, keep=9, best="known"),
        optim=OptimConfig(method="smf", optimizer="sgd", learning_rate=5.0, top_t=3),
    )
    assert commands.run_config("best", "finetune", config) == 0

    metrics = {
        step: checkpoint.read(tmp_path / "run", step).metrics for step in range(1, 7)
    }
    loss_positions = {step for step, of_step in metrics.items() if "known" in of_step}
    assert loss_positions == {4, 6}
