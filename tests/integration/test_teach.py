"""One command teaches an exported model facts that it does not know."""

import io
import json
import re
import shutil

import jax
import pytest
from rich.console import Console

import smf_jax
from smf_jax.config import MeshConfig, TeachConfig
from smf_jax.data.prompts import Prompt
from smf_jax.evaluate.answers import answer
from smf_jax.runs.load import corpus_of, load_run
from smf_jax.verbs import teach_texts
from smf_jax.verbs.teach_result import command_of
from tests.integration.files import content, read_json

WORDS = "profession birthplace of is the what was born in".split()
QUESTIONS = ("data/questions.json", "data/keep.jsonl")
FAST = ("--mesh.data", "1", "--epochs", "2")


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def row(fact, **more):
    return {k: v for k, v in fact._asdict().items() if v} | more


@pytest.fixture(scope="module")
def files(commands, plain):
    """Returns a folder of files: facts of which one is known, facts to keep, texts."""
    folder = commands.folder / "files"
    folder.mkdir()
    run = load_run(plain)
    corpus = corpus_of(run)
    prompts = [Prompt(f.id, f.question, f.answers, False) for f in corpus.known]
    said = answer(run.model, run.tokenizer, prompts, 4)
    # What it says is what it knows: the model itself has learned too little.
    known = [
        row(fact, answers=[reply.split()[0]])
        for fact, reply in zip(corpus.known, said, strict=True)
        if reply
    ]
    assert len(known) >= 6
    new = [row(fact, answers=[f"{fact.answers[0]} indeed"]) for fact in corpus.new]
    lines(folder / "facts.jsonl", [*new, known[0]])
    lines(folder / "keep.jsonl", known[1:])
    unknown = {"question": "what is the profession ?", "answers": ["no such answer"]}
    lines(folder / "unknown.jsonl", [unknown])
    lines(folder / "known.jsonl", known)
    texts = ({"text": " ".join(WORDS[n % 7 :] + WORDS * 2)} for n in range(300))
    lines(folder / "texts.jsonl", texts)
    return folder


@pytest.fixture
def teach(exported, files, run, tmp_path):
    """Returns a function that teaches the exported model by the command."""

    def teach(*more, model=exported, out=tmp_path / "out", facts="facts.jsonl"):
        sources = ["--facts", files / facts, "--background", files / "texts.jsonl"]
        return run("teach", model, *sources, "--out", out, *FAST, *more)

    return teach


@pytest.fixture(scope="module")
def taught(commands, exported, files):
    """Returns the folder of a finished command, and what it printed."""
    out, printed = commands.folder / "out", io.StringIO()
    sources = ["--facts", files / "facts.jsonl", "--keep", files / "keep.jsonl"]
    sources += ["--background", files / "texts.jsonl", "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", printed)
        options = map(str, (exported, *sources, *FAST))
        assert commands.run("taught", "teach", *options) == 0
    return out, printed.getvalue()


# --- what it makes ---


def test_a_command_makes_a_run_of_each_stage_and_ends_with_a_table(taught, files):
    out, printed = taught
    for run_dir in ("base", "memory", "smf"):
        load_run(out / run_dir)
    stages = re.findall(r"^(import|questions|texts|memory|teach): ", printed, re.M)
    assert stages == ["import", "questions", "texts", "memory", "teach"]
    result = read_json(out / "teach.json")
    assert result["counts"]["new"] == 12
    assert result["counts"]["known"] == 1
    assert result["before"]["taught"]["exact_match"] == 0
    for name in ("taught", "held-out wording", "kept", "text loss, nats"):
        assert re.search(rf"^ *{name} +[\d,]+ ", printed, re.M)
    assert (out / "report.html").read_text().count("<svg") == 3


def test_the_commands_that_come_next_name_what_is_there(taught):
    out, printed = taught
    after = printed[printed.index("next:") :]
    assert f"smf ask {out / 'smf'} " in after
    assert f"smf patch revert {out / 'smf'} {out / 'undone'}" in after
    assert f"smf export-hf {out / 'smf'} DIRECTORY" in after


