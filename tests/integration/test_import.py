"""Runs that are exported to Hugging Face, and imported models that are taught."""

import dataclasses
import json
import shutil

from smf_jax.config import FinetuneConfig, OptimConfig
from smf_jax.runs.load import load_run
from tests import tiny

LORA = OptimConfig(method="lora", learning_rate=0.003)


def lora_config(base, run_dir, **changes) -> FinetuneConfig:
    config = FinetuneConfig(
        mesh=tiny.ONE,
        base=str(base),
        run_dir=str(run_dir),
        steps=4,
        batch_size=6,
        optim=LORA,
    )
    return dataclasses.replace(config, **changes)


def test_an_exported_and_imported_model_is_the_same(plain, imported, run):
    before, after = load_run(plain), load_run(imported)

    assert after.model_hash == before.model_hash
    assert after.tokenizer.rules.to_str() == before.tokenizer.rules.to_str()
    assert after.tokenizer[1:] == before.tokenizer[1:]
    question = "what is the profession of somebody ?"
    assert run("ask", plain, question) == run("ask", imported, question)
    assert run("verify", imported)[0] == 0


def test_the_files_and_settings_of_an_imported_model_are_exported(
    exported, run, tmp_path
):
    source = shutil.copytree(exported, tmp_path / "source")
    template = "{% for m in messages %}{{ m.content }}{% endfor %}\n"
    (source / "chat_template.jinja").write_text(template)
    path = source / "config.json"
    config = json.loads(path.read_text()) | {"bos_token_id": 7, "use_cache": False}
    path.write_text(json.dumps(config))
    out = tmp_path / "out"

    assert run("import-hf", source, tmp_path / "run")[0] == 0
    assert run("export-hf", tmp_path / "run", out)[0] == 0

    assert (out / "chat_template.jinja").read_text() == template
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        want = json.loads((source / name).read_text())
        assert json.loads((out / name).read_text()) == want


def test_a_hugging_face_folder_is_no_run(exported, run):
    code, printed = run("ask", exported, "what is it ?")

    assert code == 2
    assert "import it with smf import-hf" in printed


def test_an_imported_run_is_not_overwritten(exported, imported, run):
    before = load_run(imported).model_hash

    code, printed = run("import-hf", exported, imported)

    assert code == 2
    assert "holds a finished run" in printed
    assert load_run(imported).model_hash == before


def test_a_folder_that_is_no_model_leaves_no_run(exported, run, tmp_path):
    broken = shutil.copytree(exported, tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{}")

    code, printed = run("import-hf", broken, tmp_path / "run")

    assert code == 2
    (line,) = printed.splitlines()
    assert str(broken / "tokenizer.json") in line
    assert not (tmp_path / "run").exists()


def test_a_model_imported_without_data_is_taught_a_file_and_its_adapter_exported(
    commands, exported, imported, facts, run, tmp_path, capsys
):
    lora, out = tmp_path / "lora", tmp_path / "out"

    def teach(**changes) -> tuple[int, str]:
        code = commands.run_config("lora", lora_config(imported, lora, **changes))
        return code, capsys.readouterr().err

    code, error = teach()
    assert code == 2
    assert "name --facts" in error
    code, error = teach(facts=str(facts))
    assert code == 2
    assert "name --seq-len" in error
    assert teach(facts=str(facts), seq_len=24)[0] == 0

    assert run("export-hf", lora, out)[0] == 0
    adapter = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(exported)


def test_a_text_longer_than_the_context_of_the_model_is_refused(
    commands, exported, facts, run, tmp_path, capsys
):
    source = shutil.copytree(exported, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    short = json.dumps(config | {"max_position_embeddings": 16})
    (source / "config.json").write_text(short)
    assert run("import-hf", source, tmp_path / "run")[0] == 0

    config = lora_config(
        tmp_path / "run", tmp_path / "taught", facts=str(facts), seq_len=24
    )
    assert commands.run_config("long", config) == 2

    assert "seq_len=24 exceeds the context of 16 tokens" in capsys.readouterr().err
