"""The run directory: a model, how it was made, and what was measured on the way."""

import dataclasses
import json
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import dacite
import jax
from flax import nnx
from jaxtyping import PyTree
from tokenizers import Tokenizer

from smf_jax import checkpoint, distributed
from smf_jax.config import (
    ConfigError,
    FinetuneConfig,
    PretrainConfig,
    config_hash,
    require,
)
from smf_jax.data.corpus import Corpus, load_corpus
from smf_jax.data.tokenizer import load_tokenizer, tokenizer_hash
from smf_jax.model.lora import add_lora
from smf_jax.model.transformer import Transformer
from smf_jax.optim.methods import TRAINABLE
from smf_jax.whole import write_whole

CONFIG, METRICS, TOKENIZER = "config.json", "metrics.jsonl", "tokenizer.json"
REPORT, FRONTIER = "report.html", "frontier.svg"
PATCH, NONFINITE = "patch.safetensors", "nonfinite.jsonl"
EVALUATION, TEACHING, USAGE = "evaluation.json", "teaching.json", "usage.safetensors"
# All that training writes into a run directory beside checkpoints and `config.json`.
WRITTEN = (METRICS, TOKENIZER, NONFINITE, EVALUATION, TEACHING, USAGE, PATCH)
# What `config.json` holds; the hashes name what a run was made of.
RECORD = {
    *("pretrain", "finetune", "config_hash", "corpus_hash", "tokenizer_hash"),
    *("base_hash", "usage_hash", "git_commit", "versions"),
}
LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers")


class Run(NamedTuple):
    """A finished run, ready to be asked or taught."""

    run_dir: Path
    pretrain: PretrainConfig  # describes the model and its data
    finetune: FinetuneConfig | None  # how it was taught, if it was
    model: nnx.Module
    tokenizer: Tokenizer
    step: int
    corpus_hash: str  # of what it was pretrained on, or taught and asked
    model_hash: str  # SHA-256 of the content of all its parameters


def is_finished(run_dir: str | Path) -> bool:
    """Returns whether a run did all its steps and saved the last one."""
    step = checkpoint.latest_step(Path(run_dir))
    return step is not None and step >= steps_of(read_record(Path(run_dir)))


def steps_of(record: dict[str, Any]) -> int:
    """Returns how many steps the run of a record has."""
    return (record["finetune"] or record["pretrain"])["steps"]


