"""From nothing to a taught model and its answers, by the verbs a user types."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from smf_jax.config import FinetuneConfig, OptimConfig, PretrainConfig
from smf_jax.data.corpus import load_corpus
from smf_jax.data.tokenizer import UNKNOWN, encode_prompt
from smf_jax.runs.files import PATCH
from smf_jax.runs.load import all_params, load_run
from smf_jax.runs.record import Lineage
from smf_jax.slots import document_frequency, patch
from tests import tiny
from tests.integration.commands import Commands

METHODS = ("smf", "lora", "full")
PRETRAIN_STEPS, TEACH_STEPS, TOP_T, DOCUMENTS = 152, 7, 3, 10


def pretrain_config(run_dir) -> PretrainConfig:
    return tiny.pretrain_config(run_dir, PRETRAIN_STEPS)


def finetune_config(base, run_dir, method: str) -> FinetuneConfig:
    optim = {
        "smf": OptimConfig(
            method="smf", optimizer="sgd", learning_rate=5.0, top_t=TOP_T
        ),
        "lora": OptimConfig(method="lora", learning_rate=0.003),
        "full": OptimConfig(method="full", learning_rate=0.001),
    }
    return FinetuneConfig(
        mesh=tiny.ONE,
        base=str(base),
        run_dir=str(run_dir),
        teach="statements",
        steps=TEACH_STEPS,
        batch_size=6,
        eval_every=3,
        log_every=2,
        optim=optim[method],
    )


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(tmp_path_factory.mktemp("walk"))


@pytest.fixture(scope="module")
def base(commands):
    """Returns the run directory of a pretrained model with its usage."""
    run_dir = commands.folder / "base"
    assert commands.run_config("base", "pretrain", pretrain_config(run_dir)) == 0
    documents = ["--documents", str(DOCUMENTS)]
    assert commands.run("usage", "usage", str(run_dir), *documents) == 0
    return run_dir


@pytest.fixture(scope="module")
def taught(commands, base):
    """Returns the run directory of each method."""
    run_dirs = {method: commands.folder / method for method in METHODS}
    for method, run_dir in run_dirs.items():
        config = finetune_config(base, run_dir, method)
        assert commands.run_config(method, "finetune", config) == 0
    return run_dirs


def read_json(path):
    return json.loads(path.read_text())


def read_metrics(run_dir) -> list[dict]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def bits(run_dir) -> dict[str, np.ndarray]:
    """Returns the bits of each parameter of a run, by its name.

    A layer that LoRA adds to has the name it had before.
    """
    params = all_params(load_run(run_dir).model)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").replace("/base/", "/"): (
            np.asarray(leaf).view(np.uint32)
        )
        for path, leaf in jax.tree.leaves_with_path(params)
    }


class Change(NamedTuple):
    """What differs between two runs' parameters."""

    moved: set[str]  # of the names in both
    added: set[str]


def change(before, after) -> Change:
    before, after = bits(before), bits(after)
    assert before.keys() <= after.keys()
    moved = {name for name in before if (before[name] != after[name]).any()}
    return Change(moved, after.keys() - before.keys())


# --- pretraining ---


def test_pretraining_logs_each_due_step_once_and_the_last_one(base):
    steps = [row["step"] for row in read_metrics(base)]

    assert steps == [50, 100, 150, 152]


def test_pretraining_reads_more_evenly_as_it_goes(base):
    uneven = [row["balance_loss"] for row in read_metrics(base)]

    assert uneven[-1] < uneven[0]


def test_pretraining_lowers_the_loss(base):
    losses = [row["loss"] for row in read_metrics(base)]

    assert losses[-1] < losses[0]


def test_the_record_of_a_run_restores_its_configuration(base):
    run = load_run(base)

    assert run.lineage == Lineage(pretrain=pretrain_config(base))


