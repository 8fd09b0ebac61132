"""From nothing to a taught model and its answers, by the verbs a user types."""

import json
import shutil

import jax
import numpy as np
import pytest

from smf_jax.config import FinetuneConfig, OptimConfig
from smf_jax.data.corpus import load_corpus
from smf_jax.data.tokenizer import UNKNOWN, encode_prompt
from smf_jax.runs.load import all_params, load_run
from smf_jax.runs.record import Lineage
from smf_jax.slots import document_frequency
from tests import bases, tiny

TEACH_STEPS, TOP_T = 7, 3
METHODS = {
    "smf": OptimConfig(method="smf", optimizer="sgd", learning_rate=5.0, top_t=TOP_T),
    "lora": OptimConfig(method="lora", learning_rate=0.003),
    "full": OptimConfig(method="full", learning_rate=0.001),
}
each_method = pytest.mark.parametrize("method", METHODS)


def finetune_config(base, run_dir, method: str) -> FinetuneConfig:
    return FinetuneConfig(
        mesh=tiny.ONE,
        base=str(base),
        run_dir=str(run_dir),
        teach="statements",
        steps=TEACH_STEPS,
        batch_size=6,
        eval_every=3,
        log_every=2,
        optim=METHODS[method],
    )


@pytest.fixture(scope="module")
def taught(commands, base):
    """Returns the run directory of each method."""
    run_dirs = {method: commands.folder / method for method in METHODS}
    for method, run_dir in run_dirs.items():
        config = finetune_config(base, run_dir, method)
        assert commands.run_config(method, config) == 0
    return run_dirs


def read_json(path):
    return json.loads(path.read_text())


def read_metrics(run_dir) -> list[dict]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def bits(run_dir) -> dict[str, np.ndarray]:
    """Returns the bits of each parameter of a run, by its name without LoRA."""
    params = all_params(load_run(run_dir).model)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").replace("/base/", "/"): (
            tiny.bits(leaf)
        )
        for path, leaf in jax.tree.leaves_with_path(params)
    }


def change(before, after) -> tuple[set[str], set[str]]:
    """Returns the names of the parameters that moved, and of those that are new."""
    before, after = bits(before), bits(after)
    assert before.keys() <= after.keys()
    moved = {name for name in before if (before[name] != after[name]).any()}
    return moved, after.keys() - before.keys()


# --- pretraining ---


def test_pretraining_logs_each_due_step_and_the_last_and_improves(base):
    first, *_, last = rows = read_metrics(base)

    assert [row["step"] for row in rows] == [*range(8, 60, bases.LOG_EVERY), 60]
    assert last["loss"] < first["loss"]


def test_a_run_records_its_configuration_and_every_word_of_its_facts(base):
    run = load_run(base)
    corpus = load_corpus(run.data)

    assert run.lineage == Lineage(pretrain=bases.base_config(base))
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

    assert commands.run_config("again", bases.base_config(again)) == 0

    assert load_run(again).model_hash == load_run(base).model_hash
    assert read_metrics(again)[0]["step"] == bases.LOG_EVERY
    assert not (again / "checkpoints" / "7.orbax-checkpoint-tmp").exists()


def test_a_finished_run_is_not_overwritten(commands, base, tmp_path, capsys):
    run_dir = shutil.copytree(base, tmp_path / "run")

    def content():
        files = (path for path in run_dir.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files if path.name != ".lock"}

    before = content()

    assert commands.run_config("over", bases.base_config(run_dir)) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert f"{run_dir} holds a finished run" in line
    assert content() == before


# --- usage ---


def test_usage_counts_documents_and_names_its_model(base):
    path, run = base / "usage.safetensors", load_run(base)

    frequency, num_documents = document_frequency.load(path, run.model_hash, 1, 64)

    assert num_documents == bases.DOCUMENTS
    assert frequency.min() >= 0
    assert 0 < frequency.max() <= bases.DOCUMENTS


# --- teaching ---


@each_method
def test_teaching_logs_and_evaluates_each_due_step_and_the_last(taught, method):
    curve = read_json(taught[method] / "teaching.json")["curve"]

    assert [row["step"] for row in read_metrics(taught[method])] == [2, 4, 6, 7]
    assert [point[0] for point in curve] == [0, 3, 6, 7]


