"""Patterns of a relation, from which the wordings of its facts are filled."""

from pathlib import Path
from typing import NamedTuple

from smf_jax.config import require
from smf_jax.data.jsonl import read_objects

SUBJECT, ANSWER = "[X]", "[Y]"
HELD_OUT = slice(1, None, 3)  # a third of a relation's patterns


class Patterns(NamedTuple):
    """The patterns of a relation that end in the answer, without it.

    The same ones are held out for every fact, so that no fact is asked in words that
    another one of the relation was taught in.
    """

    taught: tuple[str, ...]
    held_out: tuple[str, ...]

    def fill(self, subject: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Returns the wordings of a fact, and those that are held out."""
        taught, held_out = (
            tuple(pattern.replace(SUBJECT, subject) for pattern in part)
            for part in self
        )
        return taught, held_out


def read_patterns(path: str | Path) -> dict[str, Patterns]:
    """Reads `{"relation", "patterns": ["... [X] ... [Y]."]}` lines, by relation.

    [X] stands for the subject and [Y] for the answer. Patterns that do not end in the
    answer are left out, since a model has to complete them, and of the others each
    third one is held out.

    Raises:
      ConfigError: The file is missing, empty or broken, or a relation has no pattern
        that ends in the answer; names the file and line.

    Source: the form of ParaRel, Elazar et al. 2021, arXiv:2102.01017.
    """
    of_relation = {}
    for where, row in read_objects(Path(path)):
        relation, patterns = row.get("relation"), row.get("patterns")
        require(isinstance(relation, str), f'{where}: "relation" must be a string')
        shown = repr(relation[:80])
        require(
            isinstance(patterns, list)
            and all(isinstance(pattern, str) for pattern in patterns),
            f'{where}: "patterns" must be a list of strings',
        )
        require(relation not in of_relation, f"{where}: relation {shown} again")
        usable = [
            _before_answer(pattern)
            for pattern in patterns
            if _ends_in_answer(pattern) and pattern.count(SUBJECT) == 1
        ]
        usable = list(dict.fromkeys(usable))
        require(
            len(usable) > 0,
            f"{where}: relation {shown} has no pattern with one {SUBJECT} that ends "
            f"in {ANSWER}",
        )
        held_out = dict.fromkeys(usable[HELD_OUT])
        taught = [pattern for pattern in usable if pattern not in held_out]
        of_relation[relation] = Patterns(tuple(taught), tuple(held_out))
    return of_relation


def as_wording(where: str, key: str, text: str) -> str:
    """Returns a text that the answer completes, without [Y] in place of the answer."""
    if ANSWER not in text:
        return text
    require(
        _ends_in_answer(text),
        f'{where}: "{key}" must end in {ANSWER}, which stands for the answer: '
        f"{text[:80]!r} (--patterns fills other wordings)",
    )
    return _before_answer(text)


def _ends_in_answer(text: str) -> bool:
    ends = text.rstrip(" .").endswith(ANSWER) and text.count(ANSWER) == 1
    return ends and _before_answer(text) != ""


def _before_answer(text: str) -> str:
    return text.rstrip(" .").removesuffix(ANSWER).rstrip()
