"""Runs that are exported to Hugging Face, and imported models that are taught."""

import json
import shutil

import pytest

from smf_jax import hf
from smf_jax.runs.load import corpus_of, load_run
from tests import gguf_files, tiny
from tests.integration.files import read_json

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def lora_config(base, run_dir, **changes):
    return tiny.finetune_config(base, run_dir, tiny.LORA, steps=4, **changes)


def test_an_exported_and_imported_model_is_the_same(plain, imported, run):
    before, after = load_run(plain), load_run(imported)

    assert after.model_hash == before.model_hash
    assert after.tokenizer.rules.to_str() == before.tokenizer.rules.to_str()
    assert after.tokenizer[1:] == before.tokenizer[1:]
    question = corpus_of(before).known[0].question
    assert run("ask", plain, question) == run("ask", imported, question)
    assert run("verify", imported)[0] == 0


def test_the_files_and_settings_of_an_imported_model_are_exported(
    exported, run, tmp_path
):
    source = shutil.copytree(exported, tmp_path / "source")
    template, out = "{% for m in messages %}{{ m.content }}\n", tmp_path / "out"
    (source / "chat_template.jinja").write_text(template)
    path = source / "config.json"
    path.write_text(json.dumps(read_json(path) | {"bos_token_id": 7}))

    assert run("import-hf", source, tmp_path / "run")[0] == 0
    assert run("export-hf", tmp_path / "run", out)[0] == 0

    assert (out / "chat_template.jinja").read_text() == template
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert read_json(out / name) == read_json(source / name)


def test_keys_that_an_import_is_without_are_named(exported, run, tmp_path):
    source = shutil.copytree(exported, tmp_path / "source")
    path = source / "config.json"
    more = {"num_beams": 4, "window_pattern": 3, "id2label": {"0": "A"}, "top_k": 9}
    path.write_text(json.dumps(read_json(path) | more))
    ignore = ("--ignore", "window_pattern", "top_k")

    code, printed = run("import-hf", source, tmp_path / "run", *ignore)

    assert code == 0
    assert "ignored, as asked: window_pattern, top_k" in printed
    assert "set aside, as no logit depends on it: num_beams, id2label\n" in printed


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


def test_facts_of_an_import_are_to_be_kept_or_some_of_them_taught(
    exported, facts, run, tmp_path
):
    shares = {}
    for fraction in ("0", "0.5"):
        run_dir = tmp_path / fraction
        data = ("--facts", facts, "--new-fraction", fraction)
        assert run("import-hf", exported, run_dir, *data)[0] == 0
        corpus = corpus_of(load_run(run_dir))
        shares[fraction] = len(corpus.new), len(corpus.known)

    total = sum(shares["0"])
    assert shares == {"0": (0, total), "0.5": (total // 2, total - total // 2)}


def test_an_imported_folder_is_recorded_by_its_path(exported, imported):
    record = read_json(imported / "config.json")["imported"]

    assert (record["source"], record["revision"]) == (str(exported), None)


def test_a_model_imported_without_data_is_taught_a_file_and_its_adapter_exported(
    exported, facts, run, tmp_path, monkeypatch
):
    imported, lora, out = (tmp_path / name for name in ("imported", "lora", "out"))
    monkeypatch.setattr(hf, "fetch", lambda source, revision: (exported, COMMIT))
    assert run("import-hf", "somebody/tiny", imported, "--revision", "main")[0] == 0

    code, printed = run(lora_config(imported, lora))
    assert code == 2
    assert "name --facts" in printed
    code, printed = run(lora_config(imported, lora, facts=str(facts)))
    assert code == 2
    assert "name --seq-len" in printed
    assert run(lora_config(imported, lora, facts=str(facts), seq_len=24))[0] == 0

    assert run("export-hf", lora, out)[0] == 0
    adapter = read_json(out / "adapter" / "adapter_config.json")
    assert adapter["base_model_name_or_path"] == "somebody/tiny"
    assert adapter["revision"] == COMMIT


def test_a_text_longer_than_the_context_of_the_model_is_refused(
    exported, facts, run, tmp_path
):
    source = shutil.copytree(exported, tmp_path / "source")
    short = read_json(source / "config.json") | {"max_position_embeddings": 16}
    (source / "config.json").write_text(json.dumps(short))
    run_dir, data = tmp_path / "run", {"facts": str(facts), "seq_len": 24}
    assert run("import-hf", source, run_dir)[0] == 0

    code, printed = run(lora_config(run_dir, tmp_path / "taught", **data))

    assert code == 2
    assert "seq_len=24 exceeds the context of 16 tokens" in printed


def test_a_gguf_file_is_imported_taught_and_exported(facts, run, tmp_path):
    pytest.importorskip("gguf", reason="the extra `gguf` is not installed")
    source = gguf_files.write(tmp_path / "a.gguf", type_name="Q8_0")
    imported, lora, out = (tmp_path / name for name in ("imported", "lora", "out"))

    assert run("import-hf", source, imported)[0] == 0
    assert read_json(imported / "config.json")["imported"]["source"] == str(source)
    source.unlink()
    assert run("verify", imported)[0] == 0
    data = {"facts": str(facts), "seq_len": 64}
    assert run(lora_config(imported, lora, **data))[0] == 0
    code, printed = run("export-hf", lora, out)

    assert code == 0
    assert f"names {source}, which PEFT cannot load: export {imported}" in printed
    assert hf.import_model(out).config == load_run(imported).model.config


def test_a_broken_gguf_file_leaves_no_run(run, tmp_path):
    pytest.importorskip("gguf", reason="the extra `gguf` is not installed")
    source = gguf_files.write(tmp_path / "a.gguf", type_name="Q8_0")
    source.write_bytes(source.read_bytes()[:-1000])

    code, printed = run("import-hf", source, tmp_path / "run")

    assert code == 2
    assert "the file ends before" in printed
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_gguf_file_is_no_run(run, tmp_path):
    path = tmp_path / "model.gguf"
    path.touch()

    code, printed = run("ask", path, "what is it ?")

    assert code == 2
    assert "model.gguf is a model, not a run: import it with smf import-hf" in printed
