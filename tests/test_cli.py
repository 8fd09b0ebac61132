"""What a user types wrong ends with code 2, one line, and nothing half-made."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest
from rich.console import Console

from smf_jax import checkpoint, cli, doctor
from smf_jax.config import (
    ConfigError,
    DataConfig,
    FinetuneConfig,
    MemoryConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    WorldConfig,
)
from smf_jax.data.corpus import load_corpus
from smf_jax.data.tokenizer import train_tokenizer
from smf_jax.model.build import make_model
from smf_jax.runs.load import all_params, load_run, model_config
from smf_jax.runs.lock import enter_run_dir, lock_run_dir
from smf_jax.runs.record import Lineage, describe
from tests.integration.commands import CONFIG_FILE
from tests.tiny import ONE

NUM_SLOTS = 16
FACT = '{"id": "a", "question": "what ?", "answers": ["this"]}\n'


def tiny(run_dir, seed: int = 0) -> PretrainConfig:
    memory = MemoryConfig(
        layers=(1,), num_keys=4, top_k=2, num_heads=3, key_dim=6, value_dim=10
    )
    world = WorldConfig(known_people=2, new_people=1, first_names=3, last_names=4)
    return PretrainConfig(
        mesh=ONE,
        run_dir=str(run_dir),
        steps=2,
        seed=seed,
        model=ModelConfig(
            dim=8,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            hidden_dim=12,
            memory=memory,
        ),
        data=DataConfig(seq_len=24, batch_size=2, world=world),
    )


def save_run(run_dir, seed: int) -> None:
    """Writes a run as pretraining does, of a model that saw no step."""
    config = tiny(run_dir, seed)
    corpus = load_corpus(config.data)
    texts = [f"{e.prompt} {e.completion}" for e in corpus.examples]
    tokenizer = train_tokenizer(texts, "word", config.data.vocab_size)
    made = Lineage(pretrain=config)
    record = describe(made, tokenizer, corpus_hash=corpus.hash)
    with lock_run_dir(run_dir):
        enter_run_dir(run_dir, None, record, tokenizer, Console(quiet=True))
        with checkpoint.saver(run_dir, config.save) as saver:
            params = all_params(make_model(model_config(made, tokenizer), seed))
            saver.save(config.steps, {"params": params}, {}, {})


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    # No program here runs long enough to repay its optimization.
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns a folder with the runs `one`, which has its usage, and `other`."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("one", "other")):
        save_run(folder / name, seed)
    assert cli.main(["usage", str(folder / "one"), "--documents", "2"]) == 0
    return folder


@pytest.fixture
def base(runs, tmp_path):
    """Returns a copy of a run, to be damaged."""
    return shutil.copytree(runs / "one", tmp_path / "base")


@pytest.fixture
def finetune(base, tmp_path):
    """Returns the configuration file that teaches `base`."""
    config = FinetuneConfig(
        mesh=ONE,
        base=str(base),
        run_dir=str(tmp_path / "taught"),
        steps=2,
        batch_size=3,
        optim=OptimConfig(method="smf", optimizer="sgd", learning_rate=1.0, top_t=5),
    )
    return write(tmp_path / "finetune.py", CONFIG_FILE.format(config=config))


@pytest.fixture
def pretrain(tmp_path):
    """Returns the configuration file of a run that is not there yet."""
    config = tiny(tmp_path / "new")
    return write(tmp_path / "pretrain.py", CONFIG_FILE.format(config=config))


@pytest.fixture
def refused(capsys):
    """Returns a function from a command to the one line that refuses it."""

    def run(*arguments) -> str:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        (line,) = capsys.readouterr().err.splitlines()
        assert code == 2
        return line

    return run


def write(path, text: str) -> str:
    path.write_text(text)
    return str(path)


def long_facts(count: int) -> str:
    rows = [
        {"question": f"{n} " * 30, "answers": [f"answer-{n}"]} for n in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


# --- the command itself ---


def test_an_unknown_verb_is_refused_and_the_verbs_are_named(refused):
    line = refused("pretain")

    assert "'pretain'" in line
    assert [verb for verb in cli.VERBS if verb not in line] == []


def test_the_code_reaches_the_shell():
    command = [sys.executable, "-m", "smf_jax", "pretain"]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_verb_the_verbs_are_listed(capsys, arguments):
    code = cli.main(arguments)

    assert code == 0
    out = capsys.readouterr().out
    assert [verb for verb in cli.VERBS if verb not in out] == []


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_help_of_a_verb_shows_an_example(capsys, verb):
    with pytest.raises(SystemExit) as caught:
        cli.main([verb, "--help"])

    assert caught.value.code == 0
    assert f"Example: smf {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["pretrain", "retrofit", "finetune", "plan"])
def test_without_a_file_no_setting_is_called_required(capsys, verb):
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])

    out = capsys.readouterr().out
    assert "--optim" not in out
    assert "configs/NAME.py --help tells every setting" in " ".join(out.split())


def test_doctor_names_the_versions_and_what_to_change(capsys):
    assert cli.main(["doctor"]) == 0

    out = capsys.readouterr().out
    assert "orbax-checkpoint 0." in out
    assert "CHANGE" in out or "nothing to change" in out


def test_a_long_line_is_printed_in_one_piece(capsys):
    # Whoever reads it from a file or a pipe has no 80 columns.
    want = list(doctor.examine())
    assert max(map(len, want)) > 80

    cli.main(["doctor"])

    assert capsys.readouterr().out.splitlines() == want


def test_debug_shows_where_an_error_arose(tmp_path):
    with pytest.raises(ConfigError, match="no such run directory"):
        cli.main(["usage", str(tmp_path / "nothing"), "--debug"])


# --- configuration files ---


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_no_configuration_file_is_refused_with_an_example(refused, verb):
    assert f"smf {verb} configs/NAME.py" in refused(verb)


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_a_missing_configuration_file_is_refused_by_name(refused, tmp_path, verb):
    path = tmp_path / "nothing.py"

    assert f"{path}: no such configuration file" in refused(verb, path)


def test_a_file_without_a_config_is_refused(refused, tmp_path):
    path = write(tmp_path / "empty.py", "CONFIG = 1\n")

    assert f"{path} defines no config()" in refused("pretrain", path)


def test_a_configuration_of_another_verb_is_refused(refused, pretrain, finetune):
    assert "PretrainConfig" in refused("finetune", pretrain)
    assert "FinetuneConfig" in refused("pretrain", finetune)


def test_a_configuration_file_whose_values_clash_is_refused(refused, tmp_path):
    path = write(
        tmp_path / "clash.py",
        "from smf_jax.config import MemoryConfig\n"
        "def config():\n"
        "    return MemoryConfig(top_k=9, num_keys=8)\n",
    )

    assert "memory.top_k=9 exceeds memory.num_keys=8" in refused("pretrain", path)


@pytest.mark.parametrize(
    "text",
    [
        "def config(:\n",
        "import nowhere_at_all\n",
        "from smf_jax.config import PretrainConfig\n"
        "def config():\n    return PretrainConfig(run_dir='r', setps=5)\n",
    ],
    ids=["syntax", "import", "keyword"],
)
def test_a_configuration_file_that_does_not_run_is_refused(refused, tmp_path, text):
    path = write(tmp_path / "broken.py", text)

    assert path in refused("pretrain", path)


def test_an_unknown_key_is_refused_and_the_nearest_named(capsys, finetune):
    with pytest.raises(SystemExit) as caught:
        cli.main(["finetune", finetune, "--optim.topt", "3"])

    assert caught.value.code == 2
    assert "--optim.top-t" in capsys.readouterr().err


def test_an_override_reaches_the_memory(capsys, pretrain):
    # So many are too many: what refuses them has read them.
    with pytest.raises(SystemExit) as caught:
        cli.main(["pretrain", pretrain, "--model.memory.top-k", "999"])

    assert caught.value.code == 2
    assert "memory.top_k=999 exceeds" in " ".join(capsys.readouterr().err.split())


def test_an_override_that_clashes_is_refused_by_keys_and_values(refused, finetune):
    line = refused("finetune", finetune, "--batch-size", "6", "--grad_accum_steps", "4")

    assert "batch_size=6 is no multiple of grad_accum_steps=4" in line


# --- run directories ---


@pytest.mark.parametrize("arguments", [["usage"], ["evaluate"], ["ask", "who ?"]])
def test_a_missing_run_is_refused_by_name(refused, tmp_path, arguments):
    verb, *rest = arguments
    run_dir = tmp_path / "nothing"

    line = refused(verb, run_dir, *rest)

    assert f"{run_dir}: no such run directory" in line
    assert not run_dir.exists()


def test_teaching_a_missing_run_is_refused_by_name(refused, finetune, tmp_path):
    run_dir = tmp_path / "nothing"

    line = refused("finetune", finetune, "--base", run_dir)

    assert f"{run_dir}: no such run directory" in line
    assert not (tmp_path / "taught").exists()


def test_a_run_that_did_not_finish_is_refused(refused, base):
    shutil.rmtree(base / "checkpoints")

    for arguments in (["usage"], ["evaluate"], ["ask", "who ?"]):
        verb, *rest = arguments
        assert "holds no checkpoint" in refused(verb, base, *rest)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("fault", ["missing", "empty", "cut", "not JSON"])
def test_a_run_with_a_broken_file_is_refused_by_name(refused, base, name, fault):
    path = base / name
    whole = path.read_text()
    path.unlink()
    if fault != "missing":
        half = whole[: len(whole) // 2]
        path.write_text({"empty": "", "cut": half, "not JSON": "?"}[fault])

    assert name in refused("ask", base, "who ?")


def test_the_tokenizer_of_another_run_is_refused(refused, base):
    path = base / "tokenizer.json"
    path.write_text(path.read_text().replace("birthplace", "birthplaces"))

    assert f"{path} is damaged: checksum mismatch" in refused("ask", base, "who ?")


def test_a_run_whose_record_tells_of_another_model_is_refused(refused, base):
    path = base / "config.json"
    record = json.loads(path.read_text())
    record["pretrain"]["model"]["memory"]["value_dim"] = 11
    path.write_text(json.dumps(record))

    line = refused("ask", base, "who ?")

    assert "config.json is damaged: checksum mismatch" in line


def test_pretraining_into_a_finished_run_is_refused(refused, base, pretrain):
    before = load_run(base).model_hash

    assert str(base) in refused("pretrain", pretrain, "--run-dir", base)
    assert load_run(base).model_hash == before


def test_a_folder_that_is_no_run_is_neither_used_nor_emptied(
    refused, pretrain, tmp_path
):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    (folder / "config.json").write_text('{"model_type": "somebody else\'s"}')

    assert "no run directory" in refused("pretrain", pretrain, "--run-dir", folder)
    assert (folder / "chapter.txt").read_text() == "years of work"


def test_a_file_in_the_place_of_the_run_is_refused(refused, pretrain, tmp_path):
    path = write(tmp_path / "file", "years of work")

    assert path in refused("pretrain", pretrain, "--run-dir", path)
    assert (tmp_path / "file").read_text() == "years of work"


# --- usage ---


def test_no_document_is_no_usage(refused, base):
    assert "--documents 0" in refused("usage", base, "--documents", "0")


def test_teaching_without_usage_is_refused_with_the_command_that_helps(
    refused, finetune, base, tmp_path
):
    (base / "usage.safetensors").unlink()

    assert f"smf usage {base}" in refused("finetune", finetune)
    assert not (tmp_path / "taught").exists()


def test_the_usage_of_another_model_is_refused(refused, finetune, base, runs, tmp_path):
    other = shutil.copytree(runs / "other", tmp_path / "other")
    shutil.copy(base / "usage.safetensors", other)

    line = refused("finetune", finetune, "--base", other)

    assert load_run(base).model_hash in line
    assert load_run(other).model_hash in line
    assert not (tmp_path / "taught").exists()


@pytest.mark.parametrize("keep", [0, 7, 200])
def test_usage_that_was_cut_short_is_refused(refused, finetune, base, keep):
    path = base / "usage.safetensors"
    path.write_bytes(path.read_bytes()[:keep])

    assert f"{path} is no usage file" in refused("finetune", finetune)


def test_more_slots_a_step_than_there_are_is_refused(refused, finetune, tmp_path):
    line = refused("finetune", finetune, "--optim.top-t", NUM_SLOTS + 1)

    assert f"optim.top_t={NUM_SLOTS + 1}" in line
    assert f"{NUM_SLOTS} slots" in line
    assert not (tmp_path / "taught").exists()


def test_lora_that_fits_no_layer_is_refused_with_the_layers_there_are(
    refused, finetune, tmp_path
):
    lora = ["--optim.method", "lora", "--optim.lora.targets", "nothing"]

    line = refused("finetune", finetune, *lora)

    assert "lora.targets='nothing'" in line
    assert "blocks/0/attention/query" in line
    assert not (tmp_path / "taught").exists()


# --- facts and questions ---


@pytest.mark.parametrize("question", ["", "  ", "\t\n"])
def test_a_blank_question_is_refused(refused, base, question):
    assert "blank" in refused("ask", base, question)


def test_no_new_tokens_are_no_answer(refused, base):
    assert "--max-new-tokens 0" in refused("ask", base, "q", "--max-new-tokens", "0")


FAULTS = {
    "empty": ("", "empty"),
    "blank": ("\n\n", "empty"),
    "malformed": (FACT * 6 + '{"question": \n', ":7: not JSON"),
    "unanswered": ('{"question": "q", "answers": []}\n', ":1: "),
    "too long": (long_facts(4), "4 of 4 examples are longer than the context of 24"),
    "too few": (FACT, "batch_size=3 exceeds the 1 facts"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_facts_that_cannot_be_taught_are_refused(refused, finetune, tmp_path, fault):
    text, reason = FAULTS[fault]
    path = write(tmp_path / "facts.jsonl", text)

    assert reason in refused("finetune", finetune, "--facts", path)
    assert not (tmp_path / "taught").exists()


@pytest.mark.parametrize("fault", ["empty", "blank", "malformed", "unanswered"])
@pytest.mark.parametrize("verb", ["pretrain", "evaluate"])
def test_facts_that_cannot_be_read_are_refused(
    refused, base, pretrain, tmp_path, verb, fault
):
    text, reason = FAULTS[fault]
    path = write(tmp_path / "facts.jsonl", text)
    before = sorted(tmp_path.rglob("*"))
    command = {
        "pretrain": ["pretrain", pretrain, "--data.facts", path],
        "evaluate": ["evaluate", base, "--facts", path],
    }[verb]

    line = refused(*command)

    assert path in line
    assert reason in line
    assert sorted(tmp_path.rglob("*")) == before


def test_facts_without_statements_cannot_be_taught_by_them(refused, finetune, tmp_path):
    path = write(tmp_path / "facts.jsonl", FACT)

    line = refused("finetune", finetune, "--facts", path, "--teach", "statements")

    assert "'a' has no statements" in line
    assert not (tmp_path / "taught").exists()


def test_a_statement_that_gives_no_answer_cannot_be_asked_for_it(
    refused, finetune, tmp_path
):
    rows = [
        {"id": name, "question": f"{name} ?", "answers": ["me"], "documents": [text]}
        for name, text in (("a", "x me"), ("b", "x y"), ("c", "z me"))
    ]
    path = write(tmp_path / "facts.jsonl", "\n".join(map(json.dumps, rows)))

    line = refused("finetune", finetune, "--facts", path, "--teach", "statements")

    assert "'b'" in line
    assert not (tmp_path / "taught").exists()


@pytest.fixture
def heeds_ctrl_c():
    """Has this process heed it also where a shell began it in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGTERM, 75, "stopped where there was nothing to save"),
        (signal.SIGINT, 130, "interrupted"),
    ],
)
def test_told_to_stop_where_nothing_trains_it_says_so(
    monkeypatch, capsys, number, code, said
):
    def verb(arguments, console):
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setitem(cli.VERBS, "doctor", verb)
    before = signal.getsignal(signal.SIGTERM)

    assert cli.main(["doctor"]) == code

    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_folder_of_something_else_is_left_as_it_was(refused, pretrain, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "notes.txt").write_text("mine")

    assert "is no run directory" in refused("pretrain", pretrain)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["notes.txt"]


def test_a_configuration_that_fails_is_refused_by_its_error(refused, tmp_path):
    path = write(tmp_path / "config.py", "def config():\n    return 1 / 0\n")

    assert "does not run: division by zero" in refused("pretrain", path)
