"""Patches of taught runs: shown, applied and reverted, with each kind of table."""

import json
import shutil
from typing import NamedTuple

import numpy as np
import pytest

from smf_jax.config import CalibratedConfig, MemoryConfig, OptimConfig, PerFactConfig
from smf_jax.runs.load import corpus_of, load_run
from smf_jax.sharding import ONE_DEVICE
from smf_jax.slots import patch, sparse_table
from tests.integration.files import content, flip, read_json
from tests.tiny import bits, call, finetune_config, make_batch, retrofit_config

TEACH = OptimConfig(
    method="smf",
    optimizer="normalized",
    learning_rate=0.7,
    select="contrastive",
    per_fact=PerFactConfig(rows=7),
)
MEMORY = MemoryConfig(
    layers=(1,),
    num_keys=16,
    num_heads=2,
    top_k=2,
    key_dim=8,
    value_dim=16,
    placement="add",
    calibrated=CalibratedConfig(),
)
PATCH, USAGE = "patch.safetensors", "usage.safetensors"
KINDS = ("dense", "calibrated", "second")


class Pair(NamedTuple):
    base: object
    taught: object


@pytest.fixture(scope="module")
def calibrated(commands, imported):
    """Returns a run with a calibrated memory of which no row exists."""
    run_dir = commands.folder / "calibrated"
    config = retrofit_config(imported, run_dir, memory=MEMORY, steps=0)
    assert commands.run_config("calibrated", config) == 0
    return run_dir


def lesson(base, run_dir, **changes):
    return finetune_config(base, run_dir, TEACH, steps=3, **changes)


@pytest.fixture(scope="module")
def facts_of_words(commands, base):
    """Returns a file of facts in words that the tokenizer knows."""
    known = corpus_of(load_run(base)).known[:5]
    rows = [{"question": f.question, "answers": list(f.answers)} for f in known]
    path = commands.folder / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def monday(commands, calibrated):
    run_dir = commands.folder / "monday"
    assert commands.run_config("monday", lesson(calibrated, run_dir)) == 0
    return run_dir


@pytest.fixture(scope="module")
def tuesday(commands, monday, facts_of_words):
    """Returns a run taught other facts over `monday`."""
    run_dir = commands.folder / "tuesday"
    config = lesson(monday, run_dir, facts=facts_of_words)
    assert commands.run_config("tuesday", config) == 0
    return run_dir


@pytest.fixture
def pair(request, base, taught, calibrated, monday, tuesday):
    """Returns a taught run and its base."""
    pairs = ((base, taught), (calibrated, monday), (monday, tuesday))
    return Pair(*dict(zip(KINDS, pairs, strict=True))[request.param])


every_kind = pytest.mark.parametrize("pair", KINDS, indirect=True)


def model_hash(run_dir) -> str:
    return load_run(run_dir).model_hash


def test_a_patch_says_how_it_was_made(calibrated, monday):
    change = patch.load(monday / PATCH)

    assert change.base_hash == model_hash(calibrated)
    origin = change.origin
    assert (origin.facts, origin.kind, origin.num_slots) == (12, "calibrated", 256)
    assert origin.layers == [1]
    assert origin.finetune == read_json(monday / "config.json")["finetune"]
    assert change.rows == len(change.tables[0].slots) > 0


@every_kind
def test_a_patch_is_shown_with_its_rows_facts_and_base(run, pair):
    code, printed = run("patch", "show", pair.taught)

    assert code == 0
    change = patch.load(pair.taught / PATCH)
    size = (pair.taught / PATCH).stat().st_size
    assert f"base         {model_hash(pair.base)}" in printed
    assert f"facts        {change.origin.facts}" in printed
    assert f"rows         {change.rows} of {change.origin.num_slots} slots" in printed
    assert f"bytes        {size:,}" in printed
    lengths = np.linalg.norm(change.tables[0].after, axis=1)
    assert f"row length   mean {lengths.mean():.4g}, largest" in printed
    assert run("patch", "show", pair.taught / PATCH) == (0, printed)


@every_kind
def test_an_applied_patch_gives_the_taught_run_bit_for_bit(run, pair, tmp_path):
    out = tmp_path / "out"

    code, printed = run("patch", "apply", pair.base, pair.taught / PATCH, out)

    assert code == 0
    assert f"run: {out}" in printed
    assert model_hash(out) == model_hash(pair.taught)
    assert run("verify", out)[0] == 0
    assert list(tmp_path.iterdir()) == [out]
    answers = [run("ask", run_dir, "who ?") for run_dir in (out, pair.taught)]
    assert answers[0] == answers[1]