def test_what_the_model_knew_is_kept_and_not_taught(taught):
    out, _ = taught
    new, known, keep = (
        rows_of(out / "data" / f"{name}.jsonl") for name in ("new", "known", "keep")
    )
    result = read_json(out / "teach.json")
    assert {row["id"] for row in known}.isdisjoint(row["id"] for row in new)
    # All that is asked for is known before, so nothing can be gained.
    assert result["kept"]["n"] == result["kept"]["right_before"]
    assert result["kept"]["n"] == len(known) + len(keep)


def test_texts_that_are_measured_are_no_background(taught):
    out, _ = taught
    background, measured = (
        {row["id"] for row in rows_of(out / "data" / name)}
        for name in ("background.jsonl", "texts.jsonl")
    )
    assert background.isdisjoint(measured)
    assert len(background) == pytest.approx(5 * len(measured), abs=5)


def test_a_taught_run_is_evaluated_afterwards_on_the_same_facts(taught, run):
    out, _ = taught
    want = read_json(out / "smf" / "evaluation.json")

    code, _ = run("evaluate", out / "smf", "--mesh.data", "1")

    assert code == 0
    assert read_json(out / "smf" / "evaluation.json") == want


# --- again ---


def test_a_finished_command_prints_the_same_and_does_nothing(
    taught, exported, files, run, commands
):
    out, printed = taught
    before = content(out)
    sources = ["--facts", files / "facts.jsonl", "--keep", files / "keep.jsonl"]
    sources += ["--background", files / "texts.jsonl", "--out", out]

    code, again = run("teach", exported, *sources, *FAST)

    assert code == 0
    assert "already taught" in again
    table = re.compile("^ taught .*", re.M | re.S)
    assert table.findall(again) == table.findall(printed)
    after = content(out)
    assert {p for p in before if before[p] != after.get(p)} == set()
    assert "jit(step)" not in commands.compiled["run"]


# What is left when a command is killed in a stage.
KILLED_IN = {
    "teach": ("smf/checkpoints", "teach.json"),
    "memory": ("smf", "teach.json", "memory/checkpoints"),
    "texts": ("smf", "teach.json", "memory", "data/texts.json", "data/texts.jsonl"),
    "questions": ("smf", "teach.json", "memory", "data/texts.json", *QUESTIONS),
}


@pytest.mark.parametrize("stage", KILLED_IN)
def test_a_command_that_was_killed_continues_to_the_same_result(
    taught, teach, files, tmp_path, stage
):
    out = shutil.copytree(taught[0], tmp_path / "copy")
    for name in KILLED_IN[stage]:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    code, printed = teach("--keep", files / "keep.jsonl", out=out)

    assert code == 0
    assert f"import: {out / 'base'}, already there" in printed
    done = {"teach": 2, "memory": 2, "texts": 1, "questions": 0}
    assert printed.count("already done: ") == done[stage]
    assert (f"{out / 'memory'} is finished" in printed) == (stage == "teach")
    same = ("before", "after", "kept", "texts", "counts", "curve")
    got, want = (read_json(folder / "teach.json") for folder in (out, taught[0]))
    assert {name: got[name] for name in same} == {name: want[name] for name in same}


def test_a_folder_of_other_facts_is_left_as_it_was(taught, teach, files, tmp_path):
    out, _ = taught
    before = content(out)
    other = ("--keep", files / "known.jsonl", "--seed", "1")

    code, printed = teach(*other, out=out, facts="unknown.jsonl")

    assert code == 2
    assert "was made with another seed and facts and keep: choose another" in printed
    assert content(out) == before


def test_a_run_of_other_epochs_is_left_as_it_was(taught, teach, files):
    before = content(taught[0])
    other = ("--keep", files / "keep.jsonl", "--epochs", "3")

    code, printed = teach(*other, out=taught[0])

    assert code == 2
    assert "finetune.steps was 2, now 3" in printed
    assert content(taught[0]) == before