def test_the_tokenizer_of_a_run_knows_every_word_that_is_asked(base):
    run = load_run(base)
    corpus = load_corpus(run.data)

    for fact in corpus.known + corpus.new + corpus.new_held_out:
        for text in (fact.question, *fact.answers, *fact.statements):
            assert UNKNOWN not in encode_prompt(run.tokenizer, text)


def test_pretraining_again_gives_the_same_bits_also_over_an_unfinished_run(
    commands, base
):
    again = commands.folder / "again"
    (again / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir(parents=True)
    shutil.copy(base / "config.json", again)
    (again / "metrics.jsonl").write_text('{"step": 1, "loss": 0.0}\n')

    assert commands.run_config("again", "pretrain", pretrain_config(again)) == 0

    assert load_run(again).model_hash == load_run(base).model_hash
    assert [row["step"] for row in read_metrics(again)] == [50, 100, 150, 152]
    assert not (again / "checkpoints" / "7.orbax-checkpoint-tmp").exists()


def test_pretraining_into_a_finished_run_leaves_it_as_it_was(commands, base, capsys):
    def content():
        files = (path for path in base.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files}

    before = content()

    assert commands.run_config("over", "pretrain", pretrain_config(base)) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert f"{base} holds a finished run" in line
    assert content() == before


# --- usage ---


def test_usage_counts_documents_and_names_its_model(base):
    run = load_run(base)

    got = document_frequency.load(base / "usage.safetensors", run.model_hash, 1, 64)

    assert got.num_documents == DOCUMENTS
    assert got.document_shape == (5, 24)
    assert got.document_frequency.min() >= 0
    assert 0 < got.document_frequency.max() <= DOCUMENTS


# --- teaching ---


@pytest.mark.parametrize("method", METHODS)
def test_teaching_logs_each_due_step_once_and_the_last_one(taught, method):
    steps = [row["step"] for row in read_metrics(taught[method])]

    assert steps == [2, 4, 6, 7]


@pytest.mark.parametrize("method", METHODS)
def test_teaching_asks_before_while_and_after(taught, method):
    curve = read_json(taught[method] / "teaching.json")["curve"]

    assert [point[0] for point in curve] == [0, 3, 6, 7]


def test_every_method_starts_from_the_same_answers(taught):
    first, *others = [read_json(taught[m] / "teaching.json") for m in METHODS]

    for other in others:
        assert other["answers_before"] == first["answers_before"]
        assert other["curve"][0] == first["curve"][0]


def test_teaching_compiles_its_step_and_its_questions_once(commands, taught):
    compiled = [commands.compiled[method] for method in METHODS]

    assert [of["jit(step)"] for of in compiled] == [1, 1, 1]
    # What LoRA adds is merged before it is asked: all models are asked by one program.
    assert METHODS == ("smf", "lora", "full")
    assert [of["jit(_generate)"] for of in compiled] == [1, 0, 0]


def test_smf_teaches_the_same_if_nothing_of_texts_is_kept(commands, base, taught):
    config = finetune_config(base, commands.folder / "anew", "smf")
    config = dataclasses.replace(config, reuse_prefix=False)

    assert commands.run_config("anew", "finetune", config) == 0

    known, anew = (commands.compiled[name]["jit(_prefix)"] for name in ("smf", "anew"))
    assert (known, anew) == (1, 0)
    want, got = (
        patch.load(Path(run) / PATCH) for run in (config.run_dir, taught["smf"])
    )
    for mine, theirs in zip(got.tables, want.tables, strict=True):
        np.testing.assert_array_equal(mine.slots, theirs.slots)
        # float32 sums in another order, at a rate of 5
        np.testing.assert_allclose(mine.after, theirs.after, rtol=0, atol=1e-5)


def test_smf_moves_the_table_alone(base, taught):
    assert change(base, taught["smf"]) == Change({"values/0"}, set())


def test_smf_moves_no_slot_that_it_did_not_choose(base, taught):
    before, after = (bits(run_dir)["values/0"] for run_dir in (base, taught["smf"]))
    frequency = document_frequency.load(
        base / "usage.safetensors", load_run(base).model_hash, 1, 64
    ).document_frequency[0]

    moved = (before != after).any(axis=1)

    assert 0 < moved.sum() <= TOP_T * TEACH_STEPS < len(moved)
    # What every document reads has an inverse frequency of 0.
    assert not moved[frequency == DOCUMENTS].any()
    want = np.bincount(frequency[moved], minlength=DOCUMENTS + 1).tolist()
    slots = read_json(taught["smf"] / "teaching.json")["slots_by_document_frequency"]
    assert slots["written"] == want


def test_smf_writes_no_more_slots_a_step_than_allowed(taught):
    written = [row["slots_written"] for row in read_metrics(taught["smf"])]

    assert 0 < max(written) <= TOP_T


def test_lora_adds_to_a_model_that_stays_as_it_was(base, taught):
    moved, added = change(base, taught["lora"])

    assert moved == set()
    assert {name.rsplit("/", 1)[-1] for name in added} == {"down", "up"}


def test_full_teaching_moves_the_model_beside_the_table(base, taught):
    moved, added = change(base, taught["full"])

    assert added == set()
    assert {"values/0", "embedding", "norm/scale"} <= moved


def test_teaching_again_gives_the_same_bits(commands, base, taught):
    again = commands.folder / "smf-again"

    config = finetune_config(base, again, "smf")
    assert commands.run_config("smf-again", "finetune", config) == 0

    assert load_run(again).model_hash == load_run(taught["smf"]).model_hash


def test_what_lora_taught_is_taught_further_or_refused_but_never_lost(commands, taught):
    run_dir = commands.folder / "further"
    config = finetune_config(taught["lora"], run_dir, "full")

    if commands.run_config("further", "finetune", config) == 0:
        assert load_run(run_dir).run_dir == run_dir
    else:
        assert not run_dir.exists()


# --- asking ---


@pytest.mark.parametrize("method", METHODS)
def test_evaluating_a_taught_run_gives_what_it_wrote_itself(commands, taught, method):
    want = read_json(taught[method] / "evaluation.json")

    assert commands.run(f"evaluate {method}", "evaluate", str(taught[method])) == 0

    assert read_json(taught[method] / "evaluation.json") == want


def test_a_run_taught_by_statements_is_asked_facts_that_have_none(
    commands, taught, tmp_path
):
    run_dir, facts = tmp_path / "smf", tmp_path / "facts.jsonl"
    shutil.copytree(taught["smf"], run_dir)
    facts.write_text('{"id": "a", "question": "what is it ?", "answers": ["it"]}\n')

    title = "evaluate facts"
    assert commands.run(title, "evaluate", str(run_dir), "--facts", str(facts)) == 0
    asked = read_json(run_dir / "evaluation-facts.json")["answers"]["taught"]
    assert [row["question"] for row in asked] == ["what is it ?"]
    own = read_json(taught["smf"] / "evaluation.json")
    assert read_json(run_dir / "evaluation.json") == own


def test_evaluating_a_run_before_it_is_taught_gives_the_first_point(commands, base):
    assert commands.run("evaluate base", "evaluate", str(base)) == 0

    rows = read_json(base / "evaluation.json")["answers"]
    assert {group: len(of_group) for group, of_group in rows.items()} == {
        "taught": 4 * 3,
        "held_out": 4 * 3,
        "known": 4 * 6,
    }


def test_a_question_alone_is_answered_as_among_others(commands, taught, capsys):
    rows = read_json(taught["smf"] / "evaluation.json")["answers"]["known"]
    row = max(rows, key=lambda row: len(row["answer"]))
    assert row["answer"] != ""

    code = commands.run("ask", "ask", str(taught["smf"]), row["question"])

    # Alone it may go on for longer than among questions whose answers are short.
    assert code == 0
    assert capsys.readouterr().out.strip().startswith(row["answer"])
