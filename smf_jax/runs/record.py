"""`config.json` of a run: its lineage, versions, and the hashes of its inputs."""

import dataclasses
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import dacite
import jax
from flax import nnx

from smf_jax import hf
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
    with_absolute_paths,
)
from smf_jax.data.tokenizer import Tokenizer, tokenizer_hash
from smf_jax.optim.methods import TRAINABLE, is_memory_variable
from smf_jax.runs.files import CONFIG, read_json
from smf_jax.sharding import choose_products

LIBRARIES = "smf-jax jax flax optax orbax-checkpoint grain tokenizers".split()


class Lineage(NamedTuple):
    """The configurations that made a model: its origin, then what was done to it."""

    pretrain: PretrainConfig | None = None
    imported: ImportConfig | None = None
    retrofit: RetrofitConfig | None = None
    finetune: FinetuneConfig | None = None

    @property
    def own(self) -> Any:
        """The configuration of the run itself, which is the last one."""
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
        """The mesh of the run itself."""
        return MeshConfig() if self.own is self.imported else self.own.mesh

    @property
    def data(self) -> DataConfig | None:
        """The data of pretraining or retrofitting, before any facts were taught."""
        return (self.retrofit or self.pretrain or self.imported).data

    @property
    def model(self) -> ModelConfig:
        """The model, `vocab_size` as configured."""
        config = (self.pretrain or self.imported).model
        if self.retrofit is None:
            return config
        return dataclasses.replace(config, memory=self.retrofit.memory)

    @property
    def seed(self) -> int:
        """The seed of the order of `data`."""
        trained = self.retrofit or self.pretrain
        return 0 if trained is None else trained.seed

    @property
    def context_length(self) -> int | None:
        """Longest text in tokens that an imported model supports, if it says so."""
        if self.imported is None:
            return None
        decoder, _ = hf.split_config(self.imported.config)
        declared = decoder.get("max_position_embeddings")
        scaling = self.model.rope.scaling
        if declared is None or scaling is None or scaling.type != "yarn":
            return declared
        # Some files declare the context before it was stretched.
        return max(declared, round(scaling.factor * scaling.original_max_position))


# The keys of `config.json`.
RECORD = {
    *(*Lineage._fields, "config_hash", "corpus_hash", "tokenizer_hash"),
    *("base_hash", "usage_hash", "git_commit", "versions"),
}


def read_record(run_dir: Path) -> dict[str, Any]:
    """Returns the `config.json` of a run of this version, or raises `ConfigError`."""
    require(
        run_dir.suffix != hf.GGUF or run_dir.is_dir(),
        f"{run_dir} is a model, not a run: import it with smf import-hf",
    )
    require(run_dir.is_dir(), f"{run_dir}: no such run directory")
    if not (run_dir / CONFIG).exists():
        runs = sorted(path.parent for path in run_dir.glob(f"*/{CONFIG}"))
        held = ", ".join(path.name for path in runs if is_record(path / CONFIG))
        require(not held, f"{run_dir} is not a run, but holds {held}: name one of them")
        raise ConfigError(f"{run_dir} is not a run: it holds no {CONFIG}")
    record = read_json(run_dir / CONFIG)
    require(
        not isinstance(record, dict) or "model_type" not in record,
        f"{run_dir} is a Hugging Face model, not a run: import it with smf import-hf",
    )
    try:
        lineage_of(record)
        missing = RECORD - record.keys()
    except (dacite.DaciteError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{run_dir / CONFIG} is not the record of a run, or was written by another "
            f"version of smf_jax: {error}"
        ) from error
    require(not missing, f"{run_dir / CONFIG} lacks {', '.join(sorted(missing))}")
    return record


def is_record(path: Path) -> bool:
    """Returns whether a file is the record of a run; other tools use the name, too."""
    record = read_json(path) if path.is_file() else None
    return isinstance(record, dict) and record.keys() >= RECORD


def lineage_of(record: dict[str, Any]) -> Lineage:
    """Returns the lineage that a record holds."""
    rules = dacite.Config(strict=True, cast=[tuple])
    kinds = (PretrainConfig, ImportConfig, RetrofitConfig, FinetuneConfig)
    lineage = Lineage(
        *(
            record.get(name) and dacite.from_dict(kind, record[name], rules)
            for name, kind in zip(Lineage._fields, kinds, strict=True)
        )
    )
    if (lineage.pretrain is None) == (lineage.imported is None):
        raise TypeError("a model is either pretrained or imported")
    return lineage


def saved_variables(lineage: Lineage) -> Any:
    """Returns what the checkpoints of a run hold, as a filter for `nnx.split`."""
    own = lineage.own
    if own is lineage.retrofit:
        return is_memory_variable
    method = "full" if own is lineage.imported else own.optim.method
    return nnx.Variable if method == "full" else TRAINABLE[method]


def as_recorded(config: Any) -> Any:
    """Returns a configuration as a record holds it.

    Its paths are found from any directory, and the products are those of this machine.
    """
    config = with_absolute_paths(config)
    if isinstance(config, ImportConfig):
        return config
    compute = choose_products(config.compute, jax.default_backend())
    return dataclasses.replace(config, compute=compute)


def describe(
    lineage: Lineage, tokenizer: Tokenizer, **hashes: str | None
) -> dict[str, Any]:
    """Returns the record of a run: its lineage, versions, and hashes of its inputs."""
    own = as_recorded(lineage.own)
    lineage = Lineage(*(own if part is lineage.own else part for part in lineage))
    parts = zip(Lineage._fields, lineage, strict=True)
    return dict.fromkeys(RECORD) | {
        **{name: config and dataclasses.asdict(config) for name, config in parts},
        "config_hash": config_hash(own),
        "tokenizer_hash": tokenizer_hash(tokenizer),
        **code_version(),
        **hashes,
    }


def code_version() -> dict[str, Any]:
    """Returns the commit of the running code, and versions, its own included."""
    versions = {name: version(name) for name in LIBRARIES}
    versions["python"] = platform.python_version()
    return {"git_commit": _git_commit(), "versions": versions}


def _git_commit() -> str | None:
    """Returns the commit of the running code, or None outside a checkout."""
    root = Path(__file__).parents[2]
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
