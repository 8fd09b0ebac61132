"""Mistakes of a user end with code 2, one line, and nothing written."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest
from rich.console import Console

from smf_jax import checkpoint, cli, doctor
from smf_jax.cli.commands import VERBS
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
from smf_jax.runs import load_run, open_run
from smf_jax.runs.load import all_params, model_config
from smf_jax.runs.record import Lineage, describe
from tests import tiny
from tests.integration.commands import CONFIG_FILE

FACT = '{"id": "a", "question": "what ?", "answers": ["this"]}\n'
MEMORY = MemoryConfig(
    layers=(1,), num_keys=4, top_k=2, num_heads=3, key_dim=6, value_dim=10
)
WORLD = WorldConfig(known_people=2, new_people=1, first_names=3, last_names=4)
SIZES = {"dim": 8, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "hidden_dim": 12}


def pretrain_config(run_dir, seed: int = 0) -> PretrainConfig:
    return PretrainConfig(
        mesh=tiny.ONE,
        run_dir=str(run_dir),
        steps=2,
        seed=seed,
        model=ModelConfig(memory=MEMORY, **SIZES),
        data=DataConfig(seq_len=24, batch_size=2, world=WORLD),
    )


def save_run(run_dir, seed: int) -> None:
    """Writes a run as pretraining does, of a model that saw no step."""
    config = pretrain_config(run_dir, seed)
    corpus = load_corpus(config.data)
    texts = [f"{e.prompt} {e.completion}" for e in corpus.examples]
    tokenizer = train_tokenizer(texts, "word", config.data.vocab_size)
    lineage = Lineage(pretrain=config)
    with open_run(run_dir, Console(quiet=True)) as run:
        run.begin(describe(lineage, tokenizer, corpus_hash=corpus.hash), tokenizer)
        with checkpoint.saver(run.run_dir, config.save) as saver:
            model = tiny.make_model(model_config(lineage, tokenizer), seed)
            params = all_params(model)
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


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


LONG = [{"question": f"{n} " * 30, "answers": [f"answer-{n}"]} for n in range(4)]
UNSTATED = [
    {"id": name, "question": f"{name} ?", "answers": ["me"], "documents": [text]}
    for name, text in (("a", "x me"), ("b", "x y"), ("c", "z me"))
]
FILES = {
    "no_config": "CONFIG = 1\n",
    "syntax": "def config(:\n",
    "import": "import nowhere_at_all\n",
    "keyword": "from smf_jax.config import PretrainConfig\n"
    "def config():\n    return PretrainConfig(run_dir='r', setps=5)\n",
    "division": "def config():\n    return 1 / 0\n",
    "clash": "from smf_jax.config import MemoryConfig\n"
    "def config():\n    return MemoryConfig(top_k=9, num_keys=8)\n",
    "empty": "",
    "blank": "\n\n",
    "cut": FACT * 6 + '{"question": \n',
    "unanswered": '{"question": "q", "answers": []}\n',
    "long": lines(*LONG),
    "few": FACT,
    "unstated": lines(*UNSTATED),
}


@pytest.fixture
def paths(runs, tmp_path):
    """Returns the paths that commands name: files, configurations and runs."""
    folder = tmp_path / "paths"
    folder.mkdir()
    names = (*FILES, "base", "other", "taught", "new", "nothing", "notes", "model")
    paths = {name: folder / name for name in names} | {"folder": folder}
    for name, text in FILES.items():
        paths[name].write_text(text)
    shutil.copytree(runs / "one", paths["base"])
    shutil.copytree(runs / "other", paths["other"])
    for name, content in (("notes", "notes.txt"), ("model", "config.json")):
        paths[name].mkdir()
        (paths[name] / content).write_text('{"model_type": "another tool\'s"}')
    finetune = FinetuneConfig(
        mesh=tiny.ONE,
        base=str(paths["base"]),
        run_dir=str(paths["taught"]),
        steps=2,
        batch_size=3,
        optim=OptimConfig(method="smf", optimizer="sgd", learning_rate=1.0, top_t=5),
    )
    for name, config in (
        ("finetune", finetune),
        ("pretrain", pretrain_config(paths["new"])),
    ):
        paths[name] = folder / f"{name}.py"
        paths[name].write_text(CONFIG_FILE.format(config=config))
    return paths


@pytest.fixture
def refused(paths, capsys):
    """Returns a function from a command to the one line that refuses it."""

    def snapshot():
        files = {path for path in paths["base"].parent.rglob("*") if path.is_file()}
        files -= {paths["model"] / ".lock"}  # as beside the record of a run
        return {path: path.name == ".lock" or path.read_bytes() for path in files}

    def run(command: str) -> str:
        before = snapshot()
        capsys.readouterr()
        code = cli.main(shlex.split(command.format(**paths)))
        (line,) = capsys.readouterr().err.splitlines()
        assert code == 2
        assert snapshot() == before
        assert not paths["taught"].exists()
        assert not paths["new"].exists()
        return line

    return run


REFUSED = {
    "ask {base} ''": ["blank"],
    "ask {base} ' \t '": ["blank"],
    "ask {base} q --max-new-tokens 0": ["max_new_tokens=0"],
    "ask {base} 'blorb zzz'": ["does not know 'blorb', 'zzz'"],
    "ask {base} q --samples 0": ["--samples 0"],
    "ask {base} q --samples 3": ["give a --temperature"],
    "ask {base} q --prompt chat": ["no chat template"],
    "ask {base} q --prompt few-shot --shots 99": ["there are 8 in known facts"],
    "evaluate {base} --patterns {few}": ["--patterns needs --facts"],
    "ask {nothing} q": ["{nothing}: no such run directory"],
    "evaluate {nothing}": ["{nothing}: no such run directory"],
    "usage {nothing}": ["{nothing}: no such run directory"],
    "usage {base} --documents 0": ["--documents 0"],
    "usage {base} --batch-size 0": ["--batch-size 0"],
    "finetune {finetune} --base {nothing}": [
        "{nothing}: no such run directory: make this base first",
        "--base",
    ],
    "finetune {finetune} --facts {nothing}": ["facts: {nothing}: no such file"],
    "evaluate {base} --facts {nothing}": ["facts: {nothing}: no such file"],
    "pretrain {pretrain} --data.facts {few} --data.background {nothing}": [
        "data.background: {nothing}: no such file"
    ],
    "ask {folder} q": ["{folder} is not a run, but holds base, other: name one"],
    "ask {notes} q": ["{notes} is not a run", "config.json"],
    "finetune {finetune} --base {other}": ["smf usage {other}"],
    "finetune {finetune} --batch-size 6 --grad_accum_steps 4": [
        "batch_size=6",
        "grad_accum_steps=4",
    ],
    "finetune {finetune} --optim.top-t 17": ["optim.top_t=17", "16 slots"],
    "finetune {finetune} --optim.method lora --optim.lora.targets nothing": [
        "lora.targets='nothing'",
        "blocks/0/attention/query",
    ],
    "finetune {finetune} --facts {long}": ["4 of 4 examples", "context of 24"],
    "finetune {finetune} --facts {few} --teach statements": ["'a' has no statements"],
    "finetune {finetune} --facts {unstated} --teach statements": ["'b'"],
    "pretrain": ["smf pretrain configs/NAME.py"],
    "finetune": ["smf finetune configs/NAME.py"],
    "finetune {pretrain}": ["PretrainConfig"],
    "pretrain {finetune}": ["FinetuneConfig"],
    "pretrain {nothing}": ["{nothing}: no such configuration file"],
    "pretrain {no_config}": ["{no_config} defines no config()"],
    "pretrain {syntax}": ["{syntax} does not run"],
    "pretrain {import}": ["{import} does not run"],
    "pretrain {keyword}": ["{keyword} does not run", "setps"],
    "pretrain {division}": ["{division} does not run: division by zero"],
    "pretrain {clash}": ["memory.top_k=9 exceeds memory.num_keys=8"],
    "pretrain {pretrain} --run-dir {base} --resume never": [
        "{base} holds a finished run"
    ],
    "pretrain {pretrain} --run-dir {notes}": ["{notes}", "not a run directory"],
    "pretrain {pretrain} --run-dir {model}": ["{model}", "not a run directory"],
    "pretrain {pretrain} --run-dir {few}": ["{few}"],
    "pretain": ["'pretain'", *VERBS],
}
UNREADABLE = {"empty": "empty", "blank": "empty", "cut": ":7: ", "unanswered": ":1: "}
READERS = (
    "pretrain {{pretrain}} --data.facts {{{0}}}",
    "finetune {{finetune}} --facts {{{0}}}",
    "evaluate {{base}} --facts {{{0}}}",
)
for name, reason in UNREADABLE.items():
    REFUSED |= {read.format(name): [f"{{{name}}}", reason] for read in READERS}


@pytest.mark.parametrize("command", REFUSED)
def test_a_mistake_is_refused_in_one_line_and_nothing_is_written(
    refused, paths, command
):
    line = refused(command)

    words = [words.format(**paths) for words in REFUSED[command]]
    assert [part for part in words if part not in line] == []


# --- the command itself ---


def test_the_code_reaches_the_shell():
    command = [sys.executable, "-m", "smf_jax", "pretain"]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_verbs_are_listed_in_80_columns(capsys, arguments):
    assert cli.main(arguments) == 0

    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert set(VERBS) == set(listed)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_shows_an_example(capsys, verb):
    with pytest.raises(SystemExit) as caught:
        cli.main([verb, "--help"])

    assert caught.value.code == 0
    assert f"Example: smf {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["pretrain", "retrofit", "finetune", "plan"])
def test_help_without_a_file_says_how_to_list_its_settings(capsys, verb):
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])

    out = capsys.readouterr().out
    assert "--optim.warmup-steps" not in out
    assert f"smf {verb} configs/NAME.py --help" in " ".join(out.split())


def test_a_long_line_of_the_doctor_is_not_wrapped(capsys):
    # Files and pipes have no width of 80 columns.
    want = list(doctor.examine())
    assert max(map(len, want)) > 80

    assert cli.main(["doctor"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines == want
    assert "orbax-checkpoint 0." in lines[1]
    assert "CHANGE" in lines[-1] or lines[-1] == "no known problems"


def test_debug_shows_where_an_error_is_raised(tmp_path):
    with pytest.raises(ConfigError, match="no such run directory"):
        cli.main(["usage", str(tmp_path / "nothing"), "--debug"])


def test_the_scores_are_printed_with_their_number_of_questions(paths, capsys):
    assert cli.main(["evaluate", str(paths["base"])]) == 0

    lines = capsys.readouterr().out.splitlines()
    counts = [line.split("  exact")[0].split() for line in lines if "  exact" in line]
    assert counts == [
        ["taught", "n=4"],
        ["held-out", "wording", "n=4"],
        ["known", "n=8"],
    ]
    assert all("[" in line for line in lines if "  exact" in line)


def test_an_unknown_key_is_refused_and_the_nearest_named(capsys, paths):
    with pytest.raises(SystemExit) as caught:
        cli.main(["finetune", str(paths["finetune"]), "--optim.topt", "3"])

    assert caught.value.code == 2
    assert "--optim.top-t" in capsys.readouterr().err


def test_an_override_reaches_a_nested_section(capsys, paths):
    with pytest.raises(SystemExit) as caught:
        cli.main(["pretrain", str(paths["pretrain"]), "--model.memory.top-k", "999"])

    assert caught.value.code == 2
    assert "memory.top_k=999 exceeds" in " ".join(capsys.readouterr().err.split())


# --- damaged runs ---


@pytest.mark.parametrize("verb", ["usage {base}", "evaluate {base}", "ask {base} q"])
def test_a_run_without_a_checkpoint_is_refused(refused, paths, verb):
    shutil.rmtree(paths["base"] / "checkpoints")

    assert "holds no checkpoint" in refused(verb)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("fault", ["missing", "empty", "cut", "not JSON"])
def test_a_run_with_a_broken_file_is_refused_by_name(refused, paths, name, fault):
    path = paths["base"] / name
    text = path.read_text()
    path.unlink()
    if fault != "missing":
        half = text[: len(text) // 2]
        path.write_text({"empty": "", "cut": half, "not JSON": "?"}[fault])

    assert name in refused("ask {base} q")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("tokenizer.json", "birthplace", "birthplaces"),
        ("config.json", '"value_dim": 10', '"value_dim": 11'),
    ],
)
def test_a_run_with_a_changed_file_is_refused_by_name(refused, paths, name, old, new):
    path = paths["base"] / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))

    assert f"{path} is damaged: checksum mismatch" in refused("ask {base} q")


def test_the_usage_of_another_model_is_refused(refused, paths):
    shutil.copy(paths["base"] / "usage.safetensors", paths["other"])

    line = refused("finetune {finetune} --base {other}")

    assert load_run(paths["base"]).model_hash in line
    assert load_run(paths["other"]).model_hash in line


@pytest.mark.parametrize("keep", [0, 7, 200])
def test_a_truncated_usage_file_is_refused(refused, paths, keep):
    path = paths["base"] / "usage.safetensors"
    path.write_bytes(path.read_bytes()[:keep])

    assert str(path) in refused("finetune {finetune}")


# --- signals ---


@pytest.fixture
def heeds_ctrl_c():
    """Has this process heed it also where a shell began it in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGTERM, 75, "terminated, with nothing to save"),
        (signal.SIGINT, 130, "interrupted"),
    ],
)
def test_a_signal_outside_of_training_ends_with_its_code(
    monkeypatch, capsys, number, code, words
):
    def verb(arguments, console):
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setitem(VERBS, "doctor", verb)
    before = signal.getsignal(signal.SIGTERM)

    assert cli.main(["doctor"]) == code

    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert signal.getsignal(signal.SIGTERM) == before
