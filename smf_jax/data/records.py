"""The two records that every source yields, and the files that hold them."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from smf_jax.config import ConfigError, require

LONGEST = 8 * 2**20  # bytes of a line


class Fact(NamedTuple):
    """A question with its answers, any of which is right, and texts that state it."""

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
      ConfigError: The file is missing, empty or broken; it names the file and line.
    """
    return [_fact(where, row) for where, row in _rows(Path(path))]


def read_texts(path: str | Path) -> list[Text]:
    """Reads `{"id", "text"}` lines.

    Raises:
      ConfigError: The file is missing, empty or broken; it names the file and line.
    """
    texts = []
    for where, row in _rows(Path(path)):
        text = _string(where, row, "text")
        texts.append(Text(str(row.get("id", where)), text))
    return texts


def _fact(where: str, row: dict) -> Fact:
    question = _string(where, row, "question")
    answers = _strings(where, row, "answers")
    require(len(answers) > 0, f"{where}: the fact has no answers")
    statements = _strings(where, row, "documents") if "documents" in row else ()
    return Fact(str(row.get("id", where)), question, answers, statements)


def _rows(path: Path) -> Iterator[tuple[str, dict]]:
    require(path.is_file(), f"{path}: no such file")
    opener = gzip.open if path.suffix == ".gz" else open
    number, rows = 0, 0
    try:
        with opener(path, "rb") as file:
            # A compressed file of a few bytes may hold a line of many gigabytes.
            lines = iter(lambda: file.readline(LONGEST + 1), b"")
            for number, line in enumerate(lines, 1):
                require(
                    len(line) <= LONGEST,
                    f"{path}:{number}: the line is longer than {LONGEST} bytes",
                )
                if line.strip():
                    rows += 1
                    yield f"{path}:{number}", _row(f"{path}:{number}", line)
    except (EOFError, OSError, zlib.error) as error:
        raise ConfigError(
            f"{path}: cannot be read past line {number}: {error}"
        ) from error
    require(rows > 0, f"{path}: the file is empty")


def _row(where: str, line: bytes) -> dict:
    try:
        row = json.loads(line.decode("utf-8-sig"))
        json.dumps(row, ensure_ascii=False).encode()
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
