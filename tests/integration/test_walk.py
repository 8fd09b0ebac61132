"""From nothing to a taught model and its answers, by the verbs a user types."""

import shutil

import jax
import numpy as np
import pytest

from smf_jax.config import OptimConfig
from smf_jax.data.corpus import load_corpus
from smf_jax.data.tokenizer import UNKNOWN, encode_prompt
from smf_jax.runs.load import all_params, load_run
from smf_jax.runs.record import Lineage
from smf_jax.slots import document_frequency
from tests import bases, tiny
from tests.integration.files import content, read_json, rows

STEPS, TOP_T = 7, tiny.SMF.top_t
METHODS = {
    "smf": tiny.SMF,
    "lora": tiny.LORA,
    "full": OptimConfig(method="full", learning_rate=0.001),
}
each_method = pytest.mark.parametrize("method", METHODS)


def config_of(base, run_dir, method: str):
    schedule = {"steps": STEPS, "eval_every": 3, "teach": "statements"}
    return tiny.finetune_config(base, run_dir, METHODS[method], **schedule)


@pytest.fixture(scope="module")
def taught(commands, base):
    """Returns the run directory of each method."""
    run_dirs = {method: commands.folder / method for method in METHODS}
    for method, run_dir in run_dirs.items():
        assert commands.run_config(method, config_of(base, run_dir, method)) == 0
    return run_dirs


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


def test_pretraining_logs_each_due_step_and_the_last_and_learns(base):
    first, *_, last = logged = rows(base)

    assert [row["step"] for row in logged] == [*range(8, 60, bases.LOG_EVERY), 60]
    assert last["loss"] < first["loss"]


def test_a_run_records_its_configuration_and_every_word_of_its_facts(base):
    run = load_run(base)
    corpus = load_corpus(run.data)

    assert run.lineage == Lineage(pretrain=bases.base_config(base))
    for fact in corpus.known + corpus.new:
        for text in (fact.question, *fact.answers, *fact.statements, *fact.held_out):
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
    assert rows(again)[0]["step"] == bases.LOG_EVERY
    assert not (again / "checkpoints" / "7.orbax-checkpoint-tmp").exists()


def test_the_command_of_a_finished_run_says_so_and_changes_nothing(
    base, commands, run, tmp_path
):
    run_dir = shutil.copytree(base, tmp_path / "run [/x]")  # no markup of rich
    before = content(run_dir)

    code, printed = run(bases.base_config(run_dir))

    assert code == 0
    want = [f"{run_dir} is finished: {bases.STEPS} steps", f"run: {run_dir}"]
    assert printed.splitlines()[-2:] == want
    assert content(run_dir) == before
    assert commands.compiled["run"] == {}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--steps", "61"], "pretrain.steps was 60, now 61"),
        (["--resume", "never"], "holds a finished run"),
    ],
)
def test_a_finished_run_refuses_other_settings_and_to_start(
    base, run, tmp_path, options, says
):
    run_dir = shutil.copytree(base, tmp_path / "run")
    before = content(run_dir)

    code, printed = run(bases.base_config(run_dir), *options)

    assert code == 2
    assert says in printed.splitlines()[-1]
    assert content(run_dir) == before


# --- teaching ---


def test_the_command_of_a_finished_teaching_prints_the_same_scores(
    commands, base, taught, run
):
    before = content(taught["smf"])

    code, printed = run(config_of(base, taught["smf"], "smf"))

    assert code == 0
    assert f"{taught['smf']} is finished: {STEPS} steps" in printed
    scores = read_json(taught["smf"] / "evaluation.json")["scores"]
    lines = [line for line in printed.splitlines() if "exact match" in line]
    (line,) = (line for line in lines if line.startswith("known"))
    assert f"-> {scores['known']['exact_match']:.3f} " in line
    assert content(taught["smf"]) == before
    assert (
        commands.compiled["run"].keys().isdisjoint({"jit(step)", "jit(continuations)"})
    )


@each_method
def test_teaching_logs_and_evaluates_each_due_step_and_the_last(taught, method):
    curve = read_json(taught[method] / "teaching.json")["curve"]

    assert [row["step"] for row in rows(taught[method])] == [2, 4, 6, 7]
    assert [point[0] for point in curve] == [0, 3, 6, 7]
    # Every method starts from the same answers.
    assert curve[0] == read_json(taught["smf"] / "teaching.json")["curve"][0]


