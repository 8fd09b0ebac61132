"""Files of facts to keep and of texts to measure, in place of those of the base."""

import json
import shutil

import pytest

from smf_jax.config import KeepConfig
from tests import tiny
from tests.integration.files import read_json


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def files(commands):
    """Returns settings that name files beside the runs of this module."""
    folder = commands.folder
    words = "profession birthplace of is the what was born in".split()
    facts = [
        {"id": n, "question": f"what is {n} ?", "answers": ["birthplace"]}
        for n in words
    ]
    kept = [
        {"id": number % 5, "question": f"{n} is ?", "answers": ["the"]}
        for number, n in enumerate(words)
    ]
    texts = [{"id": n, "text": " ".join(words[n:] + words * 2)} for n in range(9)]
    return {
        "facts": lines(folder / "facts.jsonl", facts),
        "keep": (
            lines(folder / "one.jsonl", kept[:5]),
            lines(folder / "two.jsonl", kept[4:]),  # one fact is in both
        ),
        "texts": lines(folder / "texts.jsonl", texts),
    }


def config_of(imported, run_dir, files):
    keep = KeepConfig(facts=files["keep"], texts=files["texts"])
    settings = {"facts": files["facts"], "keep": keep, "steps": 2, "seq_len": 24}
    return tiny.finetune_config(imported, run_dir, tiny.LORA, **settings)


@pytest.fixture(scope="module")
def taught(commands, imported, files):
    run_dir = commands.folder / "taught"
    assert commands.run_config("taught", config_of(imported, run_dir, files)) == 0
    return run_dir


def test_a_base_without_data_is_watched_by_files(taught):
    answers = read_json(taught / "evaluation.json")["answers"]["known"]
    assert len(answers) == 9
    # Facts of several files may have one id, and are different facts.
    assert len({row["fact"] for row in answers}) == 9
    first, *_, last = read_json(taught / "teaching.json")["texts"]
    assert 0 < first["loss"] != last["loss"] > 0


def test_a_run_is_evaluated_on_its_files_afterwards(taught, run):
    want = read_json(taught / "evaluation.json")

    code, printed = run("evaluate", taught)

    assert code == 0
    assert read_json(taught / "evaluation.json") == want
    assert "text rows" in printed


def test_other_facts_are_scored_beside_what_is_kept(taught, run, facts):
    code, _ = run("evaluate", taught, "--facts", facts)

    assert code == 0
    scores = read_json(taught / "evaluation-facts.json")["scores"]
    assert scores["known"]["n"] == 9
    assert scores["taught"]["n"] == 20


def test_files_are_found_where_they_moved_with_the_run(commands, taught, run, tmp_path):
    moved = shutil.copytree(commands.folder, tmp_path / "moved")
    hidden = [commands.folder / f"{n}.jsonl" for n in ("one", "two", "texts", "facts")]
    for path in hidden:
        path.rename(path.with_suffix(".hidden"))
    try:
        code, printed = run("evaluate", moved / "taught")
    finally:
        for path in hidden:
            path.with_suffix(".hidden").rename(path)

    assert code == 0, printed


@pytest.mark.parametrize("name", ["two", "texts"])
def test_a_changed_file_is_noticed(commands, taught, run, tmp_path, name):
    path = commands.folder / f"{name}.jsonl"
    content = path.read_text()
    path.write_text(content.replace("what", "which"))
    try:
        code, printed = run("evaluate", taught)
    finally:
        path.write_text(content)

    assert code == 2
    assert "have changed since it was taught" in printed


def test_the_command_of_a_finished_run_may_name_the_files_elsewhere(
    commands, imported, taught, files, run, tmp_path
):
    def copy(path):
        return str(shutil.copy(path, tmp_path))

    moved = {"facts": copy(files["facts"]), "texts": copy(files["texts"])}
    moved["keep"] = (copy(files["keep"][0]), files["keep"][1])

    code, printed = run(config_of(imported, taught, moved))

    assert code == 0
    assert f"{taught} is finished" in printed


@pytest.mark.parametrize("key", ["facts", "texts"])
def test_a_missing_file_is_named(imported, files, run, tmp_path, key):
    none = str(tmp_path / "none.jsonl")
    changed = files | ({"keep": (none,)} if key == "facts" else {"texts": none})

    code, printed = run(config_of(imported, tmp_path / "run", changed))

    assert code == 2
    assert f"keep.{key}: {none}: no such file" in printed
    assert not (tmp_path / "run").exists()
