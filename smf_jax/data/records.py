"""Facts and texts, and the JSONL files that hold them."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from smf_jax.config import ConfigError, require

MAX_LINE = 8 * 2**20  # bytes


class Fact(NamedTuple):
    """A question, its accepted answers, and texts that state it."""

    id: str
    question: str
    answers: tuple[str, ...]
    statements: tuple[str, ...] = ()


class Text(NamedTuple):
    """A text without questions."""

    id: str
    text: str


def read_facts(path: str | Path) -> list[Fact]:
    """Reads `{"id", "question", "answers": [...], "documents": [...]?}` lines.

    Raises:
      ConfigError: The file is missing, empty or broken; names the file and line.
    """
    facts = []
    for where, row in _rows(Path(path)):
        question = _string(where, row, "question")
        answers = _strings(where, row, "answers")
        require(len(answers) > 0, f"{where}: the fact has no answers")
        statements = _strings(where, row, "documents") if "documents" in row else ()
        facts.append(Fact(str(row.get("id", where)), question, answers, statements))
    return facts


def read_texts(path: str | Path) -> list[Text]:
    """Reads `{"id", "text"}` lines.

    Raises:
      ConfigError: The file is missing, empty or broken; names the file and line.
    """
    return [
        Text(str(row.get("id", where)), _string(where, row, "text"))
        for where, row in _rows(Path(path))
    ]


def _rows(path: Path) -> Iterator[tuple[str, dict]]:
    """Yields the position, as PATH:LINE, and the object of each line."""
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
                    yield where, _row(where, line)
    except (EOFError, OSError, zlib.error) as error:
        raise ConfigError(
            f"{path}: cannot be read past line {number}: {error}"
        ) from error
    require(rows > 0, f"{path}: the file is empty")


def _row(where: str, line: bytes) -> dict:
    try:
        row = json.loads(line.decode("utf-8-sig"))
        json.dumps(row, ensure_ascii=False).encode()  # fails on a lone surrogate
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8 ({error.reason})") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON ({error})") from error
    require(isinstance(row, dict), f"{where}: not a JSON object")
    return row


def _string(where: str, row: dict, key: str) -> str:
    value = row.get(key)
    require(isinstance(value, str), f'{where}: "{key}" must be a string')
    require(value.strip() != "", f'{where}: "{key}" is blank')
    return value.strip()


def _strings(where: str, row: dict, key: str) -> tuple[str, ...]:
    values = row.get(key)
    require(
        isinstance(values, list) and all(isinstance(value, str) for value in values),
        f'{where}: "{key}" must be a list of strings',
    )
    return tuple(value.strip() for value in values if value.strip())