def test_every_method_starts_from_the_same_answers(taught):
    first, *rest = [read_json(taught[m] / "teaching.json") for m in METHODS]

    for other in rest:
        assert other["answers_before"] == first["answers_before"]
        assert other["curve"][0] == first["curve"][0]


def test_teaching_compiles_its_step_and_its_evaluation_once(commands, taught):
    compiled = [commands.compiled[method] for method in ("smf", "lora", "full")]

    assert [of["jit(step)"] for of in compiled] == [1, 1, 1]
    assert [of["jit(_prefix)"] for of in compiled] == [1, 0, 0]
    # LoRA is merged before it is evaluated: one program evaluates all models.
    assert [of["jit(_generate)"] for of in compiled] == [1, 0, 0]


def test_smf_changes_nothing_but_selected_slots_of_the_table(base, taught):
    before, after = (bits(run_dir)["values/0"] for run_dir in (base, taught["smf"]))
    path, model_hash = base / "usage.safetensors", load_run(base).model_hash
    frequency = document_frequency.load(path, model_hash, 1, 64).document_frequency[0]

    moved = (before != after).any(axis=1)

    assert change(base, taught["smf"]) == ({"values/0"}, set())
    assert 0 < moved.sum() <= TOP_T * TEACH_STEPS < len(moved)
    # A slot that every document reads has an inverse document frequency of 0.
    assert not moved[frequency == bases.DOCUMENTS].any()
    want = np.bincount(frequency[moved], minlength=bases.DOCUMENTS + 1).tolist()
    slots = read_json(taught["smf"] / "teaching.json")["slots_by_document_frequency"]
    assert slots["written"] == want
    written = [row["slots_written"] for row in read_metrics(taught["smf"])]
    assert 0 < max(written) <= TOP_T


def test_lora_adds_to_a_base_that_stays_the_same(base, taught):
    moved, added = change(base, taught["lora"])

    assert moved == set()
    assert {name.rsplit("/", 1)[-1] for name in added} == {"down", "up"}


def test_full_finetuning_moves_the_table_and_everything_else(base, taught):
    moved, added = change(base, taught["full"])

    assert added == set()
    assert {"values/0", "embedding", "norm/scale"} <= moved


def test_a_lora_run_is_refused_as_a_base(commands, taught, capsys):
    run_dir = commands.folder / "further"
    config = finetune_config(taught["lora"], run_dir, "full")

    assert commands.run_config("further", config) == 2

    assert "an adapter cannot be trained over" in capsys.readouterr().err
    assert not run_dir.exists()


# --- evaluation ---


@each_method
def test_evaluating_a_taught_run_gives_what_teaching_wrote(taught, run, method):
    want = read_json(taught[method] / "evaluation.json")

    assert run("evaluate", taught[method])[0] == 0

    assert read_json(taught[method] / "evaluation.json") == want


def test_a_run_taught_by_statements_is_evaluated_on_facts_without_any(
    taught, run, tmp_path
):
    run_dir, facts = tmp_path / "smf", tmp_path / "facts.jsonl"
    shutil.copytree(taught["smf"], run_dir)
    facts.write_text('{"id": "a", "question": "what is it ?", "answers": ["it"]}\n')

    assert run("evaluate", run_dir, "--facts", facts)[0] == 0

    answers = read_json(run_dir / "evaluation-facts.json")["answers"]["taught"]
    assert [row["question"] for row in answers] == ["what is it ?"]
    own = read_json(taught["smf"] / "evaluation.json")
    assert read_json(run_dir / "evaluation.json") == own


def test_a_base_is_evaluated_on_all_its_facts(base, run, tmp_path):
    run_dir = shutil.copytree(base, tmp_path / "run")

    assert run("evaluate", run_dir)[0] == 0

    answers = read_json(run_dir / "evaluation.json")["answers"]
    want = {"taught": 4 * 3, "held_out": 4 * 3, "known": 4 * 6}
    assert {group: len(of_group) for group, of_group in answers.items()} == want


def test_a_single_question_gets_the_answer_it_gets_in_a_batch(taught, run):
    rows = read_json(taught["smf"] / "evaluation.json")["answers"]["known"]
    row = max(rows, key=lambda row: len(row["answer"]))
    assert row["answer"] != ""

    code, printed = run("ask", taught["smf"], row["question"])

    # Alone, an answer may be longer than in a batch whose longest answer is short.
    assert code == 0
    assert printed.strip().startswith(row["answer"])
