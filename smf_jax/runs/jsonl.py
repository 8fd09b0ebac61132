"""JSONL files with one row a training step, such as `metrics.jsonl`."""

import json
from pathlib import Path

from smf_jax.config import ConfigError, require
from smf_jax.runs.files import write_text


def read_rows(path: Path) -> list[dict]:
    """Returns the rows of a JSONL file, or none if there is no file.

    A truncated last line, as a killed process leaves behind, is dropped; any other line
    that is not a row raises `ConfigError`.
    """
    content = path.read_bytes() if path.exists() else b""
    try:
        rows = [json.loads(line) for line in content.split(b"\n")[:-1]]
        valid = all(isinstance(row["step"], int) for row in rows)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from error
    require(valid, f"{path} is damaged: a step is not an integer")
    return rows


def truncate_rows(path: Path, last_step: int) -> list[dict]:
    """Drops the rows after `last_step` from a file, and returns those it keeps."""
    rows = [row for row in read_rows(path) if row["step"] <= last_step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows
