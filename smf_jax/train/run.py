"""The run directory: a model, how it was made, and what was measured on the way."""

import dataclasses
import functools
import json
import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import dacite
from flax import nnx
from jaxtyping import PyTree
from tokenizers import Tokenizer

from smf_jax import checkpoint
from smf_jax.config import (
    ConfigError,
    FinetuneConfig,
    PretrainConfig,
    config_hash,
    require,
)
from smf_jax.data.tokenizer import load_tokenizer, tokenizer_hash
from smf_jax.model.lora import add_lora
from smf_jax.model.transformer import Transformer

CONFIG, METRICS, TOKENIZER = "config.json", "metrics.jsonl", "tokenizer.json"
REPORT, FRONTIER = "report.html", "frontier.svg"
EVALUATION, TEACHING, USAGE = "evaluation.json", "teaching.json", "usage.safetensors"
LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers")


class Run(NamedTuple):
    """A finished run, ready to be asked or taught."""

    run_dir: Path
    pretrain: PretrainConfig  # describes the model and its data
    finetune: FinetuneConfig | None  # how it was taught, if it was
    model: nnx.Module
    tokenizer: Tokenizer
    model_hash: str


def require_free(run_dir: str | Path) -> None:
    """Raises `ConfigError` where a finished run, or something else, would be lost.

    What an unfinished run left counts for nothing.
    """
    run_dir = Path(run_dir)
    require(
        checkpoint.latest_step(run_dir) is None,
        f"{run_dir} holds a finished run: choose another run_dir or remove it",
    )
    require(
        not run_dir.exists()
        or _is_record(run_dir / CONFIG)
        or (run_dir.is_dir() and not any(run_dir.iterdir())),
        f"{run_dir} exists and is no run directory: choose another run_dir",
    )


def _is_record(path: Path) -> bool:
    # Others call their files config.json, too.
    record = read_json(path) if path.is_file() else None
    return isinstance(record, dict) and record.keys() >= {"pretrain", "tokenizer_hash"}


def create_run_dir(
    run_dir: str | Path,
    pretrain: PretrainConfig,
    finetune: FinetuneConfig | None,
    tokenizer: Tokenizer,
    corpus_hash: str,
) -> Path:
    """Makes a run directory that holds the configuration and the tokenizer.

    What an unfinished run left there is removed.

    Raises:
      ConfigError: A finished run is there already.
    """
    require_free(run_dir)
    run_dir = Path(run_dir)
    if run_dir.exists():
        shutil.rmtree(run_dir)
    run_dir.mkdir(parents=True)
    record = {
        "pretrain": dataclasses.asdict(pretrain),
        "finetune": finetune and dataclasses.asdict(finetune),
        "config_hash": config_hash(finetune or pretrain),
        "corpus_hash": corpus_hash,
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "git_commit": _git_commit(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in LIBRARIES},
    }
    tokenizer.save(str(run_dir / TOKENIZER))
    write_json(run_dir / CONFIG, record)
    return run_dir


def load_run(run_dir: str | Path) -> Run:
    """Reads a finished run.

    Raises:
      ConfigError: There is none, or its parts do not belong together.
    """
    run_dir = Path(run_dir)
    require(run_dir.is_dir(), f"{run_dir}: no such run directory")
    record = read_json(run_dir / CONFIG)
    try:
        pretrain = _from_dict(PretrainConfig, record["pretrain"])
        finetune = record["finetune"] and _from_dict(FinetuneConfig, record["finetune"])
        recorded_hash = record["tokenizer_hash"]
    except (dacite.DaciteError, KeyError, TypeError) as error:
        raise ConfigError(f"{run_dir / CONFIG} describes no run: {error}") from error
    tokenizer = load_tokenizer(run_dir / TOKENIZER)
    require(
        tokenizer_hash(tokenizer) == recorded_hash,
        f"{run_dir / TOKENIZER} is not the tokenizer this run was trained with",
    )
    make = functools.partial(make_model, pretrain, finetune, tokenizer)
    graph, abstract = nnx.split(nnx.eval_shape(make))
    params = checkpoint.load(run_dir, nnx.as_pure(abstract))
    model = nnx.merge(graph, params)
    return Run(
        run_dir, pretrain, finetune, model, tokenizer, checkpoint.params_hash(params)
    )


def make_model(
    pretrain: PretrainConfig, finetune: FinetuneConfig | None, tokenizer: Tokenizer
) -> Transformer:
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
    model = Transformer(config, rngs=nnx.Rngs(pretrain.seed))
    if finetune is not None and finetune.optim.method == "lora":
        add_lora(model, finetune.optim.lora, rngs=nnx.Rngs(finetune.seed))
    return model


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
    """Writes a text; the file appears whole or not at all."""
    beside = path.with_name(path.name + ".partial")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def _git_commit() -> str | None:
    """Returns the commit of the code that runs, or None outside a checkout."""
    root = Path(__file__).parents[2]
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
