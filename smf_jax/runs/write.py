"""Writes a finished run that needs no step, completely or not at all."""

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flax import nnx

from smf_jax import checkpoint
from smf_jax.config import SaveConfig, require
from smf_jax.data.tokenizer import Tokenizer
from smf_jax.runs.files import CONFIG, TOKENIZER, write_json, write_text
from smf_jax.runs.record import lineage_of, saved_variables


def require_new(run_dir: str | Path) -> Path:
    """Returns the absolute path of a run to write, or raises `ConfigError`."""
    folder = Path(run_dir).absolute()
    require(not folder.exists(), f"{folder} exists: choose another directory")
    return folder


def write_run(
    folder: Path,
    record: dict[str, Any],
    tokenizer: Tokenizer,
    model: nnx.Module,
    write_files: Callable[[Path], None],
) -> None:
    """Writes the run of a record, with the parameters that such a run saves.

    It is written beside `folder`, which does not exist, and renamed. `write_files`
    gets the directory, and writes what else belongs to the run.
    """
    lineage = lineage_of(record)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    partial.mkdir(parents=True)
    try:
        write_json(partial / CONFIG, record)
        write_text(partial / TOKENIZER, tokenizer.json)
        write_files(partial)  # before the checkpoint, whose manifest has their hashes
        params = nnx.as_pure(nnx.state(model, saved_variables(lineage)))
        with checkpoint.saver(partial, SaveConfig()) as saver:
            saver.save(lineage.steps, {"params": params}, {}, {})
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