@every_kind
def test_a_reverted_patch_gives_the_base_bit_for_bit(run, pair, tmp_path):
    out = tmp_path / "out"

    code, printed = run("patch", "revert", pair.taught, out)

    assert code == 0
    assert model_hash(pair.base) in printed
    assert model_hash(out) == model_hash(pair.base)
    assert run("verify", out)[0] == 0
    assert list(tmp_path.iterdir()) == [out]


def test_a_model_without_its_patch_has_the_logits_of_the_one_without_a_memory(
    run, imported, monday, tmp_path
):
    assert run("patch", "revert", monday, tmp_path / "out")[0] == 0

    tokens = make_batch().tokens
    got, want = (
        call(load_run(run_dir, layout=ONE_DEVICE).model, tokens)[0]
        for run_dir in (tmp_path / "out", imported)
    )
    np.testing.assert_array_equal(bits(got), bits(want))


def test_an_applied_run_is_taught_further_as_the_one_that_was_taught(
    run, calibrated, monday, tuesday, facts_of_words, tmp_path
):
    applied, further = tmp_path / "applied", tmp_path / "further"
    assert run("patch", "apply", calibrated, monday / PATCH, applied)[0] == 0

    assert run(lesson(applied, further, facts=facts_of_words))[0] == 0

    assert model_hash(further) == model_hash(tuesday)


def test_a_patch_is_reverted_where_it_was_reverted_to(
    run, calibrated, tuesday, tmp_path
):
    assert run("patch", "revert", tuesday, tmp_path / "one")[0] == 0

    assert run("patch", "revert", tmp_path / "one", tmp_path / "none")[0] == 0

    assert model_hash(tmp_path / "none") == model_hash(calibrated)


# --- exports ---


@pytest.fixture(scope="module")
def received(commands, monday, facts_of_words):
    """Returns the import of the export of `monday`."""
    folder, run_dir = commands.folder / "delivered", commands.folder / "received"
    assert commands.run("export", "export-hf", str(monday), str(folder)) == 0
    facts = ("--facts", facts_of_words, "--seq-len", "24")
    arguments = ("import-hf", str(folder), str(run_dir), *facts)
    assert commands.run("import", *arguments) == 0
    return run_dir


def test_an_export_of_a_calibrated_memory_is_read_back_bit_for_bit(received, monday):
    assert model_hash(received) == model_hash(monday)


def test_a_patch_applied_on_export_gives_what_the_taught_run_does(
    commands, run, calibrated, monday, received, tmp_path
):
    out = tmp_path / "out"

    assert run("export-hf", calibrated, out, "--patch", monday / PATCH)[0] == 0

    want = content(commands.folder / "delivered")
    assert sorted(content(out).values()) == sorted(want.values())


def test_a_patch_is_reverted_in_an_import(run, calibrated, monday, received, tmp_path):
    out = tmp_path / "out"

    code, _ = run("patch", "revert", received, out, "--patch", monday / PATCH)

    assert code == 0
    assert model_hash(out) == model_hash(calibrated)
    assert run("verify", out)[0] == 0


def test_an_import_is_taught_further_once_its_usage_is_counted(
    run, received, facts_of_words, tmp_path
):
    copy = shutil.copytree(received, tmp_path / "copy")
    config = lesson(copy, tmp_path / "taught", facts=facts_of_words)

    code, printed = run(config)
    assert code == 2
    assert f"run `smf usage {copy}` first" in printed
    assert not (tmp_path / "taught").exists()

    code, printed = run("usage", copy, "--documents", "3", "--batch-size", "1")
    assert code == 0
    assert "usage: 3 documents of 1 x 24 tokens read" in printed
    assert run("verify", copy)[0] == 0
    assert run(config)[0] == 0
    rows = sparse_table.Rows.load(tmp_path / "taught" / "slots.safetensors")
    assert rows.facts.total == 6  # 5, and one for all those before


# --- mistakes ---