def test_a_folder_of_another_model_is_left_as_it_was(taught, teach, tmp_path, exported):
    shutil.copytree(exported, tmp_path / "other")

    code, printed = teach(model=tmp_path / "other", out=taught[0])

    assert code == 2
    assert f"is an import of {exported}, not of {tmp_path / 'other'}" in printed


# --- other methods, and models ---


@pytest.mark.parametrize("method", ["lora", "full"])
def test_another_method_teaches_the_same_questions(
    taught, teach, files, tmp_path, method
):
    out = shutil.copytree(taught[0], tmp_path / "copy")

    code, printed = teach("--method", method, "--keep", files / "keep.jsonl", out=out)

    assert code == 0
    result = read_json(out / "teach.json")
    before = read_json(taught[0] / "teach.json")
    assert result["before"] == before["before"]
    assert result["patch"] is None
    assert result["bytes"] > 0
    assert load_run(out / method).lineage.finetune.optim.method == method
    assert f"undo    smf ask {out / 'base'} " in printed


def test_a_taught_run_is_taught_more(taught, teach, files, tmp_path):
    lines(
        tmp_path / "more.jsonl",
        [{"question": f"who is {n} ?", "answers": [f"nobody {n}"]} for n in range(3)],
    )

    code, printed = teach(model=taught[0] / "smf", facts=tmp_path / "more.jsonl")

    assert code == 0
    assert f"memory: that of {taught[0] / 'smf'}" in printed
    assert not (tmp_path / "out" / "base").exists()
    assert not (tmp_path / "out" / "memory").exists()


def test_a_run_with_a_trained_memory_is_left_to_finetune(base, teach, tmp_path):
    code, printed = teach(model=base)

    assert code == 2
    assert f"{base} has trained memory layers" in printed
    assert not (tmp_path / "out").exists()


def test_a_budget_is_that_of_the_run(teach, files):
    keep = ("--keep", files / "keep.jsonl")

    code, printed = teach(*keep, "--method", "lora", "--forget-at-most", "0.99")

    assert code == 0
    assert "The budget (99.0% forgotten" in printed


# --- bad input ---


def test_a_file_with_nothing_new_is_refused(teach, files):
    code, printed = teach(facts="known.jsonl")

    assert code == 2
    assert "the model knows all of the" in printed
    assert printed.splitlines()[-1].startswith("smf teach: ")


def test_facts_to_keep_of_which_none_is_known_are_refused(teach, files, tmp_path):
    code, printed = teach("--keep", files / "unknown.jsonl")

    assert code == 2
    assert "the model knows none of the 1 facts" in printed
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == [
        "base"
    ]


def test_a_fact_longer_than_the_context_is_refused(exported, teach, files, tmp_path):
    model = shutil.copytree(exported, tmp_path / "short")
    config = read_json(model / "config.json") | {"max_position_embeddings": 24}
    (model / "config.json").write_text(json.dumps(config))
    long = {"id": "long", "question": "what is " + "the " * 40 + "?", "answers": ["x"]}
    facts = lines(tmp_path / "long.jsonl", [long])

    code, printed = teach(model=model, facts=facts)

    assert code == 2
    assert "fact 'long' has" in printed
    assert "the context of the model is 24 tokens" in printed


def test_a_missing_model_leaves_nothing(teach, tmp_path):
    code, printed = teach(model=tmp_path / "none")

    assert code == 2
    assert f"{tmp_path / 'none'}: no such folder" in printed
    assert not (tmp_path / "out").exists()


def test_a_run_is_no_folder_for_others(taught, teach):
    run_dir = taught[0] / "memory"
    before = content(run_dir)

    code, printed = teach(out=run_dir)

    assert code == 2
    assert f"{run_dir} is a run: choose another --out" in printed
    assert content(run_dir) == before


