"""Runs on data sets of tensorflow-datasets: resumed, moved, and asked other facts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from smf_jax.config import SaveConfig
from smf_jax.runs.files import read_result
from smf_jax.runs.load import load_run
from smf_jax.runs.record import read_record
from tests import tiny


@pytest.fixture(scope="module")
def trained(commands):
    """Returns the folder of a run on two data sets, named by relative paths."""
    folder = commands.folder
    facts = [
        {"id": str(n), "question": f"who keeps lamp {n} ?", "answers": [f"ada {n % 7}"]}
        for n in range(40)
    ]
    texts = [{"text": f"text {n} about {n % 5} rivers"} for n in range(40)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, rows in (("facts", facts), ("texts", texts)):
            path = Path(f"{name}.jsonl")
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            assert commands.run(name, "data", "to-tfds", str(path), "sets") == 0
            path.unlink()
        config = tiny.pretrain_config("run", 4)
        sources = {name: f"tfds:sets/{name}/1.0.0" for name in ("facts", "texts")}
        data = {"facts": sources["facts"] + ":train", "background": sources["texts"]}
        data["fields"] = "question=question,answers=id,text=text"
        config = replace(config, save=SaveConfig(every=2, keep=9))
        config = replace(config, data=replace(config.data, **data))
        assert commands.run_config("pretrain", config) == 0
    return folder


def test_a_run_on_data_sets_resumes_to_the_same_bits(
    trained, commands, run, monkeypatch
):
    monkeypatch.chdir(trained)
    whole = load_run("run").model_hash
    shutil.copytree("run", "whole")
    shutil.rmtree("run/checkpoints/4")

    code, printed = run("pretrain", "pretrain.py")

    assert code == 0, printed
    assert "resuming run from step 2 of 4" in printed
    assert load_run("run").model_hash == whole


def test_a_run_that_moved_with_its_data_sets_is_evaluated(trained, run, tmp_path):
    there = shutil.copytree(trained, tmp_path / "there")
    hidden = trained.with_name("hidden")
    trained.rename(hidden)
    try:
        code, printed = run("evaluate", there / "run")
    finally:
        hidden.rename(trained)

    assert code == 0, printed
    recorded = read_record(there / "run")["pretrain"]["data"]
    assert recorded["fields"] == "question=question,answers=id,text=text"
    assert recorded["facts"] == f"tfds:{trained}/sets/facts/1.0.0:train"


def test_facts_and_shots_may_be_slices_of_a_data_set(trained, run, tmp_path):
    run_dir = shutil.copytree(trained / "run", tmp_path / "run")
    source = f"tfds:{trained}/sets/facts/1.0.0"
    facts = (
        "--facts",
        f"{source}:train[:25%]",
        "--fields",
        "question=id,answers=answers",
    )
    shots = (
        "--prompt",
        "few-shot",
        "--shots",
        "1",
        "--shots-from",
        f"{source}:train[39:]",
    )

    code, printed = run("evaluate", run_dir, *facts, *shots)

    assert code == 0, printed
    asked = read_result(run_dir / "evaluation-facts-1-0-0-train-25-few-shot.json")
    assert asked["scores"]["taught"]["n"] == 10
    assert asked["answers"]["taught"][3]["text"] == "3"
    assert asked["asked"]["shots"] == [["39", "ada 4"]]