@pytest.fixture
def paths(base, taught, calibrated, monday, tuesday, tmp_path):
    """Returns what commands name."""
    damaged = flip(shutil.copy(monday / PATCH, tmp_path / "damaged"))
    runs = {"base": base, "taught": taught, "calibrated": calibrated}
    runs |= {"monday": monday, "tuesday": tuesday, "damaged": damaged}
    patches = {f"{name}_patch": run_dir / PATCH for name, run_dir in runs.items()}
    new, exists = tmp_path / "new", tmp_path / "exists"
    exists.mkdir()
    return runs | patches | {"new": new, "exists": exists}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("apply {monday} {monday_patch} {new}", "belongs to model"),
        ("apply {calibrated} {tuesday_patch} {new}", "belongs to model"),
        ("apply {base} {monday_patch} {new}", "belongs to model"),
        ("apply {calibrated} {monday_patch} {exists}", "exists: choose another"),
        ("apply {calibrated} {damaged} {new}", "{damaged} is damaged"),
        ("apply {calibrated} {new} {new}", "{new} does not exist"),
        ("apply {calibrated} {new}", "use smf patch apply RUN PATCH OUT"),
        ("revert {monday} {exists}", "exists: choose another"),
        ("revert {calibrated} {new}", "holds no patch.safetensors"),
        ("revert {exists} {new}", "is not a run"),
        ("revert {monday} {new} --patch {damaged}", "{damaged} is damaged"),
        ("revert {monday} {new} --patch {tuesday_patch}", "is not part of {monday}"),
        ("revert {tuesday} {new} --patch {monday_patch}", "is not part of {tuesday}"),
        ("revert {calibrated} {new} --patch {monday_patch}", "no row for slots"),
        ("revert {base} {new} --patch {taught_patch}", "not as the patch expects it"),
        ("revert {monday} {new} --patch {taught_patch}", "another kind of table"),
        ("show {calibrated}", "holds no patch.safetensors"),
        ("show {damaged}", "{damaged} is damaged"),
        ("show {monday} --patch {new}", "--patch is for smf patch revert"),
        ("remove {monday}", "'remove' is not one of show, apply, revert"),
    ],
)
def test_a_mistake_is_refused_in_one_line_and_writes_nothing(
    run, paths, tmp_path, command, words
):
    before = sorted(tmp_path.iterdir())

    code, printed = run("patch", *command.format(**paths).split())

    (line,) = printed.splitlines()
    assert code == 2
    assert words.format(**paths) in line
    assert sorted(tmp_path.iterdir()) == before


def test_a_patch_that_does_not_say_how_it_was_made_is_not_applied(
    run, calibrated, monday, tmp_path
):
    change = patch.load(monday / PATCH)
    patch.save(tmp_path / "old", patch.Patch((), change.base_hash))

    code, printed = run("patch", "apply", calibrated, tmp_path / "old", tmp_path / "x")

    assert code == 2
    assert "does not say how it was taught" in printed


def test_a_patch_of_another_base_is_not_reverted(run, monday, tmp_path):
    change = patch.load(monday / PATCH)
    patch.save(tmp_path / "other", change._replace(base_hash="0123"))

    arguments = (monday, tmp_path / "new", "--patch", tmp_path / "other")
    code, printed = run("patch", "revert", *arguments)

    assert code == 2
    assert f"is model {change.base_hash}, not the base of the patch" in printed
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_written_leaves_nothing(
    run, calibrated, monday, tmp_path, monkeypatch
):
    def fail(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr("smf_jax.runs.write.write_text", fail)
    code, printed = run("patch", "apply", calibrated, monday / PATCH, tmp_path / "new")

    assert code == 1
    assert "no space left" in printed
    assert list(tmp_path.iterdir()) == []


# --- usage and other methods ---


def test_a_damaged_usage_of_a_calibrated_run_is_named(run, calibrated, tmp_path):
    copy = shutil.copytree(calibrated, tmp_path / "copy")
    assert run("verify", copy)[0] == 0
    flip(copy / USAGE)

    code, printed = run("verify", copy)

    assert code == 1
    assert f"DAMAGED {copy / USAGE} is damaged" in printed


def test_written_rows_are_not_trained_with_everything_else(run, monday, tmp_path):
    config = finetune_config(monday, tmp_path / "out", OptimConfig(method="full"))

    code, printed = run(config)

    assert code == 2
    assert "has written rows alone: use smf or lora" in printed
