"""An imported model is given a memory, healed, and taught."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from smf_jax.config import DataConfig, FinetuneConfig, OptimConfig, RetrofitConfig
from smf_jax.runs.load import load_run
from tests import tiny
from tests.tiny import bits, named

STEPS, EVERY = 12, 4
SMF = OptimConfig(method="smf", optimizer="sgd", learning_rate=5.0, top_t=3)
LORA = OptimConfig(method="lora", learning_rate=0.003)


def retrofit_config(base, run_dir, **changes) -> RetrofitConfig:
    config = tiny.pretrain_config(run_dir, STEPS)
    settings = {
        "mesh": tiny.ONE,
        "base": str(base),
        "run_dir": str(run_dir),
        "steps": STEPS,
        "eval_every": EVERY,
        "log_every": 2,
        "memory": dataclasses.replace(config.model.memory, placement="add"),
        "data": config.data,
        "optim": OptimConfig(method="memory", learning_rate=0.01),
    }
    return RetrofitConfig(**settings | changes)


def finetune_config(base, run_dir, optim=SMF, **changes) -> FinetuneConfig:
    config = FinetuneConfig(
        mesh=tiny.ONE,
        base=str(base),
        run_dir=str(run_dir),
        steps=4,
        batch_size=6,
        log_every=2,
        optim=optim,
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def healed(commands, imported):
    run_dir = commands.folder / "healed"
    assert commands.run_config("healed", retrofit_config(imported, run_dir)) == 0
    assert commands.run("usage", "usage", str(run_dir), "--documents", "5") == 0
    return run_dir


@pytest.fixture(scope="module")
def taught(commands, healed):
    run_dir = commands.folder / "taught"
    assert commands.run_config("taught", finetune_config(healed, run_dir)) == 0
    return run_dir


@pytest.fixture
def run_config(commands, capsys):
    """Returns a function that runs a configuration: its exit code and output."""

    def run(config) -> tuple[int, str]:
        capsys.readouterr()
        code = commands.run_config("config", config)
        printed = capsys.readouterr()
        return code, " ".join((printed.out + printed.err).split())

    return run


def report_of(run_dir):
    return json.loads((run_dir / "retrofit.json").read_text())


# --- healing ---


def test_a_retrofit_trains_the_memory_and_nothing_else(imported, healed):
    before, after = (named(load_run(run).model) for run in (imported, healed))

    for name, array in before.items():
        np.testing.assert_array_equal(bits(after[name]), bits(array))
    new = after.keys() - before.keys()
    assert {name.split("/")[0] for name in new} == {"blocks", "values"}
    assert float(after["blocks/1/memory_scale"]) != 0


def test_a_retrofit_reports_and_draws_its_losses_and_how_slots_are_used(healed):
    report, figure = report_of(healed), (healed / "retrofit.svg").read_text()

    assert report["healed"]
    assert [point["step"] for point in report["curve"]] == [4, 8, 12]
    for point in report["curve"]:
        (slots,) = point["slots"]
        assert 0 < slots["read"] <= 1
        assert slots["kl_to_uniform"] >= 0
        assert 0 < slots["top_percent"] <= 1
    for model in (report["base"], report["after"]):
        assert model["perplexity"] == pytest.approx(np.exp(model["loss"]))
        assert model["scores"].keys() == {"taught", "held_out", "known"}
    assert figure.startswith("<svg")
    for label in ("held-out loss", "healed below", "share"):
        assert label in figure


def test_every_use_of_a_retrofit_that_has_not_healed_is_warned_of(
    commands, imported, run, run_config, tmp_path
):
    run_dir = tmp_path / "unhealed"
    config = retrofit_config(
        imported,
        run_dir,
        margin=0.0,
        memory=tiny.pretrain_config("r", STEPS).model.memory,  # in place, untrained
        steps=1,
        optim=OptimConfig(method="memory", learning_rate=1e-6),
    )

    code, printed = run_config(config)

    assert code == 1
    assert "has not healed" in printed
    report = report_of(run_dir)
    assert not report["healed"]
    assert report["after"]["loss"] > report["base"]["loss"]
    for verb in ("usage", "verify", "evaluate"):
        code, printed = run(verb, run_dir)
        assert code == 0
        assert "has not healed" in printed
    code, printed = run_config(finetune_config(run_dir, tmp_path / "taught"))
    assert code == 0
    assert "has not healed" in printed


def test_a_damaged_report_of_a_retrofit_is_noticed(healed, run_config, tmp_path):
    copy = shutil.copytree(healed, tmp_path / "copy")
    (copy / "retrofit.json").write_text("{}")

    code, printed = run_config(finetune_config(copy, tmp_path / "taught"))

    assert code == 2
    assert "retrofit.json is damaged: checksum mismatch" in printed


def test_a_model_with_a_memory_is_not_given_another(healed, run_config, tmp_path):
    code, printed = run_config(retrofit_config(healed, tmp_path / "twice"))

    assert code == 2
    assert "memory" in printed
    assert not (tmp_path / "twice").exists()


# --- teaching ---


def test_smf_teaches_a_retrofit(healed, taught):
    before, after = (named(load_run(run).model) for run in (healed, taught))

    moved = [name for name in before if (bits(before[name]) != bits(after[name])).any()]
    assert moved == ["values/0"]
    assert load_run(taught).lineage.own == finetune_config(healed, taught)


def test_the_memory_alone_is_taught_as_a_whole(healed, run_config, tmp_path):
    run_dir = tmp_path / "memory"
    optim = OptimConfig(method="memory", learning_rate=0.001)

    assert run_config(finetune_config(healed, run_dir, optim))[0] == 0

    before, after = (named(load_run(run).model) for run in (healed, run_dir))
    dense = "blocks/0/feed_forward/up/kernel"
    np.testing.assert_array_equal(before[dense], after[dense])
    assert not np.array_equal(before["values/0"], after["values/0"])


def test_a_model_without_a_memory_has_none_to_teach(plain, run_config, tmp_path):
    optim = OptimConfig(method="memory", learning_rate=0.001)

    code, printed = run_config(finetune_config(plain, tmp_path / "taught", optim))

    assert code == 2
    assert "has no memory layers" in printed
    assert not (tmp_path / "taught").exists()


def test_a_warning_says_that_every_document_reads_too_many_slots(
    healed, run, run_config, tmp_path
):
    run_dir = shutil.copytree(healed, tmp_path / "healed")

    code, printed = run("usage", run_dir, "--documents", "2", "--batch-size", "60")
    assert code == 0
    assert "2 documents of 60 x 24 tokens" in printed
    assert "WARNING: SMF never writes the" in printed

    optim = dataclasses.replace(SMF, top_t=64)
    code, printed = run_config(finetune_config(run_dir, tmp_path / "taught", optim))
    assert code == 0
    assert "no step can write optim.top_t=64" in printed


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


def test_an_exported_memory_is_imported_and_taught_again(
    taught, facts, run, run_config, tmp_path
):
    run_dir = tmp_path / "in"
    assert run("export-hf", taught, tmp_path / "out")[0] == 0
    options = ["--facts", facts, "--seq-len", "24"]
    assert run("import-hf", tmp_path / "out", run_dir, *options)[0] == 0

    again = load_run(run_dir)
    assert again.model_hash == load_run(taught).model_hash
    assert again.data == DataConfig(facts=str(facts), seq_len=24)
    assert run("usage", run_dir, "--documents", "3")[0] == 0
    assert run_config(finetune_config(run_dir, tmp_path / "again"))[0] == 0


def test_an_adapter_names_the_retrofit_that_was_taught(
    healed, run, run_config, tmp_path
):
    lora, out = tmp_path / "lora", tmp_path / "out"
    assert run_config(finetune_config(healed, lora, LORA))[0] == 0

    assert run("export-hf", lora, out)[0] == 0

    adapter = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(healed)


# --- texts without facts ---


@pytest.fixture(scope="module")
def on_texts(commands, imported):
    """Returns a run that was healed on texts, without any facts."""
    path = commands.folder / "texts.jsonl"
    words = "profession birthplace of is the what".split()
    rows = [
        {"id": str(n), "text": " ".join(words[n % 6 :] + words)} for n in range(300)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_dir = commands.folder / "on texts"
    data = DataConfig(background=str(path), seq_len=24, batch_size=5)
    config = retrofit_config(imported, run_dir, data=data, margin=5.0)
    assert commands.run_config("on texts", config) == 0
    small = ["--documents", "5", "--batch-size", "1"]
    assert commands.run("usage", "usage", str(run_dir), *small) == 0
    return run_dir


def test_a_memory_heals_on_texts_alone(on_texts, run):
    report = report_of(on_texts)

    assert report["base"]["scores"] == report["after"]["scores"] == {}
    assert report["after"]["loss"] < report["base"]["loss"]
    code, printed = run("evaluate", on_texts)
    assert code == 2
    assert "has no questions: name --facts" in printed


def test_a_memory_healed_on_texts_is_taught_the_facts_of_a_file(
    on_texts, facts, run, run_config, tmp_path
):
    optim = dataclasses.replace(SMF, select="tf")  # also slots that the texts read
    config = finetune_config(on_texts, tmp_path / "taught", optim, facts=str(facts))

    assert run_config(config)[0] == 0

    teaching = json.loads((tmp_path / "taught" / "teaching.json").read_text())
    assert [point[3] for point in teaching["curve"]] == [None] * 2
    before, after = teaching["text_loss"]
    assert before > 0
    assert before != after
    assert f"loss {after:.4f}" in run("evaluate", tmp_path / "taught")[1]
