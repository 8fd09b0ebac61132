"""An imported model is given a memory, healed, and taught."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from smf_jax.config import DataConfig, OptimConfig
from smf_jax.runs.load import load_run
from tests import tiny
from tests.integration.files import content, read_json
from tests.tiny import bits, named, retrofit_config

MEMORY = OptimConfig(method="memory", learning_rate=0.001)


def finetune_config(base, run_dir, optim=tiny.SMF, **changes):
    return tiny.finetune_config(base, run_dir, optim, steps=4, **changes)


@pytest.fixture(scope="module")
def healed(commands, imported):
    run_dir = commands.folder / "healed"
    config = retrofit_config(imported, run_dir, eval_every=4)
    assert commands.run_config("healed", config) == 0
    assert commands.run("usage", "usage", str(run_dir), "--documents", "5") == 0
    return run_dir


@pytest.fixture(scope="module")
def taught(commands, healed):
    run_dir = commands.folder / "taught"
    assert commands.run_config("taught", finetune_config(healed, run_dir)) == 0
    return run_dir


# --- healing ---


def test_a_retrofit_trains_the_memory_and_nothing_else(imported, healed):
    before, after = (named(load_run(run).model) for run in (imported, healed))

    for name, array in before.items():
        np.testing.assert_array_equal(bits(after[name]), bits(array))
    new = after.keys() - before.keys()
    assert {name.split("/")[0] for name in new} == {"blocks", "values"}
    assert float(after["blocks/1/memory_scale"]) != 0


def test_a_retrofit_reports_and_draws_its_losses_and_how_slots_are_used(healed):
    report = read_json(healed / "retrofit.json")

    assert report["healed"]
    assert [point["step"] for point in report["curve"]] == [4, 8, 12]
    for point in report["curve"]:
        (slots,) = point["slots"]
        assert 0 < slots["read"] <= 1
        assert slots["kl_to_uniform"] >= 0
        assert 0 < slots["top_percent"] <= 1
    (scale,) = report["after"]["memory_scale"]
    assert scale == float(load_run(healed).model.blocks[1].memory_scale[...])
    for model in (report["base"], report["after"]):
        assert model["perplexity"] == pytest.approx(np.exp(model["loss"]))
        assert model["scores"].keys() == {"taught", "held_out", "known"}
    assert (healed / "retrofit.svg").read_text().startswith("<svg")


def test_the_command_of_a_finished_retrofit_prints_the_same_verdict(
    commands, imported, healed, run
):
    before = content(healed)

    code, printed = run(retrofit_config(imported, healed, eval_every=4))

    assert code == 0
    assert f"{healed} is finished: 12 steps" in printed
    assert f"{healed} has healed: its loss on" in printed.splitlines()[-1]
    assert content(healed) == before
    assert "jit(step)" not in commands.compiled["run"]


def test_every_use_of_a_retrofit_that_has_not_healed_is_warned_of(
    imported, run, tmp_path
):
    run_dir = tmp_path / "unhealed"
    in_place = tiny.pretrain_config("unused", 9).model.memory  # and hardly trained
    optim = dataclasses.replace(MEMORY, learning_rate=1e-6)
    settings = {"margin": 0.0, "memory": in_place, "steps": 1, "optim": optim}

    code, printed = run(retrofit_config(imported, run_dir, **settings))

    assert code == 1
    assert "has not healed" in printed
    report = read_json(run_dir / "retrofit.json")
    assert not report["healed"]
    assert report["after"]["loss"] > report["base"]["loss"]
    teach = finetune_config(run_dir, tmp_path / "taught")
    for verb in (
        ["usage", run_dir],
        ["verify", run_dir],
        ["evaluate", run_dir],
        [teach],
    ):
        code, printed = run(*verb)
        assert code == 0
        assert "has not healed" in printed


def test_a_damaged_report_of_a_retrofit_is_noticed(healed, run, tmp_path):
    copy = shutil.copytree(healed, tmp_path / "copy")
    (copy / "retrofit.json").write_text("{}")

    code, printed = run(finetune_config(copy, tmp_path / "taught"))

    assert code == 2
    assert "retrofit.json is damaged: checksum mismatch" in printed


def test_a_model_with_a_memory_is_not_given_another(healed, run, tmp_path):
    code, printed = run(retrofit_config(healed, tmp_path / "twice"))

    assert code == 2
    assert "has memory layers" in printed
    assert not (tmp_path / "twice").exists()


# --- teaching ---


def test_smf_teaches_a_retrofit(healed, taught):
    before, after = (named(load_run(run).model) for run in (healed, taught))

    moved = [name for name in before if (bits(before[name]) != bits(after[name])).any()]
    assert moved == ["values/0"]
    assert load_run(taught).lineage.own == finetune_config(healed, taught)


def test_the_memory_alone_is_taught_as_a_whole(healed, run, tmp_path):
    assert run(finetune_config(healed, tmp_path / "run", MEMORY))[0] == 0

    before, after = (named(load_run(d).model) for d in (healed, tmp_path / "run"))
    dense = "blocks/0/feed_forward/up/kernel"
    np.testing.assert_array_equal(before[dense], after[dense])
    assert not np.array_equal(before["values/0"], after["values/0"])


def test_a_model_without_a_memory_has_none_to_teach(plain, run, tmp_path):
    code, printed = run(finetune_config(plain, tmp_path / "taught", MEMORY))

    assert code == 2
    assert "has no memory layers" in printed
    assert not (tmp_path / "taught").exists()


def test_a_warning_says_that_every_document_reads_too_many_slots(healed, run, tmp_path):
    run_dir = shutil.copytree(healed, tmp_path / "healed")

    code, printed = run("usage", run_dir, "--documents", "2", "--batch-size", "60")
    assert code == 0
    assert "2 documents of 60 x 24 tokens" in printed
    assert "WARNING: SMF never writes the" in printed

    optim = dataclasses.replace(tiny.SMF, top_t=64)
    code, printed = run(finetune_config(run_dir, tmp_path / "taught", optim))
    assert code == 0
    assert "no step can write optim.top_t=64" in " ".join(printed.split())


# --- export ---


def test_a_base_exported_with_a_patch_is_the_taught_model(
    healed, taught, run, tmp_path
):
    patch = ["--patch", taught / "patch.safetensors"]
    assert run("export-hf", healed, tmp_path / "one", *patch)[0] == 0
    assert run("export-hf", taught, tmp_path / "two")[0] == 0

    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_a_patch_of_another_model_is_refused(imported, taught, run, tmp_path):
    patch = taught / "patch.safetensors"

    code, printed = run("export-hf", imported, tmp_path / "out", "--patch", patch)

    assert code == 2
    assert f"{patch} belongs to model" in printed
    assert not (tmp_path / "out").exists()


def test_an_exported_memory_is_imported_and_taught_again(taught, facts, run, tmp_path):
    run_dir, options = tmp_path / "in", ["--facts", facts, "--seq-len", "24"]
    assert run("export-hf", taught, tmp_path / "out")[0] == 0
    assert run("import-hf", tmp_path / "out", run_dir, *options)[0] == 0

    again = load_run(run_dir)
    assert again.model_hash == load_run(taught).model_hash
    assert again.data == DataConfig(facts=str(facts), seq_len=24)
    assert run("usage", run_dir, "--documents", "3")[0] == 0
    assert run(finetune_config(run_dir, tmp_path / "again"))[0] == 0


def test_an_adapter_names_the_retrofit_that_was_taught(healed, run, tmp_path):
    assert run(finetune_config(healed, tmp_path / "lora", tiny.LORA))[0] == 0

    assert run("export-hf", tmp_path / "lora", tmp_path / "out")[0] == 0

    adapter = read_json(tmp_path / "out" / "adapter" / "adapter_config.json")
    assert adapter["base_model_name_or_path"] == str(healed)


# --- texts without facts ---


@pytest.fixture(scope="module")
def on_texts(commands, imported):
    """Returns a run that was healed on texts, without any facts."""
    path, run_dir = commands.folder / "texts.jsonl", commands.folder / "on texts"
    words = "profession birthplace of is the what".split()
    texts = (
        {"id": str(n), "text": " ".join(words[n % 6 :] + words)} for n in range(300)
    )
    path.write_text("".join(json.dumps(text) + "\n" for text in texts))
    data = DataConfig(background=str(path), seq_len=24, batch_size=5)
    config = retrofit_config(imported, run_dir, eval_every=4, data=data, margin=5.0)
    assert commands.run_config("on texts", config) == 0
    small = ["--documents", "5", "--batch-size", "1"]
    assert commands.run("usage", "usage", str(run_dir), *small) == 0
    return run_dir


def test_a_memory_heals_on_texts_alone(on_texts, run):
    report = read_json(on_texts / "retrofit.json")

    assert report["base"]["scores"] == report["after"]["scores"] == {}
    assert report["after"]["loss"] < report["base"]["loss"]
    code, printed = run("evaluate", on_texts)
    assert code == 2
    assert "has no questions: name --facts" in printed


def test_a_memory_healed_on_texts_is_taught_the_facts_of_a_file(
    on_texts, facts, run, tmp_path
):
    run_dir = tmp_path / "taught"
    optim = dataclasses.replace(tiny.SMF, select="tf")  # also slots that texts read

    assert run(finetune_config(on_texts, run_dir, optim, facts=str(facts)))[0] == 0

    teaching = read_json(run_dir / "teaching.json")
    assert [point[3] for point in teaching["curve"]] == [None] * 2
    before, after = (of["loss"] for of in teaching["texts"])
    assert 0 < before != after
    assert f"loss {after:.4f}" in run("evaluate", run_dir)[1]
