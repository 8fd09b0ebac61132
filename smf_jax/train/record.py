"""The files of a run directory, and `config.json`: how a run's model came to be."""

import dataclasses
import json
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import dacite

from smf_jax import distributed, hf
from smf_jax.config import (
    ConfigError,
    DataConfig,
    FinetuneConfig,
    ImportConfig,
    MeshConfig,
    ModelConfig,
    PretrainConfig,
    RetrofitConfig,
    config_hash,
    require,
)
from smf_jax.data.tokenizer import Tokenizer, tokenizer_hash
from smf_jax.whole import write_whole

CONFIG, METRICS, TOKENIZER = "config.json", "metrics.jsonl", "tokenizer.json"
REPORT, FRONTIER, HEALING = "report.html", "frontier.svg", "retrofit.svg"
PATCH, NONFINITE = "patch.safetensors", "nonfinite.jsonl"
EVALUATION, TEACHING, USAGE = "evaluation.json", "teaching.json", "usage.safetensors"
RETROFIT = "retrofit.json"
# All that a run writes into its directory beside checkpoints and `config.json`.
WRITTEN = (METRICS, TOKENIZER, NONFINITE, EVALUATION, TEACHING, USAGE, PATCH, RETROFIT)
LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers")


class Made(NamedTuple):
    """How a model came to be: one origin, and what followed."""

    pretrain: PretrainConfig | None = None
    imported: ImportConfig | None = None
    retrofit: RetrofitConfig | None = None
    finetune: FinetuneConfig | None = None

    @property
    def own(self) -> Any:
        """What the run itself did: the last of all."""
        return next(config for config in reversed(self) if config is not None)

    @property
    def steps(self) -> int:
        """Steps of the run itself."""
        return 0 if self.own is self.imported else self.own.steps

    @property
    def save_every(self) -> int:
        """Steps between two checkpoints of the run itself."""
        return 0 if self.own is self.imported else self.own.save.every

    @property
    def mesh(self) -> MeshConfig:
        """The devices that the run itself is for."""
        return MeshConfig() if self.own is self.imported else self.own.mesh

    @property
    def data(self) -> DataConfig | None:
        """What the model was trained on before it was taught, and is asked."""
        return (self.retrofit or self.pretrain or self.imported).data

    @property
    def model(self) -> ModelConfig:
        """What the model is made of, its vocabulary as it was asked for."""
        config = (self.pretrain or self.imported).model
        if self.retrofit is None:
            return config
        return dataclasses.replace(config, memory=self.retrofit.memory)

    @property
    def seed(self) -> int:
        """Of the order of that data."""
        trained = self.retrofit or self.pretrain
        return 0 if trained is None else trained.seed

    @property
    def longest(self) -> int | None:
        """Tokens of the longest text that the model was made for, if it is known."""
        if self.imported is None:
            return None
        decoder, _ = hf.split_config(self.imported.config)
        return decoder.get("max_position_embeddings")


# What `config.json` holds; the hashes name what a run was made of.
RECORD = {
    *(*Made._fields, "config_hash", "corpus_hash", "tokenizer_hash"),
    *("base_hash", "usage_hash", "git_commit", "versions"),
}


def read_record(run_dir: Path) -> dict[str, Any]:
    """Returns what `config.json` says of a run.

    Raises:
      ConfigError: It is missing or no such record.
    """
    record = read_json(run_dir / CONFIG)
    require(
        not isinstance(record, dict) or "model_type" not in record,
        f"{run_dir} is a Hugging Face model and no run: smf import-hf makes one of it",
    )
    try:
        made_of(record)
        missing = RECORD - record.keys()
    except (dacite.DaciteError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{run_dir / CONFIG} describes no run: {error}") from error
    require(not missing, f"{run_dir / CONFIG} lacks {', '.join(sorted(missing))}")
    return record


def made_of(record: dict[str, Any]) -> Made:
    """Returns how the model of a record came to be."""
    rules = dacite.Config(strict=True, cast=[tuple])
    kinds = (PretrainConfig, ImportConfig, RetrofitConfig, FinetuneConfig)
    made = Made(
        *(
            record.get(name) and dacite.from_dict(kind, record[name], rules)
            for name, kind in zip(Made._fields, kinds, strict=True)
        )
    )
    if (made.pretrain is None) == (made.imported is None):
        raise TypeError("a model is either pretrained or imported")
    return made


def describe(made: Made, tokenizer: Tokenizer, **hashes: str | None) -> dict[str, Any]:
    """Returns the record of a run: how it is made, and hashes of what it is made of."""
    parts = zip(Made._fields, made, strict=True)
    return dict.fromkeys(RECORD) | {
        **{name: config and dataclasses.asdict(config) for name, config in parts},
        "config_hash": config_hash(made.own),
        "tokenizer_hash": tokenizer_hash(tokenizer),
        **code_version(),
        **hashes,
    }


def code_version() -> dict[str, Any]:
    """Returns the commit of the code that runs, and the versions of its libraries."""
    versions = {name: version(name) for name in LIBRARIES}
    versions["python"] = platform.python_version()
    return {"git_commit": _git_commit(), "versions": versions}


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