def read_record(run_dir: Path) -> dict[str, Any]:
    """Returns what `config.json` says of a run.

    Raises:
      ConfigError: It is missing or no such record.
    """
    record = read_json(run_dir / CONFIG)
    try:
        _from_dict(PretrainConfig, record["pretrain"])
        record["finetune"] and _from_dict(FinetuneConfig, record["finetune"])
        missing = RECORD - record.keys()
    except (dacite.DaciteError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{run_dir / CONFIG} describes no run: {error}") from error
    require(not missing, f"{run_dir / CONFIG} lacks {', '.join(sorted(missing))}")
    return record


def describe(
    pretrain: PretrainConfig,
    finetune: FinetuneConfig | None,
    tokenizer: Tokenizer,
    **hashes: str | None,
) -> dict[str, Any]:
    """Returns the record of a run: how it is made, and hashes of what it is made of."""
    return dict.fromkeys(RECORD) | {
        "pretrain": dataclasses.asdict(pretrain),
        "finetune": finetune and dataclasses.asdict(finetune),
        "config_hash": config_hash(finetune or pretrain),
        "tokenizer_hash": tokenizer_hash(tokenizer),
        **code_version(),
        **hashes,
    }


def code_version() -> dict[str, Any]:
    """Returns the commit of the code that runs, and the versions of its libraries."""
    versions = {name: version(name) for name in LIBRARIES}
    versions["python"] = platform.python_version()
    return {"git_commit": _git_commit(), "versions": versions}


def load_run(run_dir: str | Path, step: int | None = None) -> Run:
    """Reads a finished run, or what it was after an earlier step that is kept.

    Raises:
      ConfigError: There is none, or its parts do not belong together.
    """
    run_dir = Path(run_dir)
    require(run_dir.is_dir(), f"{run_dir}: no such run directory")
    record = read_record(run_dir)
    pretrain = _from_dict(PretrainConfig, record["pretrain"])
    finetune = record["finetune"] and _from_dict(FinetuneConfig, record["finetune"])
    kept = checkpoint.steps(run_dir)
    require(len(kept) > 0, f"{run_dir} holds no checkpoint")
    if step is None:
        step, last = kept[-1], steps_of(record)
        require(
            step >= last,
            f"{run_dir} was interrupted after step {step} of {last}: the command that "
            f"began it goes on with it (smf evaluate --step {step} asks it as it is)",
        )
    require(step in kept, f"{run_dir} holds no step {step}, only {kept}")
    # Before any of them is read as what it should be.
    wrong = checkpoint.run_file_problems(run_dir, checkpoint.read(run_dir, step))
    require(not wrong, "; ".join(wrong))
    tokenizer = load_tokenizer(run_dir / TOKENIZER)
    model = _load_model(run_dir, step, record, pretrain, finetune, tokenizer)
    model_hash = checkpoint.params_hash(all_params(model))
    corpus_hash = record["corpus_hash"]
    return Run(
        run_dir, pretrain, finetune, model, tokenizer, step, corpus_hash, model_hash
    )


def _load_model(run_dir, step, record, pretrain, finetune, tokenizer) -> Transformer:
    method = "full" if finetune is None else finetune.optim.method
    if method == "full":
        model = nnx.eval_shape(lambda: make_model(pretrain, tokenizer))
    else:  # a checkpoint holds what trained; the rest is the base's
        base = load_run(find_base(run_dir, finetune))
        require(
            base.model_hash == record["base_hash"],
            f"{run_dir} taught model {record['base_hash']}, but {base.run_dir} is "
            f"{base.model_hash}: what it was taught fits no other",
        )
        model = base.model
        if method == "lora":
            add_lora(model, finetune.optim.lora, rngs=nnx.Rngs(finetune.seed))
    graph, trained, rest = nnx.split(model, TRAINABLE[method], ...)
    abstract = jax.eval_shape(lambda: nnx.as_pure(trained))
    loaded, _ = checkpoint.load(run_dir, step, {"params": abstract})
    return nnx.merge(graph, loaded["params"], rest)


def corpus_of(run: Run) -> Corpus:
    """Returns what a run was pretrained on.

    Raises:
      ConfigError: A file is gone, or is not what it was then.
    """
    corpus = load_corpus(run.pretrain.data)
    require(
        run.finetune is not None or run.corpus_hash == corpus.hash,
        f"the facts or texts of {run.run_dir} are not those it was pretrained on "
        f"(hash {run.corpus_hash} then, {corpus.hash} now)",
    )
    return corpus


def find_base(run_dir: Path, finetune: FinetuneConfig) -> Path:
    """Returns where the base of a taught run lies.

    Raises:
      ConfigError: Neither where it was, nor beside the run, as runs moved together.
    """
    recorded = Path(finetune.base)
    for path in (recorded, run_dir.parent / recorded.name):
        if (path / CONFIG).is_file():
            return path
    raise ConfigError(
        f"{run_dir} holds what was taught to {recorded}, which is neither there nor "
        f"at {run_dir.parent / recorded.name}"
    )


def make_model(pretrain: PretrainConfig, tokenizer: Tokenizer) -> Transformer:
    """Makes the freshly initialised model of a run, as wide as its vocabulary needs.

    Raises:
      ConfigError: The configured vocabulary cannot hold the tokenizer's.
    """
    tokens, config = tokenizer.get_vocab_size(), pretrain.model
    require(
        config.vocab_size == 0 or config.vocab_size >= tokens,
        f"model.vocab_size={config.vocab_size} is below the {tokens} tokens there are",
    )
    config = dataclasses.replace(config, vocab_size=config.vocab_size or tokens)
    return Transformer(config, rngs=nnx.Rngs(pretrain.seed))


def all_params(model: nnx.Module) -> PyTree:
    """Returns every parameter of a model, as arrays."""
    return nnx.as_pure(nnx.state(model))


def _from_dict(kind: type, record: dict) -> Any:
    config = dacite.Config(strict=True, cast=[tuple])
    return dacite.from_dict(kind, record, config)


def read_json(path: Path) -> Any:
    """Returns what a JSON file of a run holds.

    Raises:
      ConfigError: It is missing or broken.
    """
    require(path.is_file(), f"{path}: no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error


def write_json(path: Path, content: Any) -> None:
    """Writes JSON; the file appears whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text, once for all processes; the file appears whole or not at all."""
    if distributed.is_main():
        write_whole(path, text.encode())


def _git_commit() -> str | None:
    """Returns the commit of the code that runs, or None outside a checkout."""
    root = Path(__file__).parents[2]
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