def test_teaching_compiles_its_step_and_its_evaluation_once(commands, taught):
    compiled = [commands.compiled[method] for method in ("smf", "lora", "full")]

    assert [of["jit(step)"] for of in compiled] == [1, 1, 1]
    assert [of["jit(_prefix)"] for of in compiled] == [1, 0, 0]
    # LoRA is merged before it is evaluated: one program evaluates all models.
    assert [of["jit(continuations)"] for of in compiled] == [1, 0, 0]


def test_smf_changes_nothing_but_selected_slots_of_the_table(base, taught):
    before, after = (bits(run_dir)["values/0"] for run_dir in (base, taught["smf"]))
    path, model_hash = base / "usage.safetensors", load_run(base).model_hash
    background = document_frequency.load(path, model_hash, 1, 64)
    frequency = background.document_frequency[0]

    moved = (before != after).any(axis=1)

    assert change(base, taught["smf"]) == ({"values/0"}, set())
    assert 0 < moved.sum() <= TOP_T * STEPS < len(moved)
    # A slot that every document reads has an inverse document frequency of 0.
    assert background.num_documents == frequency.max() == bases.DOCUMENTS
    assert not moved[frequency == bases.DOCUMENTS].any()
    want = np.bincount(frequency[moved], minlength=bases.DOCUMENTS + 1).tolist()
    slots = read_json(taught["smf"] / "teaching.json")["slots_by_document_frequency"]
    assert slots["written"] == want
    assert 0 < max(row["slots_written"] for row in rows(taught["smf"])) <= TOP_T


def test_lora_adds_to_a_base_that_stays_the_same(base, taught):
    moved, added = change(base, taught["lora"])

    assert moved == set()
    assert {name.rsplit("/", 1)[-1] for name in added} == {"down", "up"}


def test_full_finetuning_moves_the_table_and_everything_else(base, taught):
    moved, added = change(base, taught["full"])

    assert added == set()
    assert {"values/0", "embedding", "norm/scale"} <= moved


def test_a_lora_run_is_refused_as_a_base(taught, run, tmp_path):
    code, printed = run(config_of(taught["lora"], tmp_path / "run", "full"))

    assert code == 2
    assert "an adapter cannot be trained over" in printed
    assert not (tmp_path / "run").exists()


# --- evaluation ---


@each_method
def test_evaluating_a_taught_run_gives_what_teaching_wrote(taught, run, method):
    want = read_json(taught[method] / "evaluation.json")

    assert run("evaluate", taught[method])[0] == 0

    assert read_json(taught[method] / "evaluation.json") == want


def test_a_run_taught_by_statements_is_evaluated_on_facts_without_any(
    taught, facts, run, tmp_path
):
    run_dir = shutil.copytree(taught["smf"], tmp_path / "smf")

    assert run("evaluate", run_dir, "--facts", facts)[0] == 0

    answers = read_json(run_dir / "evaluation-facts.json")["answers"]["taught"]
    assert [row["text"] for row in answers][:2] == ["who is 0 ?", "who is 1 ?"]
    own = read_json(taught["smf"] / "evaluation.json")
    assert read_json(run_dir / "evaluation.json") == own


def test_a_base_is_evaluated_on_all_its_facts(base, run, tmp_path):
    run_dir = shutil.copytree(base, tmp_path / "run")

    assert run("evaluate", run_dir)[0] == 0

    answers = read_json(run_dir / "evaluation.json")["answers"]
    want = {"taught": 4 * 3, "held_out": 4 * 3, "known": 4 * 6}
    assert {group: len(of_group) for group, of_group in answers.items()} == want


def test_a_single_question_gets_the_answer_it_gets_in_a_batch(taught, run):
    answers = read_json(taught["smf"] / "evaluation.json")["answers"]["known"]
    longest = max(answers, key=lambda row: len(row["answer"]))
    assert longest["answer"] != ""

    code, printed = run("ask", taught["smf"], longest["text"])

    # Alone, an answer may be longer than in a batch whose longest answer is short.
    assert code == 0
    assert printed.strip().startswith(longest["answer"])