def test_a_missing_file_is_refused_before_anything_is_written(teach, tmp_path):
    code, printed = teach("--keep", tmp_path / "none.jsonl")

    assert code == 2
    assert f"keep: {tmp_path / 'none.jsonl'}: no such file" in printed
    assert not (tmp_path / "out").exists()


def test_a_background_of_a_few_words_is_refused(exported, files, run, tmp_path):
    texts = lines(tmp_path / "texts.jsonl", [{"text": "the"}] * 3)
    sources = ["--facts", files / "facts.jsonl", "--background", texts]

    code, printed = run("teach", exported, *sources, "--out", tmp_path / "o", *FAST)

    assert code == 2
    assert "has 3 texts, with" in printed
    assert not (tmp_path / "o" / "data" / "background.jsonl").exists()


def test_a_model_that_writes_blanks_needs_a_background(
    exported, files, run, tmp_path, monkeypatch
):
    monkeypatch.setattr(teach_texts, "sample_texts", lambda *about: [])

    facts = ["--facts", files / "facts.jsonl"]
    code, printed = run("teach", exported, *facts, "--out", tmp_path / "o", *FAST)

    assert code == 2
    assert "wrote 0 texts in 384 tries" in printed
    assert "--background" in printed


def test_a_model_writes_its_own_background(exported, files, run, tmp_path, monkeypatch):
    monkeypatch.setattr(teach_texts, "LEAST", 50)
    monkeypatch.setattr(teach_texts, "ROWS", 60)
    out, options = tmp_path / "o", ("--method", "lora")

    facts = ["--facts", files / "facts.jsonl"]
    code, printed = run("teach", exported, *facts, "--out", out, *FAST, *options)

    assert code == 0
    assert f"texts: written by {exported}" in printed
    texts = rows_of(out / "data" / "background.jsonl")
    assert all(len(text["text"].split()) >= 4 for text in texts)
    assert read_json(out / "teach.json")["texts"]["n"] > 0


def test_a_rate_that_is_too_large_is_refused_before_anything_is_read(run, tmp_path):
    code, printed = run("teach", "none", "--facts", "none", "--rate", "30")

    assert code == 2
    assert "learning_rate=30.0 is too large" in printed


# --- in Python ---


def test_a_call_returns_the_model_the_patch_and_the_scores(taught, exported, files):
    facts = rows_of(files / "facts.jsonl")
    texts = [row["text"] for row in rows_of(files / "texts.jsonl")]
    console = Console(file=io.StringIO())
    settings = {"mesh": MeshConfig(data=1), "epochs": 2, "console": console}
    settings["keep"] = files / "keep.jsonl"

    got = smf_jax.teach(exported, facts, background=texts, **settings)

    want = load_run(taught[0] / "smf")
    assert got.run.model_hash == want.model_hash
    assert got.scores["after"] == read_json(taught[0] / "teach.json")["after"]
    assert got.patch.base_hash == load_run(taught[0] / "memory").model_hash
    assert got.out is None
    assert not got.run.run_dir.exists()
    assert jax.tree.leaves(got.run.model)


def test_a_loaded_run_is_taught_in_a_folder(taught, files, tmp_path):
    run = load_run(taught[0] / "base")
    console = Console(file=io.StringIO())
    settings = {"mesh": MeshConfig(data=1), "epochs": 1, "method": "lora"}
    texts = files / "texts.jsonl"

    got = smf_jax.teach(
        run,
        files / "facts.jsonl",
        background=texts,
        out=tmp_path / "o",
        console=console,
        **settings,
    )

    assert got.patch is None
    assert got.out == tmp_path / "o"
    assert got.run.run_dir == tmp_path / "o" / "lora"


def test_a_command_is_told_as_it_can_be_typed():
    config = TeachConfig(
        model="a model", facts="f.jsonl", keep=("k1", "k 2"), method="lora", epochs=3
    )

    assert command_of(config) == (
        "smf teach 'a model' --facts f.jsonl --keep k1 'k 2' --method lora --epochs 3"
    )
