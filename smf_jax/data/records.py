"""Facts and texts, as JSONL files and data sets hold them."""

from pathlib import Path
from typing import NamedTuple

from smf_jax.config import require
from smf_jax.data.patterns import Patterns, as_wording, read_patterns
from smf_jax.data.sources import read_rows

MAX_ANSWER, MAX_PROMPT, MAX_ID = 4096, 65_536, 1024  # characters
MAX_ANSWERS = 10_000  # of a fact: each is searched for in its statements


class Fact(NamedTuple):
    """A fact: how it is asked and taught, and its accepted answers.

    It has a question or wordings, or both.
    """

    id: str
    question: str
    answers: tuple[str, ...]  # the first is taught
    statements: tuple[str, ...] = ()  # texts that state it
    wordings: tuple[str, ...] = ()  # texts that its answer completes, to teach it
    held_out: tuple[str, ...] = ()  # such texts that are asked, and never trained on

    @property
    def name(self) -> str:
        """What the fact is told by: its question, or else its first wording."""
        return self.question or self.wordings[0]


class Text(NamedTuple):
    """A text without questions."""

    id: str
    text: str


def read_facts(
    source: str | Path, patterns: str | Path | None = None, fields: str | None = None
) -> list[Fact]:
    """Reads facts, one JSON object a line, or from a data set `tfds:NAME`.

    `{"id", "question", "answers": [...]}`, and if there are any `"statements"`,
    `"wordings"` and `"held_out"`, all lists of strings. ("documents" is another name of
    "statements".) A fact with wordings needs no question. `patterns` is a file from
    which wordings are filled for facts that have a `"subject"` and a `"relation"`: see
    `read_patterns`. `fields` says which features of a data set hold these:
    `question=FIELD,answers=FIELD`.

    Raises:
      ConfigError: A file is missing, empty or broken; names the file and line.
    """
    of_relation = {} if patterns is None else read_patterns(patterns)
    facts: dict[str, Fact] = {}
    for where, row in read_rows(source, "facts", fields):
        fact = _fact(where, row, of_relation)
        while fact.id in facts:  # the id must tell it from others
            fact = fact._replace(id=f"{fact.id} ({where})")
        facts[fact.id] = fact
    return list(facts.values())


def _fact(where: str, row: dict, of_relation: dict[str, Patterns]) -> Fact:
    answers = _strings(where, row, "answers", MAX_ANSWER)
    require(len(answers) > 0, f"{where}: the fact has no answers")
    require(
        len(answers) <= MAX_ANSWERS,
        f"{where}: the fact has {len(answers):,} answers, and may have {MAX_ANSWERS}",
    )
    require(
        not ("statements" in row and "documents" in row),
        f'{where}: "documents" is another name of "statements": use one of them',
    )
    key = "documents" if "documents" in row else "statements"
    statements = _strings(where, row, key) if key in row else ()
    wordings, held_out = (
        tuple(as_wording(where, key, text) for text in _prompts(where, row, key))
        for key in ("wordings", "held_out")
    )
    question = ""
    if "question" in row or not (wordings or "subject" in row):
        question = _string(where, row, "question", MAX_PROMPT)
    patterns = of_relation.get(str(row.get("relation")))
    if patterns is not None:
        subject = _string(where, row, "subject", MAX_PROMPT)
        taught, asked = patterns.fill(subject)
        for text in taught + asked:
            _require_length(where, "a filled pattern", text, MAX_PROMPT)
        wordings, held_out = wordings + taught, held_out + asked
    if "[Y]" in question:  # a pattern, filled
        if patterns is None:
            wordings = (as_wording(where, "question", question), *wordings)
        question = ""
    require(
        bool(question or wordings),
        f'{where}: the fact has neither "question" nor "wordings", and there is no '
        f"pattern of its relation {str(row.get('relation'))[:80]!r} (--patterns)",
    )
    taught = set(wordings)
    held_out = tuple(text for text in held_out if text not in taught)
    return Fact(_id(where, row), question, answers, statements, wordings, held_out)


def read_texts(source: str | Path, fields: str | None = None) -> list[Text]:
    """Reads `{"id", "text"}` lines, or a data set `tfds:NAME`.

    Raises:
      ConfigError: The file is missing, empty or broken; names the file and line.
    """
    return [
        Text(_id(where, row), _string(where, row, "text"))
        for where, row in read_rows(source, "texts", fields)
    ]


def _id(where: str, row: dict) -> str:
    """Returns the id of a record, or else its file and line, wherever the file is."""
    given = row.get("id")
    id = Path(where).name if given is None else str(given)
    _require_length(where, '"id"', id, MAX_ID)
    return id


def _string(where: str, row: dict, key: str, longest: int | None = None) -> str:
    value = row.get(key)
    require(isinstance(value, str), f'{where}: "{key}" must be a string')
    require(value.strip() != "", f'{where}: "{key}" is blank')
    _require_length(where, f'"{key}"', value, longest)
    return value.strip()


def _strings(
    where: str, row: dict, key: str, longest: int | None = None
) -> tuple[str, ...]:
    values = row.get(key)
    require(
        isinstance(values, list) and all(isinstance(value, str) for value in values),
        f'{where}: "{key}" must be a list of strings',
    )
    for value in values:
        _require_length(where, f'"{key}"', value, longest)
    return tuple(value.strip() for value in values if value.strip())


def _prompts(where: str, row: dict, key: str) -> tuple[str, ...]:
    return _strings(where, row, key, MAX_PROMPT) if key in row else ()


def _require_length(where: str, what: str, value: str, longest: int | None) -> None:
    require(
        longest is None or len(value) <= longest,
        f"{where}: {what} has {len(value):,} characters, and may have {longest}",
    )
