"""JSONL files of a user, also compressed by gzip."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from smf_jax.config import ConfigError, require

MAX_LINE = 8 * 2**20  # bytes


def read_objects(path: Path) -> Iterator[tuple[str, dict]]:
    """Yields the position, as PATH:LINE, and the object of each line.

    Raises:
      ConfigError: The file is missing, empty or broken; names the file and line.
    """
    require(path.is_file(), f"{path}: no such file")
    opener = gzip.open if path.suffix == ".gz" else open
    number = rows = 0
    try:
        with opener(path, "rb") as file:
            # A small gzip file can hold a line of many gigabytes.
            lines = iter(lambda: file.readline(MAX_LINE + 1), b"")
            for number, line in enumerate(lines, 1):
                where = f"{path}:{number}"
                require(
                    len(line) <= MAX_LINE,
                    f"{where}: the line is longer than {MAX_LINE} bytes",
                )
                if line.strip():
                    rows += 1
                    yield where, _object(where, line)
    except (EOFError, OSError, zlib.error) as error:
        raise ConfigError(
            f"{path}: cannot be read past line {number}: {error}"
        ) from error
    require(rows > 0, f"{path}: the file is empty")


def _object(where: str, line: bytes) -> dict:
    try:
        row = json.loads(line.decode("utf-8-sig"))
        json.dumps(row, ensure_ascii=False).encode()  # fails on a lone surrogate
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8 ({error.reason})") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON ({error})") from error
    require(isinstance(row, dict), f"{where}: not a JSON object")
    return row
