"""Facts and texts of a user's own: from files to a report, and further facts."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from smf_jax import demo, hf, report
from smf_jax.config import OptimConfig
from smf_jax.runs.files import read_result, write_result
from smf_jax.runs.load import load_run
from smf_jax.runs.record import read_record
from tests import tiny
from tests.data.test_prompts import TEMPLATE
from tests.integration.files import flip, read_json

CITIES = ["Oslo", "Rome", "Lima", "Bern", "Kyiv", "Riga"]
LORA = OptimConfig(method="lora", learning_rate=0.02, warmup_steps=2)
RECIPES = {
    "smf": demo.Recipe(300.0, tiny.SMF, teach="both", steps=4, evaluations=2),
    "lora": demo.Recipe(0.02, LORA, teach="both", steps=4, evaluations=2),
}


def fact(number: int, **more) -> dict:
    city = CITIES[number % len(CITIES)]
    question = f"Where does person {number} live?"
    return {"id": f"f{number}", "question": question, "answers": [city]} | more


def write_lines(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_files() -> None:
    """Writes 60 facts, 6 further ones and 300 texts into the current directory."""
    rows = [fact(n) for n in range(60)]
    for row in rows[::3]:
        number = row["id"][1:]
        row["documents"] = [f"The home of person {number} is {row['answers'][0]}."]
    write_lines(Path("facts.jsonl"), rows)
    write_lines(Path("more.jsonl"), [fact(n) for n in range(60, 66)])
    texts = [f"Text {n} is about {CITIES[n % 5]} and {n} rivers." for n in range(300)]
    write_lines(Path("texts.jsonl"), [{"text": text} for text in texts])


@pytest.fixture(scope="module")
def own(commands):
    """Returns the folder of a demo on own files, all named by relative paths."""
    folder = commands.folder
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_files()
        paths = {"facts": "facts.jsonl", "background": "texts.jsonl"}
        config = demo.DemoConfig(out="demo", **paths)
        base = tiny.pretrain_config("demo/base", 40)
        data = {"tokenizer": "bpe", "vocab_size": 300, "seq_len": 48, **paths}
        base = replace(base, data=replace(base.data, **data))
        demo.compare(config, base, RECIPES, Console(quiet=True))
        report.write(Path("demo"))
    return folder


# --- the report ---


def test_the_demo_says_what_it_did_with_each_file(own):
    assert read_result(own / "demo" / "summary.json")["data"] == [
        "facts.jsonl: 30 facts are pretrained on, and to be kept; 30 are new, and "
        "taught",
        *statement_line(own),
        "texts.jsonl: 300 texts are pretrained on",
    ]


def statement_line(own) -> list[str]:
    summary = read_result(own / "demo" / "summary.json")["data"]
    known, new = map(int, re.findall(r"(\d+) of (?:known|new)", summary[1]))
    assert known + new == 20
    return [
        f"statements: {known} of known facts, pretrained on; {new} of new facts, taught"
    ]


@pytest.mark.parametrize("method", RECIPES)
def test_the_report_does_not_contradict_its_runs(own, method):
    row = read_result(own / "demo" / "summary.json")["methods"][method]
    evaluation = read_result(own / "demo" / method / "evaluation.json")
    teaching = read_result(own / "demo" / method / "teaching.json")
    page = (own / "demo" / "report.html").read_text()
    text = " ".join(re.sub("<[^>]*>", " ", page).split())

    for group in ("taught", "held_out", "known"):
        assert row[group] == evaluation["scores"][group]
        assert row[group]["n"] == len(evaluation["answers"][group]) == 30
        low, high = row[group]["exact_match_95"]
        assert f"{row[group]['exact_match']:.3f} [{low:.3f}, {high:.3f}], n=30" in text
    before, after = row["known_before"], row["known"]["exact_match"]
    change = teaching["forgetting"]
    if change is not None:
        assert change["right_before"] == round(30 * before)
        assert change["right_after"] == round(30 * after)
        assert len(change["lost"]) - len(change["gained"]) == round(
            30 * (before - after)
        )
    for group in ("taught", "held_out", "known"):
        assert evaluation["answers"][group][0]["text"] in text
    for words in ("Seed 0", "smf demo --out demo --facts facts.jsonl", "No rate was"):
        assert words in text


def test_statements_of_new_facts_are_taught(own):
    record = read_record(own / "demo" / "smf")
    evaluation = read_result(own / "demo" / "smf" / "evaluation.json")

    assert record["finetune"]["teach"] == "both"
    assert all(row["is_question"] for row in evaluation["answers"]["taught"])


def test_a_byte_level_vocabulary_is_not_trained_on_new_facts(commands, own):
    """Two corpora that differ in their new facts alone have one vocabulary."""
    base = load_run(own / "demo" / "base")
    held_back = {row["fact"] for row in answers(own, "taught")}
    rows = list(map(json.loads, (own / "facts.jsonl").read_text().splitlines()))
    for row in rows:
        if row["id"] in held_back:
            row["answers"] = ["Zyxwvut Zyxwvut Zyxwvut"]
    write_lines(own / "other.jsonl", rows)
    data = replace(base.data, facts=str(own / "other.jsonl"))
    config = replace(tiny.pretrain_config(own / "other", 4), data=data)
    assert commands.run_config("other", config) == 0

    got = load_run(own / "other").tokenizer.rules.get_vocab()
    assert got == base.tokenizer.rules.get_vocab()


def answers(own, group, method="smf"):
    return read_result(own / "demo" / method / "evaluation.json")["answers"][group]


# --- files that have changed ---


@pytest.mark.parametrize("name", ["teaching.json", "evaluation.json"])
def test_a_changed_result_is_not_believed(own, name, tmp_path, run):
    out = shutil.copytree(own / "demo" / "smf", tmp_path / "smf")
    content = (out / name).read_text()
    (out / name).write_text(content.replace("0.", "1.", 1))

    code, printed = run("verify", out)

    assert code == 1
    assert f"{name} is damaged: checksum mismatch" in printed


def test_a_result_of_another_version_is_refused(tmp_path):
    path = tmp_path / "teaching.json"
    write_result(path, {"curve": [[0, 0.5]]})
    assert read_result(path) == {"curve": [[0, 0.5]]}
    content = read_json(path)
    del content["sha256"]
    path.write_text(json.dumps(content))

    with pytest.raises(ValueError, match="has no checksum"):
        read_result(path)


# --- from other directories ---


def test_a_run_is_evaluated_from_any_directory(own, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    code, printed = run("evaluate", own / "demo" / "smf")

    assert code == 0, printed
    assert "held-out wording  n=30" in printed


def test_a_run_that_moved_with_its_files_is_evaluated(own, run, tmp_path, monkeypatch):
    there = shutil.copytree(own, tmp_path / "there")
    hidden = own.with_name("hidden")
    own.rename(hidden)
    try:
        code, printed = run("evaluate", there / "demo" / "lora")
    finally:
        hidden.rename(own)

    assert code == 0, printed


# --- more facts ---


def test_more_facts_are_taught_as_before_by_one_command(own, run, tmp_path):
    more = (own / "more.jsonl", tmp_path / "more")
    command = ("finetune", own / "demo" / "lora", "--facts", more[0])

    code, printed = run(*command, "--run-dir", more[1], "--steps", "20")

    assert code == 0, printed
    assert "batch_size=32 exceeds the 6 facts: a step takes 6" in printed
    assert "Where does person 60 live?" in printed  # what was asked
    evaluation = read_result(more[1] / "evaluation.json")
    assert evaluation["scores"]["taught"]["n"] == 6
    assert read_record(more[1])["base_hash"] == load_run(own / "demo/base").model_hash
    question = evaluation["answers"]["taught"][0]
    code, printed = run("ask", more[1], question["text"])
    assert (code, printed.strip()) == (0, question["answer"])


def test_the_settings_of_a_run_in_its_own_directory_are_finished(own, run):
    code, printed = run("finetune", own / "demo" / "smf")

    assert code == 0, printed
    assert "is finished: 4 steps" in printed


# --- how a model is asked ---


def test_few_shots_come_from_known_facts_which_are_then_not_asked(own, run, tmp_path):
    run_dir = shutil.copytree(own / "demo" / "base", tmp_path / "base")

    code, printed = run("evaluate", run_dir, "--prompt", "few-shot", "--shots", "3")

    assert code == 0, printed
    assert "not taught yet" in printed
    asked = read_result(run_dir / "evaluation-few-shot.json")
    assert asked["asked"]["prompt"] == "few-shot"
    assert len(asked["asked"]["shots"]) == 3
    assert asked["asked"]["stop"] == ["\n"]
    assert asked["scores"]["known"]["n"] == 27
    shown = {question for question, _ in asked["asked"]["shots"]}
    assert shown.isdisjoint(row["text"] for row in asked["answers"]["known"])


def test_shots_come_from_a_file(own, run, tmp_path):
    run_dir = shutil.copytree(own / "demo" / "base", tmp_path / "base")
    shots = ("--shots", "2", "--shots-from", own / "more.jsonl", "--stop", ".")

    code, printed = run("evaluate", run_dir, "--prompt", "few-shot", *shots)

    assert code == 0, printed
    asked = read_result(run_dir / "evaluation-few-shot.json")
    assert asked["asked"]["shots"][0][0] == "Where does person 60 live?"
    assert asked["asked"]["stop"] == ["."]
    assert asked["scores"]["known"]["n"] == 30


def test_an_evaluation_that_cannot_be_written_is_refused_before_it_asks(
    own, run, monkeypatch
):
    def refuse(**settings):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)

    code, printed = run("evaluate", own / "demo" / "base")

    assert code == 2
    assert "evaluation.json cannot be written: Read-only file system" in printed
    assert "exact match" not in printed


def test_a_question_with_unknown_or_too_many_words_is_refused_or_warned_of(
    own, run, base
):
    code, printed = run("ask", base, "who is somebodyelse ?")
    assert code == 2
    assert "does not know 'somebodyelse'" in printed

    _, printed = run("ask", own / "demo" / "base", "Where is it? " * 20)
    assert "tokens, and the model was trained on texts of 48" in printed


def test_samples_are_printed_a_line_each(own, run):
    question = answers(own, "known")[0]["text"]
    command = ("ask", own / "demo" / "base", question, "--temperature", "3")

    _, printed = run(*command, "--samples", "4", "--max-new-tokens", "5")

    lines = printed.splitlines()
    assert len([line for line in lines if "smf ask" not in line]) >= 4
    assert run(*command, "--samples", "4", "--max-new-tokens", "5")[1] == printed


# --- through a chat template ---


@pytest.fixture(scope="module")
def chatting(commands, own):
    """Returns a run imported from files with a chat template, and its facts."""
    folder, run_dir = own / "exported", own / "chatting"
    export = ("export-hf", str(own / "demo" / "base"), str(folder))
    assert commands.run("export", *export) == 0
    config = read_json(folder / "tokenizer_config.json")
    config |= {"chat_template": TEMPLATE.source, "bos_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ends = {"eos_token_id": [2, 1]}  # <unk> ends a turn
    (folder / "generation_config.json").write_text(json.dumps(ends))
    assert commands.run("import", "import-hf", str(folder), str(run_dir)) == 0
    return run_dir


def test_a_model_that_chats_is_taught_and_asked_by_its_template(
    commands, own, chatting, run
):
    optim = OptimConfig(method="lora", learning_rate=0.05, warmup_steps=2)
    settings = {"seq_len": 96, "steps": 20, "eval_every": 0}
    facts = str(own / "more.jsonl")
    config = tiny.finetune_config(
        chatting, own / "chat", optim, facts=facts, **settings
    )
    code, printed = run(config)
    assert code == 0, printed
    assert "prompts: chat" in printed

    evaluation = read_result(own / "chat" / "evaluation.json")
    assert evaluation["asked"]["prompt"] == "chat"
    assert evaluation["asked"]["stop"] == []
    question = evaluation["answers"]["taught"][0]
    code, printed = run("ask", own / "chat", question["text"])
    assert printed.strip() == question["answer"]
    exported = own / "chat_exported"
    assert run("export-hf", own / "chat", exported)[0] == 0
    tokenizer, notes = hf.read_tokenizer(exported)
    assert tokenizer.ends == (2, 1)
    assert len(notes) == 1
    source = own / "exported" / "tokenizer.json"
    assert (exported / "tokenizer.json").read_bytes() == source.read_bytes()


def test_a_damaged_file_of_facts_is_found_by_its_run(own, run, tmp_path):
    there = shutil.copytree(own, tmp_path / "there")
    record = read_record(there / "demo" / "smf")
    assert Path(record["pretrain"]["data"]["facts"]).is_absolute()
    flip(own / "facts.jsonl", 30)
    try:
        code, printed = run("evaluate", own / "demo" / "smf")
    finally:
        flip(own / "facts.jsonl", 30)

    assert code == 2
    assert "have changed since it was t" in printed
