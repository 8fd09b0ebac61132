"""The files of a run directory, and JSON and text written into it atomically."""

import json
from pathlib import Path
from typing import Any

from smf_jax import multihost
from smf_jax.atomic import write_atomic
from smf_jax.config import ConfigError, require

CONFIG, METRICS, TOKENIZER = "config.json", "metrics.jsonl", "tokenizer.json"
REPORT, FRONTIER, HEALING = "report.html", "frontier.svg", "retrofit.svg"
PATCH, NONFINITE = "patch.safetensors", "nonfinite.jsonl"
EVALUATION, TEACHING, USAGE = "evaluation.json", "teaching.json", "usage.safetensors"
RETROFIT = "retrofit.json"
# What an earlier run may have left, besides checkpoints and `config.json`.
STALE_FILES = (
    METRICS,
    TOKENIZER,
    NONFINITE,
    EVALUATION,
    TEACHING,
    USAGE,
    PATCH,
    RETROFIT,
)


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file, or raises `ConfigError`."""
    require(path.is_file(), f"{path}: no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically, from the main process."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes text atomically, from the main process."""
    if multihost.is_main():
        write_atomic(path, text.encode())
