"""The files of a run directory, and JSON and text written into it atomically."""

import hashlib
import json
from pathlib import Path
from typing import Any

from smf_jax import multihost
from smf_jax.atomic import write_atomic
from smf_jax.config import ConfigError, require

CONFIG, METRICS, TOKENIZER = "config.json", "metrics.jsonl", "tokenizer.json"
REPORT, FRONTIER, HEALING = "report.html", "frontier.svg", "retrofit.svg"
TAUGHT = "teach.json"  # of a folder of runs
PATCH, NONFINITE = "patch.safetensors", "nonfinite.jsonl"
EVALUATION, TEACHING, USAGE = "evaluation.json", "teaching.json", "usage.safetensors"
RETROFIT, SLOTS = "retrofit.json", "slots.safetensors"
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
    SLOTS,
)


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file, or raises `ConfigError`."""
    require(path.is_file(), f"{path}: no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error


def read_result(path: Path) -> dict[str, Any]:
    """Returns what `write_result` wrote, or raises `ConfigError` if it has changed."""
    content = read_json(path)
    require(
        isinstance(content, dict) and "sha256" in content,
        f"{path} is damaged, or was written by another version of smf_jax: it has no "
        "checksum",
    )
    checksum = content.pop("sha256")
    require(
        checksum == _checksum(content),
        f"{path} is damaged: checksum mismatch (remove it, and run the command that "
        "wrote it again)",
    )
    return content


def write_result(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON with its checksum atomically, from the main process."""
    write_json(path, content | {"sha256": _checksum(content)})


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically, from the main process."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes text atomically, from the main process."""
    if multihost.is_main():
        write_atomic(path, text.encode())
