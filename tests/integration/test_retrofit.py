"""A model without memory, out to Hugging Face, in again, retrofitted, and taught."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from smf_jax import checkpoint
from smf_jax.config import (
    DataConfig,
    FinetuneConfig,
    OptimConfig,
    RetrofitConfig,
    SaveConfig,
)
from smf_jax.runs.load import load_run
from tests import tiny
from tests.integration.commands import Commands
from tests.tiny import bits, named

STEPS, EVERY = 12, 4
LORA = OptimConfig(method="lora", learning_rate=0.003)


def plain_config(run_dir):
    config = tiny.pretrain_config(run_dir, 152)
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, memory=None)
    )


def retrofit_config(base, run_dir, **changes) -> RetrofitConfig:
    config = tiny.pretrain_config(run_dir, STEPS)
    given = {
        "mesh": tiny.ONE,
        "base": str(base),
        "run_dir": str(run_dir),
        "steps": STEPS,
        "eval_every": EVERY,
        "log_every": 2,
        "save": SaveConfig(every=EVERY, keep=9),
        "memory": dataclasses.replace(config.model.memory, placement="add"),
        "data": config.data,
        "optim": OptimConfig(method="memory", learning_rate=0.01),
    }
    return RetrofitConfig(**given | changes)


def finetune_config(base, run_dir, optim=None) -> FinetuneConfig:
    smf = OptimConfig(method="smf", optimizer="sgd", learning_rate=5.0, top_t=3)
    return FinetuneConfig(
        mesh=tiny.ONE,
        base=str(base),
        run_dir=str(run_dir),
        steps=4,
        batch_size=6,
        log_every=2,
        optim=optim or smf,
    )


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(tmp_path_factory.mktemp("retrofit"))


@pytest.fixture(scope="module")
def plain(commands):
    run_dir = commands.folder / "plain"
    assert commands.run_config("plain", "pretrain", plain_config(run_dir)) == 0
    return run_dir


@pytest.fixture(scope="module")
def exported(commands, plain):
    folder = commands.folder / "exported"
    assert commands.run("export", "export-hf", str(plain), str(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def imported(commands, exported):
    run_dir = commands.folder / "imported"
    assert commands.run("import", "import-hf", str(exported), str(run_dir)) == 0
    return run_dir


@pytest.fixture(scope="module")
def healed(commands, imported):
    run_dir = commands.folder / "healed"
    config = retrofit_config(imported, run_dir)
    assert commands.run_config("healed", "retrofit", config) == 0
    assert commands.run("usage", "usage", str(run_dir), "--documents", "5") == 0
    return run_dir


@pytest.fixture(scope="module")
def taught(commands, healed):
    run_dir = commands.folder / "taught"
    config = finetune_config(healed, run_dir)
    assert commands.run_config("taught", "finetune", config) == 0
    return run_dir


def report_of(run_dir):
    return json.loads((run_dir / "retrofit.json").read_text())


def test_what_was_exported_and_imported_is_the_same_model(plain, imported):
    ours, again = load_run(plain), load_run(imported)

    assert again.model_hash == ours.model_hash
    assert again.tokenizer.rules.to_str() == ours.tokenizer.rules.to_str()
    assert again.tokenizer[1:] == ours.tokenizer[1:]


def test_an_imported_model_answers_as_it_did(plain, imported, commands, capsys):
    question = "what is the profession of somebody ?"

    answers = []
    for run_dir in (plain, imported):
        assert commands.run("ask", "ask", str(run_dir), question) == 0
        answers.append(capsys.readouterr().out)

    assert answers[0] == answers[1]


def test_what_a_model_came_with_goes_out_with_it(commands, exported, tmp_path):
    source = shutil.copytree(exported, tmp_path / "source")
    template = "{% for m in messages %}{{ m.content }}{% endfor %}\n"
    (source / "chat_template.jinja").write_text(template)
    path = source / "config.json"
    config = json.loads(path.read_text()) | {"bos_token_id": 7, "use_cache": False}
    path.write_text(json.dumps(config))
    run_dir, out = str(tmp_path / "run"), tmp_path / "out"

    assert commands.run("came", "import-hf", str(source), run_dir) == 0
    assert commands.run("went", "export-hf", run_dir, str(out)) == 0

    assert (out / "chat_template.jinja").read_text() == template
    assert json.loads((out / "config.json").read_text()) == config
    for name in ("tokenizer.json", "tokenizer_config.json"):
        want = json.loads((source / name).read_text())
        assert json.loads((out / name).read_text()) == want


def test_a_retrofit_moves_the_memory_and_nothing_else(imported, healed):
    before, after = (named(load_run(run).model) for run in (imported, healed))

    for name, array in before.items():
        np.testing.assert_array_equal(bits(after[name]), bits(array))
    new = after.keys() - before.keys()
    assert {name.split("/")[0] for name in new} == {"blocks", "values"}
    assert float(after["blocks/1/memory_scale"]) != 0


def test_a_retrofit_reports_its_tax_and_the_health_of_its_slots(healed):
    report = report_of(healed)

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


def test_a_retrofit_is_drawn(healed):
    figure = (healed / "retrofit.svg").read_text()

    assert figure.startswith("<svg")
    for label in ("held-out loss", "healed below this", "reads on the top 1 %"):
        assert label in figure


def test_a_retrofit_that_was_interrupted_ends_with_the_same_bits(
    commands, imported, healed
):
    run_dir = commands.folder / "again"
    config = retrofit_config(imported, run_dir)
    assert commands.run_config("again", "retrofit", config) == 0
    for step in (8, 12):
        shutil.rmtree(run_dir / "checkpoints" / str(step))
    (run_dir / "retrofit.json").unlink()

    assert commands.run_config("on", "retrofit", config) == 0

    assert load_run(run_dir).model_hash == load_run(healed).model_hash
    assert report_of(run_dir) == report_of(healed)


def test_a_model_that_has_not_healed_is_not_called_so(commands, imported, capsys):
    run_dir = commands.folder / "ill"
    ill = retrofit_config(
        imported,
        run_dir,
        margin=0.0,
        memory=tiny.pretrain_config("r", STEPS).model.memory,  # in place, untrained
        steps=1,
        optim=OptimConfig(method="memory", learning_rate=1e-6),
    )
    capsys.readouterr()

    assert commands.run_config("ill", "retrofit", ill) == 1

    assert "has not healed" in capsys.readouterr().err
    report = report_of(run_dir)
    assert not report["healed"]
    assert report["after"]["loss"] > report["base"]["loss"]
    assert commands.run("usage", "usage", str(run_dir), "--documents", "5") == 0
    capsys.readouterr()
    config = finetune_config(run_dir, commands.folder / "taught ill")
    assert commands.run_config("taught ill", "finetune", config) == 0
    assert "has not healed" in capsys.readouterr().out
    for verb in ("verify", "evaluate"):
        assert commands.run(f"{verb} ill", verb, str(run_dir)) == 0
        assert "has not healed" in capsys.readouterr().out


def test_a_retrofitted_model_is_taught_like_any_other(healed, taught):
    before, after = (named(load_run(run).model) for run in (healed, taught))

    moved = [name for name in before if (bits(before[name]) != bits(after[name])).any()]
    assert moved == ["values/0"]
    assert load_run(taught).lineage.own == finetune_config(healed, taught)


@pytest.mark.parametrize("method", ["full", "memory"])
def test_dense_methods_teach_a_retrofitted_model(commands, healed, method):
    run_dir = commands.folder / method
    optim = OptimConfig(method=method, learning_rate=0.001)
    config = finetune_config(healed, run_dir, optim)

    assert commands.run_config(method, "finetune", config) == 0

    before, after = (named(load_run(run).model) for run in (healed, run_dir))
    dense = "blocks/0/feed_forward/up/kernel"
    same = np.array_equal(before[dense], after[dense])
    assert same == (method == "memory")
    assert not np.array_equal(before["values/0"], after["values/0"])


def test_an_adapter_names_what_it_was_taught_over(commands, healed, tmp_path):
    lora, out = tmp_path / "lora", tmp_path / "out"
    config = finetune_config(healed, lora, LORA)
    assert commands.run_config("over a retrofit", "finetune", config) == 0

    assert commands.run("adapter of it", "export-hf", str(lora), str(out)) == 0

    adapter = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(healed)


def test_the_memory_of_a_model_without_one_is_not_taught(commands, plain, capsys):
    run_dir = commands.folder / "no memory"
    optim = OptimConfig(method="memory", learning_rate=0.001)
    capsys.readouterr()

    config = finetune_config(plain, run_dir, optim)
    assert commands.run_config("no memory", "finetune", config) == 2

    assert "has no memory layers" in capsys.readouterr().err
    assert not run_dir.exists()


def test_a_damaged_report_of_a_retrofit_is_noticed(commands, healed, tmp_path, capsys):
    copy = shutil.copytree(healed, tmp_path / "copy")
    (copy / "retrofit.json").write_text("{}")
    capsys.readouterr()

    config = finetune_config(copy, tmp_path / "taught")
    assert commands.run_config("damaged report", "finetune", config) == 2

    assert "retrofit.json is damaged: checksum mismatch" in capsys.readouterr().err


def test_a_base_with_a_patch_is_exported_as_what_was_taught(
    commands, healed, taught, tmp_path
):
    patch = str(taught / "patch.safetensors")
    arguments = ["export-hf", str(healed), str(tmp_path / "one"), "--patch", patch]
    assert commands.run("patched", *arguments) == 0
    assert commands.run("whole", "export-hf", str(taught), str(tmp_path / "two")) == 0

    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_a_patch_of_another_model_is_refused(commands, imported, taught, capsys):
    patch = str(taught / "patch.safetensors")
    capsys.readouterr()

    out = commands.folder / "refused"
    arguments = ["export-hf", str(imported), str(out), "--patch", patch]
    assert commands.run("other", *arguments) == 2

    assert "is of model" in capsys.readouterr().err
    assert not out.exists()


def test_a_memory_that_was_exported_comes_in_again_and_is_taught(
    commands, taught, tmp_path
):
    facts = write_facts(tmp_path)
    assert commands.run("out", "export-hf", str(taught), str(tmp_path / "out")) == 0
    run_dir = str(tmp_path / "in")
    arguments = ["import-hf", str(tmp_path / "out"), run_dir, "--facts", str(facts)]
    assert commands.run("in", *arguments, "--seq-len", "24") == 0

    assert load_run(run_dir).model_hash == load_run(taught).model_hash
    assert commands.run("more", "export-hf", run_dir, str(tmp_path / "more")) == 0
    documents = ["--documents", "3"]
    assert commands.run("usage in", "usage", run_dir, *documents) == 0
    config = finetune_config(run_dir, tmp_path / "on")
    assert commands.run_config("on", "finetune", config) == 0
    assert commands.run("usage on", "usage", str(tmp_path / "on"), *documents) == 0


def write_facts(folder):
    rows = [{"question": f"who is {n} ?", "answers": ["nobody"]} for n in range(20)]
    path = folder / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_model_with_a_memory_is_not_given_another(commands, healed, capsys):
    config = retrofit_config(healed, commands.folder / "twice")
    capsys.readouterr()

    assert commands.run_config("twice", "retrofit", config) == 2

    assert "has memory layers already" in capsys.readouterr().err


# --- imported models without a retrofit ---


def test_a_model_that_came_without_data_is_taught_what_is_named(
    commands, imported, tmp_path, capsys
):
    config = finetune_config(imported, tmp_path / "taught", LORA)
    capsys.readouterr()

    assert commands.run_config("nothing", "finetune", config) == 2
    assert "name --facts" in capsys.readouterr().err

    config = dataclasses.replace(config, facts=str(write_facts(tmp_path)))
    assert commands.run_config("no length", "finetune", config) == 2
    assert "name --seq-len" in capsys.readouterr().err
    config = dataclasses.replace(config, seq_len=24)
    assert commands.run_config("named", "finetune", config) == 0
    assert commands.run("ask it too", "evaluate", str(tmp_path / "taught")) == 0


def test_a_text_longer_than_the_model_was_made_for_is_refused(
    commands, exported, tmp_path, capsys
):
    source = shutil.copytree(exported, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    short = json.dumps(config | {"max_position_embeddings": 16})
    (source / "config.json").write_text(short)
    run_dir = str(tmp_path / "run")
    assert commands.run("short", "import-hf", str(source), run_dir) == 0
    capsys.readouterr()

    config = retrofit_config(run_dir, tmp_path / "healed")
    assert commands.run_config("long", "retrofit", config) == 2

    assert "seq_len=24 is above the 16 tokens" in capsys.readouterr().err


def test_facts_that_are_known_already_are_counted(commands, imported, tmp_path, capsys):
    facts = write_facts(tmp_path)
    config = retrofit_config(
        imported,
        tmp_path / "healed",
        data=DataConfig(facts=str(facts), new_fraction=0.0, seq_len=24, batch_size=5),
        margin=9.0,
    )
    assert commands.run_config("known", "retrofit", config) == 0
    assert "20 known facts, 0 kept back" in capsys.readouterr().out
    config = finetune_config(tmp_path / "healed", tmp_path / "taught", LORA)
    config = dataclasses.replace(config, facts=str(facts))

    assert commands.run_config("known again", "finetune", config) == 0

    assert "20 of the 20 new facts are among the known" in capsys.readouterr().out


def test_a_hugging_face_folder_is_no_run(commands, exported, capsys):
    capsys.readouterr()

    assert commands.run("no run", "ask", str(exported), "what is it ?") == 2

    assert "smf import-hf makes one of it" in capsys.readouterr().err


def test_low_rank_additions_to_an_imported_model_go_out(
    commands, exported, tmp_path, capsys
):
    facts = write_facts(tmp_path)
    run_dir, lora = tmp_path / "imported", tmp_path / "lora"
    arguments = ["import-hf", str(exported), str(run_dir), "--facts", str(facts)]
    assert commands.run("facts", *arguments, "--seq-len", "24") == 0
    config = finetune_config(run_dir, lora, LORA)
    assert commands.run_config("lora", "finetune", config) == 0

    assert commands.run("adapter", "export-hf", str(lora), str(tmp_path / "out")) == 0

    assert load_run(run_dir).data == DataConfig(facts=str(facts), seq_len=24)
    adapter = tmp_path / "out" / "adapter" / "adapter_config.json"
    assert json.loads(adapter.read_text())["base_model_name_or_path"] == str(exported)


def test_an_import_is_not_written_over(commands, exported, imported, capsys):
    before = load_run(imported).model_hash
    capsys.readouterr()

    assert commands.run("over", "import-hf", str(exported), str(imported)) == 2

    assert "holds a finished run" in capsys.readouterr().err
    assert load_run(imported).model_hash == before


def test_what_is_no_model_leaves_no_run(commands, exported, tmp_path, capsys):
    broken = shutil.copytree(exported, tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{}")
    capsys.readouterr()

    arguments = ["import-hf", str(broken), str(tmp_path / "run")]
    assert commands.run("broken", *arguments) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert "not a tokenizer" in line
    assert not (tmp_path / "run").exists()


def test_every_imported_array_is_verified(commands, imported, tmp_path):
    copy = shutil.copytree(imported, tmp_path / "copy")
    assert commands.run("verify", "verify", str(copy)) == 0
    path = next(path for path in copy.rglob("d/*") if path.is_file())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    assert commands.run("damaged", "verify", str(copy)) == 1
    assert checkpoint.problems(copy, 0)


def test_where_every_document_reads_a_slot_nothing_stands_out(
    commands, healed, tmp_path, capsys
):
    run_dir = str(shutil.copytree(healed, tmp_path / "healed"))
    large = ["--documents", "2", "--batch-size", "60"]
    capsys.readouterr()
    assert commands.run("large", "usage", run_dir, *large) == 0
    said = capsys.readouterr().out
    assert "2 documents of 60 x 24 tokens" in said
    assert "WARNING: SMF never writes the" in said

    config = finetune_config(run_dir, tmp_path / "taught")
    optim = dataclasses.replace(config.optim, top_t=64)
    config = dataclasses.replace(config, optim=optim)
    assert commands.run_config("crowded", "finetune", config) == 0

    assert "no step can write optim.top_t=64" in " ".join(
        capsys.readouterr().out.split()
    )


# --- texts alone ---


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
    assert commands.run_config("on texts", "retrofit", config) == 0
    small = ["--documents", "5", "--batch-size", "1"]
    assert commands.run("usage", "usage", str(run_dir), *small) == 0
    return run_dir


def test_a_memory_heals_on_texts_without_facts(on_texts):
    report = report_of(on_texts)

    assert report["base"]["scores"] == report["after"]["scores"] == {}
    assert report["after"]["loss"] < report["base"]["loss"]


def test_what_healed_on_texts_is_taught_facts_of_a_file(
    commands, on_texts, tmp_path, capsys
):
    facts = write_facts(tmp_path)
    config = finetune_config(on_texts, tmp_path / "taught")
    config = dataclasses.replace(config, facts=str(facts))

    assert commands.run_config("of a file", "finetune", config) == 0

    teaching = json.loads((tmp_path / "taught" / "teaching.json").read_text())
    assert [point[3] for point in teaching["curve"]] == [None] * 2
    before, after = teaching["text_loss"]
    assert before > 0
    assert before != after
    capsys.readouterr()
    assert commands.run("ask it", "evaluate", str(tmp_path / "taught")) == 0
    assert f"texts     loss {after:.4f}" in capsys.readouterr().out


def test_without_facts_there_is_nothing_to_ask(commands, on_texts, capsys):
    capsys.readouterr()

    assert commands.run("nothing", "evaluate", str(on_texts)) == 2

    assert "nothing to ask" in capsys.readouterr().err
